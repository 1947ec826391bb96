//! Operators that read or write by indices: gather, scatter, one-hot, non-zero, compress, eye.

use roost_kernels::Weights;

use super::Target;
use super::fact::{Fact, Facts, Out, axis_of, broadcast, checked_len, strides_of};
use super::kernel::Lowered;
use super::view::dims_of;
use crate::error::OpError;
use crate::exec::io::wrap_index;
use crate::plan::floats::Floats;
use crate::plan::pack::Layout;
use crate::tensor::{DType, Elem, Tensor};

const INDEX: [DType; 2] = [DType::I64, DType::I32];

/// `Gather`.
pub fn infer_gather(ins: Facts<'_>, axis: i64) -> Result<Vec<Out>, OpError> {
    let (x, index) = (ins.need(0)?, ins.typed(1, &INDEX)?);
    let axis = axis_of(axis, x.rank())?;
    let shape: Vec<_> = [&x.shape[..axis], index.shape, &x.shape[axis + 1..]].concat();
    checked_len(x.dtype, &shape)?;
    Ok(vec![Out::new(x.dtype, shape)])
}

/// The kernel of `Gather`.
pub fn lower_gather(ins: Facts<'_>, axis: i64, target: Target<'_>) -> Result<Lowered, OpError> {
    let (x, index) = (ins.need(0)?, ins.need(1)?);
    let axis = axis_of(axis, x.rank())?;
    if let Some(table) = x.value.filter(|_| x.pinned && x.dtype == DType::F32)
        && let Some(gather) = lower_gather_halves(table, axis, index, target)
    {
        return Ok(gather);
    }
    let (len, run) = (x.shape[axis], x.shape[axis + 1..].iter().product::<usize>() * x.dtype.bytes());
    let (count, dtype) = (index.len(), index.dtype);
    Ok(Lowered::new("gather", move |io| {
        let (source, indices) = (io.bytes(0), io.ints(1, dtype)?);
        let target = io.take_bytes(0);
        if target.is_empty() {
            return Ok(());
        }
        for (outer, target) in target.chunks_exact_mut(count * run).enumerate() {
            for (i, target) in target.chunks_exact_mut(run).enumerate() {
                let from = (outer * len + indices.index(i, len)?) * run;
                target.copy_from_slice(&source[from..from + run]);
            }
        }
        Ok(())
    }))
}

/// The kernel of a `Gather` from a table that half precision holds: it is kept so, and what is gathered is
/// widened.
fn lower_gather_halves(table: &Tensor, axis: usize, index: Fact<'_>, target: Target<'_>) -> Option<Lowered> {
    /// A shorter run is copied in less time than it takes to begin to widen it.
    const RUN_MIN: usize = 16;
    let (len, run) = (table.shape()[axis], table.shape()[axis + 1..].iter().product::<usize>());
    if run < RUN_MIN {
        return None;
    }
    let layout = Layout { kernel: "table", numbers: Vec::new() };
    let table = Floats::as_halves(target, table, layout)?;
    let (count, dtype) = (index.len(), index.dtype);
    let (kernels, half) = (target.kernels, table.half());
    let gather = Lowered::new("gather", move |io| {
        let (indices, out) = (io.ints(1, dtype)?, io.take::<f32>(0));
        let Weights::Half(half, table) = table.weights() else { unreachable!("as_halves gave it") };
        if out.is_empty() {
            return Ok(());
        }
        for (outer, out) in out.chunks_exact_mut(count * run).enumerate() {
            for (i, out) in out.chunks_exact_mut(run).enumerate() {
                let from = (outer * len + indices.index(i, len)?) * run;
                kernels.widen(half, &table[from..from + run], out);
            }
        }
        Ok(())
    });
    Some(gather.on(target).of_weights(half).without_reading(&[0]))
}

/// `GatherElements`.
pub fn infer_gather_elements(ins: Facts<'_>, axis: i64) -> Result<Vec<Out>, OpError> {
    let (x, index) = (ins.need(0)?, ins.typed(1, &INDEX)?);
    let axis = axis_of(axis, x.rank())?;
    let fits = index.rank() == x.rank() && (0..x.rank()).all(|d| d == axis || index.shape[d] <= x.shape[d]);
    if !fits {
        return Err(OpError::Shape(format!("indices {:?} into {:?}", index.shape, x.shape)));
    }
    Ok(vec![Out::new(x.dtype, index.shape)])
}

