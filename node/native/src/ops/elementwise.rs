//! Operators that work element by element: unary, binary with broadcasting, `Where`, `Clip`.
//!
//! Minimum, maximum, `Clip` and ReLU let NaN through, on every machine. Integers wrap; dividing one by zero is an error.

use super::Target;
use super::fact::{Facts, Out, broadcast};
use super::kernel::Lowered;
use super::strided::{Walk, broadcast_strides};
use std::ops::{BitAnd, BitOr, BitXor};

use roost_kernels::{BinaryKernel, Operand};

use crate::error::OpError;
use crate::exec::io::Io;
use crate::math;
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
pub fn lower_unary(op: Unary, ins: Facts<'_>, target: Target) -> Result<Lowered, OpError> {
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
            Ok(Lowered::new("map", move |io| {
                let x = io.input::<f32>(0);
                if let Some(kernel) = &kernel {
                    kernel.run(x, io.take::<f32>(0));
                }
                Ok(())
            }))
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

/// A function of two elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ONNX's operators")]
pub enum Binary {
    Add,
    Sub,
    Mul,
    Div,
    Pow,
    Min,
    Max,
    PRelu,
    Mod { fmod: bool },
    Equal,
    Greater,
    GreaterOrEqual,
    Less,
    LessOrEqual,
    And,
    Or,
    Xor,
    BitwiseAnd,
    BitwiseOr,
    BitwiseXor,
    BitShift { left: bool },
}

impl Binary {
    /// Whether the output is `bool`.
    pub fn compares(self) -> bool {
        matches!(
            self,
            Self::Equal
                | Self::Greater
                | Self::GreaterOrEqual
                | Self::Less
                | Self::LessOrEqual
                | Self::And
                | Self::Or
                | Self::Xor
        )
    }
}

/// The shape of a binary operator's output.
pub fn infer_binary(op: Binary, ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let (a, b) = (ins.need(0)?, ins.need(1)?);
    if a.dtype != b.dtype && op != Binary::Pow {
        return Err(OpError::DType { input: 1, dtype: b.dtype });
    }
    let dtype = if op.compares() { DType::Bool } else { a.dtype };
    Ok(vec![Out::new(dtype, broadcast(a.shape, b.shape)?)])
}

/// The kernel of a binary operator.
pub fn lower_binary(op: Binary, ins: Facts<'_>, out: &Out, target: Target) -> Result<Lowered, OpError> {
    let (a, b) = (ins.need(0)?, ins.need(1)?);
    let strides = [&broadcast_strides(a.shape, &out.shape)[..], &broadcast_strides(b.shape, &out.shape)[..]];
    let walk = Walk::new(&out.shape, strides)?;
    if op == Binary::Pow && a.dtype != b.dtype {
        return mixed_pow(walk, a.dtype, b.dtype);
    }
    match a.dtype {
        DType::F32 if op.kernel().is_some() => {
            let kernel = op.kernel().map(|binary| target.kernels.binary(binary));
            Ok(Lowered::new("zip", move |io| {
                let (a, b, out) = (io.input::<f32>(0), io.input::<f32>(1), io.take::<f32>(0));
                if let Some(kernel) = &kernel {
                    kernel_rows(kernel, &walk, a, b, out);
                }
                Ok(())
            }))
        }
        DType::F32 => float(op, walk, |a: f32, b| a % b, math::pow),
        DType::F64 => float(op, walk, |a: f64, b| a % b, libm::pow),
        DType::I8 => int(op, walk, Signed::<i8>::OPS),
        DType::I16 => int(op, walk, Signed::<i16>::OPS),
        DType::I32 => int(op, walk, Signed::<i32>::OPS),
        DType::I64 => int(op, walk, Signed::<i64>::OPS),
        DType::U8 => int(op, walk, Signed::<u8>::OPS),
        DType::U16 => int(op, walk, Signed::<u16>::OPS),
        DType::U32 => int(op, walk, Signed::<u32>::OPS),
        DType::U64 => int(op, walk, Signed::<u64>::OPS),
        DType::Bool => boolean(op, walk),
        DType::F16 | DType::BF16 => Err(OpError::DType { input: 0, dtype: a.dtype }),
    }
}

impl Binary {
    /// The kernel on `f32`, where there is one.
    fn kernel(self) -> Option<roost_kernels::Binary> {
        use roost_kernels::Binary as K;
        Some(match self {
            Self::Add => K::Add,
            Self::Sub => K::Sub,
            Self::Mul => K::Mul,
            Self::Div => K::Div,
            Self::Max => K::Max,
            Self::Min => K::Min,
            Self::PRelu => K::Prelu,
            _ => return None,
        })
    }
}

fn kernel_rows(kernel: &BinaryKernel, walk: &Walk<2>, a: &[f32], b: &[f32], out: &mut [f32]) {
    if out.is_empty() {
        return;
    }
    let inner = walk.inner();
    let steps = walk.inner_strides();
    fn operand(data: &[f32], at: isize, step: isize, inner: usize) -> Operand<'_> {
        match step {
            0 => Operand::One(data[at as usize]),
            _ => Operand::Row(&data[at as usize..at as usize + inner]),
        }
    }
    // Broadcast strides are 0 or, on the innermost dimension, 1.
    walk.rows(|number, [at_a, at_b]| {
        let out = &mut out[number * inner..(number + 1) * inner];
        kernel.run(operand(a, at_a, steps[0], inner), operand(b, at_b, steps[1], inner), out);
    });
}

