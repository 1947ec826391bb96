//! Which nodes own a version: a pure function of committed state, so that everyone agrees without asking.
//!
//! Soft state never changes owners; it only says which of them are used now ([`candidates`]).

use std::collections::BTreeSet;

use crate::ids::{ModelName, NodeId, Version};
use crate::manifest::{EngineChoice, Manifest, Replicas};
use crate::ring::{Ring, version_place};
use crate::view::{Hold, HostedVersion, Node, NodeState, SoftState, Stage, View};

/// The eligible nodes for a version in order of preference: the walk of the ring from the version's place, with the first
/// node of each zone moved ahead until the replicas are found.
pub fn preference(view: &View, ring: &Ring, model: &ModelName, version: Version) -> Vec<NodeId> {
    let Some(hosted) = hosted(view, model, version) else { return Vec::new() };
    let eligible = |id: &NodeId| {
        let node = view.nodes.get(id).filter(|node| node.state == NodeState::Active);
        node.is_some_and(|node| could_host(*id, node, hosted) && !is_held_back(node, hosted))
    };
    let walk: Vec<NodeId> = ring.walk(version_place(model, version)).filter(eligible).collect();
    let wanted = replicas_wanted(hosted.manifest.replicas, walk.len());
    spread_over_zones(view, walk, wanted)
}

/// The owners of a version: the first `replicas` of [`preference`].
pub fn owners(view: &View, ring: &Ring, model: &ModelName, version: Version) -> Vec<NodeId> {
    let mut nodes = preference(view, ring, model, version);
    let replicas = hosted(view, model, version).map(|hosted| hosted.manifest.replicas);
    nodes.truncate(replicas.map_or(0, |replicas| replicas_wanted(replicas, nodes.len())));
    nodes
}

/// The nodes that may be sent requests for a version now: the first `replicas` that serve it, owners ahead of ex-owners
/// that have not drained yet.
///
/// A node that is not [`NodeState::Active`], or is held back by an operator, owns nothing (further), but while it still reports
/// the version ready it can answer: make before break.
pub fn candidates(
    view: &View,
    ring: &Ring,
    soft: &SoftState,
    model: &ModelName,
    version: Version,
) -> Vec<NodeId> {
    first_replicas(view, ring, model, version, |node| soft.serves(node, model, version))
}

/// The nodes that may be asked for a version that no node is known to serve: the first `replicas` of which nothing says
/// that they cannot.
///
/// Soft state ages when no leader lives, and one that was never received says nothing at all. Unknown is not "not ready",
/// so the owners are asked; one that does not serve the version says so at once. Where no node is left that may own it,
/// those that are out are asked: it may be the coordinators that are cut off.
pub fn hopefuls(
    view: &View,
    ring: &Ring,
    soft: &SoftState,
    model: &ModelName,
    version: Version,
) -> Vec<NodeId> {
    let is_hopeful = |node: NodeId| {
        !matches!(soft.stage(node, model, version), Some(Stage::Failed { .. } | Stage::Unloaded))
    };
    let hoped = first_replicas(view, ring, model, version, is_hopeful);
    if !hoped.is_empty() {
        return hoped;
    }
    let Some(hosted) = hosted(view, model, version) else { return hoped };
    let out = |id: &NodeId| {
        let node = view.nodes.get(id).filter(|node| node.state == NodeState::Out);
        node.is_some_and(|node| could_host(*id, node, hosted)) && is_hopeful(*id)
    };
    let out: Vec<NodeId> = ring.walk(version_place(model, version)).filter(out).collect();
    let wanted = replicas_wanted(hosted.manifest.replicas, out.len());
    out.into_iter().take(wanted).collect()
}

fn first_replicas(
    view: &View,
    ring: &Ring,
    model: &ModelName,
    version: Version,
    is_fit: impl Fn(NodeId) -> bool,
) -> Vec<NodeId> {
    let preferred = preference(view, ring, model, version);
    let leaves = |node: &Node| match node.state {
        NodeState::Active => node.hold.is_some(),
        NodeState::Draining => true,
        // A machine that was drained and taken away.
        NodeState::Out => false,
    };
    let leaving = view.nodes.iter().filter(|(id, node)| leaves(node) && !preferred.contains(id));
    let leaving: Vec<NodeId> = leaving.map(|(id, _)| *id).collect();
    let replicas = hosted(view, model, version).map(|hosted| hosted.manifest.replicas);
    let wanted = replicas.map_or(0, |replicas| replicas_wanted(replicas, preferred.len().max(1)));
    let known: Vec<NodeId> = preferred.into_iter().chain(leaving).collect();
    known.into_iter().filter(|node| is_fit(*node)).take(wanted).collect()
}

