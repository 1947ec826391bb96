//! Weights on their way to L2 before they are wanted.
//!
//! A panel of packed weights is read once by each tile of rows; all but the first find it in L2. The first
//! would wait for L3 or memory, since hardware looks ahead within a page alone. So tiles of a panel each ask
//! for a share of the next one, a line at a time between their products: asked for at once, a share fills the
//! few places for lines under way, and what is wanted now waits behind it. Where a panel has one tile, that
//! asks for its own lines some steps ahead.

/// What a tile asks for on its way.
#[derive(Clone, Copy)]
pub(crate) enum Ahead {
    /// Nothing.
    Nothing,
    /// Its own panels, some steps ahead.
    Own,
    /// A share of the panel that comes after all tiles of this one.
    Next(Share),
}

impl Ahead {
    /// Weights of less are in L2 anyway.
    const LEAST_BYTES: usize = 256 << 10;

    /// For tiles of a panel, `tiles` of them of `depth` steps, of which each waits for `bytes` at `next` to be
    /// asked for; all weights are `all` bytes.
    pub(crate) fn new(next: *const u8, bytes: usize, tiles: usize, depth: usize, all: usize) -> Self {
        let step = bytes.div_ceil(tiles.saturating_mul(depth).max(1));
        match () {
            () if all < Self::LEAST_BYTES || step == 0 => Self::Nothing,
            () if tiles == 1 => Self::Own,
            // More than a line a step would hold up what is wanted now.
            () if step > LINE_BYTES => Self::Nothing,
            () => Self::Next(Share { at: next, step }),
        }
    }

    /// Goes on by the share of a tile, which asked for it through a copy.
    pub(crate) fn passed(&mut self, depth: usize) {
        if let Self::Next(share) = self {
            share.at = share.at.wrapping_add(share.step * depth);
        }
    }
}

/// What a hint brings.
const LINE_BYTES: usize = 64;

/// Whether hints are more than nothing here.
pub(crate) const HINTS: bool = cfg!(all(target_arch = "x86_64", not(miri)));

/// Asks between the products of a tile.
pub(crate) trait Ask {
    /// Whether lines of its own panels are asked for.
    const OWN: bool;

    /// Asks for what else is due in a step, and goes on.
    fn step(&mut self);
}

/// Asks for nothing.
pub(crate) struct Nothing;

impl Ask for Nothing {
    const OWN: bool = false;

    #[inline(always)]
    fn step(&mut self) {}
}

/// Asks for the tile's own lines.
pub(crate) struct Own;

impl Ask for Own {
    const OWN: bool = true;

    #[inline(always)]
    fn step(&mut self) {}
}

/// So many bytes a step.
#[derive(Clone, Copy)]
pub(crate) struct Share {
    at: *const u8,
    step: usize,
}

impl Ask for Share {
    const OWN: bool = false;

    #[inline(always)]
    fn step(&mut self) {
        hint::<true>(self.at);
        self.at = self.at.wrapping_add(self.step);
    }
}

/// Asks for what a tile reads some steps after `columns`, its vector j, of so many bytes; one of those that
/// share a line asks for it.
#[inline(always)]
pub(crate) fn own_line<T>(columns: *const T, j: usize, vector_bytes: usize) {
    const DISTANCE_BYTES: usize = 4 << 10;
    if (j * vector_bytes).is_multiple_of(LINE_BYTES) {
        hint::<false>(columns.cast::<u8>().wrapping_add(DISTANCE_BYTES));
    }
}

/// Asks for the line at an address, which need not exist: for L2, or for both caches.
#[inline(always)]
fn hint<const L2: bool>(at: *const u8) {
    #[cfg(all(target_arch = "x86_64", not(miri)))]
    // SAFETY: a hint reads nothing; SSE is part of x86-64.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _MM_HINT_T1, _mm_prefetch};
        if L2 {
            _mm_prefetch::<_MM_HINT_T1>(at.cast());
        } else {
            _mm_prefetch::<_MM_HINT_T0>(at.cast());
        }
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri))))]
    let _ = at;
}
