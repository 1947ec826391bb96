//! The worker role: hosts versions of models and answers requests for them.
//!
//! The pure core, each file a decision:
//! - [`admission`]: how much the node takes on; [`check`]: whether a request fits its version; [`plan`]: what a version asks
//!   of requests; [`batcher`]: what runs together; [`rows`]: how rows are joined and parted.
//! - [`lifecycle`]: the life of a hosted version; [`desired`]: which versions to host; [`cache`]: which bundles to keep.
//!
//! The shell, which carries out:
//! - [`supervisor`]: an actor that follows the view; [`hosted`]: an actor per version; [`executor`] and [`scatter`]: what
//!   runs on executors; [`request`]: a request on its way.
//! - [`handle`]: the way in for requests; [`serve`]: requests on links; [`routes`]: where they find their version; [`shared`]: what all of these have in common.
//!
//! ```text
//! link ─► serve ─► handle ─► hosted (queue, batches) ─► executor (session)
//!                    ▲           │                          │
//!                    └───────────┼──── replies ─────────────┘
//! view ─► supervisor ────────────┘
//! ```

mod admission;
mod batcher;
mod cache;
mod check;
pub(crate) mod desired;
mod executor;
mod handle;
mod hosted;
mod lifecycle;
mod plan;
mod request;
mod routes;
mod rows;
mod scatter;
mod serve;
mod shared;
mod supervisor;

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ractor::{Actor, ActorRef};
use roost_protocol::NodeId;
use roost_protocol::messages::control::VersionStatistics;
use roost_protocol::quic::Links;
use roost_protocol::quic::bundles::BundleStore;
use roost_protocol::view::{Published, VersionReport};
use serde::{Deserialize, Serialize};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use self::admission::{Bounds, Gate};
use self::cache::Cache;
use self::lifecycle::Rules;
use self::routes::{Board, Routes};
use self::shared::Shared;
use self::supervisor::Supervisor;
use crate::environment::Environment;

pub use self::handle::{Answering, Output, WorkerHandle};

/// How long a worker that stops waits for what it has in flight. Drained before, it has nothing.
const QUIET_MAX: Duration = Duration::from_secs(5);
/// How often it looks.
const QUIET_CHECK: Duration = Duration::from_millis(10);
/// The wait until a supervisor that died is followed by another. None ever should.
const SUPERVISOR_RESTART: Duration = Duration::from_secs(1);

/// The section `[worker]` of a config.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WorkerConfig {
    /// Rows that the node takes on at once, over all versions; beyond them it answers `Overloaded`. Default 4096, half a
    /// second of a model that needs 0.1 ms a row. Raising it lets queues, and so latencies, grow under load.
    pub rows_in_flight_max: NonZeroU32,
    /// Bytes of requests that the node takes on at once. Default 1 GiB. Raising it costs that memory under load.
    pub bytes_in_flight_max: NonZeroU64,
    /// Executors, each a thread with a session of its own, per hosted version. Default 1: a batch uses an executor well,
    /// and several versions use several cores. Raising it costs the memory of a session each.
    pub executors_per_version: NonZeroU32,
    /// Bytes of bundles kept on the disk. Default 64 GiB. Bundles of versions that are hosted stay above it, too.
    pub cache_bytes_max: u64,
    /// How long a version serves on, in ms, after the view stopped routing to it here. Default 2000: a client whose watch
    /// lags still finds it, and one whose watch broke has noticed by its idle timeout. Raising it keeps memory longer.
    pub drain_ms_min: u64,
    /// How long a node that stops waits, in ms, until others took over what it serves. Default 30 000: time for them to
    /// fetch, load and warm up. Raising it delays a shutdown where nobody can take over.
    pub drain_ms_max: u64,
}

impl Default for WorkerConfig {
    fn default() -> Self {
        Self {
            rows_in_flight_max: NonZeroU32::MIN.saturating_add(4095),
            bytes_in_flight_max: NonZeroU64::MIN.saturating_add((1 << 30) - 1),
            executors_per_version: NonZeroU32::MIN,
            cache_bytes_max: 64 << 30,
            drain_ms_min: 2_000,
            drain_ms_max: 30_000,
        }
    }
}

