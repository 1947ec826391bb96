//! The tile of f32 products: a few rows of A against a few vectors of B's columns, held in registers.
//!
//! Invariant (the order rule): each element of the result is one chain of fused multiply-adds, k ascending,
//! that starts from 0 or from C; the bias comes after. K is never split over lanes. So neither the tile's
//! size nor the instruction set shows in the bits. GEMM and every convolution run on [`tile`], or on [`row_tile`],
//! which leaves out what two outputs do not see.

use crate::prefetch::{Ahead, Ask, HINTS, Nothing, Own, Share, own_line};
use crate::simd::Vector;
use crate::walk::{Walk, unrolled};

/// A tile's kernel.
///
/// # Safety
/// The instruction set of its table is there, and for all rows r below the kernel's count, all columns below
/// `cols`, and all k that the loops visit: `a + r·a_row + k` may be read; B's panels may be read in full;
/// `c + r·c_row + column` may be written (and read, with `from_c`); `bias` and `residual` may be read where
/// they are not null.
pub(crate) type TileFn = unsafe fn(&TileArgs);

/// What a tile works on. Strides are in elements.
#[derive(Clone, Copy)]
pub(crate) struct TileArgs {
    /// First element of A.
    pub(crate) a: *const f32,
    /// From a row of A to the next.
    pub(crate) a_row: usize,
    /// From a k to the next, within a run.
    pub(crate) a_k: usize,
    /// The runs of k: `outer × inner` of them, of `taps.len` each. A GEMM has one; a convolution has a run
    /// for each tap (or row of taps) that lies within the image.
    pub(crate) taps: Taps,
    /// First element of the first panel of B.
    pub(crate) b: *const f32,
    /// From a panel of B to the next.
    pub(crate) b_panel: usize,
    /// First element of C.
    pub(crate) c: *mut f32,
    /// From a row of C to the next.
    pub(crate) c_row: usize,
    /// Columns of C to write; at most what the tile has.
    pub(crate) cols: usize,
    /// Whether sums go on from what C holds.
    pub(crate) from_c: bool,
    /// Added to each row after the sum; or null.
    pub(crate) bias: *const f32,
    /// Added element by element after the bias; or null.
    pub(crate) residual: *const f32,
    /// From a row of the residual to the next.
    pub(crate) residual_row: usize,
    /// What is done last.
    pub(crate) clamp: Clamp,
    /// Asked for on the way, so that it is in L2 when it is wanted.
    pub(crate) ahead: Ahead,
}

/// Bounds of the result; NaN passes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Clamp {
    /// None.
    Free,
    /// At least this.
    Low(f32),
    /// Within these.
    Both(f32, f32),
}

/// Runs of k, as two nested loops of equal steps. Strides are in elements; those of A may go back.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taps {
    /// How often the outer loop runs.
    pub(crate) outer: usize,
    /// A's step of the outer loop.
    pub(crate) outer_a: usize,
    /// B's step of the outer loop.
    pub(crate) outer_b: usize,
    /// How often the inner loop runs.
    pub(crate) inner: usize,
    /// A's step of the inner loop.
    pub(crate) inner_a: usize,
    /// B's step of the inner loop.
    pub(crate) inner_b: usize,
    /// Length of a run.
    pub(crate) len: usize,
}

impl Taps {
    /// One run.
    pub(crate) fn one(len: usize) -> Self {
        Self { outer: 1, outer_a: 0, outer_b: 0, inner: 1, inner_a: 0, inner_b: 0, len }
    }
}

