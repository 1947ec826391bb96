//! Mutual TLS 1.3 with the cluster's own CA, and who a peer is.
//!
//! A certificate's URI names cluster, roles and name: `roost://demo/coordinator+worker/a`. Certificates of nodes also bear
//! the DNS name [`NODE_DNS_NAME`], which every dialler asks for, so that a client's certificate cannot pass for a node's;
//! which node it is says the URI. The clock is given, so that validity is judged by the simulator's time there.

use std::collections::BTreeSet;
use std::fmt::{self, Debug};
use std::str::FromStr;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::time_provider::TimeProvider;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::ids::{ClusterName, Tenant};

/// The DNS name in the certificates of nodes, and in no other.
pub const NODE_DNS_NAME: &str = "node.roost";

/// Wall-clock time.
pub trait WallClock: Debug + Send + Sync + 'static {
    /// The time since 1970.
    fn since_epoch(&self) -> Duration;

    /// The time since 1970 in ms, as records hold it.
    fn now_ms(&self) -> u64 {
        self.since_epoch().as_millis() as u64
    }
}

/// What a certificate allows its bearer to be or to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Role {
    /// Takes part in Raft.
    Coordinator,
    /// Hosts versions.
    Worker,
    /// Speaks for other tenants.
    Gateway,
    /// Asks for inference and reads the view.
    Client,
    /// Changes versions, traffic and members.
    Operator,
}

impl Role {
    /// Every role.
    pub const ALL: [Self; 5] = [Self::Coordinator, Self::Worker, Self::Gateway, Self::Client, Self::Operator];

