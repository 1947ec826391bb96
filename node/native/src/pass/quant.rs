//! Integers where the model means integers: dequantise, operator, quantise becomes an integer operator where
//! results agree within one step; everything else stays a float island.
//!
//! - A convolution between quantised values becomes [`Op::QConv`]; so does `QLinearConv` with constant
//!   scales.
//! - Quantising what was dequantised with the same step gives the bytes back.
//! - What only moves elements, or takes maxima, moves the bytes.
//! - A quantise goes before what only moves elements, so that it meets what it can join; before a maximum
//!   too, of values among which there is no NaN.
//! - Another step, or a ReLU, is a table over bytes: both roundings stay, so results are those of the float
//!   form.
//!
//! Invariant: what is refused when shapes are bound stays refused. A dequantise checks that its bytes are of
//! its zero point's type; so it goes only where what takes its place checks that too, or where the type is
//! known here.

use crate::graph::ir::{Graph, Node, ValueId};
use crate::graph::linked::Linked;
use crate::ops::Op;
use crate::ops::elementwise::{Binary, Unary};
use crate::ops::pool::Pool;
use crate::ops::qimage::{QConv, Step, Table};
use crate::tensor::{DType, Tensor};

/// Makes integer operators.
pub fn integers(graph: &mut Graph) {
    for at in 0..graph.nodes.len() {
        qlinear_conv(graph, at);
    }
    let bounds = bounds(graph);
    let graph = &mut Linked::new(graph);
    // Each rule looks at a quantise and what is before it; rules feed each other in graph order.
    for at in 0..graph.nodes.len() {
        let mut next = matches!(graph.nodes[at].op, Op::Quantize { .. }).then_some(at);
        while let Some(at) = next {
            next = quantize(graph, &bounds, at);
        }
    }
}

/// How far each value may be from nought, at most, as real numbers are; `None` where it may be NaN, as far as
/// is seen here.
fn bounds(graph: &Graph) -> Vec<Option<f64>> {
    // An integer of 32 bits, which the distance of a quantised one from its zero point is too.
    const INTEGER_MAX: f64 = (1_u64 << 31) as f64;
    // Finite products and sums are NaN only where infinities meet: what may come near them is not followed.
    let finite = |most: f64| (most < f64::from(f32::MAX) / 2.0).then_some(most);
    let makers = graph.producers();
    let largest = |tensor: &Tensor| {
        let floats = (tensor.dtype() == DType::F32).then(|| tensor.values::<f32>())?;
        let mut sizes = floats.iter().map(|value| f64::from(value.abs()));
        sizes.try_fold(0.0, |most: f64, size| size.is_finite().then(|| most.max(size)))
    };
    let mut bounds = vec![None; graph.values.len()];
    for node in &graph.nodes {
        let of = |i: usize| {
            let id = node.input(i)?;
            graph.data(id).map_or(bounds[id.index()], largest)
        };
        let bound = match &node.op {
            Op::Dequantize { .. } => {
                graph.input_data(node, 1).and_then(largest).map(|most| most * INTEGER_MAX)
            }
            Op::Unary(Unary::Relu)
            | Op::Reshape { .. }
            | Op::Flatten { .. }
            | Op::Squeeze
            | Op::Unsqueeze
            | Op::Transpose { .. }
            | Op::Identity => of(0),
            // A window beyond the image has no element: its maximum is infinite.
            Op::Pool { pool: Pool::Max { .. }, .. } => of(0).map(|_| f64::INFINITY),
            Op::Concat { .. } => {
                let parts = (0..node.inputs.len()).map(of);
                parts.reduce(|all, part| Some(all?.max(part?))).flatten()
            }
            Op::ConvInteger { .. } | Op::MatMulInteger => Some(INTEGER_MAX),
            Op::Cast { to: DType::F32 } => of(0),
            Op::Binary(Binary::Mul) => (|| finite(of(0)? * of(1)?))(),
            Op::Binary(Binary::Add | Binary::Sub) => (|| finite(of(0)? + of(1)?))(),
            Op::Conv { .. } => {
                let stored = node.input(1).and_then(|id| {
                    let made = makers[id.index()].map(|at| &graph.nodes[at]);
                    graph.data(id).or_else(|| graph.input_data(made?, 0))
                });
                let products = stored.map(|weights| weights.len() as f64);
                let bias = if node.input(2).is_some() { of(2) } else { Some(0.0) };
                (|| finite(of(0)? * of(1)? * products? + bias?))()
            }
            _ => None,
        };
        if let Some(Some(id)) = node.outputs.first() {
            bounds[id.index()] = bound;
        }
    }
    bounds
}

