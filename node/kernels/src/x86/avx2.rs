//! AVX2 with FMA: 8 lanes of f32; integer products widened to i16, two at a time.
//!
//! `vpmaddubsw` is not used: it saturates pairs of full-range products, which would change results.

#[allow(clippy::wildcard_imports, reason = "intrinsics, by the dozen")]
use std::arch::x86_64::*;

use crate::simd::{ByteRange, ByteVector, Dot, IntVector, Pair, Simd, Vector};

/// The set itself.
pub(crate) struct Avx2;

impl Simd for Avx2 {
    type V = Y;
    type W = Pair<Y>;
    type I = Yi;
    type B = Yb;
    type D = Widened;
}

/// 8 lanes of f32.
#[derive(Clone, Copy)]
pub(crate) struct Y(__m256);

/// 8 lanes of i32.
#[derive(Clone, Copy)]
pub(crate) struct Yi(__m256i);

/// 32 lanes of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Yb(__m256i);

impl ByteVector for Yb {
    const LANES: usize = 32;

    #[inline(always)]
    unsafe fn splat(x: u8) -> Self {
        // SAFETY: AVX2.
        unsafe { Yb(_mm256_set1_epi8(x as i8)) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const u8, n: usize) -> Self {
        // SAFETY: 32 bytes are read where n allows as many, else the first n.
        unsafe {
            if n >= 32 {
                return Yb(_mm256_loadu_si256(p.cast()));
            }
            let all: [u8; 32] = std::array::from_fn(|i| if i < n { p.add(i).read() } else { 0 });
            Yb(_mm256_loadu_si256(all.as_ptr().cast()))
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut u8, n: usize) {
        // SAFETY: 32 bytes are written where n allows as many, else the first n.
        unsafe {
            if n >= 32 {
                return _mm256_storeu_si256(p.cast(), self.0);
            }
            let mut all = [0; 32];
            _mm256_storeu_si256(all.as_mut_ptr().cast(), self.0);
            all.iter().take(n).enumerate().for_each(|(i, byte)| p.add(i).write(*byte));
        }
    }

    #[inline(always)]
    unsafe fn max_unsigned(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Yb(_mm256_max_epu8(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn max_signed(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Yb(_mm256_max_epi8(self.0, o.0)) }
    }
}

/// A window of 8 of these, starting at `8 - n`, has its first `n` lanes set.
static FIRST: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

/// The mask of the first `min(n, 8)` lanes.
#[inline(always)]
unsafe fn first(n: usize) -> __m256i {
    // SAFETY: the window starts at 0..=8 and has 8 elements, within the 16 of FIRST; AVX as the caller has
    // it.
    unsafe { _mm256_loadu_si256(FIRST.as_ptr().add(8 - n.min(8)).cast()) }
}

impl Vector for Y {
    const LANES: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: AVX2 and FMA, as all of this module (see crate::simd).
        unsafe { Y(_mm256_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller lets 8 values be read.
        unsafe { Y(_mm256_loadu_ps(p)) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize, fill: Self) -> Self {
        // SAFETY: 8 values are read where n allows as many; otherwise a masked load touches the first n
        // alone.
        unsafe {
            if n >= 8 {
                return Self::load(p);
            }
            let mask = first(n);
            Y(_mm256_blendv_ps(fill.0, _mm256_maskload_ps(p, mask), _mm256_castsi256_ps(mask)))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller lets 8 numbers be read; F16C.
        unsafe { Y(_mm256_cvtph_ps(_mm_loadu_si128(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller lets 8 numbers be read.
        unsafe {
            Y(_mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller lets 8 values be written.
        unsafe { _mm256_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        // SAFETY: 8 values are written where n allows as many; otherwise a masked store touches the first n
        // alone.
        unsafe {
            // Masked stores are slow on some processors, so the common case goes without.
            if n >= 8 { self.store(p) } else { _mm256_maskstore_ps(p, first(n), self.0) }
        }
    }

    #[inline(always)]
    unsafe fn down<const HALF: usize>(self) -> Self {
        // SAFETY: AVX.
        unsafe {
            Y(match HALF {
                4 => _mm256_permute2f128_ps::<0b01>(self.0, self.0),
                2 => _mm256_permute_ps::<0b1110>(self.0),
                _ => _mm256_permute_ps::<0b01>(self.0),
            })
        }
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: AVX.
        unsafe { _mm256_cvtss_f32(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_add_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_sub_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_mul_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_div_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_sqrt_ps(self.0)) }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: FMA.
        unsafe { Y(_mm256_fmadd_ps(self.0, b.0, c.0)) }
    }

    #[inline(always)]
    unsafe fn round_even(self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }

    #[inline(always)]
    unsafe fn floor(self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_floor_ps(self.0)) }
    }

    #[inline(always)]
    unsafe fn ceil(self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_ceil_ps(self.0)) }
    }

    #[inline(always)]
    unsafe fn over(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_max_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn under(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_min_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn if_greater(a: Self, b: Self, x: Self, y: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_blendv_ps(y.0, x.0, _mm256_cmp_ps::<_CMP_GT_OQ>(a.0, b.0))) }
    }

    #[inline(always)]
    unsafe fn if_nan(self, x: Self, y: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_blendv_ps(y.0, x.0, _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0))) }
    }

    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_and_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_or_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_xor_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn bits_add(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe {
            Y(_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), _mm256_castps_si256(o.0))))
        }
    }

    #[inline(always)]
    unsafe fn bits_sub(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe {
            Y(_mm256_castsi256_ps(_mm256_sub_epi32(_mm256_castps_si256(self.0), _mm256_castps_si256(o.0))))
        }
    }

    #[inline(always)]
    unsafe fn bits_shl23(self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_castps_si256(self.0)))) }
    }

