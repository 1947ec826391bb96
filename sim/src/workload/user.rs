//! Users, who ask for inference, with keys and without, by the traffic, by version and by label.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use roost_client::Client;
use roost_protocol::traffic::KeyHash;
use roost_protocol::view::Model;
use roost_protocol::{ModelName, ModelVersion, Target, Tensor};

use super::{Phase, Workload};
use crate::engine::{IMAGES, INPUT, OUTPUT, image};
use crate::facts::Fact;
use crate::faults::exponential;
use crate::history::Answer;
use crate::trace;

/// What a user waits at most: longer than it takes to notice that a node died.
const DEADLINE: Duration = Duration::from_secs(5);
/// Requests that one user has in flight.
const AT_ONCE: u64 = 3;
/// Rows of one request at most: as many as the manifests allow in a batch.
const ROWS_MAX: usize = 4;

/// Asks until the end. What was asked is waited for.
pub(super) async fn ask(workload: &Workload, client: &Client, host: &str, seed: u64) {
    let one = |i: u64| one_after_the_other(workload, client, host, seed.wrapping_add(i));
    futures::future::join_all((0..AT_ONCE).map(one)).await;
}

async fn one_after_the_other(workload: &Workload, client: &Client, host: &str, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while workload.0.phase.get() != Phase::Over {
        let model = workload.model(rng.random_range(0..8));
        let key = rng.random_bool(0.7).then(|| format!("key-{}", rng.random_range(0..workload.0.load.keys)));
        let target = {
            let view = client.published().borrow().view.clone();
            let known = view.as_ref().and_then(|view| view.models.get(&model)).cloned();
            target(&model, known.as_deref(), &mut rng)
        };
        ask_once(workload, client, host, target, key.as_deref(), &mut rng).await;
        tokio::time::sleep(exponential(&mut rng, workload.0.load.ask)).await;
    }
}

fn target(name: &ModelName, model: Option<&Model>, rng: &mut StdRng) -> Target {
    let Some(model) = model.filter(|_| rng.random_bool(0.2)) else { return Target::Split(name.clone()) };
    let labels: Vec<_> = model.labels.keys().collect();
    if !labels.is_empty() && rng.random() {
        let label = labels[rng.random_range(0..labels.len())];
        return Target::Labelled(name.clone(), label.clone());
    }
    let versions: Vec<_> = model.versions.keys().collect();
    let version = *versions[rng.random_range(0..versions.len())];
    Target::Pinned(ModelVersion { model: name.clone(), version })
}

/// Asks once. Returns why there was no answer, if there was none.
pub(super) async fn ask_once(
    workload: &Workload,
    client: &Client,
    host: &str,
    target: Target,
    key: Option<&str>,
    rng: &mut StdRng,
) -> Option<String> {
    // Several rows go together now and then: a node's bound of eight is soon reached then.
    let rows = if rng.random_bool(0.3) { rng.random_range(2..=ROWS_MAX) } else { 1 };
    let images: Vec<usize> = (0..rows).map(|_| rng.random_range(0..IMAGES)).collect();
    let asked_at = client.published().borrow().view.as_ref().map(|view| view.epoch);
    let mut request = client.infer(target.clone()).input(INPUT, stack(&images)).deadline(DEADLINE);
    if let Some(key) = key {
        request = request.key(key);
    }
    let invoked = trace::now();
    let response = match request.send().await {
        Ok(response) => response,
        Err(error) => {
            trace::line(format_args!("no answer from {target}: {error}"));
            workload.0.history.failed();
            let error = error.to_string();
            workload.0.witness.tell(Fact::Unanswered { target, invoked, error: error.clone() });
            return Some(error);
        }
    };
    let probs =
        response.output(OUTPUT).and_then(|probs| probs.elements::<f32>().ok().map(|probs| probs.to_vec()));
    let answer = Answer {
        client: host.to_owned(),
        target,
        key: key.map(|key| KeyHash::of(key.as_bytes())),
        invoked,
        returned: trace::now(),
        asked_at,
        version: response.version,
        revision: response.revision,
        epoch: response.epoch,
        fallback: response.fallback,
        node: response.node.to_string(),
        images,
        probs: probs.unwrap_or_default(),
    };
    let Answer { target, version, node, revision, epoch, probs, .. } = &answer;
    let bits: Vec<u8> = probs.iter().flat_map(|value| value.to_bits().to_le_bytes()).collect();
    let (hash, by) =
        (xxhash_rust::xxh3::xxh3_64(&bits), if answer.fallback { "instead" } else { "as picked" });
    trace::line(format_args!(
        "{target} was answered by {version} {by}, of {node} at {epoch}, revision {revision}: {hash:016x}"
    ));
    let answer = workload.0.history.answered(answer);
    workload.0.witness.tell(Fact::Answered(answer));
    None
}

/// Images as one input, `[images, 1, 8, 8] f32`.
fn stack(images: &[usize]) -> Tensor {
    let rows: Vec<Tensor> = images.iter().map(|number| image(*number)).collect();
    let values = rows.iter().flat_map(|row| row.elements::<f32>().expect("images are of f32"));
    let values: Vec<f32> = values.copied().collect();
    Tensor::from_elements(&[images.len() as u64, 1, 8, 8], values).expect("each has its pixels")
}
