//! Runs a graph node by node, each result in memory of its own.
//!
//! It serves where no plan can: constant folding, branches of `If`, and graphs in which a shape depends on
//! data. The same kernels run as in a plan, so results have the same bits.

use crate::error::{OpError, RunError};
use crate::exec::io::{Ins, Io, OUTS_MAX};
use crate::graph::ir::{Graph, Node, ValueId};
use crate::ops::fact::{Fact, Facts, Out};
use crate::ops::kernel::Lowered;
use crate::ops::{Op, Target, infer, lower};
use crate::tensor::{AlignedBuf, DType, Tensor};

/// What holds for a whole interpretation.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// What a run makes takes no more: results that are still read, and a kernel's outputs and scratch, all
    /// together.
    pub bytes_max: u64,
    /// Asked between nodes.
    pub cancelled: &'a dyn Fn() -> bool,
    /// The kernels.
    pub target: Target<'a>,
}

/// Facts of tensors; those that `pinned` says are constants of the graph.
fn facts<'a>(inputs: &[Option<&'a Tensor>], pinned: &[bool]) -> Vec<Option<Fact<'a>>> {
    let fact = |(i, tensor): (usize, &Option<&'a Tensor>)| {
        let tensor = (*tensor)?;
        let pinned = pinned.get(i).copied().unwrap_or(false);
        Some(Fact { dtype: tensor.dtype(), shape: tensor.shape(), value: Some(tensor), pinned })
    };
    inputs.iter().enumerate().map(fact).collect()
}

/// The bytes of a tensor as if no dimension were nought: tables are made along each dimension, also of empty
/// tensors.
pub fn extent(dtype: DType, shape: &[usize]) -> u128 {
    shape.iter().fold(dtype.bytes() as u128, |all, dim| all.saturating_mul((*dim).max(1) as u128))
}

/// Refuses outputs that take more than the limit together.
///
/// # Errors
/// [`OpError::TooLarge`].
pub fn check_sizes(outs: &[Out], bytes_max: u64) -> Result<(), OpError> {
    let bytes = outs.iter().fold(0, |sum: u128, out| sum.saturating_add(extent(out.dtype, &out.shape)));
    if bytes > u128::from(bytes_max) {
        return Err(OpError::TooLarge { bytes, bytes_max });
    }
    Ok(())
}

/// Computes one node; gives all its outputs, wanted or not. Inputs that are `pinned` may be kept packed.
///
/// # Errors
/// [`OpError`].
pub fn node(
    node: &Node,
    inputs: &[Option<&Tensor>],
    pinned: &[bool],
    context: Context<'_>,
) -> Result<Vec<Tensor>, OpError> {
    if let Op::If { then, otherwise } = &node.op {
        return branch(then, otherwise, inputs, context);
    }
    let facts = facts(inputs, pinned);
    let outs = infer(&node.op, Facts(&facts))?;
    check_sizes(&outs, context.bytes_max)?;
    if node.op.is_view()
        && let Some(Some(x)) = inputs.first()
    {
        return Ok(vec![x.reshaped(&outs[0].shape)]);
    }
    let lowered = lower(&node.op, Facts(&facts), &outs, context.target)?;
    run(&lowered, &outs, inputs, context)
}

/// Runs a compiled node into fresh memory.
///
/// # Errors
/// [`OpError::TooLarge`] where outputs and scratch take more than the limit together, [`OpError::Memory`];
/// else as the kernel.
pub fn run(
    lowered: &Lowered,
    outs: &[Out],
    inputs: &[Option<&Tensor>],
    context: Context<'_>,
) -> Result<Vec<Tensor>, OpError> {
    let bytes = outs.iter().map(Out::bytes).chain([lowered.scratch_bytes]).map(|bytes| bytes as u128).sum();
    let bytes_max = context.bytes_max;
    if bytes > u128::from(bytes_max) {
        return Err(OpError::TooLarge { bytes, bytes_max });
    }
    let read = |i: usize| inputs[i].filter(|_| !lowered.unread.contains(&i));
    let aligned: Vec<Option<Tensor>> = (0..inputs.len()).map(|i| read(i).map(Tensor::aligned)).collect();
    let slices: Vec<&[u8]> =
        aligned.iter().map(|tensor| tensor.as_ref().map_or(&[][..], Tensor::bytes)).collect();
    let sizes = outs.iter().map(Out::bytes).chain([lowered.scratch_bytes]);
    let mut buffers = sizes.map(AlignedBuf::try_zeroed).collect::<Result<Vec<_>, _>>()?;
    assert!(buffers.len() <= OUTS_MAX, "an operator has at most {} outputs", OUTS_MAX - 1);
    let mut slots: [&mut [u8]; OUTS_MAX] = Default::default();
    for (slot, buffer) in slots.iter_mut().zip(&mut buffers) {
        *slot = buffer.bytes_mut();
    }
    (lowered.run)(&mut Io { ins: Ins::Direct(&slices), outs: slots, cancelled: context.cancelled })?;
    let tensors =
        outs.iter().zip(buffers).map(|(out, buffer)| Tensor::from_buf(out.dtype, out.shape.clone(), buffer));
    Ok(tensors.map(|tensor| tensor.expect("the buffer was made for this shape")).collect())
}

