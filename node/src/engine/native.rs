//! Roost's own engine. It needs no library, and gives the same bits on every machine, for any batch.
//!
//! Weights are borrowed from the bundle's bytes, until they are packed. Sessions of one bundle share what was
//! compiled of it: a further one costs its arena. A session runs on the one thread that calls it, and asks
//! between nodes whether it was cancelled.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use rkyv::util::AlignedVec;
use roost_kernels::Isa;
use roost_native::error::ImportError;
use roost_native::graph::ir;
use roost_native::program::{CompileError, Options};
use roost_native::{Limits, Model, Program, RunError};
use roost_protocol::frame::ALIGNMENT;
use roost_protocol::limits::TENSOR_RANK_MAX;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::messages::infer::Named;
use roost_protocol::{DType, Digest, Shape, Tensor, TensorView};

use super::{Bundle, Cancel, Dim, Engine, EngineError, Port, Session, Signature, Sink};

/// The native engine.
#[derive(Default)]
pub struct Native {
    options: Options,
    limits: Limits,
    /// What sessions that live run, by their bundles' digests.
    compiled: Mutex<BTreeMap<Digest, Arc<Compiled>>>,
}

/// What was compiled of a bundle, as long as sessions run it. Locked while it is compiled.
type Compiled = Mutex<Weak<Program>>;

impl Native {
    /// The engine on the machine's fastest kernels.
    pub fn new() -> Self {
        Self::default()
    }

    /// The engine on the kernels of an instruction set. One that the machine lacks is refused when a model is
    /// loaded.
    pub fn on(isa: Isa) -> Self {
        Self { options: Options { isa: Some(isa) }, ..Self::default() }
    }

    /// The compiled model of a bundle: that of sessions which live, or a new one. Executors that load one
    /// bundle at the same time compile it once; those that load others do not wait for it. The bundle's bytes
    /// are not kept: a program holds what it reads of them.
    fn compiled(&self, bundle: &Bundle) -> Result<Arc<Program>, EngineError> {
        let Some(digest) = bundle.digest else { return self.compile(bundle) };
        let compiled = self.of(digest);
        let mut known = compiled.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(program) = known.upgrade() {
            return Ok(program);
        }
        let program = self.compile(bundle)?;
        *known = Arc::downgrade(&program);
        Ok(program)
    }

    /// The place of what is compiled of the bundle with this digest.
    fn of(&self, digest: Digest) -> Arc<Compiled> {
        let mut known = self.compiled.lock().unwrap_or_else(PoisonError::into_inner);
        // Whoever compiles, or waits for it, holds the place beside the map.
        known.retain(|_, compiled| match Arc::get_mut(compiled) {
            Some(alone) => alone.get_mut().unwrap_or_else(PoisonError::into_inner).strong_count() > 0,
            None => true,
        });
        Arc::clone(known.entry(digest).or_default())
    }

    fn compile(&self, bundle: &Bundle) -> Result<Arc<Program>, EngineError> {
        let model = Model::import(&bundle.files, self.limits).map_err(import_error)?;
        Program::compile(model, self.options).map_err(|error| match error {
            CompileError::Isa(error) => EngineError::Unsupported(error.to_string()),
            CompileError::Import(error) => import_error(error),
        })
    }
}

impl Engine for Native {
    fn choice(&self) -> EngineChoice {
        EngineChoice::Native
    }

    fn load(&self, bundle: &Bundle) -> Result<Box<dyn Session>, EngineError> {
        let program = self.compiled(bundle)?;
        let ports = |ports: &[ir::Port]| ports.iter().map(port).collect::<Result<_, _>>();
        let signature = Signature { inputs: ports(program.inputs())?, outputs: ports(program.outputs())? };
        if let Some(unranked) = program.inputs().iter().find(|port| port.dims.is_none()) {
            // Requests are checked against the declared rank.
            return Err(EngineError::Unsupported(format!("input {} declares no rank", unranked.name)));
        }
        Ok(Box::new(NativeSession { session: roost_native::Session::new(program), signature }))
    }
}

