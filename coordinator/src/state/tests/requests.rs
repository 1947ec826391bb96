//! Which outcome a request has, however often it is asked.

use roost_protocol::limits::OUTCOMES_MAX;

use super::*;

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
        new_version: true,
    };
    assert!(matches!(cluster.ask(2, commit(&[1])), Err(CommandError::TooFewHolders { .. })));
    let pushed = cluster.ask(2, commit(&[1, 2]));
    assert_eq!(pushed, Ok(Outcome::Pushed { version: Version(3), stable: false, existing: false }));
    assert_eq!(cluster.ask(2, commit(&[])), pushed);
}

#[test]
fn refusals_do_not_make_new_requests_too_old() {
    let mut cluster = Cluster::with_versions(2);
    let refused = Command::RemoveLabel { model: digits(), label: Label::new("none").unwrap() };
    // Each is sent by somebody who has the view of that moment.
    let ask = |cluster: &mut Cluster, request: u128, sent, command| {
        let request = Some(RequestId(request));
        cluster.propose(&Proposal { request, sent, at_ms: 1, by: "anna".to_owned(), command })
    };
    let first = cluster.state.view_epoch();
    for request in 0..=OUTCOMES_MAX as u128 {
        let sent = cluster.state.view_epoch();
        let result = ask(&mut cluster, request, sent, refused.clone());
        assert!(matches!(result, Err(CommandError::UnknownLabel { .. })), "{request}: {result:?}");
    }
    assert!(cluster.state.view_epoch() > first, "the view has moved on");
    let label = Command::SetLabel { version: at(1), label: Label::new("prod").unwrap() };
    let sent = cluster.state.view_epoch();
    assert_eq!(ask(&mut cluster, 1 << 64, sent, label.clone()), Ok(Outcome::Applied));

    // Who has no view at all is told the present epoch, for a request that was never sent before.
    let Err(CommandError::RequestTooOld { present, .. }) =
        ask(&mut cluster, 2 << 64, Epoch::default(), label.clone())
    else {
        panic!("nobody can tell whether it was carried out")
    };
    assert_eq!(present, cluster.state.epoch());
    assert_eq!(ask(&mut cluster, 3 << 64, present, label), Ok(Outcome::Applied));
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
        new_version: true,
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
