//! The command line `roost` as a process, as far as it goes without a cluster: its help, its errors, its
//! certificates.

#![expect(clippy::unwrap_used, reason = "the functions that tests share fail them")]

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::Arc;

use expect_test::{Expect, expect, expect_file};
use roost_client::client::SystemClock;
use roost_protocol::quic::Credentials;

/// Runs `roost` in a folder that is home and present folder at once, without what the environment says
/// otherwise.
fn roost(folder: &Path, line: &str) -> Output {
    Command::new(env!("CARGO_BIN_EXE_roost"))
        .args(line.split_whitespace())
        .current_dir(folder)
        .env_remove("ROOST_PROFILE")
        .env_remove("ROOST_LOG")
        .env_remove("XDG_CONFIG_HOME")
        .env("HOME", folder)
        .output()
        .unwrap()
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

/// The exit code and what is said on standard error, with the folder's name left out.
fn failure(folder: &Path, line: &str) -> String {
    let output = roost(folder, line);
    let said = String::from_utf8(output.stderr).unwrap().replace(&folder.display().to_string(), "FOLDER");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "{line}");
    format!("{}\n{said}", output.status.code().unwrap())
}

fn success(folder: &Path, line: &str) -> String {
    let output = roost(folder, line);
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{line}: {said}");
    String::from_utf8(output.stdout).unwrap()
}

fn check_failure(folder: &Path, line: &str, expected: Expect) {
    expected.assert_eq(&failure(folder, line));
}

#[test]
fn help_is_pinned() {
    let folder = folder();
    let lines = [
        "--help",
        "push --help",
        "models --help",
        "versions --help",
        "versions retain --help",
        "rollout --help",
        "rollout start --help",
        "rollout status --help",
        "rollout promote --help",
        "rollout abort --help",
        "rollout undo --help",
        "rollout history --help",
        "label --help",
        "label set --help",
        "label remove --help",
        "infer --help",
        "cluster --help",
        "cluster status --help",
        "cluster members --help",
        "cluster members list --help",
        "cluster members add --help",
        "cluster members promote --help",
        "cluster members remove --help",
        "cluster members replace --help",
        "cluster members transfer-leader --help",
        "certs --help",
        "certs init --help",
        "certs issue --help",
    ];
    let page = |line: &str| format!("$ roost {line}\n{}\n", success(folder.path(), line));
    expect_file!["cli/help.txt"].assert_eq(&lines.map(page).concat());
}

