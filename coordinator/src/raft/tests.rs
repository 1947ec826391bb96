//! openraft's own suite for storages, on redb in memory; what a torn or flipped record does; what a failed disk does.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use openraft::alias::{EntryOf, SnapshotMetaOf};
use openraft::storage::{IOFlushed, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log::{StoreBuilder, Suite};
use openraft::testing::log_id;
use openraft::type_config::TypeConfigExt;
use openraft::{EntryPayload, Membership, RaftLogReader, StorageError, Vote};
use redb::backends::InMemoryBackend;
use redb::{ReadableTable, StorageBackend};
use roost_protocol::view::Published;
use roost_protocol::{ClusterId, Epoch, NodeId};
use tokio::sync::watch;

use super::disk::{Disk, DiskError, Job, JobQueue, LOG, META, SNAPSHOT};
use super::fault::DiskFault;
use super::types::{Member, Runtime, Types};
use super::{Log, Machine};
use crate::state::{Command, LEVEL, Proposal};

/// Runs disk work where it is submitted.
struct Inline;

impl JobQueue for Inline {
    fn submit(&self, job: Job) {
        job();
    }
}

/// Drops disk work after so many jobs, as a thread does that died.
struct Dies(AtomicUsize);

impl JobQueue for Dies {
    fn submit(&self, job: Job) {
        if self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
            job();
        }
    }
}

/// Memory that outlives the databases on it.
#[derive(Debug, Clone, Default)]
struct Memory(Arc<InMemoryBackend>);

impl Memory {
    fn image(&self) -> Vec<u8> {
        let mut image = vec![0; self.len().unwrap() as usize];
        self.read(0, &mut image).unwrap();
        image
    }
}

impl StorageBackend for Memory {
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
}

const US: NodeId = NodeId(1);

async fn open(memory: &Memory) -> Disk {
    Disk::open(Box::new(memory.clone()), Arc::new(Inline), US).await.unwrap()
}

async fn machine(disk: &Disk) -> io::Result<Machine> {
    Machine::open(disk.clone(), watch::Sender::new(Published::default()), LEVEL).await
}

struct Builder;

impl StoreBuilder<Types, Log, Machine> for Builder {
    async fn build(&self) -> Result<((), Log, Machine), StorageError<Types>> {
        let disk = open(&Memory::default()).await;
        let machine = machine(&disk).await;
        Ok(((), Log::new(disk), machine.expect("an empty disk opens")))
    }
}

// Time stands still: the suite waits for a purge in the background, of which there is none here.
#[tokio::test(start_paused = true)]
async fn the_storage_passes_openrafts_suite() {
    Runtime::scope(1, Suite::test_all(Builder)).await.unwrap();
}

fn blank(index: u64) -> EntryOf<Types> {
    EntryOf::<Types> { log_id: log_id::<Types>(1, 1, index), payload: EntryPayload::Blank }
}

async fn with_entries(entries: u64) -> (Disk, Log) {
    let disk = open(&Memory::default()).await;
    let mut log = Log::new(disk.clone());
    log.append((0..entries).map(blank), IOFlushed::noop()).await.unwrap();
    (disk, log)
}

/// Does to a table what a disk might do.
async fn damage(disk: &Disk, how: impl FnOnce(&redb::WriteTransaction) + Send + 'static) {
    let damaged = disk.write(move |transaction| {
        how(transaction);
        Ok(())
    });
    damaged.await.unwrap();
}

