//! The composition root: a node from its config and its environment, and from nothing else.
//!
//! `main`, `dev` and the simulator all call [`start`]. Each role runs on a runtime of its own with its own endpoint, so
//! that inference never delays Raft; roles meet only in messages, also within one process.

use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use roost_protocol::quic::endpoint::EndpointError;
use roost_protocol::quic::{Accepted, Credentials, Dialler, Endpoint, Service};
use roost_protocol::view::{NodeProfile, Published};
use roost_protocol::{NodeId, NodeName};
use tokio::sync::{oneshot, watch};

use crate::config::{ClusterConfig, ConfigError, ConfigRole, NodeEntry};
use crate::environment::{Environment, RoleHandle};
use crate::identity::{Identity, IdentityError};
use crate::worker::WorkerConfig;

#[cfg(feature = "coordinator")]
mod coordinator;
#[cfg(feature = "coordinator")]
pub mod recover;
mod tasks;
mod worker;

/// How long a coordinator's farewell may take before its runtime is dropped anyway: its leadership is offered to each of
/// the other voters in turn.
#[cfg(feature = "coordinator")]
const COORDINATOR_FAREWELL: Duration = Duration::from_secs(40);
/// What a worker's farewell may take beside `drain_ms_max`: what is in flight gets 5 s, connections are closed.
const WORKER_FAREWELL_MARGIN: Duration = Duration::from_secs(10);

/// Why a node did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The config does not fit.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The node's identity cannot be kept.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An endpoint cannot be opened.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The data folder cannot be used.
    #[error("the data folder cannot be used: {0}")]
    Data(#[from] std::io::Error),
    /// The certificate is another's, or lacks a role.
    #[error(
        "the certificate is {certificate}, node {node} of cluster {cluster} needs the roles {roles}; issue one with \
         `roost certs issue {node} --roles {roles}`"
    )]
    Certificate {
        /// What the certificate says.
        certificate: String,
        /// The node.
        node: NodeName,
        /// The cluster.
        cluster: String,
        /// The roles that it needs.
        roles: String,
    },
    /// A worker without an engine.
    #[error("node {0} is a worker and has no engine: {1}")]
    NoEngine(NodeName, String),
    /// The coordinator cannot start.
    #[cfg(feature = "coordinator")]
    #[error(transparent)]
    Coordinator(#[from] roost_coordinator::StartError),
    /// This build has no coordinator.
    #[error("node {0} is a coordinator, and this build has none; build with the feature coordinator")]
    NoCoordinator(NodeName),
    /// A role ended while it started.
    #[error("the role {0} ended while it started")]
    RoleEnded(&'static str),
}

/// What is started: one node of a cluster.
pub struct NodeConfig {
    /// The whole cluster.
    pub cluster: Arc<ClusterConfig>,
    /// Which of its nodes.
    pub name: NodeName,
    /// The node's certificate and the CAs that peers are judged by.
    pub credentials: Arc<Credentials>,
}

/// A node that runs. Dropping it stops it at once, as a crash would; [`Node::stop`] says farewell.
pub struct Node {
    name: NodeName,
    identity: Identity,
    roles: Vec<RunningRole>,
}

struct RunningRole {
    name: &'static str,
    stop: Option<oneshot::Sender<()>>,
    handle: Box<dyn RoleHandle>,
    /// How long its farewell may take.
    farewell: Duration,
    /// How it ended, once it has.
    end: Option<RoleEnd>,
    /// Tells how it ended. Nothing comes when the role's task itself died.
    ended: oneshot::Receiver<RoleEnd>,
}

/// How a role ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum RoleEnd {
    /// It was asked to.
    Stopped,
    /// Something in it died. A fresh start mends it.
    Died(String),
    /// It gave up for a reason that a fresh start would only meet again, such as a disk that failed.
    #[cfg_attr(not(feature = "coordinator"), allow(dead_code, reason = "only a coordinator gives up"))]
    GaveUp(String),
}

/// What the roles of one node share.
pub(crate) struct Context {
    pub config: NodeConfig,
    pub entry: NodeEntry,
    pub environment: Environment,
    pub identity: Identity,
}

