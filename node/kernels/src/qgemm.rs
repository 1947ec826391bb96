//! `A · B` of 8-bit numbers with i32 sums, and what turns sums into f32 or back into 8 bits.
//!
//! A is `[m, k]`, u8 or s8 with a zero point; B is `[k, n]`, s8, packed beforehand; u8 weights are handed
//! over less 128, with their zero points less 128 too. Signed bytes travel in `&[u8]`, as bits. A's zero
//! point and a bias become *offsets* by column ([`QGemm::offsets`]), which a plan computes once where the
//! zero point is constant.

pub(crate) mod output;
pub(crate) mod tile;

pub use output::{BytesOut, FloatsOut, Output, SumsOut};

use crate::gemm::tile::Taps;
use crate::gemm::{cut, extent};
use crate::qgemm::tile::{QOut, QTileArgs, QTiles};
use crate::table::Kernels;

/// How bytes are read as numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// u8.
    Unsigned,
    /// s8.
    Signed,
}

impl Sign {
    /// The least and the greatest number.
    pub fn range(self) -> (i32, i32) {
        match self {
            Self::Unsigned => (0, 255),
            Self::Signed => (-128, 127),
        }
    }
}

/// Rows of bytes: row r at `r · stride`, its columns together.
#[derive(Debug, Clone, Copy)]
pub struct ByteRows<'a> {
    /// The bytes.
    pub data: &'a [u8],
    /// From the start of a row to that of the next.
    pub stride: usize,
}

/// B's zero points, where they are not all 0 after the shift to s8.
#[derive(Debug, Clone, Copy)]
pub struct WeightZeros<'a> {
    /// `[n]`: B's zero point for each column.
    pub zeros: &'a [i32],
    /// `[m]`: `sum (a - a_zero)` over each row of A; see [`QGemm::row_terms`].
    pub row_terms: &'a [i32],
}

/// A planned product `[m, k] · [k, n]`, any m.
#[derive(Clone, Copy)]
pub struct QGemm {
    kernels: &'static Kernels,
    k: usize,
    n: usize,
    a_sign: Sign,
}

impl Kernels {
    /// Plans `[m, k] · [k, n]` for any m, with A of the sign `a_sign`.
    pub fn qgemm(&'static self, k: usize, n: usize, a_sign: Sign) -> QGemm {
        QGemm { kernels: self, k, n, a_sign }
    }
}

/// What is added to each byte of A as it is read, as the hardware's sign asks.
pub(crate) fn shift(tiles: &QTiles, a_sign: Sign) -> i32 {
    match (tiles.a_signed, a_sign) {
        (false, Sign::Signed) => 128,
        (true, Sign::Unsigned) => -128,
        (false, Sign::Unsigned) | (true, Sign::Signed) => 0,
    }
}

impl QGemm {
    /// Bytes of the packed B.
    pub fn packed_len(&self) -> usize {
        let tiles = self.kernels.qtiles();
        packed_columns(tiles, self.n)
            .checked_mul(self.k.next_multiple_of(tiles.group))
            .expect("weights fit the address space")
    }

    /// Packs row-major B `[k, n]`; `row` and `col` are its strides, `[n]` sums of columns go to `sums`.
    ///
    /// # Panics
    /// When a slice is shorter than its shape says.
    pub fn pack(&self, b: &[i8], row: usize, col: usize, packed: &mut [i8], sums: &mut [i32]) {
        let tiles = self.kernels.qtiles();
        assert!(self.k == 0 || self.n == 0 || b.len() >= extent(self.k, row, extent(self.n, col, 1)));
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        assert_eq!(sums.len(), self.n, "a sum for each column");
        sums.fill(0);
        let mut at = 0;
        for (first, width) in panels(tiles, self.n) {
            for p in (0..self.k).step_by(tiles.group) {
                for c in 0..width {
                    for g in 0..tiles.group {
                        let inside = first + c < self.n && p + g < self.k;
                        packed[at] = if inside { b[(p + g) * row + (first + c) * col] } else { 0 };
                        if inside {
                            sums[first + c] = sums[first + c].wrapping_add(i32::from(packed[at]));
                        }
                        at += 1;
                    }
                }
            }
        }
    }

