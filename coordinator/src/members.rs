//! Who coordinates: members are taken in, given votes, replaced and let go, and nothing is lost over it.
//!
//! Raft's joint consensus keeps the log (Raft dissertation §4.3). What it does not know of are bundles, which lie beside the
//! log: a version was made of one that a quorum of the voters *of that time* held. So before the voters change, every new
//! one must hold all bundles that versions are made of, and a quorum of those to come must hold each. Meanwhile no version
//! is made: [`Shared::members`] is held shared by a push that is being committed, exclusively by a change of members, which
//! first waits until what is in the log already is applied. Once both sets of voters count, a push needs a quorum of each,
//! so a new leader may finish what another began.
//!
//! Each step leads to a state that it names, so a retry of it finds nothing to do.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ChangeMembershipError, ClientWriteError, RaftError};
use openraft::raft::Precondition;
use openraft::vote::leader_id_std::CommittedLeaderId;
use openraft::{ChangeMembers, Instant};
use roost_protocol::error::reason;
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{MemberSummary, MembersSummary, Reconfigure, Reconfigured};
use roost_protocol::view::Coordinator;
use roost_protocol::{ControlError, Digest, NodeId, NodeName, Term};
use tokio::sync::RwLockWriteGuard;

use crate::artefact;
use crate::bootstrap::probe;
use crate::coordinator::GroupMember;
use crate::level;
use crate::peer::{LACKS_MAX, PeerRequest, PeerResponse};
use crate::raft::types::Member;
use crate::shared::Shared;
use crate::state::bounds::ADDRESS_BYTES_MAX;

/// More voters make each commit slower and hardly any group safer: seven outlive three deaths.
const VOTERS_MAX: usize = 7;
/// Voters, their successors, and a few that learn.
const MEMBERS_MAX: usize = 16;
/// Entries that a learner may lack when it gets its vote: what comes within a few heartbeats under load.
const BEHIND_MAX: u64 = 64;
/// What a member that is to say which bundles it lacks gets for each, besides what any question gets: thirty-two are looked after
/// at once, each by some round trips to a store on the network. Whoever does not say it in this time counts as lacking all.
const ASK_PER_BUNDLE: Duration = Duration::from_millis(10);
/// What the lock may take: a push that is being committed holds it, perhaps for minutes.
const LOCK: Duration = Duration::from_secs(5);
/// Followers that are asked to take over, one after the other.
const HEIRS_MAX: usize = 3;
/// A follower that answered a heartbeat so many heartbeats ago is there to take over.
const HEIR_HEARTBEATS: u32 = 3;

/// The committed membership, as decisions are taken on it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Roster {
    members: BTreeMap<NodeId, Coordinator>,
    /// The voters; those to come, while one set is being replaced by another.
    voters: BTreeSet<NodeId>,
    /// Whether one is.
    changing: bool,
    former: BTreeSet<NodeId>,
}

/// What a change of votes leads to.
#[derive(Debug, PartialEq, Eq)]
struct Target {
    voters: BTreeSet<NodeId>,
    promoted: BTreeSet<NodeId>,
    /// Members without a vote that cease to be members.
    learners: BTreeSet<NodeId>,
}

fn refused(reason: impl Display) -> ControlError {
    ControlError::MembersRefused { reason: roost_protocol::error::reason(reason) }
}

fn not_ready(reason: impl Display) -> ControlError {
    ControlError::MembersNotReady { reason: roost_protocol::error::reason(reason) }
}

impl Roster {
    fn of(shared: &Shared) -> Self {
        shared.machine.state(|state| {
            let sets = state.voters();
            Self {
                members: state.coordinators().clone(),
                voters: sets.last().cloned().unwrap_or_default(),
                changing: sets.len() > 1,
                former: state.former_coordinators().collect(),
            }
        })
    }

    /// How a member is called in messages.
    fn name(&self, node: NodeId) -> String {
        self.members.get(&node).map_or_else(|| format!("node {node}"), |member| member.name.to_string())
    }

