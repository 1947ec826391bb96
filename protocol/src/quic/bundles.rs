//! Stores of bundles, and their transfer between nodes.
//!
//! A store is content-addressed: `blobs/SHA256` holds a file's bytes, `bundles/SHA256` the list of a whole bundle's files.
//! A blob appears under its name only after its digest was checked and, where the store can promise it, its bytes are
//! durable; a list only after all its blobs. So whatever a store lists is whole, and bytes are hashed again when they are
//! loaded. Transfers are chunked and resume at the byte where they broke, at any other holder.

use std::sync::Arc;

use bytes::Bytes;
use object_store::path::Path;
use object_store::{GetOptions, GetRange, MultipartUpload, ObjectStore, ObjectStoreExt, PutPayload};
use quinn::{RecvStream, SendStream};

use super::endpoint::Links;
use super::stream::{StreamError, expect_frame, finish, read_frame, read_message, write_body, write_message};
use crate::bundle::{BundleFile, DigestBuilder, FileList};
use crate::error::{ControlError, reason};
use crate::frame::Kind;
use crate::ids::Digest;
use crate::limits::{BUNDLE_FILES_MAX, CHUNK_BYTES_MAX};
use crate::messages::control::{BundleRequest, BundleResponse};

/// What is gathered before it is handed to the store: S3 takes no smaller parts of an upload.
const PART_BYTES_MIN: usize = 5 << 20;

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
            Self::Store(_) | Self::DamagedList { .. } => ControlError::Storage { reason: reason(self) },
        }
    }
}

/// Bundles in an object store.
#[derive(Debug, Clone)]
pub struct BundleStore {
    store: Arc<dyn ObjectStore>,
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

    /// Whether a bundle is held whole.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails.
    pub async fn holds(&self, digest: &Digest) -> Result<bool, BundleStoreError> {
        self.exists(&list_path(digest)).await
    }

