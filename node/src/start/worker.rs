//! The worker role of a node: hosts versions, keeps its place in the cluster, and serves the view.

use std::sync::Arc;
use std::time::Duration;

use roost_client::control::Control;
use roost_client::follow::{Follower, Sources};
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{Change, ControlRequest, ControlResponse, WatchUpdate, Watched};
use roost_protocol::quic::bundles::BundleStore;
use roost_protocol::quic::stream::{finish, read_message, write_message};
use roost_protocol::quic::{Accepted, Endpoint, Links, Service, watch as view_watch};
use roost_protocol::view::{NodeState, Published};
use roost_protocol::{ControlError, ModelVersion, NodeId};
use tokio::sync::{Semaphore, watch};

use super::tasks::Tasks;
use super::{Context, RoleEnd, StartError, Started, Stop, accept, learn_cluster};
use crate::config::ConfigRole;
use crate::engine;
use crate::membership::{self, Introduction};
use crate::worker::Worker;
use crate::worker::desired::has_heir;

/// Runs the role until it is asked to stop, or a part of it dies. What it serves is handed over either way.
pub(super) async fn run(context: Arc<Context>, started: Started, stop: Stop) -> RoleEnd {
    match WorkerRole::start(&context).await {
        Ok(mut role) => {
            // The starter may have given up.
            let _ = started.send(Ok(()));
            let end = tokio::select! {
                _ = stop => RoleEnd::Stopped,
                why = role.died() => {
                    tracing::error!(node = %context.config.name, why, "the worker cannot go on");
                    RoleEnd::Died(why)
                }
            };
            role.stop().await;
            end
        }
        Err(error) => {
            let _ = started.send(Err(error));
            RoleEnd::Stopped
        }
    }
}

/// Requests of one connection that are read at once; a watch that is served is bounded on its own.
const REQUESTS_READ_MAX: usize = 8;

struct WorkerRole {
    worker: Worker,
    control: Control,
    node: NodeId,
    endpoint: Endpoint,
    follower: Arc<Follower>,
    tasks: Tasks,
    drain: Duration,
}

impl WorkerRole {
    async fn start(context: &Context) -> Result<Self, StartError> {
        let environment = &context.environment;
        let name = context.config.name.clone();
        let address = context.entry.address.clone().ok_or(StartError::RoleEnded("worker"))?;
        if environment.engines.is_empty() {
            return Err(StartError::NoEngine(name, engine::why_none(&environment.engines_missing)));
        }
        let (endpoint, dialler) = context.endpoint(&address, &[Service::Infer, Service::Control]).await?;
        let (node, identity) = (context.identity.node(), context.identity.clone());
        let seeds = context.seeds();
        let (entropy, all) = (&environment.entropy, Watched::All);
        let follower =
            Follower::start(dialler.clone(), seeds.clone(), all, Sources::Coordinators, entropy.seed());
        let published = follower.published();
        let follower = Arc::new(follower);
        // The leader's answers to reports tell whether the watched coordinator lags, or is none any more.
        let control = Control::following(dialler.clone(), follower.clone(), seeds, entropy.seed());
        let store = BundleStore::new(environment.files.bundles("cache")?);
        let links = Links::new(dialler, Service::Bundle);
        let settings = context.config.cluster.worker.clone();
        let drain = Duration::from_millis(settings.drain_ms_max);
        let worker = Worker::start(settings, node, environment, store, links, published.clone()).await;
        let introduction = Introduction { node, name, address, profile: context.profile()? };
        let mut tasks = Tasks::default();
        // A coordinator knows its cluster first hand; what a worker beside it was told must not get ahead of that.
        if !context.entry.is(ConfigRole::Coordinator) {
            tasks.spawn("learn cluster", learn_cluster(identity.clone(), published.clone()));
        }
        let (ask, follows, entropy) = (control.clone(), published.clone(), environment.entropy.clone());
        tasks.spawn("stay joined", membership::stay_joined(ask, follows, introduction, entropy));
        let (handle, reports) = (worker.handle(), worker.reports());
        let counted = handle.clone();
        let statistics = move || counted.statistics();
        tasks.spawn("report", membership::report(control.clone(), identity.clone(), reports, statistics));
        let serve = move |accepted: Accepted| {
            let (handle, published) = (handle.clone(), published.clone());
            async move {
                match accepted.service {
                    Service::Infer => handle.serve(accepted.link).await,
                    // The endpoint offers no other.
                    Service::Control | Service::Raft | Service::Bundle => {
                        serve_view(accepted, published).await
                    }
                }
            }
        };
        tasks.spawn("accept", accept(endpoint.clone(), identity, serve));
        Ok(Self { worker, control, node, endpoint, follower, tasks, drain })
    }

