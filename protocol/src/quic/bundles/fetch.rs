//! Fetching a bundle from whoever holds it.

use std::time::Duration;

use super::{PAUSE_MAX, TransferError, accepted, begin};
use crate::bundle::{BundleFile, FileList};
use crate::frame::Kind;
use crate::ids::Digest;
use crate::messages::control::{BundleRequest, BundleResponse};
use crate::quic::links::Links;
use crate::quic::stream::{StreamError, read_frame_within};
use crate::store::{BlobWriter, BundleStore, BundleStoreError};

/// How often the holders are gone through for one file. A connection that breaks every 256 MiB still brings the largest.
const ROUNDS_MAX: u32 = 256;
/// Rounds in a row that bring nothing, while there is something to lose: with the waits between them they outlast the
/// restart of a holder.
const FRUITLESS_MAX: u32 = 4;
/// The wait after a fruitless round; each further one is twice as long.
const FRUITLESS_WAIT_MS: u64 = 250;

/// Fetches a bundle into `store` from any of `holders`: [`fetch_list`], then [`fetch_files`].
///
/// # Errors
/// As those two.
pub async fn fetch(
    store: &BundleStore,
    links: &Links,
    holders: &[String],
    digest: &Digest,
    progress: impl FnMut(u64, u64),
) -> Result<FileList, TransferError> {
    let list = fetch_list(links, holders, digest).await?;
    fetch_files(store, links, holders, &list, progress).await?;
    Ok(list)
}

/// [`fetch_missing`], and seals the bundle.
///
/// # Errors
/// As [`fetch_missing`].
pub async fn fetch_files(
    store: &BundleStore,
    links: &Links,
    holders: &[String],
    list: &FileList,
    progress: impl FnMut(u64, u64),
) -> Result<(), TransferError> {
    fetch_missing(store, links, holders, list, progress).await?;
    store.seal(list).await?;
    Ok(())
}

/// Fetches the files of a bundle that `store` lacks, resuming each at the byte where the last holder broke off. `progress` hears
/// how many bytes of the bundle are here, and of how many.
///
/// # Errors
/// [`TransferError::NoHolder`] when none could give a file, with what each said; [`TransferError::Damaged`] when what they
/// gave does not have the digest; [`TransferError::Store`] when this side's store fails.
pub async fn fetch_missing(
    store: &BundleStore,
    links: &Links,
    holders: &[String],
    list: &FileList,
    mut progress: impl FnMut(u64, u64),
) -> Result<(), TransferError> {
    let mut holders: Vec<&str> = holders.iter().map(String::as_str).collect();
    let digest = list.digest();
    let missing = store.missing(list).await?;
    let held = list.bytes() - missing.iter().map(|file| file.bytes).sum::<u64>();
    let mut here = held;
    progress(here, list.bytes());
    for file in &missing {
        let progress = |written| progress(here + written, list.bytes());
        fetch_file(store, links, &mut holders, (&digest, file), here > held, progress).await?;
        here += file.bytes;
    }
    Ok(())
}

/// Asks for the list of a bundle's files, so that room can be made for them.
///
/// # Errors
/// [`TransferError::NoHolder`] when none could give it, with what each said.
pub async fn fetch_list(
    links: &Links,
    holders: &[String],
    digest: &Digest,
) -> Result<FileList, TransferError> {
    let mut reasons = Vec::new();
    for holder in holders {
        let asked = begin(links, holder, &BundleRequest::List { digest: *digest }).await;
        let why = match asked.map(|(_, answer)| answer) {
            Ok(BundleResponse::Files(list)) if list.digest() == *digest => return Ok(list),
            Ok(BundleResponse::Files(_)) => "the list is of another bundle".to_owned(),
            Ok(
                BundleResponse::Follows { .. }
                | BundleResponse::Missing(_)
                | BundleResponse::Held
                | BundleResponse::Failed(_),
            ) => TransferError::WrongAnswer.to_string(),
            Err(error) => error.to_string(),
        };
        reasons.push(format!("{holder}: {why}"));
    }
    Err(TransferError::NoHolder { digest: *digest, reasons })
}

