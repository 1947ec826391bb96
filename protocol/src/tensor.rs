//! Tensors: element types, shapes, borrowed views and owned values.
//!
//! A [`TensorView`] borrows its bytes from the buffer that a frame was read into and was validated when it was made:
//! its byte count is that of its shape, strings are UTF-8, booleans are 0 or 1. Making one costs nanoseconds and no
//! allocation. Elements are little-endian and row-major. Nothing here computes.

use std::fmt;

use bytemuck::Pod;
use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::limits::{TENSOR_BYTES_MAX, TENSOR_RANK_MAX};

/// An element type, with the code that stands for it on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
#[allow(missing_docs, reason = "the names are the documentation")]
pub enum DType {
    F16 = 1,
    Bf16 = 2,
    F32 = 3,
    F64 = 4,
    I8 = 5,
    I16 = 6,
    I32 = 7,
    I64 = 8,
    U8 = 9,
    U16 = 10,
    U32 = 11,
    U64 = 12,
    Bool = 13,
    /// UTF-8 strings: per element a little-endian `u32` byte count, then all texts, in element order.
    String = 14,
}

impl DType {
    /// Every element type, in the order of the codes.
    pub const ALL: [Self; 14] = [
        Self::F16,
        Self::Bf16,
        Self::F32,
        Self::F64,
        Self::I8,
        Self::I16,
        Self::I32,
        Self::I64,
        Self::U8,
        Self::U16,
        Self::U32,
        Self::U64,
        Self::Bool,
        Self::String,
    ];

    /// The type that a code on the wire stands for.
    pub fn from_code(code: u8) -> Option<Self> {
        Self::ALL.get(usize::from(code).checked_sub(1)?).copied()
    }

    /// The code on the wire.
    pub fn code(self) -> u8 {
        self as u8
    }

    /// Bytes of one element; `None` for strings, which differ in length.
    pub fn element_bytes(self) -> Option<usize> {
        match self {
            Self::I8 | Self::U8 | Self::Bool => Some(1),
            Self::F16 | Self::Bf16 | Self::I16 | Self::U16 => Some(2),
            Self::F32 | Self::I32 | Self::U32 => Some(4),
            Self::F64 | Self::I64 | Self::U64 => Some(8),
            Self::String => None,
        }
    }

    /// The name that users read: `f32`, `i64`, `bool`.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::Bool => "bool",
            Self::String => "string",
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A Rust type that is an element type's representation in memory.
pub trait Element: Pod + Send + Sync {
    /// The element type it represents.
    const DTYPE: DType;
}

macro_rules! element {
    ($($rust:ty => $dtype:ident),+ $(,)?) => {
        $(impl Element for $rust {
            const DTYPE: DType = DType::$dtype;
        })+
    };
}
element!(
    half::f16 => F16, half::bf16 => Bf16, f32 => F32, f64 => F64, i8 => I8, i16 => I16, i32 => I32, i64 => I64,
    u8 => U8, u16 => U16, u32 => U32, u64 => U64,
);

/// Why bytes and a shape do not make a tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TensorError {
    /// More dimensions than [`TENSOR_RANK_MAX`].
    #[error("a tensor has at most {TENSOR_RANK_MAX} dimensions, this one has {rank}")]
    Rank {
        /// How many it has.
        rank: usize,
    },
    /// The shape asks for more than [`TENSOR_BYTES_MAX`], or overflows.
    #[error("a tensor has at most {TENSOR_BYTES_MAX} bytes; shape {shape} of {dtype} has more")]
    TooLarge {
        /// The shape.
        shape: Shape,
        /// The element type.
        dtype: DType,
    },
    /// The byte count is not that of the shape.
    #[error("shape {shape} of {dtype} takes {expected} bytes, {actual} came")]
    ByteCount {
        /// The shape.
        shape: Shape,
        /// The element type.
        dtype: DType,
        /// Bytes that the shape takes.
        expected: u64,
        /// Bytes that came.
        actual: u64,
    },
    /// A string tensor whose lengths do not add up, or whose text is not UTF-8.
    #[error("the bytes of a string tensor of shape {shape} are not {what}")]
    Strings {
        /// The shape.
        shape: Shape,
        /// What they fail to be.
        what: &'static str,
    },
    /// A byte of a boolean tensor that is neither 0 nor 1.
    #[error("a boolean is 0 or 1, element {index} is {value}")]
    Bool {
        /// The first such element.
        index: usize,
        /// Its value.
        value: u8,
    },
    /// Elements were asked for as another type than the tensor's.
    #[error("the tensor holds {actual}, it was read as {expected}")]
    DType {
        /// The type asked for.
        expected: DType,
        /// The tensor's type.
        actual: DType,
    },
    /// The bytes do not start at a multiple of the element's alignment.
    #[error("the tensor's bytes are not aligned for {dtype}")]
    Misaligned {
        /// The tensor's type.
        dtype: DType,
    },
}

