//! Which versions a node should host, from the view and the soft state.
//!
//! Committed state alone says who owns a version. Make before break: a node that no longer owns one keeps serving until
//! all owners are known to be ready and live, since as long as one is not, the view still routes to the ex-owner
//! ([`placement::candidates`] takes ready nodes in order of preference). What is missing from the soft state counts as not
//! ready here, so that missing soft state never starts a drain. An excluded node does not wait: it failed to load the
//! version, so it has nothing to serve it with.

use std::collections::BTreeMap;

use roost_protocol::placement;
use roost_protocol::ring::Ring;
use roost_protocol::view::{HostedVersion, SoftState, View};
use roost_protocol::{Digest, ModelVersion, NodeId};

/// What to do about one version.
#[derive(Debug, Clone, PartialEq)]
pub enum Order {
    /// Begin to host it.
    Start(HostedVersion),
    /// Host it, or go on serving it.
    Keep,
    /// Stop hosting it, once nothing is routed here any more.
    Release,
    /// Stop at once: its number stands for another bundle now, which happens only when a backup was restored.
    Discard,
}

/// What to do about each version that is hosted, or should be.
pub fn orders(
    view: &View,
    ring: &Ring,
    soft: &SoftState,
    me: NodeId,
    hosting: &BTreeMap<ModelVersion, Digest>,
) -> BTreeMap<ModelVersion, Order> {
    let mut orders = BTreeMap::new();
    for (version, digest) in hosting {
        let order = match hosted(view, version) {
            None => Order::Release,
            Some(hosted) if hosted.digest != *digest => Order::Discard,
            Some(hosted) if hosted.excluded.contains(&me) => Order::Release,
            Some(_) => {
                let owners = placement::owners(view, ring, &version.model, version.version);
                let serves = |node: &NodeId| soft.serves(*node, &version.model, version.version);
                let replaced = !owners.is_empty() && owners.iter().all(serves);
                let replaced = replaced || roost_protocol::KnownBug::DropBeforeReady.is_in();
                if owners.contains(&me) || !replaced { Order::Keep } else { Order::Release }
            }
        };
        orders.insert(version.clone(), order);
    }
    for (model, state) in &view.models {
        for (number, hosted) in &state.versions {
            let version = ModelVersion { model: model.clone(), version: *number };
            if hosting.contains_key(&version) {
                continue;
            }
            if placement::owners(view, ring, model, *number).contains(&me) {
                orders.insert(version, Order::Start(hosted.clone()));
            }
        }
    }
    orders
}

/// Whether another node owns the version, or will once it is ready: what a node that stops has to wait for.
pub fn has_heir(view: &View, ring: &Ring, me: NodeId, version: &ModelVersion) -> bool {
    placement::owners(view, ring, &version.model, version.version).iter().any(|owner| *owner != me)
}

