//! Small images, by rows of taps. The regions of a small image, whose outputs see the same taps, have a few
//! outputs each, and each would read its weights anew. Instead a pass goes over the outputs that see a row of
//! taps, a column of them at a time: weights of a row of taps stay in a near cache meanwhile, and tiles are as
//! high as the image. Sums wait in the output from pass to pass; their chains are the same.

use std::ops::Range;

use crate::conv::Conv;
use crate::conv::float::{Job, Panel};
use crate::conv::shape::{Along, Line};
use crate::gemm::cut;
use crate::gemm::tile::{Clamp, Taps, TileArgs};
use crate::prefetch::Ahead;

impl Conv {
    /// Whether so many images go by rows of taps, on tiles of 2^w vectors: where lines of outputs that see the
    /// same taps are short, and a first cache does not hold the weights. Those that could go by rows do so
    /// unless a good part of L2 does not hold the weights either.
    pub(super) fn by_taps(&self, images: usize, w: usize) -> bool {
        const LINE_MAX: usize = 5;
        const FIRST_BYTES: usize = 32 << 10;
        const SECOND_BYTES: usize = 512 << 10;
        let shape = &self.shape;
        let filters = self.kernels.tiles().lanes << w;
        let bytes = shape.taps() * (shape.channels / shape.groups) * filters * size_of::<f32>();
        let enough = if self.by_rows(images, w) { SECOND_BYTES } else { FIRST_BYTES };
        bytes > enough
            && shape.y.kernel > 1
            && images <= LINE_MAX
            && (images..=LINE_MAX).contains(&shape.longest_line(self.output))
    }
}

impl Job<'_> {
    /// Some rows of the output of an image, for the filters of a panel.
    ///
    /// # Safety
    /// As [`Job::dense`].
    pub(super) unsafe fn passes(&self, image: usize, rows: Range<usize>, panel: Panel) {
        let shape = &self.conv.shape;
        let tiles = self.conv.kernels.tiles();
        let depth = shape.channels / shape.groups;
        let [height, width] = self.conv.output;
        let most = tiles.rows(panel.w).min(tiles.rows(1));
        let first = (image * height + rows.start) * width - self.skip;
        let pixels = first..first + rows.len() * width;
        for pixel in pixels.clone() {
            // SAFETY: these pixels, and filters of this panel, lie within the output.
            unsafe { self.out.add(pixel * self.out_row + panel.filter).write_bytes(0, panel.cols) };
        }
        let mut args = TileArgs {
            a: self.data.as_ptr(),
            a_row: shape.y.stride * self.strides.row,
            a_k: self.strides.channel,
            taps: Taps::one(0),
            b: panel.weights,
            b_panel: tiles.panel() * shape.taps() * depth,
            c: self.out,
            c_row: width * self.out_row,
            cols: panel.cols,
            from_c: true,
            bias: std::ptr::null(),
            residual: std::ptr::null(),
            residual_row: 0,
            clamp: Clamp::Free,
            ahead: Ahead::Nothing,
        };
        for tap in 0..shape.y.kernel {
            let seen = shape.y.seeing(tap, rows.clone());
            if seen.is_empty() {
                continue;
            }
            for x in shape.x.spans(0..width) {
                args.taps = Taps {
                    inner: if panel.merge { 1 } else { x.taps() },
                    inner_a: shape.x.dilation * self.strides.pixel,
                    inner_b: depth * panel.width,
                    len: if panel.merge { x.taps() * depth } else { depth },
                    ..Taps::one(0)
                };
                args.b = panel.weights.wrapping_add((tap * shape.x.kernel + x.low) * depth * panel.width);
                for column in x.first..x.end {
                    args.ahead = self.next_taps(tap, column, panel);
                    for (first, count) in cut(seen.len(), seen.len().div_ceil(most)) {
                        let line = Line { y: seen.start + first, x: column, count, along: Along::Column };
                        let (from, to) = self.place(image, &line, [tap, x.low]);
                        args.a = self.data.as_ptr().wrapping_add(from + panel.channel * self.strides.channel);
                        // SAFETY: these outputs see these taps.
                        unsafe {
                            args.c = self.out.add(to * self.out_row + panel.filter);
                            tiles.by_width[panel.w][count - 1](&args);
                        }
                    }
                }
            }
        }
        args.taps = Taps::one(0);
        args.bias = if self.bias.is_null() { self.bias } else { self.bias.wrapping_add(panel.filter) };
        args.clamp = self.clamp;
        args.ahead = Ahead::Nothing;
        (args.c_row, args.residual_row) = (self.out_row, self.residual_row);
        for (at, count) in cut(pixels.len(), pixels.len().div_ceil(most)) {
            // SAFETY: as above; nothing is multiplied, and nothing read but sums, bias and residual.
            unsafe {
                args.c = self.out.add((pixels.start + at) * self.out_row + panel.filter);
                if !self.residual.is_null() {
                    args.residual = self.residual.add((pixels.start + at) * self.residual_row + panel.filter);
                }
                tiles.by_width[panel.w][count - 1](&args);
                if let Some(map) = &self.map {
                    map.rows_in_place(args.c, args.c_row, count, args.cols);
                }
            }
        }
    }

    /// What a column asks for: its share of the next row of taps, or after the last of the first one of the
    /// next panels. Those of a wide tile lie apart: columns ask for one after the other. Widened weights are near
    /// already.
    fn next_taps(&self, tap: usize, column: usize, panel: Panel) -> Ahead {
        if self.packed.half().is_some() {
            return Ahead::Nothing;
        }
        let shape = &self.conv.shape;
        let tiles = self.conv.kernels.tiles();
        let depth = shape.channels / shape.groups;
        let (all, row) = (shape.taps() * depth * panel.width, shape.x.kernel * depth * panel.width);
        let (width, panels) = (self.conv.output[1], (tiles.lanes << panel.w) / panel.width);
        let which = column * panels / width;
        let columns = (which * width).div_ceil(panels)..((which + 1) * width).div_ceil(panels);
        let after = if tap + 1 < shape.y.kernel { (tap + 1) * row } else { panels * all };
        let next = panel.weights.wrapping_add(which * all + after);
        let steps = shape.x.kernel * depth;
        let mut ahead = Ahead::new(
            next.cast(),
            row * size_of::<f32>(),
            columns.len(),
            steps,
            self.conv.packed_len() * size_of::<f32>(),
        );
        ahead.passed((column - columns.start) * steps);
        ahead
    }
}
