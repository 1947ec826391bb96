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

    /// What each of the `tiles` tiles of a panel, of `depth` steps each, asks for, so that together they ask
    /// for the `bytes` at `next`. All weights are `all` bytes.
    pub(crate) fn new(next: *const u8, bytes: usize, tiles: usize, depth: usize, all: usize) -> Self {
        let step = bytes.div_ceil(tiles.saturating_mul(depth).max(1));
        match () {
            () if all < Self::LEAST_BYTES => Self::Nothing,
            () if tiles == 1 => Self::Own,
            // More than a line a step would hold up what is wanted now.
            () if step == 0 || step > LINE_BYTES => Self::Nothing,
            () => Self::Next(Share { at: next, step }),
        }
    }

    /// Goes on by the share of a tile. Where there are more tiles than were counted, the last ask for what
    /// lies beyond the panel, which costs no more than the hint.
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

impl Share {
    /// The share that is asked for, or the line of `read` again and again, which is in the first cache: for
    /// tiles that are compiled for shares alone.
    #[inline(always)]
    pub(crate) fn of<T>(ahead: Ahead, read: *const T) -> Self {
        match ahead {
            Ahead::Next(share) => share,
            Ahead::Nothing | Ahead::Own => Self { at: read.cast(), step: 0 },
        }
    }
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

#[cfg(test)]
mod tests {
    use super::Ahead;

    /// What tiles ask for: `"nothing"`, `"own"`, or the bytes a step.
    fn asked(bytes: usize, tiles: usize, depth: usize, all: usize) -> String {
        match Ahead::new(std::ptr::null(), bytes, tiles, depth, all) {
            Ahead::Nothing => "nothing".to_owned(),
            Ahead::Own => "own".to_owned(),
            Ahead::Next(share) => share.step.to_string(),
        }
    }

    #[test]
    fn tiles_ask_for_no_more_than_a_line_a_step() {
        let large = 1 << 20;
        assert_eq!(asked(128 * 100, 4, 100, (256 << 10) - 1), "nothing", "all weights are in L2");
        assert_eq!(asked(128 * 100, 4, 100, large), "32");
        assert_eq!(asked(128 * 100, 2, 100, large), "64");
        assert_eq!(asked(128 * 100 + 1, 2, 100, large), "nothing", "more than a line");
        assert_eq!(asked(128 * 100, 1, 100, large), "own");
        assert_eq!(asked(0, 1, 100, large), "own", "the last panel");
        assert_eq!(asked(0, 4, 100, large), "nothing", "the last panel");
        assert_eq!(asked(1, 0, 0, large), "1", "no step at all");
    }

    #[test]
    fn shares_follow_each_other() {
        let weights = [0_u8; 640];
        let mut ahead = Ahead::new(weights.as_ptr(), 640, 2, 10, 1 << 20);
        ahead.passed(10);
        let Ahead::Next(share) = ahead else { panic!("a share") };
        assert_eq!(share.at, weights.as_ptr().wrapping_add(320));
    }
}
