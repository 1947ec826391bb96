//! Everything that a node takes from outside: sockets, files, clocks, entropy, threads, engines.
//!
//! [`crate::start()`] builds a node from a config and an [`Environment`] and from nothing else. Production makes one by
//! [`production`]; the simulator makes its own. No code below `start` opens a socket or a file, reads a clock or
//! draws a random number by itself.

pub mod production;

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use futures::future::BoxFuture;
use object_store::ObjectStore;
use roost_protocol::quic::{Network, WallClock};

use crate::engine::{Engine, Missing};

/// What a node takes from outside.
#[derive(Clone)]
pub struct Environment {
    /// Sockets and addresses.
    pub network: Arc<dyn Network>,
    /// The data folder.
    pub files: Arc<dyn Files>,
    /// Where the coordinator keeps bundles; in the data folder when there is none.
    pub bundles: Option<Arc<dyn ObjectStore>>,
    /// Wall-clock time. Timers are tokio's.
    pub clock: Arc<dyn WallClock>,
    /// Randomness.
    pub entropy: Arc<dyn Entropy>,
    /// Threads for disk work and compute.
    pub executors: Arc<dyn Executors>,
    /// Where the tasks of each role run.
    pub runtimes: Arc<dyn Runtimes>,
    /// The engines, in the order in which `auto` tries them.
    pub engines: Vec<Arc<dyn Engine>>,
    /// The engines that are not among them, for whoever asks why.
    pub engines_missing: Vec<Missing>,
    /// What the machine is.
    pub machine: Machine,
}

/// The data folder.
pub trait Files: Debug + Send + Sync + 'static {
    /// A small file's bytes; `None` when there is none.
    ///
    /// # Errors
    /// The disk's.
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>>;

    /// Replaces a small file, wholly or not at all. Durable when it returns.
    ///
    /// # Errors
    /// The disk's.
    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()>;

    /// The file that a database lives in, made when there is none.
    ///
    /// # Errors
    /// The disk's, also when another process has it open.
    fn database(&self, name: &str) -> io::Result<Box<dyn redb::StorageBackend>>;

    /// A store for bundles in a folder of this name, made when there is none.
    ///
    /// # Errors
    /// The disk's.
    fn bundles(&self, folder: &str) -> io::Result<Arc<dyn ObjectStore>>;
}

/// Randomness.
pub trait Entropy: Send + Sync + 'static {
    /// Fills `bytes` with random ones.
    fn fill(&self, bytes: &mut [u8]);
}

impl dyn Entropy {
    /// A random number.
    pub fn u64(&self) -> u64 {
        let mut bytes = [0; 8];
        self.fill(&mut bytes);
        u64::from_le_bytes(bytes)
    }

    /// A seed for a generator.
    pub fn seed(&self) -> [u8; 32] {
        let mut bytes = [0; 32];
        self.fill(&mut bytes);
        bytes
    }
}

/// Work for an executor.
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs jobs one after the other, in the order in which they come.
pub trait Executor: Send + Sync + 'static {
    /// Hands a job over. It is dropped unrun when the executor is gone.
    fn submit(&self, job: Job);
}

/// Makes executors.
pub trait Executors: Send + Sync + 'static {
    /// A new executor: a thread of that name in production, inline with a virtual cost in the simulator. It ends when it
    /// is dropped, after the jobs that it has. A job that panics ends it at once.
    fn dedicated(&self, name: &str, kind: Work) -> Arc<dyn Executor>;
}

/// What an executor is for; the simulator gives each its own cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Waits for a disk.
    Disk,
    /// Computes.
    Compute,
}

impl dyn Executor {
    /// Runs `work` here and waits for its result; `None` when the executor died before it was done.
    pub async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        let (tell, told) = tokio::sync::oneshot::channel();
        self.submit(Box::new(move || {
            // Whoever waited may have given up.
            let _ = tell.send(work());
        }));
        told.await.ok()
    }
}

/// Where the tasks of a role run: a tokio runtime of its own in production, so that inference never delays Raft.
pub trait Runtimes: Send + Sync + 'static {
    /// Starts a role's task, and all that it spawns, on a runtime of that name. Dropping the handle stops the role.
    fn start(&self, role: &str, task: BoxFuture<'static, ()>) -> Box<dyn RoleHandle>;
}

/// A role that runs. Dropping it stops it without waiting.
pub trait RoleHandle: Send {
    /// Waits until the role's task has ended. Safe to drop half-way.
    fn ended(&mut self) -> BoxFuture<'_, ()>;
}

/// What the machine is.
#[derive(Debug, Clone)]
pub struct Machine {
    /// Its instruction set, as users read it: `x86-64 avx512`.
    pub isa: String,
    /// Its memory in MiB.
    pub memory_mib: u64,
    /// Its cores, at least one.
    pub cores: usize,
    /// Its speed relative to the reference machine.
    pub speed: f64,
}
