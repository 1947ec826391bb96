//! A rollout by hand: what a person types and sees, from certificates to a canary that is given up.

use std::os::unix::fs::symlink;

use serde_json::{Value, json};

use crate::roost::{Roost, nodes_at, rows};
use crate::support::{Cluster, Digits, digits_folder};

/// Held-out digits that one request asks about.
const ROWS: usize = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rollout_by_hand() {
    let mut cluster = Cluster::prepare(1, 2).await;
    make_certificates(&cluster).await;
    for (name, _) in cluster.nodes().to_vec() {
        cluster.spawn(&name);
    }
    let roost = Roost::of(&cluster);
    symlink(digits_folder(), cluster.folder().join("models")).unwrap();
    let digits = Digits::read();
    roost.write("one.json", image(&digits, 0).to_string());

    push_two_versions(&roost).await;
    ask_from_files(&roost, &digits).await;
    lead_a_canary(&roost).await;
    promote_and_take_back(&roost).await;
    look_back(&roost).await;
    cluster.stop().await;
}

async fn make_certificates(cluster: &Cluster) {
    let roost = Roost::at(cluster.folder());
    let said = roost.ok("certs init --cluster test").await;
    assert!(said.starts_with("wrote certs/ca.pem and certs/ca.key\n"), "{said}");
    for (name, role) in cluster.nodes() {
        let said = roost.ok(&format!("certs issue {name} --roles {role}")).await;
        assert!(said.starts_with(&format!("wrote certs/{name}.pem and certs/{name}.key\n")), "{said}");
    }
    let said = roost.ok("certs issue anna --roles operator,client").await;
    assert!(said.contains("A profile (roost.toml) that uses it"), "{said}");
}

/// An image in JSON, as a batch of one.
fn image(digits: &Digits, i: usize) -> Value {
    let lines: Vec<&[f32]> = digits.pixels(i).chunks(8).collect();
    json!([[lines]])
}

async fn push_two_versions(roost: &Roost) {
    let said = roost.until("models --timeout 60", |_| true).await;
    assert_eq!(said, "no models yet; `roost push MODEL FOLDER` makes one\n");
    let said = roost.ok("push digits models/v1 --note a-regression").await;
    assert!(said.starts_with("digits@1 (") && said.contains("the first of digits"), "{said}");
    let status =
        roost.until("cluster status", |status| nodes_at(status, "digits@1", "ready") == ["w1", "w2"]).await;
    assert!(status.starts_with("cluster ") && status.contains(", led by c1 in term "), "{status}");
    let roles: Vec<_> = rows(&status, "c1").iter().map(|cells| cells[2]).collect();
    assert_eq!(roles, ["leader"], "{status}");
    for worker in ["w1", "w2"] {
        assert_eq!(rows(&status, worker)[0][2..4], ["active", "live"], "{status}");
    }
    for cells in rows(&status, "digits@1") {
        assert_eq!(cells[2..5], ["yes", "ready", "native"], "{status}");
    }

    let said = roost.ok("push digits models/v2").await;
    assert!(said.contains("next: roost rollout start digits@2 --steps 20%"), "{said}");
    let models = roost.ok("models").await;
    assert_eq!(rows(&models, "digits"), [["digits", "@1", "2", "1"]], "{models}");
    let versions = roost.ok("versions digits").await;
    let first = &rows(&versions, "digits@1")[0];
    assert_eq!(
        (&first[1..3], first[4], first[first.len() - 1]),
        (&["stable", "100%"][..], "anna", "a-regression")
    );
    let second = &rows(&versions, "digits@2")[0];
    assert!(second[2] == "anna" && !second.contains(&"stable"), "{versions}");
}

/// The labels that an answer gives to its rows.
fn labels(answer: &Value) -> Vec<&str> {
    let rows = answer["labels"]["rows"].as_array().unwrap();
    rows.iter().map(|row| row["best"][0]["label"].as_str().unwrap()).collect()
}

async fn ask_from_files(roost: &Roost, digits: &Digits) {
    let asked = format!("infer digits --input image=models/heldout_images.npy --rows 0..{ROWS}");
    let answer = roost.json(&asked).await;
    assert_eq!((&answer["version"], &answer["batch_rows"]), (&json!("digits@1"), &json!(ROWS)));
    let right = labels(&answer).iter().zip(0..).filter(|(label, i)| **label == digits.label(*i)).count();
    // The regression is right on 92.9 % of all.
    assert!(right >= ROWS * 8 / 10, "{right} of {ROWS}: {answer:#}");

    let text =
        roost.ok("infer digits --key user-1 --input image=models/heldout_images.npy --rows 0..2").await;
    assert!(text.starts_with("digits@1 on w") && text.contains("for a batch of 2 rows)"), "{text}");
    assert_eq!(rows(&text, "ROW"), [["ROW", "BEST", "SECOND", "THIRD"]]);
    let best = |row: &str| rows(&text, row)[0][1].to_owned();
    assert_eq!([best("0"), best("1")], labels(&answer)[..2], "{text}");

    // The same image, written in JSON.
    let one = roost.json("infer digits@1 --input image=one.json").await;
    assert_eq!(labels(&one), labels(&answer)[..1]);
    assert_eq!(one["outputs"][0]["shape"], json!([1, 10]));
}

