//! What the tests of the engine read: bundles in folders, and the tensors that models are published with.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use roost_node::engine::onnxruntime::OnnxRuntime;
use roost_node::engine::{Bundle, Cancel, EngineError, Session};
use roost_protocol::manifest::Manifest;
use roost_protocol::messages::infer::Named;
use roost_protocol::{DType, Shape, Tensor};

/// The repository's folder.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate's folder is in the repository's")
}

/// The folder of the test models that are not in the repository.
pub fn test_models() -> PathBuf {
    let beside = || repository().join("../shared/models");
    let folder = std::env::var_os("ROOST_TEST_MODELS").map_or_else(beside, PathBuf::from);
    let there = folder.is_dir();
    assert!(there, "{} is no folder: set ROOST_TEST_MODELS to the one of the test models", folder.display());
    folder
}

/// The engine on the library that `ORT_DYLIB_PATH` names, else on the one in the repository.
pub fn engine() -> OnnxRuntime {
    let fetched = repository().join("deploy/onnxruntime").join(format!(
        "{}onnxruntime{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    ));
    let named = std::env::var_os("ORT_DYLIB_PATH").is_some();
    OnnxRuntime::find((!named).then_some(fetched.as_path())).unwrap_or_else(|error| panic!("{error}"))
}

/// A bundle of the files in a folder, subfolders left out.
pub fn bundle(folder: &Path) -> Bundle {
    let mut files = BTreeMap::new();
    for entry in folder.read_dir().unwrap_or_else(|error| panic!("{}: {error}", folder.display())) {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            let name = entry.file_name().into_string().unwrap();
            files.insert(name, Bytes::from(std::fs::read(entry.path()).unwrap()));
        }
    }
    let manifest = files
        .get("model.toml")
        .map_or_else(Manifest::default, |text| Manifest::parse(std::str::from_utf8(text).unwrap()).unwrap());
    Bundle { files, manifest: Arc::new(manifest), digest: None }
}

/// A bundle of a model alone.
pub fn bundle_of(model: impl Into<Bytes>) -> Bundle {
    let files = BTreeMap::from([("model.onnx".to_owned(), model.into())]);
    Bundle { files, manifest: Arc::default(), digest: None }
}

/// Runs a batch to its end and gives its only part.
pub fn run(session: &mut dyn Session, inputs: &[Tensor]) -> Result<Vec<Named<Tensor>>, EngineError> {
    let views: Vec<_> = inputs.iter().map(Tensor::view).collect();
    let mut parts = Vec::new();
    session.run(&views, &Cancel::new(), &mut parts)?;
    assert_eq!(parts.len(), 1);
    Ok(parts.remove(0))
}

/// `TensorProto` of the ONNX specification, as far as it is used here.
#[derive(Clone, PartialEq, Message)]
pub struct TensorProto {
    #[prost(int64, repeated, tag = "1")]
    pub dims: Vec<i64>,
    #[prost(int32, tag = "2")]
    pub data_type: i32,
    #[prost(bytes = "vec", repeated, tag = "6")]
    pub string_data: Vec<Vec<u8>>,
    #[prost(string, tag = "8")]
    pub name: String,
    #[prost(bytes = "vec", tag = "9")]
    pub raw_data: Vec<u8>,
    #[prost(message, repeated, tag = "13")]
    pub external_data: Vec<EntryProto>,
    #[prost(int32, tag = "14")]
    pub data_location: i32,
}

/// `StringStringEntryProto`.
#[derive(Clone, PartialEq, Message)]
pub struct EntryProto {
    #[prost(string, tag = "1")]
    pub key: String,
    #[prost(string, tag = "2")]
    pub value: String,
}

/// `ModelProto`.
#[derive(Clone, PartialEq, Message)]
pub struct ModelProto {
    #[prost(int64, tag = "1")]
    pub ir_version: i64,
    #[prost(message, optional, tag = "7")]
    pub graph: Option<GraphProto>,
    #[prost(message, repeated, tag = "8")]
    pub opset_import: Vec<OpsetProto>,
}

/// `OperatorSetIdProto`.
#[derive(Clone, PartialEq, Message)]
pub struct OpsetProto {
    #[prost(string, tag = "1")]
    pub domain: String,
    #[prost(int64, tag = "2")]
    pub version: i64,
}

/// `GraphProto`.
#[derive(Clone, PartialEq, Message)]
pub struct GraphProto {
    #[prost(message, repeated, tag = "1")]
    pub node: Vec<NodeProto>,
    #[prost(string, tag = "2")]
    pub name: String,
    #[prost(message, repeated, tag = "5")]
    pub initializer: Vec<TensorProto>,
    #[prost(message, repeated, tag = "11")]
    pub input: Vec<ValueInfoProto>,
    #[prost(message, repeated, tag = "12")]
    pub output: Vec<ValueInfoProto>,
}

/// `NodeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct NodeProto {
    #[prost(string, repeated, tag = "1")]
    pub input: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    pub output: Vec<String>,
    #[prost(string, tag = "4")]
    pub op_type: String,
    #[prost(message, repeated, tag = "5")]
    pub attribute: Vec<AttributeProto>,
    #[prost(string, tag = "7")]
    pub domain: String,
}

