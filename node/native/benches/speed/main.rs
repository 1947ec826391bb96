//! Speed against ONNX Runtime: one thread each, in turns, five rounds, median of the rounds' ratios. Time is
//! the process's processor time: on a machine that does other things too, the clock on the wall counts those
//! in long runs.
//!
//! `ROOST_BENCH_ORT` names the libraries to compare with, separated by colons; each runs in a process of its
//! own, since a process can load one. The faster one counts. Writes `RESULTS.md` beside this file;
//! `limits.md`, which says what limits the rows that fall short, goes below the table.
//!
//! `cargo bench -p roost-native --bench speed -- steps` prints where the time of each row goes instead, and
//! `-- start` how long a model takes from its file to the first answer, `-- halves` what weights of half precision
//! cost. `ROOST_BENCH_ROWS` keeps the rows
//! whose name contains it.

mod clock;
mod halves;
mod models;
mod networks;
mod start;
mod steps;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::process::Command;

use ort::session::Session as OrtSession;
use ort::value::{DynValue, Tensor as OrtTensor};
use roost_native::onnx::external::Files;
use roost_native::program::Options;
use roost_native::{DType, Input, Limits, Model, Program, Session, Sink, Tensor};

type Failure = Box<dyn Error>;

const ROUNDS: usize = 5;
/// A round's time per engine: long enough for thousands of small runs and some of the largest.
const ROUND_SECONDS: f64 = 0.12;

fn main() -> Result<(), Failure> {
    if let Some(library) = std::env::var_os("ROOST_BENCH_CHILD") {
        return compare_with(library.as_ref());
    }
    match std::env::args().skip(1).find(|argument| !argument.starts_with('-')).as_deref() {
        Some("steps") => return models::rows()?.iter().try_for_each(steps::print),
        Some("start") => return said(&start::lines()?),
        Some("halves") => return said(&halves::lines()?),
        _ => {}
    }
    let libraries = std::env::var("ROOST_BENCH_ORT").map_err(
        |_| "set ROOST_BENCH_ORT to the ONNX Runtime libraries to compare with, separated by colons",
    )?;
    // Row → per library: native µs, ONNX Runtime µs, ratio.
    let mut rows: BTreeMap<usize, (String, Vec<[f64; 3]>)> = BTreeMap::new();
    for library in libraries.split(':') {
        let child = Command::new(std::env::current_exe()?).env("ROOST_BENCH_CHILD", library).output()?;
        if !child.status.success() {
            return Err(format!("{library}: {}", String::from_utf8_lossy(&child.stderr)).into());
        }
        for (i, line) in String::from_utf8(child.stdout)?.lines().enumerate() {
            let mut parts = line.split('\t');
            let name = parts.next().unwrap_or_default().to_owned();
            let numbers: Vec<f64> = parts.map(str::parse).collect::<Result<_, _>>()?;
            let row = rows.entry(i).or_insert_with(|| (name, Vec::new()));
            row.1.push([numbers[0], numbers[1], numbers[2]]);
        }
    }
    write(&rows, &libraries)
}

/// Prints lines.
fn said(lines: &[String]) -> Result<(), Failure> {
    lines.iter().for_each(|line| println!("{line}"));
    Ok(())
}

/// Writes the table.
fn write(rows: &BTreeMap<usize, (String, Vec<[f64; 3]>)>, libraries: &str) -> Result<(), Failure> {
    let output = |program: &str, arguments: &[&str]| -> Result<String, Failure> {
        Ok(String::from_utf8(Command::new(program).args(arguments).output()?.stdout)?.trim().to_owned())
    };
    let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
    let names: Vec<&str> = libraries.split(':').map(|path| path.rsplit('/').next().unwrap_or(path)).collect();
    let mut text = String::from("# Speed against ONNX Runtime, one thread\n\n");
    writeln!(text, "- Machine: {}, {}", cpu.trim_start_matches([' ', '\t', ':']), std::env::consts::ARCH)?;
    writeln!(
        text,
        "- Commit: {}, {}",
        output("git", &["rev-parse", "--short", "HEAD"])?,
        output("date", &["-u", "+%F"])?
    )?;
    writeln!(text, "- Kernels: {}; compared with {}", roost_kernels::Isa::best(), names.join(", "))?;
    text.push_str("- Command: `ROOST_BENCH_ORT=LIBRARIES cargo bench -p roost-native --bench speed`\n");
    text.push_str(
        "- In turns, five rounds; µs are medians of processor time; the ratio is ONNX Runtime ÷ native, median of rounds, ",
    );
    text.push_str(
        "against the faster library.\n\n| row | native µs | ONNX Runtime µs | ratio |\n|---|---|---|---|\n",
    );
    for (name, results) in rows.values() {
        let worst = results.iter().min_by(|a, b| a[2].total_cmp(&b[2])).ok_or("a row without results")?;
        writeln!(text, "| {name} | {:.1} | {:.1} | {:.2} |", worst[0], worst[1], worst[2])?;
    }
    text.push_str("\n## Start and memory\n\n");
    for line in start::lines()? {
        writeln!(text, "- {line}")?;
    }
    text.push_str("\n## Weights in half precision\n\n| row | µs, weights in f32 | µs, in f16 | ratio |\n|---|---|---|---|\n");
    for line in halves::lines()? {
        writeln!(text, "{line}")?;
    }
    text.push('\n');
    text.push_str(include_str!("../limits.md"));
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/RESULTS.md");
    std::fs::write(path, &text)?;
    print!("{text}");
    Ok(())
}

