//! The engine takes any bytes and any changed model: each ends in a result or a typed error, without a panic,
//! an overflow (tests are built with their checks) or more memory than the limits allow.
//!
//! A case is a seed: it names a model and what is changed in it. One that fails is printed with its seed, and
//! `ROOST_HOSTILE_SEED=<seed> cargo test -p roost-native --test hostile <test>` repeats it alone;
//! `ROOST_HOSTILE_CASES` runs more of them.

mod change;
mod memory;
#[allow(dead_code, reason = "shared with the suite, which needs more of it")]
#[path = "../suite/places.rs"]
mod places;

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, PanicHookInfo, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Once;

use bytes::Bytes;
use prost::Message;
use roost_native::conformance::read_bundle;
use roost_native::onnx::external::{Files, tensor};
use roost_native::onnx::import::MODEL_FILE;
use roost_native::onnx::proto::{ModelProto, TensorProto};
use roost_native::program::Options;
use roost_native::tensor::bytes_of;
use roost_native::{Input, Limits, Model, Program, Session, Tensor, inspect};

use change::Rng;

#[global_allocator]
static COUNTING: memory::Counting = memory::Counting;

/// Far below the defaults, so that a case which ignores them shows.
const LIMITS: Limits = Limits {
    nodes_max: 4_096,
    subgraph_depth_max: 8,
    folded_bytes_max: 16 << 20,
    arena_bytes_max: 64 << 20,
    packed_bytes_max: 16 << 20,
};

/// What a case may hold at once beside the model: an arena or the live tensors of an interpretation,
/// constants, packed weights and plans.
const HELD_BYTES_MAX: usize = 512 << 20;

/// A run ends after so many nodes, and is not begun with more bytes of inputs.
const NODES_RUN_MAX: usize = 40;
const INPUT_BYTES_MAX: usize = 1 << 18;

/// A model, with the test data that comes with it.
struct Subject {
    name: String,
    model: ModelProto,
    files: Files,
    inputs: Vec<TensorProto>,
}

fn read(folder: &Path, name: &str) -> Subject {
    let mut files = read_bundle(folder).expect("the model's files can be read");
    let bytes = files.remove(MODEL_FILE).expect("a bundle has a model");
    let paths = (0..).map(|j| folder.join(format!("test_data_set_0/input_{j}.pb")));
    let inputs = paths.map_while(|path| std::fs::read(path).ok());
    Subject {
        name: name.to_owned(),
        model: ModelProto::decode(bytes).expect("a model that is not changed yet"),
        files,
        inputs: inputs.map(|bytes| TensorProto::decode(&bytes[..]).expect("a tensor")).collect(),
    }
}

/// How far cases came.
#[derive(Debug, Default)]
struct Reached {
    imported: Cell<u64>,
    compiled: Cell<u64>,
    begun: Cell<u64>,
    done: Cell<u64>,
}

fn count(counter: &Cell<u64>) {
    counter.set(counter.get() + 1);
}

/// Imports, compiles, plans and draws, and runs where the inputs are small.
fn swallow(bytes: Bytes, files: &Files, given: &[TensorProto], rng: &mut Rng, reached: &Reached) {
    let Ok(model) = Model::import_bytes(bytes, files, LIMITS) else { return };
    count(&reached.imported);
    let Ok(program) = Program::compile(model, Options::default()) else { return };
    count(&reached.compiled);
    let free = rng.below(3);
    if let Some(shapes) = inspect::declared_shapes(&program, free) {
        // What does not fit is an error here, and the run says it again.
        let _ = (inspect::plan(&program, &shapes), inspect::dot(&program, &shapes));
    }
    let inputs: Option<Vec<Tensor>> = program
        .inputs()
        .iter()
        .enumerate()
        .map(|(i, port)| {
            let given = given.iter().find(|t| t.name == port.name).or_else(|| given.get(i));
            let given = given.and_then(|given| tensor(given, &Files::new()).ok());
            let declared = inspect::declared_shapes(&program, free).map(|mut shapes| shapes.swap_remove(i));
            let fits = |given: &Tensor| {
                given.dtype() == port.dtype
                    && port.dims.as_ref().is_none_or(|dims| dims.len() == given.shape().len())
                    && given.bytes().len() <= INPUT_BYTES_MAX
            };
            if let Some(given) = given.filter(fits) {
                return Some(given);
            }
            let shape = declared.unwrap_or_else(|| vec![2; rng.below(4)]);
            let bytes = bytes_of(port.dtype, &shape).filter(|bytes| *bytes <= INPUT_BYTES_MAX)?;
            let fill = u8::from(rng.one_in(2));
            Some(Tensor::of_dtype(port.dtype, &shape, &vec![fill; bytes]))
        })
        .collect();
    let Some(inputs) = inputs else { return };
    let inputs: Vec<Input<'_>> = inputs.iter().map(Input::from).collect();
    let nodes = Cell::new(0);
    let cancelled = || nodes.replace(nodes.get() + 1) >= NODES_RUN_MAX;
    let mut session = Session::new(program);
    count(&reached.begun);
    if session.run(&inputs, &mut Vec::<Tensor>::new(), &cancelled).is_ok() {
        count(&reached.done);
    }
}

