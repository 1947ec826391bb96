//! The coordinator's database: redb on the storage that it is given, worked on by one executor.
//!
//! All work goes through one queue, in order: in production a thread of its own, so that fsync never blocks a task. The
//! first failure is the last: whatever fails, be it a write, an fsync, a check of what was read, or a panic over a
//! damaged page, nothing is read or written afterwards, because what the disk holds is unknown (design §7). An fsync
//! that failed is never tried again.
//!
//! Commits are two-phase: the slot that was current stays so until the next one is durable. With one phase redb could
//! not tell a commit that tore from one that was acknowledged and damaged later, and would go back to the one before
//! in both cases; that would forget votes.

use std::any::Any;
use std::fmt::Debug;
use std::io;
use std::ops::Bound;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use redb::{BackendError, Database, ReadableDatabase, StorageBackend, TableDefinition, TableHandle};
use roost_protocol::NodeId;
use roost_protocol::error::panic_text;
use tokio::sync::{oneshot, watch};

use super::fault::{DiskFault, Failure, Operation};
use super::record::{self, RecordError};

/// Work for the disk's executor.
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs disk work, one job after the other, in order.
pub trait JobQueue: Send + Sync + 'static {
    /// Hands a job over. It is dropped unrun when the queue has ended.
    fn submit(&self, job: Job);
}

/// The log: index to record.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Single records by name. Each is there from the first commit on, so that one that is not was lost.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Chunks of the present snapshot, by number.
pub(super) const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");

/// The record of [`META`] that names the node whose database this is.
const META_NODE: &str = "node";

/// redb's page cache. Its default of 1 GiB is for large trees; the log is small and read in order.
const CACHE_BYTES: usize = 4 << 20;

/// The bytes that redb marks a whole file with.
const FIRST_BYTES: u64 = 9;
/// The page that they are in.
const FIRST_PAGE_BYTES: u64 = 4096;

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The storage failed, or what it holds is damaged.
    #[error("the coordinator's database cannot be opened: {0}")]
    Fault(DiskFault),
    /// redb refuses the storage.
    #[error("the coordinator's database cannot be opened: {0}")]
    Open(#[from] redb::DatabaseError),
    /// Reading or making the tables failed.
    #[error("the coordinator's database cannot be set up: {0}")]
    SetUp(io::Error),
    /// Some of the tables are there and others are not, which no crash leaves behind.
    #[error(
        "the coordinator's database has the tables {found:?}; it should have log, meta and snapshot, or none"
    )]
    Tables {
        /// The tables that are there.
        found: Vec<String>,
    },
    /// The database was written under another identity.
    #[error(
        "the coordinator's database is of node {theirs}, this is node {ours}; a data folder is moved whole or not at all"
    )]
    WrongNode {
        /// This node.
        ours: NodeId,
        /// The node that wrote the database.
        theirs: NodeId,
    },
}

/// Whose database may be opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    Ours,
    Anyones,
}

impl DiskError {
    /// The error as the fault behind it, where there is one: `noted` is what the storage did wrong meanwhile.
    fn by_fault(self, noted: Option<DiskFault>) -> Self {
        match (noted, self) {
            (Some(fault), _) => Self::Fault(fault),
            (None, Self::Open(redb::DatabaseError::Storage(redb::StorageError::Corrupted(what)))) => {
                Self::Fault(DiskFault::Damaged(what.into()))
            }
            (None, Self::Open(redb::DatabaseError::Storage(redb::StorageError::Io(error))))
                if error.kind() == io::ErrorKind::InvalidData =>
            {
                Self::Fault(DiskFault::Damaged(error.to_string().into()))
            }
            (None, Self::SetUp(error)) => Self::Fault(DiskFault::of_work(&error)),
            (None, error) => error,
        }
    }
}

/// A database that is worked on by one executor. Cloning shares it.
#[derive(Clone)]
pub struct Disk {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Arc<dyn JobQueue>,
    /// None before it was opened and after it was closed.
    database: Mutex<Option<Database>>,
    failure: Arc<Failure>,
}

impl Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

/// The storage that was given, which takes no write and no fsync after the first failure.
#[derive(Debug)]
struct Fused {
    storage: Box<dyn StorageBackend>,
    failure: Arc<Failure>,
}

impl StorageBackend for Fused {
    fn len(&self) -> Result<u64, io::Error> {
        self.failure.operated(Operation::Read, self.storage.len())
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.failure.operated(Operation::Read, self.storage.read(offset, out))
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.failure.check()?;
        self.failure.operated(Operation::Write, self.storage.set_len(len))
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.failure.check()?;
        self.failure.operated(Operation::Sync, self.storage.sync_data())
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.failure.check()?;
        self.failure.operated(Operation::Write, self.storage.write(offset, data))
    }
    fn close(&self) -> Result<(), io::Error> {
        self.storage.close()
    }
    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.storage.try_lock_range(start, end)
    }
    fn try_lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.storage.try_lock_shared_range(start, end)
    }
    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.storage.lock_range(start, end)
    }
    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.storage.lock_shared_range(start, end)
    }
    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.storage.unlock_range(start, end)
    }
    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.storage.query_lock_range(start, end)
    }
}

