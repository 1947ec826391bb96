//! Fusions over a graph with shapes: bias, residual and activation go into the product or convolution before
//! them, a pool into a convolution whose output is large, and what scales a layer normalisation into it.
//!
//! Each fused operator computes the same roundings in the same order as the separate ones, so fusing changes
//! no bit.

use roost_kernels::Activation;

use crate::graph::ir::{Graph, Node, ValueId};
use crate::graph::linked::Linked;
use crate::ops::Op;
use crate::ops::elementwise::{Binary, Unary};
use crate::ops::fact::Out;
use crate::ops::image::{ConvImage, PoolImage};
use crate::ops::linear::Gemm;
use crate::ops::matrix::Linear;
use crate::tensor::{DType, bytes_of};

/// Fuses what follows products and convolutions.
pub fn epilogues(graph: &mut Graph) {
    linears(graph);
    silus(graph);
    let mut linked = Linked::new(graph);
    for at in 0..linked.nodes.len() {
        // Grow the operator at `at` forwards while its only reader can join it.
        while step(&mut linked, at) {}
    }
    let mut live = graph
        .nodes
        .iter()
        .map(|node| node.outputs.iter().any(Option::is_some))
        .collect::<Vec<_>>()
        .into_iter();
    graph.nodes.retain(|_| live.next().unwrap_or(true));
    sort(graph);
}

/// `MatMul` and plain `Gemm` in f32 become [`Op::Linear`].
fn linears(graph: &mut Graph) {
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let float = |i: usize| shape(graph, node, i).is_some_and(|out| out.dtype == DType::F32);
        if !float(0) || !float(1) {
            continue;
        }
        match &node.op {
            Op::MatMul => graph.nodes[at].op = Op::Linear(Linear::PLAIN),
            Op::Gemm(Gemm { alpha, beta, trans_a, trans_b }) if *alpha == 1.0 => {
                let linear = Linear { trans_a: *trans_a, trans_b: *trans_b, activation: Activation::None };
                let columns = node.outputs[0]
                    .and_then(|id| graph.values[id.index()].out.as_ref())
                    .map_or(0, |o| o.shape[1]);
                let c = shape(graph, node, 2).map(|c| c.shape.clone());
                let joins = c.as_ref().is_none_or(|c| *beta == 1.0 && is_row(c, columns));
                if joins {
                    graph.nodes[at].op = Op::Linear(linear);
                }
            }
            _ => {}
        }
    }
}

/// `x · sigmoid(x)` in f32, of a sigmoid that nothing else reads, becomes one operator.
fn silus(graph: &mut Graph) {
    let (producers, uses) = (graph.producers(), graph.uses());
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let (Op::Binary(Binary::Mul), [Some(a), Some(b)]) = (&node.op, &node.inputs[..]) else { continue };
        // The sigmoid that makes `id` from `x`.
        let sigmoid = |id: ValueId, x: ValueId| {
            let made = producers[id.index()].filter(|_| uses[id.index()] == 1)?;
            let node = &graph.nodes[made];
            (matches!(node.op, Op::Unary(Unary::Sigmoid)) && node.input(0) == Some(x)).then_some((made, x))
        };
        let float = shape(graph, node, 0).is_some_and(|out| out.dtype == DType::F32);
        let Some((made, x)) = sigmoid(*a, *b).or_else(|| sigmoid(*b, *a)).filter(|_| float) else { continue };
        graph.nodes[made].inputs.clear();
        graph.nodes[made].outputs = vec![None];
        graph.nodes[at].op = Op::Unary(Unary::Swish { alpha: 1.0 });
        graph.nodes[at].inputs = vec![Some(x)];
    }
}

/// Whether a shape is one row of this many columns.
fn is_row(shape: &[usize], columns: usize) -> bool {
    shape.last() == Some(&columns) && shape.iter().product::<usize>() == columns
}

fn shape<'a>(graph: &'a Graph, node: &Node, index: usize) -> Option<&'a Out> {
    let id = node.inputs.get(index).copied().flatten()?;
    graph.values[id.index()].out.as_ref()
}

/// Bytes of an image from which on a pool joins the convolution that makes it: smaller ones stay in L2 between
/// the two.
const POOLED_BYTES_LEAST: usize = 512 << 10;

