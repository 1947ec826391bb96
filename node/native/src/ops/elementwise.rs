//! Operators that work element by element.

pub mod binary;
pub mod choice;
pub mod unary;

pub use binary::{Binary, infer_binary, lower_binary};
pub use choice::{infer_where, lower_clip, lower_where};
pub use unary::{Unary, infer_unary, lower_unary, map};
