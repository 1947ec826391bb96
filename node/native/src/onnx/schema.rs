//! Which versions of which operators the importer knows.
//!
//! A model names an opset; an operator's version is the newest that is not newer than the opset. A version
//! that changed meaning in a way that is not translated is refused; an opset number never is. Beyond the last
//! opset that is known here, an operator keeps its last version.

/// What the table says of an operator.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The importer knows this version.
    Known(i64),
    /// The operator exists, but not in this version here.
    Refused(i64),
    /// The operator came after the model's opset.
    TooNew(i64),
    /// No such operator here.
    Missing,
}

/// The version of operator `op` of the ONNX domain in this opset.
pub fn version(op: &str, opset: i64) -> Version {
    let Ok(at) = OPERATORS.binary_search_by_key(&op, |(name, _)| name) else { return Version::Missing };
    let versions = OPERATORS[at].1;
    match versions.iter().rev().find(|version| version.abs() <= opset) {
        Some(version) if *version > 0 => Version::Known(*version),
        Some(version) => Version::Refused(-version),
        None => Version::TooNew(versions[0].abs()),
    }
}

/// How many inputs an operator takes at most, in any version. An input beyond is no part of its meaning, but
/// would be taken for an operand that a pass put there.
pub fn inputs_max(op: &str) -> usize {
    match op {
        "Concat" | "Einsum" | "Max" | "Mean" | "Min" | "Sum" => usize::MAX,
        "QLinearConv" => 9,
        "LSTM" | "QLinearMatMul" => 8,
        "GRU" | "RNN" => 6,
        "BatchNormalization" | "Slice" => 5,
        "ConvInteger" | "MatMulInteger" | "Pad" | "Resize" => 4,
        "Clip"
        | "Conv"
        | "ConvTranspose"
        | "DequantizeLinear"
        | "Dropout"
        | "Gemm"
        | "GroupNormalization"
        | "InstanceNormalization"
        | "LayerNormalization"
        | "OneHot"
        | "QuantizeLinear"
        | "Range"
        | "Scatter"
        | "ScatterElements"
        | "ScatterND"
        | "Where" => 3,
        "Add" | "And" | "BitShift" | "BitwiseAnd" | "BitwiseOr" | "BitwiseXor" | "CastLike" | "Compress"
        | "CumSum" | "Div" | "Equal" | "Expand" | "Gather" | "GatherElements" | "GatherND" | "Greater"
        | "GreaterOrEqual" | "Less" | "LessOrEqual" | "MatMul" | "Mod" | "Mul" | "Or" | "PRelu" | "Pow"
        | "RMSNormalization" | "Reshape" | "Split" | "Squeeze" | "Sub" | "Tile" | "TopK" | "Trilu"
        | "Unsqueeze" | "Upsample" | "Xor" => 2,
        "Constant" => 0,
        _ if op.starts_with("Reduce") => 2,
        _ => 1,
    }
}

