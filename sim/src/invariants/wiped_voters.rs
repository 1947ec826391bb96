//! A coordinator whose databases were wiped takes no part in the group: it does not lead, and has no vote and
//! no log. One that lost its whole folder is another node, and may be taken in as such.

use std::collections::BTreeMap;
use std::time::Duration;

use super::{End, Invariant};
use crate::disk::SimDisk;
use crate::facts::{Fact, Loss};
use crate::remains::Standing;

/// A wiped voter takes no part.
pub struct WipedVoters {
    /// The coordinators' disks.
    coordinators: BTreeMap<String, SimDisk>,
    /// Those that were wiped and not taken in as another node since.
    wiped: BTreeMap<String, Since>,
}

/// What has happened to a coordinator since it was wiped.
struct Since {
    /// What it lost.
    loss: Loss,
    /// Its disk's failures before.
    failures: u64,
    /// Its processes that have ended.
    deaths: u32,
}

impl WipedVoters {
    /// The coordinators, by their disks.
    pub fn new(coordinators: BTreeMap<String, SimDisk>) -> Self {
        Self { coordinators, wiped: BTreeMap::new() }
    }

    fn failures(&self, host: &str) -> u64 {
        self.coordinators.get(host).map_or(0, SimDisk::failures)
    }

    /// Whether a fault may be why a database that was made after the wipe cannot be read: its disk failed, or
    /// a process was killed as it made it. The last process is killed for the judgement, when nothing has
    /// written for long.
    fn is_excused(&self, host: &str) -> bool {
        let failures = self.failures(host);
        self.wiped.get(host).is_some_and(|since| failures > since.failures || since.deaths > 1)
    }
}

impl Invariant for WipedVoters {
    fn name(&self) -> &'static str {
        "a wiped voter does not vote"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Wiped(loss) => {
                let since = Since { loss: *loss, failures: self.failures(host), deaths: 0 };
                self.wiped.insert(host.to_owned(), since);
            }
            // Where only its databases are gone it is the node that it was, and is refused.
            Fact::TakenIn if self.wiped.get(host).is_some_and(|since| since.loss == Loss::Folder) => {
                self.wiped.remove(host);
            }
            Fact::Died => {
                if let Some(since) = self.wiped.get_mut(host) {
                    since.deaths += 1;
                }
            }
            Fact::Led { term } if self.wiped.contains_key(host) => {
                return Err(format!("{host} was wiped and not taken in since; it leads in term {term}"));
            }
            _ => {}
        }
        Ok(())
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        for remains in end.remains.iter().filter(|remains| remains.standing == Standing::Wiped) {
            let node = &remains.node;
            match &remains.raft {
                Some(Ok(raft)) if raft.vote.is_some() || !raft.log.is_empty() => {
                    let (entries, vote) = (raft.log.len(), raft.vote);
                    return Err(format!("{node} was wiped; it has {entries} entries and the vote {vote:?}"));
                }
                Some(Err(error)) if !self.is_excused(node) => {
                    return Err(format!("{node} was wiped; what it has since cannot be read: {error}"));
                }
                // One that does not start makes no database.
                Some(Ok(_) | Err(_)) | None => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use roost_node::environment::Files;

    use super::super::fixtures::{at, end, remains};
    use super::*;
    use crate::condition::Conditions;
    use crate::disk::{Casualties, SimFiles};
    use crate::remains::Remains;

    fn wiped(disk: &SimDisk, loss: Loss) -> WipedVoters {
        let mut wiped = WipedVoters::new([("c1".to_owned(), disk.clone())].into());
        wiped.watch(at(1), "c1", &Fact::Led { term: 1 }).unwrap();
        wiped.watch(at(2), "c1", &Fact::Died).unwrap();
        wiped.watch(at(2), "c1", &Fact::Wiped(loss)).unwrap();
        wiped
    }

    fn disk() -> SimDisk {
        SimDisk::new("c1", 1, Casualties::default())
    }

    #[test]
    fn it_leads_only_once_it_was_taken_in_as_another_node() {
        for (loss, is_another) in [(Loss::Folder, true), (Loss::Databases, false)] {
            let mut wiped = wiped(&disk(), loss);
            wiped.watch(at(3), "c2", &Fact::Led { term: 2 }).unwrap();
            wiped.watch(at(4), "c1", &Fact::Led { term: 3 }).unwrap_err();
            wiped.watch(at(5), "c1", &Fact::TakenIn).unwrap();
            assert_eq!(wiped.watch(at(6), "c1", &Fact::Led { term: 4 }).is_ok(), is_another);
        }
    }

    #[test]
    fn it_has_neither_log_nor_vote() {
        let judge = |remains| wiped(&disk(), Loss::Databases).judge(&End { remains: vec![remains], ..end() });
        judge(Remains { standing: Standing::Wiped, ..remains("c1", &[], None) }).unwrap();
        judge(Remains { standing: Standing::Wiped, raft: None, ..remains("c1", &[], None) }).unwrap();
        judge(Remains { standing: Standing::Wiped, ..remains("c1", &[(0, 1)], None) }).unwrap_err();
        judge(remains("c1", &[(0, 1)], None)).unwrap();
    }

    #[test]
    fn a_database_that_cannot_be_read_is_excused_by_a_fault_alone() {
        let torn = || Remains {
            standing: Standing::Wiped,
            raft: Some(Err("torn".to_owned())),
            ..remains("c1", &[], None)
        };
        let disk = disk();
        let mut wiped = wiped(&disk, Loss::Databases);
        wiped.watch(at(9), "c1", &Fact::Died).unwrap();
        let judge = |wiped: &mut WipedVoters| wiped.judge(&End { remains: vec![torn()], ..end() });
        judge(&mut wiped).unwrap_err();
        disk.change_faults(|faults| faults.fail_read = 1.0);
        SimFiles::of(disk.life(), Conditions::default()).read("identity.toml").unwrap_err();
        judge(&mut wiped).unwrap();
        let mut wiped = self::wiped(&disk, Loss::Databases);
        wiped.watch(at(8), "c1", &Fact::Died).unwrap();
        judge(&mut wiped).unwrap_err();
        wiped.watch(at(9), "c1", &Fact::Died).unwrap();
        judge(&mut wiped).unwrap();
    }
}
