//! The disk of one node: it outlives a crash, loses what was not synced, and fails as the seed says.
//!
//! A crash first cuts the running process off, so that whatever it still does while it is torn down reaches
//! neither the disk nor the network. Then, of the writes since the last sync, each sector is kept, lost or
//! torn. Small files and objects of the bundle store are replaced whole and durably, as their contracts say;
//! a deletion may be undone by a crash. A flip is one of the read alone: whoever reads again, as a process
//! does that is started anew, reads other bits.
//!
//! Faults are drawn per operation from the disk's own generator, at the rates of [`DiskFaults`]. A [`Trap`]
//! kills the process at one operation or packet: before it, half-way through it, or right after it.

mod file;
mod store;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use object_store::ObjectStore;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;
use roost_node::environment::Files;

use self::file::File;
use self::store::Store;
use crate::condition::Conditions;
use crate::coverage::{Rare, Stored, Tally};
use crate::trace;

/// How often operations go wrong, as shares of one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct DiskFaults {
    /// Reads that return one bit flipped. The medium itself is sound.
    pub flip: f64,
    /// Reads that fail.
    pub fail_read: f64,
    /// Writes and syncs that fail.
    pub fail_write: f64,
    /// Whether nothing can be added: what was never written cannot be, though a file may be told to be
    /// longer.
    pub full: bool,
}

/// What an operation takes, as an fsync does on a good SSD.
pub const DISK: Duration = Duration::from_millis(1);

/// Where in an operation the process dies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Moment {
    /// Nothing of it is done.
    Before,
    /// Part of it is done, where it has parts.
    During,
    /// It is done, and nobody hears of it.
    After,
}

/// Kills the process at an operation to come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trap {
    /// Operations that still go well.
    pub after: u32,
    /// Where in the one that does not.
    pub moment: Moment,
    /// What is counted.
    pub counted: Counted,
}

/// What a [`Trap`] counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Counted {
    /// Writes, syncs and replacements on the disk.
    Writes,
    /// Reads of the disk.
    Reads,
    /// Packets sent.
    Sent,
    /// Packets received.
    Received,
}

/// The processes that a trap killed and that the world has yet to tear down.
#[derive(Debug, Clone, Default)]
pub struct Casualties(Arc<Mutex<Vec<String>>>);

impl Casualties {
    /// Takes them.
    pub fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Adds one.
    pub(crate) fn add(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }

    /// Takes one out that is torn down otherwise.
    pub(crate) fn remove(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).retain(|casualty| casualty != name);
    }
}

/// The disk of one node. Cloning shares it.
#[derive(Clone)]
pub struct SimDisk(Arc<Mutex<Inner>>);

struct Inner {
    name: String,
    casualties: Casualties,
    tally: Tally,
    rng: StdRng,
    faults: DiskFaults,
    trap: Option<Trap>,
    /// Counts the crashes. A handle of an earlier life writes nowhere.
    life: u64,
    small: BTreeMap<String, Vec<u8>>,
    databases: BTreeMap<String, File>,
    stores: BTreeMap<String, BTreeMap<String, Object>>,
    /// Operations that went wrong.
    failures: u64,
    /// When a read of each store, database or small file last returned a flipped bit.
    flipped: BTreeMap<String, Duration>,
}

