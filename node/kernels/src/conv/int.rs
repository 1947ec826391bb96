//! Convolution of 8-bit images with i32 sums. See [`crate::qgemm`] for signs, zero points and offsets.
//!
//! Taps in the padding are skipped: padding is the zero point, whose products the offsets take out anyway. So
//! offsets depend on the taps that a region sees; they are summed up per region from the sums of each tap.

use crate::conv::depthwise::QDepthwiseArgs;
use crate::conv::shape::{Along, Line, Span, across, chunks, lines};
use crate::conv::{ConvShape, ShapeError};
use crate::elementwise::UnaryKernel;
use crate::gemm::tile::Taps;
use crate::gemm::{cut, extent};
use crate::qgemm::tile::{QOut, QTileArgs};
use crate::qgemm::{ByteRows, Output, Sign, packed_columns, panels, row_block, shift};
use crate::table::Kernels;

/// A planned convolution of bytes, for any number of images.
#[derive(Clone, Copy)]
pub struct QConv {
    kernels: &'static Kernels,
    shape: ConvShape,
    output: [usize; 2],
    sign: Sign,
}

/// The weights of a convolution of bytes, as [`QConv::pack`] wrote them, and a bias.
#[derive(Debug, Clone, Copy)]
pub struct QWeights<'a> {
    /// The packed weights.
    pub packed: &'a [i8],
    /// Their sums by tap and filter.
    pub sums: &'a [i32],
    /// `[filters]`, in units of the sums.
    pub bias: Option<&'a [i32]>,
}

impl Kernels {
    /// Plans a convolution of bytes with signed weights.
    ///
    /// # Errors
    /// [`ShapeError`] when the shape makes no sense.
    pub fn qconv(&'static self, shape: ConvShape, sign: Sign) -> Result<QConv, ShapeError> {
        Ok(QConv { kernels: self, output: shape.output()?, shape, sign })
    }
}

impl QConv {
    /// Rows and columns of the output.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// Rows (pixels) and columns (filters) of the tile that most of it runs on; `None` for a depthwise
    /// convolution, which has no tiles.
    pub fn tile(&self, images: usize) -> Option<[usize; 2]> {
        if images == 0 || self.shape.filters == 0 {
            return None;
        }
        let tiles = self.kernels.qtiles();
        let pointwise = self.shape.is_pointwise() && self.shape.groups == 1;
        let line = self.shape.longest_line(self.output);
        let square = Span { first: 0, end: line, low: 0, high: 0 };
        let together =
            chunks(&self.shape, 0..images, 0..self.output[0], 1).next().map_or(0, |c| c.images.len());
        let longest = match () {
            () if pointwise => images * self.shape.pixels(),
            () if across(square, square, together) => together,
            () => line,
        };
        let planned = tiles.widest(longest);
        let w = tiles.width_at(planned, self.shape.filters / self.shape.groups);
        let rows = longest.div_ceil(longest.div_ceil(tiles.by_width[planned].len()).max(1));
        (!self.shape.is_depthwise()).then_some([rows, tiles.lanes << w])
    }

    /// Bytes of the packed weights.
    pub fn packed_len(&self) -> usize {
        if self.shape.is_depthwise() {
            self.shape.taps() * self.shape.channels
        } else {
            self.shape.groups * self.group_len()
        }
    }

    /// Elements of the sums that [`Self::pack`] writes: one for each tap and filter.
    pub fn sums_len(&self) -> usize {
        self.shape.taps() * self.shape.filters
    }

    /// Elements of i32 scratch that [`Self::run`] needs.
    pub fn scratch_len(&self) -> usize {
        self.shape.filters
    }

