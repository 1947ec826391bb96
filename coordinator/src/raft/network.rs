//! Raft's messages between coordinators, over QUIC.
//!
//! Each request is a stream of its own. A connection is used only when the coordinator at its other end greets with the
//! node id that the membership names, and bears a certificate of the member's name: an emptied data folder is another
//! node, a copied one is on another machine, and neither may vote in the member's name. The other side checks too that
//! what it hears is meant for it and comes from whom it says.

use std::time::Duration;

use bytes::Bytes;
use futures::future::{Either, select};
use openraft::alias::{LogIdOf, SnapshotOf, VoteOf};
use openraft::errors::{RPCError, ReplicationClosed, StreamingError, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, TransferLeaderRequest,
    TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RaftNetworkFactory, RaftNetworkV2};
use roost_protocol::error::reason;
use roost_protocol::frame::Kind;
use roost_protocol::limits::CHUNK_BYTES_MAX;
use roost_protocol::quic::stream::{StreamError, finish, read_message, write_body, write_message};
use roost_protocol::quic::{Link, Links};
use roost_protocol::{ControlError, NodeId, NodeName};
use serde::{Deserialize, Serialize};

use super::machine::Machine;
use super::record::{EntryRecord, LogIdRecord, SnapshotMetaRecord, VoteRecord};
use super::types::{Member, Types};
use crate::peer::{PeerRequest, PeerResponse};

/// What appending entries may take: a follower answers after its fsync, and the largest batch takes four seconds on a link
/// of 1 MiB/s. A follower that died is noticed by QUIC sooner.
const APPEND: Duration = Duration::from_secs(6);
/// The slowest link on which a snapshot still arrives, however large it is.
const SNAPSHOT_BYTES_PER_S_MIN: u64 = 1 << 20;

/// A Raft message from one coordinator to another.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RaftMessage {
    /// Entries to append, or a heartbeat without any.
    Append {
        /// The leader's vote.
        vote: VoteRecord,
        /// The entry ahead of the first.
        previous: Option<LogIdRecord>,
        /// The entries.
        entries: Vec<EntryRecord>,
        /// What the leader knows to be committed.
        committed: Option<LogIdRecord>,
    },
    /// A candidate asks for a vote.
    Vote(VoteAsk),
    /// A node asks whether it would get votes, before it disturbs anyone by a new term.
    PreVote(VoteAsk),
    /// A snapshot; its bytes follow in chunks.
    Snapshot {
        /// The leader's vote.
        vote: VoteRecord,
        /// What the snapshot covers.
        meta: SnapshotMetaRecord,
        /// How many bytes follow.
        bytes: u64,
    },
    /// The leader asks this coordinator to take over.
    TransferLeader {
        /// The leader's vote.
        vote: VoteRecord,
        /// Who is to take over.
        to: u64,
        /// The leader's last entry.
        last: Option<LogIdRecord>,
    },
}

impl RaftMessage {
    /// Who sends it, as the message itself says.
    pub fn sender(&self) -> NodeId {
        let vote = match self {
            Self::Append { vote, .. } | Self::Snapshot { vote, .. } | Self::TransferLeader { vote, .. } => {
                vote
            }
            Self::Vote(ask) | Self::PreVote(ask) => &ask.vote,
        };
        NodeId(vote.node())
    }
}

/// A request for a vote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteAsk {
    /// The vote that is asked for.
    pub(crate) vote: VoteRecord,
    /// The asker's last entry.
    pub(crate) last: Option<LogIdRecord>,
    /// Whether the leader asked the asker to take over.
    pub(crate) transfer: bool,
}

/// The answer to a [`RaftMessage`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum RaftAnswer {
    /// All entries were appended.
    Appended,
    /// Entries up to there were appended.
    AppendedTo(Option<LogIdRecord>),
    /// The entry ahead of the first is not in the log.
    Conflict,
    /// The sender is not the leader any more.
    HigherVote(VoteRecord),
    /// The answer to a request for a vote.
    Vote {
        /// The voter's vote.
        vote: VoteRecord,
        /// Whether it was granted.
        granted: bool,
        /// The voter's last entry.
        last: Option<LogIdRecord>,
    },
    /// A snapshot was installed.
    Installed(VoteRecord),
    /// The transfer of leadership was taken, or not.
    Transfer {
        /// Whether it was taken.
        taken: bool,
    },
}

impl From<VoteRequest<Types>> for VoteAsk {
    fn from(ask: VoteRequest<Types>) -> Self {
        Self {
            vote: ask.vote.into(),
            last: ask.last_log_id.map(Into::into),
            transfer: ask.leadership_transfer,
        }
    }
}

impl From<VoteAsk> for VoteRequest<Types> {
    fn from(ask: VoteAsk) -> Self {
        let mut request = Self::new(ask.vote.into(), ask.last.map(Into::into));
        request.leadership_transfer = ask.transfer;
        request
    }
}