/// An object of a store.
#[derive(Debug, Clone)]
struct Object {
    bytes: Bytes,
    /// Whether it was deleted, which the next crash may undo.
    deleted: bool,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    /// An empty disk of the node `name`.
    pub fn new(name: &str, seed: u64, casualties: Casualties) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            name: name.to_owned(),
            casualties,
            tally: Tally::default(),
            rng: StdRng::seed_from_u64(seed),
            faults: DiskFaults::default(),
            trap: None,
            life: 0,
            small: BTreeMap::new(),
            databases: BTreeMap::new(),
            stores: BTreeMap::new(),
            failures: 0,
            flipped: BTreeMap::new(),
        })))
    }

    /// Has what goes wrong counted.
    #[must_use]
    pub fn counted_by(self, tally: Tally) -> Self {
        self.lock().tally = tally;
        self
    }

    /// The process that starts now.
    pub fn life(&self) -> Life {
        Life { disk: self.clone(), number: self.lock().life }
    }

    /// Cuts the running process off and decides what of its unsynced writes is kept.
    pub fn crash(&self) {
        self.lock().die();
    }

    /// Changes what goes wrong from now on. Returns what it is then.
    pub fn change_faults(&self, change: impl FnOnce(&mut DiskFaults)) -> DiskFaults {
        let mut inner = self.lock();
        change(&mut inner.faults);
        inner.faults
    }

    /// How much went wrong so far.
    pub fn failures(&self) -> u64 {
        self.lock().failures
    }

    /// When a read of a store, a database or a small file last returned a flipped bit.
    pub fn flipped(&self, name: &str) -> Option<Duration> {
        self.lock().flipped.get(name).copied()
    }

    /// Kills the process later; `None` calls it off.
    pub fn set_trap(&self, trap: Option<Trap>) {
        self.lock().trap = trap;
    }

    /// Removes everything. The process must be dead.
    pub fn wipe(&self) {
        let mut inner = self.lock();
        inner.small.clear();
        inner.databases.clear();
        inner.stores.clear();
    }

    /// Removes the databases alone. The process must be dead.
    pub fn wipe_databases(&self) {
        self.lock().databases.clear();
    }

    /// The durable bytes of a database; `None` when there is none.
    pub fn database(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().databases.get(name).map(|file| file.durable().to_vec())
    }

    /// The objects of a store, by their paths.
    pub fn objects(&self, folder: &str) -> BTreeMap<String, Bytes> {
        let inner = self.lock();
        let objects = inner.stores.get(folder).into_iter().flatten();
        let live = objects.filter(|(_, object)| !object.deleted);
        live.map(|(path, object)| (path.clone(), object.bytes.clone())).collect()
    }

    /// A small file.
    pub fn small(&self, name: &str) -> Option<Vec<u8>> {
        self.lock().small.get(name).cloned()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // One thread: nothing panics half-way through a change that goes on.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an operation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operation {
    Read,
    /// Changes what is there already.
    Write,
    /// Makes what is there durable.
    Sync,
    /// Takes more room.
    Grow,
}

/// Whether an operation goes on.
enum Permit {
    Go,
    /// It is done in part, then the process dies.
    Half,
    /// It is done, then the process dies.
    Last,
}

impl Inner {
    fn die(&mut self) {
        self.life += 1;
        self.trap = None;
        for file in self.databases.values_mut() {
            let torn = file.crash(&mut self.rng);
            self.tally.add_times(Rare::SectorTorn, torn);
        }
        for store in self.stores.values_mut() {
            store.retain(|_, object| !object.deleted || self.rng.random());
            store.values_mut().for_each(|object| object.deleted = false);
        }
    }

    /// The process dies by the trap.
    fn fall(&mut self, how: &str) {
        trace::line(format_args!("{} dies {how}", self.name));
        self.casualties.add(&self.name);
        self.die();
    }

    /// Counts down to the trap. `None`: it is not this operation.
    fn spring(&mut self, counted: Counted) -> Option<Moment> {
        let trap = self.trap.as_mut().filter(|trap| trap.counted == counted)?;
        if trap.after > 0 {
            trap.after -= 1;
            return None;
        }
        let Trap { moment, .. } = self.trap.take()?;
        self.tally.add(Rare::Trapped(counted, moment));
        Some(moment)
    }

