//! Images as wide as a tile is high, under windows three wide with one of padding: a tile takes a row of the
//! image, whose first output leaves out the first tap and whose last the last. Regions would cut it in three.

use crate::conv::Conv;
use crate::conv::float::{Job, Panel};
use crate::conv::shape::{Along, Line, Span, Window};
use crate::gemm::tile::{Taps, TileArgs};
use crate::prefetch::Ahead;

impl Conv {
    /// Whether so many images go by rows, on tiles of 2^w vectors.
    pub(super) fn by_rows(&self, images: usize, w: usize) -> bool {
        let x = self.shape.x;
        let tiles = &self.kernels.tiles().image_rows;
        x == Window { size: x.size, kernel: 3, stride: 1, dilation: 1, before: 1, after: 1 }
            && tiles.get(w).is_some_and(|tiles| self.output[1] <= tiles.len())
            && !self.short(images)
    }
}

impl Job<'_> {
    /// The rows of the output of an image that see the same rows of taps, for the filters of a panel.
    ///
    /// # Safety
    /// As [`Job::dense`].
    pub(super) unsafe fn rows(&self, image: usize, y: Span, panel: Panel, ahead: &mut Ahead) {
        let shape = &self.conv.shape;
        let tiles = self.conv.kernels.tiles();
        let depth = shape.channels / shape.groups;
        let width = self.conv.output[1];
        let mut args = TileArgs {
            a: self.data.as_ptr(),
            a_row: self.strides.pixel,
            a_k: self.strides.channel,
            taps: Taps {
                outer: y.taps(),
                outer_a: shape.y.dilation * self.strides.row,
                outer_b: 3 * depth * panel.width,
                inner: 3,
                inner_a: self.strides.pixel,
                inner_b: depth * panel.width,
                len: depth,
            },
            b: panel.weights.wrapping_add(y.low * 3 * depth * panel.width),
            b_panel: tiles.panel() * shape.taps() * depth,
            c: self.out,
            c_row: self.out_row,
            cols: panel.cols,
            from_c: false,
            bias: if self.bias.is_null() { self.bias } else { self.bias.wrapping_add(panel.filter) },
            residual: self.residual,
            residual_row: self.residual_row,
            clamp: self.clamp,
            ahead: *ahead,
        };
        for row in y.first..y.end {
            let line = Line { y: row, x: 0, count: width, along: Along::Row };
            // The place of the second tap, the first that the first output sees.
            let (from, to) = self.place(image, &line, [y.low, 1]);
            let from = from + panel.channel * self.strides.channel;
            // SAFETY: the outputs see these taps, but for those that the tile leaves out. What lies before the
            // first is only computed.
            unsafe {
                args.a = self.data.as_ptr().wrapping_add(from).wrapping_sub(self.strides.pixel);
                args.c = self.out.add(to * self.out_row + panel.filter);
                if !self.residual.is_null() {
                    args.residual = self.residual.add(to * self.residual_row + panel.filter);
                }
                args.ahead = *ahead;
                tiles.image_rows[panel.w][width - 1](&args);
                ahead.passed(y.taps() * 3 * depth);
                if let Some(map) = &self.map {
                    map.rows_in_place(args.c, args.c_row, width, args.cols);
                }
            }
        }
    }
}
