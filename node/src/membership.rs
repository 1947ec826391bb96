//! A worker's place in the cluster: it joins, joins again when it must, and reports.
//!
//! When to join is decided by [`Joining`], purely: each join is a log entry with an fsync on a quorum, so neither a refusal
//! nor another node that claims the same identity may turn into a stream of them.

use std::sync::Arc;
use std::time::Duration;

use roost_client::backoff::{Backoff, Jitter};
use roost_client::control::Control;
use roost_protocol::messages::control::{Change, Heartbeat, VersionStatistics};
use roost_protocol::view::{Node, NodeProfile, NodeState, Published, VersionReport, View};
use roost_protocol::{CommandError, ControlError, Epoch, Incarnation, NodeId, NodeName};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::environment::Entropy;
use crate::identity::Identity;

/// Three of these missed make a node suspect.
const HEARTBEAT: Duration = Duration::from_millis(900);
/// A change of a stage is reported at once, but a burst of changes is gathered for so long.
const GATHER: Duration = Duration::from_millis(10);
/// Between two joins. Two nodes with one data folder, which take the place from each other in turn, cost a log entry per so
/// long; a node that was declared out has been away for longer.
const JOIN_INTERVAL: Duration = Duration::from_secs(10);
/// The wait after an attempt that no leader answered, which was itself tried for seconds.
const RETRY: Duration = Duration::from_secs(1);
/// The wait after a refusal. It holds until somebody sets right what was refused, and each attempt is a log entry.
const REFUSED_BACKOFF: Backoff = Backoff { first: Duration::from_secs(1), max: Duration::from_secs(60) };

/// What a worker says of itself when it joins.
#[derive(Debug, Clone, PartialEq)]
pub struct Introduction {
    /// Its id.
    pub node: NodeId,
    /// Its name.
    pub name: NodeName,
    /// `host:port` of its worker endpoint.
    pub address: String,
    /// What it is and can do.
    pub profile: NodeProfile,
}

/// What a worker does about its membership.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// Asks to be a member.
    Join,
    /// Nothing until then; a newer view may change that.
    WaitUntil(Instant),
    /// Nothing until there is a newer view.
    WaitForView,
}

/// How loudly a failure is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Tell {
    /// It was not told before.
    Warn,
    /// It is as it was.
    Again,
}

/// Decides when a worker asks to be a member. Pure.
///
/// It must at each start, because only then is it sure that it does not drain from its last stop; and later when it was
/// declared out, or somebody else took its place meanwhile.
#[derive(Debug, Default)]
struct Joining {
    /// When it joined last, and the epoch that this led to: an older view does not show it yet.
    joined: Option<(Instant, Epoch)>,
    /// When it may try again after a failure.
    retry_at: Option<Instant>,
    /// Refusals in a row.
    refusals: u32,
    /// Who had its name, by the view, when it was refused for that. Once he has it no longer there is nothing to wait for.
    holder: Option<NodeId>,
    /// The last failure, as it was told.
    told: Option<String>,
}

impl Joining {
    /// What to do now.
    fn next(&self, view: &View, us: &Introduction, now: Instant) -> Step {
        let earliest = match self.joined {
            None => None,
            Some((_, epoch)) if view.epoch < epoch => return Step::WaitForView,
            Some(_) if is_member(view.nodes.get(&us.node), us) => return Step::WaitForView,
            Some((at, _)) => Some(at + JOIN_INTERVAL),
        };
        let freed = self
            .holder
            .is_some_and(|holder| !view.nodes.get(&holder).is_some_and(|node| holds_name(node, us)));
        match earliest.max(self.retry_at.filter(|_| !freed)) {
            Some(at) if at > now => Step::WaitUntil(at),
            Some(_) | None => Step::Join,
        }
    }

    /// The worker is a member.
    fn handle_joined(&mut self, epoch: Epoch, now: Instant) {
        *self = Self { joined: Some((now, epoch)), ..Self::default() };
    }

