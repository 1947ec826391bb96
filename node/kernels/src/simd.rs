//! The vector traits that all kernels are written over, and [`Pair`], which doubles a vector.
//!
//! Invariant: a method gives the same bits in each lane on every implementation, so a kernel that treats
//! lanes alike gives the same bits on every instruction set. Where hardware differs (NaN and signed zeros in
//! minima and maxima), the definition here is the one of x86, and the others follow it. A NaN's sign and
//! payload are left open.
//!
//! One operation alone is horizontal, [`Vector::down`]: the fixed tree of reductions is made of it.
//!
//! # Safety
//! Every method needs the instruction set of its type to be there; kernels are entered through
//! `#[target_feature]` functions alone, whose callers hold a table that [`crate::Kernels::of`] gave out after
//! detection. Loads and stores need what their pointers and counts say; nothing else is asked, and so each
//! method's own text names only that.

/// A vector of f32.
pub(crate) trait Vector: Copy + 'static {
    /// How many lanes it has.
    const LANES: usize;

    /// The same value in all lanes.
    unsafe fn splat(x: f32) -> Self;
    /// Reads [`Self::LANES`] values; no alignment needed.
    unsafe fn load(p: *const f32) -> Self;
    /// Reads the first `min(n, LANES)` values and nothing beyond; the other lanes come from `fill`.
    unsafe fn load_part(p: *const f32, n: usize, fill: Self) -> Self;
    /// Reads the bits of [`Self::LANES`] numbers of IEEE 754 binary16; no alignment needed.
    unsafe fn load_f16(p: *const u16) -> Self;
    /// Reads the bits of [`Self::LANES`] numbers of bfloat16; no alignment needed.
    unsafe fn load_bf16(p: *const u16) -> Self;
    /// Writes [`Self::LANES`] values; no alignment needed.
    unsafe fn store(self, p: *mut f32);
    /// Writes the first `min(n, LANES)` values and nothing beyond.
    unsafe fn store_part(self, p: *mut f32, n: usize);

    /// Lane i is lane `i + HALF` for all i below `HALF`; the others are anything. `HALF` is a power of two
    /// below [`Self::LANES`].
    unsafe fn down<const HALF: usize>(self) -> Self;
    /// The first lane.
    unsafe fn first(self) -> f32;

    /// `self + o`.
    unsafe fn add(self, o: Self) -> Self;
    /// `self - o`.
    unsafe fn sub(self, o: Self) -> Self;
    /// `self * o`.
    unsafe fn mul(self, o: Self) -> Self;
    /// `self / o`, correctly rounded.
    unsafe fn div(self, o: Self) -> Self;
    /// The square root, correctly rounded.
    unsafe fn sqrt(self) -> Self;
    /// `self * b + c`, rounded once.
    unsafe fn fma(self, b: Self, c: Self) -> Self;
    /// To the nearest integer, halves to even.
    unsafe fn round_even(self) -> Self;
    /// Down to an integer.
    unsafe fn floor(self) -> Self;
    /// Up to an integer.
    unsafe fn ceil(self) -> Self;

    /// `if self > o { self } else { o }`: the second operand when either is NaN, or both are zeros.
    unsafe fn over(self, o: Self) -> Self;
    /// `if self < o { self } else { o }`: the second operand when either is NaN, or both are zeros.
    unsafe fn under(self, o: Self) -> Self;
    /// `if a > b { x } else { y }`, lane by lane; `y` when either is NaN.
    unsafe fn if_greater(a: Self, b: Self, x: Self, y: Self) -> Self;
    /// `if self is NaN { x } else { y }`, lane by lane.
    unsafe fn if_nan(self, x: Self, y: Self) -> Self;

    /// Bitwise and.
    unsafe fn and(self, o: Self) -> Self;
    /// Bitwise or.
    unsafe fn or(self, o: Self) -> Self;
    /// Bitwise exclusive or.
    unsafe fn xor(self, o: Self) -> Self;
    /// The bits added as i32, wrapping.
    unsafe fn bits_add(self, o: Self) -> Self;
    /// The bits subtracted as i32, wrapping.
    unsafe fn bits_sub(self, o: Self) -> Self;
    /// The bits shifted left by 23, to where an exponent lives.
    unsafe fn bits_shl23(self) -> Self;
    /// The bits shifted right by 1 as i32, keeping the sign.
    unsafe fn bits_sra1(self) -> Self;
    /// The bits, taken as i32, as a number.
    unsafe fn bits_to_number(self) -> Self;

    /// Bits in all lanes.
    #[inline(always)]
    unsafe fn splat_bits(bits: u32) -> Self {
        // SAFETY: as the method.
        unsafe { Self::splat(f32::from_bits(bits)) }
    }

    /// Reads the first `min(n, LANES)` values; the other lanes are +0.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self {
        // SAFETY: as the method.
        unsafe { Self::load_part(p, n, Self::splat(0.0)) }
    }

    /// The greater of two; NaN when either is NaN; the second of two zeros.
    #[inline(always)]
    unsafe fn max_nan(self, o: Self) -> Self {
        // SAFETY: as the method.
        unsafe { self.if_nan(self, self.over(o)) }
    }

    /// The lesser of two; NaN when either is NaN; the second of two zeros.
    #[inline(always)]
    unsafe fn min_nan(self, o: Self) -> Self {
        // SAFETY: as the method.
        unsafe { self.if_nan(self, self.under(o)) }
    }
}

