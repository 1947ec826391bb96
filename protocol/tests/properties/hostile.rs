//! Bytes that nobody should have sent: random ones, and samples of every message that were damaged.

use std::sync::LazyLock;

use proptest::prelude::*;
use roost_protocol::frame::{Frame, Kind, Prefix, encode_message};
use roost_protocol::ids::{Epoch, ModelName, NodeId, Version};
use roost_protocol::limits::MANIFEST_BYTES_MAX;
use roost_protocol::manifest::Manifest;
use roost_protocol::messages::control::{
    Change, ControlRequest, Heartbeat, SoftUpdate, VersionStatistics, WatchUpdate, Watched,
};
use roost_protocol::view::{Delta, Stage, VersionReport};

use crate::decoders::{bounded, bounded_text, certificate, decode_everywhere, frame};
use crate::messages::{self, state};

/// The bytes of every sample, and which of them are frames.
static SAMPLES: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| messages::all().into_values().flatten().map(|sample| sample.bytes).collect());

/// A certificate of a node, as its CA would issue it.
static CERTIFICATE: LazyLock<Vec<u8>> = LazyLock::new(|| {
    let uri = "roost://demo/coordinator+worker/a".try_into().expect("a URI is ASCII");
    let mut params = rcgen::CertificateParams::new(vec!["node.roost".to_owned()]).expect("a DNS name");
    params.subject_alt_names.push(rcgen::SanType::URI(uri));
    let key = rcgen::KeyPair::generate().expect("ring makes keys");
    params.self_signed(&key).expect("ring signs").der().to_vec()
});

/// What is done to good bytes, at some place.
#[derive(Debug, Clone)]
enum Damage {
    Flip(u8),
    Overwrite(Vec<u8>),
    Insert(Vec<u8>),
    Truncate,
    Remove,
}

impl Damage {
    fn anywhere() -> impl Strategy<Value = (prop::sample::Index, Self)> {
        // Random bytes, and lengths as far as they go in either encoding.
        let bytes = prop_oneof![
            prop::collection::vec(any::<u8>(), 1..9),
            Just(vec![0xff; 4]),
            Just(vec![0xff, 0xff, 0xff, 0xff, 0x0f]),
            Just(u32::MAX.to_le_bytes().to_vec()),
            Just(u64::MAX.to_le_bytes().to_vec()),
            Just(i32::MIN.to_le_bytes().to_vec()),
        ];
        let damage = prop_oneof![
            4 => (0..8u8).prop_map(Self::Flip),
            2 => bytes.clone().prop_map(Self::Overwrite),
            1 => bytes.prop_map(Self::Insert),
            1 => Just(Self::Truncate),
            1 => Just(Self::Remove),
        ];
        (any::<prop::sample::Index>(), damage)
    }

    fn apply(self, at: prop::sample::Index, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        let at = at.index(bytes.len());
        match self {
            Self::Flip(bit) => bytes[at] ^= 1 << bit,
            Self::Overwrite(new) => bytes.iter_mut().skip(at).zip(new).for_each(|(old, new)| *old = new),
            Self::Insert(new) => drop(bytes.splice(at..at, new)),
            Self::Truncate => bytes.truncate(at),
            Self::Remove => drop(bytes.remove(at)),
        }
    }
}

/// Makes a frame's prefix say how long the frame is, so that damage to its header is met and not only its length.
fn repair_prefix(bytes: &mut [u8]) {
    let Some((prefix, rest)) = bytes.split_first_chunk_mut::<{ Prefix::BYTES }>() else { return };
    let Ok(old) = Prefix::decode(*prefix) else { return };
    let header_bytes = if old.body_bytes == 0 { rest.len() } else { old.header_bytes as usize };
    let repaired = Prefix { header_bytes: header_bytes as u32, ..old };
    let body_bytes = if old.body_bytes == 0 { 0 } else { rest.len().saturating_sub(repaired.body_start()) };
    *prefix = Prefix { body_bytes: body_bytes as u64, ..repaired }.encode();
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(10_000))]

    #[test]
    fn random_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        decode_everywhere(&bytes);
    }

    #[test]
    fn damaged_messages_are_refused_or_read(
        sample in any::<prop::sample::Index>(),
        damages in prop::collection::vec(Damage::anywhere(), 1..6),
        repair in any::<bool>(),
    ) {
        let mut bytes = sample.get(&SAMPLES).clone();
        damages.into_iter().for_each(|(at, damage)| damage.apply(at, &mut bytes));
        if repair {
            repair_prefix(&mut bytes);
        }
        decode_everywhere(&bytes);
    }

    #[test]
    fn damaged_certificates_are_refused_or_read(damages in prop::collection::vec(Damage::anywhere(), 1..4)) {
        let mut bytes = CERTIFICATE.clone();
        damages.into_iter().for_each(|(at, damage)| damage.apply(at, &mut bytes));
        bounded(&bytes, certificate);
    }

    #[test]
    fn random_texts_are_refused_or_read(chars in "\\PC{0,80}", words in TEXTS) {
        bounded_text(chars.as_bytes());
        bounded_text(words.as_bytes());
    }
}

