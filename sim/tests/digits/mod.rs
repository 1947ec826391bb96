//! The model of the stories, and its versions.

use bytes::Bytes;
use roost_client::bundle::LocalBundle;
use roost_protocol::ModelName;
use roost_protocol::bundle::{MANIFEST_FILE, MODEL_FILE};
use roost_sim::engine::model;

/// The model's name.
pub fn digits() -> ModelName {
    ModelName::new("digits").unwrap()
}

/// The bundle of the model of that number.
pub fn bundle(number: u64) -> LocalBundle {
    let manifest = "batch_axes = { image = 0, probs = 0 }\n";
    let files = [(MODEL_FILE, Bytes::from(model(number))), (MANIFEST_FILE, Bytes::from(manifest))];
    LocalBundle::from_bytes(files.map(|(name, bytes)| (name.to_owned(), bytes)).into()).unwrap()
}
