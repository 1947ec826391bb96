//! Bundles on the coordinators: a quorum holds one before it becomes a version, and all come to hold it.
//!
//! The store is this coordinator's own. What removes files because nobody needs them ([`sweep`]) never runs while a bundle is
//! judged to be held, and knows which ones are being taken in. A file that is found to be damaged is removed at once, and its
//! bundles are fetched again.

pub(crate) mod sweep;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::{BoxFuture, FutureExt};
use futures::stream::FuturesUnordered;
use futures::{StreamExt, TryStreamExt};
use roost_protocol::bundle::{BundleFile, FileList};
use roost_protocol::error::reason;
use roost_protocol::frame::Kind;
use roost_protocol::quic::bundles;
use roost_protocol::quic::bundles::BundleStoreError;
use roost_protocol::view::{Coordinator, Published};
use roost_protocol::{ControlError, Digest, Epoch, NodeId};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::peer::{LACKS_MAX, PeerRequest, PeerResponse};
use crate::shared::Shared;

/// What a quorum gets to hold a bundle, besides the time that its bytes take at [`REPLICATION_BYTES_PER_S_MIN`].
const REPLICATION: Duration = Duration::from_secs(20);
/// A slow disk on a slow link.
const REPLICATION_BYTES_PER_S_MIN: u64 = 8 << 20;
/// Bundles that are looked for at once: a store on the network answers each within a round trip.
const LOOKS_MAX: usize = 32;
/// Before a second attempt to fetch a bundle; each further one waits twice as long.
const REPAIR_AFTER: Duration = Duration::from_secs(1);
/// A bundle that nobody can give is asked for about once a minute: a holder may come back.
const REPAIR_DOUBLINGS_MAX: u32 = 6;

/// Which bundles are being taken in here, and which were promised.
#[derive(Default)]
pub(crate) struct Keeping {
    /// Held shared while a bundle is judged to be held or sealed, exclusively while what nobody needs is removed. Never over a
    /// transfer, which may last: what it adds is promised or reserved first, and the lock taken once after that, so that a
    /// sweep which does not know of it is over.
    pub files: tokio::sync::RwLock<()>,
    /// Rung when a bundle was lost.
    lost: Notify,
    inner: Mutex<KeepingInner>,
}

#[derive(Default)]
struct KeepingInner {
    /// Who fetches a bundle, so that a retry and a repair do not fetch it too.
    turns: BTreeMap<Digest, Arc<tokio::sync::Mutex<()>>>,
    /// Bundles that a leader was or will be told are held here. It may count on one whose reservation this coordinator has not
    /// applied yet, so they are kept like those of the state.
    promised: BTreeMap<Digest, Promise>,
    /// How many promises were made.
    promises: u64,
    /// Bundles that were held and of which a file turned out to be damaged, until they are looked after.
    lost: BTreeSet<Digest>,
}

/// A bundle that is to be kept, and the number of the last promise to do so.
struct Promise {
    files: FileList,
    number: u64,
}

impl Keeping {
    fn lock(&self) -> MutexGuard<'_, KeepingInner> {
        // Nothing panics while it is held.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Promises to keep a bundle and returns the turn to take it in.
    fn promise(&self, digest: Digest, files: &FileList) -> Arc<tokio::sync::Mutex<()>> {
        let mut inner = self.lock();
        inner.turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        inner.promises += 1;
        let number = inner.promises;
        inner.promised.insert(digest, Promise { files: files.clone(), number });
        inner.turns.entry(digest).or_default().clone()
    }

    /// Has bundles fetched again of which a file was damaged and is removed.
    pub fn lose(&self, bundles: Vec<Digest>) {
        if !bundles.is_empty() {
            self.lock().lost.extend(bundles);
            self.lost.notify_one();
        }
    }

    fn take_lost(&self) -> BTreeSet<Digest> {
        std::mem::take(&mut self.lock().lost)
    }
}

