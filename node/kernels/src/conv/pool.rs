//! Pools over NHWC images: maximum and average, in f32; maximum in bytes.
//!
//! Vectors run across channels; taps are taken in order (ky, kx), those in the padding are skipped.

use std::ops::Range;

use crate::conv::shape::{Along, lines};
use crate::conv::{ShapeError, Window};
use crate::gemm::tile::Taps;
use crate::gemm::{Rows, RowsMut, extent};
use crate::qgemm::{ByteRows, Sign};
use crate::simd::{ByteVector, Simd, Vector};
use crate::table::Kernels;

/// What a pool takes of its window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PoolKind {
    /// The maximum; NaN when one is NaN.
    Max,
    /// The sum over the count of taps within the image.
    Average,
    /// The sum over the size of the kernel.
    AverageWithPadding,
}

/// A planned pool, for any number of images and channels.
#[derive(Clone, Copy)]
pub struct Pool {
    kernels: &'static Kernels,
    kind: PoolKind,
    y: Window,
    x: Window,
    output: [usize; 2],
}

impl Kernels {
    /// Plans a pool. `output` says how many outputs there are where partial windows at the end count too.
    ///
    /// # Errors
    /// [`ShapeError`] when the shape makes no sense.
    pub fn pool(
        &'static self,
        kind: PoolKind,
        y: Window,
        x: Window,
        output: Option<[usize; 2]>,
    ) -> Result<Pool, ShapeError> {
        let whole = [y.outputs()?, x.outputs()?];
        let output = output.unwrap_or(whole);
        let fits = |factors: [usize; 2]| factors[0].checked_mul(factors[1]).ok_or(ShapeError::TooLarge);
        fits([y.size, x.size])?;
        fits(output)?;
        fits([output[0], y.stride])?;
        fits([output[1], x.stride])?;
        Ok(Pool { kernels: self, kind, y, x, output })
    }
}

/// Some rows of the output of some images.
struct Part {
    images: usize,
    rows: Range<usize>,
    /// Pixels of the input before those at hand.
    skip_in: usize,
    /// Pixels of the output before those at hand.
    skip_out: usize,
}

/// A line's kernel.
///
/// # Safety
/// All that the arguments describe may be read and written; the instruction set is there.
pub(crate) type PoolFn = unsafe fn(&PoolArgs);

/// A line of outputs with the same taps. Strides are in elements.
#[derive(Clone, Copy)]
pub(crate) struct PoolArgs {
    pub(crate) x: *const f32,
    pub(crate) x_step: usize,
    pub(crate) taps: Taps,
    pub(crate) channels: usize,
    pub(crate) count: usize,
    pub(crate) out: *mut f32,
    pub(crate) out_step: usize,
    /// What an average divides by.
    pub(crate) divisor: f32,
}

/// As [`PoolFn`], for bytes.
pub(crate) type QPoolFn = unsafe fn(&QPoolArgs);

/// A line of outputs of bytes.
#[derive(Clone, Copy)]
pub(crate) struct QPoolArgs {
    pub(crate) x: *const u8,
    pub(crate) x_step: usize,
    pub(crate) taps: Taps,
    pub(crate) channels: usize,
    pub(crate) count: usize,
    pub(crate) out: *mut u8,
    pub(crate) out_step: usize,
    pub(crate) signed: bool,
}

impl Pool {
    /// Rows and columns of the output.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Rows and columns of the input.
    pub fn input(&self) -> [usize; 2] {
        [self.y.size, self.x.size]
    }

    /// Pools images `[images · height · width, channels]` into `[images · height · width, channels]` of the
    /// output.
    ///
    /// # Panics
    /// When a slice is shorter than its shape and strides say.
    pub fn run(&self, images: usize, channels: usize, input: Rows<'_>, out: RowsMut<'_>) {
        let (pixels, rows) = self.counts(images);
        input.check(pixels, channels);
        out.check(rows, channels);
        // SAFETY: the slices were checked.
        unsafe { self.floats(&self.whole(images), channels, input, out) }
    }

    /// The rows of the input that some rows of the output are taken from.
    pub(crate) fn rows_read(&self, rows: Range<usize>) -> Range<usize> {
        let Window { size, kernel, stride, dilation, before, .. } = self.y;
        let first = (rows.start * stride).saturating_sub(before).min(size);
        let end = match rows.end.checked_sub(1) {
            Some(last) => (last * stride + (kernel - 1) * dilation + 1).saturating_sub(before).min(size),
            None => 0,
        };
        first..end.max(first)
    }

