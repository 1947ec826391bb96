//! The forming of a new group, and the keeping out of those who must not vote in one.
//!
//! Only the first coordinator of the config forms the group, and only after every other one answered that it belongs to none
//! yet and has the same config. One whose data folder was emptied is another node: it hears that the others belong to a
//! group which does not know it, says so, and waits to be taken in. One that lost only its database still has its name and
//! its id, and the group counts on votes that it has forgotten: it takes no part until it is sure that none does.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::future::join_all;
use openraft::async_runtime::WatchReceiver;
use roost_protocol::error::reason;
use roost_protocol::frame::Kind;
use roost_protocol::quic::endpoint::node_of;
use roost_protocol::quic::{Link, Role};
use roost_protocol::{ClusterId, ControlError, NodeId, NodeName};

use crate::coordinator::GroupMember;
use crate::peer::{PeerRequest, PeerResponse};
use crate::raft::types::Member;
use crate::shared::Shared;

/// Between two rounds of asking. Nodes of one cluster start within seconds of each other.
const ROUND: Duration = Duration::from_millis(200);
/// Between two rounds when a group exists that this coordinator is not of: an operator has to act.
const ROUND_OUTSIDE: Duration = Duration::from_secs(5);
/// Every how many rounds it is said again what is waited for.
const ROUNDS_SILENT: u32 = 10;

/// What one other coordinator answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Probe {
    pub node: NodeId,
    pub initialised: bool,
    agrees: bool,
    /// Whether its group knows this coordinator; none while it does not know its group itself.
    member: Option<bool>,
}

/// What is to be done after a round of asking. Pure.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    /// Everyone is new: these form the group.
    Form(BTreeMap<u64, Member>),
    /// Somebody else is to form the group, or has formed it with this coordinator.
    Wait,
    /// Not everyone answered.
    Incomplete(ControlError),
    /// A group exists, as that coordinator says, and this one is not of it.
    Outside(NodeName),
    /// A group exists, as that coordinator says, that this one is of, and it has forgotten what it knew.
    Forgotten(NodeName),
    /// What was found makes no sense, and an operator has to see to it.
    Contradiction(Contradiction),
}

/// Why no group is formed.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Contradiction {
    #[error("{0} has another list of coordinators, or the same in another order")]
    Configs(NodeName),
    #[error(
        "this node belongs to cluster {0}, and all its coordinators have lost their databases; to begin a new cluster, \
         empty the data folders whole"
    )]
    AllForgotten(ClusterId),
    #[error("two coordinators have the same node id; a data folder was copied")]
    SameId,
    #[error(
        "the config names {0} coordinators; begin with an odd number, since one more survives no further failure, and add \
         to it once it serves"
    )]
    Even(usize),
}

/// Judges a round of asking. `belonged` is the cluster that this node belonged to when it started, with a database that
/// knows of no group.
fn judge(
    us: (NodeId, &NodeName),
    group: &[GroupMember],
    answers: &[(&GroupMember, Result<Probe, ControlError>)],
    belonged: Option<ClusterId>,
) -> Verdict {
    let probes = || answers.iter().filter_map(|(member, answer)| Some((*member, answer.as_ref().ok()?)));
    if let Some((member, _)) = probes().find(|(_, probe)| probe.member == Some(true)) {
        return if belonged.is_some() { Verdict::Forgotten(member.name.clone()) } else { Verdict::Wait };
    }
    let mut strangers = probes().filter(|(_, probe)| probe.member == Some(false)).map(|(member, _)| member);
    // Whoever made this node a member was a majority; without it, all of those but one less than half know of it.
    let sure = strangers.clone().count() >= group.len() - group.len() / 2;
    if let Some(member) = strangers.next().filter(|_| sure || belonged.is_none()) {
        return Verdict::Outside(member.name.clone());
    }
    if let Some(error) = answers.iter().find_map(|(_, answer)| answer.as_ref().err()) {
        return Verdict::Incomplete(error.clone());
    }
    if probes().any(|(_, probe)| probe.initialised) {
        // A group that is just being formed.
        return Verdict::Wait;
    }
    if let Some((member, _)) = probes().find(|(_, probe)| !probe.agrees) {
        return Verdict::Contradiction(Contradiction::Configs(member.name.clone()));
    }
    if let Some(cluster) = belonged {
        return Verdict::Contradiction(Contradiction::AllForgotten(cluster));
    }
    // Each says so, whichever of them is asked.
    if group.len().is_multiple_of(2) {
        return Verdict::Contradiction(Contradiction::Even(group.len()));
    }
    if group.first().is_none_or(|first| first.name != *us.1) {
        return Verdict::Wait;
    }
    let ids: BTreeMap<&NodeName, NodeId> =
        probes().map(|(member, probe)| (&member.name, probe.node)).chain([(us.1, us.0)]).collect();
    let members = group.iter().filter_map(|GroupMember { name, address }| {
        Some((ids.get(name)?.0, Member { name: name.to_string(), address: address.clone() }))
    });
    let members: BTreeMap<u64, Member> = members.collect();
    if members.len() != group.len() {
        return Verdict::Contradiction(Contradiction::SameId);
    }
    Verdict::Form(members)
}

