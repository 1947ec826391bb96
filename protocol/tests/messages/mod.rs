//! A sample of every message and of every variant in it: what the golden files pin, and what the property tests damage.
//!
//! Samples are literals without `..`, and [`variants`] lists each enum by an exhaustive match: neither a new field nor a
//! new variant compiles without a sample of it.

use std::collections::BTreeMap;
use std::fmt::Debug;

use roost_protocol::frame::{Frame, Kind, Prefix, encode_message};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub mod control;
pub mod errors;
pub mod infer;
pub mod state;
pub mod variants;

use variants::Variants;

/// Fails with what is wrong with the bytes.
pub type Decode = dyn Fn(&[u8]) -> Result<(), String>;

/// One message on the wire.
pub struct Sample {
    /// Its type and variant.
    pub name: String,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Whether bytes decode to the message that the sample was made of.
    pub reads_back: Box<Decode>,
}

/// Every sample, by the golden file that pins it.
pub fn all() -> BTreeMap<&'static str, Vec<Sample>> {
    BTreeMap::from([
        ("prefixes", prefixes()),
        ("infer", infer::samples()),
        ("infer_errors", errors::infer()),
        ("control", control::control()),
        ("control_errors", errors::control()),
        ("bundles", control::bundles()),
        ("state", state::samples()),
    ])
}

/// A cold message in its frame.
pub fn framed<T>(name: &str, kind: Kind, value: T) -> Sample
where
    T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
{
    let bytes = encode_message(kind, &value).expect("a sample is below its kind's limit");
    let reads_back = move |bytes: &[u8]| {
        let frame = Frame::parse(bytes).and_then(|frame| frame.expect(kind)).map_err(|e| e.to_string())?;
        same(&frame.message::<T>().map_err(|e| e.to_string())?, &value)
    };
    Sample { name: name.to_owned(), bytes, reads_back: Box::new(reads_back) }
}

/// What lies inside messages, without a frame.
pub fn bare<T>(name: &str, value: T) -> Sample
where
    T: Serialize + DeserializeOwned + PartialEq + Debug + 'static,
{
    let bytes = postcard::to_stdvec(&value).expect("what has a length is encoded");
    let reads_back =
        move |bytes: &[u8]| same(&postcard::from_bytes::<T>(bytes).map_err(|e| e.to_string())?, &value);
    Sample { name: name.to_owned(), bytes, reads_back: Box::new(reads_back) }
}

/// Samples of an enum, made by `sample` and named after the variants.
///
/// # Panics
/// When a variant has no sample.
pub fn each<T: Variants>(values: Vec<T>, sample: impl Fn(&str, T) -> Sample) -> Vec<Sample> {
    let mut seen: BTreeMap<&str, usize> = BTreeMap::new();
    let mut samples = Vec::with_capacity(values.len());
    for value in values {
        let count = seen.entry(value.variant()).or_default();
        *count += 1;
        let number = if *count == 1 { String::new() } else { format!("/{count}") };
        samples.push(sample(&format!("{}::{}{number}", T::TYPE, value.variant()), value));
    }
    for variant in T::ALL {
        assert!(seen.contains_key(variant), "{}::{variant} has no sample", T::TYPE);
    }
    samples
}

/// Fails with both values when they differ.
pub fn same<T: PartialEq + Debug>(actual: &T, expected: &T) -> Result<(), String> {
    if actual == expected { Ok(()) } else { Err(format!("{actual:?} was read, it should be {expected:?}")) }
}

/// The prefix of a frame of each kind, with lengths that tell their bytes apart.
fn prefixes() -> Vec<Sample> {
    each(Kind::ALL.to_vec(), |name, kind| {
        let body_bytes = if kind.limits().1 == 0 { 0 } else { 0x03_0201 };
        let prefix = Prefix { kind, header_bytes: 0xa1b2, body_bytes };
        let reads_back = move |bytes: &[u8]| {
            let bytes = bytes.try_into().map_err(|_| format!("a prefix has {} bytes", Prefix::BYTES))?;
            same(&Prefix::decode(bytes).map_err(|error| error.to_string())?, &prefix)
        };
        Sample { name: name.to_owned(), bytes: prefix.encode().to_vec(), reads_back: Box::new(reads_back) }
    })
}