/// Measures all rows against one library; a line of text per row.
fn compare_with(library: &std::path::Path) -> Result<(), Failure> {
    let environment = ort::init_from(library)?.with_telemetry(false).build()?;
    for row in models::rows()? {
        let mut native = native(&row)?;
        let mut other = OrtSession::builder(&environment)?
            .with_intra_threads(1)?
            .with_intra_op_spinning(false)?
            .commit_from_memory(&row.model)?;
        let names: Vec<String> = other.inputs().iter().map(|input| input.name().to_owned()).collect();
        let values: Vec<DynValue> = row.inputs.iter().map(foreign).collect::<Result<_, _>>()?;
        let inputs: Vec<Input<'_>> = row.inputs.iter().map(Input::from).collect();
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let ours = median(|| {
                native.run(&inputs, &mut Count(0), &|| false)?;
                Ok(())
            })?;
            let theirs = median(|| {
                let fed: Vec<(&str, _)> =
                    names.iter().map(String::as_str).zip(values.iter().map(|v| v.view())).collect();
                other.run(fed)?;
                Ok(())
            })?;
            rounds.push([ours, theirs, theirs / ours]);
        }
        let [ours, theirs, ratio] = middle(&rounds);
        println!("{}\t{ours}\t{theirs}\t{ratio}", row.name);
    }
    Ok(())
}

/// The medians of rounds, each by itself.
fn middle(rounds: &[[f64; 3]]) -> [f64; 3] {
    std::array::from_fn(|i| {
        let mut list: Vec<f64> = rounds.iter().map(|round| round[i]).collect();
        list.sort_by(f64::total_cmp);
        list[list.len() / 2]
    })
}

fn native(row: &models::Row) -> Result<Session, Failure> {
    let model = Model::import_bytes(row.model.clone(), &Files::new(), Limits::default())?;
    Ok(Session::new(Program::compile(model, Options::default())?))
}

fn foreign(tensor: &Tensor) -> Result<DynValue, Failure> {
    let shape: Vec<i64> = tensor.shape().iter().map(|dim| *dim as i64).collect();
    Ok(match tensor.dtype() {
        DType::I64 => OrtTensor::from_array((shape, tensor.values::<i64>().into_owned()))?.into_dyn(),
        DType::U8 => OrtTensor::from_array((shape, tensor.values::<u8>().into_owned()))?.into_dyn(),
        _ => OrtTensor::from_array((shape, tensor.values::<f32>().into_owned()))?.into_dyn(),
    })
}

struct Count(usize);

impl Sink for Count {
    fn output(&mut self, _name: &str, _dtype: DType, _shape: &[usize], bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

/// The median time of a run, in µs. Short runs are timed many at once.
fn median(mut run: impl FnMut() -> Result<(), Failure>) -> Result<f64, Failure> {
    run()?;
    let once = clock::seconds();
    run()?;
    let count = (20e-6 / (clock::seconds() - once).max(1e-9)).clamp(1.0, 1000.0) as u32;
    let start = clock::seconds();
    let mut samples = Vec::new();
    while clock::seconds() - start < ROUND_SECONDS || samples.len() < 3 {
        let begin = clock::seconds();
        for _ in 0..count {
            run()?;
        }
        samples.push((clock::seconds() - begin) * 1e6 / f64::from(count));
    }
    samples.sort_by(f64::total_cmp);
    Ok(samples[samples.len() / 2])
}
