//! The disk cache of bundles: what goes when a further bundle must fit.
//!
//! Which bundles go is a pure function, [`evictions`]; [`Cache`] carries it out on a [`BundleStore`], which must be the
//! worker's own: a coordinator's bundles are no cache. What is wanted never goes, even above the limit, since serving
//! outranks a tidy disk. A blob that another bundle shares stays. A fetch that counted on a blob which goes at that very
//! moment fails and is tried again.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use roost_protocol::Digest;
use roost_protocol::quic::bundles::{BundleStore, BundleStoreError};

/// A bundle that is held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The bundle.
    pub digest: Digest,
    /// Its blobs, and their bytes.
    pub blobs: BTreeMap<Digest, u64>,
    /// When it was last used, as a count of uses; 0 when it was not since the process started.
    pub used: u64,
}

/// The bundles to remove so that `incoming` further bytes fit below `limit`, those used longest ago first. Fewer when the
/// rest is wanted.
pub fn evictions(held: &[Held], wanted: &BTreeSet<Digest>, incoming: u64, limit: u64) -> Vec<Digest> {
    let mut candidates: Vec<_> = held.iter().filter(|bundle| !wanted.contains(&bundle.digest)).collect();
    candidates.sort_by_key(|bundle| (bundle.used, bundle.digest));
    let mut removed = BTreeSet::new();
    let mut order = Vec::new();
    for candidate in candidates {
        let kept = held.iter().filter(|bundle| !removed.contains(&bundle.digest));
        // Blobs that bundles share lie on the disk once.
        let blobs: BTreeMap<&Digest, u64> =
            kept.flat_map(|bundle| &bundle.blobs).map(|(digest, bytes)| (digest, *bytes)).collect();
        if blobs.values().sum::<u64>().saturating_add(incoming) <= limit {
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
    /// Per bundle the number of its last use. Held while bundles are removed, so that only one task does.
    uses: tokio::sync::Mutex<BTreeMap<Digest, u64>>,
}

impl Cache {
    /// The bundles in `store`.
    pub fn new(store: BundleStore, bytes_max: u64) -> Self {
        Self { store, bytes_max, wanted: Mutex::default(), uses: tokio::sync::Mutex::default() }
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

    /// Removes bundles until `bytes` further ones fit, or only wanted bundles are left.
    ///
    /// # Errors
    /// [`BundleStoreError`] when the store fails.
    pub async fn make_room(&self, bytes: u64) -> Result<(), BundleStoreError> {
        let mut uses = self.uses.lock().await;
        let held = self.held(&uses).await?;
        let wanted = self.wanted.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let evicted = evictions(&held, &wanted, bytes, self.bytes_max);
        for digest in &evicted {
            let others = held.iter().filter(|bundle| !evicted.contains(&bundle.digest));
            let shared: BTreeSet<_> = others.flat_map(|bundle| bundle.blobs.keys().copied()).collect();
            tracing::info!(bundle = %digest, "removing a bundle from the cache, to make room");
            self.store.remove(digest, |blob| shared.contains(blob)).await?;
            uses.remove(digest);
        }
        Ok(())
    }

    async fn held(&self, uses: &BTreeMap<Digest, u64>) -> Result<Vec<Held>, BundleStoreError> {
        let mut held = Vec::new();
        for digest in self.store.held().await? {
            let blobs = match self.store.list(&digest).await {
                Ok(list) => list.files().iter().map(|file| (file.digest, file.bytes)).collect(),
                // A damaged list names nothing that could be counted; its fetch writes it anew.
                Err(BundleStoreError::DamagedList { .. } | BundleStoreError::Missing(_)) => BTreeMap::new(),
                Err(error) => return Err(error),
            };
            held.push(Held { digest, blobs, used: uses.get(&digest).copied().unwrap_or(0) });
        }
        Ok(held)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use roost_protocol::bundle::{BundleFile, FileList, MODEL_FILE};

    use super::*;

    fn held(name: u8, used: u64, blobs: &[(u8, u64)]) -> Held {
        let blobs = blobs.iter().map(|(blob, bytes)| (Digest([*blob; 32]), *bytes)).collect();
        Held { digest: Digest([name; 32]), blobs, used }
    }

    fn check(held: &[Held], wanted: &[u8], incoming: u64, expected: &[u8]) {
        let wanted = wanted.iter().map(|name| Digest([*name; 32])).collect();
        let evicted: Vec<_> =
            evictions(held, &wanted, incoming, 100).iter().map(|digest| digest.0[0]).collect();
        assert_eq!(evicted, expected);
    }

    #[test]
    fn the_least_recently_used_go_first_and_the_wanted_stay() {
        let bundles = [held(1, 7, &[(11, 40)]), held(2, 3, &[(12, 40)]), held(3, 5, &[(13, 10)])];
        check(&bundles, &[], 10, &[]);
        check(&bundles, &[], 11, &[2]);
        check(&bundles, &[2], 60, &[3, 1]);
        check(&bundles, &[], 1000, &[2, 3, 1]);
        check(&bundles, &[1, 2, 3], 1000, &[]);
    }

    #[test]
    fn shared_blobs_count_once() {
        let bundles = [held(1, 1, &[(11, 60), (12, 10)]), held(2, 2, &[(11, 60), (13, 10)])];
        check(&bundles, &[], 20, &[]);
        check(&bundles, &[], 30, &[1]);
        check(&bundles, &[], 31, &[1, 2]);
    }

    #[tokio::test]
    async fn what_is_evicted_leaves_shared_blobs() {
        let store = BundleStore::new(Arc::new(object_store::memory::InMemory::new()));
        let cache = Cache::new(store.clone(), 10);
        let file = |name: &str, bytes: &'static [u8]| {
            (
                BundleFile { name: name.to_owned(), bytes: bytes.len() as u64, digest: Digest::of(bytes) },
                bytes,
            )
        };
        let bundle = async |files: Vec<(BundleFile, &'static [u8])>| {
            for (file, bytes) in &files {
                let mut writer = store.write(file);
                writer.write(bytes::Bytes::from_static(bytes)).await.unwrap();
                writer.finish().await.unwrap();
            }
            let list = FileList::new(files.into_iter().map(|(file, _)| file).collect()).unwrap();
            store.seal(&list).await.unwrap();
            list
        };
        let old = bundle(vec![file(MODEL_FILE, b"old"), file("weights", b"shared")]).await;
        let new = bundle(vec![file(MODEL_FILE, b"new"), file("weights", b"shared")]).await;
        cache.touch(old.digest()).await;
        cache.touch(new.digest()).await;
        cache.set_wanted([new.digest()].into());
        cache.make_room(1).await.unwrap();
        assert_eq!(store.held().await.unwrap(), [new.digest()]);
        assert_eq!(store.missing(&new).await.unwrap(), []);
        assert_eq!(store.missing(&old).await.unwrap().len(), 1);
    }
}
