//! Changes and reads of the registry are linearizable, model by model.
//!
//! The specification is the registry as its users know it: versions in order, where traffic goes, labels. The
//! one thing that happens unasked is that the planner exposes the target of a rollout, which may come at any
//! moment after its start.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roost_protocol::messages::control::{RolloutState, RolloutSummary};
use roost_protocol::traffic::{Canary, Traffic, Weight};
use roost_protocol::{CommandError, Digest, Label, ModelName, Revision, Version};

use super::{End, Invariant};
use crate::history::{Call, Op, Return};
use crate::linearizability::{Specification, Timed, Verdict, check};

/// States that are tried before a search is given up, which is reported.
const STEPS_MAX: usize = 400_000;

/// Changes and reads of the registry are linearizable.
#[derive(Default)]
pub struct Linearizable;

impl Invariant for Linearizable {
    fn name(&self) -> &'static str {
        "linearizable"
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        let models: BTreeSet<&ModelName> = end.ops.iter().map(|op| &op.model).collect();
        models.into_iter().try_for_each(|model| {
            let ops = end.ops.iter().filter(|op| op.model == *model);
            judge(model, &ops.cloned().collect::<Vec<_>>())
        })
    }
}

fn judge(model: &ModelName, ops: &[Arc<Op>]) -> Result<(), String> {
    // Versions never go: what the last read of them lists is all that ever was, in order.
    let lists = ops.iter().filter_map(|op| match &op.returned {
        Some((at, Return::Versions(versions))) => {
            Some((*at, versions.iter().map(|version| version.note.clone()).collect::<Vec<_>>()))
        }
        _ => None,
    });
    let last = lists.max_by_key(|(at, _)| *at).map(|(_, notes)| notes);
    // Unless one came through in the instant after.
    let later = |op: &Arc<Op>, listed: usize| match &op.returned {
        Some((_, Return::Pushed { version, .. })) => version.0 as usize > listed,
        _ => false,
    };
    let last = last.filter(|last| !ops.iter().any(|op| later(op, last.len())));
    let relevant = |op: &&Arc<Op>| match (&op.call, &op.returned) {
        // A read that nobody heard the end of says nothing.
        (call, None) if call.reads() => false,
        (Call::Push { note, .. }, None) => last.as_ref().is_none_or(|last| last.contains(note)),
        _ => true,
    };
    let history: Vec<Timed<Arc<Op>>> = ops
        .iter()
        .filter(relevant)
        .map(|op| Timed { op: op.clone(), began: op.invoked, ended: op.returned.as_ref().map(|(at, _)| *at) })
        .collect();
    match check(&Spec { last }, Registry::default(), &history, STEPS_MAX) {
        Verdict::Linearizable => Ok(()),
        Verdict::Undecided => {
            Err(format!("{model}: no order of {} operations was found or ruled out", history.len()))
        }
        Verdict::Not(stuck) => {
            let candidates = stuck.candidates.iter().map(|i| format!("{:?}", history[*i].op));
            Err(format!(
                "{model}: no order of {} operations fits; {} of them lead to {:?}, \
                 where none of these can follow: {}",
                history.len(),
                stuck.fit,
                stuck.state,
                candidates.collect::<Vec<_>>().join("; ")
            ))
        }
    }
}

/// A model, as users know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
struct Registry {
    versions: Vec<(String, Digest)>,
    labels: BTreeMap<Label, Version>,
    revision: u64,
    stable: u32,
    previous: Option<u32>,
    rollout: Option<Rollout>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Rollout {
    target: u32,
    points: u16,
    exposed: bool,
}

struct Spec {
    /// The notes of all versions that there ever were, if known.
    last: Option<Vec<String>>,
}

impl Specification for Spec {
    type State = Registry;
    type Op = Arc<Op>;

    fn next(&self, state: &Registry, op: &Arc<Op>) -> Vec<Registry> {
        let mut next = Vec::new();
        for before in [Some(state.clone()), state.exposed()].into_iter().flatten() {
            if let Some(after) = before.after(op)
                && self.is_possible(&after)
            {
                next.push(after);
            }
        }
        next
    }

    fn observes(&self, op: &Arc<Op>) -> bool {
        op.call.reads() || matches!(op.returned, Some((_, Return::Refused(_))))
    }
}

impl Spec {
    fn is_possible(&self, state: &Registry) -> bool {
        let notes = state.versions.iter().map(|(note, _)| note);
        self.last
            .as_ref()
            .is_none_or(|last| notes.zip(0..).all(|(note, i)| last.get(i as usize) == Some(note)))
    }
}

impl Registry {
    /// The state after the planner has exposed the target, if it can.
    fn exposed(&self) -> Option<Self> {
        let rollout = self.rollout.clone().filter(|rollout| !rollout.exposed)?;
        let rollout = Some(Rollout { exposed: true, ..rollout });
        Some(Self { rollout, revision: self.revision + 1, ..self.clone() })
    }

