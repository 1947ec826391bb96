//! What one coordinator applies at an index, every other applies there, with the same result; and what lies
//! in their logs at an index that was applied is the same entry (Raft dissertation §3.5, §3.6). So are their
//! states of an index, be it that the one applied all entries and the other took a snapshot.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{End, Invariant};
use crate::facts::Fact;
use crate::remains::Standing;

/// All coordinators apply the same.
#[derive(Default)]
pub struct LogMatching {
    applied: BTreeMap<u64, String>,
    /// Who came to the state of an index first, and its checksum.
    states: BTreeMap<u64, (String, String)>,
    /// The last index that each process applied.
    last: BTreeMap<String, u64>,
    /// The last index that each coordinator ever came to.
    reached: BTreeMap<String, u64>,
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Died => {
                self.last.remove(host);
                Ok(())
            }
            Fact::Applied { index, what } => {
                if let Some(last) = self.last.insert(host.to_owned(), *index)
                    && last >= *index
                {
                    return Err(format!("{host} applied {index} after {last}"));
                }
                let known = self.applied.entry(*index).or_insert_with(|| what.clone());
                if known == what {
                    return Ok(());
                }
                Err(format!("at {index} {host} applied {what}, another {known}"))
            }
            Fact::Reached { index, state } => {
                if let Some(last) = self.last.insert(host.to_owned(), *index)
                    && last > *index
                {
                    return Err(format!("{host} went from {last} back to {index}"));
                }
                let reached = self.reached.entry(host.to_owned()).or_default();
                *reached = (*reached).max(*index);
                let known = self.states.entry(*index).or_insert_with(|| (host.to_owned(), state.clone()));
                if known.1 == *state {
                    return Ok(());
                }
                let (other, theirs) = known;
                Err(format!("at {index} {host} has the state {state}, {other} {theirs}"))
            }
            _ => Ok(()),
        }
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        let last = self.states.keys().next_back().copied().unwrap_or_default();
        let mut entries = BTreeMap::new();
        for remains in end.remains.iter().filter(|remains| remains.standing != Standing::Wiped) {
            let Some(Ok(raft)) = &remains.raft else { continue };
            // Nobody mends the end of a log whose coordinator is no member any more; what it applied holds.
            let own = self.reached.get(&remains.node).copied().unwrap_or_default();
            let until = if remains.standing == Standing::Sound { last } else { own };
            for (index, entry) in raft.log.range(..=until) {
                let (first, known) = entries.entry(*index).or_insert((&remains.node, entry));
                if known != &entry {
                    let node = &remains.node;
                    return Err(format!("at {index} {first} has {known:?}, {node} has {entry:?}"));
                }
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

    fn applied(index: u64, what: &str) -> Fact {
        Fact::Applied { index, what: what.to_owned() }
    }

    fn reached(index: u64, state: &str) -> Fact {
        Fact::Reached { index, state: state.to_owned() }
    }

    #[test]
    fn all_apply_the_same_in_order() {
        let mut matching = LogMatching::default();
        let mut tell = |host: &str, fact: Fact| matching.watch(at(1), host, &fact);
        tell("c1", applied(1, "a")).unwrap();
        tell("c1", reached(1, "x")).unwrap();
        tell("c1", applied(3, "b")).unwrap();
        tell("c1", applied(3, "b")).unwrap_err();
        tell("c1", reached(4, "y")).unwrap();
        tell("c1", reached(3, "y")).unwrap_err();
        tell("c2", applied(1, "other")).unwrap_err();
        // From a snapshot, without the entries.
        tell("c2", reached(4, "y")).unwrap();
        tell("c2", applied(4, "b")).unwrap_err();
        tell("c2", reached(5, "z")).unwrap();
        tell("c1", reached(5, "other")).unwrap_err();
        tell("c1", Fact::Died).unwrap();
        tell("c1", applied(1, "a")).unwrap();
    }

    #[test]
    fn entries_that_were_applied_are_the_same_in_all_logs() {
        let mut matching = LogMatching::default();
        matching.watch(at(1), "c1", &reached(3, "x")).unwrap();
        let mut judge = |c1, c2| matching.judge(&End { remains: vec![c1, c2], ..end() });
        judge(remains("c1", &[(1, 1), (2, 1), (3, 2)], None), remains("c2", &[(3, 2), (4, 2)], Some(2)))
            .unwrap();
        judge(remains("c1", &[(1, 1), (2, 1), (3, 2)], None), remains("c2", &[(3, 1)], Some(2))).unwrap_err();
        // That of one that is no member ends as it ended when it was let go.
        let former = |log| Remains { standing: Standing::Other, ..remains("c2", log, Some(2)) };
        judge(remains("c1", &[(3, 2)], None), former(&[(3, 1)])).unwrap();
        matching.watch(at(1), "c2", &reached(3, "x")).unwrap();
        let mut judge = |c1, c2| matching.judge(&End { remains: vec![c1, c2], ..end() });
        judge(remains("c1", &[(3, 2)], None), former(&[(3, 1)])).unwrap_err();
        // What was never applied may differ.
        judge(remains("c1", &[(3, 2), (4, 2)], Some(2)), remains("c2", &[(3, 2), (4, 3)], Some(2))).unwrap();
    }
}
