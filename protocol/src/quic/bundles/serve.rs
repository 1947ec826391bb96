//! Giving and taking files: the answers of a node that has a store.

use bytes::Bytes;
use quinn::{RecvStream, SendStream};

use super::{PAUSE_MAX, TransferError};
use crate::bundle::{BundleFile, DigestBuilder};
use crate::error::{ControlError, reason};
use crate::frame::Kind;
use crate::ids::Digest;
use crate::limits::CHUNK_BYTES_MAX;
use crate::messages::control::{BundleRequest, BundleResponse};
use crate::quic::stream::{
    StreamError, expect_frame_within, finish, read_message, write_body_within, write_message,
};
use crate::store::{BundleStore, BundleStoreError};

/// Reads one request of a bundle connection and answers it; see [`answer`].
///
/// # Errors
/// As [`answer`].
pub async fn serve(
    store: &BundleStore,
    send: &mut SendStream,
    recv: &mut RecvStream,
    takes: impl Fn(&BundleFile) -> bool,
) -> Result<Vec<Digest>, StreamError> {
    let request = read_message(recv, Kind::BundleRequest).await?;
    answer(store, request, send, recv, takes).await
}

/// Answers a request of a bundle connection. `takes` says whether a file may be put here. Returns the bundles of which a
/// file was found to be damaged and removed, for whoever has to fetch it again.
///
/// # Errors
/// [`StreamError`] when the stream breaks; refusals are answered and are no error here.
pub async fn answer(
    store: &BundleStore,
    request: BundleRequest,
    send: &mut SendStream,
    recv: &mut RecvStream,
    takes: impl Fn(&BundleFile) -> bool,
) -> Result<Vec<Digest>, StreamError> {
    let answer = match request {
        BundleRequest::List { digest } => store.list(&digest).await.map(BundleResponse::Files),
        BundleRequest::Missing { files } => {
            let missing = store.missing(&files).await;
            missing.map(|files| BundleResponse::Missing(files.into_iter().map(|file| file.digest).collect()))
        }
        BundleRequest::Seal { files } => match files.files().iter().find(|file| !takes(file)) {
            None => store.seal(&files).await.map(|()| BundleResponse::Held),
            Some(file) => Ok(BundleResponse::Failed(not_reserved(file))),
        },
        BundleRequest::Put { file } if takes(&file) => match receive(store, recv, &file).await {
            Ok(()) => Ok(BundleResponse::Held),
            Err(TransferError::Store(error)) => Err(error),
            Err(TransferError::Stream(error)) => return Err(error),
            Err(error) => Ok(BundleResponse::Failed(ControlError::Malformed { what: reason(error) })),
        },
        BundleRequest::Put { file } => Ok(BundleResponse::Failed(not_reserved(&file))),
        BundleRequest::Get { file, offset } => return give(store, send, &file, offset).await,
    };
    respond(send, answer).await?;
    Ok(Vec::new())
}

fn not_reserved(file: &BundleFile) -> ControlError {
    ControlError::NotReserved { file: file.name.clone() }
}

async fn respond(
    send: &mut SendStream,
    answer: Result<BundleResponse, BundleStoreError>,
) -> Result<(), StreamError> {
    let answer = answer.unwrap_or_else(|error| BundleResponse::Failed(error.into_control()));
    write_message(send, Kind::BundleResponse, &answer).await?;
    finish(send);
    Ok(())
}

/// Gives a file from `offset` on. From its first byte it is hashed on the way: the last chunk leaves only when the whole has
/// its digest, and an error in its place otherwise.
async fn give(
    store: &BundleStore,
    send: &mut SendStream,
    file: &Digest,
    offset: u64,
) -> Result<Vec<Digest>, StreamError> {
    let size = match store.size(file).await {
        Ok(size) if offset <= size => size,
        // The asker has more of it than lies here: one of the two is damaged.
        Ok(_) => {
            respond(send, Err(BundleStoreError::Missing(*file))).await?;
            return Ok(discard_damaged(store, file).await);
        }
        Err(error) => {
            respond(send, Err(error)).await?;
            return Ok(Vec::new());
        }
    };
    write_message(send, Kind::BundleResponse, &BundleResponse::Follows { bytes: size - offset }).await?;
    let mut digest = (offset == 0).then(DigestBuilder::default);
    let mut start = offset;
    loop {
        let end = (start + CHUNK_BYTES_MAX).min(size);
        // A store that fails half-way resets the stream; the fetcher resumes at another holder.
        let chunk = if start < end { store.chunk(file, start, end).await } else { Ok(Bytes::new()) };
        let chunk = chunk.map_err(|error| StreamError::Broken(error.to_string()))?;
        if let Some(digest) = &mut digest {
            digest.update(&chunk);
        }
        if end == size
            && let Some(actual) = digest.take().map(DigestBuilder::finish).filter(|actual| actual != file)
            && !crate::KnownBug::SkipDigestCheck.is_in()
        {
            let (name, expected) = ("a file that is held here".to_owned(), *file);
            respond(send, Err(BundleStoreError::DigestMismatch { file: name, expected, actual })).await?;
            return Ok(discard_damaged(store, file).await);
        }
        if !chunk.is_empty() {
            write_body_within(send, Kind::BundleChunk, chunk, PAUSE_MAX).await?;
        }
        if end == size {
            finish(send);
            return Ok(Vec::new());
        }
        start = end;
    }
}

/// Another request may have found the damage too, and what it removed may be here again by now: the file is hashed once
/// more before it goes.
async fn discard_damaged(store: &BundleStore, file: &Digest) -> Vec<Digest> {
    match store.discard_damaged(file).await {
        Ok(bundles) => {
            tracing::warn!(%file, bundles = bundles.len(), "a file that is held here was found to be damaged");
            bundles
        }
        Err(error) => {
            tracing::warn!(%file, %error, "a file that may be damaged was not removed");
            Vec::new()
        }
    }
}

async fn receive(store: &BundleStore, recv: &mut RecvStream, file: &BundleFile) -> Result<(), TransferError> {
    let mut writer = store.write(file);
    while writer.written() < file.bytes {
        let chunk = match expect_frame_within(recv, Kind::BundleChunk, PAUSE_MAX).await {
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
