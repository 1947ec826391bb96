//! Who is heard: the leader's soft state, from heartbeats. Pure: reports and time in, soft states out.
//!
//! Soft state is ordered by (term, sequence), a node's reports by (incarnation, sequence). A new leader has heard nobody
//! yet: until it has heard every member or listened for [`SETTLE`], what its predecessor published holds for the others,
//! and its planner proposes nothing.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_protocol::error::reason;
use roost_protocol::limits::MODELS_MAX;
use roost_protocol::messages::control::{Heartbeat, VersionStatistics};
use roost_protocol::view::{Liveness, NodeReport, SoftState, Stage};
use roost_protocol::{Incarnation, NodeId, Term};
use tokio::time::Instant;

/// Three heartbeats missed, and then some (design §4).
pub const SUSPECT_AFTER: Duration = Duration::from_secs(3);
/// How long a new leader listens at most: a node that lives reports every 0.9 s and needs two or three attempts to find the
/// leader that replaced a silent one. Longer than [`SUSPECT_AFTER`], so that what was known of a node that is silent is no
/// longer taken for true when the first plan is made.
pub const SETTLE: Duration = Duration::from_secs(5);

/// The leader's record of who is heard.
#[derive(Debug)]
pub struct Registry {
    since: Instant,
    soft: SoftState,
    heard: BTreeMap<NodeId, Heard>,
    statistics: BTreeMap<NodeId, Vec<VersionStatistics>>,
}

/// The last report of a node.
#[derive(Debug, Clone, Copy)]
struct Heard {
    at: Instant,
    incarnation: Incarnation,
    sequence: u64,
}

/// What became of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It changed the soft state.
    News,
    /// It changed nothing: it says what the last one said, or it came late.
    NoNews,
    /// A later start of its node was heard, whose reports count. So does whoever started on an older copy of the node's data
    /// folder report, for as long as nobody tells it.
    Outlived {
        /// That start.
        known: Incarnation,
    },
}

impl Registry {
    /// A leader that begins to listen in `term`, with what was published before it.
    pub fn new(term: Term, before: &SoftState, now: Instant) -> Self {
        // A leader that could not reach a quorum for a while begins again in its own term.
        let sequence = if before.term == term { before.sequence + 1 } else { 0 };
        let soft = SoftState { term, sequence, settled: false, nodes: before.nodes.clone() };
        Self { since: now, soft, heard: BTreeMap::new(), statistics: BTreeMap::new() }
    }

    /// Takes a report; one that is older than the last of its node is ignored.
    pub fn handle_heartbeat(&mut self, mut heartbeat: Heartbeat, now: Instant) -> Verdict {
        let Heartbeat { node, incarnation, sequence, .. } = heartbeat;
        let known = self.soft.nodes.get(&node);
        let heard = self.heard.get(&node).map(|heard| (heard.incarnation, heard.sequence));
        let last = heard.max(known.map(|known| (known.incarnation, known.sequence)));
        match last {
            Some((known, _)) if incarnation < known => return Verdict::Outlived { known },
            Some(last) if (incarnation, sequence) < last => return Verdict::NoNews,
            Some(_) | None => {}
        }
        self.heard.insert(node, Heard { at: now, incarnation, sequence });
        heartbeat.statistics.truncate(MODELS_MAX);
        self.statistics.insert(node, heartbeat.statistics);
        heartbeat.versions.truncate(MODELS_MAX);
        for version in &mut heartbeat.versions {
            if let Stage::Failed { reason: why } = &mut version.stage {
                *why = reason(&why);
            }
        }
        let same = known.is_some_and(|known| {
            known.liveness == Liveness::Live
                && known.incarnation == incarnation
                && known.versions == heartbeat.versions
        });
        // A report that only says "still here" must not wake every watcher; its sequence is caught up with the next change.
        if same {
            return Verdict::NoNews;
        }
        let versions = heartbeat.versions;
        let report = NodeReport { incarnation, sequence, liveness: Liveness::Live, versions };
        self.soft.nodes.insert(node, report);
        self.soft.sequence += 1;
        Verdict::News
    }