    /// Begins an operation of the process `life`.
    fn begin(&mut self, life: u64, operation: Operation) -> io::Result<Permit> {
        if self.life != life {
            return Err(dead());
        }
        let (rate, rare) = match operation {
            Operation::Read => (self.faults.fail_read, Rare::ReadFailed),
            Operation::Write | Operation::Grow => (self.faults.fail_write, Rare::WriteFailed),
            Operation::Sync => (self.faults.fail_write, Rare::SyncFailed),
        };
        if rate > 0.0 && self.rng.random_bool(rate) {
            self.failures += 1;
            self.tally.add(rare);
            trace::line(format_args!("{} disk: a {operation:?} fails", self.name));
            return Err(io::Error::other("the simulated disk failed"));
        }
        if operation == Operation::Grow && self.faults.full {
            self.failures += 1;
            self.tally.add(Rare::DiskFull);
            trace::line(format_args!("{} disk: it is full", self.name));
            return Err(io::Error::new(io::ErrorKind::StorageFull, "the simulated disk is full"));
        }
        if operation == Operation::Read {
            // A read has no halves, and nobody hears of one that is followed by death.
            return match self.spring(Counted::Reads) {
                None => Ok(Permit::Go),
                Some(_) => {
                    self.fall("as it reads");
                    Err(dead())
                }
            };
        }
        match self.spring(Counted::Writes) {
            None => Ok(Permit::Go),
            Some(Moment::Before) => {
                self.fall("before it writes");
                Err(dead())
            }
            Some(Moment::During) => Ok(Permit::Half),
            Some(Moment::After) => Ok(Permit::Last),
        }
    }

    /// Flips a bit of what was read of `name`, if it comes to that.
    fn blemish(&mut self, stored: Stored, name: &str, read: &mut [u8]) {
        if self.faults.flip > 0.0 && !read.is_empty() && self.rng.random_bool(self.faults.flip) {
            let bit = self.rng.random_range(0..read.len() * 8);
            read[bit / 8] ^= 1 << (bit % 8);
            self.failures += 1;
            self.tally.add(Rare::Flipped(stored));
            self.flipped.insert(name.to_owned(), trace::now());
            let (node, bytes) = (&self.name, read.len());
            trace::line(format_args!("{node} disk: bit {bit} of {bytes} bytes of {name} is read flipped"));
        }
    }
}

fn dead() -> io::Error {
    io::Error::other("the process crashed")
}

/// A process's hold on its disk and its network: nothing passes after its death.
#[derive(Debug, Clone)]
pub struct Life {
    disk: SimDisk,
    number: u64,
}

impl Life {
    /// Whether a packet arrives. The process may die of it.
    pub fn receives(&self) -> bool {
        let mut inner = self.disk.lock();
        if inner.life != self.number {
            return false;
        }
        match inner.spring(Counted::Received) {
            None => true,
            Some(moment) => {
                inner.fall("as it receives");
                // What it still does with the packet stays within it.
                moment == Moment::After
            }
        }
    }

    /// Whether a packet leaves. The process may die of it.
    pub fn sends(&self) -> bool {
        let mut inner = self.disk.lock();
        if inner.life != self.number {
            return false;
        }
        match inner.spring(Counted::Sent) {
            None => true,
            Some(Moment::Before) => {
                inner.fall("before it sends");
                false
            }
            // A packet has no halves.
            Some(Moment::During | Moment::After) => {
                inner.fall("after it sent");
                true
            }
        }
    }
}

/// A process's data folder.
#[derive(Debug)]
pub struct SimFiles {
    life: Life,
    conditions: Conditions,
}

impl SimFiles {
    /// The folder as the process sees it.
    pub fn of(life: Life, conditions: Conditions) -> Self {
        Self { life, conditions }
    }
}

impl Files for SimFiles {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut inner = self.life.disk.lock();
        inner.begin(self.life.number, Operation::Read)?;
        let mut bytes = inner.small.get(name).cloned();
        if let Some(bytes) = &mut bytes {
            inner.blemish(Stored::File, name, bytes);
        }
        Ok(bytes)
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.life.disk.lock();
        let permit = inner.begin(self.life.number, Operation::Grow)?;
        let done = match permit {
            Permit::Go | Permit::Last => true,
            Permit::Half => inner.rng.random(),
        };
        if done {
            inner.small.insert(name.to_owned(), bytes.to_vec());
        }
        match permit {
            Permit::Go => Ok(()),
            Permit::Half | Permit::Last => {
                inner.fall("as it replaces a file");
                Err(dead())
            }
        }
    }

    fn database(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        file::open(&self.life, name)
    }

    fn bundles(&self, folder: &str) -> io::Result<Arc<dyn ObjectStore>> {
        Ok(Arc::new(Store::new(self.life.clone(), folder, self.conditions.clone())))
    }
}

#[cfg(test)]
mod tests;
