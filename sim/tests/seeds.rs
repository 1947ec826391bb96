//! A hundred worlds, each a minute long, and every seed that once failed: no invariant is broken.

#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use roost_sim::coverage::{Coverage, Rare};
use roost_sim::run::{Options, run};

/// Simulations at once.
const JOBS: usize = 2;

fn check(worlds: &[Options]) -> Coverage {
    let (next, failed) = (AtomicUsize::new(0), Mutex::new(Vec::new()));
    let coverage = Mutex::new(Coverage::default());
    std::thread::scope(|scope| {
        for _ in 0..JOBS {
            scope.spawn(|| {
                while let Some(options) = worlds.get(next.fetch_add(1, Ordering::Relaxed)) {
                    let report = run(*options);
                    *coverage.lock().unwrap() += &report.coverage;
                    if report.failure.is_some() {
                        println!("{report}");
                        failed.lock().unwrap().push(report.options.seed);
                    }
                }
            });
        }
    });
    let failed = failed.into_inner().unwrap();
    assert!(
        failed.is_empty(),
        "the seeds {failed:?} of {} failed; see above how to repeat them",
        worlds.len()
    );
    coverage.into_inner().unwrap()
}

/// `seeds/regression.txt`: a seed, the seconds with faults, and what was wrong.
fn regressions() -> impl Iterator<Item = Options> {
    let seeds = include_str!("../seeds/regression.txt").lines();
    let seeds = seeds.map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    seeds.map(|line| {
        let mut numbers = line.split_whitespace().map(|number| number.parse::<u64>());
        let (seed, safety) = (numbers.next().unwrap().unwrap(), numbers.next().unwrap().unwrap());
        Options { safety: Duration::from_secs(safety), ..Options::new(seed) }
    })
}

/// One test, so that no more than [`JOBS`] simulations run at once.
#[test]
fn a_hundred_seeds_and_those_that_failed_once() {
    #[expect(clippy::disallowed_methods, reason = "the time that the seeds take is the machine's")]
    let begun = std::time::Instant::now();
    let coverage = check(&(0..100).map(Options::new).collect::<Vec<_>>());
    println!("a hundred seeds in {:.0} s: {coverage}", begun.elapsed().as_secs_f64());
    check(&regressions().collect::<Vec<_>>());
    let missing = coverage.missing();
    println!("of a hundred seeds none met {missing:?}");
    // These two take several things at once, and a hundred seeds may do without them.
    let demanded = |rare: &Rare| !matches!(rare, Rare::VotesAnew | Rare::FellBack);
    assert!(!missing.iter().any(demanded), "of a hundred seeds none met {missing:?}");
}
