//! The integer products of opset 10: `MatMulInteger`, `ConvInteger`, `QLinearMatMul`, `QLinearConv`.
//!
//! Sums are `i32` and wrap, so their order is free: with constant weights they come from the kernels
//! ([`matrix`], [`image`]), else from the plain loops here, to the same bits. The requantised result is
//! `round(sum * scale) + zero point`, where scale is the `f32` product of the input scales over the output's.

mod image;
mod matrix;

use roost_kernels::{BytesOut, Output, SumsOut};

use super::Target;
use super::conv::{Conv, Window, geometry};
use super::fact::{Fact, Facts, Out, checked_len};
use super::kernel::Lowered;
use super::linear::{MatShape, matmul_shape};
use super::qimage::sign;
use super::quant::Quantised;
use crate::error::OpError;
use crate::exec::io::Io;
use crate::tensor::DType;

/// The operands of integer products.
const BYTES: [DType; 2] = [DType::U8, DType::I8];

/// Bytes of either sign as `i32`, by position.
#[derive(Clone, Copy)]
enum Wide<'a> {
    Unsigned(&'a [u8]),
    Signed(&'a [i8]),
}

impl<'a> Wide<'a> {
    fn new(io: &Io<'a>, index: usize, dtype: Option<DType>) -> Self {
        match dtype {
            None => Self::Unsigned(&[]),
            Some(DType::I8) => Self::Signed(io.input(index)),
            Some(_) => Self::Unsigned(io.input(index)),
        }
    }

    fn at(self, i: usize) -> i32 {
        match self {
            Self::Unsigned(values) => i32::from(values[i]),
            Self::Signed(values) => i32::from(values[i]),
        }
    }

    fn len(self) -> usize {
        match self {
            Self::Unsigned(values) => values.len(),
            Self::Signed(values) => values.len(),
        }
    }

    /// Entry `i` of a list that may have one entry for all, or be absent.
    fn entry(self, i: usize) -> i32 {
        match self.len() {
            0 => 0,
            1 => self.at(0),
            _ => self.at(i),
        }
    }
}

/// The types of an operator's inputs, absent ones too.
fn dtypes<const N: usize>(ins: Facts<'_>) -> [Option<DType>; N] {
    std::array::from_fn(|i| ins.get(i).map(|fact| fact.dtype))
}

/// Weights that kernels read less what makes them signed, and their zero points with them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shifted {
    /// By nothing.
    Signed,
    /// By 128.
    Unsigned,
}

impl Shifted {
    fn of(dtype: DType) -> Self {
        if dtype == DType::I8 { Self::Signed } else { Self::Unsigned }
    }

    /// What is taken from each number.
    fn by(self) -> i32 {
        if self == Self::Unsigned { 128 } else { 0 }
    }

    /// A byte as the number that kernels read; the same function leads back.
    fn flip(self, byte: u8) -> u8 {
        if self == Self::Unsigned { byte ^ 0x80 } else { byte }
    }

    /// Whether zero points are, or may be, other than 0 after the shift.
    fn has_zeros(self, zeros: Option<Fact<'_>>) -> bool {
        let Some(zeros) = zeros else { return self.by() != 0 };
        let values = zeros.value.and_then(|value| value.ints());
        values.is_none_or(|values| values.iter().any(|zero| *zero != i64::from(self.by())))
    }
}

/// A zero point has the type of its tensor, and one value or one per row or column.
fn zero_fits(ins: Facts<'_>, index: usize, dtype: DType, len: usize) -> Result<(), OpError> {
    match ins.get(index) {
        Some(zero) if zero.dtype != dtype => Err(OpError::DType { input: index, dtype: zero.dtype }),
        Some(zero) if zero.len() != 1 && zero.shape != [len] => {
            Err(OpError::Shape(format!("zero points {:?} for {len} rows or columns", zero.shape)))
        }
        _ => Ok(()),
    }
}

/// Whether an input holds scales: one, or one per row, column or channel.
fn scale_fits(ins: Facts<'_>, index: usize, channels: usize) -> Result<(), OpError> {
    let scale = ins.typed(index, &[DType::F32])?;
    if scale.len() == 1 || scale.shape == [channels] {
        Ok(())
    } else {
        Err(OpError::Shape(format!("scales {:?} for {channels} channels", scale.shape)))
    }
}

fn entry(list: &[f32], i: usize) -> f32 {
    list[if list.len() == 1 { 0 } else { i }]
}

/// A requantised sum as a byte of either sign.
fn requantised(signed: bool, value: f32, zero: i32) -> u8 {
    if signed { i8::saturate(value, zero) as u8 } else { u8::saturate(value, zero) }
}

