//! The coordinator role of a node.

use std::sync::Arc;

use roost_coordinator::state::LEVEL;
use roost_coordinator::{
    Coordinator, CoordinatorConfig, CoordinatorParts, DiskFault, GroupMember, Job, JobQueue, RaftConfig,
};
use roost_protocol::quic::bundles::BundleStore;
use roost_protocol::quic::{Endpoint, Service};
use roost_protocol::view::Published;
use roost_protocol::{ClusterId, NodeName};
use tokio::sync::watch;

use super::tasks::Tasks;
use super::{Context, RoleEnd, StartError, Started, Stop, accept, learn_cluster};
use crate::config::CoordinatorOptions;
use crate::environment::{Executor, Work};

/// The executor of disk work, as the coordinator wants it.
struct DiskQueue(Arc<dyn Executor>);

impl JobQueue for DiskQueue {
    fn submit(&self, job: Job) {
        self.0.submit(job);
    }
}

/// Runs the role until it is asked to stop, or fails.
pub(super) async fn run(context: Arc<Context>, started: Started, stop: Stop) -> RoleEnd {
    let (coordinator, endpoint, mut tasks) = match start(&context).await {
        Ok(parts) => parts,
        Err(error) => {
            if let StartError::Coordinator(failed) = &error {
                report_stop(&context.config.name, failed.disk_fault(), &failed.to_string());
            }
            // The starter may have given up.
            let _ = started.send(Err(error));
            return RoleEnd::Stopped;
        }
    };
    let _ = started.send(Ok(()));
    let end = tokio::select! {
        _ = stop => RoleEnd::Stopped,
        why = tasks.died() => RoleEnd::Died(why),
        reason = coordinator.failed() => {
            report_stop(&context.config.name, coordinator.disk_fault(), &reason);
            RoleEnd::GaveUp(reason)
        }
    };
    coordinator.stop().await;
    tasks.shutdown().await;
    endpoint.close().await;
    end
}

/// Says why a coordinator stops, or does not start, and what to do about its disk if it is that.
fn report_stop(node: &NodeName, fault: Option<DiskFault>, reason: &str) {
    match fault {
        Some(DiskFault::Full(_)) => tracing::error!(
            %node, reason,
            "the coordinator stops: what it acknowledged is durable. Make room and start it again"
        ),
        Some(DiskFault::LaterBuild(_)) | None => tracing::error!(%node, reason, "the coordinator stops"),
        Some(
            DiskFault::Read(_)
            | DiskFault::Write(_)
            | DiskFault::Sync(_)
            | DiskFault::Damaged(_)
            | DiskFault::Stopped(_),
        ) => tracing::error!(
            %node, reason,
            "the coordinator stops: it answers nothing from a disk that failed. Empty the node's whole data folder, start it, \
             and have it join under a new identity: `roost cluster members replace {node}`"
        ),
    }
}

async fn start(context: &Context) -> Result<(Coordinator, Endpoint, Tasks), StartError> {
    let environment = &context.environment;
    let name = context.config.name.clone();
    let address = context.entry.coordinator_address.clone().ok_or(StartError::RoleEnded("coordinator"))?;
    let services = [Service::Control, Service::Raft, Service::Bundle];
    let (endpoint, dialler) = context.endpoint(&address, &services).await?;
    let (published, follows) = watch::channel(Published::default());
    let group = context.config.cluster.coordinators();
    let group = group.map(|(name, at)| GroupMember { name: name.clone(), address: at.to_owned() }).collect();
    let node = context.identity.node();
    let CoordinatorOptions { heartbeat_ms, snapshot_entries } = context.config.cluster.coordinator;
    let raft = RaftConfig { heartbeat_ms, snapshot_entries };
    let (high, low) = (environment.entropy.u64(), environment.entropy.u64());
    let bundles = match &environment.bundles {
        Some(store) => store.clone(),
        None => environment.files.bundles(super::recover::BUNDLES)?,
    };
    let parts = CoordinatorParts {
        storage: environment.files.database(super::recover::DATABASE)?,
        queue: Arc::new(DiskQueue(environment.executors.dedicated("disk", Work::Disk))),
        bundles: BundleStore::new(bundles),
        clock: environment.clock.clone(),
        dialler,
        published,
        seed: environment.entropy.u64(),
        fresh_cluster: ClusterId(u128::from(high) << 64 | u128::from(low)),
    };
    let coordinator =
        Coordinator::start(CoordinatorConfig { node, name, address, group, level: LEVEL, raft }, parts)
            .await?;
    let mut tasks = Tasks::default();
    tasks.spawn("learn cluster", learn_cluster(context.identity.clone(), follows));
    let server = coordinator.server();
    let serve = move |accepted| {
        let server = server.clone();
        async move { server.serve(accepted).await }
    };
    tasks.spawn("accept", accept(endpoint.clone(), context.identity.clone(), serve));
    Ok((coordinator, endpoint, tasks))
}
