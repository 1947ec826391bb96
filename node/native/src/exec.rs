//! Execution: what kernels see, the interpreter for graphs whose shapes are data, and sessions.

pub mod interpret;
pub mod io;
