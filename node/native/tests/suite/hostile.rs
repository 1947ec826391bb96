//! What is malformed, unsupported or huge ends in the typed error that says so. Bytes and models that a seed
//! draws are in a test of their own, which counts memory.

use bytes::Bytes;
use prost::Message;
use roost_native::onnx::external::Files;
use roost_native::onnx::proto::{
    AttributeProto, DimProto, DimValue, GraphProto, ModelProto, NodeProto, OperatorSetId, ShapeProto,
    TensorProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use roost_native::program::Options;
use roost_native::{DType, ImportError, Input, Limits, Model, OpError, Program, RunError, Session, Tensor};

fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |size: &i64| DimProto { value: Some(DimValue::Value(*size)) };
    let tensor_type = Some(TensorTypeProto {
        elem_type: DType::F32.onnx(),
        shape: Some(ShapeProto { dim: dims.iter().map(dim).collect() }),
    });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

pub fn node(op: &str, inputs: &[&str], outputs: &[&str]) -> NodeProto {
    let names = |list: &[&str]| list.iter().map(|name| (*name).to_owned()).collect();
    NodeProto { op_type: op.into(), input: names(inputs), output: names(outputs), ..NodeProto::default() }
}

pub fn model(nodes: Vec<NodeProto>, input: &[i64], initializer: Vec<TensorProto>) -> Bytes {
    let graph = GraphProto {
        node: nodes,
        input: vec![info("x", input)],
        output: vec![info("y", &[1])],
        initializer,
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetId { domain: String::new(), version: 17 }];
    Bytes::from(ModelProto { ir_version: 8, opset_import, graph: Some(graph) }.encode_to_vec())
}

pub fn import(bytes: Bytes) -> Result<Model, ImportError> {
    Model::import_bytes(bytes, &Files::new(), Limits::default())
}

/// Another engine may take such models; this one says what it is, and not that they are malformed.
#[test]
fn text_and_small_floats_are_not_supported() {
    for (data_type, what) in [(8, "text"), (17, "a float of 8 bits")] {
        let tensor = TensorProto { name: "w".into(), dims: vec![1], data_type, ..TensorProto::default() };
        let initialised = model(vec![node("Identity", &["w"], &["y"])], &[1], vec![tensor.clone()]);
        let mut constant = node("Constant", &[], &["y"]);
        let t = Some(tensor);
        constant.attribute.push(AttributeProto {
            name: "value".into(),
            kind: 4,
            t,
            ..AttributeProto::default()
        });
        for bytes in [initialised, model(vec![constant], &[1], vec![])] {
            let refused = import(bytes).expect_err(what);
            assert!(matches!(refused, ImportError::Unsupported(_)), "{what}: {refused}");
        }
    }
}

#[test]
fn malformed_graphs_are_typed_errors() {
    let cycle =
        vec![node("Relu", &["b"], &["a"]), node("Relu", &["a"], &["b"]), node("Relu", &["a"], &["y"])];
    assert!(matches!(import(model(cycle, &[1], vec![])), Err(ImportError::Graph(_))));
    let missing = vec![node("Add", &["x", "nobody"], &["y"])];
    assert!(matches!(import(model(missing, &[1], vec![])), Err(ImportError::Node { .. })));
    // The third would be taken for the bias that a pass puts there.
    let more = vec![node("MatMul", &["x", "x", "x"], &["y"])];
    assert!(matches!(import(model(more, &[1], vec![])), Err(ImportError::Node { .. })));
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
    let program = Program::compile(model, Options::default()).expect("it compiles");
    let x = Tensor::of(&[1], &[1.0_f32]);
    let run = Session::new(program).run(&[Input::from(&x)], &mut Vec::<Tensor>::new(), &|| false);
    let Err(RunError::Op { op, source: OpError::TooLarge { bytes, bytes_max }, .. }) = run else {
        panic!("{run:?}")
    };
    // Past all addresses, before any other limit.
    assert_eq!((op.as_str(), bytes, bytes_max), ("Expand", 1 << 92, u64::MAX));
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
    cast.attribute.push(AttributeProto {
        name: "to".into(),
        i: i64::from(DType::I32.onnx()),
        ..Default::default()
    });
    let nodes = vec![cast, node("Div", &["i", "zero"], &["y"])];
    let model = import(model(nodes, &[1], vec![zero])).expect("well-formed");
    let program = Program::compile(model, Options::default()).expect("compiles");
    let x = Tensor::of(&[1], &[1.0_f32]);
    let error = Session::new(program).run(&[Input::from(&x)], &mut Vec::<Tensor>::new(), &|| false);
    assert!(matches!(error, Err(RunError::Op { source: OpError::DivisionByZero, .. })));
}
