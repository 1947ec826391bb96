//! Frames: how messages lie in a stream.
//!
//! ```text
//! ┌──────── prefix, 16 bytes ────────┐
//! │ "Ro" │ kind │ header │   body    │ header bytes │ padding to 64 │ body bytes │
//! │  2   │ u16  │ u32    │   u64     │              │ if a body follows          │
//! ```
//! Both lengths are little-endian and are compared with the kind's limits before anything is allocated. Header and body
//! are read into one buffer that starts at a multiple of 64, so that an archive in the header can be read in place and
//! tensors in the body are aligned for every element type and vector register. Reading and writing streams is in
//! [`crate::quic`].

use bytes::Bytes;
use rkyv::util::AlignedVec;

use crate::limits::{
    BODY_BYTES_MAX, CHUNK_BYTES_MAX, CONTROL_REQUEST_BYTES_MAX, HEADER_BYTES_MAX, RAFT_BYTES_MAX,
    VIEW_BYTES_MAX,
};

/// Where bodies and the tensors in them start: a multiple of the widest vector register and of a cache line.
pub const ALIGNMENT: usize = 64;

/// Bytes that start at a multiple of [`ALIGNMENT`].
pub type AlignedBuffer = AlignedVec<ALIGNMENT>;

/// The first two bytes of each frame.
const MAGIC: [u8; 2] = *b"Ro";

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u16)]
pub enum Kind {
    /// What each side says first on a new connection.
    Hello = 1,
    /// A request for inference; the body holds its tensors.
    InferRequest = 16,
    /// The first frame of a response.
    InferHeader = 17,
    /// Outputs; the body holds their tensors.
    InferPart = 18,
    /// The last frame of a response.
    InferTrailer = 19,
    /// A request to the control plane.
    ControlRequest = 32,
    /// Its response.
    ControlResponse = 33,
    /// A state that a watch delivers.
    WatchUpdate = 34,
    /// Bytes of a snapshot file, in the body.
    SnapshotChunk = 35,
    /// A request for files of a bundle.
    BundleRequest = 48,
    /// Its response.
    BundleResponse = 49,
    /// Bytes of a bundle's file, in the body.
    BundleChunk = 50,
    /// A message between coordinators.
    RaftRequest = 64,
    /// Its response.
    RaftResponse = 65,
    /// Bytes of a snapshot, in the body.
    RaftChunk = 66,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Self; 15] = [
        Self::Hello,
        Self::InferRequest,
        Self::InferHeader,
        Self::InferPart,
        Self::InferTrailer,
        Self::ControlRequest,
        Self::ControlResponse,
        Self::WatchUpdate,
        Self::SnapshotChunk,
        Self::BundleRequest,
        Self::BundleResponse,
        Self::BundleChunk,
        Self::RaftRequest,
        Self::RaftResponse,
        Self::RaftChunk,
    ];

    fn from_code(code: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| *kind as u16 == code)
    }

    /// The most bytes of header and of body that a frame of this kind may have.
    pub fn limits(self) -> (u32, u64) {
        match self {
            Self::Hello | Self::InferHeader | Self::InferTrailer => (HEADER_BYTES_MAX, 0),
            Self::InferRequest | Self::InferPart => (HEADER_BYTES_MAX, BODY_BYTES_MAX),
            Self::ControlRequest => (CONTROL_REQUEST_BYTES_MAX, 0),
            Self::ControlResponse | Self::WatchUpdate => (VIEW_BYTES_MAX, 0),
            Self::BundleRequest | Self::BundleResponse => (HEADER_BYTES_MAX * 2, 0),
            Self::BundleChunk | Self::RaftChunk | Self::SnapshotChunk => (HEADER_BYTES_MAX, CHUNK_BYTES_MAX),
            Self::RaftRequest | Self::RaftResponse => (RAFT_BYTES_MAX, 0),
        }
    }
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The first bytes are not a frame's.
    #[error("expected a frame, which starts with {MAGIC:?}; got {0:?}")]
    Magic([u8; 2]),
    /// A kind that this side does not know.
    #[error("unknown kind of frame {0}")]
    Kind(u16),
    /// Another kind than the one that must follow here.
    #[error("expected a frame of kind {expected:?}, got {actual:?}")]
    Unexpected {
        /// The kind that must follow.
        expected: Kind,
        /// The kind that came.
        actual: Kind,
    },
    /// A header or a body above the kind's limit.
    #[error("the {part} of a frame of kind {kind:?} has at most {max} bytes, this one has {actual}")]
    TooLarge {
        /// `header` or `body`.
        part: &'static str,
        /// The kind.
        kind: Kind,
        /// The limit.
        max: u64,
        /// What the prefix says.
        actual: u64,
    },
    /// The stream ended inside a frame.
    #[error("the stream ended inside a frame")]
    Truncated,
    /// The header is not a message of the frame's kind.
    #[error("the header of a frame of kind {kind:?} is no message: {reason}")]
    Header {
        /// The kind.
        kind: Kind,
        /// What reading it said.
        reason: String,
    },
}

