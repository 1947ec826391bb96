//! What tests share: all tables of this machine, lengths, numbers, and memory that ends at a protected page.

use std::ops::{Deref, DerefMut};

use crate::table::Kernels;

/// Every table that this machine can run.
pub(crate) fn kernels() -> impl Iterator<Item = &'static Kernels> {
    Kernels::all().into_iter().map(|(_, kernels)| kernels)
}

/// How large tests are: in full on the machine's own processor, small where an emulator runs, tiny under
/// Miri.
pub(crate) fn sized<T>(full: T, small: T, tiny: T) -> T {
    if cfg!(miri) {
        tiny
    } else if cfg!(target_arch = "x86_64") {
        full
    } else {
        small
    }
}

/// Lengths to test: all up to 257, which passes every vector and unrolling.
pub(crate) fn lengths() -> impl Iterator<Item = usize> {
    (0..=sized(257, 67, 20)).step_by(sized(1, 1, 5))
}

/// Numbers in [-1, 1), the same for equal seeds.
pub(crate) fn noise(n: usize, seed: u64) -> Vec<f32> {
    bits(n, seed).map(|x| (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
}

/// The upper halves of numbers: these as bfloat16, and what they are as f32.
pub(crate) fn halved(numbers: &[f32]) -> (Vec<u16>, Vec<f32>) {
    let halves: Vec<u16> = numbers.iter().map(|x| (x.to_bits() >> 16) as u16).collect();
    let wide = halves.iter().map(|half| f32::from_bits(u32::from(*half) << 16)).collect();
    (halves, wide)
}

/// Bytes, the same for equal seeds.
pub(crate) fn bytes(n: usize, seed: u64) -> Vec<u8> {
    bits(n, seed).map(|x| (x >> 56) as u8).collect()
}

/// Steele and Vigna's SplitMix64.
fn bits(n: usize, seed: u64) -> impl Iterator<Item = u64> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (0..n).map(move |_| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    })
}

/// # Panics
/// When a bit differs. NaN equals NaN.
#[track_caller]
pub(crate) fn same(found: &[f32], expected: &[f32], name: &str) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (a, e)) in found.iter().zip(expected).enumerate() {
        assert!(
            a.to_bits() == e.to_bits() || (a.is_nan() && e.is_nan()),
            "{name}: element {i} is {a:e} ({:08x}), expected {e:e} ({:08x})",
            a.to_bits(),
            e.to_bits()
        );
    }
}

/// # Panics
/// When `|found - expected| > tolerance · (1 + |expected|)`.
#[track_caller]
pub(crate) fn close(found: &[f32], expected: &[f64], tolerance: f64, name: &str) {
    assert_eq!(found.len(), expected.len(), "{name}");
    for (i, (a, e)) in found.iter().zip(expected).enumerate() {
        let error = (f64::from(*a) - e).abs();
        assert!(error <= tolerance * (1.0 + e.abs()), "{name}: element {i} is {a:e}, expected {e:e}");
    }
}

/// Elements that end at a protected page: reading or writing one too many ends the test.
pub(crate) struct Guarded<T> {
    map: Map,
    first: *mut T,
    len: usize,
}

impl<T: Copy> Guarded<T> {
    /// A copy of `values`.
    pub(crate) fn from(values: &[T]) -> Self {
        let size = size_of_val(values);
        let map = Map::ending_at_a_guard(size);
        // SAFETY: `size` bytes before the guard can be written; they are aligned, since the guard's address
        // and the size are multiples of T's alignment.
        let first = unsafe {
            let first = map.guard.sub(size).cast::<T>();
            std::ptr::copy_nonoverlapping(values.as_ptr(), first, values.len());
            first
        };
        Self { map, first, len: values.len() }
    }
}

impl<T> Deref for Guarded<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        let _ = &self.map;
        // SAFETY: `len` elements were written there; they live as long as the map.
        unsafe { std::slice::from_raw_parts(self.first, self.len) }
    }
}

impl<T> DerefMut for Guarded<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as in deref; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.first, self.len) }
    }
}

/// Pages, the last of which is protected.
struct Map {
    start: *mut u8,
    len: usize,
    guard: *mut u8,
}

#[cfg(all(unix, not(miri)))]
impl Map {
    fn ending_at_a_guard(size: usize) -> Self {
        // SAFETY: an anonymous mapping of whole pages, whose last one is then protected.
        unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let usable = size.next_multiple_of(page);
            let len = usable + page;
            let (access, flags) =
                (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            let start = libc::mmap(std::ptr::null_mut(), len, access, flags, -1, 0);
            assert_ne!(start, libc::MAP_FAILED, "no memory");
            let start = start.cast::<u8>();
            let guard = start.add(usable);
            assert_eq!(libc::mprotect(guard.cast(), page, libc::PROT_NONE), 0, "a page cannot be protected");
            Self { start, len, guard }
        }
    }
}

#[cfg(all(unix, not(miri)))]
impl Drop for Map {
    fn drop(&mut self) {
        // SAFETY: mapped by `ending_at_a_guard`, and not unmapped before.
        unsafe { libc::munmap(self.start.cast(), self.len) };
    }
}

// Elsewhere the interpreter, or the allocator's own checks, watch the end.
#[cfg(not(all(unix, not(miri))))]
impl Map {
    fn ending_at_a_guard(size: usize) -> Self {
        let len = size.div_ceil(8);
        let start = Box::into_raw(vec![0u64; len].into_boxed_slice()).cast::<u8>();
        let guard = start.wrapping_add(size.next_multiple_of(8));
        Self { start, len, guard }
    }
}

#[cfg(not(all(unix, not(miri))))]
impl Drop for Map {
    fn drop(&mut self) {
        let slice = std::ptr::slice_from_raw_parts_mut(self.start.cast::<u64>(), self.len);
        // SAFETY: given up by `ending_at_a_guard`, and taken back once.
        drop(unsafe { Box::from_raw(slice) });
    }
}
