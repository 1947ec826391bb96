//! `roost-node run`: runs a model, compares with test data, measures.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use roost_kernels::Isa;
use roost_native::compare::{Match, Tolerance, compare, digest, read_tensors};
use roost_native::graph::ir::Port;
use roost_native::plan::pack;
use roost_native::{Input, Tensor, inspect};
use serde::Serialize;

use super::split::Split;
use super::subject::{self, Engine, Subject};
use super::{EngineName, Output, Verdict, engine_name, inputs};
use crate::allocations;

/// Runs a model without a cluster.
#[derive(Debug, Args)]
pub struct RunOptions {
    /// A folder with model.onnx, or an ONNX file.
    model: PathBuf,
    /// The engine.
    #[arg(long, value_enum, default_value = "auto")]
    engine: EngineName,
    /// Feeds input_<j>.pb of this folder, and compares with its output_<j>.pb; without it, inputs are made
    /// up.
    #[arg(long, value_name = "TEST_DATA_SET_DIR")]
    data: Option<PathBuf>,
    /// How far a value may be off, relative to the expected one.
    #[arg(long, default_value_t = 1e-3)]
    rtol: f64,
    /// How far a value may be off beside that.
    #[arg(long, default_value_t = 1e-4)]
    atol: f64,
    /// Rows of the inputs: the size of a first dimension that is free. Test data is repeated or cut. Default:
    /// as many as the data has; 1 for inputs that are made up.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    batch: Option<u32>,
    /// Threads that the rows of a batch are split over, where that changes no bit.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1024))]
    threads: u32,
    /// Runs so often again, and prints latency, allocations and memory.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    repeat: u32,
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
    #[serde(skip_serializing_if = "Option::is_none")]
    not_native: Option<String>,
    isa: Option<&'static str>,
    batch_variant: Option<String>,
    threads: usize,
    /// Why one thread runs though more were asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    not_split: Option<String>,
    inputs: Vec<Value>,
    outputs: Vec<Value>,
    /// The SHA-256 of all output bytes, in order.
    sha256: String,
    /// From the files' names to the end of the first run.
    first_answer_us: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    data: Option<Comparison>,
    #[serde(skip_serializing_if = "Option::is_none")]
    repeat: Option<Measured>,
}

/// An input or output.
#[derive(Serialize)]
struct Value {
    name: String,
    dtype: String,
    shape: Vec<usize>,
}

#[derive(Serialize)]
struct Comparison {
    matches: bool,
    largest_difference: f64,
    rtol: f64,
    atol: f64,
    mismatches: Vec<String>,
}

#[derive(Serialize)]
struct Measured {
    runs: u32,
    latency_us: Latency,
    /// Not counted on several threads, nor inside ONNX Runtime.
    allocations_per_run: Option<f64>,
    arena_bytes: Option<usize>,
    weight_bytes: Option<usize>,
}

#[derive(Serialize)]
struct Latency {
    min: f64,
    p50: f64,
    p99: f64,
}

/// Runs the command.
///
/// # Errors
/// When the model cannot be loaded or run, or the data not be read.
pub fn main(options: &RunOptions) -> anyhow::Result<Verdict> {
    let started = now();
    let files = subject::files(&options.model)?;
    let mut subject = subject::load(&files, options.engine.choice(), options.isa)?;
    let loaded = started.elapsed();
    let (inputs, expected) = fed(options, &subject)?;
    let began = now();
    let found = subject.run(&inputs)?;
    let first_answer_us = micros(loaded + began.elapsed());
    let split = match options.threads {
        1 => None,
        _ if subject.program().is_none() => {
            anyhow::bail!(
                "--threads splits rows over sessions of the native engine; this model runs on ONNX Runtime"
            )
        }
        threads => Some(Split::over(&subject, &inputs, threads as usize, &found)),
    };
    let not_split = split.as_ref().and_then(|split| split.as_ref().err().cloned());
    let mut split = split.and_then(Result::ok);
    let repeat = match options.repeat {
        0 => None,
        runs => Some(measure(&mut subject, split.as_mut(), &inputs, runs)?),
    };
    let report = Report {
        model: options.model.display().to_string(),
        engine: engine_name(subject.choice()),
        not_native: subject.not_native.clone(),
        isa: subject.program().map(|program| program.target().kernels.isa().name()),
        batch_variant: subject.program().and_then(|program| program.batch_variant().map(str::to_owned)),
        not_split,
        threads: split.as_ref().map_or(1, Split::threads),
        inputs: values(&subject.inputs, &inputs),
        outputs: values(&subject.outputs, &found),
        sha256: digest(found.iter().map(Tensor::bytes)),
        first_answer_us,
        data: expected.map(|expected| compared(options, &subject.outputs, &found, &expected)),
        repeat,
    };
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => print(&report),
    }
    let matches = report.data.as_ref().is_none_or(|data| data.matches);
    Ok(if matches { Verdict::Good } else { Verdict::Mismatch })
}

