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

use crate::condition::Conditions;
use crate::disk::{DISK, Life, SimFiles};
use crate::engine::Digits;
use crate::facts::{Fact, Witness};
use crate::network::SimNetwork;
use crate::trace;

/// When simulations begin: any fixed moment within the certificates' validity.
pub const BEGIN: Duration = Duration::from_secs(1_700_000_000);

/// A batch of a small model.
const COMPUTE: Duration = Duration::from_millis(2);

/// The environment of a host that boots now.
pub fn environment(
    seed: u64,
    life: Life,
    conditions: &Conditions,
    speed: f64,
    witness: &Witness,
) -> Environment {
    let engine = Digits::new(conditions.clone(), witness.clone());
    Environment {
        network: Arc::new(SimNetwork::new(Some(life.clone()), conditions.clone(), seed)),
        files: Arc::new(SimFiles::of(life, conditions.clone())),
        bundles: None,
        engines_missing: Vec::new(),
        clock: Arc::new(SimClock(conditions.clone())),
        entropy: Arc::new(SimEntropy::new(seed)),
        executors: Arc::new(SimExecutors(conditions.clone(), witness.clone())),
        runtimes: Arc::new(SimRuntimes),
        engines: vec![Arc::new(engine)],
        machine: Machine { isa: "simulated".to_owned(), memory_mib: 1024, cores: 1, speed },
    }
}

/// Virtual time as wall-clock time, as far off as the host's clock is.
#[derive(Debug, Clone, Default)]
pub struct SimClock(pub Conditions);

impl WallClock for SimClock {
    fn since_epoch(&self) -> Duration {
        let skew = self.0.now().skew_ms;
        let off = Duration::from_millis(skew.unsigned_abs());
        let exact = BEGIN + trace::now();
        if skew < 0 { exact.saturating_sub(off) } else { exact + off }
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

/// Runs jobs inline, each at a virtual cost, and tells how many wait.
struct SimExecutors(Conditions, Witness);

impl Executors for SimExecutors {
    fn dedicated(&self, _name: &str, kind: Work) -> Arc<dyn Executor> {
        let (conditions, witness) = (self.0.clone(), self.1.clone());
        let (submit, mut jobs) = mpsc::unbounded_channel::<Job>();
        tokio::spawn(async move {
            while let Some(job) = jobs.recv().await {
                witness.tell(Fact::Queued { work: kind, jobs: jobs.len() + 1 });
                let cost = match kind {
                    Work::Disk => conditions.now().disk(DISK),
                    Work::Compute => conditions.now().compute(COMPUTE),
                };
                tokio::time::sleep(cost).await;
                if catch_unwind(AssertUnwindSafe(job)).is_err() {
                    return;
                }
            }
        });
        Arc::new(SimExecutor { submit })
    }
}

/// An executor of a simulated host. What waits is bounded by whoever submits; [`crate::invariants`] hold it
/// to that.
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
