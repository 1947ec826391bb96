//! Which coordinator a request to the control plane goes to next, and when to give up. Pure: time, randomness
//! and what was answered are given.
//!
//! A hint at the leader is followed at once, but no coordinator is asked twice in a round, so that two nodes
//! which each take the other for the leader cannot keep a request between them. Between rounds there is a
//! wait with jitter.

use std::time::Duration;

use rand_chacha::rand_core::Rng;
use roost_protocol::ControlError;
use tokio::time::Instant;

use crate::backoff::{Backoff, Jitter};

/// What one coordinator may take in the first round, where it is near. A commit takes milliseconds; one that died is silent, and
/// its successor is elected a second later.
const FIRST_ATTEMPT_MS: u64 = 500;
/// What it may take where it is far: two round trips to dial, one to ask, one in which a quorum that is as far agrees, and half as
/// many again for what is lost on the way. With less, each first round would be in vain.
const FIRST_ATTEMPT_ROUND_TRIPS: u32 = 6;
/// What each further round multiplies that by: a coordinator that is alive and slow must come to its end. Attempts of one
/// request may overlap there, which its id makes harmless.
const ATTEMPT_GROWTH: u32 = 4;
/// What one coordinator may take at most while others are left to ask: it may wait for an election before it answers.
const ATTEMPT_MS_MAX: u64 = 3_000;

/// The search for a coordinator that does what is asked.
#[derive(Debug)]
pub(super) struct Search {
    deadline: Instant,
    attempt_first: Duration,
    attempt_max: Duration,
    leader: Option<String>,
    /// Coordinators that did not answer when they were asked last. The others go ahead of them.
    silent: Vec<String>,
    /// Coordinators that a node named which is none itself.
    named: Vec<String>,
    tried: Vec<String>,
    round: u32,
    last: Option<ControlError>,
    no_quorum: Option<ControlError>,
    /// Whether the leader answered in this round.
    answered: bool,
    /// Whether an attempt ended without a word on whether the change was made.
    is_open: bool,
}

/// What to do next.
#[derive(Debug, PartialEq)]
pub(super) enum Step {
    /// Ask there.
    Try {
        address: String,
        /// How long an answer may take.
        within: Duration,
    },
    /// All were asked; a new round starts after this wait.
    Wait(Duration),
    /// Nothing helps any more.
    GiveUp(ControlError),
}

impl Search {
    /// A search that ends at `deadline`, beginning at the coordinator that led last.
    pub(super) fn new(deadline: Instant, leader: Option<String>) -> Self {
        Self {
            deadline,
            attempt_first: Duration::from_millis(FIRST_ATTEMPT_MS),
            attempt_max: Duration::from_millis(ATTEMPT_MS_MAX),
            leader,
            silent: Vec::new(),
            named: Vec::new(),
            tried: Vec::new(),
            round: 0,
            last: None,
            no_quorum: None,
            answered: false,
            is_open: false,
        }
    }

    /// Lets later attempts take longer than usual, for a change that may be slow by nature.
    pub(super) fn with_attempts_up_to(mut self, attempt: Duration) -> Self {
        self.attempt_max = attempt;
        self
    }

    /// Lets every attempt take so long, for what must not be asked of two coordinators at once.
    pub(super) fn with_attempts_of(mut self, attempt: Duration) -> Self {
        (self.attempt_first, self.attempt_max) = (attempt, attempt);
        self
    }

