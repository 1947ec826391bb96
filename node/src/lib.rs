//! The process of a Roost cluster: starts the roles that the cluster config gives to a node.
//!
//! In reading order:
//! - [`config`]: the cluster config; [`identity`]: who a node is across its starts.
//! - [`environment`]: everything that a node takes from outside; [`start`](mod@start): the composition root.
//! - [`worker`]: the worker role; [`engine`]: what runs models; [`membership`]: a worker's place in the cluster.
//! - [`telemetry`]: logs and spans; [`process`]: a node as a process; [`dev`]: a whole cluster in one.

pub mod config;
#[cfg(feature = "dev")]
pub mod dev;
pub mod engine;
pub mod environment;
pub mod identity;
pub mod membership;
pub mod process;
pub mod start;
pub mod telemetry;
pub mod worker;

pub use start::{Node, NodeConfig, StartError, start};
