//! The deterministic simulator: a whole cluster in one thread, from one seed.
//!
//! The same code runs as in production: QUIC with TLS, redb, openraft, actors. Only the [`Environment`]
//! differs, which [`roost_node::start()`] takes. In reading order:
//! - [`run`]: one simulation from its seed to its verdict. [`plan`]: what a seed draws.
//! - [`world`]: a cluster from an ordinary cluster config. [`faults`]: what is done to it. [`workload`]: what
//!   is asked of it.
//! - [`facts`], [`history`] and [`remains`]: what happened, what clients were told, what lies on the disks.
//!   [`coverage`]: how often what is rare came.
//! - [`invariants`]: what must hold. [`linearizability`]: a checker of concurrent histories.
//! - [`trace`]: every event, packet and fault as a line; two runs of one seed are equal line by line.
//!   [`panics`]: how a run ends that panics. [`explore`]: seed after seed.
//! - The environment of a host: [`environment`], [`condition`], [`network`], [`disk`], [`engine`];
//!   [`entropy`] is one seeded source below everything that asks the operating system for randomness.
//!
//! [`Environment`]: roost_node::environment::Environment

pub mod condition;
pub mod coverage;
pub mod disk;
pub mod engine;
pub mod entropy;
pub mod environment;
pub mod explore;
pub mod facts;
pub mod faults;
pub mod history;
pub mod invariants;
pub mod linearizability;
pub mod network;
pub mod panics;
pub mod plan;
pub mod remains;
pub mod run;
pub mod trace;
pub mod workload;
pub mod world;