/// How many of `eligible` nodes a version asks for.
pub fn replicas_wanted(replicas: Replicas, eligible: usize) -> usize {
    match replicas {
        Replicas::All => eligible,
        Replicas::Count(count) => usize::from(count).min(eligible),
    }
}

fn hosted<'a>(view: &'a View, model: &ModelName, version: Version) -> Option<&'a HostedVersion> {
    view.models.get(model)?.versions.get(&version)
}

/// Whether an operator keeps a version from a node.
fn is_held_back(node: &Node, hosted: &HostedVersion) -> bool {
    match node.hold {
        None => false,
        Some(Hold::Cordoned { since }) => hosted.since >= since,
        Some(Hold::Drained) => true,
    }
}

/// Whether a node has what a version needs, whatever state it is in.
fn could_host(id: NodeId, node: &Node, hosted: &HostedVersion) -> bool {
    let manifest: &Manifest = &hosted.manifest;
    let has_engine = match manifest.engine {
        EngineChoice::Auto => !node.profile.engines.is_empty(),
        engine @ (EngineChoice::OnnxRuntime | EngineChoice::Native) => node.profile.engines.contains(&engine),
    };
    let rules = &manifest.placement;
    let bears = |(key, value): (&String, &String)| node.profile.labels.get(key) == Some(value);
    !hosted.excluded.contains(&id)
        && has_engine
        && node.profile.memory_mib >= rules.memory_mib_min
        && rules.node_labels.iter().all(bears)
}

