//! What a coordinator answers on its connections: operators, nodes and clients on the control service ([`control`],
//! [`change`]), coordinators on the Raft service ([`peers`]), everyone who may on the bundle service.
//!
//! Who may ask what is decided here, from the certificate and the table in [`roles`]. A follower hands changes and reads on
//! to the leader, once.

mod change;
mod control;
mod peers;
mod snapshot;

use std::sync::Arc;

use quinn::{RecvStream, SendStream, VarInt};
use roost_protocol::bundle::BundleFile;
use roost_protocol::error::reason;
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{
    BundleRequest, BundleResponse, Change, ControlRequest, ControlResponse,
};
use roost_protocol::quic::stream::{StreamError, finish, read_message, write_message};
use roost_protocol::quic::{Accepted, Link, PeerIdentity, Service, bundles, roles, watch};
use roost_protocol::{ClusterId, ControlError, NodeId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

pub(crate) use self::control::hand_on;
use self::control::{Forward, control};
use crate::shared::Shared;

/// Changes, reads and heartbeats that one connection has answered at once: each may hold 4 MiB. A watch counts only until it
/// has begun; then [`watch::answer`] counts it.
const CONTROL_REQUESTS_MAX: usize = 64;
/// Transfers of one connection at once. Each gathers a few MiB; peers use one after the other.
const TRANSFERS_MAX: usize = 16;
/// The code of a watch that was ended because this coordinator is out of touch.
const OUT_OF_TOUCH: VarInt = VarInt::from_u32(2);

/// Answers the requests of a connection until it ends.
pub(crate) async fn serve(shared: Arc<Shared>, accepted: Accepted) {
    let Accepted { service, link } = accepted;
    let at_once = match service {
        Service::Control => CONTROL_REQUESTS_MAX,
        Service::Bundle => TRANSFERS_MAX,
        // Between coordinators a vote must not wait for anything; QUIC bounds the streams.
        Service::Raft | Service::Infer => Semaphore::MAX_PERMITS,
    };
    let permits = Arc::new(Semaphore::new(at_once));
    // The semaphore is never closed.
    while let Ok(permit) = permits.clone().acquire_owned().await {
        let Ok((mut send, mut recv)) = link.accept().await else { return };
        let (shared, link) = (shared.clone(), link.clone());
        tokio::spawn(async move {
            let answered = match service {
                Service::Control => serve_control(&shared, &link, permit, &mut send, &mut recv).await,
                Service::Raft => peers::serve(&shared, &link, &mut send, &mut recv).await,
                Service::Bundle => serve_bundles(&shared, &link, &mut send, &mut recv).await,
                // The coordinator's endpoint does not offer it.
                Service::Infer => Ok(()),
            };
            if let Err(error) = answered {
                tracing::debug!(peer = %link.peer.name, service = service.name(), %error, "a stream ended early");
            }
        });
    }
}

/// Whether both sides are of the same cluster, as far as they know. They checked when they greeted each other, but either may
/// have learnt its cluster since then.
fn same_cluster(shared: &Shared, link: &Link) -> Result<(), ControlError> {
    match (shared.cluster(), link.hello.cluster) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(ControlError::WrongCluster { ours, theirs }),
        (Some(ClusterId(_)) | None, Some(ClusterId(_)) | None) => Ok(()),
    }
}

async fn serve_bundles(
    shared: &Shared,
    link: &Link,
    send: &mut SendStream,
    recv: &mut RecvStream,
) -> Result<(), StreamError> {
    if let Err(error) = same_cluster(shared, link) {
        write_message(send, Kind::BundleResponse, &BundleResponse::Failed(error)).await?;
        finish(send);
        return Ok(());
    }
    let request = read_message(recv, Kind::BundleRequest).await?;
    if let Err(error) = roles::check(roles::of_bundle(&request), &link.peer) {
        tracing::warn!(target: "audit", peer = %link.peer.to_uri(), %error, "refused");
        write_message(send, Kind::BundleResponse, &BundleResponse::Failed(error)).await?;
        finish(send);
        return Ok(());
    }
    let awaited: Vec<BundleFile> = shared.machine.state(|state| {
        let put = match &request {
            BundleRequest::Put { file } => std::slice::from_ref(file),
            BundleRequest::Seal { files } => files.files(),
            BundleRequest::List { .. } | BundleRequest::Missing { .. } | BundleRequest::Get { .. } => &[],
        };
        put.iter().filter(|file| state.awaits_file(file)).cloned().collect()
    });
    // Behind this, every sweep knows what is awaited, however long a transfer takes.
    drop(shared.keeping.files.read().await);
    let takes = |file: &BundleFile| awaited.contains(file);
    let lost = bundles::answer(&shared.bundles, request, send, recv, takes).await?;
    shared.keeping.lose(lost);
    Ok(())
}