/// The kernels of one instruction set, by shape.
pub(crate) struct Tiles {
    /// Lanes of a vector. A panel of packed B has two vectors, or one where the last columns fit one.
    pub(crate) lanes: usize,
    /// At `[w][r - 1]` the tile of r rows and 2^w vectors. Entries of one w go up to the most rows that
    /// registers hold.
    pub(crate) by_width: [&'static [TileFn]; 5],
    /// The same for [`row_tile`], up to 4 vectors.
    pub(crate) image_rows: [&'static [TileFn]; 3],
}

impl Tiles {
    /// Columns of a panel.
    pub(crate) fn panel(&self) -> usize {
        2 * self.lanes
    }

    /// The most rows at a width of 2^w vectors.
    pub(crate) fn rows(&self, w: usize) -> usize {
        self.by_width[w].len()
    }

    /// The widest w whose tiles take `rows` at once, at least `least`. There are tiles of that width, also
    /// where there are no rows.
    pub(crate) fn widest(&self, rows: usize, least: usize) -> usize {
        (least..self.by_width.len()).rev().find(|w| self.rows(*w) >= rows.max(1)).unwrap_or(least)
    }
}

/// How a tile goes through A and B, in elements.
struct Steps {
    /// Vectors of a panel.
    per_panel: usize,
    /// From a k of B to the next.
    b_k: usize,
    /// Of A and B, from the end of a run to the start of the next.
    between: [usize; 2],
    /// Beyond that, from the last of the inner runs.
    after: [usize; 2],
}

impl Steps {
    #[inline(always)]
    fn of<V: Vector>(t: &TileArgs, vectors: usize) -> Self {
        let per_panel = if vectors == 1 { 1 } else { 2 };
        let b_k = per_panel * V::LANES;
        let Taps { outer_a, outer_b, inner, inner_a, inner_b, len, .. } = t.taps;
        let between = [inner_a.wrapping_sub(len * t.a_k), inner_b.wrapping_sub(len * b_k)];
        let after = [outer_a.wrapping_sub(inner * inner_a), outer_b.wrapping_sub(inner * inner_b)];
        Self { per_panel, b_k, between, after }
    }
}

/// The tile of `MR` rows and `NV` vectors.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
pub(crate) unsafe fn tile<V: Vector, const MR: usize, const NV: usize>(t: &TileArgs) {
    // SAFETY: pointers stay within what TileFn's contract lets be read and written: rows below MR, vectors of
    // whole panels in B, and parts cut at `cols` in C, bias and residual.
    unsafe {
        let lanes = V::LANES;
        let mut start = [[V::splat(0.0); NV]; MR];
        if t.from_c {
            for (r, row) in start.iter_mut().enumerate() {
                for (j, sum) in row.iter_mut().enumerate() {
                    *sum = part(t.c.add(r * t.c_row), j * lanes, t.cols);
                }
            }
        }
        // Tiles of three rows and fewer are bound by what they read, and ask for no more.
        let sums = match t.ahead {
            Ahead::Next(share) if HINTS && MR >= 4 => products(t, start, share),
            Ahead::Own if HINTS && MR >= 4 => products(t, start, Own),
            _ => products(t, start, Nothing),
        };
        finish(t, sums);
    }
}

/// The tile of `MR` outputs and `NV` vectors over a row of an image, for windows three wide with one of padding:
/// the first output does not see the first tap of a row of taps, and the last not the last. The inner loop of
/// taps is these three; sums start from 0.
///
/// # Safety
/// As [`TileFn`], but for the first output at the first tap and the last output at the last.
#[inline(always)]
pub(crate) unsafe fn row_tile<V: Vector, const MR: usize, const NV: usize>(t: &TileArgs) {
    // SAFETY: as in `tile`; each run leaves out the row that does not see it.
    unsafe {
        let Steps { between, after, .. } = Steps::of::<V>(t, NV);
        let mut acc = [[V::splat(0.0); NV]; MR];
        let mut at = At {
            rows: Walk::new(t.a, t.a_row),
            panels: Walk::new(t.b, t.b_panel),
            share: Share::of(t.ahead, t.b),
        };
        for _ in 0..t.taps.outer {
            for tap in 0..3 {
                (acc, at) = match tap {
                    0 => run::<V, true, false, MR, NV>(t, acc, at),
                    2 => run::<V, false, true, MR, NV>(t, acc, at),
                    _ => run::<V, false, false, MR, NV>(t, acc, at),
                };
                at.rows.advance(between[0]);
                at.panels.advance(between[1]);
            }
            at.rows.advance(after[0]);
            at.panels.advance(after[1]);
        }
        finish(t, acc);
    }
}

/// Where a tile is.
struct At {
    rows: Walk<f32>,
    panels: Walk<f32>,
    share: Share,
}

/// A run of k of a row, without its first or its last output.
///
/// # Safety
/// As [`TileFn`], for the other rows.
#[inline(always)]
unsafe fn run<V: Vector, const FIRST: bool, const LAST: bool, const MR: usize, const NV: usize>(
    t: &TileArgs,
    sums: [[V; NV]; MR],
    at: At,
) -> ([[V; NV]; MR], At) {
    let Steps { per_panel, b_k, .. } = Steps::of::<V>(t, NV);
    let (mut acc, At { mut rows, mut panels, mut share }) = (sums, at);
    for _ in 0..t.taps.len {
        // SAFETY: as in `tile`.
        unsafe {
            let mut columns = [V::splat(0.0); NV];
            unrolled!(j in 0..NV => {
                columns[j] = V::load(panels.at(j / per_panel).add(j % per_panel * V::LANES));
            });
            unrolled!(r in 0..MR => {
                if !(FIRST && r == 0 || LAST && r == MR - 1) {
                    let x = V::splat(*rows.at(r));
                    for j in 0..NV {
                        acc[r][j] = x.fma(columns[j], acc[r][j]);
                    }
                }
            });
        }
        share.step();
        rows.advance(t.a_k);
        panels.advance(b_k);
    }
    (acc, At { rows, panels, share })
}

/// The chains of products. Sums come and go by value: an array that is also reached through a reference
/// elsewhere would live in memory instead of registers, at less than half the speed.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
unsafe fn products<V: Vector, A: Ask, const MR: usize, const NV: usize>(
    t: &TileArgs,
    start: [[V; NV]; MR],
    mut ask: A,
) -> [[V; NV]; MR] {
    let Steps { per_panel, b_k, between, after } = Steps::of::<V>(t, NV);
    let Taps { outer, inner, len, .. } = t.taps;
    let mut acc = start;
    let (mut rows, mut panels) = (Walk::new(t.a, t.a_row), Walk::new(t.b, t.b_panel));
    for _ in 0..outer {
        for _ in 0..inner {
            for _ in 0..len {
                // SAFETY: as in `tile`.
                unsafe {
                    let mut columns = [V::splat(0.0); NV];
                    unrolled!(j in 0..NV => {
                        let at = panels.at(j / per_panel).add(j % per_panel * V::LANES);
                        columns[j] = V::load(at);
                        if A::OWN {
                            own_line(at, j % per_panel, V::LANES * size_of::<f32>());
                        }
                    });
                    unrolled!(r in 0..MR => {
                        let x = V::splat(*rows.at(r));
                        for j in 0..NV {
                            acc[r][j] = x.fma(columns[j], acc[r][j]);
                        }
                    });
                }
                ask.step();
                rows.advance(t.a_k);
                panels.advance(b_k);
            }
            rows.advance(between[0]);
            panels.advance(between[1]);
        }
        rows.advance(after[0]);
        panels.advance(after[1]);
    }
    acc
}

/// Bias, residual, bounds, and the store. By value and by plain indices, as in [`products`]: where k is
/// small, sums that went through memory here would take a third of the time.
///
/// # Safety
/// As [`TileFn`].
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "plain indices are what the compiler keeps in registers")]
unsafe fn finish<V: Vector, const MR: usize, const NV: usize>(t: &TileArgs, sums: [[V; NV]; MR]) {
    // SAFETY: as in `tile`.
    unsafe {
        let lanes = V::LANES;
        let mut acc = sums;
        if !t.bias.is_null() {
            let mut bias = [V::splat(0.0); NV];
            for j in 0..NV {
                bias[j] = part(t.bias, j * lanes, t.cols);
            }
            for r in 0..MR {
                for j in 0..NV {
                    acc[r][j] = acc[r][j].add(bias[j]);
                }
            }
        }
        if !t.residual.is_null() {
            for r in 0..MR {
                for j in 0..NV {
                    acc[r][j] = acc[r][j].add(part(t.residual.add(r * t.residual_row), j * lanes, t.cols));
                }
            }
        }
        match t.clamp {
            Clamp::Free => {}
            Clamp::Low(low) => {
                let low = V::splat(low);
                for r in 0..MR {
                    for j in 0..NV {
                        acc[r][j] = low.over(acc[r][j]);
                    }
                }
            }
            Clamp::Both(low, high) => {
                let (low, high) = (V::splat(low), V::splat(high));
                for r in 0..MR {
                    for j in 0..NV {
                        acc[r][j] = high.under(low.over(acc[r][j]));
                    }
                }
            }
        }
        if t.cols >= NV * lanes {
            for r in 0..MR {
                for j in 0..NV {
                    acc[r][j].store(t.c.add(r * t.c_row + j * lanes));
                }
            }
        } else {
            for r in 0..MR {
                for j in 0..NV {
                    if j * lanes < t.cols {
                        acc[r][j].store_part(t.c.add(r * t.c_row + j * lanes), t.cols - j * lanes);
                    }
                }
            }
        }
    }
}

/// The vector at column `at` of a row of `cols`; zeros beyond.
///
/// # Safety
/// `cols` values may be read at `row`.
#[inline(always)]
unsafe fn part<V: Vector>(row: *const f32, at: usize, cols: usize) -> V {
    // SAFETY: no more than cols - at values are read at `at`, and none where that is not positive.
    unsafe {
        if at + V::LANES <= cols {
            V::load(row.add(at))
        } else if at < cols {
            V::load_first(row.add(at), cols - at)
        } else {
            V::splat(0.0)
        }
    }
}
