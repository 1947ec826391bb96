//! `roost-node dev` as a user meets it: a process in a terminal, started twice on one folder, and the commands of `roost`
//! that it says to try.
#![cfg(all(feature = "dev", feature = "native"))]
#![expect(clippy::unwrap_used, reason = "what the tests share is test code too")]

use std::fs::File;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use tokio::time::Instant;

/// Nothing that a test waits for takes half as long, even on busy cores.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between two looks at a process.
const LOOK: Duration = Duration::from_millis(50);

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn dev(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_roost-node"));
    command.arg("dev").args(arguments).current_dir(repository()).stdin(Stdio::null()).env_remove("ROOST_LOG");
    // The models of the showing need no library.
    command.env("ORT_DYLIB_PATH", "/nowhere/libonnxruntime.so");
    command
}

/// A process whose output goes to a file. Dropping it kills it.
struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    fn start(mut command: Command, log: &Path) -> Self {
        let file = File::create(log).unwrap();
        let child = command.stdout(file.try_clone().unwrap()).stderr(file).spawn().unwrap();
        Self { child, log: log.to_owned() }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap()
    }

    /// Waits until it has printed something.
    async fn until(&mut self, text: &str) {
        let deadline = Instant::now() + PATIENCE;
        while !self.text().contains(text) {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "no {text:?}: {ended:?}\n{}", self.text());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Waits until it has ended.
    async fn ended(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "it does not end:\n{}", self.text());
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Runs to its end, which must be a good one, and gives what it printed.
    async fn done(mut self) -> String {
        let status = self.ended().await;
        assert!(status.success(), "{status}:\n{}", self.text());
        self.text()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It has ended, unless the test failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The first of six ports that were free a moment ago.
fn free_ports() -> u16 {
    let offset = (std::process::id() % 1_000) as u16 * 6;
    let is_free = |first: &u16| (0..6).all(|i| UdpSocket::bind(("127.0.0.1", first + i)).is_ok());
    (20_000 + offset..30_000).step_by(6).find(is_free).unwrap()
}

/// The lines must come in this order, with others between them.
fn check_lines(text: &str, expected: &[&str]) {
    let mut rest = text;
    for expected in expected {
        let at = rest.find(expected).unwrap_or_else(|| panic!("no {expected:?} where it should be:\n{text}"));
        rest = &rest[at + expected.len()..];
    }
}

/// Cargo tells a test only of its own package's binaries, but puts those of a whole workspace into one folder.
fn roost() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_roost-node")).with_file_name("roost");
    assert!(path.is_file(), "{} is missing: `cargo build -p roost-client --bin roost`", path.display());
    path
}

/// Runs a line that `dev` printed until it succeeds: whoever types it again a moment later does no other.
async fn try_line(line: &str, folder: &str) {
    let arguments = line.strip_prefix("roost ").unwrap();
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut command = Command::new(roost());
        command.args(arguments.split_whitespace()).current_dir(repository());
        let profile = format!("{folder}/roost.toml");
        let Output { status, stdout, stderr } = command.env("ROOST_PROFILE", profile).output().unwrap();
        if status.success() {
            assert!(!stdout.is_empty(), "{line} prints nothing");
            return;
        }
        let said = String::from_utf8_lossy(&stderr).into_owned();
        assert!(status.code() == Some(1) && Instant::now() < deadline, "{line}: {status}: {said}");
        tokio::time::sleep(LOOK).await;
    }
}

#[tokio::test]
async fn a_cluster_is_shown_once_and_kept() {
    let temporary = tempfile::tempdir().unwrap();
    let folder = temporary.path().join("cluster").to_str().unwrap().to_owned();
    let log = |name: &str| temporary.path().join(name);
    let port = free_ports().to_string();

    let first = dev(&["--demo", "--data", &folder, "--port", &port]);
    let first = Process::start(first, &log("first")).done().await;
    check_lines(
        &first,
        &[
            "▸ starts three nodes in this process",
            "    cluster ",
            "workers a, b, c have joined",
            "▸ pushes a logistic regression, and then a convolutional net",
            "    digits@1 is held by a quorum of coordinators and takes all traffic, as the first one",
            "    digits@2 is held by a quorum of coordinators and takes none yet",
            "    all traffic on digits@1: 418 of 450 held-out digits right (92.9 %)",
            "▸ starts a canary: roost rollout start digits@2 --steps 20%",
            "    20% asked for, ",
            "% of the users on digits@2: ",
            "    450 of 450 users got the same version when they came again",
            "▸ promotes: roost rollout promote digits",
            "    all traffic on digits@2: 444 of 450 held-out digits right (98.7 %)",
            "▸ changes its mind: roost rollout undo digits",
            "    back on digits@1 in one switch: 418 of 450",
            "▸ and forward again: roost rollout start digits@2 --steps 100%, roost rollout promote digits",
            "    on digits@2 again: 444 of 450",
        ],
    );

    // Without --port: the cluster has its ports.
    let mut second = Process::start(dev(&["--data", &folder]), &log("second"));
    second.until("roost rollout history digits").await;
    let text = second.text();
    check_lines(
        &text,
        &[
            "workers a, b, c have joined",
            "▸ finds what an earlier start has pushed",
            "    digits@1 is v1",
            "    digits@2 is v2",
            "▸ leaves the traffic as it was left; the showing is for a new --data folder",
            "    all traffic on digits@2: 444 of 450 held-out digits right (98.7 %)",
            "The cluster keeps serving; Ctrl-C ends it.",
            &format!("export ROOST_PROFILE={folder}/roost.toml"),
        ],
    );
    let lines: Vec<_> = text.lines().map(str::trim).filter(|line| line.starts_with("roost ")).collect();
    assert!(lines.len() >= 7, "{lines:?}");
    for line in lines {
        try_line(line, &folder).await;
    }
    let told = Command::new("kill").args(["-INT", &second.child.id().to_string()]).status().unwrap();
    assert!(told.success());
    let text = second.done().await;
    // A warning of what stops may come behind it.
    assert!(text.lines().any(|line| line == "stops"), "{text}");

    let other_port = dev(&["--demo", "--data", &folder, "--port", "7400"]).output().unwrap();
    let said = String::from_utf8_lossy(&other_port.stderr).into_owned();
    assert_eq!(other_port.status.code(), Some(1), "{said}");
    assert!(said.contains(&format!("has the ports from {port} on")), "{said}");
}

#[test]
fn what_cannot_start_says_why() {
    for port in ["0", "65531", "65535", "x"] {
        let refused = dev(&["--demo", "--port", port]).output().unwrap();
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains("--port"), "{said}");
    }
}