async fn flip_entry(disk: &Disk, index: u64) {
    damage(disk, move |transaction| {
        let mut table = transaction.open_table(LOG).unwrap();
        let mut record = table.get(index).unwrap().unwrap().value().to_vec();
        *record.last_mut().unwrap() ^= 4;
        table.insert(index, record.as_slice()).unwrap();
    })
    .await;
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_an_error_not_an_entry() {
    let (disk, mut log) = with_entries(2).await;
    assert_eq!(log.try_get_log_entries(0..2).await.unwrap().len(), 2);
    flip_entry(&disk, 1).await;
    assert_eq!(log.try_get_log_entries(0..1).await.unwrap().len(), 1);
    let error = log.try_get_log_entries(0..2).await.unwrap_err();
    assert!(error.to_string().contains("log entry 1: the checksum does not match"), "{error}");
    // What the disk gives after that is not asked for any more, sound or not.
    let error = log.try_get_log_entries(0..1).await.unwrap_err();
    assert!(
        error.to_string().contains("the disk failed before: what the disk holds is damaged: log entry 1"),
        "{error}"
    );
    log.save_vote(&Vote::new(7, 1)).await.unwrap_err();
    assert!(
        matches!(&*disk.failure().borrow(), Some(DiskFault::Damaged(why)) if why.contains("log entry 1"))
    );
}

#[tokio::test]
async fn an_entry_that_is_missing_or_of_another_place_is_found() {
    let (disk, mut log) = with_entries(5).await;
    damage(&disk, |transaction| {
        transaction.open_table(LOG).unwrap().remove(2).unwrap();
    })
    .await;
    let error = log.try_get_log_entries(0..5).await.unwrap_err();
    assert!(error.to_string().contains("log entry 2: it is not there"), "{error}");

    let (disk, mut log) = with_entries(5).await;
    damage(&disk, |transaction| {
        let mut table = transaction.open_table(LOG).unwrap();
        let other = table.get(3).unwrap().unwrap().value().to_vec();
        table.insert(2, other.as_slice()).unwrap();
    })
    .await;
    let error = log.try_get_log_entries(0..5).await.unwrap_err();
    assert!(error.to_string().contains("log entry 2: the record there is of entry 3"), "{error}");

    // Nobody can tell that the last ones are missing, unless they were committed.
    use futures::TryStreamExt;
    let (disk, mut log) = with_entries(5).await;
    log.save_committed(Some(log_id::<Types>(1, 1, 4))).await.unwrap();
    damage(&disk, |transaction| {
        transaction.open_table(LOG).unwrap().remove(4).unwrap();
    })
    .await;
    assert_eq!(log.try_get_log_entries(3..5).await.unwrap().len(), 1);
    let committed: Result<Vec<_>, _> = log.entries_stream(3..5).await.try_collect().await;
    assert!(committed.unwrap_err().to_string().contains("log entry 4: it is not there"));

    // Nor may the first ones behind what was purged.
    let (disk, mut log) = with_entries(5).await;
    log.purge(log_id::<Types>(1, 1, 1)).await.unwrap();
    assert_eq!(log.get_log_state().await.unwrap().last_log_id, Some(log_id::<Types>(1, 1, 4)));
    damage(&disk, |transaction| {
        transaction.open_table(LOG).unwrap().remove(2).unwrap();
    })
    .await;
    let error = log.get_log_state().await.unwrap_err();
    assert!(error.to_string().contains("log entry 2: it is not there"), "{error}");
}

#[tokio::test]
async fn a_batch_for_a_follower_is_bounded_in_bytes_and_never_empty() {
    let disk = open(&Memory::default()).await;
    let mut log = Log::new(disk);
    let large = |index| EntryOf::<Types> {
        log_id: log_id::<Types>(1, 1, index),
        payload: EntryPayload::Normal(Proposal {
            request: None,
            sent: Epoch::default(),
            at_ms: 0,
            by: "x".repeat(3 << 20),
            command: Command::Initialise { cluster: ClusterId(1) },
        }),
    };
    log.append((0..4).map(large), IOFlushed::noop()).await.unwrap();
    assert_eq!(log.limited_get_log_entries(0, 4).await.unwrap().len(), 1);
    assert_eq!(log.try_get_log_entries(0..4).await.unwrap().len(), 4);
}

#[tokio::test]
async fn a_record_that_vanished_is_not_one_that_was_never_written() {
    let memory = Memory::default();
    let disk = open(&memory).await;
    let mut log = Log::new(disk.clone());
    assert_eq!(log.read_vote().await.unwrap(), None);
    log.save_vote(&Vote::new(7, 1)).await.unwrap();
    damage(&disk, |transaction| {
        transaction.open_table(META).unwrap().remove("vote").unwrap();
    })
    .await;
    let error = log.read_vote().await.unwrap_err();
    assert!(error.to_string().contains("vote: it is not there"), "{error}");

    let disk = open(&Memory::default()).await;
    damage(&disk, |transaction| {
        transaction.delete_table(META).unwrap();
    })
    .await;
    Log::new(disk.clone()).read_vote().await.unwrap_err();
    let memory = Memory::default();
    let disk = open(&memory).await;
    damage(&disk, |transaction| {
        transaction.delete_table(SNAPSHOT).unwrap();
    })
    .await;
    disk.close().await;
    let opened = Disk::open(Box::new(memory), Arc::new(Inline), US).await;
    assert!(matches!(opened, Err(DiskError::Tables { .. })));
}

#[tokio::test]
async fn a_file_that_lost_its_first_bytes_is_not_begun_anew() {
    let memory = Memory::default();
    open(&memory).await.close().await;
    memory.write(0, &[0; 4096]).unwrap();
    let opened = Disk::open(Box::new(memory), Arc::new(Inline), US).await;
    assert!(matches!(opened, Err(DiskError::Fault(DiskFault::Damaged(_)))));
    // One whose creation was cut has nothing to lose.
    let memory = Memory::default();
    memory.set_len(1 << 20).unwrap();
    memory.write(100, b"a header without its first bytes").unwrap();
    open(&memory).await;
}

#[tokio::test]
async fn a_vote_that_was_damaged_on_disk_is_not_taken_for_the_one_before() {
    let memory = Memory::default();
    let disk = open(&memory).await;
    Log::new(disk.clone()).save_vote(&Vote::new(7, 1)).await.unwrap();
    // Killed, for it was not closed: the next must not go back to the commit before the vote.
    let mut image = memory.image();
    drop(disk);
    let record =
        super::record::seal("vote", &Some(super::record::VoteRecord::from(Vote::new(7, 1)))).unwrap();
    let at = image.windows(record.len()).position(|bytes| bytes == record).unwrap();
    for damaged in [false, true] {
        let killed = Memory::default();
        killed.set_len(image.len() as u64).unwrap();
        image[at + record.len() - 1] ^= u8::from(damaged);
        killed.write(0, &image).unwrap();
        match Disk::open(Box::new(killed), Arc::new(Inline), US).await {
            Ok(disk) => {
                let vote = Log::new(disk).read_vote().await.unwrap();
                assert_eq!((vote, damaged), (Some(Vote::new(7, 1)), false));
            }
            Err(error) => assert!(damaged && error.to_string().contains("corrupted"), "{error}"),
        }
    }
}

/// Keeps disk work until it is told to do it.
#[derive(Default)]
struct Held(Mutex<Vec<Job>>);

impl JobQueue for Held {
    fn submit(&self, job: Job) {
        self.0.lock().unwrap().push(job);
    }
}

#[tokio::test]
async fn an_entry_is_acknowledged_when_it_is_durable() {
    let (memory, held) = (Memory::default(), Arc::new(Held::default()));
    let opening = Disk::open(Box::new(memory.clone()), held.clone(), US);
    let work = async {
        tokio::task::yield_now().await;
        held.0.lock().unwrap().drain(..).for_each(|job| job());
    };
    let disk = tokio::join!(opening, work).0.unwrap();
    let (tell, mut told) = Types::oneshot();
    Log::new(disk).append([blank(0)], IOFlushed::signal(tell)).await.unwrap();
    let before = memory.image();
    assert!(told.try_recv().is_err(), "nothing was written yet");
    held.0.lock().unwrap().drain(..).for_each(|job| job());
    told.try_recv().unwrap().unwrap();
    assert_ne!(memory.image(), before);
}

#[tokio::test]
async fn a_database_belongs_to_one_node() {
    let memory = Memory::default();
    open(&memory).await.close().await;
    let opened = Disk::open(Box::new(memory.clone()), Arc::new(Inline), NodeId(2)).await;
    assert!(matches!(opened, Err(DiskError::WrongNode { ours: NodeId(2), theirs: US })));
    open(&memory).await;
}

#[tokio::test]
async fn a_closed_database_is_no_failed_one() {
    let disk = open(&Memory::default()).await;
    disk.close().await;
    let error = Log::new(disk.clone()).read_vote().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::NotConnected);
    assert!(disk.failure().borrow().is_none());
}

