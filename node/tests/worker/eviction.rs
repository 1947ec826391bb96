//! The limit of the disk cache at a worker's start, when a fetch makes room among bundles that are about to be hosted.

use roost_protocol::Digest;
use roost_protocol::bundle::{BundleFile, MODEL_FILE};

use crate::script::MODEL;
use crate::world::{Files, Start, Store, add_holder, host};

/// A bundle of the scripted engine's model that is like no other.
fn files(replicas: u8) -> Files {
    Files::new(
        MODEL,
        &format!("replicas = {replicas}\nwarm_up_rows = [1]\n[batch_axes]\nx = 0\ny = 0\nsum = 0\n"),
    )
}

#[tokio::test]
async fn what_is_to_be_hosted_is_not_evicted_for_what_is_to_be_hosted() {
    // The first to be hosted is fetched, which makes room; the others are here, and nobody else holds them.
    let here = [("b@1", files(2)), ("c@1", files(3)), ("d@1", files(4))];
    let mut start = Start::with(&here).await;
    start.config.cache_bytes_max = 1;
    let (holder, fetched) = (Store::new(), files(1));
    fetched.put(&holder.bundles).await;
    host(&mut start.view, "a@1", fetched.hosted());
    add_holder(&mut start.view, 1, holder.serve().await);
    let world = start.ready().await;
    assert_eq!(world.store.bundles.held().await.unwrap().len(), 4, "what is hosted stays above the limit");
}

#[tokio::test]
async fn what_an_earlier_life_left_goes_at_the_start() {
    let start = Start::with(&[("a@1", files(1))]).await;
    let left = b"a fetch that was given up";
    let file = BundleFile { name: MODEL_FILE.to_owned(), bytes: left.len() as u64, digest: Digest::of(left) };
    let mut writer = start.store.bundles.write(&file);
    writer.write(bytes::Bytes::from_static(left)).await.unwrap();
    writer.finish().await.unwrap();
    let unwanted = files(2);
    unwanted.put(&start.store.bundles).await;
    let world = start.ready().await;
    let store = &world.store.bundles;
    assert!(store.read_unchecked(&file).await.is_err(), "no bundle names it");
    assert_eq!(store.held().await.unwrap().len(), 2, "there is room for what is not wanted at present");
}
