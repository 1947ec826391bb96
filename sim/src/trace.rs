//! The trace of a simulation: every event and packet as a line with its virtual time.
//!
//! Lines are gathered per thread, which is per simulation. Two runs of one seed must be equal line by line; where they are
//! not, the first line that differs says what was not deterministic.

use std::cell::RefCell;
use std::fmt::Write as _;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

thread_local! {
    static LINES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// Adds a line with the present virtual time.
pub fn line(text: std::fmt::Arguments<'_>) {
    let at = turmoil::sim_elapsed().unwrap_or_default();
    LINES.with_borrow_mut(|lines| lines.push(format!("{:>12.6} {text}", at.as_secs_f64())));
}

/// Takes the lines gathered so far.
pub fn take() -> Vec<String> {
    LINES.take()
}

/// The hash that two runs of one seed share (XXH3, 64 bits).
pub fn hash(lines: &[String]) -> u64 {
    let mut hasher = xxhash_rust::xxh3::Xxh3Default::new();
    for line in lines {
        hasher.update(line.as_bytes());
        hasher.update(b"\n");
    }
    hasher.digest()
}

/// Gathers this thread's `tracing` events as lines while the guard lives.
#[must_use]
pub fn gather() -> tracing::subscriber::DefaultGuard {
    tracing::subscriber::set_default(tracing_subscriber::registry().with(Lines))
}

/// Writes events of Roost's own crates as lines.
struct Lines;

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        let ours = metadata.target().starts_with("roost_") || metadata.target() == "audit";
        ours && *metadata.level() <= Level::DEBUG
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut text = String::new();
        event.record(&mut Fields(&mut text));
        line(format_args!("{} {}{text}", event.metadata().level(), event.metadata().target()));
    }
}

/// Writes an event's fields behind each other.
struct Fields<'a>(&'a mut String);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a string does not fail.
        let _ = write!(self.0, " {}={value:?}", field.name());
    }
}
