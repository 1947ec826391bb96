//! The leader dies at each point of each change, and at random moments under load; then everything dies at once. Nothing that
//! was acknowledged is missing, what was not is there wholly or not at all, and no request fails while a replica lives.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use roost_client::{Client, Control};
use roost_protocol::messages::control::{
    Change, ModelSummary, Reconfigure, RolloutEventKind, RolloutSummary, VersionSummary,
};
use roost_protocol::traffic::Weight;
use roost_protocol::{Label, NodeId};
use tokio::time::Instant;

use crate::load::{Load, Operator, insist, push_again, start_canary};
use crate::support::{Cluster, Digits, PATIENCE, digits_folder, push, wait_for_stage};
use crate::{at, digits, wait_for};

/// How often the leader is killed at a random moment.
const DEATHS: usize = 50;
/// Requests a second beside: enough that no gap stays unseen, and the cores are free for elections.
const RATE_PER_S: u32 = 200;
/// For so long after a death it is looked how long nothing was answered.
const WINDOW: Duration = Duration::from_secs(4);

/// Until everything is served again after everything died at once, at most. The aim is 3 s, which quiet cores keep. Busy ones take
/// longer, and what waits for something that never comes takes longer than this.
const SERVING_AGAIN_MAX: Duration = Duration::from_secs(10);

const COORDINATORS: [&str; 3] = ["c1", "c2", "c3"];

/// A change whose maker's leader dies on the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Push,
    Start,
    Promote,
    Abort,
    Undo,
}

/// Where the leader dies: the command, and how far it is; the names are those of the coordinator's points.
const POINTS: [(What, &str); 17] = [
    (What::Push, "Reserve.Proposed"),
    (What::Push, "Reserve.Committed"),
    (What::Push, "CommitVersion.Asked"),
    (What::Push, "CommitVersion.Held"),
    (What::Push, "CommitVersion.Proposed"),
    (What::Push, "CommitVersion.Committed"),
    (What::Start, "StartRollout.Proposed"),
    (What::Start, "StartRollout.Committed"),
    (What::Abort, "Abort.Asked"),
    (What::Abort, "Abort.Proposed"),
    (What::Abort, "Abort.Committed"),
    (What::Promote, "Promote.Asked"),
    (What::Promote, "Promote.Proposed"),
    (What::Promote, "Promote.Committed"),
    (What::Undo, "Undo.Asked"),
    (What::Undo, "Undo.Proposed"),
    (What::Undo, "Undo.Committed"),
];

/// The whole of what the coordinators keep of the model.
#[derive(Debug, PartialEq)]
struct Kept {
    models: Vec<ModelSummary>,
    versions: Vec<VersionSummary>,
    rollout: RolloutSummary,
}

async fn kept(control: &Control) -> Kept {
    let retry = async {
        loop {
            let read = async {
                let models = control.models().await?;
                let versions = control.versions(&digits()).await?;
                Ok(Kept { models, versions, rollout: control.rollout(&digits()).await? })
            };
            let read: Result<Kept, roost_protocol::ControlError> = read.await;
            if let Ok(kept) = read {
                return kept;
            }
        }
    };
    tokio::time::timeout(PATIENCE, retry).await.unwrap()
}

impl Kept {
    /// How often a change is in it.
    fn times(&self, what: What, note: &str) -> usize {
        let is = |kind: &RolloutEventKind| match (what, kind) {
            (What::Start, RolloutEventKind::Started { .. })
            | (What::Promote, RolloutEventKind::Promoted { .. })
            | (What::Undo, RolloutEventKind::Undone { .. }) => true,
            (What::Abort, RolloutEventKind::Aborted { reason, .. }) => reason == note,
            _ => false,
        };
        match what {
            What::Push => self.versions.iter().filter(|version| version.note == note).count(),
            What::Start | What::Promote | What::Abort | What::Undo => {
                self.rollout.history.iter().filter(|event| is(&event.kind)).count()
            }
        }
    }
}

/// Brings the model to where a change can be made: digits@1 stable; for all but a push and a start, a canary of digits@2; for
/// an undo, digits@2 promoted.
async fn prepare(client: &Client, what: What) {
    if matches!(what, What::Promote | What::Abort | What::Undo) {
        start_canary(client, at(2)).await;
    }
    if what == What::Undo {
        crate::promote_once_ready(client).await;
    }
}

