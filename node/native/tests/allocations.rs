//! A run of shapes that were run before allocates nothing; weights are in memory once, and a further session costs little.
//! Alone in its process and in one test, since it counts every allocation.
#![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

#[path = "../benches/speed/networks.rs"]
mod networks;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Barrier};

use roost_native::conformance::read_bundle;
use roost_native::onnx::external::Files;
use roost_native::onnx::import::MODEL_FILE;
use roost_native::program::Options;
use roost_native::{DType, Input, Limits, Model, Program, Session, Sink, Tensor};

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

fn photo() -> Vec<Tensor> {
    vec![Tensor::of(&[1, 3, 224, 224], &vec![0.5_f32; 3 * 224 * 224])]
}

fn tokens() -> Vec<Tensor> {
    vec![Tensor::of(&[2, 16], &[3_i64; 32]), Tensor::of(&[2, 16], &[1_i64; 32])]
}

#[test]
fn memory_is_taken_once() {
    let cases = [
        ("digits_v1_logreg", digits(8)),
        ("digits_v2_conv", digits(8)),
        ("digits_v2_int8_qdq", digits(8)),
        ("digits_lstm", digits(8)),
        ("squeezenet_fp32", photo()),
        ("text_encoder_tiny", tokens()),
    ];
    for (name, inputs) in cases {
        let files = read_bundle(&folder(name)).expect("the model is there; or set ROOST_TEST_MODELS");
        a_shape_seen_before_allocates_nothing(name, &files, &inputs);
    }
    let characters = vec![Tensor::of_dtype(DType::U8, &[1, 32], &[b'a'; 32])];
    let cases = [
        ("squeezenet_fp32", photo(), 1.25),
        ("squeezenet_int8_qdq", photo(), 1.25),
        ("text_encoder_tiny", tokens(), 1.25),
        ("sentence_boundary_bilstm", characters, 1.25),
        // Half precision is computed, and so packed, in f32.
        (
            "squeezenet_fp16",
            vec![Tensor::of_dtype(DType::F16, &[1, 3, 224, 224], &[0; 2 * 3 * 224 * 224])],
            2.5,
        ),
    ];
    for (name, inputs, times) in cases {
        let mut files = read_bundle(&folder(name)).expect("the model is there; or set ROOST_TEST_MODELS");
        let model = files.remove(MODEL_FILE).expect("a bundle has a model");
        weights_are_in_memory_once(name, model, &inputs, times);
    }
    // ResNet-50's normalisations are folded into the weights of its convolutions.
    for (name, model) in networks::all() {
        weights_are_in_memory_once(name, model, &photo(), 1.25);
    }
}

fn a_shape_seen_before_allocates_nothing(name: &str, files: &Files, inputs: &[Tensor]) {
    let mut session = Session::new(program(files));
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
                    // Asked before the first step, when a run has its arena: none goes on before the other is there.
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
