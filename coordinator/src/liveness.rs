//! Who is heard: the leader's soft state, from heartbeats. Pure: reports and time in, soft states out.
//!
//! Soft state is ordered by (term, sequence), a node's reports by (incarnation, sequence). A new leader has heard nobody
//! yet: until it has listened for [`SETTLE`], what its predecessor published still holds for nodes that it has not heard,
//! and its planner proposes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_protocol::messages::control::{Heartbeat, VersionStatistics};
use roost_protocol::view::{Liveness, NodeReport, SoftState};
use roost_protocol::{NodeId, Term};
use tokio::time::Instant;

/// Three heartbeats missed, and then some (design §4).
pub const SUSPECT_AFTER: Duration = Duration::from_secs(3);
/// How long a new leader listens: a node that lives is heard within its heartbeat's interval and one retry.
pub const SETTLE: Duration = Duration::from_secs(3);

/// The leader's record of who is heard.
#[derive(Debug)]
pub struct Registry {
    since: Instant,
    soft: SoftState,
    heard: BTreeMap<NodeId, Instant>,
    statistics: BTreeMap<NodeId, Vec<VersionStatistics>>,
}

impl Registry {
    /// A leader that begins to listen in `term`, with what was published before it.
    pub fn new(term: Term, before: &SoftState, now: Instant) -> Self {
        let soft = SoftState { term, sequence: 0, settled: false, nodes: before.nodes.clone() };
        Self { since: now, soft, heard: BTreeMap::new(), statistics: BTreeMap::new() }
    }

    /// Takes a report. Returns whether the soft state changed; one that is older than the last of its node is ignored.
    pub fn handle_heartbeat(&mut self, heartbeat: Heartbeat, now: Instant) -> bool {
        let order = (heartbeat.incarnation, heartbeat.sequence);
        let known = self.soft.nodes.get(&heartbeat.node);
        if known.is_some_and(|known| order < (known.incarnation, known.sequence)) {
            return false;
        }
        self.heard.insert(heartbeat.node, now);
        self.statistics.insert(heartbeat.node, heartbeat.statistics);
        let same = known.is_some_and(|known| {
            known.liveness == Liveness::Live
                && known.incarnation == heartbeat.incarnation
                && known.versions == heartbeat.versions
        });
        // A report that only says "still here" must not wake every watcher; its sequence is caught up with the next change.
        if !same {
            let report = NodeReport {
                incarnation: heartbeat.incarnation,
                sequence: heartbeat.sequence,
                liveness: Liveness::Live,
                versions: heartbeat.versions,
            };
            self.soft.nodes.insert(heartbeat.node, report);
            self.soft.sequence += 1;
        }
        !same
    }

    /// Looks at the time, and at who is a member. Returns whether the soft state changed.
    pub fn handle_tick(&mut self, members: impl Fn(NodeId) -> bool, now: Instant) -> bool {
        let before = self.soft.sequence;
        if !self.soft.settled && now.duration_since(self.since) >= SETTLE {
            self.soft.settled = true;
            self.soft.sequence += 1;
        }
        let gone: Vec<NodeId> = self.soft.nodes.keys().copied().filter(|node| !members(*node)).collect();
        for node in gone {
            self.soft.nodes.remove(&node);
            self.heard.remove(&node);
            self.statistics.remove(&node);
            self.soft.sequence += 1;
        }
        for (node, report) in &mut self.soft.nodes {
            let silent = now.duration_since(*self.heard.get(node).unwrap_or(&self.since));
            if report.liveness == Liveness::Live && silent >= SUSPECT_AFTER {
                report.liveness = Liveness::Suspect;
                self.soft.sequence += 1;
            }
        }
        self.soft.sequence != before
    }

    /// The soft state.
    pub fn soft(&self) -> &SoftState {
        &self.soft
    }

    /// What the nodes counted.
    pub fn statistics(&self) -> &BTreeMap<NodeId, Vec<VersionStatistics>> {
        &self.statistics
    }

    /// How long a node has been silent, by this leader's own watch: since it was heard, or since this leader listens.
    pub fn silent(&self, node: NodeId, now: Instant) -> Duration {
        now.duration_since(*self.heard.get(&node).unwrap_or(&self.since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_protocol::Incarnation;

    fn heartbeat(node: u64, incarnation: u64, sequence: u64) -> Heartbeat {
        Heartbeat {
            node: NodeId(node),
            incarnation: Incarnation(incarnation),
            sequence,
            versions: Vec::new(),
            statistics: Vec::new(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_makes_suspect_and_a_report_live() {
        let start = Instant::now();
        let mut registry = Registry::new(Term(1), &SoftState::default(), start);
        assert!(registry.handle_heartbeat(heartbeat(1, 1, 1), start));
        assert!(!registry.handle_heartbeat(heartbeat(1, 1, 2), start + SUSPECT_AFTER / 2));
        let later = start + SUSPECT_AFTER / 2 + SUSPECT_AFTER;
        assert!(registry.handle_tick(|_| true, later));
        assert_eq!(registry.soft().nodes[&NodeId(1)].liveness, Liveness::Suspect);
        assert!(registry.handle_heartbeat(heartbeat(1, 1, 3), later));
        assert_eq!(registry.soft().nodes[&NodeId(1)].liveness, Liveness::Live);
        assert!(!registry.handle_heartbeat(heartbeat(1, 0, 9), later), "an earlier process");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_keeps_what_was_known_until_it_has_listened() {
        let start = Instant::now();
        let mut old = Registry::new(Term(1), &SoftState::default(), start);
        old.handle_heartbeat(heartbeat(1, 1, 1), start);
        let mut new = Registry::new(Term(2), old.soft(), start);
        assert!(!new.soft().settled && new.soft().nodes.contains_key(&NodeId(1)));
        new.handle_tick(|_| true, start + SETTLE);
        assert!(new.soft().settled);
        assert_eq!(new.soft().nodes[&NodeId(1)].liveness, Liveness::Suspect);
        assert!(new.handle_tick(|_| false, start + SETTLE) && new.soft().nodes.is_empty());
    }
}