    /// The role's name in certificates and configs.
    pub fn name(self) -> &'static str {
        match self {
            Self::Coordinator => "coordinator",
            Self::Worker => "worker",
            Self::Gateway => "gateway",
            Self::Client => "client",
            Self::Operator => "operator",
        }
    }

    /// Whether it is a role of nodes.
    pub fn is_node(self) -> bool {
        match self {
            Self::Coordinator | Self::Worker | Self::Gateway => true,
            Self::Client | Self::Operator => false,
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Role {
    type Err = IdentityError;
    fn from_str(text: &str) -> Result<Self, IdentityError> {
        let role = Self::ALL.into_iter().find(|role| role.name() == text);
        role.ok_or_else(|| IdentityError::Role(text.to_owned()))
    }
}

/// Why a certificate is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// It is not a certificate.
    #[error("not an X.509 certificate: {0}")]
    Certificate(String),
    /// It has no URI `roost://CLUSTER/ROLES/NAME`.
    #[error("the certificate has no URI roost://CLUSTER/ROLES/NAME")]
    NoUri,
    /// A role is not known.
    #[error("unknown role {0:?}; roles are coordinator, worker, gateway, client and operator")]
    Role(String),
    /// A name in the URI is not valid.
    #[error("the certificate's URI: {0}")]
    Name(#[from] crate::ids::NameError),
    /// The peer sent no certificate.
    #[error("the peer sent no certificate")]
    Missing,
}

/// Who a certificate says its bearer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The cluster's name.
    pub cluster: ClusterName,
    /// What it may be and do.
    pub roles: BTreeSet<Role>,
    /// Its name: a node's, or a tenant's.
    pub name: Tenant,
}

impl PeerIdentity {
    /// The URI that stands for this in a certificate.
    pub fn to_uri(&self) -> String {
        let roles: Vec<_> = self.roles.iter().map(|role| role.name()).collect();
        format!("roost://{}/{}/{}", self.cluster, roles.join("+"), self.name)
    }

    /// Reads a URI as in a certificate.
    ///
    /// # Errors
    /// [`IdentityError`] when it is none.
    pub fn from_uri(uri: &str) -> Result<Self, IdentityError> {
        let mut parts = uri.strip_prefix("roost://").ok_or(IdentityError::NoUri)?.split('/');
        let (Some(cluster), Some(roles), Some(name), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(IdentityError::NoUri);
        };
        let roles = roles.split('+').map(Role::from_str).collect::<Result<_, _>>()?;
        Ok(Self { cluster: ClusterName::new(cluster)?, roles, name: Tenant::new(name)? })
    }

    /// Reads a certificate.
    ///
    /// # Errors
    /// [`IdentityError`] when it is none, or has no URI of Roost's.
    pub fn from_certificate(der: &[u8]) -> Result<Self, IdentityError> {
        let (_, certificate) =
            X509Certificate::from_der(der).map_err(|error| IdentityError::Certificate(error.to_string()))?;
        let names = certificate
            .subject_alternative_name()
            .map_err(|error| IdentityError::Certificate(error.to_string()))?
            .ok_or(IdentityError::NoUri)?;
        let uri = names.value.general_names.iter().find_map(|name| match name {
            GeneralName::URI(uri) if uri.starts_with("roost://") => Some(*uri),
            _ => None,
        });
        Self::from_uri(uri.ok_or(IdentityError::NoUri)?)
    }

    /// Who is at the other end of a connection.
    ///
    /// # Errors
    /// [`IdentityError`] when it sent no certificate, or one without a URI of Roost's.
    pub fn of(connection: &quinn::Connection) -> Result<Self, IdentityError> {
        let chain = connection.peer_identity().and_then(|any| any.downcast::<Vec<CertificateDer<'_>>>().ok());
        Self::from_certificate(chain.as_ref().and_then(|chain| chain.first()).ok_or(IdentityError::Missing)?)
    }

    /// Whether it has any of the roles.
    pub fn has_any(&self, roles: &[Role]) -> bool {
        roles.iter().any(|role| self.roles.contains(role))
    }

    /// Its roles, as users read them.
    pub fn roles_text(&self) -> String {
        self.roles.iter().map(|role| role.name()).collect::<Vec<_>>().join("+")
    }
}

/// Why credentials cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file is not PEM, or holds nothing of the kind.
    #[error("{what} is not usable PEM: {reason}")]
    Pem {
        /// Which of the three.
        what: &'static str,
        /// What reading it said.
        reason: String,
    },
    /// The TLS library refuses them.
    #[error("the certificate, its key and the CA do not fit together: {0}")]
    Tls(#[from] rustls::Error),
    /// The CA's certificates cannot verify clients.
    #[error("the CA cannot verify certificates: {0}")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    /// The certificate is no identity.
    #[error(transparent)]
    Identity(#[from] IdentityError),
}

/// A certificate with its key, and the CAs that others are judged by.
#[derive(Debug)]
pub struct Credentials {
    roots: Arc<rustls::RootCertStore>,
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    identity: PeerIdentity,
    clock: Arc<dyn WallClock>,
}

impl Credentials {
    /// Reads PEM: the CAs, the certificate (with its chain), its key.
    ///
    /// # Errors
    /// [`CredentialsError`] when one of them is not PEM, or the certificate is no identity of Roost's.
    pub fn from_pem(
        ca: &[u8],
        certificate: &[u8],
        key: &[u8],
        clock: Arc<dyn WallClock>,
    ) -> Result<Self, CredentialsError> {
        let certificates = |what, pem: &[u8]| {
            let read: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(pem).collect();
            match read {
                Ok(list) if !list.is_empty() => Ok(list),
                Ok(_) => Err(CredentialsError::Pem { what, reason: "it holds no certificate".to_owned() }),
                Err(error) => Err(CredentialsError::Pem { what, reason: error.to_string() }),
            }
        };
        let mut roots = rustls::RootCertStore::empty();
        for root in certificates("the CA", ca)? {
            roots.add(root)?;
        }
        let chain = certificates("the certificate", certificate)?;
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|error| CredentialsError::Pem { what: "the key", reason: error.to_string() })?;
        let identity = PeerIdentity::from_certificate(&chain[0])?;
        Ok(Self { roots: Arc::new(roots), chain, key, identity, clock })
    }

    /// Who these credentials say that one is.
    pub fn identity(&self) -> &PeerIdentity {
        &self.identity
    }

    /// The clock that validity is judged by.
    pub fn clock(&self) -> &Arc<dyn WallClock> {
        &self.clock
    }

    pub(super) fn server(&self, alpn: &[String]) -> Result<rustls::ServerConfig, CredentialsError> {
        let verifier =
            WebPkiClientVerifier::builder_with_provider(self.roots.clone(), Self::provider()).build()?;
        let mut config =
            rustls::ServerConfig::builder_with_details(Self::provider(), Arc::new(Clock(self.clock.clone())))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_client_cert_verifier(verifier)
                .with_single_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = alpn.iter().map(|name| name.clone().into_bytes()).collect();
        // Connections live long; a ticket would save one round trip at the price of state that outlives a revocation.
        config.send_tls13_tickets = 0;
        Ok(config)
    }

    pub(super) fn client(&self, alpn: &[String]) -> Result<rustls::ClientConfig, CredentialsError> {
        let mut config =
            rustls::ClientConfig::builder_with_details(Self::provider(), Arc::new(Clock(self.clock.clone())))
                .with_protocol_versions(&[&rustls::version::TLS13])?
                .with_root_certificates(self.roots.clone())
                .with_client_auth_cert(self.chain.clone(), self.key.clone_key())?;
        config.alpn_protocols = alpn.iter().map(|name| name.clone().into_bytes()).collect();
        config.resumption = Resumption::disabled();
        Ok(config)
    }

    fn provider() -> Arc<CryptoProvider> {
        Arc::new(rustls::crypto::ring::default_provider())
    }
}

/// The given clock, as rustls and quinn want it.
#[derive(Debug)]
pub(super) struct Clock(pub(super) Arc<dyn WallClock>);

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        Some(UnixTime::since_unix_epoch(self.0.since_epoch()))
    }
}

impl quinn::TimeSource for Clock {
    fn now(&self) -> SystemTime {
        UNIX_EPOCH + self.0.since_epoch()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_round_trip() {
        for uri in ["roost://demo/coordinator+worker/a", "roost://demo/operator/anna"] {
            assert_eq!(PeerIdentity::from_uri(uri).unwrap().to_uri(), uri);
        }
        for uri in
            ["", "https://demo/worker/a", "roost://demo/worker", "roost://demo/king/a", "roost://demo//a"]
        {
            PeerIdentity::from_uri(uri).unwrap_err();
        }
    }
}
