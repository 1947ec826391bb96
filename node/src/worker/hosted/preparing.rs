//! Fetching, checking, loading and warming up: all of it off the request path.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use roost_protocol::error::reason;
use roost_protocol::quic::bundles::{self, BundleStore, BundleStoreError, TransferError};
use roost_protocol::view::{HostedVersion, View};
use roost_protocol::{Digest, NodeId};

use super::{IllegalTransition, Life, LoadFailure, Message, Slot, Task, Worked, tell};
use crate::engine::{Bundle, Session};
use crate::environment::{Executor, Work};
use crate::worker::executor::{self, Died, Loaded};
use crate::worker::lifecycle::{Event, FetchFailure};
use crate::worker::shared::Shared;

/// A fetch reports this often: each report travels to the leader and from there to everyone.
const PROGRESS_REPORTS: u64 = 20;

/// Why there are no checked files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyFailure {
    /// A file is damaged or missing; the damaged one was removed.
    Damaged(String),
    /// The files could not be read.
    Unread(String),
}

impl Life {
    pub(super) fn fetch(&mut self) {
        let work = self.begin_work();
        let (myself, shared, hosted) = (self.myself.clone(), self.shared.clone(), self.hosted.clone());
        let version = self.version.clone();
        self.task = Some(Task(tokio::spawn(async move {
            let mut reported = 0;
            let progress = |bytes: u64, of: u64| {
                let step = bytes.saturating_mul(PROGRESS_REPORTS).checked_div(of).unwrap_or(PROGRESS_REPORTS);
                if step > reported {
                    reported = step;
                    shared.board.set_progress(&version, bytes, of);
                }
            };
            let result = fetch_bundle(&shared, &hosted, progress).await;
            tell(&myself, Message::Worked { work, result: Worked::Fetched(result) });
        })));
    }

    pub(super) fn verify(&mut self) {
        let work = self.begin_work();
        self.fill_slots();
        let hashing = self.slots.iter().find_map(|slot| match slot {
            Slot::Preparing(executor) => Some(executor.clone()),
            Slot::Empty | Slot::Prepared(..) | Slot::Idle(..) | Slot::Busy(_) => None,
        });
        let (myself, shared, hosted) = (self.myself.clone(), self.shared.clone(), self.hosted.clone());
        self.task = Some(Task(tokio::spawn(async move {
            let result = match hashing {
                Some(executor) => read_bundle(shared.cache.store(), &hosted, &*executor).await,
                None => Err(VerifyFailure::Unread("no executor is missing".to_owned())),
            };
            tell(&myself, Message::Worked { work, result: Worked::Verified(result) });
        })));
    }

    pub(super) fn handle_verified(
        &mut self,
        result: Result<Bundle, VerifyFailure>,
    ) -> Result<(), IllegalTransition> {
        match result {
            Ok(bundle) => {
                self.bundle = Some(Arc::new(bundle));
                self.advance(Event::Verified)
            }
            Err(VerifyFailure::Damaged(why)) => self.advance(Event::Damaged(why)),
            Err(VerifyFailure::Unread(why)) => self.advance(Event::VerifyFailed(why)),
        }
    }

    pub(super) fn load(&mut self) {
        let work = self.begin_work();
        self.fill_slots();
        let Some(bundle) = self.bundle.clone() else { return };
        for (index, slot) in self.slots.iter().enumerate() {
            let Slot::Preparing(executor) = slot else { continue };
            let (myself, bundle) = (self.myself.clone(), bundle.clone());
            let environment = &self.shared.environment;
            let (engines, missing) = (environment.engines.clone(), environment.engines_missing.clone());
            let version = self.version.clone();
            let told = move |result: Result<Result<Loaded, LoadFailure>, Died>| {
                let result = Worked::Loaded(index, result.unwrap_or_else(|died| Err(passing(died))));
                tell(&myself, Message::Worked { work, result });
            };
            executor::submit(&**executor, move || executor::load(&engines, &missing, version, &bundle), told);
        }
    }