    /// Packs weights `[filters, channels / groups, kernel y, kernel x]`, and sums them by tap and filter.
    ///
    /// # Panics
    /// When a length is not what the shape says.
    pub fn pack(&self, weights: &[i8], packed: &mut [i8], sums: &mut [i32]) {
        let ConvShape { channels, filters, groups, .. } = self.shape;
        let (taps, depth, per_group) = (self.shape.taps(), channels / groups, filters / groups);
        assert_eq!(weights.len(), filters * depth * taps, "the weights' length");
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        assert_eq!(sums.len(), self.sums_len(), "a sum for each tap and filter");
        for tap in 0..taps {
            for filter in 0..filters {
                let each =
                    (0..depth).map(|channel| i32::from(weights[(filter * depth + channel) * taps + tap]));
                sums[tap * filters + filter] = each.fold(0, i32::wrapping_add);
            }
        }
        if self.shape.is_depthwise() {
            for channel in 0..channels {
                for tap in 0..taps {
                    packed[tap * channels + channel] = weights[channel * taps + tap];
                }
            }
            return;
        }
        let tiles = self.kernels.qtiles();
        let mut at = 0;
        for group in 0..groups {
            for (first, width) in panels(tiles, per_group) {
                for tap in 0..taps {
                    for c0 in (0..depth).step_by(tiles.group) {
                        for column in 0..width {
                            for channel in c0..c0 + tiles.group {
                                let filter = group * per_group + first + column;
                                let inside = first + column < per_group && channel < depth;
                                packed[at] =
                                    if inside { weights[(filter * depth + channel) * taps + tap] } else { 0 };
                                at += 1;
                            }
                        }
                    }
                }
            }
        }
    }

