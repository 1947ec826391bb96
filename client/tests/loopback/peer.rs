//! A peer on loopback: serves what it publishes, and answers as it is told.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use quinn::{RecvStream, SendStream};
use roost_client::certs::{Authority, Pem, Validity};
use roost_client::client::SystemClock;
use roost_client::{Client, ClientConfig, CredentialsSource};
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{ControlRequest, ControlResponse, Hello};
use roost_protocol::messages::infer::{
    InferRequest, Named, PartHeader, ResponseHeader, Trailer, encode_archive, lay_out,
};
use roost_protocol::quic::bundles::{self, BundleStore};
use roost_protocol::quic::stream::expect_frame;
use roost_protocol::quic::tls::PeerIdentity;
use roost_protocol::quic::{
    Accepted, Credentials, Dialler, Endpoint, Link, Role, Service, TokioNetwork, finish, watch, write_message,
};
use roost_protocol::view::Published;
use roost_protocol::{ClusterName, ControlError, InferError, NodeId, Tenant, Tensor};

use crate::state::published;

/// What a peer does with a request for inference.
#[derive(Clone)]
pub enum Does {
    /// Answers with the inputs as outputs.
    Answers,
    /// Answers with each input in a part of its own.
    AnswersInParts,
    /// Refuses.
    Refuses(InferError),
    /// Refuses without reading the request.
    RefusesEarly(InferError),
    /// Says nothing until it is told to stop.
    IsSilent,
    /// Sends one part, then breaks off.
    BreaksOff,
    /// As a worker that knows what it publishes: refuses with `StaleView` what its own traffic picks
    /// otherwise.
    Checks,
}

/// What a peer does with a request to its control plane.
pub type Rules = Box<dyn Fn(&ControlRequest) -> ControlResponse + Send + Sync>;

struct Inside {
    id: u64,
    does: Mutex<Does>,
    rules: Mutex<Rules>,
    publish: tokio::sync::watch::Sender<Published>,
    store: BundleStore,
    requests: AtomicU32,
    stopped: tokio::sync::Notify,
}

/// A peer.
pub struct Peer {
    pub name: String,
    pub address: String,
    endpoint: Endpoint,
    inside: Arc<Inside>,
}

/// A CA, and peers that it certifies.
pub struct Cluster {
    authority: Authority,
    pub peers: Vec<Peer>,
}

fn identity(roles: &[Role], name: &str) -> PeerIdentity {
    let roles: BTreeSet<Role> = roles.iter().copied().collect();
    PeerIdentity { cluster: ClusterName::new("test").unwrap(), roles, name: Tenant::new(name).unwrap() }
}

impl Cluster {
    /// So many peers, named `a`, `b`, ..., that all publish the state of index 1 with `share` % on version 2.
    pub async fn start(peers: usize, share: u16) -> Self {
        let validity = Validity::days(&SystemClock, 1);
        let authority = Authority::create(ClusterName::new("test").unwrap(), validity).unwrap();
        let mut cluster = Self { authority, peers: Vec::new() };
        for i in 0..peers {
            let name = char::from(b'a' + i as u8).to_string();
            let peer = cluster.peer(&name, i as u64 + 1).await;
            cluster.peers.push(peer);
        }
        cluster.publish_everywhere(1, share);
        cluster
    }

    pub fn issue(&self, roles: &[Role], name: &str) -> Pem {
        self.authority.issue(&identity(roles, name), Validity::days(&SystemClock, 1), &[]).unwrap()
    }

    async fn endpoint(&self, pem: &Pem, services: &[Service], seed: u8) -> Endpoint {
        let (ca, clock) = (self.authority.pem().certificate, Arc::new(SystemClock));
        let (certificate, key) = (pem.certificate.as_bytes(), pem.key.as_bytes());
        let credentials = Credentials::from_pem(ca.as_bytes(), certificate, key, clock).unwrap();
        let (address, network) = ("127.0.0.1:0", Arc::new(TokioNetwork));
        Endpoint::bind(network, address, services, &credentials, &[seed; 64], [seed; 32]).await.unwrap()
    }

