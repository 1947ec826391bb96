//! A run of shapes that were run before allocates nothing. Alone in its process, since it counts every allocation.
#![allow(unsafe_code, reason = "an allocator that counts is unsafe by its trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use roost_native::conformance::read_bundle;
use roost_native::program::Options;
use roost_native::{DType, Input, Limits, Model, Program, Session, Sink, Tensor};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the allocator's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, start: *mut u8, layout: Layout) {
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

#[test]
fn a_shape_seen_before_allocates_nothing() {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/models");
    let models = std::env::var_os("ROOST_TEST_MODELS").map_or(beside, PathBuf::from);
    let digits = |batch: usize| vec![Tensor::of(&[batch, 1, 8, 8], &vec![0.5_f32; batch * 64])];
    let tokens = vec![Tensor::of(&[2, 16], &[3_i64; 32]), Tensor::of(&[2, 16], &[1_i64; 32])];
    let cases = [
        ("digits_v1_logreg", digits(8)),
        ("digits_v2_conv", digits(8)),
        ("digits_v2_int8_qdq", digits(8)),
        ("digits_lstm", digits(8)),
        ("squeezenet_fp32", vec![Tensor::of(&[1, 3, 224, 224], &vec![0.5_f32; 3 * 224 * 224])]),
        ("text_encoder_tiny", tokens),
    ];
    for (name, inputs) in cases {
        let files = read_bundle(&models.join(name)).expect("the model is there; or set ROOST_TEST_MODELS");
        let model = Model::import(&files, Limits::default()).expect("imports");
        let mut session = Session::new(Program::compile(model, Options::default()).expect("compiles"));
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
}
