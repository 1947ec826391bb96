//! Every bound that two parties share, with its unit in its name and its reason above it.
//!
//! A value that passes a bound is answered by a typed error ([`crate::InferError::LimitExceeded`] or the error of the
//! parser that met it); nothing is ever allocated from a length before the length was compared with its bound.

/// A model, node, label or tenant name: fits a DNS label, so that names can stand in certificates and host names.
pub const NAME_BYTES_MAX: usize = 63;

/// An ONNX input or output name. Exporters write module paths here, which are long but not books.
pub const TENSOR_NAME_BYTES_MAX: usize = 255;

/// A sticky key, as the user gives it. Only its hash travels; the bound keeps hashing cheap.
pub const KEY_BYTES_MAX: usize = 1024;

/// ONNX models in the wild have rank 6 at most; 8 leaves room and keeps a shape on the stack.
pub const TENSOR_RANK_MAX: usize = 8;

/// Tensors in one request or one response part.
pub const TENSORS_MAX: usize = 64;

/// The bytes of one tensor: 256 MiB holds a batch of 400 images of 224 × 224 × 3 in f32.
pub const TENSOR_BYTES_MAX: u64 = 256 << 20;

/// The header of a frame: names, shapes and a few numbers. A view travels here too, see [`VIEW_BYTES_MAX`].
pub const HEADER_BYTES_MAX: u32 = 64 << 10;

/// The body of a frame of tensors.
pub const BODY_BYTES_MAX: u64 = 512 << 20;

/// A full view: a thousand nodes and a thousand models at a few hundred bytes each stay under 1 MiB.
pub const VIEW_BYTES_MAX: u32 = 16 << 20;

/// A request to the control plane, which any client may send. A heartbeat is the largest: a report of [`MODELS_MAX`]
/// versions, all failed with a reason, stays under 4 MiB.
pub const CONTROL_REQUEST_BYTES_MAX: u32 = 4 << 20;

/// One chunk of a bundle on the wire. Larger gains nothing over QUIC's window, smaller costs a frame each.
pub const CHUNK_BYTES_MAX: u64 = 256 << 10;

/// One Raft message: a batch of log entries, or a chunk of a snapshot.
pub const RAFT_BYTES_MAX: u32 = 32 << 20;

/// Files in one bundle: a model, its manifest, and shards of external data.
pub const BUNDLE_FILES_MAX: usize = 256;

/// All files of one bundle together.
pub const BUNDLE_BYTES_MAX: u64 = 64 << 30;

/// `model.toml`: labels are its largest part (ImageNet's thousand take 22 KiB).
pub const MANIFEST_BYTES_MAX: usize = 256 << 10;

/// Rows of one request, unless the manifest allows fewer.
pub const REQUEST_ROWS_MAX: u32 = 4096;

/// Nodes of one cluster.
pub const NODES_MAX: usize = 4096;

/// Models of one cluster.
pub const MODELS_MAX: usize = 4096;

/// Versions kept of one model; a push beyond them is refused.
pub const VERSIONS_MAX: usize = 1024;

/// Entries of one model's rollout history; the oldest fall out.
pub const ROLLOUT_HISTORY_MAX: usize = 256;

/// Outcomes of commands kept for idempotence (design §6).
pub const OUTCOMES_MAX: usize = 65_536;

/// Replicas that a manifest may ask for by number.
pub const REPLICAS_MAX: u16 = 1024;

/// A reason in an error or a history entry, cut there with an ellipsis.
pub const REASON_BYTES_MAX: usize = 512;
