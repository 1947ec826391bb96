//! From a graph and concrete input shapes to a plan: shapes are bound, what they make constant is folded,
//! passes fuse, kernels are chosen, and memory is laid out. All decisions about speed are made here, once per
//! shape tuple.
//!
//! Instead of carrying symbolic expressions through the compiler, binding specialises the graph anew for each
//! tuple of shapes: every rule then sees numbers. Weights are packed once and shared by all plans (see
//! [`pack`]).

pub mod arena;
pub mod bind;
pub mod condense;
pub mod floats;
pub mod pack;
pub mod schedule;
