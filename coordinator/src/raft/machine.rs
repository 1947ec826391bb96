//! The state machine: applies committed entries to [`State`], publishes the view, keeps snapshots.
//!
//! The state lives in memory; on disk there is its last snapshot, and the log from there on.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures::{Stream, TryStreamExt};
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use openraft::storage::{EntryResponder, RaftSnapshotBuilder, RaftStateMachine};
use openraft::{EntryPayload, OptionalSend};
use redb::ReadableTable;
use roost_protocol::view::{Coordinator, Published};
use roost_protocol::{NodeId, NodeName};
use tokio::sync::watch;

use super::disk::{Disk, META, SNAPSHOT};
use super::record::{self, RecordError, SnapshotMetaRecord};
use super::types::{Member, Types};
use crate::state::State;

/// Where the present snapshot's meta record lies in [`META`].
const META_SNAPSHOT: &str = "snapshot";
/// A chunk of a snapshot on disk; each carries a checksum of its own.
const SNAPSHOT_CHUNK_BYTES: usize = 256 << 10;

/// The state machine of this coordinator. Clones share the state.
#[derive(Clone)]
pub struct Machine {
    disk: Disk,
    inner: Arc<Mutex<Inner>>,
    published: watch::Sender<Published>,
}

struct Inner {
    state: State,
    applied: Option<LogIdOf<Types>>,
    membership: StoredMembershipOf<Types>,
}

impl Machine {
    /// The state of the last snapshot on `disk`, or an empty one. Views go to `published`.
    ///
    /// # Errors
    /// The disk's, or that the snapshot is not what was written.
    pub async fn open(disk: Disk, published: watch::Sender<Published>) -> io::Result<Self> {
        let inner = Inner {
            state: State::default(),
            applied: None,
            membership: StoredMembershipOf::<Types>::default(),
        };
        let machine = Self { disk, inner: Arc::new(Mutex::new(inner)), published };
        if let Some((meta, bytes)) = machine.read_snapshot().await? {
            machine.take(&meta, &bytes)?;
        }
        Ok(machine)
    }

    /// Looks at the state.
    pub fn state<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock().state)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Applying does not panic; if it did, the state would be unusable and openraft has stopped already.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, meta: &SnapshotMetaOf<Types>, bytes: &[u8]) -> io::Result<()> {
        let state: State = postcard::from_bytes(bytes).map_err(|e| RecordError::Body {
            what: "the snapshot's state".to_owned(),
            reason: e.to_string(),
        })?;
        let mut inner = self.lock();
        inner.state = state;
        inner.applied = meta.last_log_id;
        inner.membership = meta.last_membership.clone();
        let view = inner.state.view();
        drop(inner);
        self.publish(view);
        Ok(())
    }

    fn publish(&self, view: Option<roost_protocol::view::View>) {
        if let Some(view) = view {
            self.published.send_if_modified(|published| published.offer_view(Arc::new(view)));
        }
    }

    async fn read_snapshot(&self) -> io::Result<Option<(SnapshotMetaOf<Types>, Bytes)>> {
        self.disk
            .read(|transaction| {
                let table = transaction.open_table(META).map_err(io::Error::other)?;
                let Some(meta) = table.get(META_SNAPSHOT).map_err(io::Error::other)? else { return Ok(None) };
                let meta: SnapshotMetaRecord = record::open(META_SNAPSHOT, meta.value())?;
                let mut bytes = Vec::new();
                let chunks = transaction.open_table(SNAPSHOT).map_err(io::Error::other)?;
                for row in chunks.iter().map_err(io::Error::other)? {
                    let (number, chunk) = row.map_err(io::Error::other)?;
                    let what = format!("chunk {} of the snapshot", number.value());
                    bytes.extend_from_slice(record::open_bytes(&what, chunk.value())?);
                }
                Ok(Some((meta.try_into()?, bytes.into())))
            })
            .await
    }

    async fn write_snapshot(&self, meta: &SnapshotMetaOf<Types>, bytes: Bytes) -> io::Result<()> {
        let meta = record::seal(META_SNAPSHOT, &SnapshotMetaRecord::from(meta))?;
        self.disk
            .write(move |transaction| {
                let mut table = transaction.open_table(META).map_err(io::Error::other)?;
                table.insert(META_SNAPSHOT, meta.as_slice()).map_err(io::Error::other)?;
                let mut chunks = transaction.open_table(SNAPSHOT).map_err(io::Error::other)?;
                chunks.retain(|_, _| false).map_err(io::Error::other)?;
                for (number, chunk) in bytes.chunks(SNAPSHOT_CHUNK_BYTES).enumerate() {
                    let chunk = record::seal_bytes(chunk);
                    chunks.insert(number as u64, chunk.as_slice()).map_err(io::Error::other)?;
                }
                Ok(())
            })
            .await
    }
}

