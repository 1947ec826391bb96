//! The composition root: a node from its config and its environment, and from nothing else.
//!
//! `main`, `dev` and the simulator all call [`start`]. Each role runs on a runtime of its own with its own endpoint, so
//! that inference never delays Raft; roles meet only in messages, also within one process.

use std::sync::Arc;
use std::time::Duration;

use roost_client::control::Control;
use roost_client::follow::{Follower, Sources};
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{Change, ControlRequest, ControlResponse, WatchUpdate, Watched};
use roost_protocol::quic::bundles::BundleStore;
use roost_protocol::quic::endpoint::EndpointError;
use roost_protocol::quic::stream::{finish, read_message, write_message};
use roost_protocol::quic::{Accepted, Credentials, Dialler, Endpoint, Links, Service, watch as view_watch};
use roost_protocol::view::{NodeProfile, NodeState, Published};
use roost_protocol::{ControlError, NodeId, NodeName};
use tokio::sync::{oneshot, watch};

use crate::config::{ClusterConfig, ConfigError, ConfigRole, NodeEntry};
use crate::environment::{Environment, RoleHandle};
use crate::identity::{Identity, IdentityError};
use crate::membership::{self, Introduction};
use crate::worker::Worker;

#[cfg(feature = "coordinator")]
mod coordinator;

/// How long a role's own farewell may take before its runtime is dropped anyway.
const FAREWELL: Duration = Duration::from_secs(40);

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
        node.roles.push(start_role("coordinator", context.clone(), coordinator::run).await?);
        #[cfg(not(feature = "coordinator"))]
        return Err(StartError::NoCoordinator(node.name.clone()));
    }
    if context.entry.is(ConfigRole::Worker) {
        node.roles.push(start_role("worker", context.clone(), run_worker).await?);
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

    /// Waits until every role has ended by itself, which none does unless it failed.
    pub async fn ended(&mut self) {
        for role in &mut self.roles {
            role.handle.ended().await;
        }
    }

    /// Empties the worker, hands leadership over, and stops. What is still running after 40 s is dropped.
    pub async fn stop(mut self) {
        // The worker first: to be emptied it needs a coordinator, perhaps this one.
        for role in self.roles.iter_mut().rev() {
            if let Some(stop) = role.stop.take() {
                // It may have ended already.
                let _ = stop.send(());
            }
            if tokio::time::timeout(FAREWELL, role.handle.ended()).await.is_err() {
                tracing::warn!(role = role.name, "did not end in time");
            }
        }
    }
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
    context: Arc<Context>,
    run: impl FnOnce(Arc<Context>, Started, Stop) -> F,
) -> Result<RunningRole, StartError>
where
    F: Future<Output = ()> + Send + 'static,
{
    let (started, has_started) = oneshot::channel();
    let (stop, stopped) = oneshot::channel();
    let task = Box::pin(run(context.clone(), started, stopped));
    let handle = context.environment.runtimes.start(name, task);
    has_started.await.unwrap_or(Err(StartError::RoleEnded(name)))?;
    Ok(RunningRole { name, stop: Some(stop), handle })
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

/// Keeps the cluster that the first view names, so that the node will greet no other.
pub(crate) async fn learn_cluster(identity: Identity, mut published: watch::Receiver<Published>) {
    let known = published.wait_for(|published| published.view.is_some()).await;
    let cluster = known.ok().and_then(|published| published.view.as_ref().map(|view| view.cluster));
    if let Some(cluster) = cluster
        && let Err(error) = identity.join(cluster)
    {
        tracing::error!(%error, "the cluster's identity was not kept");
    }
}

async fn run_worker(context: Arc<Context>, started: Started, stop: Stop) {
    match WorkerRole::start(&context).await {
        Ok(role) => {
            // The starter may have given up.
            let _ = started.send(Ok(()));
            let _ = stop.await;
            role.stop().await;
        }
        Err(error) => {
            let _ = started.send(Err(error));
        }
    }
}

/// The worker role of a node.
struct WorkerRole {
    worker: Worker,
    control: Control,
    node: NodeId,
    endpoint: Endpoint,
    follower: Follower,
    tasks: tokio::task::JoinSet<()>,
    drain: Duration,
}

impl WorkerRole {
    async fn start(context: &Context) -> Result<Self, StartError> {
        let environment = &context.environment;
        let name = context.config.name.clone();
        let address = context.entry.address.clone().ok_or(StartError::RoleEnded("worker"))?;
        if environment.engines.is_empty() {
            let why = "no engine was found or built in".to_owned();
            return Err(StartError::NoEngine(name, why));
        }
        let (endpoint, dialler) = context.endpoint(&address, &[Service::Infer, Service::Control]).await?;
        let (node, identity) = (context.identity.node(), context.identity.clone());
        let seeds = context.seeds();
        let (entropy, all) = (&environment.entropy, Watched::All);
        let follower =
            Follower::start(dialler.clone(), seeds.clone(), all, Sources::Coordinators, entropy.seed());
        let published = follower.published();
        let control = Control::new(dialler.clone(), published.clone(), seeds, entropy.seed());
        let store = BundleStore::new(environment.files.bundles("cache")?);
        let links = Links::new(dialler, Service::Bundle);
        let settings = context.config.cluster.worker.clone();
        let drain = Duration::from_millis(settings.drain_ms_max);
        let worker = Worker::start(settings, node, environment, store, links, published.clone()).await;
        let introduction = Introduction { node, name, address, profile: context.profile()? };
        let mut tasks = tokio::task::JoinSet::new();
        // A coordinator knows its cluster first hand; what a worker beside it was told must not get ahead of that.
        if !context.entry.is(ConfigRole::Coordinator) {
            tasks.spawn(learn_cluster(identity.clone(), published.clone()));
        }
        tasks.spawn(membership::stay_joined(control.clone(), published.clone(), introduction));
        let (handle, reports) = (worker.handle(), worker.reports());
        let counted = handle.clone();
        let statistics = move || counted.statistics();
        tasks.spawn(membership::report(control.clone(), node, identity.incarnation(), reports, statistics));
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
        tasks.spawn(accept(endpoint.clone(), identity, serve));
        Ok(Self { worker, control, node, endpoint, follower, tasks, drain })
    }

    /// Has other nodes take over what this one serves, then stops (design §6).
    async fn stop(mut self) {
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
        // The channel ends only with the worker, which this role owns.
        let _ = reports.wait_for(|reports| reports.iter().all(|report| !report.stage.serves())).await;
    }
}

/// Serves the view to clients, who need no coordinator to route. Everything else of the control service is a
/// coordinator's.
async fn serve_view(accepted: Accepted, published: watch::Receiver<Published>) {
    while let Ok((mut send, mut recv)) = accepted.link.accept().await {
        let published = published.clone();
        tokio::spawn(async move {
            let served = match read_message(&mut recv, Kind::ControlRequest).await {
                Ok(ControlRequest::Watch { from, models }) => {
                    view_watch::serve(&mut send, published, from, &models).await
                }
                Ok(
                    ControlRequest::Change { .. } | ControlRequest::Query(_) | ControlRequest::Heartbeat(_),
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
