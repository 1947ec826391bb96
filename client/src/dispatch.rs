//! One attempt at one node: how it gets there and how its answer comes back.
//!
//! Requests know the trait [`Dispatch`] alone. Over the network it is [`QuicDispatch`]: one bidirectional
//! stream per attempt. A node hands requests for itself to its own worker by another implementation, with the
//! same admission and deadlines. Dropping what [`Dispatch::send`] returned cancels the attempt.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use quinn::{RecvStream, SendStream, VarInt, WriteError};
use roost_protocol::error::reason;
use roost_protocol::frame::{Frame, FrameError, Kind};
use roost_protocol::messages::infer::{
    InferHeader, Named, ResponseHeader, TensorHeader, Trailer, encode_archive, lay_out, read_part,
    read_response_header, read_trailer,
};
use roost_protocol::quic::endpoint::GreetError;
use roost_protocol::quic::{Dialler, Link, Links, Service, StreamError, finish, read_frame};
use roost_protocol::{ControlError, InferError, NodeId, NodeName, Tensor};
use tokio::time::Instant;

/// The code with which streams of given-up attempts are reset.
const CANCELLED: VarInt = VarInt::from_u32(0);

/// A node to send to.
#[derive(Debug, Clone)]
pub struct Destination {
    /// The node.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// `host:port` of its endpoint.
    pub address: Arc<str>,
}

/// The inputs of a request, laid out once for all its attempts.
#[derive(Debug)]
pub struct Inputs {
    tensors: Vec<Named<Tensor>>,
    pieces: Vec<Bytes>,
    bytes: u64,
}

/// One attempt of a request.
#[derive(Debug, Clone)]
pub struct Attempt {
    /// What the request says of itself. `deadline_us` is set when it is sent.
    pub header: InferHeader,
    /// When the request must be over.
    pub deadline: Instant,
    /// Its inputs.
    pub inputs: Arc<Inputs>,
}

impl Inputs {
    /// Lays tensors out. With them come the headers that describe them.
    ///
    /// # Errors
    /// [`InferError::LimitExceeded`] for too many tensors, too long a name, or too many bytes.
    pub fn new(tensors: Vec<Named<Tensor>>) -> Result<(Self, Vec<TensorHeader>), InferError> {
        let (headers, pieces) = lay_out(&tensors)?;
        let bytes = pieces.iter().map(|piece| piece.len() as u64).sum();
        let (_, max) = Kind::InferRequest.limits();
        if bytes > max {
            let what = "bytes of a request's inputs".to_owned();
            return Err(InferError::LimitExceeded { what, max, actual: bytes });
        }
        Ok((Self { tensors, pieces, bytes }, headers))
    }

    /// The tensors.
    pub fn tensors(&self) -> &[Named<Tensor>] {
        &self.tensors
    }
}

impl Attempt {
    /// The header as it is to be sent now, with the time that is left.
    pub fn header_now(&self) -> InferHeader {
        let left = self.deadline.saturating_duration_since(Instant::now());
        InferHeader { deadline_us: left.as_micros() as u64, ..self.header.clone() }
    }
}

/// A frame of a response.
#[derive(Debug)]
pub enum Arrival {
    /// Where the answer comes from.
    Header(ResponseHeader),
    /// Outputs.
    Part(Vec<Named<Tensor>>),
    /// The end, with the error if there is one.
    Trailer(Trailer),
}

/// A response as it comes. It ends after a trailer or an error.
pub type Arrivals = BoxStream<'static, Result<Arrival, InferError>>;

/// Sends attempts.
pub trait Dispatch: Send + Sync + 'static {
    /// Sends an attempt. Dropping the result cancels it. Where another node is found in the place of the one that is meant, that
    /// one is [`InferError::Unreachable`].
    fn send(&self, to: Destination, attempt: Attempt) -> Arrivals;

    /// There are no nodes at other addresses than these any more.
    fn keep_only(&self, addresses: &BTreeSet<&str>);
}

/// Sends attempts over QUIC.
#[derive(Clone)]
pub struct QuicDispatch {
    links: Links,
}

impl QuicDispatch {
    /// Sends over links that `dialler` makes.
    pub fn new(dialler: Dialler) -> Self {
        Self { links: Links::new(dialler, Service::Infer) }
    }
}

impl Dispatch for QuicDispatch {
    fn send(&self, to: Destination, attempt: Attempt) -> Arrivals {
        let state = State::Unsent(Box::new((self.links.clone(), to, attempt)));
        stream::unfold(state, |state| async {
            match state.next().await {
                Ok(Some((arrival, state))) => Some((Ok(arrival), state)),
                Ok(None) => None,
                Err(error) => Some((Err(error), State::Over)),
            }
        })
        .boxed()
    }

    fn keep_only(&self, addresses: &BTreeSet<&str>) {
        self.links.keep_only(|address| addresses.contains(address));
    }
}

/// How far an attempt is.
enum State {
    Unsent(Box<(Links, Destination, Attempt)>),
    Sent(Box<Exchange>),
    Over,
}

impl State {
    async fn next(self) -> Result<Option<(Arrival, Self)>, InferError> {
        let mut exchange = match self {
            Self::Unsent(unsent) => {
                let (links, to, attempt) = *unsent;
                Box::new(Exchange::start(&links, &to, &attempt).await?)
            }
            Self::Sent(exchange) => exchange,
            Self::Over => return Ok(None),
        };
        let arrival = exchange.next().await?;
        exchange.over = matches!(arrival, Arrival::Trailer(_));
        let next = if exchange.over { Self::Over } else { Self::Sent(exchange) };
        Ok(Some((arrival, next)))
    }
}

