//! Softmax and its logarithm over rows.
//!
//! A row: `x · scale + mask`; its maximum (of any order, being exact); `e^(x - max)` with the sum by the lanes and
//! tree of [`crate::reduce`]; then a product with `1 / sum`, or a subtraction of `ln(sum)`.

use crate::math;
use crate::reduce::{fold, tree};
use crate::simd::{REDUCE_LANES, Simd, Vector};
use crate::table::Kernels;

/// A row's kernel: x, mask or null, y, n, scale, whether the logarithm is wanted.
///
/// # Safety
/// `n` values may be read at x (and at the mask) and written at y, which is equal to x or apart; the instruction
/// set is there.
pub(crate) type SoftmaxFn = unsafe fn(*const f32, *const f32, *mut f32, usize, f32, bool);

/// What is done to a row before the maximum is taken.
#[derive(Debug, Clone, Copy)]
pub struct Logits<'a> {
    /// The factor of each element; 1 leaves them as they are.
    pub scale: f32,
    /// Added after the factor, one value for each element.
    pub mask: Option<&'a [f32]>,
}

impl Default for Logits<'_> {
    fn default() -> Self {
        Self { scale: 1.0, mask: None }
    }
}

impl Kernels {
    /// `y = softmax(x · scale + mask)` over one row.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn softmax(&self, x: &[f32], logits: Logits<'_>, y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "row and result are of equal length");
        // SAFETY: both have x.len() values, and so has the mask (checked in `mask`).
        unsafe {
            (self.softmax_fn())(
                x.as_ptr(),
                mask(logits, x.len()),
                y.as_mut_ptr(),
                x.len(),
                logits.scale,
                false,
            )
        }
    }

    /// The same in place.
    ///
    /// # Panics
    /// When the mask is of another length.
    pub fn softmax_in_place(&self, x: &mut [f32], logits: Logits<'_>) {
        let (n, at) = (x.len(), x.as_mut_ptr());
        // SAFETY: n values, read and written through the same pointer; the mask is checked.
        unsafe { (self.softmax_fn())(at, mask(logits, n), at, n, logits.scale, false) }
    }

    /// `y = ln(softmax(x · scale + mask))` over one row.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn log_softmax(&self, x: &[f32], logits: Logits<'_>, y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "row and result are of equal length");
        // SAFETY: as in `softmax`.
        unsafe {
            (self.softmax_fn())(
                x.as_ptr(),
                mask(logits, x.len()),
                y.as_mut_ptr(),
                x.len(),
                logits.scale,
                true,
            )
        }
    }
}

/// # Panics
/// When the mask is not n long.
fn mask(logits: Logits<'_>, n: usize) -> *const f32 {
    logits.mask.map_or(std::ptr::null(), |mask| {
        assert_eq!(mask.len(), n, "the mask has one value for each element");
        mask.as_ptr()
    })
}

/// A row of softmax.
///
/// # Safety
/// As [`SoftmaxFn`].
#[inline(always)]
pub(crate) unsafe fn softmax<S: Simd>(
    x: *const f32,
    mask: *const f32,
    y: *mut f32,
    n: usize,
    scale: f32,
    logarithm: bool,
) {
    // SAFETY: vectors within n, and a part at the end.
    unsafe {
        let plain = mask.is_null() && scale == 1.0;
        let factor = S::W::splat(scale);
        let lowest = S::W::splat(f32::NEG_INFINITY);
        let mut most = lowest;
        for i in (0..n).step_by(REDUCE_LANES) {
            let left = n - i;
            let mut value = S::W::load_part(x.add(i), left, lowest);
            if !plain {
                value = value.mul(factor);
                if !mask.is_null() {
                    value = value.add(S::W::load_first(mask.add(i), left));
                }
                value.store_part(y.add(i), left);
                value = S::W::load_part(y.add(i), left, lowest);
            }
            most = most.max_nan(value);
        }
        let x = if plain { x } else { y.cast_const() };
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
    use crate::softmax::Logits;
    use crate::test::{Guarded, close, kernels, lengths, noise, same};

    #[test]
    fn every_length_on_every_set() {
        for n in lengths() {
            let x = Guarded::from(&noise(n, 3).iter().map(|x| x * 10.0).collect::<Vec<_>>());
            let mask = Guarded::from(&noise(n, 4));
            for logits in [Logits::default(), Logits { scale: 0.3, mask: Some(&mask) }] {
                let plain: Vec<f64> = (0..n)
                    .map(|i| f64::from(x[i] * logits.scale + logits.mask.map_or(0.0, |mask| mask[i])))
                    .collect();
                let most = plain.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let sum: f64 = plain.iter().map(|x| (x - most).exp()).sum();
                let exact: Vec<f64> = plain.iter().map(|x| (x - most).exp() / sum).collect();
                let logs: Vec<f64> = plain.iter().map(|x| x - most - sum.ln()).collect();
                let mut first: Option<[Vec<f32>; 2]> = None;
                for kernels in kernels() {
                    let name = format!("{n} {}", kernels.isa());
                    let mut y = Guarded::from(&vec![0.0; n]);
                    let mut log = Guarded::from(&vec![0.0; n]);
                    kernels.softmax(&x, logits, &mut y);
                    kernels.log_softmax(&x, logits, &mut log);
                    close(&y, &exact, 1e-6, &name);
                    close(&log, &logs, 1e-5, &name);
                    let mut in_place = x.to_vec();
                    kernels.softmax_in_place(&mut in_place, logits);
                    same(&in_place, &y, &name);
                    let [expected, expected_log] = first.get_or_insert_with(|| [y.to_vec(), log.to_vec()]);
                    same(&y, expected, &name);
                    same(&log, expected_log, &name);
                }
            }
        }
    }

    #[test]
    fn a_row_without_a_number_is_nan_and_infinities_count() {
        for kernels in kernels() {
            let mut y = [0.0; 3];
            kernels.softmax(&[f32::NEG_INFINITY, 0.0, 0.0], Logits::default(), &mut y);
            assert_eq!(y, [0.0, 0.5, 0.5]);
            kernels.softmax(&[f32::NAN, 0.0, 0.0], Logits::default(), &mut y);
            assert!(y.iter().all(|y| y.is_nan()));
            kernels.softmax(&[f32::NEG_INFINITY; 3], Logits::default(), &mut y);
            assert!(y.iter().all(|y| y.is_nan()));
        }
    }
}
