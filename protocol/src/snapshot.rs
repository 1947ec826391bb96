//! The file that `roost cluster snapshot save` writes: the replicated state of a cluster, and in its header what anybody may
//! read of it without the build that can read the state.
//!
//! ```text
//! │ "RoostSnp" │ format u16 │ header bytes u32 │ header (postcard) │ body │ SHA-256 of all before it, 32 bytes │
//! ```
//! The body is the coordinators' own record of their state. Bundles are not in the file: the header names those that versions
//! are made of, and they live in the coordinators' stores.

use std::collections::BTreeMap;
use std::io::{self, Read};

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::bundle::DigestBuilder;
use crate::ids::{ClusterId, Digest, Epoch, NodeId};
use crate::messages::control::{ModelSummary, VersionSummary};
use crate::view::Coordinator;

const MAGIC: [u8; 8] = *b"RoostSnp";
/// The format that is written. Reading knows this one, there is no earlier.
const FORMAT: u16 = 1;
const PREFIX_BYTES: usize = 14;
const HASH_BYTES: usize = 32;
/// All versions' manifests, files and notes are bounded to half as much in the state itself.
const HEADER_BYTES_MAX: u32 = 256 << 20;
/// What is read at once.
const CHUNK_BYTES: usize = 256 << 10;

/// What a snapshot is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotHeader {
    /// The cluster.
    pub cluster: ClusterId,
    /// The state's epoch: the generation, and the last log entry that it has.
    pub epoch: Epoch,
    /// Its level.
    pub level: u32,
    /// When it was taken, in ms since 1970.
    pub at_ms: u64,
    /// Who coordinated.
    pub coordinators: BTreeMap<NodeId, Coordinator>,
    /// The models and their versions, by name.
    pub models: Vec<SnapshotModel>,
    /// The bytes of the body.
    pub body_bytes: u64,
}

/// A model of a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotModel {
    /// Its name, traffic and labels.
    pub summary: ModelSummary,
    /// Its versions, in order.
    pub versions: Vec<VersionSummary>,
}

impl SnapshotHeader {
    /// The bundles that versions are made of, in order.
    pub fn bundles(&self) -> std::collections::BTreeSet<Digest> {
        let versions = self.models.iter().flat_map(|model| &model.versions);
        versions.map(|version| version.digest).collect()
    }
}

