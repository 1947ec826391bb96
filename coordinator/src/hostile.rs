//! Bytes from anywhere at the decoders of this crate: what other coordinators send, and what lies on disk under a checksum
//! that fits. They are refused or read; nothing panics. Messages of the protocol crate are tried there.

use proptest::prelude::{Just, Strategy, any, prop, prop_oneof};
use proptest::{collection, prop_assert, proptest};
use roost_protocol::frame::{Frame, Kind, Prefix, encode_message};
use roost_protocol::messages::control::{ControlRequest, Query};
use roost_protocol::{ControlError, Digest};

use crate::peer::{PeerRequest, PeerResponse};
use crate::raft::record::{self, EntryRecord, SnapshotMetaRecord, VoteRecord};
use crate::state::State;

/// Decodes bytes as everything that they may be.
fn decode_everywhere(bytes: &[u8]) {
    for kind in [Kind::RaftRequest, Kind::RaftResponse] {
        let Ok(prefix) = Prefix::new(kind, bytes.len() as u64, 0) else { continue };
        decode_frame(&[&prefix.encode(), bytes].concat());
    }
    decode_frame(bytes);
    let sealed = record::seal_bytes(bytes);
    for bytes in [bytes, &sealed] {
        // Whatever is read is not what was meant; that it is read or refused is all that counts.
        let _ = record::open::<VoteRecord>("a vote", bytes);
        let _ = record::open::<SnapshotMetaRecord>("a snapshot", bytes);
        let _ = record::open::<EntryRecord>("an entry", bytes).map(EntryRecord::into_entry);
        let _ = record::open::<State>("a state", bytes);
    }
}

fn decode_frame(bytes: &[u8]) {
    if let Ok(frame) = Frame::parse(bytes) {
        let _ = frame.message::<PeerRequest>();
        let _ = frame.message::<PeerResponse>();
    }
}

/// A message, whole.
fn message() -> impl Strategy<Value = Vec<u8>> {
    let digests = collection::vec(any::<[u8; 8]>(), 0..8);
    prop_oneof![
        digests.prop_map(|names| {
            let bundles = names.iter().map(|name| Digest::of(name)).collect();
            encode_message(Kind::RaftRequest, &PeerRequest::Lacks { bundles }).unwrap().to_vec()
        }),
        ".{0,32}".prop_map(|by| {
            let request = Box::new(ControlRequest::Query(Query::Members));
            encode_message(Kind::RaftRequest, &PeerRequest::Forward { by, request }).unwrap().to_vec()
        }),
        Just(
            encode_message(
                Kind::RaftResponse,
                &PeerResponse::Failed(ControlError::NotLeader { leader: None })
            )
            .unwrap()
            .to_vec()
        ),
        Just(record::seal("a state", &State::default()).unwrap()),
    ]
}

proptest! {
    #[test]
    fn random_bytes_are_refused_or_read(bytes in collection::vec(any::<u8>(), 0..512)) {
        decode_everywhere(&bytes);
    }

    #[test]
    fn damaged_messages_are_refused_or_read(
        mut bytes in message(),
        at in any::<prop::sample::Index>(),
        byte in any::<u8>(),
        length in any::<prop::sample::Index>(),
    ) {
        prop_assert!(!bytes.is_empty());
        let at = at.index(bytes.len());
        bytes[at] = byte;
        decode_everywhere(&bytes);
        bytes.truncate(length.index(bytes.len() + 1));
        decode_everywhere(&bytes);
    }
}