    /// The state after an operation; none when it cannot have returned what it did.
    fn after(&self, op: &Op) -> Option<Self> {
        let mut after = self.clone();
        let result = after.carry_out(&op.call);
        let returned = op.returned.as_ref().map(|(_, returned)| returned);
        let fits = match (&result, returned) {
            // Nobody knows what it returned.
            (Ok(_), None) => true,
            (Err(_), None) => return Some(self.clone()),
            (_, Some(Return::Refused(error))) => {
                let fits = is_about_else(error) || result.as_ref().err() == Some(&kind_of(error));
                return fits.then(|| self.clone());
            }
            (Ok(Outcome::Read), Some(returned)) => self.reads_as(returned),
            (Ok(Outcome::Pushed), Some(Return::Pushed { version, stable })) => {
                after.versions.len() as u32 == version.0 && *stable == (version.0 == 1)
            }
            (Ok(Outcome::Rerouted), Some(Return::Rerouted(revision))) => after.revision == revision.0,
            (Ok(Outcome::Applied), Some(Return::Applied)) => true,
            _ => false,
        };
        fits.then_some(after)
    }

    fn carry_out(&mut self, call: &Call) -> Result<Outcome, &'static str> {
        if let Call::Push { note, digest } = call {
            self.versions.push((note.clone(), *digest));
            if self.versions.len() == 1 {
                (self.revision, self.stable) = (1, 1);
            }
            return Ok(Outcome::Pushed);
        }
        if self.versions.is_empty() && !matches!(call, Call::ReadModel) {
            return Err("unknown model");
        }
        let exists = |version: Version| (1..=self.versions.len() as u32).contains(&version.0);
        match call {
            Call::Push { .. } | Call::ReadVersions | Call::ReadRollout | Call::ReadModel => {
                return Ok(Outcome::Read);
            }
            Call::Start { target, weight } => {
                if self.rollout.is_some() {
                    return Err("rollout in progress");
                }
                if !exists(*target) {
                    return Err("unknown version");
                }
                if self.stable == target.0 {
                    return Err("already stable");
                }
                let points = weight.basis_points();
                self.rollout = Some(Rollout { target: target.0, points, exposed: false });
            }
            Call::Promote => {
                let rollout = self.rollout.take().ok_or("no rollout")?;
                self.switch_to(rollout.target);
            }
            Call::Abort => {
                self.rollout.take().ok_or("no rollout")?;
            }
            Call::Undo => {
                if self.rollout.is_some() {
                    return Err("rollout in progress");
                }
                let to = self.previous.ok_or("nothing to undo")?;
                self.switch_to(to);
                // An undo is not undone by another one.
                self.previous = None;
            }
            Call::SetLabel { version, label } => {
                if !exists(*version) {
                    return Err("unknown version");
                }
                self.labels.insert(label.clone(), *version);
                return Ok(Outcome::Applied);
            }
            Call::RemoveLabel { label } => {
                self.labels.remove(label).ok_or("unknown label")?;
                return Ok(Outcome::Applied);
            }
        }
        self.revision += 1;
        Ok(Outcome::Rerouted)
    }

    fn switch_to(&mut self, version: u32) {
        (self.previous, self.stable) = (Some(self.stable), version);
    }

    fn traffic(&self) -> Traffic {
        let canary = self.rollout.as_ref().filter(|rollout| rollout.exposed).map(|rollout| {
            let weight = Weight::from_basis_points(rollout.points).unwrap_or(Weight::ALL);
            Canary { version: Version(rollout.target), weight }
        });
        Traffic {
            revision: Revision(self.revision),
            stable: Version(self.stable),
            canary,
            previous: self.previous.map(Version),
        }
    }

