//! Convolution in f32: dense and grouped on the GEMM's tiles, depthwise on a kernel of its own.

use std::ops::Range;

use crate::conv::depthwise::DepthwiseArgs;
use crate::conv::shape::{Along, Line, Span, across, chunks, lines};
use crate::conv::{ConvShape, ShapeError};
use crate::elementwise::UnaryKernel;
use crate::gemm::tile::{Clamp, Taps, TileArgs};
use crate::gemm::{Epilogue, Gemm, Matrix, RowsMut, WIDE_W, cut, extent, packed_columns};
use crate::half::{Half, Weights};
use crate::prefetch::Ahead;
use crate::table::Kernels;

/// The images that a convolution reads.
#[derive(Debug, Clone, Copy)]
pub enum ConvInput<'a> {
    /// `[images, height, width, channels]`; a pixel's channels lie together, pixels are `pixel` elements
    /// apart.
    Nhwc {
        /// The elements.
        data: &'a [f32],
        /// From a pixel to the next; at least the channels.
        pixel: usize,
    },
    /// `[images, channels, height, width]`, dense: for the first layer, which so needs no transpose.
    Nchw {
        /// The elements.
        data: &'a [f32],
    },
}

/// A planned convolution, for any number of images.
#[derive(Clone, Copy)]
pub struct Conv {
    pub(super) kernels: &'static Kernels,
    pub(super) shape: ConvShape,
    pub(super) output: [usize; 2],
}

impl Kernels {
    /// Plans a convolution.
    ///
    /// # Errors
    /// [`ShapeError`] when the shape makes no sense.
    pub fn conv(&'static self, shape: ConvShape) -> Result<Conv, ShapeError> {
        Ok(Conv { kernels: self, output: shape.output()?, shape })
    }
}

/// Strides of an input, in elements.
#[derive(Clone, Copy)]
pub(super) struct Strides {
    pub(super) image: usize,
    pub(super) row: usize,
    pub(super) pixel: usize,
    pub(super) channel: usize,
}

impl Conv {
    /// Rows and columns of the output.
    pub fn output(&self) -> [usize; 2] {
        self.output
    }

    /// The shape that was planned.
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// Rows (pixels) and columns (filters) of the tile that most of it runs on; `None` for a depthwise
    /// convolution, which has no tiles. With weights of a format.
    pub fn tile(&self, images: usize, format: Option<Half>) -> Option<[usize; 2]> {
        if images == 0 || self.shape.filters == 0 {
            return None;
        }
        if self.as_gemm().is_some() {
            return Some(self.gemm().tile(images * self.shape.pixels(), format));
        }
        let tiles = self.kernels.tiles();
        let together = chunks(&self.shape, 0..images, 0..self.output[0], size_of::<f32>()).next();
        let together = together.map_or(0, |chunk| chunk.images.len());
        let (w, _) = width_at(tiles, self.widest(together, format), self.shape.filters / self.shape.groups);
        let longest = self.shape.longest_line(self.output);
        let rows = match () {
            () if self.short(together) => together,
            () if self.by_taps(together, w) => self.output[0],
            () if self.by_rows(together, w) => self.output[1],
            () => longest,
        };
        let most = tiles.rows(w).min(tiles.rows(1));
        let rows = rows.div_ceil(rows.div_ceil(most).max(1));
        (!self.shape.is_depthwise()).then_some([rows, tiles.lanes << w])
    }

    /// Whether even the longest lines of images are short, and most tiles have a row for each of so many
    /// images.
    pub(super) fn short(&self, images: usize) -> bool {
        let longest = self.shape.longest_line(self.output);
        let square = Span { first: 0, end: longest, low: 0, high: 0 };
        across(square, square, images)
    }

    /// The width of tiles, as a power of two, for chunks of so many images.
    fn widest(&self, images: usize, format: Option<Half>) -> usize {
        let rows = if self.short(images) { images } else { self.output[0].max(self.output[1]) };
        let w = self.kernels.tiles().widest(rows, 1);
        if format.is_some() { w.min(WIDE_W) } else { w }
    }

