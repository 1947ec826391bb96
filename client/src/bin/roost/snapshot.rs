//! `roost cluster snapshot`: the replicated state in a file, against the day on which all coordinators are lost.
//!
//! A file appears under its name only after its hash was checked and its bytes are durable. Restoring is done by
//! `roost-node recover`, on the machine of a coordinator that is stopped: it writes the database, which this command line
//! knows nothing of.

use std::fs::File;
use std::io::{BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context as _;
use clap::Subcommand;
use indicatif::HumanBytes;
use roost_protocol::snapshot::{self, SnapshotHeader};
use serde::Serialize;

use crate::moment::rfc3339;
use crate::output::{Output, Report};
use crate::session::Session;
use crate::table::{Table, left, right};

/// How long a leader is looked for when `--timeout` does not say: elections, and once it may take to encode a large state.
const WITHIN: Duration = Duration::from_secs(30);

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Writes the replicated state to a file: all that was acknowledged before, but for the bundles themselves
    #[command(after_help = "Example:\n  roost cluster snapshot save roost.snapshot\n\n\
        The bundles live in the coordinators' stores (or in S3) and are backed up there. To restore:\n  \
        roost-node recover --config cluster.toml --name c1 --snapshot roost.snapshot --force-new-group")]
    Save {
        /// The file; one that exists is replaced
        file: PathBuf,
    },
    /// Verifies a file without the cluster and shows what is in it
    Status {
        /// The file
        file: PathBuf,
    },
}

/// What is in a snapshot.
#[derive(Debug, Serialize)]
struct Shown {
    file: String,
    bytes: u64,
    cluster: String,
    generation: u32,
    index: u64,
    level: u32,
    taken: String,
    coordinators: Vec<String>,
    versions: Vec<Line>,
    /// The bundles that versions are made of.
    bundles: usize,
}

#[derive(Debug, Serialize)]
struct Line {
    version: String,
    stable: bool,
    digest: String,
    bytes: u64,
    pushed: String,
    by: String,
}

/// Takes a snapshot.
///
/// # Errors
/// When no leader gives it, or it cannot be written.
pub async fn save(session: &Session, file: &Path) -> anyhow::Result<()> {
    let mut name = file.file_name().context("a file is needed")?.to_owned();
    name.push(".part");
    let part = file.with_file_name(name);
    let of_part = || format!("cannot write {}", part.display());
    let mut out = File::create(&part).with_context(of_part)?;
    let within = session.left().unwrap_or(WITHIN);
    let taken = session.client.control().snapshot(within, |piece| out.write_all(piece)).await;
    let shown = taken.map_err(anyhow::Error::from).and_then(|_| {
        out.sync_all().with_context(of_part)?;
        read(&part, file)
    });
    let shown = match shown {
        Ok(shown) => shown,
        Err(error) => {
            // What came is no snapshot. If it stays, it is called a part.
            let _ = std::fs::remove_file(&part);
            return Err(error);
        }
    };
    std::fs::rename(&part, file).with_context(|| format!("cannot write {}", file.display()))?;
    let folder = file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).with_context(of_part)?;
    Ok(session.output.print(&shown)?)
}

/// Verifies a snapshot and shows what is in it.
///
/// # Errors
/// When it is not what was written.
pub fn status(file: &Path, output: Output) -> anyhow::Result<()> {
    Ok(output.print(&read(file, file)?)?)
}

/// Verifies the file at `path`, which is, or will be, called `file`.
fn read(path: &Path, file: &Path) -> anyhow::Result<Shown> {
    let of = || file.display().to_string();
    let opened = File::open(path).with_context(of)?;
    let bytes = opened.metadata().with_context(of)?.len();
    let header = snapshot::read(&mut BufReader::new(opened), |_| {}).with_context(of)?;
    Ok(Shown::of(of(), bytes, &header))
}

impl Shown {
    fn of(file: String, bytes: u64, header: &SnapshotHeader) -> Self {
        let lines = header.models.iter().flat_map(|model| {
            model.versions.iter().map(|version| Line {
                version: format!("{}@{}", model.summary.model, version.version),
                stable: model.summary.traffic.stable == version.version,
                digest: version.digest.to_string(),
                bytes: version.bytes,
                pushed: rfc3339(version.pushed_at_ms),
                by: version.pushed_by.clone(),
            })
        });
        let mut coordinators: Vec<String> =
            header.coordinators.values().map(|coordinator| coordinator.name.to_string()).collect();
        coordinators.sort_unstable();
        Self {
            file,
            bytes,
            cluster: header.cluster.to_string(),
            generation: header.epoch.generation,
            index: header.epoch.index,
            level: header.level,
            taken: rfc3339(header.at_ms),
            coordinators,
            versions: lines.collect(),
            bundles: header.bundles().len(),
        }
    }
}

