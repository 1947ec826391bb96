//! A worker's place in the cluster: it joins, reports, and is emptied before it stops.

use std::sync::Arc;
use std::time::Duration;

use roost_client::control::Control;
use roost_protocol::messages::control::{Change, Heartbeat, VersionStatistics};
use roost_protocol::view::{Node, NodeProfile, NodeState, Published, VersionReport};
use roost_protocol::{Incarnation, NodeId, NodeName};
use tokio::sync::watch;
use tokio::time::Instant;

/// Three of these missed make a node suspect.
const HEARTBEAT: Duration = Duration::from_millis(900);
/// A change of a stage is reported at once, but a burst of changes is gathered for so long.
const GATHER: Duration = Duration::from_millis(10);
/// Between two attempts to join: the reason for the first failure rarely passes faster.
const REJOIN: Duration = Duration::from_secs(1);

/// What a worker says of itself when it joins.
#[derive(Debug, Clone, PartialEq)]
pub struct Introduction {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// `host:port` of its worker endpoint.
    pub address: String,
    /// What it is and can do.
    pub profile: NodeProfile,
}

/// Whether a worker must (again) ask to be a member. Pure.
///
/// It must at each start, because only then is it sure that it does not drain from its last stop; and later when it was
/// declared out, or somebody else took its name meanwhile.
fn must_join(joined: bool, known: Option<&Node>, us: &Introduction) -> bool {
    let as_we_are = known.is_some_and(|known| {
        known.address == us.address && known.profile == us.profile && known.state != NodeState::Out
    });
    !joined || !as_we_are
}

/// Joins, and joins again whenever the view says that this node must.
pub async fn stay_joined(control: Control, mut published: watch::Receiver<Published>, us: Introduction) {
    // A change names the epoch that it was sent at: without a view, an old cluster could not tell whether it is new.
    if published.wait_for(|published| published.view.is_some()).await.is_err() {
        return;
    }
    let mut joined = false;
    loop {
        let must = {
            let view = published.borrow_and_update().view.clone();
            must_join(joined, view.as_ref().and_then(|view| view.nodes.get(&us.node)), &us)
        };
        if must {
            let change = Change::Join {
                node: us.node,
                name: us.name.clone(),
                address: us.address.clone(),
                profile: Box::new(us.profile.clone()),
            };
            match control.change(change).await {
                Ok(done) => {
                    tracing::info!(node = %us.name, epoch = %done.epoch, "joined");
                    joined = true;
                }
                Err(error) => {
                    tracing::warn!(node = %us.name, %error, "cannot join yet");
                    tokio::time::sleep(REJOIN).await;
                }
            }
        } else if published.changed().await.is_err() {
            return;
        }
    }
}

/// Reports to the leader, about once a second and at each change of a stage.
pub async fn report(
    control: Control,
    node: NodeId,
    incarnation: Incarnation,
    mut reports: watch::Receiver<Arc<Vec<VersionReport>>>,
    statistics: impl Fn() -> Vec<VersionStatistics>,
) {
    let mut sequence = 0;
    loop {
        sequence += 1;
        let versions = reports.borrow_and_update().to_vec();
        let heartbeat = Heartbeat { node, incarnation, sequence, versions, statistics: statistics() };
        let started = Instant::now();
        if let Err(error) = control.heartbeat(heartbeat).await {
            tracing::debug!(%error, "no leader heard the report");
        }
        let next = started + HEARTBEAT;
        match tokio::time::timeout_at(next, reports.changed()).await {
            Ok(Ok(())) => tokio::time::sleep(GATHER).await,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_protocol::ring::Speed;

    #[test]
    fn a_worker_joins_once_and_again_when_it_must() {
        let profile = NodeProfile {
            speed: Speed::default(),
            zone: String::new(),
            labels: Default::default(),
            memory_mib: 1,
            isa: String::new(),
            engines: Default::default(),
        };
        let us = Introduction {
            node: NodeId(1),
            name: NodeName::new("a").unwrap(),
            address: "h:1".to_owned(),
            profile: profile.clone(),
        };
        let known = |address: &str, state| Node {
            name: us.name.clone(),
            address: address.to_owned(),
            state,
            profile: profile.clone(),
        };
        assert!(must_join(false, Some(&known("h:1", NodeState::Active)), &us));
        assert!(must_join(true, None, &us));
        assert!(must_join(true, Some(&known("h:2", NodeState::Active)), &us));
        assert!(must_join(true, Some(&known("h:1", NodeState::Out)), &us));
        assert!(!must_join(true, Some(&known("h:1", NodeState::Draining)), &us));
    }
}
