//! An allocator that counts what each thread holds, so that tests beside each other do not count each
//! other's.
#![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

/// Counts, and leaves the work to the system.
pub struct Counting;

thread_local! {
    /// Bytes that this thread took and did not give back; what another thread frees counts there.
    static LIVE: Cell<isize> = const { Cell::new(0) };
    /// The most that it held at once since [`held_at_most`] began.
    static MOST: Cell<isize> = const { Cell::new(0) };
}

fn add(bytes: isize) {
    LIVE.set(LIVE.get() + bytes);
    MOST.set(MOST.get().max(LIVE.get()));
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        add(layout.size().cast_signed());
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.alloc(layout) }
    }

    // The default writes zeros, which would take memory for real where a test only asks for too much.
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        add(layout.size().cast_signed());
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        add(-layout.size().cast_signed());
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.dealloc(start, layout) }
    }
}

/// Bytes that this thread took beyond what it held before, at the most, while `run` ran.
pub fn held_at_most<T>(run: impl FnOnce() -> T) -> (T, usize) {
    let before = LIVE.get();
    MOST.set(before);
    let done = run();
    (done, (MOST.get() - before).unsigned_abs())
}
