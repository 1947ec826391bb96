//! Models as they were published, against the answers that they were published with.

use roost_protocol::{DType, Tensor};

use crate::load;
use crate::onnx::{numbers, read_tensors, run, test_models};

/// How far an answer may lie from the published one. 1.3e-4 was seen, on another processor than the
/// publisher's. Those without eight-bit dot products may saturate in between, which costs an eight-bit model
/// a step of its output.
fn tolerance(model: &str) -> f64 {
    if model.contains("int8") { 2e-2 } else { 2e-4 }
}

fn check(model: &str, port: &str, actual: &Tensor, expected: &Tensor) {
    assert_eq!((actual.dtype(), actual.shape()), (expected.dtype(), expected.shape()), "{model}, {port}");
    if actual.dtype() == DType::String {
        assert_eq!(actual, expected, "{model}, {port}");
        return;
    }
    let tolerance =
        if matches!(actual.dtype(), DType::F16 | DType::F32 | DType::F64) { tolerance(model) } else { 0.0 };
    for (a, e) in numbers(actual).into_iter().zip(numbers(expected)) {
        assert!((a - e).abs() <= tolerance * (1.0 + e.abs()), "{model}, {port}: {a}, not {e}");
    }
}

/// Runs every test data set of a model.
fn check_model(model: &str) {
    let folder = test_models().join(model);
    let mut session = load(&folder);
    let mut sets = 0;
    for set in (0..).map(|k| folder.join(format!("test_data_set_{k}"))).take_while(|set| set.is_dir()) {
        let outputs =
            run(&mut *session, &read_tensors(&set, "input")).unwrap_or_else(|e| panic!("{model}: {e}"));
        let expected = read_tensors(&set, "output");
        assert_eq!(outputs.len(), expected.len(), "{model}");
        for (output, expected) in outputs.iter().zip(&expected) {
            check(model, &output.name, &output.tensor, expected);
        }
        sets += 1;
    }
    assert!(sets > 0, "{} has no test_data_set_0", folder.display());
}

#[test]
fn small_models_answer_as_published() {
    for model in [
        "bert_toy",
        "digits_lstm",
        "digits_rf_trees",
        "digits_v1_logreg",
        "digits_v1_mlp",
        "digits_v2_conv",
        "digits_v2_int8_qdq",
        "digits_v2_int8_qdq_s8s8",
        "digits_vit_int8_dynamic",
        "mnist_cnn",
        "mnist_external_data",
        "mnist_int8_convinteger",
        "sentence_boundary_bilstm",
        "text_encoder_tiny",
    ] {
        check_model(model);
    }
}

#[test]
fn squeezenets_answer_as_published() {
    for model in ["squeezenet_fp16", "squeezenet_fp32", "squeezenet_int8_qdq", "squeezenet_int8_qlinear"] {
        check_model(model);
    }
}

#[test]
fn full_topologies_answer_as_published() {
    for model in ["light_densenet121", "light_resnet50", "light_shufflenet", "light_squeezenet"] {
        check_model(model);
    }
}
