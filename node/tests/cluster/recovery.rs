//! All coordinators but one are lost for good, then all: the group goes on from one folder, then from a snapshot, and whoever
//! followed the old group follows the new one.

use std::fs;
use std::process::{Command, Stdio};
use std::sync::Arc;

use roost_client::Client;
use roost_protocol::{Epoch, NodeId, Version};

use crate::roost::{Roost, rows};
use crate::support::{Cluster, Digits, digits_folder, push, wait_for_stage};
use crate::{Load, at, digits, promote_once_ready, wait_for};

const COORDINATORS: [&str; 3] = ["c1", "c2", "c3"];

/// Runs `roost-node recover` of a node of the cluster. Gives what it printed, and whether it succeeded.
fn recover(cluster: &Cluster, line: &str) -> (String, bool) {
    let output = Command::new(env!("CARGO_BIN_EXE_roost-node"))
        .args(["recover", "--config", "cluster.toml"])
        .args(line.split_whitespace())
        .current_dir(cluster.folder())
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8(text).unwrap(), output.status.success())
}

/// The files of a node's data folder that a recovery makes for itself and must not leave.
fn left_over(cluster: &Cluster, name: &str) -> Vec<String> {
    let files = fs::read_dir(cluster.data_of(name)).unwrap();
    let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.ends_with(".part") || name.ends_with(".looked-at")).collect()
}

fn epoch(client: &Client) -> Epoch {
    client.published().borrow().view.as_ref().unwrap().epoch
}

/// The id that a coordinator has in the client's view.
fn id_of(client: &Client, name: &str) -> NodeId {
    let published = client.published().borrow().clone();
    let view = published.view.unwrap();
    *view.coordinators.iter().find(|(_, coordinator)| coordinator.name.as_str() == name).unwrap().0
}

