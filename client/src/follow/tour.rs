//! Which node to watch next, and after what wait. Pure: the view, the randomness and what happened are given.

use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::Rng;
use roost_protocol::traffic::KeyHash;
use roost_protocol::view::View;

use crate::backoff::{Backoff, Jitter};

/// Which nodes a follower may watch beside its seeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sources {
    /// Coordinators only. For whoever is watched itself: two workers that watched each other would both be
    /// content, and both be cut off from what is committed.
    Coordinators,
    /// Coordinators, then workers. For clients, which nobody watches: they follow as long as any node lives.
    AllNodes,
}

/// The way from node to node.
#[derive(Debug)]
pub(super) struct Tour {
    seeds: Vec<String>,
    sources: Sources,
    /// Orders addresses within their groups, so that many followers spread over the nodes.
    salt: u64,
    rng: ChaCha12Rng,
    /// Where the tour stands.
    last: Option<String>,
    /// The address that was tried last, on the tour or beside it.
    tried: Option<String>,
    /// An address that is known to be ahead, tried next.
    next: Option<String>,
    /// The last address that was tried for that alone. The tour stands where it stood: else a node that is said to be ahead
    /// and is not would lead back to the one behind it on the tour, and from there to itself, for ever.
    beside: Option<String>,
    /// Tries since the last delivery.
    failures: u32,
}

/// What to do next.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// How long to wait.
    pub(super) wait: Duration,
    /// Whom to watch then; nobody when no address is known.
    pub(super) address: Option<String>,
}

impl Tour {
    pub(super) fn new(seeds: Vec<String>, sources: Sources, mut rng: ChaCha12Rng) -> Self {
        let salt = rng.next_u64();
        Self { seeds, sources, salt, rng, last: None, tried: None, next: None, beside: None, failures: 0 }
    }

    /// All addresses in the order of the tour: seeds, coordinators, workers.
    pub(super) fn addresses(&self, view: Option<&View>) -> Vec<String> {
        let mut all: Vec<String> = Vec::new();
        let mut add = |addresses: Vec<&String>| {
            let mut new: Vec<_> = addresses.into_iter().filter(|a| !all.contains(a)).cloned().collect();
            new.sort_by_cached_key(|address| self.place(address));
            new.dedup();
            all.extend(new);
        };
        add(self.seeds.iter().collect());
        if let Some(view) = view {
            add(view.coordinators.values().map(|coordinator| &coordinator.address).collect());
            match self.sources {
                Sources::Coordinators => {}
                Sources::AllNodes => add(view.nodes.values().map(|node| &node.address).collect()),
            }
        }
        all
    }

    fn place(&self, address: &str) -> u64 {
        let mut bytes = self.salt.to_le_bytes().to_vec();
        bytes.extend_from_slice(address.as_bytes());
        KeyHash::of(&bytes).0
    }

    /// The next node: the one after the last on the tour. The first try does not wait; waits grow with each
    /// whole round, so that a few nodes that refuse do not delay the way to one that does not.
    pub(super) fn next(&mut self, view: Option<&View>) -> Step {
        let addresses = self.addresses(view);
        let ahead = self.next.take();
        let wait = match (self.tried.is_some(), &ahead) {
            (false, _) | (true, Some(_)) => Duration::ZERO,
            (true, None) => {
                let round = self.failures / addresses.len().max(1) as u32;
                Backoff::OF_REQUESTS.after(round.saturating_add(1), Jitter::new(self.rng.next_u64()))
            }
        };
        self.failures = self.failures.saturating_add(1);
        if ahead.is_some() {
            (self.beside, self.tried) = (ahead.clone(), ahead.clone());
            return Step { wait, address: ahead };
        }
        let last = self.last.as_ref().and_then(|last| addresses.iter().position(|a| a == last));
        let next = last.map_or(0, |last| (last + 1) % addresses.len());
        let address = addresses.get(next).cloned();
        if self.beside == address {
            self.beside = None;
        }
        // Without any address there is nothing to count, but the wait must not be zero again.
        self.last = Some(address.clone().unwrap_or_default());
        self.tried = self.last.clone();
        Step { wait, address }
    }

    /// The node at `address` greeted, be it the last that was tried or one before: the tour goes on from there, unless it was
    /// tried beside the tour.
    pub(super) fn arrived(&mut self, address: &str) {
        self.tried = Some(address.to_owned());
        if self.beside.as_deref() != Some(address) {
            self.last = Some(address.to_owned());
        }
    }

    /// A watch delivered a state: the next failure is a first one again.
    pub(super) fn delivered(&mut self) {
        self.failures = 0;
    }

