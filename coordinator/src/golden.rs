//! Golden files pin the bytes of all that lies on a coordinator's disk or travels between coordinators, one line each: its
//! name and its bytes in hexadecimal.
//!
//! Bytes never change under a format or protocol number (design §10). `UPDATE_EXPECT=1 cargo test -p roost-coordinator
//! golden` rewrites the files after something was *added*; a line that changes is another format. What the first formats
//! began with is frozen beside them in `frozen/`, which nothing rewrites. Samples are literals without `..`, and each enum is
//! listed by an exhaustive match: neither a new field nor a new variant compiles without a sample of it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;

use expect_test::{ExpectFile, expect_file};
use openraft::alias::{EntryOf, LogIdOf, SnapshotMetaOf, StoredMembershipOf};
use openraft::testing::log_id;
use openraft::{EntryPayload, Membership, Vote};
use roost_protocol::bundle::{BundleFile, FileList, MANIFEST_FILE, MODEL_FILE};
use roost_protocol::frame::{Frame, Kind, encode_message};
use roost_protocol::manifest::{
    Channels, EngineChoice, ImageInput, Manifest, PlacementRules, Replicas, RequestLimits, Tolerance,
};
use roost_protocol::messages::control::{Change, ControlRequest, ControlResponse, Done, HeldFrom, Outcome};
use roost_protocol::ring::Speed;
use roost_protocol::traffic::Weight;
use roost_protocol::view::{Coordinator, Liveness, NodeProfile, NodeReport, SoftState, Stage, VersionReport};
use roost_protocol::{
    ClusterId, CommandError, ControlError, Digest, Epoch, Incarnation, Label, ModelName, ModelVersion,
    NodeId, NodeName, RequestId, Revision, Term, Version,
};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::coordinator::GroupMember;
use crate::peer::{PeerRequest, PeerResponse};
use crate::raft::network::{RaftAnswer, RaftMessage, VoteAsk};
use crate::raft::record::{
    self, EntryRecord, LogIdRecord, MembershipRecord, SnapshotMetaRecord, StoredMembershipRecord, VoteRecord,
};
use crate::raft::types::{Member, Types};
use crate::state::{Applied, Command, Proposal, State};

/// Fails with what is wrong with the bytes.
type Decode = dyn Fn(&[u8]) -> Result<(), String>;

struct Sample {
    name: String,
    bytes: Vec<u8>,
    /// Whether bytes decode to what the sample was made of.
    reads_back: Box<Decode>,
}

/// An enum whose variants are known by name.
trait Variants {
    const TYPE: &'static str;
    const ALL: &'static [&'static str];
    fn variant(&self) -> &'static str;
}

