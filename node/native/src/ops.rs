//! The operators: what the engine computes, whatever opset a model is of.
//!
//! The importer turns every (domain, operator, version) into one [`Op`]; nothing after it knows opsets.
//! [`infer`] gives output shapes, [`lower`] the kernel for these shapes. Each family has a file.

pub mod conv;
pub mod convert;
pub mod einsum;
pub mod elementwise;
pub mod fact;
pub mod gru;
pub mod image;
pub mod indexing;
pub mod integer;
pub mod kernel;
pub mod linear;
pub mod lstm;
pub mod matrix;
pub mod movement;
pub mod norm;
pub mod pool;
pub mod qimage;
pub mod quant;
pub mod reduce;
pub mod resize;
pub mod rnn;
pub mod strided;
pub mod view;

use std::sync::Arc;

use crate::error::OpError;
use crate::graph::ir::Graph;
use crate::tensor::form::Packing;
use crate::tensor::{DType, Tensor};
use fact::{Facts, Out};
use kernel::Lowered;
use roost_kernels::Kernels;

/// An operator with its attributes.
#[derive(Debug, Clone)]
#[allow(missing_docs, reason = "the names are ONNX's operators and attributes")]
pub enum Op {
    Unary(elementwise::Unary),
    Binary(elementwise::Binary),
    Where,
    Clip,
    Cast {
        to: DType,
    },
    CastLike,
    Identity,
    Reshape {
        allow_zero: bool,
    },
    Flatten {
        axis: i64,
    },
    Squeeze,
    Unsqueeze,
    Transpose {
        perm: Vec<i64>,
    },
    Concat {
        axis: i64,
    },
    /// Part number `part` of a split into `parts`.
    Split {
        axis: i64,
        part: usize,
        parts: usize,
    },
    Slice,
    Gather {
        axis: i64,
    },
    GatherElements {
        axis: i64,
    },
    GatherNd {
        batch_dims: usize,
    },
    ScatterElements {
        axis: i64,
        reduction: indexing::Reduction,
    },
    ScatterNd {
        reduction: indexing::Reduction,
    },
    Expand,
    Tile,
    Pad {
        mode: movement::PadMode,
    },
    Blocks {
        blocks: movement::Blocks,
        block: usize,
    },
    Trilu {
        upper: bool,
    },
    Shape {
        start: i64,
        end: Option<i64>,
    },
    Size,
    ConstantOfShape {
        value: Tensor,
    },
    Range,
    OneHot {
        axis: i64,
    },
    EyeLike {
        dtype: Option<DType>,
        k: i64,
    },
    NonZero,
    Compress {
        axis: Option<i64>,
    },
    Reduce {
        kind: reduce::Reduce,
        keep: bool,
        noop: bool,
    },
    ArgExtreme {
        axis: i64,
        keep: bool,
        max: bool,
        last: bool,
    },
    CumSum {
        exclusive: bool,
        reverse: bool,
    },
    TopK {
        axis: i64,
        largest: bool,
    },
    MatMul,
    Gemm(linear::Gemm),
    Einsum {
        equation: String,
    },
    Conv {
        window: conv::Window,
        group: usize,
    },
    ConvTranspose(conv::Transposed),
    Pool {
        window: conv::Window,
        pool: pool::Pool,
    },
    GlobalPool {
        max: bool,
    },
    Softmax {
        kind: norm::Softmax,
        axis: i64,
        flat: bool,
    },
    LayerNorm {
        axis: i64,
        epsilon: f32,
    },
    RmsNorm {
        axis: i64,
        epsilon: f32,
    },
    BatchNorm {
        epsilon: f32,
        momentum: f32,
        training: bool,
    },
    /// Without a number of groups, one per channel.
    GroupNorm {
        groups: Option<usize>,
        epsilon: f32,
    },
    MeanVarianceNorm {
        axes: Vec<i64>,
    },
    Lrn {
        alpha: f32,
        beta: f32,
        bias: f32,
        size: usize,
    },
    LpNorm {
        axis: i64,
        p: i64,
    },
    Quantize {
        scales: quant::Scales,
        to: Option<DType>,
    },
    Dequantize {
        scales: quant::Scales,
    },
    DynamicQuantize,
    MatMulInteger,
    ConvInteger {
        window: conv::Window,
        group: usize,
    },
    QLinearConv {
        window: conv::Window,
        group: usize,
    },
    QLinearMatMul,
    Rnn(rnn::Rnn),
    Resize(resize::Resize),
    /// A product with its epilogue.
    Linear(matrix::Linear),
    /// A convolution in NHWC with its epilogue.
    ConvImage(image::ConvImage),
    /// A quantised convolution with constant scales.
    QConv(qimage::QConv),
    /// Images from NCHW to NHWC, with channels of zero up to this many.
    WidenImage {
        channels: usize,
    },
    /// A function of bytes.
    Table(qimage::Table),
    /// A pool in NHWC.
    PoolImage(image::PoolImage),
    /// `Dropout` whose training mode is data: data, ratio, mode.
    Dropout,
    /// A mask of ones, as `Dropout` gives it outside training.
    Mask,
    /// Inputs: the condition, then what both branches take from around.
    If {
        then: Arc<Graph>,
        otherwise: Arc<Graph>,
    },
}