impl Report for Shown {
    fn text(&self) -> String {
        let Self { file, cluster, generation, index, level, taken, bundles, .. } = self;
        let head = format!(
            "{file} is whole: {}, taken {taken}\n\
             cluster {cluster}, generation {generation}, index {index}, level {level}\n\
             coordinators {}\n",
            HumanBytes(self.bytes),
            self.coordinators.join(", "),
        );
        if self.versions.is_empty() {
            return head + "no version\n";
        }
        let mut table = Table::new([
            left("VERSION"),
            left("TRAFFIC"),
            right("SIZE"),
            left("PUSHED"),
            left("BY"),
            left("BUNDLE"),
        ]);
        for line in &self.versions {
            table.row([
                line.version.clone(),
                if line.stable { "stable" } else { "" }.to_owned(),
                HumanBytes(line.bytes).to_string(),
                line.pushed.clone(),
                line.by.clone(),
                line.digest.clone(),
            ]);
        }
        format!("{head}\n{table}{bundles} bundles, which are not in the file\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use roost_protocol::messages::control::{ModelSummary, VersionSummary};
    use roost_protocol::snapshot::SnapshotModel;
    use roost_protocol::traffic::Traffic;
    use roost_protocol::view::Coordinator;
    use roost_protocol::{ClusterId, Digest, Epoch, ModelName, NodeId, NodeName, Revision, Version};

    fn header() -> SnapshotHeader {
        let version = |number: u32| VersionSummary {
            version: Version(number),
            digest: Digest([number as u8; 32]),
            bytes: 98_304,
            pushed_by: "anna".to_owned(),
            pushed_at_ms: 1_770_091_506_789,
            note: String::new(),
        };
        let traffic = Traffic { revision: Revision(1), stable: Version(1), canary: None, previous: None };
        let model = ModelName::new("digits").unwrap();
        let summary = ModelSummary { model, traffic, versions: 2, labels: Default::default() };
        let coordinator =
            Coordinator { name: NodeName::new("c1").unwrap(), address: "h:7300".to_owned(), voter: true };
        SnapshotHeader {
            cluster: ClusterId(0xfeed),
            epoch: Epoch { generation: 2, index: 57 },
            level: 1,
            at_ms: 1_770_091_600_000,
            coordinators: [(NodeId(1), coordinator)].into(),
            models: vec![SnapshotModel { summary, versions: vec![version(1), version(2)] }],
            body_bytes: 0,
        }
    }

    #[test]
    fn a_snapshot_shows_its_versions() {
        let shown = Shown::of("roost.snapshot".to_owned(), 4_096, &header());
        expect_test::expect![[r#"
            roost.snapshot is whole: 4.00 KiB, taken 2026-02-03T04:06:40Z
            cluster 0000000000000000000000000000feed, generation 2, index 57, level 1
            coordinators c1

            VERSION   TRAFFIC       SIZE  PUSHED                BY    BUNDLE
            digits@1  stable   96.00 KiB  2026-02-03T04:05:06Z  anna  0101010101010101010101010101010101010101010101010101010101010101
            digits@2           96.00 KiB  2026-02-03T04:05:06Z  anna  0202020202020202020202020202020202020202020202020202020202020202
            2 bundles, which are not in the file
        "#]].assert_eq(&shown.text());
        let json = serde_json::to_value(&shown).unwrap();
        assert_eq!((&json["generation"], &json["bundles"]), (&2.into(), &2.into()));
    }

    #[test]
    fn a_damaged_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("s");
        let mut bytes = snapshot::encode(&header(), "state".into()).unwrap().concat();
        std::fs::write(&file, &bytes).unwrap();
        status(&file, Output::Json).unwrap();
        bytes[60] ^= 1;
        std::fs::write(&file, &bytes).unwrap();
        let error = format!("{:#}", status(&file, Output::Json).unwrap_err());
        assert!(error.contains("is damaged: its SHA-256 should be"), "{error}");
    }
}
