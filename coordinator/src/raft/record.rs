//! What lies on disk and travels between coordinators: our own types, converted from openraft's, framed and checksummed.
//!
//! ```text
//! │ "Rr" │ format u16 │ length u32 │ crc32c u32 │ body (postcard) │
//! ```
//! The checksum covers all but itself and is checked on each read: redb verifies pages only when it verifies a whole
//! tree. A record of an unknown format refuses to be read; formats are never changed, only added.

use std::collections::{BTreeMap, BTreeSet};

use openraft::alias::{CommittedLeaderIdOf, EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf, VoteOf};
use openraft::{EntryPayload, Membership};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::types::{Member, Types};
use crate::state::Proposal;

const MAGIC: [u8; 2] = *b"Rr";
/// The format that is written. Reading knows this one, there is no earlier.
const FORMAT: u16 = 1;
const HEAD_BYTES: usize = 12;

/// Why bytes on disk are no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RecordError {
    /// They do not start as one.
    #[error("{what}: not a record")]
    NotARecord {
        /// What was read.
        what: String,
    },
    /// Written by a later build.
    #[error("{what}: a record of format {format}, this build reads {FORMAT}; start the build that wrote it")]
    Format {
        /// What was read.
        what: String,
        /// Its format.
        format: u16,
    },
    /// The bytes are not those that were written.
    #[error("{what}: the checksum does not match, the disk returned other bytes than were written")]
    Checksum {
        /// What was read.
        what: String,
    },
    /// What must be there is not.
    #[error("{what}: it is not there, the disk lost it")]
    Missing {
        /// What was to be read.
        what: String,
    },
    /// A record of another place.
    #[error("log entry {expected}: the record there is of entry {actual}")]
    Misplaced {
        /// Where it was found.
        expected: u64,
        /// Where it belongs.
        actual: u64,
    },
    /// The state is at a level that this build does not obey.
    #[error(
        "the state is at level {level}, this coordinator obeys {obeyed}; start a build that knows the level"
    )]
    Level {
        /// The state's level.
        level: u32,
        /// The highest that is obeyed.
        obeyed: u32,
    },
    /// The body is no value of its type.
    #[error("{what}: {reason}")]
    Body {
        /// What was read.
        what: String,
        /// What reading it said.
        reason: String,
    },
}

impl From<RecordError> for std::io::Error {
    fn from(error: RecordError) -> Self {
        Self::new(std::io::ErrorKind::InvalidData, error)
    }
}

/// Frames a body.
pub fn seal_bytes(body: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(HEAD_BYTES + body.len());
    record.extend_from_slice(&MAGIC);
    record.extend_from_slice(&FORMAT.to_le_bytes());
    record.extend_from_slice(&(body.len() as u32).to_le_bytes());
    record.extend_from_slice(&checksum(&record, body).to_le_bytes());
    record.extend_from_slice(body);
    record
}

/// The body of a record that is what was written. `what` names it in errors.
///
/// # Errors
/// [`RecordError`] when it is not.
pub fn open_bytes<'a>(what: &str, record: &'a [u8]) -> Result<&'a [u8], RecordError> {
    let what = || what.to_owned();
    let Some((head, body)) = record.split_first_chunk::<HEAD_BYTES>() else {
        return Err(RecordError::NotARecord { what: what() });
    };
    let [m0, m1, f0, f1, l0, l1, l2, l3, c0, c1, c2, c3] = *head;
    if [m0, m1] != MAGIC {
        return Err(RecordError::NotARecord { what: what() });
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
    let matches = u32::from_le_bytes([c0, c1, c2, c3]) == checksum(&head[..8], body);
    if length != body.len() || !matches {
        return Err(RecordError::Checksum { what: what() });
    }
    let format = u16::from_le_bytes([f0, f1]);
    if format == FORMAT { Ok(body) } else { Err(RecordError::Format { what: what(), format }) }
}

/// Frames a value.
///
/// # Errors
/// [`RecordError::Body`] when the value cannot be encoded.
pub fn seal<T: Serialize>(what: &str, value: &T) -> Result<Vec<u8>, RecordError> {
    let body = postcard::to_stdvec(value)
        .map_err(|e| RecordError::Body { what: what.to_owned(), reason: e.to_string() })?;
    Ok(seal_bytes(&body))
}

/// Reads a framed value.
///
/// # Errors
/// [`RecordError`] when it is not what was written.
pub fn open<T: DeserializeOwned>(what: &str, record: &[u8]) -> Result<T, RecordError> {
    let unfit = |reason: String| RecordError::Body { what: what.to_owned(), reason };
    let body = open_bytes(what, record)?;
    let (value, rest) = postcard::take_from_bytes(body).map_err(|error| unfit(error.to_string()))?;
    if rest.is_empty() { Ok(value) } else { Err(unfit(format!("{} bytes are left over", rest.len()))) }
}

fn checksum(head: &[u8], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(head), body)
}

/// A position in the log. A later one is greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct LogIdRecord {
    term: u64,
    index: u64,
}

impl LogIdRecord {
    /// The position of an entry that a leader of `term` wrote.
    pub fn new(term: u64, index: u64) -> Self {
        Self { term, index }
    }

    /// The index.
    pub fn index(&self) -> u64 {
        self.index
    }
}

impl From<LogIdOf<Types>> for LogIdRecord {
    fn from(id: LogIdOf<Types>) -> Self {
        Self { term: *id.leader_id, index: id.index }
    }
}

impl From<LogIdRecord> for LogIdOf<Types> {
    fn from(id: LogIdRecord) -> Self {
        Self { leader_id: CommittedLeaderIdOf::<Types>::new(id.term), index: id.index }
    }
}

/// Whom a coordinator voted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteRecord {
    term: u64,
    node: u64,
    committed: bool,
}

