//! What happens to a sum of products before it is stored: bias, residual, activation.

use crate::elementwise::Unary;
use crate::gemm::tile::Clamp;

/// The last step of a product or convolution.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Activation {
    /// The sum as it is.
    #[default]
    None,
    /// Not below 0; NaN stays.
    Relu,
    /// Within bounds; NaN stays.
    Clip {
        /// The lower bound.
        min: f32,
        /// The upper bound.
        max: f32,
    },
    /// Any other function.
    Map(Unary),
}

impl Activation {
    /// The part that a tile does in registers, and the function that follows.
    pub(crate) fn split(self) -> (Clamp, Option<Unary>) {
        match self {
            Self::None => (Clamp::Free, None),
            Self::Relu => (Clamp::Low(0.0), None),
            Self::Clip { min, max } => (Clamp::Both(min, max), None),
            Self::Map(unary) => (Clamp::Free, Some(unary)),
        }
    }
}

/// `activation(sum + bias + residual)`.
#[derive(Debug, Clone, Copy, Default)]
pub struct Epilogue<'a> {
    /// Whether sums go on from what the output holds, instead of from 0. For products only; a convolution
    /// starts anew.
    pub accumulate: bool,
    /// `[columns]`, added to each row.
    pub bias: Option<&'a [f32]>,
    /// `[rows, columns]`, added element by element.
    pub residual: Option<Rows<'a>>,
    /// What is done last.
    pub activation: Activation,
}

/// Rows of equal length, at equal distances. The last one need not be followed by anything.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    /// The elements.
    pub data: &'a [f32],
    /// From the start of a row to that of the next, in elements.
    pub stride: usize,
}

impl Rows<'_> {
    /// # Panics
    /// When `rows` rows of `cols` do not fit.
    pub(crate) fn check(&self, rows: usize, cols: usize) {
        assert!(self.data.len() >= extent(rows, self.stride, cols), "rows reach beyond their slice");
        assert!(rows <= 1 || self.stride >= cols, "rows overlap");
    }
}

/// Elements from the first of `rows` rows to the last's end.
///
/// # Panics
/// When that exceeds the address space.
pub(crate) fn extent(rows: usize, stride: usize, cols: usize) -> usize {
    if rows == 0 || cols == 0 {
        return 0;
    }
    (rows - 1)
        .checked_mul(stride)
        .and_then(|last| last.checked_add(cols))
        .expect("an extent fits the address space")
}
