//! Engines: what runs a model. [`native`] is Roost's own; [`onnxruntime`] takes what it does not support.
//!
//! An engine loads a bundle into sessions. A session runs one batch at a time on the executor that owns it,
//! writes its outputs to a [`Sink`], and can be cancelled from another thread. Nothing here knows of
//! requests, versions or nodes.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use roost_protocol::manifest::{EngineChoice, Manifest};
use roost_protocol::messages::infer::Named;
use roost_protocol::{DType, Digest, Tensor, TensorView};

#[cfg(feature = "native")]
pub mod native;
#[cfg(feature = "onnxruntime")]
pub mod onnxruntime;

/// The files of a bundle, owned or mapped, by name. Their digests were checked.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Bytes by file name.
    pub files: BTreeMap<String, Bytes>,
    /// What `model.toml` says.
    pub manifest: Arc<Manifest>,
    /// The digest of the list of its files, where the bytes were checked against it. Sessions of one digest
    /// may share what an engine makes of it.
    pub digest: Option<Digest>,
}

/// A dimension of an input or output, as the model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Dim {
    /// Fixed.
    Fixed(u64),
    /// Any size; the name, where the model gives one, says which dimensions are equal.
    Free(String),
}

/// An input or output, as the model declares it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Port {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: DType,
    /// Its dimensions, outermost first.
    pub dims: Vec<Dim>,
}

impl Port {
    /// The shape as users read it: `[N, 1, 8, 8]`.
    pub fn shape_text(&self) -> String {
        let dim = |dim: &Dim| match dim {
            Dim::Fixed(size) => size.to_string(),
            Dim::Free(name) if name.is_empty() => "?".to_owned(),
            Dim::Free(name) => name.clone(),
        };
        format!("[{}]", self.dims.iter().map(dim).collect::<Vec<_>>().join(", "))
    }
}

/// What a model takes and gives.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Signature {
    /// Inputs, in the order of the model.
    pub inputs: Vec<Port>,
    /// Outputs, in the order of the model.
    pub outputs: Vec<Port>,
}

/// Why an engine did not load or run a model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EngineError {
    /// The engine's library cannot be used.
    #[error(transparent)]
    Library(#[from] LibraryError),
    /// The bundle lacks a file.
    #[error("the bundle has no file {0}")]
    MissingFile(String),
    /// The bytes are no model.
    #[error("model.onnx is not an ONNX model: {0}")]
    NotAModel(String),
    /// The model needs what the engine does not have.
    #[error("the engine cannot run this model: {0}")]
    Unsupported(String),
    /// An input or output of an element type that tensors cannot have here.
    #[error("{port} has an element type that is not supported: {dtype}")]
    UnsupportedDType {
        /// The input or output.
        port: String,
        /// The type, as the engine names it.
        dtype: String,
    },
    /// The session failed on these inputs.
    #[error("{0}")]
    Run(String),
    /// The run was cancelled.
    #[error("the run was cancelled")]
    Cancelled,
}

/// Why an engine's library cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LibraryError {
    /// It is not there.
    #[error(
        "ONNX Runtime is not there; looked for{}\nTo get it, run ./deploy/fetch-onnxruntime.sh; or name the library in \
         the config, or in ORT_DYLIB_PATH",
        list(.looked)
    )]
    NotFound {
        /// Where it was looked for, in this order.
        looked: Vec<PathBuf>,
    },
    /// The file is something else, or too old, or made for another machine.
    #[error("{} cannot be used as ONNX Runtime: {reason}", .path.display())]
    Refused {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// The process runs on another library already.
    #[error(
        "this process runs on {} already, and can have one ONNX Runtime only; {} was asked for",
        .loaded.display(),
        .asked.display()
    )]
    AnotherLoaded {
        /// The library that the process runs on.
        loaded: PathBuf,
        /// The library that was asked for.
        asked: PathBuf,
    },
}

/// Paths, each on a line of its own.
fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| format!("\n  {}", path.display())).collect()
}

/// An engine that this machine does not have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// Which.
    pub engine: EngineChoice,
    /// Why not, and how to get it.
    pub reason: String,
}

/// Why a machine has no engine at all.
pub fn why_none(missing: &[Missing]) -> String {
    if missing.is_empty() {
        return "none was given to it".to_owned();
    }
    let reasons: Vec<_> = missing.iter().map(|missing| missing.reason.as_str()).collect();
    reasons.join("; ")
}

/// Loads bundles.
pub trait Engine: Send + Sync + 'static {
    /// Which engine this is; never [`EngineChoice::Auto`].
    fn choice(&self) -> EngineChoice;

    /// Makes a session. Called on an executor, off the request path.
    ///
    /// # Errors
    /// [`EngineError`] when the bundle is no model, or the engine cannot run it.
    fn load(&self, bundle: &Bundle) -> Result<Box<dyn Session>, EngineError>;
}

/// A loaded model. One executor owns it and runs one batch at a time.
pub trait Session: Send {
    /// What the model takes and gives.
    fn signature(&self) -> &Signature;

    /// Why a row's result may depend on the rows beside it, where the engine knows that it may: such a
    /// model's requests do not share a batch.
    fn batch_variant(&self) -> Option<&str> {
        None
    }

    /// Runs a batch. `inputs` are in the order of [`Signature::inputs`] and fit it; outputs go to `sink`.
    ///
    /// # Errors
    /// [`EngineError::Run`] when the model fails, [`EngineError::Cancelled`] when `cancel` was raised
    /// meanwhile.
    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        cancel: &Cancel,
        sink: &mut dyn Sink,
    ) -> Result<(), EngineError>;
}

/// Takes the outputs of a run, in one part or in several.
pub trait Sink {
    /// Takes a part: outputs by name.
    fn part(&mut self, outputs: Vec<Named<Tensor>>);
}

/// Gathers all parts.
impl Sink for Vec<Vec<Named<Tensor>>> {
    fn part(&mut self, outputs: Vec<Named<Tensor>>) {
        self.push(outputs);
    }
}

/// A flag that ends a run early, and whom to tell when it is raised.
#[derive(Clone, Default)]
pub struct Cancel(Arc<CancelState>);

#[derive(Default)]
struct CancelState {
    raised: AtomicBool,
    on_raise: std::sync::Mutex<Option<Box<dyn Fn() + Send>>>,
}

impl Cancel {
    /// A flag that is not raised.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raises the flag.
    pub fn raise(&self) {
        self.0.raised.store(true, Ordering::Release);
        let on_raise = self.0.on_raise.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(tell) = on_raise.as_ref() {
            tell();
        }
    }

    /// Whether it was raised.
    pub fn is_raised(&self) -> bool {
        self.0.raised.load(Ordering::Acquire)
    }

    /// Calls `tell` when the flag is raised while `run` runs.
    pub fn while_telling<T>(&self, tell: impl Fn() + Send + 'static, run: impl FnOnce() -> T) -> T {
        let slot = || self.0.on_raise.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        *slot() = Some(Box::new(tell));
        let result = run();
        *slot() = None;
        result
    }
}
