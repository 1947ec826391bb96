//! `C = epilogue(A · B)` in f32, with B packed beforehand.
//!
//! [`Gemm`] is planned once for (k, n); it says how long the packed B is and packs it. The packed layout
//! depends on the instruction set alone, never on m, so weights are packed once and serve every batch. The
//! result's bits depend on neither (see [`tile`]). A caller who wants threads gives each some of the rows.

mod epilogue;
mod pack;
pub(crate) mod tile;

use std::ops::Range;

pub(crate) use epilogue::extent;
pub use epilogue::{Activation, Epilogue, Rows};
use pack::{copy_rows, pack_b};

use crate::elementwise::UnaryKernel;
use crate::gemm::tile::{Clamp, Taps, TileArgs, Tiles};
use crate::half::{Half, Weights};
use crate::prefetch::Ahead;
use crate::table::Kernels;

/// Depth of a pass. Longer ones read and write C less often; a panel of B (32 columns × 1024 × 4 = 128 KiB)
/// still stays in L2 beside the rows that it is multiplied with.
const K_BLOCK: usize = 1024;

/// Bytes of A in a pass. A panel of B (128 KiB) and the next one, on its way, want room beside it in an L2 of
/// 1 MiB, not all of which serves where pages are scattered: 384 KiB were 4 % slower with 1024 rows of 1024,
/// half of it up to 6 % more.
const A_BLOCK_BYTES: usize = 256 << 10;

/// Bytes of weights that a product widens at a time, to stay in a first cache of 32 KiB beside rows of a tile.
const WIDE_BYTES: usize = 16 << 10;

/// The widest tiles where weights are widened, as a power of two of vectors: wider ones have no depth left.
pub(crate) const WIDE_W: usize = 2;

/// Rows this far apart fall into one set of a first cache of 64 sets; the widest tiles, of 12 to 14 rows,
/// have more rows than it has ways. Half as far they share two sets, which is enough: copying them was 5 to 7
/// % slower with 512 columns on AVX-512, and 3 to 5 % on AVX2.
const ALIAS_BYTES: usize = 4096;

/// Elements of a cache line.
const LINE: usize = 64 / size_of::<f32>();

/// A matrix with any strides: element (r, c) is at `r · row + c · col`.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// From a row to the next, in elements.
    pub row: usize,
    /// From a column to the next, in elements.
    pub col: usize,
}

impl<'a> Matrix<'a> {
    /// Row-major, without gaps.
    pub fn dense(data: &'a [f32], cols: usize) -> Self {
        Self { data, row: cols, col: 1 }
    }

    /// The transpose of a row-major matrix of `cols` columns.
    pub fn transposed(data: &'a [f32], cols: usize) -> Self {
        Self { data, row: 1, col: cols }
    }

    fn check(&self, rows: usize, cols: usize) {
        if rows > 0 && cols > 0 {
            let width = extent(cols, self.col, 1);
            assert!(self.data.len() >= extent(rows, self.row, width), "a matrix reaches beyond its slice");
        }
    }
}

/// Where rows of results go: row r at `r · stride`.
#[derive(Debug)]
pub struct RowsMut<'a> {
    /// The elements.
    pub data: &'a mut [f32],
    /// From the start of a row to that of the next, in elements; at least the columns.
    pub stride: usize,
}

impl RowsMut<'_> {
    pub(crate) fn check(&self, rows: usize, cols: usize) {
        assert!(self.data.len() >= extent(rows, self.stride, cols), "the output reaches beyond its slice");
        assert!(rows <= 1 || self.stride >= cols, "the output's rows overlap");
    }
}

/// A planned product `[m, k] · [k, n]`, any m.
#[derive(Clone, Copy)]
pub struct Gemm {
    kernels: &'static Kernels,
    k: usize,
    n: usize,
}

impl Kernels {
    /// Plans `[m, k] · [k, n]` for any m.
    pub fn gemm(&'static self, k: usize, n: usize) -> Gemm {
        Gemm { kernels: self, k, n }
    }
}

impl Gemm {
    /// Elements of the packed B.
    pub fn packed_len(&self) -> usize {
        packed_columns(self.kernels.tiles(), self.n)
            .checked_mul(self.k)
            .expect("weights fit the address space")
    }