/// Moves the first node of each zone ahead, until `wanted` nodes stand there; the rest follow in the order of the walk.
fn spread_over_zones(view: &View, walk: Vec<NodeId>, wanted: usize) -> Vec<NodeId> {
    let mut zones: BTreeSet<&str> = BTreeSet::new();
    let (mut ahead, mut behind) = (Vec::with_capacity(walk.len()), Vec::new());
    for id in walk {
        let zone = view.nodes.get(&id).map_or("", |node| node.profile.zone.as_str());
        // A node without a zone stands anywhere: it never waits for another zone to be used.
        let unused = zone.is_empty() || zones.insert(zone);
        if ahead.len() < wanted && unused { ahead.push(id) } else { behind.push(id) }
    }
    ahead.append(&mut behind);
    ahead
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Incarnation;
    use crate::view::tests::view;
    use crate::view::{Liveness, NodeReport, VersionReport};

    fn digits() -> ModelName {
        ModelName::new("digits").unwrap()
    }

    fn soft(ready: &[NodeId]) -> SoftState {
        let report = |id: &NodeId| {
            let versions = vec![VersionReport {
                model: digits(),
                version: Version(1),
                stage: Stage::Ready,
                engine: Some(EngineChoice::OnnxRuntime),
            }];
            let report =
                NodeReport { incarnation: Incarnation(1), sequence: 1, liveness: Liveness::Live, versions };
            (*id, report)
        };
        SoftState { settled: true, nodes: ready.iter().map(report).collect(), ..SoftState::default() }
    }

    #[test]
    fn two_owners_in_different_zones() {
        let mut view = view(1, 8, &["digits"]);
        for (id, node) in &mut view.nodes {
            node.profile.zone = format!("zone-{}", id.0 % 2);
        }
        let owners = owners(&view, &view.ring(), &digits(), Version(1));
        assert_eq!(owners.len(), 2);
        assert_ne!(view.nodes[&owners[0]].profile.zone, view.nodes[&owners[1]].profile.zone);
    }

    #[test]
    fn nodes_that_cannot_host_are_passed_over() {
        let mut view = view(1, 5, &["digits"]);
        let all = preference(&view, &view.ring(), &digits(), Version(1));
        assert_eq!(all.len(), 5);
        view.nodes.get_mut(&all[0]).unwrap().state = NodeState::Out;
        view.nodes.get_mut(&all[1]).unwrap().profile.engines.clear();
        let model = std::sync::Arc::make_mut(view.models.get_mut(&digits()).unwrap());
        model.versions.get_mut(&Version(1)).unwrap().excluded.insert(all[2]);
        assert_eq!(owners(&view, &view.ring(), &digits(), Version(1)), all[3..]);
    }

    #[test]
    fn candidates_are_the_ready_ones_and_a_draining_node_still_counts() {
        let mut view = view(1, 4, &["digits"]);
        let all = preference(&view, &view.ring(), &digits(), Version(1));
        let ring = view.ring();
        let candidates = |view: &View, ring: &Ring, ready: &[NodeId]| {
            candidates(view, ring, &soft(ready), &digits(), Version(1))
        };
        assert_eq!(candidates(&view, &ring, &all), all[..2]);
        assert_eq!(candidates(&view, &ring, &all[2..]), all[2..]);
        view.nodes.get_mut(&all[0]).unwrap().state = NodeState::Draining;
        let ring = view.ring();
        assert_eq!(candidates(&view, &ring, &all[..1]), all[..1]);
        assert_eq!(candidates(&view, &ring, &[]), []);
    }

    #[test]
    fn a_node_that_is_held_back_owns_nothing_further_and_serves_until_others_do() {
        let mut view = view(1, 4, &["digits"]);
        let (ring, all) = (view.ring(), preference(&view, &view.ring(), &digits(), Version(1)));
        let held = |view: &mut View, hold| view.nodes.get_mut(&all[0]).unwrap().hold = hold;
        let owners = |view: &View| owners(view, &view.ring(), &digits(), Version(1));
        // The version came to be hosted at index 1.
        held(&mut view, Some(Hold::Cordoned { since: 2 }));
        assert_eq!(owners(&view), all[..2], "what it hosts it keeps");
        let both = candidates(&view, &ring, &soft(&all[..2]), &digits(), Version(1));
        assert_eq!(both, all[..2], "once each");
        for hold in [Hold::Cordoned { since: 1 }, Hold::Drained] {
            held(&mut view, Some(hold));
            assert_eq!(owners(&view), all[1..3]);
            let serving = |ready: &[NodeId]| candidates(&view, &ring, &soft(ready), &digits(), Version(1));
            assert_eq!(serving(&all[..1]), all[..1], "nobody else is ready");
            assert_eq!(serving(&all[..3]), all[1..3]);
        }
        view.nodes.values_mut().for_each(|node| node.hold = Some(Hold::Drained));
        assert_eq!(
            candidates(&view, &ring, &soft(&all), &digits(), Version(1)).len(),
            1,
            "drained, not dead"
        );
        held(&mut view, None);
        assert_eq!(owners(&view), all[..1]);
    }

    #[test]
    fn owners_are_hoped_for_unless_they_said_no() {
        let view = view(1, 4, &["digits"]);
        let (ring, all) = (view.ring(), preference(&view, &view.ring(), &digits(), Version(1)));
        let hoped = |soft: &SoftState| hopefuls(&view, &ring, soft, &digits(), Version(1));
        assert_eq!(hoped(&SoftState::default()), all[..2]);
        let mut refused = soft(&all[..2]);
        refused.nodes.get_mut(&all[0]).unwrap().versions[0].stage =
            Stage::Failed { reason: "torn".to_owned() };
        refused.nodes.get_mut(&all[1]).unwrap().versions[0].stage = Stage::Loading;
        assert_eq!(hoped(&refused), all[1..3]);
    }

    #[test]
    fn nodes_that_are_out_are_the_last_hope() {
        let mut view = view(1, 4, &["digits"]);
        let before = preference(&view, &view.ring(), &digits(), Version(1));
        let hoped = |view: &View, soft: &SoftState| hopefuls(view, &view.ring(), soft, &digits(), Version(1));
        for id in &before[..3] {
            view.nodes.get_mut(id).unwrap().state = NodeState::Out;
        }
        assert_eq!(hoped(&view, &SoftState::default()), before[3..], "somebody may own it still");
        view.nodes.get_mut(&before[3]).unwrap().state = NodeState::Out;
        assert_eq!(preference(&view, &view.ring(), &digits(), Version(1)), []);
        assert_eq!(hoped(&view, &SoftState::default()), before[..2], "its owners while they were in");
        let mut refused = soft(&before[..1]);
        refused.nodes.get_mut(&before[0]).unwrap().versions[0].stage = Stage::Unloaded;
        assert_eq!(hoped(&view, &refused), before[1..3]);
    }

    #[test]
    fn a_node_that_is_passed_over_leaves_the_order_of_the_others() {
        let mut view = view(1, 12, &["digits"]);
        let all = preference(&view, &view.ring(), &digits(), Version(1));
        view.nodes.get_mut(&all[4]).unwrap().state = NodeState::Out;
        let fewer = preference(&view, &view.ring(), &digits(), Version(1));
        view.nodes.remove(&all[4]);
        assert_eq!(preference(&view, &view.ring(), &digits(), Version(1)), fewer);
    }
}
