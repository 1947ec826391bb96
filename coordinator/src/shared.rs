//! What the tasks of a coordinator share.

use std::sync::Arc;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use openraft::ReadPolicy;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use roost_protocol::error::reason;
use roost_protocol::quic::bundles::BundleStore;
use roost_protocol::quic::{Links, WallClock};
use roost_protocol::view::Published;
use roost_protocol::{ControlError, Epoch, NodeId, RequestId};
use tokio::sync::watch;

use crate::liveness::Registry;
use crate::raft::Machine;
use crate::raft::types::Raft;
use crate::state::{Applied, Command, Proposal};

/// How long a change or a read may take to be agreed on: two elections and then some.
const AGREE: Duration = Duration::from_secs(5);

/// What the tasks of a coordinator share.
pub(crate) struct Shared {
    pub node: NodeId,
    pub address: String,
    pub raft: Raft,
    pub machine: Machine,
    pub bundles: BundleStore,
    /// Links for [`crate::peer`] messages.
    pub peers: Links,
    pub bundle_links: Links,
    pub clock: Arc<dyn WallClock>,
    pub published: watch::Sender<Published>,
    /// Who is heard, while this coordinator leads.
    pub registry: Mutex<Option<Registry>>,
}

impl Shared {
    /// Looks at the registry; `None` while this coordinator does not lead.
    pub fn registry<T>(&self, look: impl FnOnce(&mut Registry) -> T) -> Option<T> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(look)
    }

    /// The address of the leader, when it is another coordinator that is known.
    pub fn leader_address(&self) -> Option<String> {
        let leader = self.leader()?;
        self.machine.state(|state| state.coordinators().get(&leader).map(|c| c.address.clone()))
    }

    /// The leader, as far as this coordinator knows.
    pub fn leader(&self) -> Option<NodeId> {
        use openraft::async_runtime::WatchReceiver;
        self.raft.server_metrics().borrow_watched().current_leader.map(NodeId)
    }

    pub fn not_leader(&self) -> ControlError {
        let leader = self.leader_address().filter(|address| *address != self.address);
        ControlError::NotLeader { leader }
    }

    /// Has a command agreed on and applied.
    ///
    /// # Errors
    /// [`ControlError::NotLeader`], or [`ControlError::NoQuorum`] when no majority answered in time: the command may still
    /// be agreed on later, which its request id makes harmless.
    pub async fn propose(
        &self,
        request: Option<RequestId>,
        sent: Epoch,
        by: &str,
        command: Command,
    ) -> Result<Applied, ControlError> {
        let proposal = Proposal { request, sent, at_ms: self.clock.now_ms(), by: by.to_owned(), command };
        let late = || ControlError::NoQuorum { reason: format!("no majority answered within {AGREE:?}") };
        let written = tokio::time::timeout(AGREE, self.raft.client_write(proposal)).await;
        match written.map_err(|_| late())? {
            Ok(response) => Ok(response.data),
            Err(RaftError::APIError(ClientWriteError::ForwardToLeader(_))) => Err(self.not_leader()),
            Err(RaftError::APIError(error)) => Err(ControlError::NoQuorum { reason: reason(error) }),
            Err(RaftError::Fatal(error)) => Err(ControlError::NoQuorum { reason: reason(error) }),
        }
    }

    /// Returns once this coordinator has applied all that was acknowledged before the call (ReadIndex, Raft
    /// dissertation §6.4; never by a lease, because no safety rests on a clock).
    ///
    /// # Errors
    /// As [`Shared::propose`].
    pub async fn catch_up(&self) -> Result<(), ControlError> {
        let late = || ControlError::NoQuorum { reason: format!("no majority answered within {AGREE:?}") };
        let read = tokio::time::timeout(AGREE, self.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await;
        match read.map_err(|_| late())? {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Err(self.not_leader()),
            Err(RaftError::APIError(error)) => Err(ControlError::NoQuorum { reason: reason(error) }),
            Err(RaftError::Fatal(error)) => Err(ControlError::NoQuorum { reason: reason(error) }),
        }
    }
}
