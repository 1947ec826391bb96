//! Copies of matrices in the order in which tiles read them.
//!
//! B: panels of `panel` columns, each `[k][panel]`, the last padded with zeros to whole vectors. A: its
//! rows, at distances that caches like.

use crate::gemm::Matrix;

/// Packs all of B.
pub(super) fn pack_b(b: Matrix<'_>, k: usize, n: usize, panel: usize, lanes: usize, packed: &mut [f32]) {
    let mut at = 0;
    for first in (0..n).step_by(panel) {
        let cols = panel.min(n - first);
        let width = if cols <= lanes { lanes } else { panel };
        let target = &mut packed[at..at + width * k];
        at += target.len();
        if b.col == 1 {
            for (p, row) in target.chunks_exact_mut(width).enumerate() {
                let from = p * b.row + first;
                pack_columns(&b.data[from..from + cols], row);
            }
        } else {
            pack_strided(b, first, cols, width, k, target);
        }
    }
}

/// Packs a panel of a matrix whose columns are apart.
fn pack_strided(b: Matrix<'_>, first: usize, cols: usize, width: usize, k: usize, target: &mut [f32]) {
    if b.row == 1 {
        // Each column lies together: the panel is a transpose.
        crate::transpose(&b.data[first * b.col..], b.col, cols, k, target, width);
        for row in target.chunks_exact_mut(width) {
            row[cols..].fill(0.0);
        }
        return;
    }
    for (p, row) in target.chunks_exact_mut(width).enumerate() {
        for (c, value) in row.iter_mut().enumerate() {
            *value = if c < cols { b.data[p * b.row + (first + c) * b.col] } else { 0.0 };
        }
    }
}

/// One k of a panel: its columns, and zeros.
fn pack_columns(columns: &[f32], row: &mut [f32]) {
    let (head, tail) = row.split_at_mut(columns.len());
    head.copy_from_slice(columns);
    tail.fill(0.0);
}

/// Copies `rows` rows of A from `row` on, over `k0 .. k1`, to rows that are `stride` apart.
pub(super) fn copy_rows(
    a: Matrix<'_>,
    row: usize,
    rows: usize,
    k0: usize,
    k1: usize,
    stride: usize,
    target: &mut [f32],
) {
    let (start, len) = (row * a.row + k0 * a.col, k1 - k0);
    if a.col == 1 {
        for (r, out) in target.chunks_mut(stride).take(rows).enumerate() {
            let from = start + r * a.row;
            out[..len].copy_from_slice(&a.data[from..from + len]);
        }
    } else if a.row == 1 {
        crate::transpose(&a.data[start..], a.col, len, rows, target, stride);
    } else {
        for (r, out) in target.chunks_mut(stride).take(rows).enumerate() {
            for (p, value) in out[..len].iter_mut().enumerate() {
                *value = a.data[start + r * a.row + p * a.col];
            }
        }
    }
}
