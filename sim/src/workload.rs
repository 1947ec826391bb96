//! What clients ask of a world: operators who race each other, readers, users, an administrator, and an
//! auditor at the end.
//!
//! Everything is drawn from each client's own seed. What is asked, and what comes of it, goes into the
//! [`History`]; an operation that was given up, or whose client was stopped, stays open-ended.

mod admin;
mod audit;
mod operator;
mod user;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use roost_client::Client;
use roost_client::bundle::LocalBundle;
use roost_protocol::bundle::{MANIFEST_FILE, MODEL_FILE};
use roost_protocol::view::{Published, View};
use roost_protocol::{Digest, Epoch, ModelName};
use tokio::sync::watch;

use crate::disk::SimDisk;
use crate::engine::model;
use crate::facts::{Fact, Witness};
use crate::history::{Answer, History, Op};
use crate::plan::{Load, Plan};
use crate::trace;
use crate::world::{NodeShape, World, connect};

/// How far a run is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Faults come.
    Safety,
    /// They have ended; users go on, operators do not.
    Liveness,
    /// Everything has converged; users go on, and must be answered.
    Converged,
    /// All is over.
    Over,
}

/// What is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Missing {
    /// What.
    pub what: String,
    /// The name of the node that it is about, where it is about one.
    pub node: Option<String>,
}

impl From<String> for Missing {
    fn from(what: String) -> Self {
        Self { what, node: None }
    }
}

impl From<&str> for Missing {
    fn from(what: &str) -> Self {
        what.to_owned().into()
    }
}

/// What the clients of a run share. Cloning shares it.
#[derive(Clone)]
pub struct Workload(Rc<Shared>);

struct Shared {
    load: Load,
    phase: Cell<Phase>,
    history: History,
    witness: Witness,
    /// The views that were seen, by epoch.
    views: RefCell<BTreeMap<Epoch, Arc<View>>>,
    /// What each client knows.
    followed: RefCell<BTreeMap<String, watch::Receiver<Published>>>,
    /// The bundles that were made: their model's bytes.
    models: RefCell<BTreeMap<Digest, Bytes>>,
    made: Cell<u64>,
    /// The addresses of the coordinators, by name.
    coordinators: BTreeMap<String, String>,
    /// The coordinators that may lose their data.
    doomed: BTreeSet<String>,
    /// Whether an administrator may still change something.
    administers: Cell<bool>,
    /// The coordinators' disks, by name, and whether the coordinator is sound: it must converge.
    disks: RefCell<BTreeMap<String, (SimDisk, bool)>>,
    /// Why the auditor is not content yet; none once it is.
    missing: RefCell<Option<Missing>>,
    /// What the auditor found at the end.
    last: RefCell<Published>,
}

impl Workload {
    /// The clients of `world`, on hosts of their own. Of the `doomed` coordinators, which may lose their
    /// data, no administrator makes a majority of the voters.
    pub fn start(world: &mut World, plan: &Plan, doomed: &BTreeSet<String>, witness: &Witness) -> Self {
        let (load, shape) = (&plan.load, &plan.shape);
        let coordinators = shape.nodes.iter().filter(|node| node.coordinator);
        let address = |node: &NodeShape| (node.name.clone(), node.coordinator_address());
        let shared = Shared {
            load: load.clone(),
            phase: Cell::new(Phase::Safety),
            history: History::default(),
            witness: witness.clone(),
            views: RefCell::default(),
            followed: RefCell::default(),
            models: RefCell::default(),
            made: Cell::new(0),
            coordinators: coordinators.map(address).collect(),
            doomed: doomed.clone(),
            administers: Cell::new(load.admins > 0),
            disks: RefCell::default(),
            missing: RefCell::new(Some("it has not begun".into())),
            last: RefCell::default(),
        };
        let workload = Self(Rc::new(shared));
        for name in &shape.clients {
            let (workload, host) = (workload.clone(), name.clone());
            world.client(name, move |connector| async move {
                let seed = connector.seed();
                let client = connect(&connector).await;
                let story = async {
                    match host.trim_end_matches(|c: char| c.is_ascii_digit()) {
                        "op" => operator::operate(&workload, &client, &host, seed).await,
                        "reader" => operator::read(&workload, &client, &host, seed).await,
                        "admin" => admin::administer(&workload, &client, seed).await,
                        "user" => user::ask(&workload, &client, &host, seed).await,
                        _ => audit::audit(&workload, &client, &host).await,
                    }
                };
                // A user ends by itself, once it has what it asked for.
                let is_user = host.starts_with("user");
                tokio::select! {
                    () = story => trace::line(format_args!("its story has ended")),
                    () = workload.follow(&client, &host) => trace::line(format_args!("follows no more")),
                    () = workload.until(Phase::Over), if !is_user => {}
                }
                Ok(())
            });
        }
        workload
    }

    /// Says how far the run is.
    pub fn enter(&self, phase: Phase) {
        self.0.phase.set(phase);
    }

