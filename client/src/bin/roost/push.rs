//! `roost push`: makes a folder a model's next version.

use std::io::IsTerminal as _;
use std::path::PathBuf;

use clap::Args;
use indicatif::{HumanBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};
use roost_client::bundle::LocalBundle;
use roost_client::control::{PushProgress, Pushed};
use roost_protocol::ModelName;
use serde::Serialize;

use crate::output::Report;
use crate::session::Session;

/// The line of progress.
const PROGRESS: &str = "{msg} {bar:24} {bytes} of {total_bytes}, {bytes_per_sec}";

/// A push.
#[derive(Debug, Args)]
#[command(after_help = "\
FOLDER holds model.onnx, model.toml if there is one, and files of external data. Subfolders and names
that start with a dot are left out. The first version of a model serves all its traffic at once; every
other waits for `roost rollout start`.

Example:
  roost push digits models/digits/v2 --note \"a convolutional net, 98.7 %\"")]
pub struct PushArguments {
    /// The model; made if there is none of the name
    model: ModelName,
    /// The folder
    folder: PathBuf,
    /// A text that is kept with the version
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    note: String,
    /// Makes another version even if the model has one of this very bundle
    #[arg(long)]
    new_version: bool,
}

/// What a push led to.
#[derive(Debug, Serialize)]
struct PushReport {
    version: String,
    model: String,
    number: u32,
    stable: bool,
    existing: bool,
    digest: String,
    bytes: u64,
}

impl PushReport {
    fn of(model: &ModelName, bundle: &LocalBundle, pushed: Pushed) -> Self {
        let files = bundle.files();
        Self {
            version: format!("{model}@{}", pushed.version),
            model: model.to_string(),
            number: pushed.version.0,
            stable: pushed.stable,
            existing: pushed.existing,
            digest: files.digest().to_string(),
            bytes: files.bytes(),
        }
    }
}

impl Report for PushReport {
    fn text(&self) -> String {
        let Self { version, model, .. } = self;
        let serves = if self.existing {
            "it is there already, made of this very bundle; --new-version makes another".to_owned()
        } else if self.stable {
            format!("it is the first of {model} and takes all its traffic as soon as it is loaded")
        } else {
            format!("it takes no traffic yet; next: roost rollout start {version} --steps 20%")
        };
        format!("{version} ({}): {serves}\n", HumanBytes(self.bytes))
    }
}

/// Carries the command out.
///
/// # Errors
/// When the folder is no bundle, or the cluster does not take it.
pub async fn run(session: &Session, arguments: PushArguments) -> anyhow::Result<()> {
    let PushArguments { model, folder, note, new_version } = arguments;
    let bundle = LocalBundle::open(folder).await?;
    if !bundle.left_out().is_empty() {
        eprintln!("left out: {}", bundle.left_out().join(", "));
    }
    let bar = progress_bar(bundle.files().bytes());
    let (control, tell) = (session.client.control(), |progress| match progress {
        PushProgress::Uploading { to, sent, of: _ } => {
            bar.set_message(format!("uploading to {to}"));
            bar.set_position(sent);
        }
        PushProgress::Committing => bar.set_message("the coordinators copy and commit it"),
    });
    let pushed = if new_version {
        control.push_new_version(&model, &bundle, &note, tell).await
    } else {
        control.push(&model, &bundle, &note, tell).await
    };
    bar.finish_and_clear();
    Ok(session.output.print(&PushReport::of(&model, &bundle, pushed?))?)
}

/// On a terminal only: a log is no place for it.
fn progress_bar(bytes: u64) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let style = ProgressStyle::with_template(PROGRESS);
    let bar = ProgressBar::with_draw_target(Some(bytes), target);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use roost_protocol::Version;

    use super::*;

    fn report(stable: bool) -> PushReport {
        let files: BTreeMap<_, _> = [("model.onnx".to_owned(), vec![7u8; 3_000].into())].into();
        let bundle = LocalBundle::from_bytes(files).unwrap();
        PushReport::of(
            &ModelName::new("digits").unwrap(),
            &bundle,
            Pushed { version: Version(2), stable, existing: false },
        )
    }

    #[test]
    fn a_push_says_whether_the_version_serves() {
        expect_test::expect![[r#"
            digits@2 (2.93 KiB): it takes no traffic yet; next: roost rollout start digits@2 --steps 20%
            digits@2 (2.93 KiB): it is the first of digits and takes all its traffic as soon as it is loaded
        "#]]
        .assert_eq(&(report(false).text() + &report(true).text()));
        let json = serde_json::to_value(report(true)).unwrap();
        assert_eq!((&json["version"], &json["stable"]), (&"digits@2".into(), &true.into()));
    }

    #[test]
    fn the_line_of_progress_is_well_formed() {
        ProgressStyle::with_template(PROGRESS).unwrap();
    }
}
