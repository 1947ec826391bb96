//! Sessions, executors and actors that die, and models that are none.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use roost_node::engine::{Bundle, Engine, EngineError, Session};
use roost_node::environment::{Environment, Executor, Executors, Work};
use roost_protocol::InferError;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::quic::{Link, Role};
use roost_protocol::view::Stage;

use crate::exchange::{Response, ask, header, x};
use crate::script::{PANIC, PATIENCE};
use crate::world::{Files, Start};

async fn doubles() -> Start {
    Start::with(&[("doubles@1", Files::doubles())]).await
}

/// Asks until there is an answer. Every refusal on the way must be one that another attempt may pass.
async fn until_answered(link: &Link) -> Response {
    let asking = async {
        loop {
            let response = ask(link, header("doubles@1"), &x(&[1.0, 2.0])).await;
            match &response.trailer.error {
                None => return response,
                Some(error) => assert!(error.retryable(), "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap()
}

async fn panics(link: &Link) -> InferError {
    ask(link, header("doubles@1"), &x(&[PANIC, 0.0])).await.error().clone()
}

#[tokio::test]
async fn a_panic_kills_its_executor_and_the_next_one_serves() {
    let mut world = doubles().await.ready().await;
    let link = world.link(&[Role::Client]).await;
    let error = panics(&link).await;
    let reason = "it panicked: as the request wants it".to_owned();
    assert_eq!(error, InferError::ExecutorFailed { reason });
    assert!(error.retryable());
    assert_eq!(until_answered(&link).await.f32s("y"), [2.0, 4.0]);
    assert_eq!(world.script.seen().loads, 2);
    assert_eq!(world.until_stage("ready").await, Stage::Ready);
}

#[tokio::test]
async fn a_panic_tells_all_that_it_held() {
    let world = doubles().await.ready().await;
    let link = world.link(&[Role::Client]).await;
    world.script.set_open(false);
    let ask = |values: &'static [f32]| {
        let link = link.clone();
        tokio::spawn(async move { ask(&link, header("doubles@1"), &x(values)).await })
    };
    let first = ask(&[1.0, 2.0]);
    world.script.until(|seen| seen.runs.len() == 2).await;
    let both = [
        world.handle.infer(&header("doubles@1"), x(&[PANIC, 0.0])),
        world.handle.infer(&header("doubles@1"), x(&[1.0, 1.0])),
    ];
    world.script.set_open(true);
    assert_eq!(first.await.unwrap().f32s("y"), [2.0, 4.0]);
    for answering in both {
        let error = crate::exchange::gather(answering).await.error().clone();
        assert!(matches!(error, InferError::ExecutorFailed { .. }), "{error}");
    }
    until_answered(&link).await;
}

#[tokio::test]
async fn a_version_with_two_executors_serves_while_one_is_replaced() {
    let mut start = doubles().await;
    start.config.executors_per_version = NonZeroU32::new(2).unwrap();
    let mut world = start.ready().await;
    let link = world.link(&[Role::Client]).await;
    world.reports.mark_unchanged();
    assert!(matches!(panics(&link).await, InferError::ExecutorFailed { .. }));
    assert_eq!(ask(&link, header("doubles@1"), &x(&[1.0, 2.0])).await.f32s("y"), [2.0, 4.0]);
    world.script.until(|seen| seen.loads == 3).await;
    assert_eq!(ask(&link, header("doubles@1"), &x(&[1.0, 2.0])).await.f32s("y"), [2.0, 4.0]);
    assert!(!world.reports.has_changed().unwrap(), "it was ready all the time");
}

#[tokio::test]
async fn a_version_that_kills_executor_after_executor_is_given_up() {
    let mut world = doubles().await.ready().await;
    let link = world.link(&[Role::Client]).await;
    for _ in 0..4 {
        panics(&link).await;
        until_answered(&link).await;
    }
    panics(&link).await;
    let reason = "5 executors died within 60 s, the last: it panicked: as the request wants it".to_owned();
    assert_eq!(world.until_stage("failed").await, Stage::Failed { reason });
    let error = ask(&link, header("doubles@1"), &x(&[1.0, 2.0])).await.error().clone();
    assert!(matches!(error, InferError::NotHere { .. }), "{error}");
}

#[tokio::test]
async fn a_load_that_fails_is_tried_again_and_then_given_up() {
    let start = doubles().await;
    start.script.fail_loads(2);
    let world = start.ready().await;
    assert_eq!(world.script.seen().loads, 3);

    let start = doubles().await;
    start.script.fail_loads(3);
    let mut world = start.run().await;
    let reason = "3 loads failed, the last: native: as the test wants it".to_owned();
    assert_eq!(world.until_stage("failed").await, Stage::Failed { reason });
}

#[tokio::test]
async fn what_is_no_model_fails_at_once_and_says_so() {
    let check = async |files: Files, expected: &str| {
        let mut world = Start::with(&[("doubles@1", files)]).await.run().await;
        let Stage::Failed { reason } = world.until_stage("failed").await else { panic!() };
        assert_eq!(reason, expected);
    };
    check(Files::new(&b"\0"[..], ""), "model.onnx is not an ONNX model: it does not double").await;
    let manifest = "[batch_axes]\nz = 0";
    let expected =
        r#"model.toml: [batch_axes] names "z"; the model's inputs and outputs are ["x", "y", "sum"]"#;
    check(Files::new(crate::script::MODEL, manifest), expected).await;
    let other_engine = Files::new(crate::script::MODEL, "engine = \"onnxruntime\"");
    check(other_engine, "this node has no engine onnxruntime").await;
}

/// Executors of which the first ones cannot be made: the actor that asks for one dies.
struct FirstFail {
    inner: Arc<dyn Executors>,
    left: AtomicU32,
}

impl FirstFail {
    fn within(environment: Environment, count: u32) -> Environment {
        let executors = Self { inner: environment.executors.clone(), left: AtomicU32::new(count) };
        Environment { executors: Arc::new(executors), ..environment }
    }
}

impl Executors for FirstFail {
    fn dedicated(&self, name: &str, kind: Work) -> Arc<dyn Executor> {
        let fewer = |left: u32| left.checked_sub(1);
        let fails = self.left.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).is_ok();
        assert!(!fails, "as the test wants it");
        self.inner.dedicated(name, kind)
    }
}

#[tokio::test]
async fn a_version_whose_actor_died_is_started_again() {
    let mut start = doubles().await;
    start.adapt = |environment| FirstFail::within(environment, 1);
    let world = start.ready().await;
    assert_eq!(world.reports.borrow()[0].engine, Some(EngineChoice::Native));
    let link = world.link(&[Role::Client]).await;
    assert_eq!(until_answered(&link).await.f32s("y"), [2.0, 4.0]);
}

#[tokio::test]
async fn a_version_whose_actors_keep_dying_has_failed_and_is_tried_again_after_minutes() {
    let mut start = doubles().await;
    start.adapt = |environment| FirstFail::within(environment, 5);
    let mut world = start.run().await;
    let Stage::Failed { reason } = world.until_stage("failed").await else { panic!() };
    assert_eq!(reason, "its actor died 5 times in a row, the last: as the test wants it");
    after_minutes().await;
    world.until_stage("ready").await;
}

#[tokio::test]
async fn what_was_given_up_is_tried_again_after_minutes() {
    let start = doubles().await;
    start.script.fail_loads(3);
    let mut world = start.run().await;
    world.until_stage("failed").await;
    after_minutes().await;
    world.until_stage("ready").await;
    assert_eq!(world.script.seen().loads, 4);
}

/// Has minutes pass at once.
async fn after_minutes() {
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(300)).await;
    tokio::time::resume();
}

/// An engine that loads nothing, for this reason.
struct Refuses(EngineError);

impl Engine for Refuses {
    fn choice(&self) -> EngineChoice {
        EngineChoice::OnnxRuntime
    }

    fn load(&self, _bundle: &Bundle) -> Result<Box<dyn Session>, EngineError> {
        Err(self.0.clone())
    }
}

#[tokio::test]
async fn auto_takes_the_first_engine_that_can_unless_it_is_no_model() {
    let mut start = doubles().await;
    start.engines.push(Arc::new(Refuses(EngineError::Unsupported("the operator Foo".to_owned()))));
    let world = start.ready().await;
    assert_eq!(world.reports.borrow()[0].engine, Some(EngineChoice::Native));

    let mut start = doubles().await;
    start.engines.push(Arc::new(Refuses(EngineError::NotAModel("truncated".to_owned()))));
    let mut world = start.run().await;
    let reason = "model.onnx is not an ONNX model: truncated".to_owned();
    assert_eq!(world.until_stage("failed").await, Stage::Failed { reason });
    assert_eq!(world.script.seen().loads, 0);
}
