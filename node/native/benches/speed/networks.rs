//! ResNet-50 and MobileNetV2 with random weights from a seed: the real graphs, for speed and memory, without
//! a download.
//!
//! He et al., "Deep Residual Learning for Image Recognition" (2015), table 1, with the stride in the 3 × 3
//! convolution as exporters write it; Sandler et al., "MobileNetV2: Inverted Residuals and Linear
//! Bottlenecks" (2018), table 2. Batch normalisation is left in the graph for ResNet-50, and folded, as
//! PyTorch's exporter does, for MobileNetV2.

use bytes::Bytes;
use prost::Message;
use roost_native::DType;
use roost_native::onnx::proto::{
    AttributeProto, DimProto, DimValue, GraphProto, ModelProto, NodeProto, OperatorSetId, ShapeProto,
    TensorProto, TensorTypeProto, TypeProto, ValueInfoProto,
};

/// The networks, by name.
pub fn all() -> [(&'static str, Bytes); 2] {
    [("resnet50_seeded", resnet50()), ("mobilenet_v2_seeded", mobilenet_v2())]
}

/// ResNet-50 of `[N, 3, 224, 224]`: 25.6 M parameters.
pub fn resnet50() -> Bytes {
    let mut net = Net::new(50);
    let mut x = net.conv_norm("image", [3, 64, 7], 2, 1);
    x = net.node("Relu", &[&x], vec![]);
    x = net.node("MaxPool", &[&x], window(3, 2, 1));
    let mut channels = 64;
    for (stage, blocks) in [3, 4, 6, 3].into_iter().enumerate() {
        let (inner, outer) = (64 << stage, 256 << stage);
        for block in 0..blocks {
            let stride = if block == 0 && stage > 0 { 2 } else { 1 };
            let mut y = net.conv_norm(&x, [channels, inner, 1], 1, 1);
            y = net.node("Relu", &[&y], vec![]);
            y = net.conv_norm(&y, [inner, inner, 3], stride, 1);
            y = net.node("Relu", &[&y], vec![]);
            y = net.conv_norm(&y, [inner, outer, 1], 1, 1);
            let skip = if block == 0 { net.conv_norm(&x, [channels, outer, 1], stride, 1) } else { x };
            x = net.node("Add", &[&y, &skip], vec![]);
            x = net.node("Relu", &[&x], vec![]);
            channels = outer;
        }
    }
    net.classify(&x, channels)
}

/// MobileNetV2 of `[N, 3, 224, 224]`: 3.5 M parameters.
pub fn mobilenet_v2() -> Bytes {
    let mut net = Net::new(2);
    let mut x = net.conv("image", [3, 32, 3], 2, 1);
    x = net.relu6(&x);
    let mut channels = 32;
    // Expansion, channels, blocks, stride of the first.
    let stages = [
        (1, 16, 1, 1),
        (6, 24, 2, 2),
        (6, 32, 3, 2),
        (6, 64, 4, 2),
        (6, 96, 3, 1),
        (6, 160, 3, 2),
        (6, 320, 1, 1),
    ];
    for (expansion, outer, blocks, first) in stages {
        for block in 0..blocks {
            let (stride, inner) = (if block == 0 { first } else { 1 }, channels * expansion);
            let mut y = x.clone();
            if expansion > 1 {
                y = net.conv(&y, [channels, inner, 1], 1, 1);
                y = net.relu6(&y);
            }
            y = net.conv(&y, [inner, inner, 3], stride, inner);
            y = net.relu6(&y);
            y = net.conv(&y, [inner, outer, 1], 1, 1);
            x = if stride == 1 && channels == outer { net.node("Add", &[&y, &x], vec![]) } else { y };
            channels = outer;
        }
    }
    x = net.conv(&x, [channels, 1280, 1], 1, 1);
    x = net.relu6(&x);
    net.classify(&x, 1280)
}

/// A graph that grows.
struct Net {
    nodes: Vec<NodeProto>,
    weights: Vec<TensorProto>,
    state: u64,
}

impl Net {
    fn new(seed: u64) -> Self {
        Self { nodes: Vec::new(), weights: Vec::new(), state: seed }
    }

    /// A number in [-1, 1), by Steele and Vigna's SplitMix64.
    fn number(&mut self) -> f32 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let x = (self.state ^ (self.state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((x ^ (x >> 31)) >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    /// Weights around `centre`.
    fn weight(&mut self, dims: &[usize], centre: f32, spread: f32) -> String {
        let name = format!("w{}", self.weights.len());
        let data: Vec<u8> = (0..dims.iter().product())
            .flat_map(|_| (centre + spread * self.number()).to_le_bytes())
            .collect();
        self.tensor(&name, DType::F32, dims, data);
        name
    }

    fn tensor(&mut self, name: &str, dtype: DType, dims: &[usize], data: Vec<u8>) {
        self.weights.push(TensorProto {
            name: name.to_owned(),
            dims: dims.iter().map(|dim| *dim as i64).collect(),
            data_type: dtype.onnx(),
            raw_data: data.into(),
            ..TensorProto::default()
        });
    }

    fn node(&mut self, op: &str, inputs: &[&str], attribute: Vec<AttributeProto>) -> String {
        let output = format!("v{}", self.nodes.len());
        self.nodes.push(NodeProto {
            op_type: op.to_owned(),
            name: format!("{op}_{}", self.nodes.len()),
            input: inputs.iter().map(|input| (*input).to_owned()).collect(),
            output: vec![output.clone()],
            attribute,
            ..NodeProto::default()
        });
        output
    }

    /// The weights of a convolution, as large as keeps the numbers in range (He et al., 2015, "Delving Deep
    /// into Rectifiers").
    fn filters(&mut self, [channels, filters, kernel]: [usize; 3], groups: usize) -> String {
        let inputs = channels / groups;
        let spread = (6.0 / (inputs * kernel * kernel) as f32).sqrt();
        self.weight(&[filters, inputs, kernel, kernel], 0.0, spread)
    }

    /// A convolution with a bias: channels, filters, kernel.
    fn conv(&mut self, x: &str, sizes: [usize; 3], stride: usize, groups: usize) -> String {
        let weights = self.filters(sizes, groups);
        let bias = self.weight(&[sizes[1]], 0.0, 0.1);
        self.node("Conv", &[x, &weights, &bias], grouped(sizes[2], stride, groups))
    }

    /// A convolution and its normalisation.
    fn conv_norm(&mut self, x: &str, sizes: [usize; 3], stride: usize, groups: usize) -> String {
        let weights = self.filters(sizes, groups);
        let y = self.node("Conv", &[x, &weights], grouped(sizes[2], stride, groups));
        let filters = [sizes[1]];
        let (scale, bias) = (self.weight(&filters, 0.7, 0.2), self.weight(&filters, 0.0, 0.1));
        let (mean, variance) = (self.weight(&filters, 0.0, 0.1), self.weight(&filters, 1.0, 0.3));
        self.node("BatchNormalization", &[&y, &scale, &bias, &mean, &variance], vec![])
    }

    fn relu6(&mut self, x: &str) -> String {
        if !self.weights.iter().any(|weight| weight.name == "six") {
            self.tensor("zero", DType::F32, &[], 0_f32.to_le_bytes().to_vec());
            self.tensor("six", DType::F32, &[], 6_f32.to_le_bytes().to_vec());
        }
        self.node("Clip", &[x, "zero", "six"], vec![])
    }

    /// Averages, and makes probabilities of 1000 classes: the model is whole then.
    fn classify(mut self, x: &str, channels: usize) -> Bytes {
        let x = self.node("GlobalAveragePool", &[x], vec![]);
        let x = self.node("Flatten", &[&x], vec![]);
        let weights = self.weight(&[1000, channels], 0.0, (3.0 / channels as f32).sqrt());
        let bias = self.weight(&[1000], 0.0, 0.1);
        let x = self.node("Gemm", &[&x, &weights, &bias], vec![int("transB", 1)]);
        let probs = self.node("Softmax", &[&x], vec![]);
        let graph = GraphProto {
            name: "network".to_owned(),
            node: self.nodes,
            initializer: self.weights,
            input: vec![info("image", &[3, 224, 224])],
            output: vec![info(&probs, &[1000])],
            ..GraphProto::default()
        };
        let opset_import = vec![OperatorSetId { domain: String::new(), version: 17 }];
        let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph) };
        Bytes::from(model.encode_to_vec())
    }
}

/// A tensor of rows of these dimensions.
fn info(name: &str, dims: &[i64]) -> ValueInfoProto {
    let rows = DimProto { value: Some(DimValue::Param("N".to_owned())) };
    let dim = |size: &i64| DimProto { value: Some(DimValue::Value(*size)) };
    let shape = Some(ShapeProto { dim: std::iter::once(rows).chain(dims.iter().map(dim)).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type: DType::F32.onnx(), shape });
    ValueInfoProto { name: name.to_owned(), r#type: Some(TypeProto { tensor_type }) }
}

/// `AttributeProto.AttributeType` of an integer and of several.
const INT: i32 = 2;
const INTS: i32 = 7;

fn int(name: &str, i: i64) -> AttributeProto {
    AttributeProto { name: name.to_owned(), kind: INT, i, ..AttributeProto::default() }
}

fn ints(name: &str, ints: &[usize]) -> AttributeProto {
    let ints = ints.iter().map(|value| *value as i64).collect();
    AttributeProto { name: name.to_owned(), kind: INTS, ints, ..AttributeProto::default() }
}

fn window(kernel: usize, stride: usize, pad: usize) -> Vec<AttributeProto> {
    vec![ints("kernel_shape", &[kernel; 2]), ints("strides", &[stride; 2]), ints("pads", &[pad; 4])]
}

fn grouped(kernel: usize, stride: usize, groups: usize) -> Vec<AttributeProto> {
    let mut attributes = window(kernel, stride, kernel / 2);
    attributes.push(int("group", groups as i64));
    attributes
}