    /// Packs B `[k, n]`. A packed B that starts at a multiple of 64 bytes is read faster.
    ///
    /// # Panics
    /// When B is shorter than its shape and strides say, or `packed` is not [`Self::packed_len`] long.
    pub fn pack(&self, b: Matrix<'_>, packed: &mut [f32]) {
        b.check(self.k, self.n);
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        pack_b(b, self.k, self.n, self.kernels.tiles().panel(), self.kernels.tiles().lanes, packed);
    }

    /// Hands over every element of a packed B: row, column, value.
    ///
    /// # Panics
    /// When `packed` is not [`Self::packed_len`] long.
    pub fn unpack(&self, packed: &[f32], mut put: impl FnMut(usize, usize, f32)) {
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        let tiles = self.kernels.tiles();
        let mut rest = packed;
        for first in (0..self.n).step_by(tiles.panel()) {
            let cols = tiles.panel().min(self.n - first);
            let width = if cols <= tiles.lanes { tiles.lanes } else { tiles.panel() };
            let (panel, after) = rest.split_at(width * self.k);
            rest = after;
            for (p, row) in panel.chunks_exact(width).enumerate() {
                row[..cols].iter().enumerate().for_each(|(c, value)| put(p, first + c, *value));
            }
        }
    }

    /// Rows and columns of the tile that most of a product of m rows runs on, with weights of a format.
    pub fn tile(&self, m: usize, format: Option<Half>) -> [usize; 2] {
        let tiles = self.kernels.tiles();
        let plan = Plan::of(tiles, m, format);
        let w = if self.n <= tiles.lanes { 0 } else { plan.w };
        [m.div_ceil(m.div_ceil(plan.rows).max(1)), tiles.lanes << w]
    }

    /// Elements of scratch that [`Self::run`] wants for m rows, with weights of a format. Where that is f32, it
    /// runs with less all the same, to the same bits, and may be slower.
    pub fn scratch_len(&self, m: usize, format: Option<Half>) -> usize {
        let plan = Plan::of(self.kernels.tiles(), m, format);
        self.wide_len(format) + self.copied_len(m, k_block(self.kernels.tiles(), plan, format))
    }

    /// Elements that weights of a format are widened to at a time, in whole cache lines; enough for any rows.
    fn wide_len(&self, format: Option<Half>) -> usize {
        let widest = self.kernels.tiles().lanes << WIDE_W;
        let len = self.k.saturating_mul(widest).min(WIDE_BYTES / size_of::<f32>());
        if format.is_some() { len.next_multiple_of(LINE) } else { 0 }
    }

    /// Elements of the copy of A in a pass of a depth.
    fn copied_len(&self, m: usize, k_block: usize) -> usize {
        let k = self.k.min(k_block);
        if m > 1 { m.min(row_block(k, m)) * copied_stride(k) } else { 0 }
    }

