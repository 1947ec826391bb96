//! Real models against the outputs that ship with them, and what they were trained for.

use roost_native::compare::{Tolerance, run_data};
use roost_native::conformance::read_bundle;
use roost_native::{ImportError, Input, Limits, Model, Session, Tensor};

use crate::places;

const F32: Tolerance = Tolerance { absolute: 1e-4, relative: 1e-3, steps: 0 };
/// Outputs of `f16` models have 11 bits.
const F16: Tolerance = Tolerance { absolute: 1e-4, relative: 2e-3, steps: 0 };

#[track_caller]
fn check(name: &str, tolerance: Tolerance) {
    let folder = places::model(name);
    let mut session = Session::new(places::program(&folder, None));
    let sets: Vec<_> =
        (0..).map(|k| folder.join(format!("test_data_set_{k}"))).take_while(|data| data.exists()).collect();
    assert!(!sets.is_empty(), "{name} has no test data");
    for set in sets {
        let report = run_data(&mut session, &set, tolerance).expect("it runs");
        assert!(report.matches(), "{name}: {:?}", report.outputs);
    }
}

macro_rules! models {
    ($($test:ident: $tolerance:expr),* $(,)?) => { $(
        #[test]
        fn $test() {
            check(stringify!($test), $tolerance);
        }
    )* };
}

models! {
    bert_toy: F32,
    digits_lstm: F32,
    digits_v1_logreg: F32,
    digits_v1_mlp: F32,
    digits_v2_conv: F32,
    digits_v2_int8_qdq: F32,
    digits_v2_int8_qdq_s8s8: F32,
    light_densenet121: F32,
    light_resnet50: F32,
    light_shufflenet: F32,
    light_squeezenet: F32,
    mnist_cnn: F32,
    mnist_external_data: F32,
    mnist_int8_convinteger: F32,
    sentence_boundary_bilstm: F32,
    squeezenet_fp16: F16,
    squeezenet_fp32: F32,
    squeezenet_int8_qdq: F32,
    squeezenet_int8_qlinear: F32,
    text_encoder_tiny: F32,
}

#[test]
fn what_is_not_supported_is_named() {
    let files = read_bundle(&places::model("digits_rf_trees")).expect("readable");
    let Err(ImportError::Unsupported(list)) = Model::import(&files, Limits::default()) else {
        panic!("trees are not supported");
    };
    assert_eq!(list[0].op, "ai.onnx.ml::TreeEnsembleClassifier");
}

#[test]
fn models_that_mix_rows_are_marked() {
    let folder = places::model("digits_v2_conv").join("..");
    let names =
        std::fs::read_dir(&folder).expect("the models are there").map(|entry| entry.expect("an entry"));
    let mut mixing = Vec::new();
    let mut apart = 0;
    for entry in names.filter(|entry| entry.path().join("model.onnx").is_file()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        if name == "digits_rf_trees" {
            continue;
        }
        match places::program(&entry.path(), None).batch_variant() {
            Some(why) => mixing.push(format!("{name}: {why}")),
            None => apart += 1,
        }
    }
    mixing.sort();
    let (dynamic, why) = mixing[0].split_once(": ").expect("a reason");
    assert!(
        dynamic == "digits_vit_int8_dynamic" && why.contains("scale is that of the whole batch"),
        "{mixing:#?}"
    );
    assert_eq!((mixing.len(), apart), (1, 20), "{mixing:#?}");
}

/// A NumPy file of little-endian numbers: its shape, and the bytes.
fn npy(path: &std::path::Path) -> (Vec<usize>, Vec<u8>) {
    let bytes = std::fs::read(path).expect("the digits' data is there");
    let len = usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let header = String::from_utf8_lossy(&bytes[10..10 + len]).into_owned();
    let shape =
        header.split('(').nth(1).and_then(|rest| rest.split(')').next()).expect("a header has a shape");
    let dims = shape.split(',').filter_map(|dim| dim.trim().parse().ok()).collect();
    (dims, bytes[10 + len..].to_vec())
}

/// How many of the held-out digits a model gets right.
fn digits_right(name: &str) -> (usize, usize) {
    let data = places::model("digits_v2_conv").join("../digits_data");
    let (shape, images) = npy(&data.join("test_images.npy"));
    let (_, labels) = npy(&data.join("test_labels.npy"));
    let labels: Vec<i64> = labels.as_chunks::<8>().0.iter().map(|label| i64::from_le_bytes(*label)).collect();
    let images = Tensor::from_file(roost_native::DType::F32, shape, images.into()).expect("f32 images");
    let mut session = Session::new(places::program(&places::model(name), None));
    let mut found: Vec<Tensor> = Vec::new();
    session.run(&[Input::from(&images)], &mut found, &|| false).expect("it runs");
    let probs = found[0].floats();
    let best = |row: &[f32]| (0..10).max_by(|a, b| row[*a].total_cmp(&row[*b])).expect("ten classes") as i64;
    let right = probs.chunks_exact(10).zip(&labels).filter(|(row, label)| best(row) == **label).count();
    (right, labels.len())
}

#[test]
fn quantised_digits_keep_their_accuracy() {
    // 98.7 % of the 450 held-out digits, which the model in f32 gets right.
    let (float, all) = digits_right("digits_v2_conv");
    assert_eq!((float, all), (444, 450));
    for name in ["digits_v2_int8_qdq", "digits_v2_int8_qdq_s8s8"] {
        let (right, all) = digits_right(name);
        assert!(right >= float, "{name}: {right} of {all}");
    }
}