/// Makes clients of the other members.
#[derive(Clone)]
pub struct Network {
    links: Links,
    machine: Machine,
}

impl Network {
    /// Clients over `links`, whose service is Raft. Where the state of `machine` has another address of a member than openraft
    /// was given, it counts: a member that moved keeps its client.
    pub fn new(links: Links, machine: Machine) -> Self {
        Self { links, machine }
    }
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, member: &Member) -> Client {
        let Self { links, machine } = self.clone();
        Client { links, machine, target: NodeId(target), member: member.clone() }
    }
}

/// A client of one other member.
pub struct Client {
    links: Links,
    machine: Machine,
    target: NodeId,
    /// As openraft was told; see [`Client::address`].
    member: Member,
}

impl Client {
    /// Where the member is at present.
    fn address(&self) -> String {
        let known =
            self.machine.state(|state| state.coordinators().get(&self.target).map(|c| c.address.clone()));
        known.unwrap_or_else(|| self.member.address.clone())
    }

    async fn link(&self) -> Result<Link, ControlError> {
        let address = self.address();
        let link = self.links.to(&address).await.map_err(|error| error.into_control(&address))?;
        if link.hello.node == Some(self.target) && link.peer.name.as_str() == self.member.name {
            return Ok(link);
        }
        // Not this member. Should it come back, this connection breaks and the next message makes another.
        match NodeName::new(&self.member.name) {
            Ok(name) => Err(ControlError::WrongNode { name }),
            Err(error) => Err(ControlError::Malformed { what: reason(error) }),
        }
    }

    async fn ask(&self, message: RaftMessage, within: Duration) -> Result<RaftAnswer, Unreachable<Types>> {
        let ask = async {
            let link = self.link().await?;
            let request = PeerRequest::Raft { to: self.target, message: Box::new(message) };
            let answer = link.ask((Kind::RaftRequest, &request), Kind::RaftResponse).await;
            read_answer(answer, &self.address())
        };
        timely(ask, within, &self.address()).await
    }

    async fn send_snapshot(&self, message: RaftMessage, bytes: Bytes) -> Result<RaftAnswer, ControlError> {
        let address = &self.address();
        let link = self.link().await?;
        let send = async {
            let (mut send, mut recv) = link.open().await?;
            let request = PeerRequest::Raft { to: self.target, message: Box::new(message) };
            write_message(&mut send, Kind::RaftRequest, &request).await?;
            let mut rest = bytes;
            while !rest.is_empty() {
                let chunk = rest.split_to(rest.len().min(CHUNK_BYTES_MAX as usize));
                write_body(&mut send, Kind::RaftChunk, chunk).await?;
            }
            finish(&mut send);
            read_message(&mut recv, Kind::RaftResponse).await
        };
        read_answer(send.await, address)
    }
}

fn read_answer(answer: Result<PeerResponse, StreamError>, address: &str) -> Result<RaftAnswer, ControlError> {
    match answer.map_err(|error| error.into_control(address))? {
        PeerResponse::Raft(answer) => Ok(answer),
        PeerResponse::Failed(error) => Err(error),
        PeerResponse::Probed { .. }
        | PeerResponse::Held
        | PeerResponse::Control(_)
        | PeerResponse::Heard
        | PeerResponse::Lacks(_)
        | PeerResponse::Supports { .. } => {
            Err(ControlError::Malformed { what: "another answer than to a Raft message".to_owned() })
        }
    }
}

async fn timely<T>(
    ask: impl Future<Output = Result<T, ControlError>>,
    within: Duration,
    address: &str,
) -> Result<T, Unreachable<Types>> {
    let late =
        || ControlError::Unreachable { node: address.to_owned(), reason: format!("no answer in {within:?}") };
    let result = tokio::time::timeout(within, ask).await.unwrap_or_else(|_| Err(late()));
    result.map_err(|error| Unreachable::new(&error))
}

fn unexpected(answer: &RaftAnswer) -> Unreachable<Types> {
    let what = format!("an answer of another kind: {answer:?}");
    Unreachable::new(&ControlError::Malformed { what })
}

fn vote_response(answer: RaftAnswer) -> Result<VoteResponse<Types>, RPCError<Types>> {
    match answer {
        RaftAnswer::Vote { vote, granted, last } => {
            Ok(VoteResponse::new(VoteOf::<Types>::from(vote), last.map(Into::into), granted))
        }
        other => Err(unexpected(&other).into()),
    }
}

