//! The variants of every enum that travels, each listed by a match that has no `_`.

use roost_protocol::error::{CommandError, ControlError, InferError};
use roost_protocol::frame::Kind;
use roost_protocol::manifest::{Channels, EngineChoice, Replicas};
use roost_protocol::messages::control::{
    Answer, BundleRequest, BundleResponse, Change, ControlRequest, ControlResponse, Outcome, Query,
    Reconfigure, Reconfigured, RolloutEventKind, RolloutState, WatchUpdate, Watched,
};
use roost_protocol::messages::infer::{Choice, ResponseMode};
use roost_protocol::tensor::DType;
use roost_protocol::view::{Liveness, NodeState, Stage};

/// An enum whose variants are known by name.
pub trait Variants {
    /// The enum's name.
    const TYPE: &'static str;
    /// The names of all variants.
    const ALL: &'static [&'static str];
    /// The name of this one.
    fn variant(&self) -> &'static str;
}

macro_rules! variants {
    ($($enum:ident { $($variant:ident),+ $(,)? })+) => {$(
        impl Variants for $enum {
            const TYPE: &'static str = stringify!($enum);
            const ALL: &'static [&'static str] = &[$(stringify!($variant)),+];
            fn variant(&self) -> &'static str {
                match self {
                    $(Self::$variant { .. } => stringify!($variant)),+
                }
            }
        }
    )+};
}

variants! {
    Kind {
        Hello, InferRequest, InferHeader, InferPart, InferTrailer, ControlRequest, ControlResponse, WatchUpdate,
        SnapshotChunk,
        BundleRequest, BundleResponse, BundleChunk, RaftRequest, RaftResponse, RaftChunk,
    }
    DType { F16, Bf16, F32, F64, I8, I16, I32, I64, U8, U16, U32, U64, Bool, String }
    Choice { Split, Pinned, Fallback }
    ResponseMode { Unary, Stream }
    InferError {
        UnknownModel, UnknownVersion, UnknownLabel, NotHere, StaleView, Unavailable, Overloaded, DeadlineExceeded,
        Cancelled, Stopping, UnknownInput, MissingInput, DuplicateInput, UnknownOutput, WrongDType, WrongShape,
        RowsDiffer, LimitExceeded, Malformed, Unsupported, ExecutorFailed, ModelFailed, Forbidden, Unreachable,
    }
    CommandError {
        UnknownModel, UnknownVersion, UnknownLabel, RolloutInProgress, NoRollout, AlreadyStable, NothingToUndo,
        BadSteps, RevisionMismatch, NotReady, NotReserved, TooFewHolders, BadManifest, LimitExceeded, NameTaken, IdTaken,
        UnknownNode, AlreadyInitialised, NotInitialised, RequestTooOld, LevelTooLow,
    }
    ControlError {
        Refused, NotLeader, NoQuorum, NotCoordinator, Forbidden, WrongCluster, ForeignCertificate, WrongNode,
        DigestMismatch, NoBundle, NotReserved, NotReady, LimitExceeded, Malformed, Storage, Unreachable,
        MembersNotReady, MembersRefused, Outlived,
    }
    ControlRequest { Change, Query, Watch, Heartbeat, Reconfigure, Snapshot }
    ControlResponse { Done, Answer, Heard, Failed, Reconfigured, Snapshot }
    Reconfigure { Add, Change, TransferLeader }
    Reconfigured { Added, Changed, LedBy }
    Watched { All, Models }
    Change {
        ReservePush, CommitPush, StartRollout, Promote, Abort, Undo, SetLabel, RemoveLabel, Join, Drain, Hold,
        Retain,
    }
    Outcome { Applied, Reserved, Pushed, Rerouted, Forgotten }
    Query { Models, Versions, Rollout, Cluster, Files, Members, Level }
    Answer { Models, Versions, Rollout, Cluster, Files, Members, Level }
    RolloutState { Preparing, Running, Paused }
    RolloutEventKind { First, Started, Exposed, Paused, Resumed, Promoted, Aborted, Undone, Excluded }
    WatchUpdate { View, Delta, Soft, Failed }
    BundleRequest { List, Get, Missing, Put, Seal }
    BundleResponse { Files, Follows, Missing, Held, Failed }
    EngineChoice { Auto, OnnxRuntime, Native }
    Replicas { Count, All }
    Channels { Gray, Rgb, Bgr }
    NodeState { Active, Draining, Out }
    Liveness { Live, Suspect }
    Stage { Fetching, Verifying, Loading, Warming, Ready, Draining, Unloaded, Failed }
}
