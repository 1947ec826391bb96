//! `LSTM`, `GRU` and `RNN`: one or two directions, any of ONNX's gate activations, peepholes, sequence
//! lengths.
//!
//! A gate's sum is one chain: the input's part over its features ascending, then bias, then the recurrent
//! part.

use std::ops::Range;

use super::fact::{Facts, Out};
use super::kernel::Lowered;
use crate::error::OpError;
use crate::math;
use crate::tensor::DType;

/// Which recurrence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cell {
    /// `LSTM`: gates input, output, forget, cell.
    Lstm,
    /// `GRU`: gates update, reset, hidden; the flag is `linear_before_reset`.
    Gru {
        /// Whether the reset gate multiplies after the recurrent product.
        linear_before_reset: bool,
    },
    /// `RNN`: one gate.
    Rnn,
}

impl Cell {
    /// Gates per cell.
    pub const fn gates(self) -> usize {
        match self {
            Self::Lstm => 4,
            Self::Gru { .. } => 3,
            Self::Rnn => 1,
        }
    }
}

/// A gate's activation with its two parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs, reason = "the names are ONNX's")]
pub enum Activation {
    Sigmoid,
    Tanh,
    Relu,
    Affine(f32, f32),
    LeakyRelu(f32),
    ThresholdedRelu(f32),
    ScaledTanh(f32, f32),
    HardSigmoid(f32, f32),
    Elu(f32),
    Softsign,
    Softplus,
}

impl Activation {
    /// Its value.
    pub fn of(self, x: f32) -> f32 {
        match self {
            Self::Sigmoid => math::sigmoid(x),
            Self::Tanh => math::tanh(x),
            Self::Relu => {
                if x < 0.0 {
                    0.0
                } else {
                    x
                }
            }
            Self::Affine(a, b) => a * x + b,
            Self::LeakyRelu(a) => {
                if x < 0.0 {
                    a * x
                } else {
                    x
                }
            }
            Self::ThresholdedRelu(a) => {
                if x < a {
                    0.0
                } else {
                    x
                }
            }
            Self::ScaledTanh(a, b) => a * math::tanh(b * x),
            Self::HardSigmoid(a, b) => (a * x + b).clamp(0.0, 1.0),
            Self::Elu(a) => {
                if x < 0.0 {
                    a * (math::exp(x) - 1.0)
                } else {
                    x
                }
            }
            Self::Softsign => x / (1.0 + x.abs()),
            Self::Softplus => math::softplus(x),
        }
    }
}

/// Attributes of a recurrent layer.
#[derive(Debug, Clone, PartialEq)]
pub struct Rnn {
    /// The recurrence.
    pub cell: Cell,
    /// Width of the state.
    pub hidden: usize,
    /// Per direction, whether it runs backwards.
    pub directions: Vec<bool>,
    /// Three per direction, the unused last ones repeated.
    pub activations: Vec<[Activation; 3]>,
    /// Bound of the gates' sums.
    pub clip: Option<f32>,
    /// LSTM: the forget gate is one less the input gate.
    pub input_forget: bool,
    /// Whether the batch is the first dimension.
    pub batch_first: bool,
}

/// Sizes of a recurrent layer for one shape.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// Steps.
    pub length: usize,
    /// Rows.
    pub batch: usize,
    /// Width of the input.
    pub features: usize,
    /// Width of the state.
    pub hidden: usize,
    /// Directions.
    pub directions: usize,
}

/// The sizes, checked.
pub fn sizes(ins: Facts<'_>, rnn: &Rnn) -> Result<Sizes, OpError> {
    let x = ins.typed(0, &[DType::F32])?;
    ins.typed(1, &[DType::F32])?;
    let r = ins.typed(2, &[DType::F32])?;
    let &[first, second, features] = x.shape else {
        return Err(OpError::Shape(format!("a recurrent layer of {:?}", x.shape)));
    };
    let (length, batch) = if rnn.batch_first { (second, first) } else { (first, second) };
    // Ahead of all products with it: the weights are as large as the state is wide.
    if r.shape.last() != Some(&rnn.hidden) {
        let refusal = format!("a state of {} and recurrent weights {:?}", rnn.hidden, r.shape);
        return Err(OpError::Shape(refusal));
    }
    let (gates, hidden, directions) = (rnn.cell.gates() * rnn.hidden, rnn.hidden, rnn.directions.len());
    let state = if rnn.batch_first { [batch, directions, hidden] } else { [directions, batch, hidden] };
    let expected: [(usize, &[usize]); 6] = [
        (1, &[directions, gates, features]),
        (2, &[directions, gates, hidden]),
        (3, &[directions, 2 * gates]),
        (5, &state),
        (6, &state),
        (7, &[directions, 3 * hidden]),
    ];
    for (index, shape) in expected {
        if ins.get(index).is_some() && ins.typed(index, &[DType::F32])?.shape != shape {
            let found = ins.need(index)?.shape;
            return Err(OpError::Shape(format!("input {index} has shape {found:?}, {shape:?} is taken")));
        }
    }
    if ins.get(4).is_some() && ins.typed(4, &[DType::I32])?.shape != [batch] {
        return Err(OpError::Shape("one sequence length per batch row".into()));
    }
    Ok(Sizes { length, batch, features, hidden, directions })
}

