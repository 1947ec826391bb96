//! Bundles that coordinators hold: what a holder that lost a file says and does, what a bundle's own manifest is compared
//! with, and who may put what.

use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use object_store::memory::InMemory;
use roost_coordinator::peer::{PeerRequest, PeerResponse};
use roost_protocol::bundle::{BundleFile, FileList, MANIFEST_FILE, MODEL_FILE};
use roost_protocol::manifest::{Manifest, Replicas};
use roost_protocol::messages::control::{Answer, Change, Hello, Outcome, Query};
use roost_protocol::quic::bundles::{self, BundleStore, TransferError};
use roost_protocol::quic::{Links, Role, Service};
use roost_protocol::{CommandError, ControlError, Digest, NodeId, Version};
use tokio::time::Instant;

use crate::party::{Operator, PATIENCE, Party, digits, files_of, stop_all};

/// Where a coordinator keeps the bytes of a file.
fn blob(party: &Party, number: usize, content: &[u8]) -> PathBuf {
    party.folder(number).join("bundles/blobs").join(Digest::of(content).to_string())
}

async fn until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

/// Waits until all three hold the bundle of a version.
async fn held_by_all(party: &Party, content: &[u8]) {
    until("all hold it", || {
        (1..=3).all(|number| {
            let list =
                party.folder(number).join("bundles/bundles").join(files_of(content).digest().to_string());
            list.exists() && blob(party, number, content).exists()
        })
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_lost_a_file_is_no_holder_before_it_has_it_again() {
    let party = Party::new(3);
    let members = party.members().await;
    party.operator().await.push(b"one").await;
    held_by_all(&party, b"one").await;
    let holders = vec![party.address(1).to_owned(), party.address(2).to_owned()];
    let hold = PeerRequest::Hold { files: files_of(b"one"), holders };
    // Gone, and cut: the list is there all the while.
    for damage in [None, Some(&b"on"[..])] {
        std::fs::remove_file(blob(&party, 3, b"one")).unwrap();
        if let Some(bytes) = damage {
            std::fs::write(blob(&party, 3, b"one"), bytes).unwrap();
        }
        assert_eq!(party.peer(1, 1, 3, &hold).await, PeerResponse::Held);
        assert_eq!(std::fs::read(blob(&party, 3, b"one")).unwrap(), b"one");
    }
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_is_not_given_on_and_is_mended() {
    let party = Party::new(3);
    let members = party.members().await;
    party.operator().await.push(b"one").await;
    held_by_all(&party, b"one").await;
    let nobody = Hello { cluster: None, node: None };
    let links = party.links("w1", Role::Worker, Service::Bundle, nobody).await;
    let digest = files_of(b"one").digest();
    let fetch = async |from: &[usize]| {
        let store = BundleStore::new(Arc::new(InMemory::new()));
        let holders: Vec<String> = from.iter().map(|number| party.address(*number).to_owned()).collect();
        bundles::fetch(&store, &links, &holders, &digest, |_, _| {}).await
    };
    let deadline = Instant::now() + PATIENCE;
    let error = loop {
        assert!(Instant::now() < deadline, "the damage is not met");
        std::fs::write(blob(&party, 3, b"one"), b"ons").unwrap();
        // A copy that was on its way when the bit flipped may have taken the place of the damaged one.
        if let Err(error) = fetch(&[3]).await {
            break error;
        }
    };
    assert!(matches!(error, TransferError::Damaged { .. }), "{error}");
    assert_eq!(fetch(&[3, 1]).await.unwrap(), files_of(b"one"));
    // Nothing else changes in the cluster: the damage itself is what has it fetched again.
    until("it is mended", || std::fs::read(blob(&party, 3, b"one")).is_ok_and(|bytes| bytes == b"one")).await;
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = fetch(&[3]).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    stop_all(members).await;
}

fn file(name: &str, content: &[u8]) -> BundleFile {
    BundleFile { name: name.to_owned(), bytes: content.len() as u64, digest: Digest::of(content) }
}

async fn upload(links: &Links, to: &str, list: &FileList, contents: &[&[u8]]) -> Result<(), TransferError> {
    let read = |file: BundleFile, offset: u64, bytes: u64| async move {
        let content = contents.iter().find(|content| Digest::of(content) == file.digest).unwrap();
        // As many as are asked for, whatever the file has.
        let mut content = content.to_vec();
        content.resize((offset + bytes).max(content.len() as u64) as usize, 0);
        Ok(Bytes::from(content).slice(offset as usize..(offset + bytes) as usize))
    };
    bundles::upload(links, to, list, read, |_| {}).await
}

/// Pushes a graph with a `model.toml`, and states `manifest`.
async fn push(
    party: &Party,
    operator: &Operator,
    toml: &str,
    manifest: Manifest,
) -> Result<Outcome, ControlError> {
    let contents = [&b"graph"[..], toml.as_bytes()];
    let list = FileList::new(vec![file(MODEL_FILE, contents[0]), file(MANIFEST_FILE, contents[1])]).unwrap();
    operator.change(Change::ReservePush { files: list.clone() }).await.unwrap();
    upload(&operator.bundles, party.address(1), &list, &contents).await.unwrap();
    let (digest, manifest, note) = (list.digest(), Box::new(manifest), String::new());
    Ok(operator
        .change(Change::CommitPush { model: digits(), digest, manifest, note, new_version: true })
        .await?
        .outcome)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_push_states_what_its_bundle_says() {
    let party = Party::new(1);
    let members = party.members().await;
    let operator = party.operator().await;
    let three = Manifest { replicas: Replicas::Count(3), ..Manifest::default() };
    let refused = |result: Result<Outcome, ControlError>, why: &str| match result {
        Err(ControlError::Refused(CommandError::BadManifest { reason })) => {
            assert!(reason.contains(why), "{reason}");
        }
        other => panic!("{why}: {other:?}"),
    };
    refused(push(&party, &operator, "replicas = 3", Manifest::default()).await, "something else");
    refused(push(&party, &operator, "", three.clone()).await, "something else");
    refused(push(&party, &operator, "replica = 3", three.clone()).await, "unknown field");
    let huge = format!("# {}\nreplicas = 3", "x".repeat(300 << 10));
    refused(push(&party, &operator, &huge, three.clone()).await, "at most");
    let Answer::Models(models) = operator.query(Query::Models).await else { panic!() };
    assert_eq!(models, [], "nothing was made of them");
    let pushed = push(&party, &operator, "replicas = 3", three).await.unwrap();
    assert_eq!(pushed, Outcome::Pushed { version: Version(1), stable: true, existing: false });
    stop_all(members).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_what_was_announced_is_taken_and_only_of_operators() {
    let party = Party::new(1);
    let members = party.members().await;
    let operator = party.operator().await;
    let announced = files_of(b"graph");
    let to = party.address(1);
    let not_reserved = |result: Result<(), TransferError>| {
        let error = result.unwrap_err();
        assert!(matches!(error, TransferError::Refused(ControlError::NotReserved { .. })), "{error}");
    };
    // Nothing is reserved, and the cluster may still be forming.
    operator.leader().await;
    not_reserved(upload(&operator.bundles, to, &announced, &[b"graph"]).await);
    operator.change(Change::ReservePush { files: announced.clone() }).await.unwrap();
    // The digest was announced, for five bytes.
    let larger = BundleFile { bytes: 1 << 20, ..announced.files()[0].clone() };
    let larger = FileList::new(vec![larger]).unwrap();
    not_reserved(upload(&operator.bundles, to, &larger, &[b"graph"]).await);
    let nobody = Hello { cluster: None, node: Some(NodeId(11)) };
    let worker = party.links("w1", Role::Worker, Service::Bundle, nobody).await;
    let error = upload(&worker, to, &announced, &[b"graph"]).await.unwrap_err();
    assert!(matches!(error, TransferError::Refused(ControlError::Forbidden { .. })), "{error}");
    upload(&operator.bundles, to, &announced, &[b"graph"]).await.unwrap();
    stop_all(members).await;
}
