//! The [`Environment`] of a real process: the operating system's sockets, files, clock, entropy and threads.
//!
//! In reading order: [`files`] is the data folder, [`mapped`] its bundles, [`s3`] a store of bundles beside it, [`threads`] the executors and
//! runtimes, [`machine`] what the process runs on. The simulator takes nothing from here.

pub mod files;
pub mod machine;
pub mod mapped;
#[cfg(feature = "s3")]
pub mod s3;
pub mod threads;

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use rand::TryRng;
use rand::rngs::SysRng;
use roost_protocol::quic::{TokioNetwork, WallClock};

use super::{Entropy, Environment};
use crate::engine::Engine;
use files::OsFiles;
use threads::{ThreadExecutors, TokioRuntimes};

/// The environment of a process with its data in `data_folder`, which is made when there is none. Takes a
/// tenth of a second, for the speed of the machine to be measured.
///
/// # Errors
/// The disk's, also when another process has the data folder in use.
pub fn production(data_folder: &Path, engines: Vec<Arc<dyn Engine>>) -> io::Result<Environment> {
    let files = Arc::new(OsFiles::open(data_folder)?);
    let machine = machine::measure();
    Ok(Environment {
        network: Arc::new(TokioNetwork),
        files,
        bundles: None,
        clock: Arc::new(OsClock),
        entropy: Arc::new(OsEntropy),
        executors: Arc::new(ThreadExecutors),
        runtimes: Arc::new(TokioRuntimes::new(machine.cores)),
        engines,
        engines_missing: Vec::new(),
        machine,
    })
}

/// The operating system's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsClock;

impl WallClock for OsClock {
    #[expect(clippy::disallowed_methods, reason = "this is the WallClock of a real process")]
    fn since_epoch(&self) -> Duration {
        // A clock before 1970 is not set; certificates then say that they are not valid yet.
        std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default()
    }
}

/// The operating system's random numbers.
#[derive(Debug, Clone, Copy, Default)]
pub struct OsEntropy;

impl Entropy for OsEntropy {
    /// # Panics
    /// When the operating system has no random numbers: nothing that Roost draws may be guessed instead.
    fn fill(&self, bytes: &mut [u8]) {
        if let Err(error) = SysRng.try_fill_bytes(bytes) {
            panic!("the operating system gives no random numbers: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_environment_is_made_once_per_folder() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("a/b");
        let environment = production(&data, Vec::new()).unwrap();
        assert!(environment.machine.cores >= 1);
        let error = production(&data, Vec::new()).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.contains("in use") && error.contains("a/b"), "{error}");
        drop(environment);
        production(&data, Vec::new()).unwrap();
    }

    #[test]
    fn the_clock_is_after_the_year_2020_and_entropy_differs() {
        assert!(OsClock.now_ms() > 1_577_836_800_000);
        let entropy: &dyn Entropy = &OsEntropy;
        assert_ne!(entropy.seed(), entropy.seed());
        assert_ne!(entropy.u64(), entropy.u64());
    }
}
