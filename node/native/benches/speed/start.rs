//! From a model's file to its first answer, and what a view of a tensor costs.

use std::hint::black_box;

use roost_native::onnx::external::Files;
use roost_native::program::Options;
use roost_native::{Input, Limits, Model, Program, Session, Tensor};

use crate::models::models;
use crate::{Count, Failure, clock};

/// Starts that a figure is the median of.
const STARTS: usize = 21;

/// Lines of text with the figures.
pub fn lines() -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    let photo = Tensor::of(&[1, 3, 224, 224], &vec![0.5_f32; 3 * 224 * 224]);
    for name in ["squeezenet_fp32", "squeezenet_int8_qdq"] {
        let path = models().join(name).join("model.onnx");
        // Reading, importing, compiling, the first run, all.
        let mut parts: [Vec<f64>; 5] = Default::default();
        for _ in 0..STARTS {
            let mut marks = vec![clock::seconds()];
            let bytes = bytes::Bytes::from(std::fs::read(&path)?);
            marks.push(clock::seconds());
            let model = Model::import_bytes(bytes, &Files::new(), Limits::default())?;
            marks.push(clock::seconds());
            let mut session = Session::new(Program::compile(model, Options::default())?);
            marks.push(clock::seconds());
            session.run(&[Input::from(&photo)], &mut Count(0), &|| false)?;
            marks.push(clock::seconds());
            let millis = |from: usize, to: usize| (marks[to] - marks[from]) * 1e3;
            for (i, list) in parts.iter_mut().enumerate() {
                list.push(if i < 4 { millis(i, i + 1) } else { millis(0, 4) });
            }
        }
        let [read, import, compile, run, all] = parts.map(|mut list| {
            list.sort_by(f64::total_cmp);
            list[STARTS / 2]
        });
        lines.push(format!(
            "{name}: from the file to the first answer {all:.1} ms, processor time, the median of {STARTS}: reading {read:.1}, \
             importing {import:.1}, compiling {compile:.1}, the first run {run:.1}"
        ));
    }
    let count = 10_000_000_u32;
    let begin = clock::seconds();
    for _ in 0..count {
        black_box(Input::from(black_box(&photo)));
    }
    let nanos = (clock::seconds() - begin) * 1e9 / f64::from(count);
    lines.push(format!("a view of a tensor as the input of a run: {nanos:.1} ns"));
    Ok(lines)
}
