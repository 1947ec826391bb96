//! Samples of the cold messages.

use std::collections::{BTreeMap, BTreeSet};

use roost_protocol::bundle::FileList;
use roost_protocol::error::ControlError;
use roost_protocol::frame::Kind;
use roost_protocol::ids::{Digest, Incarnation, ModelName, NodeId, RequestId, Revision, Term, Version};
use roost_protocol::messages::control::{
    Answer, BundleRequest, BundleResponse, Change, ClusterSummary, ControlRequest, ControlResponse, Done,
    Heartbeat, HeldFrom, Hello, LevelSummary, MemberSummary, MembersSummary, ModelSummary, Outcome, Query,
    Reconfigure, Reconfigured, Rollout, RolloutEvent, RolloutEventKind, RolloutState, RolloutSummary,
    SoftUpdate, VersionStatistics, VersionSummary, WatchUpdate, Watched,
};
use roost_protocol::view::SoftState;

use super::state::{
    cluster, delta, epoch, files, label, manifest, model, model_version, node_name, profile, soft, traffic,
    version_reports, view, weight,
};
use super::{Sample, bare, each, framed};

/// The greeting, the control plane's requests and answers, and what a watch delivers.
pub fn control() -> Vec<Sample> {
    let known = Hello { cluster: Some(cluster()), node: Some(NodeId(10)) };
    let nobody = Hello { cluster: None, node: None };
    let mut samples = vec![
        framed("Hello", Kind::Hello, known.clone()),
        framed("Hello/nobody", Kind::Hello, nobody),
        framed("Hello/answer", Kind::Hello, Ok::<_, ControlError>(known)),
    ];
    let request = |name: &str, value: ControlRequest| framed(name, Kind::ControlRequest, value);
    let response = |name: &str, value: ControlResponse| framed(name, Kind::ControlResponse, value);
    let id = RequestId(0x77);
    samples.extend(each(requests(), request));
    samples.extend(each(changes(), |name, change| {
        request(name, ControlRequest::Change { request: id, sent: epoch(7), change })
    }));
    samples.extend(each(queries(), |name, query| request(name, ControlRequest::Query(query))));
    samples
        .extend(each(watched(), |name, models| request(name, ControlRequest::Watch { from: None, models })));
    samples.extend(each(responses(), response));
    samples.extend(each(outcomes(), |name, outcome| {
        response(name, ControlResponse::Done(Done { epoch: epoch(300), outcome }))
    }));
    samples.extend(each(answers(), |name, answer| response(name, ControlResponse::Answer(Box::new(answer)))));
    samples.extend(each(reconfigurations(), |name, value| request(name, ControlRequest::Reconfigure(value))));
    samples.extend(each(reconfigured(), |name, value| response(name, ControlResponse::Reconfigured(value))));
    samples.extend(each(rollout_states(), bare));
    samples.extend(each(rollout_events(), bare));
    samples.extend(each(updates(), |name, update| framed(name, Kind::WatchUpdate, update)));
    samples
}

/// The requests and answers of bundle transfer.
pub fn bundles() -> Vec<Sample> {
    let digest = Digest::of(b"graph");
    let requests = vec![
        BundleRequest::List { digest: files().digest() },
        BundleRequest::Get { file: digest, offset: 1 << 20 },
        BundleRequest::Missing { files: files() },
        BundleRequest::Put { file: files().files()[0].clone() },
        BundleRequest::Seal { files: files() },
    ];
    let responses = vec![
        BundleResponse::Files(files()),
        BundleResponse::Follows { bytes: 5 << 20 },
        BundleResponse::Missing(vec![digest]),
        BundleResponse::Held,
        BundleResponse::Failed(ControlError::NoBundle { digest: digest.to_string() }),
    ];
    let mut samples = each(requests, |name, value| framed(name, Kind::BundleRequest, value));
    samples.extend(each(responses, |name, value| framed(name, Kind::BundleResponse, value)));
    samples
}

fn requests() -> Vec<ControlRequest> {
    vec![
        ControlRequest::Change {
            request: RequestId(0x77),
            sent: epoch(7),
            change: Change::Undo { model: model() },
        },
        ControlRequest::Query(Query::Cluster),
        ControlRequest::Watch { from: Some(epoch(7)), models: Watched::All },
        ControlRequest::Heartbeat(Heartbeat {
            node: NodeId(10),
            incarnation: Incarnation(4),
            sequence: 17,
            versions: version_reports(),
            statistics: vec![statistics()],
        }),
        ControlRequest::Reconfigure(Reconfigure::TransferLeader { to: None }),
        ControlRequest::Snapshot,
    ]
}

fn reconfigurations() -> Vec<Reconfigure> {
    vec![
        Reconfigure::Add { name: node_name("d"), address: "127.0.0.1:7300".to_owned() },
        Reconfigure::Change { promote: [NodeId(4)].into(), remove: [NodeId(1), NodeId(2)].into() },
        Reconfigure::TransferLeader { to: Some(NodeId(2)) },
    ]
}

fn reconfigured() -> Vec<Reconfigured> {
    vec![Reconfigured::Added(NodeId(4)), Reconfigured::Changed, Reconfigured::LedBy(NodeId(2))]
}

fn members() -> MembersSummary {
    let member = MemberSummary {
        node: NodeId(1),
        name: node_name("a"),
        address: "127.0.0.1:7300".to_owned(),
        voter: true,
        leader: false,
        behind: Some(3),
        heard_ms: Some(120),
    };
    let members = vec![member.clone(), MemberSummary { behind: None, heard_ms: None, ..member }];
    MembersSummary { members, changing: true, config_differs: vec!["e is no member".to_owned()] }
}

