//! Binding: a graph specialised for concrete input shapes. Every value gets a type and a shape; nodes whose
//! inputs are known are computed; an `If` whose condition is known becomes its branch.

use std::collections::HashMap;

use crate::error::{OpError, RunError};
use crate::exec::interpret::{self, extent};
use crate::graph::ir::{Graph, Node, ValueId};
use crate::onnx::import::Limits;
use crate::ops::fact::{Fact, Facts, Out};
use crate::ops::{Op, Target, infer};

/// Specialises `graph` for inputs of these types and shapes.
///
/// # Errors
/// [`RunError::Arena`] where an input alone takes more than an arena may; [`RunError::Op`], with
/// [`OpError::Dynamic`] inside where a shape depends on data that comes with the run.
pub fn bind(graph: &Graph, inputs: &[Out], limits: Limits, target: Target<'_>) -> Result<Graph, RunError> {
    let bytes_max = limits.arena_bytes_max;
    if let Some(large) =
        inputs.iter().map(|out| extent(out.dtype, &out.shape)).find(|x| *x > bytes_max.into())
    {
        return Err(RunError::Arena { bytes: u64::try_from(large).unwrap_or(u64::MAX), bytes_max });
    }
    let mut binder = Binder { bound: Graph::default(), limits, target };
    let mut map = HashMap::new();
    for (id, out) in graph.inputs.iter().zip(inputs) {
        let new = binder.bound.value(graph.values[id.index()].name.clone());
        binder.bound.values[new.index()].out = Some(out.clone());
        binder.bound.inputs.push(new);
        map.insert(*id, new);
    }
    binder.nodes(graph, &mut map)?;
    binder.bound.outputs = graph.outputs.iter().map(|id| binder.take(graph, &mut map, *id)).collect();
    Ok(binder.bound)
}

struct Binder<'a> {
    bound: Graph,
    limits: Limits,
    target: Target<'a>,
}

