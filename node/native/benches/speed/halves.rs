//! What it costs to keep weights in half precision: models whose weights it holds, in turns with such whose
//! weights it does not.

use half::f16;
use roost_native::{DType, Input, Session, Tensor};

use crate::models::{Row, inputs, models, numbers, product};
use crate::{Count, Failure, ROUNDS, median, middle, native};

/// Lines of a table: the name, µs with weights in f32, µs with weights in f16, and their ratio.
pub fn lines() -> Result<Vec<String>, Failure> {
    let mut lines = Vec::new();
    let photo = inputs("squeezenet_fp32", 1);
    let bits: Vec<u8> =
        photo[0].values::<f32>().iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
    let halved = vec![Tensor::of_dtype(DType::F16, photo[0].shape(), &bits)];
    let mut pair = Vec::new();
    for (name, inputs) in [("squeezenet_fp32", photo), ("squeezenet_fp16", halved)] {
        let model = std::fs::read(models().join(name).join("model.onnx"))?.into();
        pair.push(Row { name: "SqueezeNet, batch 1".into(), model, inputs });
    }
    lines.push(line(&pair)?);
    for size in [1024, 4096] {
        let weights = numbers(&[size, size]);
        let rounded: Vec<f32> = weights.values::<f32>().iter().map(|x| f16::from_f32(*x).to_f32()).collect();
        let weights = [weights, Tensor::of(&[size, size], &rounded)];
        for m in [1, 8, 32, 128] {
            let row = |weights| Row {
                name: format!("GEMM {m} x {size} x {size}"),
                model: product(m, weights),
                inputs: vec![numbers(&[m, size])],
            };
            lines.push(line(&weights.each_ref().map(row))?);
        }
    }
    Ok(lines)
}

/// The two rows, in turns.
fn line(pair: &[Row]) -> Result<String, Failure> {
    let mut sessions: Vec<Session> = pair.iter().map(native).collect::<Result<_, _>>()?;
    let mut rounds = Vec::new();
    for _ in 0..ROUNDS {
        let mut micros = Vec::new();
        for (row, session) in pair.iter().zip(&mut sessions) {
            let inputs: Vec<Input<'_>> = row.inputs.iter().map(Input::from).collect();
            micros.push(median(|| {
                session.run(&inputs, &mut Count(0), &|| false)?;
                Ok(())
            })?);
        }
        rounds.push([micros[0], micros[1], micros[0] / micros[1]]);
    }
    let [floats, halves, ratio] = middle(&rounds);
    Ok(format!("| {} | {floats:.1} | {halves:.1} | {ratio:.2} |", pair[0].name))
}
