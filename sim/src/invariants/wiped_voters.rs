//! A coordinator whose databases were wiped takes no part in the group before it is replaced: it has no vote and no
//! log. One that was replaced is another node.

use super::{End, Invariant};

/// A wiped voter takes no part.
#[derive(Default)]
pub struct WipedVoters;

impl Invariant for WipedVoters {
    fn name(&self) -> &'static str {
        "a wiped voter does not vote"
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        for remains in end.remains.iter().filter(|remains| remains.wiped) {
            let Some(Ok(raft)) = &remains.raft else { continue };
            if raft.vote.is_some() || !raft.log.is_empty() {
                let (node, entries) = (&remains.node, raft.log.len());
                return Err(format!(
                    "{node} was wiped; it has {entries} entries and the vote {:?}",
                    raft.vote
                ));
            }
        }
        Ok(())
    }
}
