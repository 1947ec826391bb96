//! Which version answers a request: the split of a model's traffic between its stable version and a canary.
//!
//! A pure function of the traffic's revision and the key's hash, so that every client and every worker picks alike. A
//! key keeps its position for one target, whatever the weight: raising the weight only adds keys to the canary.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::{xxh3_64, xxh3_64_with_seed};

use crate::ids::{ModelName, Revision, Version};

/// A share of the traffic in steps of 0.01 %.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(try_from = "u16", into = "u16")]
pub struct Weight(u16);

/// Why a number or a text is no [`Weight`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a share of traffic is from 0 % to 100 % in steps of 0.01 %; {0} is not")]
pub struct WeightError(String);

impl Weight {
    /// No traffic.
    pub const ZERO: Self = Self(0);
    /// All traffic.
    pub const ALL: Self = Self(10_000);

    /// A share in hundredths of a percent.
    ///
    /// # Errors
    /// [`WeightError`] above 10 000.
    pub fn from_basis_points(points: u16) -> Result<Self, WeightError> {
        if points > Self::ALL.0 {
            return Err(WeightError(format!("{}.{:02} %", points / 100, points % 100)));
        }
        Ok(Self(points))
    }

    /// Hundredths of a percent.
    pub fn basis_points(self) -> u16 {
        self.0
    }

    /// Whether a position lies inside this share of all positions.
    fn covers(self, position: u64) -> bool {
        // Compared in 128 bits, so that 100 % covers the last position too.
        u128::from(position) * 10_000 < u128::from(self.0) << 64
    }
}

impl TryFrom<u16> for Weight {
    type Error = WeightError;
    fn try_from(points: u16) -> Result<Self, WeightError> {
        Self::from_basis_points(points)
    }
}

impl From<Weight> for u16 {
    fn from(weight: Weight) -> Self {
        weight.0
    }
}

impl FromStr for Weight {
    type Err = WeightError;
    /// Reads `20%`, `0.5%` or `20`.
    fn from_str(text: &str) -> Result<Self, WeightError> {
        let bad = || WeightError(format!("{text:?}"));
        let number = text.trim().trim_end_matches('%').trim_end();
        let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
        if fraction.is_empty() || fraction.len() > 2 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let whole: u16 = whole.parse().map_err(|_| bad())?;
        let scale = if fraction.len() == 1 { 10 } else { 1 };
        let hundredths = fraction.parse::<u16>().map_err(|_| bad())? * scale;
        let points = whole.checked_mul(100).and_then(|p| p.checked_add(hundredths)).ok_or_else(bad)?;
        Self::from_basis_points(points)
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / 100, self.0 % 100) {
            (whole, 0) => write!(f, "{whole}%"),
            (whole, rest) if rest % 10 == 0 => write!(f, "{whole}.{}%", rest / 10),
            (whole, rest) => write!(f, "{whole}.{rest:02}%"),
        }
    }
}

/// The hash of a sticky key. Only this travels, never the key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct KeyHash(pub u64);

impl KeyHash {
    /// The hash of a key (XXH3, 64 bits).
    pub fn of(key: &[u8]) -> Self {
        Self(xxh3_64(key))
    }
}

/// A version that takes a share of the traffic beside the stable one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Canary {
    /// The version.
    pub version: Version,
    /// Its share.
    pub weight: Weight,
}

/// Where a model's traffic goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Grows by one with each change.
    pub revision: Revision,
    /// The version that takes what the canary does not.
    pub stable: Version,
    /// The version that a rollout leads to.
    pub canary: Option<Canary>,
    /// The stable version before the last promotion; `undo` goes back to it, so it stays hosted. None after an undo.
    pub previous: Option<Version>,
}

impl Traffic {
    /// The version for a key.
    pub fn pick(&self, model: &ModelName, key: KeyHash) -> Version {
        match self.canary {
            Some(canary) if canary.weight.covers(position(model, canary.version, key)) => canary.version,
            Some(_) | None => self.stable,
        }
    }
}

/// A key's position on the way from stable to `target`: a hash of (salt, key), the salt a hash of (model, target), so that
/// restarting the same target exposes the same users and another target others (design §5.2).
fn position(model: &ModelName, target: Version, key: KeyHash) -> u64 {
    let salt = xxh3_64_with_seed(model.as_str().as_bytes(), u64::from(target.0));
    xxh3_64_with_seed(&key.0.to_le_bytes(), salt)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(weight: u16) -> Traffic {
        let canary = Some(Canary { version: Version(2), weight: Weight(weight) });
        Traffic { revision: Revision(1), stable: Version(1), canary, previous: None }
    }

    fn keys() -> impl Iterator<Item = KeyHash> {
        (0..20_000).map(|i| KeyHash::of(format!("user-{i}").as_bytes()))
    }

    #[test]
    fn weights_read_as_they_print() {
        for text in ["0%", "0.01%", "0.5%", "20%", "33.33%", "100%"] {
            assert_eq!(text.parse::<Weight>().unwrap().to_string(), text);
        }
        for text in ["", "%", "101%", "-1%", "1.234%", "1.%", "x", "70000"] {
            text.parse::<Weight>().unwrap_err();
        }
    }

    #[test]
    fn a_rising_weight_only_adds_keys() {
        let model = ModelName::new("digits").unwrap();
        let on_canary = |weight| {
            let traffic = traffic(weight);
            keys().map(|key| traffic.pick(&model, key) == Version(2)).collect::<Vec<_>>()
        };
        let steps: Vec<_> = [0, 1, 500, 2000, 9999, 10_000].into_iter().map(on_canary).collect();
        assert!(!steps[0].contains(&true) && !steps[5].contains(&false));
        for pair in steps.windows(2) {
            assert!(pair[0].iter().zip(&pair[1]).all(|(before, after)| !before || *after));
        }
    }

    #[test]
    fn the_share_is_that_of_the_weight() {
        let model = ModelName::new("digits").unwrap();
        let hits = keys().filter(|key| traffic(2000).pick(&model, *key) == Version(2)).count() as f64;
        // Four standard deviations of a binomial of 20 000 draws at 0.2.
        assert!((hits - 4000.0).abs() < 4.0 * (20_000.0f64 * 0.2 * 0.8).sqrt(), "{hits}");
    }

    #[test]
    fn positions_are_pinned() {
        let model = ModelName::new("digits").unwrap();
        let position = |target| position(&model, Version(target), KeyHash::of(b"user-42"));
        expect_test::expect![[r#"("48eaa6da5128b83a", "8fc179837fdb450b")"#]]
            .assert_eq(&format!("{:?}", (format!("{:016x}", position(2)), format!("{:016x}", position(3)))));
    }
}