/// `MatMulInteger`: A, B, zero points.
pub fn infer_matmul_integer(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let (a, b) = (ins.typed(0, &BYTES)?, ins.typed(1, &BYTES)?);
    let shape = matmul_shape(a.shape, b.shape)?.out;
    checked_len(DType::I32, &shape)?;
    zero_fits(ins, 2, a.dtype, a.shape.len().checked_sub(2).map_or(1, |i| a.shape[i]))?;
    zero_fits(ins, 3, b.dtype, b.shape.last().copied().unwrap_or(1))?;
    Ok(vec![Out::new(DType::I32, shape)])
}

/// The plain integer product; `put` gets the position, the row, the column, and the sum.
fn product(
    shape: &MatShape,
    [a, b]: [Wide<'_>; 2],
    [a_zero, b_zero]: [Wide<'_>; 2],
    mut put: impl FnMut(usize, usize, usize, i32),
) {
    let (m, n, k) = (shape.m, shape.n, shape.k);
    shape.batches(|batch, a_at, b_at| {
        for i in 0..m {
            for j in 0..n {
                let (a_zero, b_zero) = (a_zero.entry(i), b_zero.entry(j));
                let sum = (0..k).fold(0_i32, |sum, p| {
                    let x = a.at(a_at + i * k + p) - a_zero;
                    let y = b.at(b_at + p * n + j) - b_zero;
                    sum.wrapping_add(x.wrapping_mul(y))
                });
                put((batch * m + i) * n + j, i, j, sum);
            }
        }
    });
}

/// The kernel of `MatMulInteger`.
pub fn lower_matmul_integer(ins: Facts<'_>, target: Target<'_>) -> Result<Lowered, OpError> {
    let (a, b) = (ins.need(0)?, ins.need(1)?);
    let shape = matmul_shape(a.shape, b.shape)?;
    let dtypes: [_; 4] = dtypes(ins);
    let Some(packed) = matrix::Packed::new(a, b, ins.get(3), &shape, target)? else {
        return Ok(Lowered::new("integer matmul", move |io| {
            let [a, b, a_zero, b_zero] = std::array::from_fn(|i| Wide::new(io, i, dtypes[i]));
            let out = io.take::<i32>(0);
            product(&shape, [a, b], [a_zero, b_zero], |at, _, _, sum| out[at] = sum);
            Ok(())
        }));
    };
    let (n, tile) = (shape.n, packed.tile());
    let scratch = packed.scratch_ints() * size_of::<i32>();
    let run = move |io: &mut Io<'_>| {
        let [a_zero, b_zero] = [2, 3].map(|i| Wide::new(io, i, dtypes[i]));
        let a = io.bytes(0);
        let (out, scratch) = (io.take::<i32>(0), io.take::<i32>(1));
        for rows in packed.blocks(a_zero.len() > 1) {
            let data = &mut out[rows.start * n..rows.end * n];
            packed.run(rows, a, [a_zero, b_zero], scratch, Output::Sums(SumsOut { data, stride: n }));
        }
        Ok(())
    };
    let lowered = Lowered::new("qgemm", run).on_tile(target, tile);
    Ok(lowered.with_scratch(scratch).without_reading(&[1]))
}

/// `QLinearMatMul`: a, scale, zero, b, scale, zero, y scale, zero.
pub fn infer_qlinear_matmul(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let (a, b, zero) = (ins.typed(0, &BYTES)?, ins.typed(3, &BYTES)?, ins.typed(7, &BYTES)?);
    let shape = matmul_shape(a.shape, b.shape)?;
    scale_fits(ins, 1, shape.m)?;
    scale_fits(ins, 4, shape.n)?;
    scale_fits(ins, 6, 1)?;
    zero_fits(ins, 2, a.dtype, shape.m)?;
    zero_fits(ins, 5, b.dtype, shape.n)?;
    checked_len(zero.dtype, &shape.out)?;
    Ok(vec![Out::new(zero.dtype, shape.out)])
}

/// The kernel of `QLinearMatMul`.
pub fn lower_qlinear_matmul(ins: Facts<'_>, target: Target<'_>) -> Result<Lowered, OpError> {
    let (a, b) = (ins.need(0)?, ins.need(3)?);
    let shape = matmul_shape(a.shape, b.shape)?;
    let dtypes: [_; 8] = dtypes(ins);
    let signed = dtypes[7] == Some(DType::I8);
    let Some(packed) = matrix::Packed::new(a, b, ins.get(5), &shape, target)? else {
        return Ok(Lowered::new("quantised matmul", move |io| {
            let [a, a_zero, b, b_zero, zero] = [0, 2, 3, 5, 7].map(|i| Wide::new(io, i, dtypes[i]));
            let [of_a, of_b, of_y] = [1, 4, 6].map(|i| io.input::<f32>(i));
            let out = io.take_bytes(0);
            product(&shape, [a, b], [a_zero, b_zero], |at, i, j, sum| {
                let scale = entry(of_a, i) * entry(of_b, j) / of_y[0];
                out[at] = requantised(signed, sum as f32 * scale, zero.entry(0));
            });
            Ok(())
        }));
    };
    let (m, n, tile, own) = (shape.m, shape.n, packed.tile(), packed.scratch_ints());
    let (low, high) = sign(ins.need(7)?.dtype).range();
    let run = move |io: &mut Io<'_>| {
        let [a_zero, b_zero, zero] = [2, 5, 7].map(|i| Wide::new(io, i, dtypes[i]));
        let [of_a, of_b, of_y] = [1, 4, 6].map(|i| io.input::<f32>(i));
        let (a, zero) = (io.bytes(0), zero.entry(0));
        let (out, scratch) = (io.take_bytes(0), io.take::<i32>(1));
        let (scratch, rest) = scratch.split_at_mut(own);
        let (scale, sums) = rest.split_at_mut(n);
        let scale: &mut [f32] = bytemuck::cast_slice_mut(scale);
        let apart = a_zero.len() > 1 || of_a.len() > 1;
        for rows in packed.blocks(apart) {
            let of_a = entry(of_a, rows.start % m);
            scale.iter_mut().enumerate().for_each(|(j, scale)| *scale = of_a * entry(of_b, j) / of_y[0]);
            let zeros = [a_zero, b_zero];
            if scale.iter().all(|scale| scale.is_finite()) {
                let data = &mut out[rows.start * n..rows.end * n];
                let to = BytesOut { data, stride: n, scale, zero, low, high };
                packed.run(rows, a, zeros, scratch, Output::Bytes(to));
                continue;
            }
            // Such scales make numbers of some sums and none of others; what is no number has an answer here,
            // which the kernels give otherwise.
            for row in rows {
                let to = SumsOut { data: sums, stride: n };
                packed.run(row..row + 1, a, zeros, scratch, Output::Sums(to));
                for ((out, sum), scale) in out[row * n..].iter_mut().zip(&*sums).zip(&*scale) {
                    *out = requantised(signed, *sum as f32 * scale, zero);
                }
            }
        }
        Ok(())
    };
    let lowered = Lowered::new("qgemm", run).on_tile(target, tile);
    Ok(lowered.with_scratch((own + 2 * n) * size_of::<i32>()).without_reading(&[3]))
}

