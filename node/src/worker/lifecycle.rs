//! The life of a hosted version on one node, as a state machine.
//!
//! ```text
//! Fetching → Verifying → Loading → Warming → Ready → Draining → Unloaded          Failed, from any attempt
//! ```
//! [`handle_event`] is a function of state, event, time and chance; it does nothing by itself, and whoever owns the state
//! carries out its [`Command`]s. The full table of states and events is in `lifecycle/table.txt`, a drawing of it in
//! `lifecycle/lifecycle.dot`; the tests write both.
//!
//! A version may have several executors. When one dies the others go on, and the life goes back to make up for the one
//! that is missing: [`Past::live`] says whether it serves meanwhile. So an attempt that fails for good ends in [`State::Failed`]
//! only when no executor is left; otherwise the version stays ready with fewer.

use std::time::Duration;

use roost_client::backoff::{Backoff, Jitter};
use roost_protocol::view::Stage;
use tokio::time::Instant;

/// The first wait after a fetch that failed: coordinators that are just starting are there by then.
const FETCH_BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(30) };
/// Loading costs seconds of a core, so it is tried more slowly.
const LOAD_BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(10) };
/// A session that panics on one input serves the next, so its first restart comes soon.
const RESTART_BACKOFF: Backoff = Backoff { first: Duration::from_millis(100), max: Duration::from_secs(5) };
/// Loads that may fail in a row: what fails three times fails a fourth.
const LOAD_TRIES_MAX: u32 = 3;
/// Fetches in a row that may bring damaged bytes, from the disk or from all holders.
const DAMAGED_MAX: u32 = 3;
/// Executors that may die within [`DEATHS_WINDOW`]. More, and the version does harm here.
const DEATHS_MAX: usize = 5;
/// How long a death counts.
const DEATHS_WINDOW: Duration = Duration::from_secs(60);
/// Between giving a version up and the next attempt. Where another node can take the version's place, it is released here
/// long before; where none can, what was wrong may be mended meanwhile: memory, a disk, a library.
const GIVEN_UP: Duration = Duration::from_secs(300);
/// How often a draining version looks whether it is quiet.
const DRAIN_CHECK: Duration = Duration::from_millis(100);

/// What holds for all lives of versions on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Executors per version.
    pub executors: u32,
    /// How long a version serves on after the view stopped routing to it here.
    pub drain_min: Duration,
}

/// What went wrong so far, and what still works.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Past {
    /// Executors that serve.
    pub live: u32,
    /// Fetches that failed in a row.
    pub fetch_failures: u32,
    /// Times in a row that what was fetched was damaged, or that nobody had it after it had been found damaged.
    pub damaged: u32,
    /// What was damaged last.
    pub damage: Option<String>,
    /// Loads that failed in a row.
    pub load_failures: u32,
    /// When executors died lately.
    pub deaths: Vec<Instant>,
}

/// How far a version is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Its bundle is being fetched.
    Fetching(Past),
    /// The fetch failed; waits to try again.
    FetchWaiting(Past),
    /// Its files are read, their digests checked.
    Verifying(Past),
    /// Sessions are made for the executors that are missing.
    Loading(Past),
    /// The new sessions run their warm-up batches.
    Warming(Past),
    /// It serves.
    Ready(Past),
    /// A load failed or an executor died; waits to try again.
    Restarting(Past),
    /// It serves what still comes, and will be unloaded.
    Draining {
        /// What works.
        past: Past,
        /// When the drain began.
        since: Instant,
    },
    /// It is gone.
    Unloaded,
    /// It cannot be hosted here, and is tried again only after minutes.
    Failed {
        /// Why.
        reason: String,
    },
}

/// Why there is no bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FetchFailure {
    /// No holder could be asked, or the disk did not take it.
    Unreachable(String),
    /// No holder has it. Holders remove what they find damaged, so after damage this is no news.
    Nowhere(String),
    /// What holders gave is not the bundle.
    Damaged(String),
}

/// Why there is no session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadFailure {
    /// It would fail again: the model is broken, or no engine here can run it.
    Final(String),
    /// It may go well another time.
    Passing(String),
}

