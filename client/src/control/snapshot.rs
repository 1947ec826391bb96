//! A snapshot of the replicated state, from the leader.

use std::io;
use std::time::Duration;

use roost_protocol::ControlError;
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{ControlRequest, ControlResponse};
use roost_protocol::quic::stream::{expect_frame, finish, read_message, write_message};
use tokio::time::Instant;

use super::search::{Search, Step};
use super::{Control, unexpected};

/// How long the leader may take until the first byte: it asks a quorum, and encodes a state of up to a gigabyte.
const FIRST_MS_MAX: u64 = 15_000;
/// How long a piece may take: 4 MiB on a link of 1 Mbit/s.
const CHUNK_MS_MAX: u64 = 40_000;

/// Why a snapshot was not taken.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotFailure {
    /// No leader gave it.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// What came could not be written.
    #[error("cannot write the snapshot: {0}")]
    Write(#[from] io::Error),
}

impl Control {
    /// Has the leader give a snapshot of the replicated state, which `write` is given piece by piece; a leader is looked for
    /// as long as `limit`. Returns how many bytes came. They are to be verified by [`roost_protocol::snapshot::read`].
    ///
    /// # Errors
    /// [`SnapshotFailure`]; what was written by then is no snapshot.
    pub async fn snapshot(
        &self,
        limit: Duration,
        mut write: impl FnMut(&[u8]) -> io::Result<()>,
    ) -> Result<u64, SnapshotFailure> {
        let first = Duration::from_millis(FIRST_MS_MAX);
        let mut search = Search::new(Instant::now() + limit, self.leader()).with_attempts_of(first);
        loop {
            let step = self.next(&mut search);
            let (address, within) = match step {
                Step::Try { address, within } => (address, within),
                Step::Wait(wait) => {
                    tokio::time::sleep(wait).await;
                    continue;
                }
                Step::GiveUp(error) => return Err(error.into()),
            };
            let silent = |within: Duration| ControlError::Unreachable {
                node: address.clone(),
                reason: format!("no answer within {} ms", within.as_millis()),
            };
            let begun = tokio::time::timeout(within, self.begin_snapshot(&address)).await;
            let (bytes, mut recv) = match begun.unwrap_or_else(|_| Err(silent(within))) {
                Ok(begun) => begun,
                Err(error) => {
                    search.failed(&address, error);
                    continue;
                }
            };
            self.set_leader(Some(address.clone()));
            let mut come = 0;
            while come < bytes {
                let patience = Duration::from_millis(CHUNK_MS_MAX);
                let chunk =
                    tokio::time::timeout(patience, expect_frame(&mut recv, Kind::SnapshotChunk)).await;
                let chunk = chunk.map_err(|_| silent(patience))?;
                let chunk = chunk.map_err(|error| error.into_control(&address))?;
                if chunk.body().is_empty() {
                    let what = "a piece of a snapshot without a byte".to_owned();
                    return Err(ControlError::Malformed { what }.into());
                }
                come += chunk.body().len() as u64;
                write(chunk.body())?;
            }
            return Ok(come);
        }
    }

    /// Asks the coordinator at `address`; how many bytes follow, and where.
    async fn begin_snapshot(&self, address: &str) -> Result<(u64, quinn::RecvStream), ControlError> {
        let broken = |error: roost_protocol::quic::StreamError| error.into_control(address);
        let link = self.shared.links.to(address).await.map_err(|error| error.into_control(address))?;
        let (mut send, mut recv) = link.open().await.map_err(broken)?;
        write_message(&mut send, Kind::ControlRequest, &ControlRequest::Snapshot).await.map_err(broken)?;
        finish(&mut send);
        match read_message(&mut recv, Kind::ControlResponse).await.map_err(broken)? {
            ControlResponse::Snapshot { bytes } => Ok((bytes, recv)),
            ControlResponse::Failed(error) => Err(error),
            other => Err(unexpected("the request for a snapshot", &other)),
        }
    }
}
