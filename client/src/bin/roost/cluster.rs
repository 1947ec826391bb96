//! `roost cluster status`: who takes part, who leads, and how far each node is with each version. Who coordinates is
//! changed in [`members`].
//!
//! The leader is asked, since it alone knows what it heard a moment ago and what the nodes counted. When
//! there is none, what the nodes last published is shown, and that it is no more than that.

use std::collections::BTreeMap;
use std::time::Duration;

use clap::Subcommand;
use indicatif::HumanBytes;
use roost_protocol::messages::control::{ClusterSummary, LevelSummary, VersionStatistics};
use roost_protocol::view::{Hold, Liveness, NodeState, Published, SoftState, View};
use roost_protocol::{ControlError, ModelName, NodeId, Version};
use serde::Serialize;

use crate::hosting::{Hosting, hosting};
use crate::members::{self, MembersCommand};
use crate::output::Report;
use crate::session::Session;
use crate::snapshot::{self, SnapshotCommand};
use crate::table::{Table, left, right};

/// How long the leader is asked for: an election and then some. Whoever looks at a cluster in trouble should
/// not wait longer for what is not coming.
const LEADER_WITHIN: Duration = Duration::from_secs(4);

/// What to do with the cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Shows coordinators, workers, and how far each node is with each version
    Status,
    /// Shows and changes who coordinates
    #[command(subcommand)]
    Members(MembersCommand),
    /// Keeps the replicated state in a file
    #[command(subcommand)]
    Snapshot(SnapshotCommand),
}

/// A cluster's state.
#[derive(Debug, Serialize)]
struct Status {
    cluster: String,
    epoch: String,
    term: u64,
    leader: Option<String>,
    /// Why the leader could not be asked; what follows is what the nodes last published then.
    leader_error: Option<String>,
    /// The level of the replicated state; none when the leader was not asked.
    level: Option<u32>,
    /// The level that each coordinator obeys, by name; none where it does not say.
    levels_obeyed: BTreeMap<String, Option<u32>>,
    /// Whether the leader has listened for long enough to know who is alive.
    settled: bool,
    coordinators: Vec<CoordinatorLine>,
    workers: Vec<WorkerLine>,
    versions: Vec<VersionLine>,
}

#[derive(Debug, Serialize)]
struct CoordinatorLine {
    name: String,
    address: String,
    leader: bool,
    voter: bool,
}

#[derive(Debug, Serialize)]
struct WorkerLine {
    name: String,
    address: String,
    state: &'static str,
    liveness: &'static str,
    speed: f64,
    zone: String,
    isa: String,
    memory_mib: u64,
}

#[derive(Debug, Serialize)]
struct VersionLine {
    version: String,
    bytes: u64,
    node: Hosting,
    /// What the node counted since its process started; none when the leader was not asked, or has not heard
    /// it.
    counts: Option<Counts>,
}

#[derive(Debug, Clone, Copy, Serialize)]
struct Counts {
    answered: u64,
    failed: u64,
    fallbacks: u64,
}

/// Carries the command out.
///
/// # Errors
/// When no node has told anything of the cluster.
pub async fn run(session: &Session, command: ClusterCommand) -> anyhow::Result<()> {
    match command {
        ClusterCommand::Status => status(session).await,
        ClusterCommand::Members(command) => members::run(session, command).await,
        ClusterCommand::Snapshot(SnapshotCommand::Save { file }) => snapshot::save(session, &file).await,
        ClusterCommand::Snapshot(SnapshotCommand::Status { file }) => snapshot::status(&file, session.output),
    }
}

async fn status(session: &Session) -> anyhow::Result<()> {
    // With little time, half of it: what is known without the leader must still be printed.
    let within = session.left().map_or(LEADER_WITHIN, |left| LEADER_WITHIN.min(left / 2));
    let asked = tokio::time::timeout(within, session.client.control().cluster()).await;
    let asked = asked.unwrap_or_else(|_| {
        let reason = format!("no answer from a leader within {} ms", within.as_millis());
        Err(ControlError::NoQuorum { reason })
    });
    // Of a leader that answered: without one there is nobody to ask.
    let level = match &asked {
        Ok(_) => {
            tokio::time::timeout(within, session.client.control().level()).await.ok().and_then(Result::ok)
        }
        Err(_) => None,
    };
    let published = session.published();
    let view =
        published.view.as_ref().ok_or_else(|| anyhow::anyhow!("no view of the cluster has arrived"))?;
    Ok(session.output.print(&Status::of(view, &published, asked.as_ref(), level.as_ref()))?)
}

