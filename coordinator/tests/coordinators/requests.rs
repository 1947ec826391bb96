//! Requests: who may ask, that each has one outcome, and what becomes of reports.

use std::time::Duration;

use roost_coordinator::peer::{PeerRequest, PeerResponse};
use roost_coordinator::raft::network::RaftMessage;
use roost_coordinator::raft::record::VoteRecord;
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{
    Answer, Change, ControlRequest, ControlResponse, Heartbeat, Hello, Outcome, Query, RolloutState,
};
use roost_protocol::quic::{Role, Service};
use roost_protocol::view::Liveness;
use roost_protocol::{
    ClusterId, CommandError, ControlError, Epoch, Incarnation, ModelVersion, NodeId, RequestId, Version,
};
use tokio::time::Instant;

use crate::party::{Operator, PATIENCE, Party, Worker, ask_at, commit, digits, files_of, stop_all};

async fn start(operator: &Operator, version: u32) {
    let target = ModelVersion { model: digits(), version: Version(version) };
    let start = Change::StartRollout { target, weight: "20%".parse().unwrap() };
    operator.change(start).await.unwrap();
}

/// Reports until the rollout is as wanted.
async fn report_until(operator: &Operator, workers: &[Worker], ready: &[u32], wanted: RolloutState) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        for worker in workers {
            worker.is_heard(ready).await;
        }
        let Answer::Rollout(summary) = operator.query(Query::Rollout(digits())).await else { panic!() };
        if summary.rollout.as_ref().is_some_and(|rollout| rollout.state == wanted) {
            return;
        }
        assert!(Instant::now() < deadline, "{summary:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_has_one_outcome_whenever_it_is_asked_again() {
    let party = Party::new(3);
    let members = party.members().await;
    let operator = party.operator().await;

    // Nothing was reserved: refused for good, also after it was reserved.
    let (early, digest) = (RequestId(1 << 64), files_of(b"one").digest());
    let refused = operator.change_as(early, commit(digest)).await.unwrap_err();
    assert!(matches!(refused, ControlError::Refused(CommandError::NotReserved { .. })), "{refused}");
    operator.push(b"one").await;
    assert_eq!(operator.change_as(early, commit(digest)).await.unwrap_err(), refused);

    // A commit that is sent again, and again by way of another coordinator, makes one version.
    let digest = operator.upload(b"two").await.digest();
    let pushed = operator.change_as(RequestId(2 << 64), commit(digest)).await.unwrap();
    assert_eq!(pushed.outcome, Outcome::Pushed { version: Version(2), stable: false, existing: false });
    for number in 1..=3 {
        let request = RequestId(2 << 64);
        let again = ControlRequest::Change { request, sent: Epoch::default(), change: commit(digest) };
        let again = ask_at(&operator.control, party.address(number), &again).await.unwrap();
        assert_eq!(again, ControlResponse::Done(pushed.clone()));
    }

    // Too early a promotion is refused for good.
    let workers = [party.worker("w1", 11).await, party.worker("w2", 12).await];
    for (worker, request) in workers.iter().zip(1u128..) {
        let request = RequestId(10 << 64 | request);
        let join = ControlRequest::Change { request, sent: Epoch::default(), change: worker.join() };
        worker.ask(join).await.unwrap();
        worker.is_heard(&[1]).await;
    }
    start(&operator, 2).await;
    let promote = || Change::Promote { model: digits() };
    let (hasty, due) = (RequestId(3 << 64), RequestId(4 << 64));
    let refused = operator.change_as(hasty, promote()).await.unwrap_err();
    let not_ready =
        matches!(&refused, ControlError::Refused(CommandError::NotReady { ready: 0, needed: 2, .. }));
    assert!(not_ready, "{refused}");
    report_until(&operator, &workers, &[1, 2], RolloutState::Running).await;
    assert_eq!(operator.change_as(hasty, promote()).await.unwrap_err(), refused);

    // One that went through is told again, also while the next rollout is not ready.
    let promoted = operator.change_as(due, promote()).await.unwrap();
    assert!(matches!(promoted.outcome, Outcome::Rerouted { .. }));
    operator.push(b"three").await;
    assert_eq!(operator.change_as(due, promote()).await.unwrap(), promoted);
    start(&operator, 3).await;
    assert_eq!(operator.change_as(due, promote()).await.unwrap(), promoted);
    let Answer::Rollout(summary) = operator.query(Query::Rollout(digits())).await else { panic!() };
    assert_eq!((summary.traffic.stable, summary.rollout.unwrap().target), (Version(2), Version(3)));
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_speaks_for_itself_alone() {
    let party = Party::new(1);
    let members = party.members().await;
    let operator = party.operator().await;
    operator.leader().await;
    let (one, other) = (party.worker("w1", 11).await, party.worker("w2", 12).await);
    // Who is no member yet is answered, and kept nowhere.
    one.is_heard(&[]).await;
    let change = |request, change| ControlRequest::Change { request, sent: Epoch::default(), change };
    one.ask(change(RequestId(1 << 64), one.join())).await.unwrap();
    one.is_heard(&[1]).await;
    let Answer::Cluster(cluster) = operator.query(Query::Cluster).await else { panic!() };
    assert_eq!(cluster.soft.nodes.keys().copied().collect::<Vec<_>>(), [NodeId(11)]);

    let wrong_node = |answer: Result<ControlResponse, ControlError>| {
        assert!(matches!(answer, Err(ControlError::WrongNode { .. })), "{answer:?}");
    };
    let forbidden = |answer: Result<ControlResponse, ControlError>| {
        assert!(matches!(answer, Err(ControlError::Forbidden { .. })), "{answer:?}");
    };
    wrong_node(ask_at(&other.control, party.address(1), &one.report(&[])).await);
    let drain = Change::Drain { node: one.node, draining: true };
    wrong_node(other.ask(change(RequestId(2 << 64), drain)).await);
    forbidden(other.ask(change(RequestId(3 << 64), one.join())).await);
    forbidden(other.ask(change(RequestId(4 << 64), Change::Undo { model: digits() })).await);
    let Answer::Cluster(cluster) = operator.query(Query::Cluster).await else { panic!() };
    assert_eq!(cluster.soft.nodes[&NodeId(11)].versions.len(), 1);
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_hears_that_a_later_start_of_it_was_heard() {
    let party = Party::new(1);
    let members = party.members().await;
    party.operator().await.leader().await;
    let one = party.worker("w1", 11).await;
    let (request, sent) = (RequestId(1), Epoch::default());
    one.ask(ControlRequest::Change { request, sent, change: one.join() }).await.unwrap();
    let report = |start| {
        let ControlRequest::Heartbeat(heartbeat) = one.report(&[]) else { panic!("no report") };
        ControlRequest::Heartbeat(Heartbeat { incarnation: Incarnation(start), ..heartbeat })
    };
    assert!(matches!(one.ask(report(5)).await, Ok(ControlResponse::Heard { .. })));
    let outlived = ControlError::Outlived { known: Incarnation(5), reported: Incarnation(4) };
    assert_eq!(one.ask(report(4)).await, Err(outlived));
    assert!(matches!(one.ask(report(6)).await, Ok(ControlResponse::Heard { .. })));
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_joins_as_itself_alone() {
    let party = Party::new(1);
    let members = party.members().await;
    party.operator().await.leader().await;
    let one = party.worker("w1", 11).await;
    let join = |request: u128, worker: &Worker| {
        let request = RequestId(request << 64);
        ControlRequest::Change { request, sent: Epoch::default(), change: worker.join() }
    };
    // Over a connection of another node, or of none.
    for node in [Some(NodeId(12)), None] {
        let hello = Hello { cluster: None, node };
        let other = party.links("w1", Role::Worker, Service::Control, hello).await;
        let answer = ask_at(&other, party.address(1), &join(1, &one)).await;
        assert!(matches!(answer, Err(ControlError::Forbidden { .. })), "{answer:?}");
    }
    one.ask(join(2, &one)).await.unwrap();
    // Another machine, with a copy of the first one's data folder.
    let copy = party.worker("w2", 11).await;
    let answer = copy.ask(join(3, &copy)).await;
    let taken = |error: &CommandError| matches!(error, CommandError::IdTaken { node: NodeId(11), .. });
    assert!(matches!(&answer, Err(ControlError::Refused(error)) if taken(error)), "{answer:?}");
    one.ask(join(4, &one)).await.unwrap();
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_speaks_for_itself_alone() {
    let party = Party::new(3);
    let mut members = party.members().await;
    let operator = party.operator().await;
    operator.push(b"one").await;
    // Whoever has not heard of a member yet takes it at its word.
    for member in members.iter_mut().flatten() {
        member.publishes(|published| published.view.is_some()).await;
    }
    let vote: VoteRecord = postcard::from_bytes(&[99, 1, 1]).unwrap();
    let append = RaftMessage::Append { vote, previous: None, entries: Vec::new(), committed: None };
    let query = Box::new(ControlRequest::Query(Query::Models));
    let requests = [
        PeerRequest::Raft { to: NodeId(3), message: Box::new(append) },
        PeerRequest::Hold { files: files_of(b"one"), holders: Vec::new() },
        PeerRequest::Forward { by: "anna".to_owned(), request: query },
        PeerRequest::Soft(Box::default()),
    ];
    for request in &requests {
        // The certificate of the second, and the id of the first.
        let answer = party.peer(2, 1, 3, request).await;
        assert!(matches!(answer, PeerResponse::Failed(ControlError::WrongNode { .. })), "{answer:?}");
    }
    for request in &requests[1..] {
        let answer = party.peer(1, 1, 3, request).await;
        assert!(!matches!(answer, PeerResponse::Failed(ControlError::WrongNode { .. })), "{answer:?}");
    }
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_undo_waits_for_replicas_and_is_not_undone() {
    let party = Party::new(1);
    let members = party.members().await;
    let operator = party.operator().await;
    operator.push(b"one").await;
    operator.push(b"two").await;
    let workers = [party.worker("w1", 11).await, party.worker("w2", 12).await];
    for (worker, request) in workers.iter().zip(1u128..) {
        let request = RequestId(10 << 64 | request);
        let join = ControlRequest::Change { request, sent: Epoch::default(), change: worker.join() };
        worker.ask(join).await.unwrap();
    }
    start(&operator, 2).await;
    report_until(&operator, &workers, &[1, 2], RolloutState::Running).await;
    operator.change(Change::Promote { model: digits() }).await.unwrap();
    let undo = |request: u128| ControlRequest::Change {
        request: RequestId(request << 64),
        sent: Epoch::default(),
        change: Change::Undo { model: digits() },
    };
    let stable = async || {
        let Answer::Rollout(summary) = operator.query(Query::Rollout(digits())).await else { panic!() };
        summary.traffic.stable
    };
    // They serve the second version alone: going back would leave nobody to answer.
    for worker in &workers {
        worker.is_heard(&[2]).await;
    }
    let early = ask_at(&operator.control, party.address(1), &undo(1)).await.unwrap_err();
    assert!(matches!(early, ControlError::NotReady { ready: 0, needed: 2, .. }), "{early}");
    assert!(early.retryable());
    assert_eq!(stable().await, Version(2));
    // Nothing was decided: the same request goes through once they are ready.
    for worker in &workers {
        worker.is_heard(&[1, 2]).await;
    }
    let done = operator.ask(&undo(1)).await.unwrap();
    assert_eq!(stable().await, Version(1));
    assert_eq!(operator.ask(&undo(1)).await.unwrap(), done);
    let again = operator.ask(&undo(2)).await.unwrap_err();
    assert_eq!(again, ControlError::Refused(CommandError::NothingToUndo { model: digits() }));
    assert_eq!(stable().await, Version(1));
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_cluster_is_turned_away_however_it_comes() {
    let party = Party::new(1);
    let members = party.members().await;
    party.operator().await.leader().await;
    // The endpoint of this test greets without a cluster, as that of a node that just learnt its own did.
    let theirs = ClusterId(99);
    let stranger = Hello { cluster: Some(theirs), node: Some(NodeId(9)) };
    let wrong = |error: &ControlError| *error == ControlError::WrongCluster { ours: ClusterId(1), theirs };

    let control = party.links("eve", Role::Operator, Service::Control, stranger.clone()).await;
    let answer = ask_at(&control, party.address(1), &ControlRequest::Query(Query::Models)).await;
    assert!(answer.as_ref().is_err_and(wrong), "{answer:?}");

    let raft = party.links("c1", Role::Coordinator, Service::Raft, stranger.clone()).await;
    let link = raft.to(party.address(1)).await.unwrap();
    let probe = PeerRequest::Probe { group: Vec::new() };
    let answer: PeerResponse = link.ask((Kind::RaftRequest, &probe), Kind::RaftResponse).await.unwrap();
    assert!(matches!(&answer, PeerResponse::Failed(error) if wrong(error)), "{answer:?}");
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn followers_serve_what_the_leader_heard_also_after_a_restart() {
    let party = Party::new(3);
    let mut members = party.members().await;
    let operator = party.operator().await;
    let leader = operator.leader().await;
    let worker = party.worker("w1", 11).await;
    let join =
        ControlRequest::Change { request: RequestId(1 << 64), sent: Epoch::default(), change: worker.join() };
    worker.ask(join).await.unwrap();
    worker.is_heard(&[7]).await;
    let hears = |published: &roost_protocol::view::Published| {
        published.soft.stage(NodeId(11), &digits(), Version(7)).is_some()
    };
    for member in members.iter_mut().flatten() {
        member.publishes(hears).await;
    }
    // Nothing changes after that, and yet one that starts again comes to know it.
    let follower = if leader == 1 { 2 } else { 1 };
    members[follower - 1].take().unwrap().stop().await;
    let mut back = party.member(follower).await;
    back.publishes(hears).await;
    members[follower - 1] = Some(back);
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_without_a_quorum_hears_nobody() {
    let party = Party::new(3);
    let mut members = party.members().await;
    let operator = party.operator().await;
    let leader = operator.leader().await;
    let worker = party.worker("w1", 11).await;
    let first = worker.is_heard(&[]).await;
    let followers: Vec<usize> = (1..=3).filter(|number| *number != leader).collect();
    stop_all(followers.iter().map(|number| members[number - 1].take())).await;
    let deadline = Instant::now() + PATIENCE;
    while ask_at(&worker.control, party.address(leader), &worker.report(&[])).await.is_ok() {
        assert!(Instant::now() < deadline, "a leader that leads nobody takes reports");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    // Requests are turned away at once, for a quorum may be elsewhere.
    let query = ControlRequest::Query(Query::Models);
    let answer = ask_at(&operator.control, party.address(leader), &query).await;
    assert!(answer.is_err_and(|error| error.retryable()));
    // With one of them back it is heard again, and what is published goes on from where it was.
    members[followers[0] - 1] = Some(party.member(followers[0]).await);
    let again = worker.is_heard(&[]).await;
    assert!(again >= first);
    let member = members[leader - 1].as_mut().unwrap();
    member.publishes(|published| published.soft.settled).await;
    let soft = member.published.borrow().soft.clone();
    assert!(soft.nodes.values().all(|report| report.liveness == Liveness::Live));
    stop_all(members).await;
}
