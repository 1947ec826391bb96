//! `roost infer`: a request from files, and its answer.

mod answer;
mod inputs;
mod json;
mod labels;
mod picture;
mod rows;
mod subject;
mod values;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::{ArgGroup, Args};
use roost_client::Response;
use roost_client::client::Client;
use roost_protocol::view::View;
use roost_protocol::{InferError, Target, Tensor};
use tokio::time::Instant;

use crate::failure::{self, usage};
use crate::output::{self, Output};
use crate::session::Session;
use answer::{Answer, Tally};
use inputs::InputFile;
use rows::Rows;
use subject::Subject;

/// A day: longer is a typing error.
const DEADLINE_MS_MAX: u64 = 86_400_000;

/// A request.
#[derive(Debug, Args)]
#[command(group(ArgGroup::new("inputs").args(["input", "image"]).required(true)))]
#[command(after_help = "\
Files are .npy, or .json with nested arrays. Numbers in JSON become f32; NAME:TYPE=FILE states another
type, as in ids:i64=ids.json. Pictures (PNG, JPEG) become the input that [image] of the version's
model.toml describes: the largest centred part is resized.

Labels are shown with the model's probabilities. Scores that are no probabilities are put through a
softmax, and the answer says so.

Examples:
  roost infer digits --key user-42 --input image=images.npy --rows 0..4
  roost infer digits@2 --image seven.png
  roost infer encoder:prod --input input_ids:i64=ids.json --input attention_mask:i64=mask.json
  roost infer digits --image seven.png --repeat 100 --output json")]
pub struct InferArguments {
    /// MODEL, as its traffic is split; MODEL@VERSION; or MODEL:LABEL
    target: Target,
    /// For whom: requests of one key get one version within a rollout. Without, each is on its own
    #[arg(long)]
    key: Option<String>,
    /// An input of the model, from a .npy or .json file; may be given for each input
    #[arg(long, value_name = "NAME[:TYPE]=FILE")]
    input: Vec<InputFile>,
    /// Pictures, each a row
    #[arg(long, value_name = "FILE", num_args = 1..)]
    image: Vec<PathBuf>,
    /// Takes these rows of each input only: A..B without B, counted from 0; also A.., ..B, A
    #[arg(long, value_name = "A..B", conflicts_with = "image")]
    rows: Option<Rows>,
    /// How long an answer may take, with all attempts [default: 10000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=DEADLINE_MS_MAX))]
    deadline_ms: Option<u64>,
    /// Sends the request so many times, one after the other, and counts the answers
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    repeat: u32,
}

/// One request's inputs, and how its rows are called.
struct Batch {
    inputs: Vec<(String, Tensor)>,
    rows: Vec<String>,
}

/// Carries the command out.
///
/// # Errors
/// When a file is no input, or a request failed.
pub async fn run(session: &Session, arguments: InferArguments) -> anyhow::Result<()> {
    let published = session.published();
    let view = published.view.context("no view of the cluster has arrived")?;
    // Files are read and pictures decoded away from the tasks that keep the connections alive.
    let (arguments, batches) = tokio::task::spawn_blocking(move || {
        let batches = batches(&view, &arguments)?;
        anyhow::Ok((arguments, batches))
    })
    .await??;
    let many = arguments.repeat > 1;
    let (mut tally, mut failed) = (Tally::default(), 0u64);
    for _ in 0..arguments.repeat {
        for batch in &batches {
            let started = Instant::now();
            let response = match send(&session.client, &arguments, batch).await {
                Ok(response) => response,
                // Among many, what others are answered is worth seeing.
                Err(error) if many && error.retryable() => {
                    failure::tell(&error.into());
                    failed += 1;
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let answer = Answer::of(arguments.target.model(), &response, &batch.rows, started.elapsed())?;
            tally.add(&answer);
            match session.output {
                Output::Text if many => output::line(&answer.headline())?,
                Output::Text | Output::Json => session.output.print_one_of_many(&answer)?,
            }
        }
    }
    if many && session.output == Output::Text {
        output::line(&format!("\n{}", tally.text().trim_end()))?;
    }
    anyhow::ensure!(failed == 0, "{failed} requests failed");
    Ok(())
}

async fn send(client: &Client, arguments: &InferArguments, batch: &Batch) -> Result<Response, InferError> {
    let mut request = client.infer(arguments.target.clone());
    if let Some(key) = &arguments.key {
        request = request.key(key);
    }
    if let Some(deadline_ms) = arguments.deadline_ms {
        request = request.deadline(Duration::from_millis(deadline_ms));
    }
    for (name, tensor) in &batch.inputs {
        request = request.input(name, tensor.clone());
    }
    request.send().await
}

/// The requests that the arguments make.
fn batches(view: &View, arguments: &InferArguments) -> anyhow::Result<Vec<Batch>> {
    if arguments.image.is_empty() {
        return Ok(vec![from_files(view, arguments)?]);
    }
    let subject = Subject::of(view, &arguments.target)?;
    let image = subject.image()?;
    let of = |paths: &[PathBuf]| {
        let pictures = paths.iter().map(|path| inputs::picture(path)).collect::<Result<Vec<_>, _>>()?;
        let tensor = picture::tensor(&pictures, image)?;
        let rows = paths.iter().map(|path| path.display().to_string()).collect();
        Ok(Batch { inputs: vec![(image.input.clone(), tensor)], rows })
    };
    arguments.image.chunks(subject.pictures_max(&image.input)).map(of).collect()
}

/// One request, from tensors in files.
fn from_files(view: &View, arguments: &InferArguments) -> anyhow::Result<Batch> {
    let read = arguments.input.iter().map(|file| Ok((file.name.clone(), file.read()?)));
    let mut inputs = read.collect::<anyhow::Result<Vec<_>>>()?;
    let Some(chosen) = arguments.rows else { return Ok(Batch { inputs, rows: Vec::new() }) };
    let subject = Subject::of(view, &arguments.target)?;
    let mut names = None;
    for (name, tensor) in &mut inputs {
        let Some(axis) = subject.row_axis(name) else { continue };
        *tensor = chosen.of(tensor, axis).with_context(|| format!("--rows of the input {name:?}"))?;
        let count = tensor.shape().dims()[axis];
        names = Some((chosen.start()..chosen.start() + count).map(|row| row.to_string()).collect());
    }
    let rows = names.ok_or_else(|| {
        let batched = subject.batched().collect::<Vec<_>>().join(", ");
        usage(format!("--rows takes rows of inputs that have some, as model.toml lists them: {batched}"))
    })?;
    Ok(Batch { inputs, rows })
}
