//! A database of the first format, frozen: every build reads it, to the same state as the commands that made it lead to today.
//!
//! It lies in `frozen/format1.txt` as the lines of 32 bytes that are not zero, in hexadecimal, each behind its offset. Nothing
//! rewrites it. It holds redb's own file format too, which a later redb must read or be fed an export of. The records in it, a
//! snapshot among them, are written today as they were then, byte by byte. Single records and messages are frozen beside it:
//! see [`crate::golden`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io;
use std::sync::Arc;

use expect_test::expect_file;
use futures::stream;
use openraft::alias::EntryOf;
use openraft::storage::{IOFlushed, RaftLogStorage, RaftSnapshotBuilder, RaftStateMachine};
use openraft::testing::log_id;
use openraft::{EntryPayload, Membership, RaftLogReader, Vote};
use redb::backends::InMemoryBackend;
use redb::{Database, ReadableDatabase, ReadableTable, StorageBackend, TableDefinition};
use roost_protocol::messages::control::HeldFrom;
use roost_protocol::traffic::Weight;
use roost_protocol::view::Published;
use roost_protocol::{ClusterId, NodeId, RequestId, Revision};
use tokio::sync::watch;

use crate::golden;
use crate::raft::disk::{Disk, Job, JobQueue};
use crate::raft::types::{Member, Types};
use crate::raft::{Log, Machine};
use crate::state::{Command, LEVEL, Proposal, State};

const FORMAT_1: &str = include_str!("frozen/format1.txt");
/// The bytes of one line.
const LINE_BYTES: usize = 32;
/// Entries of the log that are in the snapshot.
const COVERED: u64 = 6;

struct Inline;

impl JobQueue for Inline {
    fn submit(&self, job: Job) {
        job();
    }
}

#[derive(Debug, Clone, Default)]
struct Memory(Arc<InMemoryBackend>);

impl StorageBackend for Memory {
    fn len(&self) -> Result<u64, io::Error> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> Result<(), io::Error> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> Result<(), io::Error> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> Result<(), io::Error> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> Result<(), io::Error> {
        self.0.write(offset, data)
    }
}

async fn open(memory: &Memory) -> (Disk, Log, Machine) {
    let disk = Disk::open(Box::new(memory.clone()), Arc::new(Inline), NodeId(1)).await.unwrap();
    let machine = Machine::open(disk.clone(), watch::Sender::new(Published::default()), LEVEL).await.unwrap();
    (disk.clone(), Log::new(disk), machine)
}

/// What the entries of the frozen log do, each planned from the state that those before it led to.
fn next(state: &State, index: u64) -> Option<EntryPayload<Proposal, u64, Member>> {
    let model = golden::digits();
    let revision = state.rollout(&model).map_or(Revision(0), |rollout| rollout.traffic.revision);
    let commit = |note: &str| Command::CommitVersion {
        model: golden::digits(),
        digest: golden::files().digest(),
        manifest: Box::new(golden::manifest()),
        note: note.to_owned(),
        holders: [NodeId(1), NodeId(2)].into(),
        new_version: true,
    };
    let command = match index {
        0 => return Some(EntryPayload::Membership(membership())),
        1 => return Some(EntryPayload::Blank),
        2 => Command::Initialise { cluster: ClusterId(0x1234_5678_9abc_def0) },
        3 => Command::Reserve { files: golden::files() },
        4 => commit("first"),
        5 => Command::Join {
            node: NodeId(10),
            name: golden::name("w1"),
            address: "10.0.1.1:7400".to_owned(),
            profile: Box::new(golden::profile()),
        },
        6 => commit("second"),
        7 => Command::StartRollout { target: golden::at(2), weight: "20%".parse::<Weight>().unwrap() },
        8 => Command::Expose { model, revision },
        9 => Command::Pause { model, revision, reason: "one of two".to_owned() },
        10 => Command::Resume { model, revision },
        11 => Command::Promote { model, revision },
        12 => Command::SetLabel { version: golden::at(1), label: golden::label() },
        13 => Command::Drain { node: NodeId(10), draining: true },
        14 => Command::Hold { node: NodeId(10), from: Some(HeldFrom::Further) },
        _ => return None,
    };
    let request = Some(RequestId(u128::from(index)));
    Some(EntryPayload::Normal(Proposal { request, at_ms: 1000 * index, ..golden::proposal(command) }))
}

fn membership() -> Membership<u64, Member> {
    let member = |id: u64| (id, Member { name: format!("c{id}"), address: format!("10.0.0.{id}:7300") });
    let members: BTreeMap<u64, Member> = (1..=3).map(member).collect();
    Membership::new(vec![[1, 2, 3].into()], members).unwrap()
}

