//! Packed weights of kernels that compute in f32. Where half precision holds all of them exactly, as it does
//! in a model of half precision, they are kept so, and widened as they are used, into scratch: the weights of
//! such a model then take what its file takes, to the same bits.

use std::ops::Range;
use std::sync::Arc;

use half::slice::HalfFloatSliceExt;
use roost_kernels::{Half, Kernels, Weights};

use super::pack::{Layout, PackedBuf, shared};
use crate::error::OpError;
use crate::ops::Target;
use crate::tensor::Tensor;
use crate::tensor::form::Unpack;

/// Values of a cache line, which parts of scratch are multiples of.
const LINE: usize = 64 / size_of::<f32>();

/// Packed weights.
pub struct Floats {
    buffer: Arc<PackedBuf>,
    kernels: &'static Kernels,
}

impl Floats {
    /// The packed form of `tensor`, an f32 one, of `len` values: made by `pack` unless there is one. `unpack`
    /// is the way back.
    ///
    /// # Errors
    /// As [`super::pack::packed`].
    pub fn packed(
        target: Target<'_>,
        tensor: &Tensor,
        layout: Layout,
        len: usize,
        pack: impl FnOnce(&mut [f32]),
        unpack: impl Fn(&[f32], &mut [f32]) + Send + Sync + 'static,
    ) -> Result<Self, OpError> {
        let kernels = target.kernels;
        let buffer = tensor.forms().get_or_make(layout, |layout| {
            let mut wide = PackedBuf::zeroed(len * size_of::<f32>(), None, target.packing)?;
            pack(bytemuck::cast_slice_mut(wide.bytes_mut()));
            let made = narrowed(&wide, target).unwrap_or(wide);
            let half = made.half();
            let back: Unpack = Arc::new(move |packed, weights| {
                let weights = bytemuck::cast_slice_mut(weights);
                let Some(half) = half else { return unpack(bytemuck::cast_slice(packed), weights) };
                let mut wide = vec![0.0; len];
                kernels.widen(half, bytemuck::cast_slice(packed), &mut wide);
                unpack(&wide, weights);
            });
            Ok((shared(layout.clone(), made), back))
        })?;
        Ok(Self { buffer, kernels })
    }

    /// The elements of a tensor as they are, if half precision holds them and there is room for a copy in it.
    pub fn as_halves(target: Target<'_>, tensor: &Tensor, layout: Layout) -> Option<Self> {
        let kernels = target.kernels;
        let made = tensor.forms().get_or_make(layout, |layout| {
            let values = tensor.values::<f32>();
            // Any error here says that the table stays as it is.
            let half = holding(&values, kernels)
                .ok_or_else(|| OpError::Unsupported("half precision does not hold it".into()))?;
            let mut made = PackedBuf::zeroed(size_of_val(&*values) / 2, Some(half), target.packing)?;
            narrow(half, &values, bytemuck::cast_slice_mut(made.bytes_mut()));
            let back: Unpack = Arc::new(move |packed, values| {
                kernels.widen(half, bytemuck::cast_slice(packed), bytemuck::cast_slice_mut(values));
            });
            Ok((shared(layout.clone(), made), back))
        });
        Some(Self { buffer: made.ok()?, kernels })
    }

    /// The format, where it is not f32.
    pub fn half(&self) -> Option<Half> {
        self.buffer.half()
    }

    /// The weights as kernels take them.
    pub fn weights(&self) -> Weights<'_> {
        match self.half() {
            None => Weights::F32(bytemuck::cast_slice(self.buffer.bytes())),
            Some(half) => Weights::Half(half, bytemuck::cast_slice(self.buffer.bytes())),
        }
    }

    /// Values of scratch that [`Self::read`] takes for so many.
    pub fn scratch_len(&self, len: usize) -> usize {
        if self.half().is_some() { len.next_multiple_of(LINE) } else { 0 }
    }

    /// Some of the weights as f32, widened to where scratch begins if need be; and the rest of the scratch.
    pub fn read<'a>(&'a self, range: Range<usize>, scratch: &'a mut [f32]) -> (&'a [f32], &'a mut [f32]) {
        match self.weights() {
            Weights::F32(all) => (&all[range], scratch),
            Weights::Half(half, all) => {
                let (wide, rest) = scratch.split_at_mut(self.scratch_len(range.len()));
                let wide = &mut wide[..range.len()];
                self.kernels.widen(half, &all[range], wide);
                (wide, rest)
            }
        }
    }
}

/// Packed weights in half precision, if it holds them and there is room for both.
fn narrowed(wide: &PackedBuf, target: Target<'_>) -> Option<PackedBuf> {
    let values = bytemuck::cast_slice(wide.bytes());
    let half = holding(values, target.kernels)?;
    let mut made = PackedBuf::zeroed(size_of_val(values) / 2, Some(half), target.packing).ok()?;
    narrow(half, values, bytemuck::cast_slice_mut(made.bytes_mut()));
    Some(made)
}

