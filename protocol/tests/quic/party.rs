//! What the tests need of a party: a CA that issues credentials, and endpoints that greet whoever comes.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use rcgen::{CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use roost_protocol::ids::{ClusterId, NodeId};
use roost_protocol::messages::control::Hello;
use roost_protocol::quic::endpoint::GreetError;
use roost_protocol::quic::tls::{CredentialsError, NODE_DNS_NAME};
use roost_protocol::quic::{
    Accepted, Credentials, Dialler, Endpoint, Link, PeerIdentity, Role, Service, TokioNetwork, WallClock,
};
use tokio::sync::mpsc;

/// The cluster that parties belong to unless a test says otherwise.
pub const CLUSTER: ClusterId = ClusterId(0xc1);
/// Long enough for two busy cores; a test that waits this long has failed.
const WAIT: Duration = Duration::from_secs(20);

/// A time at which the certificates are valid, since 1970.
pub const IN_2026: Duration = Duration::from_secs(1_767_225_600);

/// A clock that stands.
#[derive(Debug)]
struct At(Duration);

impl WallClock for At {
    fn since_epoch(&self) -> Duration {
        self.0
    }
}

/// A certificate authority.
pub struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    /// Another one than all before.
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test CA");
        let key = KeyPair::generate().expect("ring makes keys");
        Self(CertifiedIssuer::self_signed(params, key).expect("ring signs"))
    }

    /// Credentials of a node or a client, which believes that it is 2026.
    pub fn issue(&self, roles: &[Role], name: &str) -> Credentials {
        self.issue_for("demo", roles, name)
    }

    /// The same for another cluster.
    pub fn issue_for(&self, cluster: &str, roles: &[Role], name: &str) -> Credentials {
        let (ca, certificate, key) = self.issue_pem_for(cluster, roles, name);
        credentials(&ca, &certificate, &key, IN_2026).expect("the CA issues good credentials")
    }

    /// The CA, a certificate of the twenties, and its key, as PEM.
    pub fn issue_pem(&self, roles: &[Role], name: &str) -> (String, String, String) {
        self.issue_pem_for("demo", roles, name)
    }

    /// The same for another cluster.
    pub fn issue_pem_for(&self, cluster: &str, roles: &[Role], name: &str) -> (String, String, String) {
        let identity = PeerIdentity {
            cluster: cluster.parse().expect("a name"),
            roles: roles.iter().copied().collect(),
            name: name.parse().expect("a name"),
        };
        let mut params = CertificateParams::default();
        params.not_before = rcgen::date_time_ymd(2020, 1, 1);
        params.not_after = rcgen::date_time_ymd(2030, 1, 1);
        params.subject_alt_names.push(SanType::URI(identity.to_uri().try_into().expect("a URI is ASCII")));
        if roles.iter().any(|role| role.is_node()) {
            params.subject_alt_names.push(SanType::DnsName(NODE_DNS_NAME.try_into().expect("ASCII")));
        }
        let key = KeyPair::generate().expect("ring makes keys");
        let certificate = params.signed_by(&key, &self.0).expect("ring signs");
        (self.0.pem(), certificate.pem(), key.serialize_pem())
    }
}

/// Credentials whose bearer believes that it is `now`.
pub fn credentials(
    ca: &str,
    certificate: &str,
    key: &str,
    now: Duration,
) -> Result<Credentials, CredentialsError> {
    Credentials::from_pem(ca.as_bytes(), certificate.as_bytes(), key.as_bytes(), Arc::new(At(now)))
}

/// The CA of the tests that need only one.
pub static CA: LazyLock<Ca> = LazyLock::new(Ca::new);

/// What a node of the usual cluster says of itself.
pub fn hello() -> Hello {
    Hello { cluster: Some(CLUSTER), node: Some(NodeId(1)) }
}

/// An endpoint on a free port of loopback.
pub async fn endpoint(credentials: &Credentials, services: &[Service]) -> Endpoint {
    let (key, seed) = (&[7; 64], [9; 32]);
    Endpoint::bind(Arc::new(TokioNetwork), "127.0.0.1:0", services, credentials, key, seed)
        .await
        .expect("loopback has free ports")
}

/// An endpoint of a build that speaks other protocols.
pub async fn endpoint_speaking(numbers: &[u16], credentials: &Credentials, services: &[Service]) -> Endpoint {
    let (key, seed) = (&[7; 64], [1; 32]);
    let network = Arc::new(TokioNetwork);
    Endpoint::bind_speaking(numbers, network, "127.0.0.1:0", services, credentials, key, seed)
        .await
        .expect("loopback has free ports")
}

/// A dialler of the usual cluster.
pub async fn dialler(roles: &[Role]) -> Dialler {
    dialler_with(&CA.issue(roles, "anna"), Hello { cluster: Some(CLUSTER), node: None }).await
}

/// A dialler that says what it is told to.
pub async fn dialler_with(credentials: &Credentials, hello: Hello) -> Dialler {
    Dialler::new(endpoint(credentials, &[]).await, move || hello.clone())
}

/// A node that listens.
pub struct Listener {
    /// Its endpoint; the node is gone when it is closed.
    pub endpoint: Endpoint,
    /// `host:port`.
    pub address: String,
    /// What came of each connection, in order.
    greeted: mpsc::UnboundedReceiver<Result<Accepted, GreetError>>,
}

impl Listener {
    /// A node of the usual cluster with all node roles.
    pub async fn start(services: &[Service]) -> Self {
        let roles = [Role::Coordinator, Role::Worker, Role::Gateway];
        Self::start_with(&CA.issue(&roles, "a"), services, hello()).await
    }

    /// A node that says what it is told to.
    pub async fn start_with(credentials: &Credentials, services: &[Service], hello: Hello) -> Self {
        Self::on(endpoint(credentials, services).await, hello).await
    }

    /// A node that speaks the protocols `numbers`, the latest first.
    pub async fn speaking(numbers: &[u16], services: &[Service]) -> Self {
        let roles = [Role::Coordinator, Role::Worker, Role::Gateway];
        Self::on(endpoint_speaking(numbers, &CA.issue(&roles, "a"), services).await, hello()).await
    }

    async fn on(endpoint: Endpoint, hello: Hello) -> Self {
        let address = endpoint.local_address().expect("it is bound").to_string();
        let (sender, greeted) = mpsc::unbounded_channel();
        let accepting = endpoint.clone();
        tokio::spawn(async move {
            while let Some(incoming) = accepting.accept().await {
                let (sender, hello) = (sender.clone(), hello.clone());
                tokio::spawn(async move {
                    // A test that has seen enough does not listen any longer.
                    let _ = sender.send(Accepted::greet(incoming, || hello).await);
                });
            }
        });
        Self { endpoint, address, greeted }
    }

    /// What came of the next connection.
    pub async fn greeted(&mut self) -> Result<Accepted, GreetError> {
        within("a connection", self.greeted.recv()).await.expect("it listens")
    }

    /// The next connection.
    pub async fn link(&mut self) -> Link {
        self.greeted().await.expect("it was greeted").link
    }
}

/// Waits for something that comes soon or never.
///
/// # Panics
/// When it does not come.
pub async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(WAIT, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}
