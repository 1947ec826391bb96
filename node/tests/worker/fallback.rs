//! A request that fell back to stable by an older view than the worker's.

use std::sync::Arc;

use roost_protocol::messages::infer::{Choice, InferHeader};
use roost_protocol::traffic::{Canary, Weight};
use roost_protocol::view::{Liveness, NodeReport, SoftState, Stage, VersionReport};
use roost_protocol::{Incarnation, InferError, ModelVersion, Revision, Version};

use crate::exchange::{gather, header, x};
use crate::world::{Files, ME, Start, World, change};

/// Has the soft state say of the worker's `doubles@2` that it is at a stage.
fn report(world: &World, sequence: u64, stage: Stage) {
    let ModelVersion { model, version } = "doubles@2".parse().unwrap();
    let versions = vec![VersionReport { model, version, stage, engine: None }];
    let report = NodeReport { incarnation: Incarnation(1), sequence, liveness: Liveness::Live, versions };
    let soft = SoftState { settled: true, sequence, nodes: [(ME, report)].into(), ..SoftState::default() };
    world.published.send_modify(|published| published.soft = Arc::new(soft));
}

#[tokio::test]
async fn it_is_sent_back_once_the_version_that_is_picked_now_is_ready() {
    let versions = [("doubles@1", Files::doubles()), ("doubles@2", Files::doubles())];
    let world = Start::with(&versions).await.ready().await;
    let mut view = world.view();
    change(&mut view, "doubles", |model| {
        model.traffic.revision = Revision(5);
        model.traffic.canary = Some(Canary { version: Version(2), weight: Weight::ALL });
    });
    world.publish(view);
    let fell_back =
        |revision| InferHeader { choice: Choice::Fallback as u8, revision, ..header("doubles@1") };
    let ask = async |revision| gather(world.handle.infer(&fell_back(revision), x(&[1.0, 2.0]))).await;

    // Sent back, it would only fall back again.
    report(&world, 1, Stage::Loading);
    assert_eq!(ask(4).await.f32s("y"), [2.0, 4.0]);
    report(&world, 2, Stage::Ready);
    let stale = InferError::StaleView { model: "doubles".to_owned(), used: 4, newest: 5, generation: 1 };
    assert_eq!(ask(4).await.error(), &stale);
    // Who knows the newer traffic fell back for a reason that this node need not see.
    assert_eq!(ask(5).await.f32s("y"), [2.0, 4.0]);
}