async fn serve_control(
    shared: &Arc<Shared>,
    link: &Link,
    permit: OwnedSemaphorePermit,
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
    let permitted =
        same_cluster(shared, link).and_then(|()| permit_request(&request, &link.peer, link.hello.node));
    let response = match (permitted, request) {
        (Ok(()), ControlRequest::Watch { from, models }) => {
            drop(permit);
            let served = tokio::select! {
                served = watch::answer(link, send, shared.published.subscribe(), from, &models) => Some(served),
                // Others may know more. Who finds nobody comes back, and is given what there is.
                () = shared.out_of_touch() => None,
            };
            return served.unwrap_or_else(|| {
                // Fails only when it has ended already. An update may be half-written, so there is no proper end.
                let _ = send.reset(OUT_OF_TOUCH);
                Ok(())
            });
        }
        (Ok(()), ControlRequest::Snapshot) => {
            return snapshot::answer(shared, send, link.peer.name.as_str()).await;
        }
        (Ok(()), request) => control(shared, request, link.peer.name.as_str(), Forward::Once).await,
        (Err(error), _) => {
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

/// Whether the bearer of a certificate, who greeted as `node`, may ask. A worker joins as itself alone: under the name of its
/// certificate, and the id that it greeted with. That it drains and reports for itself alone is checked where the state
/// knows who it is.
fn permit_request(
    request: &ControlRequest,
    peer: &PeerIdentity,
    greeted: Option<NodeId>,
) -> Result<(), ControlError> {
    roles::check(roles::of_control(request), peer)?;
    match request {
        ControlRequest::Change { change: Change::Join { name, node, .. }, .. } => {
            if name.as_str() != peer.name.as_str() {
                return Err(roles::forbidden(format!("worker and the name {name}"), peer));
            }
            if greeted != Some(*node) {
                let needed = format!("worker, over a connection that the node {node} itself made");
                return Err(roles::forbidden(needed, peer));
            }
            Ok(())
        }
        ControlRequest::Change { .. }
        | ControlRequest::Query(_)
        | ControlRequest::Watch { .. }
        | ControlRequest::Heartbeat(_)
        | ControlRequest::Reconfigure(_)
        | ControlRequest::Snapshot => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use roost_protocol::messages::control::{Heartbeat, Query, Reconfigure, Watched};
    use roost_protocol::quic::Role;
    use roost_protocol::ring::Speed;
    use roost_protocol::view::NodeProfile;
    use roost_protocol::{ClusterName, Epoch, Incarnation, ModelName, NodeName, RequestId, Tenant};

    use super::*;

    fn join(name: &str) -> Change {
        let profile = NodeProfile {
            speed: Speed::default(),
            zone: String::new(),
            labels: Default::default(),
            memory_mib: 1,
            isa: String::new(),
            engines: Default::default(),
        };
        let (node, name) = (NodeId(1), NodeName::new(name).unwrap());
        Change::Join { node, name, address: "h:1".to_owned(), profile: Box::new(profile) }
    }

    /// Roles of the bearer `w1`, what it asks for, and whether it may.
    #[test]
    fn who_may_ask_what() {
        let change =
            |change| ControlRequest::Change { request: RequestId(1), sent: Epoch::default(), change };
        let model = ModelName::new("digits").unwrap();
        let heartbeat = ControlRequest::Heartbeat(Heartbeat {
            node: NodeId(1),
            incarnation: Incarnation(1),
            sequence: 1,
            versions: Vec::new(),
            statistics: Vec::new(),
        });
        let rows = [
            (Role::Operator, change(Change::Promote { model: model.clone() }), true),
            (Role::Worker, change(Change::Promote { model: model.clone() }), false),
            (Role::Client, change(Change::Undo { model }), false),
            (Role::Worker, change(join("w1")), true),
            (Role::Worker, change(join("w2")), false),
            (Role::Operator, change(join("w1")), false),
            (Role::Worker, change(Change::Drain { node: NodeId(1), draining: true }), true),
            (Role::Client, change(Change::Drain { node: NodeId(1), draining: true }), false),
            (Role::Worker, heartbeat.clone(), true),
            (Role::Coordinator, heartbeat, false),
            (Role::Client, ControlRequest::Query(Query::Models), true),
            (Role::Operator, ControlRequest::Reconfigure(Reconfigure::TransferLeader { to: None }), true),
            (Role::Coordinator, ControlRequest::Reconfigure(Reconfigure::TransferLeader { to: None }), false),
            (Role::Operator, ControlRequest::Snapshot, true),
            (Role::Worker, ControlRequest::Snapshot, false),
            (Role::Gateway, ControlRequest::Watch { from: None, models: Watched::All }, true),
        ];
        for (role, request, allowed) in rows {
            let peer = PeerIdentity {
                cluster: ClusterName::new("c").unwrap(),
                roles: [role].into(),
                name: Tenant::new("w1").unwrap(),
            };
            let permitted = |greeted| permit_request(&request, &peer, greeted).is_ok();
            assert_eq!(permitted(Some(NodeId(1))), allowed, "{role} {request:?}");
            // Another node with this one's certificate, and somebody who is no node.
            let as_itself = matches!(request, ControlRequest::Change { change: Change::Join { .. }, .. });
            for greeted in [Some(NodeId(2)), None] {
                assert_eq!(permitted(greeted), allowed && !as_itself, "{role} {request:?} {greeted:?}");
            }
        }
    }
}
