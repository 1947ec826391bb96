//! Endpoints: dialling, accepting, and the greeting of both sides.
//!
//! One endpoint is one UDP socket; the ALPN of a connection says which service it is for. Both sides greet each other
//! with their cluster's id before anything else, so that a node of another cluster, or one whose folder was emptied, is
//! turned away with a typed error.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{Connection, RecvStream, SendStream, VarInt};

use super::network::Network;
use super::stream::{StreamError, read_message, write_message};
use super::tls::{Clock, Credentials, CredentialsError, IdentityError, NODE_DNS_NAME, PeerIdentity, Role};
use crate::error::ControlError;
use crate::frame::Kind;
use crate::ids::{ClusterId, NodeId};
use crate::messages::control::Hello;

/// Shorter than NAT tables forget, and a quarter of [`IDLE_MS_MAX`], so that three lost in a row do not kill a connection.
const KEEP_ALIVE_MS: u64 = 500;
/// A killed process is silent over UDP; this is how long its peers believe in it.
const IDLE_MS_MAX: u32 = 2_000;
/// What a dialler waits for a handshake and a greeting: one retransmission of the first flight and then some.
const DIAL_MS_MAX: u64 = 2_000;
/// Requests in flight on one connection; admission refuses long before.
const STREAMS_MAX: u32 = 4_096;
/// Holds a batch of images in flight on a 1 ms link at 10 Gbit/s.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
/// All streams of a connection together.
const CONNECTION_WINDOW_BYTES: u32 = 64 << 20;
/// Handshakes that one endpoint carries at once; more are refused at once, so that a flood costs no memory.
const HANDSHAKES_MAX: usize = 1_024;

/// What a connection is for. Each has its own connections, so that a bundle in transfer never delays a vote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Service {
    /// Inference.
    Infer,
    /// Changes, reads, watches, heartbeats.
    Control,
    /// Coordinators among themselves.
    Raft,
    /// Bundles.
    Bundle,
}

impl Service {
    /// Every service.
    pub const ALL: [Self; 4] = [Self::Infer, Self::Control, Self::Raft, Self::Bundle];

    /// The name and number of the protocol, as TLS negotiates it.
    pub fn alpn(self) -> &'static str {
        match self {
            Self::Infer => "roost-infer/1",
            Self::Control => "roost-control/1",
            Self::Raft => "roost-raft/1",
            Self::Bundle => "roost-bundle/1",
        }
    }

    /// The roles that may connect.
    pub fn roles(self) -> &'static [Role] {
        match self {
            Self::Infer | Self::Control => &Role::ALL,
            Self::Raft => &[Role::Coordinator],
            Self::Bundle => &[Role::Coordinator, Role::Worker, Role::Operator],
        }
    }
}

/// Why an endpoint could not be made.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// The address could not be bound.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The address.
        address: String,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// The credentials are not usable.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// TLS lacks the cipher that QUIC starts with.
    #[error("TLS has no cipher for QUIC's first packets")]
    Cipher,
}

/// A UDP socket that speaks QUIC. Cloning shares it.
#[derive(Clone)]
pub struct Endpoint {
    quic: quinn::Endpoint,
    network: Arc<dyn Network>,
    clients: Arc<BTreeMap<Service, quinn::ClientConfig>>,
}

impl Endpoint {
    /// Binds `address` and offers `services`; with none, the endpoint only dials.
    ///
    /// `reset_key` is kept in the data folder, so that peers of an earlier process of this node learn at once that their
    /// connections are gone (RFC 9000 §10.3). `seed` feeds connection ids.
    ///
    /// # Errors
    /// [`EndpointError`] when the address is in use or the credentials do not fit.
    pub async fn bind(
        network: Arc<dyn Network>,
        address: &str,
        services: &[Service],
        credentials: &Credentials,
        reset_key: &[u8; 64],
        seed: [u8; 32],
    ) -> Result<Self, EndpointError> {
        let bind = |source| EndpointError::Bind { address: address.to_owned(), source };
        let socket = network.bind(address).await.map_err(bind)?;
        let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset_key);
        let mut config = quinn::EndpointConfig::new(Arc::new(key));
        config.rng_seed(Some(seed));
        let server = if services.is_empty() { None } else { Some(server_config(services, credentials)?) };
        let clients = Service::ALL
            .into_iter()
            .map(|service| Ok((service, client_config(service, credentials)?)))
            .collect::<Result<_, EndpointError>>()?;
        let quic = quinn::Endpoint::new_with_abstract_socket(config, server, socket, network.runtime())
            .map_err(bind)?;
        Ok(Self { quic, network, clients: Arc::new(clients) })
    }

    /// The address that is bound.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.quic.local_addr().ok()
    }

    /// The next connection, its handshake still to be done by [`Accepted::greet`]. `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<quinn::Incoming> {
        loop {
            let incoming = self.quic.accept().await?;
            if self.quic.open_connections() < HANDSHAKES_MAX * 8 {
                return Some(incoming);
            }
            incoming.refuse();
        }
    }

    /// Closes all connections and waits until their peers were told, or it is plain that they do not listen.
    pub async fn close(&self) {
        self.quic.close(VarInt::from_u32(0), b"stopping");
        // Bounded by the idle timeout; not worth waiting longer for peers that are gone themselves.
        let _ = tokio::time::timeout(Duration::from_millis(KEEP_ALIVE_MS), self.quic.wait_idle()).await;
    }
}

