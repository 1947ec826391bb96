//! All 882 operator tests of ONNX 1.18.0.

use std::path::Path;

use roost_native::conformance::{Outcome, run_folder};

use crate::places;

#[test]
fn all_operator_tests_pass() {
    let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/core_onnx118.json");
    let text = std::fs::read_to_string(list).expect("the list is in the repository");
    // A JSON list of strings without escapes.
    let names: Vec<String> = text.split('"').skip(1).step_by(2).map(str::to_owned).collect();
    assert_eq!(names.len(), 882);
    let report = run_folder(&places::conformance(), Some(&names)).expect("the folder holds tests");
    let bad: Vec<_> = report.tests.iter().filter(|(_, outcome)| **outcome != Outcome::Passed).collect();
    assert!(bad.is_empty(), "{bad:#?}");
    assert_eq!(report.passed(), 882);
}