    pub(super) fn handle_loaded(
        &mut self,
        index: usize,
        result: Result<Loaded, LoadFailure>,
    ) -> Result<(), IllegalTransition> {
        match result {
            Ok(Loaded { engine, plan, session }) => {
                self.engine = Some(engine);
                // The same for each session: it follows from the bundle.
                self.plan.get_or_insert_with(|| Arc::new(plan));
                self.has_session(index, session);
            }
            Err(failure) => return self.advance(Event::LoadFailed(failure)),
        }
        if self.is_preparing() {
            return Ok(());
        }
        // The sessions have what they need of it.
        self.bundle = None;
        self.advance(Event::Loaded)
    }

    pub(super) fn warm_up(&mut self) {
        let work = self.begin_work();
        let Some(plan) = self.plan.clone() else { return };
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let (executor, mut session) = match std::mem::replace(slot, Slot::Empty) {
                Slot::Prepared(executor, session) => (executor, session),
                other @ (Slot::Empty | Slot::Preparing(_) | Slot::Idle(..) | Slot::Busy(_)) => {
                    *slot = other;
                    continue;
                }
            };
            let (myself, plan) = (self.myself.clone(), plan.clone());
            let manifest = self.hosted.manifest.clone();
            let warm = move || {
                executor::warm_up(&mut *session, &plan, &manifest)?;
                Ok(session)
            };
            let told = move |result: Result<Result<Box<dyn Session>, LoadFailure>, Died>| {
                let result = Worked::Warmed(index, result.unwrap_or_else(|died| Err(passing(died))));
                tell(&myself, Message::Worked { work, result });
            };
            executor::submit(&*executor, warm, told);
            *slot = Slot::Preparing(executor);
        }
    }

    pub(super) fn handle_warmed(
        &mut self,
        index: usize,
        result: Result<Box<dyn Session>, LoadFailure>,
    ) -> Result<(), IllegalTransition> {
        match result {
            Ok(session) => self.has_session(index, session),
            Err(failure) => return self.advance(Event::LoadFailed(failure)),
        }
        if self.is_preparing() { Ok(()) } else { self.advance(Event::Warmed) }
    }

    /// Gives up what is under way. Executors that serve go on.
    pub(super) fn abandon(&mut self) {
        self.begin_work();
        self.bundle = None;
        for slot in &mut self.slots {
            if matches!(slot, Slot::Preparing(_) | Slot::Prepared(..)) {
                std::mem::replace(slot, Slot::Empty).retire();
            }
        }
    }

    /// Makes an executor for each slot that has none.
    fn fill_slots(&mut self) {
        for (index, slot) in self.slots.iter_mut().enumerate() {
            if matches!(slot, Slot::Empty) {
                let name = format!("{}/{index}", self.version);
                *slot = Slot::Preparing(self.shared.environment.executors.dedicated(&name, Work::Compute));
            }
        }
    }

    fn has_session(&mut self, index: usize, session: Box<dyn Session>) {
        let slot = &mut self.slots[index];
        if let Slot::Preparing(executor) = slot {
            *slot = Slot::Prepared(executor.clone(), session);
        }
    }

    fn is_preparing(&self) -> bool {
        self.slots.iter().any(|slot| matches!(slot, Slot::Preparing(_)))
    }
}

fn passing(died: Died) -> LoadFailure {
    LoadFailure::Passing(died.reason)
}

async fn fetch_bundle(
    shared: &Shared,
    hosted: &HostedVersion,
    progress: impl FnMut(u64, u64),
) -> Result<(), FetchFailure> {
    let (store, digest) = (shared.cache.store(), &hosted.digest);
    if !holds_all(store, digest).await {
        let view = shared.published.borrow().view.clone();
        let holders = view.map(|view| holders(&view, shared.node)).unwrap_or_default();
        let list = bundles::fetch_list(&shared.links, &holders, digest).await.map_err(fetch_failure)?;
        // Given back when this is given up, too.
        let _room = shared.cache.reserve(&list).await;
        let fetched = bundles::fetch_files(store, &shared.links, &holders, &list, progress).await;
        fetched.map_err(fetch_failure)?;
    }
    shared.cache.touch(*digest).await;
    Ok(())
}

