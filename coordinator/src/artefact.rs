//! Bundles on the coordinators: a quorum holds one before it becomes a version, and all come to hold it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use roost_protocol::bundle::FileList;
use roost_protocol::frame::Kind;
use roost_protocol::quic::bundles;
use roost_protocol::quic::bundles::BundleStoreError;
use roost_protocol::{ControlError, NodeId};
use tokio::time::Instant;

use crate::peer::{PeerRequest, PeerResponse};
use crate::shared::Shared;

/// What a quorum gets to hold a bundle, besides the time that its bytes take at [`REPLICATION_BYTES_PER_S_MIN`].
const REPLICATION: Duration = Duration::from_secs(20);
/// A slow disk on a slow link.
const REPLICATION_BYTES_PER_S_MIN: u64 = 8 << 20;
/// Between two looks for bundles that this coordinator should hold and does not.
const REPAIR_INTERVAL: Duration = Duration::from_secs(2);

/// Has a quorum of voters hold a bundle; returns those that do.
///
/// # Errors
/// [`ControlError::NoBundle`] when nobody has it, [`ControlError::NoQuorum`] when too few could take it in time.
pub(crate) async fn replicate(shared: &Shared, files: &FileList) -> Result<BTreeSet<NodeId>, ControlError> {
    let coordinators = shared.machine.state(|state| state.coordinators().clone());
    let voters: Vec<_> = coordinators.into_iter().filter(|(_, coordinator)| coordinator.voter).collect();
    let quorum = voters.len() / 2 + 1;
    let addresses: Vec<String> = voters.iter().map(|(_, coordinator)| coordinator.address.clone()).collect();
    let asks: FuturesUnordered<_> = voters
        .iter()
        .map(|(id, coordinator)| {
            let (holders, address) = (addresses.clone(), coordinator.address.clone());
            async move {
                let held = if *id == shared.node {
                    hold(shared, files, &holders).await
                } else {
                    ask_to_hold(shared, &address, files, holders).await
                };
                (*id, held)
            }
        })
        .collect();
    let within = REPLICATION + Duration::from_secs(files.bytes() / REPLICATION_BYTES_PER_S_MIN);
    let deadline = Instant::now() + within;
    let mut asks = std::pin::pin!(asks);
    let (mut holders, mut failures) = (BTreeSet::new(), Vec::new());
    while holders.len() < quorum {
        match tokio::time::timeout_at(deadline, asks.next()).await {
            Ok(Some((id, Ok(())))) => {
                holders.insert(id);
            }
            Ok(Some((id, Err(error)))) => failures.push((id, error)),
            Ok(None) | Err(_) => break,
        }
    }
    if holders.len() >= quorum {
        return Ok(holders);
    }
    let nobody_has_it = holders.is_empty()
        && failures.len() >= quorum
        && failures.iter().all(|(_, error)| matches!(error, ControlError::NoBundle { .. }));
    if nobody_has_it {
        return Err(ControlError::NoBundle { digest: files.digest().to_string() });
    }
    let reasons: Vec<_> = failures.iter().map(|(id, error)| format!("node {id}: {error}")).collect();
    let held = holders.len();
    let reason = format!("{held} of {} coordinators hold the bundle; {}", voters.len(), reasons.join("; "));
    Err(ControlError::NoQuorum { reason: roost_protocol::error::reason(reason) })
}

async fn ask_to_hold(
    shared: &Shared,
    address: &str,
    files: &FileList,
    holders: Vec<String>,
) -> Result<(), ControlError> {
    let link = shared.peers.to(address).await.map_err(|error| error.into_control(address))?;
    let request = PeerRequest::Hold { files: files.clone(), holders };
    let answer = link.ask((Kind::RaftRequest, &request), Kind::RaftResponse).await;
    match answer.map_err(|error| error.into_control(address))? {
        PeerResponse::Held => Ok(()),
        PeerResponse::Failed(error) => Err(error),
        _ => Err(ControlError::Malformed { what: "another answer than to a request to hold".to_owned() }),
    }
}

/// Makes sure that this coordinator holds a bundle: sealed, or its files are here already, or fetched from `holders`.
///
/// # Errors
/// [`ControlError::NoBundle`] when nobody has it, others when the transfer or the store fails.
pub(crate) async fn hold(shared: &Shared, files: &FileList, holders: &[String]) -> Result<(), ControlError> {
    let digest = files.digest();
    if shared.bundles.holds(&digest).await.map_err(BundleStoreError::into_control)? {
        return Ok(());
    }
    match shared.bundles.seal(files).await {
        Ok(()) => return Ok(()),
        Err(BundleStoreError::Missing(_)) => {}
        Err(error) => return Err(error.into_control()),
    }
    let others: Vec<String> = holders.iter().filter(|address| **address != shared.address).cloned().collect();
    match bundles::fetch(&shared.bundles, &shared.bundle_links, &others, &digest, |_, _| {}).await {
        Ok(_) => Ok(()),
        Err(bundles::TransferError::Store(error)) => Err(error.into_control()),
        Err(bundles::TransferError::Refused(error)) => Err(error),
        Err(bundles::TransferError::NoHolder { .. }) => {
            Err(ControlError::NoBundle { digest: digest.to_string() })
        }
        Err(error) => {
            let reason = roost_protocol::error::reason(error);
            Err(ControlError::Unreachable { node: "a holder".to_owned(), reason })
        }
    }
}

/// Fetches what versions are made of and this coordinator does not hold, for as long as it lives.
pub(crate) async fn repair(shared: Arc<Shared>) {
    let mut published = shared.published.subscribe();
    loop {
        let (wanted, holders) = shared.machine.state(|state| {
            let wanted: Vec<FileList> = state.referenced_bundles().map(|(_, files)| files.clone()).collect();
            let holders: Vec<String> = state.coordinators().values().map(|c| c.address.clone()).collect();
            (wanted, holders)
        });
        for files in wanted {
            if let Err(error) = hold(&shared, &files, &holders).await {
                tracing::warn!(bundle = %files.digest(), %error, "a bundle is not held here yet");
            }
        }
        // Look again when the state changes, and after a while in case a holder came back.
        let _ = tokio::time::timeout(REPAIR_INTERVAL, published.changed()).await;
    }
}