/// Brings it back.
async fn clear(client: &Client) {
    let rollout = kept(client.control()).await.rollout;
    if rollout.rollout.is_some() {
        insist(client.control(), Change::Abort { model: digits(), reason: "cleared".to_owned() }).await;
    }
    if rollout.traffic.stable == at(2).version {
        insist(client.control(), Change::Undo { model: digits() }).await;
    }
}

async fn make(control: Control, what: What, note: String) {
    let model = digits();
    let change = match what {
        What::Push => {
            push_again(&control, &note).await;
            return;
        }
        What::Start => {
            Change::StartRollout { target: at(2), weight: Weight::from_basis_points(1_000).unwrap() }
        }
        What::Promote => Change::Promote { model },
        What::Abort => Change::Abort { model, reason: note },
        What::Undo => Change::Undo { model },
    };
    insist(&control, change).await;
}

/// Waits until every coordinator is heard by the leader and has what it has.
pub async fn all_caught_up(control: &Control) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let members = control.members().await.map(|summary| summary.members).unwrap_or_default();
        let all = members
            .iter()
            .all(|m| m.leader || (m.behind == Some(0) && m.heard_ms.is_some_and(|ms| ms < 500)));
        if members.len() == COORDINATORS.len() && all {
            return;
        }
        assert!(Instant::now() < deadline, "{members:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Has each coordinator lead in turn, and compares what they keep.
pub async fn all_keep_the_same(control: &Control) {
    all_caught_up(control).await;
    let members: Vec<NodeId> = control.members().await.unwrap().members.iter().map(|m| m.node).collect();
    let mut first = None;
    for node in members {
        // Refused for good while the leader has not heard it for a moment.
        let deadline = Instant::now() + PATIENCE;
        let asked = Reconfigure::TransferLeader { to: Some(node) };
        while let Err(error) = control.reconfigure(asked.clone(), Duration::from_secs(30)).await {
            assert!(Instant::now() < deadline, "{node} does not get to lead: {error}");
            all_caught_up(control).await;
        }
        let kept = kept(control).await;
        assert_eq!(first.get_or_insert(kept), &self::kept(control).await);
    }
}

/// A cluster of three coordinators and two workers that hosts both digits models, with digits@1 stable.
async fn start(variables: &[(&'static str, &str)]) -> (Cluster, Client, Arc<Digits>) {
    let mut cluster = Cluster::prepare(3, 2).await;
    cluster.configure("", variables);
    cluster.spawn_all();
    let client = cluster.connect().await;
    push(&client, "digits", &digits_folder().join("v1")).await;
    push(&client, "digits", &digits_folder().join("v2")).await;
    wait_for_stage(&client, &at(1), 2).await;
    (cluster, client, Arc::new(Digits::read()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_dies_at_each_point_of_each_change() {
    let points = tempfile::tempdir().unwrap();
    let folder: PathBuf = points.path().to_owned();
    let (mut cluster, client, data) = start(&[("ROOST_DIE_IN", folder.to_str().unwrap())]).await;
    let control = client.control().clone();
    let load = Load::at_rate(client.clone(), data, RATE_PER_S);
    for (i, (what, point)) in POINTS.into_iter().enumerate() {
        for insists in [true, false] {
            prepare(&client, what).await;
            let note = format!("death {i} at {point}, {}", if insists { "insisted on" } else { "given up" });
            let before = kept(&control).await.times(what, &note);
            std::fs::write(folder.join(point), "").unwrap();
            let maker = tokio::spawn(make(control.clone(), what, note.clone()));
            let dead = cluster.died().await;
            if insists {
                maker.await.unwrap();
            } else {
                maker.abort();
            }
            let after = kept(&control).await;
            let made = after.times(what, &note) - before;
            // What was committed is there although nobody was told; a reservation is not the push.
            let committed = point.ends_with(".Committed") && !point.starts_with("Reserve.");
            let right = if insists || committed { made == 1 } else { made <= 1 };
            assert!(right, "{note}: made {made} times; {after:#?}");
            println!("{note}: {dead} died, made {made} times");
            cluster.spawn(&dead);
            clear(&client).await;
            all_caught_up(&control).await;
        }
    }
    load.end().await;
    all_keep_the_same(&control).await;
    cluster.stop().await;
}

/// The value that so many of a hundred do not exceed.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    sorted[(sorted.len() * percent).div_ceil(100).max(1) - 1]
}

fn print_percentiles(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let ms = |percent| percentile(&times, percent).as_millis();
    println!("{what}: p50 {} ms, p99 {} ms, most {} ms, of {}", ms(50), ms(99), ms(100), times.len());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_dies_at_random_moments() {
    let (mut cluster, client, data) = start(&[]).await;
    let control = client.control().clone();
    let load = Load::at_rate(client.clone(), data, RATE_PER_S);
    let operator = Operator::start(&client);
    let (mut writes, mut reads, mut gaps) = (Vec::new(), Vec::new(), Vec::new());
    let mut random = std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0);
    println!("random moments from {random}");
    for _ in 0..DEATHS {
        // Xorshift: any moment within 400 ms.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        tokio::time::sleep(Duration::from_micros(random % 400_000)).await;
        let leader = leader(&control).await;
        let name = cluster.name_of(&client, leader);
        let killed = Instant::now();
        cluster.kill(&name);
        let (write, read) = until_served(&control, killed).await;
        writes.push(write);
        reads.push(read);
        cluster.spawn(&name);
        all_caught_up(&control).await;
        gaps.push(load.longest_gap(killed, Instant::now().min(killed + WINDOW)));
        operator.check(&control).await;
    }
    let acknowledged = operator.end(&control).await;
    println!("{DEATHS} leaders killed, {} changes acknowledged, each found once", acknowledged.count());
    print_percentiles("writes again after", writes);
    print_percentiles("reads again after", reads);
    print_percentiles("longest time without an inference", gaps);
    load.end().await;
    all_keep_the_same(&control).await;
    acknowledged.check_versions(&control).await;
    cluster.stop().await;
}

/// How long after `since` a change and a linearizable read are acknowledged, which are asked for when this is called.
pub async fn until_served(control: &Control, since: Instant) -> (Duration, Duration) {
    let write = async {
        let label = Label::new("death").unwrap();
        insist(control, Change::SetLabel { version: at(1), label }).await;
        since.elapsed()
    };
    let read = async {
        kept(control).await;
        since.elapsed()
    };
    tokio::join!(write, read)
}

/// Who leads, once somebody does.
async fn leader(control: &Control) -> NodeId {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match control.cluster().await {
            Ok(cluster) => return cluster.leader,
            Err(error) => assert!(Instant::now() < deadline, "nobody leads: {error}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn everything_dies_at_once() {
    let (mut cluster, client, data) = start(&[]).await;
    let control = client.control().clone();
    let load = Load::at_rate(client.clone(), data, RATE_PER_S);
    let operator = Operator::start(&client);
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(700)).await;
        let names: Vec<String> = cluster.nodes().iter().map(|(name, _)| name.clone()).collect();
        cluster.kill_at_once(&names);
        names.iter().for_each(|name| cluster.spawn(name));
        let begun = Instant::now();
        let (write, read) = until_served(&control, begun).await;
        let served = loop {
            match load.first_after(begun + Duration::from_millis(5)) {
                Some(at) => break at,
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
            assert!(begun.elapsed() < PATIENCE, "nothing is inferred");
        };
        let took = [write, read, served - begun];
        println!("all five processes killed; from their start to the first write, read, inference: {took:?}");
        assert!(took.iter().all(|took| *took < SERVING_AGAIN_MAX), "{took:?}");
        operator.check(&control).await;
    }
    let acknowledged = operator.end(&control).await;
    // What was asked while nobody lived may have failed; afterwards everything is as it was.
    let (failed, sent) = load.end_counting().await;
    println!("{} of {sent} requests failed while no worker lived", failed.len());
    wait_for(&client, "both serve again", |published| {
        published.view.iter().flat_map(|view| view.nodes.keys()).count() == 2
    })
    .await;
    all_keep_the_same(&control).await;
    acknowledged.check_versions(&control).await;
    println!("{} changes acknowledged, each found once", acknowledged.count());
    cluster.stop().await;
}