/// The inputs, and what they should give.
fn fed(options: &RunOptions, subject: &Subject) -> anyhow::Result<(Vec<Tensor>, Option<Vec<Tensor>>)> {
    let Some(folder) = &options.data else {
        let has_rows = subject.inputs.iter().any(inputs::has_rows);
        anyhow::ensure!(
            options.batch.is_none_or(|rows| rows == 1) || has_rows,
            "--batch: no input of this model has a free first dimension"
        );
        let rows = options.batch.unwrap_or(1) as usize;
        let made = inputs::made_up(&subject.inputs, rows).context("inputs cannot be made up; give --data")?;
        return Ok((made, None));
    };
    let mut fed = read_tensors(folder, "input")?;
    let mut expected = read_tensors(folder, "output")?;
    anyhow::ensure!(!expected.is_empty(), "{} has no output_0.pb", folder.display());
    if let Some(rows) = options.batch {
        inputs::with_rows((&subject.inputs, &mut fed), (&subject.outputs, &mut expected), rows as usize)?;
    }
    // Aligned now, once: a run reads aligned inputs in place.
    Ok((fed.iter().map(Tensor::aligned).collect(), Some(expected)))
}

fn compared(options: &RunOptions, ports: &[Port], found: &[Tensor], expected: &[Tensor]) -> Comparison {
    let tolerance = Tolerance { absolute: options.atol, relative: options.rtol, steps: 0 };
    let (mut largest_difference, mut mismatches) = (0.0_f64, Vec::new());
    let name = |at: usize| ports.get(at).map_or_else(|| format!("output {at}"), |port| port.name.clone());
    for (at, expected) in expected.iter().enumerate() {
        let name = name(at);
        let Some(found) = found.get(at) else {
            mismatches.push(format!("{name}: the model has no such output"));
            continue;
        };
        match compare(found, expected, tolerance) {
            Match::Within { largest } => largest_difference = largest_difference.max(largest),
            Match::Form { found, expected } => {
                mismatches.push(format!("{name}: {found}, expected {expected}"))
            }
            Match::Off { at, found, expected, count } => {
                largest_difference = largest_difference.max((found - expected).abs());
                let text = format!(
                    "{name}: {count} values are off, the worst is {found} at {at}, expected {expected}"
                );
                mismatches.push(text);
            }
        }
    }
    // Nothing says that these are right.
    let surplus = expected.len()..found.len();
    mismatches.extend(surplus.map(|at| format!("{}: the data has no such output", name(at))));
    let (rtol, atol) = (options.rtol, options.atol);
    Comparison { matches: mismatches.is_empty(), largest_difference, rtol, atol, mismatches }
}

/// Looks at outputs and keeps nothing.
struct Ignored;

impl roost_native::Sink for Ignored {
    fn output(&mut self, _name: &str, _dtype: roost_native::DType, _shape: &[usize], bytes: &[u8]) {
        std::hint::black_box(bytes);
    }
}