    /// What giving votes to `promote` and letting `remove` go leads to; none when it is so already.
    fn target(
        &self,
        promote: &BTreeSet<NodeId>,
        remove: &BTreeSet<NodeId>,
    ) -> Result<Option<Target>, ControlError> {
        if let Some(both) = promote.intersection(remove).next() {
            return Err(refused(format!("{} cannot get a vote and go", self.name(*both))));
        }
        if let Some(unknown) = promote.iter().find(|node| !self.members.contains_key(node)) {
            return Err(refused(format!("node {unknown} is no member: add it first")));
        }
        let voters: BTreeSet<NodeId> =
            self.voters.union(promote).filter(|n| !remove.contains(n)).copied().collect();
        if voters.is_empty() {
            return Err(refused("nobody would have a vote"));
        }
        if voters.is_disjoint(&self.voters) {
            return Err(refused(
                "none of the present voters would stay: promote successors first, then remove",
            ));
        }
        if voters.len() > VOTERS_MAX {
            return Err(refused(format!("{} would vote, and {VOTERS_MAX} may at most", voters.len())));
        }
        let learners = remove.iter().filter(|n| self.members.contains_key(n) && !self.voters.contains(n));
        let learners: BTreeSet<NodeId> = learners.copied().collect();
        if voters == self.voters && !self.changing && learners.is_empty() {
            return Ok(None);
        }
        let promoted = voters.difference(&self.voters).copied().collect();
        Ok(Some(Target { voters, promoted, learners }))
    }

    /// Whether a node that answered as `node`, in a group already or not, may be taken in.
    fn may_learn(&self, node: NodeId, name: &NodeName, initialised: bool) -> Result<(), ControlError> {
        match self.members.get(&node) {
            Some(member) if member.name == *name && member.voter && !initialised => {
                return Err(refused(format!(
                    "{name} is a voter that has lost its database: empty its data folder whole, then replace it"
                )));
            }
            Some(member) if member.name == *name => return Ok(()),
            Some(member) => return Err(refused(format!("its id {node} is that of {}", member.name))),
            None => {}
        }
        match (self.former.contains(&node), initialised) {
            // It comes back with all that it knew.
            (true, true) | (false, false) => {}
            (true, false) => {
                return Err(refused(format!(
                    "{name} was a member as node {node} and has lost its database: empty its data folder whole"
                )));
            }
            (false, true) => return Err(refused(format!("{name} belongs to another group of coordinators"))),
        }
        if self.members.len() >= MEMBERS_MAX {
            return Err(refused(format!("there are {MEMBERS_MAX} members, which is the most")));
        }
        Ok(())
    }
}

/// What a member was found to be like before the voters change.
#[derive(Debug, Clone)]
struct Found {
    /// Log entries that it lacks, as far as the leader knows.
    behind: Option<u64>,
    /// Bundles that it lacks, or why it did not say.
    lacks: Result<BTreeSet<Digest>, String>,
}

/// Whether the voters may become those of `target`, of which `found` tells.
fn check(target: &Target, found: &BTreeMap<NodeId, Found>, roster: &Roster) -> Result<(), ControlError> {
    for node in &target.promoted {
        let name = roster.name(*node);
        let Some(Found { behind, lacks }) = found.get(node) else {
            return Err(not_ready(format!("nothing is known of {name}")));
        };
        match lacks {
            Err(error) => return Err(not_ready(format!("{name} does not answer: {error}"))),
            Ok(lacks) if !lacks.is_empty() => {
                return Err(not_ready(format!("{name} does not hold {} bundles yet", lacks.len())));
            }
            Ok(_) => {}
        }
        match behind {
            Some(behind) if *behind <= BEHIND_MAX => {}
            Some(behind) => return Err(not_ready(format!("{name} lacks {behind} log entries yet"))),
            None => return Err(not_ready(format!("{name} has not been sent the log yet"))),
        }
    }
    let quorum = target.voters.len() / 2 + 1;
    let answers = target.voters.iter().filter_map(|node| found.get(node)?.lacks.as_ref().ok());
    let answers: Vec<&BTreeSet<Digest>> = answers.collect();
    if answers.len() < quorum {
        let (of, answering) = (target.voters.len(), answers.len());
        return Err(not_ready(format!("{answering} of the {of} that would vote answer, {quorum} must")));
    }
    let lacked: BTreeSet<&Digest> = answers.iter().copied().flatten().collect();
    for digest in lacked {
        let holders = answers.iter().filter(|lacks| !lacks.contains(digest)).count();
        if holders < quorum {
            let of = target.voters.len();
            return Err(not_ready(format!(
                "the bundle {digest} would be held by {holders} of {of} voters, and {quorum} must hold it"
            )));
        }
    }
    Ok(())
}

