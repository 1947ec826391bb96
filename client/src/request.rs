//! One request, over all its attempts: a state machine that is given events, the time and its surroundings,
//! and says what to do. It sends nothing itself.
//!
//! Whatever happens, a request ends by its deadline, with one answer at most, after [`ATTEMPTS_MAX`] attempts
//! at most.
//!
//! # What needs a token of the shared budget
//! Retries and hedges must not multiply the load when a cluster is in trouble, so they share a
//! [`crate::budget::Budget`]. But no request may fail because the cluster changes while another replica lives
//! (design §1), and that outranks it. So:
//! - A retry after [`InferError::NotHere`], [`InferError::StaleView`], [`InferError::Stopping`],
//!   [`InferError::Unavailable`] or [`InferError::Unreachable`] is free. The first four prove that the
//!   request did not run, the last that the node is gone with whatever ran there: the retry adds no load.
//! - The first retry after [`InferError::ExecutorFailed`] is free, for the same reason. There is no second: a
//!   request that kills two executors is likely to be what kills them.
//! - A retry after an attempt's time passed is free when the node was silent to every request meanwhile,
//!   which is how a killed process looks. A node that answers others is merely slow: that retry costs a
//!   token, and without one the attempt simply goes on.
//! - A retry after [`InferError::Overloaded`] and every hedge cost a token. That is load on top of load.

use std::time::Duration;

use roost_protocol::{InferError, NodeId};
use tokio::time::Instant;

use crate::routing::Picked;

/// Attempts of one request. Three replicas may fail one after the other, and a view may be late a few times
/// meanwhile.
pub const ATTEMPTS_MAX: u8 = 8;
/// Attempts that run at once: the first, and one that was sent because it took long.
const RUNNING_MAX: usize = 2;
/// How long a request waits for a replica to become ready when none is: a leader change or a restart in
/// between, not a model that nobody can load.
const PATIENCE: Duration = Duration::from_secs(1);
/// The wait ahead of trying the same nodes again, doubled each time: a view arrives within milliseconds, an
/// executor restarts within tens of them.
const AGAIN_MIN: Duration = Duration::from_millis(5);
/// Where the doubling ends.
const AGAIN_MAX: Duration = Duration::from_millis(500);
/// An attempt is not given up before so many times the 95th percentile: a model that always takes long is not
/// late.
const TIMEOUT_PER_P95: u32 = 4;
/// Other candidates that an attempt leaves time for. More would make its own time short for nothing: they
/// rarely all fail.
const SPARED_MAX: usize = 2;
/// What a node may ask for with [`InferError::Overloaded`]; more is no better than a refusal.
const RETRY_AFTER_MAX: Duration = Duration::from_secs(60);
/// No hedge goes out earlier: timers are no finer, and a second request costs more than that.
const HEDGE_AFTER_MIN: Duration = Duration::from_millis(1);

/// A node that owes answers for so long, to whichever requests, while others answer is suspected. Longer than what a worker
/// that is merely slow takes for its next answer, and a fraction of what makes coordinators take it out of use.
const OWES_MAX: Duration = Duration::from_millis(500);

/// What attempts are sent by: what was picked, and the nodes in order of preference.
#[derive(Debug, Clone)]
pub struct Route {
    /// The version and why.
    pub picked: Picked,
    /// Its nodes.
    pub nodes: Vec<NodeId>,
    /// Whether nobody is known to serve the version, and the nodes are merely its owners.
    pub hoped: bool,
}

/// What a request asks of the world around it.
pub trait Surroundings {
    /// The route by the newest view.
    ///
    /// # Errors
    /// As [`crate::routing::Routes::pick`]; a retryable error means that a newer view may have one.
    fn route(&mut self) -> Result<Route, InferError>;

    /// Takes a token of the shared budget, if there is one.
    fn take_token(&mut self) -> bool;

    /// The 95th percentile of what requests for this version took lately.
    fn p95(&self, picked: &Picked) -> Option<Duration>;

    /// Whether the node has answered nobody since `since`.
    fn silent_since(&self, node: NodeId, since: Instant) -> bool;

    /// Since when the node was sent attempts, of any request, and answered none.
    fn owes_since(&self, node: NodeId) -> Option<Instant>;
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The request begins.
    Started,
    /// An attempt has an answer.
    Answered {
        /// The attempt.
        attempt: u8,
    },
    /// An attempt failed.
    Failed {
        /// The attempt.
        attempt: u8,
        /// Why.
        error: InferError,
    },
    /// There are newer routes.
    ViewChanged,
    /// The time that [`Request::next_wake`] named has come.
    TimerFired,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Send an attempt, by [`Request::route`].
    Send {
        /// The attempt, from 0.
        attempt: u8,
        /// Where to.
        node: NodeId,
    },
    /// Give an attempt up. It counts neither as success nor as failure.
    Cancel {
        /// The attempt.
        attempt: u8,
    },
    /// The node was silent past an attempt's time, or for long while others answered: prefer others for a while.
    Suspect {
        /// The node.
        node: NodeId,
    },
    /// The request is over: the answer is this attempt's, or there is none.
    Finish(Result<u8, InferError>),
}

