//! The folder of a development cluster: its CA's certificates, its config, and a profile for `roost`.
//!
//! Certificates are made once. The config is written at each start until there is a cluster: from then on its coordinators
//! have agreed on each other's addresses, so that other ports would be refused votes for ever.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::Path;

use roost_client::certs::{Authority, Validity};
use roost_protocol::quic::{PeerIdentity, Role};
use roost_protocol::{ClusterName, Tenant};

use super::{CLUSTER, NODES, OPERATOR, PORTS_PER_NODE};
use crate::config::ClusterConfig;
use crate::environment::production::OsClock;

/// Where the nodes listen when nobody says.
const PORT_DEFAULT: u16 = 7400;
/// How long certificates last: longer than anybody keeps a development cluster.
const CERTIFICATE_DAYS: u32 = 365;

/// Writes what is missing.
///
/// # Errors
/// The disk's; when `port` is another than that of the cluster which is there.
pub fn write(folder: &Path, port: Option<u16>) -> anyhow::Result<()> {
    let before = if folder.join("data").exists() { port_before(folder)? } else { None };
    let port = match (port, before) {
        (Some(port), Some(before)) if port != before => anyhow::bail!(
            "the cluster in {} has the ports from {before} on, and its coordinators have agreed on them; leave --port \
             out, or name another folder",
            folder.display()
        ),
        (_, Some(before)) => before,
        (port, None) => port.unwrap_or(PORT_DEFAULT),
    };
    write_certificates(&folder.join("certs"))?;
    std::fs::write(folder.join("cluster.toml"), cluster_toml(port))?;
    std::fs::write(folder.join("roost.toml"), profile_toml(port))?;
    Ok(())
}

/// The first port of the cluster whose config lies in the folder.
fn port_before(folder: &Path) -> anyhow::Result<Option<u16>> {
    let path = folder.join("cluster.toml");
    if !path.exists() {
        return Ok(None);
    }
    let cluster = ClusterConfig::read(&path)?;
    let first = cluster.nodes.first().and_then(|node| node.address.as_deref());
    Ok(first.and_then(|address| address.rsplit_once(':')).and_then(|(_, port)| port.parse().ok()))
}

fn write_certificates(certs: &Path) -> anyhow::Result<()> {
    if certs.join("ca.pem").exists() {
        return Ok(());
    }
    std::fs::create_dir_all(certs)?;
    let validity = Validity::days(&OsClock, CERTIFICATE_DAYS);
    let authority = Authority::create(ClusterName::new(CLUSTER)?, validity)?;
    let issue = |name: &str, roles: &[Role]| -> anyhow::Result<()> {
        let roles: BTreeSet<Role> = roles.iter().copied().collect();
        let identity = PeerIdentity { cluster: ClusterName::new(CLUSTER)?, roles, name: Tenant::new(name)? };
        let issued = authority.issue(&identity, validity, &[])?;
        std::fs::write(certs.join(format!("{name}.pem")), issued.certificate)?;
        Ok(write_key(&certs.join(format!("{name}.key")), &issued.key)?)
    };
    for name in NODES {
        issue(name, &[Role::Coordinator, Role::Worker])?;
    }
    issue(OPERATOR, &[Role::Operator, Role::Client])?;
    // Last, because it is what says that all are there.
    std::fs::write(certs.join("ca.pem"), authority.pem().certificate)?;
    Ok(())
}

/// Writes a file that no other user may read.
fn write_key(path: &Path, key: &str) -> io::Result<()> {
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    // What a start left that was cut short may be readable to others.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    options.open(path)?.write_all(key.as_bytes())
}

fn cluster_toml(port: u16) -> String {
    let mut text = format!("cluster = \"{CLUSTER}\"\n");
    for (name, worker) in NODES.iter().zip((port..).step_by(PORTS_PER_NODE.into())) {
        let coordinator = worker + 1;
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "\n[[node]]\nname = \"{name}\"\nroles = [\"coordinator\", \"worker\"]\naddress = \"127.0.0.1:{worker}\"\n\
             coordinator_address = \"127.0.0.1:{coordinator}\"\nzone = \"zone-{name}\"\n"
        );
    }
    text
}

fn profile_toml(port: u16) -> String {
    let ports = (port..).step_by(PORTS_PER_NODE.into()).take(NODES.len());
    let nodes: Vec<_> = ports.map(|port| format!("\"127.0.0.1:{port}\"")).collect();
    format!(
        "nodes = [{}]\nca = \"certs/ca.pem\"\ncertificate = \"certs/{OPERATOR}.pem\"\nkey = \"certs/{OPERATOR}.key\"\n",
        nodes.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dev::PORT_MAX;

    fn ports(folder: &Path) -> Vec<String> {
        let cluster = ClusterConfig::read(&folder.join("cluster.toml")).unwrap();
        let both = cluster.nodes.into_iter().flat_map(|node| [node.address, node.coordinator_address]);
        both.flatten().map(|address| address.rsplit_once(':').unwrap().1.to_owned()).collect()
    }

    #[test]
    fn ports_are_a_clusters_own_from_its_first_start_on() {
        let folder = tempfile::tempdir().unwrap();
        let (path, data) = (folder.path(), folder.path().join("data"));
        write(path, None).unwrap();
        assert_eq!(ports(path), ["7400", "7401", "7402", "7403", "7404", "7405"]);
        let certificate = std::fs::read(path.join("certs/a.pem")).unwrap();
        write(path, Some(9000)).unwrap();
        assert_eq!(ports(path)[0], "9000", "no cluster has been there yet");
        std::fs::create_dir(data).unwrap();
        write(path, None).unwrap();
        write(path, Some(9000)).unwrap();
        assert_eq!(ports(path)[5], "9005");
        let error = write(path, Some(7400)).unwrap_err().to_string();
        assert!(error.contains("has the ports from 9000 on"), "{error}");
        assert_eq!(std::fs::read(path.join("certs/a.pem")).unwrap(), certificate, "made once");
        let profile = std::fs::read_to_string(path.join("roost.toml")).unwrap();
        assert!(profile.contains(r#"["127.0.0.1:9000", "127.0.0.1:9002", "127.0.0.1:9004"]"#), "{profile}");
    }

    #[test]
    fn the_last_port_is_one() {
        let folder = tempfile::tempdir().unwrap();
        write(folder.path(), Some(PORT_MAX)).unwrap();
        assert_eq!(ports(folder.path()).last().unwrap(), "65535");
    }

    #[cfg(unix)]
    #[test]
    fn others_cannot_read_the_keys() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let certs = folder.path().join("certs");
        std::fs::create_dir(&certs).unwrap();
        std::fs::write(certs.join("a.key"), "of a start that was cut short").unwrap();
        write(folder.path(), None).unwrap();
        for name in NODES.iter().chain([&OPERATOR]) {
            let key = std::fs::metadata(certs.join(format!("{name}.key"))).unwrap();
            assert_eq!(key.permissions().mode() & 0o777, 0o600, "{name}");
        }
    }
}