/// A vector of i32, the companion of a [`Vector`] of as many lanes. Arithmetic wraps.
pub(crate) trait IntVector: Copy + 'static {
    /// The vector of f32 with as many lanes.
    type Float: Vector;

    /// The same value in all lanes.
    unsafe fn splat(x: i32) -> Self;
    /// Reads the first `min(n, LANES)` values and nothing beyond; the others are 0.
    unsafe fn load_part(p: *const i32, n: usize) -> Self;
    /// Writes the first `min(n, LANES)` values and nothing beyond.
    unsafe fn store_part(self, p: *mut i32, n: usize);
    /// Reads `min(n, LANES)` bytes, as unsigned numbers.
    unsafe fn load_u8(p: *const u8, n: usize) -> Self;
    /// Reads `min(n, LANES)` bytes, as signed numbers.
    unsafe fn load_s8(p: *const u8, n: usize) -> Self;
    /// Writes the lowest byte of the first `min(n, LANES)` lanes.
    unsafe fn store_low_bytes(self, p: *mut u8, n: usize);
    /// `self + o`.
    unsafe fn add(self, o: Self) -> Self;
    /// `self - o`.
    unsafe fn sub(self, o: Self) -> Self;
    /// `self * o`.
    unsafe fn mul(self, o: Self) -> Self;
    /// As f32, rounded half to even.
    unsafe fn to_float(self) -> Self::Float;
    /// Rounds half to even. Every lane of `x` is a number within i32.
    unsafe fn from_float(x: Self::Float) -> Self;

    /// Writes `round(bounded value) + zero` of two vectors as bytes: `2 · LANES` of them. NaN becomes the
    /// least.
    ///
    /// Sets that can narrow two vectors at once do so, to the same bytes.
    #[inline(always)]
    unsafe fn store_rounded(values: [Self::Float; 2], to: &ByteRange, p: *mut u8) {
        // SAFETY: the caller lets 2 · LANES bytes be written.
        unsafe {
            let (low, high) = (Self::Float::splat(to.low as f32), Self::Float::splat(to.high as f32));
            let zero = Self::splat(to.zero);
            let [a, b] = values;
            // The value comes first: NaN becomes the lower bound.
            Self::from_float(a.over(low).under(high)).add(zero).store_low_bytes(p, Self::Float::LANES);
            let p = p.add(Self::Float::LANES);
            Self::from_float(b.over(low).under(high)).add(zero).store_low_bytes(p, Self::Float::LANES);
        }
    }

    /// Twice [`IntVector::store_rounded`], each to a place of its own, for a range that is
    /// [`ByteRange::tame`].
    ///
    /// Sets that can narrow four vectors at once do so, to the same bytes.
    #[inline(always)]
    unsafe fn store_tame(values: [[Self::Float; 2]; 2], to: &ByteRange, p: [*mut u8; 2]) {
        // SAFETY: the caller lets 2 · LANES bytes be written at each place.
        unsafe {
            Self::store_rounded(values[0], to, p[0]);
            Self::store_rounded(values[1], to, p[1]);
        }
    }
}

