//! What the parts of one worker share.

use std::sync::atomic::AtomicBool;

use roost_protocol::error::reason;
use roost_protocol::quic::Links;
use roost_protocol::view::Published;
use roost_protocol::{InferError, NodeId, Version};
use tokio::sync::watch;

use super::admission::Gate;
use super::cache::Cache;
use super::lifecycle::Rules;
use super::routes::{Board, Routes};
use crate::environment::Environment;

/// What the parts of one worker share.
pub struct Shared {
    /// The node.
    pub node: NodeId,
    /// What holds for all lives of versions.
    pub rules: Rules,
    /// What the node takes from outside.
    pub environment: Environment,
    /// The bundles on the disk.
    pub cache: Cache,
    /// To those who hold bundles.
    pub links: Links,
    /// The view and the soft state.
    pub published: watch::Receiver<Published>,
    /// Where requests find versions.
    pub routes: Routes,
    /// What is reported of versions.
    pub board: Board,
    /// How much is taken on at once.
    pub gate: Gate,
    /// Whether no more requests are taken.
    pub stopping: AtomicBool,
}

impl Shared {
    /// That this node does not serve a version, and how new the view is by which it does not.
    pub fn not_here(&self, model: &str, version: Version) -> InferError {
        let epoch = self.published.borrow().view.as_ref().map(|view| view.epoch).unwrap_or_default();
        InferError::NotHere {
            // Whatever the caller wrote there; a model's name is never as long as to be cut.
            model: reason(model),
            version: version.0,
            generation: epoch.generation,
            index: epoch.index,
        }
    }
}
