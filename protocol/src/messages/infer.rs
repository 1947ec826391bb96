//! The hot messages: a request for inference and its response, archived by rkyv and read in place after a check.
//!
//! A response is a header, zero or more parts, and a trailer; unary is one part. Fields that may grow new values are
//! codes ([`ResponseMode`], [`Choice`], tensor sources, element types): a value that this side does not know is answered
//! by [`InferError::Unsupported`], not by a broken stream.

use bytes::Bytes;
use rkyv::rancor::Error as ArchiveError;
use rkyv::util::AlignedVec;
use rkyv::{Archive, Deserialize, Serialize};

use crate::error::{InferError, reason};
use crate::frame::{ALIGNMENT, Frame, FrameError, Kind, Prefix};
use crate::ids::{Epoch, NodeId, RequestId, Revision, Version};
use crate::limits::{TENSOR_NAME_BYTES_MAX, TENSORS_MAX};
use crate::tensor::{DType, Shape, Tensor, TensorView};
use crate::trace::TraceContext;
use crate::traffic::KeyHash;

/// How a request's version was chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Choice {
    /// By the traffic split, at the request's revision.
    Split = 0,
    /// By the caller, by number or by label.
    Pinned = 1,
    /// Stable, because no replica of the version that the split picked was ready.
    Fallback = 2,
}

/// What the caller wants back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum ResponseMode {
    /// One part with all outputs.
    Unary = 0,
    /// Parts as the engine makes them.
    Stream = 1,
}

/// Where a tensor's bytes are: in the frame's body. The only source today; others get a typed refusal.
const SOURCE_INLINE: u8 = 0;

/// The first frame of a request. The body holds the tensors.
#[derive(Debug, Clone, PartialEq, Archive, Serialize, Deserialize)]
pub struct InferHeader {
    /// The request, the same over all attempts.
    pub request: [u8; 16],
    /// Which attempt this is, from 0.
    pub attempt: u8,
    /// Time that is left when the request is sent, in µs: remaining time, because clocks differ.
    pub deadline_us: u64,
    /// Higher goes first in the queue. 0 is usual.
    pub priority: u8,
    /// On whose behalf; only a gateway may state it. Otherwise the certificate's name counts.
    pub tenant: Option<String>,
    /// Requests of one sequence depend on each other: never hedged.
    pub sequence: Option<u64>,
    /// The trace that the request belongs to.
    pub trace: Option<TraceContext>,
    /// A [`ResponseMode`].
    pub response_mode: u8,
    /// The model.
    pub model: String,
    /// The version that was chosen.
    pub version: u32,
    /// The traffic revision that it was chosen by.
    pub revision: u64,
    /// The generation of the view that the revision is of: a restore from a backup raises it, and may take revisions back.
    pub generation: u32,
    /// A [`Choice`].
    pub choice: u8,
    /// The hash of the sticky key, or a random number without one.
    pub key_hash: u64,
    /// The inputs.
    pub tensors: Vec<TensorHeader>,
    /// The outputs that are wanted; none means all.
    pub outputs: Vec<String>,
}

/// A tensor in a frame's body.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct TensorHeader {
    /// The name of the input or output.
    pub name: String,
    /// A [`DType`] code.
    pub dtype: u8,
    /// The dimensions, outermost first.
    pub dims: Vec<u64>,
    /// Where the bytes are.
    pub source: u8,
    /// Where they start in the body, a multiple of [`ALIGNMENT`].
    pub offset: u64,
    /// How many there are.
    pub bytes: u64,
}

/// The first frame of a response: where the answer comes from.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct ResponseHeader {
    /// The generation of the node's view.
    pub generation: u32,
    /// The log index of the node's view.
    pub index: u64,
    /// The traffic revision that the node knows.
    pub revision: u64,
    /// The version that answers.
    pub version: u32,
    /// The node.
    pub node: u64,
}

