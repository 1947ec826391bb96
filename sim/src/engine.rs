//! A session that computes a small known function, for models whose bytes say which.
//!
//! `model.onnx` holds a line `times K`; the session gives `y = K · x` for `x` of `[N, 4] f32`. ONNX Runtime stays out of
//! the simulator: it has threads and clocks of its own.

use roost_node::engine::{Bundle, Cancel, Dim, Engine, EngineError, Port, Session, Signature, Sink};
use roost_protocol::bundle::MODEL_FILE;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::messages::infer::Named;
use roost_protocol::{DType, Tensor, TensorView};

/// The width of a row.
pub const ROW: usize = 4;

/// The bytes of a model that multiplies by `factor`.
pub fn model(factor: u32) -> Vec<u8> {
    format!("times {factor}\n").into_bytes()
}

/// What the model of `factor` gives for a row.
pub fn expected(factor: u32, row: [f32; ROW]) -> [f32; ROW] {
    row.map(|x| x * factor as f32)
}

/// The engine.
pub struct KnownFunction;

impl Engine for KnownFunction {
    fn choice(&self) -> EngineChoice {
        EngineChoice::Native
    }

    fn load(&self, bundle: &Bundle) -> Result<Box<dyn Session>, EngineError> {
        let bytes =
            bundle.files.get(MODEL_FILE).ok_or_else(|| EngineError::MissingFile(MODEL_FILE.to_owned()))?;
        let factor = std::str::from_utf8(bytes)
            .ok()
            .and_then(|text| text.trim().strip_prefix("times "))
            .and_then(|number| number.parse::<u32>().ok())
            .ok_or_else(|| EngineError::NotAModel("no line `times K`".to_owned()))?;
        let port = |name: &str| Port {
            name: name.to_owned(),
            dtype: DType::F32,
            dims: vec![Dim::Free("N".to_owned()), Dim::Fixed(ROW as u64)],
        };
        let signature = Signature { inputs: vec![port("x")], outputs: vec![port("y")] };
        Ok(Box::new(Times { factor, signature }))
    }
}

struct Times {
    factor: u32,
    signature: Signature,
}

impl Session for Times {
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
        let run = |error: roost_protocol::tensor::TensorError| EngineError::Run(error.to_string());
        let x = inputs[0].elements::<f32>().map_err(run)?;
        let y = x.iter().map(|x| x * self.factor as f32).collect();
        let tensor = Tensor::from_elements(inputs[0].shape().dims(), y).map_err(run)?;
        sink.part(vec![Named { name: "y".to_owned(), tensor }]);
        Ok(())
    }
}
