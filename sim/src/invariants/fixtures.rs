//! What the tests of invariants are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use redb::backends::InMemoryBackend;
use redb::{Database, StorageBackend};
use roost_coordinator::raft::record::{self, LogIdRecord, VoteRecord};
use roost_protocol::manifest::{EngineChoice, Manifest, Replicas};
use roost_protocol::messages::control::{RolloutEvent, RolloutEventKind, RolloutSummary, VersionSummary};
use roost_protocol::ring::Speed;
use roost_protocol::traffic::{KeyHash, Traffic};
use roost_protocol::view::{HostedVersion, Model, Node, NodeProfile, NodeState, Published, SoftState, View};
use roost_protocol::{ClusterId, Digest, Epoch, ModelName, NodeId, NodeName, Revision, Target, Version};

use super::End;
use crate::history::{Answer, Call, Op, Return};
use crate::remains::{LOG, META, Raft, Remains, Standing};

/// The model that all is about.
pub fn alpha() -> ModelName {
    ModelName::new("alpha").unwrap()
}

/// So many seconds.
pub fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// An epoch of the first generation.
pub fn epoch(index: u64) -> Epoch {
    Epoch { generation: 0, index }
}

/// The end of a run in which nothing happened.
pub fn end() -> End {
    End {
        ops: Vec::new(),
        answers: Vec::new(),
        views: BTreeMap::new(),
        models: BTreeMap::new(),
        last: Published::default(),
        remains: Vec::new(),
    }
}

/// Traffic that goes to one version.
pub fn traffic(revision: u64, stable: u32) -> Traffic {
    Traffic { revision: Revision(revision), stable: Version(stable), canary: None, previous: None }
}

/// A view of `alpha` with the versions from 1 on that are hosted, on the nodes 1, 2, …, which are called w1,
/// w2, …
pub fn view(index: u64, traffic: Traffic, versions: u32, nodes: u64) -> View {
    let node = |id: u64| Node {
        name: NodeName::new(&format!("w{id}")).unwrap(),
        address: format!("w{id}:7400"),
        state: NodeState::Active,
        hold: None,
        profile: NodeProfile {
            speed: Speed::default(),
            zone: String::new(),
            labels: BTreeMap::new(),
            memory_mib: 1024,
            isa: "simulated".to_owned(),
            engines: [EngineChoice::Native].into(),
        },
    };
    let hosted = |version: u32| HostedVersion {
        digest: Digest::of(&version.to_le_bytes()),
        bytes: 10,
        manifest: Arc::new(Manifest { replicas: Replicas::All, ..Manifest::default() }),
        excluded: BTreeSet::new(),
        since: 1,
    };
    let versions = (1..=versions).map(|version| (Version(version), hosted(version))).collect();
    View {
        cluster: ClusterId(7),
        epoch: epoch(index),
        coordinators: BTreeMap::new(),
        nodes: (1..=nodes).map(|id| (NodeId(id), node(id))).collect(),
        models: [(alpha(), Arc::new(Model { traffic, versions, labels: BTreeMap::new() }))].into(),
    }
}

/// A view with a soft state that says nothing.
pub fn published(view: View) -> Published {
    Published::new(Some(Arc::new(view)), Arc::new(SoftState::default()))
}

/// An operation on `alpha` by `op1`, from when until when, in seconds.
pub fn op(invoked: u64, call: Call, returned: Option<(u64, Return)>) -> Op {
    let returned = returned.map(|(seconds, returned)| (at(seconds), returned));
    Op { client: "op1".to_owned(), model: alpha(), call, invoked: at(invoked), returned, epoch: None }
}

/// What the last read of the versions of `alpha` said: their notes and digests.
pub fn read_versions(at: u64, versions: &[(&str, Digest)]) -> Arc<Op> {
    let versions = versions.iter().zip(1..).map(|((note, digest), number)| VersionSummary {
        version: Version(number),
        digest: *digest,
        bytes: 10,
        pushed_by: "op1".to_owned(),
        pushed_at_ms: 0,
        note: (*note).to_owned(),
    });
    Arc::new(op(at, Call::ReadVersions, Some((at, Return::Versions(versions.collect())))))
}