impl Op {
    /// Its name, for messages and drawings.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Unary(_) => "Unary",
            Self::Binary(_) => "Binary",
            Self::Where => "Where",
            Self::Clip => "Clip",
            Self::Cast { .. } => "Cast",
            Self::CastLike => "CastLike",
            Self::Identity => "Identity",
            Self::Reshape { .. } => "Reshape",
            Self::Flatten { .. } => "Flatten",
            Self::Squeeze => "Squeeze",
            Self::Unsqueeze => "Unsqueeze",
            Self::Transpose { .. } => "Transpose",
            Self::Concat { .. } => "Concat",
            Self::Split { .. } => "Split",
            Self::Slice => "Slice",
            Self::Gather { .. } => "Gather",
            Self::GatherElements { .. } => "GatherElements",
            Self::GatherNd { .. } => "GatherND",
            Self::ScatterElements { .. } => "ScatterElements",
            Self::ScatterNd { .. } => "ScatterND",
            Self::Expand => "Expand",
            Self::Tile => "Tile",
            Self::Pad { .. } => "Pad",
            Self::Blocks { .. } => "DepthToSpace",
            Self::Trilu { .. } => "Trilu",
            Self::Shape { .. } => "Shape",
            Self::Size => "Size",
            Self::ConstantOfShape { .. } => "ConstantOfShape",
            Self::Range => "Range",
            Self::OneHot { .. } => "OneHot",
            Self::EyeLike { .. } => "EyeLike",
            Self::NonZero => "NonZero",
            Self::Compress { .. } => "Compress",
            Self::Reduce { .. } => "Reduce",
            Self::ArgExtreme { .. } => "ArgMax",
            Self::CumSum { .. } => "CumSum",
            Self::TopK { .. } => "TopK",
            Self::MatMul => "MatMul",
            Self::Gemm(_) => "Gemm",
            Self::Einsum { .. } => "Einsum",
            Self::Conv { .. } => "Conv",
            Self::ConvTranspose(_) => "ConvTranspose",
            Self::Pool { .. } => "Pool",
            Self::GlobalPool { .. } => "GlobalPool",
            Self::Softmax { .. } => "Softmax",
            Self::LayerNorm { .. } => "LayerNormalization",
            Self::RmsNorm { .. } => "RMSNormalization",
            Self::BatchNorm { .. } => "BatchNormalization",
            Self::GroupNorm { .. } => "GroupNormalization",
            Self::MeanVarianceNorm { .. } => "MeanVarianceNormalization",
            Self::Lrn { .. } => "LRN",
            Self::LpNorm { .. } => "LpNormalization",
            Self::Quantize { .. } => "QuantizeLinear",
            Self::Dequantize { .. } => "DequantizeLinear",
            Self::DynamicQuantize => "DynamicQuantizeLinear",
            Self::MatMulInteger => "MatMulInteger",
            Self::ConvInteger { .. } => "ConvInteger",
            Self::QLinearConv { .. } => "QLinearConv",
            Self::QLinearMatMul => "QLinearMatMul",
            Self::Rnn(_) => "RNN",
            Self::Resize(_) => "Resize",
            Self::Linear(_) => "Linear",
            Self::ConvImage(_) => "Conv NHWC",
            Self::QConv(_) => "QConv",
            Self::WidenImage { .. } => "Widen NHWC",
            Self::Table(_) => "Table",
            Self::PoolImage(_) => "Pool NHWC",
            Self::Dropout => "Dropout",
            Self::Mask => "Mask",
            Self::If { .. } => "If",
        }
    }

    /// Whether the output is the first input's bytes under other dimensions.
    pub fn is_view(&self) -> bool {
        matches!(
            self,
            Self::Identity | Self::Reshape { .. } | Self::Flatten { .. } | Self::Squeeze | Self::Unsqueeze
        )
    }
}

