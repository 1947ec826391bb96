//! A worker over QUIC on loopback: the life of its versions, its answers, and what it does when things go wrong.
//!
//! Models run on real engines where they can show what is tested; where a session must block, fail or panic at will, on the
//! small engine of [`script`].
#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

#[cfg(all(feature = "native", feature = "onnxruntime"))]
mod digits;
mod eviction;
mod exchange;
mod failures;
mod fallback;
mod lives;
mod queue;
mod requests;
mod script;
#[cfg(feature = "otlp")]
mod trace;
mod world;