fn coordinators(membership: &openraft::Membership<u64, Member>) -> BTreeMap<NodeId, Coordinator> {
    let voters: BTreeSet<u64> = membership.voter_ids().collect();
    let coordinator = |(id, member): (&u64, &Member)| {
        // Names come from validated configs; one that is none could only come from a foreign build.
        let name = NodeName::new(&member.name).ok()?;
        Some((NodeId(*id), Coordinator { name, address: member.address.clone(), voter: voters.contains(id) }))
    };
    membership.nodes().filter_map(coordinator).collect()
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
        while let Some((entry, responder)) = entries.try_next().await? {
            let index = entry.log_id.index;
            let (applied, view) = {
                let mut inner = self.lock();
                let before = inner.state.view_epoch();
                inner.applied = Some(entry.log_id);
                let applied = match &entry.payload {
                    EntryPayload::Blank => {
                        inner.state.apply_blank(index);
                        None
                    }
                    EntryPayload::Normal(proposal) => Some(inner.state.apply(index, proposal)),
                    EntryPayload::Membership(membership) => {
                        inner.membership =
                            StoredMembershipOf::<Types>::new(Some(entry.log_id), membership.clone());
                        inner.state.apply_membership(index, coordinators(membership));
                        None
                    }
                };
                let changed = inner.state.view_epoch() != before;
                let applied = applied.unwrap_or_else(|| super::nothing_applied(&inner.state));
                (applied, changed.then(|| inner.state.view()).flatten())
            };
            if let EntryPayload::Normal(proposal) = &entry.payload {
                tracing::debug!(index, command = ?proposal.command, by = proposal.by, result = ?applied.result, "applied");
            }
            self.publish(view);
            if let Some(responder) = responder {
                responder.send(applied);
            }
        }
        Ok(())
    }

    async fn get_snapshot_builder(&mut self) -> Self {
        self.clone()
    }

    async fn install_snapshot(&mut self, meta: &SnapshotMetaOf<Types>, bytes: Bytes) -> io::Result<()> {
        self.write_snapshot(meta, bytes.clone()).await?;
        self.take(meta, &bytes)
    }

    async fn get_current_snapshot(&mut self) -> io::Result<Option<SnapshotOf<Types, Bytes>>> {
        let snapshot = self.read_snapshot().await?;
        Ok(snapshot.map(|(meta, snapshot)| SnapshotOf::<Types, Bytes> { meta, snapshot }))
    }
}

impl RaftSnapshotBuilder<Types> for Machine {
    type SnapshotData = Bytes;

    async fn build_snapshot(&mut self) -> io::Result<SnapshotOf<Types, Bytes>> {
        let (meta, state) = {
            let inner = self.lock();
            let last_membership = inner.membership.clone();
            let meta = SnapshotMetaOf::<Types> { last_log_id: inner.applied, last_membership };
            (meta, inner.state.clone())
        };
        let bytes: Bytes = postcard::to_stdvec(&state).map_err(io::Error::other)?.into();
        self.write_snapshot(&meta, bytes.clone()).await?;
        Ok(SnapshotOf::<Types, Bytes> { meta, snapshot: bytes })
    }
}
