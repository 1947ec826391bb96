//! Files of pushes that were never committed.

use std::path::PathBuf;
use std::time::Duration;

use roost_protocol::frame::{Kind, Prefix};
use roost_protocol::messages::control::{BundleRequest, BundleResponse, Change, ControlRequest, Query};
use roost_protocol::quic::stream::{read_message, write_message};
use roost_protocol::{ControlError, Digest};
use tokio::time::Instant;

use crate::party::{PATIENCE, Party, Start, ask_at, files_of};

/// More than the time between two sweeps.
const SWEEP: Duration = Duration::from_secs(601);

struct Store(PathBuf);

impl Store {
    fn bundle(&self, content: &[u8]) -> PathBuf {
        self.0.join("bundles").join(files_of(content).digest().to_string())
    }

    fn file(&self, content: &[u8]) -> PathBuf {
        self.0.join("blobs").join(Digest::of(content).to_string())
    }

    fn holds(&self, content: &[u8]) -> bool {
        let (bundle, file) = (self.bundle(content).exists(), self.file(content).exists());
        assert_eq!(bundle, file, "half of a bundle");
        bundle
    }

    async fn loses(&self, content: &[u8]) {
        let deadline = Instant::now() + PATIENCE;
        while self.bundle(content).exists() || self.file(content).exists() {
            assert!(Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

async fn let_sweep() {
    tokio::time::pause();
    tokio::time::sleep(SWEEP).await;
    tokio::time::resume();
}

#[tokio::test]
async fn what_no_version_needs_is_removed_and_nothing_else() {
    let party = Party::new(1);
    let start = Start { inline: true, ..Start::default() };
    let member = party.start(1, start).await.unwrap();
    let store = Store(party.folder(1).join("bundles"));
    let operator = party.operator().await;
    operator.push(b"version").await;
    operator.upload(b"reserved").await;
    // As a push leaves them behind whose reservation is forgotten.
    for content in [&b"stray"[..], b"lone"] {
        std::fs::write(store.file(content), content).unwrap();
    }
    std::fs::write(store.bundle(b"stray"), b"a list").unwrap();
    let_sweep().await;
    store.loses(b"stray").await;
    store.loses(b"lone").await;
    assert!(store.holds(b"version") && store.holds(b"reserved"));

    party.clock.forward(Duration::from_secs(25 * 60 * 60));
    let query = ControlRequest::Query(Query::Files(files_of(b"reserved").digest()));
    let deadline = Instant::now() + PATIENCE;
    loop {
        match ask_at(&operator.control, party.address(1), &query).await {
            Err(ControlError::NoBundle { .. }) => break,
            answer => assert!(Instant::now() < deadline, "{answer:?}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let_sweep().await;
    store.loses(b"reserved").await;
    assert!(store.holds(b"version"));
    member.stop().await;
}

/// A side of a transfer that takes its time: a byte each so long.
const BYTE_EVERY: Duration = Duration::from_secs(10);

#[tokio::test]
async fn a_transfer_that_goes_on_does_not_keep_what_no_version_needs() {
    let party = Party::new(1);
    let member = party.start(1, Start { inline: true, ..Start::default() }).await.unwrap();
    let store = Store(party.folder(1).join("bundles"));
    let operator = party.operator().await;
    operator.push(b"version").await;
    // Takes longer than the time between two sweeps.
    let content: &[u8] = &[7; 100];
    let files = files_of(content);
    operator.change(Change::ReservePush { files: files.clone() }).await.unwrap();
    let link = operator.bundles.to(party.address(1)).await.unwrap();
    let (mut send, mut recv) = link.open().await.unwrap();
    let put = BundleRequest::Put { file: files.files()[0].clone() };
    write_message(&mut send, Kind::BundleRequest, &put).await.unwrap();
    let upload = tokio::spawn(async move {
        let prefix = Prefix::new(Kind::BundleChunk, 0, content.len() as u64).unwrap();
        send.write_all(&prefix.encode()).await.unwrap();
        for byte in content {
            tokio::time::sleep(BYTE_EVERY).await;
            send.write_all(&[*byte]).await.unwrap();
        }
        read_message::<BundleResponse>(&mut recv, Kind::BundleResponse).await.unwrap()
    });
    std::fs::write(store.file(b"stray"), b"stray").unwrap();
    let_sweep().await;
    store.loses(b"stray").await;
    assert!(!upload.is_finished(), "it went on all the while");
    // What it brings is kept by the sweeps to come, as what is reserved.
    tokio::time::pause();
    assert_eq!(upload.await.unwrap(), BundleResponse::Held);
    tokio::time::resume();
    let_sweep().await;
    std::fs::write(store.file(b"stray"), b"stray").unwrap();
    let_sweep().await;
    store.loses(b"stray").await;
    assert!(store.file(content).exists() && store.holds(b"version"));
    member.stop().await;
}
