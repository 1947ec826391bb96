//! From `TensorProto` to [`Tensor`]: raw data is borrowed, typed fields are converted, external data is
//! looked up in the bundle and nowhere else. Dimensions are checked before anything is allocated.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::glance::inside;
use super::proto::TensorProto;
use crate::error::{ImportError, UnsupportedOp};
use crate::exec::interpret::extent;
use crate::tensor::{AlignedBuf, DType, Tensor, bytes_of};

/// The files of a bundle, by name.
pub type Files = BTreeMap<String, Bytes>;

/// A dimension of an empty tensor: no bytes of the file pay for it, and yet tables may be made along it.
const EMPTY_DIM_MAX: usize = 1 << 20;

/// The tensor that `proto` holds or points to.
///
/// # Errors
/// [`ImportError::Tensor`] for data that does not fit dimensions or type, [`ImportError::External`] and
/// [`ImportError::MissingFile`] for external data that is not in the bundle, [`ImportError::Unsupported`] for
/// text and other element types.
pub fn tensor(proto: &TensorProto, files: &Files) -> Result<Tensor, ImportError> {
    let name = || if proto.name.is_empty() { "(unnamed)".to_owned() } else { proto.name.clone() };
    let wrong = |reason: String| ImportError::Tensor { tensor: name(), reason };
    let dtype = DType::from_onnx(proto.data_type).ok_or_else(|| {
        let reason = format!("element type {} is not supported", proto.data_type);
        ImportError::Unsupported(vec![UnsupportedOp { op: "tensor".into(), node: name(), reason }])
    })?;
    let shape = proto
        .dims
        .iter()
        .map(|dim| usize::try_from(*dim).map_err(|_| wrong(format!("dimension {dim}"))))
        .collect::<Result<Vec<_>, _>>()?;
    if shape.contains(&0) && shape.iter().any(|dim| *dim > EMPTY_DIM_MAX) {
        return Err(wrong(format!("{shape:?} is empty, and a dimension is over {EMPTY_DIM_MAX}")));
    }
    let large = || wrong(format!("{shape:?} is too large"));
    if extent(dtype, &shape) > isize::MAX as u128 {
        return Err(large());
    }
    let bytes = bytes_of(dtype, &shape).ok_or_else(large)?;
    if proto.data_location == 1 {
        let data = external(proto, files, bytes)?;
        return Tensor::from_file(dtype, shape, data)
            .ok_or_else(|| wrong("external data does not fit".into()));
    }
    if !proto.raw_data.is_empty() || bytes == 0 {
        let found = proto.raw_data.len();
        return Tensor::from_file(dtype, shape.clone(), proto.raw_data.clone())
            .ok_or_else(|| wrong(format!("{shape:?} of {dtype} takes {bytes} bytes, raw_data has {found}")));
    }
    let typed = typed_bytes(proto, dtype);
    let found = typed.len();
    Tensor::from_buf(dtype, shape.clone(), AlignedBuf::copied(&typed))
        .ok_or_else(|| wrong(format!("{shape:?} of {dtype} takes {bytes} bytes, its data has {found}")))
}

/// The typed field as little-endian bytes; narrower types are the low bytes of `int32_data`.
fn typed_bytes(proto: &TensorProto, dtype: DType) -> Vec<u8> {
    let ints =
        |take: usize| proto.int32_data.iter().flat_map(move |v| v.to_le_bytes().into_iter().take(take));
    match dtype {
        DType::F32 => proto.float_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::F64 => proto.double_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::I64 => proto.int64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U64 => proto.uint64_data.iter().flat_map(|v| v.to_le_bytes()).collect(),
        DType::U32 => proto.uint64_data.iter().flat_map(|v| (*v as u32).to_le_bytes()).collect(),
        DType::I32 => ints(4).collect(),
        DType::I16 | DType::U16 | DType::F16 | DType::BF16 => ints(2).collect(),
        DType::I8 | DType::U8 => ints(1).collect(),
        DType::Bool => proto.int32_data.iter().map(|v| u8::from(*v != 0)).collect(),
    }
}

