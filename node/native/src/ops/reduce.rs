//! Reductions, arg-extremes, cumulative sums and `TopK`.
//!
//! Order: a sum of n elements has 16 virtual lanes; element i goes to lane i mod 16, each lane adds in
//! ascending order, and one fixed tree joins the lanes (8, 4, 2, 1 apart). The order is that of the reduced
//! elements, wherever they lie in memory, so that neither layout nor batch changes a bit.

use std::ops::Add;

use super::fact::{Facts, Out, axis_of, strides_of};
use super::kernel::Lowered;
use super::strided::Walk;
use crate::error::OpError;
use crate::math;
use crate::tensor::{DType, Elem};

/// How elements are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ONNX's operators")]
pub enum Reduce {
    Sum,
    Mean,
    Prod,
    Min,
    Max,
    L1,
    L2,
    SumSquare,
    LogSum,
    LogSumExp,
}

/// The reduced axes: input 1, else all.
pub fn axes(ins: Facts<'_>, noop: bool) -> Result<Vec<bool>, OpError> {
    let x = ins.need(0)?;
    let axes = ins.ints(1)?.unwrap_or_default();
    if axes.is_empty() {
        return Ok(vec![!noop; x.rank()]);
    }
    let mut reduced = vec![false; x.rank()];
    for axis in axes {
        reduced[axis_of(axis, x.rank())?] = true;
    }
    Ok(reduced)
}

fn reduced_shape(shape: &[usize], reduced: &[bool], keep: bool) -> Vec<usize> {
    let dims = shape.iter().zip(reduced);
    dims.filter(|(_, reduced)| keep || !**reduced)
        .map(|(dim, reduced)| if *reduced { 1 } else { *dim })
        .collect()
}

/// A reduction's output.
pub fn infer(ins: Facts<'_>, keep: bool, noop: bool) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    Ok(vec![Out::new(x.dtype, reduced_shape(x.shape, &axes(ins, noop)?, keep))])
}

/// A reduction of one type: how an element enters its lane, how lanes join, and what is done at the end.
struct Fold<T> {
    zero: T,
    enter: fn(T, T) -> T,
    join: fn(T, T) -> T,
    end: fn(T, usize) -> T,
}

/// Lanes of a reduction.
pub const LANES: usize = 16;

