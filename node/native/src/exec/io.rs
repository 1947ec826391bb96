//! What a kernel sees while it runs: its inputs, outputs and scratch as slices.
//!
//! Invariant: outputs and scratch overlap nothing else of the step; inputs may overlap each other. The
//! planner computed the ranges, and [`carve`] cuts the arena along them with `split_at_mut`, so no unsafe
//! code is needed.

use std::ops::Range;

use bytemuck::AnyBitPattern;

use crate::error::OpError;
use crate::session::Input;
use crate::tensor::{ALIGN_BYTES, AlignedBuf, DType, Elem, Tensor};

/// Outputs and scratch of one step.
pub const OUTS_MAX: usize = 4;

/// Where an input of a step lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Loc {
    /// A skipped optional input.
    Absent,
    /// In the arena, in the gap with this number between the step's outputs.
    Arena {
        /// Number of the gap.
        gap: usize,
        /// Bytes within the gap.
        range: Range<usize>,
    },
    /// A constant of the plan.
    Const(usize),
    /// An input of the run.
    Input {
        /// Its number.
        index: usize,
        /// Bytes within it.
        range: Range<usize>,
    },
}

/// Rows of a batch.
#[derive(Debug, Clone, Copy)]
pub struct Rows {
    /// The first.
    pub from: usize,
    /// How many.
    pub count: usize,
    /// Of how many.
    pub all: usize,
}

impl Rows {
    /// Where they lie in the bytes of all.
    pub fn of(self, bytes: usize) -> Range<usize> {
        let each = bytes / self.all;
        self.from * each..(self.from + self.count) * each
    }
}

/// The inputs of a run, however many, without a list of their slices.
#[derive(Clone, Copy)]
pub struct RunInputs<'a> {
    /// As they came.
    pub inputs: &'a [Input<'a>],
    /// Copies of those that came unaligned, or more bytes.
    pub copies: &'a [AlignedBuf],
    /// The rows that this run takes of them; all, where there are none.
    pub rows: Option<Rows>,
}

impl<'a> RunInputs<'a> {
    /// The aligned bytes of an input.
    pub fn bytes(self, index: usize) -> &'a [u8] {
        let came = self.inputs[index].bytes;
        let bytes = if aligned(came) { came } else { &self.copies[index].bytes()[..came.len()] };
        match self.rows {
            None => bytes,
            Some(rows) => &bytes[rows.of(bytes.len())],
        }
    }
}

/// Whether kernels may read these bytes where they are.
pub fn aligned(bytes: &[u8]) -> bool {
    (bytes.as_ptr() as usize).is_multiple_of(ALIGN_BYTES)
}

/// Inputs by position.
pub enum Ins<'a> {
    /// A planned step: gaps of the arena, constants, and the inputs of the run.
    Planned {
        /// The arena around the step's outputs.
        gaps: [&'a [u8]; OUTS_MAX + 1],
        /// Where each input lies.
        locs: &'a [Loc],
        /// The plan's constants.
        consts: &'a [Tensor],
        /// The run's inputs.
        inputs: RunInputs<'a>,
    },
    /// An interpreted node.
    Direct(&'a [&'a [u8]]),
}

/// What a kernel sees.
pub struct Io<'a> {
    /// Inputs.
    pub ins: Ins<'a>,
    /// Outputs, then scratch.
    pub outs: [&'a mut [u8]; OUTS_MAX],
    /// Asked between the parts of a long step.
    pub cancelled: &'a dyn Fn() -> bool,
}

impl<'a> Io<'a> {
    /// The bytes of an input; empty where it is absent.
    pub fn bytes(&self, index: usize) -> &'a [u8] {
        match &self.ins {
            Ins::Direct(inputs) => inputs[index],
            Ins::Planned { gaps, locs, consts, inputs } => match &locs[index] {
                Loc::Absent => &[],
                Loc::Arena { gap, range } => &gaps[*gap][range.clone()],
                Loc::Const(at) => consts[*at].bytes(),
                Loc::Input { index, range } => &inputs.bytes(*index)[range.clone()],
            },
        }
    }

    /// An input's elements.
    ///
    /// # Panics
    /// When it is not aligned for them: the planner aligns everything.
    pub fn input<T: Elem>(&self, index: usize) -> &'a [T] {
        cast(self.bytes(index))
    }

    /// Takes an output's bytes; a second call gets none.
    pub fn take_bytes(&mut self, index: usize) -> &'a mut [u8] {
        std::mem::take(&mut self.outs[index])
    }

    /// Takes an output's elements; a second call gets none.
    pub fn take<T: Elem>(&mut self, index: usize) -> &'a mut [T] {
        bytemuck::cast_slice_mut(self.take_bytes(index))
    }

    /// An integer input as `i64`, whatever its width.
    pub fn ints(&self, index: usize, dtype: DType) -> Result<Ints<'a>, OpError> {
        Ok(match dtype {
            DType::I64 => Ints::Wide(self.input(index)),
            DType::I32 => Ints::Narrow(self.input(index)),
            other => return Err(OpError::DType { input: index, dtype: other }),
        })
    }
}

/// Indices of either width.
#[derive(Debug, Clone, Copy)]
pub enum Ints<'a> {
    /// `i64`.
    Wide(&'a [i64]),
    /// `i32`.
    Narrow(&'a [i32]),
}

impl Ints<'_> {
    /// The value at a position.
    pub fn at(&self, index: usize) -> i64 {
        match self {
            Self::Wide(values) => values[index],
            Self::Narrow(values) => i64::from(values[index]),
        }
    }

    /// The value at a position as an index into an axis, where negative values count from the end.
    ///
    /// # Errors
    /// [`OpError::Index`] outside the axis.
    pub fn index(&self, at: usize, len: usize) -> Result<usize, OpError> {
        wrap_index(self.at(at), len)
    }
}

/// An index into an axis of `len`, where negative values count from the end.
///
/// # Errors
/// [`OpError::Index`] outside the axis.
pub fn wrap_index(index: i64, len: usize) -> Result<usize, OpError> {
    let wrapped = if index < 0 { index + len as i64 } else { index };
    usize::try_from(wrapped).ok().filter(|i| *i < len).ok_or(OpError::Index { index, len })
}

/// Bytes as elements; nothing at all where there are no bytes.
fn cast<T: AnyBitPattern + bytemuck::NoUninit>(bytes: &[u8]) -> &[T] {
    if bytes.is_empty() { &[] } else { bytemuck::cast_slice(bytes) }
}

/// Cuts `arena` into the ranges of `outs`, which ascend and do not overlap (empty ranges may stand anywhere),
/// and the gaps around them.
pub fn carve<'a>(
    arena: &'a mut [u8],
    outs: &[Range<usize>],
) -> ([&'a [u8]; OUTS_MAX + 1], [&'a mut [u8]; OUTS_MAX]) {
    let mut gaps: [&'a [u8]; OUTS_MAX + 1] = [&[]; OUTS_MAX + 1];
    let mut cut: [&'a mut [u8]; OUTS_MAX] = Default::default();
    let mut rest = arena;
    let mut at = 0;
    for (i, range) in outs.iter().enumerate() {
        let (gap, tail) = rest.split_at_mut(range.start - at);
        let (out, tail) = tail.split_at_mut(range.len());
        gaps[i] = gap;
        cut[i] = out;
        rest = tail;
        at = range.end;
    }
    gaps[outs.len()] = rest;
    (gaps, cut)
}
