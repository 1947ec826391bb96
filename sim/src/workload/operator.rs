//! Operators, who change the registry and race each other, and readers.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use roost_client::Client;
use roost_client::control::PushError;
use roost_protocol::messages::control::{Answer, Change, Outcome, Query};
use roost_protocol::traffic::Weight;
use roost_protocol::{CommandError, ControlError, Epoch, Label, ModelName, ModelVersion, Version};

use super::{Begun, Novelty, Phase, Workload};
use crate::faults::exponential;
use crate::history::{Call, Return};

/// Versions that one model gets at most: enough to roll out, few enough to be checked.
const VERSIONS: u32 = 12;
/// Labels that operators put on versions.
const LABELS: [&str; 2] = ["prod", "test"];
/// Shares that rollouts begin with.
const WEIGHTS: [u16; 5] = [100, 1_000, 3_000, 5_000, 10_000];

/// Changes and reads until faults end.
pub(super) async fn operate(workload: &Workload, client: &Client, host: &str, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut operator = Operator { workload, client, host, pushes: 0 };
    while workload.0.phase.get() == Phase::Safety {
        let model = workload.model(rng.random_range(0..8));
        operator.act(&model, &mut rng).await;
        tokio::time::sleep(exponential(&mut rng, workload.0.load.operate)).await;
    }
    std::future::pending().await
}

/// Reads until the end.
pub(super) async fn read(workload: &Workload, client: &Client, host: &str, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let operator = Operator { workload, client, host, pushes: 0 };
    loop {
        let model = workload.model(rng.random_range(0..8));
        let call = [Call::ReadRollout, Call::ReadRollout, Call::ReadVersions, Call::ReadModel];
        let call = call.choose(&mut rng).cloned().unwrap_or(Call::ReadRollout);
        operator.run(&model, call).await;
        tokio::time::sleep(exponential(&mut rng, workload.0.load.read)).await;
    }
}

/// A client that changes the registry.
pub(super) struct Operator<'a> {
    pub(super) workload: &'a Workload,
    pub(super) client: &'a Client,
    pub(super) host: &'a str,
    pub(super) pushes: u32,
}

impl Operator<'_> {
    async fn act(&mut self, model: &ModelName, rng: &mut StdRng) {
        let view = self.client.published().borrow().view.clone();
        let known = view.as_ref().and_then(|view| view.models.get(model));
        let newest = known.and_then(|model| model.versions.keys().next_back()).map_or(0, |version| version.0);
        if known.is_none() || (rng.random_bool(0.2) && newest < VERSIONS) {
            return self.push(model, rng).await;
        }
        // Sometimes a version that is not there.
        let version = Version(rng.random_range(1..=newest + 2));
        let label = LABELS.choose(rng).copied().unwrap_or("prod");
        let label = Label::new(label).expect("a label");
        let rolls_out = known.is_some_and(|model| model.traffic.canary.is_some());
        let call = match rng.random_range(0..100) {
            0..30 if !rolls_out => {
                let points = WEIGHTS.choose(rng).copied().unwrap_or(1_000);
                let weight = Weight::from_basis_points(points).expect("at most all");
                Call::Start { target: version, weight }
            }
            0..35 => Call::Promote,
            35..50 => Call::Abort,
            50..62 => Call::Undo,
            62..68 => Call::SetLabel { version, label },
            68..72 => Call::RemoveLabel { label },
            72..86 => Call::ReadRollout,
            86..93 => Call::ReadVersions,
            _ => Call::ReadModel,
        };
        self.run(model, call).await;
    }

    async fn push(&mut self, model: &ModelName, rng: &mut StdRng) {
        let replicas = rng.random_range(1..=self.workload.0.load.replicas_max);
        let novelty = if rng.random_bool(0.1) { Novelty::Again } else { Novelty::New };
        let bundle = self.workload.bundle(replicas, novelty);
        self.pushes += 1;
        let note = format!("{}-{}", self.host, self.pushes);
        let call = Call::Push { note: note.clone(), digest: bundle.files().digest() };
        let op = self.workload.0.history.invoke(self.host, model, call);
        let begun = Begun::new(self.workload, op);
        let pushed = self.client.control().push_new_version(model, &bundle, &note, |_| {}).await;
        begun.end(match pushed {
            Ok(pushed) => Some((Return::Pushed { version: pushed.version, stable: pushed.stable }, None)),
            Err(PushError::Control(ControlError::Refused(error))) => Some((Return::Refused(error), None)),
            Err(_) => None,
        });
    }

    /// Runs an operation that is no push.
    pub(super) async fn run(&self, model: &ModelName, call: Call) {
        let op = self.workload.0.history.invoke(self.host, model, call.clone());
        let begun = Begun::new(self.workload, op);
        let version_of = |version| ModelVersion { model: model.clone(), version };
        let change = match call {
            Call::Start { target, weight } => Change::StartRollout { target: version_of(target), weight },
            Call::Promote => Change::Promote { model: model.clone() },
            Call::Abort => Change::Abort { model: model.clone(), reason: "an operator's".to_owned() },
            Call::Undo => Change::Undo { model: model.clone() },
            Call::SetLabel { version, label } => Change::SetLabel { version: version_of(version), label },
            Call::RemoveLabel { label } => Change::RemoveLabel { model: model.clone(), label },
            Call::ReadVersions => return begun.end(self.query(model, Query::Versions(model.clone())).await),
            Call::ReadRollout => return begun.end(self.query(model, Query::Rollout(model.clone())).await),
            Call::ReadModel => return begun.end(self.query(model, Query::Models).await),
            // Goes its own way, with its bundle.
            Call::Push { .. } => return,
        };
        begun.end(match self.client.control().change(change).await {
            Ok(done) => returned(done.outcome).map(|returned| (returned, Some(done.epoch))),
            Err(ControlError::Refused(error)) => Some((Return::Refused(error), None)),
            Err(_) => None,
        });
    }

    async fn query(&self, model: &ModelName, query: Query) -> Option<(Return, Option<Epoch>)> {
        let answer = match self.client.control().query(query).await {
            Ok(answer) => answer,
            Err(ControlError::Refused(error @ CommandError::UnknownModel { .. })) => {
                return Some((Return::Refused(error), None));
            }
            Err(_) => return None,
        };
        let returned = match answer {
            Answer::Versions(versions) => Return::Versions(versions),
            Answer::Rollout(rollout) => Return::Rollout(Box::new(rollout)),
            Answer::Models(models) => {
                Return::Model(models.into_iter().find(|summary| summary.model == *model))
            }
            Answer::Cluster(_) | Answer::Files(_) | Answer::Members(_) | Answer::Level(_) => return None,
        };
        Some((returned, None))
    }
}

fn returned(outcome: Outcome) -> Option<Return> {
    match outcome {
        Outcome::Applied => Some(Return::Applied),
        Outcome::Rerouted { revision } => Some(Return::Rerouted(revision)),
        Outcome::Pushed { version, stable, existing: _ } => Some(Return::Pushed { version, stable }),
        // No operation here asks for a reservation, or has versions forgotten.
        Outcome::Reserved { .. } | Outcome::Forgotten { .. } => None,
    }
}
