//! Each limit refuses what is just above it with its typed error, and takes what reaches it.

use bytes::Bytes;
use prost::Message;
use roost_native::onnx::external::Files;
use roost_native::onnx::import::PACKED_TIMES;
use roost_native::onnx::proto::{
    AttributeProto, DimProto, DimValue, GraphProto, ModelProto, NodeProto, OperatorSetId, ShapeProto,
    TensorProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use roost_native::program::Options;
use roost_native::tensor::NoMemory;
use roost_native::{DType, ImportError, Input, Limits, Model, OpError, Program, RunError, Session, Tensor};

fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let dim = |size: &i64| DimProto { value: Some(DimValue::Value(*size)) };
    let shape = Some(ShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type: DType::F32.onnx(), shape });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

fn node(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    let input = inputs.iter().map(|name| (*name).to_owned()).collect();
    NodeProto { op_type: op.into(), input, output: vec![output.into()], ..NodeProto::default() }
}

/// A model from `x`, of so many numbers, to `y`.
fn model(node: Vec<NodeProto>, numbers: i64, initializer: Vec<TensorProto>) -> Bytes {
    let graph = GraphProto {
        node,
        input: vec![info("x", &[numbers])],
        output: vec![info("y", &[numbers])],
        initializer,
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetId { domain: String::new(), version: 17 }];
    let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph) };
    Bytes::from(model.encode_to_vec())
}

/// A chain of so many nodes.
fn chain(nodes: usize, numbers: i64) -> Bytes {
    let name = |i: usize| if i == nodes { "y".to_owned() } else { format!("v{i}") };
    let node = |i: usize| match i {
        0 => node("Sigmoid", &["x"], &name(1)),
        _ => node("Sigmoid", &[&name(i)], &name(i + 1)),
    };
    model((0..nodes).map(node).collect(), numbers, vec![])
}

/// An `If` whose branches have one of their own, so deep; there is a node beside each.
fn nested(depth: usize, output: &str) -> Vec<NodeProto> {
    if depth == 0 {
        return vec![node("Relu", &["x"], output)];
    }
    let branch = |name: &str| {
        let made = format!("{output} {name}");
        let graph = GraphProto {
            node: nested(depth - 1, &made),
            output: vec![info(&made, &[1])],
            ..GraphProto::default()
        };
        AttributeProto { name: name.into(), kind: 5, g: Some(graph), ..AttributeProto::default() }
    };
    let attribute = vec![branch("then_branch"), branch("else_branch")];
    vec![NodeProto { attribute, ..node("If", &["flag"], output) }]
}

fn nested_model(depth: usize) -> Bytes {
    let flag = TensorProto {
        name: "flag".into(),
        data_type: DType::Bool.onnx(),
        int32_data: vec![1],
        ..TensorProto::default()
    };
    model(nested(depth, "y"), 1, vec![flag])
}

/// Multiplies `x`, of so many numbers, by a column of zeros that folding makes.
fn column(numbers: i64) -> Bytes {
    let shape = TensorProto {
        name: "shape".into(),
        dims: vec![2],
        data_type: DType::I64.onnx(),
        int64_data: vec![numbers, 1],
        ..TensorProto::default()
    };
    let nodes = vec![node("ConstantOfShape", &["shape"], "zeros"), node("MatMul", &["x", "zeros"], "y")];
    model(nodes, numbers, vec![shape])
}

/// Adds to `x`, of one number, a constant of `numbers` zeros, which folding makes.
fn folding(numbers: i64) -> Bytes {
    let shape = TensorProto {
        name: "shape".into(),
        dims: vec![1],
        data_type: DType::I64.onnx(),
        int64_data: vec![numbers],
        ..TensorProto::default()
    };
    let nodes = vec![node("ConstantOfShape", &["shape"], "zeros"), node("Add", &["x", "zeros"], "y")];
    model(nodes, 1, vec![shape])
}

