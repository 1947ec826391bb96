//! Coordinators that lost what they knew: they form nothing, vote for nobody, and say why.

use std::time::Duration;

use roost_protocol::messages::control::{Change, Outcome};
use roost_protocol::{ClusterId, Label, ModelVersion, Version};

use crate::party::{Member, PATIENCE, Party, Start, digits, log, stop_all};

/// Several elections, each of which would ask for votes.
const ELECTIONS: Duration = Duration::from_secs(3);

fn label(name: &str) -> Change {
    let version = ModelVersion { model: digits(), version: Version(1) };
    Change::SetLabel { version, label: Label::new(name).unwrap() }
}

/// Waits for a line of the log that says all of these.
async fn logged(words: &[&str]) {
    let said = async {
        while !log().lines().any(|line| words.iter().all(|word| line.contains(word))) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, said).await.is_ok(), "{words:?} in\n{}", log());
}

/// A group of three with one version, of which one member that does not lead was stopped; its number.
async fn group_without_one(party: &Party) -> (Vec<Option<Member>>, usize) {
    let mut members = party.members().await;
    let operator = party.operator().await;
    assert_eq!(
        operator.push(b"one").await,
        Outcome::Pushed { version: Version(1), stable: true, existing: false }
    );
    let gone = if operator.leader().await == 3 { 2 } else { 3 };
    members[gone - 1].take().unwrap().stop().await;
    (members, gone)
}

/// With the member back, the group goes on with two and not with one.
async fn it_is_nobody(party: &Party, mut members: Vec<Option<Member>>, back: usize) {
    let operator = party.operator().await;
    operator.change(label("with-two")).await.unwrap();
    assert!(!party.is_initialised(back).await);
    // The other two are one vote short when one of them goes.
    let leader = operator.leader().await;
    members[leader - 1].take().unwrap().stop().await;
    tokio::time::sleep(ELECTIONS).await;
    assert!(!party.is_initialised(back).await, "it would know of the term that it voted in");
    let other = (1..=3).find(|number| *number != leader && *number != back).unwrap();
    let published = members[other - 1].as_ref().unwrap().published.borrow().clone();
    assert!(members[back - 1].as_ref().unwrap().published.borrow().view.is_none());
    // Nothing is lost: with the leader back they are two.
    members[leader - 1] = Some(party.member(leader).await);
    operator.change(label("again")).await.unwrap();
    assert!(published.view.is_some());
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_emptied_folder_is_another_node_that_does_not_vote() {
    let party = Party::new(3);
    let (mut members, gone) = group_without_one(&party).await;
    std::fs::remove_dir_all(party.folder(gone)).unwrap();
    let new = Start { node: Some(71), ..Start::default() };
    members[gone - 1] = Some(party.start(gone, new).await.unwrap());
    logged(&["WARN", "node=71", "a group exists that does not know this node", "was emptied"]).await;
    it_is_nobody(&party, members, gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_of_the_config_forms_no_second_group() {
    let party = Party::new(3);
    let mut members = party.members().await;
    let operator = party.operator().await;
    operator.push(b"one").await;
    members[0].take().unwrap().stop().await;
    std::fs::remove_dir_all(party.folder(1)).unwrap();
    let new = Start { node: Some(72), ..Start::default() };
    members[0] = Some(party.start(1, new).await.unwrap());
    logged(&["WARN", "node=72", "a group exists that does not know this node"]).await;
    it_is_nobody(&party, members, 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_without_its_database_takes_no_part() {
    let party = Party::new(3);
    let (mut members, gone) = group_without_one(&party).await;
    std::fs::remove_file(party.folder(gone).join("raft.redb")).unwrap();
    // It has its identity still: the group counts on its votes.
    let forgetful = Start { cluster: Some(ClusterId(1)), ..Start::default() };
    members[gone - 1] = Some(party.start(gone, forgetful).await.unwrap());
    let node = format!("node={gone} ");
    logged(&["ERROR", &node, "this node is a member whose database is empty"]).await;
    it_is_nobody(&party, members, gone).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_only_database_is_gone_is_not_begun_anew_in_silence() {
    let party = Party::new(1);
    let member = party.start(1, Start { cluster: Some(ClusterId(73)), ..Start::default() }).await.unwrap();
    let cluster = format!("cluster {}", ClusterId(73));
    logged(&["no group is formed", &cluster, "have lost their databases"]).await;
    assert!(member.published.borrow().view.is_none());
    member.stop().await;
}
