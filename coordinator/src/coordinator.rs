//! The coordinator role, started and stopped.

use std::io;
use std::num::{NonZeroU16, NonZeroU32};
use std::panic::AssertUnwindSafe;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex};
use std::time::Duration;

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

/// The longest time without the leader, in heartbeats, before another may be elected. A follower that has heard a leader lets it
/// pass, its lease, and then a time between [`ELECTION_HEARTBEATS_MIN`] and it: with the default heartbeat, writes go on
/// about 1.5 s after the leader's death. Twice the shortest, so that two candidates rarely collide.
const ELECTION_HEARTBEATS_MAX: f64 = 7.0;
/// The shortest. Three heartbeats pass in it, so that loss of a few packets is no reason to elect another; a shorter one elects
/// faster after a death, a longer one spares elections on a stalled disk or a busy core.
const ELECTION_HEARTBEATS_MIN: f64 = 3.5;
/// For how many heartbeats a leader without a quorum is quiet between two attempts to reach one: long enough for those that it
/// still reaches to elect another with the rest.
const PROBE_HEARTBEATS: u32 = 14;
/// A heartbeat is about as long as a round trip in a group that is spread wide: what waits for answers waits for so many, and
/// at least as long as disks and busy cores of a group side by side want.
const AGREE_HEARTBEATS: u32 = 50;
const AGREE_MIN: Duration = Duration::from_secs(5);
const HAND_OVER_HEARTBEATS: u32 = 5;
const HAND_OVER_MIN: Duration = Duration::from_millis(500);
const SOFT_HEARTBEATS: u32 = 5;
const SOFT_MIN: Duration = Duration::from_millis(500);
const ASK_HEARTBEATS: u32 = 20;
const ASK_MIN: Duration = Duration::from_secs(2);
/// What a snapshot may take to a slow follower, besides the time for its bytes.
const SNAPSHOT_MS_MAX: u64 = 30_000;

/// The pace of a group of coordinators.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RaftConfig {
    /// How often, in ms, the leader is heard. What it sends must be answered within it, and another is elected after 3.5 to 14
    /// times as long without it.
    pub heartbeat_ms: NonZeroU16,
    /// Entries of the log between two snapshots of the state; a quarter as many are kept behind one, so that a coordinator that
    /// was away shortly needs none.
    pub snapshot_entries: NonZeroU32,
}

impl RaftConfig {
    /// How often the leader is heard.
    pub(crate) fn heartbeat(&self) -> Duration {
        Duration::from_millis(self.heartbeat_ms.get().into())
    }

    /// How long a change or a read may take to be agreed on: two elections and then some.
    pub(crate) fn agree(&self) -> Duration {
        (self.heartbeat() * AGREE_HEARTBEATS).max(AGREE_MIN)
    }

    /// Waiting for one follower to take over: a round trip, an fsync and an answer of each voter.
    pub(crate) fn hand_over(&self) -> Duration {
        (self.heartbeat() * HAND_OVER_HEARTBEATS).max(HAND_OVER_MIN)
    }

    /// How long a follower may take to take the soft state; after that it is sent the next one.
    pub(crate) fn soft(&self) -> Duration {
        (self.heartbeat() * SOFT_HEARTBEATS).max(SOFT_MIN)
    }

    /// How long a coordinator may take to answer one question, a handshake before it.
    pub(crate) fn ask(&self) -> Duration {
        (self.heartbeat() * ASK_HEARTBEATS).max(ASK_MIN)
    }

    /// The longest time without the leader before another may be elected.
    pub(crate) fn election_max(&self) -> Duration {
        self.heartbeat().mul_f64(ELECTION_HEARTBEATS_MAX)
    }
}

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
    /// The pace of the group.
    pub raft: RaftConfig,
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
            let raft = Raft::new(config.node.0, settings(config.raft)?, network, log, machine.clone());
            let raft = Runtime::scope(seed, raft).await.map_err(stopped)?;
            let belonged = dialler.hello().cluster;
            let initialised = raft.is_initialized().await.map_err(stopped)?;
            let shared = Shared {
                node: config.node,
                name: config.name,
                address: config.address,
                group: config.group,
                level: config.level,
                pace: config.raft,
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
                unformed: Mutex::default(),
                members: tokio::sync::RwLock::new(()),
                admitted: AtomicBool::new(
                    initialised || belonged.is_none() || roost_protocol::KnownBug::WipedVoterVotes.is_in(),
                ),
                heard: Mutex::new(tokio::time::Instant::now()),
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
fn settings(raft: RaftConfig) -> Result<Arc<Config>, StartError> {
    let settings = Config {
        cluster_name: "roost".to_owned(),
        heartbeat_interval: raft.heartbeat().as_millis() as u64,
        election_timeout_min: raft.heartbeat().mul_f64(ELECTION_HEARTBEATS_MIN).as_millis() as u64,
        election_timeout_max: raft.election_max().as_millis() as u64,
        quorum_loss_probe_interval: Some((raft.heartbeat() * PROBE_HEARTBEATS).as_millis() as u64),
        install_snapshot_timeout: SNAPSHOT_MS_MAX,
        snapshot_policy: SnapshotPolicy::LogsSinceLast(raft.snapshot_entries.get().into()),
        max_in_snapshot_log_to_keep: u64::from(raft.snapshot_entries.get()) / 4,
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
