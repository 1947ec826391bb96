//! A worker whose disk spoils whatever it reads of bundles gives a new version up, the leader excludes it
//! with the reason, and another worker serves the version in its place. What the worker holds in memory
//! already it serves on.
#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

mod digits;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use roost_client::Client;
use roost_protocol::messages::control::RolloutEventKind;
use roost_protocol::view::{Published, View};
use roost_protocol::{ModelVersion, NodeId, NodeName, Version, placement};
use roost_sim::engine::{INPUT, OUTPUT, Oracle, image, model};
use roost_sim::entropy;
use roost_sim::facts::Witness;
use roost_sim::world::{Shape, World, connect};

use digits::{bundle, digits};

/// Virtual time that the story may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Users that are asked for, of whom half get the new version.
const USERS: usize = 40;

/// The names of nodes.
fn names(view: &View, nodes: impl IntoIterator<Item = NodeId>) -> BTreeSet<NodeName> {
    nodes.into_iter().map(|node| view.nodes[&node].name.clone()).collect()
}

/// Who serves a version.
fn serving(published: &Published, version: u32) -> BTreeSet<NodeName> {
    let Some(view) = &published.view else { return BTreeSet::new() };
    let serves = |node: &NodeId| published.soft.serves(*node, &digits(), Version(version));
    names(view, view.nodes.keys().copied().filter(serves))
}

/// Who owns the second version.
fn owners(view: &View) -> Vec<NodeId> {
    placement::owners(view, &view.ring(), &digits(), Version(2))
}

/// Who would own the second version if it were hosted as the first is.
fn owners_to_be(mut view: View) -> Vec<NodeId> {
    let versions = &mut Arc::make_mut(view.models.get_mut(&digits()).unwrap()).versions;
    versions.insert(Version(2), versions[&Version(1)].clone());
    owners(&view)
}

/// The node whose disk the story wants spoilt.
type Wish = Rc<RefCell<Option<String>>>;

async fn wait_for(client: &Client, holds: impl FnMut(&Published) -> bool) -> Published {
    client.published().wait_for(holds).await.unwrap().clone()
}

/// Asks for each user, and checks the answers. Who answered by the second version.
async fn ask_all(client: &Client, pause: Duration) -> BTreeSet<NodeName> {
    let mut by = BTreeSet::new();
    for i in 0..USERS {
        let key = format!("user-{i}");
        let response = client.infer("digits").key(&key).input(INPUT, image(i)).send().await.unwrap();
        let expected = Oracle::of(&model(response.version.0.into())).unwrap().answer(i).unwrap();
        assert_eq!(response.output(OUTPUT).unwrap().elements::<f32>().unwrap(), expected, "{key}");
        if response.version == Version(2) {
            by.insert(response.node);
        }
        tokio::time::sleep(pause).await;
    }
    by
}

async fn story(client: Client, spoil: Wish) -> turmoil::Result {
    let control = client.control();
    let joined = |published: &Published| published.view.as_ref().is_some_and(|view| view.nodes.len() == 3);
    wait_for(&client, joined).await;
    control.push(&digits(), &bundle(1), "", |_| {}).await?;
    control.push(&digits(), &bundle(2), "", |_| {}).await?;
    let published = wait_for(&client, |published| serving(published, 1).len() == 2).await;
    let (view, of_first) = (published.view.as_ref().unwrap(), serving(&published, 1));
    let bad = owners_to_be(View::clone(view))[0];
    let name = view.nodes[&bad].name.clone();
    *spoil.borrow_mut() = Some(name.to_string());
    while spoil.borrow().is_some() {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }

    // Users ask on all the while.
    control.start_rollout(ModelVersion { model: digits(), version: Version(2) }, "50%".parse()?).await?;
    let runs = |published: &Published| {
        published.view.as_ref().is_some_and(|view| view.models[&digits()].traffic.canary.is_some())
    };
    let (published, _) = tokio::join!(wait_for(&client, runs), ask_all(&client, Duration::from_millis(200)));
    let view = published.view.as_ref().unwrap();
    assert_eq!(view.models[&digits()].versions[&Version(2)].excluded, [bad].into());
    let owners = names(view, owners(view));
    assert!(owners.len() == 2 && !owners.contains(&name), "{owners:?} own it, {name} cannot");

    let history = control.rollout(&digits()).await?.history;
    let excluded = history.iter().position(|event| match &event.kind {
        RolloutEventKind::Excluded { version, node, reason } => {
            assert_eq!((*version, node), (Version(2), &name), "{history:#?}");
            assert!(reason.contains("is damaged"), "{reason}");
            true
        }
        _ => false,
    });
    let exposed = history.iter().position(|event| matches!(event.kind, RolloutEventKind::Exposed { .. }));
    assert!(excluded.is_some() && excluded < exposed, "{history:#?}");

    let published = wait_for(&client, |published| serving(published, 2) == owners).await;
    assert_eq!(serving(&published, 1), of_first);
    assert_eq!(ask_all(&client, Duration::ZERO).await, owners, "both serve the new version");
    Ok(())
}

#[test]
fn a_worker_that_cannot_load_a_version_is_excluded_and_another_takes_its_place() {
    entropy::seeded(1, || {
        let mut world = World::new(1, &Shape::plain(3, 3), Witness::default());
        let spoil = Wish::default();
        let wish = spoil.clone();
        world.client("client", move |connector| async move { story(connect(&connector).await, wish).await });
        while !world.step().unwrap() {
            assert!(world.elapsed() < PATIENCE, "the story has not ended");
            if let Some(name) = spoil.borrow_mut().take() {
                world.change_disk(&name, |faults| faults.flip = 1.0);
            }
        }
    });
}
