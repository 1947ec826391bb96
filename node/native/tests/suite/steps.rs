//! What quantised models promise: wherever the engine computes in integers, its bytes are those of the float
//! form (dequantise, operator, quantise) within one step on 99.9 % and within two everywhere; and labels are
//! the same.
//!
//! Each island of float operators is fed with the bytes that the engine made before it. From the model's
//! input on, steps of one layer would add up in the next: that measures the model, not the engine.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use roost_native::compare::read_tensors;
use roost_native::conformance::read_bundle;
use roost_native::exec::interpret;
use roost_native::graph::ir::Graph;
use roost_native::onnx::import::MODEL_FILE;
use roost_native::onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TensorTypeProto, TypeProto,
    ValueInfoProto,
};
use roost_native::ops::Op;
use roost_native::program::Options;
use roost_native::{DType, Input, Limits, Model, Program, Session, Tensor};

use crate::hostile::{model, node};
use crate::places;

/// How far bytes are from what they should be.
#[derive(Debug, Default)]
struct Steps {
    values: usize,
    beyond_one: usize,
    largest: u64,
}

impl Steps {
    fn add(&mut self, found: &Tensor, expected: &Tensor) {
        let (found, expected) = (found.ints().expect("bytes"), expected.ints().expect("bytes"));
        assert_eq!(found.len(), expected.len());
        let distances = found.iter().zip(&expected).map(|(a, e)| a.abs_diff(*e));
        self.values += found.len();
        self.beyond_one += distances.clone().filter(|steps| *steps > 1).count();
        self.largest = self.largest.max(distances.max().unwrap_or(0));
    }

    /// At most 1 step on 99.9 %, 2 at most.
    fn keep(&self) -> bool {
        self.largest <= 2 && self.beyond_one * 1000 <= self.values
    }
}

