//! `roost rollout`: leads a model's traffic from one version to another, and tells how far it is.

use std::str::FromStr;

use clap::{Args, Subcommand};
use roost_protocol::messages::control::{
    Rollout, RolloutEvent, RolloutEventKind, RolloutState, RolloutSummary,
};
use roost_protocol::traffic::{Weight, WeightError};
use roost_protocol::view::Published;
use roost_protocol::{ModelName, ModelVersion, Revision, Version};
use serde::Serialize;

use crate::hosting::{self, Hosting, hosting};
use crate::models::{ModelArgument, part, percent};
use crate::moment::rfc3339;
use crate::output::Report;
use crate::session::Session;
use crate::table::{Table, left, right};

/// What to do with a rollout.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// Starts to lead a model's traffic to a version: it takes its share once two replicas are ready
    #[command(after_help = "\
A key, as `roost infer --key` gives it, keeps its version while the share stays; a larger share only adds keys.

Example:
  roost rollout start digits@2 --steps 20%")]
    Start(StartArguments),
    /// Shows a model's traffic, its rollout, and which nodes are ready
    Status(ModelArgument),
    /// Makes the rollout's version the stable one: it takes all traffic
    Promote(ModelArgument),
    /// Ends the rollout: all traffic goes to the stable version
    Abort(AbortArguments),
    /// Makes the stable version before the last promotion the stable one again
    Undo(ModelArgument),
    /// Lists what happened to a model's traffic, oldest first
    History(ModelArgument),
}

/// A rollout to start.
#[derive(Debug, Args)]
pub struct StartArguments {
    /// The version
    #[arg(value_name = "MODEL@VERSION")]
    target: ModelVersion,
    /// The share of the traffic that it takes, as in 20% or 0.5%
    #[arg(long, value_name = "SHARE")]
    steps: Step,
}

/// A rollout to end.
#[derive(Debug, Args)]
pub struct AbortArguments {
    /// The model
    model: ModelName,
    /// A text that is kept in the history
    #[arg(long, value_name = "TEXT", default_value = "aborted by its operator")]
    reason: String,
}

/// The only step of a rollout: the share that it starts with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step(Weight);

/// Why a text says no step that can be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StepError {
    /// A share is none.
    #[error(transparent)]
    Share(#[from] WeightError),
    /// A share of nothing.
    #[error("a rollout starts with more than 0 %")]
    Zero,
    /// More than one step.
    #[error(
        "this version of Roost takes one step at a time; start with --steps {first}, look at it with `roost rollout \
         status`, then promote or abort (given were {given} steps, which it cannot take by itself)"
    )]
    Several {
        /// The first.
        first: Weight,
        /// How many were given.
        given: usize,
    },
}

impl FromStr for Step {
    type Err = StepError;
    fn from_str(text: &str) -> Result<Self, StepError> {
        let steps = text.split(',').map(|step| step.trim().parse()).collect::<Result<Vec<Weight>, _>>()?;
        match steps[..] {
            [Weight::ZERO] => Err(StepError::Zero),
            [only] => Ok(Self(only)),
            [first, ..] => Err(StepError::Several { first, given: steps.len() }),
            [] => Err(StepError::Zero),
        }
    }
}

/// What a change of traffic led to.
#[derive(Debug, Serialize)]
struct Changed {
    model: String,
    /// The revision that the traffic is at; none while it has not changed yet.
    revision: Option<u64>,
    #[serde(skip)]
    what: String,
}

impl Changed {
    fn new(model: &ModelName, revision: Option<Revision>, what: String) -> Self {
        Self { model: model.to_string(), revision: revision.map(|revision| revision.0), what }
    }
}

impl Report for Changed {
    fn text(&self) -> String {
        match self.revision {
            Some(revision) => format!("{} (revision {revision})\n", self.what),
            None => format!("{}\n", self.what),
        }
    }
}

/// Carries the command out.
///
/// # Errors
/// The control plane's.
pub async fn run(session: &Session, command: RolloutCommand) -> anyhow::Result<()> {
    let control = session.client.control();
    let changed = match command {
        RolloutCommand::Status(ModelArgument { model }) => {
            let status = Status::of(&model, &control.rollout(&model).await?, &session.published());
            return Ok(session.output.print(&status)?);
        }
        RolloutCommand::History(ModelArgument { model }) => {
            let history = History::of(&model, &control.rollout(&model).await?.history);
            return Ok(session.output.print(&history)?);
        }
        RolloutCommand::Start(StartArguments { target, steps: Step(weight) }) => {
            let revision = control.start_rollout(target.clone(), weight).await?;
            let model = &target.model;
            let what = format!(
                "{target} takes {weight} of {model} once its replicas are ready; `roost rollout status {model}` tells"
            );
            Changed::new(model, revision, what)
        }
        RolloutCommand::Promote(ModelArgument { model }) => {
            let revision = control.promote(&model).await?;
            Changed::new(&model, revision, format!("the version that {model} was rolled out to takes all traffic"))
        }
        RolloutCommand::Abort(AbortArguments { model, reason }) => {
            let revision = control.abort(&model, &reason).await?;
            Changed::new(&model, revision, format!("the stable version of {model} takes all traffic again"))
        }
        RolloutCommand::Undo(ModelArgument { model }) => {
            let revision = control.undo(&model).await?;
            Changed::new(&model, revision, format!("the stable version of {model} before takes all traffic again"))
        }
    };
    Ok(session.output.print(&changed)?)
}

