//! Bundles of which a bit flipped where they lie: whoever holds one gives it to nobody, says so, and knows from then on that
//! it lacks the file; whoever asked has no byte of it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutPayload};
use roost_protocol::Digest;
use roost_protocol::bundle::{BundleFile, FileList, MODEL_FILE};
use roost_protocol::messages::control::Change;
use roost_protocol::quic::Links;
use roost_protocol::quic::bundles::{self, BundleStore, BundleStoreError, TransferError};
use tokio::time::Instant;

use crate::party::{PATIENCE, Party, Start, commit};
use crate::records::{bits, flipped};
use crate::storage::POSITIONS_MIN;

/// Bundles that are damaged side by side: who fetches one asks again after a wait, lest the holder was only restarted.
const BUNDLES: u32 = 36;
/// Bits of each file that are flipped, one by one.
const BITS: usize = 2;

/// A bundle, and the bytes of its files.
struct Pushed {
    number: u32,
    files: FileList,
    contents: [(&'static str, Bytes); 3],
}

impl Pushed {
    /// The model takes two chunks on the wire, and its weights one.
    fn new(number: u32) -> Self {
        let bytes = |count: u32, of: u32| {
            (0..count)
                .map(|i| ((i ^ of).wrapping_mul(0x9e37_79b9u32.wrapping_mul(2 * number + 1)) >> 24) as u8)
                .collect::<Bytes>()
        };
        let notes = Bytes::from(format!("bundle {number}\n"));
        let contents =
            [(MODEL_FILE, bytes(300_000, 0)), ("weights.bin", bytes(5_001, 1)), ("notes.txt", notes)];
        let file = |(name, content): &(&str, Bytes)| BundleFile {
            name: (*name).to_owned(),
            bytes: content.len() as u64,
            digest: Digest::of(content),
        };
        let files = FileList::new(contents.iter().map(file).collect()).unwrap();
        Self { number, files, contents }
    }

    fn content(&self, file: &BundleFile) -> Bytes {
        self.contents.iter().find(|(name, _)| *name == file.name).unwrap().1.clone()
    }

    fn list(&self) -> Path {
        Path::from(format!("bundles/{}", self.files.digest()))
    }
}

fn blob(file: &BundleFile) -> Path {
    Path::from(format!("blobs/{}", file.digest))
}

/// A coordinator's bundles, and the links of somebody who fetches them.
struct Holder<'a> {
    address: &'a str,
    links: &'a Links,
    objects: Arc<InMemory>,
    store: BundleStore,
}

impl Holder<'_> {
    /// Fetches a bundle into an empty store, which is returned too.
    async fn fetch(&self, pushed: &Pushed) -> (BundleStore, Result<FileList, TransferError>) {
        let ours = BundleStore::new(Arc::new(InMemory::new()));
        let (holders, digest) = ([self.address.to_owned()], pushed.files.digest());
        let fetched = bundles::fetch(&ours, self.links, &holders, &digest, |_, _| {});
        let fetched = tokio::time::timeout(PATIENCE, fetched).await.unwrap();
        (ours, fetched)
    }

    async fn put(&self, path: &Path, bytes: Bytes) {
        self.objects.put(path, PutPayload::from(bytes)).await.unwrap();
    }

    /// Flips a bit of a file and fetches. Puts it right afterwards.
    async fn flip(&self, pushed: &Pushed, file: &BundleFile, bit: usize) {
        let (sound, digest) = (pushed.content(file), pushed.files.digest());
        self.put(&blob(file), flipped(&sound, bit).into()).await;
        let what = format!("{} bit {bit}", file.name);
        let (ours, fetched) = self.fetch(pushed).await;
        let error = fetched.err().unwrap_or_else(|| panic!("{what}: it was given on"));
        let named = matches!(error, TransferError::NoHolder { .. } | TransferError::Damaged { .. })
            && error.to_string().contains(&file.digest.to_string());
        assert!(named, "{what}: {error}");
        // Of the others the asker may have some; of this one nothing, and not the bundle.
        assert!(matches!(ours.list(&digest).await, Err(BundleStoreError::Missing(_))), "{what}");
        for other in pushed.files.files() {
            match ours.read(other).await {
                Ok(bytes) => assert!(other != file && bytes == pushed.content(other), "{what}"),
                Err(error) => assert!(matches!(error, BundleStoreError::Missing(_)), "{what}: {error}"),
            }
        }
        // The holder removes it after it answered.
        let deadline = Instant::now() + PATIENCE;
        while self.store.list(&digest).await.is_ok() {
            assert!(Instant::now() < deadline, "{what}: the holder keeps it");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        assert_eq!(self.store.missing(&pushed.files).await.unwrap(), std::slice::from_ref(file), "{what}");
        self.put(&blob(file), sound).await;
        self.store.seal(&pushed.files).await.unwrap();
    }

    /// Flips bits of each file, one by one. Returns how many.
    async fn flip_each(&self, pushed: &Pushed) -> usize {
        let mut count = 0;
        for (number, file) in pushed.files.files().iter().enumerate() {
            for bit in bits(pushed.number as usize * 3 + number, &pushed.content(file), BITS) {
                self.flip(pushed, file, bit).await;
                count += 1;
            }
        }
        let (ours, fetched) = self.fetch(pushed).await;
        assert_eq!(fetched.unwrap(), pushed.files);
        for file in pushed.files.files() {
            assert_eq!(ours.read(file).await.unwrap(), pushed.content(file));
        }
        count
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flipped_bit_in_a_bundle_is_found_at_any_position() {
    let (party, objects) = (Party::new(1), Arc::new(InMemory::new()));
    let member = party.start(1, Start { bundles: Some(objects.clone()), ..Start::default() }).await.unwrap();
    let operator = party.operator().await;
    let pushed: Vec<Pushed> = (0..BUNDLES).map(Pushed::new).collect();
    for pushed in &pushed {
        operator.change(Change::ReservePush { files: pushed.files.clone() }).await.unwrap();
        let read = |file: BundleFile, offset: u64, bytes: u64| async move {
            Ok(pushed.content(&file).slice(offset as usize..(offset + bytes) as usize))
        };
        bundles::upload(&operator.bundles, party.address(1), &pushed.files, read, |_| {}).await.unwrap();
        operator.change(commit(pushed.files.digest())).await.unwrap();
    }
    let store = BundleStore::new(objects.clone());
    let holder = Holder { address: party.address(1), links: &operator.bundles, objects, store };
    let count: usize = join_all(pushed.iter().map(|pushed| holder.flip_each(pushed))).await.into_iter().sum();
    // The list of a bundle is small: each of its bits. The coordinator would write it anew.
    member.stop().await;
    let (first, digest) = (&pushed[0], pushed[0].files.digest());
    let sound = holder.objects.get(&first.list()).await.unwrap().bytes().await.unwrap();
    for bit in 0..sound.len() * 8 {
        holder.put(&first.list(), flipped(&sound, bit).into()).await;
        let read = holder.store.list(&digest).await;
        let named =
            matches!(&read, Err(BundleStoreError::DamagedList { digest: named, .. }) if *named == digest);
        assert!(named, "bit {bit} of the list: {read:?}");
        assert!(!holder.store.holds(&digest).await.unwrap(), "bit {bit} of the list");
    }
    println!("flipped bit in a bundle: {count} positions in files, {} in a list", sound.len() * 8);
    assert!(count >= POSITIONS_MIN, "{count} positions");
}
