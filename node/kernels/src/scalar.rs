//! One lane in plain Rust: the specification that every other instruction set is tested against, bit for bit.
//!
//! `f32::mul_add` rounds once wherever it runs. On x86-64 the table of this set is compiled a second time
//! with FMA, for speed and with the same bits.

use crate::simd::{ByteVector, Dot, IntVector, Pair, Simd, Vector};

/// The set itself.
pub(crate) struct Scalar;

impl Simd for Scalar {
    type V = f32;
    type W = Pair<Pair<Pair<Pair<f32>>>>;
    type I = i32;
    type B = u8;
    type D = Bytes;
}

impl Vector for f32 {
    const LANES: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        x
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller lets one value be read.
        unsafe { p.read() }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize, fill: Self) -> Self {
        // SAFETY: the caller lets n values be read, and one is only where there is one.
        if n > 0 { unsafe { p.read() } } else { fill }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller lets one number be read.
        unsafe { half::f16::from_bits(p.read()).to_f32_const() }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller lets one number be read.
        unsafe { f32::from_bits(u32::from(p.read()) << 16) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller lets one value be written.
        unsafe { p.write(self) }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        if n > 0 {
            // SAFETY: the caller lets n values be written, at least one here.
            unsafe { p.write(self) }
        }
    }

    #[inline(always)]
    unsafe fn down<const HALF: usize>(self) -> Self {
        self
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        self
    }

    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        self + o
    }

    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        self - o
    }

    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        self * o
    }

    #[inline(always)]
    unsafe fn div(self, o: Self) -> Self {
        self / o
    }

    #[inline(always)]
    unsafe fn sqrt(self) -> Self {
        f32::sqrt(self)
    }

    #[inline(always)]
    unsafe fn fma(self, b: Self, c: Self) -> Self {
        self.mul_add(b, c)
    }

    #[inline(always)]
    unsafe fn round_even(self) -> Self {
        self.round_ties_even()
    }

    #[inline(always)]
    unsafe fn floor(self) -> Self {
        f32::floor(self)
    }

    #[inline(always)]
    unsafe fn ceil(self) -> Self {
        f32::ceil(self)
    }

    #[inline(always)]
    unsafe fn over(self, o: Self) -> Self {
        if self > o { self } else { o }
    }

    #[inline(always)]
    unsafe fn under(self, o: Self) -> Self {
        if self < o { self } else { o }
    }

    #[inline(always)]
    unsafe fn if_greater(a: Self, b: Self, x: Self, y: Self) -> Self {
        if a > b { x } else { y }
    }

    #[inline(always)]
    unsafe fn if_nan(self, x: Self, y: Self) -> Self {
        if self.is_nan() { x } else { y }
    }

    #[inline(always)]
    unsafe fn and(self, o: Self) -> Self {
        f32::from_bits(self.to_bits() & o.to_bits())
    }

    #[inline(always)]
    unsafe fn or(self, o: Self) -> Self {
        f32::from_bits(self.to_bits() | o.to_bits())
    }

    #[inline(always)]
    unsafe fn xor(self, o: Self) -> Self {
        f32::from_bits(self.to_bits() ^ o.to_bits())
    }

    #[inline(always)]
    unsafe fn bits_add(self, o: Self) -> Self {
        f32::from_bits(self.to_bits().wrapping_add(o.to_bits()))
    }

    #[inline(always)]
    unsafe fn bits_sub(self, o: Self) -> Self {
        f32::from_bits(self.to_bits().wrapping_sub(o.to_bits()))
    }

    #[inline(always)]
    unsafe fn bits_shl23(self) -> Self {
        f32::from_bits(self.to_bits() << 23)
    }

    #[inline(always)]
    unsafe fn bits_sra1(self) -> Self {
        f32::from_bits(((self.to_bits() as i32) >> 1) as u32)
    }

    #[inline(always)]
    unsafe fn bits_to_number(self) -> Self {
        self.to_bits() as i32 as f32
    }
}

impl ByteVector for u8 {
    const LANES: usize = 1;

    #[inline(always)]
    unsafe fn splat(x: u8) -> Self {
        x
    }

    #[inline(always)]
    unsafe fn load_part(p: *const u8, n: usize) -> Self {
        // SAFETY: the caller lets n bytes be read, and one is only where there is one.
        if n > 0 { unsafe { p.read() } } else { 0 }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut u8, n: usize) {
        if n > 0 {
            // SAFETY: the caller lets n bytes be written.
            unsafe { p.write(self) }
        }
    }

    #[inline(always)]
    unsafe fn max_unsigned(self, o: Self) -> Self {
        self.max(o)
    }

    #[inline(always)]
    unsafe fn max_signed(self, o: Self) -> Self {
        (self as i8).max(o as i8) as u8
    }
}

impl IntVector for i32 {
    type Float = f32;

    #[inline(always)]
    unsafe fn splat(x: i32) -> Self {
        x
    }

    #[inline(always)]
    unsafe fn load_part(p: *const i32, n: usize) -> Self {
        // SAFETY: the caller lets n values be read.
        if n > 0 { unsafe { p.read() } } else { 0 }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut i32, n: usize) {
        if n > 0 {
            // SAFETY: the caller lets n values be written.
            unsafe { p.write(self) }
        }
    }

    #[inline(always)]
    unsafe fn load_u8(p: *const u8, n: usize) -> Self {
        // SAFETY: the caller lets n bytes be read.
        if n > 0 { i32::from(unsafe { p.read() }) } else { 0 }
    }

    #[inline(always)]
    unsafe fn load_s8(p: *const u8, n: usize) -> Self {
        // SAFETY: the caller lets n bytes be read.
        if n > 0 { i32::from(unsafe { p.read() } as i8) } else { 0 }
    }

    #[inline(always)]
    unsafe fn store_low_bytes(self, p: *mut u8, n: usize) {
        if n > 0 {
            // SAFETY: the caller lets n bytes be written.
            unsafe { p.write(self as u8) }
        }
    }

    #[inline(always)]
    unsafe fn add(self, o: Self) -> Self {
        self.wrapping_add(o)
    }

    #[inline(always)]
    unsafe fn sub(self, o: Self) -> Self {
        self.wrapping_sub(o)
    }

    #[inline(always)]
    unsafe fn mul(self, o: Self) -> Self {
        self.wrapping_mul(o)
    }

    #[inline(always)]
    unsafe fn to_float(self) -> f32 {
        self as f32
    }

    #[inline(always)]
    unsafe fn from_float(x: f32) -> Self {
        x.round_ties_even() as i32
    }
}

/// Integer products, one byte at a time.
#[derive(Clone, Copy)]
pub(crate) struct Bytes;

impl Dot for Bytes {
    type Acc = i32;
    type A = i32;
    type B = i32;
    const GROUP: usize = 1;
    const A_SIGNED: bool = false;

    #[inline(always)]
    unsafe fn load_a(p: *const u8, flip: u8) -> i32 {
        // SAFETY: the caller lets one byte be read.
        i32::from(unsafe { p.read() } ^ flip)
    }

    #[inline(always)]
    unsafe fn load_a_part(_: *const u8, _: usize, _: u8) -> i32 {
        0
    }

    #[inline(always)]
    unsafe fn load_b(p: *const i8) -> i32 {
        // SAFETY: the caller lets one byte be read.
        i32::from(unsafe { p.read() })
    }

    #[inline(always)]
    unsafe fn dot(acc: i32, a: i32, b: i32) -> i32 {
        acc.wrapping_add(a * b)
    }
}
