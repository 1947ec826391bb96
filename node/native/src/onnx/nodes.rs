//! Each operator's translation from its ONNX version to [`Op`].
//!
//! Older forms become the newest: attributes that turned into inputs become constant inputs, operators over
//! any number of inputs become chains of two, splits become one node per part.

use super::attributes::{Attributes, Refusal};
use super::external;
use super::import::Importer;
use super::proto::NodeProto;
use super::windows;
use crate::error::ImportError;
use crate::graph::ir::ValueId;
use crate::ops::Op;
use crate::ops::elementwise::{Binary, Unary};
use crate::ops::indexing::Reduction;
use crate::ops::linear::Gemm;
use crate::ops::movement::{Blocks, PadMode};
use crate::ops::norm::Softmax;
use crate::ops::pool::Pool;
use crate::ops::quant::Scales;
use crate::ops::reduce::Reduce;
use crate::tensor::{DType, Tensor};

/// A node under translation.
pub struct Context<'a, 'b> {
    /// Where constants and nodes go.
    pub importer: &'a mut Importer<'b>,
    /// The node.
    pub node: &'a NodeProto,
    /// Its operator's version.
    pub since: i64,
    /// Its name.
    pub name: &'a str,
    /// Its inputs.
    pub inputs: Vec<Option<ValueId>>,
}

type Values = Result<Vec<ValueId>, Refusal>;

impl<'a> Context<'a, '_> {
    /// The node's attributes.
    pub fn attributes(&self) -> Attributes<'a> {
        Attributes(self.node)
    }

    /// A required input.
    pub fn input(&self, index: usize) -> Result<ValueId, Refusal> {
        let input = self.inputs.get(index).copied().flatten();
        input.ok_or_else(|| Refusal::malformed(format!("input {index} is missing")))
    }

    /// The node as one operator over its inputs.
    pub fn one(&mut self, op: Op) -> Values {
        self.input(0)?;
        let inputs = self.inputs.clone();
        Ok(vec![self.importer.emit(op, &inputs, self.name)])
    }

    /// The node as one operator with several outputs over its inputs.
    pub fn many(&mut self, op: Op, count: usize) -> Values {
        self.input(0)?;
        let inputs = self.inputs.clone();
        Ok(self.importer.emit_many(op, &inputs, count, self.name))
    }

    /// An operator over given inputs.
    pub fn emit(&mut self, op: Op, inputs: &[ValueId]) -> ValueId {
        let inputs: Vec<_> = inputs.iter().copied().map(Some).collect();
        self.importer.emit(op, &inputs, self.name)
    }

    /// A constant list of integers.
    pub fn ints(&mut self, values: &[i64]) -> ValueId {
        self.importer.constant(Tensor::of(&[values.len()], values))
    }

    /// Puts a list that older versions have as an attribute where newer ones have an input.
    pub fn attribute_as_input(&mut self, name: &str, index: usize) {
        if self.attributes().get(name).is_some() {
            let values = self.attributes().ints(name).to_vec();
            let id = self.ints(&values);
            self.put(index, id);
        }
    }

    /// Sets an input.
    fn put(&mut self, index: usize, id: ValueId) {
        if self.inputs.len() <= index {
            self.inputs.resize(index + 1, None);
        }
        self.inputs[index] = Some(id);
    }

    /// A type that an attribute names.
    fn dtype(&self, name: &str) -> Result<Option<DType>, Refusal> {
        match self.attributes().get(name) {
            None => Ok(None),
            Some(attribute) => i32::try_from(attribute.i)
                .ok()
                .and_then(DType::from_onnx)
                .map(Some)
                .ok_or_else(|| Refusal::unsupported(format!("element type {}", attribute.i))),
        }
    }
}

