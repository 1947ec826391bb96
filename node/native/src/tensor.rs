//! Tensors at rest: element types, 64-byte aligned memory, and constants that may still lie in the model's
//! file, or no longer anywhere but in the form that a kernel reads (see [`form`]).
//!
//! Invariant: a [`Tensor`] holds exactly `shape.product() * dtype.bytes()` bytes. Half-precision tensors
//! exist at the model's edge only: import turns `f16` and `bf16` constants into `f32`, and graph inputs and
//! outputs are converted.

pub mod form;

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use bytemuck::{AnyBitPattern, NoUninit};
use bytes::Bytes;

use form::{Forms, Packed};

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DType {
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 double precision.
    F64,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an `f32`.
    BF16,
    /// Signed 8 bits.
    I8,
    /// Signed 16 bits.
    I16,
    /// Signed 32 bits.
    I32,
    /// Signed 64 bits.
    I64,
    /// Unsigned 8 bits.
    U8,
    /// Unsigned 16 bits.
    U16,
    /// Unsigned 32 bits.
    U32,
    /// Unsigned 64 bits.
    U64,
    /// One byte, 0 or 1.
    Bool,
}

impl DType {
    /// Bytes of one element.
    pub const fn bytes(self) -> usize {
        match self {
            Self::I8 | Self::U8 | Self::Bool => 1,
            Self::F16 | Self::BF16 | Self::I16 | Self::U16 => 2,
            Self::F32 | Self::I32 | Self::U32 => 4,
            Self::F64 | Self::I64 | Self::U64 => 8,
        }
    }

    /// Whether it is a floating-point type.
    pub const fn is_float(self) -> bool {
        matches!(self, Self::F32 | Self::F64 | Self::F16 | Self::BF16)
    }

    /// The type's number in `onnx.TensorProto.DataType`.
    pub const fn onnx(self) -> i32 {
        match self {
            Self::F32 => 1,
            Self::U8 => 2,
            Self::I8 => 3,
            Self::U16 => 4,
            Self::I16 => 5,
            Self::I32 => 6,
            Self::I64 => 7,
            Self::Bool => 9,
            Self::F16 => 10,
            Self::F64 => 11,
            Self::U32 => 12,
            Self::U64 => 13,
            Self::BF16 => 16,
        }
    }

    /// The type with this number in `onnx.TensorProto.DataType`, where tensors may have it here.
    pub const fn from_onnx(number: i32) -> Option<Self> {
        Some(match number {
            1 => Self::F32,
            2 => Self::U8,
            3 => Self::I8,
            4 => Self::U16,
            5 => Self::I16,
            6 => Self::I32,
            7 => Self::I64,
            9 => Self::Bool,
            10 => Self::F16,
            11 => Self::F64,
            12 => Self::U32,
            13 => Self::U64,
            16 => Self::BF16,
            _ => return None,
        })
    }

    /// The type that values have inside the engine: half precision is computed in `f32`.
    pub const fn computed(self) -> Self {
        match self {
            Self::F16 | Self::BF16 => Self::F32,
            other => other,
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
            Self::F16 => "f16",
            Self::BF16 => "bf16",
            Self::I8 => "i8",
            Self::I16 => "i16",
            Self::I32 => "i32",
            Self::I64 => "i64",
            Self::U8 => "u8",
            Self::U16 => "u16",
            Self::U32 => "u32",
            Self::U64 => "u64",
            Self::Bool => "bool",
        })
    }
}

/// Rust types that are elements of tensors. A `bool` tensor is read as `u8`.
pub trait Elem: NoUninit + AnyBitPattern + PartialOrd + fmt::Debug + Send + Sync + 'static {
    /// The element type.
    const DTYPE: DType;
}

macro_rules! elem {
    ($($t:ty => $d:ident),*) => { $(impl Elem for $t { const DTYPE: DType = DType::$d; })* };
}
elem!(f32 => F32, f64 => F64, i8 => I8, i16 => I16, i32 => I32, i64 => I64, u8 => U8, u16 => U16, u32 => U32,
      u64 => U64);

