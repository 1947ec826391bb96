//! What makes no sense is refused in words that say what to do, what is no model fails where everybody can see why, and
//! what there was before is served on.

use std::os::unix::fs::symlink;

use serde_json::json;

use crate::roost::{Roost, nodes_at, profile, rows};
use crate::support::{Cluster, Digits, digits_folder};

const ONE: &str = "--input image=one.json";

/// A command that must be refused: its line, and what it says on standard error.
type Row<'a> = (&'a str, &'a [&'a str]);

/// Requests that no version can answer.
const REQUESTS: &[Row<'_>] = &[
    ("infer nothing --input image=one.json", &[r#"there is no model "nothing""#, "`roost models` lists"]),
    ("infer digits@9 --input image=one.json", &["digits@9 is not hosted; hosted: [1]", "`roost versions"]),
    ("infer digits:prod --input image=one.json", &[r#"no version of digits bears the label "prod""#]),
    (
        "infer digits --input picture=one.json",
        &[r#"digits@1 has no input "picture"; its inputs are ["image"]"#, "--input NAME=FILE"],
    ),
    ("infer digits --input image=one.json --input image=one.json", &[r#"the input "image" was given twice"#]),
    (
        "infer digits --input image:i64=whole.json",
        &[r#"input "image" is of f32, i64 came"#, "state the type of a .json file"],
    ),
    ("infer digits --input image=flat.json", &[r#"input "image" has the shape [N, 1, 8, 8], [64] came"#]),
    ("infer digits --input image=wide.json", &["the shape [N, 1, 8, 8], [1, 1, 8, 9] came"]),
    ("infer digits --input image=ragged.json", &["ragged.json"]),
    ("infer digits --input image=missing.json", &["cannot read missing.json"]),
    ("infer digits --input image=digits.txt", &["neither .npy nor .json"]),
    ("infer digits --image one.json", &["one.json is no picture that can be read"]),
];

/// Changes that the state of the cluster, the folder or the certificate does not allow.
const CHANGES: &[Row<'_>] = &[
    ("versions nothing", &["there is no model nothing; `roost models` lists them"]),
    ("rollout status nothing", &["there is no model nothing"]),
    ("rollout start nothing@1 --steps 20%", &["there is no model nothing"]),
    ("rollout start digits@9 --steps 20%", &["there is no version digits@9; `roost versions digits` lists"]),
    ("rollout start digits@1 --steps 20%", &["digits@1 is the stable version already"]),
    ("rollout promote digits", &["digits has no rollout in progress; start one with `roost rollout start"]),
    ("rollout abort digits", &["digits has no rollout in progress"]),
    ("rollout undo digits", &["digits has no promotion to undo; "]),
    ("label set digits@9 prod", &["there is no version digits@9"]),
    ("label remove digits prod", &["no version of digits bears the label prod"]),
    ("push digits missing", &["cannot read missing", "a folder with model.onnx"]),
    ("push digits no-model", &["model.onnx"]),
    ("push digits bad-manifest", &["model.toml", "unknown field `replica`"]),
    (
        "push digits models/v2 --profile bert.toml",
        &["needs a certificate with the role operator", "bert", "has client", "`roost certs issue NAME"],
    ),
];

async fn check(roost: &Roost, rows: &[Row<'_>]) {
    for (line, expected) in rows {
        let (code, said) = roost.refused(line).await;
        assert_eq!(code, Some(1), "roost {line}: {said}");
        assert!(said.starts_with("roost: "), "roost {line}: {said}");
        for part in *expected {
            assert!(said.contains(part), "roost {line}: {part} is missing in: {said}");
        }
    }
}

/// A cluster that serves `digits@1`, and the files that the commands name.
async fn start() -> (Cluster, Roost) {
    let mut cluster = Cluster::prepare(1, 2).await;
    cluster.spawn_all();
    let roost = Roost::of(&cluster);
    symlink(digits_folder(), cluster.folder().join("models")).unwrap();
    roost.ok("push digits models/v1 --timeout 60").await;
    roost.until("cluster status", |status| nodes_at(status, "digits@1", "ready").len() == 2).await;
    let lines: Vec<Vec<f32>> = Digits::read().pixels(0).chunks(8).map(<[f32]>::to_vec).collect();
    roost.write("one.json", json!([[lines]]).to_string());
    (cluster, roost)
}

/// What must be as it was, whatever was refused.
async fn standing(roost: &Roost) -> [String; 3] {
    [roost.ok("models").await, roost.ok("versions digits").await, roost.ok("rollout history digits").await]
}

async fn answers(roost: &Roost, version: &str) {
    for key in ["anna", "bert", "carla"] {
        let answer = roost.json(&format!("infer digits --key {key} {ONE}")).await;
        assert_eq!((&answer["version"], &answer["fallback"]), (&json!(version), &json!(false)));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let (cluster, roost) = start().await;
    roost.ok("certs issue bert --roles client").await;
    roost.write("bert.toml", profile(&cluster, "bert"));
    roost.write("whole.json", json!([[vec![[1; 8]; 8]]]).to_string());
    roost.write("flat.json", json!(vec![0.5; 64]).to_string());
    roost.write("wide.json", json!([[vec![[0.5; 9]; 8]]]).to_string());
    roost.write("ragged.json", "[[[[1, 2], [3]]]]");
    roost.write("digits.txt", "7");
    roost.write("no-model/model.toml", "replicas = 2");
    roost.write("bad-manifest/model.onnx", "a graph");
    roost.write("bad-manifest/model.toml", "replica = 2");
    let before = standing(&roost).await;
    check(&roost, REQUESTS).await;
    check(&roost, CHANGES).await;
    assert_eq!(standing(&roost).await, before);
    answers(&roost, "digits@1").await;
    cluster.stop().await;
}

/// Starts a rollout to a version that cannot be loaded and waits until both nodes say why.
async fn fails(roost: &Roost, version: &str, why: &str) {
    roost.ok(&format!("rollout start {version} --steps 20%")).await;
    let status = roost.until("cluster status", |status| nodes_at(status, version, "failed").len() == 2).await;
    for cells in rows(&status, version) {
        assert!(cells[cells.len() - 1].contains(why), "{status}");
    }
    let status = roost.ok("rollout status digits").await;
    assert!(status.contains(&format!("rollout to {version} at 20%, preparing")), "{status}");
    assert_eq!(rows(&status, version)[0][1..4], ["target", "0%", "0 of 2"], "{status}");
    assert!(status.contains("(failed: ") && status.contains(why), "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_no_model_fails_visibly_and_the_stable_version_serves_on() {
    let (cluster, roost) = start().await;
    let read = |name: &str| std::fs::read(digits_folder().join(name)).unwrap();
    let (model, manifest) = (read("v1/model.onnx"), read("v1/model.toml"));
    roost.write("corrupt/model.onnx", &model[..model.len() / 2]);
    roost.write("corrupt/model.toml", &manifest);
    roost.write("text/model.onnx", "This is no model.");
    roost.ok("push digits corrupt").await;
    roost.ok("push digits text").await;
    roost.ok("push digits models/v2").await;

    let why = "model.onnx is not an ONNX model: ";
    fails(&roost, "digits@2", why).await;
    answers(&roost, "digits@1").await;
    check(
        &roost,
        &[
            (
                "rollout start digits@4 --steps 20%",
                &["digits has a rollout to version 2 in progress; promote or abort it first"],
            ),
            (
                "rollout promote digits",
                &["digits@2 has 0 ready replicas, the change needs 2; `roost cluster status` shows why"],
            ),
        ],
    )
    .await;
    roost.ok("rollout abort digits").await;
    fails(&roost, "digits@3", why).await;
    roost.ok("rollout abort digits").await;

    // As a model's first version it takes all traffic at once, and whoever asks is told that nobody can answer.
    roost.ok("push garbage text").await;
    roost.until("cluster status", |status| nodes_at(status, "garbage@1", "failed").len() == 2).await;
    let asked = format!("infer garbage {ONE} --deadline-ms 3000");
    check(&roost, &[(&asked, &["no replica of garbage@1 is ready", "`roost cluster status` shows"])]).await;

    // The next good version is rolled out as if nothing had been.
    answers(&roost, "digits@1").await;
    roost.ok("rollout start digits@4 --steps 20%").await;
    roost.until("rollout status digits", |status| status.contains("at 20%, running")).await;
    roost.ok("rollout promote digits").await;
    answers(&roost, "digits@4").await;
    cluster.stop().await;
}
