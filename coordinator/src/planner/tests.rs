//! Plans in rows: what is proposed for which soft state.

use std::collections::BTreeMap;
use std::sync::Arc;

use roost_protocol::manifest::{EngineChoice, Manifest, Replicas};
use roost_protocol::traffic::Weight;
use roost_protocol::view::{
    Hold, HostedVersion, Liveness, Model, Node, NodeProfile, NodeReport, VersionReport,
};
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
        (NodeId(id), Node { name, address: format!("h:{id}"), state: NodeState::Active, hold: None, profile })
    };
    let version = |version| {
        let (digest, manifest) = (Digest::of(b""), Arc::new(Manifest::default()));
        (
            Version(version),
            HostedVersion { digest, bytes: 1, manifest, excluded: Default::default(), since: 1 },
        )
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
    let silent = silent.into_iter().take(2).collect();
    assert_eq!(plan(&Outlook { silent, ..outlook(&view, &soft(&[])) }).len(), 2, "two of four are out");
}

#[test]
fn a_silent_node_is_out_as_of_its_last_join() {
    let mut view = view(3);
    view.nodes.get_mut(&NodeId(2)).unwrap().state = NodeState::Out;
    let soft = soft(&[]);
    let silent = all_silent(&view, OUT_AFTER).into_iter().take(2).collect();
    let planned = plan(&Outlook { silent, ..outlook(&view, &soft) });
    assert_eq!(planned, [Command::NodeOut { node: NodeId(1), joined: 7 }]);
}

/// States of the nodes and for how many seconds each has been silent, and who is declared out.
#[test]
fn nobody_is_out_when_it_may_be_the_coordinators_that_are_cut_off() {
    use NodeState::{Active, Draining, Out};
    type Row<'a> = (&'a [(NodeState, u64)], &'a [u64]);
    let rows: [Row<'_>; 9] = [
        (&[(Active, 60), (Active, 0)], &[1]),
        (&[(Active, 60)], &[]),
        (&[(Active, 60), (Active, 60), (Active, 60), (Active, 60)], &[]),
        // They fall silent one after the other; the first to pass the bound is not alone.
        (&[(Active, 60), (Active, 59), (Active, 59), (Active, 0)], &[]),
        (&[(Active, 60), (Active, 2), (Active, 2), (Active, 0)], &[1]),
        (&[(Active, 60), (Active, 60), (Active, 0), (Active, 0)], &[1, 2]),
        (&[(Active, 60), (Active, 60), (Active, 60), (Active, 0), (Active, 0)], &[]),
        // Those that are out already say nothing of the others; one that said it would go goes.
        (&[(Out, 999), (Out, 999), (Active, 60), (Active, 0)], &[3]),
        (&[(Draining, 60), (Active, 60), (Draining, 3)], &[1]),
    ];
    for (nodes, expected) in rows {
        let mut view = view(nodes.len() as u64);
        let mut silent = BTreeMap::new();
        for ((id, node), (state, seconds)) in view.nodes.iter_mut().zip(nodes) {
            node.state = *state;
            silent.insert(*id, Duration::from_secs(*seconds));
        }
        let soft = soft(&[]);
        let planned = plan(&Outlook { silent, ..outlook(&view, &soft) });
        let expected: Vec<Command> =
            expected.iter().map(|id| Command::NodeOut { node: NodeId(*id), joined: 7 }).collect();
        assert_eq!(planned, expected, "{nodes:?}");
    }
}

#[test]
fn who_is_drained_goes_though_too_few_others_are_heard() {
    let mut view = view(3);
    view.nodes.get_mut(&NodeId(2)).unwrap().hold = Some(Hold::Drained);
    view.nodes.get_mut(&NodeId(3)).unwrap().hold = Some(Hold::Cordoned { since: 1 });
    let soft = soft(&[]);
    let planned = |silent| plan(&Outlook { silent: all_silent(&view, silent), ..outlook(&view, &soft) });
    assert_eq!(planned(OUT_AFTER), [Command::NodeOut { node: NodeId(2), joined: 7 }]);
    assert_eq!(planned(OUT_AFTER - Duration::from_secs(1)), []);
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
    assert!(
        matches!(&planned[..], [Command::Exclude { node: excluded, joined: 7, .. }] if *excluded == node),
        "one"
    );
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

/// What two owners report of the stable version and of the one before it, and whether it may take all traffic back.
#[test]
fn an_undo_needs_no_fewer_replicas_than_serve_now_and_counts_the_unknown() {
    let view = view(2);
    let (previous, stable) = (Version(1), Version(2));
    // `+` is ready, `-` is not, `?` is not heard.
    let rows = [
        (["++", "++"], (2, 2)),
        (["++", "+-"], (1, 2)),
        (["++", "--"], (1, 1)),
        (["+-", "+-"], (0, 2)),
        // The version that is to be left serves nobody: one replica is better.
        (["-+", "--"], (1, 1)),
        (["--", "--"], (0, 1)),
        // Who is not heard is not known to lack it.
        (["??", "??"], (2, 1)),
        (["++", "??"], (2, 1)),
        (["+-", "??"], (1, 1)),
    ];
    for (reports, (ready, needed)) in rows {
        let mut soft = soft(&[]);
        for (node, report) in view.nodes.keys().zip(reports) {
            let stage = |letter: char| if letter == '+' { Stage::Ready } else { Stage::Loading };
            let versions = [stable, previous].into_iter().zip(report.chars());
            let versions = versions.map(|(version, letter)| {
                // What a silent node said last was that it is ready.
                let stage = if letter == '?' { Stage::Ready } else { stage(letter) };
                VersionReport { model: digits(), version, stage, engine: None }
            });
            let liveness = if report == "??" { Liveness::Suspect } else { Liveness::Live };
            let (incarnation, versions) = (Incarnation(1), versions.collect());
            soft.nodes.insert(*node, NodeReport { incarnation, sequence: 1, liveness, versions });
        }
        let readiness = for_undo(&view, &soft, &digits(), previous, stable);
        assert_eq!(readiness, Readiness { ready, needed }, "{reports:?}");
    }
    let nobody = for_undo(&view, &soft(&[]), &digits(), previous, stable);
    assert!(nobody.suffices(), "nothing was ever heard: {nobody:?}");
}
