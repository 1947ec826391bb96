//! What the tasks of a coordinator share.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;

use openraft::async_runtime::WatchReceiver;
use openraft::errors::{ClientWriteError, LinearizableReadError, RaftError};
use openraft::{Instant, ReadPolicy, ServerState};
use roost_protocol::error::reason;
use roost_protocol::quic::bundles::BundleStore;
use roost_protocol::quic::{Link, Links, WallClock};
use roost_protocol::view::{Coordinator, Published, SoftState};
use roost_protocol::{ClusterId, ControlError, Epoch, NodeId, NodeName, RequestId, Term};
use tokio::sync::watch;

use crate::artefact::Keeping;
use crate::coordinator::{GroupMember, RaftConfig};
use crate::liveness::Registry;
use crate::points::{Point, Points};
use crate::raft::Machine;
use crate::raft::disk::Disk;
use crate::raft::types::Raft;
use crate::state::{Applied, Command, Proposal};

/// After so many heartbeats without a leader a coordinator is out of touch: three elections with the default heartbeat, so that
/// those who watch it do not wander about at each death of a leader.
const SILENCE_HEARTBEATS: u32 = 50;

/// What the tasks of a coordinator share.
pub(crate) struct Shared {
    pub node: NodeId,
    pub name: NodeName,
    pub address: String,
    /// The coordinators of the config, in its order.
    pub group: Vec<GroupMember>,
    /// The highest level of the state that this coordinator obeys.
    pub level: u32,
    /// The pace of the group.
    pub pace: RaftConfig,
    pub disk: Disk,
    pub raft: Raft,
    pub machine: Machine,
    pub bundles: BundleStore,
    /// Which bundles are being fetched, sealed or removed.
    pub keeping: Keeping,
    /// Links for [`crate::peer`] messages.
    pub peers: Links,
    pub bundle_links: Links,
    pub clock: Arc<dyn WallClock>,
    pub published: watch::Sender<Published>,
    /// Who is heard, while this coordinator leads.
    pub registry: Mutex<Option<Registry>>,
    /// Held while a snapshot of the state is taken and sent.
    pub snapshots: tokio::sync::Mutex<()>,
    /// Held shared while a version is made or the level is raised, exclusively while who coordinates changes. A proposal outlives the one who held
    /// it: see [`Shared::settle`].
    pub members: tokio::sync::RwLock<()>,
    /// Whether this coordinator may take part in the group. One that belonged to a cluster and whose database is empty may
    /// not before it is sure that no group counts on what it has forgotten.
    pub admitted: AtomicBool,
    /// Why no group is formed, where the last round of asking found a contradiction.
    pub unformed: Mutex<Option<String>>,
    /// When a leader was heard last; when this coordinator started, before the first.
    pub heard: Mutex<tokio::time::Instant>,
}

