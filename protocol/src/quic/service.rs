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

    /// Its name, as users read it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Infer => "infer",
            Self::Control => "control",
            Self::Raft => "raft",
            Self::Bundle => "bundle",
        }
    }

    /// The name and number of a protocol, as TLS negotiates it (RFC 7301): `roost-infer/1`.
    pub fn alpn(self, number: u16) -> String {
        format!("roost-{}/{number}", self.name())
    }
}

/// The numbers of the protocols that this build speaks, the latest first: its own, and the one before once there is one.
/// Two nodes speak the highest that both do.
pub const PROTOCOLS: &[u16] = &[1];

/// A service and the number of the protocol that was agreed on, among those of `numbers`.
pub(super) fn agreed(alpn: &[u8], numbers: &[u16]) -> Option<(Service, u16)> {
    let all = Service::ALL.into_iter().flat_map(|service| numbers.iter().map(move |n| (service, *n)));
    all.into_iter().find(|(service, number)| service.alpn(*number).as_bytes() == alpn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_numbers_are_this_one_and_the_one_before() {
        assert!(PROTOCOLS.len() <= 2 && PROTOCOLS.windows(2).all(|pair| pair[0] == pair[1] + 1));
        for service in Service::ALL {
            assert_eq!(agreed(service.alpn(2).as_bytes(), &[2, 1]), Some((service, 2)));
            assert_eq!(agreed(service.alpn(3).as_bytes(), &[2, 1]), None);
        }
        // The first number is part of the wire.
        let first: Vec<String> = Service::ALL.into_iter().map(|service| service.alpn(1)).collect();
        assert_eq!(first, ["roost-infer/1", "roost-control/1", "roost-raft/1", "roost-bundle/1"]);
    }
}
