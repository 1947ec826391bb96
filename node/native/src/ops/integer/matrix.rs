//! Integer products with one constant B on the kernels' [`QGemm`].
//!
//! Zero points may come with the run: A's becomes an offset of each column, B's needs the sums of A's rows.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use roost_kernels::{ByteRows, Output, QGemm, WeightZeros};

use super::{Shifted, Wide};
use crate::error::OpError;
use crate::ops::Target;
use crate::ops::fact::Fact;
use crate::ops::linear::MatShape;
use crate::ops::qimage::sign;
use crate::plan::pack::{Layout, PackedBuf, packed};
use crate::tensor::Tensor;

/// A product whose B is packed.
pub struct Packed {
    gemm: QGemm,
    /// Rows of all matrices of the stack.
    rows: usize,
    /// Rows of a matrix: zero points of A repeat after them.
    m: usize,
    k: usize,
    n: usize,
    shifted: Shifted,
    /// Whether B's zero points count.
    has_zeros: bool,
    /// The packed B, and from `sums_at` on the sums of its columns.
    weights: Arc<PackedBuf>,
    sums_at: usize,
}

/// B less what makes it signed.
pub fn signed(tensor: &Tensor, shifted: Shifted) -> Cow<'_, [i8]> {
    match shifted {
        Shifted::Signed => tensor.values::<i8>(),
        Shifted::Unsigned => tensor.values::<u8>().iter().map(|byte| (byte ^ 0x80) as i8).collect(),
    }
}

impl Packed {
    /// The product, where B is a constant of the graph, one for the whole stack; else `None`.
    ///
    /// # Errors
    /// As [`packed`].
    pub fn new(
        a: Fact<'_>,
        b: Fact<'_>,
        b_zero: Option<Fact<'_>>,
        shape: &MatShape,
        target: Target<'_>,
    ) -> Result<Option<Self>, OpError> {
        let Some(tensor) = b.value.filter(|_| b.pinned) else { return Ok(None) };
        let one_b = shape.steps[1].iter().all(|step| *step == 0);
        if !one_b || a.is_empty() || b.is_empty() {
            return Ok(None);
        }
        let (m, k, n) = (shape.m, shape.k, shape.n);
        let shifted = Shifted::of(b.dtype);
        let gemm = target.kernels.qgemm(k, n, sign(a.dtype));
        let layout = target.kernels.layout();
        let numbers = vec![k, n, shifted.by() as usize, layout.byte_panel, layout.byte_group];
        let len = gemm.packed_len();
        let sums_at = len.next_multiple_of(size_of::<i32>());
        let pack = |out: &mut [u8]| {
            let (packed, sums) = out.split_at_mut(sums_at);
            let packed = &mut bytemuck::cast_slice_mut(packed)[..len];
            gemm.pack(&signed(tensor, shifted), n, 1, packed, bytemuck::cast_slice_mut(sums));
        };
        let unpack = move |all: &[u8], b: &mut [u8]| {
            gemm.unpack(bytemuck::cast_slice(&all[..len]), |r, c, value| {
                b[r * n + c] = shifted.flip(value as u8);
            });
        };
        let layout = Layout { kernel: "qgemm", numbers };
        let weights = packed(target, tensor, layout, sums_at + n * size_of::<i32>(), pack, unpack)?;
        let rows = m * shape.stack.iter().product::<usize>();
        let has_zeros = shifted.has_zeros(b_zero);
        Ok(Some(Self { gemm, rows, m, k, n, shifted, has_zeros, weights, sums_at }))
    }

    /// Rows and columns of the tile that most of it runs on.
    pub fn tile(&self) -> Option<[usize; 2]> {
        self.gemm.tile(self.rows)
    }

    /// Elements of i32 scratch that [`Self::run`] needs.
    pub fn scratch_ints(&self) -> usize {
        self.n + if self.has_zeros { self.n + self.rows } else { 0 }
    }

    /// All rows at once, or row by row.
    pub fn blocks(&self, apart: bool) -> impl Iterator<Item = Range<usize>> + use<> {
        let (rows, each) = (self.rows, if apart { 1 } else { self.rows.max(1) });
        (0..rows).step_by(each).map(move |first| first..first + each)
    }

    /// Some rows of the product, which have one zero point: those of `a`, which is all of A, to `out`.
    pub fn run(
        &self,
        rows: Range<usize>,
        a: &[u8],
        [a_zero, b_zero]: [Wide<'_>; 2],
        scratch: &mut [i32],
        out: Output<'_>,
    ) {
        let (offsets, rest) = scratch.split_at_mut(self.n);
        let (packed, sums) = self.weights.bytes().split_at(self.sums_at);
        let packed = &bytemuck::cast_slice(packed)[..self.gemm.packed_len()];
        let a_zero = a_zero.entry(rows.start % self.m);
        self.gemm.offsets(bytemuck::cast_slice(sums), a_zero, None, offsets);
        let m = rows.len();
        let a = ByteRows { data: &a[rows.start * self.k..rows.end * self.k], stride: self.k };
        let zeros = self.has_zeros.then(|| {
            let (zeros, terms) = rest.split_at_mut(self.n);
            let terms = &mut terms[..m];
            zeros.iter_mut().enumerate().for_each(|(j, zero)| *zero = b_zero.entry(j) - self.shifted.by());
            self.gemm.row_terms(a, a_zero, terms);
            WeightZeros { zeros, row_terms: terms }
        });
        self.gemm.run(m, a, packed, offsets, zeros, out);
    }
}
