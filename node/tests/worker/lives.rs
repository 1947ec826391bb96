//! Fetching, repairing, draining, and following the view.

use roost_protocol::InferError;
use roost_protocol::quic::Role;
use roost_protocol::view::Stage;

use crate::exchange::{ask, gather, header, x};
use crate::world::{Files, Start, Store, World, add_holder, change, host};

/// A worker whose store is empty, and a view that names a holder with the bundle.
async fn to_fetch() -> Start {
    let holder = Store::new();
    Files::doubles().put(&holder.bundles).await;
    to_fetch_from(&holder).await
}

async fn to_fetch_from(holder: &Store) -> Start {
    let files = Files::doubles();
    let mut start = Start::with(&[]).await;
    host(&mut start.view, "doubles@1", files.hosted());
    add_holder(&mut start.view, 1, holder.serve().await);
    start
}

async fn answers(world: &World) {
    let link = world.link(&[Role::Client]).await;
    assert_eq!(ask(&link, header("doubles@1"), &x(&[1.0, 2.0])).await.f32s("y"), [2.0, 4.0]);
}

#[tokio::test]
async fn a_bundle_is_fetched_from_a_holder() {
    let world = to_fetch().await.ready().await;
    answers(&world).await;
    assert_eq!(world.store.bundles.held().await.unwrap(), [Files::doubles().list().digest()]);
}

#[tokio::test]
async fn a_fetch_goes_on_until_there_is_a_holder() {
    let mut start = to_fetch().await;
    let holders = std::mem::take(&mut start.view.coordinators);
    let mut world = start.run().await;
    let of = Files::doubles().list().bytes();
    assert_eq!(world.until_stage("fetching").await, Stage::Fetching { bytes: 0, of });
    let mut view = world.view();
    view.coordinators = holders;
    world.publish(view);
    world.until_stage("ready").await;
    answers(&world).await;
}

#[tokio::test]
async fn a_damaged_bundle_on_the_disk_is_fetched_again() {
    let start = to_fetch().await;
    Files::doubles().put(&start.store.bundles).await;
    start.store.damage(&Files::doubles()).await;
    let world = start.ready().await;
    answers(&world).await;
}

#[tokio::test]
async fn what_all_holders_give_damaged_is_given_up() {
    let (holder, files) = (Store::new(), Files::doubles());
    files.put(&holder.bundles).await;
    holder.damage(&files).await;
    let mut world = to_fetch_from(&holder).await.run().await;
    // A holder removes what it finds damaged; from a bad disk it comes back as bad.
    let bad_disk = async {
        loop {
            holder.damage(&files).await;
            holder.bundles.seal(&files.list()).await.unwrap();
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let stage = tokio::select! {
        stage = world.until_stage("failed") => stage,
        () = bad_disk => unreachable!("it goes on for ever"),
    };
    let Stage::Failed { reason } = stage else { panic!() };
    assert!(reason.contains("is damaged") && reason.contains("should have the digest"), "{reason}");
}

fn without_doubles(world: &World) -> roost_protocol::view::View {
    let mut view = world.view();
    view.models.clear();
    view
}

#[tokio::test]
async fn a_version_that_is_not_routed_to_drains_and_goes() {
    let mut start = Start::with(&[("doubles@1", Files::doubles())]).await;
    start.config.drain_ms_min = 100;
    let mut world = start.ready().await;
    world.script.set_open(false);
    let running = world.handle.infer(&header("doubles@1"), x(&[1.0, 2.0]));
    world.script.until(|seen| seen.runs.len() == 2).await;
    world.publish(without_doubles(&world));
    world.until_stage("draining").await;
    // Whoever has not heard of it yet is still served, however long that takes.
    let late = world.handle.infer(&header("doubles@1"), x(&[3.0, 4.0]));
    world.script.set_open(true);
    assert_eq!(gather(running).await.f32s("y"), [2.0, 4.0]);
    assert_eq!(gather(late).await.f32s("y"), [6.0, 8.0]);
    world.until(|reports| reports.is_empty()).await;
    let refused = gather(world.handle.infer(&header("doubles@1"), x(&[1.0, 2.0]))).await;
    let InferError::NotHere { index, .. } = *refused.error() else { panic!("{refused:?}") };
    assert_eq!(index, world.view().epoch.index);
}

#[tokio::test]
async fn a_draining_version_that_is_wanted_again_goes_on_without_a_load() {
    let mut start = Start::with(&[("doubles@1", Files::doubles())]).await;
    start.config.drain_ms_min = 60_000;
    let mut world = start.ready().await;
    let with_doubles = world.view();
    world.publish(without_doubles(&world));
    world.until_stage("draining").await;
    let mut view = world.view();
    view.models = with_doubles.models;
    world.publish(view);
    world.until_stage("ready").await;
    answers(&world).await;
    assert_eq!(world.script.seen().loads, 1);
}

#[tokio::test]
async fn a_version_that_was_let_go_is_hosted_again_when_it_is_wanted() {
    let mut start = Start::with(&[("doubles@1", Files::doubles())]).await;
    start.config.drain_ms_min = 0;
    let mut world = start.ready().await;
    let models = world.view().models;
    world.publish(without_doubles(&world));
    world.until(|reports| reports.is_empty()).await;
    let mut view = world.view();
    view.models = models;
    world.publish(view);
    world.until_stage("ready").await;
    answers(&world).await;
    assert_eq!(world.script.seen().loads, 2);
}

#[tokio::test]
async fn an_excluded_node_lets_go_and_a_restored_backup_replaces() {
    let mut start = Start::with(&[("doubles@1", Files::doubles())]).await;
    start.config.drain_ms_min = 0;
    let mut world = start.ready().await;
    let mut view = world.view();
    // The same number for another bundle, which the store has not: it is to be fetched, and the old one is gone at once.
    let other = Files::new(crate::script::MODEL, "replicas = 1\n[batch_axes]\nx = 0\ny = 0\nsum = 0\n");
    change(&mut view, "doubles", |model| {
        model.versions.values_mut().for_each(|hosted| *hosted = other.hosted());
    });
    world.publish(view);
    world.until_stage("fetching").await;
    other.put(&world.store.bundles).await;
    world.until_stage("ready").await;
    let mut view = world.view();
    change(&mut view, "doubles", |model| {
        model.versions.values_mut().for_each(|hosted| {
            hosted.excluded.insert(crate::world::ME);
        });
    });
    world.publish(view);
    world.until(|reports| reports.is_empty()).await;
}