/// `ConvInteger`: X, W, zero points.
pub fn infer_conv_integer(ins: Facts<'_>, window: &Window, group: usize) -> Result<Vec<Out>, OpError> {
    let (x, w) = (ins.typed(0, &BYTES)?, ins.typed(1, &BYTES)?);
    let shape = geometry(x.shape, w.shape, window, group)?.shape();
    checked_len(DType::I32, &shape)?;
    zero_fits(ins, 2, x.dtype, 1)?;
    zero_fits(ins, 3, w.dtype, w.shape[0])?;
    Ok(vec![Out::new(DType::I32, shape)])
}

/// The plain integer convolution; `put` gets the position, the filter, and the sum. Taps in the padding see
/// the zero point, and add nothing.
fn convolve(
    conv: &Conv,
    scratch: &mut [u8],
    [x, w]: [Wide<'_>; 2],
    [x_zero, w_zero]: [Wide<'_>; 2],
    put: impl FnMut(usize, usize, i32),
) {
    let x_zero = x_zero.entry(0);
    let mac = |sum: i32, i: usize, j: usize, m: usize| {
        sum.wrapping_add((x.at(i) - x_zero).wrapping_mul(w.at(j) - w_zero.entry(m)))
    };
    conv.run(scratch, 0_i32, mac, put);
}

/// The kernel of `ConvInteger`.
pub fn lower_conv_integer(
    ins: Facts<'_>,
    window: &Window,
    group: usize,
    target: Target<'_>,
) -> Result<Lowered, OpError> {
    let (x, w) = (ins.need(0)?, ins.need(1)?);
    let conv = geometry(x.shape, w.shape, window, group)?;
    let dtypes: [_; 4] = dtypes(ins);
    let Some(packed) = image::Packed::new(x, w, ins.get(3), &conv, target)? else {
        let scratch = conv.scratch_bytes();
        let lowered = Lowered::new("integer conv", move |io| {
            let [x, w, x_zero, w_zero] = std::array::from_fn(|i| Wide::new(io, i, dtypes[i]));
            let (out, scratch) = (io.take::<i32>(0), io.take_bytes(1));
            convolve(&conv, scratch, [x, w], [x_zero, w_zero], |at, _, sum| out[at] = sum);
            Ok(())
        });
        return Ok(lowered.with_scratch(scratch));
    };
    let (scratch, name, tile) = (packed.scratch_bytes(), packed.name(), packed.tile());
    let run = move |io: &mut Io<'_>| {
        let zeros = [2, 3].map(|i| Wide::new(io, i, dtypes[i]));
        let x = io.bytes(0);
        let (out, scratch) = (io.take::<i32>(0), io.take_bytes(1));
        packed.run(x, zeros, scratch).planes(out);
        Ok(())
    };
    let lowered = Lowered::new(name, run).on_tile(target, tile);
    Ok(lowered.with_scratch(scratch).without_reading(&[1]))
}

/// `QLinearConv`: x, scale, zero, w, scale, zero, y scale, zero, bias.
pub fn infer_qlinear_conv(ins: Facts<'_>, window: &Window, group: usize) -> Result<Vec<Out>, OpError> {
    let (x, w, zero) = (ins.typed(0, &BYTES)?, ins.typed(3, &BYTES)?, ins.typed(7, &BYTES)?);
    let shape = geometry(x.shape, w.shape, window, group)?.shape();
    scale_fits(ins, 1, 1)?;
    scale_fits(ins, 4, w.shape[0])?;
    scale_fits(ins, 6, 1)?;
    zero_fits(ins, 2, x.dtype, 1)?;
    zero_fits(ins, 5, w.dtype, w.shape[0])?;
    if ins.get(8).is_some() && ins.typed(8, &[DType::I32])?.shape != [w.shape[0]] {
        return Err(OpError::Shape("the bias has one value per output channel".into()));
    }
    checked_len(zero.dtype, &shape)?;
    Ok(vec![Out::new(zero.dtype, shape)])
}

/// The kernel of `QLinearConv` where the quantisation pass made no [`super::Op::QConv`] of it: scales or zero
/// points that come with the run, weights around another number than 0, other ranks.
pub fn lower_qlinear_conv(
    ins: Facts<'_>,
    window: &Window,
    group: usize,
    target: Target<'_>,
) -> Result<Lowered, OpError> {
    let (x, w) = (ins.need(0)?, ins.need(3)?);
    let conv = geometry(x.shape, w.shape, window, group)?;
    let dtypes: [_; 8] = dtypes(ins);
    let biased = ins.get(8).is_some();
    let Some(packed) = image::Packed::new(x, w, ins.get(5), &conv, target)? else {
        let scratch = conv.scratch_bytes();
        let lowered = Lowered::new("quantised conv", move |io| {
            let [x, x_zero, w, w_zero] = [0, 2, 3, 5].map(|i| Wide::new(io, i, dtypes[i]));
            let to = Requantise::new(io, biased, dtypes[7]);
            let (out, scratch) = (io.take_bytes(0), io.take_bytes(1));
            convolve(&conv, scratch, [x, w], [x_zero, w_zero], |at, m, sum| out[at] = to.byte(m, sum));
            Ok(())
        });
        return Ok(lowered.with_scratch(scratch));
    };
    let (scratch, name, tile) = (packed.scratch_bytes(), packed.name(), packed.tile());
    let run = move |io: &mut Io<'_>| {
        let zeros = [2, 5].map(|i| Wide::new(io, i, dtypes[i]));
        let to = Requantise::new(io, biased, dtypes[7]);
        let x = io.bytes(0);
        let (out, scratch) = (io.take_bytes(0), io.take_bytes(1));
        packed.run(x, zeros, scratch).each(|at, m, sum| out[at] = to.byte(m, sum));
        Ok(())
    };
    let lowered = Lowered::new(name, run).on_tile(target, tile);
    Ok(lowered.with_scratch(scratch).without_reading(&[3]))
}

/// What becomes of the sums of a `QLinearConv`.
struct Requantise<'a> {
    bias: &'a [i32],
    scale_x: f32,
    scales: &'a [f32],
    scale_y: f32,
    zero: i32,
    signed: bool,
}

impl<'a> Requantise<'a> {
    fn new(io: &Io<'a>, biased: bool, to: Option<DType>) -> Self {
        Self {
            bias: if biased { io.input(8) } else { &[] },
            scale_x: io.input::<f32>(1)[0],
            scales: io.input(4),
            scale_y: io.input::<f32>(6)[0],
            zero: Wide::new(io, 7, to).entry(0),
            signed: to == Some(DType::I8),
        }
    }

    /// The result of a filter's sum.
    fn byte(&self, m: usize, sum: i32) -> u8 {
        let sum = sum.wrapping_add(self.bias.get(m).copied().unwrap_or(0));
        let scale = self.scale_x * entry(self.scales, m) / self.scale_y;
        requantised(self.signed, sum as f32 * scale, self.zero)
    }
}
