//! Watches: states as they change, whole at first, then as deltas; never backwards.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use roost_protocol::error::ControlError;
use roost_protocol::frame::Kind;
use roost_protocol::ids::{Epoch, Label, ModelName, NodeId, Version};
use roost_protocol::messages::control::{ControlRequest, SoftUpdate, WatchUpdate, Watched};
use roost_protocol::quic::stream::read_message;
use roost_protocol::quic::watch::{self, Update, Watch, WatchError};
use roost_protocol::quic::{Link, Role, Service, StreamError, finish, write_message};
use roost_protocol::view::{Published, SoftState, View};
use tokio::sync::watch::{Receiver, Sender, channel};

use crate::messages::state::{epoch, model, soft, view};
use crate::party::{Listener, dialler, within};

/// A node that serves what is published, and a link to it.
async fn serving(published: Published) -> (Sender<Published>, Link, Listener) {
    let mut node = Listener::start(&[Service::Control]).await;
    let (sender, receiver) = channel(published);
    let link =
        dialler(&[Role::Client]).await.dial(&node.address, Service::Control).await.expect("it listens");
    tokio::spawn(serve(node.link().await, receiver));
    (sender, link, node)
}

/// Serves every watch of a link.
async fn serve(link: Link, published: Receiver<Published>) {
    while let Ok((mut send, mut recv)) = link.accept().await {
        let request = read_message(&mut recv, Kind::ControlRequest).await;
        let Ok(ControlRequest::Watch { from, models }) = request else { panic!("{request:?}") };
        let (link, published) = (link.clone(), published.clone());
        tokio::spawn(async move { watch::answer(&link, &mut send, published, from, &models).await });
    }
}

fn published(view: View, soft: SoftState) -> Published {
    Published::new(Some(Arc::new(view)), Arc::new(soft))
}

fn soft_at(sequence: u64) -> SoftState {
    SoftState { sequence, ..soft() }
}

async fn next(watch: &mut Watch) -> Update {
    within("an update", watch.next()).await.expect("the watch goes on")
}

async fn next_view(watch: &mut Watch) -> View {
    match next(watch).await {
        Update::View(view) => View::clone(&view),
        Update::Soft(soft) => panic!("{soft:?}"),
    }
}

async fn next_soft(watch: &mut Watch) -> SoftState {
    match next(watch).await {
        Update::Soft(soft) => soft,
        Update::View(view) => panic!("{view:?}"),
    }
}

#[tokio::test]
async fn states_are_followed() {
    let (sender, link, _node) = serving(published(view(7), soft_at(1))).await;
    let mut watch = Watch::start(&link, None, Watched::All).await.unwrap();
    assert_eq!(next_view(&mut watch).await, view(7));
    assert_eq!(next_soft(&mut watch).await, soft_at(1));

    let mut later = view(8);
    later.nodes.remove(&NodeId(11));
    later.models.remove(&model());
    sender.send_modify(|published| assert!(published.offer_view(Arc::new(later.clone()))));
    assert_eq!(next_view(&mut watch).await, later);

    let mut fewer = soft_at(2);
    fewer.nodes.remove(&NodeId(11));
    sender.send_modify(|published| assert!(published.offer_soft(fewer.clone())));
    assert_eq!(next_soft(&mut watch).await, fewer);

    // Nothing goes back, and nothing is delivered twice.
    sender.send_modify(|published| {
        assert!(!published.offer_view(Arc::new(view(8))));
        assert!(!published.offer_soft(soft_at(1)));
    });
    sender.send_modify(|published| assert!(published.offer_view(Arc::new(view(300)))));
    assert_eq!(next_view(&mut watch).await, view(300));

    drop(sender);
    let error = within("the end", watch.next()).await.unwrap_err();
    assert!(matches!(error, WatchError::Stream(StreamError::Ended)), "{error}");
}

