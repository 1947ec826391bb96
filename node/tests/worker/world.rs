//! A worker with all that it needs: an environment, a store, a view, an endpoint, and links to it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use object_store::ObjectStoreExt;
use object_store::memory::InMemory;
use object_store::path::Path;
use roost_client::certs::{Authority, Validity};
use roost_node::engine::Engine;
use roost_node::environment::Environment;
use roost_node::environment::production::{OsClock, production};
use roost_node::worker::{Worker, WorkerConfig, WorkerHandle};
use roost_protocol::bundle::{BundleFile, FileList, MANIFEST_FILE, MODEL_FILE};
use roost_protocol::manifest::{EngineChoice, Manifest};
use roost_protocol::messages::control::Hello;
use roost_protocol::quic::bundles::{self, BundleStore};
use roost_protocol::quic::{
    Accepted, Credentials, Dialler, Endpoint, Link, Links, PeerIdentity, Role, Service, TokioNetwork,
};
use roost_protocol::traffic::Traffic;
use roost_protocol::view::{
    Coordinator, HostedVersion, Model, Node, NodeProfile, NodeState, Published, Stage, VersionReport, View,
};
use roost_protocol::{ClusterId, Digest, Epoch, ModelVersion, NodeId, NodeName, Revision};
use tokio::sync::watch;

use crate::script::{MANIFEST, MODEL, PATIENCE, Script};

/// The worker.
pub const ME: NodeId = NodeId(1);
/// The worker's name, in the view and in its certificate.
const NAME: &str = "w1";

static CA: LazyLock<Authority> =
    LazyLock::new(|| Authority::create("test".parse().unwrap(), Validity::days(&OsClock, 1)).unwrap());

/// A certificate for some roles: of the worker under its name, of everyone else under a person's.
fn credentials(roles: &[Role]) -> Credentials {
    let name = if roles.contains(&Role::Worker) { NAME } else { "anna" };
    let identity = PeerIdentity {
        cluster: "test".parse().unwrap(),
        roles: roles.iter().copied().collect(),
        name: name.parse().unwrap(),
    };
    let pem = CA.issue(&identity, Validity::days(&OsClock, 1), &[]).unwrap();
    let (ca, certificate) = (CA.pem().certificate, pem.certificate);
    Credentials::from_pem(ca.as_bytes(), certificate.as_bytes(), pem.key.as_bytes(), Arc::new(OsClock))
        .unwrap()
}

async fn endpoint(roles: &[Role], services: &[Service]) -> Endpoint {
    let network = Arc::new(TokioNetwork);
    Endpoint::bind(network, "127.0.0.1:0", services, &credentials(roles), &[7; 64], [9; 32]).await.unwrap()
}

fn hello() -> Hello {
    Hello { cluster: Some(ClusterId(1)), node: Some(ME) }
}

/// Who dials as somebody with these roles.
pub async fn dialler(roles: &[Role]) -> Dialler {
    Dialler::new(endpoint(roles, &[]).await, hello)
}

