//! Stores of bundles, over whatever `object_store` offers: a local folder, S3, memory.
//!
//! A store is content-addressed: `blobs/SHA256` holds a file's bytes, `bundles/SHA256` the list of a whole bundle's files.
//! A blob appears under its name only after its digest was checked and, where the store can promise it, its bytes are
//! durable; a list only after all its blobs. Disks forget and flip bits all the same: a list alone does not say that a
//! bundle is held ([`BundleStore::missing`] looks at its files), and bytes are hashed again whenever they are loaded or
//! given to others. How bundles travel is in [`crate::quic::bundles`].
//!
//! A store may hang as well as fail: an operation that takes longer than its bytes explain is given up
//! ([`BundleStoreError::Stalled`]), so that whoever waits can turn to another store.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};

use crate::bundle::{BundleFile, DigestBuilder, FileList};
use crate::error::{ControlError, reason};
use crate::ids::Digest;
use crate::limits::CHUNK_BYTES_MAX;

/// The least that is gathered before it is handed to the store: S3 takes no smaller parts of an upload.
const PART_BYTES_MIN: u64 = 5 << 20;
/// S3 takes no more parts of one upload, so that the parts of a large file are larger.
const PARTS_MAX: u64 = 10_000;

/// What an operation may take besides the time of its bytes: a disk that wakes up, a queue of fsyncs, a second attempt of a store
/// on the network.
const OPERATION: Duration = Duration::from_secs(60);
/// A slow disk, written to and synced.
const BYTES_PER_S_MIN: u64 = 4 << 20;

/// How long an operation on so many bytes may take.
fn patience(bytes: u64) -> Duration {
    OPERATION + Duration::from_millis(bytes / (BYTES_PER_S_MIN / 1000))
}

/// What is gathered of a file of so many bytes before it is handed to the store.
fn part_bytes(file_bytes: u64) -> u64 {
    file_bytes.div_ceil(PARTS_MAX).max(PART_BYTES_MIN)
}

