//! What this client knows of each node's load and health: its own requests in flight there, the last hint of
//! the node, and whether it answers. Pure: time is given.
//!
//! Only what a node is used for *now* depends on this, never which version a key gets.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_protocol::NodeId;
use tokio::time::Instant;

/// A hint older than this says nothing: queues of a few milliseconds fill and empty many times meanwhile.
const HINT_FRESH: Duration = Duration::from_secs(1);
/// How long a node that could not be reached goes to the end of every order. The coordinators take it out of
/// use after three seconds of silence; until then each request that tried it first would lose the time of a
/// dial.
const SUSPECT_FOR: Duration = Duration::from_secs(2);
/// So many attempts must be unanswered before a node owes: one may be given up because a hedge won, and if the
/// next comes after a while, that while is the client's silence and not the node's.
const OWED_MIN: u32 = 3;

/// The nodes, as their answers let this client see them.
#[derive(Debug, Default)]
pub struct Loads {
    nodes: BTreeMap<NodeId, Node>,
}

#[derive(Debug, Default)]
struct Node {
    in_flight: u64,
    /// Requests of others in flight there, and when that was so.
    others: Option<(u64, Instant)>,
    heard: Option<Instant>,
    /// The first attempt since the node was last heard, and how many there were.
    owed: Option<(Instant, u32)>,
    suspect_until: Option<Instant>,
}

impl Loads {
    /// An attempt went to `node`.
    pub fn sent(&mut self, node: NodeId, now: Instant) {
        let node = self.nodes.entry(node).or_default();
        node.in_flight += 1;
        node.owed.get_or_insert((now, 0)).1 += 1;
    }

    /// An attempt there is over, however it ended.
    pub fn ended(&mut self, node: NodeId) {
        if let Some(node) = self.nodes.get_mut(&node) {
            node.in_flight = node.in_flight.saturating_sub(1);
        }
    }

    /// The node answered, be it by a refusal. `in_flight` is its hint: all requests in flight there, this
    /// client's included.
    pub fn heard(&mut self, node: NodeId, in_flight: Option<u32>, now: Instant) {
        let node = self.nodes.entry(node).or_default();
        (node.heard, node.owed) = (Some(now), None);
        node.suspect_until = None;
        if let Some(all) = in_flight {
            // Own requests are counted exactly; only those of others are taken from the hint.
            node.others = Some((u64::from(all).saturating_sub(node.in_flight), now));
        }
    }

    /// The node could not be reached, or was silent past an attempt's time.
    pub fn suspect(&mut self, node: NodeId, now: Instant) {
        self.nodes.entry(node).or_default().suspect_until = Some(now + SUSPECT_FOR);
    }

    /// Requests in flight at `node`: this client's own, and those of others by the last hint while it is
    /// fresh.
    pub fn load(&self, node: NodeId, now: Instant) -> u64 {
        let Some(node) = self.nodes.get(&node) else { return 0 };
        let fresh = |(_, at): &(u64, Instant)| now.saturating_duration_since(*at) < HINT_FRESH;
        node.in_flight + node.others.filter(fresh).map_or(0, |(others, _)| others)
    }

    /// Whether the node could not be reached lately.
    pub fn is_suspect(&self, node: NodeId, now: Instant) -> bool {
        self.nodes.get(&node).and_then(|node| node.suspect_until).is_some_and(|until| now < until)
    }

    /// Whether nothing was heard of the node since `since`.
    pub fn silent_since(&self, node: NodeId, since: Instant) -> bool {
        self.nodes.get(&node).and_then(|node| node.heard).is_none_or(|heard| heard < since)
    }

    /// Since when the node was sent attempts, three at least, and answered none of them, nor any before.
    pub fn owes_since(&self, node: NodeId) -> Option<Instant> {
        let (since, attempts) = self.nodes.get(&node)?.owed?;
        (attempts >= OWED_MIN).then_some(since)
    }

    /// Forgets nodes that are gone and have nothing in flight.
    pub fn keep_only(&mut self, is_known: impl Fn(NodeId) -> bool) {
        self.nodes.retain(|id, node| node.in_flight > 0 || is_known(*id));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);

    #[test]
    fn own_requests_are_not_counted_twice() {
        let (mut loads, now) = (Loads::default(), Instant::now());
        (0..3).for_each(|_| loads.sent(A, now));
        assert_eq!(loads.load(A, now), 3);
        loads.heard(A, Some(10), now);
        loads.ended(A);
        assert_eq!(loads.load(A, now), 2 + 7);
        assert_eq!(loads.load(A, now + HINT_FRESH), 2);
        loads.heard(A, Some(1), now + HINT_FRESH);
        assert_eq!(loads.load(A, now + HINT_FRESH), 2);
    }

    #[test]
    fn suspicion_ends_by_an_answer_or_by_itself() {
        let (mut loads, now) = (Loads::default(), Instant::now());
        loads.suspect(A, now);
        assert!(loads.is_suspect(A, now) && !loads.is_suspect(A, now + SUSPECT_FOR));
        assert!(loads.silent_since(A, now));
        loads.heard(A, None, now);
        assert!(!loads.is_suspect(A, now) && !loads.silent_since(A, now));
        assert!(loads.silent_since(A, now + Duration::from_millis(1)));
    }

    #[test]
    fn a_node_owes_from_the_first_attempt_that_it_leaves_unanswered() {
        let (mut loads, start) = (Loads::default(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!(loads.owes_since(A), None);
        loads.sent(A, at(0));
        loads.heard(A, None, at(5));
        assert_eq!(loads.owes_since(A), None);
        loads.sent(A, at(6));
        loads.ended(A);
        loads.sent(A, at(9_000));
        assert_eq!(loads.owes_since(A), None, "nobody asked it in between");
        loads.sent(A, at(9_001));
        assert_eq!(loads.owes_since(A), Some(at(6)), "who gave up got no answer");
    }

    #[test]
    fn a_node_that_is_gone_is_kept_while_something_is_in_flight() {
        let mut loads = Loads::default();
        loads.sent(A, Instant::now());
        loads.keep_only(|_| false);
        assert_eq!(loads.nodes.len(), 1);
        loads.ended(A);
        loads.keep_only(|_| false);
        assert!(loads.nodes.is_empty());
    }
}
