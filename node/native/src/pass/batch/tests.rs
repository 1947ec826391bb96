//! Which operators keep the rows of a batch apart, and what is said of those that do not.

use super::*;
use crate::ops::Target;
use crate::ops::elementwise::{Binary, Unary};
use crate::ops::fact::Out;
use crate::ops::linear::Gemm;
use crate::ops::movement::{Blocks, PadMode};
use crate::ops::norm::Softmax;
use crate::ops::reduce::Reduce;
use crate::plan::bind::bind;
use crate::plan::pack::Packing;
use crate::tensor::DType;

/// What is put together in a test: values by name are too much for graphs of a few nodes.
struct Net {
    graph: Graph,
    shapes: Vec<Vec<usize>>,
}

impl Net {
    /// Inputs; a size of 0 is that of the batch.
    fn new(inputs: &[&[usize]]) -> (Self, Vec<ValueId>) {
        let mut graph = Graph::default();
        let ids: Vec<ValueId> = inputs.iter().map(|_| graph.value("x")).collect();
        graph.inputs.clone_from(&ids);
        (Self { graph, shapes: inputs.iter().map(|shape| shape.to_vec()).collect() }, ids)
    }

    fn list(&mut self, values: &[i64]) -> ValueId {
        self.graph.constant(Tensor::of(&[values.len()], values))
    }

    fn weights(&mut self, shape: &[usize]) -> ValueId {
        let values: Vec<f32> = (0..shape.iter().product()).map(|i| i as f32).collect();
        self.graph.constant(Tensor::of(shape, &values))
    }

    fn then(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let y = self.graph.value("y");
        let inputs = inputs.iter().copied().map(Some).collect();
        self.graph.nodes.push(Node { op, inputs, outputs: vec![Some(y)], name: "n".to_owned() });
        y
    }

    fn mixes(mut self, output: ValueId) -> bool {
        self.graph.outputs.push(output);
        let limits = crate::onnx::import::Limits::default();
        let packing = Packing::new(u64::MAX);
        let target = Target { kernels: roost_kernels::Kernels::best(), packing: &packing };
        let [two, three] = [2, 3].map(|rows| {
            let sized = |shape: &Vec<usize>| -> Vec<usize> {
                shape.iter().map(|size| if *size == 0 { rows } else { *size }).collect()
            };
            let outs: Vec<Out> = self.shapes.iter().map(|shape| Out::new(DType::F32, sized(shape))).collect();
            bind(&self.graph, &outs, limits, target).expect("it binds")
        });
        variant(&two, &three).is_some()
    }
}

/// Whether a node over an input mixes rows; of its constants, whole numbers come as lists.
fn of(op: Op, input: &[usize], lists: &[&[i64]]) -> bool {
    let (mut net, ids) = Net::new(&[input]);
    let mut inputs = ids;
    lists.iter().for_each(|list| inputs.push(net.list(list)));
    let y = net.then(op, &inputs);
    net.mixes(y)
}

/// As [`of`], over an input and weights of a shape.
fn with(op: Op, input: &[usize], weights: &[&[usize]]) -> bool {
    let (mut net, ids) = Net::new(&[input]);
    let mut inputs = ids;
    weights.iter().for_each(|shape| inputs.push(net.weights(shape)));
    let y = net.then(op, &inputs);
    net.mixes(y)
}

const N: usize = 0;

