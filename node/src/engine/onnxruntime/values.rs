//! Tensors and types on their way into ONNX Runtime and back.
//!
//! Inputs are borrowed where they are aligned, which all that came in a frame are; strings are copied,
//! because ONNX Runtime keeps them as objects of its own. Outputs are copied once, out of the arena that the
//! next run reuses.

use std::fmt::Debug;

use bytes::Bytes;
use ort::session::SessionInputValue;
use ort::value::{
    DynValue, Outlet, PrimitiveTensorElementType, Shape as OrtShape, Tensor as OrtTensor, TensorElementType,
    TensorRef, ValueType,
};
use roost_protocol::limits::TENSOR_RANK_MAX;
use roost_protocol::tensor::{Element, TensorError};
use roost_protocol::{DType, Shape, Tensor, TensorView};

use crate::engine::{Dim, EngineError, Port};

/// An input or output as the model declares it.
///
/// # Errors
/// [`EngineError::UnsupportedDType`] for what is no tensor, or of a type that tensors cannot have here;
/// [`EngineError::Unsupported`] for too many dimensions.
pub fn port(outlet: &Outlet) -> Result<Port, EngineError> {
    let name = outlet.name().to_owned();
    let ValueType::Tensor { ty, shape, dimension_symbols } = outlet.dtype() else {
        return Err(EngineError::UnsupportedDType { port: name, dtype: outlet.dtype().to_string() });
    };
    let unsupported = || EngineError::UnsupportedDType { port: name.clone(), dtype: ty.to_string() };
    let dtype = dtype(*ty).ok_or_else(unsupported)?;
    if shape.len() > TENSOR_RANK_MAX {
        let rank = shape.len();
        return Err(EngineError::Unsupported(format!(
            "{name} has {rank} dimensions; a tensor has at most {TENSOR_RANK_MAX}"
        )));
    }
    let symbols = dimension_symbols.iter().cloned().chain(std::iter::repeat(String::new()));
    let dim = |(size, symbol): (&i64, String)| u64::try_from(*size).map_or(Dim::Free(symbol), Dim::Fixed);
    let dims = shape.iter().zip(symbols).map(dim).collect();
    Ok(Port { name, dtype, dims })
}

fn dtype(ty: TensorElementType) -> Option<DType> {
    Some(match ty {
        TensorElementType::Float16 => DType::F16,
        TensorElementType::Bfloat16 => DType::Bf16,
        TensorElementType::Float32 => DType::F32,
        TensorElementType::Float64 => DType::F64,
        TensorElementType::Int8 => DType::I8,
        TensorElementType::Int16 => DType::I16,
        TensorElementType::Int32 => DType::I32,
        TensorElementType::Int64 => DType::I64,
        TensorElementType::Uint8 => DType::U8,
        TensorElementType::Uint16 => DType::U16,
        TensorElementType::Uint32 => DType::U32,
        TensorElementType::Uint64 => DType::U64,
        TensorElementType::Bool => DType::Bool,
        TensorElementType::String => DType::String,
        // Complex numbers, and numbers of less than a byte.
        _ => return None,
    })
}

/// A tensor as an input of a run.
///
/// # Errors
/// [`EngineError::Run`] for a string with a zero byte in it, which cannot be passed.
pub fn input<'a>(tensor: TensorView<'a>) -> Result<SessionInputValue<'a>, EngineError> {
    match tensor.dtype() {
        DType::F16 => elements::<half::f16>(tensor),
        DType::Bf16 => elements::<half::bf16>(tensor),
        DType::F32 => elements::<f32>(tensor),
        DType::F64 => elements::<f64>(tensor),
        DType::I8 => elements::<i8>(tensor),
        DType::I16 => elements::<i16>(tensor),
        DType::I32 => elements::<i32>(tensor),
        DType::I64 => elements::<i64>(tensor),
        DType::U8 => elements::<u8>(tensor),
        DType::U16 => elements::<u16>(tensor),
        DType::U32 => elements::<u32>(tensor),
        DType::U64 => elements::<u64>(tensor),
        DType::Bool => {
            let elements: &[bool] = bytemuck::checked::cast_slice(tensor.bytes());
            TensorRef::from_array_view((ort_shape(tensor.shape()), elements)).map(Into::into)
        }
        DType::String => {
            let texts = tensor.strings().map_err(|error| EngineError::Run(error.to_string()))?;
            let texts: Vec<String> = texts.map(str::to_owned).collect();
            OrtTensor::from_string_array((ort_shape(tensor.shape()), texts.as_slice())).map(Into::into)
        }
    }
    .map_err(|error| EngineError::Run(error.to_string()))
}