/// The database as this build makes it.
async fn make() -> (Memory, State) {
    let memory = Memory::default();
    let (disk, mut log, mut machine) = open(&memory).await;
    log.save_vote(&Vote::new_committed(5, 1)).await.unwrap();
    let mut index = 0;
    while let Some(payload) = machine.state(|state| next(state, index)) {
        let entry = EntryOf::<Types> { log_id: log_id::<Types>(5, 1, index), payload };
        log.append([entry.clone()], IOFlushed::noop()).await.unwrap();
        log.save_committed(Some(entry.log_id)).await.unwrap();
        machine.apply(stream::iter([Ok((entry, None))])).await.unwrap();
        if index == COVERED {
            machine.build_snapshot().await.unwrap();
            log.purge(log_id::<Types>(5, 1, COVERED - 2)).await.unwrap();
        }
        index += 1;
    }
    let state = machine.state(State::clone);
    disk.close().await;
    (memory, state)
}

/// The state that a database holds, with all entries of its log; and its vote.
async fn read(memory: &Memory) -> (State, Option<(u64, u64)>) {
    let (disk, mut log, mut machine) = open(memory).await;
    let covered = machine.applied_state().await.unwrap().0.unwrap().index;
    let entries = log.try_get_log_entries(covered + 1..).await.unwrap();
    machine.apply(stream::iter(entries.into_iter().map(|entry| Ok((entry, None))))).await.unwrap();
    let vote = log.read_vote().await.unwrap().map(|vote| (vote.leader_id.term, vote.leader_id.voted_for));
    let state = machine.state(State::clone);
    disk.close().await;
    (state, vote)
}

/// The records of a database, by table and key.
fn records(memory: &Memory) -> BTreeMap<String, String> {
    let database = Database::builder().create_with_backend(memory.clone()).unwrap();
    let transaction = database.begin_read().unwrap();
    let mut records = BTreeMap::new();
    for name in ["log", "snapshot"] {
        let table = TableDefinition::<'_, u64, &[u8]>::new(name);
        for row in transaction.open_table(table).unwrap().iter().unwrap() {
            let (key, record) = row.unwrap();
            records.insert(format!("{name} {}", key.value()), hex::encode(record.value()));
        }
    }
    let meta = TableDefinition::<'_, &str, &[u8]>::new("meta");
    for row in transaction.open_table(meta).unwrap().iter().unwrap() {
        let (key, record) = row.unwrap();
        records.insert(format!("meta {}", key.value()), hex::encode(record.value()));
    }
    records
}

/// The lines of a database.
fn dump(memory: &Memory) -> String {
    let mut bytes = vec![0; memory.len().unwrap() as usize];
    memory.read(0, &mut bytes).unwrap();
    let mut text = format!("{}\n", bytes.len());
    for (number, line) in bytes.chunks(LINE_BYTES).enumerate() {
        if line.iter().any(|byte| *byte != 0) {
            let _ = writeln!(text, "{:x} {}", number * LINE_BYTES, hex::encode(line));
        }
    }
    text
}

/// The database of such lines.
fn load(text: &str) -> Memory {
    let (bytes, lines) = text.split_once('\n').unwrap();
    let memory = Memory::default();
    memory.set_len(bytes.parse().unwrap()).unwrap();
    for line in lines.lines() {
        let (offset, bytes) = line.split_once(' ').unwrap();
        memory.write(u64::from_str_radix(offset, 16).unwrap(), &hex::decode(bytes).unwrap()).unwrap();
    }
    memory
}

#[tokio::test]
async fn the_first_format_is_read_for_ever() {
    let (made, today) = make().await;
    let (frozen, vote) = read(&load(FORMAT_1)).await;
    assert_eq!(vote, Some((5, 1)));
    assert_eq!(frozen.view(), today.view());
    assert_eq!(frozen, today, "the same commands lead to the same state in every build");
    let (then, now) = (records(&load(FORMAT_1)), records(&made));
    let logged = (COVERED - 1..15).map(|index| format!("log {index}"));
    let rest = ["committed", "node", "purged", "snapshot", "vote"].map(|name| format!("meta {name}"));
    let expected: BTreeSet<String> = logged.chain(rest).chain(["snapshot 0".to_owned()]).collect();
    assert_eq!(then.keys().cloned().collect::<BTreeSet<_>>(), expected);
    for (name, record) in &then {
        let advice = "format 1 lies on disks in the field: leave it, add a format, and read both";
        assert_eq!(now.get(name), Some(record), "{name} is written otherwise: {advice}");
    }
    // What is shown of it is pinned apart from how it is held.
    let shown = (
        frozen.epoch(),
        frozen.level(),
        frozen.versions(&golden::digits()),
        frozen.rollout(&golden::digits()),
    );
    expect_file!["frozen/format1.state.txt"].assert_eq(&format!("{shown:#?}\n{:#?}\n", frozen.view()));
    // The lines hold a database whole.
    assert_eq!(read(&load(&dump(&made))).await.0, today);
}
