//! Normalisations: softmax and its like, layer, batch, instance, group, RMS, local response, p-norm.
//!
//! Statistics are sums in the fixed lane order of [`super::reduce`]; scaling is one operation per element.

use super::Target;
use super::fact::{Facts, Out, axis_of};
use super::kernel::Lowered;
use super::pool::sum;
use super::reduce::around;
use crate::error::OpError;
use crate::math;
use crate::tensor::DType;

/// What a softmax gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Softmax {
    /// Probabilities.
    Plain,
    /// Their logarithms.
    Log,
    /// One at the first maximum, zero elsewhere.
    Hard,
}

/// The lengths before, on and after what a softmax runs over. Before opset 13 that is everything from the
/// axis on.
pub fn softmax_sizes(shape: &[usize], axis: i64, flat: bool) -> Result<(usize, usize, usize), OpError> {
    if flat {
        let axis = if axis == shape.len() as i64 { shape.len() } else { axis_of(axis, shape.len().max(1))? };
        return Ok((shape[..axis].iter().product(), shape[axis..].iter().product(), 1));
    }
    around(shape, axis)
}

/// The shape of operators whose output is like their first input, `f32` only.
pub fn infer_same(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let x = ins.typed(0, &[DType::F32])?;
    Ok(vec![Out::new(x.dtype, x.shape)])
}

/// The kernel of a softmax.
pub fn lower_softmax(
    ins: Facts<'_>,
    kind: Softmax,
    axis: i64,
    flat: bool,
    target: Target<'_>,
) -> Result<Lowered, OpError> {
    let (outer, len, inner) = softmax_sizes(ins.need(0)?.shape, axis, flat)?;
    // Only ones after the axis: the rows are contiguous. Others are gathered into a row, to the same bits.
    if inner == 1 && kind != Softmax::Hard {
        let kernels = target.kernels;
        let run = move |io: &mut crate::exec::io::Io<'_>| {
            let (x, out) = (io.input::<f32>(0), io.take::<f32>(0));
            for (x, out) in x.chunks_exact(len.max(1)).zip(out.chunks_exact_mut(len.max(1))) {
                match kind {
                    Softmax::Log => kernels.log_softmax(x, out),
                    Softmax::Plain | Softmax::Hard => kernels.softmax(x, out),
                }
            }
            Ok(())
        };
        return Ok(Lowered::new("softmax", run).on(target));
    }
    let kernels = target.kernels;
    let run = move |io: &mut crate::exec::io::Io<'_>| {
        let (x, out) = (io.input::<f32>(0), io.take::<f32>(0));
        let (from, to) = io.take::<f32>(1).split_at_mut(len);
        for o in 0..outer {
            for i in 0..inner {
                let at = |k: usize| (o * len + k) * inner + i;
                from.iter_mut().enumerate().for_each(|(k, from)| *from = x[at(k)]);
                match kind {
                    Softmax::Hard => hardmax(from, to),
                    Softmax::Plain => kernels.softmax(from, to),
                    Softmax::Log => kernels.log_softmax(from, to),
                }
                to.iter().enumerate().for_each(|(k, to)| out[at(k)] = *to);
            }
        }
        Ok(())
    };
    Ok(Lowered::new("softmax", run).on(target).with_scratch(2 * len * size_of::<f32>()))
}

/// One at the first maximum, zero elsewhere.
fn hardmax(x: &[f32], out: &mut [f32]) {
    let max = x.iter().fold(f32::NEG_INFINITY, |a, &x| if x > a || x.is_nan() { x } else { a });
    out.fill(0.0);
    if let Some(at) = x.iter().position(|x| *x >= max) {
        out[at] = 1.0;
    }
}

/// `LayerNormalization`: output, mean, inverse deviation.
pub fn infer_layer(ins: Facts<'_>, axis: i64) -> Result<Vec<Out>, OpError> {
    let x = ins.typed(0, &[DType::F32])?;
    let axis = axis_of(axis, x.rank())?;
    for i in [1, 2] {
        if let Some(weight) = ins.get(i) {
            ins.typed(i, &[DType::F32])?;
            let width: usize = x.shape[axis..].iter().product();
            if weight.len() != width && weight.len() != 1 {
                return Err(OpError::Shape(format!(
                    "weights {:?} of {:?} from axis {axis}",
                    weight.shape, x.shape
                )));
            }
        }
    }
    let mut reduced = x.shape.to_vec();
    reduced[axis..].fill(1);
    Ok(vec![Out::new(x.dtype, x.shape), Out::new(x.dtype, reduced.clone()), Out::new(x.dtype, reduced)])
}