/// One case: what it did, and why it is none that should be.
fn case(subjects: &[Subject], operators: &[String], seed: u64, reached: &Reached) -> Result<(), String> {
    let mut rng = Rng(seed);
    let subject = &subjects[rng.below(subjects.len())];
    let mut said = Vec::new();
    let mut model = subject.model.clone();
    let mut inputs = subject.inputs.clone();
    let names: Vec<String> =
        model.graph.iter().flat_map(|graph| graph.input.iter().map(|info| info.name.clone())).collect();
    for (name, value) in names.iter().zip(&subject.inputs) {
        if let Some(graph) = &mut model.graph
            && rng.one_in(3)
        {
            change::pin(graph, name, value.clone());
            said.push(format!("{name:?} is constant"));
        }
    }
    inputs.iter_mut().zip(&names).for_each(|(input, name)| input.name.clone_from(name));
    for _ in 0..1 + rng.below(3) {
        said.push(change::change(&mut model, operators, &mut rng));
    }
    // One time in three what is fed is changed too.
    let at = rng.below(3 * inputs.len().max(1));
    if let Some(input) = inputs.get_mut(at) {
        said.push(format!("fed: {}", change::tensor_value(input, &mut rng)));
    }
    let mut bytes = model.encode_to_vec();
    if rng.one_in(16) && !bytes.is_empty() {
        for _ in 0..1 + rng.below(4) {
            let (at, byte) = (rng.below(bytes.len()), rng.next() as u8);
            bytes[at] = byte;
            said.push(format!("byte {at} is {byte}"));
        }
    }
    let bytes = Bytes::from(bytes);
    bounded(|| swallow(bytes, &subject.files, &inputs, &mut rng, reached))
        .map_err(|bad| format!("seed {seed}, {}: {}: {bad}", subject.name, said.join("; ")))
}

thread_local! {
    /// Where and why this thread's case panicked; `None` while it runs no case.
    static PANIC: RefCell<Option<String>> = const { RefCell::new(None) };
}

/// Runs something; why, if it panicked or held too much memory.
fn bounded(run: impl FnOnce()) -> Result<(), String> {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let usual = std::panic::take_hook();
        let noted = |info: &PanicHookInfo<'_>| {
            PANIC.with_borrow_mut(|panic| panic.as_mut().map(|panic| *panic = info.to_string()).is_some())
        };
        std::panic::set_hook(Box::new(move |info| {
            // The trace of a case that is repeated is of use.
            if !noted(info) || asked("ROOST_HOSTILE_SEED").is_some() {
                usual(info);
            }
        }));
    });
    PANIC.set(Some(String::new()));
    let (done, held) = memory::held_at_most(|| catch_unwind(AssertUnwindSafe(run)));
    let panic = PANIC.take().unwrap_or_default();
    match done {
        Err(_) => Err(panic),
        Ok(()) if held > HELD_BYTES_MAX => Err(format!("it held {held} bytes")),
        Ok(()) => Ok(()),
    }
}

/// A number of the environment.
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

fn check(subjects: &[Subject], cases: u64) {
    assert!(!subjects.is_empty());
    let mut operators: Vec<String> = subjects
        .iter()
        .flat_map(|subject| &subject.model.graph)
        .flat_map(|graph| graph.node.iter().map(|node| node.op_type.clone()))
        .collect();
    operators.sort_unstable();
    operators.dedup();
    let seeds = match asked("ROOST_HOSTILE_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..asked("ROOST_HOSTILE_CASES").unwrap_or(cases),
    };
    let alone = seeds.end - seeds.start == 1;
    let reached = Reached::default();
    let bad: Vec<String> =
        seeds.clone().filter_map(|seed| case(subjects, &operators, seed, &reached).err()).collect();
    println!("of {} cases: {reached:?}", seeds.end - seeds.start);
    assert!(bad.is_empty(), "{} cases went wrong:\n{}", bad.len(), bad.join("\n"));
    // Else the changes only try the importer.
    assert!(alone || reached.begun.get() * 8 > seeds.end - seeds.start, "{reached:?}");
}

/// Every model of the shared set, those with operators that the engine does not have too.
#[test]
fn any_change_of_a_model() {
    let folder = places::model("digits_v1_logreg").join("..");
    let entries = std::fs::read_dir(&folder).expect("the folder of the models can be listed");
    let mut models: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    models.retain(|path| path.join(MODEL_FILE).exists());
    models.sort();
    let name = |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let subjects: Vec<Subject> = models.iter().map(|path| read(path, &name(path))).collect();
    check(&subjects, 600);
}

/// Small models of every operator.
#[test]
fn any_change_of_an_operator_test() {
    let folder = places::conformance();
    let names = roost_native::conformance::names(&folder).expect("the folder holds tests");
    let subjects: Vec<Subject> = names.iter().map(|name| read(&folder.join(name), name)).collect();
    check(&subjects, 20_000);
}

#[test]
fn any_bytes() {
    let case = |seed: u64| {
        let mut rng = Rng(seed);
        let bytes: Vec<u8> = (0..rng.below(2_000)).map(|_| rng.next() as u8).collect();
        bounded(|| swallow(bytes.into(), &Files::new(), &[], &mut rng, &Reached::default()))
            .map_err(|bad| (seed, bad))
    };
    let bad: Vec<_> = (0..2_000).filter_map(|seed| case(seed).err()).collect();
    assert!(bad.is_empty(), "{bad:?}");
}

#[test]
fn memory_that_is_held_at_once_is_counted() {
    let (_, held) = memory::held_at_most(|| drop([vec![0_u8; 1 << 20], vec![1_u8; 1 << 20]]));
    assert!((2 << 20..3 << 20).contains(&held), "{held}");
    let (_, held) = memory::held_at_most(|| (0..4).for_each(|_| drop(vec![0_u8; 1 << 20])));
    assert!((1 << 20..2 << 20).contains(&held), "{held}");
    let huge = || bounded(|| drop(vec![0_u8; HELD_BYTES_MAX + 1]));
    assert!(huge().is_err_and(|bad| bad.contains("held")));
    assert!(bounded(|| panic!("why")).is_err_and(|bad| bad.contains("why")));
}
