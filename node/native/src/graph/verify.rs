//! Checks the graph's invariant after import and, in debug builds, after every pass.

use super::ir::Graph;

/// What is wrong with the graph, if anything.
///
/// # Errors
/// A sentence that names the node and the value.
pub fn verify(graph: &Graph) -> Result<(), String> {
    let mut made = vec![false; graph.values.len()];
    for (made, value) in made.iter_mut().zip(&graph.values) {
        *made = value.constant.is_some();
    }
    let known = |id: &super::ir::ValueId| id.index() < graph.values.len();
    if !graph.inputs.iter().chain(&graph.outputs).all(known) {
        return Err("an input or output is no value".into());
    }
    for input in &graph.inputs {
        if std::mem::replace(&mut made[input.index()], true) {
            return Err(format!("input {} is constant or twice there", graph.values[input.index()].name));
        }
    }
    for node in &graph.nodes {
        if !node.inputs.iter().chain(&node.outputs).flatten().all(known) {
            return Err(format!("node {} has an input or output that is no value", node.name));
        }
        if let Some(id) = node.inputs.iter().flatten().find(|id| !made[id.index()]) {
            return Err(format!(
                "node {} reads {:?} before it is made",
                node.name,
                graph.values[id.index()].name
            ));
        }
        for id in node.outputs.iter().flatten() {
            if std::mem::replace(&mut made[id.index()], true) {
                return Err(format!("{:?} is made twice", graph.values[id.index()].name));
            }
        }
    }
    match graph.outputs.iter().find(|id| !made[id.index()]) {
        Some(id) => Err(format!("output {:?} is never made", graph.values[id.index()].name)),
        None => Ok(()),
    }
}

/// Panics in debug builds where a pass broke the graph.
///
/// # Panics
/// In debug builds, when [`verify`] finds something.
pub fn check_pass(graph: &Graph, pass: &str) {
    if cfg!(debug_assertions)
        && let Err(wrong) = verify(graph)
    {
        panic!("after {pass}: {wrong}");
    }
}
