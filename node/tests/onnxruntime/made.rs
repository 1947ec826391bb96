//! Small graphs that are made here: element types, weights in files, and what is refused.

use std::path::Path;

use bytes::Bytes;
use prost::Message;
use roost_node::engine::{Engine, EngineError};
use roost_protocol::messages::infer::Named;
use roost_protocol::{DType, Shape, Tensor};

use crate::onnx::{
    AttributeProto, DimProto, EntryProto, GraphProto, ModelProto, NodeProto, OpsetProto, ShapeProto,
    TensorProto, TensorTypeProto, TypeProto, ValueInfoProto, bundle_of, engine, numbers, onnx_type, run,
};
use crate::refused;

/// `AttributeProto.AttributeType`.
const ATTRIBUTE_TENSOR: i32 = 4;
const ATTRIBUTE_GRAPH: i32 = 5;

fn port(name: &str, dtype: i32, dims: &[Option<i64>]) -> ValueInfoProto {
    let dim = |dim: &Option<i64>| DimProto { dim_value: *dim, dim_param: None };
    let shape = Some(ShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type: dtype, shape });
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }) }
}

fn node(operator: &str, input: &[&str]) -> NodeProto {
    let input = input.iter().map(|name| (*name).to_owned()).collect();
    NodeProto { input, output: vec!["y".to_owned()], op_type: operator.to_owned(), ..NodeProto::default() }
}

fn model(graph: GraphProto) -> ModelProto {
    let opset = OpsetProto { domain: String::new(), version: 19 };
    ModelProto {
        ir_version: 9,
        graph: Some(GraphProto { name: "g".to_owned(), ..graph }),
        opset_import: vec![opset],
    }
}

fn identity(dtype: i32, dims: &[Option<i64>]) -> ModelProto {
    let (input, output) = (vec![port("x", dtype, dims)], vec![port("y", dtype, dims)]);
    model(GraphProto { node: vec![node("Identity", &["x"])], input, output, ..GraphProto::default() })
}

fn bytes(model: &ModelProto) -> Bytes {
    model.encode_to_vec().into()
}

#[test]
fn every_element_type_goes_in_and_comes_out() {
    for dtype in DType::ALL {
        let mut session =
            engine().load(&bundle_of(bytes(&identity(onnx_type(dtype), &[None, Some(3)])))).unwrap();
        assert_eq!(session.signature().inputs[0].dtype, dtype);
        for rows in [0, 1, 5] {
            let tensor = match dtype.element_bytes() {
                None => {
                    let texts = ["", "zwei", "日本", "a b", "\n"].into_iter().cycle().take(rows * 3);
                    Tensor::from_strings(&[rows as u64, 3], &texts.collect::<Vec<_>>()).unwrap()
                }
                // Bits that are no boolean for a boolean; else each element is another.
                Some(width) => {
                    let modulus = if dtype == DType::Bool { 2 } else { 113 };
                    let bytes: Vec<_> = (0..rows * 3 * width).map(|i| (i % modulus) as u8).collect();
                    Tensor::new(dtype, Shape::new(&[rows as u64, 3]).unwrap(), bytes.into()).unwrap()
                }
            };
            let outputs = run(&mut *session, std::slice::from_ref(&tensor)).unwrap();
            assert_eq!(outputs, [Named { name: "y".to_owned(), tensor }], "{dtype}, {rows} rows");
        }
    }
}

#[test]
fn scalars_and_tensors_of_rank_8_go_through() {
    let check = |dims: &[u64]| {
        let declared: Vec<_> = dims.iter().map(|dim| Some(*dim as i64)).collect();
        let mut session = engine().load(&bundle_of(bytes(&identity(1, &declared)))).unwrap();
        let tensor =
            Tensor::from_elements(dims, vec![1.5f32; dims.iter().product::<u64>() as usize]).unwrap();
        assert_eq!(run(&mut *session, std::slice::from_ref(&tensor)).unwrap()[0].tensor, tensor);
    };
    check(&[]);
    check(&[1, 2, 1, 2, 1, 2, 1, 2]);
}

#[test]
fn a_string_that_cannot_be_passed_is_an_error() {
    let mut session = engine().load(&bundle_of(bytes(&identity(8, &[None])))).unwrap();
    let tensor = Tensor::from_strings(&[2], &["fine", "zero\0byte"]).unwrap();
    assert!(matches!(run(&mut *session, &[tensor]), Err(EngineError::Run(_))));
}

#[test]
fn what_tensors_cannot_be_is_refused_by_name() {
    const FLOAT8: i32 = 17;
    let error = refused(&bundle_of(bytes(&identity(FLOAT8, &[None]))));
    let expected = EngineError::UnsupportedDType { port: "x".to_owned(), dtype: "f8_e4m3fn".to_owned() };
    assert_eq!(error, expected);
    let error = refused(&bundle_of(bytes(&identity(1, &[None; 9]))));
    assert!(
        matches!(&error, EngineError::Unsupported(text) if text.contains("x has 9 dimensions")),
        "{error:?}"
    );
}

#[test]
fn unknown_operators_and_opsets_are_unsupported() {
    let unknown = |operator: &str, domain: &str, version| {
        let mut model = identity(1, &[None]);
        let graph = model.graph.as_mut().unwrap();
        graph.node[0].op_type = operator.to_owned();
        graph.node[0].domain = domain.to_owned();
        model.opset_import.push(OpsetProto { domain: domain.to_owned(), version });
        refused(&bundle_of(bytes(&model)))
    };
    for error in [unknown("Nothing", "", 19), unknown("Own", "example", 1), unknown("Identity", "", 999)] {
        assert!(matches!(error, EngineError::Unsupported(_)), "{error:?}");
    }
}

