//! Functions of one number, the same bits on every machine.
//!
//! `exp`, `tanh`, `erf` and what is made of them come from the kernels' one FMA sequence. The rest is
//! computed in double precision by `libm` (pure Rust, so no machine's C library decides) and rounded once.

use roost_kernels::{Kernels, Unary};

macro_rules! through_f64 {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => { $(
        $(#[$doc])*
        pub fn $name(x: f32) -> f32 {
            libm::$name(f64::from(x)) as f32
        }
    )* };
}

through_f64! {
    /// Sine of radians.
    sin,
    /// Cosine of radians.
    cos,
    /// Tangent of radians.
    tan,
    /// Inverse sine.
    asin,
    /// Inverse cosine.
    acos,
    /// Inverse tangent.
    atan,
    /// Hyperbolic sine.
    sinh,
    /// Hyperbolic cosine.
    cosh,
    /// Inverse hyperbolic sine.
    asinh,
    /// Inverse hyperbolic cosine.
    acosh,
    /// Inverse hyperbolic tangent.
    atanh,
}

/// A kernel on one number.
fn one(unary: Unary, x: f32) -> f32 {
    let mut y = [x];
    Kernels::best().unary(unary).run_in_place(&mut y);
    y[0]
}

/// e to the power of `x`.
pub fn exp(x: f32) -> f32 {
    one(Unary::Exp, x)
}

/// The natural logarithm.
pub fn log(x: f32) -> f32 {
    one(Unary::Log, x)
}

/// Hyperbolic tangent.
pub fn tanh(x: f32) -> f32 {
    one(Unary::Tanh, x)
}

/// The error function.
pub fn erf(x: f32) -> f32 {
    one(Unary::Erf, x)
}

/// `x` to the power of `y`.
pub fn pow(x: f32, y: f32) -> f32 {
    if y == 2.0 { x * x } else { libm::pow(f64::from(x), f64::from(y)) as f32 }
}

/// `1 / (1 + exp(-x))`.
pub fn sigmoid(x: f32) -> f32 {
    one(Unary::Sigmoid, x)
}

/// `log(1 + exp(x))` without overflow.
pub fn softplus(x: f32) -> f32 {
    one(Unary::Softplus, x)
}

/// Rounds half to even.
pub fn round(x: f32) -> f32 {
    x.round_ties_even()
}
