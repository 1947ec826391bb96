//! `model.toml`: what a bundle says about its model beyond the graph.
//!
//! Every key may be left out. Unknown keys are refused, so that a typing error is not a silent default.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::limits::{MANIFEST_BYTES_MAX, REPLICAS_MAX, REQUEST_ROWS_MAX, TENSOR_RANK_MAX};

/// What `model.toml` says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Manifest {
    /// The engine that runs the model.
    pub engine: EngineChoice,
    /// How many nodes host it. Default 2.
    pub replicas: Replicas,
    /// The most rows of one batch; 1 never batches. Default 32. Raising it costs memory and, under load, latency.
    pub batch_rows_max: u32,
    /// Batch sizes that are run once before the version is ready. Default: 1 and [`Manifest::batch_rows_max`].
    pub warm_up_rows: Vec<u32>,
    /// Class names, by their index along the last axis of [`Manifest::labels_output`].
    pub labels: Vec<String>,
    /// The output that the labels belong to. Default: the first.
    pub labels_output: Option<String>,
    /// How far two engines' answers may lie apart.
    pub tolerance: Tolerance,
    /// The axis of the rows, by input and output name. An input that is not listed is not batched.
    pub batch_axes: BTreeMap<String, u8>,
    /// Bounds on one request.
    pub limits: RequestLimits,
    /// Where the version may be placed.
    pub placement: PlacementRules,
    /// How a picture becomes an input, for models of images.
    pub image: Option<ImageInput>,
}

impl Default for Manifest {
    fn default() -> Self {
        Self {
            engine: EngineChoice::Auto,
            replicas: Replicas::Count(2),
            batch_rows_max: 32,
            warm_up_rows: Vec::new(),
            labels: Vec::new(),
            labels_output: None,
            tolerance: Tolerance { absolute: 1e-4, relative: 1e-3 },
            batch_axes: BTreeMap::new(),
            limits: RequestLimits { rows_max: 1024 },
            placement: PlacementRules::default(),
            image: None,
        }
    }
}

/// The engine that runs a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineChoice {
    /// Whichever engine of the node supports the whole graph.
    Auto,
    /// ONNX Runtime.
    OnnxRuntime,
    /// Roost's own engine.
    Native,
}

/// How many nodes host a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "ReplicasText", into = "ReplicasText")]
pub enum Replicas {
    /// That many, or all eligible ones if there are fewer.
    Count(u16),
    /// Every eligible node.
    All,
}

/// [`Replicas`] as text. Tagged, because the cold encoding of messages cannot guess.
#[derive(Serialize, Deserialize)]
struct ReplicasText(#[serde(with = "replicas_text")] String);

impl TryFrom<ReplicasText> for Replicas {
    type Error = ManifestError;
    fn try_from(ReplicasText(text): ReplicasText) -> Result<Self, ManifestError> {
        if text == "all" {
            return Ok(Self::All);
        }
        let count = text.parse().ok().filter(|count| (1..=REPLICAS_MAX).contains(count));
        count.map(Self::Count).ok_or(ManifestError::Replicas(text))
    }
}

impl From<Replicas> for ReplicasText {
    fn from(replicas: Replicas) -> Self {
        Self(match replicas {
            Replicas::All => "all".to_owned(),
            Replicas::Count(count) => count.to_string(),
        })
    }
}

/// Reads a number or a text from TOML, and a text from the binary encoding.
mod replicas_text {
    use serde::de::{Error, Visitor};
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(text: &str, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(text)
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        struct NumberOrText;
        impl Visitor<'_> for NumberOrText {
            type Value = String;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a number of replicas, or \"all\"")
            }
            fn visit_i64<E: Error>(self, number: i64) -> Result<String, E> {
                Ok(number.to_string())
            }
            fn visit_u64<E: Error>(self, number: u64) -> Result<String, E> {
                Ok(number.to_string())
            }
            fn visit_str<E: Error>(self, text: &str) -> Result<String, E> {
                Ok(text.to_owned())
            }
        }
        if deserializer.is_human_readable() {
            deserializer.deserialize_any(NumberOrText)
        } else {
            String::deserialize(deserializer)
        }
    }
}

/// How far apart two answers may lie: `|a - b| <= absolute + relative * |b|`.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tolerance {
    /// The absolute part.
    pub absolute: f64,
    /// The part relative to the reference.
    pub relative: f64,
}