/// Starts a node.
///
/// # Errors
/// [`StartError`], when the certificate is not the node's, an address is in use, or the data folder cannot be read. Nothing
/// runs then.
pub async fn start(config: NodeConfig, environment: Environment) -> Result<Node, StartError> {
    let entry = config.cluster.node(config.name.as_str())?.clone();
    check_certificate(&config, &entry)?;
    let identity = Identity::open(environment.files.clone(), &*environment.entropy)?;
    let context = Arc::new(Context { config, entry, environment, identity: identity.clone() });
    let mut node = Node { name: context.config.name.clone(), identity, roles: Vec::new() };
    if context.entry.is(ConfigRole::Coordinator) {
        #[cfg(feature = "coordinator")]
        node.roles
            .push(start_role("coordinator", COORDINATOR_FAREWELL, context.clone(), coordinator::run).await?);
        #[cfg(not(feature = "coordinator"))]
        return Err(StartError::NoCoordinator(node.name.clone()));
    }
    if context.entry.is(ConfigRole::Worker) {
        let farewell = worker_farewell(&context.config.cluster.worker);
        node.roles.push(start_role("worker", farewell, context.clone(), worker::run).await?);
    }
    Ok(node)
}

impl Node {
    /// Its name.
    pub fn name(&self) -> &NodeName {
        &self.name
    }

    /// Its id.
    pub fn id(&self) -> NodeId {
        self.identity.node()
    }

