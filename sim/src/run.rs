//! One simulation, from its seed to its verdict: a safety phase with faults, then a liveness phase without,
//! and once all has converged a calm in which nothing may fail.

use std::fmt;
use std::sync::mpsc;
use std::time::Duration;

use roost_protocol::error::panic_text;

use crate::coverage::Coverage;
use crate::entropy::spawn;
use crate::facts::{Fact, Witness, fact_of};
use crate::faults::Injector;
use crate::invariants::{self, Bounds, End, Violation};
use crate::panics::stop_at;
use crate::plan::{CONVERGE, Plan, SAFETY};
use crate::remains::{Remains, Standing};
use crate::trace::{self, Keep, Traced};
use crate::workload::{Missing, Phase, Workload};
use crate::world::World;

/// How long it may take after the end of faults until a worker that came back as another node has its name
/// again: a minute until the node that it was is out, counted anew by each leader, another until it asks
/// anew, and what an election in between costs.
const OUT: Duration = Duration::from_secs(130);
/// That the liveness phase comes to its end, as a violation names it.
const CONVERGES: &str = "everything converges in time";
/// How long users still ask once everything has converged.
const CALM: Duration = Duration::from_secs(2);
/// How long nodes may take to be done with what nobody waits for any more.
const REST: Duration = Duration::from_secs(1);

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
    /// What was run.
    pub options: Options,
    /// What was broken, if anything.
    pub failure: Option<Failure>,
    /// The trace.
    pub trace: Traced,
    /// How much happened.
    pub counts: Counts,
    /// How often what is rare came.
    pub coverage: Coverage,
}

/// Why a run is no good one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// An invariant does not hold.
    Broken(Violation),
    /// It could not go on.
    Stopped(String),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Broken(violation) => violation.fmt(f),
            Self::Stopped(why) => f.write_str(why),
        }
    }
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
        let gathers = trace::gather(options.keep, move |seen| match fact_of(seen) {
            Ok(Some(fact)) => watching.tell_of(seen.host, &fact),
            Ok(None) => {}
            Err(what) => watching.break_off(what),
        });
        // Ahead of all else, so that a panic finds it.
        let _ = tell.send(trace::handle());
        stop_at(panicked);
        let mut counts = Counts::default();
        let failure = simulate(&options, &witness, &mut counts).err();
        drop(gathers);
        (failure, counts, witness.coverage())
    });
    let traced = told.recv();
    // The other end is gone when the simulation has ended; until then it may panic.
    let nothing = |why: String| (Some(Failure::Stopped(why)), Counts::default(), Coverage::default());
    let (failure, counts, coverage) = match panics.recv() {
        Ok(panic) => nothing(panic),
        Err(_) => thread.join().unwrap_or_else(|panic| nothing(format!("a panic: {}", panic_text(&*panic)))),
    };
    let trace = traced.map_or_else(|_| trace::take(), |traced| traced.take());
    Report { options, failure, trace, counts, coverage }
}

fn simulate(options: &Options, witness: &Witness, counts: &mut Counts) -> Result<(), Failure> {
    let plan = Plan::draw(options.seed, options.safety);
    trace::line(format_args!("{plan:?}"));
    let mut world = World::new(options.seed, &plan.shape, witness.clone());
    let coordinators = plan.shape.nodes.iter().filter(|node| node.coordinator);
    let disks = coordinators.map(|node| (node.name.clone(), world.disk(&node.name).clone()));
    let worker = &world.config().worker;
    let rows_max = worker.rows_in_flight_max.get().into();
    let bounds = Bounds { rows_max, bytes_max: worker.bytes_in_flight_max.get() };
    witness.add(invariants::all(disks.collect(), bounds));
    let mut injector = Injector::new(options.seed, &plan);
    let workload = Workload::start(&mut world, &plan, injector.doomed(), witness);
    world.draw_latencies(options.seed);
    let result = live(options, &plan, &mut world, &workload, &mut injector, witness);
    counts.elapsed = world.elapsed();
    let converged = result.as_ref().ok().copied().flatten().unwrap_or(world.elapsed());
    counts.converged = converged.saturating_sub(plan.safety);
    let ops = workload.ops();
    (counts.ops, counts.open) = (ops.len(), ops.iter().filter(|op| op.returned.is_none()).count());
    (counts.answers, counts.failures) = (workload.answers().len(), workload.failures());
    let verdict = match result {
        Ok(Some(_)) => judge(&mut world, &workload, &injector, witness),
        Ok(None) => Ok(()),
        Err(failure) => Err(failure),
    };
    trace::deaf(|| drop(world));
    verdict
}

