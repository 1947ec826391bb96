//! The state machine: applies committed entries to [`State`], publishes the view, keeps snapshots.
//!
//! The state lives in memory; on disk there is its last snapshot, and the log from there on. An entry is read back from the
//! disk before it is applied, so what was applied here is durable here, and a snapshot never runs ahead of the log.
//!
//! A snapshot's bytes are one record, with a format and a checksum, which lies on disk in chunks that are records too: the
//! chunks are checked on each read, and the whole tells that none is missing or of an earlier snapshot.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, Membership, OptionalSend};
use redb::{ReadableTable, Table, WriteTransaction};
use roost_protocol::view::{Coordinator, Published, View};
use roost_protocol::{NodeId, NodeName};
use tokio::sync::watch;

use super::disk::{Disk, META, SNAPSHOT, put_meta};
use super::record::{self, RecordError, SnapshotMetaRecord};
use super::types::{Member, Types};
use crate::state::{Applied, State};

/// Where it lies in [`META`] what the present snapshot covers.
const META_SNAPSHOT: &str = "snapshot";
/// What the whole is called in errors.
const WHOLE: &str = "the snapshot's state";
/// A chunk of a snapshot on disk; each carries a checksum of its own.
const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;

/// A snapshot as openraft has it.
type Snapshot = SnapshotOf<Types, Bytes>;

/// Makes the snapshot's record in a new database.
pub(super) fn set_up(transaction: &WriteTransaction) -> io::Result<()> {
    put_meta(transaction, META_SNAPSHOT, &None::<SnapshotMetaRecord>)
}

/// The state machine of this coordinator. Clones share the state.
#[derive(Clone)]
pub struct Machine {
    disk: Disk,
    inner: Arc<Mutex<Inner>>,
    published: watch::Sender<Published>,
    /// The highest level that this coordinator obeys.
    level: u32,
}

#[derive(Default)]
struct Inner {
    state: State,
    /// The projection of the state; none before the cluster has an identity.
    view: Option<Arc<View>>,
    applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
}

impl Machine {
    /// The state of the last snapshot on `disk`, or an empty one. Views go to `published`. A state above `level` stops this
    /// coordinator: it would make something else of a command than those do that obey it.
    ///
    /// # Errors
    /// The disk's, or that the snapshot is not what was written.
    pub async fn open(disk: Disk, published: watch::Sender<Published>, level: u32) -> io::Result<Self> {
        let machine = Self { disk, inner: Arc::default(), published, level };
        if let Some(snapshot) = machine.read_snapshot().await? {
            let state = decode(&snapshot.meta, &snapshot.snapshot)?;
            machine.check_level(&state)?;
            machine.take(&snapshot.meta, state);
        }
        Ok(machine)
    }

    /// Looks at the state.
    pub fn state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().state)
    }

    /// Looks at the state and the view of it; `None` before the cluster has an identity.
    pub fn state_and_view<T>(&self, look: impl FnOnce(&State, &Arc<View>) -> T) -> Option<T> {
        let inner = self.lock();
        inner.view.as_ref().map(|view| look(&inner.state, view))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        lock(&self.inner)
    }

    fn check_level(&self, state: &State) -> Result<(), RecordError> {
        let (level, obeyed) = (state.level(), self.level);
        if level <= obeyed { Ok(()) } else { Err(RecordError::Level { level, obeyed }) }
    }

    fn take(&self, meta: &SnapshotMetaOf<Types>, state: State) {
        let view = state.view().map(Arc::new);
        *self.lock() = Inner {
            state,
            view: view.clone(),
            applied: meta.last_log_id,
            membership: meta.last_membership.clone(),
        };
        self.publish(view);
        self.trace();
    }

    /// Tells which state this is, in few bytes, for whoever compares coordinators. Whole states are encoded for it, so it is
    /// left to the lowest level.
    fn trace(&self) {
        let inner = self.lock();
        if let Some(applied) = inner.applied {
            let state = || encode_state(&inner.state).map(|bytes| crc32c::crc32c(&bytes)).ok();
            tracing::trace!(index = applied.index, state = state(), "reached");
        }
    }

    fn publish(&self, view: Option<Arc<View>>) {
        if let Some(view) = view {
            self.published.send_if_modified(|published| published.offer_view(view));
        }
    }

    async fn read_snapshot(&self) -> io::Result<Option<Snapshot>> {
        self.disk
            .read(|transaction| {
                let meta = transaction.open_table(META).map_err(io::Error::other)?;
                let Some(record) = read_record(&meta)? else { return Ok(None) };
                let chunks = transaction.open_table(SNAPSHOT).map_err(io::Error::other)?;
                Ok(Some(read_bytes(record, &chunks)?))
            })
            .await
    }
}

