//! The same seed gives the same trace, twice in one process and in another one.

#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

use std::process::Command;
use std::time::Duration;

use roost_sim::plan::SAFETY;
use roost_sim::run::{Options, Report, run};

/// Seeds that are repeated.
const SEEDS: std::ops::Range<u64> = 0..20;
/// Those that are repeated as long as they are explored: what comes late, such as a worker that takes its
/// place again after a minute, may be what is not deterministic.
const LONG: std::ops::Range<u64> = 0..4;
/// How long faults come in the others: most of what is not deterministic shows within seconds.
const SHORT: Duration = Duration::from_secs(8);

fn safety(seed: u64) -> Duration {
    if LONG.contains(&seed) { SAFETY } else { SHORT }
}

fn report(seed: u64) -> Report {
    run(Options { safety: safety(seed), ..Options::new(seed) })
}

fn check(seeds: impl Iterator<Item = u64>, again: impl Fn(u64) -> String) {
    for seed in seeds {
        let first = report(seed);
        assert_eq!(first.failure, None, "seed {seed}");
        assert_eq!(format!("{:016x}", first.trace.hash), again(seed), "seed {seed}: the traces differ");
    }
}

fn in_this_process(seed: u64) -> String {
    format!("{:016x}", report(seed).trace.hash)
}

fn in_another_process(seed: u64) -> String {
    let (seed, safety) = (seed.to_string(), safety(seed).as_secs().to_string());
    let arguments = ["--seed", &seed, "--safety", &safety];
    let output = Command::new(env!("CARGO_BIN_EXE_roost-sim")).args(arguments).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    text.split_whitespace().last().unwrap().to_owned()
}

#[test]
fn twice_in_a_process() {
    check(SEEDS, in_this_process);
}

#[test]
fn in_two_processes() {
    check(SEEDS, in_another_process);
}
