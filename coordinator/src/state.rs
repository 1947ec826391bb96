//! The replicated state: what must never be lost or disagreed on. Pure: commands in, outcomes out.
//!
//! [`State::apply`] is a function of the state and the log entry alone. It reads no clock (timestamps travel in the
//! entries), draws no random number, and iterates ordered maps only, so that all replicas stay equal. What clients and
//! workers need of it is projected by [`State::view`]. How entries come to be agreed on is in [`crate::raft`].

mod apply;
pub(crate) mod bounds;
mod outcomes;
mod rollout;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roost_protocol::bundle::{BundleFile, FileList};
use roost_protocol::limits::VERSIONS_MAX;
use roost_protocol::manifest::Manifest;
use roost_protocol::messages::control::{
    HeldFrom, ModelSummary, Outcome, Rollout, RolloutEvent, RolloutSummary, VersionSummary,
};
use roost_protocol::traffic::{Traffic, Weight};
use roost_protocol::view::{Coordinator, HostedVersion, Model, Node, NodeProfile, View};
use roost_protocol::{
    ClusterId, CommandError, Digest, Epoch, Label, ModelName, ModelVersion, NodeId, NodeName, RequestId,
    Revision, Version,
};
use serde::{Deserialize, Serialize};

pub(crate) use self::apply::is_about_the_plan;
use self::outcomes::Outcomes;

/// A log entry: a command, and what makes it idempotent and traceable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Proposal {
    /// The request that it carries out; none for the planner's, which are fenced by revisions instead.
    pub request: Option<RequestId>,
    /// The epoch that the request's first attempt saw.
    pub sent: Epoch,
    /// The leader's wall-clock time in ms since 1970.
    pub at_ms: u64,
    /// Who asked: the name in a certificate, or `planner`.
    pub by: String,
    /// What to do.
    pub command: Command,
}

/// What a log entry does to the state.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Command {
    /// Gives the cluster its identity. The first command of each cluster.
    Initialise {
        /// The identity.
        cluster: ClusterId,
    },
    /// Keeps a bundle while it is uploaded.
    Reserve {
        /// The bundle's files.
        files: FileList,
    },
    /// Makes a bundle the next version of a model.
    CommitVersion {
        /// The model.
        model: ModelName,
        /// The bundle.
        digest: Digest,
        /// What its `model.toml` says.
        manifest: Box<Manifest>,
        /// A free text.
        note: String,
        /// Coordinators that verified and synced it.
        holders: BTreeSet<NodeId>,
        /// Whether it becomes another version also where the model has one of this bundle already.
        new_version: bool,
    },
    /// Starts a rollout. The target takes no traffic before [`Command::Expose`].
    StartRollout {
        /// The version that it leads to.
        target: ModelVersion,
        /// The share that the target will take.
        weight: Weight,
    },
    /// Gives the target of a rollout its share.
    Expose {
        /// The model.
        model: ModelName,
        /// The revision that this was planned from.
        revision: Revision,
    },
    /// Notes that the target of a rollout lacks ready replicas.
    Pause {
        /// The model.
        model: ModelName,
        /// The revision that this was planned from.
        revision: Revision,
        /// Why.
        reason: String,
    },
    /// Notes that the target of a paused rollout has its replicas again.
    Resume {
        /// The model.
        model: ModelName,
        /// The revision that this was planned from.
        revision: Revision,
    },
    /// Makes the target of a rollout the stable version.
    Promote {
        /// The model.
        model: ModelName,
        /// The revision at which the leader found the target ready.
        revision: Revision,
    },
    /// Ends a rollout; all traffic goes to the stable version.
    Abort {
        /// The model.
        model: ModelName,
        /// Why.
        reason: String,
    },
    /// Goes back to the stable version before the last promotion.
    Undo {
        /// The model.
        model: ModelName,
        /// The revision at which the leader looked whether that version has replicas.
        revision: Revision,
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
    /// A worker joins, returns, or reports another address or profile.
    Join {
        /// Its id.
        node: NodeId,
        /// Its name.
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
    /// An operator holds a worker back from owning versions, or lets it own them again.
    Hold {
        /// Its id.
        node: NodeId,
        /// From which; none lifts what held it.
        from: Option<HeldFrom>,
    },
    /// A worker was silent for too long.
    NodeOut {
        /// Its id.
        node: NodeId,
        /// The log index of the join that this was planned from: a node that joined again meanwhile is not silent.
        joined: u64,
    },
    /// A worker cannot host a version: another should own it.
    Exclude {
        /// The worker.
        node: NodeId,
        /// The log index of the join that this was planned from: a node that joined again meanwhile may load it now.
        joined: u64,
        /// The version.
        version: ModelVersion,
        /// What the last failure said.
        reason: String,
    },
    /// Forgets a bundle that was reserved and never committed, so that its files may be removed.
    Collect {
        /// The bundle.
        digest: Digest,
        /// The reservation that this was planned from: one that was renewed stays.
        reserved_at_ms: u64,
    },
    /// Refuses a request for a reason that only the leader sees, so that all its attempts are refused alike.
    Refuse {
        /// The reason.
        error: Box<CommandError>,
    },
    /// Forgets a model's old versions, and with them bundles that no other version is made of.
    Retain {
        /// The model.
        model: ModelName,
        /// How many of the newest are kept, beside those that are hosted.
        keep: u32,
    },
    /// Raises the level: what the commands of that level do is done from here on. Only once every coordinator obeys it.
    RaiseLevel {
        /// The level.
        level: u32,
    },
}

/// What applying an entry led to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// The epoch after it.
    pub epoch: Epoch,
    /// What came of it.
    pub result: Result<Outcome, CommandError>,
}

