//! A store of bundles on an S3-compatible service.
//!
//! Found out when a node starts, not at the first push: whether the bucket is there and may be used.

use std::sync::Arc;

use object_store::aws::AmazonS3Builder;
use object_store::path::Path;
use object_store::prefix::PrefixStore;
use object_store::{ObjectStore, ObjectStoreExt, PutPayload};
use roost_protocol::error::reason;

use crate::config::S3Config;

/// What is written and read back when the store is opened. It stays, and says whose folder it is.
const MARK: &str = "roost.txt";

/// Why an S3 store cannot be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "the bundle store s3://{bucket} at {endpoint} cannot be used: {reason}; [bundles.s3] names the bucket, endpoint and \
     region, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY the credentials"
)]
pub struct S3Error {
    bucket: String,
    endpoint: String,
    reason: String,
}

/// Opens the part of the store under `own`, after writing and reading there.
///
/// # Errors
/// [`S3Error`] when the service is not reached, or refuses.
pub async fn open(config: &S3Config, own: &str) -> Result<Arc<dyn ObjectStore>, S3Error> {
    let refused = |error: object_store::Error| S3Error {
        bucket: config.bucket.clone(),
        endpoint: config.endpoint.clone().unwrap_or_else(|| format!("Amazon's {}", config.region)),
        reason: reason(error),
    };
    // The client's TLS takes the process's default; an earlier one is as good.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut builder = AmazonS3Builder::from_env()
        .with_bucket_name(&config.bucket)
        .with_region(&config.region)
        .with_allow_http(config.endpoint.as_ref().is_some_and(|endpoint| endpoint.starts_with("http://")));
    if let Some(endpoint) = &config.endpoint {
        builder = builder.with_endpoint(endpoint);
    }
    let store = builder.build().map_err(refused)?;
    let store = PrefixStore::new(store, format!("{}/{own}", config.prefix));
    let (mark, text) = (Path::from(MARK), format!("bundles of a Roost coordinator: {own}\n"));
    store.put(&mark, PutPayload::from(text)).await.map_err(refused)?;
    store.get(&mark).await.map_err(refused)?;
    Ok(Arc::new(store))
}
