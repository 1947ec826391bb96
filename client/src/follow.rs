//! Follows the view: keeps the newest [`Published`] fresh by a watch at one node at a time.
//!
//! What was learnt is never unlearnt: views only advance in epoch, soft states in (term, sequence), whichever
//! node they come from. A node that is reachable but behind is left when somebody else is heard to be ahead
//! ([`Follower::heard_of`]). Which node is next, and after what wait, is decided by [`tour`]; the task here
//! carries it out.

mod tour;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::StreamExt as _;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use rand_chacha::ChaCha12Rng;
use rand_chacha::rand_core::SeedableRng;
use roost_protocol::Epoch;
use roost_protocol::error::reason;
use roost_protocol::messages::control::Watched;
use roost_protocol::quic::endpoint::{GreetError, Link};
use roost_protocol::quic::watch::{Update, Watch, WatchError};
use roost_protocol::quic::{Dialler, Service};
use roost_protocol::view::Published;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use tokio::time::Instant;

pub use tour::Sources;
use tour::{Step, Tour};

/// How long a watch may take to deliver an epoch that another node is known to have, beside the [`LAG_ROUND_TRIPS`] that it
/// takes anyway. A node that needs longer is itself cut off from the coordinators.
const LAG_MS_MAX: u64 = 100;

/// Round trips in which a watch delivers: its own request and answer, and once more for what was lost on the way. Without
/// them a follower would leave every node that is far away ahead of its first update, and never learn anything.
const LAG_ROUND_TRIPS: u32 = 2;

/// How long a node may leave a new watch without a view. One that has just started, or belongs to the group no
/// longer, has none to give or an older one than the follower has; others may.
const EMPTY_MS_MAX: u64 = 1_000;

/// How long after one node was dialled the next one is, when the first has neither greeted nor failed: RFC 8305 section 5, which
/// recommends this much. A node whose machine is gone is silent for seconds; shorter, and nodes far away would all be dialled at
/// once.
const DIAL_DELAY: Duration = Duration::from_millis(250);

/// Keeps the newest view and soft state. Stops when it is dropped.
#[derive(Debug)]
pub struct Follower {
    published: watch::Receiver<Published>,
    heard: watch::Sender<Heard>,
    troubles: Troubles,
    round_trip_us: Arc<AtomicU64>,
    task: AbortHandle,
}

/// The latest epoch that anybody mentioned, and who.
#[derive(Debug, Clone, Default)]
struct Heard {
    epoch: Epoch,
    address: Option<Arc<str>>,
}

/// Per address, why the last watch there ended.
type Troubles = Arc<Mutex<BTreeMap<String, String>>>;

impl Follower {
    /// Starts to follow, from `seeds` and then from the nodes of the view itself, in the order that `sources`
    /// asks for. `seed` feeds that order and the jitter of waits.
    pub fn start(
        dialler: Dialler,
        seeds: Vec<String>,
        watched: Watched,
        sources: Sources,
        seed: [u8; 32],
    ) -> Self {
        let (publish, published) = watch::channel(Published::default());
        let (heard, hears) = watch::channel(Heard::default());
        let troubles = Troubles::default();
        let tour = Tour::new(seeds, sources, ChaCha12Rng::from_seed(seed));
        let round_trip_us = Arc::<AtomicU64>::default();
        let (noted, measured) = (troubles.clone(), round_trip_us.clone());
        let following =
            Following { dialler, watched, publish, hears, troubles: noted, round_trip_us: measured };
        let task = tokio::spawn(following.run(tour)).abort_handle();
        Self { published, heard, troubles, round_trip_us, task }
    }

    /// The newest that is known.
    pub fn published(&self) -> watch::Receiver<Published> {
        self.published.clone()
    }

    /// Tells that the node at `address` has the view of `epoch`. If the present watch does not deliver it
    /// soon, it is given up for one there.
    pub fn heard_of(&self, epoch: Epoch, address: &str) {
        self.heard.send_if_modified(|heard| {
            let news = epoch > heard.epoch;
            if news {
                *heard = Heard { epoch, address: Some(address.into()) };
            }
            news
        });
    }

    /// The latest epoch that was heard of, be it delivered or not.
    pub fn latest_heard(&self) -> Epoch {
        self.heard.borrow().epoch
    }

    /// The round trip to the node that was watched last, as it was when the watch began; zero ahead of the first.
    pub fn round_trip(&self) -> Duration {
        Duration::from_micros(self.round_trip_us.load(Ordering::Relaxed))
    }

