//! NEON: 4 lanes of f32 and i32.
//!
//! There are no masked accesses: parts go through a small array. Maxima and minima are compare and select,
//! since `fmax` treats NaN and signed zeros unlike x86.

#[allow(clippy::wildcard_imports, reason = "intrinsics, by the dozen")]
use std::arch::aarch64::*;

use crate::arm::dot::{Pairs, SdotFours};
use crate::simd::{ByteVector, IntVector, Pair, Simd, Vector};

/// The set itself.
pub(crate) struct Neon;

impl Simd for Neon {
    type V = Q;
    type W = Pair<Pair<Q>>;
    type I = Qi;
    type B = Qb;
    type D = Pairs;
}

/// The set with dotprod.
pub(crate) struct NeonDot;

impl Simd for NeonDot {
    type V = Q;
    type W = Pair<Pair<Q>>;
    type I = Qi;
    type B = Qb;
    type D = SdotFours;
}

/// 4 lanes of f32.
#[derive(Clone, Copy)]
pub(crate) struct Q(float32x4_t);

/// 4 lanes of i32.
#[derive(Clone, Copy)]
pub(crate) struct Qi(pub(crate) int32x4_t);

#[inline(always)]
unsafe fn bits(x: Q) -> int32x4_t {
    // SAFETY: NEON, as all of this module (see crate::simd).
    unsafe { vreinterpretq_s32_f32(x.0) }
}

#[inline(always)]
unsafe fn number(x: int32x4_t) -> Q {
    // SAFETY: NEON.
    unsafe { Q(vreinterpretq_f32_s32(x)) }
}

/// The first n of 16 bytes, then zeros.
///
/// # Safety
/// n bytes may be read.
#[inline(always)]
unsafe fn bytes_16(p: *const u8, n: usize) -> [u8; 16] {
    // SAFETY: the caller lets n bytes be read.
    std::array::from_fn(|i| if i < n { unsafe { p.add(i).read() } } else { 0 })
}

/// 16 lanes of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Qb(uint8x16_t);

impl ByteVector for Qb {
    const LANES: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: u8) -> Self {
        // SAFETY: NEON.
        unsafe { Qb(vdupq_n_u8(x)) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const u8, n: usize) -> Self {
        // SAFETY: 16 bytes are read where n allows as many, else the first n.
        unsafe {
            if n >= 16 {
                return Qb(vld1q_u8(p));
            }
            let all = bytes_16(p, n);
            Qb(vld1q_u8(all.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut u8, n: usize) {
        // SAFETY: 16 bytes are written where n allows as many, else the first n.
        unsafe {
            if n >= 16 {
                vst1q_u8(p, self.0);
            } else {
                let mut all = [0; 16];
                vst1q_u8(all.as_mut_ptr(), self.0);
                all.iter().take(n).enumerate().for_each(|(i, byte)| p.add(i).write(*byte));
            }
        }
    }

    #[inline(always)]
    unsafe fn max_unsigned(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Qb(vmaxq_u8(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn max_signed(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Qb(vreinterpretq_u8_s8(vmaxq_s8(vreinterpretq_s8_u8(self.0), vreinterpretq_s8_u8(o.0)))) }
    }
}

impl Vector for Q {
    const LANES: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vdupq_n_f32(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller lets 4 values be read.
        unsafe { Q(vld1q_f32(p)) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize, fill: Self) -> Self {
        // SAFETY: at most 4 of the n values that may be read are copied, into an array of 4.
        unsafe {
            if n >= 4 {
                return Self::load(p);
            }
            let mut four = [0.0f32; 4];
            fill.store(four.as_mut_ptr());
            std::ptr::copy_nonoverlapping(p, four.as_mut_ptr(), n);
            Self::load(four.as_ptr())
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller lets 4 numbers be read.
        unsafe { Q(vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller lets 4 numbers be read.
        unsafe { Q(vreinterpretq_f32_u32(vshll_n_u16::<16>(vld1_u16(p)))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller lets 4 values be written.
        unsafe { vst1q_f32(p, self.0) }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        // SAFETY: at most 4 values are written, where n may be.
        unsafe {
            if n >= 4 {
                return self.store(p);
            }
            let mut four = [0.0f32; 4];
            self.store(four.as_mut_ptr());
            std::ptr::copy_nonoverlapping(four.as_ptr(), p, n);
        }
    }

    #[inline(always)]
    unsafe fn down<const HALF: usize>(self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(if HALF == 2 { vextq_f32::<2>(self.0, self.0) } else { vextq_f32::<1>(self.0, self.0) }) }
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: NEON.
        unsafe { vgetq_lane_f32::<0>(self.0) }
    }

    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vaddq_f32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vsubq_f32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vmulq_f32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vdivq_f32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vsqrtq_f32(self.0)) }
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vfmaq_f32(c.0, self.0, b.0)) }
    }

    #[inline(always)]
    unsafe fn round_even(self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vrndnq_f32(self.0)) }
    }

    #[inline(always)]
    unsafe fn floor(self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vrndmq_f32(self.0)) }
    }

    #[inline(always)]
    unsafe fn ceil(self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vrndpq_f32(self.0)) }
    }

    #[inline(always)]
    unsafe fn over(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vbslq_f32(vcgtq_f32(self.0, o.0), self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn under(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vbslq_f32(vcltq_f32(self.0, o.0), self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn if_greater(a: Self, b: Self, x: Self, y: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vbslq_f32(vcgtq_f32(a.0, b.0), x.0, y.0)) }
    }

    #[inline(always)]
    unsafe fn if_nan(self, x: Self, y: Self) -> Self {
        // SAFETY: NEON. A number equals itself.
        unsafe { Q(vbslq_f32(vceqq_f32(self.0, self.0), y.0, x.0)) }
    }

    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { number(vandq_s32(bits(self), bits(o))) }
    }

    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { number(vorrq_s32(bits(self), bits(o))) }
    }

    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { number(veorq_s32(bits(self), bits(o))) }
    }

    #[inline(always)]
    unsafe fn bits_add(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { number(vaddq_s32(bits(self), bits(o))) }
    }

    #[inline(always)]
    unsafe fn bits_sub(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { number(vsubq_s32(bits(self), bits(o))) }
    }

    #[inline(always)]
    unsafe fn bits_shl23(self) -> Self {
        // SAFETY: NEON.
        unsafe { number(vshlq_n_s32::<23>(bits(self))) }
    }

    #[inline(always)]
    unsafe fn bits_sra1(self) -> Self {
        // SAFETY: NEON.
        unsafe { number(vshrq_n_s32::<1>(bits(self))) }
    }

    #[inline(always)]
    unsafe fn bits_to_number(self) -> Self {
        // SAFETY: NEON.
        unsafe { Q(vcvtq_f32_s32(bits(self))) }
    }
}

