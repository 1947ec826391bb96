//! An administrator, who changes who coordinates, moves leadership about, and cordons and drains workers.
//!
//! It takes spare and former coordinators in and gives them votes, lets others go, the leader too, and
//! replaces those that lost their folder. For that it goes by names alone, as an operator who heard that a
//! machine was renewed: where the node is still the same, to take it in changes nothing. Each change is tried
//! for some seconds. One that is left half-done is finished by the next of its kind, and a removal that
//! nobody answered is asked for again ahead of any other.
//!
//! Convergence is promised of every group that it makes: three vote at least, and of the coordinators that
//! may lose their data so few that the others are a quorum.

mod votes;

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use roost_client::Client;
use roost_protocol::messages::control::{Change, HeldFrom, MemberSummary, Reconfigure, Reconfigured};
use roost_protocol::{ControlError, NodeId, NodeName};

use self::votes::Votes;
use super::{Phase, Workload};
use crate::facts::Fact;
use crate::faults::exponential;
use crate::trace;

/// The mean time between two of its looks.
const LOOK: Duration = Duration::from_secs(3);
/// Between two looks whether a worker is held back, once faults have ended.
const AGAIN: Duration = Duration::from_millis(200);
/// How long it tries one change.
const PATIENCE: Duration = Duration::from_secs(8);

/// Administers until faults end.
pub(super) async fn administer(workload: &Workload, client: &Client, seed: u64) {
    let rng = StdRng::seed_from_u64(seed);
    let mut admin = Admin { workload, client, rng, unanswered: None };
    while workload.0.phase.get() == Phase::Safety {
        tokio::time::sleep(exponential(&mut admin.rng, LOOK)).await;
        admin.act().await;
    }
    workload.0.administers.set(false);
    // The others look whether all is as the view says, which a cluster with nothing but drained workers makes
    // dull. Also what was asked for long ago and comes about only now.
    loop {
        match held(client).first() {
            Some(node) => hold(client, *node, None).await,
            None => tokio::time::sleep(AGAIN).await,
        }
    }
}

/// The workers that are held back, as far as is known.
pub(super) fn held(client: &Client) -> Vec<NodeId> {
    let view = client.published().borrow().view.clone();
    let nodes = view.iter().flat_map(|view| &view.nodes);
    nodes.filter(|(_, node)| node.hold.is_some()).map(|(id, _)| *id).collect()
}

async fn hold(client: &Client, node: NodeId, from: Option<HeldFrom>) {
    let done = client.control().change_within(Change::Hold { node, from }, PATIENCE).await;
    trace::line(format_args!("to hold node {node} from {from:?}: {done:?}"));
}

struct Admin<'a> {
    workload: &'a Workload,
    client: &'a Client,
    rng: StdRng,
    /// The removal of which nobody said what came of it.
    unanswered: Option<NodeId>,
}

