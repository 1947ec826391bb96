//! Large networks whose weights are made from a seed: they run, to the same bits for any batch.

#[path = "../../benches/speed/networks.rs"]
mod made;

use bytes::Bytes;
use roost_native::onnx::external::Files;
use roost_native::program::Options;
use roost_native::{Input, Limits, Model, Program, Session, Tensor};

fn check(model: Bytes, parameters: usize) {
    assert!(model.len().abs_diff(parameters * 4) < parameters / 10, "{} bytes", model.len());
    let model = Model::import_bytes(model, &Files::new(), Limits::default()).expect("imports");
    let mut session = Session::new(Program::compile(model, Options::default()).expect("compiles"));
    let mut run = |images: &Tensor| {
        let mut found: Vec<Tensor> = Vec::new();
        session.run(&[Input::from(images)], &mut found, &|| false).expect("runs");
        found[0].floats()
    };
    let pixels: Vec<f32> = (0..2 * 3 * 224 * 224).map(|i| (i * 37 % 255) as f32 / 128.0 - 1.0).collect();
    let both = run(&Tensor::of(&[2, 3, 224, 224], &pixels));
    let second = run(&Tensor::of(&[1, 3, 224, 224], &pixels[3 * 224 * 224..]));
    assert_eq!(both[1000..], second);
    let sum: f32 = second.iter().sum();
    assert!((sum - 1.0).abs() < 1e-4 && second.iter().all(|p| (0.0..1.0).contains(p)), "{sum}");
}

#[test]
fn networks_from_a_seed_run_to_the_same_bits_for_any_batch() {
    for ((name, model), parameters) in made::all().into_iter().zip([25_600_000, 3_500_000]) {
        println!("{name}");
        check(model, parameters);
    }
}
