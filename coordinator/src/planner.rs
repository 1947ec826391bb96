//! What the leader proposes by itself. Pure: the view, the rollouts and the soft state in, commands out.
//!
//! Every command names what it was planned from (a revision, a join, a reservation), so that one that comes late does
//! nothing. Nothing is proposed before the leader has listened for a full interval ([`SoftState::settled`]): unknown is not
//! "not ready".

use std::cell::LazyCell;
use std::collections::BTreeMap;
use std::ops::Deref;
use std::time::Duration;

use roost_protocol::messages::control::{Rollout, RolloutState};
use roost_protocol::placement::{owners, preference};
use roost_protocol::ring::Ring;
use roost_protocol::traffic::Traffic;
use roost_protocol::view::{Hold, Liveness, NodeState, SoftState, Stage, View};
use roost_protocol::{Digest, ModelName, ModelVersion, NodeId, Version};

use crate::liveness::SUSPECT_AFTER;
use crate::state::Command;

/// Silence after which a worker's versions get other owners. Long enough for a reboot, because moving models is dear.
pub const OUT_AFTER: Duration = Duration::from_secs(60);

/// The share of the active nodes that must be live for a silent one to be declared out: when the coordinators hear fewer, it
/// is more likely they who are cut off. Every node out would leave clients, who may well reach the workers, nobody to ask,
/// and loading everything on the few that are heard would take those down too.
const LIVE_SHARE_MIN: f64 = 0.5;

/// A canary with one replica would fall back to stable as soon as that one hiccups, so it waits for two, where the
/// cluster has two eligible nodes (design §1.3).
const CANARY_REPLICAS_MIN: usize = 2;

/// How long a bundle stays reserved. The largest takes two hours on a slow disk; whoever needs longer reserves again.
const RESERVED_MS_MAX: u64 = 24 * 60 * 60 * 1000;

/// What plans are made from.
pub struct Outlook<'a> {
    /// The committed view.
    pub view: &'a View,
    /// The rollouts in progress.
    pub rollouts: Vec<(&'a ModelName, &'a Rollout, &'a Traffic)>,
    /// The log index of each worker's last join.
    pub joins: BTreeMap<NodeId, u64>,
    /// The bundles that are reserved and not committed, and since when in ms since 1970.
    pub reservations: Vec<(Digest, u64)>,
    /// What the nodes reported.
    pub soft: &'a SoftState,
    /// For how long each worker has been silent.
    pub silent: BTreeMap<NodeId, Duration>,
    /// The leader's wall-clock time in ms since 1970.
    pub now_ms: u64,
}

/// What the leader should propose now.
pub fn plan(outlook: &Outlook<'_>) -> Vec<Command> {
    if !outlook.soft.settled {
        return Vec::new();
    }
    let (view, soft) = (outlook.view, outlook.soft);
    // The ring of a large cluster takes milliseconds to make, and most of the time nothing asks for it.
    let ring = LazyCell::new(|| view.ring());
    let rollouts = outlook.rollouts.iter();
    let mut commands: Vec<Command> = rollouts
        .filter_map(|(model, rollout, traffic)| plan_rollout(view, &ring, soft, model, rollout, traffic))
        .collect();
    commands.extend(plan_exclusions(outlook, &ring));
    commands.extend(plan_outs(outlook));
    let forgotten = outlook.reservations.iter().copied();
    let forgotten = forgotten.filter(|(_, at_ms)| outlook.now_ms.saturating_sub(*at_ms) >= RESERVED_MS_MAX);
    commands.extend(forgotten.map(|(digest, reserved_at_ms)| Command::Collect { digest, reserved_at_ms }));
    commands
}

/// Ready replicas of a version, and how many a change needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Readiness {
    /// Owners that are ready.
    pub ready: usize,
    /// Owners that must be.
    pub needed: usize,
}

impl Readiness {
    /// Whether enough are ready.
    pub fn suffices(self) -> bool {
        self.ready >= self.needed
    }
}

/// What a rollout's target needs to take its share.
fn for_canary(view: &View, ring: &Ring, soft: &SoftState, model: &ModelName, version: Version) -> Readiness {
    let eligible = preference(view, ring, model, version).len();
    let owners = owners(view, ring, model, version).len();
    let needed = CANARY_REPLICAS_MIN.min(eligible).min(owners).max(1);
    Readiness { ready: ready(view, ring, soft, model, version), needed }
}

/// What a rollout's target needs to take all traffic: as many replicas as the stable version has at its service now, where
/// it has so many owners.
pub fn for_promotion(
    view: &View,
    soft: &SoftState,
    model: &ModelName,
    target: Version,
    stable: Version,
) -> Readiness {
    let ring = view.ring();
    let owners = owners(view, &ring, model, target).len();
    let Readiness { ready: target, needed } = for_canary(view, &ring, soft, model, target);
    let stable = ready(view, &ring, soft, model, stable);
    Readiness { ready: target, needed: needed.max(stable.min(owners)) }
}

