//! A disk in memory that does one thing wrong, at a counted position, and knows what a power failure would leave of it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard};

use redb::StorageBackend;

/// What the disk does wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    None,
    /// The write of that number fails, half of it done.
    Write(u64),
    /// There is no room for the write of that number and for those after it.
    Full(u64),
    /// The fsync of that number fails.
    Sync(u64),
    /// The power fails ahead of the operation of that number, writes and fsyncs counted together.
    Cut(u64),
    /// The power fails in the midst of the write of that number: its tail is torn off, at a byte that the number chooses.
    Torn(u64),
    /// One bit of the read of that number is another; the second number says which.
    Read(u64, u64),
}

/// A write that is not durable yet.
#[derive(Debug, Clone)]
enum Pending {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

/// How many of each the disk has done.
#[derive(Debug, Clone, Copy, Default)]
pub struct Counts {
    pub writes: u64,
    pub syncs: u64,
    pub reads: u64,
    /// Writes and fsyncs after the fault, of which there should be none.
    pub after_fault: u64,
}

/// A disk in memory that knows what is durable. Clones are the same disk.
#[derive(Debug, Clone)]
pub struct Disk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    durable: Vec<u8>,
    pending: Vec<Pending>,
    present: Vec<u8>,
    fault: Fault,
    counts: Counts,
    failed: bool,
    torn: bool,
}

impl Disk {
    /// A disk that holds `image`.
    pub fn new(image: Vec<u8>, fault: Fault) -> Self {
        let (durable, present) = (image.clone(), image);
        let (pending, counts) = (Vec::new(), Counts::default());
        let (failed, torn) = (false, false);
        Self(Arc::new(Mutex::new(Inner { durable, pending, present, fault, counts, failed, torn })))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap()
    }

    /// What a process finds that is started again while the machine goes on.
    pub fn after_kill(&self) -> Vec<u8> {
        self.lock().present.clone()
    }

    /// What a power failure leaves: what is durable, and of the rest each write whole, torn or not at all, as `seed` has it.
    pub fn after_power_failure(&self, seed: u64) -> Vec<u8> {
        let inner = self.lock();
        let mut image = inner.durable.clone();
        let mut chance =
            0x9e37_79b9_7f4a_7c15 ^ (inner.counts.writes << 20 | inner.counts.syncs) ^ seed << 40;
        for pending in &inner.pending {
            // xorshift64 (Marsaglia, 2003): a sequence per position.
            chance ^= chance << 13;
            chance ^= chance >> 7;
            chance ^= chance << 17;
            match (pending, chance % 3) {
                (_, 0) => {}
                (Pending::Bytes(at, bytes), 1) => put(&mut image, *at, &bytes[..bytes.len() / 2]),
                (pending, _) => apply(&mut image, pending),
            }
        }
        image
    }

    pub fn counts(&self) -> Counts {
        self.lock().counts
    }

    /// Whether the fault was met.
    pub fn failed(&self) -> bool {
        self.lock().failed
    }

    /// Whether the tail of a write was torn off: not that of a new length, nor of a single byte.
    pub fn torn(&self) -> bool {
        self.lock().torn
    }
}

fn put(image: &mut Vec<u8>, at: u64, bytes: &[u8]) {
    let end = at as usize + bytes.len();
    if image.len() < end {
        image.resize(end, 0);
    }
    image[at as usize..end].copy_from_slice(bytes);
}

fn apply(image: &mut Vec<u8>, pending: &Pending) {
    match pending {
        Pending::Bytes(at, bytes) => put(image, *at, bytes),
        Pending::Length(length) => image.resize(*length as usize, 0),
    }
}

impl Inner {
    fn fail(&mut self, kind: io::ErrorKind, what: &str) -> io::Error {
        self.failed = true;
        io::Error::new(kind, format!("the test's disk {what}"))
    }

    /// Fails once the power does.
    fn powered(&mut self) -> io::Result<()> {
        self.counts.after_fault += u64::from(self.failed);
        match self.fault {
            Fault::Cut(at) if self.counts.writes + self.counts.syncs >= at => {
                Err(self.fail(io::ErrorKind::Other, "has no power"))
            }
            Fault::Torn(_) if self.failed => Err(self.fail(io::ErrorKind::Other, "has no power")),
            _ => Ok(()),
        }
    }

    fn change(&mut self, pending: Pending) -> io::Result<()> {
        self.counts.writes += 1;
        self.powered()?;
        match self.fault {
            Fault::Write(at) if at == self.counts.writes => {
                if let Pending::Bytes(at, bytes) = &pending {
                    self.take(Pending::Bytes(*at, bytes[..bytes.len() / 2].to_vec()));
                }
                Err(self.fail(io::ErrorKind::Other, "failed a write"))
            }
            Fault::Torn(at) if at == self.counts.writes => {
                if let Pending::Bytes(offset, bytes) = &pending
                    && bytes.len() > 1
                {
                    let rest = 1 + spread(at) % (bytes.len() - 1);
                    self.take(Pending::Bytes(*offset, bytes[..rest].to_vec()));
                    self.torn = true;
                }
                Err(self.fail(io::ErrorKind::Other, "has no power"))
            }
            Fault::Full(at) if at <= self.counts.writes => {
                Err(self.fail(io::ErrorKind::StorageFull, "has no room"))
            }
            _ => {
                self.take(pending);
                Ok(())
            }
        }
    }

    fn take(&mut self, pending: Pending) {
        apply(&mut self.present, &pending);
        self.pending.push(pending);
    }
}

/// Fibonacci hashing (Knuth, volume 3, section 6.4): far apart for neighbours.
pub fn spread(number: u64) -> usize {
    (number.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20) as usize
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.lock().present.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let mut inner = self.lock();
        inner.counts.reads += 1;
        let bytes = inner.present.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        if let Fault::Read(read, which) = inner.fault
            && read == inner.counts.reads
        {
            let at = spread(read << 8 | which) % (out.len() * 8);
            out[at / 8] ^= 1 << (at % 8);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.lock().change(Pending::Length(len))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut inner = self.lock();
        inner.counts.syncs += 1;
        inner.powered()?;
        if inner.fault == Fault::Sync(inner.counts.syncs) {
            return Err(inner.fail(io::ErrorKind::Other, "failed an fsync"));
        }
        for pending in std::mem::take(&mut inner.pending) {
            apply(&mut inner.durable, &pending);
        }
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.lock().change(Pending::Bytes(offset, data.to_vec()))
    }
}
