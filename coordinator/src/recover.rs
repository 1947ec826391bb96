//! A group of one out of what is left: after a loss of quorum from one data folder, after a loss of all from a snapshot.
//!
//! It runs offline, on the database of a coordinator that is stopped, and changes it in one transaction. The group keeps the
//! cluster's id and gets a raised generation, so that epochs only grow for everyone who has seen the old group. The
//! coordinator becomes another node: what members of the old group may still send is meant for somebody else, and they
//! are strangers to the new group, which takes none of them in with its log.
//!
//! Of a data folder all entries of the log are applied, also those that this coordinator did not know to be committed: a
//! quorum may have acknowledged them, and nobody is left to ask. An unacknowledged one may be among them; it is wholly
//! there then.

use std::io;
use std::sync::Arc;

use futures::stream;
use openraft::RaftLogReader;
use openraft::storage::{RaftLogStorage, RaftStateMachine};
use redb::StorageBackend;
use roost_protocol::bundle::FileList;
use roost_protocol::snapshot::SnapshotHeader;
use roost_protocol::view::{Coordinator, Published};
use roost_protocol::{ClusterId, Digest, Epoch, NodeId};
use tokio::sync::watch;

use crate::raft::disk::{Disk, DiskError, JobQueue};
use crate::raft::record::RecordError;
use crate::raft::{Log, Machine, begin_anew, machine};
use crate::state::{LEVEL, State};

/// What the new group begins with.
#[derive(Debug, Clone)]
pub enum Source {
    /// What the database itself holds.
    Folder,
    /// A snapshot.
    Snapshot {
        /// Its header.
        header: Box<SnapshotHeader>,
        /// Its body.
        body: Vec<u8>,
    },
}

/// How a new group is made.
#[derive(Debug, Clone)]
pub struct Recovery {
    /// What it begins with.
    pub source: Source,
    /// The id of the coordinator from now on: one that no node has had.
    pub node: NodeId,
    /// Its name and address.
    pub founder: crate::GroupMember,
    /// The generation is raised to this at least: where a cluster was restored since the snapshot was taken, above that.
    pub generation_min: u32,
}

/// What was recovered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recovered {
    /// The cluster.
    pub cluster: ClusterId,
    /// The epoch of what the group began with.
    pub before: Epoch,
    /// Its epoch now.
    pub epoch: Epoch,
    /// Entries of the log that this coordinator did not know to be committed.
    pub unconfirmed: u64,
    /// The bundles that versions are made of.
    pub bundles: Vec<(Digest, FileList)>,
}

/// Why nothing was recovered. The database is as it was.
#[derive(Debug, thiserror::Error)]
pub enum RecoverError {
    /// The database cannot be opened.
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The database cannot be read or written.
    #[error("the coordinator's database: {0}")]
    Database(#[from] io::Error),
    /// There is nothing to recover.
    #[error("the data folder knows of no cluster; a snapshot would be needed")]
    Nothing,
    /// The snapshot's body is no state.
    #[error("the snapshot's state cannot be read: {0}")]
    Body(#[from] RecordError),
    /// The snapshot's header and its body do not fit together.
    #[error(
        "the snapshot's header is of cluster {said} at epoch {said_epoch}, its state of {held:?} at {held_epoch}"
    )]
    Header {
        /// The header's cluster.
        said: ClusterId,
        /// The header's epoch.
        said_epoch: Epoch,
        /// The body's cluster.
        held: Option<ClusterId>,
        /// The body's epoch.
        held_epoch: Epoch,
    },
    /// The data folder is of another cluster than the snapshot.
    #[error(
        "the data folder is of cluster {folder}, the snapshot of cluster {snapshot}; take an empty folder"
    )]
    OtherCluster {
        /// The folder's cluster.
        folder: ClusterId,
        /// The snapshot's.
        snapshot: ClusterId,
    },
    /// No later generation can be counted.
    #[error("generation {0} is the last that can be counted")]
    Generations(u32),
}

/// What a database holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Found {
    /// The cluster.
    pub cluster: ClusterId,
    /// The epoch of its last entry. Of several data folders the one with the greatest has what the others have.
    pub epoch: Epoch,
    /// Entries of the log that this coordinator did not know to be committed.
    pub unconfirmed: u64,
}

/// Looks at what the database on `storage` holds. Opening sets an empty one up and mends one that was not closed, so it is
/// to be given a copy.
///
/// # Errors
/// [`RecoverError`] when it cannot be read, or knows of no cluster.
pub async fn look(storage: Box<dyn StorageBackend>, queue: Arc<dyn JobQueue>) -> Result<Found, RecoverError> {
    let disk = Disk::open_of_any(storage, queue, NodeId(0)).await?;
    let folder = Folder::read(&disk).await;
    disk.close().await;
    let folder = folder?;
    let cluster = folder.state.cluster().ok_or(RecoverError::Nothing)?;
    Ok(Found { cluster, epoch: folder.state.epoch(), unconfirmed: folder.unconfirmed })
}

