//! `roost-node`: one node of a cluster, or a whole one to try.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// Starts a node of a Roost cluster.
#[derive(Parser)]
#[command(version, about, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    node: Option<NodeArguments>,
}

#[derive(Args)]
struct NodeArguments {
    /// The cluster config.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Which of its nodes this is.
    #[arg(long)]
    name: String,
}

#[derive(Subcommand)]
enum Command {
    #[cfg(feature = "dev")]
    /// Starts a whole cluster in this process, shows a rollout on it, and keeps serving.
    Dev {
        /// Where the cluster keeps its data. Default: a temporary folder.
        #[arg(long, value_name = "FOLDER")]
        data: Option<PathBuf>,
        /// The models to push: a folder with one folder per version, and the held-out images.
        #[arg(long, value_name = "FOLDER", default_value = "deploy/models/digits")]
        models: PathBuf,
        /// The first of the ports that the nodes listen on.
        #[arg(long, default_value_t = 7400)]
        port: u16,
        /// Ends after the showing.
        #[arg(long)]
        demo: bool,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match (cli.command, cli.node) {
        #[cfg(feature = "dev")]
        (Some(Command::Dev { data, models, port, demo }), _) => {
            roost_node::dev::main(roost_node::dev::DevOptions { data, models, port, demo })
        }
        #[cfg(not(feature = "dev"))]
        (Some(command), _) => match command {},
        (None, Some(NodeArguments { config, name })) => roost_node::process::main(&config, &name),
        (None, None) => {
            eprintln!("roost-node: give --config FILE and --name NODE, or `dev`; --help says more");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("roost-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}