/// Moves and maxima of bytes that are gone through to find their type. There are one or two between operators
/// that say it.
const MOVES_MAX: usize = 64;

/// The type of quantised values; `None` where it is only known when shapes are bound.
fn bytes_type(graph: &Linked<'_>, mut id: ValueId) -> Option<DType> {
    for _ in 0..MOVES_MAX {
        if let Some(tensor) = graph.data(id) {
            return Some(tensor.dtype());
        }
        let node = &graph.nodes[graph.maker(id)?];
        match &node.op {
            Op::Quantize { to, .. } if node.input(2).is_none() => return Some(to.unwrap_or(DType::U8)),
            Op::Quantize { .. } => return graph.input_data(node, 2).map(Tensor::dtype),
            Op::QLinearConv { .. } | Op::QLinearMatMul => {
                return graph.input_data(node, 7).map(Tensor::dtype);
            }
            Op::QConv(conv) => return Some(conv.to),
            Op::Table(table) => return Some(table.to),
            Op::Pool { pool: Pool::Max { .. }, .. }
            | Op::Reshape { .. }
            | Op::Flatten { .. }
            | Op::Squeeze
            | Op::Unsqueeze
            | Op::Transpose { .. }
            | Op::Identity
            | Op::Concat { .. }
                if node.outputs.first() == Some(&Some(id)) =>
            {
                id = node.input(0)?;
            }
            _ => return None,
        }
    }
    None
}

/// The step of a quantise or dequantise.
fn step(graph: &Linked<'_>, node: &Node) -> Option<Step> {
    let default = match &node.op {
        Op::Quantize { scales, to } if scales.block == 0 => to.unwrap_or(DType::U8),
        Op::Dequantize { scales } if scales.block == 0 => DType::U8,
        _ => return None,
    };
    // A dequantise without a zero point has its input's type, which is not known here.
    let zero = graph.input_data(node, 2);
    let absent = node.inputs.get(2).copied().flatten().is_none();
    if (zero.is_none() && !absent) || (absent && matches!(node.op, Op::Dequantize { .. })) {
        return None;
    }
    Step::new(graph.input_data(node, 1)?, zero, default)
}

/// What a value is dequantised from, if a dequantise with one step makes it.
fn dequantized(graph: &Linked<'_>, id: ValueId) -> Option<(ValueId, Step)> {
    let node = &graph.nodes[graph.maker(id)?];
    matches!(node.op, Op::Dequantize { .. }).then_some(())?;
    Some((node.input(0)?, step(graph, node)?))
}

/// One quantise: looks at what it quantises. Where it goes before that, the quantise to look at next.
fn quantize(graph: &mut Linked<'_>, bounds: &[Option<f64>], at: usize) -> Option<usize> {
    let to = step(graph, &graph.nodes[at])?;
    let x = graph.nodes[at].input(0)?;
    if let Some((bytes, from)) = dequantized(graph, x) {
        restep(graph, at, bytes, from, to, false);
        return None;
    }
    let before = graph.maker(x)?;
    graph.only_reader(x)?;
    let node = graph.nodes[before].clone();
    match &node.op {
        Op::Conv { .. } => {
            conv(graph, at, before, to, false);
        }
        Op::Unary(Unary::Relu) => {
            let input = node.input(0)?;
            if let Some((bytes, from)) = dequantized(graph, input) {
                restep(graph, at, bytes, from, to, true);
                return None;
            }
            let conv_at = graph.maker(input)?;
            let is_conv =
                matches!(graph.nodes[conv_at].op, Op::Conv { .. }) && graph.only_reader(input).is_some();
            if is_conv {
                conv(graph, at, conv_at, to, true);
            }
        }
        Op::Pool { pool: Pool::Max { .. }, .. }
        | Op::Reshape { .. }
        | Op::Flatten { .. }
        | Op::Squeeze
        | Op::Unsqueeze
        | Op::Transpose { .. }
        | Op::Identity => {
            if node.outputs[1..].iter().any(Option::is_some) {
                return None;
            }
            let Some((bytes, from)) = dequantized(graph, node.input(0)?) else {
                return hoist(graph, bounds, at, before);
            };
            if from != to {
                return hoist(graph, bounds, at, before);
            }
            if bytes_type(graph, bytes) != Some(from.dtype) {
                return None;
            }
            let mut inputs = node.inputs.clone();
            inputs[0] = Some(bytes);
            graph.rewrite(at, node.op, inputs);
        }
        Op::Concat { axis } => {
            concat(graph, at, &node, *axis, to);
        }
        _ => {}
    }
    None
}