impl Disk {
    /// Opens or makes the database of `node` on `storage`, on the executor: all of it is read and checked.
    ///
    /// # Errors
    /// [`DiskError`] when the storage fails, is damaged, or holds something else.
    pub async fn open(
        storage: Box<dyn StorageBackend>,
        queue: Arc<dyn JobQueue>,
        node: NodeId,
    ) -> Result<Self, DiskError> {
        Self::open_as(storage, queue, node, Whose::Ours).await
    }

    /// Opens the database of whatever node on `storage`, or makes one of `node`, for a recovery.
    ///
    /// # Errors
    /// As [`Disk::open`], but for [`DiskError::WrongNode`].
    pub(crate) async fn open_of_any(
        storage: Box<dyn StorageBackend>,
        queue: Arc<dyn JobQueue>,
        node: NodeId,
    ) -> Result<Self, DiskError> {
        Self::open_as(storage, queue, node, Whose::Anyones).await
    }

    async fn open_as(
        storage: Box<dyn StorageBackend>,
        queue: Arc<dyn JobQueue>,
        node: NodeId,
        whose: Whose,
    ) -> Result<Self, DiskError> {
        let failure = Arc::new(Failure::default());
        let inner = Arc::new(Inner { queue, database: Mutex::new(None), failure: failure.clone() });
        let (opened, noted) = (inner.clone(), failure.clone());
        let (tell, told) = oneshot::channel();
        inner.queue.submit(Box::new(move || {
            let open = || open(Fused { storage, failure }, node, whose);
            let result = catch_unwind(AssertUnwindSafe(open))
                .unwrap_or_else(|panic| Err(DiskError::SetUp(panicked(&*panic))))
                .map_err(|error| error.by_fault(noted.get()));
            let result = result.map(|database| *opened.lock() = Some(database));
            // Whoever asked may be gone.
            let _ = tell.send(result);
        }));
        told.await.unwrap_or_else(|_| Err(DiskError::SetUp(queue_ended())))?;
        Ok(Self { inner })
    }

    /// The first failure, once there is one.
    pub fn failure(&self) -> watch::Receiver<Option<DiskFault>> {
        self.inner.failure.subscribe()
    }

    /// Reads in a transaction, on the executor.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.run(move |database| work(&database.begin_read().map_err(io::Error::other)?)).await
    }

    /// Writes in a transaction, on the executor. Durable when it returns.
    pub(super) async fn write<T: Send + 'static>(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        self.run(move |database| write(database, work)).await
    }

    /// Writes in a transaction on the executor and tells `done` when it is durable, or that it failed. Returns at once;
    /// reads that are asked for later see what was written.
    pub(super) fn write_then(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> io::Result<()> + Send + 'static,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) {
        self.submit(move |database| write(database, work), done);
    }

    /// Runs long work that needs no database on the executor, in its turn, where it holds no task up.
    ///
    /// # Errors
    /// The disk's, once it has failed or was closed.
    pub(crate) async fn in_turn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> io::Result<T> {
        self.run(move |_| Ok(work())).await
    }

    /// Closes the database behind the work that it has. What comes later fails.
    pub async fn close(&self) {
        let inner = self.inner.clone();
        let (tell, told) = oneshot::channel();
        self.inner.queue.submit(Box::new(move || {
            let database = inner.lock().take();
            let close = || database.map_or(Ok(()), Database::close);
            let closed = catch_unwind(AssertUnwindSafe(close));
            if !matches!(closed, Ok(Ok(()))) {
                tracing::warn!(
                    "the coordinator's database was not closed; it is checked when it is opened next"
                );
            }
            let _ = tell.send(());
        }));
        // Without its executor it is closed when its last user is dropped.
        let _ = told.await;
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (tell, told) = oneshot::channel();
        self.submit(work, move |result| {
            // Whoever asked may be gone.
            let _ = tell.send(result);
        });
        told.await.unwrap_or_else(|_| Err(queue_ended()))
    }

    fn submit<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Database) -> io::Result<T> + Send + 'static,
        done: impl FnOnce(io::Result<T>) + Send + 'static,
    ) {
        let done = Answer { inner: self.inner.clone(), tell: Some(Box::new(done)) };
        let inner = self.inner.clone();
        self.inner.queue.submit(Box::new(move || done.tell(inner.work(work))));
    }
}

