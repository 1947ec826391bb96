//! Convolution and pooling over images in NHWC, in f32 and in 8 bits.
//!
//! A convolution is a GEMM whose k runs over (ky, kx, channel): the taps that lie within the image, in that
//! order. Taps in the padding are skipped, so the image is cut into regions whose pixels have the same taps
//! ([`shape`]); each region is a set of lines of tiles. Small images go by whole rows instead ([`rows`]), or by
//! rows of taps ([`passes`]). A 1×1 convolution is one plain GEMM over all pixels. The bits of a pixel depend
//! neither on its neighbours in a tile nor on the batch.
//!
//! A pool after a large convolution takes rows as they come ([`ConvPool`]).
//!
//! Deliberately absent: im2col buffers, Winograd, and a third spatial dimension.

mod depthwise;
mod float;
mod int;
mod passes;
mod pool;
mod pooled;
mod rows;
mod shape;

pub use float::{Conv, ConvInput};
pub use int::{QConv, QWeights};
pub use pool::{Pool, PoolKind};
pub use pooled::ConvPool;
pub use shape::{ConvShape, ShapeError, Window};

pub(crate) use depthwise::{DepthwiseArgs, DepthwiseFn, QDepthwiseArgs, QDepthwiseFn, depthwise, qdepthwise};
pub(crate) use pool::{PoolArgs, PoolFn, QPoolArgs, QPoolFn, average_line, max_bytes_line, max_line};

#[cfg(test)]
mod tests;
