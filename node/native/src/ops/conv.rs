//! Convolution windows, and the convolutions themselves in NCHW for any number of spatial dimensions.
//!
//! Order: taps ascending, channels within a tap, which is the order of the kernels' NHWC convolution too;
//! taps in the padding are skipped.

use super::fact::{Facts, Out, checked_len};
use super::kernel::Lowered;
use crate::error::OpError;
use crate::tensor::DType;

/// Automatic padding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AutoPad {
    /// As the attribute says.
    NotSet,
    /// Output as large as input over stride, the odd element after.
    SameUpper,
    /// Output as large as input over stride, the odd element before.
    SameLower,
    /// None.
    Valid,
}

/// Attributes of convolutions and pools; empty lists mean the defaults.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Size of the window; for convolutions the weights say it.
    pub kernel: Vec<usize>,
    /// Steps.
    pub strides: Vec<usize>,
    /// Distances between taps.
    pub dilations: Vec<usize>,
    /// Padding, all starts, then all ends.
    pub pads: Vec<i64>,
    /// Automatic padding.
    pub auto_pad: AutoPad,
    /// Whether a window that starts inside but ends outside counts.
    pub ceil_mode: bool,
}

/// A window along one spatial dimension, for one shape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Span {
    /// Length of the input.
    pub input: usize,
    /// Length of the output.
    pub output: usize,
    /// Number of taps.
    pub kernel: usize,
    /// Step.
    pub stride: usize,
    /// Distance between taps.
    pub dilation: usize,
    /// Padding before.
    pub before: usize,
    /// Padding after, as the attribute says.
    pub after: usize,
}

impl Span {
    /// The taps of output `o` that lie in the input.
    pub fn taps(&self, o: usize) -> std::ops::Range<usize> {
        let first = o * self.stride;
        let low = self.before.saturating_sub(first).div_ceil(self.dilation).min(self.kernel);
        let high = (self.input + self.before).saturating_sub(first).div_ceil(self.dilation).min(self.kernel);
        low..high.max(low)
    }

    /// The input index of tap `k` of output `o`, which must be one of [`Span::taps`].
    pub fn at(&self, o: usize, k: usize) -> usize {
        o * self.stride + k * self.dilation - self.before
    }
}

/// Taps of a window, all dimensions together: they are walked for every output. No network has a thousandth
/// of it.
const TAPS_MAX: usize = 1 << 20;
/// A stride, dilation or padding: their products with sizes must stay far from the end of the address space.
const REACH_MAX: usize = 1 << 24;

/// Refuses windows that would be walked for ever, or whose arithmetic would overflow.
fn check_reach(
    kernel: &[usize],
    strides: &[usize],
    dilations: &[usize],
    pads: &[i64],
) -> Result<(), OpError> {
    let taps =
        kernel.iter().try_fold(1_usize, |all, taps| all.checked_mul(*taps).filter(|all| *all <= TAPS_MAX));
    let far = strides.iter().chain(dilations).any(|reach| *reach > REACH_MAX)
        || pads.iter().any(|pad| pad.unsigned_abs() > REACH_MAX as u64);
    if taps.is_none() || far {
        return Err(OpError::Unsupported(format!("a window of {kernel:?} taps, or its steps or padding")));
    }
    Ok(())
}

impl Window {
    /// The window along each spatial dimension.
    ///
    /// # Errors
    /// [`OpError::Shape`] where attributes and shape do not fit.
    pub fn spans(&self, spatial: &[usize], kernel: &[usize]) -> Result<Vec<Span>, OpError> {
        let rank = spatial.len();
        let refuse = || OpError::Shape(format!("window {self:?} of {kernel:?} on {spatial:?}"));
        let list = |list: &[usize]| match list.len() {
            0 => Ok(vec![1; rank]),
            len if len == rank && !list.contains(&0) => Ok(list.to_vec()),
            _ => Err(refuse()),
        };
        let (strides, dilations) = (list(&self.strides)?, list(&self.dilations)?);
        check_reach(kernel, &strides, &dilations, &self.pads)?;
        if kernel.len() != rank || kernel.contains(&0) || ![0, 2 * rank].contains(&self.pads.len()) {
            return Err(refuse());
        }
        let pads = self.pads.iter().map(|pad| usize::try_from(*pad).map_err(|_| refuse()));
        let pads = pads.collect::<Result<Vec<_>, _>>()?;
        (0..rank)
            .map(|d| {
                let (input, stride, dilation) = (spatial[d], strides[d], dilations[d]);
                let reach = (kernel[d] - 1)
                    .checked_mul(dilation)
                    .and_then(|r| r.checked_add(1))
                    .ok_or_else(refuse)?;
                let (before, after) = match self.auto_pad {
                    AutoPad::NotSet if pads.is_empty() => (0, 0),
                    AutoPad::NotSet => (pads[d], pads[rank + d]),
                    AutoPad::Valid => (0, 0),
                    AutoPad::SameUpper | AutoPad::SameLower => {
                        let output = input.div_ceil(stride);
                        let total =
                            (output.saturating_sub(1) * stride).saturating_add(reach).saturating_sub(input);
                        let less = total / 2;
                        if self.auto_pad == AutoPad::SameUpper {
                            (less, total - less)
                        } else {
                            (total - less, less)
                        }
                    }
                };
                let padded =
                    input.checked_add(before).and_then(|l| l.checked_add(after)).ok_or_else(refuse)?;
                let free = padded.checked_sub(reach).ok_or_else(refuse)?;
                let mut output = if self.ceil_mode { free.div_ceil(stride) } else { free / stride } + 1;
                // A window that starts in the padding after the input has nothing to see.
                if self.ceil_mode && (output - 1) * stride >= input + before {
                    output -= 1;
                }
                Ok(Span { input, output, kernel: kernel[d], stride, dilation, before, after })
            })
            .collect()
    }
}

