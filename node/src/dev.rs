//! `roost-node dev`: a whole cluster in one process, shown at work.
//!
//! Three nodes, each coordinator and worker, with a CA of their own and data in a folder or a temporary one. They talk over
//! loopback as they would between machines; nothing is shortened.

mod folder;
mod showing;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::Context as _;
use futures::future::select_all;
use roost_client::{Client, ClientConfig, CredentialsSource};
use roost_protocol::quic::Credentials;
use roost_protocol::{NodeName, Version};

use crate::config::ClusterConfig;
use crate::engine::{self, Engine};
use crate::environment::production::{OsClock, production};
use crate::start::{Node, NodeConfig, start};
use crate::telemetry::{self, TelemetryConfig};

/// The nodes of a development cluster.
const NODES: [&str; 3] = ["a", "b", "c"];
/// The cluster's name, as in its certificates.
const CLUSTER: &str = "dev";
/// The name of whoever operates it.
const OPERATOR: &str = "dev";
/// Ports that each node listens on: of its worker, and of its coordinator.
const PORTS_PER_NODE: u16 = 2;
/// The last port that can be the first one of the cluster.
pub const PORT_MAX: u16 = u16::MAX - (PORTS_PER_NODE * NODES.len() as u16 - 1);

/// What `roost-node dev` was told.
#[derive(Debug, Clone)]
pub struct DevOptions {
    /// Where the cluster keeps its data; a temporary folder otherwise.
    pub data: Option<PathBuf>,
    /// A folder with `v1`, `v2` and the held-out images.
    pub models: PathBuf,
    /// The first of the ports that the nodes listen on, at most [`PORT_MAX`]. Without it, 7400, or the one that the cluster
    /// in the folder has.
    pub port: Option<u16>,
    /// Whether to end after the showing.
    pub demo: bool,
}

/// Starts the cluster, shows a rollout, and keeps serving unless it was told to end.
///
/// # Errors
/// With what was being done when something failed.
pub fn main(options: DevOptions) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _in_runtime = runtime.enter();
    // The showing prints what there is to see; the log only what went wrong.
    let log = std::env::var("ROOST_LOG").unwrap_or_else(|_| "error".to_owned());
    let _telemetry =
        telemetry::init(&TelemetryConfig { log, ..TelemetryConfig::default() }, "roost-node", CLUSTER)?;
    let temporary = match &options.data {
        Some(_) => None,
        None => Some(tempfile::Builder::new().prefix("roost-dev-").tempdir()?),
    };
    let folder = options.data.clone().or_else(|| temporary.as_ref().map(|t| t.path().to_owned()));
    let folder = folder.context("no data folder")?;
    let (engines, missing) = crate::process::engines(None);
    anyhow::ensure!(!engines.is_empty(), "there is no engine: {}", engine::why_none(&missing));
    runtime.block_on(run(&options, &folder, engines))
}

async fn run(options: &DevOptions, folder: &Path, engines: Vec<Arc<dyn Engine>>) -> anyhow::Result<()> {
    folder::write(folder, options.port).context("cannot write the cluster's files")?;
    let cluster = Arc::new(ClusterConfig::read(&folder.join("cluster.toml"))?);
    println!(
        "▸ starts three nodes in this process, each coordinator and worker, data in {}",
        folder.display()
    );
    let mut nodes = Vec::new();
    for name in NODES {
        nodes.push(start_node(&cluster, folder, name, engines.clone()).await?);
    }
    let client = connect(&cluster, folder).await?;
    let second = showing::show(&client, &options.models).await?;
    if !options.demo {
        println!("\n{}", what_to_try(folder, &options.models, second));
        let ended = nodes.iter_mut().map(|node| Box::pin(node.ended()));
        tokio::select! {
            pressed = tokio::signal::ctrl_c() => pressed?,
            _ = select_all(ended) => anyhow::bail!("a node has died; its log is above"),
        }
        println!("stops");
    }
    drop(client);
    // All at once: the last ones would wait in vain for somebody to take over.
    nodes.clear();
    Ok(())
}

async fn start_node(
    cluster: &Arc<ClusterConfig>,
    folder: &Path,
    name: &str,
    engines: Vec<Arc<dyn Engine>>,
) -> anyhow::Result<Node> {
    let credentials = credentials(folder, name)?;
    let environment = production(&folder.join("data").join(name), engines)?;
    let (cluster, name) = (cluster.clone(), NodeName::new(name)?);
    let config = NodeConfig { cluster, name: name.clone(), credentials: Arc::new(credentials) };
    let node = start(config, environment).await.with_context(|| format!("node {name}"))?;
    Ok(node)
}

async fn connect(cluster: &ClusterConfig, folder: &Path) -> anyhow::Result<Client> {
    let seeds: Vec<String> = cluster.nodes.iter().filter_map(|node| node.address.clone()).collect();
    let file = |name: &str| folder.join("certs").join(name);
    let (ca, certificate) = (file("ca.pem"), file(&format!("{OPERATOR}.pem")));
    let credentials = CredentialsSource::Files { ca, certificate, key: file(&format!("{OPERATOR}.key")) };
    let mut config = ClientConfig::new(seeds, credentials);
    config.connect = showing::READY;
    Ok(Client::connect(config).await?)
}

fn credentials(folder: &Path, name: &str) -> anyhow::Result<Credentials> {
    let certs = folder.join("certs");
    let read = |file: String| {
        let path = certs.join(file);
        std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))
    };
    let (ca, certificate) = (read("ca.pem".to_owned())?, read(format!("{name}.pem"))?);
    Ok(Credentials::from_pem(&ca, &certificate, &read(format!("{name}.key"))?, Arc::new(OsClock))?)
}

fn what_to_try(folder: &Path, models: &Path, second: Version) -> String {
    let (folder, models) = (folder.display(), models.display());
    format!(
        "The cluster keeps serving; Ctrl-C ends it. In another terminal, try:\n\
         \x20 export ROOST_PROFILE={folder}/roost.toml\n\
         \x20 alias roost='cargo run --release --quiet --bin roost --'\n\
         \x20 roost cluster status\n\
         \x20 roost versions digits\n\
         \x20 roost infer digits --key user-42 --input image={models}/heldout_images.npy --rows 0..4\n\
         \x20 roost rollout undo digits\n\
         \x20 roost rollout start digits@{second} --steps 50%\n\
         \x20 roost rollout promote digits\n\
         \x20 roost rollout history digits"
    )
}