    /// The weights that [`Self::pack`] packed.
    ///
    /// # Panics
    /// When a length is not what the shape says.
    pub fn unpack(&self, packed: &[i8], weights: &mut [i8]) {
        let ConvShape { channels, filters, groups, .. } = self.shape;
        let (taps, depth, per_group) = (self.shape.taps(), channels / groups, filters / groups);
        assert_eq!(weights.len(), filters * depth * taps, "the weights' length");
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        if self.shape.is_depthwise() {
            for (i, value) in packed.iter().enumerate() {
                weights[i % channels * taps + i / channels] = *value;
            }
            return;
        }
        let tiles = self.kernels.qtiles();
        let mut values = packed.iter();
        for group in 0..groups {
            for (first, width) in panels(tiles, per_group) {
                for tap in 0..taps {
                    for c0 in (0..depth).step_by(tiles.group) {
                        for column in first..first + width {
                            for (channel, value) in (c0..c0 + tiles.group).zip(&mut values) {
                                if column < per_group && channel < depth {
                                    let filter = group * per_group + column;
                                    weights[(filter * depth + channel) * taps + tap] = *value;
                                }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Convolves. Row r of `input` is pixel r, `[images · height · width, channels]`; row r of `out`
    /// likewise.
    ///
    /// A depth that is no multiple of 4 goes faster where pixels are apart by the next multiple.
    ///
    /// # Panics
    /// When a slice is shorter than its shape and strides say, or the zero point is no byte.
    pub fn run(
        &self,
        images: usize,
        input: ByteRows<'_>,
        zero: i32,
        weights: QWeights<'_>,
        out: Output<'_>,
        scratch: &mut [i32],
    ) {
        let QWeights { packed, sums, bias } = weights;
        let shape = &self.shape;
        let pixels = images.checked_mul(shape.pixels()).expect("images fit the address space");
        let rows = images.checked_mul(self.output[0] * self.output[1]).expect("images fit the address space");
        assert!(
            input.data.len() >= extent(pixels, input.stride, shape.channels),
            "the input reaches beyond its slice"
        );
        assert!(pixels <= 1 || input.stride >= shape.channels, "the input's pixels overlap");
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        assert_eq!(sums.len(), self.sums_len(), "a sum for each tap and filter");
        assert!(bias.is_none_or(|bias| bias.len() == shape.filters), "a bias for each filter");
        assert!((-128..=255).contains(&zero), "a zero point of a byte");
        let offsets = &mut scratch[..shape.filters];
        let (out, map) = out.lower(rows, shape.filters);
        if rows == 0 || shape.filters == 0 {
            return;
        }
        let job = Job {
            conv: self,
            images,
            input,
            // Bytes between pixels may be read along where they exist: their weights are 0.
            gaps: input.data.len() >= extent(pixels, input.stride, input.stride),
            zero,
            packed,
            out,
            map: map.map(|unary| self.kernels.unary(unary)),
        };
        // The regions of a pointwise convolution are one line over all pixels.
        if shape.is_pointwise() && shape.groups == 1 {
            self.fold(sums, [0, 1], [0, 1], zero, bias, offsets);
            let span = Span { first: 0, end: pixels, low: 0, high: 1 };
            let block = row_block(input.stride, pixels);
            for first in (0..pixels).step_by(block) {
                let line = Line { y: 0, x: first, count: block.min(pixels - first), along: Along::Row };
                // SAFETY: all slices were checked above; pixel r of the output sees pixel r of the input.
                unsafe { job.region(0, std::iter::once(line), span, span, offsets) };
            }
            return;
        }
        for chunk in chunks(shape, 0..images, 0..self.output[0], 1) {
            for y in shape.y.spans(chunk.rows.clone()) {
                for x in shape.x.spans(0..self.output[1]) {
                    self.fold(sums, [y.low, y.high], [x.low, x.high], zero, bias, offsets);
                    let images = chunk.images.len();
                    let together = (!shape.is_depthwise() && across(y, x, images)).then_some(images);
                    let each = if together.is_some() { 1 } else { images };
                    for image in chunk.images.clone().take(each) {
                        // SAFETY: all slices were checked above; outputs of a region see its taps, within the
                        // image; with `together`, `images` images follow from the first.
                        unsafe {
                            if shape.is_depthwise() {
                                job.depthwise(image, y, x, bias);
                            } else {
                                job.region(image, lines(y, x, together), y, x, offsets);
                            }
                        }
                    }
                }
            }
        }
    }

    /// `bias - zero · sums` over the taps of a region, with the zero point as this machine reads inputs.
    fn fold(
        &self,
        sums: &[i32],
        y: [usize; 2],
        x: [usize; 2],
        zero: i32,
        bias: Option<&[i32]>,
        offsets: &mut [i32],
    ) {
        let filters = self.shape.filters;
        offsets.fill(0);
        for ky in y[0]..y[1] {
            for kx in x[0]..x[1] {
                let tap = &sums[(ky * self.shape.x.kernel + kx) * filters..][..filters];
                for (offset, sum) in offsets.iter_mut().zip(tap) {
                    *offset = offset.wrapping_add(*sum);
                }
            }
        }
        let zero = zero + shift(self.kernels.qtiles(), self.sign);
        for (c, offset) in offsets.iter_mut().enumerate() {
            *offset = bias.map_or(0, |bias| bias[c]).wrapping_sub(zero.wrapping_mul(*offset));
        }
    }

    /// Bytes of a tap's depth in the packed weights.
    fn padded_depth(&self) -> usize {
        (self.shape.channels / self.shape.groups).next_multiple_of(self.kernels.qtiles().group)
    }

    fn group_len(&self) -> usize {
        let columns = packed_columns(self.kernels.qtiles(), self.shape.filters / self.shape.groups);
        columns * self.shape.taps() * self.padded_depth()
    }
}

/// A convolution under way.
struct Job<'a> {
    conv: &'a QConv,
    images: usize,
    input: ByteRows<'a>,
    gaps: bool,
    zero: i32,
    packed: &'a [i8],
    out: QOut,
    map: Option<UnaryKernel>,
}

impl Job<'_> {
    /// Offset of the first tap, output row, and the steps of both along the line.
    fn place(&self, image: usize, line: &Line, taps: [usize; 2]) -> (usize, usize, usize, usize) {
        let shape = &self.conv.shape;
        let [height, width] = self.conv.output;
        let row = shape.x.size * self.input.stride;
        let from = image * shape.y.size * row
            + shape.y.input(line.y, taps[0]) * row
            + shape.x.input(line.x, taps[1]) * self.input.stride;
        let to = (image * height + line.y) * width + line.x;
        match line.along {
            Along::Column => (from, to, shape.y.stride * row, width),
            Along::Row => (from, to, shape.x.stride * self.input.stride, 1),
            Along::Images => (from, to, shape.y.size * row, height * width),
        }
    }

    /// All filters of a region.
    ///
    /// # Safety
    /// The slices hold what the shape, the images and the strides say; the lines' outputs see the taps of `y`
    /// and `x`.
    unsafe fn region(
        &self,
        image: usize,
        region: impl Iterator<Item = Line> + Clone,
        y: Span,
        x: Span,
        offsets: &[i32],
    ) {
        debug_assert!(image < self.images.max(1), "an image of the batch");
        let shape = &self.conv.shape;
        let tiles = self.conv.kernels.qtiles();
        let (depth, per_group) = (shape.channels / shape.groups, shape.filters / shape.groups);
        let padded = self.conv.padded_depth();
        let taps = [y.low, x.low];
        // Whole groups are read where the bytes after a pixel's channels exist and belong to nobody else's
        // tap.
        let len = if self.gaps && shape.groups == 1 && self.input.stride >= padded { padded } else { depth };
        let merge = shape.x.dilation == 1 && len == padded && self.input.stride == padded;
        let longest = region.clone().map(|line| line.count).max().unwrap_or(1);
        let planned = tiles.widest(longest);
        let most = tiles.by_width[planned].len();
        for group in 0..shape.groups {
            let mut column = 0;
            while column < per_group {
                let w = tiles.width_at(planned, per_group - column);
                let panel = if w == 0 { tiles.lanes } else { tiles.panel() };
                let filter = group * per_group + column;
                let tap = (taps[0] * shape.x.kernel + taps[1]) * padded * panel;
                let b = group * self.conv.group_len() + column * shape.taps() * padded + tap;
                let mut args = QTileArgs {
                    a: self.input.data.as_ptr(),
                    a_row: 0,
                    flip: if shift(tiles, self.conv.sign) == 0 { 0 } else { 0x80 },
                    taps: Taps {
                        outer: if x.taps() == 0 { 0 } else { y.taps() },
                        outer_a: shape.y.dilation * shape.x.size * self.input.stride,
                        outer_b: shape.x.kernel * padded * panel,
                        inner: if merge { 1 } else { x.taps() },
                        inner_a: shape.x.dilation * self.input.stride,
                        inner_b: padded * panel,
                        len: if merge { x.taps() * padded } else { len },
                    },
                    b: self.packed.as_ptr().wrapping_add(b),
                    b_panel: tiles.panel() * shape.taps() * padded,
                    cols: (tiles.lanes << w).min(per_group - column),
                    offsets: offsets[filter..].as_ptr(),
                    row_terms: std::ptr::null(),
                    b_zeros: std::ptr::null(),
                    out: self.out,
                };
                for line in region.clone() {
                    let (from, to, step_in, step_out) = self.place(image, &line, taps);
                    args.a_row = step_in;
                    for (first, count) in cut(line.count, line.count.div_ceil(most)) {
                        args.a =
                            self.input.data.as_ptr().wrapping_add(from + first * step_in + group * depth);
                        // SAFETY: pixel `first` of the line exists in input and output, as the caller says.
                        unsafe {
                            args.out = self.out.at(to + first * step_out, filter).spread(step_out);
                            tiles.by_width[w][count - 1](&args);
                            if let Some(map) = &self.map {
                                args.out.map(0, 0, count, args.cols, map);
                            }
                        }
                    }
                }
                column += tiles.lanes << w;
            }
        }
    }

    /// All channels of a region, each by itself.
    ///
    /// # Safety
    /// As [`Self::region`].
    unsafe fn depthwise(&self, image: usize, y: Span, x: Span, bias: Option<&[i32]>) {
        let shape = &self.conv.shape;
        let channels = shape.channels;
        for line in lines(y, x, None) {
            let (from, to, step_in, step_out) = self.place(image, &line, [y.low, x.low]);
            // SAFETY: row `to` of the output exists, as the caller says.
            let out = unsafe { self.out.at(to, 0) };
            let args = QDepthwiseArgs {
                x: self.input.data.as_ptr().wrapping_add(from),
                signed: self.conv.sign == Sign::Signed,
                zero: self.zero,
                x_step: step_in,
                taps: Taps {
                    outer: y.taps(),
                    outer_a: shape.y.dilation * shape.x.size * self.input.stride,
                    outer_b: shape.x.kernel * channels,
                    inner: x.taps(),
                    inner_a: shape.x.dilation * self.input.stride,
                    inner_b: channels,
                    len: 1,
                },
                weights: self.packed.as_ptr().wrapping_add((y.low * shape.x.kernel + x.low) * channels),
                channels,
                count: line.count,
                row_step: step_out,
                last: QTileArgs {
                    a: std::ptr::null(),
                    a_row: 0,
                    flip: 0,
                    taps: Taps::one(0),
                    b: std::ptr::null(),
                    b_panel: 0,
                    cols: 0,
                    offsets: bias.map_or(std::ptr::null(), <[i32]>::as_ptr),
                    row_terms: std::ptr::null(),
                    b_zeros: std::ptr::null(),
                    out,
                },
            };
            // SAFETY: as the function.
            unsafe {
                (self.conv.kernels.qdepthwise_fn())(&args);
                if let Some(map) = &self.map {
                    out.spread(step_out).map(0, 0, line.count, channels, map);
                }
            }
        }
    }
}

impl QOut {
    /// The same with rows `step` times as far apart.
    fn spread(mut self, step: usize) -> Self {
        match &mut self {
            Self::Sums { row, .. } | Self::Floats { row, .. } | Self::Bytes { row, .. } => *row *= step,
        }
        self
    }
}
