//! The coordinator role, started and stopped.

use std::io;
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};

use futures::FutureExt as _;
use futures::future::BoxFuture;
use openraft::async_runtime::WatchReceiver;
use openraft::{Config, SnapshotPolicy};
use redb::StorageBackend;
use roost_protocol::error::panic_text;
use roost_protocol::quic::bundles::BundleStore;
use roost_protocol::quic::{Accepted, Dialler, Links, Service, WallClock};
use roost_protocol::view::Published;
use roost_protocol::{ClusterId, NodeId, NodeName};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::artefact::Keeping;
use crate::raft::disk::{Disk, DiskError, JobQueue};
use crate::raft::fault::DiskFault;
use crate::raft::network::Network;
use crate::raft::types::{Raft, Runtime};
use crate::raft::{Log, Machine};
use crate::shared::Shared;
use crate::{artefact, bootstrap, leader, members, server};

/// The leader is heard this often: three times in the shortest election timeout, of which three pass before anybody stands for
/// election, so that loss of a few packets is no reason to elect another.
pub(crate) const HEARTBEAT_MS: u64 = 100;
/// Shorter elects faster after a death; longer spares elections on a stalled disk or a busy core. A follower that has heard a
/// leader lets [`ELECTION_MS_MAX`] pass, its lease, and then a time between this and that: with these, writes go on about
/// 1.5 s after the leader's death.
const ELECTION_MS_MIN: u64 = 350;
/// Twice the shortest, so that two candidates rarely collide.
pub(crate) const ELECTION_MS_MAX: u64 = 700;
/// How long a leader without a quorum is quiet between two attempts to reach one: long enough for those that it still
/// reaches to elect another with the rest.
const PROBE_MS: u64 = 2 * ELECTION_MS_MAX;
/// Entries between two snapshots: replayed at a restart in well under a second.
const SNAPSHOT_ENTRIES: u64 = 4_096;
/// Entries kept behind a snapshot, so that a follower that was away shortly needs none.
const KEEP_ENTRIES: u64 = 1_024;
/// What a snapshot may take to a slow follower, besides the time for its bytes.
const SNAPSHOT_MS_MAX: u64 = 30_000;
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
    /// The highest level of the state that it obeys: [`crate::state::LEVEL`], or less where the build before may have to
    /// be gone back to.
    pub level: u32,
}

/// A coordinator of the config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

impl StartError {
    /// What the disk did wrong, if it was the disk.
    pub fn disk_fault(&self) -> Option<DiskFault> {
        match self {
            Self::Disk(DiskError::Fault(fault)) => Some(fault.clone()),
            Self::Snapshot(error) => Some(DiskFault::of_work(error)),
            Self::Disk(DiskError::Open(_) | DiskError::SetUp(_) | DiskError::Tables { .. })
            | Self::Disk(DiskError::WrongNode { .. })
            | Self::Config(_)
            | Self::Raft(_) => None,
        }
    }
}

/// A coordinator that runs. Dropping it stops its tasks without a farewell; see [`Coordinator::stop`].
pub struct Coordinator {
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    /// Which task panicked, and how.
    panicked: watch::Sender<Option<String>>,
}

