//! `roost rollout`: leads a model's traffic from one version to another, and tells how far it is.

mod history;
mod status;

use std::str::FromStr;

use clap::{Args, Subcommand};
use roost_client::Control;
use roost_protocol::traffic::{Weight, WeightError};
use roost_protocol::{ModelName, ModelVersion, Revision};
use serde::Serialize;

use crate::models::ModelArgument;
use crate::output::Report;
use crate::session::Session;
use history::History;
use status::Status;

/// What to do with a rollout.
#[derive(Debug, Subcommand)]
pub enum RolloutCommand {
    /// Starts to lead a model's traffic to a version: it takes its share once two replicas are ready
    #[command(after_help = "\
A key, as `roost infer --key` gives it, keeps its version while the share stays. A larger share only
adds keys.

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
    #[command(after_help = "\
All traffic goes back in one switch, once the version that it goes back to has replicas. An undo is not
undone by another: `roost rollout start` leads to the other version again.

Example:
  roost rollout undo digits")]
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
        "Roost does not take {given} steps by itself yet: give the first alone, as in --steps {first}; \
         look at `roost rollout status`, then promote or abort"
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
                "{target} takes {weight} of {model} once it is ready; `roost rollout status {model}` tells"
            );
            Changed::new(model, revision, what)
        }
        RolloutCommand::Promote(ModelArgument { model }) => {
            let revision = control.promote(&model).await?;
            switched(control, &model, revision).await
        }
        RolloutCommand::Abort(AbortArguments { model, reason }) => {
            let revision = control.abort(&model, &reason).await?;
            switched(control, &model, revision).await
        }
        RolloutCommand::Undo(ModelArgument { model }) => {
            let revision = control.undo(&model).await?;
            switched(control, &model, revision).await
        }
    };
    Ok(session.output.print(&changed)?)
}

/// A switch of all traffic that was made, with the version that takes it. That this cannot be read back is no
/// failure of the switch.
async fn switched(control: &Control, model: &ModelName, revision: Option<Revision>) -> Changed {
    let what = match control.rollout(model).await {
        Ok(summary) => format!("{model}@{} takes all traffic", summary.traffic.stable),
        Err(error) => {
            format!("the traffic of {model} is switched; to which version cannot be read now: {error}")
        }
    };
    Changed::new(model, revision, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_step_is_taken_and_more_are_explained() {
        assert_eq!("20%".parse(), Ok(Step(Weight::from_basis_points(2_000).unwrap())));
        assert_eq!("0.5".parse(), Ok(Step(Weight::from_basis_points(50).unwrap())));
        let error = |text: &str| text.parse::<Step>().unwrap_err().to_string();
        expect_test::expect!["Roost does not take 3 steps by itself yet: give the first alone, as in --steps 5%; look at `roost rollout status`, then promote or abort"].assert_eq(&error("5%,25%,100%"));
        assert_eq!(error("0%"), "a rollout starts with more than 0 %");
        assert!(error("101%").starts_with("a share of traffic is from 0 % to 100 %"));
        assert!(error("").starts_with("a share of traffic is from 0 % to 100 %"));
        assert!(error("5%,").starts_with("a share of traffic is from 0 % to 100 %"));
    }
}
