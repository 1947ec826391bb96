//! `Cast` and its like. Float to integer truncates and saturates (NaN becomes 0), alike on every machine;
//! integers wrap.

use roost_kernels::Half;

use super::Target;
use super::fact::{Facts, Out};
use super::kernel::Lowered;
use crate::error::OpError;
use crate::exec::io::Io;
use crate::tensor::DType;

/// The shape of a `Cast` to `to`.
pub fn infer(to: DType, ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    Ok(vec![Out::new(to, ins.need(0)?.shape)])
}

/// A conversion between element types.
trait From2<T> {
    fn convert(value: T) -> Self;
}

macro_rules! conversions {
    ($from:ty => $($to:ty),*) => { $(
        impl From2<$from> for $to {
            fn convert(value: $from) -> Self { value as $to }
        }
    )* };
}
macro_rules! all {
    ($($from:ty),*) => { $( conversions!($from => f32, f64, i8, i16, i32, i64, u8, u16, u32, u64); )* };
}
all!(f32, f64, i8, i16, i32, i64, u8, u16, u32, u64);

/// The kernel of a `Cast` to `to`.
pub fn lower(to: DType, ins: Facts<'_>, target: Target<'_>) -> Result<Lowered, OpError> {
    let from = ins.need(0)?.dtype;
    if from == to {
        return Ok(copy());
    }
    macro_rules! pair {
        ($f:ty, $t:ty) => {
            Lowered::new("cast", |io| {
                let x = io.input::<$f>(0);
                for (out, x) in io.take::<$t>(0).iter_mut().zip(x) {
                    *out = <$t as From2<$f>>::convert(*x);
                }
                Ok(())
            })
        };
    }
    macro_rules! to {
        ($f:ty) => {
            match to {
                DType::F32 => pair!($f, f32),
                DType::F64 => pair!($f, f64),
                DType::I8 => pair!($f, i8),
                DType::I16 => pair!($f, i16),
                DType::I32 => pair!($f, i32),
                DType::I64 => pair!($f, i64),
                DType::U8 => pair!($f, u8),
                DType::U16 => pair!($f, u16),
                DType::U32 => pair!($f, u32),
                DType::U64 => pair!($f, u64),
                DType::Bool => Lowered::new("cast", |io| {
                    let x = io.input::<$f>(0);
                    for (out, x) in io.take_bytes(0).iter_mut().zip(x) {
                        *out = u8::from(*x != <$f>::default());
                    }
                    Ok(())
                }),
                DType::F16 => Lowered::new("cast", |io| {
                    let x = io.input::<$f>(0);
                    for (out, x) in io.take::<u16>(0).iter_mut().zip(x) {
                        *out = half::f16::from_f32(*x as f32).to_bits();
                    }
                    Ok(())
                }),
                DType::BF16 => Lowered::new("cast", |io| {
                    let x = io.input::<$f>(0);
                    for (out, x) in io.take::<u16>(0).iter_mut().zip(x) {
                        *out = half::bf16::from_f32(*x as f32).to_bits();
                    }
                    Ok(())
                }),
            }
        };
    }
    Ok(match from {
        DType::F32 => to!(f32),
        DType::F64 => to!(f64),
        DType::I8 => to!(i8),
        DType::I16 => to!(i16),
        DType::I32 => to!(i32),
        DType::I64 => to!(i64),
        DType::U8 | DType::Bool => to!(u8),
        DType::U16 => to!(u16),
        DType::U32 => to!(u32),
        DType::U64 => to!(u64),
        DType::F16 if to == DType::F32 => widen(Half::F16, target),
        DType::BF16 if to == DType::F32 => widen(Half::BF16, target),
        DType::F16 | DType::BF16 => return Err(OpError::DType { input: 0, dtype: from }),
    })
}

fn widen(half: Half, target: Target<'_>) -> Lowered {
    let kernels = target.kernels;
    let run = move |io: &mut Io<'_>| {
        kernels.widen(half, io.input(0), io.take(0));
        Ok(())
    };
    Lowered::new("widen", run).on(target)
}

/// Copies the first input to the first output.
pub fn copy() -> Lowered {
    Lowered::new("copy", |io| {
        let x = io.bytes(0);
        io.take_bytes(0).copy_from_slice(x);
        Ok(())
    })
}
