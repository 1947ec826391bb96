//! The transpose of a matrix of any element, in blocks that stay in the first cache.
//!
//! Elements of 4 bytes go through registers, 4 × 4 at a time, with instructions that every x86-64 and ARM64
//! has; others one by one.

use std::any::TypeId;

/// Side of a block: 16 rows of 16 elements of 4 bytes are 16 lines in and 16 lines out.
const BLOCK: usize = 16;

/// `to[c][r] = from[r][c]` for `rows × cols`; strides are from a row to the next of each side, in elements.
/// Elements of `to` between its rows are left as they are.
///
/// # Panics
/// When a slice is shorter than its shape and stride say.
pub fn transpose<T: Copy + 'static>(
    from: &[T],
    from_stride: usize,
    rows: usize,
    cols: usize,
    to: &mut [T],
    to_stride: usize,
) {
    assert!(from.len() >= crate::gemm::extent(rows, from_stride, cols), "the input reaches beyond its slice");
    assert!(to.len() >= crate::gemm::extent(cols, to_stride, rows), "the output reaches beyond its slice");
    assert!(cols <= 1 || to_stride >= rows, "the output's rows overlap");
    let four_bytes =
        [TypeId::of::<f32>(), TypeId::of::<i32>(), TypeId::of::<u32>()].contains(&TypeId::of::<T>());
    for r0 in (0..rows).step_by(BLOCK) {
        let height = BLOCK.min(rows - r0);
        for c0 in (0..cols).step_by(BLOCK) {
            let width = BLOCK.min(cols - c0);
            let (mut down, mut across) = (0, 0);
            if four_bytes && cfg!(any(target_arch = "x86_64", target_arch = "aarch64")) {
                (down, across) = (height / 4 * 4, width / 4 * 4);
                for r in (r0..r0 + down).step_by(4) {
                    for c in (c0..c0 + across).step_by(4) {
                        // SAFETY: elements are numbers of 4 bytes; rows r .. r + 4 and columns c .. c + 4 are
                        // within the matrix, whose extents were checked for both slices.
                        unsafe {
                            let source = from.as_ptr().add(r * from_stride + c).cast();
                            let target = to.as_mut_ptr().add(c * to_stride + r).cast();
                            four_by_four(source, from_stride, target, to_stride);
                        }
                    }
                }
            }
            // What is left: the columns beyond `across`, and below them the rows beyond `down`.
            for c in c0..c0 + width {
                let first = if c < c0 + across { down } else { 0 };
                let out = &mut to[c * to_stride + r0 + first..][..height - first];
                let mut at = (r0 + first) * from_stride + c;
                for value in out {
                    *value = from[at];
                    at += from_stride;
                }
            }
        }
    }
}

/// Transposes four rows of four.
///
/// # Safety
/// Four values may be read at each of four rows, and written at each of four rows.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
unsafe fn four_by_four(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::x86_64::{_mm_loadu_ps, _mm_movehl_ps, _mm_movelh_ps, _mm_storeu_ps};
    use std::arch::x86_64::{_mm_unpackhi_ps, _mm_unpacklo_ps};
    // SAFETY: as the function; SSE is part of x86-64.
    unsafe {
        let a = _mm_loadu_ps(from);
        let b = _mm_loadu_ps(from.add(from_stride));
        let c = _mm_loadu_ps(from.add(2 * from_stride));
        let d = _mm_loadu_ps(from.add(3 * from_stride));
        let (ab_low, ab_high) = (_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b));
        let (cd_low, cd_high) = (_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
        _mm_storeu_ps(to, _mm_movelh_ps(ab_low, cd_low));
        _mm_storeu_ps(to.add(to_stride), _mm_movehl_ps(cd_low, ab_low));
        _mm_storeu_ps(to.add(2 * to_stride), _mm_movelh_ps(ab_high, cd_high));
        _mm_storeu_ps(to.add(3 * to_stride), _mm_movehl_ps(cd_high, ab_high));
    }
}

/// Transposes four rows of four.
///
/// # Safety
/// Four values may be read at each of four rows, and written at each of four rows.
#[cfg(target_arch = "aarch64")]
#[inline(always)]
unsafe fn four_by_four(from: *const f32, from_stride: usize, to: *mut f32, to_stride: usize) {
    use std::arch::aarch64::{
        float32x4_t, vld1q_f32, vst1q_f32, vtrn1q_f32, vtrn1q_f64, vtrn2q_f32, vtrn2q_f64,
    };
    use std::arch::aarch64::{vreinterpretq_f32_f64, vreinterpretq_f64_f32};
    // SAFETY: as the function; NEON is part of the targets that this is built for.
    unsafe {
        let a = vld1q_f32(from);
        let b = vld1q_f32(from.add(from_stride));
        let c = vld1q_f32(from.add(2 * from_stride));
        let d = vld1q_f32(from.add(3 * from_stride));
        let (ab_even, ab_odd) = (vtrn1q_f32(a, b), vtrn2q_f32(a, b));
        let (cd_even, cd_odd) = (vtrn1q_f32(c, d), vtrn2q_f32(c, d));
        let wide = |x: float32x4_t| vreinterpretq_f64_f32(x);
        let back = |x| vreinterpretq_f32_f64(x);
        vst1q_f32(to, back(vtrn1q_f64(wide(ab_even), wide(cd_even))));
        vst1q_f32(to.add(to_stride), back(vtrn1q_f64(wide(ab_odd), wide(cd_odd))));
        vst1q_f32(to.add(2 * to_stride), back(vtrn2q_f64(wide(ab_even), wide(cd_even))));
        vst1q_f32(to.add(3 * to_stride), back(vtrn2q_f64(wide(ab_odd), wide(cd_odd))));
    }
}

/// Never called: other machines take elements one by one.
///
/// # Safety
/// None is needed.
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
unsafe fn four_by_four(_: *const f32, _: usize, _: *mut f32, _: usize) {}

#[cfg(test)]
mod tests {
    use super::transpose;

    fn check<T: Copy + PartialEq + std::fmt::Debug + 'static>(number: fn(usize) -> T) {
        for rows in (0..37).step_by(crate::test::sized(1, 1, 9)) {
            for cols in [0, 1, 17, 33, 2, 3, 4, 15, 16].into_iter().take(crate::test::sized(9, 9, 3)) {
                let from: Vec<T> = (0..rows * (cols + 1)).map(number).collect();
                let untouched = number(9_999);
                let mut to = vec![untouched; cols * (rows + 2)];
                transpose(&from, cols + 1, rows, cols, &mut to, rows + 2);
                for c in 0..cols {
                    for r in 0..rows + 2 {
                        let expected = if r < rows { from[r * (cols + 1) + c] } else { untouched };
                        assert_eq!(to[c * (rows + 2) + r], expected, "{rows}x{cols} at {r}, {c}");
                    }
                }
            }
        }
    }

    #[test]
    fn every_shape_with_gaps() {
        check(|x| x as u16);
        check(|x| x as f32);
        check(|x| x as i32);
        check(|x| x as u64);
    }

    #[test]
    fn not_an_element_beyond_the_ends() {
        for (rows, cols) in [(4, 4), (5, 7), (16, 20), (33, 3)] {
            let from = crate::test::Guarded::from(&crate::test::noise(rows * cols, 1));
            let mut to = crate::test::Guarded::from(&vec![0.0f32; rows * cols]);
            transpose(&from, cols, rows, cols, &mut to, rows);
            assert_eq!(to[(cols - 1) * rows + rows - 1], from[rows * cols - 1]);
        }
    }
}
