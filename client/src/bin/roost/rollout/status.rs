//! How a model's traffic stands: who takes which share, how far the rollout is, which nodes are ready.

use roost_protocol::messages::control::{Rollout, RolloutState, RolloutSummary};
use roost_protocol::view::Published;
use roost_protocol::{ModelName, Version};
use serde::Serialize;

use crate::hosting::{self, Hosting, hosting};
use crate::models::{part, percent};
use crate::output::Report;
use crate::table::{Table, left, right};

/// How a model's traffic stands.
#[derive(Debug, Serialize)]
pub struct Status {
    model: String,
    revision: u64,
    rollout: Option<RolloutLine>,
    versions: Vec<VersionLine>,
}

#[derive(Debug, Serialize)]
struct RolloutLine {
    target: u32,
    asked_percent: f64,
    state: &'static str,
    reason: Option<String>,
}

#[derive(Debug, Serialize)]
struct VersionLine {
    version: u32,
    role: &'static str,
    traffic_percent: f64,
    ready: usize,
    wanted: usize,
    nodes: Vec<Hosting>,
}

impl Status {
    /// By what the leader says of the traffic, and the view of the nodes.
    pub fn of(model: &ModelName, summary: &RolloutSummary, published: &Published) -> Self {
        let traffic = &summary.traffic;
        let target = summary.rollout.as_ref().map(|rollout| rollout.target);
        let canary = traffic.canary.map(|canary| canary.version);
        let mut versions: Vec<Version> = vec![traffic.stable];
        for version in [canary, target, traffic.previous].into_iter().flatten() {
            if !versions.contains(&version) {
                versions.push(version);
            }
        }
        let ring = published.view.as_ref().map(|view| view.ring()).unwrap_or_default();
        let line = |version: Version| {
            let (role, share) = part(traffic, version);
            let nodes = published.view.as_ref();
            let nodes = nodes.map(|view| hosting(view, &ring, &published.soft, model, version));
            let nodes = nodes.unwrap_or_default();
            VersionLine {
                version: version.0,
                role: role.unwrap_or("target"),
                traffic_percent: percent(share),
                ready: nodes.iter().filter(|node| node.serves).count(),
                wanted: published
                    .view
                    .as_ref()
                    .map_or(0, |view| hosting::wanted(view, &ring, model, version)),
                nodes,
            }
        };
        Self {
            model: model.to_string(),
            revision: traffic.revision.0,
            rollout: summary.rollout.as_ref().map(RolloutLine::of),
            versions: versions.into_iter().map(line).collect(),
        }
    }
}

impl RolloutLine {
    fn of(rollout: &Rollout) -> Self {
        let (state, reason) = match &rollout.state {
            RolloutState::Preparing => ("preparing", None),
            RolloutState::Running => ("running", None),
            RolloutState::Paused { reason } => ("paused", Some(reason.clone())),
        };
        Self { target: rollout.target.0, asked_percent: percent(rollout.weight), state, reason }
    }

    fn text(&self, model: &str) -> String {
        let Self { target, asked_percent, state, reason } = self;
        let more = match reason {
            Some(reason) => format!(": {reason}"),
            None if *state == "preparing" => " until its replicas are ready".to_owned(),
            None => String::new(),
        };
        format!("rollout to {model}@{target} at {asked_percent}%, {state}{more}")
    }
}

impl Report for Status {
    fn text(&self) -> String {
        let Self { model, revision, .. } = self;
        let rollout = self.rollout.as_ref().map(|rollout| rollout.text(model));
        let rollout = rollout.unwrap_or_else(|| "no rollout in progress".to_owned());
        let mut table =
            Table::new([left("VERSION"), left("ROLE"), right("TRAFFIC"), left("READY"), left("NODES")]);
        for line in &self.versions {
            let nodes: Vec<_> = line.nodes.iter().map(Hosting::text).collect();
            table.row([
                format!("{model}@{}", line.version),
                line.role.to_owned(),
                format!("{}%", line.traffic_percent),
                format!("{} of {}", line.ready, line.wanted),
                nodes.join(", "),
            ]);
        }
        format!("{model}, revision {revision}: {rollout}\n\n{table}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    #[test]
    fn a_status_shows_traffic_state_and_nodes() {
        let published = example::published();
        let status = |state| Status::of(&example::digits(), &example::rollout(state), &published);
        let paused =
            RolloutState::Paused { reason: "1 replica of digits@2 is ready, 2 are needed".to_owned() };
        expect_test::expect![[r#"
            digits, revision 3: rollout to digits@2 at 20%, paused: 1 replica of digits@2 is ready, 2 are needed

            VERSION   ROLE    TRAFFIC  READY   NODES
            digits@1  stable      80%  2 of 2  w1, w2, w3 (draining, silent)
            digits@2  canary      20%  1 of 2  w1 (failed: the graph has an unknown operator Foo), w2
        "#]].assert_eq(&status(paused).text());
        let json = serde_json::to_value(status(RolloutState::Running)).unwrap();
        assert_eq!((&json["model"], &json["revision"]), (&"digits".into(), &3.into()));
        let parts = (&json["rollout"], &json["versions"][1]["nodes"][0]);
        expect_test::expect![[r#"
            [
              {
                "asked_percent": 20.0,
                "reason": null,
                "state": "running",
                "target": 2
              },
              {
                "detail": "the graph has an unknown operator Foo",
                "engine": null,
                "node": "w1",
                "owner": true,
                "serves": false,
                "silent": false,
                "stage": "failed"
              }
            ]"#]]
        .assert_eq(&serde_json::to_string_pretty(&parts).unwrap());
    }

    #[test]
    fn a_target_without_traffic_is_shown_too() {
        let mut summary = example::rollout(RolloutState::Preparing);
        summary.traffic.canary = None;
        summary.traffic.previous = Some(Version(3));
        let status = Status::of(&example::digits(), &summary, &example::published());
        expect_test::expect![[r#"
            digits, revision 3: rollout to digits@2 at 20%, preparing until its replicas are ready

            VERSION   ROLE      TRAFFIC  READY   NODES
            digits@1  stable       100%  2 of 2  w1, w2, w3 (draining, silent)
            digits@2  target         0%  1 of 2  w1 (failed: the graph has an unknown operator Foo), w2
            digits@3  previous       0%  0 of 0
        "#]]
        .assert_eq(&status.text());
        summary.rollout = None;
        let status = Status::of(&example::digits(), &summary, &Published::default());
        expect_test::expect![[r#"
            digits, revision 3: no rollout in progress

            VERSION   ROLE      TRAFFIC  READY   NODES
            digits@1  stable       100%  0 of 0
            digits@3  previous       0%  0 of 0
        "#]]
        .assert_eq(&status.text());
    }
}
