//! Who a node is, across its starts: kept in one small file of its data folder.
//!
//! An empty folder gets a new [`NodeId`]: an emptied node is another node. The file is replaced whole and durably before
//! what it says is used.
//!
//! Its first line is the crc32c of all that follows, which is TOML. Format 1 had no such line; it is read, and written as
//! format 2. A checksum does not tell that the whole folder is an older copy of itself: the cluster does, which has heard
//! later starts ([`Identity::outlive`]).

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roost_protocol::messages::control::Hello;
use roost_protocol::ring::Speed;
use roost_protocol::{ClusterId, Incarnation, NodeId};
use serde::{Deserialize, Serialize};

use crate::environment::{Entropy, Files};

/// The file's name.
const FILE: &str = "identity.toml";
/// The format that is written.
const FORMAT: u32 = 2;
/// The format without a checksum.
const FORMAT_UNCHECKED: u32 = 1;
/// What the line of the checksum begins with.
const CHECKSUM: &str = "crc32c = ";

/// Why an identity cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk failed.
    #[error("the node's identity cannot be kept: {0}")]
    Disk(#[from] io::Error),
    /// The file is not what was written.
    #[error("{FILE} of the data folder cannot be read: {0}")]
    Damaged(String),
    /// The bytes are not those that were written.
    #[error(
        "{FILE} of the data folder does not match its checksum: the disk returned other bytes than were written; empty the folder"
    )]
    Checksum,
    /// The count of starts has come to its end, as no node's can.
    #[error("no later start than {0} can be counted")]
    LastStart(Incarnation),
    /// Written by a later build.
    #[error("{FILE} has format {0}, this build reads up to {FORMAT}; start the build that wrote it")]
    Format(u32),
}

/// What the file holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    format: u32,
    node: u64,
    incarnation: u64,
    /// In hexadecimal: TOML has no numbers of 128 bits.
    cluster: Option<String>,
    reset_key: String,
    speed: Option<Speed>,
}

/// What a file of every format says.
#[derive(Deserialize)]
struct Head {
    format: u32,
}

/// Who this node is. Cloning shares it.
#[derive(Clone)]
pub struct Identity {
    files: Arc<dyn Files>,
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    record: Record,
    cluster: Option<ClusterId>,
    reset_key: [u8; 64],
}

impl Identity {
    /// Reads the identity, or draws a new one into an empty folder; counts this start.
    ///
    /// # Errors
    /// [`IdentityError`] when the file is damaged, or cannot be written.
    pub fn open(files: Arc<dyn Files>, entropy: &dyn Entropy) -> Result<Self, IdentityError> {
        let mut record = match files.read(FILE)? {
            Some(bytes) => read(&bytes)?,
            None => {
                let mut reset_key = [0; 64];
                entropy.fill(&mut reset_key);
                let reset_key = hex_of(&reset_key);
                // TOML's integers are signed; 63 bits do not collide either.
                let node = entropy.u64() >> 1;
                Record { format: FORMAT, node, incarnation: 0, cluster: None, reset_key, speed: None }
            }
        };
        record.incarnation += 1;
        let damaged = |what: &str| IdentityError::Damaged(format!("{what} is not hexadecimal"));
        let cluster = match &record.cluster {
            Some(text) => Some(ClusterId(u128::from_str_radix(text, 16).map_err(|_| damaged("cluster"))?)),
            None => None,
        };
        let reset_key = bytes_of(&record.reset_key).ok_or_else(|| damaged("reset_key"))?;
        let identity = Self { files, inner: Arc::new(Mutex::new(Inner { record, cluster, reset_key })) };
        identity.keep(&identity.lock().record)?;
        Ok(identity)
    }

    /// The node's id.
    pub fn node(&self) -> NodeId {
        NodeId(self.lock().record.node)
    }

    /// Which start of the node this is.
    pub fn incarnation(&self) -> Incarnation {
        Incarnation(self.lock().record.incarnation)
    }

