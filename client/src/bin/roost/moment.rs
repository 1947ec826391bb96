//! Moments and spans of time, as they are printed.

use std::time::Duration;

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A moment in ms since 1970, as RFC 3339 in UTC to the second: `2026-02-03T04:05:06Z`.
pub fn rfc3339(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    let text = OffsetDateTime::from_unix_timestamp(seconds).ok().and_then(|at| at.format(&Rfc3339).ok());
    // Past the year 9999, which RFC 3339 cannot say, the number is all there is.
    text.unwrap_or_else(|| format!("{seconds} s after 1970"))
}

/// A span in ms, to a hundredth: requests take from tens of microseconds to seconds.
pub fn milliseconds(span: Duration) -> String {
    format!("{:.2} ms", span.as_secs_f64() * 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_in_utc_to_the_second() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_770_091_506_789), "2026-02-03T04:05:06Z");
        assert_eq!(rfc3339(u64::MAX), "18446744073709551 s after 1970");
        assert_eq!(milliseconds(Duration::from_micros(1_236)), "1.24 ms");
    }
}
