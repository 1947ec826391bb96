//! Every decoder of the crate, as a function of bytes whose memory is counted.

use roost_protocol::bundle::FileList;
use roost_protocol::error::ControlError;
use roost_protocol::frame::{Frame, Kind, Prefix};
use roost_protocol::ids::{Digest, ModelVersion, Target};
use roost_protocol::manifest::Manifest;
use roost_protocol::messages::control::{
    BundleRequest, BundleResponse, ControlRequest, ControlResponse, Hello, WatchUpdate,
};
use roost_protocol::messages::infer::{InferRequest, read_part, read_response_header, read_trailer};
use roost_protocol::quic::{PeerIdentity, Role};
use roost_protocol::tensor::{DType, Shape, TensorView};
use roost_protocol::trace::TraceContext;
use roost_protocol::traffic::Weight;
use roost_protocol::view::{Delta, SoftState, View};
use serde::de::DeserializeOwned;

use crate::allocations::measure;

/// Bytes held at once per byte of a message. The densest take 40: a removed node is two or three bytes on the wire and a
/// slot of a half-full B-tree in memory, an empty label one byte and a `String` in a vector that doubles.
const MESSAGE_PROPORTION_MAX: usize = 48;
/// The same of a text. TOML's tokens are larger; a manifest, at most 256 KiB, takes 43 MiB at the worst that is tried here.
const TEXT_PROPORTION_MAX: usize = 256;
/// Errors, and the first few elements of a collection, which come in one allocation.
const CONSTANT_BYTES_MAX: usize = 64 << 10;

/// Feeds bytes to every decoder.
pub fn decode_everywhere(bytes: &[u8]) {
    bounded_text(bytes);
    bounded(bytes, frame);
    bounded(bytes, certificate);
    bounded(bytes, tensor);
    bounded(bytes, bare::<View>);
    bounded(bytes, bare::<Delta>);
    bounded(bytes, bare::<SoftState>);
    bounded(bytes, bare::<FileList>);
    bounded(bytes, bare::<Manifest>);
    bounded(bytes, bare::<Shape>);
    for kind in Kind::ALL {
        if let Ok(prefix) = Prefix::new(kind, bytes.len() as u64, 0) {
            bounded(&[&prefix.encode(), bytes].concat(), frame);
        }
    }
}

/// Decodes a message and bounds what that took.
pub fn bounded(bytes: &[u8], decode: impl Fn(&[u8])) {
    bounded_by(MESSAGE_PROPORTION_MAX, bytes, decode);
}

/// Parses a text as everything that it may be, and bounds what that took.
pub fn bounded_text(bytes: &[u8]) {
    bounded_by(TEXT_PROPORTION_MAX, bytes, text);
}

fn bounded_by(proportion: usize, bytes: &[u8], decode: impl Fn(&[u8])) {
    let ((), taken) = measure(|| decode(bytes));
    let max = bytes.len() * proportion + CONSTANT_BYTES_MAX;
    let shown = &bytes[..bytes.len().min(256)];
    assert!(taken.bytes_peak <= max, "{taken:?} for {} bytes: {}", bytes.len(), hex::encode(shown));
}

/// Reads a frame as each message that a frame may hold, whatever its kind.
pub fn frame(bytes: &[u8]) {
    let Ok(frame) = Frame::parse(bytes) else { return };
    // Whether it is this message is not the question here; that reading it ends well is.
    fn message<T: DeserializeOwned>(frame: &Frame) {
        let _ = frame.message::<T>();
    }
    message::<Hello>(&frame);
    message::<Result<Hello, ControlError>>(&frame);
    message::<ControlRequest>(&frame);
    message::<ControlResponse>(&frame);
    message::<WatchUpdate>(&frame);
    message::<BundleRequest>(&frame);
    message::<BundleResponse>(&frame);
    if let Ok(request) = InferRequest::read(&frame) {
        for (_, view) in request.tensors().flatten() {
            read_elements(view);
        }
        let _ =
            (request.request(), request.choice(), request.response_mode(), request.key(), request.trace());
        let _ = (request.version(), request.revision(), request.header().model.as_str());
    }
    for named in read_part(&frame).into_iter().flatten() {
        read_elements(named.tensor.view());
    }
    let _ = read_response_header(&frame).map(|header| header.epoch());
    let _ = read_trailer(&frame).map(|trailer| trailer.error.map(|error| error.to_string()));
}

fn bare<T: DeserializeOwned>(bytes: &[u8]) {
    let _ = postcard::from_bytes::<T>(bytes);
}

/// Reads bytes as each text that is parsed.
fn text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let _ = Manifest::parse(&text).map_err(|error| error.to_string());
    let _ = TraceContext::parse(&text).map(TraceContext::to_header);
    let _ = text.parse::<Target>().map_err(|error| error.to_string());
    let _ = text.parse::<ModelVersion>().map_err(|error| error.to_string());
    let _ = text.parse::<Weight>().map_err(|error| error.to_string());
    let _ = text.parse::<Digest>().map_err(|error| error.to_string());
    let _ = text.parse::<Role>().map_err(|error| error.to_string());
    let _ = PeerIdentity::from_uri(&text).map_err(|error| error.to_string());
}

/// Reads bytes as a certificate.
pub fn certificate(bytes: &[u8]) {
    let _ = PeerIdentity::from_certificate(bytes).map_err(|error| error.to_string());
}

/// Reads bytes as a tensor of each type, of shapes that fit and of shapes that do not.
fn tensor(bytes: &[u8]) {
    for dtype in DType::ALL {
        let width = dtype.element_bytes().unwrap_or(4);
        let first = bytes.first().map_or(0, |byte| u64::from(*byte));
        let fits = (bytes.len() / width) as u64;
        for dims in [&[fits][..], &[1, fits], &[first], &[], &[0], &[u64::MAX, first], &[u64::MAX / 4, 4]] {
            let shape = Shape::new(dims).expect("rank 2 at most");
            if let Ok(view) = TensorView::new(dtype, shape, bytes) {
                read_elements(view);
            }
        }
    }
}

/// Reads the elements of a tensor that was accepted. Alignment is the buffer's matter, so it is not demanded here.
fn read_elements(view: TensorView<'_>) {
    match view.dtype() {
        DType::String => {
            let count = view.strings().expect("it holds strings").map(str::len).count();
            assert_eq!(Some(count as u64), view.shape().elements());
        }
        DType::Bool => assert!(view.bytes().iter().all(|byte| *byte <= 1)),
        DType::F32 => drop(view.elements::<f32>()),
        dtype @ (DType::F16
        | DType::Bf16
        | DType::F64
        | DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64) => {
            let width = dtype.element_bytes().expect("a number") as u64;
            assert_eq!(view.shape().elements().map(|count| count * width), Some(view.bytes().len() as u64));
        }
    }
}
