//! How often what is rare came in a run. Swarm testing leaves most out of any one run, and a change of what
//! is drawn could leave something out of all: whoever runs many seeds demands that each of these came.

use std::collections::BTreeSet;
use std::fmt;

use crate::facts::Fact;

/// How often what is rare came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage {
    /// Coordinators that took another's snapshot in the place of entries.
    pub snapshots: u64,
    /// Logs that were shortened behind a snapshot.
    pub purges: u64,
    /// Groups of voters that grew.
    pub grown: u64,
    /// Groups of voters that shrank.
    pub shrunk: u64,
    /// Workers that came back with an empty folder.
    pub emptied: u64,
    /// The log index of the last membership of one set, and who votes by it.
    voters: Option<(u64, BTreeSet<String>)>,
}

impl Coverage {
    /// Takes note of a fact.
    pub fn hear(&mut self, fact: &Fact) {
        match fact {
            Fact::Installed => self.snapshots += 1,
            Fact::Purged => self.purges += 1,
            Fact::Emptied => self.emptied += 1,
            Fact::Voters { index, sets } => {
                // While one set is being replaced by another, neither is the group's size.
                if let [voters] = sets.as_slice() {
                    self.vote(*index, voters);
                }
            }
            _ => {}
        }
    }

    /// Who votes, by the last membership of one set; nobody before the first.
    pub fn voters(&self) -> BTreeSet<String> {
        self.voters.as_ref().map(|(_, voters)| voters.clone()).unwrap_or_default()
    }

    fn vote(&mut self, index: u64, voters: &BTreeSet<String>) {
        if let Some((last, known)) = &self.voters {
            // Every coordinator applies each.
            if *last >= index {
                return;
            }
            self.grown += u64::from(voters.len() > known.len());
            self.shrunk += u64::from(voters.len() < known.len());
        }
        self.voters = Some((index, voters.clone()));
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { snapshots, purges, grown, shrunk, emptied, voters: _ } = self;
        write!(f, "{snapshots} snapshots installed, {purges} logs purged, ")?;
        write!(f, "{grown} times more and {shrunk} times fewer voters, {emptied} workers emptied")
    }
}

impl std::ops::AddAssign<&Self> for Coverage {
    fn add_assign(&mut self, other: &Self) {
        let Self { snapshots, purges, grown, shrunk, emptied, voters: _ } = other;
        self.snapshots += snapshots;
        self.purges += purges;
        self.grown += grown;
        self.shrunk += shrunk;
        self.emptied += emptied;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(index: u64, sets: &[&str]) -> Fact {
        let names = |set: &&str| set.split(' ').map(str::to_owned).collect();
        Fact::Voters { index, sets: sets.iter().map(names).collect() }
    }

    #[test]
    fn a_group_grows_and_shrinks_by_sets_that_stand_alone() {
        let mut coverage = Coverage::default();
        let facts = [
            voters(1, &["c1 c2 c3"]),
            voters(1, &["c1 c2 c3"]),
            voters(5, &["c1 c2 c3", "c1 c2 c3 c4"]),
            voters(6, &["c1 c2 c3 c4"]),
            voters(5, &["c1 c2 c3", "c1 c2 c3 c4"]),
            voters(6, &["c1 c2 c3 c4"]),
            // One in the place of another.
            voters(8, &["c1 c2 c3 c4", "c1 c2 c3 c5"]),
            voters(9, &["c1 c2 c3 c5"]),
            voters(12, &["c1 c2 c5"]),
            voters(9, &["c1 c2 c3 c5"]),
        ];
        facts.iter().for_each(|fact| coverage.hear(fact));
        assert_eq!((coverage.grown, coverage.shrunk), (1, 1));
        assert_eq!(coverage.voters().into_iter().collect::<Vec<_>>(), ["c1", "c2", "c5"]);
    }

    #[test]
    fn the_rest_is_counted_and_added_up() {
        let mut coverage = Coverage::default();
        let facts = [Fact::Installed, Fact::Purged, Fact::Purged, Fact::Emptied, Fact::Converged];
        facts.iter().for_each(|fact| coverage.hear(fact));
        let mut sum = coverage.clone();
        sum += &coverage;
        assert_eq!((sum.snapshots, sum.purges, sum.emptied), (2, 4, 2));
    }
}
