//! What a request is about, by the view: the versions that may answer it, and what their manifests say of
//! inputs.

use roost_protocol::manifest::{ImageInput, Manifest};
use roost_protocol::view::View;
use roost_protocol::{InferError, ModelVersion, Target, Version};

/// The versions that may answer a request: one, or two while a rollout splits the traffic. Stable comes
/// first.
#[derive(Debug)]
pub struct Subject<'a> {
    versions: Vec<(ModelVersion, &'a Manifest)>,
}

/// Why a picture cannot become an input.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum PictureError {
    /// The manifest has no `[image]`.
    #[error("{version} has no [image] in its model.toml, so a picture cannot become an input; give --input")]
    NoPictures {
        /// The version.
        version: ModelVersion,
    },
    /// The two versions of a rollout take pictures differently.
    #[error("{first} and {second} take pictures differently; ask for one of them by its version")]
    Differ {
        /// One.
        first: ModelVersion,
        /// The other.
        second: ModelVersion,
    },
}

impl<'a> Subject<'a> {
    /// The versions that may answer a request for `target`.
    ///
    /// # Errors
    /// [`InferError::UnknownModel`], [`InferError::UnknownVersion`] or [`InferError::UnknownLabel`] when the
    /// view has no such thing.
    pub fn of(view: &'a View, target: &Target) -> Result<Self, InferError> {
        let name = target.model();
        let model =
            view.models.get(name).ok_or_else(|| InferError::UnknownModel { model: name.to_string() })?;
        let numbers: Vec<Version> = match target {
            Target::Split(_) => {
                let canary = model.traffic.canary.map(|canary| canary.version);
                std::iter::once(model.traffic.stable).chain(canary).collect()
            }
            Target::Pinned(pinned) => vec![pinned.version],
            Target::Labelled(_, label) => {
                let unknown =
                    || InferError::UnknownLabel { model: name.to_string(), label: label.to_string() };
                vec![*model.labels.get(label).ok_or_else(unknown)?]
            }
        };
        let hosted = |version: Version| {
            let hosted = model.versions.get(&version).ok_or_else(|| InferError::UnknownVersion {
                model: name.to_string(),
                version: version.0,
                hosted: model.versions.keys().map(|version| version.0).collect(),
            })?;
            Ok((ModelVersion { model: name.clone(), version }, &*hosted.manifest))
        };
        Ok(Self { versions: numbers.into_iter().map(hosted).collect::<Result<_, InferError>>()? })
    }

    /// The axis of an input's rows, as the first version has it. Without any batched input it is the
    /// outermost.
    pub fn row_axis(&self, input: &str) -> Option<usize> {
        let axes = self.versions.first().map(|(_, manifest)| &manifest.batch_axes)?;
        if axes.is_empty() { Some(0) } else { axes.get(input).map(|axis| usize::from(*axis)) }
    }

