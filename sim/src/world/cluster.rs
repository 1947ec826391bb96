//! The cluster config, the certificates and the clients of a world.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use roost_client::certs::{Authority, Pem, Validity};
use roost_client::{Client, ClientConfig, ClientEnvironment, CredentialsSource};
use roost_node::config::{ClusterConfig, NodeEntry};
use roost_node::environment::Entropy;
use roost_protocol::quic::{Credentials, PeerIdentity, Role};
use roost_protocol::{ClusterName, Tenant};

use crate::condition::Conditions;
use crate::environment::{BEGIN, SimClock, SimEntropy};
use crate::network::SimNetwork;

/// The cluster's name.
const CLUSTER: &str = "sim";
/// Certificates are valid on every host, however far its clock is off.
const DAY: Duration = Duration::from_secs(86_400);

/// How large a world is, and what its nodes are.
#[derive(Debug, Clone, PartialEq)]
pub struct Shape {
    /// The nodes.
    pub nodes: Vec<NodeShape>,
    /// The clients' names.
    pub clients: Vec<String>,
    /// The section `[coordinator]` of the cluster config.
    pub coordinator: String,
    /// The section `[worker]`.
    pub worker: String,
    /// The step of virtual time. Packets arrive at its ends.
    pub tick: Duration,
    /// The shortest way of a packet.
    pub latency_min: Duration,
    /// The longest, between hosts that are far from each other.
    pub latency_max: Duration,
}

/// A node of a world.
#[derive(Debug, Clone, PartialEq)]
pub struct NodeShape {
    /// Its name.
    pub name: String,
    /// Whether it is a coordinator.
    pub coordinator: bool,
    /// Whether it is there from the beginning.
    pub place: Place,
    /// Whether it is a worker.
    pub worker: bool,
    /// Where it stands.
    pub zone: String,
    /// Its speed.
    pub speed: f64,
    /// When it is started first.
    pub starts_after: Duration,
}

/// Whether a node is there from the beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It stands in every config.
    Founder,
    /// A coordinator that came to the config when the group was there already: an administrator may take it
    /// in.
    Spare,
}

/// Which config a node has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Knows {
    /// That of the founders: all coordinators of it form the group.
    Founders,
    /// That with everyone.
    Everyone,
}

impl NodeShape {
    /// A founder that is a coordinator alone, and starts at once.
    pub fn coordinator(name: String) -> Self {
        let (zone, starts_after) = (String::new(), Duration::ZERO);
        Self { name, coordinator: true, worker: false, place: Place::Founder, zone, speed: 1.0, starts_after }
    }

    /// A founder that is a worker alone, and starts at once.
    pub fn worker(name: String) -> Self {
        Self { coordinator: false, worker: true, ..Self::coordinator(name) }
    }

    /// Where it is reached as a coordinator.
    pub fn coordinator_address(&self) -> String {
        format!("{}:7401", self.name)
    }

    /// Which config it has: nobody waits for spares when the group is formed.
    pub(super) fn knows(&self) -> Knows {
        match self.place {
            Place::Founder if self.coordinator => Knows::Founders,
            Place::Founder | Place::Spare => Knows::Everyone,
        }
    }
}

impl Shape {
    /// Nodes of one role each, a client, and a network that is quick and does no harm.
    pub fn plain(coordinators: usize, workers: usize) -> Self {
        let coordinator = |i| NodeShape::coordinator(format!("c{i}"));
        let worker = |i| NodeShape::worker(format!("w{i}"));
        Self {
            nodes: (1..=coordinators).map(coordinator).chain((1..=workers).map(worker)).collect(),
            clients: vec!["client".to_owned()],
            coordinator: String::new(),
            worker: String::new(),
            tick: Duration::from_millis(1),
            latency_min: Duration::from_millis(1),
            latency_max: Duration::from_millis(5),
        }
    }
}

/// What the hosts of a world share.
pub(super) struct Cluster {
    seed: u64,
    /// With all nodes.
    pub(super) config: Arc<ClusterConfig>,
    /// Without the spares.
    founders: Arc<ClusterConfig>,
    certificates: BTreeMap<String, Pem>,
    ca: String,
}

