//! How close kernels come to this machine's peaks. Run `cargo bench -p roost-kernels [-- FILTER]`, FILTER
//! being one of gemm, conv, qgemm, qconv, fusion, rows. Without a filter it writes `RESULTS.md`.
//!
//! A peak is a loop of independent products in registers. It runs in turns with each kernel, since the clock
//! changes from second to second; a figure is the first decile of many short runs, and comes with its share of
//! the peak of the same quarter of a second.

mod peaks;
mod report;

use std::error::Error;
use std::hint::black_box;
use std::time::{Duration, Instant};

use roost_kernels::{
    Activation, ByteRows, BytesOut, ConvInput, ConvShape, Epilogue, Isa, Kernels, Matrix, Output, QWeights,
    Quantization, RowsMut, Sign, SumsOut, Unary, Weights, Window, transpose,
};

use report::{Bits, Report};

fn main() -> Result<(), Box<dyn Error>> {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wanted = |name: &str| filter.as_deref().is_none_or(|filter| filter == name);
    let mut report = Report::default();
    for isa in Isa::available().iter().rev().filter(|isa| **isa != Isa::Scalar) {
        let kernels = Kernels::of(*isa).expect("an available set");
        report.set(*isa);
        if wanted("gemm") {
            gemm(kernels, &mut report);
        }
        if wanted("conv") {
            conv(kernels, &mut report);
        }
        if wanted("qgemm") {
            qgemm(kernels, &mut report);
        }
        if wanted("qconv") {
            qconv(kernels, &mut report);
        }
        if wanted("fusion") {
            fusion(kernels, &mut report);
        }
        if wanted("rows") {
            rows(kernels, &mut report);
        }
    }
    if filter.is_none() { report.write() } else { Ok(()) }
}

/// The first decile of the runs of a quarter second, in seconds of processor time. Other processes slow runs
/// down through the caches and the core's other thread, so the middle says more about them; the very least
/// may be a clock's slip.
fn typical(run: impl FnMut()) -> f64 {
    in_turns(run, None).0
}

/// The same, and for a loop that runs after each millisecond of it.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn in_turns(mut run: impl FnMut(), other: Option<fn()>) -> (f64, f64) {
    let start = Instant::now();
    let (mut runs, mut others) = (Vec::new(), Vec::new());
    while start.elapsed() < Duration::from_millis(250) {
        let mut spent = 0.0;
        while spent < 1e-3 {
            spent += sample(&mut run, &mut runs);
        }
        if let Some(other) = other {
            sample(other, &mut others);
        }
    }
    (first_decile(runs), first_decile(others))
}

/// One sample of a function's seconds; short runs are repeated, since reading the clock takes as long as they
/// do. Returns how long all of it took.
fn sample(mut run: impl FnMut(), samples: &mut Vec<f64>) -> f64 {
    let mut rounds = 1;
    loop {
        let before = processor_seconds();
        for _ in 0..rounds {
            run();
        }
        let seconds = processor_seconds() - before;
        if seconds > 2e-5 {
            samples.push(seconds / f64::from(rounds));
            return seconds;
        }
        rounds *= 4;
    }
}

fn first_decile(mut samples: Vec<f64>) -> f64 {
    samples.sort_by(f64::total_cmp);
    samples.get(samples.len() / 10).copied().unwrap_or(f64::NAN)
}

#[cfg(unix)]
fn processor_seconds() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the clock exists, and the time is ours to write.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0, "no clock of this thread");
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

#[cfg(not(unix))]
fn processor_seconds() -> f64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_secs_f64()
}

/// Numbers from a multiple of 64 bytes on, so that a figure does not depend on where an allocator puts
/// things.
struct Aligned<T> {
    numbers: Vec<T>,
    start: usize,
}

type Floats = Aligned<f32>;

impl<T: Clone + Default> Aligned<T> {
    fn zeroed(len: usize) -> Self {
        const LINE_BYTES: usize = 64;
        let numbers = vec![T::default(); len + LINE_BYTES / size_of::<T>()];
        let start = numbers.as_ptr().align_offset(LINE_BYTES);
        let mut aligned = Self { numbers, start };
        aligned.numbers.truncate(start + len);
        aligned
    }

