//! The models of the repository on each engine, through the worker.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use roost_client::npy;
use roost_node::engine::Engine;
use roost_node::engine::native::Native;
use roost_node::engine::onnxruntime::OnnxRuntime;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::quic::Role;
use roost_protocol::tensor::Element;
use roost_protocol::view::Stage;
use roost_protocol::{InferError, Tensor};

use crate::exchange::{ask, header, named};
use crate::world::{Files, Start};

/// Requests that a test has under way at once.
const TOGETHER: usize = 15;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/models/digits")
}

fn files(version: &str) -> Files {
    let read = |name: &str| std::fs::read(folder().join(version).join(name)).unwrap();
    Files::new(read("model.onnx"), std::str::from_utf8(&read("model.toml")).unwrap())
}

fn array<T: Element>(name: &str) -> Vec<T> {
    let file = std::fs::read(folder().join(name)).unwrap();
    npy::read(&file).unwrap().elements::<T>().unwrap().to_vec()
}

async fn start(engine: EngineChoice, versions: &[(&str, Files)]) -> Start {
    let mut start = Start::with(versions).await;
    start.engines.push(match engine {
        EngineChoice::Auto | EngineChoice::Native => Arc::new(Native::new()),
        EngineChoice::OnnxRuntime => {
            Arc::new(OnnxRuntime::find(None).unwrap_or_else(|error| panic!("{error}"))) as Arc<dyn Engine>
        }
    });
    start
}

#[tokio::test]
async fn both_versions_are_as_right_as_they_should_be_on_the_native_engine() {
    check_digits(EngineChoice::Native).await;
}

#[tokio::test]
async fn both_versions_are_as_right_as_they_should_be_on_onnx_runtime() {
    check_digits(EngineChoice::OnnxRuntime).await;
}

async fn check_digits(engine: EngineChoice) {
    let world = start(engine, &[("digits@1", files("v1")), ("digits@2", files("v2"))]).await.ready().await;
    let engines: Vec<_> = world.reports.borrow().iter().map(|report| report.engine).collect();
    assert_eq!(engines, [Some(engine); 2]);
    let link = world.link(&[Role::Client]).await;
    let (images, labels) = (array::<f32>("heldout_images.npy"), array::<i64>("heldout_labels.npy"));
    for (version, expected) in [("digits@1", 418), ("digits@2", 444)] {
        let mut right = 0;
        let ask_one = async |image: &[f32], label: i64| {
            let image = Tensor::from_elements(&[1, 1, 8, 8], image.to_vec()).unwrap();
            let response = ask(&link, header(version), &[named("image", image)]).await;
            let probs = response.f32s("probs").to_vec();
            let best = (0..10).max_by(|a, b| probs[*a].total_cmp(&probs[*b])).unwrap();
            usize::from(best as i64 == label)
        };
        for (images, labels) in images.chunks(64 * TOGETHER).zip(labels.chunks(TOGETHER)) {
            let asked = images.chunks(64).zip(labels).map(|(image, label)| ask_one(image, *label));
            right += futures::future::join_all(asked).await.into_iter().sum::<usize>();
        }
        assert_eq!(right, expected, "{version}");
    }
    let counted = world.worker.statistics();
    assert_eq!(counted.iter().map(|counted| counted.answered).collect::<Vec<_>>(), [450, 450]);
}

#[tokio::test]
async fn a_wrong_shape_is_told_in_the_models_terms() {
    let world = start(EngineChoice::Native, &[("digits@2", files("v2"))]).await.ready().await;
    let link = world.link(&[Role::Client]).await;
    let image = Tensor::from_elements(&[1, 1, 28, 28], vec![0f32; 784]).unwrap();
    let error = ask(&link, header("digits@2"), &[named("image", image)]).await.error().clone();
    assert!(matches!(error, InferError::WrongShape { .. }));
    assert_eq!(error.to_string(), r#"input "image" has the shape [N, 1, 8, 8], [1, 1, 28, 28] came"#);
}

#[tokio::test]
async fn a_corrupt_model_fails_with_a_reason() {
    let mut model = std::fs::read(folder().join("v2/model.onnx")).unwrap();
    model.truncate(model.len() / 2);
    for engine in [EngineChoice::Native, EngineChoice::OnnxRuntime] {
        let versions = [("digits@2", Files::new(model.clone(), ""))];
        let mut world = start(engine, &versions).await.run().await;
        let Stage::Failed { reason } = world.until_stage("failed").await else { panic!() };
        assert!(reason.contains("not an ONNX model"), "{reason}");
    }
}