impl Binder<'_> {
    /// The bound value of a value: constants are taken over on first use.
    fn take(&mut self, graph: &Graph, map: &mut HashMap<ValueId, ValueId>, id: ValueId) -> ValueId {
        *map.entry(id).or_insert_with(|| {
            let old = &graph.values[id.index()];
            let new = self.bound.value(old.name.clone());
            let value = &mut self.bound.values[new.index()];
            value.out = old.constant.as_ref().map(|tensor| Out::new(tensor.dtype(), tensor.shape()));
            value.constant.clone_from(&old.constant);
            new
        })
    }

    fn nodes(&mut self, graph: &Graph, map: &mut HashMap<ValueId, ValueId>) -> Result<(), RunError> {
        for node in &graph.nodes {
            let inputs: Vec<_> =
                node.inputs.iter().map(|id| id.map(|id| self.take(graph, map, id))).collect();
            let fail = |source: OpError| RunError::Op {
                node: node.name.clone(),
                op: node.op.name().to_owned(),
                source,
            };
            let outputs = self.node(node, &inputs).map_err(|error| match error {
                Failure::Op(source) => fail(source),
                Failure::Run(error) => error,
            })?;
            for (old, new) in node.outputs.iter().zip(outputs) {
                if let (Some(old), Some(new)) = (old, new) {
                    if self.bound.values[new.index()].name.is_empty() {
                        self.bound.values[new.index()].name.clone_from(&graph.values[old.index()].name);
                    }
                    map.insert(*old, new);
                }
            }
        }
        Ok(())
    }

    fn node(&mut self, node: &Node, inputs: &[Option<ValueId>]) -> Result<Vec<Option<ValueId>>, Failure> {
        let constant =
            |id: &Option<ValueId>| id.is_none_or(|id| self.bound.values[id.index()].constant.is_some());
        let known = matches!(node.op, Op::Shape { .. } | Op::Size) || inputs.iter().all(constant);
        if let Op::If { then, otherwise } = &node.op {
            let Some(condition) =
                inputs[0].and_then(|id| self.bound.data(id)).and_then(crate::tensor::Tensor::ints)
            else {
                return Err(Failure::Op(OpError::Dynamic(0)));
            };
            let branch = if condition.first().is_some_and(|flag| *flag != 0) { then } else { otherwise };
            let taken =
                branch.inputs.iter().zip(&inputs[1..]).filter_map(|(id, taken)| Some((*id, (*taken)?)));
            let mut inner: HashMap<ValueId, ValueId> = taken.collect();
            self.nodes(branch, &mut inner).map_err(Failure::Run)?;
            return Ok(branch.outputs.iter().map(|id| Some(self.take(branch, &mut inner, *id))).collect());
        }
        let facts: Vec<Option<Fact<'_>>> =
            inputs.iter().map(|id| id.and_then(|id| fact(&self.bound, id))).collect();
        let outs = infer(&node.op, Facts(&facts)).map_err(Failure::Op)?;
        interpret::check_sizes(&outs, self.limits.arena_bytes_max).map_err(Failure::Op)?;
        let bytes: u64 = outs.iter().map(|out| out.bytes() as u64).sum();
        // What would not fit the limit is computed in every run instead.
        if known && self.bound.folded_bytes + bytes <= self.limits.folded_bytes_max {
            self.bound.folded_bytes += bytes;
            return self.fold(node, inputs, &outs);
        }
        let mut ids = Vec::with_capacity(outs.len());
        for (i, out) in outs.into_iter().enumerate() {
            // Kernels write their first output in any case.
            let wanted = i == 0 || node.outputs.get(i).copied().flatten().is_some();
            ids.push(wanted.then(|| {
                let id = self.bound.value("");
                self.bound.values[id.index()].out = Some(out);
                id
            }));
        }
        let (op, name) = (node.op.clone(), node.name.clone());
        self.bound.nodes.push(Node { op, inputs: inputs.to_vec(), outputs: ids.clone(), name });
        Ok(ids)
    }

    fn fold(
        &mut self,
        node: &Node,
        inputs: &[Option<ValueId>],
        outs: &[Out],
    ) -> Result<Vec<Option<ValueId>>, Failure> {
        let results = if matches!(node.op, Op::Shape { .. } | Op::Size) {
            let facts: Vec<_> = inputs.iter().map(|id| id.and_then(|id| fact(&self.bound, id))).collect();
            let lowered =
                crate::ops::lower(&node.op, Facts(&facts), outs, self.target).map_err(Failure::Op)?;
            let context = interpret::Context {
                bytes_max: self.limits.folded_bytes_max,
                cancelled: &|| false,
                target: self.target,
            };
            interpret::run(&lowered, outs, &[], context).map_err(Failure::Op)?
        } else {
            let tensors: Vec<_> = inputs.iter().map(|id| id.and_then(|id| self.bound.data(id))).collect();
            let context = interpret::Context {
                bytes_max: self.limits.folded_bytes_max,
                cancelled: &|| false,
                target: self.target,
            };
            interpret::node(node, &tensors, &[], context).map_err(Failure::Op)?
        };
        Ok(results
            .into_iter()
            .map(|tensor| {
                let out = Out::new(tensor.dtype(), tensor.shape());
                let id = self.bound.constant(tensor);
                self.bound.values[id.index()].out = Some(out);
                Some(id)
            })
            .collect())
    }
}

enum Failure {
    Op(OpError),
    Run(RunError),
}

/// What is known of a value of a bound graph.
pub fn fact(graph: &Graph, id: ValueId) -> Option<Fact<'_>> {
    let value = &graph.values[id.index()];
    let out = value.out.as_ref()?;
    let constant = value.constant.as_ref();
    Some(Fact { dtype: out.dtype, shape: &out.shape, value: constant, pinned: constant.is_some() })
}
