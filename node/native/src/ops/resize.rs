//! `Resize` (and `Upsample`): nearest, linear, cubic, with and without antialiasing, any number of axes.
//!
//! Each axis is resampled by itself from a table of (first input, weights) made when the plan is made;
//! nearest is one index per output. Axes whose table is the identity are skipped.

use super::fact::{Facts, Out, axis_of, checked_len};
use super::kernel::Lowered;
use crate::error::OpError;
use crate::tensor::DType;

/// Interpolation.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Mode {
    /// The nearest element.
    Nearest(Nearest),
    /// Between two elements per axis.
    Linear,
    /// Between four elements per axis, with this coefficient.
    Cubic(f32),
}

/// Which element is nearest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ONNX's")]
pub enum Nearest {
    RoundPreferFloor,
    RoundPreferCeil,
    Floor,
    Ceil,
}

/// How an output index becomes a place in the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ONNX's")]
pub enum Coordinates {
    HalfPixel,
    HalfPixelSymmetric,
    PytorchHalfPixel,
    AlignCorners,
    Asymmetric,
    TfCropAndResize,
}

/// What happens to sizes that would change the aspect ratio.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are ONNX's")]
pub enum Aspect {
    Stretch,
    NotLarger,
    NotSmaller,
}

/// Attributes of `Resize`.
#[derive(Debug, Clone, PartialEq)]
pub struct Resize {
    /// Interpolation.
    pub mode: Mode,
    /// Places.
    pub coordinates: Coordinates,
    /// Whether weights outside the input are dropped and the rest scaled up.
    pub exclude_outside: bool,
    /// The value outside, for `TfCropAndResize`.
    pub extrapolation: f32,
    /// Whether down-sampling widens the filter.
    pub antialias: bool,
    /// The axes that scales and sizes are of; empty means all.
    pub axes: Vec<i64>,
    /// Aspect ratio policy.
    pub aspect: Aspect,
}

/// The smallest scale: antialiasing walks its inverse for every output.
const SCALE_MIN: f32 = 1e-5;

/// The longest axis that is resized: tables are made along it.
const AXIS_MAX: usize = 1 << 24;

/// An axis: lengths, scale, region.
#[derive(Debug, Clone, Copy)]
struct Along {
    input: usize,
    output: usize,
    scale: f32,
    roi: (f32, f32),
}

fn alongs(ins: Facts<'_>, resize: &Resize) -> Result<Vec<Along>, OpError> {
    let x = ins.need(0)?;
    let axes = match resize.axes[..] {
        [] => (0..x.rank()).collect(),
        ref axes => axes.iter().map(|axis| axis_of(*axis, x.rank())).collect::<Result<Vec<_>, _>>()?,
    };
    let refuse = || OpError::Shape(format!("resizing {:?} on axes {axes:?}", x.shape));
    let mut alongs: Vec<_> =
        x.shape.iter().map(|dim| Along { input: *dim, output: *dim, scale: 1.0, roi: (0.0, 1.0) }).collect();
    let filled = |i: usize| ins.get(i).is_some_and(|fact| !fact.is_empty());
    if filled(1) && resize.coordinates == Coordinates::TfCropAndResize {
        let roi = ins.value(1)?.floats();
        if roi.len() != 2 * axes.len() {
            return Err(refuse());
        }
        axes.iter().enumerate().for_each(|(i, axis)| alongs[*axis].roi = (roi[i], roi[axes.len() + i]));
    }
    if filled(2) {
        let scales = ins.value(2)?.floats();
        if scales.len() != axes.len() || scales.iter().any(|scale| !scale.is_finite() || *scale < SCALE_MIN) {
            return Err(refuse());
        }
        for (axis, scale) in axes.iter().zip(scales) {
            let along = &mut alongs[*axis];
            let span = if resize.coordinates == Coordinates::TfCropAndResize {
                along.roi.1 - along.roi.0
            } else {
                1.0
            };
            along.output = (along.input as f32 * span * scale).floor().max(0.0) as usize;
            along.scale = scale;
        }
    } else {
        let sizes = ins.need_ints(3)?;
        let sizes: Vec<usize> =
            sizes.iter().map(|size| usize::try_from(*size).unwrap_or(usize::MAX)).collect();
        if sizes.len() != axes.len() || sizes.iter().any(|size| *size > isize::MAX as usize) {
            return Err(refuse());
        }
        let ratios = axes.iter().zip(&sizes).map(|(axis, size)| *size as f32 / x.shape[*axis] as f32);
        let common = match resize.aspect {
            Aspect::Stretch => None,
            Aspect::NotLarger => ratios.reduce(f32::min),
            Aspect::NotSmaller => ratios.reduce(f32::max),
        };
        for (axis, size) in axes.iter().zip(sizes) {
            let along = &mut alongs[*axis];
            along.scale = common.unwrap_or(size as f32 / along.input as f32);
            along.output = match common {
                Some(scale) => (scale * along.input as f32 + 0.5).floor() as usize,
                None => size,
            };
        }
    }
    if alongs.iter().any(|along| along.input == 0 || !along.scale.is_finite() || along.scale < SCALE_MIN) {
        return Err(refuse());
    }
    Ok(alongs)
}