fn branch(
    then: &Graph,
    otherwise: &Graph,
    inputs: &[Option<&Tensor>],
    context: Context<'_>,
) -> Result<Vec<Tensor>, OpError> {
    let condition = inputs.first().copied().flatten().ok_or(OpError::MissingInput(0))?;
    let Some([flag]) =
        condition.ints().as_deref().map(<[i64]>::to_vec).and_then(|v| <[i64; 1]>::try_from(v).ok())
    else {
        return Err(OpError::Shape(format!("a condition of shape {:?}", condition.shape())));
    };
    let taken: Option<Vec<Tensor>> = inputs[1..].iter().map(|tensor| tensor.cloned()).collect();
    let taken = taken.ok_or(OpError::MissingInput(1))?;
    match graph(if flag != 0 { then } else { otherwise }, taken, context) {
        Ok(outputs) => Ok(outputs),
        Err(RunError::Op { source, .. }) => Err(source),
        Err(RunError::Cancelled) => Err(OpError::Cancelled),
        Err(other) => Err(OpError::Shape(other.to_string())),
    }
}

/// Runs a graph on its inputs.
///
/// # Errors
/// [`RunError::Op`], [`RunError::Cancelled`].
pub fn graph(graph: &Graph, inputs: Vec<Tensor>, context: Context<'_>) -> Result<Vec<Tensor>, RunError> {
    let mut values: Vec<Option<Tensor>> = vec![None; graph.values.len()];
    // Of the values that are still read; those that share memory are counted each.
    let mut live_bytes: u64 = 0;
    for (id, tensor) in graph.inputs.iter().zip(inputs) {
        live_bytes += tensor.bytes().len() as u64;
        values[id.index()] = Some(tensor);
    }
    let mut uses = graph.uses();
    for item in &graph.nodes {
        if (context.cancelled)() {
            return Err(RunError::Cancelled);
        }
        let fail = |source: OpError| match source {
            OpError::Cancelled => RunError::Cancelled,
            source => RunError::Op { node: item.name.clone(), op: item.op.name().to_owned(), source },
        };
        let outputs = {
            let value = |id: &Option<_>| {
                id.map(|id: ValueId| {
                    graph
                        .data(id)
                        .or(values[id.index()].as_ref())
                        .expect("verified: values are made before they are read")
                })
            };
            let inputs: Vec<Option<&Tensor>> = item.inputs.iter().map(value).collect();
            let constant = |id: &Option<ValueId>| id.is_some_and(|id| graph.data(id).is_some());
            let pinned: Vec<bool> = item.inputs.iter().map(constant).collect();
            let bytes_max = context.bytes_max.saturating_sub(live_bytes);
            node(item, &inputs, &pinned, Context { bytes_max, ..context }).map_err(fail)?
        };
        for (id, tensor) in item.outputs.iter().zip(outputs) {
            if let Some(id) = id {
                live_bytes += tensor.bytes().len() as u64;
                values[id.index()] = Some(tensor);
            }
        }
        for id in item.inputs.iter().flatten() {
            uses[id.index()] -= 1;
            if uses[id.index()] == 0
                && let Some(tensor) = values[id.index()].take()
            {
                live_bytes = live_bytes.saturating_sub(tensor.bytes().len() as u64);
            }
        }
    }
    let output = |id: &ValueId| {
        let value = graph.data(*id).or(values[id.index()].as_ref());
        value.expect("verified: outputs are made").clone()
    };
    Ok(graph.outputs.iter().map(output).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::pack::Packing;

    #[test]
    fn outputs_and_scratch_count_together() {
        let packing = Packing::new(0);
        let target = Target { kernels: roost_kernels::Kernels::best(), packing: &packing };
        let (a, b) = (Tensor::of(&[40, 16], &[1.0_f32; 640]), Tensor::of(&[16, 32], &[1.0_f32; 512]));
        let product = Node { op: Op::MatMul, inputs: Vec::new(), outputs: Vec::new(), name: String::new() };
        let within = |bytes_max: u64| {
            let context = Context { bytes_max, cancelled: &|| false, target };
            node(&product, &[Some(&a), Some(&b)], &[], context)
        };
        // The result; B as the kernel reads it is scratch, and larger than nothing.
        let result = 40 * 32 * 4;
        let Err(OpError::TooLarge { bytes, .. }) = within(result) else { panic!("no scratch is counted") };
        assert!(bytes >= u128::from(result) + 16 * 32 * 4, "{bytes}");
        let enough = u64::try_from(bytes).expect("it is small");
        assert_eq!(within(enough - 1).err(), Some(OpError::TooLarge { bytes, bytes_max: enough - 1 }));
        assert_eq!(within(enough).expect("it fits")[0].floats(), [16.0; 40 * 32]);
    }
}
