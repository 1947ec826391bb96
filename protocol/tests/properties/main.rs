//! Properties of every encoder and decoder: what is written reads back, and what is hostile is refused without a panic
//! and without more memory than its length accounts for.
//!
//! A case that fails is kept in `proptest-regressions/` and tried first from then on.

#[path = "../allocations/mod.rs"]
mod allocations;
#[path = "../messages/mod.rs"]
mod messages;

mod decoders;
mod hostile;
mod round_trips;