/// Has a quorum of voters hold a bundle; returns those that do.
///
/// # Errors
/// [`ControlError::NoBundle`] when nobody has it, [`ControlError::NoQuorum`] when too few could take it in time.
pub(crate) async fn replicate(
    shared: &Arc<Shared>,
    files: &FileList,
) -> Result<BTreeSet<NodeId>, ControlError> {
    let coordinators = shared.machine.state(|state| state.coordinators().clone());
    let voters: Vec<_> = coordinators.into_iter().filter(|(_, coordinator)| coordinator.voter).collect();
    let quorum = if roost_protocol::KnownBug::HoldersUnderQuorum.is_in() { 1 } else { voters.len() / 2 + 1 };
    let addresses: Vec<String> = voters.iter().map(|(_, coordinator)| coordinator.address.clone()).collect();
    let asks = voters.iter().map(|(id, coordinator)| {
        let held = if *id == shared.node {
            hold_here(shared, files, addresses.clone())
        } else {
            ask_to_hold(shared, *id, coordinator, files, addresses.clone()).boxed()
        };
        held.map(|held| (*id, held))
    });
    let mut asks: FuturesUnordered<_> = asks.collect();
    let deadline = Instant::now() + patience(files);
    let (mut holders, mut failures) = (BTreeSet::new(), Vec::new());
    // While one set of voters replaces another, a quorum of each must hold it.
    let sets = shared.machine.state(|state| state.voters().to_vec());
    let suffice = |holders: &BTreeSet<NodeId>| {
        let of_each = |set: &BTreeSet<NodeId>| holders.intersection(set).count() > set.len() / 2;
        roost_protocol::KnownBug::HoldersUnderQuorum.is_in() && !holders.is_empty()
            || holders.len() >= quorum && sets.iter().all(of_each)
    };
    while !suffice(&holders) {
        match tokio::time::timeout_at(deadline, asks.next()).await {
            Ok(Some((id, Ok(())))) => {
                holders.insert(id);
            }
            Ok(Some((id, Err(error)))) => failures.push((id, error)),
            Ok(None) | Err(_) => break,
        }
    }
    if suffice(&holders) {
        return Ok(holders);
    }
    let nobody_has_it = holders.is_empty()
        && failures.len() >= quorum
        && failures.iter().all(|(_, error)| matches!(error, ControlError::NoBundle { .. }));
    if nobody_has_it {
        return Err(ControlError::NoBundle { digest: files.digest().to_string() });
    }
    let reasons: Vec<_> = failures.iter().map(|(id, error)| format!("node {id}: {error}")).collect();
    let (held, of) = (holders.len(), voters.len());
    let text = format!("{held} of {of} coordinators hold the bundle; {}", reasons.join("; "));
    Err(ControlError::NoQuorum { reason: reason(text) })
}

/// How long it may take until a bundle is where it should be.
fn patience(files: &FileList) -> Duration {
    REPLICATION + Duration::from_secs(files.bytes() / REPLICATION_BYTES_PER_S_MIN)
}

/// Holds a bundle here, in a task of its own: when a quorum is found without this coordinator, what it has fetched so far is
/// not thrown away.
fn hold_here<'a>(
    shared: &'a Arc<Shared>,
    files: &'a FileList,
    holders: Vec<String>,
) -> BoxFuture<'a, Result<(), ControlError>> {
    let (shared, files) = (shared.clone(), files.clone());
    let task = tokio::spawn(async move { hold(&shared, &files, &holders).await });
    let ended = |error: tokio::task::JoinError| ControlError::Storage { reason: reason(error) };
    task.map(move |held| held.map_err(ended)?).boxed()
}

