//! A batch on several threads: each runs some of the rows, in a session of its own.
//!
//! A graph does not say which axis is the batch. So rows are split only where a trial shows that it changes
//! no bit of any output; otherwise one thread runs them all.

use anyhow::Context as _;
use roost_native::graph::ir::Port;
use roost_native::{Input, Session, Tensor};

use super::inputs::has_rows;
use super::subject::{Engine, Subject};

/// Runs rows on threads of their own.
pub struct Split {
    sessions: Vec<Session>,
    shares: Vec<Vec<Tensor>>,
}

impl Split {
    /// The inputs split over up to `threads` threads.
    ///
    /// # Errors
    /// Why the rows are not split.
    pub fn over(
        subject: &Subject,
        inputs: &[Tensor],
        threads: usize,
        expected: &[Tensor],
    ) -> Result<Self, String> {
        let Engine::Native(session) = &subject.engine else {
            return Err("ONNX Runtime runs whole batches".to_owned());
        };
        if let Some(why) = session.program().batch_variant() {
            return Err(format!("rows depend on each other: {why}"));
        }
        let shares = shares(&subject.inputs, inputs, threads);
        let shares = shares.ok_or("the inputs have no two rows; see --batch")?;
        let sessions = shares.iter().map(|_| Session::new(session.program().clone())).collect();
        let mut split = Self { sessions, shares };
        // A share may be refused where the whole is not: then the first dimension is not rows.
        let same = |found: &[Tensor]| {
            let bytes = |tensor: &Tensor| (tensor.shape().to_vec(), tensor.bytes().to_vec());
            found.iter().map(bytes).eq(expected.iter().map(bytes))
        };
        let found = split.run().map_err(|error| format!("a share of the rows is refused: {error:#}"))?;
        if same(&found) {
            Ok(split)
        } else {
            Err("shares of the rows give something else than the whole".to_owned())
        }
    }

    /// Threads that run.
    pub fn threads(&self) -> usize {
        self.sessions.len()
    }

    /// Runs all shares at once, and joins what they give.
    pub fn run(&mut self) -> anyhow::Result<Vec<Tensor>> {
        let parts: Vec<anyhow::Result<Vec<Tensor>>> = std::thread::scope(|scope| {
            let runs: Vec<_> = self
                .sessions
                .iter_mut()
                .zip(&self.shares)
                .map(|(session, share)| scope.spawn(move || run(session, share)))
                .collect();
            runs.into_iter()
                .map(|run| run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                .collect()
        });
        let parts = parts.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let outputs = parts.first().map_or(0, Vec::len);
        (0..outputs).map(|at| joined(parts.iter().map(|part| &part[at]))).collect()
    }
}

fn run(session: &mut Session, share: &[Tensor]) -> anyhow::Result<Vec<Tensor>> {
    let inputs: Vec<Input<'_>> = share.iter().map(Input::from).collect();
    let mut found = Vec::new();
    session.run(&inputs, &mut found, &|| false)?;
    Ok(found)
}

/// The inputs' rows in shares that differ by one at most; `None` where there are no two of them.
fn shares(ports: &[Port], inputs: &[Tensor], threads: usize) -> Option<Vec<Vec<Tensor>>> {
    if !ports.iter().all(has_rows) {
        return None;
    }
    let rows = *inputs.first()?.shape().first()?;
    if inputs.iter().any(|tensor| tensor.shape().first() != Some(&rows)) {
        return None;
    }
    let count = threads.min(rows);
    let share = |at: usize| {
        let rows = rows * at / count..rows * (at + 1) / count;
        inputs.iter().map(|tensor| part(tensor, rows.clone())).collect()
    };
    (count > 1).then(|| (0..count).map(share).collect())
}

fn part(tensor: &Tensor, rows: std::ops::Range<usize>) -> Tensor {
    let row_bytes = tensor.bytes().len() / tensor.shape()[0];
    let mut shape = tensor.shape().to_vec();
    shape[0] = rows.len();
    Tensor::of_dtype(tensor.dtype(), &shape, &tensor.bytes()[rows.start * row_bytes..rows.end * row_bytes])
}

fn joined<'a>(parts: impl Iterator<Item = &'a Tensor>) -> anyhow::Result<Tensor> {
    let parts: Vec<&Tensor> = parts.collect();
    let first = parts.first().context("there is a share")?;
    let mut shape = first.shape().to_vec();
    let rows = parts.iter().map(|part| part.shape().first().copied().context("an output has no rows"));
    let rows = rows.collect::<anyhow::Result<Vec<_>>>()?;
    *shape.first_mut().context("an output has no rows")? = rows.into_iter().sum();
    let bytes: Vec<u8> = parts.iter().flat_map(|part| part.bytes()).copied().collect();
    Ok(Tensor::of_dtype(first.dtype(), &shape, &bytes))
}
