//! What a coordinator does while it leads: listens to nodes, publishes who is heard, carries out the planner's plans.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use openraft::alias::WatchReceiverOf;
use openraft::async_runtime::WatchReceiver;
use roost_protocol::frame::Kind;
use roost_protocol::view::SoftState;
use roost_protocol::{ClusterId, Term};
use tokio::time::Instant;

use crate::liveness::Registry;
use crate::peer::{PeerRequest, PeerResponse};
use crate::planner;
use crate::raft::types::Types;
use crate::shared::Shared;
use crate::state::Command;

/// Between two looks at who is silent and what is ready. A rollout starts to take traffic at most this late.
const TICK: Duration = Duration::from_millis(200);
/// A follower that does not take the soft state in this time gets the next one.
const SOFT: Duration = Duration::from_millis(500);
/// The name under which the planner's changes stand in histories.
const PLANNER: &str = "planner";

/// openraft's word on who leads.
type Metrics = WatchReceiverOf<Types, openraft::metrics::RaftServerMetrics<Types>>;

/// Takes a soft state, the leader's own or one that it sent, if it is later than the last.
pub(crate) fn publish(shared: &Shared, soft: SoftState) {
    shared.published.send_if_modified(|published| published.offer_soft(soft));
}

/// Watches who leads and does the leader's work while it is this coordinator. `fresh` is the identity that a new cluster
/// gets.
pub(crate) async fn run(shared: Arc<Shared>, fresh: ClusterId) {
    let mut metrics = shared.raft.server_metrics();
    loop {
        let (leads, term) = {
            let metrics = metrics.borrow_watched();
            (metrics.current_leader == Some(shared.node.0), Term(metrics.vote.leader_id.term))
        };
        if leads {
            let before = shared.published.borrow().soft.clone();
            let registry = Registry::new(term, &before, Instant::now());
            *shared.registry.lock().unwrap_or_else(PoisonError::into_inner) = Some(registry);
            tracing::info!(node = %shared.node, %term, "leads");
            tokio::select! {
                () = lead(&shared, fresh) => {}
                () = leads_no_longer(&mut metrics, &shared, term) => {}
            }
            *shared.registry.lock().unwrap_or_else(PoisonError::into_inner) = None;
            tracing::info!(node = %shared.node, %term, "leads no longer");
        } else if metrics.changed().await.is_err() {
            return;
        }
    }
}

async fn leads_no_longer(metrics: &mut Metrics, shared: &Shared, term: Term) {
    loop {
        {
            let metrics = metrics.borrow_watched();
            let same = metrics.current_leader == Some(shared.node.0);
            if !same || metrics.vote.leader_id.term != term.0 {
                return;
            }
        }
        if metrics.changed().await.is_err() {
            return;
        }
    }
}

async fn lead(shared: &Arc<Shared>, fresh: ClusterId) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut sent_sequence = None;
    loop {
        tick.tick().await;
        let (cluster, epoch) = shared.machine.state(|state| (state.cluster(), state.epoch()));
        if cluster.is_none() {
            let initialise = Command::Initialise { cluster: fresh };
            if let Err(error) = shared.propose(None, epoch, PLANNER, initialise).await {
                tracing::warn!(%error, "the cluster has no identity yet");
            }
            continue;
        }
        let Some(view) = shared.machine.state(|state| state.view()) else { continue };
        let now = Instant::now();
        let soft = shared.registry(|registry| {
            registry.handle_tick(|node| view.nodes.contains_key(&node), now);
            registry.soft().clone()
        });
        let Some(soft) = soft else { return };
        publish(shared, soft.clone());
        if sent_sequence != Some(soft.sequence) || !soft.settled {
            sent_sequence = Some(soft.sequence);
            send_to_followers(shared, &soft);
        }
        let commands = shared.machine.state(|state| {
            let silent = |node| shared.registry(|r| r.silent(node, now)).unwrap_or(Duration::ZERO);
            planner::plan(&view, state.rollouts(), &soft, silent)
        });
        for command in commands {
            tracing::info!(?command, "plans");
            match shared.propose(None, epoch, PLANNER, command).await.map(|applied| applied.result) {
                Ok(Ok(_)) => {}
                Ok(Err(error)) => tracing::info!(%error, "a plan came late"),
                Err(error) => tracing::warn!(%error, "a plan was not agreed on"),
            }
        }
    }
}

/// Sends the soft state to the other coordinators, so that they serve it too. Nothing waits for it: it is repeated with
/// the next change, and whole each time.
fn send_to_followers(shared: &Arc<Shared>, soft: &SoftState) {
    let coordinators = shared.machine.state(|state| state.coordinators().clone());
    for (_, coordinator) in coordinators.into_iter().filter(|(id, _)| *id != shared.node) {
        let (shared, request) = (shared.clone(), PeerRequest::Soft(Box::new(soft.clone())));
        tokio::spawn(async move {
            let send = async {
                let link = shared.peers.to(&coordinator.address).await.ok()?;
                link.ask::<_, PeerResponse>((Kind::RaftRequest, &request), Kind::RaftResponse).await.ok()
            };
            if tokio::time::timeout(SOFT, send).await.is_err() {
                tracing::debug!(to = %coordinator.name, "a follower did not take the soft state in time");
            }
        });
    }
}