impl ResponseHeader {
    /// A header from typed values.
    pub fn new(epoch: Epoch, revision: Revision, version: Version, node: NodeId) -> Self {
        let Epoch { generation, index } = epoch;
        Self { generation, index, revision: revision.0, version: version.0, node: node.0 }
    }

    /// The epoch of the node's view.
    pub fn epoch(&self) -> Epoch {
        Epoch { generation: self.generation, index: self.index }
    }
}

/// Outputs. The body holds the tensors.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct PartHeader {
    /// The outputs of this part.
    pub tensors: Vec<TensorHeader>,
}

/// The last frame of a response.
#[derive(Debug, Clone, PartialEq, Eq, Archive, Serialize, Deserialize)]
pub struct Trailer {
    /// Why there is no answer, if there is none.
    pub error: Option<InferError>,
    /// Time in the queue, in µs.
    pub queue_us: u64,
    /// Time on the executor, in µs, of the whole batch.
    pub compute_us: u64,
    /// Rows of the batch that the request was part of.
    pub batch_rows: u32,
    /// Requests in flight on the node: a hint for the next choice.
    pub in_flight: u32,
}

/// A tensor and its name.
#[derive(Debug, Clone, PartialEq)]
pub struct Named<T> {
    /// The name of the input or output.
    pub name: String,
    /// The tensor.
    pub tensor: T,
}

/// Lays tensors out for a frame's body: their headers, and the bytes of the body in order, padding included.
///
/// # Errors
/// [`InferError::LimitExceeded`] for too many tensors or too long a name.
pub fn lay_out(tensors: &[Named<Tensor>]) -> Result<(Vec<TensorHeader>, Vec<Bytes>), InferError> {
    limit("tensors in a message", TENSORS_MAX as u64, tensors.len() as u64)?;
    let mut headers = Vec::with_capacity(tensors.len());
    let mut pieces = Vec::with_capacity(tensors.len() * 2);
    let mut offset = 0u64;
    for Named { name, tensor } in tensors {
        limit("bytes of a tensor's name", TENSOR_NAME_BYTES_MAX as u64, name.len() as u64)?;
        let start = offset.next_multiple_of(ALIGNMENT as u64);
        if start > offset {
            pieces.push(Bytes::from_static(&[0; ALIGNMENT][..(start - offset) as usize]));
        }
        let bytes = tensor.bytes().len() as u64;
        headers.push(TensorHeader {
            name: name.clone(),
            dtype: tensor.dtype().code(),
            dims: tensor.shape().dims().to_vec(),
            source: SOURCE_INLINE,
            offset: start,
            bytes,
        });
        pieces.push(tensor.bytes().clone());
        offset = start + bytes;
    }
    Ok((headers, pieces))
}

/// The bytes ahead of a frame's body: prefix, archived header, padding.
///
/// # Errors
/// [`FrameError`] when the header or the body is above the kind's limit.
pub fn encode_archive<T>(kind: Kind, message: &T, body_bytes: u64) -> Result<AlignedVec, FrameError>
where
    T: for<'a> Serialize<
        rkyv::api::high::HighSerializer<AlignedVec, rkyv::ser::allocator::ArenaHandle<'a>, ArchiveError>,
    >,
{
    let header = rkyv::to_bytes::<ArchiveError>(message)
        .map_err(|error| FrameError::Header { kind, reason: reason(error) })?;
    let prefix = Prefix::new(kind, header.len() as u64, body_bytes)?;
    let mut bytes = AlignedVec::with_capacity(Prefix::BYTES + prefix.body_start());
    bytes.extend_from_slice(&prefix.encode());
    bytes.extend_from_slice(&header);
    bytes.resize(Prefix::BYTES + prefix.body_start(), 0);
    Ok(bytes)
}

/// A request for inference in its frame, checked. Reading it costs no allocation.
pub struct InferRequest<'a> {
    header: &'a ArchivedInferHeader,
    body: &'a [u8],
}

