//! Products of matrices against their definition, on every set.

use crate::elementwise::Unary;
use crate::gemm::{Activation, Epilogue, Matrix, Rows, RowsMut};
use crate::half::{Half, Weights};
use crate::isa::Isa;
use crate::table::Kernels;
use crate::test::{Guarded, halved, kernels, noise, same, sized};

/// A product to check.
#[derive(Debug, Clone, Copy)]
struct Case {
    m: usize,
    k: usize,
    n: usize,
    a_transposed: bool,
    b_transposed: bool,
    bias: bool,
    residual: bool,
    accumulate: bool,
    scratch: bool,
    activation: Activation,
}

impl Case {
    fn new(m: usize, k: usize, n: usize) -> Self {
        Self {
            m,
            k,
            n,
            a_transposed: false,
            b_transposed: false,
            bias: true,
            residual: false,
            accumulate: false,
            scratch: true,
            activation: Activation::None,
        }
    }

    /// Checks every table against the order rule, spelled out.
    fn check(self) {
        let Self { m, k, n, .. } = self;
        let a = Guarded::from(&noise(m * k, 1));
        let b = Guarded::from(&noise(k * n, 2));
        let bias = Guarded::from(&noise(n, 3));
        // Rows of results and residuals are apart: 3 elements between must stay as they are.
        let gap = 3;
        let stride = n + gap;
        let extent = if m * n == 0 { 0 } else { (m - 1) * stride + n };
        let residual = Guarded::from(&noise(extent, 4));
        let before = noise(extent, 5);
        let a_at = |r: usize, p: usize| if self.a_transposed { a[p * m + r] } else { a[r * k + p] };
        let b_at = |p: usize, c: usize| if self.b_transposed { b[c * k + p] } else { b[p * n + c] };
        let mut expected = before.clone();
        for r in 0..m {
            for c in 0..n {
                let mut sum = if self.accumulate { before[r * stride + c] } else { 0.0 };
                for p in 0..k {
                    sum = a_at(r, p).mul_add(b_at(p, c), sum);
                }
                if self.bias {
                    sum += bias[c];
                }
                if self.residual {
                    sum += residual[r * stride + c];
                }
                let sum = match self.activation {
                    Activation::None => sum,
                    Activation::Relu => {
                        if 0.0 > sum {
                            0.0
                        } else {
                            sum
                        }
                    }
                    Activation::Clip { min, max } => sum.max(min).min(max),
                    Activation::Map(unary) => {
                        let mut one = [sum];
                        Kernels::of(Isa::Scalar).expect("scalar").unary(unary).run_in_place(&mut one);
                        one[0]
                    }
                };
                expected[r * stride + c] = sum;
            }
        }
        for kernels in kernels() {
            let gemm = kernels.gemm(k, n);
            let mut packed = Guarded::from(&vec![f32::NAN; gemm.packed_len()]);
            let matrix = if self.b_transposed { Matrix::transposed(&b, k) } else { Matrix::dense(&b, n) };
            gemm.pack(matrix, &mut packed);
            let scratch = if self.scratch { gemm.scratch_len(m, None) } else { 0 };
            let mut scratch = Guarded::from(&vec![f32::NAN; scratch]);
            let mut out = Guarded::from(&before);
            let epilogue = Epilogue {
                accumulate: self.accumulate,
                bias: self.bias.then_some(&*bias),
                residual: self.residual.then_some(Rows { data: &residual, stride }),
                activation: self.activation,
            };
            let matrix = if self.a_transposed { Matrix::transposed(&a, m) } else { Matrix::dense(&a, k) };
            let target = RowsMut { data: &mut out, stride };
            gemm.run(m, matrix, Weights::F32(&packed), target, &epilogue, &mut scratch);
            same(&out, &expected, &format!("{self:?} {}", kernels.isa()));

            // Weights in half precision give what they give in f32.
            let (halves, wide) = halved(&packed);
            let target = RowsMut { data: &mut out, stride };
            target.data.copy_from_slice(&before);
            gemm.run(m, matrix, Weights::F32(&wide), target, &epilogue, &mut scratch);
            let mut scratch = Guarded::from(&vec![f32::NAN; gemm.scratch_len(m, Some(Half::BF16))]);
            let mut found = Guarded::from(&before);
            let target = RowsMut { data: &mut found, stride };
            let halves = Guarded::from(&halves);
            gemm.run(m, matrix, Weights::Half(Half::BF16, &halves), target, &epilogue, &mut scratch);
            same(&found, &out, &format!("{self:?} {} in half precision", kernels.isa()));
        }
    }
}

