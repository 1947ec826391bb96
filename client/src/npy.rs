//! Tensors from NumPy's `.npy` files: little-endian arrays in C order, of the element types that tensors
//! have.
//!
//! Format: <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>. The header is the text
//! of a Python dictionary with three known keys, and only that much of Python is read. A general reader was
//! rejected: those that there are allocate what a header claims, or overflow on its shape.

use bytes::Bytes;
use roost_protocol::frame::AlignedBuffer;
use roost_protocol::tensor::TensorError;
use roost_protocol::{DType, Shape, Tensor};

const MAGIC: &[u8] = b"\x93NUMPY";
/// What NumPy itself reads at most; it is a hundred bytes but for structured arrays.
const HEADER_BYTES_MAX: usize = 10_000;

/// Why bytes are no tensor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NpyError {
    /// They are no `.npy` file.
    #[error("not a .npy file: {0}")]
    Header(&'static str),
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
    let (header, rest) = split(bytes)?;
    let Header { descr, fortran_order, dims } = Header::parse(header)?;
    let dtype = dtype_of(descr).ok_or_else(|| NpyError::DType(descr.to_owned()))?;
    if fortran_order && dims.len() > 1 {
        return Err(NpyError::FortranOrder);
    }
    // Copied into memory that is aligned for every element type.
    let mut data = AlignedBuffer::with_capacity(rest.len());
    data.extend_from_slice(rest);
    Ok(Tensor::new(dtype, Shape::new(&dims)?, Bytes::from_owner(data))?)
}

/// The header's text, and the array's bytes.
fn split(bytes: &[u8]) -> Result<(&str, &[u8]), NpyError> {
    let short = NpyError::Header("it ends within its header");
    let rest = bytes.strip_prefix(MAGIC).ok_or(NpyError::Header("it does not start with NumPy's magic"))?;
    let (version, rest) = rest.split_first_chunk::<2>().ok_or(short.clone())?;
    let (length, rest) = match version {
        [1, _] => {
            let (length, rest) = rest.split_first_chunk().ok_or(short.clone())?;
            (usize::from(u16::from_le_bytes(*length)), rest)
        }
        [2 | 3, _] => {
            let (length, rest) = rest.split_first_chunk().ok_or(short.clone())?;
            (u32::from_le_bytes(*length) as usize, rest)
        }
        _ => return Err(NpyError::Header("its version is none of 1, 2 and 3")),
    };
    if length > HEADER_BYTES_MAX {
        return Err(NpyError::Header("its header has more than 10 000 bytes"));
    }
    let (header, rest) = rest.split_at_checked(length).ok_or(short)?;
    Ok((std::str::from_utf8(header).map_err(|_| NpyError::Header("its header is not UTF-8"))?, rest))
}

/// What a header says.
struct Header<'a> {
    descr: &'a str,
    fortran_order: bool,
    dims: Vec<u64>,
}

impl<'a> Header<'a> {
    fn parse(text: &'a str) -> Result<Self, NpyError> {
        let mut scanner = Scanner(text);
        let (mut descr, mut fortran_order, mut dims) = (None, None, None);
        scanner.expect("{", "its header is no dictionary")?;
        while !scanner.takes("}") {
            let key = scanner.quoted().ok_or(NpyError::Header("a key of its header is no text"))?;
            scanner.expect(":", "a key of its header has no value")?;
            match key {
                "descr" => descr = Some(scanner.element_type()?),
                "fortran_order" => fortran_order = Some(scanner.truth()?),
                "shape" => dims = Some(scanner.shape()?),
                _ => return Err(NpyError::Header("its header has an unknown key")),
            }
            if !scanner.takes(",") {
                scanner.expect("}", "its header is no dictionary")?;
                break;
            }
        }
        match (descr, fortran_order, dims, scanner.0.trim().is_empty()) {
            (Some(descr), Some(fortran_order), Some(dims), true) => Ok(Self { descr, fortran_order, dims }),
            (.., false) => Err(NpyError::Header("something follows the dictionary of its header")),
            (.., true) => Err(NpyError::Header("its header lacks descr, fortran_order or shape")),
        }
    }
}

/// What is left of a header.
struct Scanner<'a>(&'a str);

impl<'a> Scanner<'a> {
    /// Takes a piece of text if it comes next, after blanks.
    fn takes(&mut self, piece: &str) -> bool {
        let rest = self.0.trim_start().strip_prefix(piece);
        self.0 = rest.unwrap_or(self.0);
        rest.is_some()
    }

    fn expect(&mut self, piece: &str, otherwise: &'static str) -> Result<(), NpyError> {
        if self.takes(piece) { Ok(()) } else { Err(NpyError::Header(otherwise)) }
    }

    /// A text in quotes. Neither keys nor element types need escapes.
    fn quoted(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (inside, rest) = text[1..].split_once(quote)?;
        self.0 = rest;
        Some(inside)
    }