fn elements<'a, T>(tensor: TensorView<'a>) -> ort::Result<SessionInputValue<'a>>
where
    T: Element + PrimitiveTensorElementType + Debug,
{
    let shape = ort_shape(tensor.shape());
    match tensor.elements::<T>() {
        Ok(elements) => Ok(TensorRef::from_array_view((shape, elements))?.into()),
        // Bytes of another source than a frame may lie anywhere.
        Err(_) => {
            let elements = tensor.bytes().chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned::<T>);
            Ok(OrtTensor::from_array((shape, elements.collect::<Vec<T>>()))?.into())
        }
    }
}

/// The dimensions as ONNX Runtime counts them. None passes what an `i64` holds, but for an empty tensor's,
/// whose data is compared with its shape in any case.
fn ort_shape(shape: Shape) -> OrtShape {
    OrtShape::new(shape.dims().iter().map(|dim| i64::try_from(*dim).unwrap_or(i64::MAX)))
}

/// An output of a run as a tensor.
///
/// # Errors
/// [`EngineError::Run`] when it is too large or of too many dimensions, [`EngineError::UnsupportedDType`]
/// when it is of another type than the model declared.
pub fn output(name: &str, value: &DynValue) -> Result<Tensor, EngineError> {
    let ValueType::Tensor { ty, shape, .. } = value.dtype() else {
        return Err(EngineError::UnsupportedDType {
            port: name.to_owned(),
            dtype: value.dtype().to_string(),
        });
    };
    let unsupported = || EngineError::UnsupportedDType { port: name.to_owned(), dtype: ty.to_string() };
    let failed = |error: &dyn std::fmt::Display| EngineError::Run(format!("output {name}: {error}"));
    let mut dims = [0; TENSOR_RANK_MAX];
    let dims = dims.get_mut(..shape.len()).ok_or_else(|| failed(&TensorError::Rank { rank: shape.len() }))?;
    for (dim, size) in dims.iter_mut().zip(shape.iter()) {
        *dim = u64::try_from(*size).map_err(|error| failed(&error))?;
    }
    match dtype(*ty).ok_or_else(unsupported)? {
        DType::F16 => copied::<half::f16>(value, dims),
        DType::Bf16 => copied::<half::bf16>(value, dims),
        DType::F32 => copied::<f32>(value, dims),
        DType::F64 => copied::<f64>(value, dims),
        DType::I8 => copied::<i8>(value, dims),
        DType::I16 => copied::<i16>(value, dims),
        DType::I32 => copied::<i32>(value, dims),
        DType::I64 => copied::<i64>(value, dims),
        DType::U8 => copied::<u8>(value, dims),
        DType::U16 => copied::<u16>(value, dims),
        DType::U32 => copied::<u32>(value, dims),
        DType::U64 => copied::<u64>(value, dims),
        DType::Bool => booleans(value, dims),
        DType::String => strings(value, dims),
    }
    .map_err(|error| failed(&error))
}

/// Why an output is no tensor.
#[derive(Debug, thiserror::Error)]
enum OutputError {
    #[error(transparent)]
    Tensor(#[from] TensorError),
    #[error(transparent)]
    Ort(#[from] ort::Error),
}

fn copied<T>(value: &DynValue, dims: &[u64]) -> Result<Tensor, OutputError>
where
    T: Element + PrimitiveTensorElementType + Debug,
{
    let (_, elements) = value.try_extract_tensor::<T>()?;
    Ok(Tensor::from_elements(dims, elements.to_vec())?)
}

fn booleans(value: &DynValue, dims: &[u64]) -> Result<Tensor, OutputError> {
    let (_, elements) = value.try_extract_tensor::<bool>()?;
    Ok(Tensor::new(DType::Bool, Shape::new(dims)?, Bytes::copy_from_slice(bytemuck::cast_slice(elements)))?)
}

fn strings(value: &DynValue, dims: &[u64]) -> Result<Tensor, OutputError> {
    let (_, texts) = value.try_extract_strings()?;
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    Ok(Tensor::from_strings(dims, &texts)?)
}
