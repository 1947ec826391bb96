//! Tensors from JSON: nested arrays of numbers, booleans or texts.
//!
//! Without a stated element type numbers become `f32`, booleans `bool` and texts `string`. A number that the
//! type cannot hold is refused, never cut.

use half::{bf16, f16};
use roost_protocol::limits::TENSOR_RANK_MAX;
use roost_protocol::tensor::{Element, TensorError};
use roost_protocol::{DType, Shape, Tensor};
use serde_json::{Number, Value};

/// Why a text is no tensor.
#[derive(Debug, thiserror::Error)]
pub enum JsonError {
    /// Not JSON.
    #[error("not JSON: {0}")]
    Syntax(serde_json::Error),
    /// Deeper than a tensor can be.
    #[error("the arrays are nested deeper than the {TENSOR_RANK_MAX} dimensions of a tensor")]
    Depth,
    /// Arrays of unequal length, or elements beside arrays.
    #[error("the arrays are ragged: {place} is {actual}, the first beside it {expected}")]
    Ragged {
        /// Where.
        place: String,
        /// What stands there.
        actual: String,
        /// What the first one is.
        expected: String,
    },
    /// An element that the type cannot hold.
    #[error("the element {value} at {place} is no {dtype}")]
    Element {
        /// Where.
        place: String,
        /// The element.
        value: String,
        /// The type.
        dtype: DType,
    },
    /// The tensor is too large.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

/// Reads nested arrays; an element alone is a scalar.
///
/// # Errors
/// [`JsonError`] when the text is no JSON, the arrays are ragged, or the type cannot hold an element.
pub fn read(text: &[u8], dtype: Option<DType>) -> Result<Tensor, JsonError> {
    let value: Value = serde_json::from_slice(text).map_err(JsonError::Syntax)?;
    let dims = dims(&value)?;
    let mut elements = Vec::new();
    flatten(&value, &dims, &mut Vec::new(), &mut elements)?;
    let dtype = dtype.unwrap_or_else(|| natural(elements.first().copied()));
    convert(&elements, &dims, dtype)
}

/// The dimensions, by the first array of each depth.
fn dims(value: &Value) -> Result<Vec<u64>, JsonError> {
    let (mut dims, mut at) = (Vec::new(), Some(value));
    while let Some(Value::Array(items)) = at {
        if dims.len() == TENSOR_RANK_MAX {
            return Err(JsonError::Depth);
        }
        dims.push(items.len() as u64);
        at = items.first();
    }
    Ok(dims)
}

/// Collects the elements in order, checking that all arrays of a depth are of one length.
fn flatten<'a>(
    value: &'a Value,
    dims: &[u64],
    place: &mut Vec<usize>,
    elements: &mut Vec<&'a Value>,
) -> Result<(), JsonError> {
    match (value, dims.split_first()) {
        (Value::Array(items), Some((length, rest))) if items.len() as u64 == *length => {
            for (i, item) in items.iter().enumerate() {
                place.push(i);
                flatten(item, rest, place, elements)?;
                place.pop();
            }
            Ok(())
        }
        (Value::Array(items), expected) => Err(JsonError::Ragged {
            place: text(place),
            actual: format!("an array of {}", items.len()),
            expected: expected
                .map_or_else(|| "no array".to_owned(), |(length, _)| format!("an array of {length}")),
        }),
        (_, Some((length, _))) => Err(JsonError::Ragged {
            place: text(place),
            actual: "no array".to_owned(),
            expected: format!("an array of {length}"),
        }),
        (element, None) => {
            elements.push(element);
            Ok(())
        }
    }
}

fn text(place: &[usize]) -> String {
    place.iter().map(|i| format!("[{i}]")).collect()
}

/// The type of elements that nobody stated.
fn natural(first: Option<&Value>) -> DType {
    match first {
        Some(Value::Bool(_)) => DType::Bool,
        Some(Value::String(_)) => DType::String,
        Some(Value::Number(_) | Value::Null | Value::Array(_) | Value::Object(_)) | None => DType::F32,
    }
}

fn convert(elements: &[&Value], dims: &[u64], dtype: DType) -> Result<Tensor, JsonError> {
    let of = Elements { elements, dims, dtype };
    match dtype {
        DType::F16 => of.numbers(|n| float(n).map(f16::from_f64).filter(|x| x.is_finite())),
        DType::Bf16 => of.numbers(|n| float(n).map(bf16::from_f64).filter(|x| x.is_finite())),
        DType::F32 => of.numbers(|n| float(n).map(|x| x as f32).filter(|x| x.is_finite())),
        DType::F64 => of.numbers(float),
        DType::I8 => of.numbers(|n| n.as_i64()?.try_into().ok() as Option<i8>),
        DType::I16 => of.numbers(|n| n.as_i64()?.try_into().ok() as Option<i16>),
        DType::I32 => of.numbers(|n| n.as_i64()?.try_into().ok() as Option<i32>),
        DType::I64 => of.numbers(Number::as_i64),
        DType::U8 => of.numbers(|n| n.as_u64()?.try_into().ok() as Option<u8>),
        DType::U16 => of.numbers(|n| n.as_u64()?.try_into().ok() as Option<u16>),
        DType::U32 => of.numbers(|n| n.as_u64()?.try_into().ok() as Option<u32>),
        DType::U64 => of.numbers(Number::as_u64),
        DType::Bool => {
            let flags: Vec<u8> = of.map(|value| value.as_bool().map(u8::from))?;
            Ok(Tensor::new(dtype, Shape::new(dims)?, flags.into())?)
        }
        DType::String => Ok(Tensor::from_strings(dims, &of.map(Value::as_str)?)?),
    }
}