/// Makes every value of bytes an output, before those that the graph has; gives how many there are.
///
/// In the `float` form they are inputs too, after those of the graph: what reads them takes those. And a
/// quantised convolution is written as what it stands for.
fn expose(graph: &mut GraphProto, float: bool) -> usize {
    let made = |name: &String| if float { format!("{name} of floats") } else { name.clone() };
    let info = |name: String| {
        let tensor_type = Some(TensorTypeProto { elem_type: DType::U8.onnx(), shape: None });
        ValueInfoProto { name, r#type: Some(TypeProto { tensor_type }) }
    };
    let mut bytes: Vec<String> = Vec::new();
    for mut node in std::mem::take(&mut graph.node) {
        if matches!(node.op_type.as_str(), "QuantizeLinear" | "QLinearConv") {
            bytes.push(node.output[0].clone());
            node.output[0] = made(&node.output[0]);
        }
        match node.op_type.as_str() {
            "QLinearConv" if float => graph.node.extend(island(&node)),
            _ => graph.node.push(node),
        }
    }
    graph.output.splice(0..0, bytes.iter().map(|name| info(made(name))));
    if float {
        graph.input.extend(bytes.iter().cloned().map(info));
    }
    bytes.len()
}

/// A `QLinearConv` as dequantises, a convolution in f32, its bias of `x_scale * w_scale` added, and a
/// quantise.
fn island(node: &NodeProto) -> Vec<NodeProto> {
    let y = &node.output[0];
    let name = |what: &str| format!("{y} {what}");
    let input = |i: usize| node.input[i].clone();
    let make = |op: &str, input: Vec<String>, output: String| NodeProto {
        op_type: op.into(),
        input,
        output: vec![output],
        ..NodeProto::default()
    };
    let mut nodes = vec![
        make("DequantizeLinear", vec![input(0), input(1), input(2)], name("x")),
        make("DequantizeLinear", vec![input(3), input(4), input(5)], name("w")),
    ];
    let mut taken = vec![name("x"), name("w")];
    if node.input.len() > 8 {
        nodes.push(make("Mul", vec![input(1), input(4)], name("step")));
        nodes.push(make("DequantizeLinear", vec![input(8), name("step")], name("b")));
        taken.push(name("b"));
    }
    nodes.push(NodeProto { attribute: node.attribute.clone(), ..make("Conv", taken, name("sum")) });
    nodes.push(make("QuantizeLinear", vec![name("sum"), input(6), input(7)], y.clone()));
    nodes
}

fn import(proto: &ModelProto) -> Model {
    let bytes = Bytes::from(proto.encode_to_vec());
    Model::import_bytes(bytes, &Default::default(), Limits::default()).expect("the model imports")
}

fn quantised_convolutions(graph: &Graph) -> usize {
    graph.nodes.iter().filter(|node| matches!(node.op, Op::QConv(_))).count()
}

/// The largest of each row.
fn labels(probabilities: &Tensor) -> Vec<usize> {
    let classes = probabilities.shape()[1];
    let best = |row: &[f32]| (0..classes).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("classes");
    probabilities.floats().chunks_exact(classes).map(best).collect()
}

/// Compares a model, and the labels with those of its test data.
#[track_caller]
fn check(name: &str, convolutions: usize) {
    let folder = places::model(name);
    let files = read_bundle(&folder).expect("the model's files can be read");
    let proto = ModelProto::decode(files[MODEL_FILE].clone()).expect("a model");
    let (mut whole, mut float) = (proto.clone(), proto);
    let bytes = expose(whole.graph.as_mut().expect("a graph"), false);
    expose(float.graph.as_mut().expect("a graph"), true);
    let data = folder.join("test_data_set_0");
    let inputs = read_tensors(&data, "input").expect("test data");
    let expected = read_tensors(&data, "output").expect("test data");

    let program = Program::compile(import(&whole), Options::default()).expect("the model compiles");
    // Else there would be nothing to compare.
    assert_eq!(quantised_convolutions(&program.graph()), convolutions, "{name}");
    let target = program.target();
    let mut found: Vec<Tensor> = Vec::new();
    let borrowed: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
    Session::new(Arc::clone(&program)).run(&borrowed, &mut found, &|| false).expect("it runs");

    // As it was imported: no pass has made integers of it.
    let model = import(&float);
    assert_eq!(quantised_convolutions(&model.graph), 0, "{name}");
    let context = interpret::Context { bytes_max: 1 << 30, cancelled: &|| false, target };
    let fed = inputs.into_iter().chain(found.iter().take(bytes).cloned()).collect();
    let islands = interpret::graph(&model.graph, fed, context).expect("it runs");

    let mut all = Steps::default();
    for (i, (found, expected)) in found.iter().zip(&islands).enumerate().take(bytes) {
        let mut steps = Steps::default();
        steps.add(found, expected);
        assert!(steps.keep(), "{name}, output {i}: {steps:?}");
        all.add(found, expected);
    }
    println!("{name}: {all:?}");
    assert_eq!((found.len(), islands.len()), (bytes + 1, bytes + 1), "{name}");
    assert_eq!(labels(&found[bytes]), labels(&expected[0]), "{name}");
    assert_eq!(labels(&islands[bytes]), labels(&expected[0]), "{name}");
}

#[test]
fn digits_of_unsigned_bytes_are_within_a_step() {
    check("digits_v2_int8_qdq", 3);
}

#[test]
fn digits_of_signed_bytes_are_within_a_step() {
    check("digits_v2_int8_qdq_s8s8", 3);
}

#[test]
fn photographs_in_pairs_are_within_a_step() {
    check("squeezenet_int8_qdq", 26);
}

#[test]
fn photographs_in_quantised_operators_are_within_a_step() {
    check("squeezenet_int8_qlinear", 26);
}

/// Exporters quantise after a pool as well as after a convolution; the quantise then goes before the pool,
/// into the convolution.
#[test]
fn what_pools_and_moves_a_convolution_lets_it_be_quantised() {
    let constant = |name: &str, tensor: Tensor| TensorProto {
        name: name.into(),
        dims: tensor.shape().iter().map(|dim| *dim as i64).collect(),
        data_type: tensor.dtype().onnx(),
        raw_data: Bytes::copy_from_slice(tensor.bytes()),
        ..TensorProto::default()
    };
    let kernel = AttributeProto {
        name: "kernel_shape".into(),
        kind: 7,
        ints: vec![2, 2],
        ..AttributeProto::default()
    };
    let weights: Vec<i8> = (0..8 * 4 * 9).map(|i| ((i * 89) % 251) as i8).collect();
    for activation in ["Relu", "Identity"] {
        let mut pool = node("MaxPool", &["b"], &["c"]);
        pool.attribute.push(kernel.clone());
        let nodes = vec![
            node("QuantizeLinear", &["x", "x step", "x zero"], &["q"]),
            node("DequantizeLinear", &["q", "x step", "x zero"], &["f"]),
            node("DequantizeLinear", &["w", "w step", "w zero"], &["g"]),
            node("Conv", &["f", "g"], &["a"]),
            node(activation, &["a"], &["b"]),
            pool,
            node("Transpose", &["c"], &["d"]),
            node("QuantizeLinear", &["d", "y step", "y zero"], &["e"]),
            node("DequantizeLinear", &["e", "y step", "y zero"], &["y"]),
        ];
        let initializer = vec![
            constant("x step", Tensor::of(&[], &[0.02_f32])),
            constant("x zero", Tensor::of(&[], &[131_u8])),
            constant("w", Tensor::of(&[8, 4, 3, 3], &weights)),
            constant("w step", Tensor::of(&[], &[0.01_f32])),
            constant("w zero", Tensor::of(&[], &[0_i8])),
            constant("y step", Tensor::of(&[], &[0.3_f32])),
            constant("y zero", Tensor::of(&[], &[120_u8])),
        ];
        let bytes = model(nodes, &[1, 4, 9, 7], initializer);
        let mut proto = ModelProto::decode(bytes).expect("a model");
        let tensor_type = Some(TensorTypeProto { elem_type: DType::F32.onnx(), shape: None });
        proto.graph.as_mut().expect("a graph").output[0].r#type = Some(TypeProto { tensor_type });
        let program = Program::compile(import(&proto), Options::default()).expect("the model compiles");
        let graph = program.graph();
        let count = |wanted: &str| graph.nodes.iter().filter(|node| node.op.name() == wanted).count();
        assert_eq!(quantised_convolutions(&graph), 1, "{activation}");
        // Into the convolution at its beginning, and out of what it ends with.
        assert_eq!([count("QuantizeLinear"), count("DequantizeLinear")], [1, 1], "{activation}");

        let x: Vec<f32> = (0..4 * 9 * 7).map(|i| ((i * 151) % 257) as f32 / 51.0 - 2.6).collect();
        let x = Tensor::of(&[1, 4, 9, 7], &x);
        let model = import(&proto);
        let context =
            interpret::Context { bytes_max: 1 << 30, cancelled: &|| false, target: program.target() };
        let expected = interpret::graph(&model.graph, vec![x.clone()], context).expect("it runs");
        let mut found: Vec<Tensor> = Vec::new();
        let mut session = Session::new(Arc::clone(&program));
        session.run(&[Input::from(&x)], &mut found, &|| false).expect("it runs");
        assert_eq!(found[0].shape(), expected[0].shape());
        let steps = |tensor: &Tensor| {
            let steps: Vec<u8> = tensor.floats().iter().map(|y| (y / 0.3).round() as i32 as u8).collect();
            Tensor::of(tensor.shape(), &steps)
        };
        let (found, expected) = (steps(&found[0]), steps(&expected[0]));
        let mut off = Steps::default();
        off.add(&found, &expected);
        assert!(off.keep() && off.values > 50, "{activation}: {off:?}");
        let mut different = expected.ints().expect("bytes");
        different.sort_unstable();
        different.dedup();
        assert!(different.len() > 10, "{activation}: only {different:?}");
    }
}

/// With a bias or a scale that sums of integers cannot stand for, the model stays as it is.
#[test]
fn what_sums_cannot_hold_stays_in_floats() {
    let constant = |name: &str, tensor: Tensor| TensorProto {
        name: name.into(),
        dims: tensor.shape().iter().map(|dim| *dim as i64).collect(),
        data_type: tensor.dtype().onnx(),
        raw_data: Bytes::copy_from_slice(tensor.bytes()),
        ..TensorProto::default()
    };
    // The weights' scale, the bias, and whether integers stand for both.
    for (scale, bias, integer) in [
        (1e-3, 1.0_f32, true),
        (1e-10, 1.0, false),
        (0.0, 1.0, false),
        (f32::NAN, 1.0, false),
        (1e-3, 1e7, false),
    ] {
        let nodes = vec![
            node("QuantizeLinear", &["x", "step", "zero"], &["q"]),
            node("DequantizeLinear", &["q", "step", "zero"], &["f"]),
            node("DequantizeLinear", &["w", "w step"], &["g"]),
            node("Conv", &["f", "g", "b"], &["a"]),
            node("QuantizeLinear", &["a", "step", "zero"], &["e"]),
            node("DequantizeLinear", &["e", "step", "zero"], &["y"]),
        ];
        let initializer = vec![
            constant("step", Tensor::of(&[], &[0.01_f32])),
            constant("zero", Tensor::of(&[], &[0_u8])),
            constant("w", Tensor::of(&[1, 1, 1, 1], &[1_i8])),
            constant("w step", Tensor::of(&[], &[scale])),
            constant("b", Tensor::of(&[1], &[bias])),
        ];
        let mut proto = ModelProto::decode(model(nodes, &[1, 1, 2, 2], initializer)).expect("a model");
        let tensor_type = Some(TensorTypeProto { elem_type: DType::F32.onnx(), shape: None });
        proto.graph.as_mut().expect("a graph").output[0].r#type = Some(TypeProto { tensor_type });
        // A dequantise without a zero point takes its input's type.
        let initializer = &mut proto.graph.as_mut().expect("a graph").initializer;
        initializer.push(constant("w zero", Tensor::of(&[], &[0_i8])));
        proto.graph.as_mut().expect("a graph").node[2].input.push("w zero".into());
        let program = Program::compile(import(&proto), Options::default()).expect("the model compiles");
        let case = format!("a scale of {scale}, a bias of {bias}");
        assert_eq!(quantised_convolutions(&program.graph()), usize::from(integer), "{case}");
        let x = Tensor::of(&[1, 1, 2, 2], &[0.5_f32; 4]);
        let imported = import(&proto);
        let context =
            interpret::Context { bytes_max: 1 << 30, cancelled: &|| false, target: program.target() };
        let expected = interpret::graph(&imported.graph, vec![x.clone()], context).expect("it runs");
        let mut found: Vec<Tensor> = Vec::new();
        let mut session = Session::new(Arc::clone(&program));
        session.run(&[Input::from(&x)], &mut found, &|| false).expect("it runs");
        assert_eq!(found[0].bytes(), expected[0].bytes(), "{case}");
    }
}

#[test]
fn steps_beyond_the_promise_are_seen() {
    let of = |changed: &[(usize, u8)]| {
        let expected = vec![100_u8; 2_000];
        let mut found = expected.clone();
        changed.iter().for_each(|(at, by)| found[*at] += by);
        let mut steps = Steps::default();
        steps.add(&Tensor::of(&[2_000], &found), &Tensor::of(&[2_000], &expected));
        steps.keep()
    };
    assert!(of(&[]) && of(&[(0, 1), (1, 1), (2, 1), (3, 1)]) && of(&[(7, 2), (8, 2)]));
    assert!(!of(&[(7, 3)]) && !of(&[(7, 2), (8, 2), (9, 2)]));
}