impl Status {
    fn of(
        view: &View,
        published: &Published,
        asked: Result<&ClusterSummary, &ControlError>,
        level: Option<&LevelSummary>,
    ) -> Self {
        let summary = asked.ok();
        let soft: &SoftState = summary.map_or(&published.soft, |summary| &summary.soft);
        let leader = summary.map(|summary| summary.leader);
        let coordinators = view.coordinators.iter().map(|(id, coordinator)| CoordinatorLine {
            name: coordinator.name.to_string(),
            address: coordinator.address.clone(),
            leader: leader == Some(*id),
            voter: coordinator.voter,
        });
        let mut coordinators: Vec<_> = coordinators.collect();
        coordinators.sort_by(|a, b| a.name.cmp(&b.name));
        let mut workers: Vec<_> = view.nodes.keys().map(|id| WorkerLine::of(view, soft, *id)).collect();
        workers.sort_by(|a, b| a.name.cmp(&b.name));
        Self {
            cluster: view.cluster.to_string(),
            epoch: summary.map_or(view.epoch, |summary| summary.epoch.max(view.epoch)).to_string(),
            term: summary.map_or(soft.term, |summary| summary.term).0,
            leader: leader.map(|id| {
                let known = view.coordinators.get(&id);
                known.map_or_else(|| format!("node {id}"), |coordinator| coordinator.name.to_string())
            }),
            level: level.map(|level| level.level),
            levels_obeyed: level.map(|level| obeyed(view, level)).unwrap_or_default(),
            leader_error: asked.err().map(ToString::to_string),
            settled: soft.settled,
            coordinators,
            workers,
            versions: version_lines(view, soft, summary),
        }
    }
}

impl WorkerLine {
    fn of(view: &View, soft: &SoftState, id: NodeId) -> Self {
        let node = &view.nodes[&id];
        Self {
            name: node.name.to_string(),
            address: node.address.clone(),
            state: match (node.state, node.hold) {
                (NodeState::Active, None) => "active",
                (NodeState::Active, Some(Hold::Cordoned { .. })) => "cordoned",
                (NodeState::Active, Some(Hold::Drained)) => "drained",
                (NodeState::Draining, _) => "draining",
                (NodeState::Out, _) => "out",
            },
            liveness: match soft.nodes.get(&id).map(|report| report.liveness) {
                Some(Liveness::Live) => "live",
                Some(Liveness::Suspect) => "silent",
                None => "unknown",
            },
            speed: node.profile.speed.ratio(),
            zone: node.profile.zone.clone(),
            isa: node.profile.isa.clone(),
            memory_mib: node.profile.memory_mib,
        }
    }
}

/// The level that each coordinator obeys, by name.
fn obeyed(view: &View, level: &LevelSummary) -> BTreeMap<String, Option<u32>> {
    let name = |id: &NodeId| {
        let known = view.coordinators.get(id);
        known.map_or_else(|| format!("node {id}"), |coordinator| coordinator.name.to_string())
    };
    level.supported.iter().map(|(id, level)| (name(id), *level)).collect()
}

fn version_lines(view: &View, soft: &SoftState, summary: Option<&ClusterSummary>) -> Vec<VersionLine> {
    let ring = view.ring();
    let hosted = view.models.iter().flat_map(|(name, model)| model.versions.iter().map(move |v| (name, v)));
    let lines = hosted.flat_map(|(name, (version, hosted))| {
        let nodes = hosting(view, &ring, soft, name, *version);
        nodes.into_iter().map(move |node| VersionLine {
            version: format!("{name}@{version}"),
            bytes: hosted.bytes,
            counts: summary.and_then(|summary| counts(summary, node.id, name, *version)),
            node,
        })
    });
    lines.collect()
}

fn counts(summary: &ClusterSummary, node: NodeId, model: &ModelName, version: Version) -> Option<Counts> {
    let of_node = summary.statistics.get(&node)?;
    let mut of_version = of_node.iter().filter(|s| s.version.model == *model && s.version.version == version);
    let VersionStatistics { answered, failed, fallbacks, .. } = of_version.next()?;
    Some(Counts { answered: *answered, failed: *failed, fallbacks: *fallbacks })
}

