//! What is measured: test models at the batch sizes that serving sees, and plain products.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use roost_native::onnx::proto::{
    DimProto, DimValue, GraphProto, ModelProto, NodeProto, OperatorSetId, ShapeProto, TensorProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use roost_native::{DType, Tensor};

use crate::Failure;

/// A row of the table.
pub struct Row {
    /// What it is called.
    pub name: String,
    /// The model.
    pub model: Bytes,
    /// Its inputs.
    pub inputs: Vec<Tensor>,
}

/// The folder of the test models.
pub fn models() -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models");
    std::env::var_os("ROOST_TEST_MODELS").map_or(beside, PathBuf::from)
}

/// All rows; `ROOST_BENCH_ROWS` keeps those whose name contains it.
pub fn rows() -> Result<Vec<Row>, Failure> {
    let models = models();
    let wanted = std::env::var("ROOST_BENCH_ROWS").unwrap_or_default();
    let mut rows = Vec::new();
    let cases: [(&str, &[usize]); 8] = [
        ("digits_v1_logreg", &[1, 8, 32]),
        ("digits_v2_conv", &[1, 8, 32]),
        ("digits_v2_int8_qdq", &[1, 8, 32]),
        ("squeezenet_fp32", &[1, 8]),
        ("squeezenet_int8_qdq", &[1, 8]),
        ("text_encoder_tiny", &[1, 8]),
        ("sentence_boundary_bilstm", &[1, 8, 32]),
        ("light_resnet50", &[1]),
    ];
    for (name, batches) in cases {
        for batch in batches {
            let title = format!("{name}, batch {batch}");
            if title.contains(&wanted) {
                let model = std::fs::read(models.join(name).join("model.onnx"))?.into();
                rows.push(Row { name: title, model, inputs: inputs(name, *batch) });
            }
        }
    }
    for (name, model) in crate::networks::all() {
        for batch in [1, 8] {
            let title = format!("{name}, batch {batch}");
            if title.contains(&wanted) {
                rows.push(Row { name: title, model: model.clone(), inputs: inputs(name, batch) });
            }
        }
    }
    for size in [768, 1024] {
        let weights = numbers(&[size, size]);
        for m in [1, 8, 32, 128, 1024] {
            let name = format!("GEMM {m} x {size} x {size}");
            if name.contains(&wanted) {
                rows.push(Row { name, model: product(m, &weights), inputs: vec![numbers(&[m, size])] });
            }
        }
    }
    Ok(rows)
}

/// The inputs of a model.
pub fn inputs(name: &str, batch: usize) -> Vec<Tensor> {
    let tokens = |count: usize| (0..count).map(|i| (i * 37 % 97) as i64).collect::<Vec<_>>();
    match name {
        "text_encoder_tiny" => {
            let ids = Tensor::of(&[batch, 32], &tokens(batch * 32));
            vec![ids, Tensor::of(&[batch, 32], &vec![1_i64; batch * 32])]
        }
        "sentence_boundary_bilstm" => {
            let bytes: Vec<u8> = tokens(batch * 32).iter().map(|token| *token as u8).collect();
            vec![Tensor::of_dtype(DType::U8, &[batch, 32], &bytes)]
        }
        name if name.starts_with("digits") => vec![numbers(&[batch, 1, 8, 8])],
        _ => vec![numbers(&[batch, 3, 224, 224])],
    }
}

/// Numbers between -1 and 1 that repeat.
pub fn numbers(shape: &[usize]) -> Tensor {
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    let values: Vec<f32> = (0..shape.iter().product()).map(next).collect();
    Tensor::of(shape, &values)
}

/// A model of one product of m rows with a square constant.
pub fn product(m: usize, weights: &Tensor) -> Bytes {
    let size = weights.shape()[0];
    let info = |name: &str| {
        let dim = |size: usize| DimProto { value: Some(DimValue::Value(size as i64)) };
        let shape = Some(ShapeProto { dim: vec![dim(m), dim(size)] });
        let tensor_type = Some(TensorTypeProto { elem_type: DType::F32.onnx(), shape });
        ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
    };
    let weights = TensorProto {
        name: "w".into(),
        dims: vec![size as i64, size as i64],
        data_type: DType::F32.onnx(),
        raw_data: Bytes::copy_from_slice(weights.bytes()),
        ..TensorProto::default()
    };
    let node = NodeProto {
        op_type: "MatMul".into(),
        input: vec!["x".into(), "w".into()],
        output: vec!["y".into()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        name: "product".into(),
        node: vec![node],
        input: vec![info("x")],
        output: vec![info("y")],
        initializer: vec![weights],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetId { domain: String::new(), version: 17 }];
    Bytes::from(ModelProto { ir_version: 8, opset_import, graph: Some(graph) }.encode_to_vec())
}
