//! The engine on ONNX Runtime, whose library is loaded when the engine is made.
//!
//! In reading order: [`library`] finds and loads it, `external` keeps a model's files inside its bundle,
//! `values` takes tensors in and out. A session runs on the one thread that calls it: parallelism comes from
//! several executors, and threads of ONNX Runtime's own would fight with them over the same cores.

mod external;
pub mod library;
mod values;

use std::path::Path;
use std::sync::Arc;

use ort::ErrorCode;
use ort::environment::Environment;
use ort::session::builder::{AutoDevicePolicy, SessionBuilder};
use ort::session::{RunOptions, SessionInputValue};
use roost_protocol::TensorView;
use roost_protocol::bundle::MODEL_FILE;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::messages::infer::Named;

use super::{Bundle, Cancel, Engine, EngineError, Session, Signature, Sink};
use library::Surroundings;

/// A folder that does not exist, as the place of files that a model names. A session is given those of the
/// bundle in memory. ONNX Runtime looks at the disk all the same for the weights of subgraphs, and finds
/// nothing there; else it would look in the current folder.
const NO_FOLDER: &str = "/nonexistent/roost";

/// ONNX Runtime.
#[derive(Debug, Clone)]
pub struct OnnxRuntime {
    environment: Environment,
}

impl OnnxRuntime {
    /// Looks the library up and loads it: the one that the config names; else the one that the environment
    /// variable `ORT_DYLIB_PATH` names; else in `deploy/onnxruntime/` of the current folder and of the
    /// folders above the executable; else beside the executable.
    ///
    /// # Errors
    /// [`EngineError::Library`] when there is none, it cannot be used, or this process runs on another one
    /// already.
    pub fn find(configured: Option<&Path>) -> Result<Self, EngineError> {
        let surroundings = Surroundings {
            configured: configured.map(Path::to_owned),
            variable: std::env::var_os(library::PATH_VARIABLE),
            current_folder: std::env::current_dir().unwrap_or_default(),
            executable: std::env::current_exe().ok(),
        };
        let environment = library::load(library::candidates(&surroundings))?;
        Ok(Self { environment })
    }

    /// The options that every session gets.
    fn options(&self) -> ort::Result<SessionBuilder> {
        Ok(ort::session::Session::builder(&self.environment)?
            .with_intra_threads(1)?
            .with_inter_threads(1)?
            .with_intra_op_spinning(false)?
            .with_inter_op_spinning(false)?
            // It keeps a plan of the memory per shape of the inputs, without a bound, and batches come in
            // many sizes.
            .with_memory_pattern(false)?
            .with_auto_device(AutoDevicePolicy::PreferCPU)?
            .with_config_entry("session.model_external_initializers_file_folder_path", NO_FOLDER)?)
    }
}

impl Engine for OnnxRuntime {
    fn choice(&self) -> EngineChoice {
        EngineChoice::OnnxRuntime
    }

    fn load(&self, bundle: &Bundle) -> Result<Box<dyn Session>, EngineError> {
        let file =
            |name: &str| bundle.files.get(name).ok_or_else(|| EngineError::MissingFile(name.to_owned()));
        let model = file(MODEL_FILE)?;
        let mut builder = self.options().map_err(|error| EngineError::Unsupported(error.to_string()))?;
        let mut weights = Vec::new();
        for name in external::files(model)? {
            // Exporters write `./weights.bin` too. ONNX Runtime takes one `./` off the names that it is given
            // here, and none off the model's, so it gets one more.
            let bytes: Arc<[u8]> = Arc::from(&file(name.strip_prefix("./").unwrap_or(&name))?[..]);
            builder = builder
                .with_external_initializer_file_in_memory(format!("./{name}"), Arc::clone(&bytes))
                .map_err(|error| EngineError::Unsupported(error.to_string()))?;
            weights.push(bytes);
        }
        let session = builder.commit_from_memory(model).map_err(|error| load_error(&error))?;
        let ports =
            |outlets: &[ort::value::Outlet]| outlets.iter().map(values::port).collect::<Result<_, _>>();
        let signature = Signature { inputs: ports(session.inputs())?, outputs: ports(session.outputs())? };
        let options = RunOptions::new().map_err(|error| EngineError::Unsupported(error.to_string()))?;
        Ok(Box::new(OrtSession { session, _weights: weights, signature, options: Arc::new(options) }))
    }
}

/// What a failure to load says of the model. ONNX Runtime's codes do not tell a wrong graph from one that is
/// newer than itself: an operator that it does not know is an invalid graph to it, and a wrong type a general
/// failure.
fn load_error(error: &ort::Error) -> EngineError {
    let text = error.message().to_owned();
    match error.code() {
        ErrorCode::InvalidProtobuf | ErrorCode::NoModel => EngineError::NotAModel(text),
        _ => EngineError::Unsupported(text),
    }
}

struct OrtSession {
    session: ort::session::Session,
    /// The session may point into them, so they are dropped after it.
    _weights: Vec<Arc<[u8]>>,
    signature: Signature,
    options: Arc<RunOptions>,
}

impl Session for OrtSession {
    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn run(
        &mut self,
        inputs: &[TensorView<'_>],
        cancel: &Cancel,
        sink: &mut dyn Sink,
    ) -> Result<(), EngineError> {
        let values = inputs.iter().map(|tensor| values::input(*tensor)).collect::<Result<Vec<_>, _>>()?;
        let tell = {
            let options = Arc::clone(&self.options);
            move || {
                // It fails for a null pointer only.
                let _ = options.terminate();
            }
        };
        let outputs = cancel.while_telling(tell, || self.run_values(&values, cancel));
        if cancel.is_raised() {
            self.options.unterminate().map_err(|error| EngineError::Run(error.to_string()))?;
        }
        sink.part(outputs?);
        Ok(())
    }
}

impl OrtSession {
    fn run_values(
        &mut self,
        values: &[SessionInputValue<'_>],
        cancel: &Cancel,
    ) -> Result<Vec<Named<roost_protocol::Tensor>>, EngineError> {
        // Raised before there was anybody to tell.
        if cancel.is_raised() {
            return Err(EngineError::Cancelled);
        }
        let outputs = self.session.run_with_options(values, &self.options).map_err(|error| {
            // A run that was ended comes back as a general failure.
            if cancel.is_raised() {
                EngineError::Cancelled
            } else {
                EngineError::Run(error.message().to_owned())
            }
        })?;
        let named = |(name, value): (&str, ort::value::ValueRef<'_>)| {
            Ok(Named { name: name.to_owned(), tensor: values::output(name, &value)? })
        };
        outputs.iter().map(named).collect()
    }
}
