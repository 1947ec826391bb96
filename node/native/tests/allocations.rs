//! A run of shapes that were run before allocates nothing; weights are in memory once, and a further session
//! costs little. Alone in its process and in one test, since it counts every allocation.
#![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

#[path = "../benches/speed/networks.rs"]
mod networks;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use prost::Message;
use roost_native::compare::read_tensors;
use roost_native::conformance::read_bundle;
use roost_native::onnx::external::Files;
use roost_native::onnx::import::MODEL_FILE;
use roost_native::onnx::proto::{
    AttributeProto, DimProto, DimValue, GraphProto, ModelProto, NodeProto, OperatorSetId, ShapeProto,
    TensorTypeProto, TypeProto, ValueInfoProto,
};
use roost_native::program::{Options, SHAPES_MAX};
use roost_native::{DType, Input, Limits, Model, Program, Session, Sink, Tensor, inspect};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);
/// Bytes that are allocated now.
static LIVE: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size(), Ordering::Relaxed);
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.dealloc(start, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

struct Bytes(usize);

impl Sink for Bytes {
    fn output(&mut self, _name: &str, _dtype: DType, _shape: &[usize], bytes: &[u8]) {
        self.0 += bytes.len();
    }
}

fn folder(name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models");
    std::env::var_os("ROOST_TEST_MODELS").map_or(beside, PathBuf::from).join(name)
}

fn program(files: &Files) -> Arc<Program> {
    let model = Model::import(files, Limits::default()).expect("imports");
    Program::compile(model, Options::default()).expect("compiles")
}

fn digits(batch: usize) -> Vec<Tensor> {
    vec![Tensor::of(&[batch, 1, 8, 8], &vec![0.5_f32; batch * 64])]
}

fn photos(batch: usize) -> Vec<Tensor> {
    vec![Tensor::of(&[batch, 3, 224, 224], &vec![0.5_f32; batch * 3 * 224 * 224])]
}

fn tokens() -> Vec<Tensor> {
    vec![Tensor::of(&[2, 16], &[3_i64; 32]), Tensor::of(&[2, 16], &[1_i64; 32])]
}

#[test]
fn memory_is_taken_once() {
    every_model_allocates_nothing_for_a_shape_seen_before();
    plain_loops_allocate_nothing();
    for name in ["digits_v2_conv", "digits_lstm"] {
        let files = read_bundle(&folder(name)).expect("the model is there; or set ROOST_TEST_MODELS");
        plans_are_bounded(name, &files);
    }
    let characters = vec![Tensor::of_dtype(DType::U8, &[1, 32], &[b'a'; 32])];
    let cases = [
        ("squeezenet_fp32", photos(1), 1.25),
        ("squeezenet_int8_qdq", photos(1), 1.25),
        ("text_encoder_tiny", tokens(), 1.25),
        ("sentence_boundary_bilstm", characters, 1.25),
        (
            "squeezenet_fp16",
            vec![Tensor::of_dtype(DType::F16, &[1, 3, 224, 224], &[0; 2 * 3 * 224 * 224])],
            1.25,
        ),
    ];
    for (name, inputs, times) in cases {
        let mut files = read_bundle(&folder(name)).expect("the model is there; or set ROOST_TEST_MODELS");
        let model = files.remove(MODEL_FILE).expect("a bundle has a model");
        weights_are_in_memory_once(name, model, &inputs, times);
    }
    // ResNet-50's normalisations are folded into the weights of its convolutions.
    for (name, model) in networks::all() {
        weights_are_in_memory_once(name, model, &photos(1), 1.25);
    }
}

/// Over all shared models that the engine takes, with the inputs that ship with them. All have plans.
fn every_model_allocates_nothing_for_a_shape_seen_before() {
    /// Trees, which the engine does not know.
    const NOT_TAKEN: [&str; 1] = ["digits_rf_trees"];
    let entries = std::fs::read_dir(folder("")).expect("the models are there; or set ROOST_TEST_MODELS");
    let folders = entries.map(|entry| entry.expect("a folder's entry").path());
    let mut models: Vec<PathBuf> = folders.filter(|folder| folder.join(MODEL_FILE).exists()).collect();
    models.sort();
    assert!(models.len() > 20, "only {} models", models.len());
    for model in models {
        let name = model.file_name().expect("a folder has a name").to_string_lossy();
        let files = read_bundle(&model).expect("the model can be read");
        if NOT_TAKEN.contains(&&*name) {
            assert!(Model::import(&files, Limits::default()).is_err(), "{name} is taken");
            continue;
        }
        let inputs = read_tensors(&model.join("test_data_set_0"), "input").expect("the inputs can be read");
        a_shape_seen_before_allocates_nothing(&name, &files, &inputs);
    }
    // A batch of several rows, and one that is cut into parts.
    for (name, inputs) in
        [("digits_v2_conv", digits(8)), ("squeezenet_fp32", photos(3)), ("squeezenet_int8_qdq", photos(3))]
    {
        let files = read_bundle(&folder(name)).expect("the model is there; or set ROOST_TEST_MODELS");
        a_shape_seen_before_allocates_nothing(name, &files, &inputs);
    }
}

/// Operators whose weights come with the run, or of ranks without a kernel: the plain loops.
fn plain_loops_allocate_nothing() {
    let (float, byte) = (DType::F32, DType::U8);
    let ones = |dtype: DType, shape: &[usize]| {
        let bytes = if dtype == float { 1.0_f32.to_le_bytes().to_vec() } else { vec![1] };
        Tensor::of_dtype(dtype, shape, &bytes.repeat(shape.iter().product()))
    };
    let image = |dtype| vec![ones(dtype, &[2, 3, 8, 8]), ones(dtype, &[4, 3, 3, 3])];
    let step = || [ones(float, &[]), ones(byte, &[])];
    let with_steps = |operands: Vec<Tensor>| {
        let each = operands.into_iter().flat_map(|operand| std::iter::once(operand).chain(step()));
        each.chain(step()).collect::<Vec<_>>()
    };
    let matrices = |dtype| vec![ones(dtype, &[5, 6]), ones(dtype, &[6, 7])];
    let gru = [&[4, 2, 3][..], &[1, 15, 3], &[1, 15, 5], &[1, 30]].map(|shape| ones(float, shape));
    let cases = [
        ("Conv", image(float)),
        ("Conv", vec![ones(float, &[2, 3, 9]), ones(float, &[4, 3, 3])]),
        ("ConvTranspose", vec![ones(float, &[2, 3, 8, 8]), ones(float, &[3, 4, 3, 3])]),
        ("ConvInteger", image(byte)),
        ("MatMulInteger", matrices(byte)),
        ("QLinearConv", with_steps(image(byte))),
        ("QLinearMatMul", with_steps(matrices(byte))),
        ("DequantizeLinear", vec![ones(byte, &[9]), ones(float, &[])]),
        ("GRU", gru.to_vec()),
        // More inputs than most models have.
        ("Sum", vec![ones(float, &[5]); 40]),
    ];
    for (op, inputs) in cases {
        let files = Files::from([(MODEL_FILE.to_owned(), one_node(op, &inputs))]);
        a_shape_seen_before_allocates_nothing(op, &files, &inputs);
    }
}

/// A model of one node, all of whose inputs come with the run.
fn one_node(op: &str, inputs: &[Tensor]) -> bytes::Bytes {
    let name = |i: usize| format!("x{i}");
    let info = |(i, tensor): (usize, &Tensor)| {
        let dim = |size: &usize| DimProto { value: Some(DimValue::Value(*size as i64)) };
        let shape = Some(ShapeProto { dim: tensor.shape().iter().map(dim).collect() });
        let tensor_type = Some(TensorTypeProto { elem_type: tensor.dtype().onnx(), shape });
        ValueInfoProto { name: name(i), r#type: Some(TypeProto { tensor_type }) }
    };
    let hidden = AttributeProto { name: "hidden_size".into(), kind: 2, i: 5, ..AttributeProto::default() };
    let node = NodeProto {
        op_type: op.into(),
        input: (0..inputs.len()).map(name).collect(),
        output: vec!["y".into()],
        attribute: if op == "GRU" { vec![hidden] } else { Vec::new() },
        ..NodeProto::default()
    };
    let graph = GraphProto {
        node: vec![node],
        input: inputs.iter().enumerate().map(info).collect(),
        output: vec![ValueInfoProto {
            name: "y".into(),
            r#type: Some(TypeProto {
                tensor_type: Some(TensorTypeProto { elem_type: DType::F32.onnx(), shape: None }),
            }),
        }],
        ..GraphProto::default()
    };
    let opset_import = vec![OperatorSetId { domain: String::new(), version: 18 }];
    let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph) };
    model.encode_to_vec().into()
}

