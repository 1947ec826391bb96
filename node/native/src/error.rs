//! What can go wrong, one enum per boundary: [`OpError`] for one operator, [`ImportError`] for a file that
//! becomes a program, [`RunError`] for a run. Bad input always ends here; a panic means a broken invariant of
//! this crate.

use crate::tensor::{DType, NoMemory};

/// Why an operator cannot be given shapes, compiled or computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpError {
    /// The combination of types, ranks or attributes has no kernel here.
    #[error("not supported: {0}")]
    Unsupported(String),
    /// Shapes that do not fit each other or the attributes.
    #[error("shapes do not fit: {0}")]
    Shape(String),
    /// An element type that the operator does not take.
    #[error("input {input} has element type {dtype}, which does not fit")]
    DType {
        /// Position of the input.
        input: usize,
        /// Its type.
        dtype: DType,
    },
    /// A required input is absent.
    #[error("input {0} is missing")]
    MissingInput(usize),
    /// The shape of an output depends on the data of this input, which is not known before the run.
    #[error("input {0} decides a shape, and its value is not known yet")]
    Dynamic(usize),
    /// An integer was divided by zero.
    #[error("integer division by zero")]
    DivisionByZero,
    /// An index outside its axis.
    #[error("index {index} is outside an axis of {len}")]
    Index {
        /// The index.
        index: i64,
        /// The length of the axis.
        len: usize,
    },
    /// A tensor beyond the limit.
    #[error("a tensor of {bytes} bytes is over the limit of {bytes_max}")]
    TooLarge {
        /// What was asked for; `u128` since a product of dimensions passes 64 bits.
        bytes: u128,
        /// The limit.
        bytes_max: u64,
    },
    /// There is no memory for a result or a weight.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// The run was cancelled inside a subgraph.
    #[error("the run was cancelled")]
    Cancelled,
}

/// An operator that the engine does not have, as [`ImportError::Unsupported`] lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsupportedOp {
    /// Domain and name, such as `Loop` or `com.microsoft::Attention`.
    pub op: String,
    /// Name of the first node that has it.
    pub node: String,
    /// Why it is not supported.
    pub reason: String,
}

/// Why a bundle does not become a program.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The bytes are no `ModelProto`.
    #[error("not an ONNX model: {0}")]
    NotAModel(String),
    /// A file that the model names is not in the bundle.
    #[error("the bundle has no file {0}")]
    MissingFile(String),
    /// External data whose path leaves the bundle, or whose range leaves its file.
    #[error("external data of {tensor}: {reason}")]
    External {
        /// The initialiser.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// A tensor whose data does not match its dimensions and type.
    #[error("tensor {tensor}: {reason}")]
    Tensor {
        /// The initialiser, constant or input file.
        tensor: String,
        /// What is wrong.
        reason: String,
    },
    /// The graph has a cycle, a value without producer, two producers, or similar.
    #[error("the graph is malformed: {0}")]
    Graph(String),
    /// A node with a missing or malformed attribute, or a wrong number of inputs.
    #[error("node {node} ({op}): {reason}")]
    Node {
        /// The node's name, or its index.
        node: String,
        /// Its operator.
        op: String,
        /// What is wrong.
        reason: String,
    },
    /// What the engine does not have; each operator once.
    #[error("not supported: {}", list(.0))]
    Unsupported(Vec<UnsupportedOp>),
    /// A limit that protects the process was passed.
    #[error("{what} is {found}, over the limit of {max}")]
    Limit {
        /// What was counted.
        what: &'static str,
        /// What the file has.
        found: u64,
        /// What is allowed.
        max: u64,
    },
    /// An operator that fails at compile time whatever the inputs.
    #[error("node {node} ({op}): {source}")]
    Op {
        /// The node's name, or its index.
        node: String,
        /// Its operator.
        op: String,
        /// Why.
        #[source]
        source: OpError,
    },
}

fn list(ops: &[UnsupportedOp]) -> String {
    ops.iter().map(|op| format!("{} ({}: {})", op.op, op.node, op.reason)).collect::<Vec<_>>().join("; ")
}

/// Why a run failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RunError {
    /// Another number of inputs than the model has.
    #[error("the model takes {expected} inputs, {found} came")]
    InputCount {
        /// What the model takes.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// An input of the wrong element type.
    #[error("input {name} is {expected}, {found} came")]
    InputDType {
        /// The input.
        name: String,
        /// What the model declares.
        expected: DType,
        /// What came.
        found: DType,
    },
    /// An input whose shape does not fit the declaration.
    #[error("input {name} is declared as {expected}, {found:?} came")]
    InputShape {
        /// The input.
        name: String,
        /// What the model declares.
        expected: String,
        /// What came.
        found: Vec<usize>,
    },
    /// An input whose bytes are not as many as its shape and type say.
    #[error("input {name} has {found} bytes, its shape takes {expected}")]
    InputBytes {
        /// The input.
        name: String,
        /// What the shape takes.
        expected: usize,
        /// What came.
        found: usize,
    },
    /// A node failed.
    #[error("node {node} ({op}): {source}")]
    Op {
        /// The node's name, or its index.
        node: String,
        /// Its operator.
        op: String,
        /// Why.
        #[source]
        source: OpError,
    },
    /// The plan needs a larger arena than allowed.
    #[error("the plan needs {bytes} bytes of arena, over the limit of {bytes_max}")]
    Arena {
        /// What the plan needs.
        bytes: u64,
        /// What is allowed.
        bytes_max: u64,
    },
    /// There is no memory for the arena or an input.
    #[error(transparent)]
    Memory(#[from] NoMemory),
    /// The run was cancelled.
    #[error("the run was cancelled")]
    Cancelled,
}