/// A worker that runs. Dropping it stops it without waiting for what it has in flight.
pub struct Worker {
    shared: Arc<Shared>,
    /// Dropped, it ends the task.
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

impl Worker {
    /// Starts a worker, on the current runtime, that hosts what `published` asks of `node`. `store` is the worker's own:
    /// bundles that are not hosted are removed from it. Missing ones are fetched over `links` of the bundle service.
    pub async fn start(
        config: WorkerConfig,
        node: NodeId,
        environment: &Environment,
        store: BundleStore,
        links: Links,
        published: watch::Receiver<Published>,
    ) -> Self {
        let bounds = Bounds {
            rows_max: config.rows_in_flight_max.get().into(),
            bytes_max: config.bytes_in_flight_max.get(),
        };
        let rules = Rules {
            executors: config.executors_per_version.get(),
            drain_min: Duration::from_millis(config.drain_ms_min),
        };
        let shared = Arc::new(Shared {
            node,
            rules,
            environment: environment.clone(),
            cache: Cache::new(store, config.cache_bytes_max),
            links,
            published: published.clone(),
            routes: Routes::default(),
            board: Board::default(),
            gate: Gate::new(bounds),
            stopping: AtomicBool::new(false),
        });
        let (stop, stopped) = oneshot::channel();
        let task = tokio::spawn(supervise(shared.clone(), published, stopped));
        Self { shared, stop, task }
    }

    /// The way in for requests.
    pub fn handle(&self) -> WorkerHandle {
        WorkerHandle { shared: self.shared.clone() }
    }

    /// How far each version is, as it changes: what heartbeats say.
    pub fn reports(&self) -> watch::Receiver<Arc<Vec<VersionReport>>> {
        self.shared.board.subscribe()
    }

    /// What was counted since the process started.
    pub fn statistics(&self) -> Vec<VersionStatistics> {
        self.shared.routes.statistics()
    }

    /// Takes no more requests, answers those that are in flight for up to 5 s, and lets go of all versions.
    pub async fn stop(self) {
        let Self { shared, stop, task } = self;
        shared.stopping.store(true, Ordering::Release);
        let end = Instant::now() + QUIET_MAX;
        while shared.gate.requests() > 0 && Instant::now() < end {
            tokio::time::sleep(QUIET_CHECK).await;
        }
        drop(stop);
        // What was waited for to its end must not be waited for again.
        if !task.is_finished()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the worker did not end well");
        }
    }

    /// Completes when the worker has died, which it never should. Safe to drop half-way.
    pub async fn ended(&mut self) {
        if !self.task.is_finished()
            && let Err(error) = (&mut self.task).await
        {
            tracing::error!(%error, "the worker died");
        }
    }
}

/// Keeps a supervisor running until `stopped`. One that dies takes its versions with it, and the next hosts them anew.
async fn supervise(
    shared: Arc<Shared>,
    published: watch::Receiver<Published>,
    mut stopped: oneshot::Receiver<()>,
) {
    loop {
        match Supervisor::spawn(None, Supervisor, shared.clone()).await {
            Ok((supervisor, ended)) => tokio::select! {
                _ = &mut stopped => {
                    // Fails only when it has ended already.
                    let _ = supervisor.stop_and_wait(None, None).await;
                    return;
                }
                _ = ended => tracing::error!("the supervisor of the versions died"),
                () = feed(&supervisor, published.clone()) => {}
            },
            Err(error) => tracing::error!(%error, "the supervisor of the versions did not start"),
        }
        shared.routes.clear();
        shared.board.clear();
        tokio::select! {
            _ = &mut stopped => return,
            () = tokio::time::sleep(SUPERVISOR_RESTART) => {}
        }
    }
}

/// Shows the supervisor what is published, one state at a time, until it is gone.
async fn feed(supervisor: &ActorRef<supervisor::Message>, mut published: watch::Receiver<Published>) {
    loop {
        let now = published.borrow_and_update().clone();
        let look = |reply| supervisor::Message::Look(now, reply);
        if supervisor.call(look, None).await.is_err() {
            return;
        }
        if published.changed().await.is_err() {
            // Nothing will change any more; what is hosted goes on.
            return std::future::pending().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_config_has_defaults_and_bounds() {
        assert_eq!(toml::from_str::<WorkerConfig>("").unwrap(), WorkerConfig::default());
        let config = WorkerConfig::default();
        assert_eq!((config.rows_in_flight_max.get(), config.bytes_in_flight_max.get()), (4096, 1 << 30));
        for text in ["rows = 1", "rows_in_flight_max = 0", "executors_per_version = 0", "drain_ms_min = -1"] {
            toml::from_str::<WorkerConfig>(text).unwrap_err();
        }
    }
}
