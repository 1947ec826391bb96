//! Weights on their way to L2 before they are wanted.
//!
//! A panel of packed weights is read once by each tile of rows; all but the first find it in L2. The first
//! would wait for L3 or memory, since hardware looks ahead within a page alone. So tiles of a panel each ask
//! for a share of the next one, a line at a time between their products: asked for at once, a share fills the
//! few places for lines under way, and what is wanted now waits behind it.

/// Weights that are read once all of this panel's tiles are done.
#[derive(Clone, Copy)]
pub(crate) struct Ahead {
    next: *const u8,
    step: usize,
}

impl Ahead {
    /// Weights of less are in L2 anyway.
    const LEAST_BYTES: usize = 256 << 10;

    /// What a hint brings.
    const LINE_BYTES: usize = 64;

    /// Nothing.
    pub(crate) const NOTHING: Self = Self { next: std::ptr::null(), step: 0 };

    /// `bytes` at `next`, in shares for `tiles` tiles of `depth` steps. Nothing where `all` weights are few; and
    /// nothing where so few tiles share a panel that they would ask for more than a line a step: such tiles
    /// wait for memory, whatever they ask for.
    pub(crate) fn new(next: *const u8, bytes: usize, tiles: usize, depth: usize, all: usize) -> Self {
        let step = bytes.div_ceil(tiles.saturating_mul(depth).max(1));
        if all < Self::LEAST_BYTES || step > Self::LINE_BYTES { Self::NOTHING } else { Self { next, step } }
    }

    /// Whether there is something to ask for.
    #[inline(always)]
    pub(crate) fn is_wanted(&self) -> bool {
        cfg!(all(target_arch = "x86_64", not(miri))) && self.step > 0
    }

    /// Asks for what is due in a step of a tile, and goes on.
    #[inline(always)]
    pub(crate) fn ask(&mut self) {
        hint(self.next);
        self.next = self.next.wrapping_add(self.step);
    }

    /// Goes on by the share of a tile, which asked for it through a copy.
    pub(crate) fn passed(&mut self, depth: usize) {
        self.next = self.next.wrapping_add(self.step * depth);
    }
}

/// Asks for the line at an address, which need not exist.
#[inline(always)]
fn hint(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint reads nothing; SSE is part of x86-64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T1 }>(at.cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}