/// What a failure to import says of the model. Another engine may take what this one refuses; what is no
/// model at all is none to any.
fn import_error(error: ImportError) -> EngineError {
    match error {
        ImportError::NotAModel(reason) => EngineError::NotAModel(reason),
        ImportError::MissingFile(name) => EngineError::MissingFile(name),
        error @ (ImportError::External { .. }
        | ImportError::Tensor { .. }
        | ImportError::Graph(_)
        | ImportError::Node { .. }
        | ImportError::Unsupported(_)
        | ImportError::Limit { .. }
        | ImportError::Op { .. }) => EngineError::Unsupported(error.to_string()),
    }
}

fn port(port: &ir::Port) -> Result<Port, EngineError> {
    let dims = port.dims.as_deref().unwrap_or_default();
    if dims.len() > TENSOR_RANK_MAX {
        let (name, rank) = (&port.name, dims.len());
        let text = format!("{name} has {rank} dimensions; a tensor has at most {TENSOR_RANK_MAX}");
        return Err(EngineError::Unsupported(text));
    }
    let dim = |dim: &ir::Dim| match dim {
        ir::Dim::Const(size) => Dim::Fixed(*size as u64),
        ir::Dim::Sym(name) => Dim::Free(name.clone()),
    };
    let dims = dims.iter().map(dim).collect();
    Ok(Port { name: port.name.clone(), dtype: from_native(port.dtype), dims })
}

struct NativeSession {
    session: roost_native::Session,
    signature: Signature,
}

impl Session for NativeSession {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn batch_variant(&self) -> Option<&str> {
        self.session.program().batch_variant()
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        cancel: &Cancel,
        sink: &mut dyn Sink,
    ) -> Result<(), EngineError> {
        let shapes = inputs.iter().map(sizes).collect::<Result<Vec<_>, _>>()?;
        let mut borrowed = Vec::with_capacity(inputs.len());
        for (input, (sizes, rank)) in inputs.iter().zip(&shapes) {
            let dtype = to_native(input.dtype())
                .ok_or_else(|| EngineError::Run("the native engine takes no strings".to_owned()))?;
            borrowed.push(roost_native::Input { dtype, shape: &sizes[..*rank], bytes: input.bytes() });
        }
        let mut gathered =
            Gathered { outputs: Vec::with_capacity(self.signature.outputs.len()), wrong: None };
        let run = self.session.run(&borrowed, &mut gathered, &|| cancel.is_raised());
        run.map_err(|error| match error {
            RunError::Cancelled => EngineError::Cancelled,
            error @ (RunError::InputCount { .. }
            | RunError::InputDType { .. }
            | RunError::InputShape { .. }
            | RunError::InputBytes { .. }
            | RunError::Op { .. }
            | RunError::Arena { .. }
            | RunError::Memory(_)) => EngineError::Run(error.to_string()),
        })?;
        if let Some(wrong) = gathered.wrong {
            return Err(EngineError::Run(wrong));
        }
        sink.part(gathered.outputs);
        Ok(())
    }
}

/// The dimensions as sizes in memory, and how many there are.
fn sizes(input: &TensorView<'_>) -> Result<([usize; TENSOR_RANK_MAX], usize), EngineError> {
    let shape = input.shape();
    let mut sizes = [0; TENSOR_RANK_MAX];
    for (size, dim) in sizes.iter_mut().zip(shape.dims()) {
        *size = usize::try_from(*dim)
            .map_err(|_| EngineError::Run(format!("{shape} is larger than this machine's memory")))?;
    }
    Ok((sizes, shape.rank()))
}

/// Copies outputs out of the arena, which the next run reuses.
struct Gathered {
    outputs: Vec<Named<Tensor>>,
    wrong: Option<String>,
}

