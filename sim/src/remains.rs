//! What the nodes have on their disks when a run has ended, read by the product's own records.

use std::collections::BTreeMap;

use bytes::Bytes;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use roost_coordinator::raft::record::{self, EntryRecord, SnapshotMetaRecord, VoteRecord};

use crate::disk::SimDisk;

const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

/// What a node has on its disk.
pub struct Remains {
    /// The node.
    pub node: String,
    /// What its coordinator has; none when it is no coordinator.
    pub raft: Option<Result<Raft, String>>,
    /// The objects of the coordinator's bundle store.
    pub bundles: BTreeMap<String, Bytes>,
    /// The objects of the worker's.
    pub cache: BTreeMap<String, Bytes>,
    /// What its data is worth.
    pub standing: Standing,
}

/// What the data of a node is worth at the end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Standing {
    /// A coordinator that is a member, and has all that it ever had.
    Sound,
    /// One that lost its databases, and must not take part.
    Wiped,
    /// No coordinator, one that is no member, or one that was damaged.
    Other,
}

/// What a coordinator has durably.
pub struct Raft {
    /// The log.
    pub log: BTreeMap<u64, EntryRecord>,
    /// Its vote.
    pub vote: Option<VoteRecord>,
    /// The last index that its snapshot covers; none where it has no snapshot, or one of nothing.
    pub snapshot: Option<u64>,
}

impl Remains {
    /// What lies on a disk.
    pub fn of(node: &str, disk: &SimDisk, standing: Standing) -> Self {
        Self {
            node: node.to_owned(),
            raft: disk
                .database("raft.redb")
                .map(|bytes| Raft::read(&bytes).map_err(|error| error.to_string())),
            bundles: disk.objects("bundles"),
            cache: disk.objects("cache"),
            standing,
        }
    }
}

impl Raft {
    /// Whether it has all that there was up to an index: a log without gaps that begins behind its snapshot
    /// at the latest, and does not end before the index unless the snapshot covers that.
    pub fn covers(&self, last: u64) -> bool {
        let begins = self.snapshot.map_or(0, |snapshot| snapshot + 1);
        let mut expected = self.log.keys().next().copied().unwrap_or(begins);
        let whole = expected <= begins
            && self.log.keys().all(|index| {
                let follows = *index == expected;
                expected = index + 1;
                follows
            });
        whole && (expected > last || begins > last)
    }

    fn read(bytes: &[u8]) -> Result<Self, Box<dyn std::error::Error>> {
        let image = InMemoryBackend::new();
        image.set_len(bytes.len() as u64)?;
        image.write(0, bytes)?;
        let database = Database::builder().create_with_backend(image)?;
        let transaction = database.begin_read()?;
        let mut log = BTreeMap::new();
        for row in transaction.open_table(LOG)?.iter()? {
            let (index, bytes) = row?;
            log.insert(index.value(), record::open(&format!("log entry {}", index.value()), bytes.value())?);
        }
        let meta = transaction.open_table(META)?;
        let vote = meta.get("vote")?.ok_or("there is no vote record")?;
        let vote = record::open("the vote", vote.value())?;
        let snapshot = meta.get("snapshot")?.ok_or("there is no record of the snapshot")?;
        let snapshot: Option<SnapshotMetaRecord> = record::open("the snapshot", snapshot.value())?;
        let snapshot = snapshot.and_then(|snapshot| snapshot.last()).map(|last| last.index());
        Ok(Self { log, vote, snapshot })
    }
}
