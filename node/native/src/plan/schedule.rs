//! From a bound graph to steps over one arena.
//!
//! Views (reshapes, contiguous slices) get no step: they are ranges of what they look at. Every other node is
//! a step with a kernel, the places of its inputs, and the ranges of its outputs and scratch.

use std::borrow::Cow;
use std::ops::Range;

use crate::error::{OpError, RunError};
use crate::exec::io::{Loc, OUTS_MAX};
use crate::graph::ir::{Graph, Node, ValueId};
use crate::onnx::import::Limits;
use crate::ops::fact::{Facts, Out};
use crate::ops::kernel::Run;
use crate::ops::{Op, Target, lower, lower_strided, movement};
use crate::plan::arena::{Life, place};
use crate::plan::bind::fact;
use crate::tensor::Tensor;

/// One step of a plan.
pub struct Step {
    /// Computes it.
    pub run: Run,
    /// Where its inputs lie.
    pub ins: Vec<Loc>,
    /// Ranges of the arena that it writes, ascending.
    pub writes: [Range<usize>; OUTS_MAX],
    /// For each output (and scratch after them) which of `writes` it is.
    pub slots: [usize; OUTS_MAX],
    /// The node's name in the model.
    pub name: String,
    /// The operator.
    pub op: &'static str,
    /// The kernel.
    pub kernel: Cow<'static, str>,
    /// Shapes and types of outputs.
    pub outs: Vec<Out>,
}

/// Where an output of the model lies.
#[derive(Debug, Clone)]
pub enum OutputAt {
    /// In the arena.
    Arena(Range<usize>),
    /// A constant of the plan.
    Const(usize),
    /// An input of the run.
    Input(usize, Range<usize>),
}

/// A plan for one tuple of input shapes.
pub struct Plan {
    /// Steps, in order.
    pub steps: Vec<Step>,
    /// Constants that steps read as they are.
    pub consts: Vec<Tensor>,
    /// Outputs: place, type, shape.
    pub outputs: Vec<(OutputAt, Out)>,
    /// Bytes of the arena.
    pub arena_bytes: usize,
    /// Bytes of the constants that were computed from the shapes; of no other plan.
    pub folded_bytes: u64,
}

/// Where a value's bytes are.
#[derive(Debug, Clone)]
struct Place {
    /// What it is a part of.
    root: ValueId,
    /// From the root's start, in bytes.
    offset: usize,
    /// For a part of a concat: elements from a row to the next.
    stride: Option<usize>,
}

/// Parts of a concat on the last axis are written where they belong by the operators that make them, if all
/// can: such a concat gets no step. Gives which nodes these are.
fn concats(graph: &Graph, places: &mut [Place]) -> Vec<bool> {
    let (uses, producers) = (graph.uses(), graph.producers());
    let mut joined = vec![false; graph.nodes.len()];
    for (at, node) in graph.nodes.iter().enumerate() {
        let (Op::Concat { axis }, Some(Some(whole))) = (&node.op, node.outputs.first()) else { continue };
        let Some(out) = &graph.values[whole.index()].out else { continue };
        if *axis != out.shape.len() as i64 - 1 && *axis != -1 {
            continue;
        }
        let fits = |id: &Option<ValueId>| {
            let Some(id) = id else { return false };
            let producer = producers[id.index()].map(|at| &graph.nodes[at].op);
            let strided = match producer {
                Some(Op::ConvImage(_) | Op::PoolImage(_) | Op::Table(_)) => true,
                Some(Op::QConv(conv)) => conv.nhwc,
                _ => false,
            };
            strided && uses[id.index()] == 1
        };
        if out.is_empty() || !node.inputs.iter().all(fits) {
            continue;
        }
        joined[at] = true;
        let stride = out.shape.last().copied().unwrap_or(1);
        let mut offset = 0;
        for id in node.inputs.iter().flatten() {
            places[id.index()] = Place { root: *whole, offset, stride: Some(stride) };
            let part = graph.values[id.index()].out.as_ref();
            offset += part.and_then(|part| part.shape.last()).copied().unwrap_or(0) * out.dtype.bytes();
        }
    }
    joined
}

