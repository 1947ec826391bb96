//! The view: the part of the replicated state that clients and workers route by, and the soft state published beside it.
//!
//! A [`View`] is a state of the replicated state machine at an [`Epoch`]; a holder only ever moves to a later one. A
//! [`Delta`] leads from one epoch to another and applies to its base alone. [`SoftState`] (who is alive, what is ready) is
//! not replicated: it is ordered by (term, sequence) and may be missing, which means unknown, never "not ready".

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Digest, Epoch, Incarnation, Label, ModelName, NodeId, NodeName, Term, Version};
use crate::manifest::{EngineChoice, Manifest};
use crate::ring::{Ring, Speed};
use crate::traffic::Traffic;

/// What clients and workers route by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct View {
    /// The cluster.
    pub cluster: ClusterId,
    /// The state that this is.
    pub epoch: Epoch,
    /// The coordinators of the committed membership, by id.
    pub coordinators: BTreeMap<NodeId, Coordinator>,
    /// The worker nodes, by id.
    pub nodes: BTreeMap<NodeId, Node>,
    /// The models, by name.
    pub models: BTreeMap<ModelName, Arc<Model>>,
}

/// A coordinator, as the committed membership has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coordinator {
    /// Its name in the cluster config.
    pub name: NodeName,
    /// `host:port` of its coordinator endpoint.
    pub address: String,
    /// Whether it votes; a learner does not.
    pub voter: bool,
}

/// A worker node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// Its name in the cluster config.
    pub name: NodeName,
    /// `host:port` of its worker endpoint.
    pub address: String,
    /// Whether it may own versions.
    pub state: NodeState,
    /// What an operator holds it back from.
    pub hold: Option<Hold>,
    /// What it is and can do.
    pub profile: NodeProfile,
}

/// What an operator holds a node back from, until the operator lifts it. It outlives the node's restarts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Hold {
    /// It owns no version that came to be hosted at this log index or later.
    Cordoned {
        /// The log index.
        since: u64,
    },
    /// It owns nothing.
    Drained,
}

/// Whether a node may own versions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum NodeState {
    /// It owns versions.
    Active,
    /// It is being emptied and owns nothing further.
    Draining,
    /// It was silent for too long; it owns nothing until it returns.
    Out,
}

/// What a node is and can do; reported when it joins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeProfile {
    /// Its share of the ring relative to others.
    pub speed: Speed,
    /// Where it stands; replicas prefer different zones. Empty: nowhere in particular.
    pub zone: String,
    /// Labels that a manifest may ask for.
    pub labels: BTreeMap<String, String>,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its instruction set, as users read it: `x86-64 avx512`.
    pub isa: String,
    /// The engines that it has; never [`EngineChoice::Auto`].
    pub engines: BTreeSet<EngineChoice>,
}

/// A model: its traffic and its versions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Model {
    /// Where its traffic goes.
    pub traffic: Traffic,
    /// The versions that are hosted. Others exist, but nobody routes to them.
    pub versions: BTreeMap<Version, HostedVersion>,
    /// Labels, and the versions that bear them.
    pub labels: BTreeMap<Label, Version>,
}

/// A version that workers host.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct HostedVersion {
    /// Its bundle.
    pub digest: Digest,
    /// The bytes of its bundle.
    pub bytes: u64,
    /// What its bundle says about it.
    pub manifest: Arc<Manifest>,
    /// Nodes that repeatedly failed to load it.
    pub excluded: BTreeSet<NodeId>,
    /// The log index at which it last came to be hosted.
    pub since: u64,
}

impl View {
    /// The ring of all nodes. That only active ones own versions is for [`crate::placement`] to see to: a node that is
    /// passed over on the walk leaves the others' order as it is.
    pub fn ring(&self) -> Ring {
        Ring::new(self.nodes.iter().map(|(id, node)| (*id, &node.name, node.profile.speed)))
    }

    /// What leads from `base` to this view.
    pub fn delta_from(&self, base: &Self) -> Delta {
        Delta {
            from: base.epoch,
            to: self.epoch,
            coordinators: (base.coordinators != self.coordinators).then(|| self.coordinators.clone()),
            nodes: changes(&base.nodes, &self.nodes),
            models: changes(&base.models, &self.models),
        }
    }

    /// Moves to `delta.to`.
    ///
    /// # Errors
    /// [`DeltaError`] when the delta starts from another epoch than this view's; the view is unchanged then, and the full
    /// one must be asked for.
    pub fn apply(&mut self, delta: Delta) -> Result<(), DeltaError> {
        if delta.from != self.epoch {
            return Err(DeltaError { from: delta.from, ours: self.epoch });
        }
        self.epoch = delta.to;
        if let Some(coordinators) = delta.coordinators {
            self.coordinators = coordinators;
        }
        apply_changes(&mut self.nodes, delta.nodes);
        apply_changes(&mut self.models, delta.models);
        Ok(())
    }
}

