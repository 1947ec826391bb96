//! What is done to a world while faults come, and its mending at their end.
//!
//! A quorum of coordinators always keeps its data: only as many as a group can lose for good are ever wiped,
//! or read flipped bits of their databases, which may make a damaged page durable. One worker at most loses
//! its folder. What destroys nothing strikes whomever it can.
//!
//! Faults overlap. Each ends by itself and takes back its own alone; one that strikes where another of its
//! kind still lasts takes that one's place.

mod cuts;

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};

use self::cuts::{Cuts, PartitionId, Way};
use crate::condition::{Condition, Weather};
use crate::disk::{Counted, DiskFaults, Moment, Trap};
use crate::facts::Loss;
use crate::plan::{Kind, Plan};
use crate::world::{NodeShape, Place, World};

/// How long a partition lasts, in seconds.
const PARTITION_S: Range<f64> = 0.5..8.0;

/// Inflicts the faults of a plan.
pub struct Injector {
    rng: StdRng,
    kinds: Vec<(Kind, Duration)>,
    /// When each kind comes next.
    next: Vec<Duration>,
    /// What ends by itself, and when.
    ends: Vec<(Duration, Ending)>,
    cuts: Cuts,
    /// The coordinators that may lose their data.
    doomed: BTreeSet<String>,
    /// Those that did, or may have.
    lost: BTreeSet<String>,
    wiped: BTreeSet<String>,
    /// The worker that lost its folder, if one did.
    emptied: Option<String>,
    /// Nodes that start late, and when.
    late: Vec<(Duration, String)>,
}

/// What ends by itself.
#[derive(Debug, Clone, PartialEq)]
enum Ending {
    Partition(PartitionId),
    /// Of two hosts in the order of their names.
    SlowLink(String, String),
    Storm(String),
    ThinLink(String),
    SlowDisk(String),
    SlowCompute(String),
    FailDisk(String),
    FullDisk(String),
    Flip(String),
}

impl Injector {
    /// The faults that `plan` draws, in the order that `seed` draws.
    pub fn new(seed: u64, plan: &Plan) -> Self {
        let mut rng = StdRng::seed_from_u64(seed ^ 0xfa17_5eed);
        let founds = |node: &&NodeShape| node.coordinator && node.place == Place::Founder;
        let coordinators = plan.shape.nodes.iter().filter(founds);
        let mut coordinators: Vec<String> = coordinators.map(|node| node.name.clone()).collect();
        coordinators.shuffle(&mut rng);
        coordinators.truncate((coordinators.len() - 1) / 2);
        let late = plan.shape.nodes.iter().filter(|node| node.starts_after > Duration::ZERO);
        let kinds = plan.faults.clone();
        let next = kinds.iter().map(|(_, mean)| exponential(&mut rng, *mean)).collect();
        Self {
            rng,
            kinds,
            next,
            ends: Vec::new(),
            cuts: Cuts::default(),
            doomed: coordinators.into_iter().collect(),
            lost: BTreeSet::new(),
            wiped: BTreeSet::new(),
            emptied: None,
            late: late.map(|node| (node.starts_after, node.name.clone())).collect(),
        }
    }

    /// The coordinators whose data may be gone.
    pub fn lost(&self) -> &BTreeSet<String> {
        &self.lost
    }

    /// The coordinators whose data may go.
    pub fn doomed(&self) -> &BTreeSet<String> {
        &self.doomed
    }

    /// The worker that lost its folder, if one did.
    pub fn emptied(&self) -> Option<&str> {
        self.emptied.as_deref()
    }

    /// Does what is due.
    pub fn step(&mut self, world: &mut World) {
        let now = world.elapsed();
        while let Some(i) = self.ends.iter().position(|(at, _)| *at <= now) {
            let (_, ending) = self.ends.remove(i);
            self.end(world, ending);
        }
        while let Some(i) = self.late.iter().position(|(at, _)| *at <= now) {
            let (_, node) = self.late.remove(i);
            self.start_slowly(world, node);
        }
        for i in 0..self.kinds.len() {
            if self.next[i] <= now {
                let (kind, mean) = self.kinds[i];
                self.next[i] = now + exponential(&mut self.rng, mean);
                self.strike(world, kind);
            }
        }
    }

