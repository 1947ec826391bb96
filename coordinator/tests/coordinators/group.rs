//! A group of three: it forms, agrees, loses a member and takes it back, also by way of a snapshot.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream;
use roost_protocol::messages::control::{Answer, Change, Outcome, Query, Watched};
use roost_protocol::quic::Link;
use roost_protocol::quic::watch::{Update, Watch, WatchError};
use roost_protocol::view::{Published, View};
use roost_protocol::{ClusterId, CommandError, ControlError, Label, ModelVersion, RequestId, Version};

use crate::party::{Party, digits, log, stop_all};

fn knows(published: &Published, version: u32) -> bool {
    let model = published.view.as_ref().and_then(|view| view.models.get(&digits()));
    model.is_some_and(|model| model.versions.contains_key(&Version(version)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_forms_agrees_loses_one_and_takes_it_back() {
    let party = Party::new(3);
    let mut members = party.members().await;
    let operator = party.operator().await;
    assert_eq!(
        operator.push(b"one").await,
        Outcome::Pushed { version: Version(1), stable: true, existing: false }
    );
    assert_eq!(
        operator.push(b"two").await,
        Outcome::Pushed { version: Version(2), stable: false, existing: false }
    );
    let refused = operator.change(Change::Undo { model: digits() }).await.unwrap_err();
    assert!(matches!(refused, ControlError::Refused(CommandError::NothingToUndo { .. })), "{refused}");
    let Answer::Cluster(cluster) = operator.query(Query::Cluster).await else { panic!() };
    assert_eq!(cluster.cluster, ClusterId(1), "the first of the config forms the group");

    // The leader goes; the others elect another and go on.
    let leader = cluster.leader.0 as usize;
    members[leader - 1].take().unwrap().stop().await;
    let target = ModelVersion { model: digits(), version: Version(2) };
    let start = Change::StartRollout { target, weight: "20%".parse().unwrap() };
    operator.change(start).await.unwrap();

    // It comes back with its disk and learns what it missed.
    let mut back = party.member(leader).await;
    back.publishes(|published| knows(published, 2)).await;
    members[leader - 1] = Some(back);

    // All at once, and again: what was acknowledged is there.
    stop_all(members).await;
    let members = party.members().await;
    let Answer::Versions(versions) = operator.query(Query::Versions(digits())).await else { panic!() };
    assert_eq!(versions.len(), 2);
    let Answer::Rollout(rollout) = operator.query(Query::Rollout(digits())).await else { panic!() };
    assert_eq!(rollout.rollout.unwrap().target, Version(2));
    stop_all(members).await;
}

/// More entries than are kept behind a snapshot: whoever was away needs the snapshot itself.
const ENTRIES: u128 = 5_500;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_for_long_takes_the_snapshot() {
    let party = Party::new(3);
    let mut members = party.members().await;
    let operator = party.operator().await;
    operator.push(b"one").await;
    let away = if operator.leader().await == 3 { 2 } else { 3 };
    members[away - 1].take().unwrap().stop().await;
    let version = ModelVersion { model: digits(), version: Version(1) };
    let label = |i: u128| Label::new(&format!("l{}", i % 50)).unwrap();
    let changes = stream::iter(0..ENTRIES).map(|i| {
        let change = Change::SetLabel { version: version.clone(), label: label(i) };
        operator.change_as(RequestId(1 << 64 | i), change)
    });
    let done: Vec<_> = changes.buffer_unordered(48).collect().await;
    assert!(done.iter().all(Result::is_ok));

    let all = |published: &Published| {
        published.view.as_ref().is_some_and(|view| view.models[&digits()].labels.len() == 50)
    };
    // A leader keeps what it is just sending to the one that is away; the other has forgotten it, and leads now.
    let leader = operator.leader().await;
    members[leader - 1].take().unwrap().stop().await;
    let mut back = party.member(away).await;
    back.publishes(all).await;
    assert!(log().contains("took a snapshot in the place of the entries"));
    // It goes on from there, and begins with it when it starts again.
    operator.change(Change::SetLabel { version, label: Label::new("last").unwrap() }).await.unwrap();
    let last = |published: &Published| {
        let view = published.view.as_ref();
        view.is_some_and(|view| view.models[&digits()].labels.keys().any(|label| label.as_str() == "last"))
    };
    back.publishes(last).await;
    back.stop().await;
    let mut back = party.member(away).await;
    back.publishes(last).await;
    members[away - 1] = Some(back);
    stop_all(members).await;
}

/// A watch at `member`, and the first view that it delivers.
async fn watch(link: &Link) -> (Watch, Arc<View>) {
    let mut watch = Watch::start(link, None, Watched::All).await.unwrap();
    loop {
        if let Update::View(view) = watch.next().await.unwrap() {
            return (watch, view);
        }
    }
}

/// One that was let go is sent nothing more, not even the change that says so; whoever watches it has to hear that others may
/// know more. With nobody else to turn to, it still gives what it has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hears_no_leader_ends_the_watches_it_serves_and_takes_new_ones() {
    let party = Party::new(3);
    let mut members = party.members().await;
    let operator = party.operator().await;
    operator.push(b"one").await;
    let leader = operator.leader().await;
    let left = if leader == 1 { 2 } else { 1 };
    members[left - 1].as_mut().unwrap().publishes(|published| knows(published, 1)).await;
    let link = operator.control.to(party.address(left)).await.unwrap();
    let (mut watching, before) = watch(&link).await;

    // As long as a leader is heard, the watch goes on: longer than the silence of fifty heartbeats of 100 ms.
    let quiet = async {
        loop {
            watching.next().await.unwrap();
        }
    };
    assert!(tokio::time::timeout(Duration::from_secs(7), quiet).await.is_err(), "it goes on for ever");

    for other in (1..=3).filter(|other| *other != left) {
        members[other - 1].take().unwrap().stop().await;
    }
    let ended = async {
        loop {
            if let Err(error) = watching.next().await {
                return error;
            }
        }
    };
    let error = tokio::time::timeout(Duration::from_secs(30), ended).await.expect("it ends");
    assert!(matches!(error, WatchError::Stream(_)), "{error}");
    let (_watch, after) = watch(&link).await;
    assert_eq!(before.models, after.models);
    stop_all(members).await;
}
