//! A push is acknowledged once a quorum of the voters, of both sets while one replaces another, holds its
//! bundle durably. What lies under a digest has it, files and lists alike, and so has what an engine loads.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use roost_protocol::Digest;
use roost_protocol::bundle::FileList;

use super::{End, Invariant};
use crate::disk::SimDisk;
use crate::facts::Fact;
use crate::history::{Call, Return};

/// The coordinators' store.
const FOLDER: &str = "bundles";

/// Bundles are held by a quorum, and are what their digests say.
pub struct Bundles {
    /// The coordinators' disks.
    coordinators: BTreeMap<String, SimDisk>,
    /// Who votes: the log index of each membership, when it was applied first, and its sets of names.
    voters: Vec<(u64, Duration, Vec<BTreeSet<String>>)>,
    /// When each coordinator was wiped last.
    wiped: BTreeMap<String, Duration>,
}

impl Bundles {
    /// The bundles on the coordinators' disks.
    pub fn new(coordinators: BTreeMap<String, SimDisk>) -> Self {
        Self { coordinators, voters: Vec::new(), wiped: BTreeMap::new() }
    }
}

impl Invariant for Bundles {
    fn name(&self) -> &'static str {
        "bundles are held and whole"
    }

    fn watch(&mut self, at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Wiped(_) => {
                self.wiped.insert(host.to_owned(), at);
                Ok(())
            }
            Fact::Loaded { expected, actual } if expected != actual => {
                Err(format!("{host} loads {actual} as {expected}"))
            }
            Fact::Voters { index, sets } => {
                // Every coordinator applies each.
                if self.voters.last().is_none_or(|(last, ..)| last < index) {
                    self.voters.push((*index, at, sets.clone()));
                }
                Ok(())
            }
            Fact::Returned(op) => {
                let (Call::Push { digest, .. }, Some((_, Return::Pushed { .. }))) = (&op.call, &op.returned)
                else {
                    return Ok(());
                };
                let holders = self.coordinators.iter().filter(|(name, disk)| {
                    holds(&disk.objects(FOLDER), digest) || self.may_have_lost(name, disk, op.invoked)
                });
                let holders: BTreeSet<&String> = holders.map(|(name, _)| name).collect();
                let held = |set: &BTreeSet<String>| {
                    set.iter().filter(|voter| holders.contains(voter)).count() > set.len() / 2
                };
                let voted = self.voted_since(op.invoked);
                if voted.iter().any(|(_, _, sets)| sets.iter().all(held)) {
                    return Ok(());
                }
                Err(format!("{op:?} was acknowledged; {holders:?} hold or lost it, no quorum of {voted:?}"))
            }
            _ => Ok(()),
        }
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        for remains in &end.remains {
            for (path, bytes) in remains.bundles.iter().chain(&remains.cache) {
                let (name, actual) = if let Some(name) = path.strip_prefix("blobs/") {
                    (name, Ok(Digest::of(bytes)))
                } else if let Some(name) = path.strip_prefix("bundles/") {
                    (name, postcard::from_bytes::<FileList>(bytes).map(|list| list.digest()))
                } else {
                    continue;
                };
                if actual.as_ref().ok() != name.parse().ok().as_ref() {
                    let node = &remains.node;
                    return Err(format!("{node} has bytes of the digest {actual:?} under {path}"));
                }
            }
        }
        Ok(())
    }
}

impl Bundles {
    /// The memberships of which one counted when a push that was `invoked` then was committed: the last
    /// before it, and all since.
    fn voted_since(&self, invoked: Duration) -> &[(u64, Duration, Vec<BTreeSet<String>>)] {
        let later = self.voters.partition_point(|(_, at, _)| *at <= invoked);
        &self.voters[later.saturating_sub(1)..]
    }

    /// Whether a coordinator may have held a bundle that was pushed since `invoked`, and hold it no more: it
    /// was wiped meanwhile, or it read a damaged copy, which it removes to fetch it again.
    fn may_have_lost(&self, name: &str, disk: &SimDisk, invoked: Duration) -> bool {
        disk.flipped(FOLDER).is_some_and(|at| at >= invoked)
            || self.wiped.get(name).is_some_and(|at| *at >= invoked)
    }
}

