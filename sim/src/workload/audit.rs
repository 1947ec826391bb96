//! The auditor: once faults have ended, it waits until everything has converged.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rand::SeedableRng;
use rand::rngs::StdRng;
use roost_client::Client;
use roost_protocol::messages::control::{Answer, Query, RolloutState};
use roost_protocol::placement::owners;
use roost_protocol::quic::bundles::BundleStore;
use roost_protocol::view::{Published, Stage, View};
use roost_protocol::{ModelName, NodeId, Target};

use super::operator::Operator;
use super::{Missing, Phase, Workload, user};
use crate::condition::Conditions;
use crate::disk::{SimDisk, SimFiles};
use crate::history::{Call, Op};
use crate::trace;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(250);

/// Waits for the liveness phase, then looks until all is as it should be.
pub(super) async fn audit(workload: &Workload, client: &Client, host: &str) {
    workload.until(Phase::Liveness).await;
    loop {
        match look(workload, client, host).await {
            Ok(published) => {
                *workload.0.last.borrow_mut() = published;
                *workload.0.missing.borrow_mut() = None;
                return std::future::pending().await;
            }
            Err(missing) => *workload.0.missing.borrow_mut() = Some(missing),
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn look(workload: &Workload, client: &Client, host: &str) -> Result<Published, Missing> {
    let cluster = match client.control().query(Query::Cluster).await {
        Ok(Answer::Cluster(cluster)) => cluster,
        Ok(_) => return Err("the cluster's query had another answer".into()),
        Err(error) => return Err(format!("the cluster does not answer: {error}").into()),
    };
    if !cluster.soft.settled {
        return Err("the leader has not settled".into());
    }
    let published = client.published().borrow().clone();
    let view = published.view.clone().ok_or("the auditor has no view")?;
    if workload.0.administers.get() {
        return Err("the administrator is not done".into());
    }
    check_members(client).await?;
    if let Some(node) = super::admin::held(client).first() {
        return Err(format!("node {node} is held back").into());
    }
    // Ahead of the rollouts, which wait for whoever does not serve.
    check_hosts(&published, &view)?;
    check_rollouts(client, &view).await?;
    check_clients(workload, &published)?;
    check_coordinators(workload, &view)?;
    check_bundles(workload, &view).await?;
    for name in view.models.keys() {
        let mut rng = StdRng::seed_from_u64(view.epoch.index);
        let (target, key) = (Target::Split(name.clone()), Some("audit"));
        if let Some(error) = user::ask_once(workload, client, host, target, key, &mut rng).await {
            return Err(format!("{name} does not answer: {error}").into());
        }
    }
    // The last word on each model, for whoever checks what became of all operations.
    let (operator, begun) = (Operator { workload, client, host, pushes: 0 }, trace::now());
    for model in models(workload) {
        for call in [Call::ReadModel, Call::ReadRollout, Call::ReadVersions] {
            operator.run(&model, call).await;
        }
    }
    let changed_since =
        |op: &Arc<Op>| !op.call.reads() && op.returned.as_ref().is_some_and(|(at, _)| *at >= begun);
    if workload.ops().iter().any(changed_since) {
        return Err("a change that was begun before came through between the last reads".into());
    }
    // Once more: a worker that joined again meanwhile has led to entries that change no view.
    check_coordinators(workload, &view)?;
    let after = client.published().borrow().clone();
    match after.view.as_ref().map(|view| view.epoch) == Some(view.epoch) {
        true => Ok(after),
        false => Err("the view still changes".into()),
    }
}

fn models(workload: &Workload) -> BTreeSet<ModelName> {
    (0..workload.0.load.models).map(|i| workload.model(i)).collect()
}

/// A rollout whose target has its replicas runs.
async fn check_rollouts(client: &Client, view: &View) -> Result<(), String> {
    for model in view.models.keys() {
        let summary = client.control().rollout(model).await.map_err(|error| error.to_string())?;
        match summary.rollout.map(|rollout| rollout.state) {
            None | Some(RolloutState::Running) => {}
            Some(state) => return Err(format!("the rollout of {model} is {state:?}")),
        }
    }
    Ok(())
}

/// Every owner serves what the view says, and nobody hosts anything else.
fn check_hosts(published: &Published, view: &View) -> Result<(), Missing> {
    let name_of = |node: &NodeId| view.nodes.get(node).map(|node| node.name.to_string());
    let (ring, soft) = (view.ring(), &published.soft);
    for (name, model) in &view.models {
        for version in model.versions.keys() {
            for owner in owners(view, &ring, name, *version) {
                if !soft.serves(owner, name, *version) {
                    let stage = soft.stage(owner, name, *version);
                    let node = name_of(&owner);
                    let what = format!("{node:?} does not serve {name}@{version}: {stage:?}");
                    return Err(Missing { what, node });
                }
            }
        }
    }
    for (id, report) in &soft.nodes {
        for hosted in report.versions.iter().filter(|hosted| hosted.stage != Stage::Unloaded) {
            if !owners(view, &ring, &hosted.model, hosted.version).contains(id) {
                let node = name_of(id);
                let (model, version, stage) = (&hosted.model, hosted.version, &hosted.stage);
                return Err(Missing {
                    what: format!("{node:?} still hosts {model}@{version}, {stage:?}"),
                    node,
                });
            }
        }
    }
    Ok(())
}

/// Every client has the same view.
fn check_clients(workload: &Workload, published: &Published) -> Result<(), String> {
    for (client, theirs) in &*workload.0.followed.borrow() {
        let theirs = theirs.borrow().view.clone();
        if theirs != published.view {
            let epoch = theirs.map(|view| view.epoch);
            return Err(format!("{client} has the view of {epoch:?}"));
        }
    }
    Ok(())
}

/// No change of who coordinates is half-done.
async fn check_members(client: &Client) -> Result<(), String> {
    let summary = client.control().members().await.map_err(|error| error.to_string())?;
    if summary.changing { Err("one set of voters is being replaced by another".to_owned()) } else { Ok(()) }
}

/// The sound coordinators that are members, and their disks.
fn sound(workload: &Workload, view: &View) -> BTreeMap<String, SimDisk> {
    let (disks, members) = (workload.0.disks.borrow(), super::members(view));
    let sound = disks.iter().filter(|(name, (_, sound))| *sound && members.contains(*name));
    sound.map(|(name, (disk, _))| (name.clone(), disk.clone())).collect()
}

/// Every sound coordinator has applied all that any has.
fn check_coordinators(workload: &Workload, view: &View) -> Result<(), String> {
    let applied = workload.0.witness.applied();
    let last = applied.values().max();
    match sound(workload, view).keys().find(|name| applied.get(*name) != last) {
        None => Ok(()),
        Some(name) => Err(format!("{name} has applied {:?} of {last:?}", applied.get(name))),
    }
}

/// Every sound coordinator holds every bundle that a version is made of.
async fn check_bundles(workload: &Workload, view: &View) -> Result<(), String> {
    for (node, disk) in &sound(workload, view) {
        let files: &dyn roost_node::environment::Files = &SimFiles::of(disk.life(), Conditions::default());
        let store = files.bundles("bundles").map_err(|error| error.to_string())?;
        let store = BundleStore::new(store);
        for (name, model) in &view.models {
            for (version, hosted) in &model.versions {
                let list = store.list(&hosted.digest).await;
                let whole = match &list {
                    Ok(list) => store.missing(list).await.is_ok_and(|missing| missing.is_empty()),
                    Err(_) => false,
                };
                if !whole {
                    return Err(format!("{node} does not hold the bundle of {name}@{version}"));
                }
            }
        }
    }
    Ok(())
}
