//! The control plane, as operators and nodes use it: changes, reads, heartbeats, pushes.
//!
//! A change keeps its [`RequestId`] over all attempts, so it is made once, however often it had to be sent.
//! Whom to ask next is decided by [`search`].

mod push;
mod search;
mod snapshot;
mod typed;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::{Rng, SeedableRng};
use roost_protocol::frame::Kind;
use roost_protocol::messages::control::{
    Answer, Change, ControlRequest, ControlResponse, Done, Heartbeat, Query, Reconfigure, Reconfigured,
};
use roost_protocol::quic::{Dialler, Links, Service};
use roost_protocol::view::Published;
use roost_protocol::{CommandError, ControlError, Epoch, RequestId, Term};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::follow::Follower;
pub use push::{PushError, PushProgress, Pushed};
use search::{Search, Step};
pub use snapshot::SnapshotFailure;

/// How long a change or a read is tried: an election and the wait for it, three times over.
const DEADLINE_MS: u64 = 10_000;
/// How long a change waits for the view that has it: a watch delivers within a round trip or two.
const SEE_MS_MAX: u64 = 1_000;
/// How long the leader may take to change who coordinates: two commits on slow disks, and what members lack is asked before.
const RECONFIGURE_MS_MAX: u64 = 15_000;
/// How long a heartbeat may take: less than the interval between two, so that they do not pile up.
const HEARTBEAT_MS_MAX: u64 = 900;

/// The control plane of a cluster. Cloning shares it.
#[derive(Clone)]
pub struct Control {
    shared: Arc<Shared>,
}

struct Shared {
    links: Links,
    bundles: Links,
    published: watch::Receiver<Published>,
    /// Told of what changes led to.
    follower: Option<Arc<Follower>>,
    seeds: Vec<String>,
    rng: Mutex<ChaCha12Rng>,
    leader: Mutex<Option<String>>,
}

/// The identity of a change, kept over all its attempts.
#[derive(Debug, Clone, Copy)]
struct Ticket {
    request: RequestId,
    sent: Epoch,
    /// Whether it was in no attempt before.
    fresh: bool,
}

impl Control {
    /// The control plane that is reached over `dialler`: at the coordinators of the view that `published`
    /// holds, or at `seeds` while there is none. `seed` feeds request ids and the jitter of waits.
    pub fn new(
        dialler: Dialler,
        published: watch::Receiver<Published>,
        seeds: Vec<String>,
        seed: [u8; 32],
    ) -> Self {
        Self::of(dialler, published, None, seeds, seed)
    }

    /// As [`Control::new`], by the view of `follower`, which hears of the epochs that changes lead to: a
    /// request after a change then waits for the view that has it.
    pub fn following(dialler: Dialler, follower: Arc<Follower>, seeds: Vec<String>, seed: [u8; 32]) -> Self {
        Self::of(dialler, follower.published(), Some(follower), seeds, seed)
    }

    fn of(
        dialler: Dialler,
        published: watch::Receiver<Published>,
        follower: Option<Arc<Follower>>,
        seeds: Vec<String>,
        seed: [u8; 32],
    ) -> Self {
        let shared = Shared {
            links: Links::new(dialler.clone(), Service::Control),
            bundles: Links::new(dialler, Service::Bundle),
            published,
            follower,
            seeds,
            rng: Mutex::new(ChaCha12Rng::from_seed(seed)),
            leader: Mutex::new(None),
        };
        Self { shared: Arc::new(shared) }
    }

    /// Makes a change, trying for ten seconds.
    ///
    /// # Errors
    /// As [`Control::change_within`].
    pub async fn change(&self, change: Change) -> Result<Done, ControlError> {
        self.change_within(change, Duration::from_millis(DEADLINE_MS)).await
    }

    /// Makes a change, trying for as long as `limit`.
    ///
    /// # Errors
    /// [`ControlError::Refused`] when the replicated state refuses it. A retryable error means that nobody
    /// did it in time, or nobody could tell: look at the state before asking anew.
    pub async fn change_within(&self, change: Change, limit: Duration) -> Result<Done, ControlError> {
        let search = Search::new(Instant::now() + limit, self.leader());
        self.change_by(search, self.ticket(), change).await.map(|(done, _)| done)
    }

    /// A new change's identity.
    fn ticket(&self) -> Ticket {
        let known = self.shared.published.borrow().view.as_ref().map(|view| view.epoch);
        let request = self.draw(|rng| u128::from(rng.next_u64()) << 64 | u128::from(rng.next_u64()));
        Ticket { request: RequestId(request), sent: known.unwrap_or_default(), fresh: true }
    }

