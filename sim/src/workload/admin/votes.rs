//! Who would vote after a change, and whether convergence is promised then. Pure.

use std::collections::{BTreeMap, BTreeSet};

use roost_protocol::NodeId;
use roost_protocol::messages::control::MemberSummary;

/// Voters that an administrator leaves at least: fewer outlive no death.
const VOTERS_MIN: usize = 3;
/// Voters that it makes at most: as many as coordinators allow.
const VOTERS_MAX: usize = 7;

/// Who would vote: the names of nodes. While a node is replaced by another of its name, both may.
#[derive(Debug)]
pub(super) struct Votes(BTreeMap<NodeId, String>);

impl Votes {
    /// Who votes now.
    pub fn of(members: &[MemberSummary]) -> Self {
        let voters = members.iter().filter(|member| member.voter);
        Self(voters.map(|member| (member.node, member.name.to_string())).collect())
    }

    /// Gives a node a vote.
    pub fn promote(&mut self, node: NodeId, name: &str) {
        self.0.insert(node, name.to_owned());
    }

    /// Lets a node go.
    pub fn remove(&mut self, node: NodeId) {
        self.0.remove(&node);
    }

    /// Whether they are enough, and a quorum of them keeps its data, whatever the `doomed` lose.
    pub fn are_safe(&self, doomed: &BTreeSet<String>) -> bool {
        let lost = self.0.values().filter(|name| doomed.contains(*name)).count();
        (VOTERS_MIN..=VOTERS_MAX).contains(&self.0.len()) && lost <= (self.0.len() - 1) / 2
    }
}

#[cfg(test)]
mod tests {
    use roost_protocol::NodeName;

    use super::*;

    fn members(names: &[&str]) -> Vec<MemberSummary> {
        let member = |(name, id): (&&str, u64)| MemberSummary {
            node: NodeId(id),
            name: NodeName::new(name.trim_start_matches('~')).unwrap(),
            address: format!("{name}:7401"),
            // The others learn.
            voter: !name.starts_with('~'),
            leader: false,
            behind: None,
            heard_ms: None,
        };
        names.iter().zip(1..).map(member).collect()
    }

    #[test]
    fn three_stay_and_a_quorum_keeps_its_data() {
        let check = |names: &[&str], promote: &[u64], remove: &[u64], doomed: &[&str]| {
            let members = members(names);
            let mut votes = Votes::of(&members);
            for id in promote {
                votes.promote(NodeId(*id), members[*id as usize - 1].name.as_str());
            }
            remove.iter().for_each(|id| votes.remove(NodeId(*id)));
            votes.are_safe(&doomed.iter().map(|name| (*name).to_owned()).collect())
        };
        assert!(check(&["a", "b", "c"], &[], &[], &["a"]));
        assert!(!check(&["a", "b", "c"], &[], &[3], &[]));
        assert!(!check(&["a", "b", "c", "~d"], &[], &[3], &[]));
        assert!(check(&["a", "b", "c", "~d"], &[4], &[3], &["a"]));
        assert!(check(&["a", "b", "c", "d"], &[], &[4], &["a"]));
        let five = ["a", "b", "c", "d", "e"];
        assert!(check(&five, &[], &[1], &["a", "b"]));
        assert!(!check(&five, &[], &[5], &["a", "b"]));
        assert!(!check(&five, &[], &[4, 5], &["a", "b"]));
        // The node that it was, and the one that it is.
        assert!(check(&["a", "b", "c", "~a"], &[4], &[1], &["a"]));
        assert!(!check(&["a", "b", "c", "~a"], &[4], &[], &["a"]));
    }
}
