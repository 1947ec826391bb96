//! What commands do; that replicas stay equal. In files of their own: the table of a rollout, requests, bounds.

mod bounds;
mod requests;
mod table;

use proptest::prelude::*;
use roost_protocol::bundle::{BundleFile, MODEL_FILE};
use roost_protocol::messages::control::RolloutEventKind;
use roost_protocol::traffic::KeyHash;
use roost_protocol::view::{Hold, NodeState};

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

    fn undo(&mut self) -> Result<Outcome, CommandError> {
        let revision = self.revision();
        self.run(Command::Undo { model: digits(), revision })
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
            new_version: true,
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
    assert_eq!(
        cluster.push("a", &[1, 2]),
        Ok(Outcome::Pushed { version: Version(1), stable: true, existing: false })
    );
    assert_eq!(
        cluster.push("b", &[2, 3]),
        Ok(Outcome::Pushed { version: Version(2), stable: false, existing: false })
    );
    let view = cluster.state.view().unwrap();
    assert_eq!(view.models[&digits()].versions.keys().copied().collect::<Vec<_>>(), [Version(1)]);
    assert_eq!(view.epoch.index, cluster.index);
}

#[test]
fn the_same_bundle_is_the_same_version_unless_another_is_asked_for() {
    let mut cluster = Cluster::with_versions(2);
    let commit = |new_version| Command::CommitVersion {
        model: digits(),
        digest: files("v1").digest(),
        manifest: Box::default(),
        note: String::new(),
        holders: [NodeId(1), NodeId(2)].into(),
        new_version,
    };
    let again = Outcome::Pushed { version: Version(1), stable: false, existing: true };
    assert_eq!(cluster.run(commit(false)), Ok(again));
    let another = Outcome::Pushed { version: Version(3), stable: false, existing: false };
    assert_eq!(cluster.run(commit(true)), Ok(another));
}

#[test]
fn old_versions_are_forgotten_and_none_that_is_needed() {
    let mut cluster = Cluster::with_versions(6);
    let retain = |keep| Command::Retain { model: digits(), keep };
    // 1 is stable, 2 bears a label, 3 is rolled out to.
    let label = Label::new("prod").unwrap();
    cluster.run(Command::SetLabel { version: at(2), label }).unwrap();
    cluster.run(Command::StartRollout { target: at(3), weight: weight("5%") }).unwrap();
    let forgotten = |versions: &[u32]| {
        Ok(Outcome::Forgotten { versions: versions.iter().copied().map(Version).collect() })
    };
    assert_eq!(cluster.run(retain(2)), forgotten(&[4]));
    assert!(cluster.state.bundle(&files("v4").digest()).is_none());
    assert!(cluster.state.bundle(&files("v3").digest()).is_some());
    assert_eq!(cluster.run(retain(2)), forgotten(&[]));
    // The newest stays, so that no number is given twice.
    assert_eq!(cluster.run(retain(0)), forgotten(&[5]));
    assert_eq!(
        cluster.push("v4", &[1, 2]),
        Ok(Outcome::Pushed { version: Version(7), stable: false, existing: false })
    );
    // A bundle that another version is made of stays.
    cluster.push("v6", &[1, 2]).unwrap();
    assert_eq!(cluster.run(retain(1)), forgotten(&[6, 7]));
    assert!(cluster.state.bundle(&files("v6").digest()).is_some());
    let unknown = Command::Retain { model: ModelName::new("x").unwrap(), keep: 1 };
    assert!(matches!(cluster.run(unknown), Err(CommandError::UnknownModel { .. })));
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
        new_version: true,
    };
    assert!(matches!(cluster.run(never_reserved), Err(CommandError::NotReserved { .. })));
    assert_eq!(cluster.state.view().unwrap().models.len(), 0);
}

#[test]
fn a_refused_command_leaves_the_view_as_it_was() {
    let mut cluster = Cluster::with_versions(1);
    let before = cluster.state.view();
    cluster.undo().unwrap_err();
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
    cluster.undo().unwrap();
    assert_eq!((traffic(&cluster).stable, traffic(&cluster).previous), (Version(1), None));
    // What was undone is no way to go back: it would be the way forward again.
    let again = cluster.undo().unwrap_err();
    assert_eq!(again, CommandError::NothingToUndo { model: digits() });
    assert_eq!(traffic(&cluster).stable, Version(1));
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
    // So is an undo: somebody else promoted what its plan did not know of.
    for version in [2, 1] {
        cluster.run(Command::Abort { model: digits(), reason: String::new() }).unwrap_or(Outcome::Applied);
        cluster.run(Command::StartRollout { target: at(version), weight: weight("20%") }).unwrap();
        let revision = cluster.revision();
        cluster.run(Command::Promote { model: digits(), revision }).unwrap();
    }
    let planned = Revision(cluster.revision().0 - 1);
    let refused = cluster.run(Command::Undo { model: digits(), revision: planned }).unwrap_err();
    assert!(matches!(refused, CommandError::RevisionMismatch { .. }), "{refused}");
    cluster.undo().unwrap();
}

