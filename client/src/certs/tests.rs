//! Certificates that are issued, read, and refused.

use std::sync::Arc;

use roost_protocol::messages::control::Hello;
use roost_protocol::quic::endpoint::GreetError;
use roost_protocol::quic::{Accepted, Credentials, Dialler, Endpoint, Link, Service, TokioNetwork};

use super::*;

/// A clock that stands at a time of its own.
#[derive(Debug)]
struct At(u64);

impl WallClock for At {
    fn since_epoch(&self) -> Duration {
        Duration::from_secs(self.0 * 24 * 60 * 60)
    }
}

/// The day on which these tests' certificates are made.
const TODAY: u64 = 20_000;

fn authority(cluster: &str) -> Authority {
    Authority::create(ClusterName::new(cluster).unwrap(), Validity::days(&At(TODAY), 100)).unwrap()
}

fn issue(authority: &Authority, uri: &str) -> Pem {
    let identity = PeerIdentity::from_uri(uri).unwrap();
    authority.issue(&identity, Validity::days(&At(TODAY), 10), &[]).unwrap()
}

fn credentials(trusted: &Authority, pem: &Pem, day: u64) -> Credentials {
    let (ca, clock) = (trusted.pem().certificate, Arc::new(At(day)));
    Credentials::from_pem(ca.as_bytes(), pem.certificate.as_bytes(), pem.key.as_bytes(), clock).unwrap()
}

/// Lets `dials` greet `serves` over loopback.
async fn greet(serves: Credentials, dials: Credentials) -> Result<(Link, Link), GreetError> {
    let bind = async |services: &[Service], credentials: &Credentials, seed| {
        let network = Arc::new(TokioNetwork);
        Endpoint::bind(network, "127.0.0.1:0", services, credentials, &[seed; 64], [seed; 32]).await.unwrap()
    };
    let server = bind(&[Service::Infer], &serves, 1).await;
    let dialler = Dialler::new(bind(&[], &dials, 2).await, || Hello { cluster: None, node: None });
    let address = server.local_address().unwrap().to_string();
    let accept = async {
        let incoming = server.accept().await.expect("the endpoint is open");
        Accepted::greet(incoming, || Hello { cluster: None, node: None }).await
    };
    let (dialled, accepted) = tokio::join!(dialler.dial(&address, Service::Infer), accept);
    Ok((dialled?, accepted?.link))
}

#[tokio::test]
async fn issued_certificates_greet() {
    let ours = authority("demo");
    let node = issue(&ours, "roost://demo/coordinator+worker/a");
    let client = issue(&ours, "roost://demo/client/anna");
    let (there, here) =
        greet(credentials(&ours, &node, TODAY), credentials(&ours, &client, TODAY)).await.unwrap();
    assert_eq!(there.peer.to_uri(), "roost://demo/coordinator+worker/a");
    assert_eq!(here.peer.to_uri(), "roost://demo/client/anna");
    // A CA that was kept in files issues as well.
    let kept = Authority::load(&ours.pem().certificate, &ours.pem().key).unwrap();
    assert_eq!(kept.cluster().as_str(), "demo");
    let other = issue(&kept, "roost://demo/worker/b");
    greet(credentials(&ours, &other, TODAY), credentials(&kept, &client, TODAY)).await.unwrap();
}

#[tokio::test]
async fn certificates_that_must_not_pass_do_not() {
    let (ours, theirs) = (authority("demo"), authority("demo"));
    let node = issue(&ours, "roost://demo/worker/a");
    let client = issue(&ours, "roost://demo/client/anna");
    let stranger = issue(&theirs, "roost://demo/worker/a");
    let at = |pem, day| credentials(&ours, pem, day);
    // A client's certificate cannot pass for a node's.
    assert!(greet(at(&client, TODAY), at(&node, TODAY)).await.is_err());
    // Another CA's certificate, on either side.
    assert!(greet(at(&stranger, TODAY), at(&client, TODAY)).await.is_err());
    assert!(greet(at(&node, TODAY), at(&stranger, TODAY)).await.is_err());
    // Too late, too early; a day of slack.
    assert!(greet(at(&node, TODAY + 11), at(&client, TODAY)).await.is_err());
    assert!(greet(at(&node, TODAY), at(&client, TODAY - 2)).await.is_err());
    greet(at(&node, TODAY - 1), at(&client, TODAY + 9)).await.unwrap();
}

#[test]
fn what_cannot_be_issued_says_why() {
    let ours = authority("demo");
    let fails = |uri: &str, names: &[String]| {
        let mut identity = PeerIdentity::from_uri(uri).unwrap();
        if uri.ends_with("nobody") {
            identity.roles.clear();
        }
        ours.issue(&identity, Validity::days(&At(TODAY), 10), names).unwrap_err().to_string()
    };
    assert_eq!(
        fails("roost://other/worker/a", &[]),
        "the CA is that of cluster demo, a certificate of cluster other was asked for"
    );
    assert_eq!(fails("roost://demo/worker/nobody", &[]), "a certificate needs at least one role");
    assert!(fails("roost://demo/gateway/a", &["ä".to_owned()]).starts_with("certificates: "));
    let eternal = Validity { since_epoch: Duration::MAX, lasts: Duration::MAX };
    assert!(matches!(
        Authority::create(ClusterName::new("demo").unwrap(), eternal),
        Err(CertsError::Validity { .. })
    ));
}

#[test]
fn only_a_ca_loads_as_one() {
    let (ours, theirs) = (authority("demo"), authority("demo"));
    let node = issue(&ours, "roost://demo/worker/a");
    let fails = |certificate: &str, key: &str| match Authority::load(certificate, key) {
        Ok(_) => panic!("it loaded"),
        Err(error) => error.to_string(),
    };
    let not = "this is not the certificate of a Roost cluster's CA: ";
    assert_eq!(fails(&node.certificate, &node.key), format!("{not}it is that of \"a\""));
    assert_eq!(fails(&ours.pem().certificate, &theirs.pem().key), format!("{not}the key is another's"));
    assert_eq!(fails("x", &ours.pem().key), format!("{not}it is not PEM"));
    assert!(fails(&ours.pem().certificate, "x").starts_with("certificates: "));
}