    /// The files of `list` that are not held.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails.
    pub async fn missing(&self, list: &FileList) -> Result<Vec<BundleFile>, BundleStoreError> {
        let mut missing = Vec::new();
        for file in list.files() {
            if !self.exists(&blob_path(&file.digest)).await? {
                missing.push(file.clone());
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
        self.store.put(&list_path(&list.digest()), PutPayload::from(bytes)).await?;
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
        if actual != file.digest {
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

    /// Removes a file whose bytes were found to be damaged, so that it is fetched again.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails.
    pub async fn discard(&self, file: &BundleFile) -> Result<(), BundleStoreError> {
        match self.store.delete(&blob_path(&file.digest)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
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
        self.store.delete(&list_path(digest)).await?;
        for file in list.files().iter().filter(|file| !keeps(&file.digest)) {
            match self.store.delete(&blob_path(&file.digest)).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                Err(error) => return Err(error.into()),
            }
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
        let listed = self.store.list_with_delimiter(Some(&Path::from(folder))).await?;
        let mut removed = 0;
        for meta in listed.objects {
            let digest = meta.location.filename().and_then(|name| name.parse().ok());
            if digest.is_none_or(|digest| keeps(&digest)) {
                continue;
            }
            match self.store.delete(&meta.location).await {
                Ok(()) | Err(object_store::Error::NotFound { .. }) => removed += 1,
                Err(error) => return Err(error.into()),
            }
        }
        Ok(removed)
    }

    /// The bundles that are held whole, in order of their digests.
    ///
    /// # Errors
    /// [`BundleStoreError::Store`] when the store fails.
    pub async fn held(&self) -> Result<Vec<Digest>, BundleStoreError> {
        let listed = self.store.list_with_delimiter(Some(&Path::from("bundles"))).await?;
        let digest = |path: &Path| path.filename().and_then(|name| name.parse().ok());
        let mut digests: Vec<Digest> =
            listed.objects.iter().filter_map(|meta| digest(&meta.location)).collect();
        digests.sort_unstable();
        Ok(digests)
    }

    async fn exists(&self, path: &Path) -> Result<bool, BundleStoreError> {
        match self.store.head(path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    async fn get(
        &self,
        path: &Path,
        digest: &Digest,
        options: GetOptions,
    ) -> Result<Bytes, BundleStoreError> {
        match self.store.get_opts(path, options).await {
            Ok(result) => Ok(result.bytes().await?),
            Err(object_store::Error::NotFound { .. }) => Err(BundleStoreError::Missing(*digest)),
            Err(error) => Err(error.into()),
        }
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
    gathered_bytes: usize,
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
        self.gathered_bytes += bytes.len();
        self.gathered.push(bytes);
        if self.gathered_bytes >= PART_BYTES_MIN {
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
        if actual != self.file.digest {
            self.abort().await;
            let (file, expected) = (self.file.name, self.file.digest);
            return Err(BundleStoreError::DigestMismatch { file, expected, actual });
        }
        if self.upload.is_some() {
            self.flush().await?;
        }
        match self.upload {
            Some(mut upload) => {
                upload.complete().await?;
            }
            None => {
                let payload = PutPayload::from_iter(self.gathered);
                self.store.put(&blob_path(&self.file.digest), payload).await?;
            }
        }
        Ok(())
    }

    /// Gives up what was taken.
    pub async fn abort(&mut self) {
        self.gathered.clear();
        if let Some(mut upload) = self.upload.take() {
            // What cannot be removed stays under a temporary name and is never listed.
            let _ = upload.abort().await;
        }
    }

    async fn flush(&mut self) -> Result<(), BundleStoreError> {
        let upload = match &mut self.upload {
            Some(upload) => upload,
            None => self.upload.insert(self.store.put_multipart(&blob_path(&self.file.digest)).await?),
        };
        let part = PutPayload::from_iter(std::mem::take(&mut self.gathered));
        self.gathered_bytes = 0;
        if part.content_length() > 0 {
            upload.put_part(part).await?;
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

/// Why a transfer ended without the bundle.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// This side's store failed, or what came was not what was announced.
    #[error(transparent)]
    Store(#[from] BundleStoreError),
    /// The connection broke, or what came was no message.
    #[error(transparent)]
    Stream(#[from] StreamError),
    /// The other side refused.
    #[error(transparent)]
    Refused(#[from] ControlError),
    /// The answer was of another kind than the request asks for.
    #[error("the other side answered something else than was asked")]
    WrongAnswer,
    /// No holder could give the bundle.
    #[error("no holder could give bundle {digest}: {}", reasons.join("; "))]
    NoHolder {
        /// The bundle.
        digest: Digest,
        /// What each said.
        reasons: Vec<String>,
    },
    /// Holders gave bytes that are not the bundle's, and none gave the right ones.
    #[error("all that holders gave of bundle {digest} is damaged: {}", reasons.join("; "))]
    Damaged {
        /// The bundle.
        digest: Digest,
        /// What each gave or said.
        reasons: Vec<String>,
    },
}

/// Answers one request of a bundle connection. `takes` says whether a file of that digest may be put here.
///
/// # Errors
/// [`StreamError`] when the stream breaks; refusals are answered and are no error here.
pub async fn serve(
    store: &BundleStore,
    send: &mut SendStream,
    recv: &mut RecvStream,
    takes: impl Fn(&Digest) -> bool,
) -> Result<(), StreamError> {
    let request: BundleRequest = read_message(recv, Kind::BundleRequest).await?;
    let answer = match request {
        BundleRequest::List { digest } => store.list(&digest).await.map(BundleResponse::Files),
        BundleRequest::Missing { files } => {
            let missing = store.missing(&files).await;
            missing.map(|files| BundleResponse::Missing(files.into_iter().map(|file| file.digest).collect()))
        }
        BundleRequest::Seal { files } if files.files().iter().all(|file| takes(&file.digest)) => {
            store.seal(&files).await.map(|()| BundleResponse::Held)
        }
        BundleRequest::Put { file } if takes(&file.digest) => match receive(store, recv, &file).await {
            Ok(()) => Ok(BundleResponse::Held),
            Err(TransferError::Store(error)) => Err(error),
            Err(TransferError::Stream(error)) => return Err(error),
            Err(error) => Ok(BundleResponse::Failed(ControlError::Malformed { what: reason(error) })),
        },
        BundleRequest::Seal { .. } | BundleRequest::Put { .. } => {
            let what = "a file that nobody announced; reserve the push first".to_owned();
            Ok(BundleResponse::Failed(ControlError::Malformed { what }))
        }
        BundleRequest::Get { file, offset } => return serve_get(store, send, &file, offset).await,
    };
    let answer = answer.unwrap_or_else(|error| BundleResponse::Failed(error.into_control()));
    write_message(send, Kind::BundleResponse, &answer).await?;
    finish(send);
    Ok(())
}

async fn serve_get(
    store: &BundleStore,
    send: &mut SendStream,
    file: &Digest,
    offset: u64,
) -> Result<(), StreamError> {
    let path = blob_path(file);
    let size = match store.store.head(&path).await {
        Ok(meta) => meta.size,
        Err(object_store::Error::NotFound { .. }) => {
            let error = BundleStoreError::Missing(*file).into_control();
            write_message(send, Kind::BundleResponse, &BundleResponse::Failed(error)).await?;
            finish(send);
            return Ok(());
        }
        Err(error) => {
            let error = BundleStoreError::Store(error).into_control();
            write_message(send, Kind::BundleResponse, &BundleResponse::Failed(error)).await?;
            finish(send);
            return Ok(());
        }
    };
    let bytes = size.saturating_sub(offset);
    write_message(send, Kind::BundleResponse, &BundleResponse::Follows { bytes }).await?;
    let mut start = offset;
    while start < size {
        let end = (start + CHUNK_BYTES_MAX).min(size);
        let options = GetOptions { range: Some(GetRange::Bounded(start..end)), ..GetOptions::default() };
        // A store that fails half-way resets the stream; the fetcher resumes at another holder.
        let chunk = store.get(&path, file, options).await.map_err(|e| StreamError::Broken(e.to_string()))?;
        write_body(send, Kind::BundleChunk, chunk).await?;
        start = end;
    }
    finish(send);
    Ok(())
}

async fn receive(store: &BundleStore, recv: &mut RecvStream, file: &BundleFile) -> Result<(), TransferError> {
    let mut writer = store.write(file);
    while writer.written() < file.bytes {
        let chunk = match expect_frame(recv, Kind::BundleChunk).await {
            Ok(frame) => frame.body_bytes(),
            Err(error) => {
                writer.abort().await;
                return Err(error.into());
            }
        };
        if let Err(error) = writer.write(chunk).await {
            writer.abort().await;
            return Err(error.into());
        }
    }
    Ok(writer.finish().await?)
}

async fn ask(links: &Links, address: &str, request: &BundleRequest) -> Result<BundleResponse, TransferError> {
    let link = links.to(address).await.map_err(|error| error.into_control(address))?;
    match link.ask((Kind::BundleRequest, request), Kind::BundleResponse).await? {
        BundleResponse::Failed(error) => Err(error.into()),
        answer @ (BundleResponse::Files(_)
        | BundleResponse::Follows { .. }
        | BundleResponse::Missing(_)
        | BundleResponse::Held) => Ok(answer),
    }
}

/// Uploads the files of a bundle that the node at `address` does not hold, and seals it there. `read` gives a file's bytes
/// from an offset, at most a chunk; `progress` hears of each chunk sent.
///
/// # Errors
/// [`TransferError`] when the connection breaks or the other side refuses.
pub async fn upload<R>(
    links: &Links,
    address: &str,
    list: &FileList,
    mut read: R,
    mut progress: impl FnMut(u64),
) -> Result<(), TransferError>
where
    R: AsyncFnMut(&BundleFile, u64, u64) -> std::io::Result<Bytes>,
{
    let missing = match ask(links, address, &BundleRequest::Missing { files: list.clone() }).await? {
        BundleResponse::Missing(missing) => missing,
        _ => return Err(TransferError::WrongAnswer),
    };
    for file in list.files().iter().filter(|file| missing.contains(&file.digest)) {
        let link = links.to(address).await.map_err(|error| error.into_control(address))?;
        let (mut send, mut recv) = link.open().await?;
        write_message(&mut send, Kind::BundleRequest, &BundleRequest::Put { file: file.clone() }).await?;
        let mut offset = 0;
        while offset < file.bytes {
            let chunk = read(file, offset, CHUNK_BYTES_MAX.min(file.bytes - offset)).await;
            let chunk = chunk.map_err(|error| ControlError::Storage { reason: reason(error) })?;
            if chunk.is_empty() {
                let what = format!("{} became shorter while it was read", file.name);
                return Err(ControlError::Storage { reason: what }.into());
            }
            offset += chunk.len() as u64;
            progress(chunk.len() as u64);
            if let Err(broken) = write_body(&mut send, Kind::BundleChunk, chunk).await {
                // A side that refuses the file stops taking its bytes; the answer says why.
                return match read_message(&mut recv, Kind::BundleResponse).await {
                    Ok(BundleResponse::Failed(refusal)) => Err(refusal.into()),
                    Ok(_) | Err(_) => Err(broken.into()),
                };
            }
        }
        finish(&mut send);
        match read_message(&mut recv, Kind::BundleResponse).await? {
            BundleResponse::Held => {}
            BundleResponse::Failed(error) => return Err(error.into()),
            _ => return Err(TransferError::WrongAnswer),
        }
    }
    match ask(links, address, &BundleRequest::Seal { files: list.clone() }).await? {
        BundleResponse::Held => Ok(()),
        _ => Err(TransferError::WrongAnswer),
    }
}

/// Fetches a bundle into `store` from any of `holders`, resuming each file at the byte where the last holder broke off.
/// `progress` hears how many bytes of the bundle are here, and of how many.
///
/// # Errors
/// [`TransferError::NoHolder`] when none could give it, with what each said; [`TransferError::Damaged`] when what they gave
/// does not have the digest; [`TransferError::Store`] when this side's store fails.
pub async fn fetch(
    store: &BundleStore,
    links: &Links,
    holders: &[String],
    digest: &Digest,
    mut progress: impl FnMut(u64, u64),
) -> Result<FileList, TransferError> {
    let mut reasons = Vec::new();
    let list = fetch_list(links, holders, digest, &mut reasons).await?;
    let missing = store.missing(&list).await?;
    let mut here = list.bytes() - missing.iter().map(|file| file.bytes).sum::<u64>();
    progress(here, list.bytes());
    for file in &missing {
        fetch_file(store, links, holders, digest, file, |written| progress(here + written, list.bytes()))
            .await?;
        here += file.bytes;
    }
    store.seal(&list).await?;
    Ok(list)
}

async fn fetch_list(
    links: &Links,
    holders: &[String],
    digest: &Digest,
    reasons: &mut Vec<String>,
) -> Result<FileList, TransferError> {
    for holder in holders {
        match ask(links, holder, &BundleRequest::List { digest: *digest }).await {
            Ok(BundleResponse::Files(list)) if list.digest() == *digest => {
                debug_assert!(list.files().len() <= BUNDLE_FILES_MAX);
                return Ok(list);
            }
            Ok(_) => reasons.push(format!("{holder}: the list is of another bundle")),
            Err(error) => reasons.push(format!("{holder}: {error}")),
        }
    }
    Err(TransferError::NoHolder { digest: *digest, reasons: std::mem::take(reasons) })
}

async fn fetch_file(
    store: &BundleStore,
    links: &Links,
    holders: &[String],
    digest: &Digest,
    file: &BundleFile,
    mut progress: impl FnMut(u64),
) -> Result<(), TransferError> {
    let mut reasons = Vec::new();
    let mut damaged = false;
    let mut writer = store.write(file);
    for holder in holders {
        // What an earlier holder gave before it broke off may be what is damaged: this one is asked for all of it then.
        let mut resumed = writer.written() > 0;
        loop {
            let written = match fetch_from(&mut writer, links, holder, file, &mut progress).await {
                Ok(()) => writer.finish().await,
                Err(TransferError::Store(error)) => {
                    writer.abort().await;
                    Err(error)
                }
                Err(error) => {
                    reasons.push(format!("{holder}: {error}"));
                    break;
                }
            };
            match written {
                Ok(()) => return Ok(()),
                Err(error @ (BundleStoreError::DigestMismatch { .. } | BundleStoreError::Size { .. })) => {
                    tracing::warn!(holder, %error, "a holder gave damaged bytes");
                    reasons.push(format!("{holder}: {error}"));
                    damaged = true;
                    writer = store.write(file);
                    if !std::mem::take(&mut resumed) {
                        break;
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    writer.abort().await;
    let digest = *digest;
    Err(if damaged {
        TransferError::Damaged { digest, reasons }
    } else {
        TransferError::NoHolder { digest, reasons }
    })
}

async fn fetch_from(
    writer: &mut BlobWriter,
    links: &Links,
    holder: &str,
    file: &BundleFile,
    progress: &mut impl FnMut(u64),
) -> Result<(), TransferError> {
    let link = links.to(holder).await.map_err(|error| error.into_control(holder))?;
    let (mut send, mut recv) = link.open().await?;
    let request = BundleRequest::Get { file: file.digest, offset: writer.written() };
    write_message(&mut send, Kind::BundleRequest, &request).await?;
    finish(&mut send);
    match read_message(&mut recv, Kind::BundleResponse).await? {
        BundleResponse::Follows { .. } => {}
        BundleResponse::Failed(error) => return Err(error.into()),
        _ => return Err(TransferError::WrongAnswer),
    }
    while let Some(frame) = read_frame(&mut recv).await? {
        writer.write(frame.expect(Kind::BundleChunk).map_err(StreamError::from)?.body_bytes()).await?;
        progress(writer.written());
    }
    if writer.written() < file.bytes {
        return Err(StreamError::Ended.into());
    }
    Ok(())
}