impl<'a> InferRequest<'a> {
    /// Checks a frame.
    ///
    /// # Errors
    /// [`InferError::Malformed`] when the header is no archive of a request, [`InferError::Unsupported`] when a code in it
    /// is unknown, [`InferError::LimitExceeded`] when there are too many tensors.
    pub fn read(frame: &'a Frame) -> Result<Self, InferError> {
        let header = access::<ArchivedInferHeader>(frame, Kind::InferRequest)?;
        Choice::from_code(header.choice)?;
        ResponseMode::from_code(header.response_mode)?;
        limit("tensors in a message", TENSORS_MAX as u64, header.tensors.len() as u64)?;
        limit("outputs in a message", TENSORS_MAX as u64, header.outputs.len() as u64)?;
        Ok(Self { header, body: frame.body() })
    }

    /// The archived header, for the fields that have no method here.
    pub fn header(&self) -> &'a ArchivedInferHeader {
        self.header
    }

    /// The request's id.
    pub fn request(&self) -> RequestId {
        RequestId(u128::from_le_bytes(self.header.request))
    }

    /// The version that was chosen.
    pub fn version(&self) -> Version {
        Version(self.header.version.to_native())
    }

    /// The traffic revision that it was chosen by.
    pub fn revision(&self) -> Revision {
        Revision(self.header.revision.to_native())
    }

    /// The generation that the revision is of.
    pub fn generation(&self) -> u32 {
        self.header.generation.to_native()
    }

    /// How the version was chosen.
    pub fn choice(&self) -> Choice {
        Choice::from_code(self.header.choice).expect("checked when the request was read")
    }

    /// What the caller wants back.
    pub fn response_mode(&self) -> ResponseMode {
        ResponseMode::from_code(self.header.response_mode).expect("checked when the request was read")
    }

    /// The hash of the sticky key.
    pub fn key(&self) -> KeyHash {
        KeyHash(self.header.key_hash.to_native())
    }

    /// The trace that the request belongs to.
    pub fn trace(&self) -> Option<TraceContext> {
        let trace = self.header.trace.as_ref()?;
        Some(TraceContext { trace_id: trace.trace_id, parent_id: trace.parent_id, flags: trace.flags })
    }

    /// The inputs by name, each checked as it is met.
    pub fn tensors(&self) -> impl Iterator<Item = Result<(&'a str, TensorView<'a>), InferError>> + use<'a> {
        let body = self.body;
        self.header.tensors.iter().map(move |header| tensor_in(header, body))
    }
}

/// Reads the first frame of a response.
///
/// # Errors
/// [`InferError::Malformed`] when it is none.
pub fn read_response_header(frame: &Frame) -> Result<ResponseHeader, InferError> {
    deserialize::<ResponseHeader>(access::<ArchivedResponseHeader>(frame, Kind::InferHeader)?)
}

/// Reads a part of a response; the tensors share the frame's buffer.
///
/// # Errors
/// [`InferError::Malformed`], [`InferError::Unsupported`] or [`InferError::LimitExceeded`] when it is none.
pub fn read_part(frame: &Frame) -> Result<Vec<Named<Tensor>>, InferError> {
    let header = access::<ArchivedPartHeader>(frame, Kind::InferPart)?;
    limit("tensors in a message", TENSORS_MAX as u64, header.tensors.len() as u64)?;
    let (body, shared) = (frame.body(), frame.body_bytes());
    let read = |header: &ArchivedTensorHeader| {
        let (name, view) = tensor_in(header, body)?;
        let tensor =
            Tensor::new(view.dtype(), view.shape(), shared.slice_ref(view.bytes())).map_err(malformed)?;
        Ok(Named { name: name.to_owned(), tensor })
    };
    header.tensors.iter().map(read).collect()
}

