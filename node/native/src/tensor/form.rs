//! Weights in the form that kernels read, as seen from the tensor: which forms it has, and the way back.
//!
//! Laying weights out loses nothing, so a weight that only kernels read is kept in their form alone. Whoever
//! asks for its bytes all the same (a plan for other shapes that reads it another way, the interpreter) gets
//! them, laid out anew.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

use roost_kernels::Half;

use super::AlignedBuf;
use crate::error::OpError;

/// What the packed weights of a program take in memory, against what they may.
#[derive(Debug)]
pub struct Packing {
    bytes: AtomicU64,
    bytes_max: u64,
}

impl Packing {
    /// None yet, of so many bytes at most.
    pub fn new(bytes_max: u64) -> Arc<Self> {
        Arc::new(Self { bytes: AtomicU64::new(0), bytes_max })
    }

    /// Bytes that packed weights take now.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Bytes that they may take.
    pub fn bytes_max(&self) -> u64 {
        self.bytes_max
    }
}

/// A weight in the form of a kernel. It counts among those of the program that made it, until nobody reads it
/// any more.
#[derive(Debug)]
pub struct PackedBuf {
    buf: AlignedBuf,
    half: Option<Half>,
    packing: Arc<Packing>,
}

impl PackedBuf {
    /// `len` zero bytes, counted; for numbers of a format of 16 bits, if so.
    ///
    /// # Errors
    /// [`OpError::TooLarge`] before any is allocated, where they are too many beside those that count
    /// already; [`OpError::Memory`].
    pub fn zeroed(len: usize, half: Option<Half>, packing: &Arc<Packing>) -> Result<Self, OpError> {
        let bytes_max = packing.bytes_max;
        let add = |bytes: u64| bytes.checked_add(len as u64).filter(|sum| *sum <= bytes_max);
        let added = packing.bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        added.map_err(|bytes| OpError::TooLarge { bytes: u128::from(bytes) + len as u128, bytes_max })?;
        match AlignedBuf::try_zeroed(len) {
            Ok(buf) => Ok(Self { buf, half, packing: Arc::clone(packing) }),
            Err(error) => {
                packing.bytes.fetch_sub(len as u64, Ordering::Relaxed);
                Err(error.into())
            }
        }
    }

    /// The format of the numbers, where it has 16 bits and the kernel wants others.
    pub fn half(&self) -> Option<Half> {
        self.half
    }

    /// The memory.
    pub fn bytes(&self) -> &[u8] {
        self.buf.bytes()
    }

    /// The memory, to write.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.buf.bytes_mut()
    }

    /// Its length in bytes.
    pub fn len(&self) -> usize {
        self.buf.len()
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.buf.is_empty()
    }
}

impl Drop for PackedBuf {
    fn drop(&mut self) {
        self.packing.bytes.fetch_sub(self.buf.len() as u64, Ordering::Relaxed);
    }
}

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
    buffer: Weak<PackedBuf>,
    /// The buffer, where it is to live as long as the tensor.
    held: Option<Arc<PackedBuf>>,
    unpack: Unpack,
}

impl Forms {
    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The form of this layout, made by `make` unless there is one. Who asks meanwhile waits, and gets the
    /// same. Forms that nobody holds go.
    ///
    /// # Errors
    /// As `make`.
    pub fn get_or_make(
        &self,
        layout: Layout,
        make: impl FnOnce(&Layout) -> Result<(Arc<PackedBuf>, Unpack), OpError>,
    ) -> Result<Arc<PackedBuf>, OpError> {
        let mut known = self.lock();
        let alive = known.forms.iter().find(|form| form.layout == layout);
        if let Some(buffer) = alive.and_then(|form| form.buffer.upgrade()) {
            return Ok(buffer);
        }
        let (buffer, unpack) = make(&layout)?;
        let held = known.held.then(|| Arc::clone(&buffer));
        known.forms.retain(|form| form.buffer.strong_count() > 0);
        known.forms.push(Form { layout, buffer: Arc::downgrade(&buffer), held, unpack });
        Ok(buffer)
    }

    /// From now on forms live as long as the tensor: for programs without plans, which would else lay the
    /// weights out anew in each run.
    pub fn hold(&self) {
        let mut known = self.lock();
        known.held = true;
        known.forms.iter_mut().for_each(|form| form.held = form.buffer.upgrade());
    }

    /// Any form.
    pub fn first(&self) -> Option<(Arc<PackedBuf>, Unpack)> {
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
    buffer: Arc<PackedBuf>,
    unpack: Unpack,
    len: usize,
    /// The bytes, from when somebody asked for them.
    bytes: OnceLock<AlignedBuf>,
}

impl Packed {
    /// `len` bytes in this form.
    pub fn new((buffer, unpack): (Arc<PackedBuf>, Unpack), len: usize) -> Self {
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
