//! Records that redb finds in order and that are not what was written: a flipped bit in a log record, in a chunk of a
//! snapshot, or in what the coordinator knows of itself. It does not start, and says which record it was.

use std::sync::Arc;

use futures::{StreamExt, stream};
use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use redb::{Database, ReadableDatabase, ReadableTable, TableDefinition};
use roost_coordinator::DiskFault;
use roost_coordinator::raft::disk::Disk as Opened;
use roost_coordinator::raft::{Log, Machine};
use roost_coordinator::state::LEVEL;
use roost_protocol::NodeId;
use roost_protocol::view::Published;
use tokio::sync::watch;

use crate::disk::{Disk, Fault};
use crate::faults::{End, MANY, Run};
use crate::party::Inline;

/// Bits of each record that are flipped, one by one.
const BITS: usize = 5;
/// Runs at once.
const AT_ONCE: usize = 4;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
const SNAPSHOT: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("snapshot");

/// A record of a coordinator's database.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Place {
    Log(u64),
    Meta(String),
    Snapshot(u64),
}

/// Has a coordinator's first half of the log in a snapshot instead.
async fn with_snapshot(image: Vec<u8>) -> Vec<u8> {
    let disk = Disk::new(image, Fault::None);
    let opened = Opened::open(Box::new(disk.clone()), Arc::new(Inline), NodeId(1)).await.unwrap();
    let mut log = Log::new(opened.clone());
    let published = watch::Sender::new(Published::default());
    let mut machine = Machine::open(opened.clone(), published, LEVEL).await.unwrap();
    let last = log.get_log_state().await.unwrap().last_log_id.unwrap();
    let half = log.try_get_log_entries(0..=last.index / 2).await.unwrap();
    let covered = half.last().unwrap().log_id;
    machine.apply(stream::iter(half.into_iter().map(|entry| Ok((entry, None))))).await.unwrap();
    machine.build_snapshot().await.unwrap();
    log.purge(covered).await.unwrap();
    opened.close().await;
    disk.after_kill()
}

fn open(image: Vec<u8>) -> (Disk, Database) {
    let disk = Disk::new(image, Fault::None);
    let database = Database::builder().create_with_backend(disk.clone()).unwrap();
    (disk, database)
}

fn places(image: &[u8]) -> Vec<Place> {
    let (_, database) = open(image.to_vec());
    let transaction = database.begin_read().unwrap();
    let mut places = Vec::new();
    for row in transaction.open_table(LOG).unwrap().iter().unwrap() {
        places.push(Place::Log(row.unwrap().0.value()));
    }
    for row in transaction.open_table(META).unwrap().iter().unwrap() {
        places.push(Place::Meta(row.unwrap().0.value().to_owned()));
    }
    for row in transaction.open_table(SNAPSHOT).unwrap().iter().unwrap() {
        places.push(Place::Snapshot(row.unwrap().0.value()));
    }
    places
}

/// Flips a bit of a record, by way of the database: its own checksums are right afterwards.
fn flip(image: Vec<u8>, place: &Place, which: usize) -> Vec<u8> {
    let flipped = |record: &[u8]| {
        let mut record = record.to_vec();
        // Fibonacci hashing (Knuth, volume 3, section 6.4): spread over the record.
        let at = (which + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let at = at % (record.len() * 8);
        record[at / 8] ^= 1 << (at % 8);
        record
    };
    let (disk, database) = open(image);
    let transaction = database.begin_write().unwrap();
    match place {
        Place::Log(key) => {
            let mut table = transaction.open_table(LOG).unwrap();
            let record = flipped(table.get(key).unwrap().unwrap().value());
            table.insert(key, record.as_slice()).unwrap();
        }
        Place::Meta(key) => {
            let mut table = transaction.open_table(META).unwrap();
            let record = flipped(table.get(key.as_str()).unwrap().unwrap().value());
            table.insert(key.as_str(), record.as_slice()).unwrap();
        }
        Place::Snapshot(key) => {
            let mut table = transaction.open_table(SNAPSHOT).unwrap();
            let record = flipped(table.get(key).unwrap().unwrap().value());
            table.insert(key, record.as_slice()).unwrap();
        }
    }
    transaction.commit().unwrap();
    drop(database);
    disk.after_kill()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_a_record_is_named_and_nothing_is_answered() {
    let _alone = MANY.lock().await;
    let made = Run::new(Vec::new(), Fault::None).await.make_changes().await;
    assert!(matches!(made.end, End::WentOn), "{:?}", made.end);
    let image = with_snapshot(made.images[0].clone()).await;
    let sound = Run::new(image.clone(), Fault::None).await.look(made.acknowledged()).await;
    assert!(matches!(sound, End::WentOn), "{sound:?}");
    let places = places(&image);
    assert!(places.contains(&Place::Snapshot(0)) && places.len() > 12, "{places:?}");
    let flips = places.iter().flat_map(|place| (0..BITS).map(move |which| (place, which)));
    let runs = stream::iter(flips).map(|(place, which)| {
        let damaged = flip(image.clone(), place, which);
        async move {
            let run = Run::new(damaged, Fault::None).await;
            // Not one of the changes may be looked up: the answers may come from what is damaged.
            let end = run.look(0).await;
            let name = match place {
                Place::Log(index) => format!("log entry {index}:"),
                Place::Meta(name) => format!("{name}:"),
                Place::Snapshot(number) => format!("chunk {number} of the snapshot:"),
            };
            match end.fault() {
                Some(DiskFault::Damaged(why)) => assert!(why.contains(&name), "{place:?} {which}: {why}"),
                other => panic!("{place:?} {which}: {other:?}"),
            }
        }
    });
    println!("{} positions in {} records", places.len() * BITS, places.len());
    runs.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}
