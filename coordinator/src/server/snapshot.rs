//! A snapshot of the replicated state for an operator, linearizable: it has all that was acknowledged before it was asked for.
//!
//! It may have a gigabyte. One is in memory at a time, and it is encoded and hashed on the disk's executor, as Raft's own are:
//! on a task's thread that would keep heartbeats waiting for longer than an election takes.

use bytes::Bytes;
use quinn::SendStream;
use roost_protocol::error::reason;
use roost_protocol::frame::Kind;
use roost_protocol::limits::CHUNK_BYTES_MAX;
use roost_protocol::messages::control::ControlResponse;
use roost_protocol::quic::bundles::PAUSE_MAX;
use roost_protocol::quic::stream::{StreamError, finish, write_body_within, write_message};
use roost_protocol::snapshot::{self, SnapshotHeader, SnapshotModel};
use roost_protocol::{ClusterId, ControlError};

use crate::raft::machine;
use crate::shared::Shared;
use crate::state::State;

/// Answers with the bytes of a snapshot file, or that it was not taken.
///
/// # Errors
/// [`StreamError`] when the stream breaks; refusals are answered and are no error here.
pub(super) async fn answer(shared: &Shared, send: &mut SendStream, by: &str) -> Result<(), StreamError> {
    // Whoever has gone meanwhile needs none. One that was begun goes on, with its turn: the disk does not give it up.
    let gone = send.stopped();
    let _one_at_a_time = tokio::select! {
        turn = shared.snapshots.lock() => turn,
        _ = gone => return Ok(()),
    };
    let parts = match take(shared).await {
        Ok(parts) => parts,
        Err(error) => {
            write_message(send, Kind::ControlResponse, &ControlResponse::Failed(error)).await?;
            finish(send);
            return Ok(());
        }
    };
    let bytes = parts.iter().map(|part| part.len() as u64).sum();
    tracing::info!(target: "audit", by, bytes, "gives a snapshot of the state");
    write_message(send, Kind::ControlResponse, &ControlResponse::Snapshot { bytes }).await?;
    for mut part in parts {
        while !part.is_empty() {
            let chunk = part.split_to(part.len().min(CHUNK_BYTES_MAX as usize));
            // Whoever takes nothing would keep all others from their turn.
            write_body_within(send, Kind::SnapshotChunk, chunk, PAUSE_MAX).await?;
        }
    }
    finish(send);
    Ok(())
}

/// Takes the state as it is once all that was acknowledged is applied. Only by the leader: it knows what that is.
async fn take(shared: &Shared) -> Result<[Bytes; 3], ControlError> {
    shared.check_disk()?;
    if shared.leads().is_none() {
        return Err(shared.not_leader());
    }
    shared.catch_up().await?;
    let cluster = shared.cluster().ok_or_else(|| shared.forming())?;
    let (machine, at_ms) = (shared.machine.clone(), shared.clock.now_ms());
    let encoded = shared.disk.in_turn(move || encode(cluster, &machine.state(State::clone), at_ms)).await;
    encoded.map_err(|error| ControlError::Storage { reason: reason(error) })?
}

fn encode(cluster: ClusterId, state: &State, at_ms: u64) -> Result<[Bytes; 3], ControlError> {
    let header = header(cluster, state, at_ms);
    let unfit = |error: String| ControlError::Storage { reason: reason(error) };
    let body = machine::encode_state(state).map_err(|error| unfit(error.to_string()))?;
    snapshot::encode(&header, body.into()).map_err(|error| unfit(error.to_string()))
}

/// What the file says of a state.
fn header(cluster: ClusterId, state: &State, at_ms: u64) -> SnapshotHeader {
    let models = state.models().into_iter().filter_map(|summary| {
        let versions = state.versions(&summary.model).ok()?;
        Some(SnapshotModel { summary, versions })
    });
    SnapshotHeader {
        cluster,
        epoch: state.epoch(),
        level: state.level(),
        at_ms,
        coordinators: state.coordinators().clone(),
        models: models.collect(),
        body_bytes: 0,
    }
}
