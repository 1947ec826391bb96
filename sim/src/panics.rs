//! A panic in a simulation ends it there.
//!
//! Unwinding is not an option: turmoil has tokio shut a host's runtime down when a task panics, and dropping what the other
//! tasks hold panics again, which aborts the process. So the simulation's thread tells what happened, and stays where it is
//! for good.

use std::cell::RefCell;
use std::panic::PanicHookInfo;
use std::sync::Once;
use std::sync::mpsc::Sender;

thread_local! {
    /// Whom a simulation on this thread tells of its panic.
    static TELL: RefCell<Option<Sender<String>>> = const { RefCell::new(None) };
}

static HOOK: Once = Once::new();

/// Sends the text of a panic on this thread to `tell`, and lets the thread go no further.
pub fn stop_at(tell: Sender<String>) {
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| match TELL.try_with(RefCell::take).ok().flatten() {
            None => usual(info),
            Some(tell) if is_caught(info) => TELL.set(Some(tell)),
            Some(tell) => {
                // Whoever runs the simulation waits for this.
                let _ = tell.send(format!("a panic: {info}"));
                loop {
                    std::thread::park();
                }
            }
        }));
    });
    TELL.set(Some(tell));
}

/// Whether it is the database's over a damaged page, which counts as found: the coordinator catches it and stops.
fn is_caught(info: &PanicHookInfo<'_>) -> bool {
    info.location().is_some_and(|location| location.file().contains("/redb-"))
}