/// Whether the store lists the bundle and has all its files. A list alone is not enough: damaged files are removed.
async fn holds_all(store: &BundleStore, digest: &Digest) -> bool {
    match store.list(digest).await {
        Ok(list) => matches!(store.missing(&list).await, Ok(missing) if missing.is_empty()),
        Err(_) => false,
    }
}

/// The coordinators, each worker beginning with another, so that a push does not load one of them alone.
fn holders(view: &View, node: NodeId) -> Vec<String> {
    let mut holders: Vec<_> = view.coordinators.values().map(|holder| holder.address.clone()).collect();
    if !holders.is_empty() {
        let first = (node.0 % holders.len() as u64) as usize;
        holders.rotate_left(first);
    }
    holders
}

fn fetch_failure(error: TransferError) -> FetchFailure {
    let why = reason(&error);
    match error {
        TransferError::Damaged { .. }
        | TransferError::Store(BundleStoreError::DigestMismatch { .. } | BundleStoreError::Size { .. }) => {
            FetchFailure::Damaged(why)
        }
        TransferError::Store(
            BundleStoreError::Store(_)
            | BundleStoreError::DamagedList { .. }
            | BundleStoreError::Missing(_)
            | BundleStoreError::Stalled { .. },
        )
        | TransferError::Stream(_)
        | TransferError::Refused(_)
        | TransferError::WrongAnswer => FetchFailure::Unreachable(why),
        TransferError::NoHolder { .. } => FetchFailure::Nowhere(why),
    }
}

/// Reads a bundle. Its bytes are hashed on the executor that will load it: that may take seconds.
async fn read_bundle(
    store: &BundleStore,
    hosted: &HostedVersion,
    executor: &dyn Executor,
) -> Result<Bundle, VerifyFailure> {
    let failure = |error: BundleStoreError| match error {
        BundleStoreError::DigestMismatch { .. }
        | BundleStoreError::Size { .. }
        | BundleStoreError::DamagedList { .. }
        | BundleStoreError::Missing(_) => VerifyFailure::Damaged(reason(error)),
        BundleStoreError::Store(_) | BundleStoreError::Stalled { .. } => VerifyFailure::Unread(reason(error)),
    };
    let list = store.list(&hosted.digest).await.map_err(failure)?;
    let mut files: BTreeMap<String, Bytes> = BTreeMap::new();
    for file in list.files() {
        let bytes = store.read_unchecked(file).await.map_err(failure)?;
        let hashed = bytes.clone();
        let actual = executor.run(move || Digest::of(&hashed)).await;
        let actual = actual.ok_or_else(|| VerifyFailure::Unread("the executor died".to_owned()))?;
        if actual != file.digest && !roost_protocol::KnownBug::SkipDigestCheck.is_in() {
            store.discard(file).await.map_err(failure)?;
            let (file, expected) = (file.name.clone(), file.digest);
            return Err(failure(BundleStoreError::DigestMismatch { file, expected, actual }));
        }
        files.insert(file.name.clone(), bytes);
    }
    Ok(Bundle { files, manifest: hosted.manifest.clone(), digest: Some(hosted.digest) })
}

#[cfg(test)]
mod tests {
    use roost_protocol::view::Coordinator;
    use roost_protocol::{ClusterId, Epoch, NodeName};

    use super::*;

    #[test]
    fn each_worker_begins_with_another_holder() {
        let coordinator = |id: u64| {
            let name = NodeName::new(&format!("c{id}")).unwrap();
            (NodeId(id), Coordinator { name, address: format!("c{id}:1"), voter: true })
        };
        let mut view = View {
            cluster: ClusterId(1),
            epoch: Epoch::default(),
            coordinators: (0..3).map(coordinator).collect(),
            nodes: BTreeMap::new(),
            models: BTreeMap::new(),
        };
        assert_eq!(holders(&view, NodeId(3)), ["c0:1", "c1:1", "c2:1"]);
        assert_eq!(holders(&view, NodeId(5)), ["c2:1", "c0:1", "c1:1"]);
        view.coordinators.clear();
        assert!(holders(&view, NodeId(5)).is_empty());
    }
}
