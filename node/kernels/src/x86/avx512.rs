//! AVX-512 F, BW, DQ, VL: 16 lanes of f32; integer products by VNNI, or widened to i16 where VNNI is missing.

#[allow(clippy::wildcard_imports, reason = "intrinsics, by the dozen")]
use std::arch::x86_64::*;

use crate::simd::{ByteRange, ByteVector, Dot, IntVector, Simd, Vector};

/// The set itself.
pub(crate) struct Avx512;

impl Simd for Avx512 {
    type V = Z;
    type W = Z;
    type I = Zi;
    type B = Zb;
    type D = Widened;
}

/// The set with VNNI.
pub(crate) struct Avx512Vnni;

impl Simd for Avx512Vnni {
    type V = Z;
    type W = Z;
    type I = Zi;
    type B = Zb;
    type D = Vnni;
}

/// 16 lanes of f32.
#[derive(Clone, Copy)]
pub(crate) struct Z(__m512);

/// 16 lanes of i32.
#[derive(Clone, Copy)]
pub(crate) struct Zi(__m512i);

/// 64 lanes of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Zb(__m512i);

impl ByteVector for Zb {
    const LANES: usize = 64;

    #[inline(always)]
    unsafe fn splat(x: u8) -> Self {
        // SAFETY: AVX-512.
        unsafe { Zb(_mm512_set1_epi8(x as i8)) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const u8, n: usize) -> Self {
        // SAFETY: 64 bytes are read where n allows as many; otherwise a masked load touches the first n alone.
        unsafe {
            if n >= 64 {
                Zb(_mm512_loadu_si512(p.cast()))
            } else {
                Zb(_mm512_maskz_loadu_epi8((1 << n) - 1, p.cast()))
            }
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut u8, n: usize) {
        // SAFETY: no more than n bytes are written. Masked byte stores are slow on some processors, so the
        // common cases go without.
        unsafe {
            match n {
                64.. => _mm512_storeu_si512(p.cast(), self.0),
                32 => _mm256_storeu_si256(p.cast(), _mm512_castsi512_si256(self.0)),
                16 => _mm_storeu_si128(p.cast(), _mm512_castsi512_si128(self.0)),
                _ => _mm512_mask_storeu_epi8(p.cast(), (1 << n) - 1, self.0),
            }
        }
    }

    #[inline(always)]
    unsafe fn max_unsigned(self, o: Self) -> Self {
        // SAFETY: AVX-512 BW.
        unsafe { Zb(_mm512_max_epu8(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn max_signed(self, o: Self) -> Self {
        // SAFETY: AVX-512 BW.
        unsafe { Zb(_mm512_max_epi8(self.0, o.0)) }
    }
}

/// The mask of the first `min(n, 16)` lanes.
#[inline(always)]
fn first(n: usize) -> __mmask16 {
    ((1u32 << n.min(16)) - 1) as __mmask16
}

impl Vector for Z {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: AVX-512 F, BW, DQ and VL, as all of this module (see crate::simd).
        unsafe { Z(_mm512_set1_ps(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller lets 16 values be read.
        unsafe { Z(_mm512_loadu_ps(p)) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize, fill: Self) -> Self {
        // SAFETY: a masked load touches the first min(n, 16) values alone.
        unsafe { Z(_mm512_mask_loadu_ps(fill.0, first(n), p)) }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller lets 16 numbers be read.
        unsafe { Z(_mm512_cvtph_ps(_mm256_loadu_si256(p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller lets 16 numbers be read.
        unsafe {
            Z(_mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(
                p.cast(),
            )))))
        }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller lets 16 values be written.
        unsafe { _mm512_storeu_ps(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        // SAFETY: 16 values are written where n allows as many; otherwise a masked store touches the first n
        // alone.
        unsafe { if n >= 16 { self.store(p) } else { _mm512_mask_storeu_ps(p, first(n), self.0) } }
    }

    #[inline(always)]
    unsafe fn down<const HALF: usize>(self) -> Self {
        // SAFETY: AVX-512.
        unsafe {
            Z(match HALF {
                8 => _mm512_shuffle_f32x4::<0b1110>(self.0, self.0),
                4 => _mm512_shuffle_f32x4::<0b01>(self.0, self.0),
                2 => _mm512_permute_ps::<0b1110>(self.0),
                _ => _mm512_permute_ps::<0b01>(self.0),
            })
        }
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: AVX-512.
        unsafe { _mm512_cvtss_f32(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_add_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_sub_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_mul_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_div_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_sqrt_ps(self.0)) }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_fmadd_ps(self.0, b.0, c.0)) }
    }

    #[inline(always)]
    unsafe fn round_even(self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(self.0)) }
    }

    #[inline(always)]
    unsafe fn floor(self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_roundscale_ps::<{ _MM_FROUND_TO_NEG_INF | _MM_FROUND_NO_EXC }>(self.0)) }
    }

    #[inline(always)]
    unsafe fn ceil(self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_roundscale_ps::<{ _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC }>(self.0)) }
    }

    #[inline(always)]
    unsafe fn over(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_max_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn under(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_min_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn if_greater(a: Self, b: Self, x: Self, y: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_GT_OQ>(a.0, b.0), y.0, x.0)) }
    }

    #[inline(always)]
    unsafe fn if_nan(self, x: Self, y: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0), y.0, x.0)) }
    }

    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        // SAFETY: AVX-512 DQ.
        unsafe { Z(_mm512_and_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        // SAFETY: AVX-512 DQ.
        unsafe { Z(_mm512_or_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        // SAFETY: AVX-512 DQ.
        unsafe { Z(_mm512_xor_ps(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn bits_add(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe {
            Z(_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), _mm512_castps_si512(o.0))))
        }
    }

    #[inline(always)]
    unsafe fn bits_sub(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe {
            Z(_mm512_castsi512_ps(_mm512_sub_epi32(_mm512_castps_si512(self.0), _mm512_castps_si512(o.0))))
        }
    }

    #[inline(always)]
    unsafe fn bits_shl23(self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(self.0)))) }
    }

    #[inline(always)]
    unsafe fn bits_sra1(self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_castsi512_ps(_mm512_srai_epi32::<1>(_mm512_castps_si512(self.0)))) }
    }

    #[inline(always)]
    unsafe fn bits_to_number(self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_cvtepi32_ps(_mm512_castps_si512(self.0))) }
    }
}

