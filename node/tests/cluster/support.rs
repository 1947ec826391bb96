//! A cluster of real processes on loopback, and held-out digits to ask it about.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use roost_client::bundle::LocalBundle;
use roost_client::certs::{Authority, Validity};
use roost_client::{Client, ClientConfig, CredentialsSource, Response, npy};
use roost_node::environment::production::OsClock;
use roost_protocol::quic::{PeerIdentity, Role};
use roost_protocol::{ClusterName, InferError, ModelName, ModelVersion, NodeId, Tenant, Tensor, Version};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

/// Nothing that a test waits for takes half as long, even on busy cores.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// The lines of each process's log that a failed test shows.
const LOG_LINES: usize = 40;

/// Six processes want both cores: one cluster at a time.
static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());

/// The digits models of the repository.
pub fn digits_folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/models/digits")
}

/// A cluster of processes. Dropping it kills them.
pub struct Cluster {
    folder: tempfile::TempDir,
    processes: BTreeMap<String, Child>,
    seeds: Vec<String>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts coordinators `c1`.. and workers `w1`.., each a process.
    pub async fn start(coordinators: usize, workers: usize) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let names: Vec<(String, Role)> = (1..=coordinators)
            .map(|i| (format!("c{i}"), Role::Coordinator))
            .chain((1..=workers).map(|i| (format!("w{i}"), Role::Worker)))
            .collect();
        let addresses = free_addresses(names.len());
        write_certificates(folder.path(), &names);
        let mut config = "cluster = \"test\"\n".to_owned();
        for ((name, role), address) in names.iter().zip(&addresses) {
            let key = if *role == Role::Coordinator { "coordinator_address" } else { "address" };
            let _ =
                writeln!(config, "[[node]]\nname = \"{name}\"\nroles = [\"{role}\"]\n{key} = \"{address}\"");
        }
        std::fs::write(folder.path().join("cluster.toml"), config).unwrap();
        let mut cluster = Self { folder, processes: BTreeMap::new(), seeds: addresses, _turn: turn };
        for (name, _) in &names {
            cluster.spawn(name);
        }
        cluster
    }

    fn spawn(&mut self, name: &str) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_of(name)).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_roost-node"))
            .arg("--config")
            .arg(self.folder.path().join("cluster.toml"))
            .args(["--name", name])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        self.processes.insert(name.to_owned(), child);
    }

    fn log_of(&self, name: &str) -> PathBuf {
        self.folder.path().join(format!("{name}.log"))
    }

    /// A client of the cluster, which may do everything.
    pub async fn connect(&self) -> Client {
        let certs = self.folder.path().join("certs");
        let credentials = CredentialsSource::Files {
            ca: certs.join("ca.pem"),
            certificate: certs.join("anna.pem"),
            key: certs.join("anna.key"),
        };
        let mut config = ClientConfig::new(self.seeds.clone(), credentials);
        config.connect = PATIENCE;
        Client::connect(config).await.unwrap()
    }

    /// The name of a coordinator.
    pub fn name_of(&self, client: &Client, node: NodeId) -> String {
        client.published().borrow().view.as_ref().unwrap().coordinators[&node].name.to_string()
    }

    /// Kills a process: SIGKILL.
    pub fn kill(&mut self, name: &str) {
        let mut child = self.processes.remove(name).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// Starts a process again, with the data folder that it had.
    pub async fn restart(&mut self, name: &str) {
        self.spawn(name);
    }

    /// Tells a process to stop, and waits until it has.
    pub async fn terminate(&mut self, name: &str) {
        let mut child = self.processes.remove(name).unwrap();
        let told = Command::new("kill").args(["-TERM", &child.id().to_string()]).status().unwrap();
        assert!(told.success());
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break status;
            }
            assert!(Instant::now() < deadline, "{name} has not stopped");
            tokio::time::sleep(Duration::from_millis(50)).await;
        };
        assert!(status.success(), "{name}: {status}");
    }

    /// Ends all processes.
    pub async fn stop(mut self) {
        for name in self.processes.keys().cloned().collect::<Vec<_>>() {
            self.kill(&name);
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.processes.values_mut() {
            // It may have ended by itself, which the log below tells.
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for entry in std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten() {
                let path = entry.path();
                if path.extension().is_some_and(|extension| extension == "log") {
                    let text = std::fs::read_to_string(&path).unwrap_or_default();
                    let lines: Vec<_> = text.lines().collect();
                    let tail = &lines[lines.len().saturating_sub(LOG_LINES)..];
                    eprintln!("--- {}\n{}", path.display(), tail.join("\n"));
                }
            }
        }
    }
}

