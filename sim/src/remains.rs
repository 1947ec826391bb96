//! What the nodes have on their disks when a run has ended, read by the product's own records.

use std::collections::BTreeMap;

use bytes::Bytes;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use roost_coordinator::raft::record::{self, EntryRecord, VoteRecord};

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
    /// Whether its databases were wiped, so that it must not take part.
    pub wiped: bool,
    /// Whether it is a coordinator that has all it ever had.
    pub sound: bool,
}

/// What a coordinator has durably.
pub struct Raft {
    /// The log.
    pub log: BTreeMap<u64, EntryRecord>,
    /// Its vote.
    pub vote: Option<VoteRecord>,
}

impl Remains {
    /// What lies on a disk.
    pub fn of(node: &str, disk: &SimDisk, wiped: bool, sound: bool) -> Self {
        Self {
            node: node.to_owned(),
            raft: disk
                .database("raft.redb")
                .map(|bytes| Raft::read(&bytes).map_err(|error| error.to_string())),
            bundles: disk.objects("bundles"),
            cache: disk.objects("cache"),
            wiped,
            sound,
        }
    }
}

impl Raft {
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
        Ok(Self { log, vote })
    }
}