async fn lead_a_canary(roost: &Roost) {
    let said = roost.ok("rollout start digits@2 --steps 20%").await;
    assert!(said.starts_with("digits@2 takes 20% of digits once it is ready; "), "{said}");
    let running = "rollout to digits@2 at 20%, running";
    let status = roost.until("rollout status digits", |status| status.contains(running)).await;
    assert_eq!(rows(&status, "digits@1"), [["digits@1", "stable", "80%", "2 of 2", "w1, w2"]]);
    assert_eq!(rows(&status, "digits@2"), [["digits@2", "canary", "20%", "2 of 2", "w1, w2"]]);
    let models = roost.ok("models").await;
    assert_eq!(rows(&models, "digits")[0][1..3], ["@1", "@2 20%"], "{models}");

    // That all of a hundred go one way has odds of one in five thousand millions.
    let text = roost.ok("infer digits --input image=one.json --repeat 100").await;
    let tally = &text[text.find("VERSION").unwrap()..];
    let answers = |version: &str| -> u32 {
        rows(tally, version).iter().map(|cells| cells[2].parse::<u32>().unwrap()).sum()
    };
    let (stable, canary) = (answers("digits@1"), answers("digits@2"));
    assert!(stable > 0 && canary > 0 && stable + canary == 100, "{tally}");
    for key in ["anna", "bert", "carla", "dora"] {
        let asked = format!("infer digits --key {key} --input image=one.json");
        let (first, again) = (roost.json(&asked).await, roost.json(&asked).await);
        assert_eq!(first["version"], again["version"], "{key} keeps its version");
    }
    // Nodes count what they answer, and the leader hears of it.
    let counted = |status: &str| {
        let rows = rows(status, "digits@2");
        rows.iter().map(|cells| cells[5].parse::<u32>().unwrap_or(0)).sum::<u32>() >= canary
    };
    roost.until("cluster status", counted).await;
}

async fn promote_and_take_back(roost: &Roost) {
    assert_eq!(roost.ok("label set digits@2 best").await, "digits:best is digits@2\n");
    let said = roost.ok("rollout promote digits").await;
    assert!(said.starts_with("digits@2 takes all traffic (revision "), "{said}");
    let answers = roost.json("infer digits --input image=one.json").await;
    assert_eq!(answers["version"], "digits@2");
    let status = roost.ok("rollout status digits").await;
    assert!(status.contains(": no rollout in progress\n"), "{status}");
    assert_eq!(rows(&status, "digits@2")[0][1..3], ["stable", "100%"], "{status}");
    assert_eq!(rows(&status, "digits@1")[0][1..3], ["previous", "0%"], "{status}");

    let said = roost.ok("rollout undo digits").await;
    assert!(said.starts_with("digits@1 takes all traffic (revision "), "{said}");
    let versions = ["digits", "digits:best"].map(|target| format!("infer {target} --input image=one.json"));
    assert_eq!(roost.json(&versions[0]).await["version"], "digits@1");
    assert_eq!(roost.json(&versions[1]).await["version"], "digits@2");

    roost.ok("rollout start digits@2 --steps 50%").await;
    roost.until("rollout status digits", |status| status.contains("at 50%, running")).await;
    let said = roost.ok("rollout abort digits --reason worse").await;
    assert!(said.starts_with("digits@1 takes all traffic (revision "), "{said}");
}

async fn look_back(roost: &Roost) {
    let history = roost.ok("rollout history digits").await;
    let lines = history.lines().skip(1).map(|line| line.rsplit("  ").next().unwrap().trim());
    // A busy machine may silence a worker for long enough to make the rollout pause; it goes on by itself.
    let is_step = |line: &&str| !line.starts_with("the rollout ");
    let expected = [
        "digits@1, the first, takes all traffic",
        "rollout to digits@2 starts, at 20% once it is ready",
        "digits@2 takes 20%",
        "digits@2 takes all traffic",
        "digits@1 takes all traffic again, from digits@2",
        "rollout to digits@2 starts, at 50% once it is ready",
        "digits@2 takes 50%",
        "rollout to digits@2 ends: worse",
    ];
    assert_eq!(lines.filter(is_step).collect::<Vec<_>>(), expected, "{history}");
    let json = roost.json("rollout history digits").await;
    let revisions: Vec<_> = json.as_array().unwrap().iter().map(|event| event["revision"].as_u64()).collect();
    assert!(revisions.is_sorted() && revisions[0] == Some(1), "{json:#}");
}
