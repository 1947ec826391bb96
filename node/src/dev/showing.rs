//! What a development cluster shows: two versions, a canary, a promotion, an undo, on held-out digits.

use std::path::Path;
use std::time::Duration;

use anyhow::Context as _;
use futures::StreamExt;
use roost_client::bundle::LocalBundle;
use roost_client::{Client, npy};
use roost_protocol::messages::control::{RolloutSummary, VersionSummary};
use roost_protocol::traffic::{Traffic, Weight};
use roost_protocol::view::Liveness;
use roost_protocol::{CommandError, ControlError, Digest, ModelName, ModelVersion, Tensor, Version};
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

/// What an earlier start left of the two versions.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    /// The number of each that was pushed, the first and the second.
    pushed: [Option<Version>; 2],
    /// Where the traffic goes, if somebody has changed it since the first was pushed: it is left alone then.
    changed: Option<Traffic>,
}

/// Looks for the bundles of these digests among a model's versions.
fn find(versions: &[VersionSummary], rollout: Option<&RolloutSummary>, digests: [Digest; 2]) -> Found {
    let number =
        |digest| versions.iter().rev().find(|version| version.digest == digest).map(|found| found.version);
    let pushed = digests.map(number);
    let untouched = |summary: &&RolloutSummary| {
        let Traffic { stable, canary, previous, .. } = &summary.traffic;
        summary.rollout.is_none() && canary.is_none() && previous.is_none() && Some(*stable) == pushed[0]
    };
    let changed = rollout.filter(|summary| !untouched(summary)).map(|summary| summary.traffic.clone());
    Found { pushed, changed }
}

/// Shows it, as far as an earlier start has not. Gives the number of the second version.
///
/// # Errors
/// With what was being done when something failed.
pub async fn show(client: &Client, models: &Path) -> anyhow::Result<Version> {
    let digits = read_digits(models)?;
    let model = ModelName::new("digits")?;
    wait_for_workers(client).await?;

    let bundles = [LocalBundle::open(models.join("v1")).await?, LocalBundle::open(models.join("v2")).await?];
    let digests = [bundles[0].files().digest(), bundles[1].files().digest()];
    let (versions, rollout) = what_is_there(client, &model).await?;
    let found = find(&versions, rollout.as_ref(), digests);
    match found.pushed {
        [None, None] => println!("▸ pushes a logistic regression, and then a convolutional net"),
        _ => println!("▸ finds what an earlier start has pushed"),
    }
    let mut numbers = Vec::new();
    for ((bundle, note), number) in bundles.iter().zip(["v1", "v2"]).zip(found.pushed) {
        numbers.push(match number {
            Some(number) => {
                println!("    digits@{number} is {note}");
                number
            }
            None => push(client, &model, bundle, note).await?,
        });
    }
    let [first, second] = numbers[..] else { anyhow::bail!("two bundles have two numbers") };
    match found.changed {
        None => show_rollout(client, &digits, &model, first, second).await?,
        Some(traffic) => show_present(client, &digits, &model, &traffic, [first, second]).await?,
    }
    Ok(second)
}

/// A model's versions and its traffic; none when there is no such model.
async fn what_is_there(
    client: &Client,
    model: &ModelName,
) -> anyhow::Result<(Vec<VersionSummary>, Option<RolloutSummary>)> {
    let versions = match client.control().versions(model).await {
        Ok(versions) => versions,
        Err(ControlError::Refused(CommandError::UnknownModel { .. })) => return Ok((Vec::new(), None)),
        Err(error) => return Err(error.into()),
    };
    Ok((versions, Some(client.control().rollout(model).await?)))
}

async fn push(
    client: &Client,
    model: &ModelName,
    bundle: &LocalBundle,
    note: &str,
) -> anyhow::Result<Version> {
    let pushed = client.control().push(model, bundle, note, |_| {}).await?;
    let what = if pushed.stable { "takes all traffic, as the first one" } else { "takes none yet" };
    println!("    digits@{} is held by a quorum of coordinators and {what}", pushed.version);
    Ok(pushed.version)
}

/// A canary, its promotion, and an undo.
async fn show_rollout(
    client: &Client,
    digits: &Digits,
    model: &ModelName,
    first: Version,
    second: Version,
) -> anyhow::Result<()> {
    let control = client.control();
    wait_until(client, "the first version is ready", |client| serves(client, model, first)).await?;
    let round = classify(client, digits).await?;
    print_round(&format!("all traffic on digits@{first}"), digits, &round);

    println!("▸ starts a canary: roost rollout start digits@{second} --steps {CANARY}");
    let target = ModelVersion { model: model.clone(), version: second };
    start_canary(client, &target, CANARY.parse()?).await?;
    let round = classify(client, digits).await?;
    let again = classify(client, digits).await?;
    let share = share_of(&round, second);
    print_round(&format!("{CANARY} asked for, {share:.1} % of the users on digits@{second}"), digits, &round);
    let same = round.versions.iter().zip(&again.versions).filter(|(a, b)| a == b).count();
    println!("    {same} of {} users got the same version when they came again", digits.images.len());

    println!("▸ promotes: roost rollout promote digits");
    control.promote(model).await?;
    print_round(&format!("all traffic on digits@{second}"), digits, &classify(client, digits).await?);

    println!("▸ changes its mind: roost rollout undo digits");
    control.undo(model).await?;
    print_round(&format!("back on digits@{first} in one switch"), digits, &classify(client, digits).await?);

    println!(
        "▸ and forward again: roost rollout start digits@{second} --steps 100%, roost rollout promote digits"
    );
    start_canary(client, &target, Weight::ALL).await?;
    control.promote(model).await?;
    print_round(&format!("on digits@{second} again"), digits, &classify(client, digits).await?);
    Ok(())
}

