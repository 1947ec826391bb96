//! `roost models`, `roost versions` and `roost label`: what there is, and what it is called.

use std::collections::BTreeMap;

use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use roost_protocol::messages::control::{ModelSummary, VersionSummary};
use roost_protocol::traffic::{Traffic, Weight};
use roost_protocol::{CommandError, ControlError, Label, ModelName, ModelVersion, Version};
use serde::Serialize;

use crate::moment::rfc3339;
use crate::output::Report;
use crate::session::Session;
use crate::table::{Table, left, right};

/// Hexadecimal digits of a bundle's digest that tables show; JSON has all.
const DIGEST_SHOWN: usize = 12;

/// A model's name.
#[derive(Debug, Args)]
pub struct ModelArgument {
    /// The model
    pub model: ModelName,
}

/// Which versions to list, or what to do with them.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct VersionsArguments {
    #[command(subcommand)]
    command: Option<VersionsCommand>,
    /// The model
    #[arg(required = true)]
    model: Option<ModelName>,
}

/// What to do with a model's versions.
#[derive(Debug, Subcommand)]
pub enum VersionsCommand {
    /// Forgets old versions; never one that takes traffic, may take it by an undo, or bears a label
    #[command(after_help = "Example:\n  roost versions retain digits --keep 5")]
    Retain {
        /// The model
        model: ModelName,
        /// How many of the newest are kept beside those
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        keep: u32,
    },
}

/// What to do with labels.
#[derive(Debug, Subcommand)]
pub enum LabelCommand {
    /// Puts a label on a version; taken from the version that had it
    #[command(after_help = "Example:\n  roost label set digits@2 prod     for `roost infer digits:prod`")]
    Set {
        /// The version
        #[arg(value_name = "MODEL@VERSION")]
        version: ModelVersion,
        /// The label
        label: Label,
    },
    /// Takes a label away
    Remove {
        /// The model
        model: ModelName,
        /// The label
        label: Label,
    },
}

/// The models of a cluster.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Models(Vec<ModelLine>);

#[derive(Debug, Serialize)]
struct ModelLine {
    model: String,
    stable: u32,
    canary: Option<CanaryLine>,
    revision: u64,
    versions: u32,
    labels: BTreeMap<String, u32>,
}

#[derive(Debug, Serialize)]
struct CanaryLine {
    version: u32,
    share_percent: f64,
}

/// A share as JSON has it.
pub fn percent(weight: Weight) -> f64 {
    f64::from(weight.basis_points()) / 100.0
}

impl Models {
    fn of(summaries: Vec<ModelSummary>) -> Self {
        let line = |summary: ModelSummary| ModelLine {
            model: summary.model.to_string(),
            stable: summary.traffic.stable.0,
            canary: summary.traffic.canary.map(|canary| CanaryLine {
                version: canary.version.0,
                share_percent: percent(canary.weight),
            }),
            revision: summary.traffic.revision.0,
            versions: summary.versions,
            labels: summary.labels.iter().map(|(label, version)| (label.to_string(), version.0)).collect(),
        };
        Self(summaries.into_iter().map(line).collect())
    }
}

impl Report for Models {
    fn text(&self) -> String {
        if self.0.is_empty() {
            return "no models yet; `roost push MODEL FOLDER` makes one\n".to_owned();
        }
        let columns = [
            left("MODEL"),
            left("STABLE"),
            left("CANARY"),
            right("VERSIONS"),
            right("REVISION"),
            left("LABELS"),
        ];
        let mut table = Table::new(columns);
        for line in &self.0 {
            let canary = line.canary.as_ref();
            let canary = canary.map(|c| format!("@{} {}%", c.version, c.share_percent)).unwrap_or_default();
            let labels: Vec<_> =
                line.labels.iter().map(|(label, version)| format!("{label}=@{version}")).collect();
            table.row([
                line.model.clone(),
                format!("@{}", line.stable),
                canary,
                line.versions.to_string(),
                line.revision.to_string(),
                labels.join(" "),
            ]);
        }
        table.to_string()
    }
}

/// The versions of a model.
#[derive(Debug, Serialize)]
#[serde(transparent)]
struct Versions(Vec<VersionLine>);

