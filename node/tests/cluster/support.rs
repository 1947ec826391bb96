//! A cluster of real processes on loopback, and held-out digits to ask it about.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
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
    nodes: Vec<(String, Role)>,
    processes: BTreeMap<String, Child>,
    variables: Vec<(&'static str, String)>,
    seeds: Vec<String>,
    _turn: MutexGuard<'static, ()>,
}

impl Cluster {
    /// Starts coordinators `c1`.. and workers `w1`.., each a process.
    pub async fn start(coordinators: usize, workers: usize) -> Self {
        let mut cluster = Self::prepare(coordinators, workers).await;
        cluster.spawn_all();
        cluster
    }

    /// The config of such a cluster in a folder of its own, without certificates and without a process yet.
    pub async fn prepare(coordinators: usize, workers: usize) -> Self {
        let turn = ONE_AT_A_TIME.lock().await;
        let folder = tempfile::tempdir().unwrap();
        let nodes: Vec<(String, Role)> = (1..=coordinators)
            .map(|i| (format!("c{i}"), Role::Coordinator))
            .chain((1..=workers).map(|i| (format!("w{i}"), Role::Worker)))
            .collect();
        let seeds = free_addresses(nodes.len());
        let config = "cluster = \"test\"\n".to_owned() + &of_nodes(&nodes, &seeds);
        std::fs::write(folder.path().join("cluster.toml"), config).unwrap();
        let (processes, variables) = (BTreeMap::new(), Vec::new());
        Self { folder, nodes, processes, variables, seeds, _turn: turn }
    }

    /// Adds to the config, and to the environment of the processes.
    pub fn configure(&mut self, more: &str, variables: &[(&'static str, &str)]) {
        let path = self.folder.path().join("cluster.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, config + more).unwrap();
        self.variables.extend(variables.iter().map(|(name, value)| (*name, (*value).to_owned())));
    }

    /// Says in which zones nodes stand.
    pub fn set_zones(&mut self, zones: &[(&str, &str)]) {
        for (name, zone) in zones {
            self.describe(name, &format!("zone = \"{zone}\""));
        }
    }

    /// Adds a line to what the config says of a node.
    pub fn describe(&mut self, name: &str, line: &str) {
        let path = self.folder.path().join("cluster.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        let named = format!("name = \"{name}\"\n");
        std::fs::write(&path, config.replace(&named, &format!("{named}{line}\n"))).unwrap();
    }

    /// Adds coordinators to the config, which have no certificate and no process yet. Returns their addresses.
    pub fn add_coordinators(&mut self, names: &[&str]) -> Vec<String> {
        let nodes: Vec<_> = names.iter().map(|name| ((*name).to_owned(), Role::Coordinator)).collect();
        let addresses = free_addresses(nodes.len());
        self.configure(&of_nodes(&nodes, &addresses), &[]);
        self.nodes.extend(nodes);
        self.seeds.extend(addresses.clone());
        addresses
    }

    /// Gives a node another address in the config. Returns it.
    pub fn move_node(&mut self, name: &str) -> String {
        let at = self.nodes.iter().position(|(node, _)| node == name).unwrap();
        let (from, to) = (self.seeds[at].clone(), free_addresses(1).remove(0));
        let path = self.folder.path().join("cluster.toml");
        let config = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, config.replace(&from, &to)).unwrap();
        self.seeds[at].clone_from(&to);
        to
    }

    /// Starts all nodes of a prepared cluster.
    pub fn spawn_all(&mut self) {
        self.issue_certificates();
        for (name, _) in self.nodes.clone() {
            self.spawn(&name);
        }
    }

    /// Certificates for all nodes, and for `anna`, who may do everything.
    pub fn issue_certificates(&self) {
        write_certificates(self.folder.path(), &self.nodes);
    }

    /// Where config, certificates, logs and data lie.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The names and roles of all nodes, running or not.
    pub fn nodes(&self) -> &[(String, Role)] {
        &self.nodes
    }

    /// The addresses of all nodes, in the same order.
    pub fn addresses(&self) -> &[String] {
        &self.seeds
    }

    /// What a node has logged so far.
    pub fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.log_of(name)).unwrap()
    }

