//! Which version answers a request, and which nodes may, in which order. Pure: the published state and the
//! loads are given.
//!
//! [`Routes`] are made once per published state. A version's replicas are worked out when the first request
//! asks for them and kept: of a thousand models a client uses few. What a request was routed by is in
//! [`Picked`], so that all its attempts agree.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use roost_protocol::manifest::Manifest;
use roost_protocol::messages::infer::Choice;
use roost_protocol::placement::{candidates, hopefuls};
use roost_protocol::ring::{Ring, load_bound};
use roost_protocol::traffic::KeyHash;
use roost_protocol::view::{Model, Published, SoftState, View};
use roost_protocol::{Epoch, InferError, ModelName, NodeId, Revision, Target, Version};

/// Replicas of one version that a request weighs: it is sent to a few at most, and a version on a thousand
/// nodes must not cost a thousand look-ups.
const CONSIDERED_MAX: usize = 16;

/// Where requests go, by one published state.
#[derive(Debug)]
pub struct Routes {
    view: Arc<View>,
    soft: Arc<SoftState>,
    ring: Arc<Ring>,
    replicas: BTreeMap<ModelName, BTreeMap<Version, OnceLock<Arc<Replicas>>>>,
}

/// The newest traffic revision of a model that was heard of. A restore from backup raises the generation, and
/// may take the revision back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Seen {
    /// The generation of the epoch in which it was.
    pub generation: u32,
    /// The revision.
    pub revision: Revision,
}

/// The nodes that may be sent requests for one version now.
#[derive(Debug, Default)]
pub struct Replicas {
    /// Whether nobody is known to serve the version, and these are its owners: soft state that is old or missing
    /// must not stop inference, and an owner that does not serve it says so at once.
    hoped: bool,
    /// Each with its part of their speeds.
    nodes: BTreeMap<NodeId, f64>,
    ring: Ring,
}

/// What a request was routed by.
#[derive(Debug, Clone)]
pub struct Picked {
    /// The model.
    pub model: ModelName,
    /// The version.
    pub version: Version,
    /// The traffic revision that it was picked by.
    pub revision: Revision,
    /// How it was picked.
    pub choice: Choice,
    /// The epoch of the view.
    pub epoch: Epoch,
    /// What the version's bundle says about it.
    pub manifest: Arc<Manifest>,
    /// Its replicas.
    pub replicas: Arc<Replicas>,
}

impl Routes {
    /// The routes of a published state; `None` while there is no view. Those of an earlier state spare
    /// building the ring anew when only the soft state changed.
    pub fn of(published: &Published, earlier: Option<&Self>) -> Option<Self> {
        let view = published.view.clone()?;
        let same_view = earlier.filter(|earlier| earlier.view.epoch == view.epoch);
        let ring = same_view.map_or_else(|| Arc::new(view.ring()), |earlier| earlier.ring.clone());
        let versions =
            |model: &Model| model.versions.keys().map(|version| (*version, OnceLock::new())).collect();
        let replicas = view.models.iter().map(|(name, model)| (name.clone(), versions(model))).collect();
        Some(Self { view, soft: published.soft.clone(), ring, replicas })
    }

    /// The view.
    pub fn view(&self) -> &View {
        &self.view
    }

    /// The version for a request, and its replicas. `seen` is the newest revision of the model's traffic that
    /// the caller has heard of.
    ///
    /// # Errors
    /// [`InferError::UnknownModel`], [`InferError::UnknownVersion`] or [`InferError::UnknownLabel`] when the
    /// view has no such thing; [`InferError::StaleView`] when the split would be asked at an older revision
    /// than `seen`; [`InferError::Unavailable`] when no node could be asked, nor one to fall back to.
    pub fn pick(&self, target: &Target, key: KeyHash, seen: Seen) -> Result<Picked, InferError> {
        let name = target.model();
        let model = self.view.models.get(name);
        let model = model.ok_or_else(|| InferError::UnknownModel { model: name.to_string() })?;
        let (version, choice) = match target {
            Target::Split(_) => {
                let used = Seen { generation: self.view.epoch.generation, revision: model.traffic.revision };
                if used < seen && !roost_protocol::KnownBug::OlderRevision.is_in() {
                    let (used, newest) = (used.revision.0, seen.revision.0);
                    return Err(InferError::StaleView {
                        model: name.to_string(),
                        used,
                        newest,
                        generation: seen.generation,
                    });
                }
                (model.traffic.pick(name, key), Choice::Split)
            }
            Target::Pinned(pinned) => (pinned.version, Choice::Pinned),
            Target::Labelled(_, label) => {
                let unknown =
                    || InferError::UnknownLabel { model: name.to_string(), label: label.to_string() };
                (*model.labels.get(label).ok_or_else(unknown)?, Choice::Pinned)
            }
        };
        let picked = self.picked(name, model, version, choice)?;
        if !picked.replicas.is_empty() && !picked.replicas.hoped {
            return Ok(picked);
        }
        // Availability outranks stickiness (design §1): only for a canary, since stable has nothing to fall
        // back to.
        if choice == Choice::Split && version != model.traffic.stable {
            let fallback = self.picked(name, model, model.traffic.stable, Choice::Fallback)?;
            if !fallback.replicas.is_empty() && !fallback.replicas.hoped {
                return Ok(fallback);
            }
        }
        if !picked.replicas.is_empty() {
            return Ok(picked);
        }
        Err(InferError::Unavailable { model: name.to_string(), version: version.0 })
    }

