//! Executors, runtimes, clocks and entropy of virtual time.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use roost_node::environment::{
    Entropy, Environment, Executor, Executors, Job, Machine, RoleHandle, Runtimes, Work,
};
use roost_protocol::quic::WallClock;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::disk::{SimDisk, SimFiles};
use crate::engine::KnownFunction;
use crate::network::{SimNetwork, Weather};

/// When simulations begin: any fixed moment after the certificates' beginning.
pub const BEGIN: Duration = Duration::from_secs(1_700_000_000);

/// The environment of a host that boots now.
pub fn environment(seed: u64, disk: &SimDisk, weather: Weather) -> Environment {
    Environment {
        network: Arc::new(SimNetwork::new(weather, seed)),
        files: Arc::new(SimFiles::of(disk)),
        bundles: None,
        clock: Arc::new(SimClock),
        entropy: Arc::new(SimEntropy::new(seed)),
        executors: Arc::new(SimExecutors),
        runtimes: Arc::new(SimRuntimes),
        engines_missing: Vec::new(),
        engines: vec![Arc::new(KnownFunction)],
        machine: Machine { isa: "simulated".to_owned(), memory_mib: 1024, cores: 1, speed: 1.0 },
    }
}

/// Virtual time as wall-clock time.
#[derive(Debug, Clone, Copy)]
pub struct SimClock;

impl WallClock for SimClock {
    fn since_epoch(&self) -> Duration {
        BEGIN + turmoil::sim_elapsed().unwrap_or_default()
    }
}

/// Randomness of one life of a host.
pub struct SimEntropy(Mutex<StdRng>);

impl SimEntropy {
    /// Everything that is drawn follows from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(Mutex::new(StdRng::seed_from_u64(seed)))
    }
}

impl Entropy for SimEntropy {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).fill_bytes(bytes);
    }
}

/// Runs jobs inline, each at a virtual cost.
struct SimExecutors;

impl Executors for SimExecutors {
    fn dedicated(&self, _name: &str, kind: Work) -> Arc<dyn Executor> {
        let cost = match kind {
            // An fsync on a good SSD.
            Work::Disk => Duration::from_millis(1),
            Work::Compute => Duration::from_millis(2),
        };
        let (submit, mut jobs) = mpsc::unbounded_channel::<Job>();
        tokio::spawn(async move {
            while let Some(job) = jobs.recv().await {
                tokio::time::sleep(cost).await;
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    return;
                }
            }
        });
        Arc::new(SimExecutor { submit })
    }
}

/// An executor of a simulated host. What waits is bounded by whoever submits: disk work by Raft, compute by admission.
struct SimExecutor {
    submit: mpsc::UnboundedSender<Job>,
}

impl Executor for SimExecutor {
    fn submit(&self, job: Job) {
        // Dropped unrun when the executor died, as the trait says.
        let _ = self.submit.send(job);
    }
}

/// Runs roles as tasks of the host.
struct SimRuntimes;

impl Runtimes for SimRuntimes {
    fn start(&self, _role: &str, task: BoxFuture<'static, ()>) -> Box<dyn RoleHandle> {
        Box::new(SimRole(tokio::spawn(task)))
    }
}

struct SimRole(JoinHandle<()>);

impl RoleHandle for SimRole {
    fn ended(&mut self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            // A role that panicked has ended as well; turmoil reports the panic.
            let _ = (&mut self.0).await;
        })
    }
}

impl Drop for SimRole {
    fn drop(&mut self) {
        self.0.abort();
    }
}
