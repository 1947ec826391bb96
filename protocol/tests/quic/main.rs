//! Two parties over QUIC on loopback, with certificates of a CA of their own: greetings, frames, watches, bundles.

#[path = "../allocations/mod.rs"]
mod allocations;
#[expect(dead_code, reason = "watches need the samples of views alone")]
#[path = "../messages/mod.rs"]
mod messages;

mod bundles;
mod frames;
mod greeting;
mod party;
mod stalls;
mod watches;