impl Sizes {
    /// Steps whose inputs' part is computed by one product: together they have rows enough for its tiles, and
    /// what they give is still in the caches when each step adds to it.
    pub fn steps_at_once(&self) -> usize {
        const ROWS: usize = 64;
        (ROWS / self.batch.max(1)).clamp(1, self.length.max(1))
    }

    /// The runs of so many steps, in the order in which a direction takes them; those of each run ascend.
    pub fn runs(&self, backwards: bool) -> impl Iterator<Item = Range<usize>> {
        let (length, run) = (self.length, self.steps_at_once());
        (0..length).step_by(run).map(move |done| {
            let end = length.min(done + run);
            if backwards { length - end..length - done } else { done..end }
        })
    }
}

/// A run of steps in the order in which a direction takes them.
pub fn in_order(run: Range<usize>, backwards: bool) -> impl Iterator<Item = usize> {
    let Range { start, end } = run;
    (start..end).map(move |t| if backwards { start + (end - 1 - t) } else { t })
}

/// Outputs: all states, the last state, and for LSTM the last cell.
pub fn infer(ins: Facts<'_>, rnn: &Rnn) -> Result<Vec<Out>, OpError> {
    let Sizes { length, batch, hidden, directions, .. } = sizes(ins, rnn)?;
    let (all, last) = if rnn.batch_first {
        (vec![batch, length, directions, hidden], vec![batch, directions, hidden])
    } else {
        (vec![length, directions, batch, hidden], vec![directions, batch, hidden])
    };
    let mut outs = vec![Out::new(DType::F32, all), Out::new(DType::F32, last.clone())];
    if rnn.cell == Cell::Lstm {
        outs.push(Out::new(DType::F32, last));
    }
    Ok(outs)
}

/// The kernel of a recurrent layer, cell by cell.
pub fn lower(ins: Facts<'_>, rnn: &Rnn) -> Result<Lowered, OpError> {
    let s = sizes(ins, rnn)?;
    let rnn = rnn.clone();
    let present: [bool; 8] = std::array::from_fn(|i| ins.get(i).is_some());
    let gates = rnn.cell.gates();
    // Two states (hidden, cell) of one row, and the gates' sums: input and recurrent apart for GRU.
    let scratch = (2 + 2 * gates) * s.hidden * size_of::<f32>();
    let outputs = if rnn.cell == Cell::Lstm { 3 } else { 2 };
    let run = move |io: &mut crate::exec::io::Io<'_>| {
        let optional = |i: usize| if present[i] { io.input::<f32>(i) } else { &[] };
        let (x, w, r) = (io.input::<f32>(0), io.input::<f32>(1), io.input::<f32>(2));
        let (bias, h0, c0, peephole) = (optional(3), optional(5), optional(6), optional(7));
        let lengths = if present[4] { io.input::<i32>(4) } else { &[] };
        let (all, last) = (io.take::<f32>(0), io.take::<f32>(1));
        let last_cell = if outputs == 3 { io.take::<f32>(2) } else { &mut [] };
        let (state, sums) = io.take::<f32>(outputs).split_at_mut(2 * s.hidden);
        let (h, c) = state.split_at_mut(s.hidden);
        all.fill(0.0);
        let width = gates * s.hidden;
        for d in 0..s.directions {
            let (w, r) = (&w[d * width * s.features..], &r[d * width * s.hidden..]);
            for b in 0..s.batch {
                let row = if rnn.batch_first { b * s.directions + d } else { d * s.batch + b } * s.hidden;
                let initial = |from: &[f32], to: &mut [f32]| match from.get(row..row + s.hidden) {
                    Some(from) => to.copy_from_slice(from),
                    None => to.fill(0.0),
                };
                initial(h0, h);
                initial(c0, c);
                let length =
                    lengths.get(b).map_or(s.length, |length| (*length).max(0) as usize).min(s.length);
                for step in 0..length {
                    let t = if rnn.directions[d] { length - 1 - step } else { step };
                    let at = if rnn.batch_first { b * s.length + t } else { t * s.batch + b };
                    let x = &x[at * s.features..(at + 1) * s.features];
                    let (input, recurrent) = sums.split_at_mut(width);
                    for g in 0..width {
                        let bias = |half: usize| bias.get((2 * d + half) * width + g).copied().unwrap_or(0.0);
                        input[g] = dot(x, &w[g * s.features..], 0.0) + bias(0);
                        recurrent[g] = dot(h, &r[g * s.hidden..], 0.0) + bias(1);
                    }
                    let act = rnn.activations[d];
                    let p = peephole.get(d * 3 * s.hidden..).unwrap_or_default();
                    match rnn.cell {
                        Cell::Lstm => lstm(&rnn, act, p, input, recurrent, h, c),
                        Cell::Gru { linear_before_reset } => {
                            let bias = bias.get((2 * d + 1) * width..).unwrap_or_default();
                            gru(&rnn, act, linear_before_reset, r, bias, input, recurrent, h, c);
                        }
                        Cell::Rnn => {
                            for i in 0..s.hidden {
                                h[i] = act[0].of(clip(input[i] + recurrent[i], rnn.clip));
                            }
                        }
                    }
                    let to = if rnn.batch_first {
                        ((b * s.length + t) * s.directions + d) * s.hidden
                    } else {
                        ((t * s.directions + d) * s.batch + b) * s.hidden
                    };
                    if let Some(out) = all.get_mut(to..to + s.hidden) {
                        out.copy_from_slice(h);
                    }
                }
                if let Some(out) = last.get_mut(row..row + s.hidden) {
                    out.copy_from_slice(h);
                }
                if let Some(out) = last_cell.get_mut(row..row + s.hidden) {
                    out.copy_from_slice(c);
                }
            }
        }
        Ok(())
    };
    Ok(Lowered::new("recurrent", run).with_scratch(scratch))
}

