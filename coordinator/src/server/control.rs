//! The answers of the control service: by this coordinator when it leads, by the leader otherwise.

use std::sync::Arc;
use std::time::Duration;

use roost_protocol::error::reason;
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{
    Answer, ClusterSummary, ControlRequest, ControlResponse, Heartbeat, Query,
};
use roost_protocol::view::Coordinator;
use roost_protocol::{ControlError, NodeId};
use tokio::time::Instant;

use super::change::change;
use crate::level;
use crate::liveness::Verdict;
use crate::members;
use crate::peer::{PeerRequest, PeerResponse};
use crate::shared::Shared;

/// How long a request waits for a leader to be elected before it is told that there is none: less than clients wait for an
/// answer at first, so that they hear of it.
const ELECTION_WAIT_MS_MAX: u64 = 400;

/// Whether a request may be handed on to the leader.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Forward {
    Once,
    Never,
}

/// Answers a request of `by`, who may ask for it.
pub(super) async fn control(
    shared: &Arc<Shared>,
    request: ControlRequest,
    by: &str,
    forward: Forward,
) -> Result<ControlResponse, ControlError> {
    shared.check_disk()?;
    match request {
        ControlRequest::Heartbeat(heartbeat) => hear(shared, heartbeat, by),
        request @ (ControlRequest::Change { .. }
        | ControlRequest::Query(_)
        | ControlRequest::Reconfigure(_))
            if shared.leads().is_none() && forward == Forward::Once =>
        {
            hand_on(shared, request, by).await
        }
        ControlRequest::Change { request, sent, change: asked } => {
            Ok(ControlResponse::Done(change(shared, request, sent, by, asked).await?))
        }
        ControlRequest::Reconfigure(asked) => {
            Ok(ControlResponse::Reconfigured(members::reconfigure(shared, asked, by).await?))
        }
        ControlRequest::Query(query) => Ok(ControlResponse::Answer(Box::new(answer(shared, query).await?))),
        ControlRequest::Watch { .. } | ControlRequest::Snapshot => {
            Err(ControlError::Malformed { what: "a stream of answers cannot be handed on".to_owned() })
        }
    }
}

/// Takes a report. A node that is no member is heard too, so that it knows who leads, but nothing is kept of it.
///
/// # Errors
/// [`ControlError::Outlived`] when a later start of the node was heard.
fn hear(shared: &Shared, heartbeat: Heartbeat, by: &str) -> Result<ControlResponse, ControlError> {
    let member = bears(shared, heartbeat.node, by)?;
    let reported = heartbeat.incarnation;
    let heard = shared.registry(|registry| {
        let verdict =
            if member { registry.handle_heartbeat(heartbeat, Instant::now()) } else { Verdict::NoNews };
        let news = matches!(verdict, Verdict::News).then(|| registry.soft().clone());
        (registry.soft().term, verdict, news)
    });
    let (term, verdict, news) = heard.ok_or_else(|| shared.not_leader())?;
    if let Verdict::Outlived { known } = verdict {
        return Err(ControlError::Outlived { known, reported });
    }
    if let Some(soft) = news {
        shared.publish(soft);
    }
    let epoch = shared.machine.state(|state| state.view_epoch());
    Ok(ControlResponse::Heard { term, epoch })
}

/// Whether `node` is a member here, and then of the name that stands in the certificate of whoever speaks for it.
///
/// # Errors
/// [`ControlError::WrongNode`] when it is another's.
pub(super) fn bears(shared: &Shared, node: NodeId, by: &str) -> Result<bool, ControlError> {
    match shared.machine.state(|state| state.node_name(node).cloned()) {
        Some(name) if name.as_str() != by => Err(ControlError::WrongNode { name }),
        known => Ok(known.is_some()),
    }
}

