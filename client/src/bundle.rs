//! A bundle on this side, ahead of its push: a folder, or files in memory.
//!
//! Nothing is held in memory of a folder but names and digests; its files are read again, a chunk at a time,
//! when they are uploaded. A file that changed meanwhile fails the other side's check of its digest.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use roost_protocol::Digest;
use roost_protocol::bundle::{BundleError, BundleFile, DigestBuilder, FileList, MANIFEST_FILE};
use roost_protocol::limits::{BUNDLE_FILES_MAX, CHUNK_BYTES_MAX, MANIFEST_BYTES_MAX};
use roost_protocol::manifest::{Manifest, ManifestError};

/// A bundle that can be pushed.
#[derive(Debug, Clone)]
pub struct LocalBundle {
    content: Content,
    files: FileList,
    manifest: Manifest,
    left_out: Vec<String>,
}

#[derive(Debug, Clone)]
enum Content {
    Folder(PathBuf),
    Memory(BTreeMap<String, Bytes>),
}

/// Why files cannot be pushed.
#[derive(Debug, thiserror::Error)]
pub enum LocalBundleError {
    /// A file or the folder cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file or folder.
        path: PathBuf,
        /// The operating system's error.
        source: io::Error,
    },
    /// A file's name is not UTF-8.
    #[error("the name of {} is not UTF-8", path.display())]
    Name {
        /// The file.
        path: PathBuf,
    },
    /// The files are no bundle.
    #[error(transparent)]
    Bundle(#[from] BundleError),
    /// `model.toml` is not valid.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
}

impl LocalBundle {
    /// Reads a folder: `model.onnx`, `model.toml` if there is one, and every other file beside them, as
    /// external data. Subfolders and files whose name starts with a dot are left out.
    ///
    /// # Errors
    /// [`LocalBundleError`] when a file cannot be read, there is no `model.onnx`, or `model.toml` is not
    /// valid.
    pub async fn open(folder: impl Into<PathBuf>) -> Result<Self, LocalBundleError> {
        let folder = folder.into();
        let path = folder.clone();
        let opened = tokio::task::spawn_blocking(move || open_folder(folder)).await;
        opened.unwrap_or_else(|error| Err(LocalBundleError::Read { path, source: io::Error::other(error) }))
    }

    /// Takes files from memory, by their names.
    ///
    /// # Errors
    /// [`LocalBundleError`] when there is no `model.onnx`, or `model.toml` is not valid.
    pub fn from_bytes(files: BTreeMap<String, Bytes>) -> Result<Self, LocalBundleError> {
        let file = |(name, bytes): (&String, &Bytes)| BundleFile {
            name: name.clone(),
            bytes: bytes.len() as u64,
            digest: Digest::of(bytes),
        };
        let list = FileList::new(files.iter().map(file).collect())?;
        let manifest = manifest(files.get(MANIFEST_FILE).map(|bytes| &**bytes))?;
        Ok(Self { content: Content::Memory(files), files: list, manifest, left_out: Vec::new() })
    }

    /// The bundle's files.
    pub fn files(&self) -> &FileList {
        &self.files
    }

    /// What `model.toml` says; the default without one.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Names in the folder that are no part of the bundle.
    pub fn left_out(&self) -> &[String] {
        &self.left_out
    }

    /// At most `bytes` of a file, from `offset`.
    pub(crate) async fn read(&self, file: &str, offset: u64, bytes: u64) -> io::Result<Bytes> {
        match &self.content {
            Content::Memory(files) => {
                let file = files.get(file).ok_or(io::ErrorKind::NotFound)?;
                let start = usize::try_from(offset).unwrap_or(usize::MAX).min(file.len());
                let end = start.saturating_add(bytes as usize).min(file.len());
                Ok(file.slice(start..end))
            }
            Content::Folder(folder) => {
                let path = folder.join(file);
                let read = move || read_at(&path, offset, bytes);
                tokio::task::spawn_blocking(read).await.map_err(io::Error::other)?
            }
        }
    }
}

