//! A tensor's elements for printing: a short text for people, an array for programs.

use half::{bf16, f16};
use roost_protocol::tensor::TensorError;
use roost_protocol::{DType, Tensor};
use serde::Serialize;

/// Elements that a short text shows: enough to see what it is about.
const SHOWN_MAX: usize = 12;

/// A tensor's elements, row by row.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Values {
    /// `f16`, `bf16` and `f32`. Infinities and NaN become `null` in JSON, which has neither.
    Floats(Vec<f32>),
    /// `f64`.
    Doubles(Vec<f64>),
    /// `i8` to `i64`.
    Signed(Vec<i64>),
    /// `u8` to `u64`.
    Unsigned(Vec<u64>),
    /// `bool`.
    Flags(Vec<bool>),
    /// `string`.
    Texts(Vec<String>),
}

impl Values {
    /// A tensor's elements.
    ///
    /// # Errors
    /// [`TensorError`] when the bytes are not aligned for them.
    pub fn of(tensor: &Tensor) -> Result<Self, TensorError> {
        Ok(match tensor.dtype() {
            DType::F16 => Self::Floats(tensor.elements::<f16>()?.iter().map(|x| x.to_f32()).collect()),
            DType::Bf16 => Self::Floats(tensor.elements::<bf16>()?.iter().map(|x| x.to_f32()).collect()),
            DType::F32 => Self::Floats(tensor.elements::<f32>()?.to_vec()),
            DType::F64 => Self::Doubles(tensor.elements::<f64>()?.to_vec()),
            DType::I8 => Self::Signed(tensor.elements::<i8>()?.iter().map(|x| i64::from(*x)).collect()),
            DType::I16 => Self::Signed(tensor.elements::<i16>()?.iter().map(|x| i64::from(*x)).collect()),
            DType::I32 => Self::Signed(tensor.elements::<i32>()?.iter().map(|x| i64::from(*x)).collect()),
            DType::I64 => Self::Signed(tensor.elements::<i64>()?.to_vec()),
            DType::U8 => Self::Unsigned(tensor.elements::<u8>()?.iter().map(|x| u64::from(*x)).collect()),
            DType::U16 => Self::Unsigned(tensor.elements::<u16>()?.iter().map(|x| u64::from(*x)).collect()),
            DType::U32 => Self::Unsigned(tensor.elements::<u32>()?.iter().map(|x| u64::from(*x)).collect()),
            DType::U64 => Self::Unsigned(tensor.elements::<u64>()?.to_vec()),
            DType::Bool => Self::Flags(tensor.bytes().iter().map(|byte| *byte != 0).collect()),
            DType::String => Self::Texts(tensor.view().strings()?.map(str::to_owned).collect()),
        })
    }

    /// The first elements, and how many there are when these are not all.
    pub fn short(&self) -> String {
        match self {
            Self::Floats(list) => short(list, |x| number(f64::from(*x))),
            Self::Doubles(list) => short(list, |x| number(*x)),
            Self::Signed(list) => short(list, ToString::to_string),
            Self::Unsigned(list) => short(list, ToString::to_string),
            Self::Flags(list) => short(list, ToString::to_string),
            Self::Texts(list) => short(list, |text| format!("{text:?}")),
        }
    }
}

fn short<T>(list: &[T], text: impl Fn(&T) -> String) -> String {
    let mut shown: Vec<String> = list.iter().take(SHOWN_MAX).map(text).collect();
    if list.len() > SHOWN_MAX {
        shown.push(format!("… {} in all", list.len()));
    }
    shown.join(" ")
}

/// Four digits behind the point where that says something, else a power of ten.
fn number(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 || !x.is_finite() {
        x.to_string()
    } else if (1e-3..1e6).contains(&size) {
        let text = format!("{x:.4}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{x:.3e}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_short_and_arrays_whole() {
        let floats = Tensor::from_elements(&[1, 14], (0..14).map(|i| i as f32 / 8.0).collect()).unwrap();
        let values = Values::of(&floats).unwrap();
        let expected = "0 0.125 0.25 0.375 0.5 0.625 0.75 0.875 1 1.125 1.25 1.375 … 14 in all";
        assert_eq!(values.short(), expected);
        assert!(serde_json::to_string(&values).unwrap().ends_with(",1.5,1.625]"));
        let tenth = Tensor::from_elements(&[2], vec![0.1f32, f32::NAN]).unwrap();
        assert_eq!(serde_json::to_string(&Values::of(&tenth).unwrap()).unwrap(), "[0.1,null]");
    }

    #[test]
    fn every_type_has_values() {
        let check =
            |tensor: Tensor, expected: &str| assert_eq!(Values::of(&tensor).unwrap().short(), expected);
        check(Tensor::from_elements(&[2], vec![i64::MIN, 2]).unwrap(), "-9223372036854775808 2");
        check(Tensor::from_elements(&[1], vec![u64::MAX]).unwrap(), "18446744073709551615");
        check(Tensor::from_elements(&[1], vec![f16::from_f32(0.5)]).unwrap(), "0.5");
        check(
            Tensor::from_elements(&[3], vec![1e-9f64, -2.5e9, f64::INFINITY]).unwrap(),
            "1.000e-9 -2.500e9 inf",
        );
        check(Tensor::from_strings(&[2], &["a b", ""]).unwrap(), "\"a b\" \"\"");
        let flags = Tensor::new(DType::Bool, shape_of_two(), vec![1, 0].into()).unwrap();
        check(flags, "true false");
    }

    fn shape_of_two() -> roost_protocol::Shape {
        roost_protocol::Shape::new(&[2]).unwrap()
    }
}
