//! Workers that are to take on nothing further, and workers that go while nobody else may host what they do.

use std::os::unix::fs::symlink;
use std::sync::Arc;

use crate::load::Load;
use crate::roost::{Roost, nodes_at, rows};
use crate::support::{Cluster, Digits, digits_folder, push, wait_for_stage};
use crate::{at, wait_for_workers};

/// Writes a folder of the first digits model that is placed otherwise.
fn write_model(roost: &Roost, name: &str, placed: &str) {
    let read = |file: &str| std::fs::read(digits_folder().join("v1").join(file)).unwrap();
    roost.write(&format!("{name}/model.onnx"), read("model.onnx"));
    let manifest = String::from_utf8(read("model.toml")).unwrap();
    roost.write(&format!("{name}/model.toml"), manifest.replace("replicas = 2", placed));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cordoned_worker_keeps_what_it_hosts_and_gets_nothing_more() {
    let cluster = Cluster::start(1, 3).await;
    let client = cluster.connect().await;
    wait_for_workers(&client, 3).await;
    let roost = Roost::of(&cluster);
    symlink(digits_folder(), cluster.folder().join("models")).unwrap();
    push(&client, "digits", &digits_folder().join("v1")).await;
    wait_for_stage(&client, &at(1), 2).await;
    let load = Load::start(client.clone(), Arc::new(Digits::read()));
    let (code, said) = roost.refused("node cordon w9").await;
    assert!(code == Some(1) && said.contains("there is no worker w9; there are w1, w2, w3"), "{said}");

    let status =
        roost.until("cluster status", |status| nodes_at(status, "digits@1", "ready").len() == 2).await;
    let held = nodes_at(&status, "digits@1", "ready")[0].to_owned();
    let said = roost.ok(&format!("node cordon {held}")).await;
    assert_eq!(said, format!("{held} is cordoned; it hosts digits@1\n"));
    // Twice is as good as once.
    assert_eq!(roost.ok(&format!("node cordon {held}")).await, said);
    write_model(&roost, "everywhere", "replicas = \"all\"");
    roost.ok("push everywhere everywhere").await;
    let others: Vec<&str> = ["w1", "w2", "w3"].into_iter().filter(|name| *name != held).collect();
    let status =
        roost.until("cluster status", |status| nodes_at(status, "everywhere@1", "ready") == others).await;
    assert_eq!(rows(&status, "everywhere@1").len(), 2, "{status}");
    assert_eq!(rows(&status, &held)[0][2], "cordoned", "{status}");
    assert!(nodes_at(&status, "digits@1", "ready").contains(&&*held), "{status}");

    let said = roost.ok(&format!("node uncordon {held}")).await;
    assert!(said.starts_with(&format!("{held} is in service; it hosts digits@1")), "{said}");
    let all = ["w1", "w2", "w3"];
    let status =
        roost.until("cluster status", |status| nodes_at(status, "everywhere@1", "ready") == all).await;
    assert_eq!(rows(&status, &held)[0][2], "active", "{status}");
    load.end().await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_says_what_nobody_else_may_host() {
    let mut cluster = Cluster::prepare(1, 2).await;
    cluster.describe("w1", "labels = { disk = \"ssd\" }");
    cluster.spawn_all();
    let roost = Roost::of(&cluster);
    symlink(digits_folder(), cluster.folder().join("models")).unwrap();
    write_model(&roost, "choosy", "placement.node_labels = { disk = \"ssd\" }");
    roost.until("cluster status --timeout 60", |status| status.contains("w1") && status.contains("w2")).await;
    roost.ok("push digits models/v1 --timeout 60").await;
    roost.ok("push choosy choosy").await;
    let ready = |status: &str| {
        nodes_at(status, "digits@1", "ready") == ["w1", "w2"]
            && nodes_at(status, "choosy@1", "ready") == ["w1"]
    };
    roost.until("cluster status", ready).await;
    cluster.terminate("w1").await;
    let log = cluster.log("w1");
    let warned: Vec<&str> = log.lines().filter(|line| line.contains("no other node can serve it")).collect();
    assert!(matches!(warned[..], [line] if line.contains("WARN") && line.contains("choosy@1")), "{log}");
    assert!(!log.contains("no other node took over in time"), "{log}");
    let asked = "--input image=models/heldout_images.npy --rows 0..1";
    assert_eq!(roost.json(&format!("infer digits {asked}")).await["version"], "digits@1");
    cluster.stop().await;
}