fn open_folder(folder: PathBuf) -> Result<LocalBundle, LocalBundleError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |source| LocalBundleError::Read { path, source }
    };
    let (mut files, mut left_out) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(&folder).map_err(failed(&folder))? {
        let path = entry.map_err(failed(&folder))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).map(str::to_owned);
        let name = name.ok_or_else(|| LocalBundleError::Name { path: path.clone() })?;
        let is_file = std::fs::metadata(&path).map_err(failed(&path))?.is_file();
        if !is_file || name.starts_with('.') {
            left_out.push(name);
            continue;
        }
        if files.len() == BUNDLE_FILES_MAX {
            return Err(BundleError::TooManyFiles(files.len() + 1).into());
        }
        files.push(digest(&path, name).map_err(failed(&path))?);
    }
    left_out.sort_unstable();
    let files = FileList::new(files)?;
    let manifest = match files.get(MANIFEST_FILE) {
        Some(file) => {
            let path = folder.join(MANIFEST_FILE);
            // One byte more than allowed tells that it is too large, without reading all of it.
            let most = file.bytes.min(MANIFEST_BYTES_MAX as u64 + 1);
            manifest(Some(&read_at(&path, 0, most).map_err(failed(&path))?))?
        }
        None => manifest(None)?,
    };
    Ok(LocalBundle { content: Content::Folder(folder), files, manifest, left_out })
}

fn manifest(text: Option<&[u8]>) -> Result<Manifest, ManifestError> {
    match text {
        Some(bytes) => {
            let text = std::str::from_utf8(bytes).map_err(|error| ManifestError::Toml(error.to_string()))?;
            Manifest::parse(text)
        }
        None => Ok(Manifest::default()),
    }
}

fn digest(path: &Path, name: String) -> io::Result<BundleFile> {
    let mut file = File::open(path)?;
    let mut chunk = vec![0; CHUNK_BYTES_MAX as usize];
    let (mut digest, mut bytes) = (DigestBuilder::default(), 0);
    loop {
        let read = file.read(&mut chunk)?;
        if read == 0 {
            return Ok(BundleFile { name, bytes, digest: digest.finish() });
        }
        digest.update(&chunk[..read]);
        bytes += read as u64;
    }
}

fn read_at(path: &Path, offset: u64, bytes: u64) -> io::Result<Bytes> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(offset))?;
    let mut chunk = Vec::new();
    file.take(bytes).read_to_end(&mut chunk)?;
    Ok(chunk.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(files: &[(&str, &str)]) -> BTreeMap<String, Bytes> {
        files
            .iter()
            .map(|(name, text)| ((*name).to_owned(), Bytes::copy_from_slice(text.as_bytes())))
            .collect()
    }

    #[tokio::test]
    async fn a_folder_and_the_same_bytes_are_the_same_bundle() {
        let bytes =
            files(&[("model.onnx", "graph"), ("model.toml", "replicas = 3"), ("weights.bin", "0123456789")]);
        let folder = tempfile::tempdir().unwrap();
        for (name, bytes) in &bytes {
            std::fs::write(folder.path().join(name), bytes).unwrap();
        }
        std::fs::write(folder.path().join(".hidden"), "x").unwrap();
        std::fs::create_dir(folder.path().join("test_data")).unwrap();
        let opened = LocalBundle::open(folder.path()).await.unwrap();
        let memory = LocalBundle::from_bytes(bytes).unwrap();
        assert_eq!(opened.files(), memory.files());
        assert_eq!(opened.manifest(), memory.manifest());
        assert_eq!(opened.left_out(), [".hidden", "test_data"]);
        for bundle in [&opened, &memory] {
            assert_eq!(bundle.read("weights.bin", 4, 3).await.unwrap(), "456");
            assert_eq!(bundle.read("weights.bin", 8, 10).await.unwrap(), "89");
            assert_eq!(bundle.read("weights.bin", 99, 1).await.unwrap(), "");
            bundle.read("other", 0, 1).await.unwrap_err();
        }
    }

    #[tokio::test]
    async fn what_cannot_be_pushed_says_why() {
        let error = LocalBundle::from_bytes(files(&[("model.toml", "")])).unwrap_err();
        assert!(matches!(error, LocalBundleError::Bundle(BundleError::NoModel)));
        let error =
            LocalBundle::from_bytes(files(&[("model.onnx", ""), ("model.toml", "x = 1")])).unwrap_err();
        assert!(matches!(error, LocalBundleError::Manifest(_)));
        let error = LocalBundle::open("no/such/folder").await.unwrap_err();
        assert!(error.to_string().starts_with("cannot read no/such/folder: "), "{error}");
    }
}