/// What leads from one epoch of the view to a later one. `None` removes an entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Delta {
    /// The only epoch that it applies to.
    pub from: Epoch,
    /// The epoch that it leads to.
    pub to: Epoch,
    /// The coordinators, if they changed.
    pub coordinators: Option<BTreeMap<NodeId, Coordinator>>,
    /// Nodes that changed.
    pub nodes: BTreeMap<NodeId, Option<Node>>,
    /// Models that changed.
    pub models: BTreeMap<ModelName, Option<Arc<Model>>>,
}

/// A delta that does not start where the view is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a delta from epoch {from} does not apply to a view of epoch {ours}")]
pub struct DeltaError {
    /// Where the delta starts.
    pub from: Epoch,
    /// Where the view is.
    pub ours: Epoch,
}

fn changes<K: Ord + Clone, V: PartialEq + Clone>(
    base: &BTreeMap<K, V>,
    next: &BTreeMap<K, V>,
) -> BTreeMap<K, Option<V>> {
    let removed = base.keys().filter(|key| !next.contains_key(key)).map(|key| (key.clone(), None));
    let changed = next.iter().filter(|(key, value)| base.get(key) != Some(value));
    removed.chain(changed.map(|(key, value)| (key.clone(), Some(value.clone())))).collect()
}

fn apply_changes<K: Ord, V>(map: &mut BTreeMap<K, V>, changes: BTreeMap<K, Option<V>>) {
    for (key, change) in changes {
        match change {
            Some(value) => map.insert(key, value),
            None => map.remove(&key),
        };
    }
}

/// What the leader has heard lately. Never in the log.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct SoftState {
    /// The leader's term. With the sequence, orders soft states.
    pub term: Term,
    /// Grows with each change within a term.
    pub sequence: u64,
    /// Whether the leader has listened for a full interval. Until then a node that is absent here is unknown, and what was
    /// known of it before still holds.
    pub settled: bool,
    /// What the nodes reported, by id.
    pub nodes: BTreeMap<NodeId, NodeReport>,
}

impl SoftState {
    /// Whether this is later than `other`.
    pub fn is_after(&self, other: &Self) -> bool {
        (self.term, self.sequence) > (other.term, other.sequence)
    }

    /// Takes a later soft state, keeping what was known of nodes that its leader has not heard yet. Returns whether it was
    /// later; an earlier one changes nothing.
    pub fn advance(&mut self, mut later: Self) -> bool {
        if !later.is_after(self) {
            return false;
        }
        if !later.settled {
            let known = std::mem::take(&mut self.nodes);
            for (node, report) in known {
                later.nodes.entry(node).or_insert(report);
            }
        }
        *self = later;
        true
    }

    /// The stage that `node` last reported for a version; `None` when nothing is known.
    pub fn stage(&self, node: NodeId, model: &ModelName, version: Version) -> Option<&Stage> {
        let report = self.nodes.get(&node)?;
        report.versions.iter().find(|v| v.model == *model && v.version == version).map(|v| &v.stage)
    }

    /// Whether `node` can be sent requests for a version: it reported it ready and is not silent.
    pub fn serves(&self, node: NodeId, model: &ModelName, version: Version) -> bool {
        let live = self.nodes.get(&node).is_some_and(|report| report.liveness == Liveness::Live);
        live && matches!(self.stage(node, model, version), Some(Stage::Ready))
    }
}

/// Earlier views that are kept for watchers that come back. The nodes of a large cluster take a MiB in each; a watcher that
/// was away for more changes gets the full view.
const RECENT_VIEWS_MAX: usize = 8;

/// The newest that a node or a client knows: what it routes by, and what it serves to watchers.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The view; none until the first arrives.
    pub view: Option<Arc<View>>,
    /// The soft state beside it.
    pub soft: Arc<SoftState>,
    /// The views before the present one, oldest first.
    recent: VecDeque<Arc<View>>,
}

impl Published {
    /// A view and a soft state, and nothing earlier.
    pub fn new(view: Option<Arc<View>>, soft: Arc<SoftState>) -> Self {
        Self { view, soft, recent: VecDeque::new() }
    }

    /// Takes a view if it is later than the present one. Returns whether it was.
    pub fn offer_view(&mut self, view: Arc<View>) -> bool {
        let later = self.view.as_ref().is_none_or(|ours| view.epoch > ours.epoch);
        if later && let Some(earlier) = self.view.replace(view) {
            if self.recent.len() == RECENT_VIEWS_MAX {
                self.recent.pop_front();
            }
            self.recent.push_back(earlier);
        }
        later
    }

    /// The view of an earlier epoch, if it is still known.
    pub fn recent(&self, epoch: Epoch) -> Option<&Arc<View>> {
        self.recent.iter().find(|view| view.epoch == epoch)
    }

    /// Takes a soft state if it is later than the present one; see [`SoftState::advance`]. Returns whether it was.
    pub fn offer_soft(&mut self, soft: SoftState) -> bool {
        if !soft.is_after(&self.soft) {
            return false;
        }
        Arc::make_mut(&mut self.soft).advance(soft)
    }
}