    async fn peer(&self, name: &str, id: u64) -> Peer {
        let pem = self.issue(&[Role::Coordinator, Role::Worker], name);
        let services = [Service::Infer, Service::Control, Service::Bundle];
        let endpoint = self.endpoint(&pem, &services, id as u8).await;
        let refuse: Rules = Box::new(|_| ControlResponse::Failed(ControlError::NotLeader { leader: None }));
        let inside = Arc::new(Inside {
            id,
            does: Mutex::new(Does::Answers),
            rules: Mutex::new(refuse),
            publish: tokio::sync::watch::Sender::new(Published::default()),
            store: BundleStore::new(Arc::new(object_store::memory::InMemory::new())),
            requests: AtomicU32::new(0),
            stopped: tokio::sync::Notify::new(),
        });
        tokio::spawn(accept(endpoint.clone(), inside.clone()));
        let address = endpoint.local_address().unwrap().to_string();
        Peer { name: name.to_owned(), address, endpoint, inside }
    }

    /// What a peer would publish at `index`.
    pub fn state(&self, index: u64, share: u16) -> Published {
        let peers: Vec<_> = self.peers.iter().map(|peer| (peer.name.clone(), peer.address.clone())).collect();
        published(index, share, &peers)
    }

    pub fn publish_everywhere(&self, index: u64, share: u16) {
        let state = self.state(index, share);
        self.peers.iter().for_each(|peer| peer.publish(state.clone()));
    }

    pub fn config(&self, seeds: &[&Peer]) -> ClientConfig {
        let pem = self.issue(&[Role::Client, Role::Operator], "anna");
        let credentials = CredentialsSource::Pem {
            ca: self.authority.pem().certificate.into_bytes(),
            certificate: pem.certificate.into_bytes(),
            key: pem.key.into_bytes(),
        };
        ClientConfig::new(seeds.iter().map(|peer| peer.address.clone()), credentials)
    }

    /// A client with all peers as seeds.
    pub async fn client(&self) -> Client {
        Client::connect(self.config(&self.peers.iter().collect::<Vec<_>>())).await.unwrap()
    }

    /// A dialler of a worker.
    pub async fn dialler(&self) -> Dialler {
        let pem = self.issue(&[Role::Worker], "w");
        Dialler::new(self.endpoint(&pem, &[], 99).await, || Hello { cluster: None, node: None })
    }
}

impl Peer {
    pub fn does(&self, does: Does) {
        *self.inside.does.lock().unwrap() = does;
    }

    pub fn rules(&self, rules: impl Fn(&ControlRequest) -> ControlResponse + Send + Sync + 'static) {
        *self.inside.rules.lock().unwrap() = Box::new(rules);
    }

    pub fn publish(&self, state: Published) {
        self.inside.publish.send_replace(state);
    }

    /// Watches that are served now.
    pub fn watchers(&self) -> usize {
        self.inside.publish.receiver_count()
    }

    pub fn store(&self) -> &BundleStore {
        &self.inside.store
    }

    /// Requests for inference that came.
    pub fn requests(&self) -> u32 {
        self.inside.requests.load(Ordering::Relaxed)
    }

    /// Waits until a request on which the peer was silent was cancelled.
    pub async fn was_cancelled(&self) {
        self.inside.stopped.notified().await;
    }

    pub async fn close(&self) {
        self.endpoint.close().await;
    }
}

async fn accept(endpoint: Endpoint, inside: Arc<Inside>) {
    while let Some(incoming) = endpoint.accept().await {
        let inside = inside.clone();
        tokio::spawn(async move {
            let hello = Hello { cluster: None, node: Some(NodeId(inside.id)) };
            let Ok(accepted) = Accepted::greet(incoming, || hello).await else { return };
            let Accepted { service, link } = accepted;
            serve(service, link, inside).await;
        });
    }
}

async fn serve(service: Service, link: Link, inside: Arc<Inside>) {
    while let Ok((mut send, mut recv)) = link.accept().await {
        let inside = inside.clone();
        tokio::spawn(async move {
            match service {
                Service::Control => control(&mut send, &mut recv, &inside).await,
                Service::Infer => infer(&mut send, &mut recv, &inside).await,
                Service::Bundle => {
                    // A stream that breaks off is the client's to notice.
                    let _ = bundles::serve(&inside.store, &mut send, &mut recv, |_| true).await;
                }
                Service::Raft => {}
            }
        });
    }
}

