//! Records that redb finds in order and that are not what was written: a flipped bit in a log record, in a chunk of a
//! snapshot, or in what the coordinator knows of itself. It does not start, and says which record it was.

use std::collections::BTreeSet;
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

use crate::disk::{Disk, Fault, spread};
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
pub enum Place {
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

/// The records of a database.
pub fn records(image: &[u8]) -> Vec<(Place, Vec<u8>)> {
    let (_, database) = open(image.to_vec());
    let transaction = database.begin_read().unwrap();
    let mut records = Vec::new();
    for row in transaction.open_table(LOG).unwrap().iter().unwrap() {
        let (index, record) = row.unwrap();
        records.push((Place::Log(index.value()), record.value().to_vec()));
    }
    for row in transaction.open_table(META).unwrap().iter().unwrap() {
        let (name, record) = row.unwrap();
        records.push((Place::Meta(name.value().to_owned()), record.value().to_vec()));
    }
    for row in transaction.open_table(SNAPSHOT).unwrap().iter().unwrap() {
        let (number, record) = row.unwrap();
        records.push((Place::Snapshot(number.value()), record.value().to_vec()));
    }
    records
}

/// Different bits of the record of that number, spread over it: so many, or all that it has.
pub fn bits(number: usize, record: &[u8], count: usize) -> BTreeSet<usize> {
    let bits = record.len() * 8;
    let step = |which: u64| spread((number as u64) << 32 | which) % bits;
    let mut chosen = BTreeSet::new();
    let mut which = 0;
    while chosen.len() < count.min(bits) {
        chosen.insert(step(which));
        which += 1;
    }
    chosen
}

/// Puts a record in a place, by way of the database: its own checksums are right afterwards.
pub fn put(image: Vec<u8>, place: &Place, record: &[u8]) -> Vec<u8> {
    let (disk, database) = open(image);
    let transaction = database.begin_write().unwrap();
    match place {
        Place::Log(key) => drop(transaction.open_table(LOG).unwrap().insert(key, record).unwrap()),
        Place::Meta(key) => {
            drop(transaction.open_table(META).unwrap().insert(key.as_str(), record).unwrap());
        }
        Place::Snapshot(key) => drop(transaction.open_table(SNAPSHOT).unwrap().insert(key, record).unwrap()),
    }
    transaction.commit().unwrap();
    drop(database);
    disk.after_kill()
}

/// A record with a bit flipped.
pub fn flipped(record: &[u8], bit: usize) -> Vec<u8> {
    let mut record = record.to_vec();
    record[bit / 8] ^= 1 << (bit % 8);
    record
}

impl Place {
    /// What a record is called when it is damaged.
    pub fn name(&self) -> String {
        match self {
            Self::Log(index) => format!("log entry {index}:"),
            Self::Meta(name) => format!("{name}:"),
            Self::Snapshot(number) => format!("chunk {number} of the snapshot:"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_a_record_is_named_and_nothing_is_answered() {
    let _alone = MANY.lock().await;
    let made = Run::new(Vec::new(), Fault::None).await.make_changes().await;
    assert!(matches!(made.end, End::WentOn), "{:?}", made.end);
    let image = with_snapshot(made.images[0].clone()).await;
    let sound = Run::new(image.clone(), Fault::None).await.look(made.acknowledged()).await;
    assert!(matches!(sound, End::WentOn), "{sound:?}");
    let records = records(&image);
    assert!(records.iter().any(|(place, _)| *place == Place::Snapshot(0)) && records.len() > 12);
    let flips = records.iter().enumerate().flat_map(|(number, (place, record))| {
        bits(number, record, BITS).into_iter().map(move |bit| (place, record, bit))
    });
    let runs = stream::iter(flips).map(|(place, record, bit)| {
        let damaged = put(image.clone(), place, &flipped(record, bit));
        async move {
            let run = Run::new(damaged, Fault::None).await;
            // Not one of the changes may be looked up: the answers may come from what is damaged.
            let end = run.look(0).await;
            match end.fault() {
                Some(DiskFault::Damaged(why)) => {
                    assert!(why.contains(&place.name()), "{place:?} {bit}: {why}");
                }
                other => panic!("{place:?} {bit}: {other:?}"),
            }
        }
    });
    println!("{} positions in {} records", records.len() * BITS, records.len());
    runs.buffer_unordered(AT_ONCE).collect::<Vec<()>>().await;
}
