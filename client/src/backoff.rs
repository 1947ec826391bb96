//! How long to wait before the next try: exponential with jitter, so that those who failed together do not
//! come back together. Pure: randomness is given.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Long enough that a node which just refused has a chance to have changed its mind.
pub(crate) const BACKOFF_MS_MIN: u64 = 25;
/// Short enough that a cluster which comes back is noticed at once, as users see it.
pub(crate) const BACKOFF_MS_MAX: u64 = 1_000;

/// The wait ahead of try `round`, from 0: between half of [`BACKOFF_MS_MIN`] doubled `round` times and the
/// whole of it, at most [`BACKOFF_MS_MAX`].
pub(crate) fn wait(round: u32, rng: &mut impl Rng) -> Duration {
    let doubled = BACKOFF_MS_MIN.checked_shl(round.min(16)).unwrap_or(BACKOFF_MS_MAX);
    let most_us = doubled.min(BACKOFF_MS_MAX) * 1_000;
    Duration::from_micros(rng.random_range(most_us / 2..=most_us))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand_chacha::ChaCha12Rng;

    #[test]
    fn waits_double_up_to_the_most() {
        let mut rng = ChaCha12Rng::from_seed([7; 32]);
        for (round, most_ms) in [(0, 25), (1, 50), (3, 200), (5, 800), (6, 1_000), (60, 1_000)] {
            for _ in 0..100 {
                let wait = wait(round, &mut rng);
                let most = Duration::from_millis(most_ms);
                assert!(most / 2 <= wait && wait <= most, "{round}: {wait:?}");
            }
        }
    }
}
