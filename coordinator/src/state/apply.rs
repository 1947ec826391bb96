//! What each command does to the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roost_protocol::bundle::FileList;
use roost_protocol::error::reason;
use roost_protocol::limits::{MODELS_MAX, NODES_MAX, REASON_BYTES_MAX};
use roost_protocol::manifest::Manifest;
use roost_protocol::messages::control::{Outcome, RolloutEventKind};
use roost_protocol::traffic::Traffic;
use roost_protocol::view::{Coordinator, Node, NodeProfile, NodeState};
use roost_protocol::{
    CommandError, Digest, Label, ModelName, ModelVersion, NodeId, NodeName, Revision, Version,
};

use super::{Applied, BundleRecord, Command, LEVEL, ModelRecord, Proposal, State, VersionRecord};

/// Bundles that are reserved and not committed at one time. Each may hold gigabytes on every coordinator.
const RESERVATIONS_MAX: usize = 64;

impl State {
    /// Applies the entry at `index` of the log.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Applied {
        self.index = index;
        self.now_ms = self.now_ms.max(proposal.at_ms);
        if let Some(request) = &proposal.request {
            match self.outcomes.of(request, proposal.sent) {
                Ok(Some(applied)) => return applied.clone(),
                Ok(None) => {}
                Err(error) => return Applied { epoch: self.epoch(), result: Err(error) },
            }
        }
        let result = self.carry_out(&proposal.command, &proposal.by);
        if result.is_ok() {
            self.view_index = index;
        }
        let applied = Applied { epoch: self.epoch(), result };
        if let Some(request) = proposal.request {
            self.outcomes.record(request, applied.clone());
        }
        applied
    }

    /// Takes the membership that Raft committed at `index`.
    pub fn apply_membership(&mut self, index: u64, coordinators: BTreeMap<NodeId, Coordinator>) {
        self.index = index;
        self.view_index = index;
        self.coordinators = coordinators;
    }

    /// Notes an entry that does nothing, such as a new leader's first.
    pub fn apply_blank(&mut self, index: u64) {
        self.index = index;
    }

    fn carry_out(&mut self, command: &Command, by: &str) -> Result<Outcome, CommandError> {
        if self.cluster.is_none() && !matches!(command, Command::Initialise { .. }) {
            return Err(CommandError::NotInitialised);
        }
        match command {
            Command::Initialise { cluster } => {
                if let Some(cluster) = self.cluster {
                    return Err(CommandError::AlreadyInitialised { cluster });
                }
                (self.cluster, self.generation, self.level) = (Some(*cluster), 1, LEVEL);
                Ok(Outcome::Applied)
            }
            Command::Reserve { files } => self.reserve(files),
            Command::CommitVersion { model, digest, manifest, note, holders } => {
                self.commit_version(model, digest, manifest, note, holders, by)
            }
            Command::StartRollout { target, weight } => {
                let now_ms = self.now_ms;
                self.model_mut(&target.model)?.start_rollout(target, *weight, now_ms, by)
            }
            Command::Expose { model, revision } => {
                let now_ms = self.now_ms;
                self.model_mut(model)?.expose(model, *revision, now_ms, by)
            }
            Command::Pause { model, revision, reason } => {
                let now_ms = self.now_ms;
                self.model_mut(model)?.pause(model, *revision, reason, now_ms, by)
            }
            Command::Resume { model, revision } => {
                let now_ms = self.now_ms;
                self.model_mut(model)?.resume(model, *revision, now_ms, by)
            }
            Command::Promote { model, revision } => {
                let now_ms = self.now_ms;
                self.model_mut(model)?.promote(model, *revision, now_ms, by)
            }
            Command::Abort { model, reason } => {
                let now_ms = self.now_ms;
                self.model_mut(model)?.abort(model, reason, now_ms, by)
            }
            Command::Undo { model } => {
                let now_ms = self.now_ms;
                self.model_mut(model)?.undo(model, now_ms, by)
            }
            Command::SetLabel { version, label } => self.set_label(version, label),
            Command::RemoveLabel { model, label } => self.remove_label(model, label),
            Command::Join { node, name, address, profile } => self.join(*node, name, address, profile),
            Command::Drain { node, draining } => {
                let to = if *draining { NodeState::Draining } else { NodeState::Active };
                self.set_node_state(*node, to)
            }
            Command::NodeOut { node } => self.set_node_state(*node, NodeState::Out),
            Command::Exclude { node, version, reason: _ } => self.exclude(*node, version),
        }
    }

    fn reserve(&mut self, files: &FileList) -> Result<Outcome, CommandError> {
        let digest = files.digest();
        let known = match self.bundles.get_mut(&digest) {
            Some(bundle) => {
                let known = bundle.reserved_at_ms.is_none();
                bundle.reserved_at_ms = bundle.reserved_at_ms.map(|_| self.now_ms);
                known
            }
            None => {
                self.forget_oldest_reservation();
                let record = BundleRecord { files: files.clone(), reserved_at_ms: Some(self.now_ms) };
                self.bundles.insert(digest, record);
                false
            }
        };
        Ok(Outcome::Reserved { known })
    }

    /// Makes room for one more reservation. Whoever held the oldest must reserve again, which a push does by itself.
    fn forget_oldest_reservation(&mut self) {
        let reserved = self.bundles.iter().filter_map(|(digest, b)| b.reserved_at_ms.map(|at| (at, *digest)));
        let reserved: BTreeSet<(u64, Digest)> = reserved.collect();
        if reserved.len() >= RESERVATIONS_MAX
            && let Some((_, oldest)) = reserved.first()
        {
            self.bundles.remove(oldest);
        }
    }

    fn commit_version(
        &mut self,
        model: &ModelName,
        digest: &Digest,
        manifest: &Manifest,
        note: &str,
        holders: &BTreeSet<NodeId>,
        by: &str,
    ) -> Result<Outcome, CommandError> {
        manifest.check().map_err(|error| CommandError::BadManifest { reason: reason(error) })?;
        let note_bytes = note.len() as u64;
        limit("bytes of a note", REASON_BYTES_MAX as u64, note_bytes)?;
        let bundle = self.bundles.get(digest);
        let bytes = bundle.map(|bundle| bundle.files.bytes());
        let bytes = bytes.ok_or_else(|| CommandError::NotReserved { digest: digest.to_string() })?;
        self.check_holders(holders)?;
        let known = self.models.contains_key(model);
        if !known {
            limit("models", MODELS_MAX as u64, self.models.len() as u64 + 1)?;
        }
        let now_ms = self.now_ms;
        let record = self.models.entry(model.clone()).or_insert_with(|| ModelRecord {
            versions: BTreeMap::new(),
            labels: BTreeMap::new(),
            traffic: Traffic { revision: Revision(1), stable: Version(1), canary: None, previous: None },
            rollout: None,
            history: Vec::new(),
        });
        let version = record.next_version()?;
        let (manifest, excluded) = (Arc::new(manifest.clone()), BTreeSet::new());
        let (pushed_by, note) = (by.to_owned(), note.to_owned());
        let made = VersionRecord {
            digest: *digest,
            bytes,
            manifest,
            excluded,
            pushed_by,
            pushed_at_ms: now_ms,
            note,
        };
        record.versions.insert(version, made);
        if !known {
            record.note(RolloutEventKind::First(version), now_ms, by);
        }
        if let Some(bundle) = self.bundles.get_mut(digest) {
            bundle.reserved_at_ms = None;
        }
        Ok(Outcome::Pushed { version, stable: !known })
    }

    fn check_holders(&self, holders: &BTreeSet<NodeId>) -> Result<(), CommandError> {
        let voters = self.coordinators.iter().filter(|(_, coordinator)| coordinator.voter).map(|(id, _)| id);
        let voters: BTreeSet<NodeId> = voters.copied().collect();
        let quorum = voters.len() as u32 / 2 + 1;
        let holding = holders.intersection(&voters).count() as u32;
        if holding < quorum {
            return Err(CommandError::TooFewHolders {
                holders: holding,
                voters: voters.len() as u32,
                quorum,
            });
        }
        Ok(())
    }

    fn set_label(&mut self, version: &ModelVersion, label: &Label) -> Result<Outcome, CommandError> {
        let model = self.model_mut(&version.model)?;
        if !model.versions.contains_key(&version.version) {
            return Err(CommandError::UnknownVersion { version: version.clone() });
        }
        model.labels.insert(label.clone(), version.version);
        Ok(Outcome::Applied)
    }

    fn remove_label(&mut self, model: &ModelName, label: &Label) -> Result<Outcome, CommandError> {
        let unknown = || CommandError::UnknownLabel { model: model.clone(), label: label.clone() };
        self.model_mut(model)?.labels.remove(label).ok_or_else(unknown)?;
        Ok(Outcome::Applied)
    }

    fn join(
        &mut self,
        node: NodeId,
        name: &NodeName,
        address: &str,
        profile: &NodeProfile,
    ) -> Result<Outcome, CommandError> {
        let holder = self.nodes.iter().find(|(id, known)| known.name == *name && **id != node);
        if let Some((id, known)) = holder {
            // A machine that was replaced takes its predecessor's name, and with it its place on the ring, but only
            // once the predecessor is out: two nodes of one name would stand at the same points.
            if known.state != NodeState::Out {
                return Err(CommandError::NameTaken { name: name.clone() });
            }
            let id = *id;
            self.nodes.remove(&id);
        }
        limit("nodes", NODES_MAX as u64, self.nodes.len() as u64 + 1)?;
        let (name, address, profile) = (name.clone(), address.to_owned(), profile.clone());
        self.nodes.insert(node, Node { name, address, state: NodeState::Active, profile });
        Ok(Outcome::Applied)
    }

    fn set_node_state(&mut self, node: NodeId, to: NodeState) -> Result<Outcome, CommandError> {
        let unknown = CommandError::UnknownNode { name: node.to_string() };
        self.nodes.get_mut(&node).ok_or(unknown)?.state = to;
        Ok(Outcome::Applied)
    }

    fn exclude(&mut self, node: NodeId, version: &ModelVersion) -> Result<Outcome, CommandError> {
        let unknown = || CommandError::UnknownVersion { version: version.clone() };
        let model = self.model_mut(&version.model)?;
        model.versions.get_mut(&version.version).ok_or_else(unknown)?.excluded.insert(node);
        Ok(Outcome::Applied)
    }
}

fn limit(what: &str, max: u64, actual: u64) -> Result<(), CommandError> {
    if actual <= max {
        Ok(())
    } else {
        Err(CommandError::LimitExceeded { what: what.to_owned(), max, actual })
    }
}
