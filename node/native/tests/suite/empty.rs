//! Dimensions and attributes of nought: every operator gives the right empty result or a typed error, never a
//! panic, for constants in the model and for inputs of the run.

use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use roost_kernels::Isa;
use roost_native::graph::ir::Dim;
use roost_native::onnx::external::Files;
use roost_native::onnx::proto::{
    AttributeProto, DimProto, DimValue, GraphProto, ModelProto, NodeProto, OperatorSetId, ShapeProto,
    TensorProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use roost_native::program::Options;
use roost_native::{DType, Input, Limits, Model, Program, Session, Tensor};

use crate::places;

/// A tensor of one value.
pub fn full(dtype: DType, shape: &[usize], value: f64) -> Tensor {
    let list = [value];
    values(dtype, shape, list.iter().cycle().take(shape.iter().product()))
}

/// Floats of one value.
fn f(shape: &[usize], value: f64) -> Tensor {
    full(DType::F32, shape, value)
}

/// A list of integers, such as a shape.
fn ints(list: &[i64]) -> Tensor {
    Tensor::of(&[list.len()], list)
}

fn values<'a>(dtype: DType, shape: &[usize], list: impl Iterator<Item = &'a f64>) -> Tensor {
    let bytes: Vec<u8> = match dtype {
        DType::F32 => list.flat_map(|x| (*x as f32).to_le_bytes()).collect(),
        DType::I32 => list.flat_map(|x| (*x as i32).to_le_bytes()).collect(),
        DType::I64 => list.flat_map(|x| (*x as i64).to_le_bytes()).collect(),
        DType::I8 => list.map(|x| *x as i8 as u8).collect(),
        _ => list.map(|x| *x as u8).collect(),
    };
    Tensor::of_dtype(dtype, shape, &bytes)
}

/// Attributes: integers by name; a list where `Many`.
#[derive(Debug, Clone, Copy)]
pub enum Attribute<'a> {
    One(&'a str, i64),
    Many(&'a str, &'a [i64]),
    Text(&'a str, &'static str),
}
use Attribute::{Many, One, Text};

/// Which inputs come with the run rather than with the model.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Given {
    First,
    All,
    AllBut(usize),
    None,
}

impl Given {
    fn is_fed(self, i: usize) -> bool {
        match self {
            Self::First => i == 0,
            Self::All => true,
            Self::AllBut(constant) => i != constant,
            Self::None => false,
        }
    }
}

