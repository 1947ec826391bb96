//! What a program is made of, for people: operators, the kernels of a plan, why rows may depend on each
//! other, and a drawing of the compiled graph.

use std::fmt::Write as _;

use crate::error::RunError;
use crate::exec::io::Loc;
use crate::graph::ir::Dim;
use crate::plan::schedule::{OutputAt, Plan};
use crate::program::{Bucket, Program};

/// One step of a plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepInfo {
    /// The node's name in the model.
    pub node: String,
    /// The operator.
    pub op: &'static str,
    /// The kernel: its family, instruction set and tile, as far as it has them.
    pub kernel: String,
    /// Type and shape of the first output, such as `f32 [1, 10]`.
    pub output: String,
    /// Range of the arena that the first output takes.
    pub arena: std::ops::Range<usize>,
}

/// A plan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanInfo {
    /// Steps in order.
    pub steps: Vec<StepInfo>,
    /// How often the steps run, each time for a part of the rows; shapes are those of a
    /// part, the larger ones where the batch does not divide evenly.
    pub parts: usize,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Bytes of constants that steps read as they are; packed weights are not among them.
    pub const_bytes: usize,
}

/// The shapes that a program declares, with `free` for every free dimension; `None` where a rank is not
/// declared.
pub fn declared_shapes(program: &Program, free: usize) -> Option<Vec<Vec<usize>>> {
    let size = |dim: &Dim| match dim {
        Dim::Const(size) => *size,
        Dim::Sym(_) => free,
    };
    program.inputs().iter().map(|port| Some(port.dims.as_ref()?.iter().map(size).collect())).collect()
}

/// The plan for these input shapes; `None` where the interpreter runs them.
///
/// # Errors
/// As [`Program::bucket`].
pub fn plan(program: &Program, shapes: &[Vec<usize>]) -> Result<Option<PlanInfo>, RunError> {
    Ok(match &*program.bucket(shapes)? {
        Bucket::Dynamic => None,
        Bucket::Planned(plan) => Some(describe(plan)),
        Bucket::Parts(parts) => {
            Some(PlanInfo { parts: parts.count(), arena_bytes: parts.arena_bytes, ..describe(parts.plan()) })
        }
    })
}

fn describe(plan: &Plan) -> PlanInfo {
    let step = |step: &crate::plan::schedule::Step| StepInfo {
        node: step.name.clone(),
        op: step.op,
        kernel: step.kernel.clone().into_owned(),
        output: step.outs.first().map(|out| format!("{} {:?}", out.dtype, out.shape)).unwrap_or_default(),
        arena: step.writes[step.slots[0]].clone(),
    };
    PlanInfo {
        steps: plan.steps.iter().map(step).collect(),
        parts: 1,
        arena_bytes: plan.arena_bytes,
        const_bytes: plan.consts.iter().map(|tensor| tensor.bytes().len()).sum(),
    }
}

/// The plan for these input shapes as a Graphviz drawing; `None` where the interpreter runs them.
///
/// # Errors
/// As [`Program::bucket`].
pub fn dot(program: &Program, shapes: &[Vec<usize>]) -> Result<Option<String>, RunError> {
    Ok(match &*program.bucket(shapes)? {
        Bucket::Dynamic => None,
        Bucket::Planned(plan) => Some(draw(program, plan)),
        Bucket::Parts(parts) => Some(draw(program, parts.plan())),
    })
}

fn draw(program: &Program, plan: &Plan) -> String {
    let mut text = String::from("digraph plan {\n  node [shape=box, fontname=monospace];\n");
    // Writing to a string cannot fail.
    for (i, port) in program.inputs().iter().enumerate() {
        let _ = writeln!(
            text,
            "  in{i} [label=\"{}\\n{} {}\", shape=oval];",
            quoted(&port.name),
            port.dtype,
            port.shape_text()
        );
    }
    // Who wrote a byte of the arena last, by range.
    let mut writers: Vec<(std::ops::Range<usize>, usize)> = Vec::new();
    let writer = |writers: &[(std::ops::Range<usize>, usize)], at: usize| {
        writers.iter().rev().find(|(range, _)| range.contains(&at)).map(|(_, step)| *step)
    };
    for (i, step) in plan.steps.iter().enumerate() {
        let range = step.writes[step.slots[0]].clone();
        let shape = step.outs.first().map(|out| format!("{} {:?}", out.dtype, out.shape)).unwrap_or_default();
        let name = quoted(&step.name);
        let _ = writeln!(
            text,
            "  s{i} [label=\"{name}\\n{}: {}\\n{shape}\\n{}..{}\"];",
            step.op, step.kernel, range.start, range.end
        );
        for loc in &step.ins {
            match loc {
                Loc::Absent | Loc::Const(_) => {}
                Loc::Input { index, .. } => {
                    let _ = writeln!(text, "  in{index} -> s{i};");
                }
                Loc::Arena { gap, range } => {
                    let from = if *gap == 0 { 0 } else { step.writes[gap - 1].end };
                    if let Some(source) = writer(&writers, from + range.start) {
                        let _ = writeln!(text, "  s{source} -> s{i};");
                    }
                }
            }
        }
        writers.push((range, i));
    }
    for (i, ((at, out), port)) in plan.outputs.iter().zip(program.outputs()).enumerate() {
        let _ = writeln!(
            text,
            "  out{i} [label=\"{}\\n{} {:?}\", shape=oval];",
            quoted(&port.name),
            out.dtype,
            out.shape
        );
        let source = match at {
            OutputAt::Arena(range) => writer(&writers, range.start).map(|step| format!("s{step}")),
            OutputAt::Input(index, _) => Some(format!("in{index}")),
            OutputAt::Const(_) => None,
        };
        if let Some(source) = source {
            let _ = writeln!(text, "  {source} -> out{i};");
        }
    }
    text.push_str("}\n");
    text
}

fn quoted(name: &str) -> String {
    name.replace('\\', "\\\\").replace('"', "\\\"")
}
