//! Bundles between stores: upload, fetch, resumption, damage.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use roost_protocol::bundle::{BundleFile, FileList, MANIFEST_FILE, MODEL_FILE};
use roost_protocol::error::ControlError;
use roost_protocol::ids::Digest;
use roost_protocol::limits::CHUNK_BYTES_MAX;
use roost_protocol::quic::bundles::{self, BundleStore, BundleStoreError, TransferError, fetch, upload};
use roost_protocol::quic::{Link, Links, Role, Service};

use crate::party::{Listener, dialler, within};

/// Larger than the window of a stream, so that a holder that breaks off cannot have sent all of it.
const MODEL_BYTES: usize = 12 << 20;

/// A bundle in memory.
struct Bundle {
    list: FileList,
    files: Vec<(BundleFile, Bytes)>,
}

impl Bundle {
    fn new(model_bytes: usize) -> Self {
        let model: Vec<u8> = (0..model_bytes).map(|i| (i / 251) as u8 ^ i as u8).collect();
        let file = |name: &str, bytes: Bytes| {
            let (digest, length) = (Digest::of(&bytes), bytes.len() as u64);
            (BundleFile { name: name.to_owned(), bytes: length, digest }, bytes)
        };
        let files = vec![
            file(MODEL_FILE, model.into()),
            file(MANIFEST_FILE, Bytes::from_static(b"replicas = 2\n")),
            file("empty", Bytes::new()),
        ];
        let list = FileList::new(files.iter().map(|(file, _)| file.clone()).collect()).expect("a bundle");
        Self { list, files }
    }

    fn model(&self) -> &(BundleFile, Bytes) {
        &self.files[0]
    }

    async fn put_into(&self, store: &BundleStore) {
        for (file, bytes) in &self.files {
            let mut writer = store.write(file);
            writer.write(bytes.clone()).await.expect("it fits");
            writer.finish().await.expect("it has its digest");
        }
        store.seal(&self.list).await.expect("all is there");
    }

    async fn assert_in(&self, store: &BundleStore) {
        assert_eq!(store.list(&self.list.digest()).await.expect("it is held"), self.list);
        for (file, bytes) in &self.files {
            assert_eq!(store.read(file).await.expect("it is whole"), *bytes, "{}", file.name);
        }
    }

    async fn upload(&self, links: &Links, address: &str) -> Result<u64, TransferError> {
        let mut sent = 0;
        let read = |file: BundleFile, offset: u64, length: u64| async move {
            let (_, bytes) = self.files.iter().find(|(ours, _)| *ours == file).expect("a file of the bundle");
            Ok(bytes.slice(offset as usize..(offset + length) as usize))
        };
        upload(links, address, &self.list, read, |bytes| sent += bytes).await.map(|()| sent)
    }
}

fn store() -> (Arc<InMemory>, BundleStore) {
    let objects = Arc::new(InMemory::new());
    (objects.clone(), BundleStore::new(objects))
}

/// A node that holds bundles.
struct Holder {
    address: String,
    objects: Arc<InMemory>,
    store: BundleStore,
    links: Arc<Mutex<Vec<Link>>>,
    /// Bundles of which it found a file to be damaged while it gave it away.
    lost: Arc<Mutex<Vec<Digest>>>,
}

impl Holder {
    /// A node that takes what `takes` says.
    async fn start(takes: fn(&BundleFile) -> bool) -> Self {
        let (objects, store) = store();
        let (links, address, lost) = serve(store.clone(), takes).await;
        Self { address, objects, store, links, lost }
    }

    /// A node that holds the bundle.
    async fn of(bundle: &Bundle) -> Self {
        let holder = Self::start(|_| false).await;
        bundle.put_into(&holder.store).await;
        holder
    }

    /// Breaks all connections; the node stays reachable.
    fn break_off(&self) {
        self.links.lock().expect("nobody panics with it").iter().for_each(Link::close);
    }