/// Lives through all phases. Returns when everything had converged; none when the run was stopped before its
/// end.
fn live(
    options: &Options,
    plan: &Plan,
    world: &mut World,
    workload: &Workload,
    injector: &mut Injector,
    witness: &Witness,
) -> Result<Option<Duration>, Failure> {
    let (mut phase, mut converged, mut ended) = (Phase::Safety, Duration::ZERO, None);
    // Since when everything could converge.
    let mut unhindered = plan.safety;
    loop {
        let now = world.elapsed();
        if options.until.is_some_and(|until| now >= until) {
            return Ok(None);
        }
        match phase {
            Phase::Safety if now < plan.safety => injector.step(world),
            Phase::Safety => {
                trace::line(format_args!("faults have ended"));
                injector.heal(world);
                let coordinators = plan.shape.nodes.iter().filter(|node| node.coordinator);
                let disk = |name: &String| (world.disk(name).clone(), !injector.lost().contains(name));
                workload.give_disks(coordinators.map(|node| (node.name.clone(), disk(&node.name))).collect());
                phase = Phase::Liveness;
                workload.enter(phase);
            }
            Phase::Liveness => match workload.missing() {
                None => {
                    trace::line(format_args!("everything has converged"));
                    witness.tell_of("", &Fact::Converged);
                    converged = now;
                    phase = Phase::Converged;
                    workload.enter(phase);
                }
                // Whoever took the place of a worker waits until it may.
                Some(Missing { node: Some(node), .. })
                    if injector.emptied() == Some(&node) && now < plan.safety + OUT =>
                {
                    unhindered = now;
                }
                Some(Missing { what, .. }) if now >= unhindered + CONVERGE => {
                    let violation = Violation { invariant: CONVERGES, at: now, what };
                    return Err(Failure::Broken(violation));
                }
                Some(_) => {}
            },
            Phase::Converged if now >= converged + CALM => {
                phase = Phase::Over;
                workload.enter(phase);
            }
            Phase::Converged | Phase::Over => {}
        }
        let stepped = world.step().map_err(|error| Failure::Stopped(format!("a host failed: {error}")));
        if stepped? {
            let rested = now >= *ended.get_or_insert(now) + REST;
            // What was agreed on in the last instant still reaches the others; that it must is for an
            // invariant to say.
            if rested && (are_equal(workload, injector, witness) || now >= converged + CALM + CONVERGE) {
                return Ok(Some(converged));
            }
        }
        if let Some(violation) = witness.violation() {
            return Err(Failure::Broken(violation));
        }
    }
}

/// Whether all members that kept their data have applied the same.
fn are_equal(workload: &Workload, injector: &Injector, witness: &Witness) -> bool {
    let (applied, members) = (witness.applied(), workload.members());
    let last = applied.values().max();
    members.difference(injector.lost()).all(|name| applied.get(name) == last)
}

fn judge(
    world: &mut World,
    workload: &Workload,
    injector: &Injector,
    witness: &Witness,
) -> Result<(), Failure> {
    let nodes: Vec<String> = world.nodes().map(str::to_owned).collect();
    nodes.iter().for_each(|node| world.crash(node, None));
    let (wiped, members) = (witness.wiped(), workload.members());
    let remains = nodes.iter().map(|node| {
        let is_sound = members.contains(node) && !injector.lost().contains(node);
        let standing = match (wiped.contains(node), is_sound) {
            (true, _) => Standing::Wiped,
            (false, true) => Standing::Sound,
            (false, false) => Standing::Other,
        };
        Remains::of(node, world.disk(node), standing)
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
    witness.violation().map_or(Ok(()), |violation| Err(Failure::Broken(violation)))
}
