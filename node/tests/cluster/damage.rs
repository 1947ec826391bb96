//! Bundles that lie damaged on coordinators' disks: a worker takes the bytes from whoever has them whole, and what nobody
//! has is given up with the reason.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::time::Duration;

use roost_protocol::Digest;
use tokio::time::Instant;

use crate::roost::{Roost, nodes_at, rows};
use crate::support::{Cluster, PATIENCE, digits_folder};

const COORDINATORS: [&str; 3] = ["c1", "c2", "c3"];

/// A model: what it is called, its file, and the coordinators on which that is damaged.
struct Model {
    name: &'static str,
    file: Vec<u8>,
    damaged_on: &'static [&'static str],
}

fn models() -> [Model; 3] {
    let read = |name: &str| std::fs::read(digits_folder().join(name)).unwrap();
    // A model as good as the first, of other bytes: the graph's file may say more than once how it is documented.
    let again = [&read("v1/model.onnx")[..], b"\x32\x05again"].concat();
    // No coordinator is sound for both of the first two: whichever a worker asks first, it meets damage.
    [
        Model { name: "first", file: read("v1/model.onnx"), damaged_on: &["c1", "c2"] },
        Model { name: "second", file: read("v2/model.onnx"), damaged_on: &["c2", "c3"] },
        Model { name: "third", file: again, damaged_on: &COORDINATORS },
    ]
}

/// Where a coordinator keeps the file of a model.
fn blob(cluster: &Cluster, coordinator: &str, model: &Model) -> PathBuf {
    cluster.data_of(coordinator).join("bundles/blobs").join(Digest::of(&model.file).to_string())
}

/// Waits until all coordinators hold a file: a push is done when a quorum does.
async fn held_everywhere(cluster: &Cluster, model: &Model) {
    let deadline = Instant::now() + PATIENCE;
    let length = model.file.len() as u64;
    let holds =
        |name: &str| std::fs::metadata(blob(cluster, name, model)).is_ok_and(|file| file.len() == length);
    while !COORDINATORS.into_iter().all(holds) {
        assert!(Instant::now() < deadline, "{} is not on all coordinators", model.name);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn flip_a_byte(cluster: &Cluster, coordinator: &str, model: &Model) {
    let mut bytes = model.file.clone();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(blob(cluster, coordinator, model), bytes).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damaged_bundles_are_fetched_elsewhere_or_given_up() {
    let mut cluster = Cluster::prepare(3, 1).await;
    cluster.issue_certificates();
    COORDINATORS.into_iter().for_each(|name| cluster.spawn(name));
    let roost = Roost::of(&cluster);
    symlink(digits_folder(), cluster.folder().join("models")).unwrap();
    let manifest = std::fs::read(digits_folder().join("v1/model.toml")).unwrap();
    for model in &models() {
        roost.write(&format!("{}/model.onnx", model.name), &model.file);
        roost.write(&format!("{}/model.toml", model.name), &manifest);
        roost.ok(&format!("push {0} {0} --timeout 60", model.name)).await;
        held_everywhere(&cluster, model).await;
        model.damaged_on.iter().for_each(|coordinator| flip_a_byte(&cluster, coordinator, model));
    }

    // The worker comes to all this and has nothing yet.
    cluster.spawn("w1");
    let settled = |status: &str| {
        let ready =
            ["first@1", "second@1"].iter().all(|version| nodes_at(status, version, "ready") == ["w1"]);
        ready && nodes_at(status, "third@1", "failed") == ["w1"]
    };
    let status = roost.until("cluster status", settled).await;
    let third = &rows(&status, "third@1")[0];
    let why = third[third.len() - 1];
    assert!(why.contains("is damaged") && why.contains("should have the digest"), "{status}");
    let log = cluster.log("w1");
    let met = |model: &Model| log.contains(&format!("should have the digest {}", Digest::of(&model.file)));
    assert!(
        models()[..2].iter().any(met),
        "some of the bytes that were taken in the end came damaged first: {log}"
    );

    for model in ["first", "second"] {
        let asked = format!("infer {model} --input image=models/heldout_images.npy --rows 0..9");
        assert_eq!(roost.json(&asked).await["labels"]["rows"].as_array().unwrap().len(), 9);
    }
    cluster.stop().await;
}