fn statistics() -> VersionStatistics {
    VersionStatistics { version: model_version(2), answered: 100_000, failed: 3, fallbacks: 7 }
}

fn watched() -> Vec<Watched> {
    let other = ModelName::new("other").expect("a name");
    vec![Watched::All, Watched::Models(BTreeSet::from([model(), other]))]
}

fn changes() -> Vec<Change> {
    vec![
        Change::ReservePush { files: files() },
        Change::CommitPush {
            model: model(),
            digest: files().digest(),
            manifest: Box::new(manifest()),
            note: "trained on Monday".to_owned(),
            new_version: false,
        },
        Change::StartRollout { target: model_version(2), weight: weight() },
        Change::Promote { model: model() },
        Change::Abort { model: model(), reason: "it answers slower".to_owned() },
        Change::Undo { model: model() },
        Change::SetLabel { version: model_version(1), label: label() },
        Change::RemoveLabel { model: model(), label: label() },
        Change::Join {
            node: NodeId(10),
            name: node_name("b"),
            address: "127.0.0.1:7400".to_owned(),
            profile: Box::new(profile()),
        },
        Change::Drain { node: NodeId(10), draining: true },
        Change::Drain { node: NodeId(10), draining: false },
        Change::Hold { node: NodeId(10), from: Some(HeldFrom::Further) },
        Change::Hold { node: NodeId(10), from: Some(HeldFrom::All) },
        Change::Hold { node: NodeId(10), from: None },
        Change::Retain { model: model(), keep: 3 },
    ]
}

fn queries() -> Vec<Query> {
    vec![
        Query::Models,
        Query::Versions(model()),
        Query::Rollout(model()),
        Query::Cluster,
        Query::Files(files().digest()),
        Query::Members,
        Query::Level,
    ]
}

fn responses() -> Vec<ControlResponse> {
    vec![
        ControlResponse::Done(Done { epoch: epoch(300), outcome: Outcome::Applied }),
        ControlResponse::Answer(Box::new(Answer::Models(vec![]))),
        ControlResponse::Heard { term: Term(5), epoch: epoch(300) },
        ControlResponse::Failed(ControlError::NotLeader { leader: None }),
        ControlResponse::Reconfigured(Reconfigured::Changed),
        ControlResponse::Snapshot { bytes: 1 << 20 },
    ]
}

fn outcomes() -> Vec<Outcome> {
    vec![
        Outcome::Applied,
        Outcome::Reserved { known: true },
        Outcome::Reserved { known: false },
        Outcome::Pushed { version: Version(2), stable: false, existing: true },
        Outcome::Rerouted { revision: Revision(12) },
        Outcome::Forgotten { versions: vec![Version(1), Version(2)] },
    ]
}

fn answers() -> Vec<Answer> {
    let summary = ModelSummary {
        model: model(),
        traffic: traffic(),
        versions: 3,
        labels: BTreeMap::from([(label(), Version(1))]),
    };
    let version = VersionSummary {
        version: Version(1),
        digest: files().digest(),
        bytes: files().bytes(),
        pushed_by: "anna".to_owned(),
        pushed_at_ms: 1_767_225_600_000,
        note: "trained on Monday".to_owned(),
    };
    let rollout = Rollout { target: Version(2), weight: weight(), state: RolloutState::Running };
    let rollouts =
        |rollout, history| Answer::Rollout(RolloutSummary { traffic: traffic(), rollout, history });
    let happened =
        |kind| RolloutEvent { at_ms: 1_767_225_600_000, by: "anna".to_owned(), kind, revision: Revision(12) };
    vec![
        Answer::Models(vec![summary]),
        Answer::Versions(vec![version]),
        rollouts(Some(rollout), rollout_events().into_iter().map(happened).collect()),
        rollouts(None, vec![]),
        Answer::Cluster(ClusterSummary {
            cluster: cluster(),
            leader: NodeId(1),
            term: Term(5),
            epoch: epoch(300),
            soft: soft(),
            statistics: BTreeMap::from([(NodeId(10), vec![statistics()])]),
        }),
        Answer::Files(FileList::clone(&files())),
        Answer::Members(members()),
        Answer::Level(LevelSummary { level: 1, supported: [(NodeId(1), Some(2)), (NodeId(2), None)].into() }),
    ]
}

fn rollout_states() -> Vec<RolloutState> {
    let reason = "one of two replicas is ready".to_owned();
    vec![RolloutState::Preparing, RolloutState::Running, RolloutState::Paused { reason }]
}

fn rollout_events() -> Vec<RolloutEventKind> {
    let (target, weight) = (Version(2), weight());
    vec![
        RolloutEventKind::First(Version(1)),
        RolloutEventKind::Started { target, weight },
        RolloutEventKind::Exposed { target, weight },
        RolloutEventKind::Paused { reason: "one of two replicas is ready".to_owned() },
        RolloutEventKind::Resumed,
        RolloutEventKind::Promoted { target },
        RolloutEventKind::Aborted { target, reason: "it answers slower".to_owned() },
        RolloutEventKind::Undone { from: target, to: Version(1) },
        RolloutEventKind::Excluded { version: target, node: node_name("w1"), reason: "no memory".to_owned() },
    ]
}

fn updates() -> Vec<WatchUpdate> {
    let mut later = SoftState { sequence: 1001, ..soft() };
    later.nodes.remove(&NodeId(11));
    vec![
        WatchUpdate::View(Box::new(view(7))),
        WatchUpdate::Delta(Box::new(delta())),
        WatchUpdate::Soft(SoftUpdate::between(None, &soft())),
        WatchUpdate::Soft(SoftUpdate::between(Some(&soft()), &later)),
        WatchUpdate::Failed(ControlError::NotCoordinator { coordinators: vec![] }),
    ]
}
