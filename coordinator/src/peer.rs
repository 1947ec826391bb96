//! What coordinators say to each other besides serving operators and nodes.

use roost_protocol::bundle::FileList;
use roost_protocol::messages::control::{ControlRequest, ControlResponse};
use roost_protocol::view::SoftState;
use roost_protocol::{ClusterId, ControlError, Digest, NodeId};
use serde::{Deserialize, Serialize};

use crate::coordinator::GroupMember;
use crate::raft::network::{RaftAnswer, RaftMessage};

/// A request from one coordinator to another. One per stream.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerRequest {
    /// A Raft message. Answered by [`PeerResponse::Raft`].
    Raft {
        /// The coordinator that it is meant for: whoever has its address now may be another.
        to: NodeId,
        /// The message.
        message: Box<RaftMessage>,
    },
    /// Whether this coordinator is part of a group already. Answered by [`PeerResponse::Probed`].
    Probe {
        /// The coordinators of the asker's config, in its order.
        group: Vec<GroupMember>,
    },
    /// The leader asks this coordinator to hold a bundle. Answered by [`PeerResponse::Held`] once it is checked and durable.
    Hold {
        /// The bundle's files.
        files: FileList,
        /// `host:port` of coordinators that may have it.
        holders: Vec<String>,
    },
    /// A follower hands on what it was asked, once it has checked that the asker may. Answered by [`PeerResponse::Control`].
    Forward {
        /// Who asked: the name in a certificate.
        by: String,
        /// What was asked.
        request: Box<ControlRequest>,
    },
    /// The leader's soft state, to be served beside the view. Answered by [`PeerResponse::Heard`].
    Soft(Box<SoftState>),
    /// Which of these bundles this coordinator does not hold. Answered by [`PeerResponse::Lacks`].
    Lacks {
        /// The bundles; at most [`LACKS_MAX`].
        bundles: Vec<Digest>,
    },
    /// Up to which level this coordinator obeys the state. Answered by [`PeerResponse::Supports`].
    Supports,
}

/// Bundles that one [`PeerRequest::Lacks`] asks for: 128 KiB of digests.
pub const LACKS_MAX: usize = 4_096;

/// The answer to a [`PeerRequest`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum PeerResponse {
    /// To a Raft message.
    Raft(RaftAnswer),
    /// To a probe.
    Probed {
        /// Whether the coordinator takes part in a group.
        initialised: bool,
        /// The cluster, once the coordinator knows it.
        cluster: Option<ClusterId>,
        /// Whether its config names the same coordinators in the same order as the asker's.
        agrees: bool,
        /// Whether the asker is a member of its group; none while it does not know its members.
        member: Option<bool>,
    },
    /// The bundle is held.
    Held,
    /// The leader's answer to what a follower handed on.
    Control(Box<ControlResponse>),
    /// The soft state was heard.
    Heard,
    /// It was not done.
    Failed(ControlError),
    /// Of the bundles asked for, those that are not held.
    Lacks(Vec<Digest>),
    /// The level.
    Supports {
        /// The highest that it obeys.
        level: u32,
    },
}
