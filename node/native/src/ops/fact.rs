//! What is known of a value when an operator gets its shapes: type, dimensions, and the data if it is
//! constant.

use crate::error::OpError;
use crate::tensor::{DType, Tensor, bytes_of};

/// Dimensions of a tensor.
pub type Shape = Vec<usize>;

/// Ranks above this are refused: iteration uses fixed arrays of this length.
pub const RANK_MAX: usize = 12;

/// An input of an operator.
#[derive(Debug, Clone, Copy)]
pub struct Fact<'a> {
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: &'a [usize],
    /// The data, where known.
    pub value: Option<&'a Tensor>,
    /// Whether the data is a constant of the graph, worth being packed.
    pub pinned: bool,
}

impl Fact<'_> {
    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The rank.
    pub fn rank(&self) -> usize {
        self.shape.len()
    }
}

/// Type and dimensions of an output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Out {
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Shape,
}

impl Out {
    /// An output.
    pub fn new(dtype: DType, shape: impl Into<Shape>) -> Self {
        Self { dtype, shape: shape.into() }
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.shape.contains(&0)
    }

    /// The number of bytes.
    pub fn bytes(&self) -> usize {
        self.len() * self.dtype.bytes()
    }
}

/// The inputs of an operator.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a>(pub &'a [Option<Fact<'a>>]);

impl<'a> Facts<'a> {
    /// How many there are, absent ones counted.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// An optional input.
    pub fn get(&self, index: usize) -> Option<Fact<'a>> {
        self.0.get(index).copied().flatten()
    }

    /// A required input.
    ///
    /// # Errors
    /// [`OpError::MissingInput`].
    pub fn need(&self, index: usize) -> Result<Fact<'a>, OpError> {
        self.get(index).ok_or(OpError::MissingInput(index))
    }

    /// A required input of one of these types.
    ///
    /// # Errors
    /// [`OpError::MissingInput`], [`OpError::DType`].
    pub fn typed(&self, index: usize, dtypes: &[DType]) -> Result<Fact<'a>, OpError> {
        let fact = self.need(index)?;
        if dtypes.contains(&fact.dtype) {
            Ok(fact)
        } else {
            Err(OpError::DType { input: index, dtype: fact.dtype })
        }
    }

    /// The data of a required input.
    ///
    /// # Errors
    /// [`OpError::MissingInput`], or [`OpError::Dynamic`] where it is not known.
    pub fn value(&self, index: usize) -> Result<&'a Tensor, OpError> {
        self.need(index)?.value.ok_or(OpError::Dynamic(index))
    }

    /// The data of an optional integer input.
    ///
    /// # Errors
    /// [`OpError::Dynamic`] where it is not known, [`OpError::DType`] where it is not integer.
    pub fn ints(&self, index: usize) -> Result<Option<Vec<i64>>, OpError> {
        let Some(fact) = self.get(index) else { return Ok(None) };
        let value = fact.value.ok_or(OpError::Dynamic(index))?;
        value.ints().map(Some).ok_or(OpError::DType { input: index, dtype: fact.dtype })
    }

    /// The data of a required integer input.
    ///
    /// # Errors
    /// As [`Facts::ints`], and [`OpError::MissingInput`].
    pub fn need_ints(&self, index: usize) -> Result<Vec<i64>, OpError> {
        self.ints(index)?.ok_or(OpError::MissingInput(index))
    }

    /// The one integer of a required input.
    ///
    /// # Errors
    /// As [`Facts::need_ints`], and [`OpError::Shape`] unless it is one.
    pub fn need_int(&self, index: usize) -> Result<i64, OpError> {
        match self.need_ints(index)?[..] {
            [one] => Ok(one),
            ref other => {
                Err(OpError::Shape(format!("input {index} has {} elements, one is taken", other.len())))
            }
        }
    }
}

/// An axis of a tensor of this rank, where negative values count from the end.
///
/// # Errors
/// [`OpError::Shape`] outside the rank.
pub fn axis_of(axis: i64, rank: usize) -> Result<usize, OpError> {
    let wrapped = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    usize::try_from(wrapped)
        .ok()
        .filter(|axis| *axis < rank)
        .ok_or_else(|| OpError::Shape(format!("axis {axis} of a tensor of rank {rank}")))
}

/// The shape that two shapes broadcast to.
///
/// # Errors
/// [`OpError::Shape`] where they do not.
pub fn broadcast(a: &[usize], b: &[usize]) -> Result<Shape, OpError> {
    let rank = a.len().max(b.len());
    let dim = |shape: &[usize], i: usize| (i + shape.len()).checked_sub(rank).map_or(1, |i| shape[i]);
    (0..rank)
        .map(|i| match (dim(a, i), dim(b, i)) {
            (x, y) if x == y => Ok(x),
            (1, y) => Ok(y),
            (x, 1) => Ok(x),
            _ => Err(OpError::Shape(format!("{a:?} and {b:?} do not broadcast"))),
        })
        .collect()
}

/// The number of elements of a shape that came from data, checked.
///
/// # Errors
/// [`OpError::TooLarge`] past the address space.
pub fn checked_len(dtype: DType, shape: &[usize]) -> Result<usize, OpError> {
    bytes_of(dtype, shape).map(|bytes| bytes / dtype.bytes()).ok_or(OpError::TooLarge {
        bytes: shape.iter().fold(dtype.bytes() as u128, |all, dim| all.saturating_mul(*dim as u128)),
        bytes_max: usize::MAX as u64,
    })
}

/// Row-major strides in elements.
pub fn strides_of(shape: &[usize]) -> Vec<usize> {
    let mut strides = vec![1_usize; shape.len()];
    for i in (1..shape.len()).rev() {
        strides[i - 1] = strides[i].saturating_mul(shape[i]);
    }
    strides
}
