//! What the inner loops of tiles share: pointers that keep pace, and loops that are surely unrolled.

/// Pointers to as many as 18 rows that lie `step` elements apart, moved along together.
///
/// Every third row has a pointer of its own, and the two rows after it are reached within an address, as base
/// plus once or twice the step. Left alone, the compiler computes each row's address from that of the row
/// before: a chain of additions as long as the tile has rows. Where two products run in a cycle, a tile of 12
/// rows waits for that chain longer than for its products.
#[derive(Clone, Copy)]
pub(crate) struct Walk<T> {
    thirds: [*const T; 6],
    step: usize,
}

impl<T> Walk<T> {
    /// From the first row on.
    #[inline(always)]
    pub(crate) fn new(first: *const T, step: usize) -> Self {
        // Most tiles have fewer rows; where the others would lie is computed, and not used.
        let third = |n: usize| opaque(first.wrapping_add(step.wrapping_mul(3 * n)));
        Self { thirds: [first, third(1), third(2), third(3), third(4), third(5)], step }
    }

    /// The place in row r.
    #[inline(always)]
    pub(crate) fn at(&self, r: usize) -> *const T {
        self.thirds[r / 3].wrapping_add(self.step.wrapping_mul(r % 3))
    }

    /// Moves on by so many elements in each row. The last step may leave the matrix.
    #[inline(always)]
    pub(crate) fn advance(&mut self, by: usize) {
        self.thirds = self.thirds.map(|third| opaque(third.wrapping_add(by)));
    }
}

/// The same pointer, of which the compiler knows nothing: it cannot derive it from another one.
#[inline(always)]
#[cfg_attr(not(miri), expect(clippy::pointers_in_nomem_asm_block, reason = "nothing is reached through it"))]
fn opaque<T>(p: *const T) -> *const T {
    #[cfg(not(miri))]
    {
        let mut p = p;
        // SAFETY: no instruction at all; the pointer comes out as it went in.
        unsafe {
            std::arch::asm!("/* {0} */", inout(reg) p, options(pure, nomem, nostack, preserves_flags));
        }
        p
    }
    #[cfg(miri)]
    p
}

/// `for $i in 0..$n`, written out for each index: with a loop, it would depend on the size of the body whether
/// the compiler unrolls it early enough to keep arrays that it indexes in registers. `$n` is a constant of at
/// most 16.
macro_rules! unrolled {
    ($i:ident in 0..$n:ident => $body:block) => {
        const { assert!($n <= 16) };
        unrolled!(@ $i $n $body 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $i:ident $n:ident $body:block $($index:literal)*) => {
        $(
            if $n > $index {
                let $i: usize = $index;
                $body
            }
        )*
    };
}

pub(crate) use unrolled;
