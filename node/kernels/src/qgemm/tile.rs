//! The tile of 8-bit products: rows of A against vectors of columns of B, sums in i32.
//!
//! Integer sums are exact modulo 2^32, so their order is free; what follows (scale, bounds, rounding) is one
//! sequence of rounded operations per element. B is signed. A is taken with the sign that the hardware
//! multiplies; what has the other sign is shifted by 128 as it is read, and the shift is taken out by the
//! offsets that start each column.

use crate::gemm::tile::Taps;
use crate::simd::{ByteRange, Dot, IntVector, Simd, Vector};
use crate::walk::{Walk, unrolled};

/// A tile's kernel.
///
/// # Safety
/// As [`crate::gemm::tile::TileFn`], with bytes for A and B and groups of B padded to the size of the set.
pub(crate) type QTileFn = unsafe fn(&QTileArgs);

/// What a tile works on. Strides of A and B are in bytes, those of outputs in elements.
#[derive(Clone, Copy)]
pub(crate) struct QTileArgs {
    /// First byte of A.
    pub(crate) a: *const u8,
    /// From a row of A to the next.
    pub(crate) a_row: usize,
    /// Exclusive or with each byte of A: 0x80 where its sign is not the hardware's.
    pub(crate) flip: u8,
    /// The runs of k; each run of B is padded to whole groups.
    pub(crate) taps: Taps,
    /// First byte of the first panel of B.
    pub(crate) b: *const i8,
    /// From a panel of B to the next.
    pub(crate) b_panel: usize,
    /// Columns to write; at most what the tile has.
    pub(crate) cols: usize,
    /// Added to each column; or null.
    pub(crate) offsets: *const i32,
    /// For each row, what B's zero points are multiplied with before they are subtracted; or null.
    pub(crate) row_terms: *const i32,
    /// B's zero point for each column, where `row_terms` is not null.
    pub(crate) b_zeros: *const i32,
    /// Where results go, and what is done before.
    pub(crate) out: QOut,
}

/// Where results go, and what is done before.
#[derive(Clone, Copy)]
pub(crate) enum QOut {
    /// The sums.
    Sums {
        /// First element.
        out: *mut i32,
        /// From a row to the next.
        row: usize,
    },
    /// `clamp(sum · scale + bias)` in f32.
    Floats {
        /// First element.
        out: *mut f32,
        /// From a row to the next.
        row: usize,
        /// A factor for each column, or one for all.
        scale: *const f32,
        /// Whether there is one for each.
        each: bool,
        /// Added to each row; or null.
        bias: *const f32,
        /// The least result.
        low: f32,
        /// The greatest result.
        high: f32,
    },
    /// `round(clamp(sum · scale)) + zero` as bytes.
    Bytes {
        /// First element.
        out: *mut u8,
        /// From a row to the next.
        row: usize,
        /// A factor for each column, or one for all.
        scale: *const f32,
        /// Whether there is one for each.
        each: bool,
        /// Bounds and zero point of the result.
        to: ByteRange,
    },
}

