//! Which instruction sets there are, and which of them this machine has.
//!
//! Detection happens once. Every kernel gives the same bits on every [`Isa`]; the choice is one of speed
//! alone. Deliberately absent: a run-time dispatcher. [`crate::Kernels::of`] resolves a table, and whoever
//! plans work keeps it.

use std::fmt;
use std::str::FromStr;
use std::sync::OnceLock;

/// An instruction set that kernels exist for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Isa {
    /// Plain Rust, one lane. The specification of all others; runs anywhere.
    Scalar,
    /// x86-64 with AVX2, FMA and F16C: 8 lanes.
    Avx2,
    /// x86-64 with AVX-512 F, BW, DQ and VL: 16 lanes. Integer products use VNNI where the machine has it.
    Avx512,
    /// ARM64 with NEON: 4 lanes. Integer products use dotprod where the machine has it.
    Neon,
}

/// Why an instruction set cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// This machine lacks it.
    #[error("this machine cannot run {asked} kernels; it has {}", list(.available))]
    Unsupported {
        /// What was asked for.
        asked: Isa,
        /// What the machine has.
        available: &'static [Isa],
    },
    /// No such name.
    #[error("{0:?} is no instruction set; expected scalar, avx2, avx512 or neon")]
    Unknown(String),
}

fn list(isas: &[Isa]) -> String {
    isas.iter().map(|isa| isa.name()).collect::<Vec<_>>().join(", ")
}

/// What this machine has, beyond the name of an instruction set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Features {
    /// x86-64: FMA, which plain Rust code then uses too.
    pub fma: bool,
    /// x86-64: AVX2, FMA and F16C, which all processors with the first have.
    pub avx2: bool,
    /// x86-64: AVX-512 F, BW, DQ, VL.
    pub avx512: bool,
    /// x86-64: AVX-512 VNNI, products of u8 and s8 summed by four.
    pub vnni: bool,
    /// x86-64: AVX-512 VBMI, bytes permuted across a register.
    pub vbmi: bool,
    /// ARM64: NEON.
    pub neon: bool,
    /// ARM64: dotprod, products of s8 summed by four.
    pub dotprod: bool,
}

impl Features {
    /// What the processor reports; asked once per process.
    pub fn detect() -> Self {
        static FOUND: OnceLock<Features> = OnceLock::new();
        *FOUND.get_or_init(Self::ask)
    }

    #[cfg(all(target_arch = "x86_64", not(miri)))]
    fn ask() -> Self {
        let fma = is_x86_feature_detected!("fma") && is_x86_feature_detected!("avx");
        let avx2 = fma && is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c");
        let avx512 = avx2
            && is_x86_feature_detected!("avx512f")
            && is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl");
        let vnni = avx512 && is_x86_feature_detected!("avx512vnni");
        let vbmi = avx512 && is_x86_feature_detected!("avx512vbmi");
        Self { fma, avx2, avx512, vnni, vbmi, ..Self::default() }
    }

    #[cfg(all(target_arch = "aarch64", not(miri)))]
    fn ask() -> Self {
        let neon = std::arch::is_aarch64_feature_detected!("neon");
        let dotprod = neon && std::arch::is_aarch64_feature_detected!("dotprod");
        Self { neon, dotprod, ..Self::default() }
    }

    #[cfg(any(miri, not(any(target_arch = "x86_64", target_arch = "aarch64"))))]
    fn ask() -> Self {
        Self::default()
    }
}

impl Isa {
    /// The instruction sets that this machine has, slowest first. Never empty.
    pub fn available() -> &'static [Self] {
        let features = Features::detect();
        match (features.avx512, features.avx2, features.neon) {
            (true, _, _) => &[Self::Scalar, Self::Avx2, Self::Avx512],
            (false, true, _) => &[Self::Scalar, Self::Avx2],
            (false, false, true) => &[Self::Scalar, Self::Neon],
            (false, false, false) => &[Self::Scalar],
        }
    }

    /// The fastest instruction set that this machine has.
    pub fn best() -> Self {
        match Self::available() {
            [.., best] => *best,
            [] => Self::Scalar,
        }
    }

    /// Its name, as [`FromStr`] reads it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Isa {
    type Err = IsaError;

    fn from_str(name: &str) -> Result<Self, IsaError> {
        [Self::Scalar, Self::Avx2, Self::Avx512, Self::Neon]
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| IsaError::Unknown(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::{Isa, IsaError};

    #[test]
    fn names_round_trip() {
        for isa in [Isa::Scalar, Isa::Avx2, Isa::Avx512, Isa::Neon] {
            assert_eq!(isa.to_string().parse(), Ok(isa));
        }
        assert_eq!("sse9".parse::<Isa>(), Err(IsaError::Unknown("sse9".to_owned())));
    }

    #[test]
    fn the_best_is_available() {
        assert!(Isa::available().contains(&Isa::best()));
        assert!(Isa::available().contains(&Isa::Scalar));
    }
}