    /// The inputs and outputs that have rows, as the first version's manifest lists them.
    pub fn batched(&self) -> impl Iterator<Item = &'a str> {
        let first = self.versions.first().map(|(_, manifest)| *manifest);
        first.into_iter().flat_map(|manifest| manifest.batch_axes.keys()).map(String::as_str)
    }

    /// How a picture becomes an input.
    ///
    /// # Errors
    /// [`PictureError`] when a version does not say, or two say different things.
    pub fn image(&self) -> Result<&'a ImageInput, PictureError> {
        let mut first: Option<(&ModelVersion, &'a ImageInput)> = None;
        for (version, manifest) in &self.versions {
            let no_pictures = || PictureError::NoPictures { version: version.clone() };
            let image = manifest.image.as_ref().ok_or_else(no_pictures)?;
            match first {
                None => first = Some((version, image)),
                Some((other, same)) if same != image => {
                    return Err(PictureError::Differ { first: other.clone(), second: version.clone() });
                }
                Some(_) => {}
            }
        }
        let (_, image) = first.expect("a subject has a version: every target names one");
        Ok(image)
    }

    /// Pictures that fit into one request. A model that is not batched takes one.
    pub fn pictures_max(&self, input: &str) -> usize {
        let of = |manifest: &Manifest| match manifest.batch_axes.contains_key(input) {
            true => manifest.limits.rows_max as usize,
            false => 1,
        };
        self.versions.iter().map(|(_, manifest)| of(manifest)).min().unwrap_or(1).max(1)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::sync::Arc;

    use roost_protocol::manifest::Channels;
    use roost_protocol::traffic::{Canary, Traffic, Weight};
    use roost_protocol::view::{HostedVersion, Model};
    use roost_protocol::{ClusterId, Digest, Epoch, Label, ModelName, Revision};

    use super::*;

    fn image(width: u32) -> ImageInput {
        ImageInput {
            input: "x".to_owned(),
            width,
            height: 8,
            channels: Channels::Gray,
            scale: 1.0,
            mean: vec![0.0],
            std: vec![1.0],
        }
    }

    /// A view of a model `m` with the given manifests as versions 1, 2, ..., the second a canary and
    /// labelled `new`.
    fn view(manifests: Vec<Manifest>) -> View {
        let hosted = |manifest| HostedVersion {
            digest: Digest::of(b""),
            bytes: 0,
            manifest: Arc::new(manifest),
            excluded: BTreeSet::new(),
            since: 1,
        };
        let canary = (manifests.len() > 1).then_some(Canary { version: Version(2), weight: Weight::ZERO });
        let versions = manifests.into_iter().zip(1..).map(|(manifest, i)| (Version(i), hosted(manifest)));
        let model = Model {
            traffic: Traffic { revision: Revision(1), stable: Version(1), canary, previous: None },
            versions: versions.collect(),
            labels: [(Label::new("new").unwrap(), Version(2))].into(),
        };
        View {
            cluster: ClusterId(1),
            epoch: Epoch::default(),
            coordinators: BTreeMap::new(),
            nodes: BTreeMap::new(),
            models: [(ModelName::new("m").unwrap(), Arc::new(model))].into(),
        }
    }

    fn with_image(width: u32) -> Manifest {
        Manifest { image: Some(image(width)), ..Manifest::default() }
    }

    fn image_of(view: &View, target: &str) -> Result<ImageInput, String> {
        Subject::of(view, &target.parse().unwrap())
            .unwrap()
            .image()
            .cloned()
            .map_err(|error| error.to_string())
    }

    #[test]
    fn a_split_of_versions_that_differ_must_be_pinned() {
        let same = view(vec![with_image(8), with_image(8)]);
        assert_eq!(image_of(&same, "m").unwrap(), image(8));
        let different = view(vec![with_image(8), with_image(16)]);
        assert_eq!(
            image_of(&different, "m").unwrap_err(),
            "m@1 and m@2 take pictures differently; ask for one of them by its version"
        );
        assert_eq!(image_of(&different, "m@2").unwrap(), image(16));
        assert_eq!(image_of(&different, "m:new").unwrap(), image(16));
        let without = view(vec![with_image(8), Manifest::default()]);
        assert!(image_of(&without, "m").unwrap_err().starts_with("m@2 has no [image]"));
    }

    #[test]
    fn unknown_targets_are_refused_as_requests_are() {
        let view = view(vec![Manifest::default()]);
        let error = |target: &str| Subject::of(&view, &target.parse().unwrap()).unwrap_err();
        assert_eq!(error("n"), InferError::UnknownModel { model: "n".to_owned() });
        assert!(
            matches!(error("m@7"), InferError::UnknownVersion { version: 7, hosted, .. } if hosted == [1])
        );
        assert!(matches!(error("m:prod"), InferError::UnknownLabel { .. }));
    }

    #[test]
    fn rows_lie_along_the_batch_axis() {
        let batch_axes: BTreeMap<String, u8> = [("x".to_owned(), 1)].into();
        let batched = view(vec![Manifest { batch_axes, ..with_image(8) }]);
        let subject = Subject::of(&batched, &"m".parse().unwrap()).unwrap();
        assert_eq!((subject.row_axis("x"), subject.row_axis("y")), (Some(1), None));
        assert_eq!((subject.pictures_max("x"), subject.pictures_max("y")), (1024, 1));
        assert_eq!(subject.batched().collect::<Vec<_>>(), ["x"]);
        let single = view(vec![with_image(8)]);
        let subject = Subject::of(&single, &"m".parse().unwrap()).unwrap();
        assert_eq!((subject.row_axis("x"), subject.pictures_max("x")), (Some(0), 1));
    }
}
