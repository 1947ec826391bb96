//! Those who take part: coordinators, an operator, a worker, and the log that all of them write.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::io::Write;
use std::num::{NonZeroU16, NonZeroU32};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, mpsc};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use object_store::ObjectStore;
use object_store::local::LocalFileSystem;
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, SanType};
use redb::StorageBackend;
use redb::backends::FileBackend;
use roost_coordinator::peer::{PeerRequest, PeerResponse};
use roost_coordinator::state::LEVEL;
use roost_coordinator::{
    Coordinator, CoordinatorConfig, CoordinatorParts, GroupMember, Job, JobQueue, RaftConfig, StartError,
};
use roost_protocol::bundle::{BundleFile, FileList, MODEL_FILE};
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{
    Answer, Change, ControlRequest, ControlResponse, Done, Heartbeat, Hello, Outcome, Query,
};
use roost_protocol::quic::bundles::{self, BundleStore};
use roost_protocol::quic::tls::NODE_DNS_NAME;
use roost_protocol::quic::{
    Accepted, Credentials, Dialler, Endpoint, Links, PeerIdentity, Role, Service, TokioNetwork, WallClock,
};
use roost_protocol::view::{NodeProfile, Published, Stage, VersionReport};
use roost_protocol::{
    ClusterId, ClusterName, ControlError, Digest, Epoch, Incarnation, ModelName, NodeId, NodeName, RequestId,
    Tenant, Term, Version,
};
use tokio::sync::watch;
use tokio::time::Instant;

/// Elections on a busy machine take a while; nothing here should take half as long.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A clock that stands until it is set.
#[derive(Debug, Clone)]
pub struct Clock(Arc<AtomicU64>);

impl Clock {
    pub fn forward(&self, by: Duration) {
        self.0.fetch_add(by.as_secs(), Ordering::Relaxed);
    }
}

impl WallClock for Clock {
    fn since_epoch(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// A thread that runs disk work, as in production.
struct DiskThread(mpsc::Sender<Job>);

impl DiskThread {
    fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        std::thread::spawn(move || queue.into_iter().for_each(|job| job()));
        Self(jobs)
    }
}

impl JobQueue for DiskThread {
    fn submit(&self, job: Job) {
        let _ = self.0.send(job);
    }
}

/// Runs disk work where it is submitted, for time that stands still.
pub struct Inline;

impl JobQueue for Inline {
    fn submit(&self, job: Job) {
        job();
    }
}

/// What was logged in this process from its first look on.
pub fn log() -> String {
    static LOG: OnceLock<Arc<Mutex<Vec<u8>>>> = OnceLock::new();
    #[derive(Clone)]
    struct Lines(Arc<Mutex<Vec<u8>>>);
    impl Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = LOG.get_or_init(|| {
        let lines = Lines(Arc::default());
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone());
        // Another test may have been first.
        let _ = tracing::subscriber::set_global_default(subscriber.finish());
        lines.0
    });
    String::from_utf8_lossy(&lines.lock().unwrap()).into_owned()
}

struct Certificates {
    clock: Clock,
    ca: CertificateParams,
    key: KeyPair,
    pem: String,
}

