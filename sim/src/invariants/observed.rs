//! Invariants that nothing is told to hold of everything: a finished run has seen each kind of fact that they
//! look at.
//!
//! Most facts are read from the texts of what the product traces. One that is worded anew there would
//! otherwise go unseen, and whatever hangs on it would never be broken again.

use std::collections::BTreeSet;
use std::time::Duration;

use super::{End, Invariant};
use crate::facts::Fact;

/// The kinds of facts that no run can do without.
const KINDS: [&str; 14] = [
    "Led", "Voters", "Applied", "Reached", "Flushed", "Moved", "Loaded", "Admitted", "GaveBack", "Queued",
    "Ran", "Saw", "Returned", "Answered",
];

/// Each kind of fact was seen.
#[derive(Default)]
pub struct Observed(BTreeSet<&'static str>);

impl Invariant for Observed {
    fn name(&self) -> &'static str {
        "what invariants look at was seen"
    }

    fn watch(&mut self, _at: Duration, _host: &str, fact: &Fact) -> Result<(), String> {
        self.0.insert(fact.kind());
        Ok(())
    }

    fn judge(&mut self, _end: &End) -> Result<(), String> {
        let unseen: Vec<&str> = KINDS.into_iter().filter(|kind| !self.0.contains(kind)).collect();
        if unseen.is_empty() { Ok(()) } else { Err(format!("nothing told of {unseen:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use roost_node::environment::Work;
    use roost_protocol::Digest;
    use roost_protocol::view::Published;

    use super::super::fixtures::{answer, at, end, op};
    use super::*;
    use crate::history::Call;

    #[test]
    fn a_kind_that_was_never_seen_is_told() {
        let facts = [
            Fact::Led { term: 1 },
            Fact::Voters { index: 1, sets: Vec::new() },
            Fact::Applied { index: 1, what: String::new() },
            Fact::Reached { index: 1, state: String::new() },
            Fact::Flushed { index: 1 },
            Fact::Moved { version: "alpha@1".to_owned(), to: "Ready".to_owned(), live: 1 },
            Fact::Loaded { expected: Digest::of(b""), actual: Digest::of(b"") },
            Fact::Admitted { rows: 1, bytes: 1 },
            Fact::GaveBack { rows: 1, bytes: 1 },
            Fact::Queued { work: Work::Disk, jobs: 1 },
            Fact::Ran { rows: 1, rows_max: 1 },
            Fact::Saw(Published::default()),
            Fact::Returned(Arc::new(op(1, Call::ReadModel, None))),
            Fact::Answered(Arc::new(answer())),
        ];
        assert_eq!(facts.each_ref().map(Fact::kind), KINDS);
        for left_out in 0..=facts.len() {
            let mut observed = Observed::default();
            let told = facts.iter().enumerate().filter(|(i, _)| *i != left_out);
            told.for_each(|(_, fact)| observed.watch(at(1), "c1", fact).unwrap());
            assert_eq!(observed.judge(&end()).is_ok(), left_out == facts.len());
        }
    }
}
