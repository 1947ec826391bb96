//! Where the rows of a batch are, and whether nodes keep them apart, by comparing a graph that is bound to
//! two rows with the same bound to three: the dimension that differs is the batch's.
//!
//! A value keeps its rows apart when exactly one of its dimensions grows, and each node on the way computes
//! what is at a place along that dimension from what is at that place alone. What is not known to do so is
//! taken to mix rows.

use crate::graph::ir::{Graph, Node, ValueId};
use crate::ops::Op;
use crate::ops::fact::{Fact, Facts, axis_of};
use crate::ops::movement::slice_ranges;
use crate::tensor::Tensor;

/// Why a row's result may depend on the rows beside it; `None` where it does not. The graphs are of one
/// model, for two rows and for three, before the passes over graphs with shapes.
pub fn variant(two: &Graph, three: &Graph) -> Option<String> {
    let mut rows: Vec<Option<usize>> = vec![None; two.values.len()];
    for (a, b) in two.inputs.iter().zip(&three.inputs) {
        match grown(shape(two, *a), shape(three, *b)) {
            Ok(None) => {}
            Ok(Some(0)) => rows[a.index()] = Some(0),
            _ => return Some(format!("rows are no first dimension of {}", two.values[a.index()].name)),
        }
    }
    if two.nodes.len() != three.nodes.len() {
        return Some("its nodes depend on the number of rows".to_owned());
    }
    for (node, other) in two.nodes.iter().zip(&three.nodes) {
        if let Err(why) = place((two, node), (three, other), &mut rows) {
            return Some(format!("{} ({}): {why}", node.name, node.op.name()));
        }
    }
    let other = two.outputs.iter().find(|id| rows[id.index()] != Some(0))?;
    Some(format!("rows are no first dimension of {}", two.values[other.index()].name))
}

/// Finds the rows of a node's results.
fn place(
    (two, node): (&Graph, &Node),
    (three, other): (&Graph, &Node),
    rows: &mut [Option<usize>],
) -> Result<(), &'static str> {
    if node.op.name() != other.op.name() || node.inputs.len() != other.inputs.len() {
        return Err("it depends on the number of rows");
    }
    let mut counted = false;
    for (i, (a, b)) in node.inputs.iter().zip(&other.inputs).enumerate() {
        let (Some(a), Some(b)) = (*a, *b) else { continue };
        let (Some(ours), Some(theirs)) = (two.data(a), three.data(b)) else { continue };
        match grown(ours.shape(), theirs.shape()) {
            Ok(None) => counted |= ours.bytes() != theirs.bytes() && !is_shape(&node.op, i),
            Ok(Some(axis)) if is_uniform(theirs, axis) => rows[a.index()] = Some(axis),
            _ => return Err("what is constant differs from row to row"),
        }
    }
    let rowed = node.inputs.iter().flatten().any(|id| rows[id.index()].is_some());
    let mut out = None;
    for (a, b) in node.outputs.iter().zip(&other.outputs) {
        let (Some(a), Some(b)) = (*a, *b) else { continue };
        match grown(shape(two, a), shape(three, b)) {
            Ok(None) if !rowed => {}
            Ok(Some(axis)) if rowed => {
                rows[a.index()] = Some(axis);
                out = out.or(Some((axis, shape(two, a))));
            }
            _ => return Err(mixes(&node.op)),
        }
    }
    match out {
        Some(_) if counted => Err("the number of rows goes into it"),
        Some((axis, shape)) => Apart { graph: two, node, rows, axis, shape }.check(),
        None => Ok(()),
    }
}

/// What is to be said of a node whose result has not one dimension for the rows.
fn mixes(op: &Op) -> &'static str {
    match op {
        Op::DynamicQuantize => "its scale is that of the whole batch",
        _ => "its result has not one dimension for the rows",
    }
}

