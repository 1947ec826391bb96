//! The smallest world that is a cluster: three coordinators, two workers, a client, one crash of the leader.
//! It keeps time, network, disk and entropy outside of all that it runs: two runs of one seed are equal line
//! by line.
#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

mod digits;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use roost_client::Client;
use roost_protocol::view::Published;
use roost_protocol::{ModelVersion, Version};
use roost_sim::condition::Weather;
use roost_sim::engine::{INPUT, OUTPUT, Oracle, image, model};
use roost_sim::facts::Witness;
use roost_sim::trace::{Keep, Traced};
use roost_sim::world::{Shape, World, connect};
use roost_sim::{entropy, trace};

use digits::{bundle, digits};

/// Virtual time that a story may take.
const PATIENCE: Duration = Duration::from_secs(120);

async fn ask(client: &Client, key: &str, number: usize) -> (Version, Vec<f32>) {
    let response = client.infer("digits").key(key).input(INPUT, image(number)).send().await.unwrap();
    (response.version, response.output(OUTPUT).unwrap().elements::<f32>().unwrap().to_vec())
}

async fn wait_for(client: &Client, holds: impl FnMut(&Published) -> bool) {
    client.published().wait_for(holds).await.unwrap();
}

fn ready_nodes(published: &Published, version: u32) -> usize {
    let nodes = published.view.iter().flat_map(|view| view.nodes.keys());
    nodes.filter(|node| published.soft.serves(**node, &digits(), Version(version))).count()
}

/// What the story tells the world to do.
type Wish = Rc<RefCell<Option<String>>>;

async fn story(client: Client, crash: Wish) -> turmoil::Result {
    let control = client.control();
    control.push(&digits(), &bundle(2), "", |_| {}).await?;
    control.push(&digits(), &bundle(3), "", |_| {}).await?;
    wait_for(&client, |published| ready_nodes(published, 1) == 2).await;
    let target = ModelVersion { model: digits(), version: Version(2) };
    control.start_rollout(target, "50%".parse()?).await?;
    wait_for(&client, |published| {
        published.view.as_ref().is_some_and(|view| view.models[&digits()].traffic.canary.is_some())
    })
    .await;

    let mut first = BTreeMap::new();
    for i in 0..40 {
        let key = format!("user-{i}");
        first.insert(key.clone(), (i, ask(&client, &key, i).await));
    }
    let leader = control.cluster().await?.leader;
    let name =
        client.published().borrow().view.as_ref().map(|view| view.coordinators[&leader].name.to_string());
    *crash.borrow_mut() = name;
    for (key, (i, answer)) in &first {
        let again = ask(&client, key, *i).await;
        assert_eq!(again, *answer, "{key} keeps its version and its answer");
    }
    control.promote(&digits()).await?;
    for i in 0..10 {
        let (version, probs) = ask(&client, &format!("user-{i}"), 7).await;
        assert_eq!((version, probs), (Version(2), Oracle::of(&model(3)).unwrap().answer(7).unwrap()));
    }
    let canary = first.values().filter(|(_, (version, _))| *version == Version(2)).count();
    assert!((8..=32).contains(&canary), "{canary} of 40 on the canary");
    Ok(())
}

fn run(seed: u64, weather: Weather) -> Traced {
    entropy::seeded(seed, move || {
        let _gathers = trace::gather(Keep::All, |_| {});
        let mut world = World::new(seed, &Shape::plain(3, 2), Witness::default());
        let crash = Wish::default();
        let wish = crash.clone();
        world.client("client", move |connector| async move { story(connect(&connector).await, wish).await });
        for host in world.hosts() {
            world.change(&host, |condition| condition.weather = weather);
        }
        while !world.step().unwrap() {
            assert!(world.elapsed() < PATIENCE, "seed {seed}: the story has not ended");
            if let Some(name) = crash.borrow_mut().take() {
                world.crash(&name, Some(Duration::from_secs(5)));
            }
        }
        drop(world);
        trace::take()
    })
}

#[test]
fn the_same_seed_gives_the_same_trace_twice() {
    for seed in [1, 2] {
        let (one, other) = (run(seed, Weather::default()), run(seed, Weather::default()));
        let differs = one.lines.iter().zip(&other.lines).position(|(a, b)| a != b);
        if let Some(i) = differs {
            let (before, a, b) = (&one.lines[i.saturating_sub(1)], &one.lines[i], &other.lines[i]);
            panic!("seed {seed}: line {i} differs after\n{before}\n{a}\n{b}");
        }
        assert_eq!(one.hash, other.hash, "seed {seed}: one run goes on for longer");
        assert!(one.count > 1000, "the trace has {} lines only", one.count);
    }
}

#[test]
fn it_works_over_a_network_that_loses_packets() {
    run(3, Weather { loss: 0.02, duplication: 0.02, ..Weather::default() });
}

#[test]
fn another_seed_is_another_trace() {
    assert_ne!(run(4, Weather::default()).hash, run(5, Weather::default()).hash);
}