/// Addresses on loopback that were free a moment ago.
fn free_addresses(count: usize) -> Vec<String> {
    let sockets: Vec<_> = (0..count).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").unwrap()).collect();
    sockets.iter().map(|socket| socket.local_addr().unwrap().to_string()).collect()
}

fn write_certificates(folder: &Path, names: &[(String, Role)]) {
    let certs = folder.join("certs");
    std::fs::create_dir_all(&certs).unwrap();
    let (cluster, validity) = (ClusterName::new("test").unwrap(), Validity::days(&OsClock, 1));
    let authority = Authority::create(cluster.clone(), validity).unwrap();
    std::fs::write(certs.join("ca.pem"), authority.pem().certificate).unwrap();
    let issue = |name: &str, roles: &[Role]| {
        let roles: BTreeSet<Role> = roles.iter().copied().collect();
        let identity = PeerIdentity { cluster: cluster.clone(), roles, name: Tenant::new(name).unwrap() };
        let pem = authority.issue(&identity, validity, &[]).unwrap();
        std::fs::write(certs.join(format!("{name}.pem")), pem.certificate).unwrap();
        std::fs::write(certs.join(format!("{name}.key")), pem.key).unwrap();
    };
    names.iter().for_each(|(name, role)| issue(name, &[*role]));
    issue("anna", &[Role::Operator, Role::Client]);
}

/// Pushes a bundle.
pub async fn push(client: &Client, model: &str, folder: &Path) -> Version {
    let bundle = LocalBundle::open(folder).await.unwrap();
    let model = ModelName::new(model).unwrap();
    client.control().push(&model, &bundle, "test", |_| {}).await.unwrap().version
}

/// Waits until so many nodes serve a version.
pub async fn wait_for_stage(client: &Client, version: &ModelVersion, nodes: usize) {
    let mut published = client.published();
    let serves = published.wait_for(|published| {
        let all = published.view.iter().flat_map(|view| view.nodes.keys());
        all.filter(|node| published.soft.serves(**node, &version.model, version.version)).count() >= nodes
    });
    let found = tokio::time::timeout(PATIENCE, serves).await.is_ok();
    if !found {
        panic!("{version} is not ready on {nodes} nodes: {:#?}", client.published().borrow().soft);
    }
}

/// The held-out digits.
pub struct Digits {
    images: Vec<Tensor>,
    labels: Vec<i64>,
}

impl Digits {
    /// Reads them.
    pub fn read() -> Self {
        let read = |name: &str| npy::read(&std::fs::read(digits_folder().join(name)).unwrap()).unwrap();
        let images = read("heldout_images.npy");
        let pixels = images.elements::<f32>().unwrap().chunks_exact(64);
        Self {
            images: pixels.map(|p| Tensor::from_elements(&[1, 1, 8, 8], p.to_vec()).unwrap()).collect(),
            labels: read("heldout_labels.npy").elements::<i64>().unwrap().to_vec(),
        }
    }

    /// Asks about one of them.
    pub async fn ask(&self, client: &Client, i: usize, key: &str) -> Result<Response, InferError> {
        let image = self.images[i % self.images.len()].clone();
        client.infer("digits").key(key).input("image", image).send().await
    }

    /// How many of all are classified right.
    pub async fn right(&self, client: &Client) -> usize {
        use futures::StreamExt;
        let asks = (0..self.images.len()).map(|i| async move {
            let response = self.ask(client, i, &format!("digit-{i}")).await.unwrap();
            let labels = response.labels(1).unwrap();
            usize::from(labels[0][0].label == self.labels[i].to_string())
        });
        futures::stream::iter(asks).buffer_unordered(8).fold(0, |sum, right| async move { sum + right }).await
    }
}