    /// Hands over every element of a packed B: row, column, value.
    ///
    /// # Panics
    /// When `packed` is not [`Self::packed_len`] long.
    pub fn unpack(&self, packed: &[i8], mut put: impl FnMut(usize, usize, i8)) {
        let tiles = self.kernels.qtiles();
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        let mut values = packed.iter();
        for (first, width) in panels(tiles, self.n) {
            for p in (0..self.k).step_by(tiles.group) {
                for c in first..first + width {
                    for (row, value) in (p..p + tiles.group).zip(&mut values) {
                        if c < self.n && row < self.k {
                            put(row, c, *value);
                        }
                    }
                }
            }
        }
    }

    /// Rows and columns of the tile that most of m rows run on; `None` where there is nothing to compute.
    pub fn tile(&self, m: usize) -> Option<[usize; 2]> {
        if m == 0 || self.n == 0 {
            return None;
        }
        let tiles = self.kernels.qtiles();
        let planned = tiles.widest(m);
        let rows = m.div_ceil(m.div_ceil(tiles.by_width[planned].len()));
        Some([rows, tiles.lanes << tiles.width_at(planned, self.n)])
    }

    /// What starts each column: `bias - a_zero · sum of the column`, for A as this machine reads it.
    ///
    /// # Panics
    /// When the lengths are not n, or the zero point is no byte.
    pub fn offsets(&self, sums: &[i32], a_zero: i32, bias: Option<&[i32]>, offsets: &mut [i32]) {
        assert_eq!(sums.len(), self.n, "a sum for each column");
        assert_eq!(offsets.len(), self.n, "an offset for each column");
        assert!(bias.is_none_or(|bias| bias.len() == self.n), "a bias for each column");
        assert!((-128..=255).contains(&a_zero), "a zero point of a byte");
        let zero = a_zero + shift(self.kernels.qtiles(), self.a_sign);
        for (c, offset) in offsets.iter_mut().enumerate() {
            *offset = bias.map_or(0, |bias| bias[c]).wrapping_sub(zero.wrapping_mul(sums[c]));
        }
    }

    /// `sum (a - a_zero)` over each of the rows of A.
    ///
    /// # Panics
    /// When A is shorter than `terms.len()` rows.
    pub fn row_terms(&self, a: ByteRows<'_>, a_zero: i32, terms: &mut [i32]) {
        assert!(a.data.len() >= extent(terms.len(), a.stride, self.k), "A reaches beyond its slice");
        if self.k == 0 {
            terms.fill(0);
            return;
        }
        for (r, term) in terms.iter_mut().enumerate() {
            let row = &a.data[r * a.stride..][..self.k];
            let sum: i32 = match self.a_sign {
                Sign::Unsigned => row.iter().fold(0, |sum: i32, x| sum.wrapping_add(i32::from(*x))),
                Sign::Signed => row.iter().fold(0, |sum: i32, x| sum.wrapping_add(i32::from(*x as i8))),
            };
            *term = sum.wrapping_sub((self.k as i32).wrapping_mul(a_zero));
        }
    }

