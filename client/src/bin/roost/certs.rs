//! `roost certs`: a cluster's own CA, and certificates from it. Needs no cluster that runs, and no profile.
//!
//! Keys are written so that only their owner can read them. Nothing is ever overwritten: a lost CA key
//! cannot be made again, and a replaced one makes every certificate of the cluster worthless.

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::builder::RangedI64ValueParser;
use clap::{Args, Subcommand};
use roost_client::certs::{Authority, Pem, Validity};
use roost_client::client::SystemClock;
use roost_protocol::quic::{PeerIdentity, Role, WallClock};
use roost_protocol::{ClusterName, Tenant};
use serde::Serialize;

use crate::output::{Output, Report};

/// The folder where a cluster config and a profile expect certificates unless they say otherwise.
const FOLDER: &str = "certs";
/// Ten years: replacing a CA means new certificates everywhere, so it should outlive the machines.
const CA_DAYS: u32 = 3_650;
/// A year: long enough not to be a chore, short enough that a lost key is not a worry for ever.
const CERTIFICATE_DAYS: u32 = 365;
/// A century, beyond which a number is a typing error.
const DAYS_MAX: i64 = 36_500;

/// What to do with certificates.
#[derive(Debug, Subcommand)]
pub enum CertsCommand {
    /// Makes a cluster's CA: ca.pem, which everybody needs, and ca.key, which nobody but you should have
    #[command(after_help = "\
Example:
  roost certs init --cluster demo")]
    Init(InitArguments),
    /// Issues a certificate: NAME.pem and NAME.key, beside the CA
    #[command(after_help = "\
Roles:
  coordinator   takes part in Raft
  worker        hosts versions
  gateway       speaks for other tenants
  client        asks for inference and reads the state of the cluster
  operator      changes versions, traffic and members

Examples:
  roost certs issue a --roles coordinator,worker     for the node named a
  roost certs issue anna --roles operator,client     for a person")]
    Issue(IssueArguments),
}

/// What a CA is made of.
#[derive(Debug, Args)]
pub struct InitArguments {
    /// The cluster's name, as in its config
    #[arg(long, value_name = "NAME")]
    cluster: ClusterName,
    /// Where to write ca.pem and ca.key; made when there is none
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    into: PathBuf,
    /// How long the CA is valid
    #[arg(long, value_name = "N", default_value_t = CA_DAYS, value_parser = days())]
    days: u32,
}

/// What a certificate is made of.
#[derive(Debug, Args)]
pub struct IssueArguments {
    /// A node's name as in the cluster config, or who asks: a person, a service
    name: Tenant,
    /// What its bearer may be and do, separated by commas
    #[arg(long, required = true, value_delimiter = ',', value_name = "ROLES")]
    roles: Vec<Role>,
    /// The folder with ca.pem and ca.key
    #[arg(long, value_name = "FOLDER", default_value = FOLDER)]
    ca: PathBuf,
    /// Where to write NAME.pem and NAME.key [default: the CA's folder]
    #[arg(long, value_name = "FOLDER")]
    into: Option<PathBuf>,
    /// How long the certificate is valid
    #[arg(long, value_name = "N", default_value_t = CERTIFICATE_DAYS, value_parser = days())]
    days: u32,
}

fn days() -> RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=DAYS_MAX)
}

/// The files that were written.
#[derive(Debug, Serialize)]
struct Written {
    certificate: PathBuf,
    key: PathBuf,
    #[serde(skip)]
    next: String,
}

impl Report for Written {
    fn text(&self) -> String {
        format!("wrote {} and {}\n{}\n", self.certificate.display(), self.key.display(), self.next)
    }
}

/// Carries the command out.
///
/// # Errors
/// When a file is there already or cannot be written, or the CA is none.
pub fn run(command: &CertsCommand, output: Output) -> anyhow::Result<()> {
    let written = match command {
        CertsCommand::Init(arguments) => init(arguments, &SystemClock)?,
        CertsCommand::Issue(arguments) => issue(arguments, &SystemClock)?,
    };
    Ok(output.print(&written)?)
}