    /// The next step. `known` are the coordinators that the view or the config names, `round_trip` is the longest that was measured
    /// to nodes of the cluster, zero while none was.
    pub(super) fn next(
        &mut self,
        now: Instant,
        known: &[String],
        round_trip: Duration,
        rng: &mut impl Rng,
    ) -> Step {
        match &self.last {
            Some(error) if !error.retryable() => return Step::GiveUp(error.clone()),
            Some(_) | None => {}
        }
        let left = self.deadline.saturating_duration_since(now);
        if left.is_zero() {
            return Step::GiveUp(self.in_vain());
        }
        let candidates = self.leader.iter().chain(known).chain(&self.named);
        let untried = candidates.filter(|address| !self.tried.contains(*address));
        let next = untried.min_by_key(|address| self.silent.contains(*address)).cloned();
        match next.filter(|_| !self.answered) {
            Some(address) => {
                self.tried.push(address.clone());
                let first = self.attempt_first.max(round_trip.saturating_mul(FIRST_ATTEMPT_ROUND_TRIPS));
                let attempt = first.saturating_mul(ATTEMPT_GROWTH.saturating_pow(self.round));
                Step::Try { address, within: attempt.min(self.attempt_max).min(left) }
            }
            None => {
                self.tried.clear();
                self.answered = false;
                self.round += 1;
                let wait = Backoff::OF_REQUESTS.after(self.round, Jitter::new(rng.next_u64())).min(left);
                Step::Wait(wait)
            }
        }
    }

    /// What to tell when nobody did it in time: what a coordinator said of the group, if one did, for that explains more
    /// than whom the last attempt did not reach.
    fn in_vain(&mut self) -> ControlError {
        match self.no_quorum.take().or_else(|| self.last.take()) {
            None => ControlError::NoQuorum { reason: "no coordinator is known yet".to_owned() },
            Some(error @ (ControlError::Unreachable { .. } | ControlError::NotLeader { .. })) => {
                ControlError::NoQuorum { reason: roost_protocol::error::reason(error) }
            }
            Some(error) => error,
        }
    }

    /// What the coordinator at `address` answered, when it did not do what was asked.
    pub(super) fn failed(&mut self, address: &str, error: ControlError) {
        self.silent.retain(|silent| silent != address);
        if matches!(error, ControlError::Unreachable { .. }) {
            self.silent.push(address.to_owned());
        }
        match &error {
            ControlError::NotLeader { leader: Some(leader) } if leader != address => {
                self.leader = Some(leader.clone());
            }
            ControlError::NotCoordinator { coordinators } => {
                let new = coordinators.iter().filter(|a| !self.named.contains(a)).cloned();
                self.named = new.collect::<Vec<_>>().into_iter().chain(self.named.drain(..)).collect();
                self.named.truncate(NAMED_MAX);
                self.forget(address);
            }
            ControlError::NotLeader { .. }
            | ControlError::NoQuorum { .. }
            | ControlError::Unreachable { .. }
            | ControlError::NoBundle { .. }
            | ControlError::NotReserved { .. } => self.forget(address),
            // The leader itself said it, and may say otherwise the next time: the others would only ask it again.
            ControlError::NotReady { .. } | ControlError::MembersNotReady { .. } => self.answered = true,
            ControlError::Refused(_)
            | ControlError::MembersRefused { .. }
            | ControlError::Outlived { .. }
            | ControlError::Forbidden { .. }
            | ControlError::WrongCluster { .. }
            | ControlError::ForeignCertificate { .. }
            | ControlError::LimitExceeded { .. }
            | ControlError::WrongNode { .. }
            | ControlError::DigestMismatch { .. }
            | ControlError::Malformed { .. }
            | ControlError::Storage { .. } => {}
        }
        if matches!(error, ControlError::NoQuorum { .. }) {
            self.no_quorum = Some(error.clone());
        }
        self.is_open |= leaves_open(&error);
        self.last = Some(error);
    }

    /// Whether an attempt may have made the change although it was not answered so.
    pub(super) fn is_open(&self) -> bool {
        self.is_open
    }

    /// Begins a round anew with another request, after a refusal of the last.
    pub(super) fn begin_anew(&mut self) {
        self.last = None;
        self.tried.clear();
    }

    /// Who leads, as far as was heard.
    pub(super) fn leader(&self) -> Option<&String> {
        self.leader.as_ref()
    }

    fn forget(&mut self, address: &str) {
        if self.leader.as_deref() == Some(address) {
            self.leader = None;
        }
    }
}