async fn ask_to_hold(
    shared: &Shared,
    id: NodeId,
    member: &Coordinator,
    files: &FileList,
    holders: Vec<String>,
) -> Result<(), ControlError> {
    // A holder that is no voter would be counted as one.
    let link = shared.link_to(id, member).await?;
    let request = PeerRequest::Hold { files: files.clone(), holders };
    let answer = link.ask((Kind::RaftRequest, &request), Kind::RaftResponse).await;
    match answer.map_err(|error| error.into_control(&member.address))? {
        PeerResponse::Held => Ok(()),
        PeerResponse::Failed(error) => Err(error),
        PeerResponse::Raft(_)
        | PeerResponse::Probed { .. }
        | PeerResponse::Control(_)
        | PeerResponse::Heard
        | PeerResponse::Lacks(_)
        | PeerResponse::Supports { .. } => {
            Err(ControlError::Malformed { what: "another answer than to a request to hold".to_owned() })
        }
    }
}

/// Which of these bundles this coordinator does not hold.
///
/// # Errors
/// [`ControlError::LimitExceeded`], or the store's.
pub(crate) async fn lacks(shared: &Shared, bundles: &[Digest]) -> Result<Vec<Digest>, ControlError> {
    if bundles.len() > LACKS_MAX {
        let what = "bundles in one question".to_owned();
        return Err(ControlError::LimitExceeded {
            what,
            max: LACKS_MAX as u64,
            actual: bundles.len() as u64,
        });
    }
    // What a sweep would remove meanwhile is not held.
    let _files = shared.keeping.files.read().await;
    let looks: Vec<BoxFuture<'_, Result<Option<Digest>, ControlError>>> = bundles
        .iter()
        .map(|digest| {
            let look = async move {
                let held = shared.bundles.holds(digest).await.map_err(BundleStoreError::into_control)?;
                Ok((!held).then_some(*digest))
            };
            look.boxed()
        })
        .collect();
    let found: Vec<Option<Digest>> = futures::stream::iter(looks).buffered(LOOKS_MAX).try_collect().await?;
    Ok(found.into_iter().flatten().collect())
}

/// Makes sure that this coordinator holds a bundle: its files are here already, or fetched from `holders`. That it is listed
/// is not enough: a disk may have lost a file since.
///
/// # Errors
/// [`ControlError::NoBundle`] when nobody has it, others when the transfer or the store fails.
pub(crate) async fn hold(shared: &Shared, files: &FileList, holders: &[String]) -> Result<(), ControlError> {
    let digest = files.digest();
    let turn = shared.keeping.promise(digest, files);
    let _turn = turn.lock().await;
    {
        // Every sweep that begins behind this knows of the promise.
        let _files = shared.keeping.files.read().await;
        if shared.bundles.holds(&digest).await.map_err(BundleStoreError::into_control)? {
            return Ok(());
        }
        // Also where the list alone is missing or damaged.
        match shared.bundles.seal(files).await {
            Ok(()) => return Ok(()),
            Err(BundleStoreError::Missing(_)) => {}
            Err(error) => return Err(error.into_control()),
        }
    }
    let others: Vec<String> = holders.iter().filter(|address| **address != shared.address).cloned().collect();
    let fetched = async {
        let (links, nobody) = (&shared.bundle_links, |_, _| {});
        let list = bundles::fetch_list(links, &others, &digest).await?;
        bundles::fetch_missing(&shared.bundles, links, &others, &list, nobody).await
    };
    match fetched.await {
        Ok(()) => {}
        Err(bundles::TransferError::Store(error)) => return Err(error.into_control()),
        Err(bundles::TransferError::Refused(error)) => return Err(error),
        Err(error @ bundles::TransferError::NoHolder { .. }) => {
            tracing::debug!(%error, "a bundle was not fetched");
            return Err(ControlError::NoBundle { digest: digest.to_string() });
        }
        Err(
            error @ (bundles::TransferError::Stream(_)
            | bundles::TransferError::WrongAnswer
            | bundles::TransferError::Damaged { .. }),
        ) => {
            return Err(ControlError::Unreachable { node: "a holder".to_owned(), reason: reason(error) });
        }
    }
    let _files = shared.keeping.files.read().await;
    shared.bundles.seal(files).await.map_err(BundleStoreError::into_control)
}

