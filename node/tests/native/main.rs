//! Roost's own engine as a node sees it: real models through the trait that all engines implement.
//!
//! A test whose model is missing fails and says what to do. What the engine computes is tested in its own
//! crate.
#![cfg(feature = "native")]
#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

mod photos;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use roost_client::npy;
use roost_kernels::Isa;
use roost_node::engine::native::Native;
use roost_node::engine::{Bundle, Cancel, Dim, Engine, EngineError, Port, Session, Sink};
use roost_protocol::manifest::EngineChoice;
use roost_protocol::messages::infer::Named;
use roost_protocol::{DType, Tensor, TensorView};

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn digits(version: &str) -> Bundle {
    bundle(&repository().join("deploy/models/digits").join(version))
}

/// The folder of the models that are not in the repository.
fn test_models() -> PathBuf {
    let beside = || repository().join("../shared/models");
    let folder = std::env::var_os("ROOST_TEST_MODELS").map_or_else(beside, PathBuf::from);
    let there = folder.is_dir();
    assert!(there, "{} is no folder: set ROOST_TEST_MODELS to the one of the test models", folder.display());
    folder
}

fn test_model(name: &str) -> Bundle {
    bundle(&test_models().join(name))
}

fn bundle(folder: &Path) -> Bundle {
    let mut files = BTreeMap::new();
    for entry in folder.read_dir().unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_file() {
            let bytes = Bytes::from(std::fs::read(entry.path()).unwrap());
            files.insert(entry.file_name().into_string().unwrap(), bytes);
        }
    }
    Bundle { files, manifest: Arc::default(), digest: None }
}

fn load(bundle: &Bundle) -> Box<dyn Session> {
    Native::new().load(bundle).unwrap()
}

fn refused(bundle: &Bundle) -> EngineError {
    Native::new().load(bundle).map(|_| ()).unwrap_err()
}

fn run(session: &mut dyn Session, inputs: &[Tensor]) -> Result<Vec<Named<Tensor>>, EngineError> {
    let views: Vec<_> = inputs.iter().map(Tensor::view).collect();
    let mut parts = Vec::new();
    session.run(&views, &Cancel::new(), &mut parts)?;
    assert_eq!(parts.len(), 1);
    Ok(parts.remove(0))
}

fn images() -> Vec<f32> {
    let file = std::fs::read(repository().join("deploy/models/digits/heldout_images.npy")).unwrap();
    npy::read(&file).unwrap().elements::<f32>().unwrap().to_vec()
}

/// What the model answers to all held-out images, so many rows at a time.
fn probs(session: &mut dyn Session, rows: usize) -> Vec<f32> {
    let answer = |images: &[f32]| {
        let input = Tensor::from_elements(&[(images.len() / 64) as u64, 1, 8, 8], images.to_vec()).unwrap();
        let outputs = run(session, &[input]).unwrap();
        assert_eq!((outputs[0].name.as_str(), outputs[0].tensor.dtype()), ("probs", DType::F32));
        outputs[0].tensor.elements::<f32>().unwrap().to_vec()
    };
    images().chunks(rows * 64).flat_map(answer).collect()
}

#[test]
fn both_versions_are_as_right_as_they_should_be_to_the_same_bits_at_any_batch_size_on_any_kernels() {
    let file = std::fs::read(repository().join("deploy/models/digits/heldout_labels.npy")).unwrap();
    let labels = npy::read(&file).unwrap().elements::<i64>().unwrap().to_vec();
    for (version, expected) in [("v1", 418), ("v2", 444)] {
        let answers = probs(&mut *load(&digits(version)), 450);
        let best = |row: &[f32]| (0..10).max_by(|a, b| row[*a].total_cmp(&row[*b])).unwrap() as i64;
        let right = answers.chunks(10).zip(&labels).filter(|(row, label)| best(row) == **label).count();
        assert_eq!(right, expected, "{version}");
        for isa in Isa::available() {
            let mut session = Native::on(*isa).load(&digits(version)).unwrap();
            for rows in [1, 7, 32] {
                let bits = |values: &[f32]| values.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
                assert_eq!(
                    bits(&probs(&mut *session, rows)),
                    bits(&answers),
                    "{version}, {isa}, {rows} rows"
                );
            }
        }
    }
}