fn init(arguments: &InitArguments, clock: &dyn WallClock) -> anyhow::Result<Written> {
    let InitArguments { cluster, into, days } = arguments;
    let authority = Authority::create(cluster.clone(), Validity::days(clock, *days))?;
    std::fs::create_dir_all(into).with_context(|| format!("cannot make the folder {}", into.display()))?;
    let (certificate, key) = write(into, "ca", &authority.pem())?;
    let next = format!(
        "Keep {} to yourself. Next, a certificate for each node and for yourself:\n  \
         roost certs issue NODE --roles coordinator,worker{ca}\n  \
         roost certs issue YOU --roles operator,client{ca}",
        key.display(),
        ca = if into == Path::new(FOLDER) { String::new() } else { format!(" --ca {}", into.display()) },
    );
    Ok(Written { certificate, key, next })
}

fn issue(arguments: &IssueArguments, clock: &dyn WallClock) -> anyhow::Result<Written> {
    let IssueArguments { name, roles, ca, into, days } = arguments;
    anyhow::ensure!(name.as_str() != "ca", "the name ca is the CA's own; choose another");
    let read = |file: &str| {
        let path = ca.join(file);
        std::fs::read_to_string(&path).with_context(|| {
            format!(
                "cannot read {}; --ca names the CA's folder, `roost certs init` makes one",
                path.display()
            )
        })
    };
    let authority = Authority::load(&read("ca.pem")?, &read("ca.key")?)
        .with_context(|| format!("ca.pem and ca.key in {} are no CA of a cluster", ca.display()))?;
    let roles: BTreeSet<Role> = roles.iter().copied().collect();
    let is_node = roles.iter().any(|role| role.is_node());
    let identity = PeerIdentity { cluster: authority.cluster().clone(), roles, name: name.clone() };
    let pem = authority.issue(&identity, Validity::days(clock, *days), &[])?;
    let into = into.as_ref().unwrap_or(ca);
    std::fs::create_dir_all(into).with_context(|| format!("cannot make the folder {}", into.display()))?;
    let (certificate, key) = write(into, name.as_str(), &pem)?;
    let authority = ca.join("ca.pem");
    let next = if is_node {
        format!("The node needs both, and {}.", authority.display())
    } else {
        format!(
            "A profile (roost.toml) that uses it; its paths are relative to its folder:\n  \
             nodes = [\"HOST:PORT\"]\n  ca = {:?}\n  certificate = {:?}\n  key = {:?}",
            authority.display().to_string(),
            certificate.display().to_string(),
            key.display().to_string()
        )
    };
    Ok(Written { certificate, key, next })
}

/// Writes `NAME.pem` and `NAME.key`, or neither.
fn write(folder: &Path, name: &str, pem: &Pem) -> anyhow::Result<(PathBuf, PathBuf)> {
    let (certificate, key) = (folder.join(format!("{name}.pem")), folder.join(format!("{name}.key")));
    write_new(&key, &pem.key, 0o600)?;
    if let Err(error) = write_new(&certificate, &pem.certificate, 0o644) {
        // This process made it a moment ago, and without its certificate it is of no use.
        let _ = std::fs::remove_file(&key);
        return Err(error);
    }
    Ok((certificate, key))
}

fn write_new(path: &Path, text: &str, mode: u32) -> anyhow::Result<()> {
    let written = create_new(path, mode).and_then(|mut file| {
        file.write_all(text.as_bytes())?;
        file.sync_all()
    });
    written.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => anyhow::anyhow!(
            "{} is there already and is not overwritten; move it away, or write elsewhere by --into",
            path.display()
        ),
        _ => anyhow::Error::new(error).context(format!("cannot write {}", path.display())),
    })
}

#[cfg(unix)]
fn create_new(path: &Path, mode: u32) -> io::Result<File> {
    use std::os::unix::fs::OpenOptionsExt as _;
    OpenOptions::new().write(true).create_new(true).mode(mode).open(path)
}

/// Elsewhere the folder's own rules say who may read.
#[cfg(not(unix))]
fn create_new(path: &Path, _mode: u32) -> io::Result<File> {
    OpenOptions::new().write(true).create_new(true).open(path)
}
