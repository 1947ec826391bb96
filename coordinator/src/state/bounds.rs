//! The bounds of what commands may bring into the state, so that a snapshot, a view and a log entry always fit into the
//! messages that carry them.
//!
//! Sizes are those of the encoding, which golden files pin: all replicas measure alike.

use roost_protocol::CommandError;
use roost_protocol::limits::{MANIFEST_BYTES_MAX, NAME_BYTES_MAX, REASON_BYTES_MAX, VIEW_BYTES_MAX};
use roost_protocol::view::NodeProfile;
use serde::Serialize;

/// Bundles that are reserved and not committed at one time. Each may hold gigabytes on every coordinator.
pub(super) const RESERVATIONS_MAX: usize = 64;
/// Coordinators of the past that are remembered, lest one comes back without what it knew. Hardly a group had so many.
pub(super) const FORMER_MAX: usize = 1_024;
/// Labels of one model. Each keeps a version loaded on workers.
pub(super) const LABELS_MAX: usize = 64;
/// The manifests, files and notes of all versions. With the outcomes and histories beside them a snapshot stays under
/// [`SNAPSHOT_BYTES_MAX`].
pub(super) const VERSIONS_BYTES_MAX: u64 = 128 << 20;
/// A snapshot, which a follower takes into memory whole.
pub(crate) const SNAPSHOT_BYTES_MAX: u64 = 1 << 30;
/// What grows in a view without being asked for, such as exclusions, stays in the rest of its frame.
const VIEW_BYTES_PLANNED_MAX: u64 = VIEW_BYTES_MAX as u64 / 8 * 7;
/// A host name and a port.
pub(crate) const ADDRESS_BYTES_MAX: u64 = 262;
/// Labels of one node.
const NODE_LABELS_MAX: u64 = 64;

/// Refuses more than `max`.
pub(super) fn limit(what: &str, max: u64, actual: u64) -> Result<(), CommandError> {
    if actual <= max {
        Ok(())
    } else {
        Err(CommandError::LimitExceeded { what: what.to_owned(), max, actual })
    }
}

/// The bytes of a value's encoding.
pub(super) fn encoded_bytes(value: &impl Serialize) -> u64 {
    // What cannot be measured cannot be encoded, and has not come in a message.
    postcard::experimental::serialized_size(value).map_or(u64::MAX, |bytes| bytes as u64)
}

/// Checks what a worker says of itself.
pub(super) fn check_node(address: &str, profile: &NodeProfile) -> Result<(), CommandError> {
    let text = |what: &str, text: &str| limit(what, NAME_BYTES_MAX as u64, text.len() as u64);
    limit("bytes of an address", ADDRESS_BYTES_MAX, address.len() as u64)?;
    text("bytes of a zone", &profile.zone)?;
    text("bytes of an instruction set's name", &profile.isa)?;
    limit("labels of a node", NODE_LABELS_MAX, profile.labels.len() as u64)?;
    profile.labels.iter().try_for_each(|(key, value)| {
        text("bytes of a node label", key)?;
        text("bytes of a node label's value", value)
    })
}

/// Checks what comes with a version.
pub(super) fn check_version(manifest_bytes: u64, note: &str) -> Result<(), CommandError> {
    limit("bytes of a manifest", MANIFEST_BYTES_MAX as u64, manifest_bytes)?;
    limit("bytes of a note", REASON_BYTES_MAX as u64, note.len() as u64)
}

/// Checks that a view of `bytes` has room for so many more.
pub(super) fn check_view(bytes: u64, more: u64) -> Result<(), CommandError> {
    limit("bytes of the view", VIEW_BYTES_PLANNED_MAX, bytes.saturating_add(more))
}
