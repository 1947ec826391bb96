//! Once everything has converged after all faults, requests are answered.

use std::sync::Arc;
use std::time::Duration;

use roost_protocol::view::View;

use super::Invariant;
use crate::facts::Fact;

/// What the requests of all users may have at once: two of 1 280 bytes at most, and one that was given up and
/// is still there. A worker that takes fewer bytes may say that it is overloaded, and no fault is needed.
const BYTES_AT_ONCE: u64 = 4_096;

/// Without faults no request fails.
#[derive(Default)]
pub struct Availability {
    /// The bytes of requests that a worker takes.
    bytes_max: u64,
    /// When everything had converged.
    converged: Option<Duration>,
    /// The newest view that a client has seen.
    view: Option<Arc<View>>,
}

impl Availability {
    /// With workers that take so many bytes of requests at once.
    pub fn new(bytes_max: u64) -> Self {
        Self { bytes_max, ..Self::default() }
    }
}

impl Invariant for Availability {
    fn name(&self) -> &'static str {
        "once converged, requests are answered"
    }

    fn watch(&mut self, at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Converged => self.converged = Some(at),
            Fact::Saw(published) => {
                let epoch = |view: &Option<Arc<View>>| view.as_ref().map(|view| view.epoch);
                if epoch(&published.view) > epoch(&self.view) {
                    self.view = published.view.clone();
                }
            }
            Fact::Unanswered { target, invoked, error } => {
                let since = self.converged.is_some_and(|converged| *invoked >= converged);
                // A model without a version has nobody who could answer.
                let exists = self.view.as_ref().is_some_and(|view| view.models.contains_key(target.model()));
                let full = self.bytes_max < BYTES_AT_ONCE && error.starts_with("the node is overloaded");
                if since && exists && !full {
                    return Err(format!("{host} asked {target} at {invoked:?} and had no answer: {error}"));
                }
            }
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixtures::{at, published, traffic, view};
    use super::*;

    #[test]
    fn a_request_may_fail_before_convergence_and_not_after() {
        let mut availability = Availability::new(2_048);
        let unanswered = |target: &str, invoked| Fact::Unanswered {
            target: target.parse().unwrap(),
            invoked: at(invoked),
            error: "late".to_owned(),
        };
        let saw = Fact::Saw(published(view(1, traffic(1, 1), 1, 1)));
        availability.watch(at(1), "user1", &saw).unwrap();
        availability.watch(at(5), "user1", &unanswered("alpha", 4)).unwrap();
        availability.watch(at(6), "", &Fact::Converged).unwrap();
        availability.watch(at(7), "user1", &unanswered("alpha", 5)).unwrap();
        availability.watch(at(8), "user1", &unanswered("beta", 7)).unwrap();
        availability.watch(at(8), "user1", &unanswered("alpha", 7)).unwrap_err();
        availability.watch(at(8), "user1", &unanswered("alpha@1", 7)).unwrap_err();
        let overloaded = || Fact::Unanswered {
            target: "alpha".parse().unwrap(),
            invoked: at(9),
            error: "the node is overloaded; try again in 5 µs".to_owned(),
        };
        availability.watch(at(9), "user1", &overloaded()).unwrap();
        availability.bytes_max = BYTES_AT_ONCE;
        availability.watch(at(9), "user1", &overloaded()).unwrap_err();
    }
}