fn a_shape_seen_before_allocates_nothing(name: &str, files: &Files, inputs: &[Tensor]) {
    let program = program(files);
    let shapes: Vec<Vec<usize>> = inputs.iter().map(|input| input.shape().to_vec()).collect();
    let plan = inspect::plan(&program, &shapes).expect("it plans");
    assert!(plan.is_some(), "{name} has no plan");
    let mut session = Session::new(program);
    let inputs: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
    let mut sink = Bytes(0);
    session.run(&inputs, &mut sink, &|| false).expect("runs");
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for _ in 0..3 {
        session.run(&inputs, &mut sink, &|| false).expect("runs");
    }
    assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0, "{name}");
    assert!(sink.0 > 0);
}

/// Three times as many shapes as a program keeps plans for, again and again: what is held stays as it was
/// after the first time.
fn plans_are_bounded(name: &str, files: &Files) {
    const PLAN_BYTES_MAX: usize = 64 << 10;
    let program = program(files);
    let mut sessions = [(); 2].map(|()| Session::new(Arc::clone(&program)));
    let mut run = |batch: usize| {
        let inputs = digits(batch);
        let inputs: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
        sessions.iter_mut().for_each(|session| session.run(&inputs, &mut Bytes(0), &|| false).expect("runs"));
        LIVE.load(Ordering::Relaxed)
    };
    let batches = || (1..=3 * SHAPES_MAX).rev();
    // The largest batch first, so that no later one takes a larger arena.
    let mut held = batches().map(&mut run);
    let one = held.next().expect("there are batches");
    let full = held.nth(SHAPES_MAX - 2).expect("there are more batches");
    let once = held.last().expect("there are more batches");
    println!("{name}: a plan takes {} bytes", (full - one) / (SHAPES_MAX - 1));
    assert!(full - one <= PLAN_BYTES_MAX * (SHAPES_MAX - 1), "{name}: {} bytes of plans", full - one);
    let later = batches().chain(batches()).map(&mut run).last().expect("there are batches");
    assert!(later <= once + PLAN_BYTES_MAX, "{name}: {later} bytes after more rounds, {once} after one");
}

