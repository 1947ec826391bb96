//! The command line `roost` as a process, and reading what it prints for people.

use std::fs::File;
use std::io::{Read as _, Seek as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tokio::time::Instant;

use crate::support::{Cluster, PATIENCE, ended};

/// Whoever types commands in a folder, which is home and present folder at once.
pub struct Roost {
    folder: PathBuf,
}

/// What a command led to.
#[derive(Debug)]
pub struct Said {
    /// Its exit code.
    pub code: Option<i32>,
    /// What it printed.
    pub out: String,
    /// What it printed on standard error.
    pub err: String,
}

impl Roost {
    /// In a folder that may have no profile yet.
    pub fn at(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// As `anna`, beside a cluster's config.
    pub fn of(cluster: &Cluster) -> Self {
        let roost = Self::at(cluster.folder());
        roost.write("roost.toml", profile(cluster, "anna"));
        roost
    }

    /// Writes a file into the folder, below a subfolder if the name says so.
    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.folder.join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }

    /// Runs a command.
    pub async fn run(&self, line: &str) -> Said {
        let (mut out, mut err) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
        let mut child = Command::new(binary())
            .args(line.split_whitespace())
            .current_dir(&self.folder)
            .env_remove("ROOST_PROFILE")
            .env_remove("ROOST_LOG")
            .env_remove("XDG_CONFIG_HOME")
            .env("HOME", &self.folder)
            .stdin(Stdio::null())
            .stdout(out.try_clone().unwrap())
            .stderr(err.try_clone().unwrap())
            .spawn()
            .unwrap();
        let code = ended(&mut child, line).await.code();
        Said { code, out: text(&mut out), err: text(&mut err) }
    }

    /// Runs a command that must do what it is told, and gives what it prints.
    pub async fn ok(&self, line: &str) -> String {
        let said = self.run(line).await;
        assert!(said.code == Some(0) && said.err.is_empty(), "roost {line}: {said:#?}");
        said.out
    }

    /// As [`Roost::ok`], for programs.
    pub async fn json(&self, line: &str) -> serde_json::Value {
        let out = self.ok(&format!("{line} --output json")).await;
        serde_json::from_str(&out).unwrap_or_else(|error| panic!("roost {line}: {error}\n{out}"))
    }

    /// Runs a command that must fail, and gives its exit code and what it says on standard error.
    pub async fn refused(&self, line: &str) -> (Option<i32>, String) {
        let said = self.run(line).await;
        assert!(said.code != Some(0) && said.out.is_empty(), "roost {line}: {said:#?}");
        (said.code, said.err)
    }

    /// Runs a command again and again until what it prints is as expected.
    pub async fn until(&self, line: &str, holds: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let said = self.run(line).await;
            if said.code == Some(0) && holds(&said.out) {
                return said.out;
            }
            assert!(Instant::now() < deadline, "roost {line} never shows what is expected: {said:#?}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
}

/// The profile of somebody with a certificate of the cluster.
pub fn profile(cluster: &Cluster, name: &str) -> String {
    format!(
        "nodes = {:?}\nca = \"certs/ca.pem\"\ncertificate = \"certs/{name}.pem\"\nkey = \"certs/{name}.key\"\n",
        cluster.addresses()
    )
}

/// The lines of tables that begin with `first`, each as its cells. Empty cells are left out.
pub fn rows<'a>(text: &'a str, first: &str) -> Vec<Vec<&'a str>> {
    let cells = text.lines().map(|line| line.split("  ").map(str::trim).filter(|cell| !cell.is_empty()));
    cells.map(Iterator::collect).filter(|cells: &Vec<&str>| cells.first() == Some(&first)).collect()
}

/// The nodes that `roost cluster status` shows at a stage of a version.
pub fn nodes_at<'a>(status: &'a str, version: &str, stage: &str) -> Vec<&'a str> {
    let at = rows(status, version).into_iter().filter(|cells| cells[3] == stage);
    at.map(|cells| cells[1]).collect()
}

/// Cargo tells a test only of its own package's binaries, but puts those of a whole workspace into one folder.
fn binary() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_roost-node")).with_file_name("roost");
    assert!(
        path.is_file(),
        "{} is missing: `cargo test --workspace` makes it, and so does `cargo build -p roost-client --bin roost` \
         ahead of the tests of this package alone (with the same --profile, --release and --target as they)",
        path.display()
    );
    path
}

fn text(file: &mut File) -> String {
    let mut text = String::new();
    file.rewind().unwrap();
    file.read_to_string(&mut text).unwrap();
    text
}