impl Report for Status {
    fn text(&self) -> String {
        let Self { cluster, epoch, term, .. } = self;
        let head = match (&self.leader, &self.leader_error) {
            (Some(leader), _) => {
                let settled = if self.settled { "" } else { ", which has not heard all nodes yet" };
                let level = self.level_line();
                format!("cluster {cluster}, epoch {epoch}, led by {leader} in term {term}{settled}\n{level}")
            }
            (None, error) => format!(
                "cluster {cluster}, epoch {epoch}, last heard of in term {term}\n\
                 The leader could not be asked: {}.\n\
                 Below is what the nodes last published; who leads and what was counted is not known.\n",
                error.as_deref().unwrap_or("there is none")
            ),
        };
        let parts = [self.coordinator_table(), self.worker_table(), self.version_table()];
        std::iter::once(head).chain(parts).collect::<Vec<_>>().join("\n")
    }
}

impl Status {
    /// The level, and who keeps it from rising; nothing when it is not known.
    fn level_line(&self) -> String {
        let Some(level) = self.level else { return String::new() };
        let said = |obeyed: Option<u32>| obeyed.map_or("unknown".to_owned(), |obeyed| obeyed.to_string());
        let differing = self.levels_obeyed.iter().filter(|(_, obeyed)| **obeyed != Some(level));
        let differing: Vec<String> =
            differing.map(|(name, obeyed)| format!("{name} {}", said(*obeyed))).collect();
        match differing.as_slice() {
            [] => format!("level {level}, which all coordinators obey\n"),
            others => format!("level {level}; obeyed elsewhere: {}\n", others.join(", ")),
        }
    }

    fn coordinator_table(&self) -> String {
        let mut table = Table::new([left("COORDINATOR"), left("ADDRESS"), left("ROLE")]);
        for line in &self.coordinators {
            let role = match (line.leader, line.voter) {
                (true, _) => "leader",
                (false, true) => "voter",
                (false, false) => "learner",
            };
            table.row([line.name.clone(), line.address.clone(), role.to_owned()]);
        }
        table.to_string()
    }

    fn worker_table(&self) -> String {
        if self.workers.is_empty() {
            return "no worker has joined yet\n".to_owned();
        }
        let mut table = Table::new([
            left("WORKER"),
            left("ADDRESS"),
            left("STATE"),
            left("HEARD"),
            right("SPEED"),
            left("ZONE"),
            left("ISA"),
            right("MEMORY"),
        ]);
        for line in &self.workers {
            table.row([
                line.name.clone(),
                line.address.clone(),
                line.state.to_owned(),
                line.liveness.to_owned(),
                format!("{:.2}", line.speed),
                line.zone.clone(),
                line.isa.clone(),
                HumanBytes(line.memory_mib << 20).to_string(),
            ]);
        }
        table.to_string()
    }

