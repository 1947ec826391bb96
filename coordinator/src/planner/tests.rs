//! Plans in rows: what is proposed for which soft state.

use std::collections::BTreeMap;
use std::sync::Arc;

use roost_protocol::manifest::{EngineChoice, Manifest, Replicas};
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

/// What nodes reported of a version.
fn soft_of(version: u32, stages: &[(NodeId, Stage)]) -> SoftState {
    let report = |(node, stage): &(NodeId, Stage)| {
        let (version, stage) = (Version(version), stage.clone());
        let versions = vec![VersionReport { model: digits(), version, stage, engine: None }];
        let (incarnation, liveness) = (Incarnation(1), Liveness::Live);
        (*node, NodeReport { incarnation, sequence: 1, liveness, versions })
    };
    SoftState { term: Term(1), sequence: 1, settled: true, nodes: stages.iter().map(report).collect() }
}

fn soft(stages: &[(NodeId, Stage)]) -> SoftState {
    soft_of(2, stages)
}

fn outlook<'a>(view: &'a View, soft: &'a SoftState) -> Outlook<'a> {
    Outlook {
        view,
        rollouts: Vec::new(),
        joins: view.nodes.keys().map(|id| (*id, 7)).collect(),
        reservations: Vec::new(),
        soft,
        silent: BTreeMap::new(),
        now_ms: 0,
    }
}

fn all_silent(view: &View, silent: Duration) -> BTreeMap<NodeId, Duration> {
    view.nodes.keys().map(|id| (*id, silent)).collect()
}

fn plan_for(view: &View, state: RolloutState, soft: &SoftState) -> Vec<Command> {
    let rollout = Rollout { target: Version(2), weight: Weight::ALL, state };
    let (model, traffic) = (digits(), traffic());
    plan(&Outlook { rollouts: vec![(&model, &rollout, &traffic)], ..outlook(view, soft) })
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
    assert_eq!(plan_for(&view, RolloutState::Running, &ready(2)), []);
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
    for state in [RolloutState::Preparing, RolloutState::Running] {
        assert_eq!(plan_for(&view, state, &unsettled), []);
    }
    let silent = all_silent(&view, OUT_AFTER);
    assert_eq!(plan(&Outlook { silent: silent.clone(), ..outlook(&view, &unsettled) }), []);
    assert_eq!(plan(&Outlook { silent, ..outlook(&view, &soft(&[])) }).len(), 4, "all are out");
}

#[test]
fn a_silent_node_is_out_as_of_its_last_join() {
    let mut view = view(2);
    view.nodes.get_mut(&NodeId(2)).unwrap().state = NodeState::Out;
    let soft = soft(&[]);
    let planned = plan(&Outlook { silent: all_silent(&view, OUT_AFTER), ..outlook(&view, &soft) });
    assert_eq!(planned, [Command::NodeOut { node: NodeId(1), joined: 7 }]);
}

#[test]
fn an_owner_that_gave_up_is_excluded_while_another_can_take_over() {
    let failed = |view: &View| {
        let owners = owners(view, &view.ring(), &digits(), Version(2));
        let stage = || Stage::Failed { reason: "no memory".to_owned() };
        (owners[0], soft(&[(owners[0], stage()), (owners[1], stage())]))
    };
    let roomy = view(4);
    let (node, state) = failed(&roomy);
    let planned = plan(&outlook(&roomy, &state));
    assert!(matches!(&planned[..], [Command::Exclude { node: excluded, .. }] if *excluded == node), "one");
    let full = view(2);
    assert_eq!(plan(&outlook(&full, &failed(&full).1)), []);
}

#[test]
fn a_reservation_is_forgotten_after_a_day() {
    let (view, soft) = (view(0), soft(&[]));
    let (old, young) = (Digest::of(b"old"), Digest::of(b"young"));
    let reservations = vec![(old, 5), (young, 6)];
    let planned = plan(&Outlook { reservations, now_ms: RESERVED_MS_MAX + 5, ..outlook(&view, &soft) });
    assert_eq!(planned, [Command::Collect { digest: old, reserved_at_ms: 5 }]);
}

#[test]
fn a_promotion_needs_as_many_replicas_as_the_stable_version_serves_with() {
    let mut view = view(6);
    let model = Arc::make_mut(view.models.get_mut(&digits()).unwrap());
    for version in model.versions.values_mut() {
        Arc::make_mut(&mut version.manifest).replicas = Replicas::Count(4);
    }
    let ring = view.ring();
    let (stable, target) = (Version(1), Version(2));
    let check = |stable_ready: usize, target_ready: usize| {
        let ready = |version, count: usize| {
            let owners = owners(&view, &ring, &digits(), version);
            soft_of(version.0, &owners[..count].iter().map(|n| (*n, Stage::Ready)).collect::<Vec<_>>())
        };
        let mut soft = ready(stable, stable_ready);
        for (node, report) in ready(target, target_ready).nodes {
            let versions = report.versions.clone();
            soft.nodes
                .entry(node)
                .or_insert(NodeReport { versions: Vec::new(), ..report })
                .versions
                .extend(versions);
        }
        for_promotion(&view, &soft, &digits(), target, stable)
    };
    assert_eq!(check(4, 3), Readiness { ready: 3, needed: 4 });
    assert!(check(4, 4).suffices() && check(3, 3).suffices());
    assert_eq!(check(0, 1), Readiness { ready: 1, needed: 2 }, "a broken stable version asks for nothing");
}
