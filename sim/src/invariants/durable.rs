//! What a coordinator told Raft is durable, is: whenever its process ends, its log or its snapshot covers the
//! last index that was acknowledged.
//!
//! Raft counts a follower's acknowledgement towards the commit of an entry, so one that came too early may
//! lose what clients were told of. Here it is found at the first crash behind it, whether or not anybody was
//! told.

use std::collections::BTreeMap;
use std::time::Duration;

use super::Invariant;
use crate::disk::SimDisk;
use crate::facts::Fact;
use crate::remains::{DATABASE, Raft};

/// What was acknowledged to Raft is durable.
pub struct Durable {
    /// The coordinators' disks.
    coordinators: BTreeMap<String, SimDisk>,
    /// The last index that each acknowledged.
    flushed: BTreeMap<String, u64>,
}

impl Durable {
    /// The coordinators, by their disks.
    pub fn new(coordinators: BTreeMap<String, SimDisk>) -> Self {
        Self { coordinators, flushed: BTreeMap::new() }
    }

    /// The disk has decided by now what of the unsynced writes is kept.
    fn check(&self, host: &str) -> Result<(), String> {
        let (Some(disk), Some(flushed)) = (self.coordinators.get(host), self.flushed.get(host)) else {
            return Ok(());
        };
        // A page that was read flipped may have been written back so.
        if disk.flipped(DATABASE).is_some() {
            return Ok(());
        }
        let Some(bytes) = disk.database(DATABASE) else {
            return Err(format!("{host} has acknowledged {flushed} and has no database"));
        };
        match Raft::read(&bytes) {
            Ok(raft) if raft.covers(*flushed) => Ok(()),
            Ok(raft) => {
                let (last, snapshot) = (raft.log.keys().next_back(), raft.snapshot);
                let has = format!("its log ends at {last:?}, its snapshot at {snapshot:?}");
                Err(format!("{host} has acknowledged {flushed}, {has}"))
            }
            Err(error) => Err(format!("{host} has acknowledged {flushed}, which cannot be read: {error}")),
        }
    }
}

impl Invariant for Durable {
    fn name(&self) -> &'static str {
        "what is acknowledged to Raft is durable"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Flushed { index } => {
                let flushed = self.flushed.entry(host.to_owned()).or_default();
                *flushed = (*flushed).max(*index);
            }
            Fact::Truncated { first } => {
                if let Some(flushed) = self.flushed.get_mut(host) {
                    *flushed = (*flushed).min(first.saturating_sub(1));
                }
            }
            Fact::Wiped(_) => {
                self.flushed.remove(host);
            }
            Fact::Died => return self.check(host),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use roost_node::environment::Files;

    use super::super::fixtures::{at, database};
    use super::*;
    use crate::condition::Conditions;
    use crate::disk::{Casualties, SimFiles};
    use crate::facts::Loss;

    /// A coordinator that died with so many entries behind its snapshot.
    fn died(entries: u64, snapshot: Option<u64>) -> (SimDisk, Durable) {
        let disk = SimDisk::new("c1", 1, Casualties::default());
        let file = SimFiles::of(disk.life(), Conditions::default()).database(DATABASE).unwrap();
        file.write(0, &database(entries, snapshot)).unwrap();
        file.sync_data().unwrap();
        disk.crash();
        let durable = Durable::new([("c1".to_owned(), disk.clone())].into());
        (disk, durable)
    }

    #[test]
    fn the_log_or_the_snapshot_covers_what_was_acknowledged() {
        for (entries, snapshot, flushed, holds) in [
            (3, None, 2, true),
            (3, None, 3, false),
            (0, Some(7), 7, true),
            (1, Some(7), 8, true),
            (1, Some(7), 9, false),
        ] {
            let (_, mut durable) = died(entries, snapshot);
            durable.watch(at(1), "c1", &Fact::Flushed { index: flushed }).unwrap();
            durable.watch(at(1), "c2", &Fact::Died).unwrap();
            assert_eq!(durable.watch(at(2), "c1", &Fact::Died).is_ok(), holds, "{entries}, {snapshot:?}");
        }
    }

    #[test]
    fn what_was_truncated_or_wiped_is_asked_of_nobody() {
        let (_, mut durable) = died(3, None);
        let mut tell = |fact: Fact| durable.watch(at(1), "c1", &fact);
        tell(Fact::Flushed { index: 5 }).unwrap();
        tell(Fact::Truncated { first: 3 }).unwrap();
        tell(Fact::Died).unwrap();
        tell(Fact::Flushed { index: 4 }).unwrap();
        tell(Fact::Died).unwrap_err();
        tell(Fact::Wiped(Loss::Databases)).unwrap();
        tell(Fact::Died).unwrap();
    }

    #[test]
    fn a_flip_of_the_database_excuses() {
        let (disk, mut durable) = died(3, None);
        durable.watch(at(1), "c1", &Fact::Flushed { index: 5 }).unwrap();
        durable.watch(at(2), "c1", &Fact::Died).unwrap_err();
        let file = SimFiles::of(disk.life(), Conditions::default()).database(DATABASE).unwrap();
        disk.change_faults(|faults| faults.flip = 1.0);
        file.read(0, &mut [0; 8]).unwrap();
        durable.watch(at(3), "c1", &Fact::Died).unwrap();
    }
}
