//! Walking tensors by strides: the one loop under transposes, slices, broadcasts and concatenation.
//!
//! Invariant: nothing here allocates while it runs; merged dimensions are fixed arrays made when the plan is
//! made.

use bytemuck::Pod;

use super::fact::RANK_MAX;
use crate::error::OpError;

/// Dimensions with one stride per operand; adjacent dimensions that are contiguous for all operands are one.
#[derive(Debug, Clone)]
pub struct Walk<const N: usize> {
    dims: [usize; RANK_MAX],
    strides: [[isize; N]; RANK_MAX],
    rank: usize,
}

impl<const N: usize> Walk<N> {
    /// A walk over `dims`, outermost first, with strides in elements. The rank is at least one afterwards.
    ///
    /// # Errors
    /// [`OpError::Unsupported`] where more than [`RANK_MAX`] dimensions remain.
    pub fn new(dims: &[usize], strides: [&[isize]; N]) -> Result<Self, OpError> {
        let mut walk = Self { dims: [1; RANK_MAX], strides: [[0; N]; RANK_MAX], rank: 0 };
        for (i, &dim) in dims.iter().enumerate() {
            if dim == 1 {
                continue;
            }
            let step: [isize; N] = std::array::from_fn(|n| strides[n][i]);
            let last = walk.rank.wrapping_sub(1);
            let merges =
                walk.rank > 0 && (0..N).all(|n| walk.strides[last][n] == step[n].wrapping_mul(dim as isize));
            if merges {
                walk.dims[last] *= dim;
                walk.strides[last] = step;
            } else if walk.rank == RANK_MAX {
                return Err(OpError::Unsupported(format!("a rank above {RANK_MAX}")));
            } else {
                walk.dims[walk.rank] = dim;
                walk.strides[walk.rank] = step;
                walk.rank += 1;
            }
        }
        if walk.rank == 0 {
            walk.rank = 1;
            walk.strides[0] = [1; N];
        }
        Ok(walk)
    }

    /// The innermost dimension.
    pub fn inner(&self) -> usize {
        self.dims[self.rank - 1]
    }

    /// The strides of the innermost dimension.
    pub fn inner_strides(&self) -> [isize; N] {
        self.strides[self.rank - 1]
    }

    /// Calls `row` for each innermost row, in order, with the offset of each operand.
    pub fn rows(&self, mut row: impl FnMut(usize, [isize; N])) {
        let outer = self.rank - 1;
        if self.dims[..self.rank].contains(&0) {
            return;
        }
        let mut index = [0_usize; RANK_MAX];
        let mut at = [0_isize; N];
        let mut number = 0;
        loop {
            row(number, at);
            number += 1;
            let mut axis = outer;
            loop {
                if axis == 0 {
                    return;
                }
                axis -= 1;
                index[axis] += 1;
                at.iter_mut().zip(self.strides[axis]).for_each(|(at, stride)| *at += stride);
                if index[axis] < self.dims[axis] {
                    break;
                }
                let back = self.dims[axis] as isize;
                at.iter_mut().zip(self.strides[axis]).for_each(|(at, stride)| *at -= stride * back);
                index[axis] = 0;
            }
        }
    }
}

/// A copy whose destination is dense and whose source is strided.
#[derive(Debug, Clone)]
pub struct Gathering {
    walk: Walk<1>,
    start: isize,
    bytes: usize,
}

impl Gathering {
    /// Reads `dims` from `start` by `strides`, elements of `bytes` (1, 2, 4 or 8).
    ///
    /// # Errors
    /// As [`Walk::new`].
    pub fn new(dims: &[usize], start: isize, strides: &[isize], bytes: usize) -> Result<Self, OpError> {
        Ok(Self { walk: Walk::new(dims, [strides])?, start, bytes })
    }

    /// Copies.
    pub fn run(&self, source: &[u8], target: &mut [u8]) {
        match self.bytes {
            1 => self.typed::<u8>(source, target),
            2 => self.typed::<u16>(source, target),
            4 => self.typed::<u32>(source, target),
            _ => self.typed::<u64>(source, target),
        }
    }

    fn typed<T: Pod>(&self, source: &[u8], target: &mut [u8]) {
        if target.is_empty() {
            return;
        }
        let source: &[T] = bytemuck::cast_slice(source);
        let target: &mut [T] = bytemuck::cast_slice_mut(target);
        let inner = self.walk.inner();
        let [step] = self.walk.inner_strides();
        let start = self.start;
        self.walk.rows(|number, [at]| {
            let row = &mut target[number * inner..(number + 1) * inner];
            let from = (start + at) as usize;
            match step {
                1 => row.copy_from_slice(&source[from..from + inner]),
                0 => row.fill(source[from]),
                _ => {
                    for (i, out) in row.iter_mut().enumerate() {
                        *out = source[(from as isize + i as isize * step) as usize];
                    }
                }
            }
        });
    }
}

/// Row-major strides for reading a tensor of `shape` broadcast to `out`: zero where it repeats.
pub fn broadcast_strides(shape: &[usize], out: &[usize]) -> Vec<isize> {
    let own = super::fact::strides_of(shape);
    let lead = out.len() - shape.len();
    (0..out.len())
        .map(|i| match i.checked_sub(lead) {
            Some(i) if shape[i] != 1 => own[i] as isize,
            _ => 0,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_transpose_is_a_strided_copy() {
        let source: Vec<u32> = (0..6).collect();
        let mut target = [0_u32; 6];
        let copy = Gathering::new(&[3, 2], 0, &[1, 3], 4).expect("small");
        copy.run(bytemuck::cast_slice(&source), bytemuck::cast_slice_mut(&mut target));
        assert_eq!(target, [0, 3, 1, 4, 2, 5]);
    }

    #[test]
    fn contiguous_dimensions_merge() {
        let walk = Walk::<1>::new(&[2, 1, 3, 4], [&[12, 12, 4, 1]]).expect("small");
        assert_eq!((walk.rank, walk.inner()), (1, 24));
        let mut rows = 0;
        Walk::<1>::new(&[2, 0], [&[0, 1]]).expect("small").rows(|_, _| rows += 1);
        assert_eq!(rows, 0);
    }

    #[test]
    fn negative_strides_reverse() {
        let mut target = [0_u8; 4];
        Gathering::new(&[4], 3, &[-1], 1).expect("small").run(&[1, 2, 3, 4], &mut target);
        assert_eq!(target, [4, 3, 2, 1]);
    }
}
