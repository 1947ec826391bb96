//! From a `ModelProto` to a [`Graph`]: names become values, nodes are sorted, every node is translated, and
//! what is not supported is gathered into one list.
//!
//! Invariant: any bytes end in a graph that [`verify`] accepts or in an [`ImportError`]; nothing is allocated
//! that the file does not pay for.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;

use super::attributes::{Attributes, Refusal};
use super::external::{self, Files};
use super::nodes;
use super::proto::{DimValue, GraphProto, ModelProto, NodeProto, ValueInfoProto};
use super::schema::{Version, inputs_max, version};
use crate::error::{ImportError, UnsupportedOp};
use crate::graph::ir::{Dim, Graph, Node, Port, ValueId};
use crate::graph::verify::verify;
use crate::ops::Op;
use crate::ops::fact::RANK_MAX;
use crate::tensor::{DType, Tensor};

/// Limits that protect the process from a hostile file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Nodes of a model, those of subgraphs counted. Default 65 536: ten times the largest model known.
    pub nodes_max: u64,
    /// Nesting of `If`. Default 8; recursion deepens the stack.
    pub subgraph_depth_max: u64,
    /// Bytes that constant folding may make, over all plans together; and bytes of the tables of one plan,
    /// where they grow with its shapes. Default 1 GiB.
    pub folded_bytes_max: u64,
    /// Bytes of one plan's arena, and of one tensor. Default 8 GiB.
    pub arena_bytes_max: u64,
    /// Bytes that a program's weights may take in the layouts of kernels, beside [`PACKED_TIMES`] those of
    /// its files. A file of bytes can name weights of any size, and a layout pads columns to whole vectors:
    /// one column takes as much as 16. Of real models only weights that folding makes come here, which
    /// `folded_bytes_max` bounds. Default 1 GiB.
    pub packed_bytes_max: u64,
}

/// What weights may take in the layouts of kernels, in bytes for a byte of the model's files: those in `i8`
/// may be computed in `f32`.
pub const PACKED_TIMES: u64 = 4;

impl Default for Limits {
    fn default() -> Self {
        Self {
            nodes_max: 65_536,
            subgraph_depth_max: 8,
            folded_bytes_max: 1 << 30,
            arena_bytes_max: 8 << 30,
            packed_bytes_max: 1 << 30,
        }
    }
}

/// A model: its graph, and what it declares.
#[derive(Debug, Clone)]
pub struct Model {
    /// The graph.
    pub graph: Graph,
    /// Inputs as declared.
    pub inputs: Vec<Port>,
    /// Outputs as declared.
    pub outputs: Vec<Port>,
    /// How often each operator occurs, by its ONNX name.
    pub operators: BTreeMap<String, usize>,
    /// The limits that it was imported under.
    pub limits: Limits,
    /// Bytes of its files.
    pub file_bytes: u64,
}

/// The file of a bundle that holds the model.
pub const MODEL_FILE: &str = "model.onnx";

impl Model {
    /// Imports `model.onnx` of a bundle. Weights are borrowed from the bundle's bytes.
    ///
    /// # Errors
    /// [`ImportError`]; [`ImportError::Unsupported`] lists everything that the engine does not have.
    pub fn import(files: &Files, limits: Limits) -> Result<Self, ImportError> {
        let file = files.get(MODEL_FILE).ok_or_else(|| ImportError::MissingFile(MODEL_FILE.to_owned()))?;
        Self::import_bytes(file.clone(), files, limits)
    }

