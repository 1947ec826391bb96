//! Frames on QUIC streams.
//!
//! Lengths are checked before buffers are made; a stream that ends inside a frame is an error, one that ends between two
//! is not.

use std::time::Duration;

use bytes::Bytes;
use quinn::{ReadExactError, RecvStream, SendStream};
use rkyv::util::AlignedVec;

use crate::error::{ControlError, InferError, reason};
use crate::frame::{Frame, FrameError, Kind, Prefix, encode_message};

/// The memory that a frame takes ahead of its bytes: most frames whole, but not what a prefix alone claims.
const FIRST_BYTES_MAX: usize = 1 << 20;
/// How much larger a buffer becomes when it is full: what moves on the way adds a third of the frame, no more.
const GROWTH: usize = 4;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// What came is not the frame that it should be.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// The connection broke, or the other side gave the stream up.
    #[error("the connection broke: {0}")]
    Broken(String),
    /// The other side closed the stream where a frame should have followed.
    #[error("the other side closed the stream without an answer")]
    Ended,
    /// The connection lives, and the other side neither gave nor took a byte.
    #[error("the other side is there and did nothing for {after:?}")]
    Stalled {
        /// For how long.
        after: Duration,
    },
}

impl From<quinn::WriteError> for StreamError {
    fn from(error: quinn::WriteError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl From<quinn::ConnectionError> for StreamError {
    fn from(error: quinn::ConnectionError) -> Self {
        Self::Broken(error.to_string())
    }
}

impl StreamError {
    /// The error as the control plane says it of `node`, whose response was being read.
    pub fn into_control(self, node: &str) -> ControlError {
        match self {
            // QUIC finishes the streams that a dying process drops: it ends a response where it stood.
            Self::Frame(FrameError::Truncated) => {
                ControlError::Unreachable { node: node.to_owned(), reason: reason(self) }
            }
            Self::Frame(error) => ControlError::Malformed { what: reason(error) },
            Self::Broken(_) | Self::Ended | Self::Stalled { .. } => {
                ControlError::Unreachable { node: node.to_owned(), reason: reason(self) }
            }
        }
    }

    /// The error as the data plane says it of `node`, whose response was being read.
    pub fn into_infer(self, node: &str) -> InferError {
        match self {
            Self::Frame(FrameError::Truncated) => {
                InferError::Unreachable { node: node.to_owned(), reason: reason(self) }
            }
            Self::Frame(error) => InferError::Malformed { what: reason(error) },
            Self::Broken(_) | Self::Ended | Self::Stalled { .. } => {
                InferError::Unreachable { node: node.to_owned(), reason: reason(self) }
            }
        }
    }
}

/// Reads the next frame; `None` when the stream ends ahead of it.
///
/// # Errors
/// [`StreamError`] when what comes is no frame, or the connection breaks.
pub async fn read_frame(stream: &mut RecvStream) -> Result<Option<Frame>, StreamError> {
    match read_prefix(stream).await? {
        Some(prefix) => Ok(Some(read_rest(stream, prefix).await?)),
        None => Ok(None),
    }
}

/// As [`read_frame`], from a side that must not pause for longer than `pause_max` between two bytes. That says nothing of how
/// long a frame takes: a bad line may need minutes for one.
///
/// # Errors
/// As [`read_frame`], and [`StreamError::Stalled`].
pub async fn read_frame_within(
    stream: &mut RecvStream,
    pause_max: Duration,
) -> Result<Option<Frame>, StreamError> {
    match prefix(stream, Some(pause_max)).await? {
        Some(prefix) => Ok(Some(rest(stream, prefix, Some(pause_max)).await?)),
        None => Ok(None),
    }
}

/// Reads the fixed part of the next frame, so that its size can be judged before memory is taken for it; `None` when the
/// stream ends ahead of it.
///
/// # Errors
/// As [`read_frame`].
pub async fn read_prefix(stream: &mut RecvStream) -> Result<Option<Prefix>, StreamError> {
    prefix(stream, None).await
}

/// Reads what follows a prefix.
///
/// # Errors
/// As [`read_frame`].
pub async fn read_rest(stream: &mut RecvStream, prefix: Prefix) -> Result<Frame, StreamError> {
    rest(stream, prefix, None).await
}

async fn prefix(stream: &mut RecvStream, pause_max: Option<Duration>) -> Result<Option<Prefix>, StreamError> {
    let mut prefix = [0; Prefix::BYTES];
    match fill(stream, &mut prefix, pause_max).await? {
        Filled::Whole => Ok(Some(Prefix::decode(prefix)?)),
        Filled::EndedAt(0) => Ok(None),
        Filled::EndedAt(_) => Err(FrameError::Truncated.into()),
    }
}

async fn rest(
    stream: &mut RecvStream,
    prefix: Prefix,
    pause_max: Option<Duration>,
) -> Result<Frame, StreamError> {
    let mut buffer = AlignedVec::new();
    while buffer.len() < prefix.rest_bytes() {
        let read = buffer.len();
        let bytes = (read * GROWTH).max(FIRST_BYTES_MAX).min(prefix.rest_bytes());
        buffer.reserve_exact(bytes - read);
        buffer.resize(bytes, 0);
        match fill(stream, &mut buffer[read..], pause_max).await? {
            Filled::Whole => {}
            Filled::EndedAt(_) => return Err(FrameError::Truncated.into()),
        }
    }
    Ok(Frame::new(prefix, buffer)?)
}

/// How far a buffer was filled.
enum Filled {
    Whole,
    /// The stream ended behind so many bytes.
    EndedAt(usize),
}

async fn fill(
    stream: &mut RecvStream,
    buffer: &mut [u8],
    pause_max: Option<Duration>,
) -> Result<Filled, StreamError> {
    let broken = |error: quinn::ReadError| StreamError::Broken(error.to_string());
    let Some(pause_max) = pause_max else {
        return match stream.read_exact(buffer).await {
            Ok(()) => Ok(Filled::Whole),
            Err(ReadExactError::FinishedEarly(filled)) => Ok(Filled::EndedAt(filled)),
            Err(ReadExactError::ReadError(error)) => Err(broken(error)),
        };
    };
    let mut filled = 0;
    while filled < buffer.len() {
        let read = tokio::time::timeout(pause_max, stream.read(&mut buffer[filled..])).await;
        match read.map_err(|_| StreamError::Stalled { after: pause_max })?.map_err(broken)? {
            Some(bytes) => filled += bytes,
            None => return Ok(Filled::EndedAt(filled)),
        }
    }
    Ok(Filled::Whole)
}

/// Reads a frame that must come, and be of a kind.
///
/// # Errors
/// As [`read_frame`], and when the stream ends or the frame is of another kind.
pub async fn expect_frame(stream: &mut RecvStream, kind: Kind) -> Result<Frame, StreamError> {
    let frame = read_frame(stream).await?.ok_or(StreamError::Ended)?;
    Ok(frame.expect(kind)?)
}

/// As [`expect_frame`], from a side that must not pause: see [`read_frame_within`].
///
/// # Errors
/// As [`expect_frame`], and [`StreamError::Stalled`].
pub async fn expect_frame_within(
    stream: &mut RecvStream,
    kind: Kind,
    pause_max: Duration,
) -> Result<Frame, StreamError> {
    let frame = read_frame_within(stream, pause_max).await?.ok_or(StreamError::Ended)?;
    Ok(frame.expect(kind)?)
}

/// Reads a cold message that must come.
///
/// # Errors
/// As [`expect_frame`], and when the header is not such a message.
pub async fn read_message<T: serde::de::DeserializeOwned>(
    stream: &mut RecvStream,
    kind: Kind,
) -> Result<T, StreamError> {
    Ok(expect_frame(stream, kind).await?.message()?)
}

/// Writes a cold message.
///
/// # Errors
/// [`StreamError`] when it is too large, or the connection breaks.
pub async fn write_message<T: serde::Serialize>(
    stream: &mut SendStream,
    kind: Kind,
    message: &T,
) -> Result<(), StreamError> {
    let bytes = encode_message(kind, message)?;
    Ok(stream.write_chunk(bytes.into()).await?)
}

/// Writes a frame with a body and no header.
///
/// # Errors
/// [`StreamError`] when the body is too large, or the connection breaks.
pub async fn write_body(stream: &mut SendStream, kind: Kind, body: Bytes) -> Result<(), StreamError> {
    let prefix = Prefix::new(kind, 0, body.len() as u64)?;
    stream.write_all(&prefix.encode()).await?;
    Ok(stream.write_chunk(body).await?)
}

/// As [`write_body`], to a side that must not pause for longer than `pause_max` between two bytes that it takes.
///
/// # Errors
/// As [`write_body`], and [`StreamError::Stalled`].
pub async fn write_body_within(
    stream: &mut SendStream,
    kind: Kind,
    body: Bytes,
    pause_max: Duration,
) -> Result<(), StreamError> {
    let prefix = Prefix::new(kind, 0, body.len() as u64)?;
    let mut chunks = [Bytes::copy_from_slice(&prefix.encode()), body];
    // What was taken of them is cut off.
    while chunks.iter().any(|chunk| !chunk.is_empty()) {
        let write = tokio::time::timeout(pause_max, stream.write_chunks(&mut chunks)).await;
        write.map_err(|_| StreamError::Stalled { after: pause_max })??;
    }
    Ok(())
}

/// Ends the writing side. What was written is still delivered while the connection lives.
pub fn finish(stream: &mut SendStream) {
    // Fails only when the stream is finished or reset already, which is what is wanted.
    let _ = stream.finish();
}
