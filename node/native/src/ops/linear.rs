//! `MatMul` and `Gemm`. Every output is one chain of fused multiply-adds, k ascending, from zero; bias after.

use super::fact::{Facts, Out, broadcast, checked_len};
use super::kernel::Lowered;
use super::strided::broadcast_strides;
use crate::error::OpError;
use crate::tensor::{DType, Elem};

/// A product of stacks of matrices.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MatShape {
    /// Rows of A.
    pub m: usize,
    /// Columns of A, rows of B.
    pub k: usize,
    /// Columns of B.
    pub n: usize,
    /// The output's dimensions.
    pub out: Vec<usize>,
    /// Dimensions of the stack.
    pub stack: Vec<usize>,
    /// Strides of A and B over the stack, in elements.
    pub steps: [Vec<isize>; 2],
}

/// The shape of `a · b` as numpy's matmul has it.
///
/// # Errors
/// [`OpError::Shape`] where they do not fit.
pub fn matmul_shape(a: &[usize], b: &[usize]) -> Result<MatShape, OpError> {
    let refuse = || OpError::Shape(format!("product of {a:?} and {b:?}"));
    let (row, column) = (a.len() == 1, b.len() == 1);
    let (stack_a, m, k) = match a {
        [] => return Err(refuse()),
        [k] => (&[][..], 1, *k),
        [stack @ .., m, k] => (stack, *m, *k),
    };
    let (stack_b, k_b, n) = match b {
        [] => return Err(refuse()),
        [k] => (&[][..], *k, 1),
        [stack @ .., k, n] => (stack, *k, *n),
    };
    if k != k_b {
        return Err(refuse());
    }
    let stack = broadcast(stack_a, stack_b).map_err(|_| refuse())?;
    let scaled = |shape: &[usize], by: usize| {
        broadcast_strides(shape, &stack).iter().map(|s| s * by as isize).collect()
    };
    let steps = [scaled(stack_a, m * k), scaled(stack_b, k * n)];
    let mut out = stack.clone();
    if !row {
        out.push(m);
    }
    if !column {
        out.push(n);
    }
    Ok(MatShape { m, k, n, out, stack, steps })
}

impl MatShape {
    /// Calls `each` with the number of each pair of matrices and the offsets of A and B.
    pub fn batches(&self, mut each: impl FnMut(usize, usize, usize)) {
        let count: usize = self.stack.iter().product();
        for number in 0..count {
            let (mut rest, mut at) = (number, [0_isize; 2]);
            for d in (0..self.stack.len()).rev() {
                let index = (rest % self.stack[d]) as isize;
                rest /= self.stack[d];
                at[0] += index * self.steps[0][d];
                at[1] += index * self.steps[1][d];
            }
            each(number, at[0] as usize, at[1] as usize);
        }
    }
}

/// `MatMul`.
pub fn infer_matmul(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let a = ins.need(0)?;
    let b = ins.typed(1, &[a.dtype])?;
    let shape = matmul_shape(a.shape, b.shape)?.out;
    checked_len(a.dtype, &shape)?;
    Ok(vec![Out::new(a.dtype, shape)])
}

/// The plain product of any type.
fn plain<T: Elem>(shape: MatShape, zero: T, fma: fn(T, T, T) -> T) -> Lowered {
    Lowered::new("matmul", move |io| {
        let (a, b, out) = (io.input::<T>(0), io.input::<T>(1), io.take::<T>(0));
        let (m, n, k) = (shape.m, shape.n, shape.k);
        shape.batches(|number, a_at, b_at| {
            let out = &mut out[number * m * n..(number + 1) * m * n];
            out.fill(zero);
            for i in 0..m {
                let row = &mut out[i * n..(i + 1) * n];
                for p in 0..k {
                    let x = a[a_at + i * k + p];
                    let b = &b[b_at + p * n..b_at + (p + 1) * n];
                    row.iter_mut().zip(b).for_each(|(out, y)| *out = fma(x, *y, *out));
                }
            }
        });
        Ok(())
    })
}

