//! The errors that travel: what one party answers the other instead of what was asked.
//!
//! [`InferError`] is the data plane's, [`CommandError`] what the replicated state answers to a command that it refuses,
//! [`ControlError`] the control plane's around it. Each says what was expected, what came and what to do.

#![expect(
    missing_docs,
    reason = "rkyv's derive makes a public resolver of InferError, whose fields it does not document"
)]

use rkyv::{Archive, Deserialize as RkyvDeserialize, Serialize as RkyvSerialize};
use serde::{Deserialize, Serialize};

use crate::ids::{ClusterId, Epoch, Label, ModelName, ModelVersion, NodeName, Revision, Version};
use crate::limits::REASON_BYTES_MAX;

/// Why a request for inference has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Archive, RkyvSerialize, RkyvDeserialize)]
pub enum InferError {
    /// The view has no model of that name.
    #[error("there is no model {model:?}")]
    UnknownModel {
        /// The name.
        model: String,
    },
    /// The model has no such version, or none that is hosted.
    #[error("{model}@{version} is not hosted; hosted: {hosted:?}")]
    UnknownVersion {
        /// The model.
        model: String,
        /// The version that was asked for.
        version: u32,
        /// The versions that are hosted.
        hosted: Vec<u32>,
    },
    /// No version of the model bears the label.
    #[error("no version of {model} bears the label {label:?}")]
    UnknownLabel {
        /// The model.
        model: String,
        /// The label.
        label: String,
    },
    /// The node does not serve the version; its view is of this epoch, and a newer one says where to go.
    #[error("this node does not serve {model}@{version} (its view: generation {generation}, index {index})")]
    NotHere {
        /// The model.
        model: String,
        /// The version.
        version: u32,
        /// The generation of the node's view.
        generation: u32,
        /// The log index of the node's view.
        index: u64,
    },
    /// The node knows a newer traffic revision, which picks another version for the key.
    #[error("the traffic of {model} is at revision {newest}, the request was routed by {used}")]
    StaleView {
        /// The model.
        model: String,
        /// The revision that the request was routed by.
        used: u64,
        /// The newest that the node knows.
        newest: u64,
    },
    /// No replica can serve the version now.
    #[error("no replica of {model}@{version} is ready")]
    Unavailable {
        /// The model.
        model: String,
        /// The version.
        version: u32,
    },
    /// The node has as much waiting as it may.
    #[error("the node is overloaded; try again in {retry_after_us} µs")]
    Overloaded {
        /// When a further try makes sense.
        retry_after_us: u64,
    },
    /// The deadline passed.
    #[error("the deadline passed before an answer came")]
    DeadlineExceeded,
    /// Whoever asked gave up.
    #[error("the request was cancelled")]
    Cancelled,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// The model has no input of that name.
    #[error("{model} has no input {input:?}; its inputs are {inputs:?}")]
    UnknownInput {
        /// The model and version.
        model: String,
        /// The name that came.
        input: String,
        /// The names that there are.
        inputs: Vec<String>,
    },
    /// An input was not given.
    #[error("{model} needs an input {input:?}")]
    MissingInput {
        /// The model and version.
        model: String,
        /// The input that is missing.
        input: String,
    },
    /// An input was given twice.
    #[error("the input {input:?} was given twice")]
    DuplicateInput {
        /// The input.
        input: String,
    },
    /// The model has no output of that name.
    #[error("{model} has no output {output:?}; its outputs are {outputs:?}")]
    UnknownOutput {
        /// The model and version.
        model: String,
        /// The name that came.
        output: String,
        /// The names that there are.
        outputs: Vec<String>,
    },
    /// An input has another element type.
    #[error("input {input:?} is of {expected}, {actual} came")]
    WrongDType {
        /// The input.
        input: String,
        /// The model's type.
        expected: String,
        /// The type that came.
        actual: String,
    },
    /// An input has another rank, or another size along an axis that is fixed.
    #[error("input {input:?} has the shape {expected}, {actual} came")]
    WrongShape {
        /// The input.
        input: String,
        /// The model's shape; a dimension that may vary is its name.
        expected: String,
        /// The shape that came.
        actual: String,
    },
    /// Inputs disagree on how many rows the request has.
    #[error("input {input:?} has {actual} rows, another input has {expected}")]
    RowsDiffer {
        /// The input.
        input: String,
        /// Rows of the other input.
        expected: u64,
        /// Rows of this one.
        actual: u64,
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
    /// The bytes are not a message.
    #[error("malformed message: {what}")]
    Malformed {
        /// Where reading failed.
        what: String,
    },
    /// A field has a value that this node does not know.
    #[error("this node does not support {field} {code}")]
    Unsupported {
        /// The field.
        field: String,
        /// Its value.
        code: u32,
    },
    /// The executor that held the request died. Another may answer.
    #[error("the executor that held the request died: {reason}")]
    ExecutorFailed {
        /// Why.
        reason: String,
    },
    /// The model's session answered with an error.
    #[error("the model failed: {reason}")]
    ModelFailed {
        /// What the engine said.
        reason: String,
    },
    /// The certificate has no role that may ask for this.
    #[error("this needs a certificate with the role {needed}")]
    Forbidden {
        /// The role that is needed.
        needed: String,
    },
    /// The connection broke, or could not be made.
    #[error("cannot reach {node}: {reason}")]
    Unreachable {
        /// The node, or its address.
        node: String,
        /// What failed.
        reason: String,
    },
}

impl InferError {
    /// Whether another attempt, elsewhere or with a newer view, may succeed.
    pub fn retryable(&self) -> bool {
        match self {
            Self::NotHere { .. }
            | Self::StaleView { .. }
            | Self::Unavailable { .. }
            | Self::Overloaded { .. }
            | Self::Stopping
            | Self::ExecutorFailed { .. }
            | Self::Unreachable { .. } => true,
            Self::UnknownModel { .. }
            | Self::UnknownVersion { .. }
            | Self::UnknownLabel { .. }
            | Self::DeadlineExceeded
            | Self::Cancelled
            | Self::UnknownInput { .. }
            | Self::MissingInput { .. }
            | Self::DuplicateInput { .. }
            | Self::UnknownOutput { .. }
            | Self::WrongDType { .. }
            | Self::WrongShape { .. }
            | Self::RowsDiffer { .. }
            | Self::LimitExceeded { .. }
            | Self::Malformed { .. }
            | Self::Unsupported { .. }
            | Self::ModelFailed { .. }
            | Self::Forbidden { .. } => false,
        }
    }
}

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
    #[error("{model} has no earlier stable version to go back to")]
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
        "a node named {name} is a member already, under another identity; its data folder was emptied or copied"
    )]
    NameTaken {
        /// The name.
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
    },
}

