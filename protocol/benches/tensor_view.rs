//! What the protocol adds to a request: views of tensors, frames, the ring, the traffic split.
//!
//! `cargo bench -p roost-protocol` prints medians over batches, and what one call allocates. Anything else that runs this,
//! such as `cargo test --benches`, makes one short pass to see that it still works.

use std::hint::black_box;
use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use roost_protocol::frame::{Frame, Kind};
use roost_protocol::ids::{ModelName, NodeId, NodeName, Revision, Version};
use roost_protocol::messages::infer::{
    InferHeader, InferRequest, Named, Trailer, encode_archive, lay_out, read_trailer,
};
use roost_protocol::ring::{Ring, Speed, version_place};
use roost_protocol::tensor::{DType, Shape, Tensor, TensorView};
use roost_protocol::traffic::{Canary, KeyHash, Traffic, Weight};

#[path = "../tests/allocations/mod.rs"]
mod allocations;

/// Batches per row; the median of as many is steady to a few percent on a quiet machine.
const BATCHES: usize = 51;
/// Long against the clock's resolution.
const BATCH: Duration = Duration::from_millis(4);

fn main() {
    let thorough = std::env::args().any(|argument| argument == "--bench");
    if thorough {
        println!("{}", machine());
    }
    println!("{:<44} {:>12} {:>12}", "", "median", "allocations");
    let mut bench = Bench {
        batches: if thorough { BATCHES } else { 1 },
        batch: if thorough { BATCH } else { Duration::ZERO },
    };
    views(&mut bench);
    frames(&mut bench);
    routing(&mut bench);
}

fn views(bench: &mut Bench) {
    let image = vec![0u8; 32 * 784 * 4];
    let shape = Shape::new(&[32, 784]).expect("rank 2");
    bench.row("view of f32[32, 784]", || TensorView::new(DType::F32, black_box(shape), black_box(&image)));
    let mask = vec![1u8; 1024];
    let shape = Shape::new(&[1024]).expect("rank 1");
    bench.row("view of bool[1024]", || TensorView::new(DType::Bool, black_box(shape), black_box(&mask)));
    let texts = Tensor::from_strings(&[64], &["a word"; 64]).expect("64 texts");
    bench.row("view of string[64]", || {
        TensorView::new(DType::String, texts.shape(), black_box(texts.bytes()))
    });
    let view =
        TensorView::new(DType::F32, Shape::new(&[32, 784]).expect("rank 2"), &image).expect("a tensor");
    bench.row("elements of f32[32, 784]", || black_box(view).elements::<f32>().map(<[f32]>::len));
}

fn frames(bench: &mut Bench) {
    let image = Tensor::from_elements(&[1, 784], vec![0.5f32; 784]).expect("784 elements");
    let named = [Named { name: "image".to_owned(), tensor: image }];
    let (tensors, pieces) = lay_out(&named).expect("one tensor");
    bench.row("lay out one tensor", || lay_out(black_box(&named)));
    let header = InferHeader {
        request: [7; 16],
        attempt: 0,
        deadline_us: 100_000,
        priority: 0,
        tenant: None,
        sequence: None,
        trace: None,
        response_mode: 0,
        model: "digits".to_owned(),
        version: 2,
        revision: 12,
        generation: 1,
        choice: 0,
        key_hash: 42,
        tensors,
        outputs: vec![],
    };
    let body_bytes = pieces.iter().map(|piece: &Bytes| piece.len() as u64).sum();
    let encode = || encode_archive(Kind::InferRequest, black_box(&header), body_bytes);
    bench.row("encode a request's header", encode);
    let mut bytes = encode().expect("a small header").to_vec();
    pieces.iter().for_each(|piece| bytes.extend_from_slice(piece));
    bench.row("parse a request's frame, 3 KiB", || Frame::parse(black_box(&bytes)));
    let frame = Frame::parse(&bytes).expect("a frame");
    bench.row("read a request and its tensors in place", || {
        InferRequest::read(black_box(&frame)).map(|request| request.tensors().filter(Result::is_ok).count())
    });
    let trailer = Trailer { error: None, queue_us: 40, compute_us: 900, batch_rows: 8, in_flight: 3 };
    let encode = || encode_archive(Kind::InferTrailer, black_box(&trailer), 0);
    bench.row("encode a trailer", encode);
    let frame = Frame::parse(&encode().expect("a small header")).expect("a frame");
    bench.row("read a trailer", || read_trailer(black_box(&frame)));
}

fn routing(bench: &mut Bench) {
    let model = ModelName::new("digits").expect("a name");
    let names: Vec<(NodeId, NodeName)> =
        (0..100).map(|i| (NodeId(i), NodeName::new(&format!("node-{i}")).expect("a name"))).collect();
    let make = || Ring::new(black_box(&names).iter().map(|(id, name)| (*id, name, Speed::default())));
    bench.row("make a ring of 100 nodes", make);
    let ring = make();
    bench.row("a version's place", || version_place(black_box(&model), Version(2)));
    let place = version_place(&model, Version(2));
    bench.row("walk to the first 2 of 100 nodes", || {
        ring.walk(black_box(place)).take(2).map(|node| node.0).sum::<u64>()
    });
    bench.row("walk over all 100 nodes", || ring.walk(black_box(place)).map(|node| node.0).sum::<u64>());
    let weight = Weight::from_basis_points(2000).expect("20 %");
    let canary = Some(Canary { version: Version(2), weight });
    let traffic = Traffic { revision: Revision(12), stable: Version(1), canary, previous: None };
    bench.row("hash a key", || KeyHash::of(black_box(b"user-42")));
    bench.row("pick a version", || traffic.pick(black_box(&model), black_box(KeyHash(42))));
}

/// How thoroughly rows are measured.
struct Bench {
    batches: usize,
    batch: Duration,
}

impl Bench {
    /// Measures and prints one row.
    fn row<T>(&mut self, name: &str, mut work: impl FnMut() -> T) {
        let (result, allocated) = allocations::measure(&mut work);
        drop(black_box(result));
        let mut calls = 1u32;
        while time(calls, &mut work) < self.batch {
            calls *= 2;
        }
        let mut batches: Vec<Duration> = (0..self.batches).map(|_| time(calls, &mut work)).collect();
        batches.sort_unstable();
        let median_ns = batches[batches.len() / 2].as_nanos() as f64 / f64::from(calls);
        println!("{name:<44} {median_ns:>9.1} ns {:>12}", allocated.count);
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench measures the machine's own time")]
fn time<T>(calls: u32, work: &mut impl FnMut() -> T) -> Duration {
    let start = std::time::Instant::now();
    for _ in 0..calls {
        black_box(work());
    }
    start.elapsed()
}

/// The processor and the commit that the figures belong to.
fn machine() -> String {
    let cpus = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpus.lines().find_map(|line| line.strip_prefix("model name")).unwrap_or(std::env::consts::ARCH);
    let log = Command::new("git").args(["log", "-1", "--format=%h of %cs"]).output();
    let commit =
        log.map_or_else(|_| "?".to_owned(), |output| String::from_utf8_lossy(&output.stdout).into_owned());
    format!("{}, commit {}", model.trim_matches([' ', '\t', ':']), commit.trim())
}