/// `AttributeProto`, of a tensor or a graph.
#[derive(Clone, PartialEq, Message)]
pub struct AttributeProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "5")]
    pub t: Option<TensorProto>,
    #[prost(message, optional, tag = "6")]
    pub g: Option<GraphProto>,
    #[prost(int32, tag = "20")]
    pub r#type: i32,
}

/// `ValueInfoProto`.
#[derive(Clone, PartialEq, Message)]
pub struct ValueInfoProto {
    #[prost(string, tag = "1")]
    pub name: String,
    #[prost(message, optional, tag = "2")]
    pub r#type: Option<TypeProto>,
}

/// `TypeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct TypeProto {
    #[prost(message, optional, tag = "1")]
    pub tensor_type: Option<TensorTypeProto>,
}

/// `TypeProto.Tensor`.
#[derive(Clone, PartialEq, Message)]
pub struct TensorTypeProto {
    #[prost(int32, tag = "1")]
    pub elem_type: i32,
    #[prost(message, optional, tag = "2")]
    pub shape: Option<ShapeProto>,
}

/// `TensorShapeProto`.
#[derive(Clone, PartialEq, Message)]
pub struct ShapeProto {
    #[prost(message, repeated, tag = "1")]
    pub dim: Vec<DimProto>,
}

/// `TensorShapeProto.Dimension`: a size, or else a name.
#[derive(Clone, PartialEq, Message)]
pub struct DimProto {
    #[prost(int64, optional, tag = "1")]
    pub dim_value: Option<i64>,
    #[prost(string, optional, tag = "2")]
    pub dim_param: Option<String>,
}

/// The number that ONNX has for an element type.
pub fn onnx_type(dtype: DType) -> i32 {
    match dtype {
        DType::F32 => 1,
        DType::U8 => 2,
        DType::I8 => 3,
        DType::U16 => 4,
        DType::I16 => 5,
        DType::I32 => 6,
        DType::I64 => 7,
        DType::String => 8,
        DType::Bool => 9,
        DType::F16 => 10,
        DType::F64 => 11,
        DType::U32 => 12,
        DType::U64 => 13,
        DType::Bf16 => 16,
    }
}

/// Reads a tensor of a test data set. All of those hold their elements raw, or as strings.
pub fn read_tensor(path: &Path) -> Tensor {
    let proto = TensorProto::decode(&std::fs::read(path).unwrap()[..]).unwrap();
    let dtype = DType::ALL.into_iter().find(|dtype| onnx_type(*dtype) == proto.data_type).unwrap();
    let dims: Vec<u64> = proto.dims.iter().map(|dim| u64::try_from(*dim).unwrap()).collect();
    if dtype == DType::String {
        let texts: Vec<_> = proto.string_data.iter().map(|text| std::str::from_utf8(text).unwrap()).collect();
        return Tensor::from_strings(&dims, &texts).unwrap();
    }
    Tensor::new(dtype, Shape::new(&dims).unwrap(), proto.raw_data.into()).unwrap()
}

/// The files `<prefix>_0.pb`, `<prefix>_1.pb` ... of a test data set.
pub fn read_tensors(folder: &Path, prefix: &str) -> Vec<Tensor> {
    let paths = (0..).map(|i| folder.join(format!("{prefix}_{i}.pb")));
    paths.take_while(|path| path.is_file()).map(|path| read_tensor(&path)).collect()
}

/// The elements of a numeric tensor, whatever their type.
pub fn numbers(tensor: &Tensor) -> Vec<f64> {
    macro_rules! numbers {
        ($type:ty, $number:ident => $as_f64:expr) => {
            tensor
                .bytes()
                .chunks_exact(size_of::<$type>())
                .map(|bytes| {
                    let $number = <$type>::from_le_bytes(bytes.try_into().unwrap());
                    $as_f64
                })
                .collect()
        };
    }
    match tensor.dtype() {
        DType::F16 => numbers!(u16, bits => half::f16::from_bits(bits).to_f64()),
        DType::Bf16 => numbers!(u16, bits => half::bf16::from_bits(bits).to_f64()),
        DType::F32 => numbers!(f32, x => f64::from(x)),
        DType::F64 => numbers!(f64, x => x),
        DType::I8 => numbers!(i8, x => f64::from(x)),
        DType::I16 => numbers!(i16, x => f64::from(x)),
        DType::I32 => numbers!(i32, x => f64::from(x)),
        DType::I64 => numbers!(i64, x => x as f64),
        DType::U8 | DType::Bool => numbers!(u8, x => f64::from(x)),
        DType::U16 => numbers!(u16, x => f64::from(x)),
        DType::U32 => numbers!(u32, x => f64::from(x)),
        DType::U64 => numbers!(u64, x => x as f64),
        DType::String => panic!("strings are no numbers"),
    }
}
