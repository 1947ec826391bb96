//! The shell around the replicated state: openraft on redb and QUIC. Nothing outside names openraft.
//!
//! - [`types`]: openraft's types as this cluster uses them; [`record`]: ours, on disk and between coordinators.
//! - [`disk`]: the database and its executor; [`fault`]: what a disk did wrong; [`log`]: the Raft log;
//!   [`machine`]: the state machine and its snapshots.
//! - [`anew`]: a database from which a group of one begins.
//! - [`network`]: messages between coordinators.

mod anew;
pub mod disk;
pub mod fault;
mod log;
pub(crate) mod machine;
pub mod network;
pub mod record;
#[cfg(test)]
mod tests;
pub mod types;

pub(crate) use self::anew::begin_anew;
pub use self::log::Log;
pub use self::machine::Machine;

use roost_protocol::messages::control::Outcome;

use crate::state::{Applied, State};

/// The answer to an entry that is no command.
fn nothing_applied(state: &State) -> Applied {
    Applied { epoch: state.epoch(), result: Ok(Outcome::Applied) }
}
