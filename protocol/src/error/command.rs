//! What the replicated state answers to a command that it refuses.

use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Epoch, Label, ModelName, ModelVersion, NodeId, NodeName, Revision, Version};

/// Why the replicated state refuses a command. The same command on the same state is always refused alike.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum CommandError {
    /// No model of that name.
    #[error("there is no model {model}; `roost models` lists them")]
    UnknownModel {
        /// The name.
        model: ModelName,
    },
    /// No such version.
    #[error("there is no version {version}; `roost versions {}` lists them", version.model)]
    UnknownVersion {
        /// The version.
        version: ModelVersion,
    },
    /// No such label.
    #[error("no version of {model} bears the label {label}")]
    UnknownLabel {
        /// The model.
        model: ModelName,
        /// The label.
        label: Label,
    },
    /// The model has a rollout already.
    #[error("{model} has a rollout to version {target} in progress; promote or abort it first")]
    RolloutInProgress {
        /// The model.
        model: ModelName,
        /// The version that it rolls out.
        target: Version,
    },
    /// The model has no rollout.
    #[error("{model} has no rollout in progress; start one with `roost rollout start {model}@VERSION`")]
    NoRollout {
        /// The model.
        model: ModelName,
    },
    /// The target serves all traffic already.
    #[error("{version} is the stable version already")]
    AlreadyStable {
        /// The version.
        version: ModelVersion,
    },
    /// There is no promotion to undo.
    #[error(
        "{model} has no promotion to undo; an undo itself is not undone: `roost rollout start {model}@VERSION` leads \
         to a version again"
    )]
    NothingToUndo {
        /// The model.
        model: ModelName,
    },
    /// A weight above 100 %, or steps that do not rise.
    #[error("the steps of a rollout rise from above 0 % to 100 %; {steps} do not")]
    BadSteps {
        /// The steps that came.
        steps: String,
    },
    /// The command was planned from another revision than the present one.
    #[error("the traffic of {model} is at revision {actual}, the command was planned at {planned}")]
    RevisionMismatch {
        /// The model.
        model: ModelName,
        /// The revision that the command names.
        planned: Revision,
        /// The present one.
        actual: Revision,
    },
    /// The version does not have the replicas that the change needs.
    #[error(
        "{version} has {ready} ready replicas, the change needs {needed}; `roost cluster status` shows why"
    )]
    NotReady {
        /// The version.
        version: ModelVersion,
        /// Ready replicas.
        ready: u32,
        /// Replicas that are needed.
        needed: u32,
    },
    /// Nobody has reserved the digest, so its bundle may be collected at any time.
    #[error("the bundle {digest} has no reservation; push it again")]
    NotReserved {
        /// The digest, in hexadecimal.
        digest: String,
    },
    /// Fewer voters than a quorum hold the bundle.
    #[error("{holders} of {voters} voters hold the bundle, a quorum is {quorum}")]
    TooFewHolders {
        /// Voters that hold it.
        holders: u32,
        /// Voters.
        voters: u32,
        /// How many make a quorum.
        quorum: u32,
    },
    /// The manifest is not valid.
    #[error("{reason}")]
    BadManifest {
        /// Why.
        reason: String,
    },
    /// A bound was passed.
    #[error("{what} may be {max} at most, it is {actual}")]
    LimitExceeded {
        /// The bound.
        what: String,
        /// Its value.
        max: u64,
        /// What came.
        actual: u64,
    },
    /// Another node bears the name.
    #[error(
        "a node named {name} is a member already, under another identity; its data folder was emptied or copied. Once \
         that one has been silent for a minute, this one takes its place; where fewer than half of the workers are \
         heard, only after `roost node drain {name}` (and `roost node uncordon {name}` when it has joined)"
    )]
    NameTaken {
        /// The name.
        name: NodeName,
    },
    /// Another name bears the node's id.
    #[error(
        "node id {node} is that of {name}: two nodes have one data folder copied. Empty the data folder of the one \
         that is not {name}; it then joins under an id of its own"
    )]
    IdTaken {
        /// The id.
        node: NodeId,
        /// Who bears it.
        name: NodeName,
    },
    /// No such node.
    #[error("there is no node {name}")]
    UnknownNode {
        /// The name.
        name: String,
    },
    /// The group was initialised before.
    #[error("the cluster is initialised already, as {cluster}")]
    AlreadyInitialised {
        /// Its id.
        cluster: ClusterId,
    },
    /// The group was not initialised yet.
    #[error("the cluster is not initialised yet")]
    NotInitialised,
    /// The request is older than the oldest outcome that is kept, so nobody can tell whether it was executed.
    #[error(
        "the request was first sent at {sent}, outcomes are kept from {oldest}; look at the state and ask anew"
    )]
    RequestTooOld {
        /// The epoch that the request's first attempt saw.
        sent: Epoch,
        /// The epoch of the oldest outcome.
        oldest: Epoch,
        /// The present epoch, which a request that was never sent before may name.
        present: Epoch,
    },
    /// The cluster is not at the level that the command came with.
    #[error(
        "this needs level {needed}, the cluster is at level {level}: it is raised once every coordinator runs a build \
         that supports it; `roost cluster status` shows which do"
    )]
    LevelTooLow {
        /// The level that is needed.
        needed: u32,
        /// The cluster's.
        level: u32,
    },
}
