//! What a seed draws: the world, the faults and the workload (swarm testing, Groce et al., ISSTA 2012).
//!
//! Each kind of fault is left out of half of all runs and comes at a rate of its own in the others: a run
//! with every fault at once rarely gets far, and what one fault hides another shows.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};

use crate::world::{NodeShape, Place, Shape};

/// How long faults come, unless something else is asked for.
pub const SAFETY: Duration = Duration::from_secs(58);
/// How long everything may take to converge once they have ended.
pub const CONVERGE: Duration = Duration::from_secs(30);

/// What a seed draws.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The world.
    pub shape: Shape,
    /// The kinds of faults that come, and the mean time between two of each.
    pub faults: Vec<(Kind, Duration)>,
    /// The workload.
    pub load: Load,
    /// How long faults come.
    pub safety: Duration,
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process is killed, and started again later.
    Crash,
    /// A process is killed at one of its next operations.
    Trap,
    /// All coordinators, or all nodes, are killed at once.
    PowerFailure,
    /// A host is cut off from all others.
    Isolate,
    /// The hosts are parted into two groups.
    Split,
    /// The leader is parted from most coordinators, with some of the clients.
    Depose,
    /// Nothing passes from one host to some others.
    OneWay,
    /// The ways between two hosts are long.
    SlowLink,
    /// A host's packets are lost and doubled.
    Storm,
    /// A host sends few bytes a second.
    ThinLink,
    /// A disk is slow.
    SlowDisk,
    /// Computing is slow.
    SlowCompute,
    /// A model panics.
    Panic,
    /// A wall clock jumps.
    Skew,
    /// A disk fails reads and writes.
    FailDisk,
    /// A disk is full.
    FullDisk,
    /// A disk returns flipped bits.
    Flip,
    /// A coordinator loses its databases or its whole folder.
    Wipe,
    /// A worker loses its folder.
    Empty,
}

impl Kind {
    /// All kinds, with the shortest mean time between two of one.
    const ALL: [(Self, u64); 19] = [
        (Self::Crash, 4),
        (Self::Trap, 4),
        (Self::PowerFailure, 12),
        (Self::Isolate, 5),
        (Self::Split, 8),
        (Self::Depose, 4),
        (Self::OneWay, 6),
        (Self::SlowLink, 4),
        (Self::Storm, 6),
        (Self::SlowDisk, 6),
        (Self::SlowCompute, 6),
        (Self::Panic, 5),
        (Self::Skew, 5),
        (Self::FailDisk, 8),
        (Self::FullDisk, 10),
        (Self::Flip, 6),
        (Self::Wipe, 6),
        (Self::ThinLink, 6),
        // Whoever takes its place waits for a minute until it may.
        (Self::Empty, 60),
    ];
}

/// What clients ask.
#[derive(Debug, Clone, PartialEq)]
pub struct Load {
    /// The models.
    pub models: usize,
    /// Hosts of operators, who race each other.
    pub operators: usize,
    /// The mean time between two operations of one of them.
    pub operate: Duration,
    /// Hosts that read the registry alone.
    pub readers: usize,
    /// The mean time between two of their reads.
    pub read: Duration,
    /// Hosts that ask for inference.
    pub users: usize,
    /// The mean time between two requests of one of them.
    pub ask: Duration,
    /// Hosts that change who coordinates.
    pub admins: usize,
    /// Keys that users ask for.
    pub keys: u32,
    /// Replicas that a manifest asks for at most.
    pub replicas_max: u16,
}

impl Plan {
    /// What `seed` draws.
    pub fn draw(seed: u64, safety: Duration) -> Self {
        // Not the seed itself, which feeds other generators too.
        let mut rng = StdRng::seed_from_u64(seed ^ 0x5eed_0f91_a115_0000);
        let load = Load {
            models: rng.random_range(1..=2),
            operators: rng.random_range(2..=3),
            operate: Duration::from_millis(rng.random_range(300..1_000)),
            readers: 1,
            read: Duration::from_millis(rng.random_range(100..400)),
            users: rng.random_range(1..=2),
            ask: Duration::from_millis(rng.random_range(40..200)),
            keys: rng.random_range(2..16),
            // Often one alone: a version that two serve is served even where one lets go of it too early.
            replicas_max: if rng.random_range(1..=3) < 3 { 1 } else { 3 },
            admins: rng.random_range(0..=1),
        };
        let mut shape = shape(&mut rng, &load);
        let spares = spares(&mut rng, &shape.nodes, &load);
        shape.nodes.extend(spares);
        let mut faults = Vec::new();
        for (kind, shortest) in Kind::ALL {
            let (comes, factor) = (rng.random_bool(0.5), rng.random_range(1.0..6.0));
            if comes {
                faults.push((kind, Duration::from_secs(shortest).mul_f64(factor)));
            }
        }
        Self { shape, faults, load, safety }
    }
}