fn dot(x: &[f32], w: &[f32], from: f32) -> f32 {
    x.iter().zip(w).fold(from, |sum, (x, w)| x.mul_add(*w, sum))
}

fn clip(x: f32, bound: Option<f32>) -> f32 {
    match bound {
        Some(bound) if x > bound => bound,
        Some(bound) if x < -bound => -bound,
        _ => x,
    }
}

fn lstm(
    rnn: &Rnn,
    act: [Activation; 3],
    peephole: &[f32],
    input: &[f32],
    recurrent: &[f32],
    h: &mut [f32],
    c: &mut [f32],
) {
    let n = h.len();
    for i in 0..n {
        let sum = |gate: usize| input[gate * n + i] + recurrent[gate * n + i];
        let peep = |gate: usize, cell: f32| peephole.get(gate * n + i).map_or(0.0, |p| p * cell);
        let gate_in = act[0].of(clip(sum(0) + peep(0, c[i]), rnn.clip));
        let forget =
            if rnn.input_forget { 1.0 - gate_in } else { act[0].of(clip(sum(2) + peep(2, c[i]), rnn.clip)) };
        let candidate = act[1].of(clip(sum(3), rnn.clip));
        c[i] = forget * c[i] + gate_in * candidate;
        let gate_out = act[0].of(clip(sum(1) + peep(1, c[i]), rnn.clip));
        h[i] = gate_out * act[2].of(c[i]);
    }
}

#[allow(clippy::too_many_arguments, reason = "the operands of one step")]
fn gru(
    rnn: &Rnn,
    act: [Activation; 3],
    linear_before_reset: bool,
    r: &[f32],
    bias: &[f32],
    input: &mut [f32],
    recurrent: &mut [f32],
    h: &mut [f32],
    spare: &mut [f32],
) {
    let n = h.len();
    let (update, rest) = input.split_at_mut(n);
    let (reset, candidate) = rest.split_at_mut(n);
    for i in 0..n {
        update[i] = act[0].of(clip(update[i] + recurrent[i], rnn.clip));
        reset[i] = act[0].of(clip(reset[i] + recurrent[n + i], rnn.clip));
    }
    if !linear_before_reset {
        for i in 0..n {
            spare[i] = reset[i] * h[i];
        }
        for i in 0..n {
            let bias = bias.get(2 * n + i).copied().unwrap_or(0.0);
            recurrent[2 * n + i] = dot(spare, &r[(2 * n + i) * n..], 0.0) + bias;
        }
    }
    for i in 0..n {
        let part = if linear_before_reset { reset[i] * recurrent[2 * n + i] } else { recurrent[2 * n + i] };
        let value = act[1].of(clip(candidate[i] + part, rnn.clip));
        h[i] = (1.0 - update[i]) * value + update[i] * h[i];
    }
}

#[cfg(test)]
mod tests {
    use super::{Sizes, in_order};

    #[test]
    fn runs_take_every_step_once_in_order() {
        for (length, batch) in [(0, 4), (1, 1), (32, 1), (33, 8), (70, 1), (7, 65), (5, 0), (130, 30)] {
            let sizes = Sizes { length, batch, features: 3, hidden: 2, directions: 2 };
            for backwards in [false, true] {
                let runs: Vec<_> = sizes.runs(backwards).collect();
                assert!(runs.iter().all(|run| (1..=sizes.steps_at_once()).contains(&run.len())));
                let steps = runs.into_iter().flat_map(|run| in_order(run, backwards));
                let expected = (0..length).map(|step| if backwards { length - 1 - step } else { step });
                assert!(steps.eq(expected), "{length} {batch} {backwards}");
            }
            let rows = sizes.steps_at_once() * batch;
            assert!(rows <= 64.max(batch), "{length} {batch}: {rows} rows");
        }
    }
}