/// Makes the plan of a bound graph.
///
/// # Errors
/// [`RunError::Op`] where an operator has no kernel for these types, [`RunError::Arena`].
pub fn schedule(graph: &Graph, target: Target<'_>, limits: Limits) -> Result<Plan, RunError> {
    let mut places: Vec<Place> =
        (0..graph.values.len()).map(|i| Place { root: ValueId(i as u32), offset: 0, stride: None }).collect();
    let joined = concats(graph, &mut places);
    let mut steps: Vec<(usize, Lowering)> = Vec::new();
    let mut table_bytes: u128 = 0;
    for (index, node) in graph.nodes.iter().enumerate() {
        if joined[index] {
            continue;
        }
        let fail =
            |source: OpError| RunError::Op { node: node.name.clone(), op: node.op.name().to_owned(), source };
        if let Some((source, offset)) = view(graph, node).map_err(fail)? {
            let of = &places[source.index()];
            let place = Place { root: of.root, offset: of.offset + offset, stride: None };
            if let Some(Some(out)) = node.outputs.first() {
                places[out.index()] = place;
            }
            continue;
        }
        let stride = node.outputs[0].and_then(|id| places[id.index()].stride);
        let lowering = lowering(graph, node, stride, target).map_err(fail)?;
        table_bytes += lowering.lowered.table_bytes as u128;
        if table_bytes > limits.folded_bytes_max.into() {
            return Err(fail(OpError::TooLarge { bytes: table_bytes, bytes_max: limits.folded_bytes_max }));
        }
        steps.push((index, lowering));
    }
    layout(graph, &places, steps, limits)
}

/// A node with its kernel, before memory is laid out.
struct Lowering {
    lowered: crate::ops::kernel::Lowered,
    outs: Vec<Out>,
}

fn lowering(
    graph: &Graph,
    node: &Node,
    stride: Option<usize>,
    target: Target<'_>,
) -> Result<Lowering, OpError> {
    let facts: Vec<_> = node.inputs.iter().map(|id| id.and_then(|id| fact(graph, id))).collect();
    let outs = crate::ops::infer(&node.op, Facts(&facts))?;
    let strided = match stride {
        Some(stride) => lower_strided(&node.op, Facts(&facts), stride, target)?,
        None => None,
    };
    let lowered = match strided {
        Some(lowered) => lowered,
        None => lower(&node.op, Facts(&facts), &outs, target)?,
    };
    Ok(Lowering { lowered, outs })
}

/// What a node's output is a view of, and from which byte; `None` where it must be computed.
fn view(graph: &Graph, node: &Node) -> Result<Option<(ValueId, usize)>, OpError> {
    let Some(Some(source)) = node.inputs.first().copied() else { return Ok(None) };
    let facts: Vec<_> = node.inputs.iter().map(|id| id.and_then(|id| fact(graph, id))).collect();
    let facts = Facts(&facts);
    let x = facts.need(0)?;
    let run = |axis: usize| x.shape[axis..].iter().product::<usize>() * x.dtype.bytes();
    Ok(match &node.op {
        op if op.is_view() => Some((source, 0)),
        Op::Transpose { perm } if movement::moves_nothing(perm, x.shape) => Some((source, 0)),
        Op::Cast { to } if *to == x.dtype => Some((source, 0)),
        Op::Split { axis, part, parts } => {
            let (axis, start) = movement::split_start(facts, *axis, *part, *parts)?;
            // A part is contiguous where nothing lies around its axis. Its start must suit every type.
            let offset = start * run(axis + 1).max(1) * usize::from(run(axis + 1) > 0);
            let whole = x.shape[..axis].iter().all(|dim| *dim == 1);
            (whole && offset.is_multiple_of(crate::tensor::ALIGN_BYTES)).then_some((source, offset))
        }
        _ => None,
    })
}

