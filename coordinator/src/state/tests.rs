//! What commands do, in rows; the table of a rollout's states and events; replay; idempotence.

use std::fmt::Write as _;

use proptest::prelude::*;
use roost_protocol::bundle::{BundleFile, MODEL_FILE};
use roost_protocol::messages::control::RolloutState;
use roost_protocol::traffic::KeyHash;
use roost_protocol::view::NodeState;

use super::*;

struct Cluster {
    state: State,
    index: u64,
}

fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

fn at(version: u32) -> ModelVersion {
    ModelVersion { model: digits(), version: Version(version) }
}

fn profile() -> NodeProfile {
    NodeProfile {
        speed: Default::default(),
        zone: String::new(),
        labels: Default::default(),
        memory_mib: 1,
        isa: String::new(),
        engines: Default::default(),
    }
}

fn join(node: u64, name: &str) -> Command {
    let (node, name) = (NodeId(node), NodeName::new(name).unwrap());
    Command::Join { node, name, address: "h:1".to_owned(), profile: Box::new(profile()) }
}

fn weight(text: &str) -> Weight {
    text.parse().unwrap()
}

fn files(content: &str) -> FileList {
    let digest = Digest::of(content.as_bytes());
    FileList::new(vec![BundleFile { name: MODEL_FILE.to_owned(), bytes: content.len() as u64, digest }])
        .unwrap()
}

impl Cluster {
    /// Three voters and no model.
    fn new() -> Self {
        let mut cluster = Self { state: State::default(), index: 0 };
        let coordinator = |id: u64| {
            let name = NodeName::new(&format!("c{id}")).unwrap();
            (NodeId(id), Coordinator { name, address: format!("h:{id}"), voter: true })
        };
        cluster.index += 1;
        let voters = vec![(1..=3).map(NodeId).collect()];
        cluster.state.apply_membership(cluster.index, (1..=3).map(coordinator).collect(), voters);
        cluster.run(Command::Initialise { cluster: ClusterId(7) }).unwrap();
        cluster
    }

    /// With `digits` and this many versions.
    fn with_versions(count: u32) -> Self {
        let mut cluster = Self::new();
        (1..=count).for_each(|version| {
            cluster.push(&format!("v{version}"), &[1, 2]).unwrap();
        });
        cluster
    }

    fn propose(&mut self, proposal: &Proposal) -> Result<Outcome, CommandError> {
        self.index += 1;
        self.state.apply(self.index, proposal).result
    }

    fn run(&mut self, command: Command) -> Result<Outcome, CommandError> {
        let sent = self.state.epoch();
        let at_ms = 1000 + self.index;
        self.propose(&Proposal { request: None, sent, at_ms, by: "anna".to_owned(), command })
    }

    fn push(&mut self, content: &str, holders: &[u64]) -> Result<Outcome, CommandError> {
        let files = files(content);
        self.run(Command::Reserve { files: files.clone() })?;
        self.run(Command::CommitVersion {
            model: digits(),
            digest: files.digest(),
            manifest: Box::default(),
            note: String::new(),
            holders: holders.iter().map(|id| NodeId(*id)).collect(),
        })
    }

    /// As the attempts of request `request`, which was first sent now.
    fn ask(&mut self, request: u128, command: Command) -> Result<Outcome, CommandError> {
        let (sent, request) = (self.state.epoch(), Some(RequestId(request)));
        self.propose(&Proposal { request, sent, at_ms: 1, by: "anna".to_owned(), command })
    }

    fn joined(&self, node: u64) -> u64 {
        self.state.joins().find(|(id, _)| *id == NodeId(node)).unwrap().1
    }

    fn node_state(&self, node: u64) -> NodeState {
        self.state.view().unwrap().nodes[&NodeId(node)].state
    }

    fn revision(&self) -> Revision {
        self.state.rollout(&digits()).unwrap().traffic.revision
    }
}

#[test]
fn the_first_version_serves_and_the_next_waits() {
    let mut cluster = Cluster::new();
    assert_eq!(cluster.push("a", &[1, 2]), Ok(Outcome::Pushed { version: Version(1), stable: true }));
    assert_eq!(cluster.push("b", &[2, 3]), Ok(Outcome::Pushed { version: Version(2), stable: false }));
    let view = cluster.state.view().unwrap();
    assert_eq!(view.models[&digits()].versions.keys().copied().collect::<Vec<_>>(), [Version(1)]);
    assert_eq!(view.epoch.index, cluster.index);
}

