//! What commands may bring.

use roost_protocol::limits::NODES_MAX;

use super::*;
use crate::state::bounds::LABELS_MAX;

/// Makes a version with a manifest of so many bytes.
fn commit(cluster: &mut Cluster, model: &str, label_bytes: usize) -> Result<Outcome, CommandError> {
    let labels = vec!["x".repeat(label_bytes)];
    cluster.run(Command::CommitVersion {
        model: ModelName::new(model).unwrap(),
        digest: files("v1").digest(),
        manifest: Box::new(Manifest { labels, ..Manifest::default() }),
        note: String::new(),
        holders: [NodeId(1), NodeId(2)].into(),
        new_version: true,
    })
}

#[test]
fn what_commands_bring_is_bounded() {
    let limited = |result: Result<Outcome, CommandError>| {
        assert!(matches!(result, Err(CommandError::LimitExceeded { .. })), "{result:?}");
    };
    let mut cluster = Cluster::with_versions(1);
    let with = |address: &str, profile: NodeProfile| {
        let (node, name) = (NodeId(1), NodeName::new("a").unwrap());
        Command::Join { node, name, address: address.to_owned(), profile: Box::new(profile) }
    };
    limited(cluster.run(with(&"h".repeat(300), profile())));
    limited(cluster.run(with("h:1", NodeProfile { zone: "z".repeat(100), ..profile() })));
    let labels = (0..100).map(|i| (i.to_string(), String::new())).collect();
    limited(cluster.run(with("h:1", NodeProfile { labels, ..profile() })));
    for i in 0..LABELS_MAX {
        let label = Label::new(&format!("l{i}")).unwrap();
        cluster.run(Command::SetLabel { version: at(1), label }).unwrap();
    }
    let one_more = Label::new("more").unwrap();
    limited(cluster.run(Command::SetLabel { version: at(1), label: one_more }));
    let again = Label::new("l0").unwrap();
    cluster.run(Command::SetLabel { version: at(1), label: again }).unwrap();

    limited(commit(&mut cluster, "digits", 300 << 10));
    // Each new model is hosted at once, until the view is full.
    let full = (0..100).find_map(|i| commit(&mut cluster, &format!("m{i}"), 250 << 10).err().map(|e| (i, e)));
    assert!(matches!(full, Some((57, CommandError::LimitExceeded { .. }))), "{full:?}");
    // Further versions are not, but what is hosted beside must fit.
    commit(&mut cluster, "m0", 250 << 10).unwrap();
    let second = ModelVersion { model: ModelName::new("m0").unwrap(), version: Version(2) };
    limited(cluster.run(Command::StartRollout { target: second.clone(), weight: weight("5%") }));
    limited(cluster.run(Command::SetLabel { version: second, label: Label::new("l").unwrap() }));
}

#[test]
fn nodes_that_are_known_may_join_again_however_many_there_are() {
    let mut cluster = Cluster::new();
    for node in 0..NODES_MAX as u64 {
        cluster.run(join(node, &format!("n{node}"))).unwrap();
    }
    assert!(matches!(cluster.run(join(9999, "more")), Err(CommandError::LimitExceeded { .. })));
    cluster.run(join(7, "n7")).unwrap();
    let joined = cluster.joined(7);
    cluster.run(Command::NodeOut { node: NodeId(7), joined }).unwrap();
    cluster.run(join(9999, "n7")).unwrap();
}

#[test]
fn nodes_that_are_known_may_join_again_when_the_view_is_full() {
    let mut cluster = Cluster::with_versions(1);
    let full = (0..100).find(|i| commit(&mut cluster, &format!("m{i}"), 250 << 10).is_err());
    assert!(full.is_some());
    let join = |node: u64, name: &str, label: &str| {
        let labels = (0..64).map(|i| (i.to_string(), label.repeat(30))).collect();
        let (node, name) = (NodeId(node), NodeName::new(name).unwrap());
        let profile = Box::new(NodeProfile { labels, ..profile() });
        Command::Join { node, name, address: "h:1".to_owned(), profile }
    };
    // With nodes that have labels, and what is left with nodes that have none.
    for (nodes, label) in [(1..1000, "x"), (1000..2000, "")] {
        let mut nodes = nodes;
        let full = nodes.find(|node| cluster.run(join(*node, &format!("n{node}"), label)).is_err());
        assert!(full.is_some());
    }
    // At another start, with other labels, and by the machine in its place once it is out.
    cluster.run(join(1, "n1", "x")).unwrap();
    cluster.run(join(1, "n1", "y")).unwrap();
    let joined = cluster.joined(1);
    cluster.run(Command::NodeOut { node: NodeId(1), joined }).unwrap();
    cluster.run(join(9999, "n1", "z")).unwrap();
    // One more has no room, nor have longer labels.
    for more in [join(1, "more", ""), join(2, "n2", "ä")] {
        let refused = cluster.run(more);
        let full =
            matches!(&refused, Err(CommandError::LimitExceeded { what, .. }) if what == "bytes of the view");
        assert!(full, "{refused:?}");
    }
}
