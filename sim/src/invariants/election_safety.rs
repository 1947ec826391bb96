//! A term has one leader at most (Raft dissertation §3.4).

use std::collections::BTreeMap;
use std::time::Duration;

use super::Invariant;
use crate::facts::Fact;

/// A term has one leader at most.
#[derive(Default)]
pub struct ElectionSafety {
    leaders: BTreeMap<u64, String>,
}

impl Invariant for ElectionSafety {
    fn name(&self) -> &'static str {
        "election safety"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        let Fact::Led { term } = fact else { return Ok(()) };
        let leader = self.leaders.entry(*term).or_insert_with(|| host.to_owned());
        if leader == host { Ok(()) } else { Err(format!("{leader} and {host} both led in term {term}")) }
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::at;
    use super::*;

    #[test]
    fn a_second_leader_of_a_term_is_found() {
        let mut safety = ElectionSafety::default();
        let mut leads = |host, term| safety.watch(at(1), host, &Fact::Led { term });
        leads("c1", 1).unwrap();
        leads("c2", 2).unwrap();
        leads("c1", 3).unwrap();
        leads("c1", 3).unwrap();
        leads("c1", 2).unwrap_err();
    }
}
