//! Serves infer links: reads requests from streams, writes responses to them.
//!
//! One task per request. Its bytes are admitted once the frame's prefix is read, ahead of the memory for them; a refusal
//! is a trailer alone. A caller that stops the response's stream, or whose connection breaks, cancels the request.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use quinn::{RecvStream, SendStream, VarInt};
use roost_protocol::error::reason;
use roost_protocol::frame::{Frame, FrameError, Kind};
use roost_protocol::messages::infer::{
    InferRequest, PartHeader, ResponseMode, Trailer, encode_archive, lay_out,
};
use roost_protocol::quic::stream::{read_prefix, read_rest};
use roost_protocol::quic::{Link, PeerIdentity, Role, StreamError, finish};
use roost_protocol::{InferError, Tensor, TensorView};
use tokio::time::{Instant, timeout};

use super::admission::Permit;
use super::handle::{Answering, Ask, Output, WorkerHandle};
use super::request::Part;

/// How long a request may take to come in whole: it holds room on the node meanwhile. 512 MiB come in less than half of
/// that over 1 Gbit/s.
const REQUEST_READ_MAX: Duration = Duration::from_secs(10);
/// How long a response may take to be taken in: it holds room on the node meanwhile.
const RESPONSE_WRITE_MAX: Duration = Duration::from_secs(10);
/// The code with which the stream of a response is reset that nobody takes.
const NOT_TAKEN: VarInt = VarInt::from_u32(1);

impl WorkerHandle {
    /// Serves a link until it breaks.
    pub async fn serve(&self, link: Link) {
        let peer = Arc::new(link.peer.clone());
        while let Ok((mut send, mut recv)) = link.accept().await {
            let (handle, peer) = (self.clone(), peer.clone());
            tokio::spawn(async move {
                if let Err(error) = handle.serve_one(&peer, &mut send, &mut recv).await {
                    tracing::debug!(peer = %peer.name, %error, "a request ended without its answer being taken");
                }
            });
        }
    }

    async fn serve_one(
        &self,
        peer: &PeerIdentity,
        send: &mut SendStream,
        recv: &mut RecvStream,
    ) -> Result<(), StreamError> {
        let (mut answering, mode) = match self.read_request(recv).await {
            Ok(None) => return Ok(()),
            Ok(Some(incoming)) => self.start(peer, incoming),
            Err(Failed::Stream(error)) => return Err(error),
            Err(Failed::Refused(error)) => (self.refuse(error), ResponseMode::Unary),
        };
        // Completes when the caller stops reading, or is gone.
        let mut stopped = std::pin::pin!(send.stopped());
        let mut chunks = Vec::new();
        loop {
            let output = tokio::select! {
                biased;
                output = answering.next() => output,
                // Dropping what answers cancels the request.
                _ = &mut stopped => return Ok(()),
            };
            let Some(output) = output else { break };
            let is_part = matches!(output, Output::Part(_));
            let is_last = encode(output, &mut chunks)?;
            // A unary response is written at once, a streamed one as it is made.
            if is_last || (is_part && mode == ResponseMode::Stream) {
                write(send, std::mem::take(&mut chunks)).await?;
            }
            if is_last {
                break;
            }
        }
        // What it held is given back ahead of the stream's end, so that whoever has read it all finds the room.
        drop(answering);
        finish(send);
        Ok(())
    }

    async fn read_request(&self, recv: &mut RecvStream) -> Result<Option<Incoming>, Failed> {
        let Some(prefix) = read_prefix(recv).await.map_err(Failed::reading)? else { return Ok(None) };
        let arrived = Instant::now();
        let permit = self.admit(prefix.rest_bytes() as u64).map_err(Failed::Refused)?;
        let Ok(frame) = timeout(REQUEST_READ_MAX, read_rest(recv, prefix)).await else {
            return Err(Failed::Refused(InferError::DeadlineExceeded));
        };
        let frame = frame.map_err(Failed::reading)?;
        Ok(Some(Incoming { frame, permit, arrived }))
    }

