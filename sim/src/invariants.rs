//! What must hold, whatever happens. One file each; every one sees all facts of a run, and judges its end.

mod always_serving;
mod answers;
mod availability;
mod bundles;
mod durable;
mod election_safety;
mod epochs;
mod hosting;
mod linearizable;
mod log_matching;
mod nothing_lost;
mod observed;
mod one_pick;
mod one_view;
mod queues;
mod replicas_equal;
mod sticky;
mod wiped_voters;

#[cfg(test)]
pub(crate) mod fixtures;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use roost_protocol::view::{Published, View};
use roost_protocol::{Digest, Epoch};

use crate::disk::SimDisk;
use crate::facts::Fact;
use crate::history::{Answer, Op};
use crate::remains::Remains;

pub use self::queues::Bounds;

/// All invariants of a run whose coordinators have these disks, and whose workers these bounds. Those that
/// explain most come first.
pub fn all(coordinators: BTreeMap<String, SimDisk>, bounds: Bounds) -> Vec<Box<dyn Invariant>> {
    vec![
        Box::new(election_safety::ElectionSafety::default()),
        Box::new(wiped_voters::WipedVoters::new(coordinators.clone())),
        Box::new(durable::Durable::new(coordinators.clone())),
        Box::new(log_matching::LogMatching::default()),
        Box::new(epochs::Epochs::default()),
        Box::new(one_view::OneView::default()),
        Box::new(bundles::Bundles::new(coordinators)),
        Box::new(answers::Answers),
        Box::new(nothing_lost::NothingLost),
        Box::new(one_pick::OnePick),
        Box::new(sticky::Sticky),
        Box::new(always_serving::AlwaysServing::default()),
        Box::new(hosting::Hosting::default()),
        Box::new(availability::Availability::new(bounds.bytes_max)),
        Box::new(queues::Queues::new(bounds)),
        Box::new(replicas_equal::ReplicasEqual::default()),
        Box::new(linearizable::Linearizable),
        Box::new(observed::Observed::default()),
    ]
}

/// What must hold.
pub trait Invariant: Send {
    /// Its name.
    fn name(&self) -> &'static str;

    /// Looks at something that happened on `host`.
    ///
    /// # Errors
    /// What is broken.
    fn watch(&mut self, _at: Duration, _host: &str, _fact: &Fact) -> Result<(), String> {
        Ok(())
    }

    /// Looks at the end of a run.
    ///
    /// # Errors
    /// What is broken.
    fn judge(&mut self, _end: &End) -> Result<(), String> {
        Ok(())
    }
}

/// An invariant that does not hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Violation {
    /// Which.
    pub invariant: &'static str,
    /// When it was noticed.
    pub at: Duration,
    /// What was seen.
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {:.3} s: {}", self.invariant, self.at.as_secs_f64(), self.what)
    }
}

/// What there is at the end of a run.
pub struct End {
    /// All operations on the registry.
    pub ops: Vec<Arc<Op>>,
    /// All answers.
    pub answers: Vec<Arc<Answer>>,
    /// The views that were seen anywhere, by epoch.
    pub views: BTreeMap<Epoch, Arc<View>>,
    /// What the bundles' models are, by digest.
    pub models: BTreeMap<Digest, Bytes>,
    /// The view and the soft state that all had agreed on when everything had converged.
    pub last: Published,
    /// What the nodes have on their disks.
    pub remains: Vec<Remains>,
}
