//! The importer takes any bytes: it gives a model or a typed error, never a panic and never a huge allocation.

use bytes::Bytes;
use proptest::prelude::*;
use prost::Message;
use roost_native::onnx::external::Files;
use roost_native::onnx::proto::{
    DimProto, DimValue, GraphProto, ModelProto, NodeProto, OperatorSetId, ShapeProto, TensorProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use roost_native::program::Options;
use roost_native::{DType, ImportError, Input, Limits, Model, Program, Session, Tensor};

use crate::places;

/// Imports, compiles, and runs with ones where shapes are small.
fn swallow(bytes: Bytes) {
    let limits = Limits { arena_bytes_max: 1 << 24, folded_bytes_max: 1 << 22, ..Limits::default() };
    let Ok(model) = Model::import_bytes(bytes, &Files::new(), limits) else { return };
    let Ok(program) = Program::compile(model, Options::default()) else { return };
    let Some(shapes) = roost_native::inspect::declared_shapes(&program, 1) else { return };
    let tensors: Vec<Tensor> = program
        .inputs()
        .iter()
        .zip(&shapes)
        .filter_map(|(port, shape)| {
            let bytes = roost_native::tensor::bytes_of(port.dtype, shape).filter(|bytes| *bytes < 1 << 20)?;
            Some(Tensor::of_dtype(port.dtype, shape, &vec![0; bytes]))
        })
        .collect();
    let inputs: Vec<Input<'_>> = tensors.iter().map(Input::from).collect();
    let _ = Session::new(program).run(&inputs, &mut Vec::<Tensor>::new(), &|| false);
}

/// Small models of every kind that the engine has: products, convolutions, both forms of 8 bits, recurrence, attention.
const MUTATED: [&str; 7] = [
    "digits_v1_logreg",
    "digits_v2_conv",
    "digits_v2_int8_qdq",
    "mnist_int8_convinteger",
    "digits_lstm",
    "digits_vit_int8_dynamic",
    "light_squeezenet",
];

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        swallow(Bytes::from(bytes));
    }

    #[test]
    fn any_change_of_a_model(
        which in 0..MUTATED.len(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut bytes = std::fs::read(places::model(MUTATED[which]).join("model.onnx")).expect("readable");
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        swallow(Bytes::from(bytes));
    }
}

fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |size: &i64| DimProto { value: Some(DimValue::Value(*size)) };
    let tensor_type = Some(TensorTypeProto {
        elem_type: DType::F32.onnx(),
        shape: Some(ShapeProto { dim: dims.iter().map(dim).collect() }),
    });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    NodeProto { op_type: op.into(), input: names(inputs), output: names(outputs), ..NodeProto::default() }
}

fn model(nodes: Vec<NodeProto>, input: &[i64], initializer: Vec<TensorProto>) -> Bytes {
    let graph = GraphProto {
        node: nodes,
        input: vec![info("x", input)],
        output: vec![info("y", &[1])],
        initializer,
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetId { domain: String::new(), version: 17 }];
    Bytes::from(
        ModelProto { ir_version: 8, opset_import, graph: Some(graph), ..ModelProto::default() }
            .encode_to_vec(),
    )
}

fn import(bytes: Bytes) -> Result<Model, ImportError> {
    Model::import_bytes(bytes, &Files::new(), Limits::default())
}

#[test]
fn malformed_graphs_are_typed_errors() {
    let cycle =
        vec![node("Relu", &["b"], &["a"]), node("Relu", &["a"], &["b"]), node("Relu", &["a"], &["y"])];
    assert!(matches!(import(model(cycle, &[1], vec![])), Err(ImportError::Graph(_))));
    let missing = vec![node("Add", &["x", "nobody"], &["y"])];
    assert!(matches!(import(model(missing, &[1], vec![])), Err(ImportError::Node { .. })));
    let twice = vec![node("Relu", &["x"], &["y"]), node("Relu", &["x"], &["y"])];
    assert!(matches!(import(model(twice, &[1], vec![])), Err(ImportError::Graph(_))));
    let nothing = vec![node("Relu", &["x"], &["z"])];
    assert!(matches!(import(model(nothing, &[1], vec![])), Err(ImportError::Graph(_))));
    let negative = vec![node("Relu", &["x"], &["y"])];
    assert!(matches!(import(model(negative, &[-7], vec![])), Err(ImportError::Tensor { .. })));
    assert!(matches!(import(Bytes::from_static(b"\xff\xff\xff")), Err(ImportError::NotAModel(_))));
    assert!(matches!(import(Bytes::new()), Err(ImportError::NotAModel(_))));
}

#[test]
fn everything_unsupported_is_listed_once() {
    let nodes = vec![
        node("Loop", &["x"], &["a"]),
        node("StringSplit", &["a"], &["b"]),
        node("Loop", &["b"], &["c"]),
        node("Relu", &["c"], &["y"]),
    ];
    let Err(ImportError::Unsupported(list)) = import(model(nodes, &[1], vec![])) else {
        panic!("unsupported")
    };
    let names: Vec<&str> = list.iter().map(|op| op.op.as_str()).collect();
    assert_eq!(names, ["Loop", "StringSplit"]);
}

#[test]
fn huge_shapes_are_refused_before_anything_is_allocated() {
    let shape = TensorProto {
        name: "shape".into(),
        dims: vec![3],
        data_type: DType::I64.onnx(),
        int64_data: vec![1 << 30, 1 << 30, 1 << 30],
        ..TensorProto::default()
    };
    let nodes = vec![node("Expand", &["x", "shape"], &["y"])];
    let Ok(model) = import(model(nodes, &[1], vec![shape])) else { panic!("the graph is well-formed") };
    let run = Program::compile(model, Options::default()).map(|program| {
        let x = Tensor::of(&[1], &[1.0_f32]);
        Session::new(program).run(&[Input::from(&x)], &mut Vec::<Tensor>::new(), &|| false)
    });
    assert!(!matches!(run, Ok(Ok(()))));
}

#[test]
fn integer_division_by_zero_is_an_error() {
    let zero = TensorProto {
        name: "zero".into(),
        dims: vec![1],
        data_type: DType::I32.onnx(),
        int32_data: vec![0],
        ..TensorProto::default()
    };
    let mut cast = node("Cast", &["x"], &["i"]);
    cast.attribute.push(roost_native::onnx::proto::AttributeProto {
        name: "to".into(),
        i: i64::from(DType::I32.onnx()),
        ..Default::default()
    });
    let nodes = vec![cast, node("Div", &["i", "zero"], &["y"])];
    let model = import(model(nodes, &[1], vec![zero])).expect("well-formed");
    let program = Program::compile(model, Options::default()).expect("compiles");
    let x = Tensor::of(&[1], &[1.0_f32]);
    let error = Session::new(program).run(&[Input::from(&x)], &mut Vec::<Tensor>::new(), &|| false);
    assert!(matches!(
        error,
        Err(roost_native::RunError::Op { source: roost_native::OpError::DivisionByZero, .. })
    ));
}
