//! `roost-sim`: repeats a seed, or explores fresh ones.

use std::hash::{BuildHasher, RandomState};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use roost_sim::explore::{Exploration, explore};
use roost_sim::plan::SAFETY;
use roost_sim::run::{Options, Report, run};
use roost_sim::trace::Keep;

/// Runs whole clusters in virtual time, each from one seed.
#[derive(Debug, Parser)]
#[command(version, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    repeat: Option<Repeat>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Runs seed after seed and prints those that fail.
    Explore {
        /// How long at most.
        #[arg(long, default_value_t = 10)]
        minutes: u64,
        /// Simulations at once.
        #[arg(long, default_value_t = 1)]
        jobs: usize,
        /// The first seed; the others follow it. Default: any.
        #[arg(long)]
        from: Option<u64>,
        /// How many seeds at most.
        #[arg(long, default_value_t = u64::MAX)]
        seeds: u64,
        /// Seconds of virtual time with faults.
        #[arg(long, default_value_t = SAFETY.as_secs())]
        safety: u64,
    },
}

#[derive(Debug, Args)]
struct Repeat {
    /// The seed.
    #[arg(long)]
    seed: u64,
    /// Writes the whole trace there.
    #[arg(long)]
    trace: Option<std::path::PathBuf>,
    /// Stops at this second of virtual time.
    #[arg(long)]
    until: Option<f64>,
    /// Seconds of virtual time with faults.
    #[arg(long, default_value_t = SAFETY.as_secs())]
    safety: u64,
    /// Puts a known bug back, by its name in the code.
    #[cfg(debug_assertions)]
    #[arg(long, value_parser = known_bug)]
    bug: Option<roost_protocol::KnownBug>,
}

#[cfg(debug_assertions)]
fn known_bug(name: &str) -> Result<roost_protocol::KnownBug, String> {
    let bugs = roost_protocol::KnownBug::ALL;
    let named = bugs.into_iter().find(|bug| format!("{bug:?}") == name);
    named.ok_or_else(|| format!("the known bugs are {bugs:?}"))
}

fn main() -> anyhow::Result<ExitCode> {
    let cli = Cli::parse();
    let sound = match (cli.command, cli.repeat) {
        (Some(Command::Explore { minutes, jobs, from, seeds, safety }), _) => {
            let (lasts, safety) = (Duration::from_secs(60 * minutes), Duration::from_secs(safety));
            // Short, since people copy it.
            let from = from.unwrap_or_else(|| RandomState::new().hash_one(0) >> 32);
            explore(&Exploration { lasts, jobs, from, seeds, safety })
        }
        (None, Some(repeat)) => repeat.run()?,
        (None, None) => anyhow::bail!("say which --seed to repeat, or explore; see --help"),
    };
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

impl Repeat {
    fn run(self) -> anyhow::Result<bool> {
        let keep = if self.trace.is_some() { Keep::All } else { Keep::Last };
        let until = self.until.map(Duration::try_from_secs_f64).transpose()?;
        let safety = Duration::from_secs(self.safety);
        let options = Options { keep, until, safety, ..Options::new(self.seed) };
        #[cfg(debug_assertions)]
        let options = Options { bug: self.bug, ..options };
        let report: Report = run(options);
        if let Some(path) = self.trace {
            std::fs::write(path, report.trace.lines.join("\n"))?;
        }
        println!("{report}");
        Ok(report.failure.is_none())
    }
}
