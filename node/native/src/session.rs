//! Sessions: run a program, one batch at a time, in an arena that the program lends.
//!
//! Invariant: running shapes that were run before allocates nothing, unless more sessions run at once than ever did.

use std::sync::Arc;

use crate::error::RunError;
use crate::exec::interpret;
use crate::exec::io::{Ins, Io, OUTS_MAX, carve};
use crate::graph::ir::Dim;
use crate::plan::schedule::{OutputAt, Plan};
use crate::program::{Bucket, PLANS_MAX, Program};
use crate::tensor::{ALIGN_BYTES, AlignedBuf, DType, Tensor, bytes_of};

/// An input of a run, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: &'a [usize],
    /// Little-endian bytes. Aligned to 64 bytes they are read in place; otherwise they are copied.
    pub bytes: &'a [u8],
}

impl<'a> From<&'a Tensor> for Input<'a> {
    fn from(tensor: &'a Tensor) -> Self {
        Self { dtype: tensor.dtype(), shape: tensor.shape(), bytes: tensor.bytes() }
    }
}

/// Takes the outputs of a run, in the order of the model.
pub trait Sink {
    /// Takes one; the bytes are valid during the call.
    fn output(&mut self, name: &str, dtype: DType, shape: &[usize], bytes: &[u8]);
}

/// Gathers copies.
impl Sink for Vec<Tensor> {
    fn output(&mut self, _name: &str, dtype: DType, shape: &[usize], bytes: &[u8]) {
        self.push(Tensor::of_dtype(dtype, shape, bytes));
    }
}

/// Inputs of a run whose slices fit an array on the stack; models with more take a list.
const INPUTS_INLINE: usize = 16;

/// A bucket that this session ran.
struct Ready {
    shapes: Vec<Vec<usize>>,
    bucket: Bucket,
}

/// Runs a program. One thread uses it at a time.
pub struct Session {
    program: Arc<Program>,
    ready: Vec<Ready>,
    /// Copies of inputs that came unaligned.
    copies: Vec<AlignedBuf>,
}

