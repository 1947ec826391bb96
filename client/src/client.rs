//! The client: follows the view, routes requests, reaches the control plane.

use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rand::rngs::SysRng;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha12Rng;
use roost_protocol::messages::control::{Hello, Watched};
use roost_protocol::quic::endpoint::EndpointError;
use roost_protocol::quic::tls::CredentialsError;
use roost_protocol::quic::{Credentials, Dialler, Endpoint, Network, TokioNetwork, WallClock};
use roost_protocol::view::Published;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::control::Control;
use crate::dispatch::{Dispatch, QuicDispatch};
use crate::follow::{Follower, Sources};
use crate::infer::{DEADLINE_MAX, Infer, IntoTarget};
use crate::shared::Shared;

/// A request's deadline where neither it nor the config says otherwise: longer than a node's death takes to
/// be noticed, with time for another to answer.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(10);
/// How long [`Client::connect`] waits for the first view: several rounds over the seeds.
const CONNECT_DEFAULT: Duration = Duration::from_secs(10);

/// A client of a cluster. Cloning shares it; it stops when the last clone is dropped.
#[derive(Clone)]
pub struct Client {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    control: Control,
    /// What requests are routed by.
    published: watch::Receiver<Published>,
    deadline: Duration,
    endpoint: Option<Endpoint>,
    routing: AbortHandle,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.routing.abort();
    }
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let epoch = self.inner.published.borrow().view.as_ref().map(|view| view.epoch);
        f.debug_struct("Client").field("epoch", &epoch).finish_non_exhaustive()
    }
}

/// How a client reaches its cluster.
#[derive(Debug, Clone)]
pub struct ClientConfig {
    /// `host:port` of any nodes of the cluster. One that lives is enough; the others are learnt from it.
    pub seeds: Vec<String>,
    /// Who this client is.
    pub credentials: CredentialsSource,
    /// The models whose routes are followed. Default all; a few spare memory where there are thousands.
    pub models: Watched,
    /// A request's deadline unless it has its own. Default 10 s.
    pub deadline: Duration,
    /// How long to wait for the first view. Default 10 s.
    pub connect: Duration,
    /// The local address. Default `0.0.0.0:0`; `[::]:0` where nodes have IPv6 addresses.
    pub bind: String,
}

/// A certificate, its key, and the CA that nodes are judged by.
#[derive(Clone)]
pub enum CredentialsSource {
    /// As PEM.
    Pem {
        /// The CA's certificates.
        ca: Vec<u8>,
        /// The certificate, with its chain.
        certificate: Vec<u8>,
        /// Its key.
        key: Vec<u8>,
    },
    /// As paths of PEM files.
    Files {
        /// The CA's certificates.
        ca: PathBuf,
        /// The certificate, with its chain.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
}

impl std::fmt::Debug for CredentialsSource {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Pem { .. } => f.write_str("Pem"),
            Self::Files { ca, certificate, key } => f
                .debug_struct("Files")
                .field("ca", ca)
                .field("certificate", certificate)
                .field("key", key)
                .finish(),
        }
    }
}

impl ClientConfig {
    /// A config with the defaults.
    pub fn new(seeds: impl IntoIterator<Item = impl Into<String>>, credentials: CredentialsSource) -> Self {
        Self {
            seeds: seeds.into_iter().map(Into::into).collect(),
            credentials,
            models: Watched::All,
            deadline: DEADLINE_DEFAULT,
            connect: CONNECT_DEFAULT,
            bind: "0.0.0.0:0".to_owned(),
        }
    }
}

/// What a client takes from outside.
#[derive(Debug, Clone)]
pub struct ClientEnvironment {
    /// Sockets and addresses.
    pub network: Arc<dyn Network>,
    /// The time that certificates are judged by.
    pub clock: Arc<dyn WallClock>,
    /// Feeds everything that is random.
    pub seed: [u8; 32],
}

impl ClientEnvironment {
    /// The operating system's network, clock and entropy.
    ///
    /// # Errors
    /// [`ConnectError::Entropy`] when the system has none.
    pub fn production() -> Result<Self, ConnectError> {
        use rand::TryRng as _;
        let mut seed = [0; 32];
        SysRng.try_fill_bytes(&mut seed).map_err(|error| ConnectError::Entropy(error.to_string()))?;
        Ok(Self { network: Arc::new(TokioNetwork), clock: Arc::new(SystemClock), seed })
    }
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy)]
pub struct SystemClock;

impl WallClock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "this is where production's wall clock enters")]
    fn since_epoch(&self) -> Duration {
        // A clock set before 1970 makes every certificate invalid, which says enough.
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }
}

/// What a client is made of inside a node, which has its own endpoint and follows the view already.
pub struct ClientParts {
    /// The view and the soft state.
    pub published: watch::Receiver<Published>,
    /// Who follows them, to be told of nodes that are ahead.
    pub follower: Option<Arc<Follower>>,
    /// How attempts are sent.
    pub dispatch: Arc<dyn Dispatch>,
    /// The control plane.
    pub control: Control,
    /// A request's deadline unless it has its own.
    pub deadline: Duration,
    /// Feeds request ids and keys of requests without one.
    pub seed: [u8; 32],
}

/// Why there is no client.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// No seeds were given.
    #[error("a client needs the address of at least one node")]
    NoSeeds,
    /// A file cannot be read.
    #[error("cannot read {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The credentials are not usable.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// The local socket could not be made.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No node delivered a view in time.
    #[error("no node delivered a view of the cluster within {} s: {}", after.as_secs_f32(), said(troubles))]
    NoView {
        /// How long was waited.
        after: Duration,
        /// By address, why.
        troubles: Vec<(String, String)>,
    },
    /// The system has no entropy.
    #[error("the system gives no random numbers: {0}")]
    Entropy(String),
}