    /// Completes when a part of it has died, with which and how. Safe to drop half-way.
    async fn died(&mut self) -> String {
        tokio::select! {
            why = self.tasks.died() => why,
            () = self.worker.ended() => "the supervisor of its versions ended".to_owned(),
        }
    }

    /// Has other nodes take over what this one serves, then stops (design §6).
    async fn stop(self) {
        if tokio::time::timeout(self.drain, self.empty()).await.is_err() {
            tracing::warn!(node = %self.node, "stops with versions that no other node took over in time");
        }
        self.worker.stop().await;
        self.tasks.shutdown().await;
        self.endpoint.close().await;
        drop(self.follower);
    }

    async fn empty(&self) {
        if let Err(error) = self.control.change(Change::Drain { node: self.node, draining: true }).await {
            tracing::warn!(%error, "stops without being emptied");
            return;
        }
        let mut published = self.follower.published();
        let draining = |published: &Published| {
            let node = published.view.as_ref().and_then(|view| view.nodes.get(&self.node));
            node.is_none_or(|node| node.state != NodeState::Active)
        };
        if published.wait_for(draining).await.is_err() {
            return;
        }
        let mut reports = self.worker.reports();
        loop {
            let view = published.borrow_and_update().view.clone();
            let served = reports.borrow_and_update().clone();
            let served = served.iter().filter(|report| report.stage.serves());
            let served =
                served.map(|report| ModelVersion { model: report.model.clone(), version: report.version });
            let (inherited, stranded): (Vec<_>, Vec<_>) = served.partition(|version| {
                view.as_ref().is_none_or(|view| has_heir(view, &view.ring(), self.node, version))
            });
            if inherited.is_empty() {
                for version in stranded {
                    tracing::warn!(node = %self.node, %version, "no other node can serve it");
                }
                return;
            }
            // Both channels live as long as this role.
            tokio::select! {
                _ = published.changed() => {}
                _ = reports.changed() => {}
            }
        }
    }
}

/// Serves the view to clients, who need no coordinator to route. Everything else of the control service is a
/// coordinator's.
async fn serve_view(accepted: Accepted, published: watch::Receiver<Published>) {
    let reading = Arc::new(Semaphore::new(REQUESTS_READ_MAX));
    loop {
        // The semaphore is never closed.
        let Ok(permit) = reading.clone().acquire_owned().await else { return };
        let Ok((mut send, mut recv)) = accepted.link.accept().await else { return };
        let (published, link) = (published.clone(), accepted.link.clone());
        tokio::spawn(async move {
            let request = read_message(&mut recv, Kind::ControlRequest).await;
            drop(permit);
            let served = match request {
                Ok(ControlRequest::Watch { from, models }) => {
                    view_watch::answer(&link, &mut send, published, from, &models).await
                }
                Ok(
                    ControlRequest::Change { .. }
                    | ControlRequest::Query(_)
                    | ControlRequest::Heartbeat(_)
                    | ControlRequest::Reconfigure(_)
                    | ControlRequest::Snapshot,
                ) => {
                    let view = published.borrow().view.clone();
                    let known = view.iter().flat_map(|view| view.coordinators.values());
                    let coordinators = known.map(|coordinator| coordinator.address.clone()).collect();
                    let refusal = ControlResponse::Failed(ControlError::NotCoordinator { coordinators });
                    let written = write_message(&mut send, Kind::ControlResponse, &refusal).await;
                    finish(&mut send);
                    written
                }
                Err(error) => {
                    let refusal = WatchUpdate::Failed(error.into_control("this node"));
                    let written = write_message(&mut send, Kind::WatchUpdate, &refusal).await;
                    finish(&mut send);
                    written
                }
            };
            if let Err(error) = served {
                tracing::debug!(%error, "a watch ended");
            }
        });
    }
}
