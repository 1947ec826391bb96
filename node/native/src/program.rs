//! A compiled model: the graph after the passes that need no shapes, and the plans made of it so far.
//!
//! A program is shared by the sessions of a process: plans are made once, and weights are packed once.
//! Sessions that do not run hold no memory for results: a run takes an arena of the program and gives it
//! back.

use std::collections::BTreeSet;
use std::error::Error;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use roost_kernels::{Isa, IsaError, Kernels};

use crate::error::{ImportError, OpError, RunError};
use crate::graph::ir::{Dim, Graph, Port};
use crate::onnx::import::{Limits, Model, PACKED_TIMES};
use crate::ops::Target;
use crate::ops::fact::Out;
use crate::pass;
use crate::plan::bind::bind;
use crate::plan::condense::{condense, hold_forms};
use crate::plan::pack::Packing;
use crate::plan::schedule::{Plan, schedule};
use crate::tensor::{ALIGN_BYTES, AlignedBuf, NoMemory};

/// Tuples of input shapes whose plans a program keeps; the one that was not run for the longest goes.
/// Sessions hold none but while they run, so this is all there is.
///
/// A tuple has one plan, or two where its batch is cut into parts of two sizes: a program keeps 32 plans at
/// most. A plan takes some hundred bytes a step (4 to 20 KB for the digits models), and constants that it
/// computed from the shapes: of [`Limits::folded_bytes_max`] over all plans, or fewer plans are kept.
/// Weights, packed or not, are shared between plans; a plan adds a packed form only where its kernels read
/// another layout.
pub const SHAPES_MAX: usize = 16;

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
pub enum Bucket {
    /// A plan.
    Planned(Plan),
    /// A plan for some of the rows, run several times.
    Parts(Parts),
    /// Shapes inside depend on data: the interpreter runs it.
    Dynamic,
}

/// A batch whose rows do not meet, cut into parts that caches hold.
pub struct Parts {
    /// The parts in the order of their rows: larger ones, and where the batch does not divide evenly, some of
    /// a row less.
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
    pub plan: Plan,
    /// Rows of a part.
    pub rows: usize,
    /// How many parts.
    pub count: usize,
}

impl Bucket {
    /// Bytes of the constants that its plans computed from the shapes.
    fn folded_bytes(&self) -> u64 {
        match self {
            Self::Planned(plan) => plan.folded_bytes,
            Self::Parts(parts) => parts.sizes.iter().map(|size| size.plan.folded_bytes).sum(),
            Self::Dynamic => 0,
        }
    }
}

impl Parts {
    /// How many parts there are.
    pub fn count(&self) -> usize {
        self.sizes.iter().map(|size| size.count).sum()
    }

    /// The plan of the largest parts.
    pub fn plan(&self) -> &Plan {
        &self.sizes[0].plan
    }

    /// Bytes of the arena that each part runs in.
    pub fn part_bytes(&self) -> usize {
        self.sizes.iter().map(|size| size.plan.arena_bytes).max().unwrap_or(0)
    }
}

/// An arena above this is worth cutting: a common L2.
const PART_BYTES_MAX: usize = 1 << 20;

/// A bucket, and the input shapes that it serves.
struct Kept {
    shapes: Vec<Vec<usize>>,
    bucket: Arc<Bucket>,
}

/// A compiled model.
pub struct Program {
    /// Replaced by one that takes less memory when there is a plan; never by one that computes anything else.
    graph: Mutex<Arc<Graph>>,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    kernels: &'static Kernels,
    limits: Limits,
    /// What its weights take in the layouts of kernels.
    packing: Arc<Packing>,
    /// Found when it is asked for first.
    batch_variant: OnceLock<Option<String>>,
    /// Those that were asked for last stand last.
    buckets: Mutex<Vec<Kept>>,
    /// Held by who makes a bucket; taken before any other lock.
    planning: Mutex<()>,
    /// Arenas that no session is running in.
    arenas: Mutex<Vec<AlignedBuf>>,
}