/// Bounds on one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RequestLimits {
    /// The most rows of one request. Default 1024.
    pub rows_max: u32,
}

/// Where a version may be placed.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PlacementRules {
    /// Memory that a node must have, in MiB. Default 0.
    pub memory_mib_min: u64,
    /// Labels that a node must bear, with these values.
    pub node_labels: BTreeMap<String, String>,
}

/// How a picture becomes an input of a model: resized, then per channel `(pixel · scale - mean) / std`, in NCHW.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ImageInput {
    /// The input's name.
    pub input: String,
    /// Pixels across.
    pub width: u32,
    /// Pixels down.
    pub height: u32,
    /// Which channels, in which order.
    pub channels: Channels,
    /// What a pixel of 0 to 255 is multiplied with.
    pub scale: f32,
    /// Taken off per channel, after scaling.
    pub mean: Vec<f32>,
    /// Divided by per channel.
    pub std: Vec<f32>,
}

/// The channels of a picture, in the order of the model's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Channels {
    /// One channel of brightness.
    Gray,
    /// Red, green, blue.
    Rgb,
    /// Blue, green, red.
    Bgr,
}

impl Channels {
    /// How many there are.
    pub fn count(self) -> usize {
        match self {
            Self::Gray => 1,
            Self::Rgb | Self::Bgr => 3,
        }
    }
}

/// Why a text is not a manifest.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum ManifestError {
    /// Larger than [`MANIFEST_BYTES_MAX`].
    #[error("model.toml has at most {MANIFEST_BYTES_MAX} bytes, this one has {bytes}")]
    TooLarge {
        /// How large it is.
        bytes: usize,
    },
    /// Not TOML, an unknown key, or a value of another type.
    #[error("model.toml: {0}")]
    Toml(String),
    /// A replica count that is none.
    #[error("replicas is a number from 1 to {REPLICAS_MAX}, or \"all\"; {0:?} is neither")]
    Replicas(String),
    /// A number outside its range.
    #[error("model.toml: {key} is {value}, it must be from {min} to {max}")]
    Range {
        /// The key.
        key: &'static str,
        /// Its value.
        value: u64,
        /// The least that it may be.
        min: u64,
        /// The most that it may be.
        max: u64,
    },
    /// A number that computing with makes no sense.
    #[error("model.toml: {key} is {value}, it must be {expected}")]
    Number {
        /// The key.
        key: &'static str,
        /// Its value.
        value: f64,
        /// What it must be.
        expected: &'static str,
    },
    /// An axis that no tensor has.
    #[error(
        "model.toml: batch_axes.{name} is {axis}, a tensor has at most {TENSOR_RANK_MAX} axes, counted from 0"
    )]
    Axis {
        /// The input or output.
        name: String,
        /// The axis.
        axis: u8,
    },
    /// `[image]` names channels, means and deviations that do not match in number.
    #[error("model.toml: [image] has {channels} channels, but {means} means and {stds} deviations")]
    Channels {
        /// Channels.
        channels: usize,
        /// Means.
        means: usize,
        /// Deviations.
        stds: usize,
    },
}

