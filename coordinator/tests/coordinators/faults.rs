//! A disk that fails one write or one fsync, or returns a flipped bit: the coordinator stops and says why, or goes on rightly.
//! It never answers from what is damaged, never writes after a failure, and what it acknowledged is there when its disk is
//! started again.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use redb::StorageBackend;
use roost_protocol::ControlError;
use roost_protocol::messages::control::{Answer, Change, ControlRequest, ControlResponse, Query};
use roost_protocol::{Epoch, RequestId};
use tokio::time::Instant;

use crate::party::{Member, Operator, PATIENCE, Party, Start, ask_at, files_of};

/// Changes that each run makes.
const CHANGES: u8 = 12;
/// Bits that are flipped in each read, one by one.
const BITS: u64 = 4;
/// Runs at once.
const AT_ONCE: usize = 4;

/// What the disk does wrong, once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// The write of that number fails, half of it done.
    Write(u64),
    /// The fsync of that number fails.
    Sync(u64),
    /// One bit of the read of that number is another; the second number says which.
    Read(u64, u64),
}

/// A write that is not durable yet.
#[derive(Debug, Clone)]
enum Pending {
    Bytes(u64, Vec<u8>),
    Length(u64),
}

/// A disk in memory that knows what is durable.
#[derive(Debug, Clone)]
struct Disk(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    durable: Vec<u8>,
    pending: Vec<Pending>,
    present: Vec<u8>,
    fault: Fault,
    writes: u64,
    syncs: u64,
    reads: u64,
    failed: bool,
    /// Writes and fsyncs after the failure, of which there should be none.
    after_failure: u64,
}

