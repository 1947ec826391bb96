//! Bundles on an S3 service: a real one, over a folder, on loopback.

use std::path::Path;

use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::S3ServiceBuilder;

use crate::at;
use crate::support::{Cluster, Digits, digits_folder, files, push, wait_for_stage};

const KEY: &str = "AKROOST";
const SECRET: &str = "not-a-secret";

/// Starts a service with a bucket `models`, and returns its address. It ends with the test.
async fn serve(folder: &Path) -> String {
    std::fs::create_dir(folder.join("models")).unwrap();
    let mut service = S3ServiceBuilder::new(s3s_fs::FileSystem::new(folder).unwrap());
    service.set_auth(SimpleAuth::from_single(KEY, SECRET));
    let service = service.build();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let service = service.clone();
            tokio::spawn(async move {
                let connection = Builder::new(TokioExecutor::new());
                // A client that goes away is no failure of the service.
                let _ = connection.serve_connection(TokioIo::new(socket), service).await;
            });
        }
    });
    format!("http://{address}")
}

fn config(endpoint: &str, bucket: &str) -> String {
    format!("[bundles.s3]\nbucket = \"{bucket}\"\nendpoint = \"{endpoint}\"\nprefix = \"roost\"\n")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bundles_lie_on_s3_when_the_config_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = serve(folder.path()).await;
    let variables = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", SECRET)];
    let mut cluster = Cluster::prepare(3, 1).await;
    cluster.configure(&config(&endpoint, "models"), &variables);
    cluster.spawn_all();
    let client = cluster.connect().await;
    push(&client, "digits", &digits_folder().join("v1")).await;
    wait_for_stage(&client, &at(1), 1).await;
    assert_eq!(Digits::read().right(&client).await, 418);

    let lists = |node: &str| files(&folder.path().join("models/roost/test").join(node).join("bundles"));
    let holders = ["c1", "c2", "c3"].iter().filter(|node| lists(node) == 1).count();
    assert!(holders >= 2, "a quorum holds the bundle, each its own copy");
    assert_eq!(files(&cluster.data_of("c1").join("bundles")), 0, "none lies in the data folder");

    // A coordinator that starts again finds what it held.
    cluster.kill("c1");
    cluster.restart("c1").await;
    push(&client, "digits", &digits_folder().join("v2")).await;
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_s3_store_that_cannot_be_used_stops_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let endpoint = serve(folder.path()).await;
    let variables = [("AWS_ACCESS_KEY_ID", KEY), ("AWS_SECRET_ACCESS_KEY", "another")];
    let mut cluster = Cluster::prepare(1, 0).await;
    cluster.configure(&config(&endpoint, "models"), &variables);
    cluster.spawn_all();
    let log = cluster.ended("c1").await;
    assert!(log.contains("the bundle store s3://models at http://127.0.0.1"), "{log}");
    assert!(log.contains("AWS_SECRET_ACCESS_KEY"), "{log}");
}
