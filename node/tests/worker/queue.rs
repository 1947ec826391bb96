//! Batches, cancellation, overload, deadlines.

use std::num::NonZeroU32;

use roost_node::worker::Answering;
use roost_protocol::messages::infer::{Named, ResponseMode};
use roost_protocol::quic::Role;
use roost_protocol::{InferError, Tensor};

use crate::exchange::{Response, ask, gather, header, send, x};
use crate::script::{APART, FAIL};
use crate::world::{Files, Start, World};

async fn doubles() -> World {
    Start::with(&[("doubles@1", Files::doubles())]).await.ready().await
}

impl World {
    /// A request of this process. It is in the mailbox of its version when this returns.
    fn infer(&self, values: &[f32]) -> Answering {
        self.handle.infer(&header("doubles@1"), x(values))
    }

    /// Closes the gate behind a request that runs until it is opened.
    async fn occupied(&self) -> Answering {
        let runs = self.script.seen().runs.len();
        self.script.set_open(false);
        let running = self.infer(&[0.0, 0.0]);
        self.script.until(|seen| seen.runs.len() == runs + 1).await;
        running
    }
}

#[tokio::test]
async fn what_waits_runs_together_and_each_gets_its_rows() {
    let world = doubles().await;
    let first = world.occupied().await;
    let waiting: Vec<_> = [1.0, 2.0, 3.0].map(|i| world.infer(&[i, 1.0, i, 2.0])).into();
    let mut only_sums = header("doubles@1");
    only_sums.outputs = vec!["sum".to_owned()];
    let only_sums = world.handle.infer(&only_sums, x(&[4.0, 5.0]));
    world.script.set_open(true);
    let first = gather(first).await;
    assert_eq!((first.trailer.batch_rows, first.f32s("y")), (1, &[0.0, 0.0][..]));
    for (i, answering) in [1.0, 2.0, 3.0].into_iter().zip(waiting) {
        let response = gather(answering).await;
        assert_eq!(response.trailer.batch_rows, 7);
        assert_eq!(response.f32s("y"), [2.0 * i, 2.0, 2.0 * i, 4.0]);
        assert_eq!(response.f32s("sum"), [2.0 * (i + 1.0), 2.0 * (i + 2.0)]);
    }
    let response = gather(only_sums).await;
    assert_eq!((response.f32s("sum"), response.parts[0].len()), (&[18.0][..], 1));
    assert_eq!(world.script.seen().runs, [1, 1, 7]);
}

#[tokio::test]
async fn higher_priority_goes_first() {
    let world = doubles().await;
    let first = world.occupied().await;
    let usual = world.infer(&[1.0; 16]);
    let mut urgent = header("doubles@1");
    urgent.priority = 9;
    let urgent = world.handle.infer(&urgent, x(&[2.0; 10]));
    world.script.set_open(true);
    for answering in [first, usual, urgent] {
        assert_eq!(gather(answering).await.trailer.error, None);
    }
    assert_eq!(world.script.seen().runs, [1, 1, 5, 8]);
}

#[tokio::test]
async fn one_request_at_fault_does_not_fail_its_batch() {
    let world = doubles().await;
    let first = world.occupied().await;
    let (good, bad) = (world.infer(&[1.0, 1.0]), world.infer(&[FAIL, 1.0]));
    world.script.set_open(true);
    gather(first).await;
    assert_eq!(gather(good).await.f32s("y"), [2.0, 2.0]);
    let reason = "a value is forbidden".to_owned();
    assert_eq!(gather(bad).await.error(), &InferError::ModelFailed { reason });
    let statistics = world.worker.statistics();
    assert_eq!((statistics[0].answered, statistics[0].failed), (2, 1));
}

#[tokio::test]
async fn a_caller_that_stops_reading_cancels_what_runs() {
    let world = doubles().await;
    let link = world.link(&[Role::Client]).await;
    world.script.set_open(false);
    let request = send(&link, header("doubles@1"), &x(&[1.0, 1.0])).await;
    world.script.until(|seen| seen.runs.len() == 2).await;
    drop(request);
    world.script.until(|seen| seen.cancelled == 1).await;
    world.script.set_open(true);
    assert_eq!(ask(&link, header("doubles@1"), &x(&[1.0, 1.0])).await.f32s("y"), [2.0, 2.0]);
    let statistics = world.worker.statistics();
    assert_eq!((statistics[0].answered, statistics[0].failed), (1, 0), "cancelled is neither");
}

#[tokio::test]
async fn a_caller_that_is_gone_cancels_what_waits() {
    let world = doubles().await;
    let first = world.occupied().await;
    let (gone, waits) = (world.infer(&[1.0, 1.0]), world.infer(&[2.0, 2.0]));
    drop(gone);
    world.script.set_open(true);
    gather(first).await;
    assert_eq!(gather(waits).await.trailer.batch_rows, 1);
}

