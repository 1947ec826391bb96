//! Products in 8 bits against their definition, on every set.

use crate::gemm::Activation;
use crate::qgemm::{ByteRows, BytesOut, FloatsOut, Output, Sign, SumsOut, WeightZeros};
use crate::test::{Guarded, bytes, kernels, noise, same, sized};

fn number(byte: u8, sign: Sign) -> i32 {
    match sign {
        Sign::Unsigned => i32::from(byte),
        Sign::Signed => i32::from(byte as i8),
    }
}

/// Checks all three outputs of a product on every table against plain sums.
fn check(m: usize, k: usize, n: usize, sign: Sign, weight_zeros: bool) {
    let a_zero = if sign == Sign::Unsigned { 113 } else { -9 };
    let stride = k + 1;
    let a = Guarded::from(&bytes(if m * k == 0 { 0 } else { (m - 1) * stride + k }, 1));
    let b: Vec<i8> = bytes(k * n, 2).iter().map(|x| *x as i8).collect();
    let bias: Vec<i32> = bytes(n, 3).iter().map(|x| i32::from(*x) * 100 - 9_000).collect();
    let zeros: Vec<i32> = bytes(n, 4).iter().map(|x| i32::from(*x as i8)).collect();
    let scale: Vec<f32> = noise(n, 5).iter().map(|x| 1e-3 + x.abs() * 1e-3).collect();
    let plus = noise(n, 6);
    let mut sums = vec![0i32; m * n];
    for r in 0..m {
        for c in 0..n {
            let b_zero = if weight_zeros { zeros[c] } else { 0 };
            sums[r * n + c] = (0..k).fold(bias[c], |sum, p| {
                let x = number(a[r * stride + p], sign) - a_zero;
                sum.wrapping_add(x * (i32::from(b[p * n + c]) - b_zero))
            });
        }
    }
    let (out_zero, relu_low) = (20, 20);
    for kernels in kernels() {
        let name = format!("{m}x{k}x{n} {sign:?} {weight_zeros} {}", kernels.isa());
        let gemm = kernels.qgemm(k, n, sign);
        let mut packed = Guarded::from(&vec![0i8; gemm.packed_len()]);
        let mut column_sums = vec![0; n];
        gemm.pack(&b, n, 1, &mut packed, &mut column_sums);
        let mut unpacked = vec![None; k * n];
        gemm.unpack(&packed, |r, c, value| unpacked[r * n + c] = Some(value));
        assert!(unpacked.iter().zip(&b).all(|(found, value)| *found == Some(*value)), "{name}");
        let mut offsets = Guarded::from(&vec![0i32; n]);
        gemm.offsets(&column_sums, a_zero, Some(&bias), &mut offsets);
        let rows = ByteRows { data: &a, stride };
        let mut terms = vec![0; m];
        gemm.row_terms(rows, a_zero, &mut terms);
        let weights = weight_zeros.then_some(WeightZeros { zeros: &zeros, row_terms: &terms });

        let mut out = Guarded::from(&vec![0i32; m * n]);
        let target = Output::Sums(SumsOut { data: &mut out, stride: n });
        gemm.run(m, rows, &packed, &offsets, weights, target);
        assert_eq!(*out, *sums, "{name}");

        let mut out = Guarded::from(&vec![0.0f32; m * n]);
        let target = Output::Floats(FloatsOut {
            data: &mut out,
            stride: n,
            scale: &scale,
            bias: Some(&plus),
            activation: Activation::Relu,
        });
        gemm.run(m, rows, &packed, &offsets, weights, target);
        let expected: Vec<f32> = sums
            .iter()
            .enumerate()
            .map(|(i, sum)| (*sum as f32 * scale[i % n] + plus[i % n]).max(0.0))
            .collect();
        same(&out, &expected, &name);

        let mut out = Guarded::from(&vec![0u8; m * n]);
        let target = Output::Bytes(BytesOut {
            data: &mut out,
            stride: n,
            scale: &scale[..n.min(1)],
            zero: out_zero,
            low: relu_low,
            high: 255,
        });
        if n > 0 {
            gemm.run(m, rows, &packed, &offsets, weights, target);
        }
        let expected: Vec<u8> = sums
            .iter()
            .map(|sum| {
                let value = *sum as f32 * scale[0];
                (value.round_ties_even() as i32).saturating_add(out_zero).clamp(relu_low, 255) as u8
            })
            .collect();
        assert_eq!(*out, *expected, "{name}");
    }
}

#[test]
fn every_depth_and_tail() {
    let most = sized(70, 20, 4);
    for sign in [Sign::Unsigned, Sign::Signed] {
        for k in 0..=most {
            check(3, k, 19, sign, false);
        }
        for n in 0..=most {
            check(2, 9, n, sign, false);
        }
        for m in 0..=sized(30, 30, 3) {
            check(m, 13, 35, sign, true);
        }
        if sized(true, true, false) {
            check(17, 130, 70, sign, true);
            check(1, 64, 300, sign, false);
        }
    }
}