    /// Imports a model from bytes, with external data from `files`.
    ///
    /// # Errors
    /// As [`Model::import`].
    pub fn import_bytes(bytes: Bytes, files: &Files, limits: Limits) -> Result<Self, ImportError> {
        let beside = files.iter().filter(|(name, _)| *name != MODEL_FILE).map(|(_, file)| file.len() as u64);
        let file_bytes = bytes.len() as u64 + beside.sum::<u64>();
        let model = ModelProto::decode(bytes).map_err(|error| ImportError::NotAModel(error.to_string()))?;
        let graph = model.graph.as_ref().ok_or_else(|| ImportError::NotAModel("it has no graph".into()))?;
        let opsets = model.opset_import.iter().map(|set| (set.domain.as_str(), set.version));
        // Two spellings of ONNX's own domain; a file of IR version 3 or less may name none.
        let opset =
            opsets.filter(|(domain, _)| is_onnx(domain)).map(|(_, version)| version).max().unwrap_or(1);
        let mut importer = Importer {
            files,
            limits,
            opset,
            graph: Graph::default(),
            unsupported: Vec::new(),
            nodes: 0,
            operators: BTreeMap::new(),
        };
        let mut scope = Scope::default();
        let (inputs, outputs) = importer.model(graph, &mut scope)?;
        if !importer.unsupported.is_empty() {
            return Err(ImportError::Unsupported(importer.unsupported));
        }
        verify(&importer.graph).map_err(ImportError::Graph)?;
        let Importer { graph, operators, .. } = importer;
        Ok(Self { graph, inputs, outputs, operators, limits, file_bytes })
    }
}

fn is_onnx(domain: &str) -> bool {
    domain.is_empty() || domain == "ai.onnx"
}

/// Names of one graph and of those around it.
#[derive(Default)]
pub struct Scope {
    names: HashMap<String, ValueId>,
}

/// The state of an import; one per (sub)graph.
pub struct Importer<'a> {
    /// The bundle.
    pub files: &'a Files,
    /// Limits.
    pub limits: Limits,
    /// The model's opset of the ONNX domain.
    pub opset: i64,
    /// The graph so far.
    pub graph: Graph,
    unsupported: Vec<UnsupportedOp>,
    nodes: u64,
    operators: BTreeMap<String, usize>,
}

