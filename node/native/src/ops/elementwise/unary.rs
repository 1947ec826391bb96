//! Functions of one element.
//!
//! ReLU lets NaN through, on every machine.

use crate::error::OpError;
use crate::exec::io::Io;
use crate::math;
use crate::ops::Target;
use crate::ops::fact::{Facts, Out};
use crate::ops::kernel::Lowered;
use crate::tensor::{DType, Elem};

/// A function of one element.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "the names are ONNX's operators")]
pub enum Unary {
    Abs,
    Neg,
    Ceil,
    Floor,
    Round,
    Sqrt,
    Reciprocal,
    Exp,
    Log,
    Erf,
    Sin,
    Cos,
    Tan,
    Asin,
    Acos,
    Atan,
    Sinh,
    Cosh,
    Tanh,
    Asinh,
    Acosh,
    Atanh,
    Sigmoid,
    Relu,
    Softplus,
    Softsign,
    Sign,
    Not,
    BitwiseNot,
    IsNan,
    HardSwish,
    Mish,
    IsInf {
        positive: bool,
        negative: bool,
    },
    LeakyRelu {
        alpha: f32,
    },
    ThresholdedRelu {
        alpha: f32,
    },
    Elu {
        alpha: f32,
    },
    Celu {
        alpha: f32,
    },
    Selu {
        alpha: f32,
        gamma: f32,
    },
    HardSigmoid {
        alpha: f32,
        beta: f32,
    },
    Shrink {
        lambda: f32,
        bias: f32,
    },
    Swish {
        alpha: f32,
    },
    Gelu {
        tanh: bool,
    },
    /// Rounds to the precision of `f16` (or `bf16`), and stays `f32`.
    Halve {
        brain: bool,
    },
}

