//! What the nodes have on their disks when a run has ended, read by the product's own records.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};

use bytes::Bytes;
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use roost_coordinator::raft::record::{self, EntryRecord, SnapshotMetaRecord, VoteRecord};
use roost_protocol::error::panic_text;

use crate::disk::SimDisk;

/// The file of a coordinator's database.
pub const DATABASE: &str = "raft.redb";

pub(crate) const LOG: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("log");
pub(crate) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");

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
            raft: disk.database(DATABASE).map(|bytes| Raft::read(&bytes)),
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

    /// What the bytes of a database say.
    ///
    /// # Errors
    /// Why they cannot be read. As in the product, that the database panics over a damaged page is such a
    /// reason.
    pub fn read(bytes: &[u8]) -> Result<Self, String> {
        match catch_unwind(AssertUnwindSafe(|| Self::read_image(bytes))) {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(panic) => Err(format!("the database panicked: {}", panic_text(&*panic))),
        }
    }

    fn read_image(bytes: &[u8]) -> Result<Self, Box<dyn std::error::Error>> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invariants::fixtures::database;

    #[test]
    fn a_database_is_read_and_damage_of_any_page_is_an_error_at_most() {
        let image = database(3, Some(7));
        let raft = Raft::read(&image).unwrap();
        assert_eq!((raft.log.keys().copied().collect::<Vec<_>>(), raft.snapshot), (vec![8, 9, 10], Some(7)));
        let mut panicked = 0;
        for at in (0..image.len().min(64 * 1024)).step_by(64) {
            let mut damaged = image.clone();
            damaged[at..][..64].fill(0xff);
            let read = Raft::read(&damaged);
            panicked += usize::from(read.is_err_and(|error| error.starts_with("the database panicked")));
        }
        assert!(panicked > 0, "no damage is of the kind that the database panics over");
    }
}
