//! Where test data lies. What is missing fails the test: nothing is skipped in silence.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use roost_kernels::Isa;
use roost_native::conformance::read_bundle;
use roost_native::program::Options;
use roost_native::{Limits, Model, Program};

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .expect("the crate lies in the repository")
}

/// The folder of a test model: under `ROOST_TEST_MODELS`, by default beside the repository.
pub fn model(name: &str) -> PathBuf {
    let models = std::env::var_os("ROOST_TEST_MODELS")
        .map_or_else(|| repository().join("../shared/models"), PathBuf::from);
    let folder = models.join(name);
    assert!(
        folder.join("model.onnx").exists(),
        "{} has no model.onnx; set ROOST_TEST_MODELS to the folder of the test models",
        folder.display()
    );
    folder
}

/// The folder of ONNX's backend tests: `ROOST_TEST_CONFORMANCE`, else fetched once into the target folder.
pub fn conformance() -> PathBuf {
    if let Some(folder) = std::env::var_os("ROOST_TEST_CONFORMANCE") {
        return folder.into();
    }
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("onnx-1.18.0-tests");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fetch-conformance.sh");
    let mut command = Command::new("sh");
    command.arg(&script).arg(&folder);
    let beside = repository().join("../shared/conformance/core_onnx1.18.0.tar.gz");
    if beside.exists() && std::env::var_os("ONNX_CONFORMANCE_ARCHIVE").is_none() {
        command.env("ONNX_CONFORMANCE_ARCHIVE", beside);
    }
    let status = command.status().expect("sh runs");
    assert!(status.success(), "{} did not fetch the tests; set ROOST_TEST_CONFORMANCE", script.display());
    folder
}

/// A test model, compiled.
pub fn program(folder: &Path, isa: Option<Isa>) -> Arc<Program> {
    let files = read_bundle(folder).expect("the model's files can be read");
    let model = Model::import(&files, Limits::default()).expect("the model can be imported");
    Program::compile(model, Options { isa }).expect("the model compiles")
}