/// The kernels of one instruction set, by shape.
pub(crate) struct QTiles {
    /// Lanes of a vector.
    pub(crate) lanes: usize,
    /// Bytes of k that lie together for each column.
    pub(crate) group: usize,
    /// Whether the hardware multiplies A as signed.
    pub(crate) a_signed: bool,
    /// At `[w][r - 1]` the tile of r rows and 2^w vectors.
    pub(crate) by_width: [&'static [QTileFn]; 5],
}

/// The tile of `MR` rows and `NV` vectors.
///
/// # Safety
/// As [`QTileFn`].
#[inline(always)]
pub(crate) unsafe fn qtile<S: Simd, const MR: usize, const NV: usize>(t: &QTileArgs) {
    // SAFETY: pointers stay within what QTileFn's contract lets be read and written.
    unsafe {
        let starts = starts::<S, NV>(t);
        let acc = if t.flip == 0 {
            products::<S, MR, NV, false>(t, starts)
        } else {
            products::<S, MR, NV, true>(t, starts)
        };
        if t.cols == NV * <S::V as Vector>::LANES
            && t.row_terms.is_null()
            && matches!(t.out, QOut::Bytes { .. })
        {
            return whole_bytes::<S, MR, NV>(t, acc);
        }
        // Rarer ends loop over sums in memory. Unless they get a copy that the compiler does not see through,
        // it keeps that memory for all ends, and writes to it before the products.
        let mut late = std::hint::black_box(acc);
        finish::<S, MR, NV>(t, &mut late);
    }
}

/// The sums of products. They come by value, to live in registers (see [`crate::gemm::tile`]).
///
/// # Safety
/// As [`QTileFn`].
#[inline(always)]
unsafe fn products<S: Simd, const MR: usize, const NV: usize, const FLIP: bool>(
    t: &QTileArgs,
    starts: [S::I; NV],
) -> [[S::I; NV]; MR] {
    let flip = if FLIP { t.flip } else { 0 };
    let per_panel = if NV == 1 { 1 } else { 2 };
    let vector = <S::V as Vector>::LANES * S::D::GROUP;
    let Taps { outer, outer_a, outer_b, inner, inner_a, inner_b, len } = t.taps;
    let (whole, rest) = (len / S::D::GROUP, len % S::D::GROUP);
    // From where the whole groups of a run end to where the next run starts; and from the end of the last
    // inner run.
    let (group_a, group_b) = (S::D::GROUP, per_panel * vector);
    let between = [inner_a.wrapping_sub(whole * group_a), inner_b.wrapping_sub(whole * group_b)];
    let after = [outer_a.wrapping_sub(inner * inner_a), outer_b.wrapping_sub(inner * inner_b)];
    let mut acc = [starts; MR];
    let (mut rows, mut panels) = (Walk::new(t.a, t.a_row), Walk::new(t.b, t.b_panel));
    for _ in 0..outer {
        for _ in 0..inner {
            for _ in 0..whole {
                // SAFETY: a whole group of A in each row and of B in each vector.
                unsafe {
                    let mut columns = [S::D::load_b(panels.at(0)); NV];
                    unrolled!(j in 0..NV => {
                        columns[j] = S::D::load_b(panels.at(j / per_panel).add(j % per_panel * vector));
                    });
                    unrolled!(r in 0..MR => {
                        let x = S::D::load_a(rows.at(r), flip);
                        for j in 0..NV {
                            acc[r][j] = S::D::dot(acc[r][j], x, columns[j]);
                        }
                    });
                }
                rows.advance(group_a);
                panels.advance(group_b);
            }
            if rest > 0 {
                // SAFETY: `rest` bytes of A in each row, and a whole group of B in each vector.
                unsafe {
                    // Read first: a short loop over sums is what the compiler unrolls, and so keeps in
                    // registers.
                    let mut xs = [S::D::load_a_part(rows.at(0), rest, flip); MR];
                    unrolled!(r in 0..MR => {
                        xs[r] = S::D::load_a_part(rows.at(r), rest, flip);
                    });
                    unrolled!(j in 0..NV => {
                        let column = S::D::load_b(panels.at(j / per_panel).add(j % per_panel * vector));
                        for r in 0..MR {
                            acc[r][j] = S::D::dot(acc[r][j], xs[r], column);
                        }
                    });
                }
            }
            rows.advance(between[0]);
            panels.advance(between[1]);
        }
        rows.advance(after[0]);
        panels.advance(after[1]);
    }
    acc
}

/// What each column's sum starts with: its offset.
///
/// # Safety
/// As [`QTileFn`].
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "plain indices are what the compiler keeps in registers")]
unsafe fn starts<S: Simd, const NV: usize>(t: &QTileArgs) -> [S::I; NV] {
    // SAFETY: offsets exist for `cols` columns.
    unsafe {
        let mut starts = [S::I::splat(0); NV];
        if !t.offsets.is_null() {
            for j in 0..NV {
                let at = j * <S::V as Vector>::LANES;
                if at < t.cols {
                    starts[j] = S::I::load_part(t.offsets.add(at), t.cols - at);
                }
            }
        }
        starts
    }
}