/// Changes who coordinates.
///
/// # Errors
/// [`ControlError::MembersNotReady`] when a member lags or is silent, [`ControlError::MembersRefused`] when it makes no sense,
/// [`ControlError::NotLeader`] or [`ControlError::NoQuorum`].
pub(crate) async fn reconfigure(
    shared: &Arc<Shared>,
    asked: Reconfigure,
    by: &str,
) -> Result<Reconfigured, ControlError> {
    if shared.leads().is_none() {
        return Err(shared.not_leader());
    }
    tracing::info!(target: "audit", by, ?asked, "a change of who coordinates");
    match asked {
        Reconfigure::Add { name, address } => add(shared, name, address).await,
        Reconfigure::Change { promote, remove } => {
            change(shared, &promote, &remove).await.map(|()| Reconfigured::Changed)
        }
        Reconfigure::TransferLeader { to } => transfer(shared, to).await.map(Reconfigured::LedBy),
    }
}

async fn add(shared: &Arc<Shared>, name: NodeName, address: String) -> Result<Reconfigured, ControlError> {
    if address.len() as u64 > ADDRESS_BYTES_MAX {
        let actual = address.len() as u64;
        return Err(ControlError::LimitExceeded {
            what: "bytes of an address".to_owned(),
            max: ADDRESS_BYTES_MAX,
            actual,
        });
    }
    let candidate = GroupMember { name: name.clone(), address: address.clone() };
    let found = tokio::time::timeout(shared.pace.ask(), probe(shared, &candidate)).await;
    let silent = || not_ready(format!("{name} does not answer at {address}"));
    let found = found.map_err(|_| silent())?.map_err(|error| match error {
        ControlError::WrongNode { .. } => refused(format!("{address} is not the coordinator {name}")),
        ControlError::Unreachable { .. } => not_ready(error),
        other => other,
    })?;
    let (_alone, term) = alone(shared).await?;
    may_obey(shared, found.node, &candidate).await?;
    let roster = Roster::of(shared);
    roster.may_learn(found.node, &name, found.initialised)?;
    let (id, member) = (found.node.0, Member { name: name.to_string(), address: address.clone() });
    match roster.members.get(&found.node) {
        Some(known) if known.address == address => {}
        // The same node, as its id and certificate say, has moved.
        Some(_) => commit(shared, term, ChangeMembers::SetNodes([(id, member)].into())).await?,
        None => commit(shared, term, ChangeMembers::AddNodes([(id, member)].into())).await?,
    }
    Ok(Reconfigured::Added(found.node))
}

/// Whether a candidate obeys the level that the state is at. One that does not would stop at the first command above its own.
async fn may_obey(shared: &Shared, node: NodeId, candidate: &GroupMember) -> Result<(), ControlError> {
    let needed = shared.machine.state(|state| state.level());
    let GroupMember { name, address } = candidate.clone();
    let obeyed = level::ask(shared, node, &Coordinator { name, address, voter: false }).await;
    let name = &candidate.name;
    let obeyed = obeyed.ok_or_else(|| not_ready(format!("{name} does not say which level it obeys")))?;
    if obeyed >= needed {
        return Ok(());
    }
    Err(refused(format!(
        "{name} obeys level {obeyed} and the state is at level {needed}: install a newer build"
    )))
}

/// The lock that keeps versions from being made meanwhile, and the term in which that holds: should another lead meanwhile, it
/// may make versions that this coordinator knows nothing of, so what is decided here is committed in this term or not at all.
async fn alone(shared: &Shared) -> Result<(RwLockWriteGuard<'_, ()>, Term), ControlError> {
    let late = |_| not_ready("a version is being made or the level raised, which comes first");
    let lock = tokio::time::timeout(LOCK, shared.members.write()).await.map_err(late)?;
    let term = shared.leads().ok_or_else(|| shared.not_leader())?;
    // Whoever held the lock before may have given up on a version that is in the log and made yet.
    shared.settle().await?;
    shared.catch_up().await?;
    Ok((lock, term))
}