    fn reads_as(&self, returned: &Return) -> bool {
        match returned {
            Return::Versions(versions) => {
                let read = versions.iter().map(|version| (&version.note, version.digest));
                let in_order = versions.iter().zip(1..).all(|(version, number)| version.version.0 == number);
                in_order && read.eq(self.versions.iter().map(|(note, digest)| (note, *digest)))
            }
            Return::Rollout(summary) => {
                let RolloutSummary { traffic, rollout, history: _ } = &**summary;
                let rollout = rollout.as_ref().map(|rollout| Rollout {
                    target: rollout.target.0,
                    points: rollout.weight.basis_points(),
                    exposed: rollout.state != RolloutState::Preparing,
                });
                *traffic == self.traffic() && rollout == self.rollout
            }
            Return::Model(None) => self.versions.is_empty(),
            Return::Model(Some(summary)) => {
                summary.versions as usize == self.versions.len()
                    && summary.traffic == self.traffic()
                    && summary.labels == self.labels
            }
            Return::Pushed { .. } | Return::Rerouted(_) | Return::Applied | Return::Refused(_) => false,
        }
    }
}

enum Outcome {
    Read,
    Pushed,
    Rerouted,
    Applied,
}

/// Whether a refusal is about what this specification does not know: readiness, reservations, limits.
fn is_about_else(error: &CommandError) -> bool {
    kind_of(error).is_empty()
}

fn kind_of(error: &CommandError) -> &'static str {
    match error {
        CommandError::UnknownModel { .. } => "unknown model",
        CommandError::UnknownVersion { .. } => "unknown version",
        CommandError::UnknownLabel { .. } => "unknown label",
        CommandError::RolloutInProgress { .. } => "rollout in progress",
        CommandError::NoRollout { .. } => "no rollout",
        CommandError::AlreadyStable { .. } => "already stable",
        CommandError::NothingToUndo { .. } => "nothing to undo",
        CommandError::RevisionMismatch { .. }
        | CommandError::TooFewHolders { .. }
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
        | CommandError::LevelTooLow { .. } => "",
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{alpha, end, op, read_versions};
    use super::*;

    fn pushed(from: u64, until: u64, note: &str, version: u32) -> Arc<Op> {
        let call = Call::Push { note: note.to_owned(), digest: Digest::of(note.as_bytes()) };
        let returned = Return::Pushed { version: Version(version), stable: version == 1 };
        Arc::new(op(from, call, Some((until, returned))))
    }

    fn read(at: u64, notes: &[&str]) -> Arc<Op> {
        let versions: Vec<(&str, Digest)> =
            notes.iter().map(|note| (*note, Digest::of(note.as_bytes()))).collect();
        read_versions(at, &versions)
    }

    fn rerouted(from: u64, call: Call, revision: u64) -> Arc<Op> {
        Arc::new(op(from, call, Some((from, Return::Rerouted(Revision(revision))))))
    }

    fn judge(ops: Vec<Arc<Op>>) -> Result<(), String> {
        Linearizable.judge(&End { ops, ..end() })
    }

    #[test]
    fn a_read_has_all_that_returned_before_it() {
        let (a, b) = (pushed(1, 2, "a", 1), pushed(3, 4, "b", 2));
        judge(vec![a.clone(), b.clone(), read(5, &["a", "b"])]).unwrap();
        judge(vec![a.clone(), read(5, &["a"]), b.clone(), read(6, &["a", "b"])]).unwrap_err();
        judge(vec![pushed(3, 4, "a", 1), pushed(1, 2, "b", 2), read(5, &["a", "b"])]).unwrap_err();
        // One that returned to nobody may have come before or after, or never.
        let open = Arc::new(op(1, Call::Push { note: "c".to_owned(), digest: Digest::of(b"c") }, None));
        judge(vec![open.clone(), a.clone(), b.clone(), read(5, &["a", "b"])]).unwrap();
        judge(vec![open, a, pushed(3, 4, "b", 3), read(5, &["a", "c", "b"])]).unwrap();
    }

    #[test]
    fn a_command_acts_once() {
        let weight = Weight::ALL;
        let start = || Call::Start { target: Version(2), weight };
        let ops = [pushed(1, 2, "a", 1), pushed(3, 4, "b", 2), read(5, &["a", "b"])];
        let with = |more: Vec<Arc<Op>>| judge(ops.iter().cloned().chain(more).collect());
        with(vec![rerouted(6, start(), 2), rerouted(7, Call::Abort, 3)]).unwrap();
        // The target may have been exposed between them, which is a revision of its own.
        with(vec![rerouted(6, start(), 2), rerouted(7, Call::Abort, 4)]).unwrap();
        with(vec![rerouted(6, start(), 2), rerouted(7, Call::Abort, 5)]).unwrap_err();
        let none = Return::Refused(CommandError::NoRollout { model: alpha() });
        let refused = Arc::new(op(7, Call::Abort, Some((7, none))));
        with(vec![rerouted(6, start(), 2), refused]).unwrap_err();
    }
}
