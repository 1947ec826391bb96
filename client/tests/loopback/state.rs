//! The states that peers publish: `digits` with versions 1 and 2 on every peer.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roost_protocol::manifest::{EngineChoice, Manifest, Replicas};
use roost_protocol::ring::Speed;
use roost_protocol::traffic::{Canary, Traffic, Weight};
use roost_protocol::view::{
    Coordinator, HostedVersion, Liveness, Model, Node, NodeProfile, NodeReport, NodeState, Published,
    SoftState, Stage, VersionReport, View,
};
use roost_protocol::{
    ClusterId, Digest, Epoch, Incarnation, ModelName, NodeId, NodeName, Revision, Term, Version,
};

/// The state of log index `index` with `share` of the traffic, in %, on version 2. Peers are
/// `(name, address)`; each is a coordinator and a worker.
pub fn published(index: u64, share: u16, peers: &[(String, String)]) -> Published {
    let id = |i: usize| NodeId(i as u64 + 1);
    let profile = NodeProfile {
        speed: Speed::default(),
        zone: String::new(),
        labels: BTreeMap::new(),
        memory_mib: 1024,
        isa: "x86-64 avx2".to_owned(),
        engines: [EngineChoice::OnnxRuntime].into(),
    };
    let node = |(i, (name, address)): (usize, &(String, String))| {
        let name = NodeName::new(name).unwrap();
        (
            id(i),
            Node {
                name,
                address: address.clone(),
                state: NodeState::Active,
                hold: None,
                profile: profile.clone(),
            },
        )
    };
    let coordinator = |(i, (name, address)): (usize, &(String, String))| {
        let name = NodeName::new(name).unwrap();
        (id(i), Coordinator { name, address: address.clone(), voter: true })
    };
    let labels = ["zero", "one", "two"].map(str::to_owned).to_vec();
    let manifest = Manifest { replicas: Replicas::All, labels, ..Manifest::default() };
    let hosted = HostedVersion {
        digest: Digest::of(b"digits"),
        bytes: 10,
        manifest: Arc::new(manifest),
        excluded: BTreeSet::new(),
        since: 1,
    };
    let weight = Weight::from_basis_points(share * 100).unwrap();
    let traffic = Traffic {
        revision: Revision(index),
        stable: Version(1),
        canary: (share > 0).then_some(Canary { version: Version(2), weight }),
        previous: None,
    };
    let versions = [(Version(1), hosted.clone()), (Version(2), hosted)].into();
    let model = Model { traffic, versions, labels: BTreeMap::new() };
    let view = View {
        cluster: ClusterId(7),
        epoch: Epoch { generation: 1, index },
        coordinators: peers.iter().enumerate().map(coordinator).collect(),
        nodes: peers.iter().enumerate().map(node).collect(),
        models: [(ModelName::new("digits").unwrap(), Arc::new(model))].into(),
    };
    let ready = |version| VersionReport {
        model: ModelName::new("digits").unwrap(),
        version: Version(version),
        stage: Stage::Ready,
        engine: Some(EngineChoice::OnnxRuntime),
    };
    let report = |i| {
        let (incarnation, liveness) = (Incarnation(1), Liveness::Live);
        (id(i), NodeReport { incarnation, sequence: 1, liveness, versions: vec![ready(1), ready(2)] })
    };
    let nodes = (0..peers.len()).map(report).collect();
    let soft = SoftState { term: Term(1), sequence: index, settled: true, nodes };
    Published::new(Some(Arc::new(view)), Arc::new(soft))
}
