//! At one traffic revision everyone picks the same version for a key, and nobody goes back to an older revision than is known.
//!
//! An answer names the revision that its request was routed by and the epoch of the answering node's view. The version must be
//! the one that the traffic of either picks; a request that begins after an answer came is routed by no older revision than
//! that answer's node knew.

use std::collections::BTreeMap;
use std::sync::Arc;

use roost_protocol::traffic::Traffic;
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
        for answer in split.clone().filter(|answer| !answer.fallback) {
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

    fn check(&self, answer: &Answer) -> Result<(), String> {
        let model = answer.target.model();
        let routed_by = self.by_revision.get(&(model, answer.revision)).copied();
        let answered_by = self.at(model, answer.epoch);
        let newest = [routed_by, answered_by].into_iter().flatten().max_by_key(|traffic| traffic.revision);
        let Some(key) = answer.key else { return Ok(()) };
        for traffic in [routed_by, newest].into_iter().flatten() {
            let picked = traffic.pick(model, key);
            if picked != answer.version {
                return Err(format!("{answer:?} came where {traffic:?} picks {picked}"));
            }
        }
        Ok(())
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
