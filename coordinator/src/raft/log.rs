//! The Raft log on disk.
//!
//! An entry is acknowledged to openraft after its transaction is durable, from the disk's executor. Every record is
//! checked when it is read, and so is that none is missing between two others; what fails a check stops this
//! coordinator, it is never truncated away.

use std::fmt::Debug;
use std::io;
use std::ops::{Bound, RangeBounds};

use openraft::alias::{EntryOf, LogIdOf, VoteOf};
use openraft::storage::{IOFlushed, LogState, RaftLogStorage};
use openraft::{OptionalSend, RaftLogReader};
use redb::{ReadTransaction, ReadableTable, Table, WriteTransaction};

use super::disk::{Disk, LOG, get_meta, put_meta};
use super::record::{self, EntryRecord, LogIdRecord, RecordError, VoteRecord};
use super::types::Types;

const VOTE: &str = "vote";
const COMMITTED: &str = "committed";
const PURGED: &str = "purged";

/// The records of entries in one message to a follower, unless a single one is larger. It passes a link of 100 Mbit/s in a
/// third of a second; [`super::network`] gives a message that long and then some.
const APPEND_BYTES_MAX: usize = 4 << 20;

/// Makes the log's records in a new database.
pub(super) fn set_up(transaction: &WriteTransaction) -> io::Result<()> {
    put_meta(transaction, VOTE, &None::<VoteRecord>)?;
    put_meta(transaction, COMMITTED, &None::<LogIdRecord>)?;
    put_meta(transaction, PURGED, &None::<LogIdRecord>)
}

/// Empties the log behind a snapshot that covers all up to `last`.
pub(super) fn begin_at(
    transaction: &WriteTransaction,
    last: LogIdRecord,
    vote: VoteRecord,
) -> io::Result<()> {
    put_meta(transaction, VOTE, &Some(vote))?;
    put_meta(transaction, COMMITTED, &Some(last))?;
    put_meta(transaction, PURGED, &Some(last))?;
    remove(&mut transaction.open_table(LOG).map_err(io::Error::other)?, ..)
}

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
}

fn remove(table: &mut Table<'_, u64, &[u8]>, range: impl RangeBounds<u64>) -> io::Result<()> {
    table.retain_in(range, |_, _| false).map_err(io::Error::other)
}

fn read_entry(index: u64, bytes: &[u8]) -> io::Result<EntryOf<Types>> {
    let record: EntryRecord = record::open(&format!("log entry {index}"), bytes)?;
    if record.index() != index {
        return Err(RecordError::Misplaced { expected: index, actual: record.index() }.into());
    }
    Ok(record.into_entry()?)
}

/// The entries from `start` on and before `end`, up to so many bytes but at least one. Entries ahead of the first and behind
/// the last need not exist; one that is missing between others, or behind what was purged, is an error.
fn read_entries(
    transaction: &ReadTransaction,
    start: u64,
    end: u64,
    bytes_max: usize,
) -> io::Result<Vec<EntryOf<Types>>> {
    let purged: Option<LogIdRecord> = get_meta(transaction, PURGED)?;
    let start = purged.map_or(start, |purged| start.max(purged.index() + 1));
    let mut expected = purged.map(|_| start);
    let mut bytes = 0;
    let mut entries = Vec::new();
    let table = transaction.open_table(LOG).map_err(io::Error::other)?;
    for row in table.range(start..).map_err(io::Error::other)? {
        let (index, record) = row.map_err(io::Error::other)?;
        let (index, record) = (index.value(), record.value());
        bytes += record.len();
        if expected.unwrap_or(index) >= end || (bytes > bytes_max && !entries.is_empty()) {
            break;
        }
        if let Some(expected) = expected.filter(|expected| *expected != index) {
            return Err(missing(expected));
        }
        entries.push(read_entry(index, record)?);
        expected = Some(index + 1);
    }
    Ok(entries)
}

fn missing(index: u64) -> io::Error {
    RecordError::Missing { what: format!("log entry {index}") }.into()
}

/// A range as a first index and one past the last.
fn half_open(range: &impl RangeBounds<u64>) -> (u64, u64) {
    let start = match range.start_bound() {
        Bound::Included(start) => *start,
        Bound::Excluded(before) => before.saturating_add(1),
        Bound::Unbounded => 0,
    };
    let end = match range.end_bound() {
        Bound::Included(last) => last.saturating_add(1),
        Bound::Excluded(end) => *end,
        Bound::Unbounded => u64::MAX,
    };
    (start, end)
}

impl RaftLogReader<Types> for Log {
    /// Reads entries to be applied: those that are committed must all be there.
    async fn entries_stream<R>(
        &mut self,
        range: R,
    ) -> impl futures::Stream<Item = io::Result<EntryOf<Types>>> + OptionalSend
    where
        R: RangeBounds<u64> + Clone + Debug + OptionalSend,
    {
        let (start, end) = half_open(&range);
        let read = move |transaction: &ReadTransaction| {
            let committed: Option<LogIdRecord> = get_meta(transaction, COMMITTED)?;
            let entries = read_entries(transaction, start, end, usize::MAX)?;
            let next = entries.last().map_or(start, |last| last.log_id.index + 1);
            if next < end && committed.is_some_and(|committed| next <= committed.index()) {
                return Err(missing(next));
            }
            Ok(entries)
        };
        let results: Vec<io::Result<EntryOf<Types>>> = match self.disk.read(read).await {
            Ok(entries) => entries.into_iter().map(Ok).collect(),
            Err(error) => vec![Err(error)],
        };
        futures::stream::iter(results)
    }

