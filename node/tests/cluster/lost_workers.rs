//! Workers that die, most of them at once: the rest serves on. Those that died with their disks are followed by machines of
//! the same names, the first once an operator says that the old one is gone; the one that kept its disk comes back as it was.

use std::collections::BTreeSet;
use std::sync::Arc;

use roost_protocol::view::{Hold, NodeState, View};
use roost_protocol::{NodeId, NodeName};

use crate::load::Load;
use crate::roost::{Roost, nodes_at};
use crate::support::{Cluster, Digits, digits_folder, push, wait_for_stage};
use crate::{at, wait_for, wait_for_workers};

/// The id and the state of the worker of a name.
fn worker(view: &View, name: &str) -> Option<(NodeId, NodeState, Option<Hold>)> {
    let name = NodeName::new(name).unwrap();
    view.nodes.iter().find(|(_, node)| node.name == name).map(|(id, node)| (*id, node.state, node.hold))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lost_workers_are_replaced_by_machines_of_their_names() {
    let mut cluster = Cluster::start(3, 4).await;
    let client = cluster.connect().await;
    let roost = Roost::of(&cluster);
    wait_for_workers(&client, 4).await;
    push(&client, "digits", &digits_folder().join("v1")).await;
    wait_for_stage(&client, &at(1), 2).await;
    let load = Load::start(client.clone(), Arc::new(Digits::read()));

    // One that serves stays; the others die, two of them with their disks.
    let status =
        roost.until("cluster status", |status| nodes_at(status, "digits@1", "ready").len() == 2).await;
    let stays = nodes_at(&status, "digits@1", "ready")[0].to_owned();
    let mut lost: Vec<String> =
        ["w1", "w2", "w3", "w4"].map(str::to_owned).into_iter().filter(|w| *w != stays).collect();
    let published = client.published();
    let id_of = |name: &str| worker(published.borrow().view.as_ref().unwrap(), name).unwrap().0;
    let before: BTreeSet<NodeId> = lost.iter().map(|name| id_of(name)).collect();
    cluster.kill_at_once(&lost);
    let away = lost.pop().unwrap();
    let was = id_of(&away);
    for name in &lost {
        std::fs::remove_dir_all(cluster.data_of(name)).unwrap();
        cluster.spawn(name);
    }

    // With one of four heard, nobody is declared out by himself, and the names are taken.
    let (first, second) = (&lost[0], &lost[1]);
    let gone = roost.ok(&format!("node drain {first} --timeout 85")).await;
    assert!(gone.starts_with(first.as_str()), "{gone}");
    let log = cluster.log(first);
    assert!(log.contains("is a member already") && log.contains(&format!("node drain {first}")), "{log}");
    let is_new = |view: &View, name: &str| {
        worker(view, name).is_some_and(|(id, state, _)| !before.contains(&id) && state == NodeState::Active)
    };
    wait_for(&client, "the first has joined", |published| {
        published.view.as_ref().is_some_and(|view| is_new(view, first))
    })
    .await;
    // Its predecessor was held back, so it is too.
    roost.ok(&format!("node uncordon {first}")).await;

    // Two of four are heard now, so the other old ones go by themselves.
    let is = |view: &View, state| worker(view, &away).is_some_and(|(id, now, _)| id == was && now == state);
    wait_for(&client, "the second has joined", |published| {
        let joined =
            |view: &Arc<View>| is_new(view, second) && is(view, NodeState::Out) && view.nodes.len() == 4;
        published.view.as_ref().is_some_and(joined)
    })
    .await;
    cluster.spawn(&away);
    wait_for(&client, "the one that was away is back", |published| {
        published.view.as_ref().is_some_and(|view| is(view, NodeState::Active))
    })
    .await;
    wait_for_stage(&client, &at(1), 2).await;
    load.end().await;
    cluster.stop().await;
}