/// Alignment of buffers: a cache line, and the widest vector register.
pub const ALIGN_BYTES: usize = 64;

/// The system has no memory for so many bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("there is no memory for {bytes} bytes")]
pub struct NoMemory {
    /// What was asked for.
    pub bytes: usize,
}

/// Zeroed memory whose first byte is 64-byte aligned.
#[derive(Debug, Default)]
pub struct AlignedBuf {
    words: Box<[u128]>,
    start: usize,
    len: usize,
}

impl AlignedBuf {
    /// `len` zero bytes. They come from the system as zeros, so that large memory is touched when it is first
    /// written: a reservation that is then filled would write it twice.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn try_zeroed(len: usize) -> Result<Self, NoMemory> {
        let word = size_of::<u128>();
        let spare = ALIGN_BYTES / word;
        let words = bytemuck::allocation::try_zeroed_slice_box::<u128>(len.div_ceil(word) + spare);
        let words = words.map_err(|()| NoMemory { bytes: len })?;
        let start = (words.as_ptr() as usize).next_multiple_of(ALIGN_BYTES) - words.as_ptr() as usize;
        Ok(Self { words, start, len })
    }

    /// A copy of `bytes`.
    ///
    /// # Errors
    /// [`NoMemory`].
    pub fn try_copied(bytes: &[u8]) -> Result<Self, NoMemory> {
        let mut buf = Self::try_zeroed(bytes.len())?;
        buf.bytes_mut().copy_from_slice(bytes);
        Ok(buf)
    }

    /// As [`AlignedBuf::try_zeroed`], for what is as large as something that is in memory already.
    ///
    /// # Panics
    /// Where the system has no memory.
    pub fn zeroed(len: usize) -> Self {
        Self::try_zeroed(len).unwrap_or_else(|error| panic!("{error}"))
    }

    /// As [`AlignedBuf::try_copied`].
    ///
    /// # Panics
    /// Where the system has no memory.
    pub fn copied(bytes: &[u8]) -> Self {
        Self::try_copied(bytes).unwrap_or_else(|error| panic!("{error}"))
    }

    /// The memory.
    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[self.start..self.start + self.len]
    }

    /// The memory, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[self.start..self.start + self.len]
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Where a tensor's bytes lie.
#[derive(Debug, Clone)]
enum Data {
    /// In the model's file, at any alignment.
    File(Bytes),
    /// In memory of our own, aligned.
    Own(Arc<AlignedBuf>),
    /// In the form that a kernel reads; laid out again, aligned, when somebody asks for the bytes.
    Packed(Arc<Packed>),
}

/// A constant or a result: shape, type and bytes. Cloning shares the bytes.
#[derive(Debug, Clone)]
pub struct Tensor {
    dtype: DType,
    shape: Vec<usize>,
    data: Data,
    /// The forms in which kernels read these bytes; one list for all clones.
    forms: Arc<Forms>,
}

impl Tensor {
    /// A tensor over bytes of a file, of any alignment; `None` unless their number fits.
    pub fn from_file(dtype: DType, shape: Vec<usize>, bytes: Bytes) -> Option<Self> {
        (bytes_of(dtype, &shape)? == bytes.len()).then_some(Self {
            dtype,
            shape,
            data: Data::File(bytes),
            forms: Arc::default(),
        })
    }

    /// A tensor over aligned memory; `None` unless the number of bytes fits.
    pub fn from_buf(dtype: DType, shape: Vec<usize>, buf: AlignedBuf) -> Option<Self> {
        (bytes_of(dtype, &shape)? == buf.len()).then(|| Self {
            dtype,
            shape,
            data: Data::Own(Arc::new(buf)),
            forms: Arc::default(),
        })
    }