/// A convolution for one shape.
#[derive(Debug, Clone)]
pub struct Conv {
    /// Images.
    pub batch: usize,
    /// Groups.
    pub group: usize,
    /// Input channels of a group.
    pub channels_in: usize,
    /// Output channels of a group.
    pub channels_out: usize,
    /// Windows by spatial dimension.
    pub spans: Vec<Span>,
}

/// The geometry of a convolution of `x` `[N, C, ...]` by `w` `[M, C / group, ...]`.
pub fn geometry(x: &[usize], w: &[usize], window: &Window, group: usize) -> Result<Conv, OpError> {
    let refuse = || OpError::Shape(format!("convolution of {x:?} by {w:?} in {group} groups"));
    if x.len() < 3
        || w.len() != x.len()
        || group == 0
        || !w[0].is_multiple_of(group)
        || w[1].checked_mul(group) != Some(x[1])
    {
        return Err(refuse());
    }
    let spans = window.spans(&x[2..], if window.kernel.is_empty() { &w[2..] } else { &window.kernel })?;
    if spans.iter().zip(&w[2..]).any(|(span, kernel)| span.kernel != *kernel) {
        return Err(refuse());
    }
    Ok(Conv { batch: x[0], group, channels_in: w[1], channels_out: w[0] / group, spans })
}

impl Conv {
    /// Output shape, NCHW.
    pub fn shape(&self) -> Vec<usize> {
        let mut shape = vec![self.batch, self.group * self.channels_out];
        shape.extend(self.spans.iter().map(|span| span.output));
        shape
    }

    /// Calls `visit(outputs, taps)` — for each output position the number of it, and the list of
    /// (kernel position, input position) that are inside, in ascending order.
    pub fn positions(&self, mut visit: impl FnMut(usize, &mut dyn Iterator<Item = (usize, usize)>)) {
        let all: usize = self.spans.iter().map(|span| span.output).product();
        let rank = self.spans.len();
        for number in 0..all {
            let mut output = [0_usize; super::fact::RANK_MAX];
            let mut rest = number;
            for d in (0..rank).rev() {
                output[d] = rest % self.spans[d].output;
                rest /= self.spans[d].output;
            }
            let taps: usize = self.spans.iter().map(|span| span.kernel).product();
            let mut inside = (0..taps).filter_map(|tap| {
                let (mut at, mut step, mut rest) = (0, 1, tap);
                for d in (0..rank).rev() {
                    let span = &self.spans[d];
                    let k = rest % span.kernel;
                    rest /= span.kernel;
                    if !span.taps(output[d]).contains(&k) {
                        return None;
                    }
                    at += span.at(output[d], k) * step;
                    step *= span.input;
                }
                Some((tap, at))
            });
            visit(number, &mut inside);
        }
    }

    /// Elements of one input channel.
    pub fn input_area(&self) -> usize {
        self.spans.iter().map(|span| span.input).product()
    }

    /// Elements of one output channel.
    pub fn output_area(&self) -> usize {
        self.spans.iter().map(|span| span.output).product()
    }

    /// Taps of the window.
    pub fn taps(&self) -> usize {
        self.spans.iter().map(|span| span.kernel).product()
    }

    /// Bytes of scratch that [`Conv::run`] wants.
    pub fn scratch_bytes(&self) -> usize {
        self.taps() * size_of::<[u64; 2]>()
    }