fn transport() -> Arc<quinn::TransportConfig> {
    let mut config = quinn::TransportConfig::default();
    config
        .keep_alive_interval(Some(Duration::from_millis(KEEP_ALIVE_MS)))
        .max_idle_timeout(Some(VarInt::from_u32(IDLE_MS_MAX).into()))
        .max_concurrent_bidi_streams(VarInt::from_u32(STREAMS_MAX))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(CONNECTION_WINDOW_BYTES))
        .send_window(u64::from(CONNECTION_WINDOW_BYTES))
        .datagram_receive_buffer_size(None)
        .congestion_controller_factory(Arc::new(CubicConfig::default()));
    Arc::new(config)
}

fn server_config(
    services: &[Service],
    credentials: &Credentials,
) -> Result<quinn::ServerConfig, EndpointError> {
    let alpn: Vec<_> = services.iter().map(|service| service.alpn()).collect();
    let tls = QuicServerConfig::try_from(credentials.server(&alpn)?).map_err(|_| EndpointError::Cipher)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config
        .transport_config(transport())
        .time_source(Arc::new(Clock(credentials.clock().clone())))
        .max_incoming(HANDSHAKES_MAX)
        .migration(false);
    Ok(config)
}

fn client_config(service: Service, credentials: &Credentials) -> Result<quinn::ClientConfig, EndpointError> {
    let tls =
        QuicClientConfig::try_from(credentials.client(service.alpn())?).map_err(|_| EndpointError::Cipher)?;
    let mut config = quinn::ClientConfig::new(Arc::new(tls));
    config.transport_config(transport());
    Ok(config)
}

/// A greeted connection: who is at the other end, and streams to it.
#[derive(Debug, Clone)]
pub struct Link {
    connection: Connection,
    /// Who the certificate says that it is.
    pub peer: PeerIdentity,
    /// What it said of itself.
    pub hello: Hello,
    /// Its address, as it was dialled or as it came.
    pub address: Arc<str>,
}

impl Link {
    /// Opens a stream for one request.
    ///
    /// # Errors
    /// [`StreamError::Broken`] when the connection is gone.
    pub async fn open(&self) -> Result<(SendStream, RecvStream), StreamError> {
        Ok(self.connection.open_bi().await?)
    }

    /// The next request's stream.
    ///
    /// # Errors
    /// [`StreamError::Broken`] when the connection is gone.
    pub async fn accept(&self) -> Result<(SendStream, RecvStream), StreamError> {
        Ok(self.connection.accept_bi().await?)
    }

    /// Whether it can still be used.
    pub fn is_open(&self) -> bool {
        self.connection.close_reason().is_none()
    }

    /// Completes when the connection is gone.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Closes the connection and all its streams.
    pub fn close(&self) {
        self.connection.close(VarInt::from_u32(0), b"");
    }

    /// The smoothed round-trip time.
    pub fn rtt(&self) -> Duration {
        self.connection.rtt()
    }

    /// Sends a cold message on a stream of its own and reads its answer.
    ///
    /// # Errors
    /// [`StreamError`] when the connection breaks or what comes back is no such message.
    pub async fn ask<Q: serde::Serialize, A: serde::de::DeserializeOwned>(
        &self,
        ask: (Kind, &Q),
        answer: Kind,
    ) -> Result<A, StreamError> {
        let (mut send, mut recv) = self.open().await?;
        write_message(&mut send, ask.0, ask.1).await?;
        super::stream::finish(&mut send);
        read_message(&mut recv, answer).await
    }
}

/// A connection that was accepted and greeted.
#[derive(Debug)]
pub struct Accepted {
    /// What it is for.
    pub service: Service,
    /// The connection.
    pub link: Link,
}

