//! Sessions: run a program, one batch at a time, in an arena that the program lends.
//!
//! Invariant: running shapes that were run before allocates nothing, unless more sessions run at once than
//! ever did, or more than [`SHAPES_MAX`](crate::program::SHAPES_MAX) other shapes came in between.

use std::sync::{Arc, Weak};

use crate::error::RunError;
use crate::exec::interpret;
use crate::exec::io::{Ins, Io, OUTS_MAX, Rows, RunInputs, aligned, carve};
use crate::graph::ir::Dim;
use crate::plan::schedule::{OutputAt, Plan};
use crate::program::{Bucket, Program};
use crate::tensor::{AlignedBuf, DType, NoMemory, Tensor, bytes_of};

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

/// A bucket that this session ran, as long as the program keeps it.
struct Ready {
    shapes: Vec<Vec<usize>>,
    bucket: Weak<Bucket>,
}

/// Runs a program. One thread uses it at a time.
pub struct Session {
    program: Arc<Program>,
    ready: Vec<Ready>,
    /// Bytes of the largest arena so far.
    arena_bytes: usize,
    /// Copies of inputs that came unaligned.
    copies: Vec<AlignedBuf>,
}

impl Session {
    /// A session. While it does not run, it holds the names of the plans that it ran, and copies of unaligned
    /// inputs.
    pub fn new(program: Arc<Program>) -> Self {
        let copies = program.inputs().iter().map(|_| AlignedBuf::default()).collect();
        Self { program, ready: Vec::new(), arena_bytes: 0, copies }
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// Bytes of the largest arena that its runs took so far.
    pub fn arena_bytes(&self) -> usize {
        self.arena_bytes
    }

    /// Runs a batch. `inputs` are in the order of the model; outputs go to `sink`; `cancelled` is asked
    /// between nodes.
    ///
    /// # Errors
    /// [`RunError`]; after any error the session can run again.
    pub fn run(
        &mut self,
        inputs: &[Input<'_>],
        sink: &mut dyn Sink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), RunError> {
        let bucket = match self.find(inputs) {
            Some(bucket) => bucket,
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
        let bytes = match &*bucket {
            Bucket::Dynamic => {
                let done = self.interpret(inputs, sink, cancelled);
                // Also after a run that failed, or took a branch for the first time: what it packed is held
                // from now on.
                self.program.condense(None);
                return done;
            }
            Bucket::Planned(plan) => plan.arena_bytes,
            Bucket::Parts(parts) => parts.arena_bytes,
        };
        self.arena_bytes = self.arena_bytes.max(bytes);
        let program = Arc::clone(&self.program);
        let mut arena = program.take_arena(bytes)?;
        let done = self.execute(&bucket, arena.bytes_mut(), inputs, sink, cancelled);
        program.give_arena(arena);
        done
    }

    fn find(&self, inputs: &[Input<'_>]) -> Option<Arc<Bucket>> {
        let fits = |ready: &&Ready| {
            ready.shapes.len() == inputs.len()
                && ready.shapes.iter().zip(inputs).all(|(shape, input)| shape == input.shape)
        };
        let bucket = self.ready.iter().find(fits)?.bucket.upgrade()?;
        self.program.runs(&bucket);
        Some(bucket)
    }

    /// Checks shapes against the declaration, and gets their bucket.
    fn prepare(&mut self, inputs: &[Input<'_>]) -> Result<Arc<Bucket>, RunError> {
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
            let bytes_max = self.program.limits().arena_bytes_max;
            let bytes = interpret::extent(input.dtype, input.shape);
            if fits && bytes > bytes_max.into() {
                return Err(RunError::Arena { bytes: u64::try_from(bytes).unwrap_or(u64::MAX), bytes_max });
            }
            if !fits {
                let (name, expected) = (port.name.clone(), port.shape_text());
                return Err(RunError::InputShape { name, expected, found: input.shape.to_vec() });
            }
        }
        let shapes: Vec<Vec<usize>> = inputs.iter().map(|input| input.shape.to_vec()).collect();
        let bucket = self.program.bucket(&shapes)?;
        for (copy, input) in self.copies.iter_mut().zip(inputs) {
            if input.bytes.len() > copy.len() && !aligned(input.bytes) {
                *copy = AlignedBuf::try_zeroed(input.bytes.len())?;
            }
        }
        // What the program let go has gone here too.
        self.ready.retain(|ready| ready.bucket.strong_count() > 0 && ready.shapes != shapes);
        self.ready.push(Ready { shapes, bucket: Arc::downgrade(&bucket) });
        Ok(bucket)
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
                *copy = AlignedBuf::try_zeroed(input.bytes.len())?;
            }
            copy.bytes_mut()[..input.bytes.len()].copy_from_slice(input.bytes);
        }
        let whole = RunInputs { inputs, copies: &copies[..], rows: None };
        let ports = program.outputs();
        match bucket {
            Bucket::Dynamic => {}
            Bucket::Planned(plan) => {
                steps(plan, memory, whole, cancelled)?;
                for ((at, out), port) in plan.outputs.iter().zip(ports) {
                    sink.output(&port.name, out.dtype, &out.shape, output(plan, at, memory, whole));
                }
            }
            Bucket::Parts(parts) => {
                let part_bytes = parts.part_bytes();
                let (arena, gathered) = memory.split_at_mut(part_bytes);
                let mut row = 0;
                for size in &parts.sizes {
                    for _ in 0..size.count {
                        let rows = Rows { from: row, count: size.rows, all: parts.rows };
                        let part = RunInputs { rows: Some(rows), ..whole };
                        steps(&size.plan, arena, part, cancelled)?;
                        for ((at, _), (start, out)) in size.plan.outputs.iter().zip(&parts.outputs) {
                            let bytes = output(&size.plan, at, arena, part);
                            gathered[start - part_bytes..][rows.of(out.bytes())].copy_from_slice(bytes);
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
        let tensor = |input: &Input<'_>| {
            let copy = AlignedBuf::try_copied(input.bytes)?;
            let tensor = Tensor::from_buf(input.dtype, input.shape.to_vec(), copy);
            Ok(tensor.expect("the bytes were found to be as many as the shape says"))
        };
        let tensors = inputs.iter().map(tensor).collect::<Result<_, NoMemory>>()?;
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
    inputs: RunInputs<'_>,
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
fn output<'a>(plan: &'a Plan, at: &OutputAt, memory: &'a [u8], inputs: RunInputs<'a>) -> &'a [u8] {
    match at {
        OutputAt::Arena(range) => &memory[range.clone()],
        OutputAt::Const(at) => plan.consts[*at].bytes(),
        OutputAt::Input(index, range) => &inputs.bytes(*index)[range.clone()],
    }
}

#[cfg(test)]
mod tests;
