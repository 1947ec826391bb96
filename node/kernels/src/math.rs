//! Elementary functions, lane by lane.
//!
//! Invariant: each is one fixed sequence of correctly rounded operations, so all instruction sets give the
//! same bits; exp, log, tanh and erf are within 4 ULP of the exact value (their tests walk the range). NaN
//! gives NaN. The polynomials of exp, log and erf are N. Juffa's minimax fits (published on Stack Overflow
//! and the NVIDIA forums); tanh's is that of Cephes (S. Moshier, tanhf).
//!
//! # Safety
//! Functions need what their vector needs (see [`crate::simd`]), and nothing else.

use crate::simd::Vector;

/// `sum c[i] · x^i`, highest coefficient first.
#[inline(always)]
unsafe fn polynomial<V: Vector, const N: usize>(x: V, coefficients: [f32; N]) -> V {
    // SAFETY: as the module.
    unsafe {
        let mut sum = V::splat(coefficients[0]);
        let mut i = 1;
        while i < N {
            sum = sum.fma(x, V::splat(coefficients[i]));
            i += 1;
        }
        sum
    }
}

/// Without its sign.
#[inline(always)]
pub(crate) unsafe fn abs<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe { x.and(V::splat_bits(0x7fff_ffff)) }
}

/// `magnitude` (not negative) with the sign of `x`.
#[inline(always)]
unsafe fn with_sign<V: Vector>(magnitude: V, x: V) -> V {
    // SAFETY: as the module.
    unsafe { magnitude.or(x.and(V::splat_bits(0x8000_0000))) }
}

/// r and n with e^x = r · 2^n: r about 1, n as an integer. For |x| up to some thousands; NaN gives NaN for r.
#[inline(always)]
unsafe fn reduced_exp<V: Vector>(x: V) -> (V, V) {
    // SAFETY: as the module.
    unsafe {
        // 1.5 · 2^23: adding it leaves the nearest integer in the low bits.
        let magic = V::splat(12_582_912.0);
        let shifted = x.fma(V::splat(std::f32::consts::LOG2_E), magic);
        let n = shifted.sub(magic);
        let f = n.fma(V::splat(-6.931_457_5e-1), x);
        let f = n.fma(V::splat(-1.428_606_8e-6), f);
        let r = polynomial(
            f,
            [1.378_059_4e-3, 8.373_124_5e-3, 4.166_953_6e-2, 1.666_647_2e-1, 4.999_998_5e-1, 1.0, 1.0],
        );
        (r, shifted.bits_sub(magic))
    }
}

/// e^x for x from -88 to 88.8, and NaN for NaN: infinity from 88.38 on, and 0 below -87.69. This takes a
/// third fewer operations than [`exp`] does.
#[inline(always)]
unsafe fn exp_within<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        let (r, n) = reduced_exp(x);
        // n is from -127 to 128, whose exponents are those of 0 and infinity.
        r.mul(n.bits_add(V::splat_bits(127)).bits_shl23())
    }
}

/// e^x, with denormal results; 0 and infinity beyond the range.
#[inline(always)]
pub(crate) unsafe fn exp<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        // Beyond these the result is 0 or infinity all the same; the operand order lets NaN pass. From -104
        // on it is 0, but by an underflow, which takes a processor more than a hundred cycles; at -176 both
        // factors below are 0, and what a mask puts at minus infinity costs nothing.
        let x = V::splat(-176.0).over(V::splat(89.0).under(x));
        let (r, n) = reduced_exp(x);
        // 2^n in two factors, since n reaches from -254 to 128.
        let low = n.bits_sra1();
        let high = n.bits_sub(low);
        let bias = V::splat_bits(127);
        r.mul(low.bits_add(bias).bits_shl23()).mul(high.bits_add(bias).bits_shl23())
    }
}