    /// Gives the auditor the coordinators' disks to look at; true marks one that must converge.
    pub fn give_disks(&self, disks: BTreeMap<String, (SimDisk, bool)>) {
        *self.0.disks.borrow_mut() = disks;
    }

    /// What the auditor still misses; none once everything has converged.
    pub fn missing(&self) -> Option<Missing> {
        self.0.missing.borrow().clone()
    }

    /// The operations that have ended or were given up: all of them, once every client has ended.
    pub fn ops(&self) -> Vec<Arc<Op>> {
        self.0.history.ops()
    }

    /// The answers.
    pub fn answers(&self) -> Vec<Arc<Answer>> {
        self.0.history.answers()
    }

    /// Requests that had no answer.
    pub fn failures(&self) -> u64 {
        self.0.history.failures()
    }

    /// The views that were seen.
    pub fn views(&self) -> BTreeMap<Epoch, Arc<View>> {
        self.0.views.borrow().clone()
    }

    /// The names of the coordinators that are members, by the newest view that was seen.
    pub fn members(&self) -> BTreeSet<String> {
        let views = self.0.views.borrow();
        let newest = views.values().next_back();
        newest.map(|view| members(view)).unwrap_or_default()
    }

    /// What the bundles' models are.
    pub fn models(&self) -> BTreeMap<Digest, Bytes> {
        self.0.models.borrow().clone()
    }

    /// What the auditor saw last.
    pub fn last(&self) -> Published {
        self.0.last.borrow().clone()
    }

    /// Follows what a client knows.
    async fn follow(&self, client: &Client, host: &str) {
        let mut published = client.published();
        self.0.followed.borrow_mut().insert(host.to_owned(), client.published());
        loop {
            let seen = published.borrow_and_update().clone();
            if let Some(view) = &seen.view {
                self.0.views.borrow_mut().insert(view.epoch, view.clone());
            }
            let epoch = seen.view.as_ref().map(|view| view.epoch).unwrap_or_default();
            let (term, sequence) = (seen.soft.term, seen.soft.sequence);
            trace::line(format_args!("knows the view of {epoch}, soft state {sequence} of term {term}"));
            self.0.witness.tell(Fact::Saw(seen));
            if published.changed().await.is_err() {
                return std::future::pending().await;
            }
        }
    }

    /// Returns once the run is so far.
    async fn until(&self, phase: Phase) {
        while self.0.phase.get() != phase {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// A bundle.
    fn bundle(&self, replicas: u16, novelty: Novelty) -> LocalBundle {
        let made = match novelty {
            Novelty::New => self.0.made.get() + 1,
            Novelty::Again => self.0.made.get().max(1),
        };
        self.0.made.set(made.max(self.0.made.get()));
        let bytes = Bytes::from(model(made));
        let manifest = format!(
            "replicas = {replicas}\nbatch_axes = {{ image = 0, probs = 0 }}\n\
             batch_rows_max = 4\nwarm_up_rows = [1]\n"
        );
        let files = [(MODEL_FILE, bytes.clone()), (MANIFEST_FILE, Bytes::from(manifest))];
        let files = files.map(|(name, bytes)| (name.to_owned(), bytes)).into();
        let bundle = LocalBundle::from_bytes(files).expect("the files are a bundle");
        self.0.models.borrow_mut().insert(bundle.files().digest(), bytes);
        bundle
    }

    /// The name of a model.
    fn model(&self, number: usize) -> ModelName {
        let names = ["alpha", "beta", "gamma"];
        ModelName::new(names[number % self.0.load.models]).expect("a name")
    }
}

/// Whether a bundle is like one that was made before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Novelty {
    /// It is unlike all others.
    New,
    /// Its model is the one that was made last, if any was.
    Again,
}

/// The names of the coordinators that are members.
fn members(view: &View) -> BTreeSet<String> {
    view.coordinators.values().map(|coordinator| coordinator.name.to_string()).collect()
}

/// An operation under way: open-ended, should nobody end it.
struct Begun<'a> {
    workload: &'a Workload,
    op: Option<Op>,
}

impl<'a> Begun<'a> {
    fn new(workload: &'a Workload, op: Op) -> Self {
        Self { workload, op: Some(op) }
    }

    fn end(mut self, result: Option<(crate::history::Return, Option<Epoch>)>) {
        if let Some(op) = self.op.take() {
            let (model, call) = (op.model.clone(), op.call.clone());
            let ended = self.workload.0.history.end(op, result);
            let what = ended.returned.as_ref().map(|(_, returned)| returned);
            trace::line(format_args!("{call:?} of {model} gave {what:?}"));
            self.workload.0.witness.tell(Fact::Returned(ended));
        }
    }
}

impl Drop for Begun<'_> {
    fn drop(&mut self) {
        if let Some(op) = self.op.take() {
            self.workload.0.history.end(op, None);
        }
    }
}