/// What one node last reported, and whether it is still heard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// The node's process. A report of an earlier one is ignored.
    pub incarnation: Incarnation,
    /// Orders the reports of one process.
    pub sequence: u64,
    /// Whether the node is still heard.
    pub liveness: Liveness,
    /// The versions that it hosts or tries to.
    pub versions: Vec<VersionReport>,
}

/// Whether a node is heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Liveness {
    /// Heard within the last interval.
    Live,
    /// Silent for some seconds: not used while another can be.
    Suspect,
}

/// How far a node is with a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionReport {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: Version,
    /// How far it is.
    pub stage: Stage,
    /// The engine that runs it, once it is loaded.
    pub engine: Option<EngineChoice>,
}

/// A stage in the life of a hosted version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Its bundle is being fetched.
    Fetching {
        /// Bytes that are here.
        bytes: u64,
        /// Bytes of the whole bundle.
        of: u64,
    },
    /// Its digests are being checked.
    Verifying,
    /// Its sessions are being made.
    Loading,
    /// It runs its warm-up batches.
    Warming,
    /// It answers requests.
    Ready,
    /// It answers what still comes, and will be unloaded.
    Draining,
    /// It is gone from memory.
    Unloaded,
    /// It cannot be hosted here.
    Failed {
        /// Why.
        reason: String,
    },
}

impl Stage {
    /// Whether the node answers requests for the version, gladly or not.
    pub fn serves(&self) -> bool {
        match self {
            Self::Ready | Self::Draining => true,
            Self::Fetching { .. }
            | Self::Verifying
            | Self::Loading
            | Self::Warming
            | Self::Unloaded
            | Self::Failed { .. } => false,
        }
    }

    /// The stage's name, as users read it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fetching { .. } => "fetching",
            Self::Verifying => "verifying",
            Self::Loading => "loading",
            Self::Warming => "warming",
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Unloaded => "unloaded",
            Self::Failed { .. } => "failed",
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::ids::Revision;

    pub(crate) fn node(name: &str, zone: &str) -> Node {
        let profile = NodeProfile {
            speed: Speed::default(),
            zone: zone.to_owned(),
            labels: BTreeMap::new(),
            memory_mib: 1024,
            isa: "x86-64 avx2".to_owned(),
            engines: [EngineChoice::OnnxRuntime].into(),
        };
        let address = "127.0.0.1:7400".to_owned();
        Node { name: NodeName::new(name).unwrap(), address, state: NodeState::Active, hold: None, profile }
    }

    pub(crate) fn view(epoch: u64, nodes: u64, models: &[&str]) -> View {
        let nodes = (0..nodes).map(|i| (NodeId(i), node(&format!("node-{i}"), ""))).collect();
        let model = |name: &&str| {
            let version = HostedVersion {
                digest: Digest::of(name.as_bytes()),
                bytes: 10,
                manifest: Arc::new(Manifest::default()),
                excluded: BTreeSet::new(),
                since: 1,
            };
            let (stable, revision) = (Version(1), Revision(1));
            let model = Model {
                traffic: Traffic { revision, stable, canary: None, previous: None },
                versions: [(stable, version)].into(),
                labels: BTreeMap::new(),
            };
            (ModelName::new(name).unwrap(), Arc::new(model))
        };
        View {
            cluster: ClusterId(7),
            epoch: Epoch { generation: 1, index: epoch },
            coordinators: BTreeMap::new(),
            nodes,
            models: models.iter().map(model).collect(),
        }
    }

    #[test]
    fn a_delta_leads_from_its_base_alone() {
        let (base, next) = (view(3, 3, &["a", "b"]), view(9, 5, &["b", "c"]));
        let delta = next.delta_from(&base);
        assert_eq!(delta.models.keys().map(ModelName::as_str).collect::<Vec<_>>(), ["a", "c"]);
        let mut moved = base.clone();
        moved.apply(delta.clone()).unwrap();
        assert_eq!(moved, next);
        moved.apply(delta).unwrap_err();
        assert_eq!(moved, next);
    }

    #[test]
    fn an_unsettled_leader_does_not_unmake_what_was_known() {
        let report = |incarnation| NodeReport {
            incarnation: Incarnation(incarnation),
            sequence: 1,
            liveness: Liveness::Live,
            versions: Vec::new(),
        };
        let soft = |term, sequence, settled, nodes: &[u64]| SoftState {
            term: Term(term),
            sequence,
            settled,
            nodes: nodes.iter().map(|n| (NodeId(*n), report(term))).collect(),
        };
        let mut state = soft(1, 5, true, &[1, 2]);
        assert!(!state.advance(soft(1, 5, true, &[])));
        assert!(state.advance(soft(2, 1, false, &[2])));
        assert_eq!(state.nodes.keys().map(|n| n.0).collect::<Vec<_>>(), [1, 2]);
        assert_eq!(state.nodes[&NodeId(2)].incarnation, Incarnation(2));
        assert!(state.advance(soft(2, 2, true, &[2])));
        assert_eq!(state.nodes.len(), 1);
    }
}
