//! Quantising at its edges: how scales are laid out, models whose types do not fit, values that are no
//! numbers.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use roost_kernels::Isa;
use roost_native::exec::interpret;
use roost_native::onnx::proto::{
    AttributeProto, ModelProto, NodeProto, TensorProto, TensorTypeProto, TypeProto,
};
use roost_native::program::{CompileError, Options};
use roost_native::{DType, ImportError, Input, OpError, Program, Session, Tensor};

use crate::empty::{Attribute, Given, full, run};
use crate::hostile::{import, model, node};

/// Dequantises integers whose scales lie at these places, and quantises the result to the integers again.
fn scaled(shape: &[usize], scales: &[usize], [axis, block]: [i64; 2], places: &[usize]) {
    let case = format!("{shape:?} by {scales:?}, axis {axis}, blocks of {block}");
    let count: usize = scales.iter().product();
    let scale: Vec<f32> = (0..count).map(|i| 0.5 * (i + 1) as f32).collect();
    let zero: Vec<u8> = (0..count).map(|i| 3 * i as u8).collect();
    let integers: Vec<u8> = (0..places.len()).map(|i| 7 * i as u8 + 40).collect();
    let float =
        |(integer, place): (&u8, &usize)| (f32::from(*integer) - f32::from(zero[*place])) * scale[*place];
    let floats: Vec<f32> = integers.iter().zip(places).map(float).collect();
    let tensors = [Tensor::of(scales, &scale), Tensor::of(scales, &zero)].map(Some);
    let attributes = [Attribute::One("axis", axis), Attribute::One("block_size", block)];
    let (integers, floats) = (Tensor::of(shape, &integers), Tensor::of(shape, &floats));
    for given in [Given::First, Given::All, Given::None] {
        for (op, from, to) in
            [("DequantizeLinear", &integers, &floats), ("QuantizeLinear", &floats, &integers)]
        {
            let inputs = [&[Some(from.clone())], &tensors[..]].concat();
            let found = run(op, &attributes, &inputs, 1, given, Isa::best());
            let found = found.unwrap_or_else(|error| panic!("{op}, {case}, {given:?}: {error}"));
            assert_eq!(found[0].bytes(), to.bytes(), "{op}, {case}, {given:?}");
        }
    }
}

#[test]
fn every_layout_of_scales_reaches_its_elements() {
    scaled(&[2, 3], &[], [1, 0], &[0; 6]);
    scaled(&[2, 3], &[3], [1, 0], &[0, 1, 2, 0, 1, 2]);
    scaled(&[2, 3], &[2], [-2, 0], &[0, 0, 0, 1, 1, 1]);
    scaled(&[2, 3], &[2, 2], [1, 2], &[0, 0, 1, 2, 2, 3]);
    scaled(&[3, 2], &[2, 2], [0, 2], &[0, 1, 0, 1, 2, 3]);
    // Blocks of one, and of more than there is: neither is a scale for each place of the axis, nor one for
    // all.
    scaled(&[2, 3], &[2, 3], [1, 1], &[0, 1, 2, 3, 4, 5]);
    scaled(&[4, 1], &[4, 1], [1, 2], &[0, 1, 2, 3]);
    scaled(&[1, 4], &[1, 1], [1, 4], &[0; 4]);
}

fn constant(name: &str, tensor: Tensor) -> TensorProto {
    TensorProto {
        name: name.into(),
        dims: tensor.shape().iter().map(|dim| *dim as i64).collect(),
        data_type: tensor.dtype().onnx(),
        raw_data: Bytes::copy_from_slice(tensor.bytes()),
        ..TensorProto::default()
    }
}

/// A pool over windows of two by two.
fn pool(x: &str, y: &str) -> NodeProto {
    let kernel = AttributeProto {
        name: "kernel_shape".into(),
        kind: 7,
        ints: vec![2, 2],
        ..AttributeProto::default()
    };
    NodeProto { attribute: vec![kernel], ..node("MaxPool", &[x], &[y]) }
}

/// Two values, one after the other along the first dimension.
fn concat(parts: [&str; 2], y: &str) -> NodeProto {
    let axis = AttributeProto { name: "axis".into(), kind: 2, i: 0, ..AttributeProto::default() };
    NodeProto { attribute: vec![axis], ..node("Concat", &parts, &[y]) }
}

/// Compiles a model over an image `[1, 1, 4, 4]` of these nodes, with steps, zero points and weights.
fn compile(nodes: Vec<NodeProto>) -> (Bytes, Result<Arc<Program>, CompileError>) {
    let weights: Vec<i8> = (0..9).map(|i| (25 * i - 100) as i8).collect();
    let constants = vec![
        constant("step", Tensor::of(&[], &[0.25_f32])),
        constant("other", Tensor::of(&[], &[0.5_f32])),
        constant("u8", full(DType::U8, &[], 0.0)),
        constant("i8", full(DType::I8, &[], 0.0)),
        constant("w", Tensor::of(&[1, 1, 3, 3], &weights)),
        constant("floats", Tensor::of(&[1, 1, 1, 1], &[2.0_f32])),
    ];
    let mut proto = ModelProto::decode(model(nodes, &[1, 1, 4, 4], constants)).expect("a model");
    let tensor_type = Some(TensorTypeProto { elem_type: DType::F32.onnx(), shape: None });
    proto.graph.as_mut().expect("a graph").output[0].r#type = Some(TypeProto { tensor_type });
    let bytes = Bytes::from(proto.encode_to_vec());
    let imported = import(bytes.clone()).expect("it imports");
    (bytes, Program::compile(imported, Options::default()))
}

