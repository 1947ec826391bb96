//! The models of the repository, on the held-out images.

use roost_client::npy;
use roost_node::engine::{Cancel, Dim, EngineError, Port, Session};
use roost_protocol::{DType, Tensor, TensorView};

use crate::load;
use crate::onnx::{repository, run};

fn images() -> Vec<f32> {
    let file = std::fs::read(repository().join("deploy/models/digits/heldout_images.npy")).unwrap();
    let images = npy::read(&file).unwrap();
    assert_eq!(images.shape().dims(), [450, 1, 8, 8]);
    images.elements::<f32>().unwrap().to_vec()
}

fn labels() -> Vec<i64> {
    let file = std::fs::read(repository().join("deploy/models/digits/heldout_labels.npy")).unwrap();
    npy::read(&file).unwrap().elements::<i64>().unwrap().to_vec()
}

/// Which of the held-out images the model gets right, at a batch size.
fn right(session: &mut dyn Session, rows: usize) -> usize {
    let (images, labels) = (images(), labels());
    let batches = images.chunks(rows * 64).zip(labels.chunks(rows));
    let right = batches.map(|(images, labels)| {
        let input = Tensor::from_elements(&[labels.len() as u64, 1, 8, 8], images.to_vec()).unwrap();
        let outputs = run(session, &[input]).unwrap();
        assert_eq!((outputs[0].name.as_str(), outputs[0].tensor.dtype()), ("probs", DType::F32));
        let probs = outputs[0].tensor.elements::<f32>().unwrap();
        probs.chunks(10).zip(labels).filter(|(probs, label)| best(probs) as i64 == **label).count()
    });
    right.sum()
}

fn best(probs: &[f32]) -> usize {
    (0..probs.len()).max_by(|a, b| probs[*a].total_cmp(&probs[*b])).unwrap()
}

#[test]
fn both_versions_are_as_right_as_they_should_be_at_any_batch_size() {
    for (version, expected) in [("v1", 418), ("v2", 444)] {
        let mut session = load(&repository().join("deploy/models/digits").join(version));
        for rows in [1, 7, 32, 450] {
            assert_eq!(right(&mut *session, rows), expected, "{version}, {rows} rows at a time");
        }
    }
}

#[test]
fn the_signature_is_the_models() {
    let session = load(&repository().join("deploy/models/digits/v2"));
    let [input] = &session.signature().inputs[..] else { panic!("{:?}", session.signature()) };
    let fixed = [1, 8, 8].map(Dim::Fixed);
    let dims = [Dim::Free("N".to_owned())].into_iter().chain(fixed).collect();
    assert_eq!(*input, Port { name: "image".to_owned(), dtype: DType::F32, dims });
    assert_eq!(input.shape_text(), "[N, 1, 8, 8]");
    let [output] = &session.signature().outputs[..] else { panic!("{:?}", session.signature()) };
    assert_eq!((output.name.as_str(), output.shape_text().as_str()), ("probs", "[N, 10]"));
}

#[test]
fn inputs_that_do_not_fit_fail_and_the_session_stays_usable() {
    let mut session = load(&repository().join("deploy/models/digits/v1"));
    let image = || Tensor::from_elements(&[1, 1, 8, 8], vec![0f32; 64]).unwrap();
    let bad = [
        vec![Tensor::from_elements(&[1, 1, 4, 4], vec![0f32; 16]).unwrap()],
        vec![Tensor::from_elements(&[64], vec![0f32; 64]).unwrap()],
        vec![Tensor::from_elements(&[1, 1, 8, 8], vec![0i64; 64]).unwrap()],
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
    let mut session = load(&repository().join("deploy/models/digits/v2"));
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
