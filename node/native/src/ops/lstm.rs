//! `LSTM` with constant weights and the usual activations, on the kernels: the inputs' part of a run of steps
//! is one product, the recurrent part one product per step over the whole batch.
//!
//! Order: the gates' chain goes over the input, then biases, then the state; a row's bits do not depend on
//! the batch.

use roost_kernels::{Activation as Last, Epilogue, Gemm, Matrix, RowsMut, Weights};

use super::Target;
use super::fact::{Fact, Facts};
use super::kernel::Lowered;
use super::rnn::{Activation, Cell, Rnn, Sizes, in_order, sizes};
use crate::error::OpError;
use crate::plan::floats::Floats;
use crate::plan::pack::Layout;

/// The kernel, where this layer fits it.
pub fn lower(ins: Facts<'_>, rnn: &Rnn, target: Target<'_>) -> Result<Option<Lowered>, OpError> {
    let usual = [Activation::Sigmoid, Activation::Tanh, Activation::Tanh];
    let fits = rnn.cell == Cell::Lstm
        && rnn.activations.iter().all(|list| *list == usual)
        && rnn.clip.is_none()
        && !rnn.input_forget
        && !rnn.batch_first
        && ins.get(4).is_none();
    let pinned = |i: usize| ins.get(i).filter(|fact| fact.pinned && fact.value.is_some());
    let (Some(w), Some(r), true) = (pinned(1), pinned(2), fits) else { return Ok(None) };
    let s = sizes(ins, rnn)?;
    let width = 4 * s.hidden;
    let input = target.kernels.gemm(s.features, width);
    let state = target.kernels.gemm(s.hidden, width);
    let plan = Plan {
        s,
        backwards: rnn.directions.clone(),
        input_weights: packed_directions(&[(input, width)], w, s.directions, s.features, target)?,
        state_weights: packed_directions(&[(state, width)], r, s.directions, s.hidden, target)?,
        input,
        state,
        kernels: target.kernels,
    };
    let present: [bool; 8] = std::array::from_fn(|i| ins.get(i).is_some());
    let scratch = plan.scratch() * size_of::<f32>();
    let half = plan.input_weights.half().filter(|half| plan.state_weights.half() == Some(*half));
    let run = move |io: &mut crate::exec::io::Io<'_>| {
        let optional = |i: usize| if present[i] { io.input::<f32>(i) } else { &[] };
        let inputs = Inputs {
            x: io.input(0),
            bias: optional(3),
            h: optional(5),
            c: optional(6),
            peephole: optional(7),
        };
        let (all, last, cell, scratch) =
            (io.take::<f32>(0), io.take::<f32>(1), io.take::<f32>(2), io.take::<f32>(3));
        for d in 0..plan.s.directions {
            plan.direction(d, &inputs, all, last, cell, scratch);
        }
        Ok(())
    };
    let lowered = Lowered::new("lstm", run).on(target).of_weights(half).with_scratch(scratch);
    Ok(Some(lowered.without_reading(&[1, 2])))
}

/// The weights of all directions, `[directions, width, k]`, packed one after the other. Those of a direction
/// are in parts, each of so many of the width, with a product for each.
pub(super) fn packed_directions(
    parts: &[(Gemm, usize)],
    w: Fact<'_>,
    directions: usize,
    k: usize,
    target: Target<'_>,
) -> Result<Floats, OpError> {
    let each: usize = parts.iter().map(|(gemm, _)| gemm.packed_len()).sum();
    let mut numbers = vec![directions, k, target.kernels.layout().panel];
    numbers.extend(parts.iter().map(|(_, width)| width));
    // Each part of each direction: its product, where it lies among the weights, and where when packed.
    let (mut from, mut to) = (0, 0);
    let mut all = Vec::with_capacity(directions * parts.len());
    for _ in 0..directions {
        for (gemm, width) in parts {
            all.push((*gemm, from..from + width * k, to..to + gemm.packed_len()));
            (from, to) = (from + width * k, to + gemm.packed_len());
        }
    }
    let tensor = w.value.expect("the caller has looked");
    let unpacked = all.clone();
    let pack = |out: &mut [f32]| {
        let values = tensor.values::<f32>();
        for (gemm, from, to) in all {
            gemm.pack(Matrix::transposed(&values[from], k), &mut out[to]);
        }
    };
    let unpack = move |packed: &[f32], weights: &mut [f32]| {
        for (gemm, from, to) in &unpacked {
            let weights = &mut weights[from.clone()];
            gemm.unpack(&packed[to.clone()], |r, c, value| weights[c * k + r] = value);
        }
    };
    let layout = Layout { kernel: "recurrent", numbers };
    Floats::packed(target, tensor, layout, directions * each, pack, unpack)
}

