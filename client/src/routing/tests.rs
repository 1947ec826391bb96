//! Which nodes a request may go to, by view, readiness and key.

use std::collections::BTreeMap;

use super::*;
use crate::tests::{published, report, worker};

fn routes(published: &Published) -> Routes {
    Routes::of(published, None).unwrap()
}

fn seen(generation: u32, revision: u64) -> Seen {
    Seen { generation, revision: Revision(revision) }
}

fn key(i: u32) -> KeyHash {
    KeyHash::of(format!("user-{i}").as_bytes())
}

/// The state in which each worker has these versions ready.
fn with_ready(mut published: Published, ready: &[&[u32]]) -> Published {
    let nodes = ready.iter().enumerate().map(|(i, versions)| (worker(i as u64), report(versions)));
    published.soft = Arc::new(SoftState { nodes: nodes.collect(), ..SoftState::clone(&published.soft) });
    published
}

#[test]
fn what_a_target_leads_to() {
    // Target, share of the canary, versions ready per worker → outcome.
    let table: &[(&str, u16, &[&[u32]], &str)] = &[
        ("digits", 0, &[&[1, 2], &[1, 2]], "1 Split"),
        ("digits", 10_000, &[&[1, 2], &[1, 2]], "2 Split"),
        ("digits", 10_000, &[&[1], &[1]], "1 Fallback"),
        ("digits", 10_000, &[&[1], &[2]], "2 Split"),
        ("digits", 10_000, &[&[], &[]], "2 Split, hoped"),
        ("digits", 0, &[&[2], &[2]], "1 Split, hoped"),
        ("digits", 0, &[], "1 Split, hoped"),
        ("digits@2", 0, &[&[1, 2], &[1]], "2 Pinned"),
        ("digits@2", 10_000, &[&[1], &[1]], "2 Pinned, hoped"),
        ("digits:new", 0, &[&[1, 2], &[1]], "2 Pinned"),
        ("digits:old", 0, &[&[1], &[1]], "no version of digits bears the label \"old\""),
        ("digits@3", 0, &[&[1], &[1]], "digits@3 is not hosted; hosted: [1, 2]"),
        ("cats", 0, &[&[1], &[1]], "there is no model \"cats\""),
    ];
    for (target, canary, ready, expected) in table {
        let routes = routes(&with_ready(published(1, 2, *canary), ready));
        let outcome = match routes.pick(&target.parse().unwrap(), key(1), Seen::default()) {
            Ok(picked) => {
                let hoped = if picked.replicas.are_hoped() { ", hoped" } else { "" };
                format!("{} {:?}{hoped}", picked.version, picked.choice)
            }
            Err(error) => error.to_string(),
        };
        assert_eq!(outcome, *expected, "{target} at {canary} with {ready:?}");
    }
}

#[test]
fn an_older_revision_than_was_seen_is_not_used() {
    let routes = routes(&published(4, 2, 2_000));
    let split = "digits".parse().unwrap();
    assert_eq!(routes.pick(&split, key(1), seen(1, 4)).unwrap().revision, Revision(4));
    let error = routes.pick(&split, key(1), seen(1, 5)).unwrap_err();
    assert_eq!(
        error,
        InferError::StaleView { model: "digits".to_owned(), used: 4, newest: 5, generation: 1 }
    );
    // A restore took the revision back; or this view is of before it.
    assert!(routes.pick(&split, key(1), seen(0, 9)).is_ok());
    assert!(routes.pick(&split, key(1), seen(2, 1)).is_err());
    // A pin does not depend on the split.
    routes.pick(&"digits@2".parse().unwrap(), key(1), seen(1, 5)).unwrap();
}

#[test]
fn without_a_view_there_are_no_routes() {
    assert!(Routes::of(&Published::default(), None).is_none());
}

#[test]
fn a_change_of_the_soft_state_keeps_the_ring() {
    let first = published(1, 4, 0);
    let earlier = routes(&first);
    let later = Routes::of(&with_ready(first, &[&[1], &[]]), Some(&earlier)).unwrap();
    assert!(Arc::ptr_eq(&earlier.ring, &later.ring));
    let picked = later.pick(&"digits".parse().unwrap(), key(1), Seen::default()).unwrap();
    assert_eq!(picked.replicas.nodes.keys().copied().collect::<Vec<_>>(), [worker(0)]);
    let other = Routes::of(&published(2, 4, 0), Some(&later)).unwrap();
    assert!(!Arc::ptr_eq(&later.ring, &other.ring));
}

fn replicas(workers: u64) -> Arc<Replicas> {
    routes(&published(1, workers, 0))
        .pick(&"digits".parse().unwrap(), key(0), Seen::default())
        .unwrap()
        .replicas
}

#[test]
fn a_key_keeps_its_node_until_that_is_over_its_bound() {
    let replicas = replicas(4);
    let order = |loads: &BTreeMap<NodeId, u64>, suspect: Option<NodeId>| {
        let load = |node| loads.get(&node).copied().unwrap_or_default();
        replicas.order(key(7), true, load, |node| Some(node) == suspect)
    };
    let idle = order(&BTreeMap::new(), None);
    assert_eq!(idle.len(), 4);
    // Of 6 in flight, each of four may have ceil(1.25 · 7 / 4) = 3.
    let busy = |first: u64, second: u64| {
        let rest = 6 - first - second;
        [(idle[0], first), (idle[1], second), (idle[2], rest)].into()
    };
    assert_eq!(order(&busy(2, 2), None), idle);
    assert_eq!(order(&busy(4, 0), None), [idle[1], idle[2], idle[3], idle[0]]);
    assert_eq!(order(&busy(3, 3), None), [idle[2], idle[3], idle[0], idle[1]]);
    assert_eq!(order(&BTreeMap::new(), Some(idle[0])), [idle[1], idle[2], idle[3], idle[0]]);
}

#[test]
fn keys_spread_and_a_lost_node_moves_only_its_own() {
    let (all, fewer) = (replicas(4), replicas(3));
    let first = |replicas: &Replicas, i| replicas.order(key(i), true, |_| 0, |_| false)[0];
    let mut counts: BTreeMap<NodeId, u32> = BTreeMap::new();
    for i in 0..2_000 {
        let node = first(&all, i);
        *counts.entry(node).or_default() += 1;
        if node != worker(3) {
            assert_eq!(first(&fewer, i), node);
        }
    }
    assert!(counts.len() == 4 && counts.values().all(|count| *count > 250), "{counts:?}");
}

#[test]
fn keyless_requests_go_to_the_less_loaded_of_two() {
    let replicas = replicas(4);
    let loads = |node: NodeId| node.0 - worker(0).0;
    for i in 0..200 {
        let walk = replicas.order(key(i), false, |_| 0, |_| false);
        let order = replicas.order(key(i), false, loads, |_| false);
        assert_eq!(order[0], walk[0].min(walk[1]));
        assert_eq!(order[2..], walk[2..]);
        let last = replicas.order(key(i), false, loads, |node| node == worker(0))[3];
        assert_eq!(last, worker(0));
    }
}

#[test]
fn few_of_many_replicas_are_considered() {
    assert_eq!(replicas(40).order(key(1), true, |_| 0, |_| false).len(), CONSIDERED_MAX);
}