#[test]
fn without_a_profile_it_says_how_to_give_one() {
    let folder = folder();
    check_failure(
        folder.path(),
        "models",
        expect![[r#"
        2
        roost: no profile says which cluster and as whom; looked for ./roost.toml and FOLDER/.config/roost/roost.toml
          name one with --profile FILE or ROOST_PROFILE; `roost help` shows what is in it
    "#]],
    );
    check_failure(
        folder.path(),
        "models --profile missing.toml",
        expect![[r#"
        2
        roost: cannot read the profile missing.toml: No such file or directory (os error 2)
          --profile or ROOST_PROFILE names it; is the path right?
    "#]],
    );
}

#[test]
fn a_bad_profile_says_what_is_wrong() {
    let folder = folder();
    std::fs::write(folder.path().join("roost.toml"), "nodes = [\"a:1\"]\ncolour = 1\n").unwrap();
    check_failure(
        folder.path(),
        "models",
        expect![[r#"
        2
        roost: the profile ./roost.toml: TOML parse error at line 2, column 1
          |
        2 | colour = 1
          | ^^^^^^
        unknown field `colour`, expected one of `nodes`, `ca`, `certificate`, `key`
          a profile has the keys nodes, ca, certificate and key; `roost help` shows one
    "#]],
    );
    let missing = "nodes = [\"127.0.0.1:1\"]\nca = \"ca.pem\"\ncertificate = \"a.pem\"\nkey = \"a.key\"\n";
    std::fs::write(folder.path().join("roost.toml"), missing).unwrap();
    check_failure(
        folder.path(),
        "models",
        expect![[r#"
        1
        roost: cannot read ./ca.pem: No such file or directory (os error 2)
          ca, certificate and key in the profile name PEM files; `roost certs` makes them
    "#]],
    );
}

#[test]
fn a_bad_line_says_what_is_wrong() {
    let folder = folder();
    check_failure(
        folder.path(),
        "rollout start digits@2 --steps 5%,25%,100%",
        expect![[r#"
            2
            error: invalid value '5%,25%,100%' for '--steps <SHARE>': Roost does not take 3 steps by itself yet: give the first alone, as in --steps 5%; look at `roost rollout status`, then promote or abort

            For more information, try '--help'.
        "#]],
    );
    check_failure(
        folder.path(),
        "push Digits folder",
        expect![[r#"
        2
        error: invalid value 'Digits' for '<MODEL>': a model name is made of a-z, 0-9, '-', '_' and '.', and starts with a letter or a digit; "Digits" does not

        For more information, try '--help'.
    "#]],
    );
    check_failure(
        folder.path(),
        "infer digits",
        expect![[r#"
            2
            error: the following required arguments were not provided:
              <--input <NAME[:TYPE]=FILE>|--image <FILE>...>

            Usage: roost infer <--input <NAME[:TYPE]=FILE>|--image <FILE>...> <TARGET>

            For more information, try '--help'.
        "#]],
    );
    let output =
        Command::new(env!("CARGO_BIN_EXE_roost")).arg("models").env("ROOST_LOG", "=,=").output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(
        String::from_utf8(output.stderr)
            .unwrap()
            .starts_with("roost: ROOST_LOG is \"=,=\", which is no filter")
    );
}

#[test]
fn a_cluster_that_does_not_answer_is_named() {
    let folder = folder();
    success(folder.path(), "certs init --cluster demo");
    success(folder.path(), "certs issue anna --roles operator,client");
    // Somebody listens there and never answers.
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let address = socket.local_addr().unwrap();
    let profile = format!(
        "nodes = [\"{address}\"]\nca = \"certs/ca.pem\"\n\
         certificate = \"certs/anna.pem\"\nkey = \"certs/anna.key\"\n"
    );
    std::fs::write(folder.path().join("roost.toml"), profile).unwrap();
    let said = failure(folder.path(), "models --timeout 0.5");
    assert!(said.starts_with("1\nroost: no node delivered a view of the cluster within 0.5 s"), "{said}");
    assert!(
        said.ends_with(
            "  does the cluster run, and does `nodes` in the profile name nodes of it that live?\n"
        ),
        "{said}"
    );
}

#[test]
fn certificates_are_issued_by_the_clusters_ca() {
    let folder = folder();
    let said = success(folder.path(), "certs init --cluster demo --into ca");
    expect![[r#"
        wrote ca/ca.pem and ca/ca.key
        Keep ca/ca.key to yourself. Next, a certificate for each node and for yourself:
          roost certs issue NODE --roles coordinator,worker --ca ca
          roost certs issue YOU --roles operator,client --ca ca
    "#]]
    .assert_eq(&said);
    let said =
        success(folder.path(), "certs issue anna --roles operator,client --ca ca --into mine --days 30");
    expect![[r#"
        wrote mine/anna.pem and mine/anna.key
        A profile (roost.toml) that uses it; its paths are relative to its folder:
          nodes = ["HOST:PORT"]
          ca = "ca/ca.pem"
          certificate = "mine/anna.pem"
          key = "mine/anna.key"
    "#]]
    .assert_eq(&said);
    let said = success(folder.path(), "certs issue a --roles coordinator,worker --ca ca --output json");
    expect![[r#"
        {
          "certificate": "ca/a.pem",
          "key": "ca/a.key"
        }
    "#]]
    .assert_eq(&said);

    let read = |file: &str| std::fs::read(folder.path().join(file)).unwrap();
    let identity = |name: &str| {
        let (certificate, key) = (read(&format!("{name}.pem")), read(&format!("{name}.key")));
        let credentials =
            Credentials::from_pem(&read("ca/ca.pem"), &certificate, &key, Arc::new(SystemClock));
        credentials.unwrap().identity().to_uri()
    };
    assert_eq!(identity("mine/anna"), "roost://demo/client+operator/anna");
    assert_eq!(identity("ca/a"), "roost://demo/coordinator+worker/a");
}

#[cfg(unix)]
#[test]
fn keys_are_for_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = folder();
    success(folder.path(), "certs init --cluster demo");
    success(folder.path(), "certs issue anna --roles client");
    for (file, expected) in [("ca.key", 0o600), ("anna.key", 0o600), ("ca.pem", 0o644), ("anna.pem", 0o644)] {
        let mode = std::fs::metadata(folder.path().join("certs").join(file)).unwrap().permissions().mode();
        // The user's mask may take more away.
        assert_eq!(mode & 0o777 & !expected, 0, "{file} has {mode:o}");
    }
}

#[test]
fn nothing_is_overwritten() {
    let folder = folder();
    success(folder.path(), "certs init --cluster demo");
    success(folder.path(), "certs issue anna --roles client");
    let contents = || {
        let files = std::fs::read_dir(folder.path().join("certs")).unwrap();
        let mut files: Vec<PathBuf> = files.map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files.into_iter().map(|path| (std::fs::read(&path).unwrap(), path)).collect::<Vec<_>>()
    };
    let before = contents();
    check_failure(
        folder.path(),
        "certs init --cluster demo",
        expect![[r#"
        1
        roost: certs/ca.key is there already and is not overwritten; move it away, or write elsewhere by --into
    "#]],
    );
    check_failure(
        folder.path(),
        "certs issue anna --roles operator",
        expect![[r#"
        1
        roost: certs/anna.key is there already and is not overwritten; move it away, or write elsewhere by --into
    "#]],
    );
    check_failure(
        folder.path(),
        "certs issue ca --roles operator",
        expect![[r#"
        1
        roost: the name ca is the CA's own; choose another
    "#]],
    );
    // A certificate without its key is no reason to leave a new key behind.
    std::fs::remove_file(folder.path().join("certs/anna.key")).unwrap();
    failure(folder.path(), "certs issue anna --roles client");
    assert!(!folder.path().join("certs/anna.key").exists());
    std::fs::write(folder.path().join("certs/anna.key"), &before[0].0).unwrap();
    assert_eq!(contents(), before);
}

#[test]
fn a_ca_is_needed_to_issue() {
    let folder = folder();
    check_failure(
        folder.path(),
        "certs issue anna --roles client",
        expect![[r#"
        1
        roost: cannot read certs/ca.pem; --ca names the CA's folder, `roost certs init` makes one: No such file or directory (os error 2)
    "#]],
    );
    success(folder.path(), "certs init --cluster demo");
    success(folder.path(), "certs issue anna --roles client");
    std::fs::copy(folder.path().join("certs/anna.pem"), folder.path().join("certs/ca.pem")).unwrap();
    check_failure(
        folder.path(),
        "certs issue bert --roles client",
        expect![[r#"
        1
        roost: ca.pem and ca.key in certs are no CA of a cluster: this is not the certificate of a Roost cluster's CA: it is that of "anna"
    "#]],
    );
}
