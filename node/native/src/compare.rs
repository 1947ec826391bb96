//! Test data: `input_<j>.pb` and `output_<j>.pb` of a folder, and comparison within a tolerance.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use prost::Message;
use sha2::{Digest, Sha256};

use crate::error::{ImportError, RunError};
use crate::onnx::external::{Files, tensor};
use crate::onnx::proto::TensorProto;
use crate::session::{Input, Session};
use crate::tensor::{DType, Tensor};

/// How far a value may be from what is expected: `|a - e| <= absolute + relative * |e|`; NaN equals NaN.
/// Integers and `bool` are equal, unless `steps` allows a distance.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Allowed at zero.
    pub absolute: f64,
    /// Allowed per unit of the expected value.
    pub relative: f64,
    /// Allowed distance of integers.
    pub steps: u64,
}

/// Why test data cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DataError {
    /// A file cannot be read.
    #[error("{}: {source}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file is no model.
    #[error("{}: {source}", .path.display())]
    Model {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImportError,
    },
    /// A file is no tensor.
    #[error("{}: {source}", .path.display())]
    Tensor {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ImportError,
    },
    /// The folder has no file of this kind.
    #[error("{} has no {kind}_0.pb", .folder.display())]
    Missing {
        /// The folder.
        folder: PathBuf,
        /// `input` or `output`.
        kind: &'static str,
    },
}

/// Reads one `.pb` file with a tensor.
///
/// # Errors
/// [`DataError`].
pub fn read_tensor(path: &Path) -> Result<Tensor, DataError> {
    let bytes = std::fs::read(path).map_err(|source| DataError::Read { path: path.into(), source })?;
    let wrong = |source| DataError::Tensor { path: path.into(), source };
    let proto =
        TensorProto::decode(Bytes::from(bytes)).map_err(|e| wrong(ImportError::NotAModel(e.to_string())))?;
    tensor(&proto, &Files::new()).map_err(wrong)
}

/// Reads `<kind>_0.pb`, `<kind>_1.pb`, ... up to the first gap.
///
/// # Errors
/// [`DataError`].
pub fn read_tensors(folder: &Path, kind: &'static str) -> Result<Vec<Tensor>, DataError> {
    let paths = (0..).map(|j| folder.join(format!("{kind}_{j}.pb"))).take_while(|path| path.exists());
    paths.map(|path| read_tensor(&path)).collect()
}

/// What a comparison found.
#[derive(Debug, Clone, PartialEq)]
pub enum Match {
    /// Everything is within the tolerance; the largest difference.
    Within {
        /// Largest absolute difference.
        largest: f64,
    },
    /// Another type or shape.
    Form {
        /// What came.
        found: String,
        /// What was expected.
        expected: String,
    },
    /// A value is off; the worst one.
    Off {
        /// Where.
        at: usize,
        /// What came.
        found: f64,
        /// What was expected.
        expected: f64,
        /// How many values are off.
        count: usize,
    },
}

/// Compares a result with what is expected.
pub fn compare(found: &Tensor, expected: &Tensor, tolerance: Tolerance) -> Match {
    let form = |t: &Tensor| format!("{} {:?}", t.dtype(), t.shape());
    if found.dtype() != expected.dtype() || found.shape() != expected.shape() {
        return Match::Form { found: form(found), expected: form(expected) };
    }
    if let (Some(a), Some(e)) = (found.ints(), expected.ints()) {
        let distance = |a: i64, e: i64| a.abs_diff(e);
        let off: Vec<usize> = (0..a.len()).filter(|i| distance(a[*i], e[*i]) > tolerance.steps).collect();
        let largest = a.iter().zip(&e).map(|(a, e)| distance(*a, *e)).max().unwrap_or(0);
        return match off.first() {
            None => Match::Within { largest: largest as f64 },
            Some(at) => {
                Match::Off { at: *at, found: a[*at] as f64, expected: e[*at] as f64, count: off.len() }
            }
        };
    }
    if found.dtype() == DType::U64 {
        let same = found.bytes() == expected.bytes();
        let off = Match::Off { at: 0, found: 0.0, expected: 0.0, count: 1 };
        return if same { Match::Within { largest: 0.0 } } else { off };
    }
    let wide = |t: &Tensor| match t.dtype() {
        DType::F64 => t.values::<f64>().into_owned(),
        _ => t.floats().into_iter().map(f64::from).collect(),
    };
    let (a, e) = (wide(found), wide(expected));
    let (mut largest, mut worst, mut count) = (0.0_f64, (0.0_f64, 0), 0);
    for (i, (a, e)) in a.iter().zip(&e).enumerate() {
        if (a.is_nan() && e.is_nan()) || a == e {
            continue;
        }
        let difference = (a - e).abs();
        largest = largest.max(difference);
        let excess = difference - (tolerance.absolute + tolerance.relative * e.abs());
        if excess > 0.0 || excess.is_nan() {
            count += 1;
            if excess > worst.0 || excess.is_nan() {
                worst = (excess, i);
            }
        }
    }
    let at = worst.1;
    if count == 0 {
        Match::Within { largest }
    } else {
        Match::Off { at, found: a[at], expected: e[at], count }
    }
}

