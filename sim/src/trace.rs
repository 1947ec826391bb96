//! The trace of a simulation: every event, packet and fault as a line with its virtual time and its host.
//!
//! Lines are gathered per thread, which is per simulation. Two runs of one seed must be equal line by line; where they are
//! not, the first line that differs says what was not deterministic. Usually only their hash and the last of them are kept.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber, span};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;
use xxhash_rust::xxh3::Xxh3Default;

/// Lines that are kept where not all are.
const LAST_LINES: usize = 200;

thread_local! {
    static TRACE: RefCell<Arc<Mutex<Trace>>> = RefCell::new(Arc::new(Mutex::new(Trace::new(Keep::Last))));
    /// The virtual time outside of hosts.
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// The hosts whose spans are entered, the one that runs last: tasks enter the span that they were spawned in again.
    static HOSTS: RefCell<Vec<Arc<str>>> = const { RefCell::new(Vec::new()) };
    /// Whether nothing is heard.
    static DEAF: Cell<bool> = const { Cell::new(false) };
}

/// Which lines are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// All.
    All,
    /// The last few.
    Last,
}

/// What was traced.
pub struct Traced {
    /// What two runs of one seed share (XXH3, 64 bits).
    pub hash: u64,
    /// How many lines there were.
    pub count: u64,
    /// Those that were kept.
    pub lines: Vec<String>,
}

struct Trace {
    keep: Keep,
    hasher: Xxh3Default,
    count: u64,
    lines: VecDeque<String>,
}

impl Trace {
    fn new(keep: Keep) -> Self {
        Self { keep, hasher: Xxh3Default::new(), count: 0, lines: VecDeque::new() }
    }

    fn add(&mut self, line: String) {
        self.hasher.update(line.as_bytes());
        self.hasher.update(b"\n");
        self.count += 1;
        if self.keep == Keep::Last && self.lines.len() == LAST_LINES {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }
}

/// The virtual time since the simulation began.
pub fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_else(|| NOW.get())
}

/// Says what time it is outside of hosts.
pub fn set_now(now: Duration) {
    NOW.set(now);
}

/// The host that runs; none between hosts.
pub fn host() -> Option<Arc<str>> {
    HOSTS.with_borrow(|hosts| hosts.last().cloned())
}

/// Hears nothing while `end` tears a process down. A killed process says nothing more; and tokio drops the tasks of a runtime
/// in an order that depends on their ids, which all the simulations of this process draw from one counter.
pub fn deaf(end: impl FnOnce()) {
    DEAF.set(true);
    end();
    DEAF.set(false);
}

/// Adds a line with the present virtual time and the host that runs.
pub fn line(text: std::fmt::Arguments<'_>) {
    let at = now().as_secs_f64();
    let line = HOSTS.with_borrow(|hosts| match hosts.last() {
        Some(host) => format!("{at:>12.6} {host} {text}"),
        None => format!("{at:>12.6} {text}"),
    });
    TRACE.with_borrow(|trace| lock(trace).add(line));
}

/// Ends the trace of this thread and gives it.
pub fn take() -> Traced {
    handle().take()
}

/// The trace of this thread, for another.
pub fn handle() -> Handle {
    Handle(TRACE.with_borrow(Clone::clone))
}

/// A simulation's trace. Cloning shares it.
#[derive(Clone)]
pub struct Handle(Arc<Mutex<Trace>>);

impl Handle {
    /// Ends the trace and gives it.
    pub fn take(&self) -> Traced {
        let trace = std::mem::replace(&mut *lock(&self.0), Trace::new(Keep::Last));
        Traced { hash: trace.hasher.digest(), count: trace.count, lines: trace.lines.into() }
    }
}

fn lock(trace: &Mutex<Trace>) -> MutexGuard<'_, Trace> {
    // Nothing panics while it is held.
    trace.lock().unwrap_or_else(PoisonError::into_inner)
}

/// An event of Roost's own crates.
pub struct Seen<'a> {
    /// The host that it happened on.
    pub host: &'a str,
    /// Where in the code.
    pub target: &'a str,
    /// Its fields; the text of the event is `message`.
    pub fields: &'a [(&'static str, String)],
}

impl Seen<'_> {
    /// A field by its name; empty when there is none.
    pub fn field(&self, name: &str) -> &str {
        self.fields.iter().find(|(field, _)| *field == name).map_or("", |(_, value)| value)
    }
}

/// Begins a trace. While the guard lives, this thread's `tracing` events are lines of it, and `watch` sees each.
#[must_use]
pub fn gather(
    keep: Keep,
    watch: impl Fn(&Seen<'_>) + Send + Sync + 'static,
) -> tracing::subscriber::DefaultGuard {
    TRACE.set(Arc::new(Mutex::new(Trace::new(keep))));
    NOW.set(Duration::ZERO);
    tracing::subscriber::set_default(tracing_subscriber::registry().with(Lines { watch: Box::new(watch) }))
}

/// Writes events of Roost's own crates as lines.
struct Lines {
    watch: Box<dyn Fn(&Seen<'_>) + Send + Sync>,
}

/// The name of the host that turmoil runs within a span.
struct Name(Arc<str>);

/// Whether it is the span that turmoil runs a host in.
fn is_host(metadata: &tracing::Metadata<'_>) -> bool {
    metadata.is_span() && metadata.name() == "node" && metadata.target().starts_with("turmoil")
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Lines {
    fn enabled(&self, metadata: &tracing::Metadata<'_>, _: Context<'_, S>) -> bool {
        let ours = metadata.target().starts_with("roost_") || metadata.target() == "audit";
        (metadata.is_event() && ours && *metadata.level() <= Level::DEBUG) || is_host(metadata)
    }

    fn on_new_span(&self, attributes: &span::Attributes<'_>, id: &span::Id, context: Context<'_, S>) {
        let mut fields = Fields::default();
        attributes.record(&mut fields);
        if let (Some(span), Some((_, name))) = (context.span(id), fields.0.pop()) {
            span.extensions_mut().insert(Name(name.into()));
        }
    }

    fn on_enter(&self, id: &span::Id, context: Context<'_, S>) {
        let name = context.span(id).and_then(|span| span.extensions().get::<Name>().map(|n| n.0.clone()));
        HOSTS.with_borrow_mut(|hosts| hosts.push(name.unwrap_or_default()));
    }

    fn on_exit(&self, _: &span::Id, _: Context<'_, S>) {
        HOSTS.with_borrow_mut(|hosts| hosts.pop());
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        if DEAF.get() {
            return;
        }
        let mut fields = Fields::default();
        event.record(&mut fields);
        let mut text = String::new();
        for (name, value) in &fields.0 {
            // Writing to a string does not fail.
            let _ = write!(text, " {name}={value}");
        }
        let metadata = event.metadata();
        line(format_args!("{} {}{text}", metadata.level(), metadata.target()));
        let host = host();
        let seen =
            Seen { host: host.as_deref().unwrap_or_default(), target: metadata.target(), fields: &fields.0 };
        (self.watch)(&seen);
    }
}

/// An event's fields as text.
#[derive(Default)]
struct Fields(Vec<(&'static str, String)>);

impl Visit for Fields {
    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.push((field.name(), value.to_owned()));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.0.push((field.name(), format!("{value:?}")));
    }
}