    /// Ends all faults: whatever is down starts, and all that went wrong but data that is lost is well again.
    pub fn heal(&mut self, world: &mut World) {
        for (_, ending) in std::mem::take(&mut self.ends) {
            self.end(world, ending);
        }
        for host in world.hosts() {
            world.change(&host, |condition| *condition = Condition::default());
        }
        let nodes: Vec<String> = world.nodes().map(str::to_owned).collect();
        for node in nodes {
            world.set_trap(&node, None);
            world.change_disk(&node, |faults| *faults = DiskFaults::default());
            // An operator starts a node anew of which a role gave up, as a coordinator does whose disk
            // failed, and one that gave a version up, which would be tried again by itself only in minutes.
            // All else must recover by itself.
            if world.is_up(&node) && world.gave_up(&node) {
                world.crash(&node, Some(Duration::from_millis(500)));
            } else {
                world.restart(&node);
            }
        }
    }

    fn end(&mut self, world: &mut World, ending: Ending) {
        match ending {
            Ending::Partition(id) => self.cuts.end(id).iter().for_each(|(from, to)| world.open(from, to)),
            Ending::SlowLink(a, b) => world.restore_latency(&a, &b),
            Ending::Storm(host) => world.change(&host, |condition| {
                (condition.weather.loss, condition.weather.duplication) = (0.0, 0.0);
            }),
            Ending::ThinLink(host) => world.change(&host, |condition| condition.weather.bytes_per_s = None),
            Ending::SlowDisk(node) => world.change(&node, |condition| condition.slow_disk = 1.0),
            Ending::SlowCompute(node) => world.change(&node, |condition| condition.slow_compute = 1.0),
            Ending::FailDisk(node) => world.change_disk(&node, |faults| {
                (faults.fail_read, faults.fail_write) = (0.0, 0.0);
            }),
            Ending::FullDisk(node) => world.change_disk(&node, |faults| faults.full = false),
            Ending::Flip(node) => world.change_disk(&node, |faults| faults.flip = 0.0),
        }
    }

    fn after(&mut self, world: &World, seconds: Range<f64>, ending: Ending) {
        let lasts = Duration::from_secs_f64(self.rng.random_range(seconds));
        self.ends.retain(|(_, other)| *other != ending);
        self.ends.push((world.elapsed() + lasts, ending));
    }

    fn node(&mut self, world: &World) -> String {
        let nodes: Vec<&str> = world.nodes().collect();
        nodes.choose(&mut self.rng).map(|node| (*node).to_owned()).unwrap_or_default()
    }

    fn worker(&mut self, world: &World) -> String {
        let workers: Vec<&str> = world.nodes().filter(|name| world.shape_of(name).worker).collect();
        workers.choose(&mut self.rng).map(|node| (*node).to_owned()).unwrap_or_default()
    }

    fn host(&mut self, world: &World) -> String {
        world.hosts().choose(&mut self.rng).cloned().unwrap_or_default()
    }

    fn downtime(&mut self) -> Duration {
        // Mostly a restart, sometimes a long absence.
        let longest = if self.rng.random_bool(0.15) { 20.0 } else { 3.0 };
        Duration::from_secs_f64(self.rng.random_range(0.1..longest))
    }