/// How a model's traffic stands.
#[derive(Debug, Serialize)]
struct Status {
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
    fn of(model: &ModelName, summary: &RolloutSummary, published: &Published) -> Self {
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
                wanted: published.view.as_ref().map_or(0, |view| hosting::wanted(view, &ring, model, version)),
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

/// What happened to a model's traffic.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct History(Vec<EventLine>);

#[derive(Debug, Serialize)]
struct EventLine {
    at: String,
    by: String,
    revision: u64,
    event: &'static str,
    what: String,
}

impl History {
    fn of(model: &ModelName, events: &[RolloutEvent]) -> Self {
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
        RolloutEventKind::First(version) => ("first", format!("{model}@{version}, the first, takes all traffic")),
        RolloutEventKind::Started { target, weight } => {
            ("started", format!("rollout to {model}@{target} starts, at {weight} once it is ready"))
        }
        RolloutEventKind::Exposed { target, weight } => ("exposed", format!("{model}@{target} takes {weight}")),
        RolloutEventKind::Paused { reason } => ("paused", format!("paused: {reason}")),
        RolloutEventKind::Resumed => ("resumed", "goes on".to_owned()),
        RolloutEventKind::Promoted { target } => ("promoted", format!("{model}@{target} takes all traffic")),
        RolloutEventKind::Aborted { target, reason } => {
            ("aborted", format!("rollout to {model}@{target} ends: {reason}"))
        }
        RolloutEventKind::Undone { from, to } => {
            ("undone", format!("{model}@{to} takes all traffic again, from {model}@{from}"))
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
    use super::*;
    use crate::example;

    #[test]
    fn one_step_is_taken_and_more_are_explained() {
        assert_eq!("20%".parse(), Ok(Step(Weight::from_basis_points(2_000).unwrap())));
        assert_eq!("0.5".parse(), Ok(Step(Weight::from_basis_points(50).unwrap())));
        let error = |text: &str| text.parse::<Step>().unwrap_err().to_string();
        expect_test::expect!["this version of Roost takes one step at a time; start with --steps 5%, look at it with `roost rollout status`, then promote or abort (given were 3 steps, which it cannot take by itself)"].assert_eq(&error("5%,25%,100%"));
        assert_eq!(error("0%"), "a rollout starts with more than 0 %");
        assert!(error("101%").starts_with("a share of traffic is from 0 % to 100 %"));
        assert!(error("").starts_with("a share of traffic is from 0 % to 100 %"));
        assert!(error("5%,").starts_with("a share of traffic is from 0 % to 100 %"));
    }

    #[test]
    fn a_status_shows_traffic_state_and_nodes() {
        let published = example::published();
        let status = |state| Status::of(&example::digits(), &example::rollout(state), &published);
        let paused = RolloutState::Paused { reason: "1 replica of digits@2 is ready, 2 are needed".to_owned() };
        expect_test::expect![[r#"
            digits, revision 3: rollout to digits@2 at 20%, paused: 1 replica of digits@2 is ready, 2 are needed

            VERSION   ROLE    TRAFFIC  READY   NODES
            digits@1  stable      80%  2 of 2  w1, w2, w3 (draining, silent)
            digits@2  canary      20%  1 of 2  w1 (failed: the graph has an unknown operator Foo), w2
        "#]].assert_eq(&status(paused).text());
        expect_test::expect![[r#"{"model":"digits","revision":3,"rollout":{"target":2,"asked_percent":20.0,"state":"running","reason":null},"versions":[{"version":1,"role":"stable","traffic_percent":80.0,"ready":2,"wanted":2,"nodes":[{"node":"w1","owner":true,"stage":"ready","serves":true,"silent":false,"engine":"onnxruntime","detail":null},{"node":"w2","owner":true,"stage":"ready","serves":true,"silent":false,"engine":"onnxruntime","detail":null},{"node":"w3","owner":false,"stage":"draining","serves":false,"silent":true,"engine":"onnxruntime","detail":null}]},{"version":2,"role":"canary","traffic_percent":20.0,"ready":1,"wanted":2,"nodes":[{"node":"w1","owner":true,"stage":"failed","serves":false,"silent":false,"engine":null,"detail":"the graph has an unknown operator Foo"},{"node":"w2","owner":true,"stage":"ready","serves":true,"silent":false,"engine":"onnxruntime","detail":null}]}]}"#]].assert_eq(&serde_json::to_string(&status(RolloutState::Running)).unwrap());
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
        "#]].assert_eq(&status.text());
        summary.rollout = None;
        let status = Status::of(&example::digits(), &summary, &Published::default());
        expect_test::expect![[r#"
            digits, revision 3: no rollout in progress

            VERSION   ROLE      TRAFFIC  READY   NODES
            digits@1  stable       100%  0 of 0
            digits@3  previous       0%  0 of 0
        "#]].assert_eq(&status.text());
    }

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
            2026-02-03T04:08:06Z  planner         4  paused: 1 of 2 replicas is ready
            2026-02-03T04:09:06Z  anna            5  goes on
            2026-02-03T04:10:06Z  anna            6  digits@2 takes all traffic
            2026-02-03T04:11:06Z  anna            7  digits@1 takes all traffic again, from digits@2
            2026-02-03T04:12:06Z  anna            8  rollout to digits@3 ends: worse
        "#]].assert_eq(&History::of(&example::digits(), &events).text());
    }
}
