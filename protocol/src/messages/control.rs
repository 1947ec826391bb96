//! The cold messages: what operators, nodes and clients ask of the control plane, and what a watch delivers.
//!
//! Encoded by postcard inside a frame. Each has a bounded size; the frame's limit holds for the whole.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::bundle::{BundleFile, FileList};
use crate::error::ControlError;
use crate::ids::{
    ClusterId, Digest, Epoch, Incarnation, Label, ModelName, ModelVersion, NodeId, NodeName, RequestId,
    Revision, Term, Version,
};
use crate::manifest::Manifest;
use crate::traffic::{Traffic, Weight};
use crate::view::{Delta, NodeProfile, NodeReport, SoftState, VersionReport, View};

/// What each side of a new connection says first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The cluster that the speaker belongs to, once it knows.
    pub cluster: Option<ClusterId>,
    /// The speaker's node, if it is one.
    pub node: Option<NodeId>,
}

/// A request to the control plane. One per stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ControlRequest {
    /// A change. Answered by [`ControlResponse::Done`].
    Change {
        /// Kept over the attempts, so that a change is made once.
        request: RequestId,
        /// The epoch that the first attempt saw.
        sent: Epoch,
        /// The change.
        change: Change,
    },
    /// A linearizable read. Answered by [`ControlResponse::Answer`].
    Query(Query),
    /// The view and the soft state, and all later ones. Answered by [`WatchUpdate`] frames until the stream ends.
    Watch {
        /// The epoch that the watcher has: nothing until there is a later one, then a delta if this node still knows it, else
        /// the full view.
        from: Option<Epoch>,
        /// The models that the watcher wants to know of.
        models: Watched,
    },
    /// A node's report. Answered by [`ControlResponse::Heard`].
    Heartbeat(Heartbeat),
    /// A change of who coordinates. Answered by [`ControlResponse::Reconfigured`].
    Reconfigure(Reconfigure),
    /// A snapshot of the replicated state. Answered by [`ControlResponse::Snapshot`] and chunks.
    Snapshot,
}

/// The answer to a [`ControlRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum ControlResponse {
    /// A change was committed.
    Done(Done),
    /// A read's answer.
    Answer(Box<Answer>),
    /// A report was heard by the leader.
    Heard {
        /// Its term.
        term: Term,
        /// The view that it has. A node that does not get it where it watches should watch elsewhere.
        epoch: Epoch,
    },
    /// It was not done.
    Failed(ControlError),
    /// Who coordinates was changed as asked, or had been before.
    Reconfigured(Reconfigured),
    /// A snapshot file follows in chunks.
    Snapshot {
        /// Its bytes.
        bytes: u64,
    },
}

/// A change of who coordinates. Each names the state that it leads to, so that another attempt at it does no harm.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reconfigure {
    /// Takes a coordinator in as a learner: it is sent the log and the bundles, and has no vote.
    Add {
        /// Its name, which must be that of its certificate.
        name: NodeName,
        /// `host:port` of its coordinator endpoint, where it runs with an empty data folder.
        address: String,
    },
    /// Gives votes to learners and ends the membership of others, in one step.
    Change {
        /// Learners that become voters. Each must hold all bundles that versions are made of.
        promote: BTreeSet<NodeId>,
        /// Members that cease to be any. Afterwards a quorum of the voters must still hold each bundle.
        remove: BTreeSet<NodeId>,
    },
    /// Hands leadership over.
    TransferLeader {
        /// The voter that is to lead; whoever is best up to date when there is none.
        to: Option<NodeId>,
    },
}

/// What came of a [`Reconfigure`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reconfigured {
    /// This node is a member.
    Added(NodeId),
    /// The members are as asked.
    Changed,
    /// This node leads.
    LedBy(NodeId),
}

/// Which models a watcher wants to know of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Watched {
    /// All.
    All,
    /// These.
    Models(BTreeSet<ModelName>),
}