    fn strike(&mut self, world: &mut World, kind: Kind) {
        match kind {
            Kind::Crash => {
                let (node, down) = (self.node(world), self.downtime());
                world.crash(&node, Some(down));
            }
            Kind::Trap => self.trap(world),
            Kind::PowerFailure => self.power_failure(world),
            Kind::Isolate => {
                let host = self.host(world);
                self.part(world, &[host], PARTITION_S);
            }
            Kind::Split => {
                let mut hosts = world.hosts();
                hosts.shuffle(&mut self.rng);
                hosts.truncate(hosts.len() / 2);
                self.part(world, &hosts, PARTITION_S);
            }
            Kind::Depose => self.depose(world),
            Kind::OneWay => self.one_way(world),
            Kind::SlowLink => {
                let (one, other) = (self.host(world), self.host(world));
                if one != other {
                    let (a, b) = (one.clone().min(other.clone()), one.max(other));
                    let latency = Duration::from_millis(self.rng.random_range(50..400));
                    world.set_latency_max(&a, &b, latency);
                    self.after(world, 1.0..8.0, Ending::SlowLink(a, b));
                }
            }
            Kind::Storm => {
                let (loss, duplication) = (self.rng.random_range(0.0..0.3), self.rng.random_range(0.0..0.3));
                let host = self.host(world);
                world.change(&host, |condition| {
                    condition.weather = Weather { loss, duplication, ..condition.weather };
                });
                self.after(world, 1.0..6.0, Ending::Storm(host));
            }
            Kind::ThinLink => {
                let host = self.host(world);
                let bytes_per_s = Some(self.rng.random_range(8_000..100_000));
                world.change(&host, |condition| condition.weather.bytes_per_s = bytes_per_s);
                self.after(world, 1.0..8.0, Ending::ThinLink(host));
            }
            Kind::SlowDisk => {
                let (node, factor) = (self.node(world), self.rng.random_range(5.0..150.0));
                world.change(&node, |condition| condition.slow_disk = factor);
                self.after(world, 1.0..8.0, Ending::SlowDisk(node));
            }
            Kind::SlowCompute => {
                let (node, factor) = (self.worker(world), self.rng.random_range(5.0..200.0));
                world.change(&node, |condition| condition.slow_compute = factor);
                self.after(world, 1.0..5.0, Ending::SlowCompute(node));
            }
            Kind::Panic => {
                let node = self.worker(world);
                world.change(&node, |condition| condition.panics += 1);
            }
            Kind::Skew => {
                let (host, skew) = (self.host(world), self.rng.random_range(-600_000..600_000));
                world.change(&host, |condition| condition.skew_ms = skew);
            }
            Kind::FailDisk => {
                let rate = [0.3, 0.03, 0.003].choose(&mut self.rng).copied().unwrap_or_default();
                let (read, write) = (self.rng.random_bool(0.3), self.rng.random_bool(0.7));
                let fault = |fails| if fails { rate } else { 0.0 };
                let (fail_read, fail_write) = (fault(read), fault(write));
                let node = self.node(world);
                world.change_disk(&node, |faults| *faults = DiskFaults { fail_read, fail_write, ..*faults });
                self.after(world, 0.2..4.0, Ending::FailDisk(node));
            }
            Kind::FullDisk => {
                let node = self.node(world);
                world.change_disk(&node, |faults| faults.full = true);
                self.after(world, 0.2..4.0, Ending::FullDisk(node));
            }
            Kind::Flip => {
                let node = self.node(world);
                let shape = world.shape_of(&node);
                if shape.coordinator {
                    // A worker that shares a process with a lost coordinator would be lost with it.
                    if shape.worker || !self.doomed.contains(&node) {
                        return;
                    }
                    self.lost.insert(node.clone());
                }
                let flip = [0.5, 0.05, 0.005].choose(&mut self.rng).copied().unwrap_or_default();
                world.change_disk(&node, |faults| faults.flip = flip);
                // What starts reads everything that it has.
                if self.rng.random() {
                    world.crash(&node, Some(Duration::from_millis(200)));
                }
                self.after(world, 0.5..5.0, Ending::Flip(node));
            }
            Kind::Wipe => self.wipe(world),
            Kind::Empty => self.empty(world),
        }
    }

    /// A machine that joins may be slow at first, with all that it has to fetch.
    fn start_slowly(&mut self, world: &World, node: String) {
        if self.rng.random_bool(0.9) {
            let factor = self.rng.random_range(50.0..300.0);
            world.change(&node, |condition| condition.slow_compute = factor);
            self.after(world, 4.0..10.0, Ending::SlowCompute(node));
        }
    }

    fn trap(&mut self, world: &mut World) {
        let node = self.node(world);
        let moment = [Moment::Before, Moment::During, Moment::After];
        let moment = moment.choose(&mut self.rng).copied().unwrap_or(Moment::Before);
        let (counted, within) = match self.rng.random_range(0..10) {
            0..6 => (Counted::Writes, 40),
            6 => (Counted::Reads, 100),
            7..9 => (Counted::Sent, 400),
            _ => (Counted::Received, 400),
        };
        let after = self.rng.random_range(0..within);
        world.set_trap(&node, Some(Trap { after, moment, counted }));
    }

    fn power_failure(&mut self, world: &mut World) {
        let everyone = self.rng.random_bool(0.5);
        let strikes = |node: &&str| everyone || world.shape_of(node).coordinator;
        let nodes: Vec<String> = world.nodes().filter(strikes).map(str::to_owned).collect();
        for node in nodes {
            let down = Duration::from_secs_f64(self.rng.random_range(0.1..3.0));
            world.crash(&node, Some(down));
        }
    }

