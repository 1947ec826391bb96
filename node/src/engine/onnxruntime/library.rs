//! Where ONNX Runtime's library is, and the one environment that a process has of it.
//!
//! ONNX Runtime keeps its environment in variables of its library: a process has one, and a second library
//! would share the first one's symbols. So what was loaded is remembered here for the whole process, the only
//! such variable in Roost: asking for another library is an error, where `ort` would keep the first in
//! silence.
//!
//! Telemetry: the pinned 1.28.0 has none. Later libraries start theirs while they load, before
//! `with_telemetry(false)` can be said; only the variable `ORT_DISABLE_TELEMETRY=1` in the process's
//! environment stops that, and a process cannot set it for itself without unsafe code. Whoever starts a node
//! on a later library sets it.

use std::env::consts::{DLL_PREFIX, DLL_SUFFIX};
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use ort::environment::Environment;
use ort::logging::LogLevel;

use crate::engine::LibraryError;

/// The environment variable that names the library.
pub const PATH_VARIABLE: &str = "ORT_DYLIB_PATH";

/// Where `deploy/fetch-onnxruntime.sh` puts the library, below the repository or what was installed of it.
const FETCHED: &str = "deploy/onnxruntime";

/// What the search for the library depends on.
#[derive(Debug, Clone, Default)]
pub struct Surroundings {
    /// The library that the config names.
    pub configured: Option<PathBuf>,
    /// The value of [`PATH_VARIABLE`].
    pub variable: Option<OsString>,
    /// The current folder.
    pub current_folder: PathBuf,
    /// This process's executable, where it is known.
    pub executable: Option<PathBuf>,
}

/// Where the library may be, in the order of preference.
///
/// A library that is named, by the config or else by the variable, is the only candidate: were it passed over
/// because of a typing error, the node would run on another library than the one that the operator meant.
pub fn candidates(surroundings: &Surroundings) -> Vec<PathBuf> {
    let Surroundings { configured, variable, current_folder, executable } = surroundings;
    let variable = variable.as_deref().filter(|value| !value.is_empty()).map(OsStr::as_ref);
    if let Some(named) = configured.as_deref().or(variable) {
        return vec![current_folder.join(named)];
    }
    let name = format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}");
    let beside = executable.as_deref().and_then(Path::parent);
    let above = beside.into_iter().flat_map(Path::ancestors);
    let fetched = std::iter::once(current_folder.as_path()).chain(above).map(|folder| folder.join(FETCHED));
    let mut paths = Vec::new();
    for folder in fetched.chain(beside.map(Path::to_owned)) {
        let path = folder.join(&name);
        if !paths.contains(&path) {
            paths.push(path);
        }
    }
    paths
}

/// The library that this process runs on, and its environment, once there is one.
static LOADED: Mutex<Option<Loaded>> = Mutex::new(None);

struct Loaded {
    path: PathBuf,
    environment: Result<Environment, LibraryError>,
}

/// Loads the first candidate that is there; the same library again is the same environment.
///
/// # Errors
/// [`LibraryError`] when none is there, the file is no ONNX Runtime of this version, or another one is loaded
/// already.
pub fn load(candidates: Vec<PathBuf>) -> Result<Environment, LibraryError> {
    // The canonical path, so that two ways to write it are one library. `ort` would look up a relative one
    // beside the executable.
    let found = candidates.iter().filter(|path| path.is_file()).find_map(|path| path.canonicalize().ok());
    let Some(path) = found else {
        return Err(LibraryError::NotFound { looked: candidates });
    };
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(loaded) = loaded.as_ref() {
        if loaded.path != path {
            return Err(LibraryError::AnotherLoaded { loaded: loaded.path.clone(), asked: path });
        }
        return loaded.environment.clone();
    }
    let refused = |reason: String| LibraryError::Refused { path: path.clone(), reason };
    let builder = ort::init_from(&path).map_err(|error| refused(error.to_string()))?;
    let environment = builder
        .with_name("roost")
        .with_telemetry(false)
        .with_logger(Arc::new(log))
        .build()
        .map_err(|error| refused(error.to_string()));
    if let Ok(environment) = &environment {
        environment.set_log_level(LogLevel::Warning);
        tracing::info!(path = %path.display(), "loaded ONNX Runtime");
    }
    // From here on the library stays, also when its environment could not be made.
    *loaded = Some(Loaded { path, environment: environment.clone() });
    environment
}

/// Hands a line of ONNX Runtime's log on. Its errors come back as results too, so they are no more than
/// warnings here.
fn log(level: LogLevel, category: &str, _id: &str, location: &str, message: &str) {
    match level {
        LogLevel::Verbose => tracing::trace!(target: "onnxruntime", category, location, "{message}"),
        LogLevel::Info => tracing::debug!(target: "onnxruntime", category, location, "{message}"),
        LogLevel::Warning => tracing::info!(target: "onnxruntime", category, location, "{message}"),
        LogLevel::Error => tracing::warn!(target: "onnxruntime", category, location, "{message}"),
        LogLevel::Fatal => tracing::error!(target: "onnxruntime", category, location, "{message}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(configured: Option<&str>, variable: Option<&str>, executable: Option<&str>, expected: &[&str]) {
        let surroundings = Surroundings {
            configured: configured.map(PathBuf::from),
            variable: variable.map(OsString::from),
            current_folder: PathBuf::from("/here"),
            executable: executable.map(PathBuf::from),
        };
        let name = format!("{DLL_PREFIX}onnxruntime{DLL_SUFFIX}");
        let expected: Vec<_> =
            expected.iter().map(|path| PathBuf::from(path.replace("LIB", &name))).collect();
        assert_eq!(candidates(&surroundings), expected);
    }

    #[test]
    fn a_named_library_is_the_only_candidate() {
        check(Some("/a/ort.so"), Some("/b/ort.so"), Some("/opt/node"), &["/a/ort.so"]);
        check(Some("libs/ort.so"), None, None, &["/here/libs/ort.so"]);
        check(None, Some("/b/ort.so"), Some("/opt/node"), &["/b/ort.so"]);
    }

    #[test]
    fn otherwise_it_is_where_the_script_puts_it_or_beside_the_executable() {
        let everywhere = [
            "/here/deploy/onnxruntime/LIB",
            "/opt/roost/bin/deploy/onnxruntime/LIB",
            "/opt/roost/deploy/onnxruntime/LIB",
            "/opt/deploy/onnxruntime/LIB",
            "/deploy/onnxruntime/LIB",
            "/opt/roost/bin/LIB",
        ];
        check(None, Some(""), Some("/opt/roost/bin/node"), &everywhere);
        let below = ["/here/deploy/onnxruntime/LIB", "/deploy/onnxruntime/LIB", "/here/LIB"];
        check(None, None, Some("/here/node"), &below);
        check(None, None, None, &["/here/deploy/onnxruntime/LIB"]);
    }

    #[test]
    fn a_missing_library_says_where_it_was_looked_for_and_how_to_get_it() {
        let looked = vec![PathBuf::from("/nowhere/a.so"), PathBuf::from("/nowhere/b.so")];
        let error = load(looked).unwrap_err().to_string();
        for part in ["/nowhere/a.so", "/nowhere/b.so", "./deploy/fetch-onnxruntime.sh", PATH_VARIABLE] {
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn what_is_no_library_is_refused() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = load(vec![file.path().to_owned()]).map(|_| ()).unwrap_err();
        assert!(matches!(error, LibraryError::Refused { .. }), "{error:?}");
    }
}