#[test]
fn the_signature_is_the_models() {
    assert_eq!(Native::new().choice(), EngineChoice::Native);
    let session = load(&digits("v2"));
    let [input] = &session.signature().inputs[..] else { panic!("{:?}", session.signature()) };
    let dims = [Dim::Free("N".to_owned())].into_iter().chain([1, 8, 8].map(Dim::Fixed)).collect();
    assert_eq!(*input, Port { name: "image".to_owned(), dtype: DType::F32, dims });
    let [output] = &session.signature().outputs[..] else { panic!("{:?}", session.signature()) };
    assert_eq!((output.name.as_str(), output.shape_text().as_str()), ("probs", "[N, 10]"));
}

#[test]
fn inputs_that_do_not_fit_fail_and_the_session_stays_usable() {
    let mut session = load(&digits("v1"));
    let image = || Tensor::from_elements(&[1, 1, 8, 8], vec![0f32; 64]).unwrap();
    let bad = [
        vec![Tensor::from_elements(&[1, 1, 4, 4], vec![0f32; 16]).unwrap()],
        vec![Tensor::from_elements(&[64], vec![0f32; 64]).unwrap()],
        vec![Tensor::from_elements(&[1, 1, 8, 8], vec![0i64; 64]).unwrap()],
        vec![Tensor::from_strings(&[1], &["seven"]).unwrap()],
        vec![],
        vec![image(), image()],
    ];
    for inputs in bad {
        let error = run(&mut *session, &inputs).unwrap_err();
        assert!(matches!(error, EngineError::Run(_)), "{inputs:?}: {error:?}");
    }
    run(&mut *session, &[image()]).unwrap();
}

#[test]
fn an_input_may_lie_at_any_address() {
    let mut session = load(&digits("v2"));
    let image = Tensor::from_elements(&[1, 1, 8, 8], images()[..64].to_vec()).unwrap();
    let expected = run(&mut *session, std::slice::from_ref(&image)).unwrap();
    let mut bytes = vec![0; 4 * 64 + 8];
    for offset in 0..8 {
        let place = offset..offset + 4 * 64;
        bytes[place.clone()].copy_from_slice(image.bytes());
        let view = TensorView::new(DType::F32, image.shape(), &bytes[place]).unwrap();
        let mut parts = Vec::new();
        session.run(&[view], &Cancel::new(), &mut parts).unwrap();
        assert_eq!(parts, std::slice::from_ref(&expected), "at offset {offset}");
    }
}

#[test]
fn a_run_ends_between_nodes_once_it_is_cancelled_and_gives_nothing() {
    struct Nothing;
    impl Sink for Nothing {
        fn part(&mut self, outputs: Vec<Named<Tensor>>) {
            panic!("a cancelled run gave {outputs:?}");
        }
    }
    let mut session = load(&digits("v2"));
    let image = Tensor::from_elements(&[1, 1, 8, 8], vec![0f32; 64]).unwrap();
    let cancel = Cancel::new();
    cancel.raise();
    assert_eq!(session.run(&[image.view()], &cancel, &mut Nothing), Err(EngineError::Cancelled));
    run(&mut *session, &[image]).unwrap();
}

#[test]
fn a_model_whose_rows_depend_on_each_other_says_so() {
    assert_eq!(load(&digits("v2")).batch_variant(), None);
    let session = load(&test_model("digits_vit_int8_dynamic"));
    let why = session.batch_variant().unwrap_or_default().to_owned();
    assert!(why.contains("DynamicQuantizeLinear") && why.contains("whole batch"), "{why}");
}

#[test]
fn external_data_is_that_of_the_bundle() {
    let mut bundle = test_model("mnist_external_data");
    load(&bundle);
    let (name, _) = bundle.files.iter().find(|(name, _)| name.ends_with(".data")).unwrap();
    let name = name.clone();
    bundle.files.remove(&name);
    assert_eq!(refused(&bundle), EngineError::MissingFile(name));
}

#[test]
fn what_it_does_not_support_is_left_to_another_engine_and_what_is_no_model_is_not() {
    let error = refused(&test_model("digits_rf_trees"));
    let EngineError::Unsupported(why) = &error else { panic!("{error:?}") };
    assert!(why.contains("TreeEnsembleClassifier"), "{why}");
    let mut bundle = digits("v2");
    let model = bundle.files["model.onnx"].clone();
    bundle.files.insert("model.onnx".to_owned(), model.slice(..model.len() / 2));
    assert!(matches!(refused(&bundle), EngineError::NotAModel(_)));
    bundle.files.remove("model.onnx");
    assert_eq!(refused(&bundle), EngineError::MissingFile("model.onnx".to_owned()));
}
