//! Frees what a program no longer reads once it has a plan: the model's file, and weights that kernels have
//! in a form of their own.

use std::sync::Arc;

use crate::graph::ir::Graph;
use crate::ops::Op;
use crate::plan::schedule::Plan;
use crate::tensor::Tensor;

/// The graph with each constant in one place of memory, and none in the model's file: weights that the plan
/// packed are kept packed alone, and what it reads as it is, is shared with it. `None` where there is nothing
/// to free.
pub fn condense(graph: &Graph, plan: Option<&Plan>) -> Option<Graph> {
    let consts = plan.map_or(&[][..], |plan| &plan.consts);
    let mut freed = None;
    for (i, value) in graph.values.iter().enumerate() {
        let Some(tensor) = &value.constant else { continue };
        if let Some(smaller) = smaller(tensor, consts) {
            freed.get_or_insert_with(|| graph.clone()).values[i].constant = Some(smaller);
        }
    }
    // Branches are run by the interpreter, or bound into the plan of their condition.
    for (i, node) in graph.nodes.iter().enumerate() {
        let Op::If { then, otherwise } = &node.op else { continue };
        let [inner, outer] = [then, otherwise].map(|branch| condense(branch, plan));
        if inner.is_some() || outer.is_some() {
            let then = inner.map_or_else(|| Arc::clone(then), Arc::new);
            let otherwise = outer.map_or_else(|| Arc::clone(otherwise), Arc::new);
            freed.get_or_insert_with(|| graph.clone()).nodes[i].op = Op::If { then, otherwise };
        }
    }
    freed
}

/// Lets all constants, those of branches too, keep the forms that kernels make of them.
pub fn hold_forms(graph: &Graph) {
    graph.values.iter().filter_map(|value| value.constant.as_ref()).for_each(|tensor| tensor.forms().hold());
    for node in &graph.nodes {
        if let Op::If { then, otherwise } = &node.op {
            hold_forms(then);
            hold_forms(otherwise);
        }
    }
}

fn smaller(tensor: &Tensor, consts: &[Tensor]) -> Option<Tensor> {
    match consts.iter().find(|known| known.is_clone_of(tensor)) {
        Some(known) => tensor.is_borrowed().then(|| known.reshaped(tensor.shape())),
        None => tensor.condensed().or_else(|| tensor.is_borrowed().then(|| tensor.aligned())),
    }
}