/// What happens to a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// This node should host it.
    Wanted,
    /// This node need not host it any more, and nothing is routed to it here.
    Released,
    /// The bundle is on the disk.
    Fetched,
    /// It is not.
    FetchFailed(FetchFailure),
    /// All digests are right.
    Verified,
    /// A file on the disk is damaged or missing.
    Damaged(String),
    /// The files could not be read.
    VerifyFailed(String),
    /// All missing sessions are made.
    Loaded,
    /// One of them was not made, or did not survive its warm-up.
    LoadFailed(LoadFailure),
    /// All new sessions ran their warm-up batches.
    Warmed,
    /// An executor died that served.
    ExecutorDied(String),
    /// What [`Command::Wake`] asked for.
    Woken {
        /// Requests that the version has in flight.
        in_flight: usize,
    },
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Fetch what is missing of the bundle.
    Fetch,
    /// Read the bundle's files and check their digests.
    Verify,
    /// Make a session for each executor that is missing.
    Load,
    /// Run the warm-up batches on the new sessions.
    WarmUp,
    /// The new sessions serve, and requests are taken.
    Serve,
    /// Take no requests, and answer those that wait that they may go elsewhere.
    Refuse,
    /// Say [`Event::Woken`] after this time.
    Wake(Duration),
    /// Give up the fetch, the check, the load, the warm-up or the wait that is under way.
    Abandon,
    /// Let go of all sessions and executors.
    Unload,
    /// End.
    Stop,
}

/// An event that cannot happen in a state: a mistake in whoever owns the state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{event} cannot happen to a version that is {state}")]
pub struct IllegalTransition {
    /// The state.
    pub state: &'static str,
    /// The event.
    pub event: &'static str,
}

type Next = (State, Vec<Command>);

/// The first state, and what to do in it.
pub fn begin() -> Next {
    (State::Fetching(Past::default()), vec![Command::Fetch])
}

/// What a version becomes when `event` happens to it, and what to do then.
///
/// # Errors
/// [`IllegalTransition`] when it cannot happen.
pub fn handle_event(
    rules: &Rules,
    state: State,
    event: Event,
    now: Instant,
    jitter: Jitter,
) -> Result<Next, IllegalTransition> {
    let illegal = IllegalTransition { state: state.name(), event: event.name() };
    match event {
        Event::Wanted => Ok(handle_wanted(rules, state)),
        Event::Released => Ok(handle_released(rules, state, now)),
        Event::Fetched => {
            let State::Fetching(past) = state else { return Err(illegal) };
            Ok((State::Verifying(past), vec![Command::Verify]))
        }
        Event::FetchFailed(failure) => {
            let State::Fetching(past) = state else { return Err(illegal) };
            Ok(handle_fetch_failed(past, failure, jitter))
        }
        Event::Verified => {
            let State::Verifying(past) = state else { return Err(illegal) };
            Ok((State::Loading(past), vec![Command::Load]))
        }
        Event::Damaged(reason) => {
            let State::Verifying(past) = state else { return Err(illegal) };
            Ok(handle_damaged(past, reason))
        }
        Event::VerifyFailed(reason) => {
            let State::Verifying(past) = state else { return Err(illegal) };
            Ok(handle_load_failed(past, LoadFailure::Passing(reason), jitter))
        }
        Event::Loaded => {
            let State::Loading(past) = state else { return Err(illegal) };
            Ok((State::Warming(past), vec![Command::WarmUp]))
        }
        Event::LoadFailed(failure) => {
            let (State::Loading(past) | State::Warming(past)) = state else { return Err(illegal) };
            Ok(handle_load_failed(past, failure, jitter))
        }
        Event::Warmed => {
            let State::Warming(past) = state else { return Err(illegal) };
            let past = Past { live: rules.executors, deaths: past.deaths, ..Past::default() };
            Ok((State::Ready(past), vec![Command::Serve]))
        }
        Event::ExecutorDied(reason) => handle_death(state, &reason, now, jitter).ok_or(illegal),
        Event::Woken { in_flight } => match state {
            State::FetchWaiting(past) => Ok((State::Fetching(past), vec![Command::Fetch])),
            State::Restarting(past) => Ok((State::Verifying(past), vec![Command::Verify])),
            // The executors that were given up are tried again.
            State::Ready(past) if past.live < rules.executors => {
                Ok((State::Verifying(past), vec![Command::Verify]))
            }
            State::Draining { past, since } => Ok(handle_drain_check(rules, past, since, now, in_flight)),
            State::Failed { .. } => Ok(begin()),
            State::Fetching(_)
            | State::Verifying(_)
            | State::Loading(_)
            | State::Warming(_)
            | State::Ready(_)
            | State::Unloaded => Err(illegal),
        },
    }
}

fn handle_wanted(rules: &Rules, state: State) -> Next {
    match state {
        State::Draining { past, .. } if past.live < rules.executors => {
            (State::Restarting(past), vec![Command::Abandon, Command::Wake(Duration::ZERO)])
        }
        State::Draining { past, .. } => (State::Ready(past), vec![Command::Abandon]),
        // It is hosted, on its way to be, cannot be, or is gone and will be begun anew.
        state @ (State::Fetching(_)
        | State::FetchWaiting(_)
        | State::Verifying(_)
        | State::Loading(_)
        | State::Warming(_)
        | State::Ready(_)
        | State::Restarting(_)
        | State::Unloaded
        | State::Failed { .. }) => (state, Vec::new()),
    }
}