    /// Makes `address` the next, without a wait. Only once in a row, so that a node which claims to be ahead
    /// and does not deliver cannot keep the follower.
    pub(super) fn turn_to(&mut self, address: &str) {
        if self.tried.as_deref() != Some(address) {
            self.next = Some(address.to_owned());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rand_chacha::rand_core::SeedableRng;
    use roost_protocol::view::Coordinator;
    use roost_protocol::{ClusterId, Epoch, NodeId, NodeName};

    use super::*;

    fn tour(seeds: &[&str], sources: Sources) -> Tour {
        Tour::new(seeds.iter().map(|s| (*s).to_owned()).collect(), sources, ChaCha12Rng::from_seed([3; 32]))
    }

    fn view(coordinators: &[&str], workers: &[&str]) -> View {
        let coordinator = |(i, address): (usize, &&str)| {
            let name = NodeName::new(&format!("c{i}")).unwrap();
            (NodeId(i as u64), Coordinator { name, address: (*address).to_owned(), voter: true })
        };
        let nodes = workers.iter().enumerate().map(|(i, address)| {
            let id = NodeId(100 + i as u64);
            (id, crate::tests::node(&format!("w{i}"), address))
        });
        View {
            cluster: ClusterId(1),
            epoch: Epoch { generation: 1, index: 1 },
            coordinators: coordinators.iter().enumerate().map(coordinator).collect(),
            nodes: nodes.collect(),
            models: BTreeMap::new(),
        }
    }

    fn steps(tour: &mut Tour, view: Option<&View>, count: usize) -> Vec<String> {
        (0..count).map(|_| tour.next(view).address.unwrap_or_default()).collect()
    }

    #[test]
    fn seeds_then_coordinators_then_workers_each_once_a_round() {
        let view = view(&["a:1", "c:1", "d:1"], &["w:1", "a:1"]);
        let mut all = tour(&["a:1", "b:1", "a:1"], Sources::AllNodes);
        let round = steps(&mut all, Some(&view), 5);
        let mut sorted = round.clone();
        sorted[..2].sort();
        sorted[2..4].sort();
        assert_eq!(sorted, ["a:1", "b:1", "c:1", "d:1", "w:1"]);
        assert_eq!(steps(&mut all, Some(&view), 5), round);
        let mut coordinators = tour(&["a:1"], Sources::Coordinators);
        assert!(!steps(&mut coordinators, Some(&view), 6).contains(&"w:1".to_owned()));
    }

    #[test]
    fn followers_spread_over_equal_seeds() {
        let first = |seed| {
            let seeds = vec!["a:1".to_owned(), "b:1".to_owned(), "c:1".to_owned()];
            Tour::new(seeds, Sources::AllNodes, ChaCha12Rng::from_seed([seed; 32])).next(None).address
        };
        let firsts: std::collections::BTreeSet<_> = (0..32).map(first).collect();
        assert_eq!(firsts.len(), 3);
    }

    #[test]
    fn the_first_try_is_at_once_and_waits_grow_with_rounds() {
        let mut tour = tour(&["a:1", "b:1"], Sources::AllNodes);
        let waits: Vec<_> = (0..20).map(|_| tour.next(None).wait.as_millis()).collect();
        assert_eq!(waits[0], 0);
        assert!(waits[1] >= 12 && waits[1] <= 25, "{waits:?}");
        assert!(waits[19] >= 500 && waits[19] <= 1_000, "{waits:?}");
        tour.delivered();
        assert!(tour.next(None).wait.as_millis() <= 25);
    }

    #[test]
    fn who_is_ahead_is_next_but_not_for_ever() {
        let mut tour = tour(&["a:1"], Sources::AllNodes);
        assert_eq!(steps(&mut tour, None, 1), ["a:1"]);
        tour.turn_to("z:1");
        assert_eq!(tour.next(None), Step { wait: Duration::ZERO, address: Some("z:1".to_owned()) });
        tour.turn_to("z:1");
        assert_eq!(steps(&mut tour, None, 2), ["a:1", "a:1"]);
    }

    #[test]
    fn one_that_is_wrongly_said_to_be_ahead_hides_nobody() {
        let mut tour = tour(&["a:1", "b:1", "c:1", "d:1"], Sources::AllNodes);
        let round = steps(&mut tour, None, 4);
        for liar in ["z:1", round[1].as_str()] {
            let mut reached = Vec::new();
            for _ in 0..12 {
                let Some(address) = tour.next(None).address else { continue };
                // Each greets, is behind, and is left for the one that is said to be ahead.
                tour.arrived(&address);
                tour.turn_to(liar);
                reached.push(address);
            }
            assert!(round.iter().all(|address| reached.contains(address)), "{liar}: {reached:?}");
        }
    }

    #[test]
    fn the_tour_goes_on_from_whoever_greeted() {
        let mut tour = tour(&["a:1", "b:1", "c:1", "d:1"], Sources::AllNodes);
        let round = steps(&mut tour, None, 4);
        // The first of three that were dialled greets, and is lost later.
        steps(&mut tour, None, 3);
        tour.arrived(&round[0]);
        assert_eq!(steps(&mut tour, None, 2), round[1..3]);
    }

    #[test]
    fn without_an_address_it_waits() {
        let mut tour = tour(&[], Sources::AllNodes);
        assert_eq!(tour.next(None).address, None);
        let step = tour.next(None);
        assert!(step.address.is_none() && step.wait >= Duration::from_millis(12));
    }
}
