//! What happens in a run, as invariants are told of it.
//!
//! Facts come from three sides: from the events that the product itself traces, from the clients of the
//! workload, and from whoever inflicts faults. [`Witness`] shows each to every invariant at once, and keeps
//! the first violation.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roost_node::environment::Work;
use roost_protocol::view::Published;
use roost_protocol::{Digest, Target};

use crate::coverage::{Coverage, Rare, Renewals, Tally};
use crate::history::{Answer, Op};
use crate::invariants::{Invariant, Violation};
use crate::trace;

/// What happens in a run.
#[derive(Debug, Clone)]
pub enum Fact {
    /// A coordinator began to lead in a term.
    Led {
        /// The term.
        term: u64,
    },
    /// A coordinator applied a command.
    Applied {
        /// The log index.
        index: u64,
        /// The command and its result, as text.
        what: String,
    },
    /// A coordinator's state is that of a log index: it applied what leads there, or took a snapshot.
    Reached {
        /// The log index.
        index: u64,
        /// A checksum of the state, as text.
        state: String,
    },
    /// A hosted version came to another stage.
    Moved {
        /// The version, as `model@version`.
        version: String,
        /// The stage's name in the lifecycle.
        to: String,
        /// The executors that serve it.
        live: u64,
    },
    /// The actor of a hosted version died.
    ActorDied {
        /// The version, as `model@version`.
        version: String,
    },
    /// An engine takes a bundle whose bytes were checked.
    Loaded {
        /// The digest that they were checked against.
        expected: Digest,
        /// The digest that they have.
        actual: Digest,
    },
    /// A coordinator told Raft that its log is durable up to an index.
    Flushed {
        /// The log index.
        index: u64,
    },
    /// A coordinator takes away what is behind an index of its log, for another leader's entries.
    Truncated {
        /// The first log index that goes.
        first: u64,
    },
    /// A role of a process gave up; the others go on.
    GaveUp,
    /// A process began.
    Started,
    /// A process ended, however.
    Died,
    /// A coordinator lost data while its process was down.
    Wiped(Loss),
    /// A worker lost its folder while its process was down: it is another node under the same name.
    Emptied,
    /// An administrator asks for a coordinator to be taken in, as the node that it is now.
    TakenIn,
    /// A coordinator applied a membership.
    Voters {
        /// The log index.
        index: u64,
        /// The names of those who vote: two sets while one is being replaced by the other.
        sets: Vec<BTreeSet<String>>,
    },
    /// A coordinator took another's snapshot in the place of the entries that it covers.
    Installed,
    /// A coordinator removes from its log what its snapshot covers.
    Purged,
    /// A model ran a batch.
    Ran {
        /// Rows of the batch.
        rows: u32,
        /// Rows that its manifest allows.
        rows_max: u32,
    },
    /// A worker took a request on, or more rows of one.
    Admitted {
        /// Its rows.
        rows: u64,
        /// Its bytes.
        bytes: u64,
    },
    /// A worker is done with a request.
    GaveBack {
        /// All its rows.
        rows: u64,
        /// All its bytes.
        bytes: u64,
    },
    /// An executor takes up a job.
    Queued {
        /// What it is for.
        work: Work,
        /// That job and those that wait behind it.
        jobs: usize,
    },
    /// A client saw a view or a soft state.
    Saw(Published),
    /// An operation on the registry ended.
    Returned(Arc<Op>),
    /// A request for inference was answered.
    Answered(Arc<Answer>),
    /// A request for inference was given up.
    Unanswered {
        /// For what.
        target: Target,
        /// When it was asked.
        invoked: Duration,
        /// Why there is no answer.
        error: String,
    },
    /// Everything has converged, after faults had ended.
    Converged,
}

/// What a coordinator lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Loss {
    /// Its databases: it is the same node, and has forgotten its votes.
    Databases,
    /// Its whole folder: it is another node.
    Folder,
}

