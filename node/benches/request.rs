//! What a cluster adds to a model: requests through the client, QUIC, admission, batching and an executor, beside the
//! same model called in this process.
//!
//! `cargo bench -p roost-node --bench request` starts `roost-node dev` (three nodes in one process, on the digits models)
//! and prints medians. Anything else that runs this makes one short pass to see that it still works.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use roost_client::{Client, ClientConfig, CredentialsSource, npy};
use roost_node::engine::onnxruntime::OnnxRuntime;
use roost_node::engine::{Bundle, Cancel, Engine};
use roost_protocol::manifest::Manifest;
use roost_protocol::{Target, Tensor};
use tokio::time::Instant;

/// The first of the six ports that `dev` takes.
const PORT: u16 = 27_400;
/// `dev` shows a rollout first.
const READY: Duration = Duration::from_secs(60);
/// Keys that requests are sent by.
const KEYS: usize = 1_000;

fn main() {
    let thorough = std::env::args().any(|argument| argument == "--bench");
    let requests = if thorough { 20_000 } else { 100 };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let dev = Dev::start(folder.path());
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    println!("{}", machine());
    println!("{:<34} {:>10} {:>10} {:>12}", "", "p50", "p99", "requests/s");
    for version in [1, 2] {
        in_process(version, requests);
        runtime.block_on(through_the_cluster(folder.path(), version, requests));
    }
    drop(dev);
}

/// A cluster in a process, which ends with this.
struct Dev(Child);

impl Dev {
    fn start(folder: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_roost-node"))
            .args(["dev", "--port", &PORT.to_string(), "--data"])
            .arg(folder)
            .current_dir(repository())
            .stdout(Stdio::null())
            .spawn();
        Self(child.expect("roost-node starts"))
    }
}

impl Drop for Dev {
    fn drop(&mut self) {
        // It may have ended by itself; the requests have failed then.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn image() -> Tensor {
    let file = repository().join("deploy/models/digits/heldout_images.npy");
    let images = npy::read(&std::fs::read(file).expect("the held-out images")).expect("an npy file");
    let pixels = images.elements::<f32>().expect("f32")[..64].to_vec();
    Tensor::from_elements(&[1, 1, 8, 8], pixels).expect("64 pixels")
}

/// The model alone, one row at a time.
fn in_process(version: u32, runs: usize) {
    let engine = OnnxRuntime::find(None).expect("./deploy/fetch-onnxruntime.sh gets ONNX Runtime");
    let file = repository().join(format!("deploy/models/digits/v{version}/model.onnx"));
    let files = [("model.onnx".to_owned(), Bytes::from(std::fs::read(file).expect("the model")))].into();
    let bundle = Bundle { files, manifest: Arc::new(Manifest::default()), digest: None };
    let mut session = engine.load(&bundle).expect("the model loads");
    let (image, cancel) = (image(), Cancel::new());
    let mut times = Vec::with_capacity(runs);
    let began = Instant::now();
    for _ in 0..runs {
        let started = Instant::now();
        let mut parts = Vec::new();
        session.run(&[image.view()], &cancel, &mut parts).expect("the model runs");
        times.push(started.elapsed());
    }
    print_row(&format!("digits@{version}, in process"), &mut times, began.elapsed());
}

async fn through_the_cluster(folder: &Path, version: u32, requests: usize) {
    let client = connect(folder).await;
    for concurrency in [1, 32] {
        // The first requests make connections and fill caches.
        measure(&client, version, concurrency, requests / 10).await;
        let began = Instant::now();
        let mut times = measure(&client, version, concurrency, requests).await;
        print_row(&format!("digits@{version}, {concurrency} in flight"), &mut times, began.elapsed());
    }
}

/// How long each request took.
async fn measure(client: &Client, version: u32, concurrency: usize, requests: usize) -> Vec<Duration> {
    let (image, target) = (image(), format!("digits@{version}").parse::<Target>().expect("a target"));
    let ask = |i: usize| {
        let (image, target) = (image.clone(), target.clone());
        async move {
            let started = Instant::now();
            let key = format!("user-{}", i % KEYS);
            let asked = client.infer(target).key(&key).input("image", image).send().await;
            asked.expect("an answer");
            started.elapsed()
        }
    };
    futures::stream::iter(0..requests).map(ask).buffer_unordered(concurrency).collect().await
}

/// A client once both versions answer.
async fn connect(folder: &Path) -> Client {
    let certs = folder.join("certs");
    let deadline = Instant::now() + READY;
    while !certs.join("ca.pem").exists() {
        assert!(Instant::now() < deadline, "roost-node dev has written no certificates");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let (ca, certificate) = (certs.join("ca.pem"), certs.join("dev.pem"));
    let credentials = CredentialsSource::Files { ca, certificate, key: certs.join("dev.key") };
    let mut config = ClientConfig::new(vec![format!("127.0.0.1:{PORT}")], credentials);
    config.connect = READY;
    let client = Client::connect(config).await.expect("a cluster");
    for version in [1, 2] {
        let target: Target = format!("digits@{version}").parse().expect("a target");
        while client.infer(target.clone()).input("image", image()).send().await.is_err() {
            assert!(Instant::now() < deadline, "digits@{version} does not answer");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    client
}

fn print_row(what: &str, times: &mut [Duration], took: Duration) {
    times.sort_unstable();
    let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e6;
    let rate = times.len() as f64 / took.as_secs_f64();
    println!("{what:<34} {:>7.0} µs {:>7.0} µs {rate:>12.0}", at(0.5), at(0.99));
}

/// The machine and the commit, so that no figure is read without them.
fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(std::env::consts::ARCH);
    let log = Command::new("git").args(["log", "-1", "--format=%h of %cs"]).output();
    let commit =
        log.map_or_else(|_| "?".to_owned(), |output| String::from_utf8_lossy(&output.stdout).into_owned());
    format!("{}, commit {}", model.trim_matches([' ', '\t', ':']), commit.trim())
}
