//! Endpoints: dialling, accepting, and the greeting of both sides.
//!
//! One endpoint is one UDP socket; the ALPN of a connection says which service it is for. Before anything else both sides
//! compare the clusters that their certificates were issued for, and greet each other with their cluster's id, so that a
//! node of another cluster, or one whose folder was emptied, is turned away with a typed error.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::{HandshakeData, QuicClientConfig, QuicServerConfig};
use quinn::{Connection, ConnectionError, RecvStream, SendStream, TransportErrorCode, VarInt};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;

use super::network::{Network, of_family};
use super::roles;
use super::service::{PROTOCOLS, Service, agreed};
use super::stream::{StreamError, read_message, write_message};
use super::tls::{Clock, Credentials, CredentialsError, IdentityError, NODE_DNS_NAME, PeerIdentity};
use super::watch::WATCHES_MAX;
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
/// Connections of one endpoint: every node of a large cluster and as many clients. Beyond, whoever comes is refused at once.
const CONNECTIONS_MAX: usize = 8_192;

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
    /// Who this side is.
    identity: Arc<PeerIdentity>,
    /// The protocols that it speaks, the latest first.
    numbers: Arc<[u16]>,
}

/// A connection that came in, its handshake still to be done by [`Accepted::greet`].
pub struct Incoming {
    quic: quinn::Incoming,
    /// Who this side is.
    identity: Arc<PeerIdentity>,
    numbers: Arc<[u16]>,
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
        Self::bind_speaking(PROTOCOLS, network, address, services, credentials, reset_key, seed).await
    }

    /// As [`Endpoint::bind`], for a node that speaks the protocols `numbers`, the latest first.
    ///
    /// # Errors
    /// As [`Endpoint::bind`].
    pub async fn bind_speaking(
        numbers: &[u16],
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
        let server =
            if services.is_empty() { None } else { Some(server_config(services, numbers, credentials)?) };
        let clients = Service::ALL
            .into_iter()
            .map(|service| Ok((service, client_config(service, numbers, credentials)?)))
            .collect::<Result<_, EndpointError>>()?;
        let quic = quinn::Endpoint::new_with_abstract_socket(config, server, socket, network.runtime())
            .map_err(bind)?;
        let identity = Arc::new(credentials.identity().clone());
        Ok(Self { quic, network, clients: Arc::new(clients), identity, numbers: numbers.into() })
    }

    /// The address that is bound.
    pub fn local_address(&self) -> Option<SocketAddr> {
        self.quic.local_addr().ok()
    }

    /// The next connection. `None` once the endpoint is closed.
    pub async fn accept(&self) -> Option<Incoming> {
        loop {
            let quic = self.quic.accept().await?;
            if self.quic.open_connections() < CONNECTIONS_MAX {
                let (identity, numbers) = (self.identity.clone(), self.numbers.clone());
                return Some(Incoming { quic, identity, numbers });
            }
            quic.refuse();
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
    numbers: &[u16],
    credentials: &Credentials,
) -> Result<quinn::ServerConfig, EndpointError> {
    // In the server's order the first that the client speaks too is taken.
    let alpn = services.iter().flat_map(|service| numbers.iter().map(|number| service.alpn(*number)));
    let alpn: Vec<String> = alpn.collect();
    let tls = QuicServerConfig::try_from(credentials.server(&alpn)?).map_err(|_| EndpointError::Cipher)?;
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config
        .transport_config(transport())
        .time_source(Arc::new(Clock(credentials.clock().clone())))
        .max_incoming(HANDSHAKES_MAX)
        .migration(false);
    Ok(config)
}

fn client_config(
    service: Service,
    numbers: &[u16],
    credentials: &Credentials,
) -> Result<quinn::ClientConfig, EndpointError> {
    let alpn: Vec<String> = numbers.iter().map(|number| service.alpn(*number)).collect();
    let tls = QuicClientConfig::try_from(credentials.client(&alpn)?).map_err(|_| EndpointError::Cipher)?;
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
    /// The number of the protocol that both sides speak.
    pub protocol: u16,
    /// Room for the watches that the other side may hold here.
    watches: Arc<Semaphore>,
}

impl Link {
    fn new(connection: Connection, peer: PeerIdentity, hello: Hello, address: &str, protocol: u16) -> Self {
        let watches = Arc::new(Semaphore::new(WATCHES_MAX));
        Self { connection, peer, hello, address: address.into(), protocol, watches }
    }

    /// Room for one more watch of the other side, until it is dropped; `None` when it holds as many as it may.
    pub(super) fn watch_permit(&self) -> Option<OwnedSemaphorePermit> {
        self.watches.clone().try_acquire_owned().ok()
    }

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

    /// How long a packet and its acknowledgement take at present, as the connection measures it.
    pub fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// Completes when the connection is gone.
    pub async fn closed(&self) {
        self.connection.closed().await;
    }

    /// Closes the connection and all its streams.
    pub fn close(&self) {
        self.connection.close(VarInt::from_u32(0), b"");
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
    /// The two sides have no protocol in common: the other does not offer the service, or speaks other numbers.
    #[error("{address} does not speak {}; this side speaks {ours:?}", service.map_or("any service of this node", Service::name))]
    Protocol {
        /// The address.
        address: String,
        /// The service that was dialled; none where the other side dialled.
        service: Option<Service>,
        /// The numbers that this side speaks.
        ours: Vec<u16>,
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
            Self::Handshake { .. } | Self::Protocol { .. } | Self::Identity(_) => {
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
    pub async fn greet(incoming: Incoming, ours: impl FnOnce() -> Hello) -> Result<Self, GreetError> {
        let Incoming { quic: incoming, identity, numbers } = incoming;
        let address = incoming.remote_address().to_string();
        let failed = |reason: String| GreetError::Handshake { address: address.clone(), reason };
        let greet = async {
            let connection = incoming.await.map_err(|error| match is_about_protocols(&error) {
                true => {
                    GreetError::Protocol { address: address.clone(), service: None, ours: numbers.to_vec() }
                }
                false => failed(error.to_string()),
            })?;
            let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
            let alpn = data.and_then(|data| data.protocol).unwrap_or_default();
            let (service, number) =
                agreed(&alpn, &numbers).ok_or_else(|| failed("no protocol was agreed on".to_owned()))?;
            let peer = PeerIdentity::of(&connection)?;
            let (mut send, mut recv) = connection.accept_bi().await.map_err(|e| failed(e.to_string()))?;
            let hello: Hello = read_message(&mut recv, Kind::Hello).await?;
            let ours = ours();
            let verdict = check_certificate(&identity, &peer)
                .and_then(|()| roles::check(roles::of_service(service), &peer))
                .and_then(|()| check_cluster(ours.cluster, hello.cluster));
            let answer = verdict.clone().map(|()| ours);
            write_message(&mut send, Kind::Hello, &answer).await?;
            super::stream::finish(&mut send);
            if let Err(error) = verdict {
                tracing::warn!(target: "audit", peer = %peer.to_uri(), service = service.name(), %error, "turned away");
                // The refusal must arrive before the close.
                let _ = send.stopped().await;
                connection.close(VarInt::from_u32(1), b"refused");
                return Err(error.into());
            }
            Ok(Self { service, link: Link::new(connection, peer, hello, &address, number) })
        };
        match tokio::time::timeout(Duration::from_millis(DIAL_MS_MAX), greet).await {
            Ok(result) => result,
            Err(_) => Err(failed("it did not greet in time".to_owned())),
        }
    }
}

/// Whether a handshake failed because no protocol is common to both sides (RFC 9001 section 8.1).
fn is_about_protocols(error: &ConnectionError) -> bool {
    /// TLS's alert `no_application_protocol` (RFC 7301 section 3.2).
    const NO_APPLICATION_PROTOCOL: u8 = 120;
    let no_protocol = TransportErrorCode::crypto(NO_APPLICATION_PROTOCOL);
    match error {
        ConnectionError::TransportError(error) => error.code == no_protocol,
        ConnectionError::ConnectionClosed(close) => close.error_code == no_protocol,
        ConnectionError::VersionMismatch
        | ConnectionError::ApplicationClosed(_)
        | ConnectionError::Reset
        | ConnectionError::TimedOut
        | ConnectionError::LocallyClosed
        | ConnectionError::CidsExhausted => false,
    }
}

/// Whether both certificates were issued for one cluster: several clusters may trust one CA.
fn check_certificate(ours: &PeerIdentity, theirs: &PeerIdentity) -> Result<(), ControlError> {
    if ours.cluster == theirs.cluster {
        return Ok(());
    }
    let (ours, theirs) = (ours.cluster.clone(), theirs.cluster.clone());
    Err(ControlError::ForeignCertificate { ours, theirs })
}

fn check_cluster(ours: Option<ClusterId>, theirs: Option<ClusterId>) -> Result<(), ControlError> {
    match (ours, theirs) {
        (Some(ours), Some(theirs)) if ours != theirs => Err(ControlError::WrongCluster { ours, theirs }),
        (Some(ClusterId(_)) | None, Some(ClusterId(_)) | None) => Ok(()),
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

    /// Connects to a node at `host:port`.
    ///
    /// # Errors
    /// [`GreetError`] when the address is not known, nobody answers in time, or the greeting is refused.
    pub async fn dial(&self, address: &str, service: Service) -> Result<Link, GreetError> {
        let failed = |reason: String| GreetError::Handshake { address: address.to_owned(), reason };
        let dial = async {
            let connection = self.connect(address, service).await.map_err(|failure| match failure {
                DialFailure::Protocol => {
                    let ours = self.endpoint.numbers.to_vec();
                    GreetError::Protocol { address: address.to_owned(), service: Some(service), ours }
                }
                DialFailure::Other(reason) => failed(reason),
            })?;
            let data = connection.handshake_data().and_then(|data| data.downcast::<HandshakeData>().ok());
            let alpn = data.and_then(|data| data.protocol).unwrap_or_default();
            let (_, number) = agreed(&alpn, &self.endpoint.numbers)
                .ok_or_else(|| failed("no protocol was agreed on".to_owned()))?;
            let peer = PeerIdentity::of(&connection)?;
            if let Err(error) = check_certificate(&self.endpoint.identity, &peer) {
                tracing::warn!(target: "audit", peer = %peer.to_uri(), address, %error, "turned away");
                connection.close(VarInt::from_u32(1), b"refused");
                return Err(error.into());
            }
            let (mut send, mut recv) = connection.open_bi().await.map_err(|e| failed(e.to_string()))?;
            let ours = (self.hello)();
            write_message(&mut send, Kind::Hello, &ours).await?;
            super::stream::finish(&mut send);
            let theirs: Result<Hello, ControlError> = read_message(&mut recv, Kind::Hello).await?;
            let theirs = theirs?;
            check_cluster(ours.cluster, theirs.cluster)?;
            Ok(Link::new(connection, peer, theirs, address, number))
        };
        match tokio::time::timeout(Duration::from_millis(DIAL_MS_MAX), dial).await {
            Ok(result) => result,
            Err(_) => Err(failed(format!("no answer within {DIAL_MS_MAX} ms"))),
        }
    }

    /// Tries the addresses of a name that the socket can reach, one after the other. Each gets its share of the time that is
    /// left, so that the last is tried too when those ahead of it are silent.
    async fn connect(&self, address: &str, service: Service) -> Result<Connection, DialFailure> {
        let resolved = self.endpoint.network.resolve(address).await;
        let resolved = resolved.map_err(|error| DialFailure::Other(error.to_string()))?;
        let addresses = of_family(&resolved, self.endpoint.local_address());
        let deadline = Instant::now() + Duration::from_millis(DIAL_MS_MAX);
        let mut failure = format!("none of its addresses {resolved:?} can be reached from this socket");
        for (at, left) in addresses.iter().zip((1..=addresses.len() as u32).rev()) {
            let config = self.endpoint.clients[&service].clone();
            let connecting = match self.endpoint.quic.connect_with(config, *at, NODE_DNS_NAME) {
                Ok(connecting) => connecting,
                Err(error) => {
                    failure = error.to_string();
                    continue;
                }
            };
            let within = deadline.saturating_duration_since(Instant::now()) / left;
            match tokio::time::timeout(within, connecting).await {
                Ok(Ok(connection)) => return Ok(connection),
                // Whoever is there is the node, of another build; its other addresses lead to the same.
                Ok(Err(error)) if is_about_protocols(&error) => return Err(DialFailure::Protocol),
                Ok(Err(error)) => failure = error.to_string(),
                Err(_) => failure = format!("{at} does not answer"),
            }
        }
        Err(DialFailure::Other(failure))
    }
}

/// Why no connection came about.
enum DialFailure {
    /// No protocol is common to both sides.
    Protocol,
    Other(String),
}

/// The id of a node, when the greeting must name one.
///
/// # Errors
/// [`ControlError::Malformed`] when it names none.
pub fn node_of(hello: &Hello) -> Result<NodeId, ControlError> {
    hello.node.ok_or_else(|| ControlError::Malformed { what: "a node greeted without its id".to_owned() })
}