#[derive(Debug, Serialize)]
struct VersionLine {
    version: String,
    number: u32,
    traffic_percent: f64,
    role: Option<&'static str>,
    labels: Vec<String>,
    pushed_at: String,
    pushed_by: String,
    bytes: u64,
    digest: String,
    note: String,
}

impl Versions {
    fn of(model: &ModelSummary, versions: Vec<VersionSummary>) -> Self {
        let line = |summary: VersionSummary| {
            let (role, share) = part(&model.traffic, summary.version);
            let labels = model.labels.iter().filter(|(_, version)| **version == summary.version);
            VersionLine {
                version: format!("{}@{}", model.model, summary.version),
                number: summary.version.0,
                traffic_percent: percent(share),
                role,
                labels: labels.map(|(label, _)| label.to_string()).collect(),
                pushed_at: rfc3339(summary.pushed_at_ms),
                pushed_by: summary.pushed_by,
                bytes: summary.bytes,
                digest: summary.digest.to_string(),
                note: summary.note,
            }
        };
        Self(versions.into_iter().map(line).collect())
    }
}

/// A version's part in its model's traffic, and its share of it.
pub fn part(traffic: &Traffic, version: Version) -> (Option<&'static str>, Weight) {
    let canary = traffic.canary.map_or(Weight::ZERO, |canary| canary.weight);
    if version == traffic.stable {
        let rest = Weight::from_basis_points(Weight::ALL.basis_points() - canary.basis_points());
        (Some("stable"), rest.unwrap_or(Weight::ZERO))
    } else if traffic.canary.is_some_and(|canary| canary.version == version) {
        (Some("canary"), canary)
    } else if traffic.previous == Some(version) {
        (Some("previous"), Weight::ZERO)
    } else {
        (None, Weight::ZERO)
    }
}

impl Report for Versions {
    fn text(&self) -> String {
        let columns = [
            left("VERSION"),
            left("ROLE"),
            right("TRAFFIC"),
            left("LABELS"),
            left("PUSHED"),
            left("BY"),
            right("SIZE"),
            left("DIGEST"),
            left("NOTE"),
        ];
        let mut table = Table::new(columns);
        for line in &self.0 {
            let traffic = line.role.map(|_| format!("{}%", line.traffic_percent));
            table.row([
                line.version.clone(),
                line.role.unwrap_or_default().to_owned(),
                traffic.unwrap_or_default(),
                line.labels.join(" "),
                line.pushed_at.clone(),
                line.pushed_by.clone(),
                HumanBytes(line.bytes).to_string(),
                line.digest.chars().take(DIGEST_SHOWN).collect(),
                line.note.clone(),
            ]);
        }
        table.to_string()
    }
}

/// Lists the models.
///
/// # Errors
/// The control plane's.
pub async fn models(session: &Session) -> anyhow::Result<()> {
    let models = session.client.control().models().await?;
    Ok(session.output.print(&Models::of(models))?)
}

/// The versions that were forgotten.
#[derive(Debug, Serialize)]
struct Forgotten {
    model: String,
    forgotten: Vec<u32>,
}

impl Report for Forgotten {
    fn text(&self) -> String {
        let Self { model, forgotten } = self;
        if forgotten.is_empty() {
            return format!("{model} has no version that could be forgotten\n");
        }
        let versions: Vec<_> = forgotten.iter().map(|version| format!("{model}@{version}")).collect();
        format!("forgot {}; what they alone were made of is removed from disks\n", versions.join(", "))
    }
}

/// Lists a model's versions, or forgets old ones.
///
/// # Errors
/// When there is no such model; the control plane's.
pub async fn versions(session: &Session, arguments: VersionsArguments) -> anyhow::Result<()> {
    match (arguments.command, arguments.model) {
        (Some(VersionsCommand::Retain { model, keep }), _) => {
            let forgotten = session.client.control().retain(&model, keep).await?;
            let forgotten = forgotten.into_iter().map(|version| version.0).collect();
            Ok(session.output.print(&Forgotten { model: model.to_string(), forgotten })?)
        }
        (None, Some(model)) => list_versions(session, &model).await,
        (None, None) => anyhow::bail!("which model's versions?"),
    }
}

