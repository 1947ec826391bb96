//! Weights on their way to L2 before they are wanted.
//!
//! A panel of packed weights is read once by each tile of rows; all but the first find it in L2. The first
//! would wait for L3 or memory, since hardware looks ahead within a page alone. So tiles of a panel each ask
//! for a share of the next one.

/// Weights that are read once all of this panel's tiles are done.
pub(crate) struct Ahead {
    next: *const u8,
    left: usize,
    share: usize,
}

impl Ahead {
    /// Weights of less are in L2 anyway.
    const LEAST_BYTES: usize = 256 << 10;

    /// With fewer tiles, shares are so large that they hold up the loads that are wanted now; and weights
    /// that are read once come as fast as memory gives them.
    const LEAST_TILES: usize = 4;

    /// `bytes` at `next`, in shares for `tiles` tiles; nothing where `all` weights are few, or tiles.
    pub(crate) fn new(next: *const u8, bytes: usize, tiles: usize, all: usize) -> Self {
        let left = if all < Self::LEAST_BYTES || tiles < Self::LEAST_TILES { 0 } else { bytes };
        Self { next, left, share: left.div_ceil(tiles.max(1)).next_multiple_of(64) }
    }

    /// Asks for a share.
    #[inline]
    pub(crate) fn step(&mut self) {
        let bytes = self.share.min(self.left);
        for at in (0..bytes).step_by(64) {
            hint(self.next.wrapping_add(at));
        }
        self.next = self.next.wrapping_add(bytes);
        self.left -= bytes;
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
