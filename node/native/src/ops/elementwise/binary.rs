//! Functions of two elements, with broadcasting.
//!
//! Minimum and maximum let NaN through, on every machine. Integers wrap; dividing one by zero is an error.

use std::ops::{BitAnd, BitOr, BitXor};

use roost_kernels::{BinaryKernel, Operand};

use crate::error::OpError;
use crate::exec::io::Io;
use crate::math;
use crate::ops::Target;
use crate::ops::fact::{Facts, Out, broadcast};
use crate::ops::kernel::Lowered;
use crate::ops::strided::{Walk, broadcast_strides};
use crate::tensor::{DType, Elem};

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
pub fn lower_binary(op: Binary, ins: Facts<'_>, out: &Out, target: Target<'_>) -> Result<Lowered, OpError> {
    let (a, b) = (ins.need(0)?, ins.need(1)?);
    let strides = [&broadcast_strides(a.shape, &out.shape)[..], &broadcast_strides(b.shape, &out.shape)[..]];
    let walk = Walk::new(&out.shape, strides)?;
    if op == Binary::Pow && a.dtype != b.dtype {
        return mixed_pow(walk, a.dtype, b.dtype);
    }
    match a.dtype {
        DType::F32 if op.kernel().is_some() => {
            let kernel = op.kernel().map(|binary| target.kernels.binary(binary));
            let run = move |io: &mut Io<'_>| {
                let (a, b, out) = (io.input::<f32>(0), io.input::<f32>(1), io.take::<f32>(0));
                if let Some(kernel) = &kernel {
                    kernel_rows(kernel, &walk, a, b, out);
                }
                Ok(())
            };
            Ok(Lowered::new("zip", run).on(target))
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
                // A distance that `u32` cannot hold is over the width, too.
                shl: |a, b| u32::try_from(b).ok().and_then(|b| a.checked_shl(b)).unwrap_or(0),
                shr: |a, b| u32::try_from(b).ok().and_then(|b| a.checked_shr(b)).unwrap_or(0),
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