impl Admin<'_> {
    async fn act(&mut self) {
        let what = self.rng.random_range(0..20);
        if what < 5 {
            return self.hold_one().await;
        }
        let Ok(summary) = self.client.control().members().await else { return };
        let members = summary.members;
        match what {
            5..7 => self.transfer(&members).await,
            7..11 => self.replace(&members).await,
            11..16 => self.grow(&members).await,
            _ => self.shrink(&members).await,
        }
    }

    async fn hold_one(&mut self) {
        let view = self.client.published().borrow().view.clone();
        let nodes: Vec<NodeId> = view.iter().flat_map(|view| view.nodes.keys().copied()).collect();
        let Some(node) = nodes.choose(&mut self.rng) else { return };
        let from = [None, Some(HeldFrom::Further), Some(HeldFrom::All)][self.rng.random_range(0..3)];
        hold(self.client, *node, from).await;
    }

    async fn transfer(&mut self, members: &[MemberSummary]) {
        let Some(member) = members.choose(&mut self.rng) else { return };
        let asked = Reconfigure::TransferLeader { to: member.voter.then_some(member.node) };
        let done = self.client.control().reconfigure(asked, PATIENCE).await;
        trace::line(format_args!("leadership to {}: {done:?}", member.name));
    }

    /// Takes a member in anew, should it be another node by now, and lets the node go that it was.
    async fn replace(&mut self, members: &[MemberSummary]) {
        let Some(member) = members.choose(&mut self.rng) else { return };
        let Some(node) = self.take_in(&member.name, member.address.clone()).await else { return };
        let others = members.iter().filter(|other| other.name == member.name && other.node != node);
        let remove: BTreeSet<NodeId> = others.map(|other| other.node).collect();
        if !remove.is_empty() {
            self.change(members, Some((node, &member.name)), remove).await;
        }
    }

    /// Takes a coordinator in that is no member, or finishes that: gives its vote to one that learns.
    async fn grow(&mut self, members: &[MemberSummary]) {
        let voters: BTreeSet<&str> =
            members.iter().filter(|member| member.voter).map(|member| member.name.as_str()).collect();
        let known = &self.workload.0.coordinators;
        let others: Vec<_> = known.iter().filter(|(name, _)| !voters.contains(name.as_str())).collect();
        let Some((name, address)) = others.choose(&mut self.rng) else { return };
        let Ok(name) = NodeName::new(name) else { return };
        if let Some(node) = self.take_in(&name, (*address).clone()).await {
            self.change(members, Some((node, &name)), BTreeSet::new()).await;
        }
    }

    /// Lets a voter go, often the leader.
    async fn shrink(&mut self, members: &[MemberSummary]) {
        let remove = match self.unanswered {
            Some(node) => node,
            None => {
                let leader = members.iter().find(|member| member.leader);
                let leader = leader.filter(|_| self.rng.random_bool(0.3));
                let Some(member) = leader.or_else(|| members.choose(&mut self.rng)) else { return };
                member.node
            }
        };
        self.change(members, None, [remove].into()).await;
    }

    /// Has a coordinator taken in as the node that it is now.
    async fn take_in(&self, name: &NodeName, address: String) -> Option<NodeId> {
        // From here on it may take part: nobody knows what becomes of a request that is not answered.
        self.workload.0.witness.tell_of(name.as_str(), &Fact::TakenIn);
        let asked = Reconfigure::Add { name: name.clone(), address };
        let added = self.client.control().reconfigure(asked, PATIENCE).await;
        trace::line(format_args!("to take {name} in: {added:?}"));
        match added {
            Ok(Reconfigured::Added(node)) => Some(node),
            Ok(_) | Err(_) => None,
        }
    }

    /// Changes who votes, if convergence is promised of what that leads to.
    async fn change(
        &mut self,
        members: &[MemberSummary],
        promote: Option<(NodeId, &NodeName)>,
        remove: BTreeSet<NodeId>,
    ) {
        let mut votes = Votes::of(members);
        if let Some((node, name)) = promote {
            votes.promote(node, name.as_str());
        }
        // It may come about yet.
        remove.iter().chain(&self.unanswered).for_each(|node| votes.remove(*node));
        if !votes.are_safe(&self.workload.0.doomed) {
            return;
        }
        let only_removes = promote.is_none();
        let promote: BTreeSet<NodeId> = promote.map(|(node, _)| node).into_iter().collect();
        let text = format!("to give votes to {promote:?} and let {remove:?} go");
        let removed = remove.first().copied().filter(|_| only_removes);
        let done = self.client.control().reconfigure(Reconfigure::Change { promote, remove }, PATIENCE).await;
        trace::line(format_args!("{text}: {done:?}"));
        if only_removes {
            let is_answered = matches!(&done, Ok(_) | Err(ControlError::MembersRefused { .. }));
            self.unanswered = removed.filter(|_| !is_answered);
        }
    }
}
