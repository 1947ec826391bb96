//! What a model's file says of itself before anything is imported: which operators it is made of, and which
//! other files hold its weights. Other engines run models that the importer refuses; this reads those too.
//!
//! Invariant: recursion is as deep as messages nest, which the decoder bounds.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use bytes::Bytes;
use prost::Message;

use super::external::Files;
use super::import::{MODEL_FILE, full_name};
use super::proto::{GraphProto, ModelProto, NodeProto, TensorProto};
use crate::compare::DataError;
use crate::error::ImportError;

/// What a model's file says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Glance {
    /// How often each operator occurs, by its ONNX name; branches and bodies are counted, functions are not.
    pub operators: BTreeMap<String, usize>,
    /// Files that hold data of its tensors, as it writes their names.
    pub locations: BTreeSet<String>,
}

/// Looks at the bytes of a `ModelProto`.
///
/// # Errors
/// [`ImportError::NotAModel`].
pub fn glance(bytes: Bytes) -> Result<Glance, ImportError> {
    let wrong = |error: prost::DecodeError| ImportError::NotAModel(error.to_string());
    let mut found = Glance::default();
    let functions = Functions::decode(bytes.clone()).map_err(wrong)?.functions;
    for node in functions.iter().flat_map(|function| &function.node) {
        found.attributes(node);
    }
    // Operators of functions are those of their calls.
    found.operators.clear();
    if let Some(graph) = &ModelProto::decode(bytes).map_err(wrong)?.graph {
        found.graph(graph);
    }
    Ok(found)
}

impl Glance {
    fn graph(&mut self, graph: &GraphProto) {
        graph.initializer.iter().for_each(|tensor| self.tensor(tensor));
        for sparse in &graph.sparse_initializer {
            sparse.values.iter().chain(&sparse.indices).for_each(|tensor| self.tensor(tensor));
        }
        for node in &graph.node {
            *self.operators.entry(full_name(node)).or_default() += 1;
            self.attributes(node);
        }
    }

    fn attributes(&mut self, node: &NodeProto) {
        for attribute in &node.attribute {
            attribute.t.iter().chain(&attribute.tensors).for_each(|tensor| self.tensor(tensor));
            attribute.g.iter().chain(&attribute.graphs).for_each(|graph| self.graph(graph));
        }
    }

    fn tensor(&mut self, tensor: &TensorProto) {
        let named = tensor.external_data.iter().filter(|entry| entry.key == "location");
        self.locations.extend(named.map(|entry| entry.value.clone()));
    }
}

/// The functions of a `ModelProto`, which the importer does not read.
#[derive(Clone, PartialEq, Message)]
struct Functions {
    #[prost(message, repeated, tag = "25")]
    functions: Vec<FunctionProto>,
}

/// `FunctionProto`.
#[derive(Clone, PartialEq, Message)]
struct FunctionProto {
    #[prost(message, repeated, tag = "7")]
    node: Vec<NodeProto>,
}

/// A model and the files that it names, read whole: not mapped, since somebody else may write them meanwhile.
/// What lies beside them is not touched, and neither is a name that leaves the folder; the importer says what
/// is wrong with it, as with a file that is not there.
///
/// # Errors
/// [`DataError::Read`], [`DataError::Model`].
pub fn read_files(folder: &Path, model: &Path) -> Result<Files, DataError> {
    let read = |path: &Path| {
        let bytes = std::fs::read(path).map_err(|source| DataError::Read { path: path.into(), source })?;
        Ok(Bytes::from(bytes))
    };
    let bytes = read(model)?;
    let wrong = |source| DataError::Model { path: model.into(), source };
    let mut files = Files::new();
    for location in glance(bytes.clone()).map_err(wrong)?.locations {
        let name = location.strip_prefix("./").unwrap_or(&location);
        let path = folder.join(name);
        if inside(name) && path.exists() {
            files.insert(name.to_owned(), read(&path)?);
        }
    }
    files.insert(MODEL_FILE.to_owned(), bytes);
    Ok(files)
}

/// Whether a file of this name lies in the bundle: at its top, or in a folder of it. Nothing starts at the
/// root or climbs.
pub fn inside(name: &str) -> bool {
    !name.starts_with('/') && !name.split(['/', '\\']).any(|part| part == "..")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{AttributeProto, StringEntryProto};

    fn held(location: &str) -> TensorProto {
        let entry = StringEntryProto { key: "location".into(), value: location.into() };
        TensorProto { data_location: 1, external_data: vec![entry], ..TensorProto::default() }
    }

    fn node(op: &str, attribute: AttributeProto) -> NodeProto {
        NodeProto { op_type: op.into(), attribute: vec![attribute], ..NodeProto::default() }
    }

    fn model() -> Bytes {
        let inner = GraphProto {
            node: vec![node("Relu", AttributeProto { t: Some(held("deep/inner")), ..Default::default() })],
            ..GraphProto::default()
        };
        let graph = GraphProto {
            node: vec![
                node("Scan", AttributeProto { g: Some(inner.clone()), ..Default::default() }),
                node("Other", AttributeProto { graphs: vec![inner], ..Default::default() }),
                node("Relu", AttributeProto { tensors: vec![held("./listed")], ..Default::default() }),
            ],
            initializer: vec![held("weights"), held("weights"), held("../outside"), held("missing")],
            ..GraphProto::default()
        };
        let called = node("Erf", AttributeProto { t: Some(held("of a function")), ..Default::default() });
        let functions = Functions { functions: vec![FunctionProto { node: vec![called] }] };
        let model = ModelProto { graph: Some(graph), ..ModelProto::default() };
        Bytes::from([model.encode_to_vec(), functions.encode_to_vec()].concat())
    }

    #[test]
    fn operators_and_files_are_found_wherever_they_are() {
        let found = glance(model()).expect("a model");
        let operators: Vec<_> = found.operators.iter().map(|(op, count)| (op.as_str(), *count)).collect();
        assert_eq!(operators, [("Other", 1), ("Relu", 3), ("Scan", 1)]);
        let names: Vec<&str> = found.locations.iter().map(String::as_str).collect();
        assert_eq!(names, ["../outside", "./listed", "deep/inner", "missing", "of a function", "weights"]);
        assert!(matches!(glance(Bytes::from_static(b"\xff")), Err(ImportError::NotAModel(_))));
    }

    #[test]
    fn files_that_are_named_are_read_and_no_others() {
        let folder = std::env::temp_dir().join(format!("roost-glance-{}", std::process::id()));
        std::fs::create_dir_all(folder.join("bundle/deep")).expect("a folder");
        let write = |name: &str| std::fs::write(folder.join(name), name).expect("a file");
        for name in ["outside", "bundle/listed", "bundle/deep/inner", "bundle/weights", "bundle/beside"] {
            write(name);
        }
        let model_at = folder.join("bundle/some.onnx");
        std::fs::write(&model_at, model()).expect("a file");
        let files = read_files(&folder.join("bundle"), &model_at).expect("they can be read");
        let names: Vec<&str> = files.keys().map(String::as_str).collect();
        assert_eq!(names, ["deep/inner", "listed", MODEL_FILE, "weights"]);
        assert_eq!(files["deep/inner"], "bundle/deep/inner");
        std::fs::write(&model_at, [0xff]).expect("a file");
        let wrong = read_files(&folder.join("bundle"), &model_at);
        assert!(matches!(wrong, Err(DataError::Model { .. })), "{wrong:?}");
        std::fs::remove_dir_all(&folder).expect("it is there");
    }
}
