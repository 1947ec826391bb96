//! The geometry of convolutions and pools: output sizes, and regions of outputs that see the same taps.

use std::ops::Range;

/// Why a convolution or pool cannot be planned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShapeError {
    /// A kernel, stride, dilation or group count of 0.
    #[error("kernel, stride, dilation and groups are at least 1")]
    Zero,
    /// Channels do not divide into the groups.
    #[error("{channels} channels and {filters} filters do not divide into {groups} groups")]
    Groups {
        /// Channels of the input.
        channels: usize,
        /// Filters.
        filters: usize,
        /// Groups.
        groups: usize,
    },
    /// The window is larger than the padded image.
    #[error("a window of {window} does not fit an image of {image}, padding included")]
    Window {
        /// Extent of the dilated kernel.
        window: usize,
        /// Extent of the padded image.
        image: usize,
    },
    /// An extent passes the address space.
    #[error("the shape is too large")]
    TooLarge,
}

/// One dimension of a sliding window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Extent of the input.
    pub size: usize,
    /// Taps.
    pub kernel: usize,
    /// From an output to the next, in inputs.
    pub stride: usize,
    /// From a tap to the next, in inputs.
    pub dilation: usize,
    /// Padding before.
    pub before: usize,
    /// Padding after.
    pub after: usize,
}

/// Outputs `first .. end` of a dimension, which all see the taps `low .. high`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) first: usize,
    pub(crate) end: usize,
    pub(crate) low: usize,
    pub(crate) high: usize,
}

impl Span {
    pub(crate) fn len(&self) -> usize {
        self.end - self.first
    }

    pub(crate) fn taps(&self) -> usize {
        self.high - self.low
    }
}

impl Window {
    /// How many outputs there are, with partial windows at the end dropped.
    ///
    /// # Errors
    /// [`ShapeError`] when a count is 0 or the window does not fit.
    pub fn outputs(&self) -> Result<usize, ShapeError> {
        if self.kernel == 0 || self.stride == 0 || self.dilation == 0 {
            return Err(ShapeError::Zero);
        }
        let window = (self.kernel - 1).checked_mul(self.dilation).and_then(|reach| reach.checked_add(1));
        let window = window.ok_or(ShapeError::TooLarge)?;
        let image = self.size.checked_add(self.before).and_then(|size| size.checked_add(self.after));
        let image = image.filter(|image| isize::try_from(*image).is_ok()).ok_or(ShapeError::TooLarge)?;
        if window > image {
            return Err(ShapeError::Window { window, image });
        }
        Ok((image - window) / self.stride + 1)
    }

    /// The taps of an output that lie within the input.
    fn taps(&self, output: usize) -> (usize, usize) {
        let start = output * self.stride;
        let low = self.before.saturating_sub(start).div_ceil(self.dilation).min(self.kernel);
        let high = (self.size + self.before).saturating_sub(start).div_ceil(self.dilation).min(self.kernel);
        (low, high.max(low))
    }

    /// The input index of a tap that lies within the input.
    pub(crate) fn input(&self, output: usize, tap: usize) -> usize {
        (output * self.stride + tap * self.dilation).saturating_sub(self.before)
    }

    /// Those of some outputs that see a tap.
    pub(crate) fn seeing(&self, tap: usize, outputs: Range<usize>) -> Range<usize> {
        let at = tap * self.dilation;
        let first = self.before.saturating_sub(at).div_ceil(self.stride).clamp(outputs.start, outputs.end);
        let end = (self.size + self.before).saturating_sub(at).div_ceil(self.stride);
        first..end.clamp(first, outputs.end)
    }

    /// One past the last output that sees the same taps as this one, if outputs had no end.
    fn same_until(&self, output: usize) -> usize {
        let start = output * self.stride;
        // Both ends of the taps fall, never rise, along the outputs: an end of `taps` falls where what lies
        // before it in the image, which loses a stride each output, is no more than `taps - 1` dilations.
        let falls = |reach: usize| {
            let taps = reach.saturating_sub(start).div_ceil(self.dilation).min(self.kernel);
            let less = taps.checked_sub(1)? * self.dilation;
            Some(reach.saturating_sub(less).div_ceil(self.stride))
        };
        [falls(self.before), falls(self.size + self.before)].into_iter().flatten().min().unwrap_or(usize::MAX)
    }

    /// Spans of outputs with the same taps, in order: at most two for each tap and one, however many outputs
    /// there are.
    pub(crate) fn spans(self, outputs: Range<usize>) -> impl Iterator<Item = Span> {
        let Range { start: mut first, end: outputs } = outputs;
        std::iter::from_fn(move || {
            if first >= outputs {
                return None;
            }
            let (low, high) = self.taps(first);
            let end = self.same_until(first).clamp(first + 1, outputs);
            let span = Span { first, end, low, high };
            first = end;
            Some(span)
        })
    }

