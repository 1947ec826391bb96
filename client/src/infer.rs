//! A request for inference, as the caller builds it.

use std::sync::Arc;
use std::time::Duration;

use roost_protocol::ids::TargetError;
use roost_protocol::limits::{KEY_BYTES_MAX, TENSOR_NAME_BYTES_MAX, TENSORS_MAX};
use roost_protocol::messages::infer::{Choice, InferHeader, Named, ResponseMode};
use roost_protocol::trace::TraceContext;
use roost_protocol::traffic::KeyHash;
use roost_protocol::{InferError, ModelName, ModelVersion, Target, Tenant, Tensor};
use tokio::time::Instant;
use tracing::{Instrument as _, Span, field};

use crate::client::Client;
use crate::dispatch::Inputs;
use crate::drive::{self, Order, Won};
use crate::request::Terms;
use crate::response::{Response, ResponseStream};

/// The longest deadline that a request can have: beyond it a caller means "none", and timers overflow.
pub const DEADLINE_MAX: Duration = Duration::from_secs(24 * 60 * 60);

/// What can be asked for: a [`Target`], or text that reads as one.
pub trait IntoTarget {
    /// The target.
    ///
    /// # Errors
    /// [`TargetError`] when the text is none.
    fn into_target(self) -> Result<Target, TargetError>;
}

impl IntoTarget for &str {
    fn into_target(self) -> Result<Target, TargetError> {
        self.parse()
    }
}

impl IntoTarget for &String {
    fn into_target(self) -> Result<Target, TargetError> {
        self.parse()
    }
}

impl IntoTarget for String {
    fn into_target(self) -> Result<Target, TargetError> {
        self.parse()
    }
}

impl IntoTarget for Target {
    fn into_target(self) -> Result<Target, TargetError> {
        Ok(self)
    }
}

impl IntoTarget for ModelName {
    fn into_target(self) -> Result<Target, TargetError> {
        Ok(Target::Split(self))
    }
}

impl IntoTarget for ModelVersion {
    fn into_target(self) -> Result<Target, TargetError> {
        Ok(Target::Pinned(self))
    }
}

/// A request that is being built. Nothing happens before [`Infer::send`] or [`Infer::stream`]; dropping
/// either's future cancels the request.
#[must_use = "a request does nothing until it is sent"]
#[derive(Debug)]
pub struct Infer {
    client: Client,
    target: Result<Target, TargetError>,
    key: Option<Key>,
    inputs: Vec<Named<Tensor>>,
    outputs: Vec<String>,
    deadline: Duration,
    priority: u8,
    tenant: Option<Tenant>,
    sequence: Option<u64>,
    trace: Option<TraceContext>,
}

/// A sticky key, or what is wrong with it.
#[derive(Debug, Clone, Copy)]
enum Key {
    Hash(KeyHash),
    TooLong { bytes: usize },
}

impl Infer {
    pub(crate) fn new(client: Client, target: impl IntoTarget, deadline: Duration) -> Self {
        Self {
            client,
            target: target.into_target(),
            key: None,
            inputs: Vec::new(),
            outputs: Vec::new(),
            deadline,
            priority: 0,
            tenant: None,
            sequence: None,
            trace: None,
        }
    }

    /// Who it is for: requests of one key get one version within a rollout, and one node while that is not
    /// overloaded. Without a key a request is on its own.
    pub fn key(mut self, key: impl AsRef<[u8]>) -> Self {
        let bytes = key.as_ref();
        self.key = Some(if bytes.len() > KEY_BYTES_MAX {
            Key::TooLong { bytes: bytes.len() }
        } else {
            Key::Hash(KeyHash::of(bytes))
        });
        self
    }

    /// As [`Infer::key`], by the key's hash: for whoever passes on the request of somebody else.
    pub fn key_hash(mut self, hash: KeyHash) -> Self {
        self.key = Some(Key::Hash(hash));
        self
    }

    /// An input of the model.
    pub fn input(mut self, name: impl Into<String>, tensor: Tensor) -> Self {
        self.inputs.push(Named { name: name.into(), tensor });
        self
    }

    /// An output that is wanted. Without any, all come.
    pub fn output(mut self, name: impl Into<String>) -> Self {
        self.outputs.push(name.into());
        self
    }

