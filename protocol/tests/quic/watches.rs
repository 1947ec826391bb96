//! Watches: states as they change, whole at first, then as deltas; never backwards.

use std::collections::BTreeSet;
use std::sync::Arc;

use roost_protocol::error::ControlError;
use roost_protocol::frame::Kind;
use roost_protocol::ids::{Epoch, ModelName, NodeId};
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
        let published = published.clone();
        tokio::spawn(async move { watch::serve(&mut send, published, from, &models).await });
    }
}

fn published(view: View, soft: SoftState) -> Published {
    Published { view: Some(Arc::new(view)), soft: Arc::new(soft) }
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

#[tokio::test]
async fn a_watcher_hears_nothing_older_than_it_knows() {
    let rows: [(u64, &[u64]); 3] = [(6, &[7, 10]), (7, &[7, 10]), (8, &[10])];
    for (knows, hears) in rows {
        let (sender, link, _node) = serving(published(view(7), soft_at(1))).await;
        let mut watch = Watch::start(&link, Some(epoch(knows)), Watched::All).await.unwrap();
        let mut heard = Vec::new();
        if hears.len() == 2 {
            heard.push(next_view(&mut watch).await.epoch.index);
        }
        next_soft(&mut watch).await;
        sender.send_modify(|published| assert!(published.offer_view(Arc::new(view(10)))));
        heard.push(next_view(&mut watch).await.epoch.index);
        assert_eq!(heard, hears);
    }
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