/// The files of a bundle.
pub struct Files(Vec<(&'static str, Bytes)>);

impl Files {
    pub fn new(model: impl Into<Bytes>, manifest: &str) -> Self {
        Self(vec![(MODEL_FILE, model.into()), (MANIFEST_FILE, Bytes::copy_from_slice(manifest.as_bytes()))])
    }

    /// Those of the scripted engine's model.
    pub fn doubles() -> Self {
        Self::new(MODEL, MANIFEST)
    }

    /// The list of them.
    pub fn list(&self) -> FileList {
        let file = |(name, bytes): &(&str, Bytes)| BundleFile {
            name: (*name).to_owned(),
            bytes: bytes.len() as u64,
            digest: Digest::of(bytes),
        };
        FileList::new(self.0.iter().map(file).collect()).unwrap()
    }

    /// What the view says of a version with these files.
    pub fn hosted(&self) -> HostedVersion {
        let (_, manifest) = self.0.iter().find(|(name, _)| *name == MANIFEST_FILE).unwrap();
        HostedVersion {
            digest: self.list().digest(),
            bytes: self.list().bytes(),
            manifest: Arc::new(Manifest::parse(std::str::from_utf8(manifest).unwrap()).unwrap()),
            excluded: BTreeSet::new(),
            since: 1,
        }
    }

    pub async fn put(&self, store: &BundleStore) {
        for (file, (_, bytes)) in self.list().files().iter().zip(&self.0) {
            let mut writer = store.write(file);
            writer.write(bytes.clone()).await.unwrap();
            writer.finish().await.unwrap();
        }
        store.seal(&self.list()).await.unwrap();
    }
}

/// A store whose bytes a test can damage.
#[derive(Clone)]
pub struct Store {
    pub bundles: BundleStore,
    objects: Arc<InMemory>,
}

impl Store {
    pub fn new() -> Self {
        let objects = Arc::new(InMemory::new());
        Self { bundles: BundleStore::new(objects.clone()), objects }
    }

    /// Has a bundle's model be here with a bit flipped.
    pub async fn damage(&self, files: &Files) {
        let (_, bytes) = files.0.iter().find(|(name, _)| *name == MODEL_FILE).unwrap();
        let path = Path::from(format!("blobs/{}", Digest::of(bytes)));
        let mut bytes = bytes.to_vec();
        bytes[0] ^= 1;
        self.objects.put(&path, bytes.into()).await.unwrap();
    }

    /// Serves the store's bundles, as a coordinator does. Gives the address.
    pub async fn serve(&self) -> String {
        let endpoint = endpoint(&[Role::Coordinator], &[Service::Bundle]).await;
        let address = endpoint.local_address().unwrap().to_string();
        let store = self.bundles.clone();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let accepted = Accepted::greet(incoming, hello).await.unwrap();
                let store = store.clone();
                tokio::spawn(async move {
                    while let Ok((mut send, mut recv)) = accepted.link.accept().await {
                        // A fetch that was given up breaks its stream.
                        let _ = bundles::serve(&store, &mut send, &mut recv, |_| false).await;
                    }
                });
            }
        });
        address
    }
}

/// A worker and its surroundings.
pub struct World {
    pub script: Script,
    pub worker: Worker,
    pub handle: WorkerHandle,
    pub store: Store,
    pub reports: watch::Receiver<Arc<Vec<VersionReport>>>,
    pub published: watch::Sender<Published>,
    /// Where the worker is reached.
    pub address: String,
    _folder: tempfile::TempDir,
}

/// What a worker starts with.
pub struct Start {
    pub script: Script,
    pub config: WorkerConfig,
    pub store: Store,
    pub view: View,
    /// Further engines, tried ahead of the script.
    pub engines: Vec<Arc<dyn Engine>>,
    /// What to change of the environment.
    pub adapt: fn(Environment) -> Environment,
}

impl Start {
    /// A worker with the scripted engine and versions of these bundles, which its store holds.
    pub async fn with(versions: &[(&str, Files)]) -> Self {
        let store = Store::new();
        let mut view = empty_view();
        for (version, files) in versions {
            files.put(&store.bundles).await;
            host(&mut view, version, files.hosted());
        }
        let (script, config, engines) = (Script::new(), WorkerConfig::default(), Vec::new());
        Self { script, config, store, view, engines, adapt: |environment| environment }
    }

    pub async fn run(self) -> World {
        let Self { script, config, store, view, mut engines, adapt } = self;
        engines.push(Arc::new(script.clone()));
        let folder = tempfile::tempdir().unwrap();
        let environment = adapt(production(folder.path(), engines).unwrap());
        let (published, follows) = watch::channel(Published::default());
        let links = Links::new(dialler(&[Role::Worker]).await, Service::Bundle);
        let bundles = store.bundles.clone();
        let worker = Worker::start(config, ME, &environment, bundles, links, follows).await;
        let endpoint = endpoint(&[Role::Worker], &[Service::Infer]).await;
        let address = endpoint.local_address().unwrap().to_string();
        let handle = worker.handle();
        let serves = handle.clone();
        tokio::spawn(async move {
            while let Some(incoming) = endpoint.accept().await {
                let accepted = Accepted::greet(incoming, hello).await.unwrap();
                let serves = serves.clone();
                tokio::spawn(async move { serves.serve(accepted.link).await });
            }
        });
        let reports = worker.reports();
        let world = World { script, worker, handle, store, reports, published, address, _folder: folder };
        world.publish(view);
        world
    }