#[tokio::test]
async fn a_panic_in_a_job_fails_the_disk_and_nothing_else() {
    let (disk, mut log) = with_entries(1).await;
    let panicking = disk.write(|_| -> io::Result<()> { panic!("as the test wants it") });
    let error = panicking.await.unwrap_err();
    assert!(error.to_string().contains("panicked: as the test wants it"), "{error}");
    log.try_get_log_entries(0..1).await.unwrap_err();
}

#[tokio::test]
async fn an_append_whose_job_is_lost_has_failed() {
    let queue = Arc::new(Dies(AtomicUsize::new(1)));
    let disk = Disk::open(Box::new(Memory::default()), queue, US).await.unwrap();
    let (tell, told) = Types::oneshot();
    Log::new(disk.clone()).append([blank(0)], IOFlushed::signal(tell)).await.unwrap();
    assert!(told.await.unwrap().is_err());
    assert!(
        matches!(&*disk.failure().borrow(), Some(DiskFault::Stopped(why)) if why.contains("executor has ended"))
    );
}

/// A machine that has applied a membership, the identity of the cluster, and blank entries up to `last`.
async fn machine_at(disk: &Disk, last: u64) -> Machine {
    let mut machine = machine(disk).await.unwrap();
    let member = Member { name: "a".to_owned(), address: "a:1".to_owned() };
    let membership = Membership::new(vec![[1].into()], BTreeMap::from([(1, member)])).unwrap();
    let initialise = Proposal {
        request: None,
        sent: Epoch::default(),
        at_ms: 5,
        by: "anna".to_owned(),
        command: Command::Initialise { cluster: ClusterId(7) },
    };
    let first = [EntryPayload::Membership(membership), EntryPayload::Normal(initialise)];
    let first = first.into_iter().zip(0..);
    let first =
        first.map(|(payload, index)| EntryOf::<Types> { log_id: log_id::<Types>(1, 1, index), payload });
    let entries = first.chain((2..=last).map(blank)).map(|entry| Ok((entry, None)));
    machine.apply(futures::stream::iter(entries)).await.unwrap();
    machine
}

