//! The weighted consistent-hash ring over the cluster's nodes.
//!
//! The points come from `hashring`, with as many virtual nodes per node as its speed asks for. They are taken out once,
//! in order, and walked here: `hashring::get_with_replicas` clones the whole ring at each call and can name a node twice.
//! Points hash the node's *name*, never its address or id, so that a replaced machine of the same name takes the same
//! place. The hash of fixed bytes is XXH3; a golden table pins the result.

use std::hash::{BuildHasher, Hash, Hasher};

use hashring::{DefaultHashBuilder, HashRing};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use crate::ids::{ModelName, NodeId, NodeName, Version};

/// Virtual nodes of a node of speed 1. 64 keep the spread of shares near 12 % (1 / √64) at a few KiB per node.
const POINTS_AT_SPEED_ONE: u32 = 64;

/// A node's speed relative to others, as a power of √2, so that noise in its measurement rarely changes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
pub struct Speed {
    /// The speed is 2 to the power of half of this.
    half_exponent: i8,
}

impl Speed {
    /// The least speed: an eighth of the usual.
    pub const MIN: Self = Self { half_exponent: -6 };
    /// The greatest: sixteen times the usual.
    pub const MAX: Self = Self { half_exponent: 8 };

    /// The nearest power of √2 to a measured ratio, within [`Speed::MIN`] and [`Speed::MAX`].
    pub fn from_ratio(ratio: f64) -> Self {
        let half_exponent = (2.0 * ratio.max(f64::MIN_POSITIVE).log2()).round();
        let (min, max) = (f64::from(Self::MIN.half_exponent), f64::from(Self::MAX.half_exponent));
        Self { half_exponent: half_exponent.clamp(min, max) as i8 }
    }

    /// The ratio to a node of speed 1.
    pub fn ratio(self) -> f64 {
        f64::from(self.points()) / f64::from(POINTS_AT_SPEED_ONE)
    }

    /// Virtual nodes. Integers only, so that all machines agree.
    pub fn points(self) -> u32 {
        let half_exponent = self.half_exponent.clamp(Self::MIN.half_exponent, Self::MAX.half_exponent);
        // 64 · √2 = 90.5, rounded: one more half step on top of the whole power.
        let base = if half_exponent.rem_euclid(2) == 1 { 91 } else { POINTS_AT_SPEED_ONE };
        let whole = half_exponent.div_euclid(2);
        if whole >= 0 { base << whole } else { base >> -whole }
    }
}

/// One point of a node on the ring.
#[derive(Clone)]
struct Point {
    name_hash: u64,
    index: u32,
    node: NodeId,
}

impl Hash for Point {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write(&self.name_hash.to_le_bytes());
        state.write(&self.index.to_le_bytes());
    }
}

/// The ring: points in order of their hash, each belonging to a node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring {
    points: Vec<(u64, NodeId)>,
    nodes: usize,
}

impl Ring {
    /// The ring of the given nodes. The order in which they come does not matter.
    pub fn new<'a>(nodes: impl IntoIterator<Item = (NodeId, &'a NodeName, Speed)>) -> Self {
        let mut ring = HashRing::new();
        let mut points = Vec::new();
        let mut count = 0;
        for (node, name, speed) in nodes {
            let name_hash = xxh3_64(name.as_str().as_bytes());
            points.extend((0..speed.points()).map(|index| Point { name_hash, index, node }));
            count += 1;
        }
        ring.batch_add(points);
        let mut points: Vec<_> =
            ring.into_iter().map(|point| (DefaultHashBuilder.hash_one(&point), point.node)).collect();
        // Two points at one place would otherwise keep the order in which they came.
        points.sort_unstable();
        Self { points, nodes: count }
    }

    /// The distinct nodes in the order in which the ring meets them from `start`.
    pub fn walk(&self, start: u64) -> impl Iterator<Item = NodeId> + '_ {
        let first = self.points.partition_point(|(place, _)| *place < start);
        let (before, after) = self.points.split_at(first);
        let mut seen: Vec<NodeId> = Vec::new();
        let mut points = after.iter().chain(before);
        std::iter::from_fn(move || {
            if seen.len() == self.nodes {
                return None;
            }
            let (_, node) = points.find(|(_, node)| !seen.contains(node))?;
            seen.push(*node);
            Some(*node)
        })
    }
}

/// Where a version's walk starts: a hash of (model, version).
pub fn version_place(model: &ModelName, version: Version) -> u64 {
    let mut bytes = model.as_str().as_bytes().to_vec();
    bytes.push(b'@');
    bytes.extend_from_slice(&version.0.to_le_bytes());
    xxh3_64(&bytes)
}

/// The most requests that a node should have in flight before a key moves on to the next: 1.25 times its fair share
/// (consistent hashing with bounded loads, Mirrokni et al., 2018; design §5.4).
///
/// `total` is what is in flight over all candidates, `share` this node's part of their speeds.
pub fn load_bound(total: u64, share: f64) -> u64 {
    (1.25 * (total + 1) as f64 * share).ceil() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: u64) -> Vec<(NodeId, NodeName)> {
        (0..count).map(|i| (NodeId(i), NodeName::new(&format!("node-{i}")).unwrap())).collect()
    }

    fn ring_of(names: &[(NodeId, NodeName)]) -> Ring {
        Ring::new(names.iter().map(|(id, name)| (*id, name, Speed::default())))
    }

    #[test]
    fn speeds_are_powers_of_the_square_root_of_two() {
        let points = |ratio| Speed::from_ratio(ratio).points();
        let ratios = [0.0, 0.125, 0.5, 0.7, 1.0, 1.1, 1.4, 2.0, 2.9, 16.0, 1e9];
        assert_eq!(ratios.map(points), [8, 8, 32, 45, 64, 64, 91, 128, 182, 1024, 1024]);
    }

    #[test]
    fn a_walk_meets_each_node_once() {
        let names = names(7);
        let ring = ring_of(&names);
        for start in [0, 1, u64::MAX / 3, u64::MAX] {
            let mut walked: Vec<_> = ring.walk(start).collect();
            assert_eq!(walked.len(), 7);
            walked.sort_unstable();
            walked.dedup();
            assert_eq!(walked.len(), 7);
        }
        assert_eq!(Ring::default().walk(1).count(), 0);
    }

    #[test]
    fn a_node_that_leaves_moves_only_its_own_keys() {
        let names = names(6);
        let (all, fewer) = (ring_of(&names), ring_of(&names[..5]));
        for key in 0..2000u64 {
            let place = xxh3_64(&key.to_le_bytes());
            let owner = all.walk(place).next().unwrap();
            if owner != NodeId(5) {
                assert_eq!(fewer.walk(place).next(), Some(owner));
            }
        }
    }

    #[test]
    fn the_ring_is_pinned() {
        let mut names = names(4);
        names.reverse();
        let ring = ring_of(&names);
        let table: Vec<String> = (0..8u64)
            .map(|i| {
                let start = i << 61;
                format!("{start:016x} {:?}", ring.walk(start).map(|n| n.0).collect::<Vec<_>>())
            })
            .collect();
        expect_test::expect![[r#"
            0000000000000000 [3, 1, 2, 0]
            2000000000000000 [0, 1, 2, 3]
            4000000000000000 [2, 0, 3, 1]
            6000000000000000 [2, 1, 0, 3]
            8000000000000000 [0, 3, 2, 1]
            a000000000000000 [1, 0, 3, 2]
            c000000000000000 [1, 2, 3, 0]
            e000000000000000 [3, 1, 0, 2]"#]]
        .assert_eq(&table.join("\n"));
    }
}