/// What a limit said.
#[derive(Debug, PartialEq)]
enum Said {
    Well,
    Limit { what: &'static str, found: u64, max: u64 },
    Arena { bytes: u64, bytes_max: u64 },
    TooLarge { bytes: u128, bytes_max: u64 },
}

/// Imports, compiles and runs.
fn met(bytes: Bytes, numbers: usize, limits: Limits) -> Said {
    let model = match Model::import_bytes(bytes, &Files::new(), limits) {
        Err(ImportError::Limit { what, found, max }) => return Said::Limit { what, found, max },
        model => model.expect("no error but the limit's"),
    };
    let program = Program::compile(model, Options::default()).expect("it compiles");
    let x = Tensor::of(&[numbers], &vec![0.5_f32; numbers]);
    match Session::new(program).run(&[Input::from(&x)], &mut Vec::<Tensor>::new(), &|| false) {
        Ok(()) => Said::Well,
        Err(RunError::Arena { bytes, bytes_max }) => Said::Arena { bytes, bytes_max },
        Err(RunError::Op { source: OpError::TooLarge { bytes, bytes_max }, .. }) => {
            Said::TooLarge { bytes, bytes_max }
        }
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn every_limit_refuses_what_is_just_above() {
    let all = Limits::default();
    let nodes = |nodes_max| Limits { nodes_max, ..all };
    let depth = |subgraph_depth_max| Limits { subgraph_depth_max, ..all };
    let arena = |arena_bytes_max| Limits { arena_bytes_max, ..all };
    let (count, deep) = ("the number of nodes", "the depth of subgraphs");
    let cases: Vec<(&str, Bytes, usize, Limits, Said)> = vec![
        ("as many nodes", chain(5, 1), 1, nodes(5), Said::Well),
        ("a node more", chain(6, 1), 1, nodes(5), Said::Limit { what: count, found: 6, max: 5 }),
        // An `If` and one node in each branch.
        ("nodes of branches", nested_model(1), 1, nodes(3), Said::Well),
        (
            "a node of a branch more",
            nested_model(1),
            1,
            nodes(2),
            Said::Limit { what: count, found: 3, max: 2 },
        ),
        ("as deep", nested_model(3), 1, depth(3), Said::Well),
        ("deeper", nested_model(4), 1, depth(3), Said::Limit { what: deep, found: 4, max: 3 }),
        // One result of 4 KiB, and the next of as much beside it.
        ("an arena that fits", chain(2, 1024), 1024, arena(8192), Said::Well),
        (
            "an arena of a line less",
            chain(2, 1024),
            1024,
            arena(8191),
            Said::Arena { bytes: 8192, bytes_max: 8191 },
        ),
        ("a tensor that fits", folding(1024), 1, arena(4096), Said::Well),
        (
            "a tensor of a number more",
            folding(1025),
            1,
            arena(4096),
            Said::TooLarge { bytes: 4100, bytes_max: 4096 },
        ),
    ];
    for (name, bytes, numbers, limits, said) in cases {
        assert_eq!(met(bytes, numbers, limits), said, "{name}");
    }
}

/// How many nodes folding leaves.
fn left(bytes: Bytes, folded_bytes_max: u64) -> usize {
    let limits = Limits { folded_bytes_max, ..Limits::default() };
    let model = Model::import_bytes(bytes, &Files::new(), limits).expect("it imports");
    Program::compile(model, Options::default()).expect("it compiles").graph().nodes.len()
}

#[test]
fn what_folding_may_not_make_is_computed_in_each_run() {
    let limits = |folded_bytes_max| Limits { folded_bytes_max, ..Limits::default() };
    // The sum alone is left; or the zeros too, and they are made when it runs.
    assert_eq!((left(folding(1024), 4096), left(folding(1024), 4095)), (1, 2));
    assert_eq!(met(folding(1024), 1, limits(4096)), Said::Well);
    assert_eq!(met(folding(1024), 1, limits(4095)), Said::Well);
    // Two of them, each of which fits.
    let mut nodes = vec![node("ConstantOfShape", &["shape"], "zeros"), node("Cos", &["zeros"], "ones")];
    nodes.push(node("Add", &["x", "zeros"], "sum"));
    nodes.push(node("Mul", &["sum", "ones"], "y"));
    let shape = TensorProto {
        name: "shape".into(),
        dims: vec![1],
        data_type: DType::I64.onnx(),
        int64_data: vec![1024],
        ..TensorProto::default()
    };
    let two = model(nodes, 1024, vec![shape]);
    assert_eq!((left(two.clone(), 8192), left(two, 8191)), (2, 3));
    // One that neither folding nor a run may make.
    let both = Limits { arena_bytes_max: 1 << 19, ..limits(4095) };
    let said = met(folding((1 << 17) + 1), 1, both);
    assert_eq!(said, Said::TooLarge { bytes: (1 << 19) + 4, bytes_max: 1 << 19 });
}

/// Weights of a few bytes in the file must not become many in a kernel's layout, where a column is a whole
/// panel.
#[test]
fn weights_are_laid_out_within_their_limit() {
    let import = |numbers: i64, limits| {
        let model = Model::import_bytes(column(numbers), &Files::new(), limits).expect("it imports");
        Program::compile(model, Options::default()).expect("it compiles")
    };
    let file_bytes = column(1000).len() as u64;
    let all = Limits::default();
    let packed = import(1000, all).target().kernels.gemm(1000, 1).packed_len() as u64 * 4;
    let beside = packed - PACKED_TIMES * file_bytes;
    let limits = |packed_bytes_max| Limits { packed_bytes_max, ..all };
    assert_eq!(met(column(1000), 1000, limits(beside)), Said::Well);
    let bytes_max = packed - 1;
    let refused = Said::TooLarge { bytes: packed.into(), bytes_max };
    assert_eq!(met(column(1000), 1000, limits(beside - 1)), refused);
    // 256 MiB of zeros, which folding may make; a panel of them takes gigabytes.
    let large = import(1 << 26, all);
    assert_eq!(large.target().packing.bytes(), 0);
    let Err(RunError::Op { source: OpError::TooLarge { bytes, bytes_max }, .. }) =
        large.bucket(&[vec![1 << 26]]).map(|_| ())
    else {
        panic!("it is laid out")
    };
    assert!(bytes >= 1 << 31 && (1 << 30..(1 << 30) + 4096).contains(&bytes_max), "{bytes} {bytes_max}");
}

#[test]
fn an_arena_that_the_system_does_not_have_is_an_error() {
    let limits = Limits { arena_bytes_max: u64::MAX, ..Limits::default() };
    let shape = TensorProto {
        name: "shape".into(),
        dims: vec![1],
        data_type: DType::I64.onnx(),
        int64_data: vec![1 << 55],
        ..TensorProto::default()
    };
    let bytes = model(vec![node("Expand", &["x", "shape"], "y")], 1, vec![shape]);
    let model = Model::import_bytes(bytes, &Files::new(), limits).expect("it imports");
    let program = Program::compile(model, Options::default()).expect("it compiles");
    let x = Tensor::of(&[1], &[0.5_f32]);
    let run = Session::new(program).run(&[Input::from(&x)], &mut Vec::<Tensor>::new(), &|| false);
    let Err(RunError::Memory(NoMemory { bytes })) = run else { panic!("{run:?}") };
    assert_eq!(bytes, 1 << 57);
}

/// A chain that a pass goes along costs it no stack.
#[test]
fn a_quantise_goes_before_a_long_chain_of_pools() {
    let numbers = [
        ("step", DType::F32, 0.5_f32.to_le_bytes().to_vec()),
        ("other", DType::F32, 1.5_f32.to_le_bytes().to_vec()),
        ("zero", DType::U8, vec![3]),
    ];
    let initializer = numbers.map(|(name, dtype, bytes)| TensorProto {
        name: name.into(),
        data_type: dtype.onnx(),
        raw_data: Bytes::from(bytes),
        ..TensorProto::default()
    });
    let pools = 30_000;
    let name = |i: usize| format!("v{i}");
    let kernel = AttributeProto {
        name: "kernel_shape".into(),
        kind: 7,
        ints: vec![1, 1],
        ..AttributeProto::default()
    };
    let pool = |i: usize| NodeProto {
        attribute: vec![kernel.clone()],
        ..node("MaxPool", &[&name(i)], &name(i + 1))
    };
    let mut chain = vec![node("QuantizeLinear", &["x", "step", "zero"], "p")];
    chain.push(node("DequantizeLinear", &["p", "step", "zero"], &name(0)));
    chain.extend((0..pools).map(pool));
    chain.push(node("QuantizeLinear", &[&name(pools), "other", "zero"], "q"));
    chain.push(node("DequantizeLinear", &["q", "other", "zero"], "y"));
    let mut proto = ModelProto::decode(model(chain, 2, initializer.to_vec())).expect("a model");
    let graph = proto.graph.as_mut().expect("a graph");
    graph.input[0] = info("x", &[1, 1, 1, 2]);
    graph.output[0] = info("y", &[1, 1, 1, 2]);
    let bytes = Bytes::from(proto.encode_to_vec());
    let model = Model::import_bytes(bytes, &Files::new(), Limits::default()).expect("it imports");
    let program = Program::compile(model, Options::default()).expect("it compiles");
    // Nothing is quantised behind the pools any more, and they pool bytes.
    let names: Vec<&str> = program.graph().nodes.iter().map(|node| node.op.name()).collect();
    assert_eq!(names.len(), pools + 3);
    assert_eq!(names[..3], ["QuantizeLinear", "Table", "Pool"]);
    assert_eq!(names[pools..], ["Pool", "Pool", "DequantizeLinear"]);
    let mut found: Vec<Tensor> = Vec::new();
    let x = Tensor::of(&[1, 1, 1, 2], &[2.4_f32, -7.0]);
    Session::new(program).run(&[Input::from(&x)], &mut found, &|| false).expect("it runs");
    // 2.5 is nearest to one and a half times 2, -1.5 to one of -1.
    assert_eq!(found[0].floats(), [3.0, -1.5]);
}

/// What one node of a file becomes counts, too.
#[test]
fn nodes_that_become_many_count_as_many() {
    let limits = Limits { nodes_max: 100, ..Limits::default() };
    let import = |nodes| Model::import_bytes(model(nodes, 1, vec![]), &Files::new(), limits);
    let sum = |operands: usize| vec![node("Sum", &vec!["x"; operands], "y")];
    let split = |parts: usize| {
        let mut split = node("Split", &["x"], "y");
        split.output.extend((1..parts).map(|i| format!("part {i}")));
        vec![split]
    };
    for (what, many) in [("a sum", &sum as &dyn Fn(usize) -> Vec<NodeProto>), ("a split", &split)] {
        import(many(100)).expect(what);
        let Err(refused) = import(many(101)) else { panic!("{what} of 101 is taken") };
        assert!(matches!(refused, ImportError::Limit { found: 101, max: 100, .. }), "{what}: {refused}");
    }
}
