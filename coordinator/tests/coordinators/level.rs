//! The level of the state: it rises once every coordinator obeys the next, and one that does not stops when it is raised.

use std::collections::BTreeSet;
use std::time::Duration;

use roost_coordinator::{DiskFault, StartError};
use roost_protocol::messages::control::{
    Answer, ControlRequest, ControlResponse, LevelSummary, Query, Reconfigure, Reconfigured,
};
use roost_protocol::{ControlError, NodeId, NodeName};
use tokio::time::Instant;

use crate::party::{Member, Operator, PATIENCE, Party, Start, stop_all};

/// A coordinator of a build that obeys another level.
async fn start(party: &Party, number: usize, level: u32) -> Result<Member, StartError> {
    party.start(number, Start { level: Some(level), ..Start::default() }).await
}

async fn level(operator: &Operator) -> LevelSummary {
    let Answer::Level(level) = operator.query(Query::Level).await else { panic!("no level") };
    level
}

/// Waits until the level and those who say what they obey are so.
async fn until(operator: &Operator, expected: u32, supported: [u32; 3]) {
    let deadline = Instant::now() + PATIENCE;
    let supported = (1..).map(NodeId).zip(supported.map(Some)).collect();
    let expected = LevelSummary { level: expected, supported };
    loop {
        let found = level(operator).await;
        if found == expected {
            return;
        }
        assert!(Instant::now() < deadline, "{found:?} is not {expected:?}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_level_rises_when_the_last_build_is_there() {
    let party = Party::new(3);
    let mut members = party.members().await;
    let operator = party.operator().await;
    operator.push(b"one").await;
    until(&operator, 1, [1, 1, 1]).await;
    // A rolling upgrade: each is started again from a later build.
    for (at, supported) in [[2, 1, 1], [2, 2, 1]].into_iter().enumerate() {
        members[at].take().unwrap().stop().await;
        members[at] = Some(start(&party, at + 1, 2).await.unwrap());
        until(&operator, 1, supported).await;
    }
    // Whoever leads has asked more than once, and one did not say that it obeys.
    tokio::time::sleep(Duration::from_secs(5)).await;
    until(&operator, 1, [2, 2, 1]).await;
    members[2].take().unwrap().stop().await;
    members[2] = Some(start(&party, 3, 2).await.unwrap());
    until(&operator, 2, [2, 2, 2]).await;

    // The build before comes back, and would make something else of what it reads.
    members[1].take().unwrap().stop().await;
    let later = |fault: Option<DiskFault>, reason: String| {
        let named = matches!(&fault, Some(DiskFault::LaterBuild(_))) || fault.is_none();
        assert!(named && reason.contains("the state is at level 2, this coordinator obeys 1"), "{reason}");
    };
    match start(&party, 2, 1).await {
        Ok(member) => {
            let reason = tokio::time::timeout(PATIENCE, member.coordinator.failed()).await.unwrap();
            later(member.coordinator.disk_fault(), reason);
            member.stop().await;
        }
        Err(error) => later(error.disk_fault(), error.to_string()),
    }
    members[1] = Some(start(&party, 2, 2).await.unwrap());
    until(&operator, 2, [2, 2, 2]).await;

    // A machine in its place, at first with the build before.
    let go = Reconfigure::Change { promote: BTreeSet::new(), remove: [NodeId(2)].into() };
    operator.ask(&ControlRequest::Reconfigure(go)).await.unwrap();
    members[1].take().unwrap().stop().await;
    std::fs::remove_dir_all(party.folder(2)).unwrap();
    let new = |level| Start { node: Some(62), level: Some(level), ..Start::default() };
    let add = Reconfigure::Add { name: NodeName::new("c2").unwrap(), address: party.address(2).to_owned() };
    let early = party.start(2, new(1)).await.unwrap();
    let refused = operator.ask(&ControlRequest::Reconfigure(add.clone())).await.unwrap_err();
    let reason = "c2 obeys level 1 and the state is at level 2: install a newer build".to_owned();
    assert_eq!(refused, ControlError::MembersRefused { reason });
    early.stop().await;
    members[1] = Some(party.start(2, new(2)).await.unwrap());
    let added = operator.ask(&ControlRequest::Reconfigure(add)).await.unwrap();
    assert_eq!(added, ControlResponse::Reconfigured(Reconfigured::Added(NodeId(62))));
    stop_all(members).await;
}
