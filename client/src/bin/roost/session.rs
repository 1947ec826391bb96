//! A command's way to the cluster: the profile, the client, and how long the command may take.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use roost_client::client::{Client, ClientConfig, CredentialsSource};
use roost_protocol::view::Published;
use tokio::time::{Instant, timeout_at};

use crate::output::Output;
use crate::profile::{self, Profile};

/// A day: longer is a typing error, and timers overflow some time after.
const TIMEOUT_S_MAX: f64 = 86_400.0;

/// Keeps them apart from a command's own options.
const HEADING: &str = "Options of all commands";

/// What all commands understand.
#[derive(Debug, Args)]
pub struct Global {
    /// Which cluster, and as whom [default: ./roost.toml, then ~/.config/roost/roost.toml]
    #[arg(long, global = true, value_name = "FILE", help_heading = HEADING)]
    #[arg(env = "ROOST_PROFILE", hide_env_values = true)]
    pub profile: Option<PathBuf>,
    /// How long it may take in all [default: 10 to connect, 10 for a change, 120 for one of members; a push what it needs]
    #[arg(long, global = true, value_name = "SECONDS", help_heading = HEADING, value_parser = seconds)]
    pub timeout: Option<Duration>,
    /// What to print: text for people, json for programs
    #[arg(long, global = true, value_name = "FORMAT", help_heading = HEADING, hide_possible_values = true)]
    #[arg(value_enum, default_value_t = Output::Text)]
    pub output: Output,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= TIMEOUT_S_MAX);
    let seconds = seconds.ok_or_else(|| format!("a time above 0 s and up to {TIMEOUT_S_MAX} s is needed"))?;
    Ok(Duration::from_secs_f64(seconds))
}

/// A connected client.
pub struct Session {
    /// The client.
    pub client: Client,
    /// For whom to print.
    pub output: Output,
    until: Option<Instant>,
}

impl Session {
    /// Reads the profile and connects.
    ///
    /// # Errors
    /// When there is no profile, or no node of it delivers a view of the cluster.
    pub async fn open(global: &Global) -> anyhow::Result<Self> {
        let profile = Profile::find(global.profile.as_deref(), profile::user_folder().as_deref())?;
        let until = global.timeout.map(|timeout| Instant::now() + timeout);
        let mut config = config(profile);
        if let Some(timeout) = global.timeout {
            config.connect = timeout;
        }
        let client = Client::connect(config).await?;
        Ok(Self { client, output: global.output, until })
    }

    /// Does `work` within what is left of the time that the command may take.
    ///
    /// # Errors
    /// The work's, or that the time has passed.
    pub async fn within<T>(&self, work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
        match self.until {
            None => work.await,
            Some(until) => timeout_at(until, work).await.unwrap_or_else(|_| {
                anyhow::bail!(
                    "not done within --timeout; a change may still be made, so look before asking anew"
                )
            }),
        }
    }

    /// What is left of the time that the command may take, if that is bounded.
    pub fn left(&self) -> Option<Duration> {
        self.until.map(|until| until.saturating_duration_since(Instant::now()))
    }

    /// The newest view and soft state.
    pub fn published(&self) -> Published {
        self.client.published().borrow().clone()
    }
}

fn config(profile: Profile) -> ClientConfig {
    let Profile { nodes, ca, certificate, key } = profile;
    let all_v6 = nodes.iter().all(|node| node.starts_with('['));
    let mut config = ClientConfig::new(nodes, CredentialsSource::Files { ca, certificate, key });
    if all_v6 {
        "[::]:0".clone_into(&mut config.bind);
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_in_seconds() {
        assert_eq!(seconds("2"), Ok(Duration::from_secs(2)));
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["", "0", "-1", "nan", "inf", "1e9", "2s"] {
            seconds(bad).unwrap_err();
        }
    }

    #[test]
    fn the_local_address_is_of_the_nodes_kind() {
        let bind = |nodes: &[&str]| {
            let nodes = nodes.iter().map(|node| (*node).to_owned()).collect();
            config(Profile { nodes, ca: "a".into(), certificate: "b".into(), key: "c".into() }).bind
        };
        assert_eq!(bind(&["[::1]:7400"]), "[::]:0");
        assert_eq!(bind(&["[::1]:7400", "a:7400"]), "0.0.0.0:0");
    }
}
