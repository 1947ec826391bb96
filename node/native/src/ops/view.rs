//! Operators whose output is the input's bytes under other dimensions, and those that read dimensions only.

use super::fact::{Facts, Out, axis_of, checked_len};
use super::kernel::Lowered;
use crate::error::OpError;
use crate::tensor::{DType, Tensor};

/// `Reshape`.
///
/// A dimension that is copied stands on both sides, so it does not count towards the one that is left open,
/// even where it is nought: `[0, 48, -1]` gives an empty batch the dimensions of any other. ONNX says nothing
/// about it; newer versions of ONNX Runtime do the same. Where more is nought than what is copied, nothing
/// tells the open dimension: an error.
pub fn infer_reshape(ins: Facts<'_>, allow_zero: bool) -> Result<Vec<Out>, OpError> {
    let (x, wanted) = (ins.need(0)?, ins.need_ints(1)?);
    let refuse = || OpError::Shape(format!("{:?} becomes {wanted:?}", x.shape));
    let mut shape = Vec::with_capacity(wanted.len());
    let mut inferred = None;
    // What the open dimension is inferred from: both sides without the empty dimensions that are copied.
    let (mut left, mut known) = (x.shape.to_vec(), Vec::with_capacity(wanted.len()));
    for (i, dim) in wanted.iter().enumerate() {
        let size = match dim {
            0 if !allow_zero => {
                let copied = left
                    .get_mut(i)
                    .ok_or_else(|| OpError::Shape(format!("dimension {i} of {:?}", x.shape)))?;
                if *copied == 0 {
                    *copied = 1;
                    shape.push(0);
                    continue;
                }
                *copied
            }
            -1 if inferred.is_none() => {
                inferred = Some(i);
                1
            }
            dim => usize::try_from(*dim).map_err(|_| OpError::Shape(format!("reshape to {wanted:?}")))?,
        };
        shape.push(size);
        known.push(size);
    }
    if let Some(i) = inferred {
        let (rest, all) = (checked_len(x.dtype, &known)?, checked_len(x.dtype, &left)?);
        let ambiguous = rest == 0 || (all == 0 && shape.contains(&0));
        if ambiguous || all % rest != 0 {
            return Err(refuse());
        }
        shape[i] = all / rest;
    }
    if checked_len(x.dtype, &shape)? != x.len() {
        return Err(refuse());
    }
    Ok(vec![Out::new(x.dtype, shape)])
}

/// `Flatten`.
pub fn infer_flatten(ins: Facts<'_>, axis: i64) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let axis = if axis == x.rank() as i64 { x.rank() } else { axis_of(axis, x.rank().max(1))? };
    let (rows, columns) = x.shape.split_at(axis);
    Ok(vec![Out::new(x.dtype, [rows.iter().product(), columns.iter().product()])])
}

/// `Squeeze`; without axes, all ones go.
pub fn infer_squeeze(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let mut gone = vec![false; x.rank()];
    match ins.ints(1)? {
        None => gone.iter_mut().zip(x.shape).for_each(|(gone, dim)| *gone = *dim == 1),
        Some(axes) => {
            for axis in axes {
                let axis = axis_of(axis, x.rank())?;
                if x.shape[axis] != 1 {
                    return Err(OpError::Shape(format!("axis {axis} of {:?} is not 1", x.shape)));
                }
                gone[axis] = true;
            }
        }
    }
    let shape: Vec<_> = x.shape.iter().zip(gone).filter(|(_, gone)| !gone).map(|(dim, _)| *dim).collect();
    Ok(vec![Out::new(x.dtype, shape)])
}

/// `Unsqueeze`.
pub fn infer_unsqueeze(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let (x, axes) = (ins.need(0)?, ins.need_ints(1)?);
    let rank = x.rank() + axes.len();
    let mut new = vec![false; rank];
    for axis in &axes {
        let axis = axis_of(*axis, rank)?;
        if std::mem::replace(&mut new[axis], true) {
            return Err(OpError::Shape(format!("axis {axis} twice")));
        }
    }
    let mut dims = x.shape.iter();
    let shape: Vec<_> =
        new.iter().map(|new| if *new { 1 } else { dims.next().copied().unwrap_or(1) }).collect();
    Ok(vec![Out::new(x.dtype, shape)])
}

/// The dimensions that `Shape` reads.
fn cut(rank: usize, start: i64, end: Option<i64>) -> std::ops::Range<usize> {
    let rank = rank as i64;
    let clamp = |at: i64| (if at < 0 { at.saturating_add(rank) } else { at }).clamp(0, rank) as usize;
    let (start, end) = (clamp(start), end.map_or(rank as usize, clamp));
    start..end.max(start)
}

/// `Shape`.
pub fn infer_shape(ins: Facts<'_>, start: i64, end: Option<i64>) -> Result<Vec<Out>, OpError> {
    Ok(vec![Out::new(DType::I64, [cut(ins.need(0)?.rank(), start, end).len()])])
}

/// The kernel of `Shape`: the dimensions are known when it is made.
pub fn lower_shape(ins: Facts<'_>, start: i64, end: Option<i64>) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let dims: Vec<i64> = x.shape[cut(x.rank(), start, end)].iter().map(|dim| *dim as i64).collect();
    Ok(constant(Tensor::of(&[dims.len()], &dims)))
}

/// The kernel of `Size`.
pub fn lower_size(ins: Facts<'_>) -> Result<Lowered, OpError> {
    Ok(constant(Tensor::of(&[], &[ins.need(0)?.len() as i64])))
}