    /// Whether output i is input i alone.
    fn is_identity(&self) -> bool {
        self.kernel == 1 && self.stride == 1 && self.before == 0 && self.after == 0
    }
}

/// A convolution of images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConvShape {
    /// Rows.
    pub y: Window,
    /// Columns.
    pub x: Window,
    /// Channels of the input, all groups together.
    pub channels: usize,
    /// Channels of the output, all groups together.
    pub filters: usize,
    /// Groups.
    pub groups: usize,
}

impl ConvShape {
    /// Rows and columns of the output.
    ///
    /// # Errors
    /// [`ShapeError`] when the shape makes no sense, or its extents pass the address space.
    pub fn output(&self) -> Result<[usize; 2], ShapeError> {
        if self.groups == 0 {
            return Err(ShapeError::Zero);
        }
        if !self.channels.is_multiple_of(self.groups) || !self.filters.is_multiple_of(self.groups) {
            let Self { channels, filters, groups, .. } = *self;
            return Err(ShapeError::Groups { channels, filters, groups });
        }
        let output = [self.y.outputs()?, self.x.outputs()?];
        let product = |factors: &[usize]| {
            let product = factors.iter().try_fold(1usize, |product, factor| product.checked_mul(*factor));
            product.filter(|product| isize::try_from(*product).is_ok()).ok_or(ShapeError::TooLarge)
        };
        product(&[self.y.size, self.x.size, self.channels, 4])?;
        product(&[output[0], output[1], self.filters, 4])?;
        // Packed weights are padded to whole panels and groups: room for 64 columns and 4 bytes more.
        product(&[
            self.y.kernel,
            self.x.kernel,
            self.channels / self.groups + 4,
            self.filters + 64 * self.groups,
            4,
        ])?;
        Ok(output)
    }

    /// Taps of a window.
    pub fn taps(&self) -> usize {
        self.y.kernel * self.x.kernel
    }

    /// Whether each channel is filtered by itself.
    pub(crate) fn is_depthwise(&self) -> bool {
        self.groups > 1 && self.groups == self.channels && self.groups == self.filters
    }

    /// Whether a pixel of the output depends on the same pixel of the input alone.
    pub(crate) fn is_pointwise(&self) -> bool {
        self.y.is_identity() && self.x.is_identity()
    }

    /// The longest line of outputs that see the same taps.
    pub(crate) fn longest_line(&self, output: [usize; 2]) -> usize {
        let longest = |window: Window, outputs: usize| window.spans(0..outputs).map(|span| span.len()).max();
        longest(self.y, output[0]).max(longest(self.x, output[1])).unwrap_or(0)
    }

    /// Pixels of an input image.
    pub(crate) fn pixels(&self) -> usize {
        self.y.size * self.x.size
    }
}

/// Images and rows of the output that all weights pass over before the next are taken, so that they stay in
/// L2: some rows of a large image, or several small images.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) images: Range<usize>,
    pub(crate) rows: Range<usize>,
}

/// The chunks of some images and rows of a convolution's output; `unit` is the size of an element in bytes.
pub(crate) fn chunks(
    shape: &ConvShape,
    images: Range<usize>,
    rows: Range<usize>,
    unit: usize,
) -> impl Iterator<Item = Chunk> + use<> {
    // A quarter of a common L2 for what is read; what is written and a panel of weights want room too. Where
    // weights are many, larger chunks read them less often.
    const LEAST_BYTES: usize = 256 << 10;
    const MOST_BYTES: usize = 1 << 20;
    let weights = shape.taps() * shape.channels / shape.groups * shape.filters * unit;
    let bytes = (weights / 4).clamp(LEAST_BYTES, MOST_BYTES);
    let image = shape.pixels() * shape.channels * unit;
    let together = (bytes / image.max(1)).max(1);
    let all = shape.y.outputs().expect("a convolution is planned from a sound shape");
    let height = if image <= bytes { all } else { (all * bytes / image).max(4) }.max(1);
    images.clone().step_by(together).flat_map(move |image| {
        let end = images.end.min(image + together);
        let last = rows.end;
        let each = move |row: usize| Chunk { images: image..end, rows: row..last.min(row + height) };
        rows.clone().step_by(height).map(each)
    })
}

/// What a line runs along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Along {
    /// The outputs of a row.
    Row,
    /// The outputs of a column.
    Column,
    /// The same output of all images of a chunk.
    Images,
}

/// A line of outputs that see the same taps.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Line {
    /// The first output.
    pub(crate) y: usize,
    /// The first output.
    pub(crate) x: usize,
    /// How many.
    pub(crate) count: usize,
    /// Where they lie.
    pub(crate) along: Along,
}

