//! Products of signed bytes on ARM64: by fours with dotprod, by pairs without.

#[allow(clippy::wildcard_imports, reason = "intrinsics, by the dozen")]
use std::arch::aarch64::*;
use std::arch::asm;

use crate::arm::neon::Qi;
use crate::simd::Dot;

/// `sdot`: four products a lane.
#[derive(Clone, Copy)]
pub(crate) struct SdotFours;

impl Dot for SdotFours {
    type Acc = Qi;
    type A = int8x16_t;
    type B = int8x16_t;
    const GROUP: usize = 4;
    const A_SIGNED: bool = true;

    #[inline(always)]
    unsafe fn load_a(p: *const u8, flip: u8) -> int8x16_t {
        // SAFETY: the caller lets four bytes be read.
        unsafe {
            let four = p.cast::<u32>().read_unaligned() ^ (u32::from(flip) * 0x0101_0101);
            vreinterpretq_s8_u32(vdupq_n_u32(four))
        }
    }

    #[inline(always)]
    unsafe fn load_a_part(p: *const u8, n: usize, flip: u8) -> int8x16_t {
        let mut four = 0;
        for i in 0..n.min(3) {
            // SAFETY: the caller lets n bytes be read, at most 3.
            four |= u32::from(unsafe { p.add(i).read() } ^ flip) << (8 * i);
        }
        // SAFETY: NEON.
        unsafe { vreinterpretq_s8_u32(vdupq_n_u32(four)) }
    }

    #[inline(always)]
    unsafe fn load_b(p: *const i8) -> int8x16_t {
        // SAFETY: the caller lets 16 bytes be read.
        unsafe { vld1q_s8(p) }
    }

    #[inline(always)]
    unsafe fn dot(acc: Qi, a: int8x16_t, b: int8x16_t) -> Qi {
        let mut sum = acc.0;
        // The intrinsic is not stable yet; the directive lets the assembler take the instruction.
        // SAFETY: dotprod, as the table that this kernel is in requires; registers alone are touched.
        unsafe {
            asm!(
                ".arch_extension dotprod",
                "sdot {sum:v}.4s, {a:v}.16b, {b:v}.16b",
                sum = inout(vreg) sum,
                a = in(vreg) a,
                b = in(vreg) b,
                options(pure, nomem, nostack, preserves_flags)
            );
        }
        Qi(sum)
    }
}

/// `smull` and `sadalp`: two products a lane. A product of two bytes fits i16.
#[derive(Clone, Copy)]
pub(crate) struct Pairs;

impl Dot for Pairs {
    type Acc = Qi;
    type A = int8x8_t;
    type B = int8x8_t;
    const GROUP: usize = 2;
    const A_SIGNED: bool = true;

    #[inline(always)]
    unsafe fn load_a(p: *const u8, flip: u8) -> int8x8_t {
        // SAFETY: the caller lets two bytes be read.
        unsafe {
            let pair = p.cast::<u16>().read_unaligned() ^ (u16::from(flip) * 0x0101);
            vreinterpret_s8_u16(vdup_n_u16(pair))
        }
    }

    #[inline(always)]
    unsafe fn load_a_part(p: *const u8, n: usize, flip: u8) -> int8x8_t {
        // SAFETY: n is 1 or 0, and the caller lets n bytes be read.
        unsafe {
            let one = if n > 0 { p.read() ^ flip } else { 0 };
            vreinterpret_s8_u16(vdup_n_u16(u16::from(one)))
        }
    }

    #[inline(always)]
    unsafe fn load_b(p: *const i8) -> int8x8_t {
        // SAFETY: the caller lets 8 bytes be read.
        unsafe { vld1_s8(p) }
    }

    #[inline(always)]
    unsafe fn dot(acc: Qi, a: int8x8_t, b: int8x8_t) -> Qi {
        // SAFETY: NEON.
        unsafe { Qi(vpadalq_s16(acc.0, vmull_s8(a, b))) }
    }
}
