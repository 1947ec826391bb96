//! What each command does to the state.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roost_protocol::bundle::FileList;
use roost_protocol::error;
use roost_protocol::limits::{MODELS_MAX, NODES_MAX};
use roost_protocol::manifest::Manifest;
use roost_protocol::messages::control::{HeldFrom, Outcome, RolloutEventKind};
use roost_protocol::traffic::Traffic;
use roost_protocol::view::{Coordinator, Hold, Node, NodeProfile, NodeState};
use roost_protocol::{
    CommandError, Digest, Label, ModelName, ModelVersion, NodeId, NodeName, Revision, Version,
};

use super::bounds::{
    FORMER_MAX, LABELS_MAX, RESERVATIONS_MAX, VERSIONS_BYTES_MAX, check_node, check_version, check_view,
    encoded_bytes, limit,
};
use super::{
    Applied, BundleRecord, Command, LEVEL_FIRST, ModelRecord, NodeRecord, Proposal, State, VersionRecord,
};

impl State {
    /// Applies the entry at `index` of the log.
    pub fn apply(&mut self, index: u64, proposal: &Proposal) -> Applied {
        self.index = index;
        self.now_ms = self.now_ms.max(proposal.at_ms);
        if let Some(request) = &proposal.request {
            match self.outcomes.of(request, proposal.sent, self.epoch()) {
                Ok(Some(applied)) => return applied.clone(),
                Ok(None) => {}
                Err(error) => return Applied { epoch: self.epoch(), result: Err(error) },
            }
        }
        let result = self.carry_out(&proposal.command, &proposal.by);
        if result.is_ok() {
            self.view_index = index;
            let model = proposal.command.model().and_then(|model| self.models.get_mut(model));
            model.into_iter().for_each(|model| model.note_hosted(index));
        }
        let applied = Applied { epoch: self.epoch(), result };
        if let Some(request) = proposal.request
            && !applied.result.as_ref().is_err_and(is_about_the_plan)
        {
            self.outcomes.record(request, applied.clone());
            // Requests name the epoch of the view that their sender has. It must not fall behind what is forgotten, as it
            // would while everything is refused: each new request would be too old for ever.
            if self.outcomes.evicted().is_some_and(|evicted| evicted > self.view_epoch()) {
                self.view_index = index;
            }
        }
        applied
    }

    /// Takes the membership that Raft committed at `index`: who is a member, and the sets of voters of which each must agree.
    pub fn apply_membership(
        &mut self,
        index: u64,
        coordinators: BTreeMap<NodeId, Coordinator>,
        voters: Vec<BTreeSet<NodeId>>,
    ) {
        self.index = index;
        self.view_index = index;
        let gone = self.coordinators.keys().filter(|id| !coordinators.contains_key(id)).copied();
        self.former.extend(gone);
        self.former.retain(|id| !coordinators.contains_key(id));
        self.former.drain(..self.former.len().saturating_sub(FORMER_MAX));
        self.coordinators = coordinators;
        self.voters = voters;
    }

    /// Notes an entry that does nothing, such as a new leader's first.
    pub fn apply_blank(&mut self, index: u64) {
        self.index = index;
    }

