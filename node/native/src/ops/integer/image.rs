//! Integer convolutions with constant weights on the kernels' [`QConv`], from NCHW to NCHW.
//!
//! The kernels' weights are around 0. Where the model's are around another number, each group has a filter of
//! ones more: its sum is that of the inputs under the window, which a zero point counts once too often for
//! each.

use std::sync::Arc;

use roost_kernels::{ByteRows, ConvShape, Output, QConv, QWeights, SumsOut, transpose};

use super::matrix::signed;
use super::{Shifted, Wide};
use crate::error::OpError;
use crate::ops::Target;
use crate::ops::conv::{Conv, Span};
use crate::ops::fact::Fact;
use crate::ops::image::window_of;
use crate::ops::qimage::sign;
use crate::plan::pack::{Layout, PackedBuf, packed};
use crate::tensor::ALIGN_BYTES;

/// A convolution whose weights are packed.
pub struct Packed {
    kernel: QConv,
    conv: Conv,
    /// Bytes from a pixel of the turned input to the next.
    pixel: usize,
    /// Filters of a group, that of ones among them.
    columns: usize,
    shifted: Shifted,
    name: &'static str,
    /// The packed weights, and from `sums_at` on their sums by tap and filter.
    weights: Arc<PackedBuf>,
    sums_at: usize,
}

impl Packed {
    /// The convolution, where the weights are constants of the graph and it has one or two spatial
    /// dimensions; else `None`.
    ///
    /// # Errors
    /// As [`packed`].
    pub fn new(
        x: Fact<'_>,
        w: Fact<'_>,
        w_zero: Option<Fact<'_>>,
        conv: &Conv,
        target: Target<'_>,
    ) -> Result<Option<Self>, OpError> {
        let Some(tensor) = w.value.filter(|_| w.pinned) else { return Ok(None) };
        if x.is_empty() || w.is_empty() {
            return Ok(None);
        }
        let one = Span { input: 1, output: 1, kernel: 1, stride: 1, dilation: 1, before: 0, after: 0 };
        let (y_span, x_span) = match *conv.spans {
            [x] => (one, x),
            [y, x] => (y, x),
            _ => return Ok(None),
        };
        let (groups, own, depth, taps) = (conv.group, conv.channels_out, conv.channels_in, conv.taps());
        let shifted = Shifted::of(w.dtype);
        let columns = own + usize::from(shifted.has_zeros(w_zero));
        let channels = groups * depth;
        let shape = ConvShape {
            y: window_of(&y_span),
            x: window_of(&x_span),
            channels,
            filters: groups * columns,
            groups,
        };
        let Ok(kernel) = target.kernels.qconv(shape, sign(x.dtype)) else { return Ok(None) };
        let layout = target.kernels.layout();
        let mut numbers = w.shape.to_vec();
        numbers.extend([groups, columns, shifted.by() as usize, layout.byte_panel, layout.byte_group]);
        let len = kernel.packed_len();
        let sums_at = len.next_multiple_of(size_of::<i32>());
        let filter = depth * taps;
        let pack = |out: &mut [u8]| {
            let (packed, sums) = out.split_at_mut(sums_at);
            let packed = &mut bytemuck::cast_slice_mut(packed)[..len];
            let values = signed(tensor, shifted);
            let mut all = vec![1_i8; groups * columns * filter];
            for (all, values) in all.chunks_exact_mut(columns * filter).zip(values.chunks_exact(own * filter))
            {
                all[..own * filter].copy_from_slice(values);
            }
            kernel.pack(&all, packed, bytemuck::cast_slice_mut(sums));
        };
        let unpack = move |packed: &[u8], weights: &mut [u8]| {
            let mut all = vec![0_i8; groups * columns * filter];
            kernel.unpack(bytemuck::cast_slice(&packed[..len]), &mut all);
            for (all, weights) in
                all.chunks_exact(columns * filter).zip(weights.chunks_exact_mut(own * filter))
            {
                weights.iter_mut().zip(all).for_each(|(byte, value)| *byte = shifted.flip(*value as u8));
            }
        };
        let bytes = sums_at + kernel.sums_len() * size_of::<i32>();
        let weights =
            packed(target, tensor, Layout { kernel: "integer conv", numbers }, bytes, pack, unpack)?;
        let name = match kernel.tile(conv.batch) {
            None => "qconv.depthwise",
            Some(_) if taps == 1 => "qconv.pointwise",
            Some(_) => "qconv.spatial",
        };
        // Whole groups of channels are read faster; what lies between meets weights of 0.
        let pixel = if groups == 1 { channels.next_multiple_of(layout.byte_group) } else { channels };
        Ok(Some(Self { kernel, conv: conv.clone(), pixel, columns, shifted, name, weights, sums_at }))
    }

