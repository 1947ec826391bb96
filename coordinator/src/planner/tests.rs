//! Plans in rows: what is proposed for which soft state.

use std::collections::BTreeMap;
use std::sync::Arc;

use roost_protocol::manifest::{EngineChoice, Manifest};
use roost_protocol::traffic::Weight;
use roost_protocol::view::{HostedVersion, Liveness, Model, Node, NodeProfile, NodeReport, VersionReport};
use roost_protocol::{ClusterId, Digest, Epoch, Incarnation, NodeName, Revision, Term};

use super::*;

fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

fn view(nodes: u64) -> View {
    let node = |id: u64| {
        let profile = NodeProfile {
            speed: Default::default(),
            zone: String::new(),
            labels: BTreeMap::new(),
            memory_mib: 1,
            isa: String::new(),
            engines: [EngineChoice::OnnxRuntime].into(),
        };
        let name = NodeName::new(&format!("w{id}")).unwrap();
        (NodeId(id), Node { name, address: format!("h:{id}"), state: NodeState::Active, profile })
    };
    let version = |version| {
        let (digest, manifest) = (Digest::of(b""), Arc::new(Manifest::default()));
        (Version(version), HostedVersion { digest, bytes: 1, manifest, excluded: Default::default() })
    };
    let model =
        Model { traffic: traffic(), versions: [version(1), version(2)].into(), labels: BTreeMap::new() };
    View {
        cluster: ClusterId(1),
        epoch: Epoch::default(),
        coordinators: BTreeMap::new(),
        nodes: (1..=nodes).map(node).collect(),
        models: [(digits(), Arc::new(model))].into(),
    }
}

fn traffic() -> Traffic {
    Traffic { revision: Revision(3), stable: Version(1), canary: None, previous: None }
}

fn soft(stages: &[(NodeId, Stage)]) -> SoftState {
    let report = |(node, stage): &(NodeId, Stage)| {
        let versions =
            vec![VersionReport { model: digits(), version: Version(2), stage: stage.clone(), engine: None }];
        let (incarnation, liveness) = (Incarnation(1), Liveness::Live);
        (*node, NodeReport { incarnation, sequence: 1, liveness, versions })
    };
    SoftState { term: Term(1), sequence: 1, settled: true, nodes: stages.iter().map(report).collect() }
}

fn plan_for(view: &View, state: RolloutState, soft: &SoftState) -> Vec<Command> {
    let rollout = Rollout { target: Version(2), weight: Weight::ALL, state };
    let (model, traffic) = (digits(), traffic());
    plan(view, [(&model, &rollout, &traffic)], soft, |_| Duration::ZERO)
}

#[test]
fn a_canary_waits_for_two_ready_replicas() {
    let view = view(4);
    let owners = owners(&view, &view.ring(), &digits(), Version(2));
    let ready = |count: usize| soft(&owners[..count].iter().map(|n| (*n, Stage::Ready)).collect::<Vec<_>>());
    assert_eq!(plan_for(&view, RolloutState::Preparing, &ready(1)), []);
    let expose = Command::Expose { model: digits(), revision: Revision(3) };
    assert_eq!(plan_for(&view, RolloutState::Preparing, &ready(2)), [expose]);
    let paused = RolloutState::Paused { reason: String::new() };
    assert!(matches!(plan_for(&view, RolloutState::Running, &ready(1))[..], [Command::Pause { .. }]));
    assert_eq!(plan_for(&view, paused.clone(), &ready(1)), []);
    assert!(matches!(plan_for(&view, paused, &ready(2))[..], [Command::Resume { .. }]));
}

#[test]
fn one_node_is_enough_where_there_is_one() {
    let view = view(1);
    let ready = soft(&[(NodeId(1), Stage::Ready)]);
    assert!(matches!(plan_for(&view, RolloutState::Preparing, &ready)[..], [Command::Expose { .. }]));
}

#[test]
fn nothing_is_planned_before_the_leader_has_listened() {
    let view = view(4);
    let unsettled = SoftState { settled: false, ..soft(&[]) };
    assert_eq!(plan(&view, [], &unsettled, |_| Duration::MAX), []);
    assert_eq!(plan(&view, [], &soft(&[]), |_| Duration::MAX).len(), 4, "all are out");
}

#[test]
fn an_owner_that_gave_up_is_excluded_while_another_can_take_over() {
    let failed = |view: &View| {
        let owners = owners(view, &view.ring(), &digits(), Version(2));
        let stage = Stage::Failed { reason: "no memory".to_owned() };
        (owners[0], soft(&[(owners[0], stage)]))
    };
    let roomy = view(4);
    let (node, state) = failed(&roomy);
    let planned = plan(&roomy, [], &state, |_| Duration::ZERO);
    assert!(matches!(&planned[..], [Command::Exclude { node: excluded, .. }] if *excluded == node));
    let full = view(2);
    assert_eq!(plan(&full, [], &failed(&full).1, |_| Duration::ZERO), []);
}