fn measure(
    subject: &mut Subject,
    mut split: Option<&mut Split>,
    inputs: &[Tensor],
    runs: u32,
) -> anyhow::Result<Measured> {
    let borrowed: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
    let mut times = Vec::with_capacity(runs as usize);
    let mut allocated = 0;
    for _ in 0..runs {
        let (began, before) = (now(), allocations::count());
        match (split.as_deref_mut(), &mut subject.engine) {
            (Some(split), _) => drop(split.run()?),
            (None, Engine::Native(session)) => session.run(&borrowed, &mut Ignored, &|| false)?,
            (None, Engine::OnnxRuntime(_)) => drop(subject.run(inputs)?),
        }
        let time = began.elapsed();
        allocated += allocations::count() - before;
        times.push(time);
    }
    times.sort_unstable();
    // The smallest time that so many hundredths of all do not exceed.
    let percentile = |hundredths: usize| micros(times[(times.len() * hundredths).div_ceil(100).max(1) - 1]);
    let latency_us = Latency { min: micros(times[0]), p50: percentile(50), p99: percentile(99) };
    let counted = matches!((&split, &subject.engine), (None, Engine::Native(_)));
    let (arena_bytes, weight_bytes) = memory(subject, inputs)?;
    let allocations_per_run = counted.then(|| allocated as f64 / f64::from(runs));
    Ok(Measured { runs, latency_us, allocations_per_run, arena_bytes, weight_bytes })
}

/// Bytes of the arena, and of the weights: those that were packed, and those that are read as they are.
fn memory(subject: &Subject, inputs: &[Tensor]) -> anyhow::Result<(Option<usize>, Option<usize>)> {
    let Engine::Native(session) = &subject.engine else { return Ok((None, None)) };
    let shapes: Vec<Vec<usize>> = inputs.iter().map(|tensor| tensor.shape().to_vec()).collect();
    let plan = inspect::plan(session.program(), &shapes)?;
    let weights = plan.map(|plan| plan.const_bytes + pack::bytes());
    Ok((Some(session.arena_bytes()), weights))
}

fn values(ports: &[Port], tensors: &[Tensor]) -> Vec<Value> {
    let value = |(port, tensor): (&Port, &Tensor)| Value {
        name: port.name.clone(),
        dtype: tensor.dtype().to_string(),
        shape: tensor.shape().to_vec(),
    };
    ports.iter().zip(tensors).map(value).collect()
}

fn print(report: &Report) {
    let isa = report.isa.map(|isa| format!(" ({isa})")).unwrap_or_default();
    println!("{} on {}{isa}", report.model, report.engine);
    if let Some(why) = &report.not_native {
        println!("  not on the native engine: {why}");
    }
    if let Some(why) = &report.batch_variant {
        println!("  rows of a batch depend on each other: {why}");
    }
    if let Some(why) = &report.not_split {
        println!("  one thread runs, not several: {why}");
    }
    for (kind, values) in [("input", &report.inputs), ("output", &report.outputs)] {
        for value in values {
            println!("  {kind:6} {} {} {:?}", value.name, value.dtype, value.shape);
        }
    }
    println!("  first answer after {:.1} ms", report.first_answer_us / 1000.0);
    println!("  sha256 of the outputs {}", report.sha256);
    if let Some(data) = &report.data {
        let verdict = if data.matches { "match" } else { "DO NOT MATCH" };
        println!("  outputs {verdict}; the largest difference is {:e}", data.largest_difference);
        data.mismatches.iter().for_each(|mismatch| println!("    {mismatch}"));
    }
    if let Some(measured) = &report.repeat {
        let Latency { min, p50, p99 } = measured.latency_us;
        let threads = report.threads;
        println!(
            "  {} runs on {threads} threads: min {min:.1} µs, p50 {p50:.1} µs, p99 {p99:.1} µs",
            measured.runs
        );
        let counted =
            measured.allocations_per_run.map_or("not counted".to_owned(), |count| count.to_string());
        println!("  allocations per run: {counted}");
        let bytes = |bytes: Option<usize>| bytes.map_or("unknown".to_owned(), |bytes| bytes.to_string());
        println!(
            "  arena bytes: {}; weight bytes: {}",
            bytes(measured.arena_bytes),
            bytes(measured.weight_bytes)
        );
    }
}

fn micros(time: Duration) -> f64 {
    time.as_nanos() as f64 / 1000.0
}

#[expect(clippy::disallowed_methods, reason = "the command measures real time")]
fn now() -> Instant {
    Instant::now()
}
