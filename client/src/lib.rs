//! The client of a Roost cluster: routes requests for inference by itself, and reaches the control plane.
//!
//! ```no_run
//! # async fn example(image: roost_client::Tensor) -> Result<(), Box<dyn std::error::Error>> {
//! use std::time::Duration;
//! use roost_client::{Client, ClientConfig, CredentialsSource};
//!
//! let credentials = CredentialsSource::Files {
//!     ca: "certs/ca.pem".into(),
//!     certificate: "certs/anna.pem".into(),
//!     key: "certs/anna.key".into(),
//! };
//! let client = Client::connect(ClientConfig::new(["10.0.0.1:7400", "10.0.0.2:7400"], credentials)).await?;
//! let request = client.infer("digits").key("user-42").input("image", image);
//! let response = request.deadline(Duration::from_millis(500)).send().await?;
//! println!("version {} says {:?}", response.version, response.labels(1)?);
//! # Ok(())
//! # }
//! ```
//!
//! In reading order:
//! - [`client`]: what a program holds. [`infer`]: a request as it is built; [`response`]: what it gives.
//! - [`follow`]: keeps the view; [`routing`]: where a request goes by it. Pure.
//! - [`request`]: one request over all its attempts: retries, hedges, timeouts. Pure, with [`budget`],
//!   [`latency`] and [`load`]. Its driver is `drive`, what requests share is in `shared`.
//! - [`dispatch`]: one attempt at one node, over QUIC or within a process.
//! - [`control`]: changes, reads, pushes; [`bundle`]: what is pushed.
//! - [`backoff`]: how long whatever failed waits. `trace`: the trace that a request belongs to.
//! - `certs` (feature `certs`): a cluster's own CA; `npy` (feature `npy`): tensors from NumPy's files.
//!
//! A node uses this crate without its default features: it follows the view and its gateway routes by the
//! same code.

pub mod backoff;
pub mod budget;
pub mod bundle;
#[cfg(feature = "certs")]
pub mod certs;
pub mod client;
pub mod control;
pub mod dispatch;
mod drive;
pub mod follow;
pub mod infer;
pub mod latency;
pub mod load;
#[cfg(feature = "npy")]
pub mod npy;
pub mod request;
pub mod response;
pub mod routing;
mod shared;
#[cfg(test)]
mod tests;
#[cfg(feature = "opentelemetry")]
pub mod trace;
#[cfg(not(feature = "opentelemetry"))]
mod trace;

pub use bundle::LocalBundle;
pub use client::{Client, ClientConfig, ClientEnvironment, ClientParts, ConnectError, CredentialsSource};
pub use control::Control;
pub use dispatch::{Dispatch, QuicDispatch};
pub use follow::{Follower, Sources};
pub use infer::Infer;
pub use response::{Response, ResponseStream};
pub use roost_protocol::{InferError, ModelName, ModelVersion, Target, Tensor, Version};