impl Disk {
    fn new(image: Vec<u8>, fault: Fault) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            durable: image.clone(),
            pending: Vec::new(),
            present: image,
            fault,
            writes: 0,
            syncs: 0,
            reads: 0,
            failed: false,
            after_failure: 0,
        })))
    }

    /// What a power failure leaves: what is durable, and of the rest each write whole, torn or not at all.
    fn after_power_failure(&self) -> Vec<u8> {
        let inner = self.0.lock().unwrap();
        let mut image = inner.durable.clone();
        let mut chance = 0x9e37_79b9_7f4a_7c15 ^ (inner.writes << 20 | inner.syncs);
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

    fn counts(&self) -> (u64, u64, u64) {
        let inner = self.0.lock().unwrap();
        (inner.writes, inner.syncs, inner.reads)
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
    fn fail(&mut self, what: &str) -> io::Error {
        self.failed = true;
        io::Error::other(format!("the test's disk failed a {what}"))
    }

    fn change(&mut self, pending: Pending) -> io::Result<()> {
        self.after_failure += u64::from(self.failed);
        self.writes += 1;
        if self.fault == Fault::Write(self.writes) {
            if let Pending::Bytes(at, bytes) = &pending {
                let half = Pending::Bytes(*at, bytes[..bytes.len() / 2].to_vec());
                apply(&mut self.present, &half);
                self.pending.push(half);
            }
            return Err(self.fail("write"));
        }
        apply(&mut self.present, &pending);
        self.pending.push(pending);
        Ok(())
    }
}

impl StorageBackend for Disk {
    fn len(&self) -> Result<u64, io::Error> {
        Ok(self.0.lock().unwrap().present.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        let mut inner = self.0.lock().unwrap();
        inner.reads += 1;
        let bytes = inner.present.get(offset as usize..offset as usize + out.len());
        out.copy_from_slice(bytes.ok_or(io::ErrorKind::UnexpectedEof)?);
        if let Fault::Read(read, which) = inner.fault
            && read == inner.reads
        {
            // Fibonacci hashing (Knuth, volume 3, section 6.4): far apart for neighbours.
            let at = (read << 8 | which).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
            let at = at as usize % (out.len() * 8);
            out[at / 8] ^= 1 << (at % 8);
        }
        Ok(())
    }

    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.lock().unwrap().change(Pending::Length(len))
    }

    fn sync_data(&self) -> Result<(), io::Error> {
        let mut inner = self.0.lock().unwrap();
        inner.after_failure += u64::from(inner.failed);
        inner.syncs += 1;
        if inner.fault == Fault::Sync(inner.syncs) {
            return Err(inner.fail("fsync"));
        }
        inner.durable = inner.present.clone();
        inner.pending.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.lock().unwrap().change(Pending::Bytes(offset, data.to_vec()))
    }
}

/// The bundle that a change reserves.
fn content(change: u8) -> Vec<u8> {
    vec![change; 3]
}

/// A coordinator of its own on a disk of its own.
struct Run {
    party: Party,
    operator: Operator,
    disk: Disk,
    /// What a power failure would have left when the changes were made.
    left: Mutex<Vec<u8>>,
}

/// How a run ended.
#[derive(Debug)]
enum End {
    /// It did not start.
    NotStarted(String),
    /// It stopped by itself.
    Failed(String),
    /// It went on to the end.
    WentOn,
}

impl Run {
    async fn new(image: Vec<u8>, fault: Fault) -> Self {
        let party = Party::new(1);
        let operator = party.operator().await;
        Self { party, operator, disk: Disk::new(image, fault), left: Mutex::default() }
    }

    async fn start(&self) -> Result<Member, String> {
        let storage: Box<dyn StorageBackend> = Box::new(self.disk.clone());
        let started = self.party.start(1, Start { storage: Some(storage), ..Start::default() }).await;
        started.map_err(|error| error.to_string())
    }

    async fn ask(&self, request: &ControlRequest) -> Result<ControlResponse, ControlError> {
        ask_at(&self.operator.control, self.party.address(1), request).await
    }

    /// Asks until it is answered.
    async fn insist(&self, request: &ControlRequest) -> Result<ControlResponse, ControlError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ask(request).await {
                // The answer to a query for a bundle that is not there.
                Err(error @ ControlError::NoBundle { .. }) => return Err(error),
                Err(error) if error.retryable() => assert!(Instant::now() < deadline, "{error}"),
                answer => return answer,
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// Makes the changes one after the other, and returns how many were acknowledged and how it ended.
    async fn make_changes(&self) -> (u8, End) {
        let member = match self.start().await {
            Ok(member) => member,
            Err(reason) => return (0, End::NotStarted(reason)),
        };
        let mut acknowledged = 0;
        let changes = async {
            for change in 1..=CHANGES {
                let files = files_of(&content(change));
                let (request, sent) = (RequestId(change.into()), Epoch::default());
                let change = Change::ReservePush { files };
                self.insist(&ControlRequest::Change { request, sent, change }).await.unwrap();
                acknowledged += 1;
            }
        };
        let end = self.watch(&member, changes).await;
        *self.left.lock().unwrap() = self.disk.after_power_failure();
        member.stop().await;
        (acknowledged, end)
    }

    /// Does something until it is done or the coordinator fails.
    async fn watch(&self, member: &Member, work: impl Future<Output = ()>) -> End {
        let failed = member.coordinator.failed();
        let end = tokio::select! {
            () = work => End::WentOn,
            reason = failed => End::Failed(reason),
        };
        if matches!(end, End::Failed(_)) {
            let answer = self.ask(&ControlRequest::Query(Query::Models)).await;
            assert!(answer.is_err(), "it answers though it failed: {answer:?}");
        }
        end
    }

    /// Looks for the acknowledged changes. Those after them are there or not.
    async fn look(&self, acknowledged: u8) -> End {
        let member = match self.start().await {
            Ok(member) => member,
            Err(reason) => return End::NotStarted(reason),
        };
        let looks = async {
            for change in 1..=CHANGES {
                let files = files_of(&content(change));
                match self.insist(&ControlRequest::Query(Query::Files(files.digest()))).await {
                    Ok(ControlResponse::Answer(answer)) => assert_eq!(*answer, Answer::Files(files)),
                    Err(ControlError::NoBundle { .. }) if change > acknowledged => {}
                    other => panic!("change {change} of {acknowledged}: {other:?}"),
                }
            }
        };
        let end = self.watch(&member, looks).await;
        member.stop().await;
        end
    }
}

/// Up to so many numbers from 1 to `last`, spread evenly.
fn spread(last: u64, count: u64) -> Vec<u64> {
    let count = count.min(last);
    (0..count).map(|i| 1 + i * last / count).collect()
}

/// Makes the changes on a disk that fails once, and looks for them. Returns whether it failed.
async fn fails_once(fault: Fault) -> bool {
    let run = Run::new(Vec::new(), fault).await;
    let (acknowledged, end) = run.make_changes().await;
    let (failed, after_failure) = {
        let inner = run.disk.0.lock().unwrap();
        (inner.failed, inner.after_failure)
    };
    assert_eq!(after_failure, 0, "{fault:?}: something was written after the failure");
    match &end {
        End::NotStarted(reason) | End::Failed(reason) => {
            assert!(failed && reason.contains("the test's disk failed a"), "{fault:?}: {reason}");
        }
        // The fault came when it stopped, or not at all: runs differ in how many entries they write at once.
        End::WentOn => assert_eq!(acknowledged, CHANGES),
    }
    let again = Run::new(run.disk.after_power_failure(), Fault::None).await;
    let found = again.look(acknowledged).await;
    assert!(matches!(found, End::WentOn), "{fault:?}, {acknowledged} acknowledged, {end:?}: {found:?}");
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_once_stops_the_coordinator_and_loses_nothing() {
    let sound = Run::new(Vec::new(), Fault::None).await;
    let (acknowledged, end) = sound.make_changes().await;
    assert!(matches!(end, End::WentOn) && acknowledged == CHANGES, "{end:?}");
    let (writes, syncs, _) = sound.disk.counts();
    let mut faults: Vec<Fault> = spread(writes, 60).into_iter().map(Fault::Write).collect();
    faults.extend(spread(syncs, 40).into_iter().map(Fault::Sync));
    let runs: Vec<bool> = stream::iter(faults).map(fails_once).buffer_unordered(AT_ONCE).collect().await;
    let failures = runs.iter().filter(|failed| **failed).count();
    assert!(failures > 90, "{failures} of {} faults were met", runs.len());
}

/// Starts on `image` with a bit flipped, and looks for the changes. Returns whether it was found.
async fn flips_once(image: Vec<u8>, fault: Fault) -> bool {
    let run = Run::new(image, fault).await;
    let end = run.look(CHANGES).await;
    let found = match &end {
        End::NotStarted(reason) | End::Failed(reason) => {
            assert!(!reason.is_empty());
            true
        }
        End::WentOn => false,
    };
    // Nor did what it wrote meanwhile come from what it misread.
    let again = Run::new(run.disk.after_power_failure(), Fault::None).await;
    let ended = again.look(CHANGES).await;
    assert!(matches!(ended, End::WentOn), "{fault:?}: {end:?}, then {ended:?}");
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_found_or_does_not_matter() {
    let sound = Run::new(Vec::new(), Fault::None).await;
    sound.make_changes().await;
    let image = sound.left.lock().unwrap().clone();
    let clean = Run::new(image.clone(), Fault::None).await;
    assert!(matches!(clean.look(CHANGES).await, End::WentOn));
    let (_, _, reads) = clean.disk.counts();
    let mut faults = Vec::new();
    for read in 1..=reads {
        faults.extend((0..BITS).map(|which| Fault::Read(read, which)));
    }
    let runs = stream::iter(faults).map(|fault| flips_once(image.clone(), fault));
    let runs: Vec<bool> = runs.buffer_unordered(AT_ONCE).collect().await;
    assert!(runs.contains(&true), "no flipped bit was met");
}
