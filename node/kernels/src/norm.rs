//! Normalisation of rows: by mean and variance, or by the mean square.
//!
//! Sums go by the lanes and tree of [`crate::reduce`]. The variance is the mean of squared differences from
//! the mean, in a second pass: the shorter formula cancels.

use crate::reduce::{fold, tree};
use crate::simd::{REDUCE_LANES, Simd, Vector};
use crate::table::Kernels;

/// A row's kernel. `scale` and `bias` may be null, and then `y` may be null too: only the moments are wanted.
///
/// # Safety
/// `n` values may be read at x, scale and bias, and written at y, which is equal to x or apart; the
/// instruction set is there.
pub(crate) type NormFn = unsafe fn(&NormArgs) -> Moments;

/// A row to normalise.
#[derive(Clone, Copy)]
pub(crate) struct NormArgs {
    pub(crate) x: *const f32,
    pub(crate) scale: *const f32,
    pub(crate) bias: *const f32,
    pub(crate) y: *mut f32,
    pub(crate) n: usize,
    pub(crate) epsilon: f32,
    /// Whether the mean is subtracted.
    pub(crate) center: bool,
}

/// What a row was normalised by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Moments {
    /// The mean; 0 where none is subtracted.
    pub mean: f32,
    /// `1 / √(variance + epsilon)`, or of the mean square.
    pub inverse_deviation: f32,
}

impl Kernels {
    /// `y = (x - mean) / √(variance + epsilon) · scale + bias` over one row.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn layer_norm(
        &self,
        x: &[f32],
        scale: Option<&[f32]>,
        bias: Option<&[f32]>,
        epsilon: f32,
        y: &mut [f32],
    ) -> Moments {
        self.norm(x, scale, bias, epsilon, Some(y), true)
    }

    /// `y = x / √(mean of squares + epsilon) · scale` over one row.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn rms_norm(&self, x: &[f32], scale: Option<&[f32]>, epsilon: f32, y: &mut [f32]) -> Moments {
        self.norm(x, scale, None, epsilon, Some(y), false)
    }

    /// What [`Self::layer_norm`] would normalise a row by.
    pub fn moments(&self, x: &[f32], epsilon: f32) -> Moments {
        self.norm(x, None, None, epsilon, None, true)
    }

    fn norm(
        &self,
        x: &[f32],
        scale: Option<&[f32]>,
        bias: Option<&[f32]>,
        epsilon: f32,
        y: Option<&mut [f32]>,
        center: bool,
    ) -> Moments {
        let n = x.len();
        let at = |row: Option<&[f32]>| {
            row.map_or(std::ptr::null(), |row| {
                assert_eq!(row.len(), n, "one value for each element");
                row.as_ptr()
            })
        };
        let (scale, bias) = (at(scale), at(bias));
        let y = y.map_or(std::ptr::null_mut(), |y| {
            assert_eq!(y.len(), n, "row and result are of equal length");
            y.as_mut_ptr()
        });
        // SAFETY: each is n long or null.
        unsafe { (self.norm_fn())(&NormArgs { x: x.as_ptr(), scale, bias, y, n, epsilon, center }) }
    }
}

/// Normalises a row.
///
/// # Safety
/// As [`NormFn`].
#[inline(always)]
pub(crate) unsafe fn norm<S: Simd>(t: &NormArgs) -> Moments {
    // SAFETY: vectors within n, and a part at the end.
    unsafe {
        let count = t.n as f32;
        let mut mean = 0.0;
        if t.center {
            let mut sums = S::W::splat(0.0);
            for i in (0..t.n).step_by(REDUCE_LANES) {
                sums = sums.add(S::W::load_first(t.x.add(i), t.n - i));
            }
            mean = tree::<S::W, fold::Sum>(sums) / count;
        }
        let middle = S::W::splat(mean);
        let mut squares = S::W::splat(0.0);
        for i in (0..t.n).step_by(REDUCE_LANES) {
            // Lanes beyond the row hold the mean, and so contribute nothing.
            let d = S::W::load_part(t.x.add(i), t.n - i, middle).sub(middle);
            squares = d.fma(d, squares);
        }
        let variance = tree::<S::W, fold::Sum>(squares) / count;
        let inverse_deviation = 1.0 / (variance + t.epsilon).sqrt();
        if !t.y.is_null() {
            let factor = S::W::splat(inverse_deviation);
            for i in (0..t.n).step_by(REDUCE_LANES) {
                let left = t.n - i;
                let mut value = S::W::load_first(t.x.add(i), left).sub(middle).mul(factor);
                if !t.scale.is_null() {
                    value = value.mul(S::W::load_first(t.scale.add(i), left));
                }
                if !t.bias.is_null() {
                    value = value.add(S::W::load_first(t.bias.add(i), left));
                }
                value.store_part(t.y.add(i), left);
            }
        }
        Moments { mean, inverse_deviation }
    }
}

#[cfg(test)]
mod tests {
    use crate::test::{Guarded, close, kernels, lengths, noise, same};

    #[test]
    fn every_length_on_every_set() {
        for n in lengths().filter(|n| *n > 0) {
            let x = Guarded::from(&noise(n, 5));
            let scale = Guarded::from(&noise(n, 6));
            let bias = Guarded::from(&noise(n, 7));
            let exact = |center: bool| -> Vec<f64> {
                let all = x.iter().map(|x| f64::from(*x));
                let mean = if center { all.clone().sum::<f64>() / n as f64 } else { 0.0 };
                let variance = all.clone().map(|x| (x - mean) * (x - mean)).sum::<f64>() / n as f64;
                all.zip(scale.iter())
                    .zip(bias.iter())
                    .map(|((x, scale), bias)| {
                        let y = (x - mean) / (variance + 1e-5).sqrt() * f64::from(*scale);
                        y + if center { f64::from(*bias) } else { 0.0 }
                    })
                    .collect()
            };
            let mut first: Option<[Vec<f32>; 2]> = None;
            for kernels in kernels() {
                let name = format!("{n} {}", kernels.isa());
                let mut y = Guarded::from(&vec![0.0; n]);
                let mut rms = Guarded::from(&vec![0.0; n]);
                let moments = kernels.layer_norm(&x, Some(&scale), Some(&bias), 1e-5, &mut y);
                assert_eq!(kernels.moments(&x, 1e-5), moments, "{name}");
                kernels.rms_norm(&x, Some(&scale), 1e-5, &mut rms);
                close(&y, &exact(true), 1e-4, &name);
                close(&rms, &exact(false), 1e-5, &name);
                let [expected, expected_rms] = first.get_or_insert_with(|| [y.to_vec(), rms.to_vec()]);
                same(&y, expected, &name);
                same(&rms, expected_rms, &name);
            }
        }
    }
}
