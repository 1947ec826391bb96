//! Operators that move elements and compute nothing: transpose, concat, split, slice, expand, tile, pad,
//! blocks, `Trilu`.

use super::fact::{Facts, Out, axis_of, broadcast, checked_len, strides_of};
use super::kernel::Lowered;
use super::strided::{Gathering, broadcast_strides};
use super::view::dims_of;
use crate::error::OpError;
use crate::exec::io::Io;
use crate::tensor::Elem;

/// Strides of a dense tensor, signed.
fn dense(shape: &[usize]) -> Vec<isize> {
    strides_of(shape).iter().map(|stride| *stride as isize).collect()
}

/// A kernel that is one strided copy.
fn gathering(kernel: &'static str, copy: Gathering) -> Lowered {
    Lowered::new(kernel, move |io| {
        copy.run(io.bytes(0), io.take_bytes(0));
        Ok(())
    })
}

/// The permutation of a `Transpose`; without one, the dimensions are reversed.
fn permutation(perm: &[i64], rank: usize) -> Result<Vec<usize>, OpError> {
    if perm.is_empty() {
        return Ok((0..rank).rev().collect());
    }
    let axes = perm.iter().map(|axis| axis_of(*axis, rank)).collect::<Result<Vec<_>, _>>()?;
    let mut sorted = axes.clone();
    sorted.sort_unstable();
    if sorted.iter().copied().eq(0..rank) {
        Ok(axes)
    } else {
        Err(OpError::Shape(format!("permutation {perm:?} of rank {rank}")))
    }
}

/// `Transpose`.
pub fn infer_transpose(ins: Facts<'_>, perm: &[i64]) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let perm = permutation(perm, x.rank())?;
    Ok(vec![Out::new(x.dtype, perm.iter().map(|axis| x.shape[*axis]).collect::<Vec<_>>())])
}

/// The kernel of `Transpose`.
pub fn lower_transpose(ins: Facts<'_>, perm: &[i64], out: &Out) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let strides = dense(x.shape);
    let perm = permutation(perm, x.rank())?;
    if let Some((count, rows, columns)) = matrices(&perm, x.shape) {
        return Ok(match x.dtype.bytes() {
            1 => turning::<u8>(count, rows, columns),
            2 => turning::<u16>(count, rows, columns),
            4 => turning::<u32>(count, rows, columns),
            _ => turning::<u64>(count, rows, columns),
        });
    }
    let strides: Vec<_> = perm.iter().map(|axis| strides[*axis]).collect();
    Ok(gathering("transpose", Gathering::new(&out.shape, 0, &strides, x.dtype.bytes())?))
}

/// A permutation that exchanges two blocks of axes after leading ones that stay: `count` transposes of
/// `[rows, columns]`.
fn matrices(perm: &[usize], shape: &[usize]) -> Option<(usize, usize, usize)> {
    let rank = perm.len();
    let lead = (0..rank).take_while(|i| perm[*i] == *i).count();
    let first = *perm.get(lead)?;
    let exchanged = (lead..rank).all(|i| perm[i] == lead + (i - lead + first - lead) % (rank - lead));
    let product = |range: std::ops::Range<usize>| shape[range].iter().product::<usize>();
    exchanged.then(|| (product(0..lead), product(lead..first), product(first..rank)))
}

fn turning<T: Elem>(count: usize, rows: usize, columns: usize) -> Lowered {
    Lowered::new("transpose", move |io| {
        let (x, out) = (io.input::<T>(0), io.take::<T>(0));
        let area = rows * columns;
        if area == 0 {
            return Ok(());
        }
        for (x, out) in x.chunks_exact(area).zip(out.chunks_exact_mut(area)).take(count) {
            roost_kernels::transpose(x, columns, rows, columns, out, rows);
        }
        Ok(())
    })
}

/// Whether a permutation moves no element of this shape: only ones change places.
pub fn moves_nothing(perm: &[i64], shape: &[usize]) -> bool {
    let Ok(perm) = permutation(perm, shape.len()) else { return false };
    let kept: Vec<_> = perm.into_iter().filter(|axis| shape[*axis] != 1).collect();
    kept.is_sorted()
}

