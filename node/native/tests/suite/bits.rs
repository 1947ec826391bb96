//! The promise: the same bits on every instruction set, for any batch, planned or interpreted; and no
//! allocation for shapes seen before.

use std::sync::{Arc, Barrier};

use bytes::Bytes;
use roost_kernels::Isa;
use roost_native::compare::digest;
use roost_native::exec::interpret;
use roost_native::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use roost_native::program::Options;
use roost_native::{DType, Input, Program, Session, Tensor, inspect};

use crate::empty::{Attribute, Given, full, run as run_one};
use crate::hostile::{import, model, node};
use crate::places;

/// Numbers that repeat, between -1 and 1.
fn numbers(shape: &[usize]) -> Tensor {
    let mut state = 0x9e37_79b9_u32;
    let len: usize = shape.iter().product();
    let values: Vec<f32> = (0..len)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        })
        .collect();
    Tensor::of(shape, &values)
}

fn run(session: &mut Session, inputs: &[Tensor]) -> Vec<Tensor> {
    let inputs: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
    let mut found = Vec::new();
    session.run(&inputs, &mut found, &|| false).expect("it runs");
    found
}

/// Inputs of a model for a batch: numbers, or for token ids and bytes small integers.
fn inputs(name: &str, batch: usize) -> Vec<Tensor> {
    let tokens = |len: usize| (0..batch * len).map(|i| (i * 37 % 97) as i64).collect::<Vec<_>>();
    match name {
        "text_encoder_tiny" => {
            vec![Tensor::of(&[batch, 12], &tokens(12)), Tensor::of(&[batch, 12], &vec![1_i64; batch * 12])]
        }
        "sentence_boundary_bilstm" => {
            let bytes: Vec<u8> = tokens(10).iter().map(|token| *token as u8).collect();
            vec![Tensor::of_dtype(DType::U8, &[batch, 10], &bytes)]
        }
        _ => vec![numbers(&[batch, 1, 8, 8])],
    }
}

const MODELS: [&str; 8] = [
    "digits_v1_logreg",
    "digits_v1_mlp",
    "digits_v2_conv",
    "digits_v2_int8_qdq",
    "digits_v2_int8_qdq_s8s8",
    "digits_lstm",
    "text_encoder_tiny",
    "sentence_boundary_bilstm",
];

#[test]
fn every_instruction_set_gives_the_same_bits() {
    for name in MODELS {
        let folder = places::model(name);
        let on = |isa: Isa| {
            let mut session = Session::new(places::program(&folder, Some(isa)));
            digest(run(&mut session, &inputs(name, 3)).iter().map(Tensor::bytes))
        };
        let expected = on(Isa::Scalar);
        for isa in Isa::available() {
            assert_eq!(on(*isa), expected, "{name} on {isa}");
        }
    }
}

#[test]
fn a_row_does_not_depend_on_its_batch() {
    for name in MODELS {
        let mut session = Session::new(places::program(&places::model(name), None));
        let whole = inputs(name, 9);
        let expected = run(&mut session, &whole);
        for row in [0, 4, 8] {
            let slice = |tensor: &Tensor| {
                let bytes = tensor.bytes().len() / 9;
                let mut shape = tensor.shape().to_vec();
                shape[0] = 1;
                Tensor::of_dtype(tensor.dtype(), &shape, &tensor.bytes()[row * bytes..(row + 1) * bytes])
            };
            let alone: Vec<Tensor> = whole.iter().map(slice).collect();
            for (found, expected) in run(&mut session, &alone).iter().zip(&expected) {
                assert_eq!(found.bytes(), slice(expected).bytes(), "{name}, row {row}");
            }
        }
    }
}

/// Rows of a tensor.
fn rows(tensor: &Tensor, range: std::ops::Range<usize>) -> Tensor {
    let mut shape = tensor.shape().to_vec();
    let bytes = tensor.bytes().len() / shape[0];
    shape[0] = range.len();
    Tensor::of_dtype(tensor.dtype(), &shape, &tensor.bytes()[range.start * bytes..range.end * bytes])
}