/// `Resize`: data, region, scales, sizes.
pub fn infer(ins: Facts<'_>, resize: &Resize) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let shape: Vec<_> = alongs(ins, resize)?.iter().map(|along| along.output).collect();
    checked_len(x.dtype, &shape)?;
    Ok(vec![Out::new(x.dtype, shape)])
}

impl Along {
    /// The place in the input of output `o`.
    fn place(&self, o: usize, coordinates: Coordinates) -> f32 {
        let (o, input, output) = (o as f32, self.input as f32, self.output as f32);
        let half = |o: f32| (o + 0.5) / self.scale - 0.5;
        match coordinates {
            Coordinates::HalfPixel => half(o),
            Coordinates::HalfPixelSymmetric => {
                // ONNX: the output may be cut short of input * scale; the crop is taken evenly from both
                // sides.
                let adjustment = output / (input * self.scale);
                let center = input / 2.0;
                center * (1.0 - adjustment) + half(o)
            }
            Coordinates::PytorchHalfPixel if self.output == 1 => -0.5,
            Coordinates::PytorchHalfPixel => half(o),
            Coordinates::AlignCorners if self.output == 1 => 0.0,
            Coordinates::AlignCorners => o * (input - 1.0) / (output - 1.0),
            Coordinates::Asymmetric => o / self.scale,
            Coordinates::TfCropAndResize => {
                let (start, end) = self.roi;
                if self.output > 1 {
                    start * (input - 1.0) + o * (end - start) * (input - 1.0) / (output - 1.0)
                } else {
                    0.5 * (start + end) * (input - 1.0)
                }
            }
        }
    }

    /// The inputs and weights of each output; none where each output is its input.
    fn table(&self, resize: &Resize) -> Result<Option<Table>, OpError> {
        if self.input.max(self.output) > AXIS_MAX {
            let crops = resize.coordinates == Coordinates::TfCropAndResize;
            if self.input == self.output && self.scale == 1.0 && !crops {
                return Ok(None);
            }
            let text = format!("resizing {} to {}, at most {AXIS_MAX}", self.input, self.output);
            return Err(OpError::Unsupported(text));
        }
        let mut table = Table { ends: Vec::with_capacity(self.output), taps: Vec::new() };
        for o in 0..self.output {
            table.taps.extend(self.taps(self.place(o, resize.coordinates), resize));
            table.ends.push(table.taps.len());
        }
        let same = |o: usize| table.of(o) == [(o as u32, 1.0)];
        let is_identity = self.input == self.output && (0..self.output).all(same);
        Ok((!is_identity).then_some(table))
    }

    /// The inputs and weights of an output at a place; none where it takes the extrapolation value.
    fn taps(&self, place: f32, resize: &Resize) -> Vec<(u32, f32)> {
        let last = self.input as i64 - 1;
        if resize.coordinates == Coordinates::TfCropAndResize && !(0.0..=last as f32).contains(&place) {
            return Vec::new();
        }
        let clamp = |i: i64| i.clamp(0, last) as u32;
        if let Mode::Nearest(nearest) = resize.mode {
            let index = match nearest {
                Nearest::RoundPreferFloor => (place - 0.5).ceil(),
                Nearest::RoundPreferCeil => (place + 0.5).floor(),
                Nearest::Floor => place.floor(),
                Nearest::Ceil => place.ceil(),
            };
            return vec![(clamp(index as i64), 1.0)];
        }
        // Widening the filter for down-sampling is what antialiasing is.
        let scale = if resize.antialias { self.scale.min(1.0) } else { 1.0 };
        let (reach, weight): (f32, Box<dyn Fn(f32) -> f32>) = match resize.mode {
            Mode::Cubic(a) => (2.0, Box::new(move |x| cubic(x, a))),
            Mode::Linear | Mode::Nearest(_) => (1.0, Box::new(|x| (1.0 - x.abs()).max(0.0))),
        };
        let (low, high) = ((place - reach / scale).floor() as i64, (place + reach / scale).ceil() as i64);
        let mut taps: Vec<(i64, f32)> = (low..=high)
            .map(|i| (i, weight((i as f32 - place) * scale)))
            .filter(|(i, weight)| *weight != 0.0 && (!resize.exclude_outside || (0..=last).contains(i)))
            .collect();
        let total: f32 = taps.iter().map(|(_, weight)| weight).sum();
        if (resize.exclude_outside || resize.antialias) && total != 0.0 {
            taps.iter_mut().for_each(|(_, weight)| *weight /= total);
        }
        taps.into_iter().map(|(i, weight)| (clamp(i), weight)).collect()
    }
}

/// The inputs and weights of each output along an axis.
struct Table {
    /// Where those of each output end.
    ends: Vec<usize>,
    taps: Vec<(u32, f32)>,
}

impl Table {
    fn bytes(&self) -> usize {
        size_of_val(&self.ends[..]) + size_of_val(&self.taps[..])
    }

    /// Those of one output.
    fn of(&self, o: usize) -> &[(u32, f32)] {
        let start = if o == 0 { 0 } else { self.ends[o - 1] };
        &self.taps[start..self.ends[o]]
    }
}

