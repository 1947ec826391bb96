//! Convolutions and pools over images in NHWC, on the kernels.
//!
//! The layout pass makes these operators; shapes here are `[N, H, W, C]`, but for the first convolution of a
//! model, which reads `[N, C, H, W]` as it comes. Weights stay `[M, C / group, kH, kW]` in the graph and are
//! packed when planned.

use roost_kernels::{
    Activation, ConvInput, ConvPool, ConvShape, Epilogue, PoolKind, Rows, RowsMut, ShapeError, Sign,
};

use super::Target;
use super::conv::{Span, Window};
use super::fact::{Facts, Out, checked_len};
use super::kernel::Lowered;
use crate::error::OpError;
use crate::plan::floats::Floats;
use crate::plan::pack::Layout;
use crate::tensor::DType;

/// A convolution: x, weights, bias `[M]`, residual like the output.
#[derive(Debug, Clone, PartialEq)]
pub struct ConvImage {
    /// The window.
    pub window: Window,
    /// Groups.
    pub group: usize,
    /// What is done last.
    pub activation: Activation,
    /// Whether x is `[N, C, H, W]`.
    pub nchw: bool,
    /// A pool over what comes out, which nothing else reads; there is no residual then.
    pub pool: Option<PoolImage>,
}

/// A span as the kernels take it.
pub fn window_of(span: &Span) -> roost_kernels::Window {
    roost_kernels::Window {
        size: span.input,
        kernel: span.kernel,
        stride: span.stride,
        dilation: span.dilation,
        before: span.before,
        after: span.after,
    }
}

/// The kernels' refusal as ours.
pub fn refused(error: ShapeError) -> OpError {
    OpError::Shape(error.to_string())
}

/// Images, rows, columns, channels of `[N, H, W, C]` or `[N, C, H, W]`.
fn image(shape: &[usize], nchw: bool) -> Result<[usize; 4], OpError> {
    match *shape {
        [n, c, h, w] if nchw => Ok([n, h, w, c]),
        [n, h, w, c] => Ok([n, h, w, c]),
        _ => Err(OpError::Shape(format!("{shape:?} is no image"))),
    }
}

impl ConvImage {
    /// Images, and the shape for the kernels.
    pub fn shape(&self, x: &[usize], w: &[usize]) -> Result<(usize, ConvShape, [usize; 2]), OpError> {
        let [n, height, width, channels] = image(x, self.nchw)?;
        let &[filters, depth, ky, kx] = w else { return Err(OpError::Shape(format!("weights {w:?}"))) };
        let spans = self.window.spans(&[height, width], &[ky, kx])?;
        if depth.checked_mul(self.group) != Some(channels) {
            return Err(OpError::Shape(format!("convolution of {x:?} by {w:?}")));
        }
        let (y, x) = (window_of(&spans[0]), window_of(&spans[1]));
        let shape = ConvShape { y, x, channels, filters, groups: self.group };
        Ok((n, shape, [spans[0].output, spans[1].output]))
    }
}

/// The output of a convolution.
pub fn infer_conv(ins: Facts<'_>, conv: &ConvImage) -> Result<Vec<Out>, OpError> {
    let (x, w) = (ins.typed(0, &[DType::F32])?, ins.typed(1, &[DType::F32])?);
    let (n, shape, [height, width]) = conv.shape(x.shape, w.shape)?;
    let mut out = [n, height, width, shape.filters];
    checked_len(DType::F32, &out)?;
    if let Some(pool) = &conv.pool {
        let [y, x] = pool.spans(&out)?;
        out = [n, y.output, x.output, shape.filters];
    }
    Ok(vec![Out::new(DType::F32, out)])
}

