//! What a loaded version asks of its requests, worked out once from its signature and its manifest.
//!
//! A version batches when every input and every output has a row axis of free size in `batch_axes`, none holds strings,
//! and `batch_rows_max` is above 1. An input without a row axis would have to be equal in all requests of a batch; finding
//! that out costs a comparison of all its bytes for a case that is rare, so such a version never batches. Nor does one
//! whose rows depend on each other ([`crate::engine::Session::batch_variant`]).

use roost_protocol::limits::{TENSOR_BYTES_MAX, TENSORS_MAX};
use roost_protocol::manifest::Manifest;
use roost_protocol::tensor::TensorError;
use roost_protocol::{DType, ModelVersion, Shape, Tensor};

use crate::engine::{Dim, Port, Signature};

/// What a loaded version asks of its requests.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    /// The version.
    pub version: ModelVersion,
    /// What it takes and gives.
    pub signature: Signature,
    /// The row axis of each input that has one, in the order of the signature.
    pub input_axes: Vec<Option<usize>>,
    /// The row axis of each output that has one, in the order of the signature.
    pub output_axes: Vec<Option<usize>>,
    /// The most rows of one request.
    pub request_rows_max: u32,
    /// The most rows of one batch; a request with more runs alone.
    pub batch_rows_max: u32,
    /// Whether requests may share a batch.
    pub batches: bool,
}

/// Why a manifest does not fit its model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// `batch_axes` names what the model does not have.
    #[error("model.toml: [batch_axes] names {name:?}; the model's inputs and outputs are {known:?}")]
    UnknownPort {
        /// The name.
        name: String,
        /// The names that there are.
        known: Vec<String>,
    },
    /// `batch_axes` names an axis that the input or output does not have.
    #[error("model.toml: [batch_axes] puts the rows of {name:?} on axis {axis}, its shape is {shape}")]
    Axis {
        /// The input or output.
        name: String,
        /// The axis.
        axis: u8,
        /// Its shape.
        shape: String,
    },
    /// More inputs or outputs than a message holds.
    #[error(
        "a model has at most {TENSORS_MAX} inputs and {TENSORS_MAX} outputs, this one has {inputs} and {outputs}"
    )]
    TooManyTensors {
        /// Its inputs.
        inputs: usize,
        /// Its outputs.
        outputs: usize,
    },
    /// A warm-up batch that cannot be made.
    #[error("a warm-up batch of {rows} rows cannot be made: {reason}")]
    WarmUp {
        /// Its rows.
        rows: u32,
        /// Why not.
        reason: TensorError,
    },
}

impl Plan {
    /// The plan for a version that was loaded.
    ///
    /// # Errors
    /// [`PlanError`] when the manifest does not fit the signature.
    pub fn new(version: ModelVersion, signature: Signature, manifest: &Manifest) -> Result<Self, PlanError> {
        let (inputs, outputs) = (signature.inputs.len(), signature.outputs.len());
        if inputs > TENSORS_MAX || outputs > TENSORS_MAX {
            return Err(PlanError::TooManyTensors { inputs, outputs });
        }
        let ports = || signature.inputs.iter().chain(&signature.outputs);
        for name in manifest.batch_axes.keys() {
            if !ports().any(|port| port.name == *name) {
                let known = ports().map(|port| port.name.clone()).collect();
                return Err(PlanError::UnknownPort { name: name.clone(), known });
            }
        }
        let axis = |port: &Port| match manifest.batch_axes.get(&port.name) {
            None => Ok(None),
            Some(axis) if usize::from(*axis) < port.dims.len() => Ok(Some(usize::from(*axis))),
            Some(axis) => {
                Err(PlanError::Axis { name: port.name.clone(), axis: *axis, shape: port.shape_text() })
            }
        };
        let input_axes = signature.inputs.iter().map(axis).collect::<Result<Vec<_>, _>>()?;
        let output_axes = signature.outputs.iter().map(axis).collect::<Result<Vec<_>, _>>()?;
        let can_grow = |(port, axis): (&Port, &Option<usize>)| {
            let free = axis.is_some_and(|axis| matches!(port.dims[axis], Dim::Free(_)));
            free && port.dtype != DType::String
        };
        let batches = manifest.batch_rows_max > 1
            && inputs > 0
            && signature.inputs.iter().zip(&input_axes).all(can_grow)
            && signature.outputs.iter().zip(&output_axes).all(can_grow);
        Ok(Self {
            version,
            signature,
            input_axes,
            output_axes,
            request_rows_max: manifest.limits.rows_max,
            batch_rows_max: manifest.batch_rows_max,
            batches,
        })
    }

    /// The batches that are run once before the version is ready: zeroes, per number of rows in the manifest.
    ///
    /// # Errors
    /// [`PlanError::WarmUp`] when a batch would be too large.
    pub fn warm_up(&self, manifest: &Manifest) -> Result<Vec<WarmUp>, PlanError> {
        let mut rows = manifest.warm_up_rows.clone();
        if rows.is_empty() {
            rows = vec![1, self.batch_rows_max];
        }
        rows.sort_unstable();
        rows.dedup();
        if !self.batches && self.input_axes.iter().all(Option::is_none) {
            // Nothing grows with the rows: all batches would be the same.
            rows.truncate(1);
        }
        rows.into_iter().map(|rows| self.warm_up_batch(rows)).collect()
    }

