//! The deterministic simulator: a whole cluster in one thread, from one seed.
//!
//! The same code runs as in production: QUIC with TLS, redb, openraft, actors. Only the [`Environment`] differs, which
//! [`roost_node::start()`] takes:
//! - [`entropy`]: one seeded source below everything that asks the operating system for randomness.
//! - [`network`]: UDP by turmoil, with loss and duplication.
//! - [`disk`]: data folders that outlive a crash and lose what was not synced.
//! - [`environment`]: executors, runtimes and clocks of virtual time.
//! - [`engine`]: a session that computes a small known function.
//! - [`trace`]: every event and packet as a line; two runs of one seed are equal line by line.
//! - [`world`]: a cluster from an ordinary cluster config, and faults upon it.
//!
//! [`Environment`]: roost_node::environment::Environment

pub mod disk;
pub mod engine;
pub mod entropy;
pub mod environment;
pub mod network;
pub mod trace;
pub mod world;
