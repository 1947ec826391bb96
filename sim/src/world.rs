//! A cluster from an ordinary cluster config, on simulated hosts, and faults upon it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use roost_client::certs::{Authority, Pem, Validity};
use roost_client::{Client, ClientConfig, ClientEnvironment, CredentialsSource};
use roost_node::config::{ClusterConfig, NodeEntry};
use roost_node::environment::Entropy;
use roost_node::{Node, NodeConfig, start};
use roost_protocol::quic::{Credentials, PeerIdentity, Role};
use roost_protocol::{ClusterName, NodeName, Tenant};
use turmoil::Sim;

use crate::disk::SimDisk;
use crate::environment::{BEGIN, SimClock, SimEntropy, environment};
use crate::network::{SimNetwork, Weather};
use crate::trace;

/// The step of virtual time.
const TICK: Duration = Duration::from_millis(1);
/// Packets that a host has not taken yet. Turmoil drops more, as a kernel would.
const UDP_PACKETS_MAX: usize = 4096;
/// Certificates outlast every simulation.
const VALIDITY: Validity = Validity { since_epoch: BEGIN, lasts: Duration::from_secs(86_400) };
/// The cluster's name.
const CLUSTER: &str = "sim";
/// The host that clients run on.
const CLIENT: &str = "client";

/// How large a world is, and how its network fares.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Coordinators: one, three or five.
    pub coordinators: usize,
    /// Workers.
    pub workers: usize,
    /// Loss and duplication.
    pub weather: Weather,
}

/// A simulated cluster.
pub struct World {
    sim: Sim<'static>,
    seed: u64,
    disks: BTreeMap<String, SimDisk>,
    shared: Arc<Shared>,
    crashes: u64,
}

/// What the hosts of a world share.
struct Shared {
    seed: u64,
    weather: Weather,
    config: Arc<ClusterConfig>,
    certificates: BTreeMap<String, Pem>,
    ca: String,
}

impl World {
    /// Hosts that start their nodes at once. To be called inside [`crate::entropy::seeded`].
    ///
    /// # Panics
    /// When the config or the certificates cannot be made, which are fixed.
    pub fn new(seed: u64, size: Size) -> Self {
        let sim = turmoil::Builder::new()
            .rng_seed(seed)
            .epoch(std::time::UNIX_EPOCH + BEGIN)
            .tick_duration(TICK)
            .simulation_duration(Duration::from_secs(3600))
            .min_message_latency(Duration::from_millis(1))
            .max_message_latency(Duration::from_millis(5))
            .udp_capacity(UDP_PACKETS_MAX)
            .enable_random_order()
            .build();
        let shared = Arc::new(Shared::new(seed, size));
        let mut world = Self { sim, seed, disks: BTreeMap::new(), shared, crashes: 0 };
        for node in &world.shared.config.nodes {
            let (name, disk) = (node.name.clone(), SimDisk::default());
            world.disks.insert(name.to_string(), disk.clone());
            let shared = world.shared.clone();
            let boots = std::cell::Cell::new(0);
            world.sim.host(name.as_str().to_owned(), move || {
                boots.set(boots.get() + 1);
                let boot = Boot {
                    shared: shared.clone(),
                    name: name.clone(),
                    disk: disk.clone(),
                    boot: boots.get(),
                };
                boot.run()
            });
        }
        world
    }

