//! What becomes of integer sums: kept, scaled to f32, or requantised to bytes.

use crate::elementwise::{Unary, UnaryKernel};
use crate::gemm::tile::Clamp;
use crate::gemm::{Activation, extent};
use crate::qgemm::tile::QOut;
use crate::simd::ByteRange;

/// What becomes of the sums of an integer product or convolution.
#[derive(Debug)]
pub enum Output<'a> {
    /// Kept.
    Sums(SumsOut<'a>),
    /// Scaled to f32.
    Floats(FloatsOut<'a>),
    /// Requantised.
    Bytes(BytesOut<'a>),
}

/// `[m, n]` sums.
#[derive(Debug)]
pub struct SumsOut<'a> {
    /// Row r at `r · stride`.
    pub data: &'a mut [i32],
    /// From the start of a row to that of the next, in elements.
    pub stride: usize,
}

/// `activation(sum · scale + bias)`; product and sum are each rounded.
#[derive(Debug)]
pub struct FloatsOut<'a> {
    /// Row r at `r · stride`.
    pub data: &'a mut [f32],
    /// From the start of a row to that of the next, in elements.
    pub stride: usize,
    /// `[n]`, or one factor for all columns.
    pub scale: &'a [f32],
    /// `[n]`.
    pub bias: Option<&'a [f32]>,
    /// What is done last.
    pub activation: Activation,
}

/// `clamp(round(sum · scale) + zero)` as u8 or s8, halves rounded to even.
#[derive(Debug)]
pub struct BytesOut<'a> {
    /// Row r at `r · stride`.
    pub data: &'a mut [u8],
    /// From the start of a row to that of the next.
    pub stride: usize,
    /// `[n]`, or one factor for all columns.
    pub scale: &'a [f32],
    /// The zero point.
    pub zero: i32,
    /// The least result: that of the type, or a higher one where a ReLU is fused.
    pub low: i32,
    /// The greatest result.
    pub high: i32,
}

impl Output<'_> {
    /// The output as tiles take it, and a function to apply afterwards.
    ///
    /// # Panics
    /// When `[m, n]` does not fit its slices, or bounds are no bytes.
    pub(crate) fn lower(self, m: usize, n: usize) -> (QOut, Option<Unary>) {
        let fits = |len: usize, stride: usize| {
            assert!(len >= extent(m, stride, n), "the output reaches beyond its slice");
            assert!(m <= 1 || stride >= n, "the output's rows overlap");
        };
        let scales = |scale: &[f32]| {
            assert!(scale.len() == n || scale.len() == 1, "one scale, or one for each column")
        };
        match self {
            Self::Sums(SumsOut { data, stride }) => {
                fits(data.len(), stride);
                (QOut::Sums { out: data.as_mut_ptr(), row: stride }, None)
            }
            Self::Floats(FloatsOut { data, stride, scale, bias, activation }) => {
                fits(data.len(), stride);
                scales(scale);
                assert!(bias.is_none_or(|bias| bias.len() == n), "the bias has one value per column");
                let (clamp, map) = activation.split();
                let (low, high) = match clamp {
                    Clamp::Free => (f32::NEG_INFINITY, f32::INFINITY),
                    Clamp::Low(low) => (low, f32::INFINITY),
                    Clamp::Both(low, high) => (low, high),
                };
                let out = QOut::Floats {
                    out: data.as_mut_ptr(),
                    row: stride,
                    scale: scale.as_ptr(),
                    each: scale.len() == n,
                    bias: bias.map_or(std::ptr::null(), <[f32]>::as_ptr),
                    low,
                    high,
                };
                (out, map)
            }
            Self::Bytes(BytesOut { data, stride, scale, zero, low, high }) => {
                fits(data.len(), stride);
                scales(scale);
                assert!(-128 <= low && low <= high && high <= 255, "bounds of a byte");
                assert!((-128..=255).contains(&zero), "a zero point of a byte");
                // Sums are at most 2^31 in size.
                let tame = scale.iter().all(|scale| scale.abs() < 1.0) && (low >= 0 || high <= 127);
                let out = QOut::Bytes {
                    out: data.as_mut_ptr(),
                    row: stride,
                    scale: scale.as_ptr(),
                    each: scale.len() == n,
                    to: ByteRange { low: low - zero, high: high - zero, zero, tame },
                };
                (out, None)
            }
        }
    }
}

impl QOut {
    /// Applies a function to a block of results in f32.
    ///
    /// # Safety
    /// The block exists, and is the caller's to write.
    pub(crate) unsafe fn map(&self, r: usize, column: usize, rows: usize, cols: usize, map: &UnaryKernel) {
        if let Self::Floats { out, row, .. } = self {
            // SAFETY: as the function.
            unsafe { map.rows_in_place(out.add(r * row + column), *row, rows, cols) }
        }
    }
}