/// The fixed part of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefix {
    /// What the frame holds.
    pub kind: Kind,
    /// Bytes of the header, without padding.
    pub header_bytes: u32,
    /// Bytes of the body.
    pub body_bytes: u64,
}

impl Prefix {
    /// Bytes of an encoded prefix.
    pub const BYTES: usize = 16;

    /// Checks the lengths against the kind's limits.
    ///
    /// # Errors
    /// [`FrameError::TooLarge`].
    pub fn new(kind: Kind, header_bytes: u64, body_bytes: u64) -> Result<Self, FrameError> {
        let (header_max, body_max) = kind.limits();
        if header_bytes > u64::from(header_max) {
            let (max, actual) = (u64::from(header_max), header_bytes);
            return Err(FrameError::TooLarge { part: "header", kind, max, actual });
        }
        if body_bytes > body_max {
            return Err(FrameError::TooLarge { part: "body", kind, max: body_max, actual: body_bytes });
        }
        Ok(Self { kind, header_bytes: header_bytes as u32, body_bytes })
    }

    /// The bytes on the wire.
    pub fn encode(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2..4].copy_from_slice(&(self.kind as u16).to_le_bytes());
        bytes[4..8].copy_from_slice(&self.header_bytes.to_le_bytes());
        bytes[8..].copy_from_slice(&self.body_bytes.to_le_bytes());
        bytes
    }

    /// Reads and checks a prefix.
    ///
    /// # Errors
    /// [`FrameError`] when the bytes are no prefix, the kind is unknown, or a length passes the kind's limit.
    pub fn decode(bytes: [u8; Self::BYTES]) -> Result<Self, FrameError> {
        let [m0, m1, k0, k1, h0, h1, h2, h3, body @ ..] = bytes;
        if [m0, m1] != MAGIC {
            return Err(FrameError::Magic([m0, m1]));
        }
        let code = u16::from_le_bytes([k0, k1]);
        let kind = Kind::from_code(code).ok_or(FrameError::Kind(code))?;
        let header_bytes = u32::from_le_bytes([h0, h1, h2, h3]);
        Self::new(kind, u64::from(header_bytes), u64::from_le_bytes(body))
    }

    /// Where the body starts in the frame's buffer.
    pub fn body_start(self) -> usize {
        let header_bytes = self.header_bytes as usize;
        if self.body_bytes == 0 { header_bytes } else { header_bytes.next_multiple_of(ALIGNMENT) }
    }

    /// Bytes after the prefix: header, padding and body.
    pub fn rest_bytes(self) -> usize {
        self.body_start() + self.body_bytes as usize
    }
}

/// A frame that was read: header and body in one aligned buffer.
#[derive(Debug, Clone)]
pub struct Frame {
    prefix: Prefix,
    buffer: Bytes,
}

impl Frame {
    /// Takes what followed a prefix.
    ///
    /// # Errors
    /// [`FrameError::Truncated`] when the buffer does not have [`Prefix::rest_bytes`].
    pub fn new(prefix: Prefix, buffer: AlignedBuffer) -> Result<Self, FrameError> {
        if buffer.len() != prefix.rest_bytes() {
            return Err(FrameError::Truncated);
        }
        Ok(Self { prefix, buffer: Bytes::from_owner(buffer) })
    }

