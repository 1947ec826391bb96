//! Coordinators whose disk fails: each stops and says what failed, the others go on, and with an empty folder it is taken in again.

use std::path::Path;
use std::sync::Arc;

use roost_protocol::messages::control::Change;
use roost_protocol::{Label, ModelVersion};
use tokio::time::Instant;

use crate::at;
use crate::deaths::{all_caught_up, all_keep_the_same};
use crate::load::{Load, insist};
use crate::roost::{Roost, rows};
use crate::support::{Cluster, Digits, PATIENCE, digits_folder, push, wait_for_stage};

/// Requests a second.
const RATE_PER_S: u32 = 500;
/// What the log of the process may still take up when its database may not grow any more.
const LOG_BYTES: u64 = 32 << 10;
/// A label whose record in the coordinators' log is damaged.
const DAMAGED: &str = "lies-on-a-bad-sector";

fn set_label(version: ModelVersion, label: &str) -> Change {
    Change::SetLabel { version, label: Label::new(label).unwrap() }
}

/// Flips a bit wherever a text lies in a file: a database that copies what it writes may keep older copies. Returns how often.
fn flip_each(path: &Path, text: &str) -> usize {
    let mut bytes = std::fs::read(path).unwrap();
    let found = bytes.windows(text.len()).enumerate().filter(|(_, window)| *window == text.as_bytes());
    let found: Vec<usize> = found.map(|(i, _)| i).collect();
    found.iter().for_each(|i| bytes[i + text.len() / 2] ^= 1);
    std::fs::write(path, bytes).unwrap();
    found.len()
}

/// What a coordinator tells its operator to do about a disk that failed.
fn advice(name: &str) -> String {
    format!(
        "Empty the node's whole data folder, start it, and have it join under a new identity: `roost cluster members replace {name}`"
    )
}

fn says(log: &str, parts: &[&str]) {
    for part in parts {
        assert!(log.contains(part), "nobody says {part:?}: {log}");
    }
}

/// Puts a machine with an empty disk in the place of a coordinator, as the manual says.
async fn replace(cluster: &mut Cluster, roost: &Roost, name: &str) {
    std::fs::remove_dir_all(cluster.data_of(name)).unwrap();
    cluster.spawn(name);
    let said = roost.ok(&format!("cluster members replace {name} --timeout 60")).await;
    let role: Vec<&str> = rows(&said, name).iter().map(|cells| cells[3]).collect();
    assert_eq!(role, ["voter"], "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn coordinators_whose_disks_fail_stop_and_are_taken_in_again() {
    let mut cluster = Cluster::prepare(3, 2).await;
    cluster.issue_certificates();
    for (name, _) in cluster.nodes().to_vec() {
        cluster.spawn_limitable(&name);
    }
    let client = cluster.connect().await;
    let (control, roost) = (client.control().clone(), Roost::of(&cluster));
    push(&client, "digits", &digits_folder().join("v1")).await;
    wait_for_stage(&client, &at(1), 2).await;
    let load = Load::at_rate(client.clone(), Arc::new(Digits::read()), RATE_PER_S);
    let begun = Instant::now();
    insist(&control, set_label(at(1), DAMAGED)).await;

    // The leader's writes begin to fail.
    let leads = cluster.name_of(&client, control.cluster().await.unwrap().leader);
    cluster.limit_files(&leads, cluster.log(&leads).len() as u64 + LOG_BYTES);
    let failed = Instant::now();
    for number in 0.. {
        insist(&control, set_label(at(1), &format!("n-{}", number % 8))).await;
        if control.cluster().await.is_ok_and(|found| cluster.name_of(&client, found.leader) != leads) {
            break;
        }
        assert!(failed.elapsed() < PATIENCE, "{leads} leads on");
    }
    let log = cluster.ended(&leads).await;
    says(&log, &["a write failed: File too large", &advice(&leads), "has given up"]);
    println!("{leads} led and could not write; it stopped, and others led after {:?}", failed.elapsed());
    replace(&mut cluster, &roost, &leads).await;
    all_caught_up(&control).await;

    // Another's records are not what was written any more when it starts again.
    let damaged = ["c1", "c2", "c3"].into_iter().find(|name| *name != leads).unwrap();
    cluster.terminate(damaged).await;
    let database = cluster.data_of(damaged).join("raft.redb");
    assert!(flip_each(&database, DAMAGED) > 0, "nothing was damaged");
    cluster.spawn(damaged);
    let log = cluster.ended(damaged).await;
    says(&log, &[&advice(damaged)]);
    let said = log.lines().last().unwrap();
    assert!(said.contains("what the disk holds is damaged"), "{log}");
    println!("{damaged} has a flipped bit: {said}");
    // It is no accident of one start.
    cluster.spawn(damaged);
    assert_eq!(cluster.ended(damaged).await.lines().last(), Some(said));
    insist(&control, set_label(at(1), "of-two")).await;
    replace(&mut cluster, &roost, damaged).await;

    let list = roost.ok("cluster members list").await;
    let voters = ["c1", "c2", "c3"].map(|name| rows(&list, name).len());
    assert_eq!(voters, [1; 3], "{list}");
    assert!(!list.contains("learner"), "{list}");
    all_keep_the_same(&control).await;
    let gap = load.longest_gap(begun, Instant::now());
    println!("two disks failed in {:?}, longest time without an answer {gap:?}", begun.elapsed());
    load.end().await;
    cluster.stop().await;
}
