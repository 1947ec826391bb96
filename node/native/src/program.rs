//! A compiled model: the graph after the passes that need no shapes, and the plans made of it so far.
//!
//! A program is shared by the sessions of a process: plans are made once, and weights are packed once. Sessions that do not
//! run hold no memory for results: a run takes an arena of the program and gives it back.

use std::sync::{Arc, Mutex, PoisonError};

use roost_kernels::{Isa, IsaError, Kernels};

use crate::error::{ImportError, OpError, RunError};
use crate::graph::ir::{Dim, Graph, Port};
use crate::onnx::import::{Limits, Model};
use crate::ops::Target;
use crate::ops::fact::Out;
use crate::pass;
use crate::plan::bind::bind;
use crate::plan::condense::{condense, hold_forms};
use crate::plan::schedule::{Plan, schedule};
use crate::tensor::{ALIGN_BYTES, AlignedBuf};

/// Plans kept per program. Batch sizes are few; a plan is some tens of kilobytes.
pub const PLANS_MAX: usize = 16;

/// Arenas kept per program for the next run. As many are in use as sessions run at once, about one per core.
const ARENAS_KEPT: usize = 64;

/// How a program is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Options {
    /// The instruction set; the machine's best where none is asked for.
    pub isa: Option<Isa>,
}

