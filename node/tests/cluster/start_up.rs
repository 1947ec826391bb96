//! What keeps a node from starting is told on standard error, before anything else happens.

use std::net::UdpSocket;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{Cluster, ended};

/// Starts a node that must not start; what it says.
async fn refused(folder: &Path, config: &str, name: &str) -> String {
    let path = folder.join("refused.toml");
    std::fs::write(&path, config).unwrap();
    let said = folder.join("refused.log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_roost-node"))
        .arg("--config")
        .arg(path)
        .args(["--name", name])
        .current_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(".."))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(std::fs::File::create(&said).unwrap())
        .spawn()
        .unwrap();
    let status = ended(&mut child, "a node that cannot start").await;
    let said = std::fs::read_to_string(said).unwrap();
    assert_eq!(status.code(), Some(1), "{said}");
    said
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_node_from_starting_is_told() {
    let cluster = Cluster::prepare(1, 1).await;
    cluster.issue_certificates();
    let folder = cluster.folder();
    let good = std::fs::read_to_string(folder.join("cluster.toml")).unwrap();
    let [_, worker] = cluster.addresses() else { panic!("two nodes") };
    let check = async |config: &str, name: &str, expected: &[&str]| {
        let said = refused(folder, config, name).await;
        assert!(said.contains("roost-node: "), "{said}");
        for part in expected {
            assert_eq!(said.matches(part).count(), 1, "{part:?} is to be told once: {said}");
        }
    };
    check(&good.replace("roles = [\"worker\"]", "role = \"worker\""), "w1", &["unknown field `role`"]).await;
    check(&good.replace("name = \"w1\"", "name = \"c1\""), "c1", &["two nodes are named c1"]).await;
    let without_role = good.replace("roles = [\"worker\"]", "roles = []");
    check(&without_role, "w1", &["node w1 has no role; give it roles = "]).await;
    let without_address = good.replace(&format!("address = \"{worker}\"\n"), "");
    check(&without_address, "w1", &["node w1 is a worker and has no address; say where"]).await;
    check(&good, "w9", &["no node named \"w9\"; its nodes are c1, w1"]).await;
    check("cluster = ", "w1", &["the cluster config: "]).await;
    let elsewhere = format!("{good}[tls]\nca = \"nowhere/ca.pem\"\n");
    check(&elsewhere, "w1", &["cannot read ", "nowhere/ca.pem; `roost certs init`"]).await;
    let borrowed = format!("{good}[tls]\ncertificate = \"certs/c1.pem\"\nkey = \"certs/c1.key\"\n");
    let needed = ["roost://test/coordinator/c1", "node w1 of cluster test needs the roles worker"];
    check(&borrowed, "w1", &needed).await;

    let taken = UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let listening = format!("cannot listen on {address}: ");
    check(&good.replace(worker, &address), "w1", &[&listening, "in use"]).await;
}
