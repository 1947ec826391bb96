//! Reductions of a row to a number.
//!
//! Invariant: element i goes to virtual lane i mod 16, lanes are folded in order of i, and one fixed tree
//! folds the lanes. So the bits do not depend on how many lanes the hardware has.

use crate::math;
use crate::simd::{REDUCE_LANES, Simd, Vector};
use crate::table::Kernels;

/// What a row is reduced to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reduce {
    /// The sum; 0 of nothing.
    Sum,
    /// The sum of squares; 0 of nothing.
    SumSquares,
    /// The sum of absolute values; 0 of nothing.
    SumAbs,
    /// The product; 1 of nothing.
    Product,
    /// The greatest; NaN when one is NaN; -infinity of nothing.
    Max,
    /// The least; NaN when one is NaN; infinity of nothing.
    Min,
}

/// A reduction's kernel.
///
/// # Safety
/// `n` values may be read; the instruction set is there.
pub(crate) type ReduceFn = unsafe fn(*const f32, usize) -> f32;

/// A reduction, resolved.
#[derive(Clone, Copy)]
pub struct ReduceKernel {
    reduce: ReduceFn,
}

impl ReduceKernel {
    /// Reduces a row.
    pub fn run(&self, x: &[f32]) -> f32 {
        // SAFETY: x.len() values; the table came from `Kernels::of`.
        unsafe { (self.reduce)(x.as_ptr(), x.len()) }
    }
}

impl Kernels {
    /// Resolves a reduction.
    pub fn reduce(&self, reduce: Reduce) -> ReduceKernel {
        ReduceKernel { reduce: self.reduces()[reduce as usize] }
    }
}

/// A reduction, as a type: a start, what an element contributes, and how two are folded.
pub(crate) trait Fold {
    /// What nothing reduces to.
    const START: f32;

    /// # Safety
    /// As [`crate::simd`].
    unsafe fn fold<V: Vector>(sum: V, x: V) -> V;

    /// Folds two lanes.
    ///
    /// # Safety
    /// As [`crate::simd`].
    unsafe fn join<V: Vector>(a: V, b: V) -> V;
}

/// Reduces by `F`.
///
/// # Safety
/// As [`ReduceFn`].
#[inline(always)]
pub(crate) unsafe fn reduce<S: Simd, F: Fold>(x: *const f32, n: usize) -> f32 {
    // SAFETY: vectors within n, and a part at the end, whose other lanes hold what folds to nothing.
    unsafe {
        let start = S::W::splat(F::START);
        let mut sums = start;
        let mut i = 0;
        while i + REDUCE_LANES <= n {
            sums = F::fold(sums, S::W::load(x.add(i)));
            i += REDUCE_LANES;
        }
        if i < n {
            sums = F::fold(sums, S::W::load_part(x.add(i), n - i, start));
        }
        tree::<S::W, F>(sums)
    }
}

/// Folds 16 lanes: halves onto each other, until one is left.
///
/// # Safety
/// As [`crate::simd`].
#[inline(always)]
pub(crate) unsafe fn tree<W: Vector, F: Fold>(sums: W) -> f32 {
    // SAFETY: W has 16 lanes, as its place in Simd says.
    unsafe {
        let sums = F::join(sums, sums.down::<8>());
        let sums = F::join(sums, sums.down::<4>());
        let sums = F::join(sums, sums.down::<2>());
        F::join(sums, sums.down::<1>()).first()
    }
}

