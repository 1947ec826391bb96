//! How close kernels come to this machine's peaks. Run `cargo bench -p roost-kernels [-- FILTER]`, FILTER being
//! one of gemm, conv, qgemm, qconv, fusion, rows.
//!
//! Peaks are measured in the same run, by loops of independent products in registers. A figure is the first decile
//! of many short runs, and comes with its share of the peak.

use std::hint::black_box;
use std::time::{Duration, Instant};

use roost_kernels::{
    Activation, Buffer, ByteRows, BytesOut, ConvInput, ConvShape, Epilogue, Isa, Kernels, Logits, Matrix,
    Output, QWeights, Quantization, RowsMut, Sign, SumsOut, Unary, Window, cast_mut, transpose,
};

fn main() {
    let filter = std::env::args().skip(1).find(|arg| !arg.starts_with('-'));
    let wanted = |name: &str| filter.as_deref().is_none_or(|filter| filter == name);
    for isa in Isa::available().iter().rev().filter(|isa| **isa != Isa::Scalar) {
        let kernels = Kernels::of(*isa).expect("an available set");
        let (float, byte) = peaks::measure(*isa);
        println!("# {isa}: peak {float:.1} GFLOP/s in f32, {byte:.1} GOP/s in 8 bits");
        if wanted("gemm") {
            gemm(kernels, float);
        }
        if wanted("conv") {
            conv(kernels, float);
        }
        if wanted("qgemm") {
            qgemm(kernels, byte);
        }
        if wanted("qconv") {
            qconv(kernels, byte);
        }
        if wanted("fusion") {
            fusion(kernels);
        }
        if wanted("rows") {
            rows(kernels);
        }
    }
}

/// The first decile of the runs of a quarter second, in seconds of processor time. Other processes slow runs down
/// through the caches and the core's other thread, so the middle says more about them; the very least may be a
/// clock's slip.
#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn typical(mut run: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut all = Vec::new();
    while start.elapsed() < Duration::from_millis(250) {
        // Short runs are repeated, since reading the clock takes as long as they do.
        let mut rounds = 1;
        loop {
            let before = processor_seconds();
            for _ in 0..rounds {
                run();
            }
            let seconds = processor_seconds() - before;
            if seconds > 2e-5 {
                all.push(seconds / f64::from(rounds));
                break;
            }
            rounds *= 4;
        }
    }
    all.sort_by(f64::total_cmp);
    all[all.len() / 10]
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

fn report(name: &str, operations: f64, seconds: f64, peak: f64) {
    let rate = operations / seconds / 1e9;
    println!("{name:<46} {rate:8.1} G/s {:6.1} %  {:9.1} µs", 100.0 * rate / peak, seconds * 1e6);
}

/// Aligned numbers, so that a figure does not depend on where an allocator puts things.
struct Floats(Buffer);

impl Floats {
    fn new(len: usize) -> Self {
        let mut buffer = Buffer::zeroed(4 * len).expect("room");
        for (i, x) in cast_mut::<u8, f32>(buffer.bytes_mut()).iter_mut().enumerate() {
            *x = (i * 31 % 251) as f32 / 251.0 - 0.5;
        }
        Self(buffer)
    }

    fn get(&mut self) -> &mut [f32] {
        cast_mut(self.0.bytes_mut())
    }
}

