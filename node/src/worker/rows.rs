//! Rows of tensors: laid side by side for a batch, and taken apart again, along any axis.
//!
//! Works on raw bytes of element types of fixed size. Strings differ in length per element; they are never batched.

use bytes::Bytes;
use rkyv::util::AlignedVec;
use roost_protocol::frame::ALIGNMENT;
use roost_protocol::tensor::TensorError;
use roost_protocol::{DType, Shape, Tensor, TensorView};

/// Why tensors cannot be joined or parted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RowsError {
    /// Nothing to join.
    #[error("there is nothing to join")]
    Nothing,
    /// The tensor has no such axis.
    #[error("shape {shape} has no axis {axis}")]
    Axis {
        /// The shape.
        shape: Shape,
        /// The axis.
        axis: usize,
    },
    /// Tensors that differ in more than their rows.
    #[error("{first} and {other} differ in more than their rows")]
    Differ {
        /// The first.
        first: String,
        /// The one that differs.
        other: String,
    },
    /// Strings.
    #[error("strings are not batched")]
    Strings,
    /// The rows to part into are not those that the tensor has.
    #[error("shape {shape} has {actual} rows along axis {axis}, it should have {expected}")]
    Count {
        /// The shape.
        shape: Shape,
        /// The axis.
        axis: usize,
        /// Rows that it should have.
        expected: u64,
        /// Rows that it has.
        actual: u64,
    },
    /// What comes out is no tensor.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// How a tensor's bytes lie around an axis: `outer` times, per row along the axis, `row_bytes` bytes.
struct Layout {
    outer: usize,
    row_bytes: usize,
    rows: u64,
}

fn layout(dtype: DType, shape: Shape, axis: usize) -> Result<Layout, RowsError> {
    let width = dtype.element_bytes().ok_or(RowsError::Strings)?;
    let dims = shape.dims();
    let rows = *dims.get(axis).ok_or(RowsError::Axis { shape, axis })?;
    // An empty tensor may have dimensions whose product overflows; it has no bytes to lay out.
    if shape.elements() == Some(0) {
        return Ok(Layout { outer: 0, row_bytes: 0, rows });
    }
    // A valid tensor that is not empty has fewer elements than fit a usize, and so have its parts.
    let product = |dims: &[u64]| dims.iter().product::<u64>() as usize;
    Ok(Layout { outer: product(&dims[..axis]), row_bytes: product(&dims[axis + 1..]) * width, rows })
}