impl Shared {
    /// Looks at the registry; `None` while this coordinator does not lead.
    pub fn registry<T>(&self, look: impl FnOnce(&mut Registry) -> T) -> Option<T> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner).as_mut().map(look)
    }

    /// Takes a soft state, the leader's own or one that it sent, if it is later than the last.
    pub fn publish(&self, soft: SoftState) {
        self.published.send_if_modified(|published| published.offer_soft(soft));
    }

    /// The term in which this coordinator leads: it won the last election that it knows of, and heard from a quorum since
    /// then and within the longest election timeout, after which others may have elected another. No safety rests on
    /// this; openraft asks a quorum for that.
    pub fn leads(&self) -> Option<Term> {
        let term = self.won()?;
        let alone = self.raft.voter_ids().count() == 1;
        let acked = self.raft.data_metrics().borrow_watched().last_quorum_acked;
        let lately = acked.is_some_and(|at| at.elapsed() < self.pace.election_max());
        (alone || lately).then_some(term)
    }

    /// A leader sent something.
    pub fn hear(&self) {
        *self.heard.lock().unwrap_or_else(PoisonError::into_inner) = tokio::time::Instant::now();
    }

    /// Completes once this coordinator has neither led nor heard a leader for [`SILENCE_HEARTBEATS`] from now on. It is cut off
    /// then, or was let go: one that was is sent nothing more, not even the change that says so.
    pub async fn out_of_touch(&self) {
        let mut since = tokio::time::Instant::now();
        loop {
            if self.leads().is_some() {
                since = tokio::time::Instant::now();
            }
            let heard = *self.heard.lock().unwrap_or_else(PoisonError::into_inner);
            let until = since.max(heard) + self.pace.heartbeat() * SILENCE_HEARTBEATS;
            if until <= tokio::time::Instant::now() {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }

    /// The term in which this coordinator was elected, when it knows of no later one and Raft runs.
    pub fn won(&self) -> Option<Term> {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        let won = metrics.state == ServerState::Leader && metrics.current_leader == Some(self.node.0);
        won.then_some(Term(metrics.current_term))
    }

    /// The leader, when it is another coordinator that is known.
    fn other_leader(&self) -> Option<NodeId> {
        let leader = self.raft.server_metrics().borrow_watched().current_leader.map(NodeId);
        leader.filter(|leader| *leader != self.node)
    }

    /// Waits until who leads, as far as is known here, is as expected; for ever once Raft has stopped.
    pub async fn until_leader(&self, expected: impl Fn(Option<NodeId>) -> bool) {
        let mut metrics = self.raft.server_metrics();
        while !expected(metrics.borrow_watched().current_leader.map(NodeId)) {
            if metrics.changed().await.is_err() {
                std::future::pending().await
            }
        }
    }

    /// [`Shared::other_leader`] as the committed membership has it.
    pub fn leader(&self) -> Option<(NodeId, Coordinator)> {
        let leader = self.other_leader()?;
        self.machine.state(|state| Some((leader, state.coordinators().get(&leader)?.clone())))
    }

    pub fn not_leader(&self) -> ControlError {
        ControlError::NotLeader { leader: self.leader().map(|(_, leader)| leader.address) }
    }

    /// The cluster, once it is known here.
    pub fn cluster(&self) -> Option<ClusterId> {
        self.machine.state(|state| state.cluster())
    }

    /// Takes why no group is formed.
    pub fn tell_unformed(&self, why: Option<String>) {
        *self.unformed.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// The error of a cluster that has no identity yet, and what keeps it from one, if that is known.
    pub fn forming(&self) -> ControlError {
        let why = self.unformed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let forming = || "the cluster is still being formed".to_owned();
        ControlError::NoQuorum {
            reason: why.map_or_else(forming, |why| format!("no group is formed: {why}")),
        }
    }

    /// Fails once the disk has: Raft may take a moment to stop.
    ///
    /// # Errors
    /// [`ControlError::NoQuorum`]: another coordinator may do what this one cannot.
    pub fn check_disk(&self) -> Result<(), ControlError> {
        match &*self.disk.failure().borrow() {
            None => Ok(()),
            Some(why) => Err(ControlError::NoQuorum {
                reason: reason(format!("this coordinator's disk failed: {why}")),
            }),
        }
    }

    /// A link to a member of the group, and to nobody else who has its address now.
    ///
    /// # Errors
    /// [`ControlError::Unreachable`], or [`ControlError::WrongNode`] when it is another.
    pub async fn link_to(&self, id: NodeId, member: &Coordinator) -> Result<Link, ControlError> {
        let address = &member.address;
        let link = self.peers.to(address).await.map_err(|error| error.into_control(address))?;
        if link.hello.node == Some(id) && link.peer.name.as_str() == member.name.as_str() {
            return Ok(link);
        }
        Err(ControlError::WrongNode { name: member.name.clone() })
    }

    pub fn is_admitted(&self) -> bool {
        self.admitted.load(Ordering::Acquire)
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
        let points = Points::of(&command);
        points.reach(Point::Asked);
        let proposal = Proposal { request, sent, at_ms: self.clock.now_ms(), by: by.to_owned(), command };
        let agree = self.pace.agree();
        let late = || ControlError::NoQuorum { reason: format!("no majority answered within {agree:?}") };
        let mut write = std::pin::pin!(self.raft.client_write(proposal));
        let written = tokio::time::timeout(agree, async {
            match futures::poll!(&mut write) {
                Poll::Ready(written) => written,
                Poll::Pending => {
                    points.reach(Point::Proposed);
                    write.await
                }
            }
        });
        match written.await.map_err(|_| late())? {
            Ok(response) => {
                points.reach(Point::Committed);
                Ok(response.data)
            }
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
        let agree = self.pace.agree();
        let late = || ControlError::NoQuorum { reason: format!("no majority answered within {agree:?}") };
        let read = tokio::time::timeout(agree, self.raft.ensure_linearizable(ReadPolicy::ReadIndex)).await;
        match read.map_err(|_| late())? {
            Ok(_) => Ok(()),
            Err(RaftError::APIError(LinearizableReadError::ForwardToLeader(_))) => Err(self.not_leader()),
            Err(RaftError::APIError(error)) => Err(ControlError::NoQuorum { reason: reason(error) }),
            Err(RaftError::Fatal(error)) => Err(ControlError::NoQuorum { reason: reason(error) }),
        }
    }

    /// Returns once this coordinator has applied all that was handed to Raft here before the call, also what nobody waits for
    /// any more: a proposal that [`Shared::propose`] gave up stays in the log and may be agreed on yet, and
    /// [`Shared::catch_up`] covers only what is committed.
    ///
    /// # Errors
    /// [`ControlError::NoQuorum`] when it is not agreed on in time.
    pub async fn settle(&self) -> Result<(), ControlError> {
        let agree = self.pace.agree();
        let late = || ControlError::NoQuorum {
            reason: format!("what was proposed before was not agreed on within {agree:?}"),
        };
        let settle = async {
            // Raft takes this question behind the proposals that were sent ahead of it. Its metrics may lag.
            let last = self.raft.with_raft_state(|state| state.log_ids.last().map(|last| last.index)).await;
            let last = last.map_err(|error| ControlError::NoQuorum { reason: reason(error) })?;
            let applied = self.raft.wait(None).applied_index_at_least(last, "what was proposed before").await;
            applied.map(|_| ()).map_err(|error| ControlError::NoQuorum { reason: reason(error) })
        };
        tokio::time::timeout(agree, settle).await.map_err(|_| late())?
    }
}