#[tokio::test]
async fn after_the_first_view_only_changes_travel() {
    let (sender, link, _node) = serving(published(view(7), soft_at(1))).await;
    let (mut send, mut recv) = link.open().await.unwrap();
    let request = ControlRequest::Watch { from: None, models: Watched::All };
    write_message(&mut send, Kind::ControlRequest, &request).await.unwrap();
    let mut update = async || -> WatchUpdate {
        within("an update", read_message(&mut recv, Kind::WatchUpdate)).await.expect("the watch goes on")
    };

    assert_eq!(update().await, WatchUpdate::View(Box::new(view(7))));
    let WatchUpdate::Soft(whole) = update().await else { panic!("the soft state follows") };
    assert_eq!(whole.from, None);

    let mut later = view(9);
    later.nodes.remove(&NodeId(12));
    sender.send_modify(|published| assert!(published.offer_view(Arc::new(later))));
    let WatchUpdate::Delta(delta) = update().await else { panic!("a delta follows") };
    assert_eq!((delta.from, delta.to), (epoch(7), epoch(9)));
    assert_eq!(delta.nodes.keys().collect::<Vec<_>>(), [&NodeId(12)]);
    assert_eq!((delta.coordinators, delta.models.len()), (None, 0));

    let mut soft = soft_at(2);
    soft.nodes.remove(&NodeId(11));
    sender.send_modify(|published| assert!(published.offer_soft(soft)));
    let WatchUpdate::Soft(change) = update().await else { panic!("a change of the soft state follows") };
    assert_eq!(change.from, Some((whole.term, 1)));
    assert_eq!(change.nodes.into_iter().collect::<Vec<_>>(), [(NodeId(11), None)]);
}

#[tokio::test]
async fn a_watcher_of_some_models_hears_of_no_others() {
    let (sender, link, _node) = serving(published(view(7), soft_at(1))).await;
    let other = ModelName::new("other").unwrap();
    let wanted = Watched::Models(BTreeSet::from([other.clone(), ModelName::new("absent").unwrap()]));
    let mut watch = Watch::start(&link, None, wanted).await.unwrap();
    let first = next_view(&mut watch).await;
    assert_eq!(first.models.keys().collect::<Vec<_>>(), [&other]);
    assert_eq!(first.nodes, view(7).nodes);
    next_soft(&mut watch).await;

    // A change of another model moves the epoch and nothing else.
    let mut later = view(8);
    later.models.remove(&model());
    sender.send_modify(|published| assert!(published.offer_view(Arc::new(later.clone()))));
    assert_eq!(next_view(&mut watch).await, later);

    later.epoch = epoch(9);
    later.models.clear();
    sender.send_modify(|published| assert!(published.offer_view(Arc::new(later.clone()))));
    assert_eq!(next_view(&mut watch).await, later);
}

/// What comes of a watch from a view of epoch `knows`, at a node that went from `past` to epoch 7 and then goes to 10.
async fn resumed(past: &[u64], knows: u64, models: Watched) -> Vec<WatchUpdate> {
    let (first, rest) = past.split_first().unwrap_or((&7, &[]));
    let mut before = published(view(*first), soft_at(1));
    for epoch in rest.iter().chain(&[7]) {
        before.offer_view(Arc::new(view(*epoch)));
    }
    let (sender, link, _node) = serving(before).await;
    let (mut send, mut recv) = link.open().await.expect("it listens");
    let request = ControlRequest::Watch { from: Some(epoch(knows)), models };
    write_message(&mut send, Kind::ControlRequest, &request).await.expect("it listens");
    let mut views = Vec::new();
    let mut soft = 1;
    while views.last().is_none_or(|update| to(update) < 10) {
        let update = within("an update", read_message(&mut recv, Kind::WatchUpdate)).await;
        let update = update.expect("the watch goes on");
        match &update {
            // The soft state comes after the view that was there: what follows is new.
            WatchUpdate::Soft(update) => {
                assert_eq!(update.sequence, soft);
                soft += 1;
                sender.send_modify(|published| assert!(published.offer_view(Arc::new(view(10)))));
            }
            WatchUpdate::View(_) | WatchUpdate::Delta(_) => views.push(update),
            WatchUpdate::Failed(error) => panic!("{error}"),
        }
    }
    views
}

/// The index of the epoch that an update leads to.
fn to(update: &WatchUpdate) -> u64 {
    match update {
        WatchUpdate::View(view) => view.epoch.index,
        WatchUpdate::Delta(delta) => delta.to.index,
        WatchUpdate::Soft(_) | WatchUpdate::Failed(_) => panic!("{update:?}"),
    }
}

