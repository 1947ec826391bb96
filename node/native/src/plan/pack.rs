//! Weights in the layout that kernels read, made once and shared by every plan and session of the process.
//!
//! A packed weight is known by the digest of what it was made from and by how it was packed; it lives as long as a plan
//! holds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::tensor::{AlignedBuf, Tensor};

/// How a weight was packed: the kernel's name, the numbers that its layout depends on.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Layout {
    /// Which kernel.
    pub kernel: &'static str,
    /// Sizes, strides, panel widths.
    pub numbers: Vec<usize>,
}

type Key = ([u8; 32], Layout);

static SHARED: Mutex<Option<HashMap<Key, Weak<AlignedBuf>>>> = Mutex::new(None);

/// Bytes of all packed weights that the process holds now.
pub fn bytes() -> usize {
    let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.iter().flatten().filter_map(|(_, weak)| weak.upgrade()).map(|buffer| buffer.len()).sum()
}

/// The packed weight of `tensor`, made by `pack` unless the process has it.
pub fn packed(tensor: &Tensor, layout: Layout, len: usize, pack: impl FnOnce(&mut [u8])) -> Arc<AlignedBuf> {
    let key = (tensor.digest(), layout);
    let lock = || SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(found) = lock().get_or_insert_default().get(&key).and_then(Weak::upgrade) {
        return found;
    }
    let mut buffer = AlignedBuf::zeroed(len);
    pack(buffer.bytes_mut());
    let buffer = Arc::new(buffer);
    let mut shared = lock();
    let map = shared.get_or_insert_default();
    // Dead entries go when the map grows, so it is never more than twice what is alive.
    if map.len() == map.capacity() {
        map.retain(|_, weak| weak.strong_count() > 0);
    }
    map.insert(key, Arc::downgrade(&buffer));
    buffer
}