/// Runs a model of one node; its outputs, or the error's text.
pub fn run(
    op: &str,
    attributes: &[Attribute<'_>],
    inputs: &[Option<Tensor>],
    outputs: usize,
    given: Given,
    isa: Isa,
) -> Result<Vec<Tensor>, String> {
    let program = compiled(op, attributes, inputs, outputs, given, isa)?;
    let fed = inputs.iter().enumerate().filter(|(i, _)| given.is_fed(*i));
    let fed: Vec<Input<'_>> = fed.filter_map(|(_, tensor)| tensor.as_ref()).map(Input::from).collect();
    let mut found: Vec<Tensor> = Vec::new();
    Session::new(program).run(&fed, &mut found, &|| false).map_err(|e| e.to_string())?;
    Ok(found)
}

/// A model of one node, or the error's text.
pub fn compiled(
    op: &str,
    attributes: &[Attribute<'_>],
    inputs: &[Option<Tensor>],
    outputs: usize,
    given: Given,
    isa: Isa,
) -> Result<Arc<Program>, String> {
    let name = |i: usize| format!("x{i}");
    let info = |name: String, dtype: DType, dims: Option<Vec<usize>>| {
        let dim = |size: &usize| DimProto { value: Some(DimValue::Value(*size as i64)) };
        let shape = dims.map(|dims| ShapeProto { dim: dims.iter().map(dim).collect() });
        ValueInfoProto {
            name,
            r#type: Some(TypeProto { tensor_type: Some(TensorTypeProto { elem_type: dtype.onnx(), shape }) }),
        }
    };
    let present = || inputs.iter().enumerate().filter_map(|(i, tensor)| Some((i, tensor.as_ref()?)));
    let attribute = |attribute: &Attribute<'_>| match attribute {
        One(name, i) => AttributeProto { name: (*name).into(), kind: 2, i: *i, ..Default::default() },
        Many(name, ints) => {
            AttributeProto { name: (*name).into(), kind: 7, ints: ints.to_vec(), ..Default::default() }
        }
        Text(name, s) => AttributeProto {
            name: (*name).into(),
            kind: 3,
            s: Bytes::from_static(s.as_bytes()),
            ..Default::default()
        },
    };
    let node = NodeProto {
        op_type: op.into(),
        input: (0..inputs.len()).map(|i| inputs[i].as_ref().map_or(String::new(), |_| name(i))).collect(),
        output: (0..outputs).map(|i| format!("y{i}")).collect(),
        attribute: attributes.iter().map(attribute).collect(),
        ..NodeProto::default()
    };
    let graph = GraphProto {
        node: vec![node],
        input: present()
            .filter(|(i, _)| given.is_fed(*i))
            .map(|(i, tensor)| info(name(i), tensor.dtype(), Some(tensor.shape().to_vec())))
            .collect(),
        output: (0..outputs).map(|i| info(format!("y{i}"), DType::F32, None)).collect(),
        initializer: present()
            .filter(|(i, _)| !given.is_fed(*i))
            .map(|(i, tensor)| TensorProto {
                name: name(i),
                dims: tensor.shape().iter().map(|dim| *dim as i64).collect(),
                data_type: tensor.dtype().onnx(),
                raw_data: Bytes::copy_from_slice(tensor.bytes()),
                ..TensorProto::default()
            })
            .collect(),
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetId { domain: String::new(), version: 18 }];
    let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph) };
    let bytes = Bytes::from(model.encode_to_vec());
    let model = Model::import_bytes(bytes, &Files::new(), Limits::default()).map_err(|e| e.to_string())?;
    Program::compile(model, Options { isa: Some(isa) }).map_err(|e| e.to_string())
}

/// What is right.
enum Right<'a> {
    /// There is one output: it has this shape, and where it has elements, this value.
    Is(&'a [usize], f64),
    /// The outputs have these shapes, and where they have elements, these values.
    Are(&'a [(&'a [usize], f64)]),
    /// There is no answer.
    Refused,
    /// Implementations differ: anything but a panic.
    Either,
}
use Right::{Are, Either, Is, Refused};