/// Keys' cubic kernel.
fn cubic(x: f32, a: f32) -> f32 {
    let x = x.abs();
    if x <= 1.0 {
        (a + 2.0) * x * x * x - (a + 3.0) * x * x + 1.0
    } else if x < 2.0 {
        a * x * x * x - 5.0 * a * x * x + 8.0 * a * x - 4.0 * a
    } else {
        0.0
    }
}

/// The kernel of `Resize`. Types other than `f32` are resized by nearest only.
pub fn lower(ins: Facts<'_>, resize: &Resize) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let alongs = alongs(ins, resize)?;
    let tables = alongs.iter().map(|along| along.table(resize)).collect::<Result<Vec<_>, _>>()?;
    if x.dtype != DType::F32 {
        if !matches!(resize.mode, Mode::Nearest(_)) || resize.coordinates == Coordinates::TfCropAndResize {
            return Err(OpError::DType { input: 0, dtype: x.dtype });
        }
        return Ok(nearest(x.shape, x.dtype.bytes(), &alongs, &tables));
    }
    let out: Vec<_> = alongs.iter().map(|along| along.output).collect();
    // Passes go through two scratch tensors of the largest size that any of them has.
    let mut shape = x.shape.to_vec();
    let mut passes = Vec::new();
    let mut largest = 0;
    let count = tables.iter().flatten().count();
    for (d, table) in tables.into_iter().enumerate() {
        let Some(table) = table else { continue };
        let (outer, inner) = (shape[..d].iter().product::<usize>(), shape[d + 1..].iter().product::<usize>());
        shape[d] = out[d];
        // Also the last, whose products are part of the loops.
        let len = checked_len(DType::F32, &shape)?;
        if passes.len() + 1 < count {
            largest = largest.max(len);
        }
        passes.push(Pass { outer, input: x.shape[d], inner, table });
    }
    let extrapolation = resize.extrapolation;
    let table_bytes = passes.iter().map(|pass| pass.table.bytes()).sum();
    let run = move |io: &mut crate::exec::io::Io<'_>| {
        let (x, out, scratch) = (io.input::<f32>(0), io.take::<f32>(0), io.take::<f32>(1));
        let (mut from, mut to) = scratch.split_at_mut(largest);
        let Some((last, before)) = passes.split_last() else {
            out.copy_from_slice(x);
            return Ok(());
        };
        for (i, pass) in before.iter().enumerate() {
            pass.run(if i == 0 { x } else { from }, to, extrapolation);
            std::mem::swap(&mut from, &mut to);
        }
        last.run(if before.is_empty() { x } else { from }, out, extrapolation);
        Ok(())
    };
    let bytes = largest.saturating_mul(2 * size_of::<f32>());
    Ok(Lowered::new("resize", run).with_scratch(bytes).with_tables(table_bytes))
}

/// One axis resampled.
struct Pass {
    outer: usize,
    input: usize,
    inner: usize,
    table: Table,
}

impl Pass {
    fn run(&self, x: &[f32], out: &mut [f32], extrapolation: f32) {
        for o in 0..self.outer {
            for i in 0..self.table.ends.len() {
                let taps = self.table.of(i);
                for j in 0..self.inner {
                    let at = |k: u32| x[(o * self.input + k as usize) * self.inner + j];
                    out[(o * self.table.ends.len() + i) * self.inner + j] = match *taps {
                        [] => extrapolation,
                        [(k, 1.0)] => at(k),
                        _ => taps.iter().fold(0.0, |sum, (k, weight)| at(*k).mul_add(*weight, sum)),
                    };
                }
            }
        }
    }
}

/// By nearest, of any type.
fn nearest(shape: &[usize], bytes: usize, alongs: &[Along], tables: &[Option<Table>]) -> Lowered {
    // For each axis: how long it is, from an index of x to the next in elements, and which index of x is
    // read.
    let from = |table: &Table| -> Vec<u32> { (0..table.ends.len()).map(|o| table.of(o)[0].0).collect() };
    let axes: Vec<(usize, usize, Option<Vec<u32>>)> = alongs
        .iter()
        .zip(super::fact::strides_of(shape))
        .zip(tables)
        .map(|((along, stride), table)| (along.output, stride, table.as_ref().map(from)))
        .collect();
    let table_bytes = axes.iter().flat_map(|(_, _, from)| from).map(|from| size_of_val(&from[..])).sum();
    let run = move |io: &mut crate::exec::io::Io<'_>| {
        let (x, out) = (io.bytes(0), io.take_bytes(0));
        for (i, out) in out.chunks_exact_mut(bytes).enumerate() {
            let (mut rest, mut at) = (i, 0);
            for (len, stride, from) in axes.iter().rev() {
                let place = rest % len;
                at += from.as_ref().map_or(place, |from| from[place] as usize) * stride;
                rest /= len;
            }
            out.copy_from_slice(&x[at * bytes..(at + 1) * bytes]);
        }
        Ok(())
    };
    Lowered::new("resize", run).with_tables(table_bytes)
}