/// Reads the last frame of a response.
///
/// # Errors
/// [`InferError::Malformed`] when it is none.
pub fn read_trailer(frame: &Frame) -> Result<Trailer, InferError> {
    deserialize::<Trailer>(access::<ArchivedTrailer>(frame, Kind::InferTrailer)?)
}

fn malformed(error: impl std::fmt::Display) -> InferError {
    InferError::Malformed { what: reason(error) }
}

fn limit(what: &str, max: u64, actual: u64) -> Result<(), InferError> {
    if actual <= max { Ok(()) } else { Err(InferError::LimitExceeded { what: what.to_owned(), max, actual }) }
}

fn unsupported(field: &str, code: u8) -> InferError {
    InferError::Unsupported { field: field.to_owned(), code: u32::from(code) }
}

impl Choice {
    /// What a code in a header stands for.
    ///
    /// # Errors
    /// [`InferError::Unsupported`] when this side does not know it.
    pub fn from_code(code: u8) -> Result<Self, InferError> {
        match code {
            0 => Ok(Self::Split),
            1 => Ok(Self::Pinned),
            2 => Ok(Self::Fallback),
            _ => Err(unsupported("choice", code)),
        }
    }
}

impl ResponseMode {
    /// What a code in a header stands for.
    ///
    /// # Errors
    /// [`InferError::Unsupported`] when this side does not know it.
    pub fn from_code(code: u8) -> Result<Self, InferError> {
        match code {
            0 => Ok(Self::Unary),
            1 => Ok(Self::Stream),
            _ => Err(unsupported("response mode", code)),
        }
    }
}

fn access<'a, A>(frame: &'a Frame, kind: Kind) -> Result<&'a A, InferError>
where
    A: rkyv::Portable + for<'b> rkyv::bytecheck::CheckBytes<rkyv::api::high::HighValidator<'b, ArchiveError>>,
{
    if frame.kind() != kind {
        return Err(malformed(FrameError::Unexpected { expected: kind, actual: frame.kind() }));
    }
    rkyv::access::<A, ArchiveError>(frame.header()).map_err(malformed)
}

fn deserialize<T>(archived: &T::Archived) -> Result<T, InferError>
where
    T: Archive,
    T::Archived: Deserialize<T, rkyv::api::high::HighDeserializer<ArchiveError>>,
{
    rkyv::deserialize::<T, ArchiveError>(archived).map_err(malformed)
}

fn tensor_in<'a>(
    header: &'a ArchivedTensorHeader,
    body: &'a [u8],
) -> Result<(&'a str, TensorView<'a>), InferError> {
    let name = header.name.as_str();
    limit("bytes of a tensor's name", TENSOR_NAME_BYTES_MAX as u64, name.len() as u64)?;
    if header.source != SOURCE_INLINE {
        return Err(unsupported("tensor source", header.source));
    }
    let dtype = DType::from_code(header.dtype).ok_or_else(|| unsupported("element type", header.dtype))?;
    let mut dims = [0; crate::limits::TENSOR_RANK_MAX];
    limit("dimensions of a tensor", dims.len() as u64, header.dims.len() as u64)?;
    dims.iter_mut().zip(header.dims.iter()).for_each(|(to, from)| *to = from.to_native());
    let shape = Shape::new(&dims[..header.dims.len()]).map_err(malformed)?;
    let (offset, bytes) = (header.offset.to_native(), header.bytes.to_native());
    let end = offset.checked_add(bytes).filter(|end| *end <= body.len() as u64);
    let aligned = offset.is_multiple_of(ALIGNMENT as u64);
    let (Some(end), true) = (end, aligned) else {
        let what = format!("tensor {name:?} lies at {offset}, {bytes} bytes, in a body of {}", body.len());
        return Err(InferError::Malformed { what });
    };
    let view = TensorView::new(dtype, shape, &body[offset as usize..end as usize]).map_err(malformed)?;
    Ok((name, view))
}