#[test]
fn a_version_needs_a_quorum_of_voters_that_hold_it() {
    let mut cluster = Cluster::new();
    for holders in [&[][..], &[1], &[1, 9, 8]] {
        let refused = cluster.push("a", holders).unwrap_err();
        assert!(matches!(refused, CommandError::TooFewHolders { voters: 3, quorum: 2, .. }), "{refused}");
    }
    let never_reserved = Command::CommitVersion {
        model: digits(),
        digest: Digest::of(b"never"),
        manifest: Box::default(),
        note: String::new(),
        holders: [NodeId(1), NodeId(2)].into(),
    };
    assert!(matches!(cluster.run(never_reserved), Err(CommandError::NotReserved { .. })));
    assert_eq!(cluster.state.view().unwrap().models.len(), 0);
}

#[test]
fn a_refused_command_leaves_the_view_as_it_was() {
    let mut cluster = Cluster::with_versions(1);
    let before = cluster.state.view();
    cluster.run(Command::Undo { model: digits() }).unwrap_err();
    cluster.run(Command::StartRollout { target: at(9), weight: weight("5%") }).unwrap_err();
    assert_eq!(cluster.state.view(), before);
}

#[test]
fn a_canary_goes_from_nothing_to_stable_and_back() {
    let mut cluster = Cluster::with_versions(2);
    cluster.run(Command::StartRollout { target: at(2), weight: weight("20%") }).unwrap();
    let traffic = |cluster: &Cluster| cluster.state.rollout(&digits()).unwrap().traffic;
    assert_eq!(traffic(&cluster).canary, None, "no traffic before it is exposed");
    assert!(cluster.state.view().unwrap().models[&digits()].versions.contains_key(&Version(2)));
    let revision = cluster.revision();
    cluster.run(Command::Expose { model: digits(), revision }).unwrap();
    assert_eq!(traffic(&cluster).canary.unwrap().weight, weight("20%"));
    let revision = cluster.revision();
    cluster.run(Command::Promote { model: digits(), revision }).unwrap();
    assert_eq!((traffic(&cluster).stable, traffic(&cluster).previous), (Version(2), Some(Version(1))));
    cluster.run(Command::Undo { model: digits() }).unwrap();
    assert_eq!((traffic(&cluster).stable, traffic(&cluster).previous), (Version(1), Some(Version(2))));
    let kinds: Vec<_> = cluster.state.rollout(&digits()).unwrap().history;
    assert_eq!(kinds.len(), 5);
    assert!(
        kinds.windows(2).all(|pair| pair[0].revision <= pair[1].revision && pair[0].at_ms <= pair[1].at_ms)
    );
}

#[test]
fn a_plan_from_another_revision_is_refused() {
    let mut cluster = Cluster::with_versions(2);
    cluster.run(Command::StartRollout { target: at(2), weight: weight("20%") }).unwrap();
    let planned = cluster.revision();
    cluster.run(Command::Abort { model: digits(), reason: "no".to_owned() }).unwrap();
    cluster.run(Command::StartRollout { target: at(2), weight: weight("50%") }).unwrap();
    let refused = cluster.run(Command::Expose { model: digits(), revision: planned }).unwrap_err();
    assert!(matches!(refused, CommandError::RevisionMismatch { .. }), "{refused}");
}

#[test]
fn a_request_that_comes_twice_is_carried_out_once() {
    let mut cluster = Cluster::with_versions(2);
    let proposal = Proposal {
        request: Some(RequestId(1)),
        sent: cluster.state.epoch(),
        at_ms: 1,
        by: "anna".to_owned(),
        command: Command::StartRollout { target: at(2), weight: weight("20%") },
    };
    let first = cluster.propose(&proposal);
    let (revision, history) = (cluster.revision(), cluster.state.rollout(&digits()).unwrap().history);
    assert_eq!(cluster.propose(&proposal), first);
    assert_eq!(cluster.revision(), revision);
    assert_eq!(cluster.state.rollout(&digits()).unwrap().history, history);
}

#[test]
fn a_name_passes_to_another_node_only_once_the_first_is_out() {
    let mut cluster = Cluster::new();
    cluster.run(join(1, "a")).unwrap();
    assert!(matches!(cluster.run(join(2, "a")), Err(CommandError::NameTaken { .. })));
    let joined = cluster.joined(1);
    cluster.run(Command::NodeOut { node: NodeId(1), joined }).unwrap();
    cluster.run(join(2, "a")).unwrap();
    assert_eq!(cluster.state.view().unwrap().nodes.keys().copied().collect::<Vec<_>>(), [NodeId(2)]);
}