    /// The most rows of the input that so many rows of the output, one after the other, are taken from.
    pub(crate) fn rows_read_most(&self, rows: usize) -> usize {
        let Window { kernel, stride, dilation, .. } = self.y;
        rows.saturating_sub(1) * stride + (kernel - 1) * dilation + 1
    }

    /// How many rows of the output, one after the other, so many rows of the input suffice for at least.
    pub(crate) fn rows_of(&self, rows: usize) -> usize {
        rows.checked_sub(self.rows_read_most(1)).map_or(0, |more| more / self.y.stride + 1)
    }

    /// Rows of the output of one image, from those rows of the input that [`Self::rows_read`] says.
    ///
    /// # Panics
    /// When a slice is shorter than these rows.
    pub(crate) fn run_rows(&self, rows: Range<usize>, channels: usize, input: Rows<'_>, out: RowsMut<'_>) {
        let read = self.rows_read(rows.clone());
        assert!(rows.end <= self.output[0], "rows of the output");
        input.check(read.len() * self.x.size, channels);
        out.check(rows.len() * self.output[1], channels);
        let part = Part {
            images: 1,
            skip_in: read.start * self.x.size,
            skip_out: rows.start * self.output[1],
            rows,
        };
        // SAFETY: the slices were checked.
        unsafe { self.floats(&part, channels, input, out) }
    }

    /// Pools a part of f32.
    ///
    /// # Safety
    /// The slices hold the part's rows.
    unsafe fn floats(&self, part: &Part, channels: usize, input: Rows<'_>, out: RowsMut<'_>) {
        let RowsMut { data, stride } = out;
        let start = data.as_mut_ptr();
        let kernel = match self.kind {
            PoolKind::Max => self.kernels.max_pool_fn(),
            PoolKind::Average | PoolKind::AverageWithPadding => self.kernels.average_pool_fn(),
        };
        self.lines(part, input.stride, |taps, valid, count, from, to, step_in, step_out| {
            let divisor = match self.kind {
                PoolKind::AverageWithPadding => self.y.kernel * self.x.kernel,
                PoolKind::Max | PoolKind::Average => valid,
            };
            let args = PoolArgs {
                x: input.data.as_ptr().wrapping_add(from),
                x_step: step_in,
                taps,
                channels,
                count,
                out: start.wrapping_add(to * stride),
                out_step: step_out * stride,
                divisor: divisor as f32,
            };
            // SAFETY: as the function; `out` is borrowed mutably, and the line's taps lie within the image.
            unsafe { kernel(&args) }
        });
    }

    /// The maximum of bytes.
    ///
    /// # Panics
    /// When a slice is shorter than its shape and strides say, or this pool is no maximum.
    pub fn run_bytes(
        &self,
        images: usize,
        channels: usize,
        input: ByteRows<'_>,
        sign: Sign,
        out: &mut [u8],
        out_stride: usize,
    ) {
        assert_eq!(self.kind, PoolKind::Max, "bytes are pooled by their maximum");
        let (pixels, rows) = self.counts(images);
        assert!(
            input.data.len() >= extent(pixels, input.stride, channels),
            "the input reaches beyond its slice"
        );
        assert!(out.len() >= extent(rows, out_stride, channels), "the output reaches beyond its slice");
        assert!(rows <= 1 || out_stride >= channels, "the output's pixels overlap");
        let kernel = self.kernels.max_bytes_fn();
        let start = out.as_mut_ptr();
        self.lines(&self.whole(images), input.stride, |taps, _, count, from, to, step_in, step_out| {
            let args = QPoolArgs {
                x: input.data.as_ptr().wrapping_add(from),
                x_step: step_in,
                taps,
                channels,
                count,
                out: start.wrapping_add(to * out_stride),
                out_step: step_out * out_stride,
                signed: sign == Sign::Signed,
            };
            // SAFETY: as in `run`.
            unsafe { kernel(&args) }
        });
    }

    /// Pixels of the inputs and of the outputs.
    fn counts(&self, images: usize) -> (usize, usize) {
        let count = |each: usize| images.checked_mul(each).expect("images fit the address space");
        (count(self.y.size * self.x.size), count(self.output[0] * self.output[1]))
    }

    /// All of so many images.
    fn whole(&self, images: usize) -> Part {
        Part { images, rows: 0..self.output[0], skip_in: 0, skip_out: 0 }
    }