    fn picked(
        &self,
        name: &ModelName,
        model: &Model,
        version: Version,
        choice: Choice,
    ) -> Result<Picked, InferError> {
        let cell = self.replicas.get(name).and_then(|versions| versions.get(&version));
        let (Some(hosted), Some(cell)) = (model.versions.get(&version), cell) else {
            let hosted = model.versions.keys().map(|version| version.0).collect();
            return Err(InferError::UnknownVersion { model: name.to_string(), version: version.0, hosted });
        };
        let replicas = cell.get_or_init(|| Arc::new(self.replicas_of(name, version))).clone();
        let (revision, epoch) = (model.traffic.revision, self.view.epoch);
        let manifest = hosted.manifest.clone();
        Ok(Picked { model: name.clone(), version, revision, choice, epoch, manifest, replicas })
    }

    fn replicas_of(&self, model: &ModelName, version: Version) -> Replicas {
        let mut nodes = candidates(&self.view, &self.ring, &self.soft, model, version);
        let hoped = nodes.is_empty();
        if hoped {
            nodes = hopefuls(&self.view, &self.ring, &self.soft, model, version);
        }
        let known = nodes.iter().filter_map(|id| Some((*id, self.view.nodes.get(id)?)));
        let known: Vec<_> = known.map(|(id, node)| (id, &node.name, node.profile.speed)).collect();
        let speeds: f64 = known.iter().map(|(_, _, speed)| speed.ratio()).sum();
        Replicas {
            hoped,
            nodes: known.iter().map(|(id, _, speed)| (*id, speed.ratio() / speeds)).collect(),
            ring: Ring::new(known),
        }
    }
}

impl Replicas {
    /// Whether nobody is known to serve the version, and these are merely its owners.
    pub fn are_hoped(&self) -> bool {
        self.hoped
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// The nodes in the order in which a request tries them, at most [`CONSIDERED_MAX`].
    ///
    /// With a sticky key: as the ring meets them from the key, those over their bound behind the others
    /// (consistent hashing with bounded loads). Without: the less loaded of two random ones first. `key` is
    /// random then, so the first two of its walk are two random nodes, drawn by their speeds. Suspects come
    /// last either way.
    pub fn order(
        &self,
        key: KeyHash,
        sticky: bool,
        load: impl Fn(NodeId) -> u64,
        is_suspect: impl Fn(NodeId) -> bool,
    ) -> Vec<NodeId> {
        let mut order: Vec<NodeId> = self.ring.walk(key.0).take(CONSIDERED_MAX).collect();
        if order.len() < 2 {
            return order;
        }
        let share = |node: &NodeId| self.nodes.get(node).copied().unwrap_or_default();
        if sticky {
            let (total, shares) = order
                .iter()
                .fold((0, 0.0), |(loads, shares), node| (loads + load(*node), shares + share(node)));
            let is_full = |node: &NodeId| load(*node) >= load_bound(total, share(node) / shares);
            order.sort_by_key(|node| (is_suspect(*node), is_full(node)));
        } else {
            order.sort_by_key(|node| is_suspect(*node));
            let relative = |node: &NodeId| load(*node) as f64 / share(node);
            let both_well = !is_suspect(order[1]);
            if both_well && relative(&order[1]) < relative(&order[0]) {
                order.swap(0, 1);
            }
        }
        order
    }
}

#[cfg(test)]
mod tests;