/// Calls `visit` with the position of each index and the offset of its element, in units of elements.
fn elements(
    index: &[usize],
    strides: &[usize],
    axis: usize,
    mut visit: impl FnMut(usize, usize) -> Result<(), OpError>,
) -> Result<(), OpError> {
    let all: usize = index.iter().product();
    for i in 0..all {
        let (mut rest, mut offset) = (i, 0);
        for d in (0..index.len()).rev() {
            if d != axis {
                offset += rest % index[d] * strides[d];
            }
            rest /= index[d];
        }
        visit(i, offset)?;
    }
    Ok(())
}

/// The kernel of `GatherElements`.
pub fn lower_gather_elements(ins: Facts<'_>, axis: i64) -> Result<Lowered, OpError> {
    let (x, index) = (ins.need(0)?, ins.need(1)?);
    let axis = axis_of(axis, x.rank())?;
    let (shape, strides, len) = (index.shape.to_vec(), strides_of(x.shape), x.shape[axis]);
    let (bytes, dtype) = (x.dtype.bytes(), index.dtype);
    Ok(Lowered::new("gather elements", move |io| {
        let (source, indices, target) = (io.bytes(0), io.ints(1, dtype)?, io.take_bytes(0));
        elements(&shape, &strides, axis, |i, offset| {
            let from = (offset + indices.index(i, len)? * strides[axis]) * bytes;
            target[i * bytes..(i + 1) * bytes].copy_from_slice(&source[from..from + bytes]);
            Ok(())
        })
    }))
}

/// The parts of a gather or scatter by tuples: batches, tuple length, and the run that a tuple names.
struct Tuples {
    batches: usize,
    tuples: usize,
    width: usize,
    dims: Vec<usize>,
    strides: Vec<usize>,
    block: usize,
    run: usize,
}

impl Tuples {
    fn new(x: &[usize], index: &[usize], batch_dims: usize, bytes: usize) -> Result<Self, OpError> {
        let refuse =
            || OpError::Shape(format!("index tuples {index:?} into {x:?}, {batch_dims} batch dimensions"));
        let width = *index.last().ok_or_else(refuse)?;
        let fits = batch_dims < index.len()
            && batch_dims <= x.len()
            && x[..batch_dims] == index[..batch_dims]
            && width <= x.len() - batch_dims;
        if !fits {
            return Err(refuse());
        }
        let batches = x[..batch_dims].iter().product();
        let dims = x[batch_dims..batch_dims + width].to_vec();
        let run = x[batch_dims + width..].iter().product::<usize>() * bytes;
        let strides = strides_of(&dims).iter().map(|stride| stride * run).collect();
        let tuples = index[batch_dims..index.len() - 1].iter().product();
        let block = dims.iter().product::<usize>() * run;
        Ok(Self { batches, tuples, width, dims, strides, block, run })
    }

    /// Calls `visit` with the number of each tuple and the bytes that it names start at.
    fn each(
        &self,
        indices: &[i64],
        mut visit: impl FnMut(usize, usize) -> Result<(), OpError>,
    ) -> Result<(), OpError> {
        for i in 0..self.batches * self.tuples {
            let tuple = &indices[i * self.width..(i + 1) * self.width];
            let mut at = i / self.tuples.max(1) * self.block;
            for ((index, len), stride) in tuple.iter().zip(&self.dims).zip(&self.strides) {
                at += wrap_index(*index, *len)? * stride;
            }
            visit(i, at)?;
        }
        Ok(())
    }
}

/// `GatherND`.
pub fn infer_gather_nd(ins: Facts<'_>, batch_dims: usize) -> Result<Vec<Out>, OpError> {
    let (x, index) = (ins.need(0)?, ins.typed(1, &[DType::I64])?);
    let tuples = Tuples::new(x.shape, index.shape, batch_dims, 1)?;
    let lead = &index.shape[..index.rank() - 1];
    Ok(vec![Out::new(x.dtype, [lead, &x.shape[batch_dims + tuples.width..]].concat())])
}

/// The kernel of `GatherND`.
pub fn lower_gather_nd(ins: Facts<'_>, batch_dims: usize) -> Result<Lowered, OpError> {
    let (x, index) = (ins.need(0)?, ins.need(1)?);
    let tuples = Tuples::new(x.shape, index.shape, batch_dims, x.dtype.bytes())?;
    Ok(Lowered::new("gather nd", move |io| {
        let (source, target) = (io.bytes(0), io.take_bytes(0));
        tuples.each(io.input::<i64>(1), |i, at| {
            target[i * tuples.run..(i + 1) * tuples.run].copy_from_slice(&source[at..at + tuples.run]);
            Ok(())
        })
    }))
}

