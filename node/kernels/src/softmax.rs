//! Softmax and its logarithm over rows.
//!
//! A row: its maximum (of any order, being exact); `e^(x - max)` with the sum by the lanes and
//! tree of [`crate::reduce`]; then a product with `1 / sum`, or a subtraction of `ln(sum)`.

use crate::math;
use crate::reduce::{fold, tree};
use crate::simd::{REDUCE_LANES, Simd, Vector};
use crate::table::Kernels;

/// A row's kernel: x, y, n, whether the logarithm is wanted.
///
/// # Safety
/// `n` values may be read at x and written at y, which is apart; the instruction set is there.
pub(crate) type SoftmaxFn = unsafe fn(*const f32, *mut f32, usize, bool);

impl Kernels {
    /// `y = softmax(x)` over one row.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn softmax(&self, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "row and result are of equal length");
        // SAFETY: both have x.len() values.
        unsafe { (self.softmax_fn())(x.as_ptr(), y.as_mut_ptr(), x.len(), false) }
    }

    /// `y = ln(softmax(x))` over one row.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn log_softmax(&self, x: &[f32], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "row and result are of equal length");
        // SAFETY: as in `softmax`.
        unsafe { (self.softmax_fn())(x.as_ptr(), y.as_mut_ptr(), x.len(), true) }
    }
}

/// A row of softmax.
///
/// # Safety
/// As [`SoftmaxFn`].
#[inline(always)]
pub(crate) unsafe fn softmax<S: Simd>(x: *const f32, y: *mut f32, n: usize, logarithm: bool) {
    // SAFETY: as the function.
    unsafe {
        match n.div_ceil(REDUCE_LANES) {
            0 | 1 => short::<S, 1>(x, y, n, logarithm),
            2 => short::<S, 2>(x, y, n, logarithm),
            3 | 4 => short::<S, 4>(x, y, n, logarithm),
            _ => long::<S>(x, y, n, logarithm),
        }
    }
}

/// A row of at most N vectors, which stays in registers: what was written a moment ago, in part, is slow to
/// read again.
///
/// # Safety
/// As [`SoftmaxFn`], with n at most N vectors.
#[inline(always)]
unsafe fn short<S: Simd, const N: usize>(x: *const f32, y: *mut f32, n: usize, logarithm: bool) {
    // SAFETY: vectors within n, in a part at the end; those beyond it read and write nothing, and their
    // pointers are only computed.
    unsafe {
        let lowest = S::W::splat(f32::NEG_INFINITY);
        let left = |j: usize| n.saturating_sub(j * REDUCE_LANES);
        let mut values = [lowest; N];
        let mut most = lowest;
        for (j, value) in values.iter_mut().enumerate() {
            *value = S::W::load_part(x.wrapping_add(j * REDUCE_LANES), left(j), lowest);
            most = most.max_nan(*value);
        }
        let most = S::W::splat(tree::<S::W, fold::Max>(most));
        let mut sums = S::W::splat(0.0);
        for value in &mut values {
            let shifted = value.sub(most);
            let e = math::exp(shifted);
            // Lanes beyond the row hold e^-infinity = 0, and NaN where all of the row is NaN or nothing.
            sums = sums.add(e);
            *value = if logarithm { shifted } else { e };
        }
        let sum = tree::<S::W, fold::Sum>(sums);
        let (log, factor) = if logarithm { (math::log(sum), 1.0) } else { (0.0, 1.0 / sum) };
        let (log, factor) = (S::W::splat(log), S::W::splat(factor));
        for (j, value) in values.iter().enumerate() {
            let value = if logarithm { value.sub(log) } else { value.mul(factor) };
            value.store_part(y.wrapping_add(j * REDUCE_LANES), left(j));
        }
    }
}

/// A row of any length.
///
/// # Safety
/// As [`SoftmaxFn`].
#[inline(always)]
unsafe fn long<S: Simd>(x: *const f32, y: *mut f32, n: usize, logarithm: bool) {
    // SAFETY: vectors within n, and a part at the end.
    unsafe {
        let lowest = S::W::splat(f32::NEG_INFINITY);
        let mut most = lowest;
        for i in (0..n).step_by(REDUCE_LANES) {
            most = most.max_nan(S::W::load_part(x.add(i), n - i, lowest));
        }
        let most = S::W::splat(tree::<S::W, fold::Max>(most));
        let mut sums = S::W::splat(0.0);
        for i in (0..n).step_by(REDUCE_LANES) {
            let left = n - i;
            let value = S::W::load_part(x.add(i), left, lowest).sub(most);
            let e = math::exp(value);
            // Lanes beyond the row hold e^-infinity = 0.
            sums = sums.add(e);
            (if logarithm { value } else { e }).store_part(y.add(i), left);
        }
        let sum = tree::<S::W, fold::Sum>(sums);
        if logarithm {
            let log = S::W::splat(math::log(sum));
            for i in (0..n).step_by(REDUCE_LANES) {
                S::W::load_first(y.add(i), n - i).sub(log).store_part(y.add(i), n - i);
            }
        } else {
            let factor = S::W::splat(1.0 / sum);
            for i in (0..n).step_by(REDUCE_LANES) {
                S::W::load_first(y.add(i), n - i).mul(factor).store_part(y.add(i), n - i);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::test::{Guarded, close, kernels, lengths, noise, same};

    #[test]
    fn every_length_on_every_set() {
        for n in lengths() {
            let x = Guarded::from(&noise(n, 3).iter().map(|x| x * 10.0).collect::<Vec<_>>());
            let plain: Vec<f64> = x.iter().map(|x| f64::from(*x)).collect();
            let most = plain.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let sum: f64 = plain.iter().map(|x| (x - most).exp()).sum();
            let exact: Vec<f64> = plain.iter().map(|x| (x - most).exp() / sum).collect();
            let logs: Vec<f64> = plain.iter().map(|x| x - most - sum.ln()).collect();
            let mut first: Option<[Vec<f32>; 2]> = None;
            for kernels in kernels() {
                let name = format!("{n} {}", kernels.isa());
                let mut y = Guarded::from(&vec![0.0; n]);
                let mut log = Guarded::from(&vec![0.0; n]);
                kernels.softmax(&x, &mut y);
                kernels.log_softmax(&x, &mut log);
                close(&y, &exact, 1e-6, &name);
                close(&log, &logs, 1e-5, &name);
                let [expected, expected_log] = first.get_or_insert_with(|| [y.to_vec(), log.to_vec()]);
                same(&y, expected, &name);
                same(&log, expected_log, &name);
            }
        }
    }

    #[test]
    fn a_row_without_a_number_is_nan_and_infinities_count() {
        for kernels in kernels() {
            let mut y = [0.0; 3];
            kernels.softmax(&[f32::NEG_INFINITY, 0.0, 0.0], &mut y);
            assert_eq!(y, [0.0, 0.5, 0.5]);
            kernels.softmax(&[f32::NAN, 0.0, 0.0], &mut y);
            assert!(y.iter().all(|y| y.is_nan()));
            kernels.softmax(&[f32::NEG_INFINITY; 3], &mut y);
            assert!(y.iter().all(|y| y.is_nan()));
        }
    }
}
