//! Quantisation: to and from integers, and the integer products of opset 10.
//!
//! Rounding is half to even, and saturates. Sums of products are `i32` and wrap. The requantised result is
//! `round(sum * scale) + zero point`, where scale is the `f32` product of the input scales over the output's.

use super::Target;
use super::conv::{Conv, Window, geometry};
use super::fact::{Facts, Out, axis_of, checked_len};
use super::kernel::Lowered;
use super::linear::{MatShape, matmul_shape};
use super::qimage::{Step, sign};
use roost_kernels::Quantization;

use crate::error::OpError;
use crate::exec::io::Io;
use crate::tensor::{DType, Elem};

/// The integer types that values are quantised to.
const QUANTISED: [DType; 4] = [DType::U8, DType::I8, DType::U16, DType::I16];
/// The operands of integer products.
const BYTES: [DType; 2] = [DType::U8, DType::I8];

/// How scales are laid out over a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scales {
    /// Axis of per-axis and blocked scales.
    pub axis: i64,
    /// Elements of a block; zero where not blocked.
    pub block: usize,
}

/// From an element's position to that of its scale.
#[derive(Debug, Clone, Copy)]
struct ScaleAt {
    inner: usize,
    len: usize,
    block: usize,
    count: usize,
}

impl ScaleAt {
    fn new(x: &[usize], scale: &[usize], scales: Scales) -> Result<Self, OpError> {
        if scale.iter().product::<usize>() == 1 && scales.block == 0 {
            return Ok(Self { inner: 1, len: 1, block: 1, count: 1 });
        }
        let refuse = || OpError::Shape(format!("scales {scale:?} of {x:?}, {scales:?}"));
        let axis = axis_of(scales.axis, x.len())?;
        let inner = x[axis + 1..].iter().product();
        if scales.block == 0 {
            let fits = scale == [x[axis]];
            return if fits {
                Ok(Self { inner, len: x[axis], block: 1, count: x[axis] })
            } else {
                Err(refuse())
            };
        }
        let count = x[axis].div_ceil(scales.block);
        let fits =
            scale.len() == x.len() && (0..x.len()).all(|d| scale[d] == if d == axis { count } else { x[d] });
        if fits { Ok(Self { inner, len: x[axis], block: scales.block, count }) } else { Err(refuse()) }
    }

    fn of(&self, i: usize) -> usize {
        if self.count == 1 && self.inner == 1 && self.len == 1 {
            return 0;
        }
        let along = i / self.inner % self.len / self.block;
        if self.block == 1 {
            return along;
        }
        (i / self.inner / self.len * self.count + along) * self.inner + i % self.inner
    }
}

/// `QuantizeLinear`. Without a zero point the type is the attribute's, else `u8`.
pub fn infer_quantize(ins: Facts<'_>, scales: Scales, to: Option<DType>) -> Result<Vec<Out>, OpError> {
    let x = ins.typed(0, &[DType::F32, DType::I32])?;
    let scale = ins.typed(1, &[DType::F32])?;
    ScaleAt::new(x.shape, scale.shape, scales)?;
    let dtype = match ins.get(2) {
        Some(zero) if zero.shape != scale.shape && zero.len() != scale.len() => {
            return Err(OpError::Shape(format!("zero points {:?}, scales {:?}", zero.shape, scale.shape)));
        }
        Some(_) => ins.typed(2, &QUANTISED)?.dtype,
        None => to.unwrap_or(DType::U8),
    };
    if !QUANTISED.contains(&dtype) {
        return Err(OpError::Unsupported(format!("quantisation to {dtype}")));
    }
    Ok(vec![Out::new(dtype, x.shape)])
}

/// Rounds half to even, adds the zero point, and saturates.
pub trait Quantised: Elem {
    /// `round(x) + zero`, saturated; NaN becomes the zero point.
    fn saturate(x: f32, zero: i32) -> Self;
    /// The value as `i32`.
    fn wide(self) -> i32;
}

macro_rules! quantised {
    ($($t:ty),*) => { $(
        impl Quantised for $t {
            fn saturate(x: f32, zero: i32) -> Self {
                // The cast saturates and makes NaN zero.
                (x.round_ties_even() as i32).saturating_add(zero).clamp(<$t>::MIN as i32, <$t>::MAX as i32) as $t
            }
            fn wide(self) -> i32 {
                self as i32
            }
        }
    )* };
}
quantised!(u8, i8, u16, i16);

fn zero_at<T: Quantised>(zeros: &[T], i: usize) -> i32 {
    zeros.get(i).map_or(0, |zero| zero.wide())
}