fn gemm(kernels: &'static Kernels, peak: f64) {
    for (k, n) in [(768, 768), (1024, 1024), (64, 64), (128, 128)] {
        let gemm = kernels.gemm(k, n);
        let (mut weights, mut packed) = (Floats::new(k * n), Floats::new(gemm.packed_len()));
        gemm.pack(Matrix::dense(weights.get(), n), packed.get());
        for m in [1, 8, 32, 128, 1024] {
            let (mut a, mut c) = (Floats::new(m * k), Floats::new(m * n));
            let mut scratch = Floats::new(gemm.scratch_len(m));
            let seconds = typical(|| {
                let out = RowsMut { data: c.get(), stride: n };
                let a = Matrix::dense(a.get(), k);
                gemm.run(m, a, packed.get(), out, &Epilogue::default(), scratch.get());
            });
            report(&format!("gemm {m}x{k}x{n}"), 2.0 * (m * n * k) as f64, seconds, peak);
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
    ]
}

/// Products of a convolution whose taps in the padding do not count.
fn operations(size: usize, kernel: usize, channels: usize, filters: usize) -> f64 {
    let taps = if kernel == 3 { 3 * size - 2 } else { size };
    2.0 * (taps * taps * channels * filters) as f64
}

fn conv(kernels: &'static Kernels, peak: f64) {
    let epilogue = Epilogue { activation: Activation::Relu, ..Epilogue::default() };
    for (size, kernel, channels, filters) in shapes() {
        let shape = ConvShape { y: same(size, kernel), x: same(size, kernel), channels, filters, groups: 1 };
        let conv = kernels.conv(shape).expect("a shape");
        let mut weights = Floats::new(channels * filters * shape.taps());
        let mut packed = Floats::new(conv.packed_len());
        conv.pack(weights.get(), packed.get());
        let (mut x, mut y) = (Floats::new(size * size * channels), Floats::new(size * size * filters));
        let mut scratch = Floats::new(conv.scratch_len(1));
        let seconds = typical(|| {
            let out = RowsMut { data: y.get(), stride: filters };
            let input = ConvInput::Nhwc { data: x.get(), pixel: channels };
            conv.run(1, input, packed.get(), out, &epilogue, scratch.get());
        });
        let name = format!("conv {kernel}x{kernel} {size}x{size} {channels} -> {filters}");
        report(&name, operations(size, kernel, channels, filters), seconds, peak);
    }
    let stem = |size| Window { size, kernel: 3, stride: 2, dilation: 1, before: 0, after: 0 };
    let shape = ConvShape { y: stem(224), x: stem(224), channels: 3, filters: 64, groups: 1 };
    let conv = kernels.conv(shape).expect("a shape");
    let (mut weights, mut packed) = (Floats::new(3 * 64 * 9), Floats::new(conv.packed_len()));
    conv.pack(weights.get(), packed.get());
    let (mut x, mut y) = (Floats::new(224 * 224 * 3), Floats::new(111 * 111 * 64));
    let seconds = typical(|| {
        let out = RowsMut { data: y.get(), stride: 64 };
        conv.run(1, ConvInput::Nchw { data: x.get() }, packed.get(), out, &epilogue, &mut []);
    });
    report("stem 3x3 stride 2, 224x224 3 -> 64, NCHW", 2.0 * (111 * 111 * 27 * 64) as f64, seconds, peak);
    let shape = ConvShape { y: same(56, 3), x: same(56, 3), channels: 128, filters: 128, groups: 128 };
    let conv = kernels.conv(shape).expect("a shape");
    let (mut weights, mut packed) = (Floats::new(128 * 9), Floats::new(conv.packed_len()));
    conv.pack(weights.get(), packed.get());
    let (mut x, mut y) = (Floats::new(56 * 56 * 128), Floats::new(56 * 56 * 128));
    let seconds = typical(|| {
        let out = RowsMut { data: y.get(), stride: 128 };
        let input = ConvInput::Nhwc { data: x.get(), pixel: 128 };
        conv.run(1, input, packed.get(), out, &epilogue, &mut []);
    });
    report("depthwise 3x3 56x56 128", 2.0 * (166 * 166 * 128) as f64, seconds, peak);
}

fn byte_rows(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i * 31 % 251) as u8).collect()
}

fn requantized<'a>(data: &'a mut [u8], stride: usize) -> Output<'a> {
    let scale = &[0.001];
    Output::Bytes(BytesOut { data, stride, scale, zero: 10, low: 10, high: 255, residual: None })
}

fn qgemm(kernels: &'static Kernels, peak: f64) {
    for (k, n) in [(768, 768), (1024, 1024), (64, 64)] {
        let gemm = kernels.qgemm(k, n, Sign::Unsigned);
        let weights: Vec<i8> = byte_rows(k * n).iter().map(|x| *x as i8).collect();
        let mut packed = Buffer::zeroed(gemm.packed_len()).expect("room");
        let (mut sums, mut offsets) = (vec![0; n], vec![0; n]);
        gemm.pack(&weights, n, 1, cast_mut(packed.bytes_mut()), &mut sums);
        gemm.offsets(&sums, 128, None, &mut offsets);
        for m in [1, 8, 32, 128, 1024, 3136] {
            let (a, mut c) = (byte_rows(m * k), vec![0u8; m * n]);
            let packed: &[i8] = cast_mut(packed.bytes_mut());
            let seconds = typical(|| {
                gemm.run(m, ByteRows { data: &a, stride: k }, packed, &offsets, None, requantized(&mut c, n));
            });
            report(&format!("qgemm {m}x{k}x{n}, to bytes"), 2.0 * (m * n * k) as f64, seconds, peak);
        }
    }
}