    fn warm_up_batch(&self, rows: u32) -> Result<WarmUp, PlanError> {
        let mut guessed = false;
        let mut input = |(port, axis): (&Port, &Option<usize>)| {
            let dims = port.dims.iter().enumerate().map(|(i, dim)| match dim {
                Dim::Fixed(size) => *size,
                Dim::Free(_) if *axis == Some(i) => u64::from(rows),
                Dim::Free(_) => {
                    guessed = true;
                    1
                }
            });
            zeroes(port.dtype, &dims.collect::<Vec<_>>())
        };
        let inputs: Result<_, _> =
            self.signature.inputs.iter().zip(&self.input_axes).map(&mut input).collect();
        let inputs = inputs.map_err(|reason| PlanError::WarmUp { rows, reason })?;
        Ok(WarmUp { inputs, guessed })
    }
}

/// A batch that is run once before a version is ready.
#[derive(Debug, Clone, PartialEq)]
pub struct WarmUp {
    /// The inputs, in the order of the signature.
    pub inputs: Vec<Tensor>,
    /// Whether a size was made up, so that a model may rightly refuse the batch.
    pub guessed: bool,
}

fn zeroes(dtype: DType, dims: &[u64]) -> Result<Tensor, TensorError> {
    let shape = Shape::new(dims)?;
    let too_large = || TensorError::TooLarge { shape, dtype };
    // A string of length 0 is four bytes of length.
    let width = dtype.element_bytes().unwrap_or(4) as u64;
    let bytes = shape.elements().and_then(|elements| elements.checked_mul(width)).ok_or_else(too_large)?;
    if bytes > TENSOR_BYTES_MAX {
        return Err(too_large());
    }
    Tensor::new(dtype, shape, vec![0; bytes as usize].into())
}

#[cfg(test)]
pub mod tests {
    use roost_protocol::{ModelName, Version};

    use super::*;

    pub fn port(name: &str, dtype: DType, dims: &[i64]) -> Port {
        let dim = |size: &i64| match u64::try_from(*size) {
            Ok(size) => Dim::Fixed(size),
            Err(_) => Dim::Free("N".to_owned()),
        };
        Port { name: name.to_owned(), dtype, dims: dims.iter().map(dim).collect() }
    }

    pub fn plan_of(inputs: &[Port], outputs: &[Port], manifest: &str) -> Result<Plan, PlanError> {
        let version = ModelVersion { model: ModelName::new("digits").unwrap(), version: Version(2) };
        let signature = Signature { inputs: inputs.to_vec(), outputs: outputs.to_vec() };
        Plan::new(version, signature, &Manifest::parse(manifest).unwrap())
    }

    #[test]
    fn a_version_batches_when_all_its_tensors_have_rows() {
        let (x, y) = (port("x", DType::F32, &[-1, 4]), port("y", DType::F32, &[-1]));
        let batches = |x: &Port, y: &Port, manifest: &str| {
            plan_of(std::slice::from_ref(x), std::slice::from_ref(y), manifest).unwrap().batches
        };
        let both = "[batch_axes]\nx = 0\ny = 0";
        assert!(batches(&x, &y, both));
        assert!(!batches(&x, &y, ""));
        assert!(!batches(&x, &y, "[batch_axes]\nx = 0"));
        assert!(!batches(&x, &y, "[batch_axes]\ny = 0"));
        assert!(!batches(&x, &y, &format!("batch_rows_max = 1\n{both}")));
        assert!(!batches(&port("x", DType::F32, &[1, 4]), &y, both));
        assert!(!batches(&port("x", DType::String, &[-1, 4]), &y, both));
        assert!(!batches(&x, &port("y", DType::String, &[-1]), both));
    }

    #[test]
    fn a_manifest_that_does_not_fit_is_refused() {
        let ports = [port("x", DType::F32, &[-1, 4])];
        let error = |manifest| plan_of(&ports, &[], manifest).unwrap_err().to_string();
        assert_eq!(
            error("[batch_axes]\nz = 0"),
            r#"model.toml: [batch_axes] names "z"; the model's inputs and outputs are ["x"]"#
        );
        assert_eq!(
            error("[batch_axes]\nx = 2"),
            r#"model.toml: [batch_axes] puts the rows of "x" on axis 2, its shape is [N, 4]"#
        );
    }

    #[test]
    fn warm_up_runs_each_size_once() {
        let shapes = |inputs: &[Port], manifest: &str| {
            let batches =
                plan_of(inputs, &[], manifest).unwrap().warm_up(&Manifest::parse(manifest).unwrap());
            let shape = |batch: WarmUp| (batch.inputs[0].shape().to_string(), batch.guessed);
            batches.unwrap().into_iter().map(shape).collect::<Vec<_>>()
        };
        let x = [port("x", DType::F32, &[-1, 4])];
        let known = |shape: &str| (shape.to_owned(), false);
        assert_eq!(shapes(&x, "[batch_axes]\nx = 0"), [known("[1, 4]"), known("[32, 4]")]);
        assert_eq!(
            shapes(&x, "warm_up_rows = [8, 2, 8]\n[batch_axes]\nx = 0"),
            [known("[2, 4]"), known("[8, 4]")]
        );
        assert_eq!(shapes(&x, ""), [("[1, 4]".to_owned(), true)]);
        assert_eq!(shapes(&[port("x", DType::String, &[3])], ""), [known("[3]")]);
        let wide = [port("x", DType::F32, &[-1, 1 << 20])];
        let error = plan_of(&wide, &[], "").unwrap().warm_up_batch(4096);
        assert!(error.is_ok(), "a guessed size does not grow with the rows");
        let error = plan_of(&wide, &[], "[batch_axes]\nx = 0").unwrap().warm_up_batch(4096).unwrap_err();
        assert!(error.to_string().starts_with("a warm-up batch of 4096 rows cannot be made"), "{error}");
    }
}