fn handle_released(rules: &Rules, state: State, now: Instant) -> Next {
    match state {
        State::Fetching(past)
        | State::FetchWaiting(past)
        | State::Verifying(past)
        | State::Loading(past)
        | State::Warming(past)
        | State::Restarting(past)
        | State::Ready(past)
            if past.live > 0 =>
        {
            (State::Draining { past, since: now }, vec![Command::Abandon, Command::Wake(rules.drain_min)])
        }
        // It serves nothing, so there is nothing to drain.
        State::Fetching(_)
        | State::FetchWaiting(_)
        | State::Verifying(_)
        | State::Loading(_)
        | State::Warming(_)
        | State::Ready(_)
        | State::Restarting(_)
        | State::Failed { .. } => (State::Unloaded, vec![Command::Abandon, Command::Unload, Command::Stop]),
        state @ (State::Draining { .. } | State::Unloaded) => (state, Vec::new()),
    }
}

fn handle_fetch_failed(mut past: Past, failure: FetchFailure, jitter: Jitter) -> Next {
    past.fetch_failures += 1;
    let damage = match failure {
        FetchFailure::Damaged(reason) => Some(reason),
        FetchFailure::Nowhere(_) => past.damage.clone(),
        FetchFailure::Unreachable(_) => None,
    };
    if let Some(reason) = damage {
        past.damaged += 1;
        past.damage = Some(reason.clone());
        if past.damaged >= DAMAGED_MAX {
            return give_up(past, reason);
        }
    }
    let wait = FETCH_BACKOFF.after(past.fetch_failures, jitter);
    (State::FetchWaiting(past), vec![Command::Wake(wait)])
}

fn handle_damaged(mut past: Past, reason: String) -> Next {
    past.damaged += 1;
    past.damage = Some(reason.clone());
    if past.damaged >= DAMAGED_MAX {
        return give_up(past, reason);
    }
    (State::Fetching(past), vec![Command::Abandon, Command::Fetch])
}

fn handle_load_failed(mut past: Past, failure: LoadFailure, jitter: Jitter) -> Next {
    past.load_failures += 1;
    match failure {
        LoadFailure::Final(reason) => give_up(past, reason),
        LoadFailure::Passing(reason) if past.load_failures >= LOAD_TRIES_MAX => {
            give_up(past, format!("{LOAD_TRIES_MAX} loads failed, the last: {reason}"))
        }
        LoadFailure::Passing(_) => {
            let wait = LOAD_BACKOFF.after(past.load_failures, jitter);
            (State::Restarting(past), vec![Command::Abandon, Command::Wake(wait)])
        }
    }
}

/// Ends an attempt for good: in failure, or with the executors that are left.
fn give_up(past: Past, reason: String) -> Next {
    if past.live == 0 {
        return (State::Failed { reason }, vec![Command::Abandon, Command::Unload, Command::Wake(GIVEN_UP)]);
    }
    let past = Past { live: past.live, deaths: past.deaths, ..Past::default() };
    (State::Ready(past), vec![Command::Abandon, Command::Wake(GIVEN_UP)])
}

/// `None` when no executor is there to die.
fn handle_death(state: State, reason: &str, now: Instant, jitter: Jitter) -> Option<Next> {
    match state {
        // The sessions to come are made for all executors that are missing by then.
        State::Fetching(past) if past.live > 0 => {
            Some(mourn(past, reason, now, |past| (State::Fetching(past), vec![])))
        }
        State::FetchWaiting(past) if past.live > 0 => {
            Some(mourn(past, reason, now, |past| (State::FetchWaiting(past), vec![])))
        }
        State::Verifying(past) if past.live > 0 => {
            Some(mourn(past, reason, now, |past| (State::Verifying(past), vec![])))
        }
        State::Restarting(past) if past.live > 0 => {
            Some(mourn(past, reason, now, |past| (State::Restarting(past), vec![])))
        }
        // The sessions that are being made are fewer than are missing now: begin again.
        State::Loading(past) | State::Warming(past) | State::Ready(past) if past.live > 0 => {
            Some(mourn(past, reason, now, |past| {
                let wait = RESTART_BACKOFF.after(past.deaths.len() as u32, jitter);
                (State::Restarting(past), vec![Command::Abandon, Command::Wake(wait)])
            }))
        }
        State::Draining { mut past, since } => {
            past.live = past.live.saturating_sub(1);
            if past.live > 0 {
                return Some((State::Draining { past, since }, Vec::new()));
            }
            let end = vec![Command::Abandon, Command::Refuse, Command::Unload, Command::Stop];
            Some((State::Unloaded, end))
        }
        State::Fetching(_)
        | State::FetchWaiting(_)
        | State::Verifying(_)
        | State::Loading(_)
        | State::Warming(_)
        | State::Ready(_)
        | State::Restarting(_)
        | State::Unloaded
        | State::Failed { .. } => None,
    }
}

