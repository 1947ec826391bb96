//! The engine on ONNX Runtime, with real models: those of the repository, and those that `ROOST_TEST_MODELS`
//! names.
//!
//! A test whose library or model is missing fails and says what to do.
#![cfg(feature = "onnxruntime")]
#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

mod cancelled;
mod digits;
mod made;
mod onnx;
mod published;
mod refusals;

use std::path::Path;

use onnx::{bundle, engine};
use roost_node::engine::{Bundle, Engine, EngineError, Session};

/// A session of the model in a folder.
fn load(folder: &Path) -> Box<dyn Session> {
    let loaded = engine().load(&bundle(folder));
    loaded.unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
}

/// The error of a bundle that must not load.
fn refused(bundle: &Bundle) -> EngineError {
    engine().load(bundle).map(|_| ()).unwrap_err()
}