    /// Waits until it has removed what it found to be damaged.
    async fn discards(&self, bundle: &Bundle) {
        let gone = async {
            while self.lost.lock().expect("nobody panics with it").is_empty() {
                tokio::task::yield_now().await;
            }
        };
        within("the end of a damaged file", gone).await;
        let held = self.store.holds(&bundle.list.digest()).await;
        assert!(!held.expect("memory does not fail"));
    }

    /// Replaces a file's bytes below the store.
    async fn damage(&self, file: &BundleFile, bytes: Bytes) {
        let path = Path::from(format!("blobs/{}", file.digest));
        self.objects.put(&path, bytes.into()).await.expect("memory takes everything");
    }
}

/// Serves a store on a free port.
async fn serve(
    store: BundleStore,
    takes: fn(&BundleFile) -> bool,
) -> (Arc<Mutex<Vec<Link>>>, String, Arc<Mutex<Vec<Digest>>>) {
    let mut node = Listener::start(&[Service::Bundle]).await;
    let (address, links) = (node.address.clone(), Arc::<Mutex<Vec<Link>>>::default());
    let (accepted, lost) = (links.clone(), Arc::<Mutex<Vec<Digest>>>::default());
    let loses = lost.clone();
    tokio::spawn(async move {
        loop {
            let link = node.link().await;
            accepted.lock().expect("nobody panics with it").push(link.clone());
            let (store, loses) = (store.clone(), loses.clone());
            tokio::spawn(async move {
                while let Ok((mut send, mut recv)) = link.accept().await {
                    let (store, loses) = (store.clone(), loses.clone());
                    tokio::spawn(async move {
                        // A stream that breaks shows at the other side.
                        if let Ok(lost) = bundles::serve(&store, &mut send, &mut recv, takes).await {
                            loses.lock().expect("nobody panics with it").extend(lost);
                        }
                    });
                }
            });
        }
    });
    (links, address, lost)
}

async fn links() -> Links {
    Links::new(dialler(&[Role::Worker]).await, Service::Bundle)
}

async fn fetched(bundle: &Bundle, holders: &[&Holder]) -> (BundleStore, Result<FileList, TransferError>) {
    let (_, ours) = store();
    let addresses: Vec<String> = holders.iter().map(|holder| holder.address.clone()).collect();
    let links = links().await;
    let result =
        within("the bundle", fetch(&ours, &links, &addresses, &bundle.list.digest(), |_, _| {})).await;
    (ours, result)
}

#[tokio::test]
async fn a_bundle_goes_up_and_comes_down() {
    let bundle = Bundle::new(MODEL_BYTES);
    let folders = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let on_disk = |folder: &tempfile::TempDir| -> Arc<dyn ObjectStore> {
        Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap().with_fsync(true))
    };
    let theirs = BundleStore::new(on_disk(&folders[0]));
    let (_, address, _) = serve(theirs.clone(), |_| true).await;
    let links = links().await;
    assert_eq!(bundle.upload(&links, &address).await.unwrap(), bundle.list.bytes());
    bundle.assert_in(&theirs).await;
    // What is there is not sent again.
    assert_eq!(bundle.upload(&links, &address).await.unwrap(), 0);

    let ours = BundleStore::new(on_disk(&folders[1]));
    let (mut progress, holders, digest) = (Vec::new(), [address], bundle.list.digest());
    let list = fetch(&ours, &links, &holders, &digest, |here, of| progress.push((here, of)));
    assert_eq!(within("the bundle", list).await.unwrap(), bundle.list);
    bundle.assert_in(&ours).await;
    assert_eq!(ours.held().await.unwrap(), [bundle.list.digest()]);
    let total = bundle.list.bytes();
    assert_eq!((progress.first(), progress.last()), (Some(&(0, total)), Some(&(total, total))));
    assert!(progress.is_sorted());
}

