//! What runs on an executor: making a session, warming it up, running batches.
//!
//! Nothing here waits. A session that panics takes its executor with it, and nothing else: whoever waited is told why
//! before the panic goes on, and [`submit`] tells it even of a job that was dropped unrun.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use roost_protocol::error::{panic_text, reason};
use roost_protocol::manifest::{EngineChoice, Manifest};
use roost_protocol::{InferError, ModelVersion, Tensor, TensorView};
use tokio::time::Instant;

use super::lifecycle::LoadFailure;
use super::plan::Plan;
use super::request::{Part, Request, Timings};
use super::rows;
use super::scatter::Scatter;
use crate::engine::{Bundle, Cancel, Engine, EngineError, Missing, Session};
use crate::environment::Executor;

/// An executor is gone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Died {
    /// Why.
    pub reason: String,
}

/// Runs `work` on an executor, then calls `tell` there: with its result, or with why there is none.
pub fn submit<T: 'static>(
    executor: &dyn Executor,
    work: impl FnOnce() -> T + Send + 'static,
    tell: impl FnOnce(Result<T, Died>) + Send + 'static,
) {
    let mut teller = Teller(Some(tell), std::marker::PhantomData);
    executor.submit(Box::new(move || match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => teller.tell(Ok(result)),
        Err(panic) => {
            teller.tell(Err(Died { reason: panicked(&*panic) }));
            resume_unwind(panic)
        }
    }));
}

/// Tells once, also when it is dropped without having been asked to.
struct Teller<T, F: FnOnce(Result<T, Died>)>(Option<F>, std::marker::PhantomData<fn(T)>);

impl<T, F: FnOnce(Result<T, Died>)> Teller<T, F> {
    fn tell(&mut self, result: Result<T, Died>) {
        if let Some(tell) = self.0.take() {
            tell(result);
        }
    }
}

impl<T, F: FnOnce(Result<T, Died>)> Drop for Teller<T, F> {
    fn drop(&mut self) {
        self.tell(Err(Died { reason: "its thread is gone".to_owned() }));
    }
}

fn panicked(panic: &(dyn Any + Send)) -> String {
    reason(format_args!("it panicked: {}", panic_text(panic)))
}

/// A session that was made.
pub struct Loaded {
    /// The engine that made it.
    pub engine: EngineChoice,
    /// What it asks of requests.
    pub plan: Plan,
    /// The session.
    pub session: Box<dyn Session>,
}

/// Makes a session with the engine that the manifest names, or with the first that can.
///
/// # Errors
/// [`LoadFailure::Final`] when the bundle is no model, no engine here can run it, or its manifest does not fit it;
/// [`LoadFailure::Passing`] otherwise.
pub fn load(
    engines: &[Arc<dyn Engine>],
    missing: &[Missing],
    version: ModelVersion,
    bundle: &Bundle,
) -> Result<Loaded, LoadFailure> {
    let (engine, session) = make_session(engines, missing, bundle)?;
    let plan = Plan::new(version, session.signature().clone(), &bundle.manifest);
    let mut plan = plan.map_err(|error| LoadFailure::Final(reason(error)))?;
    if let Some(why) = session.batch_variant().filter(|_| plan.batches) {
        tracing::info!(version = %plan.version, why, "its requests run one by one: rows of a batch are not independent");
        plan.batches = false;
    }
    Ok(Loaded { engine, plan, session })
}

type Made = (EngineChoice, Box<dyn Session>);

fn make_session(
    engines: &[Arc<dyn Engine>],
    missing: &[Missing],
    bundle: &Bundle,
) -> Result<Made, LoadFailure> {
    let choice = bundle.manifest.engine;
    let mut candidates = engines.iter().filter(|engine| match choice {
        EngineChoice::Auto => true,
        EngineChoice::OnnxRuntime | EngineChoice::Native => engine.choice() == choice,
    });
    let mut passing = false;
    let mut reasons = Vec::new();
    loop {
        let Some(engine) = candidates.next() else {
            let why = if reasons.is_empty() {
                let absent = missing.iter().find(|missing| missing.engine == choice);
                let reason = absent.map(|missing| format!(": {}", missing.reason)).unwrap_or_default();
                format!("this node has no engine {}{reason}", engine_name(choice))
            } else {
                reasons.join("; ")
            };
            return Err(if passing { LoadFailure::Passing(why) } else { LoadFailure::Final(why) });
        };
        match engine.load(bundle) {
            Ok(session) => return Ok((engine.choice(), session)),
            Err(error @ (EngineError::NotAModel(_) | EngineError::MissingFile(_))) => {
                return Err(LoadFailure::Final(reason(error)));
            }
            // Another engine may be able to.
            Err(error @ (EngineError::Unsupported(_) | EngineError::UnsupportedDType { .. })) => {
                reasons.push(format!("{}: {error}", engine_name(engine.choice())));
            }
            Err(error @ (EngineError::Library(_) | EngineError::Run(_) | EngineError::Cancelled)) => {
                passing = true;
                reasons.push(format!("{}: {error}", engine_name(engine.choice())));
            }
        }
    }
}

fn engine_name(choice: EngineChoice) -> &'static str {
    match choice {
        EngineChoice::Auto => "at all",
        EngineChoice::OnnxRuntime => "onnxruntime",
        EngineChoice::Native => "native",
    }
}

