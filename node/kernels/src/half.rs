//! Half precision: weights may be kept in it, and are widened to f32, which loses nothing.

use crate::prefetch::Ahead;
use crate::simd::Vector;
use crate::table::Kernels;

/// A format of 16 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Half {
    /// IEEE 754 binary16.
    F16,
    /// bfloat16, the upper half of an f32.
    BF16,
}

/// Packed weights: as they are multiplied, or in half precision, which is widened on the way, to the same
/// results.
#[derive(Debug, Clone, Copy)]
pub enum Weights<'a> {
    /// In f32.
    F32(&'a [f32]),
    /// The bits of numbers in a format.
    Half(Half, &'a [u16]),
}

impl Weights<'_> {
    pub(crate) fn len(&self) -> usize {
        match self {
            Self::F32(weights) => weights.len(),
            Self::Half(_, weights) => weights.len(),
        }
    }

    /// The format, where it is not f32.
    pub fn half(&self) -> Option<Half> {
        match self {
            Self::F32(_) => None,
            Self::Half(format, _) => Some(*format),
        }
    }

    /// What each of the `tiles` tiles of a panel, of `depth` steps each, asks for, so that together they ask for
    /// the `len` weights from `next` on, which may lie beyond the last.
    pub(crate) fn ahead(&self, next: usize, len: usize, tiles: usize, depth: usize) -> Ahead {
        let (next, unit) = match self {
            // What a lone tile reads itself is widened already.
            Self::Half(..) if tiles == 1 => return Ahead::Nothing,
            Self::Half(_, weights) => (weights.as_ptr().wrapping_add(next).cast(), size_of::<u16>()),
            Self::F32(weights) => (weights.as_ptr().wrapping_add(next).cast(), size_of::<f32>()),
        };
        Ahead::new(next, len * unit, tiles, depth, self.len() * unit)
    }
}

/// A row's kernel.
///
/// # Safety
/// `n` numbers may be read and as many written; the instruction set is there.
pub(crate) type WidenFn = unsafe fn(*const u16, *mut f32, usize, Half);

impl Kernels {
    /// `y = x`, whose elements are the bits of numbers in `format`.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn widen(&self, format: Half, x: &[u16], y: &mut [f32]) {
        assert_eq!(x.len(), y.len(), "row and result are of equal length");
        // SAFETY: both have x.len() elements.
        unsafe { (self.widen_fn())(x.as_ptr(), y.as_mut_ptr(), x.len(), format) }
    }
}

/// Widens a row.
///
/// # Safety
/// As [`WidenFn`].
#[inline(always)]
pub(crate) unsafe fn widen<V: Vector>(x: *const u16, y: *mut f32, n: usize, format: Half) {
    // SAFETY: as this function, with the method of the format.
    unsafe {
        match format {
            Half::F16 => each::<V>(x, y, n, |p| V::load_f16(p)),
            Half::BF16 => each::<V>(x, y, n, |p| V::load_bf16(p)),
        }
    }
}

/// # Safety
/// `n` numbers may be read at `x` and as many written at `y`; `load` reads `V::LANES`.
#[inline(always)]
unsafe fn each<V: Vector>(x: *const u16, y: *mut f32, n: usize, load: impl Fn(*const u16) -> V) {
    /// As many as any vector has.
    const LANES_MAX: usize = 16;
    const { assert!(V::LANES <= LANES_MAX) };
    // SAFETY: vectors within n, and a copy of what is left.
    unsafe {
        let mut whole = 0;
        while whole + V::LANES <= n {
            load(x.add(whole)).store(y.add(whole));
            whole += V::LANES;
        }
        if whole < n {
            let mut rest = [0; LANES_MAX];
            std::ptr::copy_nonoverlapping(x.add(whole), rest.as_mut_ptr(), n - whole);
            load(rest.as_ptr()).store_part(y.add(whole), n - whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::half::Half;
    use crate::test::{Guarded, bytes, kernels, lengths, same, sized};

    /// By the definition of the formats.
    fn plain(format: Half, bits: u16) -> f32 {
        let sign = if bits >> 15 == 0 { 1.0 } else { -1.0 };
        match format {
            Half::BF16 => f32::from_bits(u32::from(bits) << 16),
            Half::F16 => {
                let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
                match (exponent, bits & 1023) {
                    (31, 0) => sign * f32::INFINITY,
                    (31, _) => f32::NAN,
                    (0, _) => sign * fraction * 2.0_f32.powi(-24),
                    _ => sign * (1024.0 + fraction) * 2.0_f32.powi(exponent - 25),
                }
            }
        }
    }

    #[test]
    fn every_number_on_every_set() {
        let all: Vec<u16> = (0..=u16::MAX).step_by(sized(1, 1, 97)).collect();
        for format in [Half::F16, Half::BF16] {
            let expected: Vec<f32> = all.iter().map(|bits| plain(format, *bits)).collect();
            for kernels in kernels() {
                let mut y = vec![0.0; all.len()];
                kernels.widen(format, &all, &mut y);
                same(&y, &expected, &format!("{format:?} {}", kernels.isa()));
            }
        }
    }

    #[test]
    fn every_length_on_every_set() {
        for n in lengths() {
            let bits: Vec<u16> =
                bytes(2 * n, 5).as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair)).collect();
            let x = Guarded::from(&bits);
            for format in [Half::F16, Half::BF16] {
                let expected: Vec<f32> = bits.iter().map(|bits| plain(format, *bits)).collect();
                for kernels in kernels() {
                    let mut y = Guarded::from(&vec![0.0; n]);
                    kernels.widen(format, &x, &mut y);
                    same(&y, &expected, &format!("{n} {format:?} {}", kernels.isa()));
                }
            }
        }
    }
}