/// The dimensions of a tensor, outermost first, in place: no allocation. Rank 0 is a scalar.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "Vec<u64>", into = "Vec<u64>")]
pub struct Shape {
    dims: [u64; TENSOR_RANK_MAX],
    rank: u8,
}

impl Shape {
    /// A shape of the given dimensions.
    ///
    /// # Errors
    /// [`TensorError::Rank`] above [`TENSOR_RANK_MAX`] dimensions.
    pub fn new(dims: &[u64]) -> Result<Self, TensorError> {
        if dims.len() > TENSOR_RANK_MAX {
            return Err(TensorError::Rank { rank: dims.len() });
        }
        let mut shape = Self { dims: [0; TENSOR_RANK_MAX], rank: dims.len() as u8 };
        shape.dims[..dims.len()].copy_from_slice(dims);
        Ok(shape)
    }

    /// The dimensions, outermost first.
    pub fn dims(&self) -> &[u64] {
        &self.dims[..usize::from(self.rank)]
    }

    /// How many dimensions there are.
    pub fn rank(&self) -> usize {
        usize::from(self.rank)
    }

    /// The number of elements; `None` when it overflows.
    pub fn elements(&self) -> Option<u64> {
        self.dims().iter().try_fold(1u64, |product, dim| product.checked_mul(*dim))
    }

    /// The same shape with dimension `axis` replaced, for a batch of other size.
    ///
    /// # Panics
    /// When `axis` is not below the rank.
    #[must_use]
    pub fn with_dim(mut self, axis: usize, dim: u64) -> Self {
        assert!(axis < self.rank(), "axis {axis} of a shape of rank {}", self.rank);
        self.dims[axis] = dim;
        self
    }
}

impl TryFrom<Vec<u64>> for Shape {
    type Error = TensorError;
    fn try_from(dims: Vec<u64>) -> Result<Self, TensorError> {
        Self::new(&dims)
    }
}

impl From<Shape> for Vec<u64> {
    fn from(shape: Shape) -> Self {
        shape.dims().to_vec()
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (i, dim) in self.dims().iter().enumerate() {
            write!(f, "{}{dim}", if i == 0 { "" } else { ", " })?;
        }
        f.write_str("]")
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A validated tensor whose bytes are somebody else's.
#[derive(Clone, Copy, PartialEq)]
pub struct TensorView<'a> {
    dtype: DType,
    shape: Shape,
    bytes: &'a [u8],
}

impl<'a> TensorView<'a> {
    /// Validates `bytes` as a tensor of `dtype` and `shape`.
    ///
    /// # Errors
    /// [`TensorError`] when the byte count is not that of the shape, the tensor is too large, a string is not UTF-8, or
    /// a boolean is neither 0 nor 1.
    pub fn new(dtype: DType, shape: Shape, bytes: &'a [u8]) -> Result<Self, TensorError> {
        let elements = shape.elements().ok_or(TensorError::TooLarge { shape, dtype })?;
        match dtype.element_bytes() {
            Some(width) => {
                let expected = elements
                    .checked_mul(width as u64)
                    .filter(|bytes| *bytes <= TENSOR_BYTES_MAX)
                    .ok_or(TensorError::TooLarge { shape, dtype })?;
                if bytes.len() as u64 != expected {
                    return Err(TensorError::ByteCount {
                        shape,
                        dtype,
                        expected,
                        actual: bytes.len() as u64,
                    });
                }
                if dtype == DType::Bool
                    && let Some(index) = bytes.iter().position(|b| *b > 1)
                {
                    return Err(TensorError::Bool { index, value: bytes[index] });
                }
            }
            None => check_strings(shape, elements, bytes)?,
        }
        Ok(Self { dtype, shape, bytes })
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The bytes, little-endian and row-major.
    pub fn bytes(&self) -> &'a [u8] {
        self.bytes
    }