/// Why a connection was not made.
#[derive(Debug, thiserror::Error)]
pub enum GreetError {
    /// The handshake failed, or took too long.
    #[error("no connection to {address}: {reason}")]
    Handshake {
        /// The address.
        address: String,
        /// What failed.
        reason: String,
    },
    /// The peer's certificate is no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// The other side turned this one away, or is turned away.
    #[error(transparent)]
    Refused(#[from] ControlError),
    /// The greeting was no greeting.
    #[error(transparent)]
    Stream(#[from] StreamError),
}

impl GreetError {
    /// The error as the control plane says it.
    pub fn into_control(self, address: &str) -> ControlError {
        match self {
            Self::Refused(error) => error,
            Self::Stream(error) => error.into_control(address),
            Self::Handshake { .. } | Self::Identity(_) => {
                ControlError::Unreachable { node: address.to_owned(), reason: crate::error::reason(self) }
            }
        }
    }
}

impl Accepted {
    /// Does the handshake and the greeting of a connection that came in. `ours` says what this side is, at this moment.
    ///
    /// # Errors
    /// [`GreetError`] when the peer is not of this cluster, lacks the role for the service, or does not greet in time. It
    /// was told, and the connection is closed.
    pub async fn greet(incoming: quinn::Incoming, ours: impl FnOnce() -> Hello) -> Result<Self, GreetError> {
        let address = incoming.remote_address().to_string();
        let failed = |reason: String| GreetError::Handshake { address: address.clone(), reason };
        let greet = async {
            let connection = incoming.await.map_err(|error| failed(error.to_string()))?;
            let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
            let alpn = data.and_then(|data| data.protocol).unwrap_or_default();
            let service = Service::ALL.into_iter().find(|service| service.alpn().as_bytes() == alpn);
            let service = service.ok_or_else(|| failed("no protocol was agreed on".to_owned()))?;
            let peer = PeerIdentity::of(&connection)?;
            let (mut send, mut recv) = connection.accept_bi().await.map_err(|e| failed(e.to_string()))?;
            let hello: Hello = read_message(&mut recv, Kind::Hello).await?;
            let ours = ours();
            let verdict =
                check_service(service, &peer).and_then(|()| check_cluster(ours.cluster, hello.cluster));
            let answer = verdict.clone().map(|()| ours);
            write_message(&mut send, Kind::Hello, &answer).await?;
            super::stream::finish(&mut send);
            if let Err(error) = verdict {
                // The refusal must arrive before the close.
                let _ = send.stopped().await;
                connection.close(VarInt::from_u32(1), b"refused");
                return Err(error.into());
            }
            Ok(Self { service, link: Link { connection, peer, hello, address: address.as_str().into() } })
        };
        match tokio::time::timeout(Duration::from_millis(DIAL_MS_MAX), greet).await {
            Ok(result) => result,
            Err(_) => Err(failed("it did not greet in time".to_owned())),
        }
    }
}

fn check_service(service: Service, peer: &PeerIdentity) -> Result<(), ControlError> {
    if peer.has_any(service.roles()) {
        return Ok(());
    }
    let needed: Vec<_> = service.roles().iter().map(|role| role.name()).collect();
    Err(ControlError::Forbidden {
        needed: needed.join(" or "),
        name: peer.name.to_string(),
        roles: peer.roles_text(),
    })
}

fn check_cluster(ours: Option<ClusterId>, theirs: Option<ClusterId>) -> Result<(), ControlError> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(ControlError::WrongCluster { ours, theirs }),
        _ => Ok(()),
    }
}

/// Dials nodes from an endpoint.
#[derive(Clone)]
pub struct Dialler {
    endpoint: Endpoint,
    hello: Arc<dyn Fn() -> Hello + Send + Sync>,
}

impl Dialler {
    /// A dialler that greets with what `hello` says at the moment.
    pub fn new(endpoint: Endpoint, hello: impl Fn() -> Hello + Send + Sync + 'static) -> Self {
        Self { endpoint, hello: Arc::new(hello) }
    }

    /// What it greets with at this moment.
    pub fn hello(&self) -> Hello {
        (self.hello)()
    }

