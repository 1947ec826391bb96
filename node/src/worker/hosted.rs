//! The actor of one hosted version.
//!
//! It owns the version's [`lifecycle::State`], its queue and its executors. It decides nothing: what happens goes into the
//! lifecycle, whose commands it carries out, and the queue says what runs next. Tasks and jobs that it starts tell it
//! their results in messages that bear the number of the work they belong to; results of work that was given up since
//! are thrown away. Requests that enter its mailbox hold permits, which bounds it.

mod preparing;
mod serving;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ractor::{Actor, ActorProcessingErr, ActorRef};
use roost_client::backoff::Jitter;
use roost_protocol::ModelVersion;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::view::HostedVersion;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::batcher::{Batcher, Place};
use super::executor::{Died, Loaded};
use super::lifecycle::{self, Command, Event, FetchFailure, IllegalTransition, LoadFailure, State};
use super::plan::Plan;
use super::request::Request;
use super::routes::Route;
use super::shared::Shared;
use crate::engine::{Bundle, Cancel, Session};
use crate::environment::Executor;

/// The actor.
pub struct Hosted;

/// What it starts from.
pub struct Arguments {
    /// The version.
    pub version: ModelVersion,
    /// What the view says of it.
    pub hosted: HostedVersion,
    /// What the versions of a worker share.
    pub shared: Arc<Shared>,
}

/// What happens to a hosted version.
pub enum Message {
    /// This node should host it.
    Wanted,
    /// This node need not host it any more.
    Released,
    /// A piece of work has ended.
    Worked {
        /// Which.
        work: u64,
        /// What came of it.
        result: Worked,
    },
    /// A request joins the queue.
    Enqueue {
        /// Where.
        place: Place,
        /// When nobody waits for it any more.
        deadline: Instant,
        /// The request.
        request: Box<Request>,
    },
    /// Nobody waits for a request any more.
    Cancel(Place),
    /// A batch has run, or its executor died. Its requests were told.
    Ran {
        /// Which batch.
        run: u64,
        /// The session, if it survived.
        session: Result<Box<dyn Session>, Died>,
    },
}

/// What came of a piece of work.
pub enum Worked {
    /// A fetch.
    Fetched(Result<(), FetchFailure>),
    /// A check of the files.
    Verified(Result<Bundle, preparing::VerifyFailure>),
    /// The making of a session for an executor.
    Loaded(usize, Result<Loaded, LoadFailure>),
    /// The warm-up of a session on an executor.
    Warmed(usize, Result<Box<dyn Session>, LoadFailure>),
    /// A wait.
    Woken,
}

/// The actor's state.
pub struct Life {
    myself: ActorRef<Message>,
    shared: Arc<Shared>,
    version: ModelVersion,
    hosted: HostedVersion,
    state: State,
    /// The number of the work that is under way; results of earlier work are stale.
    work: u64,
    task: Option<Task>,
    bundle: Option<Arc<Bundle>>,
    plan: Option<Arc<Plan>>,
    engine: Option<EngineChoice>,
    slots: Vec<Slot>,
    queue: Batcher<Box<Request>>,
    route: Option<Arc<Route>>,
    in_flight: Arc<AtomicUsize>,
    runs: u64,
}

/// A task that ends when its owner lets go of it.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A place for an executor with its session. A session travels with each job that needs it, so it is never shared.
enum Slot {
    /// None.
    Empty,
    /// Its session is being made or warmed up.
    Preparing(Arc<dyn Executor>),
    /// Its session is made, or warmed up, and waits for the other slots'.
    Prepared(Arc<dyn Executor>, Box<dyn Session>),
    /// It has nothing to do.
    Idle(Arc<dyn Executor>, Box<dyn Session>),
    /// It runs a batch.
    Busy(Running),
}

struct Running {
    executor: Arc<dyn Executor>,
    run: u64,
    /// Requests of the batch that somebody waits for.
    waited_for: BTreeSet<Place>,
    cancel: Cancel,
}

impl Actor for Hosted {
    type Msg = Message;
    type State = Life;
    type Arguments = Arguments;

    async fn pre_start(
        &self,
        myself: ActorRef<Message>,
        Arguments { version, hosted, shared }: Arguments,
    ) -> Result<Life, ActorProcessingErr> {
        let executors = shared.rules.executors as usize;
        let queue = Batcher::new(hosted.manifest.batch_rows_max);
        let (state, commands) = lifecycle::begin();
        let mut life = Life {
            myself,
            shared,
            version,
            hosted,
            state,
            work: 0,
            task: None,
            bundle: None,
            plan: None,
            engine: None,
            slots: std::iter::repeat_with(|| Slot::Empty).take(executors).collect(),
            queue,
            route: None,
            in_flight: Arc::default(),
            runs: 0,
        };
        life.report();
        commands.into_iter().for_each(|command| life.execute(command));
        Ok(life)
    }

