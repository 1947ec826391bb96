//! AVX-512 VBMI: bytes permuted across a register, which makes two registers a table of 128.

use std::arch::x86_64::{
    _mm512_loadu_si512, _mm512_mask_blend_epi8, _mm512_mask_storeu_epi8, _mm512_maskz_loadu_epi8,
    _mm512_movepi8_mask, _mm512_permutex2var_epi8, _mm512_storeu_si512,
};

/// See [`crate::lookup`].
///
/// # Safety
/// As [`crate::lookup::LookupFn`], with AVX-512 F, BW and VBMI.
#[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
pub(crate) unsafe fn lookup(table: &[u8; 256], x: *const u8, y: *mut u8, n: usize) {
    // SAFETY: the table has four vectors; 64 bytes are read and written where n allows as many, else the
    // first that are left, under a mask.
    unsafe {
        let part = |i: usize| _mm512_loadu_si512(table.as_ptr().add(64 * i).cast());
        let [a, b, c, d] = [part(0), part(1), part(2), part(3)];
        for i in (0..n).step_by(64) {
            let whole = n - i >= 64;
            let some = if whole { !0 } else { (1_u64 << (n - i)) - 1 };
            let at = if whole {
                _mm512_loadu_si512(x.add(i).cast())
            } else {
                _mm512_maskz_loadu_epi8(some, x.add(i).cast())
            };
            // Seven bits choose within a half, the eighth chooses the half.
            let (low, high) = (_mm512_permutex2var_epi8(a, at, b), _mm512_permutex2var_epi8(c, at, d));
            let found = _mm512_mask_blend_epi8(_mm512_movepi8_mask(at), low, high);
            if whole {
                _mm512_storeu_si512(y.add(i).cast(), found);
            } else {
                _mm512_mask_storeu_epi8(y.add(i).cast(), some, found);
            }
        }
    }
}
