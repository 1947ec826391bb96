//! Rewrites that need no shapes: identities go, a batch normalisation goes into the convolution before it,
//! the long forms of GELU and of a layer normalisation become one operator each.

use crate::graph::ir::{Graph, Node, ValueId};
use crate::ops::Op;
use crate::ops::elementwise::{Binary, Unary};
use crate::ops::reduce::Reduce;
use crate::tensor::{DType, Tensor};

/// Readers of an identity's output read its input.
pub fn identities(graph: &mut Graph) {
    let mut to: Vec<ValueId> = (0..graph.values.len() as u32).map(ValueId).collect();
    for node in &mut graph.nodes {
        node.inputs.iter_mut().flatten().for_each(|id| *id = to[id.index()]);
        if let (Op::Identity, [Some(x)], [Some(y)]) = (&node.op, &node.inputs[..], &node.outputs[..]) {
            to[y.index()] = *x;
        }
    }
    graph.outputs.iter_mut().for_each(|id| *id = to[id.index()]);
}

fn producer(graph: &Graph, producers: &[Option<usize>], id: Option<ValueId>) -> Option<usize> {
    producers.get(id?.index()).copied().flatten().filter(|at| !graph.nodes[*at].outputs.is_empty())
}

/// `BatchNormalization` after a convolution scales its weights.
pub fn batch_norms(graph: &mut Graph) {
    let (producers, uses) = (graph.producers(), graph.uses());
    for at in 0..graph.nodes.len() {
        fold_norm(graph, at, &producers, &uses);
    }
}

fn fold_norm(graph: &mut Graph, at: usize, producers: &[Option<usize>], uses: &[u32]) -> Option<()> {
    let node = graph.nodes[at].clone();
    let Op::BatchNorm { epsilon, training: false, .. } = node.op else { return None };
    let x = node.input(0)?;
    let conv = producer(graph, producers, Some(x))?;
    if !matches!(graph.nodes[conv].op, Op::Conv { .. }) || uses[x.index()] != 1 {
        return None;
    }
    let [image, weights, old_bias] = [0, 1, 2].map(|i| graph.nodes[conv].input(i));
    // Nothing has looked at types and shapes yet.
    let floats = |id: Option<ValueId>| graph.data(id?).filter(|tensor| tensor.dtype() == DType::F32);
    let weights = floats(weights)?.clone();
    let filters = *weights.shape().first()?;
    let list = |id| floats(id).map(Tensor::floats).filter(|list| list.len() == filters);
    let old_bias = match old_bias {
        None => None,
        Some(id) => Some(list(Some(id))?),
    };
    let [scale, bias, mean, variance] = [1, 2, 3, 4].map(|i| list(node.input(i)));
    let (scale, bias, mean, variance) = (scale?, bias?, mean?, variance?);
    if filters == 0 {
        return None;
    }
    let factor: Vec<f32> = scale.iter().zip(&variance).map(|(s, v)| s / (v + epsilon).sqrt()).collect();
    let mut values = weights.floats();
    let run = values.len() / filters;
    for (m, filter) in values.chunks_exact_mut(run.max(1)).enumerate() {
        filter.iter_mut().for_each(|w| *w *= factor[m]);
    }
    let old = |m: usize| old_bias.as_ref().map_or(0.0, |bias| bias[m]);
    let new_bias: Vec<f32> = (0..filters).map(|m| (old(m) - mean[m]).mul_add(factor[m], bias[m])).collect();
    let weights = graph.constant(Tensor::of(weights.shape(), &values));
    let bias = graph.constant(Tensor::of(&[filters], &new_bias));
    graph.nodes[conv].inputs = vec![image, Some(weights), Some(bias)];
    // The convolution makes the normalised value; the values between are gone.
    graph.nodes[conv].outputs[0] = node.outputs[0];
    graph.nodes[at].outputs = vec![None];
    graph.nodes[at].inputs.clear();
    Some(())
}

/// `x / √2 → erf → + 1 → · x → · 1/2`, in either order of the last two, becomes one operator.
pub fn gelus(graph: &mut Graph) {
    let (producers, uses) = (graph.producers(), graph.uses());
    for at in 0..graph.nodes.len() {
        if let Some(x) = gelu(graph, at, &producers, &uses) {
            graph.nodes[at].op = Op::Unary(Unary::Gelu { tanh: false });
            graph.nodes[at].inputs = vec![Some(x)];
        }
    }
}

/// A constant number near `wanted`, without a dimension: one with dimensions may give them to what it meets.
fn is_number(graph: &Graph, id: ValueId, wanted: f32) -> bool {
    graph.data(id).is_some_and(|t| {
        t.dtype() == DType::F32 && t.shape().is_empty() && (t.floats()[0] - wanted).abs() < 1e-4 * wanted
    })
}

