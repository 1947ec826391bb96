//! A model on an engine: loaded, fed with tensors, asked what it is made of.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use roost_kernels::Isa;
use roost_native::error::ImportError;
use roost_native::graph::ir::Port;
use roost_native::onnx::external::Files;
use roost_native::onnx::glance::{glance, read_files};
use roost_native::onnx::import::MODEL_FILE;
use roost_native::program::{CompileError, Options};
use roost_native::{Input, Limits, Model, Program, Session, Tensor};
use roost_protocol::manifest::EngineChoice;

/// A model on an engine.
pub struct Subject {
    pub engine: Engine,
    /// Inputs as declared.
    pub inputs: Vec<Port>,
    /// Outputs as declared.
    pub outputs: Vec<Port>,
    /// How often each operator occurs.
    pub operators: BTreeMap<String, usize>,
    /// Why the native engine does not run it, if it was to be tried.
    pub not_native: Option<String>,
}

/// The engine's side of a model.
pub enum Engine {
    Native(Session),
    OnnxRuntime(Box<dyn roost_node::engine::Session>),
}

impl Subject {
    /// The engine.
    pub fn choice(&self) -> EngineChoice {
        match self.engine {
            Engine::Native(_) => EngineChoice::Native,
            Engine::OnnxRuntime(_) => EngineChoice::OnnxRuntime,
        }
    }

    /// The compiled model, on the native engine.
    pub fn program(&self) -> Option<&Arc<Program>> {
        match &self.engine {
            Engine::Native(session) => Some(session.program()),
            Engine::OnnxRuntime(_) => None,
        }
    }

    /// Runs once.
    pub fn run(&mut self, inputs: &[Tensor]) -> anyhow::Result<Vec<Tensor>> {
        match &mut self.engine {
            Engine::Native(session) => {
                let borrowed: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
                let mut found = Vec::new();
                session.run(&borrowed, &mut found, &|| false)?;
                Ok(found)
            }
            Engine::OnnxRuntime(session) => foreign::run(&mut **session, inputs),
        }
    }
}

/// A model and the files that it names: `model.onnx` of a folder, where `model` is one, else that file. They
/// are read, not mapped: nobody keeps others from writing them meanwhile. What else lies in the folder is not
/// touched.
pub fn files(model: &Path) -> anyhow::Result<Files> {
    if !model.is_dir() {
        return Ok(read_files(model.parent().unwrap_or(Path::new("")), model)?);
    }
    let file = model.join(MODEL_FILE);
    if !file.exists() {
        bail!("{} has no {MODEL_FILE}; give a folder that has one, or an ONNX file", model.display());
    }
    Ok(read_files(model, &file)?)
}

/// Loads a model on the engine that is asked for; `auto` is the native one where it supports the whole graph,
/// else ONNX Runtime.
pub fn load(files: &Files, choice: EngineChoice, isa: Option<Isa>) -> anyhow::Result<Subject> {
    if isa.is_some() && choice == EngineChoice::OnnxRuntime {
        bail!("--isa chooses among the native engine's kernels; ONNX Runtime chooses for itself");
    }
    let not_native = if choice == EngineChoice::OnnxRuntime {
        None
    } else {
        match native(files, isa) {
            Ok(subject) => return Ok(subject),
            Err(CompileError::Import(error @ (ImportError::NotAModel(_) | ImportError::MissingFile(_)))) => {
                return Err(error.into());
            }
            Err(error) if choice == EngineChoice::Native || isa.is_some() => {
                return Err(anyhow::Error::from(error).context("the native engine cannot run this model"));
            }
            Err(error) => Some(error.to_string()),
        }
    };
    match foreign::load(files) {
        Ok((session, inputs, outputs)) => {
            let file = files.get(MODEL_FILE).context("it was loaded from this file")?;
            let (engine, operators) = (Engine::OnnxRuntime(session), glance(file.clone())?.operators);
            Ok(Subject { engine, inputs, outputs, operators, not_native })
        }
        Err(error) => match not_native {
            Some(why) => {
                bail!("no engine can run this model\n  native: {why}\n  onnxruntime: {error:#}")
            }
            None => Err(error),
        },
    }
}

fn native(files: &Files, isa: Option<Isa>) -> Result<Subject, CompileError> {
    let model = Model::import(files, Limits::default())?;
    let operators = model.operators.clone();
    let program = Program::compile(model, Options { isa })?;
    let (inputs, outputs) = (program.inputs().to_vec(), program.outputs().to_vec());
    let engine = Engine::Native(Session::new(program));
    Ok(Subject { engine, inputs, outputs, operators, not_native: None })
}

