//! Where requests find the versions that serve here, what was counted of them, and what is reported of them.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use ractor::ActorRef;
use roost_protocol::manifest::EngineChoice;
use roost_protocol::messages::control::VersionStatistics;
use roost_protocol::messages::infer::Choice;
use roost_protocol::view::{Stage, VersionReport};
use roost_protocol::{InferError, ModelVersion, Version};
use tokio::sync::watch;

use super::hosted::Message;
use super::plan::Plan;

/// A version that takes requests.
#[derive(Debug)]
pub struct Route {
    /// Its actor.
    pub actor: ActorRef<Message>,
    /// What it asks of requests.
    pub plan: Arc<Plan>,
    /// What is counted of it.
    pub counters: Arc<Counters>,
    /// Requests that it has in flight.
    pub in_flight: Arc<AtomicUsize>,
    /// Requests that ever came; gives each its place.
    pub arrivals: AtomicU64,
}

/// By the model's name as text, so that a lookup needs no owned name.
type ByName = BTreeMap<Box<str>, BTreeMap<Version, Arc<Route>>>;

/// The versions that take requests.
#[derive(Debug, Default)]
pub struct Routes {
    routes: RwLock<ByName>,
    counters: Mutex<BTreeMap<ModelVersion, Arc<Counters>>>,
}

impl Routes {
    /// The route to a version.
    pub fn find(&self, model: &str, version: Version) -> Option<Arc<Route>> {
        let routes = self.routes.read().unwrap_or_else(PoisonError::into_inner);
        routes.get(model)?.get(&version).cloned()
    }

    /// A version takes requests.
    pub fn insert(&self, version: &ModelVersion, route: Arc<Route>) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        routes.entry(version.model.as_str().into()).or_default().insert(version.version, route);
    }

    /// A version takes no requests any more.
    pub fn remove(&self, version: &ModelVersion) {
        let mut routes = self.routes.write().unwrap_or_else(PoisonError::into_inner);
        if let Some(versions) = routes.get_mut(version.model.as_str()) {
            versions.remove(&version.version);
            if versions.is_empty() {
                routes.remove(version.model.as_str());
            }
        }
    }

    /// No version takes requests any more.
    pub fn clear(&self) {
        self.routes.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// What is counted of a version, from zero if nothing was yet.
    pub fn counters(&self, version: &ModelVersion) -> Arc<Counters> {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.entry(version.clone()).or_default().clone()
    }

    /// Forgets what was counted of versions that are wanted no more.
    pub fn forget(&self, keep: impl Fn(&ModelVersion) -> bool) {
        let mut counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        counters.retain(|version, _| keep(version));
    }

    /// What was counted.
    pub fn statistics(&self) -> Vec<VersionStatistics> {
        let counters = self.counters.lock().unwrap_or_else(PoisonError::into_inner);
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let statistics = |(version, counters): (&ModelVersion, &Arc<Counters>)| VersionStatistics {
            version: version.clone(),
            answered: read(&counters.answered),
            failed: read(&counters.failed),
            fallbacks: read(&counters.fallbacks),
        };
        counters.iter().map(statistics).collect()
    }
}

/// What is counted of one version since the process started.
#[derive(Debug, Default)]
pub struct Counters {
    answered: AtomicU64,
    failed: AtomicU64,
    fallbacks: AtomicU64,
}

