//! A function of bytes as a table of 256.

use crate::table::Kernels;

/// A table's kernel: the table, x, y, n.
///
/// # Safety
/// `n` bytes may be read at x and written at y, which lie apart; the instruction set is there.
pub(crate) type LookupFn = unsafe fn(&[u8; 256], *const u8, *mut u8, usize);

impl Kernels {
    /// `y[i] = table[x[i]]`.
    ///
    /// # Panics
    /// When lengths differ.
    pub fn lookup(&self, table: &[u8; 256], x: &[u8], y: &mut [u8]) {
        assert_eq!(x.len(), y.len(), "bytes and results are of equal length");
        // SAFETY: both have x.len() bytes, and y is borrowed mutably; the table came from `Kernels::of`.
        unsafe { (self.lookup_fn())(table, x.as_ptr(), y.as_mut_ptr(), x.len()) }
    }
}

/// One by one.
///
/// # Safety
/// As [`LookupFn`].
pub(crate) unsafe fn lookup(table: &[u8; 256], x: *const u8, y: *mut u8, n: usize) {
    for i in 0..n {
        // SAFETY: i is below n.
        unsafe { *y.add(i) = table[usize::from(*x.add(i))] };
    }
}

#[cfg(test)]
mod tests {
    use crate::test::{Guarded, bytes, kernels, lengths};

    #[test]
    fn every_length_on_every_set() {
        let table: [u8; 256] = bytes(256, 8).try_into().expect("256 of them");
        for n in lengths() {
            let x = Guarded::from(&bytes(n, n as u64));
            let expected: Vec<u8> = x.iter().map(|x| table[usize::from(*x)]).collect();
            for kernels in kernels() {
                let mut found = Guarded::from(&vec![0_u8; n]);
                kernels.lookup(&table, &x, &mut found);
                assert_eq!(*found, *expected, "{n} on {}", kernels.isa());
            }
        }
    }
}
