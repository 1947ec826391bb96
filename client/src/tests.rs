//! States that the unit tests of this crate share: a model `digits` with a stable version 1 and a version 2,
//! on workers `w0`, `w1`, ... of ids 100, 101, ...

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roost_protocol::manifest::{EngineChoice, Manifest, Replicas};
use roost_protocol::ring::Speed;
use roost_protocol::traffic::{Canary, Traffic, Weight};
use roost_protocol::view::{
    HostedVersion, Liveness, Model, Node, NodeProfile, NodeReport, NodeState, Published, SoftState, Stage,
    VersionReport, View,
};
use roost_protocol::{
    ClusterId, Digest, Epoch, Incarnation, Label, ModelName, NodeId, NodeName, Revision, Term, Version,
};

/// An active worker.
pub(crate) fn node(name: &str, address: &str) -> Node {
    let profile = NodeProfile {
        speed: Speed::default(),
        zone: String::new(),
        labels: BTreeMap::new(),
        memory_mib: 1024,
        isa: "x86-64 avx2".to_owned(),
        engines: [EngineChoice::OnnxRuntime].into(),
    };
    let address = address.to_owned();
    Node { name: NodeName::new(name).unwrap(), address, state: NodeState::Active, hold: None, profile }
}

pub(crate) fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

/// The id of worker `w{index}`.
pub(crate) fn worker(index: u64) -> NodeId {
    NodeId(100 + index)
}

/// A state in which every worker hosts both versions; `canary` is the share of version 2, and the label `new`
/// is on it.
pub(crate) fn published(index: u64, workers: u64, canary: u16) -> Published {
    let nodes = (0..workers).map(|i| (worker(i), node(&format!("w{i}"), &format!("w{i}:1")))).collect();
    let manifest = Arc::new(Manifest { replicas: Replicas::All, ..Manifest::default() });
    let hosted = HostedVersion {
        digest: Digest::of(b"digits"),
        bytes: 10,
        manifest,
        excluded: BTreeSet::new(),
        since: 1,
    };
    let weight = Weight::from_basis_points(canary).unwrap();
    let model = Model {
        traffic: Traffic {
            revision: Revision(index),
            stable: Version(1),
            canary: (canary > 0).then_some(Canary { version: Version(2), weight }),
            previous: None,
        },
        versions: [(Version(1), hosted.clone()), (Version(2), hosted)].into(),
        labels: [(Label::new("new").unwrap(), Version(2))].into(),
    };
    let view = View {
        cluster: ClusterId(7),
        epoch: Epoch { generation: 1, index },
        coordinators: BTreeMap::new(),
        nodes,
        models: [(digits(), Arc::new(model))].into(),
    };
    let soft = SoftState {
        term: Term(1),
        sequence: index,
        settled: true,
        nodes: (0..workers).map(|i| (worker(i), report(&[1, 2]))).collect(),
    };
    Published::new(Some(Arc::new(view)), Arc::new(soft))
}

/// What a live worker with these versions of `digits` ready reports.
pub(crate) fn report(ready: &[u32]) -> NodeReport {
    let versions = ready.iter().map(|version| VersionReport {
        model: digits(),
        version: Version(*version),
        stage: Stage::Ready,
        engine: Some(EngineChoice::OnnxRuntime),
    });
    NodeReport {
        incarnation: Incarnation(1),
        sequence: 1,
        liveness: Liveness::Live,
        versions: versions.collect(),
    }
}
