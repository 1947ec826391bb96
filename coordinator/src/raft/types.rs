//! openraft's types, as this cluster uses them. Nothing outside `raft` names them.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::state::{Applied, Proposal};

/// Randomness of openraft's elections comes from a seed, so that the simulator repeats them.
pub type Runtime = openraft_rt::deterministic_rng::DeterministicRng<openraft::impls::TokioRuntime>;

openraft::declare_raft_types!(
    /// The types of this cluster's Raft group.
    pub Types:
        D = Proposal,
        R = Applied,
        NodeId = u64,
        Node = Member,
        LeaderId = openraft::impls::leader_id_std::LeaderId<u64, u64>,
        AsyncRuntime = Runtime,
);

/// The Raft group as this coordinator takes part in it.
pub type Raft = openraft::Raft<Types, super::machine::Machine>;

/// A member of the group, as the committed membership has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Member {
    /// Its name in the cluster config.
    pub name: String,
    /// `host:port` of its coordinator endpoint.
    pub address: String,
}

impl fmt::Display for Proposal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} by {}", self.command, self.by)
    }
}

impl fmt::Display for Applied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {}", self.result, self.epoch)
    }
}
