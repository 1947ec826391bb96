//! From f32 to 8 bits and back.

use crate::qgemm::Sign;
use crate::simd::{ByteRange, IntVector, Simd, Vector};
use crate::table::Kernels;

/// A scale and a zero point: a byte q stands for `(q - zero) · scale`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Quantization {
    /// The step.
    pub scale: f32,
    /// The byte that stands for 0.
    pub zero: i32,
    /// How bytes are read.
    pub sign: Sign,
}

/// A row's kernel of quantisation.
///
/// # Safety
/// `n` values may be read and as many bytes written; the instruction set is there.
pub(crate) type QuantizeFn = unsafe fn(*const f32, *mut u8, usize, &Quantization);

/// A row's kernel of dequantisation.
///
/// # Safety
/// `n` bytes may be read and as many values written; the instruction set is there.
pub(crate) type DequantizeFn = unsafe fn(*const u8, *mut f32, usize, &Quantization);

impl Kernels {
    /// `y = saturate(round(x / scale) + zero)`, halves to even; NaN becomes the least byte.
    ///
    /// # Panics
    /// When lengths differ, or the zero point is no byte of the sign.
    pub fn quantize(&self, x: &[f32], with: Quantization, y: &mut [u8]) {
        assert_eq!(x.len(), y.len(), "row and result are of equal length");
        let (low, high) = with.sign.range();
        assert!((low..=high).contains(&with.zero), "a zero point of the type");
        // SAFETY: both have x.len() elements.
        unsafe { (self.quantize_fn())(x.as_ptr(), y.as_mut_ptr(), x.len(), &with) }
    }

    /// `y = (x - zero) · scale`.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn dequantize(&self, x: &[u8], with: Quantization, y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "row and result are of equal length");
        // SAFETY: both have x.len() elements.
        unsafe { (self.dequantize_fn())(x.as_ptr(), y.as_mut_ptr(), x.len(), &with) }
    }
}

/// Quantises a row.
///
/// # Safety
/// As [`QuantizeFn`].
#[inline(always)]
pub(crate) unsafe fn quantize<S: Simd>(x: *const f32, y: *mut u8, n: usize, with: &Quantization) {
    // SAFETY: vectors within n, and a part at the end.
    unsafe {
        let (low, high) = with.sign.range();
        // Bounds before rounding are whole numbers, so that rounding cannot pass them.
        let to = ByteRange { low: low - with.zero, high: high - with.zero, zero: with.zero, tame: false };
        let scale = S::V::splat(with.scale);
        let lanes = S::V::LANES;
        let mut whole = 0;
        while whole + 2 * lanes <= n {
            let values = [S::V::load(x.add(whole)).div(scale), S::V::load(x.add(whole + lanes)).div(scale)];
            S::I::store_rounded(values, &to, y.add(whole));
            whole += 2 * lanes;
        }
        let (low, high) = (S::V::splat(to.low as f32), S::V::splat(to.high as f32));
        let zero = S::I::splat(with.zero);
        for i in (whole..n).step_by(lanes) {
            let value = S::V::load_first(x.add(i), n - i).div(scale).over(low).under(high);
            S::I::from_float(value).add(zero).store_low_bytes(y.add(i), n - i);
        }
    }
}

/// Dequantises a row.
///
/// # Safety
/// As [`DequantizeFn`].
#[inline(always)]
pub(crate) unsafe fn dequantize<S: Simd>(x: *const u8, y: *mut f32, n: usize, with: &Quantization) {
    // SAFETY: vectors within n, and a part at the end.
    unsafe {
        let scale = S::V::splat(with.scale);
        let zero = S::I::splat(with.zero);
        for i in (0..n).step_by(S::V::LANES) {
            let from = x.add(i);
            let bytes = match with.sign {
                Sign::Unsigned => S::I::load_u8(from, n - i),
                Sign::Signed => S::I::load_s8(from, n - i),
            };
            bytes.sub(zero).to_float().mul(scale).store_part(y.add(i), n - i);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::qgemm::Sign;
    use crate::quantize::Quantization;
    use crate::test::{Guarded, kernels, lengths, noise, same};

    fn plain(x: f32, with: Quantization) -> u8 {
        let (low, high) = with.sign.range();
        let rounded = (x / with.scale).round_ties_even();
        if rounded.is_nan() {
            return low as u8;
        }
        (f64::from(rounded) + f64::from(with.zero)).clamp(f64::from(low), f64::from(high)) as i32 as u8
    }

    #[test]
    fn every_length_on_every_set() {
        for n in lengths() {
            let mut values = noise(n, 8).iter().map(|x| x * 40.0).collect::<Vec<_>>();
            for (x, special) in
                values.iter_mut().zip([f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 1e30, -1e30, 0.125, 0.375])
            {
                *x = special;
            }
            values.reverse();
            let x = Guarded::from(&values);
            for with in [
                Quantization { scale: 0.25, zero: 131, sign: Sign::Unsigned },
                Quantization { scale: 0.3, zero: -7, sign: Sign::Signed },
            ] {
                let expected: Vec<u8> = x.iter().map(|x| plain(*x, with)).collect();
                for kernels in kernels() {
                    let mut y = Guarded::from(&vec![0u8; n]);
                    kernels.quantize(&x, with, &mut y);
                    assert_eq!(*y, *expected, "{n} {with:?} {}", kernels.isa());
                    let back: Vec<f32> = y
                        .iter()
                        .map(|y| {
                            let number =
                                if with.sign == Sign::Signed { i32::from(*y as i8) } else { i32::from(*y) };
                            (number - with.zero) as f32 * with.scale
                        })
                        .collect();
                    let mut z = Guarded::from(&vec![0.0; n]);
                    kernels.dequantize(&y, with, &mut z);
                    same(&z, &back, &format!("{n} {with:?} {}", kernels.isa()));
                }
            }
        }
    }
}
