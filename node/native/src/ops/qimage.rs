//! Quantised convolutions in NHWC on the kernels, and tables over bytes.
//!
//! The quantisation pass makes these operators where scales and zero points are constants.

use roost_kernels::{ByteRows, BytesOut, Output, QWeights, Sign};

use super::Target;
use super::conv::Window;
use super::fact::{Facts, Out, checked_len};
use super::image::{ConvImage, refused};
use super::kernel::Lowered;
use crate::error::OpError;
use crate::plan::pack::{Layout, packed};
use crate::tensor::{ALIGN_BYTES, DType, Tensor};

/// A quantised convolution: x bytes, weights `[M, C / group, kH, kW]` in `i8`, bias `[M]` in `i32`. The
/// result is `clamp(round(sum * scale) + zero, low, high)`.
#[derive(Debug, Clone, PartialEq)]
pub struct QConv {
    /// The window.
    pub window: Window,
    /// Groups.
    pub group: usize,
    /// The type of x, `u8` or `i8`.
    pub from: DType,
    /// The zero point of x.
    pub x_zero: i32,
    /// Scale of x times that of the weights over that of the result: one, or one per filter.
    pub scales: Vec<f32>,
    /// The result's type, `u8` or `i8`.
    pub to: DType,
    /// The result's zero point.
    pub zero: i32,
    /// The least result.
    pub low: i32,
    /// The greatest result.
    pub high: i32,
    /// Whether x is `[N, H, W, C]`, as the kernel wants it.
    pub nhwc: bool,
}

/// The sign of a byte type.
pub fn sign(dtype: DType) -> Sign {
    if dtype == DType::I8 { Sign::Signed } else { Sign::Unsigned }
}

impl QConv {
    fn image(&self) -> ConvImage {
        ConvImage {
            window: self.window.clone(),
            group: self.group,
            activation: roost_kernels::Activation::None,
            nchw: !self.nhwc,
            pool: None,
        }
    }
}

/// The output of a quantised convolution.
pub fn infer(ins: Facts<'_>, conv: &QConv) -> Result<Vec<Out>, OpError> {
    let (x, w) = (ins.typed(0, &[conv.from])?, ins.typed(1, &[DType::I8])?);
    let (n, shape, [height, width]) = conv.image().shape(x.shape, w.shape)?;
    let filters = shape.filters;
    if ins.get(2).is_some() && ins.typed(2, &[DType::I32])?.shape != [filters] {
        return Err(OpError::Shape("the bias has one value per output channel".into()));
    }
    if !(conv.scales.len() == 1 || conv.scales.len() == filters) {
        return Err(OpError::Shape("there is one scale, or one per output channel".into()));
    }
    let out = if conv.nhwc { [n, height, width, filters] } else { [n, filters, height, width] };
    checked_len(conv.to, &out)?;
    Ok(vec![Out::new(conv.to, out)])
}