#[tokio::test]
async fn a_watch_goes_on_from_what_its_watcher_has() {
    // What the node had before, what the watcher has, and what comes: `v` whole, `d` what changed, and the epoch.
    let rows: [(&[u64], u64, &[&str]); 7] = [
        // An empty change first: the node is as far as its watcher.
        (&[], 7, &["d7", "d10"]),
        (&[3, 5], 7, &["d7", "d10"]),
        (&[3, 5], 5, &["d7", "d10"]),
        (&[3, 5], 3, &["d7", "d10"]),
        // Never heard of, or not any more.
        (&[3, 5], 4, &["v7", "d10"]),
        (&[1, 2, 3, 4, 5, 6], 1, &["d7", "d10"]),
        // The watcher heard a node that is ahead of this one.
        (&[3, 5], 9, &["v10"]),
    ];
    for (past, knows, expected) in rows {
        let letter = |update: &WatchUpdate| if matches!(update, WatchUpdate::View(_)) { 'v' } else { 'd' };
        let came = resumed(past, knows, Watched::All).await;
        let told: Vec<_> = came.iter().map(|update| format!("{}{}", letter(update), to(update))).collect();
        assert_eq!(told, expected, "{past:?} {knows}");
    }
    let long: Vec<u64> = (0..7).collect();
    let mut kept = Published::default();
    for index in long.iter().map(|index| 100 + index).chain(200..220) {
        kept.offer_view(Arc::new(view(index)));
    }
    assert!(
        kept.recent(epoch(100)).is_none() && kept.recent(epoch(218)).is_some(),
        "a bounded number is kept"
    );
}

#[tokio::test]
async fn a_watcher_that_comes_back_gets_what_changed_for_its_models_alone() {
    let other = Watched::Models(BTreeSet::from([ModelName::new("other").unwrap()]));
    for update in resumed(&[5], 5, other).await {
        let WatchUpdate::Delta(delta) = update else { panic!("{update:?}") };
        assert_eq!(delta.models.len(), 0);
    }
}

#[tokio::test]
async fn a_watcher_comes_back_with_its_view() {
    let (sender, link, _node) = serving(published(view(7), soft_at(1))).await;
    let mut first = Watch::start(&link, None, Watched::All).await.unwrap();
    let Update::View(has) = next(&mut first).await else { panic!("a view is first") };
    drop(first);
    let mut later = view(8);
    later.nodes.remove(&NodeId(11));
    sender.send_modify(|published| assert!(published.offer_view(Arc::new(later.clone()))));
    let mut second = Watch::start(&link, Some(has), Watched::All).await.unwrap();
    assert_eq!(next_view(&mut second).await, later);
    drop(second);
    // Nothing has changed since.
    let mut third = Watch::start(&link, Some(Arc::new(later.clone())), Watched::All).await.unwrap();
    assert_eq!(next_view(&mut third).await, later);
    assert_eq!(next_soft(&mut third).await, soft_at(1));
    later.epoch = epoch(9);
    later.models.clear();
    sender.send_modify(|published| assert!(published.offer_view(Arc::new(later.clone()))));
    assert_eq!(next_view(&mut third).await, later);
}

#[tokio::test]
async fn a_connection_has_so_many_watches_and_no_more() {
    let (sender, link, _node) = serving(published(view(7), soft_at(1))).await;
    let mut watches = Vec::new();
    for _ in 0..watch::WATCHES_MAX {
        let mut watch = Watch::start(&link, None, Watched::All).await.unwrap();
        next_view(&mut watch).await;
        watches.push(watch);
    }
    let mut more = Watch::start(&link, None, Watched::All).await.unwrap();
    let refused = within("the refusal", more.next()).await.unwrap_err();
    let (max, actual) = (watch::WATCHES_MAX as u64, watch::WATCHES_MAX as u64 + 1);
    let limit = |error: &ControlError| matches!(error, ControlError::LimitExceeded { max: m, actual: a, .. } if (*m, *a) == (max, actual));
    assert!(matches!(&refused, WatchError::Refused(error) if limit(error)), "{refused}");
    // Those that are served go on, and one that ends makes room.
    sender.send_modify(|published| assert!(published.offer_view(Arc::new(view(8)))));
    drop(watches.pop());
    loop {
        let mut again = Watch::start(&link, None, Watched::All).await.unwrap();
        match within("an answer", again.next()).await {
            Ok(update) => break assert_eq!(update, Update::View(Arc::new(view(8)))),
            // The server has not heard yet that the other left.
            Err(error) => assert_eq!(error.to_string(), refused.to_string()),
        }
    }
}

