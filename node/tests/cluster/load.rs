//! Requests beside what a test does: one after the other, or at a rate; and changes that an operator goes on making.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use roost_client::{Client, Control};
use roost_protocol::messages::control::{Change, Outcome, RolloutEventKind};
use roost_protocol::traffic::Weight;
use roost_protocol::{ModelVersion, Version};
use tokio::time::Instant;

use crate::support::Digits;
use crate::{at, digits};

/// Without an answer for so long, a cluster is out. Requests wait longer, and so do not fail; busy cores cost tenths of a second.
const OUTAGE: Duration = Duration::from_secs(3);

/// Sends requests until it is told to stop. Every failure counts.
pub struct Load {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    answered: Arc<Mutex<Vec<Instant>>>,
    task: tokio::task::JoinHandle<Vec<String>>,
}

impl Load {
    /// One request after the other, without a pause.
    pub fn start(client: Client, digits: Arc<Digits>) -> Self {
        Self::of(|stop, sent, answered| async move {
            let mut failures = Vec::new();
            while !stop.load(Ordering::Relaxed) {
                let i = sent.fetch_add(1, Ordering::Relaxed) as usize;
                match digits.ask(&client, i, &format!("load-{i}")).await {
                    Ok(_) => answered.lock().unwrap().push(Instant::now()),
                    Err(error) => failures.push(format!("request {i}: {error}")),
                }
            }
            failures
        })
    }

    /// So many a second, whether the ones before were answered or not.
    pub fn at_rate(client: Client, digits: Arc<Digits>, per_s: u32) -> Self {
        Self::of(move |stop, sent, answered| async move {
            let mut due = tokio::time::interval(Duration::from_secs(1) / per_s);
            let mut requests = tokio::task::JoinSet::new();
            while !stop.load(Ordering::Relaxed) {
                due.tick().await;
                let i = sent.fetch_add(1, Ordering::Relaxed) as usize;
                let (client, digits, answered) = (client.clone(), digits.clone(), answered.clone());
                requests.spawn(async move {
                    let answer = digits.ask(&client, i, &format!("load-{i}")).await;
                    answer.map_err(|error| format!("request {i}: {error}"))?;
                    answered.lock().unwrap().push(Instant::now());
                    Ok::<(), String>(())
                });
            }
            requests.join_all().await.into_iter().filter_map(Result::err).collect()
        })
    }

    fn of<F>(ask: impl FnOnce(Arc<AtomicBool>, Arc<AtomicU64>, Arc<Mutex<Vec<Instant>>>) -> F) -> Self
    where
        F: Future<Output = Vec<String>> + Send + 'static,
    {
        let stop = Arc::<AtomicBool>::default();
        let (sent, answered) = (Arc::<AtomicU64>::default(), Arc::<Mutex<Vec<Instant>>>::default());
        let task = tokio::spawn(ask(stop.clone(), sent.clone(), answered.clone()));
        Self { stop, sent, answered, task }
    }

    /// How many were answered between two moments.
    pub fn answered(&self, from: Instant, to: Instant) -> usize {
        self.answered.lock().unwrap().iter().filter(|at| (from..to).contains(at)).count()
    }

    /// The longest time between two moments in which nothing was answered; it must be no outage.
    pub fn longest_gap(&self, from: Instant, to: Instant) -> Duration {
        let answered = self.answered.lock().unwrap();
        let mut between: Vec<Instant> =
            answered.iter().copied().filter(|at| (from..to).contains(at)).collect();
        between.extend([from, to]);
        between.sort();
        let gap = between.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or_default();
        assert!(gap < OUTAGE, "nothing was answered for {gap:?}");
        gap
    }

    /// When the first answer came after a moment.
    pub fn first_after(&self, from: Instant) -> Option<Instant> {
        self.answered.lock().unwrap().iter().copied().filter(|at| *at > from).min()
    }

    /// Ends the load; no request may have failed.
    pub async fn end(self) {
        let (failures, sent) = self.end_counting().await;
        assert!(failures.is_empty(), "of {sent} requests: {failures:#?}");
        println!("{sent} requests beside, none failed");
    }

    /// Ends the load; what failed, and how many requests there were.
    pub async fn end_counting(self) -> (Vec<String>, u64) {
        self.stop.store(true, Ordering::Relaxed);
        let failures = self.task.await.unwrap();
        (failures, self.sent.load(Ordering::Relaxed))
    }
}

/// How long the operator keeps trying a change: longer than any election takes.
const INSIST: Duration = Duration::from_secs(30);
/// Between two of the operator's changes, so that a model's history keeps all of them until they are looked for.
const PAUSE: Duration = Duration::from_millis(15);

/// An operator who makes one change after the other, and a reader beside.
pub struct Operator {
    stop: Arc<AtomicBool>,
    log: Arc<Mutex<Log>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

/// What was acknowledged.
#[derive(Default)]
struct Log {
    /// What a reader must find.
    acknowledged: Vec<Mark>,
    /// What of `acknowledged` was looked for already.
    checked: usize,
}

/// What an acknowledged change leaves behind.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Mark {
    /// A version with this note.
    Version(Version, String),
    /// A rollout that was aborted for this reason.
    Abort(String),
    /// A rollout that was started.
    Start,
}