    /// Elements of the packed weights.
    pub fn packed_len(&self) -> usize {
        if self.shape.is_depthwise() {
            self.shape.taps() * self.shape.channels
        } else {
            self.shape.groups * self.group_len()
        }
    }

    /// Packs weights `[filters, channels / groups, kernel y, kernel x]`.
    ///
    /// # Panics
    /// When a length is not what the shape says.
    pub fn pack(&self, weights: &[f32], packed: &mut [f32]) {
        let ConvShape { channels, filters, groups, .. } = self.shape;
        let (taps, depth) = (self.shape.taps(), channels / groups);
        assert_eq!(weights.len(), filters * depth * taps, "the weights' length");
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        if self.shape.is_depthwise() {
            for channel in 0..channels {
                for tap in 0..taps {
                    packed[tap * channels + channel] = weights[channel * taps + tap];
                }
            }
            return;
        }
        let tiles = self.kernels.tiles();
        let per_group = filters / groups;
        if depth == 0 {
            return;
        }
        let mut rest = packed;
        for group in 0..groups {
            for first in (0..per_group).step_by(tiles.panel()) {
                let cols = tiles.panel().min(per_group - first);
                let width = if cols <= tiles.lanes { tiles.lanes } else { tiles.panel() };
                let (panel, after) = rest.split_at_mut(width * taps * depth);
                rest = after;
                let from = &weights[(group * per_group + first) * depth * taps..][..cols * depth * taps];
                if taps == 1 {
                    crate::transpose(from, depth, cols, depth, panel, width);
                } else {
                    // Read in order: weights may come from a file that was never in a cache.
                    for (c, filter) in from.chunks_exact(depth * taps).enumerate() {
                        for (channel, values) in filter.chunks_exact(taps).enumerate() {
                            for (tap, value) in values.iter().enumerate() {
                                panel[(tap * depth + channel) * width + c] = *value;
                            }
                        }
                    }
                }
                if cols < width {
                    panel.chunks_exact_mut(width).for_each(|row| row[cols..].fill(0.0));
                }
            }
        }
    }

    /// The weights that [`Self::pack`] packed.
    ///
    /// # Panics
    /// When a length is not what the shape says.
    pub fn unpack(&self, packed: &[f32], weights: &mut [f32]) {
        let ConvShape { channels, filters, groups, .. } = self.shape;
        let (taps, depth) = (self.shape.taps(), channels / groups);
        assert_eq!(weights.len(), filters * depth * taps, "the weights' length");
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        if self.shape.is_depthwise() {
            for (i, value) in packed.iter().enumerate() {
                weights[i % channels * taps + i / channels] = *value;
            }
            return;
        }
        let tiles = self.kernels.tiles();
        let per_group = filters / groups;
        let mut rest = packed;
        for group in 0..groups {
            for first in (0..per_group).step_by(tiles.panel()) {
                let cols = tiles.panel().min(per_group - first);
                let width = if cols <= tiles.lanes { tiles.lanes } else { tiles.panel() };
                let (panel, after) = rest.split_at(width * taps * depth);
                rest = after;
                for (i, row) in panel.chunks_exact(width).enumerate() {
                    for (c, value) in row[..cols].iter().enumerate() {
                        let filter = group * per_group + first + c;
                        weights[(filter * depth + i % depth) * taps + i / depth] = *value;
                    }
                }
            }
        }
    }

    /// Elements of scratch that [`Self::run`] wants, with weights of a format. Where that is f32, it is slower
    /// with less, to the same bits.
    pub fn scratch_len(&self, images: usize, format: Option<Half>) -> usize {
        if self.as_gemm().is_some() {
            return self.gemm().scratch_len(images * self.shape.pixels(), format);
        }
        if format.is_some() { self.wide_len() } else { 0 }
    }

