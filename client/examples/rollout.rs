//! Leads a model's traffic to another version: starts a canary, watches its share, promotes it.
//!
//! With a cluster running that has both versions of `digits`, and an operator's certificate:
//! ```sh
//! cargo run --release -p roost-client --example rollout -- 127.0.0.1:7400 ca.pem operator.pem operator.key digits@2
//! ```

use std::time::Duration;

use anyhow::bail;
use roost_client::{Client, ClientConfig, CredentialsSource, ModelVersion, Tensor};
use roost_protocol::messages::control::RolloutState;

/// Keys that are asked for to see the share.
const KEYS: u32 = 500;

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [seed, ca, certificate, key, target] = &arguments[..] else {
        bail!("usage: rollout HOST:PORT CA CERTIFICATE KEY MODEL@VERSION");
    };
    let target: ModelVersion = target.parse()?;
    let (ca, certificate, key) = (ca.into(), certificate.into(), key.into());
    let credentials = CredentialsSource::Files { ca, certificate, key };
    let client = Client::connect(ClientConfig::new([seed], credentials)).await?;
    let control = client.control();

    println!("share on {target} before: {}", share(&client, &target).await?);
    control.start_rollout(target.clone(), "20%".parse()?).await?;
    // The canary takes traffic once its replicas are ready.
    loop {
        match control.rollout(&target.model).await?.rollout.map(|rollout| rollout.state) {
            Some(RolloutState::Running) => break,
            Some(RolloutState::Preparing) => tokio::time::sleep(Duration::from_millis(200)).await,
            Some(RolloutState::Paused { reason }) => bail!("the rollout is paused: {reason}"),
            None => bail!("the rollout is over; `roost rollout history` says why"),
        }
    }
    println!("share on {target} at 20 %: {}", share(&client, &target).await?);
    control.promote(&target.model).await?;
    println!("share on {target} after its promotion: {}", share(&client, &target).await?);
    client.close().await;
    Ok(())
}

/// The share of keys that the target answers.
async fn share(client: &Client, target: &ModelVersion) -> anyhow::Result<String> {
    let mut on_target = 0;
    for i in 0..KEYS {
        let image = Tensor::from_elements(&[1, 1, 8, 8], vec![0f32; 64])?;
        let request = client.infer(target.model.clone()).key(format!("user-{i}")).input("image", image);
        on_target += u32::from(request.send().await?.version == target.version);
    }
    Ok(format!("{on_target} of {KEYS} keys"))
}
