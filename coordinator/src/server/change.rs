//! Changes: turned into commands by the leader, agreed on, applied once.
//!
//! A request has one outcome, whichever of its attempts brought it about. What is refused is therefore refused by the
//! replicated state, also when only the leader knows why ([`Command::Refuse`]); an error that is no refusal leaves open
//! what becomes of the request. Where the leader must look at the state before it proposes, it looks for an outcome first: a
//! retry of a promotion that was carried out finds no rollout to promote.

use std::sync::Arc;

use roost_protocol::bundle::{FileList, MANIFEST_FILE};
use roost_protocol::limits::MANIFEST_BYTES_MAX;
use roost_protocol::manifest::{Manifest, ManifestError};
use roost_protocol::messages::control::{Change, Done};
use roost_protocol::{CommandError, ControlError, Epoch, ModelName, ModelVersion, RequestId, Revision};

use super::control::bears;
use crate::points::{Point, Points};
use crate::shared::Shared;
use crate::state::{Applied, Command, is_about_the_plan};
use crate::{artefact, planner};

/// How often the leader plans a request anew because the state had changed before its command was applied. Each time
/// somebody else's change went through.
const PLANS_MAX: usize = 5;

/// Makes a change, once for all attempts of a request.
///
/// # Errors
/// [`ControlError::Refused`] with the request's outcome; any other leaves open whether the change was or will be made.
pub(super) async fn change(
    shared: &Arc<Shared>,
    request: RequestId,
    sent: Epoch,
    by: &str,
    change: Change,
) -> Result<Done, ControlError> {
    if shared.cluster().is_none() {
        return Err(shared.forming());
    }
    // Holders are counted by the voters that there are, which must not change until the version is made.
    let _members = match &change {
        Change::CommitPush { .. } => Some(shared.members.read().await),
        _ => None,
    };
    for _ in 0..PLANS_MAX {
        let command = match plan(shared, request, sent, by, &change).await? {
            Plan::Propose(command) => command,
            Plan::Done(applied) => return done(applied),
        };
        let applied = shared.propose(Some(request), sent, by, command).await?;
        if !applied.result.as_ref().is_err_and(is_about_the_plan) {
            return done(applied);
        }
    }
    Err(ControlError::NoQuorum { reason: format!("the state changed under {PLANS_MAX} attempts in a row") })
}

fn done(applied: Applied) -> Result<Done, ControlError> {
    Ok(Done { epoch: applied.epoch, outcome: applied.result? })
}

/// What to do about a request.
enum Plan {
    Propose(Command),
    /// An earlier attempt had an outcome already.
    Done(Applied),
}

async fn plan(
    shared: &Arc<Shared>,
    request: RequestId,
    sent: Epoch,
    by: &str,
    change: &Change,
) -> Result<Plan, ControlError> {
    let command = match change.clone() {
        Change::ReservePush { files } => Command::Reserve { files },
        Change::CommitPush { model, digest, manifest, note, new_version } => {
            Points::of_push().reach(Point::Asked);
            shared.catch_up().await?;
            if let Some(applied) = shared.machine.state(|state| state.outcome(&request, sent)) {
                return Ok(Plan::Done(applied));
            }
            let holders = match shared.machine.state(|state| state.bundle(&digest).cloned()) {
                Some(files) => {
                    let holders = artefact::replicate(shared, &files).await?;
                    Points::of_push().reach(Point::Held);
                    if let Err(error) = says_the_same(shared, &files, &manifest).await? {
                        return Ok(Plan::Propose(Command::Refuse { error: Box::new(error) }));
                    }
                    holders
                }
                // Refused as not reserved when it is applied, unless it is reserved by then.
                None => Default::default(),
            };
            Command::CommitVersion { model, digest, manifest, note, holders, new_version }
        }
        Change::StartRollout { target, weight } => Command::StartRollout { target, weight },
        Change::Promote { model } => {
            shared.catch_up().await?;
            if let Some(applied) = shared.machine.state(|state| state.outcome(&request, sent)) {
                return Ok(Plan::Done(applied));
            }
            promotion(shared, model)?
        }
        Change::Abort { model, reason } => Command::Abort { model, reason },
        Change::Undo { model } => {
            shared.catch_up().await?;
            if let Some(applied) = shared.machine.state(|state| state.outcome(&request, sent)) {
                return Ok(Plan::Done(applied));
            }
            undoing(shared, model)?
        }
        Change::SetLabel { version, label } => Command::SetLabel { version, label },
        Change::RemoveLabel { model, label } => Command::RemoveLabel { model, label },
        Change::Join { node, name, address, profile } => Command::Join { node, name, address, profile },
        Change::Hold { node, from } => Command::Hold { node, from },
        Change::Retain { model, keep } => Command::Retain { model, keep },
        Change::Drain { node, draining } => {
            // A worker drains itself; that it is a member is for the state to say.
            bears(shared, node, by)?;
            Command::Drain { node, draining }
        }
    };
    Ok(Plan::Propose(command))
}