/// Translates a node; gives the values of its outputs.
///
/// # Errors
/// [`Refusal`].
pub fn translate(cx: &mut Context<'_, '_>) -> Values {
    let a = cx.attributes();
    if let Some(unary) = unary(cx.node.op_type.as_str(), a)? {
        return cx.one(Op::Unary(unary));
    }
    if let Some(binary) = binary(cx.node.op_type.as_str(), a)? {
        return binary_node(cx, binary);
    }
    if let Some(kind) = reduction(cx.node.op_type.as_str()) {
        cx.attribute_as_input("axes", 1);
        let noop = a.flag("noop_with_empty_axes");
        return cx.one(Op::Reduce { kind, keep: a.int("keepdims", 1) != 0, noop });
    }
    match cx.node.op_type.as_str() {
        "Max" => chain(cx, Binary::Max),
        "Min" => chain(cx, Binary::Min),
        "Sum" => chain(cx, Binary::Add),
        "Mean" => {
            let count = cx.inputs.len();
            let sum = chain(cx, Binary::Add)?[0];
            let count = cx.importer.constant(Tensor::of(&[], &[count as f32]));
            Ok(vec![cx.emit(Op::Binary(Binary::Div), &[sum, count])])
        }
        "Where" => cx.one(Op::Where),
        "Clip" => {
            if cx.since < 11 {
                for (index, name) in [(1, "min"), (2, "max")] {
                    if let Some(attribute) = a.get(name) {
                        let id = cx.importer.constant(Tensor::of(&[], &[attribute.f]));
                        cx.put(index, id);
                    }
                }
            }
            cx.one(Op::Clip)
        }
        "Cast" => {
            let to = if cx.since < 6 { old_cast(a.text("to", "")?) } else { cx.dtype("to")? };
            cast(cx, to.ok_or_else(|| Refusal::malformed("no type to cast to"))?)
        }
        "CastLike" => cx.one(Op::CastLike),
        "Identity" => cx.one(Op::Identity),
        "Dropout" => dropout(cx),
        "Constant" => constant(cx),
        "ConstantOfShape" => {
            let value = match a.tensor("value") {
                Some(proto) => external::tensor(proto, cx.importer.files)
                    .map_err(|e| Refusal::malformed(e.to_string()))?,
                None => Tensor::of(&[1], &[0.0_f32]),
            };
            if value.len() != 1 {
                return Err(Refusal::malformed("the value of ConstantOfShape is one element"));
            }
            cx.one(Op::ConstantOfShape { value: value.computed().aligned() })
        }
        "Reshape" => cx.one(Op::Reshape { allow_zero: a.flag("allowzero") }),
        "Flatten" => cx.one(Op::Flatten { axis: a.int("axis", 1) }),
        "Squeeze" => {
            cx.attribute_as_input("axes", 1);
            cx.one(Op::Squeeze)
        }
        "Unsqueeze" => {
            cx.attribute_as_input("axes", 1);
            cx.one(Op::Unsqueeze)
        }
        "Transpose" => cx.one(Op::Transpose { perm: a.ints("perm").to_vec() }),
        "Concat" => cx.one(Op::Concat { axis: a.int("axis", 1) }),
        "Split" => split(cx),
        "Slice" => {
            if cx.since < 10 {
                cx.attribute_as_input("starts", 1);
                cx.attribute_as_input("ends", 2);
                cx.attribute_as_input("axes", 3);
            }
            cx.one(Op::Slice)
        }
        "Gather" => cx.one(Op::Gather { axis: a.int("axis", 0) }),
        "GatherElements" => cx.one(Op::GatherElements { axis: a.int("axis", 0) }),
        "GatherND" => cx.one(Op::GatherNd { batch_dims: a.size("batch_dims", 0)? }),
        "Scatter" | "ScatterElements" => {
            let reduction = scatter_reduction(a.text("reduction", "none")?)?;
            cx.one(Op::ScatterElements { axis: a.int("axis", 0), reduction })
        }
        "ScatterND" => {
            let reduction = scatter_reduction(a.text("reduction", "none")?)?;
            cx.one(Op::ScatterNd { reduction })
        }
        "Expand" => cx.one(Op::Expand),
        "Tile" => cx.one(Op::Tile),
        "Pad" => pad(cx),
        "DepthToSpace" => {
            let blocks = match a.text("mode", "DCR")? {
                "DCR" => Blocks::DepthColumnRow,
                "CRD" => Blocks::ColumnRowDepth,
                other => return Err(Refusal::malformed(format!("mode {other}"))),
            };
            cx.one(Op::Blocks { blocks, block: a.size("blocksize", 0)? })
        }
        "SpaceToDepth" => cx.one(Op::Blocks { blocks: Blocks::SpaceToDepth, block: a.size("blocksize", 0)? }),
        "Trilu" => cx.one(Op::Trilu { upper: a.int("upper", 1) != 0 }),
        "Shape" => cx.one(Op::Shape { start: a.int("start", 0), end: a.get("end").map(|end| end.i) }),
        "Size" => cx.one(Op::Size),
        "Range" => cx.one(Op::Range),
        "OneHot" => cx.one(Op::OneHot { axis: a.int("axis", -1) }),
        "EyeLike" => {
            let dtype = cx.dtype("dtype")?.map(DType::computed);
            cx.one(Op::EyeLike { dtype, k: a.int("k", 0) })
        }
        "NonZero" => cx.one(Op::NonZero),
        "Compress" => cx.one(Op::Compress { axis: a.get("axis").map(|axis| axis.i) }),
        "ArgMax" | "ArgMin" => cx.one(Op::ArgExtreme {
            axis: a.int("axis", 0),
            keep: a.int("keepdims", 1) != 0,
            max: cx.node.op_type == "ArgMax",
            last: a.flag("select_last_index"),
        }),
        "CumSum" => cx.one(Op::CumSum { exclusive: a.flag("exclusive"), reverse: a.flag("reverse") }),
        "TopK" => {
            if cx.since < 10 {
                let k = cx.ints(&[a.int("k", 0)]);
                cx.put(1, k);
            }
            cx.many(Op::TopK { axis: a.int("axis", -1), largest: a.int("largest", 1) != 0 }, 2)
        }
        "MatMul" => cx.one(Op::MatMul),
        "Gemm" => cx.one(Op::Gemm(Gemm {
            alpha: a.float("alpha", 1.0),
            beta: a.float("beta", 1.0),
            trans_a: a.flag("transA"),
            trans_b: a.flag("transB"),
        })),
        "Einsum" => {
            let equation = a.text("equation", "")?.to_owned();
            cx.one(Op::Einsum { equation })
        }
        "Conv" => cx.one(Op::Conv { window: windows::window(a)?, group: a.size("group", 1)? }),
        "ConvInteger" => cx.one(Op::ConvInteger { window: windows::window(a)?, group: a.size("group", 1)? }),
        "QLinearConv" => cx.one(Op::QLinearConv { window: windows::window(a)?, group: a.size("group", 1)? }),
        "ConvTranspose" => cx.one(Op::ConvTranspose(windows::transposed(a)?)),
        "MaxPool" => {
            let pool = Pool::Max { column_major: a.flag("storage_order") };
            cx.many(Op::Pool { window: windows::window(a)?, pool }, 2)
        }
        "AveragePool" => {
            let pool = Pool::Average { include_pad: a.flag("count_include_pad") };
            cx.one(Op::Pool { window: windows::window(a)?, pool })
        }
        "LpPool" => {
            let p = u32::try_from(a.int("p", 2)).map_err(|_| Refusal::malformed("p is negative"))?;
            cx.one(Op::Pool { window: windows::window(a)?, pool: Pool::Lp { p } })
        }
        "GlobalAveragePool" => cx.one(Op::GlobalPool { max: false }),
        "GlobalMaxPool" => cx.one(Op::GlobalPool { max: true }),
        "Softmax" => softmax(cx, Softmax::Plain),
        "LogSoftmax" => softmax(cx, Softmax::Log),
        "Hardmax" => softmax(cx, Softmax::Hard),
        "LayerNormalization" => {
            cx.many(Op::LayerNorm { axis: a.int("axis", -1), epsilon: a.float("epsilon", 1e-5) }, 3)
        }
        "RMSNormalization" => {
            cx.one(Op::RmsNorm { axis: a.int("axis", -1), epsilon: a.float("epsilon", 1e-5) })
        }
        "BatchNormalization" => batch_norm(cx),
        "InstanceNormalization" => cx.one(Op::GroupNorm { groups: None, epsilon: a.float("epsilon", 1e-5) }),
        "GroupNormalization" => {
            let groups = Some(a.size("num_groups", 0)?);
            cx.one(Op::GroupNorm { groups, epsilon: a.float("epsilon", 1e-5) })
        }
        "MeanVarianceNormalization" => {
            let axes = if a.get("axes").is_some() { a.ints("axes").to_vec() } else { vec![0, 2, 3] };
            cx.one(Op::MeanVarianceNorm { axes })
        }
        "LRN" => cx.one(Op::Lrn {
            alpha: a.float("alpha", 1e-4),
            beta: a.float("beta", 0.75),
            bias: a.float("bias", 1.0),
            size: a.size("size", 0)?,
        }),
        "LpNormalization" => cx.one(Op::LpNorm { axis: a.int("axis", -1), p: a.int("p", 2) }),
        "QuantizeLinear" => {
            let scales = Scales { axis: a.int("axis", 1), block: a.size("block_size", 0)? };
            // 0 stands for none.
            let named = cx.attributes().int("output_dtype", 0) != 0;
            let to = if named { cx.dtype("output_dtype")? } else { None };
            cx.one(Op::Quantize { scales, to })
        }
        "DequantizeLinear" => cx.one(Op::Dequantize {
            scales: Scales { axis: a.int("axis", 1), block: a.size("block_size", 0)? },
        }),
        "DynamicQuantizeLinear" => cx.many(Op::DynamicQuantize, 3),
        "MatMulInteger" => cx.one(Op::MatMulInteger),
        "QLinearMatMul" => cx.one(Op::QLinearMatMul),
        "LSTM" | "GRU" | "RNN" => {
            let rnn = windows::rnn(a, &cx.node.op_type)?;
            let outputs = if cx.node.op_type == "LSTM" { 3 } else { 2 };
            cx.many(Op::Rnn(rnn), outputs)
        }
        "Resize" | "Upsample" => resize(cx),
        other => Err(Refusal::unsupported(format!("no translation of {other}"))),
    }
}

