//! Functions of one and of two f32 operands, over slices.
//!
//! The caller does the broadcasting: it hands rows over, and says which operand is one value for the whole
//! row. A kernel is resolved once ([`Kernels::unary`], [`Kernels::binary`]) and called without any dispatch.

use crate::math;
use crate::simd::{Simd, Vector};
use crate::table::Kernels;

/// A function of one operand. NaN gives NaN in all of them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Unary {
    /// `|x|`.
    Abs,
    /// `-x`.
    Neg,
    /// The square root, correctly rounded.
    Sqrt,
    /// `1 / x`, correctly rounded.
    Reciprocal,
    /// Down to an integer.
    Floor,
    /// Up to an integer.
    Ceil,
    /// To the nearest integer, halves to even.
    Round,
    /// e^x, within 4 ULP.
    Exp,
    /// The natural logarithm, within 4 ULP.
    Log,
    /// Within 4 ULP.
    Tanh,
    /// The error function, within 4 ULP.
    Erf,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// `max(x, 0)`.
    Relu,
    /// x, or `alpha · x` below 0.
    LeakyRelu {
        /// The slope below 0.
        alpha: f32,
    },
    /// `min(max(x, min), max)`.
    Clip {
        /// The lower bound.
        min: f32,
        /// The upper bound.
        max: f32,
    },
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · (1 + erf(x / √2)) / 2`.
    Gelu,
    /// The approximation of gelu by tanh.
    GeluTanh,
    /// `max(0, min(1, alpha · x + beta))`.
    HardSigmoid {
        /// The slope.
        alpha: f32,
        /// The value at 0.
        beta: f32,
    },
    /// `x · max(0, min(1, x / 6 + 1 / 2))`.
    HardSwish,
    /// `ln(1 + e^x)`.
    Softplus,
    /// `x / (1 + |x|)`.
    Softsign,
    /// x, or `alpha · (e^x - 1)` below 0.
    Elu {
        /// The factor below 0.
        alpha: f32,
    },
    /// `gamma · x`, or `gamma · alpha · (e^x - 1)` at and below 0.
    Selu {
        /// The factor below 0.
        alpha: f32,
        /// The factor everywhere.
        gamma: f32,
    },
    /// `max(x, 0) + min(0, alpha · (e^(x / alpha) - 1))`.
    Celu {
        /// The scale below 0.
        alpha: f32,
    },
    /// x above alpha, else 0.
    ThresholdedRelu {
        /// The threshold.
        alpha: f32,
    },
    /// `x · tanh(ln(1 + e^x))`.
    Mish,
    /// `scale · x + offset`, rounded once.
    Affine {
        /// The factor.
        scale: f32,
        /// What is added.
        offset: f32,
    },
}

/// A function of two operands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Binary {
    /// `a + b`.
    Add,
    /// `a - b`.
    Sub,
    /// `a · b`.
    Mul,
    /// `a / b`.
    Div,
    /// The greater; NaN when either is NaN.
    Max,
    /// The lesser; NaN when either is NaN.
    Min,
    /// a, or `b · a` where a is below 0.
    Prelu,
}

/// An operand of a row: a value for each element, or one for all.
#[derive(Debug, Clone, Copy)]
pub enum Operand<'a> {
    /// One value per element.
    Row(&'a [f32]),
    /// One value.
    One(f32),
}

/// A map's kernel.
///
/// # Safety
/// All that the arguments describe may be read and written; the instruction set is there.
pub(crate) type MapFn = unsafe fn(&MapArgs);

/// Rows that a map is applied to. A tile's rows are short, and so come together: what the function starts
/// with, such as its constants, is read once.
#[derive(Clone, Copy)]
pub(crate) struct MapArgs {
    pub(crate) x: *const f32,
    /// Equal to x, or apart.
    pub(crate) y: *mut f32,
    /// From a row to the next, of both.
    pub(crate) stride: usize,
    pub(crate) rows: usize,
    pub(crate) cols: usize,
    pub(crate) with: [f32; 2],
}

/// A zip's kernel: a, b, out, n, and whether a and b move on with out.
///
/// # Safety
/// `n` values may be read at a and b (one where it does not move) and written at out, which is equal to one
/// of them or apart; the instruction set is there.
pub(crate) type ZipFn = unsafe fn(*const f32, *const f32, *mut f32, usize, [bool; 2]);

/// A function of one operand, resolved.
#[derive(Clone, Copy)]
pub struct UnaryKernel {
    map: MapFn,
    with: [f32; 2],
}

impl UnaryKernel {
    /// `y = f(x)`.
    ///
    /// # Panics
    /// When the lengths differ.
    pub fn run(&self, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "operand and result are of equal length");
        // SAFETY: both are x.len() long, and apart.
        unsafe { self.apply(x.as_ptr(), y.as_mut_ptr(), 0, 1, x.len()) }
    }

    /// `x = f(x)`.
    pub fn run_in_place(&self, x: &mut [f32]) {
        let (n, at) = (x.len(), x.as_mut_ptr());
        // SAFETY: n values, read and written through the same pointer.
        unsafe { self.apply(at, at, 0, 1, n) }
    }

    /// `x = f(x)` for `rows` rows of `cols`, `stride` apart.
    ///
    /// # Safety
    /// All of these may be read and written.
    pub(crate) unsafe fn rows_in_place(&self, x: *mut f32, stride: usize, rows: usize, cols: usize) {
        // SAFETY: as the function; read and written through the same pointer.
        unsafe { self.apply(x, x, stride, rows, cols) }
    }

    /// # Safety
    /// As [`MapFn`].
    unsafe fn apply(&self, x: *const f32, y: *mut f32, stride: usize, rows: usize, cols: usize) {
        // SAFETY: as the function; the table came from `Kernels::of`.
        unsafe { (self.map)(&MapArgs { x, y, stride, rows, cols, with: self.with }) }
    }
}

/// A function of two operands, resolved.
#[derive(Clone, Copy)]
pub struct BinaryKernel {
    zip: ZipFn,
}

impl BinaryKernel {
    /// `out = f(a, b)`.
    ///
    /// # Panics
    /// When a row is not as long as `out`.
    pub fn run(&self, a: Operand<'_>, b: Operand<'_>, out: &mut [f32]) {
        let view = |operand: &Operand<'_>| match operand {
            Operand::Row(row) => {
                assert_eq!(row.len(), out.len(), "operand and result are of equal length");
                (row.as_ptr(), true)
            }
            Operand::One(_) => (std::ptr::null(), false),
        };
        let ((mut at_a, row_a), (mut at_b, row_b)) = (view(&a), view(&b));
        if let Operand::One(value) = &a {
            at_a = value;
        }
        if let Operand::One(value) = &b {
            at_b = value;
        }
        // SAFETY: a row is out.len() long; a single value is alive in `a` or `b`; `out` is apart from both.
        unsafe { (self.zip)(at_a, at_b, out.as_mut_ptr(), out.len(), [row_a, row_b]) }
    }

    /// `a = f(a, b)`.
    ///
    /// # Panics
    /// When b is a row not as long as `a`.
    pub fn run_in_place(&self, a: &mut [f32], b: Operand<'_>) {
        let (at_b, row_b): (*const f32, bool) = match &b {
            Operand::Row(row) => {
                assert_eq!(row.len(), a.len(), "operands are of equal length");
                (row.as_ptr(), true)
            }
            Operand::One(value) => (value, false),
        };
        let (n, at) = (a.len(), a.as_mut_ptr());
        // SAFETY: n values each; the result replaces a through the same pointer, and b is apart.
        unsafe { (self.zip)(at, at_b, at, n, [true, row_b]) }
    }
}

impl Kernels {
    /// Resolves a function of one operand.
    pub fn unary(&self, unary: Unary) -> UnaryKernel {
        let (index, with) = unary.index();
        UnaryKernel { map: self.maps()[index], with }
    }

    /// Resolves a function of two operands.
    pub fn binary(&self, binary: Binary) -> BinaryKernel {
        BinaryKernel { zip: self.zips()[binary as usize] }
    }
}

/// A function of one operand and two constants.
pub(crate) trait Map {
    /// # Safety
    /// As [`crate::simd`].
    unsafe fn map<V: Vector>(x: V, with: [V; 2]) -> V;
}

/// A function of two operands.
pub(crate) trait Zip {
    /// # Safety
    /// As [`crate::simd`].
    unsafe fn zip<V: Vector>(a: V, b: V) -> V;
}

/// Applies `F` over rows.
///
/// # Safety
/// As [`MapFn`].
#[inline(always)]
pub(crate) unsafe fn map<S: Simd, F: Map>(t: &MapArgs) {
    let lanes = S::V::LANES;
    // SAFETY: vectors within the columns of each row, and a part at the end.
    unsafe {
        let with = [S::V::splat(t.with[0]), S::V::splat(t.with[1])];
        for r in 0..t.rows {
            let (x, y) = (t.x.add(r * t.stride), t.y.add(r * t.stride));
            let mut i = 0;
            while i + lanes <= t.cols {
                F::map(S::V::load(x.add(i)), with).store(y.add(i));
                i += lanes;
            }
            if i < t.cols {
                F::map(S::V::load_first(x.add(i), t.cols - i), with).store_part(y.add(i), t.cols - i);
            }
        }
    }
}

/// Applies `F` over two operands.
///
/// # Safety
/// As [`ZipFn`].
#[inline(always)]
pub(crate) unsafe fn zip<S: Simd, F: Zip>(
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    n: usize,
    rows: [bool; 2],
) {
    // SAFETY: as ZipFn.
    unsafe {
        match rows {
            [true, true] => zip_rows::<S::V, F, true, true>(a, b, out, n),
            [true, false] => zip_rows::<S::V, F, true, false>(a, b, out, n),
            [false, true] => zip_rows::<S::V, F, false, true>(a, b, out, n),
            [false, false] => zip_rows::<S::V, F, false, false>(a, b, out, n),
        }
    }
}

#[inline(always)]
unsafe fn zip_rows<V: Vector, F: Zip, const A: bool, const B: bool>(
    a: *const f32,
    b: *const f32,
    out: *mut f32,
    n: usize,
) {
    if n == 0 {
        return;
    }
    // SAFETY: vectors within n, and a part at the end; a single value is read once.
    unsafe {
        let one_a = V::splat(*a);
        let one_b = V::splat(*b);
        let mut i = 0;
        while i + V::LANES <= n {
            let x = if A { V::load(a.add(i)) } else { one_a };
            let y = if B { V::load(b.add(i)) } else { one_b };
            F::zip(x, y).store(out.add(i));
            i += V::LANES;
        }
        if i < n {
            let x = if A { V::load_first(a.add(i), n - i) } else { one_a };
            let y = if B { V::load_first(b.add(i), n - i) } else { one_b };
            F::zip(x, y).store_part(out.add(i), n - i);
        }
    }
}

/// Declares the markers of the maps, and the order in which tables hold them.
macro_rules! maps {
    ($($name:ident |$x:ident, $p:ident, $q:ident| $body:expr;)*) => {
        /// The functions of one operand, as types.
        pub(crate) mod unary {
            use super::{Map, Vector, math};
            $(
                pub(crate) struct $name;

                impl Map for $name {
                    #[inline(always)]
                    unsafe fn map<V: Vector>($x: V, [$p, $q]: [V; 2]) -> V {
                        let _ = ($p, $q);
                        // SAFETY: as the trait.
                        unsafe { $body }
                    }
                }
            )*
        }

        /// Where each is in a table.
        #[derive(Clone, Copy)]
        enum MapIndex { $($name),* }

        /// How many there are.
        pub(crate) const MAPS: usize = [$(MapIndex::$name),*].len();

        /// The table of an instruction set's maps.
        macro_rules! map_table {
            ($entry:ident) => { [$($entry::<$crate::elementwise::unary::$name>),*] };
        }
    };
}

maps! {
    Abs |x, _p, _q| math::abs(x);
    Neg |x, _p, _q| x.xor(V::splat_bits(0x8000_0000));
    Sqrt |x, _p, _q| x.sqrt();
    Reciprocal |x, _p, _q| V::splat(1.0).div(x);
    Floor |x, _p, _q| x.floor();
    Ceil |x, _p, _q| x.ceil();
    Round |x, _p, _q| x.round_even();
    Exp |x, _p, _q| math::exp(x);
    Log |x, _p, _q| math::log(x);
    Tanh |x, _p, _q| math::tanh(x);
    Erf |x, _p, _q| math::erf(x);
    Sigmoid |x, _p, _q| math::sigmoid(x);
    Relu |x, _p, _q| math::relu(x);
    LeakyRelu |x, p, _q| V::if_greater(V::splat(0.0), x, x.mul(p), x);
    Clip |x, p, q| q.under(p.over(x));
    Silu |x, _p, _q| x.mul(math::sigmoid(x));
    Gelu |x, _p, _q| math::gelu(x);
    GeluTanh |x, _p, _q| math::gelu_tanh(x);
    HardSigmoid |x, p, q| math::hard_sigmoid(x, p, q);
    HardSwish |x, _p, _q| x.mul(math::hard_sigmoid(x, V::splat(1.0 / 6.0), V::splat(0.5)));
    Softplus |x, _p, _q| math::softplus(x);
    Softsign |x, _p, _q| x.div(V::splat(1.0).add(math::abs(x)));
    Elu |x, p, _q| V::if_greater(V::splat(0.0), x, p.mul(math::expm1(x)), x);
    Selu |x, p, q| q.mul(V::if_greater(x, V::splat(0.0), x, p.mul(math::expm1(x))));
    Celu |x, p, _q| V::if_greater(V::splat(0.0), x, p.mul(math::expm1(x.div(p))), x);
    ThresholdedRelu |x, p, _q| x.if_nan(x, V::if_greater(x, p, x, V::splat(0.0)));
    Mish |x, _p, _q| x.mul(math::tanh(math::softplus(x)));
    Affine |x, p, q| x.fma(p, q);
}

impl Unary {
    /// Its place in a table, and its constants.
    fn index(self) -> (usize, [f32; 2]) {
        use MapIndex as At;
        let (at, with) = match self {
            Self::Abs => (At::Abs, [0.0; 2]),
            Self::Neg => (At::Neg, [0.0; 2]),
            Self::Sqrt => (At::Sqrt, [0.0; 2]),
            Self::Reciprocal => (At::Reciprocal, [0.0; 2]),
            Self::Floor => (At::Floor, [0.0; 2]),
            Self::Ceil => (At::Ceil, [0.0; 2]),
            Self::Round => (At::Round, [0.0; 2]),
            Self::Exp => (At::Exp, [0.0; 2]),
            Self::Log => (At::Log, [0.0; 2]),
            Self::Tanh => (At::Tanh, [0.0; 2]),
            Self::Erf => (At::Erf, [0.0; 2]),
            Self::Sigmoid => (At::Sigmoid, [0.0; 2]),
            Self::Relu => (At::Relu, [0.0; 2]),
            Self::LeakyRelu { alpha } => (At::LeakyRelu, [alpha, 0.0]),
            Self::Clip { min, max } => (At::Clip, [min, max]),
            Self::Silu => (At::Silu, [0.0; 2]),
            Self::Gelu => (At::Gelu, [0.0; 2]),
            Self::GeluTanh => (At::GeluTanh, [0.0; 2]),
            Self::HardSigmoid { alpha, beta } => (At::HardSigmoid, [alpha, beta]),
            Self::HardSwish => (At::HardSwish, [0.0; 2]),
            Self::Softplus => (At::Softplus, [0.0; 2]),
            Self::Softsign => (At::Softsign, [0.0; 2]),
            Self::Elu { alpha } => (At::Elu, [alpha, 0.0]),
            Self::Selu { alpha, gamma } => (At::Selu, [alpha, gamma]),
            Self::Celu { alpha } => (At::Celu, [alpha, 0.0]),
            Self::ThresholdedRelu { alpha } => (At::ThresholdedRelu, [alpha, 0.0]),
            Self::Mish => (At::Mish, [0.0; 2]),
            Self::Affine { scale, offset } => (At::Affine, [scale, offset]),
        };
        (at as usize, with)
    }
}

/// Declares the markers of the zips, in the order of [`Binary`].
macro_rules! zips {
    ($($name:ident |$a:ident, $b:ident| $body:expr;)*) => {
        /// The functions of two operands, as types.
        pub(crate) mod binary {
            use super::{Vector, Zip};
            $(
                pub(crate) struct $name;

                impl Zip for $name {
                    #[inline(always)]
                    unsafe fn zip<V: Vector>($a: V, $b: V) -> V {
                        // SAFETY: as the trait.
                        unsafe { $body }
                    }
                }
            )*
        }

        /// How many there are.
        pub(crate) const ZIPS: usize = [$(Binary::$name),*].len();

        /// The table of an instruction set's zips.
        macro_rules! zip_table {
            ($entry:ident) => { [$($entry::<$crate::elementwise::binary::$name>),*] };
        }
    };
}

zips! {
    Add |a, b| a.add(b);
    Sub |a, b| a.sub(b);
    Mul |a, b| a.mul(b);
    Div |a, b| a.div(b);
    Max |a, b| a.max_nan(b);
    Min |a, b| a.min_nan(b);
    Prelu |a, b| V::if_greater(V::splat(0.0), a, a.mul(b), a);
}

#[cfg(test)]
mod tests;