/// The kernel of `LayerNormalization`, and of `RMSNormalization`, which subtracts no mean.
pub fn lower_layer(
    ins: Facts<'_>,
    axis: i64,
    epsilon: f32,
    rms: bool,
    target: Target<'_>,
) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let axis = axis_of(axis, x.rank())?;
    let width: usize = x.shape[axis..].iter().product();
    let (scaled, biased) = (ins.get(1).is_some(), !rms && ins.get(2).is_some());
    let whole = |i: usize| ins.get(i).is_none_or(|weight| weight.len() == width);
    let kernels = target.kernels;
    if whole(1) && whole(2) && width > 1 {
        return Ok(Lowered::new("layer norm", move |io| {
            let x = io.input::<f32>(0);
            let scale = scaled.then(|| io.input::<f32>(1));
            let bias = biased.then(|| io.input::<f32>(2));
            let out = io.take::<f32>(0);
            let (means, deviations) =
                if rms { Default::default() } else { (io.take::<f32>(1), io.take::<f32>(2)) };
            for (row, (x, out)) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
                let moments = match rms {
                    true => kernels.rms_norm(x, scale, epsilon, out),
                    false => kernels.layer_norm(x, scale, bias, epsilon, out),
                };
                if let Some(out) = means.get_mut(row) {
                    *out = moments.mean;
                }
                if let Some(out) = deviations.get_mut(row) {
                    *out = moments.inverse_deviation;
                }
            }
            Ok(())
        }));
    }
    Ok(Lowered::new("layer norm", move |io| {
        let x = io.input::<f32>(0);
        let scale = if scaled { io.input::<f32>(1) } else { &[1.0] };
        let bias = if biased { io.input::<f32>(2) } else { &[] };
        let out = io.take::<f32>(0);
        let (means, deviations) =
            if rms { (&mut [][..], &mut [][..]) } else { (io.take::<f32>(1), io.take::<f32>(2)) };
        if width == 0 {
            return Ok(());
        }
        for (row, (x, out)) in x.chunks_exact(width).zip(out.chunks_exact_mut(width)).enumerate() {
            let mean = if rms { 0.0 } else { sum(x.iter().copied()) / width as f32 };
            let variance = sum(x.iter().map(|x| (x - mean) * (x - mean))) / width as f32;
            let inverse = 1.0 / (variance + epsilon).sqrt();
            for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
                let value = (x - mean) * inverse * scale[i % scale.len()];
                *out = if bias.is_empty() { value } else { value + bias[i % bias.len()] };
            }
            if let Some(out) = means.get_mut(row) {
                *out = mean;
            }
            if let Some(out) = deviations.get_mut(row) {
                *out = inverse;
            }
        }
        Ok(())
    }))
}

/// Images, channels and elements per channel of `[N, C, ...]`.
fn channels(shape: &[usize]) -> Result<(usize, usize, usize), OpError> {
    match shape {
        [] => Err(OpError::Shape("a scalar has no channels".into())),
        [n] => Ok((*n, 1, 1)),
        [n, c, rest @ ..] => Ok((*n, *c, rest.iter().product())),
    }
}

/// `BatchNormalization`: output, and in training the running mean and variance.
pub fn infer_batch(ins: Facts<'_>, training: bool) -> Result<Vec<Out>, OpError> {
    let x = ins.typed(0, &[DType::F32])?;
    let (_, c, _) = channels(x.shape)?;
    for i in 1..5 {
        if ins.typed(i, &[DType::F32])?.shape != [c] {
            return Err(OpError::Shape(format!(
                "input {i} has shape {:?}, [{c}] is taken",
                ins.need(i)?.shape
            )));
        }
    }
    let mut outs = vec![Out::new(x.dtype, x.shape)];
    if training {
        outs.extend([Out::new(x.dtype, [c]), Out::new(x.dtype, [c])]);
    }
    Ok(outs)
}

/// The kernel of `BatchNormalization`.
pub fn lower_batch(ins: Facts<'_>, epsilon: f32, momentum: f32, training: bool) -> Result<Lowered, OpError> {
    let (n, c, area) = channels(ins.need(0)?.shape)?;
    Ok(Lowered::new("batch norm", move |io| {
        let x = io.input::<f32>(0);
        let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|i| io.input::<f32>(i));
        let out = io.take::<f32>(0);
        let (means, variances) =
            if training { (io.take::<f32>(1), io.take::<f32>(2)) } else { Default::default() };
        for c_at in 0..c {
            let plane = |image: usize| (image * c + c_at) * area..(image * c + c_at + 1) * area;
            let (mut m, mut v) = (mean[c_at], variance[c_at]);
            if training {
                let values = || (0..n).flat_map(|image| &x[plane(image)]).copied();
                let count = (n * area) as f32;
                m = sum(values()) / count;
                v = sum(values().map(|x| (x - m) * (x - m))) / count;
                if let Some(out) = means.get_mut(c_at) {
                    *out = mean[c_at] * momentum + m * (1.0 - momentum);
                }
                if let Some(out) = variances.get_mut(c_at) {
                    *out = variance[c_at] * momentum + v * (1.0 - momentum);
                }
            }
            let factor = scale[c_at] / (v + epsilon).sqrt();
            for image in 0..n {
                for (out, x) in out[plane(image)].iter_mut().zip(&x[plane(image)]) {
                    *out = (x - m).mul_add(factor, bias[c_at]);
                }
            }
        }
        Ok(())
    }))
}