async fn change(
    shared: &Arc<Shared>,
    promote: &BTreeSet<NodeId>,
    remove: &BTreeSet<NodeId>,
) -> Result<(), ControlError> {
    let (_alone, term) = alone(shared).await?;
    let roster = Roster::of(shared);
    let Some(target) = roster.target(promote, remove)? else { return Ok(()) };
    let found = look(shared, &roster, &target).await;
    check(&target, &found, &roster)?;
    if !target.voters.contains(&shared.node) {
        // Whoever leads next does it: a leader that goes in the midst of its own change leaves an election behind.
        let heirs = heirs(shared).into_iter().filter(|heir| target.voters.contains(heir));
        return match hand_over(shared, &heirs.collect::<Vec<_>>()).await {
            Some(_) => Err(shared.not_leader()),
            None => Err(not_ready("the leader is to go, and nobody took over from it")),
        };
    }
    if target.voters != roster.voters || roster.changing {
        let voters = target.voters.iter().map(|node| node.0).collect();
        commit(shared, term, ChangeMembers::ReplaceAllVoters(voters)).await?;
    }
    if !target.learners.is_empty() {
        let learners = target.learners.iter().map(|node| node.0).collect();
        commit(shared, term, ChangeMembers::RemoveNodes(learners)).await?;
    }
    Ok(())
}

/// Finishes a change of voters that another leader began and could not finish.
pub(crate) async fn finish(shared: &Shared) {
    let Ok(_alone) = shared.members.try_write() else { return };
    let roster = Roster::of(shared);
    if !roster.changing {
        return;
    }
    let Some(term) = shared.leads() else { return };
    let voters = roster.voters.iter().map(|node| node.0).collect();
    match commit(shared, term, ChangeMembers::ReplaceAllVoters(voters)).await {
        Ok(()) => tracing::info!("finished a change of who coordinates"),
        Err(error) => tracing::debug!(%error, "a change of who coordinates is not finished yet"),
    }
}

/// Commits a change, if this coordinator still leads in `term`.
async fn commit(shared: &Shared, term: Term, change: ChangeMembers<u64, Member>) -> Result<(), ControlError> {
    let agree = shared.pace.agree();
    let late = || ControlError::NoQuorum { reason: format!("no majority answered within {agree:?}") };
    let committed_leader_id = CommittedLeaderId { term: term.0 };
    let in_this_term = [Precondition::CommittedLeaderId { committed_leader_id }];
    let written = shared.raft.change_membership_if(change, false, in_this_term);
    let written = tokio::time::timeout(agree, written).await;
    match written.map_err(|_| late())? {
        Ok(_) => Ok(()),
        Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(shared.not_leader()),
        // Another change of members is under way, or the leader has only begun to lead.
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(
            error @ (ChangeMembershipError::InProgress(_) | ChangeMembershipError::UncommittedLeaderLog(_)),
        ))) => Err(not_ready(error)),
        Err(RaftError::APIError(ClientWriteError::ChangeMembershipError(error))) => Err(refused(error)),
        // Somebody else led meanwhile, so what was looked at may be old.
        Err(RaftError::APIError(ClientWriteError::PreconditionFailed(error))) => Err(not_ready(error)),
        Err(error) => Err(ControlError::NoQuorum { reason: reason(error) }),
    }
}

/// Asks those that are to vote what they lack.
async fn look(shared: &Arc<Shared>, roster: &Roster, target: &Target) -> BTreeMap<NodeId, Found> {
    let bundles =
        shared.machine.state(|state| state.referenced_bundles().map(|(d, _)| *d).collect::<Vec<_>>());
    let behind = behind(shared);
    let within = shared.pace.ask() + ASK_PER_BUNDLE * u32::try_from(bundles.len()).unwrap_or(u32::MAX);
    let asks = target.voters.iter().map(|node| {
        let (member, bundles) = (roster.members.get(node), &bundles);
        async move {
            let asked = match member {
                None => Err("it is no member".to_owned()),
                Some(member) => {
                    let asked = async {
                        if *node == shared.node {
                            look_here(shared, bundles).await
                        } else {
                            ask(shared, *node, member, bundles).await
                        }
                    };
                    let asked = tokio::time::timeout(within, asked).await;
                    asked.unwrap_or_else(|_| Err(format!("no answer within {within:?}")))
                }
            };
            (*node, asked)
        }
    });
    let answers = join_all(asks).await.into_iter();
    answers.map(|(node, lacks)| (node, Found { behind: behind.get(&node).copied(), lacks })).collect()
}

async fn look_here(shared: &Shared, bundles: &[Digest]) -> Result<BTreeSet<Digest>, String> {
    let mut lacks = BTreeSet::new();
    for some in bundles.chunks(LACKS_MAX) {
        lacks.extend(artefact::lacks(shared, some).await.map_err(|error| error.to_string())?);
    }
    Ok(lacks)
}

