//! Classifies the held-out digits through a cluster and says how many were right, by version and by node.
//!
//! With a cluster running, its first arguments are a node's address and three PEM files:
//! ```sh
//! cargo run --release -p roost-client --example classify -- 127.0.0.1:7400 ca.pem client.pem client.key
//! ```
//! Each image has a key of its own, as a user would. While a canary runs, its share of the keys gets the
//! other version, and the same keys get it again the next time.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, bail};
use roost_client::{Client, ClientConfig, CredentialsSource, Tensor, npy};

const DIGITS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/models/digits");
/// Pixels of one image: 1 × 8 × 8.
const PIXELS: usize = 64;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seed, ca, certificate, key] = &arguments[..] else {
        bail!("usage: classify HOST:PORT CA CERTIFICATE KEY")
    };
    let (ca, certificate, key) = (ca.into(), certificate.into(), key.into());
    let credentials = CredentialsSource::Files { ca, certificate, key };
    let client = Client::connect(ClientConfig::new([seed], credentials)).await?;

    let (images, labels) = (read("heldout_images.npy")?, read("heldout_labels.npy")?);
    let (images, labels) = (images.elements::<f32>()?.chunks_exact(PIXELS), labels.elements::<i64>()?);
    // By version and node: images, and those of them that were named right.
    let mut counts: BTreeMap<(u32, String), (u32, u32)> = BTreeMap::new();
    for (i, (image, label)) in images.zip(labels).enumerate() {
        let image = Tensor::from_elements(&[1, 1, 8, 8], image.to_vec())?;
        let request = client.infer("digits").key(format!("user-{i}")).input("image", image);
        let response = request.send().await.with_context(|| format!("image {i}"))?;
        let named = &response.labels(1)?[0][0].label;
        let (all, right) = counts.entry((response.version.0, response.node.to_string())).or_default();
        *all += 1;
        *right += u32::from(*named == label.to_string());
    }
    for ((version, node), (all, right)) in &counts {
        println!("digits@{version} on {node}: {right} of {all} right");
    }
    client.close().await;
    Ok(())
}

fn read(file: &str) -> anyhow::Result<Tensor> {
    let path = Path::new(DIGITS).join(file);
    let bytes = std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(npy::read(&bytes)?)
}
