//! A graph with the maker and the readers of each value, kept up while a pass rewrites nodes, so that asking
//! for them does not go through all nodes.

use std::ops::Deref;

use super::ir::{Graph, Node, ValueId};
use crate::ops::Op;
use crate::tensor::Tensor;

/// Who reads a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reader {
    /// The node at this place, once for each input that it is.
    Node(usize),
    /// The graph's outputs.
    Output,
}

/// A graph that is being rewritten.
pub struct Linked<'g> {
    graph: &'g mut Graph,
    makers: Vec<Option<usize>>,
    readers: Vec<Vec<Reader>>,
}

impl Deref for Linked<'_> {
    type Target = Graph;

    fn deref(&self) -> &Graph {
        self.graph
    }
}

impl<'g> Linked<'g> {
    /// Looks at all nodes of a graph.
    pub fn new(graph: &'g mut Graph) -> Self {
        let makers = graph.producers();
        let mut readers = vec![Vec::new(); graph.values.len()];
        for (at, node) in graph.nodes.iter().enumerate() {
            node.inputs.iter().flatten().for_each(|id| readers[id.index()].push(Reader::Node(at)));
        }
        graph.outputs.iter().for_each(|id| readers[id.index()].push(Reader::Output));
        Self { graph, makers, readers }
    }

    /// The node that makes a value.
    pub fn maker(&self, id: ValueId) -> Option<usize> {
        self.makers[id.index()]
    }

    /// The node that reads a value, if it does so once, nothing else does, and the value is no output.
    pub fn only_reader(&self, id: ValueId) -> Option<usize> {
        match self.readers[id.index()][..] {
            [Reader::Node(at)] => Some(at),
            _ => None,
        }
    }

    /// Adds a value.
    pub fn value(&mut self) -> ValueId {
        self.makers.push(None);
        self.readers.push(Vec::new());
        self.graph.value("")
    }

    /// Adds a constant.
    pub fn constant(&mut self, tensor: Tensor) -> ValueId {
        let id = self.value();
        self.graph.values[id.index()].constant = Some(tensor);
        id
    }

    /// Adds a node at the end; its place.
    pub fn push(&mut self, node: Node) -> usize {
        let at = self.graph.nodes.len();
        let Node { op, inputs, outputs, name } = node;
        self.graph.nodes.push(Node { op: op.clone(), inputs: Vec::new(), outputs: Vec::new(), name });
        self.rewrite(at, op, inputs);
        self.give(at, outputs);
        at
    }

    /// Puts another operator, of other inputs, in the place of a node's.
    pub fn rewrite(&mut self, at: usize, op: Op, inputs: Vec<Option<ValueId>>) {
        let node = &mut self.graph.nodes[at];
        node.op = op;
        for id in std::mem::replace(&mut node.inputs, inputs).into_iter().flatten() {
            let readers = &mut self.readers[id.index()];
            if let Some(found) = readers.iter().position(|reader| *reader == Reader::Node(at)) {
                readers.swap_remove(found);
            }
        }
        for id in self.graph.nodes[at].inputs.iter().flatten() {
            self.readers[id.index()].push(Reader::Node(at));
        }
    }

    /// Has a node make other values. Whoever made these before must have been given others.
    pub fn give(&mut self, at: usize, outputs: Vec<Option<ValueId>>) {
        for id in std::mem::replace(&mut self.graph.nodes[at].outputs, outputs).into_iter().flatten() {
            self.makers[id.index()] = None;
        }
        for id in self.graph.nodes[at].outputs.iter().flatten() {
            self.makers[id.index()] = Some(at);
        }
    }

    /// The operator of a node, to be changed in what does not concern its inputs.
    pub fn op_mut(&mut self, at: usize) -> &mut Op {
        &mut self.graph.nodes[at].op
    }
}