#[test]
fn a_node_that_joined_again_meanwhile_is_not_out() {
    let mut cluster = Cluster::new();
    cluster.run(join(1, "a")).unwrap();
    let planned = cluster.joined(1);
    cluster.run(join(1, "a")).unwrap();
    cluster.run(Command::NodeOut { node: NodeId(1), joined: planned }).unwrap();
    assert_eq!(cluster.node_state(1), NodeState::Active);
    let joined = cluster.joined(1);
    cluster.run(Command::NodeOut { node: NodeId(1), joined }).unwrap();
    assert_eq!(cluster.node_state(1), NodeState::Out);
    let unknown = cluster.run(Command::NodeOut { node: NodeId(2), joined });
    assert!(matches!(unknown, Err(CommandError::UnknownNode { .. })));
}

#[test]
fn a_join_ends_what_was_held_against_the_node() {
    let mut cluster = Cluster::with_versions(1);
    cluster.run(join(1, "a")).unwrap();
    cluster.run(join(2, "b")).unwrap();
    for node in [1, 2] {
        let exclude = Command::Exclude { node: NodeId(node), version: at(1), reason: String::new() };
        cluster.run(exclude).unwrap();
    }
    cluster.run(Command::Drain { node: NodeId(1), draining: true }).unwrap();
    cluster.run(join(1, "a")).unwrap();
    assert_eq!(cluster.node_state(1), NodeState::Active);
    let excluded = |cluster: &Cluster| {
        cluster.state.view().unwrap().models[&digits()].versions[&Version(1)].excluded.clone()
    };
    assert_eq!(excluded(&cluster), [NodeId(2)].into());
    // Nor does a node that was replaced stay in the lists.
    let joined = cluster.joined(2);
    cluster.run(Command::NodeOut { node: NodeId(2), joined }).unwrap();
    cluster.run(join(3, "b")).unwrap();
    assert_eq!(excluded(&cluster), [].into());
    let unknown = Command::Exclude { node: NodeId(2), version: at(1), reason: String::new() };
    assert!(matches!(cluster.run(unknown), Err(CommandError::UnknownNode { .. })));
}

#[test]
fn both_sets_of_voters_must_hold_a_bundle_while_one_replaces_the_other() {
    let mut cluster = Cluster::new();
    cluster.index += 1;
    let sets = vec![(1..=3).map(NodeId).collect(), (3..=5).map(NodeId).collect()];
    let coordinators = cluster.state.coordinators().clone();
    cluster.state.apply_membership(cluster.index, coordinators, sets);
    // A quorum of all five together, and none of the second set.
    for holders in [&[1, 2, 3][..], &[3, 4, 5]] {
        assert!(matches!(cluster.push("a", holders), Err(CommandError::TooFewHolders { holders: 1, .. })));
    }
    cluster.push("a", &[2, 3, 4]).unwrap();
}

#[test]
fn a_refusal_of_the_plan_leaves_the_request_open() {
    let mut cluster = Cluster::with_versions(2);
    cluster.run(Command::StartRollout { target: at(2), weight: weight("20%") }).unwrap();
    let planned = cluster.revision();
    cluster.run(Command::Expose { model: digits(), revision: planned }).unwrap();
    // The leader had looked before the canary was exposed.
    let promote = |revision| Command::Promote { model: digits(), revision };
    let late = cluster.ask(1, promote(planned));
    assert!(matches!(late, Err(CommandError::RevisionMismatch { .. })));
    let revision = cluster.revision();
    let promoted = cluster.ask(1, promote(revision));
    assert!(matches!(promoted, Ok(Outcome::Rerouted { .. })), "{promoted:?}");
    assert_eq!(cluster.ask(1, promote(planned)), promoted);

    cluster.run(Command::Reserve { files: files("c") }).unwrap();
    let commit = |holders: &[u64]| Command::CommitVersion {
        model: digits(),
        digest: files("c").digest(),
        manifest: Box::default(),
        note: String::new(),
        holders: holders.iter().map(|id| NodeId(*id)).collect(),
    };
    assert!(matches!(cluster.ask(2, commit(&[1])), Err(CommandError::TooFewHolders { .. })));
    let pushed = cluster.ask(2, commit(&[1, 2]));
    assert_eq!(pushed, Ok(Outcome::Pushed { version: Version(3), stable: false }));
    assert_eq!(cluster.ask(2, commit(&[])), pushed);
}

