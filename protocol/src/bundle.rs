//! A bundle: the files of one version, named by content.
//!
//! A bundle's [`Digest`] is the SHA-256 of the canonical list of its files: per file, in order of their names, the name,
//! a zero byte, the size as eight little-endian bytes, and the file's own SHA-256. Where bundles are stored and how they
//! travel is not here.

use serde::{Deserialize, Serialize};
use sha2::Digest as _;

use crate::ids::Digest;
use crate::limits::{BUNDLE_BYTES_MAX, BUNDLE_FILES_MAX, TENSOR_NAME_BYTES_MAX};

/// The file that holds the graph.
pub const MODEL_FILE: &str = "model.onnx";
/// The file that holds the manifest.
pub const MANIFEST_FILE: &str = "model.toml";

/// One file of a bundle.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BundleFile {
    /// Its name: no folders.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// The SHA-256 of its bytes.
    pub digest: Digest,
}

/// The canonical list of a bundle's files, in order of their names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Vec<BundleFile>", into = "Vec<BundleFile>")]
pub struct FileList(Vec<BundleFile>);

/// Why files do not make a bundle.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// No graph among them.
    #[error("a bundle holds a file {MODEL_FILE}; this one has none")]
    NoModel,
    /// A name with folders, or empty, or too long.
    #[error(
        "a bundle's file has a plain name of at most {TENSOR_NAME_BYTES_MAX} bytes without '/' or '\\'; {0:?} is none"
    )]
    FileName(String),
    /// A name twice.
    #[error("the file {0} is in the bundle twice")]
    Duplicate(String),
    /// Too many files.
    #[error("a bundle has at most {BUNDLE_FILES_MAX} files, this one has {0}")]
    TooManyFiles(usize),
    /// Too many bytes.
    #[error("a bundle has at most {BUNDLE_BYTES_MAX} bytes, this one has more")]
    TooLarge,
}

impl FileList {
    /// Checks and sorts the files of a bundle.
    ///
    /// # Errors
    /// [`BundleError`] when there is no `model.onnx`, a name is not plain or occurs twice, or a bound is passed.
    pub fn new(mut files: Vec<BundleFile>) -> Result<Self, BundleError> {
        if files.len() > BUNDLE_FILES_MAX {
            return Err(BundleError::TooManyFiles(files.len()));
        }
        if let Some(file) = files.iter().find(|file| !is_plain_name(&file.name)) {
            return Err(BundleError::FileName(file.name.clone()));
        }
        files.sort();
        if let Some(pair) = files.windows(2).find(|pair| pair[0].name == pair[1].name) {
            return Err(BundleError::Duplicate(pair[0].name.clone()));
        }
        let bytes = files.iter().try_fold(0u64, |sum, file| sum.checked_add(file.bytes));
        if bytes.is_none_or(|bytes| bytes > BUNDLE_BYTES_MAX) {
            return Err(BundleError::TooLarge);
        }
        if !files.iter().any(|file| file.name == MODEL_FILE) {
            return Err(BundleError::NoModel);
        }
        Ok(Self(files))
    }

    /// The files, in order of their names.
    pub fn files(&self) -> &[BundleFile] {
        &self.0
    }

    /// The file of that name.
    pub fn get(&self, name: &str) -> Option<&BundleFile> {
        self.0.iter().find(|file| file.name == name)
    }

    /// The bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.0.iter().map(|file| file.bytes).sum()
    }

    /// The bundle's digest.
    pub fn digest(&self) -> Digest {
        let mut hasher = sha2::Sha256::new();
        for file in &self.0 {
            hasher.update(file.name.as_bytes());
            hasher.update([0]);
            hasher.update(file.bytes.to_le_bytes());
            hasher.update(file.digest.0);
        }
        Digest(hasher.finalize().into())
    }
}

impl TryFrom<Vec<BundleFile>> for FileList {
    type Error = BundleError;
    fn try_from(files: Vec<BundleFile>) -> Result<Self, BundleError> {
        Self::new(files)
    }
}

impl From<FileList> for Vec<BundleFile> {
    fn from(list: FileList) -> Self {
        list.0
    }
}

fn is_plain_name(name: &str) -> bool {
    let length_fits = !name.is_empty() && name.len() <= TENSOR_NAME_BYTES_MAX;
    length_fits && !name.contains(['/', '\\', '\0']) && name != "." && name != ".."
}

/// Computes the SHA-256 of bytes that come in pieces.
#[derive(Default)]
pub struct DigestBuilder(sha2::Sha256);

impl DigestBuilder {
    /// Takes the next piece.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// The digest of all pieces.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, bytes: &[u8]) -> BundleFile {
        BundleFile { name: name.to_owned(), bytes: bytes.len() as u64, digest: Digest::of(bytes) }
    }

    #[test]
    fn the_digest_does_not_depend_on_the_order_and_is_pinned() {
        let (model, manifest) = (file(MODEL_FILE, b"graph"), file(MANIFEST_FILE, b""));
        let list = FileList::new(vec![manifest.clone(), model.clone()]).unwrap();
        assert_eq!(list, FileList::new(vec![model, manifest]).unwrap());
        expect_test::expect!["16b32148bb8ab62837f032abfeee9bea9f878e801a1ebe8b60a6c3a0fc5a0895"]
            .assert_eq(&list.digest().to_string());
    }

    #[test]
    fn what_is_no_bundle_is_refused() {
        let model = || file(MODEL_FILE, b"x");
        assert_eq!(FileList::new(vec![]), Err(BundleError::NoModel));
        for name in ["", ".", "..", "a/b", "a\\b", "a\0"] {
            let files = vec![model(), file(name, b"")];
            assert!(matches!(FileList::new(files), Err(BundleError::FileName(_))), "{name:?}");
        }
        assert!(matches!(FileList::new(vec![model(), model()]), Err(BundleError::Duplicate(_))));
        let huge = BundleFile { bytes: u64::MAX, ..file("a", b"") };
        assert_eq!(FileList::new(vec![model(), huge.clone()]), Err(BundleError::TooLarge));
        let too_large = BundleFile { bytes: BUNDLE_BYTES_MAX + 1, ..huge };
        assert_eq!(FileList::new(vec![model(), too_large]), Err(BundleError::TooLarge));
    }
}