impl Fact {
    /// Its kind's name.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Led { .. } => "Led",
            Self::Applied { .. } => "Applied",
            Self::Reached { .. } => "Reached",
            Self::Moved { .. } => "Moved",
            Self::ActorDied { .. } => "ActorDied",
            Self::Loaded { .. } => "Loaded",
            Self::Flushed { .. } => "Flushed",
            Self::Truncated { .. } => "Truncated",
            Self::GaveUp => "GaveUp",
            Self::Started => "Started",
            Self::Died => "Died",
            Self::Wiped(_) => "Wiped",
            Self::Emptied => "Emptied",
            Self::TakenIn => "TakenIn",
            Self::Voters { .. } => "Voters",
            Self::Installed => "Installed",
            Self::Purged => "Purged",
            Self::Ran { .. } => "Ran",
            Self::Admitted { .. } => "Admitted",
            Self::GaveBack { .. } => "GaveBack",
            Self::Queued { .. } => "Queued",
            Self::Saw(_) => "Saw",
            Self::Returned(_) => "Returned",
            Self::Answered(_) => "Answered",
            Self::Unanswered { .. } => "Unanswered",
            Self::Converged => "Converged",
        }
    }
}

/// Shows facts to the invariants. Cloning shares it.
#[derive(Clone, Default)]
pub struct Witness {
    inner: Arc<Mutex<Inner>>,
    tally: Tally,
}

#[derive(Default)]
struct Inner {
    invariants: Vec<Box<dyn Invariant>>,
    violation: Option<Violation>,
    /// The last index that each coordinator's process applied.
    applied: BTreeMap<String, u64>,
    /// The log index of the last membership of one set, and who votes by it.
    voters: Option<(u64, BTreeSet<String>)>,
    renewals: Renewals,
    /// The coordinators that lost data, and have not come back as another node since.
    wiped: BTreeMap<String, Loss>,
    /// The coordinator that began to lead last.
    leader: Option<String>,
    /// The hosts whose process gave a version or a role up.
    gave_up: BTreeSet<String>,
}

impl std::fmt::Debug for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Witness")
    }
}

impl Witness {
    /// Has further invariants watch from now on.
    pub fn add(&self, invariants: Vec<Box<dyn Invariant>>) {
        self.lock().invariants.extend(invariants);
    }

    /// Something happened on the host that runs.
    pub fn tell(&self, fact: Fact) {
        let host = trace::host();
        self.tell_of(host.as_deref().unwrap_or_default(), &fact);
    }

    /// Something happened on a host.
    pub fn tell_of(&self, host: &str, fact: &Fact) {
        let at = trace::now();
        let mut inner = self.lock();
        if let Some(rare) = Rare::of(fact) {
            self.tally.add(rare);
        }
        let anew = inner.renewals.hear(host, fact);
        self.tally.add_times(Rare::VotesAnew, anew);
        match fact {
            Fact::Reached { index, .. } => {
                inner.applied.insert(host.to_owned(), *index);
            }
            Fact::Led { .. } => inner.leader = Some(host.to_owned()),
            Fact::Died => {
                inner.applied.remove(host);
                inner.gave_up.remove(host);
            }
            Fact::GaveUp => {
                inner.gave_up.insert(host.to_owned());
            }
            Fact::Moved { to, .. } if to == "Failed" => {
                inner.gave_up.insert(host.to_owned());
            }
            Fact::Voters { index, sets } => {
                // While one set is being replaced by another, neither is the group's size.
                if let [voters] = sets.as_slice()
                    && let Some(rare) = inner.vote(*index, voters)
                {
                    self.tally.add(rare);
                }
            }
            Fact::Wiped(loss) => {
                inner.wiped.insert(host.to_owned(), *loss);
            }
            Fact::TakenIn if inner.wiped.get(host) == Some(&Loss::Folder) => {
                inner.wiped.remove(host);
            }
            _ => {}
        }
        if inner.violation.is_some() {
            return;
        }
        let broken = inner.invariants.iter_mut().find_map(|invariant| {
            let what = invariant.watch(at, host, fact).err()?;
            Some(Violation { invariant: invariant.name(), at, what })
        });
        if let Some(violation) = broken {
            inner.break_off(violation);
        }
    }

    /// Breaks the run off over something that is no fact, because it cannot be read.
    pub fn break_off(&self, what: String) {
        let mut inner = self.lock();
        if inner.violation.is_none() {
            let violation = Violation { invariant: "what is traced can be read", at: trace::now(), what };
            inner.break_off(violation);
        }
    }

    /// The first violation so far.
    pub fn violation(&self) -> Option<Violation> {
        self.lock().violation.clone()
    }