fn float(number: &Number) -> Option<f64> {
    number.as_f64().filter(|x| x.is_finite())
}

/// Elements on their way to a type.
struct Elements<'a, 'd> {
    elements: &'d [&'a Value],
    dims: &'d [u64],
    dtype: DType,
}

impl<'a> Elements<'a, '_> {
    fn map<T>(&self, convert: impl Fn(&'a Value) -> Option<T>) -> Result<Vec<T>, JsonError> {
        let converted = self.elements.iter().enumerate().map(|(index, value)| {
            convert(value).ok_or_else(|| JsonError::Element {
                place: text(&self.place(index)),
                value: value.to_string(),
                dtype: self.dtype,
            })
        });
        converted.collect()
    }

    fn numbers<T: Element>(&self, convert: impl Fn(&Number) -> Option<T>) -> Result<Tensor, JsonError> {
        let numbers = self.map(|value| value.as_number().and_then(&convert))?;
        Ok(Tensor::from_elements(self.dims, numbers)?)
    }

    /// Where the element of that number lies.
    fn place(&self, mut index: usize) -> Vec<usize> {
        let mut place: Vec<usize> = Vec::with_capacity(self.dims.len());
        for dim in self.dims.iter().rev() {
            place.push(index % *dim as usize);
            index /= *dim as usize;
        }
        place.reverse();
        place
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::{any, proptest};

    proptest! {
        #[test]
        fn random_text_is_refused_or_read(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = read(&bytes, None);
        }

        #[test]
        fn random_json_is_refused_or_read(text in r#"[\[\]{},:"0-9eE.+\-a-z \\]{0,64}"#) {
            for dtype in DType::ALL.into_iter().map(Some).chain([None]) {
                let _ = read(text.as_bytes(), dtype);
            }
        }
    }

    #[test]
    fn types_are_natural_or_stated() {
        let check = |text: &str, dtype, expected: &str| {
            assert_eq!(format!("{:?}", read(text.as_bytes(), dtype).unwrap()), expected, "{text}");
        };
        check("[[1, 2.5], [3, 4]]", None, "f32[2, 2]");
        check("[true, false]", None, "bool[2]");
        check("[[\"a\"], [\"b\"]]", None, "string[2, 1]");
        check("7", None, "f32[]");
        check("[]", None, "f32[0]");
        check("[[], []]", Some(DType::I64), "i64[2, 0]");
        for dtype in DType::ALL.into_iter().filter(|dtype| !matches!(dtype, DType::Bool | DType::String)) {
            check("[1, 2, 3]", Some(dtype), &format!("{dtype}[3]"));
        }
    }

    #[test]
    fn elements_keep_their_values() {
        let ids = read(b"[[9007199254740993, -2]]", Some(DType::I64)).unwrap();
        assert_eq!(ids.elements::<i64>().unwrap(), [9_007_199_254_740_993, -2]);
        let floats = read(b"[[0.5, -1e3]]", None).unwrap();
        assert_eq!(floats.elements::<f32>().unwrap(), [0.5, -1000.0]);
        let halves = read(b"[0.5]", Some(DType::F16)).unwrap();
        assert_eq!(halves.elements::<f16>().unwrap(), [f16::from_f32(0.5)]);
        assert_eq!(read(b"[false, true]", None).unwrap().bytes()[..], [0, 1]);
        let texts = read("[\"zürich\", \"\"]".as_bytes(), None).unwrap();
        assert_eq!(texts.view().strings().unwrap().collect::<Vec<_>>(), ["zürich", ""]);
    }

    #[test]
    fn what_is_no_tensor_says_where() {
        let check = |text: &str, dtype, expected: &str| {
            assert_eq!(read(text.as_bytes(), dtype).unwrap_err().to_string(), expected);
        };
        check("[1,", None, "not JSON: EOF while parsing a value at line 1 column 3");
        check(
            "[[1, 2], [3]]",
            None,
            "the arrays are ragged: [1] is an array of 1, the first beside it an array of 2",
        );
        check("[[1], 2]", None, "the arrays are ragged: [1] is no array, the first beside it an array of 1");
        check("[1, [2]]", None, "the arrays are ragged: [1] is an array of 1, the first beside it no array");
        check("[[1], [null]]", None, "the element null at [1][0] is no f32");
        check("[1, \"a\"]", None, "the element \"a\" at [1] is no f32");
        check("[1e39]", None, "the element 1e+39 at [0] is no f32");
        check("[1e5]", Some(DType::F16), "the element 100000.0 at [0] is no f16");
        check("[[0], [256]]", Some(DType::U8), "the element 256 at [1][0] is no u8");
        check("[1.5]", Some(DType::I64), "the element 1.5 at [0] is no i64");
        check("[-1]", Some(DType::U64), "the element -1 at [0] is no u64");
        check("[1]", Some(DType::Bool), "the element 1 at [0] is no bool");
        check("[[[[[[[[[1]]]]]]]]]", None, "the arrays are nested deeper than the 8 dimensions of a tensor");
    }
}
