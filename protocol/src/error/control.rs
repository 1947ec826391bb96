//! The errors of the control plane, around those of the replicated state.

use serde::{Deserialize, Serialize};

use super::CommandError;
use crate::ids::{ClusterId, ClusterName, Incarnation, ModelVersion, NodeName};

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
    /// The other side's certificate was issued for another cluster.
    #[error("this side's certificate is of the cluster {ours}, the other side's of the cluster {theirs}")]
    ForeignCertificate {
        /// The cluster of this side's certificate.
        ours: ClusterName,
        /// The cluster of the other side's.
        theirs: ClusterName,
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
    /// The file belongs to no bundle that is announced here, as when its reservation was not applied here yet.
    #[error("{file} belongs to no bundle that is reserved here; reserve the push first")]
    NotReserved {
        /// The file.
        file: String,
    },
    /// The version lacks ready replicas at present. Nothing was decided: the same request may succeed later.
    #[error(
        "{version} has {ready} ready replicas at present, the change needs {needed}; `roost cluster status` shows why"
    )]
    NotReady {
        /// The version.
        version: ModelVersion,
        /// Replicas that are ready or may be.
        ready: u32,
        /// Replicas that are needed.
        needed: u32,
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
    /// The change of who coordinates must wait: a member lags, or does not answer.
    #[error("the coordinators are not ready for that change: {reason}")]
    MembersNotReady {
        /// Who, and what is missing.
        reason: String,
    },
    /// The change of who coordinates makes no sense.
    #[error("who coordinates stays as it is: {reason}")]
    MembersRefused {
        /// Why.
        reason: String,
    },
    /// A report of a start of the node after which a later one was heard, whose reports count.
    #[error(
        "start {known} of this node was heard, this is start {reported}: its data folder is an older copy, or another process uses one"
    )]
    Outlived {
        /// The latest start that was heard.
        known: Incarnation,
        /// The one that reported.
        reported: Incarnation,
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
            | Self::NoBundle { .. }
            | Self::NotReserved { .. }
            | Self::NotReady { .. }
            | Self::MembersNotReady { .. } => true,
            Self::Refused(_)
            | Self::MembersRefused { .. }
            | Self::Outlived { .. }
            | Self::Forbidden { .. }
            | Self::WrongCluster { .. }
            | Self::ForeignCertificate { .. }
            | Self::WrongNode { .. }
            | Self::DigestMismatch { .. }
            | Self::LimitExceeded { .. }
            | Self::Malformed { .. }
            | Self::Storage { .. } => false,
        }
    }
}
