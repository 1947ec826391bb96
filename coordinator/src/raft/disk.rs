//! The coordinator's database: redb on the storage that it is given, worked on by one executor.
//!
//! All work goes through one queue, in order: in production a thread of its own, so that fsync never blocks a task. A
//! failed write or fsync is reported once and never tried again: what the disk holds afterwards is unknown (design §7).

use std::fmt::Debug;
use std::io;
use std::sync::Arc;

use redb::{Database, ReadableDatabase, StorageBackend, TableDefinition};

/// Work for the disk's executor.
pub type Job = Box<dyn FnOnce() + Send>;

/// Runs disk work, one job after the other, in order.
pub trait JobQueue: Send + Sync + 'static {
    /// Hands a job over. It is dropped unrun when the queue has ended.
    fn submit(&self, job: Job);
}

/// The log: index to record.
pub(super) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
/// Single records by name: `vote`, `committed`, `purged`, `snapshot`.
pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
/// Chunks of the present snapshot, by number.
pub(super) const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");

/// redb's page cache. Its default of 1 GiB is for large trees; the log is small and read in order.
const CACHE_BYTES: usize = 4 << 20;

/// A database that is worked on by one executor.
#[derive(Clone)]
pub struct Disk {
    database: Arc<Database>,
    queue: Arc<dyn JobQueue>,
}

impl Debug for Disk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Disk")
    }
}

/// Why a database cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// redb refuses the storage, or the storage failed.
    #[error("the coordinator's database cannot be opened: {0}")]
    Open(#[from] redb::DatabaseError),
    /// The tables cannot be made.
    #[error("the coordinator's database cannot be set up: {0}")]
    SetUp(io::Error),
}

/// A storage in a box, as redb wants it.
#[derive(Debug)]
struct Boxed(Box<dyn StorageBackend>);

impl StorageBackend for Boxed {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write(offset, data)
    }
    fn close(&self) -> Result<(), io::Error> {
        self.0.close()
    }
}

impl Disk {
    /// Opens or makes the database on `storage`.
    ///
    /// # Errors
    /// [`DiskError`] when the storage fails or holds something else.
    pub fn open(storage: Box<dyn StorageBackend>, queue: Arc<dyn JobQueue>) -> Result<Self, DiskError> {
        let database = Database::builder().set_cache_size(CACHE_BYTES).create_with_backend(Boxed(storage))?;
        write(&database, |transaction| {
            transaction.open_table(LOG).map_err(io::Error::other)?;
            transaction.open_table(META).map_err(io::Error::other)?;
            transaction.open_table(SNAPSHOT).map_err(io::Error::other)?;
            Ok(())
        })
        .map_err(DiskError::SetUp)?;
        Ok(Self { database: Arc::new(database), queue })
    }

    /// Reads in a transaction, on the executor.
    pub(super) async fn read<T: Send + 'static>(
        &self,
        work: impl FnOnce(&redb::ReadTransaction) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let database = self.database.clone();
        self.run(move || work(&database.begin_read().map_err(io::Error::other)?)).await
    }

    /// Writes in a transaction, on the executor. Durable when it returns.
    pub(super) async fn write(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> io::Result<()> + Send + 'static,
    ) -> io::Result<()> {
        let database = self.database.clone();
        self.run(move || write(&database, work)).await
    }

    /// Writes in a transaction on the executor and tells `done` when it is durable, or that it failed. Returns at once;
    /// reads that are asked for later see what was written.
    pub(super) fn write_then(
        &self,
        work: impl FnOnce(&redb::WriteTransaction) -> io::Result<()> + Send + 'static,
        done: impl FnOnce(io::Result<()>) + Send + 'static,
    ) {
        let database = self.database.clone();
        self.queue.submit(Box::new(move || done(write(&database, work))));
    }

    async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (tell, told) = tokio::sync::oneshot::channel();
        self.queue.submit(Box::new(move || {
            // Whoever asked may be gone.
            let _ = tell.send(work());
        }));
        told.await.unwrap_or_else(|_| Err(io::Error::other("the disk's executor has ended")))
    }
}

fn write(
    database: &Database,
    work: impl FnOnce(&redb::WriteTransaction) -> io::Result<()>,
) -> io::Result<()> {
    let transaction = database.begin_write().map_err(io::Error::other)?;
    work(&transaction)?;
    transaction.commit().map_err(io::Error::other)
}
