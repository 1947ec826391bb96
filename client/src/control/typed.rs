//! Changes and reads by name, with the types that their answers have.

use roost_protocol::messages::control::{
    Answer, Change, ClusterSummary, LevelSummary, MembersSummary, ModelSummary, Outcome, Query,
    RolloutSummary, VersionSummary,
};
use roost_protocol::traffic::Weight;
use roost_protocol::{ControlError, Label, ModelName, ModelVersion, Revision, Version};

use super::Control;

fn other_answer(query: &str) -> ControlError {
    ControlError::Malformed { what: format!("the query for {query} has the answer to another") }
}

impl Control {
    /// All models.
    ///
    /// # Errors
    /// As [`Control::query`].
    pub async fn models(&self) -> Result<Vec<ModelSummary>, ControlError> {
        match self.query(Query::Models).await? {
            Answer::Models(models) => Ok(models),
            Answer::Versions(_)
            | Answer::Rollout(_)
            | Answer::Cluster(_)
            | Answer::Files(_)
            | Answer::Members(_)
            | Answer::Level(_) => Err(other_answer("models")),
        }
    }

    /// A model's versions, in order.
    ///
    /// # Errors
    /// As [`Control::query`].
    pub async fn versions(&self, model: &ModelName) -> Result<Vec<VersionSummary>, ControlError> {
        match self.query(Query::Versions(model.clone())).await? {
            Answer::Versions(versions) => Ok(versions),
            Answer::Models(_)
            | Answer::Rollout(_)
            | Answer::Cluster(_)
            | Answer::Files(_)
            | Answer::Members(_)
            | Answer::Level(_) => Err(other_answer("versions")),
        }
    }

    /// A model's traffic, rollout and history.
    ///
    /// # Errors
    /// As [`Control::query`].
    pub async fn rollout(&self, model: &ModelName) -> Result<RolloutSummary, ControlError> {
        match self.query(Query::Rollout(model.clone())).await? {
            Answer::Rollout(rollout) => Ok(rollout),
            Answer::Models(_)
            | Answer::Versions(_)
            | Answer::Cluster(_)
            | Answer::Files(_)
            | Answer::Members(_)
            | Answer::Level(_) => Err(other_answer("a rollout")),
        }
    }

    /// The cluster as its leader sees it.
    ///
    /// # Errors
    /// As [`Control::query`].
    pub async fn cluster(&self) -> Result<ClusterSummary, ControlError> {
        match self.query(Query::Cluster).await? {
            Answer::Cluster(cluster) => Ok(cluster),
            Answer::Models(_)
            | Answer::Versions(_)
            | Answer::Rollout(_)
            | Answer::Files(_)
            | Answer::Members(_)
            | Answer::Level(_) => Err(other_answer("the cluster")),
        }
    }

    /// Who coordinates, as the leader sees it.
    ///
    /// # Errors
    /// As [`Control::query`].
    pub async fn members(&self) -> Result<MembersSummary, ControlError> {
        match self.query(Query::Members).await? {
            Answer::Members(members) => Ok(members),
            Answer::Models(_)
            | Answer::Versions(_)
            | Answer::Rollout(_)
            | Answer::Cluster(_)
            | Answer::Files(_)
            | Answer::Level(_) => Err(other_answer("the members")),
        }
    }

    /// The level of the replicated state, and who supports which.
    ///
    /// # Errors
    /// As [`Control::query`].
    pub async fn level(&self) -> Result<LevelSummary, ControlError> {
        match self.query(Query::Level).await? {
            Answer::Level(level) => Ok(level),
            Answer::Models(_)
            | Answer::Versions(_)
            | Answer::Rollout(_)
            | Answer::Cluster(_)
            | Answer::Files(_)
            | Answer::Members(_) => Err(other_answer("the level")),
        }
    }

    /// Starts to lead a model's traffic to `target`, from a share of `weight`.
    ///
    /// # Errors
    /// As [`Control::change`].
    pub async fn start_rollout(
        &self,
        target: ModelVersion,
        weight: Weight,
    ) -> Result<Option<Revision>, ControlError> {
        self.reroute(Change::StartRollout { target, weight }).await
    }

    /// Makes the target of the model's rollout the stable version.
    ///
    /// # Errors
    /// As [`Control::change`].
    pub async fn promote(&self, model: &ModelName) -> Result<Option<Revision>, ControlError> {
        self.reroute(Change::Promote { model: model.clone() }).await
    }

    /// Ends the model's rollout: all traffic goes to the stable version.
    ///
    /// # Errors
    /// As [`Control::change`].
    pub async fn abort(&self, model: &ModelName, reason: &str) -> Result<Option<Revision>, ControlError> {
        let reason = roost_protocol::error::reason(reason);
        self.reroute(Change::Abort { model: model.clone(), reason }).await
    }

    /// Makes the stable version before the last promotion the stable one again, once it has replicas. An undo is not
    /// undone by another.
    ///
    /// # Errors
    /// As [`Control::change`].
    pub async fn undo(&self, model: &ModelName) -> Result<Option<Revision>, ControlError> {
        self.reroute(Change::Undo { model: model.clone() }).await
    }

    /// Puts a label on a version.
    ///
    /// # Errors
    /// As [`Control::change`].
    pub async fn set_label(&self, version: ModelVersion, label: Label) -> Result<(), ControlError> {
        self.change(Change::SetLabel { version, label }).await.map(|_| ())
    }

    /// Takes a label away.
    ///
    /// # Errors
    /// As [`Control::change`].
    pub async fn remove_label(&self, model: &ModelName, label: Label) -> Result<(), ControlError> {
        self.change(Change::RemoveLabel { model: model.clone(), label }).await.map(|_| ())
    }

    /// Forgets all but the `keep` newest versions of a model, and those that take traffic, may take it by an undo, or bear
    /// a label. Returns which were forgotten; their bundles are removed where no other version needs them.
    ///
    /// # Errors
    /// As [`Control::change`].
    pub async fn retain(&self, model: &ModelName, keep: u32) -> Result<Vec<Version>, ControlError> {
        match self.change(Change::Retain { model: model.clone(), keep }).await?.outcome {
            Outcome::Forgotten { versions } => Ok(versions),
            Outcome::Applied
            | Outcome::Reserved { .. }
            | Outcome::Pushed { .. }
            | Outcome::Rerouted { .. } => Err(other_answer("versions to be forgotten")),
        }
    }

    /// Makes a change of traffic. The revision that it led to; `None` when the traffic itself did not change
    /// yet, as when a rollout waits for its replicas.
    async fn reroute(&self, change: Change) -> Result<Option<Revision>, ControlError> {
        Ok(match self.change(change).await?.outcome {
            Outcome::Rerouted { revision } => Some(revision),
            Outcome::Applied
            | Outcome::Reserved { .. }
            | Outcome::Pushed { .. }
            | Outcome::Forgotten { .. } => None,
        })
    }
}