macro_rules! variants {
    ($($enum:ty, $name:ident { $($variant:ident),+ $(,)? })+) => {$(
        impl Variants for $enum {
            const TYPE: &'static str = stringify!($name);
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
    Command, Command {
        Initialise, Reserve, CommitVersion, StartRollout, Expose, Pause, Resume, Promote, Abort, Undo, SetLabel,
        RemoveLabel, Join, Drain, Hold, NodeOut, Exclude, Collect, Refuse,
        Retain, RaiseLevel,
    }
    EntryPayload<Proposal, u64, Member>, Entry { Blank, Normal, Membership }
    PeerRequest, PeerRequest { Raft, Probe, Hold, Forward, Soft, Lacks, Supports }
    PeerResponse, PeerResponse { Raft, Probed, Held, Control, Heard, Failed, Lacks, Supports }
    RaftMessage, RaftMessage { Append, Vote, PreVote, Snapshot, TransferLeader }
    RaftAnswer, RaftAnswer { Appended, AppendedTo, Conflict, HigherVote, Vote, Installed, Transfer }
}

/// Samples of an enum, made by `sample` and named after the variants.
fn each<T: Variants>(values: Vec<T>, sample: impl Fn(&str, T) -> Sample) -> Vec<Sample> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut samples = Vec::new();
    for value in values {
        let count = seen.entry(value.variant()).or_default();
        *count += 1;
        let number = if *count == 1 { String::new() } else { format!("/{count}") };
        samples.push(sample(&format!("{}::{}{number}", T::TYPE, value.variant()), value));
    }
    for variant in T::ALL {
        assert!(seen.contains_key(variant), "{}::{variant} has no sample", T::TYPE);
    }
    samples
}

fn same<T: PartialEq + Debug>(actual: &T, expected: &T) -> Result<(), String> {
    if actual == expected { Ok(()) } else { Err(format!("{actual:?} was read, it should be {expected:?}")) }
}

/// What lies inside records and messages, without a frame.
fn bare<T: Serialize + DeserializeOwned + PartialEq + Debug + 'static>(name: &str, value: T) -> Sample {
    let bytes = postcard::to_stdvec(&value).unwrap();
    let reads_back =
        move |bytes: &[u8]| same(&postcard::from_bytes::<T>(bytes).map_err(|e| e.to_string())?, &value);
    Sample { name: name.to_owned(), bytes, reads_back: Box::new(reads_back) }
}

/// A record as it lies on the disk.
fn sealed<T: Serialize + DeserializeOwned + PartialEq + Debug + 'static>(name: &str, value: T) -> Sample {
    let bytes = record::seal(name, &value).unwrap();
    let reads_back =
        move |bytes: &[u8]| same(&record::open::<T>("a sample", bytes).map_err(|e| e.to_string())?, &value);
    Sample { name: name.to_owned(), bytes, reads_back: Box::new(reads_back) }
}

/// A message as it travels.
fn framed<T>(kind: Kind, name: &str, value: T) -> Sample
where
    T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
{
    let bytes = encode_message(kind, &value).unwrap();
    let reads_back = move |bytes: &[u8]| {
        let frame = Frame::parse(bytes).and_then(|frame| frame.expect(kind)).map_err(|e| e.to_string())?;
        same(&frame.message::<T>().map_err(|e| e.to_string())?, &value)
    };
    Sample { name: name.to_owned(), bytes, reads_back: Box::new(reads_back) }
}

/// The messages between coordinators that protocol 1 began with, and what format 1 of the disk began with: a line `name: bytes`
/// for each.
const PROTOCOL_1: &str = include_str!("frozen/protocol1.txt");
const FORMAT_1: &str = include_str!("frozen/records1.txt");
/// What to do when a line of theirs is not met.
const ADVICE: &str = "bytes have changed under protocol 1 or format 1, which coordinators in the field speak and have on \
    their disks. Leave the files in frozen/ and this type as they were, add a new type under the next number, and convert";

/// Holds samples against the lines of a frozen file whose names pass: each is there, is read, and is written as ever.
fn check_frozen(file: &str, lines: usize, samples: &[Sample], passes: impl Fn(&str) -> bool) {
    let mut met = 0;
    for line in file.lines() {
        let (name, frozen) = line.split_once(": ").unwrap();
        if !passes(name) {
            continue;
        }
        met += 1;
        let sample = samples.iter().find(|sample| sample.name == name);
        let sample = sample.unwrap_or_else(|| panic!("{name} has no sample any more: {ADVICE}"));
        (sample.reads_back)(&hex::decode(frozen).unwrap())
            .unwrap_or_else(|e| panic!("{name}: {e}: {ADVICE}"));
        assert_eq!(hex::encode(&sample.bytes), frozen, "{name} is written otherwise: {ADVICE}");
    }
    assert_eq!(met, lines, "{ADVICE}");
}