impl Counters {
    /// Counts an answer to a request whose version was picked so.
    pub fn count_answer(&self, choice: Choice) {
        self.answered.fetch_add(1, Ordering::Relaxed);
        match choice {
            Choice::Split | Choice::Pinned => {}
            Choice::Fallback => {
                self.fallbacks.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Counts a failure if the version is to blame for it. What the caller got wrong, what found no room or another way,
    /// and what was cancelled says nothing about the version.
    pub fn count_failure(&self, error: &InferError) {
        let is_the_versions = match error {
            InferError::ModelFailed { .. }
            | InferError::ExecutorFailed { .. }
            | InferError::DeadlineExceeded => true,
            InferError::UnknownModel { .. }
            | InferError::UnknownVersion { .. }
            | InferError::UnknownLabel { .. }
            | InferError::NotHere { .. }
            | InferError::StaleView { .. }
            | InferError::Unavailable { .. }
            | InferError::Overloaded { .. }
            | InferError::Cancelled
            | InferError::Stopping
            | InferError::UnknownInput { .. }
            | InferError::MissingInput { .. }
            | InferError::DuplicateInput { .. }
            | InferError::UnknownOutput { .. }
            | InferError::WrongDType { .. }
            | InferError::WrongShape { .. }
            | InferError::RowsDiffer { .. }
            | InferError::LimitExceeded { .. }
            | InferError::Malformed { .. }
            | InferError::Unsupported { .. }
            | InferError::Forbidden { .. }
            | InferError::Unreachable { .. } => false,
        };
        if is_the_versions {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// What the worker reports of its versions, in order of their names.
#[derive(Debug, Default)]
pub struct Board(watch::Sender<Arc<Vec<VersionReport>>>);

impl Board {
    /// The reports as they change.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Vec<VersionReport>>> {
        self.0.subscribe()
    }

    /// Reports a version.
    pub fn set(&self, version: &ModelVersion, stage: Stage, engine: Option<EngineChoice>) {
        let ModelVersion { model, version: number } = version.clone();
        let report = VersionReport { model, version: number, stage, engine };
        self.0.send_if_modified(|reports| match place_of(reports, version) {
            Ok(index) if reports[index] == report => false,
            Ok(index) => {
                Arc::make_mut(reports)[index] = report;
                true
            }
            Err(index) => {
                Arc::make_mut(reports).insert(index, report);
                true
            }
        });
    }

    /// Reports how much of a bundle is here, if its version is still being fetched: a fetch that was given up may have a
    /// last word.
    pub fn set_progress(&self, version: &ModelVersion, bytes: u64, of: u64) {
        self.0.send_if_modified(|reports| match place_of(reports, version) {
            Ok(index) if matches!(reports[index].stage, Stage::Fetching { .. }) => {
                Arc::make_mut(reports)[index].stage = Stage::Fetching { bytes, of };
                true
            }
            Ok(_) | Err(_) => false,
        });
    }

    /// Reports no version any more.
    pub fn clear(&self) {
        self.0.send_replace(Arc::default());
    }

    /// Reports a version no more.
    pub fn remove(&self, version: &ModelVersion) {
        self.0.send_if_modified(|reports| match place_of(reports, version) {
            Ok(index) => {
                Arc::make_mut(reports).remove(index);
                true
            }
            Err(_) => false,
        });
    }
}

fn place_of(reports: &[VersionReport], version: &ModelVersion) -> Result<usize, usize> {
    reports.binary_search_by(|report| (&report.model, report.version).cmp(&(&version.model, version.version)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_board_is_in_order_and_speaks_of_changes_only() {
        let board = Board::default();
        let mut reports = board.subscribe();
        let version = |text: &str| text.parse::<ModelVersion>().unwrap();
        for text in ["b@1", "a@10", "a@2"] {
            board.set(&version(text), Stage::Loading, None);
        }
        let shown = |reports: &watch::Receiver<Arc<Vec<VersionReport>>>| {
            let shown = |report: &VersionReport| {
                format!("{}@{} {}", report.model, report.version, report.stage.name())
            };
            reports.borrow().iter().map(shown).collect::<Vec<_>>()
        };
        assert_eq!(shown(&reports), ["a@2 loading", "a@10 loading", "b@1 loading"]);
        reports.mark_unchanged();
        board.set(&version("a@2"), Stage::Loading, None);
        board.set_progress(&version("a@2"), 1, 2);
        board.set_progress(&version("gone@1"), 1, 2);
        assert!(!reports.has_changed().unwrap());
        board.remove(&version("a@10"));
        board.set(&version("b@1"), Stage::Fetching { bytes: 0, of: 2 }, None);
        board.set_progress(&version("b@1"), 1, 2);
        assert_eq!(shown(&reports), ["a@2 loading", "b@1 fetching"]);
        assert_eq!(reports.borrow()[1].stage, Stage::Fetching { bytes: 1, of: 2 });
    }
}
