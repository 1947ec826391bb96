//! The cluster config: one file that names the nodes, what each does, and where.
//!
//! The same file serves all nodes; each is told its name. Paths are relative to the file's folder, and `{name}` in them
//! stands for the node's name. Unknown keys are refused. The coordinators that it lists form the group once; after that
//! the committed membership is the truth.

use std::collections::{BTreeMap, BTreeSet};
use std::num::{NonZeroU16, NonZeroU32};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use roost_protocol::quic::Role;
use roost_protocol::{ClusterName, NodeName};
use serde::Deserialize;

use crate::telemetry::TelemetryConfig;
use crate::worker::WorkerConfig;

/// A whole cluster, as its config file says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClusterConfig {
    /// The cluster's name, as in its certificates.
    pub cluster: ClusterName,
    /// Where certificates lie.
    #[serde(default)]
    pub tls: TlsConfig,
    /// The nodes.
    #[serde(rename = "node", default)]
    pub nodes: Vec<NodeEntry>,
    /// The pace of the group of coordinators.
    #[serde(default)]
    pub coordinator: CoordinatorOptions,
    /// The bounds of workers.
    #[serde(default)]
    pub worker: WorkerConfig,
    /// Logs and spans.
    #[serde(default)]
    pub telemetry: TelemetryConfig,
    /// Where ONNX Runtime lies.
    #[serde(default)]
    pub onnxruntime: OnnxRuntimeConfig,
    /// Where coordinators keep bundles.
    #[serde(default)]
    pub bundles: BundlesConfig,
}

/// The section `[coordinator]` of a config, which all coordinators should share.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CoordinatorOptions {
    /// How often, in ms, the leader is heard, from 10 to 1 000. Default 100, for machines within 50 ms of each other:
    /// what the leader sends must be answered within it, and another is elected after 3.5 to 14 times as long without
    /// it. Raising it slows elections.
    pub heartbeat_ms: NonZeroU16,
    /// Commands between two snapshots of the state, up to a million. Default 4096: replayed at a restart in well under
    /// a second. Raising it slows restarts.
    pub snapshot_entries: NonZeroU32,
}

/// Most coordinators of a config: five, and the two that a change of members may take in before others leave.
const COORDINATORS_MAX: usize = 7;
/// More often than an fsync takes, elections would be left to chance. More than a second is for groups whose round trip
/// is as long, and there a worker's report, which has 900 ms, would never be answered.
const HEARTBEAT_MS: RangeInclusive<u32> = 10..=1_000;
/// A longer log would take longer to replay than a snapshot saves.
const SNAPSHOT_ENTRIES: RangeInclusive<u32> = 1..=1_000_000;

fn bounded(key: &'static str, actual: u32, bounds: RangeInclusive<u32>) -> Result<(), ConfigError> {
    let (min, max) = bounds.clone().into_inner();
    if bounds.contains(&actual) { Ok(()) } else { Err(ConfigError::OutOfBounds { key, min, max, actual }) }
}

impl Default for CoordinatorOptions {
    fn default() -> Self {
        Self {
            heartbeat_ms: NonZeroU16::MIN.saturating_add(99),
            snapshot_entries: NonZeroU32::MIN.saturating_add(4_095),
        }
    }
}

/// Where coordinators keep bundles.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct BundlesConfig {
    /// An S3-compatible store. Default: none, and each coordinator keeps bundles in its data folder.
    pub s3: Option<S3Config>,
}

/// An S3-compatible store. Each coordinator keeps its own copies there, under `prefix/cluster/node`: a quorum holds a
/// bundle in the same sense as on disks, and none removes what another counts on.
///
/// Credentials come from where S3 clients look: `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`, or the machine's role.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct S3Config {
    /// The bucket. It must exist.
    pub bucket: String,
    /// `http://` or `https://` and the host, for a store other than Amazon's.
    pub endpoint: Option<String>,
    /// The region. Default `us-east-1`, which most other stores take.
    #[serde(default = "default_region")]
    pub region: String,
    /// What all keys begin with. Default: nothing.
    #[serde(default)]
    pub prefix: String,
}

fn default_region() -> String {
    "us-east-1".to_owned()
}

/// Where certificates lie.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TlsConfig {
    /// The CAs that peers are judged by. Default `certs/ca.pem`.
    pub ca: String,
    /// The node's certificate. Default `certs/{name}.pem`.
    pub certificate: String,
    /// Its key. Default `certs/{name}.key`.
    pub key: String,
}

impl Default for TlsConfig {
    fn default() -> Self {
        Self {
            ca: "certs/ca.pem".to_owned(),
            certificate: "certs/{name}.pem".to_owned(),
            key: "certs/{name}.key".to_owned(),
        }
    }
}

/// Where ONNX Runtime lies.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnnxRuntimeConfig {
    /// The library's file. Without it, the usual places are searched.
    pub library: Option<String>,
}