    /// Makes a change and tells which coordinator did it.
    ///
    /// A ticket may be too old from the start: its epoch is that of a view that may lag, or of none. Where no attempt can
    /// have made the change, it is asked for under a new ticket of the present epoch, once.
    async fn change_by(
        &self,
        mut search: Search,
        mut ticket: Ticket,
        change: Change,
    ) -> Result<(Done, String), ControlError> {
        let mut renewed = false;
        let (response, address) = loop {
            let Ticket { request, sent, fresh } = ticket;
            let asked = ControlRequest::Change { request, sent, change: change.clone() };
            match self.ask(&mut search, &asked).await {
                Err(ControlError::Refused(CommandError::RequestTooOld { present, .. }))
                    if fresh && !renewed && !search.is_open() =>
                {
                    renewed = true;
                    ticket = Ticket { sent: present, ..self.ticket() };
                    search.begin_anew();
                }
                asked => break asked?,
            }
        };
        match response {
            ControlResponse::Done(done) => {
                if let Some(follower) = &self.shared.follower {
                    follower.heard_of(done.epoch, &address);
                }
                self.see(done.epoch).await;
                Ok((done, address))
            }
            other => Err(unexpected("a change", &other)),
        }
    }

    /// Waits until the view has what a change did, so that whoever made it routes by it. Not for long: the change is made,
    /// and a view that cannot be had for the moment comes later.
    async fn see(&self, epoch: Epoch) {
        let mut published = self.shared.published.clone();
        let has_it = |published: &Published| published.view.as_ref().is_some_and(|view| view.epoch >= epoch);
        let seen = published.wait_for(has_it);
        if tokio::time::timeout(Duration::from_millis(SEE_MS_MAX), seen).await.is_err() {
            tracing::debug!(%epoch, "the view does not have the change yet");
        }
    }

    /// Reads, linearizably, trying for ten seconds.
    ///
    /// # Errors
    /// As [`Control::change_within`].
    pub async fn query(&self, query: Query) -> Result<Answer, ControlError> {
        let mut search = Search::new(Instant::now() + Duration::from_millis(DEADLINE_MS), self.leader());
        match self.ask(&mut search, &ControlRequest::Query(query)).await?.0 {
            ControlResponse::Answer(answer) => Ok(*answer),
            other => Err(unexpected("a query", &other)),
        }
    }

    /// Changes who coordinates, trying for as long as `limit`: while a learner lags it is not ready for a vote, and is asked
    /// about again.
    ///
    /// # Errors
    /// [`ControlError::MembersRefused`] when it makes no sense, [`ControlError::MembersNotReady`] when it had to wait for too
    /// long.
    pub async fn reconfigure(
        &self,
        asked: Reconfigure,
        limit: Duration,
    ) -> Result<Reconfigured, ControlError> {
        let attempt = Duration::from_millis(RECONFIGURE_MS_MAX);
        let mut search = Search::new(Instant::now() + limit, self.leader()).with_attempts_of(attempt);
        match self.ask(&mut search, &ControlRequest::Reconfigure(asked)).await?.0 {
            ControlResponse::Reconfigured(done) => Ok(done),
            other => Err(unexpected("a change of who coordinates", &other)),
        }
    }

    /// Reports to the leader: one short attempt, and a second one at the leader that the first named. A
    /// report that does not arrive is followed by the next soon.
    ///
    /// # Errors
    /// [`ControlError::Outlived`] when a later start of the node was heard, others when no leader heard it.
    pub async fn heartbeat(&self, heartbeat: Heartbeat) -> Result<Term, ControlError> {
        let request = ControlRequest::Heartbeat(heartbeat);
        let deadline = Instant::now() + Duration::from_millis(HEARTBEAT_MS_MAX);
        let mut search = Search::new(deadline, self.leader());
        let mut attempts_left = 2;
        let term = loop {
            let step = self.next(&mut search);
            let error = match step {
                Step::Try { address, within } => match self.attempt(&address, within, &request).await {
                    Ok(ControlResponse::Heard { term, epoch }) => {
                        if let Some(follower) = &self.shared.follower {
                            follower.heard_of(epoch, &address);
                        }
                        self.set_leader(Some(address));
                        return Ok(term);
                    }
                    Ok(other) => unexpected("a heartbeat", &other),
                    Err(error) => {
                        search.failed(&address, error.clone());
                        error
                    }
                },
                Step::Wait(_) => ControlError::NoQuorum { reason: "no coordinator is known".to_owned() },
                Step::GiveUp(error) => error,
            };
            attempts_left -= 1;
            let follow = matches!(error, ControlError::NotLeader { leader: Some(_) });
            if attempts_left == 0 || !follow {
                break error;
            }
        };
        // Without a hint the next report goes to another coordinator than this one.
        let next = search.leader().cloned().or_else(|| self.another_than(self.leader()));
        self.set_leader(next);
        Err(term)
    }

