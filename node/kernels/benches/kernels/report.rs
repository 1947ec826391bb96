//! What was measured, on the screen as it comes and in `RESULTS.md` at the end.

use std::error::Error;
use std::fmt::Write as _;
use std::process::Command;

use roost_kernels::Isa;

use crate::peaks::{self, Peak};
use crate::{in_turns, typical};

/// Which of the two peaks a figure is held against.
#[derive(Clone, Copy)]
pub enum Bits {
    /// Products of f32.
    Float,
    /// Products of 8 bits.
    Byte,
}

/// The figures of all instruction sets so far.
#[derive(Default)]
pub struct Report {
    /// Peaks of the set that is measured now: in f32, in 8 bits.
    peaks: Option<[Peak; 2]>,
    sections: Vec<Section>,
}

/// The figures of an instruction set.
struct Section {
    title: String,
    shares: Vec<String>,
    fusion: Option<String>,
    each: Vec<String>,
}

impl Report {
    /// Begins with an instruction set.
    pub fn set(&mut self, isa: Isa) {
        self.peaks = peaks::of(isa);
        let [float, byte] = self
            .peaks
            .map_or([f64::NAN; 2], |peaks| peaks.map(|peak| peak.operations / typical(peak.run) / 1e9));
        let title = format!("{isa}: peaks of {float:.1} GFLOP/s in f32 and {byte:.1} GOP/s in 8 bits");
        println!("# {title}");
        self.sections.push(Section { title, shares: Vec::new(), fusion: None, each: Vec::new() });
    }

    /// A kernel that does so many operations in a run; the aim is a share of the peak in percent.
    pub fn share(&mut self, name: &str, operations: f64, bits: Bits, aim: Option<f64>, run: impl FnMut()) {
        let peak = self.peaks.map(|[float, byte]| match bits {
            Bits::Float => float,
            Bits::Byte => byte,
        });
        let (seconds, peak_seconds) = in_turns(run, peak.map(|peak| peak.run));
        let rate = operations / seconds / 1e9;
        let peak = peak.map_or(f64::NAN, |peak| peak.operations / peak_seconds / 1e9);
        let (share, micros) = (100.0 * rate / peak, seconds * 1e6);
        println!("{name:<46} {rate:8.1} G/s {share:6.1} %  {micros:9.1} µs");
        let aim = aim.map(|aim| format!("{aim:.0} %")).unwrap_or_default();
        self.line(|section| {
            section.shares.push(format!("| {name} | {rate:.1} | {share:.1} % | {aim} | {micros:.1} |"));
        });
    }

    /// A fused kernel in seconds, against the product and the passes after it.
    pub fn fusion(&mut self, fused: f64, product: f64, passes: f64) {
        let line = format!(
            "fused {:.1} µs; product {:.1} µs and passes {:.1} µs: {:.2} times (aim 2.1)",
            fused * 1e6,
            product * 1e6,
            passes * 1e6,
            (product + passes) / fused
        );
        println!("{line}");
        self.line(|section| section.fusion = Some(line));
    }

    /// A kernel that took so many nanoseconds per element.
    pub fn each(&mut self, name: &str, nanos: f64) {
        println!("{name:<46} {nanos:8.3} ns per element");
        self.line(|section| section.each.push(format!("| {name} | {nanos:.3} |")));
    }

    fn line(&mut self, add: impl FnOnce(&mut Section)) {
        if let Some(section) = self.sections.last_mut() {
            add(section);
        }
    }

    /// Writes `RESULTS.md`.
    pub fn write(&self) -> Result<(), Box<dyn Error>> {
        let said = |program: &str, arguments: &[&str]| -> Result<String, Box<dyn Error>> {
            Ok(String::from_utf8(Command::new(program).args(arguments).output()?.stdout)?.trim().to_owned())
        };
        let cpu = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or("unknown");
        let mut text = String::from("# Kernels against the peaks of the machine, one thread\n\n");
        writeln!(
            text,
            "- Machine: {}, {}",
            cpu.trim_start_matches([' ', '\t', ':']),
            std::env::consts::ARCH
        )?;
        let commit = said("git", &["rev-parse", "--short", "HEAD"])?;
        writeln!(text, "- Commit: {commit}, {}", said("date", &["-u", "+%F"])?)?;
        text.push_str("- Command: `cargo bench -p roost-kernels`\n");
        text.push_str(
            "- Processor time, the first decile of the runs of a quarter second; a share is of the peak of the same quarter.\n",
        );
        for section in &self.sections {
            writeln!(text, "\n## {}\n", section.title)?;
            text.push_str("| kernel | G/s | share of the peak | aim | µs |\n|---|---|---|---|---|\n");
            section.shares.iter().try_for_each(|line| writeln!(text, "{line}"))?;
            if let Some(line) = &section.fusion {
                let what = "int8, [1, 64, 56, 56], 1 × 1, 64 → 64, against the product, then dequantise, ReLU and quantise";
                writeln!(text, "\n{what}: {line}.\n")?;
            }
            text.push_str("| rows of 4096 | ns per element |\n|---|---|\n");
            section.each.iter().try_for_each(|line| writeln!(text, "{line}"))?;
        }
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/benches/RESULTS.md"), text)?;
        Ok(())
    }
}
