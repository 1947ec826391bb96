//! The native engine under simulation: `roost-native` on the digits model, with weights that tell versions apart.
//!
//! Its results are the same bits on every instruction set and for every batch, so an answer is held bit by bit against what
//! [`Oracle`] computes of the same bytes. A bit of a weight that was flipped gives another answer, so bytes that were not
//! checked show. ONNX Runtime stays out of the simulator: it has threads and clocks of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use roost_native::onnx::proto::ModelProto;
use roost_native::{DType as Native, Input, Limits, Model, Options, Program};
use roost_node::engine::{Bundle, Cancel, Dim, Engine, EngineError, Port, Session, Signature, Sink};
use roost_protocol::bundle::MODEL_FILE;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::messages::infer::Named;
use roost_protocol::{DType, Tensor, TensorView};

use crate::condition::Conditions;
use crate::entropy::split_mix;
use crate::facts::{Fact, Witness};

/// The digits model: a logistic regression of 650 parameters.
const DIGITS: &[u8] = include_bytes!("../../deploy/models/digits/v1/model.onnx");
/// Pictures of digits, `[IMAGES, 1, 8, 8] f32`, behind NumPy's header.
const HELD_OUT: &[u8] = include_bytes!("../../deploy/models/digits/heldout_images.npy");

/// The model's input.
pub const INPUT: &str = "image";
/// The model's output.
pub const OUTPUT: &str = "probs";
/// The pixels of an image.
const PIXELS: usize = 64;
/// How many images there are.
pub const IMAGES: usize = HELD_OUT.len() / (4 * PIXELS);

/// An image, by its number.
///
/// # Panics
/// When there are not as many.
pub fn image(number: usize) -> Tensor {
    assert!(number < IMAGES, "there are {IMAGES} images");
    // What does not belong to an image is the header, which is shorter than one.
    let header = HELD_OUT.len() % (4 * PIXELS);
    let bytes = &HELD_OUT[header + number * 4 * PIXELS..][..4 * PIXELS];
    let pixels: Vec<f32> = bytes.as_chunks().0.iter().map(|pixel| f32::from_le_bytes(*pixel)).collect();
    Tensor::from_elements(&[1, 1, 8, 8], pixels).expect("an image has its pixels")
}

/// The bytes of the model of that number: the digits model, each weight moved a little.
///
/// # Panics
/// When the digits model in the repository is none.
pub fn model(number: u64) -> Vec<u8> {
    let proto = ModelProto::decode(DIGITS).expect("the digits model is an ONNX model");
    let tensors = proto.graph.iter().flat_map(|graph| &graph.initializer).map(|tensor| &tensor.raw_data);
    let weights = tensors.max_by_key(|data| data.len()).expect("it has weights");
    let mut bytes = DIGITS.to_vec();
    let at =
        DIGITS.windows(weights.len()).position(|window| window == weights).expect("they lie in its bytes");
    let mut state = number;
    for weight in bytes[at..at + weights.len()].as_chunks_mut::<4>().0 {
        let moved = (split_mix(&mut state) % 1024) as f32 / 4096.0;
        *weight = (f32::from_le_bytes(*weight) + moved).to_le_bytes();
    }
    bytes
}

/// What the model of some bytes answers.
pub struct Oracle {
    session: roost_native::Session,
    known: BTreeMap<usize, Vec<f32>>,
}

impl Oracle {
    /// The model of `bytes`; `None` when they are none.
    pub fn of(bytes: &[u8]) -> Option<Self> {
        let program = compile(&Bytes::copy_from_slice(bytes)).ok()?;
        Some(Self { session: roost_native::Session::new(program), known: BTreeMap::new() })
    }

    /// What it gives for an image; `None` when it fails.
    pub fn answer(&mut self, number: usize) -> Option<Vec<f32>> {
        if let Some(answer) = self.known.get(&number) {
            return Some(answer.clone());
        }
        let image = image(number);
        let input = Input { dtype: Native::F32, shape: &[1, 1, 8, 8], bytes: image.bytes() };
        let mut given = Vec::new();
        self.session.run(&[input], &mut given, &|| false).ok()?;
        let output: &roost_native::Tensor = given.first()?;
        let answer: Vec<f32> =
            output.bytes().as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        self.known.insert(number, answer.clone());
        Some(answer)
    }
}

