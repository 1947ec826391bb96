//! The coordinator role: versions, traffic and rollouts in Raft; bundles held by a quorum; who is heard.
//!
//! In reading order:
//! - [`state`]: the replicated state and what commands do to it. Pure.
//! - [`planner`]: what the leader proposes by itself. Pure. [`liveness`]: who is heard. Pure.
//! - [`raft`]: the shell that makes entries agreed on and durable; nothing else names openraft's storage and network.
//! - [`coordinator`]: the role, started and stopped. Inside it: the server's answers, the leader's work, the holding and the
//!   removal of bundles, the forming of a new group, and the change of who is of it.
//! - [`peer`]: what coordinators say to each other. [`recover`]: a group of one out of what is left, offline.

mod artefact;
mod bootstrap;
pub mod coordinator;
#[cfg(test)]
mod frozen;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod hostile;
mod leader;
mod level;
pub mod liveness;
mod members;
pub mod peer;
pub mod planner;
mod points;
pub mod raft;
pub mod recover;
mod server;
mod shared;
pub mod state;

pub use coordinator::{
    Coordinator, CoordinatorConfig, CoordinatorParts, GroupMember, RaftConfig, StartError,
};
pub use raft::disk::{Job, JobQueue};
pub use raft::fault::DiskFault;
