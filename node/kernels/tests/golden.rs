//! The bits of results, pinned: the same on every instruction set and architecture, and from one release to
//! the next.
//!
//! A change of a kernel's order or polynomial changes them. Then all nodes of a cluster must change together:
//! say so in the release notes, and write the new number here.

use roost_kernels::{
    Activation, ConvInput, ConvShape, Epilogue, Kernels, Matrix, Reduce, Rows, RowsMut, Unary, Weights,
    Window,
};

const GOLDEN: u64 = 0x2654_9460_b1fa_e3a4;

/// Numbers in [-1, 1), by Steele and Vigna's SplitMix64.
fn noise(n: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

/// Fowler, Noll and Vo's hash, over the bits.
fn hash(mut state: u64, numbers: &[f32]) -> u64 {
    for byte in numbers.iter().flat_map(|x| x.to_bits().to_le_bytes()) {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state
}

fn digest(kernels: &'static Kernels) -> u64 {
    let mut state = 0xcbf2_9ce4_8422_2325;

    let (m, k, n) = (9, 61, 47);
    let gemm = kernels.gemm(k, n);
    let mut packed = vec![0.0; gemm.packed_len()];
    gemm.pack(Matrix::dense(&noise(k * n, 1), n), &mut packed);
    let (a, bias, residual) = (noise(m * k, 2), noise(n, 3), noise(m * n, 4));
    let mut out = vec![0.0; m * n];
    let epilogue = Epilogue {
        bias: Some(&bias),
        residual: Some(Rows { data: &residual, stride: n }),
        activation: Activation::Map(Unary::Gelu),
        ..Epilogue::default()
    };
    let target = RowsMut { data: &mut out, stride: n };
    gemm.run(m, Matrix::dense(&a, k), Weights::F32(&packed), target, &epilogue, &mut []);
    state = hash(state, &out);

    let side = |size| Window { size, kernel: 3, stride: 1, dilation: 1, before: 1, after: 1 };
    let shape = ConvShape { y: side(7), x: side(6), channels: 5, filters: 19, groups: 1 };
    let conv = kernels.conv(shape).expect("a shape");
    let mut packed = vec![0.0; conv.packed_len()];
    conv.pack(&noise(19 * 5 * 9, 5), &mut packed);
    let mut out = vec![0.0; 7 * 6 * 19];
    let image = noise(7 * 6 * 5, 6);
    let target = RowsMut { data: &mut out, stride: 19 };
    let input = ConvInput::Nhwc { data: &image, pixel: 5 };
    conv.run(1, input, Weights::F32(&packed), target, &Epilogue::default(), &mut []);
    state = hash(state, &out);

    let x: Vec<f32> = noise(1_000, 7).iter().map(|x| x * 12.0).collect();
    let mut y = vec![0.0; x.len()];
    for unary in [
        Unary::Exp,
        Unary::Tanh,
        Unary::Erf,
        Unary::Sigmoid,
        Unary::Silu,
        Unary::GeluTanh,
        Unary::Softplus,
        Unary::Mish,
        Unary::Elu { alpha: 0.7 },
    ] {
        kernels.unary(unary).run(&x, &mut y);
        state = hash(state, &y);
    }
    let positive: Vec<f32> = x.iter().map(|x| x.abs() + 1e-3).collect();
    kernels.unary(Unary::Log).run(&positive, &mut y);
    state = hash(state, &y);

    for reduce in [Reduce::Sum, Reduce::SumSquares, Reduce::SumAbs, Reduce::Max, Reduce::Min] {
        state = hash(state, &[kernels.reduce(reduce).run(&x)]);
    }
    let scaled: Vec<f32> = x.iter().map(|x| x * 0.125).collect();
    kernels.softmax(&scaled, &mut y);
    state = hash(state, &y);
    kernels.layer_norm(&x, None, None, 1e-5, &mut y);
    state = hash(state, &y);

    let (mut cell, mut hidden) = (noise(37, 8), vec![0.0; 37]);
    kernels.lstm_cell(&noise(4 * 37, 9), None, &mut cell, &mut hidden);
    hash(hash(state, &cell), &hidden)
}

#[test]
fn results_have_the_same_bits_everywhere() {
    for (name, kernels) in Kernels::all() {
        assert_eq!(format!("{:016x}", digest(kernels)), format!("{GOLDEN:016x}"), "{name}");
    }
}