/// Operators of one input without further ado.
fn unary(name: &str, a: Attributes<'_>) -> Result<Option<Unary>, Refusal> {
    Ok(Some(match name {
        "Abs" => Unary::Abs,
        "Neg" => Unary::Neg,
        "Ceil" => Unary::Ceil,
        "Floor" => Unary::Floor,
        "Round" => Unary::Round,
        "Sqrt" => Unary::Sqrt,
        "Reciprocal" => Unary::Reciprocal,
        "Exp" => Unary::Exp,
        "Log" => Unary::Log,
        "Erf" => Unary::Erf,
        "Sin" => Unary::Sin,
        "Cos" => Unary::Cos,
        "Tan" => Unary::Tan,
        "Asin" => Unary::Asin,
        "Acos" => Unary::Acos,
        "Atan" => Unary::Atan,
        "Sinh" => Unary::Sinh,
        "Cosh" => Unary::Cosh,
        "Tanh" => Unary::Tanh,
        "Asinh" => Unary::Asinh,
        "Acosh" => Unary::Acosh,
        "Atanh" => Unary::Atanh,
        "Sigmoid" => Unary::Sigmoid,
        "Relu" => Unary::Relu,
        "Softplus" => Unary::Softplus,
        "Softsign" => Unary::Softsign,
        "Sign" => Unary::Sign,
        "Not" => Unary::Not,
        "BitwiseNot" => Unary::BitwiseNot,
        "IsNaN" => Unary::IsNan,
        "HardSwish" => Unary::HardSwish,
        "Mish" => Unary::Mish,
        "IsInf" => Unary::IsInf {
            positive: a.int("detect_positive", 1) != 0,
            negative: a.int("detect_negative", 1) != 0,
        },
        "LeakyRelu" => Unary::LeakyRelu { alpha: a.float("alpha", 0.01) },
        "ThresholdedRelu" => Unary::ThresholdedRelu { alpha: a.float("alpha", 1.0) },
        "Elu" => Unary::Elu { alpha: a.float("alpha", 1.0) },
        "Celu" => Unary::Celu { alpha: a.float("alpha", 1.0) },
        "Selu" => Unary::Selu { alpha: a.float("alpha", 1.673_263_2), gamma: a.float("gamma", 1.050_701) },
        "HardSigmoid" => Unary::HardSigmoid { alpha: a.float("alpha", 0.2), beta: a.float("beta", 0.5) },
        "Shrink" => Unary::Shrink { lambda: a.float("lambd", 0.5), bias: a.float("bias", 0.0) },
        "Swish" => Unary::Swish { alpha: a.float("alpha", 1.0) },
        "Gelu" => match a.text("approximate", "none")? {
            "none" => Unary::Gelu { tanh: false },
            "tanh" => Unary::Gelu { tanh: true },
            other => return Err(Refusal::malformed(format!("approximate {other}"))),
        },
        _ => return Ok(None),
    }))
}