#[test]
fn what_goes_along_the_rows_mixes_them_by_any_name_of_the_axis() {
    let softmax = |axis, flat| Op::Softmax { kind: Softmax::Plain, axis, flat };
    for (axis, mixed) in [(0, true), (-2, true), (1, false), (-1, false)] {
        assert_eq!(of(softmax(axis, false), &[N, 4], &[]), mixed, "softmax along {axis}");
        assert_eq!(of(Op::LpNorm { axis, p: 2 }, &[N, 4], &[]), mixed, "norm along {axis}");
        assert_eq!(of(Op::TopK { axis, largest: true }, &[N, 4], &[&[1]]), mixed, "top along {axis}");
        let sums = Op::CumSum { exclusive: false, reverse: false };
        assert_eq!(of(sums, &[N, 4], &[&[axis]]), mixed, "sums along {axis}");
        let reduce = Op::Reduce { kind: Reduce::Sum, keep: true, noop: false };
        assert_eq!(of(reduce, &[N, 4], &[&[axis]]), mixed, "a sum over {axis}");
        let extreme = Op::ArgExtreme { axis, keep: false, max: true, last: false };
        assert_eq!(of(extreme, &[N, 4], &[]), mixed, "an extreme of {axis}");
    }
    assert!(of(softmax(0, true), &[N, 4], &[]) && !of(softmax(1, true), &[N, 4, 2], &[]));
    assert!(of(Op::MeanVarianceNorm { axes: vec![0, 2, 3] }, &[N, 2, 3, 3], &[]));
    assert!(!of(Op::MeanVarianceNorm { axes: vec![-1, -2] }, &[N, 2, 3, 3], &[]));
    assert!(!with(Op::LayerNorm { axis: -1, epsilon: 1e-5 }, &[N, 4], &[&[4]]));
    assert!(of(Op::DynamicQuantize, &[N, 4], &[]));
}

#[test]
fn what_moves_rows_to_others_mixes_them() {
    let slice = |starts: i64, ends: i64, axis: i64, step: i64| {
        of(Op::Slice, &[N, 4], &[&[starts], &[ends], &[axis], &[step]])
    };
    assert!(!slice(0, i64::MAX, 0, 1) && !slice(1, 3, 1, 1) && !slice(-1, i64::MIN, -1, -1));
    assert!(slice(-1, i64::MIN, 0, -1) && slice(1, i64::MAX, 0, 1) && slice(0, 1, -2, 1));
    let pad = |pads: &[i64]| of(Op::Pad { mode: PadMode::Constant }, &[N, 4], &[pads]);
    assert!(!pad(&[0, 1, 0, 2]) && pad(&[1, 0, 0, 0]) && pad(&[1, 0, -1, 0]));
    assert!(of(Op::Tile, &[N, 4], &[&[2, 1]]) && !of(Op::Tile, &[N, 4], &[&[1, 2]]));
    assert!(
        of(Op::Gather { axis: 0 }, &[N, 4], &[&[1, 0]]) && !of(Op::Gather { axis: -1 }, &[N, 4], &[&[1, 0]])
    );
    let reshape = |input: &[usize], to: &[i64]| of(Op::Reshape { allow_zero: false }, input, &[to]);
    assert!(!reshape(&[N, 6], &[-1, 2, 3]) && !reshape(&[N, 5, 6], &[-1, 6]));
    assert!(of(Op::Trilu { upper: true }, &[N, 4], &[]) && !of(Op::Trilu { upper: true }, &[N, 4, 4], &[]));
    let blocks = Op::Blocks { blocks: Blocks::SpaceToDepth, block: 2 };
    assert!(!of(blocks, &[N, 1, 4, 4], &[]));

    // Rows first, then in the midst; there they are no first dimension, and another order of what is before
    // is another row.
    let turned = |back: Option<Op>, shape: &[i64]| {
        let (mut net, ids) = Net::new(&[&[N, 5, 6]]);
        let y = net.then(Op::Transpose { perm: vec![1, 0, 2] }, &ids);
        let to = net.list(shape);
        let inputs = if matches!(back, Some(Op::Reshape { .. })) { vec![y, to] } else { vec![y] };
        let y = back.map_or(y, |op| net.then(op, &inputs));
        net.mixes(y)
    };
    assert!(turned(None, &[]));
    assert!(!turned(Some(Op::Transpose { perm: vec![-2, 0, 2] }), &[]));
    assert!(turned(Some(Op::Reshape { allow_zero: false }), &[-1, 5, 6]));
}

