//! openraft's own suite for storages, on redb in memory, and what a torn or flipped record does.

use openraft::StorageError;
use openraft::testing::log::{StoreBuilder, Suite};
use redb::ReadableTable;
use redb::backends::InMemoryBackend;
use roost_protocol::view::Published;
use tokio::sync::watch;

use super::disk::{Disk, Job, JobQueue, LOG};
use super::types::{Runtime, Types};
use super::{Log, Machine};
use std::sync::Arc;

/// Runs disk work where it is submitted.
struct Inline;

impl JobQueue for Inline {
    fn submit(&self, job: Job) {
        job();
    }
}

struct Builder;

fn disk() -> Disk {
    Disk::open(Box::new(InMemoryBackend::new()), Arc::new(Inline)).unwrap()
}

impl StoreBuilder<Types, Log, Machine> for Builder {
    async fn build(&self) -> Result<((), Log, Machine), StorageError<Types>> {
        let disk = disk();
        let machine = Machine::open(disk.clone(), watch::Sender::new(Published::default())).await;
        Ok(((), Log::new(disk), machine.expect("an empty disk opens")))
    }
}

#[tokio::test]
async fn the_storage_passes_openrafts_suite() {
    Runtime::scope(1, Suite::test_all(Builder)).await.unwrap();
}

#[tokio::test]
async fn a_flipped_bit_in_the_log_is_an_error_not_an_entry() {
    use openraft::RaftLogReader;
    use openraft::storage::{IOFlushed, RaftLogStorage};
    let disk = disk();
    let mut log = Log::new(disk.clone());
    let blank = |index| openraft::alias::EntryOf::<Types> {
        log_id: openraft::testing::log_id::<Types>(1, 1, index),
        payload: openraft::EntryPayload::Blank,
    };
    Runtime::scope(1, async {
        log.append([blank(0), blank(1)], IOFlushed::noop()).await.unwrap();
        assert_eq!(log.try_get_log_entries(0..2).await.unwrap().len(), 2);
        disk.write(|transaction| {
            let mut table = transaction.open_table(LOG).unwrap();
            let mut record = table.get(1).unwrap().unwrap().value().to_vec();
            *record.last_mut().unwrap() ^= 4;
            table.insert(1, record.as_slice()).unwrap();
            Ok(())
        })
        .await
        .unwrap();
        assert_eq!(log.try_get_log_entries(0..1).await.unwrap().len(), 1);
        let error = log.try_get_log_entries(0..2).await.unwrap_err();
        assert!(error.to_string().contains("log entry 1: the checksum does not match"), "{error}");
        log.get_log_state().await.unwrap_err();
    })
    .await;
}
