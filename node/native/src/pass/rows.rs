//! Whether a graph with shapes computes each row of a batch by itself.
//!
//! Where it does, a batch may be run in parts, to the same bits: a row's bits do not depend on its batch. The
//! answer is no wherever it is not plainly yes.

use crate::graph::ir::{Graph, Node, ValueId};
use crate::ops::Op;

/// Whether all inputs and outputs have `rows` as their first dimension, and every node between keeps rows
/// apart.
pub fn apart(graph: &Graph, rows: usize) -> bool {
    let first =
        |id: ValueId| graph.values[id.index()].out.as_ref().and_then(|out| out.shape.first()) == Some(&rows);
    // Values that depend on inputs; they have rows.
    let mut rowed = vec![false; graph.values.len()];
    for id in &graph.inputs {
        rowed[id.index()] = true;
    }
    if !graph.inputs.iter().all(|id| first(*id)) {
        return false;
    }
    for node in &graph.nodes {
        if !node.inputs.iter().flatten().any(|id| rowed[id.index()]) {
            continue;
        }
        let each = node.outputs.iter().flatten().all(|id| first(*id)) && keeps(graph, node, &rowed);
        if !each {
            return false;
        }
        node.outputs.iter().flatten().for_each(|id| rowed[id.index()] = true);
    }
    graph.outputs.iter().all(|id| rowed[id.index()] && first(*id))
}

/// Whether an output may depend on the number of rows otherwise than by its own shape: it is computed from a
/// shape, or one of two branches is chosen. A part of the batch has another number. The graph is the one
/// before shapes were bound and folded.
pub fn counts_rows(graph: &Graph) -> bool {
    let mut counts = vec![false; graph.values.len()];
    for node in &graph.nodes {
        let from = node.inputs.iter().enumerate().any(|(i, id)| {
            // What only says how the same elements are read gives them another shape, and `keeps` looks at
            // that.
            let is_view = i == 1 && matches!(node.op, Op::Reshape { .. });
            !is_view && id.is_some_and(|id| counts[id.index()])
        });
        if from || matches!(node.op, Op::Shape { .. } | Op::Size | Op::If { .. }) {
            node.outputs.iter().flatten().for_each(|id| counts[id.index()] = true);
        }
    }
    graph.outputs.iter().any(|id| counts[id.index()])
}

