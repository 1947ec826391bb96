//! Integer products: with constant weights they run on the kernels, with weights of the run on plain loops,
//! to the same bits on every instruction set; and a GRU's.

use roost_kernels::Isa;
use roost_native::{DType, Tensor, inspect};

use crate::empty::{Attribute, Given, full, run};
use crate::places;

/// Bytes without a pattern that a product would see.
fn bytes(dtype: DType, shape: &[usize], seed: usize) -> Tensor {
    let len: usize = shape.iter().product();
    let bytes: Vec<u8> = (0..len).map(|i| ((i + seed) * 151 % 251 + i / 7) as u8).collect();
    Tensor::of_dtype(dtype, shape, &bytes)
}

/// No zero point, one of this value, or as many different ones.
#[derive(Debug, Clone, Copy)]
enum Zeros {
    Absent,
    One(f64),
    Each,
}

impl Zeros {
    fn of(self, dtype: DType, count: usize, seed: usize) -> Option<Tensor> {
        match self {
            Self::Absent => None,
            Self::One(value) => Some(full(dtype, &[], value)),
            Self::Each => Some(bytes(dtype, &[count], seed)),
        }
    }
}

/// Runs with plain loops, then with the constant at `weights` on every set; all gives the same bits.
fn check(op: &str, attributes: &[Attribute<'_>], inputs: &[Option<Tensor>], weights: usize, case: &str) {
    let run = |given, isa| {
        let found = run(op, attributes, inputs, 1, given, isa);
        found.unwrap_or_else(|error| panic!("{op} {case}, {given:?}: {error}")).remove(0)
    };
    let expected = run(Given::All, Isa::Scalar);
    assert!(expected.bytes().iter().any(|byte| *byte != expected.bytes()[0]), "{op} {case} tells nothing");
    for isa in Isa::available() {
        for given in [Given::First, Given::AllBut(weights), Given::None] {
            let found = run(given, *isa);
            assert_eq!(found.shape(), expected.shape(), "{op} {case}, {given:?}, {isa}");
            assert_eq!(found.bytes(), expected.bytes(), "{op} {case}, {given:?}, {isa}");
        }
    }
}

#[test]
fn models_with_integer_products_run_them_on_the_kernels() {
    for (name, image) in
        [("mnist_int8_convinteger", [1, 1, 28, 28]), ("digits_vit_int8_dynamic", [4, 1, 8, 8])]
    {
        let program = places::program(&places::model(name), None);
        let plan = inspect::plan(&program, &[image.to_vec()]).expect("it plans").expect("a plan");
        let mut products = 0;
        for (op, kernel) in [("ConvInteger", "qconv."), ("MatMulInteger", "qgemm ")] {
            for step in plan.steps.iter().filter(|step| step.op == op) {
                assert!(step.kernel.starts_with(kernel), "{name}: {op} is {}", step.kernel);
                products += 1;
            }
        }
        assert!(products >= 3, "{name} has {products} integer products");
    }
}

const SIGNS: [DType; 2] = [DType::U8, DType::I8];

/// Zero points of A and of B.
fn zeros(a: DType, b: DType) -> [[Zeros; 2]; 5] {
    let middle = |dtype| Zeros::One(if dtype == DType::U8 { 128.0 } else { 0.0 });
    let odd = |dtype| Zeros::One(if dtype == DType::U8 { 113.0 } else { -7.0 });
    [
        [Zeros::Absent, Zeros::Absent],
        [odd(a), middle(b)],
        [middle(a), odd(b)],
        [odd(a), Zeros::Each],
        [Zeros::Each, Zeros::Each],
    ]
}

/// A, B.
const MATRICES: [(&[usize], &[usize]); 5] = [
    (&[3, 5], &[5, 7]),
    (&[19, 64], &[64, 40]),
    (&[2, 3, 9], &[9, 33]),
    (&[130], &[130, 3]),
    (&[4, 1], &[1, 1, 17]),
];

#[test]
fn products_of_constants_have_the_bits_of_plain_loops() {
    for (a, b) in MATRICES {
        for (of_a, of_b) in SIGNS.into_iter().flat_map(|a| SIGNS.map(|b| (a, b))) {
            for [zero_a, zero_b] in zeros(of_a, of_b) {
                let rows = if a.len() == 1 { 1 } else { a[a.len() - 2] };
                let inputs = [
                    Some(bytes(of_a, a, 3)),
                    Some(bytes(of_b, b, 5)),
                    zero_a.of(of_a, rows, 7),
                    zero_b.of(of_b, b[b.len() - 1], 9),
                ];
                let case = format!("{a:?} {of_a} {zero_a:?}, {b:?} {of_b} {zero_b:?}");
                check("MatMulInteger", &[], &inputs, 1, &case);
            }
        }
    }
}

#[test]
fn quantised_products_of_constants_have_the_bits_of_plain_loops() {
    for (a, b) in MATRICES {
        for (of_a, of_b) in SIGNS.into_iter().flat_map(|a| SIGNS.map(|b| (a, b))) {
            for (at, [zero_a, zero_b]) in zeros(of_a, of_b).into_iter().enumerate().skip(1) {
                let (rows, columns) = (if a.len() == 1 { 1 } else { a[a.len() - 2] }, b[b.len() - 1]);
                let scales = |count: usize, first: f32| {
                    let each = (0..count).map(|i| first + 0.003 * i as f32).collect::<Vec<f32>>();
                    Some(Tensor::of(&[count], &each))
                };
                // One scale or many on either side; and scales of which some make no number.
                let mut of_columns = scales(if at % 2 == 0 { 1 } else { columns }, 0.01).map(|s| s.floats());
                if at == 2
                    && let Some(scales) = &mut of_columns
                {
                    scales[0] = f32::INFINITY;
                }
                let of_columns = of_columns.map(|scales| Tensor::of(&[scales.len()], &scales));
                let of_rows = scales(if at == 4 { rows } else { 1 }, 0.02);
                for to in SIGNS {
                    let inputs = [
                        Some(bytes(of_a, a, 3)),
                        of_rows.clone(),
                        zero_a.of(of_a, rows, 7),
                        Some(bytes(of_b, b, 5)),
                        of_columns.clone(),
                        zero_b.of(of_b, columns, 9),
                        Some(Tensor::of(&[], &[0.7_f32])),
                        Some(full(to, &[], 11.0)),
                    ];
                    let case = format!("{a:?} {of_a} {zero_a:?}, {b:?} {of_b} {zero_b:?} to {to}, {at}");
                    check("QLinearMatMul", &[], &inputs, 3, &case);
                }
            }
        }
    }
}

/// Images, weights, groups. One has a dimension, one is depthwise, the last has three dimensions, and so no
/// kernel.
const IMAGES: [(&[usize], &[usize], i64); 7] = [
    (&[2, 8, 9, 7], &[40, 8, 3, 3], 1),
    (&[1, 64, 5, 5], &[32, 64, 1, 1], 1),
    (&[3, 6, 8, 8], &[6, 1, 3, 3], 6),
    (&[1, 8, 6, 6], &[6, 4, 3, 3], 2),
    (&[2, 1, 8, 8], &[16, 1, 3, 3], 1),
    (&[2, 3, 11], &[5, 3, 3], 1),
    (&[1, 2, 4, 5, 3], &[3, 2, 2, 3, 1], 1),
];

/// Strides and pads of an image of this rank.
fn windows(rank: usize, group: i64) -> [Attribute<'static>; 3] {
    let pads: &[i64] = match rank {
        3 => &[1, 0],
        4 => &[1, 0, 1, 1],
        _ => &[1, 0, 0, 0, 1, 0],
    };
    let strides: &[i64] = &[2, 1, 1][..rank - 2];
    [Attribute::One("group", group), Attribute::Many("strides", strides), Attribute::Many("pads", pads)]
}

#[test]
fn convolutions_of_constants_have_the_bits_of_plain_loops() {
    for (x, w, group) in IMAGES {
        for (of_x, of_w) in SIGNS.into_iter().flat_map(|a| SIGNS.map(|b| (a, b))) {
            for [zero_x, zero_w] in zeros(of_x, of_w).into_iter().take(4) {
                let inputs = [
                    Some(bytes(of_x, x, 3)),
                    Some(bytes(of_w, w, 5)),
                    zero_x.of(of_x, 1, 7),
                    zero_w.of(of_w, w[0], 9),
                ];
                let case = format!("{x:?} {of_x} {zero_x:?}, {w:?} {of_w} {zero_w:?}");
                check("ConvInteger", &windows(x.len(), group), &inputs, 1, &case);
            }
        }
    }
}

#[test]
fn quantised_convolutions_around_any_number_have_the_bits_of_plain_loops() {
    for (x, w, group) in IMAGES {
        for (of_x, of_w) in SIGNS.into_iter().flat_map(|a| SIGNS.map(|b| (a, b))) {
            // QLinearConv has its zero points always; those of x are one.
            for [zero_x, zero_w] in zeros(of_x, of_w).into_iter().skip(1).take(3) {
                let scales: Vec<f32> = (0..w[0]).map(|m| 0.01 + 0.002 * m as f32).collect();
                let bias: Vec<i32> = (0..w[0] as i32).map(|m| 900 - 70 * m).collect();
                for to in SIGNS {
                    let inputs = [
                        Some(bytes(of_x, x, 3)),
                        Some(Tensor::of(&[], &[0.1_f32])),
                        zero_x.of(of_x, 1, 7),
                        Some(bytes(of_w, w, 5)),
                        Some(Tensor::of(&[w[0]], &scales)),
                        zero_w.of(of_w, w[0], 9),
                        Some(Tensor::of(&[], &[0.9_f32])),
                        Some(full(to, &[], 11.0)),
                        Some(Tensor::of(&[w[0]], &bias)),
                    ];
                    let case = format!("{x:?} {of_x} {zero_x:?}, {w:?} {of_w} {zero_w:?} to {to}");
                    check("QLinearConv", &windows(x.len(), group), &inputs, 3, &case);
                }
            }
        }
    }
}

#[test]
fn a_gru_of_constants_has_the_bits_of_plain_loops() {
    let numbers = |shape: &[usize], seed: usize| {
        let len: usize = shape.iter().product();
        let values = (0..len).map(|i| ((i + seed) * 151 % 251) as f32 / 125.0 - 1.0);
        Some(Tensor::of(shape, &values.collect::<Vec<f32>>()))
    };
    // Steps, rows, features, units; the last has more than a pass of a product is deep.
    for [length, batch, features, hidden] in [[3, 2, 5, 7], [1, 1, 1, 1], [4, 13, 33, 40], [2, 3, 4, 1030]] {
        for direction in ["forward", "reverse", "bidirectional"] {
            let directions = if direction == "bidirectional" { 2 } else { 1 };
            for (linear, bias, begun) in
                [(0, true, true), (1, true, true), (0, false, false), (1, false, false)]
            {
                let inputs = [
                    numbers(&[length, batch, features], 1),
                    numbers(&[directions, 3 * hidden, features], 2),
                    numbers(&[directions, 3 * hidden, hidden], 3),
                    numbers(&[directions, 6 * hidden], 4).filter(|_| bias),
                    None,
                    numbers(&[directions, batch, hidden], 5).filter(|_| begun),
                ];
                let attributes = [
                    Attribute::One("hidden_size", hidden as i64),
                    Attribute::One("linear_before_reset", linear),
                    Attribute::Text("direction", direction),
                ];
                let case = format!("{length} {batch} {features} {hidden} {direction} {linear} {bias}");
                let run = |given, isa| {
                    let found = run("GRU", &attributes, &inputs, 2, given, isa);
                    found.unwrap_or_else(|error| panic!("{case}: {error}"))
                };
                let expected = run(Given::All, Isa::Scalar);
                for isa in Isa::available() {
                    for given in [Given::First, Given::None] {
                        for (found, expected) in run(given, *isa).iter().zip(&expected) {
                            assert_eq!(found.shape(), expected.shape(), "{case}, {isa}");
                            assert_eq!(found.bytes(), expected.bytes(), "{case}, {given:?}, {isa}");
                        }
                    }
                }
            }
        }
    }
}
