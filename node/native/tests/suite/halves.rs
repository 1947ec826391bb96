//! Weights that half precision holds are kept in it, and give the bits that they give when they come with the
//! run, in f32.

use roost_kernels::Isa;
use roost_native::{Tensor, inspect};

use crate::empty::{Attribute, Given, compiled, run};
use crate::places;

/// Numbers between -2 and 2 that both formats hold.
fn numbers(shape: &[usize], seed: usize) -> Option<Tensor> {
    weights(shape, seed, None)
}

/// The same, but for the last, if another one is given.
fn weights(shape: &[usize], seed: usize, last: Option<f32>) -> Option<Tensor> {
    let len: usize = shape.iter().product();
    let values = (0..len).map(|i| (((i + seed) * 151 + i / 7) % 251) as f32 / 64.0 - 2.0);
    let mut values: Vec<f32> = values.map(|x| f32::from_bits(x.to_bits() & 0xffff_0000)).collect();
    if let (Some(value), Some(last)) = (values.last_mut(), last) {
        *value = last;
    }
    Some(Tensor::of(shape, &values))
}

/// Runs with the weights in the model, on every set, and compares with plain loops: bits, but for an LSTM,
/// whose plain loops sum in another order.
fn check(op: &str, attributes: &[Attribute<'_>], inputs: &[Option<Tensor>], outputs: usize, kernel: &str) {
    let shapes: Vec<_> = inputs.iter().flatten().map(|tensor| tensor.shape().to_vec()).collect();
    let run = |given, isa| {
        let found = run(op, attributes, inputs, outputs, given, isa);
        found.unwrap_or_else(|error| panic!("{op} of {shapes:?}, {given:?}: {error}"))
    };
    let expected = run(Given::All, Isa::Scalar);
    for isa in Isa::available() {
        let program = compiled(op, attributes, inputs, outputs, Given::First, *isa).expect("it compiles");
        let plan = inspect::plan(&program, &shapes[..1]).expect("it plans").expect("a plan");
        assert!(
            plan.steps.iter().any(|step| step.kernel.ends_with(kernel)),
            "{op} of {shapes:?} on {isa} has no kernel{kernel}"
        );
        for (found, expected) in run(Given::First, *isa).iter().zip(&expected) {
            assert_eq!(found.shape(), expected.shape(), "{op} of {shapes:?} on {isa}");
            if op == "LSTM" {
                let pairs = found.floats().into_iter().zip(expected.floats());
                assert!(pairs.into_iter().all(|(a, e)| (a - e).abs() < 1e-5), "{shapes:?} on {isa}");
            } else {
                assert_eq!(found.bytes(), expected.bytes(), "{op} of {shapes:?} on {isa}");
            }
        }
    }
}

/// The last weight, and the end of the kernel's name: f16, which is tried first, ends at 2^-24.
const FORMATS: [(Option<f32>, &str); 2] = [(None, " of f16"), (Some(1.0 / (1 << 30) as f32), " of bf16")];

#[test]
fn products() {
    for (last, kernel) in FORMATS {
        for (m, k, n) in [(1, 300, 150), (3, 130, 33), (40, 1024, 70), (100, 515, 16), (2, 1, 1)] {
            let x = numbers(&[m, k], 1);
            check("MatMul", &[], &[x.clone(), weights(&[k, n], 2, last)], 1, kernel);
            let inputs = [x, weights(&[n, k], 2, last), numbers(&[n], 3)];
            check("Gemm", &[Attribute::One("transB", 1)], &inputs, 1, kernel);
        }
    }
}

#[test]
fn convolutions() {
    for (last, kernel) in FORMATS {
        for (x, w, group) in [
            ([2, 16, 9, 9], [70, 16, 1, 1], 1),
            ([1, 5, 12, 11], [130, 5, 3, 3], 1),
            ([2, 6, 7, 8], [36, 3, 3, 3], 2),
            ([1, 33, 6, 7], [33, 1, 3, 3], 33),
            ([1, 150, 2, 2], [300, 150, 3, 3], 1),
        ] {
            let inputs = [numbers(&x, 1), weights(&w, 2, last), numbers(&w[..1], 3)];
            let pads = [1, 1, 1, 1].map(|pad| pad * i64::from(w[2] > 1));
            let attributes = [Attribute::Many("pads", &pads), Attribute::One("group", group)];
            check("Conv", &attributes, &inputs, 1, kernel);
        }
    }
}

#[test]
fn recurrent_layers() {
    for (op, gates, outputs) in [("LSTM", 4, 3), ("GRU", 3, 2)] {
        for (last, kernel) in FORMATS {
            for [length, batch, features, hidden] in [[3, 2, 5, 7], [4, 13, 33, 40]] {
                let inputs = [
                    numbers(&[length, batch, features], 1),
                    weights(&[2, gates * hidden, features], 2, last),
                    weights(&[2, gates * hidden, hidden], 3, last),
                    numbers(&[2, 2 * gates * hidden], 4),
                ];
                let attributes = [
                    Attribute::One("hidden_size", hidden as i64),
                    Attribute::Text("direction", "bidirectional"),
                ];
                check(op, &attributes, &inputs, outputs, kernel);
            }
        }
    }
}

#[test]
fn tables() {
    let indices = Some(Tensor::of(&[2, 3], &[5_i64, 0, -1, 3, 3, 1]));
    for (last, kernel) in FORMATS {
        for (shape, axis) in [(&[6, 40][..], 0), (&[3, 6, 17], 1)] {
            let table = weights(shape, 1, last);
            // The table is the constant here.
            let axis = [Attribute::One("axis", axis)];
            let inputs = [table, indices.clone()];
            let expected = run("Gather", &axis, &inputs, 1, Given::All, Isa::Scalar).expect("it runs");
            for isa in Isa::available() {
                let given = Given::AllBut(0);
                let program = compiled("Gather", &axis, &inputs, 1, given, *isa).expect("it compiles");
                let plan = inspect::plan(&program, &[vec![2, 3]]).expect("it plans").expect("a plan");
                assert!(plan.steps[0].kernel.ends_with(kernel), "{}", plan.steps[0].kernel);
                let found = run("Gather", &axis, &inputs, 1, given, *isa).expect("it runs");
                assert_eq!(found[0].bytes(), expected[0].bytes(), "{shape:?} on {isa}");
            }
        }
    }
    // Nothing to gather, and an index that is not there.
    let table = numbers(&[6, 40], 1);
    for (indices, right) in [(&[][..], true), (&[6], false)] {
        let inputs = [table.clone(), Some(Tensor::of::<i64>(&[indices.len()], indices))];
        let found = run("Gather", &[], &inputs, 1, Given::AllBut(0), Isa::best());
        assert_eq!(found.is_ok(), right, "{found:?}");
    }
}

#[test]
fn a_model_of_half_precision_keeps_it() {
    let program = places::program(&places::model("squeezenet_fp16"), None);
    let shape = vec![1, 3, 224, 224];
    let plan = inspect::plan(&program, &[shape]).expect("it plans").expect("a plan");
    let convolutions: Vec<_> = plan.steps.iter().filter(|step| step.kernel.starts_with("conv")).collect();
    assert_eq!(convolutions.len(), 26);
    assert!(convolutions.iter().all(|step| step.kernel.ends_with(" of f16")));
}