#[tokio::test]
async fn a_fetch_goes_on_where_a_holder_broke_off() {
    let bundle = Bundle::new(MODEL_BYTES);
    let (first, second) = (Holder::of(&bundle).await, Holder::of(&bundle).await);
    let (_, ours) = store();
    let holders = [first.address.clone(), second.address.clone()];
    let (mut progress, digest, links) = (Vec::new(), bundle.list.digest(), links().await);
    let list = fetch(&ours, &links, &holders, &digest, |here, _| {
        progress.push(here);
        if here >= 3 * CHUNK_BYTES_MAX {
            first.break_off();
        }
    });
    assert_eq!(within("the bundle", list).await.unwrap(), bundle.list);
    bundle.assert_in(&ours).await;
    assert!(first.links.lock().unwrap().iter().any(|link| !link.is_open()), "the first holder broke off");
    assert!(!second.links.lock().unwrap().is_empty(), "the second holder was asked");
    // Bytes that were here when the first broke off did not travel again.
    assert!(progress.is_sorted(), "{progress:?}");
}

#[tokio::test]
async fn one_holder_that_breaks_off_again_and_again_is_enough() {
    let bundle = Bundle::new(MODEL_BYTES);
    let holder = Holder::of(&bundle).await;
    let (_, ours) = store();
    let (mut progress, mut breaks, holders) = (Vec::new(), 0u64, [holder.address.clone()]);
    let (digest, links) = (bundle.list.digest(), links().await);
    let list = fetch(&ours, &links, &holders, &digest, |here, _| {
        progress.push(here);
        if here >= (breaks + 1) * 8 * CHUNK_BYTES_MAX {
            breaks += 1;
            holder.break_off();
        }
    });
    assert_eq!(within("the bundle", list).await.unwrap(), bundle.list);
    bundle.assert_in(&ours).await;
    assert!(holder.links.lock().unwrap().len() > 3, "it broke off a few times");
    assert!(progress.is_sorted(), "no byte travelled twice: {progress:?}");
    assert!(holder.lost.lock().unwrap().is_empty() && holder.store.holds(&digest).await.unwrap());
}

#[tokio::test]
async fn a_file_that_is_gone_is_not_held() {
    let bundle = Bundle::new(1000);
    let holder = Holder::of(&bundle).await;
    let digest = bundle.list.digest();
    assert!(holder.store.holds(&digest).await.unwrap());
    // Its bytes are fewer than they should be, then there are none.
    holder.damage(&bundle.model().0, Bytes::from_static(b"torn")).await;
    assert!(!holder.store.holds(&digest).await.unwrap());
    assert_eq!(holder.store.missing(&bundle.list).await.unwrap(), [bundle.model().0.clone()]);
    holder.objects.delete(&Path::from(format!("blobs/{}", bundle.model().0.digest))).await.unwrap();
    assert!(!holder.store.holds(&digest).await.unwrap());
    let (_, result) = fetched(&bundle, &[&holder]).await;
    assert!(matches!(result, Err(TransferError::NoHolder { .. })), "{result:?}");
}

#[tokio::test]
async fn damage_ends_the_bundles_that_have_the_file_and_no_others() {
    let (one, other) = (Bundle::new(1000), Bundle::new(2000));
    let holder = Holder::of(&one).await;
    other.put_into(&holder.store).await;
    let (file, _) = one.model();
    assert_eq!(holder.store.discard_damaged(&file.digest).await.unwrap(), [], "it is sound");
    let mut flipped = one.model().1.to_vec();
    flipped[999] ^= 0x80;
    holder.damage(file, flipped.into()).await;
    assert!(holder.store.holds(&one.list.digest()).await.unwrap(), "nobody has read it yet");
    assert_eq!(holder.store.discard_damaged(&file.digest).await.unwrap(), [one.list.digest()]);
    assert_eq!(holder.store.discard_damaged(&file.digest).await.unwrap(), [], "it is gone");
    assert_eq!(holder.store.held().await.unwrap(), [other.list.digest()]);
    // The files that both have stay.
    assert_eq!(holder.store.missing(&one.list).await.unwrap(), std::slice::from_ref(file));
    other.assert_in(&holder.store).await;
}