/// A kernel that writes what is known already.
pub fn constant(value: Tensor) -> Lowered {
    Lowered::new("constant", move |io| {
        io.take_bytes(0).copy_from_slice(value.bytes());
        Ok(())
    })
}

/// `Dropout` whose mode is data: the identity and a mask of ones, unless it would draw.
pub fn infer_dropout(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let training = ins.need_ints(2)?.iter().any(|flag| *flag != 0);
    let ratio = match ins.get(1) {
        Some(_) => ins.value(1)?.floats().first().copied().unwrap_or(0.5),
        None => 0.5,
    };
    if training && ratio != 0.0 {
        return Err(OpError::Unsupported("Dropout in training mode".into()));
    }
    Ok(vec![Out::new(x.dtype, x.shape), Out::new(DType::Bool, x.shape)])
}

/// Dimensions given as data.
///
/// # Errors
/// [`OpError::Shape`] for negative ones, [`OpError::TooLarge`] past the address space.
pub fn dims_of(dtype: DType, dims: &[i64]) -> Result<Vec<usize>, OpError> {
    let shape: Vec<usize> = dims
        .iter()
        .map(|dim| usize::try_from(*dim).map_err(|_| OpError::Shape(format!("dimension {dim}"))))
        .collect::<Result<_, _>>()?;
    checked_len(dtype, &shape)?;
    Ok(shape)
}

/// `ConstantOfShape`.
pub fn infer_constant_of_shape(ins: Facts<'_>, value: &Tensor) -> Result<Vec<Out>, OpError> {
    Ok(vec![Out::new(value.dtype(), dims_of(value.dtype(), &ins.need_ints(0)?)?)])
}

/// The kernel of `ConstantOfShape`.
pub fn lower_constant_of_shape(value: &Tensor) -> Lowered {
    let value = value.clone();
    Lowered::new("fill", move |io| {
        let element = value.bytes();
        io.take_bytes(0).chunks_exact_mut(element.len()).for_each(|out| out.copy_from_slice(element));
        Ok(())
    })
}

/// The number of elements of a `Range` of floats.
fn range_len(start: f64, limit: f64, delta: f64) -> Result<usize, OpError> {
    let len = ((limit - start) / delta).ceil();
    if delta == 0.0 || !len.is_finite() {
        return Err(OpError::Shape(format!("a range from {start} to {limit} by {delta}")));
    }
    Ok(len.max(0.0) as usize)
}

/// The number of elements of a `Range` of integers: exact, also where `f64` does not hold them.
fn range_len_of_ints(start: i64, limit: i64, delta: i64) -> Result<usize, OpError> {
    if delta == 0 {
        return Err(OpError::Shape(format!("a range from {start} to {limit} by {delta}")));
    }
    let (distance, delta) = (i128::from(limit) - i128::from(start), i128::from(delta));
    if distance.signum() != delta.signum() {
        return Ok(0);
    }
    let len = distance.unsigned_abs().div_ceil(delta.unsigned_abs());
    usize::try_from(len).map_err(|_| OpError::Shape(format!("a range of {len} elements")))
}

/// `Range`.
pub fn infer_range(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let first = ins.need(0)?;
    let value = |i: usize| {
        let value = ins.value(i)?;
        if value.len() != 1 || value.dtype() != first.dtype {
            return Err(OpError::Shape(format!("input {i} of Range")));
        }
        Ok(value)
    };
    let [start, limit, delta] = [value(0)?, value(1)?, value(2)?];
    let len = match first.dtype {
        DType::F64 => {
            let [start, limit, delta] = [start, limit, delta].map(|x| x.values::<f64>()[0]);
            range_len(start, limit, delta)?
        }
        DType::F32 => {
            let [start, limit, delta] = [start, limit, delta].map(|x| f64::from(x.values::<f32>()[0]));
            range_len(start, limit, delta)?
        }
        dtype => {
            let int = |i: usize, x: &Tensor| x.ints().map(|x| x[0]).ok_or(OpError::DType { input: i, dtype });
            range_len_of_ints(int(0, start)?, int(1, limit)?, int(2, delta)?)?
        }
    };
    checked_len(first.dtype, &[len])?;
    Ok(vec![Out::new(first.dtype, [len])])
}

/// The kernel of `Range`.
pub fn lower_range(ins: Facts<'_>) -> Result<Lowered, OpError> {
    macro_rules! with {
        ($t:ty, $at:expr) => {
            Ok(Lowered::new("range", |io| {
                let (start, delta) = (io.input::<$t>(0)[0], io.input::<$t>(2)[0]);
                for (i, out) in io.take::<$t>(0).iter_mut().enumerate() {
                    *out = $at(start, delta, i);
                }
                Ok(())
            }))
        };
    }
    match ins.need(0)?.dtype {
        DType::F32 => with!(f32, |start, delta, i| start + i as f32 * delta),
        DType::F64 => with!(f64, |start, delta, i| start + i as f64 * delta),
        DType::I16 => with!(i16, |start: i16, delta, i| start.wrapping_add((i as i16).wrapping_mul(delta))),
        DType::I32 => with!(i32, |start: i32, delta, i| start.wrapping_add((i as i32).wrapping_mul(delta))),
        DType::I64 => with!(i64, |start: i64, delta, i| start.wrapping_add((i as i64).wrapping_mul(delta))),
        other => Err(OpError::DType { input: 0, dtype: other }),
    }
}
