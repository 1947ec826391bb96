//! What a coordinator does while it leads: listens to nodes, publishes who is heard, carries out the planner's plans.
//!
//! It listens and plans side by side: a plan that waits for a quorum must not keep readiness from clients. All stop when
//! the coordinator leads no longer, also when it only cannot reach a quorum: another may lead by then, and nodes that
//! reported here would be taken for dead there.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use openraft::async_runtime::WatchReceiver;
use roost_protocol::frame::Kind;
use roost_protocol::view::{NodeState, SoftState};
use roost_protocol::{ClusterId, NodeId, Term};
use tokio::time::{Instant, MissedTickBehavior};

use crate::level;
use crate::liveness::Registry;
use crate::members;
use crate::peer::{PeerRequest, PeerResponse};
use crate::planner::{self, Outlook};
use crate::shared::Shared;
use crate::state::Command;

/// Between two looks at who is silent and what is ready. A rollout starts to take traffic at most this late.
const TICK: Duration = Duration::from_millis(200);
/// Between two looks at whether this coordinator leads, while it may.
const LOOK: Duration = Duration::from_millis(50);
/// A follower that restarted has forgotten what it was sent.
const SOFT_AGAIN: Duration = Duration::from_secs(2);
/// The name under which the planner's changes stand in histories.
const PLANNER: &str = "planner";

/// Watches who leads and does the leader's work while it is this coordinator. `fresh` is the identity that a new cluster
/// gets. Ends when Raft does.
pub(crate) async fn run(shared: Arc<Shared>, fresh: ClusterId) {
    while let Some(term) = until_leads(&shared).await {
        let before = shared.published.borrow().soft.clone();
        set_registry(&shared, Some(Registry::new(term, &before, Instant::now())));
        tracing::info!(node = %shared.node, %term, "leads");
        tokio::select! {
            () = lead(&shared, fresh) => {}
            () = leads_no_longer(&shared, term) => {}
        }
        set_registry(&shared, None);
        tracing::info!(node = %shared.node, %term, "leads no longer");
    }
}

fn set_registry(shared: &Shared, registry: Option<Registry>) {
    *shared.registry.lock().unwrap_or_else(PoisonError::into_inner) = registry;
}

async fn until_leads(shared: &Shared) -> Option<Term> {
    // The metrics that `won` reads: openraft tells the server's first, and those might not change again.
    let mut metrics = shared.raft.metrics();
    loop {
        if let Some(term) = shared.leads() {
            return Some(term);
        }
        if shared.won().is_some() {
            tokio::time::sleep(LOOK).await;
        } else {
            metrics.changed().await.ok()?;
        }
    }
}

async fn leads_no_longer(shared: &Shared, term: Term) {
    while shared.leads() == Some(term) {
        tokio::time::sleep(LOOK).await;
    }
}

async fn lead(shared: &Arc<Shared>, fresh: ClusterId) {
    // A state that lags does not know every node, and would forget what is known of those.
    while let Err(error) = shared.catch_up().await {
        tracing::debug!(%error, "leads and has not caught up yet");
        tokio::time::sleep(LOOK).await;
    }
    tokio::join!(listen(shared), govern(shared, fresh), level::raise(shared));
}

/// Keeps the soft state, and gives it to clients and followers.
async fn listen(shared: &Arc<Shared>) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut followers = Followers::default();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            Some((follower, taken)) = followers.sending.next() => {
                followers.handle_sent(follower, taken);
                continue;
            }
        }
        let expected = shared.machine.state_and_view(|_, view| {
            let expected = view.nodes.iter().map(|(id, node)| (*id, node.state != NodeState::Out));
            expected.collect::<BTreeMap<NodeId, bool>>()
        });
        let Some(expected) = expected else { continue };
        let now = Instant::now();
        let soft = shared.registry(|registry| {
            registry.handle_tick(&expected, now);
            registry.soft().clone()
        });
        let Some(soft) = soft else { return };
        shared.publish(soft.clone());
        followers.send(shared, &soft, now);
    }
}