/// The kernel of a quantised convolution. `stride` is the distance of output pixels; images in NCHW, which
/// the interpreter meets, are turned to what the kernel reads and back, and have none.
pub fn lower(
    ins: Facts<'_>,
    conv: &QConv,
    stride: Option<usize>,
    target: Target<'_>,
) -> Result<Lowered, OpError> {
    let (x, w) = (ins.need(0)?, ins.need(1)?);
    let (images, shape, [height, width]) = conv.image().shape(x.shape, w.shape)?;
    let kernel = target.kernels.qconv(shape, sign(x.dtype)).map_err(refused)?;
    let weights = w.value.ok_or_else(|| OpError::Unsupported("weights that are computed".into()))?;
    let layout = target.kernels.layout();
    let mut numbers = w.shape.to_vec();
    numbers.extend([conv.group, layout.byte_panel, layout.byte_group]);
    // The sums of the taps follow the packed bytes.
    let bytes = kernel.packed_len().next_multiple_of(4);
    let whole = bytes + kernel.sums_len() * size_of::<i32>();
    let pack = |out: &mut [u8]| {
        let (packed, sums) = out.split_at_mut(bytes);
        let packed = &mut bytemuck::cast_slice_mut(packed)[..kernel.packed_len()];
        kernel.pack(&weights.values::<i8>(), packed, bytemuck::cast_slice_mut(sums));
    };
    let unpack = move |all: &[u8], weights: &mut [u8]| {
        kernel.unpack(bytemuck::cast_slice(&all[..kernel.packed_len()]), bytemuck::cast_slice_mut(weights));
    };
    let weights = packed(target, weights, Layout { kernel: "quantised conv", numbers }, whole, pack, unpack)?;
    let biased = ins.get(2).is_some();
    let (filters, channels) = (shape.filters, shape.channels);
    let stride = stride.unwrap_or(filters);
    let conv = conv.clone();
    let sums_bytes = (kernel.scratch_len() * size_of::<i32>()).next_multiple_of(ALIGN_BYTES);
    let turned_bytes = if conv.nhwc { 0 } else { x.len() + images * height * width * filters };
    let run = move |io: &mut crate::exec::io::Io<'_>| {
        let (x, data, scratch) = (io.bytes(0), io.take_bytes(0), io.take_bytes(1));
        let (scratch, turned) = scratch.split_at_mut(sums_bytes);
        let scratch = &mut bytemuck::cast_slice_mut(scratch)[..kernel.scratch_len()];
        let bias = biased.then(|| io.input::<i32>(2));
        let (packed, sums) = weights.bytes().split_at(bytes);
        let packed = &bytemuck::cast_slice(packed)[..kernel.packed_len()];
        let weights = QWeights { packed, sums: bytemuck::cast_slice(sums), bias };
        let mut convolve = |x: &[u8], data: &mut [u8], stride: usize| {
            let to = BytesOut {
                data,
                stride,
                scale: &conv.scales,
                zero: conv.zero,
                low: conv.low,
                high: conv.high,
            };
            let input = ByteRows { data: x, stride: channels };
            kernel.run(images, input, conv.x_zero, weights, Output::Bytes(to), scratch);
        };
        if conv.nhwc {
            convolve(x, data, stride);
        } else {
            let (from, to) = turned.split_at_mut(x.len());
            turn(x, images, channels, from);
            convolve(from, to, filters);
            turn(to, images, height * width, data);
        }
        Ok(())
    };
    let family = match kernel.tile(images) {
        None => "qconv.depthwise",
        Some(_) if shape.taps() == 1 => "qconv.pointwise",
        Some(_) => "qconv.spatial",
    };
    let lowered = Lowered::new(family, run).on_tile(target, kernel.tile(images));
    Ok(lowered.with_scratch(sums_bytes + turned_bytes).without_reading(&[1]))
}

/// The transpose of each of `images` matrices of so many rows.
fn turn(from: &[u8], images: usize, rows: usize, to: &mut [u8]) {
    let each = from.len() / images.max(1);
    let columns = each / rows.max(1);
    // Nothing is in chunks of one.
    for (from, to) in from.chunks_exact(each.max(1)).zip(to.chunks_exact_mut(each.max(1))) {
        roost_kernels::transpose(from, columns, rows, columns, to, rows);
    }
}

/// Bytes of images from `[N, C, H, W]` to `[N, H, W, channels]`.
pub fn infer_widen(ins: Facts<'_>, channels: usize) -> Result<Vec<Out>, OpError> {
    let x = ins.typed(0, &[DType::U8, DType::I8])?;
    match *x.shape {
        [n, c, h, w] if c <= channels => Ok(vec![Out::new(x.dtype, [n, h, w, channels])]),
        _ => Err(OpError::Shape(format!("{:?} with {channels} channels", x.shape))),
    }
}

