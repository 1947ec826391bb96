//! Who hosts a version and how far each node is: owners by placement, and every other node that reports
//! something.

use std::collections::BTreeSet;

use roost_protocol::placement::{owners, preference, replicas_wanted};
use roost_protocol::ring::Ring;
use roost_protocol::view::{Liveness, SoftState, Stage, View};
use roost_protocol::{ModelName, NodeId, Version};
use serde::Serialize;

/// A node's part in hosting a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Hosting {
    /// The node's id, to find its statistics by.
    #[serde(skip)]
    pub id: NodeId,
    /// Its name.
    pub node: String,
    /// Whether it should host the version; others still serve it, or failed to.
    pub owner: bool,
    /// The stage that it last reported; `unknown` when it reported none.
    pub stage: &'static str,
    /// Whether it is sent requests.
    pub serves: bool,
    /// Whether it has been silent for some seconds.
    pub silent: bool,
    /// The engine that runs the version there.
    pub engine: Option<String>,
    /// How far it is, or why no further.
    pub detail: Option<String>,
}

impl Hosting {
    /// The node, with its stage unless all is well: `a`, `b (loading)`, `c (failed: no memory)`.
    pub fn text(&self) -> String {
        if self.serves {
            return self.node.clone();
        }
        let detail = self.detail.as_ref().map_or(String::new(), |detail| format!(": {detail}"));
        let silent = if self.silent { ", silent" } else { "" };
        format!("{} ({}{detail}{silent})", self.node, self.stage)
    }
}

/// The nodes that have to do with a version: owners first, each by name. `ring` is the view's.
pub fn hosting(
    view: &View,
    ring: &Ring,
    soft: &SoftState,
    model: &ModelName,
    version: Version,
) -> Vec<Hosting> {
    let owners: BTreeSet<NodeId> = owners(view, ring, model, version).into_iter().collect();
    let excluded = view.models.get(model).and_then(|model| model.versions.get(&version)).map(|v| &v.excluded);
    let reporting = soft.nodes.keys().filter(|id| soft.stage(**id, model, version).is_some());
    let all: BTreeSet<NodeId> =
        owners.iter().chain(reporting).chain(excluded.into_iter().flatten()).copied().collect();
    let of = |id: NodeId| {
        let report = soft.nodes.get(&id);
        let version_report = report
            .and_then(|report| report.versions.iter().find(|v| v.model == *model && v.version == version));
        let stage = version_report.map(|report| &report.stage);
        let is_excluded = excluded.is_some_and(|excluded| excluded.contains(&id));
        Hosting {
            id,
            node: view.nodes.get(&id).map_or_else(|| format!("node {id}"), |node| node.name.to_string()),
            owner: owners.contains(&id),
            stage: match stage {
                Some(stage) => stage.name(),
                None if is_excluded => "excluded",
                None => "unknown",
            },
            serves: soft.serves(id, model, version),
            silent: report.is_some_and(|report| report.liveness == Liveness::Suspect),
            engine: version_report
                .and_then(|report| report.engine)
                .map(|engine| format!("{engine:?}").to_lowercase()),
            detail: stage.and_then(detail),
        }
    };
    let mut all: Vec<Hosting> = all.into_iter().map(of).collect();
    all.sort_by(|a, b| (!a.owner, &a.node).cmp(&(!b.owner, &b.node)));
    all
}

/// How many nodes should host a version.
pub fn wanted(view: &View, ring: &Ring, model: &ModelName, version: Version) -> usize {
    let hosted = view.models.get(model).and_then(|model| model.versions.get(&version));
    let eligible = preference(view, ring, model, version).len();
    hosted.map_or(0, |hosted| replicas_wanted(hosted.manifest.replicas, eligible))
}

fn detail(stage: &Stage) -> Option<String> {
    match stage {
        Stage::Fetching { bytes, of } if *of > 0 => Some(format!("{} %", bytes.saturating_mul(100) / of)),
        Stage::Failed { reason } => Some(reason.clone()),
        Stage::Fetching { .. }
        | Stage::Verifying
        | Stage::Loading
        | Stage::Warming
        | Stage::Ready
        | Stage::Draining
        | Stage::Unloaded => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::example;

    #[test]
    fn owners_come_first_and_failures_say_why() {
        let published = example::published();
        let view = published.view.unwrap();
        let hosting = hosting(&view, &view.ring(), &published.soft, &example::digits(), Version(2));
        let lines: Vec<String> = hosting.iter().map(|h| format!("{} {}", h.owner, h.text())).collect();
        expect_test::expect![[r#"
            true w1 (failed: the graph has an unknown operator Foo)
            true w2"#]]
        .assert_eq(&lines.join("\n"));
        assert_eq!(wanted(&view, &view.ring(), &example::digits(), Version(2)), 2);
        assert_eq!(wanted(&view, &view.ring(), &example::digits(), Version(9)), 0);
    }
}