/// Whether lines of a region run along the images of a chunk: where it is so small that each tile would read
/// all weights for a few outputs.
pub(crate) fn across(y: Span, x: Span, images: usize) -> bool {
    // Tiles of six rows keep multipliers busy, and images are often a multiple of 4 KiB apart, which caches
    // like less.
    const LONG: usize = 6;
    let longest = y.len().max(x.len());
    longest < LONG && images > longest
}

/// The lines of a region, whose lines run along its longer side, so that a border one pixel wide still fills
/// tiles; or, with [`across`], along so many images.
pub(crate) fn lines(y: Span, x: Span, images: Option<usize>) -> impl Iterator<Item = Line> + Clone {
    let down = y.len() > x.len();
    let count = match images {
        Some(_) => y.len() * x.len(),
        None if down => x.len(),
        None => y.len(),
    };
    (0..count).map(move |i| match images {
        Some(images) => {
            Line { y: y.first + i / x.len(), x: x.first + i % x.len(), count: images, along: Along::Images }
        }
        None if down => Line { y: y.first, x: x.first + i, count: y.len(), along: Along::Column },
        None => Line { y: y.first + i, x: x.first, count: x.len(), along: Along::Row },
    })
}

#[cfg(test)]
mod tests {
    use super::{ShapeError, Span, Window};

    fn window(size: usize, kernel: usize, stride: usize, dilation: usize, pad: [usize; 2]) -> Window {
        Window { size, kernel, stride, dilation, before: pad[0], after: pad[1] }
    }

    #[test]
    fn spans_group_outputs_by_their_taps() {
        let same = window(5, 3, 1, 1, [1, 1]);
        let spans: Vec<_> = same.spans(0..5).collect();
        assert_eq!(
            spans,
            [
                Span { first: 0, end: 1, low: 1, high: 3 },
                Span { first: 1, end: 4, low: 0, high: 3 },
                Span { first: 4, end: 5, low: 0, high: 2 },
            ]
        );
    }

    #[test]
    fn spans_agree_with_a_plain_count_of_taps() {
        for size in 1..8 {
            for kernel in 1..5 {
                for stride in 1..4 {
                    for dilation in 1..3 {
                        for pad in [[0, 0], [1, 0], [2, 3], [4, 4]] {
                            let w = window(size, kernel, stride, dilation, pad);
                            let Ok(outputs) = w.outputs() else { continue };
                            let (mut seen, mut last) = (0, None);
                            for span in w.spans(0..outputs) {
                                assert_eq!(span.first, seen);
                                assert_ne!(last.replace((span.low, span.high)), Some((span.low, span.high)));
                                seen = span.end;
                                for output in span.first..span.end {
                                    for tap in 0..kernel {
                                        let at = (output * stride + tap * dilation).checked_sub(pad[0]);
                                        let inside = at.is_some_and(|at| at < size);
                                        assert_eq!(
                                            inside,
                                            (span.low..span.high).contains(&tap),
                                            "{w:?} {output} {tap}"
                                        );
                                        if inside {
                                            assert_eq!(Some(w.input(output, tap)), at);
                                        }
                                        assert_eq!(inside, w.seeing(tap, 0..outputs).contains(&output));
                                        assert_eq!(inside, w.seeing(tap, output..outputs).contains(&output));
                                    }
                                }
                            }
                            assert_eq!(seen, outputs);
                        }
                    }
                }
            }
        }
    }

    #[test]
    fn spans_of_a_huge_image_are_found_without_a_walk() {
        let w = window(1 << 60, 3, 1, 1, [1, 1]);
        let outputs = w.outputs().expect("it fits");
        let spans: Vec<_> = w.spans(0..outputs).map(|span| span.first..span.end).collect();
        assert_eq!(spans, [0..1, 1..outputs - 1, outputs - 1..outputs]);
        let whole = window(1 << 60, 1, 1, 1, [0, 0]);
        assert_eq!(whole.spans(5..1 << 60).map(|span| span.len()).max(), Some((1 << 60) - 5));
    }

    #[test]
    fn impossible_windows_are_refused() {
        assert_eq!(window(4, 0, 1, 1, [0, 0]).outputs(), Err(ShapeError::Zero));
        assert_eq!(window(4, 7, 1, 1, [1, 1]).outputs(), Err(ShapeError::Window { window: 7, image: 6 }));
        assert_eq!(window(usize::MAX, 3, 1, 1, [1, 1]).outputs(), Err(ShapeError::TooLarge));
        assert_eq!(window(4, usize::MAX, 1, usize::MAX, [1, 1]).outputs(), Err(ShapeError::TooLarge));
    }
}