/// The kernel of `GroupNormalization`; instance normalisation is one group per channel. Before opset 21 scale
/// and bias are per group.
pub fn lower_group(ins: Facts<'_>, groups: Option<usize>, epsilon: f32) -> Result<Lowered, OpError> {
    let (n, c, area) = channels(ins.need(0)?.shape)?;
    let groups = groups.unwrap_or(c);
    if groups == 0 || c % groups != 0 {
        return Err(OpError::Shape(format!("{groups} groups of {c} channels")));
    }
    let width = c / groups;
    for i in [1, 2] {
        let weight = ins.typed(i, &[DType::F32])?;
        if weight.shape != [c] && weight.shape != [groups] {
            return Err(OpError::Shape(format!("input {i} has shape {:?}, {c} channels", weight.shape)));
        }
    }
    Ok(Lowered::new("group norm", move |io| {
        let (x, scale, bias, out) =
            (io.input::<f32>(0), io.input::<f32>(1), io.input::<f32>(2), io.take::<f32>(0));
        for g in 0..n * groups {
            let range = g * width * area..(g + 1) * width * area;
            let (x, out) = (&x[range.clone()], &mut out[range]);
            let count = x.len() as f32;
            let mean = sum(x.iter().copied()) / count;
            let variance = sum(x.iter().map(|x| (x - mean) * (x - mean))) / count;
            let inverse = 1.0 / (variance + epsilon).sqrt();
            for (i, (out, x)) in out.iter_mut().zip(x).enumerate() {
                let channel = g % groups * width + i / area;
                let weight =
                    |list: &[f32]| if list.len() == c { list[channel] } else { list[channel / width] };
                *out = ((x - mean) * inverse).mul_add(weight(scale), weight(bias));
            }
        }
        Ok(())
    }))
}

/// The kernel of `LRN`.
pub fn lower_lrn(ins: Facts<'_>, alpha: f32, beta: f32, bias: f32, size: usize) -> Result<Lowered, OpError> {
    let (n, c, area) = channels(ins.need(0)?.shape)?;
    // A window wider than all channels on both sides sees them all.
    let divisor = size as f32;
    let size = size.min(2 * c + 1);
    if size == 0 {
        return Err(OpError::Shape("LRN over no channels".into()));
    }
    Ok(Lowered::new("local response norm", move |io| {
        let (x, out) = (io.input::<f32>(0), io.take::<f32>(0));
        for image in 0..n {
            for channel in 0..c {
                let window = channel.saturating_sub((size - 1) / 2)..(channel + size / 2 + 1).min(c);
                for i in 0..area {
                    let at = |channel: usize| (image * c + channel) * area + i;
                    let square = window
                        .clone()
                        .fold(0.0_f32, |sum, channel| x[at(channel)].mul_add(x[at(channel)], sum));
                    out[at(channel)] = x[at(channel)] / math::pow(bias + alpha / divisor * square, beta);
                }
            }
        }
        Ok(())
    }))
}

/// The kernel of `LpNormalization` with p = 1 or 2.
pub fn lower_lp(ins: Facts<'_>, axis: i64, p: i64) -> Result<Lowered, OpError> {
    let (outer, len, inner) = around(ins.need(0)?.shape, axis)?;
    if !(1..=2).contains(&p) {
        return Err(OpError::Unsupported(format!("LpNormalization with p = {p}")));
    }
    Ok(Lowered::new("lp norm", move |io| {
        let (x, out) = (io.input::<f32>(0), io.take::<f32>(0));
        for o in 0..outer {
            for i in 0..inner {
                let at = |k: usize| (o * len + k) * inner + i;
                let values = (0..len).map(|k| x[at(k)]);
                let norm = if p == 1 { sum(values.map(f32::abs)) } else { sum(values.map(|x| x * x)).sqrt() };
                (0..len).for_each(|k| out[at(k)] = if norm == 0.0 { 0.0 } else { x[at(k)] / norm });
            }
        }
        Ok(())
    }))
}

/// The kernel of `MeanVarianceNormalization` over the given axes of `[N, C, ...]`, as one statistic per kept
/// index.
pub fn lower_mean_variance(ins: Facts<'_>, axes: &[i64]) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let mut reduced = vec![false; x.rank()];
    for axis in axes {
        reduced[axis_of(*axis, x.rank())?] = true;
    }
    let strides = super::fact::strides_of(x.shape);
    let shape = x.shape.to_vec();
    let groups: usize = shape.iter().zip(&reduced).filter(|(_, r)| !**r).map(|(dim, _)| dim).product();
    let len = x.len();
    Ok(Lowered::new("mean variance norm", move |io| {
        let (x, out) = (io.input::<f32>(0), io.take::<f32>(0));
        let group = |i: usize| {
            let kept = (0..shape.len()).filter(|d| !reduced[*d]);
            kept.fold(0, |at, d| at * shape[d] + i / strides[d] % shape[d])
        };
        for g in 0..groups {
            let members = || (0..len).filter(|i| group(*i) == g);
            let count = (len / groups) as f32;
            let mean = sum(members().map(|i| x[i])) / count;
            let deviation = (sum(members().map(|i| (x[i] - mean) * (x[i] - mean))) / count).sqrt();
            members().for_each(|i| out[i] = (x[i] - mean) / (deviation + 1e-9));
        }
        Ok(())
    }))
}