    fn version_table(&self) -> String {
        if self.versions.is_empty() {
            return "no version is hosted; `roost push MODEL FOLDER` makes one\n".to_owned();
        }
        let mut table = Table::new([
            left("VERSION"),
            left("NODE"),
            left("OWNER"),
            left("STAGE"),
            left("ENGINE"),
            right("ANSWERED"),
            right("FAILED"),
            right("FALLBACKS"),
            left("WHY"),
        ]);
        for line in &self.versions {
            let count =
                |of: fn(Counts) -> u64| line.counts.map_or("-".to_owned(), |counts| of(counts).to_string());
            let stage = if line.node.silent {
                format!("{}, silent", line.node.stage)
            } else {
                line.node.stage.to_owned()
            };
            table.row([
                line.version.clone(),
                line.node.node.clone(),
                if line.node.owner { "yes" } else { "no" }.to_owned(),
                stage,
                line.node.engine.clone().unwrap_or_default(),
                count(|counts| counts.answered),
                count(|counts| counts.failed),
                count(|counts| counts.fallbacks),
                line.node.detail.clone().unwrap_or_default(),
            ]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    #[test]
    fn the_leader_tells_all() {
        let published = example::published();
        let view = published.view.clone().unwrap();
        let summary = example::cluster();
        let level =
            LevelSummary { level: 1, supported: view.coordinators.keys().map(|id| (*id, Some(1))).collect() };
        let status = Status::of(&view, &published, Ok(&summary), Some(&level));
        expect_test::expect![[r#"
            cluster 0000000000000000000000000000feed, epoch 1.42, led by b in term 3
            level 1, which all coordinators obey

            COORDINATOR  ADDRESS        ROLE
            a            10.0.1.0:7401  voter
            b            10.0.1.1:7401  leader
            c            10.0.1.2:7401  learner

            WORKER  ADDRESS        STATE     HEARD   SPEED  ZONE    ISA              MEMORY
            w1      10.0.0.1:7400  active    live     1.00  zone-1  x86-64 avx512  8.00 GiB
            w2      10.0.0.2:7400  active    live     1.42  zone-2  aarch64 neon   8.00 GiB
            w3      10.0.0.3:7400  draining  silent   1.00  zone-3  x86-64 avx512  8.00 GiB

            VERSION   NODE  OWNER  STAGE             ENGINE       ANSWERED  FAILED  FALLBACKS  WHY
            digits@1  w1    yes    ready             onnxruntime      1200       1          7
            digits@1  w2    yes    ready             onnxruntime         -       -          -
            digits@1  w3    no     draining, silent  onnxruntime         -       -          -
            digits@2  w1    yes    failed                                -       -          -  the graph has an unknown operator Foo
            digits@2  w2    yes    ready             onnxruntime         -       -          -
        "#]].assert_eq(&status.text());
        let json = serde_json::to_value(&status).unwrap();
        assert_eq!((&json["leader"], &json["leader_error"]), (&"b".into(), &serde_json::Value::Null));
        expect_test::expect![[r#"
            {
              "bytes": 98304,
              "counts": {
                "answered": 1200,
                "failed": 1,
                "fallbacks": 7
              },
              "node": {
                "detail": null,
                "engine": "onnxruntime",
                "node": "w1",
                "owner": true,
                "serves": true,
                "silent": false,
                "stage": "ready"
              },
              "version": "digits@1"
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&json["versions"][0]).unwrap());
    }

    #[test]
    fn who_keeps_the_level_from_rising_is_seen() {
        let published = example::published();
        let view = published.view.clone().unwrap();
        let ids: Vec<NodeId> = view.coordinators.keys().copied().collect();
        let supported = ids.iter().copied().zip([Some(2), Some(1), None]).collect();
        let level = LevelSummary { level: 1, supported };
        assert_eq!(level.attainable(), None);
        let text = Status::of(&view, &published, Ok(&example::cluster()), Some(&level)).text();
        assert_eq!(text.lines().nth(1), Some("level 1; obeyed elsewhere: a 2, c unknown"));
        let all =
            LevelSummary { level: 1, supported: ids.into_iter().zip([Some(2), Some(3), Some(2)]).collect() };
        assert_eq!(all.attainable(), Some(2));
    }

    #[test]
    fn without_a_leader_the_view_is_shown() {
        let published = example::published();
        let view = published.view.clone().unwrap();
        let error = ControlError::NoQuorum { reason: "2 of 3 coordinators do not answer".to_owned() };
        let text = Status::of(&view, &published, Err(&error), None).text();
        let first_lines: Vec<_> = text.lines().take(7).collect();
        expect_test::expect![[r#"
            cluster 0000000000000000000000000000feed, epoch 1.42, last heard of in term 3
            The leader could not be asked: the coordinators cannot agree at present: 2 of 3 coordinators do not answer; inference goes on, changes must wait.
            Below is what the nodes last published; who leads and what was counted is not known.

            COORDINATOR  ADDRESS        ROLE
            a            10.0.1.0:7401  voter
            b            10.0.1.1:7401  voter"#]].assert_eq(&first_lines.join("\n"));
    }

    #[test]
    fn an_empty_cluster_says_what_is_missing() {
        let published = example::published();
        let mut view = (*published.view.clone().unwrap()).clone();
        view.nodes.clear();
        view.models.clear();
        let text = Status::of(&view, &Published::default(), Ok(&example::cluster()), None).text();
        assert!(text.ends_with(
            "no worker has joined yet\n\nno version is hosted; `roost push MODEL FOLDER` makes one\n"
        ));
    }
}