    fn element_type(&mut self) -> Result<&'a str, NpyError> {
        match self.quoted() {
            Some(descr) => Ok(descr),
            None if self.takes("[") => Err(NpyError::DType("records".to_owned())),
            None => Err(NpyError::Header("its descr is no element type")),
        }
    }

    fn truth(&mut self) -> Result<bool, NpyError> {
        if self.takes("True") {
            Ok(true)
        } else {
            self.expect("False", "its fortran_order is neither True nor False").map(|()| false)
        }
    }

    /// A tuple of numbers. Ahead of Python 3, NumPy wrote an `L` behind them.
    fn shape(&mut self) -> Result<Vec<u64>, NpyError> {
        const OTHERWISE: &str = "its shape is no tuple of numbers";
        let mut dims = Vec::new();
        self.expect("(", OTHERWISE)?;
        while !self.takes(")") {
            let text = self.0.trim_start();
            let digits = text.len() - text.trim_start_matches(|c: char| c.is_ascii_digit()).len();
            let (number, rest) = text.split_at(digits);
            dims.push(number.parse().map_err(|_| NpyError::Header(OTHERWISE))?);
            self.0 = rest;
            self.takes("L");
            if !self.takes(",") {
                self.expect(")", OTHERWISE)?;
                break;
            }
        }
        Ok(dims)
    }
}

fn dtype_of(descr: &str) -> Option<DType> {
    Some(match descr {
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
    use proptest::prelude::*;

    use super::*;

    fn with_header(header: &str, data: &[u8]) -> Vec<u8> {
        let mut file = b"\x93NUMPY\x01\x00".to_vec();
        file.extend_from_slice(&(header.len() as u16).to_le_bytes());
        file.extend_from_slice(header.as_bytes());
        file.extend_from_slice(data);
        file
    }

    fn file(descr: &str, order: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}    \n");
        with_header(&header, data)
    }

    #[test]
    fn arrays_come_back() {
        let sixteen = [1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0];
        let tensor = read(&file("<i8", "False", "(2,)", &sixteen)).unwrap();
        assert_eq!(tensor.elements::<i64>().unwrap(), [1, 2]);
        let check = |descr: &str, shape: &str, bytes: usize, expected: &str| {
            let read = read(&file(descr, "False", shape, &sixteen[2..2 + bytes])).unwrap();
            assert_eq!(format!("{read:?}"), expected);
        };
        check("<f4", "(1, 2)", 8, "f32[1, 2]");
        check("<f2", "(3L, 1L)", 6, "f16[3, 1]");
        check("<f8", "()", 8, "f64[]");
        check("|b1", "(0, 5)", 0, "bool[0, 5]");
        let other_order = with_header("{\"shape\":(1,),\"fortran_order\":True,\"descr\":\"|u1\"}", &[7]);
        assert_eq!(read(&other_order).unwrap().elements::<u8>().unwrap(), [7]);
        let header = "{'descr': '|i1', 'fortran_order': False, 'shape': (2,), }  \n";
        let length = (header.len() as u32).to_le_bytes();
        let version_3 = [b"\x93NUMPY\x03\x00", &length[..], header.as_bytes(), b"\x01\xff"].concat();
        assert_eq!(read(&version_3).unwrap().elements::<i8>().unwrap(), [1, -1]);
    }

    #[test]
    fn others_are_refused_by_name() {
        let check = |bytes: &[u8], expected: &str| assert_eq!(read(bytes).unwrap_err().to_string(), expected);
        check(b"text", "not a .npy file: it does not start with NumPy's magic");
        check(b"\x93NUMPY\x09\x00\x00\x00", "not a .npy file: its version is none of 1, 2 and 3");
        check(b"\x93NUMPY\x01\x00\x10\x00{", "not a .npy file: it ends within its header");
        check(b"\x93NUMPY\x02\x00\xff\xff\xff\xff", "not a .npy file: its header has more than 10 000 bytes");
        check(&with_header("{}", &[]), "not a .npy file: its header lacks descr, fortran_order or shape");
        check(
            &file("<f4", "Maybe", "()", &[]),
            "not a .npy file: its fortran_order is neither True nor False",
        );
        check(&file("<f4", "False", "(x,)", &[]), "not a .npy file: its shape is no tuple of numbers");
        check(&file("<f4", "False", "((((", &[]), "not a .npy file: its shape is no tuple of numbers");
        check(
            &file("<c8", "False", "(1,)", &[0; 8]),
            "arrays of <c8 cannot be read; convert it in NumPy, as in a.astype(\"<f4\")",
        );
        check(
            &with_header("{'descr': [('a', '<f4')], 'fortran_order': False, 'shape': (1,)}", &[0; 4]),
            "arrays of records cannot be read; convert it in NumPy, as in a.astype(\"<f4\")",
        );
        check(
            &file("<f4", "True", "(1, 1)", &[0; 4]),
            "the array is in Fortran order; save np.ascontiguousarray(a)",
        );
        check(&file("<f4", "False", "(2,)", &[0; 4]), "shape [2] of f32 takes 8 bytes, 4 came");
    }

    #[test]
    fn a_shape_that_overflows_is_too_large() {
        let huge = file("<f4", "False", "(4294967296, 4294967296, 2)", &[]);
        assert!(matches!(read(&huge), Err(NpyError::Tensor(TensorError::TooLarge { .. }))));
        let deep = file("<f4", "False", "(1, 1, 1, 1, 1, 1, 1, 1, 1)", &[0; 4]);
        assert!(matches!(read(&deep), Err(NpyError::Tensor(TensorError::Rank { rank: 9 }))));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(bytes: Vec<u8>) {
            let _ = read(&bytes);
            let _ = read(&[MAGIC, &[1, 0], &bytes].concat());
        }

        #[test]
        fn any_header_is_read_or_refused(header in "[{}()\\[\\]'\",: a-z0-9<|TF]{0,80}", data: Vec<u8>) {
            let _ = read(&with_header(&header, &data));
        }
    }
}
