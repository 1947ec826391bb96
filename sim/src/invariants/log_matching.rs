//! What one coordinator applies at an index, every other applies there, with the same result; and what lies in their logs at
//! an index that was applied is the same entry (Raft dissertation §3.5, §3.6).

use std::collections::BTreeMap;
use std::time::Duration;

use super::{End, Invariant};
use crate::facts::Fact;

/// All coordinators apply the same.
#[derive(Default)]
pub struct LogMatching {
    applied: BTreeMap<u64, String>,
    /// The last index that each process applied.
    last: BTreeMap<String, u64>,
}

impl Invariant for LogMatching {
    fn name(&self) -> &'static str {
        "log matching"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Died => {
                self.last.remove(host);
                Ok(())
            }
            Fact::Applied { index, what } => {
                if let Some(last) = self.last.insert(host.to_owned(), *index)
                    && last >= *index
                {
                    return Err(format!("{host} applied {index} after {last}"));
                }
                let known = self.applied.entry(*index).or_insert_with(|| what.clone());
                if known == what {
                    return Ok(());
                }
                Err(format!("at {index} {host} applied {what}, another {known}"))
            }
            _ => Ok(()),
        }
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        let last = self.applied.keys().next_back().copied().unwrap_or_default();
        let mut entries = BTreeMap::new();
        for remains in end.remains.iter().filter(|remains| !remains.wiped) {
            let Some(Ok(raft)) = &remains.raft else { continue };
            for (index, entry) in raft.log.range(..=last) {
                let (first, known) = entries.entry(*index).or_insert((&remains.node, entry));
                if known != &entry {
                    let node = &remains.node;
                    return Err(format!("at {index} {first} has {known:?}, {node} has {entry:?}"));
                }
            }
        }
        Ok(())
    }
}