/// What a scatter does where an element is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ONNX's")]
pub enum Reduction {
    Replace,
    Add,
    Mul,
    Min,
    Max,
}

type Merge<T> = fn(&mut T, T);

/// Runs `$body` with `$merge` for the type; `bool` and half types only replace.
macro_rules! with_merge {
    ($dtype:expr, $reduction:expr, |$t:ident, $merge:ident| $body:expr) => {{
        macro_rules! float {
            ($f:ty) => {{
                type $t = $f;
                let $merge: Merge<$t> = match $reduction {
                    Reduction::Replace => |a, b| *a = b,
                    Reduction::Add => |a, b| *a += b,
                    Reduction::Mul => |a, b| *a *= b,
                    Reduction::Min => |a, b| {
                        if b < *a || b.is_nan() {
                            *a = b
                        }
                    },
                    Reduction::Max => |a, b| {
                        if b > *a || b.is_nan() {
                            *a = b
                        }
                    },
                };
                Ok($body)
            }};
        }
        macro_rules! int {
            ($f:ty) => {{
                type $t = $f;
                let $merge: Merge<$t> = match $reduction {
                    Reduction::Replace => |a, b| *a = b,
                    Reduction::Add => |a, b| *a = a.wrapping_add(b),
                    Reduction::Mul => |a, b| *a = a.wrapping_mul(b),
                    Reduction::Min => |a, b| *a = b.min(*a),
                    Reduction::Max => |a, b| *a = b.max(*a),
                };
                Ok($body)
            }};
        }
        match $dtype {
            DType::F32 => float!(f32),
            DType::F64 => float!(f64),
            DType::I8 => int!(i8),
            DType::I16 => int!(i16),
            DType::I32 => int!(i32),
            DType::I64 => int!(i64),
            DType::U8 => int!(u8),
            DType::U16 => int!(u16),
            DType::U32 => int!(u32),
            DType::U64 => int!(u64),
            DType::Bool if $reduction == Reduction::Replace => int!(u8),
            DType::F16 | DType::BF16 | DType::Bool => Err(OpError::DType { input: 0, dtype: $dtype }),
        }
    }};
}

/// `ScatterElements`.
pub fn infer_scatter_elements(ins: Facts<'_>, axis: i64) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let index = ins.typed(1, &INDEX)?;
    let updates = ins.typed(2, &[x.dtype])?;
    let axis = axis_of(axis, x.rank())?;
    let fits = index.rank() == x.rank()
        && index.shape == updates.shape
        && (0..x.rank()).all(|d| d == axis || index.shape[d] <= x.shape[d]);
    if !fits {
        return Err(OpError::Shape(format!(
            "scatter of {:?} by {:?} into {:?}",
            updates.shape, index.shape, x.shape
        )));
    }
    Ok(vec![Out::new(x.dtype, x.shape)])
}

/// The kernel of `ScatterElements`.
pub fn lower_scatter_elements(ins: Facts<'_>, axis: i64, reduction: Reduction) -> Result<Lowered, OpError> {
    let (x, index) = (ins.need(0)?, ins.need(1)?);
    let axis = axis_of(axis, x.rank())?;
    let (shape, strides, len, dtype) =
        (index.shape.to_vec(), strides_of(x.shape), x.shape[axis], index.dtype);
    with_merge!(x.dtype, reduction, |T, merge| Lowered::new("scatter elements", move |io| {
        let (indices, updates, target) = (io.ints(1, dtype)?, io.input::<T>(2), io.take::<T>(0));
        target.copy_from_slice(io.input::<T>(0));
        elements(&shape, &strides, axis, |i, offset| {
            merge(&mut target[offset + indices.index(i, len)? * strides[axis]], updates[i]);
            Ok(())
        })
    }))
}

/// `ScatterND`.
pub fn infer_scatter_nd(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let (x, index) = (ins.need(0)?, ins.typed(1, &[DType::I64])?);
    let updates = ins.typed(2, &[x.dtype])?;
    let tuples = Tuples::new(x.shape, index.shape, 0, 1)?;
    let wanted = [&index.shape[..index.rank() - 1], &x.shape[tuples.width..]].concat();
    if updates.shape != wanted {
        return Err(OpError::Shape(format!("updates {:?}, {wanted:?} are taken", updates.shape)));
    }
    Ok(vec![Out::new(x.dtype, x.shape)])
}