fn qconv(kernels: &'static Kernels, peak: f64) {
    for (size, kernel, channels, filters) in shapes() {
        let shape = ConvShape { y: same(size, kernel), x: same(size, kernel), channels, filters, groups: 1 };
        let conv = kernels.qconv(shape, Sign::Unsigned).expect("a shape");
        let weights: Vec<i8> =
            byte_rows(channels * filters * shape.taps()).iter().map(|x| *x as i8).collect();
        let mut packed = Buffer::zeroed(conv.packed_len()).expect("room");
        let mut sums = vec![0; conv.sums_len()];
        conv.pack(&weights, cast_mut(packed.bytes_mut()), &mut sums);
        let packed: &[i8] = cast_mut(packed.bytes_mut());
        let (x, mut y) = (byte_rows(size * size * channels), vec![0u8; size * size * filters]);
        let mut scratch = vec![0; conv.scratch_len()];
        let seconds = typical(|| {
            let rows = ByteRows { data: &x, stride: channels };
            let weights = QWeights { packed, sums: &sums, bias: None };
            conv.run(1, rows, 128, weights, requantized(&mut y, filters), &mut scratch);
        });
        let name = format!("qconv {kernel}x{kernel} {size}x{size} {channels} -> {filters}");
        report(&name, operations(size, kernel, channels, filters), seconds, peak);
    }
}

/// A pointwise convolution of bytes with its requantisation in the tile, against the same product followed by
/// passes of dequantisation, ReLU and quantisation over all of it.
fn fusion(kernels: &'static Kernels) {
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
    println!(
        "fused {:.1} µs; product {:.1} µs and passes {:.1} µs: {:.2} times",
        fused * 1e6,
        product * 1e6,
        passes * 1e6,
        (product + passes) / fused
    );
}

fn rows(kernels: &'static Kernels) {
    let n = 4096;
    let (mut x, mut y) = (Floats::new(n), Floats::new(n));
    let show =
        |name: &str, seconds: f64| println!("{name:<46} {:8.3} ns per element", seconds * 1e9 / n as f64);
    for unary in [Unary::Relu, Unary::Exp, Unary::Log, Unary::Tanh, Unary::Erf, Unary::Sigmoid, Unary::Gelu] {
        let kernel = kernels.unary(unary);
        show(&format!("{unary:?}"), typical(|| kernel.run(x.get(), black_box(y.get()))));
    }
    show("softmax", typical(|| kernels.softmax(x.get(), Logits::default(), black_box(y.get()))));
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

/// What the hardware can do at most: as many independent products as hide their latency, all in registers.
mod peaks {
    use roost_kernels::Isa;

    use super::{black_box, typical};

    const ROUNDS: usize = 20_000;

    /// GFLOP/s in f32 and GOP/s in 8 bits.
    pub fn measure(isa: Isa) -> (f64, f64) {
        let (lanes, sums, products, bytes): (usize, usize, fn(), fn()) = match isa {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the set is available, as main asks only for such.
            Isa::Avx512 => (16, 16, || unsafe { x86::floats512() }, || unsafe { x86::bytes512() }),
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Isa::Avx2 => (8, 12, || unsafe { x86::floats256() }, || unsafe { x86::bytes256() }),
            _ => return (f64::NAN, f64::NAN),
        };
        let rate = |run: fn(), each: usize| (2 * each * sums * ROUNDS) as f64 / typical(run) / 1e9;
        let per_lane = if isa == Isa::Avx512 && is_vnni() { 4 } else { 2 };
        (rate(products, lanes), rate(bytes, per_lane * lanes))
    }

    fn is_vnni() -> bool {
        roost_kernels::Features::detect().vnni
    }

    #[cfg(target_arch = "x86_64")]
    mod x86 {
        #[allow(clippy::wildcard_imports, reason = "intrinsics, by the dozen")]
        use std::arch::x86_64::*;

        use super::{ROUNDS, black_box};

        #[target_feature(enable = "avx512f")]
        pub unsafe fn floats512() {
            let mut sums = [_mm512_set1_ps(1.0); 16];
            let (x, y) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = _mm512_fmadd_ps(*sum, x, y);
                }
            }
            black_box(sums);
        }

        #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
        pub unsafe fn bytes512() {
            let mut sums = [_mm512_set1_epi32(1); 16];
            let x = black_box(_mm512_set1_epi32(0x0101_0101));
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = _mm512_dpbusd_epi32(*sum, x, x);
                }
            }
            black_box(sums);
        }

        #[target_feature(enable = "avx2,fma")]
        pub unsafe fn floats256() {
            let mut sums = [_mm256_set1_ps(1.0); 12];
            let (x, y) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = _mm256_fmadd_ps(*sum, x, y);
                }
            }
            black_box(sums);
        }

        #[target_feature(enable = "avx2,fma")]
        pub unsafe fn bytes256() {
            let mut sums = [_mm256_set1_epi32(1); 12];
            let mut x = black_box(_mm256_set1_epi32(0x0001_0001));
            for _ in 0..ROUNDS {
                for sum in &mut sums {
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, *sum));
                }
                x = black_box(x);
            }
            black_box(sums);
        }
    }
}
