//! A push: reserve, upload to the coordinator that leads, commit.
//!
//! Each step may fail because the leader changed. The push then starts over; only files that the next
//! coordinator lacks are sent again.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rand_chacha::rand_core::Rng as _;
use roost_protocol::bundle::BundleFile;
use roost_protocol::messages::control::{Change, Outcome};
use roost_protocol::quic::bundles::{TransferError, upload};
use roost_protocol::{CommandError, ControlError, ModelName, Version};
use tokio::time::Instant;

use super::search::Search;
use super::{Control, DEADLINE_MS, Ticket};
use crate::backoff::{Backoff, Jitter};
use crate::bundle::LocalBundle;

/// Times that a push starts over. With the waits between and the ten seconds of each step it outlasts several
/// elections.
const ROUNDS_MAX: u32 = 10;
/// What a commit may take beside the copies: verification and fsync on a quorum.
const COMMIT_MS_BASE: u64 = 30_000;
/// What a commit counts on at least for copies between coordinators: a tenth of a slow disk.
const COMMIT_BYTES_PER_MS: u64 = 8 << 10;

/// What a push led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pushed {
    /// The version that it made.
    pub version: Version,
    /// Whether it is the model's first, and so serves all its traffic.
    pub stable: bool,
    /// Whether it was there before: the model had a version of this bundle.
    pub existing: bool,
}

/// How far a push is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PushProgress {
    /// Bytes are on their way. Starts over at none when a coordinator failed; files that are there already do
    /// not count.
    Uploading {
        /// The coordinator.
        to: String,
        /// Bytes that were sent there.
        sent: u64,
        /// Bytes of the whole bundle.
        of: u64,
    },
    /// The coordinators copy the bundle among themselves and agree on the version.
    Committing,
}

/// Why a push did not make a version.
#[derive(Debug, thiserror::Error)]
pub enum PushError {
    /// A file of the bundle cannot be read any more.
    #[error("cannot read {file}: {source}")]
    Read {
        /// The file.
        file: String,
        /// The operating system's error.
        source: io::Error,
    },
    /// The bytes did not arrive.
    #[error("the upload failed: {0}")]
    Transfer(TransferError),
    /// The control plane did not agree.
    #[error(transparent)]
    Control(#[from] ControlError),
}

impl PushError {
    /// Whether starting over may help.
    fn retryable(&self) -> bool {
        match self {
            Self::Read { .. } => false,
            Self::Control(ControlError::Refused(error)) => {
                matches!(error, CommandError::NotReserved { .. } | CommandError::TooFewHolders { .. })
            }
            Self::Control(error) => error.retryable(),
            // Another coordinator's disk may be sound.
            Self::Transfer(TransferError::Refused(ControlError::Storage { .. })) => true,
            // Also a coordinator that did not apply the reservation yet.
            Self::Transfer(TransferError::Refused(error)) => error.retryable(),
            Self::Transfer(TransferError::Stream(_)) => true,
            Self::Transfer(
                TransferError::Store(_)
                | TransferError::WrongAnswer
                | TransferError::NoHolder { .. }
                | TransferError::Damaged { .. },
            ) => false,
        }
    }
}

impl Control {
    /// Makes a bundle the model's next version, unless it has one of this bundle already. `note` is kept with it.
    ///
    /// # Errors
    /// [`PushError`]; no version was made then, unless the error is a retryable one of the commit: nobody can
    /// tell then, and `versions` shows it.
    pub async fn push(
        &self,
        model: &ModelName,
        bundle: &LocalBundle,
        note: &str,
        progress: impl FnMut(PushProgress) + Send,
    ) -> Result<Pushed, PushError> {
        self.push_as(model, bundle, (note, false), progress).await
    }

    /// As [`Control::push`], but makes a version also where the model has one of this bundle already.
    ///
    /// # Errors
    /// As [`Control::push`].
    pub async fn push_new_version(
        &self,
        model: &ModelName,
        bundle: &LocalBundle,
        note: &str,
        progress: impl FnMut(PushProgress) + Send,
    ) -> Result<Pushed, PushError> {
        self.push_as(model, bundle, (note, true), progress).await
    }

