//! `roost node`: takes workers out of service and back.
//!
//! What a worker owns follows from the committed view, so holding it back is one committed change; others take over, and it
//! serves on until they are ready. `drain` waits for that, and says what still has no other place.

use std::time::Duration;

use anyhow::{anyhow, bail};
use clap::Subcommand;
use roost_protocol::messages::control::{Change, HeldFrom};
use roost_protocol::view::{Hold, NodeState, Published, Stage};
use roost_protocol::{NodeId, NodeName};
use serde::Serialize;
use tokio::time::Instant;

use crate::output::Report;
use crate::session::Session;

/// How long a drain is waited for when `--timeout` does not say: others fetch, load and warm up what the node owned.
const WITHIN: Duration = Duration::from_secs(120);
/// Between the last look that a session has time for and its end.
const MARGIN: Duration = Duration::from_millis(200);

/// What to do with a worker.
#[derive(Debug, Subcommand)]
pub enum NodeCommand {
    /// Gives a worker no further versions; it keeps what it hosts
    Cordon {
        /// The worker
        name: NodeName,
    },
    /// Gives a worker versions again
    Uncordon {
        /// The worker
        name: NodeName,
    },
    /// Has others take over all that a worker hosts, and waits until it hosts nothing; it stays so over restarts
    #[command(after_help = "Example:\n  roost node drain w2        before its machine is taken away\n  \
        roost node uncordon w2     once it is back\n\n\
        It serves each version until enough others do. What no other worker may host stays where it is, and the\n\
        command says so when its time is over.")]
    Drain {
        /// The worker
        name: NodeName,
    },
}

/// What became of a worker.
#[derive(Debug, Serialize)]
struct Kept {
    node: String,
    state: &'static str,
    hosts: Vec<String>,
}

impl Report for Kept {
    fn text(&self) -> String {
        let Self { node, state, hosts } = self;
        match hosts.as_slice() {
            [] => format!("{node} is {state}; it hosts nothing\n"),
            hosts => format!("{node} is {state}; it hosts {}\n", hosts.join(", ")),
        }
    }
}

/// Carries the command out.
///
/// # Errors
/// When there is no such worker, when the change is not made, or when the worker still hosts something at the end.
pub async fn run(session: &Session, command: NodeCommand) -> anyhow::Result<()> {
    let (name, from) = match command {
        NodeCommand::Cordon { name } => (name, Some(HeldFrom::Further)),
        NodeCommand::Uncordon { name } => (name, None),
        NodeCommand::Drain { name } => (name, Some(HeldFrom::All)),
    };
    let node = find(&session.published(), &name)?;
    session.client.control().change(Change::Hold { node, from }).await?;
    if from == Some(HeldFrom::All) {
        drained(session, node, &name).await?;
    }
    Ok(session.output.print(&Kept::of(&session.published(), node, &name))?)
}

/// The id of a worker.
fn find(published: &Published, name: &NodeName) -> anyhow::Result<NodeId> {
    let nodes = || published.view.iter().flat_map(|view| view.nodes.iter());
    let found = nodes().find(|(_, node)| node.name == *name).map(|(id, _)| *id);
    found.ok_or_else(|| {
        let mut names: Vec<&str> = nodes().map(|(_, node)| node.name.as_str()).collect();
        names.sort_unstable();
        anyhow!("there is no worker {name}; there are {}", names.join(", "))
    })
}

/// Waits until a worker hosts nothing.
async fn drained(session: &Session, node: NodeId, name: &NodeName) -> anyhow::Result<()> {
    let within = session.left().map_or(WITHIN, |left| left.saturating_sub(MARGIN));
    let (mut published, deadline) = (session.client.published(), Instant::now() + within);
    // Unknown is not "nothing": a new leader must have heard the node first, unless it was given up for lost.
    let is_empty = |published: &Published| {
        let heard = published.soft.nodes.contains_key(&node);
        let known = published.view.as_ref().and_then(|view| view.nodes.get(&node));
        let is_out = known.is_none_or(|known| known.state == NodeState::Out);
        is_out || heard && hosts(published, node).is_empty()
    };
    let empty = published.wait_for(is_empty);
    match tokio::time::timeout_at(deadline, empty).await {
        Ok(known) => known.map(|_| ()).map_err(|_| anyhow!("the client has stopped")),
        Err(_) => bail!(
            "{name} still hosts {}: no other worker is ready to, or may; it goes on draining, \
             `roost cluster status` shows how far it is and `roost node uncordon {name}` ends it",
            hosts(&session.published(), node).join(", ")
        ),
    }
}

/// What a worker hosts or is about to.
fn hosts(published: &Published, node: NodeId) -> Vec<String> {
    let reported = published.soft.nodes.get(&node).into_iter().flat_map(|report| &report.versions);
    let hosted = reported.filter(|report| !matches!(report.stage, Stage::Unloaded | Stage::Failed { .. }));
    hosted.map(|report| format!("{}@{}", report.model, report.version)).collect()
}

impl Kept {
    fn of(published: &Published, node: NodeId, name: &NodeName) -> Self {
        let known = published.view.as_ref().and_then(|view| view.nodes.get(&node));
        let state = match known.and_then(|known| known.hold) {
            None => "in service",
            Some(Hold::Cordoned { .. }) => "cordoned",
            Some(Hold::Drained) => "drained",
        };
        Self { node: name.to_string(), state, hosts: hosts(published, node) }
    }
}
