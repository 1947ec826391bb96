//! `Einsum`: parses the equation and sums products over the letters that the output does not have.
//!
//! Right, not fast: one walk over the output, and for each element one ascending walk over the summed
//! letters.

use super::fact::{Facts, Out, checked_len, strides_of};
use super::kernel::Lowered;
use super::strided::Walk;
use crate::error::OpError;
use crate::tensor::{DType, Elem};

/// What the equation says for these shapes: letters, their lengths, and which letters each input has.
struct Equation {
    /// Output letters first, summed letters after.
    lengths: Vec<usize>,
    outputs: usize,
    /// Per input, the stride of each letter.
    strides: Vec<Vec<isize>>,
}

/// Letters of the ellipsis are numbered apart from the named ones.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Label {
    Ellipsis(usize),
    Letter(char),
}

fn parse(equation: &str, ins: Facts<'_>) -> Result<Equation, OpError> {
    let refuse = |what: &str| OpError::Shape(format!("einsum {equation:?}: {what}"));
    let text: String = equation.chars().filter(|c| !c.is_whitespace()).collect();
    let (left, right) = match text.split_once("->") {
        Some((left, right)) => (left, Some(right)),
        None => (&text[..], None),
    };
    let terms: Vec<&str> = left.split(',').collect();
    if terms.len() != ins.count() {
        return Err(refuse("the number of terms is not that of inputs"));
    }
    // The ellipsis is as long as the longest that any input needs; shorter ones align at their end.
    let mut ellipsis = 0;
    for (i, term) in terms.iter().enumerate() {
        let named = term.replace("...", "").chars().count();
        let rank = ins.need(i)?.rank();
        match term.contains("...") {
            true => {
                ellipsis = ellipsis.max(rank.checked_sub(named).ok_or_else(|| refuse("too many letters"))?)
            }
            false if named != rank => return Err(refuse("the number of letters is not the rank")),
            false => {}
        }
    }
    let labels = |term: &str, dots: usize| -> Result<Vec<Label>, OpError> {
        let (before, after) =
            term.split_once("...").map_or((term, None), |(before, after)| (before, Some(after)));
        let mut labels: Vec<Label> = before.chars().map(Label::Letter).collect();
        if let Some(after) = after {
            labels.extend((ellipsis - dots..ellipsis).map(Label::Ellipsis));
            labels.extend(after.chars().map(Label::Letter));
        }
        let bad = labels.iter().any(|label| matches!(label, Label::Letter(c) if !c.is_ascii_alphabetic()));
        if bad { Err(refuse("a term has something else than letters")) } else { Ok(labels) }
    };
    let mut inputs = Vec::new();
    for (i, term) in terms.iter().enumerate() {
        let named = term.replace("...", "").chars().count();
        inputs.push(labels(term, if term.contains("...") { ins.need(i)?.rank() - named } else { 0 })?);
    }
    let mut all: Vec<Label> = inputs.concat();
    all.sort_unstable();
    let counts = |label: &Label| all.iter().filter(|other| *other == label).count();
    let outputs: Vec<Label> = match right {
        Some(right) => labels(right, ellipsis)?,
        // Without an arrow: the ellipsis, and letters that occur once, in alphabetical order.
        None => {
            let mut once = all.clone();
            once.dedup();
            once.retain(|label| matches!(label, Label::Ellipsis(_)) || counts(label) == 1);
            once
        }
    };
    let mut order = outputs.clone();
    let mut rest = all.clone();
    rest.dedup();
    order.extend(rest.into_iter().filter(|label| !outputs.contains(label)));
    let mut lengths = vec![1_usize; order.len()];
    for (i, labels) in inputs.iter().enumerate() {
        for (label, &dim) in labels.iter().zip(ins.need(i)?.shape) {
            let at =
                order.iter().position(|other| other == label).ok_or_else(|| refuse("a letter is unknown"))?;
            match (lengths[at], dim) {
                (_, 1) => {}
                (1, dim) => lengths[at] = dim,
                (known, dim) if known == dim => {}
                (known, dim) => return Err(refuse(&format!("a letter is {known} and {dim}"))),
            }
        }
    }
    for label in &outputs {
        if counts(label) == 0 || outputs.iter().filter(|other| *other == label).count() > 1 {
            return Err(refuse("an output letter is unknown or repeated"));
        }
    }
    let mut strides = Vec::new();
    for (i, labels) in inputs.iter().enumerate() {
        let shape = ins.need(i)?.shape;
        let own = strides_of(shape);
        // A letter twice in one term is its diagonal: strides add.
        let stride = |label: &Label| {
            let here = labels
                .iter()
                .zip(shape.iter().zip(&own))
                .filter(|(other, (dim, _))| *other == label && **dim != 1);
            here.map(|(_, (_, stride))| *stride as isize).sum()
        };
        strides.push(order.iter().map(stride).collect());
    }
    Ok(Equation { lengths, outputs: outputs.len(), strides })
}

