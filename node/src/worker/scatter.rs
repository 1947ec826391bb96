//! Takes the outputs of a run apart again: to each request its rows of the outputs that it wants.

use roost_protocol::error::reason;
use roost_protocol::messages::infer::Named;
use roost_protocol::{InferError, Tensor};

use super::plan::Plan;
use super::request::{Part, Request};
use super::rows;
use crate::engine::Sink;

/// The sink of one run.
pub struct Scatter<'a> {
    plan: &'a Plan,
    requests: &'a [Request],
    rows: Vec<u64>,
    gathered: Vec<Result<Part, InferError>>,
    /// By output, whether it came.
    given: Vec<bool>,
    streamed: bool,
}

impl<'a> Scatter<'a> {
    /// For the outputs of these requests' run.
    pub fn new(plan: &'a Plan, requests: &'a [Request]) -> Self {
        Self {
            plan,
            requests,
            rows: requests.iter().map(|request| u64::from(request.rows)).collect(),
            gathered: requests.iter().map(|_| Ok(Part::new())).collect(),
            given: vec![false; plan.signature.outputs.len()],
            streamed: false,
        }
    }

    /// Whether a part has gone out already.
    pub fn has_streamed(&self) -> bool {
        self.streamed
    }

    /// What each request is to be answered, beyond what was streamed. Unary is one part.
    pub fn finish(self) -> Vec<Result<Vec<Part>, InferError>> {
        let Self { plan, requests, gathered, given, .. } = self;
        let missing = |request: &Request| {
            let wanted = |index: &usize| request.wanted.has(Some(*index)) && !given[*index];
            (0..given.len()).find(wanted).map(|index| plan.signature.outputs[index].name.clone())
        };
        let finish = |(request, part): (&Request, Result<Part, InferError>)| {
            let part = part?;
            if let Some(output) = missing(request) {
                return Err(failed(format_args!("the engine gave no output {output:?}")));
            }
            Ok(if request.reply.is_streamed() { Vec::new() } else { vec![part] })
        };
        requests.iter().zip(gathered).map(finish).collect()
    }

    fn give(&mut self, index: usize, part: Part) {
        let (request, Ok(gathered)) = (&self.requests[index], &mut self.gathered[index]) else { return };
        if !request.reply.is_streamed() {
            gathered.extend(part);
        } else if !part.is_empty() {
            self.streamed = true;
            if let Err(error) = request.reply.stream(part) {
                self.gathered[index] = Err(error);
            }
        }
    }

    fn fail_all(&mut self, error: &InferError) {
        for gathered in &mut self.gathered {
            if gathered.is_ok() {
                *gathered = Err(error.clone());
            }
        }
    }
}

impl Sink for Scatter<'_> {
    fn part(&mut self, outputs: Vec<Named<Tensor>>) {
        let mut parts: Vec<Part> = self.requests.iter().map(|_| Part::new()).collect();
        for output in outputs {
            let index = self.plan.signature.outputs.iter().position(|port| port.name == output.name);
            if let Some(index) = index {
                self.given[index] = true;
            }
            let tensors = match self.requests {
                [_] => vec![output.tensor],
                _ => {
                    // A version whose outputs do not all have rows never batches.
                    let axis = index.and_then(|index| self.plan.output_axes[index]).unwrap_or(0);
                    match rows::scatter(&output.tensor, axis, &self.rows) {
                        Ok(tensors) => tensors,
                        Err(error) => {
                            let error = format_args!("output {:?} of a batch: {error}", output.name);
                            return self.fail_all(&failed(error));
                        }
                    }
                }
            };
            for ((request, part), tensor) in self.requests.iter().zip(&mut parts).zip(tensors) {
                if request.wanted.has(index) {
                    part.push(Named { name: output.name.clone(), tensor });
                }
            }
        }
        parts.into_iter().enumerate().for_each(|(index, part)| self.give(index, part));
    }
}

fn failed(why: impl std::fmt::Display) -> InferError {
    InferError::ModelFailed { reason: reason(why) }
}
