//! The caller's side of a request: frames over a link, or a call within the process.

use bytes::Bytes;
use quinn::{RecvStream, SendStream};
use roost_node::worker::{Answering, Output};
use roost_protocol::frame::Kind;
use roost_protocol::messages::infer::{
    Choice, InferHeader, Named, ResponseHeader, ResponseMode, Trailer, encode_archive, lay_out, read_part,
    read_response_header, read_trailer,
};
use roost_protocol::quic::{Link, finish, read_frame};
use roost_protocol::{InferError, ModelVersion, Tensor};

/// A request to a version, pinned, with half a minute to go.
pub fn header(version: &str) -> InferHeader {
    let ModelVersion { model, version } = version.parse().unwrap();
    InferHeader {
        request: [7; 16],
        attempt: 0,
        deadline_us: 30_000_000,
        priority: 0,
        tenant: None,
        sequence: None,
        trace: None,
        response_mode: ResponseMode::Unary as u8,
        model: model.to_string(),
        version: version.0,
        revision: 1,
        generation: 1,
        choice: Choice::Pinned as u8,
        key_hash: 0,
        tensors: Vec::new(),
        outputs: Vec::new(),
    }
}

/// An input by its name.
pub fn named(name: &str, tensor: Tensor) -> Named<Tensor> {
    Named { name: name.to_owned(), tensor }
}

/// Rows of the scripted engine's input.
pub fn x(values: &[f32]) -> Vec<Named<Tensor>> {
    vec![named("x", Tensor::from_elements(&[values.len() as u64 / 2, 2], values.to_vec()).unwrap())]
}

/// A response.
#[derive(Debug)]
pub struct Response {
    pub header: Option<ResponseHeader>,
    pub parts: Vec<Vec<Named<Tensor>>>,
    pub trailer: Trailer,
}

impl Response {
    /// The values of an output that must be there.
    pub fn f32s(&self, output: &str) -> &[f32] {
        assert_eq!(self.trailer.error, None);
        let output = self.parts.iter().flatten().find(|named| named.name == output).unwrap();
        output.tensor.elements().unwrap()
    }

    /// The error that must be there.
    pub fn error(&self) -> &InferError {
        self.trailer.error.as_ref().unwrap_or_else(|| panic!("an answer came: {self:?}"))
    }
}

/// Sends a request over a link.
pub async fn send(
    link: &Link,
    mut header: InferHeader,
    inputs: &[Named<Tensor>],
) -> (SendStream, RecvStream) {
    let (tensors, pieces) = lay_out(inputs).unwrap();
    header.tensors = tensors;
    let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
    let mut chunks = vec![Bytes::from_owner(encode_archive(Kind::InferRequest, &header, bytes).unwrap())];
    chunks.extend(pieces);
    let (mut send, recv) = link.open().await.unwrap();
    send.write_all_chunks(&mut chunks).await.unwrap();
    finish(&mut send);
    (send, recv)
}

/// Reads a response.
pub async fn receive(recv: &mut RecvStream) -> Response {
    let (mut header, mut parts) = (None, Vec::new());
    loop {
        let frame = read_frame(recv).await.unwrap().unwrap();
        match frame.kind() {
            Kind::InferHeader => header = Some(read_response_header(&frame).unwrap()),
            Kind::InferPart => parts.push(read_part(&frame).unwrap()),
            _ => {
                let trailer = read_trailer(&frame).unwrap();
                assert!(read_frame(recv).await.unwrap().is_none(), "something follows the trailer");
                return Response { header, parts, trailer };
            }
        }
    }
}

/// Sends a request over a link and reads its response.
pub async fn ask(link: &Link, header: InferHeader, inputs: &[Named<Tensor>]) -> Response {
    let (_send, mut recv) = send(link, header, inputs).await;
    receive(&mut recv).await
}

/// Gathers the response to a call within the process.
pub async fn gather(mut answering: Answering) -> Response {
    let (mut header, mut parts) = (None, Vec::new());
    loop {
        match answering.next().await.unwrap() {
            Output::Header(first) => header = Some(first),
            Output::Part(part) => parts.push(part),
            Output::Trailer(trailer) => {
                assert!(answering.next().await.is_none());
                return Response { header, parts, trailer };
            }
        }
    }
}
