//! `roost-node recover`: a coordinator that is stopped becomes a group of one, after its cluster lost its quorum for good.
//!
//! It works on the data folder, which a node that runs has locked. `roost`, the command line of operators, cannot do it: it
//! goes over the network, and knows neither the database nor the replicated state.

use std::fmt;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, bail, ensure};
use clap::Args;
use roost_coordinator::recover::{Found, Recovered, Recovery, Source, look, recover};
use roost_coordinator::{GroupMember, Job, JobQueue};
use roost_protocol::quic::bundles::BundleStore;
use roost_protocol::{Digest, NodeId, NodeName, snapshot};

use crate::config::{ClusterConfig, ConfigRole, path_for};
use crate::environment::production::OsEntropy;
use crate::environment::production::files::OsFiles;
use crate::environment::{Entropy, Files};
use crate::identity::Identity;

/// The coordinator's database in the data folder.
pub(super) const DATABASE: &str = "raft.redb";
/// The bundles in the data folder.
pub(super) const BUNDLES: &str = "bundles";

/// How a coordinator is made a group of one.
#[derive(Debug, Clone, Args)]
pub struct RecoverOptions {
    /// The cluster config.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Which of its nodes this is.
    #[arg(long)]
    pub name: String,
    /// Begins with a snapshot of `roost cluster snapshot save` instead of with what the data folder holds.
    #[arg(long, value_name = "FILE")]
    pub snapshot: Option<PathBuf>,
    /// Raises the generation to this at least. Needed where the cluster was restored after the snapshot was taken.
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub generation: u32,
    /// Says that every other coordinator is gone for good. One that comes back with its old data belongs to the old group.
    /// Without it nothing is changed, and it is only shown what the data folder holds.
    #[arg(long)]
    pub force_new_group: bool,
}

/// What was done, for people.
struct Told<'a> {
    name: &'a str,
    node: NodeId,
    recovered: &'a Recovered,
    /// Where the database lies as it was.
    kept: Option<PathBuf>,
    /// None where the store of bundles did not answer.
    missing: Option<Vec<Digest>>,
}

/// Carries the command out.
///
/// # Errors
/// When nothing was changed, with what was being done.
pub fn main(options: &RecoverOptions) -> anyhow::Result<()> {
    let cluster = ClusterConfig::read(&options.config)?;
    let folder = options.config.parent().unwrap_or(Path::new("."));
    let entry = cluster.node(&options.name)?;
    let address = entry.coordinator_address.clone().filter(|_| entry.is(ConfigRole::Coordinator));
    let address = address.with_context(|| format!("{} is no coordinator in the config", entry.name))?;
    let data = path_for(folder, &entry.data, &entry.name);
    let files = OsFiles::open(&data).with_context(|| format!("data folder {}", data.display()))?;
    let files: Arc<dyn Files> = Arc::new(files);
    let source = options.snapshot.as_deref().map_or(Ok(Source::Folder), read_snapshot)?;
    let present = data.join(DATABASE);
    let is_new = !present.exists();
    ensure!(
        !is_new || options.snapshot.is_some(),
        "the data folder {} has no database; a snapshot would be needed",
        data.display()
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    if !options.force_new_group {
        if !is_new {
            let found = runtime.block_on(look_at_copy(&present, &*files))?;
            print!("{}", Held(&entry.name, found));
        }
        bail!("nothing was changed; say by --force-new-group that the other coordinators are gone for good");
    }
    // Ahead of the change, which nothing may fail behind that can be known before.
    let bundles = match &cluster.bundles.s3 {
        Some(s3) => runtime.block_on(crate::process::s3_store(s3, &cluster, entry))?,
        None => files.bundles(BUNDLES)?,
    };
    let entropy: &dyn Entropy = &OsEntropy;
    let identity = Identity::open(files.clone(), entropy)?;
    let kept = keep(&present)?;
    // As for a new node: TOML's integers are signed.
    let node = NodeId(entropy.u64() >> 1);
    let recovery = Recovery {
        source,
        node,
        founder: GroupMember { name: entry.name.clone(), address },
        generation_min: options.generation,
    };
    runtime.block_on(async {
        let recovered = match recover(files.database(DATABASE)?, Arc::new(Inline), recovery).await {
            Ok(recovered) => recovered,
            Err(error) => {
                if is_new {
                    // It would be in the way of whatever comes next.
                    std::fs::remove_file(&present)?;
                }
                return Err(error.into());
            }
        };
        // Should this fail, the node does not start: its database is another node's. The command may be given again.
        identity.become_another(node, recovered.cluster)?;
        let (name, looked) = (entry.name.as_str(), missing(&BundleStore::new(bundles), &recovered).await);
        let (missing, unknown) = match looked {
            Ok(missing) => (Some(missing), None),
            Err(error) => (None, Some(error)),
        };
        print!("{}", Told { name, node, recovered: &recovered, kept, missing });
        let unseen =
            |error: anyhow::Error| error.context("the group is made, but its bundles were not found out");
        unknown.map_or(Ok(()), |error| Err(unseen(error)))
    })
}

/// Looks at a copy of the database: to open one is to set it up where it is empty, and to mend it where it was not closed.
async fn look_at_copy(present: &Path, files: &dyn Files) -> anyhow::Result<Found> {
    let name = format!("{DATABASE}.looked-at");
    let copy = present.with_file_name(&name);
    let looked = async {
        std::fs::copy(present, &copy)
            .with_context(|| format!("cannot copy the database to {}", copy.display()))?;
        anyhow::Ok(look(files.database(&name)?, Arc::new(Inline)).await?)
    };
    let found = looked.await;
    // Should it stay, the next look takes its place.
    if let Err(error) = std::fs::remove_file(&copy)
        && error.kind() != io::ErrorKind::NotFound
    {
        eprintln!("{} can be removed by hand: {error}", copy.display());
    }
    found
}

fn read_snapshot(path: &Path) -> anyhow::Result<Source> {
    let of = || format!("snapshot {}", path.display());
    let mut file = BufReader::new(File::open(path).with_context(of)?);
    let mut body = Vec::new();
    let header = snapshot::read(&mut file, |piece| body.extend_from_slice(piece)).with_context(of)?;
    Ok(Source::Snapshot { header: Box::new(header), body })
}

/// Keeps the database as it is, under another name. None where there is none.
fn keep(present: &Path) -> anyhow::Result<Option<PathBuf>> {
    if !present.exists() {
        return Ok(None);
    }
    let mut free =
        (1..u32::MAX).map(|number| present.with_file_name(format!("{DATABASE}.before-recovery-{number}")));
    let kept = free.find(|path| !path.exists()).context("no name is free for the old database")?;
    // Under its name once it is whole, so that half a copy is never taken for the database as it was.
    let part = kept.with_added_extension("part");
    std::fs::copy(present, &part)
        .with_context(|| format!("cannot copy the database to {}", part.display()))?;
    File::open(&part)?.sync_all()?;
    std::fs::rename(&part, &kept)?;
    if let Some(folder) = kept.parent() {
        File::open(folder)?.sync_all()?;
    }
    Ok(Some(kept))
}

/// The bundles that versions are made of and that are not here.
async fn missing(store: &BundleStore, recovered: &Recovered) -> anyhow::Result<Vec<Digest>> {
    let mut missing = Vec::new();
    for (digest, files) in &recovered.bundles {
        // Without its list a bundle is held all the same: the coordinator writes it again from the state.
        if !store.holds(digest).await? && !store.missing(files).await?.is_empty() {
            missing.push(*digest);
        }
    }
    Ok(missing)
}

/// What a data folder holds, for people.
struct Held<'a>(&'a NodeName, Found);

