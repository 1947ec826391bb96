//! A panic in a simulation ends it there.
//!
//! Unwinding is not an option: turmoil has tokio shut a host's runtime down when a task panics, and dropping
//! what the other tasks hold panics again, which aborts the process. So the simulation's thread tells what
//! happened, and stays where it is for good. Not in the panic hook, which is held locked meanwhile: whoever
//! asks for the hook next, as a test binary does at its end, would wait for ever. It stays where unwinding
//! begins, behind the hook.

#![expect(unsafe_code, reason = "the unwinder's function can be interposed in no other way")]

use std::cell::{Cell, RefCell};
use std::ffi::{c_int, c_void};
use std::panic::PanicHookInfo;
use std::sync::mpsc::Sender;
use std::sync::{Once, OnceLock};

thread_local! {
    /// Whom a simulation on this thread tells of its panic.
    static TELL: RefCell<Option<Sender<String>>> = const { RefCell::new(None) };
    /// Whether this thread is to go no further.
    static OVER: Cell<bool> = const { Cell::new(false) };
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
                OVER.set(true);
                // Whoever runs the simulation waits for this.
                let _ = tell.send(format!("a panic: {info}"));
            }
        }));
    });
    TELL.set(Some(tell));
}

/// Whether it is the database's over a damaged page, which counts as found: the coordinator catches it and
/// stops.
fn is_caught(info: &PanicHookInfo<'_>) -> bool {
    info.location().is_some_and(|location| location.file().contains("/redb-"))
}

/// The unwinder's function, as the platform has it.
type Raise = unsafe extern "C-unwind" fn(*mut c_void) -> c_int;

/// Replaces the unwinder's function by which a panic begins to unwind: a simulation that is over goes no
/// further.
///
/// # Safety
/// As the unwinder's: `exception` is an exception object.
#[unsafe(no_mangle)]
pub unsafe extern "C-unwind" fn _Unwind_RaiseException(exception: *mut c_void) -> c_int {
    static RAISE: OnceLock<Option<Raise>> = OnceLock::new();
    while OVER.try_with(Cell::get).unwrap_or_default() {
        std::thread::park();
    }
    let raise = RAISE.get_or_init(|| {
        // SAFETY: the name is a C string; the function of that name has this type in every unwinder (Itanium
        // C++ ABI, 1.3).
        unsafe {
            let raise = libc::dlsym(libc::RTLD_NEXT, c"_Unwind_RaiseException".as_ptr());
            (!raise.is_null()).then(|| std::mem::transmute::<*mut c_void, Raise>(raise))
        }
    });
    match raise {
        // SAFETY: the caller's argument, passed on unchanged.
        Some(raise) => unsafe { raise(exception) },
        // Without an unwinder nobody could have linked; `_URC_FATAL_PHASE1_ERROR` has the caller abort.
        None => 3,
    }
}
