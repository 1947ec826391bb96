//! A cluster from an ordinary cluster config, on simulated hosts, and what can be done to it.
//!
//! The world steps virtual time, tears down processes that died, and starts them again as a service manager
//! would. What is to be done to whom is decided elsewhere, in [`crate::faults`].

mod cluster;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roost_client::Client;
use roost_node::config::ClusterConfig;
use roost_node::{Node, NodeConfig, start};
use roost_protocol::NodeName;
use turmoil::Sim;

use self::cluster::{Cluster, Knows};
use crate::condition::{Condition, Conditions};
use crate::disk::{Casualties, DiskFaults, SimDisk, Trap};
use crate::environment::{BEGIN, environment};
use crate::facts::{Fact, Loss, Witness};
use crate::trace;

pub use self::cluster::{Connector, NodeShape, Place, Shape};

/// Packets that a host has not taken yet. Turmoil drops more, as a kernel would.
const UDP_PACKETS_MAX: usize = 4096;
/// The longest that a simulation may take. Runs end by themselves long before.
const LONGEST: Duration = Duration::from_secs(24 * 3600);
/// After how long a process that ended by itself is started again.
const SERVICE_RESTART: Duration = Duration::from_secs(1);

/// A simulated cluster.
pub struct World {
    sim: Sim<'static>,
    cluster: Arc<Cluster>,
    nodes: BTreeMap<String, Host>,
    clients: BTreeMap<String, Conditions>,
    /// The shortest way of a packet, and the longest where nothing else is said.
    latency: (Duration, Duration),
    /// The longest between two hosts, in the order of their names.
    latency_max: BTreeMap<(String, String), Duration>,
    casualties: Casualties,
    witness: Witness,
}

/// A host of a node.
struct Host {
    shape: NodeShape,
    disk: SimDisk,
    conditions: Conditions,
    up: bool,
    /// When it is started again, while it is down.
    restart: Option<Duration>,
}

impl World {
    /// Hosts that start their nodes. To be called inside [`crate::entropy::seeded`].
    ///
    /// # Panics
    /// When the config or the certificates cannot be made, which are fixed.
    pub fn new(seed: u64, shape: &Shape, witness: Witness) -> Self {
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(std::time::UNIX_EPOCH + BEGIN)
            .tick_duration(shape.tick)
            .simulation_duration(LONGEST)
            .min_message_latency(shape.latency_min)
            .max_message_latency(shape.latency_max)
            .udp_capacity(UDP_PACKETS_MAX)
            .enable_random_order()
            .build();
        let cluster = Arc::new(Cluster::new(seed, shape));
        let casualties = Casualties::default();
        let (nodes, clients, latency_max) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        let latency = (shape.latency_min, shape.latency_max);
        let mut world = Self { sim, cluster, nodes, clients, latency, latency_max, casualties, witness };
        for node in &shape.nodes {
            world.add(node);
        }
        world
    }

    fn add(&mut self, shape: &NodeShape) {
        let name = shape.name.clone();
        let tally = self.witness.tally();
        let disk = SimDisk::new(&name, self.cluster.seed_of(&name, 0), self.casualties.clone());
        let disk = disk.counted_by(tally.clone());
        let conditions = Conditions::counted_by(tally);
        let (cluster, casualties) = (self.cluster.clone(), self.casualties.clone());
        let (given_disk, given_conditions) = (disk.clone(), conditions.clone());
        let (speed, knows) = (shape.speed, shape.knows());
        let (witness, boots) = (self.witness.clone(), Rc::new(Cell::new(0)));
        self.sim.host(name.clone(), move || {
            boots.set(boots.get() + 1);
            let boot = Boot {
                cluster: cluster.clone(),
                name: name.clone(),
                disk: given_disk.clone(),
                conditions: given_conditions.clone(),
                speed,
                knows,
                boot: boots.get(),
                casualties: casualties.clone(),
                witness: witness.clone(),
            };
            boot.run()
        });
        let mut host = Host { shape: shape.clone(), disk, conditions, up: true, restart: None };
        if shape.starts_after > Duration::ZERO {
            trace::deaf(|| self.sim.crash(shape.name.as_str()));
            (host.up, host.restart) = (false, Some(shape.starts_after));
        }
        self.nodes.insert(shape.name.clone(), host);
    }