/// What a request allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// When it must be over.
    pub deadline: Instant,
    /// Whether two attempts may run at once: not for streams, whose parts cannot be taken back, nor for
    /// sequences, whose requests depend on each other.
    pub concurrent: bool,
}

/// The state machine of one request.
#[derive(Debug)]
pub struct Request {
    terms: Terms,
    route: Option<Route>,
    /// Nodes that were tried since the last time all were, for the version of the route.
    tried: Vec<NodeId>,
    running: Vec<Running>,
    attempts: u8,
    hedge: Hedge,
    /// When all nodes are tried anew; set while nothing runs.
    again_at: Option<Instant>,
    /// Times that all nodes were tried.
    rounds: u32,
    /// When a request that never found a ready replica gives up.
    patience_until: Option<Instant>,
    executors_failed: u32,
    last_error: Option<InferError>,
    finished: bool,
}

#[derive(Debug)]
struct Running {
    attempt: u8,
    node: NodeId,
    sent: Instant,
    times_out: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Hedge {
    /// The latency is not known yet, or no attempt was sent.
    Unplanned,
    /// A hedge goes out then.
    At(Instant),
    /// One went out, or none may.
    Done,
}

impl Request {
    /// A request that has not begun.
    pub fn new(terms: Terms) -> Self {
        Self {
            terms,
            route: None,
            tried: Vec::new(),
            running: Vec::new(),
            attempts: 0,
            hedge: if terms.concurrent { Hedge::Unplanned } else { Hedge::Done },
            again_at: None,
            rounds: 0,
            patience_until: None,
            executors_failed: 0,
            last_error: None,
            finished: false,
        }
    }

    /// What the latest attempt was sent by.
    pub fn route(&self) -> Option<&Route> {
        self.route.as_ref()
    }

    /// Attempts that were sent.
    pub fn attempts(&self) -> u8 {
        self.attempts
    }

    /// When [`Event::TimerFired`] is due.
    pub fn next_wake(&self) -> Instant {
        let timeouts = self.running.iter().filter_map(|running| running.times_out);
        let hedge = match self.hedge {
            Hedge::At(at) if !self.running.is_empty() => Some(at),
            Hedge::At(_) | Hedge::Unplanned | Hedge::Done => None,
        };
        timeouts
            .chain(hedge)
            .chain(self.again_at)
            .chain(self.patience_until)
            .fold(self.terms.deadline, Instant::min)
    }

    /// Takes an event and says what to do, in order. Nothing follows a [`Command::Finish`].
    pub fn handle(&mut self, event: Event, now: Instant, around: &mut dyn Surroundings) -> Vec<Command> {
        let mut commands = Vec::new();
        if self.finished {
            return commands;
        }
        if now >= self.terms.deadline && !matches!(event, Event::Answered { .. }) {
            if let Event::Failed { attempt, error } = event
                && self.take_running(attempt).is_some()
            {
                self.last_error = Some(error);
            }
            self.deadline_passed(&mut commands);
            return commands;
        }
        match event {
            Event::Started => self.advance(now, around, &mut commands),
            Event::Answered { attempt } => self.answered(attempt, now, around, &mut commands),
            Event::Failed { attempt, error } => self.failed(attempt, error, now, around, &mut commands),
            // What runs was picked by what was known when it was sent; it ends by itself.
            Event::ViewChanged if self.running.is_empty() => self.advance(now, around, &mut commands),
            Event::ViewChanged => {}
            Event::TimerFired => self.timer_fired(now, around, &mut commands),
        }
        commands
    }

    fn timer_fired(&mut self, now: Instant, around: &mut dyn Surroundings, commands: &mut Vec<Command>) {
        let is_due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if self.running.is_empty() {
            if is_due(self.again_at) {
                self.tried.clear();
                self.rounds += 1;
            }
            return self.advance(now, around, commands);
        }
        let late =
            self.running.iter().find(|running| is_due(running.times_out)).map(|running| running.attempt);
        if let Some(attempt) = late {
            self.timed_out(attempt, now, around, commands);
        }
        if let Hedge::At(at) = self.hedge
            && at <= now
        {
            self.hedge(now, around, commands);
        }
    }