/// Gives every root a range of the arena, and every step its places.
fn layout(
    graph: &Graph,
    places: &[Place],
    lowered: Vec<(usize, Lowering)>,
    limits: Limits,
) -> Result<Plan, RunError> {
    let last = lowered.len();
    // Lives by root value, then one per step's scratch.
    let mut lives: Vec<Option<Life>> = vec![None; graph.values.len()];
    let mut scratches = Vec::with_capacity(last);
    for (step, (index, lowering)) in lowered.iter().enumerate() {
        let node = &graph.nodes[*index];
        for id in node.inputs.iter().flatten() {
            if let Some(life) = &mut lives[places[id.index()].root.index()] {
                life.steps.end = step;
            }
        }
        for (id, out) in node.outputs.iter().zip(&lowering.outs) {
            let Some(id) = id else { continue };
            let root = places[id.index()].root;
            let bytes = graph.values[root.index()].out.as_ref().map_or(out.bytes(), Out::bytes);
            // The first part of a concat begins the life of the whole.
            lives[root.index()].get_or_insert(Life { bytes, steps: step..step });
        }
        scratches.push(Life { bytes: lowering.lowered.scratch_bytes, steps: step..step });
    }
    for id in &graph.outputs {
        if let Some(life) = &mut lives[places[id.index()].root.index()] {
            life.steps.end = last;
        }
    }
    let roots: Vec<usize> = (0..lives.len()).filter(|i| lives[*i].is_some()).collect();
    let all: Vec<Life> = roots.iter().filter_map(|i| lives[*i].clone()).chain(scratches).collect();
    let (offsets, arena_bytes) = place(&all);
    if arena_bytes as u64 > limits.arena_bytes_max {
        return Err(RunError::Arena { bytes: arena_bytes as u64, bytes_max: limits.arena_bytes_max });
    }
    let mut start = vec![None; graph.values.len()];
    roots.iter().zip(&offsets).for_each(|(root, offset)| start[*root] = Some(*offset));

    let mut builder =
        Builder { graph, places, start, consts: Vec::new(), const_at: vec![None; graph.values.len()] };
    let mut steps = Vec::with_capacity(last);
    for (step, (index, lowering)) in lowered.into_iter().enumerate() {
        let scratch = offsets[roots.len() + step];
        steps.push(builder.step(&graph.nodes[index], lowering, scratch));
    }
    let outputs = graph.outputs.iter().map(|id| builder.output(*id)).collect();
    let folded_bytes = graph.folded_bytes;
    Ok(Plan { steps, consts: builder.consts, outputs, arena_bytes, folded_bytes })
}

struct Builder<'a> {
    graph: &'a Graph,
    places: &'a [Place],
    start: Vec<Option<usize>>,
    consts: Vec<Tensor>,
    const_at: Vec<Option<usize>>,
}

