//! Depthwise convolution: each channel by itself, vectors across channels, taps in order (ky, kx).

use crate::gemm::tile::{Clamp, Taps};
use crate::qgemm::tile::{QTileArgs, finish};
use crate::simd::{IntVector, Simd, Vector};

/// A line's kernel.
///
/// # Safety
/// All that the arguments describe may be read and written; the instruction set is there.
pub(crate) type DepthwiseFn = unsafe fn(&DepthwiseArgs);

/// A line of outputs with the same taps. Strides are in elements.
#[derive(Clone, Copy)]
pub(crate) struct DepthwiseArgs {
    /// The first tap of the first output.
    pub(crate) x: *const f32,
    /// From an output's input to the next one's.
    pub(crate) x_step: usize,
    /// The taps; runs are of length 1.
    pub(crate) taps: Taps,
    /// The first tap's weights.
    pub(crate) weights: *const f32,
    /// Channels.
    pub(crate) channels: usize,
    /// Outputs.
    pub(crate) count: usize,
    /// The first output.
    pub(crate) out: *mut f32,
    /// From an output to the next.
    pub(crate) out_step: usize,
    /// Added to each output; or null.
    pub(crate) bias: *const f32,
    /// Added after the bias; or null.
    pub(crate) residual: *const f32,
    /// From an output's residual to the next one's.
    pub(crate) residual_step: usize,
    /// What is done last.
    pub(crate) clamp: Clamp,
}

/// Convolves a line.
///
/// # Safety
/// As [`DepthwiseFn`].
#[inline(always)]
pub(crate) unsafe fn depthwise<V: Vector>(d: &DepthwiseArgs) {
    // Four vectors of channels at once hide the latency of their chains.
    const WIDE: usize = 4;
    for i in 0..d.count {
        let mut channel = 0;
        // SAFETY: channels below the count, in parts at the end.
        unsafe {
            while channel + WIDE * V::LANES <= d.channels {
                channels::<V, WIDE>(d, i, channel, WIDE * V::LANES);
                channel += WIDE * V::LANES;
            }
            while channel < d.channels {
                channels::<V, 1>(d, i, channel, d.channels - channel);
                channel += V::LANES;
            }
        }
    }
}

/// `N` vectors of channels of output i; `left` channels are left from the first on.
///
/// # Safety
/// As [`DepthwiseFn`].
#[inline(always)]
unsafe fn channels<V: Vector, const N: usize>(d: &DepthwiseArgs, i: usize, channel: usize, left: usize) {
    // SAFETY: as the function; parts are cut at `left`.
    unsafe {
        let mut sums = [V::splat(0.0); N];
        for outer in 0..d.taps.outer {
            for inner in 0..d.taps.inner {
                let x = d.x.add(i * d.x_step + outer * d.taps.outer_a + inner * d.taps.inner_a + channel);
                let w = d.weights.add(outer * d.taps.outer_b + inner * d.taps.inner_b + channel);
                for (j, sum) in sums.iter_mut().enumerate() {
                    *sum = part::<V>(x, j, left).fma(part(w, j, left), *sum);
                }
            }
        }
        for (j, sum) in sums.iter_mut().enumerate() {
            if !d.bias.is_null() {
                *sum = sum.add(part(d.bias.add(channel), j, left));
            }
            if !d.residual.is_null() {
                *sum = sum.add(part(d.residual.add(i * d.residual_step + channel), j, left));
            }
            *sum = match d.clamp {
                Clamp::Free => *sum,
                Clamp::Low(low) => V::splat(low).over(*sum),
                Clamp::Both(low, high) => V::splat(high).under(V::splat(low).over(*sum)),
            };
            let out = d.out.add(i * d.out_step + channel + j * V::LANES);
            if (j + 1) * V::LANES <= left { sum.store(out) } else { sum.store_part(out, left - j * V::LANES) }
        }
    }
}

/// Vector j of a row of which `left` elements are left.
///
/// # Safety
/// So many may be read.
#[inline(always)]
unsafe fn part<V: Vector>(row: *const f32, j: usize, left: usize) -> V {
    // SAFETY: cut at `left`.
    unsafe {
        let at = row.add(j * V::LANES);
        if (j + 1) * V::LANES <= left { V::load(at) } else { V::load_first(at, left - j * V::LANES) }
    }
}

/// The same for bytes.
///
/// # Safety
/// As [`DepthwiseFn`].
pub(crate) type QDepthwiseFn = unsafe fn(&QDepthwiseArgs);

/// A line of outputs with the same taps. Strides are in elements.
#[derive(Clone, Copy)]
pub(crate) struct QDepthwiseArgs {
    /// The first tap of the first output.
    pub(crate) x: *const u8,
    /// Whether inputs are signed.
    pub(crate) signed: bool,
    /// The inputs' zero point.
    pub(crate) zero: i32,
    /// From an output's input to the next one's.
    pub(crate) x_step: usize,
    /// The taps; runs are of length 1.
    pub(crate) taps: Taps,
    /// The first tap's weights.
    pub(crate) weights: *const i8,
    /// Channels.
    pub(crate) channels: usize,
    /// Outputs.
    pub(crate) count: usize,
    /// From an output's row to the next one's.
    pub(crate) row_step: usize,
    /// Bias and output, as a tile of one row has them.
    pub(crate) last: QTileArgs,
}

/// Convolves a line of bytes.
///
/// # Safety
/// As [`QDepthwiseFn`].
#[inline(always)]
pub(crate) unsafe fn qdepthwise<S: Simd>(d: &QDepthwiseArgs) {
    let lanes = <S::V as Vector>::LANES;
    for i in 0..d.count {
        let mut channel = 0;
        while channel < d.channels {
            let n = d.channels - channel;
            // SAFETY: channels below the count, in parts at the end.
            unsafe {
                let zero = S::I::splat(d.zero);
                let mut sum = S::I::splat(0);
                if !d.last.offsets.is_null() {
                    sum = S::I::load_part(d.last.offsets.add(channel), n);
                }
                for outer in 0..d.taps.outer {
                    for inner in 0..d.taps.inner {
                        let x =
                            d.x.add(i * d.x_step + outer * d.taps.outer_a + inner * d.taps.inner_a + channel);
                        let w = d.weights.add(outer * d.taps.outer_b + inner * d.taps.inner_b + channel);
                        let x = if d.signed { S::I::load_s8(x, n) } else { S::I::load_u8(x, n) };
                        sum = sum.add(x.sub(zero).mul(S::I::load_s8(w.cast(), n)));
                    }
                }
                let mut last = d.last;
                last.cols = n.min(lanes);
                last.out = last.out.at(i * d.row_step, channel);
                finish::<S, 1, 1>(&last, &mut [[sum]]);
            }
            channel += lanes;
        }
    }
}
