//! A request on its way through the worker, and the way back for its answer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use roost_protocol::messages::infer::{Named, ResponseMode};
use roost_protocol::{InferError, Tensor};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;
use tracing::Span;

use super::admission::Permit;
use super::check::Wanted;

/// Outputs that an engine gave together.
pub type Part = Vec<Named<Tensor>>;

/// Parts of one streamed response that wait to be written. An executor never waits for a slow reader; a request whose
/// reader is so far behind is ended instead.
pub const PARTS_WAITING_MAX: usize = 64;

/// A request that was admitted.
pub struct Request {
    /// Its inputs, in the order of the signature.
    pub inputs: Vec<Tensor>,
    /// Its rows.
    pub rows: u32,
    /// The outputs that it wants.
    pub wanted: Wanted,
    /// When it joined the queue.
    pub queued: Instant,
    /// The span of the whole request.
    pub span: Span,
    /// The span of its wait in the queue, until it is taken out.
    pub queue_span: Span,
    /// The way back.
    pub reply: Reply,
    /// What it holds until nobody works on it any more, whether or not somebody still waits for the answer.
    pub _held: Arc<Held>,
}

impl Request {
    /// Answers that it was not run.
    pub fn refuse(self, error: InferError) {
        let queue = self.queued.elapsed();
        self.answer(Err(error), Timings { queue, ..Timings::default() });
    }

    /// Answers. What it held is given back first, so that whoever has the answer finds the room.
    pub fn answer(self, result: Result<Vec<Part>, InferError>, timings: Timings) {
        let Self { inputs, reply, _held, span, queue_span, .. } = self;
        drop((inputs, _held, span, queue_span));
        reply.finish(Outcome { result, timings });
    }
}

/// What a request holds of its node and of its version.
#[derive(Debug)]
pub struct Held {
    _permit: Permit,
    _in_flight: InFlight,
}

impl Held {
    /// Holds both.
    pub fn new(permit: Permit, in_flight: InFlight) -> Self {
        Self { _permit: permit, _in_flight: in_flight }
    }
}

/// One of the requests that a version has in flight, until it is dropped.
#[derive(Debug)]
pub struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    /// One more.
    pub fn count(counter: &Arc<AtomicUsize>) -> Self {
        counter.fetch_add(1, Ordering::AcqRel);
        Self(counter.clone())
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// How a request ended.
#[derive(Debug)]
pub struct Outcome {
    /// The parts that were not streamed before, or why there is no answer.
    pub result: Result<Vec<Part>, InferError>,
    /// How long it took.
    pub timings: Timings,
}

/// How long a request took, and where.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// In the queue.
    pub queue: Duration,
    /// On the executor, for the whole batch.
    pub compute: Duration,
    /// Rows of the batch.
    pub batch_rows: u32,
}

/// The way back for an answer. Dropped unused, it tells that what held the request died.
#[derive(Debug)]
pub struct Reply {
    done: oneshot::Sender<Outcome>,
    parts: Option<mpsc::Sender<Part>>,
}

/// The other end of a [`Reply`].
#[derive(Debug)]
pub struct Pending {
    /// How the request ended.
    pub done: oneshot::Receiver<Outcome>,
    /// Parts that come before the end; only where the caller wants them as they are made.
    pub parts: Option<mpsc::Receiver<Part>>,
}

/// The way back for one answer.
pub fn reply(mode: ResponseMode) -> (Reply, Pending) {
    let (done, is_done) = oneshot::channel();
    let (parts, part) = match mode {
        ResponseMode::Unary => (None, None),
        ResponseMode::Stream => {
            let (parts, part) = mpsc::channel(PARTS_WAITING_MAX);
            (Some(parts), Some(part))
        }
    };
    (Reply { done, parts }, Pending { done: is_done, parts: part })
}

impl Reply {
    /// Whether parts are wanted as they are made.
    pub fn is_streamed(&self) -> bool {
        self.parts.is_some()
    }

    /// Sends a part of a streamed answer.
    ///
    /// # Errors
    /// [`InferError::LimitExceeded`] when the reader is too far behind, [`InferError::Cancelled`] when there is none.
    pub fn stream(&self, part: Part) -> Result<(), InferError> {
        let Some(parts) = &self.parts else { return Ok(()) };
        parts.try_send(part).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => {
                let (what, max) = ("parts that wait for a slow reader".to_owned(), PARTS_WAITING_MAX as u64);
                InferError::LimitExceeded { what, max, actual: max + 1 }
            }
            mpsc::error::TrySendError::Closed(_) => InferError::Cancelled,
        })
    }

    /// Ends the answer.
    pub fn finish(self, outcome: Outcome) {
        // Nobody may wait for it any more.
        let _ = self.done.send(outcome);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_streamed_answer_waits_for_no_reader() {
        let (reply, mut pending) = reply(ResponseMode::Stream);
        for _ in 0..PARTS_WAITING_MAX {
            reply.stream(Part::new()).unwrap();
        }
        assert!(matches!(reply.stream(Part::new()), Err(InferError::LimitExceeded { .. })));
        let parts = pending.parts.as_mut().unwrap();
        parts.recv().await.unwrap();
        reply.stream(Part::new()).unwrap();
        pending.parts = None;
        assert_eq!(reply.stream(Part::new()), Err(InferError::Cancelled));
    }

    #[tokio::test]
    async fn an_answer_that_is_not_streamed_has_its_parts_at_the_end() {
        let (reply, pending) = reply(ResponseMode::Unary);
        reply.stream(Part::new()).unwrap();
        reply.finish(Outcome { result: Ok(vec![Part::new()]), timings: Timings::default() });
        assert_eq!(pending.done.await.unwrap().result, Ok(vec![Part::new()]));
    }
}
