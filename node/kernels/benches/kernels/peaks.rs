//! What the hardware can do at most: as many independent products as hide their latency, all in registers.

use roost_kernels::Isa;

/// GFLOP/s in f32 and GOP/s in 8 bits, of the instructions that the kernels of this set multiply with; NaN
/// where they are not measured.
pub fn measure(isa: Isa) -> (f64, f64) {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => x86::avx512(),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => x86::avx2(),
        _ => (f64::NAN, f64::NAN),
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports, reason = "intrinsics, by the dozen")]
    use std::arch::x86_64::*;
    use std::hint::black_box;

    use roost_kernels::Features;

    use crate::typical;

    const ROUNDS: usize = 20_000;
    /// Sums of the 512-bit loops.
    const SUMS_512: usize = 16;
    /// Sums of the 256-bit loops, in half as many registers.
    const SUMS_256: usize = 12;

    /// Billions of operations a second of a loop with so many products a round.
    fn rate(run: fn(), products: usize) -> f64 {
        (2 * products * ROUNDS) as f64 / typical(run) / 1e9
    }

    /// The peaks of AVX-512, which the machine has.
    pub fn avx512() -> (f64, f64) {
        // SAFETY: the machine has it.
        let floats = rate(|| unsafe { floats512() }, 16 * SUMS_512);
        let bytes = if Features::detect().vnni {
            // SAFETY: VNNI was found.
            rate(|| unsafe { fours512() }, 64 * SUMS_512)
        } else {
            // SAFETY: the machine has AVX-512.
            rate(|| unsafe { pairs512() }, 32 * SUMS_512)
        };
        (floats, bytes)
    }

    /// The peaks of AVX2, which the machine has.
    pub fn avx2() -> (f64, f64) {
        // SAFETY: the machine has it.
        let floats = rate(|| unsafe { floats256() }, 8 * SUMS_256);
        // SAFETY: as above.
        (floats, rate(|| unsafe { pairs256() }, 16 * SUMS_256))
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn floats512() {
        let mut sums = [_mm512_set1_ps(1.0); SUMS_512];
        let (x, y) = (black_box(_mm512_set1_ps(0.5)), black_box(_mm512_set1_ps(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(*sum, x, y);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn fours512() {
        let mut sums = [_mm512_set1_epi32(1); SUMS_512];
        let x = black_box(_mm512_set1_epi32(0x0101_0101));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }

    // Pairs multiply what is summed: a product of what stays the same would be taken out of the loop. A
    // product of what a further addition changes in each round was measured too, and is slower.

    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pairs512() {
        let mut sums = [_mm512_set1_epi32(1); SUMS_512];
        let x = black_box(_mm512_set1_epi32(0x0001_0001));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(x, *sum));
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn floats256() {
        let mut sums = [_mm256_set1_ps(1.0); SUMS_256];
        let (x, y) = (black_box(_mm256_set1_ps(0.5)), black_box(_mm256_set1_ps(0.25)));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_fmadd_ps(*sum, x, y);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn pairs256() {
        let mut sums = [_mm256_set1_epi32(1); SUMS_256];
        let x = black_box(_mm256_set1_epi32(0x0001_0001));
        for _ in 0..ROUNDS {
            for sum in &mut sums {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x, *sum));
            }
        }
        black_box(sums);
    }
}
