//! Points of a change at which a coordinator can be made to die, to prove that nothing acknowledged is lost wherever it does.
//!
//! In builds with debug assertions alone, which tests are, and only where [`FOLDER`] names a folder: reaching a point removes
//! the file of its name there and, if there was one, ends the process as `kill -9` would, without a farewell. Whoever lays the
//! file decides so by that which coordinator dies, once. A release build has no such points.

use crate::state::Command;

/// The environment variable that names the folder.
#[cfg(debug_assertions)]
const FOLDER: &str = "ROOST_DIE_IN";

/// Where on its way a command is.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Point {
    /// The leader was asked for it; of a push, all bytes are here.
    Asked,
    /// Of a push alone: a quorum holds the bundle.
    Held,
    /// It was handed to Raft.
    Proposed,
    /// It is agreed on and applied; nobody was told.
    Committed,
}

/// The name of a command's points: its variant's.
#[derive(Debug, Clone)]
pub(crate) struct Points(#[cfg(debug_assertions)] Option<String>);

impl Points {
    /// The points of a command that a request becomes.
    #[cfg(debug_assertions)]
    pub fn of(command: &Command) -> Self {
        Self(std::env::var_os(FOLDER).map(|_| name(&format!("{command:?}"))))
    }

    /// The points of a push, before it is a command.
    #[cfg(debug_assertions)]
    pub fn of_push() -> Self {
        Self(Some("CommitVersion".to_owned()))
    }

    /// Ends the process if somebody waits for that.
    #[cfg(debug_assertions)]
    pub fn reach(&self, point: Point) {
        let (Some(folder), Some(command)) = (std::env::var_os(FOLDER), &self.0) else { return };
        let file = std::path::Path::new(&folder).join(format!("{command}.{point:?}"));
        if std::fs::remove_file(&file).is_ok() {
            tracing::warn!(point = %file.display(), "this process dies here");
            std::process::abort();
        }
    }

    /// None in this build.
    #[cfg(not(debug_assertions))]
    pub fn of(_: &Command) -> Self {
        Self()
    }

    /// None in this build.
    #[cfg(not(debug_assertions))]
    pub fn of_push() -> Self {
        Self()
    }

    /// Does nothing in this build.
    #[cfg(not(debug_assertions))]
    pub fn reach(&self, _: Point) {}
}

#[cfg(debug_assertions)]
fn name(debug: &str) -> String {
    debug.chars().take_while(|c| c.is_alphanumeric()).collect()
}
