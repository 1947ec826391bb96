//! The profile: which cluster, and as whom.
//!
//! A TOML file. Paths in it are relative to its folder; unknown keys are refused, so that a typing error is
//! not silent.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// The profile in the present folder, when none is named.
const LOCAL: &str = "roost.toml";
/// The user's own, below the folder for configs.
const USER: &str = "roost/roost.toml";

/// Which cluster, and as whom.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// `host:port` of some nodes of the cluster. One that lives is enough.
    pub nodes: Vec<String>,
    /// The CA that the nodes are judged by, as PEM.
    pub ca: PathBuf,
    /// The user's certificate, as PEM.
    pub certificate: PathBuf,
    /// Its key, as PEM.
    pub key: PathBuf,
}

/// Why there is no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// None was named, and none lies where they are searched.
    #[error("no profile says which cluster and as whom; looked for {}", looked.join(" and "))]
    None {
        /// Where.
        looked: Vec<String>,
    },
    /// The file cannot be read.
    #[error("cannot read the profile {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's error.
        source: std::io::Error,
    },
    /// Not TOML, an unknown key, or a value of another type.
    #[error("the profile {}: {reason}", path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// `nodes` is empty.
    #[error("the profile {} names no nodes", path.display())]
    NoNodes {
        /// The file.
        path: PathBuf,
    },
    /// An address without a port.
    #[error("the profile {}: {node:?} is no host:port", path.display())]
    Node {
        /// The file.
        path: PathBuf,
        /// What stands there.
        node: String,
    },
}

impl ProfileError {
    /// What to do about it.
    pub fn hint(&self) -> &'static str {
        match self {
            Self::None { .. } => {
                "name one with --profile FILE or ROOST_PROFILE; `roost help` shows what is in it"
            }
            Self::Read { .. } => "--profile or ROOST_PROFILE names it; is the path right?",
            Self::Toml { .. } => {
                "a profile has the keys nodes, ca, certificate and key; `roost help` shows one"
            }
            Self::NoNodes { .. } => "give the addresses of some nodes, as in nodes = [\"10.0.0.1:7400\"]",
            Self::Node { .. } => "an address has a port, as in \"10.0.0.1:7400\" or \"[fd00::1]:7400\"",
        }
    }
}

impl Profile {
    /// Reads the profile that was named, or else the first that lies where they are searched:
    /// `./roost.toml`, then
    /// `roost/roost.toml` in `user_folder`.
    ///
    /// # Errors
    /// [`ProfileError`].
    pub fn find(named: Option<&Path>, user_folder: Option<&Path>) -> Result<Self, ProfileError> {
        if let Some(path) = named {
            return Self::read(path);
        }
        let places: Vec<PathBuf> =
            [Some(Path::new(".").join(LOCAL)), user_folder.map(|folder| folder.join(USER))]
                .into_iter()
                .flatten()
                .collect();
        match places.iter().find(|path| path.is_file()) {
            Some(path) => Self::read(path),
            None => Err(ProfileError::None {
                looked: places.iter().map(|path| path.display().to_string()).collect(),
            }),
        }
    }

    /// Reads a profile.
    ///
    /// # Errors
    /// [`ProfileError`] when the file cannot be read or is no profile.
    pub fn read(path: &Path) -> Result<Self, ProfileError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| ProfileError::Read { path: path.to_owned(), source })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ProfileError> {
        let toml = |error: toml::de::Error| ProfileError::Toml {
            path: path.to_owned(),
            reason: error.to_string().trim_end().to_owned(),
        };
        let profile: Self = toml::from_str(text).map_err(toml)?;
        if profile.nodes.is_empty() {
            return Err(ProfileError::NoNodes { path: path.to_owned() });
        }
        if let Some(node) = profile.nodes.iter().find(|node| !is_address(node)) {
            return Err(ProfileError::Node { path: path.to_owned(), node: node.clone() });
        }
        let folder = path.parent().unwrap_or(Path::new(""));
        let beside = |path: &Path| folder.join(path);
        let (ca, certificate, key) =
            (beside(&profile.ca), beside(&profile.certificate), beside(&profile.key));
        Ok(Self { ca, certificate, key, ..profile })
    }
}

