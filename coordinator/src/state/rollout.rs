//! How a model's traffic moves from one version to another.
//!
//! ```text
//!              start                expose                 promote
//!   no rollout ─────► Preparing ───────────► Running ───────────────► no rollout (target is stable)
//!       ▲                 │                 │      ▲                       │
//!       │      abort      │           pause ▼      │ resume                │ undo: one committed switch
//!       └─────────────────┴──────────────── Paused ┘ ◄─────────────────────┘  back to the version before
//! ```
//! After a promotion the version before stays hosted, so that an undo is one switch too. An undo leaves no such version: what
//! it took the traffic from is led to again by a rollout, not by another undo.
//!
//! Whether the target is ready is soft state, which the planner and the leader judge before they propose; a proposal
//! names the revision that it was judged at and is refused at any other. Each change of traffic raises the revision by
//! one. A pause leaves the share as it is: taking it back would send keys from canary to stable without an abort.

use roost_protocol::error::reason;
use roost_protocol::limits::ROLLOUT_HISTORY_MAX;
use roost_protocol::messages::control::{Outcome, Rollout, RolloutEvent, RolloutEventKind, RolloutState};
use roost_protocol::traffic::{Canary, Weight};
use roost_protocol::{CommandError, ModelName, ModelVersion, NodeName, Revision, Version};

use super::ModelRecord;

impl ModelRecord {
    pub(super) fn start_rollout(
        &mut self,
        target: &ModelVersion,
        weight: Weight,
        now_ms: u64,
        by: &str,
    ) -> Result<Outcome, CommandError> {
        if let Some(rollout) = &self.rollout {
            let (model, target) = (target.model.clone(), rollout.target);
            return Err(CommandError::RolloutInProgress { model, target });
        }
        if !self.versions.contains_key(&target.version) {
            return Err(CommandError::UnknownVersion { version: target.clone() });
        }
        if self.traffic.stable == target.version {
            return Err(CommandError::AlreadyStable { version: target.clone() });
        }
        if weight == Weight::ZERO {
            return Err(CommandError::BadSteps { steps: weight.to_string() });
        }
        let target = target.version;
        self.rollout = Some(Rollout { target, weight, state: RolloutState::Preparing });
        self.reroute(RolloutEventKind::Started { target, weight }, now_ms, by)
    }

    pub(super) fn expose(
        &mut self,
        model: &ModelName,
        revision: Revision,
        now_ms: u64,
        by: &str,
    ) -> Result<Outcome, CommandError> {
        let rollout = self.rollout_at(model, revision)?;
        match rollout.state {
            RolloutState::Preparing => {
                rollout.state = RolloutState::Running;
                let (target, weight) = (rollout.target, rollout.weight);
                self.traffic.canary = Some(Canary { version: target, weight });
                self.reroute(RolloutEventKind::Exposed { target, weight }, now_ms, by)
            }
            RolloutState::Running | RolloutState::Paused { .. } => Ok(Outcome::Rerouted { revision }),
        }
    }

    pub(super) fn pause(
        &mut self,
        model: &ModelName,
        revision: Revision,
        why: &str,
        now_ms: u64,
        by: &str,
    ) -> Result<Outcome, CommandError> {
        let rollout = self.rollout_at(model, revision)?;
        match rollout.state {
            RolloutState::Running => {
                let reason = reason(why);
                rollout.state = RolloutState::Paused { reason: reason.clone() };
                self.note(RolloutEventKind::Paused { reason }, now_ms, by);
                Ok(Outcome::Applied)
            }
            RolloutState::Preparing | RolloutState::Paused { .. } => Ok(Outcome::Applied),
        }
    }

    pub(super) fn resume(
        &mut self,
        model: &ModelName,
        revision: Revision,
        now_ms: u64,
        by: &str,
    ) -> Result<Outcome, CommandError> {
        let rollout = self.rollout_at(model, revision)?;
        match rollout.state {
            RolloutState::Paused { .. } => {
                rollout.state = RolloutState::Running;
                self.note(RolloutEventKind::Resumed, now_ms, by);
                Ok(Outcome::Applied)
            }
            RolloutState::Preparing | RolloutState::Running => Ok(Outcome::Applied),
        }
    }

