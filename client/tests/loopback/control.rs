//! The control plane.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt as _;
use roost_client::control::{PushError, PushProgress};
use roost_client::{Control, LocalBundle};
use roost_protocol::messages::control::{
    Answer, Change, ClusterSummary, ControlRequest, ControlResponse, Done, Heartbeat, Outcome, Query,
};
use roost_protocol::view::SoftState;
use roost_protocol::{
    ClusterId, CommandError, ControlError, Epoch, Incarnation, ModelName, NodeId, RequestId, Term, Version,
};

use crate::peer::{Cluster, Peer};

fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

fn done(outcome: Outcome) -> ControlResponse {
    ControlResponse::Done(Done { epoch: Epoch { generation: 1, index: 1 }, outcome })
}

fn not_leader(leader: &str) -> ControlResponse {
    ControlResponse::Failed(ControlError::NotLeader { leader: Some(leader.to_owned()) })
}

fn heartbeat(sequence: u64) -> Heartbeat {
    let (node, incarnation) = (NodeId(1), Incarnation(1));
    Heartbeat { node, incarnation, sequence, versions: Vec::new(), statistics: Vec::new() }
}

/// Makes the others name `peer` as the leader.
fn lead(cluster: &Cluster, leader: usize) {
    for (i, peer) in cluster.peers.iter().enumerate() {
        let address = cluster.peers[leader].address.clone();
        if i != leader {
            peer.rules(move |_| not_leader(&address));
        }
    }
}

#[tokio::test]
async fn a_change_finds_the_leader_and_keeps_its_identity() {
    let cluster = Cluster::start(3, 0).await;
    lead(&cluster, 2);
    let seen: Arc<Mutex<Vec<RequestId>>> = Arc::default();
    let requests = seen.clone();
    cluster.peers[2].rules(move |request| {
        let ControlRequest::Change { request, sent, .. } = request else { panic!("not a change") };
        assert_eq!(sent.index, 1);
        let mut requests = requests.lock().unwrap();
        requests.push(*request);
        match requests.len() {
            1 => ControlResponse::Failed(ControlError::NoQuorum { reason: "an election".to_owned() }),
            _ => done(Outcome::Applied),
        }
    });
    let client = cluster.client().await;
    client.control().promote(&digits()).await.unwrap();
    client.control().promote(&digits()).await.unwrap();
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 3);
    assert_eq!(seen[0], seen[1], "the second attempt of a change");
    assert_ne!(seen[1], seen[2], "another change");
}

#[tokio::test]
async fn a_refusal_is_final_and_silence_has_an_end() {
    let cluster = Cluster::start(2, 0).await;
    let client = cluster.client().await;
    let count = Arc::new(AtomicU32::new(0));
    for peer in &cluster.peers {
        let count = count.clone();
        peer.rules(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
            ControlResponse::Failed(CommandError::NoRollout { model: digits() }.into())
        });
    }
    let error = client.control().promote(&digits()).await.unwrap_err();
    assert_eq!(error, CommandError::NoRollout { model: digits() }.into());
    assert_eq!(count.load(Ordering::Relaxed), 1);
    let election = || ControlError::NoQuorum { reason: "an election".to_owned() };
    cluster.peers.iter().for_each(|peer| peer.rules(move |_| ControlResponse::Failed(election())));
    let change = Change::Undo { model: digits() };
    let error = client.control().change_within(change, Duration::from_millis(200)).await.unwrap_err();
    assert_eq!(error, election());
}

/// What a leader whose oldest outcome is later answers.
fn too_old(sent: Epoch) -> ControlResponse {
    let present = Epoch { generation: 1, index: 70_000 };
    let oldest = Epoch { generation: 1, index: 4_000 };
    ControlResponse::Failed(CommandError::RequestTooOld { sent, oldest, present }.into())
}