/// The replicated state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct State {
    cluster: Option<ClusterId>,
    generation: u32,
    /// What commands do is gated on this, so that replicas of different builds stay equal.
    level: u32,
    /// The log index of the last entry applied.
    index: u64,
    /// The log index of the last entry that changed the view.
    view_index: u64,
    /// The latest time that an entry told; it never goes back.
    now_ms: u64,
    coordinators: BTreeMap<NodeId, Coordinator>,
    /// One set of voters, or two while one replaces the other; a quorum is one of each.
    voters: Vec<BTreeSet<NodeId>>,
    /// Those that were coordinators and are none any more, the latest last.
    former: Vec<NodeId>,
    nodes: BTreeMap<NodeId, NodeRecord>,
    models: BTreeMap<ModelName, ModelRecord>,
    bundles: BTreeMap<Digest, BundleRecord>,
    outcomes: Outcomes,
}

/// The level of a new cluster, whichever build founds it: all replicas must make the same of its first command. It is what the
/// first release does; until then what commands do may change without a level of its own.
pub const LEVEL_FIRST: u32 = 1;
/// The highest level that this build obeys. A command that is new, or that does something else than before, comes with a level
/// of its own, at which [`Command::needs`] allows it; the leader raises the state to it once every coordinator obeys it.
pub const LEVEL: u32 = 1;

impl Command {
    /// The level from which on the command is obeyed.
    pub(crate) fn needs(&self) -> u32 {
        match self {
            Self::Initialise { .. } => 0,
            Self::Reserve { .. }
            | Self::CommitVersion { .. }
            | Self::StartRollout { .. }
            | Self::Expose { .. }
            | Self::Pause { .. }
            | Self::Resume { .. }
            | Self::Promote { .. }
            | Self::Abort { .. }
            | Self::Undo { .. }
            | Self::SetLabel { .. }
            | Self::RemoveLabel { .. }
            | Self::Join { .. }
            | Self::Drain { .. }
            | Self::Hold { .. }
            | Self::NodeOut { .. }
            | Self::Exclude { .. }
            | Self::Collect { .. }
            | Self::Refuse { .. }
            | Self::Retain { .. }
            // Proposed only when every coordinator has said that it obeys the level.
            | Self::RaiseLevel { .. } => LEVEL_FIRST,
        }
    }
}

/// A worker.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct NodeRecord {
    node: Node,
    /// The log index of its last join.
    joined: u64,
}

/// A model: all its versions, and where its traffic goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct ModelRecord {
    versions: BTreeMap<Version, VersionRecord>,
    labels: BTreeMap<Label, Version>,
    traffic: Traffic,
    rollout: Option<Rollout>,
    history: Vec<RolloutEvent>,
}

/// A version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct VersionRecord {
    digest: Digest,
    bytes: u64,
    manifest: Arc<Manifest>,
    excluded: BTreeSet<NodeId>,
    /// The log index at which it last came to be hosted; none while it is not.
    hosted_since: Option<u64>,
    pushed_by: String,
    pushed_at_ms: u64,
    note: String,
    /// What it takes in a snapshot, by [`bounds::encoded_bytes`] when it was made.
    kept_bytes: u64,
}

/// A bundle that must be kept: one that a version is made of, or that is being uploaded.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct BundleRecord {
    files: FileList,
    /// When a push last reserved it, until that push is committed; for collecting what never is. Without, a version is made
    /// of it; with, one may be as well, which may be forgotten while the push goes on.
    reserved_at_ms: Option<u64>,
}