    /// Why watches ended, by address: what to tell a user who waits for the first view.
    pub fn troubles(&self) -> BTreeMap<String, String> {
        self.troubles.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Why a watch was given up.
#[derive(Debug, thiserror::Error)]
enum GivenUp {
    #[error(transparent)]
    Watch(#[from] WatchError),
    #[error("it is behind: epoch {0} is known elsewhere")]
    Behind(Epoch),
    #[error("it has no view of the cluster, or an older one")]
    Empty,
    #[error("nobody listens any more")]
    Unheard,
}

/// What came of a dial.
type Dialled = (String, Result<Link, GreetError>);

struct Following {
    dialler: Dialler,
    watched: Watched,
    publish: watch::Sender<Published>,
    hears: watch::Receiver<Heard>,
    troubles: Troubles,
    round_trip_us: Arc<AtomicU64>,
}

impl Following {
    async fn run(self, mut tour: Tour) {
        loop {
            let (address, link) = self.reach(&mut tour).await;
            let round_trip_us = u64::try_from(link.round_trip().as_micros()).unwrap_or(u64::MAX);
            self.round_trip_us.store(round_trip_us, Ordering::Relaxed);
            let Err(given_up) = self.watch_at(&link, &mut tour).await;
            tracing::debug!(address, %given_up, "a watch ended");
            match &given_up {
                GivenUp::Unheard => return,
                GivenUp::Behind(_) => {
                    let ahead = self.hears.borrow().address.clone();
                    ahead.into_iter().for_each(|ahead| tour.turn_to(&ahead));
                }
                GivenUp::Watch(_) | GivenUp::Empty => {}
            }
            self.note(&tour, address, reason(given_up));
        }
    }

    /// Dials node after node on the tour until one greets; the dials of the others are then given up. None waits for another to
    /// fail for longer than [`DIAL_DELAY`], and none is cancelled for being slow, so that a node which is far away is reached as
    /// well as a silent one is passed by.
    async fn reach(&self, tour: &mut Tour) -> (String, Link) {
        let (mut dials, mut dialled) = (FuturesUnordered::<BoxFuture<'_, Dialled>>::new(), BTreeSet::new());
        loop {
            let view = self.publish.borrow().view.clone();
            let Step { wait, address } = tour.next(view.as_deref());
            let pause = if dials.is_empty() { wait } else { wait.max(DIAL_DELAY) };
            let mut due = pin!(tokio::time::sleep(pause));
            loop {
                let is_dialled = address.as_ref().is_some_and(|address| dialled.contains(address));
                tokio::select! {
                    biased;
                    Some((address, greeted)) = dials.next() => match greeted {
                        Ok(link) => {
                            tour.arrived(&address);
                            return (address, link);
                        }
                        Err(error) => {
                            tracing::debug!(address, %error, "a node was not reached");
                            dialled.remove(&address);
                            self.note(tour, address, reason(error));
                            // Nobody is left who might still greet.
                            if dials.is_empty() {
                                let sooner = due.deadline().min(Instant::now() + wait);
                                due.as_mut().reset(sooner);
                            }
                        }
                    },
                    () = &mut due, if !is_dialled => break,
                }
            }
            if let Some(address) = address {
                dialled.insert(address.clone());
                dials.push(Box::pin(async move {
                    let greeted = self.dialler.dial(&address, Service::Control).await;
                    (address, greeted)
                }));
            }
        }
    }

    async fn watch_at(&self, link: &Link, tour: &mut Tour) -> Result<Infallible, GivenUp> {
        // From what is known already, so that only what changed since travels.
        let view = self.publish.borrow().view.clone();
        let mut watch = Watch::start(link, view, self.watched.clone()).await?;
        // The updates are read by one future to the end: a frame that was half read must not be dropped.
        let has_view = AtomicBool::new(false);
        let deliver = async {
            loop {
                let update = watch.next().await?;
                tour.delivered();
                has_view.fetch_or(matches!(update, Update::View(_)), Ordering::Relaxed);
                self.take(update);
            }
        };
        tokio::select! {
            biased;
            ended = deliver => ended,
            behind = self.behind(link) => Err(GivenUp::Behind(behind)),
            () = empty(&has_view) => Err(GivenUp::Empty),
            () = self.publish.closed() => Err(GivenUp::Unheard),
        }
    }

    fn take(&self, update: Update) {
        self.publish.send_if_modified(|published| match update {
            Update::View(view) => published.offer_view(view),
            Update::Soft(soft) => published.offer_soft(soft),
        });
    }

    /// Completes when an epoch that was heard of has not been delivered in time.
    async fn behind(&self, link: &Link) -> Epoch {
        let mut hears = self.hears.clone();
        loop {
            let heard = hears.wait_for(|heard| self.lacks(heard.epoch)).await.map(|heard| heard.epoch);
            let Ok(heard) = heard else {
                return std::future::pending().await;
            };
            let lag_max = Duration::from_millis(LAG_MS_MAX) + link.round_trip() * LAG_ROUND_TRIPS;
            tokio::time::sleep(lag_max).await;
            if self.lacks(heard) {
                return heard;
            }
        }
    }

    /// Whether `epoch` is one that was not delivered yet. The first of all is nobody's: nothing was heard of then.
    fn lacks(&self, epoch: Epoch) -> bool {
        epoch > self.publish.borrow().view.as_ref().map_or(Epoch::default(), |view| view.epoch)
    }

    /// Keeps what happened at an address, for those that are still on the tour.
    fn note(&self, tour: &Tour, address: String, trouble: String) {
        let view = self.publish.borrow().view.clone();
        let known = tour.addresses(view.as_deref());
        let mut troubles = self.troubles.lock().unwrap_or_else(PoisonError::into_inner);
        troubles.insert(address, trouble);
        troubles.retain(|address, _| known.contains(address));
    }
}

/// Completes when a watch has not delivered a view in time. A node sends the view that it has first, unless it is older than
/// the follower's.
async fn empty(has_view: &AtomicBool) {
    tokio::time::sleep(Duration::from_millis(EMPTY_MS_MAX)).await;
    if has_view.load(Ordering::Relaxed) {
        std::future::pending::<()>().await;
    }
}