/// Texts made of the pieces that the parsers look for.
const TEXTS: &str = "(roost://|demo|/|\\+|worker|client|a|@|:|0|1|00|-|%|\\.|4294967296|replicas|labels|=|\\[|\\]|\"|\n|é|[0-9a-f]{16}){0,16}";

#[test]
fn every_length_may_lie() {
    // A varint that claims 4 GiB, one that claims all there is, and the extremes of an archive's words, at every place.
    let claims: [&[u8]; 5] = [
        &[0xff, 0xff, 0xff, 0xff, 0x0f],
        &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01],
        &[0xff; 4],
        &[0x00, 0x00, 0x00, 0x80],
        &[0x00; 8],
    ];
    for sample in SAMPLES.iter().filter(|sample| Frame::parse(sample).is_ok()) {
        for claim in claims {
            for at in Prefix::BYTES..sample.len() {
                let mut replaced = sample.clone();
                replaced.iter_mut().skip(at).zip(claim).for_each(|(old, new)| *old = *new);
                bounded(&replaced, frame);
                let mut spliced = sample.clone();
                spliced.splice(at..=at, claim.iter().copied());
                repair_prefix(&mut spliced);
                bounded(&spliced, frame);
            }
        }
    }
}

#[test]
fn every_truncation_is_refused() {
    for sample in messages::all().into_values().flatten() {
        for length in 0..sample.bytes.len() {
            (sample.reads_back)(&sample.bytes[..length]).expect_err(&sample.name);
            bounded(&sample.bytes[..length], frame);
        }
    }
}

/// The messages that take the most memory for their length.
#[test]
fn dense_messages_stay_in_proportion() {
    const COUNT: u64 = 100_000;
    let ids = || (0..COUNT).map(NodeId);
    let from = Epoch::default();
    let to = Epoch { generation: 0, index: 1 };
    let names = || (0..COUNT).map(|i| ModelName::new(&format!("{i:x}")).expect("hexadecimal is a name"));
    let delta = Delta {
        from,
        to,
        coordinators: None,
        nodes: ids().map(|id| (id, None)).collect(),
        models: names().map(|name| (name, None)).collect(),
    };
    let soft = SoftUpdate {
        from: None,
        term: state::soft().term,
        sequence: 1,
        settled: true,
        nodes: ids().map(|id| (id, None)).collect(),
    };
    let manifest = Manifest {
        labels: vec![String::new(); COUNT as usize],
        warm_up_rows: vec![1; COUNT as usize],
        ..Manifest::default()
    };
    let commit = Change::CommitPush {
        model: state::model(),
        digest: state::files().digest(),
        manifest: Box::new(manifest),
        note: String::new(),
        new_version: false,
    };
    let short = ModelName::new("m").expect("a name");
    let report =
        VersionReport { model: short.clone(), version: Version(1), stage: Stage::Ready, engine: None };
    let version = roost_protocol::ModelVersion { model: short, version: Version(1) };
    let statistics = VersionStatistics { version, answered: 1, failed: 0, fallbacks: 0 };
    let heartbeat = Heartbeat {
        node: NodeId(1),
        incarnation: roost_protocol::Incarnation(1),
        sequence: 1,
        versions: vec![report; COUNT as usize],
        statistics: vec![statistics; COUNT as usize],
    };
    let change = ControlRequest::Change { request: roost_protocol::RequestId(1), sent: from, change: commit };
    let frames = [
        ("delta", encode_message(Kind::WatchUpdate, &WatchUpdate::Delta(Box::new(delta)))),
        ("soft", encode_message(Kind::WatchUpdate, &WatchUpdate::Soft(soft))),
        ("manifest", encode_message(Kind::ControlRequest, &change)),
        ("heartbeat", encode_message(Kind::ControlRequest, &ControlRequest::Heartbeat(heartbeat))),
        (
            "watch",
            encode_message(
                Kind::ControlRequest,
                &ControlRequest::Watch { from: None, models: Watched::Models(names().collect()) },
            ),
        ),
    ];
    for (name, bytes) in frames {
        bounded(&bytes.unwrap_or_else(|error| panic!("{name}: {error}")), frame);
    }
}

/// Texts that nest, and texts that are all tokens.
#[test]
fn dense_texts_stay_in_proportion_and_deep_ones_on_the_stack() {
    let starts = ["", "labels = ", "labels = [", "[batch_axes]\n", "[placement.node_labels]\na = "];
    let pieces = [
        "[", "{a=", "a.", "x=[", "x=1\n", "\"\",", "1,", "\"\"\"", "'''", "\n", "#\n", "[[a]]\n", "\u{fffd}",
    ];
    for start in starts {
        for piece in pieces {
            let mut hostile = start.to_owned();
            hostile.push_str(&piece.repeat((MANIFEST_BYTES_MAX - start.len()) / piece.len()));
            bounded_text(hostile.as_bytes());
        }
    }
}
