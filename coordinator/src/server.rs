//! What a coordinator answers on its connections: operators, nodes and clients on the control service, coordinators on the
//! Raft service, everyone who may on the bundle service.
//!
//! Who may ask what is decided here, from the certificate. A follower hands changes and reads on to the leader, once.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use quinn::{RecvStream, SendStream};
use roost_protocol::error::reason;
use roost_protocol::frame::Kind;
use roost_protocol::limits::RAFT_BYTES_MAX;
use roost_protocol::messages::control::{
    Answer, Change, ClusterSummary, ControlRequest, ControlResponse, Done, Query,
};
use roost_protocol::quic::stream::{StreamError, expect_frame, finish, read_message, write_message};
use roost_protocol::quic::{Accepted, Link, PeerIdentity, Role, Service, bundles, watch};
use roost_protocol::{CommandError, ControlError, Epoch, ModelVersion, RequestId};
use tokio::time::Instant;

use crate::peer::{PeerRequest, PeerResponse};
use crate::raft::network::{self, RaftMessage};
use crate::shared::Shared;
use crate::state::Command;
use crate::{artefact, planner};

/// Answers the requests of a connection until it ends.
pub(crate) async fn serve(shared: Arc<Shared>, accepted: Accepted) {
    let Accepted { service, link } = accepted;
    while let Ok((mut send, mut recv)) = link.accept().await {
        let (shared, link) = (shared.clone(), link.clone());
        tokio::spawn(async move {
            let answered = match service {
                Service::Control => serve_control(&shared, &link, &mut send, &mut recv).await,
                Service::Raft => serve_peer(&shared, &mut send, &mut recv).await,
                Service::Bundle => {
                    let may_put = link.peer.has_any(&[Role::Operator]);
                    let takes = |file: &_| may_put && shared.machine.state(|state| state.awaits_file(file));
                    bundles::serve(&shared.bundles, &mut send, &mut recv, takes).await
                }
                // The coordinator's endpoint does not offer it.
                Service::Infer => Ok(()),
            };
            if let Err(error) = answered {
                tracing::debug!(peer = %link.peer.name, service = service.alpn(), %error, "a stream ended early");
            }
        });
    }
}

async fn serve_control(
    shared: &Shared,
    link: &Link,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), StreamError> {
    let request = match read_message(recv, Kind::ControlRequest).await {
        Ok(request) => request,
        Err(StreamError::Frame(error)) => {
            let error = ControlError::Malformed { what: reason(error) };
            return respond(send, &ControlResponse::Failed(error)).await;
        }
        Err(error) => return Err(error),
    };
    if let ControlRequest::Watch { from, models } = &request {
        return watch::serve(send, shared.published.subscribe(), *from, models).await;
    }
    let response = match permit(&request, &link.peer) {
        Ok(()) => control(shared, request, link.peer.name.as_str(), Forward::Once).await,
        Err(error) => {
            tracing::warn!(target: "audit", peer = %link.peer.to_uri(), %error, "refused");
            Err(error)
        }
    };
    respond(send, &response.unwrap_or_else(ControlResponse::Failed)).await
}

async fn respond(send: &mut SendStream, response: &ControlResponse) -> Result<(), StreamError> {
    write_message(send, Kind::ControlResponse, response).await?;
    finish(send);
    Ok(())
}

/// Whether the bearer of a certificate may ask.
fn permit(request: &ControlRequest, peer: &PeerIdentity) -> Result<(), ControlError> {
    let needed = match request {
        ControlRequest::Change { change, .. } => match change {
            Change::ReservePush { .. }
            | Change::CommitPush { .. }
            | Change::StartRollout { .. }
            | Change::Promote { .. }
            | Change::Abort { .. }
            | Change::Undo { .. }
            | Change::SetLabel { .. }
            | Change::RemoveLabel { .. } => Role::Operator,
            Change::Join { name, .. } if name.as_str() != peer.name.as_str() => {
                let needed = format!("worker and the name {name}");
                return Err(forbidden(needed, peer));
            }
            Change::Join { .. } | Change::Drain { .. } => Role::Worker,
        },
        ControlRequest::Heartbeat(_) => Role::Worker,
        ControlRequest::Query(_) | ControlRequest::Watch { .. } => return Ok(()),
    };
    if peer.has_any(&[needed]) { Ok(()) } else { Err(forbidden(needed.to_string(), peer)) }
}

