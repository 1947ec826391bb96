//! Commands on a model alone, without a cluster.
//!
//! In reading order: [`subject`] loads a model on an engine, [`inputs`] makes what it is fed, [`run`],
//! [`inspect`] and [`conformance`] are the commands.

pub mod conformance;
pub mod inputs;
pub mod inspect;
pub mod run;
mod split;
mod subject;

use clap::ValueEnum;
use roost_protocol::manifest::EngineChoice;

/// Which engine runs the model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineName {
    /// The native engine where it supports the whole graph, else ONNX Runtime.
    Auto,
    /// Roost's own.
    Native,
    /// ONNX Runtime.
    #[value(name = "onnxruntime")]
    OnnxRuntime,
}

impl EngineName {
    fn choice(self) -> EngineChoice {
        match self {
            Self::Auto => EngineChoice::Auto,
            Self::Native => EngineChoice::Native,
            Self::OnnxRuntime => EngineChoice::OnnxRuntime,
        }
    }
}

/// How results are printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// How a command ended that was carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// All is as it should be.
    Good,
    /// Results do not match what was expected.
    Mismatch,
}

/// The name of an engine, as users read it.
fn engine_name(choice: EngineChoice) -> &'static str {
    match choice {
        EngineChoice::Auto => "auto",
        EngineChoice::Native => "native",
        EngineChoice::OnnxRuntime => "onnxruntime",
    }
}