/// Why the control plane did not do what was asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
pub enum ControlError {
    /// The replicated state refused the command; trying again changes nothing.
    #[error(transparent)]
    Refused(#[from] CommandError),
    /// This node is not the leader; `leader` is its address if it is known.
    #[error("this node does not lead{}", leader.as_deref().map_or(String::new(), |at| format!("; {at} does")))]
    NotLeader {
        /// `host:port` of the leader.
        leader: Option<String>,
    },
    /// No leader, or no quorum: the change was not made, or nobody knows yet whether it was.
    #[error("the coordinators cannot agree at present: {reason}; inference goes on, changes must wait")]
    NoQuorum {
        /// What failed.
        reason: String,
    },
    /// The node does not have the role that answers this.
    #[error("this node is no coordinator; coordinators: {coordinators:?}")]
    NotCoordinator {
        /// `host:port` of the coordinators that it knows.
        coordinators: Vec<String>,
    },
    /// The certificate has no role that may ask for this.
    #[error("this needs a certificate with the role {needed}; this one, {name}, has {roles}")]
    Forbidden {
        /// The role that is needed.
        needed: String,
        /// The certificate's name.
        name: String,
        /// Its roles.
        roles: String,
    },
    /// The other side belongs to another cluster.
    #[error("this node belongs to cluster {ours}, the other side to {theirs}")]
    WrongCluster {
        /// This node's cluster.
        ours: ClusterId,
        /// The other side's.
        theirs: ClusterId,
    },
    /// A node of that name is known under another id: its data folder was emptied or copied.
    #[error("{name} is known under another node id; its data folder was emptied or copied")]
    WrongNode {
        /// The node's name.
        name: NodeName,
    },
    /// A file's bytes do not have the digest that they should have.
    #[error("{file} should have the digest {expected}, its bytes have {actual}")]
    DigestMismatch {
        /// The file.
        file: String,
        /// The digest that it should have.
        expected: String,
        /// The digest that its bytes have.
        actual: String,
    },
    /// The node does not hold the bundle.
    #[error("this node does not hold the bundle {digest}")]
    NoBundle {
        /// The digest, in hexadecimal.
        digest: String,
    },
    /// The bytes are not a message.
    #[error("malformed message: {what}")]
    Malformed {
        /// Where reading failed.
        what: String,
    },
    /// The node's disk failed.
    #[error("storage failed: {reason}")]
    Storage {
        /// What failed.
        reason: String,
    },
    /// The connection broke, or could not be made.
    #[error("cannot reach {node}: {reason}")]
    Unreachable {
        /// The node's address.
        node: String,
        /// What failed.
        reason: String,
    },
}

impl ControlError {
    /// Whether another attempt, here or at another coordinator, may succeed.
    pub fn retryable(&self) -> bool {
        match self {
            Self::NotLeader { .. }
            | Self::NoQuorum { .. }
            | Self::NotCoordinator { .. }
            | Self::Unreachable { .. }
            | Self::NoBundle { .. } => true,
            Self::Refused(_)
            | Self::Forbidden { .. }
            | Self::WrongCluster { .. }
            | Self::WrongNode { .. }
            | Self::DigestMismatch { .. }
            | Self::Malformed { .. }
            | Self::Storage { .. } => false,
        }
    }
}

/// A text for an error or a history entry, cut at [`REASON_BYTES_MAX`].
pub fn reason(text: impl std::fmt::Display) -> String {
    let mut text = text.to_string();
    if text.len() > REASON_BYTES_MAX {
        let end = (0..=REASON_BYTES_MAX - 3).rev().find(|i| text.is_char_boundary(*i)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reason_is_cut_between_characters() {
        let cut = reason("ä".repeat(1000));
        assert!(cut.len() <= REASON_BYTES_MAX && cut.ends_with('…'));
        assert_eq!(reason("short"), "short");
    }
}
