//! What the command line of `roost-node` takes.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

/// Starts a node of a Roost cluster.
#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub node: Option<NodeArguments>,
}

#[derive(Args)]
pub struct NodeArguments {
    /// The cluster config.
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,
    /// Which of its nodes this is.
    #[arg(long)]
    pub name: String,
}

#[derive(Subcommand)]
pub enum Command {
    #[cfg(feature = "dev")]
    /// Starts a whole cluster in this process, shows a rollout on it, and keeps serving.
    Dev {
        /// Where the cluster keeps its data. Default: a temporary folder.
        #[arg(long, value_name = "FOLDER")]
        data: Option<PathBuf>,
        /// The models to push: a folder with one folder per version, and the held-out images.
        #[arg(long, value_name = "FOLDER", default_value = "deploy/models/digits")]
        models: PathBuf,
        /// The first of the six ports that the nodes listen on. Default: 7400, or that of the cluster in the
        /// folder.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(roost_node::dev::PORT_MAX)))]
        port: Option<u16>,
        /// Ends after the showing.
        #[arg(long)]
        demo: bool,
    },
    #[cfg(feature = "coordinator")]
    /// Makes a stopped coordinator a group of one, after the loss of a quorum or from a snapshot.
    #[command(
        after_help = "Example:\n  roost-node recover --config cluster.toml --name c1 --force-new-group\n\n\
        The database is copied before it is changed. Epochs go on in a raised generation, so that clients and\n\
        workers follow the new group and nobody follows what may be left of the old one."
    )]
    Recover(roost_node::start::recover::RecoverOptions),
    #[cfg(feature = "native")]
    /// Runs a model alone: compares with test data, measures.
    Run(crate::command::run::RunOptions),
    #[cfg(feature = "native")]
    /// Shows what a model is made of, and how it would run.
    Inspect(crate::command::inspect::InspectOptions),
    #[cfg(feature = "native")]
    /// Runs a folder of ONNX backend tests.
    Conformance(crate::command::conformance::ConformanceOptions),
}