/// Operators of two inputs that broadcast.
fn binary(name: &str, a: Attributes<'_>) -> Result<Option<Binary>, Refusal> {
    Ok(Some(match name {
        "Add" => Binary::Add,
        "Sub" => Binary::Sub,
        "Mul" => Binary::Mul,
        "Div" => Binary::Div,
        "Pow" => Binary::Pow,
        "PRelu" => Binary::PRelu,
        "Mod" => Binary::Mod { fmod: a.flag("fmod") },
        "Equal" => Binary::Equal,
        "Greater" => Binary::Greater,
        "GreaterOrEqual" => Binary::GreaterOrEqual,
        "Less" => Binary::Less,
        "LessOrEqual" => Binary::LessOrEqual,
        "And" => Binary::And,
        "Or" => Binary::Or,
        "Xor" => Binary::Xor,
        "BitwiseAnd" => Binary::BitwiseAnd,
        "BitwiseOr" => Binary::BitwiseOr,
        "BitwiseXor" => Binary::BitwiseXor,
        "BitShift" => match a.text("direction", "")? {
            "LEFT" => Binary::BitShift { left: true },
            "RIGHT" => Binary::BitShift { left: false },
            other => return Err(Refusal::malformed(format!("direction {other}"))),
        },
        _ => return Ok(None),
    }))
}

