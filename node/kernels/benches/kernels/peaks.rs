//! What the hardware can do at most: as many independent products as hide their latency, all in registers.
//!
//! Operands differ from one product to the next, as they do in a kernel. With the same ones in each, few bits
//! change, and a processor whose clock its power bounds runs faster than any kernel can make it.

use roost_kernels::Isa;

/// A loop of products.
#[derive(Clone, Copy)]
pub struct Peak {
    /// The loop.
    pub run: fn(),
    /// Operations of it; a product and a sum are two.
    pub operations: f64,
}

/// The loops in f32 and in 8 bits, of the instructions that the kernels of this set multiply with, where they
/// are measured.
pub fn of(isa: Isa) -> Option<[Peak; 2]> {
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512 => Some(x86::avx512()),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => Some(x86::avx2()),
        _ => None,
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports, reason = "intrinsics, by the dozen")]
    use std::arch::x86_64::*;
    use std::array::from_fn;
    use std::hint::black_box;

    use roost_kernels::Features;

    use super::Peak;

    const ROUNDS: usize = 10_000;
    /// Sums of the 512-bit loops, and operands on each side.
    const SUMS_512: usize = 16;
    const OPERANDS_512: usize = 8;
    /// Sums of the 256-bit loops, in half as many registers, and operands on each side.
    const SUMS_256: usize = 12;
    const OPERANDS_256: usize = 2;

    fn peak(run: fn(), products: usize) -> Peak {
        Peak { run, operations: (2 * products * ROUNDS) as f64 }
    }

    /// The loops of AVX-512, which the machine has.
    pub fn avx512() -> [Peak; 2] {
        // SAFETY: the machine has it.
        let floats = peak(|| unsafe { floats512() }, 16 * SUMS_512);
        let bytes = if Features::detect().vnni {
            // SAFETY: VNNI was found.
            peak(|| unsafe { fours512() }, 64 * SUMS_512)
        } else {
            // SAFETY: the machine has AVX-512.
            peak(|| unsafe { pairs512() }, 32 * SUMS_512)
        };
        [floats, bytes]
    }

    /// The loops of AVX2, which the machine has.
    pub fn avx2() -> [Peak; 2] {
        // SAFETY: the machine has it.
        let floats = peak(|| unsafe { floats256() }, 8 * SUMS_256);
        // SAFETY: as above.
        [floats, peak(|| unsafe { pairs256() }, 16 * SUMS_256)]
    }

    /// Numbers between -0.5 and 0.5.
    fn number(i: usize) -> f32 {
        (i * 7919 % 1009) as f32 / 1009.0 - 0.5
    }

    /// Any bits.
    fn bits(i: usize) -> i32 {
        (i as u32 + 1).wrapping_mul(0x9e37_79b1) as i32
    }

    /// The operands of product i of a round, other ones than those of the product before.
    fn pick<T: Copy, const N: usize>(x: &[T; N], y: &[T; N], i: usize) -> (T, T) {
        (x[i % N], y[(i + i / N) % N])
    }

    #[target_feature(enable = "avx512f")]
    unsafe fn floats512() {
        let x: [_; OPERANDS_512] = from_fn(|i| _mm512_set1_ps(number(i)));
        let y: [_; OPERANDS_512] = from_fn(|i| {
            let lanes: [f32; 16] = from_fn(|lane| number(100 + 16 * i + lane));
            // SAFETY: 16 numbers are there.
            unsafe { _mm512_loadu_ps(lanes.as_ptr()) }
        });
        let (x, y) = black_box((x, y));
        let mut sums = [_mm512_set1_ps(1.0); SUMS_512];
        for _ in 0..ROUNDS {
            for (i, sum) in sums.iter_mut().enumerate() {
                let (x, y) = pick(&x, &y, i);
                *sum = _mm512_fmadd_ps(x, y, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn fours512() {
        let x: [_; OPERANDS_512] = from_fn(|i| _mm512_set1_epi32(bits(i)));
        let y: [_; OPERANDS_512] = from_fn(|i| {
            let lanes: [i32; 16] = from_fn(|lane| bits(100 + 16 * i + lane));
            // SAFETY: 16 numbers are there.
            unsafe { _mm512_loadu_si512(lanes.as_ptr().cast()) }
        });
        let (x, y) = black_box((x, y));
        let mut sums = [_mm512_set1_epi32(1); SUMS_512];
        for _ in 0..ROUNDS {
            for (i, sum) in sums.iter_mut().enumerate() {
                let (x, y) = pick(&x, &y, i);
                *sum = _mm512_dpbusd_epi32(*sum, x, y);
            }
        }
        black_box(sums);
    }

    // Pairs multiply what is summed: a product of what stays the same would be taken out of the loop. A
    // product of what a further addition changes in each round was measured too, and is slower.

    #[target_feature(enable = "avx512f,avx512bw")]
    unsafe fn pairs512() {
        let x: [_; OPERANDS_512] = black_box(from_fn(|i| _mm512_set1_epi32(bits(i))));
        let mut sums = [_mm512_set1_epi32(1); SUMS_512];
        for _ in 0..ROUNDS {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = _mm512_add_epi32(*sum, _mm512_madd_epi16(x[i % OPERANDS_512], *sum));
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn floats256() {
        let x: [_; OPERANDS_256] = from_fn(|i| _mm256_set1_ps(number(i + 1)));
        let y: [_; OPERANDS_256] = from_fn(|i| {
            let lanes: [f32; 8] = from_fn(|lane| number(100 + 8 * i + lane));
            // SAFETY: 8 numbers are there.
            unsafe { _mm256_loadu_ps(lanes.as_ptr()) }
        });
        let (x, y) = black_box((x, y));
        let mut sums = [_mm256_set1_ps(1.0); SUMS_256];
        for _ in 0..ROUNDS {
            for (i, sum) in sums.iter_mut().enumerate() {
                let (x, y) = pick(&x, &y, i);
                *sum = _mm256_fmadd_ps(x, y, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx2,fma")]
    unsafe fn pairs256() {
        let x: [_; OPERANDS_256] = black_box(from_fn(|i| _mm256_set1_epi32(bits(i))));
        let mut sums = [_mm256_set1_epi32(1); SUMS_256];
        for _ in 0..ROUNDS {
            for (i, sum) in sums.iter_mut().enumerate() {
                *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(x[i % OPERANDS_256], *sum));
            }
        }
        black_box(sums);
    }
}