fn said(troubles: &[(String, String)]) -> String {
    let each: Vec<_> = troubles.iter().map(|(address, trouble)| format!("{address}: {trouble}")).collect();
    if each.is_empty() { "no answer yet".to_owned() } else { each.join("; ") }
}

impl Client {
    /// Connects to a cluster and waits until it is known where requests go.
    ///
    /// # Errors
    /// [`ConnectError`] when the credentials are not usable, or no seed delivers a view in time; it says what
    /// each did.
    pub async fn connect(config: ClientConfig) -> Result<Self, ConnectError> {
        Self::with(ClientEnvironment::production()?, config).await
    }

    /// As [`Client::connect`], with network, clock and randomness given.
    ///
    /// # Errors
    /// As [`Client::connect`].
    pub async fn with(environment: ClientEnvironment, config: ClientConfig) -> Result<Self, ConnectError> {
        if config.seeds.is_empty() {
            return Err(ConnectError::NoSeeds);
        }
        let mut rng = ChaCha12Rng::from_seed(environment.seed);
        let credentials = config.credentials.read(environment.clock)?;
        let mut reset_key = [0; 64];
        rng.fill_bytes(&mut reset_key);
        let seed = draw(&mut rng);
        let endpoint =
            Endpoint::bind(environment.network, &config.bind, &[], &credentials, &reset_key, seed).await?;

        // The greeting names the cluster once a view did, so that an address which another cluster took is
        // noticed.
        let known: Arc<OnceLock<watch::Receiver<Published>>> = Arc::default();
        let cluster = known.clone();
        let hello = move || {
            let view = cluster.get().and_then(|published| published.borrow().view.clone());
            Hello { cluster: view.map(|view| view.cluster), node: None }
        };
        let dialler = Dialler::new(endpoint.clone(), hello);
        let seeds = config.seeds;
        let follower =
            Follower::start(dialler.clone(), seeds.clone(), config.models, Sources::AllNodes, draw(&mut rng));
        let mut published = follower.published();
        known.get_or_init(|| published.clone());

        let first = timeout(config.connect, published.wait_for(|published| published.view.is_some())).await;
        // A follower that ends has lost its task: no view either.
        let arrived = matches!(first, Ok(Ok(_)));
        drop(first);
        if !arrived {
            let troubles = follower.troubles().into_iter().collect();
            return Err(ConnectError::NoView { after: config.connect, troubles });
        }
        let follower = Arc::new(follower);
        let control = Control::following(dialler.clone(), follower.clone(), seeds, draw(&mut rng));
        let mut client = ClientParts {
            published,
            follower: Some(follower),
            dispatch: Arc::new(QuicDispatch::new(dialler)),
            control,
            deadline: config.deadline,
            seed: draw(&mut rng),
        }
        .into_inner();
        client.endpoint = Some(endpoint);
        Ok(Self { inner: Arc::new(client) })
    }

    /// A client of given parts. Where there is no view yet, requests wait for it.
    pub fn from_parts(parts: ClientParts) -> Self {
        Self { inner: Arc::new(parts.into_inner()) }
    }

    /// A request: `digits` goes where the model's traffic goes, `digits@2` to that version, `digits:prod` to
    /// the version that bears the label. What is no such text is an error when the request is sent.
    pub fn infer(&self, target: impl IntoTarget) -> Infer {
        Infer::new(self.clone(), target, self.inner.deadline)
    }

    /// The control plane: pushes, rollouts, and what the cluster says of itself.
    pub fn control(&self) -> &Control {
        &self.inner.control
    }

    /// The newest view and soft state that requests are routed by: one that is sent after they show something
    /// goes by that, or by newer ones.
    pub fn published(&self) -> watch::Receiver<Published> {
        self.inner.published.clone()
    }

    /// Ends all connections in good order. Requests in flight fail. A client that is only dropped leaves its
    /// peers to find out by themselves, which takes them two seconds.
    pub async fn close(&self) {
        if let Some(endpoint) = &self.inner.endpoint {
            endpoint.close().await;
        }
    }

    pub(crate) fn shared(&self) -> &Arc<Shared> {
        &self.inner.shared
    }
}

impl ClientParts {
    fn into_inner(self) -> Inner {
        let (routed, follows) = watch::channel(self.published.borrow().clone());
        let (shared, keep_routes) =
            Shared::new(self.dispatch, self.published, routed, self.follower, self.seed);
        Inner {
            shared,
            control: self.control,
            published: follows,
            deadline: self.deadline.min(DEADLINE_MAX),
            endpoint: None,
            routing: tokio::spawn(keep_routes).abort_handle(),
        }
    }
}

impl CredentialsSource {
    fn read(self, clock: Arc<dyn WallClock>) -> Result<Credentials, ConnectError> {
        let (ca, certificate, key) = match self {
            Self::Pem { ca, certificate, key } => (ca, certificate, key),
            Self::Files { ca, certificate, key } => (read(&ca)?, read(&certificate)?, read(&key)?),
        };
        Ok(Credentials::from_pem(&ca, &certificate, &key, clock)?)
    }
}

fn read(path: &Path) -> Result<Vec<u8>, ConnectError> {
    std::fs::read(path).map_err(|source| ConnectError::Read { path: path.to_owned(), source })
}

fn draw(rng: &mut ChaCha12Rng) -> [u8; 32] {
    let mut seed = [0; 32];
    rng.fill_bytes(&mut seed);
    seed
}