/// The first `min(n, 4)` bytes at `p`, and zeros, in the lowest lane.
#[inline(always)]
unsafe fn bytes(p: *const u8, n: usize) -> uint8x8_t {
    // SAFETY: the caller lets n bytes be read; 4 are where n allows as many, otherwise fewer than 4.
    unsafe {
        let four = if n >= 4 {
            p.cast::<u32>().read_unaligned()
        } else {
            let mut four = [0u8; 4];
            std::ptr::copy_nonoverlapping(p, four.as_mut_ptr(), n);
            u32::from_le_bytes(four)
        };
        vreinterpret_u8_u32(vdup_n_u32(four))
    }
}

impl IntVector for Qi {
    type Float = Q;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        // SAFETY: NEON.
        unsafe { Qi(vdupq_n_s32(x)) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const i32, n: usize) -> Self {
        // SAFETY: the caller lets n values be read; 4 are where n allows as many, otherwise fewer than 4.
        unsafe {
            if n >= 4 {
                return Qi(vld1q_s32(p));
            }
            let mut four = [0i32; 4];
            std::ptr::copy_nonoverlapping(p, four.as_mut_ptr(), n);
            Qi(vld1q_s32(four.as_ptr()))
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut i32, n: usize) {
        // SAFETY: the caller lets n values be written; 4 are where n allows as many, otherwise fewer than 4.
        unsafe {
            if n >= 4 {
                return vst1q_s32(p, self.0);
            }
            let mut four = [0i32; 4];
            vst1q_s32(four.as_mut_ptr(), self.0);
            std::ptr::copy_nonoverlapping(four.as_ptr(), p, n);
        }
    }

    #[inline(always)]
    unsafe fn load_u8(p: *const u8, n: usize) -> Self {
        // SAFETY: the caller lets n bytes be read.
        unsafe { Qi(vreinterpretq_s32_u32(vmovl_u16(vget_low_u16(vmovl_u8(bytes(p, n)))))) }
    }

    #[inline(always)]
    unsafe fn load_s8(p: *const u8, n: usize) -> Self {
        // SAFETY: the caller lets n bytes be read.
        unsafe { Qi(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u8(bytes(p, n)))))) }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, n: usize) {
        // SAFETY: the caller lets n bytes be written; at most 4 are.
        unsafe {
            let half = vmovn_s32(self.0);
            let low = vmovn_s16(vcombine_s16(half, half));
            let four = vget_lane_u32::<0>(vreinterpret_u32_s8(low));
            if n >= 4 {
                p.cast::<u32>().write_unaligned(four);
            } else {
                std::ptr::copy_nonoverlapping(four.to_le_bytes().as_ptr(), p, n);
            }
        }
    }

    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Qi(vaddq_s32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Qi(vsubq_s32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        // SAFETY: NEON.
        unsafe { Qi(vmulq_s32(self.0, o.0)) }
    }

    #[inline(always)]
    unsafe fn to_float(self) -> Q {
        // SAFETY: NEON.
        unsafe { Q(vcvtq_f32_s32(self.0)) }
    }

    #[inline(always)]
    unsafe fn from_float(x: Q) -> Self {
        // SAFETY: NEON.
        unsafe { Qi(vcvtnq_s32_f32(x.0)) }
    }
}