impl fmt::Display for Held<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(name, Found { cluster, epoch, unconfirmed }) = self;
        writeln!(
            f,
            "{name} holds cluster {cluster} at epoch {epoch}, with {unconfirmed} entries that it did not know"
        )?;
        writeln!(f, "to be committed. Of several folders, take the one with the greatest epoch.")
    }
}

impl fmt::Display for Told<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, node, recovered, kept, missing } = self;
        let Recovered { cluster, before, epoch, unconfirmed, bundles } = recovered;
        writeln!(f, "{name} is a group of one now, as node {node}.")?;
        writeln!(f, "cluster {cluster}, generation {} (was {})", epoch.generation, before.generation)?;
        writeln!(f, "epoch {epoch} (was {before})")?;
        if *unconfirmed > 0 {
            writeln!(f, "{unconfirmed} entries of its log were not known to be committed, and are kept")?;
        }
        match missing.as_deref() {
            None => writeln!(
                f,
                "whether the {} bundles that versions are made of are here is not known",
                bundles.len()
            )?,
            Some([]) => writeln!(f, "all {} bundles that versions are made of are here", bundles.len())?,
            Some(missing) => {
                writeln!(f, "{} of {} bundles are not here:", missing.len(), bundles.len())?;
                missing.iter().try_for_each(|digest| writeln!(f, "  {digest}"))?;
                writeln!(f, "Their versions cannot be loaded anew before they are pushed again.")?;
            }
        }
        if let Some(kept) = kept {
            writeln!(f, "The database as it was: {}", kept.display())?;
        }
        writeln!(
            f,
            "Start {name}; then start the other coordinators with empty data folders, and take each in by\n\
             `roost cluster members add NAME --address HOST:PORT` and `roost cluster members promote NAME`.\n\
             Workers that kept their data folders join by themselves. One that lost its folder joins under its name once the\n\
             old one is out: `roost node drain NAME`, and a minute later, when it has joined, `roost node uncordon NAME`."
        )
    }
}

/// Runs disk work where it is submitted: nothing else waits here.
struct Inline;

impl JobQueue for Inline {
    fn submit(&self, job: Job) {
        job();
    }
}
