//! Carries one request out: runs the attempts that its state machine asks for, and tells it what came of
//! them.

use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use roost_protocol::messages::infer::{InferHeader, Named, ResponseHeader, Trailer};
use roost_protocol::traffic::KeyHash;
use roost_protocol::{InferError, NodeId, Target, Tensor};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::dispatch::{Arrival, Arrivals, Attempt, Destination, Inputs};
use crate::request::{Command, Event, Request, Route, Surroundings, Terms};
use crate::routing::{Picked, Routes};
use crate::shared::{InFlight, Shared};

/// What a caller wants.
pub(crate) struct Order {
    pub(crate) target: Target,
    pub(crate) key: KeyHash,
    /// Whether the key was given, and so decides which replica is asked.
    pub(crate) sticky: bool,
    pub(crate) terms: Terms,
    /// Whether the caller takes the parts as they come.
    pub(crate) streaming: bool,
    /// The header, without what routing decides.
    pub(crate) header: InferHeader,
    pub(crate) inputs: Arc<Inputs>,
}

/// A request that has an answer.
pub(crate) struct Won {
    pub(crate) picked: Picked,
    pub(crate) from: Destination,
    pub(crate) attempts: u8,
    /// Whether an attempt was sent while another still ran.
    pub(crate) hedged: bool,
    pub(crate) opened: Opened,
}

/// An answer: whole, or its beginning.
pub(crate) struct Opened {
    pub(crate) header: ResponseHeader,
    pub(crate) outputs: Vec<Named<Tensor>>,
    /// What follows: the trailer, or the rest of a stream.
    pub(crate) rest: Rest,
}

pub(crate) enum Rest {
    Ended(Trailer),
    Follows(Arrivals, InFlight),
}

/// An attempt under way.
struct Running {
    attempt: u8,
    picked: Picked,
    to: Destination,
    answer: BoxFuture<'static, Result<Opened, InferError>>,
}

/// Carries a request out, to its end or its deadline.
pub(crate) async fn run(shared: &Arc<Shared>, order: &Order) -> Result<Won, InferError> {
    let mut around = Around { shared, order, routes: shared.routes() };
    let mut request = Request::new(order.terms);
    let mut running: Vec<Running> = Vec::with_capacity(2);
    let mut won = None;
    let mut event = Event::Started;
    let mut hedged = false;
    let started = Instant::now();
    shared.state().budget.earn();
    loop {
        for command in request.handle(event, Instant::now(), &mut around) {
            match command {
                Command::Send { attempt, node } => {
                    let Some(route) = request.route() else { continue };
                    hedged |= !running.is_empty();
                    running.push(start(shared, order, attempt, node, route.picked.clone()));
                }
                Command::Cancel { attempt } => running.retain(|running| running.attempt != attempt),
                Command::Suspect { node } => shared.state().loads.suspect(node, Instant::now()),
                Command::Finish(Err(error)) => return Err(error),
                Command::Finish(Ok(_)) => {
                    let kept: Option<(Picked, Destination, Opened)> = won.take();
                    let (picked, from, opened) =
                        kept.expect("an answer is kept before the machine hears of it");
                    if !order.streaming {
                        shared.state().latencies(&picked).record(started.elapsed());
                    }
                    return Ok(Won { picked, from, attempts: request.attempts(), hedged, opened });
                }
            }
        }
        event = tokio::select! {
            biased;
            (done, answer) = first_done(&mut running) => match answer {
                Ok(opened) => {
                    won = Some((done.picked, done.to, opened));
                    Event::Answered { attempt: done.attempt }
                }
                Err(error) => {
                    let (attempt, node) = (done.attempt, &done.to.name);
                    tracing::debug!(attempt, %node, %error, "an attempt failed");
                    shared.saw_error(&done.picked, &error, &done.to);
                    Event::Failed { attempt: done.attempt, error }
                }
            },
            () = changed(&mut around.routes) => Event::ViewChanged,
            () = sleep_until(request.next_wake()) => Event::TimerFired,
        };
    }
}

/// Completes with the first attempt that is done; never without one.
async fn first_done(running: &mut Vec<Running>) -> (Running, Result<Opened, InferError>) {
    poll_fn(|context| {
        for place in 0..running.len() {
            if let Poll::Ready(answer) = running[place].answer.as_mut().poll(context) {
                return Poll::Ready((running.remove(place), answer));
            }
        }
        Poll::Pending
    })
    .await
}

async fn changed(routes: &mut watch::Receiver<Option<Arc<Routes>>>) {
    if routes.changed().await.is_err() {
        // The client is gone, and with it the view; what runs may still end.
        std::future::pending::<()>().await;
    }
}