#[test]
fn a_batch_split_over_threads_gives_the_same_bits() {
    // Neither a multiple of 8 nor of a tile, so that shares differ.
    const ROWS: usize = 19;
    for name in MODELS {
        let program = places::program(&places::model(name), None);
        assert_eq!(program.batch_variant(), None, "{name}");
        let whole = inputs(name, ROWS);
        let expected = run(&mut Session::new(Arc::clone(&program)), &whole);
        for threads in 1..=8 {
            let share = |at: usize| ROWS * at / threads..ROWS * (at + 1) / threads;
            let parts: Vec<Vec<Tensor>> = std::thread::scope(|scope| {
                let part = |at: usize| {
                    let share: Vec<Tensor> = whole.iter().map(|tensor| rows(tensor, share(at))).collect();
                    let mut session = Session::new(Arc::clone(&program));
                    scope.spawn(move || run(&mut session, &share))
                };
                let running: Vec<_> = (0..threads).map(part).collect();
                running.into_iter().map(|thread| thread.join().expect("it runs")).collect()
            });
            for (i, expected) in expected.iter().enumerate() {
                let found: Vec<u8> = parts.iter().flat_map(|part| part[i].bytes()).copied().collect();
                assert_eq!(found, expected.bytes(), "{name}, output {i} on {threads} threads");
            }
        }
    }
}

#[test]
fn sessions_that_run_at_once_give_the_same_bits() {
    const THREADS: usize = 4;
    let batches = [1, 2, 5, 9];
    for name in MODELS {
        let folder = places::model(name);
        let all: Vec<_> = batches.iter().map(|batch| inputs(name, *batch)).collect();
        let mut alone = Session::new(places::program(&folder, None));
        let expected: Vec<_> = all.iter().map(|inputs| run(&mut alone, inputs)).collect();
        // Plans and weights are made while the others make them too: each thread begins with another batch.
        let program = places::program(&folder, None);
        let start = Barrier::new(THREADS);
        std::thread::scope(|scope| {
            for thread in 0..THREADS {
                let (program, start, all, expected) = (&program, &start, &all, &expected);
                scope.spawn(move || {
                    let mut session = Session::new(Arc::clone(program));
                    start.wait();
                    for turn in 0..3 * batches.len() {
                        let at = (thread + turn) % batches.len();
                        for (found, expected) in run(&mut session, &all[at]).iter().zip(&expected[at]) {
                            assert_eq!(found.bytes(), expected.bytes(), "{name}, batch {}", batches[at]);
                        }
                    }
                });
            }
        });
    }
}

#[test]
fn a_batch_in_parts_gives_the_bits_of_its_rows() {
    for name in ["squeezenet_fp32", "squeezenet_int8_qdq"] {
        let program = places::program(&places::model(name), None);
        let images = numbers(&[3, 3, 224, 224]);
        let plan = inspect::plan(&program, &[images.shape().to_vec()]).expect("it plans").expect("a plan");
        assert_eq!(plan.parts, 3, "{name}: results of an image fill the caches");
        let mut session = Session::new(program);
        // Each of these is its own plan; the batch comes last and first.
        let whole = run(&mut session, std::slice::from_ref(&images));
        let bytes = images.bytes().len() / 3;
        let outputs = whole[0].bytes().len() / 3;
        for row in 0..3 {
            let image = &images.bytes()[row * bytes..(row + 1) * bytes];
            let alone = run(&mut session, &[Tensor::of_dtype(DType::F32, &[1, 3, 224, 224], image)]);
            assert_eq!(
                alone[0].bytes(),
                &whole[0].bytes()[row * outputs..(row + 1) * outputs],
                "{name} {row}"
            );
        }
        assert_eq!(run(&mut session, &[images])[0].bytes(), whole[0].bytes());
    }
}

#[test]
fn a_plan_names_the_tiles_of_each_instruction_set() {
    for isa in Isa::available() {
        let program = places::program(&places::model("digits_v2_conv"), Some(*isa));
        let plan = inspect::plan(&program, &[vec![8, 1, 8, 8]]).expect("it plans").expect("a plan");
        let kernel = |op: &str| &plan.steps.iter().find(|step| step.op == op).expect("a step").kernel;
        for (op, family) in [("Conv NHWC", "conv.stem"), ("Linear", "gemm")] {
            let words: Vec<&str> = kernel(op).split(' ').collect();
            let &[found, on, tile] = &words[..] else { panic!("{words:?}") };
            assert_eq!((found, on), (family, isa.name()));
            let sizes: Vec<usize> = tile.split('x').filter_map(|size| size.parse().ok()).collect();
            assert!(sizes.len() == 2 && sizes.iter().all(|size| (1..=64).contains(size)), "{tile}");
        }
    }
}

