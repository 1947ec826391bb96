//! The actor that supervises the hosted versions.
//!
//! It is told each state of the view and has each version started, kept, released or stopped as [`desired`] says. An
//! actor that panics is started anew, later each time; its requests learn of its death by their replies being dropped. The
//! supervisor keeps its own list of children, in order: ractor's is a hash map.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::sync::Arc;
use std::time::Duration;

use ractor::{Actor, ActorId, ActorProcessingErr, ActorRef, RpcReplyPort, SupervisionEvent};
use roost_client::backoff::{Backoff, Jitter};
use roost_protocol::ring::Ring;
use roost_protocol::view::{HostedVersion, Published, Stage, View};
use roost_protocol::{Digest, Epoch, ModelVersion};
use tokio::time::Instant;

use super::desired::{self, Order};
use super::hosted::{self, Hosted};
use super::shared::Shared;

/// The wait after an actor's panic. It lost its sessions, so it starts from the disk.
const RESTART_BACKOFF: Backoff = Backoff { first: Duration::from_millis(200), max: Duration::from_secs(30) };
/// Actors of a version that may die, one soon after the other. More, and it is reported as failed here, so that another node
/// may take its place, and is started again only after [`GIVEN_UP`].
const DEATHS_MAX: u32 = 5;
/// The wait after too many deaths.
const GIVEN_UP: Duration = Duration::from_secs(300);
/// An actor that lived so long is not held to what an earlier one did.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);

/// The actor.
pub struct Supervisor;

/// What happens to a worker.
pub enum Message {
    /// The view or the soft state changed. The answer bounds how many of these wait: one.
    Look(Published, RpcReplyPort<()>),
    /// A version whose actor died may start again.
    Restart(ModelVersion),
}

/// The actor's state.
pub struct Children {
    shared: Arc<Shared>,
    children: BTreeMap<ModelVersion, Child>,
    published: Published,
    ring: Option<(Epoch, Ring)>,
    /// Whether what an earlier life left in the cache was looked through. That takes a view: it says what is wanted.
    tidied: bool,
}

struct Child {
    hosted: HostedVersion,
    /// The actor and when it started; none while it waits to be started again.
    actor: Option<(ActorRef<hosted::Message>, Instant)>,
    deaths: u32,
    wish: Wish,
}

/// What an actor was told last.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wish {
    /// To host its version.
    Wanted,
    /// To let go of it.
    Released,
}

impl Actor for Supervisor {
    type Msg = Message;
    type State = Children;
    type Arguments = Arc<Shared>;

    async fn pre_start(
        &self,
        _myself: ActorRef<Message>,
        shared: Arc<Shared>,
    ) -> Result<Children, ActorProcessingErr> {
        Ok(Children {
            shared,
            children: BTreeMap::new(),
            published: Published::default(),
            ring: None,
            tidied: false,
        })
    }

    async fn handle(
        &self,
        myself: ActorRef<Message>,
        message: Message,
        state: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        match message {
            Message::Look(published, reply) => {
                state.published = published;
                state.look(&myself).await;
                // The asker may have stopped asking.
                let _ = reply.send(());
            }
            Message::Restart(version) => state.restart(&myself, version).await,
        }
        Ok(())
    }

    async fn handle_supervisor_evt(
        &self,
        myself: ActorRef<Message>,
        event: SupervisionEvent,
        state: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        match event {
            SupervisionEvent::ActorFailed(cell, error) => state.handle_crash(&myself, cell.get_id(), &error),
            SupervisionEvent::ActorTerminated(cell, _, _) => state.handle_end(&myself, cell.get_id()).await,
            // Of no interest, and there are no groups.
            SupervisionEvent::ActorStarted(_) | SupervisionEvent::ProcessGroupChanged(_) => {}
        }
        Ok(())
    }

    async fn post_stop(
        &self,
        _myself: ActorRef<Message>,
        state: &mut Children,
    ) -> Result<(), ActorProcessingErr> {
        for child in state.children.values() {
            if let Some((actor, _)) = &child.actor {
                // Fails only when it has ended already.
                let _ = actor.stop_and_wait(None, None).await;
            }
        }
        Ok(())
    }
}

/// The bundles that are hosted, and those that are about to be.
fn wanted(
    hosting: &BTreeMap<ModelVersion, Digest>,
    orders: &BTreeMap<ModelVersion, Order>,
) -> BTreeSet<Digest> {
    let started = orders.values().filter_map(|order| match order {
        Order::Start(hosted) => Some(hosted.digest),
        Order::Keep | Order::Release | Order::Discard => None,
    });
    hosting.values().copied().chain(started).collect()
}

impl Children {
    async fn look(&mut self, myself: &ActorRef<Message>) {
        let Some(view) = self.published.view.clone() else { return };
        let hosting: BTreeMap<ModelVersion, Digest> =
            self.children.iter().map(|(version, child)| (version.clone(), child.hosted.digest)).collect();
        let soft = self.published.soft.clone();
        let node = self.shared.node;
        let orders = desired::orders(&view, self.ring_of(&view), &soft, node, &hosting);
        // Ahead of the first fetch, which makes room by removing what is not wanted.
        self.shared.cache.set_wanted(wanted(&hosting, &orders));
        if !std::mem::replace(&mut self.tidied, true)
            && let Err(error) = self.shared.cache.tidy().await
        {
            tracing::warn!(%error, "the cache of bundles was not tidied up");
        }
        for (version, order) in orders {
            self.carry_out(myself, version, order).await;
        }
        let children = &self.children;
        self.shared.cache.set_wanted(children.values().map(|child| child.hosted.digest).collect());
        let exists = |version: &ModelVersion| {
            view.models.get(&version.model).is_some_and(|model| model.versions.contains_key(&version.version))
        };
        self.shared.routes.forget(|version| children.contains_key(version) || exists(version));
    }

