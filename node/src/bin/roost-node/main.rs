//! `roost-node`: one node of a cluster, a whole one to try, or a model alone.

#[cfg(feature = "native")]
mod allocations;
mod cli;
#[cfg(feature = "native")]
mod command;

use std::process::ExitCode;

use clap::Parser as _;
use cli::{Cli, NodeArguments};

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result: anyhow::Result<ExitCode> = match (cli.command, cli.node) {
        #[cfg(feature = "dev")]
        (Some(cli::Command::Dev { data, models, port, demo }), _) => {
            roost_node::dev::main(roost_node::dev::DevOptions { data, models, port, demo }).map(success)
        }
        #[cfg(feature = "coordinator")]
        (Some(cli::Command::Recover(options)), _) => roost_node::start::recover::main(&options).map(success),
        #[cfg(feature = "native")]
        (Some(cli::Command::Run(options)), _) => command::run::main(&options).map(exit_code),
        #[cfg(feature = "native")]
        (Some(cli::Command::Inspect(options)), _) => command::inspect::main(&options).map(exit_code),
        #[cfg(feature = "native")]
        (Some(cli::Command::Conformance(options)), _) => command::conformance::main(&options).map(exit_code),
        #[cfg(not(any(feature = "coordinator", feature = "dev", feature = "native")))]
        (Some(command), _) => match command {},
        (None, Some(NodeArguments { config, name })) => {
            roost_node::process::main(&config, &name).map(success)
        }
        (None, None) => {
            eprintln!("roost-node: give --config FILE and --name NODE, or a command; --help says more");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("roost-node: {}", told_once(&error));
            ExitCode::FAILURE
        }
    }
}

fn success((): ()) -> ExitCode {
    ExitCode::SUCCESS
}

#[cfg(feature = "native")]
fn exit_code(verdict: command::Verdict) -> ExitCode {
    match verdict {
        command::Verdict::Good => ExitCode::SUCCESS,
        command::Verdict::Mismatch => ExitCode::FAILURE,
    }
}

/// The error and its causes, without those that the text ahead of them tells already: many errors print their
/// source.
fn told_once(error: &anyhow::Error) -> String {
    error.chain().skip(1).fold(error.to_string(), |text, cause| {
        let cause = cause.to_string();
        if text.contains(&cause) { text } else { format!("{text}: {cause}") }
    })
}