    /// Waits until the node cannot go on: a role has died, or all have ended. Whoever waits then says farewell for the
    /// others by [`Node::stop`], and has the process started again: a node of which a part is dead must not look well.
    ///
    /// A role that gave up is no such reason while another lives. A coordinator does so when its disk fails, which a fresh
    /// start does not mend: the node would not start at all, and inference outlives its coordinators (design §1). The log
    /// says it, and `roost cluster status` shows the coordinator as silent.
    ///
    /// Safe to drop half-way.
    pub async fn ended(&mut self) {
        std::future::poll_fn(|context| {
            self.roles.iter_mut().for_each(|role| role.poll_end(context));
            if is_over(self.roles.iter().map(|role| role.end.as_ref())) {
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Empties the worker, hands leadership over, and stops. A role that takes longer than its farewell may is dropped: a
    /// worker's follows from `drain_ms_max`.
    pub async fn stop(mut self) {
        // The worker first: to be emptied it needs a coordinator, perhaps this one.
        for role in self.roles.iter_mut().rev() {
            if let Some(stop) = role.stop.take() {
                // It may have ended already.
                let _ = stop.send(());
            }
            if tokio::time::timeout(role.farewell, role.handle.ended()).await.is_err() {
                tracing::warn!(role = role.name, "did not end in time");
            }
        }
    }
}

impl RunningRole {
    fn poll_end(&mut self, context: &mut std::task::Context<'_>) {
        if self.end.is_some() {
            return;
        }
        let Poll::Ready(end) = Pin::new(&mut self.ended).poll(context) else { return };
        let end = end.unwrap_or_else(|_| RoleEnd::Died("its task died".to_owned()));
        match &end {
            RoleEnd::Stopped => tracing::info!(role = self.name, "has stopped"),
            RoleEnd::Died(why) => tracing::error!(role = self.name, why, "has died"),
            RoleEnd::GaveUp(why) => tracing::error!(role = self.name, why, "has given up"),
        }
        self.end = Some(end);
    }
}

/// Whether a node is over whose roles have ended so far.
fn is_over<'a>(mut ends: impl Iterator<Item = Option<&'a RoleEnd>> + Clone) -> bool {
    let died = |end: Option<&RoleEnd>| match end {
        Some(RoleEnd::Died(_)) => true,
        Some(RoleEnd::Stopped | RoleEnd::GaveUp(_)) | None => false,
    };
    ends.clone().any(died) || ends.all(|end| end.is_some())
}

/// How long a worker's farewell may take.
fn worker_farewell(config: &WorkerConfig) -> Duration {
    Duration::from_millis(config.drain_ms_max).saturating_add(WORKER_FAREWELL_MARGIN)
}

fn check_certificate(config: &NodeConfig, entry: &NodeEntry) -> Result<(), StartError> {
    let identity = config.credentials.identity();
    let fits = identity.cluster == config.cluster.cluster
        && identity.name.as_str() == entry.name.as_str()
        && entry.roles.iter().all(|role| identity.roles.contains(&role.role()));
    if fits {
        return Ok(());
    }
    let roles: Vec<_> = entry.roles.iter().map(|role| role.role().name()).collect();
    Err(StartError::Certificate {
        certificate: identity.to_uri(),
        node: entry.name.clone(),
        cluster: config.cluster.cluster.to_string(),
        roles: roles.join(","),
    })
}

/// Tells the starter that the role runs, or why it does not.
pub(crate) type Started = oneshot::Sender<Result<(), StartError>>;
/// Asks the role to end.
pub(crate) type Stop = oneshot::Receiver<()>;

async fn start_role<F>(
    name: &'static str,
    farewell: Duration,
    context: Arc<Context>,
    run: impl FnOnce(Arc<Context>, Started, Stop) -> F,
) -> Result<RunningRole, StartError>
where
    F: Future<Output = RoleEnd> + Send + 'static,
{
    let (started, has_started) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let (tell, ended) = oneshot::channel();
    let role = run(context.clone(), started, stopped);
    let task = Box::pin(async move {
        // The node may have been dropped.
        let _ = tell.send(role.await);
    });
    let handle = context.environment.runtimes.start(name, task);
    has_started.await.unwrap_or(Err(StartError::RoleEnded(name)))?;
    Ok(RunningRole { name, stop: Some(stop), handle, farewell, end: None, ended })
}

impl Context {
    /// Opens an endpoint at `address`, or one that only dials.
    pub(crate) async fn endpoint(
        &self,
        address: &str,
        services: &[Service],
    ) -> Result<(Endpoint, Dialler), EndpointError> {
        let environment = &self.environment;
        let endpoint = Endpoint::bind(
            environment.network.clone(),
            address,
            services,
            &self.config.credentials,
            &self.identity.reset_key(),
            environment.entropy.seed(),
        )
        .await?;
        let identity = self.identity.clone();
        let dialler = Dialler::new(endpoint.clone(), move || identity.hello());
        Ok((endpoint, dialler))
    }

    /// The coordinators' addresses, as the config has them.
    pub(crate) fn seeds(&self) -> Vec<String> {
        self.config.cluster.coordinators().map(|(_, address)| address.to_owned()).collect()
    }

    fn profile(&self) -> Result<NodeProfile, StartError> {
        let machine = &self.environment.machine;
        Ok(NodeProfile {
            speed: self.identity.speed(machine.speed)?,
            zone: self.entry.zone.clone(),
            labels: self.entry.labels.clone(),
            memory_mib: machine.memory_mib,
            isa: machine.isa.clone(),
            engines: self.environment.engines.iter().map(|engine| engine.choice()).collect(),
        })
    }
}

/// Accepts connections and greets them; `serve` has each that passed, in a task of its own.
pub(crate) async fn accept<F>(endpoint: Endpoint, identity: Identity, serve: impl Fn(Accepted) -> F)
where
    F: Future<Output = ()> + Send + 'static,
    F::Output: Send,
{
    let mut greetings = tokio::task::JoinSet::new();
    loop {
        tokio::select! {
            incoming = endpoint.accept() => {
                let Some(incoming) = incoming else { return };
                let identity = identity.clone();
                greetings.spawn(Accepted::greet(incoming, move || identity.hello()));
            }
            Some(greeted) = greetings.join_next() => match greeted {
                Ok(Ok(accepted)) => {
                    tokio::spawn(serve(accepted));
                }
                Ok(Err(error)) => tracing::warn!(target: "audit", %error, "a connection was refused"),
                Err(error) => tracing::error!(%error, "a greeting died"),
            }
        }
    }
}

/// Keeps the cluster that the first view names, so that the node will greet no other. Goes on for ever, with nothing to do.
pub(crate) async fn learn_cluster(identity: Identity, mut published: watch::Receiver<Published>) {
    let known = published.wait_for(|published| published.view.is_some()).await;
    let cluster = known.ok().and_then(|published| published.view.as_ref().map(|view| view.cluster));
    if let Some(cluster) = cluster
        && let Err(error) = identity.join(cluster)
    {
        tracing::error!(%error, "the cluster's identity was not kept");
    }
    std::future::pending().await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_over_when_a_role_died_or_all_have_ended() {
        let (died, gave_up) = (RoleEnd::Died("panic".to_owned()), RoleEnd::GaveUp("disk".to_owned()));
        let over = |ends: &[Option<&RoleEnd>]| is_over(ends.iter().copied());
        assert!(!over(&[None, None]));
        assert!(over(&[None, Some(&died)]), "a dead worker beside a coordinator that lives");
        assert!(!over(&[Some(&gave_up), None]), "a worker goes on beside a coordinator without a disk");
        assert!(over(&[Some(&gave_up)]));
        assert!(over(&[Some(&gave_up), Some(&RoleEnd::Stopped)]));
    }

    #[test]
    fn a_workers_farewell_outlasts_its_drain() {
        let farewell =
            |drain_ms_max| worker_farewell(&WorkerConfig { drain_ms_max, ..WorkerConfig::default() });
        assert_eq!(farewell(0), WORKER_FAREWELL_MARGIN);
        assert_eq!(farewell(600_000), Duration::from_secs(610));
        assert!(farewell(u64::MAX) > Duration::from_millis(u64::MAX));
    }
}
