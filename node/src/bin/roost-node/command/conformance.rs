//! `roost-node conformance`: a folder of ONNX backend tests, on an engine.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::Args;
use roost_native::conformance::{self, Outcome, names};
use roost_protocol::manifest::EngineChoice;
use serde::Serialize;

use super::{EngineName, Output, Verdict, subject};

/// Runs a folder of ONNX backend tests: <kind>/<test>/{model.onnx, test_data_set_<k>/}.
#[derive(Debug, Args)]
pub struct ConformanceOptions {
    /// The folder.
    folder: PathBuf,
    /// The engine.
    #[arg(long, value_enum, default_value = "auto")]
    engine: EngineName,
    /// The tests to run, <kind>/<test>: a JSON list, or one a line. Default: all.
    #[arg(long, value_name = "FILE")]
    list: Option<PathBuf>,
    /// How to print.
    #[arg(long, value_enum, default_value = "text")]
    output: Output,
}

#[derive(Serialize)]
struct Report {
    passed: usize,
    failed: usize,
    unsupported: usize,
    tests: BTreeMap<String, Test>,
}

#[derive(Serialize)]
struct Test {
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

/// Runs the command. What is not supported is no mismatch; a wrong result or an error is.
///
/// # Errors
/// When there is no test to run.
pub fn main(options: &ConformanceOptions) -> anyhow::Result<Verdict> {
    let folder = &options.folder;
    let mut names = match &options.list {
        Some(list) => listed(list)?,
        None => names(folder)?,
    };
    // A test that is listed twice counts once, as in the list by name.
    names.sort_unstable();
    names.dedup();
    if names.is_empty() {
        bail!("there is no test to run: {} names none", options.list.as_deref().unwrap_or(folder).display());
    }
    let mut report = Report { passed: 0, failed: 0, unsupported: 0, tests: BTreeMap::new() };
    for name in names {
        let (outcome, reason) = match tested(&folder.join(&name), options.engine) {
            Outcome::Passed => ("passed", None),
            Outcome::Failed(reason) => ("failed", Some(reason)),
            Outcome::Unsupported(reason) => ("unsupported", Some(reason)),
        };
        match outcome {
            "passed" => report.passed += 1,
            "failed" => report.failed += 1,
            _ => report.unsupported += 1,
        }
        report.tests.insert(name, Test { outcome, reason });
    }
    match options.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&report)?),
        Output::Text => {
            for (name, Test { outcome, reason }) in &report.tests {
                if let Some(reason) = reason {
                    println!("{outcome:11}  {name}: {reason}");
                }
            }
            println!(
                "{} passed, {} failed, {} unsupported",
                report.passed, report.failed, report.unsupported
            );
        }
    }
    Ok(if report.failed == 0 { Verdict::Good } else { Verdict::Mismatch })
}

fn listed(path: &Path) -> anyhow::Result<Vec<String>> {
    let cannot = || format!("cannot read {}", path.display());
    let text = std::fs::read_to_string(path).with_context(cannot)?;
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(&text).with_context(cannot);
    }
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn tested(test: &Path, engine: EngineName) -> Outcome {
    match engine {
        EngineName::Native => conformance::run_test(test),
        EngineName::OnnxRuntime => foreign(test),
        EngineName::Auto => match conformance::run_test(test) {
            Outcome::Unsupported(native) => match foreign(test) {
                Outcome::Unsupported(other) => {
                    Outcome::Unsupported(format!("native: {native}; onnxruntime: {other}"))
                }
                outcome @ (Outcome::Passed | Outcome::Failed(_)) => outcome,
            },
            outcome @ (Outcome::Passed | Outcome::Failed(_)) => outcome,
        },
    }
}

/// The test on ONNX Runtime. What it does not load, it does not support.
fn foreign(test: &Path) -> Outcome {
    let loaded =
        subject::files(test).and_then(|files| subject::load(&files, EngineChoice::OnnxRuntime, None));
    let mut subject = match loaded {
        Ok(subject) => subject,
        Err(error) => return Outcome::Unsupported(format!("{error:#}")),
    };
    let done: anyhow::Result<()> = conformance::run_data_sets(test, |inputs| subject.run(inputs));
    done.map_or_else(|error| Outcome::Failed(format!("{error:#}")), |()| Outcome::Passed)
}
