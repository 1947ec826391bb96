//! What happens in a run, as invariants are told of it.
//!
//! Facts come from three sides: from the events that the product itself traces, from the clients of the
//! workload, and from whoever inflicts faults. [`Witness`] shows each to every invariant at once, and keeps
//! the first violation.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roost_node::environment::Work;
use roost_protocol::Target;
use roost_protocol::view::Published;

use crate::coverage::Coverage;
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
    },
    /// The actor of a hosted version died.
    ActorDied {
        /// The version, as `model@version`.
        version: String,
    },
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
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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
pub struct Witness(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    invariants: Vec<Box<dyn Invariant>>,
    violation: Option<Violation>,
    /// The last index that each coordinator's process applied.
    applied: BTreeMap<String, u64>,
    coverage: Coverage,
    /// The coordinators that lost data, and have not come back as another node since.
    wiped: BTreeMap<String, Loss>,
    /// The coordinator that began to lead last.
    leader: Option<String>,
    /// The hosts whose process gave a version up.
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
        inner.coverage.hear(fact);
        match fact {
            Fact::Reached { index, .. } => {
                inner.applied.insert(host.to_owned(), *index);
            }
            Fact::Led { .. } => inner.leader = Some(host.to_owned()),
            Fact::Died => {
                inner.applied.remove(host);
                inner.gave_up.remove(host);
            }
            Fact::Moved { to, .. } if to == "Failed" => {
                inner.gave_up.insert(host.to_owned());
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

    /// Whether a host's process gave a version up.
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
        self.lock().coverage.clone()
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
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn break_off(&mut self, violation: Violation) {
        trace::line(format_args!("VIOLATION {violation}"));
        self.violation = Some(violation);
    }
}

/// The fact that an event of the product tells of, if any.
pub fn fact_of(seen: &trace::Seen<'_>) -> Option<Fact> {
    let message = seen.field("message");
    match (seen.target, message) {
        ("roost_coordinator::leader", "leads") => Some(Fact::Led { term: number(seen, "term") }),
        ("roost_coordinator::raft::machine", "applied") => {
            let what = format!("{} by {}: {}", seen.field("command"), seen.field("by"), seen.field("result"));
            Some(Fact::Applied { index: number(seen, "index"), what })
        }
        ("roost_coordinator::raft::machine", "reached") => {
            let state = seen.field("state").to_owned();
            Some(Fact::Reached { index: number(seen, "index"), state })
        }
        ("roost_coordinator::raft::machine", "these vote") => {
            let names = |set: &str| set.split_whitespace().map(str::to_owned).collect();
            let sets = seen.field("voters").split('|').map(names).collect();
            Some(Fact::Voters { index: number(seen, "index"), sets })
        }
        (
            "roost_coordinator::raft::machine",
            "took a snapshot in the place of the entries that it covers",
        ) => Some(Fact::Installed),
        ("roost_coordinator::raft::log", "purges the log") => Some(Fact::Purged),
        ("roost_node::worker::hosted", "moved on" | "will be tried again" | "cannot be hosted here") => {
            let to = if message == "cannot be hosted here" { "Failed" } else { seen.field("to") };
            Some(Fact::Moved { version: seen.field("version").to_owned(), to: to.to_owned() })
        }
        ("roost_node::worker::admission", "admitted" | "gave back") => {
            let (rows, bytes) = (number(seen, "rows"), number(seen, "bytes"));
            let admitted = message == "admitted";
            Some(if admitted { Fact::Admitted { rows, bytes } } else { Fact::GaveBack { rows, bytes } })
        }
        ("roost_node::worker::supervisor", "the actor of a version died") => {
            Some(Fact::ActorDied { version: seen.field("version").to_owned() })
        }
        _ => None,
    }
}

/// A field that is a number; zero where it is none, which no invariant takes for a good value for long.
fn number(seen: &trace::Seen<'_>, field: &str) -> u64 {
    seen.field(field).parse().unwrap_or_default()
}
