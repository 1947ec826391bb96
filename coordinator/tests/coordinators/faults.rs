//! A disk that is full, fails one write or one fsync, loses power, or returns a flipped bit: the coordinator stops and names what
//! the disk did, or goes on rightly. It never answers from what is damaged, never writes after a failure, and what it
//! acknowledged is there when its disk is started again.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use redb::StorageBackend;
use roost_coordinator::raft::disk::DiskError;
use roost_coordinator::{DiskFault, StartError};
use roost_protocol::ControlError;
use roost_protocol::messages::control::{Answer, Change, ControlRequest, ControlResponse, Query};
use roost_protocol::{Epoch, RequestId};
use tokio::time::Instant;

use crate::disk::{Disk, Fault};
use crate::party::{Member, Operator, PATIENCE, Party, Start, ask_at, files_of};

/// Changes that each run makes.
const CHANGES: u8 = 12;
/// Bits that are flipped in each read, one by one.
const BITS: u64 = 4;
/// Runs at once.
const AT_ONCE: usize = 4;

/// One at a time of the tests that start hundreds of coordinators: others would wait for their elections.
pub static MANY: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// The bundle that a change reserves.
fn content(change: u8) -> Vec<u8> {
    vec![change; 3]
}

/// A coordinator of its own on a disk of its own.
pub struct Run {
    party: Party,
    operator: Operator,
    pub disk: Disk,
}

/// What a run of changes led to.
pub struct Made {
    acknowledged: u8,
    pub end: End,
    /// What the disk may hold afterwards: as a kill leaves it, and as a power failure does.
    pub images: Vec<Vec<u8>>,
}

impl Made {
    /// How many changes were acknowledged, the first ones.
    pub fn acknowledged(&self) -> u8 {
        self.acknowledged
    }
}

/// How a run ended.
#[derive(Debug)]
pub enum End {
    /// It did not start.
    NotStarted(StartError),
    /// It stopped by itself, with this reason, because the disk did this.
    Failed(String, Option<DiskFault>),
    /// It went on to the end.
    WentOn,
}

impl End {
    /// What the disk did wrong, as the coordinator names it.
    ///
    /// # Panics
    /// When the coordinator stopped and names nothing.
    pub fn fault(&self) -> Option<DiskFault> {
        match self {
            Self::WentOn => None,
            Self::NotStarted(error) => Some(error.disk_fault().unwrap_or_else(|| panic!("{error}"))),
            Self::Failed(reason, fault) => {
                let fault = fault.clone().unwrap_or_else(|| panic!("{reason}"));
                assert_eq!(*reason, fault.to_string());
                Some(fault)
            }
        }
    }
}

impl Run {
    pub async fn new(image: Vec<u8>, fault: Fault) -> Self {
        let party = Party::new(1);
        let operator = party.operator().await;
        Self { party, operator, disk: Disk::new(image, fault) }
    }