/// Quantising is monotone: it goes before the maximum or the move at `moved`, whose only reader it is. Then
/// it may join what is there. NaN alone is the greatest of floats, and the least of bytes: before a maximum
/// it must not occur.
fn hoist(graph: &mut Linked<'_>, bounds: &[Option<f64>], at: usize, moved: usize) -> Option<usize> {
    let node = graph.nodes[moved].clone();
    let x = node.input(0)?;
    if matches!(node.op, Op::Pool { .. }) && bounds.get(x.index()).copied().flatten().is_none() {
        return None;
    }
    let before = graph.maker(x)?;
    let joins = matches!(
        graph.nodes[before].op,
        Op::Conv { .. }
            | Op::Concat { .. }
            | Op::Unary(Unary::Relu)
            | Op::Dequantize { .. }
            | Op::Pool { .. }
    );
    if !joins || !(graph.only_reader(x).is_some() || matches!(graph.nodes[before].op, Op::Dequantize { .. }))
    {
        return None;
    }
    let bytes = graph.value();
    let mut quantize = graph.nodes[at].clone();
    quantize.inputs[0] = Some(x);
    quantize.outputs = vec![Some(bytes)];
    let new = graph.push(quantize);
    let mut inputs = node.inputs.clone();
    inputs[0] = Some(bytes);
    graph.rewrite(at, node.op.clone(), inputs);
    // What it was is left without a part in anything, so that the quantise is the only reader of its input.
    graph.rewrite(moved, node.op, Vec::new());
    graph.give(moved, vec![None]);
    Some(new)
}

/// Bytes of one step become bytes of another, after a ReLU or not: in the convolution that made them, else by
/// a table.
fn restep(graph: &mut Linked<'_>, at: usize, bytes: ValueId, from: Step, to: Step, relu: bool) -> Option<()> {
    let output = graph.nodes[at].outputs[0]?;
    if from == to && !relu && bytes_type(graph, bytes) == Some(from.dtype) {
        graph.rewrite(at, Op::Identity, vec![Some(bytes)]);
        return Some(());
    }
    // With one step on both sides a ReLU is a bound, and nothing is rounded twice.
    if let Some(made) = graph.maker(bytes)
        && from == to
        && matches!(&graph.nodes[made].op, Op::QConv(conv) if conv.to == from.dtype)
        && reads_of_bytes_are_one(graph, bytes, at)
    {
        if let Op::QConv(conv) = graph.op_mut(made) {
            conv.low = conv.low.max(to.zero);
            conv.high = conv.high.max(conv.low);
        }
        // The convolution now makes the quantise's output; it stays where it is, before all readers.
        graph.rewrite(at, Op::Identity, vec![Some(output)]);
        graph.give(at, vec![None]);
        graph.give(made, vec![Some(output)]);
        return Some(());
    }
    table(graph, at, bytes, from, to, relu);
    Some(())
}

/// Whether bytes are read by one dequantise only, and its result by nothing but what leads to the quantise at
/// `at`.
fn reads_of_bytes_are_one(graph: &Linked<'_>, bytes: ValueId, at: usize) -> bool {
    let mut value = bytes;
    loop {
        let Some(reader) = graph.only_reader(value) else { return false };
        if reader == at {
            return true;
        }
        match graph.nodes[reader].outputs[0] {
            Some(next) => value = next,
            None => return false,
        }
    }
}

/// The node at `at` becomes a table from bytes of one step to bytes of another.
fn table(graph: &mut Linked<'_>, at: usize, bytes: ValueId, from: Step, to: Step, relu: bool) {
    let entry = |byte: u8| {
        let byte = if from.dtype == DType::I8 { i32::from(byte as i8) } else { i32::from(byte) };
        let value = from.value(byte);
        to.byte(if relu && value < 0.0 { 0.0 } else { value }) as u8
    };
    let entries = (0..=255).map(entry).collect();
    graph.rewrite(at, Op::Table(Table { entries, from: from.dtype, to: to.dtype }), vec![Some(bytes)]);
}