#[test]
fn an_id_stays_that_of_its_node() {
    let mut cluster = Cluster::new();
    cluster.run(join(1, "a")).unwrap();
    let before = cluster.state.view();
    let taken = CommandError::IdTaken { node: NodeId(1), name: NodeName::new("a").unwrap() };
    assert!(taken.to_string().contains("copied"), "it says what to do: {taken}");
    // A data folder that was copied to another machine, also when the first is out, and when the name is known too.
    assert_eq!(cluster.run(join(1, "b")), Err(taken.clone()));
    cluster.run(join(2, "b")).unwrap();
    assert_eq!(cluster.run(join(1, "b")), Err(taken.clone()));
    for node in [1, 2] {
        let joined = cluster.joined(node);
        cluster.run(Command::NodeOut { node: NodeId(node), joined }).unwrap();
    }
    assert_eq!(cluster.run(join(1, "b")), Err(taken));
    let name = |view: Option<View>| view.unwrap().nodes[&NodeId(1)].name.clone();
    assert_eq!(name(cluster.state.view()), name(before));
    cluster.run(join(1, "a")).unwrap();
}

#[test]
fn an_exclusion_that_was_planned_before_the_last_join_comes_to_nothing() {
    let mut cluster = Cluster::with_versions(1);
    cluster.run(join(1, "a")).unwrap();
    let planned = cluster.joined(1);
    cluster.run(join(1, "a")).unwrap();
    let exclude =
        |joined| Command::Exclude { node: NodeId(1), joined, version: at(1), reason: "no memory".to_owned() };
    let excluded = |cluster: &Cluster| {
        cluster.state.view().unwrap().models[&digits()].versions[&Version(1)].excluded.clone()
    };
    let told =
        |cluster: &Cluster| cluster.state.rollout(&digits()).unwrap().history.last().unwrap().kind.clone();
    cluster.run(exclude(planned)).unwrap();
    assert_eq!(excluded(&cluster), [].into(), "it may load now what it could not then");
    let joined = cluster.joined(1);
    cluster.run(exclude(joined)).unwrap();
    assert_eq!(excluded(&cluster), [NodeId(1)].into());
    let (node, reason) = (NodeName::new("a").unwrap(), "no memory".to_owned());
    assert_eq!(told(&cluster), RolloutEventKind::Excluded { version: Version(1), node, reason });
    // However often it fails.
    let events = |cluster: &Cluster| cluster.state.rollout(&digits()).unwrap().history.len();
    let before = events(&cluster);
    cluster.run(join(1, "a")).unwrap();
    let joined = cluster.joined(1);
    cluster.run(exclude(joined)).unwrap();
    assert_eq!((excluded(&cluster), events(&cluster)), ([NodeId(1)].into(), before));
}

#[test]
fn a_file_is_awaited_as_it_was_announced() {
    let mut cluster = Cluster::new();
    cluster.run(Command::Reserve { files: files("graph") }).unwrap();
    let file = files("graph").files()[0].clone();
    assert!(cluster.state.awaits_file(&file));
    assert!(!cluster.state.awaits_file(&BundleFile { bytes: 1 << 40, ..file.clone() }), "of another size");
    assert!(!cluster.state.awaits_file(&BundleFile { digest: Digest::of(b"other"), ..file.clone() }));
    assert!(!cluster.state.awaits_file(&BundleFile { name: "weights".to_owned(), ..file }));
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
        let joined = cluster.joined(node);
        let exclude = Command::Exclude { node: NodeId(node), joined, version: at(1), reason: String::new() };
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
    let unknown = Command::Exclude { node: NodeId(2), joined, version: at(1), reason: String::new() };
    assert!(matches!(cluster.run(unknown), Err(CommandError::UnknownNode { .. })));
}

