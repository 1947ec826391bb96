//! What happens in a run, as invariants are told of it.
//!
//! Facts come from three sides: from the events that the product itself traces, from the clients of the workload, and from
//! whoever inflicts faults. [`Witness`] shows each to every invariant at once, and keeps the first violation.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roost_protocol::view::Published;

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
    /// A data folder lost its databases while the process was down.
    Wiped,
    /// A model ran a batch.
    Ran {
        /// Rows of the batch.
        rows: u32,
        /// Rows that its manifest allows.
        rows_max: u32,
    },
    /// A client saw a view or a soft state.
    Saw(Published),
    /// An operation on the registry ended.
    Returned(Arc<Op>),
    /// A request for inference was answered.
    Answered(Arc<Answer>),
    /// Faults have ended: from here on everything must converge.
    Healed,
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
    /// The coordinator that began to lead last.
    leader: Option<String>,
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
        match fact {
            Fact::Applied { index, .. } => {
                inner.applied.insert(host.to_owned(), *index);
            }
            Fact::Led { .. } => inner.leader = Some(host.to_owned()),
            Fact::Died => {
                inner.applied.remove(host);
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
        ("roost_coordinator::leader", "leads") => {
            Some(Fact::Led { term: seen.field("term").parse().unwrap_or_default() })
        }
        ("roost_coordinator::raft::machine", "applied") => {
            let what = format!("{} by {}: {}", seen.field("command"), seen.field("by"), seen.field("result"));
            Some(Fact::Applied { index: seen.field("index").parse().unwrap_or_default(), what })
        }
        ("roost_node::worker::hosted", "moved on" | "will be tried again" | "cannot be hosted here") => {
            let to = if message == "cannot be hosted here" { "Failed" } else { seen.field("to") };
            Some(Fact::Moved { version: seen.field("version").to_owned(), to: to.to_owned() })
        }
        ("roost_node::worker::supervisor", "the actor of a version died") => {
            Some(Fact::ActorDied { version: seen.field("version").to_owned() })
        }
        _ => None,
    }
}
