//! An answer, as it is printed: where it comes from, the best labels of each row, or else the outputs.

use std::collections::BTreeMap;
use std::time::Duration;

use roost_client::Response;
use roost_protocol::{ModelName, Tensor};
use serde::Serialize;

use super::labels::Labels;
use super::values::Values;
use crate::moment::milliseconds;
use crate::output::Report;
use crate::table::{Table, left, right};

/// An answer.
#[derive(Debug, Serialize)]
pub struct Answer {
    /// The version that answered, as `digits@2`.
    pub version: String,
    /// The node that answered.
    pub node: String,
    /// The traffic revision that the request was routed by.
    pub revision: u64,
    /// Whether the stable version answered because no replica of the picked one was ready.
    pub fallback: bool,
    /// Attempts that were sent.
    pub attempts: u8,
    /// Whether an attempt was sent while another still ran.
    pub hedged: bool,
    /// The whole request, as the caller saw it, in µs.
    pub elapsed_us: u64,
    /// Time in the node's queue, in µs.
    pub queue_us: u64,
    /// Time on the executor, of the whole batch, in µs.
    pub compute_us: u64,
    /// Rows of the batch that the request was part of.
    pub batch_rows: u32,
    /// The best labels of each row, where the model has labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub labels: Option<Labels>,
    /// The outputs.
    pub outputs: Vec<Output>,
}

/// An output.
#[derive(Debug, Serialize)]
pub struct Output {
    /// Its name.
    pub name: String,
    /// Its element type.
    pub dtype: &'static str,
    /// Its shape.
    pub shape: Vec<u64>,
    /// Its elements, row by row.
    pub values: Values,
}

impl Answer {
    /// The answer to a request that took `elapsed`. `rows` names the rows, as far as it goes.
    ///
    /// # Errors
    /// When the elements of an output cannot be read.
    pub fn of(
        model: &ModelName,
        response: &Response,
        rows: &[String],
        elapsed: Duration,
    ) -> anyhow::Result<Self> {
        let outputs = response.outputs.iter().map(|output| Output::of(&output.name, &output.tensor));
        Ok(Self {
            version: format!("{model}@{}", response.version),
            node: response.node.to_string(),
            revision: response.revision.0,
            fallback: response.fallback,
            attempts: response.attempts,
            hedged: response.hedged,
            elapsed_us: elapsed.as_micros() as u64,
            queue_us: response.queue.as_micros() as u64,
            compute_us: response.compute.as_micros() as u64,
            batch_rows: response.batch_rows,
            labels: Labels::of_response(response, rows),
            outputs: outputs.collect::<anyhow::Result<_>>()?,
        })
    }

    /// Where it comes from and how long it took.
    pub fn headline(&self) -> String {
        let ms = |us| milliseconds(Duration::from_micros(us));
        let mut text = format!(
            "{} on {}, revision {}: {} (queue {}, compute {} for a batch of {} {})",
            self.version,
            self.node,
            self.revision,
            ms(self.elapsed_us),
            ms(self.queue_us),
            ms(self.compute_us),
            self.batch_rows,
            if self.batch_rows == 1 { "row" } else { "rows" },
        );
        if self.attempts > 1 {
            text += &format!(", {} attempts{}", self.attempts, if self.hedged { ", hedged" } else { "" });
        }
        if self.fallback {
            text += ", FALLBACK: the picked version was not ready";
        }
        text
    }
}

impl Report for Answer {
    fn text(&self) -> String {
        let mut text = self.headline() + "\n";
        match &self.labels {
            Some(labels) => text += &labels.text(),
            None => {
                let line = |output: &Output| {
                    let dims: Vec<_> = output.shape.iter().map(ToString::to_string).collect();
                    format!(
                        "{} {}[{}]: {}\n",
                        output.name,
                        output.dtype,
                        dims.join(", "),
                        output.values.short()
                    )
                };
                text.extend(self.outputs.iter().map(line));
            }
        }
        text
    }
}

impl Output {
    fn of(name: &str, tensor: &Tensor) -> anyhow::Result<Self> {
        Ok(Self {
            name: name.to_owned(),
            dtype: tensor.dtype().name(),
            shape: tensor.shape().dims().to_vec(),
            values: Values::of(tensor)?,
        })
    }
}

/// What many answers came to, by version and node.
#[derive(Debug, Default)]
pub struct Tally {
    answers: BTreeMap<(String, String), Count>,
}

/// Answers of one version on one node.
#[derive(Debug, Default, Clone, Copy)]
struct Count {
    answers: u64,
    fallbacks: u64,
    elapsed_us: u64,
}