    async fn start(&self) -> Result<Member, StartError> {
        let storage: Box<dyn StorageBackend> = Box::new(self.disk.clone());
        self.party.start(1, Start { storage: Some(storage), ..Start::default() }).await
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
    pub async fn make_changes(&self) -> Made {
        let member = match self.start().await {
            Ok(member) => member,
            Err(error) => return self.made(0, End::NotStarted(error)),
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
        let made = self.made(acknowledged, end);
        member.stop().await;
        made
    }

    /// What there is before the coordinator stops, which writes once more.
    fn made(&self, acknowledged: u8, end: End) -> Made {
        let images =
            vec![self.disk.after_kill(), self.disk.after_power_failure(1), self.disk.after_power_failure(2)];
        Made { acknowledged, end, images }
    }

    /// Does something until it is done or the coordinator fails.
    async fn watch(&self, member: &Member, work: impl Future<Output = ()>) -> End {
        let failed = member.coordinator.failed();
        let end = tokio::select! {
            () = work => End::WentOn,
            reason = failed => End::Failed(reason, member.coordinator.disk_fault()),
        };
        if matches!(end, End::Failed(..)) {
            let answer = self.ask(&ControlRequest::Query(Query::Models)).await;
            assert!(answer.is_err(), "it answers though it failed: {answer:?}");
        }
        end
    }

    /// Looks for the acknowledged changes. Those after them are there or not.
    pub async fn look(&self, acknowledged: u8) -> End {
        let member = match self.start().await {
            Ok(member) => member,
            Err(error) => return End::NotStarted(error),
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
pub fn spread(last: u64, count: u64) -> Vec<u64> {
    let count = count.min(last);
    (0..count).map(|i| 1 + i * last / count).collect()
}

/// Whether a coordinator names what its disk did. Where the power fails, whatever comes next does.
pub fn names(named: &DiskFault, fault: Fault) -> bool {
    match (fault, named) {
        (Fault::Write(_), DiskFault::Write(why)) => why.contains("failed a write"),
        (Fault::Full(_), DiskFault::Full(why)) => why.contains("has no room"),
        (Fault::Sync(_), DiskFault::Sync(why)) => why.contains("failed an fsync"),
        (Fault::Cut(_), DiskFault::Write(why) | DiskFault::Sync(why)) => why.contains("has no power"),
        (Fault::Torn(_), DiskFault::Write(why)) => why.contains("has no power"),
        (Fault::Read(..), DiskFault::Damaged(_) | DiskFault::Stopped(_)) => true,
        _ => false,
    }
}

/// Makes the changes on a disk that fails once, and looks for them on what it holds afterwards. Returns whether it failed.
async fn fails_once(fault: Fault) -> (Fault, bool) {
    let run = Run::new(Vec::new(), fault).await;
    let Made { acknowledged, end, images } = run.make_changes().await;
    assert_eq!(run.disk.counts().after_fault, 0, "{fault:?}: something was written after the failure");
    match end.fault() {
        Some(named) => assert!(run.disk.failed() && names(&named, fault), "{fault:?}: {named}"),
        // The fault came when it stopped, or not at all: runs differ in how many entries they write at once.
        None => assert_eq!(acknowledged, CHANGES),
    }
    // After a loss of power more may have happened to what was on its way than after the failure of one operation.
    let images = if let Fault::Cut(_) = fault { &images[1..] } else { &images[..2] };
    for (which, image) in images.iter().cloned().enumerate() {
        let found = Run::new(image, Fault::None).await.look(acknowledged).await;
        assert!(
            matches!(found, End::WentOn),
            "{fault:?}, {acknowledged} acknowledged, {end:?}: {found:?} on image {which}"
        );
    }
    (fault, run.disk.failed())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disk_that_fails_once_stops_the_coordinator_and_loses_nothing() {
    let _alone = MANY.lock().await;
    let sound = Run::new(Vec::new(), Fault::None).await;
    let made = sound.make_changes().await;
    assert!(matches!(made.end, End::WentOn) && made.acknowledged == CHANGES, "{:?}", made.end);
    let counts = sound.disk.counts();
    let mut faults: Vec<Fault> = spread(counts.writes, 25).into_iter().map(Fault::Write).collect();
    faults.extend(spread(counts.writes, 25).into_iter().map(Fault::Full));
    faults.extend(spread(counts.syncs, 25).into_iter().map(Fault::Sync));
    faults.extend(spread(counts.writes + counts.syncs, 40).into_iter().map(Fault::Cut));
    let runs: Vec<_> = stream::iter(faults).map(fails_once).buffer_unordered(AT_ONCE).collect().await;
    let mut met: BTreeMap<&str, usize> = BTreeMap::new();
    for (fault, _) in runs.iter().filter(|(_, failed)| *failed) {
        let kind = match fault {
            Fault::Write(_) => "failed write",
            Fault::Full(_) => "full disk",
            Fault::Sync(_) => "failed fsync",
            Fault::Cut(_) => "lost power",
            Fault::None | Fault::Torn(_) | Fault::Read(..) => "none of these",
        };
        *met.entry(kind).or_default() += 1;
    }
    println!("met of {}: {met:?}; {counts:?} without a fault", runs.len());
    assert!(met.len() == 4 && met.values().sum::<usize>() > runs.len() * 9 / 10, "{met:?} of {}", runs.len());
}

/// Starts on `image` with a bit flipped, and looks for the changes. Returns whether it was found.
async fn flips_once(image: Vec<u8>, fault: Fault) -> bool {
    let run = Run::new(image, fault).await;
    let end = run.look(CHANGES).await;
    let found = match &end {
        // Where it is the number of redb's own format, that is of another build.
        End::NotStarted(StartError::Disk(DiskError::Open(redb::DatabaseError::UpgradeRequired(_)))) => true,
        End::NotStarted(_) | End::Failed(..) | End::WentOn => match end.fault() {
            Some(named) => {
                assert!(names(&named, fault), "{fault:?}: {named}");
                true
            }
            None => false,
        },
    };
    // Nor did what it wrote meanwhile come from what it misread.
    let again = Run::new(run.disk.after_power_failure(1), Fault::None).await;
    let ended = again.look(CHANGES).await;
    assert!(matches!(ended, End::WentOn), "{fault:?}: {end:?}, then {ended:?}");
    found
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_found_or_does_not_matter() {
    let _alone = MANY.lock().await;
    let sound = Run::new(Vec::new(), Fault::None).await;
    let image = sound.make_changes().await.images.remove(1);
    let clean = Run::new(image.clone(), Fault::None).await;
    assert!(matches!(clean.look(CHANGES).await, End::WentOn));
    let mut faults = Vec::new();
    for read in 1..=clean.disk.counts().reads {
        faults.extend((0..BITS).map(|which| Fault::Read(read, which)));
    }
    let count = faults.len();
    let runs = stream::iter(faults).map(|fault| flips_once(image.clone(), fault));
    let runs: Vec<bool> = runs.buffer_unordered(AT_ONCE).collect().await;
    let found = runs.iter().filter(|found| **found).count();
    println!("{found} of {count} flipped bits were found; the others did not matter");
    assert!(found > 0, "no flipped bit was met");
}
