//! At one traffic revision everyone picks the same version for a key, and nobody goes back to an older
//! revision than is known.
//!
//! An answer names the revision that its request was routed by and the epoch of the answering node's view.
//! The version must be the one that the traffic of either picks; a request is routed by no older revision
//! than the client's view had as it was asked, and one that begins after an answer came by none older than
//! that answer's node knew. Without a key any version that takes traffic may be picked. A fallback is to the
//! stable version, from a canary that was picked.

use std::collections::BTreeMap;
use std::sync::Arc;

use roost_protocol::traffic::{Canary, Traffic, Weight};
use roost_protocol::{Epoch, ModelName, Revision, Target};

use super::{End, Invariant};
use crate::history::Answer;

/// Everyone picks alike.
#[derive(Default)]
pub struct OnePick;

impl Invariant for OnePick {
    fn name(&self) -> &'static str {
        "everyone picks alike"
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        let known = Known::of(end)?;
        let split = end.answers.iter().filter(|answer| matches!(answer.target, Target::Split(_)));
        for answer in split.clone() {
            known.check_age(answer)?;
            known.check(answer)?;
        }
        let split: Vec<&Arc<Answer>> = split.collect();
        for (i, later) in split.iter().enumerate() {
            for earlier in &split[..i] {
                let same = earlier.client == later.client && earlier.target == later.target;
                if same && earlier.returned < later.invoked {
                    known.check_order(earlier, later)?;
                }
            }
        }
        Ok(())
    }
}

/// The traffic of each model, by epoch and by revision, as views showed it.
struct Known<'a> {
    by_epoch: BTreeMap<&'a ModelName, BTreeMap<Epoch, &'a Traffic>>,
    by_revision: BTreeMap<(&'a ModelName, Revision), &'a Traffic>,
}

impl<'a> Known<'a> {
    fn of(end: &'a End) -> Result<Self, String> {
        let mut known = Self { by_epoch: BTreeMap::new(), by_revision: BTreeMap::new() };
        for (epoch, view) in &end.views {
            for (name, model) in &view.models {
                known.by_epoch.entry(name).or_default().insert(*epoch, &model.traffic);
                let at = (name, model.traffic.revision);
                let first = known.by_revision.entry(at).or_insert(&model.traffic);
                if **first != model.traffic {
                    return Err(format!("{at:?} is {first:?} and {:?}", model.traffic));
                }
            }
        }
        Ok(known)
    }

    /// The traffic of a model at an epoch, where views on both sides of it agree.
    fn at(&self, model: &ModelName, epoch: Epoch) -> Option<&'a Traffic> {
        let epochs = self.by_epoch.get(model)?;
        let (_, before) = epochs.range(..=epoch).next_back()?;
        let (_, after) = epochs.range(epoch..).next()?;
        (before.revision == after.revision).then_some(*before)
    }

    fn check_age(&self, answer: &Answer) -> Result<(), String> {
        let epochs = self.by_epoch.get(answer.target.model());
        let asked_at = answer.asked_at.and_then(|epoch| epochs?.get(&epoch)).map(|traffic| traffic.revision);
        match asked_at.filter(|known| answer.revision < *known) {
            None => Ok(()),
            Some(known) => {
                Err(format!("{answer:?} was routed by an older revision than its client's, {known}"))
            }
        }
    }

    fn check(&self, answer: &Answer) -> Result<(), String> {
        let model = answer.target.model();
        let routed_by = self.by_revision.get(&(model, answer.revision)).copied();
        let answered_by = self.at(model, answer.epoch);
        if answer.fallback {
            // By a newer revision the node may pick what is ready nowhere, which only soft state tells.
            return match routed_by.filter(|traffic| !may_fall_back(traffic, answer)) {
                None => Ok(()),
                Some(traffic) => Err(format!("{answer:?} fell back where the traffic is {traffic:?}")),
            };
        }
        let newest = [routed_by, answered_by].into_iter().flatten().max_by_key(|traffic| traffic.revision);
        match [routed_by, newest].into_iter().flatten().find(|traffic| !may_pick(traffic, answer)) {
            None => Ok(()),
            Some(traffic) => Err(format!("{answer:?} came where the traffic is {traffic:?}")),
        }
    }

    fn check_order(&self, earlier: &Answer, later: &Answer) -> Result<(), String> {
        let model = later.target.model();
        let answered_by = self.at(model, earlier.epoch).map(|traffic| traffic.revision);
        let seen = answered_by.max(Some(earlier.revision)).unwrap_or_default();
        if later.revision < seen {
            return Err(format!("{later:?} was routed by an older revision than {seen}, after {earlier:?}"));
        }
        Ok(())
    }
}

/// Whether a request may have been answered by the version that was picked for it.
fn may_pick(traffic: &Traffic, answer: &Answer) -> bool {
    let exposed = |canary: &Canary| canary.version == answer.version && canary.weight > Weight::ZERO;
    match answer.key {
        Some(key) => traffic.pick(answer.target.model(), key) == answer.version,
        None => answer.version == traffic.stable || traffic.canary.as_ref().is_some_and(exposed),
    }
}

