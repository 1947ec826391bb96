//! Runs a folder of ONNX backend tests: `<kind>/<test>/{model.onnx, test_data_set_<k>/}`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use crate::compare::{DataError, Match, Tolerance, compare, read_tensors};
use crate::error::{ImportError, RunError};
use crate::onnx::external::Files;
use crate::onnx::glance::read_files;
use crate::onnx::import::{Limits, MODEL_FILE, Model};
use crate::program::{CompileError, Options, Program};
use crate::session::{Input, Session};
use crate::tensor::Tensor;

/// The tolerance of ONNX's own runner.
pub const TOLERANCE: Tolerance = Tolerance { absolute: 1e-7, relative: 1e-3, steps: 0 };

/// How a test went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// All outputs match.
    Passed,
    /// The engine does not have what the test needs.
    Unsupported(String),
    /// An error, or an output that does not match.
    Failed(String),
}

/// How a folder of tests went.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// Outcome by test name, `<kind>/<test>`.
    pub tests: BTreeMap<String, Outcome>,
}

impl Report {
    /// Tests that passed.
    pub fn passed(&self) -> usize {
        self.tests.values().filter(|outcome| **outcome == Outcome::Passed).count()
    }

    /// Tests that failed.
    pub fn failed(&self) -> usize {
        self.tests.values().filter(|outcome| matches!(outcome, Outcome::Failed(_))).count()
    }

    /// Tests that need what the engine does not have.
    pub fn unsupported(&self) -> usize {
        self.tests.values().filter(|outcome| matches!(outcome, Outcome::Unsupported(_))).count()
    }
}

/// Why a folder cannot be tested at all.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    /// A folder cannot be listed.
    #[error("{}: {source}", .path.display())]
    List {
        /// The folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// There is no test in it.
    #[error("{} holds no test: no model.onnx in its folders or theirs", .0.display())]
    Empty(PathBuf),
}

/// Runs all tests under `folder`, or those that `list` names.
///
/// # Errors
/// [`FolderError`]; a test that goes wrong is an [`Outcome`].
pub fn run_folder(folder: &Path, list: Option<&[String]>) -> Result<Report, FolderError> {
    let mut report = Report::default();
    let names = match list {
        Some(list) => list.to_vec(),
        None => names(folder)?,
    };
    for name in names {
        let outcome = run_test(&folder.join(&name));
        report.tests.insert(name, outcome);
    }
    Ok(report)
}

/// The tests under `folder`: the folders with a `model.onnx`, one or two levels down, sorted.
///
/// # Errors
/// [`FolderError`], also when there is none.
pub fn names(folder: &Path) -> Result<Vec<String>, FolderError> {
    let list = |path: &Path| -> Result<Vec<PathBuf>, FolderError> {
        let wrong = |source| FolderError::List { path: path.to_owned(), source };
        let entries = std::fs::read_dir(path).map_err(wrong)?;
        let mut found = entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(wrong)?;
        found.retain(|path| path.is_dir());
        found.sort();
        Ok(found)
    };
    let mut names = Vec::new();
    for kind in list(folder)? {
        let tests = if kind.join(MODEL_FILE).exists() { vec![kind] } else { list(&kind)? };
        for test in tests.iter().filter(|test| test.join(MODEL_FILE).exists()) {
            names.extend(test.strip_prefix(folder).ok().map(|name| name.to_string_lossy().into_owned()));
        }
    }
    if names.is_empty() {
        return Err(FolderError::Empty(folder.to_owned()));
    }
    Ok(names)
}

/// Why a test's data does not show that an engine passes it.
#[derive(Debug, thiserror::Error)]
pub enum DataSetError {
    /// A file.
    #[error(transparent)]
    Data(#[from] Box<DataError>),
    /// There is nothing to compare with.
    #[error("{} has no test_data_set_0", .0.display())]
    NoDataSet(PathBuf),
    /// What cannot be compared one by one.
    #[error("data set {set}: {found} outputs, {expected} expected")]
    Count {
        /// Which data set.
        set: usize,
        /// Outputs that came.
        found: usize,
        /// Outputs that the data set has.
        expected: usize,
    },
    /// An output is not what is expected.
    #[error("data set {set}, output {output}: {found:?}")]
    Mismatch {
        /// Which data set.
        set: usize,
        /// Which output.
        output: usize,
        /// How it differs.
        found: Match,
    },
}

/// Runs all data sets of a test on an engine, and compares every output within [`TOLERANCE`].
///
/// # Errors
/// [`DataSetError`], also where there is no data set or no output; and what the engine returns.
pub fn run_data_sets<E: From<DataSetError>>(
    test: &Path,
    mut engine: impl FnMut(&[Tensor]) -> Result<Vec<Tensor>, E>,
) -> Result<(), E> {
    let data = |k: usize| test.join(format!("test_data_set_{k}"));
    if !data(0).exists() {
        return Err(DataSetError::NoDataSet(test.to_owned()).into());
    }
    let read =
        |folder: &Path, kind| read_tensors(folder, kind).map_err(|error| DataSetError::Data(Box::new(error)));
    for (set, folder) in (0..).map(data).take_while(|folder| folder.exists()).enumerate() {
        let expected = read(&folder, "output")?;
        if expected.is_empty() {
            let missing = DataError::Missing { folder, kind: "output" };
            return Err(DataSetError::Data(Box::new(missing)).into());
        }
        let found = engine(&read(&folder, "input")?)?;
        if found.len() != expected.len() {
            let (found, expected) = (found.len(), expected.len());
            return Err(DataSetError::Count { set, found, expected }.into());
        }
        for (output, (found, expected)) in found.iter().zip(&expected).enumerate() {
            match compare(found, expected, TOLERANCE) {
                Match::Within { .. } => {}
                found => return Err(DataSetError::Mismatch { set, output, found }.into()),
            }
        }
    }
    Ok(())
}

#[derive(Debug, thiserror::Error)]
enum TestError {
    #[error(transparent)]
    Bundle(Box<DataError>),
    #[error(transparent)]
    Data(#[from] DataSetError),
    #[error(transparent)]
    Import(#[from] ImportError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error(transparent)]
    Compile(#[from] CompileError),
}

/// Runs one test with all its data sets.
pub fn run_test(test: &Path) -> Outcome {
    match try_test(test) {
        Ok(()) => Outcome::Passed,
        Err(TestError::Import(error @ ImportError::Unsupported(_)))
        | Err(TestError::Compile(CompileError::Import(error @ ImportError::Unsupported(_)))) => {
            Outcome::Unsupported(error.to_string())
        }
        Err(TestError::Run(RunError::Op {
            source: error @ crate::error::OpError::Unsupported(_), ..
        })) => Outcome::Unsupported(error.to_string()),
        Err(error) => Outcome::Failed(error.to_string()),
    }
}

fn try_test(test: &Path) -> Result<(), TestError> {
    let files = read_bundle(test).map_err(|error| TestError::Bundle(Box::new(error)))?;
    let model = Model::import(&files, Limits::default())?;
    let mut session = Session::new(Program::compile(model, Options::default())?);
    run_data_sets(test, |inputs| {
        let inputs: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
        let mut found: Vec<Tensor> = Vec::new();
        session.run(&inputs, &mut found, &|| false)?;
        Ok(found)
    })
}

/// `model.onnx` of a folder and the files that it names, read whole.
///
/// # Errors
/// As [`read_files`].
pub fn read_bundle(folder: &Path) -> Result<Files, DataError> {
    read_files(folder, &folder.join(MODEL_FILE))
}