/// `Einsum`.
pub fn infer(ins: Facts<'_>, equation: &str) -> Result<Vec<Out>, OpError> {
    let first = ins.need(0)?;
    for i in 1..ins.count() {
        ins.typed(i, &[first.dtype])?;
    }
    let equation = parse(equation, ins)?;
    let shape = &equation.lengths[..equation.outputs];
    checked_len(first.dtype, shape)?;
    Ok(vec![Out::new(first.dtype, shape)])
}

/// The kernel of `Einsum`, over one to three inputs.
pub fn lower(ins: Facts<'_>, equation: &str) -> Result<Lowered, OpError> {
    let parsed = parse(equation, ins)?;
    match ins.count() {
        1 => typed::<1>(ins, &parsed),
        2 => typed::<2>(ins, &parsed),
        3 => typed::<3>(ins, &parsed),
        more => Err(OpError::Unsupported(format!("an einsum of {more} inputs"))),
    }
}

fn typed<const N: usize>(ins: Facts<'_>, equation: &Equation) -> Result<Lowered, OpError> {
    let (outputs, summed) = equation.lengths.split_at(equation.outputs);
    let part = |range: std::ops::Range<usize>| {
        std::array::from_fn::<_, N, _>(|i| equation.strides[i][range.clone()].to_vec())
    };
    let (outer, inner) = (part(0..equation.outputs), part(equation.outputs..equation.lengths.len()));
    let walks = || -> Result<_, OpError> {
        let kept = Walk::new(outputs, std::array::from_fn(|i| &outer[i][..]))?;
        let sums = Walk::new(summed, std::array::from_fn(|i| &inner[i][..]))?;
        Ok((kept, sums))
    };
    let (kept, sums) = walks()?;
    Ok(match ins.need(0)?.dtype {
        DType::F32 => summing::<f32, N>(kept, sums, 0.0, 1.0, |a, b, c| a.mul_add(b, c), |a, b| a * b),
        DType::F64 => summing::<f64, N>(kept, sums, 0.0, 1.0, |a, b, c| a.mul_add(b, c), |a, b| a * b),
        DType::I32 => summing::<i32, N>(
            kept,
            sums,
            0,
            1,
            |a, b, c| a.wrapping_mul(b).wrapping_add(c),
            i32::wrapping_mul,
        ),
        DType::I64 => summing::<i64, N>(
            kept,
            sums,
            0,
            1,
            |a, b, c| a.wrapping_mul(b).wrapping_add(c),
            i64::wrapping_mul,
        ),
        other => return Err(OpError::DType { input: 0, dtype: other }),
    })
}

fn summing<T: Elem, const N: usize>(
    kept: Walk<N>,
    sums: Walk<N>,
    zero: T,
    one: T,
    fma: fn(T, T, T) -> T,
    mul: fn(T, T) -> T,
) -> Lowered {
    Lowered::new("einsum", move |io| {
        let inputs: [&[T]; N] = std::array::from_fn(|i| io.input::<T>(i));
        let out = io.take::<T>(0);
        let (inner, steps) = (kept.inner(), kept.inner_strides());
        kept.rows(|row, at| {
            for i in 0..inner {
                let base: [isize; N] = std::array::from_fn(|n| at[n] + i as isize * steps[n]);
                let mut sum = zero;
                let (count, strides) = (sums.inner(), sums.inner_strides());
                sums.rows(|_, from| {
                    for k in 0..count {
                        let value =
                            |n: usize| inputs[n][(base[n] + from[n] + k as isize * strides[n]) as usize];
                        let product =
                            (1..N - usize::from(N > 1)).fold(value(0), |product, n| mul(product, value(n)));
                        let last = if N > 1 { value(N - 1) } else { one };
                        sum = fma(product, last, sum);
                    }
                });
                out[row * inner + i] = sum;
            }
        });
        Ok(())
    })
}
