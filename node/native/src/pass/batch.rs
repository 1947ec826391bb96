//! Whether a row's result may depend on the rows beside it.

use crate::graph::ir::Graph;
use crate::ops::Op;

/// The first node that mixes what are rows in most models, and why; `None` where there is none.
pub fn variant(graph: &Graph) -> Option<String> {
    graph.nodes.iter().find_map(|node| {
        let why = match &node.op {
            Op::DynamicQuantize => "its scale is that of the whole batch",
            Op::BatchNorm { training: true, .. } => "its statistics are those of the whole batch",
            Op::NonZero | Op::Compress { .. } => "its output's length is that of the whole batch's data",
            Op::If { .. } => "its condition holds for the whole batch",
            _ => return None,
        };
        Some(format!("{} ({}): {why}", node.name, node.op.name()))
    })
}