#[test]
fn a_pool_joins_the_large_convolution_before_it_to_the_same_bits() {
    let attribute = |name: &str, ints: &[i64]| AttributeProto {
        name: name.into(),
        kind: 7,
        ints: ints.to_vec(),
        ..Default::default()
    };
    let pool = |from: &str, to: &str| {
        let mut pool = node("MaxPool", &[from], &[to]);
        pool.attribute = vec![
            attribute("kernel_shape", &[3, 3]),
            attribute("strides", &[2, 2]),
            attribute("pads", &[1, 1, 1, 1]),
        ];
        pool
    };
    let before = || vec![node("Conv", &["x", "w"], &["c"]), node("Relu", &["c"], &["r"])];
    let joined = [before(), vec![pool("r", "y")]].concat();
    // A second reader of the convolution, which changes nothing, keeps the pool apart.
    let apart =
        vec![pool("r", "p"), node("Relu", &["r"], &["s"]), pool("s", "q"), node("Max", &["p", "q"], &["y"])];
    let apart = [before(), apart].concat();
    for isa in Isa::available() {
        let [(found, first), (expected, alone)] = [&joined, &apart].map(|nodes| convolve(nodes, *isa));
        assert!(first[0].starts_with("conv.stem+pool ") && first.len() == 1, "{first:?}");
        assert!(alone[0].starts_with("conv.stem ") && alone.len() > 1, "{alone:?}");
        assert_eq!(found.shape(), [2, 33, 60, 44]);
        assert_eq!(found.bytes(), expected.bytes(), "{isa}");
    }
}

#[test]
fn a_silu_joins_the_convolution_before_it_to_the_same_bits() {
    let before = || vec![node("Conv", &["x", "w"], &["c"]), node("Sigmoid", &["c"], &["s"])];
    // A second reader of the sigmoid, which changes nothing, keeps all apart.
    let apart = vec![
        node("Mul", &["c", "s"], &["m"]),
        node("Abs", &["s"], &["t"]),
        node("Mul", &["t", "c"], &["n"]),
        node("Max", &["m", "n"], &["y"]),
    ];
    let apart = [before(), apart].concat();
    for operands in [["c", "s"], ["s", "c"]] {
        let joined = [before(), vec![node("Mul", &operands, &["y"])]].concat();
        for isa in Isa::available() {
            let [(found, first), (expected, alone)] = [&joined, &apart].map(|nodes| convolve(nodes, *isa));
            assert!(first.len() == 1 && alone.len() == 6, "{first:?} {alone:?}");
            assert_eq!(found.bytes(), expected.bytes(), "{isa}");
        }
    }
}

/// Runs a model from `x`, two images of which one has a NaN, and weights `w` `[33, 3, 3, 3]` to `y`; the
/// result, and the kernels of its plan.
fn convolve(nodes: &[NodeProto], isa: Isa) -> (Tensor, Vec<String>) {
    let w = TensorProto {
        name: "w".into(),
        dims: vec![33, 3, 3, 3],
        data_type: DType::F32.onnx(),
        raw_data: Bytes::copy_from_slice(numbers(&[33, 3, 3, 3]).bytes()),
        ..TensorProto::default()
    };
    let size = [2, 3, 121, 90];
    let mut images = numbers(&size).floats().to_vec();
    images[121 * 45 + 7] = f32::NAN;
    let images = Tensor::of(&size, &images);
    let model = import(model(nodes.to_vec(), &[2, 3, 121, 90], vec![w])).expect("a model");
    let program = Program::compile(model, Options { isa: Some(isa) }).expect("it compiles");
    let plan = inspect::plan(&program, &[size.to_vec()]).expect("it plans").expect("a plan");
    let kernels = plan.steps.iter().map(|step| step.kernel.to_string());
    // Each ends in one, to the model's layout.
    let kernels = kernels.filter(|kernel| kernel != "transpose").collect();
    (run(&mut Session::new(program), &[images]).remove(0), kernels)
}

#[test]
fn a_weight_that_was_freed_comes_back_for_a_reader_of_its_bytes() {
    let program = places::program(&places::model("digits_v2_conv"), None);
    let inputs = inputs("digits_v2_conv", 2);
    let expected = run(&mut Session::new(Arc::clone(&program)), &inputs);
    // The interpreter convolves in NCHW, from the weights as the file has them.
    let context = interpret::Context { bytes_max: 1 << 30, cancelled: &|| false, target: program.target() };
    let found = interpret::graph(&program.graph(), inputs, context).expect("it runs");
    for (found, expected) in found[0].floats().iter().zip(expected[0].floats()) {
        assert!((found - expected).abs() < 1e-5, "{found} {expected}");
    }
}