    /// `out[m, n] = epilogue(A[m, k] · B)`.
    ///
    /// # Panics
    /// When a slice is shorter than its shape and strides say; when weights that are not f32 have less scratch
    /// than [`Self::scratch_len`].
    pub fn run(
        &self,
        m: usize,
        a: Matrix<'_>,
        packed: Weights<'_>,
        out: RowsMut<'_>,
        epilogue: &Epilogue<'_>,
        scratch: &mut [f32],
    ) {
        let Self { kernels, k, n } = *self;
        a.check(m, k);
        out.check(m, n);
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        assert!(epilogue.bias.is_none_or(|bias| bias.len() == n), "the bias has one value per column");
        if let Some(residual) = &epilogue.residual {
            residual.check(m, n);
        }
        if m == 0 || n == 0 {
            return;
        }
        let tiles = kernels.tiles();
        let (clamp, map) = epilogue.activation.split();
        let format = packed.half();
        let plan = Plan::of(tiles, m, format);
        let depth = k_block(tiles, plan, format);
        let (wide, scratch) = scratch.split_at_mut(self.wide_len(format));
        // Rows that evict each other, and columns that lie apart, are copied; a copy is cheap beside the
        // products.
        let awkward = a.col != 1 || (m > 2 && (a.row * size_of::<f32>()).is_multiple_of(ALIAS_BYTES));
        let copy_a = m > 1 && awkward && scratch.len() >= self.copied_len(m, depth);
        let one_tile = m <= plan.rows && !copy_a;
        let (k_block, row_block) = match format {
            None if one_tile => (k.max(1), m),
            _ => (depth, row_block(k.min(depth), m)),
        };
        // A tile alone widens its panels from end to end, as hardware reads ahead.
        let columns = if format.is_some() && one_tile { tiles.lanes << plan.w } else { n };
        let job = Job {
            kernels,
            tiles,
            plan,
            k,
            n,
            a,
            packed,
            out: out.data.as_mut_ptr(),
            out_row: out.stride,
            bias: epilogue.bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
            residual: epilogue.residual.map_or(std::ptr::null(), |residual| residual.data.as_ptr()),
            residual_row: epilogue.residual.map_or(0, |residual| residual.stride),
            clamp,
            map: map.map(|unary| kernels.unary(unary)),
        };
        for first in (0..n).step_by(columns) {
            for k0 in (0..k.max(1)).step_by(k_block) {
                for m0 in (0..m).step_by(row_block) {
                    let block = Block {
                        rows: m0..m.min(m0 + row_block),
                        depth: k0..k.min(k0 + k_block),
                        columns: first..n.min(first + columns),
                        from_c: epilogue.accumulate || k0 > 0,
                    };
                    // SAFETY: shapes and strides were checked against the slices above, for all of m, k and n;
                    // `out` is borrowed mutably; the table came from `Kernels::of`.
                    unsafe { job.block(&block, wide, copy_a.then_some(&mut *scratch)) };
                }
            }
        }
    }
}

/// Columns of the packed B: whole panels, and one of a single vector where the last columns fit it.
pub(crate) fn packed_columns(tiles: &Tiles, n: usize) -> usize {
    let rest = n % tiles.panel();
    n - rest + if rest == 0 { 0 } else { rest.div_ceil(tiles.lanes) * tiles.lanes }
}

/// How rows are cut into tiles: at most so many at once, at a width of 2^w vectors.
#[derive(Clone, Copy)]
struct Plan {
    w: usize,
    rows: usize,
}

impl Plan {
    fn of(tiles: &Tiles, m: usize, format: Option<Half>) -> Self {
        let w = tiles.widest(m, 1);
        let w = if format.is_some() { w.min(WIDE_W) } else { w };
        Self { w, rows: tiles.rows(w) }
    }
}

/// A product under way.
struct Job<'a> {
    kernels: &'static Kernels,
    tiles: &'static Tiles,
    plan: Plan,
    k: usize,
    n: usize,
    a: Matrix<'a>,
    packed: Weights<'a>,
    out: *mut f32,
    out_row: usize,
    bias: *const f32,
    residual: *const f32,
    residual_row: usize,
    clamp: Clamp,
    map: Option<UnaryKernel>,
}

/// A part of a product.
struct Block {
    rows: Range<usize>,
    depth: Range<usize>,
    /// From the start of a panel on.
    columns: Range<usize>,
    /// Whether sums go on from what C holds.
    from_c: bool,
}

