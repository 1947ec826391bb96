//! What a request gave: a whole response, or its parts as they come.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use roost_protocol::manifest::Manifest;
use roost_protocol::messages::infer::{Choice, Named, Trailer};
use roost_protocol::tensor::TensorError;
use roost_protocol::{DType, Epoch, InferError, NodeName, Revision, Tensor, Version};
use tokio::time::{Instant, timeout_at};

use crate::drive::{Rest, Won};

/// The answer to a request.
#[derive(Debug, Clone)]
pub struct Response {
    /// The outputs, in the order in which they came.
    pub outputs: Vec<Named<Tensor>>,
    /// The version that answered.
    pub version: Version,
    /// The traffic revision that the request was routed by.
    pub revision: Revision,
    /// The epoch of the answering node's view.
    pub epoch: Epoch,
    /// The node that answered.
    pub node: NodeName,
    /// Time in its queue.
    pub queue: Duration,
    /// Time on its executor, of the whole batch.
    pub compute: Duration,
    /// Rows of the batch that the request was part of.
    pub batch_rows: u32,
    /// Whether the stable version answered because no replica of the picked one was ready.
    pub fallback: bool,
    /// Attempts that were sent.
    pub attempts: u8,
    /// Whether an attempt was sent while another still ran.
    pub hedged: bool,
    manifest: Arc<Manifest>,
}

/// Where the parts of a response come from.
#[derive(Debug, Clone)]
pub struct Source {
    /// The version that answered.
    pub version: Version,
    /// The traffic revision that the request was routed by.
    pub revision: Revision,
    /// The epoch of the answering node's view.
    pub epoch: Epoch,
    /// The node that answered.
    pub node: NodeName,
    /// Whether the stable version answered because no replica of the picked one was ready.
    pub fallback: bool,
    /// Attempts that were sent.
    pub attempts: u8,
    manifest: Arc<Manifest>,
}

/// How long an answer took on its node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Timings {
    /// Time in the queue.
    pub queue: Duration,
    /// Time on the executor, of the whole batch.
    pub compute: Duration,
    /// Rows of the batch that the request was part of.
    pub batch_rows: u32,
}

impl Timings {
    fn of(trailer: &Trailer) -> Self {
        Self {
            queue: Duration::from_micros(trailer.queue_us),
            compute: Duration::from_micros(trailer.compute_us),
            batch_rows: trailer.batch_rows,
        }
    }
}

/// A class that a model sees, with its score.
#[derive(Debug, Clone, PartialEq)]
pub struct Ranked {
    /// The class's index.
    pub index: usize,
    /// Its label.
    pub label: String,
    /// Its score, as the model gives it.
    pub score: f32,
}

/// Why a response has no labels.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LabelsError {
    /// The model's manifest lists none.
    #[error("model.toml of version {version} lists no labels")]
    None {
        /// The version.
        version: Version,
    },
    /// The response does not have the output that the labels belong to.
    #[error("the response has no output {output:?}, which the labels belong to")]
    NoOutput {
        /// The output; empty for the first.
        output: String,
    },
    /// The output has no axis with one element per label, or that is not its innermost.
    #[error("an output of shape {shape} has no scores for {labels} labels")]
    Shape {
        /// Its shape.
        shape: String,
        /// How many labels there are.
        labels: usize,
    },
    /// The output's elements are no scores.
    #[error("an output of {0} has no scores")]
    DType(DType),
    /// The output's bytes cannot be read as its elements.
    #[error(transparent)]
    Tensor(#[from] TensorError),
}

impl Source {
    fn of(won: &Won) -> Self {
        Self {
            version: won.picked.version,
            revision: won.picked.revision,
            epoch: won.opened.header.epoch(),
            node: won.from.name.clone(),
            fallback: won.picked.choice == Choice::Fallback,
            attempts: won.attempts,
            manifest: won.picked.manifest.clone(),
        }
    }

    /// What the bundle of the version that answered says about it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

impl Response {
    pub(crate) fn of(won: Won) -> Self {
        let Source { version, revision, epoch, node, fallback, attempts, manifest } = Source::of(&won);
        let Timings { queue, compute, batch_rows } = match &won.opened.rest {
            Rest::Ended(trailer) => Timings::of(trailer),
            // Only a response that is taken in parts has more to come.
            Rest::Follows(..) => Timings::default(),
        };
        let (outputs, hedged) = (won.opened.outputs, won.hedged);
        Self {
            outputs,
            version,
            revision,
            epoch,
            node,
            queue,
            compute,
            batch_rows,
            fallback,
            attempts,
            hedged,
            manifest,
        }
    }

    /// What the bundle of the version that answered says about it.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// The output of that name.
    pub fn output(&self, name: &str) -> Option<&Tensor> {
        self.outputs.iter().find(|output| output.name == name).map(|output| &output.tensor)
    }