/// What the last read of the rollout of `alpha` said: its history, one revision after the other, by `op1`.
pub fn read_history(at: u64, kinds: &[RolloutEventKind]) -> Arc<Op> {
    let event = |(kind, revision): (&RolloutEventKind, u64)| RolloutEvent {
        at_ms: 0,
        by: "op1".to_owned(),
        kind: kind.clone(),
        revision: Revision(revision),
    };
    let history: Vec<RolloutEvent> = kinds.iter().zip(1..).map(event).collect();
    let summary = RolloutSummary { traffic: traffic(history.len() as u64, 1), rollout: None, history };
    Arc::new(op(at, Call::ReadRollout, Some((at, Return::Rollout(Box::new(summary))))))
}

/// An answer of version 1 of `alpha`, on w1, to a request by the traffic's first revision with a key.
pub fn answer() -> Answer {
    Answer {
        client: "user1".to_owned(),
        target: Target::Split(alpha()),
        key: Some(KeyHash::of(b"key")),
        invoked: at(10),
        returned: at(11),
        asked_at: Some(epoch(1)),
        version: Version(1),
        revision: Revision(1),
        epoch: epoch(1),
        fallback: false,
        node: NodeId(1).to_string(),
        images: vec![0],
        probs: Vec::new(),
    }
}

/// A sound coordinator with a log of blank entries, each with its index and term, and a snapshot up to an
/// index.
pub fn remains(node: &str, log: &[(u64, u64)], snapshot: Option<u64>) -> Remains {
    let entry = |(index, term): &(u64, u64)| {
        // As the product lays a blank one out.
        let bytes = postcard::to_stdvec(&(LogIdRecord::new(*term, *index), 0u32)).unwrap();
        (*index, postcard::from_bytes(&bytes).unwrap())
    };
    let raft = Raft { log: log.iter().map(entry).collect(), vote: None, snapshot };
    Remains {
        node: node.to_owned(),
        raft: Some(Ok(raft)),
        bundles: BTreeMap::new(),
        cache: BTreeMap::new(),
        standing: Standing::Sound,
    }
}

/// An image that outlives its database.
#[derive(Debug, Clone, Default)]
struct Image(Arc<InMemoryBackend>);

impl StorageBackend for Image {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}

/// A coordinator's database: so many blank entries behind a snapshot up to an index.
pub fn database(entries: u64, snapshot: Option<u64>) -> Vec<u8> {
    let image = Image::default();
    let database = Database::builder().create_with_backend(image.clone()).unwrap();
    let transaction = database.begin_write().unwrap();
    {
        let first = snapshot.map_or(0, |snapshot| snapshot + 1);
        let mut log = transaction.open_table(LOG).unwrap();
        for index in first..first + entries {
            let blank = record::seal("an entry", &(LogIdRecord::new(1, index), 0u32)).unwrap();
            log.insert(index, blank.as_slice()).unwrap();
        }
        let mut meta = transaction.open_table(META).unwrap();
        let vote = record::seal("the vote", &None::<VoteRecord>).unwrap();
        meta.insert("vote", vote.as_slice()).unwrap();
        // Its last entry, and a membership of nobody.
        let nobody = (None::<LogIdRecord>, (Vec::<BTreeSet<u64>>::new(), BTreeMap::<u64, u8>::new()));
        let covers = snapshot.map(|last| (Some(LogIdRecord::new(1, last)), nobody));
        let covers = record::seal("the snapshot", &covers).unwrap();
        meta.insert("snapshot", covers.as_slice()).unwrap();
    }
    transaction.commit().unwrap();
    drop(database);
    let mut bytes = vec![0; image.len().unwrap() as usize];
    image.read(0, &mut bytes).unwrap();
    bytes
}