#[tokio::test]
async fn a_change_whose_view_lags_is_asked_for_anew_once() {
    let cluster = Cluster::start(1, 0).await;
    let seen: Arc<Mutex<Vec<(RequestId, u64)>>> = Arc::default();
    // Two refusals, at first with an attempt before them of which nobody knows what became.
    let refuse = |unknown: usize| {
        let requests = seen.clone();
        requests.lock().unwrap().clear();
        cluster.peers[0].rules(move |request| {
            let ControlRequest::Change { request, sent, .. } = request else { panic!("not a change") };
            let mut requests = requests.lock().unwrap();
            requests.push((*request, sent.index));
            match requests.len() {
                n if n <= unknown => {
                    ControlResponse::Failed(ControlError::NoQuorum { reason: "slow".to_owned() })
                }
                _ if sent.index < 4_000 => too_old(*sent),
                _ => done(Outcome::Applied),
            }
        });
    };
    let client = cluster.client().await;
    refuse(0);
    client.control().promote(&digits()).await.unwrap();
    {
        let seen = seen.lock().unwrap();
        assert_eq!(seen.iter().map(|(_, sent)| *sent).collect::<Vec<_>>(), [1, 70_000]);
        assert_ne!(seen[0].0, seen[1].0, "the same command under two epochs");
    }
    // An attempt may have made it: a second ticket could make it twice.
    refuse(1);
    let error = client.control().promote(&digits()).await.unwrap_err();
    assert!(matches!(error, ControlError::Refused(CommandError::RequestTooOld { .. })), "{error}");
    let seen = seen.lock().unwrap();
    assert_eq!(seen.len(), 2);
    assert_eq!(seen[0], seen[1]);
}

#[tokio::test]
async fn heartbeats_remember_the_leader() {
    let cluster = Cluster::start(2, 0).await;
    let dialler = cluster.dialler().await;
    let published = tokio::sync::watch::Sender::new(cluster.state(1, 0));
    let control = Control::new(dialler, published.subscribe(), Vec::new(), [1; 32]);
    lead(&cluster, 1);
    cluster.peers[1].rules(|_| ControlResponse::Heard { term: Term(5), epoch: Epoch::default() });
    for sequence in 1..=3 {
        assert_eq!(control.heartbeat(heartbeat(sequence)).await, Ok(Term(5)));
    }
    // So does one who is told that a later start of the node was heard.
    let outlived = || ControlError::Outlived { known: Incarnation(9), reported: Incarnation(1) };
    cluster.peers[0].rules(|_| panic!("it does not lead"));
    cluster.peers[1].rules(move |_| ControlResponse::Failed(outlived()));
    for sequence in 4..=5 {
        assert_eq!(control.heartbeat(heartbeat(sequence)).await, Err(outlived()));
    }
    // The leader is gone and nobody knows the next: an error at once, and another coordinator the next time.
    cluster.peers[1].rules(|_| ControlResponse::Failed(ControlError::NotLeader { leader: None }));
    cluster.peers[0].rules(|_| ControlResponse::Heard { term: Term(6), epoch: Epoch::default() });
    control.heartbeat(heartbeat(4)).await.unwrap_err();
    assert_eq!(control.heartbeat(heartbeat(5)).await, Ok(Term(6)));
}

fn bundle() -> LocalBundle {
    let weights: Vec<u8> = (0..3_000_000u32).map(|i| i as u8).collect();
    let files = [
        ("model.onnx", Bytes::from_static(b"graph")),
        ("model.toml", Bytes::from_static(b"replicas = 3")),
        ("weights.bin", weights.into()),
    ];
    LocalBundle::from_bytes(files.into_iter().map(|(name, bytes)| (name.to_owned(), bytes)).collect())
        .unwrap()
}