    /// The best `top` classes of each row, best first, by the labels of the version that answered.
    ///
    /// # Errors
    /// [`LabelsError`] when the manifest lists no labels, or the output that they belong to does not fit
    /// them.
    pub fn labels(&self, top: usize) -> Result<Vec<Vec<Ranked>>, LabelsError> {
        let manifest = &self.manifest;
        if manifest.labels.is_empty() {
            return Err(LabelsError::None { version: self.version });
        }
        let output = match &manifest.labels_output {
            Some(name) => self.output(name),
            None => self.outputs.first().map(|output| &output.tensor),
        };
        let no_output =
            || LabelsError::NoOutput { output: manifest.labels_output.clone().unwrap_or_default() };
        rank(output.ok_or_else(no_output)?, &manifest.labels, top)
    }
}

fn rank(output: &Tensor, labels: &[String], top: usize) -> Result<Vec<Vec<Ranked>>, LabelsError> {
    let scores = scores(output)?;
    let shape = output.shape();
    // Some nets leave axes of one behind the classes: [rows, 1000, 1, 1].
    let classes = labels.len() as u64;
    let innermost = shape.dims().iter().rev().find(|dim| **dim != 1 || classes == 1);
    if innermost != Some(&classes) {
        return Err(LabelsError::Shape { shape: shape.to_string(), labels: labels.len() });
    }
    let best = |row: &[f32]| {
        let mut order: Vec<usize> = (0..row.len()).collect();
        order.sort_by(|a, b| row[*b].total_cmp(&row[*a]));
        let ranked = |index: usize| Ranked { index, label: labels[index].clone(), score: row[index] };
        order.into_iter().take(top).map(ranked).collect()
    };
    Ok(scores.chunks_exact(labels.len()).map(best).collect())
}

fn scores(output: &Tensor) -> Result<Vec<f32>, LabelsError> {
    Ok(match output.dtype() {
        DType::F32 => output.elements::<f32>()?.to_vec(),
        DType::F64 => output.elements::<f64>()?.iter().map(|x| *x as f32).collect(),
        DType::F16 => output.elements::<half::f16>()?.iter().map(|x| x.to_f32()).collect(),
        DType::Bf16 => output.elements::<half::bf16>()?.iter().map(|x| x.to_f32()).collect(),
        // Quantised nets answer in steps, which rank as well.
        DType::I8 => output.elements::<i8>()?.iter().map(|x| f32::from(*x)).collect(),
        DType::U8 => output.elements::<u8>()?.iter().map(|x| f32::from(*x)).collect(),
        dtype @ (DType::I16
        | DType::I32
        | DType::I64
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::Bool
        | DType::String) => return Err(LabelsError::DType(dtype)),
    })
}

/// A response whose parts are taken as they come. Dropping it cancels the request.
pub struct ResponseStream {
    source: Source,
    deadline: Instant,
    first: Option<Vec<Named<Tensor>>>,
    rest: Option<Rest>,
    timings: Option<Timings>,
}

impl ResponseStream {
    pub(crate) fn of(won: Won, deadline: Instant) -> Self {
        let source = Source::of(&won);
        let timings = match &won.opened.rest {
            Rest::Ended(trailer) => Some(Timings::of(trailer)),
            Rest::Follows(..) => None,
        };
        let first = Some(won.opened.outputs).filter(|outputs| !outputs.is_empty());
        Self { source, deadline, first, rest: Some(won.opened.rest), timings }
    }

    /// Where the parts come from.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// How long it took; `None` until the last part was taken.
    pub fn timings(&self) -> Option<Timings> {
        self.timings
    }

    /// The next part; `None` after the last.
    ///
    /// # Errors
    /// [`InferError`] when the request failed half-way; nothing follows then. It is not retried, since parts
    /// that were taken cannot be taken back.
    pub async fn next(&mut self) -> Option<Result<Vec<Named<Tensor>>, InferError>> {
        use crate::dispatch::Arrival;
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        let Some(Rest::Follows(arrivals, in_flight)) = &mut self.rest else { return None };
        let broke = |reason: &str| {
            let node = self.source.node.to_string();
            Some(Err(InferError::Unreachable { node, reason: reason.to_owned() }))
        };
        let result = match timeout_at(self.deadline, arrivals.next()).await {
            Err(_) => Some(Err(InferError::DeadlineExceeded)),
            Ok(None) => broke("the response ended without a trailer"),
            Ok(Some(Err(error))) => Some(Err(error)),
            Ok(Some(Ok(Arrival::Part(part)))) => return Some(Ok(part)),
            Ok(Some(Ok(Arrival::Header(_)))) => {
                Some(Err(InferError::Malformed { what: "a second header".to_owned() }))
            }
            Ok(Some(Ok(Arrival::Trailer(mut trailer)))) => {
                in_flight.heard(Some(trailer.in_flight), Instant::now());
                self.timings = Some(Timings::of(&trailer));
                trailer.error.take().map(Err)
            }
        };
        self.rest = None;
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(count: usize) -> Vec<String> {
        (0..count).map(|i| format!("class-{i}")).collect()
    }

    fn best(output: &Tensor, count: usize) -> Result<Vec<Vec<usize>>, LabelsError> {
        let rows = rank(output, &labels(count), 2)?;
        Ok(rows.into_iter().map(|row| row.into_iter().map(|ranked| ranked.index).collect()).collect())
    }

    #[test]
    fn rows_are_ranked_by_score() {
        let scores = vec![0.1f32, 0.7, 0.2, 0.5, 0.4, 0.45];
        for dims in [&[2, 3][..], &[2, 3, 1, 1], &[1, 2, 3]] {
            let output = Tensor::from_elements(dims, scores.clone()).unwrap();
            assert_eq!(best(&output, 3).unwrap(), [[1, 2], [0, 2]], "{dims:?}");
        }
        let steps = Tensor::from_elements(&[1, 3], vec![-3i8, 5, -128]).unwrap();
        assert_eq!(best(&steps, 3).unwrap(), [[1, 0]]);
        let one = Tensor::from_elements(&[2, 1], vec![0.5f64, 0.25]).unwrap();
        assert_eq!(best(&one, 1).unwrap(), [[0], [0]]);
    }

    #[test]
    fn what_has_no_scores_says_so() {
        let output = Tensor::from_elements(&[2, 3], vec![0f32; 6]).unwrap();
        assert_eq!(
            best(&output, 4).unwrap_err().to_string(),
            "an output of shape [2, 3] has no scores for 4 labels"
        );
        let text = Tensor::from_strings(&[1], &["a"]).unwrap();
        assert_eq!(best(&text, 1).unwrap_err(), LabelsError::DType(DType::String));
    }
}
