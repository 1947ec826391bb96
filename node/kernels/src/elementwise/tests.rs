//! Elementwise kernels against their definition, on every set and length.

use crate::elementwise::{Binary, Operand, Unary};
use crate::isa::Isa;
use crate::table::Kernels;
use crate::test::{Guarded, kernels, lengths, noise, same, sized};

const UNARIES: [Unary; 28] = [
    Unary::Abs,
    Unary::Neg,
    Unary::Sqrt,
    Unary::Reciprocal,
    Unary::Floor,
    Unary::Ceil,
    Unary::Round,
    Unary::Exp,
    Unary::Log,
    Unary::Tanh,
    Unary::Erf,
    Unary::Sigmoid,
    Unary::Relu,
    Unary::LeakyRelu { alpha: 0.1 },
    Unary::Clip { min: -0.5, max: 0.75 },
    Unary::Silu,
    Unary::Gelu,
    Unary::GeluTanh,
    Unary::HardSigmoid { alpha: 0.2, beta: 0.5 },
    Unary::HardSwish,
    Unary::Softplus,
    Unary::Softsign,
    Unary::Elu { alpha: 1.5 },
    Unary::Selu { alpha: 1.673, gamma: 1.05 },
    Unary::Celu { alpha: 2.0 },
    Unary::ThresholdedRelu { alpha: 0.3 },
    Unary::Mish,
    Unary::Affine { scale: 3.0, offset: -1.0 },
];

const BINARIES: [Binary; 7] =
    [Binary::Add, Binary::Sub, Binary::Mul, Binary::Div, Binary::Max, Binary::Min, Binary::Prelu];

const SPECIALS: [f32; 14] = [
    0.0,
    -0.0,
    f32::NAN,
    f32::INFINITY,
    f32::NEG_INFINITY,
    f32::MIN_POSITIVE,
    -1e-42,
    f32::MAX,
    f32::MIN,
    0.5,
    -2.5,
    88.8,
    -103.5,
    8_388_609.0,
];

fn scalar() -> &'static Kernels {
    Kernels::of(Isa::Scalar).expect("every machine has it")
}

/// What a function is, in f64.
fn exact(unary: Unary, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let softplus = |x: f64| x.max(0.0) + (-x.abs()).exp().ln_1p();
    match unary {
        Unary::Abs => x.abs(),
        Unary::Neg => -x,
        Unary::Sqrt => x.sqrt(),
        Unary::Reciprocal => 1.0 / x,
        Unary::Floor => x.floor(),
        Unary::Ceil => x.ceil(),
        Unary::Round => x.round_ties_even(),
        Unary::Exp => x.exp(),
        Unary::Log => x.ln(),
        Unary::Tanh => x.tanh(),
        Unary::Erf => erf(x),
        Unary::Sigmoid => sigmoid(x),
        Unary::Relu => x.max(0.0),
        Unary::LeakyRelu { alpha } => {
            if x < 0.0 {
                f64::from(alpha) * x
            } else {
                x
            }
        }
        Unary::Clip { min, max } => x.clamp(f64::from(min), f64::from(max)),
        Unary::Silu => x * sigmoid(x),
        Unary::Gelu => x * 0.5 * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
        Unary::GeluTanh => {
            x * 0.5 * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x)).tanh())
        }
        Unary::HardSigmoid { alpha, beta } => (f64::from(alpha) * x + f64::from(beta)).clamp(0.0, 1.0),
        Unary::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Unary::Softplus => softplus(x),
        Unary::Softsign => x / (1.0 + x.abs()),
        Unary::Elu { alpha } => {
            if x < 0.0 {
                f64::from(alpha) * x.exp_m1()
            } else {
                x
            }
        }
        Unary::Selu { alpha, gamma } => {
            f64::from(gamma) * if x > 0.0 { x } else { f64::from(alpha) * x.exp_m1() }
        }
        Unary::Celu { alpha } => {
            let alpha = f64::from(alpha);
            x.max(0.0) + (alpha * (x / alpha).exp_m1()).min(0.0)
        }
        Unary::ThresholdedRelu { alpha } => {
            if x > f64::from(alpha) {
                x
            } else {
                0.0
            }
        }
        Unary::Mish => x * softplus(x).tanh(),
        Unary::Affine { scale, offset } => f64::from(scale) * x + f64::from(offset),
    }
}

