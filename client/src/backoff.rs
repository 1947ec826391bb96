//! How long to wait before the next try: a wait that doubles with each failure, with chance in it, so that those
//! who failed together do not come back together. Pure: randomness is given.

use std::time::Duration;

/// A draw from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Jitter(f64);

impl Jitter {
    /// The draw that a random number makes.
    pub fn new(random: u64) -> Self {
        Self(random as f64 / u64::MAX as f64)
    }
}

/// A wait that doubles with each failure.
#[derive(Debug, Clone, Copy)]
pub struct Backoff {
    /// After the first failure.
    pub first: Duration,
    /// At most.
    pub max: Duration,
}

impl Backoff {
    /// What requests wait. First: a node which just refused has a chance to have changed its mind. At most: a
    /// cluster which comes back is noticed at once, as users see it.
    pub(crate) const OF_REQUESTS: Self =
        Self { first: Duration::from_millis(25), max: Duration::from_millis(1_000) };

    /// The wait after `failures` failures in a row: from half of its length to the whole.
    pub fn after(self, failures: u32, jitter: Jitter) -> Duration {
        let doublings = failures.saturating_sub(1).min(16);
        let whole = self.first.saturating_mul(1 << doublings).min(self.max);
        whole.mul_f64(0.5 + jitter.0 / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_doubles_up_to_its_bound_and_jitter_takes_half_at_most() {
        let backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(30) };
        let wait = |failures, random| backoff.after(failures, Jitter::new(random)).as_millis();
        let whole = [0, 1, 2, 3, 8, 9, u32::MAX].map(|failures| wait(failures, u64::MAX));
        assert_eq!(whole, [200, 200, 400, 800, 25_600, 30_000, 30_000]);
        assert_eq!([0, u64::MAX / 2, u64::MAX].map(|random| wait(1, random)), [100, 150, 200]);
    }
}