#[tokio::test]
async fn a_watcher_that_takes_nothing_is_given_up() {
    let mut node = Listener::start(&[Service::Control]).await;
    // More than the windows of a stream hold.
    let mut huge = view(7);
    let label = |i: usize| Label::new(&format!("{i:0>60}")).unwrap();
    let labels: BTreeMap<Label, Version> = (0..200_000).map(|i| (label(i), Version(1))).collect();
    Arc::make_mut(huge.models.get_mut(&model()).unwrap()).labels = labels;
    let (_sender, receiver) = channel(published(huge, soft_at(1)));
    let link = dialler(&[Role::Client]).await.dial(&node.address, Service::Control).await.unwrap();
    let served = node.link().await;
    let _never_read = Watch::start(&link, None, Watched::All).await.unwrap();
    let (mut send, _recv) = within("the watch", served.accept()).await.unwrap();
    let ended = watch::serve(&mut send, receiver, None, &Watched::All);
    let error = within("the end", ended).await.unwrap_err();
    assert!(matches!(&error, StreamError::Broken(why) if why.contains("took nothing")), "{error}");
    assert!(link.is_open() && served.is_open(), "the connection carries other requests still");
}

#[tokio::test]
async fn a_node_without_a_view_serves_its_first_when_it_comes() {
    let (sender, link, _node) = serving(Published::default()).await;
    let mut watch = Watch::start(&link, None, Watched::All).await.unwrap();
    assert_eq!(next_soft(&mut watch).await, SoftState::default());
    sender.send_modify(|published| assert!(published.offer_view(Arc::new(view(7)))));
    assert_eq!(next_view(&mut watch).await, view(7));
}

#[tokio::test]
async fn a_server_notices_that_its_watcher_left() {
    let mut node = Listener::start(&[Service::Control]).await;
    let (_sender, receiver) = channel(published(view(7), soft_at(1)));
    let link = dialler(&[Role::Client]).await.dial(&node.address, Service::Control).await.unwrap();
    let served = node.link().await;
    let mut watch = Watch::start(&link, None, Watched::All).await.unwrap();
    let (mut send, _recv) = within("the watch", served.accept()).await.unwrap();
    let serving = tokio::spawn(async move { watch::serve(&mut send, receiver, None, &Watched::All).await });
    next_view(&mut watch).await;
    drop(watch);
    within("the end", serving).await.unwrap().unwrap();
    assert!(link.is_open());
}

#[tokio::test]
async fn a_refusal_and_updates_without_a_base_end_the_watch() {
    let mut later = view(9);
    later.nodes.clear();
    let change = SoftUpdate::between(Some(&soft_at(1)), &soft_at(2));
    let refusal = ControlError::NotCoordinator { coordinators: vec![] };
    let rows = [
        (WatchUpdate::Failed(refusal.clone()), refusal.to_string()),
        (
            WatchUpdate::Delta(Box::new(later.delta_from(&view(7)))),
            format!("a delta from epoch {} does not apply to a view of epoch {}", epoch(7), Epoch::default()),
        ),
        (WatchUpdate::Soft(change), "a change of a soft state that this watch did not deliver".to_owned()),
    ];
    let mut node = Listener::start(&[Service::Control]).await;
    let link = dialler(&[Role::Client]).await.dial(&node.address, Service::Control).await.unwrap();
    let served = node.link().await;
    for (update, expected) in rows {
        let mut watch = Watch::start(&link, None, Watched::All).await.unwrap();
        let (mut send, _recv) = within("the watch", served.accept()).await.unwrap();
        write_message(&mut send, Kind::WatchUpdate, &update).await.unwrap();
        finish(&mut send);
        let error = within("the error", watch.next()).await.unwrap_err();
        assert_eq!(error.to_string(), expected);
    }
}
