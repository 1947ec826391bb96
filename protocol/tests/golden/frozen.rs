//! Protocol 1 as it is spoken in the field: its messages never change, whatever is added.
//!
//! `../frozen/protocol1.txt` has a line `name: bytes` for each message and variant that protocol 1 began with. Unlike the
//! golden files, which grow with the protocol, nothing writes it: a test that fails here has found another format.

use std::collections::BTreeMap;

use roost_protocol::frame::{Kind, Prefix};

use crate::messages::{self, Sample};

const PROTOCOL_1: &str = include_str!("../frozen/protocol1.txt");
/// The lines of the file: none is ever taken away.
const LINES: usize = 253;

/// What to do when a line is not met.
const ADVICE: &str = "the bytes of a message have changed under protocol 1, which nodes in the field speak. Leave \
    frozen/protocol1.txt and this type as they were, add a new type under the next protocol number, and convert between \
    them at the edge";

fn lines() -> impl Iterator<Item = (&'static str, Vec<u8>)> {
    PROTOCOL_1.lines().map(|line| {
        let (name, bytes) = line.split_once(": ").expect("a line is a name and bytes");
        (name, hex::decode(bytes).expect("bytes are hexadecimal"))
    })
}

#[test]
fn every_message_of_protocol_1_is_read_and_written_as_ever() {
    assert_eq!(lines().count(), LINES, "{ADVICE}");
    let samples: BTreeMap<String, Sample> =
        messages::all().into_values().flatten().map(|sample| (sample.name.clone(), sample)).collect();
    for (name, bytes) in lines() {
        let sample = samples.get(name).unwrap_or_else(|| panic!("{name} has no sample any more: {ADVICE}"));
        (sample.reads_back)(&bytes).unwrap_or_else(|error| panic!("{name}: {error}: {ADVICE}"));
        assert_eq!(hex::encode(&sample.bytes), hex::encode(&bytes), "{name} is written otherwise: {ADVICE}");
    }
}

/// Those of coordinators among each other are frozen in their crate, and chunks have no message.
#[test]
fn every_kind_of_message_is_frozen() {
    let prefix = |bytes: Vec<u8>| Prefix::decode(*bytes.first_chunk::<{ Prefix::BYTES }>()?).ok();
    let frames = lines().filter(|(name, _)| !name.starts_with("Kind::"));
    let kinds: Vec<Kind> = frames.filter_map(|(_, bytes)| prefix(bytes)).map(|prefix| prefix.kind).collect();
    for kind in Kind::ALL {
        let elsewhere = matches!(
            kind,
            Kind::RaftRequest
                | Kind::RaftResponse
                | Kind::RaftChunk
                | Kind::SnapshotChunk
                | Kind::BundleChunk
        );
        assert!(elsewhere || kinds.contains(&kind), "{kind:?} is not frozen");
    }
}
