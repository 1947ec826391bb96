//! An answer is of a version that was asked for, and bit-equal to what the model of its version's digest
//! computes.
//!
//! A request gets one answer at most by construction: `Request::send` consumes the request and returns one
//! response. What this leaves open is that a response is put together from two answers, as after a hedge;
//! such a one has not the bits of as many rows of one model as were asked for.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use roost_protocol::{Digest, Label, ModelName, Target, Version};

use super::{End, Invariant};
use crate::engine::Oracle;
use crate::history::{Answer, Call, Return};

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
            check_target(end, answer)?;
            let digest = versions.get(&(answer.target.model(), answer.version.0));
            let digest = digest.ok_or_else(|| format!("{answer:?} is of a version that nobody pushed"))?;
            let oracle = match oracles.entry(*digest) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => {
                    let oracle = end.models.get(digest).and_then(|model| Oracle::of(model));
                    unknown.insert(oracle.ok_or_else(|| format!("{answer:?} is of unknown bytes"))?)
                }
            };
            let rows: Option<Vec<Vec<f32>>> =
                answer.images.iter().map(|image| oracle.answer(*image)).collect();
            let right = rows.map(|rows| rows.concat());
            let bits = |probs: &Vec<f32>| probs.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            if right.as_ref().map(bits) != Some(bits(&answer.probs)) {
                return Err(format!("{answer:?} should be {right:?}"));
            }
        }
        Ok(())
    }
}

/// Whether the version that answered is one that was asked for. What a split may pick is for
/// [`super::one_pick`] to say.
fn check_target(end: &End, answer: &Answer) -> Result<(), String> {
    let fits = match &answer.target {
        Target::Split(_) => true,
        Target::Pinned(pinned) => pinned.version == answer.version,
        Target::Labelled(_, label) => may_bear(end, answer, label),
    };
    if fits { Ok(()) } else { Err(format!("{answer:?} is of a version that was not asked for")) }
}

/// Whether a label was on the version that answered, at some moment between question and answer: in the view
/// that the client had as it asked, or by a change that the view did not have yet.
fn may_bear(end: &End, answer: &Answer, label: &Label) -> bool {
    let model = answer.target.model();
    let asked_at = answer.asked_at.unwrap_or_default();
    let known = end.views.get(&asked_at).and_then(|view| view.models.get(model)?.labels.get(label).copied());
    let put_later = |version: Version| {
        end.ops.iter().any(|op| {
            let puts = Call::SetLabel { version, label: label.clone() };
            let later = op.epoch.is_none_or(|epoch| epoch > asked_at);
            op.model == *model && op.call == puts && later && op.invoked <= answer.returned
        })
    };
    known == Some(answer.version) || put_later(answer.version)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bytes::Bytes;

    use super::super::fixtures::{answer, at, end, epoch, op, read_versions, traffic, view};
    use super::*;
    use crate::engine::model;
    use crate::history::Op;

    /// Versions 1 and 2 of `alpha` are the models 1 and 2.
    fn world() -> End {
        let models = [1, 2].map(|number| Bytes::from(model(number)));
        let digests = [0, 1].map(|i: usize| Digest::of(&models[i]));
        let ops = vec![read_versions(99, &[("op1-1", digests[0]), ("op1-2", digests[1])])];
        End { ops, models: digests.into_iter().zip(models).collect(), ..end() }
    }

    fn right(number: u64, version: u32) -> Answer {
        let probs = Oracle::of(&model(number)).unwrap().answer(0).unwrap();
        Answer { version: Version(version), probs, ..answer() }
    }

    fn judge(world: &mut End, answer: Answer) -> Result<(), String> {
        world.answers = vec![Arc::new(answer)];
        Answers.judge(world)
    }

    #[test]
    fn an_answer_has_the_bits_of_its_model_for_each_row() {
        let mut world = world();
        judge(&mut world, right(1, 1)).unwrap();
        judge(&mut world, right(1, 2)).unwrap_err();
        judge(&mut world, right(1, 3)).unwrap_err();
        let twice = right(1, 1).probs.repeat(2);
        judge(&mut world, Answer { probs: twice, ..right(1, 1) }).unwrap_err();
        let (first, second) = (right(1, 1).probs, Oracle::of(&model(1)).unwrap().answer(1).unwrap());
        let two =
            Answer { images: vec![0, 1], probs: [first.clone(), second.clone()].concat(), ..right(1, 1) };
        judge(&mut world, two.clone()).unwrap();
        judge(&mut world, Answer { probs: [second, first].concat(), ..two }).unwrap_err();
        judge(&mut world, Answer { probs: Vec::new(), ..right(1, 1) }).unwrap_err();
        let mut probs = right(1, 1).probs;
        probs[3] = f32::from_bits(probs[3].to_bits() ^ 1);
        judge(&mut world, Answer { probs, ..right(1, 1) }).unwrap_err();
    }

    #[test]
    fn a_pin_is_answered_by_the_version_that_it_names() {
        let mut world = world();
        let pinned = |version: u32| format!("alpha@{version}").parse().unwrap();
        judge(&mut world, Answer { target: pinned(1), ..right(1, 1) }).unwrap();
        judge(&mut world, Answer { target: pinned(2), ..right(1, 1) }).unwrap_err();
    }

    #[test]
    fn a_label_is_answered_by_a_version_that_bears_it() {
        let mut world = world();
        let label = Label::new("prod").unwrap();
        let mut seen = view(5, traffic(1, 1), 2, 1);
        let mut labelled = (*seen.models[&answer().target.model().clone()]).clone();
        labelled.labels.insert(label.clone(), Version(1));
        seen.models.insert(answer().target.model().clone(), Arc::new(labelled));
        world.views.insert(epoch(5), Arc::new(seen));
        let of = |number, version| Answer {
            target: "alpha:prod".parse().unwrap(),
            asked_at: Some(epoch(5)),
            ..right(number, version)
        };
        judge(&mut world, of(1, 1)).unwrap();
        judge(&mut world, of(2, 2)).unwrap_err();
        // Put before the client's view, and taken away since.
        let put = |index, invoked| {
            let call = Call::SetLabel { version: Version(2), label: label.clone() };
            Arc::new(Op { epoch: Some(epoch(index)), ..op(invoked, call, Some((invoked, Return::Applied))) })
        };
        world.ops.push(put(4, 3));
        judge(&mut world, of(2, 2)).unwrap_err();
        world.ops.push(put(6, 20));
        judge(&mut world, of(2, 2)).unwrap_err();
        world.ops.push(put(6, 10));
        judge(&mut world, of(2, 2)).unwrap();
        assert_eq!(answer().returned, at(11));
    }
}