    /// Sends the next attempt when nothing runs; waits when there is nowhere to send it.
    fn advance(&mut self, now: Instant, around: &mut dyn Surroundings, commands: &mut Vec<Command>) {
        if self.attempts == ATTEMPTS_MAX {
            let error = self.last_error.take().unwrap_or(InferError::DeadlineExceeded);
            return self.finish(Err(error), commands);
        }
        let route = match around.route() {
            Ok(route) => route,
            Err(error) if error.retryable() => return self.wait_for_view(error, now, commands),
            Err(error) => return self.finish(Err(error), commands),
        };
        let is_news = |old: &Route| old.picked.version != route.picked.version || old.hoped && !route.hoped;
        if self.route.as_ref().is_some_and(is_news) {
            self.tried.clear();
        }
        let Picked { model, version, .. } = &route.picked;
        let nobody_serves = route.hoped
            && matches!(self.last_error, Some(InferError::NotHere { .. } | InferError::Unavailable { .. }));
        let unavailable = InferError::Unavailable { model: model.to_string(), version: version.0 };
        self.route = Some(route);
        if self.untried().is_none() && nobody_serves {
            // Each owner was asked: only news can help.
            return self.wait_for_view(unavailable, now, commands);
        }
        self.patience_until = None;
        if self.untried().is_some() {
            self.send(now, around, commands);
        } else if self.again_at.is_none_or(|at| at <= now) {
            self.again_at = Some(now + self.again_after());
        }
    }

    /// Waits for a newer view. One that is known to exist may take all the time there is; a replica that may
    /// never become ready gets [`PATIENCE`].
    fn wait_for_view(&mut self, error: InferError, now: Instant, commands: &mut Vec<Command>) {
        let is_coming = matches!(error, InferError::StaleView { .. });
        self.again_at = None;
        self.patience_until = (!is_coming).then(|| self.patience_until.unwrap_or(now + PATIENCE));
        let out_of_patience = self.patience_until.is_some_and(|until| until <= now);
        self.last_error = Some(error.clone());
        if out_of_patience {
            self.finish(Err(error), commands);
        }
    }

    /// The next node of the route that was not tried.
    fn untried(&self) -> Option<NodeId> {
        self.route.as_ref()?.nodes.iter().find(|node| !self.tried.contains(node)).copied()
    }

    /// Whether a further attempt has somewhere to go.
    fn may_send(&self) -> bool {
        self.attempts < ATTEMPTS_MAX && self.untried().is_some()
    }

    /// Sends an attempt to the next node.
    fn send(&mut self, now: Instant, around: &mut dyn Surroundings, commands: &mut Vec<Command>) {
        let Some(node) = self.untried() else { return };
        let attempt = self.attempts;
        self.attempts += 1;
        self.tried.push(node);
        self.again_at = None;
        let p95 = self.route.as_ref().and_then(|route| around.p95(&route.picked));
        self.running.push(Running { attempt, node, sent: now, times_out: self.times_out(now, p95) });
        if self.hedge != Hedge::Done {
            self.hedge = p95.map_or(Hedge::Unplanned, |p95| Hedge::At(now + p95.max(HEDGE_AFTER_MIN)));
        }
        commands.push(Command::Send { attempt, node });
    }

    /// When the attempt that is about to be sent has had its time: it shares what is left with the candidates
    /// after it. `None` when there are none, or it would be over too early for the version's usual latency.
    fn times_out(&self, now: Instant, p95: Option<Duration>) -> Option<Instant> {
        let nodes = self.route.as_ref().map_or(&[][..], |route| &route.nodes);
        let others = nodes.iter().filter(|node| !self.tried.contains(node)).count();
        let others = others.min(SPARED_MAX).min(usize::from(ATTEMPTS_MAX - self.attempts));
        if others == 0 {
            return None;
        }
        let left = self.terms.deadline.saturating_duration_since(now);
        let time = left / (others as u32 + 1);
        let time = time.max(p95.map_or(Duration::ZERO, |p95| p95 * TIMEOUT_PER_P95));
        (time < left).then(|| now + time)
    }

    fn again_after(&self) -> Duration {
        (AGAIN_MIN * (1 << self.rounds.min(10))).min(AGAIN_MAX)
    }

    fn hedge(&mut self, now: Instant, around: &mut dyn Surroundings, commands: &mut Vec<Command>) {
        self.hedge = Hedge::Done;
        // The route stays as it is: a hedge is for the same version.
        if self.running.len() < RUNNING_MAX && self.may_send() && around.take_token() {
            self.send(now, around, commands);
        }
    }

