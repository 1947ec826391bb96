//! The raising of the level: coordinators of different builds make the same of the same log, because a command is obeyed, or
//! means something else than before, only from a level on that each of them has said that it obeys.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use roost_protocol::NodeId;
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::LevelSummary;
use roost_protocol::view::Coordinator;

use crate::leader;
use crate::peer::{PeerRequest, PeerResponse};
use crate::shared::Shared;
use crate::state::Command;

/// Between two rounds of asking, while this build obeys more than the state is at. Builds change within minutes.
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// The level of the state, and what each coordinator obeys.
pub(crate) async fn summary(shared: &Arc<Shared>) -> LevelSummary {
    let (level, members) = shared.machine.state(|state| (state.level(), state.coordinators().clone()));
    let asks = members.iter().map(|(node, member)| async move {
        let supported =
            if *node == shared.node { Some(shared.level) } else { ask(shared, *node, member).await };
        (*node, supported)
    });
    let supported: BTreeMap<NodeId, Option<u32>> = join_all(asks).await.into_iter().collect();
    LevelSummary { level, supported }
}

/// The level that a coordinator obeys; none when it does not answer, or does not know the question.
pub(crate) async fn ask(shared: &Shared, node: NodeId, member: &Coordinator) -> Option<u32> {
    let ask = async {
        let link = shared.link_to(node, member).await.ok()?;
        match link.ask((Kind::RaftRequest, &PeerRequest::Supports), Kind::RaftResponse).await {
            Ok(PeerResponse::Supports { level }) => Some(level),
            Ok(_) | Err(_) => None,
        }
    };
    tokio::time::timeout(shared.pace.ask(), ask).await.ok().flatten()
}

/// Raises the state while this coordinator leads, once every coordinator obeys more than it is at. Ends when it obeys no more
/// itself.
pub(crate) async fn raise(shared: &Arc<Shared>) {
    while shared.machine.state(|state| state.level()) < shared.level {
        // Nobody is taken in between the answers and the raise, nor by a change that was given up and is in the log yet.
        let members = shared.members.read().await;
        if shared.cluster().is_some()
            && shared.settle().await.is_ok()
            && let Some(level) = summary(shared).await.attainable()
        {
            leader::carry_out(shared, Command::RaiseLevel { level }).await;
        }
        drop(members);
        tokio::time::sleep(ASK_AGAIN).await;
    }
}