/// Why a store did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum BundleStoreError {
    /// The store itself failed.
    #[error("the bundle store failed: {0}")]
    Store(#[from] object_store::Error),
    /// Bytes do not have the digest that they should have.
    #[error("{file} should have the digest {expected}, its bytes have {actual}")]
    DigestMismatch {
        /// The file.
        file: String,
        /// The digest that it should have.
        expected: Digest,
        /// The digest of its bytes.
        actual: Digest,
    },
    /// More or fewer bytes than announced.
    #[error("{file} should have {expected} bytes, {actual} came")]
    Size {
        /// The file.
        file: String,
        /// Bytes that were announced.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
    /// A list of files that cannot be read.
    #[error("the list of bundle {digest} is damaged: {reason}")]
    DamagedList {
        /// The bundle.
        digest: Digest,
        /// What reading it said.
        reason: String,
    },
    /// The store does not hold the bundle or one of its files.
    #[error("{0} is not held here")]
    Missing(Digest),
    /// The store neither did nor refused what was asked.
    #[error("the bundle store did not answer within {after:?}")]
    Stalled {
        /// How long that was.
        after: Duration,
    },
}

impl BundleStoreError {
    /// The error as the control plane says it.
    pub fn into_control(self) -> ControlError {
        match self {
            Self::DigestMismatch { file, expected, actual } => {
                let (expected, actual) = (expected.to_string(), actual.to_string());
                ControlError::DigestMismatch { file, expected, actual }
            }
            Self::Missing(digest) => ControlError::NoBundle { digest: digest.to_string() },
            Self::Size { .. } => ControlError::Malformed { what: reason(self) },
            Self::Store(_) | Self::DamagedList { .. } | Self::Stalled { .. } => {
                ControlError::Storage { reason: reason(self) }
            }
        }
    }
}

/// Bundles in an object store.
#[derive(Debug, Clone)]
pub struct BundleStore {
    store: Arc<dyn ObjectStore>,
}

/// Gives up on an operation on so many bytes that the store does not answer.
async fn answered<T>(
    bytes: u64,
    operation: impl Future<Output = object_store::Result<T>>,
) -> Result<T, BundleStoreError> {
    let after = patience(bytes);
    Ok(tokio::time::timeout(after, operation).await.map_err(|_| BundleStoreError::Stalled { after })??)
}

/// [`answered`], where what is not there is none.
async fn found<T>(
    operation: impl Future<Output = object_store::Result<T>>,
) -> Result<Option<T>, BundleStoreError> {
    match answered(0, operation).await {
        Ok(found) => Ok(Some(found)),
        Err(BundleStoreError::Store(object_store::Error::NotFound { .. })) => Ok(None),
        Err(error) => Err(error),
    }
}

fn blob_path(digest: &Digest) -> Path {
    Path::from(format!("blobs/{digest}"))
}

fn list_path(digest: &Digest) -> Path {
    Path::from(format!("bundles/{digest}"))
}

impl BundleStore {
    /// Bundles in `store`.
    pub fn new(store: Arc<dyn ObjectStore>) -> Self {
        Self { store }
    }

    /// The list of a bundle that is held whole.
    ///
    /// # Errors
    /// [`BundleStoreError::Missing`] when it is not, [`BundleStoreError::DamagedList`] when the list does not have the
    /// bundle's digest.
    pub async fn list(&self, digest: &Digest) -> Result<FileList, BundleStoreError> {
        let bytes = self.get(&list_path(digest), digest, GetOptions::default()).await?;
        let damaged = |reason: String| BundleStoreError::DamagedList { digest: *digest, reason };
        let list: FileList = postcard::from_bytes(&bytes).map_err(|error| damaged(error.to_string()))?;
        if list.digest() != *digest {
            return Err(damaged(format!("it lists bundle {}", list.digest())));
        }
        Ok(list)
    }

    /// Whether a bundle is held whole: its list can be read, and its files are there.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails.
    pub async fn holds(&self, digest: &Digest) -> Result<bool, BundleStoreError> {
        match self.list(digest).await {
            Ok(list) => Ok(self.missing(&list).await?.is_empty()),
            Err(BundleStoreError::Missing(_) | BundleStoreError::DamagedList { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The files of `list` that are not held, or not in their size.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails.
    pub async fn missing(&self, list: &FileList) -> Result<Vec<BundleFile>, BundleStoreError> {
        let mut missing = Vec::new();
        for file in list.files() {
            match self.size(&file.digest).await {
                Ok(bytes) if bytes == file.bytes => {}
                Ok(_) | Err(BundleStoreError::Missing(_)) => missing.push(file.clone()),
                Err(error) => return Err(error),
            }
        }
        Ok(missing)
    }

    /// Records that all files of `list` are held. Durable when it returns.
    ///
    /// # Errors
    /// [`BundleStoreError::Missing`] when one is not.
    pub async fn seal(&self, list: &FileList) -> Result<(), BundleStoreError> {
        if let Some(file) = self.missing(list).await?.first() {
            return Err(BundleStoreError::Missing(file.digest));
        }
        let bytes = postcard::to_stdvec(list)
            .map_err(|e| BundleStoreError::DamagedList { digest: list.digest(), reason: e.to_string() })?;
        let (path, length) = (list_path(&list.digest()), bytes.len() as u64);
        answered(length, self.store.put(&path, PutPayload::from(bytes))).await?;
        Ok(())
    }

    /// Starts to take a file.
    pub fn write(&self, file: &BundleFile) -> BlobWriter {
        BlobWriter {
            store: self.store.clone(),
            file: file.clone(),
            digest: DigestBuilder::default(),
            gathered: Vec::new(),
            gathered_bytes: 0,
            part_bytes: part_bytes(file.bytes),
            written: 0,
            upload: None,
        }
    }

    /// A file's bytes, whose digest was checked just now. A file that fails the check is removed, so that it is fetched
    /// again.
    ///
    /// # Errors
    /// [`BundleStoreError::Missing`] or [`BundleStoreError::DigestMismatch`].
    pub async fn read(&self, file: &BundleFile) -> Result<Bytes, BundleStoreError> {
        let bytes = self.read_unchecked(file).await?;
        let actual = Digest::of(&bytes);
        if actual != file.digest && !crate::KnownBug::SkipDigestCheck.is_in() {
            self.discard(file).await?;
            return Err(BundleStoreError::DigestMismatch {
                file: file.name.clone(),
                expected: file.digest,
                actual,
            });
        }
        Ok(bytes)
    }

    /// A file's bytes as they lie there, for a caller that checks their digest elsewhere than on this task.
    ///
    /// # Errors
    /// [`BundleStoreError::Missing`] when the file is not held.
    pub async fn read_unchecked(&self, file: &BundleFile) -> Result<Bytes, BundleStoreError> {
        self.get(&blob_path(&file.digest), &file.digest, GetOptions::default()).await
    }

    /// Removes a file whose bytes were found to be damaged and the lists of the bundles that it belongs to, so that they are
    /// fetched again. Returns those bundles.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails.
    pub async fn discard(&self, file: &BundleFile) -> Result<Vec<Digest>, BundleStoreError> {
        self.discard_blob(&file.digest).await
    }

    /// Hashes a file and discards it if its bytes are damaged. Returns the bundles that it belonged to; none when it is
    /// sound or not there.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails.
    pub async fn discard_damaged(&self, file: &Digest) -> Result<Vec<Digest>, BundleStoreError> {
        let size = match self.size(file).await {
            Ok(size) => size,
            Err(BundleStoreError::Missing(_)) => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let (mut digest, mut start) = (DigestBuilder::default(), 0);
        while start < size {
            let end = (start + CHUNK_BYTES_MAX).min(size);
            digest.update(&self.chunk(file, start, end).await?);
            start = end;
        }
        if digest.finish() == *file { Ok(Vec::new()) } else { self.discard_blob(file).await }
    }

    /// The file goes ahead of the lists: if this is interrupted, a list whose file is missing is noticed, and a file that is
    /// damaged would be listed again.
    async fn discard_blob(&self, file: &Digest) -> Result<Vec<Digest>, BundleStoreError> {
        self.delete(&blob_path(file)).await?;
        let mut bundles = Vec::new();
        for bundle in self.held().await? {
            let lists_it = match self.list(&bundle).await {
                Ok(list) => list.files().iter().any(|listed| listed.digest == *file),
                Err(BundleStoreError::Missing(_) | BundleStoreError::DamagedList { .. }) => false,
                Err(error) => return Err(error),
            };
            if lists_it {
                self.delete(&list_path(&bundle)).await?;
                bundles.push(bundle);
            }
        }
        Ok(bundles)
    }

    /// Removes a bundle: its list, then the files that `keeps` does not want kept for others.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails.
    pub async fn remove(
        &self,
        digest: &Digest,
        keeps: impl Fn(&Digest) -> bool,
    ) -> Result<(), BundleStoreError> {
        let list = match self.list(digest).await {
            Ok(list) => list,
            Err(BundleStoreError::Missing(_)) => return Ok(()),
            Err(error) => return Err(error),
        };
        answered(0, self.store.delete(&list_path(digest))).await?;
        for file in list.files().iter().filter(|file| !keeps(&file.digest)) {
            self.delete(&blob_path(&file.digest)).await?;
        }
        Ok(())
    }

    /// Removes the lists of bundles and then the files that are not to be kept. Nothing may be added meanwhile.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails; what was removed by then is gone.
    pub async fn sweep(
        &self,
        keeps_bundle: impl Fn(&Digest) -> bool,
        keeps_file: impl Fn(&Digest) -> bool,
    ) -> Result<Swept, BundleStoreError> {
        let bundles = self.sweep_folder("bundles", keeps_bundle).await?;
        let files = self.sweep_folder("blobs", keeps_file).await?;
        Ok(Swept { bundles, files })
    }

    async fn sweep_folder(
        &self,
        folder: &str,
        keeps: impl Fn(&Digest) -> bool,
    ) -> Result<usize, BundleStoreError> {
        let listed = answered(0, self.store.list_with_delimiter(Some(&Path::from(folder)))).await?;
        let mut removed = 0;
        for meta in listed.objects {
            let digest = meta.location.filename().and_then(|name| name.parse().ok());
            if digest.is_none_or(|digest| keeps(&digest)) {
                continue;
            }
            self.delete(&meta.location).await?;
            removed += 1;
        }
        Ok(removed)
    }

    /// The bundles that are listed, in order of their digests.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails.
    pub async fn held(&self) -> Result<Vec<Digest>, BundleStoreError> {
        let listed = answered(0, self.store.list_with_delimiter(Some(&Path::from("bundles")))).await?;
        let digest = |path: &Path| path.filename().and_then(|name| name.parse().ok());
        let mut digests: Vec<Digest> =
            listed.objects.iter().filter_map(|meta| digest(&meta.location)).collect();
        digests.sort_unstable();
        Ok(digests)
    }

    /// The size of a file.
    pub(crate) async fn size(&self, file: &Digest) -> Result<u64, BundleStoreError> {
        let meta = found(self.store.head(&blob_path(file))).await?;
        Ok(meta.ok_or(BundleStoreError::Missing(*file))?.size)
    }

    /// The bytes of a file from `start` to `end`, as they lie there.
    pub(crate) async fn chunk(&self, file: &Digest, start: u64, end: u64) -> Result<Bytes, BundleStoreError> {
        let options = GetOptions { range: Some(GetRange::Bounded(start..end)), ..GetOptions::default() };
        self.get(&blob_path(file), file, options).await
    }

    async fn delete(&self, path: &Path) -> Result<(), BundleStoreError> {
        found(self.store.delete(path)).await.map(|_| ())
    }

    async fn get(
        &self,
        path: &Path,
        digest: &Digest,
        options: GetOptions,
    ) -> Result<Bytes, BundleStoreError> {
        let result = found(self.store.get_opts(path, options)).await?;
        let result = result.ok_or(BundleStoreError::Missing(*digest))?;
        answered(result.range.end - result.range.start, result.bytes()).await
    }
}

/// What [`BundleStore::sweep`] removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Swept {
    /// Lists of bundles.
    pub bundles: usize,
    /// Files.
    pub files: usize,
}

/// Takes the bytes of one file. Nothing appears in the store unless [`BlobWriter::finish`] succeeds.
pub struct BlobWriter {
    store: Arc<dyn ObjectStore>,
    file: BundleFile,
    digest: DigestBuilder,
    gathered: Vec<Bytes>,
    gathered_bytes: u64,
    part_bytes: u64,
    written: u64,
    upload: Option<Box<dyn MultipartUpload>>,
}

impl BlobWriter {
    /// Bytes taken so far; where a transfer that broke resumes.
    pub fn written(&self) -> u64 {
        self.written
    }

    /// Takes the next bytes.
    ///
    /// # Errors
    /// [`BundleStoreError::Size`] when more come than announced, [`BundleStoreError::Store`] when the store fails.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), BundleStoreError> {
        self.written += bytes.len() as u64;
        if self.written > self.file.bytes {
            return Err(self.wrong_size());
        }
        self.digest.update(&bytes);
        self.gathered_bytes += bytes.len() as u64;
        self.gathered.push(bytes);
        if self.gathered_bytes >= self.part_bytes {
            self.flush().await?;
        }
        Ok(())
    }

    /// Checks size and digest and makes the file appear. Durable when it returns, where the store can promise it.
    ///
    /// # Errors
    /// [`BundleStoreError::Size`] or [`BundleStoreError::DigestMismatch`] when it is not the file that was announced.
    pub async fn finish(mut self) -> Result<(), BundleStoreError> {
        if self.written != self.file.bytes {
            let error = self.wrong_size();
            self.abort().await;
            return Err(error);
        }
        let actual = std::mem::take(&mut self.digest).finish();
        if actual != self.file.digest && !crate::KnownBug::SkipDigestCheck.is_in() {
            self.abort().await;
            let (file, expected) = (self.file.name, self.file.digest);
            return Err(BundleStoreError::DigestMismatch { file, expected, actual });
        }
        if self.upload.is_some() {
            self.flush().await?;
        }
        match self.upload {
            Some(mut upload) => {
                // Its bytes may be synced only now.
                answered(self.written, upload.complete()).await?;
            }
            None => {
                let payload = PutPayload::from_iter(self.gathered);
                let path = blob_path(&self.file.digest);
                answered(self.written, self.store.put(&path, payload)).await?;
            }
        }
        Ok(())
    }

    /// Gives up what was taken.
    pub async fn abort(&mut self) {
        self.gathered.clear();
        if let Some(mut upload) = self.upload.take() {
            // What cannot be removed stays under a temporary name and is never listed.
            let _ = answered(0, upload.abort()).await;
        }
    }

    async fn flush(&mut self) -> Result<(), BundleStoreError> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => {
                let path = blob_path(&self.file.digest);
                self.upload.insert(answered(0, self.store.put_multipart(&path)).await?)
            }
        };
        let part = PutPayload::from_iter(std::mem::take(&mut self.gathered));
        self.gathered_bytes = 0;
        let bytes = part.content_length() as u64;
        if bytes > 0 {
            answered(bytes, upload.put_part(part)).await?;
        }
        Ok(())
    }

    fn wrong_size(&self) -> BundleStoreError {
        BundleStoreError::Size {
            file: self.file.name.clone(),
            expected: self.file.bytes,
            actual: self.written,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::pending;

    use futures::StreamExt;
    use futures::stream::{self, BoxStream};
    use object_store::{
        CopyOptions, GetResult, ListResult, ObjectMeta, PutMultipartOptions, PutOptions, PutResult,
    };

    use super::*;
    use crate::limits::BUNDLE_BYTES_MAX;

    /// A store of which nothing comes back.
    #[derive(Debug)]
    struct Hangs;

    impl std::fmt::Display for Hangs {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("a store that hangs")
        }
    }

    #[async_trait::async_trait]
    impl ObjectStore for Hangs {
        async fn put_opts(&self, _: &Path, _: PutPayload, _: PutOptions) -> object_store::Result<PutResult> {
            pending().await
        }
        async fn put_multipart_opts(
            &self,
            _: &Path,
            _: PutMultipartOptions,
        ) -> object_store::Result<Box<dyn MultipartUpload>> {
            pending().await
        }
        async fn get_opts(&self, _: &Path, _: GetOptions) -> object_store::Result<GetResult> {
            pending().await
        }
        fn delete_stream(
            &self,
            _: BoxStream<'static, object_store::Result<Path>>,
        ) -> BoxStream<'static, object_store::Result<Path>> {
            stream::pending().boxed()
        }
        fn list(&self, _: Option<&Path>) -> BoxStream<'static, object_store::Result<ObjectMeta>> {
            stream::pending().boxed()
        }
        async fn list_with_delimiter(&self, _: Option<&Path>) -> object_store::Result<ListResult> {
            pending().await
        }
        async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> object_store::Result<()> {
            pending().await
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_hangs_is_named() {
        let store = BundleStore::new(Arc::new(Hangs));
        let bytes = 3 * PART_BYTES_MIN;
        let file = BundleFile { name: "model.onnx".to_owned(), bytes, digest: Digest::of(b"") };
        let list = FileList::new(vec![file.clone()]).unwrap();
        let whole = || async {
            let mut writer = store.write(&file);
            writer.write(Bytes::from(vec![0; bytes as usize])).await?;
            writer.finish().await
        };
        let digest = list.digest();
        let results = [
            store.holds(&digest).await.map(|_| ()),
            store.missing(&list).await.map(|_| ()),
            store.seal(&list).await,
            store.read(&file).await.map(|_| ()),
            store.discard(&file).await.map(|_| ()),
            store.remove(&digest, |_| false).await,
            store.sweep(|_| false, |_| false).await.map(|_| ()),
            store.held().await.map(|_| ()),
            whole().await,
        ];
        for result in results {
            assert!(matches!(result, Err(BundleStoreError::Stalled { .. })), "{result:?}");
        }
    }

    #[test]
    fn the_parts_of_every_file_are_few_and_large_enough() {
        for bytes in [0, 1, PART_BYTES_MIN, PART_BYTES_MIN * PARTS_MAX + 1, BUNDLE_BYTES_MAX] {
            let part = part_bytes(bytes);
            assert!(part >= PART_BYTES_MIN && bytes.div_ceil(part) <= PARTS_MAX, "{bytes} bytes: {part}");
        }
    }
}
