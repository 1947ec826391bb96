//! QUIC, over sockets, clocks and names that are given.
//!
//! - [`network`]: where sockets, timers and addresses come from; [`TokioNetwork`] in production.
//! - [`tls`]: mutual TLS 1.3 with the cluster's own CA; who a peer is, from its certificate.
//! - [`service`]: what a connection is for; [`roles`]: who may ask for what.
//! - [`endpoint`]: endpoints, dialling, accepting, the greeting of both sides; [`links`]: links that are kept.
//! - [`stream`]: frames on streams.
//! - [`watch`]: views and soft states, delivered as they change.
//! - [`bundles`]: the transfer of bundles.

pub mod bundles;
pub mod endpoint;
pub mod links;
pub mod network;
pub mod roles;
pub mod service;
pub mod stream;
pub mod tls;
pub mod watch;

pub use endpoint::{Accepted, Dialler, Endpoint, Incoming, Link};
pub use links::Links;
pub use network::{Network, TokioNetwork};
pub use service::Service;
pub use stream::{StreamError, finish, read_frame, write_message};
pub use tls::{Credentials, PeerIdentity, Role, WallClock};
