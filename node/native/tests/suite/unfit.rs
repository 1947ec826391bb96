//! Inputs and attributes that do not fit each other: what the passes rewrite before shapes are known, and
//! numbers whose products leave 64 bits, are refused in words, ahead of any memory for them.

use roost_kernels::Isa;
use roost_native::onnx::proto::{AttributeProto, NodeProto, TensorProto};
use roost_native::ops::Op;
use roost_native::ops::elementwise::Unary;
use roost_native::program::Options;
use roost_native::{DType, Program, Tensor};

use crate::empty::{Attribute, Given, full, run};
use crate::hostile::{import, model, node};
use crate::places;
use Attribute::{Many, One, Text};

/// Which operator of one node is refused, with what, and how.
fn refused(op: &str, attributes: &[Attribute<'_>], inputs: &[Option<Tensor>], reason: &str) {
    let found = run(op, attributes, inputs, 1, Given::First, Isa::best());
    let Err(error) = found else { panic!("{op} with {attributes:?} gives an answer") };
    assert!(error.contains(reason), "{op} with {attributes:?}: {error}");
}

fn f(shape: &[usize], value: f64) -> Option<Tensor> {
    Some(full(DType::F32, shape, value))
}

fn bytes(shape: &[usize], value: f64) -> Option<Tensor> {
    Some(full(DType::U8, shape, value))
}

fn list(list: &[i64]) -> Option<Tensor> {
    Some(Tensor::of(&[list.len()], list))
}

/// A quantised convolution of four filters with this bias and scale of weights.
fn qlinear_conv(bias: Option<Tensor>, scale: Option<Tensor>) -> Vec<Option<Tensor>> {
    let (x, w) = (bytes(&[1, 4, 5, 5], 3.0), Some(full(DType::I8, &[4, 4, 3, 3], 1.0)));
    let (zero, signed) = (bytes(&[], 0.0), Some(full(DType::I8, &[], 0.0)));
    vec![x, f(&[], 0.1), zero.clone(), w, scale, signed, f(&[], 0.1), zero, bias]
}

#[test]
fn a_quantised_convolution_whose_bias_does_not_fit() {
    let scale = || f(&[], 0.1);
    let fits = qlinear_conv(Some(full(DType::I32, &[4], 5.0)), scale());
    run("QLinearConv", &[], &fits, 1, Given::First, Isa::best()).expect("it fits");
    let short = qlinear_conv(Some(full(DType::I32, &[3], 5.0)), scale());
    refused("QLinearConv", &[], &short, "one value per output channel");
    refused("QLinearConv", &[], &qlinear_conv(bytes(&[3], 5.0), scale()), "input 8");
    refused("QLinearConv", &[], &qlinear_conv(f(&[4], 5.0), scale()), "input 8");
    let doubles = Some(Tensor::of(&[1], &[0.1_f64]));
    refused("QLinearConv", &[], &qlinear_conv(None, doubles), "input 4");
    refused("QLinearConv", &[One("group", 1 << 62)], &qlinear_conv(None, scale()), "");
}

/// Compiles a model of these nodes over an image `[1, 1, 5, 5]`; gives the error.
fn compiled(nodes: Vec<NodeProto>, constants: &[(&str, DType, &[usize])]) -> String {
    let constant = |(name, dtype, shape): &(&str, DType, &[usize])| {
        let tensor = full(*dtype, shape, 1.0);
        TensorProto {
            name: (*name).into(),
            dims: shape.iter().map(|dim| *dim as i64).collect(),
            data_type: dtype.onnx(),
            raw_data: tensor.bytes().to_vec().into(),
            ..TensorProto::default()
        }
    };
    let bytes = model(nodes, &[1, 1, 5, 5], constants.iter().map(constant).collect());
    let compiled = import(bytes).map_err(|error| error.to_string()).and_then(|model| {
        let program = Program::compile(model, Options::default()).map_err(|error| error.to_string())?;
        program.bucket(&[vec![1, 1, 5, 5]]).map(|_| ()).map_err(|error| error.to_string())
    });
    compiled.expect_err("it is refused")
}

#[test]
fn a_convolution_without_weights_before_what_would_be_fused_into_it() {
    let norm = ["made", "scale", "bias", "mean", "variance"];
    let four: Vec<(&str, DType, &[usize])> =
        norm[1..].iter().map(|name| (*name, DType::F32, &[1][..])).collect();
    let nodes = vec![node("Conv", &["x"], &["made"]), node("BatchNormalization", &norm, &["y"])];
    assert!(compiled(nodes, &four).contains("Conv"));

    let nodes = vec![
        node("QuantizeLinear", &["x", "step", "zero"], &["bytes"]),
        node("DequantizeLinear", &["bytes", "step", "zero"], &["floats"]),
        node("Conv", &["floats"], &["made"]),
        node("QuantizeLinear", &["made", "step", "zero"], &["y"]),
    ];
    let constants: [(&str, DType, &[usize]); 2] = [("step", DType::F32, &[]), ("zero", DType::U8, &[])];
    assert!(compiled(nodes, &constants).contains("Conv"));
}

#[test]
fn a_norm_whose_convolution_has_another_bias_than_filters() {
    let norm = ["made", "scale", "bias", "mean", "variance"];
    let lists = norm[1..].iter().map(|name| (*name, DType::F32, &[2][..]));
    let conv: [(&str, DType, &[usize]); 2] = [("w", DType::F32, &[2, 1, 3, 3]), ("b", DType::F32, &[1])];
    let constants: Vec<(&str, DType, &[usize])> = lists.chain(conv).collect();
    let nodes = vec![node("Conv", &["x", "w", "b"], &["made"]), node("BatchNormalization", &norm, &["y"])];
    assert!(compiled(nodes, &constants).contains("Conv"));
}

#[test]
fn an_addition_of_one_input() {
    let nodes = vec![node("Conv", &["x", "w"], &["made"]), node("Add", &["made"], &["y"])];
    assert!(compiled(nodes, &[("w", DType::F32, &[2, 1, 3, 3])]).contains("Add"));
}

#[test]
fn axes_beyond_all_bounds() {
    let image = f(&[1, 1, 1, 1], 1.0);
    let sizes = |sizes: &[i64]| vec![image.clone(), None, None, list(sizes)];
    refused("Resize", &[], &sizes(&[1, 1, 1, 1 << 30]), "at most");
    refused("Resize", &[], &sizes(&[1, 1, 1 << 31, 1 << 31]), "");
    let linear = [Text("mode", "linear"), Text("coordinate_transformation_mode", "asymmetric")];
    refused("Resize", &linear, &sizes(&[1, 1, 1, 1 << 30]), "at most");
    for (mode, pads) in [
        ("constant", [i64::MIN, i64::MAX]),
        ("edge", [1 << 60, 0]),
        ("reflect", [-(1 << 50), 1 << 50]),
        ("constant", [1 << 45, 0]),
    ] {
        refused("Pad", &[Text("mode", mode)], &[f(&[4], 1.0), list(&pads)], "");
    }
    for block in [1 << 40, 1 << 31, i64::MAX] {
        let empty = f(&[1, 0, 0, 0], 0.0);
        for op in ["DepthToSpace", "SpaceToDepth"] {
            let found = run(
                op,
                &[One("blocksize", block)],
                std::slice::from_ref(&empty),
                1,
                Given::First,
                Isa::best(),
            );
            assert!(found.is_err() || found.is_ok_and(|found| found[0].is_empty()), "{op} of {block}");
        }
    }
}

#[test]
fn attributes_beyond_all_bounds() {
    for (op, gates) in [("LSTM", 4), ("GRU", 3), ("RNN", 1)] {
        let weights = f(&[1, gates * 2, 3], 0.1);
        let recurrent = f(&[1, gates * 2, 2], 0.1);
        let inputs = [f(&[2, 1, 3], 1.0), weights, recurrent];
        run(op, &[One("hidden_size", 2)], &inputs, 1, Given::First, Isa::best()).expect("it fits");
        refused(op, &[One("hidden_size", 1 << 62)], &inputs, "recurrent weights");
    }
    let image = || f(&[1, 4, 3, 3], 1.0);
    for group in [1 << 62, i64::MAX] {
        refused("Conv", &[One("group", group)], &[image(), f(&[4, 4, 1, 1], 1.0)], "");
        refused("ConvTranspose", &[One("group", group)], &[image(), f(&[4, 4, 1, 1], 1.0)], "");
    }
    refused("Conv", &[Many("dilations", &[1 << 62, 1])], &[image(), f(&[4, 4, 1, 1], 1.0)], "");
}

#[test]
fn declared_and_stored_shapes_beyond_the_address_space() {
    let flat = |dims: &[i64], constants: Vec<TensorProto>, inputs: &[&str]| {
        let attribute = vec![AttributeProto { name: "axis".into(), kind: 2, i: 1, ..Default::default() }];
        let node = NodeProto { attribute, ..node("Flatten", inputs, &["y"]) };
        import(model(vec![node], dims, constants)).map_err(|error| error.to_string()).and_then(|model| {
            let shapes = [dims.iter().map(|dim| *dim as usize).collect::<Vec<_>>()];
            let program = Program::compile(model, Options::default()).map_err(|error| error.to_string())?;
            program.bucket(&shapes).map(|_| ()).map_err(|error| error.to_string())
        })
    };
    assert!(flat(&[2, 1 << 40, 1 << 40], vec![], &["x"]).is_err());
    let huge = 1 << 20;
    let stored = TensorProto {
        name: "w".into(),
        dims: vec![huge, huge, huge, huge, 0],
        data_type: DType::F32.onnx(),
        ..TensorProto::default()
    };
    let error = flat(&[1, 1], vec![stored], &["w"]).unwrap_err();
    assert!(error.contains("too large"), "{error}");
}

/// ONNX reduces 8 bits to their extremes alone: a sum of them would wrap.
#[test]
fn sums_of_eight_bits_are_refused() {
    let ops = ["Sum", "Mean", "Prod", "L1", "L2", "SumSquare", "LogSum", "LogSumExp"];
    for dtype in [DType::U8, DType::I8] {
        let inputs = [Some(full(dtype, &[1, 256], 1.0)), list(&[1])];
        for op in ops.map(|op| format!("Reduce{op}")) {
            refused(&op, &[], &inputs, "element type");
        }
        for op in ["ReduceMax", "ReduceMin"] {
            let found = run(op, &[], &inputs, 1, Given::First, Isa::best()).expect("it runs");
            assert_eq!(found[0].ints().expect("integers"), [1], "{op} of {dtype}");
        }
    }
}

#[test]
fn a_mean_of_integers_divides_by_any_number_of_them() {
    for (dtype, count, value) in [(DType::I32, 256, 3.0), (DType::I64, 255, -1.0), (DType::I32, 300, 0.0)] {
        for given in [Given::First, Given::None] {
            let inputs = [Some(full(dtype, &[1, count], value)), list(&[1])];
            let found = run("ReduceMean", &[], &inputs, 1, given, Isa::best()).expect("it runs");
            assert_eq!(found[0].ints().expect("integers"), [value as i64], "{count} of {dtype}");
        }
    }
}

#[test]
fn bits_shifted_by_their_width_or_more_are_gone() {
    let values = |values: &[u64]| Some(Tensor::of(&[values.len()], values));
    let by = [0, 1, 63, 64, 1 << 32, (1 << 32) + 1, u64::MAX];
    let inputs = [values(&[6; 7]), values(&by)];
    for (direction, expected) in [("LEFT", [6, 12, 0, 0, 0, 0, 0]), ("RIGHT", [6, 3, 0, 0, 0, 0, 0])] {
        for given in [Given::First, Given::None] {
            let found = run("BitShift", &[Text("direction", direction)], &inputs, 1, given, Isa::best());
            let found = found.expect("it runs");
            assert_eq!(*found[0].values::<u64>(), expected, "{direction}");
        }
    }
}

/// Doubles would round 2^62 + 1, and make the distance of two such numbers nought or hundreds.
#[test]
fn a_range_of_large_integers_has_as_many_as_lie_in_it() {
    let number = |value: i64| Some(Tensor::of(&[], &[value]));
    let base = 1_i64 << 62;
    let cases: [([i64; 3], &[i64]); 5] = [
        ([base, base + 3, 1], &[base, base + 1, base + 2]),
        ([base + 5, base, -2], &[base + 5, base + 3, base + 1]),
        ([i64::MIN, i64::MAX, i64::MAX], &[i64::MIN, -1, i64::MAX - 1]),
        ([base, base + 3, -1], &[]),
        ([base, base, 7], &[]),
    ];
    for (case, expected) in cases {
        let found = run("Range", &[], &case.map(number), 1, Given::None, Isa::best()).expect("it runs");
        assert_eq!(*found[0].values::<i64>(), *expected, "{case:?}");
    }
    for case in [[i64::MIN, i64::MAX, 1], [0, 5, 0]] {
        let found = run("Range", &[], &case.map(number), 1, Given::None, Isa::best());
        found.expect_err("it is refused");
    }
}

#[test]
fn quantising_to_a_type_that_is_not_here_is_refused() {
    let int4 = [One("output_dtype", 22)];
    refused("QuantizeLinear", &int4, &[f(&[2], 1.0), f(&[], 0.5)], "element type 22");
    let none = [One("output_dtype", 0)];
    run("QuantizeLinear", &none, &[f(&[2], 1.0), f(&[], 0.5)], 1, Given::First, Isa::best()).expect("u8");
}

#[test]
fn an_input_beyond_the_arena_is_called_too_large() {
    let bytes = model(vec![node("Relu", &["x"], &["y"])], &[-1], vec![]);
    let limits = roost_native::Limits { arena_bytes_max: 4096, ..roost_native::Limits::default() };
    let files = roost_native::onnx::external::Files::new();
    let model = roost_native::Model::import_bytes(bytes, &files, limits).expect("it imports");
    let program = Program::compile(model, Options::default()).expect("it compiles");
    let x = Tensor::of(&[2048], &[1.0_f32; 2048]);
    let mut found: Vec<Tensor> = Vec::new();
    let run = roost_native::Session::new(program).run(&[(&x).into()], &mut found, &|| false);
    let Err(roost_native::RunError::Arena { bytes: 8192, bytes_max: 4096 }) = run else { panic!("{run:?}") };
}

/// The parts of a GELU are one operator, unless a constant among them gives its dimensions to the result.
#[test]
fn a_gelu_of_constants_with_dimensions_keeps_them() {
    let gelus = |program: &Program| {
        let graph = program.graph();
        graph.nodes.iter().filter(|node| matches!(node.op, Op::Unary(Unary::Gelu { .. }))).count()
    };
    assert_eq!(gelus(&places::program(&places::model("text_encoder_tiny"), None)), 2);
    for (dims, count, shape) in [(vec![], 1, vec![2, 3]), (vec![1, 1, 1], 0, vec![1, 2, 3])] {
        let number = |name: &str, value: f32| TensorProto {
            name: name.into(),
            dims: dims.clone(),
            data_type: DType::F32.onnx(),
            raw_data: value.to_le_bytes().to_vec().into(),
            ..TensorProto::default()
        };
        let nodes = vec![
            node("Div", &["x", "root"], &["a"]),
            node("Erf", &["a"], &["b"]),
            node("Add", &["b", "one"], &["c"]),
            node("Mul", &["x", "c"], &["d"]),
            node("Mul", &["d", "half"], &["y"]),
        ];
        let constants =
            vec![number("root", std::f32::consts::SQRT_2), number("one", 1.0), number("half", 0.5)];
        let imported = import(model(nodes, &[2, 3], constants)).expect("it imports");
        let program = Program::compile(imported, Options::default()).expect("it compiles");
        assert_eq!(gelus(&program), count, "{dims:?}");
        let x = Tensor::of(&[2, 3], &[0.0_f32, 1.0, -1.0, 2.0, 0.5, 9.0]);
        let mut found: Vec<Tensor> = Vec::new();
        roost_native::Session::new(program).run(&[(&x).into()], &mut found, &|| false).expect("it runs");
        assert_eq!(found[0].shape(), shape, "{dims:?}");
        assert!((found[0].floats()[1] - 0.841_344_7).abs() < 1e-6, "{dims:?}");
    }
}

/// The parts of a layer normalisation over the last axis are one operator, with what scales it and is added;
/// over another axis they are not.
#[test]
fn a_layer_normalisation_in_parts_is_one_operator() {
    let tensor = |name: &str, dims: &[i64], values: &[f32]| TensorProto {
        name: name.into(),
        dims: dims.to_vec(),
        data_type: DType::F32.onnx(),
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into(),
        ..TensorProto::default()
    };
    let (gamma, beta) = ([0.5_f32, 2.0, -1.0], [0.25_f32, 0.0, 8.0]);
    let x = Tensor::of(&[2, 3], &[0.0_f32, 1.0, -1.5, 2.0, 0.5, 9.0]);
    for (axis, square, norms) in [(-1, "Pow", 1), (-1, "Mul", 1), (0, "Pow", 0)] {
        let mean = |from: &str, to: &str| {
            let mut mean = node("ReduceMean", &[from], &[to]);
            let (name, kind) = ("axes".into(), 7);
            mean.attribute = vec![AttributeProto { name, kind, ints: vec![axis], ..Default::default() }];
            mean
        };
        let operands = if square == "Pow" { ["d", "two"] } else { ["d", "d"] };
        let nodes = vec![
            mean("x", "m"),
            node("Sub", &["x", "m"], &["d"]),
            node(square, &operands, &["q"]),
            mean("q", "v"),
            node("Add", &["v", "epsilon"], &["e"]),
            node("Sqrt", &["e"], &["s"]),
            node("Div", &["d", "s"], &["n"]),
            node("Mul", &["gamma", "n"], &["g"]),
            node("Add", &["g", "beta"], &["y"]),
        ];
        let constants = vec![
            tensor("two", &[], &[2.0]),
            tensor("epsilon", &[], &[1e-5]),
            tensor("gamma", &[3], &gamma),
            tensor("beta", &[1, 3], &beta),
        ];
        let imported = import(model(nodes, &[2, 3], constants)).expect("it imports");
        let program = Program::compile(imported, Options::default()).expect("it compiles");
        let graph = program.graph();
        let found = graph.nodes.iter().filter(|node| matches!(node.op, Op::LayerNorm { .. })).count();
        assert_eq!(found, norms, "axis {axis}, {square}");
        let plan = roost_native::inspect::plan(&program, &[vec![2, 3]]).expect("it plans").expect("a plan");
        let kernels: Vec<&str> = plan.steps.iter().map(|step| &*step.kernel).collect();
        assert_eq!(kernels.len() == 1, norms == 1, "axis {axis}, {square}: {kernels:?}");
        let context = roost_native::exec::interpret::Context {
            bytes_max: 1 << 20,
            cancelled: &|| false,
            target: program.target(),
        };
        let one_by_one = roost_native::exec::interpret::graph(&graph, vec![x.clone()], context);
        let one_by_one = one_by_one.expect("it runs").remove(0);
        let mut found: Vec<Tensor> = Vec::new();
        roost_native::Session::new(program).run(&[(&x).into()], &mut found, &|| false).expect("it runs");
        assert_eq!(found[0].bytes(), one_by_one.bytes(), "axis {axis}, {square}");
        let values: Vec<f64> = x.floats().iter().map(|x| f64::from(*x)).collect();
        for (i, found) in found[0].floats().iter().enumerate() {
            let (row, column) = (i / 3, i % 3);
            let group: Vec<f64> = match axis {
                0 => vec![values[column], values[3 + column]],
                _ => values[3 * row..3 * row + 3].to_vec(),
            };
            let count = group.len() as f64;
            let mean = group.iter().sum::<f64>() / count;
            let variance = group.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / count;
            let normal = (values[i] - mean) / (variance + 1e-5).sqrt();
            let expected = normal * f64::from(gamma[column]) + f64::from(beta[column]);
            assert!((f64::from(*found) - expected).abs() < 1e-5, "axis {axis}, {square}, {i}: {found}");
        }
    }
}

/// No image at all, of a size that no memory holds.
#[test]
fn a_pool_after_a_convolution_of_nothing_does_not_overflow() {
    let weights = TensorProto {
        name: "w".into(),
        dims: vec![64, 3, 1, 1],
        data_type: DType::F32.onnx(),
        raw_data: vec![0; 64 * 3 * 4].into(),
        ..TensorProto::default()
    };
    let mut pool = node("MaxPool", &["c"], &["y"]);
    let (name, kind) = ("kernel_shape".into(), 7);
    pool.attribute = vec![AttributeProto { name, kind, ints: vec![2, 2], ..Default::default() }];
    let nodes = vec![node("Conv", &["x", "w"], &["c"]), pool];
    let imported = import(model(nodes, &[-1, 3, -1, -1], vec![weights])).expect("it imports");
    let program = Program::compile(imported, Options::default()).expect("it compiles");
    let x = Tensor::of::<f32>(&[0, 3, 1 << 31, 1 << 31], &[]);
    let mut found: Vec<Tensor> = Vec::new();
    match roost_native::Session::new(program).run(&[(&x).into()], &mut found, &|| false) {
        Ok(_) => assert_eq!(found[0].shape(), [0, 64, (1 << 31) - 1, (1 << 31) - 1]),
        Err(error) => assert!(matches!(error, roost_native::RunError::Arena { .. }), "{error}"),
    }
}

/// What scales a layer normalisation joins it; its mean, which something else reads, is still there.
#[test]
fn a_layer_normalisation_that_is_scaled_keeps_its_mean() {
    let row = |name: &str, values: [f32; 3]| TensorProto {
        name: name.into(),
        dims: vec![3],
        data_type: DType::F32.onnx(),
        raw_data: values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>().into(),
        ..TensorProto::default()
    };
    let nodes = vec![
        node("LayerNormalization", &["x", "scale"], &["n", "mean"]),
        node("Add", &["n", "bias"], &["b"]),
        node("Add", &["b", "mean"], &["y"]),
    ];
    let constants = vec![row("scale", [1.0, 2.0, 3.0]), row("bias", [10.0, 20.0, 30.0])];
    let imported = import(model(nodes, &[1, 3], constants)).expect("it imports");
    let program = Program::compile(imported, Options::default()).expect("it compiles");
    let plan = roost_native::inspect::plan(&program, &[vec![1, 3]]).expect("it plans").expect("a plan");
    assert_eq!(plan.steps.len(), 2);
    let x = Tensor::of(&[1, 3], &[4.0_f32, 5.0, 6.0]);
    let mut found: Vec<Tensor> = Vec::new();
    roost_native::Session::new(program).run(&[(&x).into()], &mut found, &|| false).expect("it runs");
    let side = 1.0 / (2.0_f64 / 3.0 + 1e-5).sqrt();
    for (found, expected) in found[0].floats().iter().zip([15.0 - side, 25.0, 35.0 + 3.0 * side]) {
        assert!((f64::from(*found) - expected).abs() < 1e-5, "{found}, {expected} is right");
    }
}