impl Importer<'_> {
    fn model(
        &mut self,
        proto: &GraphProto,
        scope: &mut Scope,
    ) -> Result<(Vec<Port>, Vec<Port>), ImportError> {
        self.initialisers(proto, scope)?;
        let mut inputs = Vec::new();
        let initialised: HashSet<&str> =
            proto.initializer.iter().map(|tensor| tensor.name.as_str()).collect();
        // Up to IR version 3 initialisers are listed among the inputs.
        for info in &proto.input {
            if initialised.contains(info.name.as_str()) {
                continue;
            }
            let port = port(info)?;
            let id = self.graph.value(&info.name);
            self.graph.inputs.push(id);
            let computed = if port.dtype.computed() == port.dtype {
                id
            } else {
                self.emit(
                    Op::Cast { to: port.dtype.computed() },
                    &[Some(id)],
                    &format!("{} widened", info.name),
                )
            };
            define(scope, &info.name, computed)?;
            inputs.push(port);
        }
        self.nodes(proto, scope, 0)?;
        let mut outputs = Vec::new();
        for info in &proto.output {
            let id = scope.names.get(&info.name).copied();
            let port = port(info)?;
            let Some(id) = id else {
                // A name that only an unsupported node makes is not an error of its own.
                if self.unsupported.is_empty() {
                    return Err(ImportError::Graph(format!("output {:?} is never made", info.name)));
                }
                continue;
            };
            let narrow = port.dtype.computed() != port.dtype;
            let id = if narrow {
                self.emit(Op::Cast { to: port.dtype }, &[Some(id)], &format!("{} narrowed", info.name))
            } else {
                id
            };
            self.graph.outputs.push(id);
            outputs.push(port);
        }
        Ok((inputs, outputs))
    }

    fn initialisers(&mut self, proto: &GraphProto, scope: &mut Scope) -> Result<(), ImportError> {
        if !proto.sparse_initializer.is_empty() {
            self.refuse("SparseTensor", "", "sparse initialisers");
        }
        for initialiser in &proto.initializer {
            let tensor = external::tensor(initialiser, self.files)?;
            let id = self.constant(tensor);
            self.graph.values[id.index()].name.clone_from(&initialiser.name);
            define(scope, &initialiser.name, id)?;
        }
        Ok(())
    }

    /// Translates the nodes of a graph in topological order.
    fn nodes(&mut self, proto: &GraphProto, scope: &mut Scope, depth: u64) -> Result<(), ImportError> {
        self.nodes += proto.node.iter().map(cost).sum::<u64>();
        let (nodes_max, depth_max) = (self.limits.nodes_max, self.limits.subgraph_depth_max);
        if self.nodes > nodes_max {
            return Err(ImportError::Limit {
                what: "the number of nodes",
                found: self.nodes,
                max: nodes_max,
            });
        }
        if depth > depth_max {
            return Err(ImportError::Limit { what: "the depth of subgraphs", found: depth, max: depth_max });
        }
        for index in sorted(proto)? {
            let node = &proto.node[index];
            let name = if node.name.is_empty() { format!("#{index}") } else { node.name.clone() };
            self.node(node, name, scope, depth)?;
        }
        Ok(())
    }

    fn node(
        &mut self,
        node: &NodeProto,
        name: String,
        scope: &mut Scope,
        depth: u64,
    ) -> Result<(), ImportError> {
        let malformed =
            |reason: String| ImportError::Node { node: name.clone(), op: node.op_type.clone(), reason };
        *self.operators.entry(full_name(node)).or_default() += 1;
        if !is_onnx(&node.domain) {
            self.refuse(&full_name(node), &name, "no operators of this domain");
            return Ok(());
        }
        let since = match version(&node.op_type, self.opset) {
            Version::Known(since) => since,
            Version::Refused(since) => {
                self.refuse(&node.op_type, &name, &format!("version {since} of the operator"));
                return Ok(());
            }
            Version::TooNew(since) => {
                return Err(malformed(format!("it came with opset {since}, the model is of {}", self.opset)));
            }
            Version::Missing => {
                self.refuse(&node.op_type, &name, "no such operator here");
                return Ok(());
            }
        };
        let mut inputs = Vec::with_capacity(node.input.len());
        for input in &node.input {
            inputs.push(match scope.names.get(input) {
                _ if input.is_empty() => None,
                Some(id) => Some(*id),
                // Its producer may have been refused; the list of refusals says so.
                None if !self.unsupported.is_empty() => return Ok(()),
                None => return Err(malformed(format!("input {input:?} is never made"))),
            });
        }
        // Trailing skipped inputs are as good as absent.
        while inputs.last() == Some(&None) {
            inputs.pop();
        }
        let most = inputs_max(&node.op_type);
        if inputs.len() > most {
            return Err(malformed(format!("it has {} inputs, and takes {most}", inputs.len())));
        }
        if node.op_type == "If" {
            return self.branches(node, &name, &inputs, scope, depth);
        }
        let mut translation = nodes::Context { importer: self, node, since, name: &name, inputs };
        match nodes::translate(&mut translation) {
            Ok(outputs) => {
                if outputs.len() < node.output.len()
                    && node.output[outputs.len()..].iter().any(|o| !o.is_empty())
                {
                    return Err(malformed(format!("it has {} outputs", node.output.len())));
                }
                for (output, id) in node.output.iter().zip(outputs).filter(|(output, _)| !output.is_empty()) {
                    if self.graph.values[id.index()].name.is_empty() {
                        self.graph.values[id.index()].name.clone_from(output);
                    }
                    define(scope, output, id)?;
                }
                Ok(())
            }
            Err(Refusal::Malformed(reason)) => Err(malformed(reason)),
            Err(Refusal::Unsupported(reason)) => {
                self.refuse(&node.op_type, &name, &reason);
                Ok(())
            }
        }
    }

    /// Translates an `If`: each branch is a graph whose inputs are what it takes from around it.
    fn branches(
        &mut self,
        node: &NodeProto,
        name: &str,
        inputs: &[Option<ValueId>],
        scope: &mut Scope,
        depth: u64,
    ) -> Result<(), ImportError> {
        let malformed = |reason: &str| ImportError::Node {
            node: name.to_owned(),
            op: node.op_type.clone(),
            reason: reason.to_owned(),
        };
        let Some(Some(condition)) = inputs.first().copied() else { return Err(malformed("no condition")) };
        let attributes = Attributes(node);
        let mut protos = Vec::new();
        for branch in ["then_branch", "else_branch"] {
            protos.push(attributes.graph(branch).map_err(|_| malformed("it lacks a branch"))?);
        }
        // Both branches get the same captures, in one order.
        let mut captured: Vec<String> = Vec::new();
        protos.iter().for_each(|proto| captures(proto, &scope.names, &mut captured));
        captured.sort_unstable();
        captured.dedup();
        let mut graphs = Vec::new();
        for proto in protos {
            let outer = std::mem::take(&mut self.graph);
            let mut inner = Scope::default();
            for capture in &captured {
                let id = self.graph.value(capture);
                self.graph.inputs.push(id);
                inner.names.insert(capture.clone(), id);
            }
            let done = self.branch(proto, &mut inner, depth + 1);
            graphs.push(std::mem::replace(&mut self.graph, outer));
            done?;
        }
        let (Some(otherwise), Some(then)) = (graphs.pop(), graphs.pop()) else {
            return Err(malformed("no branch"));
        };
        if !self.unsupported.is_empty() {
            return Ok(());
        }
        if then.outputs.len() != otherwise.outputs.len() || node.output.len() > then.outputs.len() {
            return Err(malformed("the branches differ in their number of outputs"));
        }
        for branch in [&then, &otherwise] {
            verify(branch).map_err(ImportError::Graph)?;
        }
        let mut taken = vec![Some(condition)];
        taken.extend(captured.iter().map(|name| scope.names.get(name).copied()));
        let count = then.outputs.len();
        let op = Op::If { then: Arc::new(then), otherwise: Arc::new(otherwise) };
        let outputs = self.emit_many(op, &taken, count, name);
        for (output, id) in node.output.iter().zip(outputs).filter(|(output, _)| !output.is_empty()) {
            define(scope, output, id)?;
        }
        Ok(())
    }

    fn branch(&mut self, proto: &GraphProto, scope: &mut Scope, depth: u64) -> Result<(), ImportError> {
        self.initialisers(proto, scope)?;
        self.nodes(proto, scope, depth)?;
        for info in &proto.output {
            match scope.names.get(&info.name) {
                Some(id) => self.graph.outputs.push(*id),
                None if !self.unsupported.is_empty() => {}
                None => return Err(ImportError::Graph(format!("output {:?} is never made", info.name))),
            }
        }
        Ok(())
    }

    fn refuse(&mut self, op: &str, node: &str, reason: &str) {
        if !self.unsupported.iter().any(|known| known.op == op && known.reason == reason) {
            self.unsupported.push(UnsupportedOp { op: op.into(), node: node.into(), reason: reason.into() });
        }
    }

    /// A constant; half precision is widened.
    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        self.graph.constant(tensor.computed())
    }

    /// Adds a node with one output.
    pub fn emit(&mut self, op: Op, inputs: &[Option<ValueId>], name: &str) -> ValueId {
        let output = self.graph.value("");
        self.push(op, inputs, vec![Some(output)], name);
        output
    }

    /// Adds a node with several outputs.
    pub fn emit_many(
        &mut self,
        op: Op,
        inputs: &[Option<ValueId>],
        count: usize,
        name: &str,
    ) -> Vec<ValueId> {
        let outputs: Vec<_> = (0..count).map(|_| self.graph.value("")).collect();
        self.push(op, inputs, outputs.iter().copied().map(Some).collect(), name);
        outputs
    }

    fn push(&mut self, op: Op, inputs: &[Option<ValueId>], outputs: Vec<Option<ValueId>>, name: &str) {
        self.graph.nodes.push(Node { op, inputs: inputs.to_vec(), outputs, name: name.to_owned() });
    }
}

