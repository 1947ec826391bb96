//! Who may speak to whom: certificates, services, clusters.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use quinn::AsyncUdpSocket;
use roost_protocol::error::ControlError;
use roost_protocol::frame::Kind;
use roost_protocol::ids::{ClusterId, ClusterName, NodeId};
use roost_protocol::messages::control::Hello;
use roost_protocol::quic::endpoint::{EndpointError, GreetError};
use roost_protocol::quic::tls::{CredentialsError, IdentityError};
use roost_protocol::quic::{
    Dialler, Endpoint, Links, Network, Role, Service, StreamError, TokioNetwork, finish, read_frame, roles,
    write_message,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use crate::party::{
    CA, CLUSTER, Ca, IN_2026, Listener, credentials, dialler, dialler_with, endpoint_speaking, hello, within,
};

#[tokio::test]
async fn both_sides_learn_who_the_other_is() {
    let mut node = Listener::start(&Service::ALL).await;
    let dialler = dialler(&[Role::Coordinator, Role::Client]).await;
    for service in Service::ALL {
        let link = dialler.dial(&node.address, service).await.unwrap();
        assert_eq!(link.hello, hello());
        assert_eq!(link.peer.to_uri(), "roost://demo/coordinator+worker+gateway/a");
        let accepted = node.greeted().await.unwrap();
        assert_eq!(accepted.service, service);
        assert_eq!(accepted.link.hello, Hello { cluster: Some(CLUSTER), node: None });
        assert_eq!(accepted.link.peer.to_uri(), "roost://demo/coordinator+client/anna");
    }
}

#[tokio::test]
async fn who_does_not_know_a_cluster_yet_is_let_in() {
    let mut node = Listener::start(&[Service::Control]).await;
    let nobody = Hello { cluster: None, node: None };
    let dialler = dialler_with(&CA.issue(&[Role::Worker], "b"), nobody.clone()).await;
    let link = dialler.dial(&node.address, Service::Control).await.unwrap();
    assert_eq!(link.hello.cluster, Some(CLUSTER));
    assert_eq!(node.link().await.hello, nobody);
}

#[tokio::test]
async fn another_cluster_is_refused_on_both_sides() {
    let mut node = Listener::start(&[Service::Control]).await;
    let other = ClusterId(0xc2);
    let hello = Hello { cluster: Some(other), node: Some(NodeId(5)) };
    let dialler = dialler_with(&CA.issue(&[Role::Worker], "b"), hello).await;
    let expected = ControlError::WrongCluster { ours: CLUSTER, theirs: other };
    let refused = |error: GreetError| match error {
        GreetError::Refused(error) => assert_eq!(error, expected),
        error => panic!("{error}"),
    };
    refused(dialler.dial(&node.address, Service::Control).await.unwrap_err());
    refused(node.greeted().await.unwrap_err());
}

#[tokio::test]
async fn each_service_wants_its_roles() {
    let mut node = Listener::start(&Service::ALL).await;
    for role in Role::ALL {
        let dialler = dialler(&[role]).await;
        for service in Service::ALL {
            let needed_roles = roles::of_service(service);
            let allowed = needed_roles.contains(&role);
            match dialler.dial(&node.address, service).await {
                Ok(_) => assert!(allowed, "{role} for {service:?}"),
                Err(GreetError::Refused(ControlError::Forbidden { needed, name, roles })) => {
                    assert!(!allowed, "{role} for {service:?}");
                    assert_eq!((name.as_str(), roles.as_str()), ("anna", role.name()));
                    let names: Vec<_> = needed_roles.iter().map(|role| role.name()).collect();
                    assert_eq!(needed, names.join(" or "));
                }
                Err(error) => panic!("{role} for {service:?}: {error}"),
            }
            assert_eq!(node.greeted().await.is_ok(), allowed, "{role} for {service:?}");
        }
    }
}

/// Roles, services that they may connect for.
#[test]
fn the_roles_of_services() {
    let may = |role: Role| -> Vec<Service> {
        Service::ALL.into_iter().filter(|service| roles::of_service(*service).contains(&role)).collect()
    };
    assert_eq!(may(Role::Client), [Service::Infer, Service::Control]);
    assert_eq!(may(Role::Gateway), [Service::Infer, Service::Control]);
    assert_eq!(may(Role::Operator), [Service::Control, Service::Bundle]);
    assert_eq!(may(Role::Worker), [Service::Control, Service::Bundle]);
    assert_eq!(may(Role::Coordinator), [Service::Control, Service::Raft, Service::Bundle]);
}

#[tokio::test]
async fn a_certificate_for_another_cluster_is_refused_on_both_sides() {
    let mut node = Listener::start(&[Service::Control]).await;
    // Signed by the same CA, and the greeting says nothing of a cluster.
    let nobody = Hello { cluster: None, node: None };
    let foreign = |role| CA.issue_for("prod", &[role], "b");
    let dialler = dialler_with(&foreign(Role::Operator), nobody.clone()).await;
    let name = |name: &str| ClusterName::new(name).unwrap();
    let theirs = ControlError::ForeignCertificate { ours: name("prod"), theirs: name("demo") };
    let refused = |error: GreetError, expected: &ControlError| match error {
        GreetError::Refused(error) => assert_eq!(error, *expected),
        error => panic!("{error}"),
    };
    refused(dialler.dial(&node.address, Service::Control).await.unwrap_err(), &theirs);
    // A dialler that does not look is told by the node.
    node.greeted().await.unwrap_err();
    let connection = raw_as(&node, vec![b"roost-control/1".to_vec()], "prod").await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    write_message(&mut send, Kind::Hello, &nobody).await.unwrap();
    let frame = read_frame(&mut recv).await.unwrap().unwrap();
    let ours = ControlError::ForeignCertificate { ours: name("demo"), theirs: name("prod") };
    assert_eq!(frame.message::<Result<Hello, ControlError>>().unwrap(), Err(ours.clone()));
    refused(node.greeted().await.unwrap_err(), &ours);
}

#[tokio::test]
async fn a_certificate_of_another_ca_is_refused() {
    let other = Ca::new();
    let mut node = Listener::start(&[Service::Control]).await;
    // The dialler trusts the other CA alone: it turns the node away.
    let stranger = dialler_with(&other.issue(&[Role::Worker], "b"), hello()).await;
    let error = stranger.dial(&node.address, Service::Control).await.unwrap_err();
    assert!(matches!(error, GreetError::Handshake { .. }), "{error}");
    assert!(matches!(node.greeted().await, Err(GreetError::Handshake { .. })));
    // The dialler trusts our CA and bears a certificate of the other: the node turns it away.
    let (ca, _, _) = CA.issue_pem(&[Role::Worker], "b");
    let (_, certificate, key) = other.issue_pem(&[Role::Worker], "b");
    let forged = credentials(&ca, &certificate, &key, IN_2026).unwrap();
    let stranger = dialler_with(&forged, hello()).await;
    let error = stranger.dial(&node.address, Service::Control).await.unwrap_err();
    assert!(matches!(error, GreetError::Handshake { .. } | GreetError::Stream(_)), "{error}");
    assert!(matches!(node.greeted().await, Err(GreetError::Handshake { .. })));
}

#[tokio::test]
async fn a_client_cannot_pass_for_a_node() {
    let mut listener =
        Listener::start_with(&CA.issue(&[Role::Client], "mallory"), &[Service::Control], hello()).await;
    let dialler = dialler(&[Role::Client]).await;
    let error = dialler.dial(&listener.address, Service::Control).await.unwrap_err();
    assert!(matches!(error, GreetError::Handshake { .. }), "{error}");
    listener.greeted().await.unwrap_err();
}

#[tokio::test]
async fn validity_is_judged_by_the_given_clock() {
    let mut node = Listener::start(&[Service::Control]).await;
    let (ca, certificate, key) = CA.issue_pem(&[Role::Worker], "b");
    let in_2035 = credentials(&ca, &certificate, &key, Duration::from_secs(2_051_222_400)).unwrap();
    let dialler = dialler_with(&in_2035, hello()).await;
    let error = dialler.dial(&node.address, Service::Control).await.unwrap_err();
    assert!(error.to_string().contains("expired"), "{error}");
    node.greeted().await.unwrap_err();
}

#[tokio::test]
async fn an_unknown_protocol_is_refused() {
    let mut node = Listener::start(&[Service::Control]).await;
    // A service of ours that this node does not offer.
    let dialler = dialler(&[Role::Coordinator]).await;
    let error = dialler.dial(&node.address, Service::Raft).await.unwrap_err();
    let raft = |service: &Option<Service>| *service == Some(Service::Raft);
    assert!(matches!(&error, GreetError::Protocol { service, .. } if raft(service)), "{error}");
    assert!(matches!(node.greeted().await, Err(GreetError::Protocol { service: None, .. })));
    // A number that nobody speaks yet, and no protocol at all.
    for alpn in [vec![b"roost-control/999".to_vec()], vec![]] {
        let error = raw(&node, alpn).await.unwrap_err();
        assert!(is_about_protocols(&error.to_string()), "{error}");
        node.greeted().await.unwrap_err();
    }
}

/// What the two sides speak, and what they agree on.
#[tokio::test]
async fn the_highest_protocol_that_both_speak_is_taken() {
    for (theirs, ours, agreed) in [
        (&[1][..], &[1][..], Some(1)),
        // A build speaks its own and the one before: so do two neighbours, whichever is newer.
        (&[2, 1], &[1], Some(1)),
        (&[1], &[2, 1], Some(1)),
        (&[2, 1], &[2, 1], Some(2)),
        (&[3, 2], &[2, 1], Some(2)),
        (&[2, 1], &[3, 2], Some(2)),
        (&[3, 2], &[1], None),
        (&[1], &[3, 2], None),
    ] {
        let mut node = Listener::speaking(theirs, &Service::ALL).await;
        let credentials = CA.issue(&[Role::Coordinator, Role::Client], "anna");
        let dialler = Dialler::new(endpoint_speaking(ours, &credentials, &[]).await, hello);
        for service in Service::ALL {
            match (dialler.dial(&node.address, service).await, agreed) {
                (Ok(link), Some(number)) => {
                    let accepted = node.greeted().await.unwrap();
                    assert_eq!(
                        (link.protocol, accepted.link.protocol, accepted.service),
                        (number, number, service)
                    );
                }
                (Err(GreetError::Protocol { address, service: refused, ours: spoken }), None) => {
                    assert_eq!((address, refused, &spoken[..]), (node.address.clone(), Some(service), ours));
                    let error = node.greeted().await.unwrap_err();
                    assert!(matches!(&error, GreetError::Protocol { ours, .. } if ours == theirs), "{error}");
                }
                (other, _) => panic!("{theirs:?} and {ours:?}: {other:?}"),
            }
        }
    }
}

/// TLS's alert 120, as rustls tells it.
fn is_about_protocols(reason: &str) -> bool {
    reason.contains("120") && reason.contains("protocol")
}

/// Dials with quinn alone.
async fn raw(node: &Listener, alpn: Vec<Vec<u8>>) -> Result<quinn::Connection, quinn::ConnectionError> {
    raw_as(node, alpn, "demo").await
}

/// Dials with quinn alone and a certificate for a cluster.
async fn raw_as(
    node: &Listener,
    alpn: Vec<Vec<u8>>,
    cluster: &str,
) -> Result<quinn::Connection, quinn::ConnectionError> {
    let (ca, certificate, key) = CA.issue_pem_for(cluster, &[Role::Worker], "b");
    let certificate_of = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(certificate_of(&ca)).expect("a CA");
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .expect("ring speaks TLS 1.3")
        .with_root_certificates(roots)
        .with_client_auth_cert(
            vec![certificate_of(&certificate)],
            PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM"),
        )
        .expect("the key is the certificate's");
    tls.alpn_protocols = alpn;
    let tls = quinn::crypto::rustls::QuicClientConfig::try_from(tls).expect("TLS 1.3 has QUIC's cipher");
    let endpoint = quinn::Endpoint::client(([127, 0, 0, 1], 0).into()).expect("loopback has free ports");
    let config = quinn::ClientConfig::new(Arc::new(tls));
    let address = node.address.parse().expect("an address");
    endpoint.connect_with(config, address, "node.roost").expect("a good config").await
}

#[tokio::test]
async fn who_does_not_greet_is_turned_away() {
    let mut node = Listener::start(&[Service::Control]).await;
    for first in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"Ro", b""] {
        let connection = raw(&node, vec![b"roost-control/1".to_vec()]).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(first).await.unwrap();
        finish(&mut send);
        assert!(matches!(node.greeted().await, Err(GreetError::Stream(_))));
        within("the close", connection.closed()).await;
    }
    let connection = raw(&node, vec![b"roost-control/1".to_vec()]).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    write_message(&mut send, Kind::Hello, &hello()).await.unwrap();
    let frame = read_frame(&mut recv).await.unwrap().unwrap();
    assert_eq!(frame.message::<Result<Hello, ControlError>>().unwrap(), Ok(hello()));
    node.link().await;
}

