//! A database file whose unsynced writes may be lost.

use std::collections::BTreeSet;
use std::io;

use rand::RngExt;
use rand::rngs::StdRng;
use redb::StorageBackend;

use super::{Inner, Life, Operation, Permit, dead};
use crate::coverage::Stored;

/// What a disk writes as one, unless it tears.
pub(super) const SECTOR_BYTES: usize = 512;
/// What takes its place on a disk at once.
const BLOCK_BYTES: usize = 4_096;
/// Of the sectors that a crash meets, those that are written in part.
const TORN: f64 = 0.1;

/// A file whose unsynced writes may be lost.
#[derive(Default)]
pub(super) struct File {
    durable: Vec<u8>,
    /// What the running process reads.
    current: Vec<u8>,
    pending: Vec<Pending>,
    /// The blocks that were ever written, which have their place on the disk.
    blocks: BTreeSet<usize>,
    open: bool,
}

enum Pending {
    Length(usize),
    Write(usize, Vec<u8>),
}

impl File {
    pub(super) fn durable(&self) -> &[u8] {
        &self.durable
    }

    /// Decides what of the unsynced writes is kept, sector by sector. Returns how many sectors were torn.
    pub(super) fn crash(&mut self, rng: &mut StdRng) -> u64 {
        let mut torn_sectors = 0;
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Length(length) => self.durable.resize(length, 0),
                Pending::Write(offset, bytes) => {
                    for (i, sector) in bytes.chunks(SECTOR_BYTES).enumerate() {
                        let at = offset + i * SECTOR_BYTES;
                        if rng.random_bool(TORN) {
                            torn_sectors += 1;
                            let torn = rng.random_range(0..sector.len());
                            write_at(&mut self.durable, at, &sector[..torn]);
                        } else if rng.random() {
                            write_at(&mut self.durable, at, sector);
                        }
                    }
                }
            }
        }
        self.current = self.durable.clone();
        self.open = false;
        torn_sectors
    }

    /// The blocks that hold so many bytes at an offset.
    fn blocks(offset: usize, bytes: usize) -> std::ops::Range<usize> {
        offset / BLOCK_BYTES..(offset + bytes).div_ceil(BLOCK_BYTES)
    }

    /// Whether these bytes lie where some were written before.
    fn has_room(&self, offset: usize, bytes: usize) -> bool {
        Self::blocks(offset, bytes).all(|block| self.blocks.contains(&block))
    }

    /// A sync fails. Some of what was to be synced is given up, though reads still see it: the kernel takes
    /// pages that it could not write for clean (Rebello et al., USENIX ATC 2020), so that a second sync does
    /// not bring them to the disk.
    fn fail_sync(&mut self, rng: &mut StdRng) {
        self.pending.retain(|pending| matches!(pending, Pending::Length(_)) || rng.random());
    }

    fn sync(&mut self) {
        for pending in std::mem::take(&mut self.pending) {
            match pending {
                Pending::Length(length) => self.durable.resize(length, 0),
                Pending::Write(offset, bytes) => write_at(&mut self.durable, offset, &bytes),
            }
        }
    }
}

fn write_at(file: &mut Vec<u8>, offset: usize, bytes: &[u8]) {
    if file.len() < offset + bytes.len() {
        file.resize(offset + bytes.len(), 0);
    }
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Opens a database file, which is made when there is none.
pub(super) fn open(life: &Life, name: &str) -> io::Result<Box<dyn StorageBackend>> {
    let mut inner = life.disk.lock();
    inner.begin(life.number, Operation::Read)?;
    let file = inner.databases.entry(name.to_owned()).or_default();
    if std::mem::replace(&mut file.open, true) {
        return Err(io::Error::new(io::ErrorKind::ResourceBusy, format!("{name} is open already")));
    }
    Ok(Box::new(Handle { life: life.clone(), name: name.to_owned() }))
}

/// An open database file.
#[derive(Debug)]
struct Handle {
    life: Life,
    name: String,
}

impl Handle {
    /// Changes the file; nothing happens after a crash.
    fn change(&self, operation: Operation, change: impl FnOnce(&mut File, Part)) -> io::Result<()> {
        let mut inner = self.life.disk.lock();
        let permit = inner.begin(self.life.number, operation)?;
        let (part, how) = match permit {
            Permit::Go => {
                change(self.file(&mut inner)?, Part::Whole);
                return Ok(());
            }
            Permit::Half => (Part::Half, "half-way through a write"),
            Permit::Last => (Part::Whole, "after it wrote"),
        };
        change(self.file(&mut inner)?, part);
        inner.fall(how);
        Err(dead())
    }

    fn file<'a>(&self, inner: &'a mut Inner) -> io::Result<&'a mut File> {
        let missing = || io::Error::new(io::ErrorKind::NotFound, self.name.clone());
        inner.databases.get_mut(&self.name).ok_or_else(missing)
    }
}

/// How much of a change is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Half,
    Whole,
}

impl StorageBackend for Handle {
    fn len(&self) -> io::Result<u64> {
        let mut inner = self.life.disk.lock();
        inner.begin(self.life.number, Operation::Read)?;
        Ok(self.file(&mut inner)?.current.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let mut inner = self.life.disk.lock();
        inner.begin(self.life.number, Operation::Read)?;
        let range = offset as usize..offset as usize + out.len();
        let short = || io::Error::from(io::ErrorKind::UnexpectedEof);
        out.copy_from_slice(self.file(&mut inner)?.current.get(range).ok_or_else(short)?);
        inner.blemish(Stored::Database, &self.name, out);
        Ok(())
    }

    fn set_len(&self, length: u64) -> io::Result<()> {
        // What it gains is a hole, which takes no room.
        self.change(Operation::Write, |file, _| {
            file.current.resize(length as usize, 0);
            file.blocks.retain(|block| block * BLOCK_BYTES < length as usize);
            file.pending.push(Pending::Length(length as usize));
        })
    }

    fn sync_data(&self) -> io::Result<()> {
        // Half a sync leaves the writes to the crash that follows.
        let synced = self.change(Operation::Sync, |file, part| {
            if part == Part::Whole {
                file.sync();
            }
        });
        if synced.is_err() {
            let inner = &mut *self.life.disk.lock();
            let Inner { life, rng, databases, .. } = inner;
            if let Some(file) = databases.get_mut(&self.name).filter(|_| *life == self.life.number) {
                file.fail_sync(rng);
            }
        }
        synced
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let (at, bytes) = (offset as usize, data.len());
        let has_room = self.file(&mut self.life.disk.lock())?.has_room(at, bytes);
        self.change(if has_room { Operation::Write } else { Operation::Grow }, |file, part| {
            file.blocks.extend(File::blocks(at, bytes));
            let data = if part == Part::Half { &data[..data.len() / 2] } else { data };
            write_at(&mut file.current, offset as usize, data);
            file.pending.push(Pending::Write(offset as usize, data.to_vec()));
        })
    }

    fn close(&self) -> io::Result<()> {
        let mut inner = self.life.disk.lock();
        if inner.life == self.life.number {
            self.file(&mut inner)?.open = false;
        }
        Ok(())
    }
}