/// Joins the only reader of the node at `at` into it; whether it did.
fn step(graph: &mut Linked<'_>, at: usize) -> bool {
    let node = &graph.nodes[at];
    let activation = match &node.op {
        Op::Linear(Linear { activation, .. }) | Op::ConvImage(ConvImage { activation, pool: None, .. }) => {
            *activation
        }
        Op::LayerNorm { axis: -1, .. } => Activation::None,
        _ => return false,
    };
    let Some(y) = node.outputs.first().copied().flatten() else { return false };
    let Some(reader) = graph.only_reader(y) else { return false };
    let Some(out) = graph.values[y.index()].out.clone() else { return false };
    let next = &graph.nodes[reader];
    let (mut op, mut inputs) = (node.op.clone(), node.inputs.clone());
    let free = |inputs: &[Option<ValueId>], i: usize| inputs.get(i).copied().flatten().is_none();
    match &next.op {
        _ if matches!(op, Op::LayerNorm { .. }) => {
            let Some(joined) = scaled(graph, next, y, &out, inputs) else { return false };
            inputs = joined;
        }
        Op::PoolImage(pool @ PoolImage { window: Some(_), .. }) => {
            let Op::ConvImage(conv) = &mut op else { return false };
            let image = out.shape.get(1..).and_then(|image| bytes_of(out.dtype, image));
            if !free(&inputs, 3) || image.is_none_or(|bytes| bytes < POOLED_BYTES_LEAST) {
                return false;
            }
            conv.pool = Some(pool.clone());
        }
        _ if activation != Activation::None => return false,
        Op::Binary(Binary::Add) => {
            let other = if next.input(0) == Some(y) { next.input(1) } else { next.input(0) };
            let Some(other) = other else { return false };
            let Some(added) = graph.values[other.index()].out.clone() else { return false };
            let columns = out.shape.last().copied().unwrap_or(1);
            // A lone column would be a row as well as a matrix, by the number of rows.
            let bias = graph.data(other).is_some()
                && is_row(&added.shape, columns)
                && added.shape.len() <= out.shape.len();
            inputs.resize(4, None);
            if bias && free(&inputs, 2) && free(&inputs, 3) {
                inputs[2] = Some(other);
            } else if added.shape == out.shape && free(&inputs, 3) && graph.data(other).is_none() {
                inputs[3] = Some(other);
            } else {
                return false;
            }
        }
        Op::Unary(unary) => {
            let Some(fused) = activation_of(*unary) else { return false };
            set_activation(&mut op, fused);
        }
        Op::Clip => {
            let bound = |i: usize, free: f32| match next.inputs.get(i).copied().flatten() {
                None => Some(free),
                Some(id) => graph
                    .data(id)
                    .filter(|t| t.dtype() == DType::F32)
                    .and_then(|t| t.values::<f32>().first().copied()),
            };
            let (Some(min), Some(max)) = (bound(1, f32::NEG_INFINITY), bound(2, f32::INFINITY)) else {
                return false;
            };
            if min > max {
                return false;
            }
            set_activation(&mut op, Activation::Clip { min, max });
        }
        _ => return false,
    }
    // What the reader makes takes the place of what it read; a normalisation's mean stays, which others may read.
    let mut outputs = graph.nodes[at].outputs.clone();
    outputs[0] = graph.nodes[reader].outputs[0];
    // It is left without a part in anything.
    let joined = next.op.clone();
    graph.rewrite(reader, joined, Vec::new());
    graph.give(reader, vec![None]);
    graph.rewrite(at, op, inputs);
    graph.give(at, outputs);
    true
}

/// The inputs of a layer normalisation that makes `y`, with the constant row that `next` scales it by or adds.
fn scaled(
    graph: &Graph,
    next: &Node,
    y: ValueId,
    out: &Out,
    mut inputs: Vec<Option<ValueId>>,
) -> Option<Vec<Option<ValueId>>> {
    // The scale comes before what is added.
    let slot = match next.op {
        Op::Binary(Binary::Mul) => 1,
        Op::Binary(Binary::Add) => 2,
        _ => return None,
    };
    let row = if next.input(0) == Some(y) { next.input(1) } else { next.input(0) }?;
    let shape = graph.data(row).filter(|row| row.dtype() == DType::F32)?.shape();
    let fits = is_row(shape, *out.shape.last()?) && shape.len() <= out.shape.len();
    inputs.resize(3, None);
    if !fits || inputs[slot].is_some() || inputs[2].is_some() {
        return None;
    }
    inputs[slot] = Some(row);
    Some(inputs)
}

fn set_activation(op: &mut Op, fused: Activation) {
    match op {
        Op::Linear(linear) => linear.activation = fused,
        Op::ConvImage(conv) => conv.activation = fused,
        _ => {}
    }
}

fn activation_of(unary: Unary) -> Option<Activation> {
    match unary {
        Unary::Relu => Some(Activation::Relu),
        other => other.kernel().map(Activation::Map),
    }
}

/// Puts nodes after what they read: a residual may come later in the list than the product that it joined.
pub fn sort(graph: &mut Graph) {
    let producers = graph.producers();
    let count = graph.nodes.len();
    let mut done = vec![false; count];
    let mut order = Vec::with_capacity(count);
    let mut stack: Vec<(usize, usize)> = Vec::new();
    for root in 0..count {
        if std::mem::replace(&mut done[root], true) {
            continue;
        }
        stack.push((root, 0));
        while let Some((at, input)) = stack.pop() {
            match graph.nodes[at].inputs.get(input) {
                None => order.push(at),
                Some(id) => {
                    stack.push((at, input + 1));
                    if let Some(producer) = id.and_then(|id| producers[id.index()])
                        && !std::mem::replace(&mut done[producer], true)
                    {
                        stack.push((producer, 0));
                    }
                }
            }
        }
    }
    let mut nodes: Vec<Option<Node>> = std::mem::take(&mut graph.nodes).into_iter().map(Some).collect();
    graph.nodes = order.into_iter().filter_map(|at| nodes[at].take()).collect();
}