fn hosted<'a>(view: &'a View, version: &ModelVersion) -> Option<&'a HostedVersion> {
    view.models.get(&version.model)?.versions.get(&version.version)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::Arc;

    use roost_protocol::manifest::{EngineChoice, Manifest};
    use roost_protocol::view::{
        Liveness, Model, Node, NodeProfile, NodeReport, NodeState, Stage, VersionReport,
    };
    use roost_protocol::{ClusterId, Epoch, Incarnation, ModelName, NodeName, Revision, Version};

    use super::*;

    fn digits() -> ModelVersion {
        "digits@1".parse().unwrap()
    }

    fn view(nodes: u64) -> View {
        let node = |id: u64| {
            let profile = NodeProfile {
                speed: roost_protocol::ring::Speed::default(),
                zone: String::new(),
                labels: BTreeMap::new(),
                memory_mib: 1024,
                isa: "x86-64".to_owned(),
                engines: [EngineChoice::OnnxRuntime].into(),
            };
            let name = NodeName::new(&format!("node-{id}")).unwrap();
            (
                NodeId(id),
                Node { name, address: "x:1".to_owned(), state: NodeState::Active, hold: None, profile },
            )
        };
        let hosted = HostedVersion {
            digest: Digest::of(b"one"),
            bytes: 3,
            manifest: Arc::new(Manifest::default()),
            excluded: BTreeSet::new(),
            since: 1,
        };
        let (stable, revision) = (Version(1), Revision(1));
        let model = Model {
            traffic: roost_protocol::traffic::Traffic { revision, stable, canary: None, previous: None },
            versions: [(stable, hosted)].into(),
            labels: BTreeMap::new(),
        };
        View {
            cluster: ClusterId(1),
            epoch: Epoch { generation: 1, index: 1 },
            coordinators: BTreeMap::new(),
            nodes: (0..nodes).map(node).collect(),
            models: [(ModelName::new("digits").unwrap(), Arc::new(model))].into(),
        }
    }

    fn hosted_mut(view: &mut View) -> &mut HostedVersion {
        let model =
            Arc::make_mut(view.models.get_mut("digits".parse::<ModelName>().as_ref().unwrap()).unwrap());
        model.versions.get_mut(&Version(1)).unwrap()
    }

    fn soft(ready: &[NodeId], liveness: Liveness) -> SoftState {
        let report = |id: &NodeId| {
            let ModelVersion { model, version } = digits();
            let versions = vec![VersionReport { model, version, stage: Stage::Ready, engine: None }];
            (*id, NodeReport { incarnation: Incarnation(1), sequence: 1, liveness, versions })
        };
        SoftState { settled: true, nodes: ready.iter().map(report).collect(), ..SoftState::default() }
    }

    fn order(view: &View, soft: &SoftState, me: NodeId, hosts: bool) -> Option<Order> {
        let hosting = if hosts { [(digits(), Digest::of(b"one"))].into() } else { BTreeMap::new() };
        orders(view, &view.ring(), soft, me, &hosting).remove(&digits())
    }

    fn walk(view: &View) -> Vec<NodeId> {
        placement::preference(view, &view.ring(), &digits().model, Version(1))
    }

    #[test]
    fn owners_host_and_others_do_not() {
        let view = view(4);
        let (walk, unknown) = (walk(&view), SoftState::default());
        for (place, node) in walk.iter().enumerate() {
            let started = matches!(order(&view, &unknown, *node, false), Some(Order::Start(_)));
            assert_eq!(started, place < 2, "{place}");
        }
        assert_eq!(order(&view, &unknown, walk[0], true), Some(Order::Keep));
    }

    #[test]
    fn an_ex_owner_serves_until_all_owners_do() {
        let view = view(4);
        let walk = walk(&view);
        let ex_owner = |soft: &SoftState| order(&view, soft, walk[2], true);
        assert_eq!(ex_owner(&SoftState::default()), Some(Order::Keep), "missing soft state starts no drain");
        assert_eq!(ex_owner(&soft(&walk[..1], Liveness::Live)), Some(Order::Keep));
        assert_eq!(ex_owner(&soft(&walk[..2], Liveness::Suspect)), Some(Order::Keep));
        assert_eq!(ex_owner(&soft(&walk[..2], Liveness::Live)), Some(Order::Release));
    }

    #[test]
    fn an_ex_owner_that_nobody_can_replace_keeps_serving() {
        let mut view = view(1);
        view.nodes.get_mut(&NodeId(0)).unwrap().state = NodeState::Draining;
        assert_eq!(order(&view, &SoftState::default(), NodeId(0), true), Some(Order::Keep));
    }

    #[test]
    fn what_is_gone_excluded_or_replaced_is_let_go() {
        let mut view = view(2);
        let unknown = SoftState::default();
        hosted_mut(&mut view).excluded.insert(NodeId(0));
        assert_eq!(order(&view, &unknown, NodeId(0), true), Some(Order::Release));
        assert_eq!(order(&view, &unknown, NodeId(0), false), None);
        hosted_mut(&mut view).digest = Digest::of(b"another");
        assert_eq!(order(&view, &unknown, NodeId(1), true), Some(Order::Discard));
        view.models.clear();
        assert_eq!(order(&view, &unknown, NodeId(1), true), Some(Order::Release));
    }

    #[test]
    fn a_version_has_an_heir_while_another_node_is_eligible() {
        let mut view = view(2);
        let heir = |view: &View, me| has_heir(view, &view.ring(), NodeId(me), &digits());
        assert!(heir(&view, 0));
        for id in [0, 1] {
            view.nodes.get_mut(&NodeId(id)).unwrap().state = NodeState::Draining;
        }
        assert!(!heir(&view, 0));
        view.nodes.get_mut(&NodeId(1)).unwrap().state = NodeState::Active;
        assert!(heir(&view, 0));
        hosted_mut(&mut view).excluded.insert(NodeId(1));
        assert!(!heir(&view, 0));
    }
}
