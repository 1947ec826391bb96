//! What a failed command says: what went wrong, with its causes, and what to do about it.

use std::io;
use std::process::ExitCode;

use roost_client::ConnectError;
use roost_client::bundle::LocalBundleError;
use roost_client::control::PushError;
use roost_protocol::quic::bundles::TransferError;
use roost_protocol::{ControlError, InferError};

use crate::profile::ProfileError;

/// The command line or the profile is wrong: nothing was tried.
const USAGE: u8 = 2;
/// The command was tried and did not succeed.
const FAILED: u8 = 1;

/// Something that the command line asks for and that makes no sense.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Usage(String);

/// What the command line asks for makes no sense.
pub fn usage(text: impl Into<String>) -> anyhow::Error {
    Usage(text.into()).into()
}

/// Says why a command failed, on standard error, and gives its exit code.
pub fn tell(error: &anyhow::Error) -> ExitCode {
    if reader_is_gone(error) {
        return ExitCode::SUCCESS;
    }
    eprintln!("roost: {}", text(error));
    if let Some(hint) = hint(error) {
        eprintln!("  {hint}");
    }
    ExitCode::from(if is_usage(error) { USAGE } else { FAILED })
}

/// Whether whoever reads the output, such as `head`, has read enough. That is no failure.
fn reader_is_gone(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

fn is_usage(error: &anyhow::Error) -> bool {
    error.is::<Usage>() || error.is::<ProfileError>()
}

/// The error and its causes. Those that the text ahead of them tells already are left out: many errors print
/// their source.
fn text(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

/// What to do about it, where the error itself does not say.
fn hint(error: &anyhow::Error) -> Option<&'static str> {
    error.chain().find_map(|cause| {
        if let Some(error) = cause.downcast_ref::<ControlError>() {
            of_control(error)
        } else if let Some(error) = cause.downcast_ref::<InferError>() {
            of_infer(error)
        } else if let Some(error) = cause.downcast_ref::<PushError>() {
            of_push(error)
        } else if let Some(error) = cause.downcast_ref::<ConnectError>() {
            of_connect(error)
        } else if let Some(error) = cause.downcast_ref::<LocalBundleError>() {
            of_bundle(error)
        } else {
            cause.downcast_ref::<ProfileError>().map(ProfileError::hint)
        }
    })
}

const SEE_CLUSTER: &str = "`roost cluster status` shows which nodes are heard; try again";

fn of_control(error: &ControlError) -> Option<&'static str> {
    match error {
        // These say themselves what to do.
        ControlError::Refused(_) => None,
        ControlError::NoQuorum { .. }
        | ControlError::NotLeader { .. }
        | ControlError::Unreachable { .. }
        | ControlError::NotCoordinator { .. } => Some(SEE_CLUSTER),
        ControlError::Forbidden { .. } => Some(
            "use a profile with such a certificate, as from `roost certs issue NAME --roles operator,client`",
        ),
        ControlError::WrongCluster { .. }
        | ControlError::ForeignCertificate { .. }
        | ControlError::WrongNode { .. } => {
            Some("`nodes` in the profile names nodes of another cluster than its certificate is for")
        }
        ControlError::DigestMismatch { .. } => Some("a file changed while it was sent; push again"),
        ControlError::NoBundle { .. } | ControlError::NotReserved { .. } => Some("push the bundle again"),
        ControlError::NotReady { .. } => Some("try again once the replicas are ready"),
        ControlError::MembersNotReady { .. } => {
            Some("`roost cluster members list` shows who lags or is silent")
        }
        ControlError::MembersRefused { .. } | ControlError::LimitExceeded { .. } => None,
        // Told to nodes alone.
        ControlError::Outlived { .. } => None,
        ControlError::Storage { .. } => Some("look at that node's log, and at its disk"),
        ControlError::Malformed { .. } => Some("`roost --version` and that of the nodes may differ too much"),
    }
}

