//! Requests for inference.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_client::{Client, InferError, Response, Tensor};
use roost_protocol::limits::KEY_BYTES_MAX;
use tokio::time::Instant;

use crate::peer::{Cluster, Does};

fn scores() -> Tensor {
    Tensor::from_elements(&[2, 3], vec![0.1f32, 0.7, 0.2, 0.5, 0.3, 0.2]).unwrap()
}

async fn ask(client: &Client, key: &str) -> Result<Response, InferError> {
    client.infer("digits").key(key).input("x", scores()).send().await
}

#[tokio::test]
async fn a_request_and_its_answer() {
    let cluster = Cluster::start(2, 0).await;
    let client = cluster.client().await;
    let response = ask(&client, "user-1").await.unwrap();
    assert_eq!(response.output("x"), Some(&scores()));
    assert_eq!(response.output("y"), None);
    assert_eq!((response.version.0, response.revision.0, response.epoch.index), (1, 1, 1));
    assert_eq!((response.queue.as_micros(), response.compute.as_micros(), response.batch_rows), (7, 11, 3));
    assert_eq!((response.attempts, response.hedged, response.fallback), (1, false, false));
    let best: Vec<_> = response.labels(1).unwrap().into_iter().map(|row| row[0].label.clone()).collect();
    assert_eq!(best, ["one", "zero"]);
    // A key stays with its node; keys spread over nodes.
    let mut nodes: BTreeMap<String, u32> = BTreeMap::new();
    for i in 0..40 {
        let key = format!("user-{i}");
        let (first, second) = (ask(&client, &key).await.unwrap(), ask(&client, &key).await.unwrap());
        assert_eq!(first.node, second.node);
        *nodes.entry(first.node.to_string()).or_default() += 1;
    }
    assert_eq!(nodes.len(), 2, "{nodes:?}");
}

#[tokio::test]
async fn targets_pins_and_what_is_wrong_with_a_request() {
    let cluster = Cluster::start(2, 100).await;
    let client = cluster.client().await;
    let version = async |target: &str| {
        client.infer(target).input("x", scores()).send().await.map(|response| response.version.0)
    };
    assert_eq!(version("digits").await, Ok(2));
    assert_eq!(version("digits@1").await, Ok(1));
    let said = async |target: &str| version(target).await.unwrap_err().to_string();
    assert_eq!(said("digits@9").await, "digits@9 is not hosted; hosted: [1, 2]");
    assert_eq!(said("cats").await, "there is no model \"cats\"");
    assert_eq!(said("digits:prod").await, "no version of digits bears the label \"prod\"");
    assert!(said("Digits").await.starts_with("malformed message: a model name is made of a-z"));
    let twice = client.infer("digits").input("x", scores()).input("x", scores()).send().await.unwrap_err();
    assert_eq!(twice, InferError::DuplicateInput { input: "x".to_owned() });
    let long = "x".repeat(KEY_BYTES_MAX + 1);
    for error in [
        client.infer("digits").key(&long).send().await.unwrap_err(),
        client.infer("digits").input(&long, scores()).send().await.unwrap_err(),
        client.infer("digits").output(&long).send().await.unwrap_err(),
    ] {
        assert!(matches!(error, InferError::LimitExceeded { .. }), "{error}");
    }
}

#[tokio::test]
async fn keys_keep_their_version_and_the_share_is_that_of_the_weight() {
    let cluster = Cluster::start(2, 20).await;
    let (client, other) = (cluster.client().await, cluster.client().await);
    let mut on_canary = 0;
    for i in 0..200 {
        let key = format!("user-{i}");
        let version = ask(&client, &key).await.unwrap().version;
        assert_eq!(ask(&other, &key).await.unwrap().version, version);
        on_canary += u32::from(version.0 == 2);
    }
    assert!((20..=62).contains(&on_canary), "{on_canary}");
}

#[tokio::test]
async fn nodes_that_cannot_answer_are_passed_over() {
    let cluster = Cluster::start(3, 0).await;
    let client = cluster.client().await;
    let model = || "digits".to_owned();
    let not_here = InferError::NotHere { model: model(), version: 1, generation: 1, index: 1 };
    let executor = InferError::ExecutorFailed { reason: "panic".to_owned() };
    for error in [not_here, executor, InferError::Stopping, InferError::Overloaded { retry_after_us: 1 }] {
        cluster.peers[0].does(Does::Refuses(error.clone()));
        for i in 0..20 {
            ask(&client, &format!("user-{i}")).await.unwrap_or_else(|got| panic!("after {error}: {got}"));
        }
    }
    assert!(cluster.peers[0].requests() > 0);
    // What every node would say alike is said at once.
    let failed = InferError::ModelFailed { reason: "bad".to_owned() };
    cluster.peers.iter().for_each(|peer| peer.does(Does::Refuses(failed.clone())));
    let before: u32 = cluster.peers.iter().map(|peer| peer.requests()).sum();
    assert_eq!(ask(&client, "user-1").await.unwrap_err(), failed);
    assert_eq!(cluster.peers.iter().map(|peer| peer.requests()).sum::<u32>(), before + 1);
}

#[tokio::test]
async fn a_node_that_goes_fails_no_request() {
    let cluster = Cluster::start(3, 0).await;
    let client = cluster.client().await;
    for i in 0..10 {
        ask(&client, &format!("user-{i}")).await.unwrap();
    }
    cluster.peers[1].close().await;
    for i in 0..40 {
        ask(&client, &format!("user-{i}")).await.unwrap();
    }
}