/// The natural logarithm; -infinity at 0, NaN below.
#[inline(always)]
pub(crate) unsafe fn log<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        // Denormals are scaled up by 2^23 and counted back.
        let tiny = V::splat(f32::MIN_POSITIVE);
        let y = V::if_greater(tiny, x, x.mul(V::splat(8_388_608.0)), x);
        let offset = V::if_greater(tiny, x, V::splat(-23.0), V::splat(0.0));
        // y = m · 2^e with m in [2/3, 4/3).
        let e = y.bits_sub(V::splat_bits(0x3f2a_aaab)).and(V::splat_bits(0xff80_0000));
        let m = y.bits_sub(e).sub(V::splat(1.0));
        let e = e.bits_to_number().fma(V::splat(1.192_092_9e-7), offset);
        let s = m.mul(m);
        let r = polynomial(s, [-0.130_310_06, -0.121_483_51, -0.166_846_13, -0.249_996_2]);
        let t = polynomial(s, [0.140_869_14, 0.139_814_85, 0.200_120_35]);
        let r = t.fma(m, r);
        let r = r.fma(m, V::splat(0.333_331_97));
        let r = r.fma(m, V::splat(-0.5));
        let r = r.fma(s, m);
        let r = e.fma(V::splat(std::f32::consts::LN_2), r);
        let infinity = V::splat(f32::INFINITY);
        let zero = V::splat(0.0);
        // Ordinary where 0 < x < infinity; NaN fails every comparison and stays.
        let r = V::if_greater(infinity, x, r, x);
        let r = V::if_greater(zero, x, V::splat(f32::NAN), r);
        V::if_greater(V::splat(f32::from_bits(1)), abs(x), V::splat(f32::NEG_INFINITY), r)
    }
}

/// The hyperbolic tangent.
#[inline(always)]
pub(crate) unsafe fn tanh<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        let (a, small) = small_tanh(x);
        let e = exp_within(V::splat(88.0).under(a.add(a)));
        let large = V::splat(1.0).sub(V::splat(2.0).div(e.add(V::splat(1.0))));
        with_sign(V::if_greater(a, V::splat(TANH_SMALL), large, small), x)
    }
}

/// The hyperbolic tangent as a quotient: numerator, and a divisor from 1 to e^18. What divides by more all
/// the same saves a division so; a divisor beyond 5e30 makes the two infinite, and the result, below 2e-31,
/// 0.
#[inline(always)]
pub(crate) unsafe fn tanh_quotient<V: Vector>(x: V) -> (V, V) {
    // SAFETY: as the module.
    unsafe {
        let one = V::splat(1.0);
        let (a, small) = small_tanh(x);
        // From e^18 on, one more or less is lost, and the quotient 1.
        let e = exp_within(V::splat(18.0).under(a.add(a)));
        let above = V::if_greater(a, V::splat(TANH_SMALL), e.sub(one), small);
        (with_sign(above, x), V::if_greater(a, V::splat(TANH_SMALL), e.add(one), one))
    }
}

/// Up to here, 0.625 less one unit in the last place, tanh is a polynomial.
const TANH_SMALL: f32 = 0.624_999_94;

/// `|x|`, and its hyperbolic tangent where that is at most [`TANH_SMALL`].
#[inline(always)]
unsafe fn small_tanh<V: Vector>(x: V) -> (V, V) {
    // SAFETY: as the module.
    unsafe {
        let a = abs(x);
        let s = a.mul(a);
        let p =
            polynomial(s, [-5.704_989e-3, 2.063_909e-2, -5.373_971_6e-2, 1.333_144_2e-1, -3.333_328_3e-1]);
        (a, p.mul(s).fma(a, a))
    }
}

