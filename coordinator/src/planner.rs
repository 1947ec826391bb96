//! What the leader proposes by itself. Pure: the view, the rollouts and the soft state in, commands out.
//!
//! Every command names the revision that it was planned from, so that one that comes late is refused. Nothing is proposed
//! before the leader has listened for a full interval ([`SoftState::settled`]): unknown is not "not ready".

use std::time::Duration;

use roost_protocol::messages::control::{Rollout, RolloutState};
use roost_protocol::placement::{owners, preference};
use roost_protocol::ring::Ring;
use roost_protocol::traffic::Traffic;
use roost_protocol::view::{NodeState, SoftState, Stage, View};
use roost_protocol::{ModelName, ModelVersion, NodeId, Version};

use crate::state::Command;

/// Silence after which a worker's versions get other owners. Long enough for a reboot, because moving models is dear.
pub const OUT_AFTER: Duration = Duration::from_secs(60);

/// A canary with one replica would fall back to stable as soon as that one hiccups, so it waits for two, where the
/// cluster has two eligible nodes (design §1.3).
const CANARY_REPLICAS_MIN: usize = 2;

/// What the leader should propose now.
pub fn plan<'a>(
    view: &View,
    rollouts: impl IntoIterator<Item = (&'a ModelName, &'a Rollout, &'a Traffic)>,
    soft: &SoftState,
    silent: impl Fn(NodeId) -> Duration,
) -> Vec<Command> {
    if !soft.settled {
        return Vec::new();
    }
    let ring = view.ring();
    let mut commands = Vec::new();
    for (model, rollout, traffic) in rollouts {
        commands.extend(plan_rollout(view, &ring, soft, model, rollout, traffic));
    }
    commands.extend(plan_exclusions(view, &ring, soft));
    let members = view.nodes.iter().filter(|(_, node)| node.state != NodeState::Out);
    let out = members.filter(|(id, _)| silent(**id) >= OUT_AFTER);
    commands.extend(out.map(|(id, _)| Command::NodeOut { node: *id }));
    commands
}

/// How many replicas of a version are ready, and how many it must have before traffic may lead to it.
pub fn readiness(view: &View, soft: &SoftState, model: &ModelName, version: Version) -> (usize, usize) {
    readiness_on(view, &view.ring(), soft, model, version)
}

fn readiness_on(
    view: &View,
    ring: &Ring,
    soft: &SoftState,
    model: &ModelName,
    version: Version,
) -> (usize, usize) {
    let eligible = preference(view, ring, model, version).len();
    let owners = owners(view, ring, model, version);
    let ready = owners.iter().filter(|node| soft.serves(**node, model, version)).count();
    (ready, CANARY_REPLICAS_MIN.min(eligible).min(owners.len()).max(1))
}

fn plan_rollout(
    view: &View,
    ring: &Ring,
    soft: &SoftState,
    model: &ModelName,
    rollout: &Rollout,
    traffic: &Traffic,
) -> Option<Command> {
    let (ready, needed) = readiness_on(view, ring, soft, model, rollout.target);
    let (model, revision) = (model.clone(), traffic.revision);
    match (&rollout.state, ready >= needed) {
        (RolloutState::Preparing, true) => Some(Command::Expose { model, revision }),
        (RolloutState::Running, false) => {
            let reason = format!("{model}@{} has {ready} ready replicas of {needed}", rollout.target);
            Some(Command::Pause { model, revision, reason })
        }
        (RolloutState::Paused { .. }, true) => Some(Command::Resume { model, revision }),
        (RolloutState::Preparing | RolloutState::Paused { .. }, false) | (RolloutState::Running, true) => {
            None
        }
    }
}

/// Owners that gave a version up, while another node could take it. Where none could, the owner stays and its failure
/// stays visible.
fn plan_exclusions(view: &View, ring: &Ring, soft: &SoftState) -> Vec<Command> {
    let mut commands = Vec::new();
    for (model, record) in &view.models {
        for version in record.versions.keys() {
            let owners = owners(view, ring, model, *version);
            let spare = preference(view, ring, model, *version).len() > owners.len();
            let failed = owners.iter().find_map(|node| match soft.stage(*node, model, *version) {
                Some(Stage::Failed { reason }) => Some((*node, reason.clone())),
                _ => None,
            });
            if let (true, Some((node, reason))) = (spare, failed) {
                let version = ModelVersion { model: model.clone(), version: *version };
                commands.push(Command::Exclude { node, version, reason });
            }
        }
    }
    commands
}

#[cfg(test)]
mod tests;
