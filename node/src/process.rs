//! A node as a process: its config and certificates read from files, stopped by signals.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use roost_protocol::quic::Credentials;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{ClusterConfig, NodeEntry, path_for};
use crate::engine::Engine;
use crate::environment::production::{OsClock, production};
use crate::start::{NodeConfig, start};
use crate::telemetry;

/// Runs the node `name` of the cluster config until it is told to stop (SIGTERM, SIGINT) or all its roles have failed.
///
/// # Errors
/// When the node does not start, with what was being done; or when its roles ended by themselves.
pub fn main(config: &Path, name: &str) -> anyhow::Result<()> {
    let cluster = ClusterConfig::read(config)?;
    let folder = config.parent().unwrap_or(Path::new("."));
    let entry = cluster.node(name)?.clone();
    // The process's own task only waits; each role has a runtime of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _in_runtime = runtime.enter();
    let _telemetry = telemetry::init(&cluster.telemetry, "roost-node", name)?;
    let credentials = credentials(&cluster, folder, &entry)?;
    let engines =
        engines(cluster.onnxruntime.library.as_deref().map(|library| folder.join(library)).as_deref());
    let data = path_for(folder, &entry.data, &entry.name);
    let environment =
        production(&data, engines).with_context(|| format!("data folder {}", data.display()))?;
    let config =
        NodeConfig { cluster: Arc::new(cluster), name: entry.name, credentials: Arc::new(credentials) };
    runtime.block_on(async {
        let mut node = start(config, environment).await?;
        tracing::info!(node = %node.name(), id = %node.id(), "started");
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
            () = node.ended() => anyhow::bail!("all roles of the node have ended; the log says why"),
        }
        tracing::info!(node = %node.name(), "stops");
        node.stop().await;
        Ok(())
    })
}

/// The node's certificate, its key, and the CAs, as the config says.
fn credentials(cluster: &ClusterConfig, folder: &Path, entry: &NodeEntry) -> anyhow::Result<Credentials> {
    let read = |template: &str| {
        let path = path_for(folder, template, &entry.name);
        std::fs::read(&path).with_context(|| {
            format!(
                "cannot read {}; `roost certs init` and `roost certs issue` make certificates",
                path.display()
            )
        })
    };
    let (ca, certificate) = (read(&cluster.tls.ca)?, read(&cluster.tls.certificate)?);
    let key = read(&cluster.tls.key)?;
    Ok(Credentials::from_pem(&ca, &certificate, &key, Arc::new(OsClock))?)
}

/// The engines that this machine has, in the order in which `auto` tries them. One that is missing is told in the log, and
/// a worker without any does not start.
pub(crate) fn engines(library: Option<&Path>) -> Vec<Arc<dyn Engine>> {
    let mut engines: Vec<Arc<dyn Engine>> = Vec::new();
    #[cfg(feature = "onnxruntime")]
    match crate::engine::onnxruntime::OnnxRuntime::find(library) {
        Ok(engine) => engines.push(Arc::new(engine)),
        Err(error) => tracing::warn!(%error, "no ONNX Runtime"),
    }
    #[cfg(not(feature = "onnxruntime"))]
    let _ = (&mut engines, library);
    engines
}
