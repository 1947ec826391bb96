//! The way into the worker: for requests of this process, and for those that [`super::serve`] reads from links.
//!
//! Both take the same way: is the version here and is it the one that the traffic picks, does the request fit it, is there
//! room, then the queue. [`Answering`] is the way out; dropping it early cancels the request.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ractor::ActorRef;
use roost_protocol::messages::control::VersionStatistics;
use roost_protocol::messages::infer::{Choice, InferHeader, Named, ResponseHeader, ResponseMode, Trailer};
use roost_protocol::trace::TraceContext;
use roost_protocol::traffic::KeyHash;
use roost_protocol::view::View;
use roost_protocol::{InferError, ModelVersion, NodeId, RequestId, Revision, Tensor, Version};
use tokio::time::{Instant, timeout_at};
use tracing::Span;

use super::admission::Permit;
use super::batcher::Place;
use super::check::{Checked, check};
use super::hosted::Message;
use super::request::{Held, InFlight, Outcome, Part, Pending, Request, Timings, reply};
use super::routes::{Counters, Route};
use super::shared::Shared;
use crate::telemetry;

/// The longest that a request may want to wait. Beyond it the caller has certainly gone.
const DEADLINE_MAX: Duration = Duration::from_secs(3600);

/// The way into a worker. Cloning shares it.
#[derive(Clone)]
pub struct WorkerHandle {
    pub(super) shared: Arc<Shared>,
}

/// A piece of a response, in the order in which they come: one header, parts, one trailer; or a trailer alone.
#[derive(Debug)]
pub enum Output {
    /// Where the answer comes from.
    Header(ResponseHeader),
    /// Outputs.
    Part(Vec<Named<Tensor>>),
    /// The end.
    Trailer(Trailer),
}

/// What a request says of itself, wherever it came from.
pub(super) struct Ask<'a> {
    pub request: RequestId,
    pub model: &'a str,
    pub version: Version,
    pub revision: Revision,
    pub generation: u32,
    pub choice: Choice,
    pub key: KeyHash,
    pub priority: u8,
    pub deadline: Instant,
    pub mode: ResponseMode,
    pub trace: Option<TraceContext>,
}

impl WorkerHandle {
    /// What was counted since the process started.
    pub fn statistics(&self) -> Vec<VersionStatistics> {
        self.shared.routes.statistics()
    }

    /// Runs a request of this process, with the same admission and deadlines as one that came over the network.
    /// `header.tensors` is not looked at: the inputs are given as they are.
    pub fn infer(&self, header: &InferHeader, inputs: Vec<Named<Tensor>>) -> Answering {
        let deadline = Self::deadline(Instant::now(), header.deadline_us);
        let begun = self.admit(inputs.iter().map(|input| input.tensor.bytes().len() as u64).sum());
        let begun = begun.and_then(|permit| {
            let ask = Ask {
                request: RequestId(u128::from_le_bytes(header.request)),
                model: &header.model,
                version: Version(header.version),
                revision: Revision(header.revision),
                generation: header.generation,
                choice: Choice::from_code(header.choice)?,
                key: KeyHash(header.key_hash),
                priority: header.priority,
                deadline,
                mode: ResponseMode::from_code(header.response_mode)?,
                trace: header.trace,
            };
            let inputs = inputs.iter().map(|input| Ok((input.name.as_str(), input.tensor.clone())));
            self.begin(&ask, permit, inputs, header.outputs.iter().map(String::as_str))
        });
        begun.unwrap_or_else(|error| self.refuse(error))
    }

    /// Room for a request of so many bytes.
    pub(super) fn admit(&self, bytes: u64) -> Result<Permit, InferError> {
        if self.shared.stopping.load(Ordering::Acquire) {
            return Err(InferError::Stopping);
        }
        Ok(self.shared.gate.admit(bytes)?)
    }

    /// When a request is over that has `left_us` left now.
    pub(super) fn deadline(arrived: Instant, left_us: u64) -> Instant {
        arrived + Duration::from_micros(left_us).min(DEADLINE_MAX)
    }

    /// Has a request join its version's queue.
    pub(super) fn begin<'a>(
        &self,
        ask: &Ask<'_>,
        mut permit: Permit,
        inputs: impl IntoIterator<Item = Result<(&'a str, Tensor), InferError>>,
        outputs: impl IntoIterator<Item = &'a str>,
    ) -> Result<Answering, InferError> {
        let shared = &self.shared;
        let span =
            tracing::info_span!("infer", request = %ask.request, model = ask.model, version = ask.version.0);
        telemetry::adopt(&span, ask.trace);
        let Some(route) = shared.routes.find(ask.model, ask.version) else {
            return Err(shared.not_here(ask.model, ask.version));
        };
        let view = shared.published.borrow().view.clone();
        if let Some(view) = &view {
            check_traffic(view, &route.plan.version, ask, |version| {
                let published = shared.published.borrow();
                let serves = |node: &NodeId| published.soft.serves(*node, &route.plan.version.model, version);
                view.nodes.keys().any(serves)
            })?;
        }
        let Checked { inputs, rows, wanted } = check(&route.plan, inputs, outputs)?;
        permit.widen(u64::from(rows))?;
        let queued = Instant::now();
        if ask.deadline <= queued {
            route.counters.count_failure(&InferError::DeadlineExceeded);
            return Err(InferError::DeadlineExceeded);
        }
        let (reply, pending) = reply(ask.mode);
        let held = Arc::new(Held::new(permit, InFlight::count(&route.in_flight)));
        let queue_span = tracing::info_span!(parent: &span, "queue");
        let request = Request {
            inputs,
            rows,
            wanted,
            queued,
            span: span.clone(),
            queue_span,
            reply,
            _held: held.clone(),
        };
        let place = Place::new(ask.priority, route.arrivals.fetch_add(1, Ordering::Relaxed));
        let message = Message::Enqueue { place, deadline: ask.deadline, request: Box::new(request) };
        if route.actor.cast(message).is_err() {
            return Err(shared.not_here(ask.model, ask.version));
        }
        let running = Running {
            pending,
            deadline: ask.deadline,
            ticket: Ticket { actor: route.actor.clone(), place, is_over: false },
            counters: route.counters.clone(),
            choice: ask.choice,
            _span: span,
        };
        let header = Output::Header(self.header(view.as_deref(), &route));
        let (outputs, running) = ([header].into(), Some(running));
        Ok(Answering { outputs, running, _held: Some(held), shared: shared.clone() })
    }

