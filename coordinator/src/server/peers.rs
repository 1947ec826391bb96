//! The answers to other coordinators.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::ControlResponse;
use roost_protocol::quic::Link;
use roost_protocol::quic::stream::{StreamError, expect_frame, finish, read_message, write_message};
use roost_protocol::{ControlError, NodeId};

use super::control::{Forward, control};
use crate::artefact;
use crate::bootstrap;
use crate::peer::{PeerRequest, PeerResponse};
use crate::raft::network::{self, RaftMessage};
use crate::shared::Shared;
use crate::state::bounds::SNAPSHOT_BYTES_MAX;

/// Answers one request of another coordinator.
///
/// # Errors
/// [`StreamError`] when the stream breaks; refusals are answered and are no error here.
pub(super) async fn serve(
    shared: &Arc<Shared>,
    link: &Link,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), StreamError> {
    let request: PeerRequest = read_message(recv, Kind::RaftRequest).await?;
    let response = match super::same_cluster(shared, link).and_then(|()| shared.check_disk()) {
        Err(error) => Err(error),
        Ok(()) => match request {
            PeerRequest::Raft { to, message } => serve_raft(shared, link, to, *message, recv).await?,
            PeerRequest::Probe { group } => bootstrap::answer_probe(shared, link, &group).await,
            PeerRequest::Hold { files, holders } => match admits(shared, link) {
                Ok(()) => artefact::hold(shared, &files, &holders).await.map(|()| PeerResponse::Held),
                Err(error) => Err(error),
            },
            PeerRequest::Forward { by, request } => match admits(shared, link) {
                Ok(()) => {
                    let response = control(shared, *request, &by, Forward::Never).await;
                    Ok(PeerResponse::Control(Box::new(response.unwrap_or_else(ControlResponse::Failed))))
                }
                Err(error) => Err(error),
            },
            PeerRequest::Soft(soft) => admits(shared, link).map(|()| {
                shared.publish(*soft);
                PeerResponse::Heard
            }),
            PeerRequest::Lacks { bundles } => match admits(shared, link) {
                Ok(()) => artefact::lacks(shared, &bundles).await.map(PeerResponse::Lacks),
                Err(error) => Err(error),
            },
            PeerRequest::Supports => Ok(PeerResponse::Supports { level: shared.level }),
        },
    };
    let response = response.unwrap_or_else(PeerResponse::Failed);
    write_message(send, Kind::RaftResponse, &response).await?;
    finish(send);
    Ok(())
}

/// Whether this coordinator takes part, and the other side is the member that it says it is. A member that is not known here
/// yet is taken at its word: its certificate says that it is a coordinator of this cluster, and this one may lag.
fn admits(shared: &Shared, link: &Link) -> Result<(), ControlError> {
    if !shared.is_admitted() {
        let reason = "this coordinator forgot what it knew and takes no part in the group".to_owned();
        return Err(ControlError::NoQuorum { reason });
    }
    let Some(node) = link.hello.node else {
        return Err(ControlError::Malformed { what: "a coordinator greeted without its id".to_owned() });
    };
    let known = shared.machine.state(|state| state.coordinators().get(&node).map(|known| known.name.clone()));
    match known {
        Some(name) if name.as_str() != link.peer.name.as_str() => {
            let error = ControlError::WrongNode { name };
            tracing::warn!(target: "audit", peer = %link.peer.to_uri(), %node, %error, "refused");
            Err(error)
        }
        Some(_) | None => Ok(()),
    }
}

async fn serve_raft(
    shared: &Shared,
    link: &Link,
    to: NodeId,
    message: RaftMessage,
    recv: &mut RecvStream,
) -> Result<Result<PeerResponse, ControlError>, StreamError> {
    if to != shared.node {
        return Ok(Err(ControlError::WrongNode { name: shared.name.clone() }));
    }
    if link.hello.node != Some(message.sender()) {
        let what = format!("a Raft message of node {} that another node sent", message.sender());
        return Ok(Err(ControlError::Malformed { what }));
    }
    if let Err(error) = admits(shared, link) {
        return Ok(Err(error));
    }
    if matches!(&message, RaftMessage::Append { .. } | RaftMessage::Snapshot { .. }) {
        shared.hear();
    }
    let bytes = match &message {
        RaftMessage::Snapshot { bytes, .. } => read_snapshot(recv, *bytes).await?,
        RaftMessage::Append { .. }
        | RaftMessage::Vote(_)
        | RaftMessage::PreVote(_)
        | RaftMessage::TransferLeader { .. } => Bytes::new(),
    };
    Ok(network::answer(&shared.raft, message, bytes).await.map(PeerResponse::Raft))
}

async fn read_snapshot(recv: &mut RecvStream, bytes: u64) -> Result<Bytes, StreamError> {
    if bytes > SNAPSHOT_BYTES_MAX {
        let limit = format!("a snapshot of {bytes} bytes, at most {SNAPSHOT_BYTES_MAX} are taken");
        return Err(StreamError::Broken(limit));
    }
    // Grows with what comes, not with what was claimed.
    let mut snapshot = BytesMut::new();
    while (snapshot.len() as u64) < bytes {
        snapshot.extend_from_slice(expect_frame(recv, Kind::RaftChunk).await?.body());
    }
    Ok(snapshot.freeze())
}
