//! Memory that kernels like: aligned to a cache line, cut into views that are known to be apart.
//!
//! A plan puts values of disjoint lifetimes at overlapping offsets of one buffer. [`Buffer::split`] gives out what
//! a step writes as exclusive slices, and everything else for reading; that they do not overlap is checked on each
//! call, which costs a few comparisons and needs no trust in the plan.

use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::ops::Range;
use std::ptr::NonNull;

/// Alignment of a [`Buffer`]: a cache line, and the widest vector.
pub const ALIGN_BYTES: usize = 64;

/// The allocator has no such room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot allocate {bytes} bytes")]
pub struct AllocationError {
    /// What was asked for.
    pub bytes: usize,
}

/// Bytes, aligned to [`ALIGN_BYTES`].
#[derive(Debug)]
pub struct Buffer {
    start: NonNull<u8>,
    len: usize,
}

// SAFETY: a buffer owns its memory alone, and hands it out by borrows of itself.
unsafe impl Send for Buffer {}
// SAFETY: shared access reads only.
unsafe impl Sync for Buffer {}

impl Buffer {
    /// `len` bytes, all 0.
    ///
    /// # Errors
    /// [`AllocationError`] when there is no such room.
    pub fn zeroed(len: usize) -> Result<Self, AllocationError> {
        let refused = AllocationError { bytes: len };
        if len == 0 {
            return Ok(Self { start: NonNull::<Line>::dangling().cast(), len });
        }
        let layout = Layout::from_size_align(len, ALIGN_BYTES).map_err(|_| refused)?;
        // SAFETY: the layout's size is not 0.
        let start = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or(refused)?;
        Ok(Self { start, len })
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// All bytes.
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `len` initialised bytes from `start` on, borrowed with `self`.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }

    /// All bytes.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `self` is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.len) }
    }

    /// The ranges to write, and the rest for reading.
    ///
    /// # Panics
    /// When a range is outside, or two of `writes` overlap.
    pub fn split<const W: usize>(&mut self, writes: [Range<usize>; W]) -> ([&mut [u8]; W], Rest<'_, W>) {
        for (i, range) in writes.iter().enumerate() {
            self.check(range);
            assert!(writes[..i].iter().all(|other| apart(range, other)), "ranges to write overlap");
        }
        let start = self.start;
        let slices = std::array::from_fn(|i| {
            let range = &writes[i];
            // SAFETY: within the buffer and apart from the other ranges, as checked; `self` stays borrowed
            // mutably, and Rest gives out nothing of these ranges.
            unsafe {
                std::slice::from_raw_parts_mut(start.as_ptr().add(range.start), range.end - range.start)
            }
        });
        (slices, Rest { buffer: self, writes })
    }

    fn check(&self, range: &Range<usize>) {
        assert!(range.start <= range.end && range.end <= self.len, "a range lies outside the buffer");
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.len > 0 {
            let layout =
                Layout::from_size_align(self.len, ALIGN_BYTES).expect("the layout it was allocated with");
            // SAFETY: allocated by `zeroed` with this layout, and not freed before.
            unsafe { dealloc(self.start.as_ptr(), layout) }
        }
    }
}

#[repr(align(64))]
struct Line;

fn apart(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start
}

/// A buffer but for what is being written.
#[derive(Debug)]
pub struct Rest<'a, const W: usize> {
    buffer: &'a Buffer,
    writes: [Range<usize>; W],
}

impl<'a, const W: usize> Rest<'a, W> {
    /// Bytes to read.
    ///
    /// # Panics
    /// When the range is outside, or overlaps one that is written.
    pub fn bytes(&self, range: Range<usize>) -> &'a [u8] {
        self.buffer.check(&range);
        assert!(self.writes.iter().all(|write| apart(&range, write)), "a range to read is being written");
        // SAFETY: within the buffer, and apart from every exclusive slice of the split.
        unsafe {
            std::slice::from_raw_parts(self.buffer.start.as_ptr().add(range.start), range.end - range.start)
        }
    }
}

/// Numbers whose every bit pattern is a value, so that bytes can be read as them.
///
/// # Safety
/// Implementors have no padding and no invalid bit pattern.
pub unsafe trait Number: Copy + 'static {}

macro_rules! numbers {
    ($($t:ty)*) => { $(
        // SAFETY: a primitive number.
        unsafe impl Number for $t {}
    )* };
}
numbers!(u8 i8 u16 i16 u32 i32 u64 i64 f32 f64);

/// Numbers as numbers of another type.
///
/// # Panics
/// When the slice is not aligned for `B`, or its bytes are no whole number of them.
pub fn cast<A: Number, B: Number>(numbers: &[A]) -> &[B] {
    let len = count::<A, B>(numbers);
    // SAFETY: aligned and long enough, as checked; any bits are a number, and the borrow is kept.
    unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), len) }
}

/// Numbers as numbers of another type.
///
/// # Panics
/// When the slice is not aligned for `B`, or its bytes are no whole number of them.
pub fn cast_mut<A: Number, B: Number>(numbers: &mut [A]) -> &mut [B] {
    let len = count::<A, B>(numbers);
    // SAFETY: as in `cast`; the exclusive borrow is kept.
    unsafe { std::slice::from_raw_parts_mut(numbers.as_mut_ptr().cast(), len) }
}

fn count<A: Number, B: Number>(numbers: &[A]) -> usize {
    let bytes = size_of_val(numbers);
    assert!(bytes.is_multiple_of(size_of::<B>()), "no whole number of elements");
    assert!(numbers.as_ptr().cast::<B>().is_aligned(), "the slice is not aligned");
    bytes / size_of::<B>()
}

#[cfg(test)]
mod tests {
    use super::{ALIGN_BYTES, Buffer, cast, cast_mut};

    #[test]
    fn a_split_writes_and_reads_apart() {
        let mut buffer = Buffer::zeroed(256).expect("room");
        assert_eq!(buffer.bytes().as_ptr().align_offset(ALIGN_BYTES), 0);
        buffer.bytes_mut()[200] = 7;
        let ([a, b], rest) = buffer.split([0..64, 128..192]);
        cast_mut::<u8, f32>(a)[1] = 1.5;
        b.fill(9);
        assert_eq!(rest.bytes(192..256)[8], 7);
        assert_eq!(rest.bytes(64..64), []);
        assert_eq!(cast::<u8, f32>(&buffer.bytes()[..64])[1], 1.5);
        assert_eq!(buffer.bytes()[130], 9);
    }

    #[test]
    #[should_panic(expected = "overlap")]
    fn overlapping_writes_are_refused() {
        let _ = Buffer::zeroed(64).expect("room").split([0..32, 31..40]);
    }

    #[test]
    #[should_panic(expected = "being written")]
    fn reading_what_is_written_is_refused() {
        let mut buffer = Buffer::zeroed(64).expect("room");
        let (_, rest) = buffer.split([0..32, 60..64]);
        let _ = rest.bytes(16..48);
    }

    #[test]
    #[should_panic(expected = "outside")]
    fn ranges_outside_are_refused() {
        let mut buffer = Buffer::zeroed(64).expect("room");
        let (_, rest) = buffer.split([]);
        let _ = rest.bytes(60..65);
    }

    #[test]
    fn empty_and_impossible_buffers() {
        assert!(Buffer::zeroed(0).expect("nothing").bytes().is_empty());
        assert!(Buffer::zeroed(isize::MAX as usize).is_err());
    }
}