/// The stream of one attempt. Reset when it is dropped before its end, so that the node stops working on it.
struct Exchange {
    node: NodeName,
    send: SendStream,
    recv: RecvStream,
    /// Frames that were read already.
    early: VecDeque<Arrival>,
    over: bool,
}

impl Exchange {
    async fn start(links: &Links, to: &Destination, attempt: &Attempt) -> Result<Self, InferError> {
        let node = to.name.as_str();
        let link = links.to(&to.address).await.map_err(|error| greet_error(error, node))?;
        check_node(&link, to)?;
        let (send, recv) = link.open().await.map_err(|error| error.into_infer(node))?;
        let early = VecDeque::new();
        let mut exchange = Self { node: to.name.clone(), send, recv, early, over: false };
        exchange.write(attempt).await?;
        Ok(exchange)
    }

    /// Writes the request and reads the first frame of the response. A node may refuse a request before it
    /// has read it all, so both go on at once; a trailer ends the writing too.
    async fn write(&mut self, attempt: &Attempt) -> Result<(), InferError> {
        let head = encode_archive(Kind::InferRequest, &attempt.header_now(), attempt.inputs.bytes);
        let mut chunks = vec![Bytes::from_owner(head.map_err(too_large)?)];
        chunks.extend(attempt.inputs.pieces.iter().cloned());
        let Self { node, send, recv, early, .. } = self;
        let write = async {
            send.write_all_chunks(&mut chunks).await?;
            finish(send);
            Ok(())
        };
        let mut write = std::pin::pin!(write);
        let mut written = false;
        while early.is_empty() || !written {
            // A frame is always read to its end: half of one must not be dropped when the writing ends first.
            let mut read = std::pin::pin!(read_arrival(recv, node));
            let arrival = loop {
                tokio::select! {
                    biased;
                    result = &mut write, if !written => match result {
                        // Told to stop, it reads in the response why.
                        Ok(()) | Err(WriteError::Stopped(_)) => written = true,
                        Err(error) => return Err(StreamError::from(error).into_infer(node.as_str())),
                    },
                    arrival = &mut read => break arrival?,
                }
            };
            let is_last = matches!(arrival, Arrival::Trailer(_));
            early.push_back(arrival);
            if is_last {
                break;
            }
        }
        Ok(())
    }

    async fn next(&mut self) -> Result<Arrival, InferError> {
        match self.early.pop_front() {
            Some(arrival) => Ok(arrival),
            None => read_arrival(&mut self.recv, &self.node).await,
        }
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        if !self.over {
            // Either fails only when the stream is gone already, which is what is wanted.
            let _ = self.send.reset(CANCELLED);
            let _ = self.recv.stop(CANCELLED);
        }
    }
}

async fn read_arrival(recv: &mut RecvStream, node: &NodeName) -> Result<Arrival, InferError> {
    let frame = read_frame(recv).await.and_then(|frame| frame.ok_or(StreamError::Ended));
    arrival(&frame.map_err(|error| error.into_infer(node.as_str()))?)
}

fn arrival(frame: &Frame) -> Result<Arrival, InferError> {
    match frame.kind() {
        Kind::InferHeader => Ok(Arrival::Header(read_response_header(frame)?)),
        Kind::InferPart => Ok(Arrival::Part(read_part(frame)?)),
        Kind::InferTrailer => Ok(Arrival::Trailer(read_trailer(frame)?)),
        Kind::Hello
        | Kind::InferRequest
        | Kind::ControlRequest
        | Kind::ControlResponse
        | Kind::WatchUpdate
        | Kind::SnapshotChunk
        | Kind::BundleRequest
        | Kind::BundleResponse
        | Kind::BundleChunk
        | Kind::RaftRequest
        | Kind::RaftResponse
        | Kind::RaftChunk => {
            let what = format!("a frame of kind {:?} in a response", frame.kind());
            Err(InferError::Malformed { what })
        }
    }
}

/// Whether a link leads to the node that is meant. Addresses are given to others; what those answered would be booked on a node
/// that is not there, and another may host another version.
fn check_node(link: &Link, to: &Destination) -> Result<(), InferError> {
    if link.hello.node == Some(to.node) && link.peer.name.as_str() == to.name.as_str() {
        return Ok(());
    }
    let (address, there) = (&to.address, &link.peer.name);
    let reason = reason(format!("at {address} is now {there}, with another certificate or data folder"));
    Err(InferError::Unreachable { node: to.name.to_string(), reason })
}

fn greet_error(error: GreetError, node: &str) -> InferError {
    match error {
        GreetError::Refused(ControlError::Forbidden { needed, .. }) => InferError::Forbidden { needed },
        GreetError::Refused(_)
        | GreetError::Handshake { .. }
        | GreetError::Protocol { .. }
        | GreetError::Identity(_)
        | GreetError::Stream(_) => InferError::Unreachable { node: node.to_owned(), reason: reason(error) },
    }
}

fn too_large(error: FrameError) -> InferError {
    match error {
        FrameError::TooLarge { part, max, actual, .. } => {
            InferError::LimitExceeded { what: format!("bytes of a request's {part}"), max, actual }
        }
        FrameError::Magic(_)
        | FrameError::Kind(_)
        | FrameError::Unexpected { .. }
        | FrameError::Truncated
        | FrameError::Header { .. } => InferError::Malformed { what: reason(error) },
    }
}