    /// The worker is none.
    fn handle_failed(
        &mut self,
        error: &ControlError,
        view: &View,
        us: &Introduction,
        now: Instant,
        jitter: Jitter,
    ) -> Tell {
        let is_taken = matches!(error, ControlError::Refused(CommandError::NameTaken { .. }));
        let mut holders = view.nodes.iter().filter(|(id, node)| **id != us.node && holds_name(node, us));
        self.holder = holders.next().map(|(id, _)| *id).filter(|_| is_taken);
        let wait = if error.retryable() {
            self.refusals = 0;
            RETRY
        } else {
            self.refusals = self.refusals.saturating_add(1);
            REFUSED_BACKOFF.after(self.refusals, jitter)
        };
        self.retry_at = Some(now + wait);
        let reason = error.to_string();
        if self.told.as_ref() == Some(&reason) {
            return Tell::Again;
        }
        self.told = Some(reason);
        Tell::Warn
    }
}

/// Whether a member has the name that this worker wants.
fn holds_name(member: &Node, us: &Introduction) -> bool {
    member.name == us.name && member.state != NodeState::Out
}

/// Whether the cluster knows a worker as what it is.
fn is_member(known: Option<&Node>, us: &Introduction) -> bool {
    known.is_some_and(|known| {
        known.name == us.name
            && known.address == us.address
            && known.profile == us.profile
            && known.state != NodeState::Out
    })
}

/// Joins, and joins again whenever the view says that this node must.
pub async fn stay_joined(
    control: Control,
    mut published: watch::Receiver<Published>,
    us: Introduction,
    entropy: Arc<dyn Entropy>,
) {
    let mut joining = Joining::default();
    loop {
        // A change names the epoch that it was sent at: without a view, an old cluster could not tell whether it is new.
        let Ok(view) = published.wait_for(|published| published.view.is_some()).await.map(|p| p.view.clone())
        else {
            return;
        };
        let Some(view) = view else { continue };
        published.mark_unchanged();
        match joining.next(&view, &us, Instant::now()) {
            Step::WaitForView => {
                if published.changed().await.is_err() {
                    return;
                }
            }
            Step::WaitUntil(at) => tokio::select! {
                changed = published.changed() => if changed.is_err() { return },
                () = sleep_until(at) => {}
            },
            Step::Join => join(&control, &us, &view, &mut joining, &*entropy).await,
        }
    }
}

async fn join(
    control: &Control,
    us: &Introduction,
    view: &View,
    joining: &mut Joining,
    entropy: &dyn Entropy,
) {
    if joining.joined.is_some() {
        tracing::warn!(
            node = %us.name,
            "is not in the cluster as it joined: it was declared out, or another node has its identity; joins again"
        );
    }
    let change = Change::Join {
        node: us.node,
        name: us.name.clone(),
        address: us.address.clone(),
        profile: Box::new(us.profile.clone()),
    };
    match control.change(change).await {
        Ok(done) => {
            tracing::info!(node = %us.name, epoch = %done.epoch, "joined");
            joining.handle_joined(done.epoch, Instant::now());
        }
        Err(error) => {
            let jitter = Jitter::new(entropy.u64());
            match joining.handle_failed(&error, view, us, Instant::now(), jitter) {
                Tell::Warn => tracing::warn!(node = %us.name, %error, "cannot join"),
                Tell::Again => tracing::debug!(node = %us.name, %error, "cannot join yet"),
            }
        }
    }
}

/// What this process has done about a later start of its node that the cluster has heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outlived {
    /// It was not told of one.
    Not,
    /// It goes on as a later start than that.
    WentOn,
    /// It was told again, or cannot go on as one.
    Told,
}

impl Outlived {
    /// The cluster has heard start `known`. An older copy of the data folder, as of a machine's snapshot, is overcome by counting
    /// on from there. Once: where two processes of one identity live, they would overtake each other at each report.
    fn handle(&mut self, identity: &Identity, known: Incarnation) {
        let node = identity.node();
        match self {
            Self::Not => match identity.outlive(known) {
                Ok(start) => {
                    tracing::warn!(
                        %node, %known, %start,
                        "the cluster has heard a later start of this node than its data folder knows: the folder is an older \
                         copy of itself; goes on as a later start"
                    );
                    *self = Self::WentOn;
                }
                Err(error) => {
                    tracing::error!(
                        %node, %known, %error,
                        "the cluster has heard a later start of this node and ignores this one, which cannot be counted on: \
                         empty its data folder"
                    );
                    *self = Self::Told;
                }
            },
            Self::WentOn => {
                tracing::error!(
                    %node, %known,
                    "another process reports as this node: two data folders are of one node; stop one and empty its folder"
                );
                *self = Self::Told;
            }
            Self::Told => tracing::debug!(%node, %known, "a later start of this node is heard"),
        }
    }
}