/// A promotion sends all traffic to the target, so as many of its owners must be ready as the stable version has at its
/// service; soft state knows, `apply` cannot.
fn promotion(shared: &Shared, model: ModelName) -> Result<Command, ControlError> {
    let soft = shared.registry(|registry| registry.soft().clone()).ok_or_else(|| shared.not_leader())?;
    let planned = shared.machine.state_and_view(|state, view| {
        let Ok(summary) = state.rollout(&model) else { return Planned::Unknown };
        let (revision, stable) = (summary.traffic.revision, summary.traffic.stable);
        let Some(rollout) = summary.rollout else { return Planned::At(revision) };
        if !soft.settled {
            return Planned::Unsure;
        }
        let readiness = planner::for_promotion(view, &soft, &model, rollout.target, stable);
        if readiness.suffices() {
            return Planned::At(revision);
        }
        let version = ModelVersion { model: model.clone(), version: rollout.target };
        let (ready, needed) = (readiness.ready as u32, readiness.needed as u32);
        Planned::NotReady(CommandError::NotReady { version, ready, needed })
    });
    match planned.unwrap_or(Planned::Unknown) {
        // The state refuses: there is no such model.
        Planned::Unknown => Ok(Command::Promote { model, revision: Revision::default() }),
        Planned::At(revision) => Ok(Command::Promote { model, revision }),
        Planned::Unsure => {
            let reason = "the leader is new and has not heard every node yet".to_owned();
            Err(ControlError::NoQuorum { reason })
        }
        Planned::NotReady(error) => Ok(Command::Refuse { error: Box::new(error) }),
    }
}

/// An undo sends all traffic to the version before the last promotion. Whether that has the replicas is asked of soft state,
/// but only what is known counts against it: an undo is the way out of a bad version, and must not wait until a new leader
/// has heard everyone. Nor is it refused for good: the request stays open, and the replicas may be ready for its next
/// attempt.
fn undoing(shared: &Shared, model: ModelName) -> Result<Command, ControlError> {
    let soft = shared.registry(|registry| registry.soft().clone()).ok_or_else(|| shared.not_leader())?;
    let planned = shared.machine.state_and_view(|state, view| {
        let Ok(summary) = state.rollout(&model) else { return Ok(Revision::default()) };
        let (revision, stable) = (summary.traffic.revision, summary.traffic.stable);
        let Some(previous) = summary.traffic.previous.filter(|_| soft.settled) else { return Ok(revision) };
        let readiness = planner::for_undo(view, &soft, &model, previous, stable);
        if readiness.suffices() {
            return Ok(revision);
        }
        let version = ModelVersion { model: model.clone(), version: previous };
        let (ready, needed) = (readiness.ready as u32, readiness.needed as u32);
        Err(ControlError::NotReady { version, ready, needed })
    });
    // Where nothing can be undone, the state says so.
    let revision = planned.transpose()?.unwrap_or_default();
    Ok(Command::Undo { model, revision })
}

/// Whether a bundle's own manifest is the one that its pusher states: placement, batching and labels go by what was agreed
/// on, and a bundle that says otherwise would be another model elsewhere. `Ok(Err(_))` is the refusal.
async fn says_the_same(
    shared: &Shared,
    files: &FileList,
    stated: &Manifest,
) -> Result<Result<(), CommandError>, ControlError> {
    let own = match files.get(MANIFEST_FILE) {
        None => Ok(Manifest::default()),
        Some(file) if file.bytes > MANIFEST_BYTES_MAX as u64 => {
            Err(ManifestError::TooLarge { bytes: file.bytes as usize }.to_string())
        }
        Some(file) => {
            let bytes = artefact::read_here(shared, files, file).await?;
            let text = std::str::from_utf8(&bytes).map_err(|error| error.to_string());
            text.and_then(|text| Manifest::parse(text).map_err(|error| error.to_string()))
        }
    };
    let reason = match own {
        Ok(own) if own == *stated => return Ok(Ok(())),
        Ok(_) => format!("the bundle's own {MANIFEST_FILE} says something else than the push states"),
        Err(reason) => reason,
    };
    Ok(Err(CommandError::BadManifest { reason: roost_protocol::error::reason(reason) }))
}

/// What becomes of a promotion.
enum Planned {
    Unknown,
    At(Revision),
    /// Not every node was heard yet: unknown is not "not ready", nor is what was known before still true.
    Unsure,
    NotReady(CommandError),
}
