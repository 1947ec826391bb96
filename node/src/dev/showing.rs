//! What a development cluster shows: two versions, a canary, a promotion, an undo, on held-out digits.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt;
use roost_client::bundle::LocalBundle;
use roost_client::{Client, npy};
use roost_protocol::traffic::Weight;
use roost_protocol::{ModelName, ModelVersion, Tensor, Version};
use tokio::time::Instant;

/// How long the cluster may take to get ready. Two busy cores need a few seconds.
pub(super) const READY: Duration = Duration::from_secs(60);
/// Between two looks at whether it is.
const LOOK: Duration = Duration::from_millis(50);
/// Requests in flight while digits are classified.
const IN_FLIGHT: usize = 8;
/// The canary's share.
const CANARY: &str = "20%";

/// Held-out digits, one tensor each.
struct Digits {
    images: Vec<Tensor>,
    labels: Vec<i64>,
}

/// How one round of classifying went.
struct Round {
    /// The version that answered, per image.
    versions: Vec<Version>,
    right: usize,
    median_us: u128,
}

/// Shows it.
///
/// # Errors
/// With what was being done when something failed.
pub async fn show(client: &Client, models: &Path) -> anyhow::Result<()> {
    let digits = read_digits(models)?;
    let model = ModelName::new("digits")?;
    let control = client.control();
    wait_for_workers(client).await?;

    println!("▸ pushes digits@1, a logistic regression, and digits@2, a convolutional net");
    for version in ["v1", "v2"] {
        let bundle = LocalBundle::open(models.join(version)).await?;
        let pushed = control.push(&model, &bundle, version, |_| {}).await?;
        let what = if pushed.stable { "takes all traffic, as the first one" } else { "takes none yet" };
        println!("    digits@{} is held by a quorum of coordinators and {what}", pushed.version);
    }
    wait_until(client, "digits@1 is ready", |client| serves(client, &model, Version(1))).await?;
    let round = classify(client, &digits).await?;
    print_round("all traffic on digits@1", &digits, &round);

    println!("▸ starts a canary: roost rollout start digits@2 --steps {CANARY}");
    let target = ModelVersion { model: model.clone(), version: Version(2) };
    control.start_rollout(target, CANARY.parse::<Weight>()?).await?;
    wait_until(client, "the canary takes its share", |client| {
        let view = client.published().borrow().view.clone();
        view.is_some_and(|view| view.models.get(&model).is_some_and(|model| model.traffic.canary.is_some()))
    })
    .await?;
    let first = classify(client, &digits).await?;
    let again = classify(client, &digits).await?;
    let share = share_of(&first, Version(2));
    print_round(&format!("{CANARY} asked for, {share:.1} % of the users on digits@2"), &digits, &first);
    let same = first.versions.iter().zip(&again.versions).filter(|(a, b)| a == b).count();
    println!("    {same} of {} users got the same version when they came again", digits.images.len());

    println!("▸ promotes: roost rollout promote digits");
    control.promote(&model).await?;
    let round = classify(client, &digits).await?;
    print_round("all traffic on digits@2", &digits, &round);

    println!("▸ changes its mind: roost rollout undo digits, and forward again");
    control.undo(&model).await?;
    print_round("back on digits@1 in one switch", &digits, &classify(client, &digits).await?);
    control.undo(&model).await?;
    print_round("and on digits@2 again", &digits, &classify(client, &digits).await?);
    Ok(())
}

fn read_digits(models: &Path) -> anyhow::Result<Digits> {
    let read = |name: &str| -> anyhow::Result<Tensor> {
        let path = models.join(name);
        let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(npy::read(&bytes)?)
    };
    let (images, labels) = (read("heldout_images.npy")?, read("heldout_labels.npy")?);
    let pixels = images.elements::<f32>()?.chunks_exact(64);
    let images = pixels.map(|image| Tensor::from_elements(&[1, 1, 8, 8], image.to_vec()));
    Ok(Digits { images: images.collect::<Result<_, _>>()?, labels: labels.elements::<i64>()?.to_vec() })
}

/// Every digit is a user of its own, so that a canary shows.
async fn classify(client: &Client, digits: &Digits) -> anyhow::Result<Round> {
    let asks = digits.images.iter().enumerate().map(|(i, image)| async move {
        let started = Instant::now();
        let request = client.infer("digits").key(format!("user-{i}")).input("image", image.clone());
        let response = request.send().await?;
        let took = started.elapsed().as_micros();
        let probabilities =
            response.output("probs").context("the answer has no probs")?.elements::<f32>()?.to_vec();
        anyhow::Ok((response.version, probabilities, took))
    });
    let answers: Vec<_> = futures::stream::iter(asks).buffered(IN_FLIGHT).collect().await;
    let (mut versions, mut times, mut right) = (Vec::new(), Vec::new(), 0);
    for (answer, label) in answers.into_iter().zip(&digits.labels) {
        let (version, probabilities, took) = answer?;
        let best = (0..probabilities.len()).max_by(|a, b| probabilities[*a].total_cmp(&probabilities[*b]));
        right += usize::from(best == usize::try_from(*label).ok());
        versions.push(version);
        times.push(took);
    }
    times.sort_unstable();
    let median_us = times.get(times.len() / 2).copied().unwrap_or_default();
    Ok(Round { versions, right, median_us })
}

fn share_of(round: &Round, version: Version) -> f64 {
    let hits = round.versions.iter().filter(|v| **v == version).count();
    100.0 * hits as f64 / round.versions.len() as f64
}

fn print_round(what: &str, digits: &Digits, round: &Round) {
    let (right, all) = (round.right, digits.labels.len());
    println!(
        "    {what}: {right} of {all} held-out digits right ({:.1} %), median {} µs",
        100.0 * right as f64 / all as f64,
        round.median_us
    );
}

async fn wait_for_workers(client: &Client) -> anyhow::Result<()> {
    let joined = |client: &Client| {
        let view = client.published().borrow().view.clone();
        view.is_some_and(|view| view.nodes.len() >= super::NODES.len())
    };
    wait_until(client, "three workers have joined", joined).await?;
    let view = client.published().borrow().view.clone().context("no view")?;
    let names: Vec<_> = view.nodes.values().map(|node| node.name.to_string()).collect();
    println!("    cluster {}: coordinators agree, workers {} have joined", view.cluster, names.join(", "));
    Ok(())
}

fn serves(client: &Client, model: &ModelName, version: Version) -> bool {
    let published = client.published().borrow().clone();
    let nodes = published.view.iter().flat_map(|view| view.nodes.keys());
    nodes.filter(|node| published.soft.serves(**node, model, version)).count() >= 2
}

async fn wait_until(client: &Client, what: &str, holds: impl Fn(&Client) -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + READY;
    while !holds(client) {
        anyhow::ensure!(Instant::now() < deadline, "after {READY:?} it is not so yet that {what}");
        tokio::time::sleep(LOOK).await;
    }
    Ok(())
}