    /// `out[m, n]` from A `[m, k]`.
    ///
    /// # Panics
    /// When a slice is shorter than its shape and strides say.
    pub fn run(
        &self,
        m: usize,
        a: ByteRows<'_>,
        packed: &[i8],
        offsets: &[i32],
        weight_zeros: Option<WeightZeros<'_>>,
        out: Output<'_>,
    ) {
        let Self { kernels, k, n, a_sign } = *self;
        let tiles = kernels.qtiles();
        assert!(a.data.len() >= extent(m, a.stride, k), "A reaches beyond its slice");
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        assert_eq!(offsets.len(), n, "an offset for each column");
        if let Some(zeros) = &weight_zeros {
            assert!(
                zeros.zeros.len() == n && zeros.row_terms.len() == m,
                "a zero point for each column, a term a row"
            );
        }
        let (out, map) = out.lower(m, n);
        if m == 0 || n == 0 {
            return;
        }
        let mut args = QTileArgs {
            a: a.data.as_ptr(),
            a_row: a.stride,
            flip: if shift(tiles, a_sign) == 0 { 0 } else { 0x80 },
            taps: Taps::one(k),
            b: packed.as_ptr(),
            b_panel: tiles.panel() * k.next_multiple_of(tiles.group),
            cols: 0,
            offsets: offsets.as_ptr(),
            row_terms: weight_zeros.map_or(std::ptr::null(), |zeros| zeros.row_terms.as_ptr()),
            b_zeros: weight_zeros.map_or(std::ptr::null(), |zeros| zeros.zeros.as_ptr()),
            out,
        };
        let first = args;
        let w = tiles.widest(m);
        let padded = k.next_multiple_of(tiles.group);
        let block = row_block(a.stride, m);
        for m0 in (0..m).step_by(block) {
            let rows = block.min(m - m0);
            let count = rows.div_ceil(tiles.by_width[w].len());
            let mut column = 0;
            while column < n {
                let w = tiles.width_at(w, n - column);
                args.cols = (tiles.lanes << w).min(n - column);
                // SAFETY: row r of m and column `column` of n are within all slices, whose lengths were
                // checked above and by `lower`; outputs are borrowed mutably; the table came from
                // `Kernels::of`.
                unsafe {
                    args.b = first.b.add(column * padded);
                    args.offsets = first.offsets.add(column);
                    for (r, height) in cut(rows, count) {
                        let r = m0 + r;
                        args.a = first.a.add(r * a.stride);
                        if weight_zeros.is_some() {
                            args.row_terms = first.row_terms.add(r);
                            args.b_zeros = first.b_zeros.add(column);
                        }
                        args.out = out.at(r, column);
                        tiles.by_width[w][height - 1](&args);
                        if let Some(map) = map {
                            out.map(r, column, height, args.cols, &kernels.unary(map));
                        }
                    }
                }
                column += tiles.lanes << w;
            }
        }
    }
}

/// Rows of A that share a pass over B: as many as a quarter of a common L2 holds beside the panels of B, and
/// enough to spread B's cost. Half of it was up to 6 % slower for thousands of rows.
pub(crate) fn row_block(stride: usize, m: usize) -> usize {
    const A_BLOCK_BYTES: usize = 256 << 10;
    (A_BLOCK_BYTES / stride.max(1)).clamp(56, m.max(56))
}

impl QTiles {
    /// Columns of a panel.
    pub(crate) fn panel(&self) -> usize {
        2 * self.lanes
    }

    /// The widest tiles that take `rows` at once, of one panel at least.
    pub(crate) fn widest(&self, rows: usize) -> usize {
        (1..self.by_width.len()).rev().find(|w| self.by_width[*w].len() >= rows).unwrap_or(1)
    }

    /// The width of tiles where `left` columns are left: `w`, or less.
    pub(crate) fn width_at(&self, mut w: usize, left: usize) -> usize {
        if left <= self.lanes {
            return 0;
        }
        let whole = packed_columns(self, left) / self.panel();
        while w > 1 && (1 << (w - 1)) > whole {
            w -= 1;
        }
        w
    }
}

/// Columns of the packed B: whole panels, and one of a single vector where the last columns fit it.
pub(crate) fn packed_columns(tiles: &QTiles, n: usize) -> usize {
    panels(tiles, n).map(|(_, width)| width).sum()
}

/// The panels of n columns: first column and width.
pub(crate) fn panels(tiles: &QTiles, n: usize) -> impl Iterator<Item = (usize, usize)> {
    let (panel, lanes) = (tiles.panel(), tiles.lanes);
    (0..n).step_by(panel).map(move |first| (first, if n - first <= lanes { lanes } else { panel }))
}

impl QOut {
    /// The same from row r and a column on.
    ///
    /// # Safety
    /// That element exists.
    pub(crate) unsafe fn at(&self, r: usize, column: usize) -> Self {
        let mut out = *self;
        // SAFETY: as the function.
        unsafe {
            match &mut out {
                Self::Sums { out, row } => *out = out.add(r * *row + column),
                Self::Floats { out, row, scale, each, bias, .. } => {
                    *out = out.add(r * *row + column);
                    if *each {
                        *scale = scale.add(column);
                    }
                    if !bias.is_null() {
                        *bias = bias.add(column);
                    }
                }
                Self::Bytes { out, row, scale, each, .. } => {
                    *out = out.add(r * *row + column);
                    if *each {
                        *scale = scale.add(column);
                    }
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests;