/// Lists a model's versions.
///
/// # Errors
/// The control plane's.
async fn list_versions(session: &Session, model: &ModelName) -> anyhow::Result<()> {
    let control = session.client.control();
    let versions = control.versions(model).await?;
    let models = control.models().await?;
    let unknown = || ControlError::Refused(CommandError::UnknownModel { model: model.clone() });
    let summary = models.iter().find(|summary| summary.model == *model).ok_or_else(unknown)?;
    Ok(session.output.print(&Versions::of(summary, versions))?)
}

/// Where a label is now.
#[derive(Debug, Serialize)]
struct Labelled {
    model: String,
    label: String,
    version: Option<u32>,
}

impl Report for Labelled {
    fn text(&self) -> String {
        let Self { model, label, version } = self;
        match version {
            Some(version) => format!("{model}:{label} is {model}@{version}\n"),
            None => format!("{model}:{label} is gone\n"),
        }
    }
}

/// Sets or removes a label.
///
/// # Errors
/// The control plane's.
pub async fn label(session: &Session, command: LabelCommand) -> anyhow::Result<()> {
    let control = session.client.control();
    let labelled = match command {
        LabelCommand::Set { version, label } => {
            control.set_label(version.clone(), label.clone()).await?;
            let (model, version) = (version.model.to_string(), Some(version.version.0));
            Labelled { model, label: label.to_string(), version }
        }
        LabelCommand::Remove { model, label } => {
            control.remove_label(&model, label.clone()).await?;
            Labelled { model: model.to_string(), label: label.to_string(), version: None }
        }
    };
    Ok(session.output.print(&labelled)?)
}

#[cfg(test)]
mod tests {
    use roost_protocol::Digest;

    use super::*;
    use crate::example;

    fn summary() -> ModelSummary {
        ModelSummary {
            model: example::digits(),
            traffic: Traffic { previous: Some(Version(3)), ..example::traffic() },
            versions: 4,
            labels: [(Label::new("prod").unwrap(), Version(1))].into(),
        }
    }

    #[test]
    fn models_are_listed() {
        let models = Models::of(vec![summary()]);
        expect_test::expect![[r#"
            MODEL   STABLE  CANARY  VERSIONS  REVISION  LABELS
            digits  @1      @2 20%         4         3  prod=@1
        "#]]
        .assert_eq(&models.text());
        expect_test::expect![[r#"
            [
              {
                "model": "digits",
                "stable": 1,
                "canary": {
                  "version": 2,
                  "share_percent": 20.0
                },
                "revision": 3,
                "versions": 4,
                "labels": {
                  "prod": 1
                }
              }
            ]"#]]
        .assert_eq(&serde_json::to_string_pretty(&models).unwrap());
        assert!(Models::of(Vec::new()).text().starts_with("no models yet"));
    }

    #[test]
    fn versions_are_listed_with_their_part() {
        let version = |number: u32| VersionSummary {
            version: Version(number),
            digest: Digest::of(&[number as u8]),
            bytes: 1_500 * u64::from(number),
            pushed_by: "anna".to_owned(),
            pushed_at_ms: 1_770_091_506_789,
            note: if number == 2 { "a net\nof two lines" } else { "" }.to_owned(),
        };
        let versions = Versions::of(&summary(), (1..=4).map(version).collect());
        expect_test::expect![[r#"
            VERSION   ROLE      TRAFFIC  LABELS  PUSHED                BY        SIZE  DIGEST        NOTE
            digits@1  stable        80%  prod    2026-02-03T04:05:06Z  anna  1.46 KiB  4bf5122f3445
            digits@2  canary        20%          2026-02-03T04:05:06Z  anna  2.93 KiB  dbc1b4c900ff  a net of two lines
            digits@3  previous       0%          2026-02-03T04:05:06Z  anna  4.39 KiB  084fed08b978
            digits@4                             2026-02-03T04:05:06Z  anna  5.86 KiB  e52d9c508c50
        "#]].assert_eq(&versions.text());
        expect_test::expect![[r#"
            {
              "version": "digits@2",
              "number": 2,
              "traffic_percent": 20.0,
              "role": "canary",
              "labels": [],
              "pushed_at": "2026-02-03T04:05:06Z",
              "pushed_by": "anna",
              "bytes": 3000,
              "digest": "dbc1b4c900ffe48d575b5da5c638040125f65db0fe3e24494b76ea986457d986",
              "note": "a net\nof two lines"
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&versions.0[1]).unwrap());
    }
}
