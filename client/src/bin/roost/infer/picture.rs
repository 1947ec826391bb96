//! Pictures become tensors as the manifest's `[image]` says: cut, resized, then per channel `(pixel · scale
//! - mean) / std`.
//!
//! The largest centred part of the target's proportions is kept, as most image models were trained, rather
//! than the whole squeezed. Resizing is by a triangle filter as wide as a target pixel, so that shrinking
//! averages and does not skip. Transparency is ignored.

use image::DynamicImage;
use image::imageops::FilterType;
use roost_protocol::Tensor;
use roost_protocol::manifest::{Channels, ImageInput};
use roost_protocol::tensor::TensorError;

/// The pictures as one tensor, `[pictures, channels, height, width] f32`.
///
/// # Errors
/// [`TensorError`] when they are too many for one tensor.
pub fn tensor(pictures: &[DynamicImage], input: &ImageInput) -> Result<Tensor, TensorError> {
    let (count, channels) = (pictures.len() as u64, input.channels.count() as u64);
    let dims = [count, channels, u64::from(input.height), u64::from(input.width)];
    let values: Vec<f32> = pictures.iter().flat_map(|picture| values(picture, input)).collect();
    Tensor::from_elements(&dims, values)
}

/// A picture's values, channel by channel, each row by row.
fn values(picture: &DynamicImage, input: &ImageInput) -> Vec<f32> {
    let (x, y, width, height) = centred(picture.width(), picture.height(), input.width, input.height);
    let picture = picture.crop_imm(x, y, width, height);
    let picture = picture.resize_exact(input.width, input.height, FilterType::Triangle);
    // Interleaved bytes, and where each channel of the input lies among them.
    let (bytes, order): (Vec<u8>, &[usize]) = match input.channels {
        Channels::Gray => (picture.to_luma8().into_raw(), &[0]),
        Channels::Rgb => (picture.to_rgb8().into_raw(), &[0, 1, 2]),
        Channels::Bgr => (picture.to_rgb8().into_raw(), &[2, 1, 0]),
    };
    let of_channel = |(channel, offset): (usize, &usize)| {
        let (mean, std) = (input.mean[channel], input.std[channel]);
        let pixels = bytes.iter().skip(*offset).step_by(order.len());
        pixels.map(move |pixel| (f32::from(*pixel) * input.scale - mean) / std).collect::<Vec<_>>()
    };
    order.iter().enumerate().flat_map(of_channel).collect()
}

/// The largest centred part of a picture that has the target's proportions: its left, its top, its width and
/// height.
fn centred(width: u32, height: u32, target_width: u32, target_height: u32) -> (u32, u32, u32, u32) {
    let (wide, high) =
        (u64::from(width) * u64::from(target_height), u64::from(height) * u64::from(target_width));
    // To the nearest pixel, and never to none.
    let part = |of: u32, times: u32, by: u32| {
        let (product, by) = (u64::from(of) * u64::from(times), u64::from(by));
        ((product + by / 2) / by).max(1) as u32
    };
    let (kept_width, kept_height) = if wide > high {
        (part(height, target_width, target_height).min(width), height)
    } else {
        (width, part(width, target_height, target_width).min(height))
    };
    ((width - kept_width) / 2, (height - kept_height) / 2, kept_width, kept_height)
}

#[cfg(test)]
mod tests {
    use image::{GrayImage, Rgb, RgbImage};

    use super::*;

    fn input(width: u32, height: u32, channels: Channels) -> ImageInput {
        let count = channels.count();
        ImageInput {
            input: "x".to_owned(),
            width,
            height,
            channels,
            scale: 1.0,
            mean: vec![0.0; count],
            std: vec![1.0; count],
        }
    }

    fn values_of(picture: DynamicImage, input: &ImageInput) -> Vec<f32> {
        tensor(&[picture], input).unwrap().elements::<f32>().unwrap().to_vec()
    }

    fn colours() -> DynamicImage {
        RgbImage::from_fn(2, 1, |x, _| if x == 0 { Rgb([1, 2, 3]) } else { Rgb([10, 20, 30]) }).into()
    }

    #[test]
    fn the_largest_centred_part_is_kept() {
        let check = |from: (u32, u32), to: (u32, u32), expected| {
            assert_eq!(centred(from.0, from.1, to.0, to.1), expected, "{from:?} to {to:?}");
        };
        check((640, 480), (224, 224), (80, 0, 480, 480));
        check((480, 640), (224, 224), (0, 80, 480, 480));
        check((8, 8), (8, 8), (0, 0, 8, 8));
        check((100, 50), (200, 100), (0, 0, 100, 50));
        check((1000, 1), (1, 1000), (499, 0, 1, 1));
        check((5, 3), (2, 3), (1, 0, 2, 3));
    }

    #[test]
    fn channels_lie_apart_in_their_order() {
        let rgb = values_of(colours(), &input(2, 1, Channels::Rgb));
        assert_eq!(rgb, [1.0, 10.0, 2.0, 20.0, 3.0, 30.0]);
        let bgr = values_of(colours(), &input(2, 1, Channels::Bgr));
        assert_eq!(bgr, [3.0, 30.0, 2.0, 20.0, 1.0, 10.0]);
    }

    #[test]
    fn values_are_scaled_then_shifted_then_divided_per_channel() {
        let input = ImageInput {
            scale: 0.5,
            mean: vec![0.5, 1.0, 1.5],
            std: vec![1.0, 2.0, 4.0],
            ..input(2, 1, Channels::Rgb)
        };
        assert_eq!(values_of(colours(), &input), [0.0, 4.5, 0.0, 4.5, 0.0, 3.375]);
    }

    #[test]
    fn brightness_weighs_the_colours() {
        let white = RgbImage::from_pixel(1, 1, Rgb([255, 255, 255]));
        assert_eq!(values_of(white.into(), &input(1, 1, Channels::Gray)), [255.0]);
        let green =
            values_of(RgbImage::from_pixel(1, 1, Rgb([0, 255, 0])).into(), &input(1, 1, Channels::Gray));
        let blue =
            values_of(RgbImage::from_pixel(1, 1, Rgb([0, 0, 255])).into(), &input(1, 1, Channels::Gray));
        assert!(green[0] > 5.0 * blue[0], "{green:?} {blue:?}");
    }

    #[test]
    fn shrinking_averages() {
        let halves = GrayImage::from_fn(8, 8, |x, _| image::Luma([if x % 2 == 0 { 0 } else { 200 }]));
        let shrunk = values_of(halves.into(), &input(2, 2, Channels::Gray));
        assert!(shrunk.iter().all(|value| (80.0..=120.0).contains(value)), "{shrunk:?}");
        let plain = GrayImage::from_pixel(300, 200, image::Luma([77]));
        assert_eq!(values_of(plain.into(), &input(2, 2, Channels::Gray)), [77.0; 4]);
    }

    #[test]
    fn pictures_are_rows() {
        let picture = |value| DynamicImage::from(GrayImage::from_pixel(3, 3, image::Luma([value])));
        let tensor = tensor(&[picture(1), picture(2)], &input(1, 1, Channels::Gray)).unwrap();
        assert_eq!(tensor.shape().dims(), [2, 1, 1, 1]);
        assert_eq!(tensor.elements::<f32>().unwrap(), [1.0, 2.0]);
    }
}