/// Goes around the holders for as long as that brings bytes. What is here when a holder breaks off stays, so that one holder
/// on a bad line is enough. `begun` says that other files of the bundle came just now, so that holders are not given up at
/// once when this one does not. A holder whose turn was in vain is asked last from then on: each turn at one that hangs is long.
async fn fetch_file(
    store: &BundleStore,
    links: &Links,
    holders: &mut [&str],
    (digest, file): (&Digest, &BundleFile),
    begun: bool,
    mut progress: impl FnMut(u64),
) -> Result<(), TransferError> {
    let mut taking = Taking { store, file, writer: store.write(file) };
    let (mut damaged, mut fruitless, mut rounds) = (false, 0, 0);
    loop {
        let before = taking.writer.written();
        let mut reasons = Vec::new();
        let round: Vec<&str> = holders.to_vec();
        for holder in round {
            match taking.turn(links, holder, &mut progress).await {
                Ok(()) => return Ok(()),
                Err(Failed::Here(error)) => {
                    taking.writer.abort().await;
                    return Err(error.into());
                }
                Err(Failed::There(error)) => {
                    damaged |= error.is_damage();
                    // Stable: the others stay in their order.
                    holders.sort_by_key(|other| *other == holder);
                    reasons.push(format!("{holder}: {error}"));
                }
            }
        }
        rounds += 1;
        let here = taking.writer.written();
        fruitless = if here > before { 0 } else { fruitless + 1 };
        if (here == 0 && !begun) || fruitless == FRUITLESS_MAX || rounds == ROUNDS_MAX {
            taking.writer.abort().await;
            let digest = *digest;
            return Err(if damaged {
                TransferError::Damaged { digest, reasons }
            } else {
                TransferError::NoHolder { digest, reasons }
            });
        }
        if fruitless > 0 {
            tokio::time::sleep(Duration::from_millis(FRUITLESS_WAIT_MS << (fruitless - 1))).await;
        }
    }
}

/// A file that is being taken.
struct Taking<'a> {
    store: &'a BundleStore,
    file: &'a BundleFile,
    writer: BlobWriter,
}

/// Why a holder's turn did not bring the file.
enum Failed {
    /// This side's store failed; no holder mends that.
    Here(BundleStoreError),
    There(TransferError),
}

impl Taking<'_> {
    /// Asks one holder for what is not here yet.
    async fn turn(
        &mut self,
        links: &Links,
        holder: &str,
        progress: &mut impl FnMut(u64),
    ) -> Result<(), Failed> {
        // What an earlier holder gave before it broke off may be what is damaged: this one is asked for all of it then.
        let mut resumed = self.writer.written() > 0;
        loop {
            let error = match self.take_from(links, holder, progress).await {
                Ok(()) => {
                    let whole = std::mem::replace(&mut self.writer, self.store.write(self.file));
                    match whole.finish().await {
                        Ok(()) => return Ok(()),
                        Err(error) => TransferError::Store(error),
                    }
                }
                Err(error) => error,
            };
            if !error.is_damage() {
                return Err(match error {
                    TransferError::Store(error) => Failed::Here(error),
                    other => Failed::There(other),
                });
            }
            tracing::warn!(holder, file = self.file.name, %error, "a holder gave damaged bytes");
            self.writer.abort().await;
            self.writer = self.store.write(self.file);
            if !std::mem::take(&mut resumed) {
                return Err(Failed::There(error));
            }
        }
    }

    async fn take_from(
        &mut self,
        links: &Links,
        holder: &str,
        progress: &mut impl FnMut(u64),
    ) -> Result<(), TransferError> {
        let request = BundleRequest::Get { file: self.file.digest, offset: self.writer.written() };
        let (mut recv, answer) = begin(links, holder, &request).await?;
        match answer {
            BundleResponse::Follows { .. } => {}
            BundleResponse::Files(_)
            | BundleResponse::Missing(_)
            | BundleResponse::Held
            | BundleResponse::Failed(_) => return Err(TransferError::WrongAnswer),
        }
        while let Some(frame) = read_frame_within(&mut recv, PAUSE_MAX).await? {
            if frame.kind() == Kind::BundleResponse {
                // The holder found its file to be damaged on the way.
                accepted(frame.message().map_err(StreamError::from)?)?;
                return Err(TransferError::WrongAnswer);
            }
            let chunk = frame.expect(Kind::BundleChunk).map_err(StreamError::from)?;
            self.writer.write(chunk.body_bytes()).await?;
            progress(self.writer.written());
        }
        if self.writer.written() < self.file.bytes {
            return Err(StreamError::Ended.into());
        }
        Ok(())
    }
}