/// `Concat`.
pub fn infer_concat(ins: Facts<'_>, axis: i64) -> Result<Vec<Out>, OpError> {
    let first = ins.need(0)?;
    let axis = axis_of(axis, first.rank())?;
    let mut shape = first.shape.to_vec();
    for i in 1..ins.count() {
        let next = ins.typed(i, &[first.dtype])?;
        let fits = next.rank() == shape.len()
            && (0..shape.len()).all(|d| d == axis || next.shape[d] == first.shape[d]);
        if !fits {
            return Err(OpError::Shape(format!(
                "concat of {:?} and {:?} on axis {axis}",
                first.shape, next.shape
            )));
        }
        shape[axis] = shape[axis].checked_add(next.shape[axis]).ok_or(OpError::Shape("concat".into()))?;
    }
    Ok(vec![Out::new(first.dtype, shape)])
}

/// The kernel of `Concat`: runs of bytes per input.
pub fn lower_concat(ins: Facts<'_>, axis: i64, out: &Out) -> Result<Lowered, OpError> {
    let axis = axis_of(axis, out.shape.len())?;
    let bytes = out.dtype.bytes();
    let run = |shape: &[usize]| shape[axis..].iter().product::<usize>() * bytes;
    let runs =
        (0..ins.count()).map(|i| ins.need(i).map(|fact| run(fact.shape))).collect::<Result<Vec<_>, _>>()?;
    let whole = run(&out.shape);
    Ok(Lowered::new("concat", move |io| {
        let target = io.take_bytes(0);
        if target.is_empty() {
            return Ok(());
        }
        let mut at = 0;
        for (i, run) in runs.iter().enumerate().filter(|(_, run)| **run > 0) {
            let source = io.bytes(i).chunks_exact(*run);
            target
                .chunks_exact_mut(whole)
                .zip(source)
                .for_each(|(row, part)| row[at..at + run].copy_from_slice(part));
            at += run;
        }
        Ok(())
    }))
}

/// The lengths of a `Split` on its axis.
pub fn split_lengths(ins: Facts<'_>, axis: usize, parts: usize) -> Result<Vec<usize>, OpError> {
    let len = ins.need(0)?.shape[axis];
    let lengths = match ins.ints(1)? {
        Some(lengths) => dims_of(ins.need(0)?.dtype, &lengths)?,
        None => {
            let part = len.div_ceil(parts.max(1));
            (0..parts).map(|i| part.min(len.saturating_sub(i * part))).collect()
        }
    };
    if lengths.len() != parts || lengths.iter().try_fold(0_usize, |sum, l| sum.checked_add(*l)) != Some(len) {
        return Err(OpError::Shape(format!("split of {len} into {lengths:?}, {parts} outputs")));
    }
    Ok(lengths)
}

/// `Split`. The importer makes one node per output, which takes part number `part` of `parts`.
pub fn infer_split(ins: Facts<'_>, axis: i64, part: usize, parts: usize) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let axis = axis_of(axis, x.rank())?;
    let mut shape = x.shape.to_vec();
    shape[axis] = split_lengths(ins, axis, parts)?[part];
    Ok(vec![Out::new(x.dtype, shape)])
}

/// Where a part of a `Split` starts on its axis.
pub fn split_start(ins: Facts<'_>, axis: i64, part: usize, parts: usize) -> Result<(usize, usize), OpError> {
    let axis = axis_of(axis, ins.need(0)?.rank())?;
    Ok((axis, split_lengths(ins, axis, parts)?[..part].iter().sum()))
}

/// The kernel of a part of a `Split`.
pub fn lower_split(
    ins: Facts<'_>,
    axis: i64,
    part: usize,
    parts: usize,
    out: &Out,
) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let (axis, start) = split_start(ins, axis, part, parts)?;
    let strides = dense(x.shape);
    let start = start as isize * strides[axis];
    Ok(gathering("split", Gathering::new(&out.shape, start, &strides, x.dtype.bytes())?))
}