/// The error function.
#[inline(always)]
pub(crate) unsafe fn erf<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        // erf(4) rounds to 1.
        let a = V::splat(4.0).under(abs(x));
        let s = a.mul(a);
        let r = V::splat(-1.728_534_7e-5).fma(a, V::splat(3.831_971_3e-4));
        let u = V::splat(-3.883_964_4e-3).fma(a, V::splat(2.425_462_2e-2));
        let r = r.fma(s, u);
        let r = r.fma(a, V::splat(-1.067_778_8e-1));
        let r = r.fma(a, V::splat(-6.348_467e-1));
        let r = r.fma(a, V::splat(-1.287_175_1e-1));
        let r = r.fma(a, V::splat(0.0).sub(a));
        let large = V::splat(1.0).sub(exp_within(r));
        let p = polynomial(
            s,
            [
                -5.967_617e-4,
                4.991_194_2e-3,
                -2.676_813_5e-2,
                1.128_199_25e-1,
                -3.761_253_4e-1,
                1.283_791_7e-1,
            ],
        );
        let small = p.fma(a, a);
        with_sign(V::if_greater(a, V::splat(0.927_734_4), large, small), x)
    }
}

/// 1 / (1 + e^-x); 0 from -88.38 down, where it is below 4e-39.
#[inline(always)]
pub(crate) unsafe fn sigmoid<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe { V::splat(1.0).div(sigmoid_divisor(x)) }
}

/// 1 + e^-x: what sigmoid divides 1 by.
#[inline(always)]
pub(crate) unsafe fn sigmoid_divisor<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        let minus = x.xor(V::splat_bits(0x8000_0000));
        V::splat(1.0).add(exp_within(V::splat(-88.0).over(V::splat(88.8).under(minus))))
    }
}

/// Not below 0; NaN stays.
#[inline(always)]
pub(crate) unsafe fn relu<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe { V::splat(0.0).over(x) }
}

/// ln(1 + e^x), as `max(x, 0) + ln(1 + e^-|x|)`, which does not overflow.
#[inline(always)]
pub(crate) unsafe fn softplus<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        let e = exp(abs(x).xor(V::splat_bits(0x8000_0000)));
        relu(x).add(log1p(e))
    }
}

/// ln(1 + x) for x in [0, 1]: the logarithm of the rounded sum, corrected by what the rounding lost.
#[inline(always)]
unsafe fn log1p<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        let one = V::splat(1.0);
        let sum = one.add(x);
        let lost = x.sub(sum.sub(one));
        log(sum).add(lost.div(sum))
    }
}

/// `x · (1 + erf(x / √2)) / 2`.
#[inline(always)]
pub(crate) unsafe fn gelu<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        let e = erf(x.mul(V::splat(std::f32::consts::FRAC_1_SQRT_2)));
        x.mul(V::splat(0.5)).mul(V::splat(1.0).add(e))
    }
}

/// The approximation of gelu by tanh.
#[inline(always)]
pub(crate) unsafe fn gelu_tanh<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        let cubic = x.mul(x).fma(V::splat(0.044_715), V::splat(1.0)).mul(x);
        let t = tanh(cubic.mul(V::splat(0.797_884_6)));
        x.mul(V::splat(0.5)).mul(V::splat(1.0).add(t))
    }
}

/// `max(0, min(1, alpha · x + beta))`; NaN stays.
#[inline(always)]
pub(crate) unsafe fn hard_sigmoid<V: Vector>(x: V, alpha: V, beta: V) -> V {
    // SAFETY: as the module.
    unsafe { V::splat(0.0).over(V::splat(1.0).under(x.fma(alpha, beta))) }
}

/// e^x - 1, without cancellation near 0: by its series up to x^6 within half an octave, by exp beyond.
#[inline(always)]
pub(crate) unsafe fn expm1<V: Vector>(x: V) -> V {
    // SAFETY: as the module.
    unsafe {
        let p =
            polynomial(x, [1.984_127e-4, 1.388_888_9e-3, 8.333_334e-3, 4.166_666_7e-2, 1.666_666_7e-1, 0.5]);
        let near = p.mul(x).fma(x, x);
        V::if_greater(V::splat(0.35), abs(x), near, exp(x).sub(V::splat(1.0)))
    }
}
