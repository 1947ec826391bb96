//! Samples of what the view, the soft state and the manifest are made of.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roost_protocol::bundle::{BundleFile, FileList};
use roost_protocol::ids::{
    ClusterId, Digest, Epoch, Incarnation, Label, ModelName, ModelVersion, NodeId, NodeName, RequestId,
    Revision, Tenant, Term, Version,
};
use roost_protocol::manifest::{
    Channels, EngineChoice, ImageInput, Manifest, PlacementRules, Replicas, RequestLimits, Tolerance,
};
use roost_protocol::ring::Speed;
use roost_protocol::tensor::{DType, Shape};
use roost_protocol::traffic::{Canary, KeyHash, Traffic, Weight};
use roost_protocol::view::{
    Coordinator, Delta, HostedVersion, Liveness, Model, Node, NodeProfile, NodeReport, NodeState, SoftState,
    Stage, VersionReport, View,
};

use super::{Sample, bare, each};

/// The parts of messages, without frames.
pub fn samples() -> Vec<Sample> {
    let mut samples = vec![
        bare("NodeId", NodeId(0x0102_0304_0506_0708)),
        bare("Version", Version(u32::MAX)),
        bare("Revision", Revision(300)),
        bare("Incarnation", Incarnation(9)),
        bare("Term", Term(5)),
        bare("ClusterId", cluster()),
        bare("RequestId", RequestId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10)),
        bare("Epoch", epoch(7)),
        bare("Digest", Digest::of(b"digest")),
        bare("ModelName", model()),
        bare("NodeName", node_name("a")),
        bare("Label", label()),
        bare("Tenant", Tenant::new("anna").expect("a name")),
        bare("ModelVersion", model_version(2)),
        bare("Shape", Shape::new(&[2, 3, 224]).expect("rank 3")),
        bare("Weight", Weight::ALL),
        bare("KeyHash", KeyHash::of(b"user-42")),
        bare("Speed", Speed::from_ratio(0.5)),
        bare("FileList", files()),
        bare("Manifest/default", Manifest::default()),
        bare("Manifest", manifest()),
        bare("Traffic", traffic()),
        bare("View", view(7)),
        bare("Delta", delta()),
        bare("SoftState", soft()),
    ];
    samples.extend(each(engines(), bare));
    samples.extend(each(vec![Replicas::Count(3), Replicas::All], bare));
    samples.extend(each(vec![Channels::Gray, Channels::Rgb, Channels::Bgr], bare));
    samples.extend(each(vec![NodeState::Active, NodeState::Draining, NodeState::Out], bare));
    samples.extend(each(vec![Liveness::Live, Liveness::Suspect], bare));
    samples.extend(each(stages(), bare));
    samples.extend(each(DType::ALL.to_vec(), bare));
    samples
}

pub fn cluster() -> ClusterId {
    ClusterId(0xc105_7e12)
}

pub fn epoch(index: u64) -> Epoch {
    Epoch { generation: 1, index }
}

pub fn model() -> ModelName {
    ModelName::new("digits").expect("a name")
}

pub fn node_name(name: &str) -> NodeName {
    NodeName::new(name).expect("a name")
}

pub fn label() -> Label {
    Label::new("prod").expect("a name")
}

pub fn weight() -> Weight {
    Weight::from_basis_points(2000).expect("20 %")
}

pub fn model_version(version: u32) -> ModelVersion {
    ModelVersion { model: model(), version: Version(version) }
}

pub fn files() -> FileList {
    let file = |name: &str, bytes: &[u8]| BundleFile {
        name: name.to_owned(),
        bytes: bytes.len() as u64,
        digest: Digest::of(bytes),
    };
    FileList::new(vec![file("model.onnx", b"graph"), file("model.toml", b"replicas = 2\n")])
        .expect("a bundle")
}

pub fn traffic() -> Traffic {
    Traffic {
        revision: Revision(12),
        stable: Version(1),
        canary: Some(Canary { version: Version(2), weight: weight() }),
        previous: Some(Version(3)),
    }
}

fn engines() -> Vec<EngineChoice> {
    vec![EngineChoice::Auto, EngineChoice::OnnxRuntime, EngineChoice::Native]
}

