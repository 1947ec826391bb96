//! Data folders that outlive a crash and lose what was not synced.
//!
//! A crash first cuts the running process off, so that whatever it still does while it is torn down never reaches the
//! disk. Then, of the writes since the last sync, each sector is kept or lost as the seed says. Bundles are kept whole:
//! a store acknowledges a put only once it is durable.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use object_store::ObjectStore;
use object_store::memory::InMemory;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use redb::StorageBackend;
use roost_node::environment::Files;

/// What a disk writes as one.
const SECTOR_BYTES: usize = 512;

/// The disk of one node. Cloning shares it.
#[derive(Clone, Default)]
pub struct SimDisk(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// Counts the crashes. A handle of an earlier life writes nowhere.
    life: u64,
    small: BTreeMap<String, Vec<u8>>,
    databases: BTreeMap<String, File>,
    bundles: BTreeMap<String, Arc<InMemory>>,
}

/// A file whose unsynced writes may be lost.
#[derive(Default)]
struct File {
    durable: Vec<u8>,
    /// What the running process reads.
    current: Vec<u8>,
    pending: Vec<Pending>,
    open: bool,
}

enum Pending {
    Length(usize),
    Write(usize, Vec<u8>),
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SimDisk")
    }
}

impl SimDisk {
    /// Cuts the running process off and decides what of its unsynced writes is kept.
    pub fn crash(&self, seed: u64) {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut inner = self.lock();
        inner.life += 1;
        for file in inner.databases.values_mut() {
            for pending in std::mem::take(&mut file.pending) {
                match pending {
                    Pending::Length(length) => file.durable.resize(length, 0),
                    Pending::Write(offset, bytes) => {
                        for (i, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                            if rng.random() {
                                write_at(&mut file.durable, offset + i * SECTOR_BYTES, sector);
                            }
                        }
                    }
                }
            }
            file.current = file.durable.clone();
            file.open = false;
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // One thread: nothing panics half-way through a change that goes on.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write_at(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if file.len() < offset + bytes.len() {
        file.resize(offset + bytes.len(), 0);
    }
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// A process's handle on the disk: dead after the next crash.
#[derive(Debug)]
pub struct SimFiles {
    disk: SimDisk,
    life: u64,
}

impl SimFiles {
    /// The folder as a process that starts now sees it.
    pub fn of(disk: &SimDisk) -> Self {
        Self { disk: disk.clone(), life: disk.lock().life }
    }
}

impl Files for SimFiles {
    fn read(&self, name: &str) -> io::Result<Option<Vec<u8>>> {
        Ok(self.disk.lock().small.get(name).cloned())
    }

    fn replace(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.lock();
        if inner.life == self.life {
            inner.small.insert(name.to_owned(), bytes.to_vec());
        }
        Ok(())
    }

    fn database(&self, name: &str) -> io::Result<Box<dyn StorageBackend>> {
        let mut inner = self.disk.lock();
        let file = inner.databases.entry(name.to_owned()).or_default();
        if std::mem::replace(&mut file.open, true) {
            return Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{name} is open already")));
        }
        Ok(Box::new(Handle { disk: self.disk.clone(), life: self.life, name: name.to_owned() }))
    }

    fn bundles(&self, folder: &str) -> io::Result<Arc<dyn ObjectStore>> {
        Ok(self.disk.lock().bundles.entry(folder.to_owned()).or_default().clone())
    }
}

/// An open database file.
#[derive(Debug)]
struct Handle {
    disk: SimDisk,
    life: u64,
    name: String,
}

impl Handle {
    /// Works on the file; nothing happens after a crash.
    fn with<T>(&self, work: impl FnOnce(&mut File) -> T) -> io::Result<T> {
        let mut inner = self.disk.lock();
        if inner.life != self.life {
            return Err(io::Error::other("the process crashed"));
        }
        let missing = || io::Error::new(io::ErrorKind::NotFound, self.name.clone());
        Ok(work(inner.databases.get_mut(&self.name).ok_or_else(missing)?))
    }
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        self.with(|file| file.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.with(|file| {
            let range = offset as usize..offset as usize + out.len();
            let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
            out.copy_from_slice(file.current.get(range).ok_or_else(short)?);
            Ok(())
        })?
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        self.with(|file| {
            file.current.resize(length as usize, 0);
            file.pending.push(Pending::Length(length as usize));
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        self.with(|file| {
            file.pending.clear();
            file.durable.clone_from(&file.current);
        })
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with(|file| {
            write_at(&mut file.current, offset as usize, data);
            file.pending.push(Pending::Write(offset as usize, data.to_vec()));
        })
    }

    fn close(&self) -> io::Result<()> {
        self.with(|file| file.open = false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_crash_loses_what_was_not_synced_and_cuts_the_process_off() {
        let disk = SimDisk::default();
        let files = SimFiles::of(&disk);
        let database = files.database("raft").unwrap();
        assert!(files.database("raft").is_err(), "opened twice");
        database.write(0, &[1; 1024]).unwrap();
        database.sync_data().unwrap();
        database.write(0, &[2; 64 * SECTOR_BYTES]).unwrap();
        disk.crash(7);
        database.write(0, &[3; 8]).unwrap_err();
        files.replace("late", b"x").unwrap();
        let files = SimFiles::of(&disk);
        assert_eq!(files.read("late").unwrap(), None);
        let database = files.database("raft").unwrap();
        let mut sector = [0; SECTOR_BYTES];
        let mut kept = 0;
        for i in 0..2 {
            database.read((i * SECTOR_BYTES) as u64, &mut sector).unwrap();
            assert!(sector == [1; SECTOR_BYTES] || sector == [2; SECTOR_BYTES]);
        }
        for i in 2..database.len().unwrap() as usize / SECTOR_BYTES {
            database.read((i * SECTOR_BYTES) as u64, &mut sector).unwrap();
            kept += usize::from(sector == [2; SECTOR_BYTES]);
        }
        assert!(kept > 10 && kept < 60, "{kept} of 62 sectors were kept");
    }
}
