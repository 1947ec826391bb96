//! The best labels of each row, with their scores: probabilities where the model gives such.

use roost_client::Response;
use roost_client::response::Ranked;
use roost_protocol::DType;
use serde::Serialize;

use crate::table::{Table, left, right};

/// Labels that are shown of each row.
const LABELS_SHOWN: usize = 3;
/// How far the sum of a row may lie from one for its values to be probabilities: nets in eight bits round
/// each of a thousand classes.
const SUM_SLACK: f64 = 0.05;

/// The best labels of each row.
#[derive(Debug, Serialize)]
pub struct Labels {
    /// What the scores are.
    pub scores: Scale,
    /// The rows.
    pub rows: Vec<Row>,
}

/// What scores are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scale {
    /// Probabilities, as the model gives them.
    Probability,
    /// The softmax of what the model gives.
    Softmax,
    /// What the model gives: steps of a quantised net, whose size the graph alone knows.
    Raw,
}

/// A row's best labels, best first.
#[derive(Debug, Serialize)]
pub struct Row {
    /// The row's number in its file, or the picture's file.
    pub row: String,
    /// The labels.
    pub best: Vec<Best>,
}

/// A label and its score.
#[derive(Debug, Serialize)]
pub struct Best {
    /// The label.
    pub label: String,
    /// Its index.
    pub index: usize,
    /// Its score.
    pub score: f64,
}

impl Labels {
    /// The labels of a response; `None` where the model has none, or gives no scores for them. `names` are
    /// the rows', as far as it goes.
    pub fn of_response(response: &Response, names: &[String]) -> Option<Self> {
        let ranked = match response.labels(usize::MAX) {
            Ok(ranked) => ranked,
            Err(error) => {
                tracing::debug!(%error, "the outputs are shown instead of labels");
                return None;
            }
        };
        let name = response.manifest().labels_output.as_deref();
        let output = match name {
            Some(name) => response.output(name),
            None => response.outputs.first().map(|output| &output.tensor),
        };
        Some(Self::of(&ranked, output?.dtype(), names))
    }

    /// The labels of rows whose classes are all there, best first.
    pub fn of(ranked: &[Vec<Ranked>], dtype: DType, names: &[String]) -> Self {
        let scores = scale(ranked, dtype);
        let rows = ranked.iter().enumerate().map(|(i, ranked)| {
            let sum: f64 = ranked.iter().map(|other| exponential(ranked, other)).sum();
            let score = |one: &Ranked| match scores {
                Scale::Probability | Scale::Raw => f64::from(one.score),
                Scale::Softmax => exponential(ranked, one) / sum,
            };
            let best = |one: &Ranked| Best { label: one.label.clone(), index: one.index, score: score(one) };
            Row {
                row: names.get(i).cloned().unwrap_or_else(|| i.to_string()),
                best: ranked.iter().take(LABELS_SHOWN).map(best).collect(),
            }
        });
        Self { scores, rows: rows.collect() }
    }

    /// The table, with a remark when the scores are no probabilities.
    pub fn text(&self) -> String {
        let mut table = Table::new([
            left("ROW"),
            left("BEST"),
            right(""),
            left("SECOND"),
            right(""),
            left("THIRD"),
            right(""),
        ]);
        for row in &self.rows {
            let mut cells: [String; 2 * LABELS_SHOWN + 1] = Default::default();
            cells[0] = row.row.clone();
            for (i, best) in row.best.iter().enumerate() {
                cells[2 * i + 1] = best.label.clone();
                cells[2 * i + 2] = match self.scores {
                    Scale::Probability | Scale::Softmax => format!("{:.2}%", best.score * 100.0),
                    Scale::Raw => best.score.to_string(),
                };
            }
            table.row(cells);
        }
        let remark = match self.scores {
            Scale::Probability => "",
            Scale::Softmax => "The model gives no probabilities; shown is the softmax of its scores.\n",
            Scale::Raw => "The model gives no probabilities; shown are its own scores.\n",
        };
        table.to_string() + remark
    }
}

/// A term of the softmax, taken off the best score so that it does not overflow.
fn exponential(ranked: &[Ranked], one: &Ranked) -> f64 {
    let best = ranked.first().map_or(0.0, |best| f64::from(best.score));
    (f64::from(one.score) - best).exp()
}

/// What scores of this element type are: probabilities when each row's are none below zero and add up to one.
fn scale(rows: &[Vec<Ranked>], dtype: DType) -> Scale {
    let is_distribution = |row: &Vec<Ranked>| {
        let sum: f64 = row.iter().map(|one| f64::from(one.score)).sum();
        row.iter().all(|one| one.score >= 0.0) && (sum - 1.0).abs() <= SUM_SLACK
    };
    match dtype {
        DType::F16 | DType::Bf16 | DType::F32 | DType::F64 => {
            if rows.iter().all(is_distribution) {
                Scale::Probability
            } else {
                Scale::Softmax
            }
        }
        DType::I8
        | DType::I16
        | DType::I32
        | DType::I64
        | DType::U8
        | DType::U16
        | DType::U32
        | DType::U64
        | DType::Bool
        | DType::String => Scale::Raw,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranked(scores: &[f32]) -> Vec<Ranked> {
        let mut ranked: Vec<_> = scores
            .iter()
            .enumerate()
            .map(|(index, score)| Ranked { index, label: format!("class-{index}"), score: *score })
            .collect();
        ranked.sort_by(|a, b| b.score.total_cmp(&a.score));
        ranked
    }

    #[test]
    fn scores_that_are_no_probabilities_are_named() {
        let labels = Labels::of(&[ranked(&[2.0, 0.0])], DType::F32, &[]);
        assert_eq!(labels.scores, Scale::Softmax);
        assert!((labels.rows[0].best[0].score - 0.880_797).abs() < 1e-6);
        let sum: f64 = labels.rows[0].best.iter().map(|best| best.score).sum();
        assert!((sum - 1.0).abs() < 1e-9);
        let steps = Labels::of(&[ranked(&[-3.0, 90.0])], DType::I8, &[]);
        expect_test::expect![[r#"
            ROW  BEST         SECOND       THIRD
            0    class-1  90  class-0  -3
            The model gives no probabilities; shown are its own scores.
        "#]]
        .assert_eq(&steps.text());
    }
}