    fn timed_out(
        &mut self,
        attempt: u8,
        now: Instant,
        around: &mut dyn Surroundings,
        commands: &mut Vec<Command>,
    ) {
        let Some(late) = self.running.iter_mut().find(|running| running.attempt == attempt) else { return };
        late.times_out = None;
        let (node, silent) = (late.node, around.silent_since(late.node, late.sent));
        if silent {
            commands.push(Command::Suspect { node });
        }
        if !self.may_send() || !(silent || around.take_token()) {
            return;
        }
        self.hedge = Hedge::Done;
        // It may still answer first, unless only one may run at a time.
        if !self.terms.concurrent || self.running.len() == RUNNING_MAX {
            self.running.retain(|running| running.attempt != attempt);
            commands.push(Command::Cancel { attempt });
        }
        self.send(now, around, commands);
    }

    fn answered(
        &mut self,
        attempt: u8,
        now: Instant,
        around: &mut dyn Surroundings,
        commands: &mut Vec<Command>,
    ) {
        if self.take_running(attempt).is_none() {
            return;
        }
        // Hedges that win end attempts ahead of their time: without this, a dead node is tried first for as long as it is in
        // the view, and hedges use up the budget.
        let is_silent = |running: &&Running| {
            around
                .owes_since(running.node)
                .is_some_and(|since| now.saturating_duration_since(since) >= OWES_MAX)
        };
        let silent =
            self.running.iter().filter(is_silent).map(|running| Command::Suspect { node: running.node });
        commands.extend(silent);
        self.finish(Ok(attempt), commands);
    }

    fn failed(
        &mut self,
        attempt: u8,
        error: InferError,
        now: Instant,
        around: &mut dyn Surroundings,
        commands: &mut Vec<Command>,
    ) {
        // An attempt that was cancelled has nothing to say any more.
        if self.take_running(attempt).is_none() {
            return;
        }
        if matches!(error, InferError::Overloaded { .. }) {
            self.hedge = Hedge::Done;
        }
        if error.retryable() && !self.running.is_empty() {
            self.last_error = Some(error);
            return;
        }
        let (goes_on, not_before) = self.verdict(&error, now, around);
        if !goes_on {
            return self.finish(Err(error), commands);
        }
        self.last_error = Some(error);
        self.advance(now, around, commands);
        if let (Some(again_at), Some(not_before)) = (&mut self.again_at, not_before) {
            *again_at = not_before.max(*again_at);
        }
    }

    /// Whether a request goes on after an error of its only attempt, and the time before which the same nodes
    /// need not be asked again. The reasons are at the head of this file.
    fn verdict(
        &mut self,
        error: &InferError,
        now: Instant,
        around: &mut dyn Surroundings,
    ) -> (bool, Option<Instant>) {
        match error {
            InferError::NotHere { .. }
            | InferError::StaleView { .. }
            | InferError::Unavailable { .. }
            | InferError::Stopping
            | InferError::Unreachable { .. } => (true, None),
            InferError::ExecutorFailed { .. } => {
                self.executors_failed += 1;
                (self.executors_failed == 1, None)
            }
            InferError::Overloaded { retry_after_us } => {
                let after = now + Duration::from_micros(*retry_after_us).min(RETRY_AFTER_MAX);
                let in_time = self.untried().is_some() || after < self.terms.deadline;
                (in_time && around.take_token(), Some(after))
            }
            InferError::UnknownModel { .. }
            | InferError::UnknownVersion { .. }
            | InferError::UnknownLabel { .. }
            | InferError::DeadlineExceeded
            | InferError::Cancelled
            | InferError::UnknownInput { .. }
            | InferError::MissingInput { .. }
            | InferError::DuplicateInput { .. }
            | InferError::UnknownOutput { .. }
            | InferError::WrongDType { .. }
            | InferError::WrongShape { .. }
            | InferError::RowsDiffer { .. }
            | InferError::LimitExceeded { .. }
            | InferError::Malformed { .. }
            | InferError::Unsupported { .. }
            | InferError::ModelFailed { .. }
            | InferError::Forbidden { .. } => (false, None),
        }
    }

    fn deadline_passed(&mut self, commands: &mut Vec<Command>) {
        // Where nothing runs, what was waited for says more than that the time is over.
        let waiting = self.running.is_empty().then(|| self.last_error.take()).flatten();
        self.finish(Err(waiting.unwrap_or(InferError::DeadlineExceeded)), commands);
    }

    fn take_running(&mut self, attempt: u8) -> Option<Running> {
        let place = self.running.iter().position(|running| running.attempt == attempt)?;
        Some(self.running.remove(place))
    }

    fn finish(&mut self, result: Result<u8, InferError>, commands: &mut Vec<Command>) {
        self.finished = true;
        commands.extend(self.running.drain(..).map(|running| Command::Cancel { attempt: running.attempt }));
        commands.push(Command::Finish(result));
    }
}

#[cfg(test)]
mod tests;
