//! The forming of a new group.
//!
//! Only the first coordinator of the config forms it, and only after every other one answered that it belongs to no group
//! yet. One whose data folder was emptied hears that the others do belong to one, and waits to be taken in as a learner.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roost_protocol::frame::Kind;
use roost_protocol::quic::endpoint::node_of;
use roost_protocol::{ControlError, NodeId};

use crate::coordinator::GroupMember;
use crate::peer::{PeerRequest, PeerResponse};
use crate::raft::types::Member;
use crate::shared::Shared;

/// Between two rounds of asking. Nodes of one cluster start within seconds of each other.
const ROUND: Duration = Duration::from_millis(200);
/// The first rounds fail silently: the others are starting too.
const SILENT_ROUNDS: u32 = 10;

/// What one round of asking found.
enum Round {
    /// Everyone is new: these form the group.
    AllNew(BTreeMap<u64, Member>),
    /// Somebody belongs to a group already.
    GroupExists(String),
    /// Somebody did not answer.
    Incomplete(ControlError),
}

/// Forms the group if this coordinator is the one to do so and none exists.
pub(crate) async fn run(shared: Arc<Shared>, group: Vec<GroupMember>) {
    let mut rounds = 0;
    loop {
        match shared.raft.is_initialized().await {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
        if group.first().is_none_or(|first| first.address != shared.address) {
            return;
        }
        rounds += 1;
        match ask_all(&shared, &group).await {
            Round::AllNew(members) => {
                tracing::info!(members = members.len(), "forms a new group");
                if let Err(error) = shared.raft.initialize(members).await {
                    tracing::warn!(%error, "the group was not formed");
                }
            }
            Round::GroupExists(address) => {
                if rounds == 1 {
                    tracing::warn!(
                        address,
                        "belongs to a group already, this data folder does not: this node will not vote \
                         until an operator replaces the old one by it"
                    );
                }
            }
            Round::Incomplete(error) if rounds % SILENT_ROUNDS == 0 => {
                tracing::info!(%error, "waits for the other coordinators");
            }
            Round::Incomplete(_) => {}
        }
        tokio::time::sleep(ROUND).await;
    }
}

async fn ask_all(shared: &Shared, group: &[GroupMember]) -> Round {
    let mut members = BTreeMap::new();
    for GroupMember { name, address } in group {
        let member = Member { name: name.to_string(), address: address.clone() };
        if *address == shared.address {
            members.insert(shared.node.0, member);
            continue;
        }
        match probe(shared, address).await {
            Ok((node, false)) => {
                members.insert(node.0, member);
            }
            Ok((_, true)) => return Round::GroupExists(address.clone()),
            Err(error) => return Round::Incomplete(error),
        }
    }
    Round::AllNew(members)
}

async fn probe(shared: &Shared, address: &str) -> Result<(NodeId, bool), ControlError> {
    let link = shared.peers.to(address).await.map_err(|error| error.into_control(address))?;
    let answer = link.ask((Kind::RaftRequest, &PeerRequest::Probe), Kind::RaftResponse).await;
    match answer.map_err(|error| error.into_control(address))? {
        PeerResponse::Probed { initialised, cluster } => {
            Ok((node_of(&link.hello)?, initialised || cluster.is_some()))
        }
        PeerResponse::Failed(error) => Err(error),
        _ => Err(ControlError::Malformed { what: "another answer than to a probe".to_owned() }),
    }
}
