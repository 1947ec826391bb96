//! The transfer of bundles between nodes.
//!
//! Transfers are chunked. Whoever takes a file checks its digest before it appears in the store; whoever gives one whole
//! hashes it on the way, so that damage is found by its holder too. A [`fetch()`] goes on at the byte where it broke off, at
//! any holder. Neither side waits for long for one that lives and does nothing ([`PAUSE_MAX`]): its store may hang.

mod fetch;
mod serve;
mod upload;

pub use self::fetch::{fetch, fetch_files, fetch_list, fetch_missing};
pub use self::serve::{answer, serve};
pub use self::upload::upload;
pub use crate::store::{BlobWriter, BundleStore, BundleStoreError, Swept};

use std::time::Duration;

use quinn::{RecvStream, SendStream};

use super::endpoint::Link;
use super::links::Links;
use super::stream::{StreamError, expect_frame_within, finish, write_message};
use crate::error::ControlError;
use crate::frame::Kind;
use crate::ids::Digest;
use crate::messages::control::{BundleRequest, BundleResponse};

/// How long the other side of a transfer may neither give nor take a byte: a disk that wakes up or syncs needs seconds. Keep-alive
/// covers those that are gone.
pub const PAUSE_MAX: Duration = Duration::from_secs(30);

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

impl TransferError {
    /// Whether somebody gave bytes that are not those of the digest.
    fn is_damage(&self) -> bool {
        match self {
            Self::Store(BundleStoreError::DigestMismatch { .. } | BundleStoreError::Size { .. })
            | Self::Refused(ControlError::DigestMismatch { .. })
            | Self::Damaged { .. } => true,
            Self::Store(
                BundleStoreError::Store(_)
                | BundleStoreError::DamagedList { .. }
                | BundleStoreError::Missing(_)
                | BundleStoreError::Stalled { .. },
            )
            | Self::Stream(_)
            | Self::Refused(_)
            | Self::WrongAnswer
            | Self::NoHolder { .. } => false,
        }
    }
}

async fn link_to(links: &Links, address: &str) -> Result<Link, TransferError> {
    Ok(links.to(address).await.map_err(|error| error.into_control(address))?)
}

/// Begins an exchange with a side that must not pause. Returns the stream behind the request, and the first of its answer.
async fn begin(
    links: &Links,
    address: &str,
    request: &BundleRequest,
) -> Result<(RecvStream, BundleResponse), TransferError> {
    let link = link_to(links, address).await?;
    let asked = async {
        let (mut send, recv) = link.open().await?;
        write_message(&mut send, Kind::BundleRequest, request).await?;
        finish(&mut send);
        Ok::<(SendStream, RecvStream), StreamError>((send, recv))
    };
    // It may have no room for another stream.
    let asked = tokio::time::timeout(PAUSE_MAX, asked).await;
    let (_, mut recv) = asked.map_err(|_| StreamError::Stalled { after: PAUSE_MAX })??;
    let answer = expect_frame_within(&mut recv, Kind::BundleResponse, PAUSE_MAX).await?;
    let answer = answer.message().map_err(StreamError::from)?;
    Ok((recv, accepted(answer)?))
}

/// Asks for something that one message answers; a refusal is an error.
async fn ask(links: &Links, address: &str, request: &BundleRequest) -> Result<BundleResponse, TransferError> {
    let link = link_to(links, address).await?;
    accepted(link.ask((Kind::BundleRequest, request), Kind::BundleResponse).await?)
}

fn accepted(response: BundleResponse) -> Result<BundleResponse, TransferError> {
    match response {
        BundleResponse::Failed(error) => Err(error.into()),
        answer @ (BundleResponse::Files(_)
        | BundleResponse::Follows { .. }
        | BundleResponse::Missing(_)
        | BundleResponse::Held) => Ok(answer),
    }
}

/// That something was put, and nothing else.
fn held(response: BundleResponse) -> Result<(), TransferError> {
    match accepted(response)? {
        BundleResponse::Held => Ok(()),
        BundleResponse::Files(_)
        | BundleResponse::Follows { .. }
        | BundleResponse::Missing(_)
        | BundleResponse::Failed(_) => Err(TransferError::WrongAnswer),
    }
}
