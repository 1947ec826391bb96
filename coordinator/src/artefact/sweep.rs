//! The removal of files that no bundle needs: of pushes that were given up, of reservations that were forgotten.
//!
//! A file is removed only when this coordinator has applied all that was acknowledged when the sweep began, and neither the
//! state nor a promise that was made since this process started speaks of its bundle. A leader counts on a holder only
//! after such a promise, and asks for one only after the reservation is committed; so what it counts on is found in one
//! of the two.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use roost_protocol::bundle::FileList;
use roost_protocol::messages::control::{Answer, ControlRequest, ControlResponse, Query};
use roost_protocol::quic::bundles::{BundleStoreError, Swept};
use roost_protocol::{ControlError, Digest};
use tokio::time::Instant;

use crate::server::hand_on;
use crate::shared::Shared;

/// Between two sweeps. What they remove does no harm but to the disk's room.
const SWEEP_INTERVAL: Duration = Duration::from_secs(600);
/// What a follower gets to apply what its leader had applied.
const CATCH_UP: Duration = Duration::from_secs(5);
/// What the sweep waits for those who judge a bundle, each of which takes some answers of the store. Others wait behind it.
const ALONE: Duration = Duration::from_secs(10);
/// Between two looks at what was applied.
const CATCH_UP_LOOK: Duration = Duration::from_millis(50);

/// Removes what nobody needs, again and again, for as long as the coordinator lives.
pub(crate) async fn run(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(SWEEP_INTERVAL).await;
        match sweep(&shared).await {
            Ok(Swept { bundles: 0, files: 0 }) => {}
            Ok(Swept { bundles, files }) => tracing::info!(bundles, files, "removed what no version needs"),
            Err(error) => tracing::info!(%error, "nothing was removed this time"),
        }
    }
}

async fn sweep(shared: &Shared) -> Result<Swept, ControlError> {
    let promises = shared.keeping.lock().promises;
    catch_up(shared).await?;
    let alone = tokio::time::timeout(ALONE, shared.keeping.files.write()).await;
    let _alone = alone.map_err(|_| ControlError::Storage {
        reason: format!("bundles were being looked at for {ALONE:?}, the store may hang"),
    })?;
    let lists = needed(shared, promises);
    let bundles: BTreeSet<Digest> = lists.keys().copied().collect();
    let files = lists.values().flat_map(|list| list.files().iter().map(|file| file.digest));
    let files: BTreeSet<Digest> = files.collect();
    let swept = shared.bundles.sweep(|bundle| bundles.contains(bundle), |file| files.contains(file)).await;
    swept.map_err(BundleStoreError::into_control)
}

/// The bundles that the state or a promise speaks of. Of the first `promises` promises, all of whose reservations were
/// committed before the state was asked for, only those still hold that the state knows.
fn needed(shared: &Shared, promises: u64) -> BTreeMap<Digest, FileList> {
    let mut keeping = shared.keeping.lock();
    let mut lists: BTreeMap<Digest, FileList> = shared
        .machine
        .state(|state| state.bundles().map(|(digest, files)| (*digest, files.clone())).collect());
    keeping.promised.retain(|_, promise| promise.number > promises);
    let promised = keeping.promised.iter();
    lists.extend(promised.map(|(digest, promise)| (*digest, promise.files.clone())));
    lists
}

/// Waits until this coordinator has applied all that was acknowledged before the call, wherever the leader is.
async fn catch_up(shared: &Shared) -> Result<(), ControlError> {
    if shared.leads().is_some() {
        return shared.catch_up().await;
    }
    let request = ControlRequest::Query(Query::Cluster);
    let epoch = match hand_on(shared, request, shared.name.as_str()).await? {
        ControlResponse::Answer(answer) => match *answer {
            Answer::Cluster(cluster) => cluster.epoch,
            Answer::Models(_)
            | Answer::Versions(_)
            | Answer::Rollout(_)
            | Answer::Files(_)
            | Answer::Members(_)
            | Answer::Level(_) => {
                return Err(ControlError::Malformed { what: "another answer than the cluster's".to_owned() });
            }
        },
        ControlResponse::Failed(error) => return Err(error),
        ControlResponse::Done(_)
        | ControlResponse::Heard { .. }
        | ControlResponse::Reconfigured(_)
        | ControlResponse::Snapshot { .. } => {
            return Err(ControlError::Malformed { what: "another answer than to a query".to_owned() });
        }
    };
    let deadline = Instant::now() + CATCH_UP;
    while shared.machine.state(|state| state.epoch()) < epoch {
        if Instant::now() >= deadline {
            return Err(ControlError::NoQuorum {
                reason: format!("epoch {epoch} was not applied here in time"),
            });
        }
        tokio::time::sleep(CATCH_UP_LOOK).await;
    }
    Ok(())
}