    async fn push_as(
        &self,
        model: &ModelName,
        bundle: &LocalBundle,
        version: (&str, bool),
        mut progress: impl FnMut(PushProgress) + Send,
    ) -> Result<Pushed, PushError> {
        let (mut round, mut commit) = (0, self.ticket());
        loop {
            let error = match self.push_once(model, bundle, version, commit, &mut progress).await {
                Ok(pushed) => return Ok(pushed),
                Err(error) => error,
            };
            // A refusal is kept as the outcome of its request, so only another one can succeed. Any other
            // error leaves open whether the commit was made: the same request finds out, and never makes a
            // second version.
            if matches!(error, PushError::Control(ControlError::Refused(_))) {
                commit = self.ticket();
            } else {
                commit.fresh = false;
            }
            round += 1;
            if round == ROUNDS_MAX || !error.retryable() {
                return Err(error);
            }
            tracing::info!(%model, %error, round, "the push starts over");
            let jitter = self.draw(|rng| Jitter::new(rng.next_u64()));
            tokio::time::sleep(Backoff::OF_REQUESTS.after(round, jitter)).await;
        }
    }

    async fn push_once(
        &self,
        model: &ModelName,
        bundle: &LocalBundle,
        (note, new_version): (&str, bool),
        commit: Ticket,
        progress: &mut (impl FnMut(PushProgress) + Send),
    ) -> Result<Pushed, PushError> {
        let files = bundle.files();
        let search = Search::new(Instant::now() + Duration::from_millis(DEADLINE_MS), self.leader());
        let reserve = Change::ReservePush { files: files.clone() };
        let (_, reserved_at) = self.change_by(search, self.ticket(), reserve).await?;
        let to = self.leading_address().await.unwrap_or(reserved_at);

        let (mut sent, of) = (0, files.bytes());
        progress(PushProgress::Uploading { to: to.clone(), sent, of });
        let unreadable = Mutex::new(None);
        let read = |file: BundleFile, offset: u64, bytes: u64| {
            let unreadable = &unreadable;
            async move {
                bundle.read(&file.name, offset, bytes).await.map_err(|error| {
                    let kind = error.kind();
                    *unreadable.lock().unwrap_or_else(PoisonError::into_inner) = Some((file.name, error));
                    kind.into()
                })
            }
        };
        let uploaded = upload(&self.shared.bundles, &to, files, read, |bytes| {
            sent += bytes;
            progress(PushProgress::Uploading { to: to.clone(), sent, of });
        });
        if let Err(error) = uploaded.await {
            return Err(match unreadable.into_inner().unwrap_or_else(PoisonError::into_inner) {
                Some((file, source)) => PushError::Read { file, source },
                None => PushError::Transfer(error),
            });
        }

        progress(PushProgress::Committing);
        let limit = Duration::from_millis(COMMIT_MS_BASE + of / COMMIT_BYTES_PER_MS);
        let search = Search::new(Instant::now() + limit, Some(to)).with_attempts_up_to(limit);
        let change = Change::CommitPush {
            model: model.clone(),
            digest: files.digest(),
            manifest: Box::new(bundle.manifest().clone()),
            note: note.to_owned(),
            new_version,
        };
        match self.change_by(search, commit, change).await?.0.outcome {
            Outcome::Pushed { version, stable, existing } => Ok(Pushed { version, stable, existing }),
            Outcome::Applied
            | Outcome::Reserved { .. }
            | Outcome::Rerouted { .. }
            | Outcome::Forgotten { .. } => {
                let what = "a push was answered by another change's outcome".to_owned();
                Err(ControlError::Malformed { what }.into())
            }
        }
    }

    /// The address of the leader: a follower may have passed the reservation on, but the commit needs the
    /// bundle there.
    async fn leading_address(&self) -> Option<String> {
        let leader = self.cluster().await.ok()?.leader;
        let published = self.shared.published.borrow();
        published.view.as_ref()?.coordinators.get(&leader).map(|coordinator| coordinator.address.clone())
    }
}