    /// Has all invariants judge the end of the run.
    pub fn judge(&self, at: Duration, end: &crate::invariants::End) {
        let mut inner = self.lock();
        let broken = inner.invariants.iter_mut().find_map(|invariant| {
            let what = invariant.judge(end).err()?;
            Some(Violation { invariant: invariant.name(), at, what })
        });
        if let (Some(violation), None) = (broken, &inner.violation) {
            inner.break_off(violation);
        }
    }

    /// Whether a host's process gave a version or a role up.
    pub fn gave_up(&self, host: &str) -> bool {
        self.lock().gave_up.contains(host)
    }

    /// The coordinators that lost data, but for those that an administrator has asked for since as the node
    /// that they are now.
    pub fn wiped(&self) -> BTreeSet<String> {
        self.lock().wiped.keys().cloned().collect()
    }

    /// How often what is rare came.
    pub fn coverage(&self) -> Coverage {
        self.tally.coverage()
    }

    /// Where what is rare is counted.
    pub fn tally(&self) -> Tally {
        self.tally.clone()
    }

    /// Who votes, by the last membership of one set that any coordinator applied; nobody before the first.
    pub fn voters(&self) -> BTreeSet<String> {
        self.lock().voters.as_ref().map(|(_, voters)| voters.clone()).unwrap_or_default()
    }

    /// The coordinator that began to lead last.
    pub fn leader(&self) -> Option<String> {
        self.lock().leader.clone()
    }

    /// The last index that each coordinator's process applied.
    pub fn applied(&self) -> BTreeMap<String, u64> {
        self.lock().applied.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Takes note of who votes; every coordinator applies each membership. Returns how the group changed.
    fn vote(&mut self, index: u64, voters: &BTreeSet<String>) -> Option<Rare> {
        let known = self.voters.as_ref();
        if known.is_some_and(|(last, _)| *last >= index) {
            return None;
        }
        let change = known.and_then(|(_, known)| match voters.len().cmp(&known.len()) {
            Ordering::Less => Some(Rare::VotersShrunk),
            Ordering::Equal => None,
            Ordering::Greater => Some(Rare::VotersGrown),
        });
        self.voters = Some((index, voters.clone()));
        change
    }

    fn break_off(&mut self, violation: Violation) {
        trace::line(format_args!("VIOLATION {violation}"));
        self.violation = Some(violation);
    }
}

/// The fact that an event of the product tells of, if any.
///
/// # Errors
/// When the event lacks a field that the fact is made of, or has no number where there should be one. It was
/// worded anew then, and invariants would see nothing of it.
pub fn fact_of(seen: &trace::Seen<'_>) -> Result<Option<Fact>, String> {
    let message = text(seen, "message").unwrap_or_default();
    Ok(Some(match (seen.target, message) {
        ("roost_coordinator::leader", "leads") => Fact::Led { term: number(seen, "term")? },
        ("roost_coordinator::raft::machine", "applied") => {
            let (command, by, result) = (text(seen, "command")?, text(seen, "by")?, text(seen, "result")?);
            Fact::Applied { index: number(seen, "index")?, what: format!("{command} by {by}: {result}") }
        }
        ("roost_coordinator::raft::machine", "reached") => {
            Fact::Reached { index: number(seen, "index")?, state: text(seen, "state")?.to_owned() }
        }
        ("roost_coordinator::raft::machine", "these vote") => {
            let names = |set: &str| set.split_whitespace().map(str::to_owned).collect();
            let sets = text(seen, "voters")?.split('|').map(names).collect();
            Fact::Voters { index: number(seen, "index")?, sets }
        }
        (
            "roost_coordinator::raft::machine",
            "took a snapshot in the place of the entries that it covers",
        ) => Fact::Installed,
        ("roost_coordinator::raft::log", "is durable") => Fact::Flushed { index: number(seen, "last")? },
        ("roost_coordinator::raft::log", "truncates the log") => {
            Fact::Truncated { first: number(seen, "first")? }
        }
        ("roost_coordinator::raft::log", "purges the log") => Fact::Purged,
        ("roost_node::start", "has given up") => Fact::GaveUp,
        ("roost_node::worker::hosted", "moved on" | "stayed" | "will be tried again") => Fact::Moved {
            version: text(seen, "version")?.to_owned(),
            to: text(seen, "to")?.to_owned(),
            live: number(seen, "live")?,
        },
        ("roost_node::worker::hosted", "cannot be hosted here") => {
            Fact::Moved { version: text(seen, "version")?.to_owned(), to: "Failed".to_owned(), live: 0 }
        }
        ("roost_node::worker::admission", "admitted") => {
            Fact::Admitted { rows: number(seen, "rows")?, bytes: number(seen, "bytes")? }
        }
        ("roost_node::worker::admission", "gave back") => {
            Fact::GaveBack { rows: number(seen, "rows")?, bytes: number(seen, "bytes")? }
        }
        ("roost_node::worker::supervisor", "the actor of a version died") => {
            Fact::ActorDied { version: text(seen, "version")?.to_owned() }
        }
        _ => return Ok(None),
    }))
}

fn text<'a>(seen: &trace::Seen<'a>, field: &str) -> Result<&'a str, String> {
    seen.field(field).ok_or_else(|| format!("{seen:?} has no field {field}"))
}

