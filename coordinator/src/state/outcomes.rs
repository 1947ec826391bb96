//! The outcomes of past requests, so that a command that is sent twice is carried out once.
//!
//! The last [`OUTCOMES_MAX`] are kept and evicted in log order. A request that was first sent before the oldest of them can
//! no longer be told from one that was carried out, and is refused.

use std::collections::BTreeMap;

use roost_protocol::limits::OUTCOMES_MAX;
use roost_protocol::{CommandError, Epoch, RequestId};
use serde::{Deserialize, Serialize};

use super::Applied;

/// Outcomes by request, and the order in which they came.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub(super) struct Outcomes {
    by_request: BTreeMap<RequestId, Applied>,
    /// Log index to request.
    in_order: BTreeMap<u64, RequestId>,
    /// The epoch of the last outcome evicted.
    evicted: Option<Epoch>,
}

impl Outcomes {
    /// What came of a request; `None` when it was not carried out yet. `present` is the epoch of the state.
    ///
    /// # Errors
    /// [`CommandError::RequestTooOld`] when nobody can tell.
    pub fn of(
        &self,
        request: &RequestId,
        sent: Epoch,
        present: Epoch,
    ) -> Result<Option<&Applied>, CommandError> {
        let known = self.by_request.get(request).filter(|_| !roost_protocol::KnownBug::ActTwice.is_in());
        if let Some(applied) = known {
            return Ok(Some(applied));
        }
        match self.evicted {
            Some(evicted) if sent < evicted => {
                Err(CommandError::RequestTooOld { sent, oldest: evicted, present })
            }
            Some(_) | None => Ok(None),
        }
    }

    /// The epoch of the last outcome that was evicted.
    pub fn evicted(&self) -> Option<Epoch> {
        self.evicted
    }

    /// Records what came of a request.
    pub fn record(&mut self, request: RequestId, applied: Applied) {
        self.in_order.insert(applied.epoch.index, request);
        self.by_request.insert(request, applied);
        while self.in_order.len() > OUTCOMES_MAX {
            let Some((_, oldest)) = self.in_order.pop_first() else { return };
            self.evicted = self.by_request.remove(&oldest).map(|applied| applied.epoch).or(self.evicted);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_protocol::messages::control::Outcome;

    #[test]
    fn old_requests_are_refused_and_late_ones_answered_alike() {
        let mut outcomes = Outcomes::default();
        let epoch = |index| Epoch { generation: 1, index };
        // While all outcomes are kept, everyone can tell, whenever the first attempt was.
        let now = epoch(99_999_999);
        assert_eq!(outcomes.of(&RequestId(u128::MAX), Epoch::default(), now), Ok(None));
        for i in 1..=OUTCOMES_MAX as u64 + 10 {
            let applied = Applied { epoch: epoch(i), result: Ok(Outcome::Applied) };
            outcomes.record(RequestId(i.into()), applied);
        }
        assert_eq!(outcomes.by_request.len(), OUTCOMES_MAX);
        assert_eq!(outcomes.of(&RequestId(11), epoch(0), now).unwrap().unwrap().epoch, epoch(11));
        let too_old = CommandError::RequestTooOld { sent: epoch(2), oldest: epoch(10), present: now };
        assert_eq!(outcomes.of(&RequestId(3), epoch(2), now), Err(too_old));
        assert!(outcomes.of(&RequestId(u128::MAX), epoch(10), now).unwrap().is_none());
    }
}