impl Tally {
    /// Counts an answer.
    pub fn add(&mut self, answer: &Answer) {
        let count = self.answers.entry((answer.version.clone(), answer.node.clone())).or_default();
        count.answers += 1;
        count.fallbacks += u64::from(answer.fallback);
        count.elapsed_us += answer.elapsed_us;
    }

    /// The table.
    pub fn text(&self) -> String {
        let columns = [left("VERSION"), left("NODE"), right("ANSWERS"), right("FALLBACKS"), right("MEAN")];
        let mut table = Table::new(columns);
        for ((version, node), count) in &self.answers {
            let mean = Duration::from_micros(count.elapsed_us / count.answers.max(1));
            let (answers, fallbacks) = (count.answers.to_string(), count.fallbacks.to_string());
            table.row([version.clone(), node.clone(), answers, fallbacks, milliseconds(mean)]);
        }
        table.to_string()
    }
}

#[cfg(test)]
mod tests {
    use roost_client::response::Ranked;
    use roost_protocol::DType;

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

    fn answer(labels: Option<Labels>) -> Answer {
        let probs = Tensor::from_elements(&[1, 3], vec![0.25f32, 0.5, 0.25]).unwrap();
        Answer {
            version: "digits@2".to_owned(),
            node: "b".to_owned(),
            revision: 5,
            fallback: false,
            attempts: 1,
            hedged: false,
            elapsed_us: 1_925,
            queue_us: 104,
            compute_us: 310,
            batch_rows: 4,
            labels,
            outputs: vec![Output::of("probs", &probs).unwrap()],
        }
    }

    #[test]
    fn labels_are_shown_with_probabilities() {
        let rows = [ranked(&[0.01, 0.9821, 0.0079]), ranked(&[0.7, 0.2, 0.1])];
        let labels = Labels::of(&rows, DType::F32, &["cat.jpg".to_owned()]);
        expect_test::expect![[r#"
            digits@2 on b, revision 5: 1.93 ms (queue 0.10 ms, compute 0.31 ms for a batch of 4 rows)
            ROW      BEST             SECOND           THIRD
            cat.jpg  class-1  98.21%  class-0   1.00%  class-2   0.79%
            1        class-0  70.00%  class-1  20.00%  class-2  10.00%
        "#]]
        .assert_eq(&answer(Some(labels)).text());
    }

    #[test]
    fn outputs_are_shown_without_labels_and_marks_stand_out() {
        let answer = Answer { fallback: true, attempts: 2, hedged: true, ..answer(None) };
        expect_test::expect![[r#"
            digits@2 on b, revision 5: 1.93 ms (queue 0.10 ms, compute 0.31 ms for a batch of 4 rows), 2 attempts, hedged, FALLBACK: the picked version was not ready
            probs f32[1, 3]: 0.25 0.5 0.25
        "#]]
        .assert_eq(&answer.text());
    }

    #[test]
    fn programs_read_everything() {
        let labels = Labels::of(&[ranked(&[0.25, 0.75])], DType::F32, &[]);
        expect_test::expect![[r#"
            {
              "version": "digits@2",
              "node": "b",
              "revision": 5,
              "fallback": false,
              "attempts": 1,
              "hedged": false,
              "elapsed_us": 1925,
              "queue_us": 104,
              "compute_us": 310,
              "batch_rows": 4,
              "labels": {
                "scores": "probability",
                "rows": [
                  {
                    "row": "0",
                    "best": [
                      {
                        "label": "class-1",
                        "index": 1,
                        "score": 0.75
                      },
                      {
                        "label": "class-0",
                        "index": 0,
                        "score": 0.25
                      }
                    ]
                  }
                ]
              },
              "outputs": [
                {
                  "name": "probs",
                  "dtype": "f32",
                  "shape": [
                    1,
                    3
                  ],
                  "values": [
                    0.25,
                    0.5,
                    0.25
                  ]
                }
              ]
            }"#]]
        .assert_eq(&serde_json::to_string_pretty(&answer(Some(labels))).unwrap());
    }

    #[test]
    fn many_answers_are_counted() {
        let mut tally = Tally::default();
        tally.add(&answer(None));
        tally.add(&Answer { fallback: true, elapsed_us: 1, ..answer(None) });
        tally.add(&Answer { version: "digits@1".to_owned(), ..answer(None) });
        expect_test::expect![[r#"
            VERSION   NODE  ANSWERS  FALLBACKS     MEAN
            digits@1  b           1          0  1.93 ms
            digits@2  b           2          1  0.96 ms
        "#]]
        .assert_eq(&tally.text());
    }
}