/// Per axis: first index, step and length of a `Slice`.
pub fn slice_ranges(ins: Facts<'_>) -> Result<Vec<(isize, isize, usize)>, OpError> {
    let x = ins.need(0)?;
    let (starts, ends) = (ins.need_ints(1)?, ins.need_ints(2)?);
    let axes = ins.ints(3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = ins.ints(4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()].iter().any(|len| *len != starts.len()) {
        return Err(OpError::Shape("starts, ends, axes and steps differ in number".into()));
    }
    let mut ranges: Vec<_> = x.shape.iter().map(|dim| (0, 1, *dim)).collect();
    for i in 0..starts.len() {
        let axis = axis_of(axes[i], x.rank())?;
        let (dim, step) = (x.shape[axis] as i64, steps[i]);
        let from_end = |at: i64| if at < 0 { at.saturating_add(dim) } else { at };
        let (start, end) = match step.signum() {
            1 => (from_end(starts[i]).clamp(0, dim), from_end(ends[i]).clamp(0, dim)),
            -1 => (from_end(starts[i]).clamp(-1, dim - 1), from_end(ends[i]).clamp(-1, dim - 1)),
            _ => return Err(OpError::Shape("a slice with step 0".into())),
        };
        let span = if step > 0 { end - start } else { start - end };
        let len = if span <= 0 { 0 } else { (span as u64).div_ceil(step.unsigned_abs()) as usize };
        ranges[axis] = (start as isize, step as isize, len);
    }
    Ok(ranges)
}

/// `Slice`.
pub fn infer_slice(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let shape: Vec<_> = slice_ranges(ins)?.iter().map(|(_, _, len)| *len).collect();
    Ok(vec![Out::new(ins.need(0)?.dtype, shape)])
}

/// The kernel of `Slice`.
pub fn lower_slice(ins: Facts<'_>, out: &Out) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let strides = dense(x.shape);
    let ranges = slice_ranges(ins)?;
    let empty = out.is_empty();
    let start =
        if empty { 0 } else { ranges.iter().zip(&strides).map(|((start, ..), stride)| start * stride).sum() };
    // The step of an axis of one element is never taken, and may be any number.
    let step =
        |(_, step, len): &(isize, isize, usize), stride: &isize| if *len <= 1 { 0 } else { step * stride };
    let steps: Vec<_> = ranges.iter().zip(&strides).map(|(range, stride)| step(range, stride)).collect();
    Ok(gathering("slice", Gathering::new(&out.shape, start, &steps, x.dtype.bytes())?))
}

/// `Expand`.
pub fn infer_expand(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let shape = broadcast(x.shape, &dims_of(x.dtype, &ins.need_ints(1)?)?)?;
    checked_len(x.dtype, &shape)?;
    Ok(vec![Out::new(x.dtype, shape)])
}

/// The kernel of `Expand`.
pub fn lower_expand(ins: Facts<'_>, out: &Out) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let strides = broadcast_strides(x.shape, &out.shape);
    Ok(gathering("expand", Gathering::new(&out.shape, 0, &strides, x.dtype.bytes())?))
}

/// `Tile`.
pub fn infer_tile(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let (x, repeats) = (ins.need(0)?, ins.need_ints(1)?);
    let repeats = dims_of(x.dtype, &repeats)?;
    if repeats.len() != x.rank() {
        return Err(OpError::Shape(format!("{repeats:?} repeats of {:?}", x.shape)));
    }
    let dims: Option<Vec<_>> =
        x.shape.iter().zip(&repeats).map(|(dim, times)| dim.checked_mul(*times)).collect();
    let dims = dims.ok_or_else(|| OpError::Shape(format!("{repeats:?} repeats of {:?}", x.shape)))?;
    checked_len(x.dtype, &dims)?;
    Ok(vec![Out::new(x.dtype, dims)])
}

/// The kernel of `Tile`: each axis is two, the outer one with stride zero.
pub fn lower_tile(ins: Facts<'_>, out: &Out) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let (mut dims, mut strides) = (Vec::new(), Vec::new());
    for ((dim, stride), whole) in x.shape.iter().zip(dense(x.shape)).zip(&out.shape) {
        let times = if *dim == 0 { 0 } else { whole / dim };
        dims.extend([times, *dim]);
        strides.extend([0, stride]);
    }
    Ok(gathering("tile", Gathering::new(&dims, 0, &strides, x.dtype.bytes())?))
}

/// What `Pad` puts around.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PadMode {
    /// A value.
    Constant,
    /// The border's element.
    Edge,
    /// The elements mirrored, without the border.
    Reflect,
    /// The elements from the other side.
    Wrap,
}

