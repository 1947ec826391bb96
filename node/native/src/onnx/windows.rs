//! Attributes that are more than a number: windows of convolutions and pools, recurrent layers, `Resize`.

use super::attributes::{Attributes, Refusal};
use crate::ops::conv::{AutoPad, Transposed, Window};
use crate::ops::resize::{Aspect, Coordinates, Mode, Nearest, Resize};
use crate::ops::rnn::{Activation, Cell, Rnn};

/// The window of a convolution or pool.
///
/// # Errors
/// [`Refusal::Malformed`].
pub fn window(a: Attributes<'_>) -> Result<Window, Refusal> {
    let auto_pad = match a.text("auto_pad", "NOTSET")? {
        "NOTSET" | "" => AutoPad::NotSet,
        "SAME_UPPER" => AutoPad::SameUpper,
        "SAME_LOWER" => AutoPad::SameLower,
        "VALID" => AutoPad::Valid,
        other => return Err(Refusal::malformed(format!("auto_pad {other}"))),
    };
    Ok(Window {
        kernel: a.sizes("kernel_shape")?,
        strides: a.sizes("strides")?,
        dilations: a.sizes("dilations")?,
        pads: a.ints("pads").to_vec(),
        auto_pad,
        ceil_mode: a.flag("ceil_mode"),
    })
}

/// The attributes of `ConvTranspose`.
///
/// # Errors
/// [`Refusal::Malformed`].
pub fn transposed(a: Attributes<'_>) -> Result<Transposed, Refusal> {
    Ok(Transposed {
        window: window(a)?,
        group: a.size("group", 1)?,
        output_padding: a.sizes("output_padding")?,
        output_shape: a.sizes("output_shape")?,
    })
}

/// The attributes of `LSTM`, `GRU` and `RNN`.
///
/// # Errors
/// [`Refusal`].
pub fn rnn(a: Attributes<'_>, op: &str) -> Result<Rnn, Refusal> {
    let cell = match op {
        "LSTM" => Cell::Lstm,
        "GRU" => Cell::Gru { linear_before_reset: a.flag("linear_before_reset") },
        _ => Cell::Rnn,
    };
    let directions = match a.text("direction", "forward")? {
        "forward" => vec![false],
        "reverse" => vec![true],
        "bidirectional" => vec![false, true],
        other => return Err(Refusal::malformed(format!("direction {other}"))),
    };
    let defaults: &[&str] = match cell {
        Cell::Lstm => &["Sigmoid", "Tanh", "Tanh"],
        Cell::Gru { .. } => &["Sigmoid", "Tanh"],
        Cell::Rnn => &["Tanh"],
    };
    let named = a.texts("activations")?;
    let per = defaults.len();
    if !named.is_empty() && named.len() != per * directions.len() {
        return Err(Refusal::malformed(format!("{} activations", named.len())));
    }
    let (mut alphas, mut betas) = (a.floats("activation_alpha").iter(), a.floats("activation_beta").iter());
    let mut activations = Vec::new();
    for d in 0..directions.len() {
        let mut gates = [Activation::Tanh; 3];
        for i in 0..per {
            let name = named.get(d * per + i).unwrap_or(&defaults[i]);
            gates[i] = activation(name, &mut alphas, &mut betas)?;
        }
        activations.push(gates);
    }
    Ok(Rnn {
        cell,
        hidden: a.size("hidden_size", 0)?,
        directions,
        activations,
        clip: a.get("clip").map(|clip| clip.f),
        input_forget: a.flag("input_forget"),
        batch_first: a.flag("layout"),
    })
}

/// An activation; its parameters come in order from the lists, for those that have any.
fn activation<'a>(
    name: &str,
    alphas: &mut impl Iterator<Item = &'a f32>,
    betas: &mut impl Iterator<Item = &'a f32>,
) -> Result<Activation, Refusal> {
    let mut alpha = |default: f32| alphas.next().copied().unwrap_or(default);
    let mut beta = |default: f32| betas.next().copied().unwrap_or(default);
    Ok(match name.to_ascii_lowercase().as_str() {
        "sigmoid" => Activation::Sigmoid,
        "tanh" => Activation::Tanh,
        "relu" => Activation::Relu,
        "affine" => Activation::Affine(alpha(1.0), beta(0.0)),
        "leakyrelu" => Activation::LeakyRelu(alpha(0.01)),
        "thresholdedrelu" => Activation::ThresholdedRelu(alpha(1.0)),
        "scaledtanh" => Activation::ScaledTanh(alpha(1.0), beta(1.0)),
        "hardsigmoid" => Activation::HardSigmoid(alpha(0.2), beta(0.5)),
        "elu" => Activation::Elu(alpha(1.0)),
        "softsign" => Activation::Softsign,
        "softplus" => Activation::Softplus,
        other => return Err(Refusal::unsupported(format!("activation {other}"))),
    })
}

/// The attributes of `Resize` and `Upsample`.
///
/// # Errors
/// [`Refusal::Malformed`].
pub fn resize(a: Attributes<'_>, since: i64, upsample: bool) -> Result<Resize, Refusal> {
    let wrong = |what: &str, value: &str| Refusal::malformed(format!("{what} {value}"));
    // `Resize` of opset 10 and `Upsample` have no such attribute: places are plain multiples, nearest is
    // floor.
    let old = upsample || since < 11;
    let nearest = match a.text("nearest_mode", if old { "floor" } else { "round_prefer_floor" })? {
        "round_prefer_floor" => Nearest::RoundPreferFloor,
        "round_prefer_ceil" => Nearest::RoundPreferCeil,
        "floor" => Nearest::Floor,
        "ceil" => Nearest::Ceil,
        other => return Err(wrong("nearest_mode", other)),
    };
    let mode = match a.text("mode", "nearest")? {
        "nearest" => Mode::Nearest(nearest),
        "linear" | "bilinear" => Mode::Linear,
        "cubic" => Mode::Cubic(a.float("cubic_coeff_a", -0.75)),
        other => return Err(wrong("mode", other)),
    };
    let coordinates =
        match a.text("coordinate_transformation_mode", if old { "asymmetric" } else { "half_pixel" })? {
            "half_pixel" => Coordinates::HalfPixel,
            "half_pixel_symmetric" => Coordinates::HalfPixelSymmetric,
            "pytorch_half_pixel" => Coordinates::PytorchHalfPixel,
            "align_corners" => Coordinates::AlignCorners,
            "asymmetric" => Coordinates::Asymmetric,
            "tf_crop_and_resize" => Coordinates::TfCropAndResize,
            other => return Err(wrong("coordinate_transformation_mode", other)),
        };
    let aspect = match a.text("keep_aspect_ratio_policy", "stretch")? {
        "stretch" => Aspect::Stretch,
        "not_larger" => Aspect::NotLarger,
        "not_smaller" => Aspect::NotSmaller,
        other => return Err(wrong("keep_aspect_ratio_policy", other)),
    };
    Ok(Resize {
        mode,
        coordinates,
        exclude_outside: a.flag("exclude_outside"),
        extrapolation: a.float("extrapolation_value", 0.0),
        antialias: a.flag("antialias"),
        axes: a.ints("axes").to_vec(),
        aspect,
    })
}
