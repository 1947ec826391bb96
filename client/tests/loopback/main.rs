//! The client over real QUIC on loopback, against peers that speak the protocol and do as each test tells
//! them: refuse, stay silent, lag behind, lead or not. How real nodes behave is tested with real nodes; here
//! it is how the client takes whatever comes.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod control;
mod infer;
mod peer;
mod state;
mod view;