fn start(shared: &Arc<Shared>, order: &Order, attempt: u8, node: NodeId, picked: Picked) -> Running {
    let header = InferHeader {
        attempt,
        model: picked.model.to_string(),
        version: picked.version.0,
        revision: picked.revision.0,
        generation: picked.epoch.generation,
        choice: picked.choice as u8,
        ..order.header.clone()
    };
    let Some(to) = shared.destination(node) else {
        // It left between the choice and now.
        let name = roost_protocol::NodeName::new(&format!("node-{:x}", node.0));
        let name = name.expect("a number in hexadecimal is a valid name");
        let to = Destination { node, name, address: "".into() };
        let gone =
            InferError::Unreachable { node: to.name.to_string(), reason: "it left the cluster".to_owned() };
        return Running { attempt, picked, to, answer: Box::pin(std::future::ready(Err(gone))) };
    };
    let sent = Attempt { header, deadline: order.terms.deadline, inputs: order.inputs.clone() };
    let open = open(shared.clone(), to.clone(), picked.clone(), sent, order.streaming);
    Running { attempt, picked, to, answer: Box::pin(open) }
}

/// Sends an attempt and reads its answer: all of it, or up to its first part when the caller takes parts as
/// they come. From the first part on there is no other attempt, since parts cannot be taken back.
async fn open(
    shared: Arc<Shared>,
    to: Destination,
    picked: Picked,
    attempt: Attempt,
    streaming: bool,
) -> Result<Opened, InferError> {
    let in_flight = InFlight::new(&shared, to.node);
    let mut arrivals = shared.dispatch.send(to.clone(), attempt);
    let (mut header, mut outputs) = (None, None);
    loop {
        let arrival = match arrivals.next().await {
            Some(arrival) => arrival,
            None => Err(InferError::Unreachable {
                node: to.name.to_string(),
                reason: "the response ended without a trailer".to_owned(),
            }),
        };
        match arrival {
            Ok(Arrival::Header(came)) => {
                shared.saw_header(&picked, &came, &to);
                header = Some(came);
            }
            Ok(Arrival::Part(part)) => match (header.take(), outputs.is_some()) {
                (Some(header), false) if streaming => {
                    check_version(&header, &picked)?;
                    in_flight.heard(None, Instant::now());
                    return Ok(Opened { header, outputs: part, rest: Rest::Follows(arrivals, in_flight) });
                }
                (Some(came), false) => {
                    header = Some(came);
                    outputs = Some(part);
                }
                (None, _) => return Err(malformed("a part ahead of the header")),
                (Some(_), true) => return Err(malformed("a second part of a unary response")),
            },
            Ok(Arrival::Trailer(mut trailer)) => {
                in_flight.heard(Some(trailer.in_flight), Instant::now());
                if let Some(error) = trailer.error.take() {
                    return Err(error);
                }
                let header = header.ok_or_else(|| malformed("a trailer without a header"))?;
                check_version(&header, &picked)?;
                let outputs = outputs.unwrap_or_default();
                return Ok(Opened { header, outputs, rest: Rest::Ended(trailer) });
            }
            Err(error) => {
                match &error {
                    InferError::Unreachable { .. } => shared.state().loads.suspect(to.node, Instant::now()),
                    _ => in_flight.heard(None, Instant::now()),
                }
                return Err(error);
            }
        }
    }
}

/// A key's version must not depend on who answers.
fn check_version(header: &ResponseHeader, picked: &Picked) -> Result<(), InferError> {
    if header.version == picked.version.0 {
        return Ok(());
    }
    let (asked, came) = (picked.version, header.version);
    Err(InferError::Malformed { what: format!("version {asked} was asked, version {came} answered") })
}

fn malformed(what: &str) -> InferError {
    InferError::Malformed { what: what.to_owned() }
}

/// The surroundings of a request, as they are.
struct Around<'a> {
    shared: &'a Arc<Shared>,
    order: &'a Order,
    routes: watch::Receiver<Option<Arc<Routes>>>,
}

impl Surroundings for Around<'_> {
    fn route(&mut self) -> Result<Route, InferError> {
        let routes = self.routes.borrow_and_update().clone();
        let routes = routes.ok_or_else(|| InferError::Unreachable {
            node: "the cluster".to_owned(),
            reason: "no view of it has arrived yet".to_owned(),
        })?;
        let Order { target, key, sticky, .. } = self.order;
        let seen = self.shared.state().seen(target.model());
        let behind = || self.shared.knows_of_later(routes.view().epoch);
        let picked = routes.pick(target, *key, seen).map_err(|error| match error {
            // What this view does not know may be in the later one that is known to exist.
            InferError::UnknownModel { .. }
            | InferError::UnknownVersion { .. }
            | InferError::UnknownLabel { .. }
                if behind() =>
            {
                let (model, used) = (target.model().to_string(), seen.revision.0);
                InferError::StaleView { model, used, newest: used, generation: seen.generation }
            }
            error => error,
        })?;
        let (now, state) = (Instant::now(), self.shared.state());
        let load = |node| state.loads.load(node, now);
        let nodes = picked.replicas.order(*key, *sticky, load, |node| state.loads.is_suspect(node, now));
        let hoped = picked.replicas.are_hoped();
        Ok(Route { picked, nodes, hoped })
    }

    fn take_token(&mut self) -> bool {
        self.shared.state().budget.take()
    }

    fn p95(&self, picked: &Picked) -> Option<Duration> {
        self.shared.state().latencies(picked).p95()
    }

    fn silent_since(&self, node: NodeId, since: Instant) -> bool {
        self.shared.state().loads.silent_since(node, since)
    }

    fn owes_since(&self, node: NodeId) -> Option<Instant> {
        self.shared.state().loads.owes_since(node)
    }
}