#[tokio::test]
async fn a_holder_that_is_gone_is_passed_over() {
    let bundle = Bundle::new(1000);
    let (empty, good) = (Holder::start(|_| false).await, Holder::of(&bundle).await);
    let (ours, result) = fetched(&bundle, &[&empty, &good]).await;
    result.unwrap();
    bundle.assert_in(&ours).await;
    let (ours, result) = fetched(&bundle, &[&empty]).await;
    let error = result.unwrap_err();
    let reason = ControlError::NoBundle { digest: bundle.list.digest().to_string() };
    match &error {
        TransferError::NoHolder { digest, reasons } => {
            assert_eq!(*digest, bundle.list.digest());
            assert_eq!(*reasons, [format!("{}: {reason}", empty.address)]);
        }
        error => panic!("{error}"),
    }
    assert_eq!(ours.held().await.unwrap(), []);
}

/// What may be wrong with a holder's copy of the model.
fn damages(bundle: &Bundle) -> [(&'static str, Bytes); 4] {
    let (_, bytes) = bundle.model();
    let mut flipped = bytes.to_vec();
    flipped[0] ^= 1;
    let mut longer = bytes.to_vec();
    longer.push(0);
    let shorter = flipped[..flipped.len() / 2].to_vec();
    [
        ("flipped", flipped.into()),
        ("longer", longer.into()),
        ("shorter and flipped", shorter.into()),
        ("shorter", bytes.slice(..bytes.len() / 2)),
    ]
}

#[tokio::test]
async fn damaged_bytes_are_fetched_elsewhere() {
    let bundle = Bundle::new(2 * CHUNK_BYTES_MAX as usize + 7);
    let good = Holder::of(&bundle).await;
    for (what, bytes) in damages(&bundle) {
        let bad = Holder::of(&bundle).await;
        bad.damage(&bundle.model().0, bytes).await;
        let (ours, result) = fetched(&bundle, &[&bad, &good]).await;
        assert_eq!(result.unwrap_or_else(|error| panic!("{what}: {error}")), bundle.list);
        bundle.assert_in(&ours).await;
        // Whoever gave the damaged bytes knows it too, and says so from then on.
        bad.discards(&bundle).await;
        assert_eq!(bad.store.missing(&bundle.list).await.unwrap(), [bundle.model().0.clone()], "{what}");
        assert_eq!(*bad.lost.lock().unwrap(), [bundle.list.digest()], "{what}");
    }
    assert!(good.store.holds(&bundle.list.digest()).await.unwrap() && good.lost.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_bundle_that_is_damaged_everywhere_is_not_taken() {
    let bundle = Bundle::new(2 * CHUNK_BYTES_MAX as usize + 7);
    for (what, bytes) in damages(&bundle) {
        let (first, second) = (Holder::of(&bundle).await, Holder::of(&bundle).await);
        first.damage(&bundle.model().0, bytes.clone()).await;
        second.damage(&bundle.model().0, bytes).await;
        let (ours, result) = fetched(&bundle, &[&first, &second]).await;
        let reasons = match result.expect_err(what) {
            TransferError::Damaged { reasons, .. } => reasons,
            error => panic!("{what}: {error}"),
        };
        for holder in [&first, &second] {
            let named = reasons.iter().any(|reason| reason.starts_with(&holder.address));
            assert!(named, "{what}: {reasons:?}");
        }
        assert_eq!(ours.held().await.unwrap(), []);
        let missing = ours.missing(&bundle.list).await.unwrap();
        assert!(missing.contains(&bundle.model().0), "{what}: nothing damaged is kept");
    }
}

#[tokio::test]
async fn what_nobody_announced_is_refused() {
    // A file that is refused while most of it is still to be sent, and one that fits the first packets.
    for bytes in [MODEL_BYTES, 1000] {
        let bundle = Bundle::new(bytes);
        let holder = Holder::start(|file| file.bytes == 0).await;
        let links = links().await;
        let error = within("the refusal", bundle.upload(&links, &holder.address)).await.unwrap_err();
        let named = |file: &str| [MODEL_FILE, MANIFEST_FILE].contains(&file);
        assert!(
            matches!(&error, TransferError::Refused(ControlError::NotReserved { file }) if named(file)),
            "{bytes} bytes: {error}"
        );
        assert_eq!(holder.store.missing(&bundle.list).await.unwrap().len(), 2);
        assert!(links.to(&holder.address).await.unwrap().is_open());
    }
}

#[tokio::test]
async fn a_file_that_changes_under_the_upload_is_refused() {
    let bundle = Bundle::new(1000);
    let holder = Holder::start(|_| true).await;
    let links = links().await;
    let changed =
        |_: BundleFile, _: u64, length: u64| async move { Ok(Bytes::from(vec![0; length as usize])) };
    let error = upload(&links, &holder.address, &bundle.list, changed, |_| {}).await.unwrap_err();
    assert!(matches!(error, TransferError::Refused(ControlError::DigestMismatch { .. })), "{error}");
    let shorter = |_: BundleFile, _: u64, _: u64| async { Ok(Bytes::new()) };
    let error = upload(&links, &holder.address, &bundle.list, shorter, |_| {}).await.unwrap_err();
    assert!(matches!(error, TransferError::Refused(ControlError::Storage { .. })), "{error}");
    assert_eq!(holder.store.held().await.unwrap(), []);
}

#[tokio::test]
async fn a_store_checks_what_it_holds() {
    let bundle = Bundle::new(1000);
    let holder = Holder::of(&bundle).await;
    let (file, bytes) = bundle.model();
    holder.damage(file, Bytes::from_static(b"something else")).await;
    let error = holder.store.read(file).await.unwrap_err();
    assert!(matches!(error, BundleStoreError::DigestMismatch { .. }), "{error}");
    // It was removed, so that it is fetched again.
    assert_eq!(holder.store.missing(&bundle.list).await.unwrap(), std::slice::from_ref(file));
    let error = holder.store.seal(&bundle.list).await.unwrap_err();
    assert!(matches!(error, BundleStoreError::Missing(digest) if digest == file.digest), "{error}");

    let mut writer = holder.store.write(file);
    let error = writer.write(Bytes::from(vec![0; 1001])).await.unwrap_err();
    assert!(matches!(error, BundleStoreError::Size { expected: 1000, actual: 1001, .. }), "{error}");
    let mut writer = holder.store.write(file);
    writer.write(bytes.slice(..999)).await.unwrap();
    let error = writer.finish().await.unwrap_err();
    assert!(matches!(error, BundleStoreError::Size { expected: 1000, actual: 999, .. }), "{error}");

    let digest = bundle.list.digest();
    let path = Path::from(format!("bundles/{digest}"));
    holder.objects.put(&path, Bytes::from_static(b"\x00").into()).await.unwrap();
    let error = holder.store.list(&digest).await.unwrap_err();
    assert!(matches!(error, BundleStoreError::DamagedList { .. }), "{error}");
}

#[tokio::test]
async fn a_removed_bundle_leaves_what_others_need() {
    let bundle = Bundle::new(1000);
    let (_, store) = store();
    bundle.put_into(&store).await;
    let shared = bundle.files[1].0.digest;
    store.remove(&bundle.list.digest(), |digest| *digest == shared).await.unwrap();
    assert!(!store.holds(&bundle.list.digest()).await.unwrap());
    let missing: Vec<String> =
        store.missing(&bundle.list).await.unwrap().into_iter().map(|file| file.name).collect();
    assert_eq!(missing, ["empty", MODEL_FILE]);
    store.remove(&bundle.list.digest(), |_| false).await.unwrap();
}