/// The kernel of `ScatterND`.
pub fn lower_scatter_nd(ins: Facts<'_>, reduction: Reduction) -> Result<Lowered, OpError> {
    let (x, index) = (ins.need(0)?, ins.need(1)?);
    let tuples = Tuples::new(x.shape, index.shape, 0, 1)?;
    with_merge!(x.dtype, reduction, |T, merge| Lowered::new("scatter nd", move |io| {
        let (updates, target) = (io.input::<T>(2), io.take::<T>(0));
        target.copy_from_slice(io.input::<T>(0));
        tuples.each(io.input::<i64>(1), |i, at| {
            let updates = &updates[i * tuples.run..(i + 1) * tuples.run];
            target[at..at + tuples.run].iter_mut().zip(updates).for_each(|(out, update)| merge(out, *update));
            Ok(())
        })
    }))
}

/// `OneHot`: indices, depth, (off, on).
pub fn infer_one_hot(ins: Facts<'_>, axis: i64) -> Result<Vec<Out>, OpError> {
    let (index, values) = (ins.need(0)?, ins.need(2)?);
    let depth = ins.value(1)?;
    let depth = match depth.ints() {
        Some(depth) => depth,
        None => depth.floats().iter().map(|depth| *depth as i64).collect(),
    };
    let [depth] = depth[..] else { return Err(OpError::Shape("the depth of OneHot is one number".into())) };
    let axis = axis_of(axis, index.rank() + 1)?;
    if values.shape != [2] {
        return Err(OpError::Shape(format!("the values of OneHot have shape {:?}", values.shape)));
    }
    let mut shape = index.shape.to_vec();
    shape.insert(axis, dims_of(values.dtype, &[depth])?[0]);
    checked_len(values.dtype, &shape)?;
    Ok(vec![Out::new(values.dtype, shape)])
}

/// The kernel of `OneHot`. An index outside the depth gives a row of off values.
pub fn lower_one_hot(ins: Facts<'_>, axis: i64, out: &Out) -> Result<Lowered, OpError> {
    let index = ins.need(0)?;
    let axis = axis_of(axis, out.shape.len())?;
    let (depth, inner) = (out.shape[axis], out.shape[axis + 1..].iter().product::<usize>());
    let (bytes, dtype) = (out.dtype.bytes(), index.dtype);
    if !matches!(dtype, DType::I64 | DType::I32 | DType::F32 | DType::U8) {
        return Err(OpError::DType { input: 0, dtype });
    }
    Ok(Lowered::new("one hot", move |io| {
        let indices = io.bytes(0);
        let at = |i: usize| match dtype {
            DType::I64 => bytemuck::cast_slice::<_, i64>(indices)[i],
            DType::I32 => i64::from(bytemuck::cast_slice::<_, i32>(indices)[i]),
            DType::U8 => i64::from(indices[i]),
            _ => bytemuck::cast_slice::<_, f32>(indices)[i] as i64,
        };
        let (off, on) = io.bytes(2).split_at(bytes);
        let count = indices.len() / dtype.bytes();
        let target = io.take_bytes(0);
        target.chunks_exact_mut(bytes).for_each(|out| out.copy_from_slice(off));
        for i in 0..count {
            if let Ok(hot) = wrap_index(at(i), depth) {
                let element = (i / inner * depth + hot) * inner + i % inner;
                target[element * bytes..(element + 1) * bytes].copy_from_slice(on);
            }
        }
        Ok(())
    }))
}

/// Whether the element at each position is not zero.
fn set(value: &Tensor) -> Vec<bool> {
    match value.dtype() {
        // Negative zero is zero.
        DType::F32 => value.values::<f32>().iter().map(|v| *v != 0.0).collect(),
        DType::F64 => value.values::<f64>().iter().map(|v| *v != 0.0).collect(),
        dtype => {
            value.bytes().chunks_exact(dtype.bytes()).map(|bytes| bytes.iter().any(|b| *b != 0)).collect()
        }
    }
}