fn of_infer(error: &InferError) -> Option<&'static str> {
    match error {
        InferError::UnknownModel { .. } => Some("`roost models` lists the models"),
        InferError::UnknownVersion { .. } | InferError::UnknownLabel { .. } => {
            Some("`roost versions MODEL` lists them; one is hosted while traffic or a label leads to it")
        }
        InferError::Unavailable { .. } => {
            Some("`roost cluster status` shows how far each node is with the version, and why not further")
        }
        InferError::NotHere { .. }
        | InferError::StaleView { .. }
        | InferError::Stopping
        | InferError::ExecutorFailed { .. }
        | InferError::Unreachable { .. } => Some(SEE_CLUSTER),
        InferError::Overloaded { .. } => Some("try again later, or host more replicas"),
        InferError::DeadlineExceeded => Some("--deadline-ms gives it more time"),
        InferError::UnknownInput { .. }
        | InferError::MissingInput { .. }
        | InferError::DuplicateInput { .. } => Some("give each input once, by --input NAME=FILE"),
        InferError::WrongDType { .. } => {
            Some("convert the .npy file, or state the type of a .json file, as in --input ids:i64=ids.json")
        }
        InferError::WrongShape { .. } | InferError::RowsDiffer { .. } => {
            Some("the first axis is usually that of the rows: a single one has the shape [1, ...]")
        }
        InferError::LimitExceeded { .. } => Some("--rows A..B takes fewer rows of each input"),
        InferError::Forbidden { .. } => {
            Some("use a profile with such a certificate, as from `roost certs issue NAME --roles client`")
        }
        InferError::Malformed { .. } | InferError::Unsupported { .. } => {
            Some("`roost --version` and that of the nodes may differ too much")
        }
        // The command line asks for no outputs by name.
        InferError::UnknownOutput { .. } | InferError::ModelFailed { .. } | InferError::Cancelled => None,
    }
}

fn of_push(error: &PushError) -> Option<&'static str> {
    match error {
        PushError::Read { .. } => Some("the folder changed while it was pushed; push again"),
        PushError::Control(error) | PushError::Transfer(TransferError::Refused(error)) => of_control(error),
        PushError::Transfer(TransferError::Stream(_) | TransferError::NoHolder { .. }) => Some(SEE_CLUSTER),
        PushError::Transfer(
            TransferError::Store(_) | TransferError::WrongAnswer | TransferError::Damaged { .. },
        ) => Some("push again; the log of the leading coordinator says more"),
    }
}

fn of_connect(error: &ConnectError) -> Option<&'static str> {
    match error {
        ConnectError::NoView { .. } => {
            Some("does the cluster run, and does `nodes` in the profile name nodes of it that live?")
        }
        ConnectError::Read { .. } | ConnectError::Credentials(_) => {
            Some("ca, certificate and key in the profile name PEM files; `roost certs` makes them")
        }
        ConnectError::NoSeeds | ConnectError::Endpoint(_) | ConnectError::Entropy(_) => None,
    }
}

fn of_bundle(error: &LocalBundleError) -> Option<&'static str> {
    match error {
        LocalBundleError::Read { .. } => {
            Some("FOLDER is a folder with model.onnx, and model.toml if there is one")
        }
        LocalBundleError::Name { .. } | LocalBundleError::Bundle(_) | LocalBundleError::Manifest(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;
    use roost_protocol::{CommandError, ModelName};

    use super::*;

    fn said(error: impl Into<anyhow::Error>) -> String {
        let error = error.into();
        format!("{}\n  {}", text(&error), hint(&error).unwrap_or("-"))
    }

    #[test]
    fn errors_say_what_to_do() {
        let model = ModelName::new("digits").unwrap();
        let refused = ControlError::Refused(CommandError::NoRollout { model });
        expect_test::expect![[r#"
            digits has no rollout in progress; start one with `roost rollout start digits@VERSION`
              -"#]]
        .assert_eq(&said(refused));
        expect_test::expect![[r#"
            the coordinators cannot agree at present: no leader; inference goes on, changes must wait
              `roost cluster status` shows which nodes are heard; try again"#]]
        .assert_eq(&said(ControlError::NoQuorum { reason: "no leader".to_owned() }));
        expect_test::expect![[r#"
            there is no model "x"
              `roost models` lists the models"#]]
        .assert_eq(&said(InferError::UnknownModel { model: "x".to_owned() }));
    }

    #[test]
    fn causes_are_told_once() {
        let missing = || io::Error::new(io::ErrorKind::NotFound, "no such file");
        let bundle = LocalBundleError::Read { path: "folder".into(), source: missing() };
        assert!(said(bundle).starts_with("cannot read folder: no such file\n"));
        let context = Err::<(), _>(missing()).context("cannot read a").unwrap_err();
        assert_eq!(text(&context), "cannot read a: no such file");
    }

    #[test]
    fn what_the_profile_lacks_is_usage() {
        assert!(is_usage(&ProfileError::NoNodes { path: "roost.toml".into() }.into()));
        assert!(is_usage(&usage("no")));
        assert!(!is_usage(&InferError::Cancelled.into()));
    }
}