    /// Calls `each(taps, valid, count, from, to, step_in, step_out)` for each line of each image.
    fn lines(
        &self,
        part: &Part,
        pixel: usize,
        mut each: impl FnMut(Taps, usize, usize, usize, usize, usize, usize),
    ) {
        let [height, width] = self.output;
        let row = self.x.size * pixel;
        for image in 0..part.images {
            for y in self.y.spans(part.rows.clone()) {
                for x in self.x.spans(0..width) {
                    let taps = Taps {
                        outer: y.taps(),
                        outer_a: self.y.dilation * row,
                        outer_b: 0,
                        inner: x.taps(),
                        inner_a: self.x.dilation * pixel,
                        inner_b: 0,
                        len: 1,
                    };
                    for line in lines(y, x, None) {
                        // A window without a tap reads nothing, from wherever that is.
                        let from = (image * self.y.size * row
                            + self.y.input(line.y, y.low) * row
                            + self.x.input(line.x, x.low) * pixel)
                            .wrapping_sub(part.skip_in * pixel);
                        let to = (image * height + line.y) * width + line.x - part.skip_out;
                        let (step_in, step_out) = match line.along {
                            Along::Column => (self.y.stride * row, width),
                            Along::Row => (self.x.stride * pixel, 1),
                            Along::Images => (self.y.size * row, height * width),
                        };
                        each(taps, y.taps() * x.taps(), line.count, from, to, step_in, step_out);
                    }
                }
            }
        }
    }
}

/// Walks the channels of an output in blocks of `$size` vectors, the largest first, with the size as a
/// constant. Gives how many channels that were.
macro_rules! blocks {
    ($channels:expr, $lanes:expr, [$($size:literal)*], |$n:ident, $channel:ident| $block:expr) => {{
        let mut channel = 0;
        $(
            while $channels - channel >= $size * $lanes {
                const $n: usize = $size;
                let $channel = channel;
                $block;
                channel += $size * $lanes;
            }
        )*
        channel
    }};
}

/// Calls `$line` with the shape of the window as constants where it is a common one, so that its loops are
/// unrolled, and with zeros where it is not.
macro_rules! by_window {
    ($taps:expr, |$y:ident, $x:ident| $line:expr) => {
        match ($taps.outer, $taps.inner) {
            (2, 2) => {
                const $y: usize = 2;
                const $x: usize = 2;
                $line
            }
            (3, 3) => {
                const $y: usize = 3;
                const $x: usize = 3;
                $line
            }
            _ => {
                const $y: usize = 0;
                const $x: usize = 0;
                $line
            }
        }
    };
}

/// The taps of a window, down and across. `Y` and `X` are its shape, or zeros.
#[inline(always)]
fn window<const Y: usize, const X: usize>(taps: &Taps) -> (usize, usize) {
    if Y == 0 { (taps.outer, taps.inner) } else { (Y, X) }
}

/// What a pool does with its taps.
trait PoolFold {
    /// What no taps fold to, before the end.
    const START: f32;

    /// # Safety
    /// As [`crate::simd`].
    unsafe fn fold<V: Vector>(sum: V, x: V) -> V;

    /// # Safety
    /// As [`crate::simd`].
    unsafe fn end<V: Vector>(sum: V, divisor: f32) -> V;
}

struct Max;

impl PoolFold for Max {
    const START: f32 = f32::NEG_INFINITY;

    #[inline(always)]
    unsafe fn fold<V: Vector>(sum: V, x: V) -> V {
        // SAFETY: the set is there.
        unsafe { sum.max_nan(x) }
    }

    #[inline(always)]
    unsafe fn end<V: Vector>(sum: V, _: f32) -> V {
        sum
    }
}

struct Average;

impl PoolFold for Average {
    const START: f32 = 0.0;

    #[inline(always)]
    unsafe fn fold<V: Vector>(sum: V, x: V) -> V {
        // SAFETY: the set is there.
        unsafe { sum.add(x) }
    }

    #[inline(always)]
    unsafe fn end<V: Vector>(sum: V, divisor: f32) -> V {
        // SAFETY: the set is there.
        unsafe { sum.div(V::splat(divisor)) }
    }
}

