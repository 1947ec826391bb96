//! A cluster's own CA, and the certificates that it issues.
//!
//! A certificate's URI says who its bearer is ([`PeerIdentity`]). Those of nodes also bear the DNS name that
//! every dialler asks for and may serve; those of clients and operators may only dial. The time that validity
//! counts from is given, so that the simulator's certificates are valid in its own time.

use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, PublicKeyData as _, SanType,
};
use roost_protocol::ClusterName;
use roost_protocol::quic::tls::{NODE_DNS_NAME, PeerIdentity};
use roost_protocol::quic::{Role, WallClock};
use time::OffsetDateTime;
use x509_parser::prelude::{FromDer as _, Pem as PemBlock, X509Certificate};

/// Certificates are valid from a day before they are made, since machines' clocks differ.
const SLACK: Duration = Duration::from_secs(24 * 60 * 60);

/// What the CA calls itself; the cluster's name is its organisation.
const CA_NAME: &str = "Roost cluster CA";

/// From when, and for how long, a certificate is valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Validity {
    /// The time since 1970 when it is made.
    pub since_epoch: Duration,
    /// How long it is valid from then on.
    pub lasts: Duration,
}

impl Validity {
    /// From now on, for so many days.
    pub fn days(clock: &dyn WallClock, days: u32) -> Self {
        Self { since_epoch: clock.since_epoch(), lasts: Duration::from_secs(u64::from(days) * 24 * 60 * 60) }
    }

    fn bounds(self) -> Result<(OffsetDateTime, OffsetDateTime), CertsError> {
        let at = |since_epoch: Duration| {
            let seconds = i64::try_from(since_epoch.as_secs()).ok();
            let date = seconds.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
            date.ok_or(CertsError::Validity { seconds: since_epoch.as_secs() })
        };
        Ok((at(self.since_epoch.saturating_sub(SLACK))?, at(self.since_epoch.saturating_add(self.lasts))?))
    }
}

/// A certificate and its key, as PEM.
#[derive(Clone)]
pub struct Pem {
    /// The certificate.
    pub certificate: String,
    /// Its key. Whoever has it is its bearer.
    pub key: String,
}

impl std::fmt::Debug for Pem {
    /// Without the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pem").field("certificate", &self.certificate).finish_non_exhaustive()
    }
}

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertsError {
    /// The certificate could not be made, or the CA's files are none.
    #[error("certificates: {0}")]
    Certificate(#[from] rcgen::Error),
    /// The CA's certificate is not one that [`Authority::create`] made.
    #[error("this is not the certificate of a Roost cluster's CA: {0}")]
    NoAuthority(String),
    /// The CA is another cluster's.
    #[error("the CA is that of cluster {ours}, a certificate of cluster {asked} was asked for")]
    OtherCluster {
        /// The CA's cluster.
        ours: ClusterName,
        /// The cluster of the identity.
        asked: ClusterName,
    },
    /// An identity without a role may do nothing.
    #[error("a certificate needs at least one role")]
    NoRole,
    /// A time that certificates cannot hold.
    #[error("certificates cannot hold the time {seconds} s after 1970")]
    Validity {
        /// The time.
        seconds: u64,
    },
}

/// A cluster's CA.
pub struct Authority {
    cluster: ClusterName,
    certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Makes a cluster's CA.
    ///
    /// # Errors
    /// [`CertsError`] when `validity` lies outside what certificates can hold.
    pub fn create(cluster: ClusterName, validity: Validity) -> Result<Self, CertsError> {
        let mut params = CertificateParams::default();
        (params.not_before, params.not_after) = validity.bounds()?;
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, CA_NAME);
        params.distinguished_name.push(DnType::OrganizationName, cluster.as_str());
        // It signs nodes and clients, and no further CAs.
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?.pem();
        Ok(Self { cluster, certificate, issuer: Issuer::new(params, key) })
    }

    /// Reads a CA that [`Authority::create`] made.
    ///
    /// # Errors
    /// [`CertsError`] when the texts are not the certificate of a cluster's CA and its key.
    pub fn load(certificate: &str, key: &str) -> Result<Self, CertsError> {
        let key = KeyPair::from_pem(key)?;
        let cluster = cluster_of(certificate, &key)?;
        let issuer = Issuer::from_ca_cert_pem(certificate, key)?;
        Ok(Self { cluster, certificate: certificate.to_owned(), issuer })
    }

    /// The cluster that it is for.
    pub fn cluster(&self) -> &ClusterName {
        &self.cluster
    }

    /// Its certificate, which everybody needs, and its key, which nobody else should have.
    pub fn pem(&self) -> Pem {
        Pem { certificate: self.certificate.clone(), key: self.issuer.key().serialize_pem() }
    }

    /// Issues a certificate. `names` are further host names and addresses, for a gateway that others than
    /// Roost dial.
    ///
    /// # Errors
    /// [`CertsError`] when the identity is of another cluster or has no role, or a name is none.
    pub fn issue(
        &self,
        identity: &PeerIdentity,
        validity: Validity,
        names: &[String],
    ) -> Result<Pem, CertsError> {
        if identity.cluster != self.cluster {
            let (ours, asked) = (self.cluster.clone(), identity.cluster.clone());
            return Err(CertsError::OtherCluster { ours, asked });
        }
        if identity.roles.is_empty() {
            return Err(CertsError::NoRole);
        }
        let is_node = identity.roles.iter().copied().any(Role::is_node);
        let node_name = is_node.then(|| NODE_DNS_NAME.to_owned());
        let all_names: Vec<String> = node_name.into_iter().chain(names.iter().cloned()).collect();
        let mut params = CertificateParams::new(all_names)?;
        (params.not_before, params.not_after) = validity.bounds()?;
        params.subject_alt_names.push(SanType::URI(identity.to_uri().try_into()?));
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, identity.name.as_str());
        params.distinguished_name.push(DnType::OrganizationName, self.cluster.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if is_node {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        params.use_authority_key_identifier_extension = true;
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Pem { certificate, key: key.serialize_pem() })
    }
}

/// The cluster of a CA's certificate, which must be that of `key`.
fn cluster_of(certificate: &str, key: &KeyPair) -> Result<ClusterName, CertsError> {
    let none = |reason: String| CertsError::NoAuthority(reason);
    let block = PemBlock::iter_from_buffer(certificate.as_bytes()).next();
    let block = block.ok_or_else(|| none("it is not PEM".to_owned()))?.map_err(|e| none(e.to_string()))?;
    let (_, parsed) = X509Certificate::from_der(&block.contents).map_err(|e| none(e.to_string()))?;
    let subject = parsed.subject();
    let name = subject.iter_common_name().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    if name != CA_NAME || !parsed.is_ca() {
        return Err(none(format!("it is that of {name:?}")));
    }
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(none("the key is another's".to_owned()));
    }
    let cluster = subject.iter_organization().next().and_then(|cluster| cluster.as_str().ok());
    ClusterName::new(cluster.unwrap_or_default()).map_err(|error| none(error.to_string()))
}

#[cfg(test)]
mod tests;