impl Unary {
    /// The function on `f32`.
    pub fn f32(self) -> fn(f32, [f32; 2]) -> f32 {
        match self {
            Self::Abs => |x, _| x.abs(),
            Self::Neg => |x, _| -x,
            Self::Ceil => |x, _| x.ceil(),
            Self::Floor => |x, _| x.floor(),
            Self::Round => |x, _| math::round(x),
            Self::Sqrt => |x, _| x.sqrt(),
            Self::Reciprocal => |x, _| 1.0 / x,
            Self::Exp => |x, _| math::exp(x),
            Self::Log => |x, _| math::log(x),
            Self::Erf => |x, _| math::erf(x),
            Self::Sin => |x, _| math::sin(x),
            Self::Cos => |x, _| math::cos(x),
            Self::Tan => |x, _| math::tan(x),
            Self::Asin => |x, _| math::asin(x),
            Self::Acos => |x, _| math::acos(x),
            Self::Atan => |x, _| math::atan(x),
            Self::Sinh => |x, _| math::sinh(x),
            Self::Cosh => |x, _| math::cosh(x),
            Self::Tanh => |x, _| math::tanh(x),
            Self::Asinh => |x, _| math::asinh(x),
            Self::Acosh => |x, _| math::acosh(x),
            Self::Atanh => |x, _| math::atanh(x),
            Self::Sigmoid => |x, _| math::sigmoid(x),
            Self::Relu => |x, _| if x < 0.0 { 0.0 } else { x },
            Self::Softplus => |x, _| math::softplus(x),
            Self::Softsign => |x, _| x / (1.0 + x.abs()),
            Self::Sign => |x, _| if x == 0.0 || x.is_nan() { x } else { x.signum() },
            Self::HardSwish => |x, _| x * clamp(x / 6.0 + 0.5, 0.0, 1.0),
            Self::Mish => |x, _| x * math::tanh(math::softplus(x)),
            Self::LeakyRelu { .. } => |x, [alpha, _]| if x < 0.0 { alpha * x } else { x },
            Self::ThresholdedRelu { .. } => |x, [alpha, _]| if x <= alpha { 0.0 } else { x },
            Self::Elu { .. } => |x, [alpha, _]| if x < 0.0 { alpha * (math::exp(x) - 1.0) } else { x },
            Self::Celu { .. } => {
                |x, [alpha, _]| if x < 0.0 { alpha * (math::exp(x / alpha) - 1.0) } else { x }
            }
            Self::Selu { .. } => {
                |x, [alpha, gamma]| gamma * if x <= 0.0 { alpha * math::exp(x) - alpha } else { x }
            }
            Self::HardSigmoid { .. } => |x, [alpha, beta]| clamp(alpha * x + beta, 0.0, 1.0),
            Self::Shrink { .. } => |x, [lambda, bias]| {
                if x < -lambda {
                    x + bias
                } else if x > lambda {
                    x - bias
                } else if x.is_nan() {
                    x
                } else {
                    0.0
                }
            },
            Self::Swish { .. } => |x, [alpha, _]| x * math::sigmoid(alpha * x),
            Self::Gelu { tanh: false } => {
                |x, _| 0.5 * x * (1.0 + math::erf(x * std::f32::consts::FRAC_1_SQRT_2))
            }
            Self::Gelu { tanh: true } => |x, _| {
                let inner = (2.0_f32 / std::f32::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
                0.5 * x * (1.0 + math::tanh(inner))
            },
            Self::Halve { brain: false } => |x, _| half::f16::from_f32(x).to_f32(),
            Self::Halve { brain: true } => |x, _| half::bf16::from_f32(x).to_f32(),
            Self::Not | Self::BitwiseNot | Self::IsNan | Self::IsInf { .. } => |x, _| x,
        }
    }

    /// The kernel, where there is one.
    pub fn kernel(self) -> Option<roost_kernels::Unary> {
        use roost_kernels::Unary as K;
        Some(match self {
            Self::Abs => K::Abs,
            Self::Neg => K::Neg,
            Self::Sqrt => K::Sqrt,
            Self::Reciprocal => K::Reciprocal,
            Self::Floor => K::Floor,
            Self::Ceil => K::Ceil,
            Self::Round => K::Round,
            Self::Exp => K::Exp,
            Self::Log => K::Log,
            Self::Tanh => K::Tanh,
            Self::Erf => K::Erf,
            Self::Sigmoid => K::Sigmoid,
            Self::Relu => K::Relu,
            Self::LeakyRelu { alpha } => K::LeakyRelu { alpha },
            Self::Swish { alpha: 1.0 } => K::Silu,
            Self::Gelu { tanh: false } => K::Gelu,
            Self::Gelu { tanh: true } => K::GeluTanh,
            Self::HardSigmoid { alpha, beta } => K::HardSigmoid { alpha, beta },
            Self::HardSwish => K::HardSwish,
            Self::Softplus => K::Softplus,
            Self::Softsign => K::Softsign,
            Self::Elu { alpha } => K::Elu { alpha },
            Self::Selu { alpha, gamma } => K::Selu { alpha, gamma },
            Self::Celu { alpha } => K::Celu { alpha },
            Self::ThresholdedRelu { alpha } => K::ThresholdedRelu { alpha },
            Self::Mish => K::Mish,
            _ => return None,
        })
    }

    /// The attributes that [`Unary::f32`]'s function takes.
    pub fn parameters(self) -> [f32; 2] {
        match self {
            Self::LeakyRelu { alpha }
            | Self::ThresholdedRelu { alpha }
            | Self::Elu { alpha }
            | Self::Celu { alpha }
            | Self::Swish { alpha } => [alpha, 0.0],
            Self::Selu { alpha, gamma } => [alpha, gamma],
            Self::HardSigmoid { alpha, beta } => [alpha, beta],
            Self::Shrink { lambda, bias } => [lambda, bias],
            _ => [0.0; 2],
        }
    }

    /// The function on `f64`, where it has one of its own; others go through `f32`.
    fn f64(self) -> Option<fn(f64) -> f64> {
        Some(match self {
            Self::Abs => f64::abs,
            Self::Neg => |x| -x,
            Self::Ceil => f64::ceil,
            Self::Floor => f64::floor,
            Self::Round => f64::round_ties_even,
            Self::Sqrt => f64::sqrt,
            Self::Reciprocal => |x| 1.0 / x,
            Self::Exp => libm::exp,
            Self::Log => libm::log,
            Self::Erf => libm::erf,
            Self::Sin => libm::sin,
            Self::Cos => libm::cos,
            Self::Tan => libm::tan,
            Self::Asin => libm::asin,
            Self::Acos => libm::acos,
            Self::Atan => libm::atan,
            Self::Sinh => libm::sinh,
            Self::Cosh => libm::cosh,
            Self::Tanh => libm::tanh,
            Self::Asinh => libm::asinh,
            Self::Acosh => libm::acosh,
            Self::Atanh => libm::atanh,
            Self::Sigmoid => |x| 1.0 / (1.0 + libm::exp(-x)),
            Self::Relu => |x| if x < 0.0 { 0.0 } else { x },
            Self::Sign => |x| if x == 0.0 || x.is_nan() { x } else { x.signum() },
            _ => return None,
        })
    }

    /// Whether the output is `bool` whatever the input.
    fn is_test(self) -> bool {
        matches!(self, Self::Not | Self::IsNan | Self::IsInf { .. })
    }
}

fn clamp(x: f32, low: f32, high: f32) -> f32 {
    if x < low {
        low
    } else if x > high {
        high
    } else {
        x
    }
}

/// The shape of a unary operator's output.
pub fn infer_unary(op: Unary, ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let dtype = if op.is_test() { DType::Bool } else { x.dtype };
    Ok(vec![Out::new(dtype, x.shape)])
}

/// The kernel of a unary operator.
pub fn lower_unary(op: Unary, ins: Facts<'_>, target: Target<'_>) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let refuse = Err(OpError::DType { input: 0, dtype: x.dtype });
    match (op, x.dtype) {
        (Unary::IsNan, DType::F32) => Ok(test::<f32>(|x| x.is_nan())),
        (Unary::IsNan, DType::F64) => Ok(test::<f64>(|x| x.is_nan())),
        (Unary::IsInf { positive, negative }, DType::F32) => {
            Ok(test::<f32>(move |x| (positive && x == f32::INFINITY) || (negative && x == f32::NEG_INFINITY)))
        }
        (Unary::IsInf { positive, negative }, DType::F64) => {
            Ok(test::<f64>(move |x| (positive && x == f64::INFINITY) || (negative && x == f64::NEG_INFINITY)))
        }
        (Unary::Not, DType::Bool) => Ok(map::<u8>(|x| u8::from(x == 0))),
        (Unary::Not | Unary::IsNan | Unary::IsInf { .. }, _) => refuse,
        (Unary::BitwiseNot, _) => match x.dtype {
            DType::I8 | DType::U8 => Ok(map::<u8>(|x| !x)),
            DType::I16 | DType::U16 => Ok(map::<u16>(|x| !x)),
            DType::I32 | DType::U32 => Ok(map::<u32>(|x| !x)),
            DType::I64 | DType::U64 => Ok(map::<u64>(|x| !x)),
            DType::F32 | DType::F64 | DType::F16 | DType::BF16 | DType::Bool => refuse,
        },
        (_, DType::F32) if op.kernel().is_some() => {
            let kernel = op.kernel().map(|unary| target.kernels.unary(unary));
            let run = move |io: &mut Io<'_>| {
                let x = io.input::<f32>(0);
                if let Some(kernel) = &kernel {
                    kernel.run(x, io.take::<f32>(0));
                }
                Ok(())
            };
            Ok(Lowered::new("map", run).on(target))
        }
        (_, DType::F32) => {
            let (f, parameters) = (op.f32(), op.parameters());
            Ok(map::<f32>(move |x| f(x, parameters)))
        }
        (_, DType::F64) => match op.f64() {
            Some(f) => Ok(map::<f64>(f)),
            None => {
                let (f, parameters) = (op.f32(), op.parameters());
                Ok(map::<f64>(move |x| f64::from(f(x as f32, parameters))))
            }
        },
        (_, DType::I8) => integer(op, i8::wrapping_abs, i8::wrapping_neg, i8::signum, 0_i8),
        (_, DType::I16) => integer(op, i16::wrapping_abs, i16::wrapping_neg, i16::signum, 0_i16),
        (_, DType::I32) => integer(op, i32::wrapping_abs, i32::wrapping_neg, i32::signum, 0_i32),
        (_, DType::I64) => integer(op, i64::wrapping_abs, i64::wrapping_neg, i64::signum, 0_i64),
        (_, DType::U8) => integer(op, |x| x, u8::wrapping_neg, |x| x.min(1), 0_u8),
        (_, DType::U16) => integer(op, |x| x, u16::wrapping_neg, |x| x.min(1), 0_u16),
        (_, DType::U32) => integer(op, |x| x, u32::wrapping_neg, |x| x.min(1), 0_u32),
        (_, DType::U64) => integer(op, |x| x, u64::wrapping_neg, |x| x.min(1), 0_u64),
        (_, DType::F16 | DType::BF16 | DType::Bool) => refuse,
    }
}

fn integer<T: Elem>(
    op: Unary,
    abs: fn(T) -> T,
    neg: fn(T) -> T,
    sign: fn(T) -> T,
    zero: T,
) -> Result<Lowered, OpError> {
    match op {
        Unary::Abs => Ok(map(abs)),
        Unary::Neg => Ok(map(neg)),
        Unary::Sign => Ok(map(sign)),
        Unary::Relu => Ok(map(move |x| if x < zero { zero } else { x })),
        _ => Err(OpError::DType { input: 0, dtype: T::DTYPE }),
    }
}

/// A kernel that maps each element.
pub fn map<T: Elem>(f: impl Fn(T) -> T + Send + Sync + 'static) -> Lowered {
    Lowered::new("map", move |io| {
        let x = io.input::<T>(0);
        for (out, x) in io.take::<T>(0).iter_mut().zip(x) {
            *out = f(*x);
        }
        Ok(())
    })
}

fn test<T: Elem>(f: impl Fn(T) -> bool + Send + Sync + 'static) -> Lowered {
    Lowered::new("test", move |io| {
        let x = io.input::<T>(0);
        for (out, x) in io.take_bytes(0).iter_mut().zip(x) {
            *out = u8::from(f(*x));
        }
        Ok(())
    })
}
