//! The native engine under simulation: the node's own, on the digits model with weights that tell versions
//! apart.
//!
//! Its results are the same bits on every instruction set and for every batch, so an answer is held bit by
//! bit against what [`Oracle`] computes of the same bytes. A bit of a weight that was flipped gives another
//! answer, so bytes that were not checked show. ONNX Runtime stays out of the simulator: it has threads and
//! clocks of its own.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use prost::Message;
use roost_native::onnx::proto::ModelProto;
use roost_native::{DType, Input, Limits, Model, Options, Program};
use roost_node::engine::native::Native;
use roost_node::engine::{Bundle, Cancel, Engine, EngineError, Session, Signature, Sink};
use roost_protocol::bundle::{BundleFile, FileList, MODEL_FILE};
use roost_protocol::manifest::EngineChoice;
use roost_protocol::{Digest, Tensor, TensorView};

use crate::condition::Conditions;
use crate::entropy::split_mix;
use crate::facts::{Fact, Witness};
use crate::trace;

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
        let program = compile(&Bytes::copy_from_slice(bytes))?;
        Some(Self { session: roost_native::Session::new(program), known: BTreeMap::new() })
    }

    /// What it gives for an image; `None` when it fails.
    pub fn answer(&mut self, number: usize) -> Option<Vec<f32>> {
        if let Some(answer) = self.known.get(&number) {
            return Some(answer.clone());
        }
        let image = image(number);
        let input = Input { dtype: DType::F32, shape: &[1, 1, 8, 8], bytes: image.bytes() };
        let mut given = Vec::new();
        self.session.run(&[input], &mut given, &|| false).ok()?;
        let output: &roost_native::Tensor = given.first()?;
        let answer: Vec<f32> =
            output.bytes().as_chunks().0.iter().map(|value| f32::from_le_bytes(*value)).collect();
        self.known.insert(number, answer.clone());
        Some(answer)
    }
}

fn compile(bytes: &Bytes) -> Option<Arc<Program>> {
    let files = BTreeMap::from([(MODEL_FILE.to_owned(), bytes.clone())]);
    let model = Model::import(&files, Limits::default()).ok()?;
    Program::compile(model, Options::default()).ok()
}

/// The engine of a host: the node's own, told of and disturbed.
pub struct Digits {
    native: Native,
    conditions: Conditions,
    witness: Witness,
}

impl Digits {
    /// An engine whose runs panic when `conditions` say so, and that tells `witness` of what it loads and
    /// runs.
    pub fn new(conditions: Conditions, witness: Witness) -> Self {
        Self { native: Native::new(), conditions, witness }
    }
}

impl Engine for Digits {
    fn choice(&self) -> EngineChoice {
        self.native.choice()
    }

    fn load(&self, bundle: &Bundle) -> Result<Box<dyn Session>, EngineError> {
        if let Some(expected) = bundle.digest {
            self.witness.tell(Fact::Loaded { expected, actual: digest_of(bundle) });
        }
        Ok(Box::new(Loaded {
            session: self.native.load(bundle)?,
            rows_max: bundle.manifest.batch_rows_max,
            conditions: self.conditions.clone(),
            witness: self.witness.clone(),
        }))
    }
}

/// What the digest of a bundle's files is, whatever was said of it.
fn digest_of(bundle: &Bundle) -> Digest {
    let file = |(name, bytes): (&String, &Bytes)| BundleFile {
        name: name.clone(),
        bytes: bytes.len() as u64,
        digest: Digest::of(bytes),
    };
    // No list of files is no bundle's, whose digest is another than that of nothing.
    FileList::new(bundle.files.iter().map(file).collect()).map_or(Digest::of(b""), |list| list.digest())
}

struct Loaded {
    session: Box<dyn Session>,
    rows_max: u32,
    conditions: Conditions,
    witness: Witness,
}

impl Session for Loaded {
    fn signature(&self) -> &Signature {
        self.session.signature()
    }

    fn batch_variant(&self) -> Option<&str> {
        self.session.batch_variant()
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        cancel: &Cancel,
        sink: &mut dyn Sink,
    ) -> Result<(), EngineError> {
        if self.conditions.panics() {
            trace::line(format_args!("a model panics"));
            // Without the hook, which would print it.
            std::panic::resume_unwind(Box::new("a fault of the simulation"));
        }
        let rows = inputs[0].shape().dims()[0] as u32;
        self.witness.tell(Fact::Ran { rows, rows_max: self.rows_max });
        self.session.run(inputs, cancel, sink)
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