/// Why a model does not compile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// The instruction set is not there.
    #[error(transparent)]
    Isa(#[from] IsaError),
    /// The model.
    #[error(transparent)]
    Import(#[from] ImportError),
}

/// What serves one tuple of input shapes.
#[derive(Clone)]
pub enum Bucket {
    /// A plan.
    Planned(Arc<Plan>),
    /// A plan for some of the rows, run several times.
    Parts(Arc<Parts>),
    /// Shapes inside depend on data: the interpreter runs it.
    Dynamic,
}

/// A batch whose rows do not meet, cut into parts that caches hold.
pub struct Parts {
    /// The parts in the order of their rows: larger ones, and where the batch does not divide evenly, some of a row less.
    pub sizes: Vec<PartSize>,
    /// Rows of the whole batch.
    pub rows: usize,
    /// Outputs of the whole batch: from which byte, type, shape. They lie behind the arena of the parts.
    pub outputs: Vec<(usize, Out)>,
    /// Bytes of the largest part's arena and all outputs.
    pub arena_bytes: usize,
}

/// Parts of one size.
pub struct PartSize {
    /// The plan of such a part.
    pub plan: Arc<Plan>,
    /// Rows of a part.
    pub rows: usize,
    /// How many parts.
    pub count: usize,
}

impl Parts {
    /// How many parts there are.
    pub fn count(&self) -> usize {
        self.sizes.iter().map(|size| size.count).sum()
    }

    /// The plan of the largest parts.
    pub fn plan(&self) -> &Arc<Plan> {
        &self.sizes[0].plan
    }

    /// Bytes of the arena that each part runs in.
    pub fn part_bytes(&self) -> usize {
        self.sizes.iter().map(|size| size.plan.arena_bytes).max().unwrap_or(0)
    }
}

/// An arena above this is worth cutting: a common L2.
const PART_BYTES_MAX: usize = 1 << 20;

/// A compiled model.
pub struct Program {
    /// Replaced by one that takes less memory when there is a plan; never by one that computes anything else.
    graph: Mutex<Arc<Graph>>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    target: Target,
    limits: Limits,
    batch_variant: Option<String>,
    plans: Mutex<Vec<(Vec<Vec<usize>>, Bucket)>>,
    /// Arenas that no session is running in.
    arenas: Mutex<Vec<AlignedBuf>>,
}

impl Program {
    /// Compiles a model. Where the declared shapes are all fixed, its plan is made too.
    ///
    /// # Errors
    /// [`CompileError::Isa`] for an instruction set beyond the machine; [`CompileError::Import`] where an operator has no
    /// kernel for its types.
    pub fn compile(model: Model, options: Options) -> Result<Arc<Self>, CompileError> {
        let kernels = match options.isa {
            Some(isa) => Kernels::of(isa)?,
            None => Kernels::best(),
        };
        let target = Target { kernels };
        let Model { mut graph, inputs, outputs, limits, .. } = model;
        pass::compile(&mut graph, limits, target);
        let batch_variant = pass::batch::variant(&graph);
        let (plans, graph) = (Mutex::new(Vec::new()), Mutex::new(Arc::new(graph)));
        let arenas = Mutex::new(Vec::with_capacity(ARENAS_KEPT));
        let program = Self { graph, inputs, outputs, target, limits, batch_variant, plans, arenas };
        program.probe()?;
        Ok(Arc::new(program))
    }

    /// Plans for the declared shapes, with one for every free dimension, to learn now what has no kernel. Shapes that do
    /// not fit each other are no error: nobody said that one is a size that the model takes.
    fn probe(&self) -> Result<(), ImportError> {
        let size = |dim: &Dim| match dim {
            Dim::Const(size) => *size,
            Dim::Sym(_) => 1,
        };
        let shapes: Option<Vec<Vec<usize>>> =
            self.inputs.iter().map(|port| Some(port.dims.as_ref()?.iter().map(size).collect())).collect();
        let Some(shapes) = shapes else { return Ok(()) };
        match self.bucket(&shapes) {
            Err(RunError::Op { node, op, source: OpError::Unsupported(reason) }) => {
                Err(ImportError::Unsupported(vec![crate::error::UnsupportedOp { op, node, reason }]))
            }
            Err(RunError::Op { node, op, source: source @ OpError::DType { .. } }) => {
                Err(ImportError::Op { node, op, source })
            }
            _ => Ok(()),
        }
    }

    /// Inputs as the model declares them.
    pub fn inputs(&self) -> &[Port] {
        &self.inputs
    }

    /// Outputs as the model declares them.
    pub fn outputs(&self) -> &[Port] {
        &self.outputs
    }

    /// The compiled graph, before it is bound to shapes.
    pub fn graph(&self) -> Arc<Graph> {
        Arc::clone(&self.graph.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The kernels that it runs on.
    pub fn target(&self) -> Target {
        self.target
    }

    /// The limits that it runs under.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Why a row's result may depend on the rows beside it, if it may.
    pub fn batch_variant(&self) -> Option<&str> {
        self.batch_variant.as_deref()
    }

    /// What serves these input shapes: a plan that is kept, or a new one.
    ///
    /// # Errors
    /// [`RunError::Op`] where shapes do not fit the graph, [`RunError::Arena`].
    pub fn bucket(&self, shapes: &[Vec<usize>]) -> Result<Bucket, RunError> {
        let lock = || self.plans.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, bucket)) = lock().iter().find(|(known, _)| known == shapes) {
            return Ok(bucket.clone());
        }
        let bucket = match self.plan(shapes) {
            Ok((plan, most)) => {
                self.condense(Some(&plan));
                match most.and_then(|most| self.parts(&plan, most, shapes)) {
                    Some(parts) => Bucket::Parts(Arc::new(parts)),
                    None => Bucket::Planned(Arc::new(plan)),
                }
            }
            Err(RunError::Op { source: OpError::Dynamic(_), .. }) => {
                self.condense(None);
                hold_forms(&self.graph());
                Bucket::Dynamic
            }
            Err(error) => return Err(error),
        };
        let mut plans = lock();
        if plans.len() == PLANS_MAX {
            plans.remove(0);
        }
        plans.push((shapes.to_vec(), bucket.clone()));
        Ok(bucket)
    }

    /// Frees what is no longer read, now that there is this plan, or that the interpreter has run.
    pub(crate) fn condense(&self, plan: Option<&Plan>) {
        // Under the lock: of two sessions that free at once, one would bring back what the other freed.
        let mut graph = self.graph.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(freed) = condense(&graph, plan) {
            *graph = Arc::new(freed);
        }
    }

    /// Memory of at least so many bytes for a run, with anything in it.
    pub(crate) fn take_arena(&self, bytes: usize) -> AlignedBuf {
        let mut arenas = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that fits. Where none does, the smallest of all is replaced, so that no more are kept than runs were under
        // way at once.
        let sizes = || arenas.iter().map(|arena| arena.len()).enumerate();
        let fitting = sizes().filter(|(_, len)| *len >= bytes).min_by_key(|(_, len)| *len);
        let at = fitting.or_else(|| sizes().min_by_key(|(_, len)| *len)).map(|(at, _)| at);
        let taken = at.map(|at| arenas.swap_remove(at));
        drop(arenas);
        taken.filter(|arena| arena.len() >= bytes).unwrap_or_else(|| AlignedBuf::zeroed(bytes))
    }

    /// Gives memory back after a run.
    pub(crate) fn give_arena(&self, arena: AlignedBuf) {
        let mut arenas = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        if arenas.len() < ARENAS_KEPT {
            arenas.push(arena);
        }
    }

    /// The plan for these shapes; and, where its rows are worth taking apart, how many a part should have at most.
    fn plan(&self, shapes: &[Vec<usize>]) -> Result<(Plan, Option<usize>), RunError> {
        let bound = self.bound(shapes)?;
        let plan = schedule(&bound, self.target, self.limits)?;
        let rows = shapes.first().and_then(|shape| shape.first()).copied().unwrap_or(1);
        let free = |port: &Port| matches!(port.dims.as_deref(), Some([Dim::Sym(_), ..]));
        let constants = bound.values.iter().filter(|value| value.constant.is_some());
        let weights: usize = constants.filter_map(|value| value.out.as_ref()).map(Out::bytes).sum();
        // Each part reads all weights: that pays where there are more results than weights.
        let worth = rows > 1 && plan.arena_bytes > PART_BYTES_MAX.max(weights);
        if !worth
            || pass::rows::counts_rows(&self.graph())
            || !self.inputs.iter().all(free)
            || !pass::rows::apart(&bound, rows)
        {
            return Ok((plan, None));
        }
        let most = PART_BYTES_MAX / (plan.arena_bytes / rows).max(1);
        Ok((plan, Some(most.clamp(1, rows - 1))))
    }

    /// The batch in parts of `most` rows at most; `None` where it cannot be cut, or nothing is gained.
    fn parts(&self, whole: &Plan, most: usize, shapes: &[Vec<usize>]) -> Option<Parts> {
        let rows = *shapes.first()?.first()?;
        let count = rows.div_ceil(most);
        // Sizes that differ by a row at most: a last part of a few rows would read all weights for them.
        let (least, larger) = (rows / count, rows % count);
        let mut sizes = Vec::with_capacity(2);
        for (rows, count) in [(least + 1, larger), (least, count - larger)] {
            if count > 0 {
                let plan = Arc::new(self.part(whole, rows, shapes)?);
                self.condense(Some(&plan));
                sizes.push(PartSize { plan, rows, count });
            }
        }
        let mut parts =
            Parts { sizes, rows, outputs: Vec::with_capacity(whole.outputs.len()), arena_bytes: 0 };
        parts.arena_bytes = parts.part_bytes();
        for (_, out) in &whole.outputs {
            parts.outputs.push((parts.arena_bytes, out.clone()));
            parts.arena_bytes += out.bytes().next_multiple_of(ALIGN_BYTES);
        }
        (parts.arena_bytes < whole.arena_bytes).then_some(parts)
    }

    /// The plan of a part of so many rows.
    fn part(&self, whole: &Plan, rows: usize, shapes: &[Vec<usize>]) -> Option<Plan> {
        let mut part = shapes.to_vec();
        part.iter_mut().for_each(|shape| shape[0] = rows);
        // A constant of the model may have meant the batch: then a part does not fit, or gives other shapes.
        let bound = self.bound(&part).ok()?;
        let fits = pass::rows::apart(&bound, rows)
            && bound.outputs.iter().zip(&whole.outputs).all(|(id, (_, out))| {
                let part = bound.values[id.index()].out.as_ref();
                part.is_some_and(|part| part.dtype == out.dtype && part.shape[1..] == out.shape[1..])
            });
        fits.then(|| schedule(&bound, self.target, self.limits).ok()).flatten()
    }

    /// The graph bound to these shapes, after all passes.
    ///
    /// # Errors
    /// As [`Program::bucket`].
    pub fn bound(&self, shapes: &[Vec<usize>]) -> Result<Graph, RunError> {
        let inputs: Vec<Out> =
            self.inputs.iter().zip(shapes).map(|(port, shape)| Out::new(port.dtype, shape.clone())).collect();
        let mut bound = bind(&self.graph(), &inputs, self.limits, self.target)?;
        pass::bound(&mut bound);
        Ok(bound)
    }
}