fn number(seen: &trace::Seen<'_>, field: &str) -> Result<u64, String> {
    text(seen, field)?.parse().map_err(|_| format!("the field {field} of {seen:?} is no number"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn voters(index: u64, sets: &[&str]) -> Fact {
        let names = |set: &&str| set.split(' ').map(str::to_owned).collect();
        Fact::Voters { index, sets: sets.iter().map(names).collect() }
    }

    #[test]
    fn a_group_grows_and_shrinks_by_sets_that_stand_alone() {
        let witness = Witness::default();
        let facts = [
            voters(1, &["c1 c2 c3"]),
            voters(1, &["c1 c2 c3"]),
            voters(5, &["c1 c2 c3", "c1 c2 c3 c4"]),
            voters(6, &["c1 c2 c3 c4"]),
            voters(5, &["c1 c2 c3", "c1 c2 c3 c4"]),
            voters(6, &["c1 c2 c3 c4"]),
            // One in the place of another.
            voters(8, &["c1 c2 c3 c4", "c1 c2 c3 c5"]),
            voters(9, &["c1 c2 c3 c5"]),
            voters(12, &["c1 c2 c5"]),
            voters(9, &["c1 c2 c3 c5"]),
        ];
        facts.iter().for_each(|fact| witness.tell_of("c1", fact));
        let coverage = witness.coverage();
        assert_eq!((coverage.of(Rare::VotersGrown), coverage.of(Rare::VotersShrunk)), (1, 1));
        assert_eq!(witness.voters().into_iter().collect::<Vec<_>>(), ["c1", "c2", "c5"]);
    }

    fn read(target: &str, fields: &[(&'static str, &str)]) -> Result<Option<Fact>, String> {
        let fields: Vec<(&'static str, String)> =
            fields.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        fact_of(&trace::Seen { host: "c1", target, fields: &fields })
    }

    #[test]
    fn an_event_without_what_its_fact_is_made_of_is_an_error() {
        let led = |fields: &[(&'static str, &str)]| read("roost_coordinator::leader", fields);
        let Ok(Some(Fact::Led { term: 3 })) = led(&[("message", "leads"), ("term", "3")]) else {
            panic!("it leads in term 3");
        };
        let missing = led(&[("message", "leads"), ("of_term", "3")]).unwrap_err();
        assert!(missing.contains("no field term"), "{missing}");
        let none = led(&[("message", "leads"), ("term", "T3")]).unwrap_err();
        assert!(none.contains("is no number"), "{none}");
        assert!(led(&[("message", "follows")]).unwrap().is_none());
        assert!(led(&[("term", "3")]).unwrap().is_none());
        let target = "roost_node::worker::hosted";
        read(target, &[("message", "moved on"), ("version", "alpha@1"), ("live", "1")]).unwrap_err();
    }

    #[test]
    fn a_run_is_broken_off_over_what_cannot_be_read() {
        let witness = Witness::default();
        witness.break_off("an event has no field term".to_owned());
        witness.break_off("another".to_owned());
        let violation = witness.violation().unwrap();
        assert_eq!(violation.invariant, "what is traced can be read");
        assert_eq!(violation.what, "an event has no field term");
    }
}
