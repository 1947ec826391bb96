//! A real network of pictures: SqueezeNet, with ImageNet's weights and classes, names the photos that come with it. It is
//! pushed twice: for whichever engine can run it, which is the native one, and for ONNX Runtime by name.

use std::fmt::Write as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use crate::roost::{Roost, nodes_at, rows};
use crate::support::Cluster;

/// The photos, the class of each, and a word of its label.
const PHOTOS: [(&str, u64, &str); 5] = [
    ("photos/kitten_224.png", 281, "tabby"),
    ("photos/dog.jpg", 207, "golden retriever"),
    ("photos/cat.jpg", 285, "Egyptian cat"),
    ("photos/mushroom.png", 947, "mushroom"),
    ("photos/fish.png", 389, "barracouta"),
];

/// Caffe's preparation: BGR, 0 to 255, less the mean of each channel.
const MANIFEST: &str = r#"
batch_rows_max = 8
warm_up_rows = [1]

[batch_axes]
data_0 = 0
softmaxout_1 = 0

[image]
input = "data_0"
width = 224
height = 224
channels = "bgr"
scale = 1.0
mean = [103.94, 116.78, 123.68]
std = [1.0, 1.0, 1.0]
"#;

/// The model's folder among those that are not in the repository.
fn squeezenet() -> PathBuf {
    let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/models");
    let folder = std::env::var_os("ROOST_TEST_MODELS").map_or_else(beside, PathBuf::from);
    let folder = folder.join("squeezenet_fp32");
    assert!(
        folder.is_dir(),
        "{} is no folder: set ROOST_TEST_MODELS to the folder of the test models",
        folder.display()
    );
    folder.canonicalize().unwrap()
}

/// The manifest, with the names of the classes, of which the file has one a line behind its id.
fn manifest(classes: &str) -> String {
    let names = classes.lines().map(|line| line.split_once(' ').unwrap().1);
    let labels = names.fold(String::new(), |mut labels, name| {
        let _ = write!(labels, "{name:?}, ");
        labels
    });
    format!("labels = [{labels}]\n{MANIFEST}")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn squeezenet_names_its_photos() {
    let (model, mut cluster) = (squeezenet(), Cluster::prepare(1, 1).await);
    cluster.spawn_all();
    let roost = Roost::of(&cluster);
    let classes = std::fs::read_to_string(model.join("imagenet-classes.txt")).unwrap();
    symlink(model.join("photos"), cluster.folder().join("photos")).unwrap();
    for (choice, engine) in [("auto", "native"), ("onnxruntime", "onnxruntime")] {
        let name = format!("squeezenet-{choice}");
        roost.write(&format!("{name}/model.toml"), format!("engine = {choice:?}\n{}", manifest(&classes)));
        symlink(model.join("model.onnx"), cluster.folder().join(&name).join("model.onnx")).unwrap();
        roost.ok(&format!("push {name} {name} --timeout 60")).await;
        let version = format!("{name}@1");
        let status =
            roost.until("cluster status", |status| nodes_at(status, &version, "ready") == ["w1"]).await;
        assert_eq!(rows(&status, &version)[0][4], engine, "{status}");
        names_its_photos(&roost, &name).await;
    }
    cluster.stop().await;
}

async fn names_its_photos(roost: &Roost, name: &str) {
    let photos: Vec<&str> = PHOTOS.iter().map(|(photo, ..)| *photo).collect();
    let answer = roost.json(&format!("infer {name} --image {}", photos.join(" "))).await;
    let named = answer["labels"]["rows"].as_array().unwrap();
    let named: Vec<_> =
        named.iter().map(|row| (row["row"].as_str(), row["best"][0]["index"].as_u64())).collect();
    assert_eq!(named, PHOTOS.map(|(photo, class, _)| (Some(photo), Some(class))), "{:#}", answer["labels"]);

    // One alone, as a person sees it.
    for (photo, _, label) in PHOTOS {
        let text = roost.ok(&format!("infer {name} --image {photo}")).await;
        assert!(rows(&text, photo)[0][1].contains(label), "{text}");
    }
}