/// The step of bytes, where it is one constant for all.
fn constant_step(ins: Facts<'_>, scales: Scales, dtype: DType) -> Option<Quantization> {
    let zero = match ins.get(2) {
        None => None,
        Some(zero) => Some(zero.value?),
    };
    let step =
        Step::new(ins.get(1)?.value?, zero, dtype).filter(|step| scales.block == 0 && step.dtype == dtype)?;
    Some(Quantization { scale: step.scale, zero: step.zero, sign: sign(dtype) })
}

/// The kernel of `QuantizeLinear`.
pub fn lower_quantize(ins: Facts<'_>, scales: Scales, out: &Out, target: Target) -> Result<Lowered, OpError> {
    if let Some(with) = constant_step(ins, scales, out.dtype).filter(|_| ins.typed(0, &[DType::F32]).is_ok())
    {
        let kernels = target.kernels;
        return Ok(Lowered::new("quantise", move |io| {
            kernels.quantize(io.input::<f32>(0), with, io.take_bytes(0));
            Ok(())
        }));
    }
    fn with<X: Elem, T: Quantised>(at: ScaleAt, zeros: bool, float: fn(X) -> f32) -> Lowered {
        Lowered::new("quantise", move |io| {
            let (x, scales) = (io.input::<X>(0), io.input::<f32>(1));
            let zeros = if zeros { io.input::<T>(2) } else { &[] };
            for (i, (out, x)) in io.take::<T>(0).iter_mut().zip(x).enumerate() {
                let scale = at.of(i);
                *out = T::saturate(float(*x) / scales[scale], zero_at(zeros, scale));
            }
            Ok(())
        })
    }
    let x = ins.need(0)?;
    let at = ScaleAt::new(x.shape, ins.need(1)?.shape, scales)?;
    let zeros = ins.get(2).is_some();
    macro_rules! to {
        ($x:ty, $f:expr) => {
            match out.dtype {
                DType::U8 => with::<$x, u8>(at, zeros, $f),
                DType::I8 => with::<$x, i8>(at, zeros, $f),
                DType::U16 => with::<$x, u16>(at, zeros, $f),
                _ => with::<$x, i16>(at, zeros, $f),
            }
        };
    }
    Ok(if x.dtype == DType::F32 { to!(f32, |x| x) } else { to!(i32, |x| x as f32) })
}

/// `DequantizeLinear`.
pub fn infer_dequantize(ins: Facts<'_>, scales: Scales) -> Result<Vec<Out>, OpError> {
    let x = ins.typed(0, &[DType::U8, DType::I8, DType::U16, DType::I16, DType::I32])?;
    let scale = ins.typed(1, &[DType::F32])?;
    ScaleAt::new(x.shape, scale.shape, scales)?;
    if let Some(zero) = ins.get(2) {
        ins.typed(2, &[x.dtype])?;
        if zero.len() != scale.len() {
            return Err(OpError::Shape(format!("zero points {:?}, scales {:?}", zero.shape, scale.shape)));
        }
    }
    Ok(vec![Out::new(DType::F32, x.shape)])
}

/// The kernel of `DequantizeLinear`.
pub fn lower_dequantize(ins: Facts<'_>, scales: Scales, target: Target) -> Result<Lowered, OpError> {
    let dtype = ins.need(0)?.dtype;
    if let Some(with) = constant_step(ins, scales, dtype) {
        let kernels = target.kernels;
        return Ok(Lowered::new("dequantise", move |io| {
            kernels.dequantize(io.bytes(0), with, io.take::<f32>(0));
            Ok(())
        }));
    }
    fn with<T: Elem>(at: ScaleAt, zeros: bool, wide: fn(T) -> i32) -> Lowered {
        Lowered::new("dequantise", move |io| {
            let (x, scales) = (io.input::<T>(0), io.input::<f32>(1));
            let zeros = if zeros { io.input::<T>(2) } else { &[] };
            for (i, (out, x)) in io.take::<f32>(0).iter_mut().zip(x).enumerate() {
                let scale = at.of(i);
                let zero = zeros.get(scale).map_or(0, |zero| wide(*zero));
                *out = wide(*x).wrapping_sub(zero) as f32 * scales[scale];
            }
            Ok(())
        })
    }
    let x = ins.need(0)?;
    let at = ScaleAt::new(x.shape, ins.need(1)?.shape, scales)?;
    let zeros = ins.get(2).is_some();
    Ok(match x.dtype {
        DType::U8 => with::<u8>(at, zeros, i32::from),
        DType::I8 => with::<i8>(at, zeros, i32::from),
        DType::U16 => with::<u16>(at, zeros, i32::from),
        DType::I16 => with::<i16>(at, zeros, i32::from),
        _ => with::<i32>(at, zeros, |x| x),
    })
}

