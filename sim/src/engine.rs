//! A session that computes a small known function, for models whose bytes say which.
//!
//! `model.onnx` holds a line and sixteen weights; the session gives `y = W · x` for `x` of `[N, 4] f32`. A flipped bit of a
//! weight gives another answer, so bytes that were not checked show. ONNX Runtime stays out of the simulator: it has threads
//! and clocks of its own.

use roost_node::engine::{Bundle, Cancel, Dim, Engine, EngineError, Port, Session, Signature, Sink};
use roost_protocol::bundle::MODEL_FILE;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::messages::infer::Named;
use roost_protocol::{DType, Tensor, TensorView};

use crate::condition::Conditions;
use crate::entropy::split_mix;
use crate::facts::{Fact, Witness};

/// The width of a row.
pub const ROW: usize = 4;
/// What the bytes of a model begin with.
const HEAD: &[u8] = b"known function\n";

/// The bytes of the model of that number.
pub fn model(number: u64) -> Vec<u8> {
    let mut state = number;
    let mut bytes = HEAD.to_vec();
    for _ in 0..ROW * ROW {
        // Eighths: sums and products of them are exact.
        let weight = (split_mix(&mut state) % 1024) as f32 / 8.0;
        bytes.extend_from_slice(&weight.to_le_bytes());
    }
    bytes
}

/// What the model of these bytes gives for a row; `None` when they are no model.
pub fn expected(model: &[u8], row: [f32; ROW]) -> Option<[f32; ROW]> {
    Some(apply(&weights(model)?, &row))
}

type Weights = [[f32; ROW]; ROW];

fn weights(model: &[u8]) -> Option<Weights> {
    let bytes = model.strip_prefix(HEAD)?;
    if bytes.len() != ROW * ROW * 4 {
        return None;
    }
    let mut weights = [[0.0; ROW]; ROW];
    for (weight, bytes) in weights.iter_mut().flatten().zip(bytes.chunks_exact(4)) {
        *weight = f32::from_le_bytes(bytes.try_into().ok()?);
    }
    Some(weights)
}

fn apply(weights: &Weights, row: &[f32]) -> [f32; ROW] {
    weights.map(|of_output| of_output.iter().zip(row).fold(0.0, |sum, (weight, x)| weight.mul_add(*x, sum)))
}

/// The engine of a host.
pub struct KnownFunction {
    /// Says which runs panic.
    pub conditions: Conditions,
    /// Told of what runs.
    pub witness: Witness,
}

impl Engine for KnownFunction {
    fn choice(&self) -> EngineChoice {
        EngineChoice::Native
    }

    fn load(&self, bundle: &Bundle) -> Result<Box<dyn Session>, EngineError> {
        let bytes =
            bundle.files.get(MODEL_FILE).ok_or_else(|| EngineError::MissingFile(MODEL_FILE.to_owned()))?;
        let no_model = || EngineError::NotAModel("these bytes are no known function".to_owned());
        let weights = weights(bytes).ok_or_else(no_model)?;
        let port = |name: &str| Port {
            name: name.to_owned(),
            dtype: DType::F32,
            dims: vec![Dim::Free("N".to_owned()), Dim::Fixed(ROW as u64)],
        };
        let signature = Signature { inputs: vec![port("x")], outputs: vec![port("y")] };
        let rows_max = bundle.manifest.batch_rows_max;
        let (conditions, witness) = (self.conditions.clone(), self.witness.clone());
        Ok(Box::new(Known { weights, signature, rows_max, conditions, witness }))
    }
}

struct Known {
    weights: Weights,
    signature: Signature,
    rows_max: u32,
    conditions: Conditions,
    witness: Witness,
}

impl Session for Known {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        cancel: &Cancel,
        sink: &mut dyn Sink,
    ) -> Result<(), EngineError> {
        if cancel.is_raised() {
            return Err(EngineError::Cancelled);
        }
        if self.conditions.panics() {
            // Without the hook, which would print it.
            std::panic::resume_unwind(Box::new("a fault of the simulation"));
        }
        let run = |error: roost_protocol::tensor::TensorError| EngineError::Run(error.to_string());
        let x = inputs[0].elements::<f32>().map_err(run)?;
        self.witness.tell(Fact::Ran { rows: (x.len() / ROW) as u32, rows_max: self.rows_max });
        let y: Vec<f32> = x.chunks_exact(ROW).flat_map(|row| apply(&self.weights, row)).collect();
        let tensor = Tensor::from_elements(inputs[0].shape().dims(), y).map_err(run)?;
        sink.part(vec![Named { name: "y".to_owned(), tensor }]);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn models_differ_and_so_do_their_answers() {
        let row = [1.0, -2.0, 0.5, 3.0];
        assert_eq!(expected(&model(1), row), expected(&model(1), row));
        assert_ne!(expected(&model(1), row), expected(&model(2), row));
        assert_eq!(expected(b"something else", row), None);
    }
}