impl Inner {
    fn work<T>(&self, work: impl FnOnce(&Database) -> io::Result<T>) -> io::Result<T> {
        self.failure.check()?;
        let database = self.lock();
        let Some(database) = &*database else {
            return Err(io::Error::new(io::ErrorKind::NotConnected, "the coordinator's database is closed"));
        };
        // Nothing is read or written by way of the database after a panic, so it does not matter what it broke.
        let result = catch_unwind(AssertUnwindSafe(|| work(database)));
        self.failure.worked(result.unwrap_or_else(|panic| Err(panicked(&*panic))))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Database>> {
        // Panics are caught while it is held.
        self.database.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Tells the result of a job; an error when the job is dropped unrun, so that nobody takes silence for "not yet".
struct Answer<T> {
    inner: Arc<Inner>,
    tell: Option<Tell<T>>,
}

/// Takes the result of a job.
type Tell<T> = Box<dyn FnOnce(io::Result<T>) + Send>;

impl<T> Answer<T> {
    fn tell(mut self, result: io::Result<T>) {
        if let Some(tell) = self.tell.take() {
            tell(result);
        }
    }
}

impl<T> Drop for Answer<T> {
    fn drop(&mut self) {
        if let Some(tell) = self.tell.take() {
            tell(self.inner.failure.worked(Err(queue_ended())));
        }
    }
}

fn queue_ended() -> io::Error {
    io::Error::other("the disk's executor has ended")
}

fn panicked(panic: &(dyn Any + Send)) -> io::Error {
    io::Error::other(format!("the database panicked: {}", panic_text(panic)))
}

fn open(storage: Fused, node: NodeId, whose: Whose) -> Result<Database, DiskError> {
    clear_cut_creation(&storage).map_err(DiskError::SetUp)?;
    let database = Database::builder()
        .set_cache_size(CACHE_BYTES)
        .set_check_integrity_on_open(true)
        .create_with_backend(storage)?;
    let mut found = tables(&database).map_err(DiskError::SetUp)?;
    found.sort_unstable();
    if found.is_empty() {
        write(&database, |transaction| set_up(transaction, node)).map_err(DiskError::SetUp)?;
    } else if found != [LOG.name(), META.name(), SNAPSHOT.name()] {
        return Err(DiskError::Tables { found });
    }
    let theirs = read_node(&database).map_err(DiskError::SetUp)?;
    if theirs != node && whose == Whose::Ours {
        return Err(DiskError::WrongNode { ours: node, theirs });
    }
    Ok(database)
}

/// Empties a file whose creation was cut: redb writes the first bytes last, and refuses a file without them. Such a file has
/// nothing behind its first page; one that has lost its first bytes has, and stays as it is.
fn clear_cut_creation(storage: &Fused) -> io::Result<()> {
    let len = storage.len()?;
    if len == 0 || !is_zero(storage, 0, len.min(FIRST_BYTES))? || !is_zero(storage, FIRST_PAGE_BYTES, len)? {
        return Ok(());
    }
    storage.set_len(0)
}

/// Whether there is nothing but zeros from `start` on and before `end`.
fn is_zero(storage: &Fused, start: u64, end: u64) -> io::Result<bool> {
    let mut page = [0; FIRST_PAGE_BYTES as usize];
    let mut at = start;
    while at < end {
        let bytes = (end - at).min(FIRST_PAGE_BYTES);
        let page = &mut page[..bytes as usize];
        storage.read(at, page)?;
        if page.iter().any(|byte| *byte != 0) {
            return Ok(false);
        }
        at += bytes;
    }
    Ok(true)
}

fn tables(database: &Database) -> io::Result<Vec<String>> {
    let transaction = database.begin_read().map_err(io::Error::other)?;
    let tables = transaction.list_tables().map_err(io::Error::other)?;
    Ok(tables.map(|table| table.name().to_owned()).collect())
}

/// Makes the tables and the records, in one commit.
fn set_up(transaction: &redb::WriteTransaction, node: NodeId) -> io::Result<()> {
    transaction.open_table(LOG).map_err(io::Error::other)?;
    transaction.open_table(SNAPSHOT).map_err(io::Error::other)?;
    put_node(transaction, node)?;
    super::log::set_up(transaction)?;
    super::machine::set_up(transaction)
}

/// Notes whose database this is.
pub(super) fn put_node(transaction: &redb::WriteTransaction, node: NodeId) -> io::Result<()> {
    put_meta(transaction, META_NODE, &node)
}

fn read_node(database: &Database) -> io::Result<NodeId> {
    get_meta(&database.begin_read().map_err(io::Error::other)?, META_NODE)
}

fn write<T>(
    database: &Database,
    work: impl FnOnce(&redb::WriteTransaction) -> io::Result<T>,
) -> io::Result<T> {
    let mut transaction = database.begin_write().map_err(io::Error::other)?;
    transaction.set_two_phase_commit(true);
    let result = work(&transaction)?;
    transaction.commit().map_err(io::Error::other)?;
    Ok(result)
}

/// Reads a record of [`META`].
pub(super) fn get_meta<T: serde::de::DeserializeOwned>(
    transaction: &redb::ReadTransaction,
    name: &str,
) -> io::Result<T> {
    let table = transaction.open_table(META).map_err(io::Error::other)?;
    let record = table.get(name).map_err(io::Error::other)?;
    let record = record.ok_or_else(|| RecordError::Missing { what: name.to_owned() })?;
    Ok(record::open(name, record.value())?)
}

/// Writes a record of [`META`].
pub(super) fn put_meta<T: serde::Serialize>(
    transaction: &redb::WriteTransaction,
    name: &str,
    value: &T,
) -> io::Result<()> {
    let mut table = transaction.open_table(META).map_err(io::Error::other)?;
    table.insert(name, record::seal(name, value)?.as_slice()).map_err(io::Error::other)?;
    Ok(())
}
