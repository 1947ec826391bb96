//! `roost`: the command line of a Roost cluster.
//!
//! In reading order: [`arguments`] is the grammar; [`profile`] and [`session`] lead to the cluster;
//! [`push`], [`models`], [`rollout`], [`infer`], [`cluster`], [`members`], [`node`], [`snapshot`] and [`certs`] are the
//! commands; [`output`],
//! [`table`] and [`moment`] say how their reports are printed, [`failure`] what is printed instead. Reports
//! are made by pure functions of what the cluster answered, so that they are tested without one.

mod arguments;
mod certs;
mod cluster;
#[cfg(test)]
mod example;
mod failure;
mod hosting;
mod infer;
mod members;
mod models;
mod moment;
mod node;
mod output;
mod profile;
mod push;
mod rollout;
mod session;
mod snapshot;
mod table;

use std::io::IsTerminal as _;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use tracing_subscriber::EnvFilter;

use arguments::{Arguments, Command, OnCluster};
use cluster::ClusterCommand;
use failure::usage;
use session::{Global, Session};
use snapshot::SnapshotCommand;

fn main() -> ExitCode {
    let done = start_log().and_then(|()| run(Arguments::parse()));
    done.map_or_else(|error| failure::tell(&error), |()| ExitCode::SUCCESS)
}

/// On standard error, since standard output is for what was asked.
fn start_log() -> anyhow::Result<()> {
    let directives = std::env::var("ROOST_LOG").unwrap_or_else(|_| "warn".to_owned());
    let filter = EnvFilter::try_new(&directives)
        .map_err(|error| usage(format!("ROOST_LOG is {directives:?}, which is no filter: {error}")))?;
    let ansi = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(ansi);
    log.try_init().map_err(|error| anyhow::anyhow!(error))
}

fn run(Arguments { global, command }: Arguments) -> anyhow::Result<()> {
    match command {
        // Without the cluster: the file may be all that is left of it.
        Command::OnCluster(OnCluster::Cluster(ClusterCommand::Snapshot(SnapshotCommand::Status {
            file,
        }))) => snapshot::status(&file, global.output),
        Command::Certs(command) => certs::run(&command, global.output),
        Command::OnCluster(command) => {
            // One thread is enough for one command, and starts sooner than many.
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("cannot start the runtime")?.block_on(on_cluster(&global, command))
        }
    }
}

async fn on_cluster(global: &Global, command: OnCluster) -> anyhow::Result<()> {
    let session = Session::open(global).await?;
    let done = session.within(Box::pin(carry_out(&session, command))).await;
    // Nodes learn that this client is gone, instead of waiting for it.
    session.client.close().await;
    done
}

async fn carry_out(session: &Session, command: OnCluster) -> anyhow::Result<()> {
    match command {
        OnCluster::Push(arguments) => push::run(session, arguments).await,
        OnCluster::Models => models::models(session).await,
        OnCluster::Versions(arguments) => models::versions(session, arguments).await,
        OnCluster::Rollout(command) => rollout::run(session, command).await,
        OnCluster::Label(command) => models::label(session, command).await,
        OnCluster::Infer(arguments) => infer::run(session, arguments).await,
        OnCluster::Node(command) => node::run(session, command).await,
        OnCluster::Cluster(command) => cluster::run(session, command).await,
    }
}
