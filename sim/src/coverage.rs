//! How often what is rare came in a run. Swarm testing leaves most out of any one run, and a change of what
//! is drawn could leave something out of all: whoever runs many seeds demands that each of these came.
//!
//! What strikes is counted where it strikes, in a [`Tally`]; what follows from a fact is counted as the fact
//! is told.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use roost_protocol::NodeId;

use crate::disk::{Counted, Moment};
use crate::facts::{Fact, Loss};
use crate::history::{Call, Op, Return};

/// What comes in some runs alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rare {
    /// A coordinator took another's snapshot in the place of entries.
    SnapshotInstalled,
    /// A log was shortened behind a snapshot.
    LogPurged,
    /// The group of voters grew.
    VotersGrown,
    /// The group of voters shrank.
    VotersShrunk,
    /// A coordinator lost data.
    Wiped(Loss),
    /// A coordinator that lost its folder votes again, as another node.
    VotesAnew,
    /// A worker came back with an empty folder.
    WorkerEmptied,
    /// A process died by a trap.
    Trapped(Counted, Moment),
    /// A bit was read flipped.
    Flipped(Stored),
    /// A read failed.
    ReadFailed,
    /// A write failed.
    WriteFailed,
    /// A sync failed.
    SyncFailed,
    /// A disk was full.
    DiskFull,
    /// A crash left a sector written in part.
    SectorTorn,
    /// A model panicked.
    ModelPanicked,
    /// A packet was lost.
    PacketLost,
    /// A packet arrived twice.
    PacketDoubled,
    /// A promotion was acknowledged.
    Promoted,
    /// An abort was acknowledged.
    Aborted,
    /// An undo was acknowledged.
    Undone,
    /// Stable answered in the place of the version picked.
    FellBack,
}

/// Where bytes lie on a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stored {
    /// In a bundle store.
    Bundles,
    /// In a database.
    Database,
    /// In a small file.
    File,
}

impl Rare {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let traps = [Counted::Writes, Counted::Reads, Counted::Sent, Counted::Received].into_iter();
        let moments = [Moment::Before, Moment::During, Moment::After];
        let traps = traps.flat_map(move |counted| moments.map(|moment| Self::Trapped(counted, moment)));
        let others = [
            Self::SnapshotInstalled,
            Self::LogPurged,
            Self::VotersGrown,
            Self::VotersShrunk,
            Self::Wiped(Loss::Databases),
            Self::Wiped(Loss::Folder),
            Self::VotesAnew,
            Self::WorkerEmptied,
            Self::Flipped(Stored::Bundles),
            Self::Flipped(Stored::Database),
            Self::Flipped(Stored::File),
            Self::ReadFailed,
            Self::WriteFailed,
            Self::SyncFailed,
            Self::DiskFull,
            Self::SectorTorn,
            Self::ModelPanicked,
            Self::PacketLost,
            Self::PacketDoubled,
            Self::Promoted,
            Self::Aborted,
            Self::Undone,
            Self::FellBack,
        ];
        others.into_iter().chain(traps)
    }

    /// What a fact tells of by itself.
    pub fn of(fact: &Fact) -> Option<Self> {
        match fact {
            Fact::Installed => Some(Self::SnapshotInstalled),
            Fact::Purged => Some(Self::LogPurged),
            Fact::Wiped(loss) => Some(Self::Wiped(*loss)),
            Fact::Emptied => Some(Self::WorkerEmptied),
            Fact::Returned(op) => Self::of_op(op),
            Fact::Answered(answer) => answer.fallback.then_some(Self::FellBack),
            _ => None,
        }
    }

    fn of_op(op: &Op) -> Option<Self> {
        let Some((_, Return::Rerouted(_))) = &op.returned else { return None };
        match op.call {
            Call::Promote => Some(Self::Promoted),
            Call::Abort => Some(Self::Aborted),
            Call::Undo => Some(Self::Undone),
            _ => None,
        }
    }
}

/// How often what is rare came.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Coverage(BTreeMap<Rare, u64>);

impl Coverage {
    /// How often this came.
    pub fn of(&self, rare: Rare) -> u64 {
        self.0.get(&rare).copied().unwrap_or_default()
    }