    /// Sends `request` around until somebody does it; with the answer comes the address that gave it.
    async fn ask(
        &self,
        search: &mut Search,
        request: &ControlRequest,
    ) -> Result<(ControlResponse, String), ControlError> {
        loop {
            let step = self.next(search);
            match step {
                Step::Try { address, within } => match self.attempt(&address, within, request).await {
                    Ok(response) => {
                        self.set_leader(Some(address.clone()));
                        return Ok((response, address));
                    }
                    Err(error) => {
                        tracing::debug!(address, %error, "a coordinator did not do what was asked");
                        search.failed(&address, error);
                    }
                },
                Step::Wait(wait) => tokio::time::sleep(wait).await,
                Step::GiveUp(error) => return Err(error),
            }
        }
    }

    /// The search's next step, by what is known at this moment.
    fn next(&self, search: &mut Search) -> Step {
        let watched = self.shared.follower.as_ref().map_or(Duration::ZERO, |follower| follower.round_trip());
        let round_trip = self.shared.links.longest_round_trip().max(watched);
        self.draw(|rng| search.next(Instant::now(), &self.coordinators(), round_trip, rng))
    }

    async fn attempt(
        &self,
        address: &str,
        within: Duration,
        request: &ControlRequest,
    ) -> Result<ControlResponse, ControlError> {
        let ask = async {
            let link = self.shared.links.to(address).await.map_err(|error| error.into_control(address))?;
            let answer = link.ask((Kind::ControlRequest, request), Kind::ControlResponse).await;
            match answer.map_err(|error| error.into_control(address))? {
                ControlResponse::Failed(error) => Err(error),
                answer @ (ControlResponse::Done(_)
                | ControlResponse::Answer(_)
                | ControlResponse::Heard { .. }
                | ControlResponse::Reconfigured(_)
                | ControlResponse::Snapshot { .. }) => Ok(answer),
            }
        };
        match tokio::time::timeout(within, ask).await {
            Ok(answer) => answer,
            Err(_) => Err(ControlError::Unreachable {
                node: address.to_owned(),
                reason: format!("no answer within {} ms", within.as_millis()),
            }),
        }
    }

    /// The coordinators of the view; the seeds while there is none.
    fn coordinators(&self) -> Vec<String> {
        let published = self.shared.published.borrow();
        let of_view =
            published.view.as_ref().map(|view| view.coordinators.values().map(|c| c.address.clone()));
        let of_view: Vec<String> = of_view.into_iter().flatten().collect();
        let seeds = self.shared.seeds.iter().filter(|seed| !of_view.contains(seed)).cloned();
        // Seeds may be workers; they are asked last, but they are asked: the view may be old.
        let seeds: Vec<String> = seeds.collect();
        of_view.into_iter().chain(seeds).collect()
    }

    fn another_than(&self, address: Option<String>) -> Option<String> {
        let coordinators = self.coordinators();
        let last = address.and_then(|address| coordinators.iter().position(|a| *a == address));
        coordinators.get(last.map_or(0, |last| (last + 1) % coordinators.len())).cloned()
    }

    fn leader(&self) -> Option<String> {
        self.shared.leader.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_leader(&self, leader: Option<String>) {
        *self.shared.leader.lock().unwrap_or_else(PoisonError::into_inner) = leader;
    }

    fn draw<T>(&self, draw: impl FnOnce(&mut ChaCha12Rng) -> T) -> T {
        draw(&mut self.shared.rng.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn unexpected(what: &str, response: &ControlResponse) -> ControlError {
    let came = match response {
        ControlResponse::Done(_) => "a change's outcome",
        ControlResponse::Answer(_) => "an answer to another query",
        ControlResponse::Heard { .. } => "a heartbeat's answer",
        ControlResponse::Failed(_) => "a refusal",
        ControlResponse::Snapshot { .. } => "a snapshot",
        ControlResponse::Reconfigured(_) => "that who coordinates was changed",
    };
    ControlError::Malformed { what: format!("{what} was answered by {came}") }
}