/// How many nodes one becomes: those with any number of operands or parts become a chain.
fn cost(node: &NodeProto) -> u64 {
    let parts = match node.op_type.as_str() {
        "Sum" | "Mean" | "Max" | "Min" => node.input.len(),
        "Split" => node.output.len(),
        _ => 1,
    };
    parts.max(1) as u64
}

/// An operator's name, with its domain where that is not ONNX's own.
pub fn full_name(node: &NodeProto) -> String {
    if is_onnx(&node.domain) { node.op_type.clone() } else { format!("{}::{}", node.domain, node.op_type) }
}

fn define(scope: &mut Scope, name: &str, id: ValueId) -> Result<(), ImportError> {
    match scope.names.insert(name.to_owned(), id) {
        None => Ok(()),
        Some(_) => Err(ImportError::Graph(format!("{name:?} is made twice"))),
    }
}

/// Names of `around` that a graph and its subgraphs read.
fn captures(proto: &GraphProto, around: &HashMap<String, ValueId>, found: &mut Vec<String>) {
    for node in &proto.node {
        found.extend(node.input.iter().filter(|name| around.contains_key(*name)).cloned());
        node.attribute.iter().filter_map(|a| a.g.as_ref()).for_each(|graph| captures(graph, around, found));
    }
    found.extend(
        proto.output.iter().map(|info| &info.name).filter(|name| around.contains_key(*name)).cloned(),
    );
}

