//! Samples of the hot messages: requests, and the frames of responses.

use bytes::Bytes;
use roost_protocol::error::InferError;
use roost_protocol::frame::{Frame, Kind};
use roost_protocol::ids::{NodeId, Revision, Version};
use roost_protocol::messages::infer::{
    Choice, InferHeader, InferRequest, Named, PartHeader, ResponseHeader, ResponseMode, Trailer,
    encode_archive, lay_out, read_part, read_response_header, read_trailer,
};
use roost_protocol::tensor::{DType, Shape, Tensor};
use roost_protocol::trace::TraceContext;

use super::state::epoch;
use super::{Sample, each, same};

/// Every frame of inference but the trailers with errors.
pub fn samples() -> Vec<Sample> {
    let mut samples = vec![
        request("InferRequest", full(), vec![numbers("image", &[2, 3]), numbers("mask", &[5])]),
        request("InferRequest/least", least(), vec![]),
    ];
    samples.extend(each(vec![Choice::Split, Choice::Pinned, Choice::Fallback], |name, choice| {
        request(&format!("InferRequest/{name}"), InferHeader { choice: choice as u8, ..least() }, vec![])
    }));
    samples.extend(each(vec![ResponseMode::Unary, ResponseMode::Stream], |name, mode| {
        let header = InferHeader { response_mode: mode as u8, ..least() };
        request(&format!("InferRequest/{name}"), header, vec![])
    }));
    samples.push(response_header());
    samples.push(part("InferPart/none", vec![]));
    samples.push(part("InferPart/two", vec![numbers("logits", &[1, 10]), numbers("scalar", &[])]));
    samples.extend(each(DType::ALL.to_vec(), |name, dtype| {
        part(&format!("InferPart/{name}"), vec![of_type(dtype)])
    }));
    samples.push(trailer("Trailer/answered", None));
    samples
}

/// A header in which everything is said.
fn full() -> InferHeader {
    InferHeader {
        request: *b"0123456789abcdef",
        attempt: 1,
        deadline_us: 250_000,
        priority: 3,
        tenant: Some("anna".to_owned()),
        sequence: Some(99),
        trace: Some(TraceContext { trace_id: [0xab; 16], parent_id: [0xcd; 8], flags: 1 }),
        response_mode: ResponseMode::Unary as u8,
        model: "digits".to_owned(),
        version: 2,
        revision: 12,
        generation: 7,
        choice: Choice::Split as u8,
        key_hash: 0x0102_0304_0506_0708,
        tensors: vec![],
        outputs: vec!["logits".to_owned(), "an output with a name beyond the inline ones".to_owned()],
    }
}

/// A header in which nothing optional is said.
fn least() -> InferHeader {
    InferHeader {
        request: [0; 16],
        attempt: 0,
        deadline_us: 0,
        priority: 0,
        tenant: None,
        sequence: None,
        trace: None,
        response_mode: 0,
        model: "m".to_owned(),
        version: 1,
        revision: 1,
        generation: 1,
        choice: 0,
        key_hash: 0,
        tensors: vec![],
        outputs: vec![],
    }
}

fn numbers(name: &str, dims: &[u64]) -> Named<Tensor> {
    let count = dims.iter().product::<u64>() as u16;
    let elements: Vec<f32> = (0..count).map(|i| f32::from(i) + 0.5).collect();
    Named { name: name.to_owned(), tensor: Tensor::from_elements(dims, elements).expect("a tensor") }
}

/// Two elements of a type, with bytes that count up where any byte may stand.
fn of_type(dtype: DType) -> Named<Tensor> {
    let tensor = match dtype {
        DType::String => Tensor::from_strings(&[2], &["", "zwölf"]),
        DType::Bool => Tensor::new(dtype, Shape::new(&[2]).expect("rank 1"), Bytes::from_static(&[0, 1])),
        DType::F16
        | DType::Bf16
        | DType::F32
        | DType::F64
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64 => {
            let bytes: Vec<u8> = (1..=2 * dtype.element_bytes().expect("a number") as u8).collect();
            Tensor::new(dtype, Shape::new(&[2]).expect("rank 1"), bytes.into())
        }
    };
    Named { name: "x".to_owned(), tensor: tensor.expect("a tensor") }
}

/// A request's frame: the header's tensors are those given.
fn request(name: &str, mut header: InferHeader, tensors: Vec<Named<Tensor>>) -> Sample {
    let (headers, pieces) = lay_out(&tensors).expect("a sample is small");
    header.tensors = headers;
    let bytes = frame(Kind::InferRequest, &header, &pieces);
    let reads_back = move |bytes: &[u8]| {
        let frame = Frame::parse(bytes).map_err(|error| error.to_string())?;
        let request = InferRequest::read(&frame).map_err(|error| error.to_string())?;
        let read = rkyv::deserialize::<InferHeader, rkyv::rancor::Error>(request.header());
        same(&read.map_err(|error| error.to_string())?, &header)?;
        let views = request.tensors().collect::<Result<Vec<_>, _>>().map_err(|error| error.to_string())?;
        let expected: Vec<_> = tensors.iter().map(|t| (t.name.as_str(), t.tensor.view())).collect();
        same(&views, &expected)
    };
    Sample { name: name.to_owned(), bytes, reads_back: Box::new(reads_back) }
}

fn response_header() -> Sample {
    let header = ResponseHeader::new(epoch(300), Revision(12), Version(2), NodeId(10));
    let bytes = frame(Kind::InferHeader, &header, &[]);
    let reads_back = move |bytes: &[u8]| {
        let frame = Frame::parse(bytes).map_err(|error| error.to_string())?;
        same(&read_response_header(&frame).map_err(|error| error.to_string())?, &header)
    };
    Sample { name: "ResponseHeader".to_owned(), bytes, reads_back: Box::new(reads_back) }
}

fn part(name: &str, tensors: Vec<Named<Tensor>>) -> Sample {
    let (headers, pieces) = lay_out(&tensors).expect("a sample is small");
    let bytes = frame(Kind::InferPart, &PartHeader { tensors: headers }, &pieces);
    let reads_back = move |bytes: &[u8]| {
        let frame = Frame::parse(bytes).map_err(|error| error.to_string())?;
        same(&read_part(&frame).map_err(|error| error.to_string())?, &tensors)
    };
    Sample { name: name.to_owned(), bytes, reads_back: Box::new(reads_back) }
}

/// A trailer's frame.
pub fn trailer(name: &str, error: Option<InferError>) -> Sample {
    let trailer = Trailer { error, queue_us: 40, compute_us: 900, batch_rows: 8, in_flight: 3 };
    let bytes = frame(Kind::InferTrailer, &trailer, &[]);
    let reads_back = move |bytes: &[u8]| {
        let frame = Frame::parse(bytes).map_err(|error| error.to_string())?;
        same(&read_trailer(&frame).map_err(|error| error.to_string())?, &trailer)
    };
    Sample { name: name.to_owned(), bytes, reads_back: Box::new(reads_back) }
}

/// The whole bytes of a frame.
pub fn frame<T>(kind: Kind, header: &T, pieces: &[Bytes]) -> Vec<u8>
where
    T: for<'a> rkyv::Serialize<
            rkyv::api::high::HighSerializer<
                rkyv::util::AlignedVec,
                rkyv::ser::allocator::ArenaHandle<'a>,
                rkyv::rancor::Error,
            >,
        >,
{
    let body_bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
    let mut bytes = encode_archive(kind, header, body_bytes).expect("a sample is small").to_vec();
    pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
    bytes
}