/// How a run on a folder of test data went.
#[derive(Debug, Clone, PartialEq)]
pub struct DataReport {
    /// One comparison per output, in the order of the model.
    pub outputs: Vec<Match>,
    /// The SHA-256 of all output bytes, in order.
    pub digest: String,
}

impl DataReport {
    /// Whether everything is within the tolerance.
    pub fn matches(&self) -> bool {
        self.outputs.iter().all(|output| matches!(output, Match::Within { .. }))
    }
}

/// Why a folder of test data cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum RunDataError {
    /// The data.
    #[error(transparent)]
    Data(#[from] Box<DataError>),
    /// The run.
    #[error(transparent)]
    Run(#[from] RunError),
    /// What cannot be compared one by one.
    #[error("{found} outputs came, {} has {expected}", .folder.display())]
    Count {
        /// The data.
        folder: PathBuf,
        /// Outputs that came.
        found: usize,
        /// Outputs that the data has.
        expected: usize,
    },
}

/// Runs `input_<j>.pb` of a folder and compares with its `output_<j>.pb`.
///
/// # Errors
/// [`RunDataError`], also where outputs are not as many as expected; results that do not match are no error
/// but in the report.
pub fn run_data(
    session: &mut Session,
    folder: &Path,
    tolerance: Tolerance,
) -> Result<DataReport, RunDataError> {
    let inputs = read_tensors(folder, "input").map_err(Box::new)?;
    let expected = read_tensors(folder, "output").map_err(Box::new)?;
    if expected.is_empty() {
        return Err(Box::new(DataError::Missing { folder: folder.to_owned(), kind: "output" }).into());
    }
    let mut found: Vec<Tensor> = Vec::new();
    let borrowed: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
    session.run(&borrowed, &mut found, &|| false)?;
    if found.len() != expected.len() {
        let (found, expected) = (found.len(), expected.len());
        return Err(RunDataError::Count { folder: folder.to_owned(), found, expected });
    }
    let digest = digest(found.iter().map(Tensor::bytes));
    let outputs =
        found.iter().zip(&expected).map(|(found, expected)| compare(found, expected, tolerance)).collect();
    Ok(DataReport { outputs, digest })
}

/// The SHA-256 of all outputs' bytes, in order, as hexadecimal digits.
pub fn digest<'a>(outputs: impl IntoIterator<Item = &'a [u8]>) -> String {
    let mut hash = Sha256::new();
    outputs.into_iter().for_each(|bytes| hash.update(bytes));
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLERANCE: Tolerance = Tolerance { absolute: 1e-7, relative: 1e-3, steps: 0 };

    #[test]
    fn comparison_knows_nan_infinity_and_distance() {
        let check = |a: f32, e: f32| {
            let found = compare(&Tensor::of(&[1], &[a]), &Tensor::of(&[1], &[e]), TOLERANCE);
            matches!(found, Match::Within { .. })
        };
        assert!(check(1.0, 1.0009) && check(f32::NAN, f32::NAN) && check(f32::INFINITY, f32::INFINITY));
        assert!(!check(1.0, 1.01) && !check(f32::NAN, 1.0) && !check(1.0, f32::NAN));
        assert!(!check(f32::INFINITY, f32::NEG_INFINITY) && !check(f32::INFINITY, 1.0));
    }

    #[test]
    fn integers_are_compared_in_steps() {
        let (a, e) = (Tensor::of(&[2], &[1_u8, 5]), Tensor::of(&[2], &[1_u8, 6]));
        assert!(matches!(compare(&a, &e, TOLERANCE), Match::Off { at: 1, count: 1, .. }));
        assert_eq!(compare(&a, &e, Tolerance { steps: 1, ..TOLERANCE }), Match::Within { largest: 1.0 });
    }
}