#[test]
fn products_keep_rows_where_they_do_not_sum_over_them() {
    assert!(!with(Op::MatMul, &[N, 4], &[&[4, 3]]) && !with(Op::MatMul, &[N, 2, 4], &[&[4, 3]]));
    let between = |shapes: [&[usize]; 2]| {
        let (mut net, ids) = Net::new(&shapes);
        let y = net.then(Op::MatMul, &ids);
        net.mixes(y)
    };
    assert!(!between([&[N, 2, 4], &[N, 4, 2]]));
    // Each row by all others.
    let (mut net, ids) = Net::new(&[&[N, 4]]);
    let turned = net.then(Op::Transpose { perm: vec![1, 0] }, &ids);
    let y = net.then(Op::MatMul, &[ids[0], turned]);
    assert!(net.mixes(y));
    // And back to features: the sum over rows has none.
    let (mut net, ids) = Net::new(&[&[N, 4]]);
    let turned = net.then(Op::Transpose { perm: vec![1, 0] }, &ids);
    let square = net.then(Op::MatMul, &[turned, ids[0]]);
    let y = net.then(Op::MatMul, &[ids[0], square]);
    assert!(net.mixes(y));
    let gemm = |trans_a, trans_b| Op::Gemm(Gemm { alpha: 1.0, beta: 1.0, trans_a, trans_b });
    assert!(!with(gemm(false, false), &[N, 4], &[&[4, 3], &[3]]));
    assert!(!with(gemm(false, true), &[N, 4], &[&[3, 4]]));
    let einsum = |equation: &str, input: &[usize], weights: &[usize]| {
        with(Op::Einsum { equation: equation.to_owned() }, input, &[weights])
    };
    assert!(!einsum("nk, km -> nm", &[N, 4], &[4, 3]) && einsum("nk,km->mn", &[N, 4], &[4, 3]));
    assert!(einsum("...k,km->...m", &[N, 4], &[4, 3]), "not read, and so not trusted");
}

#[test]
fn what_is_counted_or_differs_from_row_to_row_mixes_them() {
    // The mean over features, and each row less the mean of all: by the number of rows.
    let shape_of = |net: &mut Net, x: ValueId| net.then(Op::Shape { start: 0, end: Some(1) }, &[x]);
    let (mut net, ids) = Net::new(&[&[N, 4]]);
    let count = shape_of(&mut net, ids[0]);
    let count = net.then(Op::Cast { to: DType::F32 }, &[count]);
    let y = net.then(Op::Binary(Binary::Div), &[ids[0], count]);
    assert!(net.mixes(y));
    // Zeros as many as rows, as for the first state of a recurrent layer, are the same for each.
    let (mut net, ids) = Net::new(&[&[N, 4]]);
    let (count, four) = (shape_of(&mut net, ids[0]), net.list(&[4]));
    let shape = net.then(Op::Concat { axis: 0 }, &[count, four]);
    let zeros = net.then(Op::ConstantOfShape { value: Tensor::of(&[1], &[0.5_f32]) }, &[shape]);
    let y = net.then(Op::Binary(Binary::Add), &[ids[0], zeros]);
    assert!(!net.mixes(y));
    // Positions counted over the batch are not.
    let (mut net, ids) = Net::new(&[&[N]]);
    let count = shape_of(&mut net, ids[0]);
    let scalar = net.list(&[]);
    let limit = net.then(Op::Reshape { allow_zero: false }, &[count, scalar]);
    let [zero, one] = [0_i64, 1].map(|i| net.graph.constant(Tensor::of(&[], &[i])));
    let range = net.then(Op::Range, &[zero, limit, one]);
    let range = net.then(Op::Cast { to: DType::F32 }, &[range]);
    let y = net.then(Op::Binary(Binary::Add), &[ids[0], range]);
    assert!(net.mixes(y));
    assert!(!of(Op::Unary(Unary::Relu), &[N, 4], &[]));
}