    /// The plain convolution: each output is one chain over taps, then channels, which `mac` extends by the
    /// elements of x and w at two positions, for a filter. Operands go by position since not all have one
    /// type.
    ///
    /// # Panics
    /// When `scratch` is no [`Conv::scratch_bytes`] long or not aligned.
    pub fn run<A: Copy>(
        &self,
        scratch: &mut [u8],
        zero: A,
        mac: impl Fn(A, usize, usize, usize) -> A,
        mut put: impl FnMut(usize, usize, A),
    ) {
        let (area_in, area_out, taps) = (self.input_area(), self.output_area(), self.taps());
        let (cin, cout) = (self.channels_in, self.channels_out);
        let room: &mut [[u64; 2]] = bytemuck::cast_slice_mut(scratch);
        self.positions(|number, list| {
            let mut count = 0;
            for (pair, (tap, at)) in room.iter_mut().zip(list) {
                *pair = [tap as u64, at as u64];
                count += 1;
            }
            let inside = &room[..count];
            for n in 0..self.batch {
                for m in 0..self.group * cout {
                    let g = m / cout;
                    let mut sum = zero;
                    for [tap, at] in inside {
                        for c in 0..cin {
                            let x = ((n * self.group + g) * cin + c) * area_in + *at as usize;
                            sum = mac(sum, x, (m * cin + c) * taps + *tap as usize, m);
                        }
                    }
                    put((n * self.group * cout + m) * area_out + number, m, sum);
                }
            }
        });
    }
}

/// `Conv`: the output's shape.
pub fn infer(ins: Facts<'_>, window: &Window, group: usize) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let w = ins.typed(1, &[x.dtype])?;
    let conv = geometry(x.shape, w.shape, window, group)?;
    if let Some(bias) = ins.get(2) {
        ins.typed(2, &[x.dtype])?;
        if bias.shape != [w.shape[0]] {
            return Err(OpError::Shape(format!("bias {:?} of {} channels", bias.shape, w.shape[0])));
        }
    }
    let shape = conv.shape();
    checked_len(x.dtype, &shape)?;
    Ok(vec![Out::new(x.dtype, shape)])
}

/// Attributes of `ConvTranspose` beyond the window.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transposed {
    /// The window.
    pub window: Window,
    /// Groups.
    pub group: usize,
    /// Added to the output's end.
    pub output_padding: Vec<usize>,
    /// The output's spatial size, if given.
    pub output_shape: Vec<usize>,
}

/// The geometry of a transposed convolution, as that of the convolution whose gradient it is: `input` and
/// `output` change places.
pub fn transposed_geometry(x: &[usize], w: &[usize], attributes: &Transposed) -> Result<Conv, OpError> {
    let refuse = || OpError::Shape(format!("transposed convolution of {x:?} by {w:?}: {attributes:?}"));
    let group = attributes.group;
    if x.len() < 3 || w.len() != x.len() || group == 0 || w[0] != x[1] || !w[0].is_multiple_of(group) {
        return Err(refuse());
    }
    let rank = x.len() - 2;
    let list = |list: &[usize], default: usize| match list.len() {
        0 => Ok(vec![default; rank]),
        len if len == rank => Ok(list.to_vec()),
        _ => Err(refuse()),
    };
    let window = &attributes.window;
    let (strides, dilations) = (list(&window.strides, 1)?, list(&window.dilations, 1)?);
    check_reach(&w[2..], &strides, &dilations, &window.pads)?;
    if attributes.output_padding.iter().chain(&attributes.output_shape).any(|size| *size > REACH_MAX) {
        return Err(refuse());
    }
    let (extra, wanted) = (list(&attributes.output_padding, 0)?, &attributes.output_shape);
    if ![0, rank, rank + 2].contains(&wanted.len()) || ![0, 2 * rank].contains(&window.pads.len()) {
        return Err(refuse());
    }
    let wanted = &wanted[wanted.len().saturating_sub(rank)..];
    let mut spans = Vec::with_capacity(rank);
    for d in 0..rank {
        let (length, kernel, stride, dilation) = (x[2 + d], w[2 + d], strides[d], dilations[d]);
        if stride == 0 || dilation == 0 || kernel == 0 || length == 0 {
            return Err(refuse());
        }
        let full = (|| {
            let reach = (kernel - 1).checked_mul(dilation)?.checked_add(1)?;
            (length - 1).checked_mul(stride)?.checked_add(extra[d])?.checked_add(reach)
        })()
        .ok_or_else(refuse)?;
        let same = matches!(window.auto_pad, AutoPad::SameUpper | AutoPad::SameLower);
        let (before, after, output) =
            if let Some(output) = wanted.get(d).copied().or(same.then_some(length * stride)) {
                let total = full.saturating_sub(output);
                let less = total / 2;
                let upper = window.auto_pad != AutoPad::SameLower;
                let (before, after) = if upper { (less, total - less) } else { (total - less, less) };
                (before, after, output)
            } else {
                let pad = |i: usize| {
                    window.pads.get(i).map_or(Ok(0), |pad| usize::try_from(*pad).map_err(|_| refuse()))
                };
                let (before, after) = (pad(d)?, pad(rank + d)?);
                (before, after, full.checked_sub(before + after).ok_or_else(refuse)?)
            };
        spans.push(Span { input: output, output: length, kernel, stride, dilation, before, after });
    }
    Ok(Conv { batch: x[0], group, channels_in: w[1], channels_out: w[0] / group, spans })
}

