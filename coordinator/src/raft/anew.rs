//! A database from which a group of one begins: a snapshot, no log behind it, and a membership of this coordinator alone.

use std::collections::BTreeMap;
use std::io;

use openraft::Membership;
use openraft::Vote;
use openraft::alias::{LogIdOf, SnapshotMetaOf, SnapshotOf, StoredMembershipOf};
use redb::WriteTransaction;
use roost_protocol::NodeId;

use super::disk::{Disk, put_node};
use super::record::{LogIdRecord, VoteRecord};
use super::types::{Member, Types};
use super::{log, machine};
use crate::state::State;

/// Replaces all that the database holds, in one transaction. The coordinator is elected in the term after `term`, by its own vote.
///
/// # Errors
/// The disk's.
pub(crate) async fn begin_anew(
    disk: &Disk,
    node: NodeId,
    member: Member,
    term: u64,
    state: State,
) -> io::Result<()> {
    disk.write(move |transaction| begin(transaction, node, member, term, &state)).await
}

fn begin(
    transaction: &WriteTransaction,
    node: NodeId,
    member: Member,
    term: u64,
    state: &State,
) -> io::Result<()> {
    let index = state.epoch().index;
    let last = LogIdRecord::new(term, index);
    let membership = Membership::new(vec![[node.0].into()], BTreeMap::from([(node.0, member)]))
        .map_err(|error| io::Error::other(error.to_string()))?;
    let last_id = LogIdOf::<Types>::from(last);
    let last_membership = StoredMembershipOf::<Types>::new(Some(last_id), membership);
    let meta = SnapshotMetaOf::<Types> { last_log_id: Some(last_id), last_membership };
    let snapshot = SnapshotOf::<Types, bytes::Bytes> { meta, snapshot: machine::encode_state(state)?.into() };
    put_node(transaction, node)?;
    log::begin_at(transaction, last, VoteRecord::from(Vote::new(term, node.0)))?;
    machine::replace(transaction, snapshot)
}
