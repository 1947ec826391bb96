//! One simulation, from its seed to its verdict: a safety phase with faults, then a liveness phase without.

use std::fmt;
use std::sync::mpsc;
use std::time::Duration;

use crate::entropy::spawn;
use crate::facts::{Fact, Witness, fact_of};
use crate::faults::Injector;
use crate::invariants::{self, End, Violation};
use crate::panics::stop_at;
use crate::plan::{CONVERGE, Plan, SAFETY};
use crate::remains::Remains;
use crate::trace::{self, Keep, Traced};
use crate::workload::{Phase, Workload};
use crate::world::World;

/// What to run.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The seed, from which all else follows.
    pub seed: u64,
    /// How long faults come.
    pub safety: Duration,
    /// Which lines of the trace are kept.
    pub keep: Keep,
    /// Stops there, without a verdict.
    pub until: Option<Duration>,
    /// A bug to put back.
    #[cfg(debug_assertions)]
    pub bug: Option<roost_protocol::KnownBug>,
}

impl Options {
    /// The seed as it is explored.
    pub fn new(seed: u64) -> Self {
        Self {
            seed,
            safety: SAFETY,
            keep: Keep::Last,
            until: None,
            #[cfg(debug_assertions)]
            bug: None,
        }
    }
}

/// What came of a run.
pub struct Report {
    /// The seed.
    pub seed: u64,
    /// How long faults came.
    pub safety: Duration,
    /// What was broken, if anything.
    pub failure: Option<String>,
    /// The trace.
    pub trace: Traced,
    /// How much happened.
    pub counts: Counts,
}

/// How much happened in a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Virtual time.
    pub elapsed: Duration,
    /// Operations on the registry.
    pub ops: usize,
    /// Those that nobody heard the end of.
    pub open: usize,
    /// Answers to requests for inference.
    pub answers: usize,
    /// Requests without one.
    pub failures: u64,
    /// When everything had converged, after faults had ended.
    pub converged: Duration,
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { elapsed, ops, open, answers, failures, converged } = self;
        let (elapsed, converged) = (elapsed.as_secs_f64(), converged.as_secs_f64());
        write!(
            f,
            "{elapsed:.1} s, {ops} operations ({open} open), {answers} answers, {failures} failures, "
        )?;
        write!(f, "converged in {converged:.1} s")
    }
}

/// Runs a simulation on a thread of its own.
///
/// # Panics
/// When the operating system gives no thread.
pub fn run(options: Options) -> Report {
    let (tell, told) = mpsc::channel();
    let (panicked, panics) = mpsc::channel();
    let thread = spawn(options.seed, move || {
        #[cfg(debug_assertions)]
        roost_protocol::known_bugs::put_back(options.bug);
        let witness = Witness::default();
        let watching = witness.clone();
        let gathers = trace::gather(options.keep, move |seen| {
            if let Some(fact) = fact_of(seen) {
                watching.tell_of(seen.host, &fact);
            }
        });
        // Ahead of all else, so that a panic finds it.
        let _ = tell.send(trace::handle());
        stop_at(panicked);
        let mut counts = Counts::default();
        let failure = simulate(&options, &witness, &mut counts).err();
        drop(gathers);
        (failure, counts)
    });
    let traced = told.recv();
    // The other end is gone when the simulation has ended; until then it may panic.
    let (failure, counts) = match panics.recv() {
        Ok(panic) => (Some(panic), Counts::default()),
        Err(_) => {
            thread.join().unwrap_or_else(|_| (Some("it did not even begin".to_owned()), Counts::default()))
        }
    };
    let trace = traced.map_or_else(|_| trace::take(), |traced| traced.take());
    Report { seed: options.seed, safety: options.safety, failure, trace, counts }
}