impl Coordinator {
    /// Opens the database and takes part in the group, or forms it.
    ///
    /// # Errors
    /// [`StartError`] when the database or the snapshot cannot be read.
    pub async fn start(config: CoordinatorConfig, parts: CoordinatorParts) -> Result<Self, StartError> {
        let CoordinatorParts { storage, queue, bundles, clock, dialler, published, seed, fresh_cluster } =
            parts;
        let disk = Disk::open(storage, queue, config.node).await?;
        let started = async {
            let machine = Machine::open(disk.clone(), published.clone(), config.level)
                .await
                .map_err(StartError::Snapshot)?;
            let peers = Links::new(dialler.clone(), Service::Raft);
            let (network, log) = (Network::new(peers.clone(), machine.clone()), Log::new(disk.clone()));
            let raft = Raft::new(config.node.0, settings()?, network, log, machine.clone());
            let raft = Runtime::scope(seed, raft).await.map_err(stopped)?;
            let belonged = dialler.hello().cluster;
            let initialised = raft.is_initialized().await.map_err(stopped)?;
            let shared = Shared {
                node: config.node,
                name: config.name,
                address: config.address,
                group: config.group,
                level: config.level,
                disk: disk.clone(),
                raft,
                machine,
                bundles,
                keeping: Keeping::default(),
                peers,
                bundle_links: Links::new(dialler, Service::Bundle),
                clock,
                published,
                registry: Mutex::new(None),
                snapshots: tokio::sync::Mutex::default(),
                members: tokio::sync::RwLock::new(()),
                admitted: AtomicBool::new(
                    initialised || belonged.is_none() || roost_protocol::KnownBug::WipedVoterVotes.is_in(),
                ),
            };
            Ok((Arc::new(shared), belonged))
        };
        let (shared, belonged) = match started.await {
            Ok(started) => started,
            Err(error) => {
                let fault = disk.failure().borrow().clone();
                disk.close().await;
                // Raft wraps the disk's words, or only says that it stopped.
                return Err(fault.map_or(error, |fault| DiskError::Fault(fault).into()));
            }
        };
        let (panicked, _) = watch::channel(None);
        let mut tasks = JoinSet::new();
        let mut spawn = |name, task: BoxFuture<'static, ()>| {
            tasks.spawn(tell_of_panic(name, task, panicked.clone()));
        };
        spawn("bootstrap", bootstrap::run(shared.clone(), belonged).boxed());
        spawn("leader", leader::run(shared.clone(), fresh_cluster).boxed());
        spawn("repair", artefact::repair(shared.clone()).boxed());
        spawn("sweep", artefact::sweep::run(shared.clone()).boxed());
        spawn("compare", members::compare(shared.clone()).boxed());
        spawn("stop", stop_when_it_fails(shared.clone()).boxed());
        Ok(Self { shared, tasks, panicked })
    }

    /// What serves its connections.
    pub fn server(&self) -> Server {
        Server { shared: self.shared.clone() }
    }

    /// Completes when the coordinator has stopped by itself, with the reason: a disk that failed, bytes that are not what was
    /// written, or a task that panicked. It must be stopped then: without its tasks it may lead and plan nothing.
    pub fn failed(&self) -> impl Future<Output = String> + Send + use<> {
        let mut disk = self.shared.disk.failure();
        let mut metrics = self.shared.raft.metrics();
        let mut panicked = self.panicked.subscribe();
        async move {
            let raft_stopped = async {
                loop {
                    if let Err(error) = &metrics.borrow_watched().running_state {
                        return error.to_string();
                    }
                    if metrics.changed().await.is_err() {
                        return "Raft was shut down".to_owned();
                    }
                }
            };
            let stopped = tokio::select! {
                Ok(_) = disk.wait_for(Option::is_some) => None,
                reason = raft_stopped => Some(reason),
                Ok(how) = panicked.wait_for(Option::is_some) => how.clone(),
            };
            // The disk's own words, if it was the disk: Raft's error wraps them, or only says that it stopped.
            let disk = disk.borrow().as_ref().map(ToString::to_string);
            disk.or(stopped).unwrap_or_else(|| "the disk failed".to_owned())
        }
    }

    /// What its disk did wrong, if it was the disk that failed.
    pub fn disk_fault(&self) -> Option<DiskFault> {
        self.shared.disk.failure().borrow().clone()
    }

    /// Hands leadership over if it has it and somebody can take it, stops, and closes the database.
    pub async fn stop(mut self) {
        if self.shared.leads().is_some() {
            let heirs = members::heirs(&self.shared);
            if !heirs.is_empty() && members::hand_over(&self.shared, &heirs).await.is_none() {
                tracing::info!(candidates = heirs.len(), "nobody took over leadership");
            }
        }
        if let Err(error) = self.shared.raft.shutdown().await {
            tracing::warn!(%error, "Raft did not stop cleanly");
        }
        self.tasks.shutdown().await;
        self.shared.disk.close().await;
    }
}

/// Raft's settings.
fn settings() -> Result<Arc<Config>, StartError> {
    let settings = Config {
        cluster_name: "roost".to_owned(),
        heartbeat_interval: HEARTBEAT_MS,
        election_timeout_min: ELECTION_MS_MIN,
        election_timeout_max: ELECTION_MS_MAX,
        quorum_loss_probe_interval: Some(PROBE_MS),
        install_snapshot_timeout: SNAPSHOT_MS_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(SNAPSHOT_ENTRIES),
        max_in_snapshot_log_to_keep: KEEP_ENTRIES,
        enable_pre_vote: Some(true),
        allow_log_reversion: Some(false),
        enable_leader_restore: Some(false),
        ..Config::default()
    };
    Ok(Arc::new(settings.validate()?))
}

fn stopped(error: impl std::fmt::Display) -> StartError {
    StartError::Raft(error.to_string())
}

/// Stops Raft when the disk has failed, also when it was not Raft that met the failure.
async fn stop_when_it_fails(shared: Arc<Shared>) {
    let mut failure = shared.disk.failure();
    if failure.wait_for(Option::is_some).await.is_ok() {
        // Its errors are those of a Raft that has stopped already.
        let _ = shared.raft.shutdown().await;
    }
}

/// Runs a task of the coordinator, and tells when it panicked: it tells nobody by itself.
async fn tell_of_panic(
    name: &'static str,
    task: BoxFuture<'static, ()>,
    panicked: watch::Sender<Option<String>>,
) {
    // Nothing of what it had is looked at afterwards: the coordinator stops.
    if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
        panicked.send_replace(Some(format!("its task {name} panicked: {}", panic_text(&*panic))));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_told_and_one_that_ends_is_not() {
        let (panicked, told) = watch::channel(None);
        tell_of_panic("bootstrap", async {}.boxed(), panicked.clone()).await;
        assert_eq!(*told.borrow(), None);
        tell_of_panic("leader", async { panic!("as the test wants it") }.boxed(), panicked).await;
        assert_eq!(told.borrow().as_deref(), Some("its task leader panicked: as the test wants it"));
    }
}
