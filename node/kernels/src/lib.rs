//! Kernels of the native engine: the inner loops of neural networks, by hand for each instruction set.
//!
//! The promise is **one result**: a kernel gives the same bits on every instruction set, for any batch and
//! any number of threads. It rests on one rule: an element of a product is one chain of fused multiply-adds,
//! k ascending; a reduction has 16 virtual lanes and one tree; a function such as exp is one sequence of
//! rounded operations. Flush-to-zero is never on.
//!
//! In reading order:
//! - [`Isa`], [`Kernels`]: what this machine has, and the table of kernels for it. Whoever plans resolves a
//!   table once.
//! - `simd`: the vector traits all kernels are written over; `scalar`: the specification; `x86`, `arm`: what
//!   differs.
//! - [`Gemm`], [`QGemm`]: products in f32 and in 8 bits, weights packed beforehand, with an epilogue. `walk`:
//!   how their tiles go through rows and panels; `prefetch`: how weights come in time.
//! - [`Conv`], [`QConv`], [`Pool`], and [`ConvPool`], the first and the last in one: images in NHWC.
//! - [`Unary`], [`Binary`], [`Reduce`], softmax, norms, recurrent cells, quantisation, [`Half`] precision,
//!   [`transpose()`]: over rows.
//!
//! Kernels never allocate and never take a lock: results and scratch are slices of the caller's. Sizes are
//! asserted where a kernel is entered; that is the proof for the unsafe code below. Deliberately absent:
//! threads (callers split rows, columns or images), graphs, and element types other than f32 and 8 bits,
//! which safe code does well enough.

mod conv;
#[macro_use]
mod elementwise;
mod gemm;
mod half;
mod isa;
mod lookup;
mod math;
mod norm;
mod prefetch;
mod qgemm;
mod quantize;
#[macro_use]
mod reduce;
mod rnn;
mod scalar;
mod simd;
mod softmax;
mod table;
mod transpose;
mod walk;

#[cfg(target_arch = "aarch64")]
mod arm;
#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(test)]
mod test;

pub use conv::{Conv, ConvInput, ConvPool, ConvShape, Pool, PoolKind, QConv, QWeights, ShapeError, Window};
pub use elementwise::{Binary, BinaryKernel, Operand, Unary, UnaryKernel};
pub use gemm::{Activation, Epilogue, Gemm, Matrix, Rows, RowsMut};
pub use half::{Half, Weights};
pub use isa::{Features, Isa, IsaError};
pub use norm::Moments;
pub use qgemm::{ByteRows, BytesOut, FloatsOut, Output, QGemm, Sign, SumsOut, WeightZeros};
pub use quantize::Quantization;
pub use reduce::{Reduce, ReduceKernel};
pub use table::{Kernels, Layout};
pub use transpose::transpose;