async fn ask(
    shared: &Shared,
    node: NodeId,
    member: &Coordinator,
    bundles: &[Digest],
) -> Result<BTreeSet<Digest>, String> {
    let link = shared.link_to(node, member).await.map_err(|error| error.to_string())?;
    let mut lacks = BTreeSet::new();
    // An empty question too: it tells whether the member is there.
    let nothing: [&[Digest]; 1] = [&[]];
    let first = bundles.is_empty().then_some(nothing).into_iter().flatten();
    for some in first.chain(bundles.chunks(LACKS_MAX)) {
        let request = PeerRequest::Lacks { bundles: some.to_vec() };
        match link.ask((Kind::RaftRequest, &request), Kind::RaftResponse).await {
            Ok(PeerResponse::Lacks(some)) => lacks.extend(some),
            Ok(PeerResponse::Failed(error)) => return Err(error.to_string()),
            Ok(_) => return Err("it gave another answer than was asked for".to_owned()),
            Err(error) => return Err(error.to_string()),
        }
    }
    Ok(lacks)
}

/// Log entries that each member lacks, as far as the leader heard.
fn behind(shared: &Shared) -> BTreeMap<NodeId, u64> {
    let metrics = shared.raft.data_metrics();
    let metrics = metrics.borrow_watched();
    let last = metrics.last_log.as_ref().map_or(0, |last| last.index);
    let replicated = metrics.replication.iter().flatten();
    let known =
        replicated.filter_map(|(id, to)| Some((NodeId(*id), last.saturating_sub(to.as_ref()?.index))));
    known.chain([(shared.node, 0)]).collect()
}

/// Hands leadership to `to`, or to whoever is best up to date. Returns who leads.
async fn transfer(shared: &Shared, to: Option<NodeId>) -> Result<NodeId, ControlError> {
    let roster = Roster::of(shared);
    let candidates = match to {
        Some(to) if to == shared.node => return Ok(to),
        Some(to) if !roster.voters.contains(&to) => {
            return Err(refused(format!("{} has no vote, so it cannot lead", roster.name(to))));
        }
        // Once it is asked to lead, this leader takes no changes: whoever is silent or lags must not be asked.
        Some(to) if !heirs(shared).contains(&to) => {
            return Err(refused(format!(
                "{} does not answer at present, so it cannot lead",
                roster.name(to)
            )));
        }
        Some(to) => match behind(shared).get(&to) {
            Some(behind) if *behind <= BEHIND_MAX => vec![to],
            Some(_) | None => return Err(refused(format!("{} lags too far to lead", roster.name(to)))),
        },
        None => heirs(shared),
    };
    // Not to be tried again without a look: the one that was asked may take over yet.
    hand_over(shared, &candidates).await.ok_or_else(|| refused("nobody took over leadership in time"))
}

/// Has one of `heirs` lead, in the order that they come in. Returns who does.
pub(crate) async fn hand_over(shared: &Shared, heirs: &[NodeId]) -> Option<NodeId> {
    for heir in heirs.iter().take(HEIRS_MAX) {
        shared.raft.trigger().transfer_leader(heir.0).await.ok()?;
        let mut metrics = shared.raft.server_metrics();
        // Until the heir is heard as the leader: it may need this coordinator's vote.
        let handed_over = async {
            loop {
                match metrics.borrow_watched().current_leader {
                    Some(leader) if leader != shared.node.0 => return Some(NodeId(leader)),
                    Some(_) | None => {}
                }
                metrics.changed().await.ok()?;
            }
        };
        if let Ok(led) = tokio::time::timeout(shared.pace.hand_over(), handed_over).await {
            return led;
        }
    }
    None
}

/// The other voters that answer at present, those with the most entries first.
pub(crate) fn heirs(shared: &Shared) -> Vec<NodeId> {
    let metrics = shared.raft.data_metrics();
    let metrics = metrics.borrow_watched();
    let (Some(heard), Some(replicated)) = (&metrics.heartbeat, &metrics.replication) else {
        return Vec::new();
    };
    let answers = |id: &NodeId| {
        let heard = heard.get(&id.0).and_then(|heard| *heard);
        heard.is_some_and(|at| at.elapsed() < shared.pace.heartbeat() * HEIR_HEARTBEATS)
    };
    let mut heirs = shared.machine.state(|state| {
        let others = state.coordinators().iter().filter(|(id, c)| c.voter && **id != shared.node);
        others.map(|(id, _)| *id).filter(answers).collect::<Vec<NodeId>>()
    });
    heirs.sort_by_key(|id| std::cmp::Reverse(replicated.get(&id.0).and_then(|last| *last)));
    heirs
}