/// `ConvTranspose`: the output's shape.
pub fn infer_transposed(ins: Facts<'_>, attributes: &Transposed) -> Result<Vec<Out>, OpError> {
    let x = ins.need(0)?;
    let w = ins.typed(1, &[x.dtype])?;
    let conv = transposed_geometry(x.shape, w.shape, attributes)?;
    let mut shape = vec![conv.batch, conv.group * conv.channels_in];
    shape.extend(conv.spans.iter().map(|span| span.input));
    if let Some(bias) = ins.get(2) {
        ins.typed(2, &[x.dtype])?;
        if bias.shape != [shape[1]] {
            return Err(OpError::Shape(format!("bias {:?} of {} channels", bias.shape, shape[1])));
        }
    }
    checked_len(x.dtype, &shape)?;
    Ok(vec![Out::new(x.dtype, shape)])
}

/// The kernel of `Conv` in NCHW.
pub fn lower(ins: Facts<'_>, window: &Window, group: usize) -> Result<Lowered, OpError> {
    let x = ins.typed(0, &[DType::F32])?;
    let conv = geometry(x.shape, ins.need(1)?.shape, window, group)?;
    let biased = ins.get(2).is_some();
    let scratch = conv.scratch_bytes();
    let lowered = Lowered::new("conv", move |io| {
        let bias = if biased { io.input::<f32>(2) } else { &[] };
        let (x, w) = (io.input::<f32>(0), io.input::<f32>(1));
        let (out, scratch) = (io.take::<f32>(0), io.take_bytes(1));
        let mac = |sum: f32, i: usize, j: usize, _| x[i].mul_add(w[j], sum);
        conv.run(scratch, 0.0, mac, |at, m, sum| {
            out[at] = bias.get(m).map_or(sum, |bias| sum + bias);
        });
        Ok(())
    });
    Ok(lowered.with_scratch(scratch))
}

/// The kernel of `ConvTranspose`.
pub fn lower_transposed(ins: Facts<'_>, attributes: &Transposed) -> Result<Lowered, OpError> {
    let x = ins.typed(0, &[DType::F32])?;
    let conv = transposed_geometry(x.shape, ins.need(1)?.shape, attributes)?;
    let biased = ins.get(2).is_some();
    Ok(Lowered::new("transposed conv", move |io| {
        let bias = biased.then(|| io.input::<f32>(2));
        conv.run_transposed(io.input::<f32>(0), io.input::<f32>(1), bias, io.take::<f32>(0));
        Ok(())
    }))
}

impl Conv {
    /// The plain transposed convolution: input position by input position scatters into a zeroed output.
    pub fn run_transposed(&self, x: &[f32], w: &[f32], bias: Option<&[f32]>, out: &mut [f32]) {
        let (area_in, area_out, taps) = (self.output_area(), self.input_area(), self.taps());
        let (cin, cout) = (self.channels_out, self.channels_in);
        out.fill(0.0);
        self.positions(|number, list| {
            for (tap, at) in list {
                for n in 0..self.batch {
                    for g in 0..self.group {
                        for m in 0..cout {
                            let to = ((n * self.group + g) * cout + m) * area_out + at;
                            for c in 0..cin {
                                let c = g * cin + c;
                                let x = x[(n * self.group * cin + c) * area_in + number];
                                out[to] = x.mul_add(w[(c * cout + m) * taps + tap], out[to]);
                            }
                        }
                    }
                }
            }
        });
        if let Some(bias) = bias {
            for (i, plane) in out.chunks_exact_mut(area_out.max(1)).enumerate() {
                let bias = bias[i % bias.len()];
                plane.iter_mut().for_each(|out| *out += bias);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_inside_are_counted_right() {
        let span = Span { input: 5, output: 5, kernel: 3, stride: 1, dilation: 1, before: 1, after: 1 };
        assert_eq!((0..5).map(|o| span.taps(o)).collect::<Vec<_>>(), [1..3, 0..3, 0..3, 0..3, 0..2]);
        let dilated = Span { input: 4, output: 4, kernel: 3, stride: 1, dilation: 2, before: 2, after: 2 };
        for o in 0..4 {
            for k in 0..3 {
                let at = (o + 2 * k) as isize - 2;
                assert_eq!(dilated.taps(o).contains(&k), (0..4).contains(&at), "{o} {k}");
            }
        }
    }
}
