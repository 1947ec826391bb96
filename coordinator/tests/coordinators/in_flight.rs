//! What is in the log and not agreed on yet when something else begins: the one who asked for it has given up, and it is made
//! all the same.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use redb::StorageBackend;
use redb::backends::InMemoryBackend;
use roost_protocol::messages::control::{
    Answer, Change, ControlRequest, ControlResponse, Query, Reconfigure, Reconfigured,
};
use roost_protocol::{ControlError, Epoch, Label, ModelVersion, NodeId, NodeName, RequestId, Version};
use tokio::time::Instant;

use crate::party::{Operator, PATIENCE, Party, Start, ask_at, commit, digits, files_of, stop_all};

/// A disk that syncs nothing while it is held up. Clones are the same disk.
#[derive(Debug, Clone, Default)]
struct SlowDisk(Arc<Held>);

#[derive(Debug, Default)]
struct Held {
    disk: InMemoryBackend,
    held: Mutex<bool>,
    released: Condvar,
}

impl SlowDisk {
    fn hold_up(&self, held: bool) {
        *self.0.held.lock().unwrap() = held;
        self.0.released.notify_all();
    }
}

impl StorageBackend for SlowDisk {
    fn len(&self) -> io::Result<u64> {
        self.0.disk.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.disk.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.disk.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        let held = self.0.held.lock().unwrap();
        drop(self.0.released.wait_while(held, |held| *held).unwrap());
        self.0.disk.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.disk.write(offset, data)
    }
}

/// What the first coordinator answers, once.
async fn ask_first(
    party: &Party,
    operator: &Operator,
    request: &ControlRequest,
) -> Result<ControlResponse, ControlError> {
    ask_at(&operator.control, party.address(1), request).await
}

async fn reconfigure(operator: &Operator, asked: Reconfigure) {
    let done = operator.ask(&ControlRequest::Reconfigure(asked)).await.unwrap();
    assert!(matches!(done, ControlResponse::Reconfigured(_)), "{done:?}");
}

async fn votes(operator: &Operator, node: u64) -> bool {
    let Answer::Members(summary) = operator.query(Query::Members).await else { panic!("no members") };
    assert!(!summary.changing, "{summary:?}");
    summary.members.iter().any(|member| member.node == NodeId(node) && member.voter)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_version_in_flight_counts_when_a_vote_is_given() {
    let (party, disk) = (Party::new(3), SlowDisk::default());
    // The second cannot take bundles: a file lies where their folder belongs.
    let obstacle = party.folder(2).join("bundles/blobs");
    std::fs::create_dir_all(party.folder(2).join("bundles")).unwrap();
    std::fs::write(&obstacle, "").unwrap();
    let first = Start { storage: Some(Box::new(disk.clone())), ..Start::default() };
    let (second, third) = (party.start(2, Start::default()), party.start(3, Start::default()));
    let (first, second, third) = tokio::join!(party.start(1, first), second, third);
    let members = [first, second, third].map(|member| Some(member.unwrap()));
    let operator = party.operator().await;
    let promote = |nodes: &[u64]| Reconfigure::Change {
        promote: nodes.iter().copied().map(NodeId).collect(),
        remove: BTreeSet::new(),
    };
    // The first leads alone, the second learns.
    reconfigure(&operator, Reconfigure::TransferLeader { to: Some(NodeId(1)) }).await;
    let remove = [NodeId(2), NodeId(3)].into();
    reconfigure(&operator, Reconfigure::Change { promote: BTreeSet::new(), remove }).await;
    let name = NodeName::new("c2").unwrap();
    let add = ControlRequest::Reconfigure(Reconfigure::Add { name, address: party.address(2).to_owned() });
    let added = operator.ask(&add).await.unwrap();
    assert_eq!(added, ControlResponse::Reconfigured(Reconfigured::Added(NodeId(2))));
    let digest = operator.upload(b"one").await.digest();

    // A push of which nobody knows what became.
    disk.hold_up(true);
    let push = ControlRequest::Change {
        request: RequestId(1 << 64),
        sent: Epoch::default(),
        change: commit(digest),
    };
    let error = ask_first(&party, &operator, &push).await.unwrap_err();
    assert!(matches!(error, ControlError::NoQuorum { .. }), "{error}");
    let vote = ControlRequest::Reconfigure(promote(&[2]));
    let error = ask_first(&party, &operator, &vote).await.unwrap_err();
    assert!(matches!(error, ControlError::NoQuorum { .. }), "{error}");
    disk.hold_up(false);

    // It was made, and behind it is everything that was in the log.
    let version = ModelVersion { model: digits(), version: Version(1) };
    let label = Label::new("l").unwrap();
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) =
        operator.change(Change::SetLabel { version: version.clone(), label: label.clone() }).await
    {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!votes(&operator, 2).await, "a voter does not hold what a version is made of");
    let error = ask_first(&party, &operator, &vote).await.unwrap_err();
    let ControlError::MembersNotReady { reason } = &error else { panic!("{error}") };
    assert_eq!(reason, "c2 does not hold 1 bundles yet");
    // It gets its vote once it holds the bundle.
    std::fs::remove_file(&obstacle).unwrap();
    reconfigure(&operator, promote(&[2])).await;
    assert!(votes(&operator, 2).await);
    let list = party.folder(2).join("bundles/bundles").join(files_of(b"one").digest().to_string());
    assert!(list.exists());
    stop_all(members).await;
}
