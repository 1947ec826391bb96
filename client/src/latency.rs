//! How long recent requests took, for the moment at which a hedge pays. Pure.

use std::collections::VecDeque;
use std::time::Duration;

/// Requests that are remembered: long enough for a steady 95th percentile, short enough to follow a change of
/// load.
const WINDOW: usize = 128;
/// Fewer say nothing about a 95th percentile.
const SAMPLES_MIN: usize = 32;
/// The percentile is computed anew after so many further samples: sorting at each would cost microseconds per
/// request.
const SAMPLES_PER_UPDATE: u32 = 16;

/// The latencies of the last [`WINDOW`] requests of one version.
#[derive(Debug, Default)]
pub struct Latencies {
    window: VecDeque<Duration>,
    since_update: u32,
    p95: Option<Duration>,
}

impl Latencies {
    /// Takes the time from a request's first attempt to its answer. Not that of the attempt which answered:
    /// hedges would cut off the slow ones, and the percentile would fall and call for ever more hedges.
    pub fn record(&mut self, latency: Duration) {
        if self.window.len() == WINDOW {
            self.window.pop_front();
        }
        self.window.push_back(latency);
        self.since_update += 1;
        if self.window.len() >= SAMPLES_MIN && (self.p95.is_none() || self.since_update >= SAMPLES_PER_UPDATE)
        {
            self.since_update = 0;
            let mut sorted: Vec<Duration> = self.window.iter().copied().collect();
            let place = sorted.len() * 95 / 100;
            self.p95 = Some(*sorted.select_nth_unstable(place).1);
        }
    }

    /// The 95th percentile; `None` until enough is known.
    pub fn p95(&self) -> Option<Duration> {
        self.p95
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_percentile_follows_the_window() {
        let mut latencies = Latencies::default();
        let ms = Duration::from_millis;
        (1..SAMPLES_MIN as u64).for_each(|i| latencies.record(ms(i)));
        assert_eq!(latencies.p95(), None);
        latencies.record(ms(32));
        assert_eq!(latencies.p95(), Some(ms(31)));
        (0..WINDOW).for_each(|_| latencies.record(ms(5)));
        assert_eq!(latencies.p95(), Some(ms(5)));
        // One in twenty is slow: the percentile is still a usual one; one in ten is not.
        (0..WINDOW).for_each(|i| latencies.record(ms(if i % 25 == 0 { 100 } else { 5 })));
        assert_eq!(latencies.p95(), Some(ms(5)));
        (0..WINDOW).for_each(|i| latencies.record(ms(if i % 10 == 0 { 100 } else { 5 })));
        assert_eq!(latencies.p95(), Some(ms(100)));
    }
}