/// The kernel of `MatMul`.
pub fn lower_matmul(ins: Facts<'_>) -> Result<Lowered, OpError> {
    let (a, b) = (ins.need(0)?, ins.need(1)?);
    let shape = matmul_shape(a.shape, b.shape)?;
    Ok(match a.dtype {
        DType::F32 => plain::<f32>(shape, 0.0, |x, y, sum| x.mul_add(y, sum)),
        DType::F64 => plain::<f64>(shape, 0.0, |x, y, sum| x.mul_add(y, sum)),
        DType::I32 => plain::<i32>(shape, 0, |x, y, sum| sum.wrapping_add(x.wrapping_mul(y))),
        DType::I64 => plain::<i64>(shape, 0, |x, y, sum| sum.wrapping_add(x.wrapping_mul(y))),
        DType::U32 => plain::<u32>(shape, 0, |x, y, sum| sum.wrapping_add(x.wrapping_mul(y))),
        DType::U64 => plain::<u64>(shape, 0, |x, y, sum| sum.wrapping_add(x.wrapping_mul(y))),
        other => return Err(OpError::DType { input: 0, dtype: other }),
    })
}

/// Attributes of `Gemm`: `alpha · A · B + beta · C`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Gemm {
    /// Factor of the product.
    pub alpha: f32,
    /// Factor of C.
    pub beta: f32,
    /// Whether A is transposed.
    pub trans_a: bool,
    /// Whether B is transposed.
    pub trans_b: bool,
}

/// m, k, n of a `Gemm`.
pub fn gemm_shape(ins: Facts<'_>, gemm: Gemm) -> Result<(usize, usize, usize), OpError> {
    let (a, b) = (ins.need(0)?, ins.need(1)?);
    let (&[a0, a1], &[b0, b1]) = (a.shape, b.shape) else {
        return Err(OpError::Shape(format!("Gemm of {:?} and {:?}", a.shape, b.shape)));
    };
    let (m, k) = if gemm.trans_a { (a1, a0) } else { (a0, a1) };
    let (k_b, n) = if gemm.trans_b { (b1, b0) } else { (b0, b1) };
    if k == k_b {
        Ok((m, k, n))
    } else {
        Err(OpError::Shape(format!("Gemm of {:?} and {:?}", a.shape, b.shape)))
    }
}

/// `Gemm`.
pub fn infer_gemm(ins: Facts<'_>, gemm: Gemm) -> Result<Vec<Out>, OpError> {
    let a = ins.typed(0, &[DType::F32, DType::F64])?;
    ins.typed(1, &[a.dtype])?;
    let (m, _, n) = gemm_shape(ins, gemm)?;
    if let Some(c) = ins.get(2) {
        ins.typed(2, &[a.dtype])?;
        if broadcast(c.shape, &[m, n])? != [m, n] {
            return Err(OpError::Shape(format!("C of Gemm has shape {:?}, not [{m}, {n}]", c.shape)));
        }
    }
    checked_len(a.dtype, &[m, n])?;
    Ok(vec![Out::new(a.dtype, [m, n])])
}

/// The kernel of `Gemm`.
pub fn lower_gemm(ins: Facts<'_>, gemm: Gemm) -> Result<Lowered, OpError> {
    let (m, k, n) = gemm_shape(ins, gemm)?;
    let c_steps = ins.get(2).map(|c| broadcast_strides(c.shape, &[m, n])).filter(|_| gemm.beta != 0.0);
    macro_rules! with {
        ($t:ty) => {
            Ok(Lowered::new("gemm", move |io| {
                let (a, b) = (io.input::<$t>(0), io.input::<$t>(1));
                let c = if c_steps.is_some() { io.input::<$t>(2) } else { &[] };
                let out = io.take::<$t>(0);
                let (alpha, beta) = (<$t>::from(gemm.alpha), <$t>::from(gemm.beta));
                for i in 0..m {
                    for j in 0..n {
                        let at = |p: usize| {
                            let x = if gemm.trans_a { a[p * m + i] } else { a[i * k + p] };
                            let y = if gemm.trans_b { b[j * k + p] } else { b[p * n + j] };
                            (x, y)
                        };
                        let sum = (0..k).map(at).fold(0.0, |sum: $t, (x, y)| x.mul_add(y, sum));
                        let sum = if alpha == 1.0 { sum } else { alpha * sum };
                        out[i * n + j] = match &c_steps {
                            Some(steps) => {
                                let c = c[(i as isize * steps[0] + j as isize * steps[1]) as usize];
                                if beta == 1.0 { sum + c } else { sum + beta * c }
                            }
                            None => sum,
                        };
                    }
                }
                Ok(())
            }))
        };
    }
    if ins.need(0)?.dtype == DType::F32 { with!(f32) } else { with!(f64) }
}
