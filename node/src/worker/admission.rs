//! Admission: how much one node takes on at once, in rows and in bytes.
//!
//! [`Admission`] counts and decides; [`Gate`] shares it, and a [`Permit`] gives back when it is dropped, so that nothing
//! that ends early can leak room. A request is admitted by its bytes before its body is read, and by its rows once they
//! are known. What is refused learns when room is likely, from how fast room was given back of late. Nobody waits here:
//! a queue ahead of the queue would only hide the load from the client, which has other candidates.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roost_protocol::InferError;
use tokio::time::Instant;

/// Over which time the rate of service is averaged: long enough to hold some batches, short enough to follow a change.
const RATE_WINDOW: Duration = Duration::from_secs(1);
/// What a refused caller waits when nothing is known of the rate: a few batches of a small model.
const RETRY_AFTER_UNKNOWN: Duration = Duration::from_millis(20);
/// Sooner than this a caller only burns the room that it waits for.
const RETRY_AFTER_MIN: Duration = Duration::from_millis(1);
/// A caller that waits longer is better off with the next view.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(1);

/// What the node takes on at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Rows of all requests together.
    pub rows_max: u64,
    /// Bytes of all requests together, as they came in their frames.
    pub bytes_max: u64,
}

/// Why a request was not admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// There is no room now.
    Overloaded {
        /// When there is likely some.
        retry_after: Duration,
    },
    /// There would be no room if the node had nothing else.
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The bound.
        max: u64,
        /// What came.
        actual: u64,
    },
}

impl From<Refusal> for InferError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Overloaded { retry_after } => {
                Self::Overloaded { retry_after_us: retry_after.as_micros() as u64 }
            }
            Refusal::TooLarge { what, max, actual } => {
                Self::LimitExceeded { what: what.to_owned(), max, actual }
            }
        }
    }
}

/// What one admitted request holds. Given back by [`Admission::release`].
#[derive(Debug, PartialEq, Eq)]
pub struct Grant {
    rows: u64,
    bytes: u64,
}

/// Counts what is in flight and decides what may join it.
#[derive(Debug)]
pub struct Admission {
    bounds: Bounds,
    rows: u64,
    bytes: u64,
    requests: u32,
    rows_rate: Rate,
    bytes_rate: Rate,
}

impl Admission {
    /// Nothing in flight.
    pub fn new(bounds: Bounds) -> Self {
        let (rows_rate, bytes_rate) = (Rate::default(), Rate::default());
        Self { bounds, rows: 0, bytes: 0, requests: 0, rows_rate, bytes_rate }
    }

    /// Admits a request.
    ///
    /// # Errors
    /// [`Refusal`] when it does not fit beside what is in flight, or would never fit.
    pub fn admit(&mut self, rows: u64, bytes: u64) -> Result<Grant, Refusal> {
        self.check(rows, bytes)?;
        self.rows += rows;
        self.bytes += bytes;
        self.requests += 1;
        Ok(Grant { rows, bytes })
    }

    /// Admits more rows for a request, once it is known how many it has. The grant is unchanged when they are refused.
    ///
    /// # Errors
    /// As [`Admission::admit`].
    pub fn widen(&mut self, grant: &mut Grant, rows: u64) -> Result<(), Refusal> {
        let more = rows.saturating_sub(grant.rows);
        if rows > self.bounds.rows_max {
            return Err(Refusal::TooLarge { what: ROWS, max: self.bounds.rows_max, actual: rows });
        }
        self.check(more, 0)?;
        self.rows += more;
        grant.rows += more;
        Ok(())
    }

    /// Takes back what a request held.
    pub fn release(&mut self, grant: Grant, now: Instant) {
        self.rows -= grant.rows;
        self.bytes -= grant.bytes;
        self.requests -= 1;
        self.rows_rate.add(grant.rows, now);
        self.bytes_rate.add(grant.bytes, now);
    }

    /// Requests in flight: the hint that answers carry.
    pub fn requests(&self) -> u32 {
        self.requests
    }

