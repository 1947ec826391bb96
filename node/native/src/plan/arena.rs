//! Laying values out in one arena: interval colouring, largest first, each at the lowest offset that is free
//! while it lives.

use std::ops::Range;

use crate::tensor::ALIGN_BYTES;

/// A value to place: its bytes and the steps during which it lives, both ends included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    /// Bytes.
    pub bytes: usize,
    /// First and last step.
    pub steps: Range<usize>,
}

/// The offset of each value, 64-byte aligned, and the bytes of the arena.
pub fn place(lives: &[Life]) -> (Vec<usize>, usize) {
    let mut order: Vec<usize> = (0..lives.len()).filter(|i| lives[*i].bytes > 0).collect();
    order.sort_by_key(|i| (std::cmp::Reverse(lives[*i].bytes), *i));
    let mut offsets = vec![0; lives.len()];
    let mut placed: Vec<usize> = Vec::new();
    let mut total = 0;
    for i in order {
        let mut taken: Vec<Range<usize>> = placed
            .iter()
            .filter(|p| overlap(&lives[**p].steps, &lives[i].steps))
            .map(|p| offsets[*p]..offsets[*p] + lives[*p].bytes.next_multiple_of(ALIGN_BYTES))
            .collect();
        taken.sort_unstable_by_key(|range| range.start);
        let mut at = 0;
        for range in taken {
            if range.start >= at + lives[i].bytes {
                break;
            }
            at = at.max(range.end);
        }
        offsets[i] = at;
        total = total.max(at + lives[i].bytes.next_multiple_of(ALIGN_BYTES));
        placed.push(i);
    }
    (offsets, total)
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> bool {
    a.start <= b.end && b.start <= a.end
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn values_that_live_together_are_apart(
            lives in proptest::collection::vec((0_usize..300, 0_usize..20, 0_usize..20), 0..40)
        ) {
            let lives: Vec<Life> =
                lives.iter().map(|(bytes, from, len)| Life { bytes: *bytes, steps: *from..from + len }).collect();
            let (offsets, total) = place(&lives);
            for (i, a) in lives.iter().enumerate().filter(|(_, a)| a.bytes > 0) {
                prop_assert!(offsets[i] % ALIGN_BYTES == 0 && offsets[i] + a.bytes <= total);
                for (j, b) in lives.iter().enumerate().filter(|(j, b)| *j > i && b.bytes > 0) {
                    let apart = offsets[i] + a.bytes <= offsets[j] || offsets[j] + b.bytes <= offsets[i];
                    prop_assert!(apart || !overlap(&a.steps, &b.steps));
                }
            }
        }
    }

    #[test]
    fn memory_is_used_again() {
        let life = |steps| Life { bytes: 64, steps };
        let (offsets, total) = place(&[life(0..1), life(1..2), life(2..3)]);
        assert_eq!(total, 128);
        assert_eq!(offsets[0], offsets[2]);
    }
}
