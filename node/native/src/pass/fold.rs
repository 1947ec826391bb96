//! Computes nodes whose inputs are all constant. A node that fails here stays, and fails when it runs.

use crate::exec::interpret;
use crate::graph::ir::Graph;
use crate::onnx::import::Limits;
use crate::ops::{Op, Target};

/// Folds constants, up to [`Limits::folded_bytes_max`] in all.
pub fn constants(graph: &mut Graph, limits: Limits, target: Target<'_>) {
    let mut made: u64 = 0;
    for at in 0..graph.nodes.len() {
        let node = &graph.nodes[at];
        let known = !node.inputs.is_empty()
            && !matches!(node.op, Op::If { .. })
            && node.inputs.iter().flatten().all(|id| graph.data(*id).is_some());
        if !known {
            continue;
        }
        let bytes_max = limits.folded_bytes_max.saturating_sub(made);
        let context = interpret::Context { bytes_max, cancelled: &|| false, target };
        let inputs: Vec<_> = node.inputs.iter().map(|id| id.and_then(|id| graph.data(id))).collect();
        let Ok(results) = interpret::node(node, &inputs, &[], context) else { continue };
        let outputs = node.outputs.clone();
        for (id, tensor) in outputs.iter().zip(results) {
            made += tensor.bytes().len() as u64;
            if let Some(id) = id {
                graph.values[id.index()].constant = Some(tensor);
            }
        }
        // The node now makes nothing, and is dropped as unused.
        graph.nodes[at].outputs.iter_mut().for_each(|output| *output = None);
    }
    graph.nodes.retain(|node| node.outputs.iter().any(Option::is_some));
}