/// Walks rows of both inputs. Loops over contiguous rows are written out so that they vectorise.
fn zip<A: Elem, O: Elem>(
    walk: Walk<2>,
    f: impl Fn(A, A) -> O + Send + Sync + 'static,
) -> impl Fn(&mut Io<'_>) -> Result<(), OpError> + Send + Sync + 'static {
    move |io| {
        let (a, b) = (io.input::<A>(0), io.input::<A>(1));
        rows(&walk, a, b, io.take::<O>(0), &f);
        Ok(())
    }
}

fn rows<A: Elem, B: Elem, O: Elem>(walk: &Walk<2>, a: &[A], b: &[B], out: &mut [O], f: impl Fn(A, B) -> O) {
    if out.is_empty() {
        return;
    }
    let inner = walk.inner();
    let [step_a, step_b] = walk.inner_strides().map(|step| step as usize);
    walk.rows(|number, [at_a, at_b]| {
        let (a, b) = (&a[at_a as usize..], &b[at_b as usize..]);
        let out = &mut out[number * inner..(number + 1) * inner];
        match (step_a, step_b) {
            (1, 1) => out.iter_mut().zip(a.iter().zip(b)).for_each(|(out, (a, b))| *out = f(*a, *b)),
            (1, 0) => {
                let b = b[0];
                out.iter_mut().zip(a).for_each(|(out, a)| *out = f(*a, b));
            }
            (0, 1) => {
                let a = a[0];
                out.iter_mut().zip(b).for_each(|(out, b)| *out = f(a, *b));
            }
            _ => out.iter_mut().enumerate().for_each(|(i, out)| *out = f(a[i * step_a], b[i * step_b])),
        }
    });
}

fn lowered<A: Elem, O: Elem>(walk: Walk<2>, f: impl Fn(A, A) -> O + Send + Sync + 'static) -> Lowered {
    Lowered::new("zip", zip(walk, f))
}

/// A comparison: the output has one byte per element.
fn compared<A: Elem>(walk: Walk<2>, f: impl Fn(A, A) -> bool + Send + Sync + 'static) -> Lowered {
    lowered::<A, u8>(walk, move |a, b| u8::from(f(a, b)))
}

/// Comparisons of any ordered type; nothing for other operators.
#[allow(clippy::float_cmp, reason = "ONNX's Equal is exact")]
fn comparison<A: Elem>(op: Binary, walk: &Walk<2>) -> Option<Lowered> {
    let walk = walk.clone();
    Some(match op {
        Binary::Equal => compared::<A>(walk, |a, b| a == b),
        Binary::Greater => compared::<A>(walk, |a, b| a > b),
        Binary::GreaterOrEqual => compared::<A>(walk, |a, b| a >= b),
        Binary::Less => compared::<A>(walk, |a, b| a < b),
        Binary::LessOrEqual => compared::<A>(walk, |a, b| a <= b),
        _ => return None,
    })
}

fn float<T>(op: Binary, walk: Walk<2>, rem: fn(T, T) -> T, pow: fn(T, T) -> T) -> Result<Lowered, OpError>
where
    T: Elem
        + std::ops::Add<Output = T>
        + std::ops::Sub<Output = T>
        + std::ops::Mul<Output = T>
        + std::ops::Div<Output = T>
        + Default,
{
    if let Some(lowered) = comparison::<T>(op, &walk) {
        return Ok(lowered);
    }
    // `a != a` is NaN's test that both float types share; the first NaN wins.
    #[allow(clippy::eq_op, reason = "the test for NaN")]
    let nan = |a: T| a != a;
    Ok(match op {
        Binary::Add => lowered::<T, T>(walk, |a, b| a + b),
        Binary::Sub => lowered::<T, T>(walk, |a, b| a - b),
        Binary::Mul => lowered::<T, T>(walk, |a, b| a * b),
        Binary::Div => lowered::<T, T>(walk, |a, b| a / b),
        Binary::Pow => lowered::<T, T>(walk, pow),
        Binary::Min => {
            lowered::<T, T>(walk, move |a, b| if nan(a) || a < b || !(nan(b) || b <= a) { a } else { b })
        }
        Binary::Max => {
            lowered::<T, T>(walk, move |a, b| if nan(a) || a > b || !(nan(b) || b >= a) { a } else { b })
        }
        Binary::PRelu => lowered::<T, T>(walk, |a, slope| if a < T::default() { a * slope } else { a }),
        Binary::Mod { fmod: true } => lowered::<T, T>(walk, rem),
        _ => return Err(OpError::DType { input: 0, dtype: T::DTYPE }),
    })
}

/// Integer operations that Rust names per type.
struct IntOps<T> {
    add: fn(T, T) -> T,
    sub: fn(T, T) -> T,
    mul: fn(T, T) -> T,
    div: fn(T, T) -> T,
    rem: fn(T, T) -> T,
    floor_rem: fn(T, T) -> T,
    pow: fn(T, T) -> T,
    shl: fn(T, T) -> T,
    shr: fn(T, T) -> T,
}

struct Signed<T>(std::marker::PhantomData<T>);

macro_rules! int_ops {
    ($($t:ty),*) => { $(
        impl Signed<$t> {
            const OPS: IntOps<$t> = IntOps {
                add: <$t>::wrapping_add,
                sub: <$t>::wrapping_sub,
                mul: <$t>::wrapping_mul,
                div: <$t>::wrapping_div,
                rem: <$t>::wrapping_rem,
                #[allow(unused_comparisons, reason = "one macro for signed and unsigned types")]
                floor_rem: |a, b| {
                    let rem = a.wrapping_rem(b);
                    if rem != 0 && (rem < 0) != (b < 0) { rem.wrapping_add(b) } else { rem }
                },
                pow: |a, b| power(a as i128, b as i128) as $t,
                shl: |a, b| a.checked_shl(b as u32).unwrap_or(0),
                shr: |a, b| a.checked_shr(b as u32).unwrap_or(0),
            };
        }
    )* };
}
int_ops!(i8, i16, i32, i64, u8, u16, u32, u64);

/// Integer power that wraps; a negative exponent gives the truncated reciprocal.
fn power(base: i128, exponent: i128) -> i128 {
    if exponent < 0 {
        return match base {
            1 => 1,
            -1 => 1 - 2 * (exponent & 1),
            _ => 0,
        };
    }
    let (mut result, mut base, mut exponent) = (1_i128, base, exponent);
    while exponent > 0 {
        if exponent & 1 == 1 {
            result = result.wrapping_mul(base);
        }
        base = base.wrapping_mul(base);
        exponent >>= 1;
    }
    result
}

fn int<T>(op: Binary, walk: Walk<2>, ops: IntOps<T>) -> Result<Lowered, OpError>
where
    T: Elem + Default + Ord + BitAnd<Output = T> + BitOr<Output = T> + BitXor<Output = T>,
{
    if let Some(lowered) = comparison::<T>(op, &walk) {
        return Ok(lowered);
    }
    Ok(match op {
        Binary::Add => lowered::<T, T>(walk, ops.add),
        Binary::Sub => lowered::<T, T>(walk, ops.sub),
        Binary::Mul => lowered::<T, T>(walk, ops.mul),
        Binary::Div => dividing(walk, ops.div),
        Binary::Mod { fmod: true } => dividing(walk, ops.rem),
        Binary::Mod { fmod: false } => dividing(walk, ops.floor_rem),
        Binary::Pow => lowered::<T, T>(walk, ops.pow),
        Binary::Min => lowered::<T, T>(walk, |a, b| a.min(b)),
        Binary::Max => lowered::<T, T>(walk, |a, b| a.max(b)),
        Binary::PRelu => {
            let mul = ops.mul;
            lowered::<T, T>(walk, move |a, slope| if a < T::default() { mul(a, slope) } else { a })
        }
        Binary::BitwiseAnd => lowered::<T, T>(walk, |a, b| a & b),
        Binary::BitwiseOr => lowered::<T, T>(walk, |a, b| a | b),
        Binary::BitwiseXor => lowered::<T, T>(walk, |a, b| a ^ b),
        Binary::BitShift { left: true } => lowered::<T, T>(walk, ops.shl),
        Binary::BitShift { left: false } => lowered::<T, T>(walk, ops.shr),
        _ => return Err(OpError::DType { input: 0, dtype: T::DTYPE }),
    })
}

/// Division and remainder look for a zero divisor first.
fn dividing<T: Elem + Default>(walk: Walk<2>, f: fn(T, T) -> T) -> Lowered {
    let zipped = zip::<T, T>(walk, f);
    Lowered::new("divide", move |io| {
        if io.input::<T>(1).contains(&T::default()) {
            return Err(OpError::DivisionByZero);
        }
        zipped(io)
    })
}

fn boolean(op: Binary, walk: Walk<2>) -> Result<Lowered, OpError> {
    Ok(match op {
        Binary::And | Binary::BitwiseAnd | Binary::Mul | Binary::Min => lowered::<u8, u8>(walk, |a, b| a & b),
        Binary::Or | Binary::BitwiseOr | Binary::Max => lowered::<u8, u8>(walk, |a, b| a | b),
        Binary::Xor | Binary::BitwiseXor => lowered::<u8, u8>(walk, |a, b| a ^ b),
        Binary::Equal => compared::<u8>(walk, |a, b| a == b),
        _ => return Err(OpError::DType { input: 0, dtype: DType::Bool }),
    })
}

/// `Pow` whose exponent has another type: in double precision, then cut to the base's type.
fn mixed_pow(walk: Walk<2>, base: DType, exponent: DType) -> Result<Lowered, OpError> {
    macro_rules! with {
        ($b:ty, $e:ty, $f:expr) => {
            Ok(Lowered::new("pow", move |io| {
                let (a, b) = (io.input::<$b>(0), io.input::<$e>(1));
                rows(&walk, a, b, io.take::<$b>(0), $f);
                Ok(())
            }))
        };
    }
    match (base, exponent) {
        (DType::F32, DType::I32) => with!(f32, i32, |a, b| libm::pow(f64::from(a), f64::from(b)) as f32),
        (DType::F32, DType::I64) => with!(f32, i64, |a, b| libm::pow(f64::from(a), b as f64) as f32),
        (DType::F32, DType::F64) => with!(f32, f64, |a, b| libm::pow(f64::from(a), b) as f32),
        (DType::F32, DType::U32) => with!(f32, u32, |a, b| libm::pow(f64::from(a), f64::from(b)) as f32),
        (DType::F32, DType::U64) => with!(f32, u64, |a, b| libm::pow(f64::from(a), b as f64) as f32),
        (DType::F64, DType::F32) => with!(f64, f32, |a, b| libm::pow(a, f64::from(b))),
        (DType::F64, DType::I32) => with!(f64, i32, |a, b| libm::pow(a, f64::from(b))),
        (DType::F64, DType::I64) => with!(f64, i64, |a, b| libm::pow(a, b as f64)),
        (DType::I32, DType::F32) => with!(i32, f32, |a, b| libm::pow(f64::from(a), f64::from(b)) as i32),
        (DType::I32, DType::F64) => with!(i32, f64, |a, b| libm::pow(f64::from(a), b) as i32),
        (DType::I32, DType::I64) => with!(i32, i64, |a, b| power(i128::from(a), i128::from(b)) as i32),
        (DType::I64, DType::F32) => with!(i64, f32, |a, b| libm::pow(a as f64, f64::from(b)) as i64),
        (DType::I64, DType::F64) => with!(i64, f64, |a, b| libm::pow(a as f64, b) as i64),
        (DType::I64, DType::I32) => with!(i64, i32, |a, b| power(i128::from(a), i128::from(b)) as i64),
        _ => Err(OpError::DType { input: 1, dtype: exponent }),
    }
}

/// `Where`: condition, then, else.
pub fn infer_where(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let (condition, a, b) = (ins.typed(0, &[DType::Bool])?, ins.need(1)?, ins.need(2)?);
    if a.dtype != b.dtype {
        return Err(OpError::DType { input: 2, dtype: b.dtype });
    }
    Ok(vec![Out::new(a.dtype, broadcast(condition.shape, &broadcast(a.shape, b.shape)?)?)])
}

/// The kernel of `Where`.
pub fn lower_where(ins: Facts<'_>, out: &Out) -> Result<Lowered, OpError> {
    let strides = [0, 1, 2].map(|i| ins.need(i).map(|fact| broadcast_strides(fact.shape, &out.shape)));
    let [c, a, b] = strides;
    let walk = Walk::new(&out.shape, [&c?, &a?, &b?])?;
    Ok(match out.dtype.bytes() {
        1 => choose::<u8>(walk),
        2 => choose::<u16>(walk),
        4 => choose::<u32>(walk),
        _ => choose::<u64>(walk),
    })
}

fn choose<T: Elem>(walk: Walk<3>) -> Lowered {
    Lowered::new("where", move |io| {
        let (condition, a, b) = (io.input::<u8>(0), io.input::<T>(1), io.input::<T>(2));
        let out = io.take::<T>(0);
        if out.is_empty() {
            return Ok(());
        }
        let inner = walk.inner();
        let [step_c, step_a, step_b] = walk.inner_strides().map(|step| step as usize);
        walk.rows(|number, at| {
            let [c, x, y] = at.map(|at| at as usize);
            for (i, out) in out[number * inner..(number + 1) * inner].iter_mut().enumerate() {
                *out = if condition[c + i * step_c] != 0 { a[x + i * step_a] } else { b[y + i * step_b] };
            }
        });
        Ok(())
    })
}

/// `Clip` with optional bounds, which are inputs.
pub fn lower_clip(ins: Facts<'_>) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    for bound in [1, 2] {
        if let Some(fact) = ins.get(bound) {
            if fact.len() != 1 {
                return Err(OpError::Shape(format!("a bound of Clip has shape {:?}", fact.shape)));
            }
            ins.typed(bound, &[x.dtype])?;
        }
    }
    let (low, high) = (ins.get(1).is_some(), ins.get(2).is_some());
    macro_rules! with {
        ($t:ty) => {
            Ok(Lowered::new("clip", move |io| {
                let x = io.input::<$t>(0);
                let low = if low { Some(io.input::<$t>(1)[0]) } else { None };
                let high = if high { Some(io.input::<$t>(2)[0]) } else { None };
                for (out, x) in io.take::<$t>(0).iter_mut().zip(x) {
                    let mut v = *x;
                    if let Some(low) = low {
                        v = if v < low { low } else { v };
                    }
                    if let Some(high) = high {
                        v = if v > high { high } else { v };
                    }
                    *out = v;
                }
                Ok(())
            }))
        };
    }
    match x.dtype {
        DType::F32 => with!(f32),
        DType::F64 => with!(f64),
        DType::I8 => with!(i8),
        DType::I16 => with!(i16),
        DType::I32 => with!(i32),
        DType::I64 => with!(i64),
        DType::U8 => with!(u8),
        DType::U16 => with!(u16),
        DType::U32 => with!(u32),
        DType::U64 => with!(u64),
        DType::F16 | DType::BF16 | DType::Bool => Err(OpError::DType { input: 0, dtype: x.dtype }),
    }
}
