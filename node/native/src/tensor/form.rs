//! Weights in the form that kernels read, as seen from the tensor: which forms it has, and the way back.
//!
//! Laying weights out loses nothing, so a weight that only kernels read is kept in their form alone. Whoever asks for its
//! bytes all the same (a plan for other shapes that reads it another way, the interpreter) gets them, laid out anew.

use std::fmt;
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use super::AlignedBuf;

/// How a weight was packed: the kernel's name, the numbers that its layout depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Which kernel.
    pub kernel: &'static str,
    /// Sizes, strides, panel widths.
    pub numbers: Vec<usize>,
}

/// From a form back to the tensor's bytes.
pub type Unpack = Arc<dyn Fn(&[u8], &mut [u8]) + Send + Sync>;

/// The forms of a tensor that are alive.
#[derive(Default)]
pub struct Forms(Mutex<Vec<(Layout, Weak<AlignedBuf>, Unpack)>>);

impl Forms {
    /// The form of this layout.
    pub fn get(&self, layout: &Layout) -> Option<Arc<AlignedBuf>> {
        let forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forms.iter().find(|(known, _, _)| known == layout).and_then(|(_, buffer, _)| buffer.upgrade())
    }

    /// Adds a form; those that nobody holds go.
    pub fn add(&self, layout: Layout, buffer: &Arc<AlignedBuf>, unpack: Unpack) {
        let mut forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forms.retain(|(known, buffer, _)| *known != layout && buffer.strong_count() > 0);
        forms.push((layout, Arc::downgrade(buffer), unpack));
    }

    /// Any form.
    pub fn first(&self) -> Option<(Arc<AlignedBuf>, Unpack)> {
        let forms = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        forms.iter().find_map(|(_, buffer, unpack)| Some((buffer.upgrade()?, Arc::clone(unpack))))
    }
}

impl fmt::Debug for Forms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Forms").finish_non_exhaustive()
    }
}

/// The bytes of a tensor, in the form of a kernel.
pub struct Packed {
    buffer: Arc<AlignedBuf>,
    unpack: Unpack,
    len: usize,
    /// The bytes, from when somebody asked for them.
    bytes: OnceLock<AlignedBuf>,
}

impl Packed {
    /// `len` bytes in this form.
    pub fn new((buffer, unpack): (Arc<AlignedBuf>, Unpack), len: usize) -> Self {
        Self { buffer, unpack, len, bytes: OnceLock::new() }
    }

    /// The bytes; laid out on the first call and then kept.
    pub fn bytes(&self) -> &[u8] {
        let unpacked = self.bytes.get_or_init(|| {
            let mut bytes = AlignedBuf::zeroed(self.len);
            (self.unpack)(self.buffer.bytes(), bytes.bytes_mut());
            bytes
        });
        unpacked.bytes()
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("len", &self.len).finish_non_exhaustive()
    }
}
