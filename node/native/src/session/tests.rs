//! A batch in parts against the plan that is not cut.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use prost::Message;

use super::*;
use crate::onnx::external::Files;
use crate::onnx::proto::{
    DimProto, DimValue, GraphProto, ModelProto, NodeProto, OperatorSetId, ShapeProto, TensorProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use crate::plan::schedule::schedule;
use crate::program::{Options, SHAPES_MAX};
use crate::{Limits, Model};

/// Numbers that repeat, between -1 and 1.
fn numbers(shape: &[usize]) -> Tensor {
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    Tensor::of(shape, &(0..shape.iter().product()).map(next).collect::<Vec<f32>>())
}

fn digits() -> Arc<Program> {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models");
    let models = std::env::var_os("ROOST_TEST_MODELS").map_or(beside, Into::into);
    let files = crate::conformance::read_bundle(&models.join("digits_v2_conv"));
    let files = files.expect("the model is there; or set ROOST_TEST_MODELS to the folder of the test models");
    let model = Model::import(&files, Limits::default()).expect("imports");
    Program::compile(model, Options::default()).expect("compiles")
}

/// A program over rows of so many numbers.
fn program(
    width: i64,
    nodes: &[(&str, &[&str], &str)],
    output: (DType, &[DimValue]),
    weights: &[(&str, &[usize])],
) -> Arc<Program> {
    limited(width, nodes, output, weights, Limits::default())
}

/// A program over rows of so many numbers, under limits.
fn limited(
    width: i64,
    nodes: &[(&str, &[&str], &str)],
    output: (DType, &[DimValue]),
    weights: &[(&str, &[usize])],
    limits: Limits,
) -> Arc<Program> {
    let info = |name: &str, dtype: DType, dims: &[DimValue]| {
        let dim = dims.iter().map(|value| DimProto { value: Some(value.clone()) }).collect();
        let shape = Some(ShapeProto { dim });
        let tensor_type = Some(TensorTypeProto { elem_type: dtype.onnx(), shape });
        ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
    };
    let weight = |(name, shape): &(&str, &[usize])| TensorProto {
        name: (*name).into(),
        dims: shape.iter().map(|dim| *dim as i64).collect(),
        data_type: DType::F32.onnx(),
        raw_data: Bytes::copy_from_slice(numbers(shape).bytes()),
        ..TensorProto::default()
    };
    let node = |(op, inputs, output): &(&str, &[&str], &str)| NodeProto {
        op_type: (*op).into(),
        input: inputs.iter().map(|name| (*name).to_owned()).collect(),
        output: vec![(*output).into()],
        ..NodeProto::default()
    };
    let graph = GraphProto {
        node: nodes.iter().map(node).collect(),
        input: vec![info("x", DType::F32, &[DimValue::Param("rows".into()), DimValue::Value(width)])],
        output: vec![info("y", output.0, output.1)],
        initializer: weights.iter().map(weight).collect(),
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetId { domain: String::new(), version: 17 }];
    let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph) };
    let bytes = Bytes::from(model.encode_to_vec());
    let model = Model::import_bytes(bytes, &Files::new(), limits).expect("imports");
    Program::compile(model, Options::default()).expect("compiles")
}

/// Rows of 16 through 4096 to 4 numbers, and their softmax: results are many times what the weights are.
fn perceptron() -> Arc<Program> {
    program(
        16,
        &[
            ("MatMul", &["x", "first"], "hidden"),
            ("Add", &["hidden", "bias"], "sum"),
            ("Relu", &["sum"], "active"),
            ("MatMul", &["active", "second"], "logits"),
            ("Softmax", &["logits"], "y"),
        ],
        (DType::F32, &[DimValue::Param("rows".into()), DimValue::Value(4)]),
        &[("first", &[16, 4096]), ("bias", &[4096]), ("second", &[4096, 4])],
    )
}

/// Runs `rows` rows in the parts that the program makes of them and by one plan; gives the sizes of the
/// parts.
fn sizes(program: &Arc<Program>, row: &[usize], rows: usize) -> Vec<(usize, usize)> {
    let mut shape = vec![rows];
    shape.extend(row);
    let x = numbers(&shape);
    let bucket = program.bucket(std::slice::from_ref(&shape)).expect("it plans");
    let Bucket::Parts(parts) = &*bucket else { panic!("{rows} rows are not cut") };
    let bound = program.bound(&[shape]).expect("binds");
    let whole = schedule(&bound, program.target(), program.limits()).expect("plans");
    assert!(parts.arena_bytes < whole.arena_bytes, "{} {}", parts.arena_bytes, whole.arena_bytes);
    let run = |bucket: &Bucket, bytes: usize| {
        let mut session = Session::new(Arc::clone(program));
        // Results that nobody wrote would show.
        let mut arena = AlignedBuf::copied(&vec![0xff; bytes]);
        let mut found: Vec<Tensor> = Vec::new();
        let done = session.execute(bucket, arena.bytes_mut(), &[Input::from(&x)], &mut found, &|| false);
        done.expect("it runs");
        found
    };
    let whole_bytes = whole.arena_bytes;
    let expected = run(&Bucket::Planned(whole), whole_bytes);
    let found = run(&bucket, parts.arena_bytes);
    assert_eq!(found.len(), expected.len());
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found.shape(), expected.shape(), "{rows} rows");
        assert_eq!(found.bytes(), expected.bytes(), "{rows} rows");
    }
    // And as a caller runs it.
    let mut called: Vec<Tensor> = Vec::new();
    Session::new(Arc::clone(program)).run(&[Input::from(&x)], &mut called, &|| false).expect("it runs");
    assert_eq!(called[0].bytes(), expected[0].bytes());
    assert_eq!(parts.sizes.iter().map(|size| size.rows * size.count).sum::<usize>(), rows);
    parts.sizes.iter().map(|size| (size.rows, size.count)).collect()
}