    /// Runs a client's story on a host of its own.
    pub fn client<F>(&mut self, story: impl FnOnce(Client) -> F + 'static)
    where
        F: Future<Output = turmoil::Result> + 'static,
    {
        let shared = self.shared.clone();
        self.sim.client(CLIENT, async move {
            let client = shared.connect(1).await?;
            story(client).await
        });
    }

    /// One tick. Returns whether the client's story has ended.
    ///
    /// # Panics
    /// When the story fails, a host panics, or `within` has passed since the beginning; it says the seed.
    pub fn step(&mut self, within: Duration) -> bool {
        let (seed, at) = (self.seed, self.sim.elapsed());
        assert!(at < within, "seed {seed}: the story has not ended within {within:?}");
        self.sim.step().unwrap_or_else(|error| panic!("seed {seed}: at {at:?}: {error}"))
    }

    /// Virtual time since the beginning.
    pub fn elapsed(&self) -> Duration {
        self.sim.elapsed()
    }

    /// Kills a node: its disk is cut off first, so that nothing that its end writes is kept.
    pub fn crash(&mut self, name: &str) {
        self.crashes += 1;
        trace::line(format_args!("crash {name}"));
        self.disks[name].crash(self.seed ^ self.crashes);
        self.sim.crash(name);
    }

    /// Starts a node again.
    pub fn restart(&mut self, name: &str) {
        trace::line(format_args!("restart {name}"));
        self.sim.bounce(name);
    }
}

impl Shared {
    fn new(seed: u64, size: Size) -> Self {
        let mut text = format!("cluster = \"{CLUSTER}\"\n");
        let mut names = BTreeMap::new();
        for i in 1..=size.coordinators {
            // Writing to a string does not fail.
            let _ = write!(
                text,
                "[[node]]\nname = \"c{i}\"\nroles = [\"coordinator\"]\ncoordinator_address = \"c{i}:7401\"\n"
            );
            names.insert(format!("c{i}"), vec![Role::Coordinator]);
        }
        for i in 1..=size.workers {
            let _ =
                write!(text, "[[node]]\nname = \"w{i}\"\nroles = [\"worker\"]\naddress = \"w{i}:7400\"\n");
            names.insert(format!("w{i}"), vec![Role::Worker]);
        }
        names.insert(CLIENT.to_owned(), vec![Role::Client, Role::Operator]);
        let config = Arc::new(ClusterConfig::parse(&text).expect("the config is well-formed"));
        let cluster = ClusterName::new(CLUSTER).expect("a name");
        let authority = Authority::create(cluster.clone(), VALIDITY).expect("a CA is made");
        let issue = |(name, roles): (String, Vec<Role>)| {
            let roles: BTreeSet<Role> = roles.into_iter().collect();
            let identity =
                PeerIdentity { cluster: cluster.clone(), roles, name: Tenant::new(&name).expect("a name") };
            (name, authority.issue(&identity, VALIDITY, &[]).expect("a certificate is issued"))
        };
        let certificates = names.into_iter().map(issue).collect();
        let ca = authority.pem().certificate;
        Self { seed, weather: size.weather, config, certificates, ca }
    }

    fn credentials(&self, name: &str) -> Arc<Credentials> {
        let Pem { certificate, key } = &self.certificates[name];
        let (ca, clock) = (self.ca.as_bytes(), Arc::new(SimClock));
        let credentials = Credentials::from_pem(ca, certificate.as_bytes(), key.as_bytes(), clock);
        Arc::new(credentials.expect("certificates fit their CA"))
    }

    /// The seed of one life of a host.
    fn seed_of(&self, name: &str, boot: u64) -> u64 {
        let mut state = self.seed ^ xxhash_rust::xxh3::xxh3_64_with_seed(name.as_bytes(), boot);
        crate::entropy::split_mix(&mut state)
    }

    async fn connect(&self, boot: u64) -> Result<Client, Box<dyn std::error::Error>> {
        let nodes = self.config.nodes.iter();
        let address = |node: &NodeEntry| node.address.clone().or(node.coordinator_address.clone());
        let Pem { certificate, key } = self.certificates[CLIENT].clone();
        let (ca, certificate, key) = (self.ca.clone().into(), certificate.into(), key.into());
        let credentials = CredentialsSource::Pem { ca, certificate, key };
        let mut config = ClientConfig::new(nodes.filter_map(address), credentials);
        config.bind = format!("{CLIENT}:0");
        let seed = self.seed_of(CLIENT, boot);
        let entropy: &dyn Entropy = &SimEntropy::new(seed);
        let environment = ClientEnvironment {
            network: Arc::new(SimNetwork::new(self.weather, seed)),
            clock: Arc::new(SimClock),
            seed: entropy.seed(),
        };
        Ok(Client::with(environment, config).await?)
    }
}

/// One life of a node.
struct Boot {
    shared: Arc<Shared>,
    name: NodeName,
    disk: SimDisk,
    boot: u64,
}

impl Boot {
    async fn run(self) -> turmoil::Result {
        let Self { shared, name, disk, boot } = self;
        let environment = environment(shared.seed_of(name.as_str(), boot), &disk, shared.weather);
        let config = NodeConfig {
            cluster: shared.config.clone(),
            name: name.clone(),
            credentials: shared.credentials(name.as_str()),
        };
        let mut node: Node = start(config, environment).await?;
        trace::line(format_args!("{name} started as node {}", node.id()));
        node.ended().await;
        Err(format!("all roles of {name} have ended").into())
    }
}