#[test]
fn every_row_count_and_tail_of_columns() {
    let (rows, cols) = sized((30, 70), (15, 20), (5, 6));
    for m in 0..=rows {
        Case::new(m, 7, 45).check();
    }
    for n in 0..=cols {
        Case::new(5, 9, n).check();
        Case::new(1, 9, n).check();
    }
}

#[test]
fn every_depth() {
    for k in crate::test::lengths().step_by(3) {
        Case::new(3, k, 17).check();
    }
}

#[test]
fn blocks_of_rows_and_depth() {
    if sized(true, false, false) {
        Case::new(107, 300, 200).check();
        Case { accumulate: true, residual: true, ..Case::new(100, 513, 33) }.check();
        Case { scratch: false, ..Case::new(98, 260, 210) }.check();
        Case::new(1, 700, 1100).check();
        // Weights that are asked for ahead: by lone tiles of a panel, and by tiles that share it.
        Case::new(9, 300, 235).check();
        Case::new(40, 300, 235).check();
        // Rows that share a set of the first cache.
        Case::new(5, 1024, 17).check();
        Case::new(2, 300, 530).check();
    } else {
        Case::new(13, sized(64, 64, 20), sized(64, 64, 20)).check();
        Case { accumulate: true, residual: true, ..Case::new(9, 300, 13) }.check();
    }
}

#[test]
fn strides_and_epilogues() {
    let activations = [
        Activation::None,
        Activation::Relu,
        Activation::Clip { min: -0.25, max: 0.5 },
        Activation::Map(Unary::Gelu),
        Activation::Map(Unary::LeakyRelu { alpha: 0.1 }),
    ];
    let (m, k, n) = sized((15, 11, 37), (15, 11, 37), (5, 3, 4));
    for flags in (0..64).step_by(sized(1, 1, 9)) {
        let flag = |bit: u32| flags >> bit & 1 == 1;
        Case {
            a_transposed: flag(0),
            b_transposed: flag(1),
            bias: flag(2),
            residual: flag(3),
            accumulate: flag(4),
            scratch: flag(5),
            activation: activations[flags % activations.len()],
            ..Case::new(m, k, n)
        }
        .check();
    }
}

#[test]
fn relu_and_clip_let_nan_pass() {
    for kernels in kernels() {
        for activation in [Activation::Relu, Activation::Clip { min: 0.0, max: 1.0 }] {
            let gemm = kernels.gemm(1, 1);
            let mut packed = vec![0.0; gemm.packed_len()];
            gemm.pack(Matrix::dense(&[f32::NAN], 1), &mut packed);
            let mut out = [0.0];
            let target = RowsMut { data: &mut out, stride: 1 };
            let epilogue = Epilogue { activation, ..Epilogue::default() };
            gemm.run(1, Matrix::dense(&[1.0], 1), Weights::F32(&packed), target, &epilogue, &mut []);
            assert!(out[0].is_nan(), "{activation:?} {}", kernels.isa());
        }
    }
}