    /// A tensor of elements.
    ///
    /// # Panics
    /// When `values` are not as many as `shape` says.
    pub fn of<T: Elem>(shape: &[usize], values: &[T]) -> Self {
        Self::of_dtype(T::DTYPE, shape, bytemuck::cast_slice(values))
    }

    /// A tensor of a type whose elements are given as bytes, such as `bool`.
    ///
    /// # Panics
    /// When the bytes are not as many as `shape` and `dtype` say.
    pub fn of_dtype(dtype: DType, shape: &[usize], bytes: &[u8]) -> Self {
        Self::from_buf(dtype, shape.to_vec(), AlignedBuf::copied(bytes))
            .expect("the values are as many as the shape says")
    }

    /// The element type.
    pub fn dtype(&self) -> DType {
        self.dtype
    }

    /// The dimensions.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// The number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The bytes, little-endian, of any alignment.
    pub fn bytes(&self) -> &[u8] {
        match &self.data {
            Data::File(bytes) => bytes,
            Data::Own(buf) => buf.bytes(),
            Data::Packed(packed) => packed.bytes(),
        }
    }

    /// The elements; a copy where the file has them unaligned, or a kernel's form alone is kept.
    ///
    /// # Panics
    /// When the tensor has another element type.
    pub fn values<T: Elem>(&self) -> Cow<'_, [T]> {
        let fits = self.dtype == T::DTYPE || (self.dtype == DType::Bool && T::DTYPE == DType::U8);
        assert!(fits, "a tensor of {} is read as {}", self.dtype, T::DTYPE);
        // Whoever takes elements reads them once, so nothing is kept of them.
        if let Data::Packed(packed) = &self.data
            && packed.kept().is_none()
        {
            let mut values = vec![T::zeroed(); self.len()];
            packed.unpack(bytemuck::cast_slice_mut(&mut values));
            return Cow::Owned(values);
        }
        bytemuck::try_cast_slice(self.bytes()).map_or_else(
            |_| {
                let mut values = vec![T::zeroed(); self.bytes().len() / size_of::<T>()];
                bytemuck::cast_slice_mut(&mut values).copy_from_slice(self.bytes());
                Cow::Owned(values)
            },
            Cow::Borrowed,
        )
    }

    /// The elements as `i64`, for the integer tensors that hold shapes, axes and indices.
    pub fn ints(&self) -> Option<Vec<i64>> {
        Some(match self.dtype {
            DType::I64 => self.values::<i64>().into_owned(),
            DType::I32 => self.values::<i32>().iter().map(|v| i64::from(*v)).collect(),
            DType::U8 | DType::Bool => self.values::<u8>().iter().map(|v| i64::from(*v)).collect(),
            DType::I8 => self.values::<i8>().iter().map(|v| i64::from(*v)).collect(),
            DType::I16 => self.values::<i16>().iter().map(|v| i64::from(*v)).collect(),
            DType::U16 => self.values::<u16>().iter().map(|v| i64::from(*v)).collect(),
            DType::U32 => self.values::<u32>().iter().map(|v| i64::from(*v)).collect(),
            DType::U64 | DType::F32 | DType::F64 | DType::F16 | DType::BF16 => return None,
        })
    }

    /// The elements as `f32`: the value of a float, integer or half-precision tensor, rounded.
    pub fn floats(&self) -> Vec<f32> {
        match self.dtype {
            DType::F32 => self.values::<f32>().into_owned(),
            DType::F64 => self.values::<f64>().iter().map(|v| *v as f32).collect(),
            DType::F16 => halves(self.bytes()).map(|bits| half::f16::from_bits(bits).to_f32()).collect(),
            DType::BF16 => halves(self.bytes()).map(|bits| half::bf16::from_bits(bits).to_f32()).collect(),
            DType::U64 => self.values::<u64>().iter().map(|v| *v as f32).collect(),
            _ => self.ints().unwrap_or_default().iter().map(|v| *v as f32).collect(),
        }
    }

    /// The same bytes under other dimensions.
    ///
    /// # Panics
    /// When the number of elements differs.
    #[must_use]
    pub fn reshaped(&self, shape: &[usize]) -> Self {
        assert_eq!(self.len(), shape.iter().product::<usize>(), "{:?} becomes {shape:?}", self.shape);
        Self { shape: shape.to_vec(), ..self.clone() }
    }

    /// The same tensor in aligned memory.
    #[must_use]
    pub fn aligned(&self) -> Self {
        match &self.data {
            Data::Own(_) | Data::Packed(_) => self.clone(),
            Data::File(bytes) => {
                Self { data: Data::Own(Arc::new(AlignedBuf::copied(bytes))), ..self.clone() }
            }
        }
    }

    /// The forms in which kernels read these bytes.
    pub fn forms(&self) -> &Forms {
        &self.forms
    }

    /// Whether this is a clone of `other`, under whatever dimensions.
    pub fn is_clone_of(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.forms, &other.forms)
    }

    /// The same tensor, kept in a form that a kernel reads alone; `None` where it is so already or has no
    /// such form.
    pub fn condensed(&self) -> Option<Self> {
        if matches!(self.data, Data::Packed(_)) {
            return None;
        }
        let packed = Packed::new(self.forms.first()?, self.bytes().len());
        Some(Self { data: Data::Packed(Arc::new(packed)), ..self.clone() })
    }

    /// Whether the bytes lie in the model's file.
    pub fn is_borrowed(&self) -> bool {
        matches!(self.data, Data::File(_))
    }

    /// Half precision becomes `f32`; other tensors stay.
    #[must_use]
    pub fn computed(&self) -> Self {
        if self.dtype.computed() == self.dtype { self.clone() } else { Self::of(&self.shape, &self.floats()) }
    }
}