/// A small file of a bundle, which is taken in here first if a quorum was found without this coordinator.
///
/// # Errors
/// [`ControlError::NoQuorum`] when it cannot be had here now: another attempt, perhaps at another leader, may read it.
pub(crate) async fn read_here(
    shared: &Shared,
    files: &FileList,
    file: &BundleFile,
) -> Result<Bytes, ControlError> {
    let holders = shared.machine.state(|state| {
        state.coordinators().values().map(|coordinator| coordinator.address.clone()).collect::<Vec<String>>()
    });
    let unread = |error: String| ControlError::NoQuorum {
        reason: reason(format!("the leader cannot read {} of the bundle: {error}", file.name)),
    };
    let held = tokio::time::timeout(patience(files), hold(shared, files, &holders)).await;
    let held = held.map_err(|_| unread("its bytes did not come in time".to_owned()))?;
    held.map_err(|error| unread(error.to_string()))?;
    match shared.bundles.read(file).await {
        Ok(bytes) => Ok(bytes),
        Err(error) => {
            // What is damaged was removed.
            shared.keeping.lose(vec![files.digest()]);
            Err(unread(error.to_string()))
        }
    }
}

/// When a bundle that could not be fetched is asked for again.
struct Attempt {
    failures: u32,
    due: Instant,
}

/// Fetches what versions are made of and this coordinator does not hold, for as long as it lives.
pub(crate) async fn repair(shared: Arc<Shared>) {
    let mut published = shared.published.subscribe();
    let mut held = BTreeSet::new();
    let mut attempts: BTreeMap<Digest, Attempt> = BTreeMap::new();
    loop {
        for lost in shared.keeping.take_lost() {
            held.remove(&lost);
            attempts.remove(&lost);
        }
        let (seen, wanted, holders) = shared.machine.state(|state| {
            let wanted = state.referenced_bundles().filter(|(digest, _)| !held.contains(*digest));
            let wanted: Vec<(Digest, FileList)> = wanted.map(|(d, files)| (*d, files.clone())).collect();
            let holders: Vec<String> = state.coordinators().values().map(|c| c.address.clone()).collect();
            (state.view_epoch(), wanted, holders)
        });
        let now = Instant::now();
        for (digest, files) in wanted {
            if attempts.get(&digest).is_some_and(|attempt| attempt.due > now) {
                continue;
            }
            match hold(&shared, &files, &holders).await {
                Ok(()) => {
                    attempts.remove(&digest);
                    held.insert(digest);
                }
                Err(error) => {
                    let failures = attempts.get(&digest).map_or(0, |attempt| attempt.failures);
                    let wait = REPAIR_AFTER * (1 << failures.min(REPAIR_DOUBLINGS_MAX));
                    tracing::warn!(bundle = %digest, %error, ?wait, "a bundle is not held here yet");
                    attempts.insert(digest, Attempt { failures: failures + 1, due: Instant::now() + wait });
                }
            }
        }
        let due = attempts.values().map(|attempt| attempt.due).min();
        if !wait_for_work(&mut published, seen, due, &shared.keeping.lost).await {
            return;
        }
    }
}

/// Waits for a later view than `seen`, until an attempt is due, or until a bundle is lost. Returns false when no view comes any more.
async fn wait_for_work(
    published: &mut tokio::sync::watch::Receiver<Published>,
    seen: Epoch,
    due: Option<Instant>,
    lost: &Notify,
) -> bool {
    let later = published.wait_for(|published| published.view.as_ref().is_some_and(|view| view.epoch > seen));
    let until = async {
        match due {
            Some(due) => tokio::time::sleep_until(due).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        later = later => later.is_ok(),
        () = until => true,
        () = lost.notified() => true,
    }
}