/// Counts a death, then goes `on`, unless there were too many. The last one ends the taking of requests.
fn mourn(mut past: Past, reason: &str, now: Instant, on: impl FnOnce(Past) -> Next) -> Next {
    past.live -= 1;
    past.deaths.retain(|death| now.saturating_duration_since(*death) < DEATHS_WINDOW);
    past.deaths.push(now);
    if past.deaths.len() >= DEATHS_MAX {
        let window = DEATHS_WINDOW.as_secs();
        let reason = format!("{DEATHS_MAX} executors died within {window} s, the last: {reason}");
        let end = vec![Command::Abandon, Command::Refuse, Command::Unload, Command::Wake(GIVEN_UP)];
        return (State::Failed { reason }, end);
    }
    let last = past.live == 0;
    let (state, mut commands) = on(past);
    if last {
        commands.insert(0, Command::Refuse);
    }
    (state, commands)
}

fn handle_drain_check(rules: &Rules, past: Past, since: Instant, now: Instant, in_flight: usize) -> Next {
    let left = rules.drain_min.saturating_sub(now.saturating_duration_since(since));
    if !left.is_zero() {
        return (State::Draining { past, since }, vec![Command::Wake(left)]);
    }
    if in_flight > 0 {
        return (State::Draining { past, since }, vec![Command::Wake(DRAIN_CHECK)]);
    }
    (State::Unloaded, vec![Command::Refuse, Command::Unload, Command::Stop])
}

impl State {
    /// The stage that this is reported as; `bundle_bytes` is the size of the version's bundle.
    pub fn stage(&self, bundle_bytes: u64) -> Stage {
        match self {
            Self::Fetching(past)
            | Self::FetchWaiting(past)
            | Self::Verifying(past)
            | Self::Loading(past)
            | Self::Warming(past)
            | Self::Restarting(past)
                if past.live > 0 =>
            {
                Stage::Ready
            }
            Self::Fetching(_) | Self::FetchWaiting(_) => Stage::Fetching { bytes: 0, of: bundle_bytes },
            Self::Verifying(_) => Stage::Verifying,
            Self::Loading(_) | Self::Restarting(_) => Stage::Loading,
            Self::Warming(_) => Stage::Warming,
            Self::Ready(_) => Stage::Ready,
            Self::Draining { .. } => Stage::Draining,
            Self::Unloaded => Stage::Unloaded,
            Self::Failed { reason } => Stage::Failed { reason: reason.clone() },
        }
    }

    /// The executors that serve.
    pub fn live(&self) -> u32 {
        match self {
            Self::Fetching(past)
            | Self::FetchWaiting(past)
            | Self::Verifying(past)
            | Self::Loading(past)
            | Self::Warming(past)
            | Self::Ready(past)
            | Self::Restarting(past)
            | Self::Draining { past, .. } => past.live,
            Self::Unloaded | Self::Failed { .. } => 0,
        }
    }

    /// The state's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Fetching(_) => "Fetching",
            Self::FetchWaiting(_) => "FetchWaiting",
            Self::Verifying(_) => "Verifying",
            Self::Loading(_) => "Loading",
            Self::Warming(_) => "Warming",
            Self::Ready(_) => "Ready",
            Self::Restarting(_) => "Restarting",
            Self::Draining { .. } => "Draining",
            Self::Unloaded => "Unloaded",
            Self::Failed { .. } => "Failed",
        }
    }
}

impl Event {
    /// The event's name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Wanted => "Wanted",
            Self::Released => "Released",
            Self::Fetched => "Fetched",
            Self::FetchFailed(FetchFailure::Unreachable(_)) => "FetchFailed(Unreachable)",
            Self::FetchFailed(FetchFailure::Nowhere(_)) => "FetchFailed(Nowhere)",
            Self::FetchFailed(FetchFailure::Damaged(_)) => "FetchFailed(Damaged)",
            Self::Verified => "Verified",
            Self::Damaged(_) => "Damaged",
            Self::VerifyFailed(_) => "VerifyFailed",
            Self::Loaded => "Loaded",
            Self::LoadFailed(LoadFailure::Final(_)) => "LoadFailed(Final)",
            Self::LoadFailed(LoadFailure::Passing(_)) => "LoadFailed(Passing)",
            Self::Warmed => "Warmed",
            Self::ExecutorDied(_) => "ExecutorDied",
            Self::Woken { in_flight: 0 } => "Woken(quiet)",
            Self::Woken { .. } => "Woken(busy)",
        }
    }
}

#[cfg(test)]
mod tests;
