//! An administrator, who replaces coordinators that lost their folder, moves leadership about, and cordons and drains workers.
//!
//! It goes by names alone, as an operator who heard that a machine was renewed: where the node is still the same, to take it
//! in changes nothing. Each change is tried for some seconds; one that is left half-done is finished by the next.

use std::collections::BTreeSet;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use roost_client::Client;
use roost_protocol::NodeId;
use roost_protocol::messages::control::{Change, HeldFrom, MemberSummary, Reconfigure, Reconfigured};

use super::{Phase, Workload};
use crate::faults::exponential;
use crate::trace;

/// The mean time between two of its looks.
const LOOK: Duration = Duration::from_secs(4);
/// Between two looks whether a worker is held back, once faults have ended.
const AGAIN: Duration = Duration::from_millis(200);
/// How long it tries one change.
const PATIENCE: Duration = Duration::from_secs(8);

/// Administers until faults end.
pub(super) async fn administer(workload: &Workload, client: &Client, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while workload.0.phase.get() == Phase::Safety {
        tokio::time::sleep(exponential(&mut rng, LOOK)).await;
        if rng.random_bool(0.4) {
            hold_one(client, &mut rng).await;
            continue;
        }
        let Ok(summary) = client.control().members().await else { continue };
        let Some(member) = summary.members.choose(&mut rng) else { continue };
        if rng.random_bool(0.2) {
            let asked = Reconfigure::TransferLeader { to: member.voter.then_some(member.node) };
            let done = client.control().reconfigure(asked, PATIENCE).await;
            trace::line(format_args!("leadership to {}: {done:?}", member.name));
        } else {
            replace(workload, client, &summary.members, member).await;
        }
    }
    // The others look whether all is as the view says, which a cluster with nothing but drained workers makes dull.
    // Also what was asked for long ago and comes about only now.
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

async fn hold_one(client: &Client, rng: &mut StdRng) {
    let view = client.published().borrow().view.clone();
    let nodes: Vec<NodeId> = view.iter().flat_map(|view| view.nodes.keys().copied()).collect();
    let Some(node) = nodes.choose(rng) else { return };
    let from = [None, Some(HeldFrom::Further), Some(HeldFrom::All)][rng.random_range(0..3)];
    hold(client, *node, from).await;
}

async fn hold(client: &Client, node: NodeId, from: Option<HeldFrom>) {
    let done = client.control().change_within(Change::Hold { node, from }, PATIENCE).await;
    trace::line(format_args!("to hold node {node} from {from:?}: {done:?}"));
}

async fn replace(workload: &Workload, client: &Client, members: &[MemberSummary], member: &MemberSummary) {
    let (name, address) = (member.name.clone(), member.address.clone());
    let asked = Reconfigure::Add { name: name.clone(), address };
    let added = client.control().reconfigure(asked, PATIENCE).await;
    trace::line(format_args!("to take {name} in: {added:?}"));
    let Ok(Reconfigured::Added(node)) = added else { return };
    let others = members.iter().filter(|other| other.name == name && other.node != node);
    let remove: BTreeSet<_> = others.map(|other| other.node).collect();
    if remove.is_empty() {
        return;
    }
    // From here on it may take part.
    workload.0.replaced.borrow_mut().insert(name.to_string());
    let asked = Reconfigure::Change { promote: [node].into(), remove };
    let changed = client.control().reconfigure(asked, PATIENCE).await;
    trace::line(format_args!("to put node {node} in the place of {name}: {changed:?}"));
}