    /// What has not come at all.
    pub fn missing(&self) -> Vec<Rare> {
        Rare::all().filter(|rare| self.of(*rare) == 0).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (rare, times)) in self.0.iter().enumerate() {
            write!(f, "{}{rare:?} {times}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

impl std::ops::AddAssign<&Self> for Coverage {
    fn add_assign(&mut self, other: &Self) {
        for (rare, times) in &other.0 {
            *self.0.entry(*rare).or_default() += times;
        }
    }
}

/// Counts what is rare. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Mutex<Coverage>>);

impl Tally {
    /// It came.
    pub fn add(&self, rare: Rare) {
        self.add_times(rare, 1);
    }

    /// It came so often.
    pub fn add_times(&self, rare: Rare, times: u64) {
        if times > 0 {
            *self.lock().0.entry(rare).or_default() += times;
        }
    }

    /// What came so far.
    pub fn coverage(&self) -> Coverage {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Coverage> {
        // Nothing panics while it is held.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The coordinators that lost their folder and do not vote again yet.
#[derive(Debug, Default)]
pub struct Renewals {
    /// The voters' ids, by the newest view.
    voters: BTreeMap<String, NodeId>,
    /// What each was before.
    former: BTreeMap<String, NodeId>,
}

impl Renewals {
    /// Takes note of a fact on `host`. Returns how many vote again by it.
    pub fn hear(&mut self, host: &str, fact: &Fact) -> u64 {
        match fact {
            Fact::Wiped(Loss::Folder) => {
                if let Some(node) = self.voters.get(host) {
                    self.former.insert(host.to_owned(), *node);
                }
                0
            }
            Fact::Saw(published) => {
                let coordinators = published.view.iter().flat_map(|view| &view.coordinators);
                let mut anew = 0;
                for (node, coordinator) in coordinators.filter(|(_, coordinator)| coordinator.voter) {
                    let name = coordinator.name.as_str();
                    if self.former.get(name).is_some_and(|former| former != node) {
                        self.former.remove(name);
                        anew += 1;
                    }
                    self.voters.insert(name.to_owned(), *node);
                }
                anew
            }
            _ => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use roost_protocol::view::{Coordinator, Published, SoftState};
    use roost_protocol::{NodeName, Revision};

    use super::*;
    use crate::invariants::fixtures::{answer, op, traffic, view};

    #[test]
    fn facts_tell_of_what_is_rare() {
        let returned = |call, returned| Fact::Returned(Arc::new(op(1, call, Some((2, returned)))));
        let rerouted = || Return::Rerouted(Revision(2));
        let answered = |fallback| Fact::Answered(Arc::new(crate::history::Answer { fallback, ..answer() }));
        let check = |fact, expected| assert_eq!(Rare::of(&fact), expected, "{fact:?}");
        check(Fact::Installed, Some(Rare::SnapshotInstalled));
        check(Fact::Purged, Some(Rare::LogPurged));
        check(Fact::Wiped(Loss::Folder), Some(Rare::Wiped(Loss::Folder)));
        check(Fact::Emptied, Some(Rare::WorkerEmptied));
        check(returned(Call::Promote, rerouted()), Some(Rare::Promoted));
        check(returned(Call::Abort, rerouted()), Some(Rare::Aborted));
        check(returned(Call::Undo, rerouted()), Some(Rare::Undone));
        check(returned(Call::Undo, Return::Applied), None);
        check(answered(true), Some(Rare::FellBack));
        check(answered(false), None);
        check(Fact::Converged, None);
    }

    #[test]
    fn what_came_is_added_up_and_what_did_not_is_named() {
        let tally = Tally::default();
        tally.add(Rare::PacketLost);
        tally.clone().add_times(Rare::SectorTorn, 3);
        let mut sum = tally.coverage();
        sum += &tally.coverage();
        assert_eq!((sum.of(Rare::PacketLost), sum.of(Rare::SectorTorn), sum.of(Rare::LogPurged)), (2, 6, 0));
        assert_eq!(sum.to_string(), "SectorTorn 6, PacketLost 2");
        assert_eq!(sum.missing().len(), Rare::all().count() - 2);
        Rare::all().for_each(|rare| tally.add(rare));
        assert_eq!(tally.coverage().missing(), []);
    }

    #[test]
    fn one_that_lost_its_folder_votes_anew_under_another_id() {
        let mut renewals = Renewals::default();
        let saw = |voters: &[(u64, bool)]| {
            let mut view = view(1, traffic(1, 1), 1, 1);
            let name = NodeName::new("c1").unwrap();
            let coordinator = |voter| Coordinator { name: name.clone(), address: String::new(), voter };
            view.coordinators = voters.iter().map(|(id, voter)| (NodeId(*id), coordinator(*voter))).collect();
            Fact::Saw(Published::new(Some(Arc::new(view)), Arc::new(SoftState::default())))
        };
        assert_eq!(renewals.hear("user1", &saw(&[(1, true)])), 0);
        assert_eq!(renewals.hear("c1", &Fact::Wiped(Loss::Databases)), 0);
        assert_eq!(renewals.hear("user1", &saw(&[(1, true), (2, true)])), 0);
        assert_eq!(renewals.hear("user1", &saw(&[(1, true)])), 0);
        assert_eq!(renewals.hear("c1", &Fact::Wiped(Loss::Folder)), 0);
        assert_eq!(renewals.hear("user1", &saw(&[(1, true), (3, false)])), 0);
        assert_eq!(renewals.hear("user1", &saw(&[(3, true)])), 1);
        assert_eq!(renewals.hear("user2", &saw(&[(3, true)])), 0);
    }
}
