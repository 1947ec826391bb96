//! Turns images to NHWC, where convolutions are GEMMs: one forward pass in which every image may have a twin
//! in the other layout, made on demand, so that transposes appear only where layouts meet.
//!
//! Whether an operator is turned depends on its kind, rank and constants, never on a dimension that batches
//! change.

use std::collections::HashMap;

use roost_kernels::{Activation, PoolKind};

use crate::graph::ir::{Graph, Node, ValueId};
use crate::ops::Op;
use crate::ops::conv::Window;
use crate::ops::fact::Out;
use crate::ops::image::{ConvImage, PoolImage};
use crate::ops::pool::Pool;
use crate::ops::qimage::QConv;
use crate::tensor::{DType, Tensor};

/// From NCHW to NHWC, as a permutation.
const TO_NHWC: [i64; 4] = [0, 2, 3, 1];
/// And back.
const TO_NCHW: [i64; 4] = [0, 3, 1, 2];

/// The first convolution reads NCHW directly up to so many channels: with few, its vectors run over filters
/// all the same.
const STEM_CHANNELS_MAX: usize = 4;

/// Turns what can be.
pub fn images(graph: &mut Graph) {
    let nodes = std::mem::take(&mut graph.nodes);
    let mut turner = Turner { graph, twins: HashMap::new(), plain: Vec::new() };
    turner.plain = vec![true; turner.graph.values.len()];
    for node in nodes {
        if !turner.turn(&node) {
            for id in node.inputs.iter().flatten() {
                turner.plain(*id);
            }
            turner.graph.nodes.push(node);
        }
    }
    let outputs = turner.graph.outputs.clone();
    outputs.iter().for_each(|id| turner.plain(*id));
}

struct Turner<'a> {
    graph: &'a mut Graph,
    /// The NHWC twin of a value.
    twins: HashMap<ValueId, ValueId>,
    /// Whether the NCHW form exists.
    plain: Vec<bool>,
}

