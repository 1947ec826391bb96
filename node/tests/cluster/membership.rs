//! Three coordinators become five, then three others, and a lost one is replaced by a machine elsewhere, while clients ask on at a
//! steady rate.

use std::sync::Arc;

use roost_protocol::Version;
use tokio::time::Instant;

use crate::at;
use crate::load::Load;
use crate::roost::{Roost, rows};
use crate::support::{Cluster, Digits, digits_folder, files, push, wait_for_stage};

/// Requests a second.
const RATE_PER_S: u32 = 500;

/// The roles that a list of members shows, by name.
fn roles(list: &str, names: &[&str]) -> Vec<String> {
    let role = |name: &&str| rows(list, name).iter().map(|cells| cells[3]).collect::<Vec<_>>().join("+");
    names.iter().map(role).collect()
}

/// How many voters a list shows, the leader among them.
fn voters(list: &str) -> usize {
    list.lines().filter(|line| line.contains(" voter ") || line.contains(" leader ")).count()
}

/// Whether the leader has lately heard of a member that lacks nothing.
fn hears(list: &str, name: &str) -> bool {
    rows(list, name).iter().any(|cells| {
        let heard = cells[5].trim_end_matches(" ms").parse::<u64>().is_ok_and(|heard_ms| heard_ms < 1_000);
        cells[3] == "leader" || (cells[4] == "0" && heard)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_come_and_go() {
    let mut cluster = Cluster::start(3, 2).await;
    let client = cluster.connect().await;
    let roost = Roost::of(&cluster);
    let digits = Arc::new(Digits::read());
    push(&client, "digits", &digits_folder().join("v1")).await;
    wait_for_stage(&client, &at(1), 2).await;
    let load = Load::at_rate(client.clone(), digits.clone(), RATE_PER_S);
    let begun = Instant::now();

    // To five.
    let addresses = cluster.add_coordinators(&["c4", "c5"]);
    for name in ["c4", "c5"] {
        roost.ok(&format!("certs issue {name} --roles coordinator")).await;
        cluster.spawn(name);
    }
    let said = roost.run("cluster members promote c4").await;
    assert!(
        said.code == Some(1) && said.err.contains("there is no member c4; there are c1, c2, c3"),
        "{said:?}"
    );
    let said = roost.run(&format!("cluster members add c9 --address {}", addresses[0])).await;
    assert!(said.code == Some(1) && said.err.contains("is not the coordinator c9"), "{said:?}");
    for (name, address) in ["c4", "c5"].iter().zip(&addresses) {
        let line = format!("cluster members add {name} --address {address} --timeout 60");
        let said = roost.ok(&line).await;
        assert!(said.starts_with(&format!("{name} is a member; if ")), "{said}");
        assert_eq!(roles(&said, &[name]), ["learner"], "{said}");
    }
    let said = roost.ok("cluster members promote c4 c5").await;
    assert_eq!(voters(&said), 5, "{said}");
    assert_eq!(push(&client, "digits", &digits_folder().join("v2")).await, Version(2));

    // To three others, the leader going last.
    let said = roost.run("cluster members remove c1 c2 c3 c4 c5").await;
    assert!(said.code == Some(1) && said.err.contains("nobody would have a vote"), "{said:?}");
    let said = roost.ok("cluster members transfer-leader c1").await;
    assert_eq!(roles(&said, &["c1"]), ["leader"], "{said}");
    let said = roost.ok("cluster members remove c1 c2").await;
    assert_eq!(voters(&said), 3, "{said}");
    assert_eq!(roles(&said, &["c1", "c2"]), ["", ""], "{said}");
    // Workers that watched one of those that went must not be left behind with it: its process still runs.
    roost.ok("label set digits@2 prod").await;
    wait_for_stage(&client, &at(2), 2).await;
    cluster.terminate("c1").await;
    cluster.terminate("c2").await;

    // A machine moves, with its disk. Whoever leads, then and later, finds it there.
    cluster.terminate("c4").await;
    let address = cluster.move_node("c4");
    cluster.spawn("c4");
    roost.ok(&format!("cluster members add c4 --address {address} --timeout 60")).await;
    let list = roost.until("cluster members list", |list| hears(list, "c4")).await;
    assert!(list.contains(&address), "{list}");

    // A machine is lost with its disk, and another takes its place, under another address.
    cluster.kill("c5");
    std::fs::remove_dir_all(cluster.data_of("c5")).unwrap();
    let address = cluster.move_node("c5");
    cluster.spawn("c5");
    let said = roost.ok(&format!("cluster members replace c5 --address {address} --timeout 60")).await;
    assert!(said.contains(&address), "{said}");
    assert_eq!(voters(&said), 3, "{said}");
    assert_eq!(roles(&said, &["c5"]).concat().matches('+').count(), 0, "{said}");
    let blobs = files(&cluster.data_of("c5").join("bundles/blobs"));
    assert_eq!(blobs, files(&cluster.data_of("c4").join("bundles/blobs")), "it holds all bundles");

    // It votes: with it alone beside c4 there is a quorum.
    cluster.kill("c3");
    let promoted = roost.ok("rollout start digits@2 --steps 20% --timeout 60").await;
    assert!(promoted.contains("digits@2"), "{promoted}");
    let log = cluster.log("c4");
    assert!(log.contains("the config differs from the committed membership"), "{log}");
    println!(
        "three coordinators became five, then three others, one moved, one replaced elsewhere, in {:?}, longest time without an \
         answer {:?}",
        begun.elapsed(),
        load.longest_gap(begun, Instant::now())
    );
    load.end().await;
    cluster.stop().await;
}
