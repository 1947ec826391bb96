//! The coordinator role, started and stopped.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use openraft::async_runtime::WatchReceiver;
use openraft::{Config, SnapshotPolicy};
use redb::StorageBackend;
use roost_protocol::quic::bundles::BundleStore;
use roost_protocol::quic::{Accepted, Dialler, Links, Service, WallClock};
use roost_protocol::view::Published;
use roost_protocol::{ClusterId, NodeId, NodeName};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::raft::disk::{Disk, DiskError, JobQueue};
use crate::raft::network::Network;
use crate::raft::types::{Raft, Runtime};
use crate::raft::{Log, Machine};
use crate::shared::Shared;
use crate::{artefact, bootstrap, leader, server};

/// The leader is heard this often; a tenth of the shortest election timeout, so that loss of a few packets is no reason to
/// elect another.
const HEARTBEAT_MS: u64 = 100;
/// Shorter elects faster after a death; longer spares elections on a stalled disk or a busy core.
const ELECTION_MS_MIN: u64 = 600;
/// Twice the shortest, so that two candidates rarely collide.
const ELECTION_MS_MAX: u64 = 1_200;
/// Entries between two snapshots: replayed at a restart in well under a second.
const SNAPSHOT_ENTRIES: u64 = 4_096;
/// Entries kept behind a snapshot, so that a follower that was away shortly needs none.
const KEEP_ENTRIES: u64 = 1_024;
/// What a snapshot may take to a slow follower.
const SNAPSHOT_MS_MAX: u64 = 30_000;
/// Waiting for a follower to take over at a stop.
const HAND_OVER: Duration = Duration::from_secs(2);

/// Who this coordinator is, and with whom it forms a group.
#[derive(Debug, Clone)]
pub struct CoordinatorConfig {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// `host:port` that others reach it at.
    pub address: String,
    /// The coordinators of the config, in its order. After the group was formed, its committed membership counts instead.
    pub group: Vec<GroupMember>,
}

/// A coordinator of the config.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupMember {
    /// Its name.
    pub name: NodeName,
    /// `host:port` of its coordinator endpoint.
    pub address: String,
}

/// What a coordinator works with.
pub struct CoordinatorParts {
    /// Where its database lies.
    pub storage: Box<dyn StorageBackend>,
    /// The executor of its disk work.
    pub queue: Arc<dyn JobQueue>,
    /// The bundles that it holds.
    pub bundles: BundleStore,
    /// Wall-clock time.
    pub clock: Arc<dyn WallClock>,
    /// Dials the other coordinators.
    pub dialler: Dialler,
    /// Where it publishes the view and the soft state.
    pub published: watch::Sender<Published>,
    /// Feeds the jitter of elections.
    pub seed: u64,
    /// The identity of the cluster, should this coordinator be the one to found it.
    pub fresh_cluster: ClusterId,
}

/// Why a coordinator did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its database cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// Its snapshot cannot be read.
    #[error("the last snapshot cannot be read: {0}")]
    Snapshot(io::Error),
    /// Raft's own settings contradict each other.
    #[error("Raft's settings: {0}")]
    Config(#[from] openraft::ConfigError),
    /// Raft stopped while it started.
    #[error("Raft did not start: {0}")]
    Raft(String),
}

/// A coordinator that runs. Dropping it stops its tasks without a farewell; see [`Coordinator::stop`].
pub struct Coordinator {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
}

impl Coordinator {
    /// Opens the database and takes part in the group, or forms it.
    ///
    /// # Errors
    /// [`StartError`] when the database or the snapshot cannot be read.
    pub async fn start(config: CoordinatorConfig, parts: CoordinatorParts) -> Result<Self, StartError> {
        let settings = Config {
            cluster_name: "roost".to_owned(),
            heartbeat_interval: HEARTBEAT_MS,
            election_timeout_min: ELECTION_MS_MIN,
            election_timeout_max: ELECTION_MS_MAX,
            install_snapshot_timeout: SNAPSHOT_MS_MAX,
            snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
            max_in_snapshot_log_to_keep: KEEP_ENTRIES,
            enable_pre_vote: Some(true),
            allow_log_reversion: Some(false),
            enable_leader_restore: Some(false),
            ..Config::default()
        };
        let settings = Arc::new(settings.validate()?);
        let disk = Disk::open(parts.storage, parts.queue)?;
        let machine =
            Machine::open(disk.clone(), parts.published.clone()).await.map_err(StartError::Snapshot)?;
        let peers = Links::new(parts.dialler.clone(), Service::Raft);
        let network = Network::new(peers.clone());
        let raft = Raft::new(config.node.0, settings, network, Log::new(disk), machine.clone());
        let raft =
            Runtime::scope(parts.seed, raft).await.map_err(|error| StartError::Raft(error.to_string()))?;
        let shared = Arc::new(Shared {
            node: config.node,
            address: config.address,
            raft,
            machine,
            bundles: parts.bundles,
            peers,
            bundle_links: Links::new(parts.dialler, Service::Bundle),
            clock: parts.clock,
            published: parts.published,
            registry: Mutex::new(None),
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(bootstrap::run(shared.clone(), config.group));
        tasks.spawn(leader::run(shared.clone(), parts.fresh_cluster));
        tasks.spawn(artefact::repair(shared.clone()));
        Ok(Self { shared, tasks })
    }

    pub fn server(&self) -> Server {
        Server { shared: self.shared.clone() }
    }

    /// Completes when Raft has stopped by itself, with the reason: a disk that failed, or bytes that are not what was
    /// written. The coordinator answers nothing any more then.
    pub fn failed(&self) -> impl Future<Output = String> + Send + use<> {
        let mut metrics = self.shared.raft.metrics();
        async move {
            loop {
                let state = metrics.borrow_watched().running_state.clone();
                if let Err(error) = state {
                    return error.to_string();
                }
                if metrics.changed().await.is_err() {
                    return "Raft was shut down".to_owned();
                }
            }
        }
    }

    /// Hands leadership over if it has it, and stops.
    pub async fn stop(mut self) {
        self.hand_over().await;
        if let Err(error) = self.shared.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop cleanly");
        }
        self.tasks.shutdown().await;
    }

    async fn hand_over(&self) {
        if self.shared.leader() != Some(self.shared.node) {
            return;
        }
        let heir = self.shared.machine.state(|state| {
            let others = state.coordinators().iter().filter(|(id, c)| c.voter && **id != self.shared.node);
            others.map(|(id, _)| *id).next()
        });
        let Some(heir) = heir else { return };
        if self.shared.raft.trigger().transfer_leader(heir.0).await.is_err() {
            return;
        }
        let mut metrics = self.shared.raft.server_metrics();
        let handed_over = async {
            while metrics.borrow_watched().current_leader == Some(self.shared.node.0) {
                if metrics.changed().await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(HAND_OVER, handed_over).await.is_err() {
            tracing::warn!(%heir, "did not take over leadership in time");
        }
    }
}

/// Serves connections of a coordinator. Cloning shares it.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
}

impl Server {
    /// Answers the requests of a connection until it ends.
    pub async fn serve(&self, accepted: Accepted) {
        server::serve(self.shared.clone(), accepted).await;
    }
}
