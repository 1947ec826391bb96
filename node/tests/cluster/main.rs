//! Six processes from one cluster config on loopback: versions pushed, a canary, a promotion and an undo under load, while
//! the leader and a worker are killed. Real processes, real models, ONNX Runtime.
#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

mod availability;
mod bad_input;
mod command_line;
mod damage;
mod deaths;
mod disk_faults;
mod holds;
mod load;
mod lost_workers;
mod membership;
mod pictures;
mod recovery;
mod roost;
mod s3;
mod start_up;
mod support;
mod versions;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use roost_client::Client;
use roost_protocol::traffic::Weight;
use roost_protocol::view::{NodeState, Published};
use roost_protocol::{CommandError, ControlError, ModelName, ModelVersion, Version};

use load::Load;
use support::{Cluster, Digits, push, wait_for_stage};

/// Distinct keys, each asked for twice: 2 000 requests.
const KEYS: usize = 1_000;
/// Requests in flight at one time.
const IN_FLIGHT: usize = 8;
/// The canary's share.
const SHARE: f64 = 0.2;
/// Two-sided 99.9 % quantile of the normal distribution.
const QUANTILE_999: f64 = 3.2905;

fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

fn at(version: u32) -> ModelVersion {
    ModelVersion { model: digits(), version: Version(version) }
}

/// Asks with each key once, several at a time; the version that answered each.
async fn ask_all(client: &Client, digits: &Digits) -> BTreeMap<String, Version> {
    use futures::StreamExt;
    let asks = (0..KEYS).map(|i| async move {
        let key = format!("user-{i}");
        let response = digits.ask(client, i, &key).await.unwrap_or_else(|e| panic!("request of {key}: {e}"));
        (key, response.version)
    });
    futures::stream::iter(asks).buffer_unordered(IN_FLIGHT).collect().await
}

/// Promotes as an operator would: where the leader finds too few replicas ready, again a little later. The client's own picture
/// may be older than the leader's, and say of a worker that was killed and started again that it serves.
async fn promote_once_ready(client: &Client) {
    let promoted = async {
        loop {
            match client.control().promote(&digits()).await {
                Err(ControlError::Refused(CommandError::NotReady { .. })) => {
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
                result => break result,
            }
        }
    };
    tokio::time::timeout(support::PATIENCE, promoted).await.unwrap().unwrap();
}

async fn wait_for(client: &Client, what: &str, holds: impl Fn(&Published) -> bool) {
    let mut published = client.published();
    let found = tokio::time::timeout(support::PATIENCE, published.wait_for(holds)).await;
    assert!(matches!(found, Ok(Ok(_))), "it did not come about that {what}");
}

/// Until so many workers have joined: what is pushed earlier is placed without those that come later.
async fn wait_for_workers(client: &Client, count: usize) {
    let joined =
        |published: &Published| published.view.as_ref().is_some_and(|view| view.nodes.len() == count);
    wait_for(client, "all workers have joined", joined).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_under_load_while_processes_are_killed() {
    let mut cluster = Cluster::start(3, 3).await;
    let client = cluster.connect().await;
    let control = client.control();
    let digits_data = Arc::new(Digits::read());

    assert_eq!(push(&client, "digits", &support::digits_folder().join("v1")).await, Version(1));
    assert_eq!(push(&client, "digits", &support::digits_folder().join("v2")).await, Version(2));
    wait_for_stage(&client, &at(1), 2).await;
    assert_eq!(digits_data.right(&client).await, 418, "92.9 % of 450, as the model itself");

    control
        .start_rollout(at(2), Weight::from_basis_points((SHARE * 10_000.0) as u16).unwrap())
        .await
        .unwrap();
    wait_for(&client, "the canary takes its share", |published| {
        let view = published.view.as_ref();
        view.is_some_and(|view| view.models[&digits()].traffic.canary.is_some())
    })
    .await;

    // The view may come ahead of the news that the canary is ready, and until then a request falls back.
    wait_for_stage(&client, &at(2), 2).await;

    // Twice each key, and between the two the leader and a worker die.
    let load = Load::start(client.clone(), digits_data.clone());
    let first = ask_all(&client, &digits_data).await;
    let leader = control.cluster().await.unwrap().leader;
    cluster.kill(&cluster.name_of(&client, leader));
    let victim = {
        let published = client.published().borrow().clone();
        let view = published.view.unwrap();
        let serving = view.nodes.iter().find(|(id, _)| published.soft.serves(**id, &digits(), Version(2)));
        serving.unwrap().1.name.to_string()
    };
    cluster.kill(&victim);
    let again = ask_all(&client, &digits_data).await;
    assert_eq!(first, again, "a key keeps its version");

    let canary = first.values().filter(|version| **version == Version(2)).count() as f64;
    let keys = KEYS as f64;
    let half_width = QUANTILE_999 * (keys * SHARE * (1.0 - SHARE)).sqrt();
    assert!((canary - keys * SHARE).abs() <= half_width, "{canary} of {keys} keys on the canary");
    println!("{} requests, none failed; {canary} of {keys} keys on the canary, twice the same", 2 * KEYS);

    // The other coordinators go on; the lost worker's part is taken over by the third.
    cluster.restart(&victim).await;
    wait_for_stage(&client, &at(2), 2).await;
    promote_once_ready(&client).await;
    assert_eq!(digits_data.right(&client).await, 444, "98.7 % of 450, as the model itself");
    control.undo(&digits()).await.unwrap();
    assert_eq!(digits_data.right(&client).await, 418);
    load.end().await;

    let history = control.rollout(&digits()).await.unwrap().history;
    assert!(history.len() >= 5, "{history:#?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn inference_goes_on_without_a_quorum_and_changes_are_refused() {
    let mut cluster = Cluster::start(3, 2).await;
    let client = cluster.connect().await;
    let digits_data = Arc::new(Digits::read());
    push(&client, "digits", &support::digits_folder().join("v1")).await;
    wait_for_stage(&client, &at(1), 2).await;

    cluster.kill("c1");
    cluster.kill("c2");
    let load = Load::start(client.clone(), digits_data.clone());
    let refused = client.control().undo(&digits()).await.unwrap_err();
    assert!(refused.retryable() && refused.to_string().contains("inference goes on"), "{refused}");
    assert_eq!(digits_data.right(&client).await, 418);
    // A client that comes new needs no coordinator either: workers serve the view.
    let newcomer = cluster.connect().await;
    assert_eq!(digits_data.right(&newcomer).await, 418);
    load.end().await;

    cluster.restart("c1").await;
    let nothing = client.control().undo(&digits()).await.unwrap_err();
    assert!(nothing.to_string().contains("no promotion to undo"), "{nothing}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_told_to_stop_is_emptied_first() {
    let mut cluster = Cluster::start(1, 3).await;
    let client = cluster.connect().await;
    wait_for_workers(&client, 3).await;
    let digits_data = Arc::new(Digits::read());
    push(&client, "digits", &support::digits_folder().join("v1")).await;
    wait_for_stage(&client, &at(1), 2).await;
    let load = Load::start(client.clone(), digits_data.clone());
    let published = client.published().borrow().clone();
    let view = published.view.unwrap();
    let (id, node) =
        view.nodes.iter().find(|(id, _)| published.soft.serves(**id, &digits(), Version(1))).unwrap();
    cluster.terminate(node.name.as_str()).await;
    wait_for(&client, "the node drains", |published| {
        let view = published.view.as_ref();
        view.is_some_and(|view| view.nodes[id].state != NodeState::Active)
    })
    .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    load.end().await;
    cluster.stop().await;
}
