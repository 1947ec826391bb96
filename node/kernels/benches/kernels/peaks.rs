//! What the hardware can do at most: as many independent products as hide their latency, all in registers.

use std::hint::black_box;

use roost_kernels::Isa;

use crate::typical;

const ROUNDS: usize = 20_000;

/// GFLOP/s in f32 and GOP/s in 8 bits.
pub fn measure(isa: Isa) -> (f64, f64) {
    let (lanes, sums, products, bytes): (usize, usize, fn(), fn()) = match isa {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: the set is available, as main asks only for such.
        Isa::Avx512 => (16, 16, || unsafe { x86::floats512() }, || unsafe { x86::bytes512() }),
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above.
        Isa::Avx2 => (8, 12, || unsafe { x86::floats256() }, || unsafe { x86::bytes256() }),
        _ => return (f64::NAN, f64::NAN),
    };
    let rate = |run: fn(), each: usize| (2 * each * sums * ROUNDS) as f64 / typical(run) / 1e9;
    let per_lane = if isa == Isa::Avx512 && is_vnni() { 4 } else { 2 };
    (rate(products, lanes), rate(bytes, per_lane * lanes))
}

fn is_vnni() -> bool {
    roost_kernels::Features::detect().vnni
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports, reason = "intrinsics, by the dozen")]
    use std::arch::x86_64::*;

    use super::{ROUNDS, black_box};

    #[target_feature(enable = "avx512f")]
    pub unsafe fn floats512() {
        let mut sums = [_mm512_set1_ps(1.0); 16];
        let (x, y) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, x, y);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    pub unsafe fn bytes512() {
        let mut sums = [_mm512_set1_epi32(1); 16];
        let x = black_box(_mm512_set1_epi32(0x0101_0101));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn floats256() {
        let mut sums = [_mm256_set1_ps(1.0); 12];
        let (x, y) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, x, y);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    pub unsafe fn bytes256() {
        let mut sums = [_mm256_set1_epi32(1); 12];
        let mut x = black_box(_mm256_set1_epi32(0x0001_0001));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, *sum));
            }
            x = black_box(x);
        }
        black_box(sums);
    }
}