/// One node.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeEntry {
    /// Its name, as in its certificate.
    pub name: NodeName,
    /// What it does: `coordinator`, `worker`.
    pub roles: BTreeSet<ConfigRole>,
    /// `host:port` of its worker endpoint, as others reach it. Needed by workers.
    pub address: Option<String>,
    /// `host:port` of its coordinator endpoint, as others reach it. Needed by coordinators.
    pub coordinator_address: Option<String>,
    /// Its data folder. Default `data/{name}`.
    #[serde(default = "default_data")]
    pub data: String,
    /// Where it stands; replicas prefer different zones. Default: nowhere in particular.
    #[serde(default)]
    pub zone: String,
    /// Labels that a manifest may ask for.
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

fn default_data() -> String {
    "data/{name}".to_owned()
}

/// What a node does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ConfigRole {
    /// Takes part in Raft.
    Coordinator,
    /// Hosts versions.
    Worker,
}

impl ConfigRole {
    /// The role that a certificate must have for it.
    pub fn role(self) -> Role {
        match self {
            Self::Coordinator => Role::Coordinator,
            Self::Worker => Role::Worker,
        }
    }
}

/// Why a config is refused.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of another type.
    #[error("the cluster config: {0}")]
    Toml(#[from] toml::de::Error),
    /// A value out of its bounds.
    #[error("{key} is {actual}, it may be from {min} to {max}")]
    OutOfBounds {
        /// The key.
        key: &'static str,
        /// The least that it may be.
        min: u32,
        /// The most.
        max: u32,
        /// What it is.
        actual: u32,
    },
    /// Two nodes of one name.
    #[error("two nodes are named {0}; each node has a name of its own")]
    DuplicateName(NodeName),
    /// Two endpoints at one address.
    #[error("{0} is the address of two endpoints; each has one of its own")]
    DuplicateAddress(String),
    /// A node that does nothing.
    #[error("node {0} has no role; give it roles = [\"coordinator\"], [\"worker\"] or both")]
    NoRole(NodeName),
    /// A role without its address.
    #[error(
        "node {node} is a {role} and has no {key}; say where others reach it, as in {key} = \"10.0.0.1:{port}\""
    )]
    NoAddress {
        /// The node.
        node: NodeName,
        /// The role.
        role: Role,
        /// The key that is missing.
        key: &'static str,
        /// A port to suggest.
        port: u16,
    },
    /// An address without its role.
    #[error("node {node} has {key}, but is no {role}")]
    AddressWithoutRole {
        /// The node.
        node: NodeName,
        /// The key.
        key: &'static str,
        /// The role that it belongs to.
        role: Role,
    },
    /// No coordinator, or too many.
    #[error(
        "a config names one to {COORDINATORS_MAX} coordinators, this one {0}: name those that keep the cluster's state"
    )]
    Coordinators(usize),
    /// No node of that name.
    #[error("the config has no node named {name:?}; its nodes are {}", nodes.join(", "))]
    UnknownNode {
        /// The name.
        name: String,
        /// The names that there are.
        nodes: Vec<String>,
    },
}

impl ClusterConfig {
    /// Reads and checks a config.
    ///
    /// # Errors
    /// [`ConfigError`] when the text is not TOML, has an unknown key, or contradicts itself.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let config: Self = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    /// Reads and checks a config file.
    ///
    /// # Errors
    /// As [`ClusterConfig::parse`], and when the file cannot be read.
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
        Self::parse(&text)
    }

    fn check(&self) -> Result<(), ConfigError> {
        let CoordinatorOptions { heartbeat_ms, snapshot_entries } = self.coordinator;
        bounded("coordinator.heartbeat_ms", heartbeat_ms.get().into(), HEARTBEAT_MS)?;
        bounded("coordinator.snapshot_entries", snapshot_entries.get(), SNAPSHOT_ENTRIES)?;
        let (mut names, mut addresses) = (BTreeSet::new(), BTreeSet::new());
        for node in &self.nodes {
            node.check()?;
            if !names.insert(&node.name) {
                return Err(ConfigError::DuplicateName(node.name.clone()));
            }
            for address in [&node.address, &node.coordinator_address].into_iter().flatten() {
                if !addresses.insert(address) {
                    return Err(ConfigError::DuplicateAddress(address.clone()));
                }
            }
        }
        match self.coordinators().count() {
            1..=COORDINATORS_MAX => Ok(()),
            count => Err(ConfigError::Coordinators(count)),
        }
    }

    /// The nodes that are coordinators, in the config's order, with their addresses.
    pub fn coordinators(&self) -> impl Iterator<Item = (&NodeName, &str)> {
        self.nodes.iter().filter_map(|node| Some((&node.name, node.coordinator_address.as_deref()?)))
    }

    /// The node of that name.
    ///
    /// # Errors
    /// [`ConfigError::UnknownNode`], which lists the names that there are.
    pub fn node(&self, name: &str) -> Result<&NodeEntry, ConfigError> {
        let nodes = || self.nodes.iter().map(|node| node.name.to_string()).collect();
        let found = self.nodes.iter().find(|node| node.name.as_str() == name);
        found.ok_or_else(|| ConfigError::UnknownNode { name: name.to_owned(), nodes: nodes() })
    }
}

