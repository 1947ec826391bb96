//! The intermediate representation and its invariant.

pub mod ir;
pub mod linked;
pub mod verify;