/// A file whose memory tells when it is let go.
struct File {
    bytes: bytes::Bytes,
    _held: Arc<()>,
}

impl AsRef<[u8]> for File {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

fn weights_are_in_memory_once(name: &str, file: bytes::Bytes, inputs: &[Tensor], times: f64) {
    const SESSION_BYTES_MAX: usize = 1_000_000;
    let inputs: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
    let (held, file_bytes) = (Arc::new(()), file.len());
    let live = || LIVE.load(Ordering::Relaxed);
    let start = live();
    let mapped = bytes::Bytes::from_owner(File { bytes: file, _held: Arc::clone(&held) });
    let program = program(&Files::from([(MODEL_FILE.to_owned(), mapped)]));
    // The file was there before the count began, and goes with the last who holds it.
    assert_eq!(Arc::strong_count(&held), 1, "{name} holds its file");
    let resident = (live() + file_bytes - start) as f64 / file_bytes as f64;
    println!("{name}: {resident:.3} x the file");
    assert!(resident <= times, "{name}: resident {resident} x the file");

    let [mut first, mut second] = [(); 2].map(|()| Session::new(Arc::clone(&program)));
    first.run(&inputs, &mut Bytes(0), &|| false).expect("runs");
    let (before, arena) = (live(), first.arena_bytes());
    second.run(&inputs, &mut Bytes(0), &|| false).expect("runs");
    let more = live() - before;
    println!("{name}: a second session takes {more} bytes; the arena has {arena}");
    assert!(more <= SESSION_BYTES_MAX, "{name}: a second session takes {more} bytes");

    // While both run, there is a second arena, and nothing else.
    let inside = Barrier::new(2);
    std::thread::scope(|scope| {
        for session in [&mut first, &mut second] {
            let (inside, inputs) = (&inside, &inputs);
            scope.spawn(move || {
                for _ in 0..3 {
                    let asked = Cell::new(false);
                    // Asked before the first step, when a run has its arena: none goes on before the other is
                    // there.
                    let cancelled = || {
                        if !asked.replace(true) {
                            inside.wait();
                        }
                        false
                    };
                    session.run(inputs, &mut Bytes(0), &cancelled).expect("runs");
                }
            });
        }
    });
    let more = live() - before;
    println!("{name}: two that run at once take {more} bytes more than one");
    assert!(
        (arena..=arena + SESSION_BYTES_MAX).contains(&more),
        "{name}: two at once take {more} bytes more"
    );
}
