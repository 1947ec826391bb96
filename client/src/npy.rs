//! Tensors from NumPy's `.npy` files.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>. Little-endian arrays in C order, of the
//! element types that tensors have; others are refused by name.

use bytes::Bytes;
use npyz::{DType as NpyDType, NpyHeader, Order};
use roost_protocol::frame::AlignedBuffer;
use roost_protocol::tensor::TensorError;
use roost_protocol::{DType, Shape, Tensor};

/// Why bytes are no tensor.
#[derive(Debug, thiserror::Error)]
pub enum NpyError {
    /// They are no `.npy` file.
    #[error("not a .npy file: {0}")]
    Header(#[from] std::io::Error),
    /// An element type that tensors do not have.
    #[error("arrays of {0} cannot be read; convert it in NumPy, as in a.astype(\"<f4\")")]
    DType(String),
    /// In Fortran's order.
    #[error("the array is in Fortran order; save np.ascontiguousarray(a)")]
    FortranOrder,
    /// More or fewer bytes than its shape takes, or too many dimensions.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Reads an array.
///
/// # Errors
/// [`NpyError`] when the bytes are no `.npy` file, or hold what a tensor cannot.
pub fn read(bytes: &[u8]) -> Result<Tensor, NpyError> {
    let mut rest = bytes;
    let header = NpyHeader::from_reader(&mut rest)?;
    let description = header.dtype().descr();
    let dtype = dtype_of(&header.dtype()).ok_or(NpyError::DType(description))?;
    if header.order() == Order::Fortran && header.shape().len() > 1 {
        return Err(NpyError::FortranOrder);
    }
    // Copied into memory that is aligned for every element type.
    let mut data = AlignedBuffer::with_capacity(rest.len());
    data.extend_from_slice(rest);
    Ok(Tensor::new(dtype, Shape::new(header.shape())?, Bytes::from_owner(data))?)
}

fn dtype_of(dtype: &NpyDType) -> Option<DType> {
    let NpyDType::Plain(plain) = dtype else { return None };
    let text = plain.to_string();
    Some(match text.as_str() {
        "<f2" => DType::F16,
        "<f4" => DType::F32,
        "<f8" => DType::F64,
        "|i1" => DType::I8,
        "<i2" => DType::I16,
        "<i4" => DType::I32,
        "<i8" => DType::I64,
        "|u1" => DType::U8,
        "<u2" => DType::U16,
        "<u4" => DType::U32,
        "<u8" => DType::U64,
        "|b1" => DType::Bool,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(description: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let mut header = format!("{{'descr': '{description}', 'fortran_order': {order}, 'shape': {shape}, }}");
        while !(header.len() + 11).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend_from_slice(&(header.len() as u16).to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(data);
        file
    }

    #[test]
    fn arrays_come_back_and_others_are_refused_by_name() {
        let tensor = read(&file("<i8", "False", "(2,)", &[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0])).unwrap();
        assert_eq!(tensor.elements::<i64>().unwrap(), [1, 2]);
        assert!(matches!(read(b"\x93NUMPY"), Err(NpyError::Header(_))));
        assert!(matches!(read(&file("<c8", "False", "(1,)", &[0; 8])), Err(NpyError::DType(_))));
        assert!(matches!(read(&file("<f4", "True", "(1, 1)", &[0; 4])), Err(NpyError::FortranOrder)));
        assert!(matches!(read(&file("<f4", "False", "(2,)", &[0; 4])), Err(NpyError::Tensor(_))));
    }
}