#[tokio::test]
async fn a_snapshot_is_what_a_restart_begins_with() {
    let memory = Memory::default();
    let disk = open(&memory).await;
    let mut before = machine_at(&disk, 9).await;
    before.build_snapshot().await.unwrap();
    disk.close().await;
    let disk = open(&memory).await;
    let mut after = machine(&disk).await.unwrap();
    assert_eq!(after.applied_state().await.unwrap(), before.applied_state().await.unwrap());
    assert!(after.state(|after| before.state(|before| after == before)));
    assert_eq!(after.state_and_view(|_, view| view.cluster), Some(ClusterId(7)));
}

#[tokio::test]
async fn no_entry_is_applied_twice() {
    let disk = open(&Memory::default()).await;
    let mut machine = machine_at(&disk, 3).await;
    let again = futures::stream::iter([Ok((blank(3), None))]);
    machine.apply(again).await.unwrap_err();
    assert_eq!(machine.applied_state().await.unwrap().0, Some(log_id::<Types>(1, 1, 3)));
}

#[tokio::test]
async fn a_snapshot_that_was_installed_is_not_replaced_by_an_earlier_one() {
    let leaders = open(&Memory::default()).await;
    let later = machine_at(&leaders, 20).await.build_snapshot().await.unwrap();
    let disk = open(&Memory::default()).await;
    // Is about to build its snapshot when the leader's is installed.
    let mut building = machine_at(&disk, 9).await;
    let mut installing = machine(&disk).await.unwrap();
    installing.install_snapshot(&later.meta, later.snapshot.clone()).await.unwrap();
    let built = building.build_snapshot().await.unwrap();
    assert_eq!(built.meta, later.meta);
    let kept = installing.get_current_snapshot().await.unwrap().unwrap();
    assert_eq!((kept.meta, kept.snapshot), (later.meta, later.snapshot));
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_read_takes_nobodys_place() {
    let disk = open(&Memory::default()).await;
    let mut machine = machine_at(&disk, 9).await;
    let sound = machine.build_snapshot().await.unwrap();
    let torn = sound.snapshot.slice(..sound.snapshot.len() / 2);
    let ahead =
        SnapshotMetaOf::<Types> { last_log_id: Some(log_id::<Types>(1, 1, 30)), ..sound.meta.clone() };
    for (meta, bytes) in [(&sound.meta, torn), (&ahead, sound.snapshot.clone()), (&ahead, Bytes::new())] {
        machine.install_snapshot(meta, bytes).await.unwrap_err();
    }
    assert_eq!(machine.get_current_snapshot().await.unwrap().unwrap().snapshot, sound.snapshot);
    assert_eq!(machine.state(|state| state.epoch().index), 9);
}

#[tokio::test]
async fn a_lost_or_old_chunk_of_a_snapshot_is_found() {
    for lose in [true, false] {
        let disk = open(&Memory::default()).await;
        machine_at(&disk, 9).await.build_snapshot().await.unwrap();
        damage(&disk, move |transaction| {
            let mut chunks = transaction.open_table(SNAPSHOT).unwrap();
            let other = super::record::seal_bytes(b"of an earlier snapshot");
            if lose {
                chunks.remove(0).unwrap();
            } else {
                chunks.insert(1, other.as_slice()).unwrap();
            }
        })
        .await;
        let error = machine(&disk).await.err().unwrap();
        let found =
            ["not a record", "the checksum does not match"].iter().any(|why| error.to_string().contains(why));
        assert!(found && error.to_string().contains("the snapshot's state"), "{error}");
    }
}