impl RaftNetworkV2<Types> for Client {
    type SnapshotData = Bytes;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        let message = RaftMessage::Append {
            vote: request.vote.into(),
            previous: request.prev_log_id.map(Into::into),
            entries: request.entries.into_iter().map(Into::into).collect(),
            committed: request.leader_commit.map(Into::into),
        };
        // openraft's own limit is a heartbeat's interval, too little for a batch on a slow link; heartbeats it limits itself.
        match self.ask(message, APPEND.max(option.hard_ttl())).await? {
            RaftAnswer::Appended => Ok(AppendEntriesResponse::Success),
            RaftAnswer::AppendedTo(to) => Ok(AppendEntriesResponse::PartialSuccess(to.map(Into::into))),
            RaftAnswer::Conflict => Ok(AppendEntriesResponse::Conflict),
            RaftAnswer::HigherVote(vote) => Ok(AppendEntriesResponse::HigherVote(vote.into())),
            other => Err(unexpected(&other).into()),
        }
    }

    async fn vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        vote_response(self.ask(RaftMessage::Vote(request.into()), option.hard_ttl()).await?)
    }

    async fn pre_vote(
        &mut self,
        request: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        vote_response(self.ask(RaftMessage::PreVote(request.into()), option.hard_ttl()).await?)
    }

    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, Bytes>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let bytes = snapshot.snapshot.len() as u64;
        let message = RaftMessage::Snapshot { vote: vote.into(), meta: (&snapshot.meta).into(), bytes };
        let within = option.hard_ttl() + Duration::from_secs(bytes / SNAPSHOT_BYTES_PER_S_MIN);
        let address = self.address();
        let send = timely(self.send_snapshot(message, snapshot.snapshot), within, &address);
        match select(std::pin::pin!(send), std::pin::pin!(cancel)).await {
            Either::Left((Ok(RaftAnswer::Installed(vote)), _)) => Ok(SnapshotResponse::new(vote.into())),
            Either::Left((Ok(other), _)) => Err(unexpected(&other).into()),
            Either::Left((Err(error), _)) => Err(error.into()),
            Either::Right((closed, _)) => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let message = RaftMessage::TransferLeader {
            vote: (*request.from_leader()).into(),
            to: *request.to_node_id(),
            last: request.last_log_id().copied().map(Into::into),
        };
        match self.ask(message, option.hard_ttl()).await? {
            RaftAnswer::Transfer { taken: true } => Ok(Ok(())),
            other => Err(unexpected(&other).into()),
        }
    }
}

/// What a member does with a Raft message. The bytes are those that followed a snapshot.
///
/// # Errors
/// [`ControlError`] when Raft has stopped here.
pub async fn answer(
    raft: &super::types::Raft,
    message: RaftMessage,
    bytes: Bytes,
) -> Result<RaftAnswer, ControlError> {
    let stopped = |error: String| ControlError::NoQuorum { reason: error };
    let malformed = |error: super::record::RecordError| ControlError::Malformed { what: reason(error) };
    match message {
        RaftMessage::Append { vote, previous, entries, committed } => {
            let entries: Result<Vec<_>, _> = entries.into_iter().map(EntryRecord::into_entry).collect();
            let request = AppendEntriesRequest::<Types> {
                vote: vote.into(),
                prev_log_id: previous.map(Into::into),
                entries: entries.map_err(malformed)?,
                leader_commit: committed.map(Into::into),
            };
            let response = raft.append_entries(request).await.map_err(|e| stopped(reason(e)))?;
            Ok(match response {
                AppendEntriesResponse::Success => RaftAnswer::Appended,
                AppendEntriesResponse::PartialSuccess(to) => {
                    RaftAnswer::AppendedTo(to.map(|to: LogIdOf<Types>| to.into()))
                }
                AppendEntriesResponse::Conflict => RaftAnswer::Conflict,
                AppendEntriesResponse::HigherVote(vote) => RaftAnswer::HigherVote(vote.into()),
            })
        }
        RaftMessage::Vote(ask) => voted(raft.vote(ask.into()).await.map_err(|e| stopped(reason(e)))?),
        RaftMessage::PreVote(ask) => voted(raft.pre_vote(ask.into()).await.map_err(|e| stopped(reason(e)))?),
        RaftMessage::Snapshot { vote, meta, bytes: _ } => {
            let meta = meta.try_into().map_err(malformed)?;
            let snapshot = SnapshotOf::<Types, Bytes> { meta, snapshot: bytes };
            let installed = raft.install_full_snapshot(vote.into(), snapshot).await;
            Ok(RaftAnswer::Installed(installed.map_err(|e| stopped(reason(e)))?.vote.into()))
        }
        RaftMessage::TransferLeader { vote, to, last } => {
            let request = TransferLeaderRequest::new(vote.into(), to, last.map(Into::into));
            let result = raft.handle_transfer_leader(request).await.map_err(|e| stopped(reason(e)))?;
            Ok(RaftAnswer::Transfer { taken: result.is_ok() })
        }
    }
}

fn voted(response: VoteResponse<Types>) -> Result<RaftAnswer, ControlError> {
    let (vote, last) = (response.vote.into(), response.last_log_id.map(Into::into));
    Ok(RaftAnswer::Vote { vote, granted: response.vote_granted, last })
}