/// The operand of a binary operator beside a constant number.
fn beside(graph: &Graph, at: usize, op: Binary, number: f32) -> Option<ValueId> {
    let node = &graph.nodes[at];
    let (Op::Binary(found), [Some(a), Some(b)]) = (&node.op, &node.inputs[..]) else { return None };
    if *found != op {
        return None;
    }
    match () {
        () if is_number(graph, *b, number) => Some(*a),
        () if is_number(graph, *a, number) && op != Binary::Div => Some(*b),
        () => None,
    }
}

/// What the node at `at` is the GELU of.
fn gelu(graph: &Graph, at: usize, producers: &[Option<usize>], uses: &[u32]) -> Option<ValueId> {
    let made = |id: ValueId| producer(graph, producers, Some(id)).filter(|_| uses[id.index()] == 1);
    // One of the operands of a product is `1 + erf(x / √2)`; the other x, or half of it.
    let bell = |id: ValueId| {
        let erf = made(beside(graph, made(id)?, Binary::Add, 1.0)?)?;
        matches!(graph.nodes[erf].op, Op::Unary(Unary::Erf)).then_some(())?;
        let scaled = made(graph.nodes[erf].input(0)?)?;
        beside(graph, scaled, Binary::Div, std::f32::consts::SQRT_2)
            .or_else(|| beside(graph, scaled, Binary::Mul, std::f32::consts::FRAC_1_SQRT_2))
    };
    let product = |at: usize| {
        let node = &graph.nodes[at];
        let (Op::Binary(Binary::Mul), [Some(a), Some(b)]) = (&node.op, &node.inputs[..]) else { return None };
        bell(*a).map(|x| (x, *b)).or_else(|| bell(*b).map(|x| (x, *a)))
    };
    if let Some(inner) = beside(graph, at, Binary::Mul, 0.5) {
        let (x, other) = product(made(inner)?)?;
        return (x == other).then_some(x);
    }
    let (x, other) = product(at)?;
    let half = producer(graph, producers, Some(other))?;
    (beside(graph, half, Binary::Mul, 0.5)? == x).then_some(x)
}

/// `(x - mean) / √(mean of (x - mean)² + ε)` over the last axis becomes one operator, as models have it from
/// before there was one. What scales the result and is added to it joins once shapes are known.
pub fn layer_norms(graph: &mut Graph) {
    let producers = graph.producers();
    for at in 0..graph.nodes.len() {
        if let Some((x, epsilon)) = layer_norm(graph, at, &producers) {
            let y = graph.nodes[at].outputs[0];
            graph.nodes[at].op = Op::LayerNorm { axis: -1, epsilon };
            graph.nodes[at].inputs = vec![Some(x)];
            graph.nodes[at].outputs = vec![y, None, None];
        }
    }
}

/// What the node at `at` normalises, and its ε.
fn layer_norm(graph: &Graph, at: usize, producers: &[Option<usize>]) -> Option<(ValueId, f32)> {
    let made = |id: ValueId| producer(graph, producers, Some(id)).map(|at| &graph.nodes[at]);
    let binary = |node: &Node, op: Binary| match (&node.op, &node.inputs[..]) {
        (Op::Binary(found), [Some(a), Some(b)]) if *found == op => Some((*a, *b)),
        _ => None,
    };
    // One number of f32. It meets values of at least one dimension, and so gives them none.
    let number = |id: ValueId| {
        let tensor = graph.data(id)?;
        let one = tensor.dtype() == DType::F32 && tensor.len() == 1 && tensor.shape().len() <= 1;
        one.then(|| tensor.floats()[0])
    };
    let mean_of = |id: ValueId| {
        let node = made(id)?;
        let axes = graph.data(node.input(1)?)?;
        let last = axes.shape().len() == 1 && axes.ints().is_some_and(|axes| *axes == [-1]);
        let Op::Reduce { kind: Reduce::Mean, keep: true, .. } = node.op else { return None };
        last.then(|| node.input(0))?
    };
    // `x - mean of x`, as x.
    let centred = |id: ValueId| {
        let (x, mean) = binary(made(id)?, Binary::Sub)?;
        (mean_of(mean)? == x).then_some(x)
    };
    let (above, root) = binary(&graph.nodes[at], Binary::Div)?;
    let x = centred(above)?;
    let root = made(root).filter(|node| matches!(node.op, Op::Unary(Unary::Sqrt)))?;
    let (a, b) = binary(made(root.input(0)?)?, Binary::Add)?;
    let (variance, epsilon) = number(b).map(|e| (a, e)).or_else(|| number(a).map(|e| (b, e)))?;
    let square = made(mean_of(variance)?)?;
    let squared = match (binary(square, Binary::Pow), binary(square, Binary::Mul)) {
        (Some((d, two)), _) if number(two) == Some(2.0) => d,
        (_, Some((d, again))) if d == again => d,
        _ => return None,
    };
    (centred(squared)? == x && epsilon >= 0.0).then_some((x, epsilon))
}
