//! The disk cache of bundles: what goes when a further bundle must fit.
//!
//! Which bundles go is a pure function, [`evictions`]; [`Cache`] carries it out on a [`BundleStore`], which must be the
//! worker's own: a coordinator's bundles are no cache. What is wanted never goes, even above the limit, since serving
//! outranks a tidy disk. A blob that another bundle shares stays.
//!
//! A fetch reserves room for its files ahead of the first byte, so that fetches which run at the same time do not count on
//! the same room, and so that it is known whose each blob is: what is no sealed bundle's and no fetch's was left by a fetch
//! that was given up, and goes at the next look.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use roost_protocol::Digest;
use roost_protocol::bundle::FileList;
use roost_protocol::quic::bundles::{BundleStore, BundleStoreError, Swept};

/// Blobs, and their bytes.
type Blobs = BTreeMap<Digest, u64>;

/// A bundle that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The bundle.
    pub digest: Digest,
    /// Its blobs.
    pub blobs: Blobs,
    /// When it was last used, as a count of uses; 0 when it was not since the process started.
    pub used: u64,
}

/// The bundles to remove so that the others and the `reserved` blobs are within `limit` bytes, those used longest ago
/// first. Fewer when the rest is wanted.
pub fn evictions(held: &[Held], wanted: &BTreeSet<Digest>, reserved: &Blobs, limit: u64) -> Vec<Digest> {
    let mut candidates: Vec<_> = held.iter().filter(|bundle| !wanted.contains(&bundle.digest)).collect();
    candidates.sort_by_key(|bundle| (bundle.used, bundle.digest));
    let mut removed = BTreeSet::new();
    let mut order = Vec::new();
    for candidate in candidates {
        let kept = held.iter().filter(|bundle| !removed.contains(&bundle.digest));
        // Blobs that bundles share lie on the disk once.
        let mut blobs = reserved.clone();
        blobs.extend(kept.flat_map(|bundle| &bundle.blobs));
        if blobs.values().fold(0, |sum: u64, bytes| sum.saturating_add(*bytes)) <= limit {
            break;
        }
        removed.insert(candidate.digest);
        order.push(candidate.digest);
    }
    order
}

/// The bundles on a worker's disk.
pub struct Cache {
    store: BundleStore,
    bytes_max: u64,
    wanted: Mutex<BTreeSet<Digest>>,
    reserved: Mutex<Reserved>,
    /// Per bundle the number of its last use. Held while bundles are removed, so that only one task does.
    uses: tokio::sync::Mutex<BTreeMap<Digest, u64>>,
}

/// What fetches that are under way write, each under a number of its own: two versions may be of one bundle.
#[derive(Debug, Default)]
struct Reserved {
    last: u64,
    lists: BTreeMap<u64, FileList>,
}

/// Room in a [`Cache`] for the files of one fetch, until it is dropped.
pub struct Room<'a> {
    cache: &'a Cache,
    number: u64,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        self.cache.reserved().lists.remove(&self.number);
    }
}

impl Cache {
    /// The bundles in `store`.
    pub fn new(store: BundleStore, bytes_max: u64) -> Self {
        let (wanted, reserved, uses) = (Mutex::default(), Mutex::default(), tokio::sync::Mutex::default());
        Self { store, bytes_max, wanted, reserved, uses }
    }

    /// The store.
    pub fn store(&self) -> &BundleStore {
        &self.store
    }

    /// Says which bundles must stay.
    pub fn set_wanted(&self, wanted: BTreeSet<Digest>) {
        *self.wanted.lock().unwrap_or_else(PoisonError::into_inner) = wanted;
    }

    /// Notes that a bundle is used now.
    pub async fn touch(&self, digest: Digest) {
        let mut uses = self.uses.lock().await;
        let next = uses.values().max().map_or(1, |last| last + 1);
        uses.insert(digest, next);
    }

