//! The queue, the batches that run, and what becomes of requests when they cannot.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use roost_protocol::InferError;
use tokio::time::Instant;

use super::{IllegalTransition, Life, Message, Running, Slot, tell};
use crate::engine::{Cancel, Session};
use crate::worker::batcher::{Fellows, Place, Waiting};
use crate::worker::executor::{self, Batch, Died};
use crate::worker::lifecycle::{Event, State};
use crate::worker::request::Request;
use crate::worker::routes::Route;

impl Life {
    pub(super) fn serve(&mut self) {
        for slot in &mut self.slots {
            *slot = match std::mem::replace(slot, Slot::Empty) {
                Slot::Prepared(executor, session) => Slot::Idle(executor, session),
                other @ (Slot::Empty | Slot::Preparing(_) | Slot::Idle(..) | Slot::Busy(_)) => other,
            };
        }
        if let (None, Some(plan)) = (&self.route, &self.plan) {
            let route = Arc::new(Route {
                actor: self.myself.clone(),
                plan: plan.clone(),
                counters: self.shared.routes.counters(&self.version),
                in_flight: self.in_flight.clone(),
                arrivals: AtomicU64::new(0),
            });
            self.shared.routes.insert(&self.version, route.clone());
            self.route = Some(route);
        }
        self.run_what_waits();
    }

    pub(super) fn refuse_all(&mut self) {
        if self.route.take().is_some() {
            self.shared.routes.remove(&self.version);
        }
        let error = self.why_not();
        self.queue.drain().for_each(|request| request.refuse(error.clone()));
    }

    /// What to tell a request that came although the version takes none.
    fn why_not(&self) -> InferError {
        match &self.state {
            State::Unloaded => self.shared.not_here(self.version.model.as_str(), self.version.version),
            State::Failed { reason } => InferError::ExecutorFailed { reason: reason.clone() },
            State::Fetching(_)
            | State::FetchWaiting(_)
            | State::Verifying(_)
            | State::Loading(_)
            | State::Warming(_)
            | State::Ready(_)
            | State::Restarting(_)
            | State::Draining { .. } => {
                InferError::ExecutorFailed { reason: "it is being restarted".to_owned() }
            }
        }
    }

    pub(super) fn enqueue(&mut self, place: Place, deadline: Instant, request: Box<Request>) {
        let Some(plan) = self.route.as_ref().map(|route| &route.plan) else {
            return request.refuse(self.why_not());
        };
        let waiting = Waiting {
            fellows: Fellows::of(plan, &request.inputs),
            rows: request.rows,
            bytes: request.inputs.iter().map(|input| input.bytes().len() as u64).sum(),
            deadline,
            request,
        };
        self.queue.push(place, waiting);
        self.run_what_waits();
    }

    pub(super) fn cancel(&mut self, place: Place) {
        if self.queue.cancel(place).is_some() {
            return;
        }
        for slot in &mut self.slots {
            if let Slot::Busy(running) = slot
                && running.waited_for.remove(&place)
                && running.waited_for.is_empty()
            {
                running.cancel.raise();
            }
        }
    }

    /// Gives each idle executor a batch, while there are any.
    fn run_what_waits(&mut self) {
        let is_idle = |slot: &Slot| matches!(slot, Slot::Idle(..));
        while let Some(index) = self.slots.iter().position(is_idle) {
            let formed = self.queue.form(Instant::now());
            let expired = formed.expired.len();
            formed.expired.into_iter().for_each(|request| request.refuse(InferError::DeadlineExceeded));
            if formed.batch.is_empty() {
                if expired == 0 {
                    return;
                }
                continue;
            }
            let Some(plan) = self.plan.clone() else { return };
            let (places, requests) =
                formed.batch.into_iter().map(|(place, request)| (place, *request)).unzip();
            let Slot::Idle(executor, mut session) = std::mem::replace(&mut self.slots[index], Slot::Empty)
            else {
                return;
            };
            self.runs += 1;
            let (run, cancel, myself) = (self.runs, Cancel::new(), self.myself.clone());
            let batch = Batch { requests, rows: formed.rows, cancel: cancel.clone() };
            let work = move || {
                executor::run(&mut *session, &plan, batch);
                session
            };
            executor::submit(&*executor, work, move |session| tell(&myself, Message::Ran { run, session }));
            self.slots[index] = Slot::Busy(Running { executor, run, waited_for: places, cancel });
        }
    }

    pub(super) fn handle_ran(
        &mut self,
        run: u64,
        session: Result<Box<dyn Session>, Died>,
    ) -> Result<(), IllegalTransition> {
        let ran = |slot: &&mut Slot| matches!(slot, Slot::Busy(running) if running.run == run);
        let Some(slot) = self.slots.iter_mut().find(ran) else {
            // Let go meanwhile.
            return Ok(());
        };
        match (std::mem::replace(slot, Slot::Empty), session) {
            (Slot::Busy(running), Ok(session)) => {
                *slot = Slot::Idle(running.executor, session);
                self.run_what_waits();
                Ok(())
            }
            (_, Ok(_)) => Ok(()),
            (_, Err(Died { reason })) => self.advance(Event::ExecutorDied(reason)),
        }
    }
}