impl Session {
    /// A session. While it does not run, it holds the names of the plans that it ran and copies of unaligned inputs.
    pub fn new(program: Arc<Program>) -> Self {
        let copies = program.inputs().iter().map(|_| AlignedBuf::default()).collect();
        Self { program, ready: Vec::new(), copies }
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// Bytes of the largest arena that its runs took so far.
    pub fn arena_bytes(&self) -> usize {
        let bytes = self.ready.iter().map(|ready| match &ready.bucket {
            Bucket::Planned(plan) => plan.arena_bytes,
            Bucket::Parts(parts) => parts.arena_bytes,
            Bucket::Dynamic => 0,
        });
        bytes.max().unwrap_or(0)
    }

    /// Runs a batch. `inputs` are in the order of the model; outputs go to `sink`; `cancelled` is asked between nodes.
    ///
    /// # Errors
    /// [`RunError`]; after any error the session can run again.
    pub fn run(
        &mut self,
        inputs: &[Input<'_>],
        sink: &mut dyn Sink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), RunError> {
        let known = self.find(inputs);
        let bucket = match known {
            Some(at) => at,
            None => self.prepare(inputs)?,
        };
        let types = inputs.iter().zip(self.program.inputs());
        for (input, port) in types {
            let (name, expected, found) = (&port.name, port.dtype, input.dtype);
            if expected != found {
                return Err(RunError::InputDType { name: name.clone(), expected, found });
            }
            let expected = bytes_of(input.dtype, input.shape).unwrap_or(usize::MAX);
            let found = input.bytes.len();
            if expected != found {
                return Err(RunError::InputBytes { name: name.clone(), expected, found });
            }
        }
        let bucket = self.ready[bucket].bucket.clone();
        let bytes = match &bucket {
            Bucket::Dynamic => {
                self.interpret(inputs, sink, cancelled)?;
                if known.is_none() {
                    self.program.condense(None);
                }
                return Ok(());
            }
            Bucket::Planned(plan) => plan.arena_bytes,
            Bucket::Parts(parts) => parts.arena_bytes,
        };
        let program = Arc::clone(&self.program);
        let mut arena = program.take_arena(bytes);
        let done = self.execute(&bucket, arena.bytes_mut(), inputs, sink, cancelled);
        program.give_arena(arena);
        done
    }

    fn find(&self, inputs: &[Input<'_>]) -> Option<usize> {
        self.ready.iter().position(|ready| {
            ready.shapes.len() == inputs.len()
                && ready.shapes.iter().zip(inputs).all(|(shape, input)| shape == input.shape)
        })
    }

    /// Checks shapes against the declaration, and gets their bucket.
    fn prepare(&mut self, inputs: &[Input<'_>]) -> Result<usize, RunError> {
        let ports = self.program.inputs();
        if inputs.len() != ports.len() {
            return Err(RunError::InputCount { expected: ports.len(), found: inputs.len() });
        }
        let mut sizes: Vec<(&str, usize)> = Vec::new();
        for (port, input) in ports.iter().zip(inputs) {
            let dims = port.dims.as_deref();
            let mut fits = dims.is_none_or(|dims| dims.len() == input.shape.len());
            for (dim, size) in dims.unwrap_or_default().iter().zip(input.shape) {
                fits &= match dim {
                    Dim::Const(expected) => expected == size,
                    Dim::Sym(name) if name.is_empty() => true,
                    Dim::Sym(name) => match sizes.iter().find(|(known, _)| known == name) {
                        Some((_, known)) => known == size,
                        None => {
                            sizes.push((name, *size));
                            true
                        }
                    },
                };
            }
            let bytes_max = u128::from(self.program.limits().arena_bytes_max);
            if !fits || interpret::extent(input.dtype, input.shape) > bytes_max {
                let (name, expected) = (port.name.clone(), port.shape_text());
                return Err(RunError::InputShape { name, expected, found: input.shape.to_vec() });
            }
        }
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|input| input.shape.to_vec()).collect();
        let bucket = self.program.bucket(&shapes)?;
        for (copy, input) in self.copies.iter_mut().zip(inputs) {
            if input.bytes.len() > copy.len() && !aligned(input.bytes) {
                *copy = AlignedBuf::zeroed(input.bytes.len());
            }
        }
        if self.ready.len() == PLANS_MAX {
            self.ready.remove(0);
        }
        self.ready.push(Ready { shapes, bucket });
        Ok(self.ready.len() - 1)
    }

    fn execute(
        &mut self,
        bucket: &Bucket,
        memory: &mut [u8],
        inputs: &[Input<'_>],
        sink: &mut dyn Sink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), RunError> {
        let Self { program, copies, .. } = self;
        for (copy, input) in copies.iter_mut().zip(inputs).filter(|(_, input)| !aligned(input.bytes)) {
            if copy.len() < input.bytes.len() {
                *copy = AlignedBuf::zeroed(input.bytes.len());
            }
            copy.bytes_mut()[..input.bytes.len()].copy_from_slice(input.bytes);
        }
        let whole = |i: usize| match aligned(inputs[i].bytes) {
            true => inputs[i].bytes,
            false => &copies[i].bytes()[..inputs[i].bytes.len()],
        };
        let mut inline: [&[u8]; INPUTS_INLINE] = [&[]; INPUTS_INLINE];
        let mut list: Vec<&[u8]>;
        let slices: &mut [&[u8]] = if inputs.len() <= INPUTS_INLINE {
            &mut inline[..inputs.len()]
        } else {
            list = vec![&[]; inputs.len()];
            &mut list
        };
        let ports = program.outputs();
        match bucket {
            Bucket::Dynamic => {}
            Bucket::Planned(plan) => {
                slices.iter_mut().enumerate().for_each(|(i, slice)| *slice = whole(i));
                steps(plan, memory, slices, cancelled)?;
                for ((at, out), port) in plan.outputs.iter().zip(ports) {
                    sink.output(&port.name, out.dtype, &out.shape, output(plan, at, memory, slices));
                }
            }
            Bucket::Parts(parts) => {
                let part_bytes = parts.part_bytes();
                let (arena, gathered) = memory.split_at_mut(part_bytes);
                // The rows from `row` on of something that has all rows, of which there are `rows`.
                let range = |bytes: usize, row: usize, rows: usize| {
                    let each = bytes / parts.rows;
                    row * each..(row + rows) * each
                };
                let mut row = 0;
                for size in &parts.sizes {
                    for _ in 0..size.count {
                        for (i, slice) in slices.iter_mut().enumerate() {
                            let all = whole(i);
                            *slice = &all[range(all.len(), row, size.rows)];
                        }
                        steps(&size.plan, arena, slices, cancelled)?;
                        for ((at, _), (start, out)) in size.plan.outputs.iter().zip(&parts.outputs) {
                            let bytes = output(&size.plan, at, arena, slices);
                            gathered[start - part_bytes..][range(out.bytes(), row, size.rows)]
                                .copy_from_slice(bytes);
                        }
                        row += size.rows;
                    }
                }
                for ((start, out), port) in parts.outputs.iter().zip(ports) {
                    let from = start - part_bytes;
                    sink.output(&port.name, out.dtype, &out.shape, &gathered[from..from + out.bytes()]);
                }
            }
        }
        Ok(())
    }

    fn interpret(
        &self,
        inputs: &[Input<'_>],
        sink: &mut dyn Sink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), RunError> {
        let program = &self.program;
        let tensors =
            inputs.iter().map(|input| Tensor::of_dtype(input.dtype, input.shape, input.bytes)).collect();
        let bytes_max = program.limits().arena_bytes_max;
        let context = interpret::Context { bytes_max, cancelled, target: program.target() };
        let outputs = interpret::graph(&program.graph(), tensors, context)?;
        for (tensor, port) in outputs.iter().zip(program.outputs()) {
            sink.output(&port.name, tensor.dtype(), tensor.shape(), tensor.bytes());
        }
        Ok(())
    }
}

/// Runs the steps of a plan.
fn steps(
    plan: &Plan,
    memory: &mut [u8],
    inputs: &[&[u8]],
    cancelled: &dyn Fn() -> bool,
) -> Result<(), RunError> {
    for step in &plan.steps {
        if cancelled() {
            return Err(RunError::Cancelled);
        }
        let (gaps, mut cut) = carve(memory, &step.writes);
        let outs: [&mut [u8]; OUTS_MAX] = std::array::from_fn(|i| std::mem::take(&mut cut[step.slots[i]]));
        let ins = Ins::Planned { gaps, locs: &step.ins, consts: &plan.consts, inputs };
        (step.run)(&mut Io { ins, outs, cancelled }).map_err(|source| match source {
            crate::error::OpError::Cancelled => RunError::Cancelled,
            source => RunError::Op { node: step.name.clone(), op: step.op.to_owned(), source },
        })?;
    }
    Ok(())
}

/// The bytes of an output after a run.
fn output<'a>(plan: &'a Plan, at: &OutputAt, memory: &'a [u8], inputs: &[&'a [u8]]) -> &'a [u8] {
    match at {
        OutputAt::Arena(range) => &memory[range.clone()],
        OutputAt::Const(at) => plan.consts[*at].bytes(),
        OutputAt::Input(index, range) => &inputs[*index][range.clone()],
    }
}

fn aligned(bytes: &[u8]) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(ALIGN_BYTES)
}

#[cfg(test)]
mod tests;