#[test]
fn every_other_refusal_is_the_outcome_of_its_request() {
    let mut cluster = Cluster::with_versions(2);
    let start = Command::StartRollout { target: at(2), weight: weight("20%") };
    let refusal = CommandError::NotReady { version: at(2), ready: 1, needed: 2 };
    let refuse = Command::Refuse { error: Box::new(refusal.clone()) };
    assert_eq!(cluster.ask(1, refuse), Err(refusal.clone()));
    assert_eq!(cluster.ask(1, start.clone()), Err(refusal), "an attempt that comes late is refused alike");
    let commit = Command::CommitVersion {
        model: digits(),
        digest: files("c").digest(),
        manifest: Box::default(),
        note: String::new(),
        holders: BTreeSet::new(),
    };
    let refused = cluster.ask(2, commit.clone());
    assert!(matches!(refused, Err(CommandError::NotReserved { .. })));
    cluster.run(Command::Reserve { files: files("c") }).unwrap();
    assert_eq!(cluster.ask(2, commit), refused);
    let outcome =
        |cluster: &Cluster, request| cluster.state.outcome(&RequestId(request), cluster.state.epoch());
    assert_eq!(outcome(&cluster, 2).unwrap().result, refused);
    assert_eq!(outcome(&cluster, 3), None);
}

#[test]
fn a_reservation_is_collected_unless_it_was_renewed_or_committed() {
    let mut cluster = Cluster::new();
    let digest = files("a").digest();
    let reserve = |cluster: &mut Cluster| {
        cluster.run(Command::Reserve { files: files("a") }).unwrap();
        let (_, reserved_at_ms) = cluster.state.reservations().next().unwrap();
        Command::Collect { digest, reserved_at_ms }
    };
    let first = reserve(&mut cluster);
    let renewed = reserve(&mut cluster);
    cluster.run(first).unwrap();
    assert!(cluster.state.bundle(&digest).is_some());
    cluster.run(renewed.clone()).unwrap();
    assert!(cluster.state.bundle(&digest).is_none());
    cluster.push("a", &[1, 2]).unwrap();
    cluster.run(renewed).unwrap();
    assert!(cluster.state.bundle(&digest).is_some());
}

#[test]
fn what_commands_bring_is_bounded() {
    let limited = |result: Result<Outcome, CommandError>| {
        assert!(matches!(result, Err(CommandError::LimitExceeded { .. })), "{result:?}");
    };
    let mut cluster = Cluster::with_versions(1);
    let with = |address: &str, profile: NodeProfile| {
        let (node, name) = (NodeId(1), NodeName::new("a").unwrap());
        Command::Join { node, name, address: address.to_owned(), profile: Box::new(profile) }
    };
    limited(cluster.run(with(&"h".repeat(300), profile())));
    limited(cluster.run(with("h:1", NodeProfile { zone: "z".repeat(100), ..profile() })));
    let labels = (0..100).map(|i| (i.to_string(), String::new())).collect();
    limited(cluster.run(with("h:1", NodeProfile { labels, ..profile() })));
    for i in 0..bounds::LABELS_MAX {
        let label = Label::new(&format!("l{i}")).unwrap();
        cluster.run(Command::SetLabel { version: at(1), label }).unwrap();
    }
    let one_more = Label::new("more").unwrap();
    limited(cluster.run(Command::SetLabel { version: at(1), label: one_more }));
    let again = Label::new("l0").unwrap();
    cluster.run(Command::SetLabel { version: at(1), label: again }).unwrap();

    let commit = |cluster: &mut Cluster, model: &str, label_bytes: usize| {
        let labels = vec!["x".repeat(label_bytes)];
        cluster.run(Command::CommitVersion {
            model: ModelName::new(model).unwrap(),
            digest: files("v1").digest(),
            manifest: Box::new(Manifest { labels, ..Manifest::default() }),
            note: String::new(),
            holders: [NodeId(1), NodeId(2)].into(),
        })
    };
    limited(commit(&mut cluster, "digits", 300 << 10));
    // Each new model is hosted at once, until the view is full.
    let full = (0..100).find_map(|i| commit(&mut cluster, &format!("m{i}"), 250 << 10).err().map(|e| (i, e)));
    assert!(matches!(full, Some((57, CommandError::LimitExceeded { .. }))), "{full:?}");
    // Further versions are not, but what is hosted beside must fit.
    commit(&mut cluster, "m0", 250 << 10).unwrap();
    let second = ModelVersion { model: ModelName::new("m0").unwrap(), version: Version(2) };
    limited(cluster.run(Command::StartRollout { target: second.clone(), weight: weight("5%") }));
    limited(cluster.run(Command::SetLabel { version: second, label: Label::new("l").unwrap() }));
}

