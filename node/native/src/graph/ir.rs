//! The graph: nodes in topological order over values that are constants, inputs or results.
//!
//! Invariant (checked by [`super::verify`]): every input of a node is a constant, a graph input, or the
//! output of an earlier node; every value has at most one producer.

use crate::ops::Op;
use crate::ops::fact::Out;
use crate::tensor::{DType, Tensor};

/// A value of a graph.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId(pub u32);

impl ValueId {
    /// Its index.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// A value.
#[derive(Debug, Clone, Default)]
pub struct Value {
    /// Its name in the model; empty for values that a pass made.
    pub name: String,
    /// Its data, if it is constant.
    pub constant: Option<Tensor>,
    /// Type and shape, once a graph is bound to shapes.
    pub out: Option<Out>,
}

/// A node.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it computes.
    pub op: Op,
    /// Its inputs; absent ones were skipped.
    pub inputs: Vec<Option<ValueId>>,
    /// Its outputs; absent ones are not wanted.
    pub outputs: Vec<Option<ValueId>>,
    /// Its name in the model, or `#` and its position.
    pub name: String,
}

impl Node {
    /// The value of an input; none where it was skipped or left out.
    pub fn input(&self, index: usize) -> Option<ValueId> {
        self.inputs.get(index).copied().flatten()
    }
}

/// A declared dimension.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Dim {
    /// Fixed.
    Const(usize),
    /// Any; equal names are equal sizes. Empty where the model gives no name.
    Sym(String),
}

/// An input or output as the model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its dimensions; `None` where not even the rank is declared.
    pub dims: Option<Vec<Dim>>,
}

impl Port {
    /// The shape as users read it: `[N, 1, 8, 8]`.
    pub fn shape_text(&self) -> String {
        let Some(dims) = &self.dims else { return "[...]".to_owned() };
        let text = |dim: &Dim| match dim {
            Dim::Const(size) => size.to_string(),
            Dim::Sym(name) if name.is_empty() => "?".to_owned(),
            Dim::Sym(name) => name.clone(),
        };
        format!("[{}]", dims.iter().map(text).collect::<Vec<_>>().join(", "))
    }
}

/// A graph.
#[derive(Debug, Clone, Default)]
pub struct Graph {
    /// Nodes, in topological order.
    pub nodes: Vec<Node>,
    /// Values.
    pub values: Vec<Value>,
    /// Inputs, in the order of the model.
    pub inputs: Vec<ValueId>,
    /// Outputs, in the order of the model.
    pub outputs: Vec<ValueId>,
    /// Bytes of the constants that were computed when it was bound to shapes.
    pub folded_bytes: u64,
}

impl Graph {
    /// Adds a value.
    pub fn value(&mut self, name: impl Into<String>) -> ValueId {
        self.values.push(Value { name: name.into(), ..Value::default() });
        ValueId((self.values.len() - 1) as u32)
    }

    /// Adds a constant.
    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        let id = self.value("");
        self.values[id.index()].constant = Some(tensor);
        id
    }

    /// The data of a value, if it is constant.
    pub fn data(&self, id: ValueId) -> Option<&Tensor> {
        self.values[id.index()].constant.as_ref()
    }

    /// The data of a node's input, if it is there and constant.
    pub fn input_data(&self, node: &Node, index: usize) -> Option<&Tensor> {
        node.input(index).and_then(|id| self.data(id))
    }

    /// How many nodes and graph outputs read each value.
    pub fn uses(&self) -> Vec<u32> {
        let mut uses = vec![0; self.values.len()];
        let reads = self.nodes.iter().flat_map(|node| node.inputs.iter().flatten());
        reads.chain(&self.outputs).for_each(|id| uses[id.index()] += 1);
        uses
    }

    /// The node that makes each value.
    pub fn producers(&self) -> Vec<Option<usize>> {
        let mut producers = vec![None; self.values.len()];
        for (i, node) in self.nodes.iter().enumerate() {
            node.outputs.iter().flatten().for_each(|id| producers[id.index()] = Some(i));
        }
        producers
    }
}
