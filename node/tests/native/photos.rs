//! SqueezeNet names five photos, whatever its numbers are: f32, half precision, 8 bits in both of ONNX's
//! forms.

use image::imageops::FilterType;
use roost_protocol::{DType, Shape, Tensor};

use crate::{load, run, test_model, test_models};

/// The photos, and the class of each.
const PHOTOS: [(&str, usize); 5] =
    [("kitten_224.png", 281), ("dog.jpg", 207), ("cat.jpg", 285), ("mushroom.png", 947), ("fish.png", 389)];

/// Caffe's preparation: BGR, 0 to 255, less the mean of each channel.
const MEANS: [f32; 3] = [103.94, 116.78, 123.68];

/// A photo as `[1, 3, 224, 224]`.
fn pixels(name: &str) -> Vec<f32> {
    let path = test_models().join("squeezenet_fp32/photos").join(name);
    let photo = image::open(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let photo = photo.resize_exact(224, 224, FilterType::Triangle).to_rgb8();
    let channel = |(at, mean): (usize, f32)| {
        photo.pixels().map(move |pixel| f32::from(pixel.0[2 - at]) - mean).collect::<Vec<f32>>()
    };
    MEANS.into_iter().enumerate().flat_map(channel).collect()
}

#[test]
fn all_five_photos_are_named_in_any_precision() {
    for name in ["squeezenet_fp32", "squeezenet_fp16", "squeezenet_int8_qdq", "squeezenet_int8_qlinear"] {
        let mut session = load(&test_model(name));
        let half = session.signature().inputs[0].dtype == DType::F16;
        for (photo, class) in PHOTOS {
            let pixels = pixels(photo);
            let bytes: Vec<u8> = match half {
                true => pixels.iter().flat_map(|value| half::f16::from_f32(*value).to_le_bytes()).collect(),
                false => pixels.iter().flat_map(|value| value.to_le_bytes()).collect(),
            };
            let dtype = if half { DType::F16 } else { DType::F32 };
            let input = Tensor::new(dtype, Shape::new(&[1, 3, 224, 224]).unwrap(), bytes.into()).unwrap();
            let output = &run(&mut *session, &[input]).unwrap()[0].tensor;
            let probs: Vec<f32> = match half {
                true => output.elements::<half::f16>().unwrap().iter().map(|value| value.to_f32()).collect(),
                false => output.elements::<f32>().unwrap().to_vec(),
            };
            let best = (0..probs.len()).max_by(|a, b| probs[*a].total_cmp(&probs[*b]));
            assert_eq!(best, Some(class), "{name}: {photo}");
        }
    }
}