/// Indices of the nodes in topological order, and in the file's order where that is free.
fn sorted(proto: &GraphProto) -> Result<Vec<usize>, ImportError> {
    let mut producers: HashMap<&str, usize> = HashMap::new();
    for (i, node) in proto.node.iter().enumerate() {
        for output in node.output.iter().filter(|output| !output.is_empty()) {
            if producers.insert(output, i).is_some() {
                return Err(ImportError::Graph(format!("{output:?} is made twice")));
            }
        }
    }
    // Subgraphs read values of this graph too.
    fn reads<'a>(node: &'a NodeProto, into: &mut Vec<&'a str>) {
        into.extend(node.input.iter().map(String::as_str));
        for graph in node.attribute.iter().filter_map(|a| a.g.as_ref()) {
            graph.node.iter().for_each(|node| reads(node, into));
            into.extend(graph.output.iter().map(|info| info.name.as_str()));
        }
    }
    let mut waiting = vec![0_usize; proto.node.len()];
    let mut readers: Vec<Vec<usize>> = vec![Vec::new(); proto.node.len()];
    for (i, node) in proto.node.iter().enumerate() {
        let mut names = Vec::new();
        reads(node, &mut names);
        for producer in names.iter().filter_map(|name| producers.get(name)) {
            readers[*producer].push(i);
            waiting[i] += 1;
        }
    }
    let mut ready: std::collections::BTreeSet<usize> =
        (0..proto.node.len()).filter(|i| waiting[*i] == 0).collect();
    let mut order = Vec::with_capacity(proto.node.len());
    while let Some(next) = ready.pop_first() {
        order.push(next);
        for reader in &readers[next] {
            waiting[*reader] -= 1;
            if waiting[*reader] == 0 {
                ready.insert(*reader);
            }
        }
    }
    match (0..proto.node.len()).find(|i| waiting[*i] > 0) {
        Some(stuck) if order.len() < proto.node.len() => {
            let node = &proto.node[stuck];
            Err(ImportError::Graph(format!("a cycle through node {:?} ({})", node.name, node.op_type)))
        }
        _ => Ok(order),
    }
}

fn port(info: &ValueInfoProto) -> Result<Port, ImportError> {
    let wrong = |reason: String| ImportError::Tensor { tensor: info.name.clone(), reason };
    let tensor = info.r#type.as_ref().and_then(|kind| kind.tensor_type.as_ref());
    let tensor = tensor.ok_or_else(|| {
        let reason = "only tensors are supported".to_owned();
        ImportError::Unsupported(vec![UnsupportedOp { op: "input".into(), node: info.name.clone(), reason }])
    })?;
    let dtype = DType::from_onnx(tensor.elem_type).ok_or_else(|| {
        let reason = format!("element type {} is not supported", tensor.elem_type);
        ImportError::Unsupported(vec![UnsupportedOp { op: "tensor".into(), node: info.name.clone(), reason }])
    })?;
    let Some(shape) = &tensor.shape else { return Ok(Port { name: info.name.clone(), dtype, dims: None }) };
    if shape.dim.len() > RANK_MAX {
        return Err(wrong(format!("rank {} is above {RANK_MAX}", shape.dim.len())));
    }
    let dim = |value: &Option<DimValue>| match value {
        Some(DimValue::Value(size)) => match usize::try_from(*size) {
            Ok(size) => Ok(Dim::Const(size)),
            // Some exporters write -1 for any size.
            Err(_) if *size == -1 => Ok(Dim::Sym(String::new())),
            Err(_) => Err(wrong(format!("dimension {size}"))),
        },
        Some(DimValue::Param(name)) => Ok(Dim::Sym(name.clone())),
        None => Ok(Dim::Sym(String::new())),
    };
    let dims = shape.dim.iter().map(|d| dim(&d.value)).collect::<Result<Vec<_>, _>>()?;
    Ok(Port { name: info.name.clone(), dtype, dims: Some(dims) })
}
