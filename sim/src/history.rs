//! What clients did and what came of it: the operations on the registry, and the answers to requests for
//! inference.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use roost_protocol::messages::control::{ModelSummary, RolloutSummary, VersionSummary};
use roost_protocol::traffic::{KeyHash, Weight};
use roost_protocol::{CommandError, Digest, Epoch, Label, ModelName, Revision, Target, Version};

use crate::trace;

/// What a client asked of the registry.
#[derive(Debug, Clone, PartialEq)]
pub enum Call {
    /// A push, told from others by its note.
    Push {
        /// The note.
        note: String,
        /// The bundle.
        digest: Digest,
    },
    /// The start of a rollout.
    Start {
        /// The version that it leads to.
        target: Version,
        /// Its share.
        weight: Weight,
    },
    /// A promotion.
    Promote,
    /// An abort.
    Abort,
    /// An undo.
    Undo,
    /// A label put on a version.
    SetLabel {
        /// The version.
        version: Version,
        /// The label.
        label: Label,
    },
    /// A label taken away.
    RemoveLabel {
        /// The label.
        label: Label,
    },
    /// A read of the versions.
    ReadVersions,
    /// A read of the rollout.
    ReadRollout,
    /// A read of all models, as far as it concerns this one.
    ReadModel,
}

impl Call {
    /// Whether it changes nothing.
    pub fn reads(&self) -> bool {
        match self {
            Self::ReadVersions | Self::ReadRollout | Self::ReadModel => true,
            Self::Push { .. }
            | Self::Start { .. }
            | Self::Promote
            | Self::Abort
            | Self::Undo
            | Self::SetLabel { .. }
            | Self::RemoveLabel { .. } => false,
        }
    }
}

/// What a client was told.
#[derive(Debug, Clone, PartialEq)]
pub enum Return {
    /// A version was made.
    Pushed {
        /// Its number.
        version: Version,
        /// Whether it is the model's first.
        stable: bool,
    },
    /// The traffic is at this revision.
    Rerouted(Revision),
    /// It was done.
    Applied,
    /// The replicated state refused it.
    Refused(CommandError),
    /// The versions.
    Versions(Vec<VersionSummary>),
    /// The rollout.
    Rollout(Box<RolloutSummary>),
    /// The model; none when there is none of the name.
    Model(Option<ModelSummary>),
}

/// An operation on one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Op {
    /// Who asked.
    pub client: String,
    /// The model.
    pub model: ModelName,
    /// What.
    pub call: Call,
    /// When it was asked.
    pub invoked: Duration,
    /// When and how it returned. None: nobody knows whether it was done, or will be.
    pub returned: Option<(Duration, Return)>,
    /// The epoch that it led to, where that was told.
    pub epoch: Option<Epoch>,
}

/// An answer to a request for inference.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Who asked.
    pub client: String,
    /// For what.
    pub target: Target,
    /// For whom, if for anyone.
    pub key: Option<KeyHash>,
    /// When it was asked.
    pub invoked: Duration,
    /// When the answer came.
    pub returned: Duration,
    /// The epoch of the client's view when it asked.
    pub asked_at: Option<Epoch>,
    /// The version that answered.
    pub version: Version,
    /// The traffic revision that it was routed by.
    pub revision: Revision,
    /// The epoch of the answering node's view.
    pub epoch: Epoch,
    /// Whether stable answered in the place of the version picked.
    pub fallback: bool,
    /// The node.
    pub node: String,
    /// The images that were given, by their numbers.
    pub images: Vec<usize>,
    /// What came; a row of probabilities for each image, if all is well.
    pub probs: Vec<f32>,
}

/// Gathers operations and answers. Cloning shares it.
#[derive(Debug, Clone, Default)]
pub struct History(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    ops: Vec<Arc<Op>>,
    answers: Vec<Arc<Answer>>,
    failed: u64,
}

impl History {
    /// An operation is about to begin.
    pub fn invoke(&self, client: &str, model: &ModelName, call: Call) -> Op {
        trace::line(format_args!("{client} calls {call:?} of {model}"));
        Op {
            client: client.to_owned(),
            model: model.clone(),
            call,
            invoked: trace::now(),
            returned: None,
            epoch: None,
        }
    }

    /// An operation returned, or was given up.
    pub fn end(&self, mut op: Op, result: Option<(Return, Option<Epoch>)>) -> Arc<Op> {
        if let Some((result, epoch)) = result {
            op.returned = Some((trace::now(), result));
            op.epoch = epoch;
        }
        let op = Arc::new(op);
        self.lock().ops.push(op.clone());
        op
    }

    /// An answer came.
    pub fn answered(&self, answer: Answer) -> Arc<Answer> {
        let answer = Arc::new(answer);
        self.lock().answers.push(answer.clone());
        answer
    }

    /// A request had no answer.
    pub fn failed(&self) {
        self.lock().failed += 1;
    }

    /// Requests without an answer so far.
    pub fn failures(&self) -> u64 {
        self.lock().failed
    }

    /// The operations that have ended or were given up.
    pub fn ops(&self) -> Vec<Arc<Op>> {
        self.lock().ops.clone()
    }

    /// The answers.
    pub fn answers(&self) -> Vec<Arc<Answer>> {
        self.lock().answers.clone()
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