/// Compares samples with the file that pins them, and decodes the frozen bytes.
fn check(frozen: ExpectFile, samples: &[Sample]) {
    let line = |sample: &Sample| format!("{} {}\n", sample.name, hex::encode(&sample.bytes));
    frozen.assert_eq(&samples.iter().map(line).collect::<String>());
    for (line, sample) in frozen.data().lines().zip(samples) {
        let (name, bytes) = line.split_once(' ').unwrap();
        assert_eq!(name, sample.name);
        (sample.reads_back)(&hex::decode(bytes).unwrap()).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

pub(crate) fn name(text: &str) -> NodeName {
    NodeName::new(text).unwrap()
}

pub(crate) fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

pub(crate) fn at(version: u32) -> ModelVersion {
    ModelVersion { model: digits(), version: Version(version) }
}

pub(crate) fn label() -> Label {
    Label::new("prod").unwrap()
}

fn file(name: &str, content: &[u8]) -> BundleFile {
    BundleFile { name: name.to_owned(), bytes: content.len() as u64, digest: Digest::of(content) }
}

pub(crate) fn files() -> FileList {
    FileList::new(vec![file(MODEL_FILE, b"graph"), file(MANIFEST_FILE, b"replicas = 2")]).unwrap()
}

pub(crate) fn manifest() -> Manifest {
    Manifest {
        engine: EngineChoice::OnnxRuntime,
        replicas: Replicas::Count(3),
        batch_rows_max: 32,
        batch_axes: [("image".to_owned(), 0)].into(),
        warm_up_rows: vec![1, 8],
        labels: vec!["zero".to_owned(), "one".to_owned()],
        labels_output: Some("probs".to_owned()),
        tolerance: Tolerance { absolute: 1e-4, relative: 1e-3 },
        limits: RequestLimits { rows_max: 64 },
        placement: PlacementRules {
            memory_mib_min: 512,
            node_labels: [("disk".to_owned(), "ssd".to_owned())].into(),
        },
        image: Some(ImageInput {
            input: "image".to_owned(),
            width: 8,
            height: 8,
            channels: Channels::Gray,
            scale: 0.0625,
            mean: vec![0.5],
            std: vec![1.0],
        }),
    }
}

pub(crate) fn profile() -> NodeProfile {
    NodeProfile {
        speed: Speed::from_ratio(2.0),
        zone: "rack-1".to_owned(),
        labels: [("disk".to_owned(), "ssd".to_owned())].into(),
        memory_mib: 4096,
        isa: "x86-64 avx2".to_owned(),
        engines: [EngineChoice::OnnxRuntime].into(),
    }
}

fn epoch(index: u64) -> Epoch {
    Epoch { generation: 1, index }
}

fn commands() -> Vec<Command> {
    let (model, revision) = (digits(), Revision(12));
    vec![
        Command::Initialise { cluster: ClusterId(0x1234_5678_9abc_def0) },
        Command::Reserve { files: files() },
        Command::CommitVersion {
            model: digits(),
            digest: files().digest(),
            manifest: Box::new(manifest()),
            note: "trained on Monday".to_owned(),
            holders: [NodeId(1), NodeId(2)].into(),
            new_version: true,
        },
        Command::StartRollout { target: at(2), weight: "20%".parse::<Weight>().unwrap() },
        Command::Expose { model: model.clone(), revision },
        Command::Pause { model: model.clone(), revision, reason: "one of two".to_owned() },
        Command::Resume { model: model.clone(), revision },
        Command::Promote { model: model.clone(), revision },
        Command::Abort { model: model.clone(), reason: "slow".to_owned() },
        Command::Undo { model: model.clone(), revision },
        Command::SetLabel { version: at(1), label: label() },
        Command::RemoveLabel { model, label: label() },
        Command::Join {
            node: NodeId(10),
            name: name("w1"),
            address: "127.0.0.1:7400".to_owned(),
            profile: Box::new(profile()),
        },
        Command::Drain { node: NodeId(10), draining: true },
        Command::Drain { node: NodeId(10), draining: false },
        Command::Hold { node: NodeId(10), from: Some(HeldFrom::Further) },
        Command::Hold { node: NodeId(10), from: Some(HeldFrom::All) },
        Command::NodeOut { node: NodeId(10), joined: 300 },
        Command::Exclude { node: NodeId(10), joined: 300, version: at(2), reason: "no memory".to_owned() },
        Command::Collect { digest: files().digest(), reserved_at_ms: 1_767_225_600_000 },
        Command::Refuse { error: Box::new(CommandError::NotReady { version: at(2), ready: 1, needed: 2 }) },
        Command::Retain { model: digits(), keep: 2 },
        Command::RaiseLevel { level: 2 },
    ]
}

pub(crate) fn proposal(command: Command) -> Proposal {
    Proposal {
        request: Some(RequestId(0x77)),
        sent: epoch(7),
        at_ms: 1_767_225_600_000,
        by: "anna".to_owned(),
        command,
    }
}

fn of_planner(command: Command) -> Proposal {
    Proposal { request: None, sent: epoch(7), at_ms: 1_767_225_600_000, by: "planner".to_owned(), command }
}

fn membership() -> Membership<u64, Member> {
    let member = |id: u64| (id, Member { name: format!("c{id}"), address: format!("10.0.0.{id}:7300") });
    let voters = vec![[1, 2, 3].into(), [2, 3, 4].into()];
    Membership::new(voters, (1..=5).map(member).collect::<BTreeMap<u64, Member>>()).unwrap()
}

fn position(index: u64) -> LogIdOf<Types> {
    log_id::<Types>(5, 0, index)
}

fn stored_membership() -> StoredMembershipOf<Types> {
    StoredMembershipOf::<Types>::new(Some(position(299)), membership())
}

fn snapshot_meta() -> SnapshotMetaOf<Types> {
    SnapshotMetaOf::<Types> { last_log_id: Some(position(300)), last_membership: stored_membership() }
}

fn payloads() -> Vec<EntryPayload<Proposal, u64, Member>> {
    vec![
        EntryPayload::Blank,
        EntryPayload::Normal(proposal(Command::Undo { model: digits(), revision: Revision(12) })),
        EntryPayload::Membership(membership()),
    ]
}

fn entry(payload: EntryPayload<Proposal, u64, Member>) -> EntryRecord {
    EntryRecord::from(EntryOf::<Types> { log_id: position(300), payload })
}

fn vote() -> VoteRecord {
    VoteRecord::from(Vote::new_committed(5, 3))
}

#[test]
fn the_bytes_of_every_command_are_pinned() {
    let mut samples = each(commands(), |name, command| bare(name, proposal(command)));
    samples.push(bare(
        "Proposal/planner",
        of_planner(Command::Undo { model: digits(), revision: Revision(12) }),
    ));
    samples.push(bare("Applied", Applied { epoch: epoch(300), result: Ok(Outcome::Applied) }));
    let refused = Err(CommandError::NothingToUndo { model: digits() });
    samples.push(bare("Applied/refused", Applied { epoch: epoch(300), result: refused }));
    check(expect_file!["golden/commands.txt"], &samples);
    let is_command = |name: &str| ["Command::", "Proposal/", "Applied"].iter().any(|of| name.starts_with(of));
    check_frozen(FORMAT_1, 26, &samples, is_command);
}

#[test]
fn the_bytes_of_every_record_are_pinned() {
    let last = LogIdRecord::from(position(300));
    let empty = StoredMembershipOf::<Types>::new(None, Membership::default());
    let nothing = SnapshotMetaOf::<Types> { last_log_id: None, last_membership: empty };
    let mut samples = vec![
        sealed("META/node", NodeId(3)),
        sealed("META/vote", Some(vote())),
        sealed("META/vote/uncommitted", Some(VoteRecord::from(Vote::new(5, 3)))),
        sealed("META/vote/none", None::<VoteRecord>),
        sealed("META/committed", Some(last)),
        sealed("META/committed/none", None::<LogIdRecord>),
        sealed("META/purged", Some(last)),
        sealed("META/purged/none", None::<LogIdRecord>),
        sealed("META/snapshot", Some(SnapshotMetaRecord::from(&snapshot_meta()))),
        sealed("META/snapshot/none", None::<SnapshotMetaRecord>),
    ];
    samples.extend(each(payloads(), |name, payload| sealed(&format!("LOG/{name}"), entry(payload))));
    let chunk =
        |bytes: &[u8]| same(&record::open_bytes("x", bytes).map_err(|e| e.to_string())?, &&b"state"[..]);
    let (name, bytes) = ("SNAPSHOT/chunk".to_owned(), record::seal_bytes(b"state"));
    samples.push(Sample { name, bytes, reads_back: Box::new(chunk) });
    samples.push(bare("Membership", MembershipRecord::from(&membership())));
    samples.push(bare("StoredMembership", StoredMembershipRecord::from(&stored_membership())));
    samples.push(bare("SnapshotMeta", SnapshotMetaRecord::from(&snapshot_meta())));
    samples.push(bare("SnapshotMeta/nothing", SnapshotMetaRecord::from(&nothing)));
    check(expect_file!["golden/records.txt"], &samples);
    let kinds = ["META/", "LOG/", "SNAPSHOT/", "Membership", "StoredMembership", "SnapshotMeta"];
    check_frozen(FORMAT_1, 18, &samples, |name| kinds.iter().any(|kind| name.starts_with(kind)));
}

fn raft_messages() -> Vec<RaftMessage> {
    let ask = VoteAsk { vote: vote(), last: Some(position(300).into()), transfer: false };
    let taking_over = VoteAsk { vote: vote(), last: None, transfer: true };
    vec![
        RaftMessage::Append {
            vote: vote(),
            previous: Some(position(299).into()),
            entries: payloads().into_iter().map(entry).collect(),
            committed: Some(position(298).into()),
        },
        RaftMessage::Append { vote: vote(), previous: None, entries: Vec::new(), committed: None },
        RaftMessage::Vote(ask.clone()),
        RaftMessage::Vote(taking_over),
        RaftMessage::PreVote(ask),
        RaftMessage::Snapshot { vote: vote(), meta: (&snapshot_meta()).into(), bytes: 5 << 20 },
        RaftMessage::TransferLeader { vote: vote(), to: 2, last: Some(position(300).into()) },
    ]
}

fn raft_answers() -> Vec<RaftAnswer> {
    let last = Some(LogIdRecord::from(position(300)));
    vec![
        RaftAnswer::Appended,
        RaftAnswer::AppendedTo(last),
        RaftAnswer::AppendedTo(None),
        RaftAnswer::Conflict,
        RaftAnswer::HigherVote(vote()),
        RaftAnswer::Vote { vote: vote(), granted: true, last },
        RaftAnswer::Vote { vote: vote(), granted: false, last: None },
        RaftAnswer::Installed(vote()),
        RaftAnswer::Transfer { taken: true },
        RaftAnswer::Transfer { taken: false },
    ]
}

fn soft() -> SoftState {
    let version = VersionReport { model: digits(), version: Version(2), stage: Stage::Ready, engine: None };
    let report = NodeReport {
        incarnation: Incarnation(4),
        sequence: 17,
        liveness: Liveness::Live,
        versions: vec![version],
    };
    SoftState { term: Term(5), sequence: 1000, settled: true, nodes: [(NodeId(10), report)].into() }
}

fn peer_requests() -> Vec<PeerRequest> {
    let vote = RaftMessage::Vote(VoteAsk { vote: vote(), last: None, transfer: false });
    let undo = Change::Undo { model: digits() };
    vec![
        PeerRequest::Raft { to: NodeId(2), message: Box::new(vote) },
        PeerRequest::Probe {
            group: vec![GroupMember { name: name("c1"), address: "10.0.0.1:7300".to_owned() }],
        },
        PeerRequest::Hold { files: files(), holders: vec!["10.0.0.1:7300".to_owned()] },
        PeerRequest::Forward {
            by: "anna".to_owned(),
            request: Box::new(ControlRequest::Change {
                request: RequestId(0x77),
                sent: epoch(7),
                change: undo,
            }),
        },
        PeerRequest::Soft(Box::new(soft())),
        PeerRequest::Lacks { bundles: vec![files().digest()] },
        PeerRequest::Supports,
    ]
}

fn peer_responses() -> Vec<PeerResponse> {
    let done = ControlResponse::Done(Done { epoch: epoch(300), outcome: Outcome::Applied });
    vec![
        PeerResponse::Raft(RaftAnswer::Appended),
        PeerResponse::Probed {
            initialised: true,
            cluster: Some(ClusterId(7)),
            agrees: true,
            member: Some(false),
        },
        PeerResponse::Probed { initialised: false, cluster: None, agrees: false, member: None },
        PeerResponse::Held,
        PeerResponse::Control(Box::new(done)),
        PeerResponse::Heard,
        PeerResponse::Failed(ControlError::NotLeader { leader: None }),
        PeerResponse::Lacks(vec![files().digest()]),
        PeerResponse::Supports { level: 2 },
    ]
}

#[test]
fn the_bytes_of_every_peer_message_are_pinned() {
    let to = NodeId(2);
    let mut samples = each(peer_requests(), |name, value| framed(Kind::RaftRequest, name, value));
    samples.extend(each(raft_messages(), |name, message| {
        framed(Kind::RaftRequest, name, PeerRequest::Raft { to, message: Box::new(message) })
    }));
    samples.extend(each(peer_responses(), |name, value| framed(Kind::RaftResponse, name, value)));
    samples.extend(each(raft_answers(), |name, answer| {
        framed(Kind::RaftResponse, name, PeerResponse::Raft(answer))
    }));
    check(expect_file!["golden/peers.txt"], &samples);
    check_frozen(PROTOCOL_1, 33, &samples, |_| true);
}

/// A small cluster's state as commands make it: it pins what they do as well as how that is written.
#[test]
fn the_bytes_of_a_state_are_pinned() {
    let mut state = State::default();
    let empty = sealed("State/empty", state.clone());
    let voters: Vec<BTreeSet<NodeId>> = vec![(1..=3).map(NodeId).collect()];
    let coordinator = |id: u64| {
        let (name, address) = (name(&format!("c{id}")), format!("10.0.0.{id}:7300"));
        (NodeId(id), Coordinator { name, address, voter: id <= 3 })
    };
    state.apply_membership(0, (1..=4).map(coordinator).collect(), voters);
    state.apply_blank(1);
    let expected = Arc::new(manifest());
    let mut index = 1;
    let mut results = Vec::new();
    let mut run = |state: &mut State, command: Command| {
        index += 1;
        let request = Some(RequestId(index.into()));
        let applied = state.apply(index, &Proposal { request, at_ms: 1000 * index, ..proposal(command) });
        results.push(applied.result.is_ok());
    };
    for command in commands().into_iter().filter(|command| !matches!(command, Command::RaiseLevel { .. })) {
        let revision = state.rollout(&digits()).map_or(Revision(0), |rollout| rollout.traffic.revision);
        // Those that name what they were planned from name the present one, so that each does something.
        let command = match command {
            Command::Expose { model, revision: _ } => Command::Expose { model, revision },
            Command::Pause { model, revision: _, reason } => Command::Pause { model, revision, reason },
            Command::Resume { model, revision: _ } => Command::Resume { model, revision },
            Command::Promote { model, revision: _ } => Command::Promote { model, revision },
            Command::Undo { model, revision: _ } => Command::Undo { model, revision },
            Command::Exclude { node, joined: _, version, reason } => {
                let joined = state.joins().find(|(id, _)| *id == node).map_or(0, |(_, joined)| joined);
                Command::Exclude { node, joined, version, reason }
            }
            other => other,
        };
        if let Command::StartRollout { .. } = &command {
            run(&mut state, commands().swap_remove(2));
        }
        run(&mut state, command);
    }
    let second = files_of_second();
    run(&mut state, Command::Reserve { files: second });
    assert_eq!(state.view().unwrap().models[&digits()].versions[&Version(1)].manifest, expected);
    let refused = results.iter().filter(|done| !**done).count();
    assert_eq!(refused, 2, "there is nothing to abort after the promotion, and a refusal is one");
    let samples = [empty, sealed("State", state)];
    check(expect_file!["golden/state.txt"], &samples);
    check_frozen(FORMAT_1, 2, &samples, |name| name.starts_with("State"));
}

fn files_of_second() -> FileList {
    FileList::new(vec![file(MODEL_FILE, b"another graph")]).unwrap()
}