/// Makes a group of one in the database on `storage`.
///
/// # Errors
/// [`RecoverError`]; the database is as it was.
pub async fn recover(
    storage: Box<dyn StorageBackend>,
    queue: Arc<dyn JobQueue>,
    recovery: Recovery,
) -> Result<Recovered, RecoverError> {
    let disk = Disk::open_of_any(storage, queue, recovery.node).await?;
    let recovered = recover_on(&disk, recovery).await;
    disk.close().await;
    recovered
}

/// A database as it is read.
struct Folder {
    /// With all entries of its log.
    state: State,
    /// The latest term that it knows of.
    term: u64,
    unconfirmed: u64,
}

impl Folder {
    async fn read(disk: &Disk) -> Result<Self, RecoverError> {
        let mut log = Log::new(disk.clone());
        let last = log.get_log_state().await?.last_log_id;
        let voted = log.read_vote().await?.map_or(0, |vote| vote.leader_id.term);
        let committed = log.read_committed().await?.map_or(0, |committed| committed.index);
        let state = own_state(disk, &mut log, last.map(|last| last.index)).await?;
        let unconfirmed = last.map_or(0, |last| last.index).saturating_sub(committed);
        Ok(Self { state, term: voted.max(last.map_or(0, |last| *last.leader_id)), unconfirmed })
    }
}

async fn recover_on(disk: &Disk, recovery: Recovery) -> Result<Recovered, RecoverError> {
    let Folder { state: folder, term, unconfirmed } = Folder::read(disk).await?;
    let (state, unconfirmed) = match recovery.source {
        Source::Folder => (folder.clone(), unconfirmed),
        Source::Snapshot { header, body } => (state_of(&header, &body)?, 0),
    };
    let cluster = state.cluster().ok_or(RecoverError::Nothing)?;
    if let Some(folder) = folder.cluster().filter(|folder| *folder != cluster) {
        return Err(RecoverError::OtherCluster { folder, snapshot: cluster });
    }
    let before = state.epoch();
    let seen = before.generation.max(folder.epoch().generation);
    let next = seen.checked_add(1).ok_or(RecoverError::Generations(seen))?;
    let founder = Coordinator {
        name: recovery.founder.name.clone(),
        address: recovery.founder.address.clone(),
        voter: true,
    };
    let was = folder.coordinators().iter().chain(state.coordinators());
    let was: Vec<NodeId> = was.filter(|(_, known)| known.name == founder.name).map(|(id, _)| *id).collect();
    let state = state.refounded(next.max(recovery.generation_min), (recovery.node, founder), &was);
    // Clients and workers order what nodes report by the term, and may have heard of later ones than this folder: each generation
    // has terms of its own, higher than any election of those before can reach.
    let term = term.max(u64::from(state.epoch().generation) << 32);
    let member = crate::raft::types::Member {
        name: recovery.founder.name.to_string(),
        address: recovery.founder.address,
    };
    let recovered = Recovered {
        cluster,
        before,
        epoch: state.epoch(),
        unconfirmed,
        bundles: state.referenced_bundles().map(|(digest, files)| (*digest, files.clone())).collect(),
    };
    let node = recovery.node;
    begin_anew(disk, node, member, term, state).await?;
    Ok(recovered)
}

/// The state that a database holds, with all entries of its log.
async fn own_state(disk: &Disk, log: &mut Log, last: Option<u64>) -> Result<State, RecoverError> {
    let published = watch::Sender::new(Published::default());
    let mut machine = Machine::open(disk.clone(), published, LEVEL).await?;
    let (applied, _) = machine.applied_state().await?;
    let next = applied.map_or(0, |applied| applied.index + 1);
    if let Some(last) = last.filter(|last| *last >= next) {
        let entries = log.try_get_log_entries(next..=last).await?;
        machine.apply(stream::iter(entries.into_iter().map(|entry| Ok((entry, None))))).await?;
    }
    Ok(machine.state(State::clone))
}

fn state_of(header: &SnapshotHeader, body: &[u8]) -> Result<State, RecoverError> {
    let state = machine::decode_state(body)?;
    if state.cluster() == Some(header.cluster) && state.epoch() == header.epoch {
        return Ok(state);
    }
    Err(RecoverError::Header {
        said: header.cluster,
        said_epoch: header.epoch,
        held: state.cluster(),
        held_epoch: state.epoch(),
    })
}

/// The state that a database holds, as the body of a snapshot.
///
/// # Errors
/// [`RecoverError`] when it cannot be read.
pub async fn snapshot_body(
    storage: Box<dyn StorageBackend>,
    queue: Arc<dyn JobQueue>,
) -> Result<Vec<u8>, RecoverError> {
    let disk = Disk::open_of_any(storage, queue, NodeId(0)).await?;
    let folder = Folder::read(&disk).await;
    disk.close().await;
    Ok(machine::encode_state(&folder?.state)?)
}
