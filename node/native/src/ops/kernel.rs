//! A compiled operator: the closure that computes it, and the scratch it needs.

use std::borrow::Cow;
use std::fmt;

use roost_kernels::Half;

use crate::error::OpError;
use crate::exec::io::Io;
use crate::ops::Target;

/// Computes one node for one set of shapes.
pub type Run = Box<dyn Fn(&mut Io<'_>) -> Result<(), OpError> + Send + Sync>;

/// A compiled operator.
pub struct Lowered {
    /// Computes it.
    pub run: Run,
    /// Bytes of scratch, given as the output after the last.
    pub scratch_bytes: usize,
    /// Bytes of the tables that it holds, where they grow with its shapes.
    pub table_bytes: usize,
    /// The kernel's name, for inspection: its family, and where it has them its instruction set and tile,
    /// such as `conv.pointwise avx512 12x32`.
    pub kernel: Cow<'static, str>,
    /// Inputs that the kernel took over when it was made, such as packed weights, and does not read again.
    pub unread: &'static [usize],
}

impl Lowered {
    /// An operator without scratch.
    pub fn new(
        kernel: &'static str,
        run: impl Fn(&mut Io<'_>) -> Result<(), OpError> + Send + Sync + 'static,
    ) -> Self {
        Self {
            run: Box::new(run),
            scratch_bytes: 0,
            table_bytes: 0,
            kernel: Cow::Borrowed(kernel),
            unread: &[],
        }
    }

    /// With the instruction set in its name.
    #[must_use]
    pub fn on(mut self, target: Target<'_>) -> Self {
        self.kernel = format!("{} {}", self.kernel, target.kernels.isa()).into();
        self
    }

    /// With the instruction set and the tile, rows by columns, in its name.
    #[must_use]
    pub fn on_tile(self, target: Target<'_>, tile: Option<[usize; 2]>) -> Self {
        let mut lowered = self.on(target);
        if let Some([rows, columns]) = tile {
            lowered.kernel = format!("{} {rows}x{columns}", lowered.kernel).into();
        }
        lowered
    }

    /// With the format of its weights in its name, where it is not f32.
    #[must_use]
    pub fn of_weights(mut self, half: Option<Half>) -> Self {
        match half {
            Some(Half::F16) => self.kernel = format!("{} of f16", self.kernel).into(),
            Some(Half::BF16) => self.kernel = format!("{} of bf16", self.kernel).into(),
            None => {}
        }
        self
    }

    /// With inputs that are not read when it runs.
    #[must_use]
    pub fn without_reading(mut self, unread: &'static [usize]) -> Self {
        self.unread = unread;
        self
    }

    /// With tables that grow with its shapes.
    #[must_use]
    pub fn with_tables(mut self, bytes: usize) -> Self {
        self.table_bytes = bytes;
        self
    }

    /// With scratch.
    #[must_use]
    pub fn with_scratch(mut self, bytes: usize) -> Self {
        self.scratch_bytes = bytes;
        self
    }
}

impl fmt::Debug for Lowered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lowered").field("kernel", &self.kernel).finish_non_exhaustive()
    }
}