/// A leader as pushes see it: commits what its store holds whole.
fn takes_pushes(cluster: &Cluster, leader: usize) {
    let peer: &Peer = &cluster.peers[leader];
    let store = peer.store().clone();
    let reserved: Mutex<BTreeSet<String>> = Mutex::default();
    peer.rules(move |request| match request {
        ControlRequest::Query(Query::Cluster) => {
            ControlResponse::Answer(Box::new(Answer::Cluster(ClusterSummary {
                cluster: ClusterId(7),
                leader: NodeId(leader as u64 + 1),
                term: Term(1),
                epoch: Epoch { generation: 1, index: 1 },
                soft: SoftState::default(),
                statistics: BTreeMap::new(),
            })))
        }
        ControlRequest::Change { change: Change::ReservePush { files }, .. } => {
            reserved.lock().unwrap().insert(files.digest().to_string());
            done(Outcome::Reserved { known: false })
        }
        ControlRequest::Change { change: Change::CommitPush { digest, manifest, note, .. }, .. } => {
            let held = store.holds(digest).now_or_never().expect("memory is never waited for").unwrap();
            let text = digest.to_string();
            if !held || !reserved.lock().unwrap().contains(&text) {
                return ControlResponse::Failed(CommandError::NotReserved { digest: text }.into());
            }
            assert_eq!((manifest.replicas, note.as_str()), (bundle().manifest().replicas, "first"));
            done(Outcome::Pushed { version: Version(1), stable: true, existing: false })
        }
        other => panic!("{other:?}"),
    });
}

#[tokio::test]
async fn a_push_arrives_whole() {
    let cluster = Cluster::start(2, 0).await;
    lead(&cluster, 1);
    takes_pushes(&cluster, 1);
    let client = cluster.client().await;
    let mut progress = Vec::new();
    let (model, bundle) = (digits(), bundle());
    let pushed = client.control().push(&model, &bundle, "first", |step| progress.push(step)).await.unwrap();
    assert_eq!((pushed.version, pushed.stable), (Version(1), true));
    let list = cluster.peers[1].store().list(&bundle.files().digest()).await.unwrap();
    assert_eq!(&list, bundle.files());
    let bytes = bundle.files().bytes();
    assert_eq!(progress.pop(), Some(PushProgress::Committing));
    let to = cluster.peers[1].address.clone();
    assert_eq!(progress.pop(), Some(PushProgress::Uploading { to, sent: bytes, of: bytes }));
}

#[tokio::test]
async fn a_push_starts_over_at_the_next_leader() {
    let cluster = Cluster::start(2, 0).await;
    lead(&cluster, 0);
    takes_pushes(&cluster, 0);
    let client = cluster.client().await;
    let cluster = Arc::new(cluster);
    // The first leader loses its office half-way through the upload.
    let during = cluster.clone();
    let moved = AtomicU32::new(0);
    let (model, bundle) = (digits(), bundle());
    let push = client.control().push(&model, &bundle, "first", move |step| {
        if let PushProgress::Uploading { sent, of, .. } = step
            && sent > of / 2
            && moved.fetch_add(1, Ordering::Relaxed) == 0
        {
            lead(&during, 1);
            takes_pushes(&during, 1);
        }
    });
    assert_eq!(push.await.unwrap().version, Version(1));
    assert!(cluster.peers[1].store().holds(&bundle.files().digest()).await.unwrap());
}

#[tokio::test]
async fn a_file_that_changed_is_not_pushed() {
    let cluster = Cluster::start(1, 0).await;
    takes_pushes(&cluster, 0);
    let client = cluster.client().await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("model.onnx"), "graph").unwrap();
    let bundle = LocalBundle::open(folder.path()).await.unwrap();
    std::fs::write(folder.path().join("model.onnx"), "other").unwrap();
    let error = client.control().push(&digits(), &bundle, "first", |_| {}).await.unwrap_err();
    assert!(error.to_string().contains("model.onnx should have the digest"), "{error}");
    std::fs::remove_file(folder.path().join("model.onnx")).unwrap();
    let error = client.control().push(&digits(), &bundle, "first", |_| {}).await.unwrap_err();
    assert!(matches!(&error, PushError::Read { file, .. } if file == "model.onnx"), "{error}");
}