#[test]
fn a_graph_that_does_not_hold_together_is_refused() {
    let mut dangling = identity(1, &[None]);
    dangling.graph.as_mut().unwrap().node[0].input[0] = "nowhere".to_owned();
    let mut mistyped = identity(1, &[None]);
    mistyped.graph.as_mut().unwrap().output[0] = port("y", 7, &[None]);
    for model in [dangling, mistyped] {
        let error = refused(&bundle_of(bytes(&model)));
        assert!(matches!(error, EngineError::Unsupported(_)), "{error:?}");
    }
    let error = refused(&bundle_of(bytes(&ModelProto { ir_version: 9, ..ModelProto::default() })));
    assert_eq!(error, EngineError::NotAModel("it has no graph".to_owned()));
}

fn external(location: &str) -> TensorProto {
    let entry = |key: &str, value: &str| EntryProto { key: key.to_owned(), value: value.to_owned() };
    let external_data = vec![entry("location", location), entry("offset", "0"), entry("length", "8")];
    TensorProto {
        dims: vec![2],
        data_type: 1,
        name: "w".to_owned(),
        external_data,
        data_location: 1,
        ..TensorProto::default()
    }
}

/// `y = x + w`, with `w` in another file.
fn add_external(location: &str) -> Bytes {
    bytes(&model(GraphProto {
        node: vec![node("Add", &["x", "w"])],
        initializer: vec![external(location)],
        input: vec![port("x", 1, &[Some(2)])],
        output: vec![port("y", 1, &[Some(2)])],
        ..GraphProto::default()
    }))
}

fn weights() -> Bytes {
    [1.5f32, -2.0].iter().flat_map(|w| w.to_le_bytes()).collect()
}

#[test]
fn weights_come_from_the_bundle() {
    for location in ["w.bin", "./w.bin"] {
        let mut bundle = bundle_of(add_external(location));
        bundle.files.insert("w.bin".to_owned(), weights());
        let mut session = engine().load(&bundle).unwrap_or_else(|error| panic!("{location}: {error}"));
        drop(bundle);
        let x = Tensor::from_elements(&[2], vec![1f32, 1.0]).unwrap();
        assert_eq!(numbers(&run(&mut *session, &[x]).unwrap()[0].tensor), [2.5, -1.0]);
    }
}

#[test]
fn weights_come_from_nowhere_else() {
    let folder = tempfile::tempdir().unwrap();
    let outside = folder.path().join("w.bin");
    std::fs::write(&outside, weights()).unwrap();
    let outside = outside.to_str().unwrap();
    for location in ["w.bin", outside, "../w.bin", "*/_ORT_MEM_ADDR_/*", "", "model.onnx/../w.bin"] {
        let error = refused(&bundle_of(add_external(location)));
        assert_eq!(error, EngineError::MissingFile(location.to_owned()));
    }
}

#[test]
fn weights_that_are_too_short_are_refused() {
    for bytes in [Bytes::new(), weights().slice(..7)] {
        let mut bundle = bundle_of(add_external("w.bin"));
        bundle.files.insert("w.bin".to_owned(), bytes);
        let error = refused(&bundle);
        assert!(
            matches!(&error, EngineError::Unsupported(text) if text.contains("out of bounds")),
            "{error:?}"
        );
    }
}

#[test]
fn the_weights_of_a_constant_come_from_the_bundle() {
    let value = AttributeProto {
        name: "value".to_owned(),
        t: Some(external("w.bin")),
        r#type: ATTRIBUTE_TENSOR,
        ..AttributeProto::default()
    };
    let constant = NodeProto { attribute: vec![value], ..node("Constant", &[]) };
    let output = vec![port("y", 1, &[Some(2)])];
    let mut bundle =
        bundle_of(bytes(&model(GraphProto { node: vec![constant], output, ..GraphProto::default() })));
    bundle.files.insert("w.bin".to_owned(), weights());
    let mut session = engine().load(&bundle).unwrap();
    assert_eq!(numbers(&run(&mut *session, &[]).unwrap()[0].tensor), [1.5, -2.0]);
}

/// ONNX Runtime takes those from the disk alone, and so must not find any.
#[test]
fn the_weights_of_a_subgraph_are_not_looked_for_on_the_disk() {
    let branch = |name: &str| {
        let identity = NodeProto { output: vec!["z".to_owned()], ..node("Identity", &["w"]) };
        let graph = GraphProto {
            name: name.to_owned(),
            node: vec![identity],
            initializer: vec![external("Cargo.toml")],
            output: vec![port("z", 1, &[Some(2)])],
            ..GraphProto::default()
        };
        let (name, g) = (name.to_owned(), Some(graph));
        AttributeProto { name, g, r#type: ATTRIBUTE_GRAPH, ..AttributeProto::default() }
    };
    let choice =
        NodeProto { attribute: vec![branch("then_branch"), branch("else_branch")], ..node("If", &["x"]) };
    let (input, output) = (vec![port("x", 9, &[])], vec![port("y", 1, &[Some(2)])]);
    let model = model(GraphProto { node: vec![choice], input, output, ..GraphProto::default() });
    let mut bundle = bundle_of(bytes(&model));
    bundle.files.insert("Cargo.toml".to_owned(), weights());
    // A file of that name is in the current folder.
    assert!(Path::new("Cargo.toml").is_file());
    let error = refused(&bundle);
    assert!(matches!(&error, EngineError::Unsupported(text) if text.contains("/nonexistent/")), "{error:?}");
}