    fn ring_of(&mut self, view: &View) -> &Ring {
        if self.ring.as_ref().is_none_or(|(epoch, _)| *epoch != view.epoch) {
            self.ring = None;
        }
        &self.ring.get_or_insert_with(|| (view.epoch, view.ring())).1
    }

    async fn carry_out(&mut self, myself: &ActorRef<Message>, version: ModelVersion, order: Order) {
        match order {
            Order::Start(hosted) => {
                let child = Child { hosted, actor: None, deaths: 0, wish: Wish::Wanted };
                self.children.insert(version.clone(), child);
                self.start(myself, &version).await;
            }
            Order::Keep => self.tell(&version, Wish::Wanted),
            Order::Release => {
                self.tell(&version, Wish::Released);
                self.forget_if_dead(&version);
            }
            Order::Discard => {
                self.shared.routes.remove(&version);
                if let Some((actor, _)) = self.children.get(&version).and_then(|child| child.actor.as_ref()) {
                    actor.stop(Some("its number stands for another bundle now".to_owned()));
                }
                self.forget_if_dead(&version);
            }
        }
    }

    fn tell(&mut self, version: &ModelVersion, wish: Wish) {
        let Some(child) = self.children.get_mut(version) else { return };
        if child.wish == wish {
            return;
        }
        child.wish = wish;
        if let Some((actor, _)) = &child.actor {
            let message = match wish {
                Wish::Wanted => hosted::Message::Wanted,
                Wish::Released => hosted::Message::Released,
            };
            // When it is ending, its end is seen to next.
            let _ = actor.cast(message);
        }
    }

    /// A version that is not wanted and waits to be started again is not started again.
    fn forget_if_dead(&mut self, version: &ModelVersion) {
        if self.children.get(version).is_some_and(|child| child.actor.is_none()) {
            self.children.remove(version);
            self.shared.board.remove(version);
        }
    }

    async fn start(&mut self, myself: &ActorRef<Message>, version: &ModelVersion) {
        let Some(child) = self.children.get_mut(version) else { return };
        let arguments = hosted::Arguments {
            version: version.clone(),
            hosted: child.hosted.clone(),
            shared: self.shared.clone(),
        };
        match Hosted::spawn_linked(None, Hosted, arguments, myself.get_cell()).await {
            Ok((actor, _)) => {
                child.actor = Some((actor, Instant::now()));
                child.wish = Wish::Wanted;
            }
            Err(error) => {
                tracing::error!(%version, %error, "the actor of a version did not start");
                self.schedule_restart(myself, version.clone(), &error);
            }
        }
    }

    async fn restart(&mut self, myself: &ActorRef<Message>, version: ModelVersion) {
        if self.children.get(&version).is_some_and(|child| child.actor.is_none()) {
            self.start(myself, &version).await;
        }
    }

    fn handle_crash(&mut self, myself: &ActorRef<Message>, id: ActorId, error: &ActorProcessingErr) {
        let Some(version) = self.find(id) else { return };
        tracing::error!(%version, %error, "the actor of a version died");
        self.shared.routes.remove(&version);
        if let Some(child) = self.children.get_mut(&version)
            && let Some((_, started)) = child.actor.take()
            && started.elapsed() >= FORGIVEN_AFTER
        {
            child.deaths = 0;
        }
        if self.children.get(&version).is_some_and(|child| child.wish == Wish::Released) {
            return self.forget_if_dead(&version);
        }
        self.schedule_restart(myself, version, error);
    }

    fn schedule_restart(&mut self, myself: &ActorRef<Message>, version: ModelVersion, error: &dyn Display) {
        let Some(child) = self.children.get_mut(&version) else { return };
        child.deaths += 1;
        let jitter = Jitter::new(self.shared.environment.entropy.u64());
        let (stage, wait) = if child.deaths < DEATHS_MAX {
            (Stage::Loading, RESTART_BACKOFF.after(child.deaths, jitter))
        } else {
            let reason = format!("its actor died {} times in a row, the last: {error}", child.deaths);
            (Stage::Failed { reason }, GIVEN_UP)
        };
        self.shared.board.set(&version, stage, None);
        myself.send_after(wait, move || Message::Restart(version));
    }

    async fn handle_end(&mut self, myself: &ActorRef<Message>, id: ActorId) {
        let Some(version) = self.find(id) else { return };
        self.children.remove(&version);
        self.shared.board.remove(&version);
        // It may be wanted again by now.
        self.look(myself).await;
    }

    fn find(&self, id: ActorId) -> Option<ModelVersion> {
        let is_it = |child: &Child| child.actor.as_ref().is_some_and(|(actor, _)| actor.get_id() == id);
        self.children.iter().find(|(_, child)| is_it(child)).map(|(version, _)| version.clone())
    }
}