/// Whether a store has a bundle whole.
fn holds(objects: &BTreeMap<String, Bytes>, digest: &Digest) -> bool {
    let Some(list) = objects.get(&format!("bundles/{digest}")) else { return false };
    let Ok(list) = postcard::from_bytes::<FileList>(list) else { return false };
    let whole =
        |file: &Digest| objects.get(&format!("blobs/{file}")).is_some_and(|bytes| Digest::of(bytes) == *file);
    list.digest() == *digest && list.files().iter().all(|file| whole(&file.digest))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::path::Path;
    use object_store::{ObjectStoreExt, PutPayload};
    use roost_node::environment::Files;
    use roost_protocol::Version;
    use roost_protocol::bundle::BundleFile;

    use super::super::fixtures::{at, end, op};
    use super::*;
    use crate::condition::Conditions;
    use crate::disk::{Casualties, SimFiles};
    use crate::facts::Loss;
    use crate::remains::{Remains, Standing};

    fn list() -> FileList {
        let file = |name: &str, bytes: &[u8]| BundleFile {
            name: name.to_owned(),
            bytes: bytes.len() as u64,
            digest: Digest::of(bytes),
        };
        FileList::new(vec![file("model.onnx", b"model"), file("model.toml", b"")]).unwrap()
    }

    async fn hold(disk: &SimDisk) {
        let store = SimFiles::of(disk.life(), Conditions::default()).bundles(FOLDER).unwrap();
        let put = async |path: String, bytes: Vec<u8>| {
            store.put(&Path::from(path), PutPayload::from(bytes)).await.unwrap();
        };
        put(format!("blobs/{}", Digest::of(b"model")), b"model".to_vec()).await;
        put(format!("blobs/{}", Digest::of(b"")), Vec::new()).await;
        put(format!("bundles/{}", list().digest()), postcard::to_stdvec(&list()).unwrap()).await;
    }

    fn vote(index: u64, sets: &[&str]) -> Fact {
        let names = |set: &&str| set.split(' ').map(str::to_owned).collect();
        Fact::Voters { index, sets: sets.iter().map(names).collect() }
    }

    fn pushed(invoked: u64) -> Fact {
        let call = Call::Push { note: "op1-1".to_owned(), digest: list().digest() };
        let returned = Return::Pushed { version: Version(1), stable: true };
        Fact::Returned(Arc::new(op(invoked, call, Some((invoked + 2, returned)))))
    }

    #[tokio::test]
    async fn a_push_needs_a_quorum_and_only_a_loss_meanwhile_excuses() {
        let disks: Vec<SimDisk> =
            (1..=3).map(|i| SimDisk::new(&format!("c{i}"), i, Casualties::default())).collect();
        let named = disks.iter().zip(1..).map(|(disk, i)| (format!("c{i}"), disk.clone()));
        let mut bundles = Bundles::new(named.collect());
        bundles.watch(at(0), "c1", &vote(1, &["c1 c2 c3"])).unwrap();
        hold(&disks[0]).await;
        bundles.watch(at(12), "c1", &pushed(10)).unwrap_err();
        bundles.watch(at(13), "c3", &Fact::Wiped(Loss::Databases)).unwrap();
        bundles.watch(at(14), "c1", &pushed(12)).unwrap();
        bundles.watch(at(17), "c1", &pushed(15)).unwrap_err();
        bundles.watch(at(18), "c3", &Fact::Wiped(Loss::Databases)).unwrap();
        bundles.watch(at(22), "c1", &pushed(20)).unwrap_err();
        hold(&disks[1]).await;
        bundles.watch(at(22), "c1", &pushed(20)).unwrap();
    }

    #[tokio::test]
    async fn a_quorum_is_one_of_those_who_vote_at_the_time() {
        let disks: Vec<SimDisk> =
            (1..=5).map(|i| SimDisk::new(&format!("c{i}"), i, Casualties::default())).collect();
        let named = disks.iter().zip(1..).map(|(disk, i)| (format!("c{i}"), disk.clone()));
        let mut bundles = Bundles::new(named.collect());
        hold(&disks[0]).await;
        hold(&disks[1]).await;
        bundles.watch(at(1), "c1", &pushed(0)).unwrap_err();
        let mut check = |seconds: u64, index: u64, sets: &[&str], holds: bool| {
            bundles.watch(at(seconds), "c1", &vote(index, sets)).unwrap();
            // Told by another as well, later.
            bundles.watch(at(seconds + 1), "c2", &vote(index, sets)).unwrap();
            let told = bundles.watch(at(seconds + 9), "op1", &pushed(seconds + 5));
            assert_eq!(told.is_ok(), holds, "{sets:?}");
        };
        check(10, 1, &["c1 c2 c3"], true);
        check(20, 2, &["c1 c2 c3", "c1 c2 c3 c4"], false);
        check(30, 3, &["c1 c2 c3 c4"], false);
        check(40, 4, &["c1 c4 c5"], false);
        check(50, 5, &["c1 c2 c5"], true);
        bundles.watch(at(60), "c1", &vote(6, &["c3 c4 c5"])).unwrap();
        // It may have been committed before.
        bundles.watch(at(61), "op1", &pushed(59)).unwrap();
        bundles.watch(at(63), "op1", &pushed(61)).unwrap_err();
    }

    #[tokio::test]
    async fn a_flip_of_the_store_excuses_and_one_of_a_database_does_not() {
        let disks: Vec<SimDisk> =
            (1..=3).map(|i| SimDisk::new(&format!("c{i}"), i, Casualties::default())).collect();
        let named = disks.iter().zip(1..).map(|(disk, i)| (format!("c{i}"), disk.clone()));
        let mut bundles = Bundles::new(named.collect());
        bundles.watch(at(0), "c1", &vote(1, &["c1 c2 c3"])).unwrap();
        hold(&disks[0]).await;
        let (disk, files) = (&disks[1], SimFiles::of(disks[1].life(), Conditions::default()));
        let database = files.database("raft.redb").unwrap();
        database.write(0, &[1; 8]).unwrap();
        disk.change_faults(|faults| faults.flip = 1.0);
        database.read(0, &mut [0; 8]).unwrap();
        bundles.watch(at(2), "c1", &pushed(0)).unwrap_err();
        hold(disk).await;
        let model = Path::from(format!("blobs/{}", Digest::of(b"model")));
        let store = files.bundles(FOLDER).unwrap();
        store.get(&model).await.unwrap().bytes().await.unwrap();
        store.delete(&model).await.unwrap();
        bundles.watch(at(2), "c1", &pushed(0)).unwrap();
        bundles.watch(at(3), "c1", &pushed(1)).unwrap_err();
    }

    #[test]
    fn what_lies_under_a_digest_has_it() {
        let judge = |path: String, bytes: &[u8]| {
            let remains = Remains {
                node: "c1".to_owned(),
                raft: None,
                bundles: [(path, Bytes::copy_from_slice(bytes))].into(),
                cache: BTreeMap::new(),
                standing: Standing::Sound,
            };
            Bundles::new(BTreeMap::new()).judge(&End { remains: vec![remains], ..end() })
        };
        let file = format!("blobs/{}", Digest::of(b"model"));
        judge(file.clone(), b"model").unwrap();
        judge(file, b"modal").unwrap_err();
        judge("blobs/no-digest".to_owned(), b"model").unwrap_err();
        let bytes = postcard::to_stdvec(&list()).unwrap();
        judge(format!("bundles/{}", list().digest()), &bytes).unwrap();
        judge(format!("bundles/{}", Digest::of(b"other")), &bytes).unwrap_err();
        judge(format!("bundles/{}", list().digest()), b"no list").unwrap_err();
    }

    #[test]
    fn what_an_engine_loads_has_the_digest_that_it_was_checked_against() {
        let load = |bytes: &[u8]| {
            let loaded = Fact::Loaded { expected: Digest::of(b"model"), actual: Digest::of(bytes) };
            Bundles::new(BTreeMap::new()).watch(at(1), "w1", &loaded)
        };
        load(b"model").unwrap();
        load(b"modal").unwrap_err();
    }
}
