//! Three coordinators over loopback on real files: they form a group, agree, lose one and take it back.

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use redb::backends::FileBackend;
use roost_coordinator::{Coordinator, CoordinatorConfig, CoordinatorParts, GroupMember, Job, JobQueue};
use roost_protocol::bundle::{BundleFile, FileList, MODEL_FILE};
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{
    Answer, Change, ControlRequest, ControlResponse, Done, Hello, Outcome, Query,
};
use roost_protocol::quic::bundles::{self, BundleStore};
use roost_protocol::quic::tls::NODE_DNS_NAME;
use roost_protocol::quic::{
    Accepted, Credentials, Dialler, Endpoint, Links, PeerIdentity, Role, Service, TokioNetwork, WallClock,
};
use roost_protocol::view::Published;
use roost_protocol::{
    ClusterId, ClusterName, CommandError, ControlError, Digest, Epoch, ModelName, ModelVersion, NodeId,
    NodeName, RequestId, Tenant, Version,
};
use tokio::sync::watch;
use tokio::time::Instant;

/// Elections on a busy machine take a while; nothing here should take half as long.
const PATIENCE: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct Clock;

impl WallClock for Clock {
    fn since_epoch(&self) -> Duration {
        Duration::from_secs(1_800_000_000)
    }
}

/// Runs disk work where it is submitted: these tests need no other thread.
struct Inline;

impl JobQueue for Inline {
    fn submit(&self, job: Job) {
        job();
    }
}

struct Certificates {
    ca: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Certificates {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = ca.self_signed(&key).unwrap().pem();
        Self { ca, key, pem }
    }