/// A concat of dequantised values, quantised: a concat of bytes, each brought to the result's step.
fn concat(graph: &mut Linked<'_>, at: usize, node: &Node, axis: i64, to: Step) -> Option<()> {
    let parts: Option<Vec<_>> = node.inputs.iter().map(|id| dequantized(graph, (*id)?)).collect();
    let mut inputs = Vec::new();
    let name = graph.nodes[at].name.clone();
    let mut tables = Vec::new();
    for (bytes, from) in parts? {
        if from == to && bytes_type(graph, bytes) == Some(from.dtype) {
            inputs.push(Some(bytes));
        } else {
            let made = graph.value();
            tables.push((made, bytes, from));
            inputs.push(Some(made));
        }
    }
    graph.rewrite(at, Op::Concat { axis }, inputs);
    for (made, bytes, from) in tables {
        let node =
            Node { op: Op::Identity, inputs: Vec::new(), outputs: vec![Some(made)], name: name.clone() };
        let last = graph.push(node);
        table(graph, last, bytes, from, to, false);
    }
    Some(())
}

/// A float convolution between quantised values.
fn conv(graph: &mut Linked<'_>, at: usize, conv_at: usize, to: Step, relu: bool) -> Option<()> {
    let node = graph.nodes[conv_at].clone();
    let Op::Conv { window, group } = &node.op else { return None };
    let (x, x_step) = dequantized(graph, node.input(0)?)?;
    let (weights, w_scales) = weights(graph, node.input(1)?)?;
    let filters = weights.shape()[0];
    let scale_of = |m: usize| x_step.scale * w_scales[if w_scales.len() == 1 { 0 } else { m }];
    let bias = match node.inputs.get(2).copied().flatten() {
        None => None,
        Some(id) => Some(integer_bias(graph, id, filters, scale_of)?),
    };
    if !(0..filters).all(|m| is_step(scale_of(m)) && is_step(scale_of(m) / to.scale))
        || !sums_fit(&weights, bias.as_ref())
    {
        return None;
    }
    let scales = (0..w_scales.len()).map(|m| scale_of(m) / to.scale).collect();
    let (least, high) = to.range();
    let low = if relu { to.zero.max(least) } else { least };
    let (window, group) = (window.clone(), *group);
    let qconv = QConv {
        window,
        group,
        from: x_step.dtype,
        x_zero: x_step.zero,
        scales,
        to: to.dtype,
        zero: to.zero,
        low,
        high,
        nhwc: false,
    };
    let mut inputs = vec![Some(x), Some(graph.constant(weights))];
    if let Some(bias) = bias {
        inputs.push(Some(graph.constant(bias)));
    }
    graph.rewrite(at, Op::QConv(qconv), inputs);
    Some(())
}

/// Weights as `i8` around zero, with their scales: one, or one per filter.
fn weights(graph: &Linked<'_>, id: ValueId) -> Option<(Tensor, Vec<f32>)> {
    let node = &graph.nodes[graph.maker(id)?];
    let Op::Dequantize { scales } = &node.op else { return None };
    let (bytes, scale) = (graph.input_data(node, 0)?, graph.input_data(node, 1)?);
    let zeros = match node.inputs.get(2).copied().flatten() {
        None => None,
        Some(id) => Some(graph.data(id)?),
    };
    if bytes.shape().len() != 4 || scales.block != 0 || scale.dtype() != DType::F32 {
        return None;
    }
    let per_filter = scale.shape() == [bytes.shape()[0]] && matches!(scales.axis, 0 | -4);
    if !(scale.len() == 1 || per_filter) || zeros.is_some_and(|zeros| zeros.len() != scale.len()) {
        return None;
    }
    Some((around_zero(bytes, zeros)?, scale.floats()))
}

/// `i8` weights as they are, or `u8` weights around 128 moved; others do not fit a signed byte. Zero points
/// of another type are no zero points.
fn around_zero(bytes: &Tensor, zeros: Option<&Tensor>) -> Option<Tensor> {
    if zeros.is_some_and(|zeros| zeros.dtype() != bytes.dtype()) {
        return None;
    }
    let all = |wanted: i64| match zeros {
        None => wanted == 0,
        Some(zeros) => zeros.ints().is_some_and(|zeros| zeros.iter().all(|zero| *zero == wanted)),
    };
    match bytes.dtype() {
        DType::I8 if all(0) => Some(bytes.clone()),
        DType::U8 if all(128) => {
            let moved: Vec<u8> = bytes.bytes().iter().map(|byte| byte ^ 0x80).collect();
            Some(Tensor::of_dtype(DType::I8, bytes.shape(), &moved))
        }
        _ => None,
    }
}