/// Whether an error says nothing of what became of the request.
fn leaves_open(error: &ControlError) -> bool {
    match error {
        ControlError::NoQuorum { .. }
        | ControlError::Unreachable { .. }
        | ControlError::Storage { .. }
        | ControlError::Malformed { .. } => true,
        ControlError::Refused(_)
        | ControlError::NotLeader { .. }
        | ControlError::NotCoordinator { .. }
        | ControlError::Forbidden { .. }
        | ControlError::WrongCluster { .. }
        | ControlError::ForeignCertificate { .. }
        | ControlError::WrongNode { .. }
        | ControlError::DigestMismatch { .. }
        | ControlError::NoBundle { .. }
        | ControlError::NotReserved { .. }
        | ControlError::NotReady { .. }
        | ControlError::MembersNotReady { .. }
        | ControlError::MembersRefused { .. }
        | ControlError::Outlived { .. }
        | ControlError::LimitExceeded { .. } => false,
    }
}

/// Coordinators that are remembered from refusals: more than any group has, and a bound on what a refusal can
/// make grow.
const NAMED_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha12Rng;
    use rand_chacha::rand_core::SeedableRng;
    use roost_protocol::CommandError;

    use super::*;

    const NEAR: Duration = Duration::ZERO;

    /// What a coordinator does in these tables.
    #[derive(Clone, Copy)]
    enum Says {
        Leader(&'static str),
        Nobody,
        Gone,
        Not(&'static [&'static str]),
        No,
    }

    fn error(says: Says) -> ControlError {
        match says {
            Says::Leader(address) => ControlError::NotLeader { leader: Some(address.to_owned()) },
            Says::Nobody => ControlError::NoQuorum { reason: "x".to_owned() },
            Says::Gone => ControlError::Unreachable { node: "x".to_owned(), reason: "x".to_owned() },
            Says::Not(who) => {
                ControlError::NotCoordinator { coordinators: who.iter().map(|a| (*a).to_owned()).collect() }
            }
            Says::No => CommandError::NotInitialised.into(),
        }
    }

    /// Runs a search over coordinators that always say the same, and writes down its steps: addresses, `-`
    /// for a wait.
    fn check(leader: Option<&str>, known: &[(&str, Says)], steps: usize, expected: &str) {
        let mut rng = ChaCha12Rng::from_seed([1; 32]);
        let now = Instant::now();
        let mut search = Search::new(now + Duration::from_secs(10), leader.map(str::to_owned));
        let addresses: Vec<String> = known.iter().map(|(address, _)| (*address).to_owned()).collect();
        let listed: Vec<String> = addresses.iter().filter(|a| !a.starts_with('h')).cloned().collect();
        let mut seen = Vec::new();
        for _ in 0..steps {
            match search.next(now, &listed, NEAR, &mut rng) {
                Step::Try { address, .. } => {
                    let says =
                        known.iter().find(|(a, _)| *a == address).map_or(Says::Gone, |(_, says)| *says);
                    search.failed(&address, error(says));
                    seen.push(address);
                }
                Step::Wait(_) => seen.push("-".to_owned()),
                Step::GiveUp(_) => {
                    seen.push("!".to_owned());
                    break;
                }
            }
        }
        assert_eq!(seen.join(" "), expected);
    }

    #[test]
    fn the_way_over_the_coordinators() {
        use Says::{Gone, Leader, No, Nobody, Not};
        // Round after round while nobody can tell.
        check(None, &[("a", Nobody), ("b", Gone)], 6, "a b - a b -");
        // Whoever did not answer goes last in the next, also where another takes it for the leader still.
        check(None, &[("a", Gone), ("b", Nobody), ("c", Nobody)], 8, "a b c - b c a -");
        check(Some("a"), &[("a", Gone), ("b", Leader("a")), ("c", Nobody)], 8, "a b c - b c a -");
        // A hint is followed at once, and kept for the next round.
        check(None, &[("a", Leader("c")), ("b", Nobody), ("c", Nobody)], 5, "a c b - a");
        check(None, &[("a", Leader("h")), ("b", Leader("h"))], 5, "a h b - a");
        // Two that take each other for the leader.
        check(None, &[("a", Leader("b")), ("b", Leader("a"))], 6, "a b - a b -");
        // The one that led last goes first; a dead leader is forgotten.
        check(Some("b"), &[("a", Gone), ("b", Gone)], 5, "b a - a b");
        // A worker names the coordinators.
        check(None, &[("w", Not(&["h1", "h2"])), ("h1", Gone), ("h2", Nobody)], 5, "w h1 h2 - w");
        // What is refused is refused.
        check(None, &[("a", No), ("b", Gone)], 5, "a !");
        check(None, &[], 2, "- -");
    }

    #[test]
    fn a_request_is_open_once_nobody_can_tell_what_became_of_it() {
        use Says::{Gone, Leader, No, Nobody, Not};
        let rows = [(Leader("b"), false), (Not(&["b"]), false), (No, false), (Nobody, true), (Gone, true)];
        for (says, open) in rows {
            let mut search = Search::new(Instant::now(), None);
            search.failed("a", error(says));
            search.failed("a", error(No));
            assert_eq!(search.is_open(), open);
        }
        // A refusal ends the search, unless it begins anew with another request.
        let (now, known) = (Instant::now(), ["a".to_owned()]);
        let mut rng = ChaCha12Rng::from_seed([1; 32]);
        let mut search = Search::new(now + Duration::from_secs(1), None);
        assert!(matches!(search.next(now, &known, NEAR, &mut rng), Step::Try { .. }));
        search.failed("a", error(No));
        assert!(matches!(search.next(now, &known, NEAR, &mut rng), Step::GiveUp(_)));
        search.begin_anew();
        assert!(matches!(search.next(now, &known, NEAR, &mut rng), Step::Try { .. }));
    }

    #[test]
    fn attempts_take_longer_from_round_to_round() {
        let mut rng = ChaCha12Rng::from_seed([1; 32]);
        let (now, known) = (Instant::now(), ["a".to_owned()]);
        let mut attempts_at = |mut search: Search, round_trip: Duration| {
            let mut seen = Vec::new();
            while seen.len() < 4 {
                match search.next(now, &known, round_trip, &mut rng) {
                    Step::Try { within, .. } => seen.push(within.as_millis()),
                    Step::Wait(_) | Step::GiveUp(_) => {}
                }
                search.failed("a", error(Says::Gone));
            }
            seen
        };
        let search = || Search::new(now + Duration::from_secs(10), None);
        // Of a group on the same continent, and of one on the far side of a bad line: the first round is not in vain there.
        assert_eq!(attempts_at(search(), Duration::from_millis(80)), [500, 2_000, 3_000, 3_000]);
        assert_eq!(attempts_at(search(), Duration::from_millis(400)), [2_400, 3_000, 3_000, 3_000]);
        let mut attempts = |search: Search| attempts_at(search, NEAR);
        assert_eq!(attempts(search()), [500, 2_000, 3_000, 3_000]);
        let minute = Duration::from_secs(60);
        assert_eq!(attempts(search().with_attempts_up_to(minute)), [500, 2_000, 8_000, 10_000]);
        assert_eq!(attempts(search().with_attempts_of(minute)), [10_000; 4]);
    }

    #[test]
    fn the_deadline_ends_it_with_the_last_error() {
        let mut rng = ChaCha12Rng::from_seed([1; 32]);
        let now = Instant::now();
        let mut search = Search::new(now + Duration::from_secs(1), None);
        let known = ["a".to_owned()];
        let step = search.next(now, &known, NEAR, &mut rng);
        assert_eq!(step, Step::Try { address: "a".to_owned(), within: Duration::from_millis(500) });
        search.failed("a", error(Says::Gone));
        let Step::Wait(wait) = search.next(now + Duration::from_millis(990), &known, NEAR, &mut rng) else {
            panic!("no wait after a whole round");
        };
        assert!(wait <= Duration::from_millis(10));
        let end = search.next(now + Duration::from_secs(1), &known, NEAR, &mut rng);
        let reason = error(Says::Gone).to_string();
        assert_eq!(end, Step::GiveUp(ControlError::NoQuorum { reason }), "what it means to whoever asked");
        search.failed("a", error(Says::Nobody));
        search.failed("b", error(Says::Gone));
        let end = search.next(now + Duration::from_secs(1), &known, NEAR, &mut rng);
        assert_eq!(end, Step::GiveUp(error(Says::Nobody)), "a coordinator's word says more");
    }
}