/// Padding before and after each axis; negative values cut.
fn paddings(ins: Facts<'_>) -> Result<Vec<(i64, i64)>, OpError> {
    let (x, pads) = (ins.need(0)?, ins.need_ints(1)?);
    let axes = ins.ints(3)?.unwrap_or_else(|| (0..x.rank() as i64).collect());
    if pads.len() != 2 * axes.len() {
        return Err(OpError::Shape(format!("{} paddings for {} axes", pads.len(), axes.len())));
    }
    let mut around = vec![(0, 0); x.rank()];
    for (i, axis) in axes.iter().enumerate() {
        around[axis_of(*axis, x.rank())?] = (pads[i], pads[axes.len() + i]);
    }
    Ok(around)
}

/// A padding beyond the address space, whose sums with sizes would not stay within 64 bits.
const PAD_MAX: u64 = 1 << 48;

/// `Pad`: data, pads, value, axes.
pub fn infer_pad(ins: Facts<'_>) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let dims = x
        .shape
        .iter()
        .zip(paddings(ins)?)
        .map(|(dim, (before, after))| {
            let far = [before, after].iter().any(|pad| pad.unsigned_abs() > PAD_MAX);
            if far { None } else { (*dim as i64).checked_add(before)?.checked_add(after) }
        })
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| OpError::Shape("padding past the address space".into()))?;
    Ok(vec![Out::new(x.dtype, dims_of(x.dtype, &dims)?)])
}

/// The kernel of `Pad`: for each axis a table says which index is read, or none.
pub fn lower_pad(ins: Facts<'_>, mode: PadMode, out: &Out) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    if let Some(value) = ins.get(2).filter(|value| !value.is_empty()) {
        ins.typed(2, &[x.dtype])?;
        if value.len() != 1 {
            return Err(OpError::Shape("the value of Pad is one element".into()));
        }
    }
    let filled = ins.get(2).is_some_and(|value| value.len() == 1);
    let bytes = x.dtype.bytes();
    let mut axes = Vec::with_capacity(x.rank());
    let around = x.shape.iter().zip(&out.shape).zip(paddings(ins)?).zip(strides_of(x.shape));
    for (((dim, whole), (before, _)), stride) in around {
        if *dim == 0 && *whole > 0 && mode != PadMode::Constant {
            return Err(OpError::Shape("an empty axis has no border to pad with".into()));
        }
        axes.push(PaddedAxis { dim: *dim as i64, whole: *whole, before, stride });
    }
    Ok(Lowered::new("pad", move |io: &mut Io<'_>| {
        let fill = if filled { io.bytes(2) } else { &[0; 8][..bytes] };
        let (x, target) = (io.bytes(0), io.take_bytes(0));
        let pad = Padding { axes: &axes, mode, bytes, fill };
        pad.axis(0, Some(0), x, target);
        Ok(())
    }))
}

/// A dimension and what is put before and behind it.
struct PaddedAxis {
    dim: i64,
    whole: usize,
    before: i64,
    /// From an index to the next, in elements of x.
    stride: usize,
}

impl PaddedAxis {
    /// The index of x that is read at index `at` of the result; none where it is filled.
    fn source(&self, at: usize, mode: PadMode) -> Option<usize> {
        let (at, dim) = (at as i64 - self.before, self.dim);
        let at = match mode {
            _ if (0..dim).contains(&at) => at,
            PadMode::Constant => return None,
            PadMode::Edge => at.clamp(0, dim - 1),
            PadMode::Wrap => at.rem_euclid(dim),
            PadMode::Reflect if dim == 1 => 0,
            PadMode::Reflect => {
                let at = at.rem_euclid(2 * (dim - 1));
                at.min(2 * (dim - 1) - at)
            }
        };
        Some(at as usize)
    }
}

struct Padding<'a> {
    axes: &'a [PaddedAxis],
    mode: PadMode,
    bytes: usize,
    fill: &'a [u8],
}