impl Program {
    /// Compiles a model. Where all ranks are declared, a plan is made too: for the declared shapes, with one
    /// for every free dimension.
    ///
    /// # Errors
    /// [`CompileError::Isa`] for an instruction set beyond the machine; [`CompileError::Import`] where an
    /// operator has no kernel for its types.
    pub fn compile(model: Model, options: Options) -> Result<Arc<Self>, CompileError> {
        let kernels = match options.isa {
            Some(isa) => Kernels::of(isa)?,
            None => Kernels::best(),
        };
        let Model { mut graph, inputs, outputs, limits, file_bytes, .. } = model;
        let packing = Packing::new(limits.packed_bytes_max.saturating_add(file_bytes * PACKED_TIMES));
        pass::compile(&mut graph, limits, Target { kernels, packing: &packing });
        let batch_variant = OnceLock::new();
        let (buckets, planning) = (Mutex::new(Vec::new()), Mutex::new(()));
        let (graph, arenas) = (Mutex::new(Arc::new(graph)), Mutex::new(Vec::with_capacity(ARENAS_KEPT)));
        let program = Self {
            graph,
            inputs,
            outputs,
            kernels,
            limits,
            packing,
            batch_variant,
            buckets,
            planning,
            arenas,
        };
        program.probe()?;
        Ok(Arc::new(program))
    }

    /// Plans for the declared shapes, with one for every free dimension, to learn now what has no kernel.
    /// Shapes that do not fit each other are no error: nobody said that one is a size that the model takes.
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

