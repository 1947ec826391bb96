//! Whether a concurrent history could have happened one operation at a time.
//!
//! Wing and Gong's search (JPDC 1993) with Lowe's memory of what was tried (Concurrency: Practice and
//! Experience 2017): an operation may come next if it began before every other that is left had ended. A pair
//! of the operations done and the state that they led to is tried once. An operation without an end may come
//! at any time after its beginning, or never.

use std::collections::HashSet;
use std::fmt::Debug;
use std::hash::Hash;
use std::time::Duration;

/// What a history is checked against.
pub trait Specification {
    /// The state.
    type State: Clone + Eq + Hash + Debug;
    /// An operation with what it returned.
    type Op;

    /// The states that an operation may lead to when it comes next; none when it cannot have returned what it
    /// did.
    fn next(&self, state: &Self::State, op: &Self::Op) -> Vec<Self::State>;

    /// Whether an operation changes no state that it may come in, with what it returned: a read, a refusal.
    fn observes(&self, op: &Self::Op) -> bool;
}

/// An operation and the time that it took.
pub struct Timed<O> {
    /// The operation.
    pub op: O,
    /// When it began.
    pub began: Duration,
    /// When it ended; none when nobody knows.
    pub ended: Option<Duration>,
}

/// How far the best attempt came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stuck<S> {
    /// How many operations fit.
    pub fit: usize,
    /// Operations of which none fits next, by their places in the history.
    pub candidates: Vec<usize>,
    /// The state that they would have to fit.
    pub state: S,
}

/// Why a history was not found to be linearizable.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict<S> {
    /// It is.
    Linearizable,
    /// It is not.
    Not(Stuck<S>),
    /// The search was given up.
    Undecided,
}

/// Searches for an order.
pub fn check<M: Specification>(
    model: &M,
    begin: M::State,
    history: &[Timed<M::Op>],
    steps_max: usize,
) -> Verdict<M::State> {
    let mut order: Vec<usize> = (0..history.len()).collect();
    order.sort_by_key(|i| history[*i].began);
    let mut search = Search {
        model,
        history,
        order,
        done: vec![0; history.len().div_ceil(64)],
        tried: HashSet::new(),
        steps_left: steps_max,
        best: None,
    };
    let ended = history.iter().filter(|timed| timed.ended.is_some()).count();
    match search.run(&begin, ended) {
        Some(true) => Verdict::Linearizable,
        Some(false) => search.best.map_or(Verdict::Linearizable, Verdict::Not),
        None => Verdict::Undecided,
    }
}

struct Search<'a, M: Specification> {
    model: &'a M,
    history: &'a [Timed<M::Op>],
    /// The history by beginnings.
    order: Vec<usize>,
    done: Vec<u64>,
    tried: HashSet<(Vec<u64>, M::State)>,
    steps_left: usize,
    best: Option<Stuck<M::State>>,
}

