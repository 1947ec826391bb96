//! What is bounded stays within its bounds: what workers take on, what waits for executors, rows of a batch,
//! a model's history.
//!
//! Admission is not believed: what each request takes and gives back is added up here, and at the end nothing
//! is left.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_node::environment::Work;
use roost_protocol::limits::{ROLLOUT_HISTORY_MAX, VERSIONS_MAX};

use super::{End, Invariant};
use crate::facts::Fact;
use crate::history::Return;

/// Jobs that an executor of models has at once: a session travels with its job and back, so there is one.
const COMPUTE_JOBS_MAX: usize = 1;
/// Jobs that a coordinator's disk has at once: Raft reads for each other coordinator and to apply, keeps a
/// vote and a snapshot, and appends what is proposed, of which the clients of a world have few under way. Six
/// were seen in forty worlds.
const DISK_JOBS_MAX: usize = 32;

/// What a worker takes on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rows of all requests together.
    pub rows_max: u64,
    /// Bytes of all requests together.
    pub bytes_max: u64,
}

/// Bounds hold.
pub struct Queues {
    bounds: Bounds,
    /// The rows and bytes that the last process of each host has taken on.
    in_flight: BTreeMap<String, (u64, u64)>,
}

impl Queues {
    /// Workers have these bounds.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, in_flight: BTreeMap::new() }
    }
}

impl Invariant for Queues {
    fn name(&self) -> &'static str {
        "queues stay within their limits"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            // Only now is what the last process took on no more: at the end of a run all are killed ahead of
            // the judgement.
            Fact::Started => {
                self.in_flight.remove(host);
                Ok(())
            }
            Fact::Admitted { rows, bytes } => {
                let in_flight = self.in_flight.entry(host.to_owned()).or_default();
                *in_flight = (in_flight.0 + rows, in_flight.1 + bytes);
                let Bounds { rows_max, bytes_max } = self.bounds;
                if in_flight.0 <= rows_max && in_flight.1 <= bytes_max {
                    return Ok(());
                }
                Err(format!(
                    "{host} took {in_flight:?} rows and bytes on; {:?} are allowed",
                    (rows_max, bytes_max)
                ))
            }
            Fact::GaveBack { rows, bytes } => {
                let in_flight = self.in_flight.entry(host.to_owned()).or_default();
                let left = (in_flight.0.checked_sub(*rows), in_flight.1.checked_sub(*bytes));
                let (Some(rows_left), Some(bytes_left)) = left else {
                    return Err(format!("{host} gave {rows} rows and {bytes} bytes back of {in_flight:?}"));
                };
                *in_flight = (rows_left, bytes_left);
                Ok(())
            }
            Fact::Queued { work, jobs } => {
                let jobs_max = match work {
                    Work::Compute => COMPUTE_JOBS_MAX,
                    Work::Disk => DISK_JOBS_MAX,
                };
                if *jobs <= jobs_max {
                    return Ok(());
                }
                Err(format!("an executor of {host} has {jobs} jobs of {work:?}, {jobs_max} are allowed"))
            }
            Fact::Ran { rows, rows_max } if rows > rows_max => {
                Err(format!("{host} ran a batch of {rows} rows, {rows_max} are allowed"))
            }
            _ => Ok(()),
        }
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        if let Some((host, left)) = self.in_flight.iter().find(|(_, left)| **left != (0, 0)) {
            return Err(format!("{host} holds {left:?} rows and bytes for nobody"));
        }
        for op in &end.ops {
            match &op.returned {
                Some((_, Return::Rollout(read))) if read.history.len() > ROLLOUT_HISTORY_MAX => {
                    return Err(format!("{} has a history of {} events", op.model, read.history.len()));
                }
                Some((_, Return::Versions(read))) if read.len() > VERSIONS_MAX => {
                    return Err(format!("{} has {} versions", op.model, read.len()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use roost_protocol::messages::control::RolloutEventKind;

    use super::super::fixtures::{at, end, read_history};
    use super::*;

    fn queues() -> Queues {
        Queues::new(Bounds { rows_max: 8, bytes_max: 100 })
    }

    #[test]
    fn what_is_admitted_is_bounded_and_given_back() {
        let mut queues = queues();
        let mut tell = |fact: Fact| queues.watch(at(1), "w1", &fact);
        tell(Fact::Admitted { rows: 1, bytes: 60 }).unwrap();
        tell(Fact::Admitted { rows: 7, bytes: 0 }).unwrap();
        tell(Fact::GaveBack { rows: 8, bytes: 60 }).unwrap();
        tell(Fact::GaveBack { rows: 1, bytes: 0 }).unwrap_err();
        tell(Fact::Admitted { rows: 1, bytes: 60 }).unwrap();
        queues.judge(&end()).unwrap_err();
        queues.watch(at(2), "w1", &Fact::Died).unwrap();
        queues.judge(&end()).unwrap_err();
        queues.watch(at(3), "w1", &Fact::Started).unwrap();
        queues.judge(&end()).unwrap();
        queues.watch(at(4), "w1", &Fact::Admitted { rows: 8, bytes: 1 }).unwrap();
        queues.watch(at(4), "w2", &Fact::Admitted { rows: 8, bytes: 1 }).unwrap();
        queues.watch(at(4), "w1", &Fact::Admitted { rows: 1, bytes: 1 }).unwrap_err();
        queues.watch(at(4), "w2", &Fact::Admitted { rows: 0, bytes: 100 }).unwrap_err();
    }

    #[test]
    fn executors_batches_and_histories_are_bounded() {
        for (work, jobs_max) in [(Work::Compute, COMPUTE_JOBS_MAX), (Work::Disk, DISK_JOBS_MAX)] {
            queues().watch(at(1), "w1", &Fact::Queued { work, jobs: jobs_max }).unwrap();
            queues().watch(at(1), "w1", &Fact::Queued { work, jobs: jobs_max + 1 }).unwrap_err();
        }
        queues().watch(at(1), "w1", &Fact::Ran { rows: 4, rows_max: 4 }).unwrap();
        queues().watch(at(1), "w1", &Fact::Ran { rows: 5, rows_max: 4 }).unwrap_err();
        let judge = |events: usize| {
            let history = vec![RolloutEventKind::Resumed; events];
            queues().judge(&End { ops: vec![read_history(1, &history)], ..end() })
        };
        judge(ROLLOUT_HISTORY_MAX).unwrap();
        judge(ROLLOUT_HISTORY_MAX + 1).unwrap_err();
    }
}