/// The kernel of [`infer_widen`].
pub fn lower_widen(ins: Facts<'_>, channels: usize) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let (c, area) = (x.shape[1], x.shape[2] * x.shape[3]);
    Ok(Lowered::new("widen", move |io| {
        let (x, out) = (io.bytes(0), io.take_bytes(0));
        if c == 0 || area == 0 {
            out.fill(0);
            return Ok(());
        }
        for (x, out) in x.chunks_exact(c * area).zip(out.chunks_exact_mut(channels * area)) {
            // Channel by channel: reads are contiguous, writes a few bytes apart.
            for channel in 0..channels {
                let to = out[channel..].iter_mut().step_by(channels);
                match x.get(channel * area..(channel + 1) * area) {
                    Some(plane) => to.zip(plane).for_each(|(out, x)| *out = *x),
                    None => to.for_each(|out| *out = 0),
                }
            }
        }
        Ok(())
    }))
}

/// A function of bytes as a table of 256 entries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// The result by input byte.
    pub entries: Vec<u8>,
    /// The type of x, `u8` or `i8`.
    pub from: DType,
    /// The result's type.
    pub to: DType,
}

/// The output of a table.
pub fn infer_table(ins: Facts<'_>, table: &Table) -> Result<Vec<Out>, OpError> {
    let x = ins.typed(0, &[table.from])?;
    Ok(vec![Out::new(table.to, x.shape)])
}

/// The kernel of a table. `stride` is the distance of rows of the last dimension.
pub fn lower_table(
    ins: Facts<'_>,
    table: &Table,
    stride: Option<usize>,
    target: Target<'_>,
) -> Result<Lowered, OpError> {
    let entries: [u8; 256] = table.entries[..]
        .try_into()
        .map_err(|_| OpError::Shape("a table of other than 256 entries".into()))?;
    let (kernels, columns) = (target.kernels, ins.need(0)?.shape.last().copied().unwrap_or(1).max(1));
    let run = move |io: &mut crate::exec::io::Io<'_>| {
        let (x, out) = (io.bytes(0), io.take_bytes(0));
        match stride {
            None => kernels.lookup(&entries, x, out),
            Some(stride) => {
                for (x, out) in x.chunks_exact(columns).zip(out.chunks_mut(stride)) {
                    kernels.lookup(&entries, x, &mut out[..columns]);
                }
            }
        }
        Ok(())
    };
    Ok(Lowered::new("table", run).on(target))
}

/// A scale and a zero point of one value, where they are constant.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Step {
    /// The scale.
    pub scale: f32,
    /// The zero point.
    pub zero: i32,
    /// The type.
    pub dtype: DType,
}

impl Step {
    /// From constants; `None` unless both are single values of a byte type.
    pub fn new(scale: &Tensor, zero: Option<&Tensor>, default: DType) -> Option<Self> {
        let one = |tensor: &Tensor| (tensor.len() == 1).then_some(());
        one(scale)?;
        let dtype = zero.map_or(default, Tensor::dtype);
        if !matches!(dtype, DType::U8 | DType::I8) || scale.dtype() != DType::F32 {
            return None;
        }
        let zero = match zero {
            None => 0,
            Some(zero) => {
                one(zero)?;
                zero.ints()?[0] as i32
            }
        };
        let scale = scale.values::<f32>()[0];
        (scale > 0.0 && scale.is_finite()).then_some(Self { scale, zero, dtype })
    }

    /// The least and the greatest byte.
    pub fn range(&self) -> (i32, i32) {
        if self.dtype == DType::I8 { (-128, 127) } else { (0, 255) }
    }

    /// What a byte stands for.
    pub fn value(&self, byte: i32) -> f32 {
        (byte - self.zero) as f32 * self.scale
    }

    /// The byte that stands for a value.
    pub fn byte(&self, value: f32) -> i32 {
        let (low, high) = self.range();
        ((value / self.scale).round_ties_even() as i32).saturating_add(self.zero).clamp(low, high)
    }
}