/// A vector of bytes.
pub(crate) trait ByteVector: Copy + 'static {
    /// How many lanes it has.
    const LANES: usize;

    /// The same byte in all lanes.
    unsafe fn splat(x: u8) -> Self;
    /// Reads the first `min(n, LANES)` bytes and nothing beyond; the other lanes are anything.
    unsafe fn load_part(p: *const u8, n: usize) -> Self;
    /// Writes the first `min(n, LANES)` bytes and nothing beyond.
    unsafe fn store_part(self, p: *mut u8, n: usize);
    /// The greater of two, as u8.
    unsafe fn max_unsigned(self, o: Self) -> Self;
    /// The greater of two, as i8.
    unsafe fn max_signed(self, o: Self) -> Self;
}

/// Bounds of a result before its zero point is added, so that the sum is a byte, signed or unsigned.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByteRange {
    /// The least.
    pub(crate) low: i32,
    /// The greatest.
    pub(crate) high: i32,
    /// The zero point.
    pub(crate) zero: i32,
    /// Whether every value is a number less than 2^31 in size, and results are bytes of one sign: then the
    /// greatest bound may come after the rounding, and narrowing may do a part of it.
    pub(crate) tame: bool,
}

impl ByteRange {
    /// What to add to a rounded value so that the result is an unsigned byte, the bounds of that byte, and
    /// what to exclusive-or with it for the byte that is meant. For a tame range.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(crate) fn unsigned(&self) -> (i16, [i8; 2], i8) {
        let flip = if self.low + self.zero < 0 { 128 } else { 0 };
        let zero = self.zero + flip;
        (zero as i16, [(self.low + zero) as i8, (self.high + zero) as i8], flip as i8)
    }
}

/// Products of 8-bit numbers summed into i32 lanes; what an integer tile needs beyond [`IntVector`].
pub(crate) trait Dot: Copy + 'static {
    /// The accumulators: one column of the result per lane.
    type Acc: IntVector;
    /// A broadcast group of a row of A.
    type A: Copy;
    /// A group of each column of B.
    type B: Copy;
    /// How many products one step adds to a lane.
    const GROUP: usize;
    /// Whether A is taken as s8 by the hardware; otherwise as u8. What has the other sign is shifted by 128.
    const A_SIGNED: bool;

    /// Broadcasts [`Self::GROUP`] bytes at `p`, each `xor flip`.
    unsafe fn load_a(p: *const u8, flip: u8) -> Self::A;
    /// The same for `n < GROUP` bytes; the rest is 0.
    unsafe fn load_a_part(p: *const u8, n: usize, flip: u8) -> Self::A;
    /// Reads `LANES * GROUP` bytes of B, signed.
    unsafe fn load_b(p: *const i8) -> Self::B;
    /// Adds the sums of products to `acc`, exactly, wrapping.
    unsafe fn dot(acc: Self::Acc, a: Self::A, b: Self::B) -> Self::Acc;
}

/// An instruction set: the vectors that kernels are compiled with.
pub(crate) trait Simd: 'static {
    /// The vector of its registers.
    type V: Vector;
    /// 16 lanes, of as many registers as it takes: the virtual lanes of every reduction.
    type W: Vector;
    /// i32 beside [`Self::V`].
    type I: IntVector<Float = Self::V>;
    /// Bytes.
    type B: ByteVector;
    /// Integer products.
    type D: Dot<Acc = Self::I>;
}