    fn get(&mut self) -> &mut [T] {
        &mut self.numbers[self.start..]
    }
}

impl Floats {
    fn new(len: usize) -> Self {
        let mut floats = Self::zeroed(len);
        for (i, x) in floats.get().iter_mut().enumerate() {
            *x = (i * 31 % 251) as f32 / 251.0 - 0.5;
        }
        floats
    }
}

fn gemm(kernels: &'static Kernels, report: &mut Report) {
    for (k, n) in [(768, 768), (1024, 1024), (64, 64), (128, 128)] {
        let gemm = kernels.gemm(k, n);
        let (mut weights, mut packed) = (Floats::new(k * n), Floats::new(gemm.packed_len()));
        gemm.pack(Matrix::dense(weights.get(), n), packed.get());
        for m in [1, 8, 32, 64, 128, 1024] {
            let (mut a, mut c) = (Floats::new(m * k), Floats::new(m * n));
            let mut scratch = Floats::new(gemm.scratch_len(m, None));
            let aim = match kernels.isa() {
                // Smaller matrices than transformers have are in the table without an aim.
                _ if k < 768 => None,
                Isa::Avx512 if m >= 32 => Some(95.0),
                Isa::Avx2 if m >= 64 => Some(90.0),
                Isa::Avx2 if m == 8 => Some(80.0),
                _ => None,
            };
            report.share(&format!("gemm {m}x{k}x{n}"), 2.0 * (m * n * k) as f64, Bits::Float, aim, || {
                let out = RowsMut { data: c.get(), stride: n };
                let a = Matrix::dense(a.get(), k);
                gemm.run(m, a, Weights::F32(packed.get()), out, &Epilogue::default(), scratch.get());
            });
        }
    }
}

fn same(size: usize, kernel: usize) -> Window {
    Window { size, kernel, stride: 1, dilation: 1, before: kernel / 2, after: kernel / 2 }
}

fn shapes() -> Vec<(usize, usize, usize, usize)> {
    vec![
        (56, 1, 64, 64),
        (55, 1, 64, 16),
        (13, 1, 384, 48),
        (55, 3, 16, 64),
        (27, 3, 32, 128),
        (13, 3, 48, 192),
        (13, 3, 64, 256),
        (56, 3, 64, 64),
        (28, 3, 128, 128),
        (14, 3, 256, 256),
        (7, 3, 512, 512),
        (8, 3, 16, 32),
        (4, 3, 32, 64),
    ]
}

/// Products of a convolution whose taps in the padding do not count.
fn operations(size: usize, kernel: usize, channels: usize, filters: usize) -> f64 {
    let taps = if kernel == 3 { 3 * size - 2 } else { size };
    2.0 * (taps * taps * channels * filters) as f64
}

