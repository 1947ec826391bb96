//! One seeded source below everything that asks the operating system for randomness.
//!
//! `HashMap`'s keys, TLS keys and library generators all end in `getrandom(2)`, by libc's function or by a
//! raw `syscall`. Both are interposed here, for the threads that [`seeded`] starts and for no other, so that
//! binaries which link the simulator can run simulations side by side.

#![expect(unsafe_code, reason = "libc's functions can be interposed in no other way")]

use std::cell::Cell;
use std::ffi::{c_long, c_uint, c_void};

thread_local! {
    /// The state of this thread's generator; none on threads that are not simulations.
    static STATE: Cell<Option<u64>> = const { Cell::new(None) };
}

/// The stack of a simulation's thread: the deepest futures of a whole cluster live on it.
const STACK_BYTES: usize = 32 << 20;

/// The next number of SplitMix64 (Steele, Lea, Flood, 2014).
pub fn split_mix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = *state;
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Runs `simulation` on a fresh thread whose randomness all comes from `seed`. Fresh, because libraries cache
/// their generators per thread.
///
/// # Panics
/// With the simulation's own panic.
pub fn seeded<T: Send + 'static>(seed: u64, simulation: impl FnOnce() -> T + Send + 'static) -> T {
    match spawn(seed, simulation).join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// As [`seeded`], without waiting for the end.
///
/// # Panics
/// When the operating system gives no thread.
pub fn spawn<T: Send + 'static>(
    seed: u64,
    simulation: impl FnOnce() -> T + Send + 'static,
) -> std::thread::JoinHandle<T> {
    let run = move || {
        STATE.set(Some(seed));
        simulation()
    };
    let thread = std::thread::Builder::new().name(format!("seed {seed}")).stack_size(STACK_BYTES).spawn(run);
    thread.unwrap_or_else(|error| panic!("no thread for a simulation: {error}"))
}

/// Fills `bytes` from this thread's generator. Returns false on a thread that is no simulation.
fn fill(bytes: &mut [u8]) -> bool {
    // `try_with`: the operating system may ask while the thread is being torn down.
    let Some(mut state) = STATE.try_with(Cell::get).ok().flatten() else { return false };
    for chunk in bytes.chunks_mut(8) {
        let number = split_mix(&mut state).to_le_bytes();
        chunk.copy_from_slice(&number[..chunk.len()]);
    }
    STATE.set(Some(state));
    true
}

/// Replaces libc's `getrandom`.
///
/// # Safety
/// As libc's: `buffer` is valid for writes of `length` bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut c_void, length: usize, flags: c_uint) -> isize {
    if length > 0 {
        // SAFETY: the caller says that `buffer` is valid for `length` bytes; zeroed first, so that they are
        // initialised.
        let bytes = unsafe {
            std::ptr::write_bytes(buffer.cast::<u8>(), 0, length);
            std::slice::from_raw_parts_mut(buffer.cast::<u8>(), length)
        };
        if fill(bytes) {
            return length as isize;
        }
    }
    // SAFETY: the arguments are those of the system call, passed on unchanged.
    unsafe { raw(libc::SYS_getrandom, [buffer as usize, length, flags as usize, 0, 0, 0]) as isize }
}

/// Replaces libc's `syscall`, by which some libraries call `getrandom(2)`.
///
/// libc's is variadic; on the supported targets integer arguments of a variadic function lie in the same
/// registers.
///
/// # Safety
/// As libc's: the arguments are those of the system call `number`.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn syscall(
    number: c_long,
    a: usize,
    b: usize,
    c: usize,
    d: usize,
    e: usize,
    f: usize,
) -> c_long {
    if number == libc::SYS_getrandom {
        // SAFETY: these are the arguments of getrandom(2).
        return unsafe { getrandom(a as *mut c_void, b, c as c_uint) as c_long };
    }
    // SAFETY: the caller's arguments, passed on unchanged.
    let result = unsafe { raw(number, [a, b, c, d, e, f]) };
    if (-4095..0).contains(&result) {
        // SAFETY: libc gives the calling thread's own errno.
        unsafe { *libc::__errno_location() = -result as i32 };
        return -1;
    }
    result
}

/// A system call, without libc.
///
/// # Safety
/// The arguments must be those of the system call `number`.
#[cfg(target_arch = "x86_64")]
unsafe fn raw(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> c_long {
    let result: c_long;
    // SAFETY: the x86-64 system call convention; the kernel clobbers rcx and r11 alone.
    unsafe {
        std::arch::asm!(
            "syscall",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, in("r9") f,
            lateout("rcx") _, lateout("r11") _,
        );
    }
    result
}

/// A system call, without libc.
///
/// # Safety
/// The arguments must be those of the system call `number`.
#[cfg(target_arch = "aarch64")]
unsafe fn raw(number: c_long, [a, b, c, d, e, f]: [usize; 6]) -> c_long {
    let result: c_long;
    // SAFETY: the AArch64 system call convention; the kernel clobbers x0 alone.
    unsafe {
        std::arch::asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, in("x5") f,
        );
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::hash::BuildHasher;

    fn draw() -> (u64, [u8; 5]) {
        let mut bytes = [0; 5];
        // SAFETY: five bytes are given.
        unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), 5, 0) };
        (std::collections::hash_map::RandomState::new().hash_one(7), bytes)
    }

    #[test]
    fn a_seed_repeats_and_another_differs() {
        assert_eq!(seeded(1, draw), seeded(1, draw));
        assert_ne!(seeded(1, draw), seeded(2, draw));
    }

    #[test]
    fn other_threads_keep_the_operating_system() {
        assert_ne!(draw().1, draw().1);
    }
}
