//! `GRU` with constant weights and the usual activations, on the kernels: the inputs' part of a run of steps
//! is one product, the recurrent part two products per step over the whole batch.
//!
//! Each sum is made as [`super::rnn`] makes it, so results have the same bits: the input's part with its
//! bias, plus the recurrent part with its bias.

use roost_kernels::{Epilogue, Gemm, Kernels, Matrix, Rows, RowsMut, Weights};

use super::Target;
use super::fact::Facts;
use super::kernel::Lowered;
use super::lstm::packed_directions;
use super::rnn::{Activation, Cell, Rnn, Sizes, in_order, sizes};
use crate::error::OpError;
use crate::plan::floats::Floats;

/// The kernel, where this layer fits it.
pub fn lower(ins: Facts<'_>, rnn: &Rnn, target: Target<'_>) -> Result<Option<Lowered>, OpError> {
    let Cell::Gru { linear_before_reset } = rnn.cell else { return Ok(None) };
    let fits = rnn.activations.iter().all(|list| list[..2] == [Activation::Sigmoid, Activation::Tanh])
        && rnn.clip.is_none()
        && !rnn.batch_first
        && ins.get(4).is_none();
    let pinned = |i: usize| ins.get(i).filter(|fact| fact.pinned && fact.value.is_some());
    let (Some(w), Some(r), true) = (pinned(1), pinned(2), fits) else { return Ok(None) };
    let s = sizes(ins, rnn)?;
    let input = target.kernels.gemm(s.features, 3 * s.hidden);
    let gates = target.kernels.gemm(s.hidden, 2 * s.hidden);
    let candidate = target.kernels.gemm(s.hidden, s.hidden);
    let recurrent = [(gates, 2 * s.hidden), (candidate, s.hidden)];
    let plan = Plan {
        s,
        linear_before_reset,
        backwards: rnn.directions.clone(),
        input_weights: packed_directions(&[(input, 3 * s.hidden)], w, s.directions, s.features, target)?,
        state_weights: packed_directions(&recurrent, r, s.directions, s.hidden, target)?,
        input,
        gates,
        candidate,
        kernels: target.kernels,
    };
    let [biased, begun] = [3, 5].map(|i| ins.get(i).is_some());
    let scratch = plan.scratch() * size_of::<f32>();
    let half = plan.input_weights.half().filter(|half| plan.state_weights.half() == Some(*half));
    let run = move |io: &mut crate::exec::io::Io<'_>| {
        let optional = |i: usize, there: bool| if there { io.input::<f32>(i) } else { &[] };
        let inputs = Inputs { x: io.input(0), bias: optional(3, biased), h: optional(5, begun) };
        let (all, last, scratch) = (io.take::<f32>(0), io.take::<f32>(1), io.take::<f32>(2));
        for d in 0..plan.s.directions {
            plan.direction(d, &inputs, all, last, scratch);
        }
        Ok(())
    };
    let lowered = Lowered::new("gru", run).on(target).of_weights(half).with_scratch(scratch);
    Ok(Some(lowered.without_reading(&[1, 2])))
}

struct Inputs<'a> {
    x: &'a [f32],
    bias: &'a [f32],
    h: &'a [f32],
}

struct Plan {
    s: Sizes,
    linear_before_reset: bool,
    backwards: Vec<bool>,
    /// The inputs' part of all gates.
    input: Gemm,
    /// The recurrent part of the update and the reset gate.
    gates: Gemm,
    /// The recurrent part of the candidate.
    candidate: Gemm,
    input_weights: Floats,
    state_weights: Floats,
    kernels: &'static Kernels,
}

/// What a step reads and writes, for the whole batch: `[batch, hidden]`, but for the gates `[batch, 2 ·
/// hidden]`.
struct Step<'a> {
    /// The update and the reset gate.
    gates: &'a mut [f32],
    /// The candidate before its activation.
    candidate: &'a mut [f32],
    /// What goes into the candidate, or what its recurrent part gives.
    part: &'a mut [f32],
    /// The state.
    h: &'a mut [f32],
    /// What the products want.
    products: &'a mut [f32],
}

impl Plan {
    fn gemm_scratch(&self) -> usize {
        let rows = self.s.steps_at_once() * self.s.batch;
        let steps =
            self.gates.scratch_len(self.s.batch, None).max(self.candidate.scratch_len(self.s.batch, None));
        self.input.scratch_len(rows, None).max(steps)
    }

    /// Packed values of a direction's recurrent weights.
    fn state_len(&self) -> usize {
        self.gates.packed_len() + self.candidate.packed_len()
    }

    /// A direction's weights, where they are widened; gates of a run of steps, biases, a step's values, and what
    /// the products want.
    fn scratch(&self) -> usize {
        let Sizes { batch, hidden, .. } = self.s;
        let weights = self.input_weights.scratch_len(self.input.packed_len())
            + self.state_weights.scratch_len(self.state_len());
        weights + (3 * self.s.steps_at_once() * batch + 6 + 5 * batch) * hidden + self.gemm_scratch()
    }