    fn carry_out(&mut self, command: &Command, by: &str) -> Result<Outcome, CommandError> {
        if self.cluster.is_none() && !matches!(command, Command::Initialise { .. }) {
            return Err(CommandError::NotInitialised);
        }
        let (needed, level) = (command.needs(), self.level);
        if needed > level {
            return Err(CommandError::LevelTooLow { needed, level });
        }
        match command {
            Command::Initialise { cluster } => {
                if let Some(cluster) = self.cluster {
                    return Err(CommandError::AlreadyInitialised { cluster });
                }
                (self.cluster, self.generation, self.level) = (Some(*cluster), 1, LEVEL_FIRST);
                Ok(Outcome::Applied)
            }
            Command::Reserve { files } => self.reserve(files),
            Command::CommitVersion { model, digest, manifest, note, holders, new_version } => {
                match self.version_of(model, digest).filter(|_| !new_version) {
                    Some(version) => {
                        self.end_reservation(digest);
                        Ok(Outcome::Pushed { version, stable: false, existing: true })
                    }
                    None => self.commit_version(model, digest, manifest, note, holders, by),
                }
            }
            Command::StartRollout { target, weight } => {
                let now_ms = self.now_ms;
                self.check_view_with(target)?;
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
            Command::Undo { model, revision } => {
                let now_ms = self.now_ms;
                self.model_mut(model)?.undo(model, *revision, now_ms, by)
            }
            Command::SetLabel { version, label } => self.set_label(version, label),
            Command::RemoveLabel { model, label } => self.remove_label(model, label),
            Command::Join { node, name, address, profile } => self.join(*node, name, address, profile),
            Command::Drain { node, draining } => {
                let to = if *draining { NodeState::Draining } else { NodeState::Active };
                self.set_node_state(*node, to)
            }
            Command::Hold { node, from } => self.hold(*node, *from),
            Command::NodeOut { node, joined } => self.node_out(*node, *joined),
            Command::Exclude { node, joined, version, reason } => {
                self.exclude(*node, *joined, version, reason, by)
            }
            Command::Collect { digest, reserved_at_ms } => self.collect(digest, *reserved_at_ms),
            Command::Refuse { error } => Err(CommandError::clone(error)),
            Command::Retain { model, keep } => self.retain(model, *keep),
            Command::RaiseLevel { level } => {
                self.level = self.level.max(*level);
                Ok(Outcome::Applied)
            }
        }
    }

    fn reserve(&mut self, files: &FileList) -> Result<Outcome, CommandError> {
        let digest = files.digest();
        let known = self.needed_bundles().contains(&digest);
        let reserved_at_ms = Some(self.now_ms);
        match self.bundles.get_mut(&digest) {
            Some(bundle) if bundle.reserved_at_ms.is_some() => bundle.reserved_at_ms = reserved_at_ms,
            _ => {
                self.forget_oldest_reservation();
                self.bundles.insert(digest, BundleRecord { files: files.clone(), reserved_at_ms });
            }
        }
        Ok(Outcome::Reserved { known })
    }

    /// Makes room for one more reservation. Whoever held the oldest must reserve again, which a push does by itself.
    fn forget_oldest_reservation(&mut self) {
        let reserved = self.bundles.iter().filter_map(|(digest, b)| b.reserved_at_ms.map(|at| (at, *digest)));
        let reserved: BTreeSet<(u64, Digest)> = reserved.collect();
        if reserved.len() >= RESERVATIONS_MAX
            && let Some((_, oldest)) = reserved.first()
        {
            self.end_reservation(oldest);
        }
    }

    /// Keeps a bundle no longer than versions need it.
    fn end_reservation(&mut self, digest: &Digest) {
        if !self.needed_bundles().contains(digest) {
            self.bundles.remove(digest);
        } else if let Some(bundle) = self.bundles.get_mut(digest) {
            bundle.reserved_at_ms = None;
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
        manifest.check().map_err(|error| CommandError::BadManifest { reason: error::reason(error) })?;
        let manifest_bytes = encoded_bytes(manifest);
        check_version(manifest_bytes, note)?;
        let bundle = self.bundles.get(digest);
        let bundle = bundle.ok_or_else(|| CommandError::NotReserved { digest: digest.to_string() })?;
        let bytes = bundle.files.bytes();
        let kept_bytes = manifest_bytes + note.len() as u64 + encoded_bytes(&bundle.files);
        let versions = self.models.values().flat_map(|model| model.versions.values());
        let kept_before: u64 = versions.map(|version| version.kept_bytes).sum();
        limit(
            "bytes of all versions' manifests and file lists",
            VERSIONS_BYTES_MAX,
            kept_before + kept_bytes,
        )?;
        let known = self.models.contains_key(model);
        if !known {
            limit("models", MODELS_MAX as u64, self.models.len() as u64 + 1)?;
            check_view(self.view_bytes(), manifest_bytes)?;
        }
        // Last: what the others refuse, no plan can mend.
        self.check_holders(holders)?;
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
            hosted_since: None,
            pushed_by,
            pushed_at_ms: now_ms,
            note,
            kept_bytes,
        };
        record.versions.insert(version, made);
        if !known {
            record.note(RolloutEventKind::First(version), now_ms, by);
        }
        self.end_reservation(digest);
        Ok(Outcome::Pushed { version, stable: !known, existing: false })
    }

    /// The newest version of a model that is made of a bundle.
    fn version_of(&self, model: &ModelName, digest: &Digest) -> Option<Version> {
        let versions = self.models.get(model)?.versions.iter();
        versions.rev().find(|(_, version)| version.digest == *digest).map(|(number, _)| *number)
    }

    fn retain(&mut self, model: &ModelName, keep: u32) -> Result<Outcome, CommandError> {
        let record = self.model_mut(model)?;
        let hosted = record.hosted();
        // The newest is always kept: its number tells the next one, and no number is given twice.
        let old = record.versions.len().saturating_sub(keep.max(1) as usize);
        let versions: Vec<Version> =
            record.versions.keys().take(old).filter(|version| !hosted.contains(version)).copied().collect();
        let forgotten = versions.iter().filter_map(|version| record.versions.remove(version));
        let forgotten: BTreeSet<Digest> = forgotten.map(|version| version.digest).collect();
        for digest in forgotten.difference(&self.needed_bundles()) {
            // A push may count on it.
            if self.bundles.get(digest).is_some_and(|bundle| bundle.reserved_at_ms.is_none()) {
                self.bundles.remove(digest);
            }
        }
        Ok(Outcome::Forgotten { versions })
    }

    fn check_holders(&self, holders: &BTreeSet<NodeId>) -> Result<(), CommandError> {
        assert!(!self.voters.is_empty(), "Raft commits who votes ahead of everything else");
        self.voters.iter().try_for_each(|voters| {
            let (voting, quorum) = (voters.len() as u32, voters.len() as u32 / 2 + 1);
            let holding = holders.intersection(voters).count() as u32;
            if holding < quorum && !roost_protocol::KnownBug::HoldersUnderQuorum.is_in() {
                return Err(CommandError::TooFewHolders { holders: holding, voters: voting, quorum });
            }
            Ok(())
        })
    }

    /// The bytes of the view's encoding, but for a few per entry.
    fn view_bytes(&self) -> u64 {
        let nodes = self.nodes.values().map(|record| encoded_bytes(&record.node));
        let models = self.models.values().map(|model| {
            let hosted = model.hosted().into_iter().filter_map(|version| model.versions.get(&version));
            let hosted = hosted.map(|version| encoded_bytes(&(&version.manifest, &version.excluded)));
            encoded_bytes(&model.labels) + hosted.sum::<u64>()
        });
        nodes.sum::<u64>() + models.sum::<u64>()
    }

    /// Checks that the view has room for a version that is not hosted yet.
    fn check_view_with(&self, version: &ModelVersion) -> Result<(), CommandError> {
        let model = self.model(&version.model)?;
        match model.versions.get(&version.version) {
            Some(record) if !model.hosted().contains(&version.version) => {
                check_view(self.view_bytes(), encoded_bytes(&record.manifest))
            }
            Some(_) | None => Ok(()),
        }
    }

    fn set_label(&mut self, version: &ModelVersion, label: &Label) -> Result<Outcome, CommandError> {
        self.check_view_with(version)?;
        let model = self.model_mut(&version.model)?;
        if !model.versions.contains_key(&version.version) {
            return Err(CommandError::UnknownVersion { version: version.clone() });
        }
        if !model.labels.contains_key(label) {
            limit("labels of a model", LABELS_MAX as u64, model.labels.len() as u64 + 1)?;
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
        check_node(address, profile)?;
        if let Some(known) = self.nodes.get(&node).filter(|known| known.node.name != *name) {
            return Err(CommandError::IdTaken { node, name: known.node.name.clone() });
        }
        let bearer = self.nodes.iter().find(|(id, known)| known.node.name == *name && **id != node);
        let replaced = match bearer {
            // A machine that was replaced takes its predecessor's name, and with it its place on the ring, but only
            // once the predecessor is out: two nodes of one name would stand at the same points.
            Some((_, known)) if known.node.state != NodeState::Out => {
                return Err(CommandError::NameTaken { name: name.clone() });
            }
            Some((id, _)) => Some(*id),
            None => None,
        };
        if !self.nodes.contains_key(&node) && replaced.is_none() {
            limit("nodes", NODES_MAX as u64, self.nodes.len() as u64 + 1)?;
        }
        let (name, address, profile) = (name.clone(), address.to_owned(), profile.clone());
        // Whoever held back the machine of this name means its successor too.
        let known = self.nodes.get(&replaced.unwrap_or(node));
        let hold = known.and_then(|known| known.node.hold);
        let before = known.map_or(0, |known| encoded_bytes(&known.node));
        let joined = Node { name, address, state: NodeState::Active, hold, profile };
        // It takes the place of what is known of it. Who needs no more room than that always has it: what grows without being
        // asked for may have filled the view meanwhile.
        let after = encoded_bytes(&joined);
        if after > before {
            check_view(self.view_bytes() - before, after)?;
        }
        if let Some(replaced) = replaced {
            self.nodes.remove(&replaced);
            self.lift_exclusions(replaced);
        }
        // It joins at each start, so what it could not load before it may load now.
        self.lift_exclusions(node);
        self.nodes.insert(node, NodeRecord { node: joined, joined: self.index });
        Ok(Outcome::Applied)
    }

    fn lift_exclusions(&mut self, node: NodeId) {
        for version in self.models.values_mut().flat_map(|model| model.versions.values_mut()) {
            version.excluded.remove(&node);
        }
    }

    fn set_node_state(&mut self, node: NodeId, to: NodeState) -> Result<Outcome, CommandError> {
        let unknown = CommandError::UnknownNode { name: node.to_string() };
        self.nodes.get_mut(&node).ok_or(unknown)?.node.state = to;
        Ok(Outcome::Applied)
    }

    fn hold(&mut self, node: NodeId, from: Option<HeldFrom>) -> Result<Outcome, CommandError> {
        let unknown = CommandError::UnknownNode { name: node.to_string() };
        let node = &mut self.nodes.get_mut(&node).ok_or(unknown)?.node;
        node.hold = match (from, node.hold) {
            (None, _) => None,
            (Some(HeldFrom::All), _) => Some(Hold::Drained),
            // From when it was cordoned first.
            (Some(HeldFrom::Further), Some(cordoned @ Hold::Cordoned { .. })) => Some(cordoned),
            (Some(HeldFrom::Further), _) => Some(Hold::Cordoned { since: self.index }),
        };
        Ok(Outcome::Applied)
    }

    fn node_out(&mut self, node: NodeId, joined: u64) -> Result<Outcome, CommandError> {
        if self.nodes.get(&node).is_some_and(|record| record.joined != joined) {
            return Ok(Outcome::Applied);
        }
        self.set_node_state(node, NodeState::Out)
    }

    fn exclude(
        &mut self,
        node: NodeId,
        joined: u64,
        version: &ModelVersion,
        reason: &str,
        by: &str,
    ) -> Result<Outcome, CommandError> {
        let unknown = || CommandError::UnknownNode { name: node.to_string() };
        let known = self.nodes.get(&node).ok_or_else(unknown)?;
        if known.joined != joined {
            return Ok(Outcome::Applied);
        }
        let (now_ms, name) = (self.now_ms, known.node.name.clone());
        let unknown = || CommandError::UnknownVersion { version: version.clone() };
        let model = self.model_mut(&version.model)?;
        if model.versions.get_mut(&version.version).ok_or_else(unknown)?.excluded.insert(node) {
            // Once it let go of the version, the worker says no more of it.
            let (version, reason) = (version.version, error::reason(reason));
            model.note_excluded(version, name, reason, now_ms, by);
        }
        Ok(Outcome::Applied)
    }

    fn collect(&mut self, digest: &Digest, reserved_at_ms: u64) -> Result<Outcome, CommandError> {
        let bundle = self.bundles.get(digest);
        if bundle.is_some_and(|bundle| bundle.reserved_at_ms == Some(reserved_at_ms)) {
            self.end_reservation(digest);
        }
        Ok(Outcome::Applied)
    }
}

impl Command {
    /// The model whose versions it may have hosted, or hosted no longer.
    fn model(&self) -> Option<&ModelName> {
        match self {
            Self::CommitVersion { model, .. }
            | Self::Expose { model, .. }
            | Self::Pause { model, .. }
            | Self::Resume { model, .. }
            | Self::Promote { model, .. }
            | Self::Abort { model, .. }
            | Self::Undo { model, .. }
            | Self::RemoveLabel { model, .. }
            | Self::Retain { model, .. } => Some(model),
            Self::StartRollout { target: version, .. } | Self::SetLabel { version, .. } => {
                Some(&version.model)
            }
            Self::Initialise { .. }
            | Self::Reserve { .. }
            | Self::Join { .. }
            | Self::Drain { .. }
            | Self::Hold { .. }
            | Self::NodeOut { .. }
            | Self::Exclude { .. }
            | Self::Collect { .. }
            | Self::Refuse { .. }
            | Self::RaiseLevel { .. } => None,
        }
    }
}

/// Whether a refusal says that the leader planned a command from another state than the one that it met, so that the request
/// behind it is still open: the leader plans it anew. Every other refusal is the request's outcome.
pub(crate) fn is_about_the_plan(error: &CommandError) -> bool {
    match error {
        CommandError::RevisionMismatch { .. } | CommandError::TooFewHolders { .. } => true,
        CommandError::UnknownModel { .. }
        | CommandError::UnknownVersion { .. }
        | CommandError::UnknownLabel { .. }
        | CommandError::RolloutInProgress { .. }
        | CommandError::NoRollout { .. }
        | CommandError::AlreadyStable { .. }
        | CommandError::NothingToUndo { .. }
        | CommandError::BadSteps { .. }
        | CommandError::NotReady { .. }
        | CommandError::NotReserved { .. }
        | CommandError::BadManifest { .. }
        | CommandError::LimitExceeded { .. }
        | CommandError::NameTaken { .. }
        | CommandError::IdTaken { .. }
        | CommandError::UnknownNode { .. }
        | CommandError::AlreadyInitialised { .. }
        | CommandError::NotInitialised
        | CommandError::RequestTooOld { .. }
        | CommandError::LevelTooLow { .. } => false,
    }
}