/// A change that an operator or a node asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Change {
    /// Announces a bundle, so that it is kept while it is uploaded.
    ReservePush {
        /// The bundle's files.
        files: FileList,
    },
    /// Makes an uploaded bundle the next version. The leader first has a quorum of voters hold it.
    CommitPush {
        /// The model; made if there is none.
        model: ModelName,
        /// The bundle.
        digest: Digest,
        /// What its `model.toml` says.
        manifest: Box<Manifest>,
        /// A free text.
        note: String,
        /// Whether it becomes another version also where the model has one of this bundle already.
        new_version: bool,
    },
    /// Starts to lead a model's traffic to another version.
    StartRollout {
        /// The version.
        target: ModelVersion,
        /// The share that it starts with, once two replicas are ready.
        weight: Weight,
    },
    /// Makes the target of the model's rollout the stable version.
    Promote {
        /// The model.
        model: ModelName,
    },
    /// Ends the model's rollout: all traffic goes to the stable version.
    Abort {
        /// The model.
        model: ModelName,
        /// Why.
        reason: String,
    },
    /// Makes the stable version before the last promotion the stable one again, once it has replicas. An undo is not
    /// undone by another.
    Undo {
        /// The model.
        model: ModelName,
    },
    /// Puts a label on a version.
    SetLabel {
        /// The version.
        version: ModelVersion,
        /// The label.
        label: Label,
    },
    /// Takes a label away.
    RemoveLabel {
        /// The model.
        model: ModelName,
        /// The label.
        label: Label,
    },
    /// A worker joins, or reports that its address or profile changed.
    Join {
        /// Its id.
        node: NodeId,
        /// Its name, which must be that of its certificate.
        name: NodeName,
        /// `host:port` of its worker endpoint.
        address: String,
        /// What it is and can do.
        profile: Box<NodeProfile>,
    },
    /// A worker is about to stop, or stays after all.
    Drain {
        /// Its id.
        node: NodeId,
        /// Whether it drains.
        draining: bool,
    },
    /// Holds a worker back from owning versions, or lets it own them again.
    Hold {
        /// Its id.
        node: NodeId,
        /// From which; none lifts what held it.
        from: Option<HeldFrom>,
    },
    /// Forgets a model's old versions.
    Retain {
        /// The model.
        model: ModelName,
        /// How many of the newest are kept, beside those that take traffic, may take it by an undo, or bear a label.
        keep: u32,
    },
}

/// Which versions a worker is held back from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HeldFrom {
    /// Those that come to be hosted from now on.
    Further,
    /// All: others take over what it owns.
    All,
}

/// What a committed change led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The epoch that it led to.
    pub epoch: Epoch,
    /// What came of it.
    pub outcome: Outcome,
}

/// What came of a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Nothing to tell.
    Applied,
    /// A bundle may be uploaded.
    Reserved {
        /// Whether a version of the model has this bundle already.
        known: bool,
    },
    /// A version was made.
    Pushed {
        /// Its number.
        version: Version,
        /// Whether it is the model's first, and so serves all its traffic.
        stable: bool,
        /// Whether it was there before: the model had a version of this bundle.
        existing: bool,
    },
    /// The model's traffic changed.
    Rerouted {
        /// The revision that it is at now.
        revision: Revision,
    },
    /// Versions were forgotten.
    Forgotten {
        /// Which.
        versions: Vec<Version>,
    },
}

/// A linearizable read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Query {
    /// All models. Answered by [`Answer::Models`].
    Models,
    /// A model's versions. Answered by [`Answer::Versions`].
    Versions(ModelName),
    /// A model's traffic, rollout and history. Answered by [`Answer::Rollout`].
    Rollout(ModelName),
    /// The cluster. Answered by [`Answer::Cluster`].
    Cluster,
    /// A bundle's files. Answered by [`Answer::Files`].
    Files(Digest),
    /// Who coordinates. Answered by [`Answer::Members`].
    Members,
    /// The level of the state, and who supports which. Answered by [`Answer::Level`].
    Level,
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Answer {
    /// Models by name.
    Models(Vec<ModelSummary>),
    /// Versions in order.
    Versions(Vec<VersionSummary>),
    /// A model's traffic, rollout and history.
    Rollout(RolloutSummary),
    /// The cluster.
    Cluster(ClusterSummary),
    /// A bundle's files.
    Files(FileList),
    /// Who coordinates.
    Members(MembersSummary),
    /// The level of the state.
    Level(LevelSummary),
}

/// A model, as `roost models` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModelSummary {
    /// Its name.
    pub model: ModelName,
    /// Where its traffic goes.
    pub traffic: Traffic,
    /// How many versions it has.
    pub versions: u32,
    /// Labels, and the versions that bear them.
    pub labels: BTreeMap<Label, Version>,
}

