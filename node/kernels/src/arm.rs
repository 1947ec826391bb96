//! ARM64: NEON, and its products of bytes with and without dotprod.

pub(crate) mod dot;
pub(crate) mod neon;
