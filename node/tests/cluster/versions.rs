//! Versions by hand: the same folder pushed twice is one version unless a new one is asked for, and old versions are forgotten
//! but for those that something still leads to.

use std::os::unix::fs::symlink;

use serde_json::json;

use crate::roost::{Roost, nodes_at, rows};
use crate::support::{Cluster, digits_folder};

/// The versions that `roost versions` lists, oldest first.
async fn listed(roost: &Roost) -> Vec<u64> {
    let versions = roost.json("versions digits").await;
    versions.as_array().unwrap().iter().map(|version| version["number"].as_u64().unwrap()).collect()
}

/// Pushes a folder, and checks the version that it becomes or is already.
async fn pushed(roost: &Roost, line: &str, number: u32, existing: bool) -> String {
    let pushed = roost.json(&format!("push digits {line}")).await;
    assert_eq!(
        (&pushed["number"], &pushed["existing"]),
        (&json!(number), &json!(existing)),
        "{line}: {pushed}"
    );
    pushed["digest"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versions_are_pushed_again_and_forgotten_by_hand() {
    let cluster = Cluster::start(1, 2).await;
    let roost = Roost::of(&cluster);
    symlink(digits_folder(), cluster.folder().join("models")).unwrap();
    // The graph's file may say more than once how it is documented: other bytes, and the same model.
    let model = std::fs::read(digits_folder().join("v1/model.onnx")).unwrap();
    roost.write("other/model.onnx", [&model[..], b"\x32\x05again"].concat());
    roost.write("other/model.toml", std::fs::read(digits_folder().join("v1/model.toml")).unwrap());

    let first = pushed(&roost, "models/v1", 1, false).await;
    assert_eq!(pushed(&roost, "models/v1 --note again", 1, true).await, first);
    let said = roost.ok("push digits models/v1").await;
    assert!(
        said.contains("it is there already, made of this very bundle; --new-version makes another"),
        "{said}"
    );
    assert_eq!(listed(&roost).await, [1]);
    assert_eq!(pushed(&roost, "models/v1 --new-version", 2, false).await, first);
    pushed(&roost, "models/v2", 3, false).await;
    pushed(&roost, "other", 4, false).await;
    // Of several versions of one bundle, the newest.
    pushed(&roost, "models/v1", 2, true).await;
    pushed(&roost, "models/v2 --new-version", 5, false).await;
    let missing = roost.run("push digits nowhere --new-version").await;
    assert!(missing.code == Some(1) && missing.err.contains("cannot read nowhere"), "{missing:?}");

    // The stable version and a labelled one stay, however old they are, and so does the newest.
    roost.ok("label set digits@2 prod").await;
    let both = |status: &str| {
        ["digits@1", "digits@2"].iter().all(|version| nodes_at(status, version, "ready").len() == 2)
    };
    roost.until("cluster status", both).await;
    let said = roost.ok("versions retain digits --keep 1").await;
    assert_eq!(said, "forgot digits@3, digits@4; what they alone were made of is removed from disks\n");
    assert_eq!(listed(&roost).await, [1, 2, 5]);
    let again = roost.ok("versions retain digits --keep 1").await;
    assert_eq!(again, "digits has no version that could be forgotten\n");
    assert_eq!(
        roost.json("versions retain digits --keep 3").await,
        json!({ "model": "digits", "forgotten": [] })
    );
    for (line, code, why) in [
        ("versions retain digits --keep 0", 2, "0 is not in 1.."),
        ("versions retain nothing --keep 1", 1, "there is no model nothing"),
        ("rollout start digits@4 --steps 20%", 1, "there is no version digits@4"),
        ("infer digits@4 --input image=models/heldout_images.npy --rows 0..1", 1, "digits@4 is not hosted"),
    ] {
        let (found, said) = roost.refused(line).await;
        assert!(found == Some(code) && said.contains(why), "{line}: {said}");
    }
    for target in ["digits", "digits:prod"] {
        let asked = format!("infer {target} --input image=models/heldout_images.npy --rows 0..1");
        let version = &roost.json(&asked).await["version"];
        assert_eq!(version, if target == "digits" { "digits@1" } else { "digits@2" });
    }

    // What is still a version's is the same bundle yet; what was forgotten is new, under a number that was never given.
    pushed(&roost, "models/v2", 5, true).await;
    pushed(&roost, "other", 6, false).await;
    // An undo would lead back to the first.
    roost.ok("rollout start digits@6 --steps 20%").await;
    roost.until("rollout status digits", |status| status.contains("at 20%, running")).await;
    assert_eq!(roost.json("versions retain digits --keep 1").await["forgotten"], json!([5]));
    roost.ok("rollout promote digits").await;
    roost.ok("label remove digits prod").await;
    assert_eq!(roost.json("versions retain digits --keep 1").await["forgotten"], json!([2]));
    let versions = roost.ok("versions digits").await;
    assert_eq!(rows(&versions, "digits@1")[0][1], "previous", "{versions}");
    roost.ok("rollout undo digits").await;
    assert_eq!(listed(&roost).await, [1, 6]);
    cluster.stop().await;
}
