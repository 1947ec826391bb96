//! What two parties of a Roost cluster must agree on. Pure but for [`store`] and [`quic`]: no clock, no
//! randomness.
//!
//! In reading order:
//! - [`ids`]: names and numbers that identify things; [`limits`]: every shared bound.
//! - [`tensor`]: element types, shapes, views; [`manifest`]: what a bundle says about its model; [`bundle`]: its files.
//! - [`view`]: the state that clients and workers route by; [`ring`], [`placement`] and [`traffic`]: the pure functions
//!   that route by it, which everyone must compute alike.
//! - [`error`]: the errors that travel; [`trace`]: the W3C trace context.
//! - [`frame`] and [`messages`]: the bytes on the wire.
//! - [`store`]: bundles in an object store that is given; [`snapshot`]: the file that keeps a cluster's state.
//! - [`quic`]: endpoints, certificates, streams and the transfer of bundles, over sockets that are given.
//! - [`known_bugs`]: switches for the simulator's tests, absent from release builds.

pub mod bundle;
pub mod error;
pub mod frame;
pub mod ids;
pub mod known_bugs;
pub mod limits;
pub mod manifest;
pub mod messages;
pub mod placement;
pub mod quic;
pub mod ring;
pub mod snapshot;
pub mod store;
pub mod tensor;
pub mod trace;
pub mod traffic;
pub mod view;

pub use error::{CommandError, ControlError, InferError};
pub use ids::{ClusterId, ClusterName, Digest, Epoch, Label, ModelName, ModelVersion, NodeId, NodeName};
pub use ids::{Incarnation, RequestId, Revision, Target, Tenant, Term, Version};
pub use known_bugs::KnownBug;
pub use tensor::{DType, Shape, Tensor, TensorView};