fn reduction(name: &str) -> Option<Reduce> {
    Some(match name {
        "ReduceSum" => Reduce::Sum,
        "ReduceMean" => Reduce::Mean,
        "ReduceProd" => Reduce::Prod,
        "ReduceMin" => Reduce::Min,
        "ReduceMax" => Reduce::Max,
        "ReduceL1" => Reduce::L1,
        "ReduceL2" => Reduce::L2,
        "ReduceSumSquare" => Reduce::SumSquare,
        "ReduceLogSum" => Reduce::LogSum,
        "ReduceLogSumExp" => Reduce::LogSumExp,
        _ => return None,
    })
}

/// Before opset 7, the second operand starts at `axis` of the first; ones after it make that today's
/// broadcasting.
fn binary_node(cx: &mut Context<'_, '_>, binary: Binary) -> Values {
    let a = cx.attributes();
    if cx.since < 7 && a.flag("broadcast") && a.get("axis").is_some() {
        return Err(Refusal::unsupported(format!("version {} with an axis to broadcast from", cx.since)));
    }
    cx.input(1)?;
    cx.one(Op::Binary(binary))
}

/// An operator over any number of inputs as a chain.
fn chain(cx: &mut Context<'_, '_>, binary: Binary) -> Values {
    let mut result = cx.input(0)?;
    if cx.inputs.len() == 1 {
        return cx.one(Op::Identity);
    }
    for i in 1..cx.inputs.len() {
        let next = cx.input(i)?;
        result = cx.emit(Op::Binary(binary), &[result, next]);
    }
    Ok(vec![result])
}

/// The names of types before opset 6.
fn old_cast(name: &str) -> Option<DType> {
    Some(match name {
        "FLOAT" => DType::F32,
        "DOUBLE" => DType::F64,
        "FLOAT16" => DType::F16,
        "INT8" => DType::I8,
        "INT16" => DType::I16,
        "INT32" => DType::I32,
        "INT64" => DType::I64,
        "UINT8" => DType::U8,
        "UINT16" => DType::U16,
        "UINT32" => DType::U32,
        "UINT64" => DType::U64,
        "BOOL" => DType::Bool,
        _ => return None,
    })
}

/// A cast to half precision rounds and stays `f32`: that is how half precision is kept here.
fn cast(cx: &mut Context<'_, '_>, to: DType) -> Values {
    let cast = cx.one(Op::Cast { to: to.computed() })?;
    match to {
        DType::F16 => Ok(vec![cx.emit(Op::Unary(Unary::Halve { brain: false }), &cast)]),
        DType::BF16 => Ok(vec![cx.emit(Op::Unary(Unary::Halve { brain: true }), &cast)]),
        _ => Ok(cast),
    }
}

/// Outside training `Dropout` is the identity, with a mask of ones.
fn dropout(cx: &mut Context<'_, '_>) -> Values {
    let training = match cx.inputs.get(2).copied().flatten() {
        None => false,
        Some(id) => match cx.importer.graph.data(id).and_then(Tensor::ints) {
            Some(flag) => flag.iter().any(|flag| *flag != 0),
            // Known when it runs, and refused then unless the ratio is zero.
            None => {
                let inputs = cx.inputs.clone();
                return Ok(cx.importer.emit_many(Op::Dropout, &inputs, 2, cx.name));
            }
        },
    };
    if training {
        return Err(Refusal::unsupported("training mode"));
    }
    let x = cx.input(0)?;
    let mask = cx.node.output.get(1).is_some_and(|output| !output.is_empty());
    let result = cx.emit(Op::Identity, &[x]);
    // Before opset 10 the mask had the input's type, and no meaning outside training.
    Ok(if mask { vec![result, cx.emit(Op::Mask, &[x])] } else { vec![result] })
}