/// `NonZero`: the output's length is data.
pub fn infer_non_zero(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let count = set(ins.value(0)?).iter().filter(|set| **set).count();
    Ok(vec![Out::new(DType::I64, [ins.need(0)?.rank(), count])])
}

/// The kernel of `NonZero`; its input is known when it is made.
pub fn lower_non_zero(ins: Facts<'_>) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let found: Vec<usize> =
        set(ins.value(0)?).iter().enumerate().filter(|(_, set)| **set).map(|(i, _)| i).collect();
    let mut indices = Vec::with_capacity(found.len() * x.rank());
    for (stride, dim) in strides_of(x.shape).iter().zip(x.shape) {
        indices.extend(found.iter().map(|i| (i / stride % dim) as i64));
    }
    Ok(super::view::constant(Tensor::of(&[x.rank(), found.len()], &indices)))
}

/// `Compress`: the elements of an axis whose condition holds.
pub fn infer_compress(ins: Facts<'_>, axis: Option<i64>) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let kept = set(ins.value(1)?).iter().filter(|set| **set).count();
    let mut shape = match axis {
        None => vec![x.len()],
        Some(_) => x.shape.to_vec(),
    };
    let axis = axis_of(axis.unwrap_or(0), shape.len())?;
    if ins.need(1)?.len() > shape[axis] {
        return Err(OpError::Shape("the condition is longer than the axis".into()));
    }
    shape[axis] = kept;
    Ok(vec![Out::new(x.dtype, shape)])
}

/// The kernel of `Compress`.
pub fn lower_compress(ins: Facts<'_>, axis: Option<i64>) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let flat = [x.len()];
    let shape = if axis.is_some() { x.shape } else { &flat };
    let axis = axis_of(axis.unwrap_or(0), shape.len())?;
    let kept: Vec<usize> =
        set(ins.value(1)?).iter().enumerate().filter(|(_, set)| **set).map(|(i, _)| i).collect();
    let (len, run) = (shape[axis], shape[axis + 1..].iter().product::<usize>() * x.dtype.bytes());
    Ok(Lowered::new("compress", move |io| {
        let (source, target) = (io.bytes(0), io.take_bytes(0));
        if target.is_empty() {
            return Ok(());
        }
        for (i, target) in target.chunks_exact_mut(run).enumerate() {
            let from = (i / kept.len() * len + kept[i % kept.len()]) * run;
            target.copy_from_slice(&source[from..from + run]);
        }
        Ok(())
    }))
}

/// `EyeLike`: ones on a diagonal.
pub fn infer_eye(ins: Facts<'_>, dtype: Option<DType>) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    if x.rank() != 2 {
        return Err(OpError::Shape(format!("EyeLike of {:?}", x.shape)));
    }
    Ok(vec![Out::new(dtype.unwrap_or(x.dtype), x.shape)])
}

/// The kernel of `EyeLike`.
pub fn lower_eye(k: i64, out: &Out) -> Result<Lowered, OpError> {
    fn eye<T: Elem + Default>(k: i64, columns: usize, one: T) -> Lowered {
        Lowered::new("eye", move |io| {
            for (i, out) in io.take::<T>(0).iter_mut().enumerate() {
                let on = (i / columns) as i128 + i128::from(k) == (i % columns) as i128;
                *out = if on { one } else { T::default() };
            }
            Ok(())
        })
    }
    let columns = out.shape[1].max(1);
    Ok(match out.dtype {
        DType::F32 => eye(k, columns, 1_f32),
        DType::F64 => eye(k, columns, 1_f64),
        DType::I8 | DType::U8 | DType::Bool => eye(k, columns, 1_u8),
        DType::I16 | DType::U16 => eye(k, columns, 1_u16),
        DType::I32 | DType::U32 => eye(k, columns, 1_u32),
        DType::I64 | DType::U64 => eye(k, columns, 1_u64),
        DType::F16 | DType::BF16 => return Err(OpError::DType { input: 0, dtype: out.dtype }),
    })
}

/// The shape of `Trilu` and others whose output is as the input.
pub fn infer_same(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    Ok(vec![Out::new(x.dtype, x.shape)])
}

/// The shape of operators over several inputs that broadcast.
pub fn infer_broadcast(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let first = ins.need(0)?;
    let mut shape = first.shape.to_vec();
    for i in 1..ins.count() {
        shape = broadcast(&shape, ins.typed(i, &[first.dtype])?.shape)?;
    }
    Ok(vec![Out::new(first.dtype, shape)])
}