#[test]
fn nodes_that_are_known_may_join_again_however_many_there_are() {
    let mut cluster = Cluster::new();
    for node in 0..roost_protocol::limits::NODES_MAX as u64 {
        cluster.run(join(node, &format!("n{node}"))).unwrap();
    }
    assert!(matches!(cluster.run(join(9999, "more")), Err(CommandError::LimitExceeded { .. })));
    cluster.run(join(7, "n7")).unwrap();
    let joined = cluster.joined(7);
    cluster.run(Command::NodeOut { node: NodeId(7), joined }).unwrap();
    cluster.run(join(9999, "n7")).unwrap();
}

#[test]
fn labels_keep_their_version_hosted() {
    let mut cluster = Cluster::with_versions(3);
    let label = Label::new("shadow").unwrap();
    cluster.run(Command::SetLabel { version: at(3), label: label.clone() }).unwrap();
    assert!(cluster.state.view().unwrap().models[&digits()].versions.contains_key(&Version(3)));
    cluster.run(Command::SetLabel { version: at(9), label: label.clone() }).unwrap_err();
    cluster.run(Command::RemoveLabel { model: digits(), label: label.clone() }).unwrap();
    cluster.run(Command::RemoveLabel { model: digits(), label }).unwrap_err();
    assert!(!cluster.state.view().unwrap().models[&digits()].versions.contains_key(&Version(3)));
}

#[test]
fn nothing_happens_before_the_cluster_has_an_identity() {
    let mut cluster = Cluster { state: State::default(), index: 0 };
    assert_eq!(cluster.run(Command::Undo { model: digits() }), Err(CommandError::NotInitialised));
    assert_eq!(cluster.state.view(), None);
    cluster.run(Command::Initialise { cluster: ClusterId(1) }).unwrap();
    let again = cluster.run(Command::Initialise { cluster: ClusterId(2) });
    assert_eq!(again, Err(CommandError::AlreadyInitialised { cluster: ClusterId(1) }));
}

/// A rollout's states, each reached by commands, against every event.
#[test]
fn the_table_of_a_rollout() {
    let start = |cluster: &mut Cluster| {
        cluster.run(Command::StartRollout { target: at(2), weight: weight("20%") }).unwrap();
    };
    let expose = |cluster: &mut Cluster| {
        let revision = cluster.revision();
        cluster.run(Command::Expose { model: digits(), revision }).unwrap();
    };
    let none = Cluster::with_versions(2);
    let mut preparing = Cluster::with_versions(2);
    start(&mut preparing);
    let mut running = Cluster::with_versions(2);
    start(&mut running);
    expose(&mut running);
    let mut paused = Cluster { state: running.state.clone(), index: running.index };
    let revision = paused.revision();
    paused.run(Command::Pause { model: digits(), revision, reason: "one replica".to_owned() }).unwrap();
    let mut promoted = Cluster { state: running.state.clone(), index: running.index };
    promoted.run(Command::Promote { model: digits(), revision }).unwrap();

    let (mut table, mut edges) = (String::new(), String::new());
    let states = [
        ("none", none),
        ("preparing", preparing),
        ("running", running),
        ("paused", paused),
        ("promoted", promoted),
    ];
    for (name, cluster) in &states {
        let revision = cluster.revision();
        let model = digits();
        let events = [
            ("start@1", Command::StartRollout { target: at(1), weight: weight("50%") }),
            ("start@2", Command::StartRollout { target: at(2), weight: weight("50%") }),
            ("expose", Command::Expose { model: model.clone(), revision }),
            ("pause", Command::Pause { model: model.clone(), revision, reason: "why".to_owned() }),
            ("resume", Command::Resume { model: model.clone(), revision }),
            ("promote", Command::Promote { model: model.clone(), revision }),
            ("abort", Command::Abort { model: model.clone(), reason: "why".to_owned() }),
            ("undo", Command::Undo { model }),
        ];
        for (event, command) in events {
            let mut after = Cluster { state: cluster.state.clone(), index: cluster.index };
            let result = match after.run(command) {
                Ok(_) => describe(&after),
                Err(error) => format!("refused: {error}"),
            };
            writeln!(table, "{name:10} {event:8} {result}").unwrap();
            if describe(&after) != describe(cluster) {
                writeln!(edges, "    {name} -> {} [label=\"{event}\"];", node(&after)).unwrap();
            }
        }
    }
    expect_test::expect_file!["rollout/table.txt"].assert_eq(&table);
    let drawing = format!(
        "// Drawn by the test `the_table_of_a_rollout`: dot -Tsvg table.dot\n\
         digraph rollout {{\n    node [shape=box];\n    none [label=\"no rollout\"];\n    \
         promoted [label=\"no rollout,\\nan earlier stable version to go back to\"];\n{edges}}}\n"
    );
    expect_test::expect_file!["rollout/table.dot"].assert_eq(&drawing);
}