/// The outputs of `op` for these inputs.
///
/// # Errors
/// [`OpError`] where the inputs do not fit, or [`OpError::Dynamic`] where shapes depend on data that is not
/// known.
pub fn infer(op: &Op, ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    for fact in ins.0.iter().flatten() {
        if fact.shape.len() > fact::RANK_MAX {
            return Err(OpError::Unsupported(format!("rank {}", fact.shape.len())));
        }
    }
    match op {
        Op::Unary(unary) => elementwise::infer_unary(*unary, ins),
        Op::Binary(binary) => elementwise::infer_binary(*binary, ins),
        Op::Where => elementwise::infer_where(ins),
        Op::Clip | Op::Trilu { .. } | Op::CumSum { .. } | Op::Identity => indexing::infer_same(ins),
        Op::Cast { to } => convert::infer(*to, ins),
        Op::CastLike => convert::infer(ins.need(1)?.dtype, ins),
        Op::Reshape { allow_zero } => view::infer_reshape(ins, *allow_zero),
        Op::Flatten { axis } => view::infer_flatten(ins, *axis),
        Op::Squeeze => view::infer_squeeze(ins),
        Op::Unsqueeze => view::infer_unsqueeze(ins),
        Op::Transpose { perm } => movement::infer_transpose(ins, perm),
        Op::Concat { axis } => movement::infer_concat(ins, *axis),
        Op::Split { axis, part, parts } => movement::infer_split(ins, *axis, *part, *parts),
        Op::Slice => movement::infer_slice(ins),
        Op::Gather { axis } => indexing::infer_gather(ins, *axis),
        Op::GatherElements { axis } => indexing::infer_gather_elements(ins, *axis),
        Op::GatherNd { batch_dims } => indexing::infer_gather_nd(ins, *batch_dims),
        Op::ScatterElements { axis, .. } => indexing::infer_scatter_elements(ins, *axis),
        Op::ScatterNd { .. } => indexing::infer_scatter_nd(ins),
        Op::Expand => movement::infer_expand(ins),
        Op::Tile => movement::infer_tile(ins),
        Op::Pad { .. } => movement::infer_pad(ins),
        Op::Blocks { blocks, block } => movement::infer_blocks(ins, *blocks, *block),
        Op::Shape { start, end } => view::infer_shape(ins, *start, *end),
        Op::Size => Ok(vec![Out::new(DType::I64, [])]),
        Op::ConstantOfShape { value } => view::infer_constant_of_shape(ins, value),
        Op::Range => view::infer_range(ins),
        Op::OneHot { axis } => indexing::infer_one_hot(ins, *axis),
        Op::EyeLike { dtype, .. } => indexing::infer_eye(ins, *dtype),
        Op::NonZero => indexing::infer_non_zero(ins),
        Op::Compress { axis } => indexing::infer_compress(ins, *axis),
        Op::Reduce { keep, noop, .. } => reduce::infer(ins, *keep, *noop),
        Op::ArgExtreme { axis, keep, .. } => reduce::infer_arg(ins, *axis, *keep),
        Op::TopK { axis, .. } => reduce::infer_top_k(ins, *axis),
        Op::MatMul => linear::infer_matmul(ins),
        Op::Gemm(gemm) => linear::infer_gemm(ins, *gemm),
        Op::Einsum { equation } => einsum::infer(ins, equation),
        Op::Conv { window, group } => conv::infer(ins, window, *group),
        Op::ConvTranspose(attributes) => conv::infer_transposed(ins, attributes),
        Op::Pool { window, pool } => pool::infer(ins, window, *pool),
        Op::GlobalPool { .. } => pool::infer_global(ins),
        Op::Softmax { .. }
        | Op::RmsNorm { .. }
        | Op::GroupNorm { .. }
        | Op::MeanVarianceNorm { .. }
        | Op::Lrn { .. }
        | Op::LpNorm { .. } => norm::infer_same(ins),
        Op::LayerNorm { axis, .. } => norm::infer_layer(ins, *axis),
        Op::BatchNorm { training, .. } => norm::infer_batch(ins, *training),
        Op::Quantize { scales, to } => quant::infer_quantize(ins, *scales, *to),
        Op::Dequantize { scales } => quant::infer_dequantize(ins, *scales),
        Op::DynamicQuantize => quant::infer_dynamic(ins),
        Op::MatMulInteger => integer::infer_matmul_integer(ins),
        Op::ConvInteger { window, group } => integer::infer_conv_integer(ins, window, *group),
        Op::QLinearConv { window, group } => integer::infer_qlinear_conv(ins, window, *group),
        Op::QLinearMatMul => integer::infer_qlinear_matmul(ins),
        Op::Rnn(rnn) => rnn::infer(ins, rnn),
        Op::Resize(resize) => resize::infer(ins, resize),
        Op::Mask => Ok(vec![Out::new(DType::Bool, ins.need(0)?.shape)]),
        Op::Linear(linear) => matrix::infer(ins, *linear),
        Op::ConvImage(conv) => image::infer_conv(ins, conv),
        Op::QConv(conv) => qimage::infer(ins, conv),
        Op::WidenImage { channels } => qimage::infer_widen(ins, *channels),
        Op::Table(table) => qimage::infer_table(ins, table),
        Op::PoolImage(pool) => image::infer_pool(ins, pool),
        Op::Dropout => view::infer_dropout(ins),
        // The branch is data; the interpreter runs it.
        Op::If { .. } => Err(OpError::Dynamic(0)),
    }
}