fn external(proto: &TensorProto, files: &Files, bytes: usize) -> Result<Bytes, ImportError> {
    let wrong = |reason: String| ImportError::External { tensor: proto.name.clone(), reason };
    let entry = |key: &str| proto.external_data.iter().find(|e| e.key == key).map(|e| e.value.as_str());
    let location = entry("location").ok_or_else(|| wrong("no location".into()))?;
    let location = location.strip_prefix("./").unwrap_or(location);
    if !inside(location) {
        return Err(wrong(format!("{location} leaves the bundle")));
    }
    let file = files.get(location).ok_or_else(|| ImportError::MissingFile(location.to_owned()))?;
    let number = |key: &str, absent: usize| match entry(key) {
        None => Ok(absent),
        Some(text) => text.parse::<usize>().map_err(|_| wrong(format!("{key} is {text}"))),
    };
    let offset = number("offset", 0)?;
    let length = number("length", bytes)?;
    let end = offset.checked_add(length).filter(|end| *end <= file.len());
    let end = end.ok_or_else(|| {
        wrong(format!("{offset} + {length} is past the {} bytes of {location}", file.len()))
    })?;
    if length != bytes {
        return Err(wrong(format!("length {length}, the shape takes {bytes}")));
    }
    Ok(file.slice(offset..end))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::StringEntryProto;

    fn proto(entries: &[(&str, &str)]) -> TensorProto {
        let entry =
            |(key, value): &(&str, &str)| StringEntryProto { key: (*key).into(), value: (*value).into() };
        TensorProto {
            dims: vec![2],
            data_type: DType::F32.onnx(),
            name: "w".into(),
            data_location: 1,
            external_data: entries.iter().map(entry).collect(),
            ..TensorProto::default()
        }
    }

    #[test]
    fn external_data_stays_inside_the_bundle() {
        let files = Files::from([("w.bin".to_owned(), Bytes::from_static(&[0; 12]))]);
        let check = |entries: &[(&str, &str)]| tensor(&proto(entries), &files).map(|t| t.len());
        assert_eq!(check(&[("location", "w.bin")]), Ok(2));
        assert_eq!(check(&[("location", "./w.bin"), ("offset", "4"), ("length", "8")]), Ok(2));
        for bad in ["/etc/passwd", "../w.bin", "a/../../w.bin", "..\\w.bin"] {
            assert!(matches!(check(&[("location", bad)]), Err(ImportError::External { .. })), "{bad}");
        }
        assert_eq!(check(&[("location", "v.bin")]), Err(ImportError::MissingFile("v.bin".into())));
        for (offset, length) in [("8", "8"), ("18446744073709551615", "8"), ("-1", "8"), ("0", "4")] {
            let entries = [("location", "w.bin"), ("offset", offset), ("length", length)];
            assert!(matches!(check(&entries), Err(ImportError::External { .. })), "{offset} {length}");
        }
    }

    #[test]
    fn typed_fields_are_read_by_type() {
        let narrow = TensorProto {
            dims: vec![3],
            data_type: DType::I8.onnx(),
            int32_data: vec![-1, 2, 127],
            ..TensorProto::default()
        };
        let read = tensor(&narrow, &Files::new()).expect("fits");
        assert_eq!(*read.values::<i8>(), [-1, 2, 127]);
        let short = TensorProto { dims: vec![4], ..narrow.clone() };
        assert!(matches!(tensor(&short, &Files::new()), Err(ImportError::Tensor { .. })));
        let huge = TensorProto { dims: vec![i64::MAX, i64::MAX], ..narrow };
        assert!(matches!(tensor(&huge, &Files::new()), Err(ImportError::Tensor { .. })));
    }
}
