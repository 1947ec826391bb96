//! `roost-node inspect`: what a model is made of, and how it would run.

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;
use roost_kernels::Isa;
use roost_native::graph::ir::Port;
use roost_native::inspect::{self, PlanInfo};
use serde::Serialize;

use super::subject::{self, Subject};
use super::{EngineName, Output, Verdict, engine_name, inputs};

/// Shows a model: inputs, outputs, operators, engine, kernels, memory.
#[derive(Debug, Args)]
pub struct InspectOptions {
    /// A folder with model.onnx, or an ONNX file.
    model: PathBuf,
    /// Writes the compiled graph as a Graphviz drawing.
    #[arg(long, value_name = "OUT.DOT")]
    plan: Option<PathBuf>,
    /// The engine.
    #[arg(long, value_enum, default_value = "auto")]
    engine: EngineName,
    /// Rows that the plan is made for: the size of a first dimension that is free.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: u32,
    /// The native engine's kernels: scalar, avx2, avx512 or neon. Default: the fastest of this machine.
    #[arg(long)]
    isa: Option<Isa>,
    /// How to print.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Serialize)]
struct Report {
    model: String,
    engine: &'static str,
    /// Why the native engine does not run it.
    not_native: Option<String>,
    isa: Option<&'static str>,
    batch_variant: Option<String>,
    inputs: Vec<PortReport>,
    outputs: Vec<PortReport>,
    /// How often each operator occurs, by its ONNX name.
    operators: BTreeMap<String, usize>,
    plan: Option<PlanReport>,
    /// Why there is no plan.
    not_planned: Option<String>,
}

#[derive(Serialize)]
struct PortReport {
    name: String,
    dtype: String,
    shape: String,
}

#[derive(Serialize)]
struct PlanReport {
    input_shapes: Vec<Vec<usize>>,
    /// How often the steps run, each time for a part of the rows.
    parts: usize,
    arena_bytes: usize,
    const_bytes: usize,
    /// How often each kernel is called.
    kernels: BTreeMap<String, usize>,
    steps: Vec<StepReport>,
}

#[derive(Serialize)]
struct StepReport {
    node: String,
    op: &'static str,
    kernel: String,
    output: String,
    arena: [usize; 2],
}

/// Runs the command.
///
/// # Errors
/// When no engine can run the model, or the drawing cannot be written.
pub fn main(options: &InspectOptions) -> anyhow::Result<Verdict> {
    let files = subject::files(&options.model)?;
    let subject = subject::load(&files, options.engine.choice(), options.isa)?;
    let shapes = inputs::shapes(&subject.inputs, options.batch as usize);
    let (plan, not_planned) = match &shapes {
        Ok(shapes) => planned(&subject, shapes),
        Err(error) => (None, Some(format!("{error:#}"))),
    };
    if let Some(path) = &options.plan {
        let why = || format!("there is no plan to draw: {}", not_planned.as_deref().unwrap_or("unknown"));
        let program = subject.program().with_context(why)?;
        let text = inspect::dot(program, &shapes?)?.with_context(why)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    let port = |port: &Port| PortReport {
        name: port.name.clone(),
        dtype: port.dtype.to_string(),
        shape: port.shape_text(),
    };
    let report = Report {
        model: options.model.display().to_string(),
        engine: engine_name(subject.choice()),
        not_native: subject.not_native.clone(),
        isa: subject.program().map(|program| program.target().kernels.isa().name()),
        batch_variant: subject.program().and_then(|program| program.batch_variant().map(str::to_owned)),
        inputs: subject.inputs.iter().map(port).collect(),
        outputs: subject.outputs.iter().map(port).collect(),
        operators: subject.operators.clone(),
        plan,
        not_planned,
    };
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print(&report),
    }
    Ok(Verdict::Good)
}

/// The plan for these input shapes, or why there is none.
fn planned(subject: &Subject, shapes: &[Vec<usize>]) -> (Option<PlanReport>, Option<String>) {
    let Some(program) = subject.program() else {
        return (None, Some("ONNX Runtime keeps its plan to itself".to_owned()));
    };
    match inspect::plan(program, shapes) {
        Ok(Some(plan)) => (Some(described(plan, shapes)), None),
        Ok(None) => {
            (None, Some("shapes inside depend on data: the interpreter runs it node by node".to_owned()))
        }
        Err(error) => (None, Some(error.to_string())),
    }
}

fn described(plan: PlanInfo, shapes: &[Vec<usize>]) -> PlanReport {
    let mut kernels = BTreeMap::new();
    plan.steps.iter().for_each(|step| *kernels.entry(step.kernel.clone()).or_default() += 1);
    let step = |step: inspect::StepInfo| StepReport {
        node: step.node,
        op: step.op,
        kernel: step.kernel,
        output: step.output,
        arena: [step.arena.start, step.arena.end],
    };
    PlanReport {
        input_shapes: shapes.to_vec(),
        parts: plan.parts,
        arena_bytes: plan.arena_bytes,
        const_bytes: plan.const_bytes,
        kernels,
        steps: plan.steps.into_iter().map(step).collect(),
    }
}

fn print(report: &Report) {
    println!("{}", report.model);
    for (kind, ports) in [("input", &report.inputs), ("output", &report.outputs)] {
        for port in ports {
            println!("  {kind:6} {} {} {}", port.name, port.dtype, port.shape);
        }
    }
    let isa = report.isa.map(|isa| format!(", {isa} kernels")).unwrap_or_default();
    println!("  engine {}{isa}", report.engine);
    if let Some(why) = &report.not_native {
        println!("    not native: {why}");
    }
    match &report.batch_variant {
        Some(why) => println!("  rows of a batch depend on each other: {why}"),
        None if report.isa.is_some() => println!("  a row's bits do not depend on its batch"),
        None => {}
    }
    if !report.operators.is_empty() {
        let operators: Vec<_> = report.operators.iter().map(|(op, count)| format!("{op} {count}")).collect();
        println!("  operators: {}", operators.join(", "));
    }
    if let Some(why) = &report.not_planned {
        println!("  no plan: {why}");
    }
    let Some(plan) = &report.plan else { return };
    println!(
        "  plan for {:?}: arena {} bytes, constants beside packed weights {} bytes",
        plan.input_shapes, plan.arena_bytes, plan.const_bytes
    );
    if plan.parts > 1 {
        println!("  in {} parts, one after the other: the steps are those of a part", plan.parts);
    }
    let kernels: Vec<_> = plan.kernels.iter().map(|(kernel, count)| format!("{kernel} {count}")).collect();
    println!("  kernels: {}", kernels.join(", "));
    println!("  {:>4}  {:20}  {:29}  {:28}  {:>21}  NODE", "STEP", "OP", "KERNEL", "OUTPUT", "ARENA");
    for (at, step) in plan.steps.iter().enumerate() {
        let arena = format!("{}..{}", step.arena[0], step.arena[1]);
        println!(
            "  {at:4}  {:20}  {:29}  {:28}  {arena:>21}  {}",
            step.op, step.kernel, step.output, step.node
        );
    }
}
