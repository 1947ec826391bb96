//! A convolution and the pool that follows it, some rows at a time: what lies between them never leaves the
//! caches.

use crate::conv::{Conv, ConvInput, Pool};
use crate::gemm::{Epilogue, Rows, RowsMut};
use crate::half::{Half, Weights};

/// Bytes of the convolution's output that are pooled at a time: a part of a common L2, beside what the
/// convolution reads.
const BLOCK_BYTES: usize = 256 << 10;

/// A planned convolution with a pool over its output. Its bits are those of the two, one after the other.
#[derive(Clone, Copy)]
pub struct ConvPool {
    conv: Conv,
    pool: Pool,
    /// Rows of the pool's output at a time.
    block: usize,
}

impl ConvPool {
    /// The two together.
    ///
    /// # Panics
    /// When the pool is not one over images of the convolution's output.
    pub fn new(conv: Conv, pool: Pool) -> Self {
        Self::with_block(conv, pool, BLOCK_BYTES)
    }

    /// The same, with blocks of so many bytes, or as few as one row of the pool's output takes.
    pub(crate) fn with_block(conv: Conv, pool: Pool, bytes: usize) -> Self {
        assert_eq!(conv.output(), pool.input(), "the pool takes what the convolution gives");
        let row_bytes = conv.output()[1] * conv.shape().filters * size_of::<f32>();
        let rows = bytes / row_bytes.max(1);
        let block = pool.rows_of(rows).clamp(1, pool.output()[0].max(1));
        Self { conv, pool, block }
    }

    /// Elements of scratch that [`Self::run`] needs, with weights of a format.
    pub fn scratch_len(&self, format: Option<Half>) -> usize {
        self.buffer_len() + self.conv.scratch_len(1, format)
    }

    /// Convolves, and pools what comes out. Row r of `out` is pixel r of the pool's output, `[images · height
    /// · width, filters]`.
    ///
    /// # Panics
    /// When a slice is shorter than its shape and strides say, or there is a residual.
    pub fn run(
        &self,
        images: usize,
        input: ConvInput<'_>,
        packed: Weights<'_>,
        out: RowsMut<'_>,
        epilogue: &Epilogue<'_>,
        scratch: &mut [f32],
    ) {
        assert!(epilogue.residual.is_none(), "a residual is added to what is pooled");
        let filters = self.conv.shape().filters;
        let [height, width] = self.pool.output();
        out.check(images.checked_mul(height * width).expect("images fit the address space"), filters);
        if filters == 0 {
            return;
        }
        let (buffer, scratch) = scratch.split_at_mut(self.buffer_len());
        let row = self.conv.output()[1] * filters;
        for image in 0..images {
            // Rows of the convolution's output that are in the buffer, from its start on.
            let mut held = 0..0;
            for first in (0..height).step_by(self.block) {
                let rows = first..height.min(first + self.block);
                let read = self.pool.rows_read(rows.clone());
                // Windows overlap: what the last block had of these moves to the start.
                let kept = read.start.max(held.start)..read.end.min(held.end);
                let new = if kept.is_empty() {
                    read.clone()
                } else {
                    buffer.copy_within((kept.start - held.start) * row..(kept.end - held.start) * row, 0);
                    kept.end..read.end
                };
                let to = RowsMut { data: &mut buffer[(new.start - read.start) * row..], stride: filters };
                self.conv.run_part(image..image + 1, new, input, packed, to, epilogue, scratch);
                let from = Rows { data: &buffer[..read.len() * row], stride: filters };
                let data = &mut out.data[(image * height + rows.start) * width * out.stride..];
                self.pool.run_rows(rows, filters, from, RowsMut { data, stride: out.stride });
                held = read;
            }
        }
    }

    /// Elements of the rows that a block is pooled from.
    fn buffer_len(&self) -> usize {
        let rows = self.pool.rows_read_most(self.block).min(self.conv.output()[0]);
        rows * self.conv.output()[1] * self.conv.shape().filters
    }
}
