//! What was acknowledged is there at the end: every push, and every change of traffic at its revision.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_protocol::ModelName;
use roost_protocol::limits::ROLLOUT_HISTORY_MAX;
use roost_protocol::messages::control::{RolloutEvent, RolloutEventKind, VersionSummary};

use super::{End, Invariant};
use crate::history::{Call, Return};

/// Nothing acknowledged is lost.
#[derive(Default)]
pub struct NothingLost;

impl Invariant for NothingLost {
    fn name(&self) -> &'static str {
        "nothing acknowledged is lost"
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        // The last reads come after all changes, but for those that came through in the last instant, which
        // nobody has read. A model that is unknown has no versions, and its traffic no history.
        let mut versions: BTreeMap<&ModelName, (Duration, &[VersionSummary])> = BTreeMap::new();
        let mut histories: BTreeMap<&ModelName, (Duration, &[RolloutEvent])> = BTreeMap::new();
        for op in &end.ops {
            let Some((_, returned)) = &op.returned else { continue };
            match (&op.call, returned) {
                (Call::ReadVersions, Return::Versions(read)) => {
                    versions.insert(&op.model, (op.invoked, read));
                }
                (Call::ReadVersions, _) => {
                    versions.insert(&op.model, (op.invoked, &[]));
                }
                (Call::ReadRollout, Return::Rollout(read)) => {
                    histories.insert(&op.model, (op.invoked, &read.history));
                }
                (Call::ReadRollout, _) => {
                    histories.insert(&op.model, (op.invoked, &[]));
                }
                _ => {}
            }
        }
        for op in &end.ops {
            match (&op.call, &op.returned) {
                (Call::Push { note, digest }, Some((at, Return::Pushed { version, .. }))) => {
                    let Some((_, made)) = versions.get(&op.model).filter(|(read, _)| read >= at) else {
                        continue;
                    };
                    let same = |made: &&VersionSummary| made.note == *note && made.digest == *digest;
                    let numbers: Vec<u32> = made.iter().filter(same).map(|made| made.version.0).collect();
                    if numbers != [version.0] {
                        return Err(format!("{op:?} made version {version}, at the end {numbers:?} are its"));
                    }
                }
                (call, Some((at, Return::Rerouted(revision)))) => {
                    let read = histories.get(&op.model).filter(|(read, _)| read >= at);
                    let Some((_, history)) = read.filter(|(_, history)| history.len() < ROLLOUT_HISTORY_MAX)
                    else {
                        continue;
                    };
                    let is_it = |event: &RolloutEvent| {
                        event.revision == *revision && is_of(call, &event.kind) && event.by == op.client
                    };
                    if !history.iter().any(is_it) {
                        return Err(format!("{op:?} is not in the history of {}: {history:?}", op.model));
                    }
                }
                _ => {}
            }
        }
        Ok(())
    }
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use roost_protocol::traffic::Weight;
    use roost_protocol::{CommandError, Digest, Revision, Version};

    use super::super::fixtures::{alpha, end, op, read_history, read_versions};
    use super::*;
    use crate::history::Op;

    fn judge(op: Op, last: Arc<Op>) -> Result<(), String> {
        NothingLost.judge(&End { ops: vec![Arc::new(op), last], ..end() })
    }

    #[test]
    fn a_push_is_among_the_versions_once_under_its_number() {
        let digest = Digest::of(b"one");
        let pushed = |until| {
            let call = Call::Push { note: "op1-1".to_owned(), digest };
            op(1, call, Some((until, Return::Pushed { version: Version(1), stable: true })))
        };
        let check = |until, versions: &[(&str, Digest)]| judge(pushed(until), read_versions(9, versions));
        check(2, &[("op1-1", digest)]).unwrap();
        check(2, &[]).unwrap_err();
        check(2, &[("op1-1", Digest::of(b"other"))]).unwrap_err();
        check(2, &[("op2-1", digest), ("op1-1", digest)]).unwrap_err();
        check(2, &[("op1-1", digest), ("op1-1", digest)]).unwrap_err();
        // Nobody has read since.
        check(10, &[]).unwrap();
        let unknown = CommandError::UnknownModel { model: alpha() };
        let read = op(9, Call::ReadVersions, Some((9, Return::Refused(unknown))));
        judge(pushed(2), Arc::new(read)).unwrap_err();
    }

    #[test]
    fn a_change_of_traffic_is_in_the_history_at_its_revision() {
        let weight = Weight::ALL;
        let started = RolloutEventKind::Started { target: Version(2), weight };
        let history = read_history(9, &[RolloutEventKind::First(Version(1)), started]);
        let start = |revision| {
            let call = Call::Start { target: Version(2), weight };
            op(1, call, Some((2, Return::Rerouted(Revision(revision)))))
        };
        judge(start(2), history.clone()).unwrap();
        judge(start(3), history.clone()).unwrap_err();
        judge(op(1, Call::Promote, Some((2, Return::Rerouted(Revision(2))))), history.clone()).unwrap_err();
        judge(Op { client: "op2".to_owned(), ..start(2) }, history).unwrap_err();
    }
}