/// The dimension that differs, if one does. An error where more do, or the ranks.
fn grown(two: &[usize], three: &[usize]) -> Result<Option<usize>, ()> {
    let mut differing = (0..two.len()).filter(|i| two[*i] != three[*i]);
    let first = differing.next();
    if two.len() != three.len() || differing.next().is_some() { Err(()) } else { Ok(first) }
}

fn shape(graph: &Graph, id: ValueId) -> &[usize] {
    graph.values[id.index()].out.as_ref().map_or(&[], |out| &out.shape)
}

/// Whether input `i` only says what shape the result has.
fn is_shape(op: &Op, i: usize) -> bool {
    match op {
        Op::Reshape { .. } | Op::Expand | Op::Tile => i == 1,
        Op::Slice => i == 2,
        Op::Resize(_) => i > 1,
        _ => false,
    }
}

/// Whether a tensor is the same at all places along an axis.
fn is_uniform(tensor: &Tensor, axis: usize) -> bool {
    let shape = tensor.shape();
    let inner = shape[axis + 1..].iter().product::<usize>() * tensor.dtype().bytes();
    let whole = (inner * shape[axis]).max(1);
    tensor
        .bytes()
        .chunks_exact(whole)
        .all(|whole| whole.chunks_exact(inner).all(|part| part == &whole[..inner]))
}

/// A node whose result has its rows along `axis`.
struct Apart<'a> {
    graph: &'a Graph,
    node: &'a Node,
    rows: &'a [Option<usize>],
    axis: usize,
    shape: &'a [usize],
}

