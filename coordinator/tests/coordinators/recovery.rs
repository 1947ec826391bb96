//! A group of one out of one database of three: what it keeps, and that those of the old group cannot reach into it.

use std::sync::Arc;
use std::time::Duration;

use redb::StorageBackend;
use redb::backends::FileBackend;
use roost_coordinator::GroupMember;
use roost_coordinator::recover::{RecoverError, Recovery, Source, look, recover};
use roost_protocol::messages::control::{
    Answer, ControlRequest, ControlResponse, Outcome, Query, Reconfigure,
};
use roost_protocol::snapshot::SnapshotHeader;
use roost_protocol::{ClusterId, ControlError, Epoch, NodeId, NodeName, Version};

use crate::party::{Inline, Operator, Party, Start, ask_at, digits, stop_all};

/// Long enough for the old group to elect a leader, and to call those whom it takes for members.
const ELECTIONS: Duration = Duration::from_secs(4);
/// The id that the founder gets.
const NEW: u64 = 71;

fn storage(party: &Party, number: usize) -> Box<dyn StorageBackend> {
    let path = party.folder(number).join("raft.redb");
    let file = std::fs::File::options().read(true).write(true).create(true).truncate(false).open(path);
    Box::new(FileBackend::new(file.unwrap()).unwrap())
}

fn recovery(party: &Party, source: Source) -> Recovery {
    let founder = GroupMember { name: NodeName::new("c1").unwrap(), address: party.address(1).to_owned() };
    Recovery { source, node: NodeId(NEW), founder, generation_min: 0 }
}

/// Asks the first coordinator alone: the others may be of the old group.
async fn ask_first(
    party: &Party,
    operator: &Operator,
    request: &ControlRequest,
) -> Result<ControlResponse, ControlError> {
    loop {
        match ask_at(&operator.control, party.address(1), request).await {
            Err(error) if error.retryable() => tokio::time::sleep(Duration::from_millis(20)).await,
            answer => return answer,
        }
    }
}