/// Requantises whole vectors, with nothing to add: the common case, without a branch, in registers. Where
/// depth is small this is a third of a convolution's time.
///
/// # Safety
/// As [`QTileFn`]; results are bytes, without row terms, and all columns are there.
#[inline(always)]
#[expect(clippy::needless_range_loop, reason = "plain indices are what the compiler keeps in registers")]
unsafe fn whole_bytes<S: Simd, const MR: usize, const NV: usize>(t: &QTileArgs, acc: [[S::I; NV]; MR]) {
    let QOut::Bytes { out, row, scale, each, to } = t.out else { return };
    let lanes = <S::V as Vector>::LANES;
    // SAFETY: as the function.
    unsafe {
        let mut factors = [S::V::splat(*scale); NV];
        if each {
            for j in 0..NV {
                factors[j] = S::V::load(scale.add(j * lanes));
            }
        }
        if to.tame && NV == 2 {
            for r in 0..MR / 2 {
                let a = acc[2 * r][0].to_float().mul(factors[0]);
                let b = acc[2 * r][1].to_float().mul(factors[1]);
                let c = acc[2 * r + 1][0].to_float().mul(factors[0]);
                let d = acc[2 * r + 1][1].to_float().mul(factors[1]);
                let p = out.add(2 * r * row);
                S::I::store_tame([[a, b], [c, d]], &to, [p, p.add(row)]);
            }
            if MR % 2 == 1 {
                let a = acc[MR - 1][0].to_float().mul(factors[0]);
                let b = acc[MR - 1][1].to_float().mul(factors[1]);
                S::I::store_rounded([a, b], &to, out.add((MR - 1) * row));
            }
            return;
        }
        if to.tame && NV > 2 {
            for r in 0..MR {
                for j in 0..NV / 4 {
                    let a = acc[r][4 * j].to_float().mul(factors[4 * j]);
                    let b = acc[r][4 * j + 1].to_float().mul(factors[4 * j + 1]);
                    let c = acc[r][4 * j + 2].to_float().mul(factors[4 * j + 2]);
                    let d = acc[r][4 * j + 3].to_float().mul(factors[4 * j + 3]);
                    let p = out.add(r * row + 4 * j * lanes);
                    S::I::store_tame([[a, b], [c, d]], &to, [p, p.add(2 * lanes)]);
                }
            }
            return;
        }
        for r in 0..MR {
            for j in 0..NV / 2 {
                let a = acc[r][2 * j].to_float().mul(factors[2 * j]);
                let b = acc[r][2 * j + 1].to_float().mul(factors[2 * j + 1]);
                S::I::store_rounded([a, b], &to, out.add(r * row + 2 * j * lanes));
            }
            if NV % 2 == 1 {
                // As `store_rounded`, for one vector: the value comes first, and NaN becomes the lower bound.
                let (low, high) = (S::V::splat(to.low as f32), S::V::splat(to.high as f32));
                let value = acc[r][NV - 1].to_float().mul(factors[NV - 1]);
                let rounded = S::I::from_float(value.over(low).under(high)).add(S::I::splat(to.zero));
                rounded.store_low_bytes(out.add(r * row + (NV - 1) * lanes), lanes);
            }
        }
    }
}

/// Zero points, and the store.
///
/// # Safety
/// As [`QTileFn`].
#[inline(always)]
pub(crate) unsafe fn finish<S: Simd, const MR: usize, const NV: usize>(
    t: &QTileArgs,
    acc: &mut [[S::I; NV]; MR],
) {
    let lanes = <S::V as Vector>::LANES;
    for j in 0..NV {
        let at = j * lanes;
        if at >= t.cols {
            break;
        }
        let n = t.cols - at;
        // SAFETY: at most n elements of each row from column `at` on are read and written.
        unsafe {
            if !t.row_terms.is_null() {
                let zeros = S::I::load_part(t.b_zeros.add(at), n);
                for (r, row) in acc.iter_mut().enumerate() {
                    row[j] = row[j].sub(zeros.mul(S::I::splat(*t.row_terms.add(r))));
                }
            }
            match t.out {
                QOut::Sums { out, row } => {
                    for (r, sums) in acc.iter().enumerate() {
                        sums[j].store_part(out.add(r * row + at), n);
                    }
                }
                QOut::Floats { out, row, scale, each, bias, low, high } => {
                    let factor = factor::<S>(scale, each, at, n);
                    let (low, high) = (S::V::splat(low), S::V::splat(high));
                    for (r, sums) in acc.iter().enumerate() {
                        let mut value = sums[j].to_float().mul(factor);
                        if !bias.is_null() {
                            value = value.add(S::V::load_first(bias.add(at), n));
                        }
                        high.under(low.over(value)).store_part(out.add(r * row + at), n);
                    }
                }
                QOut::Bytes { out, row, scale, each, to } => {
                    let factor = factor::<S>(scale, each, at, n);
                    let (low, high) = (S::V::splat(to.low as f32), S::V::splat(to.high as f32));
                    let zero = S::I::splat(to.zero);
                    for (r, sums) in acc.iter().enumerate() {
                        let value = sums[j].to_float().mul(factor);
                        // The value comes first: NaN becomes the lower bound.
                        let value = S::I::from_float(value.over(low).under(high)).add(zero);
                        value.store_low_bytes(out.add(r * row + at), n);
                    }
                }
            }
        }
    }
}

/// The factors of a vector of columns.
///
/// # Safety
/// n values may be read at `scale + at` with `each`, else one at `scale`.
#[inline(always)]
unsafe fn factor<S: Simd>(scale: *const f32, each: bool, at: usize, n: usize) -> S::V {
    // SAFETY: as the function.
    unsafe { if each { S::V::load_first(scale.add(at), n) } else { S::V::splat(*scale) } }
}