#[test]
fn shapes_are_bound_anew_and_old_ones_kept() {
    let mut session = Session::new(places::program(&places::model("digits_v2_conv"), None));
    let expected = run(&mut session, &inputs("digits_v2_conv", 2));
    // More shapes than are kept, then the first again.
    for batch in 1..20 {
        run(&mut session, &inputs("digits_v2_conv", batch));
    }
    let again = run(&mut session, &inputs("digits_v2_conv", 2));
    assert_eq!(again[0].bytes(), expected[0].bytes());
}

#[test]
fn the_interpreter_agrees_with_the_plan() {
    // The plan fuses and turns layouts; within rounding of the folded normalisations and pools it is the same
    // function.
    let name = "text_encoder_tiny";
    let program = places::program(&places::model(name), None);
    let inputs = inputs(name, 2);
    let expected = run(&mut Session::new(Arc::clone(&program)), &inputs);
    let context = interpret::Context { bytes_max: 1 << 30, cancelled: &|| false, target: program.target() };
    let found = interpret::graph(&program.graph(), inputs, context).expect("it runs");
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.bytes(), expected.bytes());
    }
}

#[test]
fn quantised_convolutions_are_interpreted_to_the_bits_of_the_plan() {
    // Models of one convolution: with constant inputs the interpreter folds them, else they are planned.
    let byte = |dtype: DType, shape: &[usize], seed: usize| {
        let len: usize = shape.iter().product();
        let bytes: Vec<u8> = (0..len).map(|i| ((i + seed) * 151 % 251) as u8).collect();
        Some(Tensor::of_dtype(dtype, shape, &bytes))
    };
    let one = |dtype: DType, value: f64| Some(full(dtype, &[], value));
    // Images, weights, groups; with a stride and pads. The last reduces over a depth of no whole group.
    let cases: [(&[usize], &[usize], i64); 6] = [
        (&[2, 8, 9, 7], &[40, 8, 3, 3], 1),
        (&[1, 64, 5, 5], &[32, 64, 1, 1], 1),
        (&[3, 6, 8, 8], &[6, 1, 3, 3], 6),
        (&[1, 8, 6, 6], &[4, 4, 3, 3], 2),
        (&[1, 1, 8, 8], &[16, 1, 3, 3], 1),
        (&[2, 3, 5, 6], &[5, 3, 2, 3], 1),
    ];
    for (image, weights, group) in cases {
        for (x, y) in [(DType::U8, DType::U8), (DType::I8, DType::I8), (DType::U8, DType::I8)] {
            for per_filter in [false, true] {
                let filters = weights[0];
                let count = if per_filter { filters } else { 1 };
                let scales: Vec<f32> = (0..count).map(|m| 0.02 + 0.001 * m as f32).collect();
                let bias: Vec<i32> = (0..filters).map(|m| 900 - 70 * m as i32).collect();
                let inputs = [
                    byte(x, image, 3),
                    one(DType::F32, 0.1),
                    one(x, 7.0),
                    byte(DType::I8, weights, 5),
                    Some(Tensor::of(&[count], &scales)),
                    one(DType::I8, 0.0),
                    one(DType::F32, 0.9),
                    one(y, 11.0),
                    Some(Tensor::of(&[filters], &bias)),
                ];
                let attributes = [
                    Attribute::One("group", group),
                    Attribute::Many("strides", &[2, 1]),
                    Attribute::Many("pads", &[1, 0, 1, 1]),
                ];
                let run = |given: Given, isa: Isa| {
                    let found = run_one("QLinearConv", &attributes, &inputs, 1, given, isa);
                    found.expect("it runs").remove(0)
                };
                let expected = run(Given::First, Isa::Scalar);
                assert!(expected.bytes().iter().any(|byte| *byte != expected.bytes()[0]), "{image:?}");
                for isa in Isa::available() {
                    for given in [Given::First, Given::None] {
                        let found = run(given, *isa);
                        let case = format!("{image:?}, {weights:?}, {x} to {y}, {given:?}, {isa}");
                        assert_eq!(found.shape(), expected.shape(), "{case}");
                        assert_eq!(found.bytes(), expected.bytes(), "{case}");
                    }
                }
            }
        }
    }
}