async fn epoch_of_first(party: &Party, operator: &Operator) -> Epoch {
    match ask_first(party, operator, &ControlRequest::Query(Query::Cluster)).await.unwrap() {
        ControlResponse::Answer(answer) => match *answer {
            Answer::Cluster(cluster) => cluster.epoch,
            other => panic!("{other:?}"),
        },
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_of_one_goes_on_and_the_old_one_cannot_reach_it() {
    let party = Party::new(3);
    let members = party.members().await;
    let operator = party.operator().await;
    let pushed = Outcome::Pushed { version: Version(1), stable: true, existing: false };
    assert_eq!(operator.push(b"one").await, pushed);
    let Answer::Cluster(before) = operator.query(Query::Cluster).await else { panic!("no cluster") };
    stop_all(members).await;

    let found = look(storage(&party, 1), Arc::new(Inline)).await.unwrap();
    assert_eq!(found.cluster, before.cluster);
    let done = recover(storage(&party, 1), Arc::new(Inline), recovery(&party, Source::Folder)).await.unwrap();
    assert_eq!((done.cluster, done.before, done.bundles.len()), (before.cluster, found.epoch, 1));
    assert_eq!(done.epoch, Epoch { generation: 2, ..found.epoch });
    let as_new = || Start { node: Some(NEW), cluster: Some(before.cluster), ..Start::default() };
    let first = party.start(1, as_new()).await.unwrap();
    assert!(epoch_of_first(&party, &operator).await > before.epoch);
    // Soft state is ordered by the term: that of the old group, however many elections it had, must not be ahead.
    let term = first.published.borrow().soft.term;
    assert!(term.0 >= 2 << 32, "{term}");
    let versions = ControlRequest::Query(Query::Versions(digits()));
    let held = ask_first(&party, &operator, &versions).await.unwrap();

    // The two others come back although they were said to be gone. They are a quorum of the old group and call its members.
    let second = party.start(2, Start { cluster: Some(before.cluster), ..Start::default() }).await.unwrap();
    let third = party.start(3, Start { cluster: Some(before.cluster), ..Start::default() }).await.unwrap();
    tokio::time::sleep(ELECTIONS).await;
    let epoch = epoch_of_first(&party, &operator).await;
    assert_eq!(epoch.generation, 2, "{epoch}");
    assert_eq!(ask_first(&party, &operator, &versions).await.unwrap(), held);
    let ControlResponse::Answer(answer) =
        ask_first(&party, &operator, &ControlRequest::Query(Query::Members)).await.unwrap()
    else {
        panic!("no answer")
    };
    let Answer::Members(summary) = *answer else { panic!("no members") };
    assert_eq!(summary.members.iter().map(|member| member.node).collect::<Vec<_>>(), [NodeId(NEW)]);
    // Nor is one of them taken in with a log that goes on where this group went another way.
    let name = NodeName::new("c2").unwrap();
    let add = Reconfigure::Add { name, address: party.address(2).to_owned() };
    let error = ask_first(&party, &operator, &ControlRequest::Reconfigure(add)).await.unwrap_err();
    assert!(matches!(error, ControlError::MembersRefused { .. }), "{error}");
    stop_all([Some(first), Some(second), Some(third)]).await;

    // Again, as when the node's identity could not be written.
    let again =
        recover(storage(&party, 1), Arc::new(Inline), recovery(&party, Source::Folder)).await.unwrap();
    assert_eq!(again.epoch.generation, 3);
}

#[tokio::test]
async fn what_does_not_fit_changes_nothing() {
    let party = Party::new(1);
    let member = party.member(1).await;
    let operator = party.operator().await;
    operator.push(b"one").await;
    member.stop().await;
    let found = look(storage(&party, 1), Arc::new(Inline)).await.unwrap();
    let header = |cluster| {
        let (coordinators, models) = (Default::default(), Vec::new());
        Box::new(SnapshotHeader {
            cluster,
            epoch: found.epoch,
            level: 1,
            at_ms: 0,
            coordinators,
            models,
            body_bytes: 0,
        })
    };
    let source = Source::Snapshot { header: header(found.cluster), body: b"no state".to_vec() };
    let error = recover(storage(&party, 1), Arc::new(Inline), recovery(&party, source)).await.unwrap_err();
    assert!(matches!(error, RecoverError::Body(_)), "{error}");
    // A state of another cluster than the header says.
    let body = roost_coordinator::recover::snapshot_body(storage(&party, 1), Arc::new(Inline)).await.unwrap();
    let source = Source::Snapshot { header: header(ClusterId(9)), body };
    let error = recover(storage(&party, 1), Arc::new(Inline), recovery(&party, source)).await.unwrap_err();
    assert!(matches!(error, RecoverError::Header { .. }), "{error}");
    assert_eq!(look(storage(&party, 1), Arc::new(Inline)).await.unwrap(), found);
    // A folder of another cluster.
    let other = Party::new(1);
    let member = other.start(1, Start { node: Some(5), ..Start::default() }).await.unwrap();
    let stranger = other.operator().await;
    stranger.push(b"one").await;
    member.stop().await;
    let body = roost_coordinator::recover::snapshot_body(storage(&party, 1), Arc::new(Inline)).await.unwrap();
    let source = Source::Snapshot { header: header(found.cluster), body };
    let error = recover(storage(&other, 1), Arc::new(Inline), recovery(&other, source)).await.unwrap_err();
    assert!(matches!(error, RecoverError::OtherCluster { .. }), "{error}");
    // No generation is left.
    let mut last = recovery(&party, Source::Folder);
    last.generation_min = u32::MAX;
    recover(storage(&party, 1), Arc::new(Inline), last.clone()).await.unwrap();
    let error = recover(storage(&party, 1), Arc::new(Inline), last).await.unwrap_err();
    assert!(matches!(error, RecoverError::Generations(u32::MAX)), "{error}");
}
