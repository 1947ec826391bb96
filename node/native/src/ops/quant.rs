//! Quantisation: to and from integers. Rounding is half to even, and saturates.

use super::Target;
use super::fact::{Facts, Out, axis_of};
use super::kernel::Lowered;
use super::qimage::{Step, sign};
use roost_kernels::Quantization;

use crate::error::OpError;
use crate::tensor::{DType, Elem};

/// The integer types that values are quantised to.
const QUANTISED: [DType; 4] = [DType::U8, DType::I8, DType::U16, DType::I16];

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
enum ScaleAt {
    /// One scale for all.
    One,
    /// One for each of `len` places along an axis, which lie `inner` elements apart.
    Axis { inner: usize, len: usize },
    /// One for each block of `block` places along an axis of `len`, which has `count` of them. Blocks of one
    /// place are blocks too: there are then as many scales as elements.
    Blocked { inner: usize, len: usize, block: usize, count: usize },
}

impl ScaleAt {
    fn new(x: &[usize], scale: &[usize], scales: Scales) -> Result<Self, OpError> {
        if scale.iter().product::<usize>() == 1 && scales.block == 0 {
            return Ok(Self::One);
        }
        let refuse = || OpError::Shape(format!("scales {scale:?} of {x:?}, {scales:?}"));
        let axis = axis_of(scales.axis, x.len())?;
        let (inner, len) = (x[axis + 1..].iter().product(), x[axis]);
        if scales.block == 0 {
            return if scale == [len] { Ok(Self::Axis { inner, len }) } else { Err(refuse()) };
        }
        let count = len.div_ceil(scales.block);
        let fits =
            scale.len() == x.len() && (0..x.len()).all(|d| scale[d] == if d == axis { count } else { x[d] });
        if fits { Ok(Self::Blocked { inner, len, block: scales.block, count }) } else { Err(refuse()) }
    }

    fn of(&self, i: usize) -> usize {
        match *self {
            Self::One => 0,
            Self::Axis { inner, len } => i / inner % len,
            Self::Blocked { inner, len, block, count } => {
                let (outer, along) = (i / inner / len, i / inner % len);
                (outer * count + along / block) * inner + i % inner
            }
        }
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
    /// `round(x) + zero`, saturated; NaN becomes the least, as in the kernels.
    fn saturate(x: f32, zero: i32) -> Self;
    /// The value as `i32`.
    fn wide(self) -> i32;
}

macro_rules! quantised {
    ($($t:ty),*) => { $(
        impl Quantised for $t {
            fn saturate(x: f32, zero: i32) -> Self {
                if x.is_nan() {
                    return <$t>::MIN;
                }
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
pub fn lower_quantize(
    ins: Facts<'_>,
    scales: Scales,
    out: &Out,
    target: Target<'_>,
) -> Result<Lowered, OpError> {
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
pub fn lower_dequantize(ins: Facts<'_>, scales: Scales, target: Target<'_>) -> Result<Lowered, OpError> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_element_finds_its_scale() {
        let check = |x: &[usize], scale: &[usize], axis: i64, block: usize, expected: &[usize]| {
            let at = ScaleAt::new(x, scale, Scales { axis, block }).expect("they fit");
            let found: Vec<usize> = (0..x.iter().product()).map(|i| at.of(i)).collect();
            assert_eq!(found, expected, "{x:?} by {scale:?}, axis {axis}, blocks of {block}");
        };
        check(&[2, 3], &[], 1, 0, &[0; 6]);
        check(&[2, 3], &[1], 1, 0, &[0; 6]);
        check(&[2, 3], &[3], 1, 0, &[0, 1, 2, 0, 1, 2]);
        check(&[2, 3], &[2], 0, 0, &[0, 0, 0, 1, 1, 1]);
        check(&[2, 1, 2], &[2], -1, 0, &[0, 1, 0, 1]);
        check(&[2, 3], &[2, 3], 1, 1, &[0, 1, 2, 3, 4, 5]);
        check(&[2, 3], &[2, 3], 0, 1, &[0, 1, 2, 3, 4, 5]);
        check(&[2, 3], &[2, 2], 1, 2, &[0, 0, 1, 2, 2, 3]);
        check(&[3, 2], &[2, 2], 0, 2, &[0, 1, 0, 1, 2, 3]);
        check(&[4, 1], &[4, 1], 1, 2, &[0, 1, 2, 3]);
        check(&[1, 4], &[1, 1], 1, 4, &[0; 4]);
        check(&[1, 1, 1], &[1, 1, 1], 2, 1, &[0]);
        for (x, scale, block) in [(&[2, 3][..], &[2][..], 0), (&[2, 3], &[2, 3], 2), (&[2, 3], &[6], 1)] {
            let refused = ScaleAt::new(x, scale, Scales { axis: 1, block });
            assert!(matches!(refused, Err(OpError::Shape(_))), "{x:?} by {scale:?}, blocks of {block}");
        }
    }
}