    /// Runs a client's story on a host of its own.
    pub fn client<F>(&mut self, name: &str, story: impl FnOnce(Connector) -> F + 'static)
    where
        F: Future<Output = turmoil::Result> + 'static,
    {
        let conditions = Conditions::counted_by(self.witness.tally());
        self.clients.insert(name.to_owned(), conditions.clone());
        let connector = Connector::new(self.cluster.clone(), name, conditions);
        self.sim.client(name.to_owned(), async move { story(connector).await });
    }

    /// One tick. Returns whether all clients' stories have ended.
    ///
    /// # Errors
    /// What a story failed with.
    pub fn step(&mut self) -> Result<bool, Box<dyn std::error::Error>> {
        trace::set_now(self.sim.elapsed());
        for name in self.casualties.take() {
            self.tear_down(&name, Some(SERVICE_RESTART));
        }
        let now = self.sim.elapsed();
        let due = |host: &Host| host.restart.is_some_and(|at| at <= now);
        let due: Vec<String> =
            self.nodes.iter().filter(|(_, host)| due(host)).map(|(name, _)| name.clone()).collect();
        for name in due {
            self.restart(&name);
        }
        self.sim.step()
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// The cluster config.
    pub fn config(&self) -> &ClusterConfig {
        &self.cluster.config
    }

    /// The names of the nodes.
    pub fn nodes(&self) -> impl Iterator<Item = &str> {
        self.nodes.keys().map(String::as_str)
    }

    /// The names of the clients.
    pub fn clients(&self) -> impl Iterator<Item = &str> {
        self.clients.keys().map(String::as_str)
    }

    /// The coordinator that began to lead last, while it runs.
    pub fn leader(&self) -> Option<String> {
        self.witness.leader().filter(|leader| self.nodes.get(leader).is_some_and(|host| host.up))
    }

    /// The coordinators that vote.
    pub fn voters(&self) -> BTreeSet<String> {
        self.witness.voters()
    }

    /// What a node is.
    pub fn shape_of(&self, node: &str) -> &NodeShape {
        &self.nodes[node].shape
    }

    /// Whether a node's process runs.
    pub fn is_up(&self, node: &str) -> bool {
        self.nodes[node].up
    }

    /// Whether a node's process gave a version or a role up.
    pub fn gave_up(&self, node: &str) -> bool {
        self.witness.gave_up(node)
    }

    /// A node's disk.
    pub fn disk(&self, node: &str) -> &SimDisk {
        &self.nodes[node].disk
    }

    /// Kills a node: its disk and network are cut off first, so that nothing that its end writes is kept.
    /// `down` says for how long; `None` until [`World::restart`].
    pub fn crash(&mut self, node: &str, down: Option<Duration>) {
        if !self.nodes[node].up {
            return;
        }
        trace::line(format_args!("crash {node}"));
        self.nodes[node].disk.crash();
        // It may be dead already, and must not be torn down again once it has been started.
        self.casualties.remove(node);
        self.tear_down(node, down);
    }

    /// Starts a node again.
    pub fn restart(&mut self, node: &str) {
        let Some(host) = self.nodes.get_mut(node).filter(|host| !host.up) else { return };
        trace::line(format_args!("start {node}"));
        (host.up, host.restart) = (true, None);
        self.sim.bounce(node);
    }

    /// Takes data of a coordinator that is down.
    pub fn wipe(&mut self, node: &str, loss: Loss) {
        let host = &self.nodes[node];
        assert!(!host.up, "{node} runs");
        trace::line(format_args!("wipe {node}: {loss:?}"));
        match loss {
            Loss::Databases => host.disk.wipe_databases(),
            Loss::Folder => host.disk.wipe(),
        }
        self.witness.tell_of(node, &Fact::Wiped(loss));
    }

    /// Takes all data of a worker that is down.
    pub fn empty(&mut self, node: &str) {
        let host = &self.nodes[node];
        assert!(!host.up, "{node} runs");
        trace::line(format_args!("empty {node}"));
        host.disk.wipe();
        self.witness.tell_of(node, &Fact::Emptied);
    }

    /// Changes the condition of a host, be it a node's or a client's.
    pub fn change(&self, host: &str, change: impl FnOnce(&mut Condition)) {
        let node = self.nodes.get(host).map(|host| &host.conditions);
        if let Some(conditions) = node.or_else(|| self.clients.get(host)) {
            conditions.change(change);
            trace::line(format_args!("{host} is in {:?}", conditions.now()));
        }
    }

    /// Changes what goes wrong on a node's disk.
    pub fn change_disk(&self, node: &str, change: impl FnOnce(&mut DiskFaults)) {
        let faults = self.nodes[node].disk.change_faults(change);
        trace::line(format_args!("the disk of {node} has {faults:?}"));
    }

    /// Kills a node's process at an operation to come.
    pub fn set_trap(&self, node: &str, trap: Option<Trap>) {
        trace::line(format_args!("{node} has {trap:?}"));
        self.nodes[node].disk.set_trap(trap);
    }

    /// Lets nothing pass from one host to another.
    pub fn cut(&self, from: &str, to: &str) {
        trace::line(format_args!("cut the way from {from} to {to}"));
        self.sim.partition_oneway(from, to);
    }

    /// Lets everything pass from one host to another again.
    pub fn open(&self, from: &str, to: &str) {
        trace::line(format_args!("open the way from {from} to {to}"));
        self.sim.repair_oneway(from, to);
    }

    /// Draws for each pair of hosts how long a packet between them takes at most: as long as the shape says,
    /// or less.
    pub fn draw_latencies(&mut self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed ^ 0x1a7e_9c1e_5000_0001);
        let (hosts, (shortest, longest)) = (self.hosts(), self.latency);
        for (i, a) in hosts.iter().enumerate() {
            for b in &hosts[i + 1..] {
                let latency = shortest + (longest - shortest).mul_f64(rng.random_range(0.1..1.0));
                self.latency_max.insert((a.clone(), b.clone()), latency);
                self.restore_latency(a, b);
            }
        }
    }

    /// Sets the longest latency between two hosts.
    pub fn set_latency_max(&self, a: &str, b: &str, latency: Duration) {
        trace::line(format_args!("latency of {a} and {b} is up to {latency:?}"));
        self.sim.set_link_max_message_latency(a, b, latency);
    }

    /// Sets the longest latency between two hosts, in the order of their names, back to what is usual there.
    pub fn restore_latency(&self, a: &str, b: &str) {
        let usual = self.latency_max.get(&(a.to_owned(), b.to_owned()));
        self.set_latency_max(a, b, usual.copied().unwrap_or(self.latency.1));
    }

    /// The hosts: nodes and clients.
    pub fn hosts(&self) -> Vec<String> {
        let hosts: BTreeSet<&str> = self.nodes().chain(self.clients()).collect();
        hosts.into_iter().map(str::to_owned).collect()
    }

    fn tear_down(&mut self, node: &str, down: Option<Duration>) {
        let now = self.sim.elapsed();
        let Some(host) = self.nodes.get_mut(node).filter(|host| host.up) else { return };
        host.up = false;
        host.restart = down.map(|down| now + down);
        trace::deaf(|| self.sim.crash(node));
        self.witness.tell_of(node, &Fact::Died);
    }
}

/// One life of a node.
struct Boot {
    cluster: Arc<Cluster>,
    name: String,
    disk: SimDisk,
    conditions: Conditions,
    speed: f64,
    knows: Knows,
    boot: u64,
    casualties: Casualties,
    witness: Witness,
}

impl Boot {
    async fn run(self) -> turmoil::Result {
        let Self { cluster, name, disk, conditions, speed, knows, boot, casualties, witness } = self;
        witness.tell(Fact::Started);
        let seed = cluster.seed_of(&name, boot);
        let environment = environment(seed, disk.life(), &conditions, speed, &witness);
        let config = NodeConfig {
            cluster: cluster.config_of(knows),
            name: NodeName::new(&name)?,
            credentials: cluster.credentials(&name, &conditions),
        };
        match start(config, environment).await {
            Ok(node) => {
                let mut node: Node = node;
                trace::line(format_args!("started as node {}", node.id()));
                node.ended().await;
                trace::line(format_args!("all its roles have ended"));
            }
            Err(error) => trace::line(format_args!("did not start: {error}")),
        }
        // The process ends. The world tears down what it left.
        disk.crash();
        casualties.add(&name);
        std::future::pending().await
    }
}

/// A client, once one can be had.
pub async fn connect(connector: &Connector) -> Client {
    let mut attempt = 0;
    loop {
        attempt += 1;
        match connector.connect(attempt).await {
            Ok(client) => return client,
            Err(error) => trace::line(format_args!("no client yet: {error}")),
        }
    }
}