    /// Elements that weights of half precision are widened to at a time.
    fn wide_len(&self) -> usize {
        let depth = self.shape.taps() * (self.shape.channels / self.shape.groups);
        let columns = (self.kernels.tiles().lanes << WIDE_W) * depth;
        if self.shape.is_depthwise() { self.packed_len() } else { columns.min(self.group_len()) }
    }

    /// Convolves. Row r of `out` is pixel r of the output, `[images · height · width, filters]`.
    ///
    /// # Panics
    /// When a slice is shorter than its shape and strides say; when weights that are not f32 have less scratch
    /// than [`Self::scratch_len`].
    pub fn run(
        &self,
        images: usize,
        input: ConvInput<'_>,
        packed: Weights<'_>,
        out: RowsMut<'_>,
        epilogue: &Epilogue<'_>,
        scratch: &mut [f32],
    ) {
        let height = self.output[0];
        self.run_part(0..images, 0..height, input, packed, out, epilogue, scratch);
    }

    /// Convolves for some rows of the output of some images; of more than one image, all rows. `out` and a
    /// residual have these rows alone.
    ///
    /// # Panics
    /// As [`Self::run`].
    #[expect(clippy::too_many_arguments, reason = "the operands, and which part of them")]
    pub(crate) fn run_part(
        &self,
        images: Range<usize>,
        part: Range<usize>,
        input: ConvInput<'_>,
        packed: Weights<'_>,
        out: RowsMut<'_>,
        epilogue: &Epilogue<'_>,
        scratch: &mut [f32],
    ) {
        let shape = &self.shape;
        let [height, width] = self.output;
        assert_eq!(packed.len(), self.packed_len(), "the packed weights' length");
        assert!(!epilogue.accumulate, "a convolution starts from 0");
        assert!(part.end <= height && (images.len() <= 1 || part == (0..height)), "rows of the output");
        let pixels = images.end.checked_mul(shape.pixels()).expect("images fit the address space");
        let rows = images.len().checked_mul(part.len() * width).expect("images fit the address space");
        let skip = (images.start * height + part.start) * width;
        out.check(rows, shape.filters);
        assert!(
            epilogue.bias.is_none_or(|bias| bias.len() == shape.filters),
            "the bias has one value per filter"
        );
        if let Some(residual) = &epilogue.residual {
            residual.check(rows, shape.filters);
        }
        let (data, strides) = match input {
            ConvInput::Nhwc { data, pixel } => {
                assert!(
                    data.len() >= extent(pixels, pixel, shape.channels),
                    "the input reaches beyond its slice"
                );
                assert!(pixels <= 1 || pixel >= shape.channels, "the input's pixels overlap");
                if self.as_gemm().is_some() {
                    let data = data.get(skip * pixel..).unwrap_or_default();
                    let a = Matrix { data, row: pixel, col: 1 };
                    return self.gemm().run(rows, a, packed, out, epilogue, scratch);
                }
                let row = shape.x.size * pixel;
                (data, Strides { image: shape.y.size * row, row, pixel, channel: 1 })
            }
            ConvInput::Nchw { data } => {
                assert!(data.len() >= extent(pixels, shape.channels, shape.channels), "the input's length");
                assert!(!shape.is_depthwise(), "depthwise convolution reads NHWC");
                let strides = Strides {
                    image: shape.channels * shape.pixels(),
                    row: shape.x.size,
                    pixel: 1,
                    channel: shape.pixels(),
                };
                (data, strides)
            }
        };
        if rows == 0 || shape.filters == 0 {
            return;
        }
        let (clamp, map) = epilogue.activation.split();
        let job = Job {
            conv: self,
            images,
            part,
            skip,
            data,
            strides,
            packed,
            out: out.data.as_mut_ptr(),
            out_row: out.stride,
            bias: epilogue.bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
            residual: epilogue.residual.map_or(std::ptr::null(), |residual| residual.data.as_ptr()),
            residual_row: epilogue.residual.map_or(0, |residual| residual.stride),
            clamp,
            map: map.map(|unary| self.kernels.unary(unary)),
        };
        // SAFETY: all slices were checked above against images, shape and strides; `out` is borrowed mutably.
        unsafe { if shape.is_depthwise() { job.depthwise(scratch) } else { job.dense(scratch) } }
    }