    fn check(&self, rows: u64, bytes: u64) -> Result<(), Refusal> {
        let Bounds { rows_max, bytes_max } = self.bounds;
        if rows > rows_max {
            return Err(Refusal::TooLarge { what: ROWS, max: rows_max, actual: rows });
        }
        if bytes > bytes_max {
            return Err(Refusal::TooLarge { what: BYTES, max: bytes_max, actual: bytes });
        }
        let rows_over = (self.rows + rows).saturating_sub(rows_max);
        let bytes_over = (self.bytes + bytes).saturating_sub(bytes_max);
        if rows_over == 0 && bytes_over == 0 {
            return Ok(());
        }
        let retry_after = self.rows_rate.time_for(rows_over).max(self.bytes_rate.time_for(bytes_over));
        Err(Refusal::Overloaded { retry_after: retry_after.clamp(RETRY_AFTER_MIN, RETRY_AFTER_MAX) })
    }
}

const ROWS: &str = "rows in flight on this node";
const BYTES: &str = "bytes in flight on this node";

/// How fast something was given back of late: an average that forgets exponentially.
#[derive(Debug, Default)]
struct Rate {
    /// What was given back, each part weighed down by its age.
    weight: f64,
    last: Option<Instant>,
}

impl Rate {
    fn add(&mut self, amount: u64, now: Instant) {
        if let Some(last) = self.last {
            let age = now.saturating_duration_since(last).as_secs_f64() / RATE_WINDOW.as_secs_f64();
            self.weight *= (-age).exp();
        }
        self.weight += amount as f64;
        self.last = Some(now);
    }

    fn time_for(&self, amount: u64) -> Duration {
        if amount == 0 {
            return Duration::ZERO;
        }
        if self.weight < 1.0 {
            return RETRY_AFTER_UNKNOWN;
        }
        // Bounded ahead of the conversion, which panics on what no Duration holds.
        let seconds = amount as f64 * RATE_WINDOW.as_secs_f64() / self.weight;
        Duration::from_secs_f64(seconds.min(RETRY_AFTER_MAX.as_secs_f64()))
    }
}

/// An [`Admission`] that is shared.
#[derive(Debug, Clone)]
pub struct Gate(Arc<Mutex<Admission>>);

impl Gate {
    /// A gate with nothing in flight.
    pub fn new(bounds: Bounds) -> Self {
        Self(Arc::new(Mutex::new(Admission::new(bounds))))
    }

    /// Admits a request whose rows are not known yet: one at least.
    ///
    /// # Errors
    /// As [`Admission::admit`].
    pub fn admit(&self, bytes: u64) -> Result<Permit, Refusal> {
        let grant = self.lock().admit(1, bytes)?;
        tracing::trace!(rows = 1, bytes, "admitted");
        Ok(Permit { gate: self.clone(), grant: Some(grant) })
    }

    /// Requests in flight.
    pub fn requests(&self) -> u32 {
        self.lock().requests()
    }