    fn direction(
        &self,
        d: usize,
        inputs: &Inputs<'_>,
        all: &mut [f32],
        last: &mut [f32],
        scratch: &mut [f32],
    ) {
        let Sizes { batch, hidden, directions, features, .. } = self.s;
        let (width, state) = (3 * hidden, batch * hidden);
        let of = |len: usize| d * len..(d + 1) * len;
        let (input, scratch) = self.input_weights.read(of(self.input.packed_len()), scratch);
        let (weights, scratch) = self.state_weights.read(of(self.state_len()), scratch);
        let weights = weights.split_at(self.gates.packed_len());
        let (gates, rest) = scratch.split_at_mut(self.s.steps_at_once() * batch * width);
        let (bias, rest) = rest.split_at_mut(2 * width);
        let (step_gates, rest) = rest.split_at_mut(2 * state);
        let (candidate, rest) = rest.split_at_mut(state);
        let (part_of, rest) = rest.split_at_mut(state);
        let (h, products) = rest.split_at_mut(state);
        match inputs.bias.get(2 * d * width..2 * (d + 1) * width) {
            Some(both) => bias.copy_from_slice(both),
            None => bias.fill(0.0),
        }
        let (input_bias, state_bias) = bias.split_at(width);
        let block = d * state..(d + 1) * state;
        match inputs.h.get(block.clone()) {
            Some(from) => h.copy_from_slice(from),
            None => h.fill(0.0),
        }
        let epilogue = Epilogue { bias: Some(input_bias), ..Epilogue::default() };
        let mut step = Step { gates: step_gates, candidate, part: part_of, h, products };
        let backwards = self.backwards[d];
        for run in self.s.runs(backwards) {
            let first = run.start;
            let x = Matrix::dense(&inputs.x[first * batch * features..], features);
            let rows = RowsMut { data: &mut *gates, stride: width };
            self.input.run(run.len() * batch, x, Weights::F32(input), rows, &epilogue, step.products);
            for t in in_order(run, backwards) {
                let sums = &gates[(t - first) * batch * width..(t + 1 - first) * batch * width];
                self.step(sums, weights, state_bias, &mut step);
                let to = (t * directions + d) * state;
                if let Some(out) = all.get_mut(to..to + state) {
                    out.copy_from_slice(step.h);
                }
            }
        }
        if let Some(out) = last.get_mut(block) {
            out.copy_from_slice(step.h);
        }
    }

    /// One step; `sums` are the inputs' parts `[batch, 3 · hidden]`.
    fn step(&self, sums: &[f32], weights: (&[f32], &[f32]), bias: &[f32], step: &mut Step<'_>) {
        let Sizes { batch, hidden, .. } = self.s;
        let Step { gates, candidate, part, h, products } = step;
        let width = 3 * hidden;
        let (of_gates, of_candidate) = bias.split_at(2 * hidden);
        let epilogue = Epilogue {
            bias: Some(of_gates),
            residual: Some(Rows { data: sums, stride: width }),
            ..Epilogue::default()
        };
        let rows = RowsMut { data: gates, stride: 2 * hidden };
        self.gates.run(batch, Matrix::dense(h, hidden), Weights::F32(weights.0), rows, &epilogue, products);
        let row = |b: usize| b * hidden..(b + 1) * hidden;
        let update = |b: usize| 2 * b * hidden..(2 * b + 1) * hidden;
        let reset = |b: usize| (2 * b + 1) * hidden..2 * (b + 1) * hidden;
        let input = |b: usize| &sums[b * width + 2 * hidden..(b + 1) * width];
        let plain = Epilogue { bias: Some(of_candidate), ..Epilogue::default() };
        if self.linear_before_reset {
            let rows = RowsMut { data: part, stride: hidden };
            self.candidate.run(
                batch,
                Matrix::dense(h, hidden),
                Weights::F32(weights.1),
                rows,
                &plain,
                products,
            );
            for b in 0..batch {
                let out = &mut candidate[row(b)];
                self.kernels.gate(&gates[reset(b)], &part[row(b)], Some(input(b)), out);
            }
        } else {
            for b in 0..batch {
                self.kernels.gate(&gates[reset(b)], &h[row(b)], None, &mut part[row(b)]);
            }
            // An empty batch has no sums at all.
            let data = sums.get(2 * hidden..).unwrap_or_default();
            let epilogue = Epilogue { residual: Some(Rows { data, stride: width }), ..plain };
            let rows = RowsMut { data: candidate, stride: hidden };
            self.candidate.run(
                batch,
                Matrix::dense(part, hidden),
                Weights::F32(weights.1),
                rows,
                &epilogue,
                products,
            );
        }
        for b in 0..batch {
            self.kernels.gru_blend(&gates[update(b)], &candidate[row(b)], &mut h[row(b)]);
        }
    }
}