    fn issue(&self, name: &str, roles: &[Role]) -> Arc<Credentials> {
        let identity = PeerIdentity {
            cluster: ClusterName::new("test").unwrap(),
            roles: roles.iter().copied().collect::<BTreeSet<_>>(),
            name: Tenant::new(name).unwrap(),
        };
        let mut params = CertificateParams::new(vec![NODE_DNS_NAME.to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::URI(identity.to_uri().try_into().unwrap()));
        let key = KeyPair::generate().unwrap();
        let issuer = Issuer::from_params(&self.ca, &self.key);
        let certificate = params.signed_by(&key, &issuer).unwrap().pem();
        let (ca, key) = (self.pem.as_bytes(), key.serialize_pem());
        let credentials = Credentials::from_pem(ca, certificate.as_bytes(), key.as_bytes(), Arc::new(Clock));
        Arc::new(credentials.unwrap())
    }
}

async fn bind(address: &str, services: &[Service], credentials: &Credentials) -> Endpoint {
    let deadline = Instant::now() + PATIENCE;
    loop {
        // The address of a member that was just stopped is free once its socket is dropped.
        let network = Arc::new(TokioNetwork);
        match Endpoint::bind(network, address, services, credentials, &[7; 64], [1; 32]).await {
            Ok(endpoint) => return endpoint,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A coordinator that runs, and its endpoint.
struct Member {
    coordinator: Coordinator,
    published: watch::Receiver<Published>,
    accepting: tokio::task::JoinHandle<()>,
    endpoint: Endpoint,
}

async fn member(folder: &Path, node: u64, group: &[GroupMember], certificates: &Certificates) -> Member {
    let GroupMember { name, address } = group[node as usize - 1].clone();
    let credentials = certificates.issue(name.as_str(), &[Role::Coordinator]);
    let services = [Service::Control, Service::Raft, Service::Bundle];
    let endpoint = bind(&address, &services, &credentials).await;
    let hello = move || Hello { cluster: None, node: Some(NodeId(node)) };
    let folder = folder.join(name.as_str());
    std::fs::create_dir_all(folder.join("bundles")).unwrap();
    let open = std::fs::File::options().read(true).write(true).create(true).truncate(false).to_owned();
    let file = open.open(folder.join("raft.redb")).unwrap();
    let store = LocalFileSystem::new_with_prefix(folder.join("bundles")).unwrap().with_fsync(true);
    let (published, follows) = watch::channel(Published::default());
    let parts = CoordinatorParts {
        storage: Box::new(FileBackend::new(file).unwrap()),
        queue: Arc::new(Inline),
        bundles: BundleStore::new(Arc::new(store)),
        clock: Arc::new(Clock),
        dialler: Dialler::new(endpoint.clone(), hello),
        published,
        seed: node,
        fresh_cluster: ClusterId(u128::from(node)),
    };
    let config = CoordinatorConfig { node: NodeId(node), name, address, group: group.to_vec() };
    let coordinator = Coordinator::start(config, parts).await.unwrap();
    let (server, accepts) = (coordinator.server(), endpoint.clone());
    let accepting = tokio::spawn(async move {
        while let Some(incoming) = accepts.accept().await {
            let server = server.clone();
            tokio::spawn(async move {
                if let Ok(accepted) = Accepted::greet(incoming, hello).await {
                    server.serve(accepted).await;
                }
            });
        }
    });
    Member { coordinator, published: follows, accepting, endpoint }
}

impl Member {
    async fn stop(self) {
        self.coordinator.stop().await;
        self.accepting.abort();
        self.endpoint.close().await;
    }
}

/// An operator who tries one coordinator after the other.
struct Operator {
    control: Links,
    bundles: Links,
    addresses: Vec<String>,
    requests: std::cell::Cell<u128>,
}

impl Operator {
    async fn ask(&self, request: &ControlRequest) -> Result<ControlResponse, ControlError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut last = None;
            for address in &self.addresses {
                let Ok(link) = self.control.to(address).await else { continue };
                match link.ask((Kind::ControlRequest, request), Kind::ControlResponse).await {
                    Ok(ControlResponse::Failed(error)) if error.retryable() => last = Some(error),
                    Ok(ControlResponse::Failed(error)) => return Err(error),
                    Ok(response) => return Ok(response),
                    Err(_) => {}
                }
            }
            assert!(Instant::now() < deadline, "nobody answers: {last:?}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn change(&self, change: Change) -> Result<Done, ControlError> {
        self.requests.set(self.requests.get() + 1);
        let request = RequestId(self.requests.get());
        match self.ask(&ControlRequest::Change { request, sent: Epoch::default(), change }).await? {
            ControlResponse::Done(done) => Ok(done),
            other => panic!("{other:?}"),
        }
    }

    async fn query(&self, query: Query) -> Answer {
        match self.ask(&ControlRequest::Query(query)).await.unwrap() {
            ControlResponse::Answer(answer) => *answer,
            other => panic!("{other:?}"),
        }
    }

    async fn push(&self, content: &'static [u8]) -> Outcome {
        let file = BundleFile {
            name: MODEL_FILE.to_owned(),
            bytes: content.len() as u64,
            digest: Digest::of(content),
        };
        let files = FileList::new(vec![file]).unwrap();
        self.change(Change::ReservePush { files: files.clone() }).await.unwrap();
        let read = async |_: &BundleFile, offset: u64, bytes: u64| {
            Ok(Bytes::from_static(&content[offset as usize..(offset + bytes) as usize]))
        };
        // Whoever has applied the reservation takes the bundle.
        let deadline = Instant::now() + PATIENCE;
        let mut at = 0;
        while let Err(error) =
            bundles::upload(&self.bundles, &self.addresses[at % self.addresses.len()], &files, read, |_| {})
                .await
        {
            assert!(Instant::now() < deadline, "{error}");
            at += 1;
        }
        let (model, digest) = (digits(), files.digest());
        let commit = Change::CommitPush { model, digest, manifest: Box::default(), note: String::new() };
        self.change(commit).await.unwrap().outcome
    }
}

fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_group_forms_agrees_loses_one_and_takes_it_back() {
    let folder = tempfile::tempdir().unwrap();
    let certificates = Certificates::new();
    let sockets: Vec<_> = (0..3).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    let addresses: Vec<String> = sockets.iter().map(|s| s.local_addr().unwrap().to_string()).collect();
    drop(sockets);
    let group: Vec<GroupMember> = addresses
        .iter()
        .enumerate()
        .map(|(i, address)| {
            let name = NodeName::new(&format!("c{}", i + 1)).unwrap();
            GroupMember { name, address: address.clone() }
        })
        .collect();
    let mut members = Vec::new();
    for node in 1..=3 {
        members.push(Some(member(folder.path(), node, &group, &certificates).await));
    }
    let credentials = certificates.issue("anna", &[Role::Operator]);
    let endpoint = bind("127.0.0.1:0", &[], &credentials).await;
    let dialler = Dialler::new(endpoint, || Hello { cluster: None, node: None });
    let operator = Operator {
        control: Links::new(dialler.clone(), Service::Control),
        bundles: Links::new(dialler, Service::Bundle),
        addresses,
        requests: 0.into(),
    };

    assert_eq!(operator.push(b"one").await, Outcome::Pushed { version: Version(1), stable: true });
    assert_eq!(operator.push(b"two").await, Outcome::Pushed { version: Version(2), stable: false });
    let refused = operator.change(Change::Undo { model: digits() }).await.unwrap_err();
    assert!(matches!(refused, ControlError::Refused(CommandError::NothingToUndo { .. })), "{refused}");
    let Answer::Cluster(cluster) = operator.query(Query::Cluster).await else { panic!() };
    assert_eq!(cluster.cluster, ClusterId(1), "the first of the config forms the group");

    // The leader goes; the others elect another and go on.
    let leader = cluster.leader.0;
    members[leader as usize - 1].take().unwrap().stop().await;
    let target = ModelVersion { model: digits(), version: Version(2) };
    let start = Change::StartRollout { target, weight: "20%".parse().unwrap() };
    operator.change(start).await.unwrap();

    // It comes back with its disk and learns what it missed.
    let mut back = member(folder.path(), leader, &group, &certificates).await;
    let knows = |published: &Published| {
        let view = published.view.as_ref();
        view.is_some_and(|view| view.models[&digits()].versions.contains_key(&Version(2)))
    };
    tokio::time::timeout(PATIENCE, back.published.wait_for(knows)).await.unwrap().unwrap();
    members[leader as usize - 1] = Some(back);

    // All at once, and again: what was acknowledged is there.
    for member in members.iter_mut().filter_map(Option::take) {
        member.stop().await;
    }
    for node in 1..=3 {
        members.push(Some(member(folder.path(), node, &group, &certificates).await));
    }
    let Answer::Versions(versions) = operator.query(Query::Versions(digits())).await else { panic!() };
    assert_eq!(versions.len(), 2);
    let Answer::Rollout(rollout) = operator.query(Query::Rollout(digits())).await else { panic!() };
    assert_eq!(rollout.rollout.unwrap().target, Version(2));
    for member in members.into_iter().flatten() {
        member.stop().await;
    }
}