fn conv(kernels: &'static Kernels, report: &mut Report) {
    let epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::default() };
    for (size, kernel, channels, filters) in shapes() {
        let shape = ConvShape { y: same(size, kernel), x: same(size, kernel), channels, filters, groups: 1 };
        let conv = kernels.conv(shape).expect("a shape");
        let mut weights = Floats::new(channels * filters * shape.taps());
        let mut packed = Floats::new(conv.packed_len());
        conv.pack(weights.get(), packed.get());
        let (mut x, mut y) = (Floats::new(size * size * channels), Floats::new(size * size * filters));
        let mut scratch = Floats::new(conv.scratch_len(1, None));
        let name = format!("conv {kernel}x{kernel} {size}x{size} {channels} -> {filters}");
        report.share(&name, operations(size, kernel, channels, filters), Bits::Float, None, || {
            let out = RowsMut { data: y.get(), stride: filters };
            let input = ConvInput::Nhwc { data: x.get(), pixel: channels };
            conv.run(1, input, Weights::F32(packed.get()), out, &epilogue, scratch.get());
        });
    }
    let stem = |size| Window { size, kernel: 3, stride: 2, dilation: 1, before: 0, after: 0 };
    let shape = ConvShape { y: stem(224), x: stem(224), channels: 3, filters: 64, groups: 1 };
    let conv = kernels.conv(shape).expect("a shape");
    let (mut weights, mut packed) = (Floats::new(3 * 64 * 9), Floats::new(conv.packed_len()));
    conv.pack(weights.get(), packed.get());
    let (mut x, mut y) = (Floats::new(224 * 224 * 3), Floats::new(111 * 111 * 64));
    let name = "stem 3x3 stride 2, 224x224 3 -> 64, NCHW";
    report.share(name, 2.0 * (111 * 111 * 27 * 64) as f64, Bits::Float, None, || {
        let out = RowsMut { data: y.get(), stride: 64 };
        conv.run(1, ConvInput::Nchw { data: x.get() }, Weights::F32(packed.get()), out, &epilogue, &mut []);
    });
    let shape = ConvShape { y: same(56, 3), x: same(56, 3), channels: 128, filters: 128, groups: 128 };
    let conv = kernels.conv(shape).expect("a shape");
    let (mut weights, mut packed) = (Floats::new(128 * 9), Floats::new(conv.packed_len()));
    conv.pack(weights.get(), packed.get());
    let (mut x, mut y) = (Floats::new(56 * 56 * 128), Floats::new(56 * 56 * 128));
    report.share("depthwise 3x3 56x56 128", 2.0 * (166 * 166 * 128) as f64, Bits::Float, None, || {
        let out = RowsMut { data: y.get(), stride: 128 };
        let input = ConvInput::Nhwc { data: x.get(), pixel: 128 };
        conv.run(1, input, Weights::F32(packed.get()), out, &epilogue, &mut []);
    });
}

fn byte_rows(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

fn requantized<'a>(data: &'a mut [u8], stride: usize) -> Output<'a> {
    let scale = &[0.001];
    Output::Bytes(BytesOut { data, stride, scale, zero: 10, low: 10, high: 255 })
}

fn qgemm(kernels: &'static Kernels, report: &mut Report) {
    for (k, n) in [(768, 768), (1024, 1024), (64, 64)] {
        let gemm = kernels.qgemm(k, n, Sign::Unsigned);
        let weights: Vec<i8> = byte_rows(k * n).iter().map(|x| *x as i8).collect();
        let mut packed = Aligned::<i8>::zeroed(gemm.packed_len());
        let (mut sums, mut offsets) = (vec![0; n], vec![0; n]);
        gemm.pack(&weights, n, 1, packed.get(), &mut sums);
        gemm.offsets(&sums, 128, None, &mut offsets);
        for m in [1, 8, 32, 128, 1024, 3136] {
            let (a, mut c) = (byte_rows(m * k), vec![0u8; m * n]);
            let packed: &[i8] = packed.get();
            let aim = (kernels.isa() == Isa::Avx512 && k >= 768 && m >= 8).then_some(90.0);
            let name = format!("qgemm {m}x{k}x{n}, to bytes");
            report.share(&name, 2.0 * (m * n * k) as f64, Bits::Byte, aim, || {
                gemm.run(m, ByteRows { data: &a, stride: k }, packed, &offsets, None, requantized(&mut c, n));
            });
        }
    }
}

fn qconv(kernels: &'static Kernels, report: &mut Report) {
    for (size, kernel, channels, filters) in shapes() {
        let shape = ConvShape { y: same(size, kernel), x: same(size, kernel), channels, filters, groups: 1 };
        let conv = kernels.qconv(shape, Sign::Unsigned).expect("a shape");
        let weights: Vec<i8> =
            byte_rows(channels * filters * shape.taps()).iter().map(|x| *x as i8).collect();
        let mut packed = Aligned::<i8>::zeroed(conv.packed_len());
        let mut sums = vec![0; conv.sums_len()];
        conv.pack(&weights, packed.get(), &mut sums);
        let packed: &[i8] = packed.get();
        let (x, mut y) = (byte_rows(size * size * channels), vec![0u8; size * size * filters]);
        let mut scratch = vec![0; conv.scratch_len()];
        let name = format!("qconv {kernel}x{kernel} {size}x{size} {channels} -> {filters}");
        report.share(&name, operations(size, kernel, channels, filters), Bits::Byte, None, || {
            let rows = ByteRows { data: &x, stride: channels };
            let weights = QWeights { packed, sums: &sums, bias: None };
            conv.run(1, rows, 128, weights, requantized(&mut y, filters), &mut scratch);
        });
    }
}