    /// An answer that is a refusal.
    pub(super) fn refuse(&self, error: InferError) -> Answering {
        let trailer = trailer(Some(error), Timings::default(), self.shared.gate.requests());
        let outputs = [Output::Trailer(trailer)].into();
        Answering { outputs, running: None, _held: None, shared: self.shared.clone() }
    }

    fn header(&self, view: Option<&View>, route: &Route) -> ResponseHeader {
        let ModelVersion { model, version } = &route.plan.version;
        let revision = view.and_then(|view| view.models.get(model)).map(|model| model.traffic.revision);
        let epoch = view.map(|view| view.epoch).unwrap_or_default();
        ResponseHeader::new(epoch, revision.unwrap_or_default(), *version, self.shared.node)
    }
}

/// Whether the traffic, as this node knows it, picks another version for the request's key (design §5.2). A request that
/// fell back is sent away only where the version that is picked now is ready somewhere: else it would fall back again, and
/// perhaps to nothing.
fn check_traffic(
    view: &View,
    version: &ModelVersion,
    ask: &Ask<'_>,
    is_ready: impl Fn(Version) -> bool,
) -> Result<(), InferError> {
    let Some(model) = view.models.get(&version.model) else { return Ok(()) };
    let (traffic, generation) = (&model.traffic, view.epoch.generation);
    let is_as_new = (generation, traffic.revision) <= (ask.generation, ask.revision);
    if is_as_new || roost_protocol::KnownBug::OlderRevision.is_in() {
        return Ok(());
    }
    let picked = traffic.pick(&version.model, ask.key);
    if picked == version.version {
        return Ok(());
    }
    match ask.choice {
        Choice::Pinned => Ok(()),
        Choice::Fallback if !is_ready(picked) => Ok(()),
        Choice::Split | Choice::Fallback => {
            let (used, newest) = (ask.revision.0, traffic.revision.0);
            Err(InferError::StaleView { model: version.model.to_string(), used, newest, generation })
        }
    }
}

fn trailer(error: Option<InferError>, timings: Timings, in_flight: u32) -> Trailer {
    let Timings { queue, compute, batch_rows } = timings;
    let micros = |duration: Duration| duration.as_micros() as u64;
    Trailer { error, queue_us: micros(queue), compute_us: micros(compute), batch_rows, in_flight }
}

/// A response as it comes. Dropping it early cancels the request. The request's room on the node is its own until then,
/// so it is to be kept until the trailer is written.
pub struct Answering {
    outputs: VecDeque<Output>,
    running: Option<Running>,
    _held: Option<Arc<Held>>,
    shared: Arc<Shared>,
}

impl Answering {
    /// The next piece; `None` after the trailer. Safe to drop half-way.
    pub async fn next(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        let step = self.running.as_mut()?.step().await;
        let outcome = match step {
            Step::Part(part) => return Some(Output::Part(part)),
            Step::Over(outcome) => outcome,
        };
        let mut running = self.running.take()?;
        running.end(&outcome);
        let error = match outcome.result {
            Ok(parts) => {
                self.outputs.extend(parts.into_iter().map(Output::Part));
                None
            }
            Err(error) => Some(error),
        };
        // This request itself is no load for the caller's next one.
        let others = self.shared.gate.requests().saturating_sub(1);
        self.outputs.push_back(Output::Trailer(trailer(error, outcome.timings, others)));
        self.outputs.pop_front()
    }
}

/// A request in its version's hands.
struct Running {
    pending: Pending,
    deadline: Instant,
    ticket: Ticket,
    counters: Arc<Counters>,
    choice: Choice,
    _span: Span,
}

enum Step {
    Part(Part),
    Over(Outcome),
}

impl Running {
    async fn step(&mut self) -> Step {
        let late = || Outcome { result: Err(InferError::DeadlineExceeded), timings: Timings::default() };
        if let Some(parts) = &mut self.pending.parts {
            match timeout_at(self.deadline, parts.recv()).await {
                Ok(Some(part)) => return Step::Part(part),
                Ok(None) => self.pending.parts = None,
                Err(_) => return Step::Over(late()),
            }
        }
        Step::Over(match timeout_at(self.deadline, &mut self.pending.done).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => {
                let reason = "the actor of the version died".to_owned();
                Outcome { result: Err(InferError::ExecutorFailed { reason }), timings: Timings::default() }
            }
            Err(_) => late(),
        })
    }

    fn end(&mut self, outcome: &Outcome) {
        match &outcome.result {
            Ok(_) => self.counters.count_answer(self.choice),
            Err(error) => self.counters.count_failure(error),
        }
        // After the deadline it may still wait or run.
        self.ticket.is_over = !matches!(outcome.result, Err(InferError::DeadlineExceeded));
    }
}

/// A request's place in the queue. Dropped before its end, it cancels the request.
struct Ticket {
    actor: ActorRef<Message>,
    place: Place,
    is_over: bool,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_over {
            // An actor that is gone has nothing to cancel.
            let _ = self.actor.cast(Message::Cancel(self.place));
        }
    }
}
