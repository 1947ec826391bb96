//! Bytes that are no model, and a second library.

use std::path::Path;

use bytes::Bytes;
use roost_node::engine::onnxruntime::OnnxRuntime;
use roost_node::engine::{Engine, EngineError, LibraryError};
use roost_protocol::Tensor;
use roost_protocol::manifest::EngineChoice;

use crate::onnx::{bundle, bundle_of, engine, repository, run};
use crate::refused;

#[test]
fn a_bundle_without_a_model_is_refused() {
    let mut bundle = bundle(&repository().join("deploy/models/digits/v1"));
    bundle.files.remove("model.onnx");
    assert_eq!(refused(&bundle), EngineError::MissingFile("model.onnx".to_owned()));
}

#[test]
fn bytes_that_are_no_model_are_refused() {
    let truncated = |bytes: &Bytes, length: usize| bytes.slice(..length);
    let model = &bundle(&repository().join("deploy/models/digits/v2")).files["model.onnx"];
    let no_models = [
        Bytes::new(),
        Bytes::from_static(b"\0"),
        Bytes::from_static(b"this is a text, and no model"),
        Bytes::from_static(&[0xff; 1000]),
        truncated(model, 10),
        truncated(model, model.len() / 2),
        truncated(model, model.len() - 1),
    ];
    for bytes in no_models {
        let (length, error) = (bytes.len(), refused(&bundle_of(bytes)));
        assert!(matches!(error, EngineError::NotAModel(_)), "{length} bytes: {error:?}");
    }
}

/// Whatever a damaged model comes to, it is an answer.
#[test]
fn a_damaged_model_does_no_damage() {
    let model = &bundle(&repository().join("deploy/models/digits/v1")).files["model.onnx"];
    let engine = engine();
    for bit in (0..model.len() * 8).step_by(13) {
        let mut damaged = model.to_vec();
        damaged[bit / 8] ^= 1 << (bit % 8);
        if let Ok(mut session) = engine.load(&bundle_of(damaged)) {
            let image = Tensor::from_elements(&[1, 1, 8, 8], vec![0f32; 64]).unwrap();
            let _ = run(&mut *session, &[image]);
        }
    }
}

#[test]
fn a_process_has_one_library() {
    let first = engine();
    assert_eq!(first.choice(), EngineChoice::OnnxRuntime);
    engine();
    let other = repository().join("Cargo.toml");
    let error = OnnxRuntime::find(Some(&other)).unwrap_err();
    assert!(matches!(error, EngineError::Library(LibraryError::AnotherLoaded { .. })), "{error:?}");
    let error = OnnxRuntime::find(Some(Path::new("/nonexistent/ort.so"))).unwrap_err();
    assert!(matches!(error, EngineError::Library(LibraryError::NotFound { .. })), "{error:?}");
}
