//! The Raft log on disk.
//!
//! An entry is acknowledged to openraft after its transaction is durable, from the disk's executor. Every record is
//! checked when it is read; one that fails the check stops this coordinator, it is never truncated away.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use redb::{ReadableTable, Table};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::disk::{Disk, LOG, META};
use super::record::{self, EntryRecord, LogIdRecord, VoteRecord};
use super::types::Types;

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// The Raft log of this coordinator.
#[derive(Debug, Clone)]
pub struct Log {
    disk: Disk,
}

impl Log {
    /// The log on `disk`.
    pub fn new(disk: Disk) -> Self {
        Self { disk }
    }

    async fn get_meta<T: DeserializeOwned + Send + 'static>(
        &self,
        name: &'static str,
    ) -> io::Result<Option<T>> {
        self.disk
            .read(move |transaction| {
                let table = transaction.open_table(META).map_err(io::Error::other)?;
                let Some(bytes) = table.get(name).map_err(io::Error::other)? else { return Ok(None) };
                Ok(Some(record::open(name, bytes.value())?))
            })
            .await
    }
}

fn put_meta<T: Serialize>(
    transaction: &redb::WriteTransaction,
    name: &'static str,
    value: &T,
) -> io::Result<()> {
    let mut table = transaction.open_table(META).map_err(io::Error::other)?;
    table.insert(name, record::seal(name, value)?.as_slice()).map_err(io::Error::other)?;
    Ok(())
}

fn remove(table: &mut Table<'_, u64, &[u8]>, range: impl RangeBounds<u64>) -> io::Result<()> {
    table.retain_in(range, |_, _| false).map_err(io::Error::other)
}

fn read_entry(index: u64, bytes: &[u8]) -> io::Result<EntryOf<Types>> {
    let record: EntryRecord = record::open(&format!("log entry {index}"), bytes)?;
    Ok(record.into_entry()?)
}

impl RaftLogReader<Types> for Log {
    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<EntryOf<Types>>> {
        let range: (Bound<u64>, Bound<u64>) = (range.start_bound().cloned(), range.end_bound().cloned());
        self.disk
            .read(move |transaction| {
                let table = transaction.open_table(LOG).map_err(io::Error::other)?;
                let rows = table.range::<u64>(range).map_err(io::Error::other)?;
                rows.map(|row| {
                    let (index, bytes) = row.map_err(io::Error::other)?;
                    read_entry(index.value(), bytes.value())
                })
                .collect()
            })
            .await
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Types>>> {
        Ok(self.get_meta::<VoteRecord>(VOTE).await?.map(Into::into))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let purged: Option<LogIdOf<Types>> = self.get_meta::<LogIdRecord>(PURGED).await?.map(Into::into);
        let last = self
            .disk
            .read(|transaction| {
                let table = transaction.open_table(LOG).map_err(io::Error::other)?;
                let Some((index, bytes)) = table.last().map_err(io::Error::other)? else { return Ok(None) };
                Ok(Some(read_entry(index.value(), bytes.value())?.log_id))
            })
            .await?;
        Ok(LogState { last_log_id: last.or(purged), last_purged_log_id: purged })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> io::Result<()> {
        let vote = VoteRecord::from(*vote);
        self.disk.write(move |transaction| put_meta(transaction, VOTE, &vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> io::Result<()> {
        // Runs behind the appends that it speaks of, in the same file, so it is never durable ahead of them. Nobody waits
        // for it: it only spares a restart the wait for a leader before it serves reads of its own.
        if let Some(committed) = committed.map(LogIdRecord::from) {
            self.disk.write_then(
                move |transaction| put_meta(transaction, COMMITTED, &committed),
                |result| {
                    if let Err(error) = result {
                        tracing::warn!(%error, "the committed position was not saved");
                    }
                },
            );
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<Types>>> {
        Ok(self.get_meta::<LogIdRecord>(COMMITTED).await?.map(Into::into))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = EntryOf<Types>> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let mut records = Vec::new();
        for entry in entries {
            let index = entry.log_id.index;
            records.push((index, record::seal("a log entry", &EntryRecord::from(entry))?));
        }
        let write = move |transaction: &redb::WriteTransaction| {
            let mut table = transaction.open_table(LOG).map_err(io::Error::other)?;
            for (index, record) in &records {
                table.insert(index, record.as_slice()).map_err(io::Error::other)?;
            }
            Ok(())
        };
        self.disk.write_then(write, move |result| callback.io_completed(result));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> io::Result<()> {
        let first = last.map_or(0, |last| last.index + 1);
        self.disk
            .write(move |transaction| {
                remove(&mut transaction.open_table(LOG).map_err(io::Error::other)?, first..)
            })
            .await
    }

    async fn purge(&mut self, last: LogIdOf<Types>) -> io::Result<()> {
        self.disk
            .write(move |transaction| {
                put_meta(transaction, PURGED, &LogIdRecord::from(last))?;
                remove(&mut transaction.open_table(LOG).map_err(io::Error::other)?, ..=last.index)
            })
            .await
    }
}