    /// Parts some hosts from all others, for a while.
    fn part(&mut self, world: &World, side: &[String], seconds: Range<f64>) {
        let until = self.end_of_partition(world, seconds);
        let others: Vec<String> = world.hosts().into_iter().filter(|host| !side.contains(host)).collect();
        let between = side.iter().flat_map(|a| others.iter().map(move |b| (a, b)));
        let ways = between.flat_map(|(a, b)| [(a.clone(), b.clone()), (b.clone(), a.clone())]);
        self.cut(world, until, ways.collect());
    }

    fn end_of_partition(&mut self, world: &World, seconds: Range<f64>) -> Duration {
        world.elapsed() + Duration::from_secs_f64(self.rng.random_range(seconds))
    }

    fn cut(&mut self, world: &World, until: Duration, ways: Vec<Way>) {
        let (id, cut) = self.cuts.begin(ways);
        cut.iter().for_each(|(from, to)| world.cut(from, to));
        self.ends.push((until, Ending::Partition(id)));
    }

    /// Parts the leader, as many voters as are too few to elect another, all coordinators that do not vote,
    /// the readers, and half of the other clients from the rest. So long that the rest elects another leader
    /// and changes something: those who still know of no other than the old one then read from it.
    fn depose(&mut self, world: &World) {
        let Some(leader) = world.leader() else { return };
        let voters = world.voters();
        let mut others: Vec<String> = voters.iter().filter(|name| **name != leader).cloned().collect();
        others.shuffle(&mut self.rng);
        others.truncate((others.len() / 2).saturating_sub(1));
        let outside =
            world.nodes().filter(|name| world.shape_of(name).coordinator && !voters.contains(*name));
        let outside: Vec<String> = outside.map(str::to_owned).collect();
        let clients: Vec<String> = world.clients().map(str::to_owned).collect();
        let with = clients.into_iter().filter(|name| self.rng.random_bool(0.5) || name.starts_with("reader"));
        let with: Vec<String> = with.collect();
        let side: Vec<String> = [leader].into_iter().chain(others).chain(outside).chain(with).collect();
        self.part(world, &side, 3.0..8.0);
    }

    fn one_way(&mut self, world: &World) {
        let (from, toward) = (self.host(world), self.rng.random_bool(0.5));
        let until = self.end_of_partition(world, PARTITION_S);
        let mut others = world.hosts();
        others.retain(|other| *other != from && self.rng.random_bool(0.5));
        let way = |other: String| if toward { (from.clone(), other) } else { (other, from.clone()) };
        self.cut(world, until, others.into_iter().map(way).collect());
    }

    /// Takes a coordinator's databases or its whole folder. Before it knows its cluster it has nothing to
    /// forget.
    fn wipe(&mut self, world: &mut World) {
        let doomed: Vec<String> = self.doomed.iter().cloned().collect();
        let Some(node) = doomed.choose(&mut self.rng).cloned() else { return };
        if !belongs(world, &node) || self.wiped.contains(&node) {
            return;
        }
        world.crash(&node, None);
        // A worker of a new identity has to wait until its old one is out.
        let whole = self.rng.random_bool(0.4) && !world.shape_of(&node).worker;
        world.wipe(&node, if whole { Loss::Folder } else { Loss::Databases });
        self.lost.insert(node.clone());
        self.wiped.insert(node.clone());
        world.restart(&node);
    }

    /// Takes a worker's whole folder. It comes back under the same name as another node, which may take its
    /// own place only once the cluster has declared it out; for that at least half of the workers must be
    /// heard. So it strikes one worker alone, and none that has to be heard for another.
    fn empty(&mut self, world: &mut World) {
        let workers: Vec<String> =
            world.nodes().filter(|name| world.shape_of(name).worker).map(str::to_owned).collect();
        let alone: Vec<&String> = workers.iter().filter(|name| !world.shape_of(name).coordinator).collect();
        let Some(node) = alone.choose(&mut self.rng).map(|name| (*name).clone()) else { return };
        if workers.len() < 2 || self.emptied.is_some() || !belongs(world, &node) {
            return;
        }
        world.crash(&node, None);
        world.empty(&node);
        self.emptied = Some(node.clone());
        world.restart(&node);
    }
}

/// Whether a node has heard of its cluster, as what it keeps says.
fn belongs(world: &World, node: &str) -> bool {
    let identity = world.disk(node).small("identity.toml").unwrap_or_default();
    String::from_utf8_lossy(&identity).contains("cluster")
}

/// A time until something that comes once in `mean`.
pub fn exponential(rng: &mut StdRng, mean: Duration) -> Duration {
    let share: f64 = rng.random_range(f64::EPSILON..1.0);
    mean.mul_f64(-share.ln())
}