    fn lock(&self) -> MutexGuard<'_, Admission> {
        // Counting does not panic half-way, so what a poisoned lock holds is whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one request holds of a [`Gate`], until it is dropped. What it takes and gives back is traced, for whoever counts
/// independently.
#[derive(Debug)]
pub struct Permit {
    gate: Gate,
    grant: Option<Grant>,
}

impl Permit {
    /// Admits the request's rows, once they are known.
    ///
    /// # Errors
    /// As [`Admission::widen`].
    pub fn widen(&mut self, rows: u64) -> Result<(), Refusal> {
        match &mut self.grant {
            Some(grant) => {
                let before = grant.rows;
                self.gate.lock().widen(grant, rows)?;
                if grant.rows > before {
                    tracing::trace!(rows = grant.rows - before, bytes = 0, "admitted");
                }
                Ok(())
            }
            None => Ok(()),
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(grant) = self.grant.take() {
            tracing::trace!(rows = grant.rows, bytes = grant.bytes, "gave back");
            self.gate.lock().release(grant, Instant::now());
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BOUNDS: Bounds = Bounds { rows_max: 10, bytes_max: 1000 };

    fn retry_after(refusal: Refusal) -> Duration {
        match refusal {
            Refusal::Overloaded { retry_after } => retry_after,
            Refusal::TooLarge { .. } => panic!("{refusal:?}"),
        }
    }

    #[tokio::test]
    async fn what_does_not_fit_is_refused_and_room_comes_back() {
        let mut admission = Admission::new(BOUNDS);
        let first = admission.admit(8, 10).unwrap();
        assert_eq!(retry_after(admission.admit(3, 10).unwrap_err()), RETRY_AFTER_UNKNOWN);
        let second = admission.admit(2, 990).unwrap();
        assert_eq!(admission.requests(), 2);
        admission.admit(0, 1).unwrap_err();
        let now = Instant::now();
        admission.release(first, now);
        admission.release(second, now);
        assert_eq!((admission.requests(), admission.rows, admission.bytes), (0, 0, 0));
        admission.admit(10, 1000).unwrap();
    }

    #[test]
    fn what_could_never_fit_is_told_so() {
        let mut admission = Admission::new(BOUNDS);
        let rows = Refusal::TooLarge { what: ROWS, max: 10, actual: 11 };
        assert_eq!(admission.admit(11, 1), Err(rows.clone()));
        assert!(matches!(admission.admit(1, 1001), Err(Refusal::TooLarge { what: BYTES, .. })));
        let mut grant = admission.admit(1, 1).unwrap();
        assert_eq!(admission.widen(&mut grant, 11), Err(rows));
        admission.widen(&mut grant, 10).unwrap();
        admission.admit(1, 1).unwrap_err();
    }

    #[tokio::test]
    async fn the_time_to_retry_follows_the_rate() {
        let start = Instant::now();
        let mut admission = Admission::new(BOUNDS);
        // A thousand rows within the last second: one row takes about a millisecond.
        for i in 0..1000 {
            let grant = admission.admit(1, 1).unwrap();
            admission.release(grant, start + Duration::from_millis(i));
        }
        let _held = admission.admit(10, 1).unwrap();
        let two_rows = retry_after(admission.admit(2, 1).unwrap_err());
        assert!((Duration::from_millis(2)..Duration::from_millis(5)).contains(&two_rows), "{two_rows:?}");
        let ten_rows = retry_after(admission.admit(10, 1).unwrap_err());
        assert_eq!(ten_rows.as_micros() / 100, two_rows.as_micros() * 5 / 100);
    }

    proptest! {
        #[test]
        fn the_bounds_hold_whatever_comes(steps in prop::collection::vec((0u64..14, 0u64..1300, any::<bool>()), 0..60)) {
            let start = tokio_instant();
            let mut admission = Admission::new(BOUNDS);
            let mut grants = Vec::new();
            for (i, (rows, bytes, release)) in steps.into_iter().enumerate() {
                if release && !grants.is_empty() {
                    admission.release(grants.swap_remove(i % grants.len()), start + Duration::from_millis(i as u64));
                } else if let Ok(mut grant) = admission.admit(rows.min(1), bytes) {
                    let _ = admission.widen(&mut grant, rows);
                    grants.push(grant);
                }
                prop_assert!(admission.rows <= BOUNDS.rows_max && admission.bytes <= BOUNDS.bytes_max);
                prop_assert_eq!(admission.rows, grants.iter().map(|grant| grant.rows).sum::<u64>());
                prop_assert_eq!(admission.requests as usize, grants.len());
            }
        }
    }

    fn tokio_instant() -> Instant {
        Instant::now()
    }

    #[tokio::test]
    async fn a_permit_gives_back_when_it_is_dropped() {
        let gate = Gate::new(BOUNDS);
        let mut permit = gate.admit(500).unwrap();
        permit.widen(10).unwrap();
        gate.admit(1).unwrap_err();
        drop(permit);
        assert_eq!(gate.requests(), 0);
        gate.admit(1000).unwrap();
    }
}