/// Starts a rollout and waits until its target takes its share.
async fn start_canary(client: &Client, target: &ModelVersion, weight: Weight) -> anyhow::Result<()> {
    client.control().start_rollout(target.clone(), weight).await?;
    wait_until(client, "the canary takes its share", |client| {
        let view = client.published().borrow().view.clone();
        let model = view.as_ref().and_then(|view| view.models.get(&target.model));
        model.is_some_and(|model| model.traffic.canary.is_some())
    })
    .await
}

/// What the traffic of an earlier start does. It is left as it is: somebody may go on from it.
async fn show_present(
    client: &Client,
    digits: &Digits,
    model: &ModelName,
    traffic: &Traffic,
    known: [Version; 2],
) -> anyhow::Result<()> {
    println!("▸ leaves the traffic as it was left; the showing is for a new --data folder");
    let stable = traffic.stable;
    let standing = match traffic.canary {
        None => format!("all traffic on digits@{stable}"),
        Some(canary) => format!("digits@{stable}, and {} on digits@{}", canary.weight, canary.version),
    };
    // Another model that was pushed under this name need not take digits.
    let mut taking = std::iter::once(stable).chain(traffic.canary.map(|canary| canary.version));
    if !taking.all(|version| known.contains(&version)) {
        println!("    {standing}");
        return Ok(());
    }
    wait_until(client, "the stable version is ready", |client| serves(client, model, stable)).await?;
    print_round(&standing, digits, &classify(client, digits).await?);
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
    // An earlier start's are members already, and may not be up yet.
    let heard = |client: &Client| {
        let soft = client.published().borrow().soft.clone();
        let live = soft.nodes.values().filter(|report| report.liveness == Liveness::Live);
        live.count() >= super::NODES.len()
    };
    wait_until(client, "three workers are heard", heard).await?;
    let view = client.published().borrow().view.clone().context("no view")?;
    let mut names: Vec<_> = view.nodes.values().map(|node| node.name.to_string()).collect();
    names.sort_unstable();
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

#[cfg(test)]
mod tests {
    use roost_protocol::Revision;
    use roost_protocol::messages::control::{Rollout, RolloutState};
    use roost_protocol::traffic::Canary;

    use super::*;

    fn version(number: u32, bundle: &[u8]) -> VersionSummary {
        VersionSummary {
            version: Version(number),
            digest: Digest::of(bundle),
            bytes: 1,
            pushed_by: "dev".to_owned(),
            pushed_at_ms: 0,
            note: String::new(),
        }
    }

    fn traffic(stable: u32, canary: Option<u32>, previous: Option<u32>) -> Traffic {
        let canary = canary.map(|number| Canary { version: Version(number), weight: Weight::ALL });
        Traffic { revision: Revision(1), stable: Version(stable), canary, previous: previous.map(Version) }
    }

    fn summary(traffic: &Traffic) -> RolloutSummary {
        RolloutSummary { traffic: traffic.clone(), rollout: None, history: Vec::new() }
    }

    #[test]
    fn a_later_start_goes_on_from_what_is_there() {
        let digests = [Digest::of(b"v1"), Digest::of(b"v2")];
        let found = |versions: &[VersionSummary], traffic: &Traffic| {
            let Found { pushed, changed } = find(versions, Some(&summary(traffic)), digests);
            (pushed.map(|number| number.map(|number| number.0)), changed.is_some())
        };
        assert_eq!(find(&[], None, digests), Found { pushed: [None, None], changed: None });
        let (one, two) = (version(1, b"v1"), version(2, b"v2"));
        assert_eq!(found(std::slice::from_ref(&one), &traffic(1, None, None)), ([Some(1), None], false));
        let both = [one, two];
        assert_eq!(found(&both, &traffic(1, None, None)), ([Some(1), Some(2)], false));
        assert_eq!(found(&both, &traffic(1, Some(2), None)), ([Some(1), Some(2)], true));
        assert_eq!(found(&both, &traffic(2, None, Some(1))), ([Some(1), Some(2)], true));
        // Another model of that name, and a bundle that was pushed twice.
        assert_eq!(found(&[version(1, b"other")], &traffic(1, None, None)), ([None, None], true));
        let twice = [version(1, b"v1"), version(2, b"v1"), version(3, b"v2")];
        assert_eq!(found(&twice, &traffic(2, None, None)), ([Some(2), Some(3)], false));
        let preparing = Rollout { target: Version(2), weight: Weight::ALL, state: RolloutState::Preparing };
        let begun = RolloutSummary { rollout: Some(preparing), ..summary(&traffic(1, None, None)) };
        assert!(find(&both, Some(&begun), digests).changed.is_some());
    }
}
