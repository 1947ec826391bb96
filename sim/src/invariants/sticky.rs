//! A key goes from stable to canary at most once in a rollout, and back only by an abort or an undo.
//!
//! Answers for one key, in the order of their traffic revisions, are held against the model's history of
//! events. A fallback says nothing of where a key belongs: that each is due is for [`super::one_pick`] to
//! say, and so is what is picked without a key.

use std::collections::BTreeMap;
use std::sync::Arc;

use roost_protocol::limits::ROLLOUT_HISTORY_MAX;
use roost_protocol::messages::control::{RolloutEvent, RolloutEventKind, RolloutSummary};
use roost_protocol::traffic::KeyHash;
use roost_protocol::{ModelName, Revision, Target, Version};

use super::{End, Invariant};
use crate::history::{Answer, Return};

/// Keys keep to their versions.
#[derive(Default)]
pub struct Sticky;

impl Invariant for Sticky {
    fn name(&self) -> &'static str {
        "keys keep to their versions"
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        let mut histories: BTreeMap<&ModelName, &RolloutSummary> = BTreeMap::new();
        for op in &end.ops {
            if let Some((_, Return::Rollout(read))) = &op.returned {
                histories.insert(&op.model, read);
            }
        }
        let mut by_key: BTreeMap<(&ModelName, KeyHash), Vec<&Arc<Answer>>> = BTreeMap::new();
        for answer in end.answers.iter().filter(|answer| !answer.fallback) {
            if let (Target::Split(model), Some(key)) = (&answer.target, answer.key) {
                by_key.entry((model, key)).or_default().push(answer);
            }
        }
        for ((model, _), mut answers) in by_key {
            let read = histories.get(model).filter(|read| read.history.len() < ROLLOUT_HISTORY_MAX);
            let Some(RolloutSummary { traffic, history, .. }) = read else { continue };
            // Nobody has read what led to later revisions.
            answers.retain(|answer| answer.revision <= traffic.revision);
            answers.sort_by_key(|answer| (answer.revision, answer.invoked));
            for pair in answers.windows(2) {
                check(history, pair[0], pair[1])?;
            }
        }
        Ok(())
    }
}

fn check(history: &[RolloutEvent], before: &Answer, after: &Answer) -> Result<(), String> {
    if before.version == after.version {
        return Ok(());
    }
    let between =
        |event: &&RolloutEvent| event.revision > before.revision && event.revision <= after.revision;
    let events: Vec<&RolloutEvent> = history.iter().filter(between).collect();
    let led_to = |version: Version| events.iter().any(|event| leads_to(&event.kind, version));
    if led_to(after.version) {
        return Ok(());
    }
    // Back to what was stable: the rollout was given up.
    let given_up = events.iter().any(|event| matches!(event.kind, RolloutEventKind::Aborted { .. }));
    if given_up && stable_at(history, after.revision) == Some(after.version) {
        return Ok(());
    }
    Err(format!("{before:?}, then {after:?}; between them there is only {events:?}"))
}

/// Whether an event may bring a key to a version.
fn leads_to(kind: &RolloutEventKind, version: Version) -> bool {
    match kind {
        RolloutEventKind::First(to) => *to == version,
        RolloutEventKind::Exposed { target, .. } | RolloutEventKind::Promoted { target } => {
            *target == version
        }
        RolloutEventKind::Undone { to, .. } => *to == version,
        RolloutEventKind::Started { .. }
        | RolloutEventKind::Paused { .. }
        | RolloutEventKind::Resumed
        | RolloutEventKind::Aborted { .. }
        | RolloutEventKind::Excluded { .. } => false,
    }
}

/// The stable version at a revision.
fn stable_at(history: &[RolloutEvent], revision: Revision) -> Option<Version> {
    let until = history.iter().filter(|event| event.revision <= revision);
    until.fold(None, |stable, event| match event.kind {
        RolloutEventKind::First(version) => Some(version),
        RolloutEventKind::Promoted { target } => Some(target),
        RolloutEventKind::Undone { to, .. } => Some(to),
        RolloutEventKind::Started { .. }
        | RolloutEventKind::Exposed { .. }
        | RolloutEventKind::Paused { .. }
        | RolloutEventKind::Resumed
        | RolloutEventKind::Aborted { .. }
        | RolloutEventKind::Excluded { .. } => stable,
    })
}

#[cfg(test)]
mod tests {
    use roost_protocol::traffic::Weight;

    use super::super::fixtures::{answer, end, read_history};
    use super::*;

    /// A rollout to version 2 that is exposed at the revision 3, and what comes after it.
    fn judge(after: RolloutEventKind, answers: &[(u64, u32)]) -> Result<(), String> {
        let (target, weight) = (Version(2), Weight::ALL);
        let first = RolloutEventKind::First(Version(1));
        let kinds = [
            first,
            RolloutEventKind::Started { target, weight },
            RolloutEventKind::Exposed { target, weight },
            after,
        ];
        let answers = answers.iter().map(|(revision, version)| {
            Arc::new(Answer { revision: Revision(*revision), version: Version(*version), ..answer() })
        });
        Sticky.judge(&End { ops: vec![read_history(99, &kinds)], answers: answers.collect(), ..end() })
    }

    fn aborted() -> RolloutEventKind {
        RolloutEventKind::Aborted { target: Version(2), reason: String::new() }
    }

    #[test]
    fn a_key_goes_to_the_canary_once_and_back_by_an_abort_or_an_undo_alone() {
        judge(aborted(), &[(1, 1), (3, 2), (4, 1)]).unwrap();
        judge(RolloutEventKind::Undone { from: Version(2), to: Version(1) }, &[(3, 2), (4, 1)]).unwrap();
        judge(RolloutEventKind::Promoted { target: Version(2) }, &[(2, 1), (4, 2)]).unwrap();
        judge(RolloutEventKind::Promoted { target: Version(2) }, &[(3, 2), (4, 1)]).unwrap_err();
        judge(RolloutEventKind::Resumed, &[(3, 2), (4, 1)]).unwrap_err();
        judge(aborted(), &[(1, 1), (2, 2)]).unwrap_err();
        judge(aborted(), &[(3, 2), (3, 1)]).unwrap_err();
        judge(aborted(), &[(4, 1), (5, 2)]).unwrap();
    }
}