#[tokio::test]
async fn credentials_that_cannot_work_are_refused() {
    let (ca, certificate, key) = CA.issue_pem(&[Role::Worker], "b");
    let (_, _, other_key) = CA.issue_pem(&[Role::Worker], "b");
    let read = |ca: &str, certificate: &str, key: &str| credentials(ca, certificate, key, IN_2026);
    read(&ca, &certificate, &key).unwrap();
    for (ca, certificate, key, what) in [
        ("", certificate.as_str(), key.as_str(), "the CA"),
        (&ca, "", &key, "the certificate"),
        (&ca, &certificate, "", "the key"),
        (&ca, &certificate, &certificate, "the key"),
    ] {
        let error = read(ca, certificate, key).unwrap_err();
        assert!(matches!(&error, CredentialsError::Pem { what: part, .. } if *part == what), "{error}");
    }
    // A CA's certificate has no identity.
    let error = read(&ca, &ca, &key).unwrap_err();
    assert!(matches!(error, CredentialsError::Identity(IdentityError::NoUri)), "{error}");
    let other = read(&ca, &certificate, &other_key).unwrap();
    let network = Arc::new(TokioNetwork);
    let bound = Endpoint::bind(network, "127.0.0.1:0", &[Service::Control], &other, &[7; 64], [9; 32]).await;
    assert!(matches!(bound, Err(EndpointError::Credentials(CredentialsError::Tls(_)))));
}