    async fn handle(
        &self,
        _myself: ActorRef<Message>,
        message: Message,
        life: &mut Life,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Wanted => life.advance(Event::Wanted)?,
            Message::Released => life.advance(Event::Released)?,
            Message::Worked { work, result } if work == life.work => life.handle_worked(result)?,
            // Given up meanwhile. A session that comes too late goes with it.
            Message::Worked { .. } => {}
            Message::Enqueue { place, deadline, request } => life.enqueue(place, deadline, request),
            Message::Cancel(place) => life.cancel(place),
            Message::Ran { run, session } => life.handle_ran(run, session)?,
        }
        Ok(())
    }

    async fn post_stop(&self, _myself: ActorRef<Message>, life: &mut Life) -> Result<(), ActorProcessingErr> {
        life.state = State::Unloaded;
        life.execute(Command::Abandon);
        life.execute(Command::Refuse);
        life.execute(Command::Unload);
        Ok(())
    }
}

impl Life {
    /// Has `event` happen and does what follows from it.
    fn advance(&mut self, event: Event) -> Result<(), IllegalTransition> {
        let jitter = Jitter::new(self.shared.environment.entropy.u64());
        let (from, what) = (self.state.name(), format!("{event:?}"));
        let state = std::mem::replace(&mut self.state, State::Unloaded);
        let (state, commands) =
            lifecycle::handle_event(&self.shared.rules, state, event, Instant::now(), jitter)?;
        let (to, live) = (state.name(), state.live());
        match &state {
            State::Failed { reason } if from != to => {
                tracing::error!(version = %self.version, reason, "cannot be hosted here");
            }
            State::FetchWaiting(_) | State::Restarting(_) => {
                tracing::warn!(version = %self.version, event = what, from, to, live, "will be tried again");
            }
            State::Fetching(_)
            | State::Verifying(_)
            | State::Loading(_)
            | State::Warming(_)
            | State::Ready(_)
            | State::Draining { .. }
            | State::Unloaded
            | State::Failed { .. } => {
                if from == to {
                    tracing::debug!(version = %self.version, event = what, from, to, live, "stayed");
                } else {
                    tracing::info!(version = %self.version, from, to, live, "moved on");
                }
            }
        }
        self.state = state;
        // Ahead of the commands, so that whoever is answered by one already sees the stage that it belongs to.
        self.report();
        commands.into_iter().for_each(|command| self.execute(command));
        Ok(())
    }

    fn report(&self) {
        self.shared.board.set(&self.version, self.state.stage(self.hosted.bytes), self.engine);
    }

    fn execute(&mut self, command: Command) {
        match command {
            Command::Fetch => self.fetch(),
            Command::Verify => self.verify(),
            Command::Load => self.load(),
            Command::WarmUp => self.warm_up(),
            Command::Serve => self.serve(),
            Command::Refuse => self.refuse_all(),
            Command::Wake(after) => {
                let work = self.begin_work();
                let myself = self.myself.clone();
                self.task = Some(Task(tokio::spawn(async move {
                    tokio::time::sleep(after).await;
                    tell(&myself, Message::Worked { work, result: Worked::Woken });
                })));
            }
            Command::Abandon => self.abandon(),
            Command::Unload => {
                self.bundle = None;
                self.slots.iter_mut().for_each(|slot| std::mem::replace(slot, Slot::Empty).retire());
            }
            Command::Stop => self.myself.stop(None),
        }
    }

    /// The number for work that begins now. Whatever was under way before is stale.
    fn begin_work(&mut self) -> u64 {
        self.task = None;
        self.work += 1;
        self.work
    }

    fn handle_worked(&mut self, result: Worked) -> Result<(), IllegalTransition> {
        match result {
            Worked::Fetched(Ok(())) => self.advance(Event::Fetched),
            Worked::Fetched(Err(failure)) => self.advance(Event::FetchFailed(failure)),
            Worked::Verified(result) => self.handle_verified(result),
            Worked::Loaded(slot, result) => self.handle_loaded(slot, result),
            Worked::Warmed(slot, result) => self.handle_warmed(slot, result),
            Worked::Woken => {
                let in_flight = self.in_flight.load(Ordering::Acquire);
                self.advance(Event::Woken { in_flight })
            }
        }
    }
}

impl Slot {
    /// Lets go of executor and session, the session on the executor: freeing a model's memory takes its time.
    fn retire(self) {
        match self {
            Self::Prepared(executor, session) | Self::Idle(executor, session) => {
                executor.submit(Box::new(move || drop(session)));
            }
            // The session is on its way in a job, and ends when it comes back.
            Self::Preparing(_) | Self::Busy(_) | Self::Empty => {}
        }
    }
}

/// Tells the actor; when it is gone, nobody needs to know.
fn tell(actor: &ActorRef<Message>, message: Message) {
    if actor.cast(message).is_err() {
        tracing::debug!("the actor of a version ended ahead of its work");
    }
}
