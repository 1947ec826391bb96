//! What all requests of a client share: the routes, what is known of the nodes, latencies, the budget,
//! randomness.
//!
//! One short lock, never held over an await. What was learnt of newer states than the present view is kept
//! here too, so that no request is routed by an older revision than this client has seen.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use roost_protocol::messages::infer::ResponseHeader;
use roost_protocol::traffic::KeyHash;
use roost_protocol::view::Published;
use roost_protocol::{Epoch, InferError, ModelName, NodeId, RequestId, Revision, Version};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::budget::Budget;
use crate::dispatch::{Destination, Dispatch};
use crate::follow::Follower;
use crate::latency::Latencies;
use crate::load::Loads;
use crate::routing::{Picked, Routes, Seen};

pub(crate) struct Shared {
    pub(crate) dispatch: Arc<dyn Dispatch>,
    routes: watch::Receiver<Option<Arc<Routes>>>,
    /// Told when a node is known to be ahead of the view.
    follower: Option<Arc<Follower>>,
    state: Mutex<State>,
}

/// What requests learn and use.
pub(crate) struct State {
    pub(crate) loads: Loads,
    pub(crate) budget: Budget,
    latencies: BTreeMap<(ModelName, Version), Latencies>,
    /// The newest traffic revision that was heard of, by model.
    seen: BTreeMap<ModelName, Seen>,
    rng: ChaCha12Rng,
}

impl Shared {
    /// What requests share, and the task that keeps its routes, which the caller runs. It tells `routed` what
    /// it made routes of.
    pub(crate) fn new(
        dispatch: Arc<dyn Dispatch>,
        published: watch::Receiver<Published>,
        routed: watch::Sender<Published>,
        follower: Option<Arc<Follower>>,
        seed: [u8; 32],
    ) -> (Arc<Self>, impl Future<Output = ()> + Send + use<>) {
        let first = Routes::of(&routed.borrow(), None).map(Arc::new);
        let (publish, routes) = watch::channel(first);
        let state = State {
            loads: Loads::default(),
            budget: Budget::default(),
            latencies: BTreeMap::new(),
            seen: BTreeMap::new(),
            rng: ChaCha12Rng::from_seed(seed),
        };
        let shared = Arc::new(Self { dispatch, routes, follower, state: Mutex::new(state) });
        let keep = keep_routes(shared.clone(), published, publish, routed);
        (shared, keep)
    }

    pub(crate) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The routes, for whoever waits for newer ones.
    pub(crate) fn routes(&self) -> watch::Receiver<Option<Arc<Routes>>> {
        self.routes.clone()
    }

    /// Where a node is, by its id.
    pub(crate) fn destination(&self, node: NodeId) -> Option<Destination> {
        let routes = self.routes.borrow();
        let found = routes.as_ref()?.view().nodes.get(&node)?;
        Some(Destination { node, name: found.name.clone(), address: found.address.as_str().into() })
    }

    /// Whether a later state than that of `epoch` was heard of.
    pub(crate) fn knows_of_later(&self, epoch: Epoch) -> bool {
        self.follower.as_ref().is_some_and(|follower| follower.latest_heard() > epoch)
    }

    /// The state of `epoch` exists; `from` has it. The view follows.
    fn heard_of(&self, epoch: Epoch, from: &Destination) {
        let known = self.routes.borrow().as_ref().map(|routes| routes.view().epoch);
        if known.is_some_and(|known| epoch <= known) {
            return;
        }
        if let Some(follower) = &self.follower {
            follower.heard_of(epoch, &from.address);
        }
    }

    /// Takes what a response's first frame says of the node's view.
    pub(crate) fn saw_header(&self, picked: &Picked, header: &ResponseHeader, from: &Destination) {
        let (generation, revision) = (header.generation, Revision(header.revision));
        if (generation, revision) > (picked.epoch.generation, picked.revision) {
            self.state().saw(&picked.model, Seen { generation, revision });
        }
        self.heard_of(header.epoch(), from);
    }

    /// Takes what an error says of the node's view.
    pub(crate) fn saw_error(&self, picked: &Picked, error: &InferError, from: &Destination) {
        if let InferError::StaleView { newest, generation, .. } = error {
            self.state().saw(&picked.model, Seen { generation: *generation, revision: Revision(*newest) });
            // It does not name its epoch, but it is one after that of this request's view.
            let index = picked.epoch.index.saturating_add(1);
            let next = Epoch { index, ..picked.epoch };
            self.heard_of(next.max(Epoch { generation: *generation, index: 0 }), from);
        }
        if let InferError::NotHere { generation, index, .. } = error {
            self.heard_of(Epoch { generation: *generation, index: *index }, from);
        }
    }
}

impl State {
    fn saw(&mut self, model: &ModelName, newer: Seen) {
        let seen = self.seen.entry(model.clone()).or_default();
        *seen = newer.max(*seen);
    }

    /// The newest revision of the model's traffic that was heard of.
    pub(crate) fn seen(&self, model: &ModelName) -> Seen {
        self.seen.get(model).copied().unwrap_or_default()
    }

    pub(crate) fn latencies(&mut self, picked: &Picked) -> &mut Latencies {
        self.latencies.entry((picked.model.clone(), picked.version)).or_default()
    }

    pub(crate) fn draw_key(&mut self) -> KeyHash {
        KeyHash(self.rng.next_u64())
    }

    pub(crate) fn draw_request(&mut self) -> RequestId {
        RequestId(u128::from(self.rng.next_u64()) << 64 | u128::from(self.rng.next_u64()))
    }

    /// Forgets what the routes no longer have.
    fn keep_only(&mut self, routes: &Routes) {
        let view = routes.view();
        self.loads.keep_only(|node| view.nodes.contains_key(&node));
        self.seen.retain(|model, _| view.models.contains_key(model));
        self.latencies.retain(|(model, version), _| {
            view.models.get(model).is_some_and(|model| model.versions.contains_key(version))
        });
    }
}

/// Makes routes of each state that is published.
async fn keep_routes(
    shared: Arc<Shared>,
    mut published: watch::Receiver<Published>,
    publish: watch::Sender<Option<Arc<Routes>>>,
    routed: watch::Sender<Published>,
) {
    while published.changed().await.is_ok() {
        let earlier = publish.borrow().clone();
        let newest = published.borrow_and_update().clone();
        let Some(routes) = Routes::of(&newest, earlier.as_deref()) else { continue };
        let view_changed = earlier.is_none_or(|earlier| earlier.view().epoch < routes.view().epoch);
        if view_changed {
            shared.state().keep_only(&routes);
            let addresses: BTreeSet<&str> =
                routes.view().nodes.values().map(|node| node.address.as_str()).collect();
            shared.dispatch.keep_only(&addresses);
        }
        publish.send_replace(Some(Arc::new(routes)));
        routed.send_replace(newest);
    }
}

/// Counts an attempt as in flight while it lives.
pub(crate) struct InFlight {
    shared: Arc<Shared>,
    node: NodeId,
}

impl InFlight {
    pub(crate) fn new(shared: &Arc<Shared>, node: NodeId) -> Self {
        shared.state().loads.sent(node, Instant::now());
        Self { shared: shared.clone(), node }
    }

    /// The node answered, with this hint if any.
    pub(crate) fn heard(&self, in_flight: Option<u32>, now: Instant) {
        self.shared.state().loads.heard(self.node, in_flight, now);
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.shared.state().loads.ended(self.node);
    }
}
