//! Weights in the form that kernels read, as seen from the tensor: which forms it has, and the way back.
//!
//! Laying weights out loses nothing, so a weight that only kernels read is kept in their form alone. Whoever
//! asks for its bytes all the same (a plan for other shapes that reads it another way, the interpreter) gets
//! them, laid out anew.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

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
pub struct Forms(Mutex<Known>);

#[derive(Default)]
struct Known {
    forms: Vec<Form>,
    /// Whether forms live as long as the tensor.
    held: bool,
}

struct Form {
    layout: Layout,
    buffer: Weak<AlignedBuf>,
    /// The buffer, where it is to live as long as the tensor.
    held: Option<Arc<AlignedBuf>>,
    unpack: Unpack,
}

impl Forms {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The form of this layout, made by `make` unless there is one. Who asks meanwhile waits, and gets the
    /// same. Forms that nobody holds go.
    pub fn get_or_make(
        &self,
        layout: Layout,
        make: impl FnOnce(&Layout) -> (Arc<AlignedBuf>, Unpack),
    ) -> Arc<AlignedBuf> {
        let mut known = self.lock();
        let alive = known.forms.iter().find(|form| form.layout == layout);
        if let Some(buffer) = alive.and_then(|form| form.buffer.upgrade()) {
            return buffer;
        }
        let (buffer, unpack) = make(&layout);
        let held = known.held.then(|| Arc::clone(&buffer));
        known.forms.retain(|form| form.buffer.strong_count() > 0);
        known.forms.push(Form { layout, buffer: Arc::downgrade(&buffer), held, unpack });
        buffer
    }

    /// From now on forms live as long as the tensor: for programs without plans, which would else lay the
    /// weights out anew in each run.
    pub fn hold(&self) {
        let mut known = self.lock();
        known.held = true;
        known.forms.iter_mut().for_each(|form| form.held = form.buffer.upgrade());
    }

    /// Any form.
    pub fn first(&self) -> Option<(Arc<AlignedBuf>, Unpack)> {
        let known = self.lock();
        known.forms.iter().find_map(|form| Some((form.buffer.upgrade()?, Arc::clone(&form.unpack))))
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

    /// The bytes; laid out on the first call and then kept: for those who read them in every run.
    pub fn bytes(&self) -> &[u8] {
        let unpacked = self.bytes.get_or_init(|| {
            let mut bytes = AlignedBuf::zeroed(self.len);
            self.unpack(bytes.bytes_mut());
            bytes
        });
        unpacked.bytes()
    }

    /// The bytes, if they are kept.
    pub fn kept(&self) -> Option<&[u8]> {
        self.bytes.get().map(AlignedBuf::bytes)
    }

    /// Lays the bytes out into memory of their number.
    pub fn unpack(&self, bytes: &mut [u8]) {
        (self.unpack)(self.buffer.bytes(), bytes);
    }
}

impl fmt::Debug for Packed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Packed").field("len", &self.len).finish_non_exhaustive()
    }
}