#[test]
fn a_row_is_the_same_alone_in_a_batch_and_on_threads() {
    let (m, k, n) = sized((61, 130, 75), (17, 20, 19), (9, 5, 4));
    let (a, b) = (noise(m * k, 1), noise(k * n, 2));
    for kernels in kernels() {
        let gemm = kernels.gemm(k, n);
        let mut packed = vec![0.0; gemm.packed_len()];
        gemm.pack(Matrix::dense(&b, n), &mut packed);
        let run = |rows: std::ops::Range<usize>, out: &mut [f32]| {
            let mut scratch = vec![0.0; gemm.scratch_len(rows.len(), None)];
            let a = Matrix::dense(&a[rows.start * k..rows.end * k], k);
            let out = RowsMut { data: out, stride: n };
            gemm.run(rows.len(), a, Weights::F32(&packed), out, &Epilogue::default(), &mut scratch);
        };
        let mut whole = vec![0.0; m * n];
        run(0..m, &mut whole);
        for r in 0..m {
            let mut one = vec![0.0; n];
            run(r..r + 1, &mut one);
            same(&one, &whole[r * n..(r + 1) * n], &format!("row {r} {}", kernels.isa()));
        }
        for threads in 1..=8usize {
            let mut out = vec![0.0; m * n];
            let share = m.div_ceil(threads);
            std::thread::scope(|scope| {
                for (i, part) in out.chunks_mut(share * n).enumerate() {
                    let run = &run;
                    scope.spawn(move || run(i * share..i * share + part.len() / n, part));
                }
            });
            same(&out, &whole, &format!("{threads} threads {}", kernels.isa()));
        }
    }
}

#[test]
#[should_panic(expected = "the packed weights' length")]
fn short_weights_are_refused() {
    let gemm = Kernels::best().gemm(4, 4);
    let mut out = [0.0; 16];
    let target = RowsMut { data: &mut out, stride: 4 };
    gemm.run(4, Matrix::dense(&[0.0; 16], 4), Weights::F32(&[0.0; 3]), target, &Epilogue::default(), &mut []);
}

#[test]
#[should_panic(expected = "the output reaches beyond its slice")]
fn short_outputs_are_refused() {
    let gemm = Kernels::best().gemm(4, 4);
    let mut out = [0.0; 15];
    let target = RowsMut { data: &mut out, stride: 4 };
    let packed = vec![0.0; gemm.packed_len()];
    gemm.run(4, Matrix::dense(&[0.0; 16], 4), Weights::F32(&packed), target, &Epilogue::default(), &mut []);
}

#[test]
#[should_panic(expected = "a matrix reaches beyond its slice")]
fn short_inputs_are_refused() {
    let gemm = Kernels::best().gemm(4, 4);
    let mut out = [0.0; 16];
    let target = RowsMut { data: &mut out, stride: 4 };
    let packed = vec![0.0; gemm.packed_len()];
    gemm.run(4, Matrix::dense(&[0.0; 15], 4), Weights::F32(&packed), target, &Epilogue::default(), &mut []);
}

#[test]
fn packed_weights_can_be_had_back() {
    for kernels in kernels() {
        for (k, n) in [(0, 3), (1, 1), (3, 16), (5, 17), (2, 33), (7, 48), (4, 100)] {
            let (gemm, b) = (kernels.gemm(k, n), noise(k * n, 6));
            let mut packed = vec![0.0; gemm.packed_len()];
            gemm.pack(Matrix::dense(&b, n), &mut packed);
            let mut found = vec![f32::NAN; k * n];
            gemm.unpack(&packed, |r, c, value| found[r * n + c] = value);
            assert_eq!(found, b, "{k} x {n}");
        }
    }
}

#[test]
fn a_lone_row_may_say_any_stride() {
    for kernels in kernels() {
        let gemm = kernels.gemm(3, 2);
        let mut packed = vec![0.0; gemm.packed_len()];
        gemm.pack(Matrix::dense(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 2), &mut packed);
        let mut out = [0.0; 2];
        let a = Matrix { data: &[1.0, 10.0, 100.0], row: usize::MAX / 8, col: 1 };
        let target = RowsMut { data: &mut out, stride: usize::MAX / 8 };
        gemm.run(1, a, Weights::F32(&packed), target, &Epilogue::default(), &mut []);
        assert_eq!(out, [531.0, 642.0], "{}", kernels.isa());
    }
}