/// The error function in f64: its series near 0, a continued fraction of its complement beyond.
fn erf(x: f64) -> f64 {
    let a = x.abs();
    let value = if a < 2.5 {
        let (mut term, mut sum) = (a, a);
        for n in 1..100 {
            term *= -a * a / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else {
        let mut tail = a;
        for n in (1..60).rev() {
            tail = a + f64::from(n) / 2.0 / tail;
        }
        1.0 - (-a * a).exp() / (tail * std::f64::consts::PI.sqrt())
    };
    value.copysign(x)
}

/// The distance of a result from the exact value, in units of the last place of that value as f32.
fn ulps(found: f32, exact: f64) -> f64 {
    let rounded = exact as f32;
    if found.to_bits() == rounded.to_bits() || (found.is_nan() && exact.is_nan()) {
        return 0.0;
    }
    if !rounded.is_finite() || !found.is_finite() {
        // The neighbour of infinity is the greatest number.
        return if found.abs().max(rounded.abs()).is_infinite() && found.abs().min(rounded.abs()) == f32::MAX {
            1.0
        } else {
            f64::INFINITY
        };
    }
    let step = f32::from_bits(rounded.abs().to_bits() + 1) - rounded.abs();
    (f64::from(found) - exact).abs() / f64::from(step)
}

#[test]
fn exp_log_tanh_and_erf_are_within_four_units_in_the_last_place() {
    // A prime stride over all bit patterns visits each exponent thousands of times.
    let stride = sized(6_151, 100_003, 60_000_011);
    let x: Vec<f32> = (0..=u32::MAX).step_by(stride).map(f32::from_bits).collect();
    let mut y = vec![0.0; x.len()];
    for unary in [Unary::Exp, Unary::Log, Unary::Tanh, Unary::Erf] {
        Kernels::best().unary(unary).run(&x, &mut y);
        let (worst, at) = x
            .iter()
            .zip(&y)
            .map(|(x, y)| (ulps(*y, exact(unary, f64::from(*x))), *x))
            .max_by(|a, b| a.0.total_cmp(&b.0))
            .expect("some numbers");
        assert!(worst <= 4.0, "{unary:?} is off by {worst} ULP at {at:e}");
    }
}

#[test]
fn each_function_is_what_it_says() {
    let x: Vec<f32> =
        noise(sized(2_000, 2_000, 20), 1).iter().map(|x| x * 6.0).chain([0.0, -0.0, 20.0, -20.0]).collect();
    for unary in UNARIES {
        let mut y = vec![0.0; x.len()];
        Kernels::best().unary(unary).run(&x, &mut y);
        for (x, y) in x.iter().zip(&y) {
            let e = exact(unary, f64::from(*x));
            let close = (f64::from(*y) - e).abs() <= 2e-6 * (e.abs() + 1.0);
            assert!(
                close || f64::from(*y) == e || (y.is_nan() && e.is_nan()),
                "{unary:?}({x}) is {y}, expected {e}"
            );
        }
    }
}

#[test]
fn unaries_are_equal_on_every_set_and_length() {
    for n in lengths() {
        let mut values: Vec<f32> = noise(n, n as u64).iter().map(|x| x * 5.0).collect();
        for (i, x) in values.iter_mut().enumerate().filter(|(i, _)| i % 3 == 0) {
            *x = SPECIALS[(i / 3) % SPECIALS.len()];
        }
        let x = Guarded::from(&values);
        for unary in UNARIES {
            let mut expected = vec![0.0; n];
            scalar().unary(unary).run(&x, &mut expected);
            for kernels in kernels() {
                let mut y = Guarded::from(&vec![7.0; n]);
                kernels.unary(unary).run(&x, &mut y);
                same(&y, &expected, &format!("{unary:?} {n} {}", kernels.isa()));
                let mut in_place = Guarded::from(&values);
                kernels.unary(unary).run_in_place(&mut in_place);
                same(&in_place, &expected, &format!("{unary:?} in place {n} {}", kernels.isa()));
            }
        }
    }
}

#[test]
fn nan_gives_nan() {
    for kernels in kernels() {
        for unary in UNARIES {
            let mut y = [0.0; 17];
            kernels.unary(unary).run(&[f32::NAN; 17], &mut y);
            assert!(y.iter().all(|y| y.is_nan()), "{unary:?} {}", kernels.isa());
        }
        for binary in BINARIES {
            for (a, b) in [(f32::NAN, 1.0), (1.0, f32::NAN), (f32::NAN, f32::NAN)] {
                // PRelu does not look at the slope above 0.
                if binary == Binary::Prelu && a == 1.0 {
                    continue;
                }
                let mut y = [0.0; 17];
                kernels.binary(binary).run(Operand::Row(&[a; 17]), Operand::One(b), &mut y);
                assert!(y.iter().all(|y| y.is_nan()), "{binary:?}({a}, {b}) {}", kernels.isa());
            }
        }
    }
}

#[test]
fn binaries_are_equal_on_every_set_length_and_shape() {
    let plain = |binary: Binary, a: f32, b: f32| match binary {
        Binary::Add => a + b,
        Binary::Sub => a - b,
        Binary::Mul => a * b,
        Binary::Div => a / b,
        Binary::Max => {
            if a.is_nan() || a > b {
                a
            } else {
                b
            }
        }
        Binary::Min => {
            if a.is_nan() || a < b {
                a
            } else {
                b
            }
        }
        Binary::Prelu => {
            if a < 0.0 {
                a * b
            } else {
                a
            }
        }
    };
    for n in lengths() {
        let mut a = noise(n, 1);
        let mut b = noise(n, 2);
        for i in (0..n).step_by(3) {
            a[i] = SPECIALS[i % SPECIALS.len()];
            b[i] = SPECIALS[(i / 3) % SPECIALS.len()];
        }
        let (a, b) = (Guarded::from(&a), Guarded::from(&b));
        for binary in BINARIES {
            let one = 0.3;
            let rows: Vec<f32> = a.iter().zip(b.iter()).map(|(a, b)| plain(binary, *a, *b)).collect();
            let right: Vec<f32> = a.iter().map(|a| plain(binary, *a, one)).collect();
            let left: Vec<f32> = b.iter().map(|b| plain(binary, one, *b)).collect();
            for kernels in kernels() {
                let name = format!("{binary:?} {n} {}", kernels.isa());
                let kernel = kernels.binary(binary);
                let mut y = Guarded::from(&vec![7.0; n]);
                kernel.run(Operand::Row(&a), Operand::Row(&b), &mut y);
                same(&y, &rows, &name);
                kernel.run(Operand::Row(&a), Operand::One(one), &mut y);
                same(&y, &right, &name);
                kernel.run(Operand::One(one), Operand::Row(&b), &mut y);
                same(&y, &left, &name);
                let mut first = Guarded::from(&a);
                kernel.run_in_place(&mut first, Operand::Row(&b));
                same(&first, &rows, &name);
            }
        }
    }
}

#[test]
#[should_panic(expected = "equal length")]
fn lengths_that_differ_are_refused() {
    Kernels::best().unary(Unary::Exp).run(&[0.0; 3], &mut [0.0; 4]);
}