    /// The elements, in place.
    ///
    /// # Errors
    /// [`TensorError::DType`] when the tensor holds another type, [`TensorError::Misaligned`] when the bytes do not start
    /// at a multiple of its size. Tensors read from a frame are always aligned.
    pub fn elements<T: Element>(&self) -> Result<&'a [T], TensorError> {
        if T::DTYPE != self.dtype {
            return Err(TensorError::DType { expected: T::DTYPE, actual: self.dtype });
        }
        // The empty slice of a frame may lie anywhere; it has no elements that could be misaligned.
        if self.bytes.is_empty() {
            return Ok(&[]);
        }
        bytemuck::try_cast_slice(self.bytes).map_err(|_| TensorError::Misaligned { dtype: self.dtype })
    }

    /// The texts of a string tensor, in element order.
    ///
    /// # Errors
    /// [`TensorError::DType`] when the tensor does not hold strings.
    pub fn strings(&self) -> Result<impl Iterator<Item = &'a str> + use<'a>, TensorError> {
        if self.dtype != DType::String {
            return Err(TensorError::DType { expected: DType::String, actual: self.dtype });
        }
        let count = self.shape.elements().unwrap_or(0) as usize;
        let (lengths, mut text) = self.bytes.split_at(count * 4);
        Ok(lengths.chunks_exact(4).map(move |length| {
            let (first, rest) = text.split_at(le_u32(length) as usize);
            text = rest;
            std::str::from_utf8(first).expect("checked when the view was made")
        }))
    }
}

impl fmt::Debug for TensorView<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

fn le_u32(bytes: &[u8]) -> u32 {
    u32::from_le_bytes(bytes.try_into().expect("four bytes"))
}

fn check_strings(shape: Shape, elements: u64, bytes: &[u8]) -> Result<(), TensorError> {
    let dtype = DType::String;
    if bytes.len() as u64 > TENSOR_BYTES_MAX || elements > TENSOR_BYTES_MAX / 4 {
        return Err(TensorError::TooLarge { shape, dtype });
    }
    let lengths_bytes = elements as usize * 4;
    let Some((lengths, mut text)) = bytes.split_at_checked(lengths_bytes) else {
        let (expected, actual) = (lengths_bytes as u64, bytes.len() as u64);
        return Err(TensorError::ByteCount { shape, dtype, expected, actual });
    };
    for length in lengths.chunks_exact(4) {
        let Some((first, rest)) = text.split_at_checked(le_u32(length) as usize) else {
            return Err(TensorError::Strings { shape, what: "as long as their lengths say" });
        };
        if std::str::from_utf8(first).is_err() {
            return Err(TensorError::Strings { shape, what: "UTF-8" });
        }
        text = rest;
    }
    if text.is_empty() {
        Ok(())
    } else {
        Err(TensorError::Strings { shape, what: "as short as their lengths say" })
    }
}

/// A tensor that owns (a reference to) its bytes. Cloning shares them.
#[derive(Clone, PartialEq)]
pub struct Tensor {
    dtype: DType,
    shape: Shape,
    bytes: Bytes,
}

impl Tensor {
    /// Takes bytes as a tensor; the checks are those of [`TensorView::new`].
    ///
    /// # Errors
    /// [`TensorError`] when they are not a tensor of `dtype` and `shape`.
    pub fn new(dtype: DType, shape: Shape, bytes: Bytes) -> Result<Self, TensorError> {
        TensorView::new(dtype, shape, &bytes)?;
        Ok(Self { dtype, shape, bytes })
    }

    /// Takes elements without copying them.
    ///
    /// # Errors
    /// [`TensorError`] when their number is not that of the shape, or the tensor is too large.
    pub fn from_elements<T: Element>(dims: &[u64], elements: Vec<T>) -> Result<Self, TensorError> {
        let bytes = Bytes::from_owner(Elements(elements));
        Self::new(T::DTYPE, Shape::new(dims)?, bytes)
    }