/// The folder for the user's configs: `$XDG_CONFIG_HOME`, or `~/.config`.
pub fn user_folder() -> Option<PathBuf> {
    let of = |variable| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    of("XDG_CONFIG_HOME").or_else(|| Some(of("HOME")?.join(".config")))
}

/// Whether a text is `host:port`. Whether the host exists is asked when it is dialled.
fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        // A bare IPv6 address has colons of its own; which of them is ahead of the port nobody could tell.
        let one_host =
            !host.is_empty() && (!host.contains(':') || host.starts_with('[') && host.ends_with(']'));
        one_host && port.parse::<u16>().is_ok_and(|port| port > 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
nodes = ["10.0.0.1:7400", "[fd00::1]:7400"]
ca = "certs/ca.pem"
certificate = "anna.pem"
key = "/keys/anna.key"
"#;

    #[test]
    fn paths_are_relative_to_the_profile() {
        let profile = Profile::parse(GOOD, Path::new("/home/anna/roost.toml")).unwrap();
        assert_eq!(profile.ca, Path::new("/home/anna/certs/ca.pem"));
        assert_eq!(profile.key, Path::new("/keys/anna.key"));
        assert_eq!(Profile::parse(GOOD, Path::new("roost.toml")).unwrap().certificate, Path::new("anna.pem"));
    }

    #[test]
    fn bad_profiles_say_what_is_wrong() {
        let check = |from: &str, to: &str, expected: expect_test::Expect| {
            let error = Profile::parse(&GOOD.replace(from, to), Path::new("roost.toml")).unwrap_err();
            expected.assert_eq(&format!("{error}\n{}\n", error.hint()));
        };
        check(
            "key =",
            "keys =",
            expect_test::expect![[r#"
                the profile roost.toml: TOML parse error at line 5, column 1
                  |
                5 | keys = "/keys/anna.key"
                  | ^^^^
                unknown field `keys`, expected one of `nodes`, `ca`, `certificate`, `key`
                a profile has the keys nodes, ca, certificate and key; `roost help` shows one
            "#]],
        );
        check(
            "\"10.0.0.1:7400\", \"[fd00::1]:7400\"",
            "",
            expect_test::expect![[r#"
                the profile roost.toml names no nodes
                give the addresses of some nodes, as in nodes = ["10.0.0.1:7400"]
            "#]],
        );
        check(
            "[fd00::1]:7400",
            "fd00::1:7400",
            expect_test::expect![[r#"
                the profile roost.toml: "fd00::1:7400" is no host:port
                an address has a port, as in "10.0.0.1:7400" or "[fd00::1]:7400"
            "#]],
        );
    }

    #[test]
    fn addresses_have_a_host_and_a_port() {
        for good in ["a:1", "10.0.0.1:7400", "[::1]:7400"] {
            assert!(is_address(good), "{good}");
        }
        for bad in ["", "a", ":1", "a:", "a:0", "a:x", "a:70000", "::1:7400"] {
            assert!(!is_address(bad), "{bad}");
        }
    }

    #[test]
    fn the_named_profile_is_read_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let user = folder.path().join("roost");
        std::fs::create_dir(&user).unwrap();
        std::fs::write(user.join("roost.toml"), GOOD).unwrap();
        assert_eq!(Profile::find(None, Some(folder.path())).unwrap().ca, user.join("certs/ca.pem"));
        let missing = folder.path().join("missing.toml");
        let error = Profile::find(Some(&missing), Some(folder.path())).unwrap_err();
        assert!(matches!(error, ProfileError::Read { path, .. } if path == missing));
    }
}
