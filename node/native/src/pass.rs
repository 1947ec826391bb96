//! Passes over the graph. Those of [`compile`] need no shapes and run once; those of [`bound`] run for each
//! tuple of input shapes. None may decide, from a dimension that batches change, anything that changes a
//! result's bits.

pub mod batch;
pub mod dce;
pub mod fold;
pub mod fuse;
pub mod layout;
pub mod quant;
pub mod rows;
pub mod simplify;

use crate::graph::ir::Graph;
use crate::graph::verify::check_pass;
use crate::onnx::import::Limits;
use crate::ops::Target;

/// The passes that need no shapes.
pub fn compile(graph: &mut Graph, limits: Limits, target: Target<'_>) {
    simplify::identities(graph);
    check_pass(graph, "identities");
    dce::unused(graph);
    quant::integers(graph);
    fuse::sort(graph);
    simplify::identities(graph);
    dce::unused(graph);
    check_pass(graph, "integers");
    fold::constants(graph, limits, target);
    check_pass(graph, "fold");
    simplify::batch_norms(graph);
    simplify::gelus(graph);
    simplify::layer_norms(graph);
    dce::unused(graph);
    check_pass(graph, "dce");
}

/// The passes over a graph with shapes.
pub fn bound(graph: &mut Graph) {
    layout::images(graph);
    check_pass(graph, "layout");
    fuse::epilogues(graph);
    check_pass(graph, "fuse");
    dce::unused(graph);
    check_pass(graph, "dce");
}