    /// Reads a frame from bytes that hold it whole, as golden files and fuzzers have them. Streams are read by
    /// [`crate::quic::read_frame`].
    ///
    /// # Errors
    /// [`FrameError`] as [`Prefix::decode`], and [`FrameError::Truncated`] when bytes are missing or left over.
    pub fn parse(bytes: &[u8]) -> Result<Self, FrameError> {
        let (prefix, rest) = bytes.split_first_chunk().ok_or(FrameError::Truncated)?;
        let prefix = Prefix::decode(*prefix)?;
        if rest.len() != prefix.rest_bytes() {
            return Err(FrameError::Truncated);
        }
        let mut buffer = AlignedVec::with_capacity(rest.len());
        buffer.extend_from_slice(rest);
        Self::new(prefix, buffer)
    }

    /// What the frame holds.
    pub fn kind(&self) -> Kind {
        self.prefix.kind
    }

    /// The header's bytes, at a multiple of [`ALIGNMENT`].
    pub fn header(&self) -> &[u8] {
        &self.buffer[..self.prefix.header_bytes as usize]
    }

    /// The body's bytes, at a multiple of [`ALIGNMENT`].
    pub fn body(&self) -> &[u8] {
        &self.buffer[self.prefix.body_start()..]
    }

    /// The body, sharing the frame's buffer.
    pub fn body_bytes(&self) -> Bytes {
        self.buffer.slice(self.prefix.body_start()..)
    }

    /// Demands a kind.
    ///
    /// # Errors
    /// [`FrameError::Unexpected`] when the frame is of another.
    pub fn expect(self, expected: Kind) -> Result<Self, FrameError> {
        let actual = self.kind();
        if actual == expected { Ok(self) } else { Err(FrameError::Unexpected { expected, actual }) }
    }

    /// Reads the header as a cold message (postcard).
    ///
    /// # Errors
    /// [`FrameError::Header`] when it is none, or bytes are left over.
    pub fn message<T: serde::de::DeserializeOwned>(&self) -> Result<T, FrameError> {
        let failed = |reason: String| FrameError::Header { kind: self.kind(), reason };
        let (message, rest) =
            postcard::take_from_bytes(self.header()).map_err(|error| failed(error.to_string()))?;
        if rest.is_empty() { Ok(message) } else { Err(failed(format!("{} bytes left over", rest.len()))) }
    }
}

/// The whole bytes of a frame with a cold message (postcard) and no body.
///
/// # Errors
/// [`FrameError`] when the message is above the kind's limit.
pub fn encode_message<T: serde::Serialize>(kind: Kind, message: &T) -> Result<Vec<u8>, FrameError> {
    let mut bytes = postcard::to_extend(message, vec![0; Prefix::BYTES])
        .map_err(|error| FrameError::Header { kind, reason: error.to_string() })?;
    let prefix = Prefix::new(kind, (bytes.len() - Prefix::BYTES) as u64, 0)?;
    bytes[..Prefix::BYTES].copy_from_slice(&prefix.encode());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_round_trip() {
        for kind in Kind::ALL {
            let (header_max, body_max) = kind.limits();
            let prefix = Prefix { kind, header_bytes: header_max, body_bytes: body_max };
            assert_eq!(Prefix::decode(prefix.encode()), Ok(prefix));
            assert!(matches!(
                Prefix::new(kind, u64::from(header_max) + 1, 0),
                Err(FrameError::TooLarge { part: "header", .. })
            ));
            assert!(matches!(
                Prefix::new(kind, 0, body_max + 1),
                Err(FrameError::TooLarge { part: "body", .. })
            ));
        }
    }

    #[test]
    fn a_message_frame_reads_back() {
        let bytes = encode_message(Kind::Hello, &("hello", 7u32)).unwrap();
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!(frame.message::<(String, u32)>().unwrap(), ("hello".to_owned(), 7));
        frame.message::<String>().unwrap_err();
        for length in 0..bytes.len() {
            Frame::parse(&bytes[..length]).unwrap_err();
        }
    }

    #[test]
    fn bodies_start_aligned() {
        let prefix = Prefix::new(Kind::InferRequest, 70, 5).unwrap();
        assert_eq!((prefix.body_start(), prefix.rest_bytes()), (128, 133));
        let mut bytes = prefix.encode().to_vec();
        bytes.resize(16 + 133, 9);
        let frame = Frame::parse(&bytes).unwrap();
        assert_eq!((frame.header().len(), frame.body()), (70, &[9; 5][..]));
        assert_eq!(frame.body().as_ptr() as usize % ALIGNMENT, 0);
    }
}
