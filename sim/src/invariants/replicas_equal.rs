//! At the end all coordinators that did not lose their data have come to the last state that any has come to,
//! and have on their disks what leads there. That the states and the logs are equal is for
//! [`super::log_matching`] to say.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{End, Invariant};
use crate::facts::Fact;
use crate::remains::Standing;

/// All replicas are equal at the end.
#[derive(Default)]
pub struct ReplicasEqual {
    /// The index of the state that each process came to last.
    reached: BTreeMap<String, u64>,
}

impl Invariant for ReplicasEqual {
    fn name(&self) -> &'static str {
        "replicas are equal at the end"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Reached { index, .. } => {
                self.reached.insert(host.to_owned(), *index);
            }
            // What its last process came to: at the end of a run all are killed ahead of the judgement.
            Fact::Started => {
                self.reached.remove(host);
            }
            _ => {}
        }
        Ok(())
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        let last = self.reached.values().copied().max().unwrap_or_default();
        for remains in end.remains.iter().filter(|remains| remains.standing == Standing::Sound) {
            let node = &remains.node;
            let reached = self.reached.get(node).copied().unwrap_or_default();
            if reached != last {
                return Err(format!("{node} has come to {reached}, others to {last}"));
            }
            match &remains.raft {
                Some(Ok(raft)) if raft.covers(last) => {}
                Some(Ok(raft)) => {
                    let (first, end) = (raft.log.keys().next(), raft.log.keys().next_back());
                    let (count, snapshot) = (raft.log.len(), raft.snapshot);
                    return Err(format!(
                        "{node} lacks some of {last}: {count} entries from {first:?} to {end:?}, \
                         a snapshot of {snapshot:?}"
                    ));
                }
                Some(Err(error)) => return Err(format!("what {node} has cannot be read: {error}")),
                None => return Err(format!("{node} has no log")),
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{at, end, remains};
    use super::*;
    use crate::remains::Remains;

    /// All have come to index 3, but for those that are named with another.
    fn judge(remains: Vec<Remains>, others: &[(&str, u64)]) -> Result<(), String> {
        let mut equal = ReplicasEqual::default();
        let all = remains.iter().map(|remains| (remains.node.as_str(), 3)).chain(others.iter().copied());
        for (host, index) in all.collect::<Vec<_>>() {
            equal.watch(at(1), host, &Fact::Reached { index, state: String::new() }).unwrap();
        }
        equal.watch(at(2), "c1", &Fact::Died).unwrap();
        equal.judge(&End { remains, ..end() })
    }

    #[test]
    fn sound_coordinators_have_come_to_the_last_state() {
        let whole = || remains("c1", &[(0, 1), (1, 1), (2, 1), (3, 1)], None);
        judge(vec![whole()], &[]).unwrap();
        judge(vec![whole()], &[("c2", 4)]).unwrap_err();
        judge(vec![whole()], &[("c1", 2), ("c2", 3)]).unwrap_err();
        judge(vec![Remains { standing: Standing::Other, ..whole() }], &[("c2", 4)]).unwrap();
        judge(vec![Remains { raft: None, ..whole() }], &[]).unwrap_err();
        judge(vec![Remains { raft: Some(Err("torn".to_owned())), ..whole() }], &[]).unwrap_err();
    }

    #[test]
    fn a_log_has_no_gaps_but_what_a_snapshot_covers() {
        let check = |log, snapshot| judge(vec![remains("c1", log, snapshot)], &[]);
        check(&[], None).unwrap_err();
        check(&[(0, 1), (1, 1), (2, 1)], None).unwrap_err();
        check(&[(1, 1), (2, 1), (3, 1)], None).unwrap_err();
        check(&[(0, 1), (1, 1), (3, 1)], None).unwrap_err();
        check(&[(2, 1), (3, 1)], Some(1)).unwrap();
        check(&[(1, 1), (2, 1), (3, 1)], Some(2)).unwrap();
        check(&[(3, 1)], Some(1)).unwrap_err();
        check(&[], Some(3)).unwrap();
        check(&[(4, 1)], Some(3)).unwrap();
        check(&[], Some(2)).unwrap_err();
        check(&[(5, 1)], Some(3)).unwrap_err();
    }
}