impl<M: Specification> Search<'_, M> {
    fn is_done(&self, i: usize) -> bool {
        self.done[i / 64] & (1 << (i % 64)) != 0
    }

    fn flip(&mut self, i: usize) {
        self.done[i / 64] ^= 1 << (i % 64);
    }

    /// Whether the `left` operations that ended and are not done fit behind `state`; none when the search was
    /// given up.
    fn run(&mut self, state: &M::State, left: usize) -> Option<bool> {
        if left == 0 {
            return Some(true);
        }
        self.steps_left = self.steps_left.checked_sub(1)?;
        if !self.tried.insert((self.done.clone(), state.clone())) {
            return Some(false);
        }
        let candidates = self.candidates();
        // What never changes anything and fits now is best done now: nothing that follows can mind. A write
        // that happens to change nothing now is another thing: later it may undo what came between.
        let quiet = candidates.iter().copied().find(|i| {
            self.history[*i].ended.is_some()
                && self.model.observes(&self.history[*i].op)
                && self.model.next(state, &self.history[*i].op).as_slice() == [state.clone()]
        });
        if let Some(i) = quiet {
            self.flip(i);
            let result = self.run(state, left - 1);
            self.flip(i);
            return result;
        }
        for i in candidates.iter().copied() {
            let ended = self.history[i].ended.is_some();
            for next in self.model.next(state, &self.history[i].op) {
                // An operation that nobody heard the end of may as well never have happened.
                if !ended && next == *state {
                    continue;
                }
                self.flip(i);
                let result = self.run(&next, left - usize::from(ended));
                self.flip(i);
                if result != Some(false) {
                    return result;
                }
            }
        }
        self.note(state, candidates);
        Some(false)
    }

    /// Operations that may come next.
    fn candidates(&self) -> Vec<usize> {
        let mut first_end = Duration::MAX;
        let mut candidates = Vec::new();
        for i in self.order.iter().copied().filter(|i| !self.is_done(*i)) {
            let timed = &self.history[i];
            if timed.began > first_end {
                break;
            }
            candidates.push(i);
            first_end = first_end.min(timed.ended.unwrap_or(Duration::MAX));
        }
        candidates
    }

    fn note(&mut self, state: &M::State, candidates: Vec<usize>) {
        let fit = self.done.iter().map(|word| word.count_ones() as usize).sum();
        if self.best.as_ref().is_none_or(|best| fit > best.fit) {
            self.best = Some(Stuck { fit, candidates, state: state.clone() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A register: writes of a number, and reads of it.
    struct Register;

    enum Op {
        Write(u32),
        Read(u32),
    }

    impl Specification for Register {
        type State = u32;
        type Op = Op;

        fn next(&self, state: &u32, op: &Op) -> Vec<u32> {
            match op {
                Op::Write(value) => vec![*value],
                Op::Read(value) if value == state => vec![*state],
                Op::Read(_) => Vec::new(),
            }
        }

        fn observes(&self, op: &Op) -> bool {
            matches!(op, Op::Read(_))
        }
    }

    fn check(history: Vec<(Op, u64, Option<u64>)>) -> bool {
        let timed = |(op, began, ended): (Op, u64, Option<u64>)| Timed {
            op,
            began: Duration::from_millis(began),
            ended: ended.map(Duration::from_millis),
        };
        let history: Vec<_> = history.into_iter().map(timed).collect();
        match super::check(&Register, 0, &history, 1_000_000) {
            Verdict::Linearizable => true,
            Verdict::Not(_) => false,
            Verdict::Undecided => panic!("undecided"),
        }
    }

    #[test]
    fn reads_see_what_was_written_before_them() {
        use Op::{Read, Write};
        assert!(check(vec![(Write(1), 0, Some(1)), (Read(1), 2, Some(3))]));
        assert!(!check(vec![(Write(1), 0, Some(1)), (Read(0), 2, Some(3))]));
        // Concurrent: either.
        assert!(check(vec![(Write(1), 0, Some(5)), (Read(0), 2, Some(3))]));
        assert!(check(vec![(Write(1), 0, Some(5)), (Read(1), 2, Some(3))]));
        // Not forth and back.
        assert!(!check(vec![(Write(1), 0, Some(9)), (Read(1), 2, Some(3)), (Read(0), 4, Some(5))]));
    }

    #[test]
    fn a_write_of_what_is_there_may_come_after_another() {
        use Op::{Read, Write};
        let again = |last| vec![(Write(5), 0, Some(1)), (Write(5), 2, Some(9)), (Write(1), 4, Some(6)), last];
        assert!(check(again((Read(5), 10, Some(11)))));
        assert!(check(again((Read(1), 10, Some(11)))));
        assert!(!check(again((Read(0), 10, Some(11)))));
    }

    #[test]
    fn what_has_no_end_may_come_late_or_never() {
        use Op::{Read, Write};
        assert!(check(vec![(Write(1), 0, None), (Read(0), 2, Some(3)), (Read(1), 4, Some(5))]));
        assert!(check(vec![(Write(1), 0, None), (Read(0), 2, Some(3))]));
        assert!(!check(vec![
            (Write(1), 0, None),
            (Read(1), 2, Some(3)),
            (Read(0), 4, Some(5)),
            (Read(1), 6, Some(7))
        ]));
        assert!(!check(vec![(Read(1), 0, Some(1)), (Write(1), 2, None)]));
    }

    #[test]
    fn many_writes_at_once_are_searched_without_trying_each_order() {
        let mut history: Vec<_> = (1..=14).map(|i| (Op::Write(i), 0, Some(100))).collect();
        history.push((Op::Read(7), 101, Some(102)));
        assert!(check(history));
        let mut history: Vec<_> = (1..=14).map(|i| (Op::Write(i), 0, Some(100))).collect();
        history.push((Op::Read(15), 101, Some(102)));
        assert!(!check(history));
    }
}
