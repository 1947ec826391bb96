//! Samples of every error that travels.

use roost_protocol::error::{CommandError, ControlError, InferError};
use roost_protocol::frame::Kind;
use roost_protocol::ids::{ClusterId, ClusterName, Incarnation, NodeId, Revision, Version};
use roost_protocol::messages::control::{ControlResponse, Hello};

use super::infer::trailer;
use super::state::{cluster, epoch, label, model, model_version, node_name};
use super::{Sample, bare, each, framed};

/// Every error of the data plane, in the trailer that carries it.
pub fn infer() -> Vec<Sample> {
    each(infer_errors(), |name, error| trailer(name, Some(error)))
}

/// Every error of the control plane.
pub fn control() -> Vec<Sample> {
    let mut samples = each(control_errors(), bare);
    samples.extend(each(command_errors(), bare));
    let refused = ControlError::Refused(CommandError::NotInitialised);
    samples.push(framed(
        "ControlResponse::Failed/Refused",
        Kind::ControlResponse,
        ControlResponse::Failed(refused.clone()),
    ));
    samples.push(framed("Hello/refused", Kind::Hello, Err::<Hello, _>(refused)));
    samples
}

pub fn infer_errors() -> Vec<InferError> {
    let text = str::to_owned;
    let model = || text("digits");
    vec![
        InferError::UnknownModel { model: model() },
        InferError::UnknownVersion { model: model(), version: 4, hosted: vec![1, 2, 3] },
        InferError::UnknownVersion { model: model(), version: 4, hosted: vec![] },
        InferError::UnknownLabel { model: model(), label: text("prod") },
        InferError::NotHere { model: model(), version: 2, generation: 1, index: 300 },
        InferError::StaleView { model: model(), used: 11, newest: 12, generation: 2 },
        InferError::Unavailable { model: model(), version: 2 },
        InferError::Overloaded { retry_after_us: 2500 },
        InferError::DeadlineExceeded,
        InferError::Cancelled,
        InferError::Stopping,
        InferError::UnknownInput {
            model: text("digits@2"),
            input: text("imgae"),
            inputs: vec![text("image"), text("an input with a name beyond the inline ones")],
        },
        InferError::MissingInput { model: text("digits@2"), input: text("image") },
        InferError::DuplicateInput { input: text("image") },
        InferError::UnknownOutput {
            model: text("digits@2"),
            output: text("logit"),
            outputs: vec![text("logits")],
        },
        InferError::WrongDType { input: text("image"), expected: text("f32"), actual: text("i64") },
        InferError::WrongShape {
            input: text("image"),
            expected: text("[rows, 784]"),
            actual: text("[2, 783]"),
        },
        InferError::RowsDiffer { input: text("mask"), expected: 8, actual: 7 },
        InferError::LimitExceeded { what: text("rows"), max: 1024, actual: 4096 },
        InferError::Malformed { what: text("the archive's root") },
        InferError::Unsupported { field: text("tensor source"), code: 7 },
        InferError::ExecutorFailed { reason: text("it panicked") },
        InferError::ModelFailed { reason: text("index out of range") },
        InferError::Forbidden { needed: text("client") },
        InferError::Unreachable { node: text("127.0.0.1:7400"), reason: text("timed out") },
    ]
}

fn cluster_name(name: &str) -> ClusterName {
    ClusterName::new(name).expect("a name")
}

fn control_errors() -> Vec<ControlError> {
    let text = str::to_owned;
    vec![
        ControlError::Refused(CommandError::NoRollout { model: model() }),
        ControlError::NotLeader { leader: Some(text("127.0.0.1:7300")) },
        ControlError::NotLeader { leader: None },
        ControlError::NoQuorum { reason: text("one of three answers") },
        ControlError::NotCoordinator { coordinators: vec![text("127.0.0.1:7300"), text("127.0.0.1:7301")] },
        ControlError::Forbidden { needed: text("operator"), name: text("anna"), roles: text("client") },
        ControlError::WrongCluster { ours: cluster(), theirs: ClusterId(2) },
        ControlError::ForeignCertificate { ours: cluster_name("demo"), theirs: cluster_name("prod") },
        ControlError::WrongNode { name: node_name("a") },
        ControlError::DigestMismatch { file: text("model.onnx"), expected: text("aa"), actual: text("bb") },
        ControlError::NoBundle { digest: text("aa") },
        ControlError::NotReserved { file: text("model.onnx") },
        ControlError::NotReady { version: model_version(1), ready: 1, needed: 2 },
        ControlError::LimitExceeded { what: text("watches of one connection"), max: 16, actual: 17 },
        ControlError::Malformed { what: text("bytes left over") },
        ControlError::Storage { reason: text("no space left") },
        ControlError::Unreachable { node: text("127.0.0.1:7300"), reason: text("timed out") },
        ControlError::MembersNotReady { reason: text("d lacks 3 bundles") },
        ControlError::MembersRefused { reason: text("nobody would vote") },
        ControlError::Outlived { known: Incarnation(9), reported: Incarnation(4) },
    ]
}

fn command_errors() -> Vec<CommandError> {
    let text = str::to_owned;
    vec![
        CommandError::UnknownModel { model: model() },
        CommandError::UnknownVersion { version: model_version(9) },
        CommandError::UnknownLabel { model: model(), label: label() },
        CommandError::RolloutInProgress { model: model(), target: Version(2) },
        CommandError::NoRollout { model: model() },
        CommandError::AlreadyStable { version: model_version(1) },
        CommandError::NothingToUndo { model: model() },
        CommandError::BadSteps { steps: text("20%,10%") },
        CommandError::RevisionMismatch { model: model(), planned: Revision(11), actual: Revision(12) },
        CommandError::NotReady { version: model_version(2), ready: 1, needed: 2 },
        CommandError::NotReserved { digest: text("aa") },
        CommandError::TooFewHolders { holders: 1, voters: 3, quorum: 2 },
        CommandError::BadManifest { reason: text("limits.rows_max is 0") },
        CommandError::LimitExceeded { what: text("models"), max: 4096, actual: 4097 },
        CommandError::NameTaken { name: node_name("a") },
        CommandError::IdTaken { node: NodeId(7), name: node_name("a") },
        CommandError::UnknownNode { name: NodeId(7).to_string() },
        CommandError::AlreadyInitialised { cluster: cluster() },
        CommandError::NotInitialised,
        CommandError::RequestTooOld { sent: epoch(7), oldest: epoch(300), present: epoch(90_000) },
        CommandError::LevelTooLow { needed: 2, level: 1 },
    ]
}