impl Builder<'_> {
    fn bytes(&self, id: ValueId) -> usize {
        self.graph.values[id.index()].out.as_ref().map_or(0, Out::bytes)
    }

    /// A value's range in the arena, if it is there.
    fn range(&self, id: ValueId) -> Option<Range<usize>> {
        let place = &self.places[id.index()];
        let from = self.start[place.root.index()]? + place.offset;
        let bytes = match (place.stride, self.graph.values[id.index()].out.as_ref()) {
            (Some(stride), Some(out)) => {
                let columns = out.shape.last().copied().unwrap_or(1).max(1);
                ((out.len() / columns).saturating_sub(1) * stride + columns) * out.dtype.bytes()
            }
            _ => self.bytes(id),
        };
        Some(from..from + bytes)
    }

    /// The number of a constant of the plan: a root, or a view of one, which shares its bytes.
    fn constant(&mut self, id: ValueId) -> Option<usize> {
        if let Some(at) = self.const_at[id.index()] {
            return Some(at);
        }
        let place = &self.places[id.index()];
        let root = self.graph.data(place.root)?;
        let shape = &self.graph.values[id.index()].out.as_ref()?.shape;
        let tensor = if root.len() == shape.iter().product::<usize>() {
            root.aligned().reshaped(shape)
        } else {
            let bytes = root.bytes().get(place.offset..place.offset + self.bytes(id))?;
            Tensor::of_dtype(root.dtype(), shape, bytes)
        };
        self.consts.push(tensor);
        self.const_at[id.index()] = Some(self.consts.len() - 1);
        self.const_at[id.index()]
    }

    fn step(&mut self, node: &Node, lowering: Lowering, scratch: usize) -> Step {
        let Lowering { lowered, outs } = lowering;
        assert!(outs.len() < OUTS_MAX, "an operator has at most {} outputs", OUTS_MAX - 1);
        let mut ranges: [Range<usize>; OUTS_MAX] = Default::default();
        for (i, range) in ranges.iter_mut().enumerate().take(outs.len()) {
            if let Some(found) = node.outputs.get(i).copied().flatten().and_then(|id| self.range(id)) {
                *range = found;
            }
        }
        ranges[outs.len()] = scratch..scratch + lowered.scratch_bytes;
        // Empty ranges go first, at nought, so that all ascend.
        let mut order: [usize; OUTS_MAX] = std::array::from_fn(|i| i);
        for range in ranges.iter_mut().filter(|range| range.start == range.end) {
            *range = 0..0;
        }
        order.sort_unstable_by_key(|i| (ranges[*i].start, ranges[*i].end));
        let writes: [Range<usize>; OUTS_MAX] = std::array::from_fn(|i| ranges[order[i]].clone());
        let slots = std::array::from_fn(|out| order.iter().position(|i| *i == out).unwrap_or(out));
        let ins = node.inputs.iter().enumerate().map(|(i, id)| match id {
            Some(id) if !lowered.unread.contains(&i) => self.loc(*id, &writes),
            _ => Loc::Absent,
        });
        Step {
            ins: ins.collect(),
            run: lowered.run,
            writes,
            slots,
            name: node.name.clone(),
            op: node.op.name(),
            kernel: lowered.kernel,
            outs,
        }
    }

    fn loc(&mut self, id: ValueId, writes: &[Range<usize>; OUTS_MAX]) -> Loc {
        if self.bytes(id) == 0 {
            return Loc::Absent;
        }
        if let Some(at) = self.constant(id) {
            return Loc::Const(at);
        }
        if let Some(range) = self.range(id) {
            // The gap after the last write that ends before the range.
            let gap = writes.iter().filter(|write| write.end <= range.start).count();
            let from = if gap == 0 { 0 } else { writes[gap - 1].end };
            return Loc::Arena { gap, range: range.start - from..range.end - from };
        }
        let place = &self.places[id.index()];
        let input = self.graph.inputs.iter().position(|input| *input == place.root);
        let input = input.expect("verified: a value is made, constant, or an input");
        Loc::Input { index: input, range: place.offset..place.offset + self.bytes(id) }
    }

    fn output(&mut self, id: ValueId) -> (OutputAt, Out) {
        let out = self.graph.values[id.index()].out.clone().expect("bound graphs have shapes");
        let none: [Range<usize>; OUTS_MAX] = Default::default();
        let at = match self.loc(id, &none) {
            Loc::Absent => OutputAt::Arena(0..0),
            Loc::Const(at) => OutputAt::Const(at),
            Loc::Input { index, range } => OutputAt::Input(index, range),
            Loc::Arena { .. } => OutputAt::Arena(self.range(id).unwrap_or_default()),
        };
        (at, out)
    }
}