/// Who coordinates, as this leader sees it.
pub(crate) fn summary(shared: &Shared) -> MembersSummary {
    let roster = Roster::of(shared);
    let behind = behind(shared);
    let metrics = shared.raft.data_metrics();
    let metrics = metrics.borrow_watched();
    let heard = |node: &NodeId| {
        let at = metrics.heartbeat.as_ref()?.get(&node.0).copied().flatten()?;
        Some(u64::try_from(at.elapsed().as_millis()).unwrap_or(u64::MAX))
    };
    let members = roster.members.iter().map(|(node, member)| MemberSummary {
        node: *node,
        name: member.name.clone(),
        address: member.address.clone(),
        voter: member.voter,
        leader: *node == shared.node,
        behind: behind.get(node).copied(),
        heard_ms: if *node == shared.node { Some(0) } else { heard(node) },
    });
    MembersSummary {
        members: members.collect(),
        changing: roster.changing,
        config_differs: differences(&shared.group, &roster.members),
    }
}

/// What a config says otherwise than the committed membership, which is what counts.
fn differences(config: &[GroupMember], members: &BTreeMap<NodeId, Coordinator>) -> Vec<String> {
    let of_config = config.iter().filter_map(|GroupMember { name, address }| {
        let mut known = members.values().filter(|member| member.name == *name).peekable();
        let first = known.peek().map(|member| member.address.clone());
        match first {
            None => Some(format!("{name} stands in the config and is no member")),
            Some(_) if known.any(|member| member.address == *address) => None,
            Some(at) => Some(format!("{name} is at {at}, and the config says {address}")),
        }
    });
    let unnamed = members.values().filter(|member| !config.iter().any(|named| named.name == member.name));
    let unnamed =
        unnamed.map(|member| format!("{} is a member and does not stand in the config", member.name));
    of_config.chain(unnamed).collect()
}

