//! `roost-node run`, `inspect` and `conformance` as a user meets them: processes, what they print, how they
//! exit.
#![cfg(feature = "native")]
#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use prost::Message as _;
use roost_kernels::Isa;
use roost_native::DType;
use roost_native::onnx::proto::{
    DimProto, DimValue, GraphProto, ModelProto, NodeProto, OperatorSetId, ShapeProto, StringEntryProto,
    TensorProto, TensorTypeProto, TypeProto, ValueInfoProto,
};
use serde_json::Value;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// A model that is not in the repository.
fn model(name: &str) -> PathBuf {
    let beside = || repository().join("../shared/models");
    let folder = std::env::var_os("ROOST_TEST_MODELS").map_or_else(beside, PathBuf::from).join(name);
    let there = folder.is_dir();
    assert!(there, "{} is no folder: set ROOST_TEST_MODELS to the one of the test models", folder.display());
    folder
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// Runs a command.
fn node(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost-node"));
    command.args(arguments).current_dir(repository()).output().unwrap()
}

/// The JSON that a command prints which exits with this code.
#[track_caller]
fn json(arguments: &[&str], code: i32) -> Value {
    let Output { status, stdout, stderr } = node(&[arguments, &["--output", "json"]].concat());
    assert_eq!(status.code(), Some(code), "{arguments:?}: {}", String::from_utf8_lossy(&stderr));
    serde_json::from_slice(&stdout).unwrap()
}

/// What a command says that fails with this code.
#[track_caller]
fn fails(arguments: &[&str], code: i32) -> String {
    let Output { status, stderr, .. } = node(arguments);
    let said = String::from_utf8_lossy(&stderr).into_owned();
    assert_eq!(status.code(), Some(code), "{arguments:?}: {said}");
    said
}

/// A value of floats, of these dimensions or none that are declared.
fn floats(name: &str, dims: Option<&[i64]>) -> ValueInfoProto {
    let dim = |size: &i64| DimProto { value: Some(DimValue::Value(*size)) };
    let shape = dims.map(|dims| ShapeProto { dim: dims.iter().map(dim).collect() });
    let tensor_type = Some(TensorTypeProto { elem_type: DType::F32.onnx(), shape });
    ValueInfoProto { name: name.into(), r#type: Some(TypeProto { tensor_type }) }
}

fn operator(op: &str, inputs: &[&str], output: &str) -> NodeProto {
    let input = inputs.iter().map(|name| (*name).to_owned()).collect();
    NodeProto { op_type: op.into(), input, output: vec![output.into()], ..NodeProto::default() }
}

/// Writes a model.
fn write(path: &Path, graph: GraphProto) {
    let opset_import = vec![OperatorSetId { domain: String::new(), version: 17 }];
    let model = ModelProto { ir_version: 8, opset_import, graph: Some(graph) };
    std::fs::write(path, model.encode_to_vec()).unwrap();
}

/// A file of test data.
fn write_data(path: &Path, values: &[f32]) {
    let tensor = TensorProto {
        dims: vec![values.len() as i64],
        data_type: DType::F32.onnx(),
        float_data: values.to_vec(),
        ..TensorProto::default()
    };
    std::fs::write(path, tensor.encode_to_vec()).unwrap();
}

#[test]
fn a_run_compares_with_test_data_to_the_same_bits_on_any_kernels_batch_and_threads() {
    let folder = model("digits_v2_conv");
    let data = folder.join("test_data_set_0");
    let run = |more: &[&str]| json(&[&["run", text(&folder), "--data", text(&data)], more].concat(), 0);
    let best = run(&[]);
    assert_eq!((&best["engine"], &best["isa"]), (&"native".into(), &Isa::best().name().into()));
    assert!(best["data"]["matches"].as_bool().unwrap());
    assert!(best["data"]["largest_difference"].as_f64().unwrap() < 1e-4);
    assert_eq!(best["sha256"].as_str().unwrap().len(), 64);
    for isa in Isa::available() {
        assert_eq!(run(&["--isa", isa.name()])["sha256"], best["sha256"], "{isa}");
    }
    let wide = run(&["--batch", "9", "--threads", "4", "--repeat", "2"]);
    assert_eq!((&wide["threads"], &wide["inputs"][0]["shape"][0]), (&4.into(), &9.into()));
    assert_eq!(wide["sha256"], run(&["--batch", "9"])["sha256"]);
    assert!(wide["data"]["matches"].as_bool().unwrap());
}

#[test]
fn repetition_measures_latency_memory_and_no_allocations() {
    let file = repository().join("deploy/models/digits/v2/model.onnx");
    let run = json(&["run", text(&file), "--batch", "8", "--repeat", "20"], 0);
    let measured = &run["repeat"];
    let time = |name: &str| measured["latency_us"][name].as_f64().unwrap();
    assert!(0.0 < time("min") && time("min") <= time("p50") && time("p50") <= time("p99"), "{measured:#}");
    assert_eq!(measured["allocations_per_run"], 0.0, "{measured:#}");
    // 23 946 parameters of four bytes.
    let weights = measured["weight_bytes"].as_u64().unwrap();
    assert!((95_000..150_000).contains(&weights), "{measured:#}");
    assert!(measured["arena_bytes"].as_u64().unwrap() > 0);
}

#[test]
fn results_that_do_not_match_exit_with_1() {
    let folder = model("digits_v1_logreg");
    let other = model("digits_v1_mlp").join("test_data_set_0");
    let run = json(&["run", text(&folder), "--data", text(&other)], 1);
    assert_eq!(run["data"]["matches"], false);
    assert_eq!(run["data"]["mismatches"].as_array().unwrap().len(), 1);
    let loose = ["run", text(&folder), "--data", text(&other), "--atol", "1.0"];
    json(&loose, 0);
    let Output { status, stdout, .. } = node(&["run", text(&folder), "--data", text(&other)]);
    assert_eq!(status.code(), Some(1));
    assert!(String::from_utf8_lossy(&stdout).contains("DO NOT MATCH"));
}

#[test]
fn kernels_beyond_the_machine_are_refused() {
    let folder = model("digits_v1_logreg");
    let beyond = if cfg!(target_arch = "x86_64") { "neon" } else { "avx2" };
    for command in ["run", "inspect"] {
        let said = fails(&[command, text(&folder), "--isa", beyond], 1);
        assert!(said.contains(&format!("this machine cannot run {beyond} kernels; it has ")), "{said}");
        fails(&[command, text(&folder), "--isa", "sse9"], 2);
    }
    let said = fails(&["run", text(&folder), "--isa", "scalar", "--engine", "onnxruntime"], 1);
    assert!(said.contains("--isa chooses among the native engine's kernels"), "{said}");
}

#[test]
fn what_cannot_be_run_says_why() {
    let said = fails(&["run", "/nowhere/model"], 1);
    assert!(said.contains("/nowhere/model: No such file"), "{said}");
    let said = fails(&["run", text(repository())], 1);
    assert!(said.contains("has no model.onnx; give a folder that has one"), "{said}");
    let trees = model("digits_rf_trees");
    let said = fails(&["run", text(&trees), "--engine", "native"], 1);
    assert!(said.contains("TreeEnsembleClassifier"), "{said}");
}

#[cfg(feature = "onnxruntime")]
#[test]
fn auto_falls_back_to_onnx_runtime_and_says_why() {
    let folder = model("digits_v2_conv");
    let data = folder.join("test_data_set_0");
    let run = json(&["run", text(&folder), "--data", text(&data), "--engine", "onnxruntime"], 0);
    assert_eq!((&run["engine"], &run["isa"]), (&"onnxruntime".into(), &Value::Null));
    assert!(run["data"]["matches"].as_bool().unwrap());
    let trees = json(&["inspect", text(&model("digits_rf_trees"))], 0);
    assert_eq!(trees["engine"], "onnxruntime");
    assert!(trees["not_native"].as_str().unwrap().contains("TreeEnsembleClassifier"), "{trees:#}");
    // Which are named all the same.
    assert_eq!(trees["operators"]["ai.onnx.ml::TreeEnsembleClassifier"], 1, "{trees:#}");
}

#[test]
fn inspection_shows_what_a_model_is_made_of_and_draws_its_plan() {
    let folder = model("digits_v2_conv");
    let temporary = tempfile::tempdir().unwrap();
    let drawing = temporary.path().join("plan.dot");
    let report = json(&["inspect", text(&folder), "--plan", text(&drawing), "--batch", "4"], 0);
    assert_eq!(report["inputs"][0]["shape"], "[N, 1, 8, 8]");
    assert_eq!((&report["engine"], &report["batch_variant"]), (&"native".into(), &Value::Null));
    assert_eq!(report["operators"]["Conv"], 3, "{:#}", report["operators"]);
    let steps = report["plan"]["steps"].as_array().unwrap();
    let arena = report["plan"]["arena_bytes"].as_u64().unwrap();
    for step in steps {
        assert!(step["arena"][1].as_u64().unwrap() <= arena, "{step:#}");
        assert!(!step["kernel"].as_str().unwrap().is_empty());
    }
    let text_of = std::fs::read_to_string(&drawing).unwrap();
    assert!(text_of.starts_with("digraph plan {") && text_of.contains("probs"), "{text_of}");
    let Output { stdout, .. } = node(&["inspect", text(&model("digits_vit_int8_dynamic"))]);
    let said = String::from_utf8_lossy(&stdout).into_owned();
    assert!(said.contains("rows of a batch depend on each other: ") && said.contains("KERNEL"), "{said}");
}

/// An input without a rank, which is an output too.
#[test]
fn a_model_that_declares_no_rank_has_no_plan() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("passes.onnx");
    let graph = GraphProto {
        input: vec![floats("x", None)],
        output: vec![floats("x", None)],
        ..GraphProto::default()
    };
    write(&file, graph);
    let report = json(&["inspect", text(&file)], 0);
    assert_eq!((&report["inputs"][0]["shape"], &report["plan"]), (&"[...]".into(), &Value::Null));
    assert_eq!(report["not_planned"], "input x declares no rank", "{report:#}");
    let said = fails(&["run", text(&file)], 1);
    assert!(said.contains("give --data: input x declares no rank"), "{said}");
}

/// Weights in a folder of the bundle, beside a file that nobody may read.
#[test]
fn only_files_that_the_model_names_are_read() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("bundle");
    std::fs::create_dir_all(folder.join("weights")).unwrap();
    let stored: Vec<u8> = [1.0_f32, 2.0, 3.0].iter().flat_map(|value| value.to_le_bytes()).collect();
    std::fs::write(folder.join("weights/w.bin"), &stored).unwrap();
    std::fs::write(temporary.path().join("outside.bin"), &stored).unwrap();
    let beside = folder.join("beside");
    std::fs::write(&beside, "somebody else's").unwrap();
    let nobody = std::os::unix::fs::PermissionsExt::from_mode(0o000);
    std::fs::set_permissions(&beside, nobody).unwrap();
    let model = |location: &str| {
        let entry = StringEntryProto { key: "location".into(), value: location.into() };
        let weights = TensorProto {
            name: "w".into(),
            dims: vec![3],
            data_type: DType::F32.onnx(),
            data_location: 1,
            external_data: vec![entry],
            ..TensorProto::default()
        };
        GraphProto {
            node: vec![operator("Add", &["x", "w"], "y")],
            input: vec![floats("x", Some(&[3]))],
            output: vec![floats("y", Some(&[3]))],
            initializer: vec![weights],
            ..GraphProto::default()
        }
    };
    let data = temporary.path().join("data");
    std::fs::create_dir(&data).unwrap();
    write_data(&data.join("input_0.pb"), &[10.0, 20.0, 30.0]);
    write_data(&data.join("output_0.pb"), &[11.0, 22.0, 33.0]);
    let file = folder.join("model.onnx");
    for location in ["weights/w.bin", "./weights/w.bin"] {
        write(&file, model(location));
        for given in [&folder, &file] {
            json(&["run", text(given), "--data", text(&data), "--engine", "native"], 0);
            json(&["inspect", text(given), "--engine", "native"], 0);
        }
    }
    write(&file, model("../outside.bin"));
    let said = fails(&["run", text(&folder), "--engine", "native"], 1);
    assert!(said.contains("../outside.bin leaves the bundle"), "{said}");
    write(&file, model("weights/v.bin"));
    let said = fails(&["run", text(&folder), "--engine", "native"], 1);
    assert!(said.contains("the bundle has no file weights/v.bin"), "{said}");
}