#[test]
fn a_batch_in_parts_has_the_bits_of_the_plan_that_is_not_cut() {
    let uneven = |program: Arc<Program>, row: &[usize], batches: &[usize]| {
        let mut uneven = 0;
        for rows in batches {
            let sizes = sizes(&program, row, *rows);
            assert!(sizes.iter().all(|(rows, _)| *rows >= 2), "{rows} rows as {sizes:?}");
            uneven += usize::from(sizes.len() == 2);
        }
        uneven
    };
    assert!(uneven(digits(), &[1, 8, 8], &[128, 131, 200, 257]) > 0);
    assert!(uneven(perceptron(), &[16], &[72, 97, 128, 130, 201]) > 0);
}

#[test]
fn a_program_without_plans_packs_its_weights_once() {
    let free = [DimValue::Value(2), DimValue::Param("found".into())];
    let nodes: [(&str, &[&str], &str); 2] = [("MatMul", &["x", "w"], "h"), ("NonZero", &["h"], "y")];
    let program = program(48, &nodes, (DType::I64, &free), &[("w", &[48, 40])]);
    let x = numbers(&[3, 48]);
    assert!(matches!(&*program.bucket(&[vec![3, 48]]).expect("it binds"), Bucket::Dynamic));
    let form = || {
        let graph = program.graph();
        let tensor = graph.values.iter().filter_map(|value| value.constant.as_ref()).next();
        let tensor = tensor.expect("it has a weight").clone();
        (tensor.forms().first().map(|(buffer, _)| buffer.bytes().as_ptr()), tensor.condensed().is_none())
    };
    assert_eq!(form().0, None, "nothing was packed yet");
    let mut session = Session::new(Arc::clone(&program));
    // A run that is cancelled behind the product, and has packed by then.
    let asked = std::cell::Cell::new(0);
    let cancelled = || asked.replace(asked.get() + 1) > 0;
    let mut unseen: Vec<Tensor> = Vec::new();
    assert!(session.run(&[Input::from(&x)], &mut unseen, &cancelled).is_err());
    let (packed, packed_alone) = form();
    assert!(packed.is_some() && packed_alone, "the form alone is kept, though the run failed");
    let mut run = || {
        let mut found: Vec<Tensor> = Vec::new();
        session.run(&[Input::from(&x)], &mut found, &|| false).expect("it runs");
        assert_eq!((found[0].shape(), found[0].dtype()), (&[2, 120][..], DType::I64));
    };
    run();
    assert_eq!(form(), (packed, true), "the form alone is kept between runs");
    run();
    assert_eq!(form().0, packed);
}

#[test]
fn who_meets_a_shape_at_once_shares_one_plan() {
    const THREADS: usize = 8;
    let program = perceptron();
    // Batches of one plan, and ones that are cut.
    for rows in [3, 5, 9, 72, 130] {
        let shapes = [vec![rows, 16]];
        let coming = AtomicUsize::new(0);
        let buckets: Vec<Arc<Bucket>> = std::thread::scope(|scope| {
            let meet = || {
                coming.fetch_add(1, Ordering::Relaxed);
                program.bucket(&shapes).expect("it plans")
            };
            // Nobody plans before all are under way, and have seen that there is no plan.
            let meeting: Vec<_> = program.while_planning(|| {
                let meeting = (0..THREADS).map(|_| scope.spawn(meet)).collect();
                while coming.load(Ordering::Relaxed) < THREADS {
                    std::thread::yield_now();
                }
                (0..1000).for_each(|_| std::thread::yield_now());
                meeting
            });
            meeting.into_iter().map(|thread| thread.join().expect("it plans")).collect()
        });
        assert!(buckets.iter().all(|bucket| Arc::ptr_eq(bucket, &buckets[0])), "{rows} rows");
        assert_eq!(matches!(&*buckets[0], Bucket::Parts(_)), rows >= 72, "{rows} rows");
    }
}