/// Who was given which soft state.
#[derive(Default)]
struct Followers {
    sending: FuturesUnordered<BoxFuture<'static, (NodeId, Option<u64>)>>,
    busy: BTreeSet<NodeId>,
    /// The sequence that each took last, and when it was sent.
    taken: BTreeMap<NodeId, (u64, Instant)>,
}

impl Followers {
    /// Sends the soft state, whole, to each follower that lacks it and is not being sent one.
    fn send(&mut self, shared: &Arc<Shared>, soft: &SoftState, now: Instant) {
        let coordinators = shared.machine.state(|state| state.coordinators().clone());
        self.taken.retain(|id, _| coordinators.contains_key(id));
        for (id, coordinator) in coordinators.into_iter().filter(|(id, _)| *id != shared.node) {
            let fresh = self.taken.get(&id).is_some_and(|(sequence, at)| {
                *sequence == soft.sequence && now.duration_since(*at) < SOFT_AGAIN
            });
            if fresh || !self.busy.insert(id) {
                continue;
            }
            let (shared, sequence) = (shared.clone(), soft.sequence);
            let request = PeerRequest::Soft(Box::new(soft.clone()));
            self.taken.remove(&id);
            self.sending.push(Box::pin(async move {
                let send = async {
                    let link = shared.link_to(id, &coordinator).await.ok()?;
                    let answer = link.ask((Kind::RaftRequest, &request), Kind::RaftResponse).await;
                    matches!(answer, Ok(PeerResponse::Heard)).then_some(sequence)
                };
                (id, tokio::time::timeout(shared.pace.soft(), send).await.ok().flatten())
            }));
        }
    }

    fn handle_sent(&mut self, follower: NodeId, taken: Option<u64>) {
        self.busy.remove(&follower);
        if let Some(sequence) = taken {
            self.taken.insert(follower, (sequence, Instant::now()));
        }
    }
}

/// Gives a new cluster its identity, then carries out the planner's plans, one after the other.
async fn govern(shared: &Arc<Shared>, fresh: ClusterId) {
    let mut tick = tokio::time::interval(TICK);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        members::finish(shared).await;
        let commands = match shared.cluster() {
            None => vec![Command::Initialise { cluster: fresh }],
            Some(_) => plans(shared),
        };
        for command in commands {
            carry_out(shared, command).await;
        }
    }
}

/// Has a command of the leader's own agreed on. One that is not is planned anew, if it is still due.
pub(crate) async fn carry_out(shared: &Shared, command: Command) {
    tracing::info!(?command, "plans");
    let epoch = shared.machine.state(|state| state.epoch());
    match shared.propose(None, epoch, PLANNER, command).await.map(|applied| applied.result) {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::info!(%error, "a plan came late"),
        Err(error) => tracing::warn!(%error, "a plan was not agreed on"),
    }
}

fn plans(shared: &Shared) -> Vec<Command> {
    let now = Instant::now();
    let known = shared.registry(|registry| {
        let members = registry.soft().nodes.keys();
        let silent: BTreeMap<NodeId, Duration> = members.map(|id| (*id, registry.silent(*id, now))).collect();
        (registry.soft().clone(), silent, registry.listened(now))
    });
    let Some((soft, silent, longest)) = known else { return Vec::new() };
    let plans = shared.machine.state_and_view(|state, view| {
        planner::plan(&Outlook {
            view,
            rollouts: state.rollouts().collect(),
            joins: state.joins().collect(),
            reservations: state.reservations().map(|(digest, at_ms)| (*digest, at_ms)).collect(),
            soft: &soft,
            silent: view.nodes.keys().map(|id| (*id, *silent.get(id).unwrap_or(&longest))).collect(),
            now_ms: shared.clock.now_ms(),
        })
    });
    plans.unwrap_or_default()
}