#[test]
fn an_output_that_the_data_does_not_have_is_no_match() {
    let temporary = tempfile::tempdir().unwrap();
    let file = temporary.path().join("model.onnx");
    let graph = GraphProto {
        node: vec![operator("Relu", &["x"], "y"), operator("Neg", &["x"], "z")],
        input: vec![floats("x", Some(&[2]))],
        output: vec![floats("y", Some(&[2])), floats("z", Some(&[2]))],
        ..GraphProto::default()
    };
    write(&file, graph);
    write_data(&temporary.path().join("input_0.pb"), &[1.0, -2.0]);
    write_data(&temporary.path().join("output_0.pb"), &[1.0, 0.0]);
    let arguments = ["run", text(&file), "--data", text(temporary.path())];
    let run = json(&arguments, 1);
    assert_eq!(run["data"]["mismatches"], serde_json::json!(["z: the data has no such output"]));
    write_data(&temporary.path().join("output_1.pb"), &[-1.0, 2.0]);
    json(&arguments, 0);
}

/// A folder of two backend tests, one of which expects something else.
#[test]
fn conformance_counts_what_passes_and_says_why_the_rest_does_not() {
    let temporary = tempfile::tempdir().unwrap();
    let test = |name: &str, model: &Path, data: &Path| {
        let folder = temporary.path().join("node").join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::os::unix::fs::symlink(model.join("model.onnx"), folder.join("model.onnx")).unwrap();
        std::os::unix::fs::symlink(data.join("test_data_set_0"), folder.join("test_data_set_0")).unwrap();
    };
    let (logreg, mlp, trees) = (model("digits_v1_logreg"), model("digits_v1_mlp"), model("digits_rf_trees"));
    test("right", &logreg, &logreg);
    test("wrong", &logreg, &mlp);
    test("trees", &trees, &trees);
    let folder = text(temporary.path());
    let report = json(&["conformance", folder, "--engine", "native"], 1);
    let count = |name: &str| report[name].as_u64().unwrap();
    assert_eq!((count("passed"), count("failed"), count("unsupported")), (1, 1, 1), "{report:#}");
    let tests = &report["tests"];
    assert_eq!(tests["node/right"]["outcome"], "passed");
    assert!(tests["node/wrong"]["reason"].as_str().unwrap().contains("output 0"), "{report:#}");
    assert!(tests["node/trees"]["reason"].as_str().unwrap().contains("TreeEnsemble"), "{report:#}");
    // Without data nothing is compared, so nothing passes, on either engine.
    let bare = temporary.path().join("bare/none");
    std::fs::create_dir_all(&bare).unwrap();
    std::os::unix::fs::symlink(logreg.join("model.onnx"), bare.join("model.onnx")).unwrap();
    let engines: &[&str] =
        if cfg!(feature = "onnxruntime") { &["native", "onnxruntime"] } else { &["native"] };
    for engine in engines {
        let report = json(&["conformance", text(bare.parent().unwrap()), "--engine", engine], 1);
        let reason = report["tests"]["none"]["reason"].as_str().unwrap();
        assert!(report["failed"] == 1 && reason.contains("test_data_set_0"), "{report:#}");
    }
    let list = temporary.path().join("list");
    for listed in ["node/right\n", "[\"node/right\"]", "node/right\nnode/right\n"] {
        std::fs::write(&list, listed).unwrap();
        let report = json(&["conformance", folder, "--list", text(&list)], 0);
        assert_eq!((&report["passed"], &report["failed"]), (&1.into(), &0.into()));
    }
    for listed in ["", "\n", "[]"] {
        std::fs::write(&list, listed).unwrap();
        let said = fails(&["conformance", folder, "--list", text(&list)], 1);
        assert!(said.contains("there is no test to run"), "{said}");
    }
    let said = fails(&["conformance", text(&model("digits_data").join("nothing"))], 1);
    assert!(said.contains("nothing"), "{said}");
}
