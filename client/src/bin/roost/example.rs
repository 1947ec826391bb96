//! A small cluster in the middle of a rollout, which the tests of what is printed share.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roost_protocol::manifest::{EngineChoice, Manifest};
use roost_protocol::messages::control::{
    ClusterSummary, Rollout, RolloutState, RolloutSummary, VersionStatistics,
};
use roost_protocol::ring::Speed;
use roost_protocol::traffic::{Canary, Traffic, Weight};
use roost_protocol::view::{
    Coordinator, HostedVersion, Liveness, Model, Node, NodeProfile, NodeReport, NodeState, Published,
    SoftState, Stage, VersionReport, View,
};
use roost_protocol::{
    ClusterId, Digest, Epoch, Incarnation, Label, ModelName, ModelVersion, NodeId, NodeName, Revision, Term,
    Version,
};

/// The model.
pub fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

/// A fifth of it goes to version 2.
pub fn traffic() -> Traffic {
    let canary = Some(Canary { version: Version(2), weight: Weight::from_basis_points(2_000).unwrap() });
    Traffic { revision: Revision(3), stable: Version(1), canary, previous: None }
}

/// What the leader says of it.
pub fn rollout(state: RolloutState) -> RolloutSummary {
    let weight = Weight::from_basis_points(2_000).unwrap();
    let rollout = Some(Rollout { target: Version(2), weight, state });
    RolloutSummary { traffic: traffic(), rollout, history: Vec::new() }
}

fn node(i: u64) -> (NodeId, Node) {
    let profile = NodeProfile {
        speed: Speed::from_ratio(if i == 2 { 1.4 } else { 1.0 }),
        zone: format!("zone-{i}"),
        labels: BTreeMap::new(),
        memory_mib: 8_192,
        isa: if i == 2 { "aarch64 neon" } else { "x86-64 avx512" }.to_owned(),
        engines: [EngineChoice::OnnxRuntime].into(),
    };
    let state = if i == 3 { NodeState::Draining } else { NodeState::Active };
    let name = NodeName::new(&format!("w{i}")).unwrap();
    (NodeId(i), Node { name, address: format!("10.0.0.{i}:7400"), state, hold: None, profile })
}

fn report(liveness: Liveness, stages: [Option<Stage>; 2]) -> NodeReport {
    let of = |(i, stage): (u32, Option<Stage>)| {
        let engine = stage.as_ref()?.serves().then_some(EngineChoice::OnnxRuntime);
        Some(VersionReport { model: digits(), version: Version(i), stage: stage?, engine })
    };
    let versions = (1..).zip(stages).filter_map(of).collect();
    NodeReport { incarnation: Incarnation(1), sequence: 1, liveness, versions }
}

/// Workers `w1` to `w3`, of which the last drains; three coordinators; two versions at different stages.
pub fn published() -> Published {
    let hosted = HostedVersion {
        digest: Digest::of(b"digits"),
        bytes: 98_304,
        manifest: Arc::new(Manifest::default()),
        excluded: BTreeSet::new(),
        since: 1,
    };
    let model = Model {
        traffic: traffic(),
        versions: [(Version(1), hosted.clone()), (Version(2), hosted)].into(),
        labels: [(Label::new("prod").unwrap(), Version(1))].into(),
    };
    let coordinator = |i: u64| {
        let name = NodeName::new(["a", "b", "c"][i as usize % 3]).unwrap();
        (NodeId(10 + i), Coordinator { name, address: format!("10.0.1.{i}:7401"), voter: i < 2 })
    };
    let view = View {
        cluster: ClusterId(0xfeed),
        epoch: Epoch { generation: 1, index: 42 },
        coordinators: (0..3).map(coordinator).collect(),
        nodes: (1..4).map(node).collect(),
        models: [(digits(), Arc::new(model))].into(),
    };
    let failed = Stage::Failed { reason: "the graph has an unknown operator Foo".to_owned() };
    let soft = SoftState {
        term: Term(3),
        sequence: 9,
        settled: true,
        nodes: [
            (NodeId(1), report(Liveness::Live, [Some(Stage::Ready), Some(failed)])),
            (NodeId(2), report(Liveness::Live, [Some(Stage::Ready), Some(Stage::Ready)])),
            (NodeId(3), report(Liveness::Suspect, [Some(Stage::Draining), None])),
        ]
        .into(),
    };
    Published::new(Some(Arc::new(view)), Arc::new(soft))
}

/// What its leader `b` says.
pub fn cluster() -> ClusterSummary {
    let published = published();
    let counted = VersionStatistics {
        version: ModelVersion { model: digits(), version: Version(1) },
        answered: 1_200,
        failed: 1,
        fallbacks: 7,
    };
    ClusterSummary {
        cluster: ClusterId(0xfeed),
        leader: NodeId(11),
        term: Term(3),
        epoch: Epoch { generation: 1, index: 42 },
        soft: (*published.soft).clone(),
        statistics: [(NodeId(1), vec![counted])].into(),
    }
}