/// A version, as `roost versions` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionSummary {
    /// Its number.
    pub version: Version,
    /// Its bundle.
    pub digest: Digest,
    /// The bytes of its bundle.
    pub bytes: u64,
    /// Who pushed it.
    pub pushed_by: String,
    /// When, in ms since 1970.
    pub pushed_at_ms: u64,
    /// The text that came with it.
    pub note: String,
}

/// A model's traffic, rollout and history.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutSummary {
    /// Where its traffic goes.
    pub traffic: Traffic,
    /// The rollout in progress.
    pub rollout: Option<Rollout>,
    /// What happened, oldest first.
    pub history: Vec<RolloutEvent>,
}

/// A rollout in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The version that it leads to.
    pub target: Version,
    /// The share that the operator asked for.
    pub weight: Weight,
    /// How it stands.
    pub state: RolloutState,
}

/// How a rollout stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RolloutState {
    /// The target takes no traffic yet: its replicas are not ready.
    Preparing,
    /// The target takes its share.
    Running,
    /// The target has its share, but too few ready replicas; requests fall back to stable.
    Paused {
        /// Why.
        reason: String,
    },
}

/// Something that happened to a model's traffic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RolloutEvent {
    /// When, in ms since 1970.
    pub at_ms: u64,
    /// Who did it: a certificate's name, or `planner`.
    pub by: String,
    /// What happened.
    pub kind: RolloutEventKind,
    /// The traffic's revision after it.
    pub revision: Revision,
}

/// What happened to a model's traffic, or to where its versions are.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RolloutEventKind {
    /// The first version of the model took all traffic.
    First(Version),
    /// A rollout began.
    Started {
        /// The version that it leads to.
        target: Version,
        /// The share that it will take.
        weight: Weight,
    },
    /// The target took its share.
    Exposed {
        /// The version.
        target: Version,
        /// The share.
        weight: Weight,
    },
    /// The rollout was paused.
    Paused {
        /// Why.
        reason: String,
    },
    /// The rollout went on.
    Resumed,
    /// The target became the stable version.
    Promoted {
        /// The version.
        target: Version,
    },
    /// The rollout was ended.
    Aborted {
        /// The version that it led to.
        target: Version,
        /// Why.
        reason: String,
    },
    /// An earlier stable version became the stable one again.
    Undone {
        /// The version that was stable.
        from: Version,
        /// The version that is stable now.
        to: Version,
    },
    /// A version is no longer placed on a worker, until that joins again.
    Excluded {
        /// The version.
        version: Version,
        /// The worker.
        node: NodeName,
        /// Why it gave the version up.
        reason: String,
    },
}

/// The cluster as its leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterSummary {
    /// The cluster.
    pub cluster: ClusterId,
    /// The leader.
    pub leader: NodeId,
    /// Its term.
    pub term: Term,
    /// The epoch that it has applied.
    pub epoch: Epoch,
    /// What the nodes reported.
    pub soft: SoftState,
    /// What the nodes counted.
    pub statistics: BTreeMap<NodeId, Vec<VersionStatistics>>,
}

/// The level of the replicated state: what commands do is gated on it, so that coordinators of different builds stay equal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LevelSummary {
    /// The level.
    pub level: u32,
    /// The level that each coordinator supports; none where it does not answer, or is of a build without levels.
    pub supported: BTreeMap<NodeId, Option<u32>>,
}

impl LevelSummary {
    /// The level that the state may be raised to: the highest that every coordinator supports. None while one does not say.
    pub fn attainable(&self) -> Option<u32> {
        let lowest = self.supported.values().copied().min().flatten();
        lowest.filter(|lowest| *lowest > self.level)
    }
}

/// Who coordinates, as the leader sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembersSummary {
    /// The members of the committed membership.
    pub members: Vec<MemberSummary>,
    /// Whether one set of voters is being replaced by another.
    pub changing: bool,
    /// What the leader's own config says otherwise; the committed membership counts.
    pub config_differs: Vec<String>,
}

/// A coordinator, as `roost cluster members list` prints it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemberSummary {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// `host:port` of its coordinator endpoint.
    pub address: String,
    /// Whether it votes; else it learns.
    pub voter: bool,
    /// Whether it leads.
    pub leader: bool,
    /// Log entries that it lacks; none when it was never heard by this leader.
    pub behind: Option<u64>,
    /// Milliseconds since the leader last heard of it; none when it never did.
    pub heard_ms: Option<u64>,
}