fn lock(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    // Applying does not panic; if it did, the state would be unusable and openraft has stopped already.
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Inner {
    fn apply(&mut self, entry: &EntryOf<Types>) -> io::Result<Applied> {
        let index = entry.log_id.index;
        if let Some(applied) = self.applied.filter(|applied| applied.index >= index) {
            return Err(RecordError::Misplaced { expected: applied.index + 1, actual: index }.into());
        }
        self.applied = Some(entry.log_id);
        Ok(match &entry.payload {
            EntryPayload::Blank => {
                self.state.apply_blank(index);
                super::nothing_applied(&self.state)
            }
            EntryPayload::Normal(proposal) => self.state.apply(index, proposal),
            EntryPayload::Membership(membership) => {
                self.membership = StoredMembershipOf::<Types>::new(Some(entry.log_id), membership.clone());
                let voters = membership.get_joint_config().iter();
                let voters = voters.map(|set| set.iter().map(|id| NodeId(*id)).collect()).collect();
                self.state.apply_membership(index, coordinators(membership), voters);
                super::nothing_applied(&self.state)
            }
        })
    }

    /// Projects the state anew if it changed; `None` when it did not.
    fn project(&mut self) -> Option<Arc<View>> {
        let epoch = self.state.view_epoch();
        if self.view.as_ref().is_some_and(|view| view.epoch == epoch) {
            return None;
        }
        self.view = self.state.view().map(Arc::new);
        self.view.clone()
    }
}

fn coordinators(membership: &Membership<u64, Member>) -> BTreeMap<NodeId, Coordinator> {
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let coordinator = |(id, member): (&u64, &Member)| {
        // Names come from validated configs; one that is none could only come from a foreign build.
        let name = NodeName::new(&member.name).ok()?;
        Some((NodeId(*id), Coordinator { name, address: member.address.clone(), voter: voters.contains(id) }))
    };
    membership.nodes().filter_map(coordinator).collect()
}

/// The names of the voters; those of two sets while one replaces the other, as `a b c | a b d`.
fn voters(membership: &Membership<u64, Member>) -> String {
    let name = |id: &u64| membership.get_node(id).map_or_else(|| id.to_string(), |node| node.name.clone());
    let set = |set: &BTreeSet<u64>| set.iter().map(name).collect::<Vec<_>>().join(" ");
    membership.get_joint_config().iter().map(set).collect::<Vec<_>>().join(" | ")
}

fn decode(meta: &SnapshotMetaOf<Types>, bytes: &[u8]) -> Result<State, RecordError> {
    let state = decode_state(bytes)?;
    let (says, holds) = (meta.last_log_id.map_or(0, |last| last.index), state.epoch().index);
    if says != holds {
        let reason = format!("it is of entry {holds}, the snapshot is of entry {says}");
        return Err(RecordError::Body { what: WHOLE.to_owned(), reason });
    }
    Ok(state)
}

fn read_record(
    meta: &impl ReadableTable<&'static str, &'static [u8]>,
) -> io::Result<Option<SnapshotMetaRecord>> {
    let record = meta.get(META_SNAPSHOT).map_err(io::Error::other)?;
    let record = record.ok_or_else(|| RecordError::Missing { what: META_SNAPSHOT.to_owned() })?;
    Ok(record::open(META_SNAPSHOT, record.value())?)
}

fn read_bytes(
    meta: SnapshotMetaRecord,
    chunks: &impl ReadableTable<u64, &'static [u8]>,
) -> io::Result<Snapshot> {
    let mut bytes = Vec::new();
    for row in chunks.iter().map_err(io::Error::other)? {
        let (number, chunk) = row.map_err(io::Error::other)?;
        let what = format!("chunk {} of the snapshot", number.value());
        bytes.extend_from_slice(record::open_bytes(&what, chunk.value())?);
    }
    record::open_bytes(WHOLE, &bytes)?;
    Ok(Snapshot { meta: meta.try_into()?, snapshot: bytes.into() })
}

/// Puts a snapshot in the place of the present one, unless that is later: an installed one may overtake one that is being
/// built, and the log that the earlier one would need is purged then. Returns the one that stays.
fn keep_latest(transaction: &WriteTransaction, snapshot: Snapshot) -> io::Result<Snapshot> {
    let meta = SnapshotMetaRecord::from(&snapshot.meta);
    let present = read_record(&transaction.open_table(META).map_err(io::Error::other)?)?;
    let mut chunks = transaction.open_table(SNAPSHOT).map_err(io::Error::other)?;
    if let Some(present) = present.filter(|present| present.last() > meta.last()) {
        return read_bytes(present, &chunks);
    }
    put_snapshot(transaction, meta, &snapshot.snapshot, &mut chunks)?;
    Ok(snapshot)
}

fn put_snapshot(
    transaction: &WriteTransaction,
    meta: SnapshotMetaRecord,
    bytes: &[u8],
    chunks: &mut Table<'_, u64, &'static [u8]>,
) -> io::Result<()> {
    put_meta(transaction, META_SNAPSHOT, &Some(meta))?;
    chunks.retain(|_, _| false).map_err(io::Error::other)?;
    for (number, chunk) in bytes.chunks(SNAPSHOT_CHUNK_BYTES).enumerate() {
        let chunk = record::seal_bytes(chunk);
        chunks.insert(number as u64, chunk.as_slice()).map_err(io::Error::other)?;
    }
    Ok(())
}

/// Puts a snapshot in the place of the present one, whatever that covers.
pub(super) fn replace(transaction: &WriteTransaction, snapshot: Snapshot) -> io::Result<()> {
    let mut chunks = transaction.open_table(SNAPSHOT).map_err(io::Error::other)?;
    put_snapshot(transaction, (&snapshot.meta).into(), &snapshot.snapshot, &mut chunks)
}

/// A state as one record, as snapshots hold it.
///
/// # Errors
/// [`RecordError::Body`] when it cannot be encoded.
pub(crate) fn encode_state(state: &State) -> Result<Vec<u8>, RecordError> {
    record::seal(WHOLE, state)
}

/// Reads what [`encode_state`] wrote.
///
/// # Errors
/// [`RecordError`] when it is not what was written.
pub(crate) fn decode_state(bytes: &[u8]) -> Result<State, RecordError> {
    record::open(WHOLE, bytes)
}

impl RaftStateMachine<Types> for Machine {
    type SnapshotData = Bytes;
    type SnapshotBuilder = Self;

    async fn applied_state(&mut self) -> io::Result<(Option<LogIdOf<Types>>, StoredMembershipOf<Types>)> {
        let inner = self.lock();
        Ok((inner.applied, inner.membership.clone()))
    }

    async fn apply<S>(&mut self, mut entries: S) -> io::Result<()>
    where
        S: Stream<Item = io::Result<EntryResponder<Types>>> + Unpin + OptionalSend,
    {
        let mut answers = Vec::new();
        while let Some((entry, responder)) = entries.try_next().await? {
            let applied = {
                let mut inner = self.lock();
                let applied = inner.apply(&entry)?;
                self.check_level(&inner.state)?;
                applied
            };
            let index = entry.log_id.index;
            match &entry.payload {
                EntryPayload::Blank => {}
                EntryPayload::Normal(proposal) => {
                    let (command, by) = (&proposal.command, &proposal.by);
                    tracing::debug!(index, ?command, by, result = ?applied.result, "applied");
                }
                EntryPayload::Membership(membership) => {
                    tracing::debug!(index, voters = voters(membership), "these vote");
                }
            }
            answers.extend(responder.map(|responder| (responder, applied)));
        }
        // Once for all entries, and ahead of the answers: who hears that a change was made finds it in the view here.
        let view = self.lock().project();
        self.publish(view);
        self.trace();
        for (responder, applied) in answers {
            responder.send(applied);
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<Types>, bytes: Bytes) -> io::Result<()> {
        // Read ahead of writing: one that cannot be read must not take the place of one that can.
        let state = decode(meta, &bytes)?;
        self.check_level(&state)?;
        let snapshot = Snapshot { meta: meta.clone(), snapshot: bytes };
        self.disk.write(move |transaction| keep_latest(transaction, snapshot)).await?;
        tracing::info!(epoch = %state.epoch(), "took a snapshot in the place of the entries that it covers");
        self.take(meta, state);
        Ok(())
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<Snapshot>> {
        self.read_snapshot().await
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<Snapshot> {
        let inner = self.inner.clone();
        self.disk
            .write(move |transaction| {
                let (meta, state) = {
                    let inner = lock(&inner);
                    let last_membership = inner.membership.clone();
                    let meta = SnapshotMetaOf::<Types> { last_log_id: inner.applied, last_membership };
                    (meta, inner.state.clone())
                };
                let bytes = encode_state(&state)?;
                tracing::debug!(bytes = bytes.len(), last = ?meta.last_log_id, "keeps a snapshot");
                keep_latest(transaction, Snapshot { meta, snapshot: bytes.into() })
            })
            .await
    }
}