impl IntVector for Zi {
    type Float = Z;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        // SAFETY: AVX-512.
        unsafe { Zi(_mm512_set1_epi32(x)) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const i32, n: usize) -> Self {
        // SAFETY: a masked load touches the first min(n, 16) values alone.
        unsafe { Zi(_mm512_maskz_loadu_epi32(first(n), p)) }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut i32, n: usize) {
        // SAFETY: 16 values are written where n allows as many; otherwise a masked store touches the first n
        // alone.
        unsafe {
            if n >= 16 {
                _mm512_storeu_si512(p.cast(), self.0);
            } else {
                _mm512_mask_storeu_epi32(p, first(n), self.0);
            }
        }
    }

    #[inline(always)]
    unsafe fn load_u8(p: *const u8, n: usize) -> Self {
        // SAFETY: a masked load touches the first min(n, 16) bytes alone.
        unsafe { Zi(_mm512_cvtepu8_epi32(_mm_maskz_loadu_epi8(first(n), p.cast()))) }
    }

    #[inline(always)]
    unsafe fn load_s8(p: *const u8, n: usize) -> Self {
        // SAFETY: a masked load touches the first min(n, 16) bytes alone.
        unsafe { Zi(_mm512_cvtepi8_epi32(_mm_maskz_loadu_epi8(first(n), p.cast()))) }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, n: usize) {
        // SAFETY: 16 bytes are written where n allows as many; otherwise a masked store touches the first n
        // alone.
        unsafe {
            let low = _mm512_cvtepi32_epi8(self.0);
            // Masked byte stores are slow on some processors, so the common case goes without.
            if n >= 16 {
                _mm_storeu_si128(p.cast(), low);
            } else {
                _mm_mask_storeu_epi8(p.cast(), first(n), low);
            }
        }
    }

    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Zi(_mm512_add_epi32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Zi(_mm512_sub_epi32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: AVX-512.
        unsafe { Zi(_mm512_mullo_epi32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn to_float(self) -> Z {
        // SAFETY: AVX-512.
        unsafe { Z(_mm512_cvtepi32_ps(self.0)) }
    }

    #[inline(always)]
    unsafe fn from_float(x: Z) -> Self {
        // SAFETY: AVX-512.
        unsafe { Zi(_mm512_cvtps_epi32(x.0)) }
    }

    #[inline(always)]
    unsafe fn store_rounded(values: [Z; 2], to: &ByteRange, p: *mut u8) {
        // SAFETY: the caller lets 32 bytes be written. Values above the range are bounded first; those below
        // it, and NaN, become the least i32 or a number below the range, and the bounds in i16 catch them:
        // each narrowing saturates.
        unsafe {
            let high = _mm512_set1_ps(to.high as f32);
            let a = _mm512_cvtps_epi32(_mm512_min_ps(high, values[0].0));
            let b = _mm512_cvtps_epi32(_mm512_min_ps(high, values[1].0));
            let both = _mm512_max_epi16(_mm512_packs_epi32(a, b), _mm512_set1_epi16(to.low as i16));
            let both = _mm512_add_epi16(both, _mm512_set1_epi16(to.zero as i16));
            let low = _mm512_and_si512(both, _mm512_set1_epi16(0xff));
            // In each quarter 4 bytes of a, then 4 of b.
            let bytes = _mm512_packus_epi16(low, low);
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let sorted = _mm512_permutexvar_epi32(order, bytes);
            _mm256_storeu_si256(p.cast(), _mm512_castsi512_si256(sorted));
        }
    }

    #[inline(always)]
    unsafe fn store_tame(values: [[Z; 2]; 2], to: &ByteRange, p: [*mut u8; 2]) {
        // SAFETY: the caller lets 32 bytes be written at each place. Rounded values are within i32.
        // Each step on the way to unsigned bytes saturates, so that the bounds, which are bytes, come last.
        unsafe {
            let (zero, [least, most], flip) = to.unsigned();
            let (least, most) = (_mm512_set1_epi8(least), _mm512_set1_epi8(most));
            let narrow = |[a, b]: [Z; 2]| {
                let both = _mm512_packs_epi32(_mm512_cvtps_epi32(a.0), _mm512_cvtps_epi32(b.0));
                _mm512_adds_epi16(both, _mm512_set1_epi16(zero))
            };
            // In each quarter 4 bytes of each vector, in their order.
            let bytes = _mm512_packus_epi16(narrow(values[0]), narrow(values[1]));
            let bytes = _mm512_min_epu8(_mm512_max_epu8(bytes, least), most);
            let bytes = _mm512_xor_si512(bytes, _mm512_set1_epi8(flip));
            let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
            let sorted = _mm512_permutexvar_epi32(order, bytes);
            _mm256_storeu_si256(p[0].cast(), _mm512_castsi512_si256(sorted));
            _mm256_storeu_si256(p[1].cast(), _mm512_extracti64x4_epi64::<1>(sorted));
        }
    }
}

/// Products of u8 and s8 by fours: `vpdpbusd`.
#[derive(Clone, Copy)]
pub(crate) struct Vnni;

impl Dot for Vnni {
    type Acc = Zi;
    type A = __m512i;
    type B = __m512i;
    const GROUP: usize = 4;
    const A_SIGNED: bool = false;

    #[inline(always)]
    unsafe fn load_a(p: *const u8, flip: u8) -> __m512i {
        // SAFETY: the caller lets four bytes be read.
        unsafe {
            let four = _mm512_set1_epi32(p.cast::<i32>().read_unaligned());
            _mm512_xor_si512(four, _mm512_set1_epi8(flip as i8))
        }
    }

    #[inline(always)]
    unsafe fn load_a_part(p: *const u8, n: usize, flip: u8) -> __m512i {
        // Byte by byte: a copy of so many bytes would be a call, and around a call no sum stays in a
        // register. SAFETY: the caller lets n bytes be read, at most 3.
        unsafe {
            let byte = |i: usize| if i < n { p.add(i).read() } else { 0 };
            let four = i32::from_le_bytes([byte(0), byte(1), byte(2), 0]);
            _mm512_xor_si512(_mm512_set1_epi32(four), _mm512_set1_epi8(flip as i8))
        }
    }

    #[inline(always)]
    unsafe fn load_b(p: *const i8) -> __m512i {
        // SAFETY: the caller lets 64 bytes be read.
        unsafe { _mm512_loadu_si512(p.cast()) }
    }

    #[inline(always)]
    unsafe fn dot(acc: Zi, a: __m512i, b: __m512i) -> Zi {
        // SAFETY: AVX-512 VNNI.
        unsafe { Zi(_mm512_dpbusd_epi32(acc.0, a, b)) }
    }
}

/// Products of pairs: both sides widened to i16, then `vpmaddwd`.
#[derive(Clone, Copy)]
pub(crate) struct Widened;

impl Dot for Widened {
    type Acc = Zi;
    type A = __m512i;
    type B = __m512i;
    const GROUP: usize = 2;
    const A_SIGNED: bool = false;

    #[inline(always)]
    unsafe fn load_a(p: *const u8, flip: u8) -> __m512i {
        // SAFETY: the caller lets two bytes be read.
        unsafe {
            let pair = p.cast::<u16>().read_unaligned() ^ (u16::from(flip) * 0x0101);
            _mm512_cvtepu8_epi16(_mm256_set1_epi16(pair as i16))
        }
    }

    #[inline(always)]
    unsafe fn load_a_part(p: *const u8, n: usize, flip: u8) -> __m512i {
        // SAFETY: n is 1 or 0, and the caller lets n bytes be read.
        unsafe {
            let one = if n > 0 { p.read() ^ flip } else { 0 };
            _mm512_cvtepu8_epi16(_mm256_set1_epi16(i16::from(one)))
        }
    }

    #[inline(always)]
    unsafe fn load_b(p: *const i8) -> __m512i {
        // SAFETY: the caller lets 32 bytes be read.
        unsafe { _mm512_cvtepi8_epi16(_mm256_loadu_si256(p.cast())) }
    }

    #[inline(always)]
    unsafe fn dot(acc: Zi, a: __m512i, b: __m512i) -> Zi {
        // SAFETY: AVX-512 BW.
        unsafe { Zi(_mm512_add_epi32(acc.0, _mm512_madd_epi16(a, b))) }
    }
}