fn constant(cx: &mut Context<'_, '_>) -> Values {
    let a = cx.attributes();
    let tensor = if let Some(proto) = a.tensor("value") {
        external::tensor(proto, cx.importer.files).map_err(|error| match error {
            ImportError::Unsupported(_) => Refusal::unsupported(error.to_string()),
            error => Refusal::malformed(error.to_string()),
        })?
    } else if let Some(value) = a.get("value_float") {
        Tensor::of(&[], &[value.f])
    } else if let Some(value) = a.get("value_int") {
        Tensor::of(&[], &[value.i])
    } else if let Some(value) = a.get("value_floats") {
        Tensor::of(&[value.floats.len()], &value.floats)
    } else if let Some(value) = a.get("value_ints") {
        Tensor::of(&[value.ints.len()], &value.ints)
    } else {
        return Err(Refusal::unsupported("a constant that is text or sparse"));
    };
    Ok(vec![cx.importer.constant(tensor)])
}

fn split(cx: &mut Context<'_, '_>) -> Values {
    cx.attribute_as_input("split", 1);
    let a = cx.attributes();
    let parts = cx.node.output.len();
    let declared = a.int("num_outputs", parts as i64);
    if declared != parts as i64 {
        return Err(Refusal::malformed(format!("{declared} outputs are declared, {parts} named")));
    }
    let axis = a.int("axis", 0);
    let inputs = cx.inputs.clone();
    cx.input(0)?;
    Ok((0..parts).map(|part| cx.importer.emit(Op::Split { axis, part, parts }, &inputs, cx.name)).collect())
}

fn scatter_reduction(name: &str) -> Result<Reduction, Refusal> {
    Ok(match name {
        "none" => Reduction::Replace,
        "add" => Reduction::Add,
        "mul" => Reduction::Mul,
        "min" => Reduction::Min,
        "max" => Reduction::Max,
        other => return Err(Refusal::malformed(format!("reduction {other}"))),
    })
}

fn pad(cx: &mut Context<'_, '_>) -> Values {
    let a = cx.attributes();
    if cx.since < 11 {
        cx.attribute_as_input(if cx.since < 2 { "paddings" } else { "pads" }, 1);
        let value = cx.importer.constant(Tensor::of(&[], &[a.float("value", 0.0)]));
        cx.put(2, value);
    }
    let mode = match a.text("mode", "constant")? {
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        "reflect" => PadMode::Reflect,
        "wrap" => PadMode::Wrap,
        other => return Err(Refusal::malformed(format!("mode {other}"))),
    };
    cx.one(Op::Pad { mode })
}

fn softmax(cx: &mut Context<'_, '_>, kind: Softmax) -> Values {
    let flat = cx.since < 13;
    let axis = cx.attributes().int("axis", if flat { 1 } else { -1 });
    cx.one(Op::Softmax { kind, axis, flat })
}

fn batch_norm(cx: &mut Context<'_, '_>) -> Values {
    let a = cx.attributes();
    // Before opset 7 a flag said whether it is training; opsets 7 to 13 train when there are more outputs.
    let wanted = cx.node.output.iter().filter(|output| !output.is_empty()).count();
    let training = match cx.since {
        ..7 => a.int("is_test", 0) == 0 && wanted > 1,
        7..14 => wanted > 1,
        _ => a.flag("training_mode"),
    };
    if cx.since < 9 && a.int("spatial", 1) == 0 {
        return Err(Refusal::unsupported("statistics per element (spatial = 0)"));
    }
    if training && cx.since < 14 {
        return Err(Refusal::unsupported("training mode"));
    }
    let op =
        Op::BatchNorm { epsilon: a.float("epsilon", 1e-5), momentum: a.float("momentum", 0.9), training };
    cx.many(op, if training { 3 } else { 1 })
}

fn resize(cx: &mut Context<'_, '_>) -> Values {
    let upsample = cx.node.op_type == "Upsample";
    let resize = windows::resize(cx.attributes(), cx.since, upsample)?;
    if upsample && cx.since < 9 {
        let scales = cx.attributes().floats("scales").to_vec();
        let id = cx.importer.constant(Tensor::of(&[scales.len()], &scales));
        cx.put(1, id);
    }
    // Scales were the second input before regions came.
    if cx.since < 11 {
        cx.input(1)?;
        cx.inputs.insert(1, None);
    }
    cx.one(Op::Resize(resize))
}