impl Manifest {
    /// Reads a manifest.
    ///
    /// # Errors
    /// [`ManifestError`] when the text is too large, not TOML, has an unknown key, or a value out of range.
    pub fn parse(text: &str) -> Result<Self, ManifestError> {
        if text.len() > MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge { bytes: text.len() });
        }
        let manifest: Self = toml::from_str(text).map_err(|error| ManifestError::Toml(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Checks the ranges, for a manifest that came in a message.
    ///
    /// # Errors
    /// [`ManifestError`] when a value is out of range.
    pub fn check(&self) -> Result<(), ManifestError> {
        let max = u64::from(REQUEST_ROWS_MAX);
        let in_range = |key, value: u32| {
            let value = u64::from(value);
            if (1..=max).contains(&value) {
                Ok(())
            } else {
                Err(ManifestError::Range { key, value, min: 1, max })
            }
        };
        in_range("batch_rows_max", self.batch_rows_max)?;
        in_range("limits.rows_max", self.limits.rows_max)?;
        self.warm_up_rows.iter().try_for_each(|rows| in_range("warm_up_rows", *rows))?;
        for (key, value) in
            [("tolerance.absolute", self.tolerance.absolute), ("tolerance.relative", self.tolerance.relative)]
        {
            // A comparison with NaN is never true: everything would be within it, or nothing.
            number(key, value, value.is_finite() && value >= 0.0, "0 or more")?;
        }
        if let Some((name, axis)) =
            self.batch_axes.iter().find(|(_, axis)| usize::from(**axis) >= TENSOR_RANK_MAX)
        {
            return Err(ManifestError::Axis { name: name.clone(), axis: *axis });
        }
        if let Some(image) = &self.image {
            let (channels, means, stds) = (image.channels.count(), image.mean.len(), image.std.len());
            if means != channels || stds != channels {
                return Err(ManifestError::Channels { channels, means, stds });
            }
            in_range("image.width", image.width)?;
            in_range("image.height", image.height)?;
            image.check_numbers()?;
        }
        Ok(())
    }
}

impl ImageInput {
    fn check_numbers(&self) -> Result<(), ManifestError> {
        let finite = |key, value: f32| number(key, value.into(), value.is_finite(), "a finite number");
        finite("image.scale", self.scale)?;
        self.mean.iter().try_for_each(|mean| finite("image.mean", *mean))?;
        self.std.iter().try_for_each(|std| {
            let divides = std.is_finite() && *std != 0.0;
            number("image.std", (*std).into(), divides, "a finite number other than 0")
        })
    }
}

fn number(key: &'static str, value: f64, fits: bool, expected: &'static str) -> Result<(), ManifestError> {
    if fits { Ok(()) } else { Err(ManifestError::Number { key, value, expected }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_empty_manifest_is_the_default() {
        assert_eq!(Manifest::parse("").unwrap(), Manifest::default());
    }

    #[test]
    fn a_manifest_travels() {
        let text = "replicas = \"all\"\nlabels = [\"cat\"]\n[batch_axes]\nx = 0\n[image]\ninput = \"x\"\nwidth = 8\n\
                    height = 8\nchannels = \"bgr\"\nscale = 1.0\nmean = [1.0, 2.0, 3.0]\nstd = [1.0, 1.0, 1.0]\n";
        let manifest = Manifest::parse(text).unwrap();
        assert_eq!(manifest.replicas, Replicas::All);
        let bytes = postcard::to_stdvec(&manifest).unwrap();
        assert_eq!(postcard::from_bytes::<Manifest>(&bytes).unwrap(), manifest);
        assert_eq!(Manifest::parse("replicas = 3").unwrap().replicas, Replicas::Count(3));
    }

    #[test]
    fn bad_manifests_are_refused() {
        for text in
            ["replica = 2", "replicas = 0", "replicas = \"some\"", "batch_rows_max = 0", "engine = \"x\""]
        {
            Manifest::parse(text).unwrap_err();
        }
    }

    #[test]
    fn numbers_that_nothing_can_be_computed_with_are_refused() {
        let image = |numbers: &str| {
            format!("[image]\ninput = \"x\"\nwidth = 8\nheight = 8\nchannels = \"gray\"\n{numbers}")
        };
        Manifest::parse(&image("scale = 1.0\nmean = [0.0]\nstd = [-1.0]\n")).unwrap();
        Manifest::parse("[tolerance]\nabsolute = 0.0\nrelative = 0.0\n[batch_axes]\nx = 7\n").unwrap();
        let rows = [
            (image("scale = 1.0\nmean = [0.0]\nstd = [0.0]\n"), "image.std is 0,"),
            (image("scale = 1.0\nmean = [0.0]\nstd = [nan]\n"), "image.std is NaN,"),
            (image("scale = 1.0\nmean = [inf]\nstd = [1.0]\n"), "image.mean is inf,"),
            (image("scale = nan\nmean = [0.0]\nstd = [1.0]\n"), "image.scale is NaN,"),
            ("[tolerance]\nabsolute = nan\nrelative = 0.0\n".to_owned(), "tolerance.absolute is NaN,"),
            ("[tolerance]\nabsolute = 0.0\nrelative = -1e-3\n".to_owned(), "tolerance.relative is -0.001,"),
            ("[tolerance]\nabsolute = inf\nrelative = 0.0\n".to_owned(), "tolerance.absolute is inf,"),
            ("[batch_axes]\nx = 8\n".to_owned(), "batch_axes.x is 8,"),
        ];
        for (text, expected) in rows {
            let error = Manifest::parse(&text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
