//! The table of a rollout's states and events, and the drawing of it.

use std::fmt::Write as _;

use roost_protocol::messages::control::RolloutState;

use super::*;

/// A rollout's states, each reached by commands, against every event.
#[test]
fn the_table_of_a_rollout() {
    let start = |cluster: &mut Cluster| {
        cluster.run(Command::StartRollout { target: at(2), weight: weight("20%") }).unwrap();
    };
    let expose = |cluster: &mut Cluster| {
        let revision = cluster.revision();
        cluster.run(Command::Expose { model: digits(), revision }).unwrap();
    };
    let none = Cluster::with_versions(2);
    let mut preparing = Cluster::with_versions(2);
    start(&mut preparing);
    let mut running = Cluster::with_versions(2);
    start(&mut running);
    expose(&mut running);
    let mut paused = Cluster { state: running.state.clone(), index: running.index };
    let revision = paused.revision();
    paused.run(Command::Pause { model: digits(), revision, reason: "one replica".to_owned() }).unwrap();
    let mut promoted = Cluster { state: running.state.clone(), index: running.index };
    promoted.run(Command::Promote { model: digits(), revision }).unwrap();
    let mut undone = Cluster { state: promoted.state.clone(), index: promoted.index };
    undone.undo().unwrap();

    let (mut table, mut edges) = (String::new(), String::new());
    let states = [
        ("none", none),
        ("preparing", preparing),
        ("running", running),
        ("paused", paused),
        ("promoted", promoted),
        ("undone", undone),
    ];
    for (name, cluster) in &states {
        let revision = cluster.revision();
        let model = digits();
        let events = [
            ("start@1", Command::StartRollout { target: at(1), weight: weight("50%") }),
            ("start@2", Command::StartRollout { target: at(2), weight: weight("50%") }),
            ("expose", Command::Expose { model: model.clone(), revision }),
            ("pause", Command::Pause { model: model.clone(), revision, reason: "why".to_owned() }),
            ("resume", Command::Resume { model: model.clone(), revision }),
            ("promote", Command::Promote { model: model.clone(), revision }),
            ("abort", Command::Abort { model: model.clone(), reason: "why".to_owned() }),
            ("undo", Command::Undo { model: model.clone(), revision }),
            // As planned before somebody else's change.
            ("undo late", Command::Undo { model, revision: Revision(revision.0 - 1) }),
        ];
        for (event, command) in events {
            let mut after = Cluster { state: cluster.state.clone(), index: cluster.index };
            let result = match after.run(command) {
                Ok(_) => describe(&after),
                Err(error) => format!("refused: {error}"),
            };
            writeln!(table, "{name:10} {event:9} {result}").unwrap();
            // After an undo it is as if nothing had been promoted: a state of its own in the table alone.
            if describe(&after) != describe(cluster) && *name != "undone" {
                writeln!(edges, "    {name} -> {} [label=\"{event}\"];", node(&after)).unwrap();
            }
        }
    }
    expect_test::expect_file!["../rollout/table.txt"].assert_eq(&table);
    let drawing = format!(
        "// Drawn by the test `the_table_of_a_rollout`: dot -Tsvg table.dot\n\
         digraph rollout {{\n    node [shape=box];\n    none [label=\"no rollout\"];\n    \
         promoted [label=\"no rollout,\\nan earlier stable version to go back to\"];\n{edges}}}\n"
    );
    expect_test::expect_file!["../rollout/table.dot"].assert_eq(&drawing);
}

/// The state of the drawing that a cluster is in.
fn node(cluster: &Cluster) -> &'static str {
    let summary = cluster.state.rollout(&digits()).unwrap();
    match (summary.rollout.map(|rollout| rollout.state), summary.traffic.previous) {
        (None, None) => "none",
        (None, Some(_)) => "promoted",
        (Some(RolloutState::Preparing), _) => "preparing",
        (Some(RolloutState::Running), _) => "running",
        (Some(RolloutState::Paused { .. }), _) => "paused",
    }
}

fn describe(cluster: &Cluster) -> String {
    let summary = cluster.state.rollout(&digits()).unwrap();
    let state = match summary.rollout.as_ref().map(|rollout| &rollout.state) {
        None => "none",
        Some(RolloutState::Preparing) => "preparing",
        Some(RolloutState::Running) => "running",
        Some(RolloutState::Paused { .. }) => "paused",
    };
    let canary = summary
        .traffic
        .canary
        .map_or("-".to_owned(), |canary| format!("{} {}", canary.version, canary.weight));
    format!(
        "{state}, stable {}, canary {canary}, revision {}",
        summary.traffic.stable, summary.traffic.revision
    )
}