/// Forms the group if this coordinator is the one to do so and none exists; says why it is not of the one that exists.
/// `belonged` is the cluster that this node belonged to when it started.
pub(crate) async fn run(shared: Arc<Shared>, belonged: Option<ClusterId>) {
    let mut rounds = 0u32;
    loop {
        match shared.raft.is_initialized().await {
            Ok(false) => {}
            Ok(true) | Err(_) => return,
        }
        let verdict = {
            let answers = ask_all(&shared).await;
            judge((shared.node, &shared.name), &shared.group, &answers, belonged)
        };
        shared.tell_unformed(match &verdict {
            Verdict::Contradiction(why) => Some(why.to_string()),
            _ => None,
        });
        let loud = rounds.is_multiple_of(ROUNDS_SILENT);
        let wait = match verdict {
            Verdict::Form(members) => {
                tracing::info!(members = members.len(), "forms a new group");
                if let Err(error) = shared.raft.initialize(members).await {
                    tracing::warn!(%error, "the group was not formed");
                }
                ROUND
            }
            Verdict::Wait => ROUND,
            Verdict::Incomplete(error) => {
                if loud && rounds > 0 {
                    tracing::info!(%error, "waits for the other coordinators");
                }
                ROUND
            }
            Verdict::Outside(by) => {
                shared.admitted.store(true, Ordering::Release);
                if loud {
                    tracing::warn!(
                        node = %shared.node, %by,
                        "a group exists that does not know this node: its data folder is new or was emptied. It does \
                         not vote until an operator replaces the old member by it"
                    );
                }
                ROUND_OUTSIDE
            }
            Verdict::Forgotten(by) => {
                if loud {
                    tracing::error!(
                        node = %shared.node, %by,
                        "this node is a member whose database is empty: it may have voted for what it forgot, and takes \
                         no part. Empty the whole data folder, and have an operator replace the old member"
                    );
                }
                ROUND_OUTSIDE
            }
            Verdict::Contradiction(why) => {
                if loud {
                    tracing::warn!(%why, "no group is formed");
                }
                ROUND_OUTSIDE
            }
        };
        rounds = rounds.saturating_add(1);
        tokio::time::sleep(wait).await;
    }
}

async fn ask_all(shared: &Shared) -> Vec<(&GroupMember, Result<Probe, ControlError>)> {
    let others = shared.group.iter().filter(|member| member.name != shared.name);
    join_all(others.map(|member| async move { (member, probe(shared, member).await) })).await
}

/// Asks a coordinator whether it belongs to a group.
///
/// # Errors
/// [`ControlError::WrongNode`] when another is there; others when it does not answer.
pub(crate) async fn probe(shared: &Shared, member: &GroupMember) -> Result<Probe, ControlError> {
    let GroupMember { name, address } = member;
    let link = shared.peers.to(address).await.map_err(|error| error.into_control(address))?;
    if link.peer.name.as_str() != name.as_str() || !link.peer.has_any(&[Role::Coordinator]) {
        return Err(ControlError::WrongNode { name: name.clone() });
    }
    let request = PeerRequest::Probe { group: shared.group.clone() };
    let answer = link.ask((Kind::RaftRequest, &request), Kind::RaftResponse).await;
    match answer.map_err(|error| error.into_control(address))? {
        PeerResponse::Probed { initialised, cluster, agrees, member } => {
            let initialised = initialised || cluster.is_some();
            Ok(Probe { node: node_of(&link.hello)?, initialised, agrees, member })
        }
        PeerResponse::Failed(error) => Err(error),
        PeerResponse::Raft(_)
        | PeerResponse::Held
        | PeerResponse::Control(_)
        | PeerResponse::Heard
        | PeerResponse::Lacks(_)
        | PeerResponse::Supports { .. } => {
            Err(ControlError::Malformed { what: "another answer than to a probe".to_owned() })
        }
    }
}

