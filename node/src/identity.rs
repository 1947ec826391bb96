//! Who a node is, across its starts: kept in one small file of its data folder.
//!
//! An empty folder gets a new [`NodeId`]: an emptied node is another node. The file is replaced whole and durably before
//! what it says is used.

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
const FORMAT: u32 = 1;

/// Why an identity cannot be read or kept.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The disk failed.
    #[error("the node's identity cannot be kept: {0}")]
    Disk(#[from] io::Error),
    /// The file is not what was written.
    #[error("{FILE} of the data folder cannot be read: {0}")]
    Damaged(String),
    /// Written by a later build.
    #[error("{FILE} has format {0}, this build reads {FORMAT}; start the build that wrote it")]
    Format(u32),
}

/// What the file holds.
#[derive(Debug, Clone, Serialize, Deserialize)]
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
        let text = toml::to_string(record).map_err(|error| IdentityError::Damaged(error.to_string()))?;
        Ok(self.files.replace(FILE, text.as_bytes())?)
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn read(bytes: &[u8]) -> Result<Record, IdentityError> {
    let damaged = |error: String| IdentityError::Damaged(error);
    let text = std::str::from_utf8(bytes).map_err(|error| damaged(error.to_string()))?;
    let record: Record = toml::from_str(text).map_err(|error| damaged(error.to_string()))?;
    if record.format == FORMAT { Ok(record) } else { Err(IdentityError::Format(record.format)) }
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
