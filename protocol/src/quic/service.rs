//! The services that a node offers.

/// What a connection is for. Each has its own connections, so that a bundle in transfer never delays a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Inference.
    Infer,
    /// Changes, reads, watches, heartbeats.
    Control,
    /// Coordinators among themselves.
    Raft,
    /// Bundles.
    Bundle,
}

impl Service {
    /// Every service.
    pub const ALL: [Self; 4] = [Self::Infer, Self::Control, Self::Raft, Self::Bundle];

    /// The name and number of the protocol, as TLS negotiates it.
    pub fn alpn(self) -> &'static str {
        match self {
            Self::Infer => "roost-infer/1",
            Self::Control => "roost-control/1",
            Self::Raft => "roost-raft/1",
            Self::Bundle => "roost-bundle/1",
        }
    }
}
