//! `Where` and `Clip`. `Clip` lets NaN through, on every machine.

use crate::error::OpError;
use crate::ops::fact::{Facts, Out, broadcast};
use crate::ops::kernel::Lowered;
use crate::ops::strided::{Walk, broadcast_strides};
use crate::tensor::{DType, Elem};

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