/// Coordinators that an administrator may take in: two, which makes seven at most, as many as a config may
/// name.
fn spares(rng: &mut StdRng, founders: &[NodeShape], load: &Load) -> Vec<NodeShape> {
    let first = founders.iter().filter(|node| node.coordinator).count() + 1;
    if load.admins == 0 {
        return Vec::new();
    }
    let spare = |i| NodeShape {
        place: Place::Spare,
        starts_after: Duration::from_millis(rng.random_range(1_000..15_000)),
        ..NodeShape::coordinator(format!("c{i}"))
    };
    (first..first + 2).map(spare).collect()
}

fn shape(rng: &mut StdRng, load: &Load) -> Shape {
    let coordinators = if rng.random_bool(0.3) { 5 } else { 3 };
    let combined = rng.random_bool(0.25);
    let workers = if combined { rng.random_range(0..=2) } else { rng.random_range(2..=4) };
    let zones = rng.random_bool(0.3);
    let name = |prefix: &str, i: usize| format!("{prefix}{i}");
    let mut nodes: Vec<NodeShape> =
        (1..=coordinators).map(|i| NodeShape::coordinator(name("c", i))).collect();
    nodes.iter_mut().for_each(|node| node.worker = combined);
    nodes.extend((1..=workers).map(|i| NodeShape::worker(name("w", i))));
    for (i, node) in nodes.iter_mut().enumerate() {
        node.speed = [0.5, 1.0, 1.0, 2.0].choose(rng).copied().unwrap_or(1.0);
        if zones {
            node.zone = name("zone-", i % 2);
        }
    }
    // Workers that come late take over what others served.
    for node in nodes.iter_mut().filter(|node| !node.coordinator).skip(1) {
        if rng.random_bool(0.85) {
            node.starts_after = Duration::from_millis(rng.random_range(5_000..25_000));
        }
    }
    let names = |prefix: &'static str, count: usize| (1..=count).map(move |i| name(prefix, i));
    let clients = names("op", load.operators).chain(names("reader", load.readers));
    let clients = clients.chain(names("user", load.users)).chain(names("admin", load.admins));
    let clients = clients.chain(["auditor".to_owned()]);
    let drain = [200, 500, 2_000].choose(rng).copied().unwrap_or(2_000);
    let (executors, rows) = (rng.random_range(1..=2), [8, 64, 4_096].choose(rng).copied().unwrap_or(64));
    // Most logs are so short in between that coordinators that were away are sent snapshots.
    let entries = [4, 16, 64, 4_096].choose(rng).copied().unwrap_or(4_096);
    // The least takes any single request, and not two of the largest.
    let bytes = [2_048, 16_384, 1 << 30].choose(rng).copied().unwrap_or(1 << 30);
    Shape {
        clients: clients.collect(),
        coordinator: format!("snapshot_entries = {entries}\n"),
        worker: format!(
            "drain_ms_min = {drain}\nexecutors_per_version = {executors}\n\
             rows_in_flight_max = {rows}\nbytes_in_flight_max = {bytes}\n"
        ),
        tick: Duration::from_millis(1),
        latency_min: Duration::from_millis(1),
        latency_max: Duration::from_millis([2, 5, 20, 50].choose(rng).copied().unwrap_or(5)),
        nodes,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_and_seeds_differ() {
        assert_eq!(Plan::draw(1, SAFETY), Plan::draw(1, SAFETY));
        let plans: Vec<Plan> = (0..100).map(|seed| Plan::draw(seed, SAFETY)).collect();
        for (kind, _) in Kind::ALL {
            let with =
                plans.iter().filter(|plan| plan.faults.iter().any(|(comes, _)| *comes == kind)).count();
            assert!((30..70).contains(&with), "{kind:?} comes in {with} of 100 runs");
        }
    }
}