/// The kernel of a convolution. `stride` is the distance of output pixels, in elements.
pub fn lower_conv(
    ins: Facts<'_>,
    conv: &ConvImage,
    stride: Option<usize>,
    target: Target<'_>,
) -> Result<Lowered, OpError> {
    let (x, w) = (ins.need(0)?, ins.need(1)?);
    let (images, shape, [height, width]) = conv.shape(x.shape, w.shape)?;
    let kernel = target.kernels.conv(shape).map_err(refused)?;
    let pooled = match &conv.pool {
        Some(pool) => {
            Some(ConvPool::new(kernel, pool.plan(&[images, height, width, shape.filters], target)?))
        }
        None => None,
    };
    let weights = w.value.ok_or_else(|| OpError::Unsupported("weights that are computed".into()))?;
    let numbers =
        vec![w.shape[0], w.shape[1], w.shape[2], w.shape[3], conv.group, target.kernels.layout().panel];
    let pack = |out: &mut [f32]| kernel.pack(&weights.values::<f32>(), out);
    let unpack = move |packed: &[f32], weights: &mut [f32]| kernel.unpack(packed, weights);
    let layout = Layout { kernel: "conv", numbers };
    let weights = Floats::packed(target, weights, layout, kernel.packed_len(), pack, unpack)?;
    let half = weights.half();
    let [biased, residual] = [2, 3].map(|i| ins.get(i).is_some());
    let (nchw, activation, filters) = (conv.nchw, conv.activation, shape.filters);
    let stride = stride.unwrap_or(filters);
    let run = move |io: &mut crate::exec::io::Io<'_>| {
        let data = io.input::<f32>(0);
        let input =
            if nchw { ConvInput::Nchw { data } } else { ConvInput::Nhwc { data, pixel: shape.channels } };
        let epilogue = Epilogue {
            bias: biased.then(|| io.input::<f32>(2)),
            residual: residual.then(|| Rows { data: io.input::<f32>(3), stride: filters }),
            activation,
            accumulate: false,
        };
        let (data, scratch) = (io.take::<f32>(0), io.take::<f32>(1));
        let (packed, out) = (weights.weights(), RowsMut { data, stride });
        match &pooled {
            Some(pooled) => pooled.run(images, input, packed, out, &epilogue, scratch),
            None => kernel.run(images, input, packed, out, &epilogue, scratch),
        }
        Ok(())
    };
    let scratch = pooled.map_or_else(|| kernel.scratch_len(images, half), |pooled| pooled.scratch_len(half));
    let scratch = scratch * size_of::<f32>();
    let family = match kernel.tile(images, half) {
        None => "conv.depthwise",
        Some(_) if nchw => "conv.stem",
        Some(_) if shape.taps() == 1 => "conv.pointwise",
        Some(_) => "conv.spatial",
    };
    let mut lowered = Lowered::new(family, run);
    if pooled.is_some() {
        lowered.kernel = format!("{family}+pool").into();
    }
    let lowered = lowered.on_tile(target, kernel.tile(images, half)).of_weights(half);
    Ok(lowered.with_scratch(scratch).without_reading(&[1]))
}

/// A pool over images.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolImage {
    /// The window; without one, the whole image.
    pub window: Option<Window>,
    /// What is computed.
    pub kind: PoolKind,
}

impl PoolImage {
    /// The kernel for images of a shape.
    fn plan(&self, x: &[usize], target: Target<'_>) -> Result<roost_kernels::Pool, OpError> {
        let [y, x] = self.spans(x)?;
        let output = Some([y.output, x.output]);
        target.kernels.pool(self.kind, window_of(&y), window_of(&x), output).map_err(refused)
    }

    fn spans(&self, x: &[usize]) -> Result<[Span; 2], OpError> {
        let [_, height, width, _] = image(x, false)?;
        match &self.window {
            Some(window) => {
                let spans = window.spans(&[height, width], &window.kernel)?;
                Ok([spans[0], spans[1]])
            }
            None => {
                let whole = |len: usize| Span {
                    input: len,
                    output: 1,
                    kernel: len,
                    stride: 1,
                    dilation: 1,
                    before: 0,
                    after: 0,
                };
                Ok([whole(height), whole(width)])
            }
        }
    }
}

/// The output of a pool.
pub fn infer_pool(ins: Facts<'_>, pool: &PoolImage) -> Result<Vec<Out>, OpError> {
    let x = ins.typed(0, &[DType::F32, DType::U8, DType::I8])?;
    let [y, x_span] = pool.spans(x.shape)?;
    Ok(vec![Out::new(x.dtype, [x.shape[0], y.output, x_span.output, x.shape[3]])])
}

/// The kernel of a pool.
pub fn lower_pool(
    ins: Facts<'_>,
    pool: &PoolImage,
    stride: Option<usize>,
    target: Target<'_>,
) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let kernel = pool.plan(x.shape, target)?;
    let (images, channels) = (x.shape[0], x.shape[3]);
    let stride = stride.unwrap_or(channels);
    let sign = match x.dtype {
        DType::F32 => {
            return Ok(Lowered::new("pool", move |io| {
                let input = Rows { data: io.input::<f32>(0), stride: channels };
                kernel.run(images, channels, input, RowsMut { data: io.take::<f32>(0), stride });
                Ok(())
            }));
        }
        DType::I8 => Sign::Signed,
        _ => Sign::Unsigned,
    };
    Ok(Lowered::new("pool bytes", move |io| {
        let input = roost_kernels::ByteRows { data: io.bytes(0), stride: channels };
        kernel.run_bytes(images, channels, input, sign, io.take_bytes(0), stride);
        Ok(())
    }))
}
