//! What happened to a model's traffic.

use roost_protocol::ModelName;
use roost_protocol::messages::control::{RolloutEvent, RolloutEventKind};
use serde::Serialize;

use crate::moment::rfc3339;
use crate::output::Report;
use crate::table::{Table, left, right};

/// What happened to a model's traffic.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub struct History(Vec<EventLine>);

#[derive(Debug, Serialize)]
struct EventLine {
    at: String,
    by: String,
    revision: u64,
    event: &'static str,
    what: String,
}

impl History {
    /// The events, as they came.
    pub fn of(model: &ModelName, events: &[RolloutEvent]) -> Self {
        let line = |event: &RolloutEvent| {
            let (name, what) = describe(model, &event.kind);
            let (at, by) = (rfc3339(event.at_ms), event.by.clone());
            EventLine { at, by, revision: event.revision.0, event: name, what }
        };
        Self(events.iter().map(line).collect())
    }
}

fn describe(model: &ModelName, kind: &RolloutEventKind) -> (&'static str, String) {
    match kind {
        RolloutEventKind::First(version) => {
            ("first", format!("{model}@{version}, the first, takes all traffic"))
        }
        RolloutEventKind::Started { target, weight } => {
            ("started", format!("rollout to {model}@{target} starts, at {weight} once it is ready"))
        }
        RolloutEventKind::Exposed { target, weight } => {
            ("exposed", format!("{model}@{target} takes {weight}"))
        }
        RolloutEventKind::Paused { reason } => ("paused", format!("the rollout pauses: {reason}")),
        RolloutEventKind::Resumed => ("resumed", "the rollout goes on".to_owned()),
        RolloutEventKind::Promoted { target } => ("promoted", format!("{model}@{target} takes all traffic")),
        RolloutEventKind::Aborted { target, reason } => {
            ("aborted", format!("rollout to {model}@{target} ends: {reason}"))
        }
        RolloutEventKind::Undone { from, to } => {
            ("undone", format!("{model}@{to} takes all traffic again, from {model}@{from}"))
        }
        RolloutEventKind::Excluded { version, node, reason } => {
            ("excluded", format!("{model}@{version} is not placed on {node}: {reason}"))
        }
    }
}

impl Report for History {
    fn text(&self) -> String {
        let mut table = Table::new([left("WHEN"), left("BY"), right("REVISION"), left("WHAT")]);
        for line in &self.0 {
            table.row([line.at.clone(), line.by.clone(), line.revision.to_string(), line.what.clone()]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use roost_protocol::traffic::Weight;
    use roost_protocol::{NodeName, Revision, Version};

    use super::*;
    use crate::example;

    #[test]
    fn history_is_told_in_order() {
        let weight = Weight::from_basis_points(2_000).unwrap();
        let kinds = [
            RolloutEventKind::First(Version(1)),
            RolloutEventKind::Started { target: Version(2), weight },
            RolloutEventKind::Exposed { target: Version(2), weight },
            RolloutEventKind::Paused { reason: "1 of 2 replicas is ready".to_owned() },
            RolloutEventKind::Resumed,
            RolloutEventKind::Promoted { target: Version(2) },
            RolloutEventKind::Undone { from: Version(2), to: Version(1) },
            RolloutEventKind::Aborted { target: Version(3), reason: "worse".to_owned() },
            RolloutEventKind::Excluded {
                version: Version(3),
                node: NodeName::new("w1").unwrap(),
                reason: "no memory".to_owned(),
            },
        ];
        let event = |(i, kind): (u64, RolloutEventKind)| RolloutEvent {
            at_ms: 1_770_091_506_789 + i * 60_000,
            by: if i == 3 { "planner" } else { "anna" }.to_owned(),
            kind,
            revision: Revision(i + 1),
        };
        let events: Vec<_> = (0..).zip(kinds).map(event).collect();
        expect_test::expect![[r#"
            WHEN                  BY       REVISION  WHAT
            2026-02-03T04:05:06Z  anna            1  digits@1, the first, takes all traffic
            2026-02-03T04:06:06Z  anna            2  rollout to digits@2 starts, at 20% once it is ready
            2026-02-03T04:07:06Z  anna            3  digits@2 takes 20%
            2026-02-03T04:08:06Z  planner         4  the rollout pauses: 1 of 2 replicas is ready
            2026-02-03T04:09:06Z  anna            5  the rollout goes on
            2026-02-03T04:10:06Z  anna            6  digits@2 takes all traffic
            2026-02-03T04:11:06Z  anna            7  digits@1 takes all traffic again, from digits@2
            2026-02-03T04:12:06Z  anna            8  rollout to digits@3 ends: worse
            2026-02-03T04:13:06Z  anna            9  digits@3 is not placed on w1: no memory
        "#]]
        .assert_eq(&History::of(&example::digits(), &events).text());
    }
}