#[tokio::test]
async fn a_node_at_the_address_of_another_is_not_taken_for_it() {
    let mut cluster = Cluster::start(3, 0).await;
    // As two machines do whose addresses were swapped, before they joined again.
    let (first, rest) = cluster.peers.split_at_mut(1);
    std::mem::swap(&mut first[0].address, &mut rest[0].address);
    cluster.publish_everywhere(2, 0);
    let client = cluster.client().await;
    for i in 0..20 {
        assert_eq!(ask(&client, &format!("user-{i}")).await.unwrap().node.as_str(), "c");
    }
    let requests: Vec<u32> = cluster.peers.iter().map(|peer| peer.requests()).collect();
    assert_eq!(requests, [0, 0, 20]);
    // Once they have, their keys come back.
    let (first, rest) = cluster.peers.split_at_mut(1);
    std::mem::swap(&mut first[0].address, &mut rest[0].address);
    cluster.publish_everywhere(3, 0);
    let deadline = Instant::now() + Duration::from_secs(30);
    while cluster.peers[..2].iter().any(|peer| peer.requests() == 0) {
        for i in 0..20 {
            ask(&client, &format!("user-{i}")).await.unwrap();
        }
        assert!(Instant::now() < deadline, "nobody asks them");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn a_silent_node_is_overtaken_and_told_to_stop() {
    let cluster = Cluster::start(2, 0).await;
    let client = cluster.client().await;
    cluster.peers[0].does(Does::IsSilent);
    let mut overtaken = 0;
    for i in 0..20 {
        let request = client.infer("digits").key(format!("user-{i}")).input("x", scores());
        let response = request.deadline(Duration::from_secs(1)).send().await.unwrap();
        assert_eq!(response.node.as_str(), "b");
        overtaken += u32::from(response.attempts > 1);
    }
    // After the first one the silent node is suspected and asked last.
    assert!(overtaken >= 1);
    cluster.peers[0].was_cancelled().await;
}

#[tokio::test]
async fn a_dropped_request_is_cancelled() {
    let cluster = Cluster::start(1, 0).await;
    let client = cluster.client().await;
    cluster.peers[0].does(Does::IsSilent);
    let request = tokio::spawn({
        let client = client.clone();
        async move { ask(&client, "user-1").await }
    });
    while cluster.peers[0].requests() == 0 {
        tokio::task::yield_now().await;
    }
    request.abort();
    cluster.peers[0].was_cancelled().await;
    let late = client.infer("digits").deadline(Duration::from_millis(50)).send().await.unwrap_err();
    assert_eq!(late, InferError::DeadlineExceeded);
}

#[tokio::test]
async fn a_refusal_ahead_of_the_inputs_is_heard() {
    let cluster = Cluster::start(1, 0).await;
    let client = cluster.client().await;
    let refusal = InferError::Overloaded { retry_after_us: 3_600_000_000 };
    cluster.peers[0].does(Does::RefusesEarly(refusal.clone()));
    // More than the windows of stream and connection hold, so that writing cannot end before the refusal is
    // read.
    let large = Tensor::from_elements(&[96 << 20], vec![0u8; 96 << 20]).unwrap();
    assert_eq!(client.infer("digits").input("x", large).send().await.unwrap_err(), refusal);
}

#[tokio::test]
async fn large_tensors_arrive_whole() {
    let cluster = Cluster::start(1, 0).await;
    let client = cluster.client().await;
    let elements: Vec<u32> = (0..5 << 20).collect();
    let large = Tensor::from_elements(&[5 << 20], elements).unwrap();
    let request = client.infer("digits").input("x", scores()).input("large", large.clone());
    let response = request.deadline(Duration::from_secs(60)).send().await.unwrap();
    assert_eq!(response.output("large"), Some(&large));
    assert_eq!(response.output("x"), Some(&scores()));
}

#[tokio::test]
async fn parts_are_taken_as_they_come() {
    let cluster = Cluster::start(2, 0).await;
    let client = cluster.client().await;
    let peers = |does: Does| cluster.peers.iter().for_each(|peer| peer.does(does.clone()));
    let start = async || {
        let request = client.infer("digits").key("user-1").input("x", scores()).input("y", scores());
        request.stream().await.unwrap()
    };
    peers(Does::AnswersInParts);
    let mut stream = start().await;
    let mut names = Vec::new();
    while let Some(part) = stream.next().await {
        assert_eq!(stream.timings().is_some(), names.len() == 2);
        names.push(part.unwrap()[0].name.clone());
    }
    assert_eq!((names, stream.timings().unwrap().batch_rows), (vec!["x".to_owned(), "y".to_owned()], 3));
    assert!(stream.next().await.is_none());
    // A part cannot be taken back, so what breaks after it is not tried again.
    peers(Does::BreaksOff);
    let mut stream = start().await;
    stream.next().await.unwrap().unwrap();
    assert!(matches!(stream.next().await, Some(Err(InferError::Unreachable { .. }))));
    assert!(stream.next().await.is_none());
    // Ahead of the first part it is.
    cluster.peers[0].does(Does::Refuses(InferError::Stopping));
    cluster.peers[1].does(Does::AnswersInParts);
    assert_eq!(start().await.source().node.as_str(), "b");
}
