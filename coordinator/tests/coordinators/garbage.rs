//! Files of pushes that were never committed.

use std::path::PathBuf;
use std::time::Duration;

use roost_protocol::messages::control::{ControlRequest, Query};
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
