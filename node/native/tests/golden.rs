//! The bits of the digits models' answers, pinned: the same on every instruction set and architecture, and
//! from one release to the next. In a test of its own, so that it can be built for another processor with
//! little else.
//!
//! A change of a kernel's order or polynomial changes them. Then all nodes of a cluster must change together:
//! say so in the release notes, and write the new ones by `UPDATE_EXPECT=1 cargo test -p roost-native --test
//! golden`.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use expect_test::expect_file;
use roost_kernels::Isa;
use roost_native::compare::digest;
use roost_native::conformance::read_bundle;
use roost_native::program::Options;
use roost_native::{Input, Limits, Model, Program, Session, Tensor};

/// Those of the repository, then those of the larger test models.
const MODELS: [&str; 8] = [
    "v1",
    "v2",
    "digits_v1_logreg",
    "digits_v1_mlp",
    "digits_v2_conv",
    "digits_v2_int8_qdq",
    "digits_v2_int8_qdq_s8s8",
    "digits_lstm",
];

fn folder(name: &str) -> PathBuf {
    let repository = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let own = repository.join("deploy/models/digits").join(name);
    if own.is_dir() {
        return own;
    }
    let beside = || repository.join("../shared/models");
    let folder = std::env::var_os("ROOST_TEST_MODELS").map_or_else(beside, PathBuf::from).join(name);
    let there = folder.is_dir();
    assert!(there, "{} is no folder: set ROOST_TEST_MODELS to the one of the test models", folder.display());
    folder
}

/// Images of numbers between 0 and 1, the same for equal counts.
fn images(count: usize) -> Tensor {
    let mut state = 0x9e37_79b9_u32;
    let next = |_| {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 24) as f32
    };
    Tensor::of(&[count, 1, 8, 8], &(0..count * 64).map(next).collect::<Vec<f32>>())
}

/// A line per model and batch, with the SHA-256 of all output bytes.
fn digests(isa: Isa) -> String {
    let mut lines = String::new();
    for name in MODELS {
        let files = read_bundle(&folder(name)).expect("the model's files can be read");
        let model = Model::import(&files, Limits::default()).expect("the model can be imported");
        let mut session =
            Session::new(Program::compile(model, Options { isa: Some(isa) }).expect("the model compiles"));
        for batch in [1, 8, 13] {
            let mut found: Vec<Tensor> = Vec::new();
            let images = images(batch);
            session.run(&[Input::from(&images)], &mut found, &|| false).expect("it runs");
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{name:24} {batch:2}  {}", digest(found.iter().map(Tensor::bytes)));
        }
    }
    lines
}

#[test]
fn answers_have_the_same_bits_everywhere() {
    let best = digests(Isa::best());
    for isa in Isa::available() {
        assert_eq!(digests(*isa), best, "{isa}");
    }
    expect_file!["data/golden.txt"].assert_eq(&best);
}