fn simulate(options: &Options, witness: &Witness, counts: &mut Counts) -> Result<(), String> {
    let plan = Plan::draw(options.seed, options.safety);
    trace::line(format_args!("{plan:?}"));
    let mut world = World::new(options.seed, &plan.shape, witness.clone());
    let coordinators = plan.shape.nodes.iter().filter(|node| node.coordinator);
    let disks = coordinators.map(|node| (node.name.clone(), world.disk(&node.name).clone()));
    witness.add(invariants::all(disks.collect()));
    let workload = Workload::start(&mut world, &plan.load, &plan.shape.clients, witness);
    let mut injector = Injector::new(options.seed, &plan);
    let result = live(options, &plan, &mut world, &workload, &mut injector, witness);
    counts.elapsed = world.elapsed();
    counts.converged = world.elapsed().saturating_sub(plan.safety);
    let ops = workload.ops();
    (counts.ops, counts.open) = (ops.len(), ops.iter().filter(|op| op.returned.is_none()).count());
    (counts.answers, counts.failures) = (workload.answers().len(), workload.failures());
    let verdict =
        result.and_then(
            |finished| {
                if finished { judge(&mut world, &workload, &injector, witness) } else { Ok(()) }
            },
        );
    trace::deaf(|| drop(world));
    verdict
}

/// Lives through both phases. Returns whether the run came to its end.
fn live(
    options: &Options,
    plan: &Plan,
    world: &mut World,
    workload: &Workload,
    injector: &mut Injector,
    witness: &Witness,
) -> Result<bool, String> {
    let mut phase = Phase::Safety;
    loop {
        let now = world.elapsed();
        if options.until.is_some_and(|until| now >= until) {
            return Ok(false);
        }
        match phase {
            Phase::Safety if now < plan.safety => injector.step(world),
            Phase::Safety => {
                trace::line(format_args!("faults have ended"));
                injector.heal(world);
                let coordinators = plan.shape.nodes.iter().filter(|node| node.coordinator);
                let disk = |name: &String| (world.disk(name).clone(), !injector.lost().contains(name));
                workload.give_disks(coordinators.map(|node| (node.name.clone(), disk(&node.name))).collect());
                witness.tell_of("", &Fact::Healed);
                phase = Phase::Liveness;
                workload.enter(phase);
            }
            Phase::Liveness => match workload.missing() {
                None => {
                    phase = Phase::Over;
                    workload.enter(phase);
                }
                Some(missing) if now >= plan.safety + CONVERGE => {
                    let violation =
                        Violation { invariant: "everything converges within 30 s", at: now, what: missing };
                    return Err(violation.to_string());
                }
                Some(_) => {}
            },
            Phase::Over => {}
        }
        let ended = world.step().map_err(|error| format!("a host failed: {error}"))?;
        // What was agreed on in the last instant still reaches the others; that it must is for an invariant to say.
        if ended && (are_equal(plan, injector, witness) || now >= plan.safety + 2 * CONVERGE) {
            return Ok(true);
        }
        if let Some(violation) = witness.violation() {
            return Err(violation.to_string());
        }
    }
}

/// Whether all coordinators that kept their data have applied the same.
fn are_equal(plan: &Plan, injector: &Injector, witness: &Witness) -> bool {
    let applied = witness.applied();
    let last = applied.values().max();
    let coordinators = plan.shape.nodes.iter().filter(|node| node.coordinator);
    let mut sound = coordinators.filter(|node| !injector.lost().contains(&node.name));
    sound.all(|node| applied.get(&node.name) == last)
}

fn judge(
    world: &mut World,
    workload: &Workload,
    injector: &Injector,
    witness: &Witness,
) -> Result<(), String> {
    let nodes: Vec<String> = world.nodes().map(str::to_owned).collect();
    nodes.iter().for_each(|node| world.crash(node, None));
    let replaced = workload.replaced();
    let remains = nodes.iter().map(|node| {
        let wiped = injector.wiped().contains(node) && !replaced.contains(node);
        let sound = world.shape_of(node).coordinator && !injector.lost().contains(node);
        Remains::of(node, world.disk(node), wiped, sound)
    });
    let end = End {
        ops: workload.ops(),
        answers: workload.answers(),
        views: workload.views(),
        models: workload.models(),
        last: workload.last(),
        remains: remains.collect(),
    };
    witness.judge(world.elapsed(), &end);
    witness.violation().map_or(Ok(()), |violation| Err(violation.to_string()))
}
