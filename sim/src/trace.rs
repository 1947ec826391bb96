//! The trace of a simulation: every event of the product, every packet sent and received, every answer that a
//! client got, every view that it saw, and every fault, each as a line with its virtual time and its host.
//!
//! Lines are gathered per thread, which is per simulation. Two runs of one seed must be equal line by line;
//! where they are not, the first line that differs says what was not deterministic. Usually only their hash
//! and the last of them are kept.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Metadata, Subscriber, span};
use tracing_core::span::Current;
use xxhash_rust::xxh3::Xxh3Default;

/// Lines that are kept where not all are: with a packet each, some tenths of a second.
const LAST_LINES: usize = 400;

thread_local! {
    static TRACE: RefCell<Arc<Mutex<Trace>>> = RefCell::new(Arc::new(Mutex::new(Trace::new(Keep::Last))));
    /// The virtual time outside of hosts.
    static NOW: Cell<Duration> = const { Cell::new(Duration::ZERO) };
    /// The hosts whose spans are entered, the one that runs last: tasks enter the span that they were spawned
    /// in again.
    static HOSTS: RefCell<Vec<(span::Id, Arc<str>)>> = const { RefCell::new(Vec::new()) };
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

    /// An empty line: one that is kept no more, where not all are, for there is a line for each packet.
    fn blank(&mut self) -> String {
        let full = self.keep == Keep::Last && self.lines.len() >= LAST_LINES;
        let mut line = if full { self.lines.pop_front() } else { None }.unwrap_or_default();
        line.clear();
        line
    }

    fn add(&mut self, line: String) {
        self.hasher.update(line.as_bytes());
        self.hasher.update(b"\n");
        self.count += 1;
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
    HOSTS.with_borrow(|hosts| hosts.last().map(|(_, host)| host.clone()))
}

/// Hears nothing while `end` tears a process down. A killed process says nothing more; and tokio drops the
/// tasks of a runtime in an order that depends on their ids, which all the simulations of this process draw
/// from one counter.
pub fn deaf(end: impl FnOnce()) {
    DEAF.set(true);
    end();
    DEAF.set(false);
}

/// Adds a line with the present virtual time and the host that runs.
pub fn line(text: std::fmt::Arguments<'_>) {
    let at = now();
    let (seconds, micros) = (at.as_secs(), at.subsec_micros());
    TRACE.with_borrow(|trace| {
        let mut line = lock(trace).blank();
        // Writing to a string does not fail.
        let _ = HOSTS.with_borrow(|hosts| match hosts.last() {
            Some((_, host)) => write!(line, "{seconds:>5}.{micros:06} {host} {text}"),
            None => write!(line, "{seconds:>5}.{micros:06} {text}"),
        });
        lock(trace).add(line);
    });
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
#[derive(Debug)]
pub struct Seen<'a> {
    /// The host that it happened on.
    pub host: &'a str,
    /// Where in the code.
    pub target: &'a str,
    /// Its fields; the text of the event is `message`.
    pub fields: &'a [(&'static str, String)],
}

impl<'a> Seen<'a> {
    /// A field by its name.
    pub fn field(&self, name: &str) -> Option<&'a str> {
        self.fields.iter().find(|(field, _)| *field == name).map(|(_, value)| value.as_str())
    }
}

/// Begins a trace. While the guard lives, this thread's `tracing` events are lines of it, and `watch` sees
/// each.
#[must_use]
pub fn gather(
    keep: Keep,
    watch: impl Fn(&Seen<'_>) + Send + Sync + 'static,
) -> tracing::subscriber::DefaultGuard {
    TRACE.set(Arc::new(Mutex::new(Trace::new(keep))));
    NOW.set(Duration::ZERO);
    let lines = Lines { watch: Box::new(watch), hosts: Mutex::default() };
    tracing::subscriber::set_default(lines)
}

/// Writes events of Roost's own crates as lines, and knows no spans but those that turmoil runs hosts in.
///
/// A subscriber of its own: turmoil makes a span for each host at each tick, for which the general registry
/// took a tenth of the time of a whole simulation. Here a span is the host's number.
struct Lines {
    watch: Box<dyn Fn(&Seen<'_>) + Send + Sync>,
    hosts: Mutex<Hosts>,
}

/// The hosts, as their spans were seen.
#[derive(Default)]
struct Hosts {
    /// By number.
    names: Vec<Arc<str>>,
    metadata: Option<&'static Metadata<'static>>,
}

/// Whether it is the span that turmoil runs a host in.
fn is_host(metadata: &Metadata<'_>) -> bool {
    metadata.is_span() && metadata.name() == "node" && metadata.target().starts_with("turmoil")
}

impl Lines {
    fn hosts(&self) -> MutexGuard<'_, Hosts> {
        // Nothing panics while it is held.
        self.hosts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Subscriber for Lines {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        let ours = metadata.target().starts_with("roost_") || metadata.target() == "audit";
        (metadata.is_event() && ours) || is_host(metadata)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::TRACE)
    }

    fn new_span(&self, attributes: &span::Attributes<'_>) -> span::Id {
        let mut name = HostName::default();
        attributes.record(&mut name);
        let mut hosts = self.hosts();
        hosts.metadata = Some(attributes.metadata());
        let known = hosts.names.iter().position(|host| **host == name.0);
        let number = known.unwrap_or_else(|| {
            hosts.names.push(name.0.into());
            hosts.names.len() - 1
        });
        // A span's id is not zero.
        span::Id::from_u64(number as u64 + 1)
    }

    fn record(&self, _: &span::Id, _: &span::Record<'_>) {}

    fn record_follows_from(&self, _: &span::Id, _: &span::Id) {}

    fn enter(&self, id: &span::Id) {
        let name = self.hosts().names.get(id.into_u64() as usize - 1).cloned();
        HOSTS.with_borrow_mut(|hosts| hosts.push((id.clone(), name.unwrap_or_default())));
    }

    fn exit(&self, _: &span::Id) {
        HOSTS.with_borrow_mut(|hosts| hosts.pop());
    }

    fn current_span(&self) -> Current {
        let id = HOSTS.with_borrow(|hosts| hosts.last().map(|(id, _)| id.clone()));
        match (id, self.hosts().metadata) {
            (Some(id), Some(metadata)) => Current::new(id, metadata),
            _ => Current::none(),
        }
    }

    fn event(&self, event: &Event<'_>) {
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

/// The name in a host's span.
#[derive(Default)]
struct HostName(String);

impl Visit for HostName {
    fn record_str(&mut self, _: &Field, value: &str) {
        value.clone_into(&mut self.0);
    }

    fn record_debug(&mut self, _: &Field, _: &dyn std::fmt::Debug) {}
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