#[test]
fn what_holds_a_node_back_outlives_its_restarts_and_its_machine() {
    let mut cluster = Cluster::with_versions(2);
    cluster.run(join(1, "a")).unwrap();
    let hold = |cluster: &Cluster, node| cluster.state.nodes[&NodeId(node)].node.hold;
    let further = Command::Hold { node: NodeId(1), from: Some(HeldFrom::Further) };
    cluster.run(further.clone()).unwrap();
    let cordoned = hold(&cluster, 1);
    assert_eq!(cordoned, Some(Hold::Cordoned { since: cluster.index }));
    // What is hosted from now on is later, what was before is not; and it was cordoned once.
    cluster.run(further).unwrap();
    assert_eq!(hold(&cluster, 1), cordoned);
    cluster.run(Command::SetLabel { version: at(2), label: Label::new("new").unwrap() }).unwrap();
    let labelled = cluster.index;
    let since = |cluster: &Cluster, version| {
        cluster.state.view().unwrap().models[&digits()].versions[&Version(version)].since
    };
    assert_eq!(since(&cluster, 2), labelled);
    assert!(cordoned > Some(Hold::Cordoned { since: since(&cluster, 1) }), "{cordoned:?}");
    cluster.run(Command::SetLabel { version: at(2), label: Label::new("newer").unwrap() }).unwrap();
    assert_eq!(since(&cluster, 2), labelled, "it was hosted all the time");
    // Its next start, and the machine that takes its place, are held back as it was.
    cluster.run(join(1, "a")).unwrap();
    cluster.run(Command::Hold { node: NodeId(1), from: Some(HeldFrom::All) }).unwrap();
    let joined = cluster.joined(1);
    cluster.run(Command::NodeOut { node: NodeId(1), joined }).unwrap();
    cluster.run(join(2, "a")).unwrap();
    assert_eq!(hold(&cluster, 2), Some(Hold::Drained));
    cluster.run(Command::Hold { node: NodeId(2), from: None }).unwrap();
    assert_eq!(hold(&cluster, 2), None);
    let unknown = cluster.run(Command::Hold { node: NodeId(1), from: None });
    assert!(matches!(unknown, Err(CommandError::UnknownNode { .. })), "{unknown:?}");
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
fn a_bundle_of_a_version_that_is_reserved_again_outlives_the_version() {
    let mut cluster = Cluster::with_versions(3);
    let reserve = |cluster: &mut Cluster, content| {
        cluster.run(Command::Reserve { files: files(content) }).unwrap();
        let (digest, reserved_at_ms) = cluster.state.reservations().next().unwrap();
        Command::Collect { digest: *digest, reserved_at_ms }
    };
    let referenced =
        |cluster: &Cluster, digest| cluster.state.referenced_bundles().any(|(known, _)| *known == digest);
    let digest = files("v2").digest();
    let collect = reserve(&mut cluster, "v2");
    assert!(referenced(&cluster, digest), "a push of it changes nothing for the version");
    let forgotten = Outcome::Forgotten { versions: vec![Version(2)] };
    assert_eq!(cluster.run(Command::Retain { model: digits(), keep: 1 }), Ok(forgotten));
    assert!(cluster.state.bundle(&digest).is_some() && !referenced(&cluster, digest));
    cluster.run(collect).unwrap();
    assert!(cluster.state.bundle(&digest).is_none(), "the push was never committed");

    // Whether the reservation is given up or its push is committed, the version keeps its bundle.
    let digest = files("v3").digest();
    let collect = reserve(&mut cluster, "v3");
    cluster.run(collect).unwrap();
    cluster.push("v3", &[1, 2]).unwrap();
    assert!(referenced(&cluster, digest));
    assert_eq!(cluster.state.reservations().count(), 0);
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
    let undo = Command::Undo { model: digits(), revision: Revision(1) };
    assert_eq!(cluster.run(undo), Err(CommandError::NotInitialised));
    assert_eq!(cluster.state.view(), None);
    cluster.run(Command::Initialise { cluster: ClusterId(1) }).unwrap();
    let again = cluster.run(Command::Initialise { cluster: ClusterId(2) });
    assert_eq!(again, Err(CommandError::AlreadyInitialised { cluster: ClusterId(1) }));
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
        (0u64..12).prop_map(|r| Command::Undo { model: digits(), revision: Revision(r) }),
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

#[test]
fn the_level_only_rises_and_gates_commands() {
    let mut cluster = Cluster::with_versions(1);
    assert_eq!(cluster.state.level(), LEVEL_FIRST);
    cluster.run(Command::RaiseLevel { level: 3 }).unwrap();
    cluster.run(Command::RaiseLevel { level: 2 }).unwrap();
    assert_eq!(cluster.state.level(), 3);
    // A state below what a command came with.
    let label = Command::SetLabel { version: at(1), label: Label::new("prod").unwrap() };
    cluster.state.level = 0;
    let before = cluster.state.view();
    let refused = cluster.run(label.clone()).unwrap_err();
    assert_eq!(refused, CommandError::LevelTooLow { needed: LEVEL_FIRST, level: 0 });
    assert_eq!(cluster.state.view(), before);
    cluster.state.level = LEVEL_FIRST;
    cluster.run(label).unwrap();
}