    pub(super) fn promote(
        &mut self,
        model: &ModelName,
        revision: Revision,
        now_ms: u64,
        by: &str,
    ) -> Result<Outcome, CommandError> {
        let target = self.rollout_at(model, revision)?.target;
        self.rollout = None;
        self.traffic.previous = Some(self.traffic.stable);
        self.switch_to(target);
        self.reroute(RolloutEventKind::Promoted { target }, now_ms, by)
    }

    pub(super) fn abort(
        &mut self,
        model: &ModelName,
        why: &str,
        now_ms: u64,
        by: &str,
    ) -> Result<Outcome, CommandError> {
        let rollout = self.rollout.take().ok_or_else(|| CommandError::NoRollout { model: model.clone() })?;
        self.traffic.canary = None;
        self.reroute(RolloutEventKind::Aborted { target: rollout.target, reason: reason(why) }, now_ms, by)
    }

    pub(super) fn undo(
        &mut self,
        model: &ModelName,
        planned: Revision,
        now_ms: u64,
        by: &str,
    ) -> Result<Outcome, CommandError> {
        if let Some(rollout) = &self.rollout {
            let (model, target) = (model.clone(), rollout.target);
            return Err(CommandError::RolloutInProgress { model, target });
        }
        let to = self.traffic.previous.ok_or_else(|| CommandError::NothingToUndo { model: model.clone() })?;
        self.check_revision(model, planned)?;
        let from = self.traffic.stable;
        // What was left is not the way forward: a second undo would send all traffic to what the first one took it from.
        self.traffic.previous = None;
        self.switch_to(to);
        self.reroute(RolloutEventKind::Undone { from, to }, now_ms, by)
    }

    /// Records an event without a change of traffic.
    pub(super) fn note(&mut self, kind: RolloutEventKind, now_ms: u64, by: &str) {
        if self.history.len() >= ROLLOUT_HISTORY_MAX {
            self.history.remove(0);
        }
        let revision = self.traffic.revision;
        self.history.push(RolloutEvent { at_ms: now_ms, by: by.to_owned(), kind, revision });
    }

    /// Records that a version is not placed on a node any more, in the place of what was recorded of it before: a node that
    /// fails at each start must not push the rollouts out.
    pub(super) fn note_excluded(
        &mut self,
        version: Version,
        node: NodeName,
        reason: String,
        now_ms: u64,
        by: &str,
    ) {
        self.history.retain(|event| match &event.kind {
            RolloutEventKind::Excluded { version: known, node: of, .. } => (*known, of) != (version, &node),
            _ => true,
        });
        self.note(RolloutEventKind::Excluded { version, node, reason }, now_ms, by);
    }

    /// All traffic to one version, in one switch.
    fn switch_to(&mut self, version: Version) {
        self.traffic.stable = version;
        self.traffic.canary = None;
    }

    fn reroute(&mut self, kind: RolloutEventKind, now_ms: u64, by: &str) -> Result<Outcome, CommandError> {
        self.traffic.revision.0 += 1;
        self.note(kind, now_ms, by);
        Ok(Outcome::Rerouted { revision: self.traffic.revision })
    }

    fn rollout_at(&mut self, model: &ModelName, planned: Revision) -> Result<&mut Rollout, CommandError> {
        if self.rollout.is_some() {
            self.check_revision(model, planned)?;
        }
        self.rollout.as_mut().ok_or_else(|| CommandError::NoRollout { model: model.clone() })
    }

    fn check_revision(&self, model: &ModelName, planned: Revision) -> Result<(), CommandError> {
        let actual = self.traffic.revision;
        if actual == planned {
            return Ok(());
        }
        Err(CommandError::RevisionMismatch { model: model.clone(), planned, actual })
    }
}