/// What the version before the last promotion needs to take all traffic back: no fewer replicas than the version that is to
/// be left serves with, for going back must not be a change for the worse, and no more, for that version may be the reason
/// to go back. An owner that is not heard counts: unknown is not "not ready", and the version stayed hosted.
pub fn for_undo(
    view: &View,
    soft: &SoftState,
    model: &ModelName,
    previous: Version,
    stable: Version,
) -> Readiness {
    let ring = view.ring();
    let owners = owners(view, &ring, model, previous);
    let is_unknown = |node: &NodeId| {
        let report = soft.nodes.get(node);
        report.is_none_or(|report| report.liveness == Liveness::Suspect)
    };
    let may_serve = |node: &&NodeId| soft.serves(**node, model, previous) || is_unknown(node);
    let needed = ready(view, &ring, soft, model, stable).min(owners.len()).max(1);
    Readiness { ready: owners.iter().filter(may_serve).count(), needed }
}

fn ready(view: &View, ring: &Ring, soft: &SoftState, model: &ModelName, version: Version) -> usize {
    let owners = owners(view, ring, model, version);
    owners.iter().filter(|node| soft.serves(**node, model, version)).count()
}

fn plan_rollout(
    view: &View,
    ring: &Ring,
    soft: &SoftState,
    model: &ModelName,
    rollout: &Rollout,
    traffic: &Traffic,
) -> Option<Command> {
    let readiness = for_canary(view, ring, soft, model, rollout.target);
    let (model, revision) = (model.clone(), traffic.revision);
    match (&rollout.state, readiness.suffices()) {
        (RolloutState::Preparing, true) => Some(Command::Expose { model, revision }),
        (RolloutState::Running, false) => {
            let Readiness { ready, needed } = readiness;
            let reason = format!("{model}@{} has {ready} ready replicas of {needed}", rollout.target);
            Some(Command::Pause { model, revision, reason })
        }
        (RolloutState::Paused { .. }, true) => Some(Command::Resume { model, revision }),
        (RolloutState::Preparing | RolloutState::Paused { .. }, false) | (RolloutState::Running, true) => {
            None
        }
    }
}

/// Owners that gave a version up, while another node could take it: one at a time, so that its successor is known before
/// the next is judged. Where none could, the owner stays and its failure stays visible.
fn plan_exclusions(outlook: &Outlook<'_>, ring: &impl Deref<Target = Ring>) -> Vec<Command> {
    let (view, soft) = (outlook.view, outlook.soft);
    let mut failures: BTreeMap<(&ModelName, Version), BTreeMap<NodeId, &str>> = BTreeMap::new();
    for (node, report) in &soft.nodes {
        for version in &report.versions {
            if let Stage::Failed { reason } = &version.stage {
                failures.entry((&version.model, version.version)).or_default().insert(*node, reason);
            }
        }
    }
    let exclusion = |((model, version), failed): ((&ModelName, Version), BTreeMap<NodeId, &str>)| {
        let owners = owners(view, ring, model, version);
        let spare = preference(view, ring, model, version).len() > owners.len();
        let (node, reason) =
            owners.iter().find_map(|node| Some((*node, *failed.get(node)?))).filter(|_| spare)?;
        let joined = *outlook.joins.get(&node)?;
        let version = ModelVersion { model: model.clone(), version };
        Some(Command::Exclude { node, joined, version, reason: reason.to_owned() })
    };
    failures.into_iter().filter_map(exclusion).collect()
}

/// Nodes that have been silent for too long: draining ones, which said that they would go, those that an operator drained,
/// and the other active ones while enough of the active ones are live.
fn plan_outs(outlook: &Outlook<'_>) -> Vec<Command> {
    let silent = |id: NodeId| outlook.silent.get(&id).copied().unwrap_or_default();
    let nodes = outlook.view.nodes.iter();
    let active: Vec<NodeId> =
        nodes.filter(|(_, node)| node.state == NodeState::Active).map(|(id, _)| *id).collect();
    // One that fell silent just now is not counted as live: those that are cut off fall silent within a second of each
    // other, and the first of them must not be declared out alone.
    let live = active.iter().filter(|id| silent(**id) < SUSPECT_AFTER).count();
    let enough = live as f64 >= active.len() as f64 * LIVE_SHARE_MIN;
    let out = outlook.view.nodes.iter().filter(|(id, node)| {
        let may_go = match node.state {
            // An operator who knows that machines are lost for good says so by draining them: else too many of them would
            // hold their own names against the machines that replace them.
            NodeState::Active => enough || node.hold == Some(Hold::Drained),
            NodeState::Draining => true,
            NodeState::Out => false,
        };
        may_go && silent(**id) >= OUT_AFTER
    });
    let joins = out.filter_map(|(id, _)| Some((*id, *outlook.joins.get(id)?)));
    joins.map(|(node, joined)| Command::NodeOut { node, joined }).collect()
}

#[cfg(test)]
mod tests;