impl Certificates {
    fn new(clock: Clock) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut ca = CertificateParams::new(Vec::new()).unwrap();
        ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = ca.self_signed(&key).unwrap().pem();
        Self { clock, ca, key, pem }
    }

    fn issue(&self, name: &str, roles: &[Role]) -> Credentials {
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
        let (ca, key, clock) = (self.pem.as_bytes(), key.serialize_pem(), Arc::new(self.clock.clone()));
        Credentials::from_pem(ca, certificate.as_bytes(), key.as_bytes(), clock).unwrap()
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

/// The certificates, addresses and folders of a group.
pub struct Party {
    folder: tempfile::TempDir,
    pub clock: Clock,
    certificates: Certificates,
    group: Vec<GroupMember>,
    /// Hold the addresses until those who need them start, so that no other test is given them.
    reserved: Mutex<Vec<Option<std::net::UdpSocket>>>,
}

/// How a coordinator starts.
#[derive(Default)]
pub struct Start {
    /// Its id, when it is not its number.
    pub node: Option<u64>,
    /// The cluster that it belonged to.
    pub cluster: Option<ClusterId>,
    /// Its disk, when it is not a file.
    pub storage: Option<Box<dyn StorageBackend>>,
    /// Where its bundles lie, when not in its folder.
    pub bundles: Option<Arc<dyn ObjectStore>>,
    /// The highest level that it obeys, when it is of another build.
    pub level: Option<u32>,
    /// Whether disk work has no thread of its own.
    pub inline: bool,
}

impl Party {
    pub fn new(coordinators: usize) -> Self {
        log();
        let sockets: Vec<_> =
            (0..coordinators).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
        let member = |(i, socket): (usize, &std::net::UdpSocket)| GroupMember {
            name: NodeName::new(&format!("c{}", i + 1)).unwrap(),
            address: socket.local_addr().unwrap().to_string(),
        };
        let group = sockets.iter().enumerate().map(member).collect();
        let clock = Clock(Arc::new(1_800_000_000.into()));
        let certificates = Certificates::new(clock.clone());
        let reserved = Mutex::new(sockets.into_iter().map(Some).collect());
        Self { folder: tempfile::tempdir().unwrap(), clock, certificates, group, reserved }
    }

    pub fn address(&self, number: usize) -> &str {
        &self.group[number - 1].address
    }

    /// The data folder of a coordinator.
    pub fn folder(&self, number: usize) -> PathBuf {
        self.folder.path().join(self.group[number - 1].name.as_str())
    }

    /// All coordinators, started.
    pub async fn members(&self) -> Vec<Option<Member>> {
        join_all((1..=self.group.len()).map(|number| async move { Some(self.member(number).await) })).await
    }

    /// The coordinator of that number, from 1, started on its folder.
    pub async fn member(&self, number: usize) -> Member {
        self.start(number, Start::default()).await.unwrap()
    }

    pub async fn start(&self, number: usize, how: Start) -> Result<Member, StartError> {
        let GroupMember { name, address } = self.group[number - 1].clone();
        let node = NodeId(how.node.unwrap_or(number as u64));
        let credentials = self.certificates.issue(name.as_str(), &[Role::Coordinator]);
        let services = [Service::Control, Service::Raft, Service::Bundle];
        self.reserved.lock().unwrap()[number - 1] = None;
        let endpoint = bind(&address, &services, &credentials).await;
        let hello = Hello { cluster: how.cluster, node: Some(node) };
        let dialler = Dialler::new(endpoint.clone(), {
            let hello = hello.clone();
            move || hello.clone()
        });
        let folder = self.folder(number);
        std::fs::create_dir_all(folder.join("bundles")).unwrap();
        let bundles = how.bundles.unwrap_or_else(|| {
            Arc::new(LocalFileSystem::new_with_prefix(folder.join("bundles")).unwrap().with_fsync(true))
        });
        let storage = how.storage.unwrap_or_else(|| {
            let file =
                std::fs::File::options().read(true).write(true).create(true).truncate(false).to_owned();
            Box::new(FileBackend::new(file.open(folder.join("raft.redb")).unwrap()).unwrap())
        });
        let (published, follows) = watch::channel(Published::default());
        let parts = CoordinatorParts {
            storage,
            queue: if how.inline { Arc::new(Inline) } else { Arc::new(DiskThread::new()) },
            bundles: BundleStore::new(bundles),
            clock: Arc::new(self.clock.clone()),
            dialler,
            published,
            seed: node.0,
            fresh_cluster: ClusterId(u128::from(node.0)),
        };
        let config = CoordinatorConfig {
            node,
            name,
            address,
            group: self.group.clone(),
            level: how.level.unwrap_or(LEVEL),
            raft: RaftConfig {
                heartbeat_ms: NonZeroU16::MIN.saturating_add(99),
                snapshot_entries: NonZeroU32::MIN.saturating_add(4_095),
            },
        };
        let coordinator = match Coordinator::start(config, parts).await {
            Ok(coordinator) => coordinator,
            Err(error) => {
                endpoint.close().await;
                return Err(error);
            }
        };
        let (server, accepts) = (coordinator.server(), endpoint.clone());
        let accepting = tokio::spawn(async move {
            while let Some(incoming) = accepts.accept().await {
                let (server, hello) = (server.clone(), hello.clone());
                tokio::spawn(async move {
                    if let Ok(accepted) = Accepted::greet(incoming, move || hello).await {
                        server.serve(accepted).await;
                    }
                });
            }
        });
        Ok(Member { coordinator, published: follows, accepting, endpoint })
    }

    /// Links of somebody with that name, role and greeting.
    pub async fn links(&self, name: &str, role: Role, service: Service, hello: Hello) -> Links {
        let endpoint = bind("127.0.0.1:0", &[], &self.certificates.issue(name, &[role])).await;
        Links::new(Dialler::new(endpoint, move || hello.clone()), service)
    }

    pub async fn operator(&self) -> Operator {
        let nobody = Hello { cluster: None, node: None };
        let control = self.links("anna", Role::Operator, Service::Control, nobody).await;
        let bundles = Links::new(control.dialler().clone(), Service::Bundle);
        let addresses = self.group.iter().map(|member| member.address.clone()).collect();
        Operator { control, bundles, addresses, last: Cell::new(0), requests: Cell::new(0) }
    }

    pub async fn worker(&self, name: &str, node: u64) -> Worker {
        let hello = Hello { cluster: None, node: Some(NodeId(node)) };
        let control = self.links(name, Role::Worker, Service::Control, hello).await;
        let addresses = self.group.iter().map(|member| member.address.clone()).collect();
        let name = NodeName::new(name).unwrap();
        Worker { control, addresses, name, node: NodeId(node), sequence: Cell::new(0) }
    }

    /// What a coordinator answers to a request of the coordinator `from`, who greets as `node`.
    pub async fn peer(&self, from: usize, node: u64, to: usize, request: &PeerRequest) -> PeerResponse {
        let name = self.group[from - 1].name.clone();
        let hello = Hello { cluster: None, node: Some(NodeId(node)) };
        let links = self.links(name.as_str(), Role::Coordinator, Service::Raft, hello).await;
        let link = links.to(self.address(to)).await.unwrap();
        link.ask((Kind::RaftRequest, request), Kind::RaftResponse).await.unwrap()
    }

    /// Whether a coordinator takes part in a group, as it says itself.
    pub async fn is_initialised(&self, number: usize) -> bool {
        let from = if number == 1 { 2 } else { 1 };
        match self.peer(from, from as u64, number, &PeerRequest::Probe { group: self.group.clone() }).await {
            PeerResponse::Probed { initialised, .. } => initialised,
            other => panic!("{other:?}"),
        }
    }
}

/// A coordinator that runs, and its endpoint.
pub struct Member {
    pub coordinator: Coordinator,
    pub published: watch::Receiver<Published>,
    accepting: tokio::task::JoinHandle<()>,
    endpoint: Endpoint,
}

impl Member {
    pub async fn stop(self) {
        self.coordinator.stop().await;
        self.accepting.abort();
        self.endpoint.close().await;
    }

    /// Waits until what it publishes is as wanted.
    pub async fn publishes(&mut self, wanted: impl FnMut(&Published) -> bool) {
        tokio::time::timeout(PATIENCE, self.published.wait_for(wanted)).await.unwrap().unwrap();
    }
}

/// Stops all that run, at once.
pub async fn stop_all(members: impl IntoIterator<Item = Option<Member>>) {
    join_all(members.into_iter().flatten().map(Member::stop)).await;
}

/// An operator who tries one coordinator after the other.
pub struct Operator {
    pub control: Links,
    pub bundles: Links,
    addresses: Vec<String>,
    last: Cell<usize>,
    requests: Cell<u128>,
}

/// Has the coordinator at `address` answer, once.
pub async fn ask_at(
    links: &Links,
    address: &str,
    request: &ControlRequest,
) -> Result<ControlResponse, ControlError> {
    let link = links.to(address).await.map_err(|error| error.into_control(address))?;
    let answer = link.ask((Kind::ControlRequest, request), Kind::ControlResponse).await;
    match answer.map_err(|error| error.into_control(address))? {
        ControlResponse::Failed(error) => Err(error),
        response => Ok(response),
    }
}

impl Operator {
    pub async fn ask(&self, request: &ControlRequest) -> Result<ControlResponse, ControlError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match ask_at(&self.control, &self.addresses[self.last.get()], request).await {
                Err(error) if error.retryable() => assert!(Instant::now() < deadline, "{error}"),
                answer => return answer,
            }
            self.last.set((self.last.get() + 1) % self.addresses.len());
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub async fn change(&self, change: Change) -> Result<Done, ControlError> {
        self.requests.set(self.requests.get() + 1);
        self.change_as(RequestId(self.requests.get()), change).await
    }

    /// Makes a change as another attempt of a request.
    pub async fn change_as(&self, request: RequestId, change: Change) -> Result<Done, ControlError> {
        match self.ask(&ControlRequest::Change { request, sent: Epoch::default(), change }).await? {
            ControlResponse::Done(done) => Ok(done),
            other => panic!("{other:?}"),
        }
    }

    pub async fn query(&self, query: Query) -> Answer {
        match self.ask(&ControlRequest::Query(query)).await.unwrap() {
            ControlResponse::Answer(answer) => *answer,
            other => panic!("{other:?}"),
        }
    }

    /// The number of the leader.
    pub async fn leader(&self) -> usize {
        let Answer::Cluster(cluster) = self.query(Query::Cluster).await else { panic!("no cluster") };
        cluster.leader.0 as usize
    }

    /// Reserves and uploads, without a commit.
    pub async fn upload(&self, content: &'static [u8]) -> FileList {
        let files = files_of(content);
        self.change(Change::ReservePush { files: files.clone() }).await.unwrap();
        let read = |_: BundleFile, offset: u64, bytes: u64| async move {
            Ok(Bytes::from_static(&content[offset as usize..(offset + bytes) as usize]))
        };
        // Whoever has applied the reservation takes the bundle.
        let deadline = Instant::now() + PATIENCE;
        let mut at = self.last.get();
        while let Err(error) =
            bundles::upload(&self.bundles, &self.addresses[at % self.addresses.len()], &files, read, |_| {})
                .await
        {
            assert!(Instant::now() < deadline, "{error}");
            at += 1;
        }
        files
    }

    pub async fn push(&self, content: &'static [u8]) -> Outcome {
        let digest = self.upload(content).await.digest();
        self.change(commit(digest)).await.unwrap().outcome
    }
}

/// Makes an uploaded bundle the next version of `digits`.
pub fn commit(digest: Digest) -> Change {
    Change::CommitPush {
        model: digits(),
        digest,
        manifest: Box::default(),
        note: String::new(),
        new_version: true,
    }
}

pub fn files_of(content: &[u8]) -> FileList {
    let (name, digest) = (MODEL_FILE.to_owned(), Digest::of(content));
    FileList::new(vec![BundleFile { name, bytes: content.len() as u64, digest }]).unwrap()
}

pub fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

/// A worker that joins and reports, and hosts nothing.
pub struct Worker {
    pub control: Links,
    addresses: Vec<String>,
    name: NodeName,
    pub node: NodeId,
    sequence: Cell<u64>,
}

impl Worker {
    pub fn join(&self) -> Change {
        let profile = NodeProfile {
            speed: Default::default(),
            zone: String::new(),
            labels: Default::default(),
            memory_mib: 1,
            isa: String::new(),
            engines: [roost_protocol::manifest::EngineChoice::OnnxRuntime].into(),
        };
        let (node, name) = (self.node, self.name.clone());
        Change::Join { node, name, address: format!("{}:1", self.name), profile: Box::new(profile) }
    }

    /// Asks each coordinator once.
    pub async fn ask(&self, request: ControlRequest) -> Result<ControlResponse, ControlError> {
        let mut last = None;
        for address in &self.addresses {
            match ask_at(&self.control, address, &request).await {
                Err(error) if error.retryable() => last = Some(error),
                answer => return answer,
            }
        }
        Err(last.unwrap())
    }

    /// A report that these versions of `digits` are ready.
    pub fn report(&self, ready: &[u32]) -> ControlRequest {
        self.sequence.set(self.sequence.get() + 1);
        let version = |version: &u32| VersionReport {
            model: digits(),
            version: Version(*version),
            stage: Stage::Ready,
            engine: None,
        };
        ControlRequest::Heartbeat(Heartbeat {
            node: self.node,
            incarnation: Incarnation(1),
            sequence: self.sequence.get(),
            versions: ready.iter().map(version).collect(),
            statistics: Vec::new(),
        })
    }

    /// Reports until a leader hears it.
    pub async fn is_heard(&self, ready: &[u32]) -> Term {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.ask(self.report(ready)).await {
                Ok(ControlResponse::Heard { term, .. }) => return term,
                Ok(other) => panic!("{other:?}"),
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}