    /// Looks at the time, and at the members: whether each of them is `expected` to report. Returns whether the soft state
    /// changed.
    pub fn handle_tick(&mut self, expected: &BTreeMap<NodeId, bool>, now: Instant) -> bool {
        let before = self.soft.sequence;
        let gone: Vec<NodeId> =
            self.soft.nodes.keys().copied().filter(|node| !expected.contains_key(node)).collect();
        for node in gone {
            self.soft.nodes.remove(&node);
            self.heard.remove(&node);
            self.statistics.remove(&node);
            self.soft.sequence += 1;
        }
        for (node, report) in &mut self.soft.nodes {
            let silent = now.duration_since(self.heard.get(node).map_or(self.since, |heard| heard.at));
            if report.liveness == Liveness::Live && silent >= SUSPECT_AFTER {
                report.liveness = Liveness::Suspect;
                self.soft.sequence += 1;
            }
        }
        let all_heard = || {
            let mut expected = expected.iter().filter(|(_, expected)| **expected);
            expected.all(|(node, _)| self.heard.contains_key(node))
        };
        if !self.soft.settled && (now.duration_since(self.since) >= SETTLE || all_heard()) {
            self.soft.settled = true;
            self.soft.sequence += 1;
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

    /// For how long this leader has listened.
    pub fn listened(&self, now: Instant) -> Duration {
        now.duration_since(self.since)
    }

    /// How long a node has been silent, by this leader's own watch: since it was heard, or since this leader listens.
    pub fn silent(&self, node: NodeId, now: Instant) -> Duration {
        now.duration_since(self.heard.get(&node).map_or(self.since, |heard| heard.at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_protocol::ModelName;
    use roost_protocol::Version;
    use roost_protocol::view::VersionReport;

    fn heartbeat(node: u64, incarnation: u64, sequence: u64) -> Heartbeat {
        Heartbeat {
            node: NodeId(node),
            incarnation: Incarnation(incarnation),
            sequence,
            versions: Vec::new(),
            statistics: Vec::new(),
        }
    }

    /// These members, all expected to report.
    fn members(nodes: &[u64]) -> BTreeMap<NodeId, bool> {
        nodes.iter().map(|node| (NodeId(*node), true)).collect()
    }

    fn liveness(registry: &Registry, node: u64) -> Liveness {
        registry.soft().nodes[&NodeId(node)].liveness
    }

    #[tokio::test(start_paused = true)]
    async fn silence_makes_suspect_and_a_report_live() {
        let start = Instant::now();
        let mut registry = Registry::new(Term(1), &SoftState::default(), start);
        assert_eq!(registry.handle_heartbeat(heartbeat(1, 1, 1), start), Verdict::News);
        assert_eq!(registry.handle_heartbeat(heartbeat(1, 1, 2), start + SUSPECT_AFTER / 2), Verdict::NoNews);
        let later = start + SUSPECT_AFTER / 2 + SUSPECT_AFTER;
        assert!(registry.handle_tick(&members(&[1]), later));
        assert_eq!(liveness(&registry, 1), Liveness::Suspect);
        assert_eq!(registry.handle_heartbeat(heartbeat(1, 1, 3), later), Verdict::News);
        assert_eq!(liveness(&registry, 1), Liveness::Live);
    }

    #[tokio::test(start_paused = true)]
    async fn late_reports_change_nothing_and_are_no_sign_of_life() {
        let start = Instant::now();
        let mut registry = Registry::new(Term(1), &SoftState::default(), start);
        registry.handle_heartbeat(heartbeat(1, 2, 1), start);
        // The same again: it is heard, and the soft state stays at sequence 1 of this node.
        assert_eq!(registry.handle_heartbeat(heartbeat(1, 2, 9), start + SUSPECT_AFTER), Verdict::NoNews);
        let known = Incarnation(2);
        let late =
            [(heartbeat(1, 2, 5), Verdict::NoNews), (heartbeat(1, 1, 99), Verdict::Outlived { known })];
        for (late, verdict) in late {
            assert_eq!(registry.handle_heartbeat(late, start + SUSPECT_AFTER * 2), verdict);
        }
        assert_eq!(registry.silent(NodeId(1), start + SUSPECT_AFTER * 2), SUSPECT_AFTER);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_leader_keeps_what_was_known_until_it_has_listened() {
        let start = Instant::now();
        let mut old = Registry::new(Term(1), &SoftState::default(), start);
        old.handle_heartbeat(heartbeat(1, 1, 1), start);
        old.handle_heartbeat(heartbeat(2, 1, 1), start);
        let mut new = Registry::new(Term(2), old.soft(), start);
        new.handle_heartbeat(heartbeat(1, 1, 2), start + SUSPECT_AFTER);
        new.handle_tick(&members(&[1, 2]), start + SUSPECT_AFTER);
        assert!(!new.soft().settled && new.soft().nodes.contains_key(&NodeId(2)));
        // Whoever is not heard by then is no longer taken for ready when the first plan is made.
        new.handle_tick(&members(&[1, 2]), start + SETTLE);
        assert!(new.soft().settled);
        assert_eq!((liveness(&new, 1), liveness(&new, 2)), (Liveness::Live, Liveness::Suspect));
        assert!(new.handle_tick(&members(&[]), start + SETTLE) && new.soft().nodes.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_has_heard_everyone_waits_no_longer() {
        let start = Instant::now();
        let mut registry = Registry::new(Term(1), &SoftState::default(), start);
        let mut expected = members(&[1, 2]);
        expected.insert(NodeId(3), false);
        registry.handle_heartbeat(heartbeat(1, 1, 1), start);
        registry.handle_tick(&expected, start);
        assert!(!registry.soft().settled);
        registry.handle_heartbeat(heartbeat(2, 1, 1), start);
        registry.handle_tick(&expected, start);
        assert!(registry.soft().settled, "node 3 is out and not waited for");
    }

    #[tokio::test(start_paused = true)]
    async fn a_leader_that_was_cut_off_goes_on_with_later_soft_states_of_its_term() {
        let start = Instant::now();
        let mut before = Registry::new(Term(4), &SoftState::default(), start);
        before.handle_heartbeat(heartbeat(1, 1, 1), start);
        before.handle_tick(&members(&[1]), start);
        let mut after = Registry::new(Term(4), before.soft(), start);
        assert!(after.soft().is_after(before.soft()) && !after.soft().settled);
        let later = Registry::new(Term(5), before.soft(), start);
        assert!(later.soft().is_after(after.soft()));
        assert_eq!(after.handle_heartbeat(heartbeat(2, 1, 1), start), Verdict::News);
        // What the one before published counts, although this one has not heard the node.
        let mut successor = Registry::new(Term(5), &SoftState::default(), start);
        successor.handle_heartbeat(heartbeat(1, 7, 1), start);
        let mut successor = Registry::new(Term(6), successor.soft(), start);
        let outlived = Verdict::Outlived { known: Incarnation(7) };
        assert_eq!(successor.handle_heartbeat(heartbeat(1, 6, 1), start), outlived);
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_node_says_is_cut() {
        let start = Instant::now();
        let mut registry = Registry::new(Term(1), &SoftState::default(), start);
        let report = |version, reason: String| {
            let (model, version) = (ModelName::new("m").unwrap(), Version(version));
            VersionReport { model, version, stage: Stage::Failed { reason }, engine: None }
        };
        let mut versions = vec![report(0, "x".repeat(1 << 20))];
        versions.extend((1..=MODELS_MAX as u32).map(|version| report(version, String::new())));
        registry.handle_heartbeat(Heartbeat { versions, ..heartbeat(1, 1, 1) }, start);
        let kept = &registry.soft().nodes[&NodeId(1)].versions;
        assert_eq!(kept.len(), MODELS_MAX);
        assert!(matches!(&kept[0].stage, Stage::Failed { reason } if reason.len() < 1000));
    }
}