#[test]
fn who_knows_its_plan_does_not_wait_for_planning() {
    let program = perceptron();
    let known = program.bucket(&[vec![3, 16]]).expect("it plans");
    program.while_planning(|| {
        let again = program.bucket(&[vec![3, 16]]).expect("it is known");
        assert!(Arc::ptr_eq(&known, &again));
        let mut found: Vec<Tensor> = Vec::new();
        let x = numbers(&[3, 16]);
        Session::new(Arc::clone(&program)).run(&[Input::from(&x)], &mut found, &|| false).expect("it runs");
        assert_eq!(found[0].shape(), [3, 4]);
    });
}

#[test]
fn a_shape_that_is_run_again_and_again_keeps_its_plan() {
    let program = perceptron();
    let [mut often, mut rarely] = [(); 2].map(|()| Session::new(Arc::clone(&program)));
    let run = |session: &mut Session, rows: usize| {
        let mut found: Vec<Tensor> = Vec::new();
        session.run(&[Input::from(&numbers(&[rows, 16]))], &mut found, &|| false).expect("it runs");
    };
    run(&mut often, 1);
    let plan = Arc::downgrade(&program.bucket(&[vec![1, 16]]).expect("it is known"));
    for rows in 2..=3 * SHAPES_MAX {
        run(&mut rarely, rows);
        run(&mut often, 1);
    }
    assert_eq!(plan.strong_count(), 1, "shapes that came once pushed it out");
}

/// A program of `y = x + Shape(x)` whose plans hold the shape, 16 bytes, under a limit of so many.
fn shapes_are_constants(folded_bytes_max: u64) -> Arc<Program> {
    let nodes: &[(&str, &[&str], &str)] = &[
        ("Relu", &["x"], "active"),
        ("Shape", &["active"], "shape"),
        ("ConstantOfShape", &["shape"], "zeros"),
        ("Add", &["active", "zeros"], "y"),
    ];
    let limits = Limits { folded_bytes_max, ..Limits::default() };
    limited(16, nodes, (DType::F32, &[DimValue::Param("rows".into()), DimValue::Value(16)]), &[], limits)
}

#[test]
fn plans_that_hold_too_many_constants_together_go() {
    // A row of zeros and its shape take 80 bytes.
    let met = |folded_bytes_max: u64| {
        let program = shapes_are_constants(folded_bytes_max);
        let met: Vec<Weak<Bucket>> = (1..=8)
            .map(|rows| Arc::downgrade(&program.bucket(&[vec![rows, 16]]).expect("it plans")))
            .collect();
        met.iter().map(|bucket| bucket.strong_count()).collect::<Vec<_>>()
    };
    assert_eq!(met(1 << 20), [1; 8]);
    // Eight rows of zeros take 512 bytes, seven 448; and two numbers each time.
    assert_eq!(met(512 + 448 + 32), [0, 0, 0, 0, 0, 0, 1, 1]);
    // Each alone has room.
    assert_eq!(met(512 + 16), [0, 0, 0, 0, 0, 0, 0, 1]);
}

#[test]
fn plans_of_old_shapes_go_though_sessions_ran_them() {
    let program = perceptron();
    let mut sessions = [(); 3].map(|()| Session::new(Arc::clone(&program)));
    // Batches of one plan, and ones that are cut, some into parts of two sizes; in turns by several sessions.
    let batches: Vec<usize> = (1..=20).chain(97..=130).collect();
    let mut met: Vec<Weak<Bucket>> = Vec::new();
    for (i, rows) in batches.iter().enumerate() {
        let x = numbers(&[*rows, 16]);
        for session in &mut sessions[..1 + i % 3] {
            let mut found: Vec<Tensor> = Vec::new();
            session.run(&[Input::from(&x)], &mut found, &|| false).expect("it runs");
            assert_eq!(found[0].shape(), [*rows, 4]);
        }
        met.push(Arc::downgrade(&program.bucket(&[vec![*rows, 16]]).expect("it is known")));
    }
    let alive: Vec<Arc<Bucket>> = met.iter().filter_map(Weak::upgrade).collect();
    assert_eq!(alive.len(), SHAPES_MAX);
    assert!(met[..met.len() - SHAPES_MAX].iter().all(|bucket| bucket.strong_count() == 0), "the oldest went");
    let plans = |bucket: &Arc<Bucket>| match &**bucket {
        Bucket::Parts(parts) => parts.sizes.len(),
        _ => 1,
    };
    let held: usize = alive.iter().map(plans).sum();
    assert!((SHAPES_MAX + 1..=2 * SHAPES_MAX).contains(&held), "{held} plans");
    assert!(sessions.iter().all(|session| session.ready.len() <= SHAPES_MAX));
    // A session that ran a shape whose plan has gone runs it again.
    let mut found: Vec<Tensor> = Vec::new();
    sessions[0].run(&[Input::from(&numbers(&[1, 16]))], &mut found, &|| false).expect("it runs");
    assert_eq!(found[0].shape(), [1, 4]);
}