fn forbidden(needed: String, peer: &PeerIdentity) -> ControlError {
    ControlError::Forbidden { needed, name: peer.name.to_string(), roles: peer.roles_text() }
}

/// Whether a request may be handed on to the leader.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Forward {
    Once,
    Never,
}

async fn control(
    shared: &Shared,
    request: ControlRequest,
    by: &str,
    forward: Forward,
) -> Result<ControlResponse, ControlError> {
    let leads = shared.leader() == Some(shared.node);
    match request {
        ControlRequest::Heartbeat(heartbeat) => {
            let heard = shared.registry(|registry| {
                let changed = registry.handle_heartbeat(heartbeat, Instant::now());
                (registry.soft().term, changed.then(|| registry.soft().clone()))
            });
            let (term, changed) = heard.ok_or_else(|| shared.not_leader())?;
            if let Some(soft) = changed {
                crate::leader::publish(shared, soft);
            }
            Ok(ControlResponse::Heard(term))
        }
        request @ (ControlRequest::Change { .. } | ControlRequest::Query(_))
            if !leads && forward == Forward::Once =>
        {
            hand_on(shared, request, by).await
        }
        ControlRequest::Change { request, sent, change } => {
            let done = change_state(shared, request, sent, by, change).await?;
            Ok(ControlResponse::Done(done))
        }
        ControlRequest::Query(query) => Ok(ControlResponse::Answer(Box::new(answer(shared, query).await?))),
        ControlRequest::Watch { .. } => {
            Err(ControlError::Malformed { what: "a watch cannot be handed on".to_owned() })
        }
    }
}

async fn hand_on(
    shared: &Shared,
    request: ControlRequest,
    by: &str,
) -> Result<ControlResponse, ControlError> {
    let Some(leader) = shared.leader_address() else {
        return Err(ControlError::NoQuorum { reason: "no leader is known".to_owned() });
    };
    let link = shared.peers.to(&leader).await.map_err(|error| error.into_control(&leader))?;
    let request = PeerRequest::Forward { by: by.to_owned(), request: Box::new(request) };
    let answer = link.ask((Kind::RaftRequest, &request), Kind::RaftResponse).await;
    match answer.map_err(|error| error.into_control(&leader))? {
        PeerResponse::Control(response) => Ok(*response),
        PeerResponse::Failed(error) => Err(error),
        _ => Err(ControlError::Malformed { what: "another answer than to a request handed on".to_owned() }),
    }
}

async fn change_state(
    shared: &Shared,
    request: RequestId,
    sent: Epoch,
    by: &str,
    change: Change,
) -> Result<Done, ControlError> {
    if shared.machine.state(|state| state.cluster()).is_none() {
        // Refused ahead of the log, so that a retry under the same request id is not answered alike for ever.
        return Err(ControlError::NoQuorum { reason: "the cluster is still being formed".to_owned() });
    }
    let command = match change {
        Change::ReservePush { files } => Command::Reserve { files },
        Change::CommitPush { model, digest, manifest, note } => {
            shared.catch_up().await?;
            let files = shared.machine.state(|state| state.bundle(&digest).cloned());
            let files = files.ok_or(CommandError::NotReserved { digest: digest.to_string() })?;
            let holders = artefact::replicate(shared, &files).await?;
            Command::CommitVersion { model, digest, manifest, note, holders }
        }
        Change::StartRollout { target, weight } => Command::StartRollout { target, weight },
        Change::Promote { model } => promotion(shared, model).await?,
        Change::Abort { model, reason } => Command::Abort { model, reason },
        Change::Undo { model } => Command::Undo { model },
        Change::SetLabel { version, label } => Command::SetLabel { version, label },
        Change::RemoveLabel { model, label } => Command::RemoveLabel { model, label },
        Change::Join { node, name, address, profile } => Command::Join { node, name, address, profile },
        Change::Drain { node, draining } => Command::Drain { node, draining },
    };
    let applied = shared.propose(Some(request), sent, by, command).await?;
    Ok(Done { epoch: applied.epoch, outcome: applied.result? })
}