    /// The kernel's name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// Rows and columns of the tile that most of it runs on.
    pub fn tile(&self) -> Option<[usize; 2]> {
        self.kernel.tile(self.conv.batch)
    }

    fn turned_bytes(&self) -> usize {
        (self.conv.batch * self.conv.input_area() * self.pixel).next_multiple_of(ALIGN_BYTES)
    }

    fn all_columns(&self) -> usize {
        self.conv.group * self.columns
    }

    /// Bytes of scratch that [`Self::run`] needs: the input in NHWC, zero points, the kernel's own, and the
    /// sums in NHWC.
    pub fn scratch_bytes(&self) -> usize {
        let sums = self.conv.batch * self.conv.output_area() * self.all_columns();
        let zeros = self.conv.group * self.conv.channels_out;
        self.turned_bytes() + (zeros + self.kernel.scratch_len() + sums) * size_of::<i32>()
    }

    /// The sums of `x` in NCHW; they lie in the scratch.
    pub fn run<'s>(&'s self, x: &[u8], [x_zero, w_zero]: [Wide<'_>; 2], scratch: &'s mut [u8]) -> Sums<'s> {
        let (conv, columns) = (&self.conv, self.columns);
        let (turned, rest) = scratch.split_at_mut(self.turned_bytes());
        let rest: &mut [i32] = bytemuck::cast_slice_mut(rest);
        let (zeros, rest) = rest.split_at_mut(conv.group * conv.channels_out);
        let (own, sums) = rest.split_at_mut(self.kernel.scratch_len());
        let (channels, area) = (conv.group * conv.channels_in, conv.input_area());
        for (x, turned) in x.chunks_exact(channels * area).zip(turned.chunks_exact_mut(area * self.pixel)) {
            transpose(x, area, channels, area, turned, self.pixel);
        }
        let (packed, by_tap) = self.weights.bytes().split_at(self.sums_at);
        let packed = &bytemuck::cast_slice(packed)[..self.kernel.packed_len()];
        let weights = QWeights { packed, sums: bytemuck::cast_slice(by_tap), bias: None };
        let input = ByteRows { data: turned, stride: self.pixel };
        let out = Output::Sums(SumsOut { data: sums, stride: self.all_columns() });
        self.kernel.run(conv.batch, input, x_zero.entry(0), weights, out, own);
        if columns > conv.channels_out {
            zeros.iter_mut().enumerate().for_each(|(m, zero)| *zero = w_zero.entry(m) - self.shifted.by());
            for pixel in sums.chunks_exact_mut(self.all_columns()) {
                for (pixel, zeros) in
                    pixel.chunks_exact_mut(columns).zip(zeros.chunks_exact(conv.channels_out))
                {
                    let (sums, inputs) = pixel.split_at_mut(conv.channels_out);
                    let inputs = inputs[0];
                    for (sum, zero) in sums.iter_mut().zip(zeros) {
                        *sum = sum.wrapping_sub(zero.wrapping_mul(inputs));
                    }
                }
            }
        }
        Sums { packed: self, sums }
    }
}

/// Sums of a convolution in NHWC, those of filters of ones among them.
pub struct Sums<'s> {
    packed: &'s Packed,
    sums: &'s [i32],
}

impl Sums<'_> {
    /// Calls `plane` with each image's first sum of a group's filters, and which image and group these are.
    fn groups(&self, mut plane: impl FnMut(usize, usize, &[i32])) {
        let Packed { conv, columns, .. } = self.packed;
        let image = conv.output_area() * self.packed.all_columns();
        for (n, sums) in self.sums.chunks_exact(image).enumerate().take(conv.batch) {
            (0..conv.group).for_each(|group| plane(n, group, &sums[group * columns..]));
        }
    }

    /// Puts them in NCHW.
    pub fn planes(&self, out: &mut [i32]) {
        let Packed { conv, .. } = self.packed;
        let (area, own) = (conv.output_area(), conv.channels_out);
        self.groups(|n, group, sums| {
            let out = &mut out[(n * conv.group + group) * own * area..][..own * area];
            transpose(sums, self.packed.all_columns(), area, own, out, area);
        });
    }

    /// Calls `put` with each one's position in NCHW, its filter, and itself.
    pub fn each(&self, mut put: impl FnMut(usize, usize, i32)) {
        let Packed { conv, .. } = self.packed;
        let (area, own) = (conv.output_area(), conv.channels_out);
        self.groups(|n, group, sums| {
            for j in 0..own {
                let m = group * own + j;
                let at = (n * conv.group * own + m) * area;
                let column = sums[j..].iter().step_by(self.packed.all_columns());
                column.take(area).enumerate().for_each(|(p, sum)| put(at + p, m, *sum));
            }
        });
    }
}