    /// Elements of a group's packed weights.
    fn group_len(&self) -> usize {
        let ConvShape { channels, filters, groups, .. } = self.shape;
        packed_columns(self.kernels.tiles(), filters / groups) * self.shape.taps() * (channels / groups)
    }

    fn as_gemm(&self) -> Option<()> {
        (self.shape.is_pointwise() && self.shape.groups == 1).then_some(())
    }

    fn gemm(&self) -> Gemm {
        self.kernels.gemm(self.shape.channels, self.shape.filters)
    }
}

/// Filters of a tile.
#[derive(Clone, Copy)]
pub(super) struct Panel {
    /// Vectors, as a power of two.
    pub(super) w: usize,
    /// Columns of a packed panel.
    pub(super) width: usize,
    /// Filters; the last panel may have fewer than columns.
    pub(super) cols: usize,
    /// The group's first channel.
    pub(super) channel: usize,
    /// The first filter.
    pub(super) filter: usize,
    /// Its weights.
    pub(super) weights: *const f32,
    /// Whether a row of taps is one run.
    pub(super) merge: bool,
}

/// A convolution under way.
pub(super) struct Job<'a> {
    pub(super) conv: &'a Conv,
    pub(super) images: Range<usize>,
    /// Rows of the output.
    pub(super) part: Range<usize>,
    /// Pixels of the output before these.
    pub(super) skip: usize,
    pub(super) data: &'a [f32],
    pub(super) strides: Strides,
    pub(super) packed: Weights<'a>,
    pub(super) out: *mut f32,
    pub(super) out_row: usize,
    pub(super) bias: *const f32,
    pub(super) residual: *const f32,
    pub(super) residual_row: usize,
    pub(super) clamp: Clamp,
    pub(super) map: Option<UnaryKernel>,
}