/// A promotion sends all traffic to the target, so all its owners must be ready; soft state knows, `apply` cannot.
async fn promotion(shared: &Shared, model: roost_protocol::ModelName) -> Result<Command, ControlError> {
    shared.catch_up().await?;
    let (view, summary) = shared.machine.state(|state| (state.view(), state.rollout(&model)));
    let summary = summary?;
    let revision = summary.traffic.revision;
    let Some(rollout) = summary.rollout else {
        // Perhaps a retry of a promotion that was carried out: apply knows the request and answers as before.
        return Ok(Command::Promote { model, revision });
    };
    let soft = shared.registry(|registry| registry.soft().clone()).ok_or_else(|| shared.not_leader())?;
    let (ready, needed) =
        view.map_or((0, 1), |view| planner::readiness(&view, &soft, &model, rollout.target));
    if ready < needed {
        let version = ModelVersion { model, version: rollout.target };
        let (ready, needed) = (ready as u32, needed as u32);
        return Err(CommandError::NotReady { version, ready, needed }.into());
    }
    Ok(Command::Promote { model, revision })
}

async fn answer(shared: &Shared, query: Query) -> Result<Answer, ControlError> {
    shared.catch_up().await?;
    match query {
        Query::Models => Ok(Answer::Models(shared.machine.state(|state| state.models()))),
        Query::Versions(model) => Ok(Answer::Versions(shared.machine.state(|state| state.versions(&model))?)),
        Query::Rollout(model) => Ok(Answer::Rollout(shared.machine.state(|state| state.rollout(&model))?)),
        Query::Files(digest) => {
            let files = shared.machine.state(|state| state.bundle(&digest).cloned());
            files.map(Answer::Files).ok_or_else(|| ControlError::NoBundle { digest: digest.to_string() })
        }
        Query::Cluster => {
            let (cluster, epoch) = shared.machine.state(|state| (state.cluster(), state.epoch()));
            let cluster = cluster.ok_or(CommandError::NotInitialised)?;
            let known = shared.registry(|registry| (registry.soft().clone(), registry.statistics().clone()));
            let (soft, statistics) = known.ok_or_else(|| shared.not_leader())?;
            let (leader, term) = (shared.node, soft.term);
            Ok(Answer::Cluster(ClusterSummary { cluster, leader, term, epoch, soft, statistics }))
        }
    }
}

async fn serve_peer(
    shared: &Arc<Shared>,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), StreamError> {
    let request: PeerRequest = read_message(recv, Kind::RaftRequest).await?;
    let response = match request {
        PeerRequest::Raft(message) => {
            let bytes = match &*message {
                RaftMessage::Snapshot { bytes, .. } => read_snapshot(recv, *bytes).await?,
                RaftMessage::Append { .. }
                | RaftMessage::Vote(_)
                | RaftMessage::PreVote(_)
                | RaftMessage::TransferLeader { .. } => Bytes::new(),
            };
            network::answer(&shared.raft, *message, bytes).await.map(PeerResponse::Raft)
        }
        PeerRequest::Probe => match shared.raft.is_initialized().await {
            Ok(initialised) => {
                let cluster = shared.machine.state(|state| state.cluster());
                Ok(PeerResponse::Probed { initialised, cluster })
            }
            Err(error) => Err(ControlError::NoQuorum { reason: reason(error) }),
        },
        PeerRequest::Hold { files, holders } => {
            artefact::hold(shared, &files, &holders).await.map(|()| PeerResponse::Held)
        }
        PeerRequest::Forward { by, request } => {
            let response = control(shared, *request, &by, Forward::Never).await;
            Ok(PeerResponse::Control(Box::new(response.unwrap_or_else(ControlResponse::Failed))))
        }
        PeerRequest::Soft(soft) => {
            crate::leader::publish(shared, *soft);
            Ok(PeerResponse::Heard)
        }
    };
    let response = response.unwrap_or_else(PeerResponse::Failed);
    write_message(send, Kind::RaftResponse, &response).await?;
    finish(send);
    Ok(())
}

async fn read_snapshot(recv: &mut RecvStream, bytes: u64) -> Result<Bytes, StreamError> {
    // A snapshot holds no bundle, only what is said of them; it is bounded like any Raft message.
    if bytes > u64::from(RAFT_BYTES_MAX) {
        return Err(StreamError::Broken(format!(
            "a snapshot of {bytes} bytes, at most {RAFT_BYTES_MAX} are taken"
        )));
    }
    let mut snapshot = BytesMut::with_capacity(bytes as usize);
    while (snapshot.len() as u64) < bytes {
        snapshot.extend_from_slice(expect_frame(recv, Kind::RaftChunk).await?.body());
    }
    Ok(snapshot.freeze())
}