/// `DynamicQuantizeLinear`: values, scale, zero point.
pub fn infer_dynamic(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let x = ins.typed(0, &[DType::F32])?;
    Ok(vec![Out::new(DType::U8, x.shape), Out::new(DType::F32, []), Out::new(DType::U8, [])])
}

/// The kernel of `DynamicQuantizeLinear`.
pub fn lower_dynamic() -> Lowered {
    Lowered::new("dynamic quantise", |io| {
        let x = io.input::<f32>(0);
        let low = x.iter().fold(0.0_f32, |low, x| if *x < low { *x } else { low });
        let high = x.iter().fold(0.0_f32, |high, x| if *x > high { *x } else { high });
        let scale = (high - low) / 255.0;
        let zero = if scale == 0.0 { 0 } else { u8::saturate(-low / scale, 0) };
        for (out, x) in io.take::<u8>(0).iter_mut().zip(x) {
            *out = if scale == 0.0 { zero } else { u8::saturate(x / scale, i32::from(zero)) };
        }
        io.take::<f32>(1).iter_mut().for_each(|out| *out = scale);
        io.take::<u8>(2).iter_mut().for_each(|out| *out = zero);
        Ok(())
    })
}

/// A byte tensor of either sign as `i32`, by position.
#[derive(Clone, Copy)]
enum Wide<'a> {
    Unsigned(&'a [u8]),
    Signed(&'a [i8]),
}

impl<'a> Wide<'a> {
    fn new(io: &Io<'a>, index: usize, dtype: DType) -> Self {
        match dtype {
            DType::I8 => Self::Signed(io.input(index)),
            _ => Self::Unsigned(io.input(index)),
        }
    }

    fn at(self, i: usize) -> i32 {
        match self {
            Self::Unsigned(values) => i32::from(values[i]),
            Self::Signed(values) => i32::from(values[i]),
        }
    }

    /// Entry `i` of a list that may have one entry for all, or be absent.
    fn entry(self, i: usize) -> i32 {
        let len = match self {
            Self::Unsigned(values) => values.len(),
            Self::Signed(values) => values.len(),
        };
        if len == 0 { 0 } else { self.at(if len == 1 { 0 } else { i }) }
    }
}

fn dtype_of(ins: Facts<'_>, index: usize) -> DType {
    ins.get(index).map_or(DType::U8, |fact| fact.dtype)
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

/// The plain integer product; `put` gets the position, the column, and the sum.
fn product(
    shape: &MatShape,
    a: Wide<'_>,
    b: Wide<'_>,
    a_zero: impl Fn(usize) -> i32,
    b_zero: impl Fn(usize) -> i32,
    mut put: impl FnMut(usize, usize, i32),
) {
    let (m, n, k) = (shape.m, shape.n, shape.k);
    shape.batches(|batch, a_at, b_at| {
        for i in 0..m {
            for j in 0..n {
                let sum = (0..k).fold(0_i32, |sum, p| {
                    let x = a.at(a_at + i * k + p) - a_zero(i);
                    let y = b.at(b_at + p * n + j) - b_zero(j);
                    sum.wrapping_add(x.wrapping_mul(y))
                });
                put((batch * m + i) * n + j, j, sum);
            }
        }
    });
}

/// The kernel of `MatMulInteger`.
pub fn lower_matmul_integer(ins: Facts<'_>) -> Result<Lowered, OpError> {
    let (a, b) = (ins.need(0)?, ins.need(1)?);
    let shape = matmul_shape(a.shape, b.shape)?;
    let dtypes = [0, 1, 2, 3].map(|i| dtype_of(ins, i));
    let present = [2, 3].map(|i| ins.get(i).is_some());
    Ok(Lowered::new("integer matmul", move |io| {
        let wide = |i: usize| Wide::new(io, i, dtypes[i]);
        let zero = |i: usize| if present[i - 2] { wide(i) } else { Wide::Unsigned(&[]) };
        let (a, b, az, bz) = (wide(0), wide(1), zero(2), zero(3));
        let out = io.take::<i32>(0);
        product(&shape, a, b, |i| az.entry(i), |j| bz.entry(j), |at, _, sum| out[at] = sum);
        Ok(())
    }))
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

/// The plain integer convolution. Taps in the padding see the zero point, and add nothing.
fn convolve(
    conv: &Conv,
    x: Wide<'_>,
    w: Wide<'_>,
    x_zero: i32,
    w_zero: impl Fn(usize) -> i32,
    put: impl FnMut(usize, usize, i32),
) {
    // Positions stand for elements, since the operands' signs differ at run time.
    let positions = |len: usize| (0..len as u32).collect::<Vec<u32>>();
    let xs = positions(conv.batch * conv.group * conv.channels_in * conv.input_area());
    let ws = positions(conv.group * conv.channels_out * conv.channels_in * conv.taps());
    let mac = |sum: i32, i: u32, j: u32, m: usize| {
        sum.wrapping_add((x.at(i as usize) - x_zero).wrapping_mul(w.at(j as usize) - w_zero(m)))
    };
    conv.run(&xs, &ws, 0_i32, mac, put);
}

/// The kernel of `ConvInteger`.
pub fn lower_conv_integer(ins: Facts<'_>, window: &Window, group: usize) -> Result<Lowered, OpError> {
    let conv = geometry(ins.need(0)?.shape, ins.need(1)?.shape, window, group)?;
    let dtypes = [0, 1, 2, 3].map(|i| dtype_of(ins, i));
    let present = [2, 3].map(|i| ins.get(i).is_some());
    Ok(Lowered::new("integer conv", move |io| {
        let wide = |i: usize| Wide::new(io, i, dtypes[i]);
        let zero = |i: usize| if present[i - 2] { wide(i) } else { Wide::Unsigned(&[]) };
        let (x, w, xz, wz) = (wide(0), wide(1), zero(2), zero(3));
        let out = io.take::<i32>(0);
        convolve(&conv, x, w, xz.entry(0), |m| wz.entry(m), |at, _, sum| out[at] = sum);
        Ok(())
    }))
}

/// Whether an input holds scales: one, or one per channel.
fn scale_fits(ins: Facts<'_>, index: usize, channels: usize) -> Result<(), OpError> {
    let scale = ins.typed(index, &[DType::F32])?;
    if scale.len() == 1 || scale.shape == [channels] {
        Ok(())
    } else {
        Err(OpError::Shape(format!("scales {:?} for {channels} channels", scale.shape)))
    }
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

fn entry(list: &[f32], i: usize) -> f32 {
    list[if list.len() == 1 { 0 } else { i }]
}

fn store(out: &mut [u8], at: usize, signed: bool, value: f32, zero: i32) {
    out[at] = if signed { i8::saturate(value, zero) as u8 } else { u8::saturate(value, zero) };
}

/// The kernel of `QLinearConv`.
pub fn lower_qlinear_conv(ins: Facts<'_>, window: &Window, group: usize) -> Result<Lowered, OpError> {
    let conv = geometry(ins.need(0)?.shape, ins.need(3)?.shape, window, group)?;
    let dtypes = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| dtype_of(ins, i));
    let biased = ins.get(8).is_some();
    Ok(Lowered::new("quantised conv", move |io| {
        let wide = |i: usize| Wide::new(io, i, dtypes[i]);
        let (x, xz, w, wz, yz) = (wide(0), wide(2), wide(3), wide(5), wide(7).entry(0));
        let (xs, ws, ys) = (io.input::<f32>(1)[0], io.input::<f32>(4), io.input::<f32>(6)[0]);
        let bias = if biased { io.input::<i32>(8) } else { &[] };
        let out = io.take_bytes(0);
        let signed = dtypes[7] == DType::I8;
        convolve(
            &conv,
            x,
            w,
            xz.entry(0),
            |m| wz.entry(m),
            |at, m, sum| {
                let sum = sum.wrapping_add(bias.get(m).copied().unwrap_or(0));
                store(out, at, signed, sum as f32 * (xs * entry(ws, m) / ys), yz);
            },
        );
        Ok(())
    }))
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
pub fn lower_qlinear_matmul(ins: Facts<'_>) -> Result<Lowered, OpError> {
    let shape = matmul_shape(ins.need(0)?.shape, ins.need(3)?.shape)?;
    let dtypes = [0, 1, 2, 3, 4, 5, 6, 7].map(|i| dtype_of(ins, i));
    Ok(Lowered::new("quantised matmul", move |io| {
        let wide = |i: usize| Wide::new(io, i, dtypes[i]);
        let (a, az, b, bz, yz) = (wide(0), wide(2), wide(3), wide(5), wide(7).entry(0));
        let (scales_a, scales_b, scale_y) = (io.input::<f32>(1), io.input::<f32>(4), io.input::<f32>(6)[0]);
        let out = io.take_bytes(0);
        let signed = dtypes[7] == DType::I8;
        let (m, n) = (shape.m, shape.n);
        product(
            &shape,
            a,
            b,
            |i| az.entry(i),
            |j| bz.entry(j),
            |at, j, sum| {
                let scale = entry(scales_a, at / n % m) * entry(scales_b, j) / scale_y;
                store(out, at, signed, sum as f32 * scale, yz);
            },
        );
        Ok(())
    }))
}