#[tokio::test]
async fn a_batch_is_cancelled_when_nobody_waits_for_any_of_it() {
    let world = doubles().await;
    let first = world.occupied().await;
    let (a, b) = (world.infer(&[1.0, 1.0]), world.infer(&[2.0, 2.0]));
    drop(first);
    world.script.until(|seen| seen.runs.len() == 3 && seen.cancelled == 1).await;
    drop(a);
    // The two are one batch, which goes on for the other one.
    world.script.set_open(true);
    assert_eq!(gather(b).await.trailer.batch_rows, 2);
    assert_eq!(world.script.seen().cancelled, 1);
}

#[tokio::test]
async fn what_does_not_fit_is_refused_until_there_is_room() {
    let mut start = Start::with(&[("doubles@1", Files::doubles())]).await;
    start.config.rows_in_flight_max = NonZeroU32::new(3).unwrap();
    let world = start.ready().await;
    let link = world.link(&[Role::Client]).await;
    let first = world.occupied().await;
    let second = world.infer(&[1.0; 4]);
    let refused = ask(&link, header("doubles@1"), &x(&[1.0, 1.0])).await;
    let InferError::Overloaded { retry_after_us } = *refused.error() else { panic!("{refused:?}") };
    assert!(retry_after_us > 0);
    assert_eq!((refused.trailer.in_flight, refused.header), (2, None));
    let large = ask(&link, header("doubles@1"), &x(&[1.0; 8])).await;
    world.script.set_open(true);
    gather(first).await;
    gather(second).await;
    assert_eq!(ask(&link, header("doubles@1"), &x(&[1.0; 6])).await.f32s("sum"), [4.0; 3]);
    assert!(matches!(large.error(), InferError::Overloaded { .. }));
    let never = ask(&link, header("doubles@1"), &x(&[1.0; 8])).await;
    let what = "rows in flight on this node".to_owned();
    assert_eq!(never.error(), &InferError::LimitExceeded { what, max: 3, actual: 4 });
}

#[tokio::test]
async fn a_deadline_ends_what_waits_and_what_runs() {
    let world = doubles().await;
    let link = world.link(&[Role::Client]).await;
    world.script.set_open(false);
    let mut soon = header("doubles@1");
    soon.deadline_us = 500_000;
    let values = x(&[1.0, 1.0]);
    let (runs, waits) = tokio::join!(ask(&link, soon.clone(), &values), ask(&link, soon.clone(), &values));
    assert_eq!((runs.error(), waits.error()), (&InferError::DeadlineExceeded, &InferError::DeadlineExceeded));
    world.script.until(|seen| seen.cancelled == 1).await;
    world.script.set_open(true);
    soon.deadline_us = 0;
    let late = ask(&link, soon, &x(&[1.0, 1.0])).await;
    assert_eq!(late.error(), &InferError::DeadlineExceeded);
}

#[tokio::test]
async fn a_streamed_response_has_the_parts_of_the_engine_and_a_unary_one_has_one() {
    let world = doubles().await;
    let link = world.link(&[Role::Client]).await;
    let mut streamed = header("doubles@1");
    streamed.response_mode = ResponseMode::Stream as u8;
    let names = |response: &Response| {
        let names = |part: &Vec<Named<Tensor>>| part.iter().map(|named| named.name.clone()).collect();
        response.parts.iter().map(names).collect::<Vec<Vec<_>>>()
    };
    let response = ask(&link, streamed, &x(&[APART, 2.0])).await;
    assert_eq!(names(&response), [["y"], ["sum"]]);
    assert_eq!((response.f32s("y"), response.f32s("sum")), (&[-6.0, 4.0][..], &[-2.0][..]));
    let response = ask(&link, header("doubles@1"), &x(&[APART, 2.0])).await;
    assert_eq!(names(&response), [["y", "sum"]]);
}

#[tokio::test]
async fn a_batch_with_a_streamed_request_gives_each_what_it_asked_for() {
    let world = doubles().await;
    let first = world.occupied().await;
    let mut streamed = header("doubles@1");
    streamed.response_mode = ResponseMode::Stream as u8;
    let streamed = world.handle.infer(&streamed, x(&[APART, 2.0]));
    let unary = world.infer(&[1.0, 1.0, 2.0, 2.0]);
    world.script.set_open(true);
    gather(first).await;
    let (streamed, unary) = (gather(streamed).await, gather(unary).await);
    assert_eq!((streamed.parts.len(), streamed.f32s("sum")), (2, &[-2.0][..]));
    assert_eq!((unary.parts.len(), unary.f32s("sum")), (1, &[4.0, 8.0][..]));
    assert_eq!((streamed.trailer.batch_rows, unary.trailer.batch_rows), (3, 3));
}
