//! What was acknowledged is there at the end: every push, and every change of traffic at its revision.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roost_protocol::ModelName;
use roost_protocol::limits::ROLLOUT_HISTORY_MAX;
use roost_protocol::messages::control::{RolloutEventKind, RolloutSummary, VersionSummary};

use super::{End, Invariant};
use crate::history::{Call, Op, Return};

/// Nothing acknowledged is lost.
#[derive(Default)]
pub struct NothingLost;

impl Invariant for NothingLost {
    fn name(&self) -> &'static str {
        "nothing acknowledged is lost"
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        // The last reads are the auditor's, after everything else.
        let mut versions: BTreeMap<&ModelName, &Vec<VersionSummary>> = BTreeMap::new();
        let mut rollouts: BTreeMap<&ModelName, &RolloutSummary> = BTreeMap::new();
        let mut read_at: BTreeMap<&ModelName, Duration> = BTreeMap::new();
        for op in &end.ops {
            match &op.returned {
                Some((_, Return::Versions(read))) => {
                    versions.insert(&op.model, read);
                }
                Some((_, Return::Rollout(read))) => {
                    rollouts.insert(&op.model, read);
                    read_at.insert(&op.model, op.invoked);
                }
                _ => {}
            }
        }
        // What came through in the instant after the auditor was content, nobody has read.
        let read_since =
            |op: &&Arc<Op>| op.returned.as_ref().is_some_and(|(at, _)| read_at.get(&op.model) >= Some(at));
        for op in end.ops.iter().filter(read_since) {
            match (&op.call, &op.returned) {
                (Call::Push { note, digest }, Some((_, Return::Pushed { version, .. }))) => {
                    let made = versions.get(&op.model).into_iter().flat_map(|versions| versions.iter());
                    let same = |made: &&VersionSummary| made.note == *note && made.digest == *digest;
                    let numbers: Vec<u32> = made.filter(same).map(|made| made.version.0).collect();
                    if numbers != [version.0] {
                        return Err(format!("{op:?} made version {version}, at the end {numbers:?} are its"));
                    }
                }
                (call, Some((_, Return::Rerouted(revision)))) => {
                    let history = rollouts.get(&op.model).map(|rollout| &rollout.history);
                    let Some(history) = history.filter(|history| history.len() < ROLLOUT_HISTORY_MAX) else {
                        continue;
                    };
                    let is_it = |kind: &RolloutEventKind| is_of(call, kind);
                    let mut events = history.iter();
                    if !events.any(|event| event.revision == *revision && is_it(&event.kind) && by(event, op))
                    {
                        return Err(format!("{op:?} is not in the history of {}: {history:?}", op.model));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn by(event: &roost_protocol::messages::control::RolloutEvent, op: &Op) -> bool {
    event.by == op.client
}

fn is_of(call: &Call, kind: &RolloutEventKind) -> bool {
    match (call, kind) {
        (Call::Start { target, weight }, RolloutEventKind::Started { target: to, weight: share }) => {
            target == to && weight == share
        }
        (Call::Promote, RolloutEventKind::Promoted { .. })
        | (Call::Abort, RolloutEventKind::Aborted { .. })
        | (Call::Undo, RolloutEventKind::Undone { .. }) => true,
        _ => false,
    }
}