/// Lanes of a reduction. One number on every instruction set, or the bits would differ.
pub(crate) const REDUCE_LANES: usize = 16;

/// Two vectors as one of twice the lanes, the first holding the lower ones.
#[derive(Clone, Copy)]
pub(crate) struct Pair<T>(pub(crate) T, pub(crate) T);

/// Lifts a method to both halves.
macro_rules! lift {
    ($($name:ident($($arg:ident),*);)*) => {$(
        #[inline(always)]
        unsafe fn $name(self $(, $arg: Self)*) -> Self {
            // SAFETY: as the method, for each half.
            unsafe { Pair(self.0.$name($($arg.0),*), self.1.$name($($arg.1),*)) }
        }
    )*};
}

impl<T: Vector> Vector for Pair<T> {
    const LANES: usize = 2 * T::LANES;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        // SAFETY: as the method.
        unsafe { Pair(T::splat(x), T::splat(x)) }
    }

    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self {
        // SAFETY: the caller lets 2 · T::LANES values be read.
        unsafe { Pair(T::load(p), T::load(p.add(T::LANES))) }
    }

    #[inline(always)]
    unsafe fn load_part(p: *const f32, n: usize, fill: Self) -> Self {
        // SAFETY: the upper half reads n - T::LANES values past the lower half's, none where that is not
        // positive; the pointer is then computed with wrapping, and not read.
        unsafe {
            let upper = n.saturating_sub(T::LANES);
            Pair(T::load_part(p, n, fill.0), T::load_part(p.wrapping_add(T::LANES), upper, fill.1))
        }
    }

    #[inline(always)]
    unsafe fn load_f16(p: *const u16) -> Self {
        // SAFETY: the caller lets 2 · T::LANES numbers be read.
        unsafe { Pair(T::load_f16(p), T::load_f16(p.add(T::LANES))) }
    }

    #[inline(always)]
    unsafe fn load_bf16(p: *const u16) -> Self {
        // SAFETY: the caller lets 2 · T::LANES numbers be read.
        unsafe { Pair(T::load_bf16(p), T::load_bf16(p.add(T::LANES))) }
    }

    #[inline(always)]
    unsafe fn store(self, p: *mut f32) {
        // SAFETY: the caller lets 2 · T::LANES values be written.
        unsafe {
            self.0.store(p);
            self.1.store(p.add(T::LANES));
        }
    }

    #[inline(always)]
    unsafe fn store_part(self, p: *mut f32, n: usize) {
        // SAFETY: as in load_part.
        unsafe {
            self.0.store_part(p, n);
            self.1.store_part(p.wrapping_add(T::LANES), n.saturating_sub(T::LANES));
        }
    }

    #[inline(always)]
    unsafe fn down<const HALF: usize>(self) -> Self {
        if HALF == T::LANES {
            return Pair(self.1, self.1);
        }
        // SAFETY: HALF is less than T::LANES, both being powers of two.
        unsafe { Pair(self.0.down::<HALF>(), self.1) }
    }

    #[inline(always)]
    unsafe fn first(self) -> f32 {
        // SAFETY: as the method.
        unsafe { self.0.first() }
    }

    lift! {
        add(o); sub(o); mul(o); div(o); sqrt(); fma(b, c); round_even(); floor(); ceil(); over(o); under(o);
        if_nan(x, y); and(o); or(o); xor(o); bits_add(o); bits_sub(o); bits_shl23(); bits_sra1(); bits_to_number();
    }

    #[inline(always)]
    unsafe fn if_greater(a: Self, b: Self, x: Self, y: Self) -> Self {
        // SAFETY: as the method, for each half.
        unsafe { Pair(T::if_greater(a.0, b.0, x.0, y.0), T::if_greater(a.1, b.1, x.1, y.1)) }
    }
}
