//! A compiled model: the graph after the passes that need no shapes, and the plans made of it so far.
//!
//! A program is shared by the sessions of a process: plans are made once, and weights are packed once.

use std::sync::{Arc, Mutex, PoisonError};

use roost_kernels::{Isa, IsaError, Kernels};

use crate::error::{ImportError, OpError, RunError};
use crate::graph::ir::{Dim, Graph, Port};
use crate::onnx::import::{Limits, Model};
use crate::ops::Target;
use crate::ops::fact::Out;
use crate::pass;
use crate::plan::bind::bind;
use crate::plan::schedule::{Plan, schedule};

/// Plans kept per program. Batch sizes are few; a plan is some tens of kilobytes.
pub const PLANS_MAX: usize = 16;

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
    /// Shapes inside depend on data: the interpreter runs it.
    Dynamic,
}

/// A compiled model.
pub struct Program {
    graph: Graph,
    inputs: Vec<Port>,
    outputs: Vec<Port>,
    target: Target,
    limits: Limits,
    batch_variant: Option<String>,
    plans: Mutex<Vec<(Vec<Vec<usize>>, Bucket)>>,
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
        let plans = Mutex::new(Vec::new());
        let program = Self { graph, inputs, outputs, target, limits, batch_variant, plans };
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
    pub fn graph(&self) -> &Graph {
        &self.graph
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
            Ok(plan) => Bucket::Planned(Arc::new(plan)),
            Err(RunError::Op { source: OpError::Dynamic(_), .. }) => Bucket::Dynamic,
            Err(error) => return Err(error),
        };
        let mut plans = lock();
        if plans.len() == PLANS_MAX {
            plans.remove(0);
        }
        plans.push((shapes.to_vec(), bucket.clone()));
        Ok(bucket)
    }

    fn plan(&self, shapes: &[Vec<usize>]) -> Result<Plan, RunError> {
        let bound = self.bound(shapes)?;
        schedule(&bound, self.target, self.limits)
    }

    /// The graph bound to these shapes, after all passes.
    ///
    /// # Errors
    /// As [`Program::bucket`].
    pub fn bound(&self, shapes: &[Vec<usize>]) -> Result<Graph, RunError> {
        let inputs: Vec<Out> =
            self.inputs.iter().zip(shapes).map(|(port, shape)| Out::new(port.dtype, shape.clone())).collect();
        let mut bound = bind(&self.graph, &inputs, self.limits, self.target)?;
        pass::bound(&mut bound);
        Ok(bound)
    }
}