/// Whether a request may have been answered by the stable version in the place of the one picked.
fn may_fall_back(traffic: &Traffic, answer: &Answer) -> bool {
    let picks_another = |key| traffic.pick(answer.target.model(), key) != traffic.stable;
    let exposed = traffic.canary.is_some_and(|canary| canary.weight > Weight::ZERO);
    exposed && answer.version == traffic.stable && answer.key.is_none_or(picks_another)
}

#[cfg(test)]
mod tests {
    use roost_protocol::Version;
    use roost_protocol::traffic::KeyHash;

    use super::super::fixtures::{alpha, answer, at, end, epoch, traffic, view};
    use super::*;

    fn half() -> Weight {
        "50%".parse().unwrap()
    }

    /// Version 1 is stable at the revision 1, from the epoch 1 on; all goes to version 2 at the revision 2,
    /// from 5 on, nothing at 3, from 9 on, and half of it at 4, from 10 on. It is stable at 5, from 12 on.
    fn judge(answers: &[Answer]) -> Result<(), String> {
        let exposed = |revision, weight| Traffic {
            canary: Some(Canary { version: Version(2), weight }),
            ..traffic(revision, 1)
        };
        let views = [
            (1, traffic(1, 1)),
            (4, traffic(1, 1)),
            (5, exposed(2, Weight::ALL)),
            (9, exposed(3, Weight::ZERO)),
            (10, exposed(4, half())),
            (12, traffic(5, 2)),
        ];
        let views = views.map(|(index, traffic)| view(index, traffic, 2, 1));
        let views = views.map(|view| (view.epoch, Arc::new(view))).into();
        let answers = answers.iter().cloned().map(Arc::new).collect();
        OnePick.judge(&End { views, answers, ..end() })
    }

    #[test]
    fn an_answer_is_of_the_version_that_its_revision_picks() {
        let second = Answer { version: Version(2), revision: Revision(2), epoch: epoch(5), ..answer() };
        judge(&[answer(), second.clone()]).unwrap();
        judge(&[Answer { version: Version(2), ..answer() }]).unwrap_err();
        judge(&[Answer { version: Version(1), ..second.clone() }]).unwrap_err();
        // The node knew better than the client.
        judge(&[Answer { epoch: epoch(5), ..answer() }]).unwrap_err();
    }

    #[test]
    fn without_a_key_any_version_that_takes_traffic_answers() {
        let keyless = |revision, index, version| {
            let (revision, epoch, version) = (Revision(revision), epoch(index), Version(version));
            judge(&[Answer { key: None, revision, epoch, version, ..answer() }])
        };
        keyless(1, 1, 1).unwrap();
        keyless(1, 1, 2).unwrap_err();
        keyless(2, 5, 1).unwrap();
        keyless(2, 5, 2).unwrap();
        keyless(2, 5, 3).unwrap_err();
        // The canary takes nothing yet.
        keyless(3, 9, 2).unwrap_err();
        keyless(3, 9, 1).unwrap();
    }

    #[test]
    fn a_fallback_is_from_a_canary_that_was_picked_to_stable() {
        let fell_back = |key: Option<KeyHash>, revision, index, version| {
            let (revision, epoch, version) = (Revision(revision), epoch(index), Version(version));
            judge(&[Answer { fallback: true, key, revision, epoch, version, ..answer() }])
        };
        let key = answer().key;
        for key in [key, None] {
            fell_back(key, 2, 5, 1).unwrap();
            fell_back(key, 2, 5, 2).unwrap_err();
            // Nothing is exposed.
            fell_back(key, 1, 1, 1).unwrap_err();
            fell_back(key, 3, 9, 1).unwrap_err();
        }
        // The node knows of a promotion: whether its version is ready anywhere is not for the traffic to say.
        fell_back(key, 2, 12, 1).unwrap();
        // A key that the split leaves with stable.
        let half = Traffic { canary: Some(Canary { version: Version(2), weight: half() }), ..traffic(4, 1) };
        let picks = |key: &KeyHash, version| half.pick(&alpha(), *key) == Version(version);
        let keys: Vec<KeyHash> = (0..40u64).map(|i| KeyHash::of(&i.to_le_bytes())).collect();
        fell_back(keys.iter().find(|key| picks(key, 2)).copied(), 4, 10, 1).unwrap();
        fell_back(keys.iter().find(|key| picks(key, 1)).copied(), 4, 10, 1).unwrap_err();
    }

    #[test]
    fn nobody_goes_back_to_an_older_revision() {
        judge(&[Answer { asked_at: Some(epoch(5)), ..answer() }]).unwrap_err();
        let first = Answer { version: Version(2), revision: Revision(2), epoch: epoch(5), ..answer() };
        let later = Answer { invoked: at(12), returned: at(13), ..answer() };
        judge(&[first.clone(), later.clone()]).unwrap_err();
        judge(&[first, Answer { client: "user2".to_owned(), ..later }]).unwrap();
    }
}