/// Operators by name with the opsets at which they changed; a negative one is not translated (old forms with
/// in-place inputs, and deprecations).
const OPERATORS: &[(&str, &[i64])] = &[
    ("Abs", &[1, 6, 13]),
    ("Acos", &[7, 22]),
    ("Acosh", &[9, 22]),
    ("Add", &[1, 6, 7, 13, 14]),
    ("And", &[1, 7]),
    ("ArgMax", &[1, 11, 12, 13]),
    ("ArgMin", &[1, 11, 12, 13]),
    ("Asin", &[7, 22]),
    ("Asinh", &[9, 22]),
    ("Atan", &[7, 22]),
    ("Atanh", &[9, 22]),
    ("AveragePool", &[1, 7, 10, 11, 19, 22]),
    ("BatchNormalization", &[1, 6, 7, 9, 14, 15]),
    ("BitShift", &[11]),
    ("BitwiseAnd", &[18]),
    ("BitwiseNot", &[18]),
    ("BitwiseOr", &[18]),
    ("BitwiseXor", &[18]),
    ("Cast", &[1, 6, 9, 13, 19, 21, 23, 24, 25]),
    ("CastLike", &[15, 19, 21, 23, 24, 25]),
    ("Ceil", &[1, 6, 13]),
    ("Celu", &[12]),
    ("Clip", &[1, 6, 11, 12, 13]),
    ("Compress", &[9, 11]),
    ("Concat", &[1, 4, 11, 13]),
    ("Constant", &[1, 9, 11, 12, 13, 19, 21, 23, 24, 25]),
    ("ConstantOfShape", &[9, 20, 21, 23, 24, 25]),
    ("Conv", &[1, 11, 22]),
    ("ConvInteger", &[10]),
    ("ConvTranspose", &[1, 11, 22]),
    ("Cos", &[7, 22]),
    ("Cosh", &[9, 22]),
    ("CumSum", &[11, 14]),
    ("DepthToSpace", &[1, 11, 13]),
    ("DequantizeLinear", &[10, 13, 19, 21, 23, 24, 25]),
    ("Div", &[1, 6, 7, 13, 14]),
    ("Dropout", &[1, 6, 7, 10, 12, 13, 22]),
    ("DynamicQuantizeLinear", &[11]),
    ("Einsum", &[12]),
    ("Elu", &[1, 6, 22]),
    ("Equal", &[1, 7, 11, 13, 19]),
    ("Erf", &[9, 13]),
    ("Exp", &[1, 6, 13]),
    ("Expand", &[8, 13]),
    ("EyeLike", &[9, 22]),
    ("Flatten", &[1, 9, 11, 13, 21, 23, 24, 25]),
    ("Floor", &[1, 6, 13]),
    ("GRU", &[-1, 3, 7, 14, 22]),
    ("Gather", &[1, 11, 13]),
    ("GatherElements", &[11, 13]),
    ("GatherND", &[11, 12, 13]),
    ("Gelu", &[20]),
    ("Gemm", &[1, 6, 7, 9, 11, 13]),
    ("GlobalAveragePool", &[1, 22]),
    ("GlobalMaxPool", &[1, 22]),
    ("Greater", &[1, 7, 9, 13]),
    ("GreaterOrEqual", &[12, 16]),
    ("GroupNormalization", &[-18, 21]),
    ("HardSigmoid", &[1, 6, 22]),
    ("HardSwish", &[14, 22]),
    ("Hardmax", &[1, 11, 13]),
    ("Identity", &[1, 13, 14, 16, 19, 21, 23, 24, 25]),
    ("If", &[1, 11, 13, 16, 19, 21, 23, 24, 25]),
    ("InstanceNormalization", &[1, 6, 22]),
    ("IsInf", &[10, 20]),
    ("IsNaN", &[9, 13, 20]),
    ("LRN", &[1, 13]),
    ("LSTM", &[1, 7, 14, 22]),
    ("LayerNormalization", &[17]),
    ("LeakyRelu", &[1, 6, 16]),
    ("Less", &[1, 7, 9, 13]),
    ("LessOrEqual", &[12, 16]),
    ("Log", &[1, 6, 13]),
    ("LogSoftmax", &[1, 11, 13]),
    ("LpNormalization", &[1, 22]),
    ("LpPool", &[-1, 2, 11, 18, 22]),
    ("MatMul", &[1, 9, 13]),
    ("MatMulInteger", &[10]),
    ("Max", &[1, 6, 8, 12, 13]),
    ("MaxPool", &[1, 8, 10, 11, 12, 22]),
    ("Mean", &[1, 6, 8, 13]),
    ("MeanVarianceNormalization", &[9, 13]),
    ("Min", &[1, 6, 8, 12, 13]),
    ("Mish", &[18, 22]),
    ("Mod", &[10, 13]),
    ("Mul", &[1, 6, 7, 13, 14]),
    ("Neg", &[1, 6, 13]),
    ("NonZero", &[9, 13]),
    ("Not", &[1]),
    ("OneHot", &[9, 11]),
    ("Or", &[1, 7]),
    ("PRelu", &[1, 6, 7, 9, 16]),
    ("Pad", &[1, 2, 11, 13, 18, 19, 21, 23, 24, 25]),
    ("Pow", &[1, 7, 12, 13, 15]),
    ("QLinearConv", &[10]),
    ("QLinearMatMul", &[10, 21]),
    ("QuantizeLinear", &[10, 13, 19, 21, 23, 24, 25]),
    ("RMSNormalization", &[23]),
    ("RNN", &[1, 7, 14, 22]),
    ("Range", &[11]),
    ("Reciprocal", &[1, 6, 13]),
    ("ReduceL1", &[1, 11, 13, 18]),
    ("ReduceL2", &[1, 11, 13, 18]),
    ("ReduceLogSum", &[1, 11, 13, 18]),
    ("ReduceLogSumExp", &[1, 11, 13, 18]),
    ("ReduceMax", &[1, 11, 12, 13, 18, 20]),
    ("ReduceMean", &[1, 11, 13, 18]),
    ("ReduceMin", &[1, 11, 12, 13, 18, 20]),
    ("ReduceProd", &[1, 11, 13, 18]),
    ("ReduceSum", &[1, 11, 13]),
    ("ReduceSumSquare", &[1, 11, 13, 18]),
    ("Relu", &[1, 6, 13, 14]),
    ("Reshape", &[-1, 5, 13, 14, 19, 21, 23, 24, 25]),
    ("Resize", &[10, 11, 13, 18, 19]),
    ("Round", &[11, 22]),
    ("Scatter", &[9, -11]),
    ("ScatterElements", &[11, 13, 16, 18]),
    ("ScatterND", &[11, 13, 16, 18]),
    ("Selu", &[1, 6, 22]),
    ("Shape", &[1, 13, 15, 19, 21, 23, 24, 25]),
    ("Shrink", &[9]),
    ("Sigmoid", &[1, 6, 13]),
    ("Sign", &[9, 13]),
    ("Sin", &[7, 22]),
    ("Sinh", &[9, 22]),
    ("Size", &[1, 13, 19, 21, 23, 24, 25]),
    ("Slice", &[1, 10, 11, 13]),
    ("Softmax", &[1, 11, 13]),
    ("Softplus", &[1, 22]),
    ("Softsign", &[1, 22]),
    ("SpaceToDepth", &[1, 13]),
    ("Split", &[1, 2, 11, 13, 18]),
    ("Sqrt", &[1, 6, 13]),
    ("Squeeze", &[1, 11, 13, 21, 23, 24, 25]),
    ("Sub", &[1, 6, 7, 13, 14]),
    ("Sum", &[1, 6, 8, 13]),
    ("Swish", &[24]),
    ("Tan", &[7, 22]),
    ("Tanh", &[1, 6, 13]),
    ("ThresholdedRelu", &[10, 22]),
    ("Tile", &[-1, 6, 13]),
    ("TopK", &[1, 10, 11, 24]),
    ("Transpose", &[1, 13, 21, 23, 24, 25]),
    ("Trilu", &[14]),
    ("Unsqueeze", &[1, 11, 13, 21, 23, 24, 25]),
    ("Upsample", &[-1, 7, 9, -10]),
    ("Where", &[9, 16]),
    ("Xor", &[1, 7]),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_sorted_and_ascending() {
        assert!(OPERATORS.is_sorted_by_key(|(name, _)| *name));
        assert!(OPERATORS.iter().all(|(_, versions)| versions.is_sorted_by_key(|version| version.abs())));
    }

    #[test]
    fn a_version_is_the_newest_not_after_the_opset() {
        assert_eq!(version("Add", 12), Version::Known(7));
        assert_eq!(version("Add", 99), Version::Known(14));
        assert_eq!(version("Reshape", 4), Version::Refused(1));
        assert_eq!(version("Gelu", 13), Version::TooNew(20));
        assert_eq!(version("Loop", 13), Version::Missing);
    }
}