#[test]
fn extremes_neither_saturate_nor_overflow_in_between() {
    for kernels in kernels() {
        for (sign, byte, value) in [(Sign::Unsigned, 255u8, 255), (Sign::Signed, 128u8, -128)] {
            for weight in [-128i8, 127] {
                let gemm = kernels.qgemm(64, 1, sign);
                let mut packed = vec![0; gemm.packed_len()];
                let mut sums = [0];
                gemm.pack(&[weight; 64], 1, 1, &mut packed, &mut sums);
                let mut offsets = [0];
                gemm.offsets(&sums, 0, None, &mut offsets);
                let mut out = [0];
                let target = Output::Sums(SumsOut { data: &mut out, stride: 1 });
                gemm.run(1, ByteRows { data: &[byte; 64], stride: 64 }, &packed, &offsets, None, target);
                assert_eq!(out[0], 64 * value * i32::from(weight), "{sign:?} {weight} {}", kernels.isa());
            }
        }
    }
}

#[test]
fn sums_wrap() {
    for kernels in kernels() {
        let gemm = kernels.qgemm(1, 1, Sign::Unsigned);
        let mut packed = vec![0; gemm.packed_len()];
        let mut sums = [0];
        gemm.pack(&[1], 1, 1, &mut packed, &mut sums);
        let mut offsets = [0];
        gemm.offsets(&sums, 0, Some(&[i32::MAX]), &mut offsets);
        let mut out = [0];
        let target = Output::Sums(SumsOut { data: &mut out, stride: 1 });
        gemm.run(1, ByteRows { data: &[2], stride: 1 }, &packed, &offsets, None, target);
        assert_eq!(out[0], i32::MIN + 1, "{}", kernels.isa());
    }
}

/// The definition of a requantised sum.
fn requantized(sum: i32, scale: f32, zero: i32, low: i32, high: i32) -> u8 {
    // The cast saturates; a sum past i64 cannot be.
    let rounded = (sum as f32 * scale).round_ties_even() as i64;
    (rounded + i64::from(zero)).clamp(i64::from(low), i64::from(high)) as u8
}

#[test]
fn whole_vectors_of_bytes_at_every_bound() {
    // The widest tiles of AVX-512 take 256 columns.
    let n = sized(320, 64, 32);
    let weights: Vec<i8> = bytes(n, 2).iter().map(|x| *x as i8).collect();
    // Halves, the ends of i16 and of i32, and what lies between.
    let bias: Vec<i32> = (0..n as i32)
        .map(|c| match c % 8 {
            0 => i32::MAX - 40_000,
            1 => i32::MIN + 40_000,
            2 => 4 * c,
            3 => -4 * c - 2,
            4 => 131_072 + 2 * c,
            5 => -131_072 - 2 * c,
            6 => 600 * (c - n as i32 / 2),
            _ => c - n as i32 / 2,
        })
        .collect();
    let mixed: Vec<f32> = (0..n).map(|c| [0.25, 0.5, 0.999_999_94, 1e-3][c % 4]).collect();
    let scales = [vec![0.25], vec![0.999_999_94], vec![1.0], vec![-0.5], vec![3e9], mixed];
    let unsigned = [(0, 0, 255), (20, 20, 255), (255, 0, 255), (128, 128, 200), (7, 30, 31)];
    let signed =
        [(0, -128, 127), (-128, -128, 127), (127, -128, 127), (-5, -5, 127), (3, -7, -2), (9, -9, 99)];
    let neither = [(0, -128, 255)];
    for kernels in kernels() {
        let gemm = kernels.qgemm(1, n, Sign::Unsigned);
        let mut packed = Guarded::from(&vec![0i8; gemm.packed_len()]);
        let (mut sums, mut offsets) = (vec![0; n], vec![0; n]);
        gemm.pack(&weights, n, 1, &mut packed, &mut sums);
        gemm.offsets(&sums, 0, Some(&bias), &mut offsets);
        for m in 1..=sized(15, 7, 3) {
            let a = bytes(m, 9);
            for scale in &scales {
                for (zero, low, high) in unsigned.iter().chain(&signed).chain(&neither).copied() {
                    let mut out = Guarded::from(&vec![0u8; m * n]);
                    let data = &mut out;
                    let target = Output::Bytes(BytesOut { data, stride: n, scale, zero, low, high });
                    gemm.run(m, ByteRows { data: &a, stride: 1 }, &packed, &offsets, None, target);
                    let expected: Vec<u8> = (0..m * n)
                        .map(|i| {
                            let c = i % n;
                            let sum = (i32::from(a[i / n]) * i32::from(weights[c])).wrapping_add(bias[c]);
                            requantized(sum, scale[c.min(scale.len() - 1)], zero, low, high)
                        })
                        .collect();
                    let name = format!("{m} rows, {zero} in {low}..={high}, {}", kernels.isa());
                    assert_eq!(*out, *expected, "{name}, scale {:?}", &scale[..1]);
                }
            }
        }
    }
}