    /// Starts a node of the config.
    pub fn spawn(&mut self, name: &str) {
        self.spawn_by(Command::new(env!("CARGO_BIN_EXE_roost-node")), name);
    }

    /// Starts a node whose writes fail beyond [`Cluster::limit_files`], as they do on a disk. By default it would be killed.
    pub fn spawn_limitable(&mut self, name: &str) {
        let mut shell = Command::new("sh");
        shell.args(["-c", "trap '' XFSZ; exec \"$0\" \"$@\"", env!("CARGO_BIN_EXE_roost-node")]);
        self.spawn_by(shell, name);
    }

    /// Lets a process write no file beyond so many bytes from now on.
    pub fn limit_files(&self, name: &str, bytes: u64) {
        let process = self.processes[name].id().to_string();
        let limit = format!("--fsize={bytes}");
        let limited = Command::new("prlimit").args(["--pid", &process, &limit]).status().unwrap();
        assert!(limited.success());
    }

    fn spawn_by(&mut self, mut command: Command, name: &str) {
        let log = std::fs::File::options().create(true).append(true).open(self.log_of(name)).unwrap();
        let child = command
            .arg("--config")
            .arg(self.folder.path().join("cluster.toml"))
            .args(["--name", name])
            .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
            .envs(self.variables.iter().map(|(name, value)| (*name, value)))
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

    /// Kills several before waiting for any: SIGKILL.
    pub fn kill_at_once(&mut self, names: &[String]) {
        let mut children: Vec<Child> =
            names.iter().map(|name| self.processes.remove(name).unwrap()).collect();
        children.iter_mut().for_each(|child| child.kill().unwrap());
        for child in &mut children {
            child.wait().unwrap();
        }
    }

    /// Waits until one of the processes has died by itself. Returns its name.
    pub async fn died(&mut self) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let ended = |child: &mut Child| child.try_wait().unwrap().is_some();
            let dead = self.processes.iter_mut().find_map(|(name, child)| ended(child).then(|| name.clone()));
            if let Some(dead) = dead {
                self.processes.remove(&dead);
                return dead;
            }
            assert!(Instant::now() < deadline, "nobody died");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
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
        let status = ended(&mut child, name).await;
        assert!(status.success(), "{name}: {status}");
    }

    /// The data folder of a node.
    pub fn data_of(&self, name: &str) -> PathBuf {
        self.folder.path().join("data").join(name)
    }

    /// Waits until a process has failed by itself, and returns its log.
    pub async fn ended(&mut self, name: &str) -> String {
        let mut child = self.processes.remove(name).unwrap();
        let status = ended(&mut child, name).await;
        assert!(!status.success(), "{name} ended well");
        self.log(name)
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

/// The files in a folder; none when it is not there.
pub fn files(folder: &Path) -> usize {
    std::fs::read_dir(folder).into_iter().flatten().count()
}

/// Waits until a process has ended by itself. One that does not is killed, and fails the test.
pub async fn ended(child: &mut Child, what: &str) -> ExitStatus {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        if let Some(status) = child.try_wait().unwrap() {
            return status;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    child.kill().unwrap();
    child.wait().unwrap();
    panic!("{what} has not ended");
}

/// The part of a config that lists nodes.
fn of_nodes(nodes: &[(String, Role)], addresses: &[String]) -> String {
    let mut config = String::new();
    for ((name, role), address) in nodes.iter().zip(addresses) {
        let key = if *role == Role::Coordinator { "coordinator_address" } else { "address" };
        let _ = writeln!(config, "[[node]]\nname = \"{name}\"\nroles = [\"{role}\"]\n{key} = \"{address}\"");
    }
    config
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
    let pem = authority.pem();
    std::fs::write(certs.join("ca.pem"), pem.certificate).unwrap();
    std::fs::write(certs.join("ca.key"), pem.key).unwrap();
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

    /// What one of them shows.
    pub fn label(&self, i: usize) -> String {
        self.labels[i].to_string()
    }

    /// The 64 pixels of one of them, row by row.
    pub fn pixels(&self, i: usize) -> &[f32] {
        self.images[i].elements::<f32>().unwrap()
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