    /// Makes this start a later one than `known`, which the cluster has heard: an older copy of the data folder knows nothing of
    /// the starts since, and reports of an older start count for nothing. Returns which start this is then.
    ///
    /// # Errors
    /// [`IdentityError`] when it cannot be kept; nothing changes then.
    pub fn outlive(&self, known: Incarnation) -> Result<Incarnation, IdentityError> {
        let mut inner = self.lock();
        if inner.record.incarnation <= known.0 {
            // TOML's integers are signed.
            let incarnation = known.0.saturating_add(1);
            i64::try_from(incarnation).map_err(|_| IdentityError::LastStart(known))?;
            let record = Record { incarnation, ..inner.record.clone() };
            self.keep(&record)?;
            inner.record = record;
        }
        Ok(Incarnation(inner.record.incarnation))
    }

    /// The key of stateless resets, by which peers of an earlier process learn that it is gone.
    pub fn reset_key(&self) -> [u8; 64] {
        self.lock().reset_key
    }

    /// What this node greets with.
    pub fn hello(&self) -> Hello {
        let inner = self.lock();
        Hello { cluster: inner.cluster, node: Some(NodeId(inner.record.node)) }
    }

    /// Keeps the cluster that the node belongs to.
    ///
    /// # Errors
    /// [`IdentityError::Disk`]; the node does not belong to it then.
    pub fn join(&self, cluster: ClusterId) -> Result<(), IdentityError> {
        let mut inner = self.lock();
        if inner.cluster == Some(cluster) {
            return Ok(());
        }
        let mut record = inner.record.clone();
        record.cluster = Some(cluster.to_string());
        self.keep(&record)?;
        (inner.record, inner.cluster) = (record, Some(cluster));
        Ok(())
    }

    /// Makes this another node of `cluster`, for a recovery: its peers knew it under the id that it had.
    ///
    /// # Errors
    /// [`IdentityError::Disk`]; it is the same node then.
    pub fn become_another(&self, node: NodeId, cluster: ClusterId) -> Result<(), IdentityError> {
        let mut inner = self.lock();
        let cluster_text = Some(cluster.to_string());
        let record = Record { node: node.0, cluster: cluster_text, ..inner.record.clone() };
        self.keep(&record)?;
        (inner.record, inner.cluster) = (record, Some(cluster));
        Ok(())
    }

    /// The node's speed: measured once, kept across starts.
    ///
    /// # Errors
    /// [`IdentityError::Disk`] when it cannot be kept.
    pub fn speed(&self, measured: f64) -> Result<Speed, IdentityError> {
        let mut inner = self.lock();
        if let Some(speed) = inner.record.speed {
            return Ok(speed);
        }
        let speed = Speed::from_ratio(measured);
        inner.record.speed = Some(speed);
        self.keep(&inner.record)?;
        Ok(speed)
    }