#[track_caller]
fn check(
    op: &str,
    attributes: &[Attribute<'_>],
    inputs: &[Option<Tensor>],
    outputs: usize,
    right: &Right<'_>,
) {
    let shapes: Vec<_> = inputs.iter().map(|tensor| tensor.as_ref().map(|t| t.shape().to_vec())).collect();
    for isa in [Isa::best(), Isa::Scalar] {
        for given in [Given::First, Given::All, Given::None] {
            let found = run(op, attributes, inputs, outputs, given, isa);
            let one: (&[usize], f64);
            let expected = match right {
                Is(shape, value) => {
                    one = (*shape, *value);
                    std::slice::from_ref(&one)
                }
                Are(all) => all,
                Refused => {
                    assert!(found.is_err(), "{op} of {shapes:?} gives {found:?}");
                    continue;
                }
                Either => continue,
            };
            match found {
                Ok(found) => {
                    assert_eq!(expected.len(), outputs, "{op}: every output is compared");
                    assert_eq!(found.len(), outputs, "{op} of {shapes:?}");
                    for (i, (found, (shape, value))) in found.iter().zip(expected).enumerate() {
                        assert_eq!(found.shape(), *shape, "{op} of {shapes:?}, output {i}");
                        let same = |x: &f32| *x == *value as f32 || (x.is_nan() && value.is_nan());
                        let floats = found.floats();
                        assert!(
                            floats.iter().all(same),
                            "{op} of {shapes:?}, output {i}: {floats:?}, not {value}"
                        );
                    }
                }
                Err(error) => panic!("{op} of {shapes:?}, {given:?} with the run: {error}"),
            }
        }
    }
}

#[test]
fn elementwise_and_products() {
    for op in ["Relu", "Exp", "Erf", "Sigmoid", "Gelu", "Neg", "Identity"] {
        check(op, &[], &[Some(f(&[0], 0.0))], 1, if op == "Gelu" { &Either } else { &Is(&[0], 0.0) });
        check(
            op,
            &[],
            &[Some(f(&[3, 0, 2], 0.0))],
            1,
            if op == "Gelu" { &Either } else { &Is(&[3, 0, 2], 0.0) },
        );
    }
    for op in ["Add", "Div", "Max", "Pow"] {
        check(op, &[], &[Some(f(&[0, 4], 1.0)), Some(f(&[4], 1.0))], 1, &Is(&[0, 4], 0.0));
        check(op, &[], &[Some(f(&[0], 1.0)), Some(f(&[1], 1.0))], 1, &Is(&[0], 0.0));
        check(op, &[], &[Some(f(&[2, 1], 1.0)), Some(f(&[2, 0], 1.0))], 1, &Is(&[2, 0], 0.0));
        check(op, &[], &[Some(f(&[0], 1.0)), Some(f(&[3], 1.0))], 1, &Refused);
    }
    let products: [(&[usize], &[usize], &[usize]); 8] = [
        (&[0, 4], &[4, 3], &[0, 3]),
        (&[2, 0], &[0, 3], &[2, 3]),
        (&[2, 4], &[4, 0], &[2, 0]),
        (&[0, 2, 4], &[4, 3], &[0, 2, 3]),
        (&[2, 0, 4], &[2, 4, 3], &[2, 0, 3]),
        (&[2, 3, 0], &[2, 0, 3], &[2, 3, 3]),
        (&[0], &[0, 3], &[3]),
        (&[0, 0], &[0, 0], &[0, 0]),
    ];
    for (a, b, out) in products {
        check("MatMul", &[], &[Some(f(a, 1.0)), Some(f(b, 1.0))], 1, &Is(out, 0.0));
    }
    check("MatMul", &[], &[Some(f(&[2, 4], 1.0)), Some(f(&[0, 3], 1.0))], 1, &Refused);
    let gemm = |a: &[usize], b: &[usize], c: &[usize]| [Some(f(a, 1.0)), Some(f(b, 1.0)), Some(f(c, 7.0))];
    check("Gemm", &[], &gemm(&[2, 0], &[0, 3], &[3]), 1, &Is(&[2, 3], 7.0));
    check("Gemm", &[], &gemm(&[0, 4], &[4, 3], &[3]), 1, &Is(&[0, 3], 0.0));
    check("Gemm", &[], &gemm(&[2, 4], &[4, 0], &[0]), 1, &Is(&[2, 0], 0.0));
    let turned = [One("transA", 1), One("transB", 1)];
    check("Gemm", &turned, &gemm(&[0, 2], &[3, 0], &[2, 3]), 1, &Is(&[2, 3], 7.0));
    let byte = |shape: &[usize]| Some(full(DType::U8, shape, 1.0));
    check("MatMulInteger", &[], &[byte(&[2, 0]), byte(&[0, 3])], 1, &Is(&[2, 3], 0.0));
    check("MatMulInteger", &[], &[byte(&[0, 4]), byte(&[4, 3])], 1, &Is(&[0, 3], 0.0));
    for (equation, a, b) in
        [("ij,jk->ik", [2, 0], [0, 3]), ("ij,jk->ik", [0, 2], [2, 3]), ("ij,ij->", [0, 2], [0, 2])]
    {
        check("Einsum", &[Text("equation", equation)], &[Some(f(&a, 1.0)), Some(f(&b, 1.0))], 1, &Either);
    }
}

#[test]
fn convolutions_and_pools() {
    let conv = |x: &[usize], w: &[usize]| [Some(f(x, 1.0)), Some(f(w, 1.0))];
    check("Conv", &[], &conv(&[0, 3, 8, 8], &[4, 3, 3, 3]), 1, &Is(&[0, 4, 6, 6], 0.0));
    check("Conv", &[], &conv(&[1, 0, 8, 8], &[4, 0, 3, 3]), 1, &Is(&[1, 4, 6, 6], 0.0));
    check("Conv", &[], &conv(&[1, 3, 8, 8], &[0, 3, 3, 3]), 1, &Is(&[1, 0, 6, 6], 0.0));
    check("Conv", &[], &conv(&[1, 0, 8, 8], &[4, 0, 1, 1]), 1, &Is(&[1, 4, 8, 8], 0.0));
    check("Conv", &[], &conv(&[1, 3, 0, 8], &[4, 3, 3, 3]), 1, &Refused);
    check("Conv", &[], &conv(&[1, 3, 8, 8], &[4, 3, 0, 3]), 1, &Refused);
    check("Conv", &[One("group", 0)], &conv(&[1, 3, 8, 8], &[4, 3, 3, 3]), 1, &Refused);
    check("Conv", &[Many("strides", &[0, 1])], &conv(&[1, 3, 8, 8], &[4, 3, 3, 3]), 1, &Refused);
    check("Conv", &[Many("dilations", &[1, 0])], &conv(&[1, 3, 8, 8], &[4, 3, 3, 3]), 1, &Refused);
    check("Conv", &[One("group", 4)], &conv(&[0, 4, 8, 8], &[4, 1, 3, 3]), 1, &Is(&[0, 4, 6, 6], 0.0));
    check(
        "Conv",
        &[Many("pads", &[2, 2, 2, 2])],
        &conv(&[1, 3, 0, 0], &[4, 3, 3, 3]),
        1,
        &Is(&[1, 4, 2, 2], 0.0),
    );
    check("Conv", &[], &conv(&[0, 3, 8], &[4, 3, 3]), 1, &Is(&[0, 4, 6], 0.0));
    check("ConvTranspose", &[], &conv(&[0, 3, 4, 4], &[3, 2, 3, 3]), 1, &Is(&[0, 2, 6, 6], 0.0));
    check("ConvTranspose", &[], &conv(&[1, 3, 0, 4], &[3, 2, 3, 3]), 1, &Either);
    check("ConvTranspose", &[Many("strides", &[0, 0])], &conv(&[1, 3, 4, 4], &[3, 2, 3, 3]), 1, &Refused);
    let byte = |dtype, shape: &[usize]| Some(full(dtype, shape, 1.0));
    let integer = |x: &[usize], w: &[usize]| [byte(DType::U8, x), byte(DType::I8, w)];
    check("ConvInteger", &[], &integer(&[0, 3, 8, 8], &[4, 3, 3, 3]), 1, &Is(&[0, 4, 6, 6], 0.0));
    check("ConvInteger", &[], &integer(&[1, 0, 8, 8], &[4, 0, 3, 3]), 1, &Either);
    let quantized = |x: &[usize], w: &[usize]| {
        let (scale, zero) = (Some(f(&[], 0.1)), |dtype| Some(full(dtype, &[], 0.0)));
        let (u, i) = (DType::U8, DType::I8);
        [byte(u, x), scale.clone(), zero(u), byte(i, w), scale.clone(), zero(i), scale, zero(u)]
    };
    check("QLinearConv", &[], &quantized(&[0, 3, 8, 8], &[4, 3, 3, 3]), 1, &Is(&[0, 4, 6, 6], 0.0));
    check("QLinearConv", &[], &quantized(&[1, 0, 8, 8], &[4, 0, 3, 3]), 1, &Either);
    check("QLinearConv", &[], &quantized(&[1, 3, 8, 8], &[0, 3, 3, 3]), 1, &Is(&[1, 0, 6, 6], 0.0));
    check("QLinearMatMul", &[], &quantized(&[2, 0], &[0, 3]), 1, &Is(&[2, 3], 0.0));
    check("QLinearMatMul", &[], &quantized(&[0, 3], &[3, 2]), 1, &Is(&[0, 2], 0.0));
    for op in ["MaxPool", "AveragePool"] {
        let window = [Many("kernel_shape", &[2, 2])];
        check(op, &window, &[Some(f(&[0, 3, 8, 8], 1.0))], 1, &Is(&[0, 3, 7, 7], 0.0));
        check(op, &window, &[Some(f(&[1, 0, 8, 8], 1.0))], 1, &Is(&[1, 0, 7, 7], 0.0));
        check(op, &window, &[Some(f(&[1, 3, 0, 8], 1.0))], 1, &Refused);
        check(op, &[Many("kernel_shape", &[0, 2])], &[Some(f(&[1, 3, 8, 8], 1.0))], 1, &Refused);
        check(op, &[Many("kernel_shape", &[])], &[Some(f(&[1, 3, 8, 8], 1.0))], 1, &Refused);
    }
    for op in ["GlobalAveragePool", "GlobalMaxPool"] {
        check(op, &[], &[Some(f(&[0, 3, 4, 4], 1.0))], 1, &Is(&[0, 3, 1, 1], 0.0));
        check(op, &[], &[Some(f(&[1, 3, 0, 4], 1.0))], 1, &Either);
    }
    let each = || [3, 3, 3, 3].map(|n| Some(f(&[n], 1.0)));
    let [scale, bias, mean, variance] = each();
    let norm = |x: &[usize]| [Some(f(x, 1.0)), scale.clone(), bias.clone(), mean.clone(), variance.clone()];
    check("BatchNormalization", &[], &norm(&[0, 3, 2, 2]), 1, &Is(&[0, 3, 2, 2], 0.0));
    check("BatchNormalization", &[], &norm(&[2, 3, 0, 2]), 1, &Is(&[2, 3, 0, 2], 0.0));
    check("InstanceNormalization", &[], &norm(&[0, 3, 2, 2])[..3], 1, &Either);
    check("InstanceNormalization", &[], &norm(&[1, 3, 0, 2])[..3], 1, &Either);
    check("LRN", &[One("size", 0)], &[Some(f(&[1, 3, 2, 2], 1.0))], 1, &Either);
    check("LRN", &[One("size", 3)], &[Some(f(&[1, 0, 2, 2], 1.0))], 1, &Is(&[1, 0, 2, 2], 0.0));
    check("DepthToSpace", &[One("blocksize", 0)], &[Some(f(&[1, 4, 2, 2], 1.0))], 1, &Refused);
    check("SpaceToDepth", &[One("blocksize", 0)], &[Some(f(&[1, 4, 2, 2], 1.0))], 1, &Refused);
    check("DepthToSpace", &[One("blocksize", 2)], &[Some(f(&[1, 0, 2, 2], 1.0))], 1, &Is(&[1, 0, 4, 4], 0.0));
}

#[test]
fn reductions_and_recurrences() {
    let axes = |list: &[i64]| Some(ints(list));
    for (op, value) in [("ReduceSum", 0.0), ("ReduceProd", 1.0), ("ReduceL2", 0.0), ("ReduceSumSquare", 0.0)]
    {
        check(op, &[], &[Some(f(&[2, 0], 1.0)), axes(&[1])], 1, &Is(&[2, 1], value));
        check(op, &[], &[Some(f(&[0, 2], 1.0)), axes(&[1])], 1, &Is(&[0, 1], 0.0));
        check(op, &[One("keepdims", 0)], &[Some(f(&[0, 3], 1.0))], 1, &Is(&[], value));
    }
    for op in ["ReduceMax", "ReduceMin", "ReduceMean", "ReduceLogSum", "ReduceLogSumExp"] {
        check(op, &[], &[Some(f(&[2, 0], 1.0)), axes(&[1])], 1, &Either);
        check(op, &[], &[Some(f(&[0, 2], 1.0)), axes(&[1])], 1, &Is(&[0, 1], 0.0));
    }
    for op in ["ArgMax", "ArgMin"] {
        check(op, &[One("axis", 1)], &[Some(f(&[2, 0], 1.0))], 1, &Either);
        check(op, &[One("axis", 1)], &[Some(f(&[0, 2], 1.0))], 1, &Is(&[0, 1], 0.0));
    }
    for op in ["Softmax", "LogSoftmax", "Hardmax"] {
        for axis in [0, 1, -1] {
            check(op, &[One("axis", axis)], &[Some(f(&[2, 0], 1.0))], 1, &Is(&[2, 0], 0.0));
            check(op, &[One("axis", axis)], &[Some(f(&[0, 3], 1.0))], 1, &Is(&[0, 3], 0.0));
        }
    }
    check("LayerNormalization", &[], &[Some(f(&[0, 3], 1.0)), Some(f(&[3], 1.0))], 1, &Is(&[0, 3], 0.0));
    check("LayerNormalization", &[], &[Some(f(&[2, 0], 1.0)), Some(f(&[0], 1.0))], 1, &Is(&[2, 0], 0.0));
    check("CumSum", &[], &[Some(f(&[2, 0], 1.0)), Some(full(DType::I64, &[], 1.0))], 1, &Is(&[2, 0], 0.0));
    check("TopK", &[], &[Some(f(&[2, 3], 1.0)), axes(&[0])], 2, &Are(&[(&[2, 0], 0.0), (&[2, 0], 0.0)]));
    check("TopK", &[], &[Some(f(&[2, 0], 1.0)), axes(&[1])], 2, &Refused);
    for (op, gates) in [("LSTM", 4), ("GRU", 3), ("RNN", 1)] {
        let recur = |length: usize, batch: usize, input: usize, hidden: usize| {
            let (x, w) = (f(&[length, batch, input], 1.0), f(&[1, gates * hidden, input], 1.0));
            [Some(x), Some(w), Some(f(&[1, gates * hidden, hidden], 1.0))]
        };
        let hidden = |hidden| [One("hidden_size", hidden)];
        check(op, &hidden(3), &recur(0, 2, 4, 3), 2, &Are(&[(&[0, 1, 2, 3], 0.0), (&[1, 2, 3], 0.0)]));
        check(op, &hidden(3), &recur(5, 0, 4, 3), 2, &Are(&[(&[5, 1, 0, 3], 0.0), (&[1, 0, 3], 0.0)]));
        check(op, &hidden(3), &recur(5, 2, 0, 3), 2, &Either);
        check(op, &hidden(0), &recur(5, 2, 4, 0), 2, &Either);
    }
}

#[test]
fn movements() {
    let x = |shape: &[usize]| Some(f(shape, 1.0));
    let list = |list: &[i64]| Some(ints(list));
    check("Concat", &[One("axis", 0)], &[x(&[0, 3]), x(&[2, 3])], 1, &Is(&[2, 3], 1.0));
    check("Concat", &[One("axis", 1)], &[x(&[2, 0]), x(&[2, 0])], 1, &Is(&[2, 0], 0.0));
    check(
        "Split",
        &[One("axis", 0)],
        &[x(&[4, 0]), list(&[2, 2])],
        2,
        &Are(&[(&[2, 0], 0.0), (&[2, 0], 0.0)]),
    );
    check(
        "Split",
        &[One("axis", 0)],
        &[x(&[4, 3]), list(&[0, 4])],
        2,
        &Are(&[(&[0, 3], 0.0), (&[4, 3], 1.0)]),
    );
    check("Slice", &[], &[x(&[4, 3]), list(&[2]), list(&[2])], 1, &Is(&[0, 3], 0.0));
    check("Slice", &[], &[x(&[0, 3]), list(&[0]), list(&[5])], 1, &Is(&[0, 3], 0.0));
    check("Slice", &[], &[x(&[4]), list(&[0]), list(&[4]), list(&[0]), list(&[0])], 1, &Refused);
    check("Gather", &[], &[x(&[4, 3]), list(&[])], 1, &Is(&[0, 3], 0.0));
    check("Gather", &[], &[x(&[0, 3]), list(&[0])], 1, &Refused);
    check("Gather", &[], &[x(&[0, 3]), list(&[-1])], 1, &Refused);
    check("GatherElements", &[], &[x(&[0, 3]), Some(full(DType::I64, &[0, 3], 0.0))], 1, &Is(&[0, 3], 0.0));
    check("GatherElements", &[], &[x(&[0, 3]), Some(full(DType::I64, &[1, 3], 0.0))], 1, &Refused);
    check("GatherND", &[], &[x(&[2, 0]), Some(full(DType::I64, &[3, 1], 0.0))], 1, &Is(&[3, 0], 0.0));
    check("GatherND", &[], &[x(&[0, 2]), Some(full(DType::I64, &[1, 1], 0.0))], 1, &Refused);
    check("ScatterND", &[], &[x(&[4]), Some(full(DType::I64, &[0, 1], 0.0)), x(&[0])], 1, &Is(&[4], 1.0));
    check("ScatterND", &[], &[x(&[0]), Some(full(DType::I64, &[1, 1], 0.0)), x(&[1])], 1, &Refused);
    check("ScatterElements", &[], &[x(&[4]), list(&[]), x(&[0])], 1, &Is(&[4], 1.0));
    check("Reshape", &[], &[x(&[0, 4]), list(&[0, 2, 2])], 1, &Is(&[0, 2, 2], 0.0));
    // A copied dimension does not count towards an open one, though it is nought.
    check("Reshape", &[], &[x(&[0, 4]), list(&[0, -1])], 1, &Is(&[0, 4], 0.0));
    check("Reshape", &[], &[x(&[0, 96, 5]), list(&[0, 48, -1])], 1, &Is(&[0, 48, 10], 0.0));
    check("Reshape", &[], &[x(&[4, 0, 6]), list(&[-1, 0, 3])], 1, &Is(&[8, 0, 3], 0.0));
    check("Reshape", &[], &[x(&[0, 0, 6]), list(&[0, 0, 2, -1])], 1, &Is(&[0, 0, 2, 3], 0.0));
    check("Reshape", &[], &[x(&[0, 3, 4]), list(&[-1, 3, 2])], 1, &Is(&[0, 3, 2], 0.0));
    // Nothing tells how many: the rest does not divide, or is nought itself.
    check("Reshape", &[], &[x(&[0, 96, 5]), list(&[0, 7, -1])], 1, &Refused);
    check("Reshape", &[], &[x(&[0, 0, 4]), list(&[0, -1])], 1, &Refused);
    check("Reshape", &[One("allowzero", 1)], &[x(&[0, 4]), list(&[0, -1])], 1, &Refused);
    check("Reshape", &[One("allowzero", 1)], &[x(&[4, 0]), list(&[0, 9])], 1, &Is(&[0, 9], 0.0));
    check("Reshape", &[], &[x(&[0]), list(&[3])], 1, &Refused);
    check("Flatten", &[], &[x(&[0, 2, 3])], 1, &Is(&[0, 6], 0.0));
    check("Flatten", &[], &[x(&[2, 0, 3])], 1, &Is(&[2, 0], 0.0));
    check("Squeeze", &[], &[x(&[1, 0]), list(&[0])], 1, &Is(&[0], 0.0));
    check("Squeeze", &[], &[x(&[1, 0]), list(&[1])], 1, &Refused);
    check("Unsqueeze", &[], &[x(&[0]), list(&[0])], 1, &Is(&[1, 0], 0.0));
    check("Transpose", &[Many("perm", &[1, 0])], &[x(&[3, 0])], 1, &Is(&[0, 3], 0.0));
    check("Expand", &[], &[x(&[1, 3]), list(&[0, 3])], 1, &Is(&[0, 3], 0.0));
    check("Tile", &[], &[x(&[2, 3]), list(&[0, 2])], 1, &Is(&[0, 6], 0.0));
    check("Pad", &[], &[x(&[0]), list(&[1, 1])], 1, &Is(&[2], 0.0));
    for mode in ["edge", "reflect", "wrap"] {
        check("Pad", &[Text("mode", mode)], &[x(&[0]), list(&[1, 1])], 1, &Refused);
    }
    let flags = Some(full(DType::Bool, &[0, 3], 0.0));
    check("Where", &[], &[flags, x(&[3]), x(&[1, 3])], 1, &Is(&[0, 3], 0.0));
    check("NonZero", &[], &[x(&[0, 3])], 1, &Is(&[2, 0], 0.0));
    check("Trilu", &[], &[x(&[0, 3])], 1, &Is(&[0, 3], 0.0));
    check("Shape", &[], &[x(&[0])], 1, &Is(&[1], 0.0));
    check("Size", &[], &[x(&[3, 0])], 1, &Is(&[], 0.0));
    check("ConstantOfShape", &[], &[list(&[2, 0])], 1, &Either);
    check("OneHot", &[], &[x(&[2]), list(&[0]), x(&[2])], 1, &Either);
    let number = |value: f64| Some(full(DType::I64, &[], value));
    check("Range", &[], &[number(0.0), number(5.0), number(0.0)], 1, &Refused);
    let scales = Some(f(&[2], 2.0));
    check("Resize", &[], &[x(&[0, 3]), None, scales], 1, &Either);
    check("Resize", &[], &[x(&[2, 3]), None, Some(f(&[2], 0.0))], 1, &Either);
    check(
        "QuantizeLinear",
        &[],
        &[x(&[0]), Some(f(&[], 0.1)), Some(full(DType::U8, &[], 0.0))],
        1,
        &Is(&[0], 0.0),
    );
    // Nothing has the range from nought to nought: a step of nought, and its zero point.
    let scalars: [(&[usize], f64); 3] = [(&[0, 2], 0.0), (&[], 0.0), (&[], 0.0)];
    check("DynamicQuantizeLinear", &[], &[x(&[0, 2])], 3, &Are(&scalars));
    let byte = Some(full(DType::U8, &[0], 0.0));
    check("DequantizeLinear", &[], &[byte, Some(f(&[], 0.1))], 1, &Is(&[0], 0.0));
}

#[test]
fn models_take_an_empty_batch() {
    let image = |shape: &[usize]| vec![f(shape, 0.0)];
    let cases: [(&str, Vec<Tensor>); 12] = [
        ("digits_v1_logreg", image(&[0, 1, 8, 8])),
        ("digits_v1_mlp", image(&[0, 1, 8, 8])),
        ("digits_v2_conv", image(&[0, 1, 8, 8])),
        ("digits_v2_int8_qdq", image(&[0, 1, 8, 8])),
        ("digits_v2_int8_qdq_s8s8", image(&[0, 1, 8, 8])),
        ("digits_lstm", image(&[0, 1, 8, 8])),
        ("digits_vit_int8_dynamic", image(&[0, 1, 8, 8])),
        ("squeezenet_fp32", image(&[0, 3, 224, 224])),
        ("squeezenet_int8_qdq", image(&[0, 3, 224, 224])),
        ("squeezenet_int8_qlinear", image(&[0, 3, 224, 224])),
        ("text_encoder_tiny", vec![Tensor::of::<i64>(&[0, 12], &[]), Tensor::of::<i64>(&[0, 12], &[])]),
        ("sentence_boundary_bilstm", vec![Tensor::of::<u8>(&[0, 10], &[])]),
    ];
    for (name, inputs) in cases {
        let mut session = Session::new(places::program(&places::model(name), None));
        let inputs: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
        let mut found: Vec<Tensor> = Vec::new();
        let done = session.run(&inputs, &mut found, &|| false);
        assert!(done.is_ok(), "{name}: {done:?}");
        let declared = session.program().outputs();
        assert_eq!(found.len(), declared.len(), "{name}");
        for (found, port) in found.iter().zip(declared) {
            assert!(found.is_empty(), "{name}: {found:?}");
            // As many dimensions as declared, and the sizes that do not depend on the batch.
            let Some(dims) = &port.dims else { continue };
            assert_eq!(found.shape().len(), dims.len(), "{name}: {found:?}");
            let fixed = dims.iter().zip(found.shape()).filter_map(|(dim, size)| match dim {
                Dim::Const(declared) => Some((*declared, *size)),
                Dim::Sym(_) => None,
            });
            fixed.for_each(|(declared, size)| assert_eq!(size, declared, "{name}, {}", port.name));
        }
    }
}

#[test]
fn sentences_of_no_length_are_no_panic() {
    let run = |name: &str, inputs: &[Tensor]| {
        let inputs: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
        let mut found: Vec<Tensor> = Vec::new();
        let done =
            Session::new(places::program(&places::model(name), None)).run(&inputs, &mut found, &|| false);
        done.map(|()| found)
    };
    let none = || Tensor::of::<i64>(&[2, 0], &[]);
    // A mean over no token is no number, or the model refuses.
    if let Ok(found) = run("text_encoder_tiny", &[none(), none()]) {
        assert!(found.iter().all(|tensor| tensor.shape()[0] == 2), "{found:?}");
    }
    let found = run("sentence_boundary_bilstm", &[Tensor::of::<u8>(&[2, 0], &[])]);
    assert!(found.is_err() || found.is_ok_and(|found| found[0].is_empty()));
}