/// Joins lanes by the fixed tree.
pub fn tree<T: Copy>(mut lanes: [T; LANES], join: impl Fn(T, T) -> T) -> T {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// The walks of a reduction: kept dimensions, and reduced ones.
struct Plan {
    kept: Walk<1>,
    reduced: Walk<1>,
    count: usize,
}

impl Plan {
    fn new(shape: &[usize], reduced: &[bool]) -> Result<Self, OpError> {
        let strides = strides_of(shape);
        let select = |wanted: bool| {
            let axes = (0..shape.len()).filter(|i| reduced[*i] == wanted);
            axes.map(|i| (shape[i], strides[i] as isize)).unzip::<usize, isize, Vec<_>, Vec<_>>()
        };
        let (kept, reduced) = (select(false), select(true));
        let count = reduced.0.iter().product();
        Ok(Self {
            kept: Walk::new(&kept.0, [&kept.1])?,
            reduced: Walk::new(&reduced.0, [&reduced.1])?,
            count,
        })
    }

    /// Whether outputs come in runs whose elements lie side by side.
    fn is_side_by_side(&self) -> bool {
        self.kept.inner_strides() == [1] && self.kept.inner() >= SIDE_BY_SIDE
    }

    /// Calls `each` with the number of each output and the offset of its first element.
    fn outputs(&self, mut each: impl FnMut(usize, usize)) {
        let (inner, [step]) = (self.kept.inner(), self.kept.inner_strides());
        self.kept.rows(|row, [at]| {
            for i in 0..inner {
                each(row * inner + i, (at + i as isize * step) as usize);
            }
        });
    }

    /// Calls `each` with every reduced element, in order.
    fn elements(&self, start: usize, mut each: impl FnMut(usize)) {
        let (inner, [step]) = (self.reduced.inner(), self.reduced.inner_strides());
        self.reduced.rows(|_, [at]| {
            for i in 0..inner {
                each(start + (at + i as isize * step) as usize);
            }
        });
    }
}

fn folded<T: Elem>(plan: Plan, fold: Fold<T>) -> Lowered {
    Lowered::new("reduce", move |io| {
        let (x, out) = (io.input::<T>(0), io.take::<T>(0));
        if out.is_empty() {
            return Ok(());
        }
        plan.outputs(|number, start| {
            let mut lanes = [fold.zero; LANES];
            let mut lane = 0;
            if plan.count > 0 {
                plan.elements(start, |at| {
                    lanes[lane] = (fold.enter)(lanes[lane], x[at]);
                    lane = (lane + 1) % LANES;
                });
            }
            out[number] = (fold.end)(tree(lanes, fold.join), plan.count);
        });
        Ok(())
    })
}

/// Outputs whose sums are made at once, where they lie side by side.
const SIDE_BY_SIDE: usize = 32;

/// Sums of elements that lie apart, for outputs that lie side by side: each addition of [`folded`], in its
/// order, for many outputs at once.
fn summed<T: Elem + Default + Add<Output = T>>(plan: Plan, end: fn(T, usize) -> T) -> Lowered {
    Lowered::new("reduce rows", move |io| {
        let (x, out) = (io.input::<T>(0), io.take::<T>(0));
        let inner = plan.kept.inner();
        if out.is_empty() {
            return Ok(());
        }
        plan.kept.rows(|row, [at]| {
            let out = &mut out[row * inner..(row + 1) * inner];
            for (block, out) in out.chunks_mut(SIDE_BY_SIDE).enumerate() {
                let mut lanes = [[T::default(); SIDE_BY_SIDE]; LANES];
                let mut lane = 0;
                if plan.count > 0 {
                    plan.elements(at as usize + block * SIDE_BY_SIDE, |at| {
                        let sums = &mut lanes[lane];
                        // A constant length where it can be, for vectors.
                        match x.get(at..at + SIDE_BY_SIDE) {
                            Some(x) => sums.iter_mut().zip(x).for_each(|(sum, x)| *sum = *sum + *x),
                            None => sums.iter_mut().zip(&x[at..]).for_each(|(sum, x)| *sum = *sum + *x),
                        }
                        lane = (lane + 1) % LANES;
                    });
                }
                let mut half = LANES / 2;
                while half > 0 {
                    let (to, from) = lanes.split_at_mut(half);
                    for (to, from) in to.iter_mut().zip(from) {
                        to.iter_mut().zip(from).for_each(|(to, from)| *to = *to + *from);
                    }
                    half /= 2;
                }
                out.iter_mut().zip(&lanes[0]).for_each(|(out, sum)| *out = end(*sum, plan.count));
            }
        });
        Ok(())
    })
}

/// The kernel of a reduction.
pub fn lower(op: Reduce, ins: Facts<'_>, noop: bool) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let reduced = axes(ins, noop)?;
    let plan = Plan::new(x.shape, &reduced)?;
    if op == Reduce::LogSumExp {
        return match x.dtype {
            DType::F32 => Ok(log_sum_exp(plan)),
            _ => Err(OpError::DType { input: 0, dtype: x.dtype }),
        };
    }
    let refuse = Err(OpError::DType { input: 0, dtype: x.dtype });
    macro_rules! float {
        ($t:ty, $log:expr) => {{
            let (enter, end): (fn($t, $t) -> $t, fn($t, usize) -> $t) = match op {
                Reduce::Sum => (|a, x| a + x, |a, _| a),
                Reduce::Mean => (|a, x| a + x, |a, n| a / n as $t),
                Reduce::Prod => (|a, x| a * x, |a, _| a),
                Reduce::Min => (|a, x| if x < a || x.is_nan() { x } else { a }, |a, _| a),
                Reduce::Max => (|a, x| if x > a || x.is_nan() { x } else { a }, |a, _| a),
                Reduce::L1 => (|a, x| a + x.abs(), |a, _| a),
                Reduce::L2 => (|a, x| x.mul_add(x, a), |a, _| a.sqrt()),
                Reduce::SumSquare => (|a, x| x.mul_add(x, a), |a, _| a),
                Reduce::LogSum | Reduce::LogSumExp => (|a, x| a + x, |a, _| $log(a)),
            };
            let (zero, join): ($t, fn($t, $t) -> $t) = match op {
                Reduce::Prod => (1.0, |a, b| a * b),
                Reduce::Min => (<$t>::INFINITY, enter),
                Reduce::Max => (<$t>::NEG_INFINITY, enter),
                _ => (0.0, |a, b| a + b),
            };
            if matches!(op, Reduce::Sum | Reduce::Mean) && plan.is_side_by_side() {
                return Ok(summed(plan, end));
            }
            Ok(folded(plan, Fold { zero, enter, join, end }))
        }};
    }
    macro_rules! int {
        ($t:ty) => {{
            let (enter, end): (fn($t, $t) -> $t, fn($t, usize) -> $t) = match op {
                Reduce::Sum => (|a, x| a.wrapping_add(x), |a, _| a),
                Reduce::Mean => {
                    (|a, x| a.wrapping_add(x), |a, n| if n == 0 { 0 } else { (a as i128 / n as i128) as $t })
                }
                Reduce::Prod => (|a, x| a.wrapping_mul(x), |a, _| a),
                Reduce::Min => (|a, x| a.min(x), |a, _| a),
                Reduce::Max => (|a, x| a.max(x), |a, _| a),
                Reduce::L1 => (|a, x| a.wrapping_add((x as i64).wrapping_abs() as $t), |a, _| a),
                Reduce::L2 => (|a, x| a.wrapping_add(x.wrapping_mul(x)), |a, _| (a as f64).sqrt() as $t),
                Reduce::SumSquare => (|a, x| a.wrapping_add(x.wrapping_mul(x)), |a, _| a),
                Reduce::LogSum | Reduce::LogSumExp => return refuse,
            };
            let (zero, join): ($t, fn($t, $t) -> $t) = match op {
                Reduce::Prod => (1, |a, b| a.wrapping_mul(b)),
                Reduce::Min => (<$t>::MAX, |a, b| a.min(b)),
                Reduce::Max => (<$t>::MIN, |a, b| a.max(b)),
                _ => (0, |a, b| a.wrapping_add(b)),
            };
            Ok(folded(plan, Fold { zero, enter, join, end }))
        }};
    }
    match x.dtype {
        DType::F32 => float!(f32, math::log),
        DType::F64 => float!(f64, libm::log),
        // ONNX takes no sums or means of 8 bits, which would wrap at once.
        DType::I8 | DType::U8 if !matches!(op, Reduce::Min | Reduce::Max) => refuse,
        DType::I8 => int!(i8),
        DType::U8 => int!(u8),
        DType::I32 => int!(i32),
        DType::I64 => int!(i64),
        DType::U32 => int!(u32),
        DType::U64 => int!(u64),
        DType::Bool => match op {
            Reduce::Min => Ok(folded::<u8>(
                plan,
                Fold { zero: 1, enter: |a, x| a & x, join: |a, b| a & b, end: |a, _| a },
            )),
            Reduce::Max => Ok(folded::<u8>(
                plan,
                Fold { zero: 0, enter: |a, x| a | x, join: |a, b| a | b, end: |a, _| a },
            )),
            _ => refuse,
        },
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => refuse,
    }
}

fn log_sum_exp(plan: Plan) -> Lowered {
    Lowered::new("reduce", move |io| {
        let (x, out) = (io.input::<f32>(0), io.take::<f32>(0));
        if out.is_empty() {
            return Ok(());
        }
        plan.outputs(|number, start| {
            let mut max = f32::NEG_INFINITY;
            if plan.count > 0 {
                plan.elements(start, |at| max = if x[at] > max || x[at].is_nan() { x[at] } else { max });
            }
            // Infinite maxima would make NaN of their difference.
            let shift = if max.is_finite() { max } else { 0.0 };
            let mut lanes = [0.0; LANES];
            let mut lane = 0;
            if plan.count > 0 {
                plan.elements(start, |at| {
                    lanes[lane] += math::exp(x[at] - shift);
                    lane = (lane + 1) % LANES;
                });
            }
            out[number] = math::log(tree(lanes, |a, b| a + b)) + shift;
        });
        Ok(())
    })
}

/// Lengths before, on and after an axis.
pub fn around(shape: &[usize], axis: i64) -> Result<(usize, usize, usize), OpError> {
    let axis = axis_of(axis, shape.len())?;
    Ok((shape[..axis].iter().product(), shape[axis], shape[axis + 1..].iter().product()))
}

/// `ArgMax` and `ArgMin`.
pub fn infer_arg(ins: Facts<'_>, axis: i64, keep: bool) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let axis = axis_of(axis, x.rank())?;
    if x.shape[axis] == 0 {
        return Err(OpError::Shape("the extreme of an empty axis".into()));
    }
    let reduced: Vec<_> = (0..x.rank()).map(|i| i == axis).collect();
    Ok(vec![Out::new(DType::I64, reduced_shape(x.shape, &reduced, keep))])
}

/// The kernel of `ArgMax` and `ArgMin`. NaN is never an extreme, unless it comes first.
pub fn lower_arg(ins: Facts<'_>, axis: i64, max: bool, last: bool) -> Result<Lowered, OpError> {
    fn with<T: Elem>(sizes: (usize, usize, usize), max: bool, last: bool) -> Lowered {
        let (outer, len, inner) = sizes;
        Lowered::new("arg extreme", move |io| {
            let (x, out) = (io.input::<T>(0), io.take::<i64>(0));
            for o in 0..outer {
                for i in 0..inner {
                    let at = |k: usize| x[(o * len + k) * inner + i];
                    let mut best = 0;
                    for k in 1..len {
                        let (a, b) = if max { (at(k), at(best)) } else { (at(best), at(k)) };
                        if a > b || (last && a >= b) {
                            best = k;
                        }
                    }
                    out[o * inner + i] = best as i64;
                }
            }
            Ok(())
        })
    }
    let x = ins.need(0)?;
    let sizes = around(x.shape, axis)?;
    Ok(match x.dtype {
        DType::F32 => with::<f32>(sizes, max, last),
        DType::F64 => with::<f64>(sizes, max, last),
        DType::I8 => with::<i8>(sizes, max, last),
        DType::I16 => with::<i16>(sizes, max, last),
        DType::I32 => with::<i32>(sizes, max, last),
        DType::I64 => with::<i64>(sizes, max, last),
        DType::U8 => with::<u8>(sizes, max, last),
        DType::U16 => with::<u16>(sizes, max, last),
        DType::U32 => with::<u32>(sizes, max, last),
        DType::U64 => with::<u64>(sizes, max, last),
        DType::F16 | DType::BF16 | DType::Bool => return Err(OpError::DType { input: 0, dtype: x.dtype }),
    })
}

/// The kernel of `CumSum`; the axis is input 1.
pub fn lower_cum_sum(ins: Facts<'_>, exclusive: bool, reverse: bool) -> Result<Lowered, OpError> {
    fn with<T: Elem + Default>(
        (outer, len, inner): (usize, usize, usize),
        exclusive: bool,
        reverse: bool,
        add: fn(T, T) -> T,
    ) -> Lowered {
        Lowered::new("cumulative sum", move |io| {
            let (x, out) = (io.input::<T>(0), io.take::<T>(0));
            for o in 0..outer {
                for i in 0..inner {
                    let mut sum = T::default();
                    for k in 0..len {
                        let k = if reverse { len - 1 - k } else { k };
                        let at = (o * len + k) * inner + i;
                        let before = sum;
                        sum = add(sum, x[at]);
                        out[at] = if exclusive { before } else { sum };
                    }
                }
            }
            Ok(())
        })
    }
    let x = ins.need(0)?;
    let sizes = around(x.shape, ins.need_int(1)?)?;
    Ok(match x.dtype {
        DType::F32 => with::<f32>(sizes, exclusive, reverse, |a, b| a + b),
        DType::F64 => with::<f64>(sizes, exclusive, reverse, |a, b| a + b),
        DType::I32 => with::<i32>(sizes, exclusive, reverse, i32::wrapping_add),
        DType::I64 => with::<i64>(sizes, exclusive, reverse, i64::wrapping_add),
        DType::U32 => with::<u32>(sizes, exclusive, reverse, u32::wrapping_add),
        DType::U64 => with::<u64>(sizes, exclusive, reverse, u64::wrapping_add),
        _ => return Err(OpError::DType { input: 0, dtype: x.dtype }),
    })
}

/// `TopK`: k is input 1.
pub fn infer_top_k(ins: Facts<'_>, axis: i64) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let axis = axis_of(axis, x.rank())?;
    let k = ins.need_int(1)?;
    let k = usize::try_from(k).ok().filter(|k| *k <= x.shape[axis]);
    let mut shape = x.shape.to_vec();
    shape[axis] =
        k.ok_or_else(|| OpError::Shape(format!("the top {:?} of {:?}", ins.need_int(1), x.shape)))?;
    Ok(vec![Out::new(x.dtype, shape.clone()), Out::new(DType::I64, shape)])
}

/// The kernel of `TopK`. Equal elements keep their order; NaN counts as the largest. The result is always
/// sorted.
pub fn lower_top_k(ins: Facts<'_>, axis: i64, largest: bool, out: &Out) -> Result<Lowered, OpError> {
    fn with<T: Elem>((outer, len, inner): (usize, usize, usize), k: usize, largest: bool) -> Lowered {
        let run = move |io: &mut crate::exec::io::Io<'_>| {
            let x = io.input::<T>(0);
            let (values, indices, order) = (io.take::<T>(0), io.take::<i64>(1), io.take::<u64>(2));
            #[allow(clippy::eq_op, reason = "the test for NaN")]
            let nan = |v: T| v != v;
            for o in 0..outer {
                for i in 0..inner {
                    let at = |k: u64| x[(o * len + k as usize) * inner + i];
                    order.iter_mut().zip(0..).for_each(|(order, k)| *order = k);
                    // Ties go to the lower index, so an unstable sort has one result.
                    order.sort_unstable_by(|a, b| {
                        let (x, y) = (at(*a), at(*b));
                        let ascending = x.partial_cmp(&y).unwrap_or_else(|| nan(x).cmp(&nan(y)));
                        if largest { ascending.reverse() } else { ascending }.then(a.cmp(b))
                    });
                    for (rank, index) in order[..k].iter().enumerate() {
                        let to = (o * k + rank) * inner + i;
                        if let Some(value) = values.get_mut(to) {
                            *value = at(*index);
                        }
                        if let Some(out) = indices.get_mut(to) {
                            *out = *index as i64;
                        }
                    }
                }
            }
            Ok(())
        };
        Lowered::new("top k", run).with_scratch(len * size_of::<u64>())
    }
    let x = ins.need(0)?;
    let sizes = around(x.shape, axis)?;
    let k = out.shape[axis_of(axis, x.rank())?];
    Ok(match x.dtype {
        DType::F32 => with::<f32>(sizes, k, largest),
        DType::F64 => with::<f64>(sizes, k, largest),
        DType::I8 => with::<i8>(sizes, k, largest),
        DType::I16 => with::<i16>(sizes, k, largest),
        DType::I32 => with::<i32>(sizes, k, largest),
        DType::I64 => with::<i64>(sizes, k, largest),
        DType::U8 => with::<u8>(sizes, k, largest),
        DType::U16 => with::<u16>(sizes, k, largest),
        DType::U32 => with::<u32>(sizes, k, largest),
        DType::U64 => with::<u64>(sizes, k, largest),
        DType::F16 | DType::BF16 | DType::Bool => return Err(OpError::DType { input: 0, dtype: x.dtype }),
    })
}