    /// Reserves room for the files of a bundle that is to be fetched: removes bundles until they fit, or only wanted ones
    /// are left. A store that fails to remove keeps nobody from fetching.
    pub async fn reserve(&self, list: &FileList) -> Room<'_> {
        let room = {
            let mut reserved = self.reserved();
            reserved.last += 1;
            let number = reserved.last;
            reserved.lists.insert(number, list.clone());
            Room { cache: self, number }
        };
        if let Err(error) = self.tidy().await {
            tracing::warn!(%error, "no room was made in the cache of bundles");
        }
        room
    }

    /// Removes what fetches left that were given up, and bundles until the others and the reserved room are within the
    /// limit, or only wanted ones are left.
    ///
    /// # Errors
    /// [`BundleStoreError`] when the store fails.
    pub async fn tidy(&self) -> Result<(), BundleStoreError> {
        let mut uses = self.uses.lock().await;
        // Ahead of what is held: a fetch that ends meanwhile is found in one of the two, or in both.
        let fetched: Vec<FileList> = self.reserved().lists.values().cloned().collect();
        let reserved = fetched.iter().flat_map(blobs).collect();
        let held = self.held(&uses).await?;
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let evicted = evictions(&held, &wanted, &reserved, self.bytes_max);
        for digest in &evicted {
            tracing::info!(bundle = %digest, "removing a bundle from the cache, to make room");
            uses.remove(digest);
        }
        let kept: Vec<_> = held.iter().filter(|bundle| !evicted.contains(&bundle.digest)).collect();
        // A list that is damaged is among the wanted, whose fetch writes it anew, or of no use to anybody.
        let named = kept.iter().map(|bundle| bundle.digest).chain(fetched.iter().map(FileList::digest));
        let bundles: BTreeSet<Digest> = named.chain(wanted).collect();
        let mut files = reserved;
        files.extend(kept.iter().flat_map(|bundle| &bundle.blobs));
        let Swept { files, .. } =
            self.store.sweep(|bundle| bundles.contains(bundle), |file| files.contains_key(file)).await?;
        tracing::debug!(files, "the cache of bundles was looked through");
        Ok(())
    }

    async fn held(&self, uses: &BTreeMap<Digest, u64>) -> Result<Vec<Held>, BundleStoreError> {
        let mut held = Vec::new();
        for digest in self.store.held().await? {
            match self.store.list(&digest).await {
                Ok(list) => {
                    let used = uses.get(&digest).copied().unwrap_or(0);
                    held.push(Held { digest, blobs: blobs(&list).collect(), used });
                }
                // It names nothing that could be counted.
                Err(BundleStoreError::DamagedList { .. } | BundleStoreError::Missing(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(held)
    }

    fn reserved(&self) -> MutexGuard<'_, Reserved> {
        // Nothing panics half-way through a change of it.
        self.reserved.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn blobs(list: &FileList) -> impl Iterator<Item = (Digest, u64)> {
    list.files().iter().map(|file| (file.digest, file.bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::memory::InMemory;
    use object_store::path::Path;
    use object_store::{ObjectStore, ObjectStoreExt};
    use roost_protocol::bundle::{BundleFile, MODEL_FILE};

    use super::*;

    fn held(name: u8, used: u64, blobs: &[(u8, u64)]) -> Held {
        let blobs = blobs.iter().map(|(blob, bytes)| (Digest([*blob; 32]), *bytes)).collect();
        Held { digest: Digest([name; 32]), blobs, used }
    }

    fn check(held: &[Held], wanted: &[u8], reserved: &[(u8, u64)], expected: &[u8]) {
        let wanted = wanted.iter().map(|name| Digest([*name; 32])).collect();
        let reserved = reserved.iter().map(|(blob, bytes)| (Digest([*blob; 32]), *bytes)).collect();
        let evicted: Vec<_> =
            evictions(held, &wanted, &reserved, 100).iter().map(|digest| digest.0[0]).collect();
        assert_eq!(evicted, expected);
    }

    #[test]
    fn the_least_recently_used_go_first_and_the_wanted_stay() {
        let bundles = [held(1, 7, &[(11, 40)]), held(2, 3, &[(12, 40)]), held(3, 5, &[(13, 10)])];
        check(&bundles, &[], &[(20, 10)], &[]);
        check(&bundles, &[], &[(20, 11)], &[2]);
        check(&bundles, &[2], &[(20, 60)], &[3, 1]);
        check(&bundles, &[], &[(20, 500), (21, 500)], &[2, 3, 1]);
        check(&bundles, &[1, 2, 3], &[(20, 1000)], &[]);
    }

    #[test]
    fn shared_blobs_count_once() {
        let bundles = [held(1, 1, &[(11, 60), (12, 10)]), held(2, 2, &[(11, 60), (13, 10)])];
        check(&bundles, &[], &[(20, 20)], &[]);
        check(&bundles, &[], &[(20, 30)], &[1]);
        check(&bundles, &[], &[(20, 31)], &[1, 2]);
        check(&bundles, &[], &[(11, 60), (20, 20)], &[]);
    }

    /// A cache of 10 bytes, and a look at its disk.
    struct Disk {
        cache: Cache,
        objects: Arc<InMemory>,
    }

    impl Disk {
        fn new() -> Self {
            let objects = Arc::new(InMemory::new());
            Self { cache: Cache::new(BundleStore::new(objects.clone()), 10), objects }
        }

        async fn put(&self, list: &FileList, bytes: &[&'static [u8]]) {
            for bytes in bytes {
                let file = list.files().iter().find(|file| file.digest == Digest::of(bytes)).unwrap();
                let mut writer = self.cache.store.write(file);
                writer.write(bytes::Bytes::from_static(bytes)).await.unwrap();
                writer.finish().await.unwrap();
            }
        }

        async fn bundle(&self, files: &[&'static [u8]]) -> FileList {
            let list = list(files);
            self.put(&list, files).await;
            self.cache.store.seal(&list).await.unwrap();
            list
        }

        /// The bytes of all blobs.
        async fn bytes(&self) -> u64 {
            let listed = self.objects.list_with_delimiter(Some(&Path::from("blobs"))).await.unwrap();
            listed.objects.iter().map(|meta| meta.size).sum()
        }
    }

    /// The list of a bundle of these files, the first of which is its model.
    fn list(files: &[&[u8]]) -> FileList {
        let file = |(i, bytes): (usize, &&[u8])| BundleFile {
            name: if i == 0 { MODEL_FILE.to_owned() } else { format!("weights-{i}") },
            bytes: bytes.len() as u64,
            digest: Digest::of(bytes),
        };
        FileList::new(files.iter().enumerate().map(file).collect()).unwrap()
    }

    #[tokio::test]
    async fn what_is_evicted_leaves_shared_blobs() {
        let disk = Disk::new();
        let old = disk.bundle(&[b"old", b"shared"]).await;
        let new = disk.bundle(&[b"new", b"shared"]).await;
        let cache = &disk.cache;
        cache.touch(old.digest()).await;
        cache.touch(new.digest()).await;
        cache.set_wanted([new.digest()].into());
        let _room = cache.reserve(&list(&[b"1"])).await;
        assert_eq!(cache.store.held().await.unwrap(), [new.digest()]);
        assert_eq!(cache.store.missing(&new).await.unwrap(), []);
        assert_eq!(cache.store.missing(&old).await.unwrap().len(), 1);
    }

    #[tokio::test]
    async fn fetches_at_the_same_time_do_not_count_on_the_same_room() {
        let disk = Disk::new();
        let old = disk.bundle(&[b"old!"]).await;
        let first = disk.cache.reserve(&list(&[b"first"])).await;
        assert_eq!(disk.cache.store.held().await.unwrap(), [old.digest()], "9 of 10 bytes");
        let second = disk.cache.reserve(&list(&[b"secon"])).await;
        assert_eq!(disk.cache.store.held().await.unwrap(), [], "10 bytes without the old one");
        drop((first, second));
        assert!(disk.cache.reserved().lists.is_empty());
    }

    #[tokio::test]
    async fn what_a_fetch_left_that_was_given_up_goes_and_what_one_under_way_wrote_stays() {
        let disk = Disk::new();
        let (goes_on, given_up) = (list(&[b"goes", b"on"]), list(&[b"given", b"up"]));
        let room = disk.cache.reserve(&goes_on).await;
        disk.put(&goes_on, &[b"goes"]).await;
        let given_back = disk.cache.reserve(&given_up).await;
        disk.put(&given_up, &[b"given"]).await;
        drop(given_back);
        assert_eq!(disk.bytes().await, 9);
        disk.cache.tidy().await.unwrap();
        assert_eq!(disk.bytes().await, 4);
        disk.put(&goes_on, &[b"on"]).await;
        disk.cache.store.seal(&goes_on).await.unwrap();
        drop(room);
        disk.cache.tidy().await.unwrap();
        assert_eq!(disk.cache.store.missing(&goes_on).await.unwrap(), []);
    }

    #[tokio::test]
    async fn a_damaged_list_goes_unless_its_bundle_is_wanted() {
        let disk = Disk::new();
        let wanted = Digest::of(b"wanted");
        for digest in [wanted, Digest::of(b"nobody's")] {
            let path = Path::from(format!("bundles/{digest}"));
            disk.objects.put(&path, "no list".into()).await.unwrap();
        }
        disk.cache.set_wanted([wanted].into());
        disk.cache.tidy().await.unwrap();
        assert_eq!(disk.cache.store.held().await.unwrap(), [wanted]);
    }
}
