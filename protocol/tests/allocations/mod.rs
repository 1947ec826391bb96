//! Counts what a thread allocates, so that tests can bound what a decoder takes and benches can show that it takes
//! nothing.
//!
//! The count is per thread, because the test harness runs tests side by side. Memory that one thread takes and another
//! gives back is counted at neither end.

#![expect(unsafe_code, reason = "only a global allocator sees every allocation, and it is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    static BYTES: Cell<isize> = const { Cell::new(0) };
    static BYTES_PEAK: Cell<isize> = const { Cell::new(0) };
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// What a piece of work took.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Allocations {
    /// How often it asked for memory.
    pub count: u64,
    /// The most bytes that it held at once, over what was held before it.
    pub bytes_peak: usize,
}

/// Does `work` and says what it allocated on this thread.
pub fn measure<T>(work: impl FnOnce() -> T) -> (T, Allocations) {
    let (bytes, count) = (BYTES.get(), COUNT.get());
    BYTES_PEAK.set(bytes);
    let result = work();
    let bytes_peak = usize::try_from(BYTES_PEAK.get() - bytes).unwrap_or(0);
    (result, Allocations { count: COUNT.get() - count, bytes_peak })
}

/// The system's allocator, counted.
struct Counting;

impl Counting {
    fn taken(bytes: usize) {
        COUNT.set(COUNT.get() + 1);
        Self::changed(bytes as isize);
    }

    fn changed(by: isize) {
        let bytes = BYTES.get() + by;
        BYTES.set(bytes);
        BYTES_PEAK.set(BYTES_PEAK.get().max(bytes));
    }
}

// SAFETY: every method hands its arguments to `System` unchanged and returns what that returns; the counters are cells
// that are initialised at compile time and have no destructor, so touching them neither allocates nor panics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::taken(layout.size());
        // SAFETY: the caller keeps this method's contract, which is `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::taken(layout.size());
        // SAFETY: as in `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        Self::changed(-(layout.size() as isize));
        // SAFETY: `place` came from `System`, because all of this allocator's memory does.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, bytes: usize) -> *mut u8 {
        // Counted as if the system always moved: old and new are held at once.
        Self::taken(bytes);
        Self::changed(-(layout.size() as isize));
        // SAFETY: as in `dealloc`.
        unsafe { System.realloc(place, layout, bytes) }
    }
}