impl Turner<'_> {
    fn out(&self, id: ValueId) -> Option<&Out> {
        self.graph.values[id.index()].out.as_ref()
    }

    fn rank4(&self, id: ValueId) -> bool {
        self.out(id).is_some_and(|out| out.shape.len() == 4)
    }

    fn new_value(&mut self, out: Out) -> ValueId {
        let id = self.graph.value("");
        self.graph.values[id.index()].out = Some(out);
        self.plain.push(true);
        id
    }

    /// Makes the NCHW form of a value that has only its twin.
    fn plain(&mut self, id: ValueId) {
        if !self.plain[id.index()]
            && let Some(twin) = self.twins.get(&id).copied()
        {
            self.plain[id.index()] = true;
            self.push(Op::Transpose { perm: TO_NCHW.to_vec() }, vec![Some(twin)], id, "to NCHW");
        }
    }

    /// The NHWC form of an image.
    fn twin(&mut self, id: ValueId) -> ValueId {
        if let Some(twin) = self.twins.get(&id) {
            return *twin;
        }
        let out = self.out(id).cloned().unwrap_or(Out::new(DType::F32, [0, 0, 0, 0]));
        let twin = self.new_value(Out::new(out.dtype, nhwc(&out.shape)));
        self.push(Op::Transpose { perm: TO_NHWC.to_vec() }, vec![Some(id)], twin, "to NHWC");
        self.twins.insert(id, twin);
        twin
    }

    fn push(&mut self, op: Op, inputs: Vec<Option<ValueId>>, output: ValueId, name: &str) {
        self.graph.nodes.push(Node { op, inputs, outputs: vec![Some(output)], name: name.to_owned() });
    }

    /// Adds `op` in place of `node`, whose output exists as NHWC from here on.
    fn replace(&mut self, node: &Node, op: Op, inputs: Vec<Option<ValueId>>) {
        let Some(old) = node.outputs[0] else { return };
        let out = self.out(old).cloned().unwrap_or(Out::new(DType::F32, [0, 0, 0, 0]));
        let twin = self.new_value(Out::new(out.dtype, nhwc(&out.shape)));
        self.graph.values[twin.index()].name = self.graph.values[old.index()].name.clone();
        self.graph.nodes.push(Node { op, inputs, outputs: vec![Some(twin)], name: node.name.clone() });
        self.twins.insert(old, twin);
        self.plain[old.index()] = false;
    }

    /// Whether the node was turned.
    fn turn(&mut self, node: &Node) -> bool {
        let Some(x) = node.inputs.first().copied().flatten() else { return false };
        let only_one = node.outputs[1..].iter().all(Option::is_none) && node.outputs[0].is_some();
        if !only_one || !node.outputs[0].is_some_and(|y| self.rank4(y)) {
            return false;
        }
        match &node.op {
            Op::Conv { window, group } => self.conv(node, x, window, *group),
            Op::QConv(conv) => {
                let mut inputs = node.inputs.clone();
                if let Some((image, weights)) = self.widened(x, &inputs, conv.group) {
                    inputs[0] = Some(image);
                    inputs[1] = Some(weights);
                } else {
                    inputs[0] = Some(self.twin(x));
                }
                self.replace(node, Op::QConv(QConv { nhwc: true, ..conv.clone() }), inputs);
                true
            }
            Op::Pool { window, pool } => self.pool(node, x, window, *pool),
            Op::GlobalPool { max } => {
                let kind = if *max { PoolKind::Max } else { PoolKind::Average };
                if !self.rank4(x) || self.out(x).is_none_or(|out| out.is_empty()) {
                    return false;
                }
                let twin = self.twin(x);
                self.replace(node, Op::PoolImage(PoolImage { window: None, kind }), vec![Some(twin)]);
                true
            }
            Op::Unary(_)
            | Op::Clip
            | Op::Table(_)
            | Op::Quantize { .. }
            | Op::Dequantize { .. }
            | Op::Cast { .. } => self.elementwise(node, x),
            Op::Binary(_) => self.binary(node),
            Op::Concat { axis: 1 | -3 } => self.concat(node),
            _ => false,
        }
    }

    fn conv(&mut self, node: &Node, x: ValueId, window: &Window, group: usize) -> bool {
        let constant = |i: usize| match node.inputs.get(i).copied().flatten() {
            None => i != 1,
            Some(id) => self.graph.data(id).is_some_and(|tensor| tensor.dtype() == DType::F32),
        };
        let Some(w) = node.inputs.get(1).copied().flatten() else { return false };
        if !constant(1)
            || !constant(2)
            || !self.rank4(x)
            || self.out(x).is_none_or(|out| out.dtype != DType::F32)
        {
            return false;
        }
        let channels = self.out(x).map_or(0, |out| out.shape[1]);
        let depthwise = group == channels && group > 1;
        let nchw = !self.twins.contains_key(&x) && channels <= STEM_CHANNELS_MAX && !depthwise;
        let input = if nchw { x } else { self.twin(x) };
        let conv =
            ConvImage { window: window.clone(), group, activation: Activation::None, nchw, pool: None };
        let mut inputs = vec![Some(input), Some(w)];
        inputs.extend(node.inputs.get(2).copied());
        self.replace(node, Op::ConvImage(conv), inputs);
        true
    }

    /// Images whose channels are no multiple of four, the bytes that kernels multiply at once, get more of
    /// them on their way to NHWC, with weights of zero. Sums of integers do not change.
    fn widened(
        &mut self,
        x: ValueId,
        inputs: &[Option<ValueId>],
        group: usize,
    ) -> Option<(ValueId, ValueId)> {
        let image = self.out(x)?.clone();
        let (c, w) = (image.shape[1], inputs[1]?);
        if self.twins.contains_key(&x) || group != 1 || c.is_multiple_of(4) {
            return None;
        }
        let channels = c.next_multiple_of(4);
        let old = self.graph.data(w)?;
        let &[filters, _, height, width] = old.shape() else { return None };
        let mut bytes = Vec::with_capacity(filters * channels * height * width);
        for filter in old.bytes().chunks_exact((c * height * width).max(1)) {
            bytes.extend_from_slice(filter);
            bytes.resize(bytes.len() + (channels - c) * height * width, 0);
        }
        let wide = Tensor::of_dtype(old.dtype(), &[filters, channels, height, width], &bytes);
        let weights = self.new_value(Out::new(wide.dtype(), wide.shape()));
        self.graph.values[weights.index()].constant = Some(wide);
        let shape = [image.shape[0], image.shape[2], image.shape[3], channels];
        let wide = self.new_value(Out::new(image.dtype, shape));
        self.push(Op::WidenImage { channels }, vec![Some(x)], wide, "to NHWC");
        Some((wide, weights))
    }

    fn pool(&mut self, node: &Node, x: ValueId, window: &Window, pool: Pool) -> bool {
        let dtype = self.out(x).map(|out| out.dtype);
        let kind = match pool {
            Pool::Max { .. } => PoolKind::Max,
            Pool::Average { include_pad: false } => PoolKind::Average,
            // In ceil mode what reaches beyond the padding does not count, which the kernel does not know.
            Pool::Average { include_pad: true } if !window.ceil_mode => PoolKind::AverageWithPadding,
            Pool::Average { .. } | Pool::Lp { .. } => return false,
        };
        let bytes = matches!(dtype, Some(DType::U8 | DType::I8)) && kind == PoolKind::Max;
        if !self.rank4(x) || !(dtype == Some(DType::F32) || bytes) {
            return false;
        }
        let twin = self.twin(x);
        self.replace(node, Op::PoolImage(PoolImage { window: Some(window.clone()), kind }), vec![Some(twin)]);
        true
    }

    /// An operator whose other inputs are single values follows its image.
    fn elementwise(&mut self, node: &Node, x: ValueId) -> bool {
        let single = |id: &Option<ValueId>| {
            id.is_none_or(|id| self.graph.data(id).is_some_and(|tensor| tensor.len() == 1))
        };
        let Some(twin) = self.twins.get(&x).copied() else { return false };
        if !node.inputs[1..].iter().all(single) {
            return false;
        }
        let mut inputs = node.inputs.clone();
        inputs[0] = Some(twin);
        self.replace(node, node.op.clone(), inputs);
        true
    }

    /// Two operands: images follow each other, constants are turned.
    fn binary(&mut self, node: &Node) -> bool {
        let (Some(a), Some(b)) = (node.input(0), node.input(1)) else { return false };
        if ![a, b].iter().any(|id| self.twins.contains_key(id)) {
            return false;
        }
        let turnable = |id: ValueId| self.rank4(id) || self.graph.data(id).is_some();
        if !turnable(a) || !turnable(b) {
            return false;
        }
        let inputs = [a, b].map(|id| {
            let constant = self.graph.data(id).map(turned);
            Some(match constant {
                Some(tensor) => {
                    let out = Out::new(tensor.dtype(), tensor.shape());
                    let new = self.new_value(out);
                    self.graph.values[new.index()].constant = Some(tensor);
                    new
                }
                None => self.twin(id),
            })
        });
        self.replace(node, node.op.clone(), inputs.to_vec());
        true
    }

    fn concat(&mut self, node: &Node) -> bool {
        let ids: Vec<ValueId> = node.inputs.iter().copied().flatten().collect();
        if !ids.iter().any(|id| self.twins.contains_key(id)) {
            return false;
        }
        let inputs = ids.iter().map(|id| Some(self.twin(*id))).collect();
        self.replace(node, Op::Concat { axis: 3 }, inputs);
        true
    }
}

/// `[N, C, H, W]` as `[N, H, W, C]`.
fn nhwc(shape: &[usize]) -> Vec<usize> {
    TO_NHWC.iter().map(|axis| shape[*axis as usize]).collect()
}

/// A constant that broadcasts with NCHW images, as one that does with NHWC.
fn turned(tensor: &Tensor) -> Tensor {
    let mut shape = vec![1; 4 - tensor.shape().len().min(4)];
    shape.extend(tensor.shape());
    let (c, area) = (shape[1], shape[2] * shape[3]);
    let to = nhwc(&shape);
    if c == 1 || area == 1 {
        return tensor.reshaped(&to);
    }
    let bytes = tensor.dtype().bytes();
    let mut turned = vec![0; tensor.bytes().len()];
    for (i, element) in tensor.bytes().chunks_exact(bytes).enumerate() {
        let (image, channel, place) = (i / (c * area), i / area % c, i % area);
        let at = ((image * area + place) * c + channel) * bytes;
        turned[at..at + bytes].copy_from_slice(element);
    }
    Tensor::of_dtype(tensor.dtype(), &to, &turned)
}
