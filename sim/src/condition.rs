//! The condition that a host is in: what faults do to it now, beside those of its disk.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::coverage::{Rare, Tally};

/// How packets that a host sends fare. Shares are of one.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Weather {
    /// Packets that are lost.
    pub loss: f64,
    /// Packets that arrive twice.
    pub duplication: f64,
    /// What its link takes; what does not fit the link's queue is lost.
    pub bytes_per_s: Option<u32>,
}

/// What faults do to a host.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Condition {
    /// What becomes of its packets.
    pub weather: Weather,
    /// How many times longer than usual its disk takes.
    pub slow_disk: f64,
    /// How many times longer than usual its computing takes.
    pub slow_compute: f64,
    /// How far its wall clock is off, in ms.
    pub skew_ms: i64,
    /// Runs of models to come that panic.
    pub panics: u32,
}

impl Default for Condition {
    fn default() -> Self {
        Self { weather: Weather::default(), slow_disk: 1.0, slow_compute: 1.0, skew_ms: 0, panics: 0 }
    }
}

impl Condition {
    /// What a job on the disk takes that usually takes `usual`.
    pub fn disk(&self, usual: Duration) -> Duration {
        usual.mul_f64(self.slow_disk)
    }

    /// What a job of computing takes that usually takes `usual`.
    pub fn compute(&self, usual: Duration) -> Duration {
        usual.mul_f64(self.slow_compute)
    }
}

/// The condition of one host, as it changes. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct Conditions {
    condition: Arc<Mutex<Condition>>,
    /// Counts what the condition has led to.
    tally: Tally,
}

impl Conditions {
    /// A host that nothing is done to yet; what comes of faults is counted in `tally`.
    pub fn counted_by(tally: Tally) -> Self {
        Self { condition: Arc::default(), tally }
    }

    /// The condition now.
    pub fn now(&self) -> Condition {
        *self.lock()
    }

    /// Changes it.
    pub fn change(&self, change: impl FnOnce(&mut Condition)) {
        change(&mut self.lock());
    }

    /// Whether the run that begins panics.
    pub fn panics(&self) -> bool {
        let mut condition = self.lock();
        let panics = condition.panics > 0;
        condition.panics = condition.panics.saturating_sub(1);
        if panics {
            self.tally.add(Rare::ModelPanicked);
        }
        panics
    }

    /// It came to this.
    pub fn count(&self, rare: Rare) {
        self.tally.add(rare);
    }

    fn lock(&self) -> MutexGuard<'_, Condition> {
        // One thread: nothing panics while it is held.
        self.condition.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