/// How often an operator is in a compiled graph.
fn count(program: &Program, op: &str) -> usize {
    program.graph().nodes.iter().filter(|node| node.op.name() == op).count()
}

/// Bytes of one sign that are dequantised with a zero point of the other stay refused, whatever a pass could
/// make of them.
#[test]
fn zero_points_of_another_type_than_their_bytes_are_refused() {
    let relu = || vec![node("Relu", &["f"], &["m"])];
    let moved = || vec![node("Transpose", &["f"], &["m"])];
    let joined = || vec![concat(["f", "f"], "m")];
    // What is between, and the last step.
    let cases = [
        ("nothing", vec![node("Identity", &["f"], &["m"])], "step"),
        ("another step", vec![node("Identity", &["f"], &["m"])], "other"),
        ("a ReLU", relu(), "step"),
        ("a ReLU, another step", relu(), "other"),
        ("a maximum", vec![pool("f", "m")], "step"),
        ("a maximum, another step", vec![pool("f", "m")], "other"),
        ("a move", moved(), "step"),
        ("a concat", joined(), "step"),
        ("a concat, another step", joined(), "other"),
        (
            "a convolution",
            vec![node("DequantizeLinear", &["w", "step", "i8"], &["g"]), node("Conv", &["f", "g"], &["m"])],
            "step",
        ),
    ];
    for (case, between, step) in cases {
        for (made, read) in [("i8", "i8"), ("u8", "u8"), ("i8", "u8"), ("u8", "i8")] {
            let mut nodes = vec![
                node("QuantizeLinear", &["x", "step", made], &["q"]),
                node("DequantizeLinear", &["q", "step", read], &["f"]),
            ];
            nodes.extend(between.clone());
            nodes.push(node("QuantizeLinear", &["m", step, read], &["e"]));
            nodes.push(node("DequantizeLinear", &["e", step, read], &["y"]));
            match compile(nodes).1 {
                Ok(program) => {
                    assert_eq!(made, read, "{case}");
                    // All between is in integers.
                    let left = [count(&program, "QuantizeLinear"), count(&program, "DequantizeLinear")];
                    assert_eq!(left, [1, 1], "{case}");
                }
                Err(CompileError::Import(ImportError::Op { source: OpError::DType { .. }, .. })) => {
                    assert_ne!(made, read, "{case}");
                }
                Err(other) => panic!("{case}, {made} as {read}: {other}"),
            }
        }
    }
    let nodes = vec![
        node("QuantizeLinear", &["x", "step", "u8"], &["q"]),
        node("DequantizeLinear", &["q", "step", "u8"], &["f"]),
        node("DequantizeLinear", &["w", "step", "u8"], &["g"]),
        node("Conv", &["f", "g"], &["m"]),
        node("QuantizeLinear", &["m", "step", "u8"], &["e"]),
        node("DequantizeLinear", &["e", "step", "u8"], &["y"]),
    ];
    let refused = compile(nodes).1.map(|_| ());
    let Err(CompileError::Import(ImportError::Op { source: OpError::DType { input: 2, .. }, .. })) = refused
    else {
        panic!("weights with a zero point of another type: {refused:?}")
    };
}

/// A window with NaN has NaN for a maximum, which becomes the least byte; of bytes the others would be the
/// maximum.
#[test]
fn a_quantise_stays_behind_a_maximum_of_what_may_be_no_number() {
    for (op, inputs) in [("Relu", &["x"][..]), ("Conv", &["x", "floats"])] {
        let nodes = vec![
            node(op, inputs, &["a"]),
            pool("a", "b"),
            node("QuantizeLinear", &["b", "step", "u8"], &["e"]),
            node("DequantizeLinear", &["e", "step", "u8"], &["y"]),
        ];
        let (bytes, program) = compile(nodes);
        let program = program.expect("it compiles");
        let mut x: Vec<f32> = (0..16).map(|i| i as f32 - 3.0).collect();
        x[5] = f32::NAN;
        let x = Tensor::of(&[1, 1, 4, 4], &x);
        let imported = import(bytes).expect("it imports");
        let context =
            interpret::Context { bytes_max: 1 << 30, cancelled: &|| false, target: program.target() };
        let expected = interpret::graph(&imported.graph, vec![x.clone()], context).expect("it runs");
        let mut found: Vec<Tensor> = Vec::new();
        let mut session = Session::new(Arc::clone(&program));
        session.run(&[Input::from(&x)], &mut found, &|| false).expect("it runs");
        let found = found[0].floats();
        assert_eq!(found, expected[0].floats(), "{op}");
        // The four windows that hold it, and no others.
        assert_eq!(found.iter().filter(|value| **value == 0.0).count(), 4, "{op}: {found:?}");
    }
}
