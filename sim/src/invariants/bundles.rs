//! A push is acknowledged once a quorum of coordinators holds its bundle durably, and what lies under a digest has it.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use roost_protocol::Digest;
use roost_protocol::bundle::FileList;

use super::{End, Invariant};
use crate::disk::SimDisk;
use crate::facts::Fact;
use crate::history::{Call, Return};

/// Bundles are held by a quorum, and are what their digests say.
pub struct Bundles {
    /// The coordinators' disks.
    coordinators: BTreeMap<String, SimDisk>,
    /// Those that were wiped count as holders of nothing.
    quorum: usize,
    wiped: usize,
}

impl Bundles {
    /// The bundles on the coordinators' disks.
    pub fn new(coordinators: BTreeMap<String, SimDisk>) -> Self {
        let quorum = coordinators.len() / 2 + 1;
        Self { coordinators, quorum, wiped: 0 }
    }
}

impl Invariant for Bundles {
    fn name(&self) -> &'static str {
        "bundles are held and whole"
    }

    fn watch(&mut self, _at: Duration, host: &str, fact: &Fact) -> Result<(), String> {
        match fact {
            Fact::Wiped => {
                self.wiped += usize::from(self.coordinators.contains_key(host));
                Ok(())
            }
            Fact::Returned(op) => {
                let (Call::Push { digest, .. }, Some((_, Return::Pushed { .. }))) = (&op.call, &op.returned)
                else {
                    return Ok(());
                };
                let holders =
                    self.coordinators.values().filter(|disk| holds(&disk.objects("bundles"), digest));
                let holders = holders.count();
                // Who held it may have been wiped by the time that the push returned.
                if holders + self.wiped >= self.quorum {
                    return Ok(());
                }
                let quorum = self.quorum;
                Err(format!("{op:?} was acknowledged; {holders} coordinators hold it, {quorum} are a quorum"))
            }
            _ => Ok(()),
        }
    }

    fn judge(&mut self, end: &End) -> Result<(), String> {
        for remains in &end.remains {
            for (path, bytes) in remains.bundles.iter().chain(&remains.cache) {
                let Some(name) = path.strip_prefix("blobs/") else { continue };
                let actual = Digest::of(bytes);
                if name.parse() != Ok(actual) {
                    let node = &remains.node;
                    return Err(format!("{node} has bytes of the digest {actual} under {name}"));
                }
            }
        }
        Ok(())
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
