//! Weights in the layout that kernels read, made once and shared by every plan and session of the process.
//!
//! A tensor remembers its own packed forms. Those of other tensors, of another program for the same model
//! say, are found by their bytes: packing is cheaper than a digest of what is packed. A form lives as long as
//! a plan or a tensor holds it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::error::OpError;
use crate::ops::Target;
use crate::tensor::Tensor;
pub use crate::tensor::form::{Layout, PackedBuf, Packing};

/// A layout, and [`fingerprint`].
type Key = (Layout, u64);

type Shared = HashMap<Key, Vec<Weak<PackedBuf>>>;

static SHARED: Mutex<Option<Shared>> = Mutex::new(None);

/// Bytes of all packed weights that the process holds now.
pub fn bytes() -> usize {
    let shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    let alive = shared.iter().flat_map(HashMap::values).flatten().filter_map(Weak::upgrade);
    alive.map(|buffer| buffer.len()).sum()
}

/// The packed form of `tensor`, made by `pack` unless there is one; `unpack` is the way back.
///
/// # Errors
/// [`OpError::TooLarge`] where the program may not pack so much, [`OpError::Memory`].
pub fn packed(
    target: Target<'_>,
    tensor: &Tensor,
    layout: Layout,
    len: usize,
    pack: impl FnOnce(&mut [u8]),
    unpack: impl Fn(&[u8], &mut [u8]) + Send + Sync + 'static,
) -> Result<Arc<PackedBuf>, OpError> {
    tensor.forms().get_or_make(layout, |layout| {
        let mut made = PackedBuf::zeroed(len, None, target.packing)?;
        pack(made.bytes_mut());
        Ok((shared(layout.clone(), made), Arc::new(unpack)))
    })
}

/// The buffer of the process with these bytes in this format: one that is alive, or this.
pub(super) fn shared(layout: Layout, made: PackedBuf) -> Arc<PackedBuf> {
    let key = (layout, fingerprint(made.bytes()));
    let mut others: Vec<Arc<PackedBuf>> = Vec::new();
    loop {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        let map = shared.get_or_insert_default();
        let alike: Vec<Arc<PackedBuf>> = map
            .get(&key)
            .into_iter()
            .flatten()
            .filter_map(Weak::upgrade)
            .filter(|buffer| !others.iter().any(|other| Arc::ptr_eq(other, buffer)))
            .collect();
        if alike.is_empty() {
            let buffer = Arc::new(made);
            // Dead entries go when the map grows, so it is never more than twice what is alive.
            if map.len() == map.capacity() {
                map.values_mut().for_each(|list| list.retain(|weak| weak.strong_count() > 0));
                map.retain(|_, list| !list.is_empty());
            }
            let list = map.entry(key).or_default();
            list.retain(|weak| weak.strong_count() > 0);
            list.push(Arc::downgrade(&buffer));
            return buffer;
        }
        // Compared without the lock, since that takes as long as reading both. Somebody may add the same
        // bytes meanwhile: so what is new is compared too, until nothing is.
        drop(shared);
        if let Some(same) =
            alike.iter().find(|buffer| buffer.half() == made.half() && buffer.bytes() == made.bytes())
        {
            return Arc::clone(same);
        }
        others.extend(alike);
    }
}