/// Has the leader answer; waits for one while none is known.
///
/// # Errors
/// [`ControlError::NoQuorum`] when none is elected in time, or another while this one was asked: nobody knows then what it
/// did; what the leader said.
pub(crate) async fn hand_on(
    shared: &Shared,
    request: ControlRequest,
    by: &str,
) -> Result<ControlResponse, ControlError> {
    let elected = shared.until_leader(|leader| leader.is_some());
    let elected = tokio::time::timeout(Duration::from_millis(ELECTION_WAIT_MS_MAX), elected).await;
    let Some((id, leader)) = shared.leader() else {
        if shared.cluster().is_none() {
            return Err(shared.forming());
        }
        let reason = if elected.is_ok() { "this coordinator was just elected" } else { "no leader is known" };
        return Err(ControlError::NoQuorum { reason: reason.to_owned() });
    };
    // One that died is silent until its connection times out, and by then another may lead.
    tokio::select! {
        answer = ask_leader(shared, id, &leader, request, by) => match answer {
            // It is not this coordinator that does not answer.
            Err(ControlError::Unreachable { node, reason: why }) => {
                let reason = reason(format!("the last known leader, {node}, does not answer: {why}"));
                Err(ControlError::NoQuorum { reason })
            }
            answer => answer,
        },
        () = shared.until_leader(|leader| leader != Some(id)) => {
            Err(ControlError::NoQuorum { reason: format!("node {id} leads no more") })
        }
    }
}

async fn ask_leader(
    shared: &Shared,
    id: NodeId,
    leader: &Coordinator,
    request: ControlRequest,
    by: &str,
) -> Result<ControlResponse, ControlError> {
    let link = match shared.link_to(id, leader).await {
        Ok(link) => link,
        // An emptied node at the leader's address: another will be elected.
        Err(error @ ControlError::WrongNode { .. }) => {
            return Err(ControlError::NoQuorum { reason: reason(error) });
        }
        Err(error) => return Err(error),
    };
    let request = PeerRequest::Forward { by: by.to_owned(), request: Box::new(request) };
    let answer = link.ask((Kind::RaftRequest, &request), Kind::RaftResponse).await;
    match answer.map_err(|error| error.into_control(&leader.address))? {
        PeerResponse::Control(response) => Ok(*response),
        PeerResponse::Failed(error) => Err(error),
        PeerResponse::Raft(_)
        | PeerResponse::Probed { .. }
        | PeerResponse::Held
        | PeerResponse::Heard
        | PeerResponse::Lacks(_)
        | PeerResponse::Supports { .. } => {
            Err(ControlError::Malformed { what: "another answer than to a request handed on".to_owned() })
        }
    }
}

async fn answer(shared: &Arc<Shared>, query: Query) -> Result<Answer, ControlError> {
    if !roost_protocol::KnownBug::ReadWithoutIndex.is_in() {
        shared.catch_up().await?;
    }
    let (cluster, epoch) = shared.machine.state(|state| (state.cluster(), state.epoch()));
    let cluster = cluster.ok_or_else(|| shared.forming())?;
    match query {
        Query::Models => Ok(Answer::Models(shared.machine.state(|state| state.models()))),
        Query::Versions(model) => Ok(Answer::Versions(shared.machine.state(|state| state.versions(&model))?)),
        Query::Rollout(model) => Ok(Answer::Rollout(shared.machine.state(|state| state.rollout(&model))?)),
        Query::Files(digest) => {
            let files = shared.machine.state(|state| state.bundle(&digest).cloned());
            files.map(Answer::Files).ok_or_else(|| ControlError::NoBundle { digest: digest.to_string() })
        }
        Query::Members => Ok(Answer::Members(members::summary(shared))),
        Query::Level => Ok(Answer::Level(level::summary(shared).await)),
        Query::Cluster => {
            let known = shared.registry(|registry| (registry.soft().clone(), registry.statistics().clone()));
            let (soft, statistics) = known.ok_or_else(|| shared.not_leader())?;
            let (leader, term) = (shared.node, soft.term);
            Ok(Answer::Cluster(ClusterSummary { cluster, leader, term, epoch, soft, statistics }))
        }
    }
}