impl State {
    /// The cluster's identity; none before the first command.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.cluster
    }

    /// The epoch of the last entry applied.
    pub fn epoch(&self) -> Epoch {
        Epoch { generation: self.generation, index: self.index }
    }

    /// The epoch of the last entry that changed the view.
    pub fn view_epoch(&self) -> Epoch {
        Epoch { generation: self.generation, index: self.view_index }
    }

    /// What commands do is gated on this.
    pub fn level(&self) -> u32 {
        self.level
    }

    /// The state with which a new group begins that goes on with this one: of `founder` alone, in a later generation. Those of
    /// the old group are not former members but strangers, since their logs may go on where this state ends; the ids that
    /// the founder had there, `was`, go over to its new one where they stand for a worker of the same machine.
    pub(crate) fn refounded(
        mut self,
        generation: u32,
        founder: (NodeId, Coordinator),
        was: &[NodeId],
    ) -> Self {
        let (node, coordinator) = founder;
        (self.generation, self.view_index) = (generation, self.index);
        self.coordinators = [(node, coordinator)].into();
        self.voters = vec![[node].into()];
        self.former.clear();
        for was in was {
            if let Some(record) = self.nodes.remove(was) {
                self.nodes.insert(node, record);
            }
            let versions = self.models.values_mut().flat_map(|model| model.versions.values_mut());
            for excluded in versions.map(|version| &mut version.excluded) {
                if excluded.remove(was) {
                    excluded.insert(node);
                }
            }
        }
        self
    }

    /// The coordinators of the committed membership.
    pub fn coordinators(&self) -> &BTreeMap<NodeId, Coordinator> {
        &self.coordinators
    }

    /// One set of voters, or two while one replaces the other.
    pub fn voters(&self) -> &[BTreeSet<NodeId>] {
        &self.voters
    }

    /// Those that were coordinators and are none any more, as far back as is remembered.
    pub fn former_coordinators(&self) -> impl Iterator<Item = NodeId> {
        self.former.iter().copied()
    }

    /// What clients and workers route by; none before the cluster has an identity.
    pub fn view(&self) -> Option<View> {
        Some(View {
            cluster: self.cluster?,
            epoch: self.view_epoch(),
            coordinators: self.coordinators.clone(),
            nodes: self.nodes.iter().map(|(id, record)| (*id, record.node.clone())).collect(),
            models: self
                .models
                .iter()
                .map(|(name, model)| (name.clone(), Arc::new(model.project())))
                .collect(),
        })
    }

    /// The models, as `roost models` prints them.
    pub fn models(&self) -> Vec<ModelSummary> {
        let summary = |(name, model): (&ModelName, &ModelRecord)| ModelSummary {
            model: name.clone(),
            traffic: model.traffic.clone(),
            versions: model.versions.len() as u32,
            labels: model.labels.clone(),
        };
        self.models.iter().map(summary).collect()
    }

    /// A model's versions, as `roost versions` prints them.
    ///
    /// # Errors
    /// [`CommandError::UnknownModel`].
    pub fn versions(&self, model: &ModelName) -> Result<Vec<VersionSummary>, CommandError> {
        let summary = |(number, version): (&Version, &VersionRecord)| VersionSummary {
            version: *number,
            digest: version.digest,
            bytes: version.bytes,
            pushed_by: version.pushed_by.clone(),
            pushed_at_ms: version.pushed_at_ms,
            note: version.note.clone(),
        };
        Ok(self.model(model)?.versions.iter().map(summary).collect())
    }

    /// A model's traffic, rollout and history.
    ///
    /// # Errors
    /// [`CommandError::UnknownModel`].
    pub fn rollout(&self, model: &ModelName) -> Result<RolloutSummary, CommandError> {
        let record = self.model(model)?;
        Ok(RolloutSummary {
            traffic: record.traffic.clone(),
            rollout: record.rollout.clone(),
            history: record.history.clone(),
        })
    }

    /// The rollouts in progress, for the planner.
    pub fn rollouts(&self) -> impl Iterator<Item = (&ModelName, &Rollout, &Traffic)> {
        let rollout = |(name, model)| {
            let model: &ModelRecord = model;
            model.rollout.as_ref().map(|rollout| (name, rollout, &model.traffic))
        };
        self.models.iter().filter_map(rollout)
    }

    /// The name of a worker.
    pub fn node_name(&self, node: NodeId) -> Option<&NodeName> {
        self.nodes.get(&node).map(|record| &record.node.name)
    }

    /// The workers and the log index of each one's last join, for the planner.
    pub fn joins(&self) -> impl Iterator<Item = (NodeId, u64)> {
        self.nodes.iter().map(|(id, record)| (*id, record.joined))
    }

    /// The bundles that are reserved and not committed, and since when in ms since 1970, for the planner.
    pub fn reservations(&self) -> impl Iterator<Item = (&Digest, u64)> {
        self.bundles.iter().filter_map(|(digest, bundle)| Some((digest, bundle.reserved_at_ms?)))
    }

    /// The latest time that an entry told, in ms since 1970.
    pub fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// What came of a request that was first sent at the epoch `sent`; `None` when it was not carried out yet.
    pub fn outcome(&self, request: &RequestId, sent: Epoch) -> Option<Applied> {
        match self.outcomes.of(request, sent, self.epoch()) {
            Ok(applied) => applied.cloned(),
            Err(error) => Some(Applied { epoch: self.epoch(), result: Err(error) }),
        }
    }

    /// The files of a bundle that is referenced or reserved.
    pub fn bundle(&self, digest: &Digest) -> Option<&FileList> {
        self.bundles.get(digest).map(|bundle| &bundle.files)
    }

    /// The bundles that versions are made of, which every coordinator must hold.
    pub fn referenced_bundles(&self) -> impl Iterator<Item = (&Digest, &FileList)> {
        let needed = self.needed_bundles();
        let referenced = self.bundles.iter().filter(move |(digest, _)| needed.contains(*digest));
        referenced.map(|(digest, bundle)| (digest, &bundle.files))
    }

    /// What the versions are made of.
    fn needed_bundles(&self) -> BTreeSet<Digest> {
        let versions = self.models.values().flat_map(|model| model.versions.values());
        versions.map(|version| version.digest).collect()
    }

    /// The bundles that are referenced or reserved.
    pub fn bundles(&self) -> impl Iterator<Item = (&Digest, &FileList)> {
        self.bundles.iter().map(|(digest, bundle)| (digest, &bundle.files))
    }

    /// Whether a file belongs, as it is, to a bundle that is referenced or reserved, so that it may be uploaded. Its size
    /// counts too: it was reserved for so many bytes.
    pub fn awaits_file(&self, file: &BundleFile) -> bool {
        self.bundles.values().any(|bundle| bundle.files.files().contains(file))
    }

    fn model(&self, model: &ModelName) -> Result<&ModelRecord, CommandError> {
        self.models.get(model).ok_or_else(|| CommandError::UnknownModel { model: model.clone() })
    }

    fn model_mut(&mut self, model: &ModelName) -> Result<&mut ModelRecord, CommandError> {
        self.models.get_mut(model).ok_or_else(|| CommandError::UnknownModel { model: model.clone() })
    }
}

