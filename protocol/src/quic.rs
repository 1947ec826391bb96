//! QUIC: the only IO of this crate, over sockets, clocks and names that are given.
//!
//! - [`network`]: where sockets, timers and addresses come from; [`TokioNetwork`] in production.
//! - [`tls`]: mutual TLS 1.3 with the cluster's own CA; who a peer is, from its certificate.
//! - [`endpoint`]: endpoints, dialling, accepting, the greeting of both sides.
//! - [`stream`]: frames on streams.
//! - [`watch`]: views and soft states, delivered as they change.
//! - [`bundles`]: stores of bundles, and their transfer.

pub mod bundles;
pub mod endpoint;
pub mod network;
pub mod stream;
pub mod tls;
pub mod watch;

pub use endpoint::{Accepted, Dialler, Endpoint, Link, Links, Service};
pub use network::{Network, TokioNetwork};
pub use stream::{StreamError, finish, read_frame, write_message};
pub use tls::{Credentials, PeerIdentity, Role, WallClock};