/// Joins tensors along `axis`. They are equal in element type and in all other dimensions.
///
/// # Errors
/// [`RowsError`] when they are not, hold strings, have no such axis, or are too large together.
pub fn concat(parts: &[TensorView<'_>], axis: usize) -> Result<Tensor, RowsError> {
    let first = parts.first().ok_or(RowsError::Nothing)?;
    let (dtype, shape) = (first.dtype(), first.shape());
    let first_layout = layout(dtype, shape, axis)?;
    let mut rows = 0u64;
    let mut layouts = Vec::with_capacity(parts.len());
    for part in parts {
        let same_type = part.dtype() == dtype && part.shape().rank() == shape.rank();
        if !same_type || part.shape().with_dim(axis, first_layout.rows) != shape {
            return Err(RowsError::Differ { first: format!("{first:?}"), other: format!("{part:?}") });
        }
        let part_layout = layout(dtype, part.shape(), axis)?;
        rows = rows.saturating_add(part_layout.rows);
        layouts.push(part_layout);
    }
    let outer = layouts.iter().map(|layout| layout.outer).max().unwrap_or(0);
    // Aligned as a frame's body is, so that an engine may read a batch as it reads a request.
    let mut bytes = AlignedVec::<ALIGNMENT>::with_capacity(parts.iter().map(|part| part.bytes().len()).sum());
    for index in 0..outer {
        for (part, layout) in parts.iter().zip(&layouts) {
            let run = layout.rows as usize * layout.row_bytes;
            bytes.extend_from_slice(&part.bytes()[index * run..(index + 1) * run]);
        }
    }
    Ok(Tensor::new(dtype, shape.with_dim(axis, rows), Bytes::from_owner(bytes))?)
}

/// Parts a tensor along `axis` into tensors of `rows` rows each. Along the outermost axis they share its bytes.
///
/// # Errors
/// [`RowsError`] when the rows do not add up to the tensor's, it holds strings, or has no such axis.
pub fn scatter(tensor: &Tensor, axis: usize, rows: &[u64]) -> Result<Vec<Tensor>, RowsError> {
    let (dtype, shape) = (tensor.dtype(), tensor.shape());
    let Layout { outer, row_bytes, rows: actual } = layout(dtype, shape, axis)?;
    let expected = rows.iter().fold(0u64, |sum, rows| sum.saturating_add(*rows));
    if expected != actual {
        return Err(RowsError::Count { shape, axis, expected, actual });
    }
    let stride = actual as usize * row_bytes;
    let mut start = 0;
    let mut parts = Vec::with_capacity(rows.len());
    for count in rows {
        let run = *count as usize * row_bytes;
        let bytes = if outer == 1 {
            tensor.bytes().slice(start..start + run)
        } else {
            let mut bytes = AlignedVec::<ALIGNMENT>::with_capacity(outer * run);
            for index in 0..outer {
                let at = index * stride + start;
                bytes.extend_from_slice(&tensor.bytes()[at..at + run]);
            }
            Bytes::from_owner(bytes)
        };
        parts.push(Tensor::new(dtype, shape.with_dim(axis, *count), bytes)?);
        start += run;
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn rows_lie_where_the_axis_says() {
        let part = |rows: u64, from: i32| {
            let count = (2 * rows) as i32;
            Tensor::from_elements(&[2, rows], (from..from + count).collect::<Vec<_>>()).unwrap()
        };
        let (a, b) = (part(1, 0), part(2, 10));
        let joined = concat(&[a.view(), b.view()], 1).unwrap();
        assert_eq!(joined.shape().dims(), [2, 3]);
        assert_eq!(joined.elements::<i32>().unwrap(), [0, 10, 11, 1, 12, 13]);
        assert_eq!(scatter(&joined, 1, &[1, 2]).unwrap(), [a, b]);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let tensor = |dims: &[u64]| {
            Tensor::from_elements(dims, vec![0u8; dims.iter().product::<u64>() as usize]).unwrap()
        };
        let (a, b, c) = (tensor(&[1, 2]), tensor(&[1, 3]), tensor(&[1, 2, 1]));
        assert!(matches!(concat(&[a.view(), b.view()], 0), Err(RowsError::Differ { .. })));
        assert!(matches!(concat(&[a.view(), c.view()], 0), Err(RowsError::Differ { .. })));
        assert_eq!(concat(&[], 0), Err(RowsError::Nothing));
        assert_eq!(concat(&[a.view()], 2), Err(RowsError::Axis { shape: a.shape(), axis: 2 }));
        let texts = Tensor::from_strings(&[1], &["x"]).unwrap();
        assert_eq!(concat(&[texts.view()], 0), Err(RowsError::Strings));
        let error = scatter(&b, 1, &[1, 1]).unwrap_err();
        assert_eq!(error.to_string(), "shape [1, 3] has 3 rows along axis 1, it should have 2");
        scatter(&b, 1, &[u64::MAX, 4]).unwrap_err();
        let huge_but_empty =
            Tensor::new(DType::F32, Shape::new(&[u64::MAX, 0]).unwrap(), Bytes::new()).unwrap();
        assert_eq!(concat(&[huge_but_empty.view()], 0).unwrap(), huge_but_empty);
    }

    fn tensors() -> impl Strategy<Value = (Vec<Tensor>, usize)> {
        let dtype = prop::sample::select(&DType::ALL[..13]);
        let dims = prop::collection::vec(0u64..4, 1..5);
        let rows = prop::collection::vec(0u64..5, 1..6);
        (dtype, dims, rows, any::<prop::sample::Index>(), any::<u64>()).prop_map(
            |(dtype, dims, rows, axis, seed)| {
                let axis = axis.index(dims.len());
                let width = dtype.element_bytes().unwrap();
                let mut next = seed;
                let mut byte = || {
                    next = next.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                    // Zeroes and ones are valid in every element type, booleans too.
                    (next >> 63) as u8
                };
                let tensor = |rows: &u64| {
                    let shape = Shape::new(&dims).unwrap().with_dim(axis, *rows);
                    let bytes: Vec<u8> =
                        (0..shape.elements().unwrap() as usize * width).map(|_| byte()).collect();
                    Tensor::new(dtype, shape, bytes.into()).unwrap()
                };
                (rows.iter().map(tensor).collect(), axis)
            },
        )
    }

    proptest! {
        #[test]
        fn what_was_joined_comes_apart_again((parts, axis) in tensors()) {
            let views: Vec<_> = parts.iter().map(Tensor::view).collect();
            let rows: Vec<_> = parts.iter().map(|part| part.shape().dims()[axis]).collect();
            let joined = concat(&views, axis).unwrap();
            prop_assert_eq!(joined.shape().dims()[axis], rows.iter().sum::<u64>());
            prop_assert_eq!(scatter(&joined, axis, &rows).unwrap(), parts);
        }
    }
}