impl NodeEntry {
    /// Whether it has a role.
    pub fn is(&self, role: ConfigRole) -> bool {
        self.roles.contains(&role)
    }

    fn check(&self) -> Result<(), ConfigError> {
        if self.roles.is_empty() {
            return Err(ConfigError::NoRole(self.name.clone()));
        }
        let pairs = [
            (ConfigRole::Worker, &self.address, "address", 7400),
            (ConfigRole::Coordinator, &self.coordinator_address, "coordinator_address", 7401),
        ];
        for (role, address, key, port) in pairs {
            let (node, is) = (self.name.clone(), self.is(role));
            let role = role.role();
            match (is, address) {
                (true, None) => return Err(ConfigError::NoAddress { node, role, key, port }),
                (false, Some(_)) => return Err(ConfigError::AddressWithoutRole { node, key, role }),
                (true, Some(_)) | (false, None) => {}
            }
        }
        Ok(())
    }
}

/// A path of the config for a node: `{name}` filled in, relative to the config's folder.
pub fn path_for(folder: &Path, template: &str, name: &NodeName) -> PathBuf {
    folder.join(template.replace("{name}", name.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, prop, proptest};

    const GOOD: &str = r#"
        cluster = "demo"
        [[node]]
        name = "a"
        roles = ["coordinator", "worker"]
        address = "127.0.0.1:7400"
        coordinator_address = "127.0.0.1:7401"
    "#;

    proptest! {
        #[test]
        fn damaged_configs_are_refused_or_read(
            text in "(?s).{0,200}",
            at in any::<prop::sample::Index>(),
            character in any::<char>(),
        ) {
            let _ = ClusterConfig::parse(&text);
            let mut damaged: Vec<char> = GOOD.chars().collect();
            let at = at.index(damaged.len());
            damaged[at] = character;
            let _ = ClusterConfig::parse(&damaged.iter().collect::<String>());
        }
    }

    #[test]
    fn a_config_reads() {
        let config = ClusterConfig::parse(GOOD).unwrap();
        assert_eq!(
            config.coordinators().collect::<Vec<_>>(),
            [(&NodeName::new("a").unwrap(), "127.0.0.1:7401")]
        );
        let path = path_for(Path::new("/etc/roost"), &config.tls.key, &config.nodes[0].name);
        assert_eq!(path, Path::new("/etc/roost/certs/a.key"));
    }

    #[test]
    fn bad_configs_say_what_is_wrong() {
        let check = |change: &dyn Fn(&str) -> String, expected: &str| {
            let error = ClusterConfig::parse(&change(GOOD)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        let replace = |from: &'static str, to: &'static str| move |text: &str| text.replace(from, to);
        check(&replace("cluster =", "colour = 1\ncluster ="), "unknown field `colour`");
        check(&replace(r#""coordinator", "worker""#, ""), "node a has no role");
        let section = |text: &'static str| move |config: &str| format!("{config}[coordinator]\n{text}\n");
        check(&section("heartbeat_ms = 1"), "coordinator.heartbeat_ms is 1, it may be from 10 to 1000");
        check(&section("snapshot_entries = 2000000"), "it may be from 1 to 1000000");
        check(&replace(r#""worker""#, r#""king""#), "unknown variant `king`");
        check(&replace(r#"address = "127.0.0.1:7400""#, ""), "is a worker and has no address");
        check(&replace(r#", "worker""#, ""), "has address, but is no worker");
        check(&replace("7400", "7401"), "is the address of two endpoints");
        check(&|text| format!("{text}{}", &text[text.find("[[node]]").unwrap()..]), "two nodes are named a");
        let more = |count: u32| {
            let node = |n| {
                format!(
                    "[[node]]\nname = \"b{n}\"\nroles = [\"coordinator\"]\ncoordinator_address = \"h:{n}\"\n"
                )
            };
            (0..count).map(node).collect::<String>()
        };
        // Even numbers too: members come and go one at a time.
        for count in 1..7 {
            ClusterConfig::parse(&format!("{GOOD}{}", more(count))).expect("up to seven");
        }
        check(&|text| format!("{text}{}", more(7)), "one to 7 coordinators, this one 8");
        let none = |text: &str| {
            text.replace(r#""coordinator", "#, "").replace(r#"coordinator_address = "127.0.0.1:7401""#, "")
        };
        check(&none, "one to 7 coordinators, this one 0");
        let missing = ClusterConfig::parse(GOOD).unwrap().node("z").unwrap_err().to_string();
        assert_eq!(missing, "the config has no node named \"z\"; its nodes are a");
    }
}
