//! Golden files pin the bytes of every message, one line each: its name and its bytes in hexadecimal.
//!
//! Bytes never change under a protocol number (design §10). `UPDATE_EXPECT=1 cargo test -p roost-protocol --test golden`
//! rewrites the files after a message was *added*; a line that changes is another protocol. What protocol 1 began with is
//! frozen in [`frozen`], which nothing rewrites.

use expect_test::{ExpectFile, expect_file};

mod frozen;
#[path = "../messages/mod.rs"]
mod messages;

use messages::Sample;

/// Compares samples with the file that pins them, and decodes the frozen bytes.
fn check(frozen: ExpectFile, samples: &[Sample]) {
    let line = |sample: &Sample| format!("{} {}\n", sample.name, hex::encode(&sample.bytes));
    frozen.assert_eq(&samples.iter().map(line).collect::<String>());
    for (line, sample) in frozen.data().lines().zip(samples) {
        let (name, bytes) = line.split_once(' ').expect("a line is a name and bytes");
        assert_eq!(name, sample.name);
        let bytes = hex::decode(bytes).expect("bytes are hexadecimal");
        (sample.reads_back)(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn the_bytes_of_every_message_are_pinned() {
    for (file, samples) in messages::all() {
        check(expect_file![format!("{file}.txt")], &samples);
    }
}

#[test]
fn names_are_unique() {
    let mut names: Vec<String> = messages::all().into_values().flatten().map(|sample| sample.name).collect();
    names.sort_unstable();
    for pair in names.windows(2) {
        assert_ne!(pair[0], pair[1]);
    }
}