fn halves(bytes: &[u8]) -> impl Iterator<Item = u16> + '_ {
    bytes.as_chunks::<2>().0.iter().map(|pair| u16::from_le_bytes(*pair))
}

/// The bytes of a tensor; `None` past the address space.
pub fn bytes_of(dtype: DType, shape: &[usize]) -> Option<usize> {
    // A zero anywhere makes the tensor empty, however large the other dimensions are.
    if shape.contains(&0) {
        return Some(0);
    }
    shape.iter().try_fold(dtype.bytes(), |bytes, dim| bytes.checked_mul(*dim))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_aligned_and_holds_what_was_put() {
        for len in [0, 1, 63, 64, 65, 1000] {
            let bytes: Vec<u8> = (0..len).map(|i| i as u8).collect();
            let buf = AlignedBuf::copied(&bytes);
            assert_eq!(buf.bytes().as_ptr() as usize % ALIGN_BYTES, 0);
            assert_eq!(buf.bytes(), bytes);
        }
    }

    #[test]
    fn memory_that_is_not_there_is_an_error() {
        // More than an address can reach, than a slice may have, and than counts in words.
        for bytes in [1 << 56, isize::MAX as usize, usize::MAX] {
            assert_eq!(AlignedBuf::try_zeroed(bytes).err(), Some(NoMemory { bytes }));
        }
    }

    #[test]
    fn unaligned_file_bytes_are_copied_on_reading() {
        let raw: Vec<u8> =
            std::iter::once(0).chain([1.5_f32, -2.0].iter().flat_map(|v| v.to_le_bytes())).collect();
        let tensor = Tensor::from_file(DType::F32, vec![2], Bytes::from(raw).slice(1..)).expect("fits");
        assert_eq!(*tensor.values::<f32>(), [1.5, -2.0]);
        assert!(Tensor::from_file(DType::F32, vec![3], Bytes::from_static(&[0; 8])).is_none());
    }

    #[test]
    fn sizes_that_overflow_are_refused() {
        assert_eq!(bytes_of(DType::F32, &[usize::MAX, 2]), None);
        assert_eq!(bytes_of(DType::F32, &[usize::MAX, 0, 2]), Some(0));
    }
}