/// Answers the probe of the coordinator at the other end of `link`, whose config lists `group`.
pub(crate) async fn answer_probe(
    shared: &Shared,
    link: &Link,
    group: &[GroupMember],
) -> Result<PeerResponse, ControlError> {
    let stopped = |error| ControlError::NoQuorum { reason: reason(error) };
    let initialised = shared.raft.is_initialized().await.map_err(stopped)?;
    let member = {
        let metrics = shared.raft.server_metrics();
        let metrics = metrics.borrow_watched();
        let mut members = metrics.membership_config.nodes().map(|(id, _)| NodeId(*id)).peekable();
        members.peek().is_some().then(|| members.any(|id| Some(id) == link.hello.node))
    };
    let (cluster, agrees) = (shared.cluster(), group == shared.group);
    Ok(PeerResponse::Probed { initialised, cluster, agrees, member })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> NodeName {
        NodeName::new(name).unwrap()
    }

    fn group(names: &[&str]) -> Vec<GroupMember> {
        names.iter().map(|n| GroupMember { name: name(n), address: format!("{n}:7300") }).collect()
    }

    const NEW: Probe = Probe { node: NodeId(0), initialised: false, agrees: true, member: None };
    const VOTED: Probe = Probe { initialised: true, ..NEW };
    const FORMED: Probe = Probe { member: Some(false), ..VOTED };
    const KNOWS_US: Probe = Probe { member: Some(true), ..VOTED };
    const DIFFERS: Probe = Probe { agrees: false, ..NEW };
    const BELONGED: Option<ClusterId> = Some(ClusterId(7));

    /// The verdict of the coordinator `us` of the group a, b, c over what the two others answered.
    fn check(us: &str, answers: [Option<Probe>; 2], belonged: Option<ClusterId>) -> Verdict {
        let group = group(&["a", "b", "c"]);
        let gone = || ControlError::Unreachable { node: "x".to_owned(), reason: "gone".to_owned() };
        let others = group.iter().filter(|other| other.name != name(us));
        let answers = others.zip(answers).zip(2..).map(|((other, answer), node)| {
            let probe = answer.map(|probe| Probe { node: NodeId(node), ..probe });
            (other, probe.ok_or_else(gone))
        });
        judge((NodeId(1), &name(us)), &group, &answers.collect::<Vec<_>>(), belonged)
    }

    #[test]
    fn only_the_first_forms_a_group_and_only_when_all_are_new() {
        let Verdict::Form(members) = check("a", [Some(NEW), Some(NEW)], None) else { panic!("no group") };
        let named: Vec<_> = members.iter().map(|(id, member)| (*id, member.name.as_str())).collect();
        assert_eq!(named, [(1, "a"), (2, "b"), (3, "c")]);
        assert_eq!(check("b", [Some(NEW), Some(NEW)], None), Verdict::Wait);
        assert!(matches!(check("a", [Some(NEW), None], None), Verdict::Incomplete(_)));
        let contradiction = Verdict::Contradiction(Contradiction::Configs(name("c")));
        assert_eq!(check("a", [Some(NEW), Some(DIFFERS)], None), contradiction);
    }

    #[test]
    fn who_was_emptied_forms_nothing() {
        let outside = || Verdict::Outside(name("b"));
        assert_eq!(check("a", [Some(FORMED), None], None), outside());
        assert_eq!(check("a", [Some(FORMED), Some(NEW)], None), outside());
        // It knew the cluster, and perhaps the one that does not answer knows it.
        assert!(matches!(check("a", [Some(FORMED), None], BELONGED), Verdict::Incomplete(_)));
        assert_eq!(check("a", [Some(FORMED), Some(FORMED)], BELONGED), outside());
        let all = Verdict::Contradiction(Contradiction::AllForgotten(ClusterId(7)));
        assert_eq!(check("a", [Some(NEW), Some(NEW)], BELONGED), all);
    }

    #[test]
    fn a_member_without_its_database_is_told_from_one_that_is_being_taken_in() {
        assert_eq!(check("b", [Some(KNOWS_US), None], None), Verdict::Wait);
        assert_eq!(check("b", [Some(VOTED), Some(NEW)], None), Verdict::Wait);
        assert_eq!(check("a", [Some(VOTED), Some(NEW)], None), Verdict::Wait);
        assert_eq!(check("b", [Some(KNOWS_US), Some(NEW)], BELONGED), Verdict::Forgotten(name("a")));
        assert_eq!(check("b", [Some(FORMED), Some(KNOWS_US)], BELONGED), Verdict::Forgotten(name("c")));
    }

    #[test]
    fn two_nodes_of_one_id_are_found() {
        let group = group(&["a", "b", "c"]);
        let [copy, other] = [NodeId(1), NodeId(3)].map(|node| Probe { node, ..NEW });
        let answers = [(&group[1], Ok(copy)), (&group[2], Ok(other))];
        let verdict = judge((NodeId(1), &name("a")), &group, &answers, None);
        assert_eq!(verdict, Verdict::Contradiction(Contradiction::SameId));
    }

    #[test]
    fn an_even_number_forms_no_group() {
        let group = group(&["a", "b"]);
        for (us, other) in [("a", &group[1]), ("b", &group[0])] {
            let answers = [(other, Ok(Probe { node: NodeId(2), ..NEW }))];
            let verdict = judge((NodeId(1), &name(us)), &group, &answers, None);
            assert_eq!(verdict, Verdict::Contradiction(Contradiction::Even(2)), "{us}");
        }
    }

    #[test]
    fn one_alone_is_a_group() {
        let verdict = judge((NodeId(1), &name("a")), &group(&["a"]), &[], None);
        assert!(matches!(verdict, Verdict::Form(members) if members.len() == 1));
    }
}
