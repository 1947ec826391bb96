//! All 882 operator tests of ONNX 1.18.0, and that none passes without a comparison.

use std::fs;
use std::path::{Path, PathBuf};

use roost_native::Session;
use roost_native::compare::{RunDataError, Tolerance, run_data};
use roost_native::conformance::{Outcome, run_folder, run_test};

use crate::places;

#[test]
fn all_operator_tests_pass() {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/core_onnx118.json");
    let text = fs::read_to_string(list).expect("the list is in the repository");
    // A JSON list of strings without escapes.
    let names: Vec<String> = text.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    assert_eq!(names.len(), 882);
    let report = run_folder(&places::conformance(), Some(&names)).expect("the folder holds tests");
    let bad: Vec<_> = report.tests.iter().filter(|(_, outcome)| **outcome != Outcome::Passed).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(report.passed(), 882);
}

/// A folder with a model of one output, and data sets of so many outputs each.
fn test_of(name: &str, outputs: &[usize]) -> PathBuf {
    let model = places::model("digits_v1_logreg");
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("conformance").join(name);
    let copy = |from: &Path, to: &Path| {
        fs::copy(from, to).expect("a file that can be copied");
    };
    let _ = fs::remove_dir_all(&folder);
    fs::create_dir_all(&folder).expect("the target folder can be written");
    copy(&model.join("model.onnx"), &folder.join("model.onnx"));
    let data = model.join("test_data_set_0");
    for (set, count) in outputs.iter().enumerate() {
        let to = folder.join(format!("test_data_set_{set}"));
        fs::create_dir_all(&to).expect("the target folder can be written");
        copy(&data.join("input_0.pb"), &to.join("input_0.pb"));
        (0..*count).for_each(|j| copy(&data.join("output_0.pb"), &to.join(format!("output_{j}.pb"))));
    }
    folder
}

#[test]
fn a_test_that_compares_nothing_fails() {
    let check = |name: &str, outputs: &[usize], said: Option<&str>| {
        let outcome = run_test(&test_of(name, outputs));
        match (said, &outcome) {
            (None, Outcome::Passed) => {}
            (Some(said), Outcome::Failed(reason)) if reason.contains(said) => {}
            _ => panic!("{name}: {outcome:?}"),
        }
    };
    check("one", &[1], None);
    check("two", &[1, 1], None);
    check("no data", &[], Some("test_data_set_0"));
    check("no output", &[0], Some("output_0.pb"));
    check("no output later", &[1, 0], Some("output_0.pb"));
    check("more", &[1, 2], Some("data set 1: 1 outputs, 2 expected"));
}

#[test]
fn data_of_another_number_of_outputs_is_refused() {
    let folder = test_of("run", &[2]);
    let mut session = Session::new(places::program(&folder, None));
    let tolerance = Tolerance { absolute: 1e-4, relative: 1e-3, steps: 0 };
    let report = run_data(&mut session, &folder.join("test_data_set_0"), tolerance);
    assert!(matches!(report, Err(RunDataError::Count { found: 1, expected: 2, .. })), "{report:?}");
}