/// Declares the folds, in the order of [`Reduce`].
macro_rules! folds {
    ($($name:ident $start:expr, |$sum:ident, $x:ident| $fold:expr, |$a:ident, $b:ident| $join:expr;)*) => {
        /// The reductions, as types.
        pub(crate) mod fold {
            use super::{Fold, Vector, math};
            $(
                pub(crate) struct $name;

                impl Fold for $name {
                    const START: f32 = $start;

                    #[inline(always)]
                    unsafe fn fold<V: Vector>($sum: V, $x: V) -> V {
                        // SAFETY: as the trait.
                        unsafe { $fold }
                    }

                    #[inline(always)]
                    unsafe fn join<V: Vector>($a: V, $b: V) -> V {
                        // SAFETY: as the trait.
                        unsafe { $join }
                    }
                }
            )*
        }

        /// How many there are.
        pub(crate) const REDUCES: usize = [$(Reduce::$name),*].len();

        /// The table of an instruction set's reductions.
        macro_rules! reduce_table {
            ($entry:ident) => { [$($entry::<$crate::reduce::fold::$name>),*] };
        }
    };
}

folds! {
    Sum 0.0, |sum, x| sum.add(x), |a, b| a.add(b);
    SumSquares 0.0, |sum, x| x.fma(x, sum), |a, b| a.add(b);
    SumAbs 0.0, |sum, x| sum.add(math::abs(x)), |a, b| a.add(b);
    Product 1.0, |sum, x| sum.mul(x), |a, b| a.mul(b);
    Max f32::NEG_INFINITY, |sum, x| sum.max_nan(x), |a, b| a.max_nan(b);
    Min f32::INFINITY, |sum, x| sum.min_nan(x), |a, b| a.min_nan(b);
}

#[cfg(test)]
mod tests {
    use crate::reduce::Reduce;
    use crate::test::{Guarded, kernels, noise, same};

    /// The lanes and the tree, spelled out.
    fn plain(x: &[f32], start: f32, fold: fn(f32, f32) -> f32, join: fn(f32, f32) -> f32) -> f32 {
        let mut lanes = [start; 16];
        for (i, x) in x.iter().enumerate() {
            lanes[i % 16] = fold(lanes[i % 16], *x);
        }
        // Lanes of a part that hold no element fold the start once more.
        if !x.len().is_multiple_of(16) {
            for lane in &mut lanes[x.len() % 16..] {
                *lane = fold(*lane, start);
            }
        }
        for half in [8, 4, 2, 1] {
            for i in 0..half {
                lanes[i] = join(lanes[i], lanes[i + half]);
            }
        }
        lanes[0]
    }

    #[test]
    fn every_length_on_every_set() {
        type Plain = (Reduce, f32, fn(f32, f32) -> f32, fn(f32, f32) -> f32);
        let cases: [Plain; 6] = [
            (Reduce::Sum, 0.0, |s, x| s + x, |a, b| a + b),
            (Reduce::SumSquares, 0.0, |s, x| x.mul_add(x, s), |a, b| a + b),
            (Reduce::SumAbs, 0.0, |s, x| s + x.abs(), |a, b| a + b),
            (Reduce::Product, 1.0, |s, x| s * x, |a, b| a * b),
            (
                Reduce::Max,
                f32::NEG_INFINITY,
                |s, x| if s > x { s } else { x },
                |a, b| if a > b { a } else { b },
            ),
            (Reduce::Min, f32::INFINITY, |s, x| if s < x { s } else { x }, |a, b| if a < b { a } else { b }),
        ];
        for n in crate::test::lengths() {
            let x = Guarded::from(&noise(n, n as u64));
            for (reduce, start, fold, join) in cases {
                let expected = plain(&x, start, fold, join);
                for kernels in kernels() {
                    same(
                        &[kernels.reduce(reduce).run(&x)],
                        &[expected],
                        &format!("{reduce:?} {n} {}", kernels.isa()),
                    );
                }
            }
        }
    }

    #[test]
    fn nan_reaches_the_result_from_any_place() {
        for n in [1, 5, 16, 33] {
            for at in 0..n {
                let mut x = noise(n, 1);
                x[at] = f32::NAN;
                for kernels in kernels() {
                    for reduce in [Reduce::Sum, Reduce::Max, Reduce::Min, Reduce::Product] {
                        assert!(
                            kernels.reduce(reduce).run(&x).is_nan(),
                            "{reduce:?} {n} {at} {}",
                            kernels.isa()
                        );
                    }
                }
            }
        }
    }
}
