//! At the end all coordinators that did not lose their data have the same log, up to the last entry that was applied.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{End, Invariant};
use crate::facts::Fact;

/// All replicas are equal at the end.
#[derive(Default)]
pub struct ReplicasEqual {
    /// The last index that each process applied.
    applied: BTreeMap<String, u64>,
}

impl Invariant for ReplicasEqual {
    fn name(&self) -> &'static str {
        "replicas are equal at the end"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        if let Fact::Applied { index, .. } = fact {
            self.applied.insert(host.to_owned(), *index);
        }
        Ok(())
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        let last = self.applied.values().copied().max().unwrap_or_default();
        for remains in end.remains.iter().filter(|remains| remains.sound) {
            let node = &remains.node;
            let applied = self.applied.get(node).copied().unwrap_or_default();
            if applied != last {
                return Err(format!("{node} has applied {applied}, others {last}"));
            }
            match &remains.raft {
                Some(Ok(raft)) if raft.log.contains_key(&last) => {}
                Some(Ok(_)) => return Err(format!("{node} has no entry {last}")),
                Some(Err(error)) => return Err(format!("what {node} has cannot be read: {error}")),
                None => return Err(format!("{node} has no log")),
            }
        }
        Ok(())
    }
}
