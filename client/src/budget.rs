//! The token budget that retries and hedges of all requests share, so that trouble is not answered by a
//! multiple of the load. Pure.
//!
//! Each request earns a tenth of a token; what needs one is said in [`crate::request`].

/// Thousandths of a token that a request earns: retries and hedges stay under a tenth of the requests.
const EARNED_PER_REQUEST: u32 = 100;
/// Thousandths that one retry or hedge costs.
const COST: u32 = 1_000;
/// What can be saved up, in thousandths: enough for the first requests of a client and for a burst of ten,
/// not for a storm after a quiet hour.
const SAVED_MAX: u32 = 10 * COST;

/// The budget.
#[derive(Debug)]
pub struct Budget {
    saved: u32,
}

impl Default for Budget {
    /// A full one.
    fn default() -> Self {
        Self { saved: SAVED_MAX }
    }
}

impl Budget {
    /// A request began.
    pub fn earn(&mut self) {
        self.saved = (self.saved + EARNED_PER_REQUEST).min(SAVED_MAX);
    }

    /// Takes a token if there is one.
    pub fn take(&mut self) -> bool {
        let enough = self.saved >= COST;
        if enough {
            self.saved -= COST;
        }
        enough
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenth_of_the_requests_after_a_bounded_burst() {
        let mut budget = Budget::default();
        let mut taken = 0;
        for _ in 0..1_000 {
            budget.earn();
            taken += u32::from(budget.take());
        }
        assert_eq!(taken, 10 + 100 - 1);
        (0..1_000_000).for_each(|_| budget.earn());
        let burst = std::iter::from_fn(|| budget.take().then_some(())).count();
        assert_eq!(burst, 10);
    }
}