#[test]
fn quantised_models_are_interpreted_to_the_bits_of_the_plan() {
    for name in ["digits_v2_int8_qdq", "digits_v2_int8_qdq_s8s8"] {
        let program = places::program(&places::model(name), None);
        let inputs = inputs(name, 3);
        let expected = run(&mut Session::new(Arc::clone(&program)), &inputs);
        let target = program.target();
        let context = interpret::Context { bytes_max: 1 << 30, cancelled: &|| false, target };
        let found = interpret::graph(&program.graph(), inputs, context).expect("it runs");
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found.bytes(), expected.bytes(), "{name}");
        }
    }
}

#[test]
fn a_cancelled_run_ends_and_the_session_lives() {
    let mut session = Session::new(places::program(&places::model("digits_v2_conv"), None));
    let inputs = inputs("digits_v2_conv", 1);
    let borrowed: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
    let mut none: Vec<Tensor> = Vec::new();
    let error = session.run(&borrowed, &mut none, &|| true).expect_err("cancelled");
    assert_eq!(error, roost_native::RunError::Cancelled);
    assert_eq!(run(&mut session, &inputs).len(), 1);
}

#[test]
fn inputs_that_do_not_fit_are_typed_errors() {
    use roost_native::RunError as E;
    let mut session = Session::new(places::program(&places::model("digits_v2_conv"), None));
    let mut run = |inputs: &[Input<'_>]| session.run(inputs, &mut Vec::<Tensor>::new(), &|| false);
    let image = numbers(&[1, 1, 8, 8]);
    let good = Input::from(&image);
    assert!(matches!(run(&[]), Err(E::InputCount { expected: 1, found: 0 })));
    assert!(matches!(run(&[Input { shape: &[1, 1, 8, 9], ..good }]), Err(E::InputShape { .. })));
    assert!(matches!(run(&[Input { shape: &[1, 64], ..good }]), Err(E::InputShape { .. })));
    assert!(matches!(run(&[Input { dtype: DType::I32, ..good }]), Err(E::InputDType { .. })));
    assert!(matches!(run(&[Input { bytes: &good.bytes[4..], ..good }]), Err(E::InputBytes { .. })));
    assert!(matches!(run(&[Input { shape: &[usize::MAX, 1, 8, 8], ..good }]), Err(E::Arena { .. })));
    assert!(run(&[good]).is_ok());
}

#[test]
fn unaligned_inputs_give_the_same_bits() {
    let mut session = Session::new(places::program(&places::model("digits_v2_conv"), None));
    let image = numbers(&[2, 1, 8, 8]);
    let expected = run(&mut session, std::slice::from_ref(&image));
    let moved: Vec<u8> = std::iter::once(0).chain(image.bytes().iter().copied()).collect();
    let mut found: Vec<Tensor> = Vec::new();
    let input = Input { bytes: &moved[1..], ..Input::from(&image) };
    session.run(&[input], &mut found, &|| false).expect("it runs");
    assert_eq!(found[0].bytes(), expected[0].bytes());
}

/// Sums over a middle axis are made for many outputs at once, those over the last axis one by one.
#[test]
fn sums_do_not_depend_on_where_their_elements_lie() {
    // Lengths around the lanes, and runs of outputs around the blocks of them.
    for (outer, len, inner) in [(3, 37, 75), (1, 16, 32), (2, 1, 33), (5, 100, 64), (2, 17, 31)] {
        let values: Vec<f32> =
            (0..outer * len * inner).map(|i| ((i * 151) % 257) as f32 / 51.0 - 2.6).collect();
        let turned: Vec<f32> = (0..outer * len * inner)
            .map(|i| values[(i / (len * inner)) * len * inner + (i % len) * inner + i / len % inner])
            .collect();
        for op in ["ReduceSum", "ReduceMean"] {
            let sums = |shape: [usize; 3], values: &[f32], axis: i64| {
                let inputs = [Some(Tensor::of(&shape, values)), Some(Tensor::of(&[1], &[axis]))];
                let flat = [Attribute::One("keepdims", 0)];
                run_one(op, &flat, &inputs, 1, Given::First, Isa::best()).expect("it runs")
            };
            let [apart, together] =
                [sums([outer, len, inner], &values, 1), sums([outer, inner, len], &turned, 2)];
            assert_eq!(apart[0].shape(), [outer, inner]);
            assert_eq!(apart[0].bytes(), together[0].bytes(), "{op} of {outer} x {len} x {inner}");
        }
    }
}