/// Why bytes are no snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The file cannot be read.
    #[error("the snapshot cannot be read: {0}")]
    Io(#[from] io::Error),
    /// It does not start as one.
    #[error("this is no snapshot of a Roost cluster: it does not start with RoostSnp")]
    NotASnapshot,
    /// Written by a later build.
    #[error("a snapshot of format {0}, this build reads {FORMAT}; take the build that wrote it")]
    Format(u16),
    /// It ends ahead of what its header says.
    #[error("the snapshot is cut off: {0} ends early")]
    Truncated(&'static str),
    /// Bytes follow that do not belong to it.
    #[error("bytes follow the snapshot's hash")]
    Trailing,
    /// The bytes are not those that were written.
    #[error("the snapshot is damaged: its SHA-256 should be {expected}, its bytes have {actual}")]
    Hash {
        /// The hash that it should have.
        expected: Digest,
        /// The hash of its bytes.
        actual: Digest,
    },
    /// The header is larger than any.
    #[error("the snapshot's header has {0} bytes, at most {HEADER_BYTES_MAX} are read")]
    HeaderTooLarge(u32),
    /// The header is no header of this format.
    #[error("the snapshot's header: {0}")]
    Header(#[from] postcard::Error),
}

/// The bytes of a snapshot, in parts.
///
/// # Errors
/// [`SnapshotError::Header`] or [`SnapshotError::HeaderTooLarge`] when the header cannot be encoded.
pub fn encode(header: &SnapshotHeader, body: Bytes) -> Result<[Bytes; 3], SnapshotError> {
    let header = postcard::to_stdvec(&SnapshotHeader { body_bytes: body.len() as u64, ..header.clone() })?;
    let length = u32::try_from(header.len()).unwrap_or(u32::MAX);
    if length > HEADER_BYTES_MAX {
        return Err(SnapshotError::HeaderTooLarge(length));
    }
    let mut head = Vec::with_capacity(PREFIX_BYTES + header.len());
    head.extend_from_slice(&MAGIC);
    head.extend_from_slice(&FORMAT.to_le_bytes());
    head.extend_from_slice(&length.to_le_bytes());
    head.extend_from_slice(&header);
    let mut hash = DigestBuilder::default();
    hash.update(&head);
    hash.update(&body);
    let hash = Bytes::copy_from_slice(&hash.finish().0);
    Ok([head.into(), body, hash])
}

/// Reads and verifies a snapshot, in bounded memory; `body` is given the body's bytes piece by piece, and must not be
/// believed before this returns.
///
/// # Errors
/// [`SnapshotError`] when it is not what was written.
pub fn read(source: &mut impl Read, mut body: impl FnMut(&[u8])) -> Result<SnapshotHeader, SnapshotError> {
    let mut hash = DigestBuilder::default();
    let mut prefix = [0; PREFIX_BYTES];
    fill(source, &mut prefix, "its first line")?;
    let [m @ .., f0, f1, l0, l1, l2, l3] = prefix;
    if m != MAGIC {
        return Err(SnapshotError::NotASnapshot);
    }
    let format = u16::from_le_bytes([f0, f1]);
    if format != FORMAT {
        return Err(SnapshotError::Format(format));
    }
    let length = u32::from_le_bytes([l0, l1, l2, l3]);
    if length > HEADER_BYTES_MAX {
        return Err(SnapshotError::HeaderTooLarge(length));
    }
    let mut header = Vec::new();
    // Grows with what comes, not with what is claimed.
    source.take(length.into()).read_to_end(&mut header)?;
    if header.len() != length as usize {
        return Err(SnapshotError::Truncated("its header"));
    }
    hash.update(&prefix);
    hash.update(&header);
    // A header that cannot be decoded may be a damaged one, which the hash tells better.
    let decoded: Result<SnapshotHeader, postcard::Error> = postcard::from_bytes(&header);
    let mut left = decoded.as_ref().map_or(u64::MAX, |header| header.body_bytes);
    let mut chunk = vec![0; CHUNK_BYTES + HASH_BYTES];
    // The last bytes that were read and may be the hash.
    let mut held: Vec<u8> = Vec::new();
    loop {
        let read = source.read(&mut chunk)?;
        if read == 0 {
            break;
        }
        held.extend_from_slice(&chunk[..read]);
        let sure = held.len().saturating_sub(HASH_BYTES);
        hash.update(&held[..sure]);
        let of_body = sure.min(usize::try_from(left).unwrap_or(usize::MAX));
        body(&held[..of_body]);
        left -= of_body as u64;
        if of_body < sure && decoded.is_ok() {
            return Err(SnapshotError::Trailing);
        }
        held.drain(..sure);
    }
    let actual = hash.finish();
    let expected =
        <[u8; HASH_BYTES]>::try_from(&held[..]).map_err(|_| SnapshotError::Truncated("its hash"))?;
    let expected = Digest(expected);
    if decoded.is_ok() && left > 0 {
        return Err(SnapshotError::Truncated("its body"));
    }
    if expected != actual {
        return Err(SnapshotError::Hash { expected, actual });
    }
    Ok(decoded?)
}

fn fill(source: &mut impl Read, bytes: &mut [u8], what: &'static str) -> Result<(), SnapshotError> {
    source.read_exact(bytes).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => SnapshotError::Truncated(what),
        _ => error.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Label, ModelName, NodeName, Revision, Version};
    use crate::traffic::Traffic;

    fn header() -> SnapshotHeader {
        let coordinator =
            Coordinator { name: NodeName::new("c1").unwrap(), address: "h:7300".to_owned(), voter: true };
        let traffic = Traffic { revision: Revision(3), stable: Version(1), canary: None, previous: None };
        let model = SnapshotModel {
            summary: ModelSummary {
                model: ModelName::new("digits").unwrap(),
                traffic,
                versions: 1,
                labels: [(Label::new("prod").unwrap(), Version(1))].into(),
            },
            versions: vec![VersionSummary {
                version: Version(1),
                digest: Digest::of(b"bundle"),
                bytes: 9,
                pushed_by: "anna".to_owned(),
                pushed_at_ms: 5,
                note: "first".to_owned(),
            }],
        };
        SnapshotHeader {
            cluster: ClusterId(7),
            epoch: Epoch { generation: 2, index: 30 },
            level: 1,
            at_ms: 1_800_000_000_000,
            coordinators: [(NodeId(1), coordinator)].into(),
            models: vec![model],
            body_bytes: 0,
        }
    }

    fn bytes_of(body: &'static [u8]) -> Vec<u8> {
        encode(&header(), Bytes::from_static(body)).unwrap().concat()
    }

    fn read_all(bytes: &[u8]) -> Result<(SnapshotHeader, Vec<u8>), SnapshotError> {
        let mut body = Vec::new();
        read(&mut &bytes[..], |piece| body.extend_from_slice(piece)).map(|header| (header, body))
    }

    #[test]
    fn what_was_written_is_read() {
        for body in [&b""[..], b"a state"] {
            let (read, got) = read_all(&bytes_of(body)).unwrap();
            assert_eq!(got, body);
            assert_eq!(read, SnapshotHeader { body_bytes: body.len() as u64, ..header() });
            assert_eq!(read.bundles(), [Digest::of(b"bundle")].into());
        }
        let large: &'static [u8] = vec![7; 3 * CHUNK_BYTES + 5].leak();
        assert_eq!(read_all(&bytes_of(large)).unwrap().1, large);
    }

    #[test]
    fn each_flipped_bit_and_each_cut_is_found() {
        let bytes = bytes_of(b"a state");
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            read_all(&flipped).unwrap_err();
        }
        for length in 0..bytes.len() {
            read_all(&bytes[..length]).unwrap_err();
        }
        let longer = [&bytes[..], b"x"].concat();
        assert!(matches!(read_all(&longer), Err(SnapshotError::Trailing | SnapshotError::Hash { .. })));
    }

    #[test]
    fn what_is_no_snapshot_is_told_apart() {
        assert!(matches!(read_all(b"a text that is long enough"), Err(SnapshotError::NotASnapshot)));
        assert!(matches!(read_all(b"RoostSnp"), Err(SnapshotError::Truncated(_))));
        let mut later = bytes_of(b"a state");
        later[8] = 2;
        assert!(matches!(read_all(&later), Err(SnapshotError::Format(2))));
        let mut flipped = bytes_of(b"a state");
        let at = flipped.len() - HASH_BYTES - 1;
        flipped[at] ^= 1;
        assert!(matches!(read_all(&flipped), Err(SnapshotError::Hash { .. })));
    }

    /// Nothing writes the file: bytes never change under a format, and every build reads it.
    #[test]
    fn the_first_format_is_read_and_written_as_ever() {
        let advice =
            "snapshots of format 1 lie in backups: leave snapshot/format1.txt, add a format, and read both";
        let frozen = include_str!("snapshot/format1.txt").trim_end();
        let (read, body) =
            read_all(&hex::decode(frozen).unwrap()).unwrap_or_else(|e| panic!("{e}: {advice}"));
        assert_eq!(
            (read, &body[..]),
            (SnapshotHeader { body_bytes: 7, ..header() }, &b"a state"[..]),
            "{advice}"
        );
        assert_eq!(hex::encode(bytes_of(b"a state")), frozen, "{advice}");
    }
}
