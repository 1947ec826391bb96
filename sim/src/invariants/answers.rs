//! An answer is bit-equal to what the model of its version's digest computes.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use roost_protocol::{Digest, ModelName};

use super::{End, Invariant};
use crate::engine::Oracle;
use crate::history::Return;

/// Answers are those of the model that they name.
#[derive(Default)]
pub struct Answers;

impl Invariant for Answers {
    fn name(&self) -> &'static str {
        "answers are their model's"
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        let mut versions: BTreeMap<(&ModelName, u32), Digest> = BTreeMap::new();
        for op in &end.ops {
            if let Some((_, Return::Versions(read))) = &op.returned {
                versions.extend(read.iter().map(|made| ((&op.model, made.version.0), made.digest)));
            }
        }
        let mut oracles: BTreeMap<Digest, Oracle> = BTreeMap::new();
        for answer in &end.answers {
            let digest = versions.get(&(answer.target.model(), answer.version.0));
            let digest = digest.ok_or_else(|| format!("{answer:?} is of a version that nobody pushed"))?;
            let oracle = match oracles.entry(*digest) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => {
                    let oracle = end.models.get(digest).and_then(|model| Oracle::of(model));
                    unknown.insert(oracle.ok_or_else(|| format!("{answer:?} is of unknown bytes"))?)
                }
            };
            let right = oracle.answer(answer.image);
            let bits = |probs: &Vec<f32>| probs.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            if right.as_ref().map(bits) != Some(bits(&answer.probs)) {
                return Err(format!("{answer:?} should be {right:?}"));
            }
        }
        Ok(())
    }
}