/// Says in the log when this coordinator's config and the committed membership differ, for as long as it lives.
pub(crate) async fn compare(shared: Arc<Shared>) {
    let mut published = shared.published.subscribe();
    let mut told = Vec::new();
    loop {
        let differing = shared.machine.state(|state| match state.cluster() {
            Some(_) => differences(&shared.group, state.coordinators()),
            None => Vec::new(),
        });
        if differing != told {
            for difference in &differing {
                tracing::warn!(%difference, "the config differs from the committed membership, which counts");
            }
            told = differing;
        }
        if published.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(ids: &[u64]) -> BTreeSet<NodeId> {
        ids.iter().copied().map(NodeId).collect()
    }

    fn member(id: u64, voter: bool) -> (NodeId, Coordinator) {
        let name = NodeName::new(&format!("c{id}")).unwrap();
        (NodeId(id), Coordinator { name, address: format!("h{id}:7300"), voter })
    }

    /// 1, 2 and 3 vote, 4 and 5 learn, 9 was a member once.
    fn roster() -> Roster {
        let members = (1..=5).map(|id| member(id, id <= 3)).collect();
        Roster { members, voters: ids(&[1, 2, 3]), changing: false, former: ids(&[9]) }
    }

    fn found(behind: u64, lacks: &[&[u8]]) -> Found {
        let lacks = lacks.iter().map(|name| Digest::of(name)).collect();
        Found { behind: Some(behind), lacks: Ok(lacks) }
    }

    const SILENT: Found = Found { behind: None, lacks: Err(String::new()) };

    #[test]
    fn a_change_leads_to_one_set_of_voters() {
        let target = |promote: &[u64], remove: &[u64]| roster().target(&ids(promote), &ids(remove));
        let voters = |promote, remove| target(promote, remove).unwrap().map(|target| target.voters);
        assert_eq!(voters(&[4, 5], &[]), Some(ids(&[1, 2, 3, 4, 5])));
        assert_eq!(voters(&[4], &[2]), Some(ids(&[1, 3, 4])));
        assert_eq!(voters(&[], &[3]), Some(ids(&[1, 2])));
        // As it is already, or as an earlier attempt made it.
        assert_eq!(voters(&[1], &[7]), None);
        let learner = target(&[], &[5]).unwrap().unwrap();
        assert_eq!((learner.voters, learner.learners), (ids(&[1, 2, 3]), ids(&[5])));
        // What another leader began is finished.
        let begun = Roster { changing: true, ..roster() };
        assert_eq!(begun.target(&ids(&[]), &ids(&[])).unwrap().unwrap().voters, ids(&[1, 2, 3]));
        for (promote, remove) in [(&[6][..], &[][..]), (&[4], &[4]), (&[], &[1, 2, 3])] {
            let error = target(promote, remove).unwrap_err();
            assert!(matches!(error, ControlError::MembersRefused { .. }), "{error}");
        }
    }

    #[test]
    fn a_vote_is_given_to_who_holds_everything() {
        let target = roster().target(&ids(&[4]), &ids(&[1])).unwrap().unwrap();
        let judge = |four: Found, three: Found| {
            let found = [(NodeId(2), found(0, &[])), (NodeId(3), three), (NodeId(4), four)].into();
            check(&target, &found, &roster())
        };
        judge(found(BEHIND_MAX, &[]), found(0, &[])).unwrap();
        judge(found(0, &[]), SILENT).unwrap();
        for (four, three) in [
            (SILENT, found(0, &[])),
            (found(0, &[b"v1"]), found(0, &[])),
            (found(BEHIND_MAX + 1, &[]), found(0, &[])),
            (Found { behind: None, ..found(0, &[]) }, found(0, &[])),
        ] {
            let error = judge(four, three).unwrap_err();
            assert!(error.retryable() && error.to_string().contains("c4"), "{error}");
        }
    }

    #[test]
    fn no_bundle_is_left_under_quorum() {
        // 1 and 2 hold v1, 3 does not: without 1 one of two would.
        let target = roster().target(&ids(&[]), &ids(&[1])).unwrap().unwrap();
        let lacking = [(NodeId(2), found(0, &[])), (NodeId(3), found(0, &[b"v1"]))].into();
        let error = check(&target, &lacking, &roster()).unwrap_err();
        assert!(error.to_string().contains("would be held by 1 of 2"), "{error}");
        let silent = [(NodeId(2), found(0, &[])), (NodeId(3), SILENT)].into();
        let error = check(&target, &silent, &roster()).unwrap_err();
        assert!(error.to_string().contains("1 of the 2 that would vote answer"), "{error}");
        let whole = [(NodeId(2), found(0, &[])), (NodeId(3), found(0, &[]))].into();
        check(&target, &whole, &roster()).unwrap();
    }

    #[test]
    fn only_new_nodes_and_whole_ones_are_taken_in() {
        let may = |node, name: &str, initialised| {
            roster().may_learn(NodeId(node), &NodeName::new(name).unwrap(), initialised).is_ok()
        };
        // Known: it may have moved. New. Back again, with its log.
        assert!(may(2, "c2", true) && may(7, "c7", false) && may(9, "c9", true));
        // Another's id. Of another group. Back again without its log, which it may have voted on.
        // A voter without its log.
        assert!(!may(2, "c2", false));
        assert!(!may(2, "c7", true) && !may(7, "c7", true) && !may(9, "c9", false));
        let crowd = Roster { members: (1..=16).map(|id| member(id, false)).collect(), ..roster() };
        crowd.may_learn(NodeId(20), &NodeName::new("c20").unwrap(), false).unwrap_err();
    }

    #[test]
    fn a_config_that_differs_is_told() {
        let named = |id: u64, address: &str| GroupMember {
            name: NodeName::new(&format!("c{id}")).unwrap(),
            address: address.to_owned(),
        };
        let members = (1..=3).map(|id| member(id, true)).collect();
        let same = [named(1, "h1:7300"), named(2, "h2:7300"), named(3, "h3:7300")];
        assert!(differences(&same, &members).is_empty());
        let other = [named(1, "h1:7300"), named(2, "x:7300"), named(4, "h4:7300")];
        expect_test::expect![[r#"
            c2 is at h2:7300, and the config says x:7300
            c4 stands in the config and is no member
            c3 is a member and does not stand in the config"#]]
        .assert_eq(&differences(&other, &members).join("\n"));
    }
}