/// A number that tells most weights apart: some words of them, mixed as in FNV-1a.
fn fingerprint(bytes: &[u8]) -> u64 {
    const WORDS: usize = 64;
    let words = bytes.as_chunks::<8>().0;
    let step = (words.len() / WORDS).max(1);
    let mix = |hash: u64, word: &[u8; 8]| (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x0100_0000_01b3);
    words.iter().step_by(step).fold(0xcbf2_9ce4_8422_2325, mix)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form_within(
        packing: &Arc<Packing>,
        tensor: &Tensor,
        kernel: &'static str,
    ) -> Result<Arc<PackedBuf>, OpError> {
        let layout = Layout { kernel, numbers: vec![tensor.len()] };
        let reverse = |from: &[u8], to: &mut [u8]| {
            to.copy_from_slice(from);
            to.reverse();
        };
        let target = Target { kernels: roost_kernels::Kernels::best(), packing };
        packed(target, tensor, layout, tensor.bytes().len(), |out| reverse(tensor.bytes(), out), reverse)
    }

    fn form(tensor: &Tensor, kernel: &'static str) -> Arc<PackedBuf> {
        form_within(&Packing::new(u64::MAX), tensor, kernel).expect("there is room")
    }

    #[test]
    fn forms_count_until_nobody_reads_them() {
        let packing = Packing::new(500);
        let [a, b] = [11_u8, 13].map(|byte| Tensor::of(&[200], &[byte; 200]));
        let form = |tensor, kernel| form_within(&packing, tensor, kernel);
        let first = form(&a, "counted").expect("there is room");
        let again = form(&a, "counted").expect("it is there");
        assert_eq!(packing.bytes(), 200);
        let second = form(&b, "counted").expect("there is room");
        assert_eq!(form(&a, "other").err(), Some(OpError::TooLarge { bytes: 600, bytes_max: 500 }));
        assert_eq!(packing.bytes(), 400);
        // Equal bytes of another tensor are one form, which counts once.
        let equal = form_within(&Packing::new(200), &Tensor::of(&[200], &[11_u8; 200]), "counted");
        assert!(Arc::ptr_eq(&first, &equal.expect("there is room")));
        drop(second);
        form(&a, "other").expect("there is room again");
        drop((first, again));
        assert_eq!(packing.bytes(), 0);
    }

    #[test]
    fn equal_weights_share_one_form() {
        let bytes: Vec<u8> = (0..200).collect();
        let [a, b] = [0, 1].map(|_| Tensor::of(&[200], &bytes));
        let c = Tensor::of(&[200], &[7_u8; 200]);
        assert!(
            Arc::ptr_eq(&form(&a, "reverse"), &form(&b, "reverse"))
                || Arc::strong_count(&form(&a, "reverse")) == 1
        );
        let held = form(&a, "reverse");
        assert!(Arc::ptr_eq(&held, &form(&b, "reverse")));
        assert!(!Arc::ptr_eq(&held, &form(&c, "reverse")));
        assert!(!Arc::ptr_eq(&held, &form(&a, "other")));
    }

    #[test]
    fn who_packs_at_once_gets_one_form() {
        const THREADS: usize = 8;
        let bytes: Vec<u8> = (0..100_000).map(|i| (i % 241) as u8).collect();
        for round in 0..20 {
            // Clones of one tensor, and others with the same bytes as other programs have them.
            let one = Tensor::of(&[bytes.len()], &bytes);
            let tensors: Vec<Tensor> = (0..THREADS)
                .map(|i| if i % 2 == 0 { one.clone() } else { Tensor::of(&[bytes.len()], &bytes) })
                .collect();
            let start = std::sync::Barrier::new(THREADS);
            let forms: Vec<_> = std::thread::scope(|scope| {
                let packing: Vec<_> = tensors
                    .iter()
                    .map(|tensor| {
                        let start = &start;
                        scope.spawn(move || {
                            start.wait();
                            form(tensor, "at once")
                        })
                    })
                    .collect();
                packing.into_iter().map(|thread| thread.join().expect("it packs")).collect()
            });
            assert!(forms.iter().all(|form| Arc::ptr_eq(form, &forms[0])), "round {round}");
        }
    }

    #[test]
    fn a_tensor_may_hold_its_forms() {
        let tensor = Tensor::of(&[300], &[3_u8; 300]);
        let address = |tensor| form(tensor, "kept").bytes().as_ptr();
        drop(form(&tensor, "kept"));
        assert!(tensor.forms().first().is_none(), "nobody holds it");
        tensor.forms().hold();
        let first = address(&tensor);
        assert!(tensor.forms().first().is_some());
        assert_eq!(address(&tensor), first);
    }

    #[test]
    fn elements_of_a_condensed_tensor_are_read_without_keeping_them() {
        let bytes: Vec<u8> = (0..200).collect();
        let tensor = Tensor::of(&[200], &bytes);
        let held = form(&tensor, "read");
        let condensed = tensor.condensed().expect("it has a form");
        assert!(matches!(condensed.values::<u8>(), std::borrow::Cow::Owned(values) if values == bytes));
        // Bytes that steps read in every run are kept; then elements are borrowed from them.
        assert_eq!(condensed.bytes(), bytes);
        assert!(matches!(condensed.values::<u8>(), std::borrow::Cow::Borrowed(_)));
        drop(held);
    }

    #[test]
    fn a_condensed_tensor_has_the_same_bytes() {
        let tensor = Tensor::of(&[2, 100], &(0..200).collect::<Vec<u8>>());
        assert!(tensor.condensed().is_none(), "it has no form yet");
        drop(form(&tensor, "dropped"));
        assert!(tensor.condensed().is_none(), "nobody holds its form");
        let held = form(&tensor, "held");
        let condensed = tensor.condensed().expect("it has a form");
        drop(held);
        assert!(tensor.forms().first().is_some(), "the condensed tensor holds the form");
        assert!(condensed.is_clone_of(&tensor) && condensed.condensed().is_none());
        assert_eq!((condensed.bytes(), condensed.shape()), (tensor.bytes(), tensor.shape()));
    }
}