/// A node's report to the leader, about once a second and at each change of a stage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// The node.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// Grows with each report of the process.
    pub sequence: u64,
    /// The versions that it hosts or tries to.
    pub versions: Vec<VersionReport>,
    /// What it counted since its process started.
    pub statistics: Vec<VersionStatistics>,
}

/// What a node counted of one version since its process started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VersionStatistics {
    /// The version.
    pub version: ModelVersion,
    /// Requests that were answered.
    pub answered: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Of those answered, requests that fell back to this version because the one picked had no ready replica.
    pub fallbacks: u64,
}

/// What a watch delivers: states, not events. It may skip epochs and never goes back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum WatchUpdate {
    /// The whole view.
    View(Box<View>),
    /// What leads from the last view delivered to a later one.
    Delta(Box<Delta>),
    /// The soft state, whole or as a change of the last one delivered.
    Soft(SoftUpdate),
    /// This node cannot serve a view yet, or no longer.
    Failed(ControlError),
}

/// A soft state, whole or as a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SoftUpdate {
    /// The term and sequence that this changes; `None` when it is whole.
    pub from: Option<(Term, u64)>,
    /// The leader's term.
    pub term: Term,
    /// Its sequence.
    pub sequence: u64,
    /// See [`SoftState::settled`].
    pub settled: bool,
    /// Nodes that changed; `None` when a node is gone.
    pub nodes: BTreeMap<NodeId, Option<NodeReport>>,
}

impl SoftUpdate {
    /// What leads from `base` to `next`; whole without a base.
    pub fn between(base: Option<&SoftState>, next: &SoftState) -> Self {
        let empty = BTreeMap::new();
        let before = base.map_or(&empty, |base| &base.nodes);
        let gone = before.keys().filter(|id| !next.nodes.contains_key(id)).map(|id| (*id, None));
        let changed = next.nodes.iter().filter(|(id, report)| before.get(id) != Some(report));
        Self {
            from: base.map(|base| (base.term, base.sequence)),
            term: next.term,
            sequence: next.sequence,
            settled: next.settled,
            nodes: gone.chain(changed.map(|(id, report)| (*id, Some(report.clone())))).collect(),
        }
    }

    /// The soft state that this leads to from `base`; `None` when it starts from another.
    pub fn onto(self, base: &SoftState) -> Option<SoftState> {
        let mut nodes = match self.from {
            None => BTreeMap::new(),
            Some(from) if from == (base.term, base.sequence) => base.nodes.clone(),
            Some(_) => return None,
        };
        for (id, change) in self.nodes {
            match change {
                Some(report) => nodes.insert(id, report),
                None => nodes.remove(&id),
            };
        }
        Some(SoftState { term: self.term, sequence: self.sequence, settled: self.settled, nodes })
    }
}

/// A request for files of a bundle. One per stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BundleRequest {
    /// The list of a bundle's files. Answered by [`BundleResponse::Files`].
    List {
        /// The bundle.
        digest: Digest,
    },
    /// A file's bytes from an offset. Answered by [`BundleResponse::Follows`] and chunks.
    Get {
        /// The file's own digest.
        file: Digest,
        /// The first byte that is wanted.
        offset: u64,
    },
    /// Which of these files are not held. Answered by [`BundleResponse::Missing`].
    Missing {
        /// The bundle's files.
        files: FileList,
    },
    /// A file's bytes follow in chunks. Answered by [`BundleResponse::Held`] once they are checked and durable.
    Put {
        /// The file.
        file: BundleFile,
    },
    /// All files were put: the bundle is whole. Answered by [`BundleResponse::Held`] once that is durable.
    Seal {
        /// The bundle's files.
        files: FileList,
    },
}

/// The answer to a [`BundleRequest`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum BundleResponse {
    /// A bundle's files.
    Files(FileList),
    /// That many bytes follow in chunks.
    Follows {
        /// How many.
        bytes: u64,
    },
    /// Files that are not held.
    Missing(Vec<Digest>),
    /// What was put is checked and durable.
    Held,
    /// It was not done.
    Failed(ControlError),
}
