//! Runs seed after seed, several at once, until the time is up.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::coverage::Coverage;
use crate::run::{Options, Report, run};

/// Lines of the trace that are printed of a run that failed.
const LINES: usize = 60;

/// What to explore.
#[derive(Debug, Clone, Copy)]
pub struct Exploration {
    /// For how long, by the machine's clock.
    pub lasts: Duration,
    /// Simulations at once.
    pub jobs: usize,
    /// The first seed.
    pub from: u64,
    /// How many at most.
    pub seeds: u64,
    /// How long faults come in each.
    pub safety: Duration,
}

/// Explores; prints each run that fails, and at the end how many did. Returns whether none did.
pub fn explore(exploration: &Exploration) -> bool {
    let Exploration { lasts, jobs, from, seeds, safety } = *exploration;
    #[expect(clippy::disallowed_methods, reason = "the time that an exploration may take is the machine's")]
    let begun = std::time::Instant::now();
    let (next, failed) = (AtomicU64::new(from), AtomicUsize::new(0));
    let explored = Mutex::new((0, Duration::ZERO, Coverage::default()));
    std::thread::scope(|scope| {
        for _ in 0..jobs.max(1) {
            scope.spawn(|| {
                while begun.elapsed() < lasts {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed - from >= seeds {
                        return;
                    }
                    let report = run(Options { safety, ..Options::new(seed) });
                    if let Ok(mut explored) = explored.lock() {
                        explored.0 += 1;
                        explored.1 += report.counts.elapsed;
                        explored.2 += &report.coverage;
                    }
                    if report.failure.is_some() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        println!("{report}");
                    }
                }
            });
        }
    });
    let (explored, simulated, coverage) = explored.into_inner().unwrap_or_default();
    let failed = failed.into_inner();
    let simulated = simulated.as_secs();
    println!("{explored} seeds from {from} on, {simulated} s simulated, {failed} failed; {coverage}");
    failed == 0
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { options, failure, trace, counts, coverage } = self;
        let seed = options.seed;
        let Some(failure) = failure else {
            let (hash, lines) = (trace.hash, trace.count);
            return write!(f, "seed {seed}: {counts}; {coverage}; {lines} lines, trace {hash:016x}");
        };
        let from = trace.lines.len().saturating_sub(LINES);
        for line in &trace.lines[from..] {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "seed {seed}: {failure}")?;
        writeln!(f, "seed {seed}: {counts}; {coverage}")?;
        write!(f, "to repeat it: {}", command(options))
    }
}

/// The command that repeats a run, and keeps its trace.
fn command(options: &Options) -> String {
    let (seed, safety) = (options.seed, options.safety.as_secs());
    #[cfg(debug_assertions)]
    let bug = options.bug.map(|bug| format!(" --bug {bug:?}")).unwrap_or_default();
    #[cfg(not(debug_assertions))]
    let bug = "";
    format!("cargo run -p roost-sim -- --seed {seed} --safety {safety}{bug} --trace seed-{seed}.txt")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_names_all_that_a_run_depends_on() {
        let options = Options { safety: Duration::from_secs(20), ..Options::new(7) };
        let plain = "cargo run -p roost-sim -- --seed 7 --safety 20 --trace seed-7.txt";
        assert_eq!(command(&options), plain);
    }

    #[cfg(debug_assertions)]
    #[test]
    fn the_command_puts_a_known_bug_back() {
        let options = Options { bug: Some(roost_protocol::KnownBug::ActTwice), ..Options::new(7) };
        let expected = "cargo run -p roost-sim -- --seed 7 --safety 58 --bug ActTwice --trace seed-7.txt";
        assert_eq!(command(&options), expected);
    }
}