    /// The kernels that it runs on, and what it may lay out for them.
    pub fn target(&self) -> Target<'_> {
        Target { kernels: self.kernels, packing: &self.packing }
    }

    /// The limits that it runs under.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    /// Why a row's result may depend on the rows beside it, if it may. A model whose first dimensions are all
    /// fixed has no batch.
    pub fn batch_variant(&self) -> Option<&str> {
        self.batch_variant.get_or_init(|| self.mixed_rows()).as_deref()
    }

    fn mixed_rows(&self) -> Option<String> {
        let mut rows: BTreeSet<&str> = BTreeSet::new();
        let mut free = false;
        for port in &self.inputs {
            let Some(dims) = port.dims.as_deref() else {
                return Some(format!("{} has no declared rank", port.name));
            };
            if let Some(Dim::Sym(name)) = dims.first() {
                free = true;
                rows.insert(name);
            }
        }
        rows.remove("");
        if !free {
            return None;
        }
        // The sizes of other free dimensions are not known; the graph may want some.
        let mut refused = None;
        for other in [7, 16, 64, 224, 1] {
            let size = |(at, dim): (usize, &Dim), count: usize| match dim {
                Dim::Const(size) => *size,
                Dim::Sym(name) if at == 0 || rows.contains(name.as_str()) => count,
                Dim::Sym(_) => other,
            };
            let bound = |count: usize| {
                let dims = self.inputs.iter().map(|port| port.dims.iter().flatten().enumerate());
                let shapes = dims.map(|dims| dims.map(|dim| size(dim, count)).collect::<Vec<_>>());
                let outs = self.inputs.iter().zip(shapes).map(|(port, shape)| Out::new(port.dtype, shape));
                bind(&self.graph(), &outs.collect::<Vec<_>>(), self.limits, self.target())
            };
            match (bound(2), bound(3)) {
                (Ok(two), Ok(three)) => return pass::batch::variant(&two, &three),
                (Err(error), _) | (_, Err(error)) => refused = refused.or(Some(error)),
            }
        }
        refused.map(|error| {
            let source = error.source().map(|source| format!(": {source}")).unwrap_or_default();
            format!("two rows and three cannot be compared: {error}{source}")
        })
    }

    /// What serves these input shapes: the bucket that is kept, or a new one.
    ///
    /// New ones are made one at a time, so that sessions that meet a shape at once plan and pack it once. Who
    /// finds a bucket that is kept does not wait for that.
    ///
    /// # Errors
    /// [`RunError::InputCount`] for other than a shape for each input; [`RunError::Op`] where shapes do not
    /// fit the graph, [`RunError::Arena`].
    pub fn bucket(&self, shapes: &[Vec<usize>]) -> Result<Arc<Bucket>, RunError> {
        self.check_count(shapes)?;
        if let Some(known) = self.known(shapes) {
            return Ok(known);
        }
        let _planning = self.planning.lock().unwrap_or_else(PoisonError::into_inner);
        // Somebody may have made it while this call waited.
        if let Some(known) = self.known(shapes) {
            return Ok(known);
        }
        let bucket = Arc::new(self.make(shapes)?);
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let folded = |buckets: &[Kept]| buckets.iter().map(|kept| kept.bucket.folded_bytes()).sum::<u64>();
        let room = self.limits.folded_bytes_max.saturating_sub(bucket.folded_bytes());
        while buckets.len() >= SHAPES_MAX || !buckets.is_empty() && folded(&buckets) > room {
            buckets.remove(0);
        }
        buckets.push(Kept { shapes: shapes.to_vec(), bucket: Arc::clone(&bucket) });
        Ok(bucket)
    }

    fn check_count(&self, shapes: &[Vec<usize>]) -> Result<(), RunError> {
        let (expected, found) = (self.inputs.len(), shapes.len());
        if expected == found { Ok(()) } else { Err(RunError::InputCount { expected, found }) }
    }

    /// Runs something as if a plan were being made meanwhile.
    #[cfg(test)]
    pub(crate) fn while_planning<T>(&self, run: impl FnOnce() -> T) -> T {
        let _planning = self.planning.lock().unwrap_or_else(PoisonError::into_inner);
        run()
    }

    /// The bucket that is kept for these shapes.
    fn known(&self, shapes: &[Vec<usize>]) -> Option<Arc<Bucket>> {
        self.used(|kept| kept.shapes == shapes)
    }

    /// Notes that a session runs a bucket, so that others go before it.
    pub(crate) fn runs(&self, bucket: &Arc<Bucket>) {
        self.used(|kept| Arc::ptr_eq(&kept.bucket, bucket));
    }

    /// The bucket that fits, which is put last.
    fn used(&self, fits: impl Fn(&Kept) -> bool) -> Option<Arc<Bucket>> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let at = buckets.iter().position(fits)?;
        buckets[at..].rotate_left(1);
        buckets.last().map(|kept| Arc::clone(&kept.bucket))
    }

    /// Plans for these shapes.
    fn make(&self, shapes: &[Vec<usize>]) -> Result<Bucket, RunError> {
        match self.plan(shapes) {
            Ok((plan, most)) => {
                self.condense(Some(&plan));
                Ok(match most.and_then(|most| self.parts(&plan, most, shapes)) {
                    Some(parts) => Bucket::Parts(parts),
                    None => Bucket::Planned(plan),
                })
            }
            Err(RunError::Op { source: OpError::Dynamic(_), .. }) => {
                self.condense(None);
                hold_forms(&self.graph());
                Ok(Bucket::Dynamic)
            }
            Err(error) => Err(error),
        }
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
    ///
    /// # Errors
    /// [`NoMemory`].
    pub(crate) fn take_arena(&self, bytes: usize) -> Result<AlignedBuf, NoMemory> {
        let mut arenas = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that fits. Where none does, the smallest of all is replaced, so that no more are kept
        // than runs were under way at once.
        let sizes = || arenas.iter().map(|arena| arena.len()).enumerate();
        let fitting = sizes().filter(|(_, len)| *len >= bytes).min_by_key(|(_, len)| *len);
        let at = fitting.or_else(|| sizes().min_by_key(|(_, len)| *len)).map(|(at, _)| at);
        let taken = at.map(|at| arenas.swap_remove(at));
        drop(arenas);
        taken.filter(|arena| arena.len() >= bytes).map_or_else(|| AlignedBuf::try_zeroed(bytes), Ok)
    }

    /// Gives memory back after a run.
    pub(crate) fn give_arena(&self, arena: AlignedBuf) {
        let mut arenas = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        if arenas.len() < ARENAS_KEPT {
            arenas.push(arena);
        }
    }

    /// The plan for these shapes; and, where its rows are worth taking apart, how many a part should have at
    /// most.
    fn plan(&self, shapes: &[Vec<usize>]) -> Result<(Plan, Option<usize>), RunError> {
        let bound = self.bound(shapes)?;
        let plan = schedule(&bound, self.target(), self.limits)?;
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
                let plan = self.part(whole, rows, shapes)?;
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
        fits.then(|| schedule(&bound, self.target(), self.limits).ok()).flatten()
    }

    /// The graph bound to these shapes, after all passes.
    ///
    /// # Errors
    /// As [`Program::bucket`].
    pub fn bound(&self, shapes: &[Vec<usize>]) -> Result<Graph, RunError> {
        self.check_count(shapes)?;
        let inputs: Vec<Out> =
            self.inputs.iter().zip(shapes).map(|(port, shape)| Out::new(port.dtype, shape.clone())).collect();
        let mut bound = bind(&self.graph(), &inputs, self.limits, self.target())?;
        pass::bound(&mut bound);
        Ok(bound)
    }
}