impl Job<'_> {
    /// Element offset of the first tap within the image, and the pixel of `out`, of an output.
    pub(super) fn place(&self, image: usize, line: &Line, taps: [usize; 2]) -> (usize, usize) {
        let shape = &self.conv.shape;
        let from = image * self.strides.image
            + shape.y.input(line.y, taps[0]) * self.strides.row
            + shape.x.input(line.x, taps[1]) * self.strides.pixel;
        let [height, width] = self.conv.output;
        (from, (image * height + line.y) * width + line.x - self.skip)
    }

    /// From an output of a line to the next: elements of the input, rows of the output.
    fn step(&self, line: &Line) -> (usize, usize) {
        let shape = &self.conv.shape;
        match line.along {
            Along::Column => (shape.y.stride * self.strides.row, self.conv.output[1]),
            Along::Row => (shape.x.stride * self.strides.pixel, 1),
            Along::Images => (self.strides.image, self.conv.output[0] * self.conv.output[1]),
        }
    }

    /// # Safety
    /// The slices hold what the shape, the images and the strides say, and `out` is this job's alone.
    unsafe fn dense(&self, scratch: &mut [f32]) {
        let shape = &self.conv.shape;
        let tiles = self.conv.kernels.tiles();
        let (depth, per_group) = (shape.channels / shape.groups, shape.filters / shape.groups);
        let k = shape.taps() * depth;
        // A row of taps is one run where pixels lie without gaps.
        let merge = shape.x.dilation == 1 && self.strides.channel == 1 && self.strides.pixel == depth;
        let width = self.conv.output[1];
        for chunk in chunks(shape, self.images.clone(), self.part.clone(), size_of::<f32>()) {
            let images = chunk.images.len();
            let planned = self.conv.widest(images, self.packed.half());
            for group in 0..shape.groups {
                let mut column = 0;
                while column < per_group {
                    let (w, panel_width) = width_at(tiles, planned, per_group - column);
                    let columns = tiles.lanes << w;
                    let first = group * self.conv.group_len() + column * k;
                    let panel = Panel {
                        w,
                        width: panel_width,
                        cols: columns.min(per_group - column),
                        channel: group * depth,
                        filter: group * per_group + column,
                        weights: self.widened(first..first + columns * k, scratch),
                        merge,
                    };
                    let runs = images * chunk.rows.len() * width.div_ceil(tiles.rows(w));
                    let more = if column + columns < per_group { columns * k } else { 0 };
                    let mut ahead = self.packed.ahead(first + columns * k, more, runs, k);
                    if self.conv.by_taps(images, w) {
                        for image in chunk.images.clone() {
                            // SAFETY: as the function.
                            unsafe { self.passes(image, chunk.rows.clone(), panel) };
                        }
                        column += columns;
                        continue;
                    }
                    if self.conv.by_rows(images, w) {
                        for y in shape.y.spans(chunk.rows.clone()) {
                            for image in chunk.images.clone() {
                                // SAFETY: as the function.
                                unsafe { self.rows(image, y, panel, &mut ahead) };
                            }
                        }
                        column += columns;
                        continue;
                    }
                    for y in shape.y.spans(chunk.rows.clone()) {
                        for x in shape.x.spans(0..width) {
                            let together = across(y, x, images).then_some(images);
                            let each = if together.is_some() { 1 } else { images };
                            for image in chunk.images.clone().take(each) {
                                // SAFETY: as the function; spans say which taps lie within the image.
                                unsafe { self.region(image, together, y, x, panel, &mut ahead) };
                            }
                        }
                    }
                    column += columns;
                }
            }
        }
    }

    /// Some of the weights in f32: as they are packed, or widened where scratch begins.
    fn widened(&self, range: Range<usize>, scratch: &mut [f32]) -> *const f32 {
        match self.packed {
            Weights::F32(packed) => packed[range].as_ptr(),
            Weights::Half(format, packed) => {
                let wide = &mut scratch[..range.len()];
                self.conv.kernels.widen(format, &packed[range], wide);
                wide.as_ptr()
            }
        }
    }

    /// A region of an image, or of as many as `together` says from it on, for the filters of a panel.
    ///
    /// # Safety
    /// As [`Self::dense`]; the outputs of `y` and `x` see their taps.
    unsafe fn region(
        &self,
        image: usize,
        together: Option<usize>,
        y: Span,
        x: Span,
        panel: Panel,
        ahead: &mut Ahead,
    ) {
        let shape = &self.conv.shape;
        let tiles = self.conv.kernels.tiles();
        let depth = shape.channels / shape.groups;
        let args = TileArgs {
            a: self.data.as_ptr(),
            a_row: 0,
            a_k: self.strides.channel,
            taps: Taps {
                outer: if x.taps() == 0 { 0 } else { y.taps() },
                outer_a: shape.y.dilation * self.strides.row,
                outer_b: shape.x.kernel * depth * panel.width,
                inner: if panel.merge { 1 } else { x.taps() },
                inner_a: shape.x.dilation * self.strides.pixel,
                inner_b: depth * panel.width,
                len: if panel.merge { x.taps() * depth } else { depth },
            },
            b: panel.weights.wrapping_add((y.low * shape.x.kernel + x.low) * depth * panel.width),
            b_panel: tiles.panel() * shape.taps() * depth,
            c: self.out,
            c_row: 0,
            cols: panel.cols,
            from_c: false,
            bias: if self.bias.is_null() { self.bias } else { self.bias.wrapping_add(panel.filter) },
            residual: self.residual,
            residual_row: 0,
            clamp: self.clamp,
            ahead: *ahead,
        };
        for line in lines(y, x, together) {
            // SAFETY: as the function; a line is of its region.
            unsafe { self.line(image, &line, [y.low, x.low], panel, args, ahead) };
        }
    }

    /// The tiles of a line.
    ///
    /// # Safety
    /// As [`Self::dense`]; the line's outputs see the taps of `args`, starting at `taps`.
    unsafe fn line(
        &self,
        image: usize,
        line: &Line,
        taps: [usize; 2],
        panel: Panel,
        mut args: TileArgs,
        ahead: &mut Ahead,
    ) {
        let tiles = self.conv.kernels.tiles();
        let Panel { w, channel, filter, .. } = panel;
        let (from, to) = self.place(image, line, taps);
        let (step_in, step_out) = self.step(line);
        args.a_row = step_in;
        args.c_row = step_out * self.out_row;
        args.residual_row = step_out * self.residual_row;
        let most = tiles.rows(w).min(tiles.rows(1));
        for (first, count) in cut(line.count, line.count.div_ceil(most)) {
            let row = to + first * step_out;
            // SAFETY: pixel `first` of the line exists in input and output, as the caller says. With no tap
            // the input is not read, and its pointer is only computed.
            unsafe {
                args.a =
                    self.data.as_ptr().wrapping_add(from + first * step_in + channel * self.strides.channel);
                args.c = self.out.add(row * self.out_row + filter);
                if !self.residual.is_null() {
                    args.residual = self.residual.add(row * self.residual_row + filter);
                }
                args.ahead = *ahead;
                tiles.by_width[w][count - 1](&args);
                ahead.passed(args.taps.outer * args.taps.inner * args.taps.len);
                if let Some(map) = &self.map {
                    map.rows_in_place(args.c, args.c_row, count, args.cols);
                }
            }
        }
    }

    /// # Safety
    /// As [`Self::dense`].
    unsafe fn depthwise(&self, scratch: &mut [f32]) {
        let shape = &self.conv.shape;
        let weights = self.widened(0..self.conv.packed_len(), scratch);
        let channels = shape.channels;
        for image in self.images.clone() {
            for y in shape.y.spans(self.part.clone()) {
                for x in shape.x.spans(0..self.conv.output[1]) {
                    for line in lines(y, x, None) {
                        let (from, to) = self.place(image, &line, [y.low, x.low]);
                        let (step_in, step_out) = self.step(&line);
                        let args = DepthwiseArgs {
                            x: self.data.as_ptr().wrapping_add(from),
                            x_step: step_in,
                            taps: Taps {
                                outer: y.taps(),
                                outer_a: shape.y.dilation * self.strides.row,
                                outer_b: shape.x.kernel * channels,
                                inner: x.taps(),
                                inner_a: shape.x.dilation * self.strides.pixel,
                                inner_b: channels,
                                len: 1,
                            },
                            weights: weights.wrapping_add((y.low * shape.x.kernel + x.low) * channels),
                            channels,
                            count: line.count,
                            out: self.out.wrapping_add(to * self.out_row),
                            out_step: step_out * self.out_row,
                            bias: self.bias,
                            residual: if self.residual.is_null() {
                                self.residual
                            } else {
                                self.residual.wrapping_add(to * self.residual_row)
                            },
                            residual_step: step_out * self.residual_row,
                            clamp: self.clamp,
                        };
                        // SAFETY: outputs of the line see the taps of the region, which lie within the image.
                        unsafe {
                            (self.conv.kernels.depthwise_fn())(&args);
                            if let Some(map) = &self.map {
                                map.rows_in_place(args.out, args.out_step, line.count, channels);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The width of tiles where `left` columns are left, and the width of their panels.
fn width_at(tiles: &crate::gemm::tile::Tiles, planned: usize, left: usize) -> (usize, usize) {
    if left <= tiles.lanes {
        return (0, tiles.lanes);
    }
    let whole = packed_columns(tiles, left) / tiles.panel();
    let mut w = planned;
    while w > 1 && (1 << (w - 1)) > whole {
        w -= 1;
    }
    (w, tiles.panel())
}
