//! Which files beside `model.onnx` a model takes its weights from.
//!
//! A tensor of a model may lie in a file that it names. ONNX Runtime would open that name on the disk, and
//! takes one reserved name for an address in memory; so every name is read here first, and must be that of a
//! file of the bundle. Only the fields on the way to those names are declared: the rest of the model is
//! skipped, weights included.

use std::collections::BTreeSet;

use prost::Message;

use crate::engine::EngineError;

/// The key under which a tensor names its file, in `TensorProto.external_data` of the ONNX specification.
const LOCATION: &str = "location";

/// The names of all files that tensors of the model lie in.
///
/// # Errors
/// [`EngineError::NotAModel`] when the bytes are no protobuf, or have no graph.
pub fn files(model: &[u8]) -> Result<BTreeSet<String>, EngineError> {
    let model = Model::decode(model).map_err(|error| EngineError::NotAModel(error.to_string()))?;
    let graph = model.graph.ok_or_else(|| EngineError::NotAModel("it has no graph".to_owned()))?;
    let mut files = BTreeSet::new();
    graph.visit(&mut files);
    model.functions.iter().for_each(|function| function.visit(&mut files));
    Ok(files)
}

/// `ModelProto`.
#[derive(Clone, PartialEq, Message)]
struct Model {
    #[prost(message, optional, tag = "7")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "25")]
    functions: Vec<Function>,
}

/// `GraphProto`.
#[derive(Clone, PartialEq, Message)]
struct Graph {
    #[prost(message, repeated, tag = "1")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "5")]
    initializers: Vec<Tensor>,
    #[prost(message, repeated, tag = "15")]
    sparse_initializers: Vec<Sparse>,
}

impl Graph {
    fn visit(&self, files: &mut BTreeSet<String>) {
        self.nodes.iter().for_each(|node| node.visit(files));
        self.initializers.iter().for_each(|tensor| tensor.visit(files));
        self.sparse_initializers.iter().for_each(|sparse| sparse.visit(files));
    }
}

/// `FunctionProto`.
#[derive(Clone, PartialEq, Message)]
struct Function {
    #[prost(message, repeated, tag = "7")]
    nodes: Vec<Node>,
    #[prost(message, repeated, tag = "11")]
    attributes: Vec<Attribute>,
}

impl Function {
    fn visit(&self, files: &mut BTreeSet<String>) {
        self.nodes.iter().for_each(|node| node.visit(files));
        self.attributes.iter().for_each(|attribute| attribute.visit(files));
    }
}

/// `NodeProto`.
#[derive(Clone, PartialEq, Message)]
struct Node {
    #[prost(message, repeated, tag = "5")]
    attributes: Vec<Attribute>,
}

impl Node {
    fn visit(&self, files: &mut BTreeSet<String>) {
        self.attributes.iter().for_each(|attribute| attribute.visit(files));
    }
}

/// `AttributeProto`.
#[derive(Clone, PartialEq, Message)]
struct Attribute {
    #[prost(message, optional, tag = "5")]
    tensor: Option<Tensor>,
    #[prost(message, optional, tag = "6")]
    graph: Option<Graph>,
    #[prost(message, repeated, tag = "10")]
    tensors: Vec<Tensor>,
    #[prost(message, repeated, tag = "11")]
    graphs: Vec<Graph>,
    #[prost(message, optional, tag = "22")]
    sparse: Option<Sparse>,
    #[prost(message, repeated, tag = "23")]
    sparses: Vec<Sparse>,
}

impl Attribute {
    fn visit(&self, files: &mut BTreeSet<String>) {
        self.tensor.iter().chain(&self.tensors).for_each(|tensor| tensor.visit(files));
        self.graph.iter().chain(&self.graphs).for_each(|graph| graph.visit(files));
        self.sparse.iter().chain(&self.sparses).for_each(|sparse| sparse.visit(files));
    }
}

/// `SparseTensorProto`.
#[derive(Clone, PartialEq, Message)]
struct Sparse {
    #[prost(message, optional, tag = "1")]
    values: Option<Tensor>,
    #[prost(message, optional, tag = "2")]
    indices: Option<Tensor>,
}

impl Sparse {
    fn visit(&self, files: &mut BTreeSet<String>) {
        self.values.iter().chain(&self.indices).for_each(|tensor| tensor.visit(files));
    }
}

/// `TensorProto`.
#[derive(Clone, PartialEq, Message)]
struct Tensor {
    #[prost(message, repeated, tag = "13")]
    external: Vec<Entry>,
}

impl Tensor {
    /// Whether the tensor says that it is external is not asked: a name that is not used must be harmless
    /// too.
    fn visit(&self, files: &mut BTreeSet<String>) {
        let locations = self.external.iter().filter(|entry| entry.key == LOCATION);
        files.extend(locations.map(|entry| entry.value.clone()));
    }
}

/// `StringStringEntryProto`.
#[derive(Clone, PartialEq, Message)]
struct Entry {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(string, tag = "2")]
    value: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tensor(file: &str) -> Tensor {
        let entry = |key: &str, value: &str| Entry { key: key.to_owned(), value: value.to_owned() };
        Tensor { external: vec![entry(LOCATION, file), entry("offset", "64")] }
    }

    #[test]
    fn names_are_found_wherever_a_tensor_can_be() {
        let sparse = |file| Sparse { values: Some(tensor(file)), indices: Some(Tensor::default()) };
        let node = |attribute| Node { attributes: vec![attribute] };
        let inner = Graph { initializers: vec![tensor("subgraph")], ..Graph::default() };
        let attribute = Attribute {
            tensor: Some(tensor("attribute")),
            tensors: vec![tensor("attributes")],
            graph: Some(inner.clone()),
            graphs: vec![Graph {
                nodes: vec![node(Attribute { graph: Some(inner), ..Attribute::default() })],
                ..Graph::default()
            }],
            sparse: Some(sparse("sparse")),
            sparses: vec![sparse("sparses")],
        };
        let function = Attribute { tensor: Some(tensor("function")), ..Attribute::default() };
        let graph = Graph {
            nodes: vec![node(attribute)],
            initializers: vec![Tensor::default(), tensor("initializer")],
            sparse_initializers: vec![sparse("sparse initializer")],
        };
        let functions = vec![Function { nodes: vec![node(function.clone())], attributes: vec![function] }];
        let found = files(&Model { graph: Some(graph), functions }.encode_to_vec()).unwrap();
        let expected = [
            "attribute",
            "attributes",
            "function",
            "initializer",
            "sparse",
            "sparse initializer",
            "sparses",
            "subgraph",
        ];
        assert_eq!(found.iter().collect::<Vec<_>>(), expected);
    }

    #[test]
    fn what_is_no_model_is_refused() {
        let nested = (0..200).fold(Graph::default(), |inner, _| {
            let attribute = Attribute { graph: Some(inner), ..Attribute::default() };
            Graph { nodes: vec![Node { attributes: vec![attribute] }], ..Graph::default() }
        });
        let too_deep = Model { graph: Some(nested), functions: Vec::new() }.encode_to_vec();
        for bytes in [&b""[..], b"not a model", &[0xff; 64], &too_deep] {
            assert!(matches!(files(bytes), Err(EngineError::NotAModel(_))), "{bytes:?}");
        }
    }
}