pub fn manifest() -> Manifest {
    Manifest {
        engine: EngineChoice::OnnxRuntime,
        replicas: Replicas::All,
        batch_rows_max: 64,
        warm_up_rows: vec![1, 8, 64],
        labels: vec!["zero".to_owned(), "one".to_owned()],
        labels_output: Some("logits".to_owned()),
        tolerance: Tolerance { absolute: 1e-4, relative: 1e-3 },
        batch_axes: BTreeMap::from([("image".to_owned(), 0), ("logits".to_owned(), 0)]),
        limits: RequestLimits { rows_max: 512 },
        placement: PlacementRules {
            memory_mib_min: 256,
            node_labels: BTreeMap::from([("gpu".to_owned(), "none".to_owned())]),
        },
        image: Some(ImageInput {
            input: "image".to_owned(),
            width: 28,
            height: 28,
            channels: Channels::Gray,
            scale: 0.5,
            mean: vec![0.25],
            std: vec![2.0],
        }),
    }
}

pub fn profile() -> NodeProfile {
    NodeProfile {
        speed: Speed::from_ratio(2.0),
        zone: "zone-1".to_owned(),
        labels: BTreeMap::from([("disk".to_owned(), "ssd".to_owned())]),
        memory_mib: 4096,
        isa: "x86-64 avx512".to_owned(),
        engines: BTreeSet::from([EngineChoice::OnnxRuntime, EngineChoice::Native]),
    }
}

fn node(name: &str, state: NodeState) -> Node {
    Node {
        name: node_name(name),
        address: "127.0.0.1:7400".to_owned(),
        state,
        hold: None,
        profile: profile(),
    }
}

/// A view with one of everything.
pub fn view(index: u64) -> View {
    let hosted = |excluded: BTreeSet<NodeId>| HostedVersion {
        digest: files().digest(),
        bytes: files().bytes(),
        manifest: Arc::new(manifest()),
        excluded,
        since: 4,
    };
    let versions = BTreeMap::from([
        (Version(1), hosted(BTreeSet::new())),
        (Version(2), hosted(BTreeSet::from([NodeId(11)]))),
    ]);
    let model_1 = Model { traffic: traffic(), versions, labels: BTreeMap::from([(label(), Version(1))]) };
    let plain = Traffic { revision: Revision(1), stable: Version(1), canary: None, previous: None };
    let model_2 = Model { traffic: plain, versions: BTreeMap::new(), labels: BTreeMap::new() };
    let name = node_name("a");
    View {
        cluster: cluster(),
        epoch: epoch(index),
        coordinators: BTreeMap::from([
            (
                NodeId(1),
                Coordinator { name: name.clone(), address: "127.0.0.1:7300".to_owned(), voter: true },
            ),
            (NodeId(2), Coordinator { name, address: "[::1]:7300".to_owned(), voter: false }),
        ]),
        nodes: BTreeMap::from([
            (NodeId(10), node("b", NodeState::Active)),
            (NodeId(11), node("c", NodeState::Draining)),
            (NodeId(12), node("d", NodeState::Out)),
        ]),
        models: BTreeMap::from([
            (model(), Arc::new(model_1)),
            (ModelName::new("other").expect("a name"), Arc::new(model_2)),
        ]),
    }
}

/// A delta with a change, an addition and a removal.
pub fn delta() -> Delta {
    let mut next = view(9);
    next.coordinators.remove(&NodeId(2));
    next.nodes.remove(&NodeId(12));
    next.nodes.insert(NodeId(13), node("e", NodeState::Active));
    next.models.remove(&model());
    next.delta_from(&view(7))
}

pub fn stages() -> Vec<Stage> {
    vec![
        Stage::Fetching { bytes: 1 << 20, of: 5 << 20 },
        Stage::Verifying,
        Stage::Loading,
        Stage::Warming,
        Stage::Ready,
        Stage::Draining,
        Stage::Unloaded,
        Stage::Failed { reason: "no such operator".to_owned() },
    ]
}

/// A report of one version at each stage.
pub fn version_reports() -> Vec<VersionReport> {
    let report = |(number, stage): (usize, Stage)| VersionReport {
        model: model(),
        version: Version(number as u32 + 1),
        engine: (stage == Stage::Ready).then_some(EngineChoice::OnnxRuntime),
        stage,
    };
    stages().into_iter().enumerate().map(report).collect()
}

pub fn soft() -> SoftState {
    let report =
        |liveness, versions| NodeReport { incarnation: Incarnation(4), sequence: 17, liveness, versions };
    SoftState {
        term: Term(5),
        sequence: 1000,
        settled: true,
        nodes: BTreeMap::from([
            (NodeId(10), report(Liveness::Live, version_reports())),
            (NodeId(11), report(Liveness::Suspect, Vec::new())),
        ]),
    }
}