/// The format of 16 bits that holds all of these numbers exactly.
fn holding(values: &[f32], kernels: &Kernels) -> Option<Half> {
    const AT_ONCE: usize = 1024;
    let exact = |half: Half| {
        values.chunks(AT_ONCE).all(|values| {
            let (mut halves, mut wide) = ([0; AT_ONCE], [0.0; AT_ONCE]);
            let (halves, wide) = (&mut halves[..values.len()], &mut wide[..values.len()]);
            narrow(half, values, halves);
            kernels.widen(half, halves, wide);
            // Bits, since zeros have signs; and no NaN, whose bits are nobody's promise.
            values.iter().zip(&*wide).all(|(a, b)| a.is_finite() && a.to_bits() == b.to_bits())
        })
    };
    [Half::F16, Half::BF16].into_iter().find(|half| exact(*half))
}

/// Numbers that a format holds exactly, in it.
fn narrow(half: Half, values: &[f32], halves: &mut [u16]) {
    match half {
        Half::F16 => bytemuck::cast_slice_mut::<u16, half::f16>(halves).convert_from_f32_slice(values),
        Half::BF16 => bytemuck::cast_slice_mut::<u16, half::bf16>(halves).convert_from_f32_slice(values),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::form::Packing;

    fn target(packing: &Arc<Packing>) -> Target<'_> {
        Target { kernels: Kernels::best(), packing }
    }

    fn reversed(target: Target<'_>, tensor: &Tensor) -> Floats {
        let reverse = |from: &[f32], to: &mut [f32]| {
            to.copy_from_slice(from);
            to.reverse();
        };
        let layout = Layout { kernel: "reversed", numbers: vec![tensor.len()] };
        let pack = |out: &mut [f32]| reverse(&tensor.values::<f32>(), out);
        Floats::packed(target, tensor, layout, tensor.len(), pack, reverse).expect("there is room")
    }

    #[test]
    fn a_format_must_hold_every_number() {
        let kernels = Kernels::best();
        let tiny = 2.0_f32.powi(-24);
        assert_eq!(holding(&[0.0, -0.0, 1.0, -65504.0, 0.1_f32.round(), tiny], kernels), Some(Half::F16));
        assert_eq!(holding(&[1.0, 65536.0], kernels), Some(Half::BF16));
        assert_eq!(holding(&[tiny / 2.0], kernels), Some(Half::BF16));
        for value in [0.1, 65505.0, f32::NAN, f32::INFINITY, f32::MIN_POSITIVE * 1.0001] {
            assert_eq!(holding(&[1.0, value], kernels), None, "{value}");
        }
        // The last number of many.
        let mut many = vec![0.5; 3000];
        assert_eq!(holding(&many, kernels), Some(Half::F16));
        many[2999] = 0.1;
        assert_eq!(holding(&many, kernels), None);
    }

    #[test]
    fn halves_take_half_and_are_the_same_numbers() {
        let packing = Packing::new(u64::MAX);
        let numbers: Vec<f32> = (0..1000).map(|i| (i - 300) as f32 / 16.0).collect();
        let thirds: Vec<f32> = numbers.iter().map(|x| x / 3.0).collect();
        for (numbers, bytes) in [(numbers, 2000), (thirds, 4000)] {
            let tensor = Tensor::of(&[1000], &numbers);
            let floats = reversed(target(&packing), &tensor);
            assert_eq!(packing.bytes(), bytes);
            let mut scratch = vec![0.0; floats.scratch_len(100) + 3];
            let (read, rest) = floats.read(200..300, &mut scratch);
            let expected: Vec<f32> = numbers[700..800].iter().rev().copied().collect();
            assert_eq!(read, expected);
            assert!(rest.len() >= 3);
            let condensed = tensor.condensed().expect("it has a form");
            assert_eq!(*condensed.values::<f32>(), *numbers);
        }
    }

    #[test]
    fn equal_bytes_of_other_formats_are_other_forms() {
        let packing = Packing::new(u64::MAX);
        // 1.0 as f32, and 0.0 with 1.875 as f16.
        let float = reversed(target(&packing), &Tensor::of(&[2], &[f32::from_bits(0x3f80_0001); 2]));
        let halves = Tensor::of(&[2], &[1.875_f32, 2.0_f32.powi(-24)]);
        let halves = reversed(target(&packing), &halves);
        assert_eq!((float.half(), halves.half()), (None, Some(Half::F16)));
        assert_eq!(float.buffer.bytes()[..4], *halves.buffer.bytes());
    }
}