async fn control(send: &mut SendStream, recv: &mut RecvStream, inside: &Inside) {
    let Ok(frame) = expect_frame(recv, Kind::ControlRequest).await else { return };
    match frame.message().unwrap() {
        ControlRequest::Watch { from, models } => {
            // It ends when the watcher goes.
            let _ = watch::serve(send, inside.publish.subscribe(), from, &models).await;
        }
        request => {
            let response = (inside.rules.lock().unwrap())(&request);
            if write_message(send, Kind::ControlResponse, &response).await.is_ok() {
                finish(send);
            }
        }
    }
}

async fn infer(send: &mut SendStream, recv: &mut RecvStream, inside: &Inside) {
    inside.requests.fetch_add(1, Ordering::Relaxed);
    let does = inside.does.lock().unwrap().clone();
    if let Does::RefusesEarly(error) = does {
        trailer(send, Some(error)).await;
        let _ = recv.stop(0u32.into());
        return finish(send);
    }
    let Ok(frame) = expect_frame(recv, Kind::InferRequest).await else { return };
    let request = InferRequest::read(&frame).unwrap();
    let view = inside.publish.borrow().view.clone().unwrap();
    let traffic = &view.models.values().next().unwrap().traffic;
    let inputs = request.tensors().map(|tensor| {
        let (name, view) = tensor.unwrap();
        let bytes = bytes::Bytes::copy_from_slice(view.bytes());
        Named { name: name.to_owned(), tensor: Tensor::new(view.dtype(), view.shape(), bytes).unwrap() }
    });
    let outputs: Vec<Named<Tensor>> = inputs.collect();
    match does {
        Does::Answers => answer(send, inside, &request, &[&outputs]).await,
        Does::AnswersInParts => {
            let parts: Vec<_> = outputs.chunks(1).collect();
            answer(send, inside, &request, &parts).await;
        }
        Does::Refuses(error) => {
            trailer(send, Some(error)).await;
            finish(send);
        }
        Does::Checks => {
            let model = view.models.keys().next().unwrap();
            let generation = view.epoch.generation;
            if (generation, traffic.revision) > (request.generation(), request.revision())
                && traffic.pick(model, request.key()) != request.version()
            {
                let (used, newest) = (request.revision().0, traffic.revision.0);
                let model = model.to_string();
                trailer(send, Some(InferError::StaleView { model, used, newest, generation })).await;
                return finish(send);
            }
            answer(send, inside, &request, &[&outputs]).await;
        }
        Does::IsSilent => {
            let _ = send.stopped().await;
            inside.stopped.notify_one();
        }
        Does::BreaksOff => {
            header(send, inside, &request).await;
            part(send, &outputs).await;
            // Lets the part arrive ahead of the reset.
            tokio::time::sleep(Duration::from_millis(20)).await;
            let _ = send.reset(1u32.into());
        }
        Does::RefusesEarly(_) => {}
    }
}

async fn answer(
    send: &mut SendStream,
    inside: &Inside,
    request: &InferRequest<'_>,
    parts: &[&[Named<Tensor>]],
) {
    header(send, inside, request).await;
    for outputs in parts {
        part(send, outputs).await;
    }
    trailer(send, None).await;
    finish(send);
}

async fn header(send: &mut SendStream, inside: &Inside, request: &InferRequest<'_>) {
    let view = inside.publish.borrow().view.clone().unwrap();
    let revision = view.models.values().next().unwrap().traffic.revision;
    let node = NodeId(inside.id);
    let header = ResponseHeader::new(view.epoch, revision, request.version(), node);
    let bytes = encode_archive(Kind::InferHeader, &header, 0).unwrap();
    // A client that gave up does not read on.
    let _ = send.write_all(&bytes).await;
}

async fn part(send: &mut SendStream, outputs: &[Named<Tensor>]) {
    let (tensors, pieces) = lay_out(outputs).unwrap();
    let bytes: usize = pieces.iter().map(bytes::Bytes::len).sum();
    let head = encode_archive(Kind::InferPart, &PartHeader { tensors }, bytes as u64).unwrap();
    let _ = send.write_all(&head).await;
    for piece in pieces {
        let _ = send.write_chunk(piece).await;
    }
}

async fn trailer(send: &mut SendStream, error: Option<InferError>) {
    let trailer = Trailer { error, queue_us: 7, compute_us: 11, batch_rows: 3, in_flight: 1 };
    let bytes = encode_archive(Kind::InferTrailer, &trailer, 0).unwrap();
    let _ = send.write_all(&bytes).await;
}