impl Operator {
    /// Starts rollouts of digits@2, aborts them, and pushes further versions; digits@1 is stable.
    pub fn start(client: &Client) -> Self {
        let (stop, log) = (Arc::<AtomicBool>::default(), Arc::<Mutex<Log>>::default());
        let writes = {
            let (control, stop, log) = (client.control().clone(), stop.clone(), log.clone());
            tokio::spawn(async move {
                let mut number = 0;
                while !stop.load(Ordering::Relaxed) {
                    number += 1;
                    let mark = write(&control, number).await;
                    log.lock().unwrap().acknowledged.push(mark);
                    tokio::time::sleep(PAUSE).await;
                }
            })
        };
        let reads = {
            let (control, stop, log) = (client.control().clone(), stop.clone(), log.clone());
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    let pushed = pushed(&log.lock().unwrap());
                    if let Ok(versions) = control.versions(&digits()).await {
                        let found: BTreeSet<Version> =
                            versions.iter().map(|version| version.version).collect();
                        assert!(
                            pushed.is_subset(&found),
                            "read {found:?} after {pushed:?} were acknowledged"
                        );
                    }
                    tokio::time::sleep(PAUSE).await;
                }
            })
        };
        Self { stop, log, tasks: vec![writes, reads] }
    }

    /// Looks for all that was acknowledged since the last look.
    pub async fn check(&self, control: &Control) {
        let marks: Vec<Mark> = {
            let mut log = self.log.lock().unwrap();
            let until = log.acknowledged.len();
            let from = std::mem::replace(&mut log.checked, until);
            log.acknowledged[from..].to_vec()
        };
        find(&marks, control).await;
    }

    /// Ends it, and looks for what was not looked for.
    pub async fn end(mut self, control: &Control) -> Acknowledged {
        self.stop.store(true, Ordering::Relaxed);
        for task in std::mem::take(&mut self.tasks) {
            task.await.unwrap();
        }
        self.check(control).await;
        let log = self.log.lock().unwrap();
        assert_eq!(log.checked, log.acknowledged.len());
        Acknowledged(log.acknowledged.clone())
    }
}

/// All changes that were acknowledged to an operator, each of which was looked for soon after.
pub struct Acknowledged(Vec<Mark>);

impl Acknowledged {
    /// How many.
    pub fn count(&self) -> usize {
        self.0.len()
    }

    /// Looks for all versions again: a model's history forgets, but not its versions.
    pub async fn check_versions(&self, control: &Control) {
        let versions: Vec<Mark> =
            self.0.iter().filter(|mark| matches!(mark, Mark::Version(..))).cloned().collect();
        assert!(!versions.is_empty());
        find(&versions, control).await;
    }
}

/// Each of these is there once.
async fn find(marks: &[Mark], control: &Control) {
    let versions = control.versions(&digits()).await.unwrap();
    let history = control.rollout(&digits()).await.unwrap().history;
    let times = |mark: &Mark| match mark {
        Mark::Version(version, note) => {
            let alike = versions.iter().filter(|found| found.note == *note).count();
            let right = versions.iter().any(|found| found.version == *version && found.note == *note);
            if right { alike } else { 0 }
        }
        Mark::Abort(reason) => {
            let is = |kind: &RolloutEventKind| matches!(kind, RolloutEventKind::Aborted { reason: r, .. } if r == reason);
            history.iter().filter(|event| is(&event.kind)).count()
        }
        // Without it there was nothing to abort.
        Mark::Start => 1,
    };
    for mark in marks {
        assert_eq!(times(mark), 1, "{mark:?} was acknowledged; {versions:#?} {history:#?}");
    }
}

fn pushed(log: &Log) -> BTreeSet<Version> {
    let version = |mark: &Mark| if let Mark::Version(version, _) = mark { Some(*version) } else { None };
    log.acknowledged.iter().filter_map(version).collect()
}

/// Makes the change of this number: of three, one starts a rollout, one aborts it, and one pushes.
async fn write(control: &Control, number: u32) -> Mark {
    let text = format!("number {number}");
    if number.is_multiple_of(3) {
        let pushed = push_again(control, &text).await;
        return Mark::Version(pushed, text);
    }
    if number % 3 == 1 {
        let change =
            Change::StartRollout { target: at(2), weight: Weight::from_basis_points(1_000).unwrap() };
        insist(control, change).await;
        return Mark::Start;
    }
    insist(control, Change::Abort { model: digits(), reason: text.clone() }).await;
    Mark::Abort(text)
}

/// Makes a change, however long the coordinators need to agree.
pub async fn insist(control: &Control, change: Change) -> Outcome {
    let done = control.change_within(change.clone(), INSIST).await;
    done.unwrap_or_else(|error| panic!("{change:?}: {error}")).outcome
}

/// Pushes the first digits model again, as another version.
pub async fn push_again(control: &Control, note: &str) -> Version {
    let bundle =
        roost_client::bundle::LocalBundle::open(&crate::support::digits_folder().join("v1")).await.unwrap();
    control.push_new_version(&digits(), &bundle, note, |_| {}).await.unwrap().version
}

/// Waits until a canary takes its share, and both versions serve.
pub async fn start_canary(client: &Client, target: ModelVersion) {
    let weight = Weight::from_basis_points(2_000).unwrap();
    insist(client.control(), Change::StartRollout { target: target.clone(), weight }).await;
    crate::wait_for(client, "the canary takes its share", |published| {
        published.view.as_ref().is_some_and(|view| view.models[&target.model].traffic.canary.is_some())
    })
    .await;
    crate::support::wait_for_stage(client, &target, 2).await;
}