impl VoteRecord {
    /// Who asks for votes, or leads.
    pub fn node(&self) -> u64 {
        self.node
    }
}

impl From<VoteOf<Types>> for VoteRecord {
    fn from(vote: VoteOf<Types>) -> Self {
        Self { term: vote.leader_id.term, node: vote.leader_id.voted_for, committed: vote.committed }
    }
}

impl From<VoteRecord> for VoteOf<Types> {
    fn from(vote: VoteRecord) -> Self {
        if vote.committed {
            Self::new_committed(vote.term, vote.node)
        } else {
            Self::new(vote.term, vote.node)
        }
    }
}

/// Who takes part, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MembershipRecord {
    /// One set of voters, or two while one replaces the other.
    voters: Vec<BTreeSet<u64>>,
    members: BTreeMap<u64, Member>,
}

impl From<&Membership<u64, Member>> for MembershipRecord {
    fn from(membership: &Membership<u64, Member>) -> Self {
        Self {
            voters: membership.get_joint_config().clone(),
            members: membership.nodes().map(|(id, member)| (*id, member.clone())).collect(),
        }
    }
}

impl TryFrom<MembershipRecord> for Membership<u64, Member> {
    type Error = RecordError;
    fn try_from(record: MembershipRecord) -> Result<Self, RecordError> {
        Self::new(record.voters, record.members)
            .map_err(|e| RecordError::Body { what: "a membership".to_owned(), reason: e.to_string() })
    }
}

/// A membership, and the log entry that it came by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredMembershipRecord {
    log_id: Option<LogIdRecord>,
    membership: MembershipRecord,
}

impl From<&StoredMembershipOf<Types>> for StoredMembershipRecord {
    fn from(stored: &StoredMembershipOf<Types>) -> Self {
        Self { log_id: (*stored.log_id()).map(Into::into), membership: stored.membership().into() }
    }
}

impl TryFrom<StoredMembershipRecord> for StoredMembershipOf<Types> {
    type Error = RecordError;
    fn try_from(record: StoredMembershipRecord) -> Result<Self, RecordError> {
        Ok(Self::new(record.log_id.map(Into::into), record.membership.try_into()?))
    }
}

/// What a snapshot covers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotMetaRecord {
    last: Option<LogIdRecord>,
    membership: StoredMembershipRecord,
}

impl SnapshotMetaRecord {
    /// The last entry that the snapshot covers.
    pub fn last(&self) -> Option<LogIdRecord> {
        self.last
    }
}

impl From<&SnapshotMetaOf<Types>> for SnapshotMetaRecord {
    fn from(meta: &SnapshotMetaOf<Types>) -> Self {
        Self { last: meta.last_log_id.map(Into::into), membership: (&meta.last_membership).into() }
    }
}

impl TryFrom<SnapshotMetaRecord> for SnapshotMetaOf<Types> {
    type Error = RecordError;
    fn try_from(record: SnapshotMetaRecord) -> Result<Self, RecordError> {
        let last_membership = record.membership.try_into()?;
        Ok(Self { last_log_id: record.last.map(Into::into), last_membership })
    }
}

/// A log entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryRecord {
    id: LogIdRecord,
    payload: PayloadRecord,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum PayloadRecord {
    Blank,
    Proposal(Proposal),
    Membership(MembershipRecord),
}

impl From<EntryOf<Types>> for EntryRecord {
    fn from(entry: EntryOf<Types>) -> Self {
        let payload = match entry.payload {
            EntryPayload::Blank => PayloadRecord::Blank,
            EntryPayload::Normal(proposal) => PayloadRecord::Proposal(proposal),
            EntryPayload::Membership(membership) => PayloadRecord::Membership((&membership).into()),
        };
        Self { id: entry.log_id.into(), payload }
    }
}

impl EntryRecord {
    /// Its place in the log.
    pub fn index(&self) -> u64 {
        self.id.index
    }

    /// The entry, as openraft has it.
    ///
    /// # Errors
    /// [`RecordError::Body`] for a membership that is none.
    pub fn into_entry(self) -> Result<EntryOf<Types>, RecordError> {
        let payload = match self.payload {
            PayloadRecord::Blank => EntryPayload::Blank,
            PayloadRecord::Proposal(proposal) => EntryPayload::Normal(proposal),
            PayloadRecord::Membership(membership) => EntryPayload::Membership(membership.try_into()?),
        };
        Ok(openraft::Entry { log_id: self.id.into(), payload })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_flipped_bit_is_found() {
        let record = seal("a vote", &VoteRecord { term: 7, node: 3, committed: true }).unwrap();
        for bit in 0..record.len() * 8 {
            let mut flipped = record.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            open::<VoteRecord>("a vote", &flipped).unwrap_err();
        }
        for length in 0..record.len() {
            open::<VoteRecord>("a vote", &record[..length]).unwrap_err();
        }
        assert_eq!(open::<VoteRecord>("a vote", &record).unwrap().term, 7);
    }

    #[test]
    fn a_body_that_is_longer_than_its_value_is_none() {
        let record = seal("a vote", &(VoteRecord { term: 7, node: 3, committed: true }, 1u8)).unwrap();
        let error = open::<VoteRecord>("a vote", &record).unwrap_err();
        assert_eq!(error.to_string(), "a vote: 1 bytes are left over");
    }

    #[test]
    fn a_later_format_is_refused_by_name() {
        let mut record = seal_bytes(b"later");
        record[2] = 2;
        let crc = checksum(&record[..8], b"later");
        record[8..12].copy_from_slice(&crc.to_le_bytes());
        assert!(matches!(open_bytes("x", &record), Err(RecordError::Format { format: 2, .. })));
    }
}