    /// How long it may take, all attempts together. At most [`DEADLINE_MAX`].
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline.min(DEADLINE_MAX);
        self
    }

    /// Higher goes first in a node's queue. 0 is usual.
    pub fn priority(mut self, priority: u8) -> Self {
        self.priority = priority;
        self
    }

    /// On whose behalf it is. Only a gateway may say so; otherwise the certificate's name counts.
    pub fn tenant(mut self, tenant: Tenant) -> Self {
        self.tenant = Some(tenant);
        self
    }

    /// The sequence that it is part of. Requests of a sequence depend on each other: none is ever sent twice
    /// at once, and without a key the sequence is the key.
    pub fn sequence(mut self, sequence: u64) -> Self {
        self.sequence = Some(sequence);
        self
    }

    /// The trace that it belongs to. Otherwise that of the current span, where the feature `opentelemetry` is
    /// on.
    pub fn trace(mut self, trace: TraceContext) -> Self {
        self.trace = Some(trace);
        self
    }

    /// Sends the request and waits for the whole answer.
    ///
    /// # Errors
    /// [`InferError`]. One that is retryable was retried as often as made sense.
    pub async fn send(self) -> Result<Response, InferError> {
        Ok(Response::of(self.run(ResponseMode::Unary).await?.0))
    }

    /// Sends the request and waits for the first part of the answer.
    ///
    /// # Errors
    /// As [`Infer::send`]. What goes wrong after the first part is an error of [`ResponseStream::next`].
    pub async fn stream(self) -> Result<ResponseStream, InferError> {
        let (won, deadline) = self.run(ResponseMode::Stream).await?;
        Ok(ResponseStream::of(won, deadline))
    }

    async fn run(self, mode: ResponseMode) -> Result<(Won, Instant), InferError> {
        let span = tracing::info_span!(
            "infer",
            target = field::Empty,
            version = field::Empty,
            node = field::Empty,
            attempts = field::Empty,
            hedged = field::Empty,
            fallback = field::Empty,
            error = field::Empty,
        );
        let client = self.client.clone();
        let order = self.order(mode, &span)?;
        span.record("target", field::display(&order.target));
        let result = drive::run(client.shared(), &order).instrument(span.clone()).await;
        match &result {
            Ok(won) => {
                span.record("version", won.picked.version.0);
                span.record("node", field::display(&won.from.name));
                span.record("attempts", won.attempts);
                span.record("hedged", won.hedged);
                span.record("fallback", won.picked.choice == Choice::Fallback);
            }
            Err(error) => {
                span.record("error", field::display(error));
            }
        }
        Ok((result?, order.terms.deadline))
    }

    /// Checks what can be checked here, and makes the request's unchanging parts.
    fn order(self, mode: ResponseMode, span: &Span) -> Result<Order, InferError> {
        let target = self.target.map_err(|error| InferError::Malformed { what: error.to_string() })?;
        let given = match (self.key, self.sequence) {
            (Some(Key::TooLong { bytes }), _) => {
                return Err(limit("bytes of a key", KEY_BYTES_MAX, bytes));
            }
            (Some(Key::Hash(hash)), _) => Some(hash),
            (None, Some(sequence)) => Some(KeyHash::of(&sequence.to_le_bytes())),
            (None, None) => None,
        };
        check_outputs(&self.outputs)?;
        check_inputs(&self.inputs)?;
        let (inputs, tensors) = Inputs::new(self.inputs)?;
        let (request, key) = {
            let mut state = self.client.shared().state();
            (state.draw_request(), given.unwrap_or_else(|| state.draw_key()))
        };
        let streaming = mode == ResponseMode::Stream;
        let header = InferHeader {
            request: request.0.to_le_bytes(),
            attempt: 0,
            deadline_us: 0,
            priority: self.priority,
            tenant: self.tenant.map(|tenant| tenant.to_string()),
            sequence: self.sequence,
            trace: self
                .trace
                .or_else(|| crate::trace::of(span))
                .or_else(|| crate::trace::of(&Span::current())),
            response_mode: mode as u8,
            model: String::new(),
            version: 0,
            revision: 0,
            generation: 0,
            choice: 0,
            key_hash: key.0,
            tensors,
            outputs: self.outputs,
        };
        let deadline = Instant::now() + self.deadline;
        let terms = Terms { deadline, concurrent: !streaming && self.sequence.is_none() };
        Ok(Order { target, key, sticky: given.is_some(), terms, streaming, header, inputs: Arc::new(inputs) })
    }
}

fn limit(what: &str, max: usize, actual: usize) -> InferError {
    InferError::LimitExceeded { what: what.to_owned(), max: max as u64, actual: actual as u64 }
}

fn check_outputs(outputs: &[String]) -> Result<(), InferError> {
    if outputs.len() > TENSORS_MAX {
        return Err(limit("outputs in a message", TENSORS_MAX, outputs.len()));
    }
    match outputs.iter().find(|name| name.len() > TENSOR_NAME_BYTES_MAX) {
        Some(name) => Err(limit("bytes of an output's name", TENSOR_NAME_BYTES_MAX, name.len())),
        None => Ok(()),
    }
}

fn check_inputs(inputs: &[Named<Tensor>]) -> Result<(), InferError> {
    let twice =
        inputs.iter().enumerate().find(|(i, input)| inputs[..*i].iter().any(|b| b.name == input.name));
    match twice {
        Some((_, input)) => Err(InferError::DuplicateInput { input: input.name.clone() }),
        None => Ok(()),
    }
}
