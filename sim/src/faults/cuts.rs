//! Which ways between hosts are cut, and by what. Pure.
//!
//! Partitions overlap: a way is open again once the last of those that cut it has ended, whichever began
//! first.

use std::collections::{BTreeMap, BTreeSet};

/// A partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct PartitionId(u64);

/// The way of packets from one host to another.
pub type Way = (String, String);

/// The partitions that there are.
#[derive(Debug, Default)]
pub struct Cuts {
    begun: u64,
    cut: BTreeMap<Way, BTreeSet<PartitionId>>,
}

impl Cuts {
    /// Begins a partition that cuts these ways. Returns it, and those of them that were open.
    pub fn begin(&mut self, ways: impl IntoIterator<Item = Way>) -> (PartitionId, Vec<Way>) {
        let id = PartitionId(self.begun);
        self.begun += 1;
        let mut were_open = Vec::new();
        for way in ways {
            let by = self.cut.entry(way.clone()).or_default();
            if by.is_empty() {
                were_open.push(way);
            }
            by.insert(id);
        }
        (id, were_open)
    }

    /// Ends a partition. Returns the ways that are open again.
    pub fn end(&mut self, id: PartitionId) -> Vec<Way> {
        let mut opened = Vec::new();
        self.cut.retain(|way, by| {
            by.remove(&id);
            if by.is_empty() {
                opened.push(way.clone());
            }
            !by.is_empty()
        });
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ways(named: &[&str]) -> Vec<Way> {
        let way = |named: &&str| named.split_once('>').map(|(a, b)| (a.to_owned(), b.to_owned()));
        named.iter().filter_map(way).collect()
    }

    #[test]
    fn a_way_opens_when_the_last_partition_that_cuts_it_ends() {
        let mut cuts = Cuts::default();
        let (first, cut) = cuts.begin(ways(&["a>b", "b>a"]));
        assert_eq!(cut, ways(&["a>b", "b>a"]));
        let (second, cut) = cuts.begin(ways(&["b>a", "a>c", "b>a"]));
        assert_eq!(cut, ways(&["a>c"]));
        assert_eq!(cuts.end(first), ways(&["a>b"]));
        let (third, cut) = cuts.begin(ways(&["a>b", "b>a"]));
        assert_eq!(cut, ways(&["a>b"]));
        assert_eq!(cuts.end(second), ways(&["a>c"]));
        assert_eq!(cuts.end(third), ways(&["a>b", "b>a"]));
        assert_eq!(cuts.end(third), []);
    }
}