impl roost_native::Sink for Gathered {
    fn output(&mut self, name: &str, dtype: roost_native::DType, shape: &[usize], bytes: &[u8]) {
        let mut copy = AlignedVec::<ALIGNMENT>::with_capacity(bytes.len());
        copy.extend_from_slice(bytes);
        let dims: Vec<u64> = shape.iter().map(|size| *size as u64).collect();
        let tensor = Shape::new(&dims)
            .and_then(|shape| Tensor::new(from_native(dtype), shape, Bytes::from_owner(copy)));
        match tensor {
            Ok(tensor) => self.outputs.push(Named { name: name.to_owned(), tensor }),
            Err(error) => self.wrong = Some(format!("output {name}: {error}")),
        }
    }
}

fn from_native(dtype: roost_native::DType) -> DType {
    match dtype {
        roost_native::DType::F32 => DType::F32,
        roost_native::DType::F64 => DType::F64,
        roost_native::DType::F16 => DType::F16,
        roost_native::DType::BF16 => DType::Bf16,
        roost_native::DType::I8 => DType::I8,
        roost_native::DType::I16 => DType::I16,
        roost_native::DType::I32 => DType::I32,
        roost_native::DType::I64 => DType::I64,
        roost_native::DType::U8 => DType::U8,
        roost_native::DType::U16 => DType::U16,
        roost_native::DType::U32 => DType::U32,
        roost_native::DType::U64 => DType::U64,
        roost_native::DType::Bool => DType::Bool,
    }
}

/// `None` for strings.
fn to_native(dtype: DType) -> Option<roost_native::DType> {
    Some(match dtype {
        DType::F32 => roost_native::DType::F32,
        DType::F64 => roost_native::DType::F64,
        DType::F16 => roost_native::DType::F16,
        DType::Bf16 => roost_native::DType::BF16,
        DType::I8 => roost_native::DType::I8,
        DType::I16 => roost_native::DType::I16,
        DType::I32 => roost_native::DType::I32,
        DType::I64 => roost_native::DType::I64,
        DType::U8 => roost_native::DType::U8,
        DType::U16 => roost_native::DType::U16,
        DType::U32 => roost_native::DType::U32,
        DType::U64 => roost_native::DType::U64,
        DType::Bool => roost_native::DType::Bool,
        DType::String => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn element_types_are_the_same_on_both_sides() {
        for dtype in DType::ALL {
            assert_eq!(to_native(dtype).map(from_native), (dtype != DType::String).then_some(dtype));
        }
    }

    fn digits(version: &str, digest: u8) -> Bundle {
        let root = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/models/digits");
        let model = std::fs::read(format!("{root}/{version}/model.onnx")).unwrap();
        let files = BTreeMap::from([("model.onnx".to_owned(), Bytes::from(model))]);
        Bundle { files, manifest: Arc::default(), digest: Some(Digest([digest; 32])) }
    }

    #[test]
    fn a_bundle_that_is_being_compiled_blocks_no_other() {
        let engine = Native::new();
        let (slow, other) = (digits("v1", 1), digits("v2", 2));
        let place = engine.of(slow.digest.unwrap());
        let compiling = place.lock().unwrap();
        let session = engine.load(&other).unwrap();
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| engine.load(&slow).map(|_| ()));
            engine.load(&other).unwrap();
            assert!(!waits.is_finished());
            drop(compiling);
            waits.join().unwrap().unwrap();
        });
        drop(place);
        // What is no longer run is forgotten, when the next is loaded.
        engine.load(&other).unwrap();
        let digests = || engine.compiled.lock().unwrap().keys().copied().collect::<Vec<_>>();
        assert_eq!(digests(), [other.digest.unwrap()]);
        drop(session);
        engine.load(&slow).unwrap();
        assert_eq!(digests(), [slow.digest.unwrap()]);
    }

    #[test]
    fn sessions_of_a_bundle_share_what_is_compiled() {
        let engine = Native::new();
        let bundle = digits("v2", 2);
        let first = engine.compiled(&bundle).unwrap();
        std::thread::scope(|scope| {
            let loads: Vec<_> = (0..4).map(|_| scope.spawn(|| engine.compiled(&bundle).unwrap())).collect();
            assert!(loads.into_iter().all(|load| Arc::ptr_eq(&load.join().unwrap(), &first)));
        });
    }
}