#[tokio::test]
async fn an_address_in_use_is_named() {
    let node = Listener::start(&[Service::Control]).await;
    let credentials = CA.issue(&[Role::Worker], "b");
    let network = Arc::new(TokioNetwork);
    let second =
        Endpoint::bind(network, &node.address, &[Service::Control], &credentials, &[7; 64], [9; 32]).await;
    let error = second.err().expect("the address is in use");
    assert!(error.to_string().starts_with(&format!("cannot listen on {}", node.address)), "{error}");
}

#[tokio::test]
async fn links_are_shared_and_made_anew_when_broken() {
    let mut node = Listener::start(&[Service::Control]).await;
    let links = Links::new(dialler(&[Role::Client]).await, Service::Control);
    let (first, second) = tokio::join!(links.to(&node.address), links.to(&node.address));
    let (first, second) = (first.unwrap(), second.unwrap());
    let accepted = node.link().await;
    first.close();
    assert!(!second.is_open(), "both callers share one connection");
    within("the close", accepted.closed()).await;
    let third = links.to(&node.address).await.unwrap();
    let accepted = node.link().await;
    links.keep_only(|_| false);
    assert!(!third.is_open());
    within("the close", accepted.closed()).await;
}

#[tokio::test]
async fn a_closed_node_breaks_its_links() {
    let mut node = Listener::start(&[Service::Control]).await;
    let link = dialler(&[Role::Client]).await.dial(&node.address, Service::Control).await.unwrap();
    node.link().await;
    node.endpoint.close().await;
    within("the close", link.closed()).await;
    assert!(matches!(link.open().await, Err(StreamError::Broken(_))));
}