    fn keep(&self, record: &Record) -> Result<(), IdentityError> {
        Ok(self.files.replace(FILE, write(record)?.as_bytes())?)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(record: &Record) -> Result<String, IdentityError> {
    let body = toml::to_string(record).map_err(|error| IdentityError::Damaged(error.to_string()))?;
    Ok(checksum_of(&body) + &body)
}

/// The first line, with its end.
fn checksum_of(body: &str) -> String {
    format!("{CHECKSUM}\"{:08x}\"\n", crc32c::crc32c(body.as_bytes()))
}

/// What a file says, in the format that is written.
fn read(bytes: &[u8]) -> Result<Record, IdentityError> {
    let damaged = |error: String| IdentityError::Damaged(error);
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
    let (body, checked) = match text.split_inclusive('\n').next().filter(|line| line.starts_with(CHECKSUM)) {
        Some(line) => {
            let body = &text[line.len()..];
            if checksum_of(body) != line {
                return Err(IdentityError::Checksum);
            }
            (body, true)
        }
        None => (text, false),
    };
    let head: Head = toml::from_str(body).map_err(|error| damaged(error.to_string()))?;
    match (head.format, checked) {
        (FORMAT, true) | (FORMAT_UNCHECKED, false) => {
            let record: Record = toml::from_str(body).map_err(|error| damaged(error.to_string()))?;
            Ok(Record { format: FORMAT, ..record })
        }
        (FORMAT, false) => Err(damaged(format!("format {FORMAT} begins with a checksum"))),
        (FORMAT_UNCHECKED, true) => Err(damaged(format!("format {FORMAT_UNCHECKED} has no checksum"))),
        (format, _) => Err(IdentityError::Format(format)),
    }
}

fn hex_of(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(text: &str) -> Option<[u8; 64]> {
    let mut bytes = [0; 64];
    if text.len() != 128 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::environment::production::files::OsFiles;

    /// As it was written before there was a checksum.
    const FORMAT_1: &str = "\
format = 1
node = 81985529216486895
incarnation = 3
cluster = \"000000000000000000000000000000c1\"
reset_key = \"0707070707070707070707070707070707070707070707070707070707070707\
0707070707070707070707070707070707070707070707070707070707070707\"

[speed]
half_exponent = 2
";
    /// The same node at its next start. Every build reads it.
    const FORMAT_2: &str = "\
crc32c = \"e8b5075e\"
format = 2
node = 81985529216486895
incarnation = 4
cluster = \"000000000000000000000000000000c1\"
reset_key = \"0707070707070707070707070707070707070707070707070707070707070707\
0707070707070707070707070707070707070707070707070707070707070707\"

[speed]
half_exponent = 2
";

    struct Sevens;

    impl Entropy for Sevens {
        fn fill(&self, bytes: &mut [u8]) {
            bytes.fill(7);
        }
    }

    fn open(folder: &Path) -> Result<Identity, IdentityError> {
        Identity::open(Arc::new(OsFiles::open(folder).unwrap()), &Sevens)
    }

    fn file(folder: &Path) -> String {
        std::fs::read_to_string(folder.join(FILE)).unwrap()
    }

    #[test]
    fn the_files_of_both_formats_are_frozen() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join(FILE), FORMAT_1).unwrap();
        let identity = open(folder.path()).unwrap();
        assert_eq!(file(folder.path()), FORMAT_2);
        let hello = Hello { cluster: Some(ClusterId(0xc1)), node: Some(NodeId(81_985_529_216_486_895)) };
        assert_eq!((identity.hello(), identity.incarnation()), (hello.clone(), Incarnation(4)));
        assert_eq!((identity.reset_key(), identity.speed(9.0).unwrap()), ([7; 64], Speed::from_ratio(2.0)));
        drop(identity);
        let identity = open(folder.path()).unwrap();
        assert_eq!((identity.hello(), identity.incarnation()), (hello, Incarnation(5)));
    }

    #[test]
    fn a_flipped_bit_is_named_and_the_file_left_as_it_is() {
        let folder = tempfile::tempdir().unwrap();
        for at in 0..FORMAT_2.len() * 8 {
            let mut bytes = FORMAT_2.as_bytes().to_vec();
            bytes[at / 8] ^= 1 << (at % 8);
            std::fs::write(folder.path().join(FILE), &bytes).unwrap();
            let error = open(folder.path()).map(|identity| identity.incarnation()).unwrap_err();
            let named = matches!(error, IdentityError::Checksum | IdentityError::Damaged(_));
            assert!(named, "bit {at}: {error}");
            assert_eq!(std::fs::read(folder.path().join(FILE)).unwrap(), bytes);
        }
        let later = FORMAT_2[FORMAT_2.find("format").unwrap()..].replace("format = 2", "format = 3\nnew = 1");
        std::fs::write(folder.path().join(FILE), checksum_of(&later) + &later).unwrap();
        assert!(matches!(open(folder.path()), Err(IdentityError::Format(3))));
    }

    #[test]
    fn a_restored_folder_outlives_the_starts_that_it_forgot() {
        let folder = tempfile::tempdir().unwrap();
        let identity = open(folder.path()).unwrap();
        assert_eq!(identity.incarnation(), Incarnation(1));
        assert_eq!(identity.outlive(Incarnation(6)).unwrap(), Incarnation(7));
        // As another attempt does, and a report that came late.
        assert_eq!(identity.outlive(Incarnation(6)).unwrap(), Incarnation(7));
        let last = Incarnation(i64::MAX as u64);
        assert!(matches!(identity.outlive(last), Err(IdentityError::LastStart(known)) if known == last));
        assert_eq!(identity.incarnation(), Incarnation(7));
        drop(identity);
        assert_eq!(open(folder.path()).unwrap().incarnation(), Incarnation(8));
    }
}