/// Reports to the leader, about once a second and at each change of a stage.
pub async fn report(
    control: Control,
    identity: Identity,
    mut reports: watch::Receiver<Arc<Vec<VersionReport>>>,
    statistics: impl Fn() -> Vec<VersionStatistics>,
) {
    let (mut sequence, mut outlived) = (0, Outlived::Not);
    loop {
        sequence += 1;
        let versions = reports.borrow_and_update().to_vec();
        let (node, incarnation, statistics) = (identity.node(), identity.incarnation(), statistics());
        let heartbeat = Heartbeat { node, incarnation, sequence, versions, statistics };
        let started = Instant::now();
        match control.heartbeat(heartbeat).await {
            Ok(_) => {}
            Err(ControlError::Outlived { known, .. }) => outlived.handle(&identity, known),
            Err(error) => tracing::debug!(%error, "no leader heard the report"),
        }
        let next = started + HEARTBEAT;
        match tokio::time::timeout_at(next, reports.changed()).await {
            Ok(Ok(())) => tokio::time::sleep(GATHER).await,
            Ok(Err(_)) => return,
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use roost_protocol::ClusterId;
    use roost_protocol::ring::Speed;

    fn us() -> Introduction {
        let profile = NodeProfile {
            speed: Speed::default(),
            zone: String::new(),
            labels: BTreeMap::new(),
            memory_mib: 1,
            isa: String::new(),
            engines: Default::default(),
        };
        let name = NodeName::new("a").unwrap();
        Introduction { node: NodeId(1), name, address: "h:1".to_owned(), profile }
    }

    fn epoch(index: u64) -> Epoch {
        Epoch { generation: 1, index }
    }

    /// A view with this node at an address, in a state.
    fn view(index: u64, known: Option<(&str, NodeState)>) -> View {
        let node = |(address, state): (&str, NodeState)| {
            let Introduction { node, name, profile, .. } = us();
            (node, Node { name, address: address.to_owned(), state, hold: None, profile })
        };
        View {
            cluster: ClusterId(1),
            epoch: epoch(index),
            coordinators: BTreeMap::new(),
            nodes: known.map(node).into_iter().collect(),
            models: BTreeMap::new(),
        }
    }

    #[test]
    fn a_later_start_is_overtaken_once() {
        let folder = tempfile::tempdir().unwrap();
        let files = Arc::new(crate::environment::production::files::OsFiles::open(folder.path()).unwrap());
        struct Zeros;
        impl Entropy for Zeros {
            fn fill(&self, bytes: &mut [u8]) {
                bytes.fill(0);
            }
        }
        let identity = Identity::open(files, &Zeros).unwrap();
        let mut outlived = Outlived::Not;
        outlived.handle(&identity, Incarnation(8));
        assert_eq!((outlived, identity.incarnation()), (Outlived::WentOn, Incarnation(9)));
        // Another process that lives overtakes it in turn: it is told, and left alone.
        for known in [10, 12] {
            outlived.handle(&identity, Incarnation(known));
            assert_eq!((outlived, identity.incarnation()), (Outlived::Told, Incarnation(9)));
        }
        // A start that cannot be kept is none.
        let mut outlived = Outlived::Not;
        outlived.handle(&identity, Incarnation(u64::MAX - 1));
        assert_eq!((outlived, identity.incarnation()), (Outlived::Told, Incarnation(9)));
    }

    fn refused() -> ControlError {
        CommandError::NameTaken { name: us().name }.into()
    }

    fn unheard() -> ControlError {
        ControlError::NoQuorum { reason: "an election".to_owned() }
    }

    #[tokio::test]
    async fn a_worker_joins_once_and_again_when_it_must() {
        let (us, start) = (us(), Instant::now());
        let mut joining = Joining::default();
        // At its start it cannot tell whether it drains from its last stop.
        assert_eq!(joining.next(&view(1, Some(("h:1", NodeState::Active))), &us, start), Step::Join);
        joining.handle_joined(epoch(5), start);
        assert_eq!(joining.next(&view(4, None), &us, start), Step::WaitForView, "the view is older");
        let long_after = start + 2 * JOIN_INTERVAL;
        let next = |known| joining.next(&view(5, known), &us, long_after);
        assert_eq!(next(None), Step::Join);
        assert_eq!(next(Some(("h:2", NodeState::Active))), Step::Join);
        assert_eq!(next(Some(("h:1", NodeState::Out))), Step::Join);
        assert_eq!(next(Some(("h:1", NodeState::Draining))), Step::WaitForView);
        assert_eq!(next(Some(("h:1", NodeState::Active))), Step::WaitForView);
    }

    #[tokio::test]
    async fn two_nodes_of_one_identity_take_turns_slowly() {
        let start = Instant::now();
        let (one, other) = (us(), Introduction { address: "h:2".to_owned(), ..us() });
        let mut nodes = [(&one, Joining::default()), (&other, Joining::default())];
        let (mut holder, mut joins) = ("none".to_owned(), 0u64);
        // Each looks ten times a second, for ten minutes.
        for tick in 0..6_000u32 {
            let now = start + tick * Duration::from_millis(100);
            for (us, joining) in &mut nodes {
                let view = view(joins, Some((&holder, NodeState::Active)));
                if joining.next(&view, us, now) == Step::Join {
                    joins += 1;
                    holder.clone_from(&us.address);
                    joining.handle_joined(epoch(joins), now);
                }
            }
        }
        assert_eq!(joins, 2 * 60, "each once in ten seconds");
    }

    #[tokio::test]
    async fn a_refusal_is_tried_again_ever_later_and_told_once() {
        let (us, start) = (us(), Instant::now());
        let (mut joining, mut now, full) = (Joining::default(), start, Jitter::new(u64::MAX));
        let mut waits = Vec::new();
        for refusal in 0..8 {
            assert_eq!(joining.next(&view(1, None), &us, now), Step::Join);
            let expected = if refusal == 0 { Tell::Warn } else { Tell::Again };
            assert_eq!(joining.handle_failed(&refused(), &view(1, None), &us, now, full), expected);
            let Step::WaitUntil(at) = joining.next(&view(1, None), &us, now) else {
                panic!("it does not wait")
            };
            waits.push((at - now).as_secs());
            now = at;
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60]);
        // Another reason is told, and an election is no refusal.
        assert_eq!(joining.handle_failed(&unheard(), &view(1, None), &us, now, full), Tell::Warn);
        assert_eq!(joining.next(&view(1, None), &us, now), Step::WaitUntil(now + RETRY));
        assert_eq!(joining.handle_failed(&refused(), &view(1, None), &us, now, full), Tell::Warn);
        assert_eq!(joining.next(&view(1, None), &us, now + RETRY), Step::Join);
        joining.handle_joined(epoch(1), now);
        assert_eq!(
            joining.handle_failed(&refused(), &view(1, None), &us, now, full),
            Tell::Warn,
            "it was well in between"
        );
    }

    #[tokio::test]
    async fn a_name_that_is_free_again_is_asked_for_at_once() {
        let (us, now, full) = (us(), Instant::now(), Jitter::new(u64::MAX));
        let held = |state| {
            let mut view = view(1, Some(("h:9", state)));
            let (_, node) = view.nodes.pop_first().unwrap();
            view.nodes.insert(NodeId(9), node);
            view
        };
        let taken = held(NodeState::Active);
        let mut joining = Joining::default();
        for _ in 0..8 {
            joining.handle_failed(&refused(), &taken, &us, now, full);
        }
        assert_eq!(joining.next(&taken, &us, now), Step::WaitUntil(now + REFUSED_BACKOFF.max));
        assert_eq!(joining.next(&held(NodeState::Out), &us, now), Step::Join);
        assert_eq!(joining.next(&view(2, None), &us, now), Step::Join);
        // The leader knows better than this view, and is asked no more often for that.
        joining.handle_failed(&refused(), &held(NodeState::Out), &us, now, full);
        assert_eq!(joining.next(&held(NodeState::Out), &us, now), Step::WaitUntil(now + REFUSED_BACKOFF.max));
        // Nor does a name help against a refusal for another reason.
        joining.handle_failed(&unheard(), &taken, &us, now, full);
        assert_eq!(joining.next(&held(NodeState::Out), &us, now), Step::WaitUntil(now + RETRY));
    }
}