    async fn try_get_log_entries<R: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: R,
    ) -> io::Result<Vec<EntryOf<Types>>> {
        let (start, end) = half_open(&range);
        self.disk.read(move |transaction| read_entries(transaction, start, end, usize::MAX)).await
    }

    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<EntryOf<Types>>> {
        let read = move |transaction: &ReadTransaction| {
            let entries = read_entries(transaction, start, end, APPEND_BYTES_MAX)?;
            match entries.first() {
                Some(first) if first.log_id.index != start => Err(missing(start)),
                // None at all: this coordinator leads no longer, and another's entries take their place.
                Some(_) | None => Ok(entries),
            }
        };
        self.disk.read(read).await
    }

    async fn read_vote(&mut self) -> io::Result<Option<VoteOf<Types>>> {
        let vote: Option<VoteRecord> = self.disk.read(|transaction| get_meta(transaction, VOTE)).await?;
        Ok(vote.map(Into::into))
    }
}

impl RaftLogStorage<Types> for Log {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let read = |transaction: &ReadTransaction| {
            let purged: Option<LogIdRecord> = get_meta(transaction, PURGED)?;
            let purged: Option<LogIdOf<Types>> = purged.map(Into::into);
            let table = transaction.open_table(LOG).map_err(io::Error::other)?;
            let Some((index, bytes)) = table.last().map_err(io::Error::other)? else {
                return Ok(LogState { last_log_id: purged, last_purged_log_id: purged });
            };
            let last = read_entry(index.value(), bytes.value())?.log_id;
            let first = table.first().map_err(io::Error::other)?.map(|(first, _)| first.value());
            if let Some(expected) = purged.map(|purged| purged.index + 1).filter(|next| first != Some(*next))
            {
                return Err(missing(expected));
            }
            Ok(LogState { last_log_id: Some(last), last_purged_log_id: purged })
        };
        self.disk.read(read).await
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &VoteOf<Types>) -> io::Result<()> {
        let vote = Some(VoteRecord::from(*vote));
        self.disk.write(move |transaction| put_meta(transaction, VOTE, &vote)).await
    }

    async fn save_committed(&mut self, committed: Option<LogIdOf<Types>>) -> io::Result<()> {
        // Runs behind the appends that it speaks of, in the same file, so it is never durable ahead of them. Nobody waits
        // for it: it only spares a restart the wait for a leader before it serves what it had served. If it fails, so
        // does everything behind it.
        if let Some(committed) = committed.map(LogIdRecord::from) {
            let write =
                move |transaction: &WriteTransaction| put_meta(transaction, COMMITTED, &Some(committed));
            self.disk.write_then(write, drop);
        }
        Ok(())
    }

    async fn read_committed(&mut self) -> io::Result<Option<LogIdOf<Types>>> {
        let committed: Option<LogIdRecord> =
            self.disk.read(|transaction| get_meta(transaction, COMMITTED)).await?;
        Ok(committed.map(Into::into))
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
        let last = records.last().map(|(index, _)| *index);
        let write = move |transaction: &WriteTransaction| {
            let mut table = transaction.open_table(LOG).map_err(io::Error::other)?;
            for (index, record) in &records {
                table.insert(index, record.as_slice()).map_err(io::Error::other)?;
            }
            Ok(())
        };
        let acknowledge = move |result: io::Result<()>| {
            if let (Ok(()), Some(last)) = (&result, last) {
                tracing::trace!(last, "is durable");
            }
            callback.io_completed(result);
        };
        if roost_protocol::KnownBug::AcknowledgeBeforeFsync.is_in() {
            acknowledge(Ok(()));
            self.disk.write_then(write, drop);
            return Ok(());
        }
        self.disk.write_then(write, acknowledge);
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogIdOf<Types>>) -> io::Result<()> {
        let first = last.map_or(0, |last| last.index + 1);
        self.disk
            .write(move |transaction| {
                // In its turn: appends ahead of it may be acknowledged until here.
                tracing::debug!(first, "truncates the log");
                remove(&mut transaction.open_table(LOG).map_err(io::Error::other)?, first..)
            })
            .await
    }

    async fn purge(&mut self, last: LogIdOf<Types>) -> io::Result<()> {
        tracing::debug!(last = last.index, "purges the log");
        self.disk
            .write(move |transaction| {
                put_meta(transaction, PURGED, &Some(LogIdRecord::from(last)))?;
                remove(&mut transaction.open_table(LOG).map_err(io::Error::other)?, ..=last.index)
            })
            .await
    }
}
