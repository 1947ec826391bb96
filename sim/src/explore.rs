//! Runs seed after seed, several at once, until the time is up.

use std::fmt;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::run::{Options, Report, run};

/// Lines of the trace that are printed of a run that failed.
const LINES: usize = 40;

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
    let explored = Mutex::new((0, Duration::ZERO));
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
                    }
                    if report.failure.is_some() {
                        failed.fetch_add(1, Ordering::Relaxed);
                        println!("{report}");
                    }
                }
            });
        }
    });
    let (explored, simulated) = explored.into_inner().unwrap_or_default();
    let failed = failed.into_inner();
    println!("{explored} seeds from {from} on, {} s simulated, {failed} failed", simulated.as_secs());
    failed == 0
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { seed, safety, failure, trace, counts } = self;
        let Some(failure) = failure else {
            let (hash, lines) = (trace.hash, trace.count);
            return write!(f, "seed {seed}: {counts}; {lines} lines, trace {hash:016x}");
        };
        let from = trace.lines.len().saturating_sub(LINES);
        for line in &trace.lines[from..] {
            writeln!(f, "  {line}")?;
        }
        writeln!(f, "seed {seed}: {failure}")?;
        writeln!(f, "seed {seed}: {counts}")?;
        let safety = safety.as_secs();
        write!(
            f,
            "to repeat it: cargo run -p roost-sim -- --seed {seed} --safety {safety} --trace seed-{seed}.txt"
        )
    }
}