    fn start(&self, peer: &PeerIdentity, incoming: Incoming) -> (Answering, ResponseMode) {
        let Incoming { frame, permit, arrived } = incoming;
        let begun = InferRequest::read(&frame).and_then(|request| {
            check_tenant(peer, &request)?;
            let header = request.header();
            let ask = Ask {
                request: request.request(),
                model: &header.model,
                version: request.version(),
                revision: request.revision(),
                generation: request.generation(),
                choice: request.choice(),
                key: request.key(),
                priority: header.priority,
                deadline: Self::deadline(arrived, header.deadline_us.to_native()),
                mode: request.response_mode(),
                trace: request.trace(),
            };
            let body = frame.body_bytes();
            let tensors = request.tensors().map(|tensor| in_place(tensor?, &body));
            let outputs = header.outputs.iter().map(|name| name.as_str());
            Ok((self.begin(&ask, permit, tensors, outputs)?, ask.mode))
        });
        begun.unwrap_or_else(|error| (self.refuse(error), ResponseMode::Unary))
    }
}

/// A request that came in whole.
struct Incoming {
    frame: Frame,
    permit: Permit,
    arrived: Instant,
}

/// Why there is no request.
enum Failed {
    /// Nobody is there to be told.
    Stream(StreamError),
    /// The caller is told.
    Refused(InferError),
}

impl Failed {
    fn reading(error: StreamError) -> Self {
        match error {
            StreamError::Frame(FrameError::TooLarge { part, max, actual, .. }) => {
                Self::Refused(InferError::LimitExceeded {
                    what: format!("bytes of a request's {part}"),
                    max,
                    actual,
                })
            }
            StreamError::Frame(error) => Self::Refused(InferError::Malformed { what: reason(error) }),
            error @ (StreamError::Broken(_) | StreamError::Ended | StreamError::Stalled { .. }) => {
                Self::Stream(error)
            }
        }
    }
}

/// A tensor whose bytes stay where they were read to, in `body`.
fn in_place<'a>(
    (name, view): (&'a str, TensorView<'a>),
    body: &Bytes,
) -> Result<(&'a str, Tensor), InferError> {
    let tensor = Tensor::new(view.dtype(), view.shape(), body.slice_ref(view.bytes()));
    Ok((name, tensor.map_err(|error| InferError::Malformed { what: reason(error) })?))
}

fn check_tenant(peer: &PeerIdentity, request: &InferRequest<'_>) -> Result<(), InferError> {
    if request.header().tenant.is_none() || peer.has_any(&[Role::Gateway]) {
        return Ok(());
    }
    tracing::warn!(target: "audit", peer = %peer.name, roles = peer.roles_text(), "stated a tenant without being a gateway");
    Err(InferError::Forbidden { needed: Role::Gateway.to_string() })
}

/// Appends the bytes of a piece; says whether it was the last. Outputs that do not fit a frame end the response.
fn encode(output: Output, chunks: &mut Vec<Bytes>) -> Result<bool, StreamError> {
    let trailer = match output {
        Output::Header(header) => {
            chunks.push(Bytes::from_owner(encode_archive(Kind::InferHeader, &header, 0)?));
            return Ok(false);
        }
        Output::Part(part) => match encode_part(&part, chunks) {
            Ok(()) => return Ok(false),
            Err(error) => {
                Trailer { error: Some(error), queue_us: 0, compute_us: 0, batch_rows: 0, in_flight: 0 }
            }
        },
        Output::Trailer(trailer) => trailer,
    };
    chunks.push(Bytes::from_owner(encode_archive(Kind::InferTrailer, &trailer, 0)?));
    Ok(true)
}

fn encode_part(part: &Part, chunks: &mut Vec<Bytes>) -> Result<(), InferError> {
    let (tensors, pieces) = lay_out(part)?;
    let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
    let head =
        encode_archive(Kind::InferPart, &PartHeader { tensors }, bytes).map_err(|error| match error {
            FrameError::TooLarge { part, max, actual, .. } => {
                InferError::LimitExceeded { what: format!("bytes of a response's {part}"), max, actual }
            }
            FrameError::Magic(_)
            | FrameError::Kind(_)
            | FrameError::Unexpected { .. }
            | FrameError::Truncated
            | FrameError::Header { .. } => InferError::Malformed { what: reason(error) },
        })?;
    chunks.push(Bytes::from_owner(head));
    chunks.extend(pieces);
    Ok(())
}

async fn write(send: &mut SendStream, mut chunks: Vec<Bytes>) -> Result<(), StreamError> {
    if let Ok(written) = timeout(RESPONSE_WRITE_MAX, send.write_all_chunks(&mut chunks)).await {
        return Ok(written?);
    }
    // Fails only when it is reset already.
    let _ = send.reset(NOT_TAKEN);
    Err(StreamError::Broken("the response was not taken in time".to_owned()))
}