/// What kernels are chosen for. Results do not depend on it.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The kernels of an instruction set.
    pub kernels: &'static Kernels,
    /// What weights count against that are laid out for them.
    pub packing: &'a Arc<Packing>,
}

/// The kernel of `op` for these inputs and the outputs that [`infer`] gave.
///
/// # Errors
/// [`OpError`] where there is no kernel for these types.
pub fn lower(op: &Op, ins: Facts<'_>, outs: &[Out], target: Target<'_>) -> Result<Lowered, OpError> {
    let out = &outs[0];
    match op {
        Op::Unary(unary) => elementwise::lower_unary(*unary, ins, target),
        Op::Binary(binary) => elementwise::lower_binary(*binary, ins, out, target),
        Op::Where => elementwise::lower_where(ins, out),
        Op::Clip => elementwise::lower_clip(ins),
        Op::Cast { to } => convert::lower(*to, ins, target),
        Op::CastLike => convert::lower(out.dtype, ins, target),
        Op::Identity | Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze | Op::Unsqueeze => {
            Ok(convert::copy())
        }
        Op::Transpose { perm } => movement::lower_transpose(ins, perm, out),
        Op::Concat { axis } => movement::lower_concat(ins, *axis, out),
        Op::Split { axis, part, parts } => movement::lower_split(ins, *axis, *part, *parts, out),
        Op::Slice => movement::lower_slice(ins, out),
        Op::Gather { axis } => indexing::lower_gather(ins, *axis, target),
        Op::GatherElements { axis } => indexing::lower_gather_elements(ins, *axis),
        Op::GatherNd { batch_dims } => indexing::lower_gather_nd(ins, *batch_dims),
        Op::ScatterElements { axis, reduction } => indexing::lower_scatter_elements(ins, *axis, *reduction),
        Op::ScatterNd { reduction } => indexing::lower_scatter_nd(ins, *reduction),
        Op::Expand => movement::lower_expand(ins, out),
        Op::Tile => movement::lower_tile(ins, out),
        Op::Pad { mode } => movement::lower_pad(ins, *mode, out),
        Op::Blocks { blocks, block } => movement::lower_blocks(ins, *blocks, *block, out),
        Op::Trilu { upper } => movement::lower_trilu(ins, *upper),
        Op::Shape { start, end } => view::lower_shape(ins, *start, *end),
        Op::Size => view::lower_size(ins),
        Op::ConstantOfShape { value } => Ok(view::lower_constant_of_shape(value)),
        Op::Range => view::lower_range(ins),
        Op::OneHot { axis } => indexing::lower_one_hot(ins, *axis, out),
        Op::EyeLike { k, .. } => indexing::lower_eye(*k, out),
        Op::NonZero => indexing::lower_non_zero(ins),
        Op::Compress { axis } => indexing::lower_compress(ins, *axis),
        Op::Reduce { kind, noop, .. } => reduce::lower(*kind, ins, *noop),
        Op::ArgExtreme { axis, max, last, .. } => reduce::lower_arg(ins, *axis, *max, *last),
        Op::CumSum { exclusive, reverse } => reduce::lower_cum_sum(ins, *exclusive, *reverse),
        Op::TopK { axis, largest } => reduce::lower_top_k(ins, *axis, *largest, out),
        Op::MatMul if out.dtype == DType::F32 => matrix::lower(ins, matrix::Linear::PLAIN, target),
        Op::MatMul => linear::lower_matmul(ins),
        Op::Gemm(gemm) => linear::lower_gemm(ins, *gemm),
        Op::Einsum { equation } => einsum::lower(ins, equation),
        Op::Conv { window, group } => conv::lower(ins, window, *group),
        Op::ConvTranspose(attributes) => conv::lower_transposed(ins, attributes),
        Op::Pool { window, pool } => pool::lower(ins, window, *pool),
        Op::GlobalPool { max } => pool::lower_global(ins, *max),
        Op::Softmax { kind, axis, flat } => norm::lower_softmax(ins, *kind, *axis, *flat, target),
        Op::LayerNorm { axis, epsilon } => norm::lower_layer(ins, *axis, *epsilon, false, target),
        Op::RmsNorm { axis, epsilon } => norm::lower_layer(ins, *axis, *epsilon, true, target),
        Op::BatchNorm { epsilon, momentum, training } => {
            norm::lower_batch(ins, *epsilon, *momentum, *training)
        }
        Op::GroupNorm { groups, epsilon } => norm::lower_group(ins, *groups, *epsilon),
        Op::MeanVarianceNorm { axes } => norm::lower_mean_variance(ins, axes),
        Op::Lrn { alpha, beta, bias, size } => norm::lower_lrn(ins, *alpha, *beta, *bias, *size),
        Op::LpNorm { axis, p } => norm::lower_lp(ins, *axis, *p),
        Op::Quantize { scales, .. } => quant::lower_quantize(ins, *scales, out, target),
        Op::Dequantize { scales } => quant::lower_dequantize(ins, *scales, target),
        Op::DynamicQuantize => Ok(quant::lower_dynamic()),
        Op::MatMulInteger => integer::lower_matmul_integer(ins, target),
        Op::ConvInteger { window, group } => integer::lower_conv_integer(ins, window, *group, target),
        Op::QLinearConv { window, group } => integer::lower_qlinear_conv(ins, window, *group, target),
        Op::QLinearMatMul => integer::lower_qlinear_matmul(ins, target),
        Op::Rnn(rnn) => match (lstm::lower(ins, rnn, target)?, gru::lower(ins, rnn, target)?) {
            (Some(lowered), _) | (None, Some(lowered)) => Ok(lowered),
            (None, None) => rnn::lower(ins, rnn),
        },
        Op::Resize(resize) => resize::lower(ins, resize),
        Op::Linear(linear) => matrix::lower(ins, *linear, target),
        Op::ConvImage(conv) => image::lower_conv(ins, conv, None, target),
        Op::QConv(conv) => qimage::lower(ins, conv, None, target),
        Op::WidenImage { channels } => qimage::lower_widen(ins, *channels),
        Op::Table(table) => qimage::lower_table(ins, table, None, target),
        Op::PoolImage(pool) => image::lower_pool(ins, pool, None, target),
        Op::Dropout => Ok(Lowered::new("copy", |io| {
            let x = io.bytes(0);
            io.take_bytes(0).copy_from_slice(x);
            io.take_bytes(1).fill(1);
            Ok(())
        })),
        Op::Mask => Ok(Lowered::new("mask", |io| {
            io.take_bytes(0).fill(1);
            Ok(())
        })),
        Op::If { .. } => Err(OpError::Dynamic(0)),
    }
}

/// The kernel of an operator that can write its rows apart, `stride` elements from one to the next; `None`
/// for operators that cannot.
///
/// # Errors
/// As [`lower`].
pub fn lower_strided(
    op: &Op,
    ins: Facts<'_>,
    stride: usize,
    target: Target<'_>,
) -> Result<Option<Lowered>, OpError> {
    match op {
        Op::ConvImage(conv) => image::lower_conv(ins, conv, Some(stride), target).map(Some),
        // In NCHW it is the interpreter's, and turned as a whole.
        Op::QConv(conv) if conv.nhwc => qimage::lower(ins, conv, Some(stride), target).map(Some),
        Op::PoolImage(pool) => image::lower_pool(ins, pool, Some(stride), target).map(Some),
        Op::Table(table) => qimage::lower_table(ins, table, Some(stride), target).map(Some),
        _ => Ok(None),
    }
}