/// A network whose names have these addresses.
#[derive(Debug)]
struct Names(Vec<SocketAddr>);

impl Network for Names {
    fn bind<'a>(&'a self, address: &'a str) -> BoxFuture<'a, io::Result<Arc<dyn AsyncUdpSocket>>> {
        TokioNetwork.bind(address)
    }

    fn resolve<'a>(&'a self, _: &'a str) -> BoxFuture<'a, io::Result<Vec<SocketAddr>>> {
        Box::pin(std::future::ready(Ok(self.0.clone())))
    }
}

#[tokio::test]
async fn all_addresses_of_a_name_are_tried() {
    let mut node = Listener::start(&[Service::Control]).await;
    let at: SocketAddr = node.address.parse().unwrap();
    // Bound and silent; of another family; the node.
    let silent = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let addresses = vec![SocketAddr::new([0; 16].into(), at.port()), silent.local_addr().unwrap(), at];
    let credentials = CA.issue(&[Role::Client], "anna");
    let bind = |names| {
        let network = Arc::new(Names(names));
        let credentials = &credentials;
        async move {
            let endpoint = Endpoint::bind(network, "127.0.0.1:0", &[], credentials, &[7; 64], [9; 32]).await;
            Dialler::new(endpoint.expect("loopback has free ports"), hello)
        }
    };
    let link = bind(addresses.clone()).await.dial("a-name:1", Service::Control).await.unwrap();
    assert_eq!(&*link.address, "a-name:1");
    node.link().await;
    let error = bind(addresses[..1].to_vec()).await.dial("a-name:1", Service::Control).await.unwrap_err();
    assert!(error.to_string().contains("can be reached from this socket"), "{error}");
}