/// The state of the drawing that a cluster is in.
fn node(cluster: &Cluster) -> &'static str {
    let summary = cluster.state.rollout(&digits()).unwrap();
    match (summary.rollout.map(|rollout| rollout.state), summary.traffic.previous) {
        (None, None) => "none",
        (None, Some(_)) => "promoted",
        (Some(RolloutState::Preparing), _) => "preparing",
        (Some(RolloutState::Running), _) => "running",
        (Some(RolloutState::Paused { .. }), _) => "paused",
    }
}

fn describe(cluster: &Cluster) -> String {
    let summary = cluster.state.rollout(&digits()).unwrap();
    let state = match summary.rollout.as_ref().map(|rollout| &rollout.state) {
        None => "none",
        Some(RolloutState::Preparing) => "preparing",
        Some(RolloutState::Running) => "running",
        Some(RolloutState::Paused { .. }) => "paused",
    };
    let canary = summary
        .traffic
        .canary
        .map_or("-".to_owned(), |canary| format!("{} {}", canary.version, canary.weight));
    format!(
        "{state}, stable {}, canary {canary}, revision {}",
        summary.traffic.stable, summary.traffic.revision
    )
}

fn any_command() -> impl Strategy<Value = Command> {
    let version = 1u32..4;
    prop_oneof![
        (version.clone(), 0u16..=10_000).prop_map(|(v, w)| Command::StartRollout {
            target: at(v),
            weight: Weight::from_basis_points(w).unwrap()
        }),
        (0u64..12).prop_map(|r| Command::Expose { model: digits(), revision: Revision(r) }),
        (0u64..12).prop_map(|r| Command::Promote { model: digits(), revision: Revision(r) }),
        (0u64..12).prop_map(|r| Command::Pause {
            model: digits(),
            revision: Revision(r),
            reason: String::new()
        }),
        Just(Command::Abort { model: digits(), reason: String::new() }),
        Just(Command::Undo { model: digits() }),
        version.prop_map(|v| Command::SetLabel { version: at(v), label: Label::new("l").unwrap() }),
    ]
}

proptest! {
    /// Whatever operators do: the view always hosts what it routes to, and revisions grow with each change of traffic.
    #[test]
    fn routes_lead_to_hosted_versions(commands in proptest::collection::vec(any_command(), 1..40)) {
        let mut cluster = Cluster::with_versions(3);
        let mut last = cluster.state.rollout(&digits()).unwrap().traffic;
        for command in commands {
            let _ = cluster.run(command);
            let view = cluster.state.view().unwrap();
            let model = &view.models[&digits()];
            let traffic = &model.traffic;
            for key in 0..20 {
                prop_assert!(model.versions.contains_key(&traffic.pick(&digits(), KeyHash(key))));
            }
            prop_assert!(traffic.previous.is_none_or(|v| model.versions.contains_key(&v)));
            if *traffic != last {
                prop_assert!(traffic.revision > last.revision);
            }
            last = traffic.clone();
        }
    }

    /// Two replicas that apply the same entries, one by way of a snapshot, are equal.
    #[test]
    fn a_snapshot_is_the_state(commands in proptest::collection::vec(any_command(), 1..30), cut in 0usize..30) {
        let mut one = Cluster::with_versions(3);
        let mut other = Cluster { state: one.state.clone(), index: one.index };
        for (i, command) in commands.into_iter().enumerate() {
            let _ = one.run(command.clone());
            let _ = other.run(command);
            if i == cut {
                let bytes = postcard::to_stdvec(&other.state).unwrap();
                other.state = postcard::from_bytes(&bytes).unwrap();
            }
        }
        prop_assert_eq!(one.state, other.state);
    }
}
