//! Roost's own inference engine: imports ONNX, compiles the graph, plans its memory, and runs it.
//!
//! The promise is **one result**: the same bits on every instruction set, for any batch and any number of
//! threads. The kernels give it (`roost-kernels`); this crate keeps it by deciding nothing from a shape that
//! would change a bit.
//!
//! In reading order:
//! - [`onnx`]: the format, versions of operators, and the translation to canonical operators.
//! - [`graph`], [`ops`]: the intermediate representation, and every operator's shapes and kernel.
//! - [`plan`]: binding to shapes, kernels, memory.
//! - [`exec`]: what kernels see, the interpreter.
//! - [`Model`], [`Program`], [`Session`]: what users of the crate hold.
//! - [`inspect`]: plans for people to read.
//! - [`conformance`], [`compare`]: running test data and comparing with what is expected.
//!
//! Deliberately absent: clocks, threads of its own, and unsafe code.

pub mod compare;
pub mod conformance;
pub mod error;
pub mod exec;
pub mod graph;
pub mod inspect;
pub mod math;
pub mod onnx;
pub mod ops;
pub mod pass;
pub mod plan;
pub mod program;
pub mod session;
pub mod tensor;

pub use error::{ImportError, OpError, RunError};
pub use onnx::import::{Limits, Model};
pub use program::{Options, Program};
pub use session::{Input, Session, Sink};
pub use tensor::{DType, Tensor};
