//! Requests at a steady rate while processes are restarted one by one, a zone is lost, a node is drained, and most coordinators are
//! down.

use std::sync::Arc;
use std::time::Duration;

use roost_client::Client;
use roost_protocol::ControlError;
use roost_protocol::messages::control::Change;
use tokio::time::Instant;

use crate::deaths::{all_caught_up, until_served};
use crate::load::Load;
use crate::roost::{Roost, rows};
use crate::support::{Cluster, Digits, PATIENCE, digits_folder, push, wait_for_stage};
use crate::{at, digits};

/// Requests a second.
const RATE_PER_S: u32 = 500;
/// How long two of three coordinators are down.
const OUTAGE: Duration = Duration::from_secs(60);

/// Three coordinators, and three workers in zones of their own that serve digits@1 on two of them.
async fn start() -> (Cluster, Client, Arc<Digits>) {
    let mut cluster = Cluster::prepare(3, 3).await;
    cluster.set_zones(&[("w1", "north"), ("w2", "south"), ("w3", "south")]);
    cluster.spawn_all();
    let client = cluster.connect().await;
    crate::wait_for_workers(&client, 3).await;
    push(&client, "digits", &digits_folder().join("v1")).await;
    wait_for_stage(&client, &at(1), 2).await;
    (cluster, client, Arc::new(Digits::read()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_six_are_restarted_in_turn() {
    let (mut cluster, client, data) = start().await;
    let load = Load::at_rate(client.clone(), data, RATE_PER_S);
    let begun = Instant::now();
    for (name, _) in cluster.nodes().to_vec() {
        cluster.terminate(&name).await;
        cluster.spawn(&name);
        all_caught_up(client.control()).await;
        wait_for_stage(&client, &at(1), 2).await;
    }
    let gap = load.longest_gap(begun, Instant::now());
    println!(
        "six processes restarted in turn in {:?}, longest time without an answer {gap:?}",
        begun.elapsed()
    );
    load.end().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_zone_is_lost() {
    let (mut cluster, client, data) = start().await;
    let roost = Roost::of(&cluster);
    let status = roost.ok("cluster status").await;
    let hosts = crate::roost::nodes_at(&status, "digits@1", "ready");
    assert!(hosts.contains(&"w1") && hosts.len() == 2, "one replica in each zone: {status}");
    let load = Load::at_rate(client.clone(), data, RATE_PER_S);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let lost = Instant::now();
    cluster.kill_at_once(&["w2".to_owned(), "w3".to_owned()]);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let gap = load.longest_gap(lost, Instant::now());
    println!("a zone of two workers is lost, longest time without an answer {gap:?}");
    load.end().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_of_three_coordinators_are_down() {
    let (mut cluster, client, data) = start().await;
    let control = client.control().clone();
    let load = Load::at_rate(client.clone(), data, RATE_PER_S);
    let before = Instant::now();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let down = Instant::now();
    cluster.kill_at_once(&["c1".to_owned(), "c2".to_owned()]);
    // Nobody can agree on anything, and whoever asks is told so.
    let refused = control.change(Change::Undo { model: digits() }).await;
    assert!(matches!(&refused, Err(ControlError::NoQuorum { .. })), "{refused:?}");
    println!("a change is refused: {}", refused.unwrap_err());
    tokio::time::sleep_until(down + OUTAGE).await;
    let up = Instant::now();
    let per_s = |from: Instant, to: Instant| load.answered(from, to) as f64 / (to - from).as_secs_f64();
    let (with, without) = (per_s(before, down), per_s(down, up));
    let gap = load.longest_gap(down, up);
    println!("{with:.0} answers/s with all, {without:.0} with one coordinator, longest gap {gap:?}");
    // The load is sent at a rate; whatever was not answered at it would still be waiting.
    assert!(without > 0.9 * with, "{without} of {with} answers/s");
    cluster.spawn("c1");
    cluster.spawn("c2");
    let (write, _) = until_served(&control, up).await;
    println!("writes go on {write:?} after the two start");
    load.end().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_drained_and_comes_back() {
    let (mut cluster, client, data) = start().await;
    let roost = Roost::of(&cluster);
    let load = Load::at_rate(client.clone(), data, RATE_PER_S);
    let begun = Instant::now();
    let said = roost.run("node drain w9").await;
    assert!(said.code == Some(1) && said.err.contains("there is no worker w9"), "{said:?}");
    let said = roost.ok("node drain w1 --timeout 60").await;
    assert!(said.contains("w1 is drained"), "{said}");
    let status = roost.ok("cluster status").await;
    assert_eq!(rows(&status, "w1")[0][2], "drained", "{status}");
    assert_eq!(crate::roost::nodes_at(&status, "digits@1", "ready").len(), 2, "{status}");
    // It may restart, and is still to host nothing.
    cluster.terminate("w1").await;
    cluster.spawn("w1");
    let joined_again = async {
        while cluster.log("w1").matches("joined").count() < 2 {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, joined_again).await.unwrap();
    let status = roost.until("cluster status", |status| rows(status, "w1")[0][2] == "drained").await;
    assert!(!crate::roost::nodes_at(&status, "digits@1", "ready").contains(&"w1"), "{status}");
    roost.ok("node uncordon w1").await;
    roost
        .until("cluster status", |status| crate::roost::nodes_at(status, "digits@1", "ready").contains(&"w1"))
        .await;
    let gap = load.longest_gap(begun, Instant::now());
    println!("a node drained, restarted and taken back, longest time without an answer {gap:?}");
    load.end().await;
    cluster.stop().await;
}