fn compile(bytes: &Bytes) -> Result<Arc<Program>, EngineError> {
    let files = BTreeMap::from([(MODEL_FILE.to_owned(), bytes.clone())]);
    let no_model = |error: String| EngineError::NotAModel(error);
    let model = Model::import(&files, Limits::default()).map_err(|error| no_model(error.to_string()))?;
    Program::compile(model, Options::default()).map_err(|error| no_model(error.to_string()))
}

/// The engine of a host.
pub struct Digits {
    /// Says which runs panic.
    pub conditions: Conditions,
    /// Told of what runs.
    pub witness: Witness,
}

impl Engine for Digits {
    fn choice(&self) -> EngineChoice {
        EngineChoice::Native
    }

    fn load(&self, bundle: &Bundle) -> Result<Box<dyn Session>, EngineError> {
        let bytes =
            bundle.files.get(MODEL_FILE).ok_or_else(|| EngineError::MissingFile(MODEL_FILE.to_owned()))?;
        let program = compile(bytes)?;
        let signature = Signature { inputs: ports(program.inputs()), outputs: ports(program.outputs()) };
        Ok(Box::new(Loaded {
            session: roost_native::Session::new(program),
            signature,
            rows_max: bundle.manifest.batch_rows_max,
            conditions: self.conditions.clone(),
            witness: self.witness.clone(),
        }))
    }
}

fn ports(declared: &[roost_native::graph::ir::Port]) -> Vec<Port> {
    use roost_native::graph::ir::Dim as Declared;
    let dim = |dim: &Declared| match dim {
        Declared::Const(size) => Dim::Fixed(*size as u64),
        Declared::Sym(name) => Dim::Free(name.clone()),
    };
    let port = |port: &roost_native::graph::ir::Port| Port {
        name: port.name.clone(),
        // All that the digits model takes and gives.
        dtype: DType::F32,
        dims: port.dims.iter().flatten().map(dim).collect(),
    };
    declared.iter().map(port).collect()
}

struct Loaded {
    session: roost_native::Session,
    signature: Signature,
    rows_max: u32,
    conditions: Conditions,
    witness: Witness,
}

impl Session for Loaded {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        cancel: &Cancel,
        sink: &mut dyn Sink,
    ) -> Result<(), EngineError> {
        if self.conditions.panics() {
            // Without the hook, which would print it.
            std::panic::resume_unwind(Box::new("a fault of the simulation"));
        }
        let shape: Vec<usize> = inputs[0].shape().dims().iter().map(|size| *size as usize).collect();
        self.witness.tell(Fact::Ran { rows: shape[0] as u32, rows_max: self.rows_max });
        let input = Input { dtype: Native::F32, shape: &shape, bytes: inputs[0].bytes() };
        let mut given: Vec<roost_native::Tensor> = Vec::new();
        let ran = self.session.run(&[input], &mut given, &|| cancel.is_raised());
        if cancel.is_raised() {
            return Err(EngineError::Cancelled);
        }
        ran.map_err(|error| EngineError::Run(error.to_string()))?;
        let named = self.signature.outputs.iter().zip(&given).map(|(port, output)| {
            let dims: Vec<u64> = output.shape().iter().map(|size| *size as u64).collect();
            let values = output.bytes().as_chunks().0.iter().map(|value| f32::from_le_bytes(*value));
            let tensor = Tensor::from_elements(&dims, values.collect::<Vec<f32>>());
            let tensor = tensor.map_err(|error| EngineError::Run(error.to_string()))?;
            Ok(Named { name: port.name.clone(), tensor })
        });
        sink.part(named.collect::<Result<_, EngineError>>()?);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_differ_and_so_do_their_answers() {
        let answer = |bytes: &[u8], number| Oracle::of(bytes).and_then(|mut oracle| oracle.answer(number));
        assert_eq!(IMAGES, 450);
        for number in [0, IMAGES - 1] {
            let one = answer(&model(1), number).unwrap();
            assert_eq!(one.len(), 10);
            assert_eq!(Some(&one), answer(&model(1), number).as_ref());
            assert_ne!(Some(&one), answer(&model(2), number).as_ref());
        }
        assert_eq!(answer(b"something else", 0), None);
    }
}