    /// Runs until all versions are ready.
    pub async fn ready(self) -> World {
        let versions: usize = self.view.models.values().map(|model| model.versions.len()).sum();
        let mut world = self.run().await;
        world
            .until(|reports| {
                reports.len() == versions && reports.iter().all(|report| report.stage == Stage::Ready)
            })
            .await;
        world
    }
}

impl World {
    /// The view that the worker follows.
    pub fn view(&self) -> View {
        View::clone(self.published.borrow().view.as_ref().unwrap())
    }

    /// Publishes a view, as the next epoch.
    pub fn publish(&self, mut view: View) {
        view.epoch.index += 1;
        self.published.send_modify(|published| assert!(published.offer_view(Arc::new(view))));
    }

    /// A link to the worker of a caller with these roles.
    pub async fn link(&self, roles: &[Role]) -> Link {
        dialler(roles).await.dial(&self.address, Service::Infer).await.unwrap()
    }

    /// Waits until the worker reports what is expected.
    pub async fn until(&mut self, what: impl Fn(&[VersionReport]) -> bool) -> Vec<VersionReport> {
        let waited = tokio::time::timeout(PATIENCE, self.reports.wait_for(|reports| what(reports))).await;
        let reports = waited.map(|reports| reports.unwrap().to_vec());
        reports.unwrap_or_else(|_| panic!("never reported: {:?}", self.worker.reports().borrow()))
    }

    /// Waits until the only version is at a stage.
    pub async fn until_stage(&mut self, name: &str) -> Stage {
        let reports = self.until(|reports| reports.len() == 1 && reports[0].stage.name() == name).await;
        reports[0].stage.clone()
    }
}

fn empty_view() -> View {
    let profile = NodeProfile {
        speed: roost_protocol::ring::Speed::default(),
        zone: String::new(),
        labels: BTreeMap::new(),
        memory_mib: 1024,
        isa: String::new(),
        engines: [EngineChoice::OnnxRuntime, EngineChoice::Native].into(),
    };
    let node = Node {
        name: NodeName::new(NAME).unwrap(),
        address: "127.0.0.1:1".to_owned(),
        state: NodeState::Active,
        hold: None,
        profile,
    };
    View {
        cluster: ClusterId(1),
        epoch: Epoch { generation: 1, index: 0 },
        coordinators: BTreeMap::new(),
        nodes: [(ME, node)].into(),
        models: BTreeMap::new(),
    }
}

/// Has the view host a version. The model's first is its stable one.
pub fn host(view: &mut View, version: &str, hosted: HostedVersion) {
    let ModelVersion { model, version } = version.parse().unwrap();
    let traffic = Traffic { revision: Revision(1), stable: version, canary: None, previous: None };
    let first = Model { traffic, versions: BTreeMap::new(), labels: BTreeMap::new() };
    let model = Arc::make_mut(view.models.entry(model).or_insert_with(|| Arc::new(first)));
    model.versions.insert(version, hosted);
}

/// Changes a model of the view.
pub fn change(view: &mut View, model: &str, change: impl FnOnce(&mut Model)) {
    change(Arc::make_mut(view.models.get_mut(&model.parse().unwrap()).unwrap()));
}

/// Has the view name a coordinator, from whom bundles can be fetched.
pub fn add_holder(view: &mut View, id: u64, address: String) {
    let name = NodeName::new(&format!("c{id}")).unwrap();
    view.coordinators.insert(NodeId(id), Coordinator { name, address, voter: true });
}