/// Whether row i of the output depends on row i of the inputs that have rows, and on no other.
fn keeps(graph: &Graph, node: &Node, rowed: &[bool]) -> bool {
    let input = |i: usize| node.inputs.get(i).copied().flatten();
    let has_rows = |i: usize| input(i).is_some_and(|id| rowed[id.index()]);
    // Input i has rows, and the others but `may` have none.
    let alone =
        |may: Option<usize>| has_rows(0) && (1..node.inputs.len()).all(|i| Some(i) == may || !has_rows(i));
    let rank = |id: ValueId| graph.values[id.index()].out.as_ref().map_or(0, |out| out.shape.len());
    let out_rank = node.outputs.first().copied().flatten().map_or(0, rank);
    let inner = |axis: i64| axis != 0 && axis != -(out_rank as i64);
    match &node.op {
        Op::ConvImage(_) => alone(Some(3)),
        Op::Linear(linear) => {
            // Rows of a matrix, or of a stack of matrices, by one and the same B.
            let one_b = input(1).is_some_and(|b| rank(b) == 2);
            one_b && !linear.trans_a && input(0).is_some_and(|a| rank(a) >= 2) && alone(Some(3))
        }
        Op::Conv { .. }
        | Op::QConv(_)
        | Op::WidenImage { .. }
        | Op::PoolImage(_)
        | Op::GlobalPool { .. }
        | Op::Table(_)
        | Op::Unary(_)
        | Op::Clip
        | Op::Cast { .. }
        | Op::Identity
        | Op::Lrn { .. }
        | Op::BatchNorm { training: false, .. } => alone(None),
        // Where a maximum stood is counted from the start of the batch.
        Op::Pool { .. } => alone(None) && node.outputs.iter().skip(1).all(Option::is_none),
        // One scale for all.
        Op::Quantize { .. } | Op::Dequantize { .. } => {
            let single =
                |id: ValueId| graph.values[id.index()].out.as_ref().is_some_and(|out| out.len() == 1);
            alone(None) && node.inputs[1..].iter().flatten().all(|id| single(*id))
        }
        // With the same first dimension before and after, rows stay where they are.
        Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze | Op::Unsqueeze => alone(None),
        Op::Transpose { perm } => perm.first() == Some(&0),
        Op::Softmax { axis, .. } => inner(*axis) && alone(None),
        Op::LayerNorm { axis, .. } | Op::RmsNorm { axis, .. } => inner(*axis) && alone(None),
        Op::Concat { axis } => inner(*axis) && (0..node.inputs.len()).all(has_rows),
        Op::Binary(_) => [0, 1].into_iter().all(|i| {
            let Some(id) = input(i) else { return false };
            let shape = graph.values[id.index()].out.as_ref().map(|out| &out.shape[..]).unwrap_or_default();
            // Rows meet rows; what has none is the same for all.
            if has_rows(i) { shape.len() == out_rank } else { shape.len() < out_rank || shape[0] == 1 }
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::elementwise::{Binary, Unary};
    use crate::ops::fact::Out;
    use crate::tensor::{DType, Tensor};

    /// A graph of one node over an input `[8, 4]` and, where given, a constant.
    fn holds(op: Op, constant: Option<&[usize]>, out: &[usize]) -> bool {
        let mut graph = Graph::default();
        let x = graph.value("x");
        graph.values[x.index()].out = Some(Out::new(DType::F32, [8, 4]));
        graph.inputs.push(x);
        let mut inputs = vec![Some(x)];
        if let Some(shape) = constant {
            let tensor = Tensor::of(shape, &vec![1.0_f32; shape.iter().product()]);
            let id = graph.constant(tensor);
            graph.values[id.index()].out = Some(Out::new(DType::F32, shape));
            inputs.push(Some(id));
        }
        let y = graph.value("y");
        graph.values[y.index()].out = Some(Out::new(DType::F32, out));
        graph.outputs.push(y);
        graph.nodes.push(Node { op, inputs, outputs: vec![Some(y)], name: String::new() });
        apart(&graph, 8)
    }

    #[test]
    fn a_mean_over_the_batch_counts_its_rows_and_a_view_does_not() {
        let counts = |op: Op| {
            let mut graph = Graph::default();
            let [x, shape, y] = ["x", "shape", "y"].map(|name| graph.value(name));
            graph.inputs.push(x);
            graph.outputs.push(y);
            let node = |op, inputs: &[ValueId], output| {
                let inputs = inputs.iter().copied().map(Some).collect();
                Node { op, inputs, outputs: vec![Some(output)], name: String::new() }
            };
            graph.nodes.push(node(Op::Shape { start: 0, end: None }, &[x], shape));
            graph.nodes.push(node(op, &[x, shape], y));
            counts_rows(&graph)
        };
        assert!(counts(Op::Binary(Binary::Div)));
        assert!(!counts(Op::Reshape { allow_zero: false }));
    }

    #[test]
    fn only_what_keeps_rows_apart_is_accepted() {
        let softmax = |axis| Op::Softmax { kind: crate::ops::norm::Softmax::Plain, axis, flat: false };
        let reshape = || Op::Reshape { allow_zero: false };
        let add = || Op::Binary(Binary::Add);
        assert!(holds(Op::Unary(Unary::Exp), None, &[8, 4]));
        assert!(holds(softmax(1), None, &[8, 4]) && holds(softmax(-1), None, &[8, 4]));
        assert!(!holds(softmax(0), None, &[8, 4]) && !holds(softmax(-2), None, &[8, 4]));
        assert!(holds(reshape(), None, &[8, 2, 2]) && !holds(reshape(), None, &[4, 8]));
        assert!(holds(add(), Some(&[4]), &[8, 4]) && holds(add(), Some(&[1, 4]), &[8, 4]));
        assert!(!holds(add(), Some(&[8, 4]), &[8, 4]), "a constant with a row for each row");
        assert!(!holds(Op::Transpose { perm: vec![1, 0] }, None, &[4, 8]));
        assert!(!holds(Op::CumSum { exclusive: false, reverse: false }, None, &[8, 4]));
        let linear = Op::Linear(crate::ops::matrix::Linear::PLAIN);
        assert!(holds(linear.clone(), Some(&[4, 3]), &[8, 3]));
        assert!(!holds(linear, Some(&[8, 4, 3]), &[8, 8, 3]), "a B for each row");
    }
}