impl Cluster {
    pub(super) fn new(seed: u64, shape: &Shape) -> Self {
        let mut text = format!(
            "cluster = \"{CLUSTER}\"\n[coordinator]\n{}\n[worker]\n{}\n",
            shape.coordinator, shape.worker
        );
        let mut founders = text.clone();
        let mut names = BTreeMap::new();
        for node in &shape.nodes {
            if node.place == Place::Founder {
                write_node(&mut founders, node);
            }
            names.insert(node.name.clone(), write_node(&mut text, node));
        }
        for client in &shape.clients {
            names.insert(client.clone(), [Role::Client, Role::Operator].into());
        }
        let parse = |text: &str| Arc::new(ClusterConfig::parse(text).expect("the config is well-formed"));
        let (config, founders) = (parse(&text), parse(&founders));
        let cluster = ClusterName::new(CLUSTER).expect("a name");
        let validity = Validity { since_epoch: BEGIN - DAY, lasts: 3 * DAY };
        let authority = Authority::create(cluster.clone(), validity).expect("a CA is made");
        let issue = |(name, roles): (String, BTreeSet<Role>)| {
            let identity =
                PeerIdentity { cluster: cluster.clone(), roles, name: Tenant::new(&name).expect("a name") };
            (name, authority.issue(&identity, validity, &[]).expect("a certificate is issued"))
        };
        let certificates = names.into_iter().map(issue).collect();
        let ca = authority.pem().certificate;
        Self { seed, config, founders, certificates, ca }
    }

    pub(super) fn config_of(&self, knows: Knows) -> Arc<ClusterConfig> {
        match knows {
            Knows::Founders => self.founders.clone(),
            Knows::Everyone => self.config.clone(),
        }
    }

    pub(super) fn credentials(&self, name: &str, conditions: &Conditions) -> Arc<Credentials> {
        let Pem { certificate, key } = &self.certificates[name];
        let (ca, clock) = (self.ca.as_bytes(), Arc::new(SimClock(conditions.clone())));
        let credentials = Credentials::from_pem(ca, certificate.as_bytes(), key.as_bytes(), clock);
        Arc::new(credentials.expect("certificates fit their CA"))
    }

    /// The seed of one life of a host.
    pub(super) fn seed_of(&self, name: &str, boot: u64) -> u64 {
        let mut state = self.seed ^ xxhash_rust::xxh3::xxh3_64(name.as_bytes());
        // Not as xxh3's seed: of names as short as `op2` and `op3`, it makes one number of neighbours.
        let mut of_boot = crate::entropy::split_mix(&mut state) ^ boot;
        crate::entropy::split_mix(&mut of_boot)
    }
}

/// Writes a node's entry of the config; returns the roles that its certificate needs.
fn write_node(text: &mut String, node: &NodeShape) -> BTreeSet<Role> {
    let NodeShape { name, zone, .. } = node;
    let mut roles = BTreeSet::new();
    let (mut named, mut addresses) = (Vec::new(), String::new());
    if node.coordinator {
        roles.insert(Role::Coordinator);
        named.push("\"coordinator\"");
        addresses += &format!("coordinator_address = \"{}\"\n", node.coordinator_address());
    }
    if node.worker {
        roles.insert(Role::Worker);
        named.push("\"worker\"");
        addresses += &format!("address = \"{name}:7400\"\n");
    }
    let named = named.join(", ");
    // Writing to a string does not fail.
    let _ = write!(text, "[[node]]\nname = \"{name}\"\nroles = [{named}]\nzone = \"{zone}\"\n{addresses}");
    roles
}

/// Makes clients on one host.
#[derive(Clone)]
pub struct Connector {
    cluster: Arc<Cluster>,
    name: String,
    conditions: Conditions,
}

impl Connector {
    pub(super) fn new(cluster: Arc<Cluster>, name: &str, conditions: Conditions) -> Self {
        Self { cluster, name: name.to_owned(), conditions }
    }

    /// The host's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A seed of the host's own.
    pub fn seed(&self) -> u64 {
        self.cluster.seed_of(&self.name, 0)
    }

    /// A client that knows every node.
    ///
    /// # Errors
    /// When no node gives it a view in time.
    pub async fn connect(&self, attempt: u64) -> Result<Client, Box<dyn std::error::Error>> {
        let Cluster { config, certificates, ca, .. } = &*self.cluster;
        let address = |node: &NodeEntry| node.address.clone().or(node.coordinator_address.clone());
        let seeds = config.nodes.iter().filter_map(address);
        let Pem { certificate, key } = certificates[&self.name].clone();
        let (ca, certificate, key) = (ca.clone().into(), certificate.into(), key.into());
        let mut client = ClientConfig::new(seeds, CredentialsSource::Pem { ca, certificate, key });
        client.bind = format!("{}:0", self.name);
        let seed = self.cluster.seed_of(&self.name, attempt);
        let entropy: &dyn Entropy = &SimEntropy::new(seed);
        let environment = ClientEnvironment {
            network: Arc::new(SimNetwork::new(None, self.conditions.clone(), seed)),
            clock: Arc::new(SimClock(self.conditions.clone())),
            seed: entropy.seed(),
        };
        Ok(Client::with(environment, client).await?)
    }
}
