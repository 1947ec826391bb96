//! A node as a process: its config and certificates read from files, stopped by signals.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use object_store::ObjectStore;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::quic::Credentials;
use tokio::signal::unix::{SignalKind, signal};

use crate::config::{ClusterConfig, ConfigRole, NodeEntry, S3Config, path_for};
use crate::engine::{Engine, Missing};
use crate::environment::production::{OsClock, production};
use crate::start::{NodeConfig, start};
use crate::telemetry;

/// Runs the node `name` of the cluster config until it is told to stop (SIGTERM, SIGINT) or cannot go on
/// ([`crate::Node::ended`]). Whoever keeps the process running starts it again then.
///
/// # Errors
/// When the node does not start, with what was being done; or when it could not go on.
pub fn main(config: &Path, name: &str) -> anyhow::Result<()> {
    let cluster = ClusterConfig::read(config)?;
    let folder = config.parent().unwrap_or(Path::new("."));
    let entry = cluster.node(name)?.clone();
    // The process's own task only waits; each role has a runtime of its own.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let _in_runtime = runtime.enter();
    let _telemetry = telemetry::init(&cluster.telemetry, "roost-node", name)?;
    let credentials = credentials(&cluster, folder, &entry)?;
    let library = cluster.onnxruntime.library.as_deref().map(|library| folder.join(library));
    let (engines, missing) = engines(library.as_deref());
    if entry.is(ConfigRole::Worker) {
        for Missing { engine, reason } in &missing {
            tracing::warn!(?engine, reason, "an engine is missing");
        }
    }
    let data = path_for(folder, &entry.data, &entry.name);
    let mut environment =
        production(&data, engines).with_context(|| format!("data folder {}", data.display()))?;
    environment.engines_missing = missing;
    if let (Some(s3), true) = (&cluster.bundles.s3, entry.is(ConfigRole::Coordinator)) {
        environment.bundles = Some(runtime.block_on(s3_store(s3, &cluster, &entry))?);
    }
    let config =
        NodeConfig { cluster: Arc::new(cluster), name: entry.name, credentials: Arc::new(credentials) };
    runtime.block_on(async {
        let mut node = start(config, environment).await?;
        tracing::info!(node = %node.name(), id = %node.id(), "started");
        let (mut terminate, mut interrupt) =
            (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        let ended = tokio::select! {
            _ = terminate.recv() => false,
            _ = interrupt.recv() => false,
            () = node.ended() => true,
        };
        tracing::info!(node = %node.name(), "stops");
        node.stop().await;
        anyhow::ensure!(!ended, "a role of the node has died, or all have ended; the log says why");
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

/// The node's part of the S3 store that the config names.
#[cfg(feature = "s3")]
pub(crate) async fn s3_store(
    s3: &S3Config,
    cluster: &ClusterConfig,
    entry: &NodeEntry,
) -> anyhow::Result<Arc<dyn ObjectStore>> {
    let own = format!("{}/{}", cluster.cluster, entry.name);
    Ok(crate::environment::production::s3::open(s3, &own).await?)
}

#[cfg(not(feature = "s3"))]
pub(crate) async fn s3_store(
    _: &S3Config,
    _: &ClusterConfig,
    _: &NodeEntry,
) -> anyhow::Result<Arc<dyn ObjectStore>> {
    anyhow::bail!("the config has [bundles.s3], and this build has no S3 client; build with the feature s3")
}

/// The engines that this machine has, in the order in which `auto` tries them, and why others are not among them.
pub(crate) fn engines(library: Option<&Path>) -> (Vec<Arc<dyn Engine>>, Vec<Missing>) {
    let (mut engines, mut missing): (Vec<Arc<dyn Engine>>, _) = (Vec::new(), Vec::new());
    match native() {
        Ok(engine) => engines.push(engine),
        Err(reason) => missing.push(Missing { engine: EngineChoice::Native, reason }),
    }
    match onnxruntime(library) {
        Ok(engine) => engines.push(engine),
        Err(reason) => missing.push(Missing { engine: EngineChoice::OnnxRuntime, reason }),
    }
    (engines, missing)
}

#[cfg(feature = "native")]
fn native() -> Result<Arc<dyn Engine>, String> {
    Ok(Arc::new(crate::engine::native::Native::new()))
}

#[cfg(not(feature = "native"))]
fn native() -> Result<Arc<dyn Engine>, String> {
    Err("this build has no native engine; build with the feature native".to_owned())
}

#[cfg(feature = "onnxruntime")]
fn onnxruntime(library: Option<&Path>) -> Result<Arc<dyn Engine>, String> {
    let found = crate::engine::onnxruntime::OnnxRuntime::find(library);
    found.map(|engine| Arc::new(engine) as Arc<dyn Engine>).map_err(|error| error.to_string())
}

#[cfg(not(feature = "onnxruntime"))]
fn onnxruntime(_: Option<&Path>) -> Result<Arc<dyn Engine>, String> {
    Err("this build has no ONNX Runtime; build with the feature onnxruntime".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_engine_says_why() {
        let (engines, missing) = engines(Some(Path::new("/nowhere/libonnxruntime.so")));
        assert_eq!(engines.len(), usize::from(cfg!(feature = "native")));
        let expected: &[_] = match cfg!(feature = "native") {
            true => &[EngineChoice::OnnxRuntime],
            false => &[EngineChoice::Native, EngineChoice::OnnxRuntime],
        };
        assert_eq!(missing.iter().map(|missing| missing.engine).collect::<Vec<_>>(), expected);
        let expected = if cfg!(feature = "onnxruntime") { "/nowhere/libonnxruntime.so" } else { "feature" };
        let why = crate::engine::why_none(&missing);
        assert!(why.contains(expected), "{why}");
    }
}