impl Job<'_> {
    /// A part; `wide` and `scratch` are for widened weights and for a copy of the rows.
    ///
    /// # Safety
    /// All of this lies within the slices that the pointers came from, and `out` is this job's alone.
    unsafe fn block(&self, block: &Block, wide: &mut [f32], scratch: Option<&mut [f32]>) {
        let Block { rows: Range { start: m0, end: m1 }, depth: Range { start: k0, end: k1 }, .. } = *block;
        let rows = m1 - m0;
        let last = k1 == self.k;
        let count = rows.div_ceil(self.plan.rows);
        let b_depth = if self.packed.half().is_some() { k1 - k0 } else { self.k };
        let mut args = TileArgs {
            a: std::ptr::null(),
            a_row: self.a.row,
            a_k: self.a.col,
            taps: Taps::one(k1 - k0),
            b: std::ptr::null(),
            b_panel: self.tiles.panel() * b_depth,
            c: self.out,
            c_row: self.out_row,
            cols: 0,
            from_c: block.from_c,
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            residual_row: self.residual_row,
            clamp: if last { self.clamp } else { Clamp::Free },
            ahead: Ahead::Nothing,
        };
        let copied = scratch.map(|scratch| {
            copy_rows(self.a, m0, rows, k0, k1, copied_stride(k1 - k0), scratch);
            scratch.as_ptr()
        });
        let mut column = block.columns.start;
        while column < block.columns.end {
            let w = self.width_at(column);
            let width = self.tiles.lanes << w;
            args.cols = width.min(self.n - column);
            let panel_width = if w == 0 { self.tiles.lanes } else { self.tiles.panel() };
            let first = column * self.k + k0 * panel_width;
            args.b = match self.packed {
                // SAFETY: the packed B has k rows of `column` columns before this panel, and within it k0 rows.
                Weights::F32(packed) => unsafe { packed.as_ptr().add(first) },
                Weights::Half(format, packed) => {
                    let len = (k1 - k0) * panel_width;
                    for panel in 0..width / panel_width {
                        let from = first + panel * panel_width * self.k;
                        let to = &mut wide[panel * len..(panel + 1) * len];
                        self.kernels.widen(format, &packed[from..from + len], to);
                    }
                    wide.as_ptr()
                }
            };
            let after = (column + width) * self.k + k0 * panel_width;
            let next_width = width.min(self.n.saturating_sub(column + width));
            args.ahead = self.packed.ahead(after, (k1 - k0) * next_width, count, k1 - k0);
            for (r, height) in cut(rows, count) {
                // SAFETY: row m0 + r and column `column` are within A, C, bias and residual, as the caller
                // says.
                unsafe {
                    match copied {
                        Some(copied) => {
                            (args.a_row, args.a_k) = (copied_stride(k1 - k0), 1);
                            args.a = copied.add(r * args.a_row);
                        }
                        None => {
                            args.a =
                                self.a.data.as_ptr().wrapping_add((m0 + r) * self.a.row + k0 * self.a.col)
                        }
                    }
                    args.c = self.out.add((m0 + r) * self.out_row + column);
                    if last && !self.bias.is_null() {
                        args.bias = self.bias.add(column);
                    }
                    if last && !self.residual.is_null() {
                        args.residual = self.residual.add((m0 + r) * self.residual_row + column);
                    }
                    self.tiles.by_width[w][height - 1](&args);
                    args.ahead.passed(k1 - k0);
                    if let (true, Some(map)) = (last, &self.map) {
                        map.rows_in_place(args.c, args.c_row, height, args.cols);
                    }
                }
            }
            column += width;
        }
    }

    /// The width of the tiles at this column: the plan's, or less where fewer panels are left.
    fn width_at(&self, column: usize) -> usize {
        let left = self.n - column;
        if left <= self.tiles.lanes {
            return 0;
        }
        let mut w = self.plan.w;
        // A last panel of a single vector is laid out by itself: no wider tile may reach into it.
        let whole = packed_columns(self.tiles, left) / self.tiles.panel();
        while w > 1 && (1 << (w - 1)) > whole {
            w -= 1;
        }
        w
    }
}

/// Depth of a pass, with weights of a format.
fn k_block(tiles: &Tiles, plan: Plan, format: Option<Half>) -> usize {
    let widened = WIDE_BYTES / size_of::<f32>() / (tiles.lanes << plan.w);
    if format.is_some() { widened } else { K_BLOCK }
}

/// Rows of a pass over k of a depth.
fn row_block(k: usize, m: usize) -> usize {
    (A_BLOCK_BYTES / size_of::<f32>() / k.max(1)).clamp(56, m.max(56))
}

/// From a row of copied A to the next: an odd number of cache lines, so that rows fall into different sets.
fn copied_stride(k: usize) -> usize {
    (k.div_ceil(LINE) | 1) * LINE
}

/// Cuts `rows` into `count` pieces whose sizes differ by at most one: `(first, size)` of each.
pub(crate) fn cut(rows: usize, count: usize) -> impl Iterator<Item = (usize, usize)> {
    let (size, larger) = (rows / count, rows % count);
    (0..count).map(move |i| (i * size + i.min(larger), size + usize::from(i < larger)))
}

#[cfg(test)]
mod tests;