/// The model through the trait that all engines of a node implement.
#[cfg(feature = "onnxruntime")]
mod foreign {
    use anyhow::Context as _;
    use roost_native::DType;
    use roost_native::graph::ir::Dim;
    use roost_node::engine::onnxruntime::OnnxRuntime;
    use roost_node::engine::{self, Bundle, Cancel, Engine as _};
    use roost_protocol::{Shape, TensorView};

    use super::{Arc, Files, Port, Tensor};

    type Loaded = (Box<dyn engine::Session>, Vec<Port>, Vec<Port>);

    pub fn load(files: &Files) -> anyhow::Result<Loaded> {
        let bundle = Bundle { files: files.clone(), manifest: Arc::default(), digest: None };
        let session = OnnxRuntime::find(None)?.load(&bundle)?;
        let ports = |ports: &[engine::Port]| ports.iter().map(port).collect::<anyhow::Result<_>>();
        let (inputs, outputs) = (ports(&session.signature().inputs)?, ports(&session.signature().outputs)?);
        Ok((session, inputs, outputs))
    }

    fn port(port: &engine::Port) -> anyhow::Result<Port> {
        let dim = |dim: &engine::Dim| match dim {
            engine::Dim::Fixed(size) => Ok(Dim::Const(usize::try_from(*size)?)),
            engine::Dim::Free(name) => Ok(Dim::Sym(name.clone())),
        };
        let dims = port.dims.iter().map(dim).collect::<anyhow::Result<_>>()?;
        let name = port.name.clone();
        Ok(Port { dtype: from_wire(port.dtype).with_context(|| name.clone())?, name, dims: Some(dims) })
    }

    pub fn run(session: &mut dyn engine::Session, inputs: &[Tensor]) -> anyhow::Result<Vec<Tensor>> {
        let aligned: Vec<Tensor> = inputs.iter().map(Tensor::aligned).collect();
        let views = aligned.iter().map(view).collect::<anyhow::Result<Vec<_>>>()?;
        let mut parts = Vec::new();
        session.run(&views, &Cancel::new(), &mut parts)?;
        let outputs = parts.into_iter().flatten().map(|output| {
            let (dtype, shape) = (from_wire(output.tensor.dtype())?, output.tensor.shape());
            let shape =
                shape.dims().iter().map(|dim| usize::try_from(*dim)).collect::<Result<Vec<_>, _>>()?;
            Ok(Tensor::of_dtype(dtype, &shape, output.tensor.bytes()))
        });
        outputs.collect()
    }

    fn view(tensor: &Tensor) -> anyhow::Result<TensorView<'_>> {
        let dims: Vec<u64> = tensor.shape().iter().map(|dim| *dim as u64).collect();
        Ok(TensorView::new(to_wire(tensor.dtype()), Shape::new(&dims)?, tensor.bytes())?)
    }

    macro_rules! types {
        ($($native:ident = $wire:ident),*) => {
            fn to_wire(dtype: DType) -> roost_protocol::DType {
                match dtype { $(DType::$native => roost_protocol::DType::$wire),* }
            }

            fn from_wire(dtype: roost_protocol::DType) -> anyhow::Result<DType> {
                Ok(match dtype {
                    $(roost_protocol::DType::$wire => DType::$native,)*
                    roost_protocol::DType::String => anyhow::bail!("tensors of strings cannot be read from test data"),
                })
            }
        };
    }
    types! {
        F16 = F16, BF16 = Bf16, F32 = F32, F64 = F64, I8 = I8, I16 = I16, I32 = I32, I64 = I64, U8 = U8, U16 = U16,
        U32 = U32, U64 = U64, Bool = Bool
    }
}

#[cfg(not(feature = "onnxruntime"))]
mod foreign {
    use super::{Files, Port, Tensor};

    type Loaded = (Box<dyn roost_node::engine::Session>, Vec<Port>, Vec<Port>);

    pub fn load(_: &Files) -> anyhow::Result<Loaded> {
        anyhow::bail!("this build has no ONNX Runtime; build with the feature onnxruntime")
    }

    pub fn run(_: &mut dyn roost_node::engine::Session, _: &[Tensor]) -> anyhow::Result<Vec<Tensor>> {
        anyhow::bail!("this build has no ONNX Runtime")
    }
}