    /// A tensor of strings.
    ///
    /// # Errors
    /// [`TensorError`] when their number is not that of the shape, or they are too large together.
    pub fn from_strings(dims: &[u64], texts: &[&str]) -> Result<Self, TensorError> {
        let shape = Shape::new(dims)?;
        if shape.elements() != Some(texts.len() as u64) {
            let (expected, actual) = (shape.elements().unwrap_or(u64::MAX), texts.len() as u64);
            return Err(TensorError::ByteCount { shape, dtype: DType::String, expected, actual });
        }
        let mut bytes = Vec::with_capacity(texts.iter().map(|t| t.len() + 4).sum());
        for text in texts {
            bytes.extend_from_slice(&(text.len().min(u32::MAX as usize) as u32).to_le_bytes());
        }
        texts.iter().for_each(|text| bytes.extend_from_slice(text.as_bytes()));
        Self::new(DType::String, shape, bytes.into())
    }

    /// The tensor as a view. Nothing is checked again.
    pub fn view(&self) -> TensorView<'_> {
        TensorView { dtype: self.dtype, shape: self.shape, bytes: &self.bytes }
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The bytes, little-endian and row-major.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The elements, in place; see [`TensorView::elements`].
    ///
    /// # Errors
    /// As [`TensorView::elements`].
    pub fn elements<T: Element>(&self) -> Result<&[T], TensorError> {
        self.view().elements()
    }
}

impl fmt::Debug for Tensor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.view(), f)
    }
}

/// Elements as the owner of their bytes, so that a `Vec<f32>` becomes `Bytes` without a copy.
struct Elements<T>(Vec<T>);

impl<T: Element> AsRef<[u8]> for Elements<T> {
    fn as_ref(&self) -> &[u8] {
        bytemuck::cast_slice(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shape(dims: &[u64]) -> Shape {
        Shape::new(dims).unwrap()
    }

    #[test]
    fn codes_round_trip() {
        for dtype in DType::ALL {
            assert_eq!(DType::from_code(dtype.code()), Some(dtype));
        }
        assert_eq!((DType::from_code(0), DType::from_code(15)), (None, None));
    }

    #[test]
    fn a_view_is_checked() {
        let check = |dtype, dims: &[u64], bytes: &[u8], expected: &str| {
            let error = TensorView::new(dtype, shape(dims), bytes).unwrap_err();
            assert_eq!(error.to_string(), expected);
        };
        check(DType::F32, &[2, 3], &[0; 20], "shape [2, 3] of f32 takes 24 bytes, 20 came");
        check(DType::Bool, &[3], &[0, 1, 2], "a boolean is 0 or 1, element 2 is 2");
        check(
            DType::F64,
            &[u64::MAX, 2],
            &[],
            "a tensor has at most 268435456 bytes; shape [18446744073709551615, 2] of f64 has more",
        );
        check(
            DType::String,
            &[1],
            &[2, 0, 0, 0, b'a'],
            "the bytes of a string tensor of shape [1] are not as long as their lengths say",
        );
        check(
            DType::String,
            &[1],
            &[1, 0, 0, 0, 0xff],
            "the bytes of a string tensor of shape [1] are not UTF-8",
        );
        assert_eq!(Shape::new(&[1; 9]), Err(TensorError::Rank { rank: 9 }));
        TensorView::new(DType::F32, shape(&[]), &[0; 4]).unwrap();
        TensorView::new(DType::F32, shape(&[0, u64::MAX]), &[]).unwrap();
    }

    #[test]
    fn elements_and_strings_come_back() {
        let tensor = Tensor::from_elements(&[2, 2], vec![1f32, 2., 3., 4.]).unwrap();
        assert_eq!(tensor.elements::<f32>().unwrap(), [1., 2., 3., 4.]);
        tensor.elements::<i32>().unwrap_err();
        let texts = Tensor::from_strings(&[3], &["", "zwei", "drei"]).unwrap();
        assert_eq!(texts.view().strings().unwrap().collect::<Vec<_>>(), ["", "zwei", "drei"]);
    }
}