impl Apart<'_> {
    fn input(&self, i: usize) -> Option<ValueId> {
        self.node.inputs.get(i).copied().flatten()
    }

    /// Where an input has its rows.
    fn rows_of(&self, i: usize) -> Option<usize> {
        self.rows[self.input(i)?.index()]
    }

    fn shape_of(&self, i: usize) -> &[usize] {
        self.input(i).map_or(&[], |id| shape(self.graph, id))
    }

    /// No input but these has rows.
    fn only(&self, inputs: &[usize]) -> bool {
        (0..self.node.inputs.len()).all(|i| inputs.contains(&i) || self.rows_of(i).is_none())
    }

    /// An input has no rows, or has them where broadcasting brings them to the result's.
    fn meets(&self, i: usize) -> bool {
        self.rows_of(i).is_none_or(|rows| rows + self.shape.len() == self.axis + self.shape_of(i).len())
    }

    /// Input 0 alone has rows, and they stay along the same dimension.
    fn stays(&self) -> bool {
        self.only(&[0]) && self.rows_of(0) == Some(self.axis)
    }

    /// As many rows as before.
    fn as_many(&self) -> bool {
        self.shape_of(0).get(self.axis) == self.shape.get(self.axis)
    }

    /// Elements before the rows.
    fn before(shape: &[usize], axis: usize) -> usize {
        shape[..axis].iter().product()
    }

    /// Whether an axis of input 0 is not that of its rows.
    fn along(&self, axis: i64) -> bool {
        axis_of(axis, self.shape_of(0).len()).is_ok_and(|axis| Some(axis) != self.rows_of(0))
    }

    /// Whether `A · B` keeps rows: they are no inner dimension, and come where both put them.
    fn product(&self, a: usize, b: usize) -> bool {
        let last = |i: usize, from_end: usize| {
            self.rows_of(i).is_some_and(|rows| rows + from_end == self.shape_of(i).len())
        };
        let columns = last(b, 1) && self.shape_of(b).len() > 1 && self.axis + 1 == self.shape.len();
        let right = self.rows_of(b).is_none() || columns || (!last(b, 1) && !last(b, 2) && self.meets(b));
        self.only(&[a, b]) && !last(a, 1) && self.meets(a) && right
    }

    fn check(&self) -> Result<(), &'static str> {
        let apart = match &self.node.op {
            Op::Unary(_)
            | Op::Cast { .. }
            | Op::CastLike
            | Op::Clip
            | Op::Identity
            | Op::Table(_)
            | Op::Dropout
            | Op::Mask
            | Op::Quantize { .. }
            | Op::Dequantize { .. }
            | Op::BatchNorm { training: false, .. } => self.stays(),
            Op::Binary(_) | Op::Where | Op::Expand => (0..self.node.inputs.len()).all(|i| self.meets(i)),
            Op::MatMul | Op::MatMulInteger => self.product(0, 1),
            Op::QLinearMatMul => self.product(0, 3),
            Op::Gemm(gemm) => {
                let (a, b) = (usize::from(gemm.trans_a), usize::from(!gemm.trans_b));
                let fits = |i: usize, at: usize, out: usize| {
                    self.rows_of(i).is_none_or(|rows| rows == at && self.axis == out)
                };
                fits(0, a, 0) && fits(1, b, 1) && self.meets(2)
            }
            Op::Einsum { equation } => self.keeps_letter(equation),
            Op::BatchNorm { training: true, .. } => {
                return Err("its statistics are those of the whole batch");
            }
            Op::Pool { .. } if self.node.outputs.iter().skip(1).any(Option::is_some) => {
                return Err("where a maximum stood is counted from the start of the batch");
            }
            Op::Conv { .. }
            | Op::ConvTranspose(_)
            | Op::ConvInteger { .. }
            | Op::QLinearConv { .. }
            | Op::QConv(_)
            | Op::Pool { .. }
            | Op::GlobalPool { .. }
            | Op::GroupNorm { .. }
            | Op::Lrn { .. }
            | Op::Blocks { .. } => self.stays() && self.axis == 0,
            Op::Transpose { perm } => {
                let rank = self.shape.len();
                let from =
                    if perm.is_empty() { Ok(rank - 1 - self.axis) } else { axis_of(perm[self.axis], rank) };
                from.ok() == self.rows_of(0)
            }
            Op::Reshape { .. } | Op::Flatten { .. } | Op::Squeeze | Op::Unsqueeze => {
                let before = self.rows_of(0).map(|rows| Self::before(self.shape_of(0), rows));
                self.only(&[0]) && before == Some(Self::before(self.shape, self.axis))
            }
            Op::Concat { axis } => {
                self.along(*axis) && (0..self.node.inputs.len()).all(|i| self.rows_of(i) == Some(self.axis))
            }
            Op::Split { axis, .. } | Op::TopK { axis, .. } | Op::LpNorm { axis, .. } => {
                self.stays() && self.along(*axis)
            }
            Op::Compress { axis } => self.stays() && axis.is_some_and(|axis| self.along(axis)),
            Op::Softmax { axis, flat, .. } => {
                let axis = axis_of(*axis, self.shape.len()).ok();
                self.stays()
                    && axis.is_some_and(|axis| if *flat { self.axis < axis } else { self.axis != axis })
            }
            Op::LayerNorm { axis, .. } | Op::RmsNorm { axis, .. } => {
                self.stays() && axis_of(*axis, self.shape.len()).is_ok_and(|axis| self.axis < axis)
            }
            Op::MeanVarianceNorm { axes } => self.stays() && axes.iter().all(|axis| self.along(*axis)),
            Op::CumSum { .. } => {
                let axis = self.input(1).and_then(|id| self.graph.data(id)).and_then(Tensor::ints);
                self.stays() && axis.is_some_and(|axis| axis.iter().all(|axis| self.along(*axis)))
            }
            // The result has rows: none of the reduced dimensions is theirs.
            Op::Reduce { .. } | Op::ArgExtreme { .. } => self.only(&[0]),
            Op::Slice => self.stays() && self.takes_all(),
            Op::Tile => self.stays() && self.as_many(),
            Op::Pad { .. } => self.stays() && self.as_many() && self.pads_nothing(),
            Op::Resize(resize) => {
                let crops = resize.coordinates == crate::ops::resize::Coordinates::TfCropAndResize;
                self.stays() && self.as_many() && !crops
            }
            Op::Gather { axis } => self.gathers(*axis),
            Op::GatherElements { axis } | Op::ScatterElements { axis, .. } => {
                let all = (0..self.node.inputs.len()).all(|i| self.rows_of(i) == Some(self.axis));
                all && self.along(*axis)
            }
            Op::GatherNd { batch_dims } => {
                let (data, indices) = (self.rows_of(0), self.rows_of(1));
                let each = *batch_dims > 0 && data == Some(0) && indices == Some(0) && self.axis == 0;
                let of_one = data.is_none() && indices.is_some_and(|rows| rows + 1 < self.shape_of(1).len());
                each || (of_one && indices == Some(self.axis))
            }
            Op::OneHot { .. } => self.only(&[0]),
            Op::Trilu { .. } => self.stays() && self.axis + 2 < self.shape.len(),
            Op::Rnn(rnn) => {
                let batch = usize::from(!rnn.batch_first);
                let fits = |i: usize, at: usize| self.rows_of(i).is_none_or(|rows| rows == at);
                let weights = [1, 2, 3, 7].into_iter().all(|i| self.rows_of(i).is_none());
                weights && fits(0, batch) && fits(4, 0) && fits(5, batch) && fits(6, batch)
            }
            _ => false,
        };
        if apart { Ok(()) } else { Err("it is not known to keep rows apart") }
    }

    /// Whether a slice takes all rows, in their order.
    fn takes_all(&self) -> bool {
        let facts: Vec<Option<Fact<'_>>> = (0..self.node.inputs.len())
            .map(|i| {
                let id = self.input(i)?;
                let value = &self.graph.values[id.index()];
                let out = value.out.as_ref()?;
                let constant = value.constant.as_ref();
                Some(Fact { dtype: out.dtype, shape: &out.shape, value: constant, pinned: false })
            })
            .collect();
        let all = (0, 1, self.shape[self.axis]);
        slice_ranges(Facts(&facts)).is_ok_and(|ranges| ranges[self.axis] == all) && self.as_many()
    }

    /// Whether no row is put before the rows.
    fn pads_nothing(&self) -> bool {
        let list = |i: usize| self.input(i).and_then(|id| self.graph.data(id)).and_then(Tensor::ints);
        let Some(pads) = list(1) else { return false };
        match self.input(3) {
            Some(_) => list(3).is_some_and(|axes| axes.iter().all(|axis| self.along(*axis))),
            None => pads.get(self.axis) == Some(&0),
        }
    }

    /// Rows of data by the same indices for all, or of one table by each row's own.
    fn gathers(&self, axis: i64) -> bool {
        let Ok(axis) = axis_of(axis, self.shape_of(0).len()) else { return false };
        match (self.rows_of(0), self.rows_of(1)) {
            (Some(rows), None) if rows < axis => self.axis == rows,
            (Some(rows), None) => rows != axis && self.axis + 1 == rows + self.shape_of(1).len(),
            (None, Some(rows)) => self.axis == axis + rows,
            _ => false,
        }
    }

    /// Whether one letter stands for the rows, in all operands that have them and in the result.
    fn keeps_letter(&self, equation: &str) -> bool {
        let equation: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
        let Some((terms, result)) = equation.split_once("->") else { return false };
        if equation.contains('.') {
            return false;
        }
        let Some(letter) = result.chars().nth(self.axis) else { return false };
        let once = |term: &str, at: usize| term.chars().position(|c| c == letter) == Some(at);
        let each = terms.split(',').enumerate().all(|(i, term)| match self.rows_of(i) {
            Some(rows) => once(term, rows) && term.matches(letter).count() == 1,
            None => !term.contains(letter),
        });
        each && result.matches(letter).count() == 1
    }
}

#[cfg(test)]
mod tests;
