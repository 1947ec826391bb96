//! The errors of the data plane. Hot, so they are archived like the messages that carry them.

use rkyv::{Archive, Deserialize as RkyvDeserialize, Serialize as RkyvSerialize};

/// Why a request for inference has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Archive, RkyvSerialize, RkyvDeserialize)]
pub enum InferError {
    /// The view has no model of that name.
    #[error("there is no model {model:?}")]
    UnknownModel {
        /// The name.
        model: String,
    },
    /// The model has no such version, or none that is hosted.
    #[error("{model}@{version} is not hosted; hosted: {hosted:?}")]
    UnknownVersion {
        /// The model.
        model: String,
        /// The version that was asked for.
        version: u32,
        /// The versions that are hosted.
        hosted: Vec<u32>,
    },
    /// No version of the model bears the label.
    #[error("no version of {model} bears the label {label:?}")]
    UnknownLabel {
        /// The model.
        model: String,
        /// The label.
        label: String,
    },
    /// The node does not serve the version; its view is of this epoch, and a newer one says where to go.
    #[error("this node does not serve {model}@{version} (its view: generation {generation}, index {index})")]
    NotHere {
        /// The model.
        model: String,
        /// The version.
        version: u32,
        /// The generation of the node's view.
        generation: u32,
        /// The log index of the node's view.
        index: u64,
    },
    /// The node knows a newer traffic revision, which picks another version for the key.
    #[error("the traffic of {model} is at revision {newest}, the request was routed by {used}")]
    StaleView {
        /// The model.
        model: String,
        /// The revision that the request was routed by.
        used: u64,
        /// The newest that the node knows.
        newest: u64,
        /// The generation that the newest is of: a restore from a backup may take revisions back.
        generation: u32,
    },
    /// No replica can serve the version now.
    #[error("no replica of {model}@{version} is ready")]
    Unavailable {
        /// The model.
        model: String,
        /// The version.
        version: u32,
    },
    /// The node has as much waiting as it may.
    #[error("the node is overloaded; try again in {retry_after_us} µs")]
    Overloaded {
        /// When a further try makes sense.
        retry_after_us: u64,
    },
    /// The deadline passed.
    #[error("the deadline passed before an answer came")]
    DeadlineExceeded,
    /// Whoever asked gave up.
    #[error("the request was cancelled")]
    Cancelled,
    /// The node is stopping.
    #[error("the node is stopping")]
    Stopping,
    /// The model has no input of that name.
    #[error("{model} has no input {input:?}; its inputs are {inputs:?}")]
    UnknownInput {
        /// The model and version.
        model: String,
        /// The name that came.
        input: String,
        /// The names that there are.
        inputs: Vec<String>,
    },
    /// An input was not given.
    #[error("{model} needs an input {input:?}")]
    MissingInput {
        /// The model and version.
        model: String,
        /// The input that is missing.
        input: String,
    },
    /// An input was given twice.
    #[error("the input {input:?} was given twice")]
    DuplicateInput {
        /// The input.
        input: String,
    },
    /// The model has no output of that name.
    #[error("{model} has no output {output:?}; its outputs are {outputs:?}")]
    UnknownOutput {
        /// The model and version.
        model: String,
        /// The name that came.
        output: String,
        /// The names that there are.
        outputs: Vec<String>,
    },
    /// An input has another element type.
    #[error("input {input:?} is of {expected}, {actual} came")]
    WrongDType {
        /// The input.
        input: String,
        /// The model's type.
        expected: String,
        /// The type that came.
        actual: String,
    },
    /// An input has another rank, or another size along an axis that is fixed.
    #[error("input {input:?} has the shape {expected}, {actual} came")]
    WrongShape {
        /// The input.
        input: String,
        /// The model's shape; a dimension that may vary is its name.
        expected: String,
        /// The shape that came.
        actual: String,
    },
    /// Inputs disagree on how many rows the request has.
    #[error("input {input:?} has {actual} rows, another input has {expected}")]
    RowsDiffer {
        /// The input.
        input: String,
        /// Rows of the other input.
        expected: u64,
        /// Rows of this one.
        actual: u64,
    },
    /// A bound was passed.
    #[error("{what} may be {max} at most, it is {actual}")]
    LimitExceeded {
        /// The bound.
        what: String,
        /// Its value.
        max: u64,
        /// What came.
        actual: u64,
    },
    /// The bytes are not a message.
    #[error("malformed message: {what}")]
    Malformed {
        /// Where reading failed.
        what: String,
    },
    /// A field has a value that this node does not know.
    #[error("this node does not support {field} {code}")]
    Unsupported {
        /// The field.
        field: String,
        /// Its value.
        code: u32,
    },
    /// The executor that held the request died. Another may answer.
    #[error("the executor that held the request died: {reason}")]
    ExecutorFailed {
        /// Why.
        reason: String,
    },
    /// The model's session answered with an error.
    #[error("the model failed: {reason}")]
    ModelFailed {
        /// What the engine said.
        reason: String,
    },
    /// The certificate has no role that may ask for this.
    #[error("this needs a certificate with the role {needed}")]
    Forbidden {
        /// The role that is needed.
        needed: String,
    },
    /// The connection broke, or could not be made.
    #[error("cannot reach {node}: {reason}")]
    Unreachable {
        /// The node, or its address.
        node: String,
        /// What failed.
        reason: String,
    },
}

impl InferError {
    /// Whether another attempt, elsewhere or with a newer view, may succeed.
    pub fn retryable(&self) -> bool {
        match self {
            Self::NotHere { .. }
            | Self::StaleView { .. }
            | Self::Unavailable { .. }
            | Self::Overloaded { .. }
            | Self::Stopping
            | Self::ExecutorFailed { .. }
            | Self::Unreachable { .. } => true,
            Self::UnknownModel { .. }
            | Self::UnknownVersion { .. }
            | Self::UnknownLabel { .. }
            | Self::DeadlineExceeded
            | Self::Cancelled
            | Self::UnknownInput { .. }
            | Self::MissingInput { .. }
            | Self::DuplicateInput { .. }
            | Self::UnknownOutput { .. }
            | Self::WrongDType { .. }
            | Self::WrongShape { .. }
            | Self::RowsDiffer { .. }
            | Self::LimitExceeded { .. }
            | Self::Malformed { .. }
            | Self::Unsupported { .. }
            | Self::ModelFailed { .. }
            | Self::Forbidden { .. } => false,
        }
    }
}