/// Runs the warm-up batches.
///
/// # Errors
/// [`LoadFailure`] when one fails whose sizes are the model's own. A batch with a size that was made up may rightly be
/// refused.
pub fn warm_up(session: &mut dyn Session, plan: &Plan, manifest: &Manifest) -> Result<(), LoadFailure> {
    let batches = plan.warm_up(manifest).map_err(|error| LoadFailure::Final(reason(error)))?;
    for batch in batches {
        let views: Vec<_> = batch.inputs.iter().map(Tensor::view).collect();
        let mut parts: Vec<Part> = Vec::new();
        match session.run(&views, &Cancel::new(), &mut parts) {
            Ok(()) => {}
            Err(error) if batch.guessed => {
                tracing::debug!(version = %plan.version, %error, "a warm-up batch of made-up sizes was refused");
            }
            Err(error) => {
                let shapes: Vec<_> = views.iter().map(|view| format!("{view:?}")).collect();
                let why = format!("the warm-up with {} failed: {error}", shapes.join(", "));
                return Err(LoadFailure::Passing(reason(why)));
            }
        }
    }
    Ok(())
}

/// Requests that run together.
pub struct Batch {
    /// The requests, of equal shapes if there are several.
    pub requests: Vec<Request>,
    /// Rows of all together.
    pub rows: u32,
    /// Ends the run early.
    pub cancel: Cancel,
}

/// Runs a batch and answers its requests.
///
/// # Panics
/// When the session does, after the requests were told.
pub fn run(session: &mut dyn Session, plan: &Plan, batch: Batch) {
    let Batch { mut requests, rows, cancel } = batch;
    let started = Instant::now();
    let computing = |request: &mut Request| {
        // The wait ends here, whatever becomes of the request.
        request.queue_span = tracing::Span::none();
        tracing::info_span!(parent: &request.span, "compute", batch_rows = rows)
    };
    let spans: Vec<_> = requests.iter_mut().map(computing).collect();
    let results = {
        // The engine's own spans belong to the first request of the batch.
        let _entered = spans.first().map(tracing::Span::enter);
        catch_unwind(AssertUnwindSafe(|| compute(session, plan, &requests, &cancel)))
    };
    drop(spans);
    let compute = started.elapsed();
    let answer = |request: Request, result| {
        let queue = started.saturating_duration_since(request.queued);
        request.answer(result, Timings { queue, compute, batch_rows: rows });
    };
    match results {
        Ok(results) => {
            requests.into_iter().zip(results).for_each(|(request, result)| answer(request, result))
        }
        Err(panic) => {
            let reason = panicked(&*panic);
            for request in requests {
                answer(request, Err(InferError::ExecutorFailed { reason: reason.clone() }));
            }
            resume_unwind(panic);
        }
    }
}

type Results = Vec<Result<Vec<Part>, InferError>>;

fn compute(session: &mut dyn Session, plan: &Plan, requests: &[Request], cancel: &Cancel) -> Results {
    let (error, streamed) = match run_together(session, plan, requests, cancel) {
        Ok(results) => return results,
        Err(failed) => failed,
    };
    // One request's values may be what the model fails on: the others must not fail with it.
    let one_may_be_at_fault = matches!(error, EngineError::Run(_)) && requests.len() > 1 && !streamed;
    if !one_may_be_at_fault {
        return requests.iter().map(|_| Err(failure(&error))).collect();
    }
    let alone = |request| match run_together(session, plan, std::slice::from_ref(request), cancel) {
        Ok(mut results) => results.pop().unwrap_or(Err(InferError::Cancelled)),
        Err((error, _)) => Err(failure(&error)),
    };
    requests.iter().map(alone).collect()
}

/// In the error, whether something was streamed before the failure.
fn run_together(
    session: &mut dyn Session,
    plan: &Plan,
    requests: &[Request],
    cancel: &Cancel,
) -> Result<Results, (EngineError, bool)> {
    let joined;
    let inputs: Vec<TensorView<'_>> = match requests {
        [only] => only.inputs.iter().map(Tensor::view).collect(),
        several => {
            let join = |(index, axis): (usize, &Option<usize>)| {
                let parts: Vec<_> = several.iter().map(|request| request.inputs[index].view()).collect();
                rows::concat(&parts, axis.unwrap_or(0))
            };
            let tensors: Result<Vec<_>, _> = plan.input_axes.iter().enumerate().map(join).collect();
            joined = tensors.map_err(|error| (EngineError::Run(error.to_string()), false))?;
            joined.iter().map(Tensor::view).collect()
        }
    };
    let mut sink = Scatter::new(plan, requests);
    match session.run(&inputs, cancel, &mut sink) {
        Ok(()) => Ok(sink.finish()),
        Err(error) => Err((error, sink.has_streamed())),
    }
}

fn failure(error: &EngineError) -> InferError {
    match error {
        EngineError::Cancelled => InferError::Cancelled,
        EngineError::Library(_)
        | EngineError::MissingFile(_)
        | EngineError::NotAModel(_)
        | EngineError::Unsupported(_)
        | EngineError::UnsupportedDType { .. }
        | EngineError::Run(_) => InferError::ModelFailed { reason: reason(error) },
    }
}