/// A pointwise convolution of bytes with its requantisation in the tile, against the same product followed by
/// passes of dequantisation, ReLU and quantisation over all of it. Tiles store bytes from registers; sums,
/// which the passes read, go through memory first, also where vectors are whole: a part of the ratio is that.
fn fusion(kernels: &'static Kernels, report: &mut Report) {
    let (m, k, n) = (56 * 56, 64, 64);
    let gemm = kernels.qgemm(k, n, Sign::Unsigned);
    let weights: Vec<i8> = byte_rows(k * n).iter().map(|x| *x as i8).collect();
    let (mut packed, mut sums, mut offsets) = (vec![0; gemm.packed_len()], vec![0; n], vec![0; n]);
    gemm.pack(&weights, n, 1, &mut packed, &mut sums);
    gemm.offsets(&sums, 128, None, &mut offsets);
    let (a, mut bytes, mut again) = (byte_rows(m * k), vec![0u8; m * n], vec![0u8; m * n]);
    let a = ByteRows { data: &a, stride: k };
    let fused = typical(|| gemm.run(m, a, &packed, &offsets, None, requantized(&mut bytes, n)));
    let (mut sums, mut floats) = (vec![0i32; m * n], vec![0.0f32; m * n]);
    let product = typical(|| {
        gemm.run(m, a, &packed, &offsets, None, Output::Sums(SumsOut { data: &mut sums, stride: n }));
    });
    let relu = kernels.unary(Unary::Relu);
    let to = Quantization { scale: 0.01, zero: 10, sign: Sign::Unsigned };
    let passes = typical(|| {
        for (sum, x) in sums.iter().zip(floats.iter_mut()) {
            *x = *sum as f32 * 1e-5;
        }
        relu.run_in_place(&mut floats);
        kernels.quantize(&floats, to, &mut again);
    });
    report.fusion(fused, product, passes);
}

fn rows(kernels: &'static Kernels, report: &mut Report) {
    let n = 4096;
    let (mut x, mut y) = (Floats::new(n), Floats::new(n));
    let mut show = |name: &str, seconds: f64| report.each(name, seconds * 1e9 / n as f64);
    for unary in [Unary::Relu, Unary::Exp, Unary::Log, Unary::Tanh, Unary::Erf, Unary::Sigmoid, Unary::Gelu] {
        let kernel = kernels.unary(unary);
        show(&format!("{unary:?}"), typical(|| kernel.run(x.get(), black_box(y.get()))));
    }
    show("softmax", typical(|| kernels.softmax(x.get(), black_box(y.get()))));
    show("layer norm", typical(|| _ = black_box(kernels.layer_norm(x.get(), None, None, 1e-5, y.get()))));
    show("transpose 64x64", typical(|| transpose(x.get(), 64, 64, 64, black_box(y.get()), 64)));
    let gemm = kernels.gemm(64, 64);
    show("pack 64x64", typical(|| gemm.pack(Matrix::dense(x.get(), 64), black_box(y.get()))));
    show(
        "pack 64x64, transposed",
        typical(|| gemm.pack(Matrix::transposed(x.get(), 64), black_box(y.get()))),
    );
    let with = Quantization { scale: 0.01, zero: 100, sign: Sign::Unsigned };
    let mut bytes = vec![0; n];
    show("quantize", typical(|| kernels.quantize(x.get(), with, black_box(&mut bytes))));
    show("dequantize", typical(|| kernels.dequantize(&bytes, with, black_box(y.get()))));
}