/// The maximum over each window.
///
/// # Safety
/// As [`PoolFn`].
#[inline(always)]
pub(crate) unsafe fn max_line<V: Vector>(d: &PoolArgs) {
    // SAFETY: as the function.
    unsafe { by_window!(d.taps, |Y, X| fold_line::<V, Max, Y, X>(d)) }
}

/// The average over each window.
///
/// # Safety
/// As [`PoolFn`].
#[inline(always)]
pub(crate) unsafe fn average_line<V: Vector>(d: &PoolArgs) {
    // SAFETY: as the function.
    unsafe { by_window!(d.taps, |Y, X| fold_line::<V, Average, Y, X>(d)) }
}

/// All outputs of a line.
///
/// # Safety
/// As [`PoolFn`]; `Y` and `X` are the window's, or zeros.
#[inline(always)]
unsafe fn fold_line<V: Vector, F: PoolFold, const Y: usize, const X: usize>(d: &PoolArgs) {
    for i in 0..d.count {
        // SAFETY: channels below the count, in a part at the end.
        unsafe {
            let all = usize::MAX;
            let lanes = V::LANES;
            let done =
                blocks!(d.channels, lanes, [4 2 1], |N, c| fold_vectors::<V, F, Y, X, N>(d, i, c, all));
            if done < d.channels {
                fold_vectors::<V, F, Y, X, 1>(d, i, done, d.channels - done);
            }
        }
    }
}

/// Folds the taps of output i over N vectors of channels from `channel` on, of which `left` channels exist.
///
/// # Safety
/// As [`PoolFn`]; output and channels exist; where `left` is less than N vectors, N is 1.
#[inline(always)]
unsafe fn fold_vectors<V: Vector, F: PoolFold, const Y: usize, const X: usize, const N: usize>(
    d: &PoolArgs,
    i: usize,
    channel: usize,
    left: usize,
) {
    // SAFETY: as the function.
    unsafe {
        let whole = left >= N * V::LANES;
        // A window without a tap begins wherever that is.
        let from = d.x.wrapping_add(i * d.x_step + channel);
        let mut sums = [V::splat(F::START); N];
        let (down, along) = window::<Y, X>(&d.taps);
        for outer in 0..down {
            for inner in 0..along {
                let from = from.wrapping_add(outer * d.taps.outer_a + inner * d.taps.inner_a);
                for (j, sum) in sums.iter_mut().enumerate() {
                    let at = from.add(j * V::LANES);
                    *sum = F::fold(*sum, if whole { V::load(at) } else { V::load_first(at, left) });
                }
            }
        }
        let to = d.out.add(i * d.out_step + channel);
        for (j, sum) in sums.iter().enumerate() {
            let result = F::end(*sum, d.divisor);
            if whole { result.store(to.add(j * V::LANES)) } else { result.store_part(to, left) }
        }
    }
}

/// The maximum of bytes over each window.
///
/// # Safety
/// As [`QPoolFn`].
#[inline(always)]
pub(crate) unsafe fn max_bytes_line<S: Simd>(d: &QPoolArgs) {
    // SAFETY: as the function.
    unsafe {
        if d.signed {
            by_window!(d.taps, |Y, X| max_bytes_outputs::<S, true, Y, X>(d));
        } else {
            by_window!(d.taps, |Y, X| max_bytes_outputs::<S, false, Y, X>(d));
        }
    }
}

/// All outputs of a line of bytes.
///
/// # Safety
/// As [`QPoolFn`]; `Y` and `X` are the window's, or zeros.
#[inline(always)]
unsafe fn max_bytes_outputs<S: Simd, const SIGNED: bool, const Y: usize, const X: usize>(d: &QPoolArgs) {
    let (down, along) = window::<Y, X>(&d.taps);
    for i in 0..d.count {
        for channel in (0..d.channels).step_by(S::B::LANES) {
            let left = d.channels - channel;
            // SAFETY: channels below the count, in a part at the end.
            unsafe {
                // A window without a tap begins wherever that is.
                let from = d.x.wrapping_add(i * d.x_step + channel);
                let mut most = S::B::splat(if SIGNED { 0x80 } else { 0 });
                for outer in 0..down {
                    for inner in 0..along {
                        let x = S::B::load_part(
                            from.wrapping_add(outer * d.taps.outer_a + inner * d.taps.inner_a),
                            left,
                        );
                        most = if SIGNED { most.max_signed(x) } else { most.max_unsigned(x) };
                    }
                }
                most.store_part(d.out.add(i * d.out_step + channel), left);
            }
        }
    }
}