struct Inputs<'a> {
    x: &'a [f32],
    bias: &'a [f32],
    h: &'a [f32],
    c: &'a [f32],
    peephole: &'a [f32],
}

struct Plan {
    s: Sizes,
    backwards: Vec<bool>,
    input: Gemm,
    state: Gemm,
    input_weights: Floats,
    state_weights: Floats,
    kernels: &'static roost_kernels::Kernels,
}

impl Plan {
    fn gemm_scratch(&self) -> usize {
        self.input
            .scratch_len(self.s.steps_at_once() * self.s.batch, None)
            .max(self.state.scratch_len(self.s.batch, None))
    }

    /// A direction's weights, where they are widened; gates of a run of steps, the sum of the biases, states and
    /// cells of the batch, and what the products want.
    fn scratch(&self) -> usize {
        let weights = self.input_weights.scratch_len(self.input.packed_len())
            + self.state_weights.scratch_len(self.state.packed_len());
        let width = 4 * self.s.hidden;
        let rows = self.s.steps_at_once() * self.s.batch;
        weights + rows * width + width + 2 * self.s.batch * self.s.hidden + self.gemm_scratch()
    }

    fn direction(
        &self,
        d: usize,
        inputs: &Inputs<'_>,
        all: &mut [f32],
        last: &mut [f32],
        last_cell: &mut [f32],
        scratch: &mut [f32],
    ) {
        let Sizes { batch, hidden, directions, features, .. } = self.s;
        let width = 4 * hidden;
        let of = |len: usize| d * len..(d + 1) * len;
        let (input, scratch) = self.input_weights.read(of(self.input.packed_len()), scratch);
        let (state, scratch) = self.state_weights.read(of(self.state.packed_len()), scratch);
        let (gates, rest) = scratch.split_at_mut(self.s.steps_at_once() * batch * width);
        let (bias, rest) = rest.split_at_mut(width);
        let (h, rest) = rest.split_at_mut(batch * hidden);
        let (c, products) = rest.split_at_mut(batch * hidden);
        let both = inputs.bias.get(2 * d * width..2 * (d + 1) * width);
        for (g, bias) in bias.iter_mut().enumerate() {
            *bias = both.map_or(0.0, |both| both[g] + both[width + g]);
        }
        let block = d * batch * hidden..(d + 1) * batch * hidden;
        for (from, to) in [(inputs.h, &mut *h), (inputs.c, &mut *c)] {
            match from.get(block.clone()) {
                Some(from) => to.copy_from_slice(from),
                None => to.fill(0.0),
            }
        }
        let epilogue =
            Epilogue { bias: Some(bias), residual: None, activation: Last::None, accumulate: false };
        let more = Epilogue { bias: None, residual: None, activation: Last::None, accumulate: true };
        let peephole = inputs.peephole.get(d * 3 * hidden..(d + 1) * 3 * hidden);
        let backwards = self.backwards[d];
        for run in self.s.runs(backwards) {
            let first = run.start;
            let x = Matrix::dense(&inputs.x[first * batch * features..], features);
            let rows = RowsMut { data: &mut *gates, stride: width };
            self.input.run(run.len() * batch, x, Weights::F32(input), rows, &epilogue, products);
            for t in in_order(run, backwards) {
                let gates = &mut gates[(t - first) * batch * width..(t + 1 - first) * batch * width];
                let rows = RowsMut { data: &mut *gates, stride: width };
                self.state.run(batch, Matrix::dense(h, hidden), Weights::F32(state), rows, &more, products);
                for b in 0..batch {
                    let row = b * hidden..(b + 1) * hidden;
                    self.kernels.lstm_cell(
                        &gates[b * width..(b + 1) * width],
                        peephole,
                        &mut c[row.clone()],
                        &mut h[row],
                    );
                }
                let to = (t * directions + d) * batch * hidden;
                if let Some(out) = all.get_mut(to..to + batch * hidden) {
                    out.copy_from_slice(h);
                }
            }
        }
        for (from, to) in [(h, last), (c, last_cell)] {
            if let Some(out) = to.get_mut(block.clone()) {
                out.copy_from_slice(from);
            }
        }
    }
}