    /// The endpoint that it dials from.
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Connects to a node at `host:port`.
    ///
    /// # Errors
    /// [`GreetError`] when the address is not known, nobody answers in time, or the greeting is refused.
    pub async fn dial(&self, address: &str, service: Service) -> Result<Link, GreetError> {
        let failed = |reason: String| GreetError::Handshake { address: address.to_owned(), reason };
        let dial = async {
            let at = self.endpoint.network.resolve(address).await.map_err(|e| failed(e.to_string()))?;
            let config = self.endpoint.clients[&service].clone();
            let connecting = self.endpoint.quic.connect_with(config, at, NODE_DNS_NAME);
            let connection = connecting.map_err(|e| failed(e.to_string()))?.await;
            let connection = connection.map_err(|e| failed(e.to_string()))?;
            let peer = PeerIdentity::of(&connection)?;
            let (mut send, mut recv) = connection.open_bi().await.map_err(|e| failed(e.to_string()))?;
            let ours = (self.hello)();
            write_message(&mut send, Kind::Hello, &ours).await?;
            super::stream::finish(&mut send);
            let theirs: Result<Hello, ControlError> = read_message(&mut recv, Kind::Hello).await?;
            let theirs = theirs?;
            check_cluster(ours.cluster, theirs.cluster)?;
            Ok(Link { connection, peer, hello: theirs, address: address.into() })
        };
        match tokio::time::timeout(Duration::from_millis(DIAL_MS_MAX), dial).await {
            Ok(result) => result,
            Err(_) => Err(failed(format!("no answer within {DIAL_MS_MAX} ms"))),
        }
    }
}

/// Links to nodes by address, one each, made when first needed and made anew when broken.
#[derive(Clone)]
pub struct Links {
    dialler: Dialler,
    service: Service,
    links: Arc<Mutex<BTreeMap<Arc<str>, Arc<Slot>>>>,
}

/// The link to one address.
#[derive(Default)]
struct Slot {
    /// Dials that were made; says whether one ended while a caller waited for its turn.
    dials: AtomicU64,
    last: tokio::sync::Mutex<Option<Result<Link, ControlError>>>,
}

impl Links {
    /// No links yet.
    pub fn new(dialler: Dialler, service: Service) -> Self {
        Self { dialler, service, links: Arc::default() }
    }

    /// The dialler that makes the links.
    pub fn dialler(&self) -> &Dialler {
        &self.dialler
    }

    /// The link to a node, dialled if there is none that works. Callers that come together share one dial and its outcome.
    /// The dial goes on when the caller gives up: a caller in a hurry, such as a vote, must not keep a slow link from
    /// ever being made.
    ///
    /// # Errors
    /// [`GreetError`] when it cannot be made.
    pub async fn to(&self, address: &str) -> Result<Link, GreetError> {
        let slot = {
            let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
            match links.get(address) {
                Some(slot) => slot.clone(),
                None => links.entry(address.into()).or_default().clone(),
            }
        };
        if let Ok(last) = slot.last.try_lock()
            && let Some(Ok(link)) = last.as_ref().filter(|last| last.as_ref().is_ok_and(Link::is_open))
        {
            return Ok(link.clone());
        }
        let seen = slot.dials.load(Ordering::Acquire);
        let (dialler, service, to) = (self.dialler.clone(), self.service, address.to_owned());
        let dial = tokio::spawn(async move {
            let mut last = slot.last.lock().await;
            match last.as_ref() {
                Some(Ok(link)) if link.is_open() => return Ok(link.clone()),
                Some(Err(error)) if slot.dials.load(Ordering::Acquire) > seen => return Err(error.clone()),
                Some(_) | None => {}
            }
            let dialled = dialler.dial(&to, service).await.map_err(|error| error.into_control(&to));
            *last = Some(dialled.clone());
            slot.dials.fetch_add(1, Ordering::AcqRel);
            dialled
        });
        match dial.await {
            Ok(dialled) => Ok(dialled?),
            Err(error) => {
                Err(GreetError::Handshake { address: address.to_owned(), reason: error.to_string() })
            }
        }
    }

    /// Forgets the nodes at other addresses than these, closing links to them.
    pub fn keep_only(&self, wanted: impl Fn(&str) -> bool) {
        let mut links = self.links.lock().unwrap_or_else(PoisonError::into_inner);
        links.retain(|address, slot| {
            let keep = wanted(address);
            if !keep && let Ok(last) = slot.last.try_lock() {
                last.iter().flatten().for_each(Link::close);
            }
            keep
        });
    }
}

/// The id of a node, when the greeting must name one.
///
/// # Errors
/// [`ControlError::Malformed`] when it names none.
pub fn node_of(hello: &Hello) -> Result<NodeId, ControlError> {
    hello.node.ok_or_else(|| ControlError::Malformed { what: "a node greeted without its id".to_owned() })
}