/// The bias in units of the sums: `i32` as quantised with that scale, or floats rounded to it.
fn integer_bias(
    graph: &Linked<'_>,
    id: ValueId,
    filters: usize,
    scale_of: impl Fn(usize) -> f32,
) -> Option<Tensor> {
    let values: Vec<f32> = match graph.data(id) {
        Some(floats) if floats.dtype() == DType::F32 => floats.floats(),
        Some(_) => return None,
        None => {
            let node = &graph.nodes[graph.maker(id)?];
            matches!(node.op, Op::Dequantize { .. }).then_some(())?;
            let (bias, scale) = (graph.input_data(node, 0)?, graph.input_data(node, 1)?);
            let plain = match node.inputs.get(2).copied().flatten() {
                None => true,
                Some(zero) => {
                    let zero = graph.data(zero)?;
                    let fits = zero.dtype() == DType::I32 && zero.len() == scale.len();
                    fits && zero.ints()?.iter().all(|zero| *zero == 0)
                }
            };
            if bias.dtype() != DType::I32 || !plain || scale.dtype() != DType::F32 {
                return None;
            }
            if bias.shape() != [filters] || !(scale.len() == 1 || scale.shape() == [filters]) {
                return None;
            }
            let scale = scale.floats();
            let scale_at = |m: usize| scale[if scale.len() == 1 { 0 } else { m }];
            // Exporters write the product of the scales; then the integers are the sums' own.
            if (0..filters).all(|m| (scale_at(m) - scale_of(m)).abs() <= 1e-5 * scale_of(m)) {
                return Some(bias.aligned());
            }
            bias.values::<i32>().iter().enumerate().map(|(m, v)| *v as f32 * scale_at(m)).collect()
        }
    };
    if values.len() != filters {
        return None;
    }
    // What a sum cannot hold stays in floats.
    let sum = |(m, value): (usize, &f32)| {
        let sum = (value / scale_of(m)).round_ties_even();
        (sum.abs() <= SUM_MAX as f32).then_some(sum as i32)
    };
    let bias: Vec<i32> = values.iter().enumerate().map(sum).collect::<Option<_>>()?;
    Some(Tensor::of(&[filters], &bias))
}

/// Whether products with it keep what they stand for.
fn is_step(scale: f32) -> bool {
    scale.is_normal() && scale > 0.0
}

/// Bounds of a sum that no rounding to f32 takes over the edge of i32.
const SUM_MAX: i64 = i32::MAX as i64 - (1 << 8);

/// Whether no sum of a convolution leaves i32: the float form does not wrap.
fn sums_fit(weights: &Tensor, bias: Option<&Tensor>) -> bool {
    let products: usize = weights.shape()[1..].iter().product();
    // A byte less its zero point, by a weight.
    let largest = (products as i64).saturating_mul(255 * 128);
    let bias = bias.and_then(Tensor::ints).unwrap_or_default();
    bias.iter().map(|bias| bias.abs()).max().unwrap_or(0).saturating_add(largest) <= SUM_MAX
}

/// `QLinearConv` with constant scales and weights around zero.
fn qlinear_conv(graph: &mut Graph, at: usize) -> Option<()> {
    let node = graph.nodes[at].clone();
    let Op::QLinearConv { window, group } = &node.op else { return None };
    let data = |i: usize| graph.input_data(&node, i);
    let x_step = Step::new(data(1)?, Some(data(2)?), DType::U8)?;
    let to = Step::new(data(6)?, Some(data(7)?), DType::U8)?;
    // What is refused when shapes are bound is not rewritten into something that is not.
    let (bytes, scale) = (data(3)?, data(4)?);
    let filters = *bytes.shape().first()?;
    let bias = node.input(8);
    let bias_fits = match bias {
        None => true,
        Some(id) => {
            graph.data(id).is_some_and(|bias| bias.dtype() == DType::I32 && bias.shape() == [filters])
        }
    };
    let scale_fits = scale.dtype() == DType::F32 && (scale.len() == 1 || scale.len() == filters);
    if bytes.shape().len() != 4 || !scale_fits || !bias_fits {
        return None;
    }
    let weights = around_zero(bytes, data(5))?;
    let scales = scale.floats().iter().map(|w| x_step.scale * w / to.scale).collect();
    let (low, high) = to.range();
    let (window, group) = (window.clone(), *group);
    let qconv = QConv {
        window,
        group,
        from: x_step.dtype,
        x_zero: x_step.zero,
        scales,
        to: to.dtype,
        zero: to.zero,
        low,
        high,
        nhwc: false,
    };
    let mut inputs = vec![node.input(0), Some(graph.constant(weights))];
    inputs.extend(bias.map(Some));
    graph.nodes[at].op = Op::QConv(qconv);
    graph.nodes[at].inputs = inputs;
    Some(())
}
