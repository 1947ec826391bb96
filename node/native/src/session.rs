//! Sessions: run a program, one batch at a time, in an arena of their own.
//!
//! Invariant: running shapes that were run before allocates nothing.

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
    arena: AlignedBuf,
    /// Copies of inputs that came unaligned.
    copies: Vec<AlignedBuf>,
}

impl Session {
    /// A session; its arena grows with the plans that it runs.
    pub fn new(program: Arc<Program>) -> Self {
        let copies = program.inputs().iter().map(|_| AlignedBuf::default()).collect();
        Self { program, ready: Vec::new(), arena: AlignedBuf::default(), copies }
    }

    /// The program.
    pub fn program(&self) -> &Arc<Program> {
        &self.program
    }

    /// Bytes of the arena so far.
    pub fn arena_bytes(&self) -> usize {
        self.arena.len()
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
        let bucket = match self.find(inputs) {
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
        match &self.ready[bucket].bucket {
            Bucket::Dynamic => self.interpret(inputs, sink, cancelled),
            Bucket::Planned(plan) => {
                let plan = Arc::clone(plan);
                self.execute(&plan, inputs, sink, cancelled)
            }
        }
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
        if let Bucket::Planned(plan) = &bucket
            && plan.arena_bytes > self.arena.len()
        {
            self.arena = AlignedBuf::zeroed(plan.arena_bytes);
        }
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
        plan: &Plan,
        inputs: &[Input<'_>],
        sink: &mut dyn Sink,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(), RunError> {
        let Self { program, arena, copies, .. } = self;
        for (copy, input) in copies.iter_mut().zip(inputs).filter(|(_, input)| !aligned(input.bytes)) {
            if copy.len() < input.bytes.len() {
                *copy = AlignedBuf::zeroed(input.bytes.len());
            }
            copy.bytes_mut()[..input.bytes.len()].copy_from_slice(input.bytes);
        }
        let slice = |i: usize| match aligned(inputs[i].bytes) {
            true => inputs[i].bytes,
            false => &copies[i].bytes()[..inputs[i].bytes.len()],
        };
        let mut inline: [&[u8]; INPUTS_INLINE] = [&[]; INPUTS_INLINE];
        let list: Vec<&[u8]>;
        let slices: &[&[u8]] = if inputs.len() <= INPUTS_INLINE {
            inline.iter_mut().take(inputs.len()).enumerate().for_each(|(i, slot)| *slot = slice(i));
            &inline[..inputs.len()]
        } else {
            list = (0..inputs.len()).map(slice).collect();
            &list
        };
        let memory = arena.bytes_mut();
        for step in &plan.steps {
            if cancelled() {
                return Err(RunError::Cancelled);
            }
            let (gaps, mut cut) = carve(memory, &step.writes);
            let outs: [&mut [u8]; OUTS_MAX] =
                std::array::from_fn(|i| std::mem::take(&mut cut[step.slots[i]]));
            let ins = Ins::Planned { gaps, locs: &step.ins, consts: &plan.consts, inputs: slices };
            (step.run)(&mut Io { ins, outs, cancelled }).map_err(|source| match source {
                crate::error::OpError::Cancelled => RunError::Cancelled,
                source => RunError::Op { node: step.name.clone(), op: step.op.to_owned(), source },
            })?;
        }
        for ((at, out), port) in plan.outputs.iter().zip(program.outputs()) {
            let bytes = match at {
                OutputAt::Arena(range) => &memory[range.clone()],
                OutputAt::Const(at) => plan.consts[*at].bytes(),
                OutputAt::Input(index, range) => &slices[*index][range.clone()],
            };
            sink.output(&port.name, out.dtype, &out.shape, bytes);
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
        let outputs = interpret::graph(program.graph(), tensors, context)?;
        for (tensor, port) in outputs.iter().zip(program.outputs()) {
            sink.output(&port.name, tensor.dtype(), tensor.shape(), tensor.bytes());
        }
        Ok(())
    }
}

fn aligned(bytes: &[u8]) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(ALIGN_BYTES)
}