impl ModelRecord {
    /// The versions that must be hosted: those that take traffic or may do so at one committed switch, and those that a
    /// label pins.
    fn hosted(&self) -> BTreeSet<Version> {
        let routed =
            [Some(self.traffic.stable), self.traffic.previous, self.rollout.as_ref().map(|r| r.target)];
        routed.into_iter().flatten().chain(self.labels.values().copied()).collect()
    }

    /// Notes which versions came to be hosted by the entry at `index`, and which no longer are.
    fn note_hosted(&mut self, index: u64) {
        let hosted = self.hosted();
        for (version, record) in &mut self.versions {
            record.hosted_since = hosted.contains(version).then(|| record.hosted_since.unwrap_or(index));
        }
    }

    fn project(&self) -> Model {
        let hosted = |version| {
            let record: &VersionRecord = &self.versions[&version];
            let hosted = HostedVersion {
                digest: record.digest,
                bytes: record.bytes,
                manifest: record.manifest.clone(),
                excluded: record.excluded.clone(),
                since: record.hosted_since.unwrap_or_default(),
            };
            (version, hosted)
        };
        Model {
            traffic: self.traffic.clone(),
            versions: self.hosted().into_iter().map(hosted).collect(),
            labels: self.labels.clone(),
        }
    }

    /// The number of the next version: never one that was used before.
    fn next_version(&self) -> Result<Version, CommandError> {
        let last = self.versions.keys().next_back().map_or(0, |version| version.0);
        if self.versions.len() >= VERSIONS_MAX {
            let (max, actual) = (VERSIONS_MAX as u64, self.versions.len() as u64 + 1);
            return Err(CommandError::LimitExceeded { what: "versions of a model".to_owned(), max, actual });
        }
        Ok(Version(last + 1))
    }
}

#[cfg(test)]
mod tests;
