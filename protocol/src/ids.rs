//! Names and numbers that identify things, each of its own type so that they cannot be mixed up.
//!
//! Names are validated when they are made, also when they are read from a message: a [`ModelName`] in hand is a valid
//! one. Numbers are plain newtypes.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits::NAME_BYTES_MAX;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing, or more than [`NAME_BYTES_MAX`] bytes.
    #[error("a {what} has 1 to {NAME_BYTES_MAX} bytes, this one has {bytes}")]
    Length {
        /// What was being named.
        what: &'static str,
        /// How long the text is.
        bytes: usize,
    },
    /// A character outside the alphabet of names.
    #[error(
        "a {what} is made of a-z, 0-9, '-', '_' and '.', and starts with a letter or a digit; {text:?} does not"
    )]
    Alphabet {
        /// What was being named.
        what: &'static str,
        /// The text.
        text: String,
    },
}

fn check_name(what: &'static str, text: &str) -> Result<(), NameError> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX {
        return Err(NameError::Length { what, bytes: text.len() });
    }
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
    let starts_well = text.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    if starts_well && text.chars().all(allowed) {
        Ok(())
    } else {
        Err(NameError::Alphabet { what, text: text.to_owned() })
    }
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(std::sync::Arc<str>);

        impl $name {
            /// Checks and takes a name.
            ///
            /// # Errors
            /// [`NameError`] when the text is empty, too long, or has a character outside `a-z 0-9 - _ .`.
            pub fn new(text: &str) -> Result<Self, NameError> {
                check_name($what, text)?;
                Ok(Self(text.into()))
            }

            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                Self::new(&text)
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> String {
                name.0.as_ref().to_owned()
            }
        }

        impl FromStr for $name {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of a model, such as `digits`.
    ModelName,
    "model name"
);
name!(
    /// The name of a node in the cluster config and in its certificate. Ring points hash it.
    NodeName,
    "node name"
);
name!(
    /// A label on a version, such as `prod`: `digits:prod` is pinned to whatever version bears it.
    Label,
    "label"
);
name!(
    /// Who asks: the name in a certificate.
    Tenant,
    "tenant name"
);
name!(
    /// The name of a cluster, chosen by its operator and written into its certificates.
    ClusterName,
    "cluster name"
);

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number!(
    /// A node's identity: drawn at its first start and kept in its data folder, so that an emptied folder is another node.
    NodeId(u64)
);
number!(
    /// A model's version: 1, 2, 3, never reused.
    Version(u32)
);
number!(
    /// Counts the changes of a model's traffic; grows by one with each.
    Revision(u64)
);
number!(
    /// Counts a node's process starts, so that an older process's reports can be told from the present one's.
    Incarnation(u64)
);
number!(
    /// A Raft term.
    Term(u64)
);

/// A cluster's identity, drawn when its coordinators first form a group.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ClusterId(pub u128);

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A request's identity, drawn by whoever sends it and kept over its attempts.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct RequestId(pub u128);

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The position of a committed state: only grows, across restores too, because a restore raises the generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Epoch {
    /// Raised by restore from backup and by forced recovery.
    pub generation: u32,
    /// The Raft log index of the last command applied.
    pub index: u64,
}

impl fmt::Display for Epoch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.generation, self.index)
    }
}

/// The SHA-256 that identifies a bundle, or one of its files.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Digest(pub [u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0[..6]))
    }
}

impl FromStr for Digest {
    type Err = hex::FromHexError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// A version of a model, written `digits@2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct ModelVersion {
    /// The model.
    pub model: ModelName,
    /// Its version.
    pub version: Version,
}

impl fmt::Display for ModelVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.model, self.version)
    }
}

/// What a caller asks for: a model, and how its version is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// `digits`: the traffic split chooses.
    Split(ModelName),
    /// `digits@2`: this version and no other.
    Pinned(ModelVersion),
    /// `digits:prod`: the version that bears the label.
    Labelled(ModelName, Label),
}

impl Target {
    /// The model that is asked for.
    pub fn model(&self) -> &ModelName {
        match self {
            Self::Split(model) | Self::Labelled(model, _) => model,
            Self::Pinned(pinned) => &pinned.model,
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Split(model) => fmt::Display::fmt(model, f),
            Self::Pinned(pinned) => fmt::Display::fmt(pinned, f),
            Self::Labelled(model, label) => write!(f, "{model}:{label}"),
        }
    }
}

/// Why a text is not a [`Target`] or a [`ModelVersion`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// A name in it is not valid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// What follows the `@` is not a version.
    #[error("a version is a whole number from 1, as in digits@2; {0:?} is none")]
    Version(String),
    /// A version was needed, and the text has none.
    #[error("expected MODEL@VERSION, as in digits@2; got {0:?}")]
    NoVersion(String),
}

impl FromStr for Target {
    type Err = TargetError;
    fn from_str(text: &str) -> Result<Self, TargetError> {
        if let Some((model, version)) = text.split_once('@') {
            let number = version.parse().ok().filter(|v| *v > 0);
            let version = Version(number.ok_or_else(|| TargetError::Version(version.to_owned()))?);
            Ok(Self::Pinned(ModelVersion { model: model.parse()?, version }))
        } else if let Some((model, label)) = text.split_once(':') {
            Ok(Self::Labelled(model.parse()?, label.parse()?))
        } else {
            Ok(Self::Split(text.parse()?))
        }
    }
}

impl FromStr for ModelVersion {
    type Err = TargetError;
    fn from_str(text: &str) -> Result<Self, TargetError> {
        match text.parse()? {
            Target::Pinned(pinned) => Ok(pinned),
            Target::Split(_) | Target::Labelled(..) => Err(TargetError::NoVersion(text.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_round_trip() {
        for text in ["digits", "digits@2", "digits:prod", "a.b-c_9@4294967295"] {
            assert_eq!(text.parse::<Target>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn bad_targets_say_what_was_expected() {
        let long = "a".repeat(NAME_BYTES_MAX + 1);
        for text in ["", "Digits", "-a", "digits@", "digits@0", "digits@x", "digits@-1", "a:", "a b", &long] {
            text.parse::<Target>().unwrap_err();
        }
        assert_eq!(
            "digits".parse::<ModelVersion>().unwrap_err().to_string(),
            "expected MODEL@VERSION, as in digits@2; got \"digits\""
        );
    }

    #[test]
    fn a_name_is_checked_when_it_is_read_too() {
        let bytes = postcard::to_stdvec("NOT a name").unwrap();
        postcard::from_bytes::<ModelName>(&bytes).unwrap_err();
    }
}
