//! Products in f32 on the kernels' GEMM, with bias, residual and activation in one pass over the output.

use roost_kernels::{Activation, Epilogue, Gemm, Matrix, Rows, RowsMut, Weights};

use super::Target;
use super::fact::{Facts, Out, checked_len};
use super::kernel::Lowered;
use super::linear::{MatShape, matmul_shape};
use crate::error::OpError;
use crate::plan::floats::Floats;
use crate::plan::pack::Layout;
use crate::tensor::DType;

/// `activation(A · B + bias + residual)`. Inputs: A `[.., m, k]`, B `[.., k, n]`, bias `[n]`, residual like
/// the output.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Linear {
    /// Whether A `[k, m]` is read transposed; A is a matrix then.
    pub trans_a: bool,
    /// Whether the last two dimensions of B `[.., n, k]` are read transposed.
    pub trans_b: bool,
    /// What is done last.
    pub activation: Activation,
}

impl Linear {
    /// The product alone.
    pub const PLAIN: Self = Self { trans_a: false, trans_b: false, activation: Activation::None };

    /// The shape of the product.
    pub fn shape(&self, a: &[usize], b: &[usize]) -> Result<MatShape, OpError> {
        let turned = |shape: &[usize], turn: bool| {
            let mut shape = shape.to_vec();
            let rank = shape.len();
            if turn && rank >= 2 {
                shape.swap(rank - 1, rank - 2);
            }
            shape
        };
        matmul_shape(&turned(a, self.trans_a), &turned(b, self.trans_b))
    }
}

/// The output of a product.
pub fn infer(ins: Facts<'_>, linear: Linear) -> Result<Vec<Out>, OpError> {
    let (a, b) = (ins.typed(0, &[DType::F32])?, ins.typed(1, &[DType::F32])?);
    let shape = linear.shape(a.shape, b.shape)?.out;
    checked_len(DType::F32, &shape)?;
    Ok(vec![Out::new(DType::F32, shape)])
}

/// The kernel of a product.
pub fn lower(ins: Facts<'_>, linear: Linear, target: Target<'_>) -> Result<Lowered, OpError> {
    let (a, b) = (ins.need(0)?, ins.need(1)?);
    let mut shape = linear.shape(a.shape, b.shape)?;
    let one_b = shape.steps[1].iter().all(|step| *step == 0);
    if one_b && !linear.trans_a {
        // One B for all: the stack is more rows.
        shape.m *= shape.stack.iter().product::<usize>();
        shape.stack.clear();
    }
    let (m, k, n) = (shape.m, shape.k, shape.n);
    let gemm = target.kernels.gemm(k, n);
    let trans_b = linear.trans_b;
    let weights = match b.value.filter(|_| b.pinned && one_b) {
        Some(tensor) => {
            let numbers = vec![k, n, usize::from(trans_b), target.kernels.layout().panel];
            let pack = |out: &mut [f32]| gemm.pack(read_b(&tensor.values::<f32>(), trans_b, k, n), out);
            let unpack = move |packed: &[f32], b: &mut [f32]| {
                let (row, col) = if trans_b { (1, k) } else { (n, 1) };
                gemm.unpack(packed, |r, c, value| b[r * row + c * col] = value);
            };
            let layout = Layout { kernel: "gemm", numbers };
            Some(Floats::packed(target, tensor, layout, gemm.packed_len(), pack, unpack)?)
        }
        // Packed in each run, into scratch.
        None => None,
    };
    let live = if weights.is_none() { gemm.packed_len() } else { 0 };
    let half = weights.as_ref().and_then(Floats::half);
    let scratch = (live + gemm.scratch_len(m, half)) * size_of::<f32>();
    let product = Product { gemm, shape, linear, live };
    let [biased, residual] = [2, 3].map(|i| ins.get(i).is_some());
    let run = move |io: &mut crate::exec::io::Io<'_>| {
        let a = io.input::<f32>(0);
        let bias = biased.then(|| io.input::<f32>(2));
        let residual = residual.then(|| io.input::<f32>(3));
        let (out, scratch) = (io.take::<f32>(0), io.take::<f32>(1));
        match &weights {
            Some(weights) => product.run(0, 0, a, weights.weights(), bias, residual, out, scratch),
            None => {
                let b = io.input::<f32>(1);
                let (packed, scratch) = scratch.split_at_mut(product.live);
                let mut last = None;
                product.shape.batches(|number, a_at, b_at| {
                    if last.replace(b_at) != Some(b_at) {
                        product.gemm.pack(read_b(&b[b_at..b_at + k * n], trans_b, k, n), packed);
                    }
                    product.run(number, a_at, a, Weights::F32(packed), bias, residual, out, scratch);
                });
            }
        }
        Ok(())
    };
    let lowered = Lowered::new("gemm", run).on_tile(target, Some(gemm.tile(m, half))).of_weights(half);
    let lowered = lowered.with_scratch(scratch);
    Ok(if live == 0 && k * n > 0 { lowered.without_reading(&[1]) } else { lowered })
}

/// B `[k, n]`, or its transpose, as a matrix.
fn read_b(data: &[f32], trans: bool, k: usize, n: usize) -> Matrix<'_> {
    if trans { Matrix::transposed(data, k) } else { Matrix::dense(data, n) }
}

struct Product {
    gemm: Gemm,
    shape: MatShape,
    linear: Linear,
    live: usize,
}

impl Product {
    /// One matrix of the stack.
    #[allow(clippy::too_many_arguments, reason = "the operands of a product")]
    fn run(
        &self,
        number: usize,
        a_at: usize,
        a: &[f32],
        packed: Weights<'_>,
        bias: Option<&[f32]>,
        residual: Option<&[f32]>,
        out: &mut [f32],
        scratch: &mut [f32],
    ) {
        let (m, k, n) = (self.shape.m, self.shape.k, self.shape.n);
        let a = &a[a_at..a_at + m * k];
        let a = if self.linear.trans_a { Matrix::transposed(a, m) } else { Matrix::dense(a, k) };
        let range = number * m * n..(number + 1) * m * n;
        let epilogue = Epilogue {
            bias,
            residual: residual.map(|data| Rows { data: &data[range.clone()], stride: n }),
            activation: self.linear.activation,
            accumulate: false,
        };
        self.gemm.run(m, a, packed, RowsMut { data: &mut out[range], stride: n }, &epilogue, scratch);
    }
}
