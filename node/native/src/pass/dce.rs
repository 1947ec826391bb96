//! Drops nodes whose results nobody reads, and the constants that only they read.

use crate::graph::ir::Graph;

/// Drops what is not used.
pub fn unused(graph: &mut Graph) {
    let mut used = vec![false; graph.values.len()];
    graph.outputs.iter().for_each(|id| used[id.index()] = true);
    let mut kept = vec![false; graph.nodes.len()];
    for (i, node) in graph.nodes.iter().enumerate().rev() {
        kept[i] = node.outputs.iter().flatten().any(|id| used[id.index()]);
        if kept[i] {
            node.inputs.iter().flatten().for_each(|id| used[id.index()] = true);
        }
    }
    let mut kept = kept.into_iter();
    graph.nodes.retain(|_| kept.next().unwrap_or(true));
    for node in &mut graph.nodes {
        // Kernels write their first output in any case.
        for output in node.outputs.iter_mut().skip(1) {
            if output.is_some_and(|id| !used[id.index()]) {
                *output = None;
            }
        }
    }
    for (value, used) in graph.values.iter_mut().zip(used) {
        if !used {
            value.constant = None;
        }
    }
}