impl Padding<'_> {
    /// Writes everything under one index of the axes before `axis`; `at` is `None` inside padding.
    fn axis(&self, axis: usize, at: Option<usize>, x: &[u8], target: &mut [u8]) {
        let Some(padded) = self.axes.get(axis) else {
            let element = at.map_or(self.fill, |at| &x[at * self.bytes..(at + 1) * self.bytes]);
            target.copy_from_slice(element);
            return;
        };
        if target.is_empty() {
            return;
        }
        let part = target.len() / padded.whole;
        for (i, target) in target.chunks_exact_mut(part).enumerate() {
            let source = padded.source(i, self.mode);
            let at = at.zip(source).map(|(at, index)| at + index * padded.stride);
            self.axis(axis + 1, at, x, target);
        }
    }
}

/// `DepthToSpace` and `SpaceToDepth`: a reshape to six dimensions, a transpose, a reshape.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Blocks {
    /// Depth to space, depth first.
    DepthColumnRow,
    /// Depth to space, column first.
    ColumnRowDepth,
    /// Space to depth.
    SpaceToDepth,
}

/// `DepthToSpace` or `SpaceToDepth`.
pub fn infer_blocks(ins: Facts<'_>, blocks: Blocks, block: usize) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let (&[n, c, h, w], true) = (x.shape, block > 0) else {
        return Err(OpError::Shape(format!("blocks of {block} in {:?}", x.shape)));
    };
    let refuse = || OpError::Shape(format!("blocks of {block} in {:?}", x.shape));
    let area = block.checked_mul(block).ok_or_else(refuse)?;
    let shape = match blocks {
        Blocks::SpaceToDepth if h % block == 0 && w % block == 0 => {
            [n, c.checked_mul(area).ok_or_else(refuse)?, h / block, w / block]
        }
        Blocks::DepthColumnRow | Blocks::ColumnRowDepth if c % area == 0 => {
            let spread = |size: usize| size.checked_mul(block).ok_or_else(refuse);
            [n, c / area, spread(h)?, spread(w)?]
        }
        _ => return Err(refuse()),
    };
    Ok(vec![Out::new(x.dtype, shape)])
}

/// The kernel of `DepthToSpace` or `SpaceToDepth`.
pub fn lower_blocks(ins: Facts<'_>, blocks: Blocks, block: usize, out: &Out) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let (n, c, h, w) = (x.shape[0], x.shape[1], x.shape[2], x.shape[3]);
    let [_, oc, oh, ow] = out.shape[..] else { return Err(OpError::Shape("rank".into())) };
    let (dims, perm) = match blocks {
        Blocks::DepthColumnRow => ([n, block, block, oc, h, w], [0, 3, 4, 1, 5, 2]),
        Blocks::ColumnRowDepth => ([n, oc, block, block, h, w], [0, 1, 4, 2, 5, 3]),
        Blocks::SpaceToDepth => ([n, c, oh, block, ow, block], [0, 3, 5, 1, 2, 4]),
    };
    let strides = dense(&dims);
    let (dims, strides) = (perm.map(|axis| dims[axis]), perm.map(|axis: usize| strides[axis]));
    Ok(gathering("blocks", Gathering::new(&dims, 0, &strides, x.dtype.bytes())?))
}

/// The kernel of `Trilu`: the upper or lower triangle of the last two dimensions.
pub fn lower_trilu(ins: Facts<'_>, upper: bool) -> Result<Lowered, OpError> {
    let x = ins.need(0)?;
    let k = if ins.get(1).is_some() { ins.need_int(1)? } else { 0 };
    let [.., rows, columns] = *x.shape else {
        return Err(OpError::Shape(format!("a triangle of {:?}", x.shape)));
    };
    let bytes = x.dtype.bytes();
    Ok(Lowered::new("trilu", move |io| {
        let x = io.bytes(0);
        let target = io.take_bytes(0);
        if target.is_empty() {
            return Ok(());
        }
        let pairs = target.chunks_exact_mut(columns * bytes).zip(x.chunks_exact(columns * bytes));
        for (i, (target, row)) in pairs.enumerate() {
            let diagonal = ((i % rows) as i64).saturating_add(k);
            let cut = if upper { diagonal } else { diagonal.saturating_add(1) }.clamp(0, columns as i64)
                as usize
                * bytes;
            let (kept, zero) =
                if upper { (cut..columns * bytes, 0..cut) } else { (0..cut, cut..columns * bytes) };
            target[kept.clone()].copy_from_slice(&row[kept]);
            target[zero].fill(0);
        }
        Ok(())
    }))
}