    #[inline(always)]
    unsafe fn bits_sra1(self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_castsi256_ps(_mm256_srai_epi32::<1>(_mm256_castps_si256(self.0)))) }
    }

    #[inline(always)]
    unsafe fn bits_to_number(self) -> Self {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_cvtepi32_ps(_mm256_castps_si256(self.0))) }
    }
}

/// The first `min(n, 8)` bytes at `p`, and zeros, as one number.
#[inline(always)]
unsafe fn bytes(p: *const u8, n: usize) -> i64 {
    // SAFETY: the caller lets n bytes be read; 8 are where n allows as many, otherwise fewer than 8.
    unsafe {
        if n >= 8 {
            return p.cast::<i64>().read_unaligned();
        }
        let mut out = [0u8; 8];
        std::ptr::copy_nonoverlapping(p, out.as_mut_ptr(), n);
        i64::from_le_bytes(out)
    }
}

impl IntVector for Yi {
    type Float = Y;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        // SAFETY: AVX2.
        unsafe { Yi(_mm256_set1_epi32(x)) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const i32, n: usize) -> Self {
        // SAFETY: a masked load touches the first min(n, 8) values alone.
        unsafe { Yi(_mm256_maskload_epi32(p, first(n))) }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut i32, n: usize) {
        // SAFETY: 8 values are written where n allows as many; otherwise a masked store touches the first n
        // alone.
        unsafe {
            if n >= 8 {
                _mm256_storeu_si256(p.cast(), self.0);
            } else {
                _mm256_maskstore_epi32(p, first(n), self.0);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_u8(p: *const u8, n: usize) -> Self {
        // SAFETY: the caller lets n bytes be read.
        unsafe { Yi(_mm256_cvtepu8_epi32(_mm_cvtsi64_si128(bytes(p, n)))) }
    }

    #[inline(always)]
    unsafe fn load_s8(p: *const u8, n: usize) -> Self {
        // SAFETY: the caller lets n bytes be read.
        unsafe { Yi(_mm256_cvtepi8_epi32(_mm_cvtsi64_si128(bytes(p, n)))) }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, n: usize) {
        // SAFETY: the caller lets n bytes be written; 8 are at hand.
        unsafe {
            let low = _mm256_setr_epi8(
                0, 4, 8, 12, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, -1, 0, 4, 8, 12, -1, -1, -1, -1, -1,
                -1, -1, -1, -1, -1, -1, -1,
            );
            let four = _mm256_shuffle_epi8(self.0, low);
            let eight = _mm_unpacklo_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256::<1>(four));
            let eight = _mm_cvtsi128_si64(eight);
            if n >= 8 {
                p.cast::<i64>().write_unaligned(eight);
            } else {
                std::ptr::copy_nonoverlapping(eight.to_le_bytes().as_ptr(), p, n);
            }
        }
    }

    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Yi(_mm256_add_epi32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Yi(_mm256_sub_epi32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: AVX2.
        unsafe { Yi(_mm256_mullo_epi32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn to_float(self) -> Y {
        // SAFETY: AVX2.
        unsafe { Y(_mm256_cvtepi32_ps(self.0)) }
    }

    #[inline(always)]
    unsafe fn from_float(x: Y) -> Self {
        // SAFETY: AVX2.
        unsafe { Yi(_mm256_cvtps_epi32(x.0)) }
    }

    #[inline(always)]
    unsafe fn store_rounded(values: [Y; 2], to: &ByteRange, p: *mut u8) {
        // SAFETY: the caller lets 16 bytes be written. Values above the range are bounded first; those below
        // it, and NaN, become the least i32 or a number below the range, and the bounds in i16 catch them:
        // each narrowing saturates.
        unsafe {
            let high = _mm256_set1_ps(to.high as f32);
            let a = _mm256_cvtps_epi32(_mm256_min_ps(high, values[0].0));
            let b = _mm256_cvtps_epi32(_mm256_min_ps(high, values[1].0));
            let both = _mm256_max_epi16(_mm256_packs_epi32(a, b), _mm256_set1_epi16(to.low as i16));
            let both = _mm256_add_epi16(both, _mm256_set1_epi16(to.zero as i16));
            let low = _mm256_and_si256(both, _mm256_set1_epi16(0xff));
            // In each half 4 bytes of a, then 4 of b.
            let bytes = _mm256_packus_epi16(low, low);
            let sorted = _mm256_permutevar8x32_epi32(bytes, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(sorted));
        }
    }
}

/// Products of pairs: both sides widened to i16, then `vpmaddwd`.
#[derive(Clone, Copy)]
pub(crate) struct Widened;

impl Dot for Widened {
    type Acc = Yi;
    type A = __m256i;
    type B = __m256i;
    const GROUP: usize = 2;
    const A_SIGNED: bool = false;

    #[inline(always)]
    unsafe fn load_a(p: *const u8, flip: u8) -> __m256i {
        // SAFETY: the caller lets two bytes be read.
        unsafe {
            let pair = p.cast::<u16>().read_unaligned() ^ (u16::from(flip) * 0x0101);
            _mm256_cvtepu8_epi16(_mm_set1_epi16(pair as i16))
        }
    }

    #[inline(always)]
    unsafe fn load_a_part(p: *const u8, n: usize, flip: u8) -> __m256i {
        // SAFETY: n is 1 or 0, and the caller lets n bytes be read.
        unsafe {
            let one = if n > 0 { p.read() ^ flip } else { 0 };
            _mm256_cvtepu8_epi16(_mm_set1_epi16(i16::from(one)))
        }
    }

    #[inline(always)]
    unsafe fn load_b(p: *const i8) -> __m256i {
        // SAFETY: the caller lets 16 bytes be read.
        unsafe { _mm256_cvtepi8_epi16(_mm_loadu_si128(p.cast())) }
    }

    #[inline(always)]
    unsafe fn dot(acc: Yi, a: __m256i, b: __m256i) -> Yi {
        // SAFETY: AVX2.
        unsafe { Yi(_mm256_add_epi32(acc.0, _mm256_madd_epi16(a, b))) }
    }
}