async fn follows_generation(client: &Client, generation: u32) {
    wait_for(client, "the client follows the new group", |published| {
        published.view.as_ref().is_some_and(|view| view.epoch.generation == generation)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_group_goes_on_from_one_folder_and_from_a_snapshot() {
    let mut cluster = Cluster::start(3, 2).await;
    let client = cluster.connect().await;
    let roost = Roost::of(&cluster);
    let digits_data = Arc::new(Digits::read());
    for version in ["v1", "v2"] {
        push(&client, "digits", &digits_folder().join(version)).await;
    }
    wait_for_stage(&client, &at(1), 2).await;
    roost.ok("rollout start digits@2 --steps 20% --timeout 60").await;
    wait_for_stage(&client, &at(2), 2).await;
    promote_once_ready(&client).await;
    let saved = roost.ok("cluster snapshot save backup.snapshot").await;
    assert!(saved.contains("generation 1,") && saved.contains("2 bundles"), "{saved}");
    assert_eq!(roost.ok("cluster snapshot status backup.snapshot").await, saved);
    // After the snapshot, and durable with a quorum: it must survive the loss of the other two.
    roost.ok("label set digits@1 old").await;
    let versions = roost.ok("versions digits").await;
    let seen = epoch(&client);

    let load = Load::start(client.clone(), digits_data.clone());
    let (told, done) = recover(&cluster, "--name c1 --force-new-group");
    assert!(!done && told.contains("in use"), "a node that runs must be stopped first: {told}");
    COORDINATORS.into_iter().for_each(|name| cluster.kill(name));
    // The label is with two of three. An operator takes the folder that has most.
    let held = COORDINATORS.map(|name| {
        let (told, done) = recover(&cluster, &format!("--name {name}"));
        assert!(!done && told.contains("nothing was changed"), "{told}");
        assert_eq!(left_over(&cluster, name), Vec::<String>::new());
        let epoch = told.split_once("at epoch 1.").unwrap().1;
        (epoch.split_once(',').unwrap().0.parse::<u64>().unwrap(), name)
    });
    let (_, first) = held.into_iter().max().unwrap();
    let others: Vec<&str> = COORDINATORS.into_iter().filter(|name| *name != first).collect();
    let was = id_of(&client, first);
    for name in &others {
        fs::remove_dir_all(cluster.data_of(name)).unwrap();
    }
    let (told, done) = recover(&cluster, &format!("--name {first} --force-new-group"));
    assert!(done && told.contains("generation 2 (was 1)") && told.contains("all 2 bundles"), "{told}");
    assert_eq!(left_over(&cluster, first), Vec::<String>::new());
    cluster.spawn(first);
    follows_generation(&client, 2).await;
    assert!(epoch(&client) > seen, "{} after {seen}", epoch(&client));
    assert_ne!(id_of(&client, first), was, "it is another node to those of the old group");
    assert_eq!(roost.ok("versions digits").await, versions);
    let models = client.control().models().await.unwrap();
    assert_eq!(models[0].labels.len(), 1, "{models:?}");

    // Two fresh coordinators join, and are a quorum without the first.
    let address = |name: &str| {
        let at = cluster.nodes().iter().position(|(node, _)| node == name).unwrap();
        cluster.addresses()[at].clone()
    };
    let addresses: Vec<String> = others.iter().map(|name| address(name)).collect();
    for (name, address) in others.iter().zip(&addresses) {
        cluster.spawn(name);
        roost.ok(&format!("cluster members add {name} --address {address} --timeout 60")).await;
    }
    let list = roost.ok(&format!("cluster members promote {} --timeout 60", others.join(" "))).await;
    assert!(COORDINATORS.iter().all(|name| rows(&list, name).len() == 1), "{list}");
    cluster.kill(first);
    assert_eq!(roost.ok("versions digits --timeout 60").await, versions);
    roost.ok("rollout undo digits --timeout 60").await;
    // Whose watch was at the one that was killed hears of it a little later than who asked for it.
    wait_for(&client, "the client routes to the first version", |published| {
        published.view.as_ref().is_some_and(|view| view.models[&digits()].traffic.stable == Version(1))
    })
    .await;
    assert_eq!(digits_data.right(&client).await, 418, "as the first version");
    load.end().await;

    // The day on which all are lost. The bundles were kept elsewhere.
    let seen = epoch(&client);
    others.iter().for_each(|name| cluster.kill(name));
    let data = cluster.data_of(first);
    fs::rename(data.join("bundles"), cluster.folder().join("bundles")).unwrap();
    for name in COORDINATORS {
        fs::remove_dir_all(cluster.data_of(name)).unwrap();
    }
    let line = format!("--name {first} --snapshot backup.snapshot --generation 3 --force-new-group");
    let (told, done) = recover(&cluster, &line);
    assert!(
        done && told.contains("generation 3 (was 1)") && told.contains("2 of 2 bundles are not"),
        "{told}"
    );
    fs::remove_dir_all(data.join("bundles")).unwrap();
    fs::rename(cluster.folder().join("bundles"), data.join("bundles")).unwrap();
    cluster.spawn(first);
    follows_generation(&client, 3).await;
    assert!(epoch(&client) > seen, "{} after {seen}", epoch(&client));
    let versions = client.control().versions(&digits()).await.unwrap();
    assert_eq!(versions.iter().map(|v| v.version).collect::<Vec<_>>(), [Version(1), Version(2)]);
    // The snapshot is from after the promotion and before the label and the undo.
    assert_eq!(digits_data.right(&client).await, 444, "as the second version");
    let models = client.control().models().await.unwrap();
    assert!(models[0].labels.is_empty(), "{models:?}");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_none_is_refused_and_nothing_is_changed() {
    let cluster = Cluster::prepare(1, 1).await;
    let data = cluster.data_of("c1");
    let file = cluster.folder().join("backup.snapshot");
    for bytes in [&b"a text that is no snapshot"[..], b"RoostSnp"] {
        fs::write(&file, bytes).unwrap();
        let (told, done) = recover(&cluster, "--name c1 --snapshot backup.snapshot --force-new-group");
        assert!(!done && told.contains("snapshot backup.snapshot: "), "{told}");
    }
    let (told, done) = recover(&cluster, "--name c1 --force-new-group");
    assert!(!done && told.contains("has no database"), "{told}");
    let (told, done) = recover(&cluster, "--name w1 --force-new-group");
    assert!(!done && told.contains("w1 is no coordinator"), "{told}");
    assert!(!data.join("identity.toml").exists());
    cluster.stop().await;
}
