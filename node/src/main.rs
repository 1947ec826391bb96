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
        /// The first of the six ports that the nodes listen on. Default: 7400, or that of the cluster in the folder.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(roost_node::dev::PORT_MAX)))]
        port: Option<u16>,
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
            eprintln!("roost-node: {}", told_once(&error));
            ExitCode::FAILURE
        }
    }
}

/// The error and its causes, without those that the text ahead of them tells already: many errors print their source.
fn told_once(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
