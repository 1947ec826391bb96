//! What is bounded stays within its bounds: rows of a batch, a model's history.

use std::time::Duration;

use roost_protocol::limits::{ROLLOUT_HISTORY_MAX, VERSIONS_MAX};

use super::{End, Invariant};
use crate::facts::Fact;
use crate::history::Return;

/// Bounds hold.
#[derive(Default)]
pub struct Queues;

impl Invariant for Queues {
    fn name(&self) -> &'static str {
        "queues stay within their limits"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Ran { rows, rows_max } if rows > rows_max => {
                Err(format!("{host} ran a batch of {rows} rows, {rows_max} are allowed"))
            }
            _ => Ok(()),
        }
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
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
